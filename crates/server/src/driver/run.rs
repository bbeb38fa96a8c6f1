//! The driver in production: [`Seat`]'s turns on a blocking thread, commits as tasks, sleeps.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use mainstay_logic::Controller;
use mainstay_logic::measured::Measured;
use mainstay_store::WatchError;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::seat::{DISK_PAUSE, Done, Most, Seat};
use super::{Asking, Compiled, Driver, Work, compile_asking};
use crate::api::Api;
use crate::dynamic::Session;
use crate::instruments::Controllers;

/// Events that nothing is decided on are taken in so many at a time without a blocking thread.
const MAX_IDLE_EVENTS: usize = 64;

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

/// Prepares and commits decisions that were made together, in as many transactions as it takes: they rely on those
/// before them, which are then done, so none is made anew because a transaction was full.
async fn commit(api: Api, mut work: Work, asking: Arc<Asking>) -> Vec<Done> {
    let mut all = Vec::new();
    loop {
        let Some(mut compiled) = prepare(&api, &work, &asking).await else {
            all.push(Done::unprepared(work));
            return all;
        };
        let committed = api.commit(std::mem::take(&mut compiled.txn)).await;
        let mut done = Done::of(work, &compiled, committed);
        let rest = done.split();
        all.push(done);
        match rest {
            Some(rest) => work = rest,
            None => return all,
        }
    }
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
        move || Seat::begin(api, Driver::new(controllers).counted(counts).steady(), |watcher| watcher)
    });
    let Ok(Ok(mut seat)) = loaded.await else { return };
    let asking = seat.driver.asking();
    let mut commits: JoinSet<Vec<Done>> = JoinSet::new();
    while !*closing.borrow() {
        let mut is_broken = false;
        // Before the turn: what a commit's end wakes is decided in it, not slept upon.
        while let Some(done) = commits.try_join_next() {
            let Some(failed) = finish(&mut seat, done, api.now()) else { return };
            is_broken |= failed;
        }
        let turn = tokio::task::spawn_blocking(move || {
            let works = seat.turn(seat.api.now(), Most::USUAL)?;
            Some((seat, works))
        });
        let Ok(Some((back, works))) = turn.await else { return };
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
    commits: &mut JoinSet<Vec<Done>>,
    asking: &Asking,
    undecodable: &watch::Sender<Vec<String>>,
    measured: &mut watch::Receiver<Arc<Measured>>,
    closing: &mut watch::Receiver<bool>,
) -> Option<bool> {
    for _ in 0..MAX_IDLE_EVENTS {
        // Whatever is left to be taken in wakes the watch at once.
        let sleep = seat.sleep(api.now());
        tokio::select! {
            event = seat.wire.next() => match event {
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
            Some(done) = commits.join_next() => if finish(seat, done, api.now())? {
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
fn finish(seat: &mut Seat, done: Result<Vec<Done>, tokio::task::JoinError>, now: Timestamp) -> Option<bool> {
    match done {
        Ok(all) => {
            // Each is finished, whatever came of the others.
            let broken: Vec<bool> = all.into_iter().map(|done| seat.finished(done, now)).collect();
            Some(broken.contains(&true))
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
