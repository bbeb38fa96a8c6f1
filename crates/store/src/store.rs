//! The handle: opening, committing, reading, watching.

use crate::disk::{Access, Disk, FILE, Source};
use crate::engine::Engine;
use crate::etcd::{Asked, Etcd, Feed};
use crate::format::Content;
use crate::index::Index;
use crate::limits::{QUEUE, TxnLimits, WINDOW_BYTES, WINDOW_EVENTS, WINDOW_MOST_BYTES, WINDOW_TIME};
use crate::sealing::Seal;
use crate::silence::Silence;
use crate::state::{Change, Keys, State, Window, WindowLimits, page, under};
use crate::watch::{Watcher, Watchers};
use crate::writer::{Request, Writer, validate};
use crate::{
    ClusterId, CommitError, Committed, Encoded, Entry, Expect, Op, OpenError, Page, ReadError, Revision, Txn, lock,
};
use bytes::Bytes;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, JoinHandle, Thread};
use std::time::Instant;
use tokio::sync::{mpsc, oneshot};

/// The key in etcd that names the cluster.
const OWNER: &[u8] = b"/!cluster";

fn noted(keys: &Keys) -> Option<ClusterId> {
    ClusterId::parse(std::str::from_utf8(&keys.get(OWNER)?.value).ok()?)
}

/// Who commits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// A thread of the store's, which groups whatever waits into one durable commit.
    #[default]
    Threaded,
    /// The caller's thread, within the call: no threads, no clock, no randomness (for the simulator).
    Inline,
}

/// Whose store is expected (A11).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Owner {
    /// Anybody's. It is made where there is none.
    #[default]
    Anyone,
    /// No cluster is known yet: what is there is opened, whosever it is. Where it has no owner, this one is noted.
    Claim {
        /// The new owner.
        cluster: ClusterId,
        /// Whether a store has to be there; else it is made.
        existing: bool,
    },
    /// It has to be there, to be this cluster's, and no older copy.
    Known {
        /// Whose.
        cluster: ClusterId,
        /// A revision that it had before.
        revision: Revision,
    },
}

impl Owner {
    fn access(self) -> Access {
        match self {
            Self::Anyone | Self::Claim { existing: false, .. } => Access::Make,
            Self::Claim { existing: true, .. } | Self::Known { .. } => Access::Existing,
        }
    }

    fn missing(self, file: &str, state: &'static str) -> OpenError {
        let cluster = match self {
            Self::Known { cluster, .. } => cluster.to_string(),
            Self::Anyone | Self::Claim { .. } => "(unknown)".to_owned(),
        };
        OpenError::Missing { file: file.to_owned(), state, cluster }
    }

    /// Whose a store with this content is from now on.
    pub(crate) fn admit(self, content: &Content, file: &str) -> Result<Option<ClusterId>, OpenError> {
        if content.format.is_none() && self.access() != Access::Make {
            return Err(self.missing(file, "is empty"));
        }
        let found = content.summary.cluster;
        match self {
            Self::Anyone => Ok(found),
            Self::Claim { cluster, .. } => Ok(found.or(Some(cluster))),
            Self::Known { cluster, .. } if found != Some(cluster) => {
                let found = found.map_or_else(|| "no cluster that it names".to_owned(), |id| format!("cluster {id}"));
                Err(OpenError::Foreign { file: file.to_owned(), found, expected: cluster })
            }
            Self::Known { revision, .. } if content.summary.revision < revision => {
                let found = content.summary.revision;
                Err(OpenError::Older { file: file.to_owned(), found, expected: revision })
            }
            Self::Known { .. } => Ok(found),
        }
    }
}

