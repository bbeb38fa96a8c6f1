//! The scheduler: a node for each pod that has none, together with the volumes that it needs there. Key: the pod.
//!
//! Relies on: the API server refusing a second binding of a pod; the driver deciding on nothing older than its own
//! last commit; nodes saying their resources and their volume root.
//! Guarantees V1 (through [`crate::volume`]: claimRef by uid, guarded, before the claim, before the pod), V5 (a bound
//! volume's node affinity is never overruled), V10 (a node promises no more room than it has), V6 (a fresh claim gets
//! a fresh directory), V9. After a cut the volumes
//! made so far belong to the claim, and the next decision goes where they are.
//! Differs: ReadWriteOnce is held to one node for every kind of volume, not only attachable ones; there is no
//! preemption;
//! nodes are not scored by image locality.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use mainstay_api::{ObjectKey, kinds};
use serde_json::json;

use crate::decision::{Controller, Decision, Event, Verb, Waiting, Write, key_of};
use crate::pods::{condition, is_active, is_finished, is_terminating};
use crate::snapshot::{Change, Snapshot};

pub(crate) mod affinity;
pub(crate) mod resources;
#[cfg(test)]
pub(crate) mod tests;
mod volumes;

pub use volumes::{claim_names, uses};

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: NAME,
    permits: &[
        (Verb::Bind, "pods"),
        (Verb::PatchStatus, "pods"),
        (Verb::Create, "persistentvolumes"),
        (Verb::Patch, "persistentvolumes"),
        (Verb::Patch, "persistentvolumeclaims"),
        (Verb::PatchStatus, "persistentvolumeclaims"),
    ],
    reads: crate::volume::READS,
    keys,
    reconcile: |snapshot, key, now| observe(snapshot, key).map(|observed| decide(&observed, now)).unwrap_or_default(),
};

/// Pods that name another scheduler are left to it.
const NAME: &str = "default-scheduler";
/// What a preferred term weighs beside the resource score, as upstream's plugin weights.
const AFFINITY_WEIGHT: i64 = 2;
/// What a soft taint takes off a node's score.
const SOFT_TAINT: i64 = 300;
/// What each pod of the same controller takes off a node's score.
const SIBLING: i64 = 50;

/// A pod without a node, and everything it may be placed beside.
pub struct Observed<'a> {
    pod: &'a Pod,
    snapshot: &'a Snapshot,
}

/// A node that will do.
struct Candidate<'a> {
    node: &'a Node,
    bindings: Vec<volumes::Binding<'a>>,
    score: i64,
}

fn keys(before: &Snapshot, after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    let pending = |wake: &mut dyn FnMut(ObjectKey)| after.pods_of_node("").for_each(|(key, _)| wake(key.clone()));
    match (&*change.kind.group, &*change.kind.plural) {
        ("", "pods") => {
            let (old, new) = (before.pods.get(&change.key), after.pods.get(&change.key));
            if new.is_some_and(|pod| node_of(pod).is_empty()) {
                wake(change.key.clone());
            }
            let there = |pod: &&std::sync::Arc<Pod>| !node_of(pod).is_empty() && !is_finished(pod);
            match (old.filter(there), new.filter(there)) {
                // Its resources, host ports and exclusive claims are free.
                (Some(_), None) => pending(wake),
                (None, Some(_)) => {
                    after
                        .pods_of_node("")
                        .filter(|(_, pod)| affinity::looks_at_others(pod))
                        .for_each(|(key, _)| wake(key.clone()));
                }
                _ => {}
            }
        }
        ("", "nodes") => {
            let fingerprint = |snapshot: &Snapshot| {
                let node = snapshot.nodes.get(&change.key)?;
                let labels = (node.metadata.labels.clone(), volume_room(node));
                Some((labels, node.spec.clone(), node.status.as_ref().and_then(|status| status.allocatable.clone())))
            };
            if fingerprint(before) != fingerprint(after) {
                pending(wake);
            }
        }
        ("", "persistentvolumeclaims") => {
            let using = |(_, pod): &(&ObjectKey, &std::sync::Arc<Pod>)| {
                pod.metadata.namespace.as_deref() == Some(&*change.key.namespace) && uses(pod, &change.key.name)
            };
            after.pods_of_node("").filter(using).for_each(|(key, _)| wake(key.clone()));
        }
        ("", "persistentvolumes") | ("storage.k8s.io", "storageclasses") | ("snapshot.storage.k8s.io", _) => {
            after
                .pods_of_node("")
                .filter(|(_, pod)| !claim_names(pod).is_empty())
                .for_each(|(key, _)| wake(key.clone()));
        }
        _ => {}
    }
}

