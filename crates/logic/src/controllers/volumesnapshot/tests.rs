//! Snapshots, their contents, claims and volumes in a closed loop, with a node that does what it is asked.

use super::*;
use crate::controllers::{persistentvolume, persistentvolumeclaim, pvcprotection, pvprotection, volumesnapshotcontent};
use crate::scheduler;
use crate::scheduler::tests::{node, pod};
use crate::volume::source::COPY_OF;
use crate::volume::{MADE_ON, PROVISIONED_BY, PVC_PROTECTION, SIZE};
use crate::world::World;

mod keeping;

const CONTROLLERS: [Controller; 7] = [
    CONTROLLER,
    volumesnapshotcontent::CONTROLLER,
    scheduler::CONTROLLER,
    persistentvolumeclaim::CONTROLLER,
    persistentvolume::CONTROLLER,
    pvcprotection::CONTROLLER,
    pvprotection::CONTROLLER,
];

fn settle(world: &mut World) {
    world.settle(&CONTROLLERS, Timestamp::UNIX_EPOCH);
}

fn claim(name: &str, size: &str, source: Value) -> Value {
    json!({"kind": "PersistentVolumeClaim", "metadata": {"namespace": "default", "name": name,
        "finalizers": [PVC_PROTECTION]},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "fast",
            "resources": {"requests": {"storage": size}}, "dataSource": source},
        "status": {"phase": "Pending"}})
}

fn snapshot(name: &str, source: Value) -> Value {
    json!({"kind": "VolumeSnapshot", "metadata": {"namespace": "default", "name": name}, "spec": {"source": source}})
}

fn class(name: &str, driver: &str, default: bool) -> Value {
    let annotations =
        if default { json!({(kinds::volumesnapshotclass::DEFAULT_ANNOTATION): "true"}) } else { json!({}) };
    json!({"kind": "VolumeSnapshotClass", "metadata": {"name": name, "annotations": annotations}, "driver": driver,
        "deletionPolicy": "Delete"})
}

fn from_snapshot(name: &str) -> Value {
    json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": name})
}

