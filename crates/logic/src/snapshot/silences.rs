//! Since when the nodes' Leases stand still, or are missing.

use core::time::Duration;
use std::sync::Arc;

use rpds::RedBlackTreeMapSync;

/// Since when the Leases of nodes stand still, by a clock that nobody sets and that whoever feeds the snapshot reads.
/// What was not seen was not silent: a server that begins to look begins to count.
#[derive(Clone, Debug, Default)]
pub struct Silences {
    now: Duration,
    seen: RedBlackTreeMapSync<Arc<str>, Seen>,
}

#[derive(Clone, Debug)]
struct Seen {
    /// Empty where there is no Lease.
    version: Arc<str>,
    at: Duration,
}

impl Silences {
    /// It is now so late. To be called before what happened by now is applied, or a renewal counts as seen too early.
    pub fn advance(&mut self, now: Duration) {
        self.now = self.now.max(now);
    }

    /// A node's Lease has this resourceVersion (`None`: it is gone).
    pub(super) fn note(&mut self, node: &str, version: Option<&str>) {
        match version {
            None => drop(self.seen.remove_mut(node)),
            Some(version) if self.seen.get(node).is_some_and(|seen| &*seen.version == version) => {}
            Some(version) => self.seen.insert_mut(node.into(), Seen { version: version.into(), at: self.now }),
        }
    }

    /// There is a Node of this name, whether it has a Lease or not.
    pub(super) fn expect(&mut self, node: &str) {
        if !self.seen.contains_key(node) {
            self.seen.insert_mut(node.into(), Seen { version: "".into(), at: self.now });
        }
    }

    /// There is no Node of this name.
    pub(super) fn expect_none(&mut self, node: &str) {
        if self.seen.get(node).is_some_and(|seen| seen.version.is_empty()) {
            self.seen.remove_mut(node);
        }
    }

    /// The Lease's resourceVersion, and for how long it has been that. `None`: there is no Lease.
    pub fn of(&self, node: &str) -> Option<(&str, Duration)> {
        let seen = self.seen.get(node).filter(|seen| !seen.version.is_empty())?;
        Some((&seen.version, self.now.saturating_sub(seen.at)))
    }

    /// For how long a node's Lease has not changed, or has not been there.
    pub fn silent(&self, node: &str) -> Duration {
        self.seen.get(node).map_or(Duration::ZERO, |seen| self.now.saturating_sub(seen.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s13_a_silence_begins_when_it_is_first_seen_and_ends_with_each_renewal() {
        let seconds = Duration::from_secs;
        let mut silences = Silences::default();
        silences.advance(seconds(100));
        silences.note("n1", Some("7"));
        assert_eq!(silences.of("n1"), Some(("7", seconds(0))), "what was before was not looked at");
        silences.advance(seconds(130));
        silences.note("n1", Some("7"));
        assert_eq!(silences.of("n1"), Some(("7", seconds(30))));
        silences.advance(seconds(90));
        assert_eq!(silences.of("n1"), Some(("7", seconds(30))), "time does not go back");
        silences.note("n1", Some("8"));
        assert_eq!(silences.of("n1"), Some(("8", seconds(0))));
        silences.note("n1", None);
        assert_eq!(silences.of("n1"), None);
        silences.expect("n1");
        silences.advance(seconds(150));
        silences.expect("n1");
        assert_eq!((silences.of("n1"), silences.silent("n1")), (None, seconds(20)), "it is missing since then");
        silences.note("n1", Some("9"));
        silences.expect_none("n1");
        assert_eq!(silences.of("n1"), Some(("9", seconds(0))));
        silences.note("n1", None);
        silences.expect("n1");
        silences.expect_none("n1");
        assert!(silences.seen.is_empty());
    }
}
