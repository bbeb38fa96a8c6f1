//! A transaction's way into etcd: one of etcd's, sent with a receipt, settled where its answer is lost.

use super::feed::{Follower, joined};
use super::grpc::GrpcError;
use super::receipt::{Outcome, Slot};
use super::row::{self, stored};
use super::wire::{self, Compare, KeyValue, Range, RangeAnswer, TxnAnswer, Write};
use super::{RANGE, TXN};
use crate::limits::TxnLimits;
use crate::writer::{Answer, deleted_unseen};
use crate::{CommitError, Committed, Entry, Expect, Invalid, Op, Txn};
use bytes::Bytes;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// gRPC's numbers for what etcd says: a request is too large, the database is full.
const INVALID_ARGUMENT: u32 = 3;
const RESOURCE_EXHAUSTED: u32 = 8;
/// How long one member may take; longer than it takes an etcd cluster to choose a leader.
const ATTEMPT: Duration = Duration::from_secs(5);
/// How long a transaction may wait until it is done or certainly not done; what is in doubt then is settled first.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long what is done may take to be shown by the watch.
const SHOWN: Duration = Duration::from_secs(60);
/// Before something is tried again, at first and at most.
const AGAIN: Duration = Duration::from_millis(50);
const AGAIN_MOST: Duration = Duration::from_secs(1);

impl Follower {
    /// Carries out a transaction that was asked for then.
    pub async fn commit(&self, txn: &Txn, seen: watch::Receiver<i64>, asked: Instant) -> Answer {
        // After a long silence nobody waits for more than one attempt.
        let deadline = asked + if self.is_silent() { Duration::ZERO } else { PATIENCE };
        // Where etcd does not answer, all slots are taken by those that wait for it.
        let slot = tokio::time::timeout_at(deadline, self.receipts.slot()).await;
        let Ok(Some(mut slot)) = slot else {
            return Err(CommitError::Unreached("many transactions wait for it".to_owned()));
        };
        self.same_ops(&txn.expect)?;
        let whole = translated(&self.prefix, txn);
        let answer = match whole.writes.len() {
            0 if whole.compare.is_empty() => {
                let revision = self.shared.read().revision;
                return Ok(Committed { first: revision, last: revision });
            }
            0 => self.compare(&whole, txn, deadline).await?,
            _ => self.write(&whole, txn, &mut slot, deadline).await?,
        };
        if !answer.succeeded {
            let newest = answer.found.iter().flatten().map(|kv| kv.mod_revision).max().unwrap_or(0);
            // Whoever is refused can see why.
            self.reached(seen, newest, deadline).await;
            return Err(self.refusal(&whole.compare, &answer.found));
        }
        // It is done: whoever wants to wait less until it is seen here stops waiting himself.
        match tokio::time::timeout(SHOWN, self.shown(seen, answer.revision)).await {
            Ok(true) => {}
            Ok(false) => return Err(CommitError::Closed),
            Err(_) => return Err(CommitError::Io("etcd has carried it out, and does not show it".to_owned())),
        }
        let revision = |index: usize| row::revision(answer.revision, u16::try_from(index).unwrap_or(u16::MAX));
        Ok(match whole.writes.len().checked_sub(1) {
            Some(last) => Committed { first: revision(0), last: revision(last) },
            None => Committed { first: row::whole(answer.revision), last: row::whole(answer.revision) },
        })
    }

    async fn ask(&self, txn: &wire::Txn) -> Result<TxnAnswer, GrpcError> {
        let bytes = self.client.call(TXN, txn.encode(), ATTEMPT).await?;
        Ok(TxnAnswer::decode(bytes)?)
    }

    /// Comparisons that are followed by no op may be asked as often as it takes.
    async fn compare(&self, whole: &wire::Txn, txn: &Txn, deadline: Instant) -> Result<TxnAnswer, CommitError> {
        let mut pause = AGAIN;
        loop {
            match self.ask(whole).await {
                Ok(answer) => return Ok(answer),
                Err(error @ GrpcError::Status { .. }) => return Err(explain(error, txn)),
                Err(error) if Instant::now() >= deadline => return Err(CommitError::Unreached(error.to_string())),
                Err(_) => wait(&mut pause).await,
            }
        }
    }

