//! Tests of what ends objects: garbage collection and namespace deletion, in a small world.

use jiff::Timestamp;
use mainstay_api::ObjectKey;
use mainstay_api::kinds::{CONFIG_MAP, NAMESPACE, NODE, PERSISTENT_VOLUME, POD, SECRET, SERVICE_ACCOUNT};
use serde_json::{Value, json};

use super::{garbagecollector, namespace, serviceaccount};
use crate::decision::{Controller, Propagation, Waiting, Write};
use crate::world::World;

const GARBAGE: &[Controller] = &[garbagecollector::CONTROLLER];

/// A ConfigMap with owners (`name`, blocking).
fn object(name: &str, owners: &[(&str, bool)]) -> Value {
    let owner = |(name, block): &(&str, bool)| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "name": name,
        "uid": format!("uid-{name}"), "blockOwnerDeletion": block})
    };
    let mut object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "ns", "name": name,
        "uid": format!("uid-{name}")}});
    if !owners.is_empty() {
        object["metadata"]["ownerReferences"] = owners.iter().map(owner).collect();
    }
    object
}

fn rest(world: &mut World) -> Vec<String> {
    world.settle(GARBAGE, Timestamp::UNIX_EPOCH);
    world.all(&CONFIG_MAP).map(|object| object["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

fn family() -> World {
    let mut world = World::default();
    for object in [
        object("a", &[]),
        object("b", &[]),
        object("child", &[("a", true)]),
        object("grand", &[("child", true)]),
        object("both", &[("a", false), ("b", false)]),
    ] {
        world.put(object);
    }
    assert_eq!(rest(&mut world), ["a", "b", "both", "child", "grand"]);
    world
}

#[test]
fn background_takes_dependents_whose_owners_are_all_gone() {
    let mut world = family();
    world.delete(&CONFIG_MAP, "ns", "a", None);
    assert_eq!(rest(&mut world), ["b", "both"]);
    let owners = world.get(&CONFIG_MAP, "ns", "both")["metadata"]["ownerReferences"].clone();
    assert_eq!(owners.as_array().unwrap().iter().map(|owner| owner["name"].clone()).collect::<Vec<_>>(), ["b"]);
    // The same name with another uid is not the owner (A8).
    world.delete(&CONFIG_MAP, "ns", "b", None);
    let mut other = object("b", &[]);
    other["metadata"]["uid"] = json!("another");
    world.put(other);
    assert_eq!(rest(&mut world), ["b"]);
}

#[test]
fn foreground_takes_dependents_first() {
    let mut world = family();
    world.patch(&CONFIG_MAP, "ns", "grand", json!({"metadata": {"finalizers": ["example.com/hold"]}}));
    world.delete_with(&CONFIG_MAP, &ObjectKey::new("ns", "a"), None, Propagation::Foreground);
    assert_eq!(rest(&mut world), ["a", "b", "both", "child", "grand"], "the last dependent is held");
    world.patch(&CONFIG_MAP, "ns", "grand", json!({"metadata": {"finalizers": []}}));
    assert_eq!(rest(&mut world), ["b", "both"]);
}

/// S10, A8: an owner is a uid, whether its dependents come late, it is replaced under its name, or is far away.
#[test]
fn s10_what_has_no_owner_by_uid_is_collected_however_that_came_about() {
    let mut world = family();
    world.delete(&CONFIG_MAP, "ns", "a", None);
    rest(&mut world);
    world.put(object("late", &[("a", true)]));
    assert_eq!(rest(&mut world), ["b", "both"], "made when its owner was gone");
    let mut other = object("b", &[]);
    other["metadata"]["uid"] = json!("another");
    world.put(other);
    assert_eq!(rest(&mut world), ["b"], "replaced without having been seen to go");
    // A uid of another namespace makes nobody an owner, and holds nobody.
    let mut world = family();
    let mut far = object("far", &[("a", true)]);
    far["metadata"]["namespace"] = json!("other");
    far["metadata"]["finalizers"] = json!(["example.com/hold"]);
    world.put(far);
    world.delete_with(&CONFIG_MAP, &ObjectKey::new("ns", "a"), None, Propagation::Foreground);
    assert_eq!(rest(&mut world), ["b", "both", "far"]);
    assert!(!world.get(&CONFIG_MAP, "other", "far")["metadata"]["deletionTimestamp"].is_null());
}

/// S10: owners that belong to no namespace have dependents in all of them and beside them.
#[test]
fn s10_what_a_cluster_scoped_owner_has_lives_and_goes_with_it() {
    let owner =
        json!([{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "uid-n1", "blockOwnerDeletion": true}]);
    let node = json!({"kind": "Node", "metadata": {"name": "n1", "uid": "uid-n1"}});
    let mut beside =
        json!({"kind": "PersistentVolume", "metadata": {"name": "v", "ownerReferences": owner}, "spec": {}});
    let mut within = object("a", &[]);
    within["metadata"]["ownerReferences"] = owner;
    for propagation in [Propagation::Background, Propagation::Foreground] {
        let mut world = World::default();
        world.put(node.clone());
        world.put(beside.clone());
        world.put(within.clone());
        assert_eq!((rest(&mut world), world.all(&PERSISTENT_VOLUME).count()), (vec!["a".to_owned()], 1));
        world.delete_with(&NODE, &ObjectKey::new("", "n1"), None, propagation);
        assert_eq!((rest(&mut world).len(), world.all(&PERSISTENT_VOLUME).count()), (0, 0), "{propagation:?}");
    }
    // It waits for those that are held, wherever they are.
    for which in [&mut beside, &mut within] {
        which["metadata"]["finalizers"] = json!(["example.com/hold"]);
        let mut world = World::default();
        world.put(node.clone());
        world.put(which.clone());
        world.delete_with(&NODE, &ObjectKey::new("", "n1"), None, Propagation::Foreground);
        rest(&mut world);
        assert_eq!(world.all(&NODE).count(), 1, "{which}");
    }
    // What belongs to no namespace has no owner in one: nobody can say which.
    let mut world = World::default();
    beside["metadata"]["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "a", "uid": "x"}]);
    world.put(beside.clone());
    rest(&mut world);
    assert_eq!(world.get(&PERSISTENT_VOLUME, "", "v")["metadata"]["deletionTimestamp"], Value::Null);
}

/// A finalizer says how an object goes once it goes, and nothing before.
#[test]
fn the_finalizers_of_an_owner_that_stays_take_nothing_from_its_dependents() {
    for finalizer in ["foregroundDeletion", "orphan"] {
        let mut world = family();
        world.patch(&CONFIG_MAP, "ns", "a", json!({"metadata": {"finalizers": [finalizer]}}));
        let before = world.revision();
        world.ask_anew();
        assert_eq!(rest(&mut world), ["a", "b", "both", "child", "grand"], "{finalizer}");
        assert_eq!(world.revision(), before, "{finalizer}: nothing is written");
        let key = garbagecollector::key_for(&CONFIG_MAP, &ObjectKey::new("ns", "child"));
        let decision = (garbagecollector::CONTROLLER.reconcile)(&world.snapshot, &key, Timestamp::UNIX_EPOCH);
        assert_eq!(decision.writes, [], "{finalizer}: also when it is asked about by itself");
    }
}

/// How what has lost its owners goes: as its own finalizers say, and before its owner where that waits.
#[test]
fn a_dependent_goes_as_it_and_its_owner_ask_for() {
    let going =
        json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["foregroundDeletion"]}});
    let (waits, gone) = (Some(going.clone()), None);
    let plain = json!({});
    let with = |finalizer: &str| json!({"metadata": {"finalizers": [finalizer]}});
    let (background, foreground, orphan) = (Propagation::Background, Propagation::Foreground, Propagation::Orphan);
    for (owner, child, has_dependent, expected) in [
        (&gone, plain.clone(), false, background),
        (&gone, plain.clone(), true, background),
        (&waits, plain.clone(), false, background),
        (&waits, plain, true, foreground),
        (&gone, with("foregroundDeletion"), false, foreground),
        (&gone, with("foregroundDeletion"), true, foreground),
        (&gone, with("orphan"), true, orphan),
        (&waits, with("orphan"), true, orphan),
        (&gone, with("example.com/hold"), true, background),
    ] {
        let mut world = World::default();
        world.put(object("child", &[("a", true), ("b", true)]));
        world.patch(&CONFIG_MAP, "ns", "child", child.clone());
        if let Some(going) = owner {
            world.put(object("a", &[]));
            world.patch(&CONFIG_MAP, "ns", "a", going.clone());
        }
        if has_dependent {
            world.put(object("grand", &[("child", true)]));
        }
        let key = garbagecollector::key_for(&CONFIG_MAP, &ObjectKey::new("ns", "child"));
        let writes = (garbagecollector::CONTROLLER.reconcile)(&world.snapshot, &key, Timestamp::UNIX_EPOCH).writes;
        let [Write::Delete { propagation, resource_version: Some(_), .. }] = writes.as_slice() else {
            panic!("one deletion of what was seen: {writes:?}");
        };
        assert_eq!(*propagation, expected, "{owner:?} {child} {has_dependent}");
    }
    // Only owners in a circle stop blocking each other: a dependent that waits for its own dependents in turn.
    let held = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["example.com/hold"]}});
    for (dependent, blocks, circle) in [
        (going.clone(), &[("a", true)][..], true),
        (going.clone(), &[("a", true), ("gone", false)], true),
        (going.clone(), &[("a", false)], false),
        (going, &[("gone", true)], false),
        (held, &[("a", true)], false),
        (with("foregroundDeletion"), &[("a", true)], false),
    ] {
        let mut world = World::default();
        let leaving = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z",
            "finalizers": ["foregroundDeletion"]}});
        world.put(object("a", &[("grand", true)]));
        world.patch(&CONFIG_MAP, "ns", "a", leaving);
        world.put(object("child", blocks));
        world.put(object("grand", &[("child", true)]));
        world.patch(&CONFIG_MAP, "ns", "grand", dependent.clone());
        world.put(object("other", &[("child", true)]));
        let key = garbagecollector::key_for(&CONFIG_MAP, &ObjectKey::new("ns", "child"));
        let writes = (garbagecollector::CONTROLLER.reconcile)(&world.snapshot, &key, Timestamp::UNIX_EPOCH).writes;
        assert_eq!(writes.len(), if circle { 2 } else { 1 }, "{dependent} {blocks:?}: {writes:?}");
        let Some(Write::Delete { resource_version, .. }) = writes.last() else { panic!("{writes:?}") };
        assert_eq!(resource_version.is_none(), circle, "the write before it makes another version");
    }
}

