//! Services, slices and pods in, backends and whoever is concerned out.

use mainstay_api::kinds;
use serde_json::{Value, json};

use super::*;
use crate::world::{World, merge};

fn pod(patch: Value) -> Value {
    let mut pod = json!({"kind": "Pod", "metadata": {"namespace": "default", "name": "a", "uid": "ua"},
        "spec": {"nodeName": "n1"}, "status": {"phase": "Running", "podIP": "10.0.0.1"}});
    merge(&mut pod, patch);
    pod
}

/// The Service `web` and a slice of it with one endpoint.
fn world(service: Value, endpoint: Value) -> World {
    let mut world = World::default();
    world.put(json!({"kind": "Service", "metadata": {"namespace": "default", "name": "web"}, "spec": service}));
    let mut own = json!({"addresses": ["10.0.0.1"], "conditions": {"ready": true}, "nodeName": "n1",
        "targetRef": {"kind": "Pod", "namespace": "default", "name": "a", "uid": "ua"}});
    merge(&mut own, endpoint);
    world.put(slice("web-a", "web", json!([own])));
    world
}

fn slice(name: &str, service: &str, endpoints: Value) -> Value {
    json!({"kind": "EndpointSlice", "metadata": {"namespace": "default", "name": name,
        "labels": {SERVICE_NAME: service}}, "addressType": "IPv4", "ports": [{"port": 80}], "endpoints": endpoints})
}

/// `address ready/serving/terminating hostname node` of each backend.
fn shown(world: &World) -> Vec<String> {
    let flag = |is: bool| if is { 'y' } else { 'n' };
    let found = backends(&world.snapshot, &ObjectKey::new("default", "web"));
    let line = |b: Backend| {
        let flags: String = [b.ready, b.serving, b.terminating].map(flag).into_iter().collect();
        format!("{} {flags} {} {}", b.address, b.hostname.unwrap_or_else(|| "-".to_owned()), b.node)
    };
    found.into_iter().map(line).collect()
}

#[test]
fn n2_n3_an_endpoint_counts_while_exactly_its_pod_is_there_and_has_the_address() {
    let leaving = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    let publish = json!({"publishNotReadyAddresses": true});
    let without = |name: &str| json!({"conditions": {name: false}});
    let none: Option<&str> = None;
    let table = [
        (json!({}), json!({}), pod(json!({})), Some("10.0.0.1 yyn - n1")),
        (json!({}), json!({"hostname": "a"}), pod(json!({})), Some("10.0.0.1 yyn a n1")),
        (json!({}), json!({"hostname": ""}), pod(json!({})), Some("10.0.0.1 yyn - n1")),
        (json!({}), without("serving"), pod(json!({})), Some("10.0.0.1 ynn - n1")),
        (json!({}), json!({"conditions": null}), pod(json!({})), Some("10.0.0.1 yyn - n1")),
        (json!({}), without("ready"), pod(json!({})), Some("10.0.0.1 nnn - n1")),
        (publish.clone(), without("ready"), pod(json!({})), Some("10.0.0.1 nnn - n1")),
        (json!({}), json!({"conditions": {"terminating": true}}), pod(json!({})), Some("10.0.0.1 yyy - n1")),
        (json!({}), json!({}), pod(leaving.clone()), Some("10.0.0.1 nny - n1")),
        (publish, json!({}), pod(leaving), Some("10.0.0.1 yyy - n1")),
        // Another pod of the name, one that has ended, one that has another address now.
        (json!({}), json!({}), pod(json!({"metadata": {"uid": "ub"}})), none),
        (
            json!({}),
            json!({"targetRef": {"uid": null}}),
            pod(json!({"metadata": {"uid": "ub"}})),
            Some("10.0.0.1 yyn - n1"),
        ),
        (json!({}), json!({}), pod(json!({"status": {"phase": "Failed"}})), none),
        (json!({}), json!({}), pod(json!({"status": {"podIP": "10.0.0.9"}})), none),
        (json!({}), json!({}), pod(json!({"status": {"podIP": ""}})), none),
        (json!({}), json!({}), pod(json!({"metadata": {"name": "b"}})), none),
        // Of several addresses one is enough; the list leads where there is one.
        (
            json!({}),
            json!({}),
            pod(json!({"status": {"podIPs": [{"ip": "fd00::1"}, {"ip": "10.0.0.1"}]}})),
            Some("10.0.0.1 yyn - n1"),
        ),
        (json!({}), json!({}), pod(json!({"status": {"podIPs": [{"ip": "10.0.0.9"}]}})), none),
        // What is no pod is believed.
        (json!({}), json!({"targetRef": {"kind": "Node"}}), pod(json!({"status": null})), Some("10.0.0.1 yyn - n1")),
        (
            json!({}),
            json!({"targetRef": null, "nodeName": null}),
            pod(json!({"status": null})),
            Some("10.0.0.1 yyn - "),
        ),
    ];
    for (service, endpoint, pod, expected) in table {
        let mut world = world(service.clone(), endpoint.clone());
        world.put(pod.clone());
        assert_eq!(shown(&world), expected.into_iter().collect::<Vec<_>>(), "{service} {endpoint} {pod}");
    }
}

