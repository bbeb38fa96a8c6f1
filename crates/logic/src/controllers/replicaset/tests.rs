//! One step of a set: which pods it makes and which go first, what it counts and what it says.

use super::*;
use crate::world::World;

/// A set that wants so many, and the two pods that it has.
fn world(replicas: i32) -> (World, ObjectKey) {
    let labels = json!({ "app": "web" });
    let mut world = World::default();
    world.put(json!({
        "kind": "ReplicaSet", "metadata": { "namespace": "default", "name": "web", "uid": "set", "generation": 2 },
        "spec": { "replicas": replicas, "selector": { "matchLabels": labels }, "template": {
            "metadata": { "labels": labels }, "spec": { "containers": [{ "name": "c", "image": "i" }] } } },
    }));
    for name in ["a", "b"] {
        let owner = json!({ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "set",
            "controller": true });
        world.put(json!({
            "kind": "Pod", "metadata": { "namespace": "default", "name": name, "labels": labels,
                "ownerReferences": [owner] },
            "spec": { "containers": [{ "name": "c", "image": "i" }] }, "status": { "phase": "Running" },
        }));
    }
    (world, ObjectKey::new("default", "web"))
}

#[test]
fn s12_a_generation_is_seen_when_its_deletions_are_done_and_before_its_creations() {
    // Cut after the first write, what is read of the set must hold.
    let (mut world, key) = world(0);
    world.run(&CONTROLLER, &key, Timestamp::UNIX_EPOCH, 1);
    assert_eq!((world.all(&POD).count(), &world.get(&REPLICA_SET, "default", "web")["status"]), (1, &json!(null)));
    world.run(&CONTROLLER, &key, Timestamp::UNIX_EPOCH, usize::MAX);
    let status = world.get(&REPLICA_SET, "default", "web")["status"].clone();
    assert_eq!((world.all(&POD).count(), &status["observedGeneration"]), (0, &json!(2)));

    let (mut world, key) = self::world(3);
    world.run(&CONTROLLER, &key, Timestamp::UNIX_EPOCH, 1);
    let status = world.get(&REPLICA_SET, "default", "web")["status"].clone();
    assert_eq!((world.all(&POD).count(), &status["observedGeneration"]), (2, &json!(2)));
}

fn merged(mut object: serde_json::Value, over: serde_json::Value) -> serde_json::Value {
    crate::world::merge(&mut object, over);
    object
}

/// A set of a Deployment `d` that wants so many, its generation seen.
fn set(name: &str, replicas: i32, over: serde_json::Value) -> serde_json::Value {
    let owner = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "name": "d", "uid": "d", "controller": true });
    let labels = json!({ "app": "web", "of": name });
    let set = json!({
        "kind": "ReplicaSet", "metadata": { "namespace": "default", "name": name, "uid": name, "generation": 2,
            "ownerReferences": [owner] },
        "spec": { "replicas": replicas, "selector": { "matchLabels": labels }, "template": {
            "metadata": { "labels": labels }, "spec": { "containers": [{ "name": "c", "image": "i" }] } } },
    });
    merged(set, over)
}

