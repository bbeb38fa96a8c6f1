//! The volume controllers and the scheduler together, in a closed loop: whatever the order, wherever a decision is cut
//! and however old its view, the promises hold at every step.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::*;
use crate::controllers::{persistentvolume, persistentvolumeclaim, pvcprotection, pvprotection, vacprotection};
use crate::decision::Controller;
use crate::scheduler;
use crate::scheduler::tests::{node, pod};
use crate::world::World;

mod facts;
mod folders;
mod pending;
mod reclaim;
mod requests;
mod sources;
mod waking;

fn claim(name: &str, class: Option<&str>, mode: &str) -> Value {
    json!({"kind": "PersistentVolumeClaim", "metadata": {"namespace": "default", "name": name,
        "finalizers": [PVC_PROTECTION]},
        "spec": {"accessModes": [mode], "storageClassName": class, "resources": {"requests": {"storage": "1Gi"}}},
            "status": {"phase": "Pending"}})
}

fn storage_class(name: &str, mode: &str, policy: &str) -> Value {
    json!({"kind": "StorageClass", "metadata": {"name": name}, "provisioner": BUILT_IN[0], "volumeBindingMode": mode,
        "reclaimPolicy": policy})
}

fn static_volume(name: &str, size: &str, policy: &str) -> Value {
    json!({"kind": "PersistentVolume", "metadata": {"name": name, "finalizers": [PV_PROTECTION]},
        "spec": {"capacity": {"storage": size},
        "accessModes": ["ReadWriteOnce", "ReadWriteMany"], "persistentVolumeReclaimPolicy": policy,
            "nfs": {"server": "192.0.2.1", "path": format!("/{name}")}}})
}

