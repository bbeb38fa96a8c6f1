//! EndpointSlices of Services that have a selector. Key: the Service.
//!
//! Relies on: the node's report of pod addresses and readiness; nobody else writing slices that carry this
//! controller's `managed-by` label.
//! Guarantees (N1, N2): each pod that the Service selects and that has an address is an endpoint with the conditions
//! that upstream gives it; every write brings one slice closer to that and none depends on another, so a cut after any
//! prefix leaves correct slices that miss some endpoints or still name some that are gone (which
//! [`crate::backend`] leaves out).
//! Differs: slice names are derived from the Service's uid instead of drawn at random, so that deciding again makes
//! the same slice; there is no `endpoints.kubernetes.io/last-change-trigger-time`; slices of a Service that became an
//! ExternalName are deleted.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use mainstay_api::{ObjectKey, kinds};

use crate::backend::{SERVICE_NAME, publishes_not_ready};
use crate::decision::{Controller, Decision, Verb, Write};
use crate::matching::{Labels, equal};
use crate::pods;
use crate::slices::{Endpoints, Group, MANAGED_BY, Owner, Port, arrange, is_managed_by};
use crate::snapshot::{Change, Objects, Snapshot};

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "endpoint-slice-controller",
    permits: &[(Verb::Create, "endpointslices"), (Verb::Patch, "endpointslices"), (Verb::Delete, "endpointslices")],
    reads: &["services", "endpointslices", "pods", "nodes"],
    keys,
    reconcile: |snapshot, key, now| observe(snapshot, key).map(|observed| decide(&observed, now)).unwrap_or_default(),
    many: None,
};

/// This controller's value of the `managed-by` label.
const MANAGER: &str = "endpointslice-controller.k8s.io";
/// On slices and Endpoints of headless Services.
pub const HEADLESS: &str = "service.kubernetes.io/headless";
/// Where a node says its zone.
const ZONE: &str = "topology.kubernetes.io/zone";
/// A Service, the pods that it selects and the slices that are there.
pub struct Observed<'a> {
    service: &'a Service,
    pods: Vec<&'a Pod>,
    slices: Vec<&'a EndpointSlice>,
    /// Names in the namespace that new slices must not take.
    all_slices: &'a Objects<EndpointSlice>,
    nodes: &'a Objects<Node>,
}

fn keys(before: &Snapshot, after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    match (&*change.kind.group, &*change.kind.plural) {
        ("", "services") => wake(change.key.clone()),
        ("", "pods") => selecting(before, after, change, wake),
        ("discovery.k8s.io", "endpointslices") => {
            for meta in [&change.old, &change.new].into_iter().flatten() {
                if let Some(service) = meta.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME)) {
                    wake(ObjectKey::new(change.key.namespace.clone(), service.as_str()));
                }
            }
        }
        _ => {}
    }
}

/// Wakes the Services whose selector matches a changed pod's labels, old or new.
pub fn selecting(before: &Snapshot, after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    let (old, new) = (before.pods.get(&change.key), after.pods.get(&change.key));
    if let (Some(old), Some(new)) = (old, new)
        && is_same(old, new)
    {
        return;
    }
    let relabelled = old.map(|pod| &pod.metadata.labels) != new.map(|pod| &pod.metadata.labels);
    for pod in old.filter(|_| relabelled).into_iter().chain(new) {
        let labels = pod.metadata.labels.as_ref();
        for (key, service) in after.selecting::<Service>(&change.key.namespace, labels) {
            if selector(service).is_some_and(|selector| equal(selector, labels)) {
                wake(key.clone());
            }
        }
    }
}

/// Whether two states of a pod give the same endpoints.
fn is_same(old: &Pod, new: &Pod) -> bool {
    let node = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    let flags = |pod: &Pod| (pods::is_terminating(&pod.metadata), pods::is_finished(pod), pods::is_ready(pod));
    let (before, after) = (&old.metadata, &new.metadata);
    (&before.labels, &before.uid) == (&after.labels, &after.uid)
        && flags(old) == flags(new)
        && node(old) == node(new)
        && crate::backend::addresses(old).eq(crate::backend::addresses(new))
}

