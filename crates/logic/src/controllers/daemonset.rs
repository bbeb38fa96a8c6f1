//! DaemonSets: a pod on every node that shall have one.
//!
//! Relies on: the driver's read-your-writes; the scheduler, which binds each pod to the node that its affinity names.
//! Guarantees: S10 for pods and revisions; a node whose pod still runs gets no second one, but for a surge; a rolling
//! update makes no more pods unavailable than `maxUnavailable`, and no more than `maxSurge` pods beside an old one; S7
//! (an old pod that is not available is replaced at once); S11 (templates that are equal by content are one revision).
//!
//! A failed pod is made again one second later; where its node refuses it again and again, later and later (upstream's
//! back-off per node is for all failures).

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetSpec, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use mainstay_api::ObjectKey;
use mainstay_api::kinds::{CONTROLLER_REVISION, DAEMON_SET, NODE, POD};
use serde_json::json;

use crate::decision::{Controller, Decision, Event, Verb, Waiting, Write};
use crate::history::{self, Chosen, History, REVISION_LABEL, suffix};
use crate::ownership::{Owner, candidates, controller_of};
use crate::pod_template;
use crate::pods::{self, is_terminating, phase, selects, selects_everything};
use crate::snapshot::{Change, Objects, Snapshot, Streak};
use placement::Fit;

mod placement;
mod rollout;
#[cfg(test)]
mod tests;

/// How many pods one decision makes or deletes at most; upstream's burst.
const MAX_WRITES: usize = 250;
/// How long a failed pod stays before it is replaced, at least; the shortest of upstream's back-offs.
const FAILED_WAIT: SignedDuration = SignedDuration::from_secs(1);

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "daemonset-controller",
    permits: &[
        (Verb::Create, "pods"),
        (Verb::Patch, "pods"),
        (Verb::Delete, "pods"),
        (Verb::Create, "controllerrevisions"),
        (Verb::Patch, "controllerrevisions"),
        (Verb::Delete, "controllerrevisions"),
        (Verb::PatchStatus, "daemonsets"),
    ],
    reads: &["daemonsets", "nodes", "pods", "controllerrevisions", "namespaces"],
    keys,
    reconcile: |snapshot, key, now| observe(snapshot, key).map(|observed| decide(&observed, now)).unwrap_or_default(),
    many: None,
};

fn keys(before: &Snapshot, after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    let namespace = &change.key.namespace;
    if change.kind == DAEMON_SET {
        wake(change.key.clone());
    } else if change.kind == NODE {
        // Heartbeats concern nobody here.
        let fingerprint =
            |snapshot: &Snapshot| snapshot.nodes.get(&change.key).map(|node| placement::fingerprint(node));
        if fingerprint(before) != fingerprint(after) {
            after.daemon_sets.keys().for_each(|key| wake(key.clone()));
        }
    } else if change.kind == POD || change.kind == CONTROLLER_REVISION {
        for meta in change.old.iter().chain(&change.new).map(|meta| &meta.metadata) {
            match controller_of(meta) {
                Some(owner) if owner.kind == DAEMON_SET.kind => {
                    wake(ObjectKey::new(namespace.clone(), owner.name.as_str()))
                }
                Some(_) => {}
                None => after
                    .selecting::<DaemonSet>(namespace, meta.labels.as_ref())
                    .filter(|(_, set)| selects(&set.spec.selector, meta.labels.as_ref()))
                    .for_each(|(key, _)| wake(key.clone())),
            }
        }
    }
}

/// A DaemonSet, its pods and the nodes.
pub struct Observed<'a> {
    set: &'a DaemonSet,
    spec: &'a DaemonSetSpec,
    /// Every node, and whether it shall have a pod.
    nodes: BTreeMap<&'a str, Fit>,
    /// Its own pods by the node that they are on or meant for, oldest first; without those that have ended and go.
    pods: BTreeMap<&'a str, Vec<&'a Pod>>,
    /// Its own revisions, oldest first.
    revisions: Vec<&'a ControllerRevision>,
    /// Which nodes refuse the pods that they have of it.
    refusals: BTreeMap<&'a str, Streak>,
    ownership: Vec<Write>,
    all_pods: &'a Objects<Pod>,
    all_revisions: &'a Objects<ControllerRevision>,
    revision: u64,
    namespace_terminating: bool,
}

