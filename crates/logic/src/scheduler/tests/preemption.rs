//! Whose room a more important pod takes. Two nodes of four cores; the newcomer asks for all of one.

use super::*;

struct Running {
    name: &'static str,
    node: &'static str,
    priority: i32,
    cpu: i32,
    since: i32,
}

/// `name:node:priority:cores:start`, the last two optional: 4 cores, and second 0.
fn running(text: &'static str) -> Running {
    let mut parts = text.split(':');
    let (name, node) = (parts.next().unwrap(), parts.next().unwrap());
    let mut number = |default: i32| parts.next().map_or(default, |part| part.parse().unwrap());
    Running { name, node, priority: number(0), cpu: number(4), since: number(0) }
}

fn two_nodes(pods: &[&'static str]) -> World {
    let mut world = World::default();
    for name in ["n1", "n2"] {
        world.put(node(name, json!({})));
    }
    for pod in pods.iter().map(|text| running(text)) {
        let start = Timestamp::from_second(i64::from(pod.since)).unwrap().to_string();
        let containers = json!([{"name": "c", "resources": {"requests": {"cpu": pod.cpu.to_string()}}}]);
        let over = json!({"spec": {"nodeName": pod.node, "containers": containers},
            "status": {"phase": "Running", "startTime": start}});
        world.put(ranked(pod.name, pod.priority, over));
    }
    world
}

fn newcomer(over: Value) -> Value {
    let containers = json!([{"name": "c", "resources": {"requests": {"cpu": "4"}}}]);
    let mut spec = json!({"spec": {"containers": containers}});
    merge(&mut spec, over);
    ranked("vip", 10, spec)
}

/// Who was told to go, in order of name; and what the newcomer says of itself.
fn victims(world: &mut World) -> (String, String) {
    world.run(&CONTROLLER, &ObjectKey::new("default", "vip"), Timestamp::UNIX_EPOCH, usize::MAX);
    let going = world.all(&kinds::POD).filter(|pod| pod["metadata"]["deletionTimestamp"].is_string());
    let names: Vec<_> = going.filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned)).collect();
    let vip = world.get(&kinds::POD, "default", "vip");
    let said = vip["status"]["conditions"][0]["message"].as_str().unwrap_or("").to_owned();
    let at = vip["status"]["nominatedNodeName"].as_str().unwrap_or("-");
    (format!("{at}: {}", names.join(" ")), said)
}

#[test]
fn the_node_where_it_hurts_least_is_chosen_in_upstreams_order() {
    for (pods, expected) in [
        // The least important most important victim, whatever the number.
        (&["a:n1:5", "b:n2:4:2", "c:n2:4:2"][..], "n2: b c"),
        (&["a:n1:4:2", "b:n1:4:2", "c:n2:5"], "n1: a b"),
        // Then their importance together: each one counts, also where it is below zero.
        (&["a:n1:5:2", "b:n1:1:2", "c:n2:5:2", "d:n2:0:2"], "n2: c d"),
        (&["a:n1:5:2", "b:n1:-100:2", "c:n2:5"], "n2: c"),
        (&["a:n1:5:2", "b:n1:0:2", "c:n2:5:2", "d:n2:-1:1", "e:n2:-1:1"], "n1: a b"),
        // Then who started last among the most important ones of each.
        (&["a:n1:5:4:100", "b:n2:5:4:200"], "n2: b"),
        (&["a:n1:5:4:200", "b:n2:5:4:100"], "n1: a"),
        (&["a:n1:5:2:300", "b:n1:5:2:100", "c:n2:5:2:200", "d:n2:5:2:150"], "n2: c d"),
        (&["a:n1:5:2:100", "b:n1:1:2:900", "c:n2:5:2:200", "d:n2:1:2:1"], "n2: c d"),
        (&["a:n1:5", "b:n2:5"], "n1: a"),
        // As few as will do: the important ones, and those that run longest, are spared first.
        (&["a:n1:1:0", "b:n1:3:4", "d:n2:10:4"], "n1: b"),
        (&["a:n1:1:2", "b:n1:3:2", "d:n2:10:4"], "n1: a b"),
        // Equals stay, and those above.
        (&["a:n1:10", "b:n2:9"], "n2: b"),
        (&["a:n1:10", "b:n2:11"], "-: "),
    ] {
        let mut world = two_nodes(pods);
        world.put(newcomer(json!({})));
        assert_eq!(victims(&mut world).0, expected, "{pods:?}");
    }
    // Of two that are alike the one that runs longer stays.
    let mut world = two_nodes(&["old:n1:5:2:100", "young:n1:5:2:200", "d:n2:10:4"]);
    let two = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "2"}}}]}});
    world.put(newcomer(two.clone()));
    assert_eq!(victims(&mut world).0, "n1: young");
    let said = "FailedScheduling: 0/2 nodes are available: 2 Insufficient cpu.";
    assert!(world.events.iter().any(|event| event == said), "{:?}", world.events);
    // And of two that are not, the more important one.
    let mut world = two_nodes(&["a:n1:1:2:100", "b:n1:3:2:200", "d:n2:10:4"]);
    world.put(newcomer(two));
    assert_eq!(victims(&mut world).0, "n1: a");
}

