//! The scheduler: a node for each pod that has none, together with the volumes that it needs there. Key: the pod; the
//! empty key is all pods that have none.
//!
//! Relies on: the API server refusing a second binding of a pod; the driver deciding on nothing older than its own
//! last commit of this controller, or on what that [is assumed](round::assume) to be; nodes saying their resources and
//! their volume root.
//! Guarantees V1 (through [`crate::volume`]: claimRef by uid, guarded, before the claim, before the pod), V5 (a bound
//! volume's node affinity is never overruled), V10 (a node promises no more room than it has), V6 (a fresh claim gets
//! a fresh directory), V9. After a cut the volumes made so far belong to the claim, and the next decision goes where
//! they are. Pods are decided in order of priority, many at a time ([`round`]).
//! Differs: ReadWriteOnce is held to one node for every kind of volume, not only attachable ones; nodes are not scored
//! by image locality.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use mainstay_api::{ObjectKey, kinds};
use serde_json::json;

use crate::decision::{Controller, Decision, Event, Many, Verb, Waiting, Write, guarded_status, key_of};
use crate::pods::{condition, is_active, is_finished};
use crate::resources;
use crate::snapshot::{Change, Index, Snapshot};
use crate::volume::room;

pub(crate) mod affinity;
mod fit;
mod preemption;
mod round;
#[cfg(test)]
pub(crate) mod tests;
mod volumes;

pub use round::schedule;

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: NAME,
    permits: &[
        (Verb::Bind, "pods"),
        (Verb::PatchStatus, "pods"),
        (Verb::Delete, "pods"),
        (Verb::Create, "persistentvolumes"),
        (Verb::Patch, "persistentvolumes"),
        (Verb::Patch, "persistentvolumeclaims"),
        (Verb::PatchStatus, "persistentvolumeclaims"),
    ],
    reads: crate::volume::READS,
    keys,
    reconcile: |snapshot, key, now| schedule(snapshot, std::slice::from_ref(key), now).pop().unwrap_or_default(),
    many: Some(Many {
        decide: schedule,
        rank: |snapshot, key| snapshot.pods.get(key).map_or(0, |pod| -i64::from(fit::priority(pod))),
        all: |snapshot| snapshot.pods_of_node("").filter(|(_, pod)| is_due(pod)).map(|(key, _)| key.clone()).collect(),
        most: MAX_ROUND,
        assume: Some(round::assume),
    }),
};

/// Pods that name another scheduler are left to it.
const NAME: &str = "default-scheduler";
/// How many pods are placed together: their writes and Events are one transaction where they fit into one.
const MAX_ROUND: usize = 200;

/// All pods that have no node.
fn everybody() -> ObjectKey {
    ObjectKey::new("", "")
}

fn keys(before: &Snapshot, after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    let some = |index: Index| after.indexes.count(index, "", "") > 0;
    match (&*change.kind.group, &*change.kind.plural) {
        ("", "pods") => {
            let (old, new) = (before.pods.get(&change.key), after.pods.get(&change.key));
            if new.is_some_and(|pod| is_due(pod)) {
                wake(change.key.clone());
            }
            let there = |pod: &&Arc<Pod>| !node_of(pod).is_empty() && !is_finished(pod);
            match (old.filter(there), new.filter(there)) {
                // Its resources, host ports and exclusive claims are free.
                (Some(_), None) => wake(everybody()),
                (None, Some(_)) if some(Index::PodsLookingAtOthers) => wake(everybody()),
                // It was made smaller where it is, or is another one to those that want to be near it or far from it.
                (Some(old), Some(new))
                    if old.metadata.labels != new.metadata.labels
                        || old.spec != new.spec && resources::of_pod(old) != resources::of_pod(new) =>
                {
                    wake(everybody());
                }
                _ => {}
            }
            let kept =
                |snapshot: &Snapshot| snapshot.pods.get(&change.key).and_then(|pod| kept_on(pod)).map(str::to_owned);
            if let Some(node) = kept(before)
                && kept(after).as_ref() != Some(&node)
                && new.is_none_or(|pod| node_of(pod) != node)
            {
                // The room that was kept for it there is anybody's.
                wake(everybody());
            }
        }
        ("", "namespaces") => {
            // Affinity may be to the pods of namespaces with certain labels.
            let labels = |snapshot: &Snapshot| snapshot.namespaces.get(&change.key)?.metadata.labels.clone();
            if labels(before) != labels(after) {
                wake(everybody());
            }
        }
        ("", "nodes") => {
            let shape = |snapshot: &Snapshot| {
                let node = snapshot.nodes.get(&change.key)?;
                let labels = (node.metadata.labels.clone(), offers(node));
                Some((labels, node.spec.clone(), resources::of_node(node)))
            };
            if shape(before) != shape(after) {
                wake(everybody());
            }
        }
        ("", "persistentvolumeclaims") => wake_users(after, &change.key, wake),
        ("", "persistentvolumes") if some(Index::PodsPendingClaims) => {
            let [old, new] = [before, after].map(|snapshot| snapshot.persistent_volumes.get(&change.key));
            let promised = |volume: Option<&Arc<PersistentVolume>>| volume.map_or(0, |volume| room::promised(volume));
            match new.and_then(|volume| crate::volume::claim_ref(volume)).map(crate::volume::claim_key) {
                // Those whose claim it is for; nobody else may have it. They don't gain room by it, either.
                Some(claim) if promised(old) <= promised(new) => wake_users(after, &claim, wake),
                _ => wake(everybody()),
            }
        }
        ("storage.k8s.io", "storageclasses") | ("snapshot.storage.k8s.io", _) if some(Index::PodsPendingClaims) => {
            wake(everybody());
        }
        _ => {}
    }
}

