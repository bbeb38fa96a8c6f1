//! S12: claims that wait, and what each of them waits for. Nothing but the change itself asks for the decision, and
//! nothing is left to do afterwards.

use crate::decision::Waiting;
use mainstay_api::object;

use super::pending::with;
use super::*;
use crate::volume::room::VOLUME_CAPACITY;

const GIB: i64 = 1 << 30;

fn roomy(name: &str, gib: i64) -> Value {
    let annotations = json!({(VOLUME_ROOT): "/v", (VOLUME_CAPACITY): (gib * GIB).to_string()});
    node(name, json!({"metadata": {"annotations": annotations}}))
}

fn asks(name: &str, size: &str, over: Value) -> Value {
    let spec = json!({"spec": {"resources": {"requests": {"storage": size}}}});
    with(with(claim(name, Some("fast"), "ReadWriteOnce"), spec), over)
}

fn is_bound(world: &World, name: &str) -> bool {
    bound_to(world, name).starts_with("Bound ")
}

fn told(world: &World, what: &str) -> bool {
    world.events.iter().any(|event| event.contains(what))
}

/// V10: whoever found no room is asked again when there is some.
#[test]
fn s12_v10_a_claim_without_room_gets_it_when_there_is_some() {
    let changes: [(&str, fn(&mut World)); 4] = [
        ("the node has more", |world| world.put(roomy("n1", 20))),
        ("another node comes", |world| world.put(roomy("n2", 20))),
        ("a volume goes", |world| {
            let large = world.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "large")["spec"]["volumeName"].clone();
            world.remove(&kinds::PERSISTENT_VOLUME, &ObjectKey::new("", large.as_str().unwrap()));
        }),
        ("a volume is to be smaller", |world| {
            let large = world.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "large")["spec"]["volumeName"].clone();
            let smaller = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
            world.patch(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "large", smaller);
            let smaller = json!({"spec": {"capacity": {"storage": "2Gi"}}});
            world.patch(&kinds::PERSISTENT_VOLUME, "", large.as_str().unwrap(), smaller);
        }),
    ];
    for (why, change) in changes {
        let mut world = World::default();
        world.put(roomy("n1", 10));
        world.put(storage_class("fast", "Immediate", "Delete"));
        world.put(asks("large", "8Gi", json!({})));
        settle(&mut world);
        world.put(asks("late", "5Gi", json!({})));
        settle(&mut world);
        assert!(is_bound(&world, "large") && !is_bound(&world, "late"), "{why}");
        change(&mut world);
        settle(&mut world);
        assert!(is_bound(&world, "late"), "{why}");
    }
}

/// A growth that was refused for want of room goes on when there is some, whenever the claim was bound.
#[test]
fn s12_v10_a_growth_without_room_goes_on_when_there_is_some() {
    for mode in ["Immediate", "WaitForFirstConsumer"] {
        for gone in [false, true] {
            let mut world = World::default();
            world.put(roomy("n1", 10));
            world.put(storage_class("fast", mode, "Delete"));
            world.put(asks("data", "4Gi", json!({})));
            world.put(asks("other", "4Gi", json!({})));
            world.put(user("p", "data"));
            world.put(user("q", "other"));
            settle(&mut world);
            ask(&mut world, "8Gi");
            assert_eq!(status(&world)["allocatedResourceStatuses"]["storage"], "ControllerResizeInfeasible", "{mode}");
            if gone {
                let other = bound_to(&world, "other").replace("Bound ", "");
                world.remove(&kinds::PERSISTENT_VOLUME, &ObjectKey::new("", other));
            } else {
                world.put(roomy("n1", 20));
            }
            settle(&mut world);
            let volume = world.get(&kinds::PERSISTENT_VOLUME, "", &bound_to(&world, "data").replace("Bound ", ""));
            assert_eq!(volume["spec"]["capacity"]["storage"], "8Gi", "{mode} {gone}");
        }
    }
}

