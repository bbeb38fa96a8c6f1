//! Services in the kernel's packet filter (nftables), by netlink: no `nft` or `iptables` program is needed.
//!
//! One table, `mainstay`. Packets meet two verdict maps, by address, protocol and port and (for node ports) by
//! protocol and port; the verdict jumps to the chain of that front, which picks a backend and rewrites the
//! destination:
//!
//! ```text
//! prerouting, output:  ip daddr . l4proto . dport  vmap @fronts
//!                      fib daddr type local, not 127.0.0.0/8, l4proto . dport  vmap @node-ports
//! front-7:             numgen random mod 2 == 0   dnat to 10.244.0.5:80
//!                      dnat to 10.244.0.6:80
//! front-9, Local:      ip saddr in pods   dnat to any endpoint        (pods and this host are not kept to this node's)
//!                      fib saddr type local   mark 0x4000
//!                      fib saddr type local   dnat to any endpoint
//!                      dnat to an endpoint here                       (everybody else)
//! front-8, by client:  ip saddr @clients-3  jump keep-3               (`affinity`)
//!                      numgen random mod 2 == 0   jump keep-3 …
//! keep-3:              update @clients-3 { ip saddr timeout 10s }
//!                      dnat to 10.244.0.5:80
//! postrouting:         ip saddr . ip daddr @hairpins  masquerade     (a pod that reaches itself by its Service)
//!                      mark 0x4000  masquerade                      (came by a node port)
//!                      saddr in pods, daddr not in pods, masquerade (a pod to the outside)
//! input, forward, output:
//!                      ip daddr . l4proto . dport @refused  reject  (no endpoint, or not from an allowed source)
//! forward, output:     daddr in services  reject                    (N4: nothing leaves for the outside)
//! prerouting, raw:     iif not lo, daddr in 127.0.0.0/8  drop
//!                      iif mst-pods, saddr is not that of the hardware address  drop   (X6)
//! ```
//!
//! The whole table, with all Services, is put in place of an earlier process's in one transaction ([`Filter::fill`]);
//! after that only what differs is sent, one transaction a Service, so that a change never costs more than what it
//! changes and connections never see a half-made table.

mod affinity;
mod expression;
mod owners;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use super::Cidr;
use super::netlink::{APPEND, CREATE, Family, Message, Socket};
use affinity::Kept;
use expression::{FIRST, Rule, Verdict};
use owners::Owners;

const TABLE: &str = "mainstay";
const FRONTS: &str = "fronts";
const NODE_PORTS: &str = "node-ports";
const HAIRPINS: &str = "hairpins";
const REFUSED: &str = "refused";
const LOOPBACK: Cidr = Cidr { first: Ipv4Addr::new(127, 0, 0, 0), prefix: 8 };
const MASQUERADE_MARK: u32 = 0x4000;

const NFTABLES: u16 = 10 << 8;
const NEW_TABLE: u16 = NFTABLES;
const DEL_TABLE: u16 = NFTABLES | 2;
const NEW_CHAIN: u16 = NFTABLES | 3;
const DEL_CHAIN: u16 = NFTABLES | 5;
const NEW_RULE: u16 = NFTABLES | 6;
const DEL_RULE: u16 = NFTABLES | 8;
const NEW_SET: u16 = NFTABLES | 9;
const DEL_SET: u16 = NFTABLES | 11;
const NEW_ELEMENT: u16 = NFTABLES | 12;
const DEL_ELEMENT: u16 = NFTABLES | 14;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// `struct nfgenmsg` for IPv4.
const IPV4: [u8; 4] = [2, 0, 0, 0];
const VERDICT_TYPE: u32 = 0xffff_ff00;
const MAP: u32 = 0x8;
/// Hooks of the kernel's IPv4 path.
const PREROUTING: u32 = 0;
const INPUT: u32 = 1;
const FORWARD: u32 = 2;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;

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
}

/// The fronts of one Service that are in the kernel.
type Chains = BTreeMap<Front, Chain>;

/// What it takes to make one Service's rules what they should be.
struct ServiceChange {
    messages: Vec<Message>,
    chains: Chains,
    refused: BTreeSet<Front>,
    hairpins: BTreeMap<Ipv4Addr, usize>,
    refusals: BTreeMap<Front, usize>,
    next_chain: u64,
}

