//! ReplicaSets: a number of equal pods.
//!
//! Relies on: the driver's read-your-writes, so that a pod is counted as soon as it is made.
//! Guarantees: S10; what is deleted is upstream's choice (pods that serve least go first); a decision that is cut makes
//! or deletes fewer pods, never others.
//!
//! Differs: names of pods are made here, from the set's uid and the snapshot's revision, and not by the API server: a
//! decision that is made again on the same snapshot is the same decision.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use mainstay_api::kinds::{POD, REPLICA_SET};
use mainstay_api::{Kind, ObjectKey};
use serde_json::json;

use crate::decision::{Controller, Decision, Event, Verb, Waiting, Write};
use crate::history::suffix;
use crate::ownership::{Owner, candidates, controller_of};
use crate::pod_template;
use crate::pods::{self, is_active, is_terminating, selects, selects_everything};
use crate::snapshot::{Change, Objects, Snapshot, Streak};

#[cfg(test)]
mod tests;

/// How many pods one decision makes or deletes at most; upstream's burst.
const MAX_WRITES: usize = 500;

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "replicaset-controller",
    permits: &[
        (Verb::Create, "pods"),
        (Verb::Patch, "pods"),
        (Verb::Delete, "pods"),
        (Verb::PatchStatus, "replicasets"),
    ],
    reads: &["replicasets", "pods", "namespaces"],
    keys,
    reconcile: |snapshot, key, now| observe(snapshot, key).map(|observed| decide(&observed, now)).unwrap_or_default(),
    many: None,
};

fn keys(_: &Snapshot, after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    let namespace = &change.key.namespace;
    if change.kind == REPLICA_SET {
        wake(change.key.clone());
    } else if change.kind == POD {
        for meta in change.old.iter().chain(&change.new).map(|meta| &meta.metadata) {
            match controller_of(meta) {
                Some(owner) if owner.kind == REPLICA_SET.kind => {
                    wake(ObjectKey::new(namespace.clone(), owner.name.as_str()))
                }
                Some(_) => {}
                None => after
                    .selecting::<ReplicaSet>(namespace, meta.labels.as_ref())
                    .filter(|(_, set)| selects(&set.spec.selector, meta.labels.as_ref()))
                    .for_each(|(key, _)| wake(key.clone())),
            }
        }
    }
}

/// One set and its pods.
pub struct Observed<'a> {
    /// ReplicaSet, or ReplicationController.
    kind: &'static Kind,
    set: Cow<'a, ReplicaSet>,
    /// Its own pods, whatever their state.
    pods: Vec<&'a Pod>,
    /// Active pods per node of all sets of the same Deployment: where they are doubled up, they go first.
    related: BTreeMap<&'a str, usize>,
    ownership: Vec<Write>,
    all_pods: &'a Objects<Pod>,
    revision: u64,
    /// Since when nodes refuse its pods.
    refused: Option<Streak>,
    namespace_terminating: bool,
}

/// The set at `key` and its pods.
pub fn observe<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<Observed<'a>> {
    Some(observe_as(snapshot, &REPLICA_SET, Cow::Borrowed(snapshot.replica_sets.get(key)?)))
}

