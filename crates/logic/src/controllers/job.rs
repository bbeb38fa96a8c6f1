//! Jobs: pods that run to their end, so many times.
//!
//! Relies on: the driver's read-your-writes, so that a pod is counted as soon as it is made; the finalizer
//! `batch.kubernetes.io/job-tracking`, which keeps every pod until it is counted, whoever deletes it.
//! Guarantees: a pod is counted once: its uid is in `uncountedTerminatedPods` before its finalizer goes, and moves into
//! the counters only when the finalizer is gone, so a decision that is cut anywhere is taken up where it stopped. A
//! finished Job is left alone. Complete and Failed are said when no pod is left that runs or is to be counted. S10.
//!
//! Differs: a Job that goes on after it was suspended counts its deadline anew from the first decision on (upstream
//! looks at the old start once more). Failures for the back-off are counted among the pods that are still there, not
//! remembered. A suspended or
//! shrunk Job's pods lose their finalizer and are deleted in one decision, by uid. Pods are named here, as a
//! ReplicaSet's are.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use mainstay_api::ObjectKey;
use mainstay_api::kinds::{JOB, POD};
use serde_json::json;

use crate::decision::{Controller, Decision, Event, Verb, Waiting, Write};
use crate::ownership::{Owner, Relation, candidates, controller_of};
use crate::pods::{self, is_active, is_finished, is_terminating, selects};
use crate::snapshot::{Change, Objects, Snapshot};
use counting::{Counts, TRACKING};
use indexes::is_indexed;

pub use backoff::finished_at;
pub use counting::{is_tracked, untrack};

mod backoff;
mod counting;
mod creation;
mod indexes;
mod policy;
#[cfg(test)]
mod tests;

/// The name of this controller in `spec.managedBy`; Jobs with another one are left alone.
const MANAGED_BY: &str = "kubernetes.io/job-controller";

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "job-controller",
    permits: &[(Verb::Create, "pods"), (Verb::Patch, "pods"), (Verb::Delete, "pods"), (Verb::PatchStatus, "jobs")],
    reads: &["jobs", "pods", "namespaces"],
    keys,
    reconcile: |snapshot, key, now| observe(snapshot, key).map(|observed| decide(&observed, now)).unwrap_or_default(),
    many: None,
};

fn keys(_: &Snapshot, after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    let namespace = &change.key.namespace;
    if change.kind == JOB {
        wake(change.key.clone());
    } else if change.kind == POD {
        for meta in change.old.iter().chain(&change.new).map(|meta| &meta.metadata) {
            match controller_of(meta) {
                Some(owner) if owner.kind == JOB.kind => wake(ObjectKey::new(namespace.clone(), owner.name.as_str())),
                Some(_) => {}
                None => after
                    .selecting::<Job>(namespace, meta.labels.as_ref())
                    .filter(|(_, job)| selector(job).is_some_and(|selector| selects(selector, meta.labels.as_ref())))
                    .for_each(|(key, _)| wake(key.clone())),
            }
        }
    }
}

fn selector(job: &Job) -> Option<&LabelSelector> {
    job.spec.as_ref()?.selector.as_ref()
}

/// A Job and its pods.
pub struct Observed<'a> {
    job: &'a Job,
    spec: &'a JobSpec,
    /// Its own pods, whatever their state; those with an index in order of it.
    pods: Vec<&'a Pod>,
    ownership: Vec<Write>,
    all_pods: &'a Objects<Pod>,
    revision: u64,
    namespace_terminating: bool,
}

/// The Job at `key` and its pods.
pub fn observe<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<Observed<'a>> {
    let job = snapshot.jobs.get(key)?;
    let spec = job.spec.as_ref()?;
    let owner = Owner { kind: &JOB, meta: &job.metadata, selector: selector(job)? };
    let (mut pods, mut ownership) = (Vec::new(), Vec::new());
    for pod in candidates(snapshot, &job.metadata, owner.selector) {
        match owner.relation(&pod.metadata, true) {
            Relation::Own => pods.push(pod),
            Relation::Foreign => {}
            Relation::Orphan => ownership.push(adopt(&owner, pod)),
            Relation::Released => ownership.push(release(&owner, pod)),
        }
    }
    pods.sort_by_key(|pod| (indexes::index_of(pod), &pod.metadata.name));
    let namespace = snapshot.namespaces.get(&ObjectKey::new("", key.namespace.clone()));
    Some(Observed {
        job,
        spec,
        pods,
        ownership,
        all_pods: &snapshot.pods,
        revision: snapshot.revision,
        namespace_terminating: namespace.is_some_and(|namespace| is_terminating(&namespace.metadata)),
    })
}

