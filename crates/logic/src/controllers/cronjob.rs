//! CronJobs: a Job whenever the clock says so.
//!
//! Relies on: the driver's wake-ups; Jobs' own controller. Guarantees: one Job per scheduled time, since its name is a
//! function of the CronJob and the minute: a decision that is cut after the Job was made finds it and takes it up. S10.
//!
//! Differs: of the times that were missed, the last one is always found, also where the schedule is irregular (upstream
//! reckons with the distance of the first two). A Job that this controller made and that its status does not name is
//! taken up without the event `UnexpectedJob`.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use mainstay_api::ObjectKey;
use mainstay_api::cron::{Schedule, zone};
use mainstay_api::kinds::{CRON_JOB, JOB};
use serde_json::{Value, json};

use super::job::finished;
use crate::decision::{Controller, Decision, Event, Verb, Waiting, Write};
use crate::ownership::{controller_of, controller_reference};
use crate::pods::is_terminating;
use crate::snapshot::{Change, Snapshot};

#[cfg(test)]
mod tests;

/// When the Job was to start, in the CronJob's time zone.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// From how many missed times on there is a warning; upstream's.
const MANY_MISSED: i64 = 100;

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "cronjob-controller",
    permits: &[(Verb::Create, "jobs"), (Verb::Delete, "jobs"), (Verb::PatchStatus, "cronjobs")],
    reads: &["cronjobs", "jobs", "namespaces"],
    keys,
    reconcile: |snapshot, key, now| observe(snapshot, key).map(|observed| decide(&observed, now)).unwrap_or_default(),
    many: None,
};

fn keys(_: &Snapshot, _: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    if change.kind == CRON_JOB {
        wake(change.key.clone());
    } else if change.kind == JOB {
        for meta in change.old.iter().chain(&change.new) {
            if let Some(owner) = controller_of(&meta.metadata).filter(|owner| owner.kind == CRON_JOB.kind) {
                wake(ObjectKey::new(change.key.namespace.clone(), owner.name.as_str()));
            }
        }
    }
}

/// A CronJob and its Jobs.
pub struct Observed<'a> {
    cron: &'a CronJob,
    spec: &'a CronJobSpec,
    /// Those that it controls, by uid.
    jobs: Vec<&'a Job>,
    /// Whose Job of a name is: for a name that is taken.
    taken: &'a crate::snapshot::Objects<Job>,
    namespace_terminating: bool,
}

/// The CronJob at `key` and its Jobs.
pub fn observe<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<Observed<'a>> {
    let cron = snapshot.cron_jobs.get(key)?;
    let uid = cron.metadata.uid.as_deref().unwrap_or("");
    let own = |job: &&Job| controller_of(&job.metadata).is_some_and(|owner| owner.uid == uid);
    let jobs = snapshot.dependents(uid).filter(|meta| meta.kind == JOB && meta.key.namespace == key.namespace);
    let namespace = snapshot.namespaces.get(&ObjectKey::new("", key.namespace.clone()));
    Some(Observed {
        cron,
        spec: &cron.spec,
        jobs: jobs.filter_map(|meta| snapshot.jobs.get(&meta.key)).map(|job| &**job).filter(own).collect(),
        taken: &snapshot.jobs,
        namespace_terminating: namespace.is_some_and(|namespace| is_terminating(&namespace.metadata)),
    })
}

impl Observed<'_> {
    fn name(&self) -> &str {
        self.cron.metadata.name.as_deref().unwrap_or("")
    }

    fn normal(&self, reason: &'static str, message: String) -> Event {
        Event::normal(&CRON_JOB, &self.cron.metadata, reason, message)
    }

    fn warning(&self, reason: &'static str, message: String) -> Event {
        Event::warning(&CRON_JOB, &self.cron.metadata, reason, message)
    }
}

/// One step of the CronJob.
pub fn decide(o: &Observed, now: Timestamp) -> Decision {
    let mut d = Decision::default();
    let mut status = o.cron.status.clone().unwrap_or_default();
    follow(o, &mut status, &mut d);
    let mut known = o.cron.status.clone().unwrap_or_default();
    write_status(o, &mut known, &mut status, &mut d);
    if is_terminating(&o.cron.metadata) {
        return d;
    }
    forget(o, &mut d);
    if o.namespace_terminating {
        d.waiting.push(Waiting::NamespaceTerminating);
        return d;
    }
    // What became of the Jobs before is known also where the next one may not be made.
    d.apart(|d| {
        start(o, &mut status, now, d);
        write_status(o, &mut known, &mut status, d);
    });
    d
}

