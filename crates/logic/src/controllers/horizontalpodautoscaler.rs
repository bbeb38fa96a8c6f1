//! HorizontalPodAutoscalers: how many pods a workload has, by what they use.
//!
//! Relies on: the server, which measures pods every 15 seconds while there is an autoscaler and wakes them all then
//! ([`crate::measured`]); the workload's own controller for the pods.
//! Guarantees: a target is written with its resourceVersion, so that what a person has just set is not undone by a
//! decision on what was before (A8); what was recommended and scaled lately is noted on the object, so that a restart
//! forgets no stabilisation window.
//!
//! Metrics of the types Pods, Object and External are asked of the servers that are registered for them, by the server
//! ([`crate::measured::Question`]). As long as an answer is awaited, nothing is decided.
//!
//! Differs: upstream keeps that history in memory.

mod adapted;
mod behavior;
mod replicas;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerStatus,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, Time};
use mainstay_api::kinds::{
    DEPLOYMENT, HORIZONTAL_POD_AUTOSCALER as KIND, REPLICA_SET, REPLICATION_CONTROLLER, STATEFUL_SET,
};
use mainstay_api::selector::Labels;
use mainstay_api::{Kind, ObjectKey};
use serde_json::{Value, json};

use crate::decision::{Controller, Decision, Event, Verb, Write};
use crate::measured::Measured;
use crate::snapshot::{Change, Index, Snapshot};
use behavior::{History, Limited};

/// So many autoscalers of one target are named where there are too many.
const MOST_NAMED: usize = 16;

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "horizontal-pod-autoscaler",
    permits: &[(Verb::Patch, "*"), (Verb::PatchStatus, "horizontalpodautoscalers")],
    reads: &[
        "horizontalpodautoscalers",
        "deployments",
        "replicasets",
        "replicationcontrollers",
        "statefulsets",
        "pods",
    ],
    keys,
    reconcile: |snapshot, key, now| observe(snapshot, key).map(|o| decide(&o, now)).unwrap_or_default(),
    many: None,
};

/// Its own changes, but for those of its status. What happens to targets is seen at the next measurement, as upstream.
fn keys(_: &Snapshot, _: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    let generation =
        |meta: &Option<std::sync::Arc<crate::snapshot::Meta>>| meta.as_ref().and_then(|meta| meta.metadata.generation);
    if change.kind.stored() == &KIND && (change.old.is_none() || generation(&change.old) != generation(&change.new)) {
        wake(change.key.clone());
    }
}

/// What is scaled.
pub struct Target<'a> {
    kind: Kind,
    metadata: &'a ObjectMeta,
    /// How many there shall be, and how many there are.
    replicas: i32,
    current: i32,
    selector: Option<LabelSelector>,
    path: Vec<String>,
}

/// An autoscaler, its target, and the target's pods.
pub struct Observed<'a> {
    scaler: &'a HorizontalPodAutoscaler,
    target: Result<Target<'a>, String>,
    pods: Vec<&'a Pod>,
    measured: &'a Measured,
    /// The autoscalers of the target, where it has several: `namespace/name`, the first [`MOST_NAMED`].
    rivals: Vec<String>,
}

/// What an autoscaler scales, whatever version it names it in: group, kind and name.
pub fn aim(scaler: &HorizontalPodAutoscaler) -> String {
    let reference = &scaler.spec.scale_target_ref;
    let version = reference.api_version.as_deref().unwrap_or("");
    let group = version.split_once('/').map_or("", |(group, _)| group);
    format!("{group}\0{}\0{}", reference.kind, reference.name)
}

/// The autoscaler at `key`.
pub fn observe<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<Observed<'a>> {
    let scaler = snapshot.horizontal_pod_autoscalers.get(key)?;
    let target = target(snapshot, scaler, key);
    let pods = match target.as_ref().ok().and_then(|target| target.selector.as_ref()) {
        Some(selector) => {
            snapshot.selected::<Pod>(&key.namespace, selector).into_iter().map(|(_, pod)| &**pod).collect()
        }
        None => Vec::new(),
    };
    let all = snapshot.indexes.get(Index::AutoscalersOf, &key.namespace, &aim(scaler));
    let mut rivals: Vec<String> = all.take(MOST_NAMED).map(|key| format!("{}/{}", key.namespace, key.name)).collect();
    if rivals.len() == 1 {
        rivals.clear();
    }
    Some(Observed { scaler, target, pods, measured: &snapshot.measured, rivals })
}

