//! What a snapshot and its content keep, what they let go, and what they say meanwhile.

use super::*;

const OLD: &str = "2025-12-31T00:00:00Z";
const LATER: &str = "2026-01-02T00:00:00Z";

fn content(name: &str, source: Value, over: Value) -> Value {
    let mut content = json!({"kind": "VolumeSnapshotContent", "metadata": {"name": name}, "spec": {
        "driver": BUILT_IN[0], "deletionPolicy": "Retain", "source": source,
        "volumeSnapshotRef": {"namespace": "default", "name": "mine"}}});
    crate::world::merge(&mut content, over);
    content
}

fn handle(handle: &str) -> Value {
    json!({"snapshotHandle": handle})
}

fn get(world: &World, name: &str) -> Value {
    world.get(&kinds::VOLUME_SNAPSHOT_CONTENT, "", name)
}

fn quiet(world: &mut World) {
    settle(world);
    world.assert_quiet(&CONTROLLERS, Timestamp::UNIX_EPOCH);
}

/// V2: what asked for a snapshot's data before it was told to go gets it; what cannot get it keeps nobody.
#[test]
fn v2_a_snapshot_waits_for_those_claims_only_that_asked_before() {
    let with = |mut claim: Value, over: Value| {
        crate::world::merge(&mut claim, over);
        claim
    };
    let asked =
        |made: &str| with(claim("r", "1Gi", from_snapshot("s")), json!({"metadata": {"creationTimestamp": made}}));
    let from = |namespace: Value| {
        let source = json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "s",
            "namespace": namespace});
        with(asked(OLD), json!({"spec": {"dataSource": null, "dataSourceRef": source}}))
    };
    let other_kind = json!({"apiGroup": "example.com", "kind": "VolumeSnapshot", "name": "s"});
    let table = [
        ("it asked before", asked(OLD), true),
        ("it asked in the other field", from(json!(null)), true),
        ("it asked later", asked(LATER), false),
        ("it has a volume", with(asked(OLD), json!({"spec": {"volumeName": "v"}})), false),
        (
            "it goes, too",
            with(asked(OLD), json!({"metadata": {"deletionTimestamp": OLD, "finalizers": ["x.io/y"]}})),
            false,
        ),
        ("it is another namespace's", with(asked(OLD), json!({"metadata": {"namespace": "other"}})), false),
        ("it asked for another namespace's", from(json!("secret")), false),
        ("it asked for another one", with(asked(OLD), json!({"spec": {"dataSource": {"name": "t"}}})), false),
        ("it asked for another kind", with(asked(OLD), json!({"spec": {"dataSource": other_kind}})), false),
    ];
    for (why, claim, waits) in table {
        for ready in [true, false] {
            let mut world = with_snapshot();
            let name = content_name(&world, "s");
            let patch = json!({"spec": {"deletionPolicy": "Retain"}, "status": {"readyToUse": ready}});
            world.patch(&kinds::VOLUME_SNAPSHOT_CONTENT, "", &name, patch);
            world.put(claim.clone());
            settle(&mut world);
            world.delete(&kinds::VOLUME_SNAPSHOT, "default", "s", None);
            settle(&mut world);
            assert_eq!(!status(&world, "s").is_null(), waits && ready, "{why}, ready: {ready}");
            // When the claim is gone, nobody waits any more.
            world.remove(&kinds::PERSISTENT_VOLUME_CLAIM, &ObjectKey::of(&claim));
            quiet(&mut world);
            assert!(status(&world, "s").is_null(), "{why}");
            assert!(get(&world, &name)["metadata"]["deletionTimestamp"].is_null(), "V3: its copy is kept");
        }
    }
}

