//! When a Job may make its next pod after failures: 10 s, doubled with each further one, ten minutes at most.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::JobSpec;
use k8s_openapi::api::core::v1::Pod;

use super::policy::{Verdict, is_failed, verdict};
pub use crate::pods::finished_at;
use crate::pods::phase;

/// After the first failure; upstream's.
const FIRST: i64 = 10;
/// After many; upstream's.
const LONGEST: i64 = 600;
/// How often the index has failed, on its pods.
pub const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// How often the index has failed in ways that the failure policy ignores.
pub const IGNORED_FAILURES: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

/// When the Job may make pods: `None` at once. Counts the failures since the last success among the pods that are
/// still there.
pub fn until(spec: &JobSpec, pods: &[&Pod]) -> Option<Timestamp> {
    let of = |pod: &&Pod| finished_at(pod);
    let success = pods.iter().filter(|pod| phase(pod) == "Succeeded").map(of).max();
    let failures: Vec<Timestamp> =
        pods.iter().filter(|pod| is_failed(pod, spec)).map(of).filter(|at| Some(*at) > success).collect();
    after(*failures.iter().max()?, failures.len())
}

/// When the index may have its next pod, given its last one.
pub fn until_of_index(last: &Pod) -> Option<Timestamp> {
    let count = failures(last).saturating_add(ignored_failures(last)).saturating_add(1);
    after(finished_at(last), usize::try_from(count).unwrap_or(0))
}

fn after(last: Timestamp, failures: usize) -> Option<Timestamp> {
    let doublings = u32::try_from(failures.checked_sub(1)?).unwrap_or(u32::MAX).min(16);
    let wait = FIRST.saturating_mul(1 << doublings).min(LONGEST);
    last.checked_add(SignedDuration::from_secs(wait)).ok()
}

/// The failures before this pod that count.
pub fn failures(pod: &Pod) -> i32 {
    number(pod, FAILURES)
}

/// The failures before this pod that do not.
pub fn ignored_failures(pod: &Pod) -> i32 {
    number(pod, IGNORED_FAILURES)
}

/// Both counts for the successor of a failed pod.
pub fn counts_after(spec: &JobSpec, last: &Pod) -> (i32, i32) {
    match verdict(spec.pod_failure_policy.as_ref(), last) {
        Verdict::Ignored => (failures(last), ignored_failures(last).saturating_add(1)),
        _ => (failures(last).saturating_add(1), ignored_failures(last)),
    }
}

fn number(pod: &Pod, annotation: &str) -> i32 {
    let all = pod.metadata.annotations.as_ref();
    all.and_then(|all| all.get(annotation)?.parse().ok()).filter(|number| *number >= 0).unwrap_or(0)
}