/// A Service's selector, if it has one: without, its endpoints are somebody else's.
pub fn selector(service: &Service) -> Option<&Labels> {
    service.spec.as_ref()?.selector.as_ref().filter(|selector| !selector.is_empty())
}

fn observe<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<Observed<'a>> {
    let service: &Arc<Service> = snapshot.services.get(key)?;
    Some(Observed {
        service,
        pods: selected(snapshot, service, key),
        slices: crate::backend::slices(snapshot, key).filter(|slice| is_managed_by(slice, MANAGER)).collect(),
        all_slices: &snapshot.endpoint_slices,
        nodes: &snapshot.nodes,
    })
}

/// The pods of a Service's namespace that it selects, finished ones left out.
pub fn selected<'a>(snapshot: &'a Snapshot, service: &Service, key: &ObjectKey) -> Vec<&'a Pod> {
    let Some(selector) = selector(service) else { return Vec::new() };
    let all = snapshot.labelled::<Pod>(&key.namespace, selector).into_iter().map(|(_, pod)| &**pod);
    all.filter(|pod| !pods::is_finished(pod)).collect()
}

fn decide(observed: &Observed, _now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    let service = observed.service;
    let external = service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("ExternalName");
    if pods::is_terminating(&service.metadata) {
        return decision;
    }
    if external || selector(service).is_none() {
        decision
            .writes
            .extend(observed.slices.iter().map(|slice| Write::delete(&kinds::ENDPOINT_SLICE, &slice.metadata)));
        return decision;
    }
    let mut wanted = wanted(observed);
    // Every family has a slice, an empty one when nothing else, so that readers see that it was decided.
    for family in families(service) {
        if !wanted.keys().any(|(of, _)| *of == family) {
            wanted.insert((family, Vec::new()), BTreeMap::new());
        }
    }
    let owner = Owner { kind: &kinds::SERVICE, metadata: &service.metadata, labels: labels(service, MANAGER) };
    arrange(&mut decision, &owner, wanted, &observed.slices, observed.all_slices);
    decision
}

/// The address families of a Service, as slices name them.
pub fn families(service: &Service) -> Vec<&'static str> {
    let spec = service.spec.as_ref();
    let listed = spec.and_then(|spec| spec.ip_families.as_deref()).unwrap_or_default();
    let six =
        |spec: &k8s_openapi::api::core::v1::ServiceSpec| spec.cluster_ip.as_deref().is_some_and(|ip| ip.contains(':'));
    match listed {
        [] => vec![if spec.is_some_and(six) { "IPv6" } else { "IPv4" }],
        listed => listed.iter().map(|family| if family == "IPv6" { "IPv6" } else { "IPv4" }).collect(),
    }
}

/// Whether an address is of the family that a slice names.
pub fn is_of(family: &str, address: &str) -> bool {
    address.contains(':') == (family == "IPv6")
}

/// The endpoints there should be, by group and by (address, pod uid).
fn wanted(observed: &Observed) -> BTreeMap<Group, Endpoints> {
    let mut wanted: BTreeMap<Group, Endpoints> = BTreeMap::new();
    for family in families(observed.service) {
        for pod in &observed.pods {
            let Some(address) = crate::backend::addresses(pod).find(|ip| is_of(family, ip)) else { continue };
            let key = (address.to_owned(), pod.metadata.uid.clone().unwrap_or_default());
            let endpoint = endpoint(observed.service, pod, address, observed.nodes);
            wanted.entry((family, ports(observed.service, pod))).or_default().insert(key, endpoint);
        }
    }
    wanted
}