/// An adopted pod is tracked from now on.
fn adopt(owner: &Owner, pod: &Pod) -> Write {
    let mut owners = pod.metadata.owner_references.clone().unwrap_or_default();
    owners.push(owner.reference());
    let mut finalizers = pod.metadata.finalizers.clone().unwrap_or_default();
    if !counting::is_tracked(pod) {
        finalizers.push(TRACKING.to_owned());
    }
    Write::patch(&POD, &pod.metadata, json!({"metadata": {"ownerReferences": owners, "finalizers": finalizers}}))
}

/// A released pod is nobody's, and nobody counts it.
fn release(owner: &Owner, pod: &Pod) -> Write {
    let uid = owner.meta.uid.as_deref().unwrap_or("");
    let owners: Vec<_> = pod.metadata.owner_references.iter().flatten().filter(|owner| owner.uid != uid).collect();
    let owners = if owners.is_empty() { json!(null) } else { json!(owners) };
    let patch = json!({"metadata": {"ownerReferences": owners, "finalizers": counting::untracked(pod)}});
    Write::patch(&POD, &pod.metadata, patch)
}

impl Observed<'_> {
    fn suspended(&self) -> bool {
        self.spec.suspend == Some(true)
    }

    fn parallelism(&self) -> i32 {
        self.spec.parallelism.unwrap_or(1)
    }

    fn condition(&self, type_: &str) -> Option<&JobCondition> {
        condition(self.job, type_)
    }
}

/// A condition of the Job that holds.
fn condition<'a>(job: &'a Job, type_: &str) -> Option<&'a JobCondition> {
    let all = job.status.as_ref()?.conditions.as_ref()?;
    all.iter().find(|condition| condition.type_ == type_ && condition.status == "True")
}

/// Complete or Failed: the condition that says so.
pub fn finished(job: &Job) -> Option<&JobCondition> {
    condition(job, "Complete").or_else(|| condition(job, "Failed"))
}

/// Whether another controller sees to the Job.
pub fn is_managed_elsewhere(job: &Job) -> bool {
    job.spec.as_ref().and_then(|spec| spec.managed_by.as_deref()).is_some_and(|name| name != MANAGED_BY)
}

/// How the Job ends, once it is known: what is said first, and what is said when nothing of it is left.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Ending {
    succeeds: bool,
    reason: String,
    message: String,
}

impl Ending {
    fn new(succeeds: bool, reason: &str, message: impl Into<String>) -> Self {
        Self { succeeds, reason: reason.to_owned(), message: message.into() }
    }

    fn of(condition: &JobCondition, succeeds: bool) -> Self {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        Self { succeeds, reason: text(&condition.reason), message: text(&condition.message) }
    }

    /// (interim, final)
    fn types(&self) -> (&'static str, &'static str) {
        if self.succeeds { ("SuccessCriteriaMet", "Complete") } else { ("FailureTarget", "Failed") }
    }
}

/// One step of the Job.
pub fn decide(o: &Observed, now: Timestamp) -> Decision {
    let mut d = Decision::default();
    if is_managed_elsewhere(o.job) || finished(o.job).is_some() {
        return d;
    }
    o.ownership.iter().for_each(|write| d.push_apart(write.clone()));
    if !d.writes.is_empty() {
        return d;
    }
    let mut status = o.job.status.clone().unwrap_or_default();
    let resumes = o.condition("Suspended").is_some();
    if (status.start_time.is_none() || resumes) && !o.suspended() {
        status.start_time = Some(Time(now));
    }
    let mut counts = Counts::of(o, &mut status);
    let mut ending = ending(o, &counts, &status, now, &mut d);
    // Pods that this decision deletes: they are counted when the deletion is seen.
    let mut removed = BTreeSet::new();
    if ending.is_some() {
        counts.active.iter().for_each(|pod| d.apart(|d| delete(o, pod, true, &mut removed, d)));
    } else if !is_terminating(&o.job.metadata) {
        manage(o, &counts, now, &mut removed, &mut d);
        counts.made = d.writes.iter().filter(|write| matches!(write, Write::Create { .. })).count();
        if counts.is_complete(o, &removed) {
            ending = Some(Ending::new(true, "CompletionsReached", "Reached expected number of succeeded pods"));
        } else {
            say_suspended(o, &mut status, now, &mut d);
        }
    }
    counts.write_sizes(&removed, &mut status);
    let finalizers = counting::track(o, &mut counts, ending.as_ref(), &removed, &mut status);
    let event = finish(o, ending, &finalizers, &counts, &removed, &mut status, now);
    write_status(o, &status, &mut d);
    finalizers.into_iter().for_each(|write| d.push_apart(write));
    d.events.extend(event);
    d.create_last(&[&POD]);
    d
}

