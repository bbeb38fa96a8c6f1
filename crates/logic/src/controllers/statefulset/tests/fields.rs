//! What a user sets on a StatefulSet, field by field: each changes what is made, replaced or removed, and when.

use jiff::SignedDuration;

use super::*;
use crate::decision::{Decision, Waiting};

fn in_seconds(seconds: i64) -> Timestamp {
    now().checked_add(SignedDuration::from_secs(seconds)).unwrap()
}

pub(super) fn decided(world: &World, at: Timestamp) -> Decision {
    (statefulset::CONTROLLER.reconcile)(&world.snapshot, &key(), at)
}

/// The controller alone decides at that time, until it has nothing more to do.
pub(super) fn work(world: &mut World, at: Timestamp) {
    while world.run(&statefulset::CONTROLLER, &key(), at, usize::MAX) > 0 {}
}

/// The pods that are told to go.
pub(super) fn going(world: &World) -> Vec<String> {
    let going = world.all(&POD).filter(|pod| !pod["metadata"]["deletionTimestamp"].is_null());
    going.map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

pub(super) fn change(world: &mut World, spec: Value) {
    world.patch(&STATEFUL_SET, "default", "web", json!({ "spec": spec }));
}

/// Ready for so many seconds before [`now`].
fn ready_for(world: &mut World, name: &str, seconds: i64) {
    report(world, name, "True", in_seconds(-seconds).as_second());
}

#[test]
fn min_ready_seconds_holds_back_the_next_pod_s4() {
    let mut world = world(json!({"minReadySeconds": 30}));
    work(&mut world, now());
    ready_for(&mut world, "web-0", 10);
    work(&mut world, now());
    assert_eq!(pods(&world), ["web-0"], "Ready, and not yet for 30 seconds");
    let status = world.get(&STATEFUL_SET, "default", "web")["status"].clone();
    assert_eq!((&status["readyReplicas"], &status["availableReplicas"]), (&json!(1), &json!(0)));
    let decision = decided(&world, now());
    assert_eq!(decision.wake_at, Some(in_seconds(20)), "looked at again when it is available, whatever happens");
    assert!(decision.waiting.contains(&Waiting::NotYetAvailable), "{:?}", decision.waiting);
    work(&mut world, in_seconds(19));
    assert_eq!(pods(&world), ["web-0"]);
    work(&mut world, in_seconds(20));
    assert_eq!(pods(&world), ["web-0", "web-1"]);
    assert_eq!(world.get(&STATEFUL_SET, "default", "web")["status"]["availableReplicas"], 1);
}

#[test]
fn min_ready_seconds_holds_back_a_rolling_update_and_a_scale_in_s5_s6() {
    let mut world = world(json!({"minReadySeconds": 30}));
    rest(&mut world);
    change(&mut world, image("good:2")["spec"].clone());
    work(&mut world, now());
    assert_eq!(going(&world), ["web-2"]);
    kubelet(&mut world, "web-2");
    work(&mut world, now());
    ready_for(&mut world, "web-2", 10);
    work(&mut world, now());
    assert_eq!((going(&world), pods(&world).len()), (vec![], 3), "the new one is Ready and not yet available");
    work(&mut world, in_seconds(20));
    assert_eq!(going(&world), ["web-1"]);

    rest(&mut world);
    ready_for(&mut world, "web-0", 10);
    change(&mut world, json!({"replicas": 2}));
    work(&mut world, now());
    assert_eq!(going(&world), [""; 0], "one that stays is not available yet");
    work(&mut world, in_seconds(20));
    assert_eq!(going(&world), ["web-2"]);

    // Of those that go, too: by time alone, whatever else happens.
    let mut world = self::world(json!({"minReadySeconds": 30}));
    rest(&mut world);
    ready_for(&mut world, "web-1", 5);
    ready_for(&mut world, "web-2", 10);
    change(&mut world, json!({"replicas": 1}));
    work(&mut world, now());
    assert_eq!(going(&world), [""; 0], "neither is available");
    assert_eq!(decided(&world, now()).wake_at, Some(in_seconds(20)), "the highest is, first");
    work(&mut world, in_seconds(20));
    assert_eq!(going(&world), ["web-2"]);
}

#[test]
fn on_delete_replaces_nothing_by_itself_s6() {
    let mut world = world(json!({"updateStrategy": {"type": "OnDelete"}}));
    rest(&mut world);
    change(&mut world, image("bad:2")["spec"].clone());
    rest(&mut world);
    assert_eq!(shape(&world), "web-0=good:1 web-1=good:1 web-2=good:1");
    // What a user deletes comes back new, and stays though it is broken and corrected: that is the user's, too.
    world.remove(&POD, &ObjectKey::new("default", "web-1"));
    rest(&mut world);
    change(&mut world, image("good:3")["spec"].clone());
    crash(&mut world, "web-2");
    rest(&mut world);
    assert_eq!(shape(&world), "web-0=good:1 web-1=bad:2 web-2=good:1");
    let status = world.get(&STATEFUL_SET, "default", "web")["status"].clone();
    assert_ne!(status["currentRevision"], status["updateRevision"]);
    for name in ["web-0", "web-1", "web-2"] {
        world.remove(&POD, &ObjectKey::new("default", name));
        rest(&mut world);
    }
    assert_eq!(shape(&world), "web-0=good:3 web-1=good:3 web-2=good:3");
}

#[test]
fn ordinals_start_moves_pods_claims_and_partition_s3_s4_s6() {
    let partition = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 2}});
    let mut world = world(json!({"ordinals": {"start": 5}, "updateStrategy": partition}));
    world.settle(CONTROLLERS, now());
    assert_eq!(pods(&world), ["web-5"], "the first is made first");
    rest(&mut world);
    assert_eq!(shape(&world), "web-5=good:1 web-6=good:1 web-7=good:1");
    assert_eq!(names(&world, &PERSISTENT_VOLUME_CLAIM), ["data-web-5", "data-web-6", "data-web-7"]);
    let pod = world.get(&POD, "default", "web-6");
    assert_eq!(pod["metadata"]["labels"]["apps.kubernetes.io/pod-index"], "6");
    // The partition counts from the start.
    change(&mut world, image("good:2")["spec"].clone());
    rest(&mut world);
    assert_eq!(shape(&world), "web-5=good:1 web-6=good:1 web-7=good:2");
    change(&mut world, json!({"replicas": 2, "updateStrategy": {"rollingUpdate": {"partition": 0}}}));
    rest(&mut world);
    assert_eq!(shape(&world), "web-5=good:2 web-6=good:2", "S5: the highest goes");
    // Another start: what is below it goes, what is above it comes.
    change(&mut world, json!({"ordinals": {"start": 6}}));
    rest(&mut world);
    assert_eq!(shape(&world), "web-6=good:2 web-7=good:2");
    change(&mut world, json!({"ordinals": null}));
    rest(&mut world);
    assert_eq!(shape(&world), "web-0=good:2 web-1=good:2");
}

