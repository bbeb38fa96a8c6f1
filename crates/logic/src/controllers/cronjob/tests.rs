//! CronJobs in a small world whose clock the test moves.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use mainstay_api::ObjectKey;
use mainstay_api::cron::Schedule;
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
    // A hundred missed ones are not too many yet.
    for (minute, many) in [(100, 0), (101, 1)] {
        let mut world = self::world(json!({}));
        tick(&mut world, minutes(minute));
        assert_eq!(said(&world, "TooManyMissedTimes"), many, "{minute}");
    }
    let mut world = self::world(json!({"schedule": "60 * * * *"}));
    tick(&mut world, minutes(1));
    assert_eq!((jobs(&world), said(&world, "UnparseableSchedule") > 0), (vec![], true));
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

fn names_of(reference: &Value) -> Vec<String> {
    let all = reference.as_array().into_iter().flatten();
    all.map(|one| one["name"].as_str().unwrap().to_owned()).collect()
}

/// Two Jobs that run at once, as `Allow` lets them, and no third one.
fn two_running() -> (World, [String; 2]) {
    let mut world = world(json!({"successfulJobsHistoryLimit": 9}));
    tick(&mut world, minutes(1));
    tick(&mut world, minutes(2));
    world.patch(&CRON_JOB, "default", "tick", json!({"spec": {"suspend": true}}));
    (world, ["2026-11-21T10:01:00Z", "2026-11-21T10:02:00Z"].map(name_at))
}

#[test]
fn the_status_names_what_runs_until_it_is_done_or_gone() {
    let (mut world, [first, second]) = two_running();
    assert_eq!(names_of(&status(&world)["active"]), [first.clone(), second.clone()]);
    finish(&mut world, &second, "Complete", minutes(8));
    assert_eq!(names_of(&status(&world)["active"]), std::slice::from_ref(&first));
    // Whichever ends later, the time is the latest; and each end is said once.
    finish(&mut world, &first, "Complete", minutes(9));
    assert_eq!(status(&world)["lastSuccessfulTime"], json!(minutes(9).to_string()));
    assert_eq!((status(&world)["active"].clone(), said(&world, "SawCompletedJob")), (Value::Null, 2));

    let (mut world, [first, second]) = two_running();
    world.remove(&JOB, &ObjectKey::new("default", &*first));
    world.settle(CONTROLLERS, minutes(2));
    assert_eq!(names_of(&status(&world)["active"]), [second]);
    assert!(world.events.contains(&format!("MissingJob: Active job went missing: {first}")), "{:?}", world.events);
}

/// What ends beside one that runs on does not make room where only one may run.
#[test]
fn one_that_runs_on_forbids_the_next_though_another_ends() {
    let (mut world, [_, second]) = two_running();
    let forbid = json!({"spec": {"suspend": false, "concurrencyPolicy": "Forbid"}});
    world.patch(&CRON_JOB, "default", "tick", forbid);
    finish(&mut world, &second, "Complete", minutes(3));
    assert_eq!((jobs(&world).len(), said(&world, "JobAlreadyActive") > 0), (2, true), "{:?}", world.events);
}

#[test]
fn what_is_replaced_is_what_runs_and_not_what_ran() {
    let mut world = world(json!({"concurrencyPolicy": "Replace"}));
    tick(&mut world, minutes(1));
    let done = jobs(&world).remove(0);
    finish(&mut world, &done, "Complete", minutes(1));
    tick(&mut world, minutes(2));
    tick(&mut world, minutes(3));
    assert_eq!(jobs(&world), [done, name_at("2026-11-21T10:03:00Z")]);
    assert_eq!((said(&world, "SuccessfulDelete"), said(&world, "MissingJob")), (1, 0), "{:?}", world.events);
}

