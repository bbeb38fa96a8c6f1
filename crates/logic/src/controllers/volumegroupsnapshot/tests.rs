//! Group snapshots in a closed loop, with a node that copies what it is told.

use super::*;
use crate::controllers::{garbagecollector, pvcprotection, volumesnapshot, volumesnapshotcontent};
use crate::volume::{BIND_COMPLETED, MADE_ON, PROVISIONED_BY, PVC_PROTECTION, SIZE};
use crate::world::World;

mod members;

const CONTROLLERS: [Controller; 5] = [
    CONTROLLER,
    volumesnapshot::CONTROLLER,
    volumesnapshotcontent::CONTROLLER,
    pvcprotection::CONTROLLER,
    garbagecollector::CONTROLLER,
];

fn settle(world: &mut World) {
    world.settle(&CONTROLLERS, Timestamp::UNIX_EPOCH);
}

/// A claim with a volume that was made on a node.
fn claim(world: &mut World, name: &str, app: &str, node: &str) {
    world.put(json!({"kind": "PersistentVolume", "metadata": {"name": format!("pv-{name}"), "annotations":
        {(PROVISIONED_BY): BUILT_IN[0], (SIZE): "image", (MADE_ON): node}},
            "spec": {"claimRef": {"namespace": "default", "name": name, "uid": name}}}));
    world.put(json!({"kind": "PersistentVolumeClaim", "metadata": {"namespace": "default", "name": name, "uid": name,
            "labels": {"app": app},
        "finalizers": [PVC_PROTECTION], "annotations": {(BIND_COMPLETED): "yes"}},
            "spec": {"volumeName": format!("pv-{name}")}}));
}

fn group(name: &str, app: &str) -> Value {
    json!({"kind": "VolumeGroupSnapshot", "metadata": {"namespace": "default", "name": name},
        "spec": {"source": {"selector": {"matchLabels": {"app": app}}}}})
}

fn status(world: &World, name: &str) -> Value {
    world.get(&kinds::VOLUME_GROUP_SNAPSHOT, "default", name)["status"].clone()
}

/// The node copies the volumes of every group content, and finds the copies of every single one.
fn node_works(world: &mut World) {
    for (key, content) in &world.snapshot.volume_group_snapshot_contents.clone() {
        if content.status.is_some() {
            continue;
        }
        let copies: Vec<Value> = content
            .spec
            .source
            .volume_handles
            .iter()
            .flatten()
            .enumerate()
            .map(|(number, volume)| {
                json!({"volumeHandle": volume, "snapshotHandle": format!("n1/snapshot-{number}"),
                "readyToUse": true})
            })
            .collect();
        let status = json!({"volumeGroupSnapshotHandle": "n1/g", "creationTime": "2026-01-01T00:00:00Z",
            "readyToUse": true, "volumeSnapshotInfoList": copies});
        world.patch(&kinds::VOLUME_GROUP_SNAPSHOT_CONTENT, "", &key.name, json!({"status": status}));
    }
    settle(world);
    for (key, content) in &world.snapshot.volume_snapshot_contents.clone() {
        let handle = content.spec.source.snapshot_handle.clone();
        let status = json!({"snapshotHandle": handle, "readyToUse": true, "restoreSize": 1 << 30,
            "creationTime": 1_000_000_000});
        if content.status.is_none() {
            world.patch(&kinds::VOLUME_SNAPSHOT_CONTENT, "", &key.name, json!({"status": status}));
        }
    }
    settle(world);
}

fn class(world: &mut World) {
    world.put(json!({"kind": "VolumeGroupSnapshotClass", "metadata": {"name": "one", "annotations":
        {(kinds::volumegroupsnapshotclass::DEFAULT_ANNOTATION): "true"}}, "driver": BUILT_IN[0],
            "deletionPolicy": "Delete"}));
}