#[test]
fn max_unavailable_bounds_what_a_rolling_update_takes_away_at_once_s6() {
    let numbers =
        [(json!(null), 1), (json!(1), 1), (json!(2), 2), (json!("40%"), 2), (json!("39%"), 1), (json!("1%"), 1)];
    for policy in ["OrderedReady", "Parallel"] {
        for (most, expected) in &numbers {
            let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": most}});
            let mut world = world(json!({"replicas": 5, "podManagementPolicy": policy, "updateStrategy": strategy}));
            rest(&mut world);
            change(&mut world, image("good:2")["spec"].clone());
            work(&mut world, now());
            let all = ["web-3", "web-4"];
            assert_eq!(going(&world), all[all.len() - expected..], "{policy} {most}");
            // Those that are away count, whoever took them.
            if *expected == 2 {
                kubelet(&mut world, "web-4");
                kubelet(&mut world, "web-3");
                report(&mut world, "web-0", "False", 300);
                work(&mut world, now());
                assert_eq!(going(&world), [""; 0], "{policy} {most}: two are still away, and web-0 is not ready");
            }
        }
    }
}

/// `whenScaled: Delete`, and the set is scaled out again before the claim has gone with its pod.
#[test]
fn a_claim_that_goes_with_an_older_pod_is_not_taken_over_s8_v6() {
    let policy = json!({"whenDeleted": "Retain", "whenScaled": "Delete"});
    let mut world = world(json!({"replicas": 2, "persistentVolumeClaimRetentionPolicy": policy}));
    rest(&mut world);
    let claim = ObjectKey::new("default", "data-web-1");
    let uid = |world: &World| world.get(&PERSISTENT_VOLUME_CLAIM, "default", "data-web-1")["metadata"]["uid"].clone();
    let old = uid(&world);
    change(&mut world, json!({"replicas": 1}));
    work(&mut world, now());
    assert_eq!(going(&world), ["web-1"]);
    // The name is taken by another pod, too: an owner is a uid.
    for name_is_taken in [false, true] {
        let mut world = world.clone();
        world.remove(&POD, &ObjectKey::new("default", "web-1"));
        if name_is_taken {
            world.put(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "default", "name": "web-1"},
                "spec": {"containers": []}}));
        }
        change(&mut world, json!({"replicas": 2}));
        work(&mut world, now());
        let owner = world.get(&PERSISTENT_VOLUME_CLAIM, "default", "data-web-1")["metadata"]["ownerReferences"].clone();
        assert_eq!((uid(&world), &owner[0]["kind"]), (old.clone(), &json!("Pod")), "it keeps its owner");
        if name_is_taken {
            continue;
        }
        assert_eq!(pods(&world), ["web-0"], "its successor waits for the claim to go");
        let waiting = Waiting::ClaimTerminating { name: "data-web-1".to_owned() };
        assert_eq!(decided(&world, now()).waiting, [waiting]);
        let dependent = garbagecollector::key_for(&PERSISTENT_VOLUME_CLAIM, &claim);
        world.run(&garbagecollector::CONTROLLER, &dependent, now(), usize::MAX);
        rest(&mut world);
        assert_eq!(shape(&world), "web-0=good:1 web-1=good:1");
        assert!(uid(&world).is_string() && uid(&world) != old, "a fresh claim");
    }
}

