//! What becomes of a volume: by its claim, its policy and who made it.

use super::pending::with;
use super::*;
use crate::controllers::persistentvolume::asked;
use crate::decision::Write;

/// `v`, which belongs to the claim `data` of uid `u`.
fn held_volume(policy: &str, over: Value) -> Value {
    let reference = json!({"namespace": "default", "name": "data", "uid": "u"});
    with(static_volume("v", "5Gi", policy), with(json!({"spec": {"claimRef": reference}}), over))
}

fn of_uid(uid: &str, over: Value) -> Value {
    with(with(claim("data", Some(""), "ReadWriteOnce"), json!({"metadata": {"uid": uid}})), over)
}

/// The volume's controller alone has decided all that there is to decide.
fn decided(objects: impl IntoIterator<Item = Value>) -> World {
    let mut world = World::default();
    objects.into_iter().for_each(|object| world.put(object));
    world.settle(&[persistentvolume::CONTROLLER], Timestamp::UNIX_EPOCH);
    world
}

/// Its phase and whose it is.
fn shown(world: &World) -> String {
    let volume = world.get(&kinds::PERSISTENT_VOLUME, "", "v");
    let reference = &volume["spec"]["claimRef"];
    let whose = [&reference["name"], &reference["uid"]].map(|part| part.as_str().unwrap_or("-"));
    format!("{} {}", phase_of(world, "v"), whose.join(" "))
}

#[test]
fn v1_v6_a_volume_is_its_claims_by_uid_and_free_again_only_if_it_was_never_used() {
    let named = |name: &str| json!({"spec": {"volumeName": name}});
    let noted = |name: &str| json!({"metadata": {"annotations": {name: "yes"}}});
    let was_bound = |over: Value| with(over, json!({"status": {"phase": "Bound"}}));
    let table = [
        ("its claim", json!({}), Some(of_uid("u", named("v"))), "Bound data u"),
        ("a claim made again", json!({}), Some(of_uid("x", named("v"))), "Released data u"),
        ("no claim", json!({}), None, "Released data u"),
        ("reserved, nobody's yet", json!({"spec": {"claimRef": {"uid": ""}}}), None, "Available data "),
        ("the claim's side is written next", noted(BOUND_BY_CONTROLLER), Some(of_uid("u", json!({}))), "gone data u"),
        ("the same for a user's", json!({}), Some(of_uid("u", json!({}))), "gone data u"),
        (
            "reserved by uid and too small",
            json!({"spec": {"capacity": {"storage": "1Mi"}}}),
            Some(of_uid("u", json!({}))),
            "Available data u",
        ),
        ("its claim chose another", json!({}), Some(of_uid("u", named("w"))), "Available data -"),
        (
            "the same, and it was too small anyway",
            json!({"spec": {"capacity": {"storage": "1Mi"}}}),
            Some(of_uid("u", named("w"))),
            "Available data -",
        ),
        ("the same, bound here", noted(BOUND_BY_CONTROLLER), Some(of_uid("u", named("w"))), "Available - -"),
        ("the same, made for it", noted(PROVISIONED_BY), Some(of_uid("u", named("w"))), "gone - -"),
        ("the same, once bound", was_bound(json!({})), Some(of_uid("u", named("w"))), "Released data u"),
        ("the same, made for it", was_bound(noted(PROVISIONED_BY)), Some(of_uid("u", named("w"))), "Released data u"),
    ];
    for (case, over, claim, expected) in table {
        let mut volume = held_volume("Retain", over.clone());
        volume["metadata"]["finalizers"] = json!([]);
        let world = decided(claim.into_iter().chain([volume]));
        assert_eq!(shown(&world), expected, "{case} {over}");
        let mismatch = world.events.iter().filter(|event| event.starts_with("VolumeMismatch: ")).count();
        assert_eq!(mismatch, usize::from(case.ends_with("too small")), "{case}");
        let rest =
            (persistentvolume::CONTROLLER.reconcile)(&world.snapshot, &ObjectKey::new("", "v"), Timestamp::UNIX_EPOCH);
        assert_eq!((rest.writes.len(), rest.events.len()), (0, 0), "{case}: once");
    }
    // A volume that was made for a claim, which then got another: the claim's change is all there is to see.
    let mut volume = held_volume("Delete", noted(PROVISIONED_BY));
    volume["metadata"] = json!({"name": "pvc-u", "annotations": {PROVISIONED_BY: BUILT_IN[0]}});
    let mut world = decided([of_uid("u", json!({})), volume]);
    assert_eq!(world.all(&kinds::PERSISTENT_VOLUME).count(), 1);
    world.patch(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "data", named("w"));
    world.settle(&[persistentvolume::CONTROLLER], Timestamp::UNIX_EPOCH);
    assert_eq!(world.all(&kinds::PERSISTENT_VOLUME).count(), 0);
}