/// Where a node keeps volumes, and how much it may promise.
fn volume_room(node: &Node) -> [String; 2] {
    use crate::volume::{VOLUME_ROOT, annotation, room};
    [VOLUME_ROOT, room::VOLUME_CAPACITY].map(|name| annotation(&node.metadata, name).to_owned())
}

fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or("")
}

fn observe<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<Observed<'a>> {
    let pod = snapshot.pods.get(key)?;
    let scheduler = pod.spec.as_ref()?.scheduler_name.as_deref().unwrap_or(NAME);
    (node_of(pod).is_empty() && is_active(pod) && scheduler == NAME).then_some(Observed { pod, snapshot })
}

fn decide(observed: &Observed, now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    let (pod, snapshot) = (observed.pod, observed.snapshot);
    let gates = pod.spec.as_ref().and_then(|spec| spec.scheduling_gates.as_ref());
    if gates.is_some_and(|gates| !gates.is_empty()) {
        let message = "Scheduling is blocked due to non-empty scheduling gates".to_owned();
        decision.writes.extend(not_scheduled(pod, "SchedulingGated", &message, now));
        decision.waiting.push(Waiting::NoNodeFits { message });
        return decision;
    }
    let total = snapshot.nodes.iter().count();
    if total == 0 {
        return unschedulable(pod, "no nodes available to schedule pods".to_owned(), now);
    }
    let claims = match volumes::Claims::of(snapshot, pod) {
        Ok(claims) => claims,
        Err(reason) => return unschedulable(pod, format!("0/{total} nodes are available: {reason}."), now),
    };
    let placed = affinity::Placed::of(snapshot);
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut best: Option<Candidate> = None;
    for (_, node) in &snapshot.nodes {
        match consider(observed, node, &claims, &placed) {
            // Ties go to the node whose name comes first.
            Ok(candidate) if best.as_ref().is_none_or(|best| candidate.score > best.score) => best = Some(candidate),
            Ok(_) => {}
            Err(of_node) => of_node.into_iter().for_each(|reason| *reasons.entry(reason).or_default() += 1),
        }
    }
    let Some(best) = best else {
        let mut counted: Vec<String> = reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        counted.sort();
        return unschedulable(pod, format!("0/{total} nodes are available: {}.", counted.join(", ")), now);
    };
    let (writes, events, complete) = claims.commit(&best.bindings, best.node);
    decision.writes = writes;
    decision.events = events;
    if complete {
        bind(&mut decision, pod, best.node);
    } else {
        decision.waiting.push(Waiting::NoVolume);
    }
    decision
}

fn bind(decision: &mut Decision, pod: &Pod, node: &Node) {
    let (key, node) = (key_of(&pod.metadata), node.metadata.name.clone().unwrap_or_default());
    let message = format!("Successfully assigned {key} to {node}");
    decision.events.push(Event::normal(&kinds::POD, &pod.metadata, "Scheduled", message));
    decision.writes.push(Write::Bind { key, uid: pod.metadata.uid.clone().unwrap_or_default(), node });
}

