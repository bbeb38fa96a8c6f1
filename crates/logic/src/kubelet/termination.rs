//! How containers stop, and what follows when all have.

use jiff::Timestamp;

use super::backoff::plus_seconds;
use super::view::{ContainerFact, Life, PodView, Remembered, Sandbox};
use super::{Action, KubeletDecision};
use crate::Waiting;
use crate::pods::is_sidecar;

/// Sidecars stop after the others, and have at least this long even where the others used up the grace period.
const SIDECAR_MINIMUM_SECONDS: i64 = 2;

/// A deleted pod: note it, stop it, unmount, and only then let the API object go (S2).
pub(super) fn end(view: &PodView, decision: &mut KubeletDecision) {
    if view.remembered == Remembered::No && !(view.gone && is_empty(view)) {
        return decision.act(Action::Remember);
    }
    let since = view.tombstoned_since.unwrap_or(Timestamp::MIN);
    stop_all(view, plus_seconds(since, deletion_grace_seconds(view)), decision);
    if !clear(view, decision) {
        return;
    }
    if !view.gone {
        return decision.act(Action::ConfirmDeletion);
    }
    for fact in &view.containers {
        decision.act(Action::RemoveContainer { container: fact.name.clone(), attempt: fact.attempt });
    }
    if view.containers.is_empty() {
        decision.act(Action::Forget);
    }
}

/// How long the containers of a pod have that is evicted, as upstream.
const EVICTION_SECONDS: i64 = 1;

/// A pod that ended by itself, that is evicted, or whose deadline passed: its containers' records and logs stay.
pub(super) fn put_away(view: &PodView, now: Timestamp, decision: &mut KubeletDecision) {
    if let Some((_, since)) = &view.evicted {
        stop_all(view, plus_seconds(*since, EVICTION_SECONDS), decision);
        clear(view, decision);
        return;
    }
    // What is alive still is a sidecar, or somebody else wrote that the pod has ended: both have their time from when
    // that was known here.
    let since = super::expires_at(view).filter(|at| *at <= now).or(view.finished_since).unwrap_or(now);
    stop_all(view, plus_seconds(since, view.grace_seconds()), decision);
    clear(view, decision);
}

/// The sandbox died: nothing of it may go on beside the one that is made next (S1).
pub(super) fn after_sandbox_death(view: &PodView, since: Timestamp, decision: &mut KubeletDecision) {
    stop_all(view, plus_seconds(since, view.grace_seconds()), decision);
    if decision.actions.is_empty() {
        decision.act(Action::RemoveSandbox);
    }
}

/// Stops containers that a probe or a hook condemned.
pub(super) fn stop_condemned(view: &PodView, decision: &mut KubeletDecision) {
    for fact in view.containers.iter().filter(|fact| fact.is_alive()) {
        let Some(condemned) = view.memory_of(&fact.name, fact.attempt).and_then(|memory| memory.condemned.as_ref())
        else {
            continue;
        };
        decision.act(Action::StopContainer {
            container: fact.name.clone(),
            attempt: fact.attempt,
            deadline: plus_seconds(condemned.since, condemned.grace_seconds.max(0)),
            pre_stop: has_pre_stop(view, &fact.name),
            why: condemned.why.clone(),
        });
    }
}

fn is_empty(view: &PodView) -> bool {
    view.containers.is_empty() && view.sandbox == Sandbox::Absent
}

/// The API's grace period, or the spec's; never less than a second, so that the stop signal is always sent.
fn deletion_grace_seconds(view: &PodView) -> i64 {
    view.pod.metadata.deletion_grace_period_seconds.unwrap_or_else(|| view.grace_seconds()).max(1)
}

fn has_pre_stop(view: &PodView, name: &str) -> bool {
    let container = view.specs().find(|container| container.name == name);
    container.and_then(|container| container.lifecycle.as_ref()).is_some_and(|lifecycle| lifecycle.pre_stop.is_some())
}

fn last_end(view: &PodView) -> Option<Timestamp> {
    let ends = view.containers.iter().filter_map(|fact| Some((fact, fact.exit()?.1?)));
    ends.map(|(fact, finished)| view.by_this_clock(fact, finished)).max()
}

/// Stops everything that is alive: first all but the sidecars, then the sidecars from the last to the first.
fn stop_all(view: &PodView, deadline: Timestamp, decision: &mut KubeletDecision) {
    let rank = |fact: &ContainerFact| {
        let init = view.spec().and_then(|spec| spec.init_containers.as_ref());
        init.and_then(|init| init.iter().position(|container| container.name == fact.name && is_sidecar(container)))
    };
    let alive: Vec<_> = view.containers.iter().filter(|fact| fact.is_alive()).collect();
    let sidecars_turn = alive.iter().all(|fact| rank(fact).is_some());
    let last_sidecar = alive.iter().filter_map(|fact| rank(fact)).max();
    for fact in alive {
        let sidecar = rank(fact);
        if sidecar.is_some() && (!sidecars_turn || sidecar != last_sidecar) {
            continue;
        }
        let deadline = match (sidecar, last_end(view)) {
            (Some(_), Some(ended)) => deadline.max(plus_seconds(ended, SIDECAR_MINIMUM_SECONDS)),
            _ => deadline,
        };
        decision.act(Action::StopContainer {
            container: fact.name.clone(),
            attempt: fact.attempt,
            deadline,
            pre_stop: matches!(fact.life, Life::Running { .. }) && has_pre_stop(view, &fact.name),
            why: format!("Stopping container {}", fact.name),
        });
    }
}

/// Removes sandbox and mounts once nothing is alive. `true` when nothing is left of either.
fn clear(view: &PodView, decision: &mut KubeletDecision) -> bool {
    if view.containers.iter().any(ContainerFact::is_alive) {
        decision.wait(Waiting::InUse);
        return false;
    }
    if view.sandbox != Sandbox::Absent {
        decision.act(Action::RemoveSandbox);
        return false;
    }
    if !view.unmounted {
        decision.act(Action::Unmount);
        return false;
    }
    true
}
