//! What keeps memory as etcd is, and takes transactions there. One thread with a runtime of its own, so that callers
//! need none.

use super::grpc::{Anchor, Client, GrpcError, Stream};
use super::reads::{self, Asked};
use super::receipt::{self, Receipts};
use super::row::{self, stored};
use super::wire::{self, KeyValue, Range, RangeAnswer, WatchAnswer};
use super::{Etcd, OUT_OF_RANGE, RANGE};
use crate::index::Index;
use crate::state::{Change, Keys, State, WindowLimits};
use crate::store::Shared;
use crate::writer::Request;
use crate::{CommitError, Damage, Event, OpenError, limits, silence};
use bytes::{BufMut as _, Bytes, BytesMut};
use std::sync::Arc;
use std::task::Waker;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;

const COMPACT: &str = "/etcdserverpb.KV/Compact";
const WATCH: &str = "/etcdserverpb.Watch/Watch";
/// How long a call may take that reads a page, or that nobody waits for.
const CALL: Duration = Duration::from_secs(10);
/// Before a watch that broke is begun again.
const RETRY: Duration = Duration::from_millis(100);
/// Transactions that are on their way at once.
const IN_FLIGHT: usize = 64;
/// How long those that are on their way may take when the store is closed; then their outcome shows at the next open.
const LAST: Duration = Duration::from_secs(3);
/// History is forgotten this long after it was made, as Kubernetes' API servers do.
const HISTORY: Duration = Duration::from_secs(300);
/// Keys of the first page that is read; the next are as large as the rows of the one before let expect.
const FIRST_PAGE: i64 = 32;
const MAX_PAGE: i64 = 8192;
/// Bytes that a page is to have.
const PAGE_BYTES: usize = 4 << 20;

/// A running backend.
#[derive(Debug)]
pub(crate) struct Feed {
    pub shared: Arc<Shared>,
    pub commits: mpsc::Sender<Request>,
    pub reads: mpsc::Sender<Asked>,
    pub thread: JoinHandle<()>,
}

/// Reads everything, and begins to follow. Blocks.
pub(crate) fn open(etcd: Etcd, limits: WindowLimits, index: Option<Index>) -> Result<Feed, OpenError> {
    let (commits, requests) = mpsc::channel(limits::QUEUE);
    let (reads, asked) = mpsc::channel(limits::QUEUE);
    let (ready, opened) = std::sync::mpsc::channel();
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        match runtime {
            Ok(runtime) => runtime.block_on(run(etcd, (limits, index), requests, asked, ready)),
            Err(error) => drop(ready.send(Err(OpenError::Thread(error)))),
        }
    };
    let thread = thread::Builder::new().name("store-etcd".into()).spawn(run).map_err(OpenError::Thread)?;
    match opened.recv() {
        Ok(shared) => Ok(Feed { shared: shared?, commits, reads, thread }),
        Err(_) => Err(OpenError::Engine("the thread that follows etcd ended".to_owned())),
    }
}

#[derive(Clone)]
pub(super) struct Follower {
    pub client: Client,
    pub prefix: Bytes,
    pub shared: Arc<Shared>,
    pub receipts: Arc<Receipts>,
    limits: WindowLimits,
    index: Option<Index>,
    /// The store is to be closed.
    end: Arc<Notify>,
}

type Ready = std::sync::mpsc::Sender<Result<Arc<Shared>, OpenError>>;

