//! What a group is made of, when it is ready, and what it leaves behind.

use super::*;

fn ready_world(claims: usize) -> World {
    let mut world = World::default();
    class(&mut world);
    for index in 0..claims {
        claim(&mut world, &format!("c{index:02}"), "db", "n1");
    }
    world.put(group("g", "db"));
    settle(&mut world);
    world
}

fn message(world: &World) -> String {
    status(world, "g")["error"]["message"].as_str().unwrap_or("").to_owned()
}

fn contents(world: &World) -> Vec<Value> {
    world.all(&kinds::VOLUME_GROUP_SNAPSHOT_CONTENT).cloned().collect()
}

fn count(world: &World, reason: &str) -> usize {
    world.events.iter().filter(|event| event.starts_with(reason)).count()
}

#[test]
fn a_group_has_no_more_members_than_can_be_copied_at_one_moment() {
    let most = ready_world(MAX_MEMBERS);
    assert_eq!((message(&most).as_str(), contents(&most).len()), ("", 1));
    let more = ready_world(MAX_MEMBERS + 1);
    assert!(message(&more).contains("more than"), "{}", message(&more));
    assert_eq!(contents(&more).len(), 0);
}

#[test]
fn claims_that_go_are_of_no_group() {
    let mut world = World::default();
    class(&mut world);
    for name in ["a", "b"] {
        claim(&mut world, name, "db", "n1");
    }
    let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    world.patch(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "a", going);
    world.put(group("g", "db"));
    world.settle(&[CONTROLLER], Timestamp::UNIX_EPOCH);
    assert_eq!(contents(&world)[0]["spec"]["source"]["volumeHandles"], json!(["pv-b"]));
}

#[test]
fn the_class_is_the_built_in_drivers() {
    let of = |name: &str, driver: &str, default: Value| {
        json!({"kind": "VolumeGroupSnapshotClass", "metadata": {"name": name, "annotations":
            {(kinds::volumegroupsnapshotclass::DEFAULT_ANNOTATION): default}}, "driver": driver,
            "deletionPolicy": "Delete"})
    };
    let table = [
        (vec![of("a", BUILT_IN[0], json!("true"))], None, Ok("a")),
        (vec![of("a", "x.io/csi", json!("true"))], None, Err("cannot find default group snapshot class")),
        (vec![of("a", BUILT_IN[0], json!("false"))], None, Err("cannot find default group snapshot class")),
        (vec![of("a", BUILT_IN[0], json!("true")), of("b", "x.io/csi", json!("true"))], None, Ok("a")),
        (
            vec![of("a", BUILT_IN[0], json!("true")), of("b", BUILT_IN[1], json!("true"))],
            None,
            Err("2 default group snapshot classes were found"),
        ),
        (vec![of("a", BUILT_IN[0], json!("true")), of("b", BUILT_IN[0], json!(""))], Some("b"), Ok("b")),
        (vec![of("b", "x.io/csi", json!(""))], Some("b"), Err("group snapshot class b is of driver \"x.io/csi\"")),
        (vec![], Some("b"), Err("volumegroupsnapshotclass.groupsnapshot.storage.k8s.io \"b\" not found")),
    ];
    for (classes, named, expected) in table {
        let mut world = World::default();
        claim(&mut world, "a", "db", "n1");
        classes.into_iter().for_each(|class| world.put(class));
        let mut object = group("g", "db");
        object["spec"]["volumeGroupSnapshotClassName"] = json!(named);
        world.put(object);
        settle(&mut world);
        let made = contents(&world);
        match expected {
            Ok(name) => assert_eq!(made[0]["spec"]["volumeGroupSnapshotClassName"], name),
            Err(why) => assert!(made.is_empty() && message(&world).contains(why), "{why}: {}", message(&world)),
        }
    }
}

