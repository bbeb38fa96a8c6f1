//! Bytes, revisions, transactions and watches, made durable. It knows nothing of Kubernetes.
//!
//! The contract, to be kept by every backend (A1–A9 in the invariants):
//! every op of a committed transaction gets its own revision, consecutive within the transaction;
//! readers and watchers see a transaction only after it is on disk, and whole.
//!
//! ```text
//! commit ─ queue ─> writer: stage ─> engine: one fsync per group ─> state: keys + window ─> readers, watchers
//! ```
//!
//! Reads never touch the disk: all keys are in memory (sizes are those that etcd is made for), and so is a window of
//! past changes, from which watches are served and older revisions are read. The window starts empty at an open: a
//! watch or a continue token from before it is told that it is compacted, and its client lists again, as after any
//! restart of an API server.
//!
//! There are two backends behind the one handle: the embedded engine ([`Store::open`]), and an etcd cluster for several
//! servers ([`Store::open_etcd`], `etcd`). Nothing above the handle knows which it has; where others write too,
//! [`Store::catch_up`] is what a linearizable read waits for.

mod checksum;
mod disk;
mod engine;
mod error;
mod etcd;
mod examine;
mod format;
mod guarded;
mod index;
pub mod limits;
mod restore;
mod salvage;
mod sealing;
mod silence;
mod state;
mod store;
pub mod testing;
mod types;
mod watch;
mod writer;

pub use disk::{FILE, Source};
pub use error::{CommitError, Invalid, OpenError, ReadError, WatchError};
pub use etcd::{Endpoint, Etcd};
pub use examine::{Examination, examine};
pub use index::Index;
/// What a disk has to do; the simulator and the tests implement it.
pub use redb::StorageBackend;
pub use restore::{RestoreError, restore, row_checksum};
pub use sealing::{Opened, PREFIX as SEALED_PREFIX, Seal};
pub use state::Window;
pub use store::{Mode, Options, Owner, Store};
pub use types::{ClusterId, Committed, Damage, Encoded, Entry, Event, Expect, Op, Page, Revision, Txn};
pub use watch::Watcher;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks. A panic elsewhere while it was held is no reason to stop: nothing here is left half-changed by one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the process when what must hold does not: with a store in doubt, no answer is better than a wrong one.
fn must(holds: bool, what: &str) {
    if !holds {
        known::<()>(None, what);
    }
}

/// The value that must be there; else as [`must`].
fn known<T>(value: Option<T>, what: &str) -> T {
    value.unwrap_or_else(|| {
        tracing::error!(what, "the store's own assertion failed; aborting");
        eprintln!("mainstay: the store's own assertion failed: {what}; aborting");
        std::process::abort()
    })
}

#[cfg(test)]
mod tests;