/// V3: a snapshot that goes takes along what is its own, by uid, and nothing else.
#[test]
fn v3_a_snapshot_that_goes_leaves_anothers_content_alone() {
    let mut world = with_data();
    let bound = json!({"spec": {"deletionPolicy": "Delete", "volumeSnapshotRef": {"uid": "uid-of-another"}}});
    world.put(content("theirs", handle("n1/snapshot-1"), bound));
    world.put(snapshot("mine", json!({"volumeSnapshotContentName": "theirs"})));
    quiet(&mut world);
    assert!(error(&world, "mine").contains("is bound to a different snapshot"));
    let before = get(&world, "theirs");
    world.delete(&kinds::VOLUME_SNAPSHOT, "default", "mine", None);
    quiet(&mut world);
    assert!(world.get(&kinds::VOLUME_SNAPSHOT, "default", "mine").is_null());
    assert_eq!(get(&world, "theirs"), before);
}

/// Finalizers of others are theirs to take away, on snapshots and on contents.
#[test]
fn other_peoples_finalizers_stay_and_ours_are_whole() {
    let theirs = "example.com/backup";
    for present in [json!([theirs]), json!([theirs, FINALIZERS[0]]), json!([FINALIZERS[1], theirs])] {
        let mut world = with_snapshot();
        let mut object = snapshot("t", json!({"persistentVolumeClaimName": "data"}));
        object["metadata"]["finalizers"] = present.clone();
        world.put(object);
        quiet(&mut world);
        node_works(&mut world);
        let finalizers = world.get(&kinds::VOLUME_SNAPSHOT, "default", "t")["metadata"]["finalizers"].clone();
        assert_eq!(finalizers, json!([theirs, FINALIZERS[0], FINALIZERS[1]]), "{present}");
        let name = content_name(&world, "t");
        let patch = json!({"spec": {"deletionPolicy": "Retain"}, "metadata": {"finalizers": [theirs, CONTENT_FINALIZER,
            LOCAL_PATH_FINALIZER]}});
        world.patch(&kinds::VOLUME_SNAPSHOT_CONTENT, "", &name, patch);
        world.delete(&kinds::VOLUME_SNAPSHOT, "default", "t", None);
        quiet(&mut world);
        let finalizers = world.get(&kinds::VOLUME_SNAPSHOT, "default", "t")["metadata"]["finalizers"].clone();
        assert_eq!(finalizers, json!([theirs]));
        world.delete(&kinds::VOLUME_SNAPSHOT_CONTENT, "", &name, None);
        quiet(&mut world);
        assert_eq!(get(&world, &name)["metadata"]["finalizers"], json!([theirs]));
    }
}

/// V2: a content that somebody deletes stays while its snapshot does, and is let go when that goes.
#[test]
fn v2_a_content_stays_as_long_as_its_snapshot() {
    for policy in ["Retain", "Delete"] {
        let mut world = with_snapshot();
        let name = content_name(&world, "s");
        world.patch(&kinds::VOLUME_SNAPSHOT_CONTENT, "", &name, json!({"spec": {"deletionPolicy": policy}}));
        world.delete(&kinds::VOLUME_SNAPSHOT_CONTENT, "", &name, None);
        quiet(&mut world);
        assert_eq!(get(&world, &name)["metadata"]["finalizers"], json!([CONTENT_FINALIZER, LOCAL_PATH_FINALIZER]));
        world.delete(&kinds::VOLUME_SNAPSHOT, "default", "s", None);
        quiet(&mut world);
        match policy {
            "Retain" => assert!(get(&world, &name).is_null(), "its copy stays where it is"),
            _ => assert_eq!(get(&world, &name)["metadata"]["finalizers"], json!([LOCAL_PATH_FINALIZER]), "the node's"),
        }
    }
    // It stays for a volume that is being filled, too, until that is made.
    let mut world = with_snapshot();
    let name = content_name(&world, "s");
    world.put(claim("r", "1Gi", from_snapshot("s")));
    world.put(user("p", "r"));
    settle(&mut world);
    world.patch(&kinds::VOLUME_SNAPSHOT_CONTENT, "", &name, json!({"spec": {"deletionPolicy": "Retain"}}));
    world.delete(&kinds::VOLUME_SNAPSHOT_CONTENT, "", &name, None);
    world.remove(&kinds::VOLUME_SNAPSHOT, &ObjectKey::new("default", "s"));
    quiet(&mut world);
    assert!(!get(&world, &name).is_null());
    node_works(&mut world);
    assert!(get(&world, &name).is_null());
}

