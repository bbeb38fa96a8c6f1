//! Which Service addresses and which nodes' ranges are taken, found without looking through them: the next free one is
//! as near in a range that is full but for one as in an empty one.
//!
//! It follows the store, and so is a good guess and no more: that an address is free is decided by the transaction that
//! takes it ([`Batch::take_free`](super::Batch)).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use mainstay_api::kinds::IP_ADDRESS;
use mainstay_store::Store;

use super::admission::node::NODE_BITS;
use super::{Cidr, Follower, News, key};

/// The addresses that Services have, and those that somebody keeps by an IPAddress; the ranges that Nodes have.
#[derive(Clone)]
pub struct Allocated(Arc<Mutex<All>>);

struct All {
    addresses: [Taken; 2],
    ranges: Taken,
}

struct Taken {
    rows: Follower,
    prefix: Bytes,
    /// What the rest of a key stands for.
    number: fn(&str) -> Option<u32>,
    runs: Runs,
}

impl Allocated {
    /// The addresses of a store. They are read when they are first asked for.
    pub fn of(store: &Store) -> Self {
        let taken = |prefix: Bytes, number| Taken {
            rows: Follower::new(store, prefix.clone()),
            prefix,
            number,
            runs: Runs::default(),
        };
        let address: fn(&str) -> Option<u32> = |text| text.parse().ok().map(|address: Ipv4Addr| u32::from(address));
        let range = |text: &str| {
            let (network, bits) = text.split_once('-')?;
            let network = u32::from(network.parse::<Ipv4Addr>().ok()?);
            (bits.parse() == Ok(NODE_BITS)).then_some(network >> (u32::BITS - NODE_BITS))
        };
        let addresses = [key::cluster_ip(""), key::prefix(&IP_ADDRESS, Some(""))].map(|prefix| taken(prefix, address));
        Self(Arc::new(Mutex::new(All { addresses, ranges: taken(key::pod_range(""), range) })))
    }

    /// The index of a node's range in `all` that nobody has: the first from that index on at which it would be if they
    /// were given away in order, and `further`. `None` where all are taken from there on to the end and from the
    /// beginning.
    pub fn free_range(&self, all: Cidr, further: u64) -> Option<u64> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ranges = &mut taken.ranges;
        ranges.catch_up();
        let (count, base) = (all.ranges(NODE_BITS), u32::from(all.nth(0)?) >> (u32::BITS - NODE_BITS));
        let begin = ranges.runs.count.saturating_add(further) % count.max(1);
        let free = |from: u64| {
            let free = ranges.runs.free_from(base.checked_add(u32::try_from(from).ok()?)?)?;
            Some(u64::from(free - base)).filter(|index| *index < count)
        };
        free(begin).or_else(|| free(0))
    }

    /// The first address from this one on that nobody has.
    pub fn free_from(&self, first: Ipv4Addr) -> Option<Ipv4Addr> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all = &mut all.addresses;
        all.iter_mut().for_each(Taken::catch_up);
        let mut next = u32::from(first);
        loop {
            let asked = next;
            for taken in all.iter() {
                next = taken.runs.free_from(next)?;
            }
            if next == asked {
                return Some(Ipv4Addr::from(next));
            }
        }
    }
}

impl Taken {
    fn catch_up(&mut self) {
        let number = |key: &Bytes| {
            let text = key.strip_prefix(&self.prefix[..]).and_then(|text| std::str::from_utf8(text).ok())?;
            (self.number)(text)
        };
        match self.rows.news() {
            Ok(News::Changes(changes)) => {
                for event in &changes {
                    match number(&event.key) {
                        Some(number) if event.deleted => self.runs.remove(number),
                        Some(number) => self.runs.insert(number),
                        None => {}
                    }
                }
            }
            Ok(News::All(entries)) => {
                self.runs = Runs::default();
                entries.iter().filter_map(|entry| number(&entry.key)).for_each(|number| self.runs.insert(number));
            }
            Err(error) => tracing::error!(%error, "which addresses and ranges are taken could not be read"),
        }
    }
}

/// A set of numbers, as runs without a gap: the last of each, by its first.
#[derive(Default)]
struct Runs {
    runs: BTreeMap<u32, u32>,
    /// How many numbers there are.
    count: u64,
}

impl Runs {
    /// The run that a number is in: its first and its last.
    fn run_of(&self, number: u32) -> Option<(u32, u32)> {
        let (first, last) = self.runs.range(..=number).next_back()?;
        (number <= *last).then_some((*first, *last))
    }

    fn insert(&mut self, number: u32) {
        if self.run_of(number).is_some() {
            return;
        }
        self.count += 1;
        let below = number.checked_sub(1).and_then(|below| self.run_of(below));
        let above = number.checked_add(1).and_then(|above| self.run_of(above));
        if let Some((first, _)) = above {
            self.runs.remove(&first);
        }
        let first = below.map_or(number, |(first, _)| first);
        self.runs.insert(first, above.map_or(number, |(_, last)| last));
    }

    fn remove(&mut self, number: u32) {
        let Some((first, last)) = self.run_of(number) else { return };
        self.count -= 1;
        self.runs.remove(&first);
        if first < number {
            self.runs.insert(first, number - 1);
        }
        if number < last {
            self.runs.insert(number + 1, last);
        }
    }

    /// The first number from this one on that is not in the set.
    fn free_from(&self, number: u32) -> Option<u32> {
        self.run_of(number).map_or(Some(number), |(_, last)| last.checked_add(1))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn runs_are_a_set_of_numbers() {
        let (mut runs, mut set) = (Runs::default(), BTreeSet::new());
        let mut state = 7u32;
        for _ in 0..4000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Both ends of what there is, too.
            let number = (state >> 8) % 64;
            let number = if state & 0x10 == 0 { number } else { u32::MAX - number };
            match state & 0x20 == 0 {
                true => {
                    runs.insert(number);
                    set.insert(number);
                }
                false => {
                    runs.remove(number);
                    set.remove(&number);
                }
            }
            let asked = number.saturating_sub(3);
            assert_eq!(runs.free_from(asked), (asked..=u32::MAX).find(|number| !set.contains(number)));
        }
        let all: BTreeSet<u32> = runs.runs.iter().flat_map(|(first, last)| *first..=*last).collect();
        assert_eq!((&all, runs.count), (&set, set.len() as u64));
        assert!(
            runs.runs.iter().zip(runs.runs.keys().skip(1)).all(|((_, last), next)| last + 1 < *next),
            "runs are joined"
        );
    }
}