#[test]
fn v3_delete_is_for_whoever_made_the_volume() {
    let made_by = |name: &str| json!({"metadata": {"annotations": {PROVISIONED_BY: name}}});
    let failed = "VolumeFailedDelete: error getting deleter volume plugin for volume \"v\": no deletable volume plugin \
        matched";
    let table = [
        (made_by(BUILT_IN[0]), "Released", true, vec![]),
        (made_by("x.io/driver"), "Released", false, vec![]),
        (json!({}), "Failed", false, vec![failed.to_owned()]),
    ];
    for (over, phase, leaves, events) in table {
        let mut world = World::default();
        world.put(held_volume("Delete", over.clone()));
        let key = ObjectKey::new("", "v");
        world.run(&persistentvolume::CONTROLLER, &key, Timestamp::UNIX_EPOCH, usize::MAX);
        let volume = world.get(&kinds::PERSISTENT_VOLUME, "", "v");
        assert_eq!(phase_of(&world, "v"), phase, "{over}");
        assert_eq!(!volume["metadata"]["deletionTimestamp"].is_null(), leaves, "{over}: at once");
        world.settle(&[persistentvolume::CONTROLLER], Timestamp::UNIX_EPOCH);
        let rest = (persistentvolume::CONTROLLER.reconcile)(&world.snapshot, &key, Timestamp::UNIX_EPOCH);
        assert_eq!((world.events, rest.events.len()), (events, 0), "{over}");
    }
}

/// A8: what was seen to be released is deleted as it was seen, unless this decision itself writes it before.
#[test]
fn a8_v3_a_volume_is_deleted_in_the_version_that_was_seen() {
    let made = json!({"metadata": {"annotations": {PROVISIONED_BY: BUILT_IN[0]}}});
    for (phase, writes) in [("Released", 1), ("Bound", 2)] {
        let mut world = World::default();
        world.put(held_volume("Delete", with(made.clone(), json!({"status": {"phase": phase}}))));
        let key = ObjectKey::new("", "v");
        let decision = (persistentvolume::CONTROLLER.reconcile)(&world.snapshot, &key, Timestamp::UNIX_EPOCH);
        assert_eq!(decision.writes.len(), writes, "{phase}");
        let Some(Write::Delete { uid, resource_version, .. }) = decision.writes.last() else {
            panic!("a deletion: {decision:?}")
        };
        assert_eq!((uid.is_empty(), resource_version.is_some()), (false, phase == "Released"), "{phase}");
    }
}

#[test]
fn v3_one_node_empties_a_volume_for_one_claim() {
    let notes = |notes: Value| json!({"metadata": {"annotations": notes}});
    let ready = |status: &str| json!({"status": {"conditions": [{"type": "Ready", "status": status}]}});
    let table = [
        (json!({}), "True", "u n1"),
        (json!({}), "False", "u n2"),
        // Whoever was asked goes on, as long as it can.
        (json!({RECYCLE: "u", RECYCLE_ON: "n2"}), "True", "u n2"),
        (json!({RECYCLE: "u", RECYCLE_ON: "n1"}), "False", "u n2"),
        (json!({RECYCLE: "u", RECYCLE_ON: "gone"}), "True", "u n1"),
        // For an earlier claim: that is no answer for this one.
        (json!({RECYCLE: "x", RECYCLE_ON: "n1"}), "True", "u n1"),
        (json!({RECYCLE: "x", RECYCLE_ON: "n1", RECYCLED: "x"}), "True", "u n1"),
        (json!({RECYCLED: "u"}), "True", "- -"),
        (json!({RECYCLE: "u", RECYCLE_ON: "n1", RECYCLED: "u"}), "True", "- -"),
    ];
    for (before, first, expected) in table {
        let nodes = [node("n1", ready(first)), node("n2", ready("True"))];
        let world = decided(nodes.into_iter().chain([held_volume("Recycle", notes(before.clone()))]));
        let volume = world.get(&kinds::PERSISTENT_VOLUME, "", "v");
        let shown = [RECYCLE, RECYCLE_ON].map(|name| volume["metadata"]["annotations"][name].as_str().unwrap_or("-"));
        let free = expected == "- -";
        assert_eq!(shown.join(" "), expected, "{before} {first}");
        assert_eq!(volume["spec"]["claimRef"].is_null(), free, "{before}");
        assert_eq!(world.events.iter().any(|event| event == "VolumeRecycled: Volume recycled"), free, "{before}");
    }
}

/// S12: a volume that is to be emptied is among those that a node's coming wakes, whatever its phase says.
#[test]
fn s12_a_volume_that_waits_for_a_node_is_found() {
    for (policy, phase, asked, waits) in [
        ("Recycle", "Released", false, true),
        ("Recycle", "Failed", true, true),
        ("Recycle", "Failed", false, false),
        ("Recycle", "Bound", false, false),
        ("Retain", "Released", false, false),
    ] {
        let mut world = World::default();
        let notes = if asked { json!({RECYCLE: "u"}) } else { json!({}) };
        let over = json!({"metadata": {"annotations": notes}, "status": {"phase": phase}});
        world.put(held_volume(policy, over));
        let found = world.snapshot.indexes.count(crate::snapshot::Index::VolumesWaiting, "", "");
        assert_eq!(found == 1, waits, "{policy} {phase} {asked}");
    }
}