fn endpoint(service: &Service, pod: &Pod, address: &str, nodes: &Objects<Node>) -> Endpoint {
    let (ready, terminating) = (pods::is_ready(pod), pods::is_terminating(&pod.metadata));
    let node_name = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    let node = node_name.as_deref().and_then(|name| nodes.get(&ObjectKey::new("", name)));
    Endpoint {
        addresses: vec![address.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(publishes_not_ready(service) || (ready && !terminating)),
            serving: Some(ready),
            terminating: Some(terminating),
        }),
        hostname: hostname(service, pod),
        target_ref: Some(target(pod)),
        zone: node.and_then(|node| node.metadata.labels.as_ref()?.get(ZONE).cloned()),
        node_name,
        ..Endpoint::default()
    }
}

/// The name of a pod below this Service: its hostname, when its subdomain is the Service.
pub fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let below = spec.subdomain == service.metadata.name;
    spec.hostname.clone().filter(|hostname| below && !hostname.is_empty())
}

/// What an endpoint refers to.
pub fn target(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// Where this pod listens for each of the Service's ports; a named target port that it does not have is left out.
pub(super) fn ports(service: &Service, pod: &Pod) -> Vec<Port> {
    let of_port = |port: &ServicePort| {
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        Some((port.name.clone().unwrap_or_default(), protocol, target_port(port, pod)?, port.app_protocol.clone()))
    };
    let mut ports: Vec<Port> =
        service.spec.iter().flat_map(|spec| spec.ports.iter().flatten()).filter_map(of_port).collect();
    ports.sort();
    ports
}

/// The number of a Service port's target on a pod.
pub fn target_port(port: &ServicePort, pod: &Pod) -> Option<i32> {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            // A sidecar (an init container that stays) may listen too.
            let sidecars =
                spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
            let listening =
                spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
            let mut named = listening
                .filter(|p| p.name.as_deref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol);
            named.next().map(|port| port.container_port)
        }
    }
}

