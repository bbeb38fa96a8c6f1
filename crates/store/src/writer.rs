//! The only one who changes the store: takes a group of transactions through memory to disk, and then shows it.
//!
//! ```text
//! group -> stage each on a copy of the keys (what holds for a transaction includes those before it in the group)
//!       -> one durable commit -> publish to readers -> answer all -> wake watchers
//! ```

use crate::engine::Engine;
use crate::limits::{MAX_GROUP, MAX_GROUP_BYTES, MAX_KEY, MAX_VALUE, TxnLimits};
use crate::state::{Change, Keys, Stored};
use crate::store::Shared;
use crate::{CommitError, Committed, Event, Expect, Invalid, Op, Revision, Txn};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::task::Waker;
use tokio::sync::{mpsc, oneshot};

pub(crate) type Answer = Result<Committed, CommitError>;

/// A transaction on its way to the writer's thread.
#[derive(Debug)]
pub(crate) struct Request {
    pub txn: Txn,
    pub answer: oneshot::Sender<Answer>,
}

#[derive(Debug)]
pub(crate) struct Writer {
    pub shared: Arc<Shared>,
    pub engine: Engine,
    /// Whether past changes are kept by their age; not where there is no clock (the simulator).
    pub is_timed: bool,
}

/// A group as it will be, should it reach the disk.
struct Staged {
    keys: Keys,
    revision: Revision,
    changes: Vec<Change>,
}

impl Writer {
    /// The writer's thread: everything that waits, up to the group's limits, is one commit. A lone transaction is
    /// committed at once; while it is being synced the next group gathers by itself. Ends when all senders are gone.
    pub fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        while let Some(first) = queue.blocking_recv() {
            let mut bytes = size(&first.txn);
            let mut group = vec![first];
            while group.len() < MAX_GROUP && bytes < MAX_GROUP_BYTES {
                let Ok(request) = queue.try_recv() else { break };
                bytes += size(&request.txn);
                group.push(request);
            }
            let (txns, answers): (Vec<_>, Vec<_>) =
                group.into_iter().map(|request| (request.txn, request.answer)).unzip();
            let (results, wake) = self.commit(&txns);
            for (answer, result) in answers.into_iter().zip(results) {
                // Whoever asked may have gone; the transaction stands.
                let _ = answer.send(result);
            }
            // After the answers: whoever waits for one is not kept waiting by those who look on.
            wake.into_iter().for_each(Waker::wake);
        }
    }

    /// Commits a group; an answer for each transaction, in order, and whom to wake that watches.
    pub fn commit(&mut self, group: &[Txn]) -> (Vec<Answer>, Vec<Waker>) {
        let (keys, revision) = {
            let state = self.shared.read();
            (state.keys.clone(), state.revision)
        };
        let mut staged = Staged { keys: keys.clone(), revision, changes: Vec::new() };
        let answers: Vec<Answer> =
            group.iter().map(|txn| self.engine.ready(txn).and_then(|()| staged.add(txn))).collect();
        if staged.changes.is_empty() {
            return (answers, Vec::new());
        }
        match self.engine.write(&keys, &staged.changes, staged.revision) {
            Ok(()) => {
                let now = self.is_timed.then(std::time::Instant::now);
                let wake = self.shared.publish(staged.keys, staged.revision, staged.changes, now).collect();
                (answers, wake)
            }
            // Also a refusal may be due to a transaction before it in the group, which did not happen.
            Err(error) => (vec![Err(error); answers.len()], Vec::new()),
        }
    }
}

