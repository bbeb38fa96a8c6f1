//! What volumes, claims and classes say by themselves: who suits whom, what must stay, how much may be promised.

use super::pending::with;
use super::*;
use crate::volume::growth::{RESIZE_ERROR, Step};

const GIB: i64 = 1 << 30;

fn volume_with(over: Value) -> PersistentVolume {
    let volume = json!({"metadata": {"name": "v"}, "spec": {"storageClassName": "c", "capacity": {"storage": "2Gi"},
        "accessModes": ["ReadWriteOnce"], "volumeAttributesClassName": "gold"}});
    serde_json::from_value(with(volume, over)).unwrap()
}

fn claim_with(over: Value) -> PersistentVolumeClaim {
    let claim = json!({"metadata": {"namespace": "default", "name": "data", "uid": "u-1"}, "spec": {
        "storageClassName": "c", "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}},
        "volumeAttributesClassName": "gold"}});
    serde_json::from_value(with(claim, over)).unwrap()
}

fn class_with(over: Value) -> StorageClass {
    serde_json::from_value(with(json!({"metadata": {"name": "c"}, "provisioner": BUILT_IN[0]}), over)).unwrap()
}

fn asking(size: &str) -> Value {
    json!({"spec": {"resources": {"requests": {"storage": size}}}})
}

#[test]
fn v1_v10_a_volume_suits_a_claim_in_size_class_attributes_and_modes() {
    let (small, class) = (Err("requested PV is too small"), Err("storageClassName does not match"));
    let attributes = Err("volumeAttributesClassName does not match");
    let old_style = |class: &str| json!({"annotations": {"volume.beta.kubernetes.io/storage-class": class}});
    for (of_volume, of_claim, expected) in [
        (json!({}), json!({}), Ok(())),
        (json!({}), asking("1Gi"), Ok(())),
        (json!({}), asking("2049Mi"), small),
        (json!({"spec": {"capacity": null}}), json!({}), small),
        (json!({}), json!({"spec": {"storageClassName": "d"}}), class),
        (json!({}), json!({"spec": {"storageClassName": null}}), class),
        (json!({"spec": {"storageClassName": null}}), json!({"spec": {"storageClassName": ""}}), Ok(())),
        (json!({}), json!({"metadata": old_style("c"), "spec": {"storageClassName": "d"}}), Ok(())),
        (json!({"metadata": old_style("d")}), json!({"spec": {"storageClassName": "d"}}), Ok(())),
        (json!({}), with(asking("3Gi"), json!({"spec": {"storageClassName": "d"}})), small),
        (json!({}), json!({"spec": {"volumeAttributesClassName": null}}), attributes),
        (json!({"spec": {"volumeAttributesClassName": "x"}}), json!({}), attributes),
        (json!({}), json!({"spec": {"volumeMode": "Filesystem"}}), Ok(())),
        (json!({}), json!({"spec": {"volumeMode": "Block"}}), Err("incompatible volumeMode")),
        (json!({"spec": {"volumeMode": "Block"}}), json!({"spec": {"volumeMode": "Block"}}), Ok(())),
        (
            json!({}),
            json!({"spec": {"accessModes": ["ReadWriteOnce", "ReadWriteMany"]}}),
            Err("incompatible accessMode"),
        ),
        (json!({"spec": {"accessModes": ["ReadWriteMany", "ReadWriteOnce"]}}), json!({}), Ok(())),
        (json!({"spec": {"storageClassName": ""}}), json!({"spec": null}), Err("spec is missing")),
    ] {
        let found = satisfies(&volume_with(of_volume.clone()), &claim_with(of_claim.clone()));
        assert_eq!(found, expected, "{of_volume} {of_claim}");
    }
}

