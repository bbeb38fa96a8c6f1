//! The kubelet: what this node does next for one pod, and what it tells about it.
//!
//! Relies on: the runtime's list is complete (a container that it does not name does not run); the node executes an
//! action at most once at a time and reports each result through [`PodView::apply`].
//!
//! Guarantees, on the node: S1 (nothing of a pod starts while an older uid of its name has containers here, and
//! nothing starts again that was once told to stop), S2 (the API object is confirmed deleted only after every container
//! is known to be stopped and every volume unmounted), V7 (a view that was just learnt again after a restart leads to
//! no stop, no unmount and no start of what already runs).
//!
//! Differs: a pod uid that was told to stop is noted on disk before its first container is stopped, so that a list
//! from a stale server cannot start it again (upstream: kubernetes#59848). A readiness result survives a restart
//! of the agent by way of the API's status for the same container id.
//!
//! [`decide`] reads from top to bottom: tombstoned pods end, finished pods are put away, all others run.

pub mod admission;
mod agenda;
mod backoff;
mod clock;
mod conditions;
mod containers;
mod dispatcher;
pub mod ephemeral;
pub mod eviction;
pub mod hold;
pub mod pressure;
mod probes;
pub mod qos;
mod resize;
mod restart_all;
#[cfg(test)]
mod simulation;
mod status;
pub mod sysctl;
mod termination;
#[cfg(test)]
mod tests;
mod view;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;

pub use agenda::{Agenda, End, Key, Step, Task};
pub use backoff::Backoff;
pub use containers::pull_policy;
pub use dispatcher::{Dispatch, Dispatcher, PodUpdate};
pub use view::{
    Condemned, ContainerFact, Fact, Hook, ImageFact, ImageState, Life, Memory, PodEvent, PodView, ProbeFact, ProbeKind,
    ProbeOutcome, Remembered, Sandbox, VolumeFact,
};

use crate::Waiting;

/// When an image is looked for in a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

/// One thing to do. All are idempotent: doing one twice, or again after a crash, is doing it once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Note on disk that this uid must never start again.
    Remember,
    /// Make the volume ready, or look again at what is projected into it.
    EnsureVolume {
        name: String,
    },
    EnsureSandbox,
    EnsureImage {
        container: String,
        image: String,
        policy: PullPolicy,
    },
    StartContainer {
        container: String,
        attempt: u32,
        image_id: String,
    },
    /// Give a running container the resources that the pod's spec says now.
    ResizeContainer {
        container: String,
        attempt: u32,
    },
    /// Run the postStart hook of a started container.
    PostStart {
        container: String,
        attempt: u32,
    },
    RunProbe {
        container: String,
        attempt: u32,
        kind: ProbeKind,
    },
    /// preStop hook (where `pre_stop`), then the stop signal, then SIGKILL at the deadline.
    /// A stop that is already under way with a later deadline is hastened.
    StopContainer {
        container: String,
        attempt: u32,
        deadline: Timestamp,
        pre_stop: bool,
        why: String,
    },
    /// Forget an ended container and its log.
    RemoveContainer {
        container: String,
        attempt: u32,
    },
    /// End the sandbox and give its address back.
    RemoveSandbox,
    /// Unmount all of the pod's volumes, and remove what was only its own.
    Unmount,
    /// Delete the API object: grace period 0, with the uid as precondition.
    ConfirmDeletion,
    /// Nothing is left: remove the pod's folder and the note about it.
    Forget,
}

/// The outcome of [`decide`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KubeletDecision {
    /// To be under way now; those that already are, stay.
    pub actions: Vec<Action>,
    /// What the API should say. Conditions that are not the kubelet's are kept.
    pub status: PodStatus,
    /// What is true now and worth an event; told when it becomes true, not again while it stays so.
    pub events: Vec<PodEvent>,
    /// Why nothing more happens.
    pub waiting: Vec<Waiting>,
    /// When to decide again even if nothing changes.
    pub wake_at: Option<Timestamp>,
}

impl KubeletDecision {
    fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    fn wait(&mut self, waiting: Waiting) {
        if !self.waiting.contains(&waiting) {
            self.waiting.push(waiting);
        }
    }

    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |before| before.min(at)));
    }

    /// Waits for a back-off that ends at `until`.
    fn back_off(&mut self, until: Timestamp) {
        self.wait(Waiting::Backoff);
        self.wake(until);
    }
}