/// A pod whose node was given to another one meanwhile: it waits only for those whose going makes room for it.
#[test]
fn s12_a_nominated_pod_waits_for_less_important_ones_that_go_and_for_nobody_else() {
    const WAITS: &str = "preemption: not eligible due to a terminating pod on the nominated node.";
    let message = "0/2 nodes are available: 2 Insufficient cpu.";
    for (pods, going, expected) in [
        (&["a:n1:5", "d:n2:10"][..], &["a"][..], None),
        (&["a:n1:5", "d:n2:10"], &[], Some("n1: a")),
        (&["a:n1:5:2", "b:n1:5:2", "d:n2:10"], &["b"], None),
        (&["a:n1:10", "b:n2:5"], &["a"], Some("n2: a b")),
        (&["a:n1:11", "b:n2:5"], &["a"], Some("n2: a b")),
        (&["a:n1:11", "b:n2:5"], &[], Some("n2: b")),
    ] {
        let mut world = two_nodes(pods);
        going.iter().for_each(|name| world.delete(&kinds::POD, "default", name, None));
        let scheduled = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": message});
        world.put(newcomer(json!({"status": {"nominatedNodeName": "n1", "conditions": [scheduled]}})));
        let before = world.events.len();
        let (at, said) = victims(&mut world);
        match expected {
            Some(expected) => assert_eq!((at.as_str(), said.as_str()), (expected, message), "{pods:?} {going:?}"),
            None => assert!(said.ends_with(WAITS), "{pods:?} {going:?}: {said}"),
        }
        // Said again only with another node, or another reason.
        let again = world.events[before..].iter().any(|event| event.starts_with("FailedScheduling"));
        assert_eq!(again, !at.starts_with("n1") || expected.is_none(), "{pods:?} {going:?}: {:?}", world.events);
    }
    // One that was nominated to no node waits for none of those that have none.
    let mut world = two_nodes(&["a:n1:5", "d:n2:10"]);
    let leaving = json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x.io/y"]});
    world.put(ranked("nowhere", 0, json!({ "metadata": leaving })));
    world.put(newcomer(json!({})));
    assert_eq!(victims(&mut world).0, "n1: a nowhere");
}

#[test]
fn where_no_room_can_be_made_it_is_said_why() {
    let cpu = "0/2 nodes are available: 2 Insufficient cpu. preemption: 0/2 nodes are available: ";
    let label = json!({"spec": {"nodeSelector": {"kubernetes.io/hostname": "n1"}}});
    let huge = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "5"}}}]}});
    for (pods, over, expected) in [
        (&["a:n1:10", "b:n2:10"][..], json!({}), format!("{cpu}2 No preemption victims found for incoming pod.")),
        (&["a:n1:0", "b:n2:0"], huge, format!("{cpu}2 Preemption is not helpful for scheduling.")),
        (
            &["a:n1:10", "b:n2:0"],
            label,
            "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) didn't match Pod's node affinity/selector. \
             preemption: 0/2 nodes are available: 1 No preemption victims found for incoming pod, 1 Preemption is not \
             helpful for scheduling."
                .to_owned(),
        ),
        // What is less important is in nobody's way where it is what is left that does not fit.
        (
            &["a:n1:10:3", "b:n1:0:1", "c:n2:10"],
            json!({}),
            format!("{cpu}2 No preemption victims found for incoming pod."),
        ),
    ] {
        let mut world = two_nodes(pods);
        world.put(newcomer(over));
        assert_eq!(victims(&mut world), ("-: ".to_owned(), expected));
    }
    let mut world = two_nodes(&["a:n1:0", "b:n2:0"]);
    for name in ["n1", "n2"] {
        world.put(node(name, json!({"metadata": {"annotations": {"mainstay.io/reserved-host-ports": "80"}}})));
    }
    let port = json!([{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]);
    world.put(newcomer(json!({"spec": {"containers": port}})));
    let ports = "0/2 nodes are available: 2 node(s) didn't have free ports for the requested pod ports. preemption: \
                 0/2 nodes are available: 2 Preemption is not helpful for scheduling.";
    assert_eq!(victims(&mut world), ("-: ".to_owned(), ports.to_owned()));
    let mut world = two_nodes(&["a:n1:0", "b:n2:0"]);
    let missing = json!([{"name": "d", "persistentVolumeClaim": {"claimName": "x"}}]);
    world.put(newcomer(json!({"spec": {"volumes": missing}})));
    let said = "0/2 nodes are available: persistentvolumeclaim \"x\" not found. preemption: 0/2 nodes are available: \
                2 Preemption is not helpful for scheduling.";
    assert_eq!(victims(&mut world), ("-: ".to_owned(), said.to_owned()));
}