/// A node that comes to be what a class asks for makes its volumes.
#[test]
fn s12_a_claim_is_bound_when_a_node_is_in_its_classs_topology() {
    let topology = json!([{"matchLabelExpressions": [{"key": "zone", "values": ["a", "b"]}, {"key": "disk",
        "values": ["ssd"]}]}]);
    let mut world = World::default();
    let mut class = storage_class("fast", "Immediate", "Delete");
    class["allowedTopologies"] = topology;
    world.put(class);
    world.put(asks("data", "1Gi", json!({})));
    for (labels, expected) in [
        (json!({}), false),
        (json!({"zone": "a"}), false),
        (json!({"zone": "c", "disk": "ssd"}), false),
        (json!({"zone": "b", "disk": "ssd"}), true),
    ] {
        world.put(node("n1", json!({"metadata": {"labels": labels}})));
        settle(&mut world);
        assert_eq!(is_bound(&world, "data"), expected, "{labels}");
    }
}

/// A claim that asked for the data of another one waits for that, and for no other of its name.
#[test]
fn s12_a_clone_is_made_when_its_source_is_there() {
    let source = json!({"spec": {"dataSource": {"kind": "PersistentVolumeClaim", "name": "data"}}});
    let mut world = World::default();
    world.put(node("n1", json!({})));
    world.put(with(storage_class("fast", "Immediate", "Delete"), json!({"parameters": {(SIZE): "image"}})));
    world.put(asks("clone", "1Gi", source));
    settle(&mut world);
    assert!(!is_bound(&world, "clone"));
    world.put(asks("data", "1Gi", json!({"metadata": {"namespace": "other"}})));
    world.put(asks("data", "1Gi", json!({})));
    settle(&mut world);
    assert!(is_bound(&world, "data") && !is_bound(&world, "clone"), "there is nothing in it");
    let name = bound_to(&world, "data").replace("Bound ", "");
    note(&mut world, &name, json!({(MADE_ON): "n1"}));
    let copy = declared_for(&world, "clone");
    assert_eq!(copy["metadata"]["annotations"][source::COPY_OF], json!(name));
    note(&mut world, object::name(&copy), json!({(MADE_ON): "n1"}));
    assert!(is_bound(&world, "clone"));
}

/// The volume that was declared for a claim, which need not name it.
fn declared_for(world: &World, claim: &str) -> Value {
    let claim = world.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", claim);
    world.get(&kinds::PERSISTENT_VOLUME, "", &format!("pvc-{}", object::uid(&claim)))
}

/// Whoever sees a claim bound takes its data for copied: the source may be written to and removed.
#[test]
fn v4_v2_a_clone_is_bound_when_it_is_a_copy_and_keeps_its_source_until_then() {
    for mode in ["Immediate", "WaitForFirstConsumer"] {
        let mut world = World::default();
        world.put(node("n1", json!({})));
        world.put(node("n2", json!({})));
        world.put(with(storage_class("fast", mode, "Delete"), json!({"parameters": {(SIZE): "image"}})));
        world.put(asks("data", "1Gi", json!({})));
        let node_of = |world: &World, pod: &str| world.get(&kinds::POD, "default", pod)["spec"]["nodeName"].clone();
        world.put(user("db", "data"));
        settle(&mut world);
        let home = node_of(&world, "db");
        let name = object::name(&declared_for(&world, "data")).to_owned();
        note(&mut world, &name, json!({(MADE_ON): home}));
        let source = json!({"spec": {"dataSource": {"kind": "PersistentVolumeClaim", "name": "data"}}});
        world.put(asks("clone", "1Gi", source));
        world.put(user("copy", "clone"));
        settle(&mut world);
        let copy = declared_for(&world, "clone");
        assert_eq!(copy["metadata"]["annotations"][source::COPY_OF], json!(name), "{mode}");
        assert!(bound_to(&world, "clone").starts_with("Pending -"), "{mode}: {}", bound_to(&world, "clone"));
        assert_eq!(node_of(&world, "copy"), json!(null), "{mode}: its pod waits");
        assert!(told(&world, "Provisioning volume for claim \"default/clone\""), "{mode}");
        let made = format!("Successfully provisioned volume {}", object::name(&copy));
        assert!(!told(&world, &made), "{mode}: it is not");
        // The source is told to go.
        world.remove(&kinds::POD, &ObjectKey::new("default", "db"));
        world.delete(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "data", None);
        settle(&mut world);
        assert!(!world.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "data").is_null(), "{mode}: it is copied");
        note(&mut world, object::name(&copy), json!({(MADE_ON): home}));
        assert!(is_bound(&world, "clone"), "{mode}");
        assert_eq!(node_of(&world, "copy"), home, "{mode}: where its data is");
        assert!(world.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "data").is_null(), "{mode}: nobody needs it");
    }
}

