//! Claims that are not bound, or not any more: which volume they get in the end, and in which words they are told why
//! not.

use super::*;

#[test]
fn the_default_class_is_given_late_and_the_newest_wins() {
    let mut world = World::default();
    world.put(node("n1", json!({})));
    world.put(claim("data", None, "ReadWriteOnce"));
    settle(&mut world);
    assert_eq!(bound_to(&world, "data"), "Pending -");
    for (name, made) in [("old", "2026-01-01T00:00:00Z"), ("new", "2026-02-01T00:00:00Z")] {
        let mut class = storage_class(name, "Immediate", "Delete");
        class["metadata"]["annotations"] = json!({"storageclass.kubernetes.io/is-default-class": "true"});
        class["metadata"]["creationTimestamp"] = json!(made);
        world.put(class);
    }
    settle(&mut world);
    assert_eq!(world.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "data")["spec"]["storageClassName"], "new");
    assert!(bound_to(&world, "data").starts_with("Bound pvc-"));
}

/// Lays `patch` over an object.
pub(super) fn with(mut object: Value, patch: Value) -> Value {
    crate::world::merge(&mut object, patch);
    object
}

#[test]
fn a_claim_is_told_once_why_it_is_pending() {
    let of_class =
        |provisioner: &str, mode: &str| with(storage_class("c", mode, "Delete"), json!({"provisioner": provisioner}));
    let claim_of = |patch: Value| with(claim("data", Some("c"), "ReadWriteOnce"), json!({"spec": patch}));
    let table = [
        (json!(null), claim_of(json!({})), "ProvisioningFailed: storageclass.storage.k8s.io \"c\" not found"),
        (
            json!(null),
            claim_of(json!({"storageClassName": ""})),
            "FailedBinding: no persistent volumes available for this claim and no storage class is set",
        ),
        (
            of_class("kubernetes.io/no-provisioner", "Immediate"),
            claim_of(json!({})),
            "ProvisioningFailed: no volume plugin matched name: kubernetes.io/no-provisioner",
        ),
        (
            of_class("kubernetes.io/no-provisioner", "WaitForFirstConsumer"),
            claim_of(json!({})),
            "WaitForFirstConsumer: waiting for first consumer to be created before binding",
        ),
        (
            of_class("ebs.csi.aws.com", "Immediate"),
            claim_of(json!({})),
            "ExternalProvisioning: Waiting for a volume to be created either by the external provisioner \
                'ebs.csi.aws.com' or manually by the \
             system administrator. If volume creation is delayed, please verify that the provisioner is running and \
                 correctly registered.",
        ),
        (
            of_class(BUILT_IN[1], "Immediate"),
            claim_of(json!({})),
            "ProvisioningFailed: failed to provision volume with StorageClass \"c\": no node makes volumes of this \
                class",
        ),
        (
            of_class(BUILT_IN[3], "Immediate"),
            claim_of(json!({"volumeAttributesClassName": "gold"})),
            "ProvisioningFailed: failed to provision volume with StorageClass \"c\": VAC gold cannot be applied: the \
                provisioner has no \
             attributes that can be set",
        ),
        (json!(null), claim_of(json!({"volumeName": "gone"})), "FailedBinding: persistentvolume \"gone\" not found"),
    ];
    for (class, claim, expected) in table {
        let mut world = World::default();
        if !class.is_null() {
            world.put(class);
        }
        world.put(claim);
        world.settle(&CONTROLLERS, Timestamp::UNIX_EPOCH);
        let mut told = world.events.clone();
        told.dedup();
        assert_eq!((bound_to(&world, "data").split(' ').next(), told), (Some("Pending"), vec![expected.to_owned()]));
    }
}