/// V3: two copies that are not made yet are not one copy: each is its node's to remove.
#[test]
fn v3_copies_without_a_handle_are_nobodys_twins() {
    let mut world = with_data();
    world.put(class("one", BUILT_IN[0], true));
    settle(&mut world);
    node_works(&mut world);
    for name in ["a", "b"] {
        world.put(snapshot(name, json!({"persistentVolumeClaimName": "data"})));
    }
    quiet(&mut world);
    let (a, b) = (content_name(&world, "a"), content_name(&world, "b"));
    world.delete(&kinds::VOLUME_SNAPSHOT, "default", "a", None);
    quiet(&mut world);
    assert_eq!(get(&world, &a)["metadata"]["finalizers"], json!([LOCAL_PATH_FINALIZER]), "its node has to look");
    assert!(get(&world, &b)["metadata"]["deletionTimestamp"].is_null());
}

#[test]
fn a_content_of_another_driver_is_protected_and_not_looked_into() {
    let mut world = with_data();
    let csi = json!({"spec": {"driver": "example.com/csi"}});
    world.put(content("theirs", handle("whatever/they-say"), csi.clone()));
    quiet(&mut world);
    let seen = get(&world, "theirs");
    assert_eq!(seen["metadata"]["finalizers"], json!([CONTENT_FINALIZER]));
    assert!(seen["metadata"]["annotations"].is_null() && seen["status"].is_null());
    // Ours is told once that its handle is none.
    world.put(content("ours", handle("whatever"), json!({})));
    quiet(&mut world);
    assert_eq!(get(&world, "ours")["metadata"]["finalizers"], json!([CONTENT_FINALIZER, LOCAL_PATH_FINALIZER]));
    let told = |event: &&String| event.starts_with("SnapshotContentCheckandUpdateFailed: ");
    assert_eq!(world.events.iter().filter(told).count(), 1);
    // One that has somebody else's gets both.
    let theirs = json!({"metadata": {"finalizers": ["example.com/backup"]}});
    world.put(content("held", handle("n1/snapshot-8"), theirs));
    quiet(&mut world);
    let finalizers = json!(["example.com/backup", CONTENT_FINALIZER, LOCAL_PATH_FINALIZER]);
    assert_eq!(get(&world, "held")["metadata"]["finalizers"], finalizers);
    // One that has all finalizers and names its node already is not written.
    let finalizers = json!({"metadata": {"finalizers": [CONTENT_FINALIZER, LOCAL_PATH_FINALIZER], "annotations":
        {(SNAPSHOT_ON): "n1"}}});
    world.put(content("whole", handle("n1/snapshot-7"), finalizers.clone()));
    let before = get(&world, "whole");
    quiet(&mut world);
    assert_eq!(get(&world, "whole"), before);
    let mut moved = finalizers;
    moved["metadata"]["annotations"][SNAPSHOT_ON] = json!("n2");
    world.put(content("whole", handle("n1/snapshot-7"), moved));
    quiet(&mut world);
    assert_eq!(get(&world, "whole")["metadata"]["annotations"][SNAPSHOT_ON], "n1", "where the copy is");
}

