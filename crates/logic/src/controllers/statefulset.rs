//! StatefulSets: pods with an identity, made, replaced and removed in order.
//!
//! Relies on: the driver's read-your-writes; the API server's preconditions (A8) and graceful deletion (a pod's name is
//! taken until its containers are known to be stopped); the claim protection finalizer (V2); the garbage collector.
//!
//! Guarantees, each for any prefix of a decision's writes:
//! - S2: nothing is made while a pod of the name exists, whatever its state.
//! - S3: names, hostname and claims come from `identity` alone.
//! - S4: OrderedReady makes pod *i* only when each lower ordinal is Running, Ready and available.
//! - S5: scale-in deletes one pod, the highest, and the next only when its object is gone.
//! - S6: a rolling update deletes from the highest ordinal down within `maxUnavailable`; ordinals below the partition
//!   are made from the current revision.
//! - S7: see `replace_broken`.
//! - S8: see `retention`. S9: a pod that waits gets its claims made again.
//! - S10: only pods whose controller is this set by uid are ever touched. S11: see `history`.
//!
//! Differs: upstream stops at the first pod that is not Ready before it looks at the update, so that a broken revision
//! blocks its own correction (S7). Upstream scales a Parallel set in at once; here S5 holds for every set. Upstream
//! calls a rolling update complete when all pods that happen to exist are new; here every ordinal must be, lest the
//! current revision of a partitioned set is forgotten while its pods are away (S6). Scale-in halts at a condemned pod
//! that is not Ready while one below is not either, as upstream, but not at one that S7 would replace: nothing will
//! heal it. A claim is made with its owner (S8).

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mainstay_api::ObjectKey;
use mainstay_api::kinds::{CONTROLLER_REVISION, PERSISTENT_VOLUME_CLAIM, POD, STATEFUL_SET};
use serde_json::json;

use crate::decision::{Controller, Decision, Event, Verb, Waiting, Write};
use crate::history::REVISION_LABEL;
use crate::ownership::{Owner, controller_of};
use crate::pods::{self, is_terminating, selects};
use crate::snapshot::{Change, Objects, Snapshot, Streak};
use revisions::{Revision, Revisions};

pub(crate) mod identity;
mod retention;
mod revisions;
#[cfg(test)]
mod tests;

/// How many pods that do not exist are looked at in one decision; more are made in the next.
const MAX_ABSENT: usize = 500;

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "statefulset-controller",
    permits: &[
        (Verb::Create, "pods"),
        (Verb::Patch, "pods"),
        (Verb::Delete, "pods"),
        (Verb::Create, "persistentvolumeclaims"),
        (Verb::Patch, "persistentvolumeclaims"),
        (Verb::Create, "controllerrevisions"),
        (Verb::Patch, "controllerrevisions"),
        (Verb::Delete, "controllerrevisions"),
        (Verb::PatchStatus, "statefulsets"),
    ],
    reads: &["statefulsets", "pods", "controllerrevisions", "persistentvolumeclaims", "namespaces"],
    keys,
    reconcile: |snapshot, key, now| observe(snapshot, key).map(|observed| decide(&observed, now)).unwrap_or_default(),
    many: None,
};

/// One set and what it may look at.
pub struct Observed<'a> {
    set: &'a StatefulSet,
    spec: &'a StatefulSetSpec,
    /// Its own pods, by ordinal.
    pods: BTreeMap<i64, &'a Pod>,
    /// Its own revisions, oldest first.
    revisions: Vec<&'a ControllerRevision>,
    /// Since when nodes refuse a pod of an ordinal, as it is now.
    refusals: BTreeMap<i64, Streak>,
    /// Claims that have the set as an owner, with or without a pod.
    owned_claims: Vec<&'a ObjectMeta>,
    /// Adoptions and releases that come before anything else.
    ownership: Vec<Write>,
    /// All objects of the namespace that its names could clash with.
    all_pods: &'a Objects<Pod>,
    all_revisions: &'a Objects<ControllerRevision>,
    claims: &'a Objects<PersistentVolumeClaim>,
    namespace_terminating: bool,
}