#[test]
fn what_is_over_or_going_already_is_not_told_to_go_again() {
    let mut world = two_nodes(&["a:n1:0", "d:n2:20"]);
    world.delete(&kinds::POD, "default", "a", None);
    let before = world.get(&kinds::POD, "default", "a");
    world.put(newcomer(json!({})));
    assert_eq!(victims(&mut world).0, "n1: a");
    assert_eq!(world.get(&kinds::POD, "default", "a"), before);
    assert!(!world.events.iter().any(|event| event.starts_with("Preempted")), "{:?}", world.events);
    // It waits for that one, and takes nobody else meanwhile, but not for one that is finished.
    world.put(ranked("other", 0, json!({"spec": {"nodeName": "n2"}, "status": {"phase": "Running"}})));
    let (at, said) = victims(&mut world);
    assert_eq!(at, "n1: a");
    assert!(said.ends_with("preemption: not eligible due to a terminating pod on the nominated node."), "{said}");
    world.remove(&kinds::POD, &ObjectKey::new("default", "d"));
    world.put(ranked(
        "e",
        20,
        json!({"spec": {"nodeName": "n1", "containers": [{"name": "c",
        "resources": {"requests": {"cpu": "4"}}}]}, "status": {"phase": "Running"}}),
    ));
    world.patch(&kinds::POD, "default", "a", json!({"status": {"phase": "Succeeded"}}));
    world.put(ranked(
        "f",
        0,
        json!({"spec": {"nodeName": "n2", "containers": [{"name": "c",
        "resources": {"requests": {"cpu": "4"}}}]}, "status": {"phase": "Running"}}),
    ));
    assert_eq!(victims(&mut world).0, "n2: a f other", "the node that it was nominated to was given to another");
}

#[test]
fn ports_affinity_and_room_can_be_made_by_preemption_and_taints_cannot() {
    let port = json!([{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]);
    let anti = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}}]}});
    let taint = json!({"spec": {"taints": [{"key": "x", "effect": "NoSchedule"}]}});
    for (of_node, spec, expected) in [
        (json!({}), json!({"containers": port}), "n1: there"),
        (json!({}), json!({"containers": [{"name": "c"}], "affinity": anti}), "n1: there"),
        (json!({"status": {"allocatable": {"pods": "1"}}}), json!({"containers": [{"name": "c"}]}), "n1: there"),
        (taint, json!({"containers": port}), "-: "),
        (json!({"spec": {"unschedulable": true}}), json!({"containers": port}), "-: "),
        (
            json!({"metadata": {"annotations": {"mainstay.io/reserved-host-ports": "80"}}}),
            json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]}),
            "-: ",
        ),
    ] {
        let mut world = World::default();
        world.put(node("n1", of_node.clone()));
        let there = json!({"nodeName": "n1", "containers": port});
        world.put(ranked("there", 1, json!({"spec": there, "status": {"phase": "Running"}})));
        world.put(ranked("vip", 10, json!({ "spec": spec })));
        let reserved = of_node["metadata"]["annotations"].is_object();
        if reserved {
            world.remove(&kinds::POD, &ObjectKey::new("default", "there"));
        }
        assert_eq!(victims(&mut world).0, expected, "{of_node} {spec}");
    }
}

