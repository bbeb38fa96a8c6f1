//! Bytes, revisions, transactions and watches, made durable. It knows nothing of Kubernetes.
//!
//! The contract, to be kept by every backend (A1–A9 in the invariants):
//! every op of a committed transaction gets its own revision, consecutive within the transaction;
//! readers and watchers see a transaction only after it is on disk, and whole.
//!
//! (Skeleton: the types below are the agreed seam; their bodies come with the store's own commits.)

use bytes::Bytes;

/// A point in the store's history; 0 is the empty store. Never goes backwards (A3).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Revision(pub u64);

/// Bytes to be stored. Where `revision_at` is set, the decimal revision of the write is spliced in at that
/// byte offset when it is committed, so that an encoded object carries its own version and is served as stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// The bytes, without the revision.
    pub bytes: Bytes,
    /// Where the revision's digits go.
    pub revision_at: Option<usize>,
}

/// One change.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Makes or replaces a key.
    Put { key: Bytes, value: Encoded },
    /// Takes a key away. `value` is what watchers are told the last state was (the object with its new revision).
    Delete { key: Bytes, last: Encoded },
}

/// What must hold for a transaction to be carried out.
#[derive(Clone, Debug, PartialEq)]
pub enum Expect {
    /// There is no such key.
    Absent,
    /// The key was last changed at exactly this revision.
    Unchanged(Revision),
}

/// Ops that happen together or not at all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Txn {
    /// All must hold, as of just before the ops.
    pub expect: Vec<(Bytes, Expect)>,
    /// In order; each gets the next revision.
    pub ops: Vec<Op>,
}

/// A key's current state.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The key.
    pub key: Bytes,
    /// The bytes as served.
    pub value: Bytes,
    /// When it was last changed.
    pub revision: Revision,
}

/// What happened to a key.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// When.
    pub revision: Revision,
    /// To which key.
    pub key: Bytes,
    /// The new bytes, or, for a deletion, the last state.
    pub value: Bytes,
    /// The bytes before; `None` when the key was made.
    pub previous: Option<Bytes>,
    /// Whether the key is gone.
    pub deleted: bool,
}