fn user(name: &str, claim: &str) -> Value {
    pod(name, json!({"spec": {"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]}}))
}

/// A claim with data on node n1.
fn with_data() -> World {
    let mut world = World::default();
    for name in ["n1", "n2"] {
        world.put(node(name, json!({})));
    }
    world.put(json!({"kind": "StorageClass", "metadata": {"name": "fast"}, "provisioner": BUILT_IN[1],
        "volumeBindingMode": "WaitForFirstConsumer", "reclaimPolicy": "Delete"}));
    world.put(claim("data", "1Gi", Value::Null));
    world.put(user("db", "data"));
    world
}

/// The node makes what is declared: volumes, and copies whose sources are there.
fn node_works(world: &mut World) {
    let made: Vec<String> = world
        .snapshot
        .persistent_volumes
        .iter()
        .filter(|(_, v)| annotation(&v.metadata, MADE_ON).is_empty())
        .map(|(key, _)| key.name.to_string())
        .collect();
    for name in made {
        world.patch(&kinds::PERSISTENT_VOLUME, "", &name, json!({"metadata": {"annotations": {(MADE_ON): "n1"}}}));
    }
    let asked = |content: &VolumeSnapshotContent| {
        annotation(&content.metadata, SNAPSHOT_ON) == "n1" && content.status.is_none()
    };
    let own = |content: &VolumeSnapshotContent| {
        source::handle("n1", &source::folder(content.metadata.uid.as_deref().unwrap()))
    };
    let handle =
        |content: &VolumeSnapshotContent| content.spec.source.snapshot_handle.clone().unwrap_or_else(|| own(content));
    let contents = world.snapshot.volume_snapshot_contents.clone();
    for (key, content) in contents.iter().filter(|(_, content)| asked(content)) {
        let status = json!({"snapshotHandle": handle(content), "readyToUse": true, "restoreSize": 1 << 30,
            "creationTime": 1_000_000_000_000_i64});
        world.patch(&kinds::VOLUME_SNAPSHOT_CONTENT, "", &key.name, json!({"status": status}));
    }
    settle(world);
}

fn status(world: &World, name: &str) -> Value {
    world.get(&kinds::VOLUME_SNAPSHOT, "default", name)["status"].clone()
}

fn error(world: &World, name: &str) -> String {
    status(world, name)["error"]["message"].as_str().unwrap_or("").to_owned()
}

fn volume_of(world: &World, claim: &str) -> Value {
    let claim = world.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", claim);
    world.get(&kinds::PERSISTENT_VOLUME, "", &format!("pvc-{}", claim["metadata"]["uid"].as_str().unwrap()))
}

fn content_name(world: &World, snapshot: &str) -> String {
    status(world, snapshot)["boundVolumeSnapshotContentName"].as_str().unwrap_or("").to_owned()
}

#[test]
fn a_snapshot_waits_for_claim_class_and_data_and_then_follows_its_content() {
    let mut world = with_data();
    world.put(snapshot("s", json!({"persistentVolumeClaimName": "data"})));
    settle(&mut world);
    assert_eq!(
        error(&world, "s"),
        "Failed to set default snapshot class with error cannot find default snapshot class"
    );
    world.put(class("other", "example.com/csi", true));
    world.put(class("one", BUILT_IN[0], true));
    world.put(class("two", BUILT_IN[0], true));
    settle(&mut world);
    assert!(error(&world, "s").contains("2 default snapshot classes were found"), "{}", error(&world, "s"));
    world.remove(&kinds::VOLUME_SNAPSHOT_CLASS, &ObjectKey::new("", "two"));
    settle(&mut world);
    // Another name of the same driver is the same driver.
    assert_eq!(world.get(&kinds::VOLUME_SNAPSHOT, "default", "s")["spec"]["volumeSnapshotClassName"], "one");
    assert!(error(&world, "s").contains("no pod has mounted volume"), "{}", error(&world, "s"));
    node_works(&mut world);
    node_works(&mut world);
    let seen = status(&world, "s");
    assert_eq!(
        (&seen["readyToUse"], &seen["restoreSize"], &seen["creationTime"]),
        (&json!(true), &json!("1Gi"), &json!("1970-01-01T00:16:40Z"))
    );
    assert!(seen["error"].is_null());
    for event in [
        "CreatingSnapshot: Waiting for a snapshot default/s",
        "SnapshotCreated: Snapshot default/s",
        "SnapshotReady: Snapshot default/s",
    ] {
        assert!(world.events.iter().any(|told| told.starts_with(event)), "{event}: {:?}", world.events);
    }
    let content = world.get(&kinds::VOLUME_SNAPSHOT_CONTENT, "", &content_name(&world, "s"));
    assert_eq!(
        content["spec"]["volumeSnapshotRef"]["uid"],
        world.get(&kinds::VOLUME_SNAPSHOT, "default", "s")["metadata"]["uid"]
    );
    assert_eq!(content["metadata"]["finalizers"], json!([CONTENT_FINALIZER, LOCAL_PATH_FINALIZER]));
    world.assert_quiet(&CONTROLLERS, Timestamp::UNIX_EPOCH);

    // A content that is gone is not made anew: it would hold another moment.
    world.remove(&kinds::VOLUME_SNAPSHOT_CONTENT, &ObjectKey::new("", content_name(&world, "s")));
    settle(&mut world);
    assert_eq!(
        (error(&world, "s").as_str(), &status(&world, "s")["readyToUse"]),
        ("VolumeSnapshotContent is missing", &json!(false))
    );
    assert_eq!(world.all(&kinds::VOLUME_SNAPSHOT_CONTENT).count(), 0);
}

#[test]
fn v2_a_claim_stays_while_it_is_copied() {
    let mut world = with_data();
    world.put(class("one", BUILT_IN[0], true));
    settle(&mut world);
    node_works(&mut world);
    world.put(snapshot("s", json!({"persistentVolumeClaimName": "data"})));
    settle(&mut world);
    world.remove(&kinds::POD, &ObjectKey::new("default", "db"));
    world.delete(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "data", None);
    settle(&mut world);
    assert!(!world.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "data").is_null(), "the copy is not made yet");
    node_works(&mut world);
    assert!(world.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "data").is_null());
    assert_eq!(status(&world, "s")["readyToUse"], true, "the copy is its own");
    // A second snapshot of what is gone is told so, and takes nothing.
    world.put(snapshot("late", json!({"persistentVolumeClaimName": "data"})));
    settle(&mut world);
    assert!(error(&world, "late").contains("persistentvolumeclaim \"data\" not found"));
    world.assert_quiet(&CONTROLLERS, Timestamp::UNIX_EPOCH);
}

#[test]
fn plain_directories_and_strange_volumes_are_refused_in_words() {
    let mut world = with_data();
    world.put(class("one", BUILT_IN[0], true));
    world.put(class("wrong", "example.com/csi", false));
    settle(&mut world);
    node_works(&mut world);
    let name = volume_of(&world, "data")["metadata"]["name"].as_str().unwrap().to_owned();
    for (patch, spec, why) in [
        (json!({(SIZE): "none"}), json!({}), "of which no crash-consistent copy can be made"),
        (
            json!({(SIZE): "image"}),
            json!({"volumeSnapshotClassName": "wrong"}),
            "snapshot class wrong is of driver \"example.com/csi\"",
        ),
        (
            json!({}),
            json!({"volumeSnapshotClassName": "none"}),
            "volumesnapshotclass.snapshot.storage.k8s.io \"none\" not found",
        ),
        (json!({(PROVISIONED_BY): null}), json!({}), "cannot find CSI PersistentVolumeSource for volume"),
    ] {
        world.patch(&kinds::PERSISTENT_VOLUME, "", &name, json!({"metadata": {"annotations": patch}}));
        let mut object = snapshot("s", json!({"persistentVolumeClaimName": "data"}));
        crate::world::merge(&mut object["spec"], spec);
        world.put(object);
        settle(&mut world);
        assert!(error(&world, "s").contains(why), "{why}: {}", error(&world, "s"));
        assert_eq!(world.all(&kinds::VOLUME_SNAPSHOT_CONTENT).count(), 0);
        world.remove(&kinds::VOLUME_SNAPSHOT, &ObjectKey::new("default", "s"));
    }
}

/// A world with a snapshot that is ready.
fn with_snapshot() -> World {
    let mut world = with_data();
    world.put(class("one", BUILT_IN[0], true));
    settle(&mut world);
    node_works(&mut world);
    world.put(snapshot("s", json!({"persistentVolumeClaimName": "data"})));
    settle(&mut world);
    node_works(&mut world);
    world
}

#[test]
fn a_claim_gets_the_data_that_it_asked_for_or_nothing() {
    let mut world = with_snapshot();
    world.put(claim("restored", "2Gi", from_snapshot("s")));
    world.put(user("r", "restored"));
    world.put(claim("cloned", "1Gi", json!({"kind": "PersistentVolumeClaim", "name": "data"})));
    world.put(user("c", "cloned"));
    for (name, size, source) in [
        ("small", "512Mi", from_snapshot("s")),
        ("smaller", "512Mi", json!({"kind": "PersistentVolumeClaim", "name": "data"})),
        ("absent", "1Gi", from_snapshot("nothing")),
        ("strange", "1Gi", json!({"apiGroup": "example.com", "kind": "Book", "name": "data"})),
    ] {
        world.put(claim(name, size, source));
        world.put(user(&format!("p-{name}"), name));
    }
    settle(&mut world);
    let handle =
        world.get(&kinds::VOLUME_SNAPSHOT_CONTENT, "", &content_name(&world, "s"))["status"]["snapshotHandle"].clone();
    let copy_of = |world: &World, claim: &str| volume_of(world, claim)["metadata"]["annotations"][COPY_OF].clone();
    assert_eq!(copy_of(&world, "restored"), handle.as_str().unwrap().strip_prefix("n1/").unwrap());
    assert_eq!(copy_of(&world, "cloned"), volume_of(&world, "data")["metadata"]["name"]);
    node_works(&mut world);
    for name in ["r", "c"] {
        assert_eq!(world.get(&kinds::POD, "default", name)["spec"]["nodeName"], "n1", "where the data is");
    }
    for (name, why) in [
        ("small", "is less than the size 1073741824 for the source snapshot s"),
        ("smaller", "requested 536870912 but source is 1073741824"),
        ("absent", "volumesnapshots.snapshot.storage.k8s.io \"nothing\" not found"),
        ("strange", "data source \"Book\" of API group \"example.com\" is not supported"),
    ] {
        assert!(volume_of(&world, name).is_null(), "{name} has no volume");
        let told = world.events.iter().any(|event| event.starts_with("ProvisioningFailed") && event.contains(why));
        assert!(told, "{name}: {:?}", world.events);
    }
    world.assert_quiet(&CONTROLLERS, Timestamp::UNIX_EPOCH);

    // What comes later is waited for.
    world.patch(
        &kinds::PERSISTENT_VOLUME_CLAIM,
        "default",
        "absent",
        json!({"spec": {"dataSource": {"name": "late"}}}),
    );
    world.put(snapshot("late", json!({"persistentVolumeClaimName": "data"})));
    settle(&mut world);
    assert!(volume_of(&world, "absent").is_null(), "not ready yet");
    node_works(&mut world);
    assert!(!volume_of(&world, "absent").is_null());

    // Another namespace's data is not given away.
    let elsewhere =
        json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "s", "namespace": "secret"});
    let mut thief = claim("thief", "1Gi", Value::Null);
    thief["spec"]["dataSourceRef"] = elsewhere;
    world.put(thief);
    world.put(user("t", "thief"));
    settle(&mut world);
    assert!(volume_of(&world, "thief").is_null());
    assert!(world.events.iter().any(|event| {
        event.contains("accessing secret/s of VolumeSnapshot dataSource from default/thief isn't allowed")
    }));
}

