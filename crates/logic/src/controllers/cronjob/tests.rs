//! CronJobs in a small world whose clock the test moves.

use jiff::{SignedDuration, Timestamp};
use mainstay_api::ObjectKey;
use mainstay_api::kinds::{CRON_JOB, JOB};
use serde_json::{Value, json};

use crate::controllers::{cronjob, garbagecollector};
use crate::decision::Controller;
use crate::world::{World, merge};

const CONTROLLERS: &[Controller] = &[cronjob::CONTROLLER, garbagecollector::CONTROLLER];

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn start() -> Timestamp {
    at("2026-11-21T10:00:30Z")
}

fn minutes(number: i64) -> Timestamp {
    start().checked_add(SignedDuration::from_mins(number)).unwrap()
}

fn world(spec: Value) -> World {
    let mut object = json!({
        "apiVersion": "batch/v1", "kind": "CronJob",
        "metadata": {"namespace": "default", "name": "tick", "uid": "uid-tick",
            "creationTimestamp": "2026-11-21T10:00:30Z"},
        "spec": {"schedule": "* * * * *", "jobTemplate": {
            "metadata": {"labels": {"a": "b"}},
            "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}},
        }},
    });
    merge(&mut object["spec"], spec);
    (CRON_JOB.defaults)(&CRON_JOB, &mut object);
    (CRON_JOB.prepare_create)(&CRON_JOB, &mut object);
    let mut world = World::default();
    world.put(object);
    world
}

/// Lets it decide at a time, twice over, since what it made is taken up by the next decision.
fn tick(world: &mut World, now: Timestamp) {
    world.run(&cronjob::CONTROLLER, &ObjectKey::new("default", "tick"), now, usize::MAX);
    world.settle(CONTROLLERS, now);
}