/// Writes what differs from what was written last.
fn write_status(o: &Observed, known: &mut CronJobStatus, status: &mut CronJobStatus, d: &mut Decision) {
    status.active = status.active.take().filter(|active| !active.is_empty());
    d.writes.extend(Write::change_status(&CRON_JOB, &o.cron.metadata, &json!(known), &json!(status)));
    known.clone_from(status);
}

/// Brings the list of running Jobs up to date with what is there.
fn follow(o: &Observed, status: &mut CronJobStatus, d: &mut Decision) {
    let mut active = status.active.take().unwrap_or_default();
    for job in &o.jobs {
        let uid = job.metadata.uid.as_ref();
        let name = job.metadata.name.as_deref().unwrap_or("");
        let known = active.iter().any(|reference| reference.uid.as_ref() == uid);
        let at = scheduled(o, job);
        // Also of one that was over before this controller saw it: its time is not made up for.
        status.last_schedule_time = status.last_schedule_time.take().max(at.map(Time));
        match finished(job) {
            None if known => {}
            None if at.is_some() => active.push(reference(job)),
            None => {
                let message = format!("Saw a job that the controller did not create or forgot: {name}");
                d.events.push(o.warning("UnexpectedJob", message));
            }
            Some(condition) => {
                if known {
                    active.retain(|reference| reference.uid.as_ref() != uid);
                    let message = format!("Saw completed job: {name}, condition: {}", condition.type_);
                    d.events.push(o.normal("SawCompletedJob", message));
                }
                let ended = job.status.as_ref().and_then(|status| status.completion_time.clone());
                if condition.type_ == "Complete" && ended > status.last_successful_time {
                    status.last_successful_time = ended;
                }
            }
        }
    }
    active.retain(|reference| {
        let there = o.jobs.iter().any(|job| job.metadata.uid == reference.uid);
        if !there {
            let name = reference.name.as_deref().unwrap_or("");
            d.events.push(o.normal("MissingJob", format!("Active job went missing: {name}")));
        }
        there
    });
    status.active = Some(active);
}

/// The time that a Job was made for, where this controller made it.
fn scheduled(o: &Observed, job: &Job) -> Option<Timestamp> {
    let at: Timestamp = job.metadata.annotations.as_ref()?.get(SCHEDULED)?.parse().ok()?;
    (job.metadata.name.as_deref() == Some(job_name(o.name(), at).as_str())).then_some(at)
}

fn reference(job: &Job) -> ObjectReference {
    ObjectReference {
        api_version: Some(JOB.api_version()),
        kind: Some(JOB.kind.to_string()),
        namespace: job.metadata.namespace.clone(),
        name: job.metadata.name.clone(),
        uid: job.metadata.uid.clone(),
        resource_version: job.metadata.resource_version.clone(),
        field_path: None,
    }
}

/// The Job of a scheduled time: its minute is in the name.
fn job_name(cron: &str, at: Timestamp) -> String {
    format!("{cron}-{}", at.as_second().div_euclid(60))
}

/// Deletes the oldest finished Jobs beyond the limits.
fn forget(o: &Observed, d: &mut Decision) {
    for (type_, limit) in
        [("Failed", o.spec.failed_jobs_history_limit), ("Complete", o.spec.successful_jobs_history_limit)]
    {
        let Some(limit) = limit else { continue };
        let ended = |job: &&&Job| finished(job).is_some_and(|condition| condition.type_ == type_);
        let mut jobs: Vec<&Job> = o.jobs.iter().filter(ended).copied().collect();
        let started = |job: &Job| job.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|time| time.0);
        jobs.sort_by_key(|job| (started(job).is_none(), started(job), job.metadata.name.clone()));
        let excess = jobs.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        for job in jobs.into_iter().take(excess).filter(|job| !is_terminating(&job.metadata)) {
            // Whoever may not be forgotten keeps no other Job from starting.
            d.apart(|d| delete(o, job, d));
        }
    }
}

fn delete(o: &Observed, job: &Job, d: &mut Decision) {
    d.writes.push(Write::delete(&JOB, &job.metadata));
    let name = job.metadata.name.as_deref().unwrap_or("");
    d.events.push(o.normal("SuccessfulDelete", format!("Deleted job {name}")));
}

