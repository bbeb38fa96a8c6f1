//! Requests and limits as the kernel's numbers.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use mainstay_api::quantity::Quantity as Amount;
use mainstay_logic::kubelet::qos;
use mainstay_runtime::Limits;

/// A container's share and limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    pub cpu_request_milli: Option<u64>,
    pub cpu_limit_milli: Option<u64>,
    pub memory_request: Option<u64>,
    pub memory_limit: Option<u64>,
}

fn amount(map: Option<&BTreeMap<String, Quantity>>, name: &str) -> Option<Amount> {
    map?.get(name)?.0.parse().ok().filter(|amount: &Amount| !amount.is_zero() && !amount.is_negative())
}

/// What the containers of a pod may use together.
pub fn of_pod(spec: &PodSpec) -> Limits {
    let Resources { cpu_request_milli, cpu_limit_milli, memory_limit, .. } = read(spec.resources.as_ref());
    if cpu_limit_milli.is_none() && memory_limit.is_none() {
        return Limits::default();
    }
    Limits { cpu_request_milli, cpu_limit_milli, memory_limit }
}

/// What a container asks for.
pub fn of(container: &Container) -> Resources {
    read(container.resources.as_ref())
}

fn read(resources: Option<&ResourceRequirements>) -> Resources {
    let requests = resources.and_then(|resources| resources.requests.as_ref());
    let limits = resources.and_then(|resources| resources.limits.as_ref());
    let milli = |map| amount(map, "cpu").map(|amount| u64::try_from(amount.milli()).unwrap_or(0));
    let bytes = |map| amount(map, "memory").map(|amount| u64::try_from(amount.units()).unwrap_or(0));
    Resources {
        cpu_request_milli: milli(requests).or_else(|| milli(limits)),
        cpu_limit_milli: milli(limits),
        memory_request: bytes(requests).or_else(|| bytes(limits)),
        memory_limit: bytes(limits),
    }
}

/// `oom_score_adj` by quality of service, as upstream computes it. `capacity` is the machine's memory in bytes.
pub fn oom_score_adj(pod: &Pod, resources: &Resources, capacity: u64) -> i32 {
    match qos::class(pod) {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let request = resources.memory_request.unwrap_or(0);
            let share = i64::try_from(u128::from(request) * 1000 / u128::from(capacity.max(1))).unwrap_or(1000);
            i32::try_from((1000 - share).clamp(3, 999)).unwrap_or(999)
        }
    }
}

/// The pod's cgroup below the instance's root.
pub fn cgroup(pod: &Pod, uid: &str) -> String {
    match qos::class(pod) {
        "Guaranteed" => format!("pod{uid}"),
        "BestEffort" => format!("besteffort/pod{uid}"),
        _ => format!("burstable/pod{uid}"),
    }
}

/// A `resourceFieldRef`: the amount in units of the divisor, rounded up. A limit that is not set is the machine's.
pub fn field(container: &Container, resource: &str, divisor: Option<&Quantity>) -> Result<String, String> {
    let resources = container.resources.as_ref();
    let (map, name) = match resource.split_once('.') {
        Some(("limits", name)) => (resources.and_then(|resources| resources.limits.as_ref()), name),
        Some(("requests", name)) => (resources.and_then(|resources| resources.requests.as_ref()), name),
        _ => return Err(format!("unsupported container resource: {resource}")),
    };
    let cpu = name == "cpu";
    let found = amount(map, name).map(|amount| if cpu { amount.milli() } else { amount.units() });
    let value = match found {
        Some(value) => value,
        None if resource == "limits.cpu" => i64::try_from(super::node_status::cpus()).unwrap_or(1) * 1000,
        None if resource == "limits.memory" => i64::try_from(super::node_status::memory_bytes()).unwrap_or(i64::MAX),
        None => 0,
    };
    let divisor: Option<Amount> =
        divisor.and_then(|divisor| divisor.0.parse().ok()).filter(|divisor: &Amount| !divisor.is_zero());
    let unit = match (divisor, cpu) {
        (Some(divisor), true) => divisor.milli().max(1),
        (None, true) => 1000,
        (Some(divisor), false) => divisor.units().max(1),
        (None, false) => 1,
    };
    Ok(value.div_euclid(unit).saturating_add(i64::from(value.rem_euclid(unit) != 0)).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resource_fields_are_rounded_up_in_units_of_the_divisor() {
        let container: Container = serde_json::from_value(serde_json::json!({
            "name": "c", "resources": { "limits": { "cpu": "1500m", "memory": "100Mi" }, "requests": { "cpu": "250m" } }
        }))
        .unwrap();
        for (resource, divisor, expected) in [
            ("limits.cpu", None, "2"),
            ("limits.cpu", Some("1m"), "1500"),
            ("requests.cpu", None, "1"),
            ("limits.memory", None, "104857600"),
            ("limits.memory", Some("1Mi"), "100"),
            ("requests.memory", None, "0"),
        ] {
            let divisor = divisor.map(|divisor: &str| Quantity(divisor.to_owned()));
            assert_eq!(
                field(&container, resource, divisor.as_ref()).as_deref(),
                Ok(expected),
                "{resource} / {divisor:?}"
            );
        }
        assert!(field(&container, "cpu", None).is_err());
    }
}