    /// Has a transaction done once or, for certain, not at all.
    async fn write(
        &self,
        whole: &wire::Txn,
        txn: &Txn,
        slot: &mut Slot,
        deadline: Instant,
    ) -> Result<TxnAnswer, CommitError> {
        let mut pause = AGAIN;
        loop {
            let error = match self.ask(&slot.signed(whole)).await {
                Ok(answer) if answer.succeeded => {
                    slot.wrote(answer.revision);
                    return Ok(answer);
                }
                Ok(mut answer) => {
                    let receipt = answer.found.pop().flatten();
                    if !slot.is_stale(receipt.as_ref()) {
                        return Ok(answer);
                    }
                    // Nothing was done: its receipt was not as it is now.
                    wait(&mut pause).await;
                    continue;
                }
                Err(error) => error,
            };
            match error {
                GrpcError::Status { .. } if error.is_not_done() => return Err(explain(error, txn)),
                _ if error.is_not_done() => {}
                // It may be done all the same, but it is not on its way any more: nothing has to be written to know.
                GrpcError::Status { code: RESOURCE_EXHAUSTED, .. } => match self.look(slot).await {
                    Outcome::Done(revision) => return Ok(TxnAnswer { revision, succeeded: true, found: Vec::new() }),
                    Outcome::NotDone if whole.writes.iter().all(|write| matches!(write, Write::Delete(_))) => {
                        return self.delete(whole, txn, deadline).await;
                    }
                    Outcome::NotDone => return Err(explain(error, txn)),
                    Outcome::Lost => return Err(CommitError::Io(format!("etcd has lost a receipt: {error}"))),
                },
                _ => match self.settle(slot).await {
                    Outcome::Done(revision) => return Ok(TxnAnswer { revision, succeeded: true, found: Vec::new() }),
                    Outcome::NotDone => {}
                    Outcome::Lost => return Err(CommitError::Io(format!("etcd has lost a receipt: {error}"))),
                },
            }
            if Instant::now() >= deadline || self.shared.is_closed() {
                return Err(CommitError::Unreached(error.to_string()));
            }
            wait(&mut pause).await;
        }
    }

    /// Has deletions done without a receipt: etcd without room takes deletions alone, and the receipt is a write. Each
    /// is compared with the revision that is seen here, so that it is never done to what comes after it. Where an
    /// answer is lost, and what was to be deleted is not as it was, nobody can know by whom: that is said.
    async fn delete(&self, whole: &wire::Txn, txn: &Txn, deadline: Instant) -> Result<TxnAnswer, CommitError> {
        let whole = self.pinned(whole);
        let (mut pause, mut lost) = (AGAIN, false);
        loop {
            let error = match self.ask(&whole).await {
                Ok(answer) if answer.succeeded || !lost => return Ok(answer),
                Ok(_) => return Err(in_doubt("etcd has lost its answer")),
                Err(error) => error,
            };
            lost |= !error.is_not_done();
            if !lost && matches!(error, GrpcError::Status { .. }) {
                return Err(explain(error, txn));
            }
            if Instant::now() >= deadline || self.shared.is_closed() {
                let why = error.to_string();
                return Err(if lost { in_doubt(&why) } else { CommitError::Unreached(why) });
            }
            wait(&mut pause).await;
        }
    }

    /// The same transaction, which says of every key at which revision it is there.
    fn pinned(&self, whole: &wire::Txn) -> wire::Txn {
        let mut whole = whole.clone();
        let state = self.shared.read();
        for compare in &mut whole.compare {
            if let Compare::Present(key) = compare
                && let Some(stored) = state.keys.get(&key[self.prefix.len()..])
            {
                *compare = Compare::ModRevision(key.clone(), row::etcd_revision(stored.revision));
            }
        }
        whole
    }

    /// What became of the transaction that the slot signed last, however long it takes to know.
    async fn settle(&self, slot: &mut Slot) -> Outcome {
        let mut pause = AGAIN;
        loop {
            match self.ask(&slot.fence()).await {
                Ok(answer) if answer.succeeded => {
                    slot.wrote(answer.revision);
                    return Outcome::NotDone;
                }
                Ok(mut answer) => {
                    let outcome = slot.settled(answer.found.pop().flatten().as_ref());
                    tracing::debug!(?outcome, "a transaction was in doubt");
                    return outcome;
                }
                Err(error) => tracing::debug!(%error, "a transaction is in doubt"),
            }
            wait(&mut pause).await;
        }
    }