#[test]
fn a_claim_says_which_pods_it_waits_for() {
    let mut world = with_claim("WaitForFirstConsumer", "Delete");
    for name in ["a", "b"] {
        let far = pod(name, json!({"spec": {"nodeSelector": {"far": "away"}}}));
        world.put(with(
            far,
            json!({"spec": {"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]}}),
        ));
        settle(&mut world);
    }
    let mut told: Vec<&String> = world.events.iter().filter(|event| event.starts_with("WaitFor")).collect();
    told.dedup();
    let expected = [
        "WaitForFirstConsumer: waiting for first consumer to be created before binding",
        "WaitForPodScheduled: waiting for pod a to be scheduled",
        "WaitForPodScheduled: waiting for pods a,b to be scheduled",
    ];
    assert_eq!(told, expected);
}

#[test]
fn v1_a_volume_that_is_named_or_reserved_goes_to_nobody_else() {
    let reserved = |name: &str, reference: Value| {
        with(static_volume(name, "5Gi", "Retain"), json!({"spec": {"claimRef": reference}}))
    };
    let named = |name: &str, volume: &str| {
        with(claim(name, Some(""), "ReadWriteOnce"), json!({"spec": {"volumeName": volume}}))
    };
    let mut world = World::default();
    world.put(with(
        reserved("kept", json!({"namespace": "default", "name": "mine"})),
        json!({"spec": {"storageClassName": "other"}}),
    ));
    world.put(static_volume("small", "1Gi", "Retain"));
    world.put(reserved("foreign", json!({"namespace": "default", "name": "mine", "uid": "of-one-that-is-gone"})));
    world.put(claim("other", Some(""), "ReadWriteOnce"));
    settle(&mut world);
    // Whoever comes first gets what is free; what is reserved waits for its claim, whatever the class, and one that was
    // another's is Released for ever.
    assert_eq!(bound_to(&world, "other"), "Bound small");
    world.put(claim("mine", Some(""), "ReadWriteOnce"));
    world.put(named("late", "small"));
    world.put(named("large", "kept"));
    settle(&mut world);
    assert_eq!(
        ["mine", "late", "large"].map(|name| bound_to(&world, name)),
        ["Bound kept", "Pending small", "Pending kept"]
    );
    assert_eq!(["kept", "small", "foreign"].map(|name| phase_of(&world, name)), ["Bound", "Bound", "Released"]);
    assert!(
        world.events.contains(&"FailedBinding: volume \"small\" already bound to a different claim.".to_owned()),
        "{:?}",
        world.events
    );

    // By uid, before the claim is there to be found by name: a volume that will do is its own, one that will not is
    // nobody's.
    for (name, size, bound) in [("fits", "1Gi", "Bound fits"), ("tight", "512Mi", "Pending -")] {
        let reference = json!({"namespace": "default", "name": name, "uid": format!("the-{name}")});
        world.put(with(reserved(name, reference), json!({"spec": {"capacity": {"storage": size}}})));
        world.put(with(claim(name, Some(""), "ReadWriteOnce"), json!({"metadata": {"uid": format!("the-{name}")}})));
        settle(&mut world);
        assert_eq!(bound_to(&world, name), bound);
    }
    let mismatch = "VolumeMismatch: Cannot bind PersistentVolume to requested PersistentVolumeClaim \"tight\"";
    assert!(world.events.iter().any(|event| event.starts_with(mismatch)), "{:?}", world.events);
}

#[test]
fn v1_what_was_bound_and_lost_its_volume_is_lost() {
    let completed = json!({"metadata": {"annotations": {BIND_COMPLETED: "yes"}}});
    let mut world = World::default();
    world.put(static_volume("free", "5Gi", "Retain"));
    world.put(static_volume("taken", "5Gi", "Retain"));
    world.put(with(claim("owner", Some(""), "ReadWriteOnce"), json!({"spec": {"volumeName": "taken"}})));
    settle(&mut world);
    world.put(with(claim("restored", Some(""), "ReadWriteOnce"), completed.clone()));
    world.put(with(
        with(claim("thief", Some(""), "ReadWriteOnce"), completed),
        json!({"spec": {"volumeName": "taken"}}),
    ));
    settle(&mut world);
    assert_eq!(
        ["owner", "restored", "thief"].map(|name| bound_to(&world, name)),
        ["Bound taken", "Lost -", "Lost taken"]
    );
    world.remove(&kinds::PERSISTENT_VOLUME, &ObjectKey::new("", "taken"));
    settle(&mut world);
    assert_eq!((bound_to(&world, "owner").as_str(), phase_of(&world, "free").as_str()), ("Lost taken", "Available"));
    let words = [
        "ClaimLost: Bound claim has lost reference to PersistentVolume. Data on the volume is lost!",
        "ClaimMisbound: Two claims are bound to the same volume, this one is bound incorrectly",
        "ClaimLost: Bound claim has lost its PersistentVolume. Data on the volume is lost!",
    ];
    for told in words {
        assert_eq!(world.events.iter().filter(|event| *event == told).count(), 1, "{told}: {:?}", world.events);
    }
}

#[test]
fn v2_v3_whichever_is_deleted_first_the_policy_is_honoured() {
    for (first, second) in [("claim", "volume"), ("volume", "claim")] {
        for policy in ["Retain", "Delete"] {
            let mut world = with_claim("Immediate", policy);
            let name = bound_to(&world, "data").replace("Bound ", "");
            for what in [first, second] {
                match what {
                    "claim" => world.delete(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "data", None),
                    _ => world.delete(&kinds::PERSISTENT_VOLUME, "", &name, None),
                }
                settle(&mut world);
                let volume = world.get(&kinds::PERSISTENT_VOLUME, "", &name);
                let held = bound_to(&world, "data").starts_with("Bound");
                assert!(!held || !volume.is_null(), "V2: a volume in use is there");
            }
            // Delete leaves the directory to the node, and Retain to nobody.
            let left = world.get(&kinds::PERSISTENT_VOLUME, "", &name)["metadata"]["finalizers"].clone();
            assert_eq!(
                left,
                if policy == "Delete" { json!([LOCAL_PATH_FINALIZER]) } else { Value::Null },
                "{first} first, {policy}"
            );
        }
    }
    // Nobody can delete what is behind a volume that a person made: it says so, once, and stays.
    let mut world = World::default();
    world.put(static_volume("v", "1Gi", "Delete"));
    world.put(claim("data", Some(""), "ReadWriteOnce"));
    settle(&mut world);
    world.delete(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "data", None);
    settle(&mut world);
    let status = world.get(&kinds::PERSISTENT_VOLUME, "", "v")["status"].clone();
    assert_eq!(status["phase"], "Failed");
    assert!(
        status["message"].as_str().is_some_and(|why| why.contains("no deletable volume plugin matched")),
        "{status}"
    );
}

/// A claim that is told to go and is held by its pod still holds its volume.
#[test]
fn v2_a_volume_stays_while_a_claim_that_is_told_to_go_holds_it() {
    for policy in ["Retain", "Delete"] {
        let mut world = with_claim("Immediate", policy);
        let name = bound_to(&world, "data").replace("Bound ", "");
        world.put(user("web-0", "data"));
        settle(&mut world);
        assert_eq!(world.get(&kinds::POD, "default", "web-0")["spec"]["nodeName"], "n1");
        world.delete(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "data", None);
        world.delete(&kinds::PERSISTENT_VOLUME, "", &name, None);
        settle(&mut world);
        let protected = |world: &World, kind: &mainstay_api::Kind, namespace: &str, name: &str, finalizer: &str| {
            let finalizers = world.get(kind, namespace, name)["metadata"]["finalizers"].clone();
            finalizers.as_array().is_some_and(|all| all.iter().any(|held| held == finalizer))
        };
        assert!(
            protected(&world, &kinds::PERSISTENT_VOLUME_CLAIM, "default", "data", PVC_PROTECTION),
            "V2: a pod has the claim ({policy})"
        );
        assert!(
            protected(&world, &kinds::PERSISTENT_VOLUME, "", &name, PV_PROTECTION),
            "V2: the claim has the volume ({policy})"
        );
        world.remove(&kinds::POD, &ObjectKey::new("default", "web-0"));
        settle(&mut world);
        assert_eq!(bound_to(&world, "data"), "- -", "the claim goes with its last user");
        assert!(!protected(&world, &kinds::PERSISTENT_VOLUME, "", &name, PV_PROTECTION));
    }
}

/// The mark says already what it would say: a placement that was cut after it. It is written all the same, since only
/// a resourceVersion that moves tells two placements from one view apart.
#[test]
fn v9_a_claim_that_any_node_reaches_is_marked_anew_with_each_placement() {
    for mode in ["ReadWriteOnce", "ReadWriteOncePod"] {
        let mut world = World::default();
        for name in ["n1", "n2"] {
            world.put(node(name, json!({})));
        }
        world.put(static_volume("nfs", "1Gi", "Retain"));
        let mut wide = claim("data", Some(""), mode);
        wide["spec"]["volumeName"] = json!("nfs");
        world.patch(&kinds::PERSISTENT_VOLUME, "", "nfs", json!({"spec": {"accessModes": [mode]}}));
        world.put(wide);
        settle(&mut world);
        assert_eq!(bound_to(&world, "data"), "Bound nfs");
        for (name, node) in [("a", "n1"), ("b", "n2")] {
            let mut pod = user(name, "data");
            pod["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": node});
            world.put(pod);
        }
        let pod = |name: &str| ObjectKey::new("default", name);
        assert_eq!(world.run(&scheduler::CONTROLLER, &pod("a"), Timestamp::UNIX_EPOCH, 1), 1, "the mark alone");
        assert!(world.get(&kinds::POD, "default", "a")["spec"]["nodeName"].is_null(), "{mode}: cut before the binding");
        let view = world.snapshot.clone();
        world.run_on(&view, &scheduler::CONTROLLER, &pod("a"), Timestamp::UNIX_EPOCH, usize::MAX);
        world.run_on(&view, &scheduler::CONTROLLER, &pod("b"), Timestamp::UNIX_EPOCH, usize::MAX);
        let node_of = |name: &str| world.get(&kinds::POD, "default", name)["spec"]["nodeName"].clone();
        assert_eq!((node_of("a"), node_of("b")), (json!("n1"), Value::Null), "V9: {mode}");
    }
}

#[test]
fn v3_s12_a_volume_that_finds_no_node_to_empty_it_is_emptied_when_one_comes() {
    let mut world = World::default();
    world.put(static_volume("v", "1Gi", "Recycle"));
    world.put(claim("data", Some(""), "ReadWriteOnce"));
    settle(&mut world);
    world.delete(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "data", None);
    settle(&mut world);
    let asked = |world: &World| {
        world.get(&kinds::PERSISTENT_VOLUME, "", "v")["metadata"]["annotations"]["mainstay.io/recycle-on"].clone()
    };
    assert_eq!((phase_of(&world, "v").as_str(), asked(&world)), ("Released", Value::Null));
    world.put(node("n1", json!({})));
    settle(&mut world);
    assert_eq!(asked(&world), "n1");
}