/// The labels of a Service's slices: the Service's own, and those that say whose they are.
pub fn labels(service: &Service, manager: &str) -> Labels {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(SERVICE_NAME.to_owned(), service.metadata.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.to_owned(), manager.to_owned());
    labels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;
    use serde_json::{Value, json};

    fn pod(name: &str, ip: &str, ready: bool) -> Value {
        json!({"kind": "Pod", "metadata": {"namespace": "default", "name": name, "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "hostname": name, "subdomain": "web",
                "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}})
    }

    fn world() -> World {
        let mut world = World::default();
        world.put(json!({"kind": "Service", "metadata": {"namespace": "default", "name": "web",
            "labels": {"team": "a"}}, "spec":
            {"clusterIP": "None", "selector": {"app": "web"}, "ports": [{"name": "http", "port": 80,
                "targetPort": "http", "protocol": "TCP"}]}}));
        world
    }

    fn settle(world: &mut World) {
        let key = ObjectKey::new("default", "web");
        for _ in 0..10 {
            if world.run(&CONTROLLER, &key, Timestamp::UNIX_EPOCH, usize::MAX) == 0 {
                return;
            }
        }
        panic!("does not settle");
    }

    /// `address ready/serving/terminating hostname` of every endpoint.
    fn shown(world: &World) -> Vec<String> {
        let endpoints = world
            .all(&kinds::ENDPOINT_SLICE)
            .flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default());
        let flag = |value: &Value| if value == true { 'y' } else { 'n' };
        let line = |e: Value| {
            let c = &e["conditions"];
            let flags: String = ["ready", "serving", "terminating"].iter().map(|name| flag(&c[*name])).collect();
            format!("{} {flags} {}", e["addresses"][0].as_str().unwrap(), e["hostname"].as_str().unwrap_or("-"))
        };
        let mut lines: Vec<String> = endpoints.map(line).collect();
        lines.sort();
        lines
    }

    #[test]
    fn n1_n2_conditions_follow_the_pod() {
        let mut world = world();
        settle(&mut world);
        let slices: Vec<_> = world.all(&kinds::ENDPOINT_SLICE).cloned().collect();
        assert_eq!(slices.len(), 1, "a Service without pods has one empty slice");
        assert_eq!(
            slices[0]["metadata"]["labels"],
            json!({"team": "a", "kubernetes.io/service-name": "web", (HEADLESS): "", (MANAGED_BY): MANAGER})
        );
        world.put(pod("web-0", "10.0.0.1", true));
        world.put(pod("web-1", "10.0.0.2", false));
        settle(&mut world);
        assert_eq!(shown(&world), ["10.0.0.1 yyn web-0", "10.0.0.2 nnn web-1"]);
        world.delete(&kinds::POD, "default", "web-0", None);
        settle(&mut world);
        assert_eq!(shown(&world), ["10.0.0.1 nyy web-0", "10.0.0.2 nnn web-1"]);
        world.patch(&kinds::SERVICE, "default", "web", json!({"spec": {"publishNotReadyAddresses": true}}));
        settle(&mut world);
        assert_eq!(shown(&world), ["10.0.0.1 yyy web-0", "10.0.0.2 ynn web-1"]);
        world.remove(&kinds::POD, &ObjectKey::new("default", "web-0"));
        settle(&mut world);
        assert_eq!(shown(&world), ["10.0.0.2 ynn web-1"]);
    }

    /// N1: what others make for a Service stays, and of one that goes nothing is made anew.
    #[test]
    fn n1_slices_of_others_and_of_a_service_that_goes_are_left_alone() {
        let theirs = json!({"kind": "EndpointSlice", "metadata": {"namespace": "default", "name": "theirs",
            "labels": {"kubernetes.io/service-name": "web", (MANAGED_BY): "somebody"}}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["192.0.2.7"]}]});
        for spec in [json!({}), json!({"selector": null}), json!({"selector": {}})] {
            let mut world = world();
            world.put(theirs.clone());
            world.put(pod("web-0", "10.0.0.1", true));
            world.patch(&kinds::SERVICE, "default", "web", json!({"spec": {"selector": null}}));
            world.patch(&kinds::SERVICE, "default", "web", json!({ "spec": spec }));
            settle(&mut world);
            assert_eq!(shown(&world), ["192.0.2.7 nnn -"], "{spec}");
        }
        let mut world = world();
        let leaving = json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x.io/held"]});
        world.patch(&kinds::SERVICE, "default", "web", json!({ "metadata": leaving }));
        world.put(pod("web-0", "10.0.0.1", true));
        settle(&mut world);
        assert_eq!(world.all(&kinds::ENDPOINT_SLICE).count(), 0);
    }

    #[test]
    fn slices_hold_a_hundred_each_and_endpoints_stay_where_they_are() {
        let mut world = world();
        for number in 0..250 {
            world.put(pod(&format!("web-{number}"), &format!("10.0.{}.{}", number / 100, number % 100), true));
        }
        settle(&mut world);
        let sizes = |world: &World| {
            world.all(&kinds::ENDPOINT_SLICE).map(|s| s["endpoints"].as_array().unwrap().len()).collect::<Vec<_>>()
        };
        let mut first = sizes(&world);
        first.sort_unstable();
        assert_eq!(first, [50, 100, 100]);
        let before: Vec<Value> = world.all(&kinds::ENDPOINT_SLICE).cloned().collect();
        world.remove(&kinds::POD, &ObjectKey::new("default", "web-7"));
        settle(&mut world);
        let after: Vec<Value> = world.all(&kinds::ENDPOINT_SLICE).cloned().collect();
        assert_eq!(before.iter().zip(&after).filter(|(a, b)| a != b).count(), 1, "one slice changes for one pod");
    }

    /// N1, N2: whatever changes an endpoint wakes its Service, and nothing is left to do then.
    #[test]
    fn n1_n2_endpoints_follow_every_change_of_pods_services_and_slices() {
        let service = |spec: Value| (&kinds::SERVICE, "web", json!({ "spec": spec }));
        let of_pod = |patch: Value| (&kinds::POD, "web-0", patch);
        let status = |status: Value| of_pod(json!({ "status": status }));
        let usual = "IPv4 10.0.0.1 true web-0 n1";
        let table = [
            (status(json!({"conditions": []})), vec!["IPv4 10.0.0.1 false web-0 n1"]),
            (status(json!({"podIP": "10.0.0.9", "podIPs": [{"ip": "10.0.0.9"}]})), vec!["IPv4 10.0.0.9 true web-0 n1"]),
            (status(json!({"phase": "Succeeded"})), vec!["IPv4"]),
            (of_pod(json!({"metadata": {"labels": {"app": "other"}}})), vec!["IPv4"]),
            (of_pod(json!({"metadata": {"labels": {"more": "labels"}}})), vec![usual]),
            (of_pod(json!({"spec": {"nodeName": "n2"}})), vec!["IPv4 10.0.0.1 true web-0 n2"]),
            (
                of_pod(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})),
                vec!["IPv4 10.0.0.1 false web-0 n1"],
            ),
            (service(json!({"selector": {"app": "other"}})), vec!["IPv4"]),
            (service(json!({"selector": null})), vec![]),
            (service(json!({"type": "ExternalName"})), vec![]),
            (service(json!({"ipFamilies": ["IPv4", "IPv6"]})), vec![usual, "IPv6"]),
            (service(json!({"ipFamilies": ["IPv6"]})), vec!["IPv6"]),
            (service(json!({"clusterIP": "fd00::7"})), vec!["IPv6"]),
        ];
        for ((kind, name, patch), expected) in table {
            let mut world = world();
            world.put(pod("web-0", "10.0.0.1", true));
            world.settle(&[CONTROLLER], Timestamp::UNIX_EPOCH);
            assert_eq!(families_shown(&world), [usual]);
            world.patch(kind, "default", name, patch.clone());
            world.settle(&[CONTROLLER], Timestamp::UNIX_EPOCH);
            assert_eq!(families_shown(&world), expected, "{patch}");
        }
        // A pod of the same name that looks the same is another one; what others do to a slice is undone.
        let mut world = world();
        world.put(pod("web-0", "10.0.0.1", true));
        world.settle(&[CONTROLLER], Timestamp::UNIX_EPOCH);
        world.patch(&kinds::POD, "default", "web-0", json!({"metadata": {"uid": "another"}}));
        world.settle(&[CONTROLLER], Timestamp::UNIX_EPOCH);
        let slice = world.all(&kinds::ENDPOINT_SLICE).next().unwrap().clone();
        assert_eq!(slice["endpoints"][0]["targetRef"]["uid"], "another");
        let name = slice["metadata"]["name"].as_str().unwrap();
        for patch in [json!({"endpoints": []}), json!({"metadata": {"labels": {SERVICE_NAME: "other"}}})] {
            world.patch(&kinds::ENDPOINT_SLICE, "default", name, patch.clone());
            world.settle(&[CONTROLLER], Timestamp::UNIX_EPOCH);
            assert!(families_shown(&world).contains(&usual.to_owned()), "{patch}");
        }
        world.remove(&kinds::ENDPOINT_SLICE, &ObjectKey::new("default", name));
        world.patch(
            &kinds::SERVICE,
            "default",
            "web",
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z",
            "finalizers": ["x.io/held"]}}),
        );
        let before = world.revision();
        world.settle(&[CONTROLLER], Timestamp::UNIX_EPOCH);
        assert_eq!(world.revision(), before, "nothing is made for a Service that goes");
    }

    /// `family address ready hostname node` of every endpoint; only the family of a slice that is empty.
    fn families_shown(world: &World) -> Vec<String> {
        let mut shown = Vec::new();
        for slice in world.all(&kinds::ENDPOINT_SLICE) {
            let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
            let family = text(&slice["addressType"]);
            let endpoints = slice["endpoints"].as_array().cloned().unwrap_or_default();
            shown.extend(endpoints.is_empty().then(|| family.clone()));
            shown.extend(endpoints.iter().map(|e| {
                let (address, ready) = (text(&e["addresses"][0]), &e["conditions"]["ready"]);
                format!("{family} {address} {ready} {} {}", text(&e["hostname"]), text(&e["nodeName"]))
            }));
        }
        shown.sort();
        shown
    }

    #[test]
    fn a_target_port_is_a_number_or_the_name_of_a_port_of_the_same_protocol() {
        let listening = |name: &str, number: u16, protocol: Value| {
            json!({"name": "c",
            "ports": [{"name": name, "containerPort": number, "protocol": protocol}]})
        };
        let (mut sidecar, first) = (listening("side", 3, json!("TCP")), listening("first", 4, json!("TCP")));
        sidecar["restartPolicy"] = json!("Always");
        let pod: Pod = serde_json::from_value(json!({"spec": {"initContainers": [first, sidecar],
            "containers": [listening("dns", 1, json!("UDP")), listening("dns", 2, json!(null))]}}))
        .unwrap();
        let table = [
            (json!(null), "TCP", Some(80)),
            (json!(0), "TCP", Some(80)),
            (json!(8080), "TCP", Some(8080)),
            (json!("dns"), "UDP", Some(1)),
            (json!("dns"), "TCP", Some(2)),
            (json!("side"), "TCP", Some(3)),
            (json!("side"), "UDP", None),
            (json!("first"), "TCP", None),
        ];
        for (target, protocol, expected) in table {
            let port = json!({"port": 80, "targetPort": target, "protocol": protocol});
            assert_eq!(target_port(&serde_json::from_value(port).unwrap(), &pod), expected, "{target} {protocol}");
        }
        let service = |ports: Value| -> Service { serde_json::from_value(json!({"spec": {"ports": ports}})).unwrap() };
        let (a, b) = (json!({"name": "a", "port": 9}), json!({"name": "b", "port": 8}));
        assert_eq!(ports(&service(json!([b, a])), &pod), ports(&service(json!([a, b])), &pod), "S12: in one order");
    }

    #[test]
    fn a_slice_says_that_its_service_is_headless_and_a_pod_has_a_name_only_below_its_own_service() {
        for (address, expected) in [("None", true), ("10.96.0.7", false)] {
            let service: Service =
                serde_json::from_value(json!({"metadata": {"name": "web", "labels": {(HEADLESS): ""}},
                "spec": {"clusterIP": address}}))
                .unwrap();
            assert_eq!(labels(&service, MANAGER).contains_key(HEADLESS), expected, "{address}");
        }
        let service: Service = serde_json::from_value(json!({"metadata": {"name": "web"}})).unwrap();
        for (spec, expected) in [
            (json!({"hostname": "a", "subdomain": "web", "containers": []}), Some("a")),
            (json!({"hostname": "a", "subdomain": "other", "containers": []}), None),
            (json!({"hostname": "a", "containers": []}), None),
            (json!({"hostname": "", "subdomain": "web", "containers": []}), None),
        ] {
            let pod: Pod = serde_json::from_value(json!({ "spec": spec })).unwrap();
            assert_eq!(hostname(&service, &pod).as_deref(), expected, "{spec}");
        }
    }

    #[test]
    fn s12_a_cut_after_any_write_ends_the_same() {
        let end = |cut: usize| {
            let mut world = world();
            for number in 0..150 {
                world.put(pod(&format!("web-{number}"), &format!("10.0.{}.{}", number / 100, number % 100), true));
            }
            world.run(&CONTROLLER, &ObjectKey::new("default", "web"), Timestamp::UNIX_EPOCH, cut);
            settle(&mut world);
            (shown(&world), world.all(&kinds::ENDPOINT_SLICE).count())
        };
        let whole = end(usize::MAX);
        assert_eq!((end(0), end(1)), (whole.clone(), whole));
    }
}
