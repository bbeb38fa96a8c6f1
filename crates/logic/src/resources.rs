//! What a pod asks for and what a node has left: CPU in thousandths of a core, everything else in whole units.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use mainstay_api::quantity::Quantity;

use crate::pods::is_sidecar;

/// Amounts by resource: CPU in thousandths of a core, everything else in whole units.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Amounts {
    /// Thousandths of a core.
    pub cpu: i64,
    /// Bytes.
    pub memory: i64,
    /// Of a node: how many pods it takes, where it says.
    pub pods: Option<i64>,
    /// Everything else by name; never 0.
    pub other: BTreeMap<Arc<str>, i64>,
}

/// (address, protocol, port) on a node; the address `""` is every address.
pub type HostPort = (String, String, i32);

impl Amounts {
    /// The amount of a resource.
    pub fn get(&self, name: &str) -> i64 {
        match name {
            "cpu" => self.cpu,
            "memory" => self.memory,
            name => self.other.get(name).copied().unwrap_or(0),
        }
    }

    fn each(&mut self, more: &Self, with: impl Fn(i64, i64) -> i64) {
        self.cpu = with(self.cpu, more.cpu);
        self.memory = with(self.memory, more.memory);
        for (name, amount) in &more.other {
            match with(self.get(name), *amount) {
                0 => drop(self.other.remove(name)),
                sum => drop(self.other.insert(name.clone(), sum)),
            }
        }
    }

    /// Adds.
    pub fn add(&mut self, more: &Self) {
        self.each(more, i64::saturating_add);
    }

    /// Takes off what was added before.
    pub fn subtract(&mut self, less: &Self) {
        self.each(less, i64::saturating_sub);
    }

    /// Whichever is more, of each.
    fn raise(&mut self, other: &Self) {
        self.each(other, i64::max);
    }

    /// The resources of which there is any, by name.
    fn named(&self) -> impl Iterator<Item = (&str, i64)> {
        let own = [("cpu", self.cpu), ("memory", self.memory)].into_iter().filter(|(_, amount)| *amount != 0);
        own.chain(self.other.iter().map(|(name, amount)| (&**name, *amount)))
    }
}

fn amounts(list: Option<&BTreeMap<String, Text>>) -> Amounts {
    let mut amounts = Amounts::default();
    for (name, text) in list.into_iter().flatten() {
        let Ok(quantity) = text.0.parse::<Quantity>() else { continue };
        match name.as_str() {
            "cpu" => amounts.cpu = quantity.milli(),
            "memory" => amounts.memory = quantity.units(),
            "pods" => amounts.pods = Some(quantity.units()),
            name if quantity.units() != 0 => drop(amounts.other.insert(name.into(), quantity.units())),
            _ => {}
        }
    }
    amounts
}

fn requests(resources: Option<&ResourceRequirements>) -> Amounts {
    amounts(resources.and_then(|resources| resources.requests.as_ref()))
}

/// What a pod asks for: the sum of its containers and sidecars, or what the hungriest init container needs beside the
/// sidecars that started before it, whichever is more; pod-level requests in place of either; and the overhead.
pub fn of_pod(pod: &Pod) -> Amounts {
    let Some(spec) = pod.spec.as_ref() else { return Amounts::default() };
    let mut total = Amounts::default();
    for container in &spec.containers {
        total.add(&requests(container.resources.as_ref()));
    }
    let (mut sidecars, mut start) = (Amounts::default(), Amounts::default());
    for container in spec.init_containers.iter().flatten() {
        let own = requests(container.resources.as_ref());
        if is_sidecar(container) {
            total.add(&own);
            sidecars.add(&own);
            start.raise(&sidecars);
        } else {
            let mut beside = sidecars.clone();
            beside.add(&own);
            start.raise(&beside);
        }
    }
    total.raise(&start);
    if let Some(whole) = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()) {
        let amounts = amounts(Some(whole));
        total.cpu = if whole.contains_key("cpu") { amounts.cpu } else { total.cpu };
        total.memory = if whole.contains_key("memory") { amounts.memory } else { total.memory };
        total.other.extend(amounts.other);
    }
    total.add(&amounts(spec.overhead.as_ref()));
    total
}

/// What a node has for pods: its allocatable amounts, or its capacity where it does not say.
pub fn of_node(node: &Node) -> Amounts {
    let status = node.status.as_ref();
    amounts(status.and_then(|status| status.allocatable.as_ref().or(status.capacity.as_ref())))
}