/// The DaemonSet at `key`, its pods and the nodes.
pub fn observe<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<Observed<'a>> {
    let set = snapshot.daemon_sets.get(key)?;
    let owner = Owner { kind: &DAEMON_SET, meta: &set.metadata, selector: &set.spec.selector };
    let matching = !selects_everything(&set.spec.selector);
    let mut ownership = Vec::new();
    let all = candidates(snapshot, &set.metadata, &set.spec.selector).into_iter();
    let own = owner.sort(&POD, all, |pod| &pod.metadata, |_| matching, &mut ownership);
    let all_revisions = snapshot.related::<ControllerRevision>(&set.metadata, &set.spec.selector).into_iter();
    let mut revisions =
        owner.sort(&CONTROLLER_REVISION, all_revisions, |revision| &revision.metadata, |_| matching, &mut ownership);
    revisions.sort_by_key(|revision| (revision.revision, &revision.metadata.name));
    let mut pods: BTreeMap<&str, Vec<&Pod>> = BTreeMap::new();
    for pod in own {
        let ended = pods::is_finished(pod) && is_terminating(&pod.metadata);
        if let Some(node) = placement::meant_for(pod).filter(|_| !ended) {
            pods.entry(node).or_default().push(pod);
        }
    }
    for of_node in pods.values_mut() {
        let created = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        of_node.sort_by_key(|pod| (!is_bound(pod), created(pod), pod.metadata.name.clone()));
    }
    let uid = set.metadata.uid.as_deref().unwrap_or("");
    let refusals = pods.iter().filter_map(|(node, pods)| {
        let hash = |pod: &&&Pod| pod.metadata.labels.as_ref().and_then(|labels| labels.get(REVISION_LABEL)).cloned();
        let refused = pods.iter().find(|pod| pods::is_refused(pod))?;
        Some((*node, snapshot.refused(uid, node, &hash(&refused).unwrap_or_default())?))
    });
    let refusals = refusals.collect();
    let nodes =
        snapshot.nodes.iter().map(|(key, node): (_, &std::sync::Arc<Node>)| (&*key.name, placement::fit(set, node)));
    let namespace = snapshot.namespaces.get(&ObjectKey::new("", key.namespace.clone()));
    Some(Observed {
        set,
        spec: &set.spec,
        nodes: nodes.collect(),
        pods,
        revisions,
        refusals,
        ownership,
        all_pods: &snapshot.pods,
        all_revisions: &snapshot.controller_revisions,
        revision: snapshot.revision,
        namespace_terminating: namespace.is_some_and(|namespace| is_terminating(&namespace.metadata)),
    })
}

fn is_bound(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).is_some_and(|node| !node.is_empty())
}

impl<'a> Observed<'a> {
    /// Its ControllerRevisions, which `kubectl rollout history` and `undo` read.
    fn history(&self) -> History<'_> {
        History {
            kind: &DAEMON_SET,
            set: &self.set.metadata,
            template: &self.spec.template,
            own: &self.revisions,
            all: self.all_revisions,
            hash_label: REVISION_LABEL,
            collisions: self.set.status.as_ref().and_then(|status| status.collision_count),
            limit: self.spec.revision_history_limit,
        }
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.min_ready_seconds.unwrap_or(0)
    }

    fn pods_of(&self, node: &str) -> &[&'a Pod] {
        self.pods.get(node).map(Vec::as_slice).unwrap_or_default()
    }

    /// (maxSurge, maxUnavailable) for so many nodes.
    fn bounds(&self) -> (usize, usize) {
        let wanted = self.nodes.values().filter(|fit| **fit == Fit::Runs).count();
        let strategy = self.spec.update_strategy.as_ref();
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
        let total = i32::try_from(wanted).unwrap_or(i32::MAX);
        let number = |value: Option<&k8s_openapi::apimachinery::pkg::util::intstr::IntOrString>, default: i32| {
            usize::try_from(value.map_or(default, |value| pods::scaled(value, total, true))).unwrap_or(0)
        };
        let surge = number(rolling.and_then(|rolling| rolling.max_surge.as_ref()), 0);
        let unavailable = number(rolling.and_then(|rolling| rolling.max_unavailable.as_ref()), 1);
        if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
    }

    fn is_rolling(&self) -> bool {
        self.spec.update_strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) != Some("OnDelete")
    }
}

