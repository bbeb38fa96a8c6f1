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