/// What pods use together, and how many they are.
pub fn used<'a>(pods: impl Iterator<Item = &'a Pod>) -> (Amounts, i64) {
    let (mut total, mut count) = (Amounts::default(), 0);
    for pod in pods {
        total.add(&of_pod(pod));
        count += 1;
    }
    (total, count)
}

/// Why a pod does not fit beside what is used, in upstream's words; empty when it does.
pub fn shortages(wanted: &Amounts, has: &Amounts, used: &Amounts, count: i64) -> Vec<String> {
    let mut reasons = Vec::new();
    if has.pods.is_some_and(|most| count >= most) {
        reasons.push("Too many pods".to_owned());
    }
    for (name, amount) in wanted.named().filter(|(_, amount)| *amount > 0) {
        if amount > has.get(name).saturating_sub(used.get(name)) {
            reasons.push(format!("Insufficient {name}"));
        }
    }
    reasons
}

/// 0 to 100: how much of CPU and memory stays free, on average, once the pod is there.
pub fn least_allocated(wanted: &Amounts, has: &Amounts, used: &Amounts) -> i64 {
    let free = |all: i64, used: i64, wanted: i64| {
        let taken = used.saturating_add(wanted);
        if all <= 0 { 0 } else { all.saturating_sub(taken).max(0).saturating_mul(100) / all }
    };
    i64::midpoint(free(has.cpu, used.cpu, wanted.cpu), free(has.memory, used.memory, wanted.memory))
}

/// On a Node: the ports there that are the cluster's own, which no pod's host port gets: `6443,10250,8472/UDP` (TCP's,
/// where nothing is said).
pub const RESERVED_PORTS: &str = "mainstay.io/reserved-host-ports";

/// Whether one of a pod's host ports is the cluster's own on a node. A pod that shares the node's network takes its
/// ports by itself, and learns that they are taken.
pub fn takes_reserved(pod: &Pod, ports: &BTreeSet<HostPort>, node: &Node) -> bool {
    if ports.is_empty() || pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true)) {
        return false;
    }
    let reserved = node.metadata.annotations.as_ref().and_then(|all| all.get(RESERVED_PORTS));
    let mut reserved = reserved.into_iter().flat_map(|list| list.split(',')).filter_map(|port| {
        let (number, own_protocol) = port.split_once('/').unwrap_or((port, "TCP"));
        Some((number.parse::<i32>().ok()?, own_protocol))
    });
    reserved.any(|(own, of)| ports.iter().any(|(_, protocol, port)| protocol == of && *port == own))
}

/// (address, protocol, port) that a pod takes on its node for as long as it runs, with its sidecars, as upstream; the
/// address `""` is every address.
pub fn host_ports(pod: &Pod) -> BTreeSet<HostPort> {
    let sidecars = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten()).filter(|one| is_sidecar(one));
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers).chain(sidecars);
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let taken = ports.filter_map(|port| {
        let number = port.host_port.filter(|number| *number > 0)?;
        let address = port.host_ip.clone().filter(|ip| ip != "0.0.0.0" && ip != "::").unwrap_or_default();
        Some((address, port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()), number))
    });
    taken.collect()
}

