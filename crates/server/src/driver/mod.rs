//! Runs the controllers: newest snapshot, observe, decide, commit, wake what that concerns. Without IO of its own.
//!
//! Whoever owns a [`Driver`] feeds it the store's events, asks [`Driver::poll`] for decisions, commits what [`compile`]
//! makes of each, as many side by side as it likes, and says how each went ([`Driver::finished`]). [`Seat`] does all of
//! that but the commits and the sleeps; production drives it in [`run`], the simulator in its one thread.
//!
//! No key is decided on a snapshot older than its own last commit, and nothing is decided about an object that another
//! decision is writing ([`flights`]), so no controller acts twice on what it has not yet seen itself do. A controller
//! that decides many keys together decides the next when its last decisions are seen; where as many wait as it takes
//! and it can [assume](mainstay_logic::decision::Many::assume) those to be done, while they are being committed.

mod commit;
pub(crate) mod events;
mod flights;
mod queue;
mod refusal;
mod run;
mod seat;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use mainstay_api::{Kind, ObjectKey, kinds};
use mainstay_logic::decision::Verb;
use mainstay_logic::measured::Measured;
use mainstay_logic::{Change, Controller, Decision, Snapshot, Write, promises};
use mainstay_store::{Event, Revision, Store, Watcher};
use tokio::sync::Notify;

pub use commit::{Compiled, compile, compile_asking};
use events::Expiry;
use flights::Flights;
use queue::{Item, Queue};
pub use run::run;
pub use seat::{DISK_PAUSE, Done, Most, Seat, Wire, step};

use crate::api::key;
use crate::instruments::Controllers;

/// Keys whose decisions are under way at a time; more are decided when some of those are seen.
const MAX_FLIGHTS: usize = 512;
/// So many more while webhooks are asked about theirs, so that those do not keep the others waiting.
const MAX_ASKING: usize = 4096;
/// How many times many keys of a controller are decided together before the first of those decisions are seen.
const MAX_ROUNDS: usize = 2;
/// How long after a decision turned out not to be done those are looked at again that were decided as if it were.
const REFUTED: SignedDuration = SignedDuration::from_secs(10);
/// Keys that a load takes from the store at a time.
const PAGE: usize = 1000;

/// What is to be committed next, together where that is possible.
#[derive(Debug)]
pub struct Work {
    /// Who decided.
    pub controller: &'static str,
    /// In order: a part may rely on those before it.
    pub parts: Vec<Part>,
    /// Events (of the kind Event) whose time is over.
    pub expired: Vec<ObjectKey>,
    /// At most so many writes are committed together.
    pub most_writes: usize,
}

/// The decision about one key.
#[derive(Debug)]
pub struct Part {
    item: Item,
    /// About what.
    pub key: ObjectKey,
    /// What is to be committed.
    pub decision: Decision,
}

/// How it went.
#[derive(Clone, Debug, PartialEq)]
pub enum Finish {
    /// All of it is committed, up to this revision (nothing to write: the store's).
    Committed(Revision),
    /// So many parts of it, and some writes of the next, are committed up to this revision; the rest is decided anew
    /// at once.
    Partly(Revision, usize),
    /// After so many parts (committed up to this revision, as are writes before it in its part) a write was refused,
    /// or somebody else wrote first: that part is decided anew after a while, those after it at once.
    Failed(Option<Revision>, usize),
    /// So many writes of it together break a limit of the store: decided anew at once, half as many at a time.
    TooLarge(usize),
}

/// The controllers' state between decisions.
pub struct Driver {
    controllers: &'static [Controller],
    snapshot: Snapshot,
    queue: Queue,
    expiry: Expiry,
    flights: Flights,
    /// Controllers of which all keys are to be woken when nothing else is left for them to decide.
    wake_all: BTreeSet<usize>,
    /// Why each key that waits does so; for the console, metrics and tests.
    waiting: BTreeMap<Item, Vec<mainstay_logic::Waiting>>,
    /// What is not decided while an object of a kind that it looks at does not decode.
    held: BTreeSet<Item>,
    /// Kinds that are served since a moment ago: their objects may have been in the store before.
    unread: Vec<Kind>,
    /// Of keys whose last decision was too large for one transaction: how many of its writes the next may have.
    most_writes: BTreeMap<Item, usize>,
    /// For `/metrics`.
    counts: Arc<Controllers>,
    /// How many keys wait for webhooks.
    asking: Arc<Asking>,
    /// A clock that nobody sets; the time that is given to each call where there is none.
    steady: Option<Instant>,
    /// At most so many keys are decided together.
    most_keys: usize,
}