/// V1: whose volume it is goes by uid; by name only where a user reserved it and nobody has bound it.
#[test]
fn v1_v6_a_volume_is_kept_for_whoever_holds_or_reserved_it() {
    let reference = |name: &str, uid: Value| json!({"namespace": "default", "name": name, "uid": uid});
    let (chosen, made) = (json!({BOUND_BY_CONTROLLER: "yes"}), json!({PROVISIONED_BY: "x"}));
    let large = asking("9Gi");
    for (reference, annotations, of_claim, kept, reserved, held) in [
        (reference("data", json!("u-1")), json!({}), json!({}), true, false, true),
        (reference("data", json!("u-1")), json!({}), large.clone(), false, false, true),
        (reference("data", json!("u-1")), chosen.clone(), large.clone(), true, false, true),
        (reference("data", json!("u-1")), made, large.clone(), true, false, true),
        (reference("data", json!("u-2")), chosen, json!({}), false, false, false),
        (reference("data", Value::Null), json!({}), json!({}), true, true, false),
        (reference("data", json!("")), json!({}), json!({}), true, true, false),
        (reference("data", Value::Null), json!({}), large, false, true, false),
        (reference("other", Value::Null), json!({}), json!({}), false, false, false),
        (reference("data", Value::Null), json!({}), json!({"metadata": {"uid": null}}), true, true, false),
        (Value::Null, json!({}), json!({"metadata": {"uid": null}}), false, false, false),
    ] {
        let volume = volume_with(json!({"metadata": {"annotations": annotations}, "spec": {"claimRef": reference}}));
        let claim = claim_with(of_claim.clone());
        let found = (is_kept_for(&volume, &claim), is_reserved_for(&volume, &claim), is_held_by(&volume, &claim));
        assert_eq!(found, (kept, reserved, held), "{reference} {annotations} {of_claim}");
        for (named, bound) in [("v", held), ("w", false), ("", false)] {
            let claim = claim_with(with(of_claim.clone(), json!({"spec": {"volumeName": named}})));
            assert_eq!(is_bound(&volume, &claim), bound, "{reference} {named}");
        }
    }
}

/// V2: while a volume is made for a claim, neither the claim goes nor what it is to be a copy of.
#[test]
fn v2_what_a_claim_is_filled_from_is_relied_on_until_it_has_a_volume() {
    let mut world = World::default();
    for (name, status) in [("s", json!({"boundVolumeSnapshotContentName": "content"})), ("fresh", json!({}))] {
        world.put(json!({"kind": "VolumeSnapshot", "metadata": {"namespace": "default", "name": name},
            "spec": {"source": {"persistentVolumeClaimName": "data"}}, "status": status}));
    }
    let own = "PersistentVolumeClaim default/data";
    let from = |kind: &str, name: &str| json!({"spec": {"dataSource": {"kind": kind, "name": name}}});
    let bound = |over: Value| with(over, json!({"spec": {"volumeName": "v"}}));
    for (over, expected) in [
        (json!({}), vec![own]),
        (from("PersistentVolumeClaim", "source"), vec![own, "PersistentVolumeClaim default/source"]),
        (bound(from("PersistentVolumeClaim", "source")), vec![own]),
        (from("VolumeSnapshot", "s"), vec![own, "VolumeSnapshotContent /content", "VolumeSnapshot default/s"]),
        (bound(from("VolumeSnapshot", "s")), vec![own]),
        (from("VolumeSnapshot", "fresh"), vec![own, "VolumeSnapshot default/fresh"]),
        (from("VolumeSnapshot", "none"), vec![own, "VolumeSnapshot default/none"]),
        (from("Book", "s"), vec![own]),
    ] {
        let found = source::relied_on(&world.snapshot, &claim_with(over.clone()));
        let found: Vec<String> =
            found.iter().map(|(kind, key)| format!("{} {}/{}", kind.kind, key.namespace, key.name)).collect();
        assert_eq!(found, expected, "{over}");
    }
}

fn affinity(terms: Value) -> Value {
    json!({"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": terms}}}})
}

fn expression(key: &str, operator: &str, values: &[&str]) -> Value {
    json!({"key": key, "operator": operator, "values": values})
}

fn tied(hostname: &str) -> Value {
    affinity(json!([{"matchExpressions": [expression(HOSTNAME, "In", &[hostname])]}]))
}

