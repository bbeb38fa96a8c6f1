//! Where a pod's claims let it be, in upstream's words, and what placing it writes. Three nodes, `n1` to `n3`; of equal
//! ones the first is taken.

use super::*;
use crate::volume::{BUILT_IN, HOSTNAME, SELECTED_NODE, VOLUME_ROOT};

pub(super) fn class(provisioner: &str, mode: &str) -> Value {
    json!({"kind": "StorageClass", "metadata": {"name": "c"}, "provisioner": provisioner, "volumeBindingMode": mode})
}

pub(super) fn delayed() -> Value {
    class(BUILT_IN[0], "WaitForFirstConsumer")
}

pub(super) fn claim(name: &str, over: Value) -> Value {
    let uid = format!("uid-{name}");
    let metadata = json!({"namespace": "default", "name": name, "uid": uid});
    let mut claim = json!({"kind": "PersistentVolumeClaim", "metadata": metadata,
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "c",
            "resources": {"requests": {"storage": "1Gi"}}}, "status": {"phase": "Pending"}});
    merge(&mut claim, over);
    claim
}

pub(super) fn volume(name: &str, over: Value) -> Value {
    let mut volume = json!({"kind": "PersistentVolume", "metadata": {"name": name}, "spec": {
        "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce", "ReadWriteMany", "ReadOnlyMany",
            "ReadWriteOncePod"], "storageClassName": "c", "nfs": {"server": "192.0.2.1", "path": "/v"}},
        "status": {"phase": "Available"}});
    merge(&mut volume, over);
    volume
}

pub(super) fn held_by(claim: &str) -> Value {
    json!({"spec": {"claimRef": {"namespace": "default", "name": claim, "uid": format!("uid-{claim}")}}})
}

pub(super) fn on(hostname: &str) -> Value {
    json!({"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
        {"key": HOSTNAME, "operator": "In", "values": [hostname]}]}]}}}})
}

pub(super) fn both(mut one: Value, other: Value) -> Value {
    merge(&mut one, other);
    one
}

/// A claim and its volume, both sides written.
pub(super) fn bound(over: Value) -> Vec<Value> {
    vec![
        claim("data", json!({"spec": {"volumeName": "v"}, "status": {"phase": "Bound"}})),
        volume("v", both(held_by("data"), over)),
    ]
}

fn nodes() -> World {
    let mut world = World::default();
    ["n1", "n2", "n3"].into_iter().for_each(|name| world.put(node(name, json!({}))));
    world
}

pub(super) fn uses(claims: &[&str]) -> Value {
    let volumes: Vec<Value> =
        claims.iter().map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": name}})).collect();
    json!({"spec": {"volumes": volumes}})
}

/// Where a pod with these claims goes, or the reason that all nodes have in common.
fn goes(objects: &[Value], over: Value) -> (String, World) {
    let mut world = nodes();
    objects.iter().for_each(|object| world.put(object.clone()));
    world.put(pod("p", both(json!({"metadata": {"uid": "uid-p"}}), over)));
    let at = placed(&mut world, "p");
    let reason = at.strip_prefix("0/3 nodes are available: ").unwrap_or(&at);
    (reason.strip_prefix("3 ").unwrap_or(reason).trim_end_matches('.').to_owned(), world)
}

#[test]
fn claims_that_no_node_can_help_are_named_in_upstreams_words() {
    let scratch =
        json!({"spec": {"volumes": [{"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}}]}});
    let owned = |uid: &str| {
        json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid,
            "controller": true}]}})
    };
    let data = || uses(&["data"]);
    let deleted = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x.io/y"]}});
    let lost = json!({"spec": {"volumeName": "v"}, "status": {"phase": "Lost"}});
    let unbound = "pod has unbound immediate PersistentVolumeClaims";
    let table = [
        (vec![], data(), "persistentvolumeclaim \"data\" not found"),
        (
            vec![],
            scratch.clone(),
            "waiting for ephemeral volume controller to create the persistentvolumeclaim \"p-scratch\"",
        ),
        (
            vec![delayed(), claim("p-scratch", owned("other"))],
            scratch.clone(),
            "PVC \"default/p-scratch\" was not created for pod (pod is not owner)",
        ),
        (vec![delayed(), claim("p-scratch", owned("uid-p"))], scratch, "n1"),
        (vec![delayed(), claim("data", deleted)], data(), "persistentvolumeclaim \"data\" is being deleted"),
        (
            vec![delayed(), claim("data", lost)],
            data(),
            "persistentvolumeclaim \"data\" bound to non-existent persistentvolume \"v\"",
        ),
        (vec![class(BUILT_IN[0], "Immediate"), claim("data", json!({}))], data(), unbound),
        (vec![claim("data", json!({}))], data(), unbound),
        (vec![claim("data", json!({"spec": {"storageClassName": ""}}))], data(), unbound),
        (vec![delayed(), claim("data", json!({"spec": {"volumeName": "v"}}))], data(), unbound),
        (vec![delayed(), claim("data", json!({"spec": {"volumeName": "v"}})), volume("v", json!({}))], data(), unbound),
        (vec![delayed(), claim("data", json!({})), volume("v", held_by("data"))], data(), "n1"),
        (
            vec![delayed(), claim("data", json!({})), class(BUILT_IN[0], "Immediate"), claim("more", json!({}))],
            uses(&["data", "more"]),
            unbound,
        ),
    ];
    for (objects, over, expected) in table {
        assert_eq!(goes(&objects, over.clone()).0, expected, "{objects:?} {over}");
    }
}