fn user(name: &str, claim: &str) -> Value {
    pod(name, json!({"spec": {"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]}}))
}

const CONTROLLERS: [Controller; 6] = [
    scheduler::CONTROLLER,
    persistentvolumeclaim::CONTROLLER,
    persistentvolume::CONTROLLER,
    pvcprotection::CONTROLLER,
    pvprotection::CONTROLLER,
    vacprotection::CONTROLLER,
];
/// What each of them has as its key.
const KEYS: [&str; 6] = [
    "Pod",
    "PersistentVolumeClaim",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "PersistentVolume",
    "VolumeAttributesClass",
];

fn keys_of(world: &World, kind: &str) -> Vec<ObjectKey> {
    let kind = *kinds::ALL.iter().find(|row| row.kind == kind).unwrap();
    world.all(kind).map(ObjectKey::of).collect()
}

/// Runs everything until nothing changes, woken by changes alone.
fn settle(world: &mut World) {
    world.settle(&CONTROLLERS, Timestamp::UNIX_EPOCH);
    world.assert_quiet(&CONTROLLERS, Timestamp::UNIX_EPOCH);
}

/// A world with a node, a class `fast` and a claim `data` of it, at rest.
fn with_claim(mode: &str, policy: &str) -> World {
    let mut world = World::default();
    world.put(node("n1", json!({})));
    world.put(storage_class("fast", mode, policy));
    world.put(claim("data", Some("fast"), "ReadWriteOnce"));
    settle(&mut world);
    world
}

/// Has a claim ask for another size.
fn ask(world: &mut World, size: &str) {
    let patch = json!({"spec": {"resources": {"requests": {"storage": size}}}});
    world.patch(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "data", patch);
    settle(world);
}

/// Notes on a volume, as its node does.
fn note(world: &mut World, volume: &str, annotations: Value) {
    world.patch(&kinds::PERSISTENT_VOLUME, "", volume, json!({"metadata": {"annotations": annotations}}));
    settle(world);
}

fn status(world: &World) -> Value {
    world.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "data")["status"].clone()
}

fn bound_to(world: &World, claim: &str) -> String {
    let claim = world.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", claim);
    format!(
        "{} {}",
        claim["status"]["phase"].as_str().unwrap_or("-"),
        claim["spec"]["volumeName"].as_str().unwrap_or("-")
    )
}

fn phase_of(world: &World, volume: &str) -> String {
    world.get(&kinds::PERSISTENT_VOLUME, "", volume)["status"]["phase"].as_str().unwrap_or("gone").to_owned()
}

#[test]
fn v1_walkthrough_1_static_volumes_smallest_first() {
    let mut world = World::default();
    world.put(node("n1", json!({})));
    world.put(static_volume("nfs-0001", "2Gi", "Recycle"));
    world.put(static_volume("nfs-0002", "5Gi", "Retain"));
    world.put(claim("mysql", Some(""), "ReadWriteOnce"));
    world.patch(
        &kinds::PERSISTENT_VOLUME_CLAIM,
        "default",
        "mysql",
        json!({"spec": {"resources": {"requests": {"storage": "3Gi"}}}}),
    );
    world.put(claim("http", Some(""), "ReadWriteOnce"));
    world.put(claim("third", Some(""), "ReadWriteOnce"));
    world.put(user("www", "http"));
    world.put(user("late", "third"));
    settle(&mut world);
    assert_eq!(
        ["mysql", "http", "third"].map(|name| bound_to(&world, name)),
        ["Bound nfs-0002", "Bound nfs-0001", "Pending -"]
    );
    assert!(world.get(&kinds::POD, "default", "late")["spec"]["nodeName"].is_null());
    let message = "FailedBinding: no persistent volumes available for this claim and no storage class is set";
    assert!(world.events.iter().any(|event| event == message));

    // V2: a claim in use stays; once unused, Recycle gives an empty volume back and Retain keeps it Released.
    world.delete(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "http", None);
    world.delete(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "mysql", None);
    settle(&mut world);
    assert_eq!(
        (bound_to(&world, "http").as_str(), phase_of(&world, "nfs-0002").as_str()),
        ("Bound nfs-0001", "Released")
    );
    world.remove(&kinds::POD, &ObjectKey::new("default", "www"));
    settle(&mut world);
    assert_eq!(phase_of(&world, "nfs-0001"), "Released");
    let volume = world.get(&kinds::PERSISTENT_VOLUME, "", "nfs-0001");
    assert_eq!(volume["metadata"]["annotations"][super::RECYCLE_ON], "n1");
    let emptied = volume["metadata"]["annotations"][super::RECYCLE].clone();
    world.patch(
        &kinds::PERSISTENT_VOLUME,
        "",
        "nfs-0001",
        json!({"metadata": {"annotations": {super::RECYCLED: emptied}}}),
    );
    settle(&mut world);
    assert_eq!(bound_to(&world, "third"), "Bound nfs-0001", "the claim that waited gets the emptied volume");
    assert_eq!(world.get(&kinds::POD, "default", "late")["spec"]["nodeName"], "n1");
}

#[test]
fn v5_v6_provisioned_volumes_are_of_one_node_and_of_one_claim() {
    let mut world = with_claim("WaitForFirstConsumer", "Retain");
    assert_eq!(bound_to(&world, "data"), "Pending -");
    assert!(
        world
            .events
            .contains(&"WaitForFirstConsumer: waiting for first consumer to be created before binding".to_owned())
    );
    world.put(user("web-0", "data"));
    settle(&mut world);
    let uid =
        world.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "data")["metadata"]["uid"].as_str().unwrap().to_owned();
    assert_eq!(bound_to(&world, "data"), format!("Bound pvc-{uid}"));
    let volume = world.get(&kinds::PERSISTENT_VOLUME, "", &format!("pvc-{uid}"));
    assert_eq!(volume["spec"]["local"]["path"], format!("/var/lib/mainstay/volumes/pvc-{uid}"));
    assert_eq!(phase_of(&world, &format!("pvc-{uid}")), "Bound");

    // The same claim on another node: it waits rather than start elsewhere.
    world.remove(&kinds::POD, &ObjectKey::new("default", "web-0"));
    world.remove(&kinds::NODE, &ObjectKey::new("", "n1"));
    world.put(node("n2", json!({})));
    world.put(user("web-0", "data"));
    settle(&mut world);
    let pod = world.get(&kinds::POD, "default", "web-0");
    assert_eq!(
        pod["status"]["conditions"][0]["message"],
        "0/1 nodes are available: 1 node(s) didn't match PersistentVolume's node affinity. preemption: 0/1 nodes are \
            available: 1 Preemption is not helpful for scheduling."
    );

    // The claim made again: a fresh volume; the old one is Released and keeps its bytes.
    world.remove(&kinds::PERSISTENT_VOLUME_CLAIM, &ObjectKey::new("default", "data"));
    world.put(claim("data", Some("fast"), "ReadWriteOnce"));
    settle(&mut world);
    assert_ne!(bound_to(&world, "data"), format!("Bound pvc-{uid}"));
    assert_eq!(
        (bound_to(&world, "data").split(' ').next(), phase_of(&world, &format!("pvc-{uid}")).as_str()),
        (Some("Bound"), "Released")
    );
}

#[test]
fn v3_v10_a_volume_grows_and_delete_leaves_its_directory_to_the_node() {
    let mut world = with_claim("Immediate", "Delete");
    let name = bound_to(&world, "data").replace("Bound ", "");
    // V10: it grows, and says so on both sides.
    ask(&mut world, "3Gi");
    assert_eq!(world.get(&kinds::PERSISTENT_VOLUME, "", &name)["spec"]["capacity"]["storage"], "3Gi");
    assert_eq!(world.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "data")["status"]["capacity"]["storage"], "3Gi");
    world.delete(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "data", None);
    settle(&mut world);
    let volume = world.get(&kinds::PERSISTENT_VOLUME, "", &name);
    assert!(volume["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(volume["metadata"]["finalizers"], json!([LOCAL_PATH_FINALIZER]), "only the node's finalizer is left");
    // Where the policy was changed to Retain meanwhile, nobody touches the bytes.
    world.patch(&kinds::PERSISTENT_VOLUME, "", &name, json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}}));
    settle(&mut world);
    assert_eq!(phase_of(&world, &name), "gone");
}