#[test]
fn v5_a_volumes_home_is_the_one_hostname_that_it_is_tied_to() {
    let one = expression(HOSTNAME, "In", &["n1"]);
    for (terms, home) in [
        (json!([{"matchExpressions": [one]}]), Some("n1")),
        (json!([{"matchExpressions": [one]}, {"matchExpressions": [one]}]), None),
        (json!([{"matchExpressions": [one, expression("zone", "In", &["a"])]}]), None),
        (json!([{"matchExpressions": [one], "matchFields": [expression("metadata.name", "In", &["n1"])]}]), None),
        (json!([{"matchExpressions": [expression("zone", "In", &["n1"])]}]), None),
        (json!([{"matchExpressions": [expression(HOSTNAME, "NotIn", &["n1"])]}]), None),
        (json!([{"matchExpressions": [expression(HOSTNAME, "In", &["n1", "n2"])]}]), None),
        (json!([{"matchExpressions": [expression(HOSTNAME, "In", &[""])]}]), None),
        (json!([]), None),
    ] {
        assert_eq!(room::home(&volume_with(affinity(terms.clone()))), home, "{terms}");
    }
    assert_eq!(room::home(&volume_with(json!({}))), None);
}

/// V10: promises of images count, whoever made them and wherever they may go; plain directories promise nothing.
#[test]
fn v10_a_nodes_room_is_what_it_says_less_what_was_promised() {
    let mut world = World::default();
    let says = |gib: i64| json!({"metadata": {"annotations": {room::VOLUME_CAPACITY: (gib * GIB).to_string()}}});
    world.put(node("n1", with(says(100), json!({"metadata": {"labels": {"zone": "a"}}}))));
    world.put(node("n2", says(10)));
    world.put(node("n3", json!({})));
    world.put(node("n4", says(0)));
    let zone = |zone: &str| affinity(json!([{"matchExpressions": [expression("zone", "In", &[zone])]}]));
    for (name, gib, annotations, place) in [
        ("tied", 10, json!({SIZE: "image"}), tied("n1")),
        ("grown", 2, json!({SIZE: "image", MADE_SIZE: (3 * GIB).to_string()}), tied("n1")),
        ("plain", 50, json!({SIZE: "none"}), tied("n1")),
        ("zone-a", 5, json!({SIZE: "image"}), zone("a")),
        ("zone-b", 7, json!({SIZE: "image"}), zone("b")),
        ("anywhere", 20, json!({}), json!({})),
        ("elsewhere", 11, json!({SIZE: "image"}), tied("n2")),
        ("promised", 1, json!({SIZE: "image", room::OVERCOMMIT: "true"}), tied("n4")),
    ] {
        let volume = json!({"kind": "PersistentVolume", "metadata": {"name": name, "annotations": annotations},
            "spec": {"capacity": {"storage": format!("{gib}Gi")}}});
        world.put(with(volume, place));
    }
    let snapshot = &world.snapshot;
    let node = |name: &str| &**snapshot.nodes.get(&ObjectKey::new("", name)).unwrap();
    let volume = |name: &str| &**snapshot.persistent_volumes.get(&ObjectKey::new("", name)).unwrap();
    assert_eq!(room::of(snapshot, node("n1")), Some(82 * GIB));
    assert_eq!(room::of(snapshot, node("n2")), Some(-GIB), "more was promised than there is");
    assert_eq!(room::of(snapshot, node("n3")), None);
    let left = |name: &str, gib: i64| room::left_after(snapshot, node(name), gib * GIB);
    assert_eq!([left("n1", 0), left("n1", 32), left("n1", 82), left("n1", 200)], [82, 50, 0, 0]);
    assert_eq!((left("n2", 0), left("n3", 0)), (0, 0));

    let homes = |name: &str| -> Vec<&str> {
        let homes = room::homes(snapshot, volume(name));
        homes.iter().map(|node| node.metadata.name.as_deref().unwrap()).collect()
    };
    assert_eq!((homes("tied"), homes("zone-a"), homes("zone-b")), (vec!["n1"], vec!["n1"], vec![]));
    let grows = |name: &str, bytes: i64| room::can_grow(snapshot, volume(name), bytes);
    assert!(grows("tied", 82 * GIB) && !grows("tied", 82 * GIB + 1) && !grows("elsewhere", 1));
    assert!(grows("plain", 900 * GIB), "nothing was promised");
    assert!(grows("promised", 900 * GIB), "its class promises more than there is");
    assert!(grows("zone-b", 900 * GIB), "no node says anything");
    // Whether there is room for more is asked of our own nodes for our own volumes.
    let mut larger = volume("elsewhere").clone();
    let claim = claim_with(asking("12Gi"));
    assert_eq!(growth::step(snapshot, &claim, &larger), Step::Done);
    larger.metadata.annotations.get_or_insert_default().insert(PROVISIONED_BY.to_owned(), BUILT_IN[0].to_owned());
    let step = growth::step(snapshot, &claim, &larger);
    let Step::NoRoom(why) = &step else { panic!("{step:?}") };
    let told = |claim: &PersistentVolumeClaim| growth::event(claim, &larger, &step).map(|event| event.message);
    assert_eq!(told(&claim), Some(format!("resize volume \"elsewhere\" failed: {why}")));
    let said = json!({"status": {"conditions": [{"type": "ControllerResizeError", "status": "True", "message": why}]}});
    assert_eq!(told(&claim_with(with(asking("12Gi"), said))), None, "it says so already");

    for (parameters, counted) in [
        (json!({}), true),
        (json!({room::OVERCOMMIT: "false"}), true),
        (json!({room::OVERCOMMIT: "true"}), false),
        (json!({SIZE: "none"}), false),
    ] {
        let class = class_with(json!({"parameters": parameters}));
        assert_eq!(room::is_counted(&class), counted, "{parameters}");
        let has = |name: &str, bytes: i64| room::has(snapshot, node(name), &class, bytes);
        assert_eq!((has("n1", 82 * GIB), has("n1", 82 * GIB + 1)), (true, !counted), "{parameters}");
        assert!(has("n3", i64::MAX), "{parameters}");
    }
}

