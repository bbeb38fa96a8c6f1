//! What changes and decisions say about promises by themselves.

use mainstay_api::kinds::{NAMESPACE, PERSISTENT_VOLUME, PERSISTENT_VOLUME_CLAIM, POD};
use mainstay_api::{Kind, ObjectKey};
use serde_json::{Value, json};

use super::*;
use crate::world::World;

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().unwrap()
}

/// A set of three with claims, and its namespace.
fn world(policy: &str) -> World {
    let mut world = World::default();
    world.put(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "default" } }));
    world.put(json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": { "namespace": "default", "name": "web", "uid": "set" },
        "spec": {
            "replicas": 3, "serviceName": "web", "podManagementPolicy": policy,
            "selector": { "matchLabels": { "app": "web" } },
            "template": { "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [] } },
            "volumeClaimTemplates": [{ "metadata": { "name": "data" }, "spec": {} }],
        },
    }));
    world
}

/// The pod of an ordinal as the controller makes it, ready.
fn pod(world: &World, ordinal: i64) -> Value {
    let set = world.snapshot.stateful_sets.get(&ObjectKey::new("default", "web")).unwrap().clone();
    let mut pod = identity::pod(&set, ordinal, &set.spec.template, "web-1");
    let ready = json!({ "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" });
    pod["status"] = json!({ "phase": "Running", "conditions": [ready] });
    pod["metadata"]["uid"] = json!(format!("pod-{ordinal}"));
    pod["metadata"]["creationTimestamp"] = json!("2025-12-31T00:00:00Z");
    pod
}

fn claim(name: &str, uid: &str, mode: &str, volume: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": { "namespace": "default", "name": name, "uid": uid, "finalizers": ["x"] },
        "spec": { "accessModes": [mode], "volumeName": volume },
        "status": { "phase": if volume.is_empty() { "Pending" } else { "Bound" } },
    })
}

fn volume(name: &str, claim: &str, uid: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": name, "uid": name },
        "spec": { "claimRef": { "namespace": "default", "name": claim, "uid": uid } },
    })
}

/// What is reported of what happens.
fn told(world: &mut World, act: impl FnOnce(&mut World)) -> Vec<&'static str> {
    world.changes.clear();
    act(world);
    let mut told = Vec::new();
    for (before, change) in std::mem::take(&mut world.changes) {
        of_change(&before, &world.snapshot, &change, &mut |promise, _| told.push(promise));
    }
    told
}

/// What is reported of a decision about the set.
fn decided(world: &World, controller: &str, write: Write) -> Vec<&'static str> {
    let decision = Decision { writes: vec![write], ..Decision::default() };
    let mut told = Vec::new();
    let key = ObjectKey::new("default", "web");
    of_decision(&world.snapshot, controller, &key, &decision, now(), &mut |promise, _| told.push(promise));
    told
}

fn delete(kind: &Kind, name: &str) -> Write {
    Write::Delete {
        kind: kind.clone(),
        key: ObjectKey::new("default", name),
        uid: String::new(),
        resource_version: None,
        grace_period: None,
        propagation: crate::Propagation::Background,
    }
}

#[test]
fn a2_a8_an_older_state_and_another_uid_are_reported() {
    let mut world = world("OrderedReady");
    let first = claim("a", "one", "ReadWriteOnce", "");
    assert!(told(&mut world, |world| world.put(first.clone())).is_empty());
    assert!(told(&mut world, |world| world.put(first.clone())).is_empty());
    assert_eq!(told(&mut world, |world| world.put(claim("a", "two", "ReadWriteOnce", ""))), ["A8"]);
    let before = world.snapshot.clone();
    let mut old = claim("a", "two", "ReadWriteOnce", "");
    old["metadata"]["resourceVersion"] = json!("1");
    let (kind, key) = (&PERSISTENT_VOLUME_CLAIM, ObjectKey::new("default", "a"));
    let change = world.snapshot.apply(kind, key, Some(old.to_string().as_bytes()), 9);
    let mut told = Vec::new();
    of_change(&before, &world.snapshot, &change, &mut |promise, _| told.push(promise));
    assert_eq!(told, ["A2"]);
    // What was deleted in between may come back as another.
    world.remove(kind, &ObjectKey::new("default", "a"));
    world.changes.clear();
    assert!(self::told(&mut world, |world| world.put(first)).is_empty());
}