#[test]
fn a_snapshot_says_what_its_content_says() {
    let owner = |kind: &str| {
        let version = "groupsnapshot.storage.k8s.io/v1";
        json!([{"apiVersion": version, "kind": kind, "name": "g", "uid": "g", "controller": true}])
    };
    for (kind, named) in [("VolumeGroupSnapshot", json!("g")), ("Backup", json!(null))] {
        let mut world = with_data();
        world.put(content("old", handle("n9/snapshot-1"), json!({})));
        let mut object = snapshot("mine", json!({"volumeSnapshotContentName": "old"}));
        object["metadata"]["ownerReferences"] = owner(kind);
        world.put(object);
        quiet(&mut world);
        let told = |world: &World, reason: &str| world.events.iter().filter(|event| event.starts_with(reason)).count();
        let seen = status(&world, "mine");
        assert_eq!([&seen["boundVolumeSnapshotContentName"], &seen["readyToUse"]], [&json!("old"), &json!(false)]);
        assert_eq!(seen["volumeGroupSnapshotName"], named, "{kind}");
        assert_eq!((told(&world, "SnapshotCreated"), told(&world, "SnapshotReady")), (0, 0));
        let second = 1_000_000_000_i64;
        let steps = [
            (json!({"creationTime": second}), ("creationTime", json!("1970-01-01T00:00:01Z")), (1, 0)),
            (json!({"error": {"message": "no"}}), ("/error/message", json!("no")), (1, 0)),
            (json!({"error": {"message": "still"}}), ("/error/message", json!("still")), (1, 0)),
            (json!({"restoreSize": 2048}), ("restoreSize", json!("2Ki")), (1, 0)),
            (json!({"restoreSize": 4096}), ("restoreSize", json!("4Ki")), (1, 0)),
            (json!({"creationTime": 2 * second}), ("creationTime", json!("1970-01-01T00:00:02Z")), (1, 0)),
            (json!({"readyToUse": true}), ("readyToUse", json!(true)), (1, 1)),
            (json!({"restoreSize": 8192}), ("restoreSize", json!("8Ki")), (1, 1)),
            (json!({"readyToUse": false}), ("readyToUse", json!(false)), (1, 1)),
        ];
        for (patch, (field, expected), events) in steps {
            world.patch(&kinds::VOLUME_SNAPSHOT_CONTENT, "", "old", json!({ "status": patch }));
            quiet(&mut world);
            let seen = status(&world, "mine");
            let found = seen.pointer(&format!("/{}", field.trim_start_matches('/'))).cloned().unwrap_or_default();
            assert_eq!(found, expected, "{patch}");
            assert_eq!((told(&world, "SnapshotCreated"), told(&world, "SnapshotReady")), events, "{patch}");
            if seen["readyToUse"] == true {
                assert!(seen["error"].is_null(), "what is ready has no error");
            }
        }
    }
}

/// S12: it is said what a snapshot waits for, and what is lost of its status comes back.
#[test]
fn s12_a_snapshot_says_what_it_waits_for() {
    let decided = |world: &World, name: &str| {
        (CONTROLLER.reconcile)(&world.snapshot, &ObjectKey::new("default", name), Timestamp::UNIX_EPOCH)
    };
    let mut world = with_data();
    world.put(class("fast", BUILT_IN[0], true));
    settle(&mut world);
    node_works(&mut world);
    world.put(snapshot("s", json!({"persistentVolumeClaimName": "data"})));
    settle(&mut world);
    // What is made for it is whole from the first: protected, and of the volume.
    let made = world.log.iter().find_map(|(_, write)| match write {
        Write::Create { kind, object } if *kind == kinds::VOLUME_SNAPSHOT_CONTENT => Some(object),
        _ => None,
    });
    let made = made.expect("a content");
    assert_eq!(made["metadata"]["finalizers"], json!([CONTENT_FINALIZER, LOCAL_PATH_FINALIZER]), "V3");
    let volume = volume_of(&world, "data")["metadata"]["name"].clone();
    assert_eq!(made["spec"]["source"], json!({ "volumeHandle": volume }));
    assert_eq!(decided(&world, "s").waiting, [Waiting::Missing { what: "the copy".to_owned() }]);
    let bound = status(&world, "s");
    world.patch(
        &kinds::VOLUME_SNAPSHOT,
        "default",
        "s",
        json!({"status": {"boundVolumeSnapshotContentName": null, "readyToUse": false}}),
    );
    settle(&mut world);
    assert_eq!(status(&world, "s"), bound);
    node_works(&mut world);
    assert_eq!(decided(&world, "s").waiting, []);
    // On its way out it waits for who restores from it, and then for its copy.
    world.put(claim("restored", "1Gi", from_snapshot("s")));
    settle(&mut world);
    world.delete(&kinds::VOLUME_SNAPSHOT, "default", "s", None);
    settle(&mut world);
    assert_eq!(decided(&world, "s").waiting, [Waiting::InUse], "a restore");
    world.put(user("r", "restored"));
    settle(&mut world);
    node_works(&mut world);
    assert_eq!(decided(&world, "s").waiting, [Waiting::InUse], "the node's work");
    // What is wrong is told once, and stays said.
    world.put(snapshot("lost", json!({"persistentVolumeClaimName": "nobody"})));
    settle(&mut world);
    let failed = status(&world, "lost");
    assert_eq!(failed["readyToUse"], false);
    let told = |world: &World| world.events.iter().filter(|event| event.contains("nobody")).count();
    assert_eq!(told(&world), 1, "{:?}", world.events);
    world.patch(&kinds::VOLUME_SNAPSHOT, "default", "lost", json!({"status": {"readyToUse": null}}));
    settle(&mut world);
    assert_eq!(status(&world, "lost"), failed);
}

