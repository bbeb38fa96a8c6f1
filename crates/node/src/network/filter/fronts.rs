//! The chain of one front: who may come, and which endpoint they are sent to.
//!
//! One endpoint is named by the rule itself; several are in a map by number, so that the chain is as short with a
//! thousand of them, and its change one message.

use std::net::SocketAddrV4;

use super::affinity::Kept;
use super::expression::{FIRST, Rule, Verdict};
use super::table::{Holds, Value};
use super::{Backends, MASQUERADE_MARK, TABLE, set_number};
use crate::network::Cidr;
use crate::network::netlink::Message;

/// Whose connections a rule is for.
#[derive(Clone, Copy)]
enum Who {
    Everybody,
    /// Those with an address in the pods' range.
    Pods(Cidr),
    ThisHost,
}

/// One front's chain being written.
pub(super) struct Writing<'a> {
    pub name: &'a str,
    pub kept: &'a Kept,
    pub pods: Cidr,
    /// The number of the next map.
    pub next: &'a mut u64,
    /// The maps that it has.
    pub maps: Vec<u64>,
    pub messages: Vec<Message>,
}

/// A map of endpoints by number.
pub(super) fn map_name(number: u64) -> String {
    format!("endpoints-{number}")
}

impl Writing<'_> {
    /// The chain's rules, and the maps that they need.
    pub fn write(&mut self, backends: &Backends) {
        if backends.masquerade {
            self.rule(|rule| {
                rule.set_mark(MASQUERADE_MARK);
            });
        }
        if let Some(inside) = &backends.inside {
            let map = self.map(inside);
            self.pick(inside, map, Who::Pods(self.pods), backends);
            // The endpoint may be on another node, and answers come back through this one.
            self.rule(|rule| {
                rule.comes_from_here().set_mark(MASQUERADE_MARK);
            });
            self.pick(inside, map, Who::ThisHost, backends);
        }
        let map = self.map(&backends.endpoints);
        self.pick(&backends.endpoints, map, Who::Everybody, backends);
    }

    fn rule(&mut self, fill: impl FnOnce(&mut Rule<'_>)) {
        self.messages.push(TABLE.rule(self.name, fill));
    }

    /// A map of these endpoints, where they are several.
    fn map(&mut self, endpoints: &[SocketAddrV4]) -> Option<u64> {
        if endpoints.len() < 2 {
            return None;
        }
        let number = *self.next;
        *self.next += 1;
        let name = map_name(number);
        let keeps = endpoints.iter().any(|endpoint| self.kept.chain_of(endpoint).is_some());
        let holds = if keeps { Holds::Verdicts } else { Holds::Values(8) };
        let all: Vec<_> = (0u32..)
            .zip(endpoints)
            .map(|(index, endpoint)| {
                let value = match self.kept.chain_of(endpoint) {
                    Some(chain) => Value::Verdict(Verdict::Jump(chain)),
                    None => {
                        let [high, low] = endpoint.port().to_be_bytes();
                        Value::Bytes([&endpoint.ip().octets()[..], &[high, low, 0, 0]].concat())
                    }
                };
                (index.to_ne_bytes().to_vec(), Some(value))
            })
            .collect();
        self.messages.push(TABLE.set(&name, 4, holds, set_number(number)));
        self.messages.extend(TABLE.elements(&name, &all));
        self.maps.push(number);
        Some(number)
    }

    /// The rules that pick an endpoint for some clients, of the ranges of sources that may come: that of a client that
    /// is remembered, else one by chance.
    fn pick(&mut self, endpoints: &[SocketAddrV4], map: Option<u64>, who: Who, backends: &Backends) {
        let everywhere = [None];
        let ranges: Vec<Option<Cidr>> =
            backends.from.as_ref().map_or(everywhere.to_vec(), |ranges| ranges.iter().copied().map(Some).collect());
        for from in ranges {
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
            self.messages.extend(self.kept.known_clients(self.name, endpoints, within));
            let (kept, count) = (self.kept, u32::try_from(endpoints.len()).unwrap_or(u32::MAX));
            match (map, endpoints) {
                (Some(map), [first, ..]) => self.rule(|rule| {
                    within(rule);
                    rule.by_chance(count);
                    if kept.chain_of(first).is_some() {
                        rule.by_map(&map_name(map));
                    } else {
                        rule.value_of(&map_name(map)).destination_nat_by_value();
                    }
                }),
                (None, [endpoint]) => self.rule(|rule| {
                    within(rule);
                    match kept.chain_of(endpoint) {
                        Some(chain) => rule.verdict(&Verdict::Jump(chain)),
                        None => rule.destination_nat(*endpoint.ip(), endpoint.port()),
                    };
                }),
                _ => {}
            }
        }
    }
}