/// Where a pod is in its life on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    /// To run, or to be brought there.
    Live,
    /// Beyond a limit on what it may have on the node's disk.
    Evicted,
    /// Longer active than `activeDeadlineSeconds`.
    Expired,
    /// Ended by itself; kept for its status and its logs.
    Finished,
    /// Deleted, or told to stop once.
    Doomed,
}

/// What to do now for one pod. Total and deterministic.
pub fn decide(view: &PodView, now: Timestamp) -> KubeletDecision {
    let mut decision = KubeletDecision::default();
    let stage = stage(view, now);
    match stage {
        Stage::Doomed => termination::end(view, &mut decision),
        Stage::Evicted | Stage::Expired | Stage::Finished => termination::put_away(view, now, &mut decision),
        Stage::Live => run(view, now, &mut decision),
    }
    if stage != Stage::Live {
        // What drains says so by its readiness until it has ended, as upstream.
        probes::run(view, now, &[ProbeKind::Readiness], &mut decision);
    }
    decision.status = status::status(view, &stage, now);
    decision
}

fn stage(view: &PodView, now: Timestamp) -> Stage {
    if view.is_tombstoned() {
        return Stage::Doomed;
    }
    if is_finished(view) {
        return Stage::Finished;
    }
    if view.evicted.is_some() {
        return Stage::Evicted;
    }
    match expires_at(view) {
        Some(at) if at <= now => Stage::Expired,
        _ => Stage::Live,
    }
}

/// Whether the pod has ended, by itself or by what the API says.
fn is_finished(view: &PodView) -> bool {
    let recorded = view.pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(recorded, Some("Succeeded" | "Failed"))
        || view.refused.is_some()
        || status::is_complete(view) && !restart_all::is_under_way(view)
}

/// When `activeDeadlineSeconds` ends the pod, counted from its startTime.
fn expires_at(view: &PodView) -> Option<Timestamp> {
    let seconds = view.spec()?.active_deadline_seconds?;
    let start = view.pod.status.as_ref()?.start_time.as_ref()?.0;
    Some(backoff::plus_seconds(start, seconds))
}

/// Brings a pod to run, step by step: volumes, sandbox, init containers, containers.
fn run(view: &PodView, now: Timestamp, decision: &mut KubeletDecision) {
    if let Some(at) = expires_at(view) {
        decision.wake(at);
    }
    if let Some(uid) = &view.predecessor {
        return decision.wait(Waiting::NameTaken { uid: uid.clone() });
    }
    if let Some(until) = view.crowded_until {
        decision.wake(until);
        return decision.wait(Waiting::InUse);
    }
    if let Sandbox::Dead { since } = view.sandbox {
        return termination::after_sandbox_death(view, since, decision);
    }
    if restart_all::is_under_way(view) {
        return restart_all::run(view, decision);
    }
    probes::run(view, now, &[ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness], decision);
    termination::stop_condemned(view, decision);
    resize::run(view, decision);
    containers::drop_old_attempts(view, decision);
    let volumes_ready = ensure_volumes(view, now, decision);
    if view.sandbox == Sandbox::Absent {
        if !volumes_ready {
            return;
        }
        match view.sandbox_error.map(|backoff| backoff.until(backoff.updated, backoff::RETRY)) {
            Some(until) if until > now => decision.back_off(until),
            _ => decision.act(Action::EnsureSandbox),
        }
        return;
    }
    if volumes_ready {
        ephemeral::run(view, now, decision);
    }
    containers::run(view, now, volumes_ready, decision);
}

/// Asks for every volume that is not ready or is due for a look; whether all are ready.
fn ensure_volumes(view: &PodView, now: Timestamp, decision: &mut KubeletDecision) -> bool {
    let mut all_ready = true;
    for volume in view.spec().into_iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let due = match view.volumes.get(&volume.name) {
            Some(VolumeFact::Ready { refresh_at: None }) => continue,
            Some(VolumeFact::Ready { refresh_at: Some(at) }) => *at,
            Some(VolumeFact::Failed { backoff, .. }) => {
                all_ready = false;
                backoff.until(backoff.updated, backoff::RETRY)
            }
            None => {
                all_ready = false;
                now
            }
        };
        if due <= now {
            decision.act(Action::EnsureVolume { name: volume.name.clone() });
        } else {
            decision.wake(due);
            if !all_ready {
                decision.wait(Waiting::Missing { what: format!("volume {}", volume.name) });
            }
        }
    }
    all_ready
}
