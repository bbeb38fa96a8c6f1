//! The promises of StatefulSets in a small world: every write is checked against the snapshot before it, whatever the
//! pods do, whatever the user does, and wherever a decision is cut.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use mainstay_api::kinds::{CONTROLLER_REVISION, PERSISTENT_VOLUME_CLAIM, POD, STATEFUL_SET};
use mainstay_api::{Kind, ObjectKey};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{identity, revision_of};
use crate::controllers::{garbagecollector, statefulset};
use crate::decision::{Controller, Propagation, Write};
use crate::ownership::controller_of;
use crate::pods::{in_back_off, is_finished, is_running_and_ready, is_terminating, never_ready};
use crate::snapshot::Snapshot;
use crate::world::{World, merge};

mod decisions;
mod fields;

const CONTROLLERS: &[Controller] = &[statefulset::CONTROLLER, garbagecollector::CONTROLLER];

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn key() -> ObjectKey {
    ObjectKey::new("default", "web")
}

/// The set `web`, changed by a patch of its spec.
fn set(spec: Value) -> Value {
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"namespace": "default", "name": "web",
            "generation": 1},
        "spec": {
            "replicas": 3, "serviceName": "web", "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c",
                "image": "good:1"}]}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"},
                "spec": {"resources": {"requests": {"storage": "1Gi"}}}}],
        },
    });
    merge(&mut object["spec"], spec);
    object
}

fn world(spec: Value) -> World {
    let mut world = World::default();
    world.put(set(spec));
    world
}

fn image(name: &str) -> Value {
    json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": name}]}}}})
}

/// What a kubelet tells of a pod: a step further from wherever it is.
fn kubelet(world: &mut World, name: &str) {
    let pod = world.get(&POD, "default", name);
    if pod.is_null() {
        return;
    }
    if !pod["metadata"]["deletionTimestamp"].is_null() {
        return world.remove(&POD, &ObjectKey::new("default", name));
    }
    let image = pod["spec"]["containers"][0]["image"].as_str().unwrap_or("").to_owned();
    let conditions = pod["status"]["conditions"].as_array().map_or(0, Vec::len);
    if conditions == 0 {
        report(world, name, "False", 100);
    } else if image.starts_with("good") && pod["status"]["phase"] == "Running" {
        report(world, name, "True", 200);
    }
}

fn report(world: &mut World, name: &str, ready: &str, second: i64) {
    let at = |second| Timestamp::from_second(second).unwrap().to_string();
    world.patch(
        &POD,
        "default",
        name,
        json!({"spec": {"nodeName": "n"}, "status": {"phase": "Running", "conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": at(100)},
            {"type": "Initialized", "status": "True", "lastTransitionTime": at(100)},
            {"type": "Ready", "status": ready, "lastTransitionTime": at(second)},
        ]}}),
    );
}

