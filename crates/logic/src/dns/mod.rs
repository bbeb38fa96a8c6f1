//! The cluster's DNS zone as plain data: what each Service puts into it ([`zone`]) and how a question is answered
//! ([`Zones::answer`]), after the Kubernetes DNS specification 1.1.0. No sockets and no wire format here.
//!
//! Guarantees N1 and N2: a table is made from the snapshot that has the change in it, and swapped whole. N3: addresses
//! come through [`crate::backend`], so that no name leads to a pod that is gone.
//!
//! As CoreDNS does beyond the specification: endpoint names resolve below every Service, not only headless ones, and a
//! Service's own name has SRV records for all its ports.
//!
//! Differs: `a-b-c-d.<namespace>.pod` is answered only while a pod of that namespace has the address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use k8s_openapi::api::core::v1::ServicePort;
use mainstay_api::ObjectKey;

use crate::backend::{self, Backend};
use crate::proxy::cluster_ips;
use crate::snapshot::{Change, Index, Snapshot};

mod answer;
#[cfg(test)]
mod tests;

pub use answer::{Answer, Record, Type};

/// What `dns-version.<domain>` says.
pub const SCHEMA_VERSION: &str = "1.1.0";
/// How long a client may keep an answer, in seconds; as CoreDNS in its Kubernetes default.
pub const TTL_SECONDS: u32 = 5;
/// All SRV records of one name share this weight, as CoreDNS has it.
const SRV_WEIGHT: u16 = 100;

/// The data of one record. Names are lower case and without the last dot.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Data {
    /// An IPv4 address.
    A(Ipv4Addr),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
    /// A Service's name that is another name.
    Cname(String),
    /// An address's name.
    Ptr(String),
    /// A named port.
    Srv {
        /// Always 0.
        priority: u16,
        /// Shared equally.
        weight: u16,
        /// The port to connect to.
        port: u16,
        /// The host to connect to.
        target: String,
    },
    /// Text.
    Txt(String),
}

/// All that one Service puts into the zone.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Zone {
    /// By full name, each list sorted.
    pub names: BTreeMap<String, Vec<Data>>,
    /// The names of addresses (PTR).
    pub addresses: BTreeMap<IpAddr, Vec<String>>,
}

/// Every Service's table, kept up to date change by change.
#[derive(Clone, Debug)]
pub struct Zones {
    domain: String,
    tables: BTreeMap<ObjectKey, Zone>,
    reverse: BTreeMap<IpAddr, BTreeSet<ObjectKey>>,
}

impl Zones {
    /// The zones of all that is in the snapshot. `domain` is the cluster domain: `cluster.local`.
    pub fn new(snapshot: &Snapshot, domain: &str) -> Self {
        let domain = domain.trim_matches('.').to_ascii_lowercase();
        let mut zones = Self { domain, tables: BTreeMap::new(), reverse: BTreeMap::new() };
        for (key, _) in &snapshot.services {
            zones.refresh(snapshot, key);
        }
        zones
    }

    /// Takes in one change: makes anew the tables of the Services that it concerns, and only those.
    pub fn apply(&mut self, before: &Snapshot, after: &Snapshot, change: &Change) {
        backend::concerned(before, after, change, &mut |service| self.refresh(after, &service));
    }

    /// Makes one Service's table anew and swaps it in whole.
    pub fn refresh(&mut self, snapshot: &Snapshot, service: &ObjectKey) {
        if let Some(old) = self.tables.remove(service) {
            for address in old.addresses.keys() {
                if let Some(services) = self.reverse.get_mut(address) {
                    services.remove(service);
                    if services.is_empty() {
                        self.reverse.remove(address);
                    }
                }
            }
        }
        let Some(table) = zone(snapshot, service, &self.domain) else { return };
        for address in table.addresses.keys() {
            self.reverse.entry(*address).or_default().insert(service.clone());
        }
        self.tables.insert(service.clone(), table);
    }
}