/// One that names its volume by itself waits as well; one that was bound before stays so.
#[test]
fn v4_a_claim_that_names_a_copy_that_is_not_made_waits_for_it() {
    for is_old in [false, true] {
        let mut world = World::default();
        world.put(node("n1", json!({})));
        let unmade = json!({"metadata": {"annotations": {(source::COPY_OF): "pvc-1"}}});
        world.put(with(static_volume("v", "5Gi", "Retain"), unmade));
        let mut named = with(claim("data", Some(""), "ReadWriteOnce"), json!({"spec": {"volumeName": "v"}}));
        if is_old {
            named["metadata"]["annotations"] = json!({(BIND_COMPLETED): "yes"});
        }
        world.put(named);
        settle(&mut world);
        assert_eq!(bound_to(&world, "data"), if is_old { "Bound v" } else { "Pending v" });
        note(&mut world, "v", json!({(MADE_ON): "n1"}));
        assert_eq!(bound_to(&world, "data"), "Bound v");
    }
}

/// What a claim waits for that names, or finds, a volume which is still to be made; a volume that is another claim's is
/// not waited for.
#[test]
fn s12_a_claim_says_whether_it_waits_for_its_volume_to_be_made() {
    let unmade = json!({"metadata": {"annotations": {(source::COPY_OF): "pvc-1"}}});
    let theirs = json!({"spec": {"claimRef": {"namespace": "default", "name": "other", "uid": "x"}}});
    let own = json!({"spec": {"claimRef": {"namespace": "default", "name": "data", "uid": "u"}}});
    let names = json!({"spec": {"volumeName": "v"}});
    let key = ObjectKey::new("default", "data");
    for (volume, over, waiting, events) in [
        (with(unmade.clone(), own.clone()), json!({}), vec![Waiting::NoVolume], vec![]),
        (own, json!({}), vec![], vec![]),
        (with(unmade, theirs.clone()), names.clone(), vec![Waiting::NoVolume], vec!["FailedBinding"]),
        (theirs, names, vec![Waiting::NoVolume], vec!["FailedBinding"]),
    ] {
        let mut world = World::default();
        world.put(node("n1", json!({})));
        world.put(with(static_volume("v", "5Gi", "Retain"), volume.clone()));
        let data = with(claim("data", Some(""), "ReadWriteOnce"), json!({"metadata": {"uid": "u"}}));
        world.put(with(data, over.clone()));
        let decision = (persistentvolumeclaim::CONTROLLER.reconcile)(&world.snapshot, &key, Timestamp::UNIX_EPOCH);
        let told: Vec<_> = decision.events.iter().map(|event| event.reason).collect();
        assert_eq!((decision.waiting, told), (waiting, events), "{volume} {over}");
    }
}