/// Makes the Job whose time has come.
fn start(o: &Observed, status: &mut CronJobStatus, now: Timestamp, d: &mut Decision) {
    let Some((schedule, zone)) = timing(o, d) else { return };
    if o.spec.suspend == Some(true) {
        d.waiting.push(Waiting::Paused);
        return;
    }
    if let Some(next) = schedule.next(now, &zone) {
        d.wake(next);
    }
    let created = o.cron.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
    let mut earliest = status.last_schedule_time.as_ref().map_or(created, |time| time.0);
    let deadline = o.spec.starting_deadline_seconds.map(SignedDuration::from_secs);
    if let Some(limit) = deadline.and_then(|deadline| now.checked_sub(deadline).ok()) {
        // What should have begun before that is not begun any more.
        earliest = earliest.max(limit);
    }
    let Some((at, missed)) = most_recent(&schedule, &zone, earliest, now) else { return };
    if missed > MANY_MISSED {
        let message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        d.events.push(o.warning("TooManyMissedTimes", message.to_owned()));
    }
    let name = job_name(o.name(), at);
    let active = status.active.get_or_insert_default();
    if o.spec.concurrency_policy.as_deref() == Some("Forbid") && !active.is_empty() {
        let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
        d.events.push(o.normal("JobAlreadyActive", message.to_owned()));
        return;
    }
    if o.spec.concurrency_policy.as_deref() == Some("Replace") {
        for job in o.jobs.iter().filter(|job| active.iter().any(|of| of.uid == job.metadata.uid)) {
            delete(o, job, d);
        }
        active.clear();
    }
    create(o, &name, at, &zone, status, d);
}

/// Its schedule and time zone; an event where they can't be read.
fn timing(o: &Observed, d: &mut Decision) -> Option<(Schedule, TimeZone)> {
    let zone = match o.spec.time_zone.as_deref() {
        None => TimeZone::UTC,
        Some(name) => match zone(name) {
            Some(zone) => zone,
            None => {
                let message = format!("invalid timeZone: {name:?}: unknown time zone {name}");
                d.events.push(o.warning("UnknownTimeZone", message));
                return None;
            }
        },
    };
    match Schedule::parse(&o.spec.schedule) {
        Ok(schedule) => Some((schedule, zone)),
        Err(why) => {
            let message = format!("unparseable schedule: {:?} : {why}", o.spec.schedule);
            d.events.push(o.warning("UnparseableSchedule", message));
            None
        }
    }
}

/// The last scheduled time after `earliest` up to `now`, and about how many there were.
fn most_recent(schedule: &Schedule, zone: &TimeZone, earliest: Timestamp, now: Timestamp) -> Option<(Timestamp, i64)> {
    let first = schedule.next(earliest, zone).filter(|first| *first <= now)?;
    let Some(second) = schedule.next(first, zone).filter(|second| *second <= now) else { return Some((first, 1)) };
    let between = (second.as_second() - first.as_second()).max(1);
    let elapsed = now.as_second() - first.as_second();
    let missed = elapsed / between + 1;
    // Every period's times are a whole number of periods after the first, so that the search below starts on one.
    let mut back = between;
    loop {
        let start = first.as_second().max(now.as_second() - back);
        let aligned = first.as_second() + (start - first.as_second()) / between * between;
        let mut last = Timestamp::from_second(aligned).ok().filter(|start| *start > first).unwrap_or(first);
        let mut found = (last == first).then_some(first);
        while let Some(next) = schedule.next(last, zone).filter(|next| *next <= now) {
            (last, found) = (next, Some(next));
        }
        if let Some(found) = found {
            return Some((found, missed));
        }
        back = back.saturating_mul(2);
    }
}

fn create(o: &Observed, name: &str, at: Timestamp, zone: &TimeZone, status: &mut CronJobStatus, d: &mut Decision) {
    let meta = &o.cron.metadata;
    let namespace = meta.namespace.as_deref().unwrap_or("");
    if o.taken.contains_key(&ObjectKey::new(namespace, name)) {
        // Somebody else's Job: it is not taken for ours (S10). Of ours this one's time would be the last one scheduled.
        d.waiting.push(Waiting::OwnedByAnother { name: name.to_owned() });
        return;
    }
    let template = &o.spec.job_template;
    let of_template = template.metadata.clone().unwrap_or_default();
    let mut annotations = of_template.annotations.unwrap_or_default();
    annotations.insert(SCHEDULED.to_owned(), rfc3339(at, zone));
    let mut metadata = json!({
        "namespace": namespace, "name": name, "annotations": annotations,
        "ownerReferences": [controller_reference(&CRON_JOB, meta)],
    });
    if let Some(labels) = of_template.labels {
        metadata["labels"] = json!(labels);
    }
    let object: Value = json!({
        "apiVersion": JOB.api_version(), "kind": JOB.kind, "metadata": metadata, "spec": template.spec,
    });
    d.writes.push(Write::Create { kind: JOB.clone(), object });
    d.events.push(o.normal("SuccessfulCreate", format!("Created job {name}")));
    // The Job's uid is known to the next decision, which puts it on the list.
    status.last_schedule_time = Some(Time(at));
}

/// As Go prints a time: `Z`, or the offset.
fn rfc3339(at: Timestamp, zone: &TimeZone) -> String {
    if zone.to_offset(at).is_zero() {
        return mainstay_api::time::rfc3339(at);
    }
    at.to_zoned(zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}
