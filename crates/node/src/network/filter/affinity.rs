//! `sessionAffinity: ClientIP`: who was sent where, and until when.
//!
//! Each endpoint of such a front has a set of the clients that it serves, whose elements the kernel takes out when
//! their time is over, and a chain that notes the client before it sends the connection on. The sets stay when other
//! endpoints come and go; they go with their endpoint, with the affinity, and when the whole table is made anew.
//!
//! Differs: upstream's node port and cluster address of one Service port share their clients, here each has its own.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;

use super::expression::{FIRST, Rule, Verdict};
use super::{Backends, CREATE, DEL_CHAIN, DEL_SET, IPV4, NEW_CHAIN, NEW_SET, chain, emptied, rule, table};
use crate::network::netlink::Message;

/// How many clients of one endpoint are remembered at most; others are sent on by chance.
const MAX_CLIENTS: u32 = 65_536;
/// Elements have an end.
const TIMEOUT: u32 = 0x10;
/// Rules may add elements.
const EVAL: u32 = 0x20;

/// The endpoints of one front whose clients are remembered, each with the number that names its set and its chain.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct Kept(BTreeMap<SocketAddrV4, u64>);

impl Kept {
    /// What is to be remembered for these backends: known endpoints keep their sets.
    pub fn for_backends(&self, backends: &Backends, next: &mut u64) -> Self {
        if backends.affinity.is_none() {
            return Self::default();
        }
        let mut number = |endpoint: &SocketAddrV4| {
            self.0.get(endpoint).copied().unwrap_or_else(|| {
                *next += 1;
                *next - 1
            })
        };
        Self(backends.all().into_iter().map(|endpoint| (endpoint, number(&endpoint))).collect())
    }

    /// The chain that sends on to an endpoint.
    pub fn chain_of(&self, endpoint: &SocketAddrV4) -> Option<String> {
        self.0.get(endpoint).map(|number| chain_name(*number))
    }

    /// The rules of a front's chain for clients that were here before, and may be sent to these endpoints.
    pub fn known_clients(
        &self,
        front: &str,
        endpoints: &[SocketAddrV4],
        within: impl Fn(&mut Rule<'_>),
    ) -> Vec<Message> {
        let one = |number: &u64| {
            rule(front, |rule| {
                within(rule);
                rule.source(FIRST).in_set(&set_name(*number)).verdict(&Verdict::Jump(chain_name(*number)));
            })
        };
        endpoints.iter().filter_map(|endpoint| self.0.get(endpoint)).map(one).collect()
    }

    /// Makes the sets and chains that `before` did not have; writes the rules of all, since the time may be another.
    pub fn made(&self, before: &Self, backends: &Backends) -> Vec<Message> {
        let mut messages = Vec::new();
        let seconds = backends.affinity.unwrap_or_default();
        for (endpoint, number) in &self.0 {
            let (set, name) = (set_name(*number), chain_name(*number));
            if before.0.contains_key(endpoint) {
                messages.push(emptied(&name));
            } else {
                messages.push(clients(&set, *number));
                messages.push(chain(NEW_CHAIN, CREATE, &name));
            }
            // Two rules: the first ends where the set is full.
            messages.push(rule(&name, |rule| {
                rule.remember_source(&set, seconds);
            }));
            messages.push(rule(&name, |rule| {
                rule.destination_nat(*endpoint.ip(), endpoint.port());
            }));
        }
        messages
    }

    /// Takes away the chains and sets that are not in `now`, which nothing leads to any more.
    pub fn gone(&self, now: &Self) -> Vec<Message> {
        let numbers = self.0.iter().filter(|(endpoint, _)| !now.0.contains_key(endpoint)).map(|(_, number)| *number);
        numbers.flat_map(|number| [chain(DEL_CHAIN, 0, &chain_name(number)), set_gone(&set_name(number))]).collect()
    }
}

fn set_name(number: u64) -> String {
    format!("clients-{number}")
}

fn chain_name(number: u64) -> String {
    format!("keep-{number}")
}

/// A set of addresses that rules fill.
fn clients(name: &str, number: u64) -> Message {
    const ADDRESS: u32 = 4;
    let mut message = Message::new(NEW_SET, CREATE, &IPV4);
    table(&mut message).string(2, name).be32(3, TIMEOUT | EVAL).be32(4, 0).be32(5, ADDRESS);
    message.nest(9, |size| {
        size.be32(1, MAX_CLIENTS);
    });
    // The kernel wants a number within the transaction; rules go by the name.
    message.be32(10, u32::try_from(number % u64::from(u32::MAX >> 1)).unwrap_or_default() + 16);
    message
}

fn set_gone(name: &str) -> Message {
    let mut message = Message::new(DEL_SET, 0, &IPV4);
    table(&mut message).string(2, name);
    message
}