/// A claim that asked for a snapshot's data waits for the snapshot and for its content, in whichever order they come.
#[test]
fn s12_a_restore_is_made_when_its_snapshot_is_ready() {
    let group = "snapshot.storage.k8s.io";
    let from = json!({"spec": {"dataSource": {"apiGroup": group, "kind": "VolumeSnapshot", "name": "s"}}});
    let copy = json!({"kind": "VolumeSnapshot", "metadata": {"namespace": "default", "name": "s", "uid": "uid-s"},
        "spec": {"source": {"volumeSnapshotContentName": "content"}},
        "status": {"boundVolumeSnapshotContentName": "content", "readyToUse": true}});
    let content = |ready: bool| {
        json!({"kind": "VolumeSnapshotContent", "metadata": {"name": "content"}, "spec": {"driver": BUILT_IN[0],
            "deletionPolicy": "Retain", "source": {"snapshotHandle": "n1/snapshot-1"},
            "volumeSnapshotRef": {"namespace": "default", "name": "s", "uid": "uid-s"}},
            "status": {"readyToUse": ready, "restoreSize": GIB}})
    };
    for steps in [
        vec![copy.clone(), content(true)],
        vec![content(true), copy.clone()],
        vec![copy.clone(), content(false), content(true)],
    ] {
        let mut world = World::default();
        world.put(node("n1", json!({})));
        world.put(node("n2", json!({})));
        world.put(with(storage_class("fast", "Immediate", "Delete"), json!({"parameters": {(SIZE): "image"}})));
        world.put(asks("restored", "1Gi", from.clone()));
        for step in &steps {
            settle(&mut world);
            assert!(!is_bound(&world, "restored"), "{steps:?}");
            world.put(step.clone());
        }
        settle(&mut world);
        let name = object::name(&declared_for(&world, "restored")).to_owned();
        note(&mut world, &name, json!({(MADE_ON): "n1"}));
        assert!(is_bound(&world, "restored"), "{steps:?}");
    }
}

/// A claim that names its volume is bound when that is there, and one that is on its way out is bound to nothing.
#[test]
fn s12_v1_a_claim_that_names_a_volume_waits_for_that_one() {
    let named = || with(claim("data", Some(""), "ReadWriteOnce"), json!({"spec": {"volumeName": "v"}}));
    let mut world = World::default();
    world.put(named());
    world.put(static_volume("w", "5Gi", "Retain"));
    settle(&mut world);
    assert_eq!(bound_to(&world, "data"), "Pending v");
    world.put(static_volume("v", "5Gi", "Retain"));
    settle(&mut world);
    assert_eq!(bound_to(&world, "data"), "Bound v");
    assert_eq!(phase_of(&world, "w"), "Available");
    for class in [Some(""), None] {
        let mut world = World::default();
        let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x.io/y"]}});
        world.put(with(claim("data", class, "ReadWriteOnce"), going));
        world.put(static_volume("v", "5Gi", "Retain"));
        settle(&mut world);
        assert_eq!(bound_to(&world, "data"), "Pending -");
        assert_eq!(phase_of(&world, "v"), "Available", "V1: it is still anybody's");
    }
}

/// Reserved by its user for a claim: bound without any pod, unless it is on its way out; a volume that is named by a
/// claim and is going is not bound either.
#[test]
fn v1_a_reserved_volume_is_bound_at_once_unless_it_goes() {
    let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    let reserved = |over: Value| {
        let spec = json!({"spec": {"storageClassName": "fast", "claimRef": {"namespace": "default", "name": "data"}}});
        with(with(static_volume("v", "1Gi", "Retain"), spec), over)
    };
    for (mode, names) in [("WaitForFirstConsumer", false), ("Immediate", false), ("Immediate", true)] {
        let class = with(storage_class("fast", mode, "Retain"), json!({"provisioner": "kubernetes.io/no-provisioner"}));
        let name = if names { json!("v") } else { json!(null) };
        for (over, expected) in [(json!({}), "Bound v"), (going.clone(), if names { "Pending v" } else { "Pending -" })]
        {
            let mut world = World::default();
            world.put(class.clone());
            world.put(reserved(over));
            world.put(with(claim("data", Some("fast"), "ReadWriteOnce"), json!({"spec": {"volumeName": name}})));
            settle(&mut world);
            assert_eq!(bound_to(&world, "data"), expected, "{mode} {names}");
        }
    }
}