#[test]
fn v10_how_a_class_keeps_sizes_is_understood_or_refused_in_words() {
    for (mode, parameter, kept) in [
        ("Immediate", None, Ok("image")),
        ("WaitForFirstConsumer", Some("auto"), Ok("image")),
        ("Immediate", Some("none"), Ok("none")),
        ("Immediate", Some("quota"), Err("project quotas are not supported")),
        ("WaitForFirstConsumer", Some("Image"), Err("\"Image\" is not one of auto, image, none")),
    ] {
        let mut world = World::default();
        world.put(node("n1", json!({})));
        let mut class = storage_class("fast", mode, "Delete");
        if let Some(value) = parameter {
            class["parameters"] = json!({SIZE: value});
        }
        world.put(class);
        world.put(claim("data", Some("fast"), "ReadWriteOnce"));
        world.put(user("web-0", "data"));
        world.settle(&CONTROLLERS, Timestamp::UNIX_EPOCH);
        let key = ObjectKey::new("default", "data");
        let decision = (persistentvolumeclaim::CONTROLLER.reconcile)(&world.snapshot, &key, Timestamp::UNIX_EPOCH);
        match kept {
            Ok(kept) => {
                let name = bound_to(&world, "data").replace("Bound ", "");
                assert_eq!(world.get(&kinds::PERSISTENT_VOLUME, "", &name)["metadata"]["annotations"][SIZE], kept);
            }
            Err(words) => {
                assert_eq!(bound_to(&world, "data"), "Pending -");
                let event = &decision.events[0];
                assert!(event.reason == "ProvisioningFailed" && event.message.contains(words), "{}", event.message);
            }
        }
    }
}

/// A small generator (xorshift): the same seed gives the same story.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % (sides as u64)).unwrap()
    }
}

