//! What a claim may be filled from, and what is being copied: each fact by itself.

use mainstay_api::Kind;
use mainstay_api::snapshots::VolumeSnapshot;

use super::pending::with;
use super::source::{COPY_OF, Source};
use super::*;

const DELETED: &str = "2026-01-01T00:00:00Z";

fn leaving() -> Value {
    json!({"metadata": {"deletionTimestamp": DELETED, "finalizers": ["x.io/held"]}})
}

/// `data` and its volume `pv`, made on n1; the snapshot `s` of it and its content `c`; all as a copy needs them.
fn parts() -> [Value; 4] {
    let reference = json!({"namespace": "default", "name": "data", "uid": "u"});
    [
        json!({"kind": "PersistentVolumeClaim", "metadata": {"namespace": "default", "name": "data", "uid": "u"},
            "spec": {"volumeName": "pv"}}),
        json!({"kind": "PersistentVolume", "metadata": {"name": "pv", "annotations":
                {(PROVISIONED_BY): BUILT_IN[0], (SIZE): SIZE_IMAGE, (MADE_ON): "n1"}},
            "spec": {"claimRef": reference, "capacity": {"storage": "1Gi"}}}),
        json!({"kind": "VolumeSnapshot", "metadata": {"namespace": "default", "name": "s", "uid": "uid-s"},
            "spec": {"source": {"persistentVolumeClaimName": "data"}},
            "status": {"boundVolumeSnapshotContentName": "c", "readyToUse": true}}),
        json!({"kind": "VolumeSnapshotContent", "metadata": {"name": "c"}, "spec": {"driver": BUILT_IN[1],
                "deletionPolicy": "Retain", "source": {"snapshotHandle": "n1/snapshot-1"},
                "volumeSnapshotRef": {"namespace": "default", "name": "s", "uid": "uid-s"}},
            "status": {"readyToUse": true, "restoreSize": 1_i64 << 30}}),
    ]
}

/// [`parts`] with one of them changed.
fn world_with(changed: usize, over: &Value) -> World {
    let mut world = World::default();
    for (index, part) in parts().into_iter().enumerate() {
        world.put(if index == changed { with(part, over.clone()) } else { part });
    }
    world
}

fn filled_from(kind: &str, over: Value) -> PersistentVolumeClaim {
    let (group, name) = if kind == "VolumeSnapshot" { ("snapshot.storage.k8s.io", "s") } else { ("", "data") };
    let claim = json!({"metadata": {"namespace": "default", "name": "new", "creationTimestamp": DELETED},
        "spec": {"resources": {"requests": {"storage": "1Gi"}},
            "dataSource": {"apiGroup": group, "kind": kind, "name": name}}});
    serde_json::from_value(with(claim, over)).unwrap()
}

const CLAIM: usize = 0;
const VOLUME: usize = 1;
const SNAPSHOT: usize = 2;
const CONTENT: usize = 3;