impl Observed<'_> {
    fn name(&self) -> &str {
        self.set.metadata.name.as_deref().unwrap_or("")
    }

    fn namespace(&self) -> &str {
        self.set.metadata.namespace.as_deref().unwrap_or("")
    }

    fn pod_uid(&self, name: &str) -> Option<&String> {
        self.all_pods.get(&ObjectKey::new(self.namespace(), name))?.metadata.uid.as_ref()
    }

    fn ordered(&self) -> bool {
        self.spec.pod_management_policy.as_deref() != Some("Parallel")
    }

    fn rolling(&self) -> bool {
        self.spec.update_strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) != Some("OnDelete")
    }

    fn start(&self) -> i64 {
        self.spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).map_or(0, |start| i64::from(start.max(0)))
    }

    fn replicas(&self) -> i32 {
        self.spec.replicas.unwrap_or(1).max(0)
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.min_ready_seconds.unwrap_or(0)
    }

    /// The first ordinal that a rolling update reaches.
    fn partition(&self) -> i64 {
        let rolling = self.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
        self.start() + rolling.and_then(|rolling| rolling.partition).map_or(0, |partition| i64::from(partition.max(0)))
    }

    fn max_unavailable(&self) -> usize {
        let rolling = self.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
        let value = rolling.and_then(|rolling| rolling.max_unavailable.as_ref());
        usize::try_from(value.map_or(1, |value| pods::scaled(value, self.replicas(), false))).unwrap_or(0).max(1)
    }
}

/// Whether nothing of a pod has changed but that it has a node now: no set looks at that.
fn is_mere_binding(old: &Pod, new: &Pod) -> bool {
    let node = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
    let status = |pod: &Pod| {
        let status = pod.status.clone().unwrap_or_default();
        let mut conditions = status.conditions.unwrap_or_default();
        conditions.retain(|condition| condition.type_ != "PodScheduled");
        PodStatus { conditions: Some(conditions), ..status }
    };
    let metadata = |pod: &Pod| ObjectMeta { resource_version: None, ..pod.metadata.clone() };
    node(old).is_empty() && !node(new).is_empty() && metadata(old) == metadata(new) && status(old) == status(new)
}

fn keys(before: &Snapshot, after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    let namespace = &change.key.namespace;
    let metas = || change.old.iter().chain(&change.new).map(|meta| &meta.metadata);
    if change.kind == STATEFUL_SET {
        wake(change.key.clone());
    } else if change.kind == POD {
        // Many a pod that is no set's has such a name.
        let set = identity::parse(&change.key.name).map(|(set, _)| ObjectKey::new(namespace.clone(), set));
        let pods = [before, after].map(|snapshot| snapshot.pods.get(&change.key));
        if let Some(set) = set.filter(|set| after.stateful_sets.contains_key(set))
            && !matches!(pods, [Some(old), Some(new)] if is_mere_binding(old, new))
        {
            wake(set);
        }
    } else if change.kind == PERSISTENT_VOLUME_CLAIM {
        // `<template>-<set>-<ordinal>`: each tail of the name may be a set's.
        let Some((parent, ordinal)) = identity::parse(&change.key.name) else { return };
        for (at, _) in parent.match_indices('-') {
            let key = ObjectKey::new(namespace.clone(), parent.get(at + 1..).unwrap_or(""));
            if let Some(set) = after.stateful_sets.get(&key)
                && identity::claims(set, ordinal).any(|(claim, _)| claim == change.key)
            {
                wake(key);
            }
        }
    } else if change.kind == CONTROLLER_REVISION {
        for meta in metas() {
            match controller_of(meta) {
                Some(owner) if owner.kind == STATEFUL_SET.kind => {
                    wake(ObjectKey::new(namespace.clone(), owner.name.as_str()))
                }
                Some(_) => {}
                None => after
                    .selecting::<StatefulSet>(namespace, meta.labels.as_ref())
                    .filter(|(_, set)| selects(&set.spec.selector, meta.labels.as_ref()))
                    .for_each(|(key, _)| wake(key.clone())),
            }
        }
    }
}

