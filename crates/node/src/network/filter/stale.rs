//! Connections that lead where their front does not lead any more (N3, N4).
//!
//! A TCP connection to an endpoint that is gone ends by itself. A UDP client goes on sending, each packet renews what
//! the kernel remembers, and whoever has the endpoint's address next gets its packets. So once a UDP front has lost an
//! endpoint, the entries that lead to none of those that it has are forgotten, and the client's next packet is sent to
//! one of them, or refused. The same holds for entries of a time when the front did not exist.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use super::{Chains, Cidr, Filter, Front, Protocol};
use crate::network::conntrack::{Flow, UDP, Which};
use crate::network::link::Links;

/// Fronts whose connections are to be looked at.
#[derive(Debug, Default)]
pub(super) struct Due {
    fronts: BTreeSet<Front>,
    /// After a start: whatever has changed meanwhile, also of Services that are gone.
    all: bool,
}

impl Due {
    pub fn all(&mut self) {
        self.all = true;
    }

    pub fn add(&mut self, fronts: BTreeSet<Front>) {
        self.fronts.extend(fronts);
    }

    fn is_empty(&self) -> bool {
        self.fronts.is_empty() && !self.all
    }
}

/// The UDP fronts that have lost an endpoint, or have their first ones where packets went somewhere before: what is
/// for an address of `services` without an endpoint goes nowhere.
pub(super) fn changed(before: &Chains, now: &Chains, services: Cidr) -> BTreeSet<Front> {
    let all = before.keys().chain(now.keys()).filter(|front| front.protocol == Protocol::Udp);
    let changed = all.filter(|front| match (before.get(front), now.get(front)) {
        (Some(had), Some(has)) => had.backends != has.backends && !has.backends.all().is_superset(&had.backends.all()),
        (None, Some(_)) => front.address.is_none_or(|address| !services.contains(address)),
        _ => true,
    });
    changed.copied().collect()
}

impl Filter {
    /// Whether a change has left connections that may lead elsewhere.
    pub fn has_stale(&self) -> bool {
        !self.stale.is_empty()
    }

    /// Forgets the connections that lead where their front does not lead any more, of all changes since the last call,
    /// and says how many. The kernel goes through all its UDP connections once, so not for every change.
    ///
    /// # Errors
    /// The kernel's, and the next call does it; `Unsupported` where the kernel has no ctnetlink: never, then.
    pub fn forget_stale(&mut self) -> io::Result<usize> {
        if self.stale.is_empty() {
            return Ok(0);
        }
        let own_addresses: BTreeSet<Ipv4Addr> = Links::open()?.addresses()?.into_iter().map(|(_, own)| own).collect();
        let due = std::mem::take(&mut self.stale);
        let udp = |front: &Front| front.protocol == Protocol::Udp;
        let known: BTreeMap<Front, BTreeSet<SocketAddrV4>> = if due.all {
            let chains = self.services.values().flatten().filter(|(front, _)| udp(front));
            chains.map(|(front, chain)| (*front, chain.backends.all())).collect()
        } else {
            let chain = |front: &Front| self.services.get(self.owners.owner(front)?)?.get(front);
            due.fronts.iter().filter_map(|front| Some((*front, chain(front)?.backends.all()))).collect()
        };
        let ((pods, services), owners) = (self.ranges, &self.owners);
        let is_due = |front: &Front| due.all || due.fronts.contains(front);
        let is_stale = |flow: &Flow| {
            let (to, by) = (flow.original.to, flow.reply.from);
            let on = |address| Front { address, protocol: Protocol::Udp, port: to.port() };
            let elsewhere = |front: &Front| known.get(front).is_none_or(|endpoints| !endpoints.contains(&by));
            // As the packet filter looks them up: an address of its own goes before the node's.
            let (own, any) = (on(Some(*to.ip())), on(None));
            if owners.owner(&own).is_some() {
                return is_due(&own) && elsewhere(&own);
            }
            let in_services = services.contains(*to.ip());
            // Only what came to this machine, or was led on here, came to a front without an address: a flow to
            // elsewhere merely has its port.
            let is_here = to.ip().is_loopback() || own_addresses.contains(to.ip());
            let is_led = flow.translated && pods.contains(*by.ip());
            if owners.owner(&any).is_some() && !in_services && !due.fronts.contains(&own) {
                if !is_here && !is_led {
                    return false;
                }
                return is_due(&any) && elsewhere(&any);
            }
            // Its Service is gone, and nobody but us led anybody there.
            flow.translated && (in_services || pods.contains(*by.ip())) && (is_due(&own) || is_due(&any))
        };
        let done = self.conntrack.forget(Which::Of(UDP), is_stale);
        if done.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::Unsupported) {
            self.stale.all |= due.all;
            self.stale.fronts.extend(due.fronts);
        }
        done
    }
}
