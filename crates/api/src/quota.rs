//! What an object counts in a namespace's quotas, and which quotas it counts in.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::kinds::Row;
use crate::kinds::field::Field;
use crate::object::text;
use crate::pod_resources::{self, Amounts};
use crate::quantity::{Format, Quantity};

/// Kinds of the core group whose number has a name without `count/`.
const COUNTED: [&str; 7] =
    ["pods", "services", "replicationcontrollers", "resourcequotas", "secrets", "configmaps", "persistentvolumeclaims"];
/// What each container must say where a quota limits it.
const DEMANDED: [&str; 6] = ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];
/// Between a class's name and what of it is limited.
const OF_CLASS: &str = ".storageclass.storage.k8s.io/";

/// `count/pods`, `count/statefulsets.apps`.
fn count_name(kind: &Row) -> String {
    format!("count/{}", kind.resource())
}

/// Whether a quota's resource is one that objects of this kind use.
pub fn covers(kind: &Row, resource: &str) -> bool {
    if resource == count_name(kind) || (kind.group.is_empty() && COUNTED.contains(&resource) && resource == kind.plural)
    {
        return true;
    }
    match (&*kind.group, &*kind.plural) {
        ("", "pods") => {
            let asked = resource.strip_prefix("requests.").unwrap_or(resource);
            DEMANDED.contains(&resource)
                || matches!(resource.strip_prefix("limits.").unwrap_or(asked), "ephemeral-storage")
                || asked.starts_with("hugepages-")
                || (resource.starts_with("requests.") && asked.contains('/'))
        }
        ("", "persistentvolumeclaims") => resource == "requests.storage" || resource.contains(OF_CLASS),
        ("", "services") => matches!(resource, "services.nodeports" | "services.loadbalancers"),
        _ => false,
    }
}

/// What one object uses, by the names that quotas have for it.
pub fn usage(kind: &Row, object: &Value) -> Amounts {
    let number = |count: usize| Quantity::from_units(i64::try_from(count).unwrap_or(i64::MAX), Format::DecimalSi);
    let mut used = Amounts::from([(count_name(kind), number(1))]);
    let is_pod = kind.group.is_empty() && kind.plural == "pods";
    if is_pod && matches!(text(object, &["status", "phase"]), "Succeeded" | "Failed") {
        return used;
    }
    if kind.group.is_empty() && COUNTED.contains(&&*kind.plural) {
        used.insert(kind.plural.to_string(), number(1));
    }
    match (&*kind.group, &*kind.plural) {
        ("", "pods") => {
            let of = |list| pod_resources::with_overhead(object, list);
            used.extend(compute(&of("requests"), &of("limits")));
        }
        ("", "persistentvolumeclaims") => {
            let class = claim_class(object);
            let storage = Field::root(object).dig(&["spec", "resources", "requests", "storage"]);
            let size = Quantity::of(storage.value).unwrap_or(Quantity::ZERO);
            used.insert("requests.storage".to_owned(), size);
            if !class.is_empty() {
                used.insert(format!("{class}{OF_CLASS}persistentvolumeclaims"), number(1));
                used.insert(format!("{class}{OF_CLASS}requests.storage"), size);
            }
        }
        ("", "services") => {
            let spec = Field::root(object).get("spec");
            let ports = spec.get("ports");
            let has_all = spec.get("allocateLoadBalancerNodePorts").value.as_bool().unwrap_or(true);
            match spec.get("type").text() {
                "NodePort" => drop(used.insert("services.nodeports".to_owned(), number(ports.len()))),
                "LoadBalancer" => {
                    let given = ports.items().filter(|port| has_all || port.get("nodePort").int().unwrap_or(0) != 0);
                    used.insert("services.nodeports".to_owned(), number(given.count()));
                    used.insert("services.loadbalancers".to_owned(), number(1));
                }
                _ => {}
            }
        }
        _ => {}
    }
    used
}

fn claim_class(claim: &Value) -> &str {
    let annotation = text(claim, &["metadata", "annotations", "volume.beta.kubernetes.io/storage-class"]);
    if annotation.is_empty() { text(claim, &["spec", "storageClassName"]) } else { annotation }
}

/// Requests and limits under the names of quotas.
fn compute(requests: &Amounts, limits: &Amounts) -> Amounts {
    let plain = |name: &str| matches!(name, "cpu" | "memory" | "ephemeral-storage");
    let mut used = Amounts::new();
    for (name, amount) in requests {
        if plain(name) || name.starts_with("hugepages-") {
            used.insert(name.clone(), *amount);
        }
        if plain(name) || name.starts_with("hugepages-") || name.contains('/') {
            used.insert(format!("requests.{name}"), *amount);
        }
    }
    for (name, amount) in limits.iter().filter(|(name, _)| plain(name)) {
        used.insert(format!("limits.{name}"), *amount);
    }
    used
}