/// V4: a claim that asks for data gets it, or waits in words; it never starts empty.
#[test]
fn v4_a_claim_is_filled_from_what_is_whole_and_stays() {
    let later = json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:01Z"}});
    let smaller = json!({"spec": {"resources": {"requests": {"storage": "1023Mi"}}}});
    let in_namespace = |namespace: &str| {
        let from = json!({"kind": "PersistentVolumeClaim", "name": "data", "namespace": namespace});
        json!({"spec": {"dataSourceRef": from}})
    };
    let unready = json!({"status": {"readyToUse": null}});
    let (nothing, of_claim, of_snapshot) = (json!({}), "PersistentVolumeClaim", "VolumeSnapshot");
    let table = [
        (of_claim, CLAIM, nothing.clone(), nothing.clone(), "n1/pv"),
        (of_claim, CLAIM, nothing.clone(), in_namespace("default"), "n1/pv"),
        (of_claim, CLAIM, nothing.clone(), in_namespace(""), "n1/pv"),
        (of_claim, CLAIM, nothing.clone(), in_namespace("other"), "accessing other/data of PersistentVolumeClaim"),
        (of_claim, CLAIM, leaving(), nothing.clone(), "the PVC data is currently being deleted"),
        (of_claim, CLAIM, json!({"spec": {"volumeName": "gone"}}), nothing.clone(), "is not yet bound to a PV"),
        (of_claim, VOLUME, json!({"spec": {"claimRef": {"uid": "x"}}}), nothing.clone(), "is not yet bound to a PV"),
        (
            of_claim,
            VOLUME,
            json!({"metadata": {"annotations": {(PROVISIONED_BY): "x.io/csi"}}}),
            nothing.clone(),
            "was not made by this provisioner",
        ),
        (of_claim, VOLUME, json!({"metadata": {"annotations": {(SIZE): "none"}}}), nothing.clone(), "plain directory"),
        (
            of_claim,
            VOLUME,
            json!({"metadata": {"annotations": {(MADE_ON): ""}}}),
            nothing.clone(),
            "no pod has mounted",
        ),
        (of_claim, CLAIM, nothing.clone(), smaller.clone(), "must be greater than or equal in size"),
        (of_snapshot, CLAIM, nothing.clone(), nothing.clone(), "n1/snapshot-1"),
        (of_snapshot, SNAPSHOT, leaving(), nothing.clone(), "n1/snapshot-1"),
        (of_snapshot, SNAPSHOT, leaving(), later, "snapshot s is currently being deleted"),
        (of_snapshot, SNAPSHOT, unready.clone(), nothing.clone(), "snapshot s is not Ready"),
        (of_snapshot, CONTENT, unready, nothing.clone(), "snapshot s is not Ready"),
        (
            of_snapshot,
            SNAPSHOT,
            json!({"status": {"boundVolumeSnapshotContentName": null}}),
            nothing.clone(),
            "snapshot s not bound",
        ),
        (
            of_snapshot,
            CONTENT,
            json!({"spec": {"volumeSnapshotRef": {"uid": "x"}}}),
            nothing.clone(),
            "snapshotContent c not bound to snapshot s",
        ),
        (of_snapshot, CONTENT, leaving(), nothing.clone(), "snapshotContent c is currently being deleted"),
        (of_snapshot, CONTENT, json!({"spec": {"driver": "x.io/csi"}}), nothing.clone(), "was made by driver"),
        (of_snapshot, CLAIM, nothing.clone(), smaller, "is less than the size"),
        (
            of_snapshot,
            CONTENT,
            json!({"spec": {"source": {"snapshotHandle": "n1/../pv"}}}),
            nothing,
            "snapshot handle not found",
        ),
    ];
    table.into_iter().for_each(is_filled);
}

/// V4: a clone has its source's volume mode, and what a snapshot fills, unless that allows another one. A mode that is
/// not said is Filesystem.
#[test]
fn v4_a_claim_is_of_the_volume_mode_of_what_fills_it() {
    let (nothing, of_claim, of_snapshot) = (json!({}), "PersistentVolumeClaim", "VolumeSnapshot");
    let block = json!({"spec": {"volumeMode": "Block"}});
    let of_block = json!({"spec": {"sourceVolumeMode": "Block"}});
    let allowed = |value: &str| json!({"metadata": {"annotations": {(source::ALLOW_MODE_CHANGE): value}}});
    let table = [
        (of_claim, CLAIM, block.clone(), block.clone(), "n1/pv"),
        (of_claim, CLAIM, json!({"spec": {"volumeMode": ""}}), nothing.clone(), "n1/pv"),
        (of_claim, CLAIM, nothing.clone(), json!({"spec": {"volumeMode": "Filesystem"}}), "n1/pv"),
        (of_claim, CLAIM, block.clone(), nothing.clone(), "Source is Block, but new PVC requested Filesystem"),
        (of_claim, CLAIM, nothing.clone(), block.clone(), "Source is Filesystem, but new PVC requested Block"),
        (of_snapshot, CONTENT, of_block.clone(), block.clone(), "n1/snapshot-1"),
        (of_snapshot, CONTENT, of_block.clone(), nothing.clone(), "modifies the mode of the source volume"),
        (of_snapshot, CONTENT, with(of_block.clone(), allowed("true")), nothing.clone(), "n1/snapshot-1"),
        (of_snapshot, CONTENT, with(of_block.clone(), allowed("True")), nothing.clone(), "n1/snapshot-1"),
        (of_snapshot, CONTENT, with(of_block.clone(), allowed("yes")), nothing.clone(), "modifies the mode"),
        (of_snapshot, CONTENT, with(of_block, allowed("false")), nothing.clone(), "modifies the mode"),
        (of_snapshot, CONTENT, nothing.clone(), block, "n1/snapshot-1"),
    ];
    table.into_iter().for_each(is_filled);
}

