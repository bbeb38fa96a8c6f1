//! `RestartAllContainers`: a container whose exit code such a rule is about takes its pod back to the beginning, init
//! containers first, in the same sandbox and with the same volumes (upstream's KEP-5532, on by default since 1.36).
//!
//! How far that is stands in the API, so that an agent that is restarted goes on from there: the condition says that it
//! has begun, and what ended stays in the runtime until the API has its end. When the runtime has nothing of it left,
//! one write says that the condition is over and that all containers wait for their next attempt.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container;

use super::backoff::plus_seconds;
use super::containers::{container_id, ended, rule_about};
use super::status::recorded_status;
use super::view::{ContainerFact, PodView};
use super::{Action, KubeletDecision};
use crate::Waiting;

/// The action of a rule.
pub(super) const ACTION: &str = "RestartAllContainers";
/// The pod's condition, with what it says while it is true.
pub(super) const CONDITION: &str = "AllContainersRestarting";
pub(super) const STARTED: (&str, &str) = ("RestartAllContainersStarted", "container exited with restart policy rule");

/// How long the containers have after the one that ended: upstream does not respect their own grace periods, nor run
/// preStop hooks.
const SECONDS: i64 = 2;

fn is_such(container: &Container) -> bool {
    container.restart_policy_rules.iter().flatten().any(|rule| rule.action == ACTION)
}

/// Whether one of the pod's containers has such a rule.
pub(super) fn is_possible(view: &PodView) -> bool {
    view.specs().any(is_such)
}

/// Whether a container ended in a way that such a rule is about.
fn triggers(view: &PodView, container: &Container) -> bool {
    ended(view, &container.name)
        .is_some_and(|code| rule_about(container, code).is_some_and(|rule| rule.action == ACTION))
}

fn is_noted(view: &PodView) -> bool {
    let conditions = view.pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == CONDITION && condition.status == "True")
}

/// Whether the pod is on its way back to its beginning.
pub(super) fn is_under_way(view: &PodView) -> bool {
    is_possible(view) && (is_noted(view) || view.specs().any(|container| triggers(view, container)))
}

/// Attempts of all containers but the ephemeral ones, which run once and are left alone.
fn attempts(view: &PodView) -> impl Iterator<Item = &ContainerFact> {
    view.containers.iter().filter(|fact| view.specs().any(|container| container.name == fact.name))
}

/// Whether it is under way, and the runtime has nothing of the pod left.
pub(super) fn is_cleared(view: &PodView) -> bool {
    is_under_way(view) && attempts(view).next().is_none()
}

/// Ends what runs, then forgets it.
pub(super) fn run(view: &PodView, decision: &mut KubeletDecision) {
    let began = view.specs().filter(|container| triggers(view, container)).filter_map(|container| {
        let fact = view.latest(&container.name)?;
        Some(view.by_this_clock(fact, fact.exit()?.1?))
    });
    let deadline = began.min().map_or(Timestamp::MIN, |began| plus_seconds(began, SECONDS));
    let mut is_alive = false;
    for fact in attempts(view).filter(|fact| fact.is_alive()) {
        is_alive = true;
        decision.act(Action::StopContainer {
            container: fact.name.clone(),
            attempt: fact.attempt,
            deadline,
            pre_stop: false,
            why: format!("Stopping container {}: all containers are restarted", fact.name),
        });
    }
    if is_alive {
        return decision.wait(Waiting::InUse);
    }
    if !is_noted(view) || !attempts(view).all(|fact| is_recorded(view, fact)) {
        return decision.wait(Waiting::Missing { what: "the ends of its containers in the API".to_owned() });
    }
    for fact in attempts(view) {
        decision.act(Action::RemoveContainer { container: fact.name.clone(), attempt: fact.attempt });
    }
}

/// Whether the API has the end of this attempt, or of a later one: the next one's number is counted by that.
fn is_recorded(view: &PodView, fact: &ContainerFact) -> bool {
    if view.latest(&fact.name).is_some_and(|latest| latest.attempt > fact.attempt) {
        return true;
    }
    let id = container_id(view.uid(), &fact.name, fact.attempt);
    recorded_status(view, &fact.name).is_some_and(|status| {
        status.container_id.as_ref() == Some(&id) && status.state.as_ref().is_some_and(|state| state.running.is_none())
    })
}

/// When the last attempt of a container ended that was forgotten for this.
pub(super) fn ended_before(view: &PodView, name: &str) -> Option<Timestamp> {
    if !is_possible(view) {
        return None;
    }
    Some(recorded_status(view, name)?.last_state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?.0)
}
