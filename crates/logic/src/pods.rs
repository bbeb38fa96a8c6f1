//! What decisions ask of a pod: is it ready, available, on its way out; what it wants beside it; and label selectors.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{
    Affinity, Container, Pod, PodAffinityTerm, PodCondition, TopologySpreadConstraint, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// Whether `metadata.deletionTimestamp` is set.
pub fn is_terminating(meta: &ObjectMeta) -> bool {
    meta.deletion_timestamp.is_some()
}

/// `status.phase`, or `""`.
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("")
}

/// Phase Succeeded or Failed: no container of it will ever run again.
pub fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Neither finished nor on its way out.
pub fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && !is_terminating(&pod.metadata)
}

/// Whether a node took it up: it runs or ran, or the node says how far its containers are.
pub fn is_taken_up(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let statuses = status.into_iter().flat_map(|status| [&status.init_container_statuses, &status.container_statuses]);
    matches!(phase(pod), "Running" | "Succeeded") || statuses.flatten().flatten().next().is_some()
}

/// Whether it failed before anything of it was begun: its node did not take it.
pub fn is_refused(pod: &Pod) -> bool {
    phase(pod) == "Failed" && !is_taken_up(pod) && !is_terminating(&pod.metadata)
}

/// When a pod ended: its last container, else its deletion, its Ready condition, or its creation.
pub fn finished_at(pod: &Pod) -> Timestamp {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let ended = statuses.filter_map(|container| container.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref());
    let meta = &pod.metadata;
    let ready = || condition(pod, "Ready").and_then(|ready| ready.last_transition_time.as_ref());
    let begun = |time: &Time| {
        let grace = SignedDuration::from_secs(meta.deletion_grace_period_seconds.unwrap_or(0).max(0));
        time.0.checked_sub(grace).unwrap_or(time.0)
    };
    ended
        .map(|time| time.0)
        .max()
        .or_else(|| meta.deletion_timestamp.as_ref().map(begun))
        .or_else(|| ready().or(meta.creation_timestamp.as_ref()).map(|time| time.0))
        .unwrap_or(Timestamp::MIN)
}

/// An init container that keeps running beside the others.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// The condition that says why a pod is taken away before its time; a Job's failure policy reads it.
pub const DISRUPTION_TARGET: &str = "DisruptionTarget";
/// Its reason where the kubelet ends the pod.
pub const TERMINATION_BY_KUBELET: &str = "TerminationByKubelet";

/// The pod's conditions with that one.
pub fn disrupted(pod: &Pod, reason: &str, message: &str, now: Timestamp) -> Vec<PodCondition> {
    let target = PodCondition {
        type_: DISRUPTION_TARGET.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: Some(Time(now)),
        ..PodCondition::default()
    };
    undisrupted(pod).chain([target]).collect()
}

/// The pod's conditions without that one.
pub fn undisrupted(pod: &Pod) -> impl Iterator<Item = PodCondition> {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.filter(|condition| condition.type_ != DISRUPTION_TARGET).cloned()
}

/// The condition of a type.
pub fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == type_)
}

/// Condition Ready is `True`.
pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|ready| ready.status == "True")
}

/// Phase Running and condition Ready.
pub fn is_running_and_ready(pod: &Pod) -> bool {
    phase(pod) == "Running" && is_ready(pod)
}

/// When a pod counts as available: Ready for `min_ready_seconds`. `None` while it is not Ready; a moment in the past or
/// the future otherwise. Follows `podutil.IsPodAvailable`.
pub fn available_at(pod: &Pod, min_ready_seconds: i32) -> Option<Timestamp> {
    let ready = condition(pod, "Ready").filter(|ready| ready.status == "True")?;
    let since = ready.last_transition_time.as_ref().map_or(Timestamp::MIN, |time| time.0);
    after(since, min_ready_seconds)
}

/// `seconds` after `at`; `None` beyond the end of time.
pub fn after(at: Timestamp, seconds: i32) -> Option<Timestamp> {
    at.checked_add(SignedDuration::from_secs(i64::from(seconds.max(0)))).ok()
}

/// Ready, and for at least `min_ready_seconds`.
pub fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    available_at(pod, min_ready_seconds).is_some_and(|at| at <= now)
}

/// Whether the pod has not been Ready once since it was made.
///
/// A kubelet sets all conditions when it first sees a pod, Ready to False among them, and moves Ready's transition time
/// only when its status changes. A pod that was Ready and no longer is therefore has a Ready condition younger than its
/// Initialized condition, and one that never was has not. A pod that was Ready within the second in which it was
/// initialized counts as never Ready.
pub fn never_ready(pod: &Pod) -> bool {
    let Some(ready) = condition(pod, "Ready") else { return true };
    if ready.status == "True" {
        return false;
    }
    let Some(since) = &ready.last_transition_time else { return true };
    ["Initialized", "PodScheduled"]
        .iter()
        .filter_map(|type_| condition(pod, type_)?.last_transition_time.as_ref())
        .any(|time| since.0.as_second() <= time.0.as_second())
}

