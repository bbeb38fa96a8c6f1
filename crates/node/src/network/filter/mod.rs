//! Services in the kernel's packet filter (nftables), by netlink: no `nft` or `iptables` program is needed.
//!
//! One table, `mainstay`. Packets meet two verdict maps, by address, protocol and port and (for node ports) by
//! protocol and port; the verdict jumps to the chain of that front, which picks a backend and rewrites the
//! destination:
//!
//! ```text
//! prerouting, output:  ip daddr . l4proto . dport  vmap @fronts
//!                      fib daddr type local, not 127.0.0.0/8, l4proto . dport  vmap @node-ports
//! front-7:             numgen random mod 2   dnat to value of @endpoints-8
//! endpoints-8:         0 : 10.244.0.5 . 80,  1 : 10.244.0.6 . 80
//! front-9, Local:      ip saddr in pods   dnat to any endpoint        (pods and this host are not kept to this node's)
//!                      fib saddr type local   mark 0x4000
//!                      fib saddr type local   dnat to any endpoint
//!                      dnat to an endpoint here                       (everybody else)
//! front-8, by client:  ip saddr @clients-3  jump keep-3               (`affinity`)
//!                      numgen random mod 2   vmap @endpoints-9
//! keep-3:              update @clients-3 { ip saddr timeout 10s }
//!                      dnat to 10.244.0.5:80
//! postrouting:         ip saddr . ip daddr @hairpins  masquerade     (a pod that reaches itself by its Service)
//!                      mark 0x4000  masquerade                      (came by a node port)
//!                      saddr in pods, daddr not in pods, masquerade (a pod to the outside)
//! input:               iif mst-pods, daddr in 127.0.0.0/8, from the client  drop   (X6: a Service that leads there)
//! input, forward, output:
//!                      ip daddr . l4proto . dport @refused  reject  (no endpoint, or not from an allowed source)
//! forward, output:     daddr in services  reject                    (N4: nothing leaves for the outside)
//! prerouting, raw:     iif not lo, daddr in 127.0.0.0/8  drop
//!                      iif mst-pods, saddr is not that of the hardware address  drop   (X6)
//! ```
//!
//! The whole table, with all Services, is put in place of an earlier process's in one transaction ([`Filter::fill`]);
//! after that only what differs is sent, one transaction a Service, so that a change never costs more than what it
//! changes and connections never see a half-made table. Where the kernel refuses the whole, each Service is sent by
//! itself, so that one that is refused takes nothing from the others (X7).
//!
//! What has no connections goes on where the kernel remembers that it went: after a change of a UDP front the entries
//! that lead elsewhere are forgotten ([`Filter::forget_stale`], `stale`).

mod affinity;
mod counted;
mod expression;
mod foreign;
mod fronts;
mod guards;
mod mark;
pub mod overlay;
mod owners;
mod ports;
mod stale;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use super::conntrack::Conntrack;
use super::netlink::{Family, Message, Socket};
use super::{Cidr, PAIR_PREFIX};
use affinity::Kept;
use counted::{Counted, Difference};
use expression::Verdict;
use fronts::{Writing, map_name};
pub use mark::Mark;
use owners::Owners;
use table::{Sees, Table, Value};

const TABLE: Table = Table("mainstay", Sees::Ipv4);
const FRONTS: &str = "fronts";
const NODE_PORTS: &str = "node-ports";
const HAIRPINS: &str = "hairpins";
const REFUSED: &str = "refused";
const LOOPBACK: Cidr = Cidr { first: Ipv4Addr::new(127, 0, 0, 0), prefix: 8 };
const MASQUERADE_MARK: u32 = 0x4000;
/// How many endpoints one Service has in the kernel at most, all its fronts together: what is more is shared out
/// evenly, and said ([`Filter::limit`]).
pub const MAX_ENDPOINTS: usize = 1 << 17;
/// How many ranges of sources it has at most, likewise: whoever is in none of them is refused.
pub const MAX_SOURCES: usize = 1 << 13;
/// For how many endpoints one counts whose clients are remembered: it takes a set and a chain.
const KEPT_ENDPOINT: usize = 16;