/// A set of `kind` and its pods. A ReplicationController is seen as a ReplicaSet.
pub fn observe_as<'a>(snapshot: &'a Snapshot, kind: &'static Kind, set: Cow<'a, ReplicaSet>) -> Observed<'a> {
    let namespace = set.metadata.namespace.clone().unwrap_or_default();
    let owner = Owner { kind, meta: &set.metadata, selector: &set.spec.selector };
    let mut ownership = Vec::new();
    let candidates = candidates(snapshot, &set.metadata, &set.spec.selector).into_iter();
    let matching = !selects_everything(&set.spec.selector);
    // A finished pod is nobody's to adopt: it would only be counted out again.
    let own = owner.sort(
        &POD,
        candidates,
        |pod| &pod.metadata,
        |pod| matching && !pods::is_finished(pod) || is_own(pod, &set),
        &mut ownership,
    );
    let deployment = controller_of(&set.metadata).map(|owner| owner.uid.as_str());
    let others = deployment.into_iter().flat_map(|uid| snapshot.owned_by::<ReplicaSet>(uid));
    let siblings: BTreeSet<&str> = others
        .filter(|(other, sibling)| {
            *other.namespace == *namespace
                && controller_of(&sibling.metadata).map(|owner| owner.uid.as_str()) == deployment
        })
        .filter_map(|(_, other)| other.metadata.uid.as_deref())
        .chain(set.metadata.uid.as_deref())
        .collect();
    let mut related = BTreeMap::new();
    for uid in siblings {
        let pods = snapshot.owned_by::<Pod>(uid).map(|(_, pod)| pod).filter(|pod| is_active(pod));
        for pod in pods.filter(|pod| controller_of(&pod.metadata).is_some_and(|owner| owner.uid == uid)) {
            *related.entry(node(pod)).or_insert(0) += 1;
        }
    }
    let namespace = snapshot.namespaces.get(&ObjectKey::new("", namespace));
    let refused = snapshot.refused(set.metadata.uid.as_deref().unwrap_or(""), "", "");
    Observed {
        refused,
        kind,
        set,
        pods: own,
        related,
        ownership,
        all_pods: &snapshot.pods,
        revision: snapshot.revision,
        namespace_terminating: namespace.is_some_and(|namespace| is_terminating(&namespace.metadata)),
    }
}

fn is_own(pod: &Pod, set: &ReplicaSet) -> bool {
    controller_of(&pod.metadata).is_some_and(|owner| Some(&owner.uid) == set.metadata.uid.as_ref())
}

fn node(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or("")
}

/// One step of the set.
pub fn decide(o: &Observed, now: Timestamp) -> Decision {
    let mut d = Decision::default();
    o.ownership.iter().for_each(|write| d.push_apart(write.clone()));
    if !d.writes.is_empty() {
        return d;
    }
    let active: Vec<&Pod> = o.pods.iter().copied().filter(|pod| is_active(pod)).collect();
    let wanted = usize::try_from(o.set.spec.replicas.unwrap_or(1)).unwrap_or(0);
    if is_terminating(&o.set.metadata) {
        // The garbage collector decides about the pods.
    } else if wanted > active.len() && o.namespace_terminating {
        d.waiting.push(Waiting::NamespaceTerminating);
    } else if wanted > active.len() {
        create_in_time(o, &active, wanted - active.len(), now, &mut d);
    } else {
        delete(o, active.clone(), active.len() - wanted, &mut d);
    }
    // After the pods that are deleted, since whoever reads that this generation was seen may count on it (a decision
    // may be cut anywhere); before those that are made, so that it is written also where one of them is refused.
    status(o, &active, wanted, now, &mut d);
    d.create_last(&[&POD]);
    d
}

/// Makes what is missing. While nodes refuse the set's pods one is made to try, later and later (X7).
fn create_in_time(o: &Observed, active: &[&Pod], missing: usize, now: Timestamp, d: &mut Decision) {
    let created = |pod: &&Pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    match o.refused.map(|streak| streak.until(active.iter().filter_map(created).max())) {
        Some(at) if at > now => {
            d.waiting.push(Waiting::Backoff);
            d.wake(at);
        }
        Some(_) => create(o, 1, d),
        None => create(o, missing.min(MAX_WRITES), d),
    }
}

fn create(o: &Observed, count: usize, d: &mut Decision) {
    let (namespace, uid) =
        (o.set.metadata.namespace.as_deref().unwrap_or(""), o.set.metadata.uid.as_deref().unwrap_or(""));
    let prefix = format!("{}-", o.set.metadata.name.as_deref().unwrap_or(""));
    let template = o.set.spec.template.clone().unwrap_or_default();
    let mut taken = Vec::new();
    // Twice the count leaves room for names that are taken; more collisions than that wait for the next snapshot.
    for index in 0..count.saturating_mul(2) as u64 {
        let name = pod_template::name(&prefix, &suffix(uid, o.revision, index));
        if o.all_pods.contains_key(&ObjectKey::new(namespace, name.as_str())) || taken.contains(&name) {
            continue;
        }
        d.apart(|d| {
            d.writes.push(Write::Create {
                kind: POD.clone(),
                object: pod_template::pod(&template, o.kind, &o.set.metadata, &prefix, &name),
            });
            d.events.push(Event::normal(o.kind, &o.set.metadata, "SuccessfulCreate", format!("Created pod: {name}")));
        });
        taken.push(name);
        if taken.len() == count {
            return;
        }
    }
}

