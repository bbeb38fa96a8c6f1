//! Services and slices in, rules out.

use super::*;
use crate::world::World;
use serde_json::{Value, json};

/// One line per rule: `frontend protocol -> backends [inside ..] [affinity] masquerade`.
fn shown(world: &World, node: &str) -> Vec<String> {
    let rules = rules(&world.snapshot, &ObjectKey::new("default", "web"), node);
    let list = |addresses: &[SocketAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    rules
        .iter()
        .map(|rule| {
            let inside =
                rule.inside_backends.as_ref().map(|inside| format!(" inside {}", list(inside))).unwrap_or_default();
            let affinity = rule.affinity_seconds.map(|seconds| format!(" {seconds}s")).unwrap_or_default();
            let backends = if rule.backends.is_empty() { "refused".to_owned() } else { list(&rule.backends) };
            format!("{:?} {} -> {backends}{inside}{affinity} {:?}", rule.frontend, rule.protocol, rule.masquerade)
        })
        .collect()
}

fn world(spec: Value, endpoints: Value) -> World {
    let mut world = World::default();
    world.put(json!({"kind": "Service", "metadata": {"namespace": "default", "name": "web"}, "spec": spec}));
    world.put(json!({"kind": "EndpointSlice", "metadata": {"namespace": "default", "name": "web-1",
        "labels": {SLICE_OF: "web"}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints}));
    world
}

const SLICE_OF: &str = crate::backend::SERVICE_NAME;

#[test]
fn n4_ready_endpoints_then_serving_ones_then_refusal() {
    let spec = json!({"clusterIP": "10.96.0.10", "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]});
    let endpoint = |ip: &str, ready: bool, serving: bool, terminating: bool| {
        json!({"addresses": [ip],
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating}})
    };
    let table = [
        (json!([endpoint("10.0.0.1", true, true, false), endpoint("10.0.0.2", false, false, false)]), "10.0.0.1:8080"),
        (json!([endpoint("10.0.0.1", true, true, false), endpoint("10.0.0.2", false, true, true)]), "10.0.0.1:8080"),
        (json!([endpoint("10.0.0.1", false, false, true), endpoint("10.0.0.2", false, true, true)]), "10.0.0.2:8080"),
        (json!([endpoint("10.0.0.1", false, false, false)]), "refused"),
        (json!([]), "refused"),
    ];
    for (endpoints, expected) in table {
        let world = world(spec.clone(), endpoints.clone());
        assert_eq!(
            shown(&world, "n1"),
            [format!("ClusterIp(10.96.0.10:80) TCP -> {expected} FromOutside")],
            "{endpoints}"
        );
    }
}

/// conformance: "should implement service.kubernetes.io/service-proxy-name", "… service.kubernetes.io/headless".
#[test]
fn conformance_a_service_with_another_proxys_label_is_left_to_that() {
    let spec = json!({"clusterIP": "10.96.0.10", "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]});
    for label in ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"] {
        let mut world = world(spec.clone(), json!([]));
        assert_eq!(shown(&world, "n1").len(), 1);
        let service = |labels: Value| json!({"kind": "Service", "metadata": {"namespace": "default", "name": "web", "labels": labels}, "spec": spec});
        world.put(service(json!({ label: "" })));
        assert_eq!(shown(&world, "n1"), [""; 0], "{label}");
        world.put(service(json!({ "other": "" })));
        assert_eq!(shown(&world, "n1").len(), 1);
    }
}

#[test]
fn every_kind_of_frontend_with_its_policy() {
    let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.10", "externalIPs": ["192.0.2.1"],
        "externalTrafficPolicy": "Local",
        "sessionAffinity": "ClientIP", "ports": [{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080}]});
    let endpoints =
        json!([{"addresses": ["10.0.0.1"], "nodeName": "n1"}, {"addresses": ["10.0.0.2"], "nodeName": "n2"}]);
    let world = world(spec, endpoints);
    let all = "10.0.0.1:8080,10.0.0.2:8080";
    assert_eq!(
        shown(&world, "n1"),
        [
            format!("ClusterIp(10.96.0.10:80) TCP -> {all} 10800s FromOutside"),
            format!("ExternalIp(192.0.2.1:80) TCP -> 10.0.0.1:8080 inside {all} 10800s Hairpin"),
            format!("NodePort(30080) TCP -> 10.0.0.1:8080 inside {all} 10800s Hairpin"),
        ]
    );
    assert_eq!(shown(&world, "n3")[2], format!("NodePort(30080) TCP -> refused inside {all} 10800s Hairpin"));
}

/// Load balancers ask each node whether it has ready endpoints.
#[test]
fn conformance_a_nodes_own_ready_endpoints_are_counted_for_the_health_check() {
    let endpoint = |ip: &str, node: &str, ready: bool| {
        json!({"addresses": [ip], "nodeName": node,
        "conditions": {"ready": ready, "serving": true, "terminating": !ready}})
    };
    let endpoints = json!([
        endpoint("10.0.0.1", "n1", true),
        endpoint("10.0.0.1", "n1", true),
        endpoint("10.0.0.2", "n1", true),
        endpoint("10.0.0.3", "n1", false),
        endpoint("10.0.0.4", "n2", false)
    ]);
    for (type_, policy, port, expected) in [
        ("LoadBalancer", "Local", 30081, [Some(2), Some(0), Some(0)]),
        ("LoadBalancer", "Local", 0, [None; 3]),
        ("LoadBalancer", "Cluster", 30081, [None; 3]),
        ("NodePort", "Local", 30081, [None; 3]),
    ] {
        let spec = json!({"type": type_, "clusterIP": "10.96.0.10", "externalTrafficPolicy": policy,
            "healthCheckNodePort": port, "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]});
        let world = world(spec, endpoints.clone());
        let check = |node: &str| health_check(&world.snapshot, &ObjectKey::new("default", "web"), node);
        let found = ["n1", "n2", "n3"].map(|node| check(node).map(|check| check.endpoints));
        assert_eq!(found, expected, "{type_} {policy} {port}");
    }
    assert_eq!(health_check(&World::default().snapshot, &ObjectKey::new("default", "web"), "n1"), None);
}

#[test]
fn n3_an_endpoint_whose_pod_is_gone_or_replaced_is_not_used() {
    let spec = json!({"clusterIP": "10.96.0.10", "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]});
    let target = json!([{"addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "namespace": "default",
        "name": "web-0", "uid": "old"}}]);
    let mut world = world(spec, target);
    let pod = |uid: &str| {
        json!({"kind": "Pod", "metadata": {"namespace": "default", "name": "web-0", "uid": uid},
        "status": {"podIP": "10.0.0.1"}})
    };
    assert!(shown(&world, "n1")[0].contains("refused"));
    world.put(pod("old"));
    assert!(shown(&world, "n1")[0].contains("10.0.0.1:8080"));
    world.put(pod("new"));
    assert!(shown(&world, "n1")[0].contains("refused"));
}

#[test]
fn headless_and_external_names_have_no_rules() {
    for spec in [
        json!({"clusterIP": "None", "ports": [{"port": 80}]}),
        json!({"type": "ExternalName", "externalName": "a.example"}),
    ] {
        assert!(shown(&world(spec, json!([])), "n1").is_empty());
    }
}
