//! How often a read may be asked of another server while the first one still thinks. Where one server hangs, many reads
//! at once go past it; where all of them are slow, asking each of them everything would keep them so.

use std::sync::atomic::{AtomicU32, Ordering};

/// Reads that earn one more question.
const PER_HEDGE: u32 = 10;
/// Questions that may be asked at once: all reads that are under way.
const MOST: u32 = 128;

/// What may still be asked, in parts of a question.
#[derive(Debug)]
pub(crate) struct Budget(AtomicU32);

impl Default for Budget {
    fn default() -> Self {
        Self(AtomicU32::new(MOST * PER_HEDGE))
    }
}

impl Budget {
    /// A read was begun.
    pub fn earn(&self) {
        let more = |parts: u32| (parts < MOST * PER_HEDGE).then_some(parts + 1);
        // Full is full.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    /// Takes a question from what is there; whether there was one.
    pub fn spend(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |parts| parts.checked_sub(PER_HEDGE)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_servers_are_asked_a_tenth_more_and_no_more() {
        let budget = Budget::default();
        let reads = |count: usize| {
            (0..count).filter(|_| {
                budget.earn();
                budget.spend()
            })
        };
        // All that are under way when the first server falls silent.
        assert_eq!(reads(128).count(), 128);
        let later = reads(10_000).count();
        assert!((1000..=1020).contains(&later), "{later}");
    }
}
