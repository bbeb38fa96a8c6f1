//! Folders of NFS exports: what is asked of a server, of which node, and when.

use super::nfs::{FINALIZER, MODE, ON_DELETE, SHARE, SIZE_SERVER, Task, WORK_ON};
use super::pending::with;
use super::*;

fn class_with(over: Value) -> StorageClass {
    let class = json!({"metadata": {"name": "nfs"}, "provisioner": nfs::PROVISIONER,
        "parameters": {"server": "s", "share": "/e"}});
    serde_json::from_value(with(class, over)).unwrap()
}

fn claim_with(over: Value) -> PersistentVolumeClaim {
    let claim = json!({"metadata": {"namespace": "shop", "name": "data", "uid": "u-1"}, "spec": {
        "accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}});
    serde_json::from_value(with(claim, over)).unwrap()
}

fn volume_with(over: Value) -> PersistentVolume {
    let volume = json!({"metadata": {"name": "pvc-u-1", "finalizers": [PV_PROTECTION, FINALIZER],
            "annotations": {SHARE: "/e", WORK_ON: "n1"}},
        "spec": {"capacity": {"storage": "1Gi"}, "persistentVolumeReclaimPolicy": "Delete",
            "nfs": {"server": "s", "path": "/e/pvc-u-1"}}});
    serde_json::from_value(with(volume, over)).unwrap()
}

/// V3, V6: the whole of what a node is told, since it does as it is told.
#[test]
fn v3_v6_a_declared_folder_says_whose_it_is_and_what_becomes_of_it() {
    let mut world = World::default();
    world.put(node("n1", json!({})));
    world.put(node("n2", json!({})));
    let subdir = "k8s-sigs.io/nfs-subdir-external-provisioner";
    let selected = json!({"metadata": {"annotations": {SELECTED_NODE: "n2"}}});
    let said = |size: &str, on_delete: &str, mode: &str, on: &str| -> Value {
        json!({SIZE: size, ON_DELETE: on_delete, MODE: mode, WORK_ON: on})
    };
    for (parameters, provisioner, of_claim, expected) in [
        (json!({}), nfs::PROVISIONER, json!({}), said("auto", "delete", "0777", "n1")),
        (json!({SIZE: "server"}), nfs::PROVISIONER, selected, said("server", "delete", "0777", "n2")),
        (
            json!({SIZE: "none", "mountPermissions": "07777", "onDelete": "retain"}),
            nfs::PROVISIONER,
            json!({}),
            said("none", "retain", "07777", "n1"),
        ),
        (json!({"mountPermissions": "0"}), nfs::PROVISIONER, json!({}), said("auto", "delete", "0777", "n1")),
        (json!({"archiveOnDelete": "true"}), nfs::PROVISIONER, json!({}), said("auto", "delete", "0777", "n1")),
        (json!({"csi.storage.k8s.io/fstype": "nfs"}), subdir, json!({}), said("auto", "archive", "0777", "n1")),
        (json!({"archiveOnDelete": "true"}), subdir, json!({}), said("auto", "archive", "0777", "n1")),
        (json!({"archiveOnDelete": "false"}), subdir, json!({}), said("auto", "delete", "0777", "n1")),
        (json!({"onDelete": "retain"}), subdir, json!({}), said("auto", "retain", "0777", "n1")),
        (
            json!({"archiveOnDelete": "true", "onDelete": "delete"}),
            subdir,
            json!({}),
            said("auto", "delete", "0777", "n1"),
        ),
    ] {
        let class = class_with(json!({"provisioner": provisioner, "parameters": parameters, "reclaimPolicy": "Retain",
            "mountOptions": ["hard"]}));
        assert!(nfs::provisions(&class) && nfs::provisionable(&claim_with(of_claim.clone()), &class).is_ok());
        let (write, event) = nfs::provision(&world.snapshot, &claim_with(of_claim), &class).unwrap();
        let Write::Create { object, .. } = write else { panic!("{write:?}") };
        let expected = json!({
            "apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": {"name": "pvc-u-1", "finalizers": [PV_PROTECTION, FINALIZER],
                "annotations": with(json!({PROVISIONED_BY: provisioner, SHARE: "/e"}), expected)},
            "spec": {
                "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany"], "volumeMode": "Filesystem",
                "persistentVolumeReclaimPolicy": "Retain", "storageClassName": "nfs", "mountOptions": ["hard"],
                "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": "shop",
                    "name": "data", "uid": "u-1"},
                "nfs": {"server": "s", "path": "/e/pvc-u-1"},
            },
        });
        assert_eq!(object, expected, "{parameters}");
        assert_eq!(event.message, "Provisioning volume for claim \"shop/data\": a folder of s:/e");
    }
}

#[test]
fn v6_a_class_or_claim_that_is_not_understood_gets_no_folder() {
    let longest = json!({"parameters": {"share": format!("/{}", "x".repeat(255)), "subDir": "y".repeat(255)}});
    assert_eq!(nfs::provisionable(&claim_with(json!({})), &class_with(longest)), Ok(()));
    // The claim's own name is the last one, whatever is above it.
    for (sub_dir, expected) in
        [("a/${pv.metadata.name}", "/e/a/pvc-u-1"), ("${pv.metadata.name}/a", "/e/pvc-u-1/a/pvc-u-1")]
    {
        let class = class_with(json!({"parameters": {"subDir": sub_dir}}));
        let mut world = World::default();
        world.put(node("n1", json!({})));
        let (write, _) = nfs::provision(&world.snapshot, &claim_with(json!({})), &class).unwrap();
        let Write::Create { object, .. } = write else { panic!("{write:?}") };
        assert_eq!(object["spec"]["nfs"]["path"], expected);
    }
    let long = "x".repeat(256);
    for (parameters, why) in [
        (json!({"server": "a b"}), "is not the name or address of a server"),
        (json!({"server": "a\u{7}"}), "is not the name or address of a server"),
        (json!({"share": format!("/{long}")}), "is not an absolute path"),
        (json!({"share": "/a/."}), "is not an absolute path"),
        (json!({"share": "/a\u{7}"}), "is not an absolute path"),
        (json!({"subDir": long}), "cannot be the name of a folder"),
        (json!({"mountPermissions": "10000"}), "is not understood"),
        (json!({"archiveOnDelete": "yes"}), "is not understood"),
    ] {
        let class = class_with(json!({"parameters": parameters}));
        let (one, other) = (
            nfs::provisionable(&claim_with(json!({})), &class),
            nfs::provision(&Snapshot::default(), &claim_with(json!({})), &class).map(|_| ()),
        );
        assert!(one.as_ref().is_err_and(|said| said.contains(why)), "{parameters}: {one:?}");
        assert_eq!(one, other);
    }
    let source = json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "s"});
    let no_data = "does not support data sources";
    for (spec, why) in [
        (json!({"volumeMode": "Block"}), "does not support volume mode Block"),
        (json!({"dataSource": source}), no_data),
        (json!({"dataSourceRef": source}), no_data),
        (json!({"selector": {}}), "claim Selector is not supported"),
        (json!({"volumeAttributesClassName": "gold"}), "VAC gold cannot be applied"),
    ] {
        let claim = claim_with(json!({"spec": spec}));
        let (one, other) = (
            nfs::provisionable(&claim, &class_with(json!({}))),
            nfs::provision(&Snapshot::default(), &claim, &class_with(json!({}))).map(|_| ()),
        );
        assert!(one.as_ref().is_err_and(|said| said.contains(why)), "{spec}: {one:?}");
        assert_eq!(one, other);
    }
    for (provisioner, server, share, provisions) in [
        (nfs::PROVISIONER, None, None, true),
        ("nfs.csi.k8s.io", Some("s"), Some("/e"), true),
        ("nfs.csi.k8s.io", Some("s"), None, false),
        ("nfs.csi.k8s.io", None, Some("/e"), false),
        ("x.io/csi", Some("s"), Some("/e"), false),
    ] {
        let class = json!({"provisioner": provisioner, "parameters": {"server": server, "share": share}});
        assert_eq!(nfs::provisions(&class_with(class.clone())), provisions, "{class}");
    }
}

