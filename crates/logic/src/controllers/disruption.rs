//! PodDisruptionBudgets: how many of some pods may be evicted now.
//!
//! Relies on: the API server's eviction, which takes one off `disruptionsAllowed` and notes the pod in `disruptedPods`
//! in the transaction that deletes it; the workloads for how many pods there shall be.
//! Guarantees: a pod that is noted there does not count as healthy until it is gone or two minutes have passed, so that
//! no eviction is counted on twice; the status is guarded by resourceVersion, since the eviction writes it too.
//!
//! Differs: the scale of a custom resource is not known here: its pods are unmanaged where a budget needs it.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use mainstay_api::ObjectKey;
use mainstay_api::kinds::{DEPLOYMENT, POD, POD_DISRUPTION_BUDGET, REPLICA_SET, REPLICATION_CONTROLLER, STATEFUL_SET};
use mainstay_api::selector::Labels;
use serde_json::json;

use crate::decision::{Controller, Decision, Event, Verb, Write};
use crate::ownership::controller_of;
use crate::pods::{is_ready, is_terminating, scaled, selects};
use crate::snapshot::{Change, Snapshot, in_namespace};

/// How long an evicted pod is taken for gone although it is still there; upstream's.
const PATIENCE: SignedDuration = SignedDuration::from_secs(120);
/// The condition that says whether a pod may be evicted.
const ALLOWED: &str = "DisruptionAllowed";

#[cfg(test)]
mod tests;

/// What upstream says of pods that no workload controls.
const UNMANAGED: &str = "were found to be unmanaged. As a result, the status of the PDB cannot be calculated \
    correctly, which may result in undefined behavior. To account for these pods please set \".spec.minAvailable\" \
    field of the PDB to an integer value.";

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "disruption-controller",
    permits: &[(Verb::PatchStatus, "poddisruptionbudgets")],
    reads: &["poddisruptionbudgets", "pods", "deployments", "replicasets", "statefulsets", "replicationcontrollers"],
    keys,
    reconcile: |snapshot, key, now| observe(snapshot, key).map(|observed| decide(&observed, now)).unwrap_or_default(),
    many: None,
};

fn keys(before: &Snapshot, after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    let namespace = &change.key.namespace;
    if change.kind == POD_DISRUPTION_BUDGET {
        wake(change.key.clone());
    } else if change.kind == POD {
        for meta in change.old.iter().chain(&change.new).map(|meta| &meta.metadata) {
            after
                .selecting::<PodDisruptionBudget>(namespace, meta.labels.as_ref())
                .filter(|(_, budget)| guards(budget, meta.labels.as_ref()))
                .for_each(|(key, _)| wake(key.clone()));
        }
    } else if [&DEPLOYMENT, &REPLICA_SET, &STATEFUL_SET, &REPLICATION_CONTROLLER].contains(&&change.kind)
        && size(before, change) != size(after, change)
    {
        in_namespace(&after.pod_disruption_budgets, namespace).for_each(|(key, _)| wake(key.clone()));
    }
}

fn size(snapshot: &Snapshot, change: &Change) -> Option<i32> {
    let kind = &change.kind;
    scale_of(snapshot, &kind.api_version(), &kind.kind, &change.key, None).map(|(_, replicas)| replicas)
}

/// Whether a budget is about pods with these labels.
fn guards(budget: &PodDisruptionBudget, labels: Option<&BTreeMap<String, String>>) -> bool {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| selects(selector, labels))
}

/// A budget and its pods.
pub struct Observed<'a> {
    budget: &'a PodDisruptionBudget,
    pods: Vec<&'a Pod>,
    /// By uid of each workload that controls one of them: how many pods it shall have.
    scales: BTreeMap<String, i32>,
    /// A pod whose workload is not known.
    unknown: Option<&'a str>,
    /// Pods that nobody controls.
    unmanaged: bool,
}

