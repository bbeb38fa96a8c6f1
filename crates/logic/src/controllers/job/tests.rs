//! Jobs in a small world: what is counted, what is made and deleted, and how a Job ends.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use mainstay_api::ObjectKey;
use mainstay_api::kinds::{JOB, POD};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::controllers::{garbagecollector, job, jobtracking, ttlafterfinished};
use crate::decision::Controller;
use crate::world::{World, merge};

const CONTROLLERS: &[Controller] =
    &[job::CONTROLLER, jobtracking::CONTROLLER, garbagecollector::CONTROLLER, ttlafterfinished::CONTROLLER];

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn later(seconds: i64) -> Timestamp {
    now().checked_add(SignedDuration::from_secs(seconds)).unwrap()
}

fn key() -> ObjectKey {
    ObjectKey::new("default", "work")
}

/// The Job `work`, as the API server stores it, with a patch of its spec.
fn world(spec: Value) -> World {
    let mut object = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"namespace": "default", "name": "work", "uid": "uid-job"},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}},
    });
    merge(&mut object["spec"], spec);
    (JOB.defaults)(&JOB, &mut object);
    (JOB.prepare_create)(&JOB, &mut object);
    let mut world = World::default();
    world.put(object);
    world.settle(CONTROLLERS, now());
    world
}

