//! Lets go of pods that no Job will count any more. Key: the pod.
//!
//! Relies on: the Job controller, which holds its pods by a finalizer until they are counted.
//! Guarantees: a pod is let go only when no Job controls it, by uid, or its Job has finished. A pod of another kind of
//! owner, and one whose Job another controller sees to, is left alone.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use mainstay_api::ObjectKey;
use mainstay_api::kinds::{JOB, POD};

use super::job::{finished, is_managed_elsewhere, is_tracked, untrack};
use crate::decision::{Controller, Decision, Verb};
use crate::ownership::controller_of;
use crate::snapshot::{Change, Snapshot};

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "job-pod-tracking-controller",
    permits: &[(Verb::Patch, "pods")],
    reads: &["jobs", "pods"],
    keys,
    reconcile: |snapshot, key, _: Timestamp| observe(snapshot, key).map(decide).unwrap_or_default(),
    many: None,
};

fn keys(before: &Snapshot, after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    if change.kind == POD {
        if after.pods.get(&change.key).is_some_and(|pod| is_tracked(pod)) {
            wake(change.key.clone());
        }
    } else if change.kind == JOB {
        let uid = |meta: &std::sync::Arc<crate::snapshot::Meta>| meta.uid().to_owned();
        let (old, new) = (change.old.as_ref().map(uid), change.new.as_ref().map(uid));
        let has_finished =
            |snapshot: &Snapshot| snapshot.jobs.get(&change.key).is_some_and(|job| finished(job).is_some());
        if old != new || has_finished(before) != has_finished(after) {
            for uid in old.iter().chain(&new) {
                let pods = after.dependents(uid).filter(|meta| meta.kind == POD);
                pods.for_each(|meta| wake(meta.key.clone()));
            }
        }
    }
}

/// A pod that is held and that nobody will count.
pub fn observe<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<&'a Pod> {
    let pod = &**snapshot.pods.get(key)?;
    if !is_tracked(pod) {
        return None;
    }
    let counted = match controller_of(&pod.metadata) {
        None => false,
        Some(owner) if owner.kind != JOB.kind || owner.api_version != JOB.api_version() => true,
        Some(owner) => {
            let job = snapshot.jobs.get(&ObjectKey::new(key.namespace.clone(), owner.name.as_str()));
            job.filter(|job| job.metadata.uid.as_ref() == Some(&owner.uid))
                .is_some_and(|job| is_managed_elsewhere(job) || finished(job).is_none())
        }
    };
    (!counted).then_some(pod)
}

/// The finalizer goes.
pub fn decide(pod: &Pod) -> Decision {
    Decision { writes: untrack(pod).into_iter().collect(), ..Decision::default() }
}