/// The set at `key`, with its pods, revisions and claims.
pub fn observe<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<Observed<'a>> {
    let set = snapshot.stateful_sets.get(key)?;
    let spec = &set.spec;
    let owner = Owner { kind: &STATEFUL_SET, meta: &set.metadata, selector: &spec.selector };
    let mut ownership = Vec::new();
    let ordinal = |pod: &Pod| match identity::parse(pod.metadata.name.as_deref()?) {
        Some((parent, ordinal)) if *parent == *key.name => Some(ordinal),
        _ => None,
    };
    let related = snapshot.related::<Pod>(&set.metadata, &spec.selector).into_iter();
    let pods = owner.sort(&POD, related, |pod| &pod.metadata, |pod| ordinal(pod).is_some(), &mut ownership);
    let all_revisions = snapshot.related::<ControllerRevision>(&set.metadata, &spec.selector).into_iter();
    let mut revisions =
        owner.sort(&CONTROLLER_REVISION, all_revisions, |revision| &revision.metadata, |_| true, &mut ownership);
    revisions.sort_by_key(|revision| (revision.revision, &revision.metadata.name));
    let uid = set.metadata.uid.as_deref().unwrap_or("");
    let owned_claims = snapshot
        .dependents(uid)
        .filter(|meta| meta.kind == PERSISTENT_VOLUME_CLAIM)
        .map(|meta| &meta.metadata)
        .collect();
    let namespace = snapshot.namespaces.get(&ObjectKey::new("", key.namespace.clone()));
    let refused = |pod: &&Pod| {
        let streak = snapshot.refused(uid, pod.metadata.name.as_deref()?, revision_of(pod))?;
        Some((ordinal(pod)?, streak))
    };
    Some(Observed {
        set,
        spec,
        refusals: pods.iter().filter_map(refused).collect(),
        pods: pods.into_iter().filter_map(|pod| Some((ordinal(pod)?, pod))).collect(),
        revisions,
        owned_claims,
        ownership,
        all_pods: &snapshot.pods,
        all_revisions: &snapshot.controller_revisions,
        claims: &snapshot.persistent_volume_claims,
        namespace_terminating: namespace.is_some_and(|namespace| is_terminating(&namespace.metadata)),
    })
}

/// One step of the set.
pub fn decide(o: &Observed, now: Timestamp) -> Decision {
    let mut d = Decision::default();
    o.ownership.iter().for_each(|write| d.push_apart(write.clone()));
    repair_identity(o, &mut d);
    if !d.writes.is_empty() {
        // Each of these changes an object that the steps below would write with the resourceVersion that it had.
        return d;
    }
    let revisions = revisions::choose(o);
    if !is_terminating(&o.set.metadata) {
        // A set that is on its way out makes no revision: foreground deletion takes it away again, for ever.
        d.writes.extend(revisions.write.clone());
    }
    let mut replicas = Replicas::of(o, &revisions, now);
    if o.namespace_terminating {
        d.waiting.push(Waiting::NamespaceTerminating);
    } else {
        retention::claims(o, &replicas, &mut d);
    }
    if !o.namespace_terminating && !is_terminating(&o.set.metadata) {
        make_missing_claims(o, &replicas, &mut d);
        replace_finished(o, &mut replicas, now, &mut d);
        replace_broken(o, &mut replicas, &mut d);
        create(o, &revisions, &replicas, &mut d);
        scale_in(o, &replicas, &mut d);
        roll(o, &mut replicas, &mut d);
    }
    status(o, &revisions, &replicas, now, &mut d);
    revisions::truncate(o, &revisions, &mut d);
    d
}

/// How far a pod has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// There is no pod of the name that is ours.
    Absent,
    /// It is on its way out, or is deleted by this decision.
    Leaving,
    /// Succeeded or Failed.
    Finished,
    /// Not Running and Ready.
    NotReady,
    /// Ready, and available from then on.
    AvailableAt(Timestamp),
    /// Ready for `minReadySeconds`.
    Available,
}

/// One ordinal.
struct Slot<'a> {
    ordinal: i64,
    pod: Option<&'a Pod>,
    state: State,
    /// Whether its pod is of the revision that the ordinal shall have.
    on_target: bool,
}

/// The ordinals that the set shall have, ascending, and those that it shall not, descending.
struct Replicas<'a> {
    slots: Vec<Slot<'a>>,
    condemned: Vec<Slot<'a>>,
}

impl<'a> Replicas<'a> {
    fn of(o: &Observed<'a>, revisions: &Revisions, now: Timestamp) -> Self {
        let wanted = o.start()..o.start() + i64::from(o.replicas());
        let absent = wanted.clone().filter(|ordinal| !o.pods.contains_key(ordinal)).take(MAX_ABSENT);
        let slot = |ordinal: i64, pod: Option<&'a Pod>| Slot {
            ordinal,
            pod,
            state: pod.map_or(State::Absent, |pod| state(o, pod, now)),
            on_target: pod.is_some_and(|pod| revision_of(pod) == target(o, revisions, ordinal).name),
        };
        let mut slots: Vec<Slot> = absent.map(|ordinal| slot(ordinal, None)).collect();
        let mut condemned = Vec::new();
        for (&ordinal, &pod) in &o.pods {
            if wanted.contains(&ordinal) { &mut slots } else { &mut condemned }.push(slot(ordinal, Some(pod)));
        }
        slots.sort_by_key(|slot| slot.ordinal);
        condemned.reverse();
        Self { slots, condemned }
    }
}

