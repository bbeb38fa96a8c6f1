//! A question and its answer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mainstay_api::ObjectKey;

use super::{Data, SCHEMA_VERSION, Zones, address, pod_address};
use crate::snapshot::Snapshot;

/// How many names a chain of ExternalName Services may have before it is cut.
const MAX_CHAIN: usize = 8;

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Type {
    A,
    Aaaa,
    Cname,
    Ptr,
    Srv,
    Txt,
    /// Whatever there is.
    Any,
    /// A type that the zone has no records of (MX, NS, …): a name that exists answers with none.
    Other,
}

/// One record of an answer. Names are lower case and without the last dot.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Record {
    /// Whose record.
    pub name: String,
    /// Its data.
    pub data: Data,
}

/// What the cluster says to a question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The name is not in the cluster's domain and not a cluster address: ask upstream.
    NotOurs,
    /// There is no such name, nor any below it.
    NxDomain,
    /// The name exists, without records of this type.
    NoData,
    /// The records, and the addresses of the SRV targets among them.
    Records {
        /// The answer section. A chain of CNAMEs that leaves the cluster ends in its last CNAME: ask upstream for
        /// that target.
        answers: Vec<Record>,
        /// The additional section.
        additional: Vec<Record>,
    },
}

impl Type {
    fn takes(self, data: &Data) -> bool {
        match data {
            Data::A(_) => matches!(self, Self::A | Self::Any),
            Data::Aaaa(_) => matches!(self, Self::Aaaa | Self::Any),
            Data::Cname(_) => matches!(self, Self::Cname | Self::Any),
            Data::Ptr(_) => matches!(self, Self::Ptr | Self::Any),
            Data::Srv { .. } => matches!(self, Self::Srv | Self::Any),
            Data::Txt(_) => matches!(self, Self::Txt | Self::Any),
        }
    }
}

impl Zones {
    /// Answers a question. `name` in any case, with or without the last dot; `snapshot` is the one that the zones
    /// were last brought up to date with (for pod addresses and namespaces).
    pub fn answer(&self, snapshot: &Snapshot, name: &str, wanted: Type) -> Answer {
        let mut name = name.trim_end_matches('.').to_ascii_lowercase();
        let mut answers = Vec::new();
        for _ in 0..MAX_CHAIN {
            let Some(records) = self.records(snapshot, &name) else {
                return if !answers.is_empty() {
                    Answer::Records { answers, additional: Vec::new() }
                } else if self.is_ours(&name) {
                    Answer::NxDomain
                } else {
                    Answer::NotOurs
                };
            };
            answers.extend(
                records
                    .iter()
                    .filter(|data| wanted.takes(data))
                    .map(|data| Record { name: name.clone(), data: data.clone() }),
            );
            let alias = records
                .iter()
                .find_map(|data| if let Data::Cname(target) = data { Some(target.clone()) } else { None });
            match alias.filter(|_| !matches!(wanted, Type::Cname | Type::Any)) {
                Some(target) => {
                    answers.push(Record { name, data: Data::Cname(target.clone()) });
                    name = target;
                }
                None => break,
            }
        }
        if answers.is_empty() {
            return Answer::NoData;
        }
        let additional = self.targets(snapshot, &answers);
        Answer::Records { answers, additional }
    }

    fn is_ours(&self, name: &str) -> bool {
        below(name, &self.domain).is_some()
    }

    /// All records of a name; an empty list where only names below it have some; `None` where there is nothing.
    fn records(&self, snapshot: &Snapshot, name: &str) -> Option<Vec<Data>> {
        if let Some(ip) = reverse_address(name) {
            let services = self.reverse.get(&ip)?;
            let names = services.iter().filter_map(|service| self.tables.get(service)?.addresses.get(&ip)).flatten();
            return Some(names.map(|name| Data::Ptr(name.clone())).collect());
        }
        let relative = below(name, &self.domain)?;
        let labels: Vec<&str> = relative.rsplit('.').filter(|label| !label.is_empty()).collect();
        let namespace_exists = |namespace: &str| snapshot.namespaces.contains_key(&ObjectKey::new("", namespace));
        match labels.as_slice() {
            [] | ["svc" | "pod"] => Some(Vec::new()),
            ["dns-version"] => Some(vec![Data::Txt(SCHEMA_VERSION.to_owned())]),
            ["svc" | "pod", namespace] => namespace_exists(namespace).then(Vec::new),
            ["pod", namespace, dashed] => pod_address(snapshot, namespace, dashed).map(|ip| vec![address(ip)]),
            ["svc", namespace, service, ..] => {
                let zone = self.tables.get(&ObjectKey::new(*namespace, *service))?;
                zone.names.get(name).cloned().or_else(|| {
                    let suffix = format!(".{name}");
                    zone.names.keys().any(|known| known.ends_with(&suffix)).then(Vec::new)
                })
            }
            _ => None,
        }
    }

    /// The addresses of SRV targets, so that the client need not ask again.
    fn targets(&self, snapshot: &Snapshot, answers: &[Record]) -> Vec<Record> {
        let mut names: Vec<&String> = answers
            .iter()
            .filter_map(|record| if let Data::Srv { target, .. } = &record.data { Some(target) } else { None })
            .collect();
        names.sort();
        names.dedup();
        let addresses = |name: &&String| {
            let records = self.records(snapshot, name).unwrap_or_default();
            let name = (*name).clone();
            records
                .into_iter()
                .filter(|data| matches!(data, Data::A(_) | Data::Aaaa(_)))
                .map(move |data| Record { name: name.clone(), data })
        };
        names.iter().flat_map(addresses).collect()
    }
}

/// What comes before `domain` in a name: `""` for the domain itself, `None` for a name outside it.
fn below<'a>(name: &'a str, domain: &str) -> Option<&'a str> {
    let rest = name.strip_suffix(domain)?;
    if rest.is_empty() { Some(rest) } else { rest.strip_suffix('.') }
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` stands for.
pub fn reverse_address(name: &str) -> Option<IpAddr> {
    if let Some(octets) = name.strip_suffix(".in-addr.arpa") {
        let mut parts: Vec<&str> = octets.split('.').collect();
        parts.reverse();
        return parts.join(".").parse::<Ipv4Addr>().ok().map(IpAddr::V4);
    }
    let nibbles: Vec<&str> = name.strip_suffix(".ip6.arpa")?.split('.').collect();
    if nibbles.len() != 32 || nibbles.iter().any(|nibble| nibble.len() != 1) {
        return None;
    }
    let digits: String = nibbles.into_iter().rev().collect();
    u128::from_str_radix(&digits, 16).ok().map(|bits| IpAddr::V6(Ipv6Addr::from(bits)))
}