fn target<'a>(snapshot: &'a Snapshot, scaler: &HorizontalPodAutoscaler, key: &ObjectKey) -> Result<Target<'a>, String> {
    let reference = &scaler.spec.scale_target_ref;
    let api_version = reference.api_version.as_deref().unwrap_or("");
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let kind = snapshot.registry.find_kind(group, version, &reference.kind);
    let kind = kind.ok_or_else(|| format!("no matches for kind {:?} in group {group:?}", reference.kind))?;
    let at = ObjectKey::new(key.namespace.clone(), reference.name.as_str());
    let missing = || format!("{} {:?} not found", kind.resource(), reference.name);
    let made = |metadata: &'a ObjectMeta,
                replicas: Option<i32>,
                current: Option<i32>,
                selector: Option<LabelSelector>| Target {
        kind: kind.clone(),
        metadata,
        replicas: replicas.unwrap_or(1),
        current: current.unwrap_or(0),
        selector,
        path: vec!["spec".to_owned(), "replicas".to_owned()],
    };
    let stored = kind.stored();
    Ok(if stored == &DEPLOYMENT {
        let found = snapshot.deployments.get(&at).ok_or_else(missing)?;
        let status = found.status.as_ref().and_then(|status| status.replicas);
        made(&found.metadata, found.spec.replicas, status, Some(found.spec.selector.clone()))
    } else if stored == &STATEFUL_SET {
        let found = snapshot.stateful_sets.get(&at).ok_or_else(missing)?;
        let status = found.status.as_ref().map(|status| status.replicas);
        made(&found.metadata, found.spec.replicas, status, Some(found.spec.selector.clone()))
    } else if stored == &REPLICA_SET {
        let found = snapshot.replica_sets.get(&at).ok_or_else(missing)?;
        let status = found.status.as_ref().map(|status| status.replicas);
        made(&found.metadata, found.spec.replicas, status, Some(found.spec.selector.clone()))
    } else if stored == &REPLICATION_CONTROLLER {
        let found = snapshot.replication_controllers.get(&at).ok_or_else(missing)?;
        let spec = found.spec.as_ref();
        let pairs = spec.and_then(|spec| spec.selector.clone());
        let selector = pairs.map(|pairs| LabelSelector { match_labels: Some(pairs), ..LabelSelector::default() });
        let status = found.status.as_ref().map(|status| status.replicas);
        made(&found.metadata, spec.and_then(|spec| spec.replicas), status, selector)
    } else {
        let name = format!("{api_version}/{}/{}/{}", reference.kind, key.namespace, reference.name);
        let scale = snapshot.measured.scales.get(&name).ok_or_else(missing)?;
        let meta = snapshot.metas.get(&(stored.clone(), at)).ok_or_else(missing)?;
        let pairs = scale.selector.split(',').map(|pair| pair.split_once('='));
        let pairs = pairs.map(|pair| pair.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let pairs: Option<BTreeMap<String, String>> = pairs.collect();
        let selector = pairs.map(|pairs| LabelSelector { match_labels: Some(pairs), ..LabelSelector::default() });
        let target = made(&meta.metadata, Some(scale.replicas), Some(scale.current), selector);
        Target { path: scale.path.clone(), ..target }
    })
}

/// What a look at the metrics came to.
struct Wanted {
    replicas: i32,
    /// Why the size changes, where it does.
    reason: String,
    metrics: Option<Vec<Value>>,
}

/// The target's size, and the autoscaler's status.
pub fn decide(o: &Observed, now: Timestamp) -> Decision {
    let mut d = Decision::default();
    if adapted::is_awaited(o) {
        return d;
    }
    let meta = &o.scaler.metadata;
    let spec = &o.scaler.spec;
    let old = o.scaler.status.clone().unwrap_or_default();
    let mut status = HorizontalPodAutoscalerStatus { observed_generation: meta.generation, ..old.clone() };
    let say = |status: &mut HorizontalPodAutoscalerStatus, type_: &str, is: bool, reason: &str, message: &str| {
        set_condition(status, type_, is, reason, message, now);
    };
    let target = match &o.target {
        Ok(target) => target,
        Err(why) => {
            d.events.push(Event::warning(&KIND, meta, "FailedGetScale", why.clone()));
            let message = format!("the HPA controller was unable to get the target's current scale: {why}");
            say(&mut status, "AbleToScale", false, "FailedGetScale", &message);
            return finish(o, d, &old, status, None);
        }
    };
    let able = "the HPA controller was able to get the target's current scale";
    say(&mut status, "AbleToScale", true, "SucceededGetScale", able);
    let (current, least, most) = (target.replicas, spec.min_replicas.unwrap_or(1), spec.max_replicas);
    let mut history = History::of(meta, now);
    history.begin(current, now);
    let wanted = if current == 0 && least != 0 {
        let message = "scaling is disabled since the replica count of the target is zero";
        say(&mut status, "ScalingActive", false, "ScalingDisabled", message);
        Wanted { replicas: 0, reason: String::new(), metrics: None }
    } else if current > most {
        Wanted { replicas: most, reason: "Current number of replicas above Spec.MaxReplicas".into(), metrics: None }
    } else if current < least {
        Wanted { replicas: least, reason: "Current number of replicas below Spec.MinReplicas".into(), metrics: None }
    } else if let Some(message) = ambiguous(o, target) {
        d.events.push(Event::warning(&KIND, meta, "AmbiguousSelector", message.clone()));
        say(&mut status, "ScalingActive", false, "AmbiguousSelector", &message);
        Wanted { replicas: current, reason: String::new(), metrics: None }
    } else {
        match replicas::proposed(o, target, now, &mut d.events) {
            Ok(proposal) => {
                let message =
                    format!("the HPA was able to successfully calculate a replica count from {}", proposal.metric);
                say(&mut status, "ScalingActive", true, "ValidMetricFound", &message);
                let limited = behavior::limit(spec, current, proposal.replicas, &mut history, now);
                limit_conditions(&mut status, &limited, now);
                let reason = match limited.replicas.cmp(&current) {
                    std::cmp::Ordering::Greater => format!("{} above target", proposal.metric),
                    std::cmp::Ordering::Less => "All metrics below target".to_owned(),
                    std::cmp::Ordering::Equal => String::new(),
                };
                Wanted { replicas: limited.replicas, reason, metrics: Some(proposal.metrics) }
            }
            Err(failed) => {
                let message = format!("the HPA was unable to compute the replica count: {}", failed.why);
                say(&mut status, "ScalingActive", false, failed.reason, &message);
                d.events.push(Event::warning(&KIND, meta, "FailedComputeMetricsReplicas", failed.summary));
                Wanted { replicas: current, reason: String::new(), metrics: Some(failed.metrics) }
            }
        }
    };
    if wanted.replicas != current && !(current == 0 && least != 0) {
        d.writes.push(resize(target, wanted.replicas));
        let message = format!("New size: {}; reason: {}", wanted.replicas, wanted.reason);
        d.events.push(Event::normal(&KIND, meta, "SuccessfulRescale", message));
        let message = format!("the HPA controller was able to update the target scale to {}", wanted.replicas);
        say(&mut status, "AbleToScale", true, "SucceededRescale", &message);
        history.scaled(wanted.replicas - current, now);
        status.last_scale_time = Some(Time(now));
    }
    status.current_replicas = Some(target.current);
    status.desired_replicas = wanted.replicas;
    if let Some(metrics) = wanted.metrics {
        status.current_metrics = serde_json::from_value(Value::Array(metrics)).ok();
    }
    history.forget(spec, now);
    finish(o, d, &old, status, Some(history))
}

