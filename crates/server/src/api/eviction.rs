//! `POST pods/<name>/eviction`: a deletion that a disruption budget may refuse.
//!
//! What a budget allows is counted down in the transaction that deletes the pod, so that evictions at the same time
//! can't both take the last one.

use mainstay_api::selector::Labels;
use mainstay_api::{Status, kinds, object};
use serde_json::{Value, json};

use crate::dynamic;
use crate::dynamic::matching::{Attributes, Operation};

use super::{Batch, Body, DeleteOptions, Outcome, delete, metadata};

/// How many evicted pods may wait in a budget's status to be seen going; upstream's.
const MAX_DISRUPTED: usize = 2000;
/// When to ask again while a budget's status is behind its spec, in seconds; upstream's.
const RETRY_SECONDS: u32 = 10;
/// What a refusal is called in its causes.
const CAUSE: &str = "DisruptionBudget";

/// Evicts a pod, or says why not: 429 with the budget's figures.
pub fn evict(batch: &mut Batch<'_>, namespace: &str, name: &str, eviction: &Value) -> Result<Outcome, Status> {
    let named = object::name(eviction);
    if !named.is_empty() && named != name {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let options = eviction.get("deleteOptions").map(DeleteOptions::from_json).transpose()?.unwrap_or_default();
    let mut pod = batch.must_get(&kinds::POD, namespace, name)?;
    let attributes = Attributes::new(&kinds::POD, "eviction", Operation::Create, namespace, name);
    dynamic::posted(batch, attributes.with_type("policy", "v1", "Eviction"), eviction)?;
    let phase = object::text(&pod, &["status", "phase"]);
    let is_free = object::is_terminating(&pod) || matches!(phase, "Succeeded" | "Failed" | "Pending");
    if !is_free {
        options.check_preconditions(&kinds::POD, &pod)?;
        ask_budget(batch, namespace, &pod)?;
    }
    if !object::is_terminating(&pod) {
        set_disrupted(&mut pod, batch);
        batch.put(&kinds::POD, pod)?;
    }
    batch.unasked(|batch| delete::delete(batch, &kinds::POD, namespace, name, &options))?;
    let success = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201 });
    Ok(Outcome::created(Body::Value(success)))
}

/// The pod's condition DisruptionTarget: a Job's failure policy reads it.
fn set_disrupted(pod: &mut Value, batch: &Batch<'_>) {
    let condition = json!({
        "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting", "lastProbeTime": null, "lastTransitionTime": metadata::time(batch.now),
    });
    let conditions = object::ensure(pod, &["status"]).entry("conditions").or_insert_with(|| json!([]));
    if let Some(conditions) = conditions.as_array_mut() {
        conditions.retain(|old| object::text(old, &["type"]) != "DisruptionTarget");
        conditions.push(condition);
    }
}

/// Takes one of what the pod's budget allows, where it has one.
fn ask_budget(batch: &mut Batch<'_>, namespace: &str, pod: &Value) -> Result<(), Status> {
    let kind = &kinds::POD_DISRUPTION_BUDGET;
    let mut all = batch.all_in(kind, namespace)?;
    all.retain(|budget| {
        let selector = object::at(budget, &["spec", "selector"]).filter(|selector| !selector.is_null());
        let labels = object::at(pod, &["metadata", "labels"]);
        selector.is_some_and(|s| Labels::from_json(Some(s)).is_ok_and(|wanted| wanted.matches_json(labels)))
    });
    let found = match all.as_slice() {
        [] => return Ok(()),
        [one] => object::name(one).to_owned(),
        _ => {
            let why =
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
            return Err(Status::new(500, "", why));
        }
    };
    let mut budget = batch.must_get(kind, namespace, &found)?;
    let count = |field: &str| object::at(&budget, &["status", field]).and_then(Value::as_i64).unwrap_or(0);
    let (current, desired) = (count("currentHealthy"), count("desiredHealthy"));
    if !is_ready(pod) {
        let may_go = match object::text(&budget, &["spec", "unhealthyPodEvictionPolicy"]) {
            "AlwaysAllow" => true,
            _ => current >= desired && desired > 0,
        };
        if may_go {
            return Ok(());
        }
    }
    let generation = object::at(&budget, &["metadata", "generation"]).and_then(Value::as_i64).unwrap_or(0);
    if count("observedGeneration") < generation {
        let why = format!("The disruption budget {found} is still being processed by the server.");
        return Err(refused(RETRY_SECONDS, &why));
    }
    let allowed = count("disruptionsAllowed");
    if allowed < 0 {
        return Err(Status::forbidden(kind, &found, "pdb disruptions allowed is negative"));
    }
    let disrupted = object::at(&budget, &["status", "disruptedPods"]).and_then(Value::as_object);
    if disrupted.is_some_and(|pods| pods.len() > MAX_DISRUPTED) {
        let why = "DisruptedPods map too big - too many evictions not confirmed by PDB controller";
        return Err(Status::forbidden(kind, &found, why));
    }
    if allowed == 0 {
        let failed = condition(&budget).filter(|condition| object::text(condition, &["reason"]) == "SyncFailed");
        return Err(match failed {
            Some(failed) => refused(
                0,
                &format!(
                    "The disruption budget {found} does not allow evicting pods currently because it failed sync: {}",
                    object::text(failed, &["message"])
                ),
            ),
            None => refused(
                0,
                &format!("The disruption budget {found} needs {desired} healthy pods and has {current} currently"),
            ),
        });
    }
    take_one(&mut budget, object::name(pod), allowed, batch);
    batch.put(kind, budget)?;
    Ok(())
}

fn take_one(budget: &mut Value, pod: &str, allowed: i64, batch: &Batch<'_>) {
    let now = metadata::time(batch.now);
    let status = object::ensure(budget, &["status"]);
    status.insert("disruptionsAllowed".to_owned(), json!(allowed - 1));
    if allowed == 1 {
        let all = status.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten();
        for condition in all.filter(|condition| object::text(condition, &["type"]) == "DisruptionAllowed") {
            condition["status"] = json!("False");
            condition["reason"] = json!("InsufficientPods");
            condition["lastTransitionTime"] = json!(now);
        }
    }
    object::ensure(budget, &["status", "disruptedPods"]).insert(pod.to_owned(), json!(now));
}

fn condition(budget: &Value) -> Option<&Value> {
    let mut all = object::at(budget, &["status", "conditions"]).and_then(Value::as_array).into_iter().flatten();
    all.find(|condition| object::text(condition, &["type"]) == "DisruptionAllowed")
}

fn is_ready(pod: &Value) -> bool {
    let mut all = object::at(pod, &["status", "conditions"]).and_then(Value::as_array).into_iter().flatten();
    all.any(|condition| object::text(condition, &["type"]) == "Ready" && object::text(condition, &["status"]) == "True")
}

fn refused(retry_after: u32, why: &str) -> Status {
    let words = "Cannot evict pod as it would violate the pod's disruption budget.";
    let mut status = Status::too_many_requests(words, retry_after);
    let details = object::ensure(&mut status.details, &[]);
    details.insert("causes".to_owned(), json!([{ "reason": CAUSE, "message": why }]));
    if retry_after == 0 {
        details.remove("retryAfterSeconds");
    }
    status
}