/// V10: what is larger than was asked for shrinks only as far as it was never made.
#[test]
fn v10_a_volume_takes_the_size_that_was_asked_for_where_that_can_be() {
    let no_room = || Step::NoRoom("full".to_owned());
    let (grows, at_once) = (vec!["Resizing", "FileSystemResizeRequired"], vec!["Resizing", "VolumeResizeSuccessful"]);
    for (asked, has, made, step, expected) in [
        (3, 2, Some(2), Step::Done, Some(grows.clone())),
        (3, 2, None, Step::Done, Some(at_once)),
        (3, 2, Some(1), Step::NodeFailed("x".to_owned()), Some(grows)),
        (3, 2, Some(2), no_room(), None),
        (2, 2, Some(2), Step::Done, None),
        (2, 2, Some(1), Step::OnNode, None),
        (2, 3, Some(2), Step::OnNode, Some(vec!["FileSystemResizeRequired"])),
        (2, 3, Some(3), Step::Done, None),
        (2, 3, None, Step::Done, None),
    ] {
        let made = made.map(|gib: i64| (gib * GIB).to_string());
        let annotations = json!({PROVISIONED_BY: BUILT_IN[1], SIZE: "image", MADE_SIZE: made});
        let reference = json!({"namespace": "default", "name": "data", "uid": "u-1"});
        let own = volume_with(json!({"metadata": {"annotations": annotations},
            "spec": {"claimRef": reference, "capacity": {"storage": format!("{has}Gi")}}}));
        let claim = claim_with(with(asking(&format!("{asked}Gi")), json!({"spec": {"volumeName": "v"}})));
        let story = format!("{asked} {has} {made:?} {step:?}");
        let decision = growth::expand(&claim, &own, &step);
        let told = decision.as_ref().map(|decision| decision.events.iter().map(|told| told.reason).collect::<Vec<_>>());
        assert_eq!(told, expected, "{story}");
        if let Some(Write::Patch { patch, .. }) = decision.as_ref().map(|decision| &decision.writes[0]) {
            assert_eq!(patch["spec"], json!({"capacity": {"storage": format!("{asked}Gi")}}), "{story}");
            assert_eq!(patch["metadata"]["annotations"], json!({(RESIZE_ERROR): null}), "{story}");
        }
        if let (Some(told), Some(_)) = (&told, &made) {
            // What no node measures has the new size at once, whatever was noted before.
            let mut plain = own.clone();
            plain.metadata.annotations.as_mut().unwrap().insert(SIZE.to_owned(), "none".to_owned());
            let plain = growth::expand(&claim, &plain, &step).map(|decision| decision.events.last().unwrap().reason);
            assert_eq!(plain, told.contains(&"Resizing").then_some("VolumeResizeSuccessful"), "{story}");
        }
        let mut others = own.clone();
        others.metadata.annotations.as_mut().unwrap().insert(PROVISIONED_BY.to_owned(), "x.io/csi".to_owned());
        assert_eq!(growth::expand(&claim, &others, &step), None, "{story}");
        assert_eq!(growth::is_external(&claim, &others), asked > has, "{story}");
        assert!(!growth::is_external(&claim, &own), "{story}");
        let stranger = claim_with(with(asking(&format!("{asked}Gi")), json!({"metadata": {"uid": "u-2"}})));
        assert_eq!(growth::expand(&stranger, &own, &step), None, "V1: {story}");
    }
}

