//! The driver in production and in the simulator.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use mainstay_logic::Controller;
use mainstay_logic::measured::Measured;
use mainstay_store::{CommitError, Committed, WatchError, Watcher};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{Asking, Compiled, Driver, Finish, Work, compile, compile_asking};
use crate::api::Api;
use crate::dynamic::Session;
use crate::instruments::Controllers;

/// Decisions in a row before what happens meanwhile is looked at.
const BURST: usize = 256;
/// Events that are taken in before decisions are made on what they say.
const MAX_EVENTS: usize = 10_000;
/// Events that nothing is decided on are taken in so many at a time without a blocking thread.
const MAX_IDLE_EVENTS: usize = 64;
/// The longest sleep without looking at the clock: it may be set, and timers are in its time.
const MAX_SLEEP: Duration = Duration::from_secs(3600);
/// How long the driver waits after the disk has failed.
const DISK_PAUSE: Duration = Duration::from_secs(1);

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

/// Takes in what has happened; whether the watch has fallen behind.
fn drain(driver: &mut Driver, watcher: &mut Watcher, now: Timestamp, most: usize) -> Result<(), WatchError> {
    for _ in 0..most {
        let Some(event) = watcher.try_next()? else { break };
        driver.on_event(&event, now);
    }
    Ok(())
}

/// One decision, made and committed in the caller's thread. Whether there was one. For the simulator, which calls
/// [`Driver::load`] first.
pub fn step(api: &Api, driver: &mut Driver, watcher: &mut Watcher, now: Timestamp) -> Result<bool, WatchError> {
    drain(driver, watcher, now, usize::MAX)?;
    if driver.read_new_kinds(&api.store, now).is_err() {
        *watcher = driver.load(&api.store, now).map_err(|_| WatchError::Closed)?;
    }
    let Some(work) = driver.poll(now) else { return Ok(false) };
    let compiled = compile(api, &work);
    let finish = outcome(&compiled, api.store.commit_blocking(compiled.txn.clone()), &work);
    driver.finished(work, &finish, now);
    drain(driver, watcher, now, usize::MAX)?;
    Ok(true)
}

/// The driver and its watch: what goes to a blocking thread and comes back.
struct Seat {
    api: Api,
    driver: Driver,
    watcher: Watcher,
}

/// What came of a commit: the work, how it went, and whether the disk failed.
type Done = (Work, Finish, bool);

impl Seat {
    /// Takes in what has happened and decides. `None` when the store cannot be read any more.
    fn turn(mut self) -> Option<(Self, Vec<Work>)> {
        let now = self.api.now();
        let drained = match drain(&mut self.driver, &mut self.watcher, now, MAX_EVENTS) {
            Ok(()) => self.driver.read_new_kinds(&self.api.store, now).is_ok(),
            Err(WatchError::Lagged { .. }) => false,
            Err(WatchError::Closed) => return None,
        };
        if !drained {
            match self.driver.load(&self.api.store, now) {
                Ok(fresh) => self.watcher = fresh,
                Err(error) => {
                    tracing::error!(%error, "the driver could not read the store");
                    return None;
                }
            }
        }
        let mut works = Vec::new();
        while works.len() < BURST {
            let begun = std::time::Instant::now();
            let Some(work) = self.driver.poll(now) else { break };
            self.driver.decided(&work, begun.elapsed());
            works.push(work);
        }
        Some((self, works))
    }
}

/// Counts keys as waiting for webhooks while it is there.
struct Waits<'a>(&'a Asking, usize);

impl<'a> Waits<'a> {
    fn begin(asking: &'a Asking, keys: usize) -> Self {
        asking.keys.fetch_add(keys, Ordering::Relaxed);
        // There is room for others now.
        asking.more.notify_one();
        Self(asking, keys)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.keys.fetch_sub(self.1, Ordering::Relaxed);
    }
}

/// Prepares one decision, with whatever webhooks make of it. `None` where that failed.
async fn prepare(api: &Api, work: &Work, asking: &Asking) -> Option<Compiled> {
    let user = || crate::auth::User::controller(work.controller);
    let session = api.hooks.now().map(|set| Arc::new(Session::of_controller(set, &user())));
    loop {
        let compiled = catch_unwind(AssertUnwindSafe(|| compile_asking(api, work, session.as_ref())));
        let Ok(compiled) = compiled else {
            tracing::error!(controller = work.controller, "preparing a decision panicked");
            return None;
        };
        let Some(session) = session.as_ref().filter(|session| session.is_suspended()) else { return Some(compiled) };
        let _waits = Waits::begin(asking, work.parts.len());
        if let Err(status) = session.settle(api).await {
            tracing::debug!(controller = work.controller, message = %status.message, "webhooks could not be asked");
            return None;
        }
    }
}