/// How a store is opened.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Who commits.
    pub mode: Mode,
    /// Past changes to keep; [`WINDOW_EVENTS`] unless told.
    pub window_events: usize,
    /// Bytes of past changes to keep; [`WINDOW_BYTES`] unless told.
    pub window_bytes: usize,
    /// How long past changes are kept beyond those; [`WINDOW_TIME`] unless told. Not looked at in [`Mode::Inline`].
    pub window_time: std::time::Duration,
    /// Bytes of past changes that are never exceeded; [`WINDOW_MOST_BYTES`] unless told.
    pub window_most_bytes: usize,
    /// Whether each commit carries what makes the next open quick after a crash. Off unless told: measured with
    /// 1 KiB values, it halves the rate of lone commits and takes a third off that of 16 writers, and saves 10 ms of
    /// an open after a kill with 1,000 keys, 200 ms with 100,000 (of 850 ms, most of which is reading them all).
    pub quick_repair: bool,
    /// Whose store is expected; anybody's unless told.
    pub owner: Owner,
    /// By what rows are found beside their keys; nothing unless told.
    pub index: Option<Index>,
    /// What one transaction may hold: that of [`TxnLimits::EMBEDDED`] unless told. A store on etcd has etcd's.
    pub txn: TxnLimits,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mode: Mode::Threaded,
            window_events: WINDOW_EVENTS,
            window_bytes: WINDOW_BYTES,
            window_time: WINDOW_TIME,
            window_most_bytes: WINDOW_MOST_BYTES,
            quick_repair: false,
            owner: Owner::Anyone,
            index: None,
            txn: TxnLimits::EMBEDDED,
        }
    }
}

impl Options {
    /// For the simulator: commits in the caller's thread.
    pub fn inline() -> Self {
        Self { mode: Mode::Inline, ..Self::default() }
    }

    pub(crate) fn window(&self) -> WindowLimits {
        WindowLimits {
            events: self.window_events,
            bytes: self.window_bytes,
            time: self.window_time,
            most_bytes: self.window_most_bytes,
        }
    }
}

/// What readers, watchers and the writer share.
#[derive(Debug)]
pub(crate) struct Shared {
    state: RwLock<State>,
    index: Option<Index>,
    pub watchers: Mutex<Watchers>,
    /// Of what it is fed from.
    pub silence: Silence,
    closed: AtomicBool,
}

impl Shared {
    pub fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn new(state: State) -> Self {
        Self {
            index: state.index_of_all(),
            state: RwLock::new(state),
            watchers: Mutex::default(),
            silence: Silence::default(),
            closed: AtomicBool::new(false),
        }
    }

    /// Shows changes to readers; whom to wake that watches them.
    pub fn publish(
        &self,
        keys: Keys,
        revision: Revision,
        mut changes: Vec<Change>,
        now: Option<Instant>,
    ) -> impl Iterator<Item = Waker> + use<> {
        // Rows are looked into once, and before anybody has to wait for it.
        if let Some(index) = &self.index {
            changes.iter_mut().for_each(|change| change.concern = index.concern(&change.event));
        }
        let mut state = self.write();
        let wake = lock(&self.watchers).note(&changes);
        state.publish(keys, revision, changes, now);
        wake.into_iter()
    }

    /// Begins anew with a state that is later by changes that nobody knows: all watches are told so.
    pub fn reset(&self, fresh: State) {
        let wake = {
            let mut state = self.write();
            let watchers = lock(&self.watchers);
            watchers.lag(state.revision.next());
            *state = fresh;
            watchers.all()
        };
        wake.into_iter().for_each(Waker::wake);
    }