/// V1, V2, V9, at every step.
fn check(world: &World, histories: &mut BTreeMap<String, String>, story: &str) {
    let mut volume_of: BTreeMap<String, String> = BTreeMap::new();
    for claim in world.all(&kinds::PERSISTENT_VOLUME_CLAIM) {
        let volume = claim["spec"]["volumeName"].as_str().unwrap_or("").to_owned();
        let uid = claim["metadata"]["uid"].as_str().unwrap().to_owned();
        if volume.is_empty() {
            continue;
        }
        let there = world.get(&kinds::PERSISTENT_VOLUME, "", &volume);
        assert_eq!(
            there["spec"]["claimRef"]["uid"], uid,
            "V1: the volume of a claim is its own; V2: it is there. {story}"
        );
        assert_eq!(volume_of.insert(volume.clone(), uid.clone()), None, "V1: no volume is bound twice. {story}");
        if let Some(before) = histories.insert(volume.clone(), uid.clone()) {
            assert!(
                before == uid,
                "V6: {volume} was {before}'s and is now {uid}'s without anybody emptying it. {story}"
            );
        }
    }
    let mut users: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for pod in world.all(&kinds::POD) {
        if let Some(node) = pod["spec"]["nodeName"].as_str() {
            let name = pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"].as_str().unwrap();
            assert!(
                !world.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", name).is_null(),
                "V2: a claim in use is there. {story}"
            );
            users.entry(name.to_owned()).or_default().push(node.to_owned());
        }
    }
    for (name, mut nodes) in users {
        let mode = world.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", &name)["spec"]["accessModes"][0].clone();
        assert!(mode != "ReadWriteOncePod" || nodes.len() == 1, "V9: ReadWriteOncePod is one pod. {story}");
        nodes.dedup();
        assert!(nodes.len() == 1, "V9: ReadWriteOnce is one node. {story}");
    }
}

/// One story: objects come and go, controllers decide on views up to a few steps old, decisions are cut anywhere.
///
/// The views are never older than the deletion of a claim: that is what the driver promises (newest snapshot), and
/// what V2 rests on upstream, too.
fn tell(seed: u64) {
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut world = World::default();
    let mut histories = BTreeMap::new();
    for name in ["n1", "n2"] {
        world.put(node(name, json!({})));
    }
    world.put(storage_class("late", "WaitForFirstConsumer", "Retain"));
    world.put(storage_class("now", "Immediate", "Delete"));
    for number in 0..3 {
        world.put(static_volume(&format!("nfs-{number}"), "2Gi", "Retain"));
    }
    let mut views = vec![world.snapshot.clone()];
    for step in 0..120 {
        let story = format!("seed {seed}, step {step}");
        let name = ["a", "b", "c"][dice.roll(3)];
        match dice.roll(12) {
            0 => {
                if world.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", name).is_null() {
                    let class = [Some("late"), Some("now"), Some("")][dice.roll(3)];
                    let mode = ["ReadWriteOnce", "ReadWriteOncePod"][dice.roll(2)];
                    world.put(claim(name, class, mode));
                }
            }
            1 => {
                if !world.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", name).is_null() && dice.roll(3) == 0 {
                    world.delete(&kinds::PERSISTENT_VOLUME_CLAIM, "default", name, None);
                    views.clear();
                }
            }
            2 | 3 => {
                let pod = format!("pod-{}", dice.roll(4));
                if world.get(&kinds::POD, "default", &pod).is_null() {
                    world.put(user(&pod, name));
                }
            }
            4 => {
                world.remove(&kinds::POD, &ObjectKey::new("default", format!("pod-{}", dice.roll(4))));
            }
            _ => {
                let which = dice.roll(CONTROLLERS.len());
                let keys = keys_of(&world, KEYS[which]);
                if let Some(key) = keys.get(dice.roll(keys.len().max(1))) {
                    let view = views.get(dice.roll(views.len().max(1))).unwrap_or(&world.snapshot).clone();
                    let cut = [usize::MAX, 0, 1, 2, 3][dice.roll(5)];
                    world.run_on(&view, &CONTROLLERS[which], key, Timestamp::UNIX_EPOCH, cut);
                }
            }
        }
        views.push(world.snapshot.clone());
        if views.len() > 4 {
            views.remove(0);
        }
        check(&world, &mut histories, &story);
    }
    settle(&mut world);
    check(&world, &mut histories, &format!("seed {seed}, settled"));
}

#[test]
fn v1_v2_v6_v9_hold_under_any_interleaving_cut_and_stale_view() {
    for seed in 1..=400 {
        tell(seed);
    }
}