/// The number that a set has within a transaction; the small ones are those of the table's own.
fn set_number(number: u64) -> u32 {
    u32::try_from(number % u64::from(u32::MAX >> 1)).unwrap_or_default() + 16
}

/// Transport protocols that Services have, by IP protocol number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Protocol {
    /// TCP.
    Tcp = 6,
    /// UDP.
    Udp = 17,
    /// SCTP.
    Sctp = 132,
}

/// Where packets arrive.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Front {
    /// A Service's address, or `None`: every address of this node (a node port).
    pub address: Option<Ipv4Addr>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

/// Where the packets of a front go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Backends {
    /// The ready endpoints; with none the front is refused.
    pub endpoints: Vec<SocketAddrV4>,
    /// Where pods, and this host itself, are sent where that is somewhere else (`externalTrafficPolicy: Local`).
    pub inside: Option<Vec<SocketAddrV4>>,
    /// `sessionAffinity: ClientIP`: a client keeps its endpoint until it has made no connection for so many seconds.
    pub affinity: Option<u32>,
    /// Who may come: everybody, or only these ranges; others are refused.
    pub from: Option<Vec<Cidr>>,
    /// Whether the endpoint sees the node's address instead of the client's (node ports with policy Cluster).
    pub masquerade: bool,
}

impl Backends {
    /// All endpoints that somebody is sent to, each once.
    fn all(&self) -> BTreeSet<SocketAddrV4> {
        self.endpoints.iter().chain(self.inside.iter().flatten()).copied().collect()
    }
}

/// The fronts of one Service.
pub type Fronts = BTreeMap<Front, Backends>;

/// A front's chain that is in the kernel.
#[derive(Clone, Debug)]
struct Chain {
    name: String,
    backends: Backends,
    /// Where clients are remembered.
    kept: Kept,
    /// The maps of its endpoints.
    maps: Vec<u64>,
}

/// The fronts of one Service that are in the kernel.
type Chains = BTreeMap<Front, Chain>;

/// What it takes to make one Service's rules what they should be.
struct ServiceChange {
    messages: Vec<Message>,
    chains: Chains,
    refused: BTreeSet<Front>,
    hairpins: Difference<Ipv4Addr>,
    refusals: Difference<Front>,
    /// Fronts with connections that may lead elsewhere now.
    stale: BTreeSet<Front>,
    next_number: u64,
}

/// The table in the kernel, and what is in it.
#[derive(Debug)]
pub struct Filter {
    socket: Socket,
    conntrack: Conntrack,
    /// Pods' and Services' addresses.
    ranges: (Cidr, Cidr),
    services: BTreeMap<String, Chains>,
    /// The fronts of each Service that refuse what is not sent on (N4): those outside the Services' range, which the
    /// guards do not know, without an endpoint or for some sources only.
    refused: BTreeMap<String, BTreeSet<Front>>,
    /// How many Services each endpoint's address serves.
    hairpins: Counted<Ipv4Addr>,
    /// How many Services want each of these refused.
    refusals: Counted<Front>,
    /// The Services that want more than they may have.
    limits: BTreeMap<String, Limit>,
    next_number: u64,
    owners: Owners,
    stale: stale::Due,
    checks_senders: bool,
    /// The table that was made last: another one of its name is somebody else's.
    handle: Option<Vec<u8>>,
}

impl Front {
    fn map(&self) -> &'static str {
        if self.address.is_some() { FRONTS } else { NODE_PORTS }
    }

    /// The map's key: every part in a word of its own.
    fn key(&self) -> Vec<u8> {
        let mut key = Vec::with_capacity(12);
        if let Some(address) = self.address {
            key.extend(address.octets());
        }
        key.extend([self.protocol as u8, 0, 0, 0]);
        key.extend(self.port.to_be_bytes());
        key.extend([0, 0]);
        key
    }
}

/// What each front of a Service has at most, where it wants more than there is room for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limit {
    /// So many endpoints.
    Endpoints(usize),
    /// So many ranges of sources.
    Sources(usize),
}