/// It was Ready, and its container is held back now.
fn crash(world: &mut World, name: &str) {
    report(world, name, "False", 300);
    let state = json!({"waiting": {"reason": "CrashLoopBackOff"}});
    let container = json!({"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 3, "state": state});
    world.patch(&POD, "default", name, json!({"status": {"containerStatuses": [container]}}));
}

fn pods(world: &World) -> Vec<String> {
    world.all(&POD).map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

/// Controllers and kubelets take turns until nothing changes.
fn rest(world: &mut World) {
    for _ in 0..200 {
        world.settle(CONTROLLERS, now());
        let before = world.snapshot.revision;
        for name in pods(world) {
            let ready = world
                .snapshot
                .pods
                .get(&ObjectKey::new("default", name.as_str()))
                .is_some_and(|pod| is_running_and_ready(pod));
            if !ready || !world.get(&POD, "default", &name)["metadata"]["deletionTimestamp"].is_null() {
                let old = world.get(&POD, "default", &name);
                if old["status"]["conditions"].as_array().is_none()
                    || image_of(&old).starts_with("good")
                    || !old["metadata"]["deletionTimestamp"].is_null()
                {
                    kubelet(world, &name);
                }
            }
        }
        if world.snapshot.revision == before {
            return;
        }
    }
    panic!("it does not come to rest: {:?}", world.snapshot.stateful_sets.get(&key()));
}

fn image_of(pod: &Value) -> &str {
    pod["spec"]["containers"][0]["image"].as_str().unwrap_or("")
}

/// The pods with their images, as `web-0=good:1 …`.
fn shape(world: &World) -> String {
    let all = world.all(&POD).map(|pod| format!("{}={}", pod["metadata"]["name"].as_str().unwrap(), image_of(pod)));
    all.collect::<Vec<_>>().join(" ")
}

fn names(world: &World, kind: &Kind) -> Vec<String> {
    world.all(kind).map(|object| object["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn from_apply_to_ready_in_order_s3_s4() {
    let mut world = world(json!({}));
    world.settle(CONTROLLERS, now());
    assert_eq!(pods(&world), ["web-0"], "the next waits for Ready");
    rest(&mut world);
    assert_eq!(shape(&world), "web-0=good:1 web-1=good:1 web-2=good:1");
    assert_eq!(names(&world, &PERSISTENT_VOLUME_CLAIM), ["data-web-0", "data-web-1", "data-web-2"]);
    let pod = world.get(&POD, "default", "web-1");
    assert_eq!((&pod["spec"]["hostname"], &pod["spec"]["subdomain"]), (&json!("web-1"), &json!("web")));
    assert_eq!(pod["metadata"]["labels"]["apps.kubernetes.io/pod-index"], "1");
    assert_eq!(pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"], "data-web-1");
    let status = world.get(&STATEFUL_SET, "default", "web")["status"].clone();
    assert_eq!((&status["readyReplicas"], &status["updatedReplicas"]), (&json!(3), &json!(3)));
    assert_eq!(status["currentRevision"], status["updateRevision"]);
    assert_eq!(
        world.events[..2],
        [
            "SuccessfulCreate: create Claim data-web-0 Pod web-0 in StatefulSet web success",
            "SuccessfulCreate: create Pod web-0 in StatefulSet web successful",
        ]
    );
}

#[test]
fn a_broken_template_then_a_corrected_one_converges_s7() {
    // Broken from the start, and broken in the middle; corrected forwards, and by going back.
    for (first, then, last) in
        [("bad:1", "bad:2", "good:1"), ("good:1", "bad:1", "good:2"), ("good:1", "bad:1", "good:1")]
    {
        let mut world = world(image(first)["spec"].clone());
        rest(&mut world);
        world.patch(&STATEFUL_SET, "default", "web", image(then));
        rest(&mut world);
        let untouched = world.get(&POD, "default", "web-0")["metadata"]["uid"].clone();
        world.patch(&STATEFUL_SET, "default", "web", image(last));
        rest(&mut world);
        assert_eq!(shape(&world), format!("web-0={last} web-1={last} web-2={last}"));
        if first == last {
            assert_eq!(world.get(&POD, "default", "web-0")["metadata"]["uid"], untouched, "what was right stays");
        }
        let status = world.get(&STATEFUL_SET, "default", "web")["status"].clone();
        assert_eq!(status["currentRevision"], status["updateRevision"]);
    }
}

#[test]
fn a_crash_loop_that_was_ready_once_is_corrected_too_s7() {
    let mut world = world(json!({}));
    rest(&mut world);
    world.patch(&STATEFUL_SET, "default", "web", image("good:2"));
    rest(&mut world);
    for name in ["web-0", "web-2"] {
        crash(&mut world, name);
    }
    // The corrected template reaches both, though neither becomes Ready by itself, and the one between.
    world.patch(&STATEFUL_SET, "default", "web", image("good:3"));
    rest(&mut world);
    assert_eq!(shape(&world), "web-0=good:3 web-1=good:3 web-2=good:3");
}

#[test]
fn a_partition_keeps_and_regains_the_old_revision_s6() {
    let partition = json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}});
    let mut world = world(partition);
    rest(&mut world);
    world.patch(&STATEFUL_SET, "default", "web", image("good:2"));
    rest(&mut world);
    assert_eq!(shape(&world), "web-0=good:1 web-1=good:1 web-2=good:2");
    for name in ["web-0", "web-1"] {
        world.remove(&POD, &ObjectKey::new("default", name));
    }
    rest(&mut world);
    assert_eq!(shape(&world), "web-0=good:1 web-1=good:1 web-2=good:2", "though only new pods were left for a moment");
    world.patch(
        &STATEFUL_SET,
        "default",
        "web",
        json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": 0}}}}),
    );
    rest(&mut world);
    assert_eq!(shape(&world), "web-0=good:2 web-1=good:2 web-2=good:2");
}

#[test]
fn claims_follow_the_retention_policy_and_nothing_else_s8() {
    let policy = |deleted: &str, scaled: &str| {
        json!({"persistentVolumeClaimRetentionPolicy": {"whenDeleted": deleted,
        "whenScaled": scaled}})
    };
    let run = |deleted: &str, scaled: &str, end: &dyn Fn(&mut World)| {
        let mut world = world(policy(deleted, scaled));
        rest(&mut world);
        end(&mut world);
        rest(&mut world);
        names(&world, &PERSISTENT_VOLUME_CLAIM).len()
    };
    let scale: &dyn Fn(&mut World) =
        &|world| world.patch(&STATEFUL_SET, "default", "web", json!({"spec": {"replicas": 1}}));
    let delete: &dyn Fn(&mut World) = &|world| world.delete(&STATEFUL_SET, "default", "web", None);
    assert_eq!([run("Retain", "Retain", scale), run("Retain", "Retain", delete)], [3, 3]);
    assert_eq!([run("Delete", "Retain", scale), run("Delete", "Retain", delete)], [3, 0]);
    assert_eq!([run("Retain", "Delete", scale), run("Retain", "Delete", delete)], [1, 3]);
    assert_eq!([run("Delete", "Delete", scale), run("Delete", "Delete", delete)], [1, 0]);
    let relent: &dyn Fn(&mut World) = &|world| {
        scale(world);
        rest(world);
        world.patch(&STATEFUL_SET, "default", "web", json!({"spec": policy("Retain", "Retain")}));
        rest(world);
        delete(world);
    };
    assert_eq!(
        run("Delete", "Retain", relent),
        3,
        "a policy that was taken back no longer holds, for claims without a pod too"
    );

    // The set goes right after its first claim was made, before anything else was.
    let mut world = world(policy("Delete", "Retain"));
    assert_eq!(world.run(&statefulset::CONTROLLER, &key(), now(), 2), 2);
    assert_eq!((names(&world, &PERSISTENT_VOLUME_CLAIM).len(), pods(&world).len()), (1, 0));
    world.delete(&STATEFUL_SET, "default", "web", None);
    rest(&mut world);
    assert_eq!(names(&world, &PERSISTENT_VOLUME_CLAIM).len(), 0);
}

/// S8: a claim without a pod does not wait until nothing else is to be written.
#[test]
fn s8_a_policy_that_was_taken_back_releases_all_claims_at_once() {
    let policy = |deleted: &str| json!({"persistentVolumeClaimRetentionPolicy": {"whenDeleted": deleted}});
    let mut world = world(policy("Delete"));
    rest(&mut world);
    world.patch(&STATEFUL_SET, "default", "web", json!({"spec": {"replicas": 1}}));
    rest(&mut world);
    world.patch(&STATEFUL_SET, "default", "web", json!({"spec": policy("Retain")}));
    let decision = (statefulset::CONTROLLER.reconcile)(&world.snapshot, &key(), now());
    let released = |write: &&Write| matches!(write, Write::Patch { kind, .. } if *kind == PERSISTENT_VOLUME_CLAIM);
    assert_eq!(decision.writes.iter().filter(released).count(), 3, "{:?}", decision.writes);
}

#[test]
fn a_pending_pod_gets_its_claim_again_s9() {
    let mut world = world(json!({}));
    world.settle(CONTROLLERS, now());
    world.remove(&PERSISTENT_VOLUME_CLAIM, &ObjectKey::new("default", "data-web-0"));
    world.settle(CONTROLLERS, now());
    assert_eq!(names(&world, &PERSISTENT_VOLUME_CLAIM), ["data-web-0"]);
}

#[test]
fn orphans_are_adopted_without_a_restart_and_strangers_left_alone_s10_s11() {
    let mut world = world(json!({}));
    rest(&mut world);
    let uids = |world: &World| world.all(&POD).map(|pod| pod["metadata"]["uid"].clone()).collect::<Vec<_>>();
    let before = uids(&world);
    world.delete_with(&STATEFUL_SET, &key(), None, Propagation::Orphan);
    rest(&mut world);
    assert_eq!(uids(&world), before, "orphans live on");
    // The revision comes back as a server that spells out its defaults would have stored it.
    let name = names(&world, &CONTROLLER_REVISION).remove(0);
    let mut revision = world.get(&CONTROLLER_REVISION, "default", &name);
    revision["data"]["spec"]["template"]["metadata"]["creationTimestamp"] = json!(null);
    (STATEFUL_SET.defaults)(&STATEFUL_SET, &mut revision["data"]);
    world.put(revision);
    let stranger = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "default", "name": "web-3",
        "labels": {"app": "web"},
        "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "x", "uid": "x",
            "controller": true}]}, "spec": {"containers": []}});
    world.put(stranger);
    world.put(set(json!({"replicas": 4})));
    world.settle(&[statefulset::CONTROLLER], now());
    assert_eq!(uids(&world)[..3], before, "the same pods serve the new set");
    assert_eq!(world.get(&POD, "default", "web-3")["metadata"]["ownerReferences"][0]["uid"], "x");
    assert_eq!(names(&world, &CONTROLLER_REVISION), [name]);
}

