//! What bound claims ask for: another size, another class of attributes.

use super::*;

fn conditions(world: &World) -> Vec<String> {
    let conditions = status(world)["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().map(|condition| condition["type"].as_str().unwrap_or("").to_owned()).collect()
}

fn told(world: &World, text: &str) -> usize {
    world.events.iter().filter(|event| event.contains(text)).count()
}

#[test]
fn v10_an_image_has_the_new_size_only_when_its_node_has_made_it() {
    let mut world = with_claim("Immediate", "Delete");
    let name = bound_to(&world, "data").replace("Bound ", "");
    let volume = |world: &World| world.get(&kinds::PERSISTENT_VOLUME, "", &name);
    let made = |world: &mut World, bytes: i64| note(world, &name, json!({MADE_SIZE: bytes.to_string()}));
    assert_eq!(volume(&world)["metadata"]["annotations"][SIZE], "image");
    made(&mut world, 1 << 30);
    assert!(status(&world)["conditions"].is_null(), "{}", status(&world));

    ask(&mut world, "3Gi");
    assert_eq!(volume(&world)["spec"]["capacity"]["storage"], "3Gi");
    assert_eq!(status(&world)["capacity"]["storage"], "1Gi", "not yet real");
    assert_eq!(status(&world)["conditions"][0]["type"], "FileSystemResizePending");
    assert_eq!(status(&world)["allocatedResources"]["storage"], "3Gi");
    assert_eq!(status(&world)["allocatedResourceStatuses"]["storage"], "NodeResizePending");

    // V10: the node could not, which is said and tried again, and forgotten when the user thinks better of it.
    note(&mut world, &name, json!({growth::RESIZE_ERROR: "no space left"}));
    assert_eq!(conditions(&world), ["FileSystemResizePending", "NodeResizeError"]);
    assert_eq!(status(&world)["conditions"][1]["message"], "no space left");
    let key = ObjectKey::new("default", "data");
    let again = (persistentvolumeclaim::CONTROLLER.reconcile)(&world.snapshot, &key, Timestamp::UNIX_EPOCH);
    assert!(again.events.is_empty(), "told once: {:?}", again.events);
    assert_eq!(status(&world)["allocatedResourceStatuses"]["storage"], "NodeResizeInProgress");
    // The user thinks better of it, which recovers what cannot be made.
    ask(&mut world, "2Gi");
    assert_eq!(volume(&world)["spec"]["capacity"]["storage"], "2Gi");
    assert_eq!(
        (status(&world)["capacity"]["storage"].as_str(), status(&world)["allocatedResources"]["storage"].as_str()),
        (Some("1Gi"), Some("2Gi"))
    );
    made(&mut world, 2 << 30);
    assert_eq!(status(&world)["capacity"]["storage"], "2Gi");
    assert!(status(&world)["allocatedResourceStatuses"].is_null());
    assert!(status(&world)["conditions"].as_array().is_none_or(Vec::is_empty), "{}", status(&world));
    // What is real does not shrink.
    ask(&mut world, "1Gi");
    assert_eq!(
        (status(&world)["capacity"]["storage"].as_str(), volume(&world)["spec"]["capacity"]["storage"].as_str()),
        (Some("2Gi"), Some("2Gi"))
    );
}

#[test]
fn v1_a_claim_of_a_block_device_gets_one_and_no_file_system() {
    let mut world = World::default();
    world.put(node("n1", json!({})));
    world.put(storage_class("fast", "Immediate", "Delete"));
    let block = |mut object: Value| {
        object["spec"]["volumeMode"] = json!("Block");
        object
    };
    let local = |name: &str, claim: Value| {
        json!({"kind": "PersistentVolume", "metadata": {"name": name},
            "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "claimRef": claim,
                "storageClassName": "given", "local": {"path": "/dev/x"}}})
    };
    // One that is there is taken by its mode, also where it was reserved or the claim names it.
    world.put(local("files", json!(null)));
    world.put(local("kept-files", json!({"namespace": "default", "name": "kept"})));
    world.put(block(claim("data", Some("given"), "ReadWriteOnce")));
    world.put(block(claim("kept", Some("given"), "ReadWriteOnce")));
    let mut named = block(claim("named", Some("given"), "ReadWriteOnce"));
    named["spec"]["volumeName"] = json!("files");
    world.put(named);
    settle(&mut world);
    for name in ["data", "kept", "named"] {
        assert_eq!(bound_to(&world, name).split(' ').next(), Some("Pending"), "{name}");
    }
    assert!(told(&world, "Cannot bind to requested volume \"files\": incompatible volumeMode") > 0);
    world.put(block(local("device", json!(null))));
    settle(&mut world);
    assert_eq!(bound_to(&world, "data"), "Bound device");
    // Of a class it is made.
    world.put(block(claim("made", Some("fast"), "ReadWriteOnce")));
    settle(&mut world);
    let made = bound_to(&world, "made").replace("Bound ", "");
    let made = world.get(&kinds::PERSISTENT_VOLUME, "", &made);
    assert_eq!(
        (&made["spec"]["volumeMode"], &made["metadata"]["annotations"][SIZE]),
        (&json!("Block"), &json!("image"))
    );
    let mut plain = storage_class("plain", "Immediate", "Delete");
    plain["parameters"] = json!({SIZE: SIZE_NONE});
    world.put(plain);
    world.put(block(claim("folder", Some("plain"), "ReadWriteOnce")));
    settle(&mut world);
    assert!(told(&world, "does not support volume mode Block with parameter mainstay.io/size: none") > 0);
}