    /// What became of the transaction that the slot signed last, where it was answered.
    async fn look(&self, slot: &mut Slot) -> Outcome {
        let range = Range { key: slot.key().clone(), limit: 1, ..Range::default() };
        let mut pause = AGAIN;
        loop {
            let answer = self.client.call(RANGE, range.encode(), ATTEMPT).await;
            match answer.and_then(|bytes| Ok(RangeAnswer::decode(bytes)?)) {
                Ok(answer) => return slot.found(answer.kvs.first()),
                Err(error) => tracing::debug!(%error, "a transaction is in doubt"),
            }
            wait(&mut pause).await;
        }
    }

    /// etcd compares its own revisions; which op it was is compared here: memory is never ahead of etcd.
    fn same_ops(&self, expect: &[(Bytes, Expect)]) -> Result<(), CommitError> {
        let state = self.shared.read();
        for (key, expect) in expect {
            let Expect::Unchanged(revision) = expect else { continue };
            let Some(stored) = state.keys.get(key) else { continue };
            let same = row::etcd_revision(stored.revision) == row::etcd_revision(*revision);
            if same && stored.revision != *revision {
                return Err(CommitError::Expectation { key: key.clone(), actual: Some(stored.entry(key)) });
            }
        }
        Ok(())
    }

    /// The first comparison that does not hold, and what is there.
    fn refusal(&self, compare: &[Compare], found: &[Option<KeyValue>]) -> CommitError {
        let failed = compare.iter().zip(found).find(|(compare, found)| match compare {
            Compare::Absent(_) => found.is_some(),
            Compare::Present(_) => found.is_none(),
            Compare::ModRevision(_, revision) => found.as_ref().is_none_or(|kv| kv.mod_revision != *revision),
        });
        let Some((compare, found)) = failed else {
            return CommitError::Io("etcd refused a transaction whose comparisons hold".to_owned());
        };
        let key = compare.key().slice(self.prefix.len()..);
        let actual = found.as_ref().and_then(|kv| stored(&key, kv)).map(|stored| Entry {
            key: key.clone(),
            value: stored.value,
            revision: stored.revision,
        });
        CommitError::Expectation { key, actual }
    }
}

/// A deletion of which nobody knows whether it was done.
fn in_doubt(why: &str) -> CommitError {
    CommitError::Io(format!("etcd has no room left, and what was to be deleted may be deleted or not: {why}"))
}

async fn wait(pause: &mut Duration) {
    tokio::time::sleep(*pause).await;
    *pause = (*pause * 2).min(AGAIN_MOST);
}

fn explain(error: GrpcError, txn: &Txn) -> CommitError {
    match error {
        GrpcError::Status { code: RESOURCE_EXHAUSTED, message } if message.contains("too many requests") => {
            CommitError::Unreached(message)
        }
        GrpcError::Status { code: RESOURCE_EXHAUSTED, message } if message.contains("larger than max") => {
            too_large(txn)
        }
        GrpcError::Status { code: RESOURCE_EXHAUSTED, .. } => CommitError::Full,
        GrpcError::Status { code: INVALID_ARGUMENT, message } if message.contains("too large") => too_large(txn),
        other => CommitError::Io(other.to_string()),
    }
}

/// What etcd refuses because it, or what comes with it, is too long.
fn too_large(txn: &Txn) -> CommitError {
    let bytes = txn.ops.iter().map(|op| op.key().len() + op.value().bytes.len()).sum();
    CommitError::Invalid(Invalid::Bytes(bytes, TxnLimits::ETCD.bytes))
}

/// A transaction in etcd's form, its receipt apart. It is within etcd's limits and changes each key once
/// ([`TxnLimits::ETCD`]). What is deleted is compared with being there.
fn translated(prefix: &[u8], txn: &Txn) -> wire::Txn {
    let expected = txn.expect.iter().map(|(key, expect)| {
        let key = joined(prefix, key);
        match expect {
            Expect::Absent => Compare::Absent(key),
            Expect::Unchanged(revision) => Compare::ModRevision(key, row::etcd_revision(*revision)),
        }
    });
    let unseen = deleted_unseen(txn).into_iter().map(|key| Compare::Present(joined(prefix, key)));
    let compare: Vec<Compare> = expected.chain(unseen).collect();
    let writes = txn.ops.iter().enumerate().map(|(index, op)| match op {
        Op::Put { key, value } => {
            let index = u16::try_from(index).unwrap_or(u16::MAX);
            Write::Put(joined(prefix, key), row::encode(key, value, index))
        }
        Op::Delete { key, .. } => Write::Delete(joined(prefix, key)),
    });
    let writes = writes.collect();
    let else_get = compare.iter().map(|compare| compare.key().clone()).collect();
    wire::Txn { compare, writes, else_get }
}

#[cfg(test)]
mod tests;