#[test]
fn a_claim_that_was_bound_keeps_its_volume_though_it_would_not_suit_it_any_more() {
    for (annotation, expected) in [(json!("yes"), "Bound v"), (json!(null), "Pending v")] {
        let mut world = World::default();
        let annotations = json!({"metadata": {"annotations": {(BIND_COMPLETED): annotation}}});
        let spec = json!({"spec": {"volumeName": "v", "resources": {"requests": {"storage": "9Gi"}}}});
        world.put(static_volume("v", "1Gi", "Retain"));
        world.put(with(with(claim("data", Some(""), "ReadWriteOnce"), annotations), spec));
        settle(&mut world);
        assert_eq!(bound_to(&world, "data"), expected);
        assert_eq!(told(&world, "requested PV is too small"), expected != "Bound v");
    }
}

#[test]
fn whom_a_claim_waits_for_are_pods_that_were_told_that_they_fit_nowhere() {
    let refused = json!([{"type": "PodScheduled", "status": "False"}]);
    let table = [
        (json!({"status": {"conditions": refused}}), true),
        (json!({"status": {"conditions": [{"type": "PodScheduled", "status": "True"}]}}), false),
        (json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}), false),
        (json!({}), false),
        (json!({"spec": {"nodeName": "n1"}, "status": {"conditions": refused}}), false),
        (json!({"spec": {"nodeName": ""}, "status": {"conditions": refused}}), true),
        (json!({"status": {"phase": "Failed", "conditions": refused}}), false),
    ];
    for (over, expected) in table {
        let mut world = World::default();
        world.put(storage_class("fast", "WaitForFirstConsumer", "Delete"));
        world.put(asks("data", "1Gi", json!({})));
        world.put(with(user("p", "data"), over.clone()));
        world.run(&persistentvolumeclaim::CONTROLLER, &ObjectKey::new("default", "data"), Timestamp::UNIX_EPOCH, 9);
        let expected =
            if expected { "WaitForPodScheduled: waiting for pod p to be scheduled" } else { "WaitForFirstConsumer: " };
        assert!(told(&world, expected), "{over}: {:?}", world.events);
    }
}

#[test]
fn an_immediate_volume_is_made_where_it_was_asked_for_or_where_most_room_is() {
    let bare = |name: &str| node(name, json!({"metadata": {"annotations": {(VOLUME_ROOT): null}}}));
    let away = |name: &str, gib: i64| {
        with(roomy(name, gib), json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}))
    };
    let selected = |node: &str| json!({"metadata": {"annotations": {(SELECTED_NODE): node}}});
    let none = "no node makes volumes of this class";
    let table = [
        (vec![roomy("n1", 10), roomy("n2", 10)], json!({}), "n1"),
        (vec![bare("n1"), roomy("n2", 10)], json!({}), "n2"),
        (vec![roomy("n1", 10), roomy("n2", 20)], json!({}), "n2"),
        (vec![away("n1", 20), roomy("n2", 10)], json!({}), "n2"),
        (vec![away("n1", 20)], json!({}), "n1"),
        (vec![roomy("n1", 10), roomy("n2", 20)], selected("n1"), "n1"),
        (vec![roomy("n1", 10), roomy("n2", 20)], selected("n3"), none),
        (vec![bare("n1")], json!({}), none),
        (vec![], json!({}), none),
        (vec![roomy("n1", 0)], json!({}), "node(s) did not have enough free storage"),
    ];
    for (nodes, over, expected) in table {
        let mut world = World::default();
        nodes.iter().for_each(|node| world.put(node.clone()));
        world.put(storage_class("fast", "Immediate", "Delete"));
        world.put(asks("data", "1Gi", over.clone()));
        settle(&mut world);
        let volume = world.get(&kinds::PERSISTENT_VOLUME, "", &bound_to(&world, "data").replace("Bound ", ""));
        let at =
            &volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"][0]["values"][0];
        match at.as_str() {
            Some(at) => assert_eq!(at, expected, "{over}"),
            None => assert!(told(&world, expected), "{over} {expected}: {:?}", world.events),
        }
    }
}