/// A claim that is filled by a kind of source, something of it changed: from what, or why not.
fn is_filled((kind, changed, over, of_new, expected): (&str, usize, Value, Value, &str)) {
    let world = world_with(changed, &over);
    let claim = filled_from(kind, of_new.clone());
    let story = format!("{kind} {over} {of_new}");
    match source::of(&world.snapshot, &claim) {
        Ok(Some(Source { node, folder })) => assert_eq!(format!("{node}/{folder}"), expected, "{story}"),
        Ok(None) => panic!("{story}: it would start empty"),
        Err(why) => assert!(why.contains(expected), "{story}: {why}"),
    }
}

#[test]
fn a_snapshot_that_has_no_uid_is_nobodys() {
    let [_, _, snapshot, content] = parts();
    let mut snapshot: VolumeSnapshot = serde_json::from_value(snapshot).unwrap();
    let mut content: mainstay_api::snapshots::VolumeSnapshotContent = serde_json::from_value(content).unwrap();
    assert!(source::is_content_of(&content, &snapshot));
    (snapshot.metadata.uid, content.spec.volume_snapshot_ref.uid) = (None, None);
    assert!(!source::is_content_of(&content, &snapshot));
}

/// V2: a claim is being copied as long as a clone or a copy of it has been asked for and is not whole.
#[test]
fn v2_a_claim_is_copied_while_something_reads_its_volume() {
    let clone = |over: Value| {
        let clone = json!({"kind": "PersistentVolume", "metadata": {"name": "clone", "annotations": {(COPY_OF): "pv"}},
            "spec": {}});
        with(clone, over)
    };
    let of_group = json!({"kind": "VolumeGroupSnapshotContent", "metadata": {"name": "g"}, "spec": {
        "driver": BUILT_IN[0], "deletionPolicy": "Delete", "source": {"volumeHandles": ["pv"]},
        "volumeGroupSnapshotRef": {"name": "g"}}});
    // The content that is made for the snapshot, without a copy yet.
    let own = json!({"kind": "VolumeSnapshotContent", "metadata": {"name": "snapcontent-uid-s"},
        "spec": {"driver": BUILT_IN[0], "deletionPolicy": "Delete", "source": {"volumeHandle": "pv"},
            "volumeSnapshotRef": {"namespace": "default", "name": "s", "uid": "uid-s"}}});
    let made = with(own.clone(), json!({"status": {"snapshotHandle": "n1/snapshot-2"}}));
    let (nothing, unready) = (json!({}), json!({"status": {"readyToUse": false}}));
    let theirs = json!({"spec": {"claimRef": {"uid": "x"}}});
    let table = [
        (CLAIM, nothing.clone(), vec![], false),
        (CLAIM, nothing.clone(), vec![clone(json!({}))], true),
        (VOLUME, theirs.clone(), vec![clone(json!({}))], false),
        (CLAIM, nothing.clone(), vec![clone(json!({"metadata": {"annotations": {(MADE_ON): "n1"}}}))], false),
        (CLAIM, nothing.clone(), vec![clone(leaving())], false),
        (CLAIM, nothing.clone(), vec![clone(json!({"metadata": {"annotations": {(COPY_OF): "other"}}}))], false),
        (CLAIM, nothing.clone(), vec![of_group.clone()], true),
        (VOLUME, theirs, vec![of_group.clone()], false),
        (CLAIM, nothing.clone(), vec![with(of_group, leaving())], false),
        (SNAPSHOT, unready.clone(), vec![], false),
        (SNAPSHOT, unready.clone(), vec![own.clone()], true),
        (SNAPSHOT, unready.clone(), vec![made], false),
        (SNAPSHOT, with(unready, leaving()), vec![own.clone()], false),
        (CLAIM, nothing, vec![own], false),
    ];
    for (changed, over, more, expected) in table {
        let mut world = world_with(changed, &over);
        let story = format!("{changed} {over} {more:?}");
        more.into_iter().for_each(|object| world.put(object));
        let is = |name: &str| source::is_being_copied(&world.snapshot, &ObjectKey::new("default", name));
        assert_eq!((is("data"), is("nobody")), (expected, false), "{story}");
    }
    let volume = |over: Value| serde_json::from_value::<PersistentVolume>(clone(over)).unwrap();
    assert!(source::is_copying(&volume(json!({})), "pv") && !source::is_copying(&volume(json!({})), "other"));
    assert!(!source::is_copying(&volume(leaving()), "pv"));
}

