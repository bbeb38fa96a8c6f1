//! What keeps memory as etcd is, and takes transactions there. One thread with a runtime of its own, so that callers
//! need none.

use super::Etcd;
use super::grpc::{Client, GrpcError};
use super::row::{self, stored};
use super::wire::{self, Compare, KeyValue, Range, RangeAnswer, TxnAnswer, WatchAnswer, Write};
use crate::state::{Change, Keys, State, WindowLimits};
use crate::store::Shared;
use crate::writer::{Answer, Request};
use crate::{
    CommitError, Committed, Damage, Entry, Event, Expect, Invalid, Op, OpenError, ReadError, Revision, Txn, limits,
};
use bytes::{BufMut as _, Bytes, BytesMut};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

const RANGE: &str = "/etcdserverpb.KV/Range";
const TXN: &str = "/etcdserverpb.KV/Txn";
const COMPACT: &str = "/etcdserverpb.KV/Compact";
const WATCH: &str = "/etcdserverpb.Watch/Watch";
/// gRPC's numbers for what etcd says: a request is too large, the database is full, a revision is compacted.
const INVALID_ARGUMENT: u32 = 3;
const RESOURCE_EXHAUSTED: u32 = 8;
const OUT_OF_RANGE: u32 = 11;
/// Before a watch that broke is begun again.
const RETRY: Duration = Duration::from_millis(100);
/// How long our watch may take to bring what etcd has acknowledged.
const CATCH_UP: Duration = Duration::from_secs(10);
/// Transactions that are on their way at once.
const IN_FLIGHT: usize = 64;
/// History is forgotten this long after it was made, as Kubernetes' API servers do.
const HISTORY: Duration = Duration::from_secs(300);
/// Keys of the first page that is read; pages of small rows grow from there.
const FIRST_PAGE: i64 = 32;
const MAX_PAGE: i64 = 8192;
/// A page of fewer bytes is followed by a larger one.
const SMALL_PAGE: usize = 2 << 20;

/// What the thread is asked for.
pub(crate) enum Work {
    Commit(Request),
    /// Answered when memory shows all that was committed anywhere before this was asked.
    CatchUp(oneshot::Sender<Result<Revision, ReadError>>),
}

/// A running backend.
#[derive(Debug)]
pub(crate) struct Feed {
    pub shared: Arc<Shared>,
    pub queue: mpsc::Sender<Work>,
    pub thread: JoinHandle<()>,
}

/// Reads everything, and begins to follow. Blocks.
pub(crate) fn open(etcd: Etcd, limits: WindowLimits) -> Result<Feed, OpenError> {
    let (queue, work) = mpsc::channel(limits::QUEUE);
    let (ready, opened) = std::sync::mpsc::channel();
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        match runtime {
            Ok(runtime) => runtime.block_on(run(etcd, limits, work, ready)),
            Err(error) => drop(ready.send(Err(OpenError::Thread(error)))),
        }
    };
    let thread = thread::Builder::new().name("store-etcd".into()).spawn(run).map_err(OpenError::Thread)?;
    match opened.recv() {
        Ok(shared) => Ok(Feed { shared: shared?, queue, thread }),
        Err(_) => Err(OpenError::Engine("the thread that follows etcd ended".to_owned())),
    }
}

#[derive(Clone)]
struct Follower {
    client: Client,
    prefix: Bytes,
    shared: Arc<Shared>,
    limits: WindowLimits,
}

type Ready = std::sync::mpsc::Sender<Result<Arc<Shared>, OpenError>>;

async fn run(etcd: Etcd, limits: WindowLimits, mut work: mpsc::Receiver<Work>, ready: Ready) {
    let client = Client::new(etcd.endpoints, etcd.tls);
    let (keys, revision) = match load(&client, &etcd.prefix).await {
        Ok(loaded) => loaded,
        Err(error) => return drop(ready.send(Err(error))),
    };
    let shared = Arc::new(Shared::new(State::new(keys, row::whole(revision), limits)));
    if ready.send(Ok(shared.clone())).is_err() {
        return;
    }
    let follower = Follower { client, prefix: etcd.prefix, shared: shared.clone(), limits };
    let (applied, seen) = watch::channel(revision);
    let mut following = tokio::spawn(follow(follower.clone(), applied));
    let compacting = tokio::spawn(forget_history(follower.clone(), seen.clone()));
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            next = work.recv(), if tasks.len() < IN_FLIGHT => {
                let Some(next) = next else { break };
                tasks.spawn(serve(follower.clone(), seen.clone(), next));
            }
            _ = tasks.join_next(), if !tasks.is_empty() => {}
            // It ends only when what etcd holds is not what was written.
            _ = &mut following => break,
        }
    }
    work.close();
    while tasks.join_next().await.is_some() {}
    compacting.abort();
    following.abort();
    shared.close();
}