fn names(world: &World) -> Vec<String> {
    world.all(&POD).map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

/// The names of the pods that neither ended nor go.
fn active(world: &World) -> Vec<String> {
    let is_active = |pod: &&Value| {
        pod["metadata"]["deletionTimestamp"].is_null()
            && !matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
    };
    world.all(&POD).filter(is_active).map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

fn bind(world: &mut World, name: &str) {
    world.patch(&POD, "default", name, json!({"spec": {"nodeName": "n"}, "status": {"phase": "Running"}}));
}

/// A pod ends with an exit code, at a time.
fn end_at(world: &mut World, name: &str, code: i32, at: Timestamp) {
    let phase = if code == 0 { "Succeeded" } else { "Failed" };
    let state = json!({"terminated": {"exitCode": code, "finishedAt": at.to_string()}});
    let container =
        json!({"name": "c", "ready": false, "restartCount": 0, "image": "i", "imageID": "", "state": state});
    let status = json!({"phase": phase, "containerStatuses": [container]});
    world.patch(&POD, "default", name, json!({"spec": {"nodeName": "n"}, "status": status}));
}

fn end(world: &mut World, name: &str, code: i32) {
    end_at(world, name, code, now());
    world.settle(CONTROLLERS, now());
}

fn status(world: &World) -> Value {
    world.get(&JOB, "default", "work")["status"].clone()
}

/// The conditions that hold: `type reason`.
fn conditions(world: &World) -> Vec<String> {
    let all = status(world)["conditions"].as_array().cloned().unwrap_or_default();
    let held = all.iter().filter(|condition| condition["status"] == "True");
    held.map(|c| format!("{} {}", c["type"].as_str().unwrap(), c["reason"].as_str().unwrap())).collect()
}

fn is_held(pod: &Value) -> bool {
    pod["metadata"]["finalizers"].as_array().is_some_and(|all| all.iter().any(|name| name == super::TRACKING))
}

#[test]
fn a_job_runs_its_pods_and_is_complete_when_all_are_counted() {
    let mut world = world(json!({"completions": 3, "parallelism": 2}));
    assert_eq!((active(&world).len(), status(&world)["active"].clone()), (2, json!(2)));
    assert!(world.all(&POD).all(is_held));
    for _ in 0..3 {
        let name = active(&world)[0].clone();
        end(&mut world, &name, 0);
    }
    let status = status(&world);
    assert_eq!((status["succeeded"].clone(), status["active"].clone()), (json!(3), Value::Null));
    assert_eq!(status["uncountedTerminatedPods"], json!({}));
    assert_eq!(conditions(&world), ["SuccessCriteriaMet CompletionsReached", "Complete CompletionsReached"]);
    assert_eq!(names(&world).len(), 3);
    assert!(!world.all(&POD).any(is_held));
    assert!(world.events.contains(&"Completed: Job completed".to_owned()));
    assert_eq!(
        world.events.iter().filter(|event| event.starts_with("SuccessfulCreate: Created pod: work-")).count(),
        3
    );
    world.assert_quiet(CONTROLLERS, now());
}

#[test]
fn without_completions_the_first_success_ends_it() {
    let mut world = world(json!({"parallelism": 3}));
    let all = active(&world);
    end(&mut world, &all[0], 0);
    assert_eq!((active(&world).len(), conditions(&world).len()), (2, 0), "the others are left running");
    end(&mut world, &all[1], 1);
    end(&mut world, &all[2], 0);
    assert_eq!(conditions(&world)[1], "Complete CompletionsReached");
}

#[test]
fn an_indexed_job_has_one_pod_per_index_with_its_index_everywhere() {
    let mut world = world(json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed"}));
    let pods: Vec<Value> = world.all(&POD).cloned().collect();
    for (index, pod) in pods.iter().enumerate() {
        let text = json!(index.to_string());
        let name = pod["metadata"]["name"].as_str().unwrap();
        assert!(name.starts_with(&format!("work-{index}-")), "{name}");
        assert_eq!(pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"], text);
        assert_eq!(pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"], text);
        assert_eq!(pod["spec"]["hostname"], json!(format!("work-{index}")));
        let field = "metadata.labels['batch.kubernetes.io/job-completion-index']";
        assert_eq!(pod["spec"]["containers"][0]["env"][0]["valueFrom"]["fieldRef"]["fieldPath"], field);
    }
    let all = names(&world);
    end(&mut world, &all[2], 0);
    assert_eq!(status(&world)["completedIndexes"], "2");
    end_at(&mut world, &all[0], 1, later(-60));
    world.settle(CONTROLLERS, now());
    let made = active(&world).into_iter().find(|name| name.starts_with("work-0-")).expect("index 0 again");
    end(&mut world, &made, 0);
    end(&mut world, &all[1], 0);
    let status = status(&world);
    assert_eq!((status["completedIndexes"].clone(), status["succeeded"].clone()), (json!("0-2"), json!(3)));
    assert_eq!((status["failed"].clone(), conditions(&world)[1].as_str()), (json!(1), "Complete CompletionsReached"));
}

#[test]
fn failures_are_waited_out_longer_each_time_and_end_the_job_at_the_limit() {
    let mut world = world(json!({"backoffLimit": 2}));
    for wait in [10, 20] {
        let name = active(&world)[0].clone();
        end(&mut world, &name, 1);
        assert_eq!(active(&world).len(), 0, "it is waited for");
        let decision = (job::CONTROLLER.reconcile)(&world.snapshot, &key(), now());
        assert_eq!(decision.wake_at, Some(later(wait)));
        world.run(&job::CONTROLLER, &key(), later(wait), usize::MAX);
        world.settle(CONTROLLERS, later(wait));
    }
    let name = active(&world)[0].clone();
    end(&mut world, &name, 1);
    assert_eq!(conditions(&world), ["FailureTarget BackoffLimitExceeded", "Failed BackoffLimitExceeded"]);
    assert_eq!(status(&world)["failed"], 3);
    let told = "BackoffLimitExceeded: Job has reached the specified backoff limit";
    assert!(world.events.contains(&told.to_owned()));
    world.assert_quiet(CONTROLLERS, now());
}

#[test]
fn a_failed_job_takes_its_running_pods_with_it_and_waits_for_them() {
    let mut world = world(json!({"parallelism": 2, "completions": 2, "backoffLimit": 0}));
    let all = active(&world);
    bind(&mut world, &all[1]);
    end(&mut world, &all[0], 1);
    assert!(!world.get(&POD, "default", &all[1])["metadata"]["deletionTimestamp"].is_null());
    assert_eq!((conditions(&world).len(), status(&world)["terminating"].clone()), (1, json!(1)));
    world.remove(&POD, &ObjectKey::new("default", all[1].as_str()));
    world.settle(CONTROLLERS, now());
    assert_eq!(conditions(&world)[1], "Failed BackoffLimitExceeded");
    assert_eq!(status(&world)["failed"], 2);
}

#[test]
fn a_suspended_jobs_pods_go_uncounted_and_come_back() {
    let mut world = world(json!({"parallelism": 2, "completions": 2, "activeDeadlineSeconds": 30}));
    world.patch(&JOB, "default", "work", json!({"spec": {"suspend": true}}));
    world.settle(CONTROLLERS, now());
    assert_eq!((names(&world).len(), status(&world)["failed"].clone()), (0, Value::Null));
    assert_eq!(conditions(&world), ["Suspended JobSuspended"]);
    world.patch(&JOB, "default", "work", json!({"spec": {"suspend": false}}));
    world.settle(CONTROLLERS, later(100));
    assert_eq!((active(&world).len(), conditions(&world).len()), (2, 0));
    assert_eq!(status(&world)["startTime"], json!(later(100).to_string()), "the deadline counts anew");
    let told: Vec<&String> = world.events.iter().filter(|event| event.contains("Job ")).collect();
    assert_eq!(told, ["Suspended: Job suspended", "Resumed: Job resumed"]);
    world.run(&job::CONTROLLER, &key(), later(130), usize::MAX);
    world.settle(CONTROLLERS, later(130));
    assert_eq!(conditions(&world), ["FailureTarget DeadlineExceeded", "Failed DeadlineExceeded"]);
}

#[test]
fn the_failure_policy_ignores_counts_and_fails_in_upstreams_words() {
    let rules = json!([
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]);
    let mut world = world(json!({"backoffLimit": 0, "podFailurePolicy": {"rules": rules}}));
    let name = active(&world)[0].clone();
    let disrupted = json!([{"type": "DisruptionTarget", "status": "True"}]);
    world.patch(&POD, "default", &name, json!({"status": {"conditions": disrupted}}));
    end_at(&mut world, &name, 143, later(-60));
    world.settle(CONTROLLERS, now());
    assert_eq!((status(&world)["failed"].clone(), active(&world).len()), (Value::Null, 1), "ignored, and made again");
    let name = active(&world)[0].clone();
    end(&mut world, &name, 42);
    assert_eq!(conditions(&world)[1], "Failed PodFailurePolicy");
    let words = format!(
        "PodFailurePolicy: Container c for pod default/{name} failed with exit code 42 matching FailJob rule at index 0"
    );
    assert!(world.events.contains(&words), "{:?}", world.events);
}

#[test]
fn the_success_policy_ends_the_job_early_and_counts_nothing_as_failed() {
    let rules = json!([{"succeededIndexes": "0-1", "succeededCount": 1}]);
    let spec =
        json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed", "successPolicy": {"rules": rules}});
    let mut world = world(spec);
    let all = names(&world);
    end(&mut world, &all[2], 0);
    assert!(conditions(&world).is_empty());
    end(&mut world, &all[1], 0);
    assert_eq!(conditions(&world), ["SuccessCriteriaMet SuccessPolicy", "Complete SuccessPolicy"]);
    let status = status(&world);
    assert_eq!((status["succeeded"].clone(), status["failed"].clone()), (json!(2), Value::Null));
    assert_eq!(active(&world).len(), 0);
}

#[test]
fn each_index_has_its_own_limit_and_its_failures_are_carried_on() {
    let mut world = world(json!({
        "completions": 2, "parallelism": 2, "completionMode": "Indexed", "backoffLimitPerIndex": 1,
            "maxFailedIndexes": 1,
    }));
    let all = names(&world);
    end(&mut world, &all[0], 1);
    assert!(is_held(&world.get(&POD, "default", &all[0])), "kept until its successor carries its failure on");
    assert_eq!(active(&world).len(), 1, "index 0 waits");
    world.run(&job::CONTROLLER, &key(), later(10), usize::MAX);
    world.settle(CONTROLLERS, later(10));
    let again = active(&world).into_iter().find(|name| name.starts_with("work-0-")).unwrap();
    let failures =
        &world.get(&POD, "default", &again)["metadata"]["annotations"]["batch.kubernetes.io/job-index-failure-count"];
    assert_eq!(*failures, "1");
    assert!(!is_held(&world.get(&POD, "default", &all[0])));
    end(&mut world, &again, 1);
    assert_eq!((status(&world)["failedIndexes"].clone(), active(&world).len()), (json!("0"), 1));
    end(&mut world, &all[1], 0);
    assert_eq!(conditions(&world), ["FailureTarget FailedIndexes", "Failed FailedIndexes"]);
    assert_eq!((status(&world)["completedIndexes"].clone(), status(&world)["failed"].clone()), (json!("1"), json!(2)));
}

#[test]
fn with_replacement_policy_failed_a_pod_on_its_way_out_is_waited_for() {
    for (policy, pods) in [("Failed", 0), ("TerminatingOrFailed", 1)] {
        let mut world = world(json!({"podReplacementPolicy": policy, "backoffLimit": 6}));
        let name = active(&world)[0].clone();
        bind(&mut world, &name);
        world.delete(&POD, "default", &name, None);
        world.settle(CONTROLLERS, later(1_000_000));
        assert_eq!(active(&world).len(), pods, "{policy}");
        end_at(&mut world, &name, 1, now());
        world.settle(CONTROLLERS, later(1_000_000));
        assert_eq!((active(&world).len(), status(&world)["failed"].clone()), (1, json!(1)), "{policy}");
    }
}

#[test]
fn orphans_are_adopted_strays_released_and_pods_without_a_job_let_go_s10() {
    let mut world = world(json!({}));
    let name = active(&world)[0].clone();
    world.patch(&POD, "default", &name, json!({"metadata": {"ownerReferences": null, "finalizers": null}}));
    world.settle(CONTROLLERS, now());
    let pod = world.get(&POD, "default", &name);
    assert_eq!((pod["metadata"]["ownerReferences"][0]["name"].clone(), is_held(&pod)), (json!("work"), true));
    assert_eq!(names(&world).len(), 1);
    world.patch(
        &POD,
        "default",
        &name,
        json!({"metadata": {"labels": {"batch.kubernetes.io/controller-uid": "other"}}}),
    );
    world.settle(CONTROLLERS, now());
    let pod = world.get(&POD, "default", &name);
    assert_eq!((pod["metadata"]["ownerReferences"].clone(), is_held(&pod)), (Value::Null, false));
    assert_eq!(names(&world).len(), 2, "another one in its stead");
    let own = active(&world).into_iter().find(|own| *own != name).unwrap();
    world.remove(&JOB, &key());
    world.settle(CONTROLLERS, now());
    assert!(world.get(&POD, "default", &own).is_null() && !world.get(&POD, "default", &name).is_null());
}

#[test]
fn a_job_that_another_controller_sees_to_is_left_alone() {
    let world = world(json!({"managedBy": "example.com/queue"}));
    assert_eq!((names(&world).len(), status(&world)), (0, json!({})));
}

#[test]
fn a_finished_job_goes_when_its_time_is_over_a8() {
    let mut world = world(json!({"ttlSecondsAfterFinished": 60}));
    let name = active(&world)[0].clone();
    end(&mut world, &name, 0);
    let decision = (ttlafterfinished::CONTROLLER.reconcile)(&world.snapshot, &key(), now());
    assert_eq!((decision.writes.len(), decision.wake_at), (0, Some(later(60))));
    world.run(&ttlafterfinished::CONTROLLER, &key(), later(60), usize::MAX);
    world.settle(CONTROLLERS, later(60));
    assert!(!world.get(&POD, "default", &name)["metadata"]["deletionTimestamp"].is_null(), "its pod first");
    world.remove(&POD, &ObjectKey::new("default", name.as_str()));
    world.settle(CONTROLLERS, later(60));
    assert!(world.get(&JOB, "default", "work").is_null() && names(&world).is_empty());
}

#[test]
fn a_job_shrinks_by_those_that_did_least() {
    let mut world = world(json!({"parallelism": 3, "completions": 5}));
    let all = active(&world);
    bind(&mut world, &all[1]);
    world.patch(&JOB, "default", "work", json!({"spec": {"parallelism": 1}}));
    world.settle(CONTROLLERS, now());
    assert_eq!((active(&world), status(&world)["failed"].clone()), (vec![all[1].clone()], Value::Null));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 80, failure_persistence: None, ..ProptestConfig::default() })]

    /// Wherever decisions are cut and whatever becomes of pods: each success is counted once, no more pods run than
    /// asked for, nothing is held when the Job has ended (S12).
    #[test]
    fn every_success_is_counted_once_s12(steps in prop::collection::vec((0_usize..6, 0_usize..8, 0_usize..4), 1..60),
        indexed: bool) {
        let mode = if indexed { "Indexed" } else { "NonIndexed" };
        let mut world = world(json!({"completions": 4, "parallelism": 2, "completionMode": mode,
            "backoffLimit": 1000}));
        let mut succeeded = BTreeSet::new();
        for (act, which, cut) in steps {
            let all = names(&world);
            let running = active(&world);
            match act {
                0 | 1 => { world.run(&job::CONTROLLER, &key(), later(10_000), cut); }
                2 if !running.is_empty() => {
                    let name = &running[which % running.len()];
                    end_at(&mut world, name, 0, now());
                    succeeded.insert(name.clone());
                }
                3 if !running.is_empty() => end_at(&mut world, &running[which % running.len()], 1, now()),
                4 if !all.is_empty() => world.delete(&POD, "default", &all[which % all.len()], None),
                _ => for name in all.iter().filter(|name| !world.get(&POD, "default",
                    name)["metadata"]["deletionTimestamp"].is_null()).cloned().collect::<Vec<_>>() {
                    // A kubelet is done with it: what was not counted stays until it is.
                    if !is_held(&world.get(&POD, "default", &name)) {
                        world.remove(&POD, &ObjectKey::new("default", name.as_str()));
                    } else if world.get(&POD, "default", &name)["status"]["phase"] == "Running" {
                        end_at(&mut world, &name, 1, now());
                    }
                },
            }
            prop_assert!(active(&world).len() <= 2);
        }
        for _ in 0..40 {
            world.run(&job::CONTROLLER, &key(), later(10_000), usize::MAX);
            world.settle(CONTROLLERS, later(10_000));
            for name in active(&world) {
                end_at(&mut world, &name, 0, now());
                succeeded.insert(name);
            }
        }
        let conditions = conditions(&world);
        prop_assert_eq!(conditions.get(1).map(String::as_str), Some("Complete CompletionsReached"));
        prop_assert_eq!(status(&world)["succeeded"].clone(), json!(if indexed { 4 } else { succeeded.len() }));
        prop_assert!(!world.all(&POD).any(is_held));
    }
}