/// V6: while the volume that was made before is on its way out, none is made in its place.
#[test]
fn v6_a_volume_is_not_made_over_the_last_one_of_its_name() {
    let external =
        |provisioner: &str| with(storage_class("fast", "Immediate", "Delete"), json!({"provisioner": provisioner}));
    let nfs = with(external(nfs::PROVISIONER), json!({"parameters": {"server": "s", "share": "/a"}}));
    for class in [storage_class("fast", "Immediate", "Delete"), nfs] {
        let mut world = World::default();
        world.put(node("n1", json!({})));
        world.put(class);
        let claim_ref = json!({"spec": {"claimRef": {"namespace": "default", "name": "other", "uid": "o"}}});
        world.put(with(static_volume("pvc-uid-data", "1Gi", "Retain"), claim_ref));
        world.put(asks("data", "1Gi", json!({"metadata": {"uid": "uid-data"}})));
        settle(&mut world);
        assert_eq!(bound_to(&world, "data"), "Pending -");
        world.remove(&kinds::PERSISTENT_VOLUME, &ObjectKey::new("", "pvc-uid-data"));
        settle(&mut world);
        assert!(!world.get(&kinds::PERSISTENT_VOLUME, "", "pvc-uid-data").is_null());
    }
}

#[test]
fn an_external_provisioner_is_asked_once_and_waited_for() {
    let class = |mode: &str| with(storage_class("fast", mode, "Delete"), json!({"provisioner": "x.io/csi"}));
    let mut world = World::default();
    world.put(class("Immediate"));
    world.put(asks("data", "1Gi", json!({})));
    settle(&mut world);
    let asked = world.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "data")["metadata"]["annotations"].clone();
    let [new, old] = ["volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner"];
    assert_eq!(asked, json!({(new): "x.io/csi", (old): "x.io/csi"}));
    // A class of somebody else's that waits for a pod is not ours to refuse.
    let mut world = World::default();
    world.put(class("WaitForFirstConsumer"));
    world.put(asks("data", "1Gi", json!({"spec": {"selector": {"matchLabels": {"a": "b"}}}})));
    settle(&mut world);
    assert!(told(&world, "WaitForFirstConsumer: ") && !told(&world, "ProvisioningFailed"), "{:?}", world.events);
    // Its volumes are others' to make larger.
    for (size, expected) in [("1Gi", false), ("2Gi", true)] {
        let mut world = World::default();
        let volume = with(
            static_volume("v", "1Gi", "Retain"),
            json!({"metadata": {"annotations": {(PROVISIONED_BY):
            "x.io/csi"}}, "spec": {"storageClassName": "fast",
            "claimRef": {"namespace": "default", "name": "data", "uid": "uid-data"}}}),
        );
        world.put(volume);
        let over = json!({"metadata": {"uid": "uid-data"}, "spec": {"volumeName": "v"}});
        world.put(asks("data", size, over));
        settle(&mut world);
        assert_eq!(told(&world, "ExternalExpanding: waiting for an external controller to expand this PVC"), expected);
    }
}

#[test]
fn only_a_class_that_says_true_is_the_default() {
    for (value, expected) in [("true", json!("fast")), ("false", json!(null)), ("", json!(null))] {
        for name in ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"]
        {
            let mut world = World::default();
            let annotations = json!({"metadata": {"annotations": {(name): value}}});
            world.put(with(storage_class("fast", "WaitForFirstConsumer", "Delete"), annotations));
            world.put(claim("data", None, "ReadWriteOnce"));
            settle(&mut world);
            let claim = world.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "data");
            assert_eq!(claim["spec"]["storageClassName"], expected, "{name}={value}");
        }
    }
}
