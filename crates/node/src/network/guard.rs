//! Which rules a node does not carry out, whoever asks for them: those that would lead what is meant for the cluster
//! itself elsewhere (X5, X7). Who may make a Service or a pod must not get the API's connections, nor the kubelet's.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError};

use mainstay_api::ObjectKey;
use mainstay_logic::proxy::{Frontend, Rule};
use mainstay_logic::{Snapshot, backend};
use tokio::sync::Notify;

use super::Cidr;

/// The Service whose endpoints are the API's servers.
const API: (&str, &str) = ("default", "kubernetes");

/// The ports that are the cluster's own here, for whoever says so on the Node.
#[derive(Clone, Debug)]
pub struct Reserved {
    /// TCP's, and the overlay's, which is UDP's.
    ports: Arc<Mutex<(BTreeSet<u16>, Option<u16>)>>,
    changed: Arc<Notify>,
}

impl Reserved {
    /// None yet; `changed` hears of each change.
    pub fn new(changed: Arc<Notify>) -> Self {
        Self { ports: Arc::default(), changed }
    }

    /// What they are now, as `logic::resources::RESERVED_PORTS` has them: `6443` is TCP's, `8472/UDP` says so.
    pub fn ports(&self) -> Vec<String> {
        let (tcp, overlay) = self.ports.lock().unwrap_or_else(PoisonError::into_inner).clone();
        tcp.iter().map(u16::to_string).chain(overlay.map(|port| format!("{port}/UDP"))).collect()
    }

    fn set(&self, ports: &BTreeSet<u16>) {
        self.change(|(tcp, _)| *tcp = ports.clone());
    }

    fn set_overlay(&self, port: u16) {
        self.change(|(_, overlay)| *overlay = Some(port));
    }

    fn change(&self, change: impl FnOnce(&mut (BTreeSet<u16>, Option<u16>))) {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let before = ports.clone();
        change(&mut ports);
        if *ports != before {
            self.changed.notify_one();
        }
    }
}

/// What is not given away.
#[derive(Clone, Debug)]
pub struct Guard {
    /// This node.
    pub node: String,
    /// The Services' ranges: each of their addresses is that of the one Service that was given it.
    services: Vec<Cidr>,
    kubelet: u16,
    /// Where this node asks for the API: servers, or what stands before them.
    asked: Vec<(String, u16)>,
    /// Where a server on this machine has its store, and which of those ports are this machine's.
    store: (Vec<(String, u16)>, BTreeSet<u16>),
    /// The TCP ports of the API's servers and of the kubelet, which are on this machine's addresses and on those of
    /// others.
    ports: BTreeSet<u16>,
    reserved: Reserved,
    /// The overlay's UDP port, where there is one.
    overlay: Option<u16>,
}

impl Guard {
    /// Keeps the Services' range (each of its addresses is that of the one Service that was given it), the kubelet's
    /// port, and what serves the API: `asked` is `https://HOST:PORT`, or several `HOST:PORT` with commas between them.
    pub fn new(node: &str, services: Cidr, kubelet: u16, asked: &str, reserved: Reserved) -> Self {
        let each = asked.split(',').filter_map(|server| {
            let server = server.trim().trim_start_matches("https://").trim_end_matches('/');
            let (host, port) = server.rsplit_once(':')?;
            Some((host.trim_matches(['[', ']']).to_owned(), port.parse().ok()?))
        });
        let (services, asked, store) = (vec![services], each.collect(), Default::default());
        let (node, ports, overlay) = (node.to_owned(), BTreeSet::new(), None);
        let mut guard = Self { node, services, kubelet, asked, store, ports, reserved, overlay };
        guard.keep(BTreeSet::new());
        guard
    }

    /// Keeps the overlay's UDP port, too: who has it gets what other machines' pods send, before it is read.
    pub fn with_overlay(mut self, port: u16) -> Self {
        self.overlay = Some(port);
        self.reserved.set_overlay(port);
        self
    }