/// Whether host ports are taken already.
pub fn collide(a: &BTreeSet<HostPort>, taken: &BTreeMap<HostPort, u32>) -> bool {
    a.iter().any(|(ip, protocol, port)| {
        taken
            .keys()
            .any(|(other, p, n)| protocol == p && port == n && (ip == other || ip.is_empty() || other.is_empty()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({ "spec": spec })).unwrap()
    }

    fn sized(cpu: &str, memory: &str, restart: Value) -> Value {
        json!({"name": "c", "restartPolicy": restart, "resources": {"requests": {"cpu": cpu, "memory": memory}}})
    }

    #[test]
    fn a_pod_asks_for_what_it_needs_at_its_hungriest_moment() {
        let (init, sidecar) = (|cpu| sized(cpu, "0", json!(null)), |cpu| sized(cpu, "0", json!("Always")));
        let main = || json!([sized("1", "1Gi", json!(null)), sized("500m", "1Gi", json!(null))]);
        let gib = 1_i64 << 30;
        let table = [
            (json!({"containers": main()}), (1500, 2 * gib)),
            (json!({"containers": main(), "initContainers": [init("1"), init("4")]}), (4000, 2 * gib)),
            (json!({"containers": main(), "initContainers": [init("1"), init("1")]}), (1500, 2 * gib)),
            (json!({"containers": main(), "initContainers": [sidecar("1")]}), (2500, 2 * gib)),
            // A sidecar runs beside the init containers that come after it, not beside those before.
            (json!({"containers": main(), "initContainers": [sidecar("1"), init("4")]}), (5000, 2 * gib)),
            (json!({"containers": main(), "initContainers": [init("4"), sidecar("1")]}), (4000, 2 * gib)),
            (json!({"containers": [], "initContainers": [sidecar("1"), sidecar("2"), init("1")]}), (4000, 0)),
            (json!({"containers": main(), "overhead": {"cpu": "250m"}}), (1750, 2 * gib)),
            (json!({"containers": main(), "resources": {"requests": {"cpu": "3"}}}), (3000, 2 * gib)),
            (json!({"containers": main(), "resources": {"requests": {"memory": "3Gi"}}}), (1500, 3 * gib)),
        ];
        for (spec, expected) in table {
            let amounts = of_pod(&pod(spec.clone()));
            assert_eq!((amounts.cpu, amounts.memory), expected, "{spec}");
        }
        let with = |text: &str| json!({"containers": [{"name": "c", "resources": {"requests": {"x.io/gpu": text}}}]});
        let whole = json!({"containers": [], "resources": {"requests": {"hugepages-2Mi": "4Mi"}}});
        assert_eq!(of_pod(&pod(with("2"))).get("x.io/gpu"), 2);
        assert_eq!(of_pod(&pod(with("0"))), Amounts::default());
        assert_eq!(of_pod(&pod(whole)).get("hugepages-2Mi"), 4 << 20);
    }

    #[test]
    fn what_is_short_is_named_and_what_is_not_asked_for_is_not() {
        let amounts = |cpu, memory, pods| Amounts { cpu, memory, pods, ..Amounts::default() };
        let has = amounts(2000, 100, Some(2));
        let table = [
            (amounts(1000, 50, None), amounts(1000, 50, None), 1, vec![]),
            (amounts(1001, 51, None), amounts(1000, 50, None), 1, vec!["Insufficient cpu", "Insufficient memory"]),
            (amounts(0, 0, None), amounts(9000, 900, None), 1, vec![]),
            (amounts(0, 1, None), amounts(9000, 0, None), 2, vec!["Too many pods"]),
        ];
        for (wanted, used, count, expected) in table {
            assert_eq!(shortages(&wanted, &has, &used, count), expected, "{wanted:?} {used:?}");
        }
        let half = amounts(1000, 50, None);
        let none = Amounts::default();
        let scores = [(&none, &none), (&half, &none), (&none, &half), (&half, &half)];
        assert_eq!(scores.map(|(wanted, used)| least_allocated(wanted, &has, used)), [100, 50, 50, 0]);
        assert_eq!(least_allocated(&none, &none, &none), 0, "a node that has nothing");
    }

    #[test]
    fn host_ports_are_those_of_what_stays_and_collide_by_address_protocol_and_number() {
        let port = |ip: &str, protocol: Value, number: i64| {
            json!({"containerPort": 1, "hostPort": number,
            "hostIP": ip, "protocol": protocol})
        };
        let container = |restart: Value, port: &Value| json!({"name": "c", "restartPolicy": restart, "ports": [port]});
        let with = |port: &Value| host_ports(&pod(json!({"containers": [container(json!(null), port)]})));
        let (tcp, none) = (json!("TCP"), json!(null));
        let table = [
            (port("", tcp.clone(), 80), port("", tcp.clone(), 80), true),
            (port("", tcp.clone(), 80), port("", none.clone(), 80), true),
            (port("", tcp.clone(), 80), port("", json!("UDP"), 80), false),
            (port("", tcp.clone(), 80), port("", tcp.clone(), 81), false),
            (port("10.0.0.1", tcp.clone(), 80), port("10.0.0.2", tcp.clone(), 80), false),
            (port("10.0.0.1", tcp.clone(), 80), port("10.0.0.1", tcp.clone(), 80), true),
            (port("10.0.0.1", tcp.clone(), 80), port("0.0.0.0", tcp.clone(), 80), true),
            (port("::", tcp.clone(), 80), port("10.0.0.1", tcp.clone(), 80), true),
            (port("", tcp.clone(), 0), port("", tcp.clone(), 0), false),
        ];
        for (one, other, expected) in table {
            let free = port("10.9.9.9", tcp.clone(), 9);
            let taken = with(&other).into_iter().chain(with(&free)).map(|port| (port, 1)).collect();
            assert_eq!(collide(&with(&one), &taken), expected, "{one} {other}");
        }
        for (restart, expected) in [(json!("Always"), 1), (none, 0)] {
            let init = container(restart.clone(), &port("", tcp.clone(), 80));
            assert_eq!(
                host_ports(&pod(json!({"containers": [], "initContainers": [init]}))).len(),
                expected,
                "{restart}"
            );
        }
    }
}
