//! What the packet filter of one node does for one Service, as plain data: [`rules`]. The node turns it into
//! nftables and swaps it at once.
//!
//! Guarantees N4: every address and port of the Service either leads to a ready endpoint (or, when there is none, to
//! one that is on its way out but still serves, as upstream) or is refused. Keeps N3 by reading the endpoints through
//! [`crate::backend`].
//!
//! Differs: with `externalTrafficPolicy: Local` and no endpoint on this node upstream drops external packets without
//! an answer; here they are refused, so that a client learns at once.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use mainstay_api::ObjectKey;

use crate::backend::{Backend, backends};
use crate::snapshot::Snapshot;

pub mod host_ports;
#[cfg(test)]
mod tests;

/// How long `sessionAffinity: ClientIP` lasts where the Service does not say, in seconds.
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;

/// Where a connection arrives.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Frontend {
    /// The cluster address, reached from pods and nodes.
    ClusterIp(SocketAddr),
    /// `spec.externalIPs`.
    ExternalIp(SocketAddr),
    /// An address of `status.loadBalancer.ingress`.
    LoadBalancer(SocketAddr),
    /// This port on every address of the node.
    NodePort(u16),
}

/// Whose connections get the node's address as their source, so that answers come back through this node.
/// A pod that reaches itself through the Service (hairpin) always does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Masquerade {
    /// Everybody's: the endpoint may be on another node.
    Always,
    /// Only of clients that are not pods.
    FromOutside,
    /// Nobody's but a hairpin: the endpoint sees the client's address (`externalTrafficPolicy: Local`).
    Hairpin,
}

/// What happens to connections to one address and port.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Rule {
    /// Where they arrive.
    pub frontend: Frontend,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Where they go, each equally likely, in order of address. Empty: refused (TCP reset, ICMP port unreachable for
    /// the others).
    pub backends: Vec<SocketAddr>,
    /// Where connections from pods and from this node itself go when that is not `backends`: with
    /// `externalTrafficPolicy: Local` only outside clients are kept to this node's endpoints.
    pub inside_backends: Option<Vec<SocketAddr>>,
    /// `sessionAffinity: ClientIP`: a client keeps its endpoint for so many seconds after its last connection.
    pub affinity_seconds: Option<u32>,
    /// Whose source address changes.
    pub masquerade: Masquerade,
    /// `loadBalancerSourceRanges` (CIDRs): others are refused. Empty: everybody. Only for load balancer addresses.
    pub source_ranges: Vec<String>,
}

/// On Services whose connections somebody else takes care of: of the first whoever it names, of the second nobody.
const LEFT_TO_OTHERS: [&str; 2] = ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"];

/// Whether this proxy serves a Service: upstream's serves none with such a label, whatever its value.
fn is_served(service: &Service) -> bool {
    !service.metadata.labels.iter().flatten().any(|(label, _)| LEFT_TO_OTHERS.contains(&label.as_str()))
}

/// The whole table of one Service on one node, in order of frontend; empty for a Service that is gone, headless,
/// left to another proxy by a label, or an ExternalName.
pub fn rules(snapshot: &Snapshot, service: &ObjectKey, node: &str) -> Vec<Rule> {
    let Some(object) = snapshot.services.get(service).filter(|object| is_served(object)) else { return Vec::new() };
    let Some(spec) = object.spec.as_ref() else { return Vec::new() };
    let cluster_ips = cluster_ips(spec);
    if cluster_ips.is_empty() || spec.type_.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    let behind = backends(snapshot, service);
    let mut rules: Vec<Rule> = spec
        .ports
        .iter()
        .flatten()
        .flat_map(|port| port_rules(object, spec, port, &cluster_ips, &behind, node))
        .collect();
    rules.sort();
    rules
}

/// What load balancers are told of a Service on one node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HealthCheck {
    /// The node's port at which they ask.
    pub port: u16,
    /// Ready endpoints on this node.
    pub endpoints: usize,
}

/// The health check of a Service that keeps outside clients to the nodes with endpoints of it
/// (`spec.healthCheckNodePort`); `None` of others.
pub fn health_check(snapshot: &Snapshot, service: &ObjectKey, node: &str) -> Option<HealthCheck> {
    let spec = snapshot.services.get(service).filter(|object| is_served(object))?.spec.as_ref()?;
    let is_asked =
        spec.type_.as_deref() == Some("LoadBalancer") && spec.external_traffic_policy.as_deref() == Some("Local");
    let port = spec.health_check_node_port.and_then(|port| u16::try_from(port).ok());
    let port = port.filter(|port| is_asked && *port != 0)?;
    let behind = backends(snapshot, service);
    let here = behind.iter().filter(|backend| backend.ready && backend.node == node).map(|backend| backend.address);
    Some(HealthCheck { port, endpoints: here.collect::<BTreeSet<IpAddr>>().len() })
}

