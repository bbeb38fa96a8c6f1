//! Deployments: revisions of a ReplicaSet, rolled from one to the next.
//!
//! Relies on: the driver's read-your-writes; the ReplicaSet controller for pods and their counts.
//! Guarantees: S10 for ReplicaSets; S11 (a ReplicaSet whose template is the same by content is taken up again, see
//! `history`); each write leaves the Deployment within `maxSurge`, and the old ReplicaSets shrink only by pods that
//! `maxUnavailable` lets go; a decision makes one step, so a cut leaves a smaller step.
//!
//! Differs: pods that an old ReplicaSet still counts as available though it was told to give them up are not counted on
//! (upstream can then let too many go). The deprecated `rollbackTo` is not read.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use mainstay_api::ObjectKey;
use mainstay_api::kinds::{DEPLOYMENT, POD, REPLICA_SET};
use serde_json::{Value, json};

use super::replicaset::REPLICA_FAILURE;
use crate::decision::{Controller, Decision, Event, Verb, Waiting, Write};
use crate::history;
use crate::ownership::{Owner, controller_of, controller_reference};
use crate::pods::{self, is_finished, is_terminating, selects, selects_everything};
use crate::snapshot::{Change, Objects, Snapshot};
use rollout::{DESIRED, MAX, Plan, REVISION, REVISION_HISTORY, annotated, available, size};

mod rollout;
#[cfg(test)]
mod tests;

/// The label that keeps the pods of one template apart from those of the next.
const HASH_LABEL: &str = "pod-template-hash";
/// Annotations of the Deployment that its ReplicaSets don't get.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "deployment-controller",
    permits: &[
        (Verb::Create, "replicasets"),
        (Verb::Patch, "replicasets"),
        (Verb::Delete, "replicasets"),
        (Verb::PatchStatus, "deployments"),
    ],
    reads: &["deployments", "replicasets", "pods", "namespaces"],
    keys,
    reconcile: |snapshot, key, now| observe(snapshot, key).map(|observed| decide(&observed, now)).unwrap_or_default(),
    many: None,
};

fn keys(before: &Snapshot, after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    let namespace = &change.key.namespace;
    if change.kind == DEPLOYMENT {
        wake(change.key.clone());
    } else if change.kind == REPLICA_SET {
        for meta in change.old.iter().chain(&change.new).map(|meta| &meta.metadata) {
            match controller_of(meta) {
                Some(owner) if owner.kind == DEPLOYMENT.kind => {
                    wake(ObjectKey::new(namespace.clone(), owner.name.as_str()))
                }
                Some(_) => {}
                None => after
                    .selecting::<Deployment>(namespace, meta.labels.as_ref())
                    .filter(|(_, deployment)| selects(&deployment.spec.selector, meta.labels.as_ref()))
                    .for_each(|(key, _)| wake(key.clone())),
            }
        }
    } else if change.kind == POD
        && (change.new.is_none() || after.pods.get(&change.key).is_some_and(|pod| is_finished(pod)))
    {
        // Recreate waits for the old pods to be gone, which no count of a ReplicaSet says.
        let owner = change.old.as_ref().or(change.new.as_ref()).and_then(|meta| controller_of(&meta.metadata));
        let set =
            owner.and_then(|owner| before.replica_sets.get(&ObjectKey::new(namespace.clone(), owner.name.as_str())));
        if let Some(owner) = set.and_then(|set| controller_of(&set.metadata)) {
            wake(ObjectKey::new(namespace.clone(), owner.name.as_str()));
        }
    }
}

/// One Deployment and its ReplicaSets.
pub struct Observed<'a> {
    deployment: &'a Deployment,
    plan: Plan,
    /// The ReplicaSet of the template that is asked for.
    new: Option<&'a ReplicaSet>,
    /// The others, oldest first.
    old: Vec<&'a ReplicaSet>,
    /// Whether a pod of an older template still has containers.
    old_pods: bool,
    /// The template as it compares.
    template: Value,
    ownership: Vec<Write>,
    all_sets: &'a Objects<ReplicaSet>,
    namespace_terminating: bool,
}