fn state(o: &Observed, pod: &Pod, now: Timestamp) -> State {
    if is_terminating(&pod.metadata) {
        State::Leaving
    } else if pods::is_finished(pod) {
        State::Finished
    } else if !pods::is_running_and_ready(pod) {
        State::NotReady
    } else {
        match pods::available_at(pod, o.min_ready_seconds()) {
            Some(at) if at <= now => State::Available,
            Some(at) => State::AvailableAt(at),
            None => State::NotReady,
        }
    }
}

/// The name of the revision that a pod was made from.
fn revision_of(pod: &Pod) -> &str {
    pod.metadata.labels.as_ref().and_then(|labels| labels.get(REVISION_LABEL)).map_or("", String::as_str)
}

/// The revision that an ordinal shall have.
fn target<'r>(o: &Observed, revisions: &'r Revisions, ordinal: i64) -> &'r Revision {
    if o.rolling() && ordinal < o.partition() { &revisions.current } else { &revisions.update }
}

/// Pods that were adopted get the labels that say who they are.
fn repair_identity(o: &Observed, d: &mut Decision) {
    for (&ordinal, pod) in &o.pods {
        let name = pod.metadata.name.as_deref().unwrap_or("");
        if !identity::is_said_by(pod.metadata.labels.as_ref(), name, ordinal) && pods::is_active(pod) {
            let wanted = identity::identity_labels(name, ordinal);
            d.apart(|d| {
                d.writes.push(Write::patch(&POD, &pod.metadata, json!({ "metadata": { "labels": wanted } })));
                let message = format!("update Pod {name} in StatefulSet {} successful", o.name());
                d.events.push(event(o, "SuccessfulUpdate", message));
            });
        }
    }
}

/// S9: a pod that is still Pending gets each claim that is not there.
fn make_missing_claims(o: &Observed, replicas: &Replicas, d: &mut Decision) {
    for slot in &replicas.slots {
        let pending = slot.pod.is_some_and(|pod| matches!(pods::phase(pod), "" | "Pending"));
        if pending && slot.state == State::NotReady {
            d.apart(|d| {
                make_claims(o, slot.ordinal, d);
            });
        }
    }
}

/// Makes the claims of an ordinal that are not there. `false` where one is on its way out: the pod must not meet it.
fn make_claims(o: &Observed, ordinal: i64, d: &mut Decision) -> bool {
    let mut free = true;
    for (key, template) in identity::claims(o.set, ordinal) {
        match o.claims.get(&key) {
            Some(claim) if is_terminating(&claim.metadata) || retention::goes_with_an_older_pod(o, claim) => {
                d.waiting.push(Waiting::ClaimTerminating { name: key.name.to_string() });
                free = false;
            }
            Some(_) => {}
            None => {
                let object = identity::claim(o.set, &key, template, &retention::owners_of_new(o));
                d.writes.push(Write::Create { kind: PERSISTENT_VOLUME_CLAIM.clone(), object });
                let (pod, set) = (identity::pod_key(o.set, ordinal).name, o.name());
                d.events.push(event(
                    o,
                    "SuccessfulCreate",
                    format!("create Claim {} Pod {pod} in StatefulSet {set} success", key.name),
                ));
            }
        }
    }
    free
}

/// A pod that has ended is deleted, to be made again; one that its node refuses again and again later and later (X7),
/// unless the set asks for another revision by now (S7).
fn replace_finished(o: &Observed, replicas: &mut Replicas, now: Timestamp, d: &mut Decision) {
    for slot in replicas.slots.iter_mut().filter(|slot| slot.state == State::Finished) {
        let Some(pod) = slot.pod else { continue };
        let held = o.refusals.get(&slot.ordinal).filter(|_| slot.on_target).map(|streak| streak.until(None));
        if let Some(at) = held.filter(|at| *at > now) {
            d.waiting.push(Waiting::Backoff);
            d.wake(at);
            continue;
        }
        let (namespace, set, name) = (o.namespace(), o.name(), pod.metadata.name.as_deref().unwrap_or(""));
        d.events.push(if pods::phase(pod) == "Failed" {
            let message = format!("StatefulSet {namespace}/{set} is recreating failed Pod {name}");
            Event::warning(&STATEFUL_SET, &o.set.metadata, "RecreatingFailedPod", message)
        } else {
            event(
                o,
                "RecreatingTerminatedPod",
                format!("StatefulSet {namespace}/{set} is recreating terminated Pod {name}"),
            )
        });
        delete(o, slot, d);
    }
}