/// Whether a container of the pod is held back after it failed (`CrashLoopBackOff`, `ImagePullBackOff`, …): nothing
/// runs that a deletion could interrupt.
pub fn in_back_off(pod: &Pod) -> bool {
    let statuses = pod.status.as_ref();
    let all = statuses
        .into_iter()
        .flat_map(|status| [&status.init_container_statuses, &status.container_statuses])
        .flatten()
        .flatten();
    all.filter_map(|container| container.state.as_ref()?.waiting.as_ref()?.reason.as_deref())
        .any(|reason| reason.ends_with("BackOff") || reason.starts_with("Err") || reason.ends_with("Error"))
}

/// Whether a selector selects an object with these labels. An empty selector selects everything; one with an unknown
/// operator nothing.
pub fn selects(selector: &LabelSelector, labels: Option<&BTreeMap<String, String>>) -> bool {
    let value = |key: &str| labels.and_then(|labels| labels.get(key));
    selector.match_labels.iter().flatten().all(|(key, wanted)| value(key) == Some(wanted))
        && selector.match_expressions.iter().flatten().all(|requirement| {
            let found = value(&requirement.key);
            let listed = || requirement.values.iter().flatten().any(|wanted| Some(wanted) == found);
            match requirement.operator.as_str() {
                "In" => listed(),
                "NotIn" => !listed(),
                "Exists" => found.is_some(),
                "DoesNotExist" => found.is_none(),
                _ => false,
            }
        })
}

/// Whether a selector has no requirement at all, and so would select every object.
pub fn selects_everything(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
        && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
}

/// A number, or a percentage of `total` rounded up or down. What is neither counts as 0.
pub fn scaled(value: &IntOrString, total: i32, round_up: bool) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let percent =
                text.strip_suffix('%').and_then(|percent| percent.parse::<i64>().ok()).unwrap_or(0).clamp(0, 1_000_000);
            let product = percent * i64::from(total);
            let rounded = if round_up { product.saturating_add(99) / 100 } else { product / 100 };
            i32::try_from(rounded).unwrap_or(i32::MAX)
        }
    }
}

/// The names of the claims of a pod, and whether each is made for it (ephemeral).
pub fn claim_names(pod: &Pod) -> Vec<(String, bool)> {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    volumes.iter().filter_map(|volume| claim_name(pod, volume)).collect()
}

/// The claim of one of a pod's volumes, where it has one, and whether it is made for the pod (ephemeral).
pub fn claim_name(pod: &Pod, volume: &Volume) -> Option<(String, bool)> {
    let pod_name = pod.metadata.name.as_deref().unwrap_or("");
    match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(source), _) => Some((source.claim_name.clone(), false)),
        (None, Some(_)) => Some((format!("{pod_name}-{}", volume.name), true)),
        _ => None,
    }
}

/// `spec.affinity`.
pub fn affinity(pod: &Pod) -> Option<&Affinity> {
    pod.spec.as_ref()?.affinity.as_ref()
}

/// The pods that a pod must be beside.
pub fn required_affinity(pod: &Pod) -> &[PodAffinityTerm] {
    let terms = affinity(pod).and_then(|a| a.pod_affinity.as_ref());
    terms.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref()).unwrap_or_default()
}

/// The pods that a pod must not be beside.
pub fn required_anti_affinity(pod: &Pod) -> &[PodAffinityTerm] {
    let terms = affinity(pod).and_then(|a| a.pod_anti_affinity.as_ref());
    terms.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref()).unwrap_or_default()
}

/// `spec.topologySpreadConstraints`.
pub fn spread_constraints(pod: &Pod) -> &[TopologySpreadConstraint] {
    pod.spec.as_ref().and_then(|spec| spec.topology_spread_constraints.as_deref()).unwrap_or_default()
}