/// A8: a namespace that stays loses nothing, whoever asks.
#[test]
fn a8_a_namespace_on_its_way_out_is_emptied_and_says_how_far_it_is() {
    let at = |second| Timestamp::from_second(second).unwrap();
    let key = ObjectKey::new("", "ns");
    let ask = |world: &World, second| (namespace::CONTROLLER.reconcile)(&world.snapshot, &key, at(second));
    let mut world = World::default();
    world.put(json!({"kind": "Namespace", "metadata": {"name": "ns"},
        "spec": {"finalizers": ["kubernetes", "example.com/more"]}}));
    for (name, finalizers) in [("a", json!(["example.com/hold"])), ("b", json!([])), ("c", Value::Null)] {
        world.put(object(name, &[]));
        world.patch(&CONFIG_MAP, "ns", name, json!({"metadata": {"finalizers": finalizers}}));
    }
    world.put(json!({"kind": "Lease", "metadata": {"namespace": "ns", "name": "l"}, "spec": {}}));
    world.put(json!({"kind": "PersistentVolume", "metadata": {"name": "ns"}, "spec": {}}));
    assert_eq!(ask(&world, 1).writes, [], "it stays");
    world.patch(
        &NAMESPACE,
        "",
        "ns",
        json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z",
        "finalizers": ["example.com/outer"]}}),
    );
    let decision = ask(&world, 1);
    assert_eq!(decision.waiting, [Waiting::DependentsRemain { count: 4 }]);
    let deleted = |writes: &[Write]| writes.iter().filter(|write| matches!(write, Write::Delete { .. })).count();
    assert_eq!(deleted(&decision.writes), 4, "all of it, and nothing that is no namespace's");
    let condition = |world: &World, type_: &str| {
        let all = world.get(&NAMESPACE, "", "ns")["status"]["conditions"].clone();
        let one = all.as_array().unwrap().iter().find(|one| one["type"] == type_).cloned().unwrap();
        let since: Timestamp = one["lastTransitionTime"].as_str().unwrap().parse().unwrap();
        format!("{} {}: {}", one["status"].as_str().unwrap(), since.as_second(), one["message"].as_str().unwrap())
    };
    world.run(&namespace::CONTROLLER, &key, at(1), usize::MAX);
    assert_eq!(world.get(&NAMESPACE, "", "ns")["status"]["phase"], "Terminating");
    assert_eq!(
        condition(&world, "NamespaceContentRemaining"),
        "True 1: Some resources are remaining: configmaps. has 3 resource instances, leases.coordination.k8s.io has 1 \
         resource instances"
    );
    let held = "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances";
    assert_eq!(condition(&world, "NamespaceFinalizersRemaining"), format!("True 1: {held}"));
    for type_ in [
        "NamespaceDeletionDiscoveryFailure",
        "NamespaceDeletionGroupVersionParsingFailure",
        "NamespaceDeletionContentFailure",
    ] {
        assert!(condition(&world, type_).starts_with("False 1: All "), "{type_}");
    }
    world.run(&namespace::CONTROLLER, &key, at(2), usize::MAX);
    let remaining = "Some resources are remaining: configmaps. has 1 resource instances";
    assert_eq!(condition(&world, "NamespaceContentRemaining"), format!("True 1: {remaining}"));
    assert_eq!((deleted(&ask(&world, 2).writes), ask(&world, 3).writes), (0, vec![]), "told once");
    world.patch(&CONFIG_MAP, "ns", "a", json!({"metadata": {"finalizers": null}}));
    world.run(&namespace::CONTROLLER, &key, at(3), usize::MAX);
    assert_eq!(condition(&world, "NamespaceContentRemaining"), "False 3: All content successfully removed");
    assert_eq!(
        condition(&world, "NamespaceFinalizersRemaining"),
        "False 3: All content-preserving finalizers finished"
    );
    assert_eq!(world.get(&NAMESPACE, "", "ns")["spec"]["finalizers"], json!(["example.com/more"]), "others stay");
    assert_eq!((ask(&world, 4).writes, ask(&world, 4).waiting), (vec![], vec![]));
    // A status that somebody took back is said again.
    world.patch(&NAMESPACE, "", "ns", json!({"status": {"phase": "Active"}}));
    assert_eq!(ask(&world, 4).writes.len(), 1);
}