/// What a Service gets of what it wants, and which limit that met.
fn limited(mut fronts: Fronts) -> (Fronts, Option<Limit>) {
    let mut limit = None;
    let sources: usize = fronts.values().filter_map(|backends| Some(backends.from.as_ref()?.len())).sum();
    if sources > MAX_SOURCES {
        let each = (MAX_SOURCES / fronts.len().max(1)).max(1);
        fronts.values_mut().filter_map(|backends| backends.from.as_mut()).for_each(|from| from.truncate(each));
        limit = Some(Limit::Sources(each));
    }
    let weight = |backends: &Backends| if backends.affinity.is_some() { KEPT_ENDPOINT } else { 1 };
    let count = |backends: &Backends| backends.endpoints.len() + backends.inside.as_ref().map_or(0, Vec::len);
    let wanted: usize = fronts.values().map(|backends| count(backends) * weight(backends)).sum();
    if wanted > MAX_ENDPOINTS {
        let lists: usize = fronts.values().map(|b| weight(b) * (1 + usize::from(b.inside.is_some()))).sum();
        let each = (MAX_ENDPOINTS / lists.max(1)).max(1);
        for backends in fronts.values_mut() {
            backends.endpoints.truncate(each);
            backends.inside.iter_mut().for_each(|inside| inside.truncate(each));
        }
        limit = Some(Limit::Endpoints(each));
    }
    (fronts, limit)
}

impl Filter {
    /// Opens the packet filter. What an earlier process left stays in force until [`Filter::fill`] (S11).
    ///
    /// # Errors
    /// The kernel's; `EPROTONOSUPPORT` where it lacks nftables.
    pub fn open(pods: Cidr, services: Cidr) -> io::Result<Self> {
        let mut socket = Socket::open(Family::Netfilter)?;
        let checks_senders = guards::checks_senders(&mut socket)?;
        if !checks_senders {
            tracing::warn!("the kernel does not compare addresses: pods may send in each other's names");
        }
        Ok(Self {
            socket,
            conntrack: Conntrack::open()?,
            ranges: (pods, services),
            services: BTreeMap::new(),
            refused: BTreeMap::new(),
            hairpins: Counted::default(),
            refusals: Counted::default(),
            limits: BTreeMap::new(),
            next_number: 0,
            owners: Owners::default(),
            stale: stale::Due::default(),
            checks_senders,
            handle: None,
        })
    }

    /// Puts the table with the rules of all Services in place of whatever table is there, at once. Of Services that
    /// want the same front the first one has it. Gives those whose rules the kernel refused: the others have theirs.
    ///
    /// # Errors
    /// The kernel's; the table is as before then.
    pub fn fill(&mut self, services: &[(String, Fronts)]) -> io::Result<BTreeSet<String>> {
        self.clear();
        let (pods, range) = self.ranges;
        let empty = guards::made_anew(pods, range, self.checks_senders);
        let mut messages = empty.clone();
        for (service, fronts) in services {
            let change = self.granted_change(service, fronts);
            messages.extend(change.messages.iter().cloned());
            self.take(service, change);
        }
        let mut refused = BTreeSet::new();
        if let Err(error) = table::transact(&mut self.socket, messages) {
            tracing::warn!(%error, "the kernel refused the packet filter's table; each Service is tried by itself");
            self.clear();
            table::transact(&mut self.socket, empty)?;
            for (service, fronts) in services {
                if let Err(error) = self.set_service(service, fronts) {
                    tracing::warn!(service, %error, "the kernel refused the rules of a Service");
                    refused.insert(service.clone());
                }
            }
        }
        self.handle = TABLE.handle(&mut self.socket)?;
        if let Err(error) = ports::guard(&mut self.socket) {
            tracing::warn!(%error, "pods that switch IPv6 on may speak it to each other");
        }
        self.stale.all();
        Ok(refused)
    }