/// S7: a pod that is not of the revision that its ordinal shall have is deleted out of order, whatever the others do,
/// where it was never Ready since it was made, or where a container of it is held back after failures
/// (`CrashLoopBackOff`).
///
/// The first never served; of the second nothing runs. So nothing becomes less available, and since what takes its
/// place is of the wanted revision, this happens once per pod and change. The second was Ready once, and so is not
/// handed to a wanted revision of which a pod is not Ready just now. A pod that runs and merely fails its probe keeps
/// its turn: it may recover.
fn replace_broken(o: &Observed, replicas: &mut Replicas, d: &mut Decision) {
    if !o.rolling() {
        return;
    }
    let proven = !replicas.slots.iter().any(|slot| slot.state == State::NotReady && slot.on_target);
    for slot in replicas.slots.iter_mut().filter(|slot| slot.state == State::NotReady && !slot.on_target) {
        if slot.pod.is_some_and(|pod| pods::never_ready(pod) || (proven && pods::in_back_off(pod))) {
            delete(o, slot, d);
        }
    }
}

/// S4: makes what is not there, in order; OrderedReady stops at the first that is not available.
fn create(o: &Observed, revisions: &Revisions, replicas: &Replicas, d: &mut Decision) {
    for slot in &replicas.slots {
        let ordinal = slot.ordinal;
        match slot.state {
            State::Available => continue,
            State::Absent => create_pod(o, target(o, revisions, ordinal), ordinal, d),
            State::Leaving | State::Finished => d.waiting.push(Waiting::PodTerminating { ordinal }),
            State::NotReady => d.waiting.push(Waiting::PredecessorNotReady { ordinal }),
            State::AvailableAt(at) => {
                d.waiting.push(Waiting::NotYetAvailable);
                d.wake(at);
            }
        }
        if o.ordered() {
            return;
        }
    }
}

fn create_pod(o: &Observed, revision: &Revision, ordinal: i64, d: &mut Decision) {
    let key = identity::pod_key(o.set, ordinal);
    if o.all_pods.contains_key(&key) {
        d.waiting.push(Waiting::OwnedByAnother { name: key.to_string() });
        return;
    }
    // A pod without its claims is not made; other pods are.
    d.apart(|d| {
        if !make_claims(o, ordinal, d) {
            return;
        }
        d.writes.push(Write::Create {
            kind: POD.clone(),
            object: identity::pod(o.set, ordinal, &revision.template, &revision.name),
        });
        d.events.push(event(
            o,
            "SuccessfulCreate",
            format!("create Pod {} in StatefulSet {} successful", key.name, o.name()),
        ));
    });
}

/// S5: deletes the highest pod that the set shall not have. OrderedReady waits, as upstream, until those that stay are
/// available, and does not take a pod that is not while one below it is not either.
fn scale_in(o: &Observed, replicas: &Replicas, d: &mut Decision) {
    let Some((highest, below)) = replicas.condemned.split_first() else { return };
    if highest.state == State::Leaving {
        d.waiting.push(Waiting::PodTerminating { ordinal: highest.ordinal });
        return;
    }
    if !o.ordered() {
        return delete_pod(o, highest.pod, d);
    }
    let unhealthy = |slot: &&Slot| slot.state != State::Available;
    if replicas.slots.iter().any(|slot| unhealthy(&slot)) {
        // `create` has said for whom.
        return;
    }
    let is_broken = |pod: &Pod| pods::never_ready(pod) || pods::in_back_off(pod);
    let is_lost = !highest.on_target && o.rolling() && highest.pod.is_some_and(is_broken);
    let may_recover = matches!(highest.state, State::NotReady | State::AvailableAt(_)) && !is_lost;
    match below.iter().rev().find(unhealthy).filter(|_| may_recover) {
        Some(first) => {
            d.waiting.push(Waiting::PredecessorNotReady { ordinal: first.ordinal });
            // Either of them may be available by time alone (minReadySeconds).
            for slot in [highest, first] {
                if let State::AvailableAt(at) = slot.state {
                    d.wake(at);
                }
            }
        }
        None => delete_pod(o, highest.pod, d),
    }
}