fn jobs(world: &World) -> Vec<String> {
    world.all(&JOB).map(|job| job["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

fn name_at(time: &str) -> String {
    format!("tick-{}", at(time).as_second() / 60)
}

fn finish(world: &mut World, name: &str, type_: &str, now: Timestamp) {
    let conditions = json!([{"type": type_, "status": "True"}]);
    let mut status = json!({"startTime": now.to_string(), "conditions": conditions});
    if type_ == "Complete" {
        status["completionTime"] = json!(now.to_string());
    }
    world.patch(&JOB, "default", name, json!({ "status": status }));
    world.settle(CONTROLLERS, now);
}

fn status(world: &World) -> Value {
    world.get(&CRON_JOB, "default", "tick")["status"].clone()
}

fn said(world: &World, reason: &str) -> usize {
    world.events.iter().filter(|event| event.starts_with(reason)).count()
}

#[test]
fn a_job_is_made_each_minute_named_by_it_and_noted() {
    let mut world = world(json!({}));
    let decision = (cronjob::CONTROLLER.reconcile)(&world.snapshot, &ObjectKey::new("default", "tick"), start());
    assert_eq!((decision.writes.len(), decision.wake_at), (0, Some(at("2026-11-21T10:01:00Z"))));
    tick(&mut world, minutes(1));
    let name = name_at("2026-11-21T10:01:00Z");
    assert_eq!(jobs(&world), std::slice::from_ref(&name));
    let job = world.get(&JOB, "default", &name);
    let scheduled = &job["metadata"]["annotations"]["batch.kubernetes.io/cronjob-scheduled-timestamp"];
    assert_eq!(
        (scheduled.clone(), job["metadata"]["labels"].clone()),
        (json!("2026-11-21T10:01:00Z"), json!({"a": "b"}))
    );
    assert_eq!(status(&world)["active"][0]["name"], json!(name));
    assert_eq!(status(&world)["lastScheduleTime"], "2026-11-21T10:01:00Z");
    assert_eq!(world.events, [format!("SuccessfulCreate: Created job {name}")]);
    tick(&mut world, minutes(1));
    assert_eq!(jobs(&world).len(), 1, "once per time");
    finish(&mut world, &name, "Complete", minutes(1));
    assert_eq!(
        (status(&world)["active"].clone(), status(&world)["lastSuccessfulTime"].clone()),
        (Value::Null, json!(minutes(1).to_string()))
    );
    assert!(world.events.contains(&format!("SawCompletedJob: Saw completed job: {name}, condition: Complete")));
    world.assert_quiet(CONTROLLERS, minutes(1));
}

#[test]
fn a_decision_that_was_cut_after_the_job_makes_no_second_one_s12() {
    let mut world = world(json!({}));
    let key = ObjectKey::new("default", "tick");
    assert_eq!(world.run(&cronjob::CONTROLLER, &key, minutes(1), 1), 1);
    tick(&mut world, minutes(1));
    assert_eq!((jobs(&world).len(), said(&world, "UnexpectedJob")), (1, 0));
    assert_eq!(status(&world)["lastScheduleTime"], "2026-11-21T10:01:00Z");
}

#[test]
fn concurrency_is_allowed_forbidden_or_replaces() {
    for (policy, expected, event) in
        [("Allow", 2, "SuccessfulCreate"), ("Forbid", 1, "JobAlreadyActive"), ("Replace", 1, "SuccessfulDelete")]
    {
        let mut world = world(json!({"concurrencyPolicy": policy}));
        tick(&mut world, minutes(1));
        let first = jobs(&world);
        tick(&mut world, minutes(2));
        assert_eq!(jobs(&world).len(), expected, "{policy}");
        assert_eq!(jobs(&world).contains(&first[0]), policy != "Replace", "{policy}");
        assert!(said(&world, event) > 0, "{policy} {:?}", world.events);
    }
}

#[test]
fn missed_times_give_one_job_for_the_last_and_a_warning_when_they_are_many() {
    let mut world = world(json!({}));
    tick(&mut world, minutes(50));
    assert_eq!((jobs(&world), said(&world, "TooManyMissedTimes")), (vec![name_at("2026-11-21T10:50:00Z")], 0));
    let mut world = self::world(json!({}));
    tick(&mut world, minutes(200));
    assert_eq!((jobs(&world), said(&world, "TooManyMissedTimes")), (vec![name_at("2026-11-21T13:20:00Z")], 1));
    let mut world = self::world(json!({"startingDeadlineSeconds": 10, "schedule": "0 * * * *"}));
    tick(&mut world, minutes(61));
    assert!(jobs(&world).is_empty(), "too late for 11:00");
    tick(&mut world, at("2026-11-21T12:00:05Z"));
    assert_eq!(jobs(&world), [name_at("2026-11-21T12:00:00Z")]);
    // Upstream's reckoning misses this one: the times of a Friday, looked for on a Sunday.
    let mut world = self::world(json!({"schedule": "30 6-16/4 * * 1-5"}));
    world.patch(&CRON_JOB, "default", "tick", json!({"metadata": {"creationTimestamp": "2026-11-19T00:00:00Z"}}));
    tick(&mut world, at("2026-11-22T12:00:00Z"));
    assert_eq!(jobs(&world), [name_at("2026-11-20T14:30:00Z")]);
}

#[test]
fn the_time_zone_counts_and_is_in_the_annotation() {
    let mut world = world(json!({"schedule": "0 12 * * *", "timeZone": "Europe/Berlin"}));
    tick(&mut world, at("2026-11-21T11:00:01Z"));
    let name = name_at("2026-11-21T11:00:00Z");
    let job = world.get(&JOB, "default", &name);
    let scheduled = &job["metadata"]["annotations"]["batch.kubernetes.io/cronjob-scheduled-timestamp"];
    assert_eq!(*scheduled, "2026-11-21T12:00:00+01:00");
    let mut world = self::world(json!({"timeZone": "Nowhere"}));
    tick(&mut world, minutes(1));
    assert!(jobs(&world).is_empty() && said(&world, "UnknownTimeZone: invalid timeZone: \"Nowhere\"") > 0);
}

#[test]
fn a_suspended_one_makes_nothing_and_history_is_kept_to_its_limits() {
    let mut world = world(json!({"successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 0}));
    for (minute, how) in [(1, "Complete"), (2, "Complete"), (3, "Failed")] {
        tick(&mut world, minutes(minute));
        let newest = jobs(&world).pop().unwrap();
        finish(&mut world, &newest, how, minutes(minute));
    }
    assert_eq!(jobs(&world), [name_at("2026-11-21T10:02:00Z")]);
    world.patch(&CRON_JOB, "default", "tick", json!({"spec": {"suspend": true}}));
    tick(&mut world, minutes(4));
    assert_eq!(jobs(&world).len(), 1);
}

#[test]
fn a_job_made_by_hand_is_not_counted_among_its_own() {
    let mut world = world(json!({"concurrencyPolicy": "Forbid"}));
    world.put(json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"namespace": "default", "name": "by-hand",
            "annotations": {"cronjob.kubernetes.io/instantiate": "manual"},
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "CronJob", "name": "tick", "uid": "uid-tick",
                "controller": true}]},
        "spec": {"template": {"spec": {"containers": []}}},
    }));
    tick(&mut world, minutes(1));
    assert_eq!((jobs(&world).len(), said(&world, "UnexpectedJob") > 0), (2, true));
}