/// What may not be deleted is said by the driver, which is refused; it is true as long as anything was not told to go.
#[test]
fn s12_a_namespace_says_what_of_it_may_not_be_deleted_until_all_of_it_is_going() {
    let at = Timestamp::from_second(9).unwrap();
    let key = ObjectKey::new("", "ns");
    let condition = |type_: &str, status: &str, message: &str| {
        json!({"type": type_, "status": status, "reason": "R", "message": message,
            "lastTransitionTime": "1970-01-01T00:00:01Z"})
    };
    let failure = condition(namespace::CONTENT_FAILURE, "True", "Failed to delete configmaps: not allowed");
    let mut world = World::default();
    world.put(json!({"kind": "Namespace", "spec": {"finalizers": ["kubernetes"]}, "status": {"conditions": [
            condition("NamespaceContentRemaining", "True", "Some resources are remaining: pods. has 9"), failure]},
        "metadata": {"name": "ns", "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["example.com/outer"]}}));
    world.put(object("a", &[]));
    world.patch(&CONFIG_MAP, "ns", "a", json!({"metadata": {"finalizers": []}}));
    let said = |world: &World| -> Vec<String> {
        let writes = (namespace::CONTROLLER.reconcile)(&world.snapshot, &key, at).writes;
        let is_status = |write: &&Write| matches!(write, Write::Patch { status: true, .. });
        let Some(Write::Patch { patch, .. }) = writes.iter().find(is_status) else { panic!("{writes:?}") };
        let all = patch["status"]["conditions"].as_array().unwrap().iter();
        all.map(|one| format!("{} {}", one["status"].as_str().unwrap(), one["message"].as_str().unwrap())).collect()
    };
    assert_eq!(
        said(&world)[2..],
        [
            "True Failed to delete configmaps: not allowed",
            "True Some resources are remaining: configmaps. has 1 resource instances",
            "False All content-preserving finalizers finished",
        ]
    );
    let leaving = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x.io/held"]}});
    world.patch(&CONFIG_MAP, "ns", "a", leaving);
    assert_eq!(
        said(&world)[2..],
        [
            "False All content successfully deleted, may be waiting on finalization",
            "True Some resources are remaining: configmaps. has 1 resource instances",
            "True Some content in the namespace has finalizers remaining: x.io/held in 1 resource instances",
        ]
    );
}

#[test]
fn of_several_owners_that_go_each_waits_for_those_that_block_it() {
    for (a, b, left) in [(true, false, "a"), (false, true, "b")] {
        let mut world = World::default();
        for owner in ["a", "b"] {
            world.put(object(owner, &[]));
        }
        world.put(object("child", &[("a", a), ("b", b)]));
        world.patch(&CONFIG_MAP, "ns", "child", json!({"metadata": {"finalizers": ["example.com/hold"]}}));
        for owner in ["a", "b"] {
            world.delete_with(&CONFIG_MAP, &ObjectKey::new("ns", owner), None, Propagation::Foreground);
        }
        assert_eq!(rest(&mut world), [left, "child"]);
    }
}

#[test]
fn an_owner_waits_for_those_that_block_it_and_keeps_what_else_holds_it() {
    let hold = || json!({"metadata": {"finalizers": ["example.com/hold"]}});
    for (blocks, expected) in [(true, vec!["a", "child"]), (false, vec!["child"])] {
        let mut world = World::default();
        world.put(object("a", &[]));
        world.put(object("child", &[("a", blocks)]));
        world.patch(&CONFIG_MAP, "ns", "child", hold());
        world.delete_with(&CONFIG_MAP, &ObjectKey::new("ns", "a"), None, Propagation::Foreground);
        assert_eq!(rest(&mut world), expected, "blocks: {blocks}");
        let key = garbagecollector::key_for(&CONFIG_MAP, &ObjectKey::new("ns", "child"));
        let again = (garbagecollector::CONTROLLER.reconcile)(&world.snapshot, &key, Timestamp::UNIX_EPOCH).writes;
        assert_eq!(again, [], "what is told to go is told once");
    }
    let mut world = World::default();
    world.put(object("a", &[]));
    world.patch(&CONFIG_MAP, "ns", "a", hold());
    world.delete_with(&CONFIG_MAP, &ObjectKey::new("ns", "a"), None, Propagation::Foreground);
    rest(&mut world);
    assert_eq!(world.get(&CONFIG_MAP, "ns", "a")["metadata"]["finalizers"], json!(["example.com/hold"]));
}

/// What somebody said of a dependent holds when it is collected with its owner.
#[test]
fn a_dependent_that_is_collected_orphans_or_awaits_its_own_as_it_was_told() {
    for (finalizer, expected) in [("orphan", vec!["grand"]), ("foregroundDeletion", vec!["child", "grand"])] {
        let mut world = World::default();
        for object in [object("a", &[]), object("child", &[("a", true)]), object("grand", &[("child", true)])] {
            world.put(object);
        }
        world.patch(&CONFIG_MAP, "ns", "child", json!({"metadata": {"finalizers": [finalizer]}}));
        world.patch(&CONFIG_MAP, "ns", "grand", json!({"metadata": {"finalizers": ["example.com/hold"]}}));
        world.delete(&CONFIG_MAP, "ns", "a", None);
        assert_eq!(rest(&mut world), expected, "{finalizer}");
        let leaving = !world.get(&CONFIG_MAP, "ns", "grand")["metadata"]["deletionTimestamp"].is_null();
        assert_eq!(leaving, finalizer != "orphan");
    }
}

#[test]
fn s12_more_dependents_than_one_decision_writes_are_all_orphaned() {
    let mut world = World::default();
    world.put(object("a", &[]));
    let count = garbagecollector::MAX_DEPENDENTS + 1;
    (0..count).for_each(|number| world.put(object(&format!("child-{number}"), &[("a", true)])));
    world.delete_with(&CONFIG_MAP, &ObjectKey::new("ns", "a"), None, Propagation::Orphan);
    let key = garbagecollector::key_for(&CONFIG_MAP, &ObjectKey::new("ns", "a"));
    let decision = (garbagecollector::CONTROLLER.reconcile)(&world.snapshot, &key, Timestamp::UNIX_EPOCH);
    assert_eq!((decision.writes.len(), decision.waiting), (count - 1, vec![Waiting::DependentsRemain { count }]));
    assert_eq!(rest(&mut world).len(), count, "the owner is gone");
    assert!(world.all(&CONFIG_MAP).all(|object| object["metadata"]["ownerReferences"].is_null()));
}

/// Conformance: "should not be blocked by dependency circle".
#[test]
fn owners_in_a_circle_are_collected() {
    let mut world = World::default();
    for object in [object("a", &[("c", true)]), object("b", &[("a", true)]), object("c", &[("b", true)])] {
        world.put(object);
    }
    assert_eq!(rest(&mut world), ["a", "b", "c"]);
    world.delete_with(&CONFIG_MAP, &ObjectKey::new("ns", "a"), None, Propagation::Foreground);
    assert_eq!(rest(&mut world), Vec::<String>::new());
}

#[test]
fn orphan_keeps_dependents_without_their_owner() {
    let mut world = family();
    world.delete_with(&CONFIG_MAP, &ObjectKey::new("ns", "a"), None, Propagation::Orphan);
    assert_eq!(rest(&mut world), ["b", "both", "child", "grand"]);
    assert!(world.get(&CONFIG_MAP, "ns", "child")["metadata"]["ownerReferences"].is_null());
}

#[test]
fn an_owner_that_nobody_can_look_up_counts_as_present() {
    let mut world = World::default();
    let mut custom = object("child", &[("x", true)]);
    custom["metadata"]["ownerReferences"][0]["apiVersion"] = json!("example.com/v1");
    world.put(custom);
    let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "x"});
    world.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "cluster-wide",
        "ownerReferences": [owner]}}));
    assert_eq!(rest(&mut world), ["child"]);
    assert!(!world.get(&NAMESPACE, "", "cluster-wide").is_null());
}

