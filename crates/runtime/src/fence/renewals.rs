//! What supervisors conclude from the renewals of their node's lease. Without IO: the simulator's machines use this
//! file too.

use std::time::Duration;

/// What is known of the renewals of the node's lease. Zero: there was none since the machine was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Renewals {
    /// When the newest one was sent.
    pub last: Duration,
    /// When the first one of the row without a gap was acknowledged.
    pub since: Duration,
}

impl Renewals {
    /// One more was sent and acknowledged. A row goes on while each is acknowledged before any deadline that counts
    /// from the one before may have passed: none is shorter than `lease`.
    #[must_use]
    pub fn renewed(self, sent: Duration, acknowledged: Duration, lease: Duration) -> Self {
        if sent < self.last {
            return self;
        }
        let goes_on = !self.since.is_zero() && acknowledged <= self.last.saturating_add(lease);
        Self { last: sent, since: if goes_on { self.since } else { acknowledged } }
    }

    /// When a container with a deadline of so many seconds is to end.
    pub fn deadline(self, seconds: u32) -> Duration {
        self.last.saturating_add(Duration::from_secs(seconds.into()))
    }

    /// The new deadline in the place of one that has passed, if it was moved before that. `None`: it is over.
    pub fn moved(self, passed: Duration, seconds: u32, now: Duration) -> Option<Duration> {
        let was_moved = !self.since.is_zero() && self.since <= passed;
        Some(self.deadline(seconds)).filter(|deadline| was_moved && *deadline > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = at(40);

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn s13_a_deadline_moves_with_each_renewal_that_was_acknowledged_before_it() {
        let mut known = Renewals::default();
        assert_eq!(known.moved(at(40), 40, at(0)), None, "never renewed");
        for second in (1000..1400).step_by(10) {
            known = known.renewed(at(second), at(second + 1), LEASE);
        }
        assert_eq!(known, Renewals { last: at(1390), since: at(1001) });
        assert_eq!(known.moved(at(1300), 300, at(1300)), Some(at(1690)));
        assert_eq!(known.moved(at(1690), 300, at(1690)), None, "nothing was renewed since");
        // The answer to an older request comes late.
        assert_eq!(known.renewed(at(1380), at(1395), LEASE), known);
    }

    #[test]
    fn s13_a_renewal_after_a_deadline_says_nothing_about_it() {
        let known = Renewals::default().renewed(at(1000), at(1000), LEASE);
        // The machine stood still, and its agent is quicker than the supervisor: the identity may be elsewhere.
        let back = known.renewed(at(1500), at(1501), LEASE).renewed(at(1510), at(1511), LEASE);
        assert_eq!(back.since, at(1501));
        assert_eq!(back.moved(at(1300), 300, at(1512)), None);
        // Sent before the deadline, acknowledged after it.
        let late = known.renewed(at(1299), at(1350), LEASE);
        assert_eq!(late.moved(at(1300), 300, at(1351)), None);
        // A gap that is shorter than this deadline is none for it.
        let gap = known.renewed(at(1200), at(1201), LEASE);
        assert_eq!(gap.moved(at(1300), 300, at(1301)), Some(at(1500)));
        assert_eq!(gap.moved(at(1040), 40, at(1202)), None);
    }
}
