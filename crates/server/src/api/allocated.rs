//! Which Service addresses are taken, found without looking through them: the next free one is as near in a range that
//! is full but for one as in an empty one.
//!
//! It follows the store, and so is a good guess and no more: that an address is free is decided by the transaction that
//! takes it ([`Batch::take_free`](super::Batch)).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use mainstay_api::kinds::IP_ADDRESS;
use mainstay_store::Store;

use super::{Follower, News, key};

/// The addresses that Services have, and those that somebody keeps by an IPAddress.
#[derive(Clone)]
pub struct Allocated(Arc<Mutex<[Taken; 2]>>);

struct Taken {
    rows: Follower,
    prefix: Bytes,
    runs: Runs,
}

impl Allocated {
    /// The addresses of a store. They are read when they are first asked for.
    pub fn of(store: &Store) -> Self {
        let taken = |prefix: Bytes| Taken { rows: Follower::new(store, prefix.clone()), prefix, runs: Runs::default() };
        Self(Arc::new(Mutex::new([taken(key::cluster_ip("")), taken(key::prefix(&IP_ADDRESS, Some("")))])))
    }

    /// The first address from this one on that nobody has.
    pub fn free_from(&self, first: Ipv4Addr) -> Option<Ipv4Addr> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
            text.parse().ok().map(|address: Ipv4Addr| u32::from(address))
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
            Err(error) => tracing::error!(%error, "the addresses of Services could not be read"),
        }
    }
}

/// A set of numbers, as runs without a gap: the last of each, by its first.
#[derive(Default)]
struct Runs(BTreeMap<u32, u32>);

impl Runs {
    /// The run that a number is in: its first and its last.
    fn run_of(&self, number: u32) -> Option<(u32, u32)> {
        let (first, last) = self.0.range(..=number).next_back()?;
        (number <= *last).then_some((*first, *last))
    }

    fn insert(&mut self, number: u32) {
        if self.run_of(number).is_some() {
            return;
        }
        let below = number.checked_sub(1).and_then(|below| self.run_of(below));
        let above = number.checked_add(1).and_then(|above| self.run_of(above));
        if let Some((first, _)) = above {
            self.0.remove(&first);
        }
        let first = below.map_or(number, |(first, _)| first);
        self.0.insert(first, above.map_or(number, |(_, last)| last));
    }

    fn remove(&mut self, number: u32) {
        let Some((first, last)) = self.run_of(number) else { return };
        self.0.remove(&first);
        if first < number {
            self.0.insert(first, number - 1);
        }
        if number < last {
            self.0.insert(number + 1, last);
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
        let all: BTreeSet<u32> = runs.0.iter().flat_map(|(first, last)| *first..=*last).collect();
        assert_eq!(all, set);
        assert!(runs.0.iter().zip(runs.0.keys().skip(1)).all(|((_, last), next)| last + 1 < *next), "runs are joined");
    }
}