    /// Lets pods' packets pass the chains of others that drop what is forwarded; says how many did not let them.
    ///
    /// # Errors
    /// The kernel's.
    pub fn pass_others(&mut self) -> io::Result<usize> {
        foreign::pass(&mut self.socket)
    }

    /// Whether the table that [`Self::fill`] made is still there: `nft flush ruleset` takes everybody's.
    ///
    /// # Errors
    /// The kernel's.
    pub fn is_in_place(&mut self) -> io::Result<bool> {
        let handle = TABLE.handle(&mut self.socket)?;
        Ok(handle.is_some() && handle == self.handle)
    }

    fn clear(&mut self) {
        self.services.clear();
        self.owners = Owners::default();
        self.refused.clear();
        self.hairpins = Counted::default();
        self.refusals = Counted::default();
        self.limits.clear();
    }

    /// Makes the kernel's rules of a Service what `fronts` says; nothing is sent where nothing differs. A front that
    /// another Service has is left to it: once that gives it up, [`Self::freed`] names this one.
    ///
    /// # Errors
    /// The kernel's; nothing has changed then, and the next call tries the same difference again.
    pub fn set_service(&mut self, service: &str, fronts: &Fronts) -> io::Result<()> {
        let mut change = self.granted_change(service, fronts);
        if !change.messages.is_empty() {
            table::transact(&mut self.socket, std::mem::take(&mut change.messages))?;
        }
        self.take(service, change);
        Ok(())
    }

    fn granted_change(&mut self, service: &str, fronts: &Fronts) -> ServiceChange {
        let (granted, limit) = limited(self.owners.grant(service, fronts));
        match limit {
            Some(limit) => self.limits.insert(service.to_owned(), limit),
            None => self.limits.remove(service),
        };
        self.change(service, &granted)
    }

    fn take(&mut self, service: &str, change: ServiceChange) {
        self.next_number = change.next_number;
        self.hairpins.apply(change.hairpins);
        self.refusals.apply(change.refusals);
        self.stale.add(change.stale);
        if change.refused.is_empty() {
            self.refused.remove(service);
        } else {
            self.refused.insert(service.to_owned(), change.refused);
        }
        if change.chains.is_empty() {
            self.services.remove(service);
        } else {
            self.services.insert(service.to_owned(), change.chains);
        }
    }

    fn change(&self, service: &str, fronts: &Fronts) -> ServiceChange {
        let empty = BTreeMap::new();
        let current = self.services.get(service).unwrap_or(&empty);
        let mut messages = Vec::new();
        let mut wanted = BTreeMap::new();
        let mut next_number = self.next_number;
        for (front, backends) in fronts.iter().filter(|(_, backends)| !backends.all().is_empty()) {
            let known = current.get(front);
            let chain = match known.filter(|known| known.backends == *backends) {
                Some(unchanged) => unchanged.clone(),
                None => self.changed_front((front, backends), known, &mut next_number, &mut messages),
            };
            wanted.insert(*front, chain);
        }
        let removed: Vec<_> = current.iter().filter(|(front, _)| !wanted.contains_key(front)).collect();
        messages.extend(removed.iter().map(|(front, _)| TABLE.element_gone(front.map(), &front.key())));
        for (_, Chain { name, kept, maps, .. }) in removed {
            messages.push(TABLE.chain_gone(name));
            messages.extend(maps.iter().map(|map| TABLE.set_gone(&map_name(*map))));
            messages.extend(kept.gone(&Kept::default()));
        }
        let hairpins = Counted::difference(&addresses(current), &addresses(&wanted));
        let key = |address: &Ipv4Addr| [address.octets(), address.octets()].concat();
        messages.extend(self.hairpins.first(&hairpins).map(|address| TABLE.element(HAIRPINS, &key(address), None)));
        messages.extend(self.hairpins.last(&hairpins).map(|address| TABLE.element_gone(HAIRPINS, &key(address))));
        let refused: BTreeSet<Front> =
            fronts.iter().filter(|(front, backends)| self.refuses(front, backends)).map(|(front, _)| *front).collect();
        let refusals = Counted::difference(self.refused.get(service).unwrap_or(&BTreeSet::new()), &refused);
        messages.extend(self.refusals.first(&refusals).map(|front| TABLE.element(REFUSED, &front.key(), None)));
        messages.extend(self.refusals.last(&refusals).map(|front| TABLE.element_gone(REFUSED, &front.key())));
        let stale = stale::changed(current, &wanted, self.ranges.1);
        ServiceChange { messages, chains: wanted, refused, hairpins, refusals, stale, next_number }
    }

