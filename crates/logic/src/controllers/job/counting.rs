//! Which pods have ended, which of them are counted, and the finalizers that keep them until they are.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::batch::v1::JobStatus;
use k8s_openapi::api::core::v1::Pod;
use mainstay_api::kinds::POD;
use serde_json::{Value, json};

use super::indexes::{Indexes, index_of, is_indexed};
use super::policy::{Verdict, is_failed, verdict};
use super::{Ending, Observed, backoff};
use crate::decision::Write;
use crate::pods::{is_terminating, phase};

/// Keeps a pod of a Job until it is counted.
pub const TRACKING: &str = "batch.kubernetes.io/job-tracking";
/// How many uids one decision adds to the status; upstream's.
const MAX_UNCOUNTED: usize = 500;

/// Whether the pod is yet to be counted.
pub fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == TRACKING)
}

/// The finalizers without ours, as a merge patch has them.
pub fn untracked(pod: &Pod) -> Value {
    let rest: Vec<&String> = pod.metadata.finalizers.iter().flatten().filter(|name| *name != TRACKING).collect();
    if rest.is_empty() { json!(null) } else { json!(rest) }
}

/// The patch that lets a pod go, where it is held.
pub fn untrack(pod: &Pod) -> Option<Write> {
    is_tracked(pod).then(|| Write::patch(&POD, &pod.metadata, json!({"metadata": {"finalizers": untracked(pod)}})))
}

/// The message of the rule by which a pod fails the whole Job.
pub fn failed_by_policy(o: &Observed) -> Option<String> {
    let policy = Some(o.spec.pod_failure_policy.as_ref()?);
    o.pods.iter().filter(|pod| is_failed(pod, o.spec)).find_map(|pod| match verdict(policy, pod) {
        Verdict::FailsJob(message) => Some(message),
        _ => None,
    })
}

/// `restartPolicy: OnFailure`: restarts of containers count towards the limit too.
pub fn restarted_too_often(o: &Observed) -> bool {
    let policy = o.spec.template.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
    if policy != Some("OnFailure") {
        return false;
    }
    let alive = o.pods.iter().filter(|pod| matches!(phase(pod), "Running" | "Pending"));
    let statuses = alive.filter_map(|pod| pod.status.as_ref()).flat_map(|status| {
        [&status.init_container_statuses, &status.container_statuses].into_iter().flatten().flatten()
    });
    let restarts = statuses.fold(0_i32, |sum, container| sum.saturating_add(container.restart_count));
    match o.spec.backoff_limit.unwrap_or(6) {
        0 => restarts > 0,
        limit => restarts >= limit,
    }
}

/// The uids that wait in the status.
pub fn uncounted(status: &JobStatus) -> impl Iterator<Item = &String> {
    let lists = status.uncounted_terminated_pods.iter();
    lists.flat_map(|pods| [&pods.succeeded, &pods.failed].into_iter().flatten().flatten())
}

/// A Job's pods in figures.
pub struct Counts<'a> {
    /// Neither finished nor on their way out.
    pub active: Vec<&'a Pod>,
    /// On their way out with containers that may still run.
    pub terminating: i32,
    /// With those that are seen but not yet counted.
    pub succeeded: i32,
    /// With those that are seen but not yet counted, less what the failure policy ignores.
    pub failed: i32,
    /// Of an Indexed Job.
    pub succeeded_indexes: Indexes,
    /// With `backoffLimitPerIndex`.
    pub failed_indexes: Option<Indexes>,
    /// With `backoffLimitPerIndex`: the last failed pod of an index, which is kept until it has a successor that
    /// carries the number of failures on.
    pub last_failed: BTreeMap<i32, &'a Pod>,
    /// Made by this decision.
    pub made: usize,
}