/// S6: from the highest ordinal down to the partition, pods of another revision are deleted.
///
/// A pod that is available goes only while fewer than `maxUnavailable` are not. One that is not available itself costs
/// nothing, but it must not be handed to a revision that has just failed above it: it goes when every pod above it is
/// new and available.
fn roll(o: &Observed, replicas: &mut Replicas, d: &mut Decision) {
    let held = replicas.slots.iter().find(|slot| slot.ordinal < o.partition() && is_old(o, slot));
    d.waiting.extend(held.filter(|_| o.rolling()).map(|slot| Waiting::PartitionHeld { ordinal: slot.ordinal }));
    if !o.rolling() || !replicas.condemned.is_empty() {
        return;
    }
    let mut unavailable = replicas.slots.iter().filter(|slot| slot.state != State::Available).count();
    let (mut absent_above, mut failing_above) = (0, None);
    for slot in replicas.slots.iter_mut().rev().filter(|slot| slot.ordinal >= o.partition()) {
        match slot.state {
            State::Absent | State::Leaving | State::Finished => absent_above += 1,
            State::Available if slot.on_target => {}
            State::NotReady | State::AvailableAt(_) if slot.on_target => failing_above = Some(slot.ordinal),
            State::Available if unavailable < o.max_unavailable() => {
                unavailable += 1;
                absent_above += 1;
                delete(o, slot, d);
            }
            State::NotReady | State::AvailableAt(_) if failing_above.is_none() && absent_above == 0 => {
                absent_above += 1;
                delete(o, slot, d);
            }
            _ => {
                d.waiting.push(match failing_above {
                    Some(ordinal) => Waiting::UpdatedPodNotReady { ordinal },
                    None => Waiting::UnavailableBudgetUsed,
                });
                return;
            }
        }
    }
}

/// Whether a slot below the partition is kept from the template that the set asks for.
fn is_old(o: &Observed, slot: &Slot) -> bool {
    let update = o.set.status.as_ref().and_then(|status| status.update_revision.as_deref());
    slot.pod.is_some_and(|pod| update.is_some_and(|update| revision_of(pod) != update))
}

fn delete(o: &Observed, slot: &mut Slot, d: &mut Decision) {
    slot.state = State::Leaving;
    delete_pod(o, slot.pod, d);
}

fn delete_pod(o: &Observed, pod: Option<&Pod>, d: &mut Decision) {
    let Some(pod) = pod else { return };
    d.apart(|d| {
        d.writes.push(Write::delete(&POD, &pod.metadata));
        let name = pod.metadata.name.as_deref().unwrap_or("");
        let message = format!("delete Pod {name} in StatefulSet {} successful", o.name());
        d.events.push(event(o, "SuccessfulDelete", message));
    });
}

fn event(o: &Observed, reason: &'static str, message: String) -> Event {
    Event::normal(&STATEFUL_SET, &o.set.metadata, reason, message)
}

/// Counts what there is, and moves the current revision on when every ordinal is of the new one and available.
fn status(o: &Observed, revisions: &Revisions, replicas: &Replicas, now: Timestamp, d: &mut Decision) {
    let count = |wanted: &dyn Fn(&Pod) -> bool| {
        i32::try_from(o.pods.values().filter(|pod| wanted(pod)).count()).unwrap_or(i32::MAX)
    };
    let of = |revision: &Revision| count(&|pod| revision_of(pod) == revision.name && !is_terminating(&pod.metadata));
    let min_ready = o.min_ready_seconds();
    let all_new = replicas.slots.iter().all(|slot| {
        matches!(slot.state, State::Available | State::AvailableAt(_))
            && slot.pod.is_some_and(|pod| revision_of(pod) == revisions.update.name)
    });
    let complete = o.rolling() && replicas.condemned.is_empty() && all_new;
    let current = if complete { &revisions.update } else { &revisions.current };
    let old = o.set.status.clone().unwrap_or_default();
    let new = StatefulSetStatus {
        replicas: count(&|_| true),
        ready_replicas: Some(count(&pods::is_running_and_ready)),
        available_replicas: Some(count(&|pod| {
            pods::is_running_and_ready(pod) && pods::is_available(pod, min_ready, now)
        })),
        current_replicas: Some(of(current)),
        updated_replicas: Some(of(&revisions.update)),
        current_revision: Some(current.name.clone()),
        update_revision: Some(revisions.update.name.clone()),
        collision_count: Some(revisions.collisions),
        observed_generation: o.set.metadata.generation,
        conditions: old.conditions.clone(),
    };
    if new != old {
        d.writes.push(Write::patch_status(&STATEFUL_SET, &o.set.metadata, json!(new)));
    }
}