/// A crash after the Job was made, which is over and forgotten before anything was noted: its time has been.
#[test]
fn a_job_whose_time_was_not_noted_and_that_is_over_is_not_made_again() {
    let mut world = world(json!({"successfulJobsHistoryLimit": 0}));
    world.run(&cronjob::CONTROLLER, &ObjectKey::new("default", "tick"), minutes(1), 1);
    let made = jobs(&world).remove(0);
    assert_eq!(status(&world)["lastScheduleTime"], Value::Null);
    finish(&mut world, &made, "Complete", minutes(1));
    tick(&mut world, minutes(1));
    assert_eq!((jobs(&world), said(&world, "SuccessfulCreate")), (vec![], 1));
}

/// S10: a Job is its own by the controller's uid, in its namespace.
#[test]
fn jobs_that_only_name_it_are_not_its_own_s10() {
    let mut world = world(json!({"successfulJobsHistoryLimit": 0, "suspend": true}));
    let owner = |uid: &str, controller: bool| {
        let mut owner = json!({"apiVersion": "batch/v1", "kind": "CronJob", "name": "tick"});
        merge(&mut owner, json!({"uid": uid, "controller": controller}));
        owner
    };
    for (namespace, owners) in [
        ("default", json!([owner("uid-tick", false), owner("uid-other", true)])),
        ("default", json!([owner("uid-tick", false)])),
        ("other", json!([owner("uid-tick", true)])),
    ] {
        let name = format!("of-another-{}", world.revision());
        world.put(json!({"apiVersion": "batch/v1", "kind": "Job",
            "metadata": {"namespace": namespace, "name": name, "ownerReferences": owners},
            "spec": {"template": {"spec": {"containers": []}}},
            "status": {"conditions": [{"type": "Complete", "status": "True"}]}}));
    }
    world.ask_anew();
    world.run(&cronjob::CONTROLLER, &ObjectKey::new("default", "tick"), minutes(1), usize::MAX);
    assert_eq!((jobs(&world).len(), world.events.len()), (3, 0), "{:?}", world.events);
}

/// The Job may be over and removed before the next decision: it is not made again.
#[test]
fn a_job_of_a_time_that_is_gone_already_is_not_made_again() {
    let mut world = world(json!({}));
    let key = ObjectKey::new("default", "tick");
    world.run(&cronjob::CONTROLLER, &key, minutes(1), usize::MAX);
    let made = jobs(&world).remove(0);
    world.remove(&JOB, &ObjectKey::new("default", made));
    tick(&mut world, minutes(1));
    assert_eq!((jobs(&world), said(&world, "SuccessfulCreate")), (vec![], 1));
}

#[test]
fn nothing_is_started_where_it_would_not_live_or_is_not_its_own_s10() {
    let leaving = json!({"metadata": {"deletionTimestamp": "2026-11-21T10:00:40Z", "finalizers": ["x.io/y"]}});
    let namespace = |over: &Value| {
        let mut object = json!({"kind": "Namespace", "metadata": {"name": "default"}});
        merge(&mut object, over.clone());
        object
    };
    let taken = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"namespace": "default",
        "name": name_at("2026-11-21T10:01:00Z")}, "spec": {"template": {"spec": {"containers": []}}}});
    let mut owned = taken.clone();
    owned["metadata"]["ownerReferences"] = json!([{"apiVersion": "batch/v1", "kind": "CronJob", "name": "tick",
        "uid": "an-older-one", "controller": true}]);
    let suspend = json!({"spec": {"suspend": true}});
    for (object, patch, made, waits) in [
        (namespace(&json!({})), json!({}), 1, false),
        (namespace(&leaving), json!({}), 0, true),
        (namespace(&json!({})), leaving.clone(), 0, false),
        (namespace(&json!({})), suspend, 0, true),
        (taken, json!({}), 0, true),
        (owned, json!({}), 0, true),
    ] {
        let mut world = world(json!({}));
        world.put(object.clone());
        world.patch(&CRON_JOB, "default", "tick", patch.clone());
        let decision = (cronjob::CONTROLLER.reconcile)(&world.snapshot, &ObjectKey::new("default", "tick"), minutes(1));
        assert_eq!(decision.waiting.len(), usize::from(waits), "{object} {patch}");
        world.run(&cronjob::CONTROLLER, &ObjectKey::new("default", "tick"), minutes(1), usize::MAX);
        assert_eq!(said(&world, "SuccessfulCreate"), made, "{object} {patch}");
    }
}