#[test]
fn v3_a_snapshot_goes_after_its_last_restore_and_takes_its_copy_along_where_the_policy_says_so() {
    for policy in ["Delete", "Retain"] {
        let mut world = with_snapshot();
        let content = content_name(&world, "s");
        world.patch(&kinds::VOLUME_SNAPSHOT_CONTENT, "", &content, json!({"spec": {"deletionPolicy": policy}}));
        world.put(claim("restored", "1Gi", from_snapshot("s")));
        settle(&mut world);
        world.delete(&kinds::VOLUME_SNAPSHOT, "default", "s", None);
        settle(&mut world);
        assert!(!status(&world, "s").is_null(), "a claim waits to be filled from it");
        world.put(user("r", "restored"));
        settle(&mut world);
        assert!(!volume_of(&world, "restored").is_null(), "it asked before");
        assert!(
            world.get(&kinds::VOLUME_SNAPSHOT_CONTENT, "", &content)["metadata"]["deletionTimestamp"].is_null(),
            "V2"
        );
        assert!(world.events.contains(&"SnapshotDeletePending: Snapshot is being used to restore a PVC".to_owned()));
        node_works(&mut world);
        let left = world.get(&kinds::VOLUME_SNAPSHOT_CONTENT, "", &content);
        assert_eq!(left["metadata"]["annotations"][BEING_DELETED], "yes");
        if policy == "Retain" {
            assert!(status(&world, "s").is_null() && left["metadata"]["deletionTimestamp"].is_null());
            world.delete(&kinds::VOLUME_SNAPSHOT_CONTENT, "", &content, None);
            settle(&mut world);
        } else {
            assert_eq!(left["metadata"]["finalizers"], json!([LOCAL_PATH_FINALIZER]), "the node's turn");
            assert!(!status(&world, "s").is_null(), "the snapshot waits for its copy");
            world.patch(&kinds::VOLUME_SNAPSHOT_CONTENT, "", &content, json!({"metadata": {"finalizers": []}}));
            settle(&mut world);
        }
        assert!(world.get(&kinds::VOLUME_SNAPSHOT_CONTENT, "", &content).is_null(), "{policy}");
        assert!(world.get(&kinds::VOLUME_SNAPSHOT, "default", "s").is_null(), "{policy}");
        world.assert_quiet(&CONTROLLERS, Timestamp::UNIX_EPOCH);
    }
}