/// The table in the kernel, and what is in it.
#[derive(Debug)]
pub struct Filter {
    socket: Socket,
    /// Pods' and Services' addresses.
    ranges: (Cidr, Cidr),
    services: BTreeMap<String, Chains>,
    /// The fronts of each Service that refuse what is not sent on (N4): those outside the Services' range, which the
    /// guards do not know, without an endpoint or for some sources only.
    refused: BTreeMap<String, BTreeSet<Front>>,
    hairpins: BTreeMap<Ipv4Addr, usize>,
    /// How many Services want each of these refused.
    refusals: BTreeMap<Front, usize>,
    next_chain: u64,
    owners: Owners,
    /// Whether the kernel compares two parts of a packet (Linux 6.13).
    checks_senders: bool,
}

fn table(message: &mut Message) -> &mut Message {
    message.string(1, TABLE)
}

fn base_chain(name: &str, kind: &str, hook: u32, priority: i32) -> Message {
    let mut message = Message::new(NEW_CHAIN, CREATE, &IPV4);
    table(&mut message).string(3, name).nest(4, |hook_of| {
        hook_of.be32(1, hook).be32(2, priority.cast_unsigned());
    });
    message.string(7, kind);
    message
}

fn chain(kind: u16, flags: u16, name: &str) -> Message {
    let mut message = Message::new(kind, flags, &IPV4);
    table(&mut message).string(3, name);
    message
}

/// Takes all rules out of a chain.
fn emptied(chain: &str) -> Message {
    let mut message = Message::new(DEL_RULE, 0, &IPV4);
    table(&mut message).string(2, chain);
    message
}