#[test]
fn v5_a_pod_goes_where_its_volumes_are() {
    const AFFINITY: &str = "node(s) didn't match PersistentVolume's node affinity";
    const NONE: &str = "node(s) didn't find available persistent volumes to bind";
    let bare = || class("kubernetes.io/no-provisioner", "WaitForFirstConsumer");
    let data = || claim("data", json!({}));
    let selected = |node: &str| claim("data", json!({"metadata": {"annotations": {(SELECTED_NODE): node}}}));
    let table = [
        (bound(json!({})), "n1"),
        (bound(on("n2")), "n2"),
        (bound(on("n4")), AFFINITY),
        (vec![bare(), data()], NONE),
        (vec![bare(), data(), volume("v", on("n3"))], "n3"),
        (vec![bare(), data(), volume("v", on("n4"))], NONE),
        (vec![bare(), data(), volume("v", held_by("other"))], NONE),
        (vec![bare(), data(), volume("v", json!({"status": {"phase": "Released"}}))], NONE),
        // Its own, since a decision was cut: no other will do.
        (vec![delayed(), data(), volume("a", json!({})), volume("v", both(held_by("data"), on("n3")))], "n3"),
        (vec![delayed(), data(), volume("a", json!({})), volume("v", both(held_by("data"), on("n4")))], AFFINITY),
        // Made where the pod goes; not while the last one of that name is on its way out.
        (vec![delayed(), data()], "n1"),
        (vec![delayed(), data(), volume("pvc-uid-data", held_by("other"))], NONE),
        // Somebody else makes it, where it was said already.
        (vec![class("x.io/csi", "WaitForFirstConsumer"), selected("n4")], NONE),
    ];
    for (objects, expected) in table {
        assert_eq!(goes(&objects, uses(&["data"])).0, expected, "{objects:?}");
    }
    // A hostname that is not the node's name is found all the same, and one that only looks like it is not.
    let mut world = nodes();
    world.put(node("n2", json!({"metadata": {"labels": {(HOSTNAME): "n3"}}})));
    world.put(node("n3", json!({"metadata": {"labels": {(HOSTNAME): "elsewhere"}}})));
    bound(on("n3")).into_iter().for_each(|object| world.put(object));
    world.put(pod("p", uses(&["data"])));
    assert_eq!(placed(&mut world, "p"), "n2");
}

/// The pod waits for the volume, and its claim says for whom and where.
#[test]
fn an_external_provisioner_is_told_where_and_the_pod_waits() {
    let objects = [class("x.io/csi", "WaitForFirstConsumer"), claim("data", json!({}))];
    let (at, mut world) = goes(&objects, uses(&["data"]));
    assert_eq!(at, "(no condition)");
    let selected = |world: &World| {
        let claim = world.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "data");
        claim["metadata"]["annotations"][SELECTED_NODE].clone()
    };
    assert_eq!(selected(&world), "n1");
    assert_eq!(world.run(&CONTROLLER, &ObjectKey::new("default", "p"), Timestamp::UNIX_EPOCH, 9), 0, "once");
    // Of two claims the other is bound nowhere before this one is there.
    let mut other = claim("mine", json!({}));
    other["spec"]["storageClassName"] = json!("own");
    let mut own = delayed();
    own["metadata"]["name"] = json!("own");
    let (_, pair) = goes(&[objects[0].clone(), objects[1].clone(), own, other], uses(&["data", "mine"]));
    assert!(pair.get(&kinds::POD, "default", "p")["spec"]["nodeName"].is_null());
    // Its maker has made it there.
    world.patch(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "data", json!({"spec": {"volumeName": "v"}}));
    world.put(volume("v", both(held_by("data"), on("n1"))));
    assert_eq!(placed(&mut world, "p"), "n1");
}