impl<'a> Counts<'a> {
    /// Counts; uids whose pod has lost its finalizer move from `status`' lists into its counters.
    pub fn of(o: &Observed<'a>, status: &mut JobStatus) -> Self {
        settle(o, status);
        let (active, terminating) = super::split(&o.pods);
        let waiting: BTreeSet<&String> = uncounted(status).collect();
        let fresh = |pod: &&&Pod| {
            let uid = pod.metadata.uid.as_ref();
            is_tracked(pod) && !uid.is_some_and(|uid| waiting.contains(uid)) && has_valid_index(o, pod)
        };
        let succeeded = o.pods.iter().filter(fresh).filter(|pod| phase(pod) == "Succeeded").count();
        let policy = o.spec.pod_failure_policy.as_ref();
        let counts = |pod: &&&Pod| is_failed(pod, o.spec) && verdict(policy, pod) != Verdict::Ignored;
        let failed = o.pods.iter().filter(fresh).filter(counts).count();
        let lists = status.uncounted_terminated_pods.as_ref();
        let listed = |list: Option<&Vec<String>>| list.map_or(0, Vec::len);
        let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
        let waiting_succeeded = listed(lists.and_then(|lists| lists.succeeded.as_ref()));
        let waiting_failed = listed(lists.and_then(|lists| lists.failed.as_ref()));
        let mut all = Self {
            active,
            terminating: number(terminating),
            succeeded: status.succeeded.unwrap_or(0).saturating_add(number(succeeded + waiting_succeeded)),
            failed: status.failed.unwrap_or(0).saturating_add(number(failed + waiting_failed)),
            succeeded_indexes: Indexes::default(),
            failed_indexes: None,
            last_failed: BTreeMap::new(),
            made: 0,
        };
        if is_indexed(o.job) {
            all.count_indexes(o, status);
        }
        all
    }

    fn count_indexes(&mut self, o: &Observed<'a>, status: &JobStatus) {
        let completions = o.spec.completions.unwrap_or(0);
        let valid = |pod: &Pod| index_of(pod).filter(|index| *index < completions && is_tracked(pod));
        let done = o.pods.iter().filter(|pod| phase(pod) == "Succeeded").filter_map(|pod| valid(pod));
        let before = Indexes::parse(status.completed_indexes.as_deref().unwrap_or(""), completions);
        self.succeeded_indexes = before.with(done);
        self.succeeded = self.succeeded_indexes.total();
        let Some(limit) = o.spec.backoff_limit_per_index else { return };
        let policy = o.spec.pod_failure_policy.as_ref();
        let has_failed = |pod: &Pod| {
            is_failed(pod, o.spec)
                && match verdict(policy, pod) {
                    Verdict::FailsIndex => true,
                    Verdict::Ignored => false,
                    _ => backoff::failures(pod) >= limit,
                }
        };
        let before = Indexes::parse(status.failed_indexes.as_deref().unwrap_or(""), completions);
        let failed = before.with(o.pods.iter().filter(|pod| has_failed(pod)).filter_map(|pod| valid(pod)));
        let active: BTreeSet<i32> = self.active.iter().filter_map(|pod| index_of(pod)).collect();
        for pod in o.pods.iter().copied().filter(|pod| is_failed(pod, o.spec)) {
            let Some(index) = valid(pod) else { continue };
            if self.succeeded_indexes.has(index) || failed.has(index) || active.contains(&index) {
                continue;
            }
            let rank = |pod: &Pod| {
                (backoff::failures(pod).saturating_add(backoff::ignored_failures(pod)), backoff::finished_at(pod))
            };
            let last = self.last_failed.entry(index).or_insert(pod);
            if rank(last) <= rank(pod) {
                *last = pod;
            }
        }
        self.failed_indexes = Some(failed);
    }

    /// Whether enough has succeeded and nothing runs.
    pub fn is_complete(&self, o: &Observed, removed: &BTreeSet<String>) -> bool {
        let enough = match o.spec.completions {
            None => self.succeeded > 0,
            Some(completions) => self.succeeded >= completions,
        };
        enough && self.active.len() == removed.len() && self.made == 0
    }

    /// The figures of what runs, after what this decision makes and deletes.
    pub fn write_sizes(&self, removed: &BTreeSet<String>, status: &mut JobStatus) {
        let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
        let active = number((self.active.len() + self.made).saturating_sub(removed.len()));
        status.active = Some(active).filter(|active| *active > 0);
        status.ready = Some(number(super::ready(&self.active, removed)));
        status.terminating = Some(self.terminating.saturating_add(number(removed.len())));
    }
}