#[test]
fn history_is_kept_to_its_limit_and_a_rollback_raises_the_old_revision() {
    let mut world = world(json!({"revisionHistoryLimit": 1}));
    for name in ["good:1", "good:2", "good:3", "good:2"] {
        world.patch(&STATEFUL_SET, "default", "web", image(name));
        rest(&mut world);
    }
    let mut history: Vec<_> = world
        .all(&CONTROLLER_REVISION)
        .map(|revision| {
            (
                revision["revision"].as_i64().unwrap(),
                revision["data"]["spec"]["template"]["spec"]["containers"][0]["image"].clone(),
            )
        })
        .collect();
    history.sort_by_key(|(number, _)| *number);
    assert_eq!(history, [(3, json!("good:3")), (4, json!("good:2"))]);
}

/// Something happens.
#[derive(Clone, Debug)]
enum Act {
    /// The controller decides, cut after so many writes.
    Decide(usize),
    /// A kubelet goes on with one pod.
    Kubelet(i64),
    /// A pod stops being Ready (a bad one crashes), fails, is deleted by a user.
    Unready(i64),
    Fail(i64),
    Delete(i64),
    /// The user changes the set.
    Scale(i64),
    Image(&'static str),
    Partition(i64),
    /// The user deletes a claim.
    DropClaim(i64),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        12 => (0_usize..6).prop_map(Act::Decide),
        12 => (0_i64..5).prop_map(Act::Kubelet),
        1 => (0_i64..5).prop_map(Act::Unready),
        1 => (0_i64..5).prop_map(Act::Fail),
        1 => (0_i64..5).prop_map(Act::Delete),
        1 => (0_i64..5).prop_map(Act::Scale),
        2 => prop_oneof![Just("good:1"), Just("good:2"), Just("bad:1")].prop_map(Act::Image),
        1 => (0_i64..4).prop_map(Act::Partition),
        1 => (0_i64..5).prop_map(Act::DropClaim),
    ]
}