/// The Deployment at `key` and its ReplicaSets.
pub fn observe<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<Observed<'a>> {
    let deployment = snapshot.deployments.get(key)?;
    let owner = Owner { kind: &DEPLOYMENT, meta: &deployment.metadata, selector: &deployment.spec.selector };
    let mut ownership = Vec::new();
    let all = snapshot.related::<ReplicaSet>(&deployment.metadata, &deployment.spec.selector).into_iter();
    let matching = !selects_everything(&deployment.spec.selector);
    let mut sets = owner.sort(&REPLICA_SET, all, |set| &set.metadata, |_| matching, &mut ownership);
    sets.sort_by_key(|set| (set.metadata.creation_timestamp.as_ref().map(|time| time.0), &set.metadata.name));
    let template = history::normal(&DEPLOYMENT, &deployment.spec.template);
    let same =
        |set: &&ReplicaSet| set.spec.template.as_ref().is_some_and(|of| history::normal(&DEPLOYMENT, of) == template);
    let new = sets.iter().copied().find(same);
    let old: Vec<&ReplicaSet> =
        sets.into_iter().filter(|set| !new.is_some_and(|new| std::ptr::eq(*set, new))).collect();
    let controls = |pod: &Pod, uid: &str| controller_of(&pod.metadata).is_some_and(|owner| owner.uid == uid);
    let old_pods = old.iter().filter_map(|set| set.metadata.uid.as_deref()).any(|uid| {
        let mut owned = snapshot.owned_by::<Pod>(uid);
        owned.any(|(_, pod)| !is_finished(pod) && controls(pod, uid))
    });
    let namespace = snapshot.namespaces.get(&ObjectKey::new("", key.namespace.clone()));
    Some(Observed {
        deployment,
        plan: Plan::of(&deployment.spec),
        new,
        old,
        old_pods,
        template,
        ownership,
        all_sets: &snapshot.replica_sets,
        namespace_terminating: namespace.is_some_and(|namespace| is_terminating(&namespace.metadata)),
    })
}

impl<'a> Observed<'a> {
    fn paused(&self) -> bool {
        self.deployment.spec.paused == Some(true)
    }

    /// Every ReplicaSet, the new one last.
    fn all(&self) -> impl Iterator<Item = &'a ReplicaSet> {
        self.old.iter().copied().chain(self.new)
    }

    /// Those with pods, oldest first.
    fn active(&self) -> Vec<&'a ReplicaSet> {
        self.all().filter(|set| size(set) > 0).collect()
    }

    /// The revision that the new ReplicaSet has or shall have.
    fn revision(&self) -> i64 {
        let next =
            self.old.iter().filter_map(|set| annotated::<i64>(set, REVISION)).max().unwrap_or(0).saturating_add(1);
        self.new.and_then(|new| annotated(new, REVISION)).map_or(next, |own: i64| own.max(next))
    }
}

/// One step of the Deployment.
pub fn decide(o: &Observed, now: Timestamp) -> Decision {
    let mut d = Decision::default();
    o.ownership.iter().for_each(|write| d.push_apart(write.clone()));
    if !d.writes.is_empty() {
        return d;
    }
    let mut collisions = o.deployment.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
    if selects_everything(&o.deployment.spec.selector) {
        let message = "This deployment is selecting all pods. A non-empty selector is required.".to_owned();
        d.events.push(Event::warning(&DEPLOYMENT, &o.deployment.metadata, "SelectingAll", message));
        return d;
    }
    let scaling =
        o.active().iter().any(|set| annotated(set, DESIRED).is_some_and(|desired: i32| desired != o.plan.replicas));
    // Each ReplicaSet is written once: what a step wants of it is gathered first.
    let mut sizes: BTreeMap<&str, i32> = BTreeMap::new();
    let mut made = None;
    if is_terminating(&o.deployment.metadata) {
        // The garbage collector decides about the ReplicaSets.
    } else if o.namespace_terminating {
        d.waiting.push(Waiting::NamespaceTerminating);
    } else {
        if o.paused() {
            d.waiting.push(Waiting::Paused);
        }
        if o.paused() || scaling {
            scale(o, &mut sizes);
        } else if o.plan.rolling {
            roll(o, &mut sizes, &mut made, &mut collisions);
        } else {
            recreate(o, &mut sizes, &mut made, &mut collisions, &mut d);
        }
        write_sets(o, &sizes, &mut d);
        forget_old(o, &mut d);
    }
    status(o, made, collisions, now, &mut d);
    d
}

/// The ReplicaSet of the template, which is yet to be made.
struct Made {
    name: String,
    write: Write,
    event: Option<Event>,
}

