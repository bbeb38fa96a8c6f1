//! What a pod asks for and what a node has left: CPU in thousandths of a core, everything else in whole units.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, Node, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use mainstay_api::quantity::Quantity;

/// Amounts by resource name.
pub type Amounts = BTreeMap<String, i64>;

fn amounts(list: Option<&BTreeMap<String, Text>>) -> Amounts {
    let parsed = |(name, text): (&String, &Text)| {
        let quantity: Quantity = text.0.parse().ok()?;
        Some((name.clone(), if name == "cpu" { quantity.milli() } else { quantity.units() }))
    };
    list.into_iter().flatten().filter_map(parsed).collect()
}

fn requests(resources: Option<&ResourceRequirements>) -> Amounts {
    amounts(resources.and_then(|resources| resources.requests.as_ref()))
}

fn add(total: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let sum = total.entry(name.clone()).or_default();
        *sum = sum.saturating_add(*amount);
    }
}

fn raise(total: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let most = total.entry(name.clone()).or_default();
        *most = (*most).max(*amount);
    }
}

/// What a pod asks for: the sum of its containers and sidecars, or what the hungriest init container needs beside the
/// sidecars that started before it, whichever is more; pod-level requests in place of either; and the overhead.
pub fn of_pod(pod: &Pod) -> Amounts {
    let Some(spec) = pod.spec.as_ref() else { return Amounts::new() };
    let mut total = Amounts::new();
    for container in &spec.containers {
        add(&mut total, &requests(container.resources.as_ref()));
    }
    let (mut sidecars, mut start) = (Amounts::new(), Amounts::new());
    for container in spec.init_containers.iter().flatten() {
        let own = requests(container.resources.as_ref());
        if is_sidecar(container) {
            add(&mut total, &own);
            add(&mut sidecars, &own);
            raise(&mut start, &sidecars);
        } else {
            let mut beside = sidecars.clone();
            add(&mut beside, &own);
            raise(&mut start, &beside);
        }
    }
    raise(&mut total, &start);
    total.extend(requests(spec.resources.as_ref()));
    add(&mut total, &amounts(spec.overhead.as_ref()));
    total
}

fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// What a node has for pods: its allocatable amounts, or its capacity where it does not say.
pub fn of_node(node: &Node) -> Amounts {
    let status = node.status.as_ref();
    amounts(status.and_then(|status| status.allocatable.as_ref().or(status.capacity.as_ref())))
}

/// What the pods on a node use, and how many they are.
pub fn used<'a>(pods: impl Iterator<Item = &'a Pod>) -> (Amounts, i64) {
    let (mut total, mut count) = (Amounts::new(), 0);
    for pod in pods {
        add(&mut total, &of_pod(pod));
        count += 1;
    }
    (total, count)
}

/// Why a pod does not fit beside what is used, in upstream's words; empty when it does.
pub fn shortages(wanted: &Amounts, has: &Amounts, used: &Amounts, count: i64) -> Vec<String> {
    let mut reasons = Vec::new();
    if count.saturating_add(1) > has.get("pods").copied().unwrap_or(i64::MAX) {
        reasons.push("Too many pods".to_owned());
    }
    for (name, amount) in wanted.iter().filter(|(_, amount)| **amount > 0) {
        let left = has.get(name).copied().unwrap_or(0).saturating_sub(used.get(name).copied().unwrap_or(0));
        if *amount > left {
            reasons.push(format!("Insufficient {name}"));
        }
    }
    reasons
}

/// 0 to 100: how much of CPU and memory stays free, on average, once the pod is there.
pub fn least_allocated(wanted: &Amounts, has: &Amounts, used: &Amounts) -> i64 {
    let free = |name: &str| {
        let all = has.get(name).copied().unwrap_or(0);
        let taken = used.get(name).copied().unwrap_or(0).saturating_add(wanted.get(name).copied().unwrap_or(0));
        if all <= 0 { 0 } else { all.saturating_sub(taken).max(0).saturating_mul(100) / all }
    };
    i64::midpoint(free("cpu"), free("memory"))
}

/// (address, protocol, port) that a pod takes on its node; the address `""` is every address.
pub fn host_ports(pod: &Pod) -> BTreeSet<(String, String, i32)> {
    let ports =
        pod.spec.iter().flat_map(|spec| spec.containers.iter()).flat_map(|container| container.ports.iter().flatten());
    let taken = ports.filter_map(|port| {
        let number = port.host_port.filter(|number| *number > 0)?;
        let address = port.host_ip.clone().filter(|ip| ip != "0.0.0.0" && ip != "::").unwrap_or_default();
        Some((address, port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()), number))
    });
    taken.collect()
}

/// Whether two pods' host ports exclude each other.
pub fn collide(a: &BTreeSet<(String, String, i32)>, b: &BTreeSet<(String, String, i32)>) -> bool {
    a.iter().any(|(ip, protocol, port)| {
        b.iter().any(|(other, p, n)| protocol == p && port == n && (ip == other || ip.is_empty() || other.is_empty()))
    })
}
