//! S12: whatever makes room for a pod, or makes a node suit it, wakes it, and nothing else is needed. Each decision is
//! made because a change asked for it (`World::settle`), and afterwards nobody has anything left to do.

use super::*;
use crate::volume::room::VOLUME_CAPACITY;
use crate::volume::{BUILT_IN, MADE_ON, SIZE, VOLUME_ROOT};

fn settle(world: &mut World) {
    world.settle(&[CONTROLLER], Timestamp::UNIX_EPOCH);
    world.assert_quiet(&[CONTROLLER], Timestamp::UNIX_EPOCH);
}

fn node_of(world: &World, name: &str) -> Value {
    world.get(&kinds::POD, "default", name)["spec"]["nodeName"].clone()
}

/// A node of two cores with two running pods on it, and a more important one that waits for `victim` to go.
fn nominated() -> World {
    let mut world = World::default();
    world.put(node("n1", json!({"status": {"allocatable": {"cpu": "2"}}})));
    for (name, priority) in [("stays", 20), ("victim", 1)] {
        world.put(ranked(name, priority, json!({"spec": {"nodeName": "n1"}, "status": {"phase": "Running"}})));
    }
    world.put(ranked("vip", 10, json!({})));
    settle(&mut world);
    assert_eq!(world.get(&kinds::POD, "default", "vip")["status"]["nominatedNodeName"], "n1");
    world
}

#[test]
fn s12_room_that_was_kept_for_a_pod_is_anybodys_when_that_pod_does_not_need_it() {
    let changes: [(&str, fn(&mut World)); 4] = [
        ("it is deleted", |world| world.remove(&kinds::POD, &ObjectKey::new("default", "vip"))),
        ("it has failed", |world| world.patch(&kinds::POD, "default", "vip", json!({"status": {"phase": "Failed"}}))),
        ("it is told to go", |world| {
            let going = json!({"metadata": {"finalizers": ["x.io/y"], "deletionTimestamp": "2026-01-01T00:00:00Z"}});
            world.patch(&kinds::POD, "default", "vip", going);
        }),
        ("it was bound elsewhere", |world| {
            world.patch(&kinds::POD, "default", "vip", json!({"spec": {"nodeName": "n9"}}));
        }),
    ];
    for (why, change) in changes {
        let mut world = nominated();
        world.put(ranked("late", 3, json!({"spec": {"preemptionPolicy": "Never"}})));
        settle(&mut world);
        assert_eq!(node_of(&world, "late"), json!(null), "{why}: there is no room yet");
        // The victim is gone before anybody looks: its room is kept, and then it is not.
        world.remove(&kinds::POD, &ObjectKey::new("default", "victim"));
        world.changes.clear();
        assert_eq!(placed(&mut world, "late"), "0/1 nodes are available: 1 Insufficient cpu.", "{why}: it is kept");
        world.changes.clear();
        change(&mut world);
        settle(&mut world);
        assert_eq!(node_of(&world, "late"), "n1", "{why}");
    }
    let mut world = nominated();
    world.remove(&kinds::POD, &ObjectKey::new("default", "victim"));
    settle(&mut world);
    assert_eq!(node_of(&world, "vip"), "n1", "and it has it when its time comes");
}

#[test]
fn s12_a_port_or_a_core_that_a_node_gives_now_is_taken() {
    let reserved = |ports: &str| json!({"metadata": {"annotations": {"mainstay.io/reserved-host-ports": ports}}});
    let port = json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 8080}]}]}});
    let only = |capacity: &str| {
        let status = json!({"allocatable": null, "capacity": {"cpu": capacity, "memory": "8Gi", "pods": "9"}});
        json!({ "status": status })
    };
    for (over, before, after) in [(port, reserved("6443,8080"), reserved("6443")), (json!({}), only("500m"), only("1"))]
    {
        let mut world = World::default();
        world.put(pod("p", over.clone()));
        world.put(node("n1", before));
        settle(&mut world);
        assert_eq!(node_of(&world, "p"), json!(null), "{over}");
        world.put(node("n1", after));
        settle(&mut world);
        assert_eq!(node_of(&world, "p"), "n1", "{over}");
    }
}

fn class(over: Value) -> Value {
    let mut class = json!({"kind": "StorageClass", "metadata": {"name": "fast"}, "provisioner": BUILT_IN[0],
        "volumeBindingMode": "WaitForFirstConsumer"});
    merge(&mut class, over);
    class
}

fn claim(name: &str, size: &str, over: Value) -> Value {
    let mut claim = json!({"kind": "PersistentVolumeClaim", "metadata": {"namespace": "default", "name": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "fast",
            "resources": {"requests": {"storage": size}}}, "status": {"phase": "Pending"}});
    merge(&mut claim, over);
    claim
}