impl Staged {
    fn add(&mut self, txn: &Txn) -> Answer {
        for (key, expect) in &txn.expect {
            let actual = self.keys.get(key);
            let holds = match expect {
                Expect::Absent => actual.is_none(),
                Expect::Unchanged(revision) => actual.is_some_and(|stored| stored.revision == *revision),
            };
            if !holds {
                return Err(CommitError::Expectation {
                    key: key.clone(),
                    actual: actual.map(|stored| stored.entry(key)),
                });
            }
        }
        let (mut keys, mut revision, mut changes) =
            (self.keys.clone(), self.revision, Vec::with_capacity(txn.ops.len()));
        for op in &txn.ops {
            revision = revision.next();
            changes.push(apply(&mut keys, op, revision)?);
        }
        let first = if txn.ops.is_empty() { self.revision } else { self.revision.next() };
        self.keys = keys;
        self.revision = revision;
        self.changes.append(&mut changes);
        Ok(Committed { first, last: revision })
    }
}

fn apply(keys: &mut Keys, op: &Op, revision: Revision) -> Result<Change, CommitError> {
    let key: &Bytes = op.key();
    let before = keys.get(key).cloned();
    let value = op.value().at(revision);
    let deleted = matches!(op, Op::Delete { .. });
    if !deleted {
        keys.insert_mut(key.clone(), Stored { value: value.clone(), revision });
    } else if !keys.remove_mut(&key[..]) {
        return Err(CommitError::Expectation { key: key.clone(), actual: None });
    }
    let (previous, previous_revision) = before.map(|stored| (stored.value, stored.revision)).unzip();
    let event = Event { revision, key: key.clone(), value, previous, deleted };
    Ok(Change::new(event, previous_revision))
}

fn size(txn: &Txn) -> usize {
    txn.ops.iter().map(|op| op.key().len() + op.value().bytes.len()).sum()
}

/// The same without what only watchers are told of deletions: etcd is not sent that.
fn sent(txn: &Txn) -> usize {
    let value = |op: &Op| if let Op::Put { value, .. } = op { value.bytes.len() } else { 0 };
    txn.ops.iter().map(|op| op.key().len() + value(op)).sum()
}

/// The keys that are deleted although no expectation says at which revision they are there.
pub(crate) fn deleted_unseen(txn: &Txn) -> BTreeSet<&Bytes> {
    let deletions = txn.ops.iter().filter(|op| matches!(op, Op::Delete { .. }));
    let mut unseen: BTreeSet<&Bytes> = deletions.map(Op::key).collect();
    for (key, expect) in &txn.expect {
        if matches!(expect, Expect::Unchanged(_)) {
            unseen.remove(key);
        }
    }
    unseen
}

/// Refuses what breaks a limit, before it is queued.
pub(crate) fn validate(txn: &Txn, most: &TxnLimits) -> Result<(), Invalid> {
    if txn.ops.len() > most.ops {
        return Err(Invalid::Ops(txn.ops.len(), most.ops));
    }
    for key in txn.expect.iter().map(|(key, _)| key).chain(txn.ops.iter().map(Op::key)) {
        if key.is_empty() || key.len() > MAX_KEY {
            return Err(Invalid::Key(key.len()));
        }
    }
    let compares = txn.expect.len() + if most.is_etcds { deleted_unseen(txn).len() } else { 0 };
    if compares > most.compares {
        return Err(Invalid::Expect(compares, most.compares));
    }
    for value in txn.ops.iter().map(Op::value) {
        if value.bytes.len() > MAX_VALUE {
            return Err(Invalid::Value(value.bytes.len()));
        }
        if let Some(offset) = value.revision_at.filter(|offset| *offset > value.bytes.len()) {
            return Err(Invalid::RevisionOffset(offset));
        }
    }
    if most.is_etcds {
        let mut changed = BTreeSet::new();
        if let Some(again) = txn.ops.iter().map(Op::key).find(|key| !changed.insert(*key)) {
            return Err(Invalid::Twice(again.clone()));
        }
    }
    match if most.is_etcds { sent(txn) } else { size(txn) } {
        bytes if bytes > most.bytes => Err(Invalid::Bytes(bytes, most.bytes)),
        _ => Ok(()),
    }
}
