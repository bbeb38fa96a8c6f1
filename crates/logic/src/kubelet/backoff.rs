//! Back-off as upstream's kubelet has it: it doubles with each failure and is forgotten after a quiet time.

use jiff::{SignedDuration, Timestamp};

/// The limits of one kind of back-off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub first: SignedDuration,
    pub longest: SignedDuration,
}

/// Restarts and image pulls: 10 s doubling to 5 min, forgotten after 10 min.
pub const RESTART: Limits = Limits { first: SignedDuration::from_secs(10), longest: SignedDuration::from_secs(300) };

/// Volumes and sandboxes: 500 ms doubling to 2 min 2 s.
pub const RETRY: Limits = Limits { first: SignedDuration::from_millis(500), longest: SignedDuration::from_secs(122) };

/// A mounted volume whose content could not be renewed is tried again after this.
pub const REFRESH_RETRY: SignedDuration = SignedDuration::from_secs(60);

/// How long to wait after the last failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub delay: SignedDuration,
    /// When it last grew.
    pub updated: Timestamp,
}

impl Backoff {
    /// After one more failure at `failed`, noticed `now`. A failure that comes more than twice the longest delay
    /// after the last one begins anew.
    pub fn next(before: Option<Self>, failed: Timestamp, now: Timestamp, limits: Limits) -> Self {
        let delay = match before {
            Some(before) if !before.is_forgotten(failed, limits) => {
                (before.delay.saturating_mul(2)).min(limits.longest)
            }
            _ => limits.first,
        };
        Self { delay, updated: now }
    }

    fn is_forgotten(&self, failed: Timestamp, limits: Limits) -> bool {
        failed.duration_since(self.updated) > limits.longest.saturating_mul(2)
    }

    /// When to try again after a failure at `failed`; in the past where there is nothing to wait for.
    pub fn until(&self, failed: Timestamp, limits: Limits) -> Timestamp {
        if self.is_forgotten(failed, limits) { failed } else { plus(failed, self.delay) }
    }
}

/// A time later; the end of time where there is none.
pub(super) fn plus(at: Timestamp, delay: SignedDuration) -> Timestamp {
    at.checked_add(delay).unwrap_or(Timestamp::MAX)
}

/// A time some seconds later, as API fields give them.
pub(super) fn plus_seconds(at: Timestamp, seconds: i64) -> Timestamp {
    plus(at, SignedDuration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_back_off_doubles_up_to_its_limit_and_is_forgotten_after_a_quiet_time() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let after = |delay: i64| Backoff { delay: SignedDuration::from_secs(delay), updated: at(0) };
        for (before, failed, expected) in [
            (None, 0, 10),
            (Some(after(10)), 1, 20),
            (Some(after(160)), 1, 300),
            (Some(after(300)), 600, 300),
            (Some(after(300)), 601, 10),
            (Some(after(20)), 600, 40),
        ] {
            let next = Backoff::next(before, at(failed), at(failed + 1), RESTART);
            assert_eq!((next.delay.as_secs(), next.updated), (expected, at(failed + 1)), "{before:?} {failed}");
        }
        for (failed, expected) in [(5, 25), (600, 620), (601, 601)] {
            assert_eq!(after(20).until(at(failed), RESTART), at(expected), "{failed}");
        }
    }
}