fn delete(o: &Observed, mut active: Vec<&Pod>, count: usize, d: &mut Decision) {
    active.sort_by_cached_key(|pod| rank(o, pod));
    for pod in active.into_iter().take(count.min(MAX_WRITES)) {
        d.apart(|d| {
            d.writes.push(Write::delete(&POD, &pod.metadata));
            let name = pod.metadata.name.as_deref().unwrap_or("");
            d.events.push(Event::normal(o.kind, &o.set.metadata, "SuccessfulDelete", format!("Deleted pod: {name}")));
        });
    }
}

/// Which pod goes first, smallest first: not bound, Pending, not Ready, of lower `pod-deletion-cost`, with more related
/// pods on its node, Ready for a shorter time, restarted more often, younger. Upstream's order.
fn rank(o: &Observed, pod: &Pod) -> impl Ord + use<> {
    let phase = match pods::phase(pod) {
        "Running" => 2,
        "Unknown" => 1,
        _ => 0,
    };
    let annotations = pod.metadata.annotations.as_ref();
    let cost = annotations
        .and_then(|all| all.get("controller.kubernetes.io/pod-deletion-cost")?.parse::<i32>().ok())
        .unwrap_or(0);
    let doubled = o.related.get(node(pod)).copied().unwrap_or(0);
    ((!node(pod).is_empty(), phase, pods::is_ready(pod), cost, std::cmp::Reverse(doubled)), pod_template::age_rank(pod))
}

/// The conditions, without that of a failure that is over: nothing has to be made or deleted any more.
fn conditions(old: Option<&[ReplicaSetCondition]>, is_wrong: bool) -> Option<Vec<ReplicaSetCondition>> {
    let kept = old?.iter().filter(|condition| is_wrong || condition.type_.as_deref() != Some(REPLICA_FAILURE)).cloned();
    Some(kept.collect::<Vec<_>>()).filter(|kept| !kept.is_empty())
}

/// Upstream's condition of a set whose pods are refused; the driver sets it when it meets a refusal.
pub const REPLICA_FAILURE: &str = "ReplicaFailure";

fn status(o: &Observed, active: &[&Pod], wanted: usize, now: Timestamp, d: &mut Decision) {
    let min_ready = o.set.spec.min_ready_seconds.unwrap_or(0);
    let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
    let template = o.set.spec.template.as_ref().and_then(|template| template.metadata.as_ref()?.labels.as_ref());
    let labeled = |pod: &&&Pod| {
        template
            .into_iter()
            .flatten()
            .all(|(label, value)| pod.metadata.labels.as_ref().and_then(|all| all.get(label)) == Some(value))
    };
    for at in active.iter().filter_map(|pod| pods::available_at(pod, min_ready)).filter(|at| *at > now) {
        d.waiting.push(Waiting::NotYetAvailable);
        d.wake(at);
    }
    let terminating = o.pods.iter().filter(|pod| is_terminating(&pod.metadata) && !pods::is_finished(pod)).count();
    let old = o.set.status.clone().unwrap_or_default();
    let new = ReplicaSetStatus {
        replicas: number(active.len()),
        fully_labeled_replicas: Some(number(active.iter().filter(labeled).count())),
        ready_replicas: Some(number(active.iter().filter(|pod| pods::is_ready(pod)).count())),
        available_replicas: Some(number(active.iter().filter(|pod| pods::is_available(pod, min_ready, now)).count())),
        // A ReplicationController has no such field.
        terminating_replicas: Some(number(terminating)).filter(|_| *o.kind == REPLICA_SET),
        observed_generation: o.set.metadata.generation,
        conditions: conditions(old.conditions.as_deref(), active.len() != wanted),
    };
    if new != old {
        let mut status = json!(new);
        if new.conditions.is_none() && old.conditions.is_some() {
            status["conditions"] = serde_json::Value::Null;
        }
        d.writes.push(Write::patch_status(o.kind, &o.set.metadata, status));
    }
}