/// RollingUpdate: grow the new one as far as surge allows; when it can't grow, shrink the old ones.
fn roll<'a>(o: &Observed<'a>, sizes: &mut BTreeMap<&'a str, i32>, made: &mut Option<Made>, collisions: &mut i32) {
    let total: i32 = o.all().map(size).sum();
    let Some(new) = o.new else {
        *made = make(o, o.plan.size_of_new(0, total), collisions);
        return;
    };
    let wanted = if size(new) > o.plan.replicas { o.plan.replicas } else { o.plan.size_of_new(size(new), total) };
    if wanted != size(new) {
        sizes.insert(name(new), wanted);
        return;
    }
    sizes.extend(o.old.iter().copied().map(name).zip(o.plan.shrink_old(o.new, &o.old)));
}

/// Recreate: the old ones to nothing; the new one only when no pod of theirs is left.
fn recreate<'a>(
    o: &Observed<'a>,
    sizes: &mut BTreeMap<&'a str, i32>,
    made: &mut Option<Made>,
    collisions: &mut i32,
    d: &mut Decision,
) {
    let active: Vec<_> = o.old.iter().filter(|set| size(set) > 0).collect();
    if !active.is_empty() || o.old_pods {
        sizes.extend(active.into_iter().map(|set| (name(set), 0)));
        d.waiting.push(Waiting::OldPodsRunning);
        return;
    }
    match o.new {
        None => *made = make(o, o.plan.replicas, collisions),
        Some(new) => {
            sizes.insert(name(new), o.plan.replicas);
        }
    }
}

/// `spec.replicas` changed, or the rollout is paused: what is active is scaled, in proportion where it is more than
/// one.
fn scale<'a>(o: &Observed<'a>, sizes: &mut BTreeMap<&'a str, i32>) {
    let active = o.active();
    if let [] | [_] = active.as_slice() {
        let latest = active.first().copied().or(o.new).or(o.old.last().copied());
        sizes.extend(latest.map(|only| (name(only), o.plan.replicas)));
        return;
    }
    let saturated = o.new.is_some_and(|new| {
        size(new) == o.plan.replicas
            && annotated(new, DESIRED) == Some(o.plan.replicas)
            && available(new) == o.plan.replicas
    });
    if saturated {
        sizes.extend(o.old.iter().map(|set| (name(set), 0)));
    } else if o.plan.rolling {
        let before = o.deployment.status.as_ref().and_then(|status| status.replicas).unwrap_or(0);
        sizes.extend(active.iter().copied().map(name).zip(o.plan.proportional(&active, before)));
    }
}

/// Makes the ReplicaSet of the template, under a name that no other has.
fn make(o: &Observed, replicas: i32, collisions: &mut i32) -> Option<Made> {
    let (namespace, deployment) = (o.deployment.metadata.namespace.as_deref()?, o.deployment.metadata.name.as_deref()?);
    let (name, hash) = loop {
        let hash = history::hash(&o.template, *collisions);
        let name = format!("{deployment}-{hash}");
        if !o.all_sets.contains_key(&ObjectKey::new(namespace, name.as_str())) {
            break (name, hash);
        }
        *collisions = collisions.checked_add(1)?;
    };
    let mut template = json!(o.deployment.spec.template);
    template["metadata"]["labels"][HASH_LABEL] = json!(hash);
    let mut selector = json!(o.deployment.spec.selector);
    selector["matchLabels"][HASH_LABEL] = json!(hash);
    let mut annotations = copied(o);
    annotations.extend([
        (DESIRED.to_owned(), o.plan.replicas.to_string()),
        (MAX.to_owned(), o.plan.max().to_string()),
        (REVISION.to_owned(), o.revision().to_string()),
    ]);
    let write = Write::Create {
        kind: REPLICA_SET.clone(),
        object: json!({
            "apiVersion": REPLICA_SET.api_version(), "kind": REPLICA_SET.kind,
            "metadata": {
                "namespace": namespace, "name": name, "annotations": annotations,
                    "labels": template["metadata"]["labels"],
                "ownerReferences": [controller_reference(&DEPLOYMENT, &o.deployment.metadata)],
            },
            "spec": {
                "replicas": replicas, "minReadySeconds": o.deployment.spec.min_ready_seconds.unwrap_or(0),
                "selector": selector, "template": template,
            },
        }),
    };
    let event = (replicas > 0).then(|| scaled_event(o, &name, 0, replicas));
    Some(Made { name, write, event })
}