/// A content is bound to the snapshot that it names, and only as what it was made for.
#[test]
fn v1_a_content_that_is_there_is_bound_only_to_whom_it_names() {
    let going = json!({"metadata": {"deletionTimestamp": OLD, "finalizers": ["x.io/y"]}});
    let table = [
        (content("c", handle("n1/snapshot-1"), json!({})), None),
        (content("c", handle("n1/snapshot-1"), json!({"spec": {"volumeSnapshotRef": {"uid": ""}}})), None),
        (
            content("c", handle("n1/snapshot-1"), json!({"spec": {"volumeSnapshotRef": {"name": "another"}}})),
            Some("VolumeSnapshotContent [c] is bound to a different snapshot"),
        ),
        (
            content("c", handle("n1/snapshot-1"), json!({"spec": {"volumeSnapshotRef": {"namespace": "other"}}})),
            Some("VolumeSnapshotContent [c] is bound to a different snapshot"),
        ),
        (
            content("c", handle("n1/snapshot-1"), json!({"spec": {"volumeSnapshotRef": {"uid": "x"}}})),
            Some("VolumeSnapshotContent [c] is bound to a different snapshot"),
        ),
        (
            content("c", handle("n1/snapshot-1"), going),
            Some("VolumeSnapshotContent [c] is bound to a different snapshot"),
        ),
        (
            content("c", json!({"volumeHandle": "v"}), json!({})),
            Some("VolumeSnapshotContent is dynamically provisioned while expecting a pre-provisioned one"),
        ),
    ];
    for (object, expected) in table {
        // Whichever comes first; what it is bound to follows from what is there.
        for first in [true, false] {
            let mut world = with_data();
            let mine = snapshot("mine", json!({"volumeSnapshotContentName": "c"}));
            let order = if first { [mine, object.clone()] } else { [object.clone(), mine] };
            for one in order {
                world.put(one);
                quiet(&mut world);
            }
            let uid = &world.get(&kinds::VOLUME_SNAPSHOT, "default", "mine")["metadata"]["uid"];
            let is_bound = get(&world, "c")["spec"]["volumeSnapshotRef"]["uid"] == *uid;
            assert_eq!(
                (is_bound, error(&world, "mine").as_str()),
                (expected.is_none(), expected.unwrap_or("")),
                "{object}"
            );
        }
    }
}