#[test]
fn an_nfs_claim_is_bound_when_its_folder_is_there_and_the_folder_goes_before_the_volume() {
    for mode in ["Immediate", "WaitForFirstConsumer"] {
        let mut world = World::default();
        world.put(node("n1", json!({})));
        world.put(node("n2", json!({})));
        let mut class = storage_class("nfs", mode, "Delete");
        class["provisioner"] = json!(nfs::PROVISIONER);
        class["parameters"] = json!({"server": "192.0.2.1", "share": "/e"});
        class["mountOptions"] = json!(["timeo=50"]);
        world.put(class);
        world.put(claim("data", Some("nfs"), "ReadWriteMany"));
        settle(&mut world);
        if mode == "WaitForFirstConsumer" {
            assert!(world.all(&kinds::PERSISTENT_VOLUME).next().is_none());
        }
        world.put(user("www", "data"));
        world.put(user("www-2", "data"));
        settle(&mut world);
        let uid = world.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "data")["metadata"]["uid"]
            .as_str()
            .unwrap()
            .to_owned();
        let name = format!("pvc-{uid}");
        let typed = |world: &World| -> PersistentVolume {
            serde_json::from_value(world.get(&kinds::PERSISTENT_VOLUME, "", &name).clone()).unwrap()
        };
        assert_eq!(bound_to(&world, "data"), "Pending -", "{mode}");
        assert!(world.get(&kinds::POD, "default", "www")["spec"]["nodeName"].is_null(), "{mode}");
        let worker = annotation(&typed(&world).metadata, nfs::WORK_ON).to_owned();
        assert_eq!(nfs::task(&typed(&world), &worker), Some(nfs::Task::Make));
        assert_eq!(typed(&world).spec.unwrap().mount_options, Some(vec!["timeo=50".to_owned()]));

        // The node that was asked is gone: another is.
        world.remove(&kinds::NODE, &ObjectKey::new("", worker.as_str()));
        settle(&mut world);
        let other = annotation(&typed(&world).metadata, nfs::WORK_ON).to_owned();
        assert!(other != worker && nfs::task(&typed(&world), &worker).is_none(), "{mode}");
        let noted = nfs::made(&other, &typed(&world), true);
        world.patch(&kinds::PERSISTENT_VOLUME, "", &name, json!({"metadata": {"annotations": noted}}));
        settle(&mut world);
        assert_eq!(bound_to(&world, "data"), format!("Bound {name}"), "{mode}");
        assert_eq!(world.get(&kinds::POD, "default", "www-2")["spec"]["nodeName"], other.as_str(), "{mode}");

        // V10: it grows when the server has been told.
        world.patch(
            &kinds::PERSISTENT_VOLUME_CLAIM,
            "default",
            "data",
            json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}}),
        );
        settle(&mut world);
        assert_eq!(nfs::task(&typed(&world), &other), Some(nfs::Task::Grow));
        assert_eq!(
            world.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "data")["status"]["capacity"]["storage"],
            "1Gi"
        );
        let noted = nfs::made(&other, &typed(&world), true);
        world.patch(&kinds::PERSISTENT_VOLUME, "", &name, json!({"metadata": {"annotations": noted}}));
        settle(&mut world);
        assert_eq!(nfs::task(&typed(&world), &other), None);
        assert_eq!(
            world.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "data")["status"]["capacity"]["storage"],
            "2Gi"
        );

        // V2, V3: removed only when nobody uses it and the claim is gone.
        world.delete(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "data", None);
        settle(&mut world);
        assert_eq!(nfs::task(&typed(&world), &other), None);
        for pod in ["www", "www-2"] {
            world.remove(&kinds::POD, &ObjectKey::new("default", pod));
        }
        settle(&mut world);
        assert_eq!(nfs::task(&typed(&world), &other), Some(nfs::Task::Remove));
        world.patch(&kinds::PERSISTENT_VOLUME, "", &name, json!({"metadata": {"finalizers": []}}));
        assert_eq!(phase_of(&world, &name), "gone");
    }
}
