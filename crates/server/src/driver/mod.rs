//! Runs the controllers: newest snapshot, decide, commit, tell the queue. Without IO of its own.
//!
//! Whoever owns a [`Driver`] feeds it the store's events, asks [`Driver::poll`] for the next decision, commits what
//! [`compile`] makes of it, and tells [`Driver::finished`]. Production does so in [`run`], the simulator in a loop of
//! its own ([`step`]). It never decides on a snapshot older than its own last commit, so no controller acts twice on
//! what it has not yet seen itself do.

mod commit;
mod events;
mod queue;
mod run;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use jiff::Timestamp;
use mainstay_api::{Kind, ObjectKey, kinds};
use mainstay_logic::decision::Verb;
use mainstay_logic::{Controller, Decision, Snapshot, Write};
use mainstay_store::{Event, Revision, Store, Watcher};

pub use commit::{Compiled, compile};
use events::Expiry;
use queue::{Item, Queue};
pub use run::{run, step};

use crate::api::key;

/// What is to be done next.
#[derive(Debug)]
pub struct Work {
    item: Item,
    /// Who decided.
    pub controller: &'static str,
    /// About what.
    pub key: ObjectKey,
    /// What is to be committed.
    pub decision: Decision,
    /// Events (of the kind Event) whose time is over.
    pub expired: Vec<ObjectKey>,
    /// At most so many of the decision's writes are committed together.
    pub most_writes: usize,
}

/// How it went.
#[derive(Clone, Debug, PartialEq)]
pub enum Finish {
    /// All of it is committed, up to this revision (nothing to write: the store's).
    Committed(Revision),
    /// The first part of it is committed up to this revision; the rest is decided anew at once.
    Partly(Revision),
    /// It (or the rest of it, after this revision) was refused, or somebody else wrote first: decided anew after a
    /// while.
    Failed(Option<Revision>),
    /// So many writes of it together break a limit of the store: decided anew at once, half as many at a time.
    TooLarge(usize),
}

/// The controllers' state between decisions.
pub struct Driver {
    controllers: &'static [Controller],
    snapshot: Snapshot,
    queue: Queue,
    expiry: Expiry,
    /// No decision is made on a snapshot older than this.
    committed: u64,
    /// Why each key that waits does so; for the console, metrics and tests.
    waiting: BTreeMap<Item, Vec<mainstay_logic::Waiting>>,
    /// What is not decided while an object of a kind that it looks at does not decode.
    held: BTreeSet<Item>,
    /// Of keys whose last decision was too large for one transaction: how many of its writes the next may have.
    most_writes: BTreeMap<Item, usize>,
}

/// The place of what is not a controller's: taking away old Events.
const EXPIRY: usize = usize::MAX;

impl Driver {
    /// A driver that knows nothing yet.
    pub fn new(controllers: &'static [Controller]) -> Self {
        Self {
            controllers,
            snapshot: Snapshot::default(),
            queue: Queue::default(),
            expiry: Expiry::default(),
            committed: 0,
            waiting: BTreeMap::new(),
            held: BTreeSet::new(),
            most_writes: BTreeMap::new(),
        }
    }

    /// Takes in the store's whole state, at the start and when the watch has fallen behind. Returns the watch to go
    /// on with.
    pub fn load(&mut self, store: &Store, now: Timestamp) -> Result<Watcher, mainstay_store::ReadError> {
        let page = store.range(b"", None, usize::MAX, None)?;
        let watcher = store.watch("", page.revision)?;
        let mut gone: BTreeMap<_, _> = self.snapshot.metas.iter().map(|(index, _)| (index.clone(), ())).collect();
        // Definitions first: what else there is may be of the kinds that they define.
        let definitions = key::prefix(&kinds::CUSTOM_RESOURCE_DEFINITION, None);
        let (first, others): (Vec<_>, Vec<_>) =
            page.entries.iter().partition(|entry| entry.key.starts_with(&definitions));
        for entry in first.into_iter().chain(others) {
            let Some((kind, object)) = key::parse(&self.snapshot.registry, &entry.key) else { continue };
            gone.remove(&(kind.clone(), object.clone()));
            self.change(&kind, object, Some(&entry.value), page.revision, now);
        }
        for ((kind, object), ()) in gone {
            self.change(&kind, object, None, page.revision, now);
        }
        self.snapshot.revision = page.revision.0;
        Ok(watcher)
    }

    /// Takes in one event of the store.
    pub fn on_event(&mut self, event: &Event, now: Timestamp) {
        if let Some((kind, object)) = key::parse(&self.snapshot.registry, &event.key) {
            let value = (!event.deleted).then_some(&event.value[..]);
            self.change(&kind, object, value, event.revision, now);
        }
        self.snapshot.revision = self.snapshot.revision.max(event.revision.0);
    }

    fn change(&mut self, kind: &Kind, object: ObjectKey, value: Option<&[u8]>, revision: Revision, now: Timestamp) {
        if *kind == kinds::EVENT {
            self.expiry.note(&object, value.is_some(), now);
        }
        let before = self.snapshot.clone();
        let change = self.snapshot.apply(kind, object.clone(), value, revision.0);
        self.look_at_unreadable(&before, &change);
        for (index, controller) in self.controllers.iter().enumerate() {
            let mut woken = Vec::new();
            let called = catch_unwind(AssertUnwindSafe(|| {
                (controller.keys)(&before, &self.snapshot, &change, &mut |key| woken.push(key));
            }));
            if called.is_err() {
                tracing::error!(controller = controller.name, kind = &*kind.kind, key = %object, "finding the keys of a change panicked");
            }
            for key in woken {
                self.queue.wake((index, key));
            }
        }
    }