fn happen(world: &mut World, act: &Act) {
    let pod = |ordinal: &i64| format!("web-{ordinal}");
    let lives = |world: &World, name: &str| !world.get(&POD, "default", name).is_null();
    let change = |world: &mut World, patch: Value| world.patch(&STATEFUL_SET, "default", "web", patch);
    match act {
        Act::Decide(cut) => drop(world.run(&statefulset::CONTROLLER, &key(), now(), *cut)),
        Act::Kubelet(ordinal) => kubelet(world, &pod(ordinal)),
        Act::Unready(ordinal) if lives(world, &pod(ordinal)) => {
            match image_of(&world.get(&POD, "default", &pod(ordinal))) {
                "bad:1" => crash(world, &pod(ordinal)),
                _ => report(world, &pod(ordinal), "False", 300),
            }
        }
        Act::Fail(ordinal) if lives(world, &pod(ordinal)) => {
            world.patch(&POD, "default", &pod(ordinal), json!({"status": {"phase": "Failed"}}))
        }
        Act::Delete(ordinal) if lives(world, &pod(ordinal)) => world.delete(&POD, "default", &pod(ordinal), None),
        Act::Scale(replicas) => change(world, json!({"spec": {"replicas": replicas}})),
        Act::Image(name) => change(world, image(name)),
        Act::Partition(partition) => {
            change(world, json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": partition}}}}))
        }
        Act::DropClaim(ordinal) => {
            world.remove(&PERSISTENT_VOLUME_CLAIM, &ObjectKey::new("default", format!("data-web-{ordinal}")))
        }
        _ => {}
    }
}

/// Checks one write against what there was before it.
fn check(before: &Snapshot, write: &Write, ordered: bool) {
    let set = before.stateful_sets.get(&key()).unwrap();
    let uid = set.metadata.uid.as_ref();
    let own = |pod: &Pod| controller_of(&pod.metadata).map(|owner| &owner.uid) == uid;
    let replicas = i64::from(set.spec.replicas.unwrap());
    let pod = |ordinal: i64| before.pods.get(&identity::pod_key(set, ordinal)).filter(|pod| own(pod));
    match write {
        Write::Create { kind, object } if *kind == POD => {
            let name = object["metadata"]["name"].as_str().unwrap();
            let ordinal = identity::parse(name).unwrap().1;
            assert!(before.pods.get(&ObjectKey::of(object)).is_none(), "S2: {name} is made while it exists");
            assert!(ordinal < replicas);
            let lower_ready = (0..ordinal).all(|lower| pod(lower).is_some_and(|pod| is_running_and_ready(pod)));
            assert!(!ordered || lower_ready, "S4: {name} is made before its predecessors are Ready");
        }
        Write::Delete { kind, key, uid: given, .. } if *kind == POD => {
            let (_, ordinal) = identity::parse(&key.name).unwrap();
            let victim = before.pods.get(key).unwrap();
            assert!(own(victim) && victim.metadata.uid.as_ref() == Some(given), "S10: {key} is not ours");
            if ordinal >= replicas {
                assert!((ordinal + 1..10).all(|higher| pod(higher).is_none()), "S5: {key} goes before those above it");
            } else if !is_finished(victim) && !never_ready(victim) && !in_back_off(victim) {
                let strategy = set.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
                let partition = strategy.and_then(|strategy| strategy.partition).unwrap_or(0);
                assert!(ordinal >= i64::from(partition), "S6: {key} is below the partition");
                let newest = revision_of(victim);
                let passed = |higher| {
                    pod(higher).is_some_and(|pod| {
                        revision_of(pod) == newest && !is_terminating(&pod.metadata) && !is_finished(pod)
                    })
                };
                assert!(!(ordinal + 1..replicas).any(passed), "S6: {key} goes before an old pod above it");
                let away = (0..replicas).filter(|other| {
                    !pod(*other).is_some_and(|pod| is_running_and_ready(pod) && !is_terminating(&pod.metadata))
                });
                assert!(!is_running_and_ready(victim) || away.count() == 0, "S6: {key} goes though another is away");
            }
        }
        _ => {}
    }
}

/// Conformance: "Scaling should happen in predictable order and halt if any stateful pod is unhealthy".
#[test]
fn scale_in_halts_while_pods_are_not_ready_and_goes_on_when_they_are_s5() {
    let mut world = world(json!({}));
    rest(&mut world);
    let ready = |world: &mut World, status: &str| {
        for name in ["web-0", "web-1", "web-2"] {
            let mut pod = world.get(&POD, "default", name);
            for condition in pod["status"]["conditions"].as_array_mut().unwrap() {
                if condition["type"] == "Ready" {
                    condition["status"] = json!(status);
                }
            }
            world.patch(&POD, "default", name, json!({"status": pod["status"]}));
        }
    };
    let going = |world: &World| world.all(&POD).filter(|pod| !pod["metadata"]["deletionTimestamp"].is_null()).count();
    ready(&mut world, "False");
    world.patch(&STATEFUL_SET, "default", "web", json!({"spec": {"replicas": 0}}));
    world.settle(CONTROLLERS, now());
    assert_eq!((world.all(&POD).count(), going(&world)), (3, 0));
    ready(&mut world, "True");
    world.settle(CONTROLLERS, now());
    assert_eq!(going(&world), 1, "the highest");
    rest(&mut world);
    assert_eq!(world.all(&POD).count(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    /// S2, S4, S5, S6, S10 at every write; S7, S12: then leave it alone with a good template, and it ends where it
    /// should.
    #[test]
    fn whatever_happens_the_promises_hold_and_it_heals_s12(acts in prop::collection::vec(act(), 1..80), ordered: bool) {
        let policy = if ordered { "OrderedReady" } else { "Parallel" };
        let mut world = world(json!({"podManagementPolicy": policy, "updateStrategy": {"type": "RollingUpdate",
            "rollingUpdate": {"partition": 0}}}));
        for act in &acts {
            happen(&mut world, act);
        }
        let last = json!({"spec": {"replicas": 3, "updateStrategy": {"rollingUpdate": {"partition": 0}}}});
        world.patch(&STATEFUL_SET, "default", "web", last);
        world.patch(&STATEFUL_SET, "default", "web", image("good:9"));
        rest(&mut world);
        for (before, write) in &world.log {
            check(before, write, ordered);
        }
        prop_assert_eq!(shape(&world), "web-0=good:9 web-1=good:9 web-2=good:9");
        let status = world.get(&STATEFUL_SET, "default", "web")["status"].clone();
        prop_assert_eq!(&status["currentRevision"], &status["updateRevision"]);
        prop_assert_eq!((&status["replicas"], &status["readyReplicas"], &status["availableReplicas"]), (&json!(3),
            &json!(3), &json!(3)));
        let writes = (statefulset::CONTROLLER.reconcile)(&world.snapshot, &key(), now()).writes;
        prop_assert!(writes.is_empty(), "S11: at rest, and yet {:?}", writes);
    }
}