async fn serve(follower: Follower, seen: watch::Receiver<i64>, work: Work) {
    match work {
        Work::Commit(Request { txn, answer }) => {
            let result = follower.commit(&txn, seen).await;
            let _ = answer.send(result);
        }
        Work::CatchUp(answer) => {
            let _ = answer.send(follower.catch_up(seen).await);
        }
    }
}

/// The end of the range of all keys that begin with `prefix`.
fn end_of(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.last_mut() {
        if *last < u8::MAX {
            *last += 1;
            return end.into();
        }
        end.pop();
    }
    // All keys.
    Bytes::from_static(&[0])
}

fn joined(prefix: &[u8], key: &[u8]) -> Bytes {
    let mut whole = BytesMut::with_capacity(prefix.len() + key.len());
    whole.put_slice(prefix);
    whole.put_slice(key);
    whole.freeze()
}

/// All keys, as of one revision of etcd's.
async fn load(client: &Client, prefix: &Bytes) -> Result<(Keys, i64), OpenError> {
    loop {
        match load_once(client, prefix).await {
            // Compacted while it was read: again.
            Err(Load::Grpc(GrpcError::Status { code: OUT_OF_RANGE, .. })) => {}
            Err(Load::Grpc(error)) => return Err(OpenError::Engine(error.to_string())),
            Err(Load::Damaged(key)) => {
                let damage = Damage { keys: 1, named: vec![key], whole: Vec::new() };
                return Err(OpenError::Damaged { file: "etcd".to_owned(), damage });
            }
            Ok(loaded) => return Ok(loaded),
        }
    }
}

enum Load {
    Grpc(GrpcError),
    Damaged(Bytes),
}

async fn load_once(client: &Client, prefix: &Bytes) -> Result<(Keys, i64), Load> {
    let mut keys = Keys::new_sync();
    let mut range = Range { key: prefix.clone(), end: end_of(prefix), limit: FIRST_PAGE, revision: 0 };
    loop {
        let bytes = client.call(RANGE, range.encode()).await.map_err(Load::Grpc)?;
        let size = bytes.len();
        let page = RangeAnswer::decode(bytes).map_err(|error| Load::Grpc(error.into()))?;
        if range.revision == 0 {
            range.revision = page.revision;
        }
        for kv in &page.kvs {
            let key = kv.key.slice(prefix.len().min(kv.key.len())..);
            let stored = stored(&key, kv).ok_or_else(|| Load::Damaged(key.clone()))?;
            keys.insert_mut(key, stored);
        }
        let Some(last) = page.kvs.last().filter(|_| page.more) else { return Ok((keys, range.revision)) };
        range.key = joined(&last.key, &[0]);
        if size < SMALL_PAGE {
            range.limit = (range.limit * 2).min(MAX_PAGE);
        }
    }
}

/// Keeps memory as etcd is, over broken connections and other members.
async fn follow(follower: Follower, applied: watch::Sender<i64>) {
    loop {
        let error = match follower.watch(&applied).await {
            Followed::Broken(error) => error,
            Followed::Compacted => match load(&follower.client, &follower.prefix).await {
                Ok((keys, revision)) => {
                    tracing::warn!("etcd has forgotten what this server had yet to see; its watches begin anew");
                    follower.shared.reset(State::new(keys, row::whole(revision), follower.limits));
                    applied.send_replace(revision);
                    continue;
                }
                Err(error @ OpenError::Damaged { .. }) => return tracing::error!(%error, "the store is closed"),
                Err(error) => error.to_string(),
            },
            Followed::Damaged(key) => {
                let key = String::from_utf8_lossy(&key).into_owned();
                return tracing::error!(key, "what etcd holds is not what was written; the store is closed");
            }
        };
        tracing::warn!(error, "the watch on etcd is begun again");
        tokio::time::sleep(RETRY).await;
    }
}

enum Followed {
    Broken(String),
    Compacted,
    Damaged(Bytes),
}

impl Follower {
    async fn watch(&self, applied: &watch::Sender<i64>) -> Followed {
        let from = *applied.borrow() + 1;
        let first = wire::watch(&self.prefix, &end_of(&self.prefix), from);
        let mut stream = match self.client.stream(WATCH, first).await {
            Ok(stream) => stream,
            Err(error) => return Followed::Broken(error.to_string()),
        };
        loop {
            let answer = match stream.next().await {
                Ok(bytes) => WatchAnswer::decode(bytes),
                Err(error) => return Followed::Broken(error.to_string()),
            };
            match answer {
                Err(_) => return Followed::Broken(GrpcError::Malformed.to_string()),
                Ok(answer) if answer.compact_revision > 0 => return Followed::Compacted,
                Ok(answer) if answer.canceled => return Followed::Broken(answer.reason),
                Ok(answer) => {
                    if let Err(key) = self.apply(answer.events, applied) {
                        return Followed::Damaged(key);
                    }
                }
            }
        }
    }