/// The budget at `key` and its pods.
pub fn observe<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<Observed<'a>> {
    let budget = snapshot.pod_disruption_budgets.get(key)?;
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let all = selector.map(|selector| snapshot.selected::<Pod>(&key.namespace, selector)).unwrap_or_default();
    let pods: Vec<&Pod> = all.into_iter().map(|(_, pod)| &**pod).collect();
    let (mut scales, mut unknown, mut unmanaged) = (BTreeMap::new(), None, false);
    for pod in &pods {
        let Some(owner) = controller_of(&pod.metadata) else {
            unmanaged = true;
            continue;
        };
        if scales.contains_key(&owner.uid) {
            continue;
        }
        match workload(snapshot, key, owner) {
            Some((uid, replicas)) => {
                // Several ReplicaSets of one Deployment are one workload.
                scales.insert(uid, replicas);
            }
            None => unknown = unknown.or(pod.metadata.name.as_deref()),
        }
    }
    Some(Observed { budget, pods, scales, unknown, unmanaged })
}

/// The uid and the size of the workload behind an owner: a Deployment behind its ReplicaSet.
fn workload(snapshot: &Snapshot, key: &ObjectKey, owner: &OwnerReference) -> Option<(String, i32)> {
    let own = ObjectKey::new(key.namespace.clone(), owner.name.as_str());
    if owner.kind == REPLICA_SET.kind {
        let set = snapshot.replica_sets.get(&own).filter(|set| set.metadata.uid.as_ref() == Some(&owner.uid))?;
        if let Some(above) = controller_of(&set.metadata).filter(|above| above.kind == DEPLOYMENT.kind) {
            let above_key = ObjectKey::new(key.namespace.clone(), above.name.as_str());
            return scale_of(snapshot, &above.api_version, &above.kind, &above_key, Some(&above.uid));
        }
    }
    scale_of(snapshot, &owner.api_version, &owner.kind, &own, Some(&owner.uid))
}

fn scale_of(
    snapshot: &Snapshot,
    api_version: &str,
    kind: &str,
    key: &ObjectKey,
    uid: Option<&String>,
) -> Option<(String, i32)> {
    let is = |of: &mainstay_api::Kind| of.kind == kind && of.api_version() == api_version;
    let (found, replicas) = if is(&DEPLOYMENT) {
        let found = snapshot.deployments.get(key)?;
        (&found.metadata, found.spec.replicas)
    } else if is(&REPLICA_SET) {
        let found = snapshot.replica_sets.get(key)?;
        (&found.metadata, found.spec.replicas)
    } else if is(&STATEFUL_SET) {
        let found = snapshot.stateful_sets.get(key)?;
        (&found.metadata, found.spec.replicas)
    } else if is(&REPLICATION_CONTROLLER) {
        let found = snapshot.replication_controllers.get(key)?;
        (&found.metadata, found.spec.as_ref().and_then(|spec| spec.replicas))
    } else {
        return None;
    };
    let of = found.uid.clone().unwrap_or_default();
    uid.is_none_or(|uid| *uid == of).then(|| (of, replicas.unwrap_or(1)))
}

/// The budget's status.
pub fn decide(o: &Observed, now: Timestamp) -> Decision {
    let mut d = Decision::default();
    let meta = &o.budget.metadata;
    let old = o.budget.status.clone().unwrap_or_default();
    let mut new = old.clone();
    new.observed_generation = meta.generation;
    match expected(o) {
        Ok((expected, desired)) => {
            if o.unmanaged && !matches!(minimum(o), Some(IntOrString::Int(_))) {
                let wanted = o.budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
                let wanted = Labels::from_typed(wanted).map(|labels| labels.to_string()).unwrap_or_default();
                let message = format!("Pods selected by this PodDisruptionBudget (selector: {wanted}) {UNMANAGED}");
                d.events.push(Event::warning(&POD_DISRUPTION_BUDGET, meta, "UnmanagedPods", message));
            }
            if o.pods.is_empty() {
                let message = "No matching pods found".to_owned();
                d.events.push(Event::normal(&POD_DISRUPTION_BUDGET, meta, "NoPods", message));
            }
            let disrupted = still_disrupted(o, &old, now, &mut d);
            let healthy = |pod: &&&Pod| {
                let name = pod.metadata.name.as_deref().unwrap_or("");
                is_ready(pod) && !is_terminating(&pod.metadata) && !disrupted.contains_key(name)
            };
            let current = i32::try_from(o.pods.iter().filter(healthy).count()).unwrap_or(i32::MAX);
            let allowed = current.saturating_sub(desired).max(0);
            let allowed = if expected > 0 { allowed } else { 0 };
            new.expected_pods = Some(expected);
            new.desired_healthy = Some(desired);
            new.current_healthy = Some(current);
            new.disruptions_allowed = Some(allowed);
            new.disrupted_pods = Some(disrupted).filter(|pods| !pods.is_empty());
            let reason = if allowed > 0 { "SufficientPods" } else { "InsufficientPods" };
            say(&mut new, reason, "", now);
        }
        Err(why) => {
            let message = format!("Failed to calculate the number of expected pods: {why}");
            let reason = "CalculateExpectedPodCountFailed";
            d.events.push(Event::warning(&POD_DISRUPTION_BUDGET, meta, reason, message));
            new.disruptions_allowed = Some(0);
            say(&mut new, "SyncFailed", &why, now);
        }
    }
    if let Some(mut write) = Write::change_status(&POD_DISRUPTION_BUDGET, meta, &json!(old), &json!(new)) {
        if let Write::Patch { resource_version, .. } = &mut write {
            resource_version.clone_from(&meta.resource_version);
        }
        d.writes.push(write);
    }
    // Events that repeat with every look would tell nobody anything new.
    if d.writes.is_empty() {
        d.events.clear();
    }
    d
}