fn copied(o: &Observed) -> BTreeMap<String, String> {
    let all =
        o.deployment.metadata.annotations.iter().flatten().filter(|(name, _)| !NOT_COPIED.contains(&name.as_str()));
    all.map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn scaled_event(o: &Observed, name: &str, from: i32, to: i32) -> Event {
    let direction = if to > from { "up" } else { "down" };
    let message = format!("Scaled {direction} replica set {name} from {from} to {to}");
    Event::normal(&DEPLOYMENT, &o.deployment.metadata, "ScalingReplicaSet", message)
}

/// Writes sizes, and the annotations that tell the next decision what was wanted, each ReplicaSet apart from the
/// others: what a step gives or takes is within surge and `maxUnavailable` also where only a part of it is done. A
/// paused Deployment's template annotations and revision stay as they are.
fn write_sets(o: &Observed, sizes: &BTreeMap<&str, i32>, d: &mut Decision) {
    for set in o.all() {
        let from = size(set);
        let to = sizes.get(name(set)).copied().unwrap_or(from);
        let is_new = o.new.is_some_and(|new| std::ptr::eq(new, set));
        let mut annotations = BTreeMap::new();
        if to > 0 || is_new {
            annotations.insert(DESIRED.to_owned(), o.plan.replicas.to_string());
            annotations.insert(MAX.to_owned(), o.plan.max().to_string());
        }
        let mut patch = json!({});
        if is_new {
            annotations.extend(copied(o));
            let own = annotated::<i64>(set, REVISION);
            if own.is_none_or(|own| own < o.revision()) {
                annotations.insert(REVISION.to_owned(), o.revision().to_string());
                if let Some(own) = own {
                    let past = set
                        .metadata
                        .annotations
                        .as_ref()
                        .and_then(|all| all.get(REVISION_HISTORY))
                        .map(|past| format!("{past},"));
                    annotations.insert(REVISION_HISTORY.to_owned(), format!("{}{own}", past.unwrap_or_default()));
                }
            }
            let min_ready = o.deployment.spec.min_ready_seconds.unwrap_or(0);
            if set.spec.min_ready_seconds.unwrap_or(0) != min_ready {
                patch["spec"]["minReadySeconds"] = json!(min_ready);
            }
        }
        let present = set.metadata.annotations.as_ref();
        annotations.retain(|name, value| present.and_then(|all| all.get(name)) != Some(value));
        if !annotations.is_empty() {
            patch["metadata"]["annotations"] = json!(annotations);
        }
        if to != from {
            patch["spec"]["replicas"] = json!(to);
        }
        d.apart(|d| {
            if to != from {
                d.events.push(scaled_event(o, name(set), from, to));
            }
            if patch.as_object().is_some_and(|patch| !patch.is_empty()) {
                d.writes.push(Write::patch(&REPLICA_SET, &set.metadata, patch));
            }
            if is_new {
                note_revision(o, d);
            }
        });
    }
}

/// When the rollout is complete, deletes the oldest empty ReplicaSets beyond `revisionHistoryLimit`.
fn forget_old(o: &Observed, d: &mut Decision) {
    if !o.new.is_some_and(|new| is_complete(o, &counts(o, Some(new)))) {
        return;
    }
    let empty = |set: &&ReplicaSet| {
        // A rollout that is complete has no pods of theirs.
        let seen = set.status.as_ref().and_then(|status| status.observed_generation);
        size(set) == 0 && seen >= set.metadata.generation
    };
    let mut old: Vec<_> = o.old.iter().copied().filter(empty).filter(|set| !is_terminating(&set.metadata)).collect();
    old.sort_by_key(|set| annotated::<i64>(set, REVISION));
    let limit = usize::try_from(o.deployment.spec.revision_history_limit.unwrap_or(10)).unwrap_or(0);
    let excess = old.len().saturating_sub(limit);
    for set in old.into_iter().take(excess) {
        d.push_apart(Write::delete(&REPLICA_SET, &set.metadata));
    }
}

/// The Deployment carries the revision of its new ReplicaSet, for `kubectl rollout`. It is written with the status, as
/// upstream does: an annotation that is written otherwise makes a new generation.
fn note_revision(o: &Observed, d: &mut Decision) {
    let revision = o.revision().to_string();
    let present = o.deployment.metadata.annotations.as_ref().and_then(|all| all.get(REVISION));
    if present != Some(&revision) {
        let annotations = json!({ REVISION: revision });
        d.writes.push(Write::annotate_with_status(&DEPLOYMENT, &o.deployment.metadata, annotations));
    }
}

fn name(set: &ReplicaSet) -> &str {
    set.metadata.name.as_deref().unwrap_or("")
}

/// Sums over ReplicaSets' statuses.
fn counts(o: &Observed, new: Option<&ReplicaSet>) -> DeploymentStatus {
    let status = |set: &ReplicaSet| set.status.clone().unwrap_or_default();
    let sum = |count: &dyn Fn(&ReplicaSet) -> i32| o.all().map(count).fold(0_i32, i32::saturating_add);
    let available = sum(&available);
    DeploymentStatus {
        replicas: Some(sum(&|set| status(set).replicas)),
        updated_replicas: Some(new.map_or(0, |new| status(new).replicas)),
        ready_replicas: Some(sum(&|set| status(set).ready_replicas.unwrap_or(0))),
        available_replicas: Some(available),
        unavailable_replicas: Some(sum(&size).saturating_sub(available).max(0)),
        terminating_replicas: Some(sum(&|set| status(set).terminating_replicas.unwrap_or(0))),
        observed_generation: o.deployment.metadata.generation,
        ..DeploymentStatus::default()
    }
}

fn is_complete(o: &Observed, status: &DeploymentStatus) -> bool {
    let all = Some(o.plan.replicas);
    status.updated_replicas == all && status.replicas == all && status.available_replicas == all
}

/// What there is, and, where the new ReplicaSet is to be made, with that and apart from all else: as upstream, nobody
/// is told of one that may not be made, but the others' pods are counted all the same.
fn status(o: &Observed, made: Option<Made>, collisions: i32, now: Timestamp, d: &mut Decision) {
    let old = o.deployment.status.clone().unwrap_or_default();
    let mut seen = counts(o, o.new);
    let mut conditions: Vec<DeploymentCondition> = old.conditions.clone().unwrap_or_default();
    let enough = seen.available_replicas.unwrap_or(0) >= o.plan.replicas - o.plan.unavailable;
    set_condition(
        &mut conditions,
        now,
        if enough {
            ("Available", "True", "MinimumReplicasAvailable", "Deployment has minimum availability.".to_owned())
        } else {
            (
                "Available",
                "False",
                "MinimumReplicasUnavailable",
                "Deployment does not have minimum availability.".to_owned(),
            )
        },
    );
    let mut new = DeploymentStatus { collision_count: (collisions > 0).then_some(collisions), ..seen.clone() };
    if made.is_some() {
        seen.collision_count = old.collision_count;
        seen.observed_generation = old.observed_generation;
        let mut conditions = conditions.clone();
        replica_failure(o, &mut conditions);
        seen.conditions = Some(conditions);
        write_status(o, &old, &seen, d);
    }
    progress(o, made.as_ref().map(|made| &*made.name), &old, &new, &mut conditions, now, d);
    replica_failure(o, &mut conditions);
    new.conditions = Some(conditions);
    let Some(made) = made else { return write_status(o, &old, &new, d) };
    d.apart(|d| {
        d.writes.push(made.write);
        d.events.extend(made.event);
        note_revision(o, d);
        write_status(o, &old, &new, d);
    });
}

fn write_status(o: &Observed, old: &DeploymentStatus, new: &DeploymentStatus, d: &mut Decision) {
    if new != old {
        d.writes.push(Write::patch_status(&DEPLOYMENT, &o.deployment.metadata, json!(new)));
    }
}

/// What the new ReplicaSet says of pods that are refused, else an older one.
fn replica_failure(o: &Observed, conditions: &mut Vec<DeploymentCondition>) {
    let failure = |set: &'_ ReplicaSet| {
        let all = set.status.as_ref()?.conditions.as_ref()?;
        all.iter().find(|condition| condition.type_.as_deref() == Some(REPLICA_FAILURE)).cloned()
    };
    conditions.retain(|condition| !is(condition, REPLICA_FAILURE));
    let failure = o.new.and_then(failure).or_else(|| o.old.iter().find_map(|set| failure(set)));
    conditions.extend(failure.map(|failure| DeploymentCondition {
        type_: failure.type_,
        status: failure.status,
        reason: failure.reason,
        message: failure.message,
        last_update_time: failure.last_transition_time.clone(),
        last_transition_time: failure.last_transition_time,
    }));
}