#[test]
fn v10_no_more_is_promised_than_a_node_has_and_a_growth_without_room_can_be_taken_back() {
    let room = |gib: i64| json!({"metadata": {"annotations": {room::VOLUME_CAPACITY: (gib << 30).to_string()}}});
    let mut world = World::default();
    world.put(node("n1", room(3)));
    world.put(storage_class("fast", "Immediate", "Delete"));
    world.put(storage_class("late", "WaitForFirstConsumer", "Delete"));
    let mut careless = storage_class("careless", "WaitForFirstConsumer", "Delete");
    careless["parameters"] = json!({room::OVERCOMMIT: "true"});
    world.put(careless);
    world.put(claim("data", Some("fast"), "ReadWriteOnce"));
    settle(&mut world);
    let name = bound_to(&world, "data").replace("Bound ", "");

    ask(&mut world, "9Gi");
    assert_eq!(conditions(&world), ["ControllerResizeError"]);
    assert_eq!(status(&world)["allocatedResources"]["storage"], "9Gi");
    assert_eq!(status(&world)["allocatedResourceStatuses"]["storage"], "ControllerResizeInfeasible");
    assert_eq!((told(&world, "VolumeResizeFailed"), status(&world)["capacity"]["storage"].as_str()), (1, Some("1Gi")));
    ask(&mut world, "2Gi");
    assert_eq!((conditions(&world), status(&world)["capacity"]["storage"].as_str()), (Vec::new(), Some("2Gi")));
    assert_eq!(status(&world)["allocatedResources"]["storage"], "2Gi");

    // 1 GiB is left: one claim gets it, the next waits, one of a class that says so does not.
    for (pod, claimed, class) in [("a", "one", "late"), ("b", "two", "late"), ("c", "three", "careless")] {
        world.put(claim(claimed, Some(class), "ReadWriteOnce"));
        world.put(user(pod, claimed));
        settle(&mut world);
    }
    let node_of = |world: &World, pod: &str| world.get(&kinds::POD, "default", pod)["spec"]["nodeName"].clone();
    assert_eq!(["a", "b", "c"].map(|pod| node_of(&world, pod)), [json!("n1"), Value::Null, json!("n1")]);
    let waits = world.get(&kinds::POD, "default", "b")["status"]["conditions"][0]["message"].clone();
    assert_eq!(
        waits,
        "0/1 nodes are available: 1 node(s) did not have enough free storage. preemption: 0/1 nodes are available: 1 \
            Preemption is not helpful for scheduling."
    );
    // A claim that waits for no pod is told the same, and gets its volume when there is room: another is gone.
    world.put(claim("now", Some("fast"), "ReadWriteOnce"));
    settle(&mut world);
    assert_eq!(
        told(&world, "ProvisioningFailed: failed to provision volume with StorageClass \"fast\": node(s) did not have"),
        1
    );
    world.remove(&kinds::PERSISTENT_VOLUME_CLAIM, &ObjectKey::new("default", "data"));
    settle(&mut world);
    assert_eq!(bound_to(&world, "now"), "Pending -", "the node has yet to remove what is deleted");
    world.remove(&kinds::PERSISTENT_VOLUME, &ObjectKey::new("", name));
    settle(&mut world);
    let served = |world: &World| {
        [bound_to(world, "now"), bound_to(world, "two")].iter().filter(|said| said.starts_with("Bound")).count()
    };
    assert_eq!(served(&world), 1, "one of those that wait gets it");
    world.patch(&kinds::NODE, "", "n1", room(4));
    settle(&mut world);
    assert_eq!((served(&world), node_of(&world, "b")), (2, json!("n1")));
}