/// S3, S9: each claim of several wakes its set, and is its own volume of the pod; who else owns one does not matter.
#[test]
fn each_of_several_claims_is_made_again_s3_s9() {
    let template =
        |name: &str| json!({"metadata": {"name": name}, "spec": {"resources": {"requests": {"storage": "1Gi"}}}});
    let mut world = world(json!({"volumeClaimTemplates": [template("data"), template("log")], "template": {"spec": {
        "volumes": [{"name": "log", "emptyDir": {}}, {"name": "data", "emptyDir": {}}]}}}));
    // One that goes with a pod that is there is there, too.
    world.put(json!({"kind": "Pod", "metadata": {"namespace": "default", "name": "other", "uid": "uid-other"},
        "spec": {"containers": []}}));
    let owner = json!([{"apiVersion": "v1", "kind": "Pod", "name": "other", "uid": "uid-other"}]);
    world.put(json!({"kind": "PersistentVolumeClaim", "metadata": {"namespace": "default", "name": "data-web-0",
        "ownerReferences": owner}, "spec": {}}));
    work(&mut world, now());
    let volumes = world.get(&POD, "default", "web-0")["spec"]["volumes"].clone();
    let claims: Vec<_> =
        volumes.as_array().unwrap().iter().map(|it| &it["persistentVolumeClaim"]["claimName"]).collect();
    assert_eq!(claims, ["data-web-0", "log-web-0"]);
    for name in ["data-web-0", "log-web-0"] {
        world.changes.clear();
        world.remove(&PERSISTENT_VOLUME_CLAIM, &ObjectKey::new("default", name));
        world.settle(&[statefulset::CONTROLLER], now());
        assert_eq!(names(&world, &PERSISTENT_VOLUME_CLAIM), ["data-web-0", "log-web-0"], "{name}");
    }
}