/// The whole table of one Service; `None` when there is no such Service.
///
/// ```text
/// web.default.svc.cluster.local                A 10.244.0.2, A 10.244.0.3, SRV 0 100 80 web-0.web.default…
/// _http._tcp.web.default.svc.cluster.local     SRV 0 100 80 web-0.web.default.svc.cluster.local, …
/// web-0.web.default.svc.cluster.local          A 10.244.0.2
/// ```
pub fn zone(snapshot: &Snapshot, service: &ObjectKey, domain: &str) -> Option<Zone> {
    let object = snapshot.services.get(service)?;
    let spec = object.spec.as_ref()?;
    let apex = format!("{}.{}.svc.{domain}", service.name, service.namespace).to_ascii_lowercase();
    let mut zone = Zone::default();
    if spec.type_.as_deref() == Some("ExternalName") {
        let target = spec.external_name.as_deref().unwrap_or("").trim_end_matches('.').to_ascii_lowercase();
        if !target.is_empty() {
            zone.add(&apex, Data::Cname(target));
        }
        return Some(zone);
    }
    let behind: Vec<Backend> =
        backend::backends(snapshot, service).into_iter().filter(|backend| backend.ready).collect();
    let headless = spec.cluster_ip.as_deref() == Some("None");
    for ip in cluster_ips(spec) {
        zone.add(&apex, address(ip));
        zone.name_address(ip, &apex);
    }
    for port in spec.ports.iter().flatten().filter(|_| !headless) {
        if let Ok(number) = u16::try_from(port.port) {
            zone.add_srv(&apex, port.name.as_deref(), port_protocol(port), number, &apex);
        }
    }
    for backend in &behind {
        let host = format!("{}.{apex}", label(backend)).to_ascii_lowercase();
        zone.add(&host, address(backend.address));
        if !headless {
            continue;
        }
        zone.add(&apex, address(backend.address));
        if backend.hostname.is_some() {
            zone.name_address(backend.address, &host);
        }
        for port in &backend.ports {
            zone.add_srv(&apex, Some(&port.name), &port.protocol, port.port, &host);
        }
    }
    for records in zone.names.values_mut() {
        records.sort();
        records.dedup();
    }
    Some(zone)
}

impl Zone {
    fn add(&mut self, name: &str, data: Data) {
        self.names.entry(name.to_owned()).or_default().push(data);
    }

    fn name_address(&mut self, address: IpAddr, name: &str) {
        let names = self.addresses.entry(address).or_default();
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }

    /// The record at `_port._protocol` (for a named port) and at the Service's own name.
    fn add_srv(&mut self, apex: &str, port_name: Option<&str>, protocol: &str, port: u16, target: &str) {
        let data = Data::Srv { priority: 0, weight: SRV_WEIGHT, port, target: target.to_owned() };
        if let Some(port_name) = port_name.filter(|name| !name.is_empty()) {
            let name = format!("_{port_name}._{protocol}.{apex}").to_ascii_lowercase();
            self.add(&name, data.clone());
        }
        self.add(apex, data);
    }
}

fn port_protocol(port: &ServicePort) -> &str {
    port.protocol.as_deref().unwrap_or("TCP")
}

fn address(ip: IpAddr) -> Data {
    match ip {
        IpAddr::V4(ip) => Data::A(ip),
        IpAddr::V6(ip) => Data::Aaaa(ip),
    }
}

/// An endpoint's label below its Service: its hostname, else its address with dashes.
fn label(backend: &Backend) -> String {
    backend.hostname.clone().unwrap_or_else(|| dashed(backend.address))
}

/// `10.244.0.2` as `10-244-0-2`.
fn dashed(ip: IpAddr) -> String {
    ip.to_string().replace(['.', ':'], "-")
}

/// Whether a pod of the namespace that is not finished has the address that `dashed` names, and which.
fn pod_address(snapshot: &Snapshot, namespace: &str, label: &str) -> Option<IpAddr> {
    let four = label.replace('-', ".").parse::<std::net::Ipv4Addr>().map(IpAddr::from);
    let ip = four.or_else(|_| label.replace('-', ":").parse::<std::net::Ipv6Addr>().map(IpAddr::from)).ok()?;
    (dashed(ip) == label && snapshot.indexes.count(Index::PodsAt, namespace, &ip.to_string()) > 0).then_some(ip)
}