    /// Shows what the watch has brought, each transaction as a whole.
    fn apply(&self, events: Vec<wire::Event>, applied: &watch::Sender<i64>) -> Result<(), Bytes> {
        for txn in events.chunk_by(|one, other| one.kv.mod_revision == other.kv.mod_revision) {
            let Some(revision) = txn.first().map(|event| event.kv.mod_revision) else { continue };
            // After a broken connection some may come again.
            if revision <= *applied.borrow() {
                continue;
            }
            let mut keys = self.shared.read().keys.clone();
            let mut changes = Vec::with_capacity(txn.len());
            for (index, event) in txn.iter().enumerate() {
                let index = u16::try_from(index).unwrap_or(u16::MAX);
                changes.extend(self.change(&mut keys, event, index)?);
            }
            self.shared.publish(keys, row::whole(revision), changes, Some(Instant::now()));
            applied.send_replace(revision);
        }
        Ok(())
    }

    fn change(&self, keys: &mut Keys, event: &wire::Event, index: u16) -> Result<Option<Change>, Bytes> {
        let key = event.kv.key.slice(self.prefix.len().min(event.kv.key.len())..);
        let before = keys.get(&key).cloned();
        let (revision, value) = if event.deleted {
            let Some(before) = &before else { return Ok(None) };
            keys.remove_mut(&key);
            let revision = row::revision(event.kv.mod_revision, index);
            let last = event.previous.as_ref().and_then(|last| row::decode(&key, &last.value));
            (revision, last.map_or_else(|| before.value.clone(), |(last, _)| last.at(revision)))
        } else {
            let stored = stored(&key, &event.kv).ok_or_else(|| key.clone())?;
            keys.insert_mut(key.clone(), stored.clone());
            (stored.revision, stored.value)
        };
        let (previous, previous_revision) = before.map(|before| (before.value, before.revision)).unzip();
        let event = Event { revision, key, value, previous, deleted: event.deleted };
        Ok(Some(Change { event, previous: previous_revision }))
    }

    /// Waits until memory shows what was committed anywhere before the call: the revision of an empty read, which etcd
    /// answers only from the newest state.
    async fn catch_up(&self, seen: watch::Receiver<i64>) -> Result<Revision, ReadError> {
        let nothing = Range { key: joined(&self.prefix, b"\0"), limit: 1, ..Range::default() };
        let answer = self.client.call(RANGE, nothing.encode()).await.ok();
        let revision = answer.and_then(|bytes| RangeAnswer::decode(bytes).ok()).ok_or(ReadError::Behind)?.revision;
        if reached(seen, revision).await { Ok(row::whole(revision)) } else { Err(ReadError::Behind) }
    }

    async fn commit(&self, txn: &Txn, seen: watch::Receiver<i64>) -> Answer {
        self.same_ops(&txn.expect)?;
        let (mut first, mut last) = (None, None);
        for part in parts(&self.prefix, txn)? {
            let answer = match self.client.call(TXN, part.etcd.encode()).await {
                Ok(bytes) => {
                    TxnAnswer::decode(bytes).map_err(|error| CommitError::Io(GrpcError::from(error).to_string()))?
                }
                Err(error) => return Err(explain(error, txn)),
            };
            if !answer.succeeded {
                let newest = answer.found.iter().flatten().map(|kv| kv.mod_revision).max().unwrap_or(0);
                // Whoever is refused can see why.
                reached(seen.clone(), newest).await;
                return Err(self.refusal(&part.etcd.compare, &answer.found));
            }
            if !reached(seen.clone(), answer.revision).await {
                return Err(CommitError::Io(
                    "it is committed, and our watch of etcd has not brought it yet".to_owned(),
                ));
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

async fn reached(mut seen: watch::Receiver<i64>, revision: i64) -> bool {
    let wait = seen.wait_for(|seen| *seen >= revision);
    matches!(tokio::time::timeout(CATCH_UP, wait).await, Ok(Ok(_)))
}

fn explain(error: GrpcError, txn: &Txn) -> CommitError {
    match error {
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

/// A transaction, cut where etcd's limits are: by default 128 comparisons, 128 ops and 1.5 MiB. One key is changed once
/// in each. Where there are more expectations than etcd compares at once, those about keys that are changed are compared
/// with the part that changes them.
fn parts(prefix: &[u8], txn: &Txn) -> Result<Vec<Part>, CommitError> {
    const MOST: usize = 128;
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

/// Lets etcd forget what is older than [`HISTORY`], so that its database does not grow for ever. Every server does; who
/// comes second changes nothing.
async fn forget_history(follower: Follower, seen: watch::Receiver<i64>) {
    let mut before = *seen.borrow();
    loop {
        tokio::time::sleep(HISTORY).await;
        if let Err(error) = follower.client.call(COMPACT, wire::compaction(before)).await {
            tracing::debug!(%error, "etcd did not forget its history");
        }
        before = *seen.borrow();
    }
}
