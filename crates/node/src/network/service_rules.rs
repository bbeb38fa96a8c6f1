//! The packet filter's rules by the view: which are to be made anew, what the kernel refused, and whether what it has
//! is still there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use mainstay_api::{ObjectKey, kinds};
use mainstay_logic::proxy::{self, Frontend, Masquerade, Rule};

use super::Cidr;
use super::complaints::{Complaints, Subject};
use super::filter::{Backends, Filter, Front, Fronts, Protocol};
use super::guard::Guard;
use super::health_checks::HealthChecks;
use super::view::View;
use crate::kubelet::events::Events;

/// How often it is looked whether the table is still there.
const LOOK: Duration = Duration::from_secs(5);
/// How often it is looked whether others drop what goes between pods.
const LOOK_ABROAD: Duration = Duration::from_secs(30);
/// How long connections that lead elsewhere by now may wait for more changes, so that the kernel goes through its
/// connections once for many.
const GATHER: Duration = Duration::from_secs(1);

/// The rules of a node, and what is to be done about them.
pub(super) struct ServiceRules {
    filter: Filter,
    pub(super) guard: Guard,
    complaints: Complaints,
    health_checks: HealthChecks,
    /// The Services whose rules may be others now.
    pub(super) services: BTreeSet<ObjectKey>,
    /// The pods of this node whose host ports may be others now.
    pub(super) pods: BTreeSet<ObjectKey>,
    /// Whether the API's servers may be elsewhere.
    pub(super) slices_changed: bool,
    /// Whether the table is made.
    filled: bool,
    looked: Instant,
    looked_abroad: Option<Instant>,
    stale_since: Option<Instant>,
}

impl ServiceRules {
    pub(super) fn new(filter: Filter, guard: Guard, events: Events) -> Self {
        let (services, pods) = (BTreeSet::new(), BTreeSet::new());
        let health_checks = HealthChecks::new(&guard.node, events.clone());
        let (complaints, looked) = (Complaints::new(events), Instant::now());
        Self {
            filter,
            guard,
            complaints,
            health_checks,
            services,
            pods,
            slices_changed: true,
            filled: false,
            looked,
            looked_abroad: None,
            stale_since: None,
        }
    }

    /// Every rule is to be looked at: once in a cluster's life, or when its servers move, or Services have other
    /// ranges.
    pub(super) fn all_again(&mut self, view: &View) {
        if self.filled {
            self.services.extend(view.keys(&kinds::SERVICE));
            self.pods.extend(view.keys(&kinds::POD));
        }
    }

    /// Brings the kernel up to the view. `is_last` says that nothing more is known to have changed.
    pub(super) fn bring_up(&mut self, view: &View, is_last: bool) {
        if std::mem::take(&mut self.slices_changed) && view.read(|snapshot, _| self.guard.observe(snapshot)) {
            self.all_again(view);
        }
        if self.filled && self.looked.elapsed() >= LOOK {
            self.look();
        }
        if self.filled {
            self.write_changes(view);
        } else {
            self.fill(view);
        }
        self.health_checks.bring_up(view, self.filled);
        self.forget_stale(is_last);
        if self.looked_abroad.is_none_or(|looked| looked.elapsed() >= LOOK_ABROAD) {
            self.look_abroad();
        }
    }

    /// A firewall of the machine's drops what it does not know (Docker, ufw).
    fn look_abroad(&mut self) {
        self.looked_abroad = Some(Instant::now());
        match self.filter.pass_others() {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "the machine's firewall dropped what goes to pods; it lets it pass now"),
            Err(error) => tracing::warn!(%error, "the machine's firewall may drop what goes to pods"),
        }
    }

    /// A table that somebody took away (`nft flush ruleset`), or put another one in place of, is made again.
    fn look(&mut self) {
        self.looked = Instant::now();
        match self.filter.is_in_place() {
            Ok(true) => {}
            Ok(false) => {
                tracing::warn!("somebody took the packet filter's table away; it is made again");
                self.complaints.record_loss(&self.guard.node);
                self.filled = false;
            }
            Err(error) => tracing::warn!(%error, "the packet filter's table cannot be looked at"),
        }
    }

    fn fill(&mut self, view: &View) {
        match self.filter.fill(&all_rules(view, &self.guard)) {
            Ok(refused) => {
                (self.filled, self.looked) = (true, Instant::now());
                (self.services, self.pods) = (BTreeSet::new(), BTreeSet::new());
                self.health_checks.due.extend(view.keys(&kinds::SERVICE));
                self.due(refused);
                self.complaints.record_all(view, &self.filter, &self.guard);
            }
            Err(error) => {
                tracing::error!(%error, "the kernel refused the packet filter's table; Services do not work; \
                    trying again");
            }
        }
    }

    fn write_changes(&mut self, view: &View) {
        loop {
            let (mut services, mut pods) = (std::mem::take(&mut self.services), std::mem::take(&mut self.pods));
            services.retain(|service| !self.write(view, service));
            pods.retain(|pod| !self.write_host_ports(view, pod));
            (self.services, self.pods) = (services, pods);
            let freed = self.filter.freed();
            if freed.is_empty() {
                break;
            }
            self.due(freed);
        }
        self.complaints.record(view, &self.filter, &self.guard);
    }

    /// What these names of the packet filter's are of is to be written.
    fn due(&mut self, names: BTreeSet<String>) {
        for name in names {
            match name.strip_prefix(HOST_PORTS) {
                Some(pod) => self.pods.insert(key_of(pod)),
                None => self.services.insert(key_of(&name)),
            };
        }
    }

    /// Brings the kernel's rules of one pod's host ports up to the view; whether that succeeded. Most pods have none.
    fn write_host_ports(&mut self, view: &View, pod: &ObjectKey) -> bool {
        let node = &self.guard.node;
        let rules = view.read(|snapshot, _| snapshot.pods.get(pod).map(|pod| proxy::host_ports::rules(pod, node)));
        let (name, rules) = (host_ports_name(pod), rules.unwrap_or_default());
        let subject = Subject::Pod(pod.clone());
        if rules.is_empty() && !self.filter.has(&name) {
            // What it complained of is forgotten with it.
            self.complaints.look_at(subject, false);
            return true;
        }
        let written = self.filter.set_service(&name, &fronts(&rules, &self.guard));
        self.complaints.look_at(subject, self.is_cut(&rules, &name));
        match written {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%pod, %error, "the kernel refused the rules of a pod's host ports; trying again");
                false
            }
        }
    }

    /// Whether some fronts are not carried out: most have all of theirs, and nothing is worked out for them a second
    /// time.
    fn is_cut(&self, rules: &[Rule], name: &str) -> bool {
        let filter = &self.filter;
        rules.iter().any(|rule| !self.guard.admits(rule))
            || filter.lost(name).next().is_some()
            || filter.limit(name).is_some()
    }

    /// Brings the kernel's rules of one Service up to the view; whether that succeeded.
    fn write(&mut self, view: &View, service: &ObjectKey) -> bool {
        let rules = view.read(|snapshot, _| proxy::rules(snapshot, service, &self.guard.node));
        self.health_checks.due.insert(service.clone());
        let name = service.to_string();
        let written = self.filter.set_service(&name, &fronts(&rules, &self.guard));
        self.complaints.look_at(Subject::Service(service.clone()), self.is_cut(&rules, &name));
        match written {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%service, %error, "the kernel refused the rules of a Service; trying again");
                false
            }
        }
    }

    fn forget_stale(&mut self, is_last: bool) {
        if !self.filled || !self.filter.has_stale() {
            self.stale_since = None;
            return;
        }
        if !is_last && self.stale_since.get_or_insert_with(Instant::now).elapsed() < GATHER {
            return;
        }
        self.stale_since = None;
        match self.filter.forget_stale() {
            Ok(0) => {}
            Ok(count) => tracing::debug!(count, "connections to endpoints that are gone are forgotten"),
            Err(error) => tracing::warn!(%error, "UDP clients may go on sending to endpoints that are gone"),
        }
    }
}