/// A snapshot is of a volume that is its claim's; a claim that goes or has none yet is waited for in words.
#[test]
fn a_snapshot_waits_until_its_claim_has_its_volume() {
    let csi = |name: &str, claim: &str| {
        json!({"kind": "PersistentVolume", "metadata": {"name": name}, "spec": {"capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"], "storageClassName": "fast", "volumeMode": "Block",
            "csi": {"driver": "example.com/csi", "volumeHandle": "vol-7"},
            "claimRef": {"namespace": "default", "name": claim, "uid": format!("uid-{claim}")}}})
    };
    let unbound = "the PVC data is not yet bound to a PV, will not attempt to take a snapshot";
    let mut world = World::default();
    world.put(class("theirs", "example.com/csi", true));
    let mut marked = class("also", "example.com/csi", false);
    marked["metadata"]["annotations"] = json!({(kinds::volumesnapshotclass::DEFAULT_ANNOTATION): "false"});
    world.put(marked);
    world.put(class("ours", BUILT_IN[0], true));
    world.put(snapshot("s", json!({"persistentVolumeClaimName": "data"})));
    let mut data = claim("data", "1Gi", Value::Null);
    data["metadata"]["uid"] = json!("uid-data");
    data["spec"]["volumeName"] = json!("v");
    data["status"]["phase"] = json!("Bound");
    data["metadata"]["annotations"] = json!({"pv.kubernetes.io/bind-completed": "yes"});
    let controllers = [CONTROLLER, volumesnapshotcontent::CONTROLLER];
    let mut step = |object: Value| {
        world.put(object);
        world.settle(&controllers, Timestamp::UNIX_EPOCH);
        world.assert_quiet(&controllers, Timestamp::UNIX_EPOCH);
        (error(&world, "s"), world.all(&kinds::VOLUME_SNAPSHOT_CONTENT).next().cloned())
    };
    let mut unnamed = data.clone();
    unnamed["spec"]["volumeName"] = json!(null);
    let (said, none) = step(unnamed);
    assert!(said.contains(unbound) && none.is_none(), "{said}");
    let (said, none) = step(csi("v", "another"));
    assert!(said.contains(unbound) && none.is_none(), "{said}");
    let mut going = data.clone();
    going["metadata"]["deletionTimestamp"] = json!(OLD);
    let (said, none) = step(going);
    assert!(said.contains("the PVC data is being deleted") && none.is_none(), "{said}");
    let (said, none) = step(data.clone());
    assert!(said.contains(unbound) && none.is_none(), "a volume that is another claim's: {said}");
    let (said, made) = step(csi("v", "data"));
    assert_eq!(said, "");
    let made = made.unwrap();
    assert_eq!(made["spec"]["source"], json!({"volumeHandle": "vol-7"}));
    assert_eq!([&made["spec"]["driver"], &made["spec"]["sourceVolumeMode"]], ["example.com/csi", "Block"]);
    assert_eq!(made["metadata"]["finalizers"], json!([CONTENT_FINALIZER]));
    assert!(made["metadata"]["annotations"].is_null(), "no node of ours has it");
    // The claim that is bound last is enough to go on.
    let mut world = World::default();
    world.put(class("theirs", "example.com/csi", true));
    world.put(csi("v", "data"));
    world.put(snapshot("s", json!({"persistentVolumeClaimName": "data"})));
    world.settle(&controllers, Timestamp::UNIX_EPOCH);
    world.put(data);
    world.settle(&controllers, Timestamp::UNIX_EPOCH);
    assert_eq!(world.all(&kinds::VOLUME_SNAPSHOT_CONTENT).count(), 1);
}

/// After a cut the deletion of a content is of that content as it was marked.
#[test]
fn a_content_is_deleted_as_it_was_last_seen() {
    let deleted = |world: &World| {
        let writes = world.log.iter().map(|(_, write)| write);
        let versions = writes.filter_map(|write| match write {
            Write::Delete { kind, resource_version, .. } if *kind == kinds::VOLUME_SNAPSHOT_CONTENT => {
                Some(resource_version.is_some())
            }
            _ => None,
        });
        versions.collect::<Vec<_>>()
    };
    for cut in [false, true] {
        let mut world = with_snapshot();
        world.delete(&kinds::VOLUME_SNAPSHOT, "default", "s", None);
        if cut {
            world.run(&CONTROLLER, &ObjectKey::new("default", "s"), Timestamp::UNIX_EPOCH, 1);
        }
        quiet(&mut world);
        assert_eq!(deleted(&world), [cut]);
    }
}