/// Also where the claim is missed only after everything else has come to rest, and where it is on its way out.
#[test]
fn a_pod_that_waits_for_a_claim_gets_it_whenever_it_goes_s9() {
    let mut world = world(json!({}));
    work(&mut world, now());
    world.patch(&POD, "default", "web-0", json!({"status": {"phase": "Pending"}}));
    work(&mut world, now());
    world.changes.clear();
    world.remove(&PERSISTENT_VOLUME_CLAIM, &ObjectKey::new("default", "data-web-0"));
    world.settle(&[statefulset::CONTROLLER], now());
    assert_eq!(names(&world, &PERSISTENT_VOLUME_CLAIM), ["data-web-0"], "its going alone wakes the set");
    let held = json!({"metadata": {"finalizers": ["x.io/held"], "deletionTimestamp": "2026-01-01T00:00:00Z"}});
    world.patch(&PERSISTENT_VOLUME_CLAIM, "default", "data-web-0", held);
    world.settle(&[statefulset::CONTROLLER], now());
    let waiting = decided(&world, now()).waiting;
    assert!(waiting.contains(&Waiting::ClaimTerminating { name: "data-web-0".to_owned() }), "{waiting:?}");
    world.remove(&PERSISTENT_VOLUME_CLAIM, &ObjectKey::new("default", "data-web-0"));
    world.settle(&[statefulset::CONTROLLER], now());
    assert_eq!(names(&world, &PERSISTENT_VOLUME_CLAIM), ["data-web-0"]);
}

/// Whoever else has a say in a claim keeps it, and what is left of earlier policies and pods goes.
#[test]
fn a_claim_has_the_owners_that_the_policy_says_and_strangers_s8_s10() {
    let owner = |kind: &str, name: &str, controls: bool| {
        json!({"apiVersion": "v1", "kind": kind, "name": name,
        "uid": format!("of-{name}"), "controller": controls})
    };
    let set =
        || json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "uid-1", "controller": true});
    let table = [
        ("Retain", json!([]), vec![]),
        ("Delete", json!([]), vec!["StatefulSet/web"]),
        ("Retain", json!([set()]), vec![]),
        ("Delete", json!([set()]), vec!["StatefulSet/web"]),
        ("Delete", json!([owner("Backup", "x", true)]), vec!["Backup/x"]),
        ("Delete", json!([owner("Backup", "x", false)]), vec!["Backup/x", "StatefulSet/web"]),
        ("Retain", json!([owner("Backup", "x", false), set()]), vec!["Backup/x"]),
        ("Retain", json!([owner("Pod", "web-7", false)]), vec![]),
        ("Delete", json!([owner("Pod", "web-7", true)]), vec!["StatefulSet/web"]),
        ("Delete", json!([owner("Pod", "other-7", false)]), vec!["Pod/other-7", "StatefulSet/web"]),
        ("Delete", json!([owner("Pod", "bare", false)]), vec!["Pod/bare", "StatefulSet/web"]),
        ("Delete", json!([owner("Backup", "web-7", false)]), vec!["Backup/web-7", "StatefulSet/web"]),
    ];
    for (policy, owners, expected) in table {
        let mut world = world(json!({"replicas": 1}));
        rest(&mut world);
        assert_eq!(world.get(&STATEFUL_SET, "default", "web")["metadata"]["uid"], "uid-1");
        let claim = json!({"metadata": {"ownerReferences": owners}});
        world.patch(&PERSISTENT_VOLUME_CLAIM, "default", "data-web-0", claim);
        change(&mut world, json!({"persistentVolumeClaimRetentionPolicy": {"whenDeleted": policy}}));
        world.settle(&[statefulset::CONTROLLER], now());
        let claim = world.get(&PERSISTENT_VOLUME_CLAIM, "default", "data-web-0");
        let left = claim["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
        let shown = |owner: &Value| format!("{}/{}", owner["kind"].as_str().unwrap(), owner["name"].as_str().unwrap());
        assert_eq!(left.iter().map(shown).collect::<Vec<_>>(), expected, "{policy} {owners}");
    }
    // A claim of a pod that was scaled in long ago, at a set that has nothing else to do.
    let mut world = self::world(json!({"replicas": 1}));
    rest(&mut world);
    let mut claim = world.get(&PERSISTENT_VOLUME_CLAIM, "default", "data-web-0");
    claim["metadata"] = json!({"namespace": "default", "name": "data-web-5", "labels": {"app": "web"},
        "ownerReferences": [set()]});
    world.put(claim);
    world.settle(&[statefulset::CONTROLLER], now());
    let left = world.get(&PERSISTENT_VOLUME_CLAIM, "default", "data-web-5")["metadata"]["ownerReferences"].clone();
    assert!(left.as_array().is_none_or(Vec::is_empty), "{left}");
    // A claim that goes with its set is no reason not to make its pod again.
    let mut world = self::world(json!({"persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete"}}));
    rest(&mut world);
    world.remove(&POD, &ObjectKey::new("default", "web-1"));
    rest(&mut world);
    assert_eq!(pods(&world), ["web-0", "web-1", "web-2"]);
}