/// A Ready pod of a set.
fn pod(of: &str, name: &str, over: serde_json::Value) -> serde_json::Value {
    let owner = json!({ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": of, "uid": of, "controller": true });
    let ready = json!([{ "type": "Ready", "status": "True", "lastTransitionTime": at(0).to_string() }]);
    let pod = json!({
        "kind": "Pod", "metadata": { "namespace": "default", "name": name, "labels": { "app": "web", "of": of },
            "creationTimestamp": at(0).to_string(), "ownerReferences": [owner] },
        "spec": { "nodeName": "n1", "containers": [{ "name": "c", "image": "i" }] },
        "status": { "phase": "Running", "conditions": ready },
    });
    merged(pod, over)
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000 + second).unwrap()
}

fn world_of(objects: impl IntoIterator<Item = serde_json::Value>) -> World {
    let mut world = World::default();
    objects.into_iter().for_each(|object| world.put(object));
    world
}

fn decided(world: &World, name: &str, now: Timestamp) -> Decision {
    (CONTROLLER.reconcile)(&world.snapshot, &ObjectKey::new("default", name), now)
}

fn deleted(decision: &Decision) -> Vec<&str> {
    let mut names = Vec::new();
    for write in &decision.writes {
        if let Write::Delete { kind, key, .. } = write
            && *kind == POD
        {
            names.push(&*key.name);
        }
    }
    names
}

fn made(decision: &Decision) -> usize {
    decision.writes.iter().filter(|write| matches!(write, Write::Create { .. })).count()
}

fn leaving() -> serde_json::Value {
    json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x.io/held"] } })
}

/// Upstream's order, one reason against the next: of each pair `b` goes, though by all that counts less it were `a`.
#[test]
fn of_two_pods_goes_the_one_that_serves_less() {
    let conditions = |ready: &str, since: i64| {
        json!({ "status": { "conditions": [{ "type": "Ready", "status": ready,
            "lastTransitionTime": at(since).to_string() }] } })
    };
    let phase = |phase: &str| json!({ "status": { "phase": phase } });
    let cost =
        |cost: &str| json!({ "metadata": { "annotations": { "controller.kubernetes.io/pod-deletion-cost": cost } } });
    let restarts = |count: i32| {
        json!({ "status": { "containerStatuses": [{ "name": "c", "image": "i", "imageID": "",
        "ready": true, "restartCount": 0 }, { "name": "d", "image": "i", "imageID": "", "ready": true,
        "restartCount": count }] } })
    };
    let created = |second: i64| json!({ "metadata": { "creationTimestamp": at(second).to_string() } });
    let nothing = json!({});
    for (a, b) in [
        (phase("Pending"), json!({ "spec": { "nodeName": null } })),
        (phase("Pending"), json!({ "spec": { "nodeName": "" } })),
        (phase("Unknown"), phase("Pending")),
        (phase("Running"), phase("Unknown")),
        (conditions("False", 0), phase("Unknown")),
        (cost("-5"), conditions("False", 0)),
        (nothing.clone(), cost("-1")),
        (cost("1"), nothing.clone()),
        (cost("no number"), cost("-1")),
        (nothing.clone(), conditions("True", 1)),
        (created(5), restarts(1)),
        (nothing, created(5)),
    ] {
        let world = world_of([set("web", 1, json!({})), pod("web", "a", a.clone()), pod("web", "b", b.clone())]);
        let decision = decided(&world, "web", at(100));
        assert_eq!(deleted(&decision), ["b"], "{a} {b}");
        assert_eq!(decision.events[0].reason, "SuccessfulDelete");
        assert_eq!(decision.events[0].message, "Deleted pod: b");
    }
}

/// Pods of all sets of one Deployment count where they are doubled up; those of others, and those that end, do not.
#[test]
fn a_node_with_more_pods_of_the_deployment_loses_one_first() {
    let on = |of: &str, name: &str, node: &str, over: serde_json::Value| {
        pod(of, name, merged(json!({ "spec": { "nodeName": node } }), over))
    };
    let both = || [set("web", 1, json!({})), on("web", "a", "n1", json!({})), on("web", "b", "n2", json!({}))];
    let (nothing, done) = (json!({}), json!({ "status": { "phase": "Succeeded" } }));
    let owners = |kind: &str, of: &str| {
        let version = "apps/v1";
        let owner = |name: &str, controls: bool| {
            let uid = name;
            json!({ "apiVersion": version, "kind": kind, "name": name, "uid": uid, "controller": controls })
        };
        json!({ "metadata": { "ownerReferences": [owner(of, false), owner("another", true)] } })
    };
    let (theirs, not_controlled) = (owners("Deployment", "d"), owners("ReplicaSet", "old"));
    for (sibling, more, expected) in [
        (nothing.clone(), nothing.clone(), "b"),
        (nothing.clone(), done, "a"),
        (nothing.clone(), leaving(), "a"),
        (nothing, not_controlled, "a"),
        (theirs, json!({}), "a"),
    ] {
        let others = [set("old", 1, sibling.clone()), on("old", "c", "n2", more.clone())];
        let decision_of = |objects: Vec<serde_json::Value>| {
            let world = world_of(objects);
            deleted(&decided(&world, "web", at(100))).join(",")
        };
        assert_eq!(decision_of(both().into_iter().chain(others).collect()), expected, "{sibling} {more}");
    }
}

/// What it counts, and when it is to be looked at again.
#[test]
fn a_sets_status_counts_what_serves() {
    let since = |second: i64| {
        json!({ "status": { "conditions": [{ "type": "Ready", "status": "True",
            "lastTransitionTime": at(second).to_string() }] } })
    };
    let wrong = |reason: &str| json!([{ "type": reason, "status": "True" }]);
    let world = world_of([
        set(
            "web",
            5,
            json!({ "spec": { "minReadySeconds": 30 }, "status": { "replicas": 0, "conditions":
            [{ "type": REPLICA_FAILURE, "status": "True" }, { "type": "Theirs", "status": "True" }] } }),
        ),
        pod("web", "a", since(60)),
        pod("web", "b", since(70)),
        pod("web", "c", json!({ "status": { "conditions": wrong("PodScheduled") } })),
        pod("web", "d", json!({ "metadata": { "labels": { "of": null } } })),
        pod("web", "e", since(80)),
        pod("web", "f", leaving()),
        pod("web", "g", merged(leaving(), json!({ "status": { "phase": "Failed" } }))),
        pod("web", "h", json!({ "status": { "phase": "Failed" } })),
    ]);
    // One that does not match any more is let go before anything is counted.
    let first = decided(&world, "web", at(100));
    assert!(matches!(first.writes.as_slice(), [Write::Patch { key, .. }] if &*key.name == "d"), "{:?}", first.writes);
    let mut world = world;
    world.remove(&POD, &ObjectKey::new("default", "d"));
    world.put(pod("web", "d", since(0)));
    let decision = decided(&world, "web", at(100));
    let [Write::Patch { patch, status: true, .. }] = decision.writes.as_slice() else {
        panic!("{:?}", decision.writes)
    };
    let status = &patch["status"];
    let count = |field: &str| status[field].as_i64().unwrap();
    assert_eq!(["replicas", "readyReplicas", "availableReplicas", "fullyLabeledReplicas"].map(count), [5, 4, 3, 5]);
    assert_eq!((count("terminatingReplicas"), count("observedGeneration")), (1, 2));
    assert_eq!(status["conditions"], wrong("Theirs"), "nothing is missing: the failure is over");
    assert_eq!(decision.waiting, [Waiting::NotYetAvailable]);
    assert_eq!(decision.wake_at, Some(at(110)), "available to the moment, and not before");
    world.patch(&REPLICA_SET, "default", "web", json!({ "status": status }));
    assert_eq!(decided(&world, "web", at(109)).writes, []);
    let due = decided(&world, "web", at(110));
    assert_eq!((due.writes.len(), due.waiting, due.wake_at), (1, vec![], None));
    // Of one label too few is said how many have all of them; a failure stays while a pod is missing, and is then gone.
    let failure = json!({ "status": { "replicas": 1, "conditions": [{ "type": REPLICA_FAILURE, "status": "True" }] } });
    let template = json!({ "spec": { "template": { "metadata": { "labels": { "new": "label" } } } } });
    for (wanted, conditions) in [(2, Some(1)), (1, None)] {
        let world =
            world_of([set("web", wanted, merged(failure.clone(), template.clone())), pod("web", "a", json!({}))]);
        let decision = decided(&world, "web", at(100));
        let status = decision.writes.iter().find_map(|write| match write {
            Write::Patch { patch, status: true, .. } => Some(&patch["status"]),
            _ => None,
        });
        let status = status.expect("a status");
        assert_eq!((&status["fullyLabeledReplicas"], &status["replicas"]), (&json!(0), &json!(1)));
        assert_eq!(status["conditions"].as_array().map(Vec::len), conditions, "{wanted}: {status}");
        assert!(status.get("conditions").is_some(), "{wanted}: null takes it away");
    }
}

/// S10: what it makes, adopts and lets go; nothing where it or its namespace goes.
#[test]
fn s10_a_set_makes_what_is_missing_and_takes_what_is_its_own() {
    let orphan = |name: &str, over: serde_json::Value| {
        pod("web", name, merged(json!({ "metadata": { "ownerReferences": null } }), over))
    };
    let namespace =
        |over: serde_json::Value| merged(json!({ "kind": "Namespace", "metadata": { "name": "default" } }), over);
    let world = world_of([set("web", 2, json!({}))]);
    let decision = decided(&world, "web", at(0));
    assert_eq!((made(&decision), decision.events.len()), (2, 2));
    assert!(
        decision
            .events
            .iter()
            .all(|event| event.reason == "SuccessfulCreate" && event.message.starts_with("Created pod: web-")),
        "{:?}",
        decision.events
    );
    let names: Vec<&str> = decision
        .writes
        .iter()
        .filter_map(|write| match write {
            Write::Create { object, .. } => object["metadata"]["name"].as_str(),
            _ => None,
        })
        .collect();
    // A name that is taken, by whomever, is not tried.
    let mut world = world;
    let revision = world.snapshot.revision;
    for name in names {
        let mut other = pod("web", name, json!({ "metadata": { "labels": null, "ownerReferences": null } }));
        other["metadata"]["uid"] = json!(name);
        world.put(other);
    }
    world.snapshot.revision = revision;
    let again = decided(&world, "web", at(0));
    let is_free = |write: &Write| match write {
        Write::Create { object, .. } => {
            world.get(&POD, "default", object["metadata"]["name"].as_str().unwrap()).is_null()
        }
        _ => true,
    };
    assert!(made(&again) == 2 && again.writes.iter().all(is_free), "{:?}", again.writes);
    world.settle(&[CONTROLLER], at(0));
    assert_eq!(world.all(&POD).count(), 4);
    for (going, of_set) in [("set", leaving()), ("namespace", json!({})), ("neither", json!({}))] {
        let of_namespace = if going == "namespace" { leaving() } else { json!({}) };
        for (wanted, there) in [(2, 1), (1, 1), (0, 1)] {
            let objects = [namespace(of_namespace.clone()), set("web", wanted, of_set.clone())];
            let pods = (0..there).map(|number| pod("web", &format!("p{number}"), json!({})));
            let decision = decided(&world_of(objects.into_iter().chain(pods)), "web", at(0));
            let story = format!("{going} {wanted}");
            assert_eq!(made(&decision), usize::from(going == "neither" && wanted == 2), "{story}");
            assert_eq!(deleted(&decision).len(), usize::from(going != "set" && wanted == 0), "{story}");
            let waits = going == "namespace" && wanted == 2;
            assert_eq!(decision.waiting, if waits { vec![Waiting::NamespaceTerminating] } else { vec![] }, "{story}");
        }
    }
    // An orphan that runs is adopted, by its own change; one that has ended is nobody's; its own stays its own.
    let mut world = world_of([set("web", 1, json!({}))]);
    world.put(orphan("over", json!({ "status": { "phase": "Failed" } })));
    world.put(orphan("found", json!({})));
    world.settle(&[CONTROLLER], at(0));
    let owner =
        |world: &World, name: &str| world.get(&POD, "default", name)["metadata"]["ownerReferences"][0]["uid"].clone();
    assert_eq!([owner(&world, "found"), owner(&world, "over")], [json!("web"), json!(null)]);
    assert_eq!(world.all(&POD).count(), 2);
    world.put(orphan("late", json!({})));
    world.settle(&[CONTROLLER], at(0));
    assert_eq!((owner(&world, "late"), world.all(&POD).count()), (json!("web"), 3), "and is then one too many");
    world.remove(&POD, &ObjectKey::new("default", "found"));
    world.settle(&[CONTROLLER], at(0));
    // A selector of everything adopts nothing.
    let all = json!({ "spec": { "selector": { "matchLabels": null } } });
    let world = world_of([set("web", 1, all), orphan("x", json!({}))]);
    assert!(
        decided(&world, "web", at(0)).writes.iter().all(|write| !matches!(write, Write::Patch { status: false, .. }))
    );
}