async fn run(
    etcd: Etcd,
    (limits, index): (WindowLimits, Option<Index>),
    mut requests: mpsc::Receiver<Request>,
    asked: mpsc::Receiver<Asked>,
    ready: Ready,
) {
    let client = Client::new(etcd.endpoints, etcd.tls);
    let Loaded { keys, revision, receipts } = match load(&client, &etcd.prefix).await {
        Ok(loaded) => loaded,
        Err(error) => return drop(ready.send(Err(error))),
    };
    let shared = Arc::new(Shared::new(State::new(keys, row::whole(revision), limits, index)));
    if ready.send(Ok(shared.clone())).is_err() {
        return;
    }
    let follower = Follower {
        client,
        receipts: Receipts::new(&etcd.prefix, number(), IN_FLIGHT),
        prefix: etcd.prefix,
        shared: shared.clone(),
        limits,
        index,
        end: Arc::default(),
    };
    let (applied, seen) = watch::channel(revision);
    let mut others = JoinSet::new();
    others.spawn(follow(follower.clone(), applied));
    others.spawn(forget_history(follower.clone(), seen.clone()));
    others.spawn(reads::serve(follower.clone(), seen.clone(), asked));
    others.spawn(forget_receipts(follower.clone(), receipts));
    let mut commits = JoinSet::new();
    loop {
        tokio::select! {
            next = requests.recv(), if commits.len() < limits::QUEUE => {
                let Some(Request { txn, answer }) = next else { break };
                let (follower, seen, now) = (follower.clone(), seen.clone(), tokio::time::Instant::now());
                commits.spawn(async move {
                    let result = follower.commit(&txn, seen, now).await;
                    // Whoever asked may have gone; what was done stands.
                    let _ = answer.send(result);
                });
            }
            _ = commits.join_next(), if !commits.is_empty() => {}
            // Memory that nothing keeps as etcd is would answer as if it were.
            ended = others.join_next(), if !others.is_empty() => if let Some(Err(error)) = ended {
                follower.close(&format!("what follows etcd has ended: {error}"));
            },
            () = follower.end.notified() => break,
        }
    }
    requests.close();
    let last = async { while commits.join_next().await.is_some() {} };
    drop(tokio::time::timeout(LAST, last).await);
    others.abort_all();
    shared.close();
    while let Some(Request { answer, .. }) = requests.recv().await {
        let _ = answer.send(Err(CommitError::Closed));
    }
}

