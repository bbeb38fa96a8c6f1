//! What can go wrong, by phase: opening, committing, reading, watching.

use crate::{ClusterId, Damage, Entry, Revision};
use bytes::Bytes;
use std::{io, path::PathBuf};

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process (or another handle in this one) has the store open.
    #[error("the store in {0} is in use by another process")]
    InUse(PathBuf),
    /// The folder or a file in it could not be made, read or written.
    #[error("cannot use {path}: {source}")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not ours, or not whole, or a row in it is not what was written (A10). Nothing of it was changed.
    #[error("{file} is damaged: {damage}")]
    Damaged {
        /// Which file.
        file: String,
        /// What is wrong with it.
        damage: Damage,
    },
    /// There is no store, or nothing was ever written to it, where a cluster's is expected (A11).
    #[error("{file} {state}, where the store of cluster {cluster} is expected")]
    Missing {
        /// Which file.
        file: String,
        /// Missing, or empty.
        state: &'static str,
        /// Whose; `(unknown)` where a cluster's other data were found only.
        cluster: String,
    },
    /// The store is another cluster's (A11).
    #[error("{file} is the store of {found}, not of cluster {expected}")]
    Foreign {
        /// Which file.
        file: String,
        /// Whose it is, in words.
        found: String,
        /// Whose is expected.
        expected: ClusterId,
    },
    /// The store is this cluster's, but an older copy of it: opening it would let the revision go back (A3).
    #[error("{file} is at revision {found}, an older copy: this cluster's store was at {expected} before")]
    Older {
        /// Which file.
        file: String,
        /// Its revision.
        found: Revision,
        /// A revision that it had before.
        expected: Revision,
    },
    /// A row is encrypted, and cannot be opened with the keys that were given. Nothing was changed.
    #[error("{file}: the row of key {key}: {why}")]
    Sealed {
        /// Which file.
        file: String,
        /// Which row.
        key: String,
        /// Which key of whom is wrong or missing, in words.
        why: String,
    },
    /// The file was written by a newer version.
    #[error("the store's file has format {found}, newer than this version's {known}")]
    Newer {
        /// What is on disk.
        found: u64,
        /// The newest that this version reads.
        known: u64,
    },
    /// No member of the etcd cluster answers, or it has no leader: it may heal by itself.
    #[error("{0}")]
    Unreached(String),
    /// A member of the etcd cluster and we do not trust each other: a person has to see to it.
    #[error("{0}")]
    Untrusted(String),
    /// The engine could not open the file.
    #[error("cannot open the store's file: {0}")]
    Engine(String),
    /// The writer's thread could not be started.
    #[error("cannot start the writer: {0}")]
    Thread(io::Error),
}

/// Why a transaction was not carried out. Nothing of it is visible, now or later, but for [`CommitError::Io`] and
/// [`CommitError::Full`] when the machine dies before the store has recovered: then the outcome shows at the next open.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CommitError {
    /// An expectation does not hold, or an op deletes what is not there.
    #[error("{key:?} is not as expected")]
    Expectation {
        /// Which key.
        key: Bytes,
        /// What is there instead.
        actual: Option<Entry>,
    },
    /// The transaction breaks a limit; it would never be accepted.
    #[error("{0}")]
    Invalid(Invalid),
    /// No space is left on the disk (or the quota is used up). Works again once there is space.
    #[error("no space is left for the store")]
    Full,
    /// The disk failed. The store goes on serving reads, and tries to recover at each further commit.
    #[error("the store's disk failed: {0}")]
    Io(String),
    /// What it writes is to be encrypted, and cannot be now. Nothing was changed.
    #[error("{0}")]
    Unsealable(String),
    /// The etcd cluster has not answered: nothing was changed, nor will be.
    #[error("etcd does not answer: {0}")]
    Unreached(String),
    /// The writer has ended. What was on its way to etcd then may be carried out.
    #[error("the store is closed")]
    Closed,
}

/// Which limit a transaction breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// An empty key, or one over [`crate::limits::MAX_KEY`].
    #[error("a key of {0} bytes: at least 1 and at most {max} are allowed", max = crate::limits::MAX_KEY)]
    Key(usize),
    /// A value over [`crate::limits::MAX_VALUE`].
    #[error("a value of {0} bytes: at most {max} are allowed", max = crate::limits::MAX_VALUE)]
    Value(usize),
    /// So many ops, and the most there may be ([`crate::limits::TxnLimits`]).
    #[error("{0} ops in a transaction: at most {1} are allowed")]
    Ops(usize, usize),
    /// So many comparisons, and the most there may be.
    #[error("{0} expectations in a transaction: at most {1} are allowed")]
    Expect(usize, usize),
    /// So many bytes, and the most there may be.
    #[error("a transaction of {0} bytes: at most {1} are allowed")]
    Bytes(usize, usize),
    /// A key is changed twice, which etcd does not take.
    #[error("a transaction changes key {0:?} twice")]
    Twice(Bytes),
    /// The revision's place is outside of the value.
    #[error("the revision's place {0} is outside of the value")]
    RevisionOffset(usize),
}

/// Why a revision cannot be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The revision is older than the window of kept changes (A7): 410 Gone.
    #[error("revision {asked} is compacted, the oldest is {compacted}")]
    Compacted {
        /// What was asked for.
        asked: Revision,
        /// The oldest revision that can be read, and watched from.
        compacted: Revision,
    },
    /// What other servers have committed cannot be waited for: the store's cluster is not reached, or has no majority.
    #[error("the newest state is not known: etcd does not answer")]
    Behind,
    /// The revision has not happened here. Every revision handed out has, so it is another store's.
    #[error("revision {asked} is in the future, the newest is {newest}")]
    Future {
        /// What was asked for.
        asked: Revision,
        /// The store's revision.
        newest: Revision,
    },
}

/// Why a watch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// The watcher was so slow that events it had yet to see left the window: 410 Gone. What was delivered stands.
    #[error("the watch fell behind: revision {next} is compacted, the oldest is {compacted}")]
    Lagged {
        /// The event that would have been next.
        next: Revision,
        /// The oldest revision that can be watched from.
        compacted: Revision,
    },
    /// All handles of the store are gone.
    #[error("the store is closed")]
    Closed,
}