    /// Keeps what the server on this machine, whose address is `own`, sends to its store, etcd's members by host and
    /// port; their ports where they are on this machine.
    pub fn with_store(mut self, members: &[(String, u16)], own: Ipv4Addr) -> Self {
        let is_own = |host: &str| match host.parse::<IpAddr>() {
            Ok(address) => address.is_loopback() || address == own,
            Err(_) => host == "localhost",
        };
        let ports = members.iter().filter(|(host, _)| is_own(host)).map(|(_, port)| *port);
        self.store = (members.to_vec(), ports.collect());
        self.keep(BTreeSet::new());
        self
    }

    /// Takes in which ranges Services have addresses of, the first one among them; whether they are others than before.
    pub fn set_ranges(&mut self, services: Vec<Cidr>) -> bool {
        std::mem::replace(&mut self.services, services.clone()) != services
    }

    /// Takes in where the API's servers are by what they say of themselves; whether that is something new.
    pub fn observe(&mut self, snapshot: &Snapshot) -> bool {
        let servers = backend::backends(snapshot, &ObjectKey::new(API.0, API.1));
        self.keep(servers.iter().flat_map(|server| &server.ports).map(|port| port.port).collect())
    }

    /// Until the servers say where they are, the ports by which this node reaches them count. After that those may be a
    /// load balancer's, whose address alone is kept: its port 443 is everybody's elsewhere.
    fn keep(&mut self, servers: BTreeSet<u16>) -> bool {
        let asked = || self.asked.iter().map(|(_, port)| *port).collect();
        let mut ports: BTreeSet<u16> = if servers.is_empty() { asked() } else { servers };
        ports.insert(self.kubelet);
        ports.extend(&self.store.1);
        self.reserved.set(&ports);
        std::mem::replace(&mut self.ports, ports.clone()) != ports
    }