/// V2, V3: what is removed is what nobody can use any more, by the node that was asked.
#[test]
fn v2_v3_a_node_does_what_is_due_and_nothing_else() {
    let noted =
        |size: &str, made: Value| json!({"metadata": {"annotations": {MADE_ON: "n1", SIZE: size, MADE_SIZE: made}}});
    let gib = 1_i64 << 30;
    let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [FINALIZER]}});
    let protected = json!({"metadata": {"finalizers": [PV_PROTECTION, FINALIZER]}});
    let retained = json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}});
    for (over, expected) in [
        (json!({}), Some(Task::Make)),
        (json!({"metadata": {"finalizers": [PV_PROTECTION]}}), None),
        (noted(SIZE_NONE, Value::Null), None),
        (noted(SIZE_SERVER, json!(gib.to_string())), None),
        (noted(SIZE_SERVER, json!((gib - 1).to_string())), Some(Task::Grow)),
        (noted(SIZE_SERVER, Value::Null), Some(Task::Grow)),
        (going.clone(), Some(Task::Remove)),
        (with(going.clone(), protected), None),
        (with(going, retained), None),
    ] {
        let volume = volume_with(over.clone());
        assert_eq!(nfs::task(&volume, "n1"), expected, "{over}");
        assert_eq!(nfs::task(&volume, "n2"), None, "{over}: another was asked");
        assert_eq!(nfs::is_waiting(&volume), expected.is_some(), "{over}");
    }
    let made = volume_with(noted(SIZE_NONE, Value::Null));
    assert!(!nfs::is_folder_unmade(&made) && nfs::is_folder_unmade(&volume_with(json!({}))));
    assert_eq!(nfs::made("n1", &made, true), json!({MADE_ON: "n1", SIZE: "server", MADE_SIZE: gib.to_string()}));
    assert_eq!(nfs::made("n1", &made, false), json!({MADE_ON: "n1", SIZE: "none", MADE_SIZE: null}));
}