/// Runs upstream's filters in upstream's order on one node: the first that refuses gives the reasons.
fn consider<'a>(
    observed: &Observed<'a>,
    node: &'a Node,
    claims: &volumes::Claims<'a>,
    placed: &affinity::Placed<'a>,
) -> Result<Candidate<'a>, Vec<String>> {
    let pod = observed.pod;
    let refuse = |reason: &str| Err(vec![reason.to_owned()]);
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let cordon = k8s_openapi::api::core::v1::Taint {
        key: "node.kubernetes.io/unschedulable".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Default::default()
    };
    let cordoned = node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false);
    if cordoned && !tolerations.iter().any(|toleration| crate::matching::tolerates(toleration, &cordon)) {
        return refuse("node(s) were unschedulable");
    }
    // Upstream has no such filter (a new kubelet would take pods early); a node on its way out must take none.
    if is_terminating(&node.metadata) {
        return refuse("node(s) were unschedulable");
    }
    if let Some(taint) = affinity::untolerated(pod, node) {
        return Err(vec![format!("node(s) had untolerated taint {taint}")]);
    }
    if !affinity::admits_node(pod, node) {
        return refuse("node(s) didn't match Pod's node affinity/selector");
    }
    let name = node.metadata.name.as_deref().unwrap_or("");
    let there = || observed.snapshot.pods_of_node(name).map(|(_, pod)| &**pod).filter(|pod| !is_finished(pod));
    let ports = resources::host_ports(pod);
    if !ports.is_empty() && there().any(|other| resources::collide(&ports, &resources::host_ports(other))) {
        return refuse("node(s) didn't have free ports for the requested pod ports");
    }
    let (wanted, has) = (resources::of_pod(pod), resources::of_node(node));
    let (used, count) = resources::used(there());
    let shortages = resources::shortages(&wanted, &has, &used, count);
    if !shortages.is_empty() {
        return Err(shortages);
    }
    let bindings = claims.on(node).map_err(|reason| vec![reason.to_owned()])?;
    if let Some(reason) = placed.skewed(pod, node).or_else(|| placed.refusal(pod, node)) {
        return refuse(reason);
    }
    let score = resources::least_allocated(&wanted, &has, &used)
        + claims.room_left(&bindings, node)
        + AFFINITY_WEIGHT
            * affinity::preference(pod, node).saturating_add(placed.preference(pod, node)).clamp(-10_000, 10_000)
        - SOFT_TAINT * affinity::soft_taints(pod, node).min(100)
        - SIBLING * placed.siblings(pod, node).min(1_000);
    Ok(Candidate { node, bindings, score })
}

fn unschedulable(pod: &Pod, message: String, now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    if let Some(write) = not_scheduled(pod, "Unschedulable", &message, now) {
        decision.writes.push(write);
        decision.events.push(Event::warning(&kinds::POD, &pod.metadata, "FailedScheduling", message.clone()));
    }
    decision.waiting.push(Waiting::NoNodeFits { message });
    decision
}

/// The condition PodScheduled=False, unless it says so already. The list of conditions is replaced whole, hence the
/// resourceVersion.
fn not_scheduled(pod: &Pod, reason: &str, message: &str, now: Timestamp) -> Option<Write> {
    let old = condition(pod, "PodScheduled");
    let same = |old: &PodCondition| {
        old.status == "False" && old.reason.as_deref() == Some(reason) && old.message.as_deref() == Some(message)
    };
    if old.is_some_and(same) {
        return None;
    }
    let since = old.filter(|old| old.status == "False").and_then(|old| old.last_transition_time.clone());
    let scheduled = PodCondition {
        type_: "PodScheduled".to_owned(),
        status: "False".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: Some(since.unwrap_or(Time(now))),
        ..PodCondition::default()
    };
    let others = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .filter(|condition| condition.type_ != "PodScheduled");
    let conditions: Vec<PodCondition> = others.cloned().chain([scheduled]).collect();
    Some(Write::Patch {
        kind: kinds::POD.clone(),
        key: key_of(&pod.metadata),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        resource_version: pod.metadata.resource_version.clone(),
        status: true,
        patch: json!({"status": {"conditions": conditions}}),
    })
}

/// The pods, finished or not, that are on a node and use a claim.
pub fn users_of<'a>(snapshot: &'a Snapshot, claim: &ObjectKey) -> BTreeSet<&'a ObjectKey> {
    let on_node =
        crate::snapshot::in_namespace(&snapshot.pods, &claim.namespace).filter(|(_, pod)| !node_of(pod).is_empty());
    on_node.filter(|(_, pod)| uses(pod, &claim.name)).map(|(key, _)| key).collect()
}
