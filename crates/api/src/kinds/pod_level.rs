//! `spec.resources` of a pod: what its containers may use together.

use serde_json::Value;

use super::container_validation::resources;
use super::field::{Field, inner};
use crate::object;
use crate::pod_resources::{self, amounts};
use crate::quantity::{self, Quantity};
use crate::status::Cause;

/// Whether a resource can be of a pod as a whole.
fn is_supported(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

/// Whether a pod's quality of service is by its own resources.
pub(super) fn counts(spec: &Field) -> bool {
    let named = |list: &str| -> bool {
        let own = amounts(&spec.dig(&["resources", list]));
        own.iter().any(|(name, amount)| matches!(name.as_str(), "cpu" | "memory") && !amount.is_zero())
    };
    named("requests") || named("limits")
}

/// Requests that the pod does not name are those of its containers together, else its limits.
pub(super) fn default_requests(spec: &mut Value) {
    let Some(own) = inner(spec, "resources").filter(|own| own.as_object().is_some_and(|own| !own.is_empty())) else {
        return;
    };
    for list in ["limits", "requests"] {
        quantity::canonicalize_list(own.get_mut(list));
    }
    let field = Field::root(spec);
    let (limits, mut missing) = (amounts(&field.dig(&["resources", "limits"])), pod_resources::Amounts::new());
    let requests = amounts(&field.dig(&["resources", "requests"]));
    for (name, amount) in pod_resources::of_containers(&field, "requests").into_iter().chain(limits) {
        if is_supported(&name) && !requests.contains_key(&name) {
            missing.entry(name).or_insert(amount);
        }
    }
    if !missing.is_empty() {
        let requests = object::ensure(spec, &["resources", "requests"]);
        requests.extend(missing.into_iter().map(|(name, amount)| (name, amount.to_string().into())));
    }
}

/// What a pod's own resources must be beside those of its containers.
pub(super) fn validate(spec: &Field, causes: &mut Vec<Cause>) {
    let own = spec.get("resources");
    if !own.is_set() {
        return;
    }
    resources(&own, causes);
    for list in ["limits", "requests"].map(|list| own.get(list)) {
        for (name, amount) in list.entries().filter(|(name, _)| !is_supported(name)) {
            causes.push(Cause::not_supported(&amount.path, name, &["cpu", "hugepages-", "memory"]));
        }
    }
    let requests = amounts(&own.get("requests"));
    for (name, total) in pod_resources::of_containers(spec, "requests") {
        if let Some(request) = requests.get(&name).filter(|request| **request < total) {
            let path = format!("{}.requests[{name}]", own.path);
            let why = format!("must be greater than or equal to aggregate container requests of {total}");
            causes.push(Cause::invalid(path, request.to_string(), &why));
        }
    }
    let limits = amounts(&own.get("limits"));
    for container in ["containers", "initContainers"].iter().flat_map(|list| spec.get(list).items()) {
        for (name, amount) in container.dig(&["resources", "limits"]).entries() {
            let given = Quantity::of(amount.value).ok();
            if let (Some(given), Some(limit)) = (given, limits.get(name))
                && given > *limit
            {
                let why = format!("must be less than or equal to pod limits of {limit}");
                causes.push(Cause::invalid(amount.path, given.to_string(), &why));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::{POD, pod::qos_class};

    fn pod(own: Value, container: Value) -> Value {
        let mut pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p" }, "spec": {
            "resources": own, "containers": [{ "name": "a", "image": "a:1", "resources": container },
                { "name": "b", "image": "b:1" }] } });
        (POD.defaults)(&POD, &mut pod);
        pod
    }

    /// Conformance, pod-level resources: requests that are not named, quality of service, what does not fit.
    #[test]
    fn conformance_resources_of_a_whole_pod() {
        let whole = pod(json!({ "limits": { "cpu": 1, "memory": "64Mi" } }), json!({ "requests": { "cpu": "200m" } }));
        assert_eq!(whole["spec"]["resources"]["requests"], json!({ "cpu": "200m", "memory": "64Mi" }));
        assert_eq!(qos_class(&whole), "Burstable");
        let even = pod(json!({ "limits": { "cpu": "1", "memory": "64Mi" } }), json!({}));
        assert_eq!(qos_class(&even), "Guaranteed", "{even}");
        let faults = |pod: &Value| {
            let mut causes = Vec::new();
            (POD.validate)(&POD, pod, &mut causes);
            causes.into_iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect::<Vec<_>>()
        };
        assert_eq!((faults(&whole), faults(&even)), (vec![], vec![]));
        let wrong = pod(
            json!({ "limits": { "cpu": "1", "ephemeral-storage": "1Gi" }, "requests": { "cpu": "100m" } }),
            json!({ "limits": { "cpu": "2" }, "requests": { "cpu": "200m" } }),
        );
        let told = faults(&wrong);
        for (field, why) in [
            ("spec.resources.limits[ephemeral-storage]", "Unsupported value"),
            ("spec.resources.requests[cpu]", "must be greater than or equal to aggregate container requests of 200m"),
            ("spec.containers[0].resources.limits[cpu]", "must be less than or equal to pod limits of 1"),
        ] {
            assert!(told.iter().any(|one| one.starts_with(field) && one.contains(why)), "{field}: {told:?}");
        }
    }
}
