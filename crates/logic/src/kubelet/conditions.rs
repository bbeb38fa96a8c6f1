//! The kubelet's pod conditions, with upstream's reasons and messages. Foreign conditions are kept as they are.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::containers::{Init, init_standings};
use super::view::{PodView, Sandbox};
use super::{resize, restart_all};
use crate::fencing;
use crate::pods::{DISRUPTION_TARGET, TERMINATION_BY_KUBELET, is_sidecar};

/// The conditions that the kubelet writes.
const OURS: [&str; 5] = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

/// A verdict: `Ok`, or a reason and a message (either may be empty).
type Verdict = Result<(), (&'static str, String)>;

pub(super) fn conditions(
    view: &PodView,
    recorded: &PodStatus,
    status: &PodStatus,
    now: Timestamp,
) -> Vec<PodCondition> {
    let before = recorded.conditions.as_deref().unwrap_or_default();
    let terminal = match status.phase.as_deref() {
        Some("Succeeded") => Some("PodCompleted"),
        Some("Failed") => Some("PodFailed"),
        _ => None,
    };
    let sandbox = match view.sandbox {
        Sandbox::Ready { .. } => Ok(()),
        Sandbox::Absent | Sandbox::Dead { .. } => Err(("", String::new())),
    };
    let containers_ready = match terminal {
        Some(reason) => Err((reason, String::new())),
        None => all_ready(view, status),
    };
    let ready = match &containers_ready {
        Ok(()) => gates(view, before),
        Err(why) => Err(why.clone()),
    };
    let initialized =
        if terminal == Some("PodCompleted") { Err(("PodCompleted", String::new())) } else { initialized(view, before) };
    let verdicts = [sandbox, initialized, ready, containers_ready, Ok(())];
    let ours = OURS.iter().zip(verdicts).map(|(type_, verdict)| {
        let completed = *type_ == "Initialized" && terminal == Some("PodCompleted");
        condition(type_, verdict, completed, before, view.pod.metadata.generation, now)
    });
    let resizing = resizing(view, before, now);
    let restarting = restarting(view, terminal, before, now);
    let may_restart = restarting.is_some();
    // Once noted it stays, whatever this agent knows of it: the server may rely on it (S13).
    let deadline = view.deadline.filter(|seconds| fencing::noted(&view.pod) != Some(*seconds));
    let deadline = deadline.map(|seconds| fencing::condition(seconds, now));
    let disruption = view.evicted.as_ref().map(|(message, _)| {
        let why = Err((TERMINATION_BY_KUBELET, message.clone()));
        condition(DISRUPTION_TARGET, why, true, before, view.pod.metadata.generation, now)
    });
    let (is_new, is_disrupted) = (deadline.is_some(), disruption.is_some());
    let is_ours = |type_: &str| {
        OURS.contains(&type_)
            || RESIZE.contains(&type_)
            || (may_restart && type_ == restart_all::CONDITION)
            || (is_new && type_ == fencing::CONDITION)
            || (is_disrupted && type_ == DISRUPTION_TARGET)
    };
    let foreign = before.iter().filter(|condition| !is_ours(&condition.type_)).cloned();
    ours.chain(resizing).chain(restarting).chain(deadline).chain(disruption).chain(foreign).collect()
}

/// What says that resources are being changed, or cannot be; there is neither where all are as wanted.
const RESIZE: [&str; 2] = ["PodResizePending", "PodResizeInProgress"];

fn resizing(view: &PodView, before: &[PodCondition], now: Timestamp) -> Option<PodCondition> {
    resize::open(view).next()?;
    let [pending, in_progress] = RESIZE;
    let why = resize::infeasible(view);
    let (type_, verdict) = match why {
        Some(message) => (pending, Err(("Infeasible", message))),
        None => (in_progress, Ok(())),
    };
    Some(condition(type_, verdict, true, before, view.pod.metadata.generation, now))
}

/// Whether all containers are taken back to their beginning; nothing of pods where that cannot be.
fn restarting(
    view: &PodView,
    terminal: Option<&'static str>,
    before: &[PodCondition],
    now: Timestamp,
) -> Option<PodCondition> {
    if !restart_all::is_possible(view) {
        return None;
    }
    let is_restarting = terminal.is_none() && restart_all::is_under_way(view) && !restart_all::is_cleared(view);
    let (reason, message) = if is_restarting { restart_all::STARTED } else { (terminal.unwrap_or_default(), "") };
    let why = Err((reason, message.to_owned()));
    Some(condition(restart_all::CONDITION, why, is_restarting, before, view.pod.metadata.generation, now))
}

/// One condition; its transition time moves only with its status.
fn condition(
    type_: &str,
    verdict: Verdict,
    force_true: bool,
    before: &[PodCondition],
    generation: Option<i64>,
    now: Timestamp,
) -> PodCondition {
    let value = if verdict.is_ok() || force_true { "True" } else { "False" };
    let (reason, message) = verdict.err().unwrap_or_default();
    let unchanged = before.iter().find(|old| old.type_ == type_ && old.status == value);
    PodCondition {
        type_: type_.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()).filter(|reason| !reason.is_empty()),
        message: Some(message).filter(|message| !message.is_empty()),
        last_transition_time: unchanged.and_then(|old| old.last_transition_time.clone()).or(Some(Time(now))),
        last_probe_time: None,
        observed_generation: generation,
    }
}

fn initialized(view: &PodView, before: &[PodCondition]) -> Verdict {
    // What was initialized stays that, also when its init containers run again for all to be restarted.
    let was = before.iter().any(|condition| condition.type_ == "Initialized" && condition.status == "True");
    if was && restart_all::is_possible(view) {
        return Ok(());
    }
    let open: Vec<&str> = init_standings(view)
        .filter(|(_, standing)| *standing != Init::Done)
        .map(|(container, _)| container.name.as_str())
        .collect();
    if open.is_empty() {
        return Ok(());
    }
    Err(("ContainersNotInitialized", format!("containers with incomplete status: [{}]", open.join(" "))))
}

/// Whether the sidecars are ready, and the containers, in this order.
fn all_ready(view: &PodView, status: &PodStatus) -> Verdict {
    let init = view.spec().into_iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let sidecars = init.zip(status.init_container_statuses.iter().flatten());
    let sidecars = sidecars.filter(|(container, _)| is_sidecar(container)).map(|(_, status)| status);
    let all = sidecars.chain(status.container_statuses.iter().flatten());
    let unready: Vec<&str> = all.filter(|status| !status.ready).map(|status| status.name.as_str()).collect();
    if unready.is_empty() {
        return Ok(());
    }
    Err(("ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" "))))
}

/// Readiness gates are conditions that others write.
fn gates(view: &PodView, conditions: &[PodCondition]) -> Verdict {
    let mut complaints = Vec::new();
    for gate in view.spec().into_iter().flat_map(|spec| spec.readiness_gates.iter().flatten()) {
        let name = &gate.condition_type;
        match conditions.iter().find(|condition| condition.type_ == *name) {
            None => {
                complaints.push(format!("corresponding condition of pod readiness gate \"{name}\" does not exist."))
            }
            Some(condition) if condition.status != "True" => {
                complaints.push(format!(
                    "the status of pod readiness gate \"{name}\" is not \"True\", but {}",
                    condition.status
                ));
            }
            Some(_) => {}
        }
    }
    if complaints.is_empty() { Ok(()) } else { Err(("ReadinessGatesNotReady", complaints.join(", "))) }
}