#[test]
fn v10_how_far_a_growth_is_is_what_the_node_has_noted() {
    let snapshot = Snapshot::default();
    let claim = claim_with(json!({}));
    let failed = || Step::NodeFailed("no space".to_owned());
    for (size, made, error, expected) in [
        ("image", Some(2), "", Step::Done),
        ("image", Some(2), "no space", Step::Done),
        ("image", Some(1), "", Step::OnNode),
        ("image", Some(1), "no space", failed()),
        ("image", None, "no space", Step::Done),
        ("none", Some(1), "no space", Step::Done),
        (nfs::SIZE_SERVER, Some(1), "", Step::Done),
    ] {
        let made = made.map(|gib: i64| (gib * GIB).to_string());
        let annotations = json!({PROVISIONED_BY: BUILT_IN[0], SIZE: size, MADE_SIZE: made, RESIZE_ERROR: error});
        let volume = volume_with(json!({"metadata": {"annotations": annotations}}));
        assert_eq!(growth::step(&snapshot, &claim, &volume), expected, "{size} {made:?} {error}");
    }
}

/// V6, V10: where a claim's data is, and how much of it, is said by the volume that is declared for it.
#[test]
fn v5_v6_v10_a_declared_volume_says_whose_it_is_and_where_and_how_large() {
    let mut world = World::default();
    world.put(node("n1", json!({"metadata": {"labels": {HOSTNAME: "host-1"}, "annotations": {VOLUME_ROOT: "/v/"}}})));
    world.put(node("n2", json!({"metadata": {"labels": null, "annotations": {VOLUME_ROOT: "/v"}}})));
    for (class, name, hostname, annotations, policy, options) in [
        (json!({}), "n1", "host-1", json!({SIZE: "image"}), "Delete", json!([])),
        (json!({"reclaimPolicy": "Retain"}), "n2", "n2", json!({SIZE: "image"}), "Retain", json!([])),
        (
            json!({"parameters": {room::OVERCOMMIT: "true"}, "mountOptions": ["noatime"]}),
            "n1",
            "host-1",
            json!({SIZE: "image", room::OVERCOMMIT: "true"}),
            "Delete",
            json!(["noatime"]),
        ),
        (json!({"parameters": {SIZE: "none"}}), "n1", "host-1", json!({SIZE: "none"}), "Delete", json!([])),
    ] {
        let class = class_with(class);
        let node = world.snapshot.nodes.get(&ObjectKey::new("", name)).unwrap();
        let writes = provision(&world.snapshot, &claim_with(json!({})), &class, node);
        let Write::Create { object, .. } = &writes[0] else { panic!("{writes:?}") };
        let expected = json!({
            "apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": {"name": "pvc-u-1", "finalizers": [PV_PROTECTION, LOCAL_PATH_FINALIZER],
                "annotations": with(json!({PROVISIONED_BY: BUILT_IN[0]}), annotations)},
            "spec": {
                "capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem",
                "persistentVolumeReclaimPolicy": policy, "storageClassName": "c", "mountOptions": options,
                "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": "default",
                    "name": "data", "uid": "u-1"},
                "local": {"path": "/v/pvc-u-1"},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [
                    {"matchExpressions": [expression(HOSTNAME, "In", &[hostname])]}]}},
            },
        });
        assert_eq!(*object, expected);
        assert_eq!(writes.len(), 3, "the claim names it and says so");
    }
    let sizes = [0, SMALLEST_IMAGE, SMALLEST_IMAGE + 1, GIB + IMAGE_BLOCK, i64::MAX];
    let larger = SMALLEST_IMAGE + IMAGE_BLOCK;
    assert_eq!(sizes.map(image_size), [SMALLEST_IMAGE, SMALLEST_IMAGE, larger, GIB + IMAGE_BLOCK, i64::MAX]);
}