    /// The end: watchers are told.
    pub fn close(&self) {
        let wake = {
            // Under the lock, or a watcher could miss it between its look and its falling asleep.
            let _state = self.write();
            self.closed.store(true, Ordering::Release);
            lock(&self.watchers).all()
        };
        wake.into_iter().for_each(Waker::wake);
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

/// The store. Clones are handles to the same store; when the last one is dropped, what was queued is committed, the
/// file is closed, and watchers are told.
#[derive(Clone, Debug)]
pub struct Store(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    cluster: Option<ClusterId>,
    txn_limits: TxnLimits,
    shared: Arc<Shared>,
    committer: Committer,
}

#[derive(Debug)]
enum Committer {
    Thread { queue: Option<mpsc::Sender<Request>>, thread: Option<JoinHandle<()>> },
    Etcd { queue: Option<mpsc::Sender<Request>>, reads: Option<mpsc::Sender<Asked>>, thread: Option<JoinHandle<()>> },
    Inline(Mutex<Writer>),
}

impl Store {
    /// Opens the store, making it when it is not there, and reads it into memory. Blocks.
    ///
    /// # Errors
    /// [`OpenError::InUse`] when somebody has it open; [`OpenError::Damaged`] when anything in the file is not what was
    /// written (A10), which is then left as it is; [`OpenError::Missing`], [`OpenError::Foreign`] and
    /// [`OpenError::Older`] when it is not the one that `options.owner` expects (A11); else what is wrong with the
    /// folder or the file.
    pub fn open(source: impl Into<Source>, options: Options) -> Result<Self, OpenError> {
        Self::open_sealed(source, options, None)
    }

    /// As [`Store::open`], of a store whose rows are sealed on the disk. Rows that would be sealed differently now are
    /// stored anew before it returns.
    ///
    /// # Errors
    /// Also [`OpenError::Sealed`], of a row that cannot be opened.
    pub fn open_sealed(
        source: impl Into<Source>,
        options: Options,
        seal: Option<Arc<dyn Seal>>,
    ) -> Result<Self, OpenError> {
        let (source, owner) = (source.into(), options.owner);
        let file = if let Source::Folder(folder) = &source { folder.join(FILE) } else { FILE.into() };
        let disk = Disk::open(source, owner.access()).map_err(|error| match error {
            OpenError::Folder { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                owner.missing(&file.display().to_string(), "is missing")
            }
            other => other,
        })?;
        let (engine, keys) = Engine::open(disk, options.quick_repair, owner, seal)?;
        let (revision, cluster) = (engine.revision(), engine.cluster());
        let is_timed = options.mode == Mode::Threaded;
        let shared = Arc::new(Shared::new(State::new(keys, revision, options.window(), options.index)));
        let writer = Writer { shared: shared.clone(), engine, is_timed };
        let committer = match options.mode {
            Mode::Inline => Committer::Inline(Mutex::new(writer)),
            Mode::Threaded => {
                let (queue, requests) = mpsc::channel(QUEUE);
                let run = move || writer.run(requests);
                let thread =
                    thread::Builder::new().name("store-writer".into()).spawn(run).map_err(OpenError::Thread)?;
                Committer::Thread { queue: Some(queue), thread: Some(thread) }
            }
        };
        Ok(Self(Arc::new(Handle { cluster, txn_limits: options.txn, shared, committer })))
    }

    /// Opens the store that an etcd cluster holds, or begins one there, and reads it into memory. Blocks. Of the
    /// options only the window's limits count.
    ///
    /// # Errors
    /// [`OpenError::Unreached`] when no member answers, [`OpenError::Untrusted`] when one side does not trust the
    /// other's certificate; when a row is not what was written (A10); when it is not the one that `options.owner`
    /// expects (A11), which is noted in a key of its own.
    pub fn open_etcd(etcd: Etcd, options: Options) -> Result<Self, OpenError> {
        let Feed { shared, commits, reads, thread } = crate::etcd::open(etcd, options.window(), options.index)?;
        let committer = Committer::Etcd { queue: Some(commits), reads: Some(reads), thread: Some(thread) };
        let mut handle = Handle { cluster: None, txn_limits: TxnLimits::ETCD, shared, committer };
        if options.owner == Owner::Anyone {
            handle.cluster = noted(&handle.shared.read().keys);
            return Ok(Self(Arc::new(handle)));
        }
        let store = Self(Arc::new(handle));
        let cluster = store.claim(options.owner)?;
        // Nobody else has a handle yet.
        let mut handle = Arc::try_unwrap(store.0).map_err(|_| OpenError::Engine("the store is shared".to_owned()))?;
        handle.cluster = Some(cluster);
        Ok(Self(Arc::new(handle)))
    }

    /// Whose the store in etcd is, as `owner` expects it; noted there where nobody was.
    fn claim(&self, owner: Owner) -> Result<ClusterId, OpenError> {
        const FILE: &str = "etcd";
        loop {
            let (found, is_empty, revision) = {
                let state = self.0.shared.read();
                (noted(&state.keys), state.keys.is_empty(), state.revision)
            };
            match (found, owner) {
                (Some(found), Owner::Known { cluster, .. }) if found != cluster => {
                    let found = format!("cluster {found}");
                    return Err(OpenError::Foreign { file: FILE.to_owned(), found, expected: cluster });
                }
                (Some(_), Owner::Known { revision: expected, .. }) if revision < expected => {
                    return Err(OpenError::Older { file: FILE.to_owned(), found: revision, expected });
                }
                (Some(found), _) => return Ok(found),
                (None, Owner::Claim { cluster, existing: false }) if is_empty => {
                    let value = Encoded::plain(cluster.to_string());
                    let ops = vec![Op::Put { key: Bytes::from_static(OWNER), value }];
                    let txn = Txn { expect: vec![(Bytes::from_static(OWNER), Expect::Absent)], ops };
                    match self.commit_blocking(txn) {
                        // Another server was quicker.
                        Ok(_) | Err(CommitError::Expectation { .. }) => {}
                        Err(CommitError::Unreached(why)) => return Err(OpenError::Unreached(why)),
                        Err(error) => return Err(OpenError::Engine(error.to_string())),
                    }
                }
                (None, _) if is_empty => return Err(owner.missing(FILE, "is empty")),
                (None, _) => return Err(owner.missing(FILE, "names no cluster")),
            }
        }
    }

    /// What one transaction may hold.
    pub fn txn_limits(&self) -> &TxnLimits {
        &self.0.txn_limits
    }

    /// Whether other servers write to it as well.
    pub fn is_shared(&self) -> bool {
        matches!(self.0.committer, Committer::Etcd { .. })
    }

    /// Waits until what is read from here on is at least as new as all that was committed anywhere before the call, and
    /// gives that revision (A1). Nobody else writes to an embedded store, so there it is true at once.
    ///
    /// # Errors
    /// [`ReadError::Behind`] when the cluster that holds the store does not answer.
    pub async fn catch_up(&self) -> Result<Revision, ReadError> {
        let Committer::Etcd { reads: Some(reads), .. } = &self.0.committer else { return Ok(self.revision()) };
        let (answer, result) = oneshot::channel();
        reads.send(answer).await.map_err(|_| ReadError::Behind)?;
        result.await.unwrap_or(Err(ReadError::Behind))
    }

    /// Why the newest state is not known and nothing can be written just now, in words; `None` where all is well.
    pub fn trouble(&self) -> Option<String> {
        self.0.shared.silence.words().or_else(|| self.is_closed().then(|| "the store does not take writes".to_owned()))
    }

    /// Whether what the store is fed from has been silent for so long that another server is better asked.
    pub fn is_silent(&self) -> bool {
        self.0.shared.silence.is_long()
    }

    /// Waits until what the store is fed from has been silent for so long that another server is better asked: a few
    /// seconds. With an embedded store that does not happen.
    pub fn silent(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut long = self.0.shared.silence.long();
        // The sender lives as long as whoever watches; without it nothing is said any more.
        let _shared = self.0.shared.clone();
        async move {
            let _shared = _shared;
            drop(long.wait_for(|long| *long).await);
        }
    }

    /// Whose store this is; `None` where nobody was noted.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.0.cluster
    }

    /// Whether it takes no more writes: it was closed, or its writer has ended.
    pub fn is_closed(&self) -> bool {
        self.0.shared.is_closed()
    }

    /// Carries out a transaction, as a whole or not at all; returns when it is on disk (A2) and visible. When the
    /// future is dropped, the transaction may or may not be carried out. Needs no particular runtime.
    ///
    /// # Errors
    /// See [`CommitError`].
    pub async fn commit(&self, txn: Txn) -> Result<Committed, CommitError> {
        validate(&txn, self.txn_limits()).map_err(CommitError::Invalid)?;
        match &self.0.committer {
            Committer::Inline(writer) => {
                let (mut answers, wake) = lock(writer).commit(&[txn]);
                wake.into_iter().for_each(Waker::wake);
                answers.pop().unwrap_or(Err(CommitError::Closed))
            }
            Committer::Thread { queue, .. } | Committer::Etcd { queue, .. } => {
                let queue = queue.as_ref().ok_or(CommitError::Closed)?;
                let (answer, result) = oneshot::channel();
                queue.send(Request { txn, answer }).await.map_err(|_| CommitError::Closed)?;
                result.await.unwrap_or(Err(CommitError::Closed))
            }
        }
    }

    /// As [`Store::commit`], blocking the thread.
    ///
    /// # Errors
    /// See [`CommitError`].
    pub fn commit_blocking(&self, txn: Txn) -> Result<Committed, CommitError> {
        block_on(self.commit(txn))
    }

    /// A key's state.
    pub fn get(&self, key: &[u8]) -> Option<Entry> {
        self.0.shared.read().keys.get_key_value(key).map(|(key, stored)| stored.entry(key))
    }

    /// At most `limit` of the keys that begin with `prefix`, in order, from the first one after `after`, as of the
    /// revision `at` (else of the newest). All pages of a list are consistent when each is asked for at the first
    /// one's revision.
    ///
    /// # Errors
    /// [`ReadError::Compacted`] when `at` is older than the window (A7), [`ReadError::Future`] when it has not been.
    pub fn range(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
        at: Option<Revision>,
    ) -> Result<Page, ReadError> {
        // Only the copying of the keys' root is done under the lock, so that a long list stops no writer.
        let (keys, revision) = {
            let state = self.0.shared.read();
            match at {
                Some(at) if at != state.revision => (state.keys_at(prefix, at)?, at),
                _ => (state.keys.clone(), state.revision),
            }
        };
        let page = page(&keys, prefix, after, limit, revision);
        if page.more && at.is_none() {
            // The other parts will be asked for at this revision.
            self.0.shared.write().pin(revision, keys);
        }
        Ok(page)
    }

    /// How many of the keys that begin with `prefix` come after `after`, as of the revision `at`.
    ///
    /// # Errors
    /// As [`Store::range`].
    pub fn count_after(&self, prefix: &[u8], after: &[u8], at: Revision) -> Result<usize, ReadError> {
        let keys = self.0.shared.read().keys_at(prefix, at)?;
        Ok(under(&keys, prefix, Some(after)).count())
    }

    /// The newest state of the rows below a prefix that the index finds by a text, in order of key; and those of which
    /// the text cannot be read. `None` where there is no index of them, or they are more than `limit`.
    pub fn found(&self, prefix: &[u8], text: &Bytes, limit: usize) -> Option<Page> {
        let state = self.0.shared.read();
        state.index_of(prefix)?;
        let entries = state.found(prefix, text);
        (entries.len() <= limit).then_some(Page { entries, more: false, revision: state.revision })
    }

    /// How many keys begin with `prefix`.
    pub fn count(&self, prefix: &[u8]) -> usize {
        let keys = self.0.shared.read().keys.clone();
        under(&keys, prefix, None).count()
    }

    /// How far back the past is kept now.
    pub fn window(&self) -> Window {
        self.0.shared.read().window(std::time::Instant::now())
    }

    /// The newest revision that is on disk and visible.
    pub fn revision(&self) -> Revision {
        self.0.shared.read().revision
    }

    /// The oldest revision that can be read, and watched from.
    pub fn compacted(&self) -> Revision {
        self.0.shared.read().compacted
    }

    /// Forgets the changes up to `revision` (at most the newest). The window does so by itself; this is for those
    /// who want it sooner.
    pub fn compact(&self, revision: Revision) {
        self.0.shared.write().compact(revision);
    }

    /// The changes after `after` of the keys that begin with `prefix`. From a list's revision, each change is seen
    /// exactly once (A6).
    ///
    /// # Errors
    /// [`ReadError::Compacted`] when events after `after` are gone (A7), [`ReadError::Future`] when it has not been.
    pub fn watch(&self, prefix: impl Into<Bytes>, after: Revision) -> Result<Watcher, ReadError> {
        let state = self.0.shared.read();
        state.check(after)?;
        Ok(Watcher::new(self.0.shared.clone(), &state, prefix.into(), None, after))
    }

    /// As [`Store::watch`], of those changes only that concern what the index finds by a text: it was found by it, or
    /// is from now on, or what it is found by cannot be read. Without an index of these rows, of all changes.
    ///
    /// # Errors
    /// As [`Store::watch`].
    pub fn watch_found(&self, prefix: impl Into<Bytes>, text: Bytes, after: Revision) -> Result<Watcher, ReadError> {
        let (state, prefix) = (self.0.shared.read(), prefix.into());
        state.check(after)?;
        let text = state.index_of(&prefix).map(|_| text);
        Ok(Watcher::new(self.0.shared.clone(), &state, prefix, text, after))
    }

    /// How many prefixes, lengths of such, and texts are watched.
    #[cfg(test)]
    pub(crate) fn watchers(&self) -> [usize; 3] {
        lock(&self.0.shared.watchers).counts()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let thread = match &mut self.committer {
            Committer::Thread { queue, thread } => {
                drop(queue.take());
                thread.take()
            }
            Committer::Etcd { queue, reads, thread } => {
                drop((queue.take(), reads.take()));
                thread.take()
            }
            Committer::Inline(_) => None,
        };
        if let Some(Err(_)) = thread.map(JoinHandle::join) {
            tracing::error!("the store's writer had panicked");
        }
        self.shared.close();
    }
}

/// Polls a future to its end in this thread.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(done) => return done,
            Poll::Pending => thread::park(),
        }
    }
}