#[test]
fn s3_a_new_pod_that_is_not_what_its_ordinal_says_is_reported() {
    let mut world = world("OrderedReady");
    let good = pod(&world, 0);
    assert!(told(&mut world, |world| world.put(good.clone())).is_empty());
    for (path, name) in [("/spec/hostname", "web-1"), ("/metadata/labels/apps.kubernetes.io~1pod-index", "web-2")] {
        let mut bad = pod(&world, name[4..].parse().unwrap());
        *bad.pointer_mut(path).unwrap() = json!("another");
        assert_eq!(told(&mut world, |world| world.put(bad.clone())), ["S3"], "{path}");
        assert!(told(&mut world, |world| world.put(bad)).is_empty(), "once, when it is made");
    }
    let mut bad = pod(&world, 3);
    bad["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] = json!("data-web-0");
    assert_eq!(told(&mut world, |world| world.put(bad)), ["S3"]);
}

/// S3: of pods of this very set, with all of its claims, and of nobody else's.
#[test]
fn s3_only_a_sets_own_pods_are_measured_by_it() {
    let mut world = world("OrderedReady");
    let templates =
        json!([{ "metadata": { "name": "data" }, "spec": {} }, { "metadata": { "name": "log" }, "spec": {} }]);
    let set = &mainstay_api::kinds::STATEFUL_SET;
    world.patch(set, "default", "web", json!({ "spec": { "volumeClaimTemplates": templates } }));
    let claim = |volume: usize, name: &'static str| {
        move |pod: &mut Value| pod["spec"]["volumes"][volume]["persistentVolumeClaim"]["claimName"] = json!(name)
    };
    let owner = |field: &'static str, value: &'static str| {
        move |pod: &mut Value| pod["metadata"]["ownerReferences"][0][field] = json!(value)
    };
    type Over = Box<dyn Fn(&mut Value)>;
    let cases: [(&str, Vec<Over>, usize); 7] = [
        ("as it shall be", vec![], 0),
        ("the first claim", vec![Box::new(claim(0, "data-web-9"))], 1),
        ("the second claim", vec![Box::new(claim(1, "log-web-9"))], 1),
        ("both, crosswise", vec![Box::new(claim(0, "log-web-0")), Box::new(claim(1, "data-web-0"))], 1),
        ("a set of that name before", vec![Box::new(claim(0, "x")), Box::new(owner("uid", "before"))], 0),
        ("another kind's", vec![Box::new(claim(0, "x")), Box::new(owner("kind", "CloneSet"))], 0),
        (
            "the order of its volumes",
            vec![Box::new(|pod: &mut Value| {
                pod["spec"]["volumes"].as_array_mut().unwrap().reverse();
            })],
            0,
        ),
    ];
    for (story, overs, count) in cases {
        let mut made = pod(&world, 0);
        overs.iter().for_each(|over| over(&mut made));
        assert_eq!(told(&mut world, |world| world.put(made)), vec!["S3"; count], "{story}");
        world.remove(&POD, &ObjectKey::new("default", "web-0"));
    }
}