/// A number that no other handle of the same cluster has.
fn number() -> u64 {
    let mut bytes = [0; 8];
    if rustls::crypto::ring::default_provider().secure_random.fill(&mut bytes).is_err() {
        crate::must(false, "the system has randomness");
    }
    u64::from_le_bytes(bytes)
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

pub(super) fn joined(prefix: &[u8], key: &[u8]) -> Bytes {
    let mut whole = BytesMut::with_capacity(prefix.len() + key.len());
    whole.put_slice(prefix);
    whole.put_slice(key);
    whole.freeze()
}

/// All keys, as of one revision of etcd's.
struct Loaded {
    keys: Keys,
    revision: i64,
    /// Receipts that nobody needs any more.
    receipts: Vec<KeyValue>,
}

async fn load(client: &Client, prefix: &Bytes) -> Result<Loaded, OpenError> {
    loop {
        match load_once(client, prefix).await {
            // Compacted while it was read: again.
            Err(Load::Grpc(GrpcError::Status { code: OUT_OF_RANGE, .. })) => {}
            Err(Load::Grpc(GrpcError::Refused(why))) => return Err(OpenError::Untrusted(why)),
            Err(Load::Grpc(GrpcError::Unsent(why) | GrpcError::Unreachable(why))) => {
                return Err(OpenError::Unreached(why));
            }
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

async fn load_once(client: &Client, prefix: &Bytes) -> Result<Loaded, Load> {
    let (mut keys, mut receipts) = (Keys::new_sync(), Vec::new());
    let mut range = Range { key: prefix.clone(), end: end_of(prefix), limit: FIRST_PAGE, revision: 0 };
    loop {
        let bytes = match client.call(RANGE, range.encode(), CALL).await {
            // Rows are larger from here on. One alone is never too long.
            Err(GrpcError::TooLong(_)) if range.limit > 1 => {
                range.limit = (range.limit / 4).max(1);
                continue;
            }
            answer => answer.map_err(Load::Grpc)?,
        };
        let size = bytes.len();
        let page = RangeAnswer::decode(bytes).map_err(|error| Load::Grpc(error.into()))?;
        if range.revision == 0 {
            range.revision = page.revision;
        }
        for kv in &page.kvs {
            let key = kv.key.slice(prefix.len().min(kv.key.len())..);
            if receipt::is_receipt(&key) {
                receipts.extend(receipt::is_old(kv).then(|| kv.clone()));
                continue;
            }
            let stored = stored(&key, kv).ok_or_else(|| Load::Damaged(key.clone()))?;
            keys.insert_mut(key, stored);
        }
        let Some(last) = page.kvs.last().filter(|_| page.more) else {
            return Ok(Loaded { keys, revision: range.revision, receipts });
        };
        range.key = joined(&last.key, &[0]);
        range.limit = next_page(range.limit, page.kvs.len(), size);
    }
}

/// How many keys the next page is to have, after one of so many keys and bytes that was asked for with this limit: at
/// most twice as many, for the rows that follow may be larger.
fn next_page(limit: i64, keys: usize, bytes: usize) -> i64 {
    let expected = PAGE_BYTES / (bytes / keys.max(1)).max(1);
    i64::try_from(expected).unwrap_or(MAX_PAGE).min(limit * 2).clamp(1, MAX_PAGE)
}

/// Keeps memory as etcd is, over broken connections and other members.
async fn follow(follower: Follower, applied: watch::Sender<i64>) {
    loop {
        let error = match follower.watch(&applied).await {
            Followed::Broken(error) => error,
            Followed::Behind(why) => match load(&follower.client, &follower.prefix).await {
                // What went back is found by the next read.
                Ok(Loaded { revision, .. }) if revision < *applied.borrow() => "its revision is lower".to_owned(),
                Ok(Loaded { keys, revision, .. }) => {
                    tracing::warn!(why, "what this server had yet to see cannot be followed; its watches begin anew");
                    follower.shared.reset(State::new(keys, row::whole(revision), follower.limits, follower.index));
                    applied.send_replace(revision);
                    continue;
                }
                Err(error @ OpenError::Damaged { .. }) => return follower.close(&error.to_string()),
                Err(error) => error.to_string(),
            },
            Followed::Older(why) => return follower.close(&why),
            Followed::Damaged(key) => {
                let key = String::from_utf8_lossy(&key).into_owned();
                return follower.close(&format!("what etcd holds for {key} is not what was written"));
            }
        };
        if follower.shared.silence.begin(&error) {
            tracing::warn!(error, "etcd is not followed; it is tried again and again");
            let shared = follower.shared.clone();
            tokio::spawn(async move {
                tokio::time::sleep(silence::LONG).await;
                shared.silence.look();
            });
        }
        tokio::time::sleep(RETRY).await;
        // Whether it is still the cluster that was followed; else the watch would wait for ever for what is to come.
        let least = *applied.borrow();
        let _ = follower.newest(least, tokio::time::Instant::now()).await;
    }
}

enum Followed {
    Older(String),
    Broken(String),
    /// What happened meanwhile is not to be had; all is read anew.
    Behind(&'static str),
    Damaged(Bytes),
}

/// What of a watch's answers is to be shown yet.
#[derive(Debug, Default)]
struct Gathered {
    /// Events of a transaction that is not whole yet: an answer of many bytes comes in pieces, which are cut anywhere.
    rest: Vec<wire::Event>,
    /// etcd's revision when the watch began; before that is shown, memory is not as etcd is.
    until: i64,
}

impl Gathered {
    /// Takes in an answer; what is whole by now.
    fn take(&mut self, answer: &mut WatchAnswer) -> Vec<wire::Event> {
        if answer.created {
            self.until = answer.revision;
        }
        self.rest.append(&mut answer.events);
        if !answer.fragment {
            return std::mem::take(&mut self.rest);
        }
        let newest = self.rest.last().map_or(0, |event| event.kv.mod_revision);
        let whole = self.rest.partition_point(|event| event.kv.mod_revision < newest);
        let rest = self.rest.split_off(whole);
        std::mem::replace(&mut self.rest, rest)
    }
}

impl Follower {
    /// Whether etcd has been silent for long.
    pub fn is_silent(&self) -> bool {
        self.shared.silence.is_long()
    }

    /// The store takes part in nothing any more: going on would be wrong.
    pub fn close(&self, why: &str) {
        tracing::error!(why, "the store is closed");
        self.shared.silence.end(why);
        self.shared.close();
        self.end.notify_one();
    }

    async fn watch(&self, applied: &watch::Sender<i64>) -> Followed {
        let from = *applied.borrow() + 1;
        let first = wire::watch(&self.prefix, &end_of(&self.prefix), from);
        let mut stream = match self.client.stream(WATCH, first).await {
            Ok(stream) => stream,
            Err(GrpcError::Older(why)) => return Followed::Older(why),
            Err(error) => return Followed::Broken(error.to_string()),
        };
        let ended = self.read(&mut stream, applied).await;
        // This member may have lost the others.
        self.client.leave(&stream);
        ended
    }

    async fn read(&self, stream: &mut Stream, applied: &watch::Sender<i64>) -> Followed {
        let mut gathered = Gathered::default();
        loop {
            let answer = match stream.next().await {
                Ok(bytes) => WatchAnswer::decode(bytes),
                Err(GrpcError::TooLong(_)) => return Followed::Behind("an answer of etcd's is too long"),
                Err(error) => return Followed::Broken(error.to_string()),
            };
            match answer {
                Err(_) => return Followed::Broken(GrpcError::Malformed.to_string()),
                Ok(answer) if answer.compact_revision > 0 => return Followed::Behind("etcd has forgotten it"),
                Ok(answer) if answer.canceled => return Followed::Broken(answer.reason),
                Ok(mut answer) => {
                    // Without an event, and not at the beginning: all up to this revision was brought.
                    let is_progress = answer.events.is_empty() && !answer.created && !answer.fragment;
                    if let Err(key) = self.apply(gathered.take(&mut answer), applied) {
                        return Followed::Damaged(key);
                    }
                    let is_current = is_progress || *applied.borrow() >= gathered.until;
                    if is_current && self.shared.silence.over() {
                        tracing::warn!("etcd is followed again");
                    }
                }
            }
        }
    }

    /// Shows what the watch has brought, each transaction as a whole.
    pub(super) fn apply(&self, events: Vec<wire::Event>, applied: &watch::Sender<i64>) -> Result<(), Bytes> {
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
            self.shared.publish(keys, row::whole(revision), changes, Some(Instant::now())).for_each(Waker::wake);
            if let Some(put) = txn.iter().rfind(|event| !event.deleted) {
                self.client.anchor(Anchor::of(&put.kv));
            }
            applied.send_replace(revision);
        }
        Ok(())
    }

    fn change(&self, keys: &mut Keys, event: &wire::Event, index: u16) -> Result<Option<Change>, Bytes> {
        let key = event.kv.key.slice(self.prefix.len().min(event.kv.key.len())..);
        if receipt::is_receipt(&key) {
            return Ok(None);
        }
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
        Ok(Some(Change::new(event, previous_revision)))
    }
}

/// Takes receipts away that nobody needs any more.
async fn forget_receipts(follower: Follower, old: Vec<KeyValue>) {
    for kv in &old {
        if let Err(error) = follower.client.call(super::TXN, receipt::removal(kv).encode(), CALL).await {
            tracing::debug!(%error, "an old receipt stays until the next start");
        }
    }
}

/// Lets etcd forget what is older than [`HISTORY`], so that its database does not grow for ever. Every server does; who
/// comes second changes nothing.
async fn forget_history(follower: Follower, seen: watch::Receiver<i64>) {
    let mut before = *seen.borrow();
    loop {
        tokio::time::sleep(HISTORY).await;
        if let Err(error) = follower.client.call(COMPACT, wire::compaction(before), CALL).await {
            tracing::debug!(%error, "etcd did not forget its history");
        }
        before = *seen.borrow();
    }
}

#[cfg(test)]
pub(super) mod tests;