#[test]
fn v9_a_claim_is_used_where_its_access_modes_permit() {
    const ELSEWHERE: &str = "1 node(s) unavailable due to a ReadWriteOnce volume that is in use on another node";
    const ONE_POD: &str =
        "1 node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";
    let running = json!({"spec": {"nodeName": "n2"}, "status": {"phase": "Running"}});
    let over = json!({"spec": {"nodeName": "n2"}, "status": {"phase": "Succeeded"}});
    let table = [
        ("ReadWriteOnce", running.clone(), "n1", ELSEWHERE),
        ("ReadWriteOnce", running.clone(), "n2", "n2"),
        ("ReadWriteOnce", over.clone(), "n1", "n1"),
        ("ReadWriteOnce", json!({}), "n1", "n1"),
        ("ReadWriteMany", running.clone(), "n1", "n1"),
        ("ReadOnlyMany", running.clone(), "n1", "n1"),
        ("ReadWriteOncePod", running.clone(), "n2", ONE_POD),
        ("ReadWriteOncePod", running, "n1", ONE_POD),
        ("ReadWriteOncePod", over, "n2", "n2"),
        ("ReadWriteOncePod", json!({}), "n1", "n1"),
    ];
    for (mode, other, node, expected) in table {
        let mut objects = bound(json!({}));
        objects[0]["spec"]["accessModes"] = json!([mode]);
        objects.push(pod("other", both(uses(&["data"]), other.clone())));
        let here = json!({"spec": {"nodeSelector": {(HOSTNAME): node}}});
        let (at, world) = goes(&objects, both(uses(&["data"]), here));
        let at = at.split(", ").next().unwrap().to_owned();
        assert_eq!(at, expected, "{mode} {node} {other}");
        // What could be anywhere is marked with each placement, so that two from old views exclude each other.
        let mark = world.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "data")["metadata"]["annotations"].clone();
        let marked = at == node && matches!(mode, "ReadWriteOnce" | "ReadWriteOncePod");
        let expected = if marked { json!({"mainstay.io/placed-with": format!("{node}/uid-p")}) } else { json!(null) };
        assert_eq!(mark, expected, "{mode} {node}");
    }
    // A volume that is on one node needs no mark for that, and one for its only pod all the same.
    for (mode, marked) in [("ReadWriteOnce", false), ("ReadWriteOncePod", true)] {
        let mut objects = bound(on("n2"));
        objects[0]["spec"]["accessModes"] = json!([mode]);
        let (at, world) = goes(&objects, uses(&["data"]));
        assert_eq!(at, "n2");
        let claim = world.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "data");
        assert_eq!(claim["metadata"]["annotations"].is_object(), marked, "{mode}");
    }
}

/// V10: what two claims of one pod take, they take together.
#[test]
fn v1_v10_two_claims_of_a_pod_never_share_a_volume_or_its_room() {
    let bare = class("kubernetes.io/no-provisioner", "WaitForFirstConsumer");
    let two = [bare, claim("a", json!({})), claim("b", json!({}))];
    let one = [&two[..], &[volume("v", json!({}))]].concat();
    let (at, _) = goes(&one, uses(&["a", "b"]));
    assert_eq!(at, "node(s) didn't find available persistent volumes to bind");
    let (at, world) = goes(&[&one[..], &[volume("w", json!({}))]].concat(), uses(&["a", "b"]));
    assert_eq!(at, "n1");
    let named =
        |claim: &str| world.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", claim)["spec"]["volumeName"].clone();
    assert_eq!([named("a"), named("b")], ["v", "w"]);
    let roomy = |gib: i64| {
        let bytes = (gib << 30).to_string();
        let annotations = json!({(VOLUME_ROOT): "/v", "mainstay.io/volume-capacity": bytes});
        node("n3", json!({"metadata": {"annotations": annotations}}))
    };
    let none = |name: &str| node(name, json!({"metadata": {"annotations": {(VOLUME_ROOT): null}}}));
    for (gib, expected) in [(2, "n3"), (1, "1 node(s) did not have enough free storage")] {
        let objects = [none("n1"), none("n2"), roomy(gib), delayed(), claim("a", json!({})), claim("b", json!({}))];
        let (at, _) = goes(&objects, uses(&["a", "b"]));
        assert_eq!(at.split(", ").next().unwrap(), expected, "{gib}");
    }
    // A class that promises without looking at the room has it anyway.
    let mut free = delayed();
    free["parameters"] = json!({"mainstay.io/overcommit": "true"});
    let objects = [none("n1"), none("n2"), roomy(1), free, claim("a", json!({})), claim("b", json!({}))];
    assert_eq!(goes(&objects, uses(&["a", "b"])).0, "n3");
}