fn rule(chain: &str, fill: impl FnOnce(&mut Rule<'_>)) -> Message {
    let mut message = Message::new(NEW_RULE, CREATE | APPEND, &IPV4);
    table(&mut message).string(2, chain).nest(4, |list| fill(&mut Rule::new(list)));
    message
}

fn set(name: &str, key_length: u32, map: bool, id: u32) -> Message {
    let mut message = Message::new(NEW_SET, CREATE, &IPV4);
    table(&mut message).string(2, name).be32(3, if map { MAP } else { 0 }).be32(4, 0).be32(5, key_length);
    if map {
        message.be32(6, VERDICT_TYPE).be32(7, 0);
    }
    message.be32(10, id);
    message
}

fn element(kind: u16, flags: u16, set: &str, key: &[u8], verdict: Option<&Verdict>) -> Message {
    let mut message = Message::new(kind, flags, &IPV4);
    table(&mut message).string(2, set).nest(3, |elements| {
        elements.nest(1, |element| {
            element.nest(1, |nest| {
                nest.attribute(1, key);
            });
            if let Some(verdict) = verdict {
                element.nest(2, |nest| verdict.write(nest));
            }
        });
    });
    message
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

/// The rules of a front's chain.
fn chain_rules(name: &str, backends: &Backends, kept: &Kept, pods: Cidr) -> Vec<Message> {
    let mut messages = Vec::new();
    if backends.masquerade {
        messages.push(rule(name, |rule| {
            rule.set_mark(MASQUERADE_MARK);
        }));
    }
    let ranges: Vec<Option<Cidr>> = match &backends.from {
        None => vec![None],
        Some(ranges) => ranges.iter().copied().map(Some).collect(),
    };
    let pick = |messages: &mut Vec<Message>, endpoints: &[SocketAddrV4], who: Who| {
        messages.extend(ranges.iter().flat_map(|from| endpoint_rules(name, endpoints, kept, (who, *from))));
    };
    if let Some(inside) = &backends.inside {
        pick(&mut messages, inside, Who::Pods(pods));
        // The endpoint may be on another node, and answers come back through this one.
        messages.push(rule(name, |rule| {
            rule.comes_from_here().set_mark(MASQUERADE_MARK);
        }));
        pick(&mut messages, inside, Who::ThisHost);
    }
    pick(&mut messages, &backends.endpoints, Who::Everybody);
    messages
}

/// Whose connections a rule is for.
#[derive(Clone, Copy)]
enum Who {
    Everybody,
    /// Those with an address in the pods' range.
    Pods(Cidr),
    ThisHost,
}

/// The rules that pick an endpoint, for some clients and maybe of one range of sources only: that of a client that is
/// remembered, else one by chance.
fn endpoint_rules(
    name: &str,
    endpoints: &[SocketAddrV4],
    kept: &Kept,
    (who, from): (Who, Option<Cidr>),
) -> Vec<Message> {
    let within = |rule: &mut Rule<'_>| {
        match who {
            Who::Everybody => {}
            Who::Pods(pods) => {
                rule.source(FIRST).in_range(pods, true);
            }
            Who::ThisHost => {
                rule.comes_from_here();
            }
        }
        if let Some(from) = from {
            rule.source(FIRST).in_range(from, true);
        }
    };
    let mut messages = kept.known_clients(name, endpoints, within);
    let count = u32::try_from(endpoints.len()).unwrap_or(u32::MAX);
    for (index, endpoint) in (0..count).zip(endpoints) {
        messages.push(rule(name, |rule| {
            within(rule);
            let left = count - index;
            if left > 1 {
                rule.one_in(left);
            }
            match kept.chain_of(endpoint) {
                Some(chain) => rule.verdict(&Verdict::Jump(chain)),
                None => rule.destination_nat(*endpoint.ip(), endpoint.port()),
            };
        }));
    }
    messages
}

/// The table with its maps, hooks and guards, and without Services.
fn empty_table(pods: Cidr, services: Cidr, checks_senders: bool) -> Vec<Message> {
    let new_table = || {
        let mut message = Message::new(NEW_TABLE, CREATE, &IPV4);
        table(&mut message);
        message
    };
    let mut delete = Message::new(DEL_TABLE, 0, &IPV4);
    table(&mut delete);
    let mut messages = vec![
        new_table(),
        delete,
        new_table(),
        set(FRONTS, 12, true, 1),
        set(NODE_PORTS, 8, true, 2),
        set(HAIRPINS, 8, false, 3),
        set(REFUSED, 12, false, 4),
        base_chain("raw-guard", "filter", PREROUTING, -300),
        base_chain("prerouting", "nat", PREROUTING, -100),
        base_chain("output", "nat", OUTPUT, -100),
        base_chain("postrouting", "nat", POSTROUTING, 100),
        base_chain("input-guard", "filter", INPUT, 0),
        base_chain("forward-guard", "filter", FORWARD, 0),
        base_chain("output-guard", "filter", OUTPUT, 0),
    ];
    for hook in ["prerouting", "output"] {
        messages.push(rule(hook, |rule| {
            rule.destination(FIRST).protocol(FIRST + 1).destination_port(FIRST + 2).by_map(FRONTS);
        }));
        messages.push(rule(hook, |rule| {
            // The kernel drops what goes from a loopback address to a pod: there a node port is refused instead, as
            // kube-proxy's nftables mode has it.
            rule.destined_here().destination(FIRST).in_range(LOOPBACK, false);
            rule.protocol(FIRST).destination_port(FIRST + 1).by_map(NODE_PORTS);
        }));
    }
    // The bridge lets answers to this host's loopback addresses in (a host port there); nobody else gets to them.
    messages.push(rule("raw-guard", |rule| {
        rule.came_from_outside().destination(FIRST).in_range(LOOPBACK, true).verdict(&Verdict::Drop);
    }));
    // A pod's port takes packets of its own hardware address only (`Links::tie_port`), and that names its address.
    if checks_senders {
        messages.push(rule("raw-guard", |rule| {
            rule.came_by(super::POD_BRIDGE).source_is_not_the_hardware_address().verdict(&Verdict::Drop);
        }));
    }
    messages.push(rule("postrouting", |rule| {
        rule.source(FIRST).destination(FIRST + 1).in_set(HAIRPINS).masquerade();
    }));
    messages.push(rule("postrouting", |rule| {
        rule.has_mark(MASQUERADE_MARK).masquerade();
    }));
    messages.push(rule("postrouting", |rule| {
        rule.source(FIRST).in_range(pods, true).destination(FIRST).in_range(pods, false).masquerade();
    }));
    for guard in ["input-guard", "forward-guard", "output-guard"] {
        messages.push(rule(guard, |rule| {
            rule.protocol(FIRST).equals(&[Protocol::Tcp as u8]);
            rule.destination(FIRST).protocol(FIRST + 1).destination_port(FIRST + 2).in_set(REFUSED).reject(true);
        }));
        messages.push(rule(guard, |rule| {
            rule.destination(FIRST).protocol(FIRST + 1).destination_port(FIRST + 2).in_set(REFUSED).reject(false);
        }));
    }
    messages.push(rule("output-guard", |rule| {
        // The cluster's own DNS server has an address of the range on this host.
        rule.destined_here().verdict(&Verdict::Accept);
    }));
    for guard in ["forward-guard", "output-guard"] {
        messages.push(rule(guard, |rule| {
            rule.destination(FIRST)
                .in_range(services, true)
                .protocol(FIRST)
                .equals(&[Protocol::Tcp as u8])
                .reject(true);
        }));
        messages.push(rule(guard, |rule| {
            rule.destination(FIRST).in_range(services, true).reject(false);
        }));
    }
    messages
}

impl Filter {
    /// Opens the packet filter. What an earlier process left stays in force until [`Filter::fill`] (S11).
    ///
    /// # Errors
    /// The kernel's; `EPROTONOSUPPORT` where it lacks nftables.
    pub fn open(pods: Cidr, services: Cidr) -> io::Result<Self> {
        let socket = Socket::open(Family::Netfilter)?;
        Ok(Self {
            socket,
            ranges: (pods, services),
            services: BTreeMap::new(),
            refused: BTreeMap::new(),
            hairpins: BTreeMap::new(),
            refusals: BTreeMap::new(),
            next_chain: 0,
            owners: Owners::default(),
            checks_senders: true,
        })
    }

    /// Puts the table with the rules of all Services in place of whatever table is there, at once. Of Services that
    /// want the same front the first one has it.
    ///
    /// # Errors
    /// The kernel's; the table is as before then.
    pub fn fill(&mut self, services: &[(String, Fronts)]) -> io::Result<()> {
        self.clear();
        let (pods, range) = self.ranges;
        let mut messages = empty_table(pods, range, self.checks_senders);
        for (service, fronts) in services {
            let granted = self.owners.grant(service, fronts);
            let change = self.change(service, &granted);
            messages.extend(change.messages.iter().cloned());
            self.take(service, change);
        }
        let done = self.transact(messages);
        if let Err(error) = &done {
            self.clear();
            if std::mem::take(&mut self.checks_senders) {
                tracing::warn!(%error, "the kernel does not compare addresses: pods may send in each other's names");
                return self.fill(services);
            }
        }
        done
    }

    fn clear(&mut self) {
        self.services.clear();
        self.owners = Owners::default();
        self.refused.clear();
        self.hairpins.clear();
        self.refusals.clear();
    }

    /// Makes the kernel's rules of a Service what `fronts` says; nothing is sent where nothing differs. A front that
    /// another Service has is left to it: once that gives it up, [`Self::freed`] names this one.
    ///
    /// # Errors
    /// The kernel's; nothing has changed then, and the next call tries the same difference again.
    pub fn set_service(&mut self, service: &str, fronts: &Fronts) -> io::Result<()> {
        let granted = self.owners.grant(service, fronts);
        let change = self.change(service, &granted);
        if !change.messages.is_empty() {
            self.transact(change.messages.clone())?;
        }
        self.take(service, change);
        Ok(())
    }

    fn take(&mut self, service: &str, change: ServiceChange) {
        self.next_chain = change.next_chain;
        self.hairpins = change.hairpins;
        self.refusals = change.refusals;
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
        let mut removed = Vec::new();
        let mut next_chain = self.next_chain;
        for (front, backends) in fronts.iter().filter(|(_, backends)| !backends.all().is_empty()) {
            let known = current.get(front);
            if let Some(unchanged) = known.filter(|known| known.backends == *backends) {
                wanted.insert(*front, unchanged.clone());
                continue;
            }
            let before = known.map(|known| known.kept.clone()).unwrap_or_default();
            let kept = before.for_backends(backends, &mut next_chain);
            messages.extend(kept.made(&before, backends));
            let name = match known {
                Some(Chain { name, .. }) => {
                    messages.push(emptied(name));
                    name.clone()
                }
                None => {
                    let name = format!("front-{next_chain}");
                    next_chain += 1;
                    messages.push(chain(NEW_CHAIN, CREATE, &name));
                    name
                }
            };
            messages.extend(chain_rules(&name, backends, &kept, self.ranges.0));
            if known.is_none() {
                let verdict = Verdict::Jump(name.clone());
                messages.push(element(NEW_ELEMENT, CREATE, front.map(), &front.key(), Some(&verdict)));
            }
            messages.extend(before.gone(&kept));
            wanted.insert(*front, Chain { name, backends: backends.clone(), kept });
        }
        for (front, chain) in current.iter().filter(|(front, _)| !wanted.contains_key(front)) {
            messages.push(element(DEL_ELEMENT, 0, front.map(), &front.key(), None));
            removed.push(chain);
        }
        for Chain { name, kept, .. } in removed {
            messages.push(chain(DEL_CHAIN, 0, name));
            messages.extend(kept.gone(&Kept::default()));
        }
        let hairpins = self.hairpins_with(service, &wanted);
        messages.extend(self.hairpin_changes(&hairpins));
        let refused: BTreeSet<Front> =
            fronts.iter().filter(|(front, backends)| self.refuses(front, backends)).map(|(front, _)| *front).collect();
        let refusals = self.refusals_with(service, &refused);
        messages.extend(self.refusal_changes(&refusals));
        ServiceChange { messages, chains: wanted, refused, hairpins, refusals, next_chain }
    }

    /// Whether packets to a front that are not sent on must be refused by a rule of their own.
    fn refuses(&self, front: &Front, backends: &Backends) -> bool {
        let is_guarded = front.address.is_none_or(|address| self.ranges.1.contains(address));
        !is_guarded && (backends.endpoints.is_empty() || backends.from.is_some())
    }

    fn refusals_with(&self, service: &str, wanted: &BTreeSet<Front>) -> BTreeMap<Front, usize> {
        let mut refusals = self.refusals.clone();
        for front in self.refused.get(service).into_iter().flatten() {
            if let Some(count) = refusals.get_mut(front) {
                *count -= 1;
            }
        }
        for front in wanted {
            *refusals.entry(*front).or_default() += 1;
        }
        refusals.retain(|_, count| *count > 0);
        refusals
    }

    fn refusal_changes(&self, wanted: &BTreeMap<Front, usize>) -> Vec<Message> {
        let added = wanted.keys().filter(|front| !self.refusals.contains_key(front));
        let removed = self.refusals.keys().filter(|front| !wanted.contains_key(front));
        added
            .map(|front| element(NEW_ELEMENT, CREATE, REFUSED, &front.key(), None))
            .chain(removed.map(|front| element(DEL_ELEMENT, 0, REFUSED, &front.key(), None)))
            .collect()
    }

    /// The Services that waited for a front which nobody has any more: their rules are to be made anew.
    pub fn freed(&mut self) -> BTreeSet<String> {
        self.owners.freed()
    }

    /// The fronts that a Service wants and another one has, with who that is.
    pub fn lost(&self, service: &str) -> impl Iterator<Item = (Front, &str)> {
        self.owners.lost(service)
    }

    /// Whether something of this name has rules.
    pub fn has(&self, service: &str) -> bool {
        self.services.contains_key(service)
    }

    /// The Services that have rules.
    pub fn services(&self) -> impl Iterator<Item = &str> {
        self.services.keys().map(String::as_str)
    }

    /// How many Services each endpoint's address serves, once `service` is as `wanted` says.
    fn hairpins_with(&self, service: &str, wanted: &Chains) -> BTreeMap<Ipv4Addr, usize> {
        let addresses = |fronts: &Chains| -> BTreeSet<Ipv4Addr> {
            fronts.values().flat_map(|chain| chain.backends.all()).map(|endpoint| *endpoint.ip()).collect()
        };
        let mut hairpins = self.hairpins.clone();
        for address in self.services.get(service).map(addresses).unwrap_or_default() {
            if let Some(count) = hairpins.get_mut(&address) {
                *count -= 1;
            }
        }
        for address in addresses(wanted) {
            *hairpins.entry(address).or_default() += 1;
        }
        hairpins.retain(|_, count| *count > 0);
        hairpins
    }

    fn hairpin_changes(&self, wanted: &BTreeMap<Ipv4Addr, usize>) -> Vec<Message> {
        let key = |address: &Ipv4Addr| [address.octets(), address.octets()].concat();
        let added = wanted.keys().filter(|address| !self.hairpins.contains_key(address));
        let removed = self.hairpins.keys().filter(|address| !wanted.contains_key(address));
        added
            .map(|address| element(NEW_ELEMENT, CREATE, HAIRPINS, &key(address), None))
            .chain(removed.map(|address| element(DEL_ELEMENT, 0, HAIRPINS, &key(address), None)))
            .collect()
    }

    fn transact(&mut self, messages: Vec<Message>) -> io::Result<()> {
        // The batch's own header names the subsystem in network order.
        let marker = |kind| Message::new(kind, 0, &[0, 0, 0, 10]);
        let acked = messages.len();
        let mut batch = vec![marker(BATCH_BEGIN)];
        batch.extend(messages);
        batch.push(marker(BATCH_END));
        self.socket.batch(batch, acked)
    }

    /// Takes the table away; one that is not there is fine.
    pub fn remove() -> io::Result<()> {
        let mut socket = Socket::open(Family::Netfilter)?;
        let mut make = Message::new(NEW_TABLE, CREATE, &IPV4);
        table(&mut make);
        let mut delete = Message::new(DEL_TABLE, 0, &IPV4);
        table(&mut delete);
        let marker = |kind| Message::new(kind, 0, &[0, 0, 0, 10]);
        socket.batch(vec![marker(BATCH_BEGIN), make, delete, marker(BATCH_END)], 2)
    }
}
