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
    // What a pod with claims waits for may be its claims.
    let mut claiming = plain.clone();
    merge(&mut claiming, json!({"spec": {"containers": contains("1001")}}));
    claiming["spec"]["volumes"] = json!([{"name": "d", "persistentVolumeClaim": {"claimName": "none"}}]);
    world.put(pod("claiming", claiming));
    assert_apart(&world, "container", "claiming");
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

/// Pods that look at each other: what a node was worth to the first one says nothing of what it is worth to the next.
#[test]
fn pods_of_a_round_that_look_at_each_other_go_where_they_would_one_after_the_other() {
    let web = |more: Value| {
        let mut term = json!({"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "zone"});
        merge(&mut term, more);
        term
    };
    let required = |term: Value| json!({"requiredDuringSchedulingIgnoredDuringExecution": [term]});
    let wished = |term: Value| {
        let wish = json!({"weight": 100, "podAffinityTerm": term});
        json!({"preferredDuringSchedulingIgnoredDuringExecution": [wish]})
    };
    let spread = |when: &str| json!([web(json!({"maxSkew": 1, "whenUnsatisfiable": when}))]);
    for (spec, expected) in [
        (json!({}), ["a1", "a2", "b1", "b2"]),
        (json!({"affinity": {"podAffinity": required(web(json!({})))}}), ["a1", "a2", "a1", "a2"]),
        (json!({"affinity": {"podAntiAffinity": required(web(json!({})))}}), ["a1", "b1", "-", "-"]),
        (json!({"affinity": {"podAffinity": wished(web(json!({})))}}), ["a1", "a2", "a1", "a2"]),
        (json!({"affinity": {"podAntiAffinity": wished(web(json!({})))}}), ["a1", "b1", "a2", "b2"]),
        (json!({"topologySpreadConstraints": spread("DoNotSchedule")}), ["a1", "b1", "a2", "b2"]),
        (json!({"topologySpreadConstraints": spread("ScheduleAnyway")}), ["a1", "b1", "a2", "b2"]),
    ] {
        let mut world = World::default();
        for name in ["a1", "a2", "b1", "b2"] {
            world.put(node(name, json!({"metadata": {"labels": {"zone": &name[..1]}}})));
        }
        let names = ["w0", "w1", "w2", "w3"];
        names.iter().for_each(|name| world.put(pod(name, json!({ "spec": spec }))));
        let at = |text: &String| {
            text.split("Bind {")
                .nth(1)
                .and_then(|bind| bind.split("node: \"").nth(1)?.get(..2))
                .unwrap_or("-")
                .to_owned()
        };
        let round: Vec<String> = decided(&world, &names).iter().map(at).collect();
        let alone =
            names.map(|name| placed(&mut world, name)).map(|at| if at.len() == 2 { at } else { "-".to_owned() });
        assert_eq!(alone, expected, "{spec}");
        assert_eq!(round, expected, "in one round: {spec}");
    }
    // One of another kind, between those that keep away from it.
    let mut world = World::default();
    for name in ["a1", "a2", "b1", "b2"] {
        world.put(node(name, json!({"metadata": {"labels": {"zone": &name[..1]}}})));
    }
    let shy = json!({"affinity": {"podAntiAffinity": required(web(json!({"labelSelector": {"matchLabels": {
        "app": "db"}}})))}});
    let names = ["w0", "db", "w1", "w2"];
    names.iter().for_each(|name| match *name {
        "db" => world.put(pod(name, json!({"metadata": {"labels": {"app": "db"}}}))),
        _ => world.put(pod(name, json!({ "spec": shy }))),
    });
    let round = decided(&world, &names);
    for (decision, node) in round.iter().zip(["a1", "b1", "a2", "a1"]) {
        assert!(decision.contains(&format!("node: \"{node}\"")), "{node}: {decision}");
    }
}