/// S4, S5: what counts as up, where a set begins, and whose pods they are.
#[test]
fn s4_s5_a_set_may_begin_anywhere_and_wait_for_time() {
    let set = statefulset::CONTROLLER.name;
    let of_kind = &mainstay_api::kinds::STATEFUL_SET;
    let make = |world: &World, ordinal| Write::Create { kind: POD.clone(), object: pod(world, ordinal) };
    for (story, over, expected) in [
        ("up", json!({}), &[][..]),
        ("it does not run", json!({ "status": { "phase": "Pending" } }), &["S4"]),
        (
            "it goes",
            json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:59:00Z", "finalizers": ["x"] } }),
            &["S4"],
        ),
        (
            "not Ready for long enough",
            json!({ "status": { "conditions": [{ "type": "Ready", "status": "True",
            "lastTransitionTime": "2026-01-01T00:59:31Z" }] } }),
            &["S4"],
        ),
        (
            "long enough",
            json!({ "status": { "conditions": [{ "type": "Ready", "status": "True",
            "lastTransitionTime": "2026-01-01T00:59:30Z" }] } }),
            &[],
        ),
    ] {
        let mut world = world("OrderedReady");
        world.patch(of_kind, "default", "web", json!({ "spec": { "minReadySeconds": 30 } }));
        let mut first = pod(&world, 0);
        crate::world::merge(&mut first, over);
        world.put(first);
        assert_eq!(decided(&world, set, make(&world, 1)), expected, "{story}");
    }
    let mut world = world("OrderedReady");
    world.patch(of_kind, "default", "web", json!({ "spec": { "ordinals": { "start": 5 }, "replicas": 2 } }));
    assert!(decided(&world, set, make(&world, 5)).is_empty(), "the first");
    assert_eq!(decided(&world, set, make(&world, 6)), ["S4"]);
    assert!(decided(&world, "somebody", make(&world, 6)).is_empty());
    let other = Write::Create { kind: PERSISTENT_VOLUME_CLAIM.clone(), object: pod(&world, 6) };
    assert!(decided(&world, set, other).is_empty(), "a claim is no pod");
    for ordinal in [1, 2, 4, 5, 6, 7, 8] {
        let made = pod(&world, ordinal);
        world.put(made);
    }
    let goes = |world: &World, name: &str| decided(world, set, delete(&POD, name));
    assert_eq!([goes(&world, "web-7"), goes(&world, "web-8"), goes(&world, "web-6")], [vec!["S5"], vec![], vec![]]);
    assert_eq!([goes(&world, "web-1"), goes(&world, "web-2")], [vec!["S5"], vec![]], "below the first, too");
    assert!(goes(&world, "web-4").is_empty(), "the one above stays");
    assert!(decided(&world, set, delete(&PERSISTENT_VOLUME_CLAIM, "web-7")).is_empty(), "a claim is no pod");
    let theirs = json!({ "metadata": { "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "StatefulSet",
        "name": "web", "uid": "before", "controller": true }] } });
    world.patch(&POD, "default", "web-8", theirs);
    assert!(goes(&world, "web-7").is_empty(), "the one above is another set's");
}

#[test]
fn s4_s5_the_order_of_a_set_is_looked_after() {
    let set = statefulset::CONTROLLER.name;
    for (policy, expected) in [("OrderedReady", &["S4"][..]), ("Parallel", &[])] {
        let mut world = world(policy);
        let make = |world: &World, ordinal| Write::Create { kind: POD.clone(), object: pod(world, ordinal) };
        assert!(decided(&world, set, make(&world, 0)).is_empty());
        assert_eq!(decided(&world, set, make(&world, 1)), expected);
        let mut first = pod(&world, 0);
        world.put(first.clone());
        assert!(decided(&world, set, make(&world, 1)).is_empty());
        assert_eq!(decided(&world, set, make(&world, 2)), expected);
        first["status"]["conditions"][0]["status"] = json!("False");
        world.put(first);
        assert_eq!(decided(&world, set, make(&world, 1)), expected);
    }
    let mut world = world("OrderedReady");
    for ordinal in 0..5 {
        let made = pod(&world, ordinal);
        world.put(made);
    }
    assert!(decided(&world, set, delete(&POD, "web-4")).is_empty());
    assert_eq!(decided(&world, set, delete(&POD, "web-3")), ["S5"]);
    assert!(decided(&world, set, delete(&POD, "web-1")).is_empty(), "a rolling update");
    assert!(decided(&world, "podgc", delete(&POD, "web-3")).is_empty());
    world.remove(&POD, &ObjectKey::new("default", "web-4"));
    assert!(decided(&world, set, delete(&POD, "web-3")).is_empty());
}

