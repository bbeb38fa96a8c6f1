//! Who may send into the overlay between machines (X6). Its packets are ordinary UDP ones with anything inside: whoever
//! gets one through to a machine speaks in every pod's name there.
//!
//! ```text
//! prerouting, raw:  iif mst-vxlan, saddr not in pods        drop
//!                   iif mst-vxlan, saddr in this node's     drop
//! input:            udp dport 8472, iif mst-pods or mst-vxlan   drop    (behind what Services rewrite)
//!                   udp dport 8472, ip saddr @peers         accept
//!                   udp dport 8472                          drop
//! forward:          udp dport 8472, ip daddr @peers         drop        (in this machine's name, once masqueraded)
//!                   udp dport 8472, iif mst-pods, daddr not in pods  drop
//! ```
//!
//! A table of its own, since it is made when all Nodes are known, not when all Services are.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;

use super::Verdict;
use super::counted::Counted;
use super::expression::FIRST;
use super::table::{FORWARD, Holds, INPUT, PREROUTING, Sees, Table, transact};
use crate::network::machines::{OVERLAY, PORT};
use crate::network::netlink::{Family, Message, Socket};
use crate::network::{Cidr, POD_BRIDGE};

pub(super) const TABLE: Table = Table("mainstay-overlay", Sees::Ipv4);
const PEERS: &str = "peers";

/// The table in the kernel, and whose packets it lets in.
#[derive(Debug)]
pub struct OverlayGuard {
    socket: Socket,
    /// All pods' addresses, and this node's pods'.
    ranges: (Cidr, Cidr),
    /// The address of each Node's machine.
    nodes: BTreeMap<String, Ipv4Addr>,
    /// How many Nodes have each address.
    peers: Counted<Ipv4Addr>,
    handle: Option<Vec<u8>>,
}

impl OverlayGuard {
    /// Opens it. What an earlier process left stays in force until [`Self::fill`].
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(pods: Cidr, own: Cidr) -> io::Result<Self> {
        let socket = Socket::open(Family::Netfilter)?;
        Ok(Self { socket, ranges: (pods, own), nodes: BTreeMap::new(), peers: Counted::default(), handle: None })
    }

    /// A Node's machine has another address now (`None`: it is, or was, no peer).
    ///
    /// # Errors
    /// The kernel's; nothing has changed then.
    pub fn admit(&mut self, node: &str, now: Option<Ipv4Addr>) -> io::Result<()> {
        let before = self.nodes.get(node).copied();
        let difference = Counted::difference(&before.into_iter().collect(), &now.into_iter().collect());
        if self.handle.is_some() {
            let added = self.peers.first(&difference).map(|peer| TABLE.element(PEERS, &peer.octets(), None));
            let gone = self.peers.last(&difference).map(|peer| TABLE.element_gone(PEERS, &peer.octets()));
            let messages: Vec<Message> = added.chain(gone).collect();
            if !messages.is_empty() {
                transact(&mut self.socket, messages)?;
            }
        }
        self.peers.apply(difference);
        match now {
            Some(address) => self.nodes.insert(node.to_owned(), address),
            None => self.nodes.remove(node),
        };
        Ok(())
    }

    /// Puts the table with all peers in place of whatever is there, at once.
    ///
    /// # Errors
    /// The kernel's; the table is as before then.
    pub fn fill(&mut self) -> io::Result<()> {
        self.handle = None;
        let mut messages = rules(self.ranges);
        let elements: Vec<_> = self.peers.all().map(|peer| (peer.octets().to_vec(), None)).collect();
        messages.extend(TABLE.elements(PEERS, &elements));
        transact(&mut self.socket, messages)?;
        self.handle = TABLE.handle(&mut self.socket)?;
        Ok(())
    }

    /// Whether the table that [`Self::fill`] made is still there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn is_in_place(&mut self) -> io::Result<bool> {
        let handle = TABLE.handle(&mut self.socket)?;
        Ok(handle.is_some() && handle == self.handle)
    }
}

fn rules((pods, own): (Cidr, Cidr)) -> Vec<Message> {
    let mut messages: Vec<Message> = TABLE.made_anew().into();
    messages.extend([
        TABLE.set(PEERS, 4, Holds::Keys, 1),
        TABLE.base_chain("raw-guard", "filter", PREROUTING, -300),
        TABLE.base_chain("input-guard", "filter", INPUT, 0),
        TABLE.base_chain("forward-guard", "filter", FORWARD, 0),
    ]);
    for (range, within) in [(pods, false), (own, true)] {
        messages.push(TABLE.rule("raw-guard", |rule| {
            rule.came_by(OVERLAY).source(FIRST).in_range(range, within).verdict(&Verdict::Drop);
        }));
    }
    for link in [POD_BRIDGE, OVERLAY] {
        messages.push(TABLE.rule("input-guard", |rule| {
            rule.is_udp_to(PORT).came_by(link).verdict(&Verdict::Drop);
        }));
    }
    messages.push(TABLE.rule("input-guard", |rule| {
        rule.is_udp_to(PORT).source(FIRST).in_set(PEERS).verdict(&Verdict::Accept);
    }));
    messages.push(TABLE.rule("input-guard", |rule| {
        rule.is_udp_to(PORT).verdict(&Verdict::Drop);
    }));
    messages.push(TABLE.rule("forward-guard", |rule| {
        rule.is_udp_to(PORT).destination(FIRST).in_set(PEERS).verdict(&Verdict::Drop);
    }));
    messages.push(TABLE.rule("forward-guard", |rule| {
        rule.is_udp_to(PORT).came_by(POD_BRIDGE).destination(FIRST).in_range(pods, false).verdict(&Verdict::Drop);
    }));
    messages
}