/// S12: work that waits for a node that is away is another node's.
#[test]
fn s12_work_goes_to_a_node_that_is_ready() {
    let away = json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}});
    for (n1, n2, asked, expected) in [
        (json!({}), json!({}), "n1", Some("n1")),
        (json!({}), json!({}), "n2", Some("n2")),
        (json!({}), json!({}), "gone", Some("n1")),
        (away.clone(), json!({}), "n1", Some("n2")),
        (away.clone(), away, "n1", None),
    ] {
        let mut world = World::default();
        world.put(node("n1", n1));
        world.put(node("n2", n2));
        assert_eq!(nfs::worker(&world.snapshot, asked), expected, "{asked}");
        let asks = |over: Value| {
            let volume = volume_with(with(json!({"metadata": {"annotations": {WORK_ON: asked}}}), over));
            match nfs::appoint(&world.snapshot, &volume) {
                Some(Write::Patch { patch, .. }) => Some(patch["metadata"]["annotations"][WORK_ON].clone()),
                _ => None,
            }
        };
        let other = expected.filter(|found| *found != asked).map(|found| json!(found));
        assert_eq!(asks(json!({})), other, "{asked}");
        assert_eq!(asks(json!({"metadata": {"annotations": {MADE_ON: "n1"}}})), None, "nothing is due");
    }
}

#[test]
fn v3_a_folder_is_found_by_the_volumes_own_name_below_its_share() {
    let nameless = json!({"metadata": {"name": null}, "spec": {"nfs": {"path": "/e/x"}}});
    assert!(nfs::location(&volume_with(nameless)).unwrap_err().contains("is not its own folder"));
    let other = json!({"spec": {"nfs": null}});
    assert!(nfs::location(&volume_with(other)).unwrap_err().contains("is not of kind nfs"));
    let root = volume_with(json!({"metadata": {"annotations": {SHARE: "/"}}, "spec": {"nfs": {"path": "/pvc-u-1"}}}));
    assert_eq!(nfs::location(&root), Ok(("s", "/", vec!["pvc-u-1"])));
}