#[test]
fn s8_a_claim_that_a_controller_deletes_has_an_owner_that_is_leaving() {
    let mut world = world("OrderedReady");
    let mut own = claim("data-web-0", "one", "ReadWriteOnce", "");
    world.put(own.clone());
    let gc = "garbage-collector-controller";
    assert_eq!(decided(&world, gc, delete(&PERSISTENT_VOLUME_CLAIM, "data-web-0")), ["S8"]);
    let owner = |uid: &str| json!([{ "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": uid }]);
    own["metadata"]["ownerReferences"] = owner("set");
    world.put(own.clone());
    assert_eq!(decided(&world, gc, delete(&PERSISTENT_VOLUME_CLAIM, "data-web-0")), ["S8"]);
    own["metadata"]["ownerReferences"] = owner("an older one");
    world.put(own.clone());
    assert!(decided(&world, gc, delete(&PERSISTENT_VOLUME_CLAIM, "data-web-0")).is_empty());
    // Of several owners one that goes, or of a kind that is not known any more, is enough; a pod by that name is a pod.
    let known = json!({ "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "set" });
    let owned = |more: Value| {
        let mut own = own.clone();
        own["metadata"]["ownerReferences"] = json!([known, more]);
        own
    };
    let of = |version: &str, kind: &str| json!({ "apiVersion": version, "kind": kind, "name": "web", "uid": "set" });
    for (more, expected) in [
        (of("example.com/v1", "Backup"), &[][..]),
        (of("v1", "Pod"), &[]),
        (of("v1", "Namespace"), &[]),
        (json!({ "apiVersion": "v1", "kind": "Namespace", "name": "default", "uid": "ns" }), &["S8"]),
    ] {
        world.patch(&NAMESPACE, "", "default", json!({ "metadata": { "uid": "ns" } }));
        world.put(owned(more.clone()));
        assert_eq!(decided(&world, gc, delete(&PERSISTENT_VOLUME_CLAIM, "data-web-0")), expected, "{more}");
    }
    own["metadata"]["ownerReferences"] = owner("set");
    world.put(own.clone());
    assert!(decided(&world, gc, delete(&POD, "data-web-0")).is_empty(), "a pod is no claim");
    let going = json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x"] } });
    let mut later = world.clone();
    later.patch(&mainstay_api::kinds::STATEFUL_SET, "default", "web", going);
    assert!(decided(&later, gc, delete(&PERSISTENT_VOLUME_CLAIM, "data-web-0")).is_empty(), "its owner goes");
    own["metadata"]["ownerReferences"] = json!([]);
    world.put(own);
    world.patch(
        &NAMESPACE,
        "",
        "default",
        json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" ,
        "finalizers": ["x"] } }),
    );
    assert!(decided(&world, "namespace-controller", delete(&PERSISTENT_VOLUME_CLAIM, "data-web-0")).is_empty());
}

