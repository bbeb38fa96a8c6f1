//! How much memory and time a registry gets: its name stands in a pod, so anybody may have chosen it (X4).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Bytes of a manifest or an index: what upstream's registry takes.
pub const MAX_MANIFEST: usize = 4 << 20;
/// Bytes of a token server's answer.
pub const MAX_TOKEN: usize = 1 << 20;
/// Bytes of a refusal that are read; what comes after them is not waited for.
pub const MAX_REFUSAL: usize = 64 << 10;
/// Characters of a refusal that are repeated: they end up in events.
pub const MAX_WORDS: usize = 300;
/// Bytes and number of an answer's headers. What is read of a body at once is as large.
pub const MAX_HEAD: usize = 64 << 10;
pub const MAX_HEADERS: usize = 100;
/// Redirections of one request, as many as Docker's CDN chains need and a few more.
pub const MAX_REDIRECTS: usize = 5;
/// Indexes may point to indexes: so deep.
pub const MAX_NESTING: usize = 4;
/// A layer whose connection breaks is gone on with so often, as long as each brought something.
pub const MAX_RESUMPTIONS: usize = 5;
/// Idle connections of one pull.
pub const MAX_IDLE: usize = 4;
/// Bytes that all pulls together hold of documents; the first of each document do not count, so that a few registries
/// with very large ones keep out nobody with usual ones (X7).
const MAX_DOCUMENTS: usize = 64 << 20;
const UNCOUNTED: usize = 256 << 10;

/// For how long a registry is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Until a connection is open: name, TCP, proxy and TLS.
    pub connect: Duration,
    /// Until the next byte.
    pub silence: Duration,
    /// Until a whole document (manifest, config, token, refusal) is there.
    pub document: Duration,
    /// A layer's bytes come at least so many in each such span.
    pub span: Duration,
    pub bytes_per_span: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            connect: Duration::from_secs(15),
            silence: Duration::from_secs(60),
            document: Duration::from_secs(120),
            span: Duration::from_secs(60),
            bytes_per_span: 64 << 10,
        }
    }
}

/// Whether a layer comes fast enough.
pub struct Pace {
    patience: Patience,
    since: Instant,
    bytes: u64,
}

impl Pace {
    pub fn new(patience: Patience) -> Pace {
        Pace { patience, since: Instant::now(), bytes: 0 }
    }

    /// False where too little came for too long.
    pub fn took(&mut self, bytes: usize) -> bool {
        self.bytes += bytes as u64;
        if self.since.elapsed() < self.patience.span {
            return true;
        }
        let is_enough = self.bytes >= self.patience.bytes_per_span;
        (self.since, self.bytes) = (Instant::now(), 0);
        is_enough
    }
}

/// What all pulls may still hold of documents.
#[derive(Clone, Debug)]
pub struct Budget(Arc<AtomicUsize>);

impl Budget {
    pub fn new() -> Budget {
        Budget(Arc::new(AtomicUsize::new(MAX_DOCUMENTS)))
    }
}

/// A document's part of the budget; given back when dropped.
#[derive(Debug)]
pub struct Share {
    budget: Budget,
    length: usize,
    held: usize,
}

impl Share {
    pub fn new(budget: &Budget) -> Share {
        Share { budget: budget.clone(), length: 0, held: 0 }
    }

    /// False where nothing is left for it.
    pub fn grow(&mut self, bytes: usize) -> bool {
        self.length += bytes;
        let more = self.length.saturating_sub(UNCOUNTED).saturating_sub(self.held);
        let left = &self.budget.0;
        let is_granted = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(more)).is_ok();
        if is_granted {
            self.held += more;
        }
        is_granted
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.0.fetch_add(self.held, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x7_large_documents_share_a_budget_that_usual_ones_do_not_need() {
        let budget = Budget::new();
        let mut large = Vec::new();
        loop {
            let mut share = Share::new(&budget);
            if !share.grow(MAX_MANIFEST) {
                break;
            }
            large.push(share);
        }
        assert!((MAX_DOCUMENTS / MAX_MANIFEST..=MAX_DOCUMENTS / (MAX_MANIFEST - UNCOUNTED)).contains(&large.len()));
        assert!(Share::new(&budget).grow(UNCOUNTED), "a usual one");
        large.pop();
        assert!(Share::new(&budget).grow(MAX_MANIFEST), "it was given back");
    }

    #[test]
    fn x4_a_layer_that_drips_is_given_up() {
        let patience = Patience { span: Duration::ZERO, bytes_per_span: 10, ..Patience::default() };
        assert!(Pace::new(patience).took(10));
        assert!(!Pace::new(patience).took(9));
        assert!(Pace::new(Patience::default()).took(1), "the span is not over");
    }
}
