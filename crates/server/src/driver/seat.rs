//! What the driver does between two sleeps, without tasks and without a clock of its own: takes in what has happened,
//! decides, and takes in how commits went. Production's loop ([`super::run`]) and the simulator both drive it.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use mainstay_store::{CommitError, Committed, Event, ReadError, Store, WatchError, Watcher};

use super::{Compiled, Driver, Finish, Work, compile};
use crate::api::Api;

/// The longest sleep without looking at the clock: it may be set, and timers are in its time.
const MAX_SLEEP: Duration = Duration::from_secs(3600);
/// How long the driver waits after the disk has failed.
pub const DISK_PAUSE: Duration = Duration::from_secs(1);

/// Where the driver's events come from: the store's watch, or the simulator's, on which things go wrong.
pub trait Wire {
    /// The store was read as a whole: its changes come from here from now on.
    fn attach(&mut self, watcher: Watcher);

    /// The next event, where there is one now.
    fn try_next(&mut self) -> Result<Option<Event>, WatchError>;
}

impl Wire for Watcher {
    fn attach(&mut self, watcher: Watcher) {
        *self = watcher;
    }

    fn try_next(&mut self) -> Result<Option<Event>, WatchError> {
        Self::try_next(self)
    }
}

/// How much is done in one turn.
#[derive(Clone, Copy, Debug)]
pub struct Most {
    /// Events that are taken in before decisions are made on what they say.
    pub events: usize,
    /// Decisions in a row before what happens meanwhile is looked at.
    pub decisions: usize,
}

impl Most {
    /// What production does.
    pub const USUAL: Self = Self { events: 10_000, decisions: 256 };
}

/// The driver, the store that it reads, and its watch: what goes to a blocking thread and comes back.
pub struct Seat<W = Watcher> {
    /// The pipeline, with the store.
    pub api: Api,
    /// The controllers.
    pub driver: Driver,
    /// What feeds the driver.
    pub wire: W,
}

/// What came of a commit.
#[derive(Debug)]
pub struct Done {
    /// What [`Seat::turn`] gave.
    pub work: Work,
    /// How it went.
    pub finish: Finish,
    /// Whether the disk failed: nothing is to be tried for [`DISK_PAUSE`].
    pub is_broken: bool,
}

impl Done {
    /// Of work that could not even be prepared.
    pub fn unprepared(work: Work) -> Self {
        Self { work, finish: Finish::Failed(None, 0), is_broken: false }
    }

    /// Of work that was prepared, and what the store says to it.
    pub fn of(work: Work, compiled: &Compiled, committed: Result<Committed, CommitError>) -> Self {
        let is_broken = matches!(committed, Err(CommitError::Io(_) | CommitError::Full | CommitError::Unreached(_)));
        let finish = outcome(compiled, committed, &work);
        Self { work, finish, is_broken }
    }
}

impl Done {
    /// Where whole decisions are committed and others were left for want of room: those others, to be committed as they
    /// are.
    pub fn split(&mut self) -> Option<Work> {
        let Finish::Partly(revision, done) = self.finish else { return None };
        if done == 0 || done >= self.work.parts.len() || !self.work.expired.is_empty() {
            return None;
        }
        self.finish = Finish::Committed(revision);
        let parts = self.work.parts.split_off(done);
        Some(Work { controller: self.work.controller, parts, expired: Vec::new(), most_writes: usize::MAX })
    }
}

fn outcome(compiled: &Compiled, committed: Result<Committed, CommitError>, work: &Work) -> Finish {
    let key = work.parts.get(compiled.parts).or(work.parts.first()).map(|part| &part.key);
    let revision = match committed {
        Ok(committed) => committed.last,
        Err(CommitError::Expectation { .. }) => return Finish::Failed(None, 0),
        Err(CommitError::Invalid(reason)) => {
            tracing::debug!(controller = work.controller, ?key, %reason, writes = compiled.writes, "a decision is cut");
            return Finish::TooLarge(compiled.writes);
        }
        Err(error) => {
            tracing::warn!(controller = work.controller, ?key, %error, "a decision could not be committed");
            return Finish::Failed(None, 0);
        }
    };
    match &compiled.refused {
        Some(status) => {
            tracing::debug!(controller = work.controller, ?key, message = %status.message, "a write was refused");
            Finish::Failed(Some(revision), compiled.parts)
        }
        None if compiled.is_cut => Finish::Partly(revision, compiled.parts),
        None => Finish::Committed(revision),
    }
}