/// V1: what is written when a volume and a claim are bound says who chose whom: what was chosen here is free again.
#[test]
fn v1_a_binding_says_who_chose() {
    let volume = |reference: Value| -> PersistentVolume {
        serde_json::from_value(json!({"metadata": {"name": "v"}, "spec": {"claimRef": reference}})).unwrap()
    };
    let claim = |over: Value| -> PersistentVolumeClaim {
        let claim = json!({"metadata": {"namespace": "default", "name": "data", "uid": "u"}, "spec": {}});
        serde_json::from_value(with(claim, over)).unwrap()
    };
    let (yes, named) = (json!({"spec": {"volumeName": "v"}}), json!({"namespace": "default", "name": "data"}));
    let completed = |over: Value| with(json!({"metadata": {"annotations": {BIND_COMPLETED: "yes"}}}), over);
    let chosen = json!({BIND_COMPLETED: "yes", BOUND_BY_CONTROLLER: "yes"});
    for (reference, of_claim, on_volume, on_claim) in [
        (Value::Null, json!({}), Some(json!({BOUND_BY_CONTROLLER: "yes"})), Some(chosen.clone())),
        (named.clone(), json!({}), Some(Value::Null), Some(chosen)),
        (named.clone(), yes.clone(), Some(Value::Null), Some(json!({BIND_COMPLETED: "yes"}))),
        (with(named, json!({"uid": "u"})), completed(yes), None, None),
    ] {
        let writes = bind(&volume(reference.clone()), &claim(of_claim.clone()));
        let noted = |kind: &Kind| {
            writes.iter().find_map(|write| match write {
                Write::Patch { kind: of, patch, status: false, .. } if of == kind => {
                    Some(patch["metadata"]["annotations"].clone())
                }
                _ => None,
            })
        };
        let story = format!("{reference} {of_claim}");
        assert_eq!(noted(&kinds::PERSISTENT_VOLUME), on_volume, "{story}");
        assert_eq!(noted(&kinds::PERSISTENT_VOLUME_CLAIM), on_claim, "{story}");
    }
}