/// What a decision makes and deletes.
#[derive(Default)]
struct Plan<'a> {
    /// The nodes that get a pod.
    create: Vec<&'a str>,
    delete: Vec<&'a Pod>,
}

/// One step of the DaemonSet.
pub fn decide(o: &Observed, now: Timestamp) -> Decision {
    let mut d = Decision::default();
    o.ownership.iter().for_each(|write| d.push_apart(write.clone()));
    if !d.writes.is_empty() {
        return d;
    }
    if selects_everything(&o.spec.selector) {
        let message = "This daemon set is selecting all pods. A non-empty selector is required.".to_owned();
        d.events.push(Event::warning(&DAEMON_SET, &o.set.metadata, "SelectingAll", message));
        return d;
    }
    if is_terminating(&o.set.metadata) {
        // The garbage collector decides about the pods.
        return d;
    }
    let history = o.history();
    let chosen = history.choose();
    d.writes.extend(chosen.write.clone());
    let (mut plan, bounds) = (Plan::default(), o.bounds());
    for (node, fit) in &o.nodes {
        manage(o, node, *fit, (&chosen.hash, bounds.0 > 0), now, &mut plan, &mut d);
    }
    // A node that is no more: pods that are bound to it are the pod garbage collector's.
    for pods in o.pods.iter().filter(|(node, _)| !o.nodes.contains_key(*node)).map(|(_, pods)| pods) {
        plan.delete.extend(pods.iter().copied().filter(|pod| !is_bound(pod) && !is_terminating(&pod.metadata)));
    }
    if plan.create.is_empty() && plan.delete.is_empty() && o.is_rolling() {
        rollout::roll(o, &chosen.hash, bounds, now, &mut plan, &mut d);
    }
    execute(o, &plan, &chosen, &mut d);
    status(o, &chosen, now, &mut d);
    let labels = o.pods.values().flatten().filter_map(|pod| pod.metadata.labels.as_ref()?.get(REVISION_LABEL));
    let live: BTreeSet<&str> = labels.map(String::as_str).collect();
    history.truncate(|of| history::name(of) == chosen.name || live.contains(history.hash(of)), &mut d);
    d.create_last(&[&POD]);
    d
}

/// One node: a pod where there is none, none where there shall be none, one where there are several.
fn manage<'a>(
    o: &Observed<'a>,
    node: &'a str,
    fit: Fit,
    (hash, surges): (&str, bool),
    now: Timestamp,
    plan: &mut Plan<'a>,
    d: &mut Decision,
) {
    let pods = o.pods_of(node);
    match fit {
        Fit::Runs if pods.is_empty() => plan.create.push(node),
        Fit::Leaves => plan.delete.extend(pods.iter().copied().filter(|pod| !is_terminating(&pod.metadata))),
        Fit::Runs | Fit::Stays => {
            let mut running = Vec::new();
            for pod in pods.iter().copied().filter(|pod| !is_terminating(&pod.metadata)) {
                match phase(pod) {
                    "Failed" | "Succeeded" => replace_ended(o, pod, (node, hash), now, plan, d),
                    _ => running.push(pod),
                }
            }
            if surges {
                plan.delete.extend(rollout::beyond_surge(o, &running, hash, now));
            } else {
                plan.delete.extend(running.into_iter().skip(1));
            }
        }
    }
}

/// A daemon does not end: what has is deleted, and made again once it is gone.
fn replace_ended<'a>(
    o: &Observed<'a>,
    pod: &'a Pod,
    (node, hash): (&str, &str),
    now: Timestamp,
    plan: &mut Plan<'a>,
    d: &mut Decision,
) {
    let (namespace, name) =
        (pod.metadata.namespace.as_deref().unwrap_or(""), pod.metadata.name.as_deref().unwrap_or(""));
    let meta = &o.set.metadata;
    if phase(pod) == "Failed" {
        // A node whose clock is ahead keeps nobody waiting.
        let ended = Some(super::job::finished_at(pod)).filter(|ended| *ended <= now);
        let at = ended.and_then(|ended| ended.checked_add(FAILED_WAIT).ok()).unwrap_or(now);
        // Of another template nothing is known yet (S7).
        let streak = o.refusals.get(node).filter(|_| is_updated(pod, hash));
        let at = streak.map_or(at, |streak| streak.until(None).max(at));
        if at > now {
            d.waiting.push(Waiting::Backoff);
            d.wake(at);
            return;
        }
        let message = format!("Found failed daemon pod {namespace}/{name} on node {node}, will try to kill it");
        d.events.push(Event::warning(&DAEMON_SET, meta, "FailedDaemonPod", message));
    } else {
        let message = format!("Found succeeded daemon pod {namespace}/{name} on node {node}, will try to delete it");
        d.events.push(Event::normal(&DAEMON_SET, meta, "SucceededDaemonPod", message));
    }
    plan.delete.push(pod);
}