/// Takes in what has happened. Where the watch has fallen behind, or a kind cannot be read at the revision that the
/// driver is at, all is read anew.
fn observe(
    store: &Store,
    driver: &mut Driver,
    wire: &mut impl Wire,
    now: Timestamp,
    most: usize,
) -> Result<(), WatchError> {
    let is_in_step = match drain(driver, wire, now, most) {
        Ok(()) => driver.read_new_kinds(store, now).is_ok(),
        Err(WatchError::Lagged { .. }) => false,
        Err(WatchError::Closed) => return Err(WatchError::Closed),
    };
    match is_in_step {
        true => Ok(()),
        false => load(store, driver, wire, now).map_err(|error| {
            tracing::error!(%error, "the driver could not read the store");
            WatchError::Closed
        }),
    }
}

fn drain(driver: &mut Driver, wire: &mut impl Wire, now: Timestamp, most: usize) -> Result<(), WatchError> {
    for _ in 0..most {
        let Some(event) = wire.try_next()? else { break };
        driver.on_event(&event, now);
    }
    Ok(())
}

fn load(store: &Store, driver: &mut Driver, wire: &mut impl Wire, now: Timestamp) -> Result<(), ReadError> {
    wire.attach(driver.load(store, now)?);
    Ok(())
}

/// One decision, made and committed in the caller's thread. Whether there was one. For tests, which call
/// [`Driver::load`] first.
pub fn step(api: &Api, driver: &mut Driver, watcher: &mut Watcher, now: Timestamp) -> Result<bool, WatchError> {
    observe(&api.store, driver, watcher, now, usize::MAX)?;
    let Some(work) = driver.poll(now) else { return Ok(false) };
    let compiled = compile(api, &work);
    let done = Done::of(work, &compiled, api.store.commit_blocking(compiled.txn.clone()));
    driver.finished(done.work, &done.finish, now);
    drain(driver, watcher, now, usize::MAX)?;
    Ok(true)
}

impl<W: Wire> Seat<W> {
    /// Reads the store as a whole; `wire` makes of the watch after that what is to feed the driver.
    pub fn begin(api: Api, mut driver: Driver, wire: impl FnOnce(Watcher) -> W) -> Result<Self, ReadError> {
        let watcher = driver.load(&api.store, api.now())?;
        Ok(Self { api, driver, wire: wire(watcher) })
    }

    /// Takes in what has happened and decides. What it gives is to be committed, side by side and in any order, and
    /// each [finished](Self::finished) when that is done; where it gives nothing there is nothing to do until an event,
    /// the end of a commit, or [`Seat::sleep`]. `None` when the store cannot be read any more.
    pub fn turn(&mut self, now: Timestamp, most: Most) -> Option<Vec<Work>> {
        observe(&self.api.store, &mut self.driver, &mut self.wire, now, most.events).ok()?;
        let mut works = Vec::new();
        while works.len() < most.decisions {
            let begun = Instant::now();
            let Some(work) = self.driver.poll(now) else { break };
            self.driver.decided(&work, begun.elapsed());
            works.push(work);
        }
        Some(works)
    }

    /// Takes in how a commit went; whether the disk failed.
    pub fn finished(&mut self, done: Done, now: Timestamp) -> bool {
        self.driver.finished(done.work, &done.finish, now);
        done.is_broken
    }

    /// How long there is nothing to do, if nothing happens.
    pub fn sleep(&self, now: Timestamp) -> Duration {
        self.driver
            .next_wake()
            .map_or(MAX_SLEEP, |at| Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO).min(MAX_SLEEP))
    }

    /// Reads the store as a whole, as where the watch has fallen behind.
    pub fn relist(&mut self, now: Timestamp) -> Result<(), ReadError> {
        load(&self.api.store, &mut self.driver, &mut self.wire, now)
    }
}
