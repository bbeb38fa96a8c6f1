//! Moments and choices that follow from a printed seed.

use std::time::{SystemTime, UNIX_EPOCH};

/// A small generator.
pub struct Random(u64);

impl Random {
    /// Of `MAINSTAY_TEST_SEED`, or of this moment; the seed is printed so that a failure can be looked at again.
    pub fn new() -> Self {
        let now =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| u64::from(now.subsec_nanos()) + now.as_secs());
        let seed = std::env::var("MAINSTAY_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(now);
        println!("MAINSTAY_TEST_SEED={seed}");
        Self(seed)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// How many rounds a storm has: as `MAINSTAY_STORM_ROUNDS` says, else as usual.
pub fn rounds(usual: u64) -> u64 {
    std::env::var("MAINSTAY_STORM_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}