fn has_valid_index(o: &Observed, pod: &Pod) -> bool {
    !is_indexed(o.job) || index_of(pod).is_some_and(|index| index < o.spec.completions.unwrap_or(0))
}

/// Moves uids that are not held any more from the lists to the counters.
fn settle(o: &Observed, status: &mut JobStatus) {
    let held: BTreeSet<&String> =
        o.pods.iter().filter(|pod| is_tracked(pod)).filter_map(|pod| pod.metadata.uid.as_ref()).collect();
    let Some(lists) = &mut status.uncounted_terminated_pods else { return };
    for (list, counter) in [(&mut lists.succeeded, &mut status.succeeded), (&mut lists.failed, &mut status.failed)] {
        let Some(uids) = list else { continue };
        let before = uids.len();
        uids.retain(|uid| held.contains(uid));
        let gone = i32::try_from(before - uids.len()).unwrap_or(0);
        if gone > 0 {
            *counter = Some(counter.unwrap_or(0).saturating_add(gone));
        }
        if uids.is_empty() {
            *list = None;
        }
    }
}

/// Notes pods that have ended in the status; gives the patches that let go of those that are noted or not counted.
pub fn track(
    o: &Observed,
    counts: &mut Counts,
    ending: Option<&Ending>,
    removed: &BTreeSet<String>,
    status: &mut JobStatus,
) -> Vec<Write> {
    let mut released = Vec::new();
    let indexed = is_indexed(o.job);
    let mut lists = status.uncounted_terminated_pods.take().unwrap_or_default();
    let mut noted: BTreeSet<String> =
        [&lists.succeeded, &lists.failed].into_iter().flatten().flatten().cloned().collect();
    let mut indexes_noted = 0;
    for pod in o.pods.iter().copied().filter(|pod| is_tracked(pod)) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        if removed.contains(&uid) || !may_go(o, counts, ending, pod) {
            continue;
        }
        released.extend(untrack(pod));
        if noted.contains(&uid) || !has_valid_index(o, pod) {
            continue;
        }
        if phase(pod) == "Succeeded" {
            if indexed {
                indexes_noted += 1;
            } else {
                lists.succeeded.get_or_insert_default().push(uid.clone());
                noted.insert(uid);
            }
        } else if counts_as_failed(o, ending, pod)
            && verdict(o.spec.pod_failure_policy.as_ref(), pod) != Verdict::Ignored
        {
            lists.failed.get_or_insert_default().push(uid.clone());
            noted.insert(uid);
        }
        if noted.len() + indexes_noted >= MAX_UNCOUNTED {
            break;
        }
    }
    status.uncounted_terminated_pods = Some(lists);
    if indexed {
        let text = counts.succeeded_indexes.to_string();
        status.succeeded = Some(counts.succeeded_indexes.total()).filter(|total| *total > 0);
        status.completed_indexes = Some(text).filter(|text| !text.is_empty());
        status.failed_indexes = counts.failed_indexes.as_ref().map(Indexes::to_string);
    }
    released
}

/// Where the Job has what it wants, the pods that it takes with it have not failed; where it fails, all of them have.
fn counts_as_failed(o: &Observed, ending: Option<&Ending>, pod: &Pod) -> bool {
    match ending {
        Some(ending) => !ending.succeeds || phase(pod) == "Failed",
        None => is_failed(pod, o.spec),
    }
}

/// Whether a pod need not be held any longer once it is noted.
fn may_go(o: &Observed, counts: &Counts, ending: Option<&Ending>, pod: &Pod) -> bool {
    if is_terminating(&o.job.metadata) || ending.is_some() || phase(pod) == "Succeeded" {
        return true;
    }
    let kept = |index: i32| counts.last_failed.get(&index).is_some_and(|last| last.metadata.uid == pod.metadata.uid);
    is_failed(pod, o.spec) && !index_of(pod).is_some_and(kept)
}
