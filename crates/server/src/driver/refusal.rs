//! What is told of a write that is refused (by a quota, a policy, a webhook): an event about who wanted it, and the
//! condition by which upstream's controllers show it.

use mainstay_api::{Kind, ObjectKey, Status, kinds, object};
use mainstay_logic::controllers::namespace::{self, CONTENT_FAILURE};
use mainstay_logic::controllers::replicaset::REPLICA_FAILURE;
use mainstay_logic::controllers::{deployment, horizontalpodautoscaler, podgc};
use mainstay_logic::{Event, Write, scheduler};
use serde_json::{Value, json};

use super::{Part, events};
use crate::api::{self, Batch};

/// Longer messages are cut in conditions, in characters.
const MAX_MESSAGE: usize = 1024;

/// Tells of one refused write of a decision.
pub fn record(batch: &mut Batch<'_>, controller: &'static str, part: &Part, write: &Write, status: &Status) {
    // Somebody else was quicker.
    if matches!(status.code, 404 | 409) {
        return;
    }
    let why: String = status.message.chars().take(MAX_MESSAGE).collect();
    if controller == scheduler::CONTROLLER.name {
        return not_placed(batch, controller, part, write, &why);
    }
    match write {
        Write::Create { kind, object } => {
            let made = (kind, object::name(object));
            for owner in owners(batch, object) {
                tell(batch, controller, &owner, made, ("FailedCreate", "create"), &why);
            }
        }
        Write::Delete { .. } if controller == namespace::CONTROLLER.name => content_remains(batch, &part.key, &why),
        Write::Delete { kind, key, .. } => {
            let Ok(Some(object)) = batch.get(kind, &key.namespace, &key.name) else { return };
            for owner in owners(batch, &object) {
                tell(batch, controller, &owner, (kind, &key.name), ("FailedDelete", "delete"), &why);
            }
        }
        Write::Patch { status: false, .. } if controller == horizontalpodautoscaler::CONTROLLER.name => {
            not_scaled(batch, controller, part, &why);
        }
        // Differs: upstream tries again and says nothing; a rollout would stand still without a word.
        Write::Patch { kind, key, status: false, .. }
            if *kind == kinds::REPLICA_SET && controller == deployment::CONTROLLER.name =>
        {
            let Ok(Some(object)) = batch.get(kind, &key.namespace, &key.name) else { return };
            for owner in owners(batch, &object) {
                tell(batch, controller, &owner, (kind, &key.name), ("FailedUpdate", "update"), &why);
            }
        }
        Write::Patch { .. } | Write::Bind { .. } | Write::Release { .. } => {}
    }
}

/// Who wanted it.
struct Owner {
    kind: Kind,
    key: ObjectKey,
    uid: String,
}

/// The owner of an object that controls it.
fn owners(batch: &Batch<'_>, object: &Value) -> Vec<Owner> {
    let all = object::at(object, &["metadata", "ownerReferences"]).and_then(Value::as_array).into_iter().flatten();
    let controls = all.filter(|owner| owner.get("controller").and_then(Value::as_bool) == Some(true));
    let found = controls.filter_map(|owner| {
        let api_version = object::text(owner, &["apiVersion"]);
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let kind = batch.registry.find_kind(group, version, object::text(owner, &["kind"]))?.clone();
        let namespace = if kind.namespaced { object::namespace(object) } else { "" };
        let key = ObjectKey::new(namespace, object::text(owner, &["name"]));
        Some(Owner { kind, key, uid: object::text(owner, &["uid"]).to_owned() })
    });
    found.collect()
}