/// The addresses of a Service that is not headless.
pub fn cluster_ips(spec: &ServiceSpec) -> Vec<IpAddr> {
    let many = spec.cluster_ips.as_deref().unwrap_or_default();
    let single = spec.cluster_ip.iter().filter(|_| many.is_empty());
    many.iter().chain(single).filter_map(|ip| ip.parse().ok()).collect()
}

fn port_rules(
    service: &Service,
    spec: &ServiceSpec,
    port: &ServicePort,
    cluster_ips: &[IpAddr],
    behind: &[Backend],
    node: &str,
) -> Vec<Rule> {
    let Ok(number) = u16::try_from(port.port) else { return Vec::new() };
    let all = |family: &IpAddr| usable(behind, port, *family, None);
    let here = |family: &IpAddr| usable(behind, port, *family, Some(node));
    let internal_local = spec.internal_traffic_policy.as_deref() == Some("Local");
    let external_local = spec.external_traffic_policy.as_deref() == Some("Local");
    let external = |frontend: Frontend, family: &IpAddr, source_ranges: Vec<String>| Rule {
        frontend,
        protocol: protocol(port),
        backends: if external_local { here(family) } else { all(family) },
        inside_backends: external_local.then(|| all(family)),
        affinity_seconds: affinity(spec),
        masquerade: if external_local { Masquerade::Hairpin } else { Masquerade::Always },
        source_ranges,
    };
    let mut rules: Vec<Rule> = cluster_ips
        .iter()
        .map(|ip| Rule {
            frontend: Frontend::ClusterIp(SocketAddr::new(*ip, number)),
            protocol: protocol(port),
            backends: if internal_local { here(ip) } else { all(ip) },
            inside_backends: None,
            affinity_seconds: affinity(spec),
            masquerade: Masquerade::FromOutside,
            source_ranges: Vec::new(),
        })
        .collect();
    for ip in spec.external_ips.iter().flatten().filter_map(|ip| ip.parse::<IpAddr>().ok()) {
        rules.push(external(Frontend::ExternalIp(SocketAddr::new(ip, number)), &ip, Vec::new()));
    }
    for ip in ingress(service) {
        let ranges = spec.load_balancer_source_ranges.clone().unwrap_or_default();
        rules.push(external(Frontend::LoadBalancer(SocketAddr::new(ip, number)), &ip, ranges));
    }
    let node_port = port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
    if let (Some(node_port), Some(family)) = (node_port, cluster_ips.first()) {
        rules.push(external(Frontend::NodePort(node_port), family, Vec::new()));
    }
    rules
}

/// The load balancer's own addresses, less those that only send to node ports (`ipMode: Proxy`).
fn ingress(service: &Service) -> impl Iterator<Item = IpAddr> {
    let ingress =
        service.status.as_ref().and_then(|status| status.load_balancer.as_ref()).and_then(|lb| lb.ingress.as_deref());
    let direct = ingress.unwrap_or_default().iter().filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"));
    direct.filter_map(|ingress| ingress.ip.as_deref()?.parse().ok())
}

fn protocol(port: &ServicePort) -> String {
    port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())
}

fn affinity(spec: &ServiceSpec) -> Option<u32> {
    let client_ip = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = client_ip.and_then(|config| config.timeout_seconds).and_then(|seconds| u32::try_from(seconds).ok());
    (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| seconds.unwrap_or(DEFAULT_AFFINITY_SECONDS))
}

/// The endpoints of a port that take connections, of one address family and maybe of one node: the ready ones, or,
/// when none is, those that still serve while they end.
fn usable(behind: &[Backend], port: &ServicePort, family: IpAddr, node: Option<&str>) -> Vec<SocketAddr> {
    let (name, protocol) = (port.name.as_deref().unwrap_or(""), protocol(port));
    let targets = |wanted: fn(&Backend) -> bool| -> BTreeSet<SocketAddr> {
        behind
            .iter()
            .filter(|backend| wanted(backend) && backend.address.is_ipv4() == family.is_ipv4())
            .filter(|backend| node.is_none_or(|node| backend.node == node))
            .flat_map(|backend| {
                let ports =
                    backend.ports.iter().filter(|listening| listening.name == name && listening.protocol == protocol);
                ports.map(|listening| SocketAddr::new(backend.address, listening.port))
            })
            .collect()
    };
    let ready = targets(|backend| backend.ready);
    let chosen = if ready.is_empty() { targets(|backend| backend.serving && backend.terminating) } else { ready };
    chosen.into_iter().collect()
}
