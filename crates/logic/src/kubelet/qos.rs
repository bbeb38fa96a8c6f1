//! Quality of service: who is starved first.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// `Guaranteed` where every container (or the pod as a whole) has CPU and memory limits equal to its requests,
/// `BestEffort` where none asks for anything, else `Burstable`.
pub fn class(pod: &Pod) -> &'static str {
    let Some(spec) = &pod.spec else { return "BestEffort" };
    // What the pod says of itself counts in place of what its containers say.
    let own = spec.resources.as_ref().filter(|own| {
        let amounts = own.requests.iter().chain(&own.limits).flat_map(BTreeMap::iter);
        amounts.into_iter().any(|(name, amount)| is_counted(name) && !is_zero(amount))
    });
    let (mut any, mut guaranteed) = (false, true);
    let of_containers = spec.init_containers.iter().flatten().chain(&spec.containers).map(|one| one.resources.as_ref());
    let counted: Vec<_> = if own.is_some() { vec![own] } else { of_containers.collect() };
    for resources in counted {
        let empty = BTreeMap::new();
        let requests = resources.and_then(|resources| resources.requests.as_ref()).unwrap_or(&empty);
        let limits = resources.and_then(|resources| resources.limits.as_ref()).unwrap_or(&empty);
        for name in ["cpu", "memory"] {
            let asks = |of: &BTreeMap<String, Quantity>| of.get(name).filter(|quantity| !is_zero(quantity)).cloned();
            let (request, limit) = (asks(requests), asks(limits));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn is_counted(name: &str) -> bool {
    matches!(name, "cpu" | "memory")
}

fn is_zero(quantity: &Quantity) -> bool {
    !quantity.0.bytes().any(|byte| (b'1'..=b'9').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn pods_have_upstreams_quality_of_service() {
        let (full, none) = (json!({"cpu": "1", "memory": "1Gi"}), json!({}));
        let with = |requests: &Value, limits: &Value| json!({"requests": requests, "limits": limits});
        let guaranteed = with(&full, &full);
        let of = |resources: Value| json!({"name": "c", "resources": resources});
        let table = [
            (json!([of(none.clone())]), json!([]), none.clone(), "BestEffort"),
            (json!([of(with(&json!({"cpu": "0"}), &none))]), json!([]), none.clone(), "BestEffort"),
            (json!([of(with(&json!({"x.io/gpu": "1"}), &none))]), json!([]), none.clone(), "BestEffort"),
            (json!([of(guaranteed.clone())]), json!([]), none.clone(), "Guaranteed"),
            (json!([of(with(&none, &full))]), json!([]), none.clone(), "Guaranteed"),
            (json!([of(with(&full, &none))]), json!([]), none.clone(), "Burstable"),
            (json!([of(with(&json!({"cpu": "1"}), &full))]), json!([]), none.clone(), "Guaranteed"),
            (json!([of(with(&json!({"cpu": "500m"}), &full))]), json!([]), none.clone(), "Burstable"),
            (json!([of(with(&none, &json!({"cpu": "1"})))]), json!([]), none.clone(), "Burstable"),
            (json!([of(guaranteed.clone()), of(none.clone())]), json!([]), none.clone(), "Burstable"),
            (json!([of(guaranteed.clone())]), json!([of(none.clone())]), none.clone(), "Burstable"),
            // The pod's own, where they say anything of CPU or memory, and only they.
            (json!([of(none.clone())]), json!([]), guaranteed.clone(), "Guaranteed"),
            (json!([of(guaranteed.clone())]), json!([]), with(&json!({"cpu": "1"}), &none), "Burstable"),
            (
                json!([of(guaranteed.clone())]),
                json!([]),
                with(&json!({"hugepages-2Mi": "2Mi", "cpu": "0"}), &none),
                "Guaranteed",
            ),
        ];
        for (containers, init, own, expected) in table {
            let spec = json!({"containers": containers, "initContainers": init, "resources": own});
            let pod: Pod = serde_json::from_value(json!({ "spec": spec })).unwrap();
            assert_eq!(class(&pod), expected, "{spec}");
        }
    }
}