/// V1: of the volumes that suit, the smallest; with a node, of those that it reaches.
#[test]
fn v1_the_smallest_volume_that_suits_is_taken() {
    let volume = |name: &str, size: &str, over: Value| {
        let volume = json!({"kind": "PersistentVolume", "metadata": {"name": name, "labels": {"tier": name}},
            "spec": {"capacity": {"storage": size}}, "status": {"phase": "Available"}});
        with(volume, over)
    };
    let on = |hostname: &str| {
        let expression = json!({"key": HOSTNAME, "operator": "In", "values": [hostname]});
        json!({"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}}}})
    };
    let tier = |tier: &str| json!({"spec": {"selector": {"matchLabels": {"tier": tier}}}});
    let (nothing, on_n1) = (json!({}), Some("n1"));
    for (volumes, over, hostname, expected) in [
        (vec![("a", "3Gi", nothing.clone()), ("b", "2Gi", nothing.clone())], nothing.clone(), None, Some("b")),
        (vec![("a", "3Gi", nothing.clone()), ("b", "2Gi", nothing.clone())], tier("a"), None, Some("a")),
        (vec![("a", "3Gi", nothing.clone()), ("b", "2Gi", nothing.clone())], tier("c"), None, None),
        (vec![("a", "3Gi", nothing.clone()), ("b", "2Gi", leaving())], nothing.clone(), None, Some("a")),
        (vec![("a", "3Gi", nothing.clone()), ("b", "2Gi", on("n1"))], nothing.clone(), on_n1, Some("b")),
        (vec![("a", "2Gi", nothing.clone()), ("b", "3Gi", on("n1"))], nothing.clone(), on_n1, Some("a")),
        (vec![("a", "3Gi", nothing.clone()), ("b", "2Gi", on("n2"))], nothing.clone(), on_n1, Some("a")),
        (vec![("b", "2Gi", nothing.clone()), ("a", "2Gi", on("n1"))], nothing.clone(), on_n1, Some("a")),
        (vec![("a", "2Gi", nothing.clone()), ("b", "3Gi", on("n1"))], tier("b"), on_n1, Some("b")),
        (vec![("a", "2Gi", on("n1"))], nothing, Some(""), None),
    ] {
        let mut world = World::default();
        let story = format!("{volumes:?} {over} {hostname:?}");
        volumes.into_iter().for_each(|(name, size, over)| world.put(volume(name, size, over)));
        let claim = json!({"metadata": {"namespace": "default", "name": "data", "uid": "u"},
            "spec": {"resources": {"requests": {"storage": "1Gi"}}}});
        let claim: PersistentVolumeClaim = serde_json::from_value(with(claim, over)).unwrap();
        let node: Option<Node> = hostname.map(|name| {
            serde_json::from_value(json!({"metadata": {"name": name, "labels": {HOSTNAME: name}}})).unwrap()
        });
        let found = matching(&world.snapshot, &claim, node.as_ref(), &BTreeSet::new());
        assert_eq!(found.and_then(|volume| volume.metadata.name.as_deref()), expected, "{story}");
    }
}

#[test]
fn what_a_claim_says_and_waits_for() {
    let claim = |over: Value| -> PersistentVolumeClaim {
        let claim = json!({"metadata": {"namespace": "default", "name": "data", "uid": "u"},
            "spec": {"accessModes": ["ReadWriteOnce", "ReadOnlyMany"]}});
        serde_json::from_value(with(claim, over)).unwrap()
    };
    let plain = claim(json!({}));
    let asks = ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany"].map(|mode| asks_for(&plain, mode));
    assert_eq!(asks, [true, true, false]);
    let step = |step: &str| json!({"status": {"allocatedResourceStatuses": {"storage": step}}});
    for (over, held_up) in [
        (json!({}), false),
        (json!({"status": {"phase": "Bound"}}), false),
        (step("NodeResizePending"), false),
        (step("ControllerResizeInfeasible"), true),
        (json!({"status": {"modifyVolumeStatus": {"status": "Infeasible"}}}), true),
    ] {
        assert_eq!(status::is_held_up(&claim(over.clone())), held_up, "{over}");
    }
    let said = claim(json!({"status": {"conditions": [{"type": "A", "status": "True", "message": "one"},
        {"type": "B", "status": "True", "message": "two"}]}}));
    let says =
        [("A", "one"), ("B", "two"), ("A", "two"), ("C", "one")].map(|(type_, text)| status::says(&said, type_, text));
    assert_eq!(says, [true, true, false, false]);
    // A copy's node says when it is made; what starts empty is there at once.
    let told = |claim: &PersistentVolumeClaim| -> Vec<_> {
        provisioned_events(claim).iter().map(|event| format!("{}: {}", event.reason, event.message)).collect()
    };
    let provisioning = "Provisioning: Provisioning volume for claim \"default/data\"";
    assert_eq!(told(&plain), [provisioning, "ProvisioningSucceeded: Successfully provisioned volume pvc-u"]);
    assert_eq!(
        told(&claim(json!({"spec": {"dataSource": {"kind": "PersistentVolumeClaim", "name": "x"}}}))),
        [provisioning]
    );
    // Who uses a claim is on a node.
    let mut world = World::default();
    for (name, node) in [("placed", json!("n1")), ("waits", json!(null)), ("empty", json!(""))] {
        world.put(with(user(name, "data"), json!({"spec": {"nodeName": node}})));
    }
    let users = users_of(&world.snapshot, &ObjectKey::new("default", "data"));
    assert_eq!(users.into_iter().map(|key| &*key.name).collect::<Vec<_>>(), ["placed"]);
}

/// The conditions of a claim: other people's stay, a time stays with what was true before, and what is over goes.
#[test]
fn a_claims_status_says_what_is_true_and_is_written_only_where_it_is_not() {
    let volume: PersistentVolume = serde_json::from_value(json!({"metadata": {"name": "v"},
        "spec": {"capacity": {"storage": "2Gi"}}}))
    .unwrap();
    let since = "2026-01-01T00:00:00Z";
    let condition = |type_: &str, status: &str| {
        let time = json!(since);
        json!({"type": type_, "status": status, "message": "m", "lastTransitionTime": time})
    };
    let claim = |conditions: Value| -> PersistentVolumeClaim {
        serde_json::from_value(json!({"metadata": {"namespace": "default", "name": "data"}, "spec": {},
            "status": {"phase": "Bound", "capacity": {"storage": "2Gi"}, "conditions": conditions}}))
        .unwrap()
    };
    let now = "2026-02-02T00:00:00Z".parse::<Timestamp>().unwrap();
    let no_room = growth::Step::NoRoom("m".to_owned());
    let written =
        |claim: &PersistentVolumeClaim, step: &growth::Step| match status::write(&volume, claim, step, None, now) {
            None => "nothing".to_owned(),
            Some(Write::Patch { patch, .. }) => {
                let conditions = patch["status"]["conditions"].as_array().cloned().unwrap_or_default();
                let shown = conditions.iter().map(|one| {
                    let is_old = one["lastTransitionTime"] == since;
                    format!("{} {}", one["type"].as_str().unwrap(), if is_old { "before" } else { "now" })
                });
                shown.collect::<Vec<_>>().join(", ")
            }
            Some(other) => format!("{other:?}"),
        };
    let done = growth::Step::Done;
    assert_eq!(written(&claim(json!([])), &done), "nothing");
    assert_eq!(written(&claim(json!([condition("Theirs", "True")])), &done), "nothing");
    let both = json!([condition("Theirs", "True"), condition("ControllerResizeError", "True")]);
    assert_eq!(written(&claim(both.clone()), &done), "Theirs before");
    let steps = [
        (json!([condition("Theirs", "True")]), "Theirs before, ControllerResizeError now"),
        (
            json!([condition("Theirs", "True"), condition("ControllerResizeError", "False")]),
            "Theirs before, ControllerResizeError now",
        ),
        (json!([condition("Resizing", "True")]), "ControllerResizeError now"),
    ];
    for (conditions, expected) in steps {
        assert_eq!(written(&claim(conditions.clone()), &no_room), expected, "{conditions}");
    }
    let Some(Write::Patch { patch, .. }) = status::write(&volume, &claim(both), &no_room, None, now) else { panic!() };
    assert!(patch["status"]["conditions"].is_null(), "it was true before, and since then: {patch}");
}