/// Why the Job ends, in upstream's order of reasons.
fn ending(o: &Observed, counts: &Counts, status: &JobStatus, now: Timestamp, d: &mut Decision) -> Option<Ending> {
    if let Some(met) = o.condition("SuccessCriteriaMet") {
        return Some(Ending::of(met, true));
    }
    if let Some(target) = o.condition("FailureTarget") {
        return Some(Ending::of(target, false));
    }
    if let Some(message) = counting::failed_by_policy(o) {
        return Some(Ending::new(false, "PodFailurePolicy", message));
    }
    if counts.failed > o.spec.backoff_limit.unwrap_or(6) || counting::restarted_too_often(o) {
        return Some(Ending::new(false, "BackoffLimitExceeded", "Job has reached the specified backoff limit"));
    }
    let start = status.start_time.as_ref().map(|start| start.0).filter(|_| !o.suspended());
    if let (Some(seconds), Some(start)) = (o.spec.active_deadline_seconds, start) {
        match start.checked_add(SignedDuration::from_secs(seconds.max(0))) {
            Ok(end) if end <= now => {
                let message = "Job was active longer than specified deadline";
                return Some(Ending::new(false, "DeadlineExceeded", message));
            }
            Ok(end) => d.wake(end),
            Err(_) => {}
        }
    }
    if !is_indexed(o.job) {
        return None;
    }
    if let Some(failed) = counts.failed_indexes.as_ref().map(indexes::Indexes::total) {
        if o.spec.max_failed_indexes.is_some_and(|most| failed > most) {
            let message = "Job has exceeded the specified maximal number of failed indexes";
            return Some(Ending::new(false, "MaxFailedIndexesExceeded", message));
        }
        if failed > 0 && failed + counts.succeeded_indexes.total() >= o.spec.completions.unwrap_or(0) {
            return Some(Ending::new(false, "FailedIndexes", "Job has failed indexes"));
        }
    }
    policy::success(o.spec, &counts.succeeded_indexes).map(|message| Ending::new(true, "SuccessPolicy", message))
}

/// As many running pods as there shall be.
fn manage(o: &Observed, counts: &Counts, now: Timestamp, removed: &mut BTreeSet<String>, d: &mut Decision) {
    let active = i32::try_from(counts.active.len()).unwrap_or(i32::MAX);
    let wanted = match o.spec.completions {
        _ if o.suspended() => 0,
        // Work that ends when one pod says so: what runs is left running.
        None if counts.succeeded > 0 => active,
        None => o.parallelism(),
        Some(completions) => completions.saturating_sub(counts.succeeded).min(o.parallelism()).max(0),
    };
    let surplus = creation::surplus(o, counts, active.saturating_sub(wanted));
    if !surplus.is_empty() {
        for pod in surplus.into_iter().take(creation::MAX_WRITES) {
            // These did nothing wrong, so they are not counted; the finalizer goes first, then the pod, by its uid.
            d.apart(|d| {
                let untracked = counting::untrack(pod);
                let changed = untracked.is_some();
                d.writes.extend(untracked);
                delete(o, pod, !changed, removed, d);
            });
        }
        return;
    }
    let waited_for = if policy::replaces_only_failed(o.spec) { counts.terminating } else { 0 };
    let missing = wanted.saturating_sub(waited_for).saturating_sub(active);
    if missing > 0 && o.namespace_terminating {
        d.waiting.push(Waiting::NamespaceTerminating);
    } else if missing > 0 {
        creation::create(o, counts, usize::try_from(missing).unwrap_or(0), now, d);
    }
}