/// Room that is kept for a nominated pod is nobody's who is not more important: cores, ports, and its place.
#[test]
fn room_that_is_kept_for_a_pod_is_its_own_to_those_who_are_no_more_important() {
    let cpu = |cpu: &str| json!([{"name": "c", "resources": {"requests": {"cpu": cpu}}}]);
    let port = || json!([{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]);
    let plain = || json!([{"name": "c"}]);
    let (cores, ports, places) =
        ("1 Insufficient cpu", "1 node(s) didn't have free ports for the requested pod ports", "1 Too many pods");
    for (kept, containers, asked, refused) in [
        (11, cpu("4"), cpu("1"), Some(cores)),
        (10, cpu("4"), cpu("1"), Some(cores)),
        (9, cpu("4"), cpu("1"), None),
        (10, cpu("3"), cpu("1"), None),
        (10, port(), port(), Some(ports)),
        (9, port(), port(), None),
        (10, plain(), plain(), Some(places)),
        (9, plain(), plain(), None),
    ] {
        let mut world = World::default();
        let most = if refused == Some(places) || containers == plain() { "1" } else { "9" };
        world.put(node("n1", json!({"status": {"allocatable": {"pods": most}}})));
        let nominated = json!({"spec": {"containers": containers}, "status": {"nominatedNodeName": "n1"}});
        world.put(ranked("kept", kept, nominated));
        world.put(ranked("new", 10, json!({"spec": {"containers": asked, "preemptionPolicy": "Never"}})));
        let expected = refused.map_or("n1".to_owned(), |why| format!("0/1 nodes are available: {why}."));
        assert_eq!(placed(&mut world, "new"), expected, "{kept} {containers}");
    }
    // To itself it is free.
    let mut world = World::default();
    world.put(node("n1", json!({"status": {"allocatable": {"pods": "1"}}})));
    world.put(ranked("kept", 5, json!({"spec": {"containers": cpu("4")}, "status": {"nominatedNodeName": "n1"}})));
    assert_eq!(placed(&mut world, "kept"), "n1");
}

/// S12: whoever may not be deleted keeps the newcomer from no other node, and nobody goes for nothing.
#[test]
fn s12_a_victim_that_may_not_be_deleted_is_passed_over() {
    let mut world = two_nodes(&["a:n1:5:2", "b:n1:1:2", "c:n2:6"]);
    world.put(newcomer(json!({})));
    world.refuses = Some(|write| matches!(write, Write::Delete { key, .. } if *key.name == *"a"));
    assert_eq!(victims(&mut world).0, "n1: ", "the first that is asked may not go, and so the other need not");
    assert_eq!(victims(&mut world).0, "n2: c");

    // Who stays is spared where others will do.
    let mut world = two_nodes(&["a:n1:1:2:100", "b:n1:5:2", "d:n2:10:4"]);
    let two = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "2"}}}]}});
    world.put(newcomer(two));
    world.refuses = Some(|write| matches!(write, Write::Delete { key, .. } if *key.name == *"a"));
    assert_eq!(victims(&mut world).0, "n1: ");
    assert_eq!(victims(&mut world).0, "n1: b");

    // Where there is nobody else it is asked again, and goes when it may.
    let mut world = two_nodes(&["a:n1:5", "d:n2:10:4"]);
    world.put(newcomer(json!({})));
    world.refuses = Some(|write| matches!(write, Write::Delete { .. }));
    assert_eq!([victims(&mut world).0, victims(&mut world).0], ["n1: ", "n1: "]);
    world.refuses = None;
    assert_eq!(victims(&mut world).0, "n1: a");
}

/// X6: that a victim may not be deleted is known also when its mark was taken back: nobody beside it goes for nothing,
/// time and again.
#[test]
fn x6_who_may_not_be_deleted_is_known_after_its_mark_was_taken_back() {
    let mut world = two_nodes(&["a:n1:1:2", "b:n1:5:2", "d:n2:10:4"]);
    world.put(newcomer(json!({})));
    let mark = json!([{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]);
    world.patch(&kinds::POD, "default", "a", json!({"status": {"conditions": mark}}));
    let status = |world: &World| world.get(&kinds::POD, "default", "a")["status"]["conditions"][0]["status"].clone();
    world.refuses = Some(|write| matches!(write, Write::Delete { key, .. } if *key.name == *"a"));
    for _ in 0..2 {
        let stale = &crate::controllers::staledisruption::CONTROLLER;
        let later = Timestamp::from_second(120).unwrap();
        world.run(stale, &ObjectKey::new("default", "a"), later, usize::MAX);
        assert_eq!(status(&world), "False");
        assert_eq!(victims(&mut world).0, "n1: ");
        assert_eq!(status(&world), "True", "it is asked again, and marked again");
    }
}