#[test]
fn v3_a_node_empties_only_what_it_was_asked_to_for_the_claim_that_is_gone() {
    let notes = |notes: Value| json!({"metadata": {"annotations": notes}});
    let table = [
        (json!({}), "n1", Some("u")),
        (json!({}), "n2", None),
        (notes(json!({RECYCLE: ""})), "n1", None),
        (notes(json!({RECYCLE: "x"})), "n1", None),
        (notes(json!({RECYCLED: "u"})), "n1", None),
        (notes(json!({RECYCLED: "x"})), "n1", Some("u")),
        (json!({"spec": {"claimRef": {"uid": "x"}}}), "n1", None),
        // Reserved for nobody's uid, on nobody's behalf.
        (with(notes(json!({RECYCLE: ""})), json!({"spec": {"claimRef": {"uid": ""}}})), "n1", None),
        (json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}}), "n1", None),
        (json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}), "n1", None),
    ];
    for (over, node, expected) in table {
        let asked_for = notes(json!({RECYCLE: "u", RECYCLE_ON: "n1"}));
        let volume = with(held_volume("Recycle", asked_for), over.clone());
        assert_eq!(asked(&serde_json::from_value(volume).unwrap(), node), expected, "{over} {node}");
    }
}

/// V2: by uid, from both sides of a binding that may be half written; whoever goes last lets the volume go.
#[test]
fn v2_v6_a_volume_is_protected_by_the_claim_that_holds_it_and_no_other() {
    let leaving = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    for (name, uid, names_it, is_held) in
        [("v", "u", true, true), ("pvc-u", "u", false, true), ("v", "x", true, false), ("v", "x", false, false)]
    {
        let mut world = World::default();
        let named = if names_it { json!({"spec": {"volumeName": name}}) } else { json!({}) };
        world.put(of_uid(uid, named));
        world.put(with(held_volume("Retain", leaving.clone()), json!({"metadata": {"name": name}})));
        world.settle(&[pvprotection::CONTROLLER], Timestamp::UNIX_EPOCH);
        let is_there = |world: &World| !world.get(&kinds::PERSISTENT_VOLUME, "", name).is_null();
        assert_eq!(is_there(&world), is_held, "{name} {uid} {names_it}");
        world.remove(&kinds::PERSISTENT_VOLUME_CLAIM, &ObjectKey::new("default", "data"));
        world.settle(&[pvprotection::CONTROLLER], Timestamp::UNIX_EPOCH);
        assert!(!is_there(&world), "{name} {uid} {names_it}");
    }
    // What holds something that is told to go is said; what is not told to go gets the finalizer back.
    let mut world = with_claim("Immediate", "Retain");
    world.put(user("web-0", "data"));
    settle(&mut world);
    world.delete(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "data", None);
    let decide = |world: &World| {
        (pvcprotection::CONTROLLER.reconcile)(
            &world.snapshot,
            &ObjectKey::new("default", "data"),
            Timestamp::UNIX_EPOCH,
        )
    };
    assert_eq!((decide(&world).waiting, decide(&world).writes), (vec![crate::decision::Waiting::InUse], vec![]));
    let mut world = with_claim("Immediate", "Retain");
    world.patch(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "data", json!({"metadata": {"finalizers": ["x.io/f"]}}));
    settle(&mut world);
    let finalizers = &world.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "data")["metadata"]["finalizers"];
    assert_eq!(*finalizers, json!(["x.io/f", PVC_PROTECTION]));
}

/// On its way out: the node has something to do only for Delete, and what others hold it by stays.
#[test]
fn v3_a_volume_that_goes_waits_for_its_node_only_where_its_bytes_go_too() {
    let leaving = |finalizers: &[&str]| {
        json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z",
        "finalizers": finalizers}})
    };
    let table = [
        ("Retain", vec![LOCAL_PATH_FINALIZER, "x.io/f"], vec!["x.io/f"]),
        ("Recycle", vec![nfs::FINALIZER, "x.io/f"], vec!["x.io/f"]),
        ("Delete", vec![LOCAL_PATH_FINALIZER, "x.io/f"], vec![LOCAL_PATH_FINALIZER, "x.io/f"]),
        ("Retain", vec![LOCAL_PATH_FINALIZER, PV_PROTECTION], vec![LOCAL_PATH_FINALIZER, PV_PROTECTION]),
        ("Retain", vec!["x.io/f"], vec!["x.io/f"]),
    ];
    for (policy, finalizers, expected) in table {
        let mut world = World::default();
        world.put(held_volume(policy, leaving(&finalizers)));
        let writes = world.run(&persistentvolume::CONTROLLER, &ObjectKey::new("", "v"), Timestamp::UNIX_EPOCH, 9);
        let left = world.get(&kinds::PERSISTENT_VOLUME, "", "v")["metadata"]["finalizers"].clone();
        assert_eq!((left, writes), (json!(expected), usize::from(finalizers != expected)), "{policy} {finalizers:?}");
    }
}