#[test]
fn n3_a_node_judges_its_own_pods_only() {
    for (own, expected) in [(Some("n1"), 0), (Some("n2"), 1), (None, 0)] {
        let mut world = world(json!({}), json!({}));
        world.snapshot.pods_of = own.map(Into::into);
        assert_eq!(shown(&world).len(), expected, "{own:?}: the pod is not in the snapshot");
    }
}

#[test]
fn backends_come_in_order_of_address_and_once() {
    let mut world = world(json!({}), json!({"targetRef": null}));
    let endpoints = json!([{"addresses": ["10.0.0.3"]}, {"addresses": ["10.0.0.2"]}]);
    world.put(slice("web-b", "web", endpoints.clone()));
    world.put(slice("web-0", "web", endpoints));
    world.put(slice("other", "other", json!([{"addresses": ["10.0.0.4"]}])));
    assert_eq!(shown(&world), ["10.0.0.1 yyn - n1", "10.0.0.2 yyn - ", "10.0.0.3 yyn - "]);
}

/// N1, N2, N3: each change of a pod that changes an answer wakes its Services, and no other does.
#[test]
fn n1_services_are_woken_by_what_their_backends_depend_on() {
    let changes = [
        (json!({"metadata": {"uid": "ub"}}), true),
        (json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}), true),
        (json!({"status": {"phase": "Succeeded"}}), true),
        (json!({"status": {"podIP": "10.0.0.9"}}), true),
        (json!({"status": {"podIPs": [{"ip": "10.0.0.9"}]}}), true),
        (json!({"metadata": {"labels": {"a": "b"}}}), false),
        (json!({"status": {"message": "well"}}), false),
    ];
    for (patch, wakes) in changes {
        let mut world = world(json!({}), json!({}));
        world.put(pod(json!({})));
        world.changes.clear();
        world.put(pod(patch.clone()));
        assert_eq!(woken(&world), if wakes { vec!["web"] } else { vec![] }, "{patch}");
    }
    let mut world = world(json!({}), json!({}));
    for (object, expected) in [
        (pod(json!({})), vec!["web"]),
        (slice("web-a", "other", json!([])), vec!["other", "web"]),
        (json!({"kind": "Service", "metadata": {"namespace": "default", "name": "x"}, "spec": {}}), vec!["x"]),
        (json!({"kind": "ConfigMap", "metadata": {"namespace": "default", "name": "x"}}), vec![]),
    ] {
        world.changes.clear();
        world.put(object.clone());
        assert_eq!(woken(&world), expected, "{object}");
    }
    world.put(slice("web-a", "web", json!([{"addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "name": "a"}}])));
    world.changes.clear();
    world.remove(&kinds::POD, &ObjectKey::new("default", "a"));
    assert_eq!(woken(&world), ["web"], "its pod is gone");
}

fn woken(world: &World) -> Vec<String> {
    let mut names = std::collections::BTreeSet::new();
    for (before, change) in &world.changes {
        concerned(before, &world.snapshot, change, &mut |key| {
            names.insert(key.name.to_string());
        });
    }
    names.into_iter().collect()
}

#[test]
fn x6_an_address_in_a_slice_of_names_or_of_the_other_family_is_nobodys_endpoint() {
    for (of, address, expected) in [
        ("IPv4", "10.0.0.7", Some("10.0.0.7")),
        ("IPv4", "fd00::7", None),
        ("IPv6", "fd00::7", Some("fd00::7")),
        ("IPv6", "10.0.0.7", None),
        ("FQDN", "127.0.0.1", None),
        ("FQDN", "db.example", None),
    ] {
        let mut world = World::default();
        world.put(json!({"kind": "Service", "metadata": {"namespace": "default", "name": "web"}, "spec": {}}));
        let mut slice = slice("web-a", "web", json!([{"addresses": [address]}]));
        slice["addressType"] = json!(of);
        world.put(slice);
        let found = backends(&world.snapshot, &ObjectKey::new("default", "web"));
        let found: Vec<String> = found.iter().map(|backend| backend.address.to_string()).collect();
        assert_eq!(found.first().map(String::as_str), expected, "{of} {address}");
    }
}
