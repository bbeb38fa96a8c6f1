//! Many pods in one round: what was found out for one is used again for those that ask for the same, and for no others.

use super::*;

/// Of a round over these pods, one after the other.
fn decided(world: &World, names: &[&str]) -> Vec<String> {
    let keys: Vec<ObjectKey> = names.iter().map(|name| ObjectKey::new("default", *name)).collect();
    let decisions = schedule(&world.snapshot, &keys, Timestamp::UNIX_EPOCH);
    decisions.iter().map(|decision| format!("{decision:?}")).collect()
}

/// Each of these two orders, in which the other one has no part in how much room there is.
fn assert_apart(world: &World, one: &str, other: &str) {
    let alone = |name: &str| decided(world, &[name]).remove(0);
    for [first, second] in [[one, other], [other, one]] {
        let round = decided(world, &[first, second]);
        assert_eq!(round, [alone(first), alone(second)], "{second} after {first}");
    }
}

/// One large node where pods of zone a go, another one in zone b; `shy` may not be where the first has a pod.
fn zones() -> World {
    let mut world = World::default();
    let allocatable = json!({"cpu": "1000", "memory": "8Ti", "pods": "110"});
    let taint = json!([{"key": "dedicated", "effect": "NoSchedule"}]);
    world.put(node(
        "a",
        json!({"metadata": {"labels": {"zone": "a"}}, "spec": {"taints": taint},
        "status": {"allocatable": allocatable}}),
    ));
    world.put(node("b", json!({"metadata": {"labels": {"zone": "b"}}, "status": {"allocatable": allocatable}})));
    let apart = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"labelSelector": {"matchLabels": {"app": "shy"}}, "topologyKey": "zone"}]}});
    let ports = json!([{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]);
    world.put(pod(
        "there",
        json!({"spec": {"nodeName": "a", "affinity": apart, "containers": ports},
        "status": {"phase": "Running"}}),
    ));
    world
}

#[test]
fn pods_of_a_round_that_differ_in_one_thing_get_what_they_would_get_alone() {
    let requests = |cpu: &str| json!({"requests": {"cpu": cpu}});
    let contains = |cpu: &str| json!([{"name": "c", "resources": requests(cpu)}]);
    let zone = |name: &str| {
        json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": [name]}]}]}}})
    };
    let init = |policy: Value| json!([{"name": "i", "resources": requests("500"), "restartPolicy": policy}]);
    let spread = json!([{"maxSkew": 1, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}}}]);
    let port = json!([{"name": "c", "resources": requests("1"), "ports": [{"containerPort": 80, "hostPort": 80}]}]);
    let variants = [
        ("tolerations", json!({"spec": {"tolerations": null}})),
        ("selector", json!({"spec": {"nodeSelector": {"zone": "b"}}})),
        ("affinity", json!({"spec": {"affinity": zone("b")}})),
        ("overhead", json!({"spec": {"overhead": {"cpu": "1000"}}})),
        ("resources", json!({"spec": {"resources": requests("1001")}})),
        ("container", json!({"spec": {"containers": contains("1001")}})),
        ("port", json!({"spec": {"containers": port}})),
        ("spread", json!({"spec": {"topologySpreadConstraints": spread}})),
        ("labels", json!({"metadata": {"labels": {"app": "shy"}}})),
        ("large", json!({"spec": {"containers": contains("600"), "initContainers": init(Value::Null)}})),
        ("sidecar", json!({"spec": {"containers": contains("600"), "initContainers": init(json!("Always"))}})),
        ("init", json!({"spec": {"initContainers": [{"name": "i", "resources": requests("1001")}]}})),
    ];
    let mut world = zones();
    let plain = json!({"spec": {"nodeSelector": {"zone": "a"}, "containers": contains("1"),
        "tolerations": [{"key": "dedicated", "operator": "Exists"}]}});
    world.put(pod("plain", plain.clone()));
    for (name, over) in &variants {
        let mut of = plain.clone();
        merge(&mut of, over.clone());
        world.put(pod(name, of));
    }
    let went = |name: &str| decided(&world, &[name]).remove(0).contains("Successfully assigned");
    assert!(went("plain") && went("selector") && went("large"));
    for (name, _) in &variants {
        assert_eq!(went(name), ["selector", "large"].contains(name), "{name}");
        assert_apart(&world, "plain", name);
    }
    assert_apart(&world, "large", "sidecar");
}

#[test]
fn pods_of_a_round_that_find_no_room_preempt_as_each_of_them_may() {
    let mut world = World::default();
    world.put(node("n", json!({})));
    let cores = |cpu: &str| json!([{"name": "c", "resources": {"requests": {"cpu": cpu}}}]);
    let low = json!({"spec": {"nodeName": "n", "containers": cores("4")}, "status": {"phase": "Running"}});
    world.put(ranked("low", 0, low));
    let wants = json!({"spec": {"containers": cores("4")}});
    let never = json!({"spec": {"containers": cores("4"), "preemptionPolicy": "Never"}});
    world.put(ranked("equal", 0, wants.clone()));
    world.put(ranked("polite", 10, never));
    world.put(ranked("vip", 10, wants));
    let alone = |name: &str| decided(&world, &[name]).remove(0);
    for failed in ["equal", "polite"] {
        assert_eq!(decided(&world, &[failed, "vip"]), [alone(failed), alone("vip")], "vip after {failed}");
        assert!(alone("vip").contains("Preempted") && !alone(failed).contains("Preempted"), "{failed}");
    }
    assert_apart(&world, "equal", "polite");
}