#[test]
fn a_content_that_was_there_before_is_bound_once_by_uid_and_only_its_own_folder_is_meant() {
    let mut world = with_data();
    let content = |name: &str, handle: &str| {
        json!({"kind": "VolumeSnapshotContent", "metadata": {"name": name}, "spec": {"deletionPolicy": "Delete",
            "driver": BUILT_IN[0],
            "source": {"snapshotHandle": handle}, "volumeSnapshotRef": {"namespace": "default", "name": "mine"}}})
    };
    world.put(snapshot("mine", json!({"volumeSnapshotContentName": "old"})));
    settle(&mut world);
    assert_eq!(error(&world, "mine"), "VolumeSnapshotContent is missing");
    world.put(content("old", "n1/snapshot-1"));
    world.put(snapshot("other", json!({"volumeSnapshotContentName": "old"})));
    settle(&mut world);
    let bound = world.get(&kinds::VOLUME_SNAPSHOT_CONTENT, "", "old");
    assert_eq!(
        bound["spec"]["volumeSnapshotRef"]["uid"],
        world.get(&kinds::VOLUME_SNAPSHOT, "default", "mine")["metadata"]["uid"]
    );
    assert_eq!(bound["metadata"]["annotations"][SNAPSHOT_ON], "n1");
    assert!(error(&world, "other").contains("is bound to a different snapshot"));
    node_works(&mut world);
    assert_eq!((content_name(&world, "mine").as_str(), &status(&world, "mine")["readyToUse"]), ("old", &json!(true)));
    // A snapshot made again under the same name is another.
    world.patch(&kinds::VOLUME_SNAPSHOT_CONTENT, "", "old", json!({"spec": {"deletionPolicy": "Retain"}}));
    world.delete(&kinds::VOLUME_SNAPSHOT, "default", "mine", None);
    settle(&mut world);
    world.put(snapshot("mine", json!({"volumeSnapshotContentName": "old"})));
    settle(&mut world);
    assert!(error(&world, "mine").contains("is bound to a different snapshot"));

    for bad in ["n1/pvc-1", "n1/snapshot-../x", "n1/", "snapshot-1", "n1/snapshot-", "/snapshot-1"] {
        world.put(content("bad", bad));
        settle(&mut world);
        let seen = world.get(&kinds::VOLUME_SNAPSHOT_CONTENT, "", "bad");
        assert!(
            seen["status"]["error"]["message"].as_str().unwrap_or("").contains("is not the handle of a snapshot"),
            "{bad}"
        );
        assert!(seen["metadata"]["annotations"][SNAPSHOT_ON].is_null());
        world.remove(&kinds::VOLUME_SNAPSHOT_CONTENT, &ObjectKey::new("", "bad"));
    }
    // Two contents of one copy: the first to go leaves it to the other.
    world.put(content("twin", "n1/snapshot-1"));
    settle(&mut world);
    world.delete(&kinds::VOLUME_SNAPSHOT_CONTENT, "", "twin", None);
    settle(&mut world);
    assert!(world.get(&kinds::VOLUME_SNAPSHOT_CONTENT, "", "twin").is_null(), "no node was asked to remove anything");
}

#[test]
fn s12_wherever_a_decision_is_cut_one_snapshot_has_one_content() {
    for cut in 0..3 {
        let mut world = with_data();
        world.put(class("one", BUILT_IN[0], true));
        settle(&mut world);
        node_works(&mut world);
        world.put(snapshot("s", json!({"persistentVolumeClaimName": "data"})));
        let key = ObjectKey::new("default", "s");
        for _ in 0..4 {
            world.run(&CONTROLLER, &key, Timestamp::UNIX_EPOCH, cut);
        }
        settle(&mut world);
        node_works(&mut world);
        assert_eq!(
            (world.all(&kinds::VOLUME_SNAPSHOT_CONTENT).count(), &status(&world, "s")["readyToUse"]),
            (1, &json!(true)),
            "{cut}"
        );
        world.delete(&kinds::VOLUME_SNAPSHOT, "default", "s", None);
        for _ in 0..4 {
            world.run(&CONTROLLER, &key, Timestamp::UNIX_EPOCH, cut);
        }
        settle(&mut world);
        assert!(!world.all(&kinds::VOLUME_SNAPSHOT_CONTENT).next().unwrap()["metadata"]["deletionTimestamp"].is_null());
    }
}
