//! A pod that fits nowhere takes the room of less important ones, as upstream's DefaultPreemption does: the node where
//! that hurts least is nominated, the victims are deleted gracefully, and the pod is placed when they are gone.
//!
//! Differs: PodDisruptionBudgets are not looked at; upstream spares what they protect where it can.

use std::cmp::Reverse;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use mainstay_api::kinds;
use serde_json::json;

use super::fit::{Wants, consider, priority, usage_for};
use super::not_scheduled;
use super::round::Round;
use crate::decision::{Decision, Event, Propagation, Waiting, Write, key_of};
use crate::pods::{self, DISRUPTION_TARGET, is_finished, is_terminating};
use crate::snapshot::Index;

/// Nodes on which victims are looked for: the first so many that have some.
const MAX_CANDIDATES: usize = 20;
/// The same of nodes where one of them may not be deleted.
const MAX_VAIN: usize = 100;
/// Why a victim has [`DISRUPTION_TARGET`].
const REASON: &str = "PreemptionByScheduler";
/// What upstream says of a node on which no room can be made.
const UNHELPFUL: &str = "Preemption is not helpful for scheduling";
/// What upstream says of a node without less important pods whose room would do.
const NO_VICTIMS: &str = "No preemption victims found for incoming pod";

/// A node and the pods that would have to go, first of all those that are known to stay.
struct Candidate {
    node: String,
    victims: Vec<Arc<Pod>>,
}

/// What upstream says when no node can be helped.
pub fn unhelpful(nodes: usize, pod: &Pod) -> String {
    match is_never(pod) {
        true => "preemption: not eligible due to preemptionPolicy=Never.".to_owned(),
        false => format!("preemption: 0/{nodes} nodes are available: {nodes} {UNHELPFUL}."),
    }
}

fn is_never(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.preemption_policy.as_deref()) == Some("Never")
}

/// Makes room for a pod on one of these nodes; or why not, in upstream's words.
pub fn preempt(round: &Round, wants: &Wants, resolvable: &[usize], now: Timestamp) -> Result<Decision, String> {
    let (pod, nodes) = (wants.pod, round.slots.len());
    if is_never(pod) {
        return Err(unhelpful(nodes, pod));
    }
    let nominated = pod.status.as_ref().and_then(|status| status.nominated_node_name.as_deref()).unwrap_or("");
    let going = |other: &Pod| is_terminating(&other.metadata) && priority(other) < priority(pod) && !is_finished(other);
    if !nominated.is_empty() && round.snapshot.pods_of_node(nominated).any(|(_, other)| going(other)) {
        return Err("preemption: not eligible due to a terminating pod on the nominated node.".to_owned());
    }
    let (mut candidates, mut without, mut vain) = (Vec::new(), 0, 0);
    for index in resolvable {
        match candidate(round, wants, *index) {
            Some(candidate) => {
                vain += usize::from(candidate.victims.iter().any(|pod| stays(pod)));
                candidates.push(candidate);
            }
            None => without += 1,
        }
        if candidates.len() - vain == MAX_CANDIDATES || vain == MAX_VAIN {
            break;
        }
    }
    let Some(best) = candidates.into_iter().min_by_key(cost) else {
        let reasons = [(without, NO_VICTIMS), (nodes - resolvable.len(), UNHELPFUL)];
        let reasons: Vec<String> =
            reasons.iter().filter(|(count, _)| *count > 0).map(|(count, why)| format!("{count} {why}")).collect();
        return Err(format!("preemption: 0/{nodes} nodes are available: {}.", reasons.join(", ")));
    };
    Ok(evict(pod, &best, now))
}