    /// Whether a rule is carried out. Addresses of load balancers are given by those who may write a Service's status.
    ///
    /// Differs: upstream lets an external IP, a node port or a host port take the API server's and the kubelet's
    /// (CVE-2020-8554), and an external IP another Service's address.
    pub fn admits(&self, rule: &Rule) -> bool {
        let is_ours = |port: u16| match rule.protocol.as_str() {
            "TCP" => self.ports.contains(&port),
            "UDP" => self.overlay == Some(port),
            _ => false,
        };
        let is_asked = |address: IpAddr, port: u16| {
            let mut asked = self.asked.iter().chain(&self.store.0).filter(|(host, _)| host.parse() == Ok(address));
            rule.protocol == "TCP" && asked.any(|(_, own)| *own == port)
        };
        let is_service = |address: IpAddr| match address {
            IpAddr::V4(address) => self.services.iter().any(|range| range.contains(address)),
            IpAddr::V6(_) => false,
        };
        match &rule.frontend {
            Frontend::ClusterIp(_) => true,
            Frontend::LoadBalancer(at) => !is_service(at.ip()),
            Frontend::ExternalIp(at) => !is_service(at.ip()) && !is_ours(at.port()) && !is_asked(at.ip(), at.port()),
            Frontend::NodePort(port) => !is_ours(*port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_api::kinds;
    use mainstay_logic::proxy::Masquerade;
    use serde_json::json;

    fn guard(asked: &str) -> Guard {
        let reserved = Reserved::new(Arc::default());
        Guard::new("n1", Cidr::parse("10.96.0.0/16").unwrap(), 10250, asked, reserved)
    }

    fn rule(frontend: Frontend, protocol: &str) -> Rule {
        Rule {
            frontend,
            protocol: protocol.to_owned(),
            backends: Vec::new(),
            inside_backends: None,
            affinity_seconds: None,
            masquerade: Masquerade::Always,
            source_ranges: Vec::new(),
        }
    }

    #[test]
    fn x7_nobody_gets_what_is_meant_for_the_api_or_another_service() {
        let mut guard = guard("https://127.0.0.1:6443");
        assert!(guard.set_ranges(["10.96.0.0/16", "203.0.113.0/24"].map(|range| Cidr::parse(range).unwrap()).into()));
        let at = |text: &str| text.parse().unwrap();
        for (frontend, protocol, is_admitted) in [
            (Frontend::ClusterIp(at("10.96.0.1:443")), "TCP", true),
            (Frontend::ClusterIp(at("10.96.9.9:6443")), "TCP", true),
            (Frontend::ExternalIp(at("10.96.0.1:443")), "TCP", false),
            (Frontend::LoadBalancer(at("10.96.0.10:53")), "UDP", false),
            (Frontend::ExternalIp(at("203.0.113.10:80")), "TCP", false),
            (Frontend::ExternalIp(at("192.0.2.1:6443")), "TCP", false),
            (Frontend::ExternalIp(at("127.0.0.1:10250")), "TCP", false),
            (Frontend::ExternalIp(at("192.0.2.1:6443")), "UDP", true),
            (Frontend::ExternalIp(at("192.0.2.1:80")), "TCP", true),
            (Frontend::LoadBalancer(at("192.0.2.9:6443")), "TCP", true),
            (Frontend::NodePort(10250), "TCP", false),
            (Frontend::NodePort(30000), "TCP", true),
        ] {
            let rule = rule(frontend, protocol);
            assert_eq!(guard.admits(&rule), is_admitted, "{rule:?}");
        }
    }

    #[test]
    fn x7_behind_a_load_balancer_its_address_is_kept_and_its_port_is_everybodys() {
        let mut guard = guard("192.0.2.9:443,[2001:db8::9]:443,api.example:443");
        let at = |text: &str| Frontend::ExternalIp(text.parse().unwrap());
        let admits = |guard: &Guard, frontend| guard.admits(&rule(frontend, "TCP"));
        assert!(!admits(&guard, at("192.0.2.7:443")), "nobody has said yet where the servers are");
        let mut snapshot = Snapshot::of_node("n1");
        let slice = json!({ "metadata": { "namespace": "default", "name": "kubernetes",
            "labels": { "kubernetes.io/service-name": "kubernetes" } }, "addressType": "IPv4",
            "endpoints": [{ "addresses": ["192.0.2.1"], "conditions": { "ready": true } }],
            "ports": [{ "name": "https", "port": 6443, "protocol": "TCP" }] });
        let key = ObjectKey::new("default", "kubernetes");
        snapshot.apply(&kinds::ENDPOINT_SLICE, key, Some(slice.to_string().as_bytes()), 1);
        assert!(guard.observe(&snapshot) && !guard.observe(&snapshot));
        assert!(admits(&guard, at("192.0.2.7:443")));
        assert!(!admits(&guard, at("192.0.2.9:443")));
        assert!(!admits(&guard, at("[2001:db8::9]:443")));
        assert!(!admits(&guard, at("192.0.2.7:6443")) && !admits(&guard, Frontend::NodePort(10250)));
        assert_eq!(guard.reserved.ports(), ["6443", "10250"]);
        let members = [("192.0.2.1", 2379), ("192.0.2.7", 2381)].map(|(host, port)| (host.to_owned(), port));
        let guard = guard.with_store(&members, [192, 0, 2, 7].into());
        assert_eq!(guard.reserved.ports(), ["443", "2381", "10250"]);
        assert!(!admits(&guard, at("192.0.2.1:2379")) && !admits(&guard, Frontend::NodePort(2381)));
        assert!(admits(&guard, Frontend::NodePort(2379)), "another machine's");
        let guard = guard.with_overlay(8472);
        assert_eq!(guard.reserved.ports(), ["443", "2381", "10250", "8472/UDP"]);
        let udp = |frontend| guard.admits(&rule(frontend, "UDP"));
        assert!(!udp(Frontend::NodePort(8472)) && !udp(at("192.0.2.7:8472")) && udp(Frontend::NodePort(6443)));
        assert!(guard.admits(&rule(Frontend::NodePort(8472), "TCP")), "another protocol's");
    }
}