/// Deletes a pod; `unchanged` is whether this decision has not written it before.
fn delete(o: &Observed, pod: &Pod, unchanged: bool, removed: &mut BTreeSet<String>, d: &mut Decision) {
    let write = Write::delete(&POD, &pod.metadata);
    d.writes.push(if unchanged { write } else { write.whatever_version() });
    removed.insert(pod.metadata.uid.clone().unwrap_or_default());
    let name = pod.metadata.name.as_deref().unwrap_or("");
    d.events.push(Event::normal(&JOB, &o.job.metadata, "SuccessfulDelete", format!("Deleted pod: {name}")));
}

/// The condition Suspended.
fn say_suspended(o: &Observed, status: &mut JobStatus, now: Timestamp, d: &mut Decision) {
    let (value, reason, message, event) = match o.suspended() {
        true => ("True", "JobSuspended", "Job suspended", "Suspended"),
        false => ("False", "JobResumed", "Job resumed", "Resumed"),
    };
    if set_condition(status, "Suspended", value, reason, message, now) {
        d.events.push(Event::normal(&JOB, &o.job.metadata, event, message.to_owned()));
    }
}

/// Says how the Job ends, and that it has ended once every pod is counted and gone.
fn finish(
    o: &Observed,
    ending: Option<Ending>,
    finalizers: &[Write],
    counts: &Counts,
    removed: &BTreeSet<String>,
    status: &mut JobStatus,
    now: Timestamp,
) -> Option<Event> {
    let ending = ending?;
    let (interim, last) = ending.types();
    set_condition(status, interim, "True", &ending.reason, &ending.message, now);
    let waits = counting::uncounted(status).any(|_| true);
    if waits || !finalizers.is_empty() || !removed.is_empty() || counts.terminating > 0 {
        return None;
    }
    set_condition(status, last, "True", &ending.reason, &ending.message, now);
    let meta = &o.job.metadata;
    if ending.succeeds {
        status.completion_time = Some(Time(now));
        return Some(Event::normal(&JOB, meta, "Completed", "Job completed".to_owned()));
    }
    let reason = REASONS.iter().find(|reason| **reason == ending.reason).unwrap_or(&"Failed");
    Some(Event::warning(&JOB, meta, reason, ending.message))
}

/// Why a Job fails: upstream's reasons.
const REASONS: [&str; 5] =
    ["PodFailurePolicy", "BackoffLimitExceeded", "DeadlineExceeded", "MaxFailedIndexesExceeded", "FailedIndexes"];

/// Sets a condition; whether that changed anything. One that is not there is not made to say False.
fn set_condition(
    status: &mut JobStatus,
    type_: &str,
    value: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> bool {
    let new = JobCondition {
        type_: type_.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    };
    let conditions = status.conditions.get_or_insert_default();
    match conditions.iter_mut().find(|condition| condition.type_ == type_) {
        Some(old) if (&old.status, &old.reason, &old.message) == (&new.status, &new.reason, &new.message) => false,
        Some(old) => {
            *old = new;
            true
        }
        None if value == "False" => false,
        None => {
            conditions.push(new);
            true
        }
    }
}

/// Writes what of the status has changed. The lists of uids are given whole, since a merge patch keeps what it does not
/// name.
fn write_status(o: &Observed, new: &JobStatus, d: &mut Decision) {
    let old = o.job.status.clone().unwrap_or_default();
    let mut new = new.clone();
    new.conditions = new.conditions.filter(|conditions| !conditions.is_empty());
    d.writes.extend(Write::change_status(&JOB, &o.job.metadata, &json!(old), &json!(new)));
}

/// The active pods of each index, for finding those that are doubled.
fn by_index<'a>(pods: &[&'a Pod]) -> BTreeMap<Option<i32>, Vec<&'a Pod>> {
    let mut all: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for pod in pods {
        all.entry(indexes::index_of(pod)).or_default().push(*pod);
    }
    all
}

/// The pods that run or will, the finished ones, and those on their way out, of `pods`.
fn split<'a>(pods: &[&'a Pod]) -> (Vec<&'a Pod>, usize) {
    let active = pods.iter().copied().filter(|pod| is_active(pod)).collect();
    let terminating = pods.iter().filter(|pod| is_terminating(&pod.metadata) && !is_finished(pod)).count();
    (active, terminating)
}

/// How many of `pods` are Ready.
fn ready(pods: &[&Pod], removed: &BTreeSet<String>) -> usize {
    let gone = |pod: &Pod| pod.metadata.uid.as_ref().is_some_and(|uid| removed.contains(uid));
    pods.iter().filter(|pod| pods::is_ready(pod) && !gone(pod)).count()
}