/// `spec.minAvailable`.
fn minimum<'a>(o: &Observed<'a>) -> Option<&'a IntOrString> {
    o.budget.spec.as_ref().and_then(|spec| spec.min_available.as_ref())
}

/// How many pods there shall be, and how many of them healthy.
fn expected(o: &Observed) -> Result<(i32, i32), String> {
    let Some(spec) = &o.budget.spec else { return Ok((0, 0)) };
    let total = || match o.unknown {
        Some(pod) => Err(format!("found no controllers for pod {pod:?}")),
        None => Ok(o.scales.values().fold(0_i32, |sum, replicas| sum.saturating_add(*replicas))),
    };
    let there = i32::try_from(o.pods.len()).unwrap_or(i32::MAX);
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(most), _) => {
            let expected = total()?;
            Ok((expected, expected.saturating_sub(scaled(most, expected, true)).max(0)))
        }
        (None, Some(IntOrString::Int(least))) => Ok((there, *least)),
        (None, Some(share)) => {
            let expected = total()?;
            Ok((expected, scaled(share, expected, true)))
        }
        // Upstream's default: one pod has to stay.
        (None, None) => Ok((there, 1)),
    }
}

/// The evicted pods that are still there and may yet go.
fn still_disrupted(
    o: &Observed,
    old: &PodDisruptionBudgetStatus,
    now: Timestamp,
    d: &mut Decision,
) -> BTreeMap<String, Time> {
    let mut rest = BTreeMap::new();
    for (name, since) in old.disrupted_pods.iter().flatten() {
        let Some(pod) = o.pods.iter().find(|pod| pod.metadata.name.as_ref() == Some(name)) else { continue };
        if is_terminating(&pod.metadata) {
            continue;
        }
        let end = since.0.checked_add(PATIENCE).unwrap_or(since.0);
        if end <= now {
            let budget = &o.budget.metadata;
            let (namespace, of) = (budget.namespace.as_deref().unwrap_or(""), budget.name.as_deref().unwrap_or(""));
            let message = format!("Pod was expected by PDB {namespace}/{of} to be deleted but it wasn't");
            d.events.push(Event::warning(&POD, &pod.metadata, "NotDeleted", message));
            continue;
        }
        d.wake(end);
        rest.insert(name.clone(), since.clone());
    }
    rest
}

/// The condition; its time moves with its status.
fn say(status: &mut PodDisruptionBudgetStatus, reason: &str, message: &str, now: Timestamp) {
    let value = if reason == "SufficientPods" { "True" } else { "False" };
    let conditions = status.conditions.get_or_insert_default();
    let before = conditions.iter().position(|condition| condition.type_ == ALLOWED);
    let since = before.and_then(|at| conditions.get(at)).filter(|old| old.status == value);
    let condition = Condition {
        type_: ALLOWED.to_owned(),
        status: value.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: status.observed_generation,
        last_transition_time: since.map_or(Time(now), |old| old.last_transition_time.clone()),
    };
    match before.and_then(|at| conditions.get_mut(at)) {
        Some(old) => *old = condition,
        None => conditions.push(condition),
    }
}
