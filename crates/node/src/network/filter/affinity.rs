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
use super::table::Holds;
use super::{Backends, TABLE, set_number};
use crate::network::netlink::Message;

/// How many clients of one endpoint are remembered at most; others are sent on by chance.
const MAX_CLIENTS: u32 = 65_536;
/// An address.
const KEY: u32 = 4;

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
            TABLE.rule(front, |rule| {
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
                messages.push(TABLE.emptied(&name));
            } else {
                messages.push(TABLE.set(&set, KEY, Holds::Passing(MAX_CLIENTS), set_number(*number)));
                messages.push(TABLE.chain(&name));
            }
            // Two rules: the first ends where the set is full.
            messages.push(TABLE.rule(&name, |rule| {
                rule.remember_source(&set, seconds);
            }));
            messages.push(TABLE.rule(&name, |rule| {
                rule.destination_nat(*endpoint.ip(), endpoint.port());
            }));
        }
        messages
    }

    /// Takes away the chains and sets that are not in `now`, which nothing leads to any more.
    pub fn gone(&self, now: &Self) -> Vec<Message> {
        let numbers = self.0.iter().filter(|(endpoint, _)| !now.0.contains_key(endpoint)).map(|(_, number)| *number);
        numbers.flat_map(|number| [TABLE.chain_gone(&chain_name(number)), TABLE.set_gone(&set_name(number))]).collect()
    }
}

fn set_name(number: u64) -> String {
    format!("clients-{number}")
}

fn chain_name(number: u64) -> String {
    format!("keep-{number}")
}
