//! Tests of what ends objects: garbage collection and namespace deletion, in a small world.

use jiff::Timestamp;
use mainstay_api::ObjectKey;
use mainstay_api::kinds::{CONFIG_MAP, NAMESPACE, POD, SECRET, SERVICE_ACCOUNT};
use serde_json::{Value, json};

use super::{garbagecollector, namespace, serviceaccount};
use crate::decision::{Controller, Propagation, Waiting};
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