/// Prepares and commits one decision.
async fn commit(api: Api, work: Work, asking: Arc<Asking>) -> Done {
    let Some(compiled) = prepare(&api, &work, &asking).await else {
        return (work, Finish::Failed(None, 0), false);
    };
    let committed = api.commit(compiled.txn.clone()).await;
    let is_broken = matches!(committed, Err(CommitError::Io(_) | CommitError::Full | CommitError::Unreached(_)));
    let finish = outcome(&compiled, committed, &work);
    (work, finish, is_broken)
}

/// Runs the controllers until the server stops. Woken by the store's events and by the driver's timers, never by
/// polling. Decisions are made on a blocking thread and committed by tasks, many side by side. `undecodable` is kept at
/// [`Driver::undecodable`], for `/readyz`; what is done is counted in `counts`; what is `measured` is shown to the
/// controllers.
pub async fn run(
    api: Api,
    controllers: &'static [Controller],
    undecodable: watch::Sender<Vec<String>>,
    counts: Arc<Controllers>,
    mut measured: watch::Receiver<Arc<Measured>>,
    mut closing: watch::Receiver<bool>,
) {
    let loaded = tokio::task::spawn_blocking({
        let api = api.clone();
        move || {
            let mut driver = Driver::new(controllers).counted(counts).steady();
            let watcher = driver.load(&api.store, api.now()).ok()?;
            Some(Seat { api, driver, watcher })
        }
    });
    let Ok(Some(mut seat)) = loaded.await else { return };
    let asking = seat.driver.asking();
    let mut commits: JoinSet<Done> = JoinSet::new();
    while !*closing.borrow() {
        let mut is_broken = false;
        // Before the turn: what a commit's end wakes is decided in it, not slept upon.
        while let Some(done) = commits.try_join_next() {
            let Some(failed) = finish(&mut seat.driver, done, api.now()) else { return };
            is_broken |= failed;
        }
        let Ok(Some((back, works))) = tokio::task::spawn_blocking(move || seat.turn()).await else { return };
        seat = back;
        note_undecodable(&seat.driver, &undecodable);
        let is_busy = !works.is_empty();
        works.into_iter().for_each(|work| drop(commits.spawn(commit(api.clone(), work, asking.clone()))));
        if !is_busy && !is_broken {
            let (news, stop) = (&mut measured, &mut closing);
            match wait(&api, &mut seat, &mut commits, &asking, &undecodable, news, stop).await {
                Some(failed) => is_broken = failed,
                None => return,
            }
        }
        if is_broken {
            pause(&mut closing, DISK_PAUSE).await;
        }
    }
}

/// Waits until there may be something to decide; whether the disk failed meanwhile. `None` when all is over. What no
/// controller looks at is taken in here, and costs no turn on a blocking thread.
async fn wait(
    api: &Api,
    seat: &mut Seat,
    commits: &mut JoinSet<Done>,
    asking: &Asking,
    undecodable: &watch::Sender<Vec<String>>,
    measured: &mut watch::Receiver<Arc<Measured>>,
    closing: &mut watch::Receiver<bool>,
) -> Option<bool> {
    for _ in 0..MAX_IDLE_EVENTS {
        // Whatever is left to be taken in wakes the watch at once.
        let sleep = seat.driver.next_wake().map_or(MAX_SLEEP, |at| {
            Duration::try_from(at.duration_since(api.now())).unwrap_or(Duration::ZERO).min(MAX_SLEEP)
        });
        tokio::select! {
            event = seat.watcher.next() => match event {
                Ok(event) => {
                    seat.driver.on_event(&event, api.now());
                    note_undecodable(&seat.driver, undecodable);
                }
                Err(WatchError::Lagged { .. }) => break,
                Err(WatchError::Closed) => return None,
            },
            Ok(()) = measured.changed() => {
                let newest = measured.borrow_and_update().clone();
                seat.driver.measured(newest);
            }
            Some(done) = commits.join_next() => if finish(&mut seat.driver, done, api.now())? {
                return Some(true);
            },
            () = asking.more.notified() => break,
            () = tokio::time::sleep(sleep) => break,
            _ = closing.wait_for(|closing| *closing) => return None,
        }
        if seat.driver.is_due(api.now()) {
            break;
        }
    }
    Some(false)
}

/// Takes in how a commit went; whether the disk failed. `None` where its task broke: its keys would be under way for
/// ever, so that the driver has to begin anew.
fn finish(driver: &mut Driver, done: Result<Done, tokio::task::JoinError>, now: Timestamp) -> Option<bool> {
    match done {
        Ok((work, finish, is_broken)) => {
            driver.finished(work, &finish, now);
            Some(is_broken)
        }
        Err(error) => {
            tracing::error!(%error, "committing a decision broke; the controllers begin anew");
            None
        }
    }
}

fn note_undecodable(driver: &Driver, undecodable: &watch::Sender<Vec<String>>) {
    undecodable.send_if_modified(|known| {
        let is_news = known.len() != driver.snapshot().unreadable.size();
        if is_news {
            *known = driver.undecodable();
        }
        is_news
    });
}

async fn pause(closing: &mut watch::Receiver<bool>, time: Duration) {
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        _ = closing.wait_for(|closing| *closing) => {}
    }
}