    /// Makes a front's chain, or another of the one that it has.
    fn changed_front(
        &self,
        (front, backends): (&Front, &Backends),
        known: Option<&Chain>,
        next: &mut u64,
        messages: &mut Vec<Message>,
    ) -> Chain {
        let before = known.map(|known| known.kept.clone()).unwrap_or_default();
        let kept = before.for_backends(backends, next);
        let name = match known {
            Some(Chain { name, maps, .. }) => {
                messages.push(TABLE.emptied(name));
                messages.extend(maps.iter().map(|map| TABLE.set_gone(&map_name(*map))));
                name.clone()
            }
            None => {
                let name = format!("front-{next}");
                *next += 1;
                messages.push(TABLE.chain(&name));
                name
            }
        };
        messages.extend(kept.made(&before, backends));
        let mut writing =
            Writing { name: &name, kept: &kept, pods: self.ranges.0, next, maps: Vec::new(), messages: Vec::new() };
        writing.write(backends);
        let (maps, written) = (writing.maps, writing.messages);
        messages.extend(written);
        if known.is_none() {
            let verdict = Value::Verdict(Verdict::Jump(name.clone()));
            messages.push(TABLE.element(front.map(), &front.key(), Some(verdict)));
        }
        messages.extend(before.gone(&kept));
        Chain { name, backends: backends.clone(), kept, maps }
    }

    /// Whether packets to a front that are not sent on must be refused by a rule of their own.
    fn refuses(&self, front: &Front, backends: &Backends) -> bool {
        let is_guarded = front.address.is_none_or(|address| self.ranges.1.contains(address));
        !is_guarded && (backends.endpoints.is_empty() || backends.from.is_some())
    }

    /// The Services that waited for a front which nobody has any more: their rules are to be made anew.
    pub fn freed(&mut self) -> BTreeSet<String> {
        self.owners.freed()
    }

    /// The fronts that a Service wants and another one has, with who that is.
    pub fn lost(&self, service: &str) -> impl Iterator<Item = (Front, &str)> {
        self.owners.lost(service)
    }

    /// What each front of a Service is limited to, where it wants more.
    pub fn limit(&self, service: &str) -> Option<Limit> {
        self.limits.get(service).copied()
    }

    /// Whether something of this name has rules.
    pub fn has(&self, service: &str) -> bool {
        self.services.contains_key(service)
    }

    /// The Services that have rules.
    pub fn services(&self) -> impl Iterator<Item = &str> {
        self.services.keys().map(String::as_str)
    }
}

/// Takes our tables away, and our rules out of others'; those that are not there are fine.
pub fn remove() -> io::Result<()> {
    let mut socket = Socket::open(Family::Netfilter)?;
    foreign::leave(&mut socket)?;
    for table in [TABLE, overlay::TABLE] {
        table::transact(&mut socket, vec![table.made(), table.gone()])?;
    }
    // Where the kernel has no tables for bridges, there is none.
    if ports::TABLE.handle(&mut socket).is_ok_and(|handle| handle.is_some()) {
        table::transact(&mut socket, vec![ports::TABLE.made(), ports::TABLE.gone()])?;
    }
    Ok(())
}

/// Everybody that these fronts lead to.
fn addresses(fronts: &Chains) -> BTreeSet<Ipv4Addr> {
    let endpoints = fronts.values().flat_map(|chain| {
        let backends = &chain.backends;
        backends.endpoints.iter().chain(backends.inside.iter().flatten())
    });
    endpoints.map(|endpoint| *endpoint.ip()).collect()
}