#[test]
fn what_a_node_can_make_goes_by_its_folder_and_the_classs_topology() {
    let snapshot = Snapshot::default();
    let typed = |over: Value| -> Node { serde_json::from_value(node("n1", over)).unwrap() };
    let zone = |zone: &str| json!({"metadata": {"labels": {"zone": zone}}});
    let term = |terms: Value| json!({"allowedTopologies": terms});
    let in_zone = |zones: &[&str]| json!({"matchLabelExpressions": [{"key": "zone", "values": zones}]});
    let both = json!({"matchLabelExpressions": [{"key": "zone", "values": ["a"]}, {"key": "disk", "values": ["s"]}]});
    for (of_node, class, can) in [
        (json!({}), json!({}), true),
        (json!({"metadata": {"annotations": {VOLUME_ROOT: null}}}), json!({}), false),
        (json!({"metadata": {"annotations": {VOLUME_ROOT: "v"}}}), json!({}), false),
        (zone("a"), term(json!([in_zone(&["b", "a"])])), true),
        (zone("a"), term(json!([in_zone(&["b"]), in_zone(&["a"])])), true),
        (zone("a"), term(json!([in_zone(&["b"])])), false),
        (json!({}), term(json!([in_zone(&["a"])])), false),
        (zone("a"), term(json!([both])), false),
    ] {
        let can_be =
            can_provision(&snapshot, &claim_with(json!({})), &typed(of_node.clone()), &class_with(class.clone()));
        assert_eq!(can_be, can, "{of_node} {class}");
    }
}

#[test]
fn whose_attributes_could_be_changed_is_the_drivers_to_say() {
    let mut world = World::default();
    for (name, driver) in [("ours", BUILT_IN[0]), ("theirs", "x.io/csi")] {
        world.put(json!({"kind": "VolumeAttributesClass", "metadata": {"name": name}, "driverName": driver}));
    }
    let made_by = |name: &str| json!({"metadata": {"annotations": {PROVISIONED_BY: name}}});
    let folder = with(made_by(nfs::PROVISIONER), json!({"metadata": {"finalizers": [nfs::FINALIZER]}}));
    for (of_volume, target, expected) in [
        (made_by(BUILT_IN[0]), "gold", None),
        (made_by(BUILT_IN[0]), "ours", Some(("Infeasible", "has no attributes that can be changed"))),
        (made_by(BUILT_IN[0]), "theirs", Some(("Infeasible", "is for volumes of x.io/csi"))),
        (made_by(BUILT_IN[0]), "none", Some(("Pending", "VAC none does not exist."))),
        (made_by("x.io/csi"), "theirs", None),
        (folder, "ours", Some(("Infeasible", "this one was made by mainstay.io/nfs"))),
        (json!({}), "ours", Some(("Infeasible", "no driver made this volume"))),
        (json!({}), "", None),
    ] {
        let claim = claim_with(json!({"spec": {"volumeAttributesClassName": target}}));
        let asked = attributes::asked(&world.snapshot, &claim, &volume_with(of_volume.clone()));
        assert_eq!(
            asked.as_ref().map(|asked| asked.status),
            expected.map(|(status, _)| status),
            "{of_volume} {target}"
        );
        let Some(asked) = asked else { continue };
        assert!(asked.why.contains(expected.unwrap().1), "{}", asked.why);
        // Told once.
        for (status, target, told) in [(asked.status, target, false), (asked.status, "x", true), ("x", target, true)] {
            let said = json!({"status": {"modifyVolumeStatus": {"status": status,
                "targetVolumeAttributesClassName": target}}});
            assert_eq!(asked.event(&claim_with(said)).is_some(), told, "{status} {target}");
        }
    }
    // V2: every class that a claim names in any way is one that it uses.
    let all = json!({"status": {"currentVolumeAttributesClassName": "is", "modifyVolumeStatus": {"status": "Pending",
        "targetVolumeAttributesClassName": "to-be"}}});
    assert_eq!(attributes::named_by(&claim_with(all)), ["gold", "is", "to-be"]);
    assert!(attributes::named_by(&claim_with(json!({"spec": {"volumeAttributesClassName": ""}}))).is_empty());
}
