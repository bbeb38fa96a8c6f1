//! Which rules a node does not carry out, whoever asks for them: those that would lead what is meant for the cluster
//! itself elsewhere (X5, X7). Who may make a Service or a pod must not get the API's connections, nor the kubelet's.

use mainstay_logic::proxy::{Frontend, Rule};

use super::Cidr;

/// What is not given away.
#[derive(Clone, Debug)]
pub struct Guard {
    /// This node.
    pub node: String,
    /// The Services' range: each of its addresses is that of the one Service that was given it.
    pub services: Cidr,
    /// The TCP ports of the API server and of the kubelet, which are on this machine's addresses and on those of
    /// others.
    pub ports: Vec<u16>,
}

impl Guard {
    /// Whether a rule is carried out. Addresses of load balancers are given by those who may write a Service's status.
    ///
    /// Differs: upstream lets an external IP, a node port or a host port take the API server's and the kubelet's
    /// (CVE-2020-8554), and an external IP another Service's address.
    pub fn admits(&self, rule: &Rule) -> bool {
        let is_ours = |port: u16| rule.protocol == "TCP" && self.ports.contains(&port);
        let is_service = |address: std::net::IpAddr| match address {
            std::net::IpAddr::V4(address) => self.services.contains(address),
            std::net::IpAddr::V6(_) => false,
        };
        match &rule.frontend {
            Frontend::ClusterIp(_) => true,
            Frontend::LoadBalancer(at) => !is_service(at.ip()),
            Frontend::ExternalIp(at) => !is_service(at.ip()) && !is_ours(at.port()),
            Frontend::NodePort(port) => !is_ours(*port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_logic::proxy::Masquerade;

    #[test]
    fn x7_nobody_gets_what_is_meant_for_the_api_or_another_service() {
        let guard =
            Guard { node: "n1".to_owned(), services: Cidr::parse("10.96.0.0/16").unwrap(), ports: vec![6443, 10250] };
        let at = |text: &str| text.parse().unwrap();
        for (frontend, protocol, is_admitted) in [
            (Frontend::ClusterIp(at("10.96.0.1:443")), "TCP", true),
            (Frontend::ClusterIp(at("10.96.9.9:6443")), "TCP", true),
            (Frontend::ExternalIp(at("10.96.0.1:443")), "TCP", false),
            (Frontend::LoadBalancer(at("10.96.0.10:53")), "UDP", false),
            (Frontend::ExternalIp(at("192.0.2.1:6443")), "TCP", false),
            (Frontend::ExternalIp(at("127.0.0.1:10250")), "TCP", false),
            (Frontend::ExternalIp(at("192.0.2.1:6443")), "UDP", true),
            (Frontend::ExternalIp(at("192.0.2.1:80")), "TCP", true),
            (Frontend::LoadBalancer(at("192.0.2.9:6443")), "TCP", true),
            (Frontend::NodePort(10250), "TCP", false),
            (Frontend::NodePort(30000), "TCP", true),
        ] {
            let rule = Rule {
                frontend,
                protocol: protocol.to_owned(),
                backends: Vec::new(),
                inside_backends: None,
                affinity_seconds: None,
                masquerade: Masquerade::Always,
                source_ranges: Vec::new(),
            };
            assert_eq!(guard.admits(&rule), is_admitted, "{rule:?}");
        }
    }
}