/// The keys whose decisions wait for webhooks.
#[derive(Debug, Default)]
pub struct Asking {
    keys: AtomicUsize,
    /// There are more of them.
    more: Notify,
}

/// The index of what is not a controller's: taking away old Events.
const EXPIRY: usize = usize::MAX;

impl Driver {
    /// A driver that knows nothing yet.
    pub fn new(controllers: &'static [Controller]) -> Self {
        Self {
            controllers,
            snapshot: Snapshot::default(),
            queue: Queue::default(),
            expiry: Expiry::default(),
            flights: Flights::default(),
            wake_all: BTreeSet::new(),
            waiting: BTreeMap::new(),
            held: BTreeSet::new(),
            unread: Vec::new(),
            most_writes: BTreeMap::new(),
            asking: Arc::default(),
            counts: Arc::default(),
            steady: None,
            most_keys: usize::MAX,
        }
    }

    /// The same, deciding at most so many keys together (at least one): for tests, which have few.
    #[must_use]
    pub fn deciding_together(mut self, most_keys: usize) -> Self {
        self.most_keys = most_keys.max(1);
        self
    }

    /// The same, with a clock of its own for how long nodes are silent: that of the calls may be set.
    #[must_use]
    pub fn steady(mut self) -> Self {
        self.steady = Some(Instant::now());
        self
    }

    /// Time passes (S13).
    fn advance(&mut self, now: Timestamp) {
        let since_epoch = || Duration::try_from(now.duration_since(Timestamp::UNIX_EPOCH)).unwrap_or_default();
        let passed = self.steady.map_or_else(since_epoch, |begun| begun.elapsed());
        self.snapshot.silences.advance(passed);
    }

    /// Where whoever commits counts the keys that wait for webhooks.
    pub fn asking(&self) -> Arc<Asking> {
        self.asking.clone()
    }

    /// The same, counted there.
    #[must_use]
    pub fn counted(mut self, counts: Arc<Controllers>) -> Self {
        self.counts = counts;
        self
    }

