//! What several Services want at once, counted, so that the kernel hears of the first and of the last one only. A
//! change costs what changes, not what there is.

use std::collections::{BTreeMap, BTreeSet};

/// How many want each of these.
#[derive(Clone, Debug)]
pub(super) struct Counted<T>(BTreeMap<T, usize>);

/// What one Service's change does to them.
#[derive(Clone, Debug)]
pub(super) struct Difference<T> {
    more: BTreeSet<T>,
    fewer: BTreeSet<T>,
}

impl<T> Default for Counted<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: Ord + Copy> Counted<T> {
    /// What it takes that one who wanted `before` wants `now`.
    pub(super) fn difference(before: &BTreeSet<T>, now: &BTreeSet<T>) -> Difference<T> {
        Difference { more: now.difference(before).copied().collect(), fewer: before.difference(now).copied().collect() }
    }

    /// All that somebody wants.
    pub(super) fn all(&self) -> impl Iterator<Item = &T> {
        self.0.keys()
    }

    /// Those that nobody wanted before.
    pub(super) fn first<'a>(&'a self, difference: &'a Difference<T>) -> impl Iterator<Item = &'a T> {
        difference.more.iter().filter(|one| !self.0.contains_key(one))
    }

    /// Those that nobody wants any more.
    pub(super) fn last<'a>(&'a self, difference: &'a Difference<T>) -> impl Iterator<Item = &'a T> {
        difference.fewer.iter().filter(|one| self.0.get(one) == Some(&1))
    }

    /// It has happened.
    pub(super) fn apply(&mut self, difference: Difference<T>) {
        for one in difference.more {
            *self.0.entry(one).or_default() += 1;
        }
        for one in difference.fewer {
            if let Some(count) = self.0.get_mut(&one) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.0.remove(&one);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_the_last_one_count() {
        let mut counted = Counted::default();
        let change = |counted: &mut Counted<u8>, before: &[u8], now: &[u8]| {
            let set = |all: &[u8]| all.iter().copied().collect();
            let difference = Counted::difference(&set(before), &set(now));
            let said = (
                counted.first(&difference).copied().collect::<Vec<_>>(),
                counted.last(&difference).copied().collect::<Vec<_>>(),
            );
            counted.apply(difference);
            said
        };
        assert_eq!(change(&mut counted, &[], &[1, 2]), (vec![1, 2], vec![]));
        assert_eq!(change(&mut counted, &[], &[2, 3]), (vec![3], vec![]));
        assert_eq!(change(&mut counted, &[1, 2], &[1, 4]), (vec![4], vec![]));
        assert_eq!(change(&mut counted, &[2, 3], &[]), (vec![], vec![2, 3]));
        assert_eq!(change(&mut counted, &[1, 4], &[]), (vec![], vec![1, 4]));
        assert!(counted.0.is_empty());
    }
}