#[test]
fn pods_go_where_most_room_is_left() {
    let mut world = World::default();
    for (name, bytes) in [("n1", 2_i64 << 30), ("n2", 8 << 30)] {
        world.put(node(name, json!({"metadata": {"annotations": {room::VOLUME_CAPACITY: bytes.to_string()}}})));
    }
    world.put(storage_class("late", "WaitForFirstConsumer", "Delete"));
    world.put(claim("data", Some("late"), "ReadWriteOnce"));
    world.put(user("a", "data"));
    settle(&mut world);
    assert_eq!(world.get(&kinds::POD, "default", "a")["spec"]["nodeName"], "n2");
}

#[test]
fn attributes_that_nobody_can_change_are_infeasible_and_their_class_is_kept() {
    let mut world = with_claim("Immediate", "Delete");
    let ask_for = |world: &mut World, class: Value| {
        world.patch(
            &kinds::PERSISTENT_VOLUME_CLAIM,
            "default",
            "data",
            json!({"spec": {"volumeAttributesClassName": class}}),
        );
        settle(world);
    };
    ask_for(&mut world, json!("gold"));
    assert_eq!(
        status(&world)["modifyVolumeStatus"],
        json!({"targetVolumeAttributesClassName": "gold", "status": "Pending"})
    );
    world.put(json!({"kind": "VolumeAttributesClass", "metadata": {"name": "gold"}, "driverName": BUILT_IN[0],
            "parameters": {"iops": "9"}}));
    settle(&mut world);
    assert_eq!(
        status(&world)["modifyVolumeStatus"],
        json!({"targetVolumeAttributesClassName": "gold", "status": "Infeasible"})
    );
    assert_eq!(conditions(&world), ["ModifyVolumeError"]);
    let why = "VolumeModifyFailed: VAC gold: mainstay.io/local-path has no attributes that can be changed; not \
        understood: iops";
    assert_eq!((told(&world, why), told(&world, "VAC gold does not exist.")), (1, 1), "{:?}", world.events);
    let key = ObjectKey::new("default", "data");
    let again = (persistentvolumeclaim::CONTROLLER.reconcile)(&world.snapshot, &key, Timestamp::UNIX_EPOCH);
    assert!(again.events.is_empty() && again.writes.is_empty(), "once: {:?}", again.events);
    // V2: it stays while it is asked for.
    world.delete(&kinds::VOLUME_ATTRIBUTES_CLASS, "", "gold", None);
    settle(&mut world);
    assert!(world.get(&kinds::VOLUME_ATTRIBUTES_CLASS, "", "gold")["metadata"]["deletionTimestamp"].is_string());
    ask_for(&mut world, Value::Null);
    assert_eq!((conditions(&world), status(&world)["modifyVolumeStatus"].clone()), (Vec::new(), Value::Null));
    assert!(world.get(&kinds::VOLUME_ATTRIBUTES_CLASS, "", "gold").is_null());

    // A claim that asks for one from the beginning gets only a volume that has it.
    let mut asks = claim("gold", Some(""), "ReadWriteOnce");
    asks["spec"]["volumeAttributesClassName"] = json!("gold");
    world.put(asks);
    world.put(static_volume("plain", "1Gi", "Retain"));
    settle(&mut world);
    assert_eq!(bound_to(&world, "gold"), "Pending -");
    let mut golden = static_volume("golden", "9Gi", "Retain");
    golden["spec"]["volumeAttributesClassName"] = json!("gold");
    world.put(golden);
    settle(&mut world);
    assert_eq!(bound_to(&world, "gold"), "Bound golden");
    assert_eq!(
        world.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "gold")["status"]["currentVolumeAttributesClassName"],
        "gold"
    );

    // V2: a volume that has it keeps it, also when it is no claim's any more.
    world.put(json!({"kind": "VolumeAttributesClass", "metadata": {"name": "gold"}, "driverName": BUILT_IN[0]}));
    settle(&mut world);
    world.remove(&kinds::PERSISTENT_VOLUME_CLAIM, &ObjectKey::new("default", "gold"));
    world.delete(&kinds::VOLUME_ATTRIBUTES_CLASS, "", "gold", None);
    settle(&mut world);
    assert!(world.get(&kinds::VOLUME_ATTRIBUTES_CLASS, "", "gold")["metadata"]["deletionTimestamp"].is_string());
    world.remove(&kinds::PERSISTENT_VOLUME, &ObjectKey::new("", "golden"));
    settle(&mut world);
    assert!(world.get(&kinds::VOLUME_ATTRIBUTES_CLASS, "", "gold").is_null());
}
