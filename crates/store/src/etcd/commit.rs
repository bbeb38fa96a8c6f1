//! A transaction's way into etcd: cut to what etcd takes, sent with a receipt, settled where its answer is lost.

use super::TXN;
use super::feed::{Follower, joined};
use super::grpc::GrpcError;
use super::receipt::{Outcome, Slot};
use super::row::{self, stored};
use super::wire::{self, Compare, KeyValue, TxnAnswer, Write};
use crate::writer::Answer;
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
        let (mut first, mut last) = (None, None);
        for (index, part) in parts(&self.prefix, txn)?.into_iter().enumerate() {
            let answer = match part.ops {
                0 => self.compare(&part.etcd, txn, deadline).await,
                _ => self.write(&part.etcd, txn, &mut slot, deadline).await,
            };
            let answer = answer.map_err(|error| if index == 0 { error } else { half_done(index, &error) })?;
            if !answer.succeeded {
                let newest = answer.found.iter().flatten().map(|kv| kv.mod_revision).max().unwrap_or(0);
                // Whoever is refused can see why.
                self.reached(seen.clone(), newest, deadline).await;
                return Err(self.refusal(&part.etcd.compare, &answer.found));
            }
            // It is done: whoever does not want to wait until it is seen here stops waiting himself.
            if !self.shown(seen.clone(), answer.revision).await {
                return Err(CommitError::Closed);
            }
            if part.ops == 0 {
                last = Some(row::whole(answer.revision));
                first = first.or(last);
            } else {
                first = first.or(Some(row::revision(answer.revision, 0)));
                last = Some(row::revision(answer.revision, part.ops - 1));
            }
        }
        let now = || self.shared.read().revision;
        Ok(Committed { first: first.unwrap_or_else(now), last: last.unwrap_or_else(now) })
    }

    async fn ask(&self, txn: &wire::Txn) -> Result<TxnAnswer, GrpcError> {
        let bytes = self.client.call(TXN, txn.encode(), ATTEMPT).await?;
        Ok(TxnAnswer::decode(bytes)?)
    }

    /// Comparisons that are followed by no op may be asked as often as it takes.
    async fn compare(&self, part: &wire::Txn, txn: &Txn, deadline: Instant) -> Result<TxnAnswer, CommitError> {
        let mut pause = AGAIN;
        loop {
            match self.ask(part).await {
                Ok(answer) => return Ok(answer),
                Err(error @ GrpcError::Status { .. }) => return Err(explain(error, txn)),
                Err(error) if Instant::now() >= deadline => return Err(CommitError::Unreached(error.to_string())),
                Err(_) => wait(&mut pause).await,
            }
        }
    }

    /// Has a part of a transaction done once or, for certain, not at all.
    async fn write(
        &self,
        part: &wire::Txn,
        txn: &Txn,
        slot: &mut Slot,
        deadline: Instant,
    ) -> Result<TxnAnswer, CommitError> {
        let mut pause = AGAIN;
        loop {
            let error = match self.ask(&slot.signed(part)).await {
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

    /// etcd compares its own revisions; which op it was is compared here: memory is never ahead of etcd.
    fn same_ops(&self, expect: &[(Bytes, Expect)]) -> Result<(), CommitError> {
        let state = self.shared.read();
        for (key, expect) in expect {
            let (Expect::Unchanged(revision) | Expect::Guard(revision)) = expect else { continue };
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

async fn wait(pause: &mut Duration) {
    tokio::time::sleep(*pause).await;
    *pause = (*pause * 2).min(AGAIN_MOST);
}

/// Parts of a transaction stand, and the next failed: whoever asked is not told that nothing was changed.
fn half_done(parts: usize, error: &CommitError) -> CommitError {
    CommitError::Io(format!("etcd took the first {parts} parts of what it does not take at once, and then: {error}"))
}

fn explain(error: GrpcError, txn: &Txn) -> CommitError {
    match error {
        GrpcError::Status { code: RESOURCE_EXHAUSTED, message } if message.contains("too many requests") => {
            CommitError::Unreached(message)
        }
        GrpcError::Status { code: RESOURCE_EXHAUSTED, .. } => CommitError::Full,
        GrpcError::Status { code: INVALID_ARGUMENT, message } if message.contains("too large") => {
            CommitError::Invalid(Invalid::Bytes(txn.ops.iter().map(|op| op.value().bytes.len()).sum()))
        }
        other => CommitError::Io(other.to_string()),
    }
}

/// What etcd takes at once.
struct Part {
    etcd: wire::Txn,
    ops: u16,
}

fn compare(prefix: &[u8], key: &Bytes, expect: &Expect) -> Compare {
    let key = joined(prefix, key);
    match expect {
        Expect::Absent => Compare::Absent(key),
        Expect::Unchanged(revision) | Expect::Guard(revision) => {
            Compare::ModRevision(key, row::etcd_revision(*revision))
        }
    }
}

/// A transaction, cut where etcd's limits are: by default 128 comparisons, 128 ops and 1.5 MiB, of which the receipt
/// has one each. One key is changed once in each. Where there are more expectations than etcd compares at once, those
/// about keys that are changed are compared with the part that changes them.
fn parts(prefix: &[u8], txn: &Txn) -> Result<Vec<Part>, CommitError> {
    const MOST: usize = 127;
    const BYTES: usize = 1 << 20;
    let mut parts: Vec<Part> = Vec::new();
    let mut current = Part { etcd: wire::Txn::default(), ops: 0 };
    let mut size = 0;
    let is_guard = |expect: &Expect| matches!(expect, Expect::Guard(_));
    let guards: Vec<Compare> = txn
        .expect
        .iter()
        .filter(|(_, expect)| is_guard(expect))
        .map(|(key, expect)| compare(prefix, key, expect))
        .collect();
    let mut later: std::collections::BTreeMap<&Bytes, &Expect> = std::collections::BTreeMap::new();
    if txn.expect.len() + 1 >= MOST {
        let written: std::collections::BTreeSet<&Bytes> = txn.ops.iter().map(Op::key).collect();
        let own = txn.expect.iter().filter(|(key, expect)| !is_guard(expect) && written.contains(key));
        later.extend(own.map(|(key, expect)| (key, expect)));
    }
    let first = txn.expect.iter().filter(|(key, expect)| is_guard(expect) || !later.contains_key(key));
    current.etcd.compare.extend(first.map(|(key, expect)| compare(prefix, key, expect)));
    if current.etcd.compare.len() > MOST {
        return Err(CommitError::Invalid(Invalid::Expect(txn.expect.len())));
    }
    let mut changed: std::collections::BTreeSet<&Bytes> = std::collections::BTreeSet::new();
    for op in &txn.ops {
        let bytes = op.key().len() + op.value().bytes.len();
        // A deletion is compared with its key being there.
        let compared = usize::from(later.contains_key(op.key())) + usize::from(matches!(op, Op::Delete { .. }));
        let full = usize::from(current.ops) == MOST
            || current.etcd.compare.len() + compared > MOST
            || current.ops > 0 && size + bytes > BYTES
            || changed.contains(op.key());
        if full && current.ops > 0 {
            let next = Part { etcd: wire::Txn { compare: guards.clone(), ..wire::Txn::default() }, ops: 0 };
            parts.push(std::mem::replace(&mut current, next));
            changed.clear();
            size = 0;
        }
        if current.etcd.compare.len() + compared > MOST {
            return Err(CommitError::Invalid(Invalid::Expect(txn.expect.len())));
        }
        changed.insert(op.key());
        size += bytes;
        if let Some(expect) = later.remove(op.key()) {
            current.etcd.compare.push(compare(prefix, op.key(), expect));
        }
        let key = joined(prefix, op.key());
        match op {
            Op::Put { key: plain, value } => {
                current.etcd.writes.push(Write::Put(key, row::encode(plain, value, current.ops)));
            }
            Op::Delete { .. } => {
                current.etcd.compare.push(Compare::Present(key.clone()));
                current.etcd.writes.push(Write::Delete(key));
            }
        }
        current.ops += 1;
    }
    if current.ops > 0 || parts.is_empty() && !current.etcd.compare.is_empty() {
        parts.push(current);
    }
    for part in &mut parts {
        part.etcd.else_get = part.etcd.compare.iter().map(|compare| compare.key().clone()).collect();
    }
    Ok(parts)
}

#[cfg(test)]
mod tests;