#[test]
fn a10_what_cannot_be_read_counts_as_present_and_is_noted_until_it_can() {
    let mut world = family();
    let snapshot = &mut world.snapshot;
    for bytes in [&b"{\"metadata\": {\"uid\": \"uid-a\", \"creationTimestamp\": \"yesterday\"}}"[..], b"\xff", b""] {
        snapshot.apply(&CONFIG_MAP, ObjectKey::new("ns", "a"), Some(bytes), 99);
        assert_eq!(snapshot.unreadable_of(&["configmaps"]), Some((&CONFIG_MAP, &ObjectKey::new("ns", "a"))));
        assert_eq!(snapshot.unreadable_of(&["pods"]), None);
        assert_eq!(snapshot.dependents("uid-a").count(), 2);
        let child = garbagecollector::key_for(&CONFIG_MAP, &ObjectKey::new("ns", "child"));
        let writes = (garbagecollector::CONTROLLER.reconcile)(snapshot, &child, Timestamp::UNIX_EPOCH).writes;
        assert_eq!(writes, [], "the driver does not even ask");
    }
    snapshot.apply(&CONFIG_MAP, ObjectKey::new("ns", "a"), None, 100);
    assert_eq!(snapshot.unreadable_of(&["*"]), None);
}

#[test]
fn a_namespace_goes_when_all_in_it_is_gone() {
    let controllers = &[namespace::CONTROLLER, serviceaccount::CONTROLLER];
    let mut world = World::default();
    let finalizers = json!({"finalizers": ["kubernetes"]});
    world
        .put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system"}, "spec": finalizers}));
    world.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ns"}, "spec": finalizers}));
    world.put(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "kube-system",
        "name": "kube-root-ca.crt"}, "data": {"ca.crt": "CA"}}));
    world.settle(controllers, Timestamp::UNIX_EPOCH);
    assert!(!world.get(&SERVICE_ACCOUNT, "ns", "default").is_null());
    assert_eq!(world.get(&CONFIG_MAP, "ns", "kube-root-ca.crt")["data"]["ca.crt"], "CA");

    world.put(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "ns", "name": "p"},
        "spec": {"nodeName": "n", "containers": []}}));
    world.put(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": "other", "name": "s"}}));
    // The finalizer stands in for the server, which holds a namespace while its spec.finalizers is not empty.
    world.patch(
        &NAMESPACE,
        "",
        "ns",
        json!({"metadata": {"finalizers": ["spec"], "deletionTimestamp": "2026-01-01T00:00:00Z"}}),
    );
    world.settle(controllers, Timestamp::UNIX_EPOCH);
    let left = world.get(&NAMESPACE, "", "ns");
    assert_eq!(
        (&left["status"]["phase"], &left["spec"]["finalizers"][0]),
        (&json!("Terminating"), &json!("kubernetes"))
    );
    let remaining = &left["status"]["conditions"][3];
    let all = "Some resources are remaining: configmaps. has 1 resource instances, pods. has 1 resource instances, \
        serviceaccounts. has 1 resource instances";
    assert_eq!(remaining["message"], all);
    assert!(!world.get(&POD, "ns", "p")["metadata"]["deletionTimestamp"].is_null());
    assert!(!world.get(&CONFIG_MAP, "ns", "kube-root-ca.crt").is_null(), "what a pod uses stays until it is gone");

    world.remove(&POD, &ObjectKey::new("ns", "p"));
    world.settle(controllers, Timestamp::UNIX_EPOCH);
    assert!(world.get(&SERVICE_ACCOUNT, "ns", "default").is_null(), "and it is not made again");
    assert_eq!(world.get(&NAMESPACE, "", "ns")["spec"]["finalizers"], json!([]));
    assert!(!world.get(&SECRET, "other", "s").is_null());
}