/// The whole table: all Services, and the host ports of this node's pods, the oldest first, so that nobody takes
/// another's front by making a Service with it.
fn all_rules(view: &View, guard: &Guard) -> Vec<(String, Fronts)> {
    view.read(|snapshot, _| {
        let services = snapshot.services.iter().map(|(key, service)| {
            let made = service.metadata.creation_timestamp.as_ref().map(|time| time.0);
            (made, key.to_string(), fronts(&proxy::rules(snapshot, key, &guard.node), guard))
        });
        let pods = snapshot.pods.iter().map(|(key, pod)| {
            let made = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
            (made, host_ports_name(key), host_port_fronts(pod, guard))
        });
        let mut all: Vec<_> = services.chain(pods.filter(|(.., fronts)| !fronts.is_empty())).collect();
        all.sort_by(|(a, first, _), (b, second, _)| (a, first).cmp(&(b, second)));
        all.into_iter().map(|(_, name, fronts)| (name, fronts)).collect()
    })
}

/// What the names of pods' host ports begin with in the packet filter. No Service is called so.
const HOST_PORTS: &str = "host ports of ";

pub(super) fn host_ports_name(pod: &ObjectKey) -> String {
    format!("{HOST_PORTS}{pod}")
}

/// The key that a name in the packet filter was made of.
fn key_of(name: &str) -> ObjectKey {
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    ObjectKey::new(namespace, name)
}

fn host_port_fronts(pod: &Pod, guard: &Guard) -> Fronts {
    fronts(&proxy::host_ports::rules(pod, &guard.node), guard)
}

/// Whom a front lets in; IPv6 and what is no range lets nobody in.
fn sources(rule: &Rule) -> Option<Vec<Cidr>> {
    let ranges = rule.source_ranges.iter().filter_map(|range| Cidr::parse(range.trim())).collect();
    (!rule.source_ranges.is_empty()).then_some(ranges)
}

fn ipv4(backends: &[SocketAddr]) -> Vec<SocketAddrV4> {
    let all = backends.iter().filter_map(|backend| match backend {
        SocketAddr::V4(backend) => Some(*backend),
        SocketAddr::V6(_) => None,
    });
    all.collect()
}

/// The rules in the packet filter's terms. IPv6 is not carried over.
fn fronts(rules: &[Rule], guard: &Guard) -> Fronts {
    let mut fronts = BTreeMap::new();
    for rule in rules.iter().filter(|rule| guard.admits(rule)) {
        let protocol = match rule.protocol.as_str() {
            "TCP" => Protocol::Tcp,
            "UDP" => Protocol::Udp,
            "SCTP" => Protocol::Sctp,
            _ => continue,
        };
        let (address, port) = match rule.frontend {
            Frontend::ClusterIp(at) | Frontend::ExternalIp(at) | Frontend::LoadBalancer(at) => match at {
                SocketAddr::V4(at) => (Some(*at.ip()), at.port()),
                SocketAddr::V6(_) => continue,
            },
            Frontend::NodePort(port) => (None, port),
        };
        let (endpoints, inside) = (ipv4(&rule.backends), rule.inside_backends.as_deref().map(ipv4));
        let masquerade = rule.masquerade == Masquerade::Always;
        fronts.insert(
            Front { address, protocol, port },
            Backends { endpoints, inside, affinity: rule.affinity_seconds, masquerade, from: sources(rule) },
        );
    }
    fronts
}
