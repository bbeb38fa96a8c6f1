//! Pods made from a workload's template, and which of several equal pods goes first.

use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mainstay_api::Kind;
use mainstay_api::names::GENERATE_NAME_LENGTH;
use serde_json::{Value, json};

use crate::ownership::controller_reference;
use crate::pods;

/// The name of a pod: what its owner's pods begin with, cut as the API server cuts a `generateName`, and a suffix.
pub fn name(prefix: &str, suffix: &str) -> String {
    let end = (0..=GENERATE_NAME_LENGTH.min(prefix.len())).rev().find(|at| prefix.is_char_boundary(*at)).unwrap_or(0);
    format!("{}{suffix}", prefix.get(..end).unwrap_or(""))
}

/// A pod of `template` that the object of `kind` with metadata `owner` controls. `prefix` is its `generateName`.
pub fn pod(template: &PodTemplateSpec, kind: &Kind, owner: &ObjectMeta, prefix: &str, name: &str) -> Value {
    let meta = template.metadata.clone().unwrap_or_default();
    let mut metadata = json!({
        "namespace": owner.namespace, "generateName": prefix, "name": name,
        "ownerReferences": [controller_reference(kind, owner)],
    });
    for (field, value) in [
        ("labels", json!(meta.labels)),
        ("annotations", json!(meta.annotations)),
        ("finalizers", json!(meta.finalizers)),
    ] {
        if !value.is_null() {
            metadata[field] = value;
        }
    }
    let spec = template.spec.clone().unwrap_or_default();
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec })
}

/// Which pod goes first, smallest first: not bound, Pending, not Ready, Ready for a shorter time, restarted more often,
/// younger. Upstream's order, which a ReplicaSet refines by `pod-deletion-cost` and by its siblings.
pub fn rank(pod: &Pod) -> impl Ord + use<> {
    let phase = match pods::phase(pod) {
        "Running" => 2,
        "Unknown" => 1,
        _ => 0,
    };
    let bound = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).is_some_and(|node| !node.is_empty());
    ((bound, phase, pods::is_ready(pod)), age_rank(pod))
}

/// The part of [`rank`] that is about time and restarts.
pub fn age_rank(pod: &Pod) -> impl Ord + use<> {
    let ready_since = pods::available_at(pod, 0).map(|at| std::cmp::Reverse(at.as_second()));
    let restarts = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    let restarts = restarts.into_iter().flatten().map(|status| status.restart_count).max().unwrap_or(0);
    let created = pod.metadata.creation_timestamp.as_ref().map_or(i64::MIN, |time| time.0.as_second());
    (ready_since, std::cmp::Reverse(restarts), std::cmp::Reverse(created), pod.metadata.name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Upstream's order: of each pair the second goes first, though by all that counts less it were the first.
    #[test]
    fn of_equal_pods_goes_the_one_that_serves_less() {
        let pod = |over: Value| -> Pod {
            let ready = json!([{ "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" }]);
            let mut pod = json!({ "metadata": { "name": "a", "creationTimestamp": "2026-01-01T00:00:00Z" },
                "spec": { "nodeName": "n1", "containers": [] },
                "status": { "phase": "Running", "conditions": ready } });
            crate::world::merge(&mut pod, over);
            serde_json::from_value(pod).unwrap()
        };
        let phase = |phase: &str| json!({ "status": { "phase": phase } });
        let ready = |status: &str, since: &str| {
            let one = json!({ "type": "Ready", "status": status, "lastTransitionTime": since });
            json!({ "status": { "conditions": [one] } })
        };
        let nothing = || json!({});
        for (stays, goes) in [
            (phase("Pending"), json!({ "spec": { "nodeName": null } })),
            (phase("Pending"), json!({ "spec": { "nodeName": "" } })),
            (phase("Unknown"), phase("Pending")),
            (phase("Running"), phase("Unknown")),
            (nothing(), ready("False", "2025-01-01T00:00:00Z")),
            (nothing(), ready("True", "2026-01-01T00:00:01Z")),
            (nothing(), json!({ "metadata": { "creationTimestamp": "2026-01-01T00:00:01Z" } })),
        ] {
            assert!(rank(&pod(goes.clone())) < rank(&pod(stays.clone())), "{stays} {goes}");
        }
    }
}