/// Whether a pod cares where others are, so that a binding elsewhere may free it.
pub fn looks_at_others(pod: &Pod) -> bool {
    !required_affinity(pod).is_empty() || !spread_constraints(pod).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(value: Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn when_a_pod_ended_and_whether_it_was_taken_at_all() {
        let ended = |seconds: &[i64]| {
            let state = |second: &i64| {
                let at = Timestamp::from_second(*second).unwrap().to_string();
                json!({"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                    "state": {"terminated": {"exitCode": 0, "finishedAt": at}}})
            };
            json!(seconds.iter().map(state).collect::<Vec<_>>())
        };
        let meta = |grace: Value| {
            json!({"creationTimestamp": "1970-01-01T00:00:10Z", "deletionTimestamp": "1970-01-01T00:01:40Z",
                "deletionGracePeriodSeconds": grace})
        };
        let ready = json!([{"type": "Ready", "status": "False", "lastTransitionTime": "1970-01-01T00:00:50Z"}]);
        let created = json!({"creationTimestamp": "1970-01-01T00:00:10Z"});
        for (object, second) in [
            (json!({"metadata": meta(json!(30)), "status": {"containerStatuses": ended(&[20, 40, 30])}}), 40),
            (json!({"metadata": meta(json!(30)), "status": {"conditions": ready}}), 70),
            (json!({"metadata": meta(json!(-30)), "status": {"conditions": ready}}), 100),
            (json!({"metadata": meta(Value::Null)}), 100),
            (json!({"metadata": created, "status": {"conditions": ready}}), 50),
            (json!({"metadata": created}), 10),
        ] {
            assert_eq!(finished_at(&pod(object.clone())).as_second(), second, "{object}");
        }
        let failed = |over: Value| {
            let mut object = json!({"metadata": {}, "status": {"phase": "Failed"}});
            crate::world::merge(&mut object, over);
            is_refused(&pod(object))
        };
        assert!(failed(json!({})) && !failed(json!({"status": {"phase": "Pending"}})));
        assert!(!failed(json!({"status": {"containerStatuses": ended(&[1])}})));
        assert!(!failed(json!({"metadata": {"deletionTimestamp": "1970-01-01T00:01:40Z"}})), "it was told to go");
        let looks = |spec: Value| looks_at_others(&pod(json!({"metadata": {}, "spec": spec})));
        let term = json!({"topologyKey": "zone", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule"});
        assert!(
            !looks(json!({"containers": []})) && looks(json!({"containers": [], "topologySpreadConstraints": [term]}))
        );
        let affinity =
            json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "zone"}]}});
        assert!(looks(json!({"containers": [], "affinity": affinity})));
    }

    #[test]
    fn label_selectors_select_as_upstream_says() {
        let labels =
            BTreeMap::from([("app", "web"), ("tier", "db")].map(|(key, value)| (key.to_owned(), value.to_owned())));
        let asks = |key: &str, operator: &str, values: Value| {
            json!({"matchExpressions": [{"key": key,
            "operator": operator, "values": values}]})
        };
        let table = [
            (json!({}), true, true),
            (json!({"matchLabels": {"app": "web"}}), true, false),
            (json!({"matchLabels": {"app": "web", "tier": "x"}}), false, false),
            (json!({"matchLabels": {"none": "web"}}), false, false),
            (asks("app", "In", json!(["a", "web"])), true, false),
            (asks("app", "In", json!(["a"])), false, false),
            (asks("app", "In", json!([])), false, false),
            (asks("app", "NotIn", json!(["a", "web"])), false, true),
            (asks("app", "NotIn", json!(["a"])), true, true),
            (asks("app", "Exists", json!([])), true, false),
            (asks("app", "DoesNotExist", json!([])), false, true),
            (asks("app", "Near", json!(["web"])), false, false),
            (
                json!({"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "x", "operator": "Exists"}]}),
                false,
                false,
            ),
        ];
        for (selector, expected, without_labels) in table {
            let typed: LabelSelector = serde_json::from_value(selector.clone()).unwrap();
            let found = (selects(&typed, Some(&labels)), selects(&typed, None));
            assert_eq!(found, (expected, without_labels), "{selector}");
            assert_eq!(selects_everything(&typed), selector == json!({}), "{selector}");
        }
    }

    /// S7: what was never Ready, or is held back, may go; what runs and may recover may not.
    #[test]
    fn s7_never_ready_and_held_back_are_told_from_unready() {
        let condition = |type_: &str, status: &str, second: Value| {
            let time = second.as_i64().map(|second| format!("2026-01-01T00:00:{second:02}Z"));
            json!({"type": type_, "status": status, "lastTransitionTime": time})
        };
        let ready = |status: &str, second: Value| condition("Ready", status, second);
        let (scheduled, initialized) =
            (condition("PodScheduled", "True", json!(10)), condition("Initialized", "True", json!(20)));
        let table = [
            (json!([]), true),
            (json!([ready("True", json!(10)), scheduled]), false),
            (json!([ready("False", json!(null)), scheduled]), true),
            (json!([ready("False", json!(10)), scheduled]), true),
            (json!([ready("False", json!(11)), scheduled]), false),
            (json!([ready("False", json!(20)), scheduled, initialized]), true),
            (json!([ready("False", json!(21)), scheduled, initialized]), false),
        ];
        for (conditions, expected) in table {
            assert_eq!(never_ready(&pod(json!({"status": {"conditions": conditions}}))), expected, "{conditions}");
        }
        let reasons = [
            ("CrashLoopBackOff", true),
            ("ErrImagePull", true),
            ("CreateContainerConfigError", true),
            ("ContainerCreating", false),
            ("PodInitializing", false),
        ];
        for (reason, expected) in reasons {
            for list in ["containerStatuses", "initContainerStatuses"] {
                let status = json!({"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                    "state": {"waiting": {"reason": reason}}});
                assert_eq!(in_back_off(&pod(json!({"status": {list: [status]}}))), expected, "{reason} {list}");
            }
        }
    }

    #[test]
    fn a_pods_claims_are_those_it_names_and_those_made_for_it() {
        let volumes = json!([{"name": "a", "persistentVolumeClaim": {"claimName": "x"}}, {"name": "b", "emptyDir": {}},
            {"name": "c", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}}]);
        let names =
            claim_names(&pod(json!({"metadata": {"name": "web"}, "spec": {"containers": [], "volumes": volumes}})));
        assert_eq!(names, [("x".to_owned(), false), ("web-c".to_owned(), true)]);
    }
}
