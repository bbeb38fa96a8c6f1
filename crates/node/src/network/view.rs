//! What the node's DNS server and packet filter know of the cluster: a snapshot that watches keep, the zones made
//! from it, and which Services' rules are to be made anew.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use mainstay_api::{Kind, ObjectKey, kinds};
use mainstay_client::{Client, Informer, ListOptions, Notice};
use mainstay_logic::dns::Zones;
use mainstay_logic::proxy::{self, Frontend, Masquerade, Rule};
use mainstay_logic::{Snapshot, addresses, backend};
use tokio::sync::mpsc;

use super::complaints::{Complaints, Subject};
use super::filter::{Backends, Filter, Front, Fronts, Protocol};
use super::guard::Guard;
use super::{Cidr, Network};
use crate::kubelet::events::Events;

/// Notices that wait to be taken in; the watches stand still when it is full.
const QUEUE: usize = 1024;
/// How long to wait before a Service whose rules the kernel refused is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// The node's view of Services and their ranges, slices, pods and namespaces.
#[derive(Debug)]
pub struct View {
    state: RwLock<(Snapshot, Zones)>,
    /// Whether everything that is watched has been listed once.
    whole: AtomicBool,
}

/// What is watched, and how many first lists are waited for.
fn watched() -> [Kind; 5] {
    [&kinds::NAMESPACE, &kinds::POD, &kinds::SERVICE, &kinds::SERVICE_CIDR, &kinds::ENDPOINT_SLICE].map(Kind::clone)
}

impl View {
    /// An empty view of a cluster domain, on a node: of pods it will have that node's only.
    pub fn new(domain: &str, node: &str) -> Arc<Self> {
        let snapshot = Snapshot::of_node(node);
        let zones = Zones::new(&snapshot, domain);
        Arc::new(Self { state: RwLock::new((snapshot, zones)), whole: AtomicBool::new(false) })
    }

    /// Whether the view is whole: until then it may lack what exists, and nobody may conclude that it does not.
    pub fn is_whole(&self) -> bool {
        self.whole.load(Ordering::Acquire)
    }

    /// Looks at the state as of one moment.
    pub fn read<T>(&self, look: impl FnOnce(&Snapshot, &Zones) -> T) -> T {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        look(&state.0, &state.1)
    }

    /// The objects of a kind that it has.
    fn keys(&self, kind: &Kind) -> Vec<ObjectKey> {
        self.read(|snapshot, _| {
            let own = snapshot.metas.keys().filter(|(of, _)| of == kind);
            own.map(|(_, key)| key.clone()).collect()
        })
    }

    /// Takes in one object, and counts as whole from then on.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn put(&self, kind: &Kind, key: ObjectKey, object: &serde_json::Value) {
        self.take(kind, key, Some(object.to_string().as_bytes()));
        self.whole.store(true, Ordering::Release);
    }

    /// Takes in one object as it is now (`None`: gone) and gives the Services that it concerns.
    fn take(&self, kind: &Kind, key: ObjectKey, value: Option<&[u8]>) -> BTreeSet<ObjectKey> {
        let mut services = BTreeSet::new();
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let (snapshot, zones) = &mut *state;
        let before = snapshot.clone();
        let change = snapshot.apply(kind, key, value, 0);
        if let Some(error) = snapshot.unreadable_because(kind, &change.key) {
            tracing::warn!(kind = &*kind.kind, key = %change.key, error,
                "an object is not of its type; what was known of it before stays in force");
        }
        zones.apply(&before, snapshot, &change);
        backend::concerned(&before, snapshot, &change, &mut |service| {
            services.insert(service);
        });
        services
    }
}