/// What a pod's containers do not say and a quota with these resources demands, in upstream's words.
pub fn missing(pod: &Value, resources: &BTreeSet<&str>) -> Option<String> {
    let spec = Field::root(pod).get("spec");
    let said = |holder: &Field| {
        let of = |list: &str| pod_resources::amounts(&holder.dig(&["resources", list]));
        compute(&of("requests"), &of("limits"))
    };
    let of_pod = said(&spec);
    let mut gaps: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for container in ["containers", "initContainers"].iter().flat_map(|list| spec.get(list).items()) {
        let said = said(&container);
        let demanded = DEMANDED.iter().copied().filter(|name| resources.contains(name) && !of_pod.contains_key(*name));
        for resource in demanded.filter(|name| !said.contains_key(*name)) {
            gaps.entry(resource).or_default().insert(container.get("name").text());
        }
    }
    let told: Vec<String> = gaps
        .iter()
        .map(|(resource, names)| format!("{resource} for: {}", names.iter().copied().collect::<Vec<_>>().join(",")))
        .collect();
    (!told.is_empty()).then(|| format!("must specify {}", told.join("; ")))
}

/// Whether an object of this kind counts in a quota: its scopes are the object's.
pub fn matches(kind: &Row, object: &Value, quota: &Value) -> bool {
    let spec = Field::root(quota).get("spec");
    let scopes = spec.get("scopes").items().map(|scope| (scope.text(), "Exists", Vec::new()));
    let selected = spec.dig(&["scopeSelector", "matchExpressions"]).items().map(|requirement| {
        let values = requirement.get("values").items().map(|value| value.text()).collect();
        (requirement.get("scopeName").text(), requirement.get("operator").text(), values)
    });
    scopes.chain(selected).all(|(scope, operator, values)| in_scope(kind, object, scope, operator, &values))
}

fn in_scope(kind: &Row, object: &Value, scope: &str, operator: &str, values: &[&str]) -> bool {
    let holds = |value: &str| match operator {
        "In" => values.contains(&value),
        "NotIn" => !values.contains(&value),
        "DoesNotExist" => value.is_empty(),
        _ => !value.is_empty(),
    };
    let spec = Field::root(object).get("spec");
    match (&*kind.group, &*kind.plural, scope) {
        ("", "pods", "Terminating") => spec.get("activeDeadlineSeconds").int().is_some_and(|seconds| seconds >= 0),
        ("", "pods", "NotTerminating") => spec.get("activeDeadlineSeconds").int().is_none_or(|seconds| seconds < 0),
        ("", "pods", "BestEffort") => is_best_effort(&spec),
        ("", "pods", "NotBestEffort") => !is_best_effort(&spec),
        ("", "pods", "PriorityClass") => holds(spec.get("priorityClassName").text()),
        ("", "pods", "CrossNamespacePodAffinity") => crosses_namespaces(&spec),
        ("", "persistentvolumeclaims", "VolumeAttributesClass") => holds(spec.get("volumeAttributesClassName").text()),
        _ => false,
    }
}

fn is_best_effort(spec: &Field) -> bool {
    let asks = |holder: &Field| {
        ["requests", "limits"].iter().any(|list| {
            let all = pod_resources::amounts(&holder.dig(&["resources", list]));
            ["cpu", "memory"].iter().any(|name| all.get(*name).is_some_and(|amount| !amount.is_zero()))
        })
    };
    let containers = ["containers", "initContainers"].iter().flat_map(|list| spec.get(list).items());
    !asks(spec) && !containers.into_iter().any(|container| asks(&container))
}

fn crosses_namespaces(spec: &Field) -> bool {
    let terms = ["podAffinity", "podAntiAffinity"].iter().flat_map(|kind| {
        let affinity = spec.dig(&["affinity", kind]);
        let required: Vec<Field> = affinity.get("requiredDuringSchedulingIgnoredDuringExecution").items().collect();
        let preferred = affinity.get("preferredDuringSchedulingIgnoredDuringExecution").items();
        required.into_iter().chain(preferred.map(|term| term.get("podAffinityTerm"))).collect::<Vec<_>>()
    });
    terms.into_iter().any(|term| term.get("namespaces").len() > 0 || term.get("namespaceSelector").is_set())
}