/// Why none of several autoscalers scales a target: they would undo each other's work for ever.
fn ambiguous(o: &Observed, target: &Target) -> Option<String> {
    let selector = Labels::from_typed(target.selector.as_ref()).map_or_else(|error| error, |all| all.to_string());
    let all = o.rivals.join(" ");
    (!o.rivals.is_empty()).then(|| format!("pods by selector {selector} are controlled by multiple HPAs: [{all}]"))
}

fn limit_conditions(status: &mut HorizontalPodAutoscalerStatus, limited: &Limited, now: Timestamp) {
    let (reason, message) = match limited.is_stabilized {
        Some(reason @ "ScaleUpStabilized") => {
            (reason, "recent recommendations were lower than current one, applying the lowest recent recommendation")
        }
        Some(reason) => {
            (reason, "recent recommendations were higher than current one, applying the highest recent recommendation")
        }
        None => ("ReadyForNewScale", "recommended size matches current size"),
    };
    set_condition(status, "AbleToScale", true, reason, message, now);
    let (is, reason, message) = match limited.limit {
        Some((reason, message)) => (true, reason, message),
        None => (false, "DesiredWithinRange", "the desired count is within the acceptable range"),
    };
    set_condition(status, "ScalingLimited", is, reason, message, now);
}

/// The write that gives the target its size.
fn resize(target: &Target, replicas: i32) -> Write {
    let patch = target.path.iter().rev().fold(json!(replicas), |inner, field| json!({ field.as_str(): inner }));
    Write::patch(target.kind.stored(), target.metadata, patch)
}

/// The status as it is to be, and the history where it says something new.
fn finish(
    o: &Observed,
    mut d: Decision,
    old: &HorizontalPodAutoscalerStatus,
    new: HorizontalPodAutoscalerStatus,
    history: Option<History>,
) -> Decision {
    let meta = &o.scaler.metadata;
    if let Some(annotations) = history.and_then(|history| history.patch(meta)) {
        d.writes.push(Write::patch(&KIND, meta, json!({ "metadata": { "annotations": annotations } })));
    }
    d.writes.extend(Write::change_status(&KIND, meta, &json!(old), &json!(new)));
    // Events that repeat with every look would tell nobody anything new.
    if d.writes.is_empty() {
        d.events.clear();
    }
    d
}

/// A condition's time moves with its status.
fn set_condition(
    status: &mut HorizontalPodAutoscalerStatus,
    type_: &str,
    is: bool,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let value = if is { "True" } else { "False" };
    let conditions = status.conditions.get_or_insert_default();
    let before = conditions.iter().position(|condition| condition.type_ == type_);
    let since = before
        .and_then(|at| conditions.get(at))
        .filter(|old| old.status == value)
        .and_then(|old| old.last_transition_time.clone());
    let condition = HorizontalPodAutoscalerCondition {
        type_: type_.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: Some(since.unwrap_or(Time(now))),
        ..HorizontalPodAutoscalerCondition::default()
    };
    match before.and_then(|at| conditions.get_mut(at)) {
        Some(old) => *old = condition,
        None => conditions.push(condition),
    }
}
