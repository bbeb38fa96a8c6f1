//! What a Job's pod failure policy and success policy say of its pods.

use k8s_openapi::api::batch::v1::{JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::indexes::Indexes;
use crate::pods::{is_terminating, phase};

/// What a rule says of a failed pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// No rule, or `Count`: it counts towards the back-off limit.
    Counts,
    /// `Ignore`: it does not.
    Ignored,
    /// `FailIndex`: its index has failed, whatever its limit.
    FailsIndex,
    /// `FailJob`: the Job has failed, for this reason.
    FailsJob(String),
}

/// Whether a pod counts as failed. One that is on its way out does too, unless only pods that have really ended are
/// replaced: it may never get to the phase Failed.
pub fn is_failed(pod: &Pod, spec: &JobSpec) -> bool {
    match phase(pod) {
        "Failed" => true,
        "Succeeded" => false,
        _ => !replaces_only_failed(spec) && is_terminating(&pod.metadata),
    }
}

/// Whether a pod's successor is made only when the pod has ended: `podReplacementPolicy: Failed`, or any failure
/// policy.
pub fn replaces_only_failed(spec: &JobSpec) -> bool {
    spec.pod_replacement_policy.as_deref() == Some("Failed") || spec.pod_failure_policy.is_some()
}

/// The first rule that matches a failed pod decides.
pub fn verdict(policy: Option<&PodFailurePolicy>, pod: &Pod) -> Verdict {
    let name = |meta: &Option<String>| meta.clone().unwrap_or_default();
    let (namespace, pod_name) = (name(&pod.metadata.namespace), name(&pod.metadata.name));
    for (index, rule) in policy.iter().flat_map(|policy| policy.rules.iter().enumerate()) {
        let matched = if let Some(codes) = &rule.on_exit_codes {
            exit(pod, codes).map(|(container, code)| {
                format!("Container {container} for pod {namespace}/{pod_name} failed with exit code {code}")
            })
        } else {
            let wanted = rule.on_pod_conditions.as_deref().unwrap_or_default();
            let all = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
            let mut found = all.filter(|condition| {
                wanted.iter().any(|want| {
                    want.type_ == condition.type_ && want.status.as_deref().unwrap_or("True") == condition.status
                })
            });
            found.next().map(|condition| format!("Pod {namespace}/{pod_name} has condition {}", condition.type_))
        };
        let Some(what) = matched else { continue };
        return match rule.action.as_str() {
            "Ignore" => Verdict::Ignored,
            "FailIndex" => Verdict::FailsIndex,
            "FailJob" => Verdict::FailsJob(format!("{what} matching FailJob rule at index {index}")),
            _ => Verdict::Counts,
        };
    }
    Verdict::Counts
}

/// A container that ended with a code that the requirement takes; success never matches.
fn exit<'a>(pod: &'a Pod, wanted: &PodFailurePolicyOnExitCodesRequirement) -> Option<(&'a str, i32)> {
    let status = pod.status.as_ref()?;
    let all = [&status.container_statuses, &status.init_container_statuses].into_iter().flatten().flatten();
    let ended = |container: &'a ContainerStatus| {
        Some((container.name.as_str(), container.state.as_ref()?.terminated.as_ref()?.exit_code))
    };
    all.filter_map(ended).find(|(name, code)| {
        wanted.container_name.as_deref().is_none_or(|only| only == *name)
            && *code != 0
            && wanted.values.contains(code) == (wanted.operator == "In")
    })
}

/// Whether enough has succeeded by the success policy: the message of the condition.
pub fn success(spec: &JobSpec, succeeded: &Indexes) -> Option<String> {
    let completions = spec.completions.unwrap_or(0);
    let rules = &spec.success_policy.as_ref()?.rules;
    if succeeded.total() == 0 {
        return None;
    }
    let met = rules.iter().position(|rule| match (&rule.succeeded_indexes, rule.succeeded_count) {
        (Some(indexes), count) => {
            let required = Indexes::parse(indexes, completions);
            let needed = count.unwrap_or(i32::MAX).min(required.total());
            required.common(succeeded) >= needed
        }
        (None, Some(count)) => succeeded.total() >= count,
        (None, None) => false,
    })?;
    Some(format!("Matched rules at index {met}"))
}