fn user(name: &str, claim: &str) -> Value {
    pod(name, json!({"spec": {"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]}}))
}

/// A node with room for 10 GiB of volumes.
fn roomy() -> Value {
    let annotations = json!({(VOLUME_ROOT): "/v", (VOLUME_CAPACITY): (10_i64 << 30).to_string()});
    node("n1", json!({"metadata": {"annotations": annotations}}))
}

/// V10: a node that has promised all of its room promises again what is given back to it.
#[test]
fn s12_v10_room_that_a_volume_gives_back_is_promised_again() {
    let back: [(&str, fn(&mut World, &str)); 2] = [
        ("it was asked for less before it was made real", |world, volume| {
            world.patch(&kinds::PERSISTENT_VOLUME, "", volume, json!({"spec": {"capacity": {"storage": "2Gi"}}}));
        }),
        ("it is gone", |world, volume| world.remove(&kinds::PERSISTENT_VOLUME, &ObjectKey::new("", volume))),
    ];
    for (why, change) in back {
        let mut world = World::default();
        world.put(roomy());
        world.put(class(json!({})));
        world.put(claim("large", "8Gi", json!({})));
        world.put(user("first", "large"));
        settle(&mut world);
        assert_eq!(node_of(&world, "first"), "n1");
        world.put(claim("small", "5Gi", json!({})));
        world.put(user("second", "small"));
        settle(&mut world);
        assert_eq!(node_of(&world, "second"), json!(null), "{why}");
        let volume = world.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "large")["spec"]["volumeName"].clone();
        change(&mut world, volume.as_str().unwrap());
        settle(&mut world);
        assert_eq!(node_of(&world, "second"), "n1", "{why}");
    }
}

/// A clone waits until there is something to copy; its pod is woken when there is.
#[test]
fn s12_a_pod_whose_claim_is_a_clone_is_placed_when_its_source_is_there() {
    let mut world = World::default();
    world.put(roomy());
    world.put(class(json!({"parameters": {(SIZE): "image"}})));
    world.put(claim("source", "1Gi", json!({})));
    world.put(claim(
        "clone",
        "1Gi",
        json!({"spec": {"dataSource": {"kind": "PersistentVolumeClaim",
        "name": "source"}}}),
    ));
    world.put(user("copy", "clone"));
    settle(&mut world);
    world.put(user("original", "source"));
    settle(&mut world);
    assert_eq!([node_of(&world, "original"), node_of(&world, "copy")], [json!("n1"), json!(null)]);
    let volume = world.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "source")["spec"]["volumeName"].clone();
    let made = json!({"metadata": {"annotations": {(MADE_ON): "n1"}}});
    world.patch(&kinds::PERSISTENT_VOLUME, "", volume.as_str().unwrap(), made);
    settle(&mut world);
    assert_eq!(node_of(&world, "copy"), json!(null), "it is not copied");
    let clone = world.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "clone")["metadata"]["uid"].clone();
    let made = json!({"metadata": {"annotations": {(MADE_ON): "n1"}}});
    world.patch(&kinds::PERSISTENT_VOLUME, "", &format!("pvc-{}", clone.as_str().unwrap()), made);
    settle(&mut world);
    assert_eq!(node_of(&world, "copy"), "n1");
}

/// What a claim waits for: its class, a volume that is free, its own volume, that it is not on its way out.
#[test]
fn s12_a_pod_is_placed_when_its_claim_can_be_had() {
    let volume = |over: Value| {
        let mut volume = json!({"kind": "PersistentVolume", "metadata": {"name": "v"}, "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "fast",
            "nfs": {"server": "192.0.2.1", "path": "/v"}}, "status": {"phase": "Available"}});
        merge(&mut volume, over);
        volume
    };
    let bare = class(json!({"provisioner": "kubernetes.io/no-provisioner"}));
    let elsewhere = json!({"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "zone", "operator": "In", "values": ["a"]}]}]}}}});
    let data = || claim("data", "1Gi", json!({}));
    let table = [
        ("class", vec![data()], class(json!({}))),
        ("claim", vec![class(json!({}))], data()),
        ("volume", vec![bare.clone(), data()], volume(json!({}))),
        ("free", vec![bare.clone(), data(), volume(json!({"status": {"phase": "Pending"}}))], volume(json!({}))),
        ("reach", vec![bare.clone(), data(), volume(elsewhere)], volume(json!({}))),
        (
            "reserved",
            vec![bare, data(), volume(json!({"status": {"phase": "Pending"}}))],
            volume(
                json!({"spec": {"claimRef": {"namespace": "default", "name": "data"}}, "status": {"phase": "Pending"}}),
            ),
        ),
        (
            "root",
            vec![class(json!({})), data(), node("n1", json!({"metadata": {"annotations": {(VOLUME_ROOT): ""}}}))],
            roomy(),
        ),
        (
            "topology",
            vec![
                class(json!({"allowedTopologies": [{"matchLabelExpressions": [{"key": "zone", "values": ["a"]}]}]})),
                data(),
            ],
            node("n1", json!({"metadata": {"labels": {"zone": "a"}}})),
        ),
    ];
    for (why, objects, change) in table {
        let mut world = World::default();
        world.put(node("n1", json!({})));
        world.put(user("p", "data"));
        objects.iter().for_each(|object| world.put(object.clone()));
        settle(&mut world);
        assert_eq!(node_of(&world, "p"), json!(null), "{why}");
        world.put(change);
        settle(&mut world);
        assert_eq!(node_of(&world, "p"), "n1", "{why}");
    }
}

#[test]
fn a_pod_that_is_another_schedulers_or_is_over_is_left_alone() {
    for over in [
        json!({"spec": {"schedulerName": "other"}}),
        json!({"status": {"phase": "Failed"}}),
        json!({"status": {"phase": "Succeeded"}}),
        json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x.io/y"]}}),
        json!({"spec": {"nodeName": "n2"}}),
    ] {
        let mut world = World::default();
        world.put(node("n1", json!({})));
        world.put(pod("p", over.clone()));
        settle(&mut world);
        assert!(world.log.is_empty(), "{over}: {:?}", world.log);
    }
    let mut world = World::default();
    world.put(node("n1", json!({})));
    world.put(pod("p", json!({"spec": {"schedulerName": "default-scheduler"}})));
    settle(&mut world);
    assert_eq!(node_of(&world, "p"), "n1");
}

/// The condition keeps its time while it is False, and other people's conditions stay.
#[test]
fn why_a_pod_waits_is_said_once_and_keeps_its_time() {
    let mut world = World::default();
    let conditions = json!([{"type": "example.com/x", "status": "True"}]);
    world.put(pod(
        "p",
        json!({"spec": {"schedulingGates": [{"name": "x.io/g"}]}, "status": {"conditions": conditions}}),
    ));
    let at = |second: i64| Timestamp::from_second(second).unwrap();
    let key = ObjectKey::new("default", "p");
    let said = |world: &World| {
        let conditions = world.get(&kinds::POD, "default", "p")["status"]["conditions"].clone();
        assert_eq!(conditions.as_array().unwrap().len(), 2, "{conditions}");
        assert_eq!(conditions[0]["type"], "example.com/x");
        let last = &conditions[1];
        assert_eq!([&last["type"], &last["status"]], ["PodScheduled", "False"]);
        (last["reason"].clone(), last["lastTransitionTime"].clone())
    };
    world.run(&CONTROLLER, &key, at(5), usize::MAX);
    assert_eq!(said(&world), (json!("SchedulingGated"), json!("1970-01-01T00:00:05Z")));
    assert_eq!(world.run(&CONTROLLER, &key, at(6), usize::MAX), 0);
    world.patch(&kinds::POD, "default", "p", json!({"spec": {"schedulingGates": []}}));
    world.run(&CONTROLLER, &key, at(7), usize::MAX);
    assert_eq!(said(&world), (json!("Unschedulable"), json!("1970-01-01T00:00:05Z")));
    assert_eq!(world.events, ["FailedScheduling: no nodes available to schedule pods"], "gates are no event");
    // What was True becomes False now.
    let scheduled = json!([{"type": "example.com/x", "status": "True"}, {"type": "PodScheduled", "status": "True",
        "lastTransitionTime": "1970-01-01T00:00:01Z"}]);
    world.patch(&kinds::POD, "default", "p", json!({"status": {"conditions": scheduled}}));
    world.run(&CONTROLLER, &key, at(9), usize::MAX);
    assert_eq!(said(&world).1, json!("1970-01-01T00:00:09Z"));
}

/// X7: a node that comes and goes costs a pod that fits nowhere a few writes, not one for each time; the last word is
/// true in the end.
#[test]
fn x7_what_only_says_otherwise_why_a_pod_waits_is_written_less_and_less() {
    let at = |tenths: i64| Timestamp::from_millisecond(1_800_000_000_000 + 100 * tenths).unwrap();
    let key = ObjectKey::new("default", "a");
    let mut world = World::default();
    world.put(node("n1", json!({"status": {"allocatable": {"cpu": "1"}}})));
    world.put(pod("a", json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "2"}}}]}})));
    for tenths in 0..1200 {
        world.patch(&kinds::NODE, "", "n1", json!({"spec": {"unschedulable": tenths % 2 == 0}}));
        world.run(&CONTROLLER, &key, at(tenths), usize::MAX);
    }
    let told = world.events.iter().filter(|event| event.starts_with("FailedScheduling")).count();
    assert!((4..=12).contains(&told), "{told} times in two minutes");
    let decision = (CONTROLLER.reconcile)(&world.snapshot, &key, at(1200));
    let said = |world: &World| {
        world.get(&kinds::POD, "default", "a")["status"]["conditions"][0]["message"].as_str().unwrap().to_owned()
    };
    if let Some(wake) = decision.wake_at {
        assert!(wake <= at(1200 + 600), "a minute at most");
        world.run(&CONTROLLER, &key, wake, usize::MAX);
    }
    assert!(said(&world).contains("Insufficient cpu"), "{}", said(&world));
    // A verdict is given at once.
    world.patch(&kinds::NODE, "", "n1", json!({"status": {"allocatable": {"cpu": "2"}}}));
    world.run(&CONTROLLER, &key, at(1201), usize::MAX);
    assert_eq!(node_of(&world, "a"), "n1");
}