/// `cpu=1,memory=2Gi`.
pub fn told(amounts: &Amounts) -> String {
    amounts.iter().map(|(name, amount)| format!("{name}={amount}")).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;
    use serde_json::json;

    fn pod(requests: Value, limits: Value) -> Value {
        json!({ "spec": { "containers": [{ "name": "c", "resources": { "requests": requests, "limits": limits } }] } })
    }

    #[test]
    fn objects_use_what_upstream_counts() {
        let shown = |kind: &crate::Kind, object: Value| told(&usage(kind, &object));
        assert_eq!(
            shown(&kinds::POD, pod(json!({ "cpu": "100m", "example.com/gpu": 1 }), json!({ "memory": "1Gi" }))),
            "count/pods=1,cpu=100m,limits.memory=1Gi,pods=1,requests.cpu=100m,requests.example.com/gpu=1"
        );
        let mut ended = pod(json!({ "cpu": "1" }), json!({}));
        ended["status"] = json!({ "phase": "Succeeded" });
        assert_eq!(shown(&kinds::POD, ended), "count/pods=1");
        let claim =
            json!({ "spec": { "storageClassName": "gold", "resources": { "requests": { "storage": "2Gi" } } } });
        assert_eq!(
            shown(&kinds::PERSISTENT_VOLUME_CLAIM, claim),
            "count/persistentvolumeclaims=1,gold.storageclass.storage.k8s.io/persistentvolumeclaims=1,gold.storageclass.storage.k8s.io/requests.storage=2Gi,persistentvolumeclaims=1,requests.storage=2Gi"
        );
        let service = json!({ "spec": { "type": "LoadBalancer", "ports": [{}, {}] } });
        assert_eq!(
            shown(&kinds::SERVICE, service),
            "count/services=1,services=1,services.loadbalancers=1,services.nodeports=2"
        );
        assert_eq!(shown(&kinds::STATEFUL_SET, json!({})), "count/statefulsets.apps=1");
    }

    #[test]
    fn an_init_container_and_overhead_count_as_upstream_counts_them() {
        let pod = json!({ "spec": {
            "overhead": { "cpu": "50m" },
            "initContainers": [
                { "name": "s", "restartPolicy": "Always", "resources": { "requests": { "cpu": "100m" } } },
                { "name": "i", "resources": { "requests": { "cpu": "2" } } },
            ],
            "containers": [{ "name": "c", "resources": { "requests": { "cpu": "1" } } }],
        } });
        assert_eq!(told(&pod_resources::with_overhead(&pod, "requests")), "cpu=2150m");
        assert_eq!(told(&pod_resources::with_overhead(&pod, "limits")), "");
    }

    #[test]
    fn scopes_choose_pods() {
        let quota = |scope: &str| json!({ "spec": { "scopes": [scope] } });
        let best = pod(json!({}), json!({}));
        let burstable = pod(json!({ "cpu": "1" }), json!({}));
        assert!(
            matches(&kinds::POD, &best, &quota("BestEffort"))
                && !matches(&kinds::POD, &burstable, &quota("BestEffort"))
        );
        assert!(
            matches(&kinds::POD, &best, &quota("NotTerminating"))
                && !matches(&kinds::SERVICE, &best, &quota("NotTerminating"))
        );
        let high = json!({ "spec": { "scopeSelector": { "matchExpressions": [{ "scopeName": "PriorityClass",
            "operator": "In", "values": ["high"] }] } } });
        let mut important = best.clone();
        important["spec"]["priorityClassName"] = json!("high");
        assert!(matches(&kinds::POD, &important, &high) && !matches(&kinds::POD, &best, &high));
    }

    #[test]
    fn a_quota_of_compute_demands_that_each_container_says_it() {
        let demanded = BTreeSet::from(["limits.cpu", "pods", "requests.memory"]);
        let wanted = "must specify limits.cpu for: c; requests.memory for: c";
        assert_eq!(missing(&pod(json!({}), json!({})), &demanded).as_deref(), Some(wanted));
        assert_eq!(missing(&pod(json!({ "memory": "1" }), json!({ "cpu": "1" })), &demanded), None);
        assert!(
            covers(&kinds::POD, "limits.cpu")
                && covers(&kinds::POD, "requests.example.com/gpu")
                && !covers(&kinds::POD, "services")
        );
        assert!(covers(&kinds::PERSISTENT_VOLUME_CLAIM, "gold.storageclass.storage.k8s.io/requests.storage"));
    }
}