/// Ready when every copy is, and said once.
#[test]
fn a_group_is_ready_when_all_its_members_are() {
    let mut world = ready_world(2);
    let name = contents(&world)[0]["metadata"]["name"].as_str().unwrap().to_owned();
    let say = |world: &mut World, status: Value| {
        world.patch(&kinds::VOLUME_GROUP_SNAPSHOT_CONTENT, "", &name, json!({ "status": status }));
        settle(world);
    };
    let is_ready = |world: &World| status(world, "g")["readyToUse"] == true;
    say(&mut world, json!({"readyToUse": false, "error": {"message": "disk full"}}));
    say(&mut world, json!({"readyToUse": false}));
    assert_eq!((message(&world).as_str(), count(&world, "GroupSnapshotCreationFailed")), ("disk full", 1));
    say(&mut world, json!({"readyToUse": false, "error": null}));
    assert_eq!(message(&world), "", "it goes on");
    say(&mut world, json!({"readyToUse": true}));
    assert!(!is_ready(&world), "there are no copies");
    let block = json!({"spec": {"volumeMode": "Block"}});
    world.patch(&kinds::PERSISTENT_VOLUME, "", "pv-c01", block);
    let copies: Vec<Value> = (0..2)
        .map(|index| json!({"volumeHandle": format!("pv-c0{index}"), "snapshotHandle": format!("n1/snapshot-{index}")}))
        .collect();
    say(&mut world, json!({"readyToUse": false, "volumeSnapshotInfoList": copies}));
    let members: Vec<String> = world
        .all(&kinds::VOLUME_SNAPSHOT)
        .map(|member| member["spec"]["source"]["volumeSnapshotContentName"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(members.len(), 2);
    let modes: Vec<Value> =
        world.all(&kinds::VOLUME_SNAPSHOT_CONTENT).map(|content| content["spec"]["sourceVolumeMode"].clone()).collect();
    assert_eq!(modes, ["Filesystem", "Block"]);
    say(&mut world, json!({"readyToUse": true}));
    assert!(!is_ready(&world));
    for (index, member) in members.iter().enumerate() {
        assert!(!is_ready(&world), "member {index} is not");
        let made = json!({"status": {"snapshotHandle": format!("n1/snapshot-{index}"), "readyToUse": true}});
        world.patch(&kinds::VOLUME_SNAPSHOT_CONTENT, "", member, made);
        settle(&mut world);
    }
    assert!(is_ready(&world));
    assert_eq!(count(&world, "GroupSnapshotReady: Group snapshot default/g is ready to use."), 1);
    world.assert_quiet(&CONTROLLERS, Timestamp::UNIX_EPOCH);
    // A copy that is gone is not made anew: it would hold another moment.
    let first = world.all(&kinds::VOLUME_SNAPSHOT).next().map(ObjectKey::of).unwrap();
    world.remove(&kinds::VOLUME_SNAPSHOT, &first);
    settle(&mut world);
    assert_eq!(world.all(&kinds::VOLUME_SNAPSHOT).count(), 1);
    world.remove(&kinds::VOLUME_GROUP_SNAPSHOT_CONTENT, &ObjectKey::new("", &*name));
    settle(&mut world);
    assert_eq!(message(&world), "VolumeGroupSnapshotContent is missing");
    assert_eq!((contents(&world).len(), count(&world, "GroupSnapshotContentMissing")), (0, 1));
}

/// What it waits for and what it writes at each step, in single decisions.
#[test]
fn s12_a_group_says_that_it_waits_and_makes_only_what_is_missing() {
    let decided =
        |world: &World| (CONTROLLER.reconcile)(&world.snapshot, &ObjectKey::new("default", "g"), Timestamp::UNIX_EPOCH);
    let mut world = ready_world(2);
    let object = world.get(&kinds::VOLUME_GROUP_SNAPSHOT, "default", "g");
    assert_eq!(object["spec"]["volumeGroupSnapshotClassName"], "one", "the default is written down");
    let uid = object["metadata"]["uid"].as_str().unwrap();
    let name = contents(&world)[0]["metadata"]["name"].as_str().unwrap().to_owned();
    assert_eq!(name, format!("groupsnapcontent-{uid}"), "of this group alone, whatever was of its name before");
    assert_eq!(decided(&world).waiting, [Waiting::Missing { what: "the copies".to_owned() }]);
    // Which content it has is written again where that was lost.
    world.patch(
        &kinds::VOLUME_GROUP_SNAPSHOT,
        "default",
        "g",
        json!({"status": {"boundVolumeGroupSnapshotContentName": null}}),
    );
    settle(&mut world);
    assert_eq!(status(&world, "g")["boundVolumeGroupSnapshotContentName"], name.as_str());
    // Copies of which one is still being made, and another was tried twice.
    let copies: Vec<Value> = (0..2)
        .map(|index| json!({"volumeHandle": format!("pv-c0{index}"), "snapshotHandle": format!("n1/snapshot-{index}")}))
        .collect();
    let said = json!({"readyToUse": false, "volumeSnapshotInfoList": copies});
    world.patch(&kinds::VOLUME_GROUP_SNAPSHOT_CONTENT, "", &name, json!({ "status": said }));
    let made = |world: &World| {
        let is_new = |write: &&Write| matches!(write, Write::Create { .. });
        decided(world).writes.iter().filter(is_new).count()
    };
    assert_eq!(made(&world), 4);
    world.settle(&[CONTROLLER], Timestamp::UNIX_EPOCH);
    let member = world.all(&kinds::VOLUME_SNAPSHOT).next().map(ObjectKey::of).unwrap();
    world.remove(&kinds::VOLUME_SNAPSHOT, &member);
    assert_eq!(made(&world), 1, "the content of the member that is gone is there");
    world.settle(&[CONTROLLER], Timestamp::UNIX_EPOCH);
    let content = world.all(&kinds::VOLUME_SNAPSHOT_CONTENT).next().map(ObjectKey::of).unwrap();
    world.remove(&kinds::VOLUME_SNAPSHOT_CONTENT, &content);
    assert_eq!(made(&world), 1, "and the other way round");
    settle(&mut world);
    for content in world.all(&kinds::VOLUME_SNAPSHOT_CONTENT).map(ObjectKey::of).collect::<Vec<_>>() {
        let ready = json!({"status": {"snapshotHandle": "n1/snapshot-0", "readyToUse": true}});
        world.patch(&kinds::VOLUME_SNAPSHOT_CONTENT, "", &content.name, ready);
    }
    settle(&mut world);
    assert_eq!(
        status(&world, "g")["readyToUse"],
        false,
        "the members are, and the copies as a whole are not said to be"
    );
    let done = json!({"readyToUse": true, "error": {"message": "tried again"}});
    world.patch(&kinds::VOLUME_GROUP_SNAPSHOT_CONTENT, "", &name, json!({ "status": done }));
    settle(&mut world);
    assert_eq!((&status(&world, "g")["readyToUse"], message(&world).as_str()), (&json!(true), ""));
    assert_eq!(decided(&world).waiting, []);
    // An error that stands there without a word on whether it is ready.
    let mut world = World::default();
    let mut object = group("g", "db");
    object["metadata"]["finalizers"] = json!([FINALIZER]);
    world.put(object);
    settle(&mut world);
    let failed = status(&world, "g");
    assert_eq!(failed["readyToUse"], false);
    world.patch(&kinds::VOLUME_GROUP_SNAPSHOT, "default", "g", json!({"status": {"readyToUse": null}}));
    settle(&mut world);
    assert_eq!(status(&world, "g"), failed);
}

/// V3: a group takes along its own content, where the policy says so, and nothing of others.
#[test]
fn v3_a_group_that_goes_takes_its_own_along() {
    for (policy, kept) in [("Delete", false), ("Retain", true)] {
        let mut world = ready_world(1);
        let name = contents(&world)[0]["metadata"]["name"].as_str().unwrap().to_owned();
        world.patch(&kinds::VOLUME_GROUP_SNAPSHOT_CONTENT, "", &name, json!({"spec": {"deletionPolicy": policy}}));
        let theirs = json!({"metadata": {"finalizers": ["example.com/backup", FINALIZER]}});
        world.patch(&kinds::VOLUME_GROUP_SNAPSHOT, "default", "g", theirs);
        world.delete(&kinds::VOLUME_GROUP_SNAPSHOT, "default", "g", None);
        settle(&mut world);
        assert_eq!(contents(&world)[0]["metadata"]["deletionTimestamp"].is_null(), kept, "{policy}");
        let finalizers = world.get(&kinds::VOLUME_GROUP_SNAPSHOT, "default", "g")["metadata"]["finalizers"].clone();
        let expected = if kept { json!(["example.com/backup"]) } else { json!(["example.com/backup", FINALIZER]) };
        assert_eq!(finalizers, expected, "{policy}");
        world.assert_quiet(&CONTROLLERS, Timestamp::UNIX_EPOCH);
    }
    // A content of its name that is another group's, by uid, is not its own.
    let mut world = World::default();
    class(&mut world);
    world.put(json!({"kind": "VolumeGroupSnapshotContent", "metadata": {"name": "groupsnapcontent-mine"}, "spec":
        {"driver": BUILT_IN[0], "deletionPolicy": "Delete", "source": {"volumeHandles": []},
        "volumeGroupSnapshotRef": {"namespace": "default", "name": "g", "uid": "before"}}}));
    let mut object = group("g", "db");
    object["metadata"]["uid"] = json!("mine");
    object["metadata"]["finalizers"] = json!(["x.io/other"]);
    world.put(object);
    settle(&mut world);
    assert!(message(&world).contains("finds no persistentvolumeclaim"), "{}", message(&world));
    assert_eq!(
        world.get(&kinds::VOLUME_GROUP_SNAPSHOT, "default", "g")["metadata"]["finalizers"],
        json!(["x.io/other", FINALIZER])
    );
    world.delete(&kinds::VOLUME_GROUP_SNAPSHOT, "default", "g", None);
    settle(&mut world);
    assert!(contents(&world)[0]["metadata"]["deletionTimestamp"].is_null());
    assert_eq!(
        world.get(&kinds::VOLUME_GROUP_SNAPSHOT, "default", "g")["metadata"]["finalizers"],
        json!(["x.io/other"])
    );
}