fn tell(
    batch: &mut Batch<'_>,
    controller: &'static str,
    owner: &Owner,
    (kind, name): (&Kind, &str),
    (reason, verb): (&'static str, &str),
    why: &str,
) {
    let is_rollout = *kind == kinds::REPLICA_SET && owner.kind == kinds::DEPLOYMENT && verb == "create";
    let message = match (&*owner.kind.kind, &*kind.kind) {
        ("ReplicaSet" | "ReplicationController" | "DaemonSet" | "Job", "Pod") => match verb {
            "create" => format!("Error creating: {why}"),
            _ => format!("Error deleting: {why}"),
        },
        ("CronJob", "Job") if verb == "create" => format!("Error creating job: {why}"),
        ("CronJob", "Job") => format!("Deleted job: {why}"),
        _ if is_rollout => format!("Failed to create new replica set {name:?}: {why}"),
        (owner_kind, kind) => format!("{verb} {kind} {name} in {owner_kind} {} failed error: {why}", owner.key.name),
    };
    let event = Event {
        kind: owner.kind.clone(),
        key: owner.key.clone(),
        uid: owner.uid.clone(),
        warning: true,
        reason: if is_rollout { "ReplicaSetCreateError" } else { reason },
        message,
    };
    events::record(batch, controller, &event);
    match &*owner.kind.kind {
        // What the collector is refused is no failure of the set's.
        "ReplicaSet" | "ReplicationController" if *kind == kinds::POD && controller != podgc::CONTROLLER.name => {
            condition(batch, owner, &Told { type_: REPLICA_FAILURE, status: "True", reason, message: why });
        }
        "Deployment" if is_rollout => {
            let told = Told {
                type_: "Progressing",
                status: "False",
                reason: "ReplicaSetCreateError",
                message: &event.message,
            };
            condition(batch, owner, &told);
        }
        _ => {}
    }
}

/// A namespace goes on to be deleted without what may not be.
fn content_remains(batch: &mut Batch<'_>, key: &ObjectKey, why: &str) {
    let owner = Owner { kind: kinds::NAMESPACE.clone(), key: key.clone(), uid: String::new() };
    let message = format!("Failed to delete all resource types, at least 1 remaining: {why}");
    let told = Told { type_: CONTENT_FAILURE, status: "True", reason: "ContentDeletionFailed", message: &message };
    condition(batch, &owner, &told);
}

/// A pod that may not be bound, or for which a volume may not be, or nobody may be deleted. Differs: upstream says
/// nothing of the last.
fn not_placed(batch: &mut Batch<'_>, controller: &'static str, part: &Part, write: &Write, why: &str) {
    let Ok(Some(pod)) = batch.get(&kinds::POD, &part.key.namespace, &part.key.name) else { return };
    let (plugin, is_binding) = match write {
        Write::Bind { .. } => ("Bind plugin \"DefaultBinder\"", true),
        Write::Delete { .. } => ("PostFilter plugin \"DefaultPreemption\"", false),
        Write::Patch { kind, .. } if *kind == kinds::POD => return,
        _ => ("PreBind plugin \"VolumeBinding\"", true),
    };
    let message: String = format!("running {plugin}: {why}").chars().take(MAX_MESSAGE).collect();
    let owner = Owner { kind: kinds::POD.clone(), key: part.key.clone(), uid: object::uid(&pod).to_owned() };
    let event = Event {
        kind: owner.kind.clone(),
        key: owner.key.clone(),
        uid: owner.uid.clone(),
        warning: true,
        reason: "FailedScheduling",
        message,
    };
    events::record(batch, controller, &event);
    // Who waits for room says so with each decision.
    if is_binding {
        let message = &event.message;
        let told = Told { type_: "PodScheduled", status: "False", reason: "SchedulerError", message };
        condition(batch, &owner, &told);
    }
}

/// An autoscaler whose target may not be changed.
fn not_scaled(batch: &mut Batch<'_>, controller: &'static str, part: &Part, why: &str) {
    let kind = &kinds::HORIZONTAL_POD_AUTOSCALER;
    let planned = part.decision.events.iter().find(|event| event.reason == "SuccessfulRescale");
    let Some(planned) = planned else { return };
    let message = format!("{}; error: {why}", planned.message);
    events::record(batch, controller, &Event { warning: true, reason: "FailedRescale", message, ..planned.clone() });
    let owner = Owner { kind: kind.clone(), key: part.key.clone(), uid: planned.uid.clone() };
    let message = format!("the HPA controller was unable to update the target scale: {why}");
    let told = Told { type_: "AbleToScale", status: "False", reason: "FailedUpdateScale", message: &message };
    condition(batch, &owner, &told);
}

/// A condition as it is to be.
struct Told<'a> {
    type_: &'a str,
    status: &'a str,
    reason: &'a str,
    message: &'a str,
}

/// Sets a condition, unless it says so already: the change wakes whoever wanted the write. The controller takes it away
/// when it is over.
fn condition(batch: &mut Batch<'_>, owner: &Owner, told: &Told<'_>) {
    let Ok(Some(object)) = batch.get(&owner.kind, &owner.key.namespace, &owner.key.name) else { return };
    let mut conditions: Vec<Value> =
        object::at(&object, &["status", "conditions"]).and_then(Value::as_array).cloned().unwrap_or_default();
    let is_of = |one: &Value| object::text(one, &["type"]) == told.type_;
    let is_told = |one: &Value| {
        is_of(one) && object::text(one, &["status"]) == told.status && object::text(one, &["reason"]) == told.reason
    };
    let is_another = !owner.uid.is_empty() && object::uid(&object) != owner.uid;
    if is_another || conditions.iter().any(is_told) {
        return;
    }
    let now = mainstay_api::time::rfc3339(batch.now);
    let mut new = json!({ "type": told.type_, "status": told.status, "reason": told.reason, "message": told.message,
        "lastTransitionTime": now });
    if owner.kind == kinds::DEPLOYMENT {
        new["lastUpdateTime"] = now.into();
    }
    match conditions.iter_mut().find(|one| is_of(one)) {
        Some(old) => *old = new,
        None => conditions.push(new),
    }
    let change = |old: &Value| {
        let mut new = old.clone();
        object::ensure(&mut new, &["status"]).insert("conditions".to_owned(), conditions.clone().into());
        Ok(new)
    };
    let done = api::patch(batch, &owner.kind, &owner.key.namespace, &owner.key.name, api::Part::Status, &change);
    if let Err(status) = done {
        tracing::debug!(key = %owner.key, message = %status.message, "a refusal could not be noted");
    }
}