/// Writes the plan: the pods that are made are named here, as a ReplicaSet's are.
fn execute(o: &Observed, plan: &Plan, chosen: &Chosen, d: &mut Decision) {
    let meta = &o.set.metadata;
    let (namespace, uid) = (meta.namespace.as_deref().unwrap_or(""), meta.uid.as_deref().unwrap_or(""));
    let prefix = format!("{}-", meta.name.as_deref().unwrap_or(""));
    if o.namespace_terminating && !plan.create.is_empty() {
        d.waiting.push(Waiting::NamespaceTerminating);
    } else {
        let names = (0..).map(|attempt| pod_template::name(&prefix, &suffix(uid, o.revision, attempt)));
        let free = |name: &String| !o.all_pods.contains_key(&ObjectKey::new(namespace, name.as_str()));
        let mut taken = BTreeSet::new();
        let names = names.take(4 * MAX_WRITES).filter(free).filter(|name| taken.insert(name.clone()));
        let made: Vec<_> = plan.create.iter().take(MAX_WRITES).zip(names).collect();
        for (node, name) in made {
            let template = placement::template(o.set, node, &chosen.hash);
            let object = pod_template::pod(&template, &DAEMON_SET, meta, &prefix, &name);
            d.apart(|d| {
                d.writes.push(Write::Create { kind: POD.clone(), object });
                d.events.push(Event::normal(&DAEMON_SET, meta, "SuccessfulCreate", format!("Created pod: {name}")));
            });
        }
    }
    for pod in plan.delete.iter().take(MAX_WRITES) {
        d.apart(|d| {
            d.writes.push(Write::delete(&POD, &pod.metadata));
            let name = pod.metadata.name.as_deref().unwrap_or("");
            d.events.push(Event::normal(&DAEMON_SET, meta, "SuccessfulDelete", format!("Deleted pod: {name}")));
        });
    }
}

/// Whether a pod is of the revision with this hash.
fn is_updated(pod: &Pod, hash: &str) -> bool {
    pod.metadata.labels.as_ref().and_then(|labels| labels.get(REVISION_LABEL)).is_some_and(|of| of == hash)
}

fn status(o: &Observed, chosen: &Chosen, now: Timestamp, d: &mut Decision) {
    let old = o.set.status.clone().unwrap_or_default();
    let (mut desired, mut current, mut wrong, mut ready, mut available, mut updated) = (0, 0, 0, 0, 0, 0);
    for (node, fit) in &o.nodes {
        let pods = o.pods_of(node);
        if *fit != Fit::Runs {
            wrong += i32::from(!pods.is_empty());
            continue;
        }
        desired += 1;
        let Some(oldest) = pods.first() else { continue };
        current += 1;
        ready += i32::from(pods::is_ready(oldest));
        match pods::available_at(oldest, o.min_ready_seconds()) {
            Some(at) if at <= now => available += 1,
            Some(at) => {
                d.waiting.push(Waiting::NotYetAvailable);
                d.wake(at);
            }
            None => {}
        }
        updated += i32::from(is_updated(oldest, &chosen.hash));
    }
    let some = |number: i32| Some(number).filter(|number| *number != 0);
    let new = DaemonSetStatus {
        desired_number_scheduled: desired,
        current_number_scheduled: current,
        number_misscheduled: wrong,
        number_ready: ready,
        number_available: some(available),
        number_unavailable: some(desired - available),
        updated_number_scheduled: some(updated),
        observed_generation: o.set.metadata.generation,
        collision_count: Some(chosen.collisions).filter(|count| *count > 0).or(old.collision_count),
        conditions: old.conditions.clone(),
    };
    d.writes.extend(Write::change_status(&DAEMON_SET, &o.set.metadata, &json!(old), &json!(new)));
}