#[test]
fn the_oldest_by_their_start_are_forgotten_first_and_once() {
    let mut world = world(json!({"successfulJobsHistoryLimit": 9}));
    let names = ["2026-11-21T10:01:00Z", "2026-11-21T10:02:00Z", "2026-11-21T10:03:00Z"].map(name_at);
    for minute in 1..=3 {
        tick(&mut world, minutes(minute));
    }
    world.patch(&CRON_JOB, "default", "tick", json!({"spec": {"suspend": true}}));
    // The first one waited longest until it began; the last one never said when it did.
    finish(&mut world, &names[0], "Complete", minutes(9));
    finish(&mut world, &names[1], "Complete", minutes(8));
    finish(&mut world, &names[2], "Complete", minutes(7));
    world.patch(&JOB, "default", &names[2], json!({"status": {"startTime": null}}));
    world.patch(&JOB, "default", &names[1], json!({"metadata": {"finalizers": ["x.io/y"]}}));
    world.patch(&CRON_JOB, "default", "tick", json!({"spec": {"successfulJobsHistoryLimit": 2}}));
    world.settle(CONTROLLERS, minutes(3));
    assert!(world.get(&JOB, "default", &names[1])["metadata"]["deletionTimestamp"].is_string());
    world.ask_anew();
    world.settle(CONTROLLERS, minutes(3));
    assert_eq!((jobs(&world).len(), said(&world, "SuccessfulDelete")), (3, 1), "it is on its way out already");
    world.patch(&CRON_JOB, "default", "tick", json!({"spec": {"successfulJobsHistoryLimit": 1}}));
    world.settle(CONTROLLERS, minutes(3));
    assert_eq!(jobs(&world), [names[1].clone(), names[2].clone()]);
}

/// The search for the last of many times gives what counting all of them gives.
#[test]
fn the_last_time_missed_is_found_for_any_schedule() {
    for (schedule, from, to) in [
        ("* * * * *", "2026-11-21T10:00:00Z", "2026-11-21T10:00:59Z"),
        ("* * * * *", "2026-11-21T10:00:00Z", "2026-11-21T10:01:00Z"),
        ("* * * * *", "2026-11-21T10:00:00Z", "2026-11-21T10:02:00Z"),
        ("* * * * *", "2026-11-21T10:00:00Z", "2026-11-22T10:02:00Z"),
        ("*/7 * * * *", "2026-11-21T10:00:00Z", "2026-11-21T23:59:59Z"),
        ("0 0 1 * *", "2026-01-15T00:00:00Z", "2026-11-30T00:00:00Z"),
        ("0 0 29 2 *", "2020-01-15T00:00:00Z", "2027-11-30T00:00:00Z"),
        ("30 6-16/4 * * 1-5", "2026-11-19T00:00:00Z", "2026-11-22T12:00:00Z"),
        ("0,1 3 * * *", "2026-11-01T00:00:00Z", "2026-11-22T03:00:30Z"),
        ("0 12 * * 1", "2026-11-17T00:00:00Z", "2026-11-22T03:00:30Z"),
    ] {
        let parsed = Schedule::parse(schedule).unwrap();
        let (mut last, to) = (None, at(to));
        let mut next = parsed.next(at(from), &TimeZone::UTC);
        while let Some(time) = next.filter(|time| *time <= to) {
            last = Some(time);
            next = parsed.next(time, &TimeZone::UTC);
        }
        let found = super::most_recent(&parsed, &TimeZone::UTC, at(from), to).map(|(time, _)| time);
        assert_eq!(found, last, "{schedule} from {from} to {to}");
    }
}