#[test]
fn v1_a_volume_of_two_claims_is_reported() {
    let mut world = world("OrderedReady");
    world.put(volume("v", "a", "one"));
    assert!(told(&mut world, |world| world.put(claim("a", "one", "ReadWriteOnce", "v"))).is_empty());
    // Who names a volume and is not bound has none.
    let mut wants = claim("b", "two", "ReadWriteOnce", "v");
    wants["status"]["phase"] = json!("Pending");
    assert!(told(&mut world, |world| world.put(wants)).is_empty());
    assert_eq!(told(&mut world, |world| world.put(claim("b", "two", "ReadWriteOnce", "v"))), ["V1", "V1"]);
    assert_eq!(told(&mut world, |world| world.put(volume("v", "b", "two"))), ["V1"]);
    // Said once, and again only where it gets another volume.
    assert!(told(&mut world, |world| world.put(claim("b", "two", "ReadWriteOnce", "v"))).is_empty());
    world.put(volume("w", "a", "one"));
    assert_eq!(told(&mut world, |world| world.put(claim("b", "two", "ReadWriteOnce", "w"))), ["V1"]);
    world.remove(&PERSISTENT_VOLUME_CLAIM, &ObjectKey::new("default", "b"));
    // Who names a volume, and is not bound to it, has no part in it.
    let mut wants = claim("c", "three", "ReadWriteOnce", "u");
    wants["status"]["phase"] = json!("Pending");
    world.put(wants);
    world.put(volume("u", "d", "four"));
    assert!(told(&mut world, |world| world.put(claim("d", "four", "ReadWriteOnce", "u"))).is_empty());
    // A volume that changes hands: only where who had it is there, has it, and stays.
    let given = |over: Value, to: &str| {
        let mut world = self::world("OrderedReady");
        let mut had = claim("e", "five", "ReadWriteOnce", "x");
        crate::world::merge(&mut had, over);
        world.put(had);
        world.put(volume("x", "e", "five"));
        let object = volume("x", "e", to);
        told(&mut world, |world| world.put(object))
    };
    assert_eq!(given(json!({}), "six"), ["V1"]);
    assert!(given(json!({}), "five").is_empty(), "it does not");
    assert!(given(json!({ "metadata": { "uid": "seven" } }), "seven").is_empty(), "the claim was made again");
    assert!(given(json!({ "spec": { "volumeName": "other" } }), "six").is_empty());
    assert!(given(json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } }), "six").is_empty());
    assert!(given(json!({}), "").is_empty(), "it is nobody's");
    world.put(volume("free", "gone", "three"));
    assert!(told(&mut world, |world| world.put(volume("free", "c", "four"))).is_empty());
    assert!(told(&mut world, |world| world.remove(&PERSISTENT_VOLUME, &ObjectKey::new("", "free"))).is_empty());
}

#[test]
fn v2_a_claim_that_goes_under_a_pod_is_reported() {
    let mut world = world("OrderedReady");
    let key = ObjectKey::new("default", "data-web-0");
    let mut user = pod(&world, 0);
    user["spec"]["nodeName"] = json!("n1");
    world.put(user.clone());
    let mut leaving = claim("data-web-0", "one", "ReadWriteOnce", "v");
    leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    world.put(leaving.clone());
    assert_eq!(told(&mut world, |world| world.remove(&PERSISTENT_VOLUME_CLAIM, &key)), ["V2"]);
    for (field, value) in [
        ("phase", json!("Succeeded")),
        ("created", json!("2026-01-01T00:30:00Z")),
        ("created", json!("2026-01-01T00:00:00Z")),
    ] {
        let mut other = user.clone();
        match field {
            "phase" => other["status"]["phase"] = value,
            _ => other["metadata"]["creationTimestamp"] = value,
        }
        world.put(other);
        world.put(leaving.clone());
        assert!(told(&mut world, |world| world.remove(&PERSISTENT_VOLUME_CLAIM, &key)).is_empty(), "{field}");
    }
}

#[test]
fn v9_a_claim_that_is_shared_is_reported() {
    for (mode, here, there) in
        [("ReadWriteOncePod", &["V9"][..], &["V9"][..]), ("ReadWriteOnce", &[], &["V9"]), ("ReadWriteMany", &[], &[])]
    {
        for (node, expected) in [("n1", here), ("n2", there)] {
            let mut world = world("OrderedReady");
            world.put(claim("data-web-0", "one", mode, "v"));
            let mut first = pod(&world, 0);
            first["spec"]["nodeName"] = json!("n1");
            world.put(first.clone());
            let mut second = first.clone();
            second["metadata"]["name"] = json!("guest");
            second["metadata"]["uid"] = json!("guest");
            second["metadata"]["ownerReferences"] = json!([]);
            second["spec"]["nodeName"] = json!("");
            world.put(second.clone());
            second["spec"]["nodeName"] = json!(node);
            let bind = |world: &mut World| world.put(second.clone());
            assert_eq!(told(&mut world, bind), expected, "{mode} on {node}");
            assert!(told(&mut world, bind).is_empty(), "once, when it is bound");
        }
    }
}
