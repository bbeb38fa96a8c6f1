//! Services, slices and pods in, answers out.

use super::*;
use crate::world::World;
use serde_json::{Value, json};

fn world() -> World {
    let mut world = World::default();
    world.put(json!({"kind": "Namespace", "metadata": {"name": "default"}}));
    for (name, spec) in [
        ("web", json!({"clusterIP": "None", "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]})),
        ("api", json!({"clusterIP": "10.96.0.7", "ports": [{"name": "rpc", "port": 90, "protocol": "TCP"}]})),
        ("ext", json!({"type": "ExternalName", "externalName": "db.example.org."})),
        ("alias", json!({"type": "ExternalName", "externalName": "api.default.svc.cluster.local"})),
        ("idle", json!({"clusterIP": "None", "ports": [{"port": 80}]})),
    ] {
        world.put(json!({"kind": "Service", "metadata": {"namespace": "default", "name": name}, "spec": spec}));
    }
    world.put(json!({"kind": "EndpointSlice", "metadata": {"namespace": "default", "name": "web-a",
            "labels": {backend::SERVICE_NAME: "web"}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": [endpoint(0), endpoint(1)]}));
    for ordinal in 0..2 {
        world.put(pod(ordinal, "u"));
    }
    world
}

fn endpoint(ordinal: u8) -> Value {
    json!({"addresses": [format!("10.0.0.{ordinal}")], "hostname": format!("web-{ordinal}"),
        "conditions": {"ready": true, "serving": true},
        "targetRef": {"kind": "Pod", "namespace": "default", "name": format!("web-{ordinal}"),
            "uid": format!("u{ordinal}")}})
}

fn pod(ordinal: u8, uid: &str) -> Value {
    json!({"kind": "Pod", "metadata": {"namespace": "default", "name": format!("web-{ordinal}"),
        "uid": format!("{uid}{ordinal}")},
        "status": {"podIP": format!("10.0.0.{ordinal}")}})
}

fn ask(world: &World, name: &str, wanted: Type) -> String {
    ask_of(&Zones::new(&world.snapshot, "cluster.local."), world, name, wanted)
}

fn ask_of(zones: &Zones, world: &World, name: &str, wanted: Type) -> String {
    let shown = |data: &Data| match data {
        Data::A(ip) => ip.to_string(),
        Data::Aaaa(ip) => ip.to_string(),
        Data::Cname(name) | Data::Ptr(name) | Data::Txt(name) => name.clone(),
        Data::Srv { port, target, .. } => format!("{target}:{port}"),
    };
    match zones.answer(&world.snapshot, name, wanted) {
        Answer::Records { answers, additional } => {
            let list =
                |records: &[Record]| records.iter().map(|record| shown(&record.data)).collect::<Vec<_>>().join(" ");
            if additional.is_empty() { list(&answers) } else { format!("{} + {}", list(&answers), list(&additional)) }
        }
        other => format!("{other:?}"),
    }
}

#[test]
fn the_specification_as_a_table() {
    let world = world();
    let table = [
        ("web.default.svc.cluster.local", Type::A, "10.0.0.0 10.0.0.1"),
        ("WEB.Default.svc.cluster.local.", Type::A, "10.0.0.0 10.0.0.1"),
        ("web-1.web.default.svc.cluster.local", Type::A, "10.0.0.1"),
        ("web-1.web.default.svc.cluster.local", Type::Aaaa, "NoData"),
        ("web-2.web.default.svc.cluster.local", Type::A, "NxDomain"),
        (
            "_http._tcp.web.default.svc.cluster.local",
            Type::Srv,
            "web-0.web.default.svc.cluster.local:8080 web-1.web.default.svc.cluster.local:8080 + 10.0.0.0 10.0.0.1",
        ),
        ("_tcp.web.default.svc.cluster.local", Type::Srv, "NoData"),
        ("_rpc._tcp.api.default.svc.cluster.local", Type::Srv, "api.default.svc.cluster.local:90 + 10.96.0.7"),
        ("api.default.svc.cluster.local", Type::A, "10.96.0.7"),
        ("api.default.svc.cluster.local", Type::Other, "NoData"),
        ("7.0.96.10.in-addr.arpa", Type::Ptr, "api.default.svc.cluster.local"),
        ("1.0.0.10.in-addr.arpa", Type::Ptr, "web-1.web.default.svc.cluster.local"),
        ("9.9.9.9.in-addr.arpa", Type::Ptr, "NotOurs"),
        ("ext.default.svc.cluster.local", Type::A, "db.example.org"),
        ("alias.default.svc.cluster.local", Type::A, "api.default.svc.cluster.local 10.96.0.7"),
        ("idle.default.svc.cluster.local", Type::A, "NxDomain"),
        ("gone.default.svc.cluster.local", Type::A, "NxDomain"),
        ("default.svc.cluster.local", Type::A, "NoData"),
        ("nowhere.svc.cluster.local", Type::A, "NxDomain"),
        ("cluster.local", Type::A, "NoData"),
        ("dns-version.cluster.local", Type::Txt, "1.1.0"),
        ("10-0-0-1.default.pod.cluster.local", Type::A, "10.0.0.1"),
        ("10-0-0-9.default.pod.cluster.local", Type::A, "NxDomain"),
        ("example.org", Type::A, "NotOurs"),
        ("notcluster.local", Type::A, "NotOurs"),
    ];
    for (name, wanted, expected) in table {
        assert_eq!(ask(&world, name, wanted), expected, "{name} {wanted:?}");
    }
}

/// Both families, ports without a name, several ports of one host, hosts without a name, and odd questions.
#[test]
#[expect(clippy::too_many_lines, reason = "a list of cases")]
fn the_specification_beyond_its_first_table() {
    let mut world = world();
    for (name, spec) in [
        ("six", json!({"clusterIP": "fd00::7", "ports": [{"port": 90}, {"name": "b", "port": 91}]})),
        ("low", json!({"clusterIP": "d00::7", "ports": [{"name": "", "port": 92}]})),
        ("mixed", json!({"clusterIP": "None"})),
        ("nothing", json!({"type": "ExternalName", "externalName": "."})),
        ("shared-a", json!({"clusterIP": "10.96.0.9"})),
        ("shared-b", json!({"clusterIP": "10.96.0.9"})),
    ] {
        world.put(json!({"kind": "Service", "metadata": {"namespace": "default", "name": name}, "spec": spec}));
    }
    let slice = |name: &str, family: &str, service: &str, endpoints: Value| {
        json!({"kind": "EndpointSlice", "metadata": {"namespace": "default", "name": name,
            "labels": {backend::SERVICE_NAME: service}}, "addressType": family,
            "ports": [{"name": "z", "port": 2, "protocol": "TCP"}, {"name": "a", "port": 1, "protocol": "TCP"}],
            "endpoints": endpoints})
    };
    let ready = json!({"ready": true, "serving": true});
    world.put(slice(
        "m-6",
        "IPv6",
        "mixed",
        json!([
        {"addresses": ["fd00::b"], "hostname": "h", "conditions": ready},
        {"addresses": ["fd00::a"], "conditions": ready}]),
    ));
    world.put(slice(
        "m-4",
        "IPv4",
        "mixed",
        json!([{"addresses": ["10.0.1.1"], "hostname": "h", "conditions": ready}]),
    ));
    // The same endpoint in two slices is one.
    world.put(slice(
        "m-5",
        "IPv4",
        "mixed",
        json!([{"addresses": ["10.0.1.1"], "hostname": "h", "conditions": ready},
            {"addresses": ["10.0.1.1"], "hostname": "g", "conditions": ready,
                "targetRef": {"kind": "Pod", "namespace": "default", "name": "g", "uid": "g"}}]),
    ));
    world.put(json!({"kind": "Pod", "metadata": {"namespace": "default", "name": "g", "uid": "g"},
        "status": {"podIP": "10.0.1.1"}}));
    world.put(slice("api-4", "IPv4", "api", json!([{"addresses": ["10.0.2.1"], "conditions": ready}])));
    world.put(json!({"kind": "Pod", "metadata": {"namespace": "default", "name": "p6", "uid": "p6"},
        "status": {"podIP": "fd00::1:2"}}));
    let six = |address: &str| {
        let address: std::net::Ipv6Addr = address.parse().unwrap();
        let digits = format!("{:032x}", u128::from(address));
        let nibbles: Vec<String> = digits.chars().rev().map(String::from).collect();
        format!("{}.ip6.arpa", nibbles.join("."))
    };
    let hosts = ["fd00--a", "g", "h"].map(|host| format!("{host}.mixed.default.svc.cluster.local"));
    let srv: Vec<String> =
        [1, 2].iter().flat_map(|port| hosts.iter().map(move |host| format!("{host}:{port}"))).collect();
    let whole = format!("{} + fd00::a 10.0.1.1 10.0.1.1 fd00::b", srv.join(" "));
    let api = "api.default.svc.cluster.local";
    for (name, wanted, expected) in [
        ("six.default.svc.cluster.local", Type::Aaaa, "fd00::7"),
        ("six.default.svc.cluster.local", Type::A, "NoData"),
        (
            "six.default.svc.cluster.local",
            Type::Srv,
            "six.default.svc.cluster.local:90 six.default.svc.cluster.local:91 + fd00::7",
        ),
        ("_b._tcp.six.default.svc.cluster.local", Type::Srv, "six.default.svc.cluster.local:91 + fd00::7"),
        ("_._tcp.six.default.svc.cluster.local", Type::Srv, "NxDomain"),
        (&six("fd00::7"), Type::Ptr, "six.default.svc.cluster.local"),
        (&six("fd00::8"), Type::Ptr, "NotOurs"),
        (&six("d00::7"), Type::Ptr, "low.default.svc.cluster.local"),
        (&six("d00::7").replace(".0.ip6", ".ip6"), Type::Ptr, "NotOurs"),
        (&six("d00::7").replace(".0.ip6", ".00.ip6"), Type::Ptr, "NotOurs"),
        ("_._tcp.low.default.svc.cluster.local", Type::Srv, "NxDomain"),
        ("1.1.0.10.in-addr.arpa", Type::Ptr, "g.mixed.default.svc.cluster.local h.mixed.default.svc.cluster.local"),
        // What is behind a Service with an address has no part in its name, nor in its ports.
        (api, Type::A, "10.96.0.7"),
        (api, Type::Srv, "api.default.svc.cluster.local:90 + 10.96.0.7"),
        ("1.2.0.10.in-addr.arpa", Type::Ptr, "NotOurs"),
        (six("fd00::7").split_once('.').unwrap().1, Type::Ptr, "NotOurs"),
        (&format!("0.{}", six("fd00::7")), Type::Ptr, "NotOurs"),
        (&format!("07.{}", six("fd00::7").split_once('.').unwrap().1), Type::Ptr, "NotOurs"),
        ("9.0.96.10.in-addr.arpa", Type::Ptr, "shared-a.default.svc.cluster.local shared-b.default.svc.cluster.local"),
        ("mixed.default.svc.cluster.local", Type::A, "10.0.1.1"),
        ("mixed.default.svc.cluster.local", Type::Aaaa, "fd00::a fd00::b"),
        ("mixed.default.svc.cluster.local", Type::Srv, &whole),
        ("fd00--a.mixed.default.svc.cluster.local", Type::Aaaa, "fd00::a"),
        // What has no hostname has no name of its own the other way round.
        (&six("fd00::a"), Type::Ptr, "NotOurs"),
        (&six("fd00::b"), Type::Ptr, "h.mixed.default.svc.cluster.local"),
        ("nothing.default.svc.cluster.local", Type::A, "NxDomain"),
        ("alias.default.svc.cluster.local", Type::Cname, api),
        ("alias.default.svc.cluster.local", Type::Any, api),
        (api, Type::Any, "10.96.0.7 api.default.svc.cluster.local:90 + 10.96.0.7"),
        ("fd00--1-2.default.pod.cluster.local", Type::Aaaa, "fd00::1:2"),
        ("fd00-0-0-0-0-0-1-2.default.pod.cluster.local", Type::Aaaa, "NxDomain"),
        ("10-0-0-01.default.pod.cluster.local", Type::A, "NxDomain"),
        ("10.0.0-1.default.pod.cluster.local", Type::A, "NxDomain"),
    ] {
        assert_eq!(ask(&world, name, wanted), expected, "{name} {wanted:?}");
    }
    // An address that two Services have is the other's when one of them goes.
    let mut zones = Zones::new(&world.snapshot, "cluster.local");
    world.remove(&mainstay_api::kinds::SERVICE, &ObjectKey::new("default", "shared-a"));
    zones.refresh(&world.snapshot, &ObjectKey::new("default", "shared-a"));
    assert_eq!(ask_of(&zones, &world, "9.0.96.10.in-addr.arpa", Type::Ptr), "shared-b.default.svc.cluster.local");
    world.remove(&mainstay_api::kinds::SERVICE, &ObjectKey::new("default", "shared-b"));
    zones.refresh(&world.snapshot, &ObjectKey::new("default", "shared-b"));
    assert_eq!(ask_of(&zones, &world, "9.0.96.10.in-addr.arpa", Type::Ptr), "NotOurs");
}

#[test]
fn n2_n3_a_name_goes_with_its_pod_even_before_the_slice_is_written() {
    let mut world = world();
    let name = "web-1.web.default.svc.cluster.local";
    world.patch(
        &mainstay_api::kinds::POD,
        "default",
        "web-1",
        json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"nodeName": "n"}}),
    );
    assert_eq!(ask(&world, name, Type::A), "NxDomain");
    // The next pod of that name has another uid: the slice still speaks of the old one.
    world.put(pod(1, "v"));
    assert_eq!(ask(&world, name, Type::A), "NxDomain");
    assert_eq!(ask(&world, "web.default.svc.cluster.local", Type::A), "10.0.0.0");
}

#[test]
fn n2_publish_not_ready_addresses_keeps_the_name_until_the_pod_is_gone() {
    let mut world = world();
    let services = &mainstay_api::kinds::SERVICE;
    world.patch(services, "default", "web", json!({"spec": {"publishNotReadyAddresses": true}}));
    world.patch(
        &mainstay_api::kinds::POD,
        "default",
        "web-1",
        json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"nodeName": "n"}}),
    );
    assert_eq!(ask(&world, "web-1.web.default.svc.cluster.local", Type::A), "10.0.0.1");
}

#[test]
fn n1_changes_applied_one_by_one_give_the_same_zones_as_making_them_anew() {
    let world = world();
    let kinds = [
        &mainstay_api::kinds::NAMESPACE,
        &mainstay_api::kinds::SERVICE,
        &mainstay_api::kinds::POD,
        &mainstay_api::kinds::ENDPOINT_SLICE,
    ];
    let mut snapshot = Snapshot::default();
    let mut zones = Zones::new(&snapshot, "cluster.local");
    let mut step = |kind: &'static mainstay_api::Kind, object: &Value, there: bool| {
        let before = snapshot.clone();
        let bytes = serde_json::to_vec(object).unwrap();
        let change = snapshot.apply(kind, ObjectKey::of(object), there.then_some(&bytes), snapshot.revision + 1);
        zones.apply(&before, &snapshot, &change);
        let anew = Zones::new(&snapshot, "cluster.local");
        assert_eq!((&zones.tables, &zones.reverse), (&anew.tables, &anew.reverse));
    };
    for there in [true, false] {
        for kind in kinds {
            for object in world.all(kind) {
                step(kind, object, there);
            }
        }
    }
}