#[test]
fn pods_and_claims_are_what_their_templates_say_from_the_first_write_s3() {
    let empty = |name: &str| json!({"name": name, "emptyDir": {}});
    let template = json!({"metadata": {"labels": {"app": "web"}, "annotations": {"a": "b"}, "finalizers": ["x.io/f"]},
        "spec": {"volumes": [empty("data"), empty("other")], "containers": [{"name": "c", "image": "good:1"}]}});
    let claim = json!({"metadata": {"name": "data", "labels": {"tier": "db"}, "annotations": {"c": "d"}},
        "spec": {"resources": {"requests": {"storage": "1Gi"}}}});
    let mut world = world(json!({"serviceName": "", "template": template, "volumeClaimTemplates": [claim]}));
    world.run(&statefulset::CONTROLLER, &key(), now(), usize::MAX);
    let claim = world.get(&PERSISTENT_VOLUME_CLAIM, "default", "data-web-0")["metadata"].clone();
    assert_eq!(claim["labels"], json!({"app": "web", "tier": "db"}));
    assert_eq!((&claim["annotations"], &claim["ownerReferences"]), (&json!({"c": "d"}), &json!(null)));
    let pod = world.get(&POD, "default", "web-0");
    let volumes: Vec<_> = pod["spec"]["volumes"].as_array().unwrap().iter().map(|volume| &volume["name"]).collect();
    assert_eq!(volumes, ["data", "other"], "the claim's volume is in the place of the template's");
    assert_eq!(pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"], "data-web-0");
    let metadata = &pod["metadata"];
    assert_eq!((&metadata["annotations"], &metadata["finalizers"]), (&json!({"a": "b"}), &json!(["x.io/f"])));
    assert_eq!(metadata["labels"]["statefulset.kubernetes.io/pod-name"], "web-0");
    assert_eq!(metadata["labels"]["apps.kubernetes.io/pod-index"], "0");
    assert!(pod["spec"]["subdomain"].is_null());
    let ordinals = ["web-0", "web-10", "web-01", "web-+1", "web--1", "web-", "web"].map(|name| identity::parse(name));
    assert_eq!(ordinals, [Some(("web", 0)), Some(("web", 10)), None, None, Some(("web-", 1)), None, None]);
}