/// The pods of a node that must go, as few and as unimportant as will do; `None` where that does not help.
fn candidate(round: &Round, wants: &Wants, index: usize) -> Option<Candidate> {
    let slot = round.slots.get(index)?;
    let node = slot.node.metadata.name.clone().unwrap_or_default();
    let pod = wants.pod;
    let mut lower: Vec<Arc<Pod>> = round
        .snapshot
        .found::<Pod>(Index::PodsOn, &node, "")
        .map(|(_, other)| other.clone())
        .filter(|other| !is_finished(other) && priority(other) < priority(pod))
        .collect();
    if lower.is_empty() {
        return None;
    }
    // Who may not be deleted, the most important ones, and of those the ones that run longest, are spared first.
    lower.sort_by_key(|other| (!stays(other), Reverse(priority(other)), started(other)));
    let mut trial = round.snapshot.clone();
    lower.iter().for_each(|other| trial.set::<Pod>(&key_of(&other.metadata), None));
    let fits = |trial: &crate::Snapshot| {
        let Ok(wants) = Wants::of(trial, pod) else { return false };
        consider(trial, &wants, &slot.node, &usage_for(trial, pod, &node)).is_ok()
    };
    if !fits(&trial) {
        return None;
    }
    let mut victims = Vec::new();
    for other in lower {
        let key = key_of(&other.metadata);
        trial.set(&key, Some(other.clone()));
        if !fits(&trial) {
            trial.set::<Pod>(&key, None);
            victims.push(other);
        }
    }
    Some(Candidate { node, victims })
}

/// What a pod was told when it was to make room, now or before.
fn told(pod: &Pod) -> Option<&PodCondition> {
    pods::condition(pod, DISRUPTION_TARGET).filter(|told| told.reason.as_deref() == Some(REASON))
}

/// Whether a pod was told that it makes room, and is not on its way: its deletion was refused (by a webhook, a policy).
/// That is known also when the condition is False again ([`crate::controllers::staledisruption`]).
fn stays(pod: &Pod) -> bool {
    !is_terminating(&pod.metadata) && told(pod).is_some()
}

fn started(pod: &Pod) -> Option<Timestamp> {
    pod.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|time| time.0)
}

/// What upstream compares, least first: the most important victim, their importance in all, how many, and then the
/// latest start of the most important ones. Before that, whether a victim is known to stay: the pod would wait for its
/// node for ever, and the others there would go for nothing.
fn cost(candidate: &Candidate) -> (bool, i32, i64, usize, Reverse<Option<Timestamp>>, String) {
    let victims = &candidate.victims;
    let is_vain = victims.iter().any(|pod| stays(pod));
    let highest = victims.iter().map(|pod| priority(pod)).max().unwrap_or(i32::MIN);
    // As upstream: shifted, so that many unimportant ones do not weigh less than one.
    let sum = victims.iter().map(|pod| i64::from(priority(pod)) - i64::from(i32::MIN) + 1).sum();
    let earliest = victims.iter().filter(|pod| priority(pod) == highest).filter_map(|pod| started(pod)).min();
    (is_vain, highest, sum, victims.len(), Reverse(earliest), candidate.node.clone())
}

fn evict(pod: &Pod, candidate: &Candidate, now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    // Who is known to stay comes first: where one may not be deleted, the others need not go.
    for victim in candidate.victims.iter().filter(|victim| !is_terminating(&victim.metadata)) {
        let why = "default-scheduler: preempting to accommodate a higher priority pod";
        if told(victim).is_none_or(|told| told.status != "True") {
            let status = json!({"conditions": pods::disrupted(victim, REASON, why, now)});
            decision.writes.push(crate::decision::guarded_status(&kinds::POD, &victim.metadata, status));
        }
        decision.writes.push(Write::Delete {
            kind: kinds::POD.clone(),
            key: key_of(&victim.metadata),
            uid: victim.metadata.uid.clone().unwrap_or_default(),
            resource_version: None,
            grace_period: None,
            propagation: Propagation::Background,
        });
        let by = pod.metadata.uid.as_deref().unwrap_or("");
        let message = format!("Preempted by pod {by} on node {}", candidate.node);
        decision.events.push(Event::normal(&kinds::POD, &victim.metadata, "Preempted", message));
    }
    decision.waiting.push(Waiting::VictimsRunning { node: candidate.node.clone() });
    decision
}

/// Adds to a preemption what the pod itself says: where it is to go, and why it is not there yet. The status comes
/// first, so that after a cut the node is kept for it.
pub fn nominated(mut decision: Decision, pod: &Pod, message: String, now: Timestamp) -> Decision {
    let Some(Waiting::VictimsRunning { node }) = decision.waiting.first().cloned() else { return decision };
    let write = not_scheduled(pod, "Unschedulable", &message, Some(&node), now);
    if write.is_some() {
        decision.events.push(Event::warning(&kinds::POD, &pod.metadata, "FailedScheduling", message));
    }
    decision.writes.splice(0..0, write);
    decision
}
