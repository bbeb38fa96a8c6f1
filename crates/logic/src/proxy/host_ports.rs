//! Host ports: ports of a node that lead to one of its pods. A pod that shares the node's network has them by itself.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use k8s_openapi::api::core::v1::{ContainerPort, Pod};

use super::{Frontend, Masquerade, Rule};
use crate::pods::is_finished;

/// The rules of a pod on this node; none before it has its address, and none once it has ended.
pub fn rules(pod: &Pod, node: &str) -> Vec<Rule> {
    let Some(spec) = pod.spec.as_ref() else { return Vec::new() };
    let address = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref()?.parse::<IpAddr>().ok());
    let Some(address) = address else { return Vec::new() };
    if spec.node_name.as_deref() != Some(node) || spec.host_network == Some(true) || is_finished(pod) {
        return Vec::new();
    }
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let mut rules: Vec<Rule> = ports.flat_map(|port| port_rules(port, address)).collect();
    rules.sort();
    rules.dedup();
    rules
}

fn port_rules(port: &ContainerPort, pod: IpAddr) -> Vec<Rule> {
    let number = |number: i32| u16::try_from(number).ok().filter(|number| *number != 0);
    let (Some(here), Some(there)) = (port.host_port.and_then(number), number(port.container_port)) else {
        return Vec::new();
    };
    let rule = |frontend, masquerade| Rule {
        frontend,
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
        backends: vec![SocketAddr::new(pod, there)],
        inside_backends: None,
        affinity_seconds: None,
        masquerade,
        source_ranges: Vec::new(),
    };
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let on = |address: IpAddr| {
        // No answer finds its way back to a loopback address.
        let masquerade = if address.is_loopback() { Masquerade::Always } else { Masquerade::Hairpin };
        rule(Frontend::ExternalIp(SocketAddr::new(address, here)), masquerade)
    };
    match port.host_ip.as_deref().map(str::parse::<IpAddr>) {
        Some(Ok(address)) if !address.is_unspecified() => vec![on(address)],
        _ => vec![rule(Frontend::NodePort(here), Masquerade::Hairpin), on(loopback)],
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn shown(spec: Value, status: Value) -> Vec<String> {
        let pod: Pod = serde_json::from_value(json!({ "spec": spec, "status": status })).unwrap();
        let line =
            |rule: Rule| format!("{:?} {} -> {:?} {:?}", rule.frontend, rule.protocol, rule.backends, rule.masquerade);
        rules(&pod, "n1").into_iter().map(line).collect()
    }

    #[test]
    fn host_ports_of_different_addresses_and_protocols_stand_beside_each_other() {
        let spec = |over: Value| {
            let mut spec = json!({ "nodeName": "n1", "containers": [{ "name": "c", "ports": [
                { "containerPort": 80, "hostPort": 8080, "hostIP": "127.0.0.1" },
                { "containerPort": 80, "hostPort": 8080, "hostIP": "192.0.2.1", "protocol": "UDP" },
                { "containerPort": 81, "hostPort": 8081, "hostIP": "0.0.0.0" },
                { "containerPort": 82 },
            ] }] });
            spec.as_object_mut().unwrap().extend(over.as_object().unwrap().clone());
            spec
        };
        let running = json!({ "podIP": "10.0.0.5", "phase": "Running" });
        assert_eq!(
            shown(spec(json!({})), running.clone()),
            [
                "ExternalIp(127.0.0.1:8080) TCP -> [10.0.0.5:80] Always",
                "ExternalIp(127.0.0.1:8081) TCP -> [10.0.0.5:81] Always",
                "ExternalIp(192.0.2.1:8080) UDP -> [10.0.0.5:80] Hairpin",
                "NodePort(8081) TCP -> [10.0.0.5:81] Hairpin",
            ]
        );
        for (over, status) in [
            (json!({ "nodeName": "n2" }), running.clone()),
            (json!({ "hostNetwork": true }), running),
            (json!({}), json!({ "podIP": "10.0.0.5", "phase": "Succeeded" })),
            (json!({}), json!({ "phase": "Pending" })),
        ] {
            assert_eq!(shown(spec(over.clone()), status), Vec::<String>::new(), "{over}");
        }
    }
}