#[test]
fn every_claim_that_the_selector_finds_becomes_one_snapshot() {
    let mut world = World::default();
    claim(&mut world, "a", "db", "n1");
    claim(&mut world, "b", "db", "n1");
    claim(&mut world, "c", "other", "n2");
    world.put(group("g", "db"));
    settle(&mut world);
    assert!(
        status(&world, "g")["error"]["message"].as_str().unwrap().contains("cannot find default group snapshot class")
    );
    class(&mut world);
    settle(&mut world);
    let content = world.all(&kinds::VOLUME_GROUP_SNAPSHOT_CONTENT).next().cloned().unwrap();
    assert_eq!(content["spec"]["source"]["volumeHandles"], json!(["pv-a", "pv-b"]));
    assert_eq!(content["metadata"]["annotations"][SNAPSHOT_ON], "n1");
    assert_eq!(status(&world, "g")["readyToUse"], false);
    // V2: a claim stays until it is copied; one that comes later is not of the group.
    world.delete(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "a", None);
    claim(&mut world, "d", "db", "n1");
    settle(&mut world);
    assert!(!world.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "a").is_null());
    node_works(&mut world);
    assert!(world.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "a").is_null());
    let members: Vec<Value> = world.all(&kinds::VOLUME_SNAPSHOT).cloned().collect();
    let claims: Vec<&Value> = members.iter().map(|member| &member["metadata"]["annotations"][SOURCE_CLAIM]).collect();
    assert_eq!(claims, ["a", "b"]);
    for member in &members {
        assert_eq!(
            (&member["status"]["readyToUse"], &member["status"]["volumeGroupSnapshotName"]),
            (&json!(true), &json!("g"))
        );
    }
    let seen = status(&world, "g");
    assert_eq!((&seen["readyToUse"], &seen["creationTime"]), (&json!(true), &json!("2026-01-01T00:00:00Z")));
    world.assert_quiet(&CONTROLLERS, Timestamp::UNIX_EPOCH);

    // The group goes with its content and its members.
    world.delete(&kinds::VOLUME_GROUP_SNAPSHOT, "default", "g", None);
    settle(&mut world);
    let name = content["metadata"]["name"].as_str().unwrap();
    assert!(!world.get(&kinds::VOLUME_GROUP_SNAPSHOT_CONTENT, "", name)["metadata"]["deletionTimestamp"].is_null());
    assert_eq!(world.all(&kinds::VOLUME_SNAPSHOT).count(), 2, "what has no content of its own goes first");
    world.patch(&kinds::VOLUME_GROUP_SNAPSHOT_CONTENT, "", name, json!({"metadata": {"finalizers": []}}));
    settle(&mut world);
    assert!(status(&world, "g").is_null());
    let left: Vec<Value> = world.all(&kinds::VOLUME_SNAPSHOT_CONTENT).cloned().collect();
    assert_eq!(left.len(), 2);
    for content in left {
        assert_eq!(content["metadata"]["finalizers"], json!([LOCAL_PATH_FINALIZER]), "the node removes each copy");
        world.patch(
            &kinds::VOLUME_SNAPSHOT_CONTENT,
            "",
            content["metadata"]["name"].as_str().unwrap(),
            json!({"metadata": {"finalizers": []}}),
        );
    }
    settle(&mut world);
    assert_eq!(world.all(&kinds::VOLUME_SNAPSHOT).count(), 0);
}

#[test]
fn a_group_that_cannot_be_of_one_moment_is_refused_in_words() {
    let mut world = World::default();
    class(&mut world);
    claim(&mut world, "a", "db", "n1");
    claim(&mut world, "b", "db", "n2");
    world.put(group("spread", "db"));
    world.put(group("empty", "nothing"));
    let mut old = group("old", "db");
    old["spec"]["source"] = json!({"volumeGroupSnapshotContentName": "x"});
    world.put(old);
    settle(&mut world);
    for (name, why) in
        [("spread", "on more than one node"), ("empty", "finds no persistentvolumeclaim"), ("old", "one by one")]
    {
        let message = status(&world, name)["error"]["message"].as_str().unwrap_or("").to_owned();
        assert!(message.contains(why), "{name}: {message}");
    }
    assert_eq!(world.all(&kinds::VOLUME_GROUP_SNAPSHOT_CONTENT).count(), 0);
    world.assert_quiet(&CONTROLLERS, Timestamp::UNIX_EPOCH);
}

/// S12: a member that may not be made keeps no other.
#[test]
fn s12_one_member_that_is_refused_keeps_no_other() {
    let mut world = World::default();
    class(&mut world);
    for name in ["a", "b", "c"] {
        claim(&mut world, name, "db", "n1");
    }
    world.put(group("g", "db"));
    settle(&mut world);
    world.refuses = Some(|write| {
        matches!(write, Write::Create { kind, object } if *kind == kinds::VOLUME_SNAPSHOT
            && object["metadata"]["name"].as_str().is_some_and(|name| name.ends_with("-0")))
    });
    node_works(&mut world);
    let made: Vec<&str> =
        world.all(&kinds::VOLUME_SNAPSHOT).filter_map(|one| one["metadata"]["name"].as_str()).collect();
    assert_eq!(made.len(), 2, "{made:?}");
    assert_ne!(status(&world, "g")["readyToUse"], json!(true));
}