/// The condition that `kubectl rollout status` reads. Progress is any count that moved the right way since the last
/// status; without it for `deadline` seconds the rollout has timed out, and a wake-up is asked for so that this is told
/// in time.
fn progress(
    o: &Observed,
    made: Option<&str>,
    old: &DeploymentStatus,
    new: &DeploymentStatus,
    conditions: &mut Vec<DeploymentCondition>,
    now: Timestamp,
    d: &mut Decision,
) {
    let Some(deadline) = o.deployment.spec.progress_deadline_seconds.filter(|deadline| *deadline != i32::MAX) else {
        conditions.retain(|condition| !is(condition, "Progressing"));
        return;
    };
    let set = |conditions: &mut Vec<DeploymentCondition>, status, reason, message| {
        set_condition(conditions, now, ("Progressing", status, reason, message));
    };
    let current = conditions.iter().find(|condition| is(condition, "Progressing")).cloned();
    let reason = current.as_ref().and_then(|condition| condition.reason.as_deref()).unwrap_or("");
    if o.paused() {
        set(conditions, "Unknown", "DeploymentPaused", "Deployment is paused".to_owned());
        return;
    }
    if reason == "DeploymentPaused" {
        set(conditions, "Unknown", "DeploymentResumed", "Deployment is resumed".to_owned());
        d.wake_at = pods::after(now, deadline);
        return;
    }
    let name = made.or(o.new.map(name)).unwrap_or_default();
    let moved = |of: fn(&DeploymentStatus) -> i32| of(new) > of(old);
    let progressed = moved(|s| s.updated_replicas.unwrap_or(0))
        || moved(|s| s.ready_replicas.unwrap_or(0))
        || moved(|s| s.available_replicas.unwrap_or(0))
        || moved(|s| s.updated_replicas.unwrap_or(0) - s.replicas.unwrap_or(0));
    let complete = is_complete(o, new);
    if made.is_some() {
        set(conditions, "True", "NewReplicaSetCreated", format!("Created new replica set \"{name}\""));
        refresh(conditions, now);
    } else if complete {
        let message = format!("ReplicaSet \"{name}\" has successfully progressed.");
        set(conditions, "True", "NewReplicaSetAvailable", message);
        return;
    } else if current.is_none() && o.new.is_some() {
        set(conditions, "True", "FoundNewReplicaSet", format!("Found new replica set \"{name}\""));
    } else if reason == "NewReplicaSetAvailable" && new.updated_replicas == new.replicas {
        // A finished rollout whose pods come and go is not a rollout again.
        return;
    } else if progressed {
        set(conditions, "True", "ReplicaSetUpdated", format!("ReplicaSet \"{name}\" is progressing."));
        refresh(conditions, now);
    }
    let since = conditions.iter().find(|condition| is(condition, "Progressing"));
    if since.is_some_and(|condition| condition.reason.as_deref() == Some("NewReplicaSetAvailable")) {
        // The last rollout's success is not the time from which this one is late.
        return;
    }
    let since = since.and_then(|condition| condition.last_update_time.as_ref()).map_or(now, |time| time.0);
    match pods::after(since, deadline) {
        Some(end) if end <= now => {
            set(
                conditions,
                "False",
                "ProgressDeadlineExceeded",
                format!("ReplicaSet \"{name}\" has timed out progressing."),
            );
        }
        Some(end) => d.wake(end),
        None => {}
    }
}

fn is(condition: &DeploymentCondition, type_: &str) -> bool {
    condition.type_.as_deref() == Some(type_)
}

/// Sets a condition; its times move only when its status or reason do.
fn set_condition(
    conditions: &mut Vec<DeploymentCondition>,
    now: Timestamp,
    (type_, status, reason, message): (&str, &str, &str, String),
) {
    let before = conditions.iter().find(|condition| is(condition, type_));
    let same_status = before.filter(|before| before.status.as_deref() == Some(status));
    if same_status.is_some_and(|before| before.reason.as_deref() == Some(reason)) {
        return;
    }
    let changed = same_status.and_then(|before| before.last_transition_time.clone()).unwrap_or(Time(now));
    conditions.retain(|condition| !is(condition, type_));
    conditions.push(DeploymentCondition {
        type_: Some(type_.to_owned()),
        status: Some(status.to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(changed),
    });
}

/// Progress was made now.
fn refresh(conditions: &mut [DeploymentCondition], now: Timestamp) {
    for condition in conditions.iter_mut().filter(|condition| is(condition, "Progressing")) {
        condition.last_update_time = Some(Time(now));
    }
}