/// Keeps the view by watching, and the packet filter by the view, until dropped. The rules that an earlier process
/// left are replaced only when everything has been listed once. Whose front is not carried out is told why.
pub async fn keep(
    view: Arc<View>,
    client: Client,
    mut filter: Filter,
    mut guard: Guard,
    (network, events): (Arc<Network>, Events),
) {
    let node = guard.node.clone();
    let mut complaints = Complaints::new(events);
    let (sender, mut notices) = mpsc::channel(QUEUE);
    let mut watches = tokio::task::JoinSet::new();
    for kind in watched() {
        let own = format!("spec.nodeName={node}");
        let field_selector = if kind == kinds::POD { own } else { String::new() };
        let options = ListOptions { field_selector, ..ListOptions::default() };
        let mut informer = Informer::new(client.clone(), &kind, "", options);
        let sender = sender.clone();
        watches.spawn(async move { while sender.send((kind.clone(), informer.next().await)).await.is_ok() {} });
    }
    let mut unsynced: BTreeSet<Kind> = watched().into_iter().collect();
    // What the first lists have: a view that an earlier run of this kept may have more.
    let mut listed: BTreeSet<(Kind, ObjectKey)> = BTreeSet::new();
    let (mut dirty, mut dirty_pods) = (BTreeSet::new(), BTreeSet::new());
    let (mut filled, mut ranges_changed) = (false, false);
    loop {
        let nothing_to_retry = if filled { dirty.is_empty() && dirty_pods.is_empty() } else { !unsynced.is_empty() };
        let notice = if nothing_to_retry {
            notices.recv().await
        } else {
            // Only what the kernel refused is left over here.
            match tokio::time::timeout(RETRY, notices.recv()).await {
                Ok(notice) => notice,
                Err(_) => Some((kinds::NAMESPACE.clone(), Notice::Synced)),
            }
        };
        let Some((kind, notice)) = notice else { return };
        let is_slice = kind == kinds::ENDPOINT_SLICE;
        ranges_changed |= kind == kinds::SERVICE_CIDR;
        match notice {
            Notice::Synced => {
                if unsynced.remove(&kind) {
                    for key in view.keys(&kind).into_iter().filter(|key| !listed.contains(&(kind.clone(), key.clone())))
                    {
                        if kind == kinds::POD {
                            dirty_pods.insert(key.clone());
                        }
                        dirty.extend(view.take(&kind, key, None));
                    }
                    listed.retain(|(of, _)| *of != kind);
                }
            }
            Notice::Put(key, value) if unsynced.contains(&kind) => {
                listed.insert((kind.clone(), key.clone()));
                if kind == kinds::POD {
                    dirty_pods.insert(key.clone());
                }
                dirty.extend(view.take(&kind, key, Some(value.to_string().as_bytes())));
            }
            Notice::Put(key, value) => {
                if kind == kinds::POD {
                    dirty_pods.insert(key.clone());
                }
                dirty.extend(view.take(&kind, key, Some(value.to_string().as_bytes())));
            }
            Notice::Gone(key, _) => {
                if kind == kinds::POD {
                    dirty_pods.insert(key.clone());
                }
                dirty.extend(view.take(&kind, key, None));
            }
        }
        if !unsynced.is_empty() {
            continue;
        }
        view.whole.store(true, Ordering::Release);
        let has_moved = (is_slice || !filled) && view.read(|snapshot, _| guard.observe(snapshot));
        let has_ranges = std::mem::take(&mut ranges_changed) && follow_ranges(&view, &network, &mut guard);
        if filled && (has_moved || has_ranges) {
            // Once in a cluster's life, or when its servers move, or Services have other ranges.
            dirty.extend(view.keys(&kinds::SERVICE));
            dirty_pods.extend(view.keys(&kinds::POD));
        }
        if !filled {
            match filter.fill(&all_rules(&view, &guard)) {
                Ok(()) => {
                    (filled, dirty, dirty_pods) = (true, BTreeSet::new(), BTreeSet::new());
                    complaints.record_all(&view, &filter, &guard);
                }
                Err(error) => {
                    tracing::error!(%error, "the kernel refused the packet filter's table; Services do not work; \
                        trying again")
                }
            }
        } else {
            loop {
                dirty.retain(|service| !write(&view, &mut filter, service, &guard, &mut complaints));
                dirty_pods.retain(|pod| !write_host_ports(&view, &mut filter, pod, &guard, &mut complaints));
                let freed = filter.freed();
                if freed.is_empty() {
                    break;
                }
                for name in freed {
                    match name.strip_prefix(HOST_PORTS) {
                        Some(pod) => dirty_pods.insert(key_of(pod)),
                        None => dirty.insert(key_of(&name)),
                    };
                }
            }
            complaints.record(&view, &filter, &guard);
        }
    }
}

/// Takes in which ranges Services have addresses of; whether they are others than before.
fn follow_ranges(view: &View, network: &Network, guard: &mut Guard) -> bool {
    let ranges: Vec<Cidr> = view.read(|snapshot, _| {
        let all = snapshot.service_cidrs.values().flat_map(|cidr| addresses::ranges(cidr));
        all.filter_map(|range| match range.network() {
            IpAddr::V4(first) => Some(Cidr { first, prefix: u8::try_from(range.bits).unwrap_or(32) }),
            IpAddr::V6(_) => None,
        })
        .collect()
    });
    match network.route_services(&ranges) {
        Ok(refused) => {
            for range in refused {
                tracing::warn!(%range, "a ServiceCIDR's range is the machine's or its pods' own, or is routed \
                    elsewhere by this machine; its Services are reached by pods only");
            }
        }
        Err(error) => tracing::warn!(%error, "the ranges of Services cannot be routed"),
    }
    let services: Vec<Cidr> = [network.config().service_cidr].into_iter().chain(ranges).collect();
    guard.set_ranges(services)
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

/// Brings the kernel's rules of one pod's host ports up to the view; whether that succeeded. Most pods have none.
fn write_host_ports(
    view: &View,
    filter: &mut Filter,
    pod: &ObjectKey,
    guard: &Guard,
    complaints: &mut Complaints,
) -> bool {
    let rules = view.read(|snapshot, _| snapshot.pods.get(pod).map(|pod| proxy::host_ports::rules(pod, &guard.node)));
    let (name, rules) = (host_ports_name(pod), rules.unwrap_or_default());
    let subject = Subject::Pod(pod.clone());
    if rules.is_empty() && !filter.has(&name) {
        // What it complained of is forgotten with it.
        complaints.look_at(subject, false);
        return true;
    }
    let written = filter.set_service(&name, &fronts(&rules, guard));
    complaints.look_at(subject, is_cut(&rules, &name, filter, guard));
    match written {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%pod, %error, "the kernel refused the rules of a pod's host ports; trying again");
            false
        }
    }
}

/// Whether some fronts are not carried out: most have all of theirs, and nothing is worked out for them a second time.
fn is_cut(rules: &[Rule], name: &str, filter: &Filter, guard: &Guard) -> bool {
    rules.iter().any(|rule| !guard.admits(rule)) || filter.lost(name).next().is_some()
}

/// Brings the kernel's rules of one Service up to the view; whether that succeeded.
fn write(view: &View, filter: &mut Filter, service: &ObjectKey, guard: &Guard, complaints: &mut Complaints) -> bool {
    let (name, rules) = (service.to_string(), view.read(|snapshot, _| proxy::rules(snapshot, service, &guard.node)));
    let written = filter.set_service(&name, &fronts(&rules, guard));
    complaints.look_at(Subject::Service(service.clone()), is_cut(&rules, &name, filter, guard));
    match written {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%service, %error, "the kernel refused the rules of a Service; trying again");
            false
        }
    }
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