    fn name(&self, lane: usize) -> Option<&'static str> {
        self.controllers.get(lane).map(|controller| controller.name)
    }

    /// Takes in the store's whole state, at the start and when the watch has fallen behind. Returns the watch to go
    /// on with. Takes long where there is much: not for an async thread.
    pub fn load(&mut self, store: &Store, now: Timestamp) -> Result<Watcher, mainstay_store::ReadError> {
        // The watch comes first: what happens while the pages are read is then told after them.
        let revision = store.revision();
        let watcher = store.watch("", revision)?;
        self.a3_goes_forward(revision);
        let metas = self.snapshot.metas.iter();
        let mut gone: BTreeMap<_, _> = metas.map(|(slot, _)| (slot.clone(), ())).collect();
        // Definitions first: what else there is may be of the kinds that they define.
        let definitions = key::prefix(&kinds::CUSTOM_RESOURCE_DEFINITION, None);
        for prefix in [&definitions[..], b""] {
            let mut after = None;
            loop {
                let page = store.range(prefix, after.as_deref(), PAGE, Some(revision))?;
                for entry in &page.entries {
                    if prefix.is_empty() && entry.key.starts_with(&definitions) {
                        continue;
                    }
                    let Some((kind, object)) = key::parse(&self.snapshot.registry, &entry.key) else { continue };
                    gone.remove(&(kind.clone(), object.clone()));
                    self.change(&kind, object, Some(&entry.value), revision, now);
                }
                match page.entries.last().filter(|_| page.more) {
                    Some(last) => after = Some(last.key.clone()),
                    None => break,
                }
            }
        }
        for ((kind, object), ()) in gone {
            self.change(&kind, object, None, revision, now);
        }
        self.unread.clear();
        self.seen(revision);
        Ok(watcher)
    }

    /// Takes in the objects of kinds that are served since the last call. To be called before [`Driver::poll`], or an
    /// owner that is in the store would be taken for one that is not (S10).
    pub fn read_new_kinds(&mut self, store: &Store, now: Timestamp) -> Result<(), mainstay_store::ReadError> {
        while let Some(kind) = self.unread.last().cloned() {
            let (prefix, revision) = (key::prefix(&kind, None), Revision(self.snapshot.revision));
            let mut after = None;
            loop {
                let page = store.range(&prefix, after.as_deref(), PAGE, Some(revision))?;
                for entry in &page.entries {
                    let Some((kind, object)) = key::parse(&self.snapshot.registry, &entry.key) else { continue };
                    self.change(&kind, object, Some(&entry.value), revision, now);
                }
                match page.entries.last().filter(|_| page.more) {
                    Some(last) => after = Some(last.key.clone()),
                    None => break,
                }
            }
            self.unread.pop();
        }
        Ok(())
    }

    /// Everything up to a revision is in the snapshot.
    fn seen(&mut self, revision: Revision) {
        self.snapshot.revision = self.snapshot.revision.max(revision.0);
        for item in self.flights.land(self.snapshot.revision) {
            self.wake(item);
        }
    }

    fn wake(&mut self, item: Item) {
        if self.flights.wake(&item) {
            return;
        }
        let many = self.controllers.get(item.0).and_then(|controller| controller.many.as_ref());
        let name = self.name(item.0);
        let is_new = match many {
            Some(_) if item.1.name.is_empty() => {
                self.wake_all.insert(item.0);
                false
            }
            Some(many) => {
                let rank = (many.rank)(&self.snapshot, &item.1);
                self.queue.wake_ranked(item, rank)
            }
            None => self.queue.wake(item),
        };
        if let Some(name) = name.filter(|_| is_new) {
            self.counts.added(name);
        }
    }

    /// Shows the controllers what was measured; every autoscaler is decided anew.
    pub fn measured(&mut self, measured: Arc<Measured>) {
        self.snapshot.measured = measured;
        let name = mainstay_logic::controllers::horizontalpodautoscaler::CONTROLLER.name;
        let Some(lane) = self.controllers.iter().position(|controller| controller.name == name) else { return };
        let keys: Vec<ObjectKey> = self.snapshot.horizontal_pod_autoscalers.keys().cloned().collect();
        keys.into_iter().for_each(|key| self.wake((lane, key)));
    }

    /// Takes in one event of the store.
    pub fn on_event(&mut self, event: &Event, now: Timestamp) {
        self.a3_goes_forward(event.revision);
        if let Some((kind, object)) = key::parse(&self.snapshot.registry, &event.key) {
            let value = (!event.deleted).then_some(&event.value[..]);
            let (before, change) = self.change(&kind, object, value, event.revision, now);
            let report = &mut |promise, how: String| self.counts.broke(promise, &how);
            promises::of_change(before.as_ref().unwrap_or(&self.snapshot), &self.snapshot, &change, report);
        }
        self.seen(event.revision);
    }

    /// A3: what is told is no older than what was.
    fn a3_goes_forward(&self, revision: Revision) {
        if revision.0 < self.snapshot.revision {
            self.counts.broke("A3", &format!("revision {revision} came after {}", self.snapshot.revision));
        }
    }

    /// What counts the promises that were broken.
    pub fn counts(&self) -> &Controllers {
        &self.counts
    }

    /// Takes in one change; what there was before it, where that is kept. Of a kind that logic has no views of (Events
    /// are half of what happens) nothing is compared but what the change itself says: it is made in place, without a
    /// copy of what is around it.
    fn change(
        &mut self,
        kind: &Kind,
        object: ObjectKey,
        value: Option<&[u8]>,
        revision: Revision,
        now: Timestamp,
    ) -> (Option<Snapshot>, Change) {
        if *kind == kinds::EVENT {
            self.expiry.note(&object, value.is_some(), now);
        }
        self.advance(now);
        let was_undecodable = self.snapshot.unreadable_because(kind, &object).is_some();
        let before = Snapshot::has_views_of(kind).then(|| self.snapshot.clone());
        let change = self.snapshot.apply(kind, object.clone(), value, revision.0);
        if let Some(before) = before.as_ref().filter(|_| *kind == kinds::CUSTOM_RESOURCE_DEFINITION) {
            let (plural, group) = object.name.split_once('.').unwrap_or_default();
            let is_new = before.registry.versions(group, plural).is_empty();
            self.unread.extend(self.snapshot.registry.stored(group, plural).filter(|_| is_new).cloned());
        }
        self.look_at_unreadable(was_undecodable, &change);
        for (index, controller) in self.controllers.iter().enumerate() {
            let mut woken = Vec::new();
            let called = catch_unwind(AssertUnwindSafe(|| {
                let before = before.as_ref().unwrap_or(&self.snapshot);
                (controller.keys)(before, &self.snapshot, &change, &mut |key| woken.push(key));
            }));
            if called.is_err() {
                tracing::error!(controller = controller.name, kind = &*kind.kind, key = %object,
                    "finding the keys of a change panicked");
            }
            for key in woken {
                self.wake((index, key));
            }
        }
        (before, change)
    }

    /// Says once that an object does not decode; when it does again, or is gone, what waited for it goes on (A10).
    fn look_at_unreadable(&mut self, was: bool, change: &Change) {
        match (was, self.snapshot.unreadable_because(&change.kind, &change.key)) {
            (false, Some(error)) => tracing::error!(
                kind = &*change.kind.kind, key = %change.key, error,
                "a stored object does not decode; no controller that looks at its kind decides anything until a \
                    person mends or deletes it"
            ),
            (true, None) => std::mem::take(&mut self.held).into_iter().for_each(|item| self.wake(item)),
            _ => {}
        }
    }

    /// The stored objects that do not decode, as `pods default/web-0: why`.
    pub fn undecodable(&self) -> Vec<String> {
        let all = self.snapshot.unreadable.iter();
        all.map(|((kind, key), why)| format!("{} {key}: {why}", kind.plural)).collect()
    }

    /// The next decisions that have something to commit; `None` when there are none now.
    pub fn poll(&mut self, now: Timestamp) -> Option<Work> {
        self.advance(now);
        for item in self.queue.take_due(now) {
            self.wake(item);
        }
        if let Some(work) = self.expire(now) {
            return Some(work);
        }
        while self.flights.len() < MAX_FLIGHTS + self.asking.keys.load(Ordering::Relaxed).min(MAX_ASKING) {
            let (flights, controllers, most_keys) = (&self.flights, self.controllers, self.most_keys);
            let is_open = |lane: usize, waiting: usize| {
                let many = controllers.get(lane).and_then(|controller| controller.many.as_ref());
                many.is_none_or(|many| match flights.rounds(lane) {
                    0 => true,
                    // Less is decided with the next, when more is known.
                    rounds => many.assume.is_some() && rounds < MAX_ROUNDS && waiting >= many.most.min(most_keys),
                })
            };
            let Some(lane) = self.queue.next_lane(is_open) else {
                if self.expand() {
                    continue;
                }
                return None;
            };
            if let Some(work) = self.decide(lane, now) {
                return Some(work);
            }
        }
        None
    }

    /// Wakes all keys of a controller that was asked to look at them all, where it has nothing else left to decide.
    fn expand(&mut self) -> bool {
        let free = self.wake_all.iter().copied().find(|lane| !self.flights.has_lane(*lane));
        let Some(lane) = free else { return false };
        self.wake_all.remove(&lane);
        let many = self.controllers.get(lane).and_then(|controller| controller.many.as_ref());
        for key in many.map(|many| (many.all)(&self.snapshot)).unwrap_or_default() {
            self.wake((lane, key));
        }
        true
    }

    fn expire(&mut self, now: Timestamp) -> Option<Work> {
        if self.flights.has_lane(EXPIRY) {
            return None;
        }
        let expired = self.expiry.due(now);
        if expired.is_empty() {
            return None;
        }
        let key = ObjectKey::new("", "");
        let part = Part { item: (EXPIRY, key.clone()), key, decision: Decision::default() };
        self.flights.begin_round();
        self.flights.start(&part.item, &part.decision, false);
        Some(Work { controller: "event-ttl", parts: vec![part], expired, most_writes: usize::MAX })
    }

    /// Decides the next keys of a controller.
    fn decide(&mut self, lane: usize, now: Timestamp) -> Option<Work> {
        let controller = self.controllers.get(lane)?;
        let keys = self.queue.pop(lane, controller.many.as_ref().map_or(1, |many| many.most.min(self.most_keys)));
        self.flights.begin_round();
        self.counts.taken(controller.name, keys.len());
        if let Some((kind, key)) = self.snapshot.unreadable_of(controller.reads) {
            let why = mainstay_logic::Waiting::Undecodable { kind: kind.clone(), key: key.clone() };
            for key in keys {
                self.note_waiting(controller.name, (lane, key.clone()), vec![why.clone()]);
                self.held.insert((lane, key));
            }
            return None;
        }
        let assume = controller.many.as_ref().and_then(|many| many.assume);
        let assumed = assume.and_then(|assume| self.assumed(lane, assume));
        let together = match (&controller.many, keys.as_slice()) {
            (Some(many), [_, _, ..]) => {
                attempt(assumed.as_ref().unwrap_or(&self.snapshot), |snapshot| (many.decide)(snapshot, &keys, now))
            }
            _ => None,
        };
        let mut decisions = together.filter(|decisions| decisions.len() == keys.len()).map(Vec::into_iter);
        let (mut parts, mut keys, mut is_cut) = (Vec::with_capacity(keys.len()), keys.into_iter(), false);
        for key in keys.by_ref() {
            let item = (lane, key);
            let decision = match &mut decisions {
                Some(decisions) => decisions.next(),
                // Alone, so that it is known whose decision panicked.
                None => attempt(assumed.as_ref().unwrap_or(&self.snapshot), |snapshot| {
                    (controller.reconcile)(snapshot, &item.1, now)
                }),
            };
            if is_cut {
                // It may rely on the one that has to wait, and is decided anew: at once, or when whoever writes its own
                // objects is done. A set's new pods all wait for the set; each would be decided as often as there are.
                if !decision.is_some_and(|decision| self.flights.waits(&item, &decision)) {
                    self.wake(item);
                }
                continue;
            }
            let Some(decision) = self.accept(controller, &item, decision, now) else { continue };
            if self.flights.waits(&item, &decision) {
                is_cut = true;
                if decisions.is_some() {
                    continue;
                }
                break;
            }
            self.flights.start(&item, &decision, assume.is_some());
            parts.push(Part { key: item.1.clone(), item, decision });
            if decisions.is_none() {
                break;
            }
        }
        keys.for_each(|key| self.wake((lane, key)));
        let first = parts.first()?;
        let most_writes = self.most_writes.get(&first.item).copied().unwrap_or(usize::MAX);
        Some(Work { controller: controller.name, parts, expired: Vec::new(), most_writes })
    }

    /// The snapshot with what a controller has decided and that is not seen yet; `None` where nothing is.
    fn assumed(&mut self, lane: usize, assume: fn(&mut Snapshot, &Write)) -> Option<Snapshot> {
        if !self.flights.has_lane(lane) {
            return None;
        }
        let mut assumed = self.snapshot.clone();
        self.flights.assume(lane).for_each(|write| assume(&mut assumed, write));
        Some(assumed)
    }

    /// Notes what a decision says beside its writes. Gives it back where there is something to commit.
    fn accept(
        &mut self,
        controller: &Controller,
        item: &Item,
        decision: Option<Decision>,
        now: Timestamp,
    ) -> Option<Decision> {
        let decision = match decision {
            Some(decision) if permits(controller, &decision) => decision,
            Some(_) => {
                tracing::error!(controller = controller.name, key = %item.1,
                    "a decision wants what its controller may not; nothing of it is done");
                self.queue.park(item.clone(), now);
                return None;
            }
            None => {
                tracing::error!(controller = controller.name, key = %item.1,
                    "a decision panicked; its key is left alone for a while");
                self.queue.park(item.clone(), now);
                return None;
            }
        };
        let report = &mut |promise, how: String| self.counts.broke(promise, &how);
        promises::of_decision(&self.snapshot, controller.name, &item.1, &decision, now, report);
        if !decision.waiting.is_empty() {
            tracing::debug!(controller = controller.name, key = %item.1, waiting = ?decision.waiting);
        }
        self.note_waiting(controller.name, item.clone(), decision.waiting.clone());
        if let Some(at) = decision.wake_at {
            self.queue.wake_at(item.clone(), at);
        }
        if decision.writes.is_empty() && decision.events.is_empty() {
            self.queue.succeeded(item);
            return None;
        }
        Some(decision)
    }

    /// Counts what was decided.
    pub fn decided(&self, work: &Work, took: Duration) {
        self.counts.decided(work.controller, work.parts.len(), took);
    }

    /// Why a key waits from now on, where it does.
    fn note_waiting(&mut self, controller: &'static str, item: Item, now: Vec<mainstay_logic::Waiting>) {
        if now.is_empty() {
            let before = self.waiting.remove(&item).unwrap_or_default();
            self.counts.waits(controller, &before, &[]);
            return;
        }
        let before = self.waiting.get(&item).map_or(&[][..], Vec::as_slice);
        if before != now {
            self.counts.waits(controller, before, &now);
            self.waiting.insert(item, now);
        }
    }

    /// How the work went that [`Driver::poll`] gave.
    pub fn finished(&mut self, work: Work, finish: &Finish, now: Timestamp) {
        let all = work.parts.len();
        let (revision, done) = match finish {
            Finish::Committed(revision) => (Some(*revision), all),
            Finish::Partly(revision, done) => (Some(*revision), *done),
            Finish::Failed(revision, done) => (*revision, *done),
            Finish::TooLarge(writes) => {
                self.halve(&work, *writes, now);
                (None, 0)
            }
        };
        if !work.expired.is_empty() && !matches!(finish, Finish::Committed(_)) {
            // The first of them are gone: those come round as being absent.
            self.expiry.again(&work.expired, now);
        }
        for (index, part) in work.parts.into_iter().enumerate() {
            let item = part.item;
            if index >= done && self.flights.refute(&item) {
                // Who was told that there is no room, or decided where it is best, did so for what is not. All at once
                // for whatever else is refused meanwhile: a webhook may refuse many, and each again and again (X7).
                self.queue.wake_at((item.0, ObjectKey::new("", "")), now.saturating_add(REFUTED).unwrap_or(now));
            }
            if index < done {
                self.most_writes.remove(&item);
                self.queue.succeeded(&item);
            } else if item.0 == EXPIRY || index == 0 && matches!(finish, Finish::TooLarge(1)) {
                // The timer is set.
            } else if index == done && matches!(finish, Finish::Failed(..)) {
                if let Some(name) = self.name(item.0) {
                    self.counts.retried(name);
                }
                self.queue.failed(item.clone(), now);
            } else {
                self.flights.wake(&item);
            }
            let wake = match revision.filter(|revision| revision.0 > self.snapshot.revision) {
                Some(revision) => {
                    self.flights.committed(&item, revision.0);
                    continue;
                }
                None => self.flights.end(&item),
            };
            wake.into_iter().for_each(|item| self.wake(item));
        }
    }

    /// The next time half as many writes.
    fn halve(&mut self, work: &Work, writes: usize, now: Timestamp) {
        let Some(first) = work.parts.first() else { return };
        if writes > 1 {
            self.most_writes.insert(first.item.clone(), writes / 2);
        } else {
            tracing::error!(controller = work.controller, key = %first.key,
                "a single write breaks a limit of the store");
            self.queue.failed(first.item.clone(), now);
        }
    }

    /// When to poll again even if nothing happens.
    pub fn next_wake(&self) -> Option<Timestamp> {
        [self.queue.next_due(), self.expiry.next_due()].into_iter().flatten().min()
    }

    /// Whether a poll at this time may find something to do.
    pub fn is_due(&self, now: Timestamp) -> bool {
        self.has_work() || !self.unread.is_empty() || self.next_wake().is_some_and(|at| at <= now)
    }

    /// Whether a poll would look at a key now, once the snapshot is new enough.
    pub fn has_work(&self) -> bool {
        self.queue.has_ready() || !self.wake_all.is_empty()
    }

    /// The cluster as the controllers see it.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Why each key of each controller waits.
    pub fn waiting(&self) -> impl Iterator<Item = (&'static str, &ObjectKey, &[mainstay_logic::Waiting])> {
        self.waiting
            .iter()
            .filter_map(|((index, key), waiting)| Some((self.controllers.get(*index)?.name, key, waiting.as_slice())))
    }
}

/// What a controller says, unless it panics.
fn attempt<T>(snapshot: &Snapshot, decide: impl FnOnce(&Snapshot) -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(|| decide(snapshot))).ok()
}

/// Whether every write of the decision is one that the controller may make.
fn permits(controller: &Controller, decision: &Decision) -> bool {
    decision.writes.iter().all(|write| {
        let (verb, kind) = match write {
            Write::Create { kind, .. } => (Verb::Create, kind),
            Write::Patch { kind, status: true, .. } => (Verb::PatchStatus, kind),
            Write::Patch { kind, .. } => (Verb::Patch, kind),
            Write::Delete { kind, .. } => (Verb::Delete, kind),
            Write::Bind { .. } => (Verb::Bind, &kinds::POD),
            Write::Release { .. } => (Verb::Delete, &kinds::POD),
        };
        controller.permits.iter().any(|(may, plural)| *may == verb && (*plural == "*" || *plural == kind.plural))
    })
}

#[cfg(test)]
mod tests;