/// Where a node keeps volumes, how much it may promise, and which host ports it does not give.
fn offers(node: &Node) -> [String; 3] {
    use crate::volume::{VOLUME_ROOT, annotation};
    [VOLUME_ROOT, room::VOLUME_CAPACITY, resources::RESERVED_PORTS]
        .map(|name| annotation(&node.metadata, name).to_owned())
}

/// The node where room is kept for a pod that waits for others to go.
fn kept_on(pod: &Pod) -> Option<&str> {
    let node = pod.status.as_ref()?.nominated_node_name.as_deref()?;
    (node_of(pod).is_empty() && is_active(pod)).then_some(node)
}

/// The pods that wait for a claim: their own, or what their own is to be a copy of.
fn wake_users(after: &Snapshot, claim: &ObjectKey, wake: &mut dyn FnMut(ObjectKey)) {
    let copies = after.indexes.get(Index::ClaimsWanting, "PersistentVolumeClaim", &claim.name);
    let copies = copies.filter(|copy| copy.namespace == claim.namespace);
    for claim in copies.chain([claim]) {
        let users = after.found::<Pod>(Index::PodsUsing, &claim.namespace, &claim.name);
        users.filter(|(_, pod)| is_due(pod)).for_each(|(key, _)| wake(key.clone()));
    }
}

fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or("")
}

/// Whether a pod is this scheduler's to place.
fn is_due(pod: &Pod) -> bool {
    let Some(spec) = pod.spec.as_ref() else { return false };
    node_of(pod).is_empty() && is_active(pod) && spec.scheduler_name.as_deref().unwrap_or(NAME) == NAME
}

/// What is said of a pod whose `schedulingGates` somebody has yet to take away.
fn gated(pod: &Pod, now: Timestamp) -> Option<Decision> {
    let gates = pod.spec.as_ref().and_then(|spec| spec.scheduling_gates.as_ref());
    gates.filter(|gates| !gates.is_empty())?;
    let message = "Scheduling is blocked due to non-empty scheduling gates".to_owned();
    let writes = not_scheduled(pod, "SchedulingGated", &message, None, now).into_iter().collect();
    Some(Decision { writes, waiting: vec![Waiting::NoNodeFits { message }], ..Decision::default() })
}

fn bind(decision: &mut Decision, pod: &Pod, node: &Node) {
    let (key, node) = (key_of(&pod.metadata), node.metadata.name.clone().unwrap_or_default());
    let message = format!("Successfully assigned {key} to {node}");
    decision.events.push(Event::normal(&kinds::POD, &pod.metadata, "Scheduled", message));
    decision.writes.push(Write::Bind { key, uid: pod.metadata.uid.clone().unwrap_or_default(), node });
}

fn unschedulable(pod: &Pod, message: String, now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    if let Some(at) = told_at(pod, &message).filter(|at| *at > now) {
        // Only the words have changed: what many pods say of nodes that come and go is not written for each time (X7).
        decision.wake(at);
    } else if let Some(write) = not_scheduled(pod, "Unschedulable", &message, None, now) {
        decision.writes.push(write);
        decision.events.push(Event::warning(&kinds::POD, &pod.metadata, "FailedScheduling", message.clone()));
    }
    decision.waiting.push(Waiting::NoNodeFits { message });
    decision
}

/// The shortest and the longest time between two writes that change only why a pod has no node.
const TELL_AGAIN: [SignedDuration; 2] = [SignedDuration::from_secs(1), SignedDuration::from_secs(60)];

/// When other words may be written of a pod that was told to have no node: the pause is as long as it has been said,
/// so that it doubles. `None`: at once, as the first change is.
fn told_at(pod: &Pod, message: &str) -> Option<Timestamp> {
    let old = condition(pod, "PodScheduled")?;
    let is_other = old.reason.as_deref() == Some("Unschedulable") && old.message.as_deref() != Some(message);
    let last = old.last_probe_time.as_ref().filter(|_| is_other)?.0;
    let since = old.last_transition_time.as_ref().map_or(last, |time| time.0);
    let pause = last.duration_since(since).clamp(TELL_AGAIN[0], TELL_AGAIN[1]);
    last.checked_add(pause).ok()
}

/// The condition PodScheduled=False, unless it says so already. The list of conditions is replaced whole, hence the
/// resourceVersion.
fn not_scheduled(pod: &Pod, reason: &str, message: &str, nominated: Option<&str>, now: Timestamp) -> Option<Write> {
    let old = condition(pod, "PodScheduled");
    let same = |old: &PodCondition| {
        old.status == "False" && old.reason.as_deref() == Some(reason) && old.message.as_deref() == Some(message)
    };
    let known = pod.status.as_ref().and_then(|status| status.nominated_node_name.as_deref());
    if old.is_some_and(same) && nominated.is_none_or(|node| known == Some(node)) {
        return None;
    }
    let said = old.filter(|old| old.status == "False");
    let since = said.and_then(|old| old.last_transition_time.clone());
    let scheduled = PodCondition {
        type_: "PodScheduled".to_owned(),
        status: "False".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        // When it was said in other words last; see `told_at`.
        last_probe_time: said.map(|_| Time(now)),
        last_transition_time: Some(since.unwrap_or(Time(now))),
        ..PodCondition::default()
    };
    let others = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .filter(|condition| condition.type_ != "PodScheduled");
    let conditions: Vec<PodCondition> = others.cloned().chain([scheduled]).collect();
    let mut status = json!({"conditions": conditions});
    if let Some(node) = nominated {
        status["nominatedNodeName"] = json!(node);
    }
    Some(guarded_status(&kinds::POD, &pod.metadata, status))
}
