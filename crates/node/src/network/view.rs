//! What the node's DNS server and packet filter know of the cluster: a snapshot that watches keep and the zones made
//! from it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use mainstay_api::{Kind, ObjectKey, kinds};
use mainstay_client::{Client, Informer, ListOptions, Notice};
use mainstay_logic::dns::Zones;
use mainstay_logic::{Snapshot, addresses, backend};
use tokio::sync::mpsc;

use super::filter::Filter;
use super::guard::Guard;
use super::service_rules::ServiceRules;
use super::{Cidr, Network};
use crate::kubelet::events::Events;

/// Notices that wait to be taken in; the watches stand still when it is full.
const QUEUE: usize = 1024;
/// How often what the kernel refused is tried again, and looked whether what it has is still there.
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
    pub(super) fn keys(&self, kind: &Kind) -> Vec<ObjectKey> {
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

/// What the first lists have: a view that an earlier run of [`keep`] kept may have more.
struct Listing {
    unsynced: BTreeSet<Kind>,
    listed: BTreeSet<(Kind, ObjectKey)>,
}

impl Listing {
    /// Takes a notice in, and tells the rules whom it concerns.
    fn take(&mut self, view: &View, kind: &Kind, notice: Notice, rules: &mut ServiceRules) {
        let mut take = |key: ObjectKey, value: Option<&[u8]>| {
            if *kind == kinds::POD {
                rules.pods.insert(key.clone());
            }
            rules.services.extend(view.take(kind, key, value));
        };
        match notice {
            Notice::Synced => {
                if self.unsynced.remove(kind) {
                    for key in view.keys(kind) {
                        if !self.listed.contains(&(kind.clone(), key.clone())) {
                            take(key, None);
                        }
                    }
                    self.listed.retain(|(of, _)| of != kind);
                }
            }
            Notice::Put(key, value) => {
                if self.unsynced.contains(kind) {
                    self.listed.insert((kind.clone(), key.clone()));
                }
                take(key, Some(value.to_string().as_bytes()));
            }
            Notice::Gone(key, _) => take(key, None),
        }
    }
}

/// Keeps the view by watching, and the packet filter by the view, until dropped. The rules that an earlier process
/// left are replaced only when everything has been listed once. Whose front is not carried out is told why.
pub async fn keep(
    view: Arc<View>,
    client: Client,
    filter: Filter,
    guard: Guard,
    (network, events): (Arc<Network>, Events),
) {
    let node = guard.node.clone();
    let mut rules = ServiceRules::new(filter, guard, events);
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
    let mut listing = Listing { unsynced: watched().into_iter().collect(), listed: BTreeSet::new() };
    let mut ranges_changed = false;
    loop {
        let notice = match tokio::time::timeout(RETRY, notices.recv()).await {
            Ok(Some(notice)) => Some(notice),
            Ok(None) => return,
            Err(_) => None,
        };
        if let Some((kind, notice)) = notice {
            rules.slices_changed |= kind == kinds::ENDPOINT_SLICE;
            ranges_changed |= kind == kinds::SERVICE_CIDR;
            listing.take(&view, &kind, notice, &mut rules);
        }
        if !listing.unsynced.is_empty() {
            continue;
        }
        view.whole.store(true, Ordering::Release);
        if std::mem::take(&mut ranges_changed) && follow_ranges(&view, &network, &mut rules.guard) {
            rules.all_again(&view);
        }
        rules.bring_up(&view, notices.is_empty());
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