#[test]
fn n1_n2_n3_tables_follow_a_pod_that_goes_is_another_or_comes_after_its_slice() {
    let mut world = world();
    let mut zones = Zones::new(&world.snapshot, "cluster.local");
    world.changes.clear();
    let own = "web-1.web.default.svc.cluster.local";
    let slice_of = |uid: &str| {
        let mut endpoint = endpoint(1);
        endpoint["targetRef"]["uid"] = json!(format!("{uid}1"));
        json!({"endpoints": [endpoint]})
    };
    let change = |world: &mut World, patch: Value| world.patch(&mainstay_api::kinds::POD, "default", "web-1", patch);
    let slice = |world: &mut World, uid: &str| {
        world.patch(&mainstay_api::kinds::ENDPOINT_SLICE, "default", "web-a", slice_of(uid));
    };
    let gone = |world: &mut World| world.remove(&mainstay_api::kinds::POD, &ObjectKey::new("default", "web-1"));
    type Step<'a> = (&'a str, &'a dyn Fn(&mut World), &'a str);
    let steps: [Step; 12] = [
        ("the pod has another address", &|world| change(world, json!({"status": {"podIP": "10.0.0.9"}})), "NxDomain"),
        ("its own again", &|world| change(world, json!({"status": {"podIP": "10.0.0.1"}})), "10.0.0.1"),
        ("it has finished", &|world| change(world, json!({"status": {"phase": "Failed"}})), "NxDomain"),
        ("it runs", &|world| change(world, json!({"status": {"phase": "Running"}})), "10.0.0.1"),
        ("the next of its name, in one step, with its address", &|world| world.put(pod(1, "v")), "NxDomain"),
        ("the slice follows", &|world| slice(world, "v"), "10.0.0.1"),
        (
            "it is told to go",
            &|world| {
                change(
                    world,
                    json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"nodeName": "n"}}),
                )
            },
            "NxDomain",
        ),
        ("it is gone", &gone, "NxDomain"),
        ("the slice is written before its pod is seen", &|world| slice(world, "w"), "NxDomain"),
        ("the pod is seen", &|world| world.put(pod(1, "w")), "10.0.0.1"),
        ("it goes at once", &gone, "NxDomain"),
        ("the same one is seen after all", &|world| world.put(pod(1, "w")), "10.0.0.1"),
    ];
    for (what, step, expected) in steps {
        step(&mut world);
        for (before, change) in std::mem::take(&mut world.changes) {
            zones.apply(&before, &world.snapshot, &change);
        }
        assert_eq!(ask_of(&zones, &world, own, Type::A), expected, "{what}");
        assert_eq!(zones.tables, Zones::new(&world.snapshot, "cluster.local").tables, "{what}");
    }
}

#[test]
fn x4_strange_names_are_answered_calmly() {
    let world = world();
    for name in [
        "",
        ".",
        "..",
        "svc.cluster.local",
        "....cluster.local",
        "x.ip6.arpa",
        "\u{e9}.svc.cluster.local",
        "a.b.c.d.e.f.pod.cluster.local",
    ] {
        ask(&world, name, Type::Any);
    }
}