    /// Says once that an object does not decode; when it does again, or is gone, what waited for it goes on (A10).
    fn look_at_unreadable(&mut self, before: &Snapshot, change: &mainstay_logic::Change) {
        let (was, is) = (
            before.unreadable_because(&change.kind, &change.key),
            self.snapshot.unreadable_because(&change.kind, &change.key),
        );
        match (was, is) {
            (None, Some(error)) => tracing::error!(
                kind = &*change.kind.kind, key = %change.key, error,
                "a stored object does not decode; no controller that looks at its kind decides anything until a person mends or deletes it"
            ),
            (Some(_), None) => std::mem::take(&mut self.held).into_iter().for_each(|item| self.queue.wake(item)),
            _ => {}
        }
    }

    /// The stored objects that do not decode, as `pods default/web-0: why`.
    pub fn undecodable(&self) -> Vec<String> {
        let all = self.snapshot.unreadable.iter();
        all.map(|((kind, key), why)| format!("{} {key}: {why}", kind.plural)).collect()
    }

    /// The next decision that has something to commit; `None` when there is none now.
    pub fn poll(&mut self, now: Timestamp) -> Option<Work> {
        if self.snapshot.revision < self.committed {
            return None;
        }
        let expired = self.expiry.due(now);
        if !expired.is_empty() {
            let key = ObjectKey::new("", "");
            return Some(Work {
                item: (EXPIRY, key.clone()),
                controller: "event-ttl",
                key,
                decision: Decision::default(),
                expired,
                most_writes: usize::MAX,
            });
        }
        while let Some(item) = self.queue.pop(now) {
            let Some(controller) = self.controllers.get(item.0) else { continue };
            if let Some((kind, key)) = self.snapshot.unreadable_of(controller.reads) {
                let why = mainstay_logic::Waiting::Undecodable { kind: kind.clone(), key: key.clone() };
                self.waiting.insert(item.clone(), vec![why]);
                self.held.insert(item);
                continue;
            }
            let decided = catch_unwind(AssertUnwindSafe(|| (controller.reconcile)(&self.snapshot, &item.1, now)));
            let decision = match decided {
                Ok(decision) if permits(controller, &decision) => decision,
                Ok(_) => {
                    tracing::error!(controller = controller.name, key = %item.1, "a decision wants what its controller may not; nothing of it is done");
                    self.queue.park(item, now);
                    continue;
                }
                Err(_) => {
                    tracing::error!(controller = controller.name, key = %item.1, "a decision panicked; its key is left alone for a while");
                    self.queue.park(item, now);
                    continue;
                }
            };
            if decision.waiting.is_empty() {
                self.waiting.remove(&item);
            } else {
                tracing::debug!(controller = controller.name, key = %item.1, waiting = ?decision.waiting);
                self.waiting.insert(item.clone(), decision.waiting.clone());
            }
            if let Some(at) = decision.wake_at {
                self.queue.wake_at(item.clone(), at);
            }
            if !decision.writes.is_empty() || !decision.events.is_empty() {
                let key = item.1.clone();
                let most_writes = self.most_writes.get(&item).copied().unwrap_or(usize::MAX);
                let controller = controller.name;
                return Some(Work { item, controller, key, decision, expired: Vec::new(), most_writes });
            }
            self.queue.succeeded(&item);
        }
        None
    }

    /// How the work went that [`Driver::poll`] gave.
    pub fn finished(&mut self, work: Work, finish: &Finish, now: Timestamp) {
        let revision = match finish {
            Finish::Committed(revision) | Finish::Partly(revision) => Some(*revision),
            Finish::Failed(revision) => *revision,
            Finish::TooLarge(_) => None,
        };
        self.committed = self.committed.max(revision.map_or(0, |revision| revision.0));
        if work.item.0 == EXPIRY {
            match finish {
                Finish::Committed(_) => {}
                // The first of them are gone: those come round as being absent.
                _ => self.expiry.again(&work.expired, now),
            }
            return;
        }
        match finish {
            Finish::Committed(_) => {
                self.most_writes.remove(&work.item);
                self.queue.succeeded(&work.item);
            }
            Finish::TooLarge(writes) if *writes > 1 => {
                self.most_writes.insert(work.item.clone(), writes / 2);
                self.queue.wake(work.item);
            }
            Finish::TooLarge(_) => {
                tracing::error!(controller = work.controller, key = %work.key, "a single write breaks a limit of the store");
                self.queue.failed(work.item, now);
            }
            Finish::Partly(_) => self.queue.wake(work.item),
            Finish::Failed(_) => self.queue.failed(work.item, now),
        }
    }

    /// When to poll again even if nothing happens.
    pub fn next_wake(&self) -> Option<Timestamp> {
        [self.queue.next_due(), self.expiry.next_due()].into_iter().flatten().min()
    }

    /// Whether a poll would look at a key now, once the snapshot is new enough.
    pub fn has_work(&self) -> bool {
        self.queue.has_ready()
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

/// Whether every write of the decision is one that the controller may make.
fn permits(controller: &Controller, decision: &Decision) -> bool {
    decision.writes.iter().all(|write| {
        let (verb, kind) = match write {
            Write::Create { kind, .. } => (Verb::Create, kind),
            Write::Patch { kind, status: true, .. } => (Verb::PatchStatus, kind),
            Write::Patch { kind, .. } => (Verb::Patch, kind),
            Write::Delete { kind, .. } => (Verb::Delete, kind),
            Write::Bind { .. } => (Verb::Bind, &kinds::POD),
        };
        controller.permits.iter().any(|(may, plural)| *may == verb && (*plural == "*" || *plural == kind.plural))
    })
}

#[cfg(test)]
mod tests;
