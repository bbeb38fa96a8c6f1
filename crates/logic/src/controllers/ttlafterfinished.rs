//! Deletes Jobs some time after they have finished: `ttlSecondsAfterFinished`.
//!
//! Relies on: the garbage collector for their pods.
//! Guarantees: what is deleted is the Job that was seen to have finished, by uid and resourceVersion (A8).

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use mainstay_api::ObjectKey;
use mainstay_api::kinds::JOB;

use super::job::finished;
use crate::decision::{Controller, Decision, Propagation, Verb, Write};
use crate::pods::is_terminating;
use crate::snapshot::{Change, Snapshot};

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "ttl-after-finished-controller",
    permits: &[(Verb::Delete, "jobs")],
    reads: &["jobs"],
    keys,
    reconcile: |snapshot, key, now| snapshot.jobs.get(key).map(|job| decide(job, now)).unwrap_or_default(),
    many: None,
};

fn keys(_: &Snapshot, _: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    if change.kind == JOB {
        wake(change.key.clone());
    }
}

/// The Job goes when its time is over.
pub fn decide(job: &Job, now: Timestamp) -> Decision {
    let mut d = Decision::default();
    let ttl = job.spec.as_ref().and_then(|spec| spec.ttl_seconds_after_finished);
    let ended = finished(job).and_then(|condition| condition.last_transition_time.as_ref());
    let (Some(ttl), Some(ended)) = (ttl, ended.filter(|_| !is_terminating(&job.metadata))) else { return d };
    let Ok(end) = ended.0.checked_add(SignedDuration::from_secs(i64::from(ttl.max(0)))) else { return d };
    if end > now {
        d.wake(end);
        return d;
    }
    let mut write = Write::delete(&JOB, &job.metadata);
    if let Write::Delete { propagation, .. } = &mut write {
        *propagation = Propagation::Foreground;
    }
    d.writes.push(write);
    d
}
