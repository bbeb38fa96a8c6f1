//! The driver in production and in the simulator.

use std::time::Duration;

use jiff::Timestamp;
use mainstay_logic::Controller;
use mainstay_store::{CommitError, Committed, WatchError, Watcher};
use tokio::sync::watch;

use super::{Compiled, Driver, Finish, Work, compile};
use crate::api::Api;

/// Decisions in a row before other tasks of the runtime get their turn.
const BURST: usize = 16;
/// The longest sleep without looking at the clock: it may be set, and timers are in its time.
const MAX_SLEEP: Duration = Duration::from_secs(3600);
/// How long the driver waits after the disk has failed.
const DISK_PAUSE: Duration = Duration::from_secs(1);

fn outcome(compiled: &Compiled, committed: Result<Committed, CommitError>, work: &Work) -> Finish {
    let revision = match committed {
        Ok(committed) => committed.last,
        Err(CommitError::Expectation { .. }) => return Finish::Failed(None),
        Err(CommitError::Invalid(reason)) => {
            tracing::debug!(controller = work.controller, key = %work.key, %reason, writes = compiled.writes, "a decision is cut");
            return Finish::TooLarge(compiled.writes);
        }
        Err(error) => {
            tracing::warn!(controller = work.controller, key = %work.key, %error, "a decision could not be committed");
            return Finish::Failed(None);
        }
    };
    match &compiled.refused {
        Some(status) => {
            tracing::debug!(controller = work.controller, key = %work.key, message = %status.message, "a write was refused");
            Finish::Failed(Some(revision))
        }
        None if compiled.is_cut => Finish::Partly(revision),
        None => Finish::Committed(revision),
    }
}

/// Takes in what has happened; whether the watch has fallen behind.
fn drain(driver: &mut Driver, watcher: &mut Watcher, now: Timestamp) -> Result<(), WatchError> {
    while let Some(event) = watcher.try_next()? {
        driver.on_event(&event, now);
    }
    Ok(())
}

/// One decision, made and committed in the caller's thread. Whether there was one. For the simulator, which calls
/// [`Driver::load`] first.
pub fn step(api: &Api, driver: &mut Driver, watcher: &mut Watcher, now: Timestamp) -> Result<bool, WatchError> {
    drain(driver, watcher, now)?;
    let Some(work) = driver.poll(now) else { return Ok(false) };
    let compiled = compile(api, &work);
    let finish = outcome(&compiled, api.store.commit_blocking(compiled.txn.clone()), &work);
    driver.finished(work, &finish, now);
    drain(driver, watcher, now)?;
    Ok(true)
}

/// Runs the controllers until the server stops. Woken by the store's events and by the driver's timers, never by
/// polling. `undecodable` is kept at [`Driver::undecodable`], for `/readyz`.
pub async fn run(
    api: Api,
    controllers: &'static [Controller],
    undecodable: watch::Sender<Vec<String>>,
    mut closing: watch::Receiver<bool>,
) {
    let mut driver = Driver::new(controllers);
    let Ok(mut watcher) = driver.load(&api.store, api.now()) else { return };
    let mut in_a_row = 0;
    while !*closing.borrow() {
        let now = api.now();
        match drain(&mut driver, &mut watcher, now) {
            Ok(()) => {}
            Err(WatchError::Lagged { .. }) => match driver.load(&api.store, now) {
                Ok(fresh) => watcher = fresh,
                Err(error) => {
                    tracing::error!(%error, "the driver could not read the store");
                    return;
                }
            },
            Err(WatchError::Closed) => return,
        }
        undecodable.send_if_modified(|known| {
            let is_news = known.len() != driver.snapshot().unreadable.size();
            if is_news {
                *known = driver.undecodable();
            }
            is_news
        });
        if let Some(work) = driver.poll(now) {
            let compiled = compile(&api, &work);
            let committed = api.store.commit(compiled.txn.clone()).await;
            let is_broken = matches!(committed, Err(CommitError::Io(_) | CommitError::Full));
            let finish = outcome(&compiled, committed, &work);
            driver.finished(work, &finish, now);
            if is_broken {
                pause(&mut closing, DISK_PAUSE).await;
            }
            in_a_row += 1;
            if in_a_row >= BURST {
                in_a_row = 0;
                tokio::task::yield_now().await;
            }
            continue;
        }
        in_a_row = 0;
        let sleep = driver.next_wake().map_or(MAX_SLEEP, |at| {
            Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO).min(MAX_SLEEP)
        });
        tokio::select! {
            event = watcher.next() => match event {
                Ok(event) => driver.on_event(&event, api.now()),
                Err(WatchError::Lagged { .. }) => {}
                Err(WatchError::Closed) => return,
            },
            () = tokio::time::sleep(sleep) => {}
            _ = closing.wait_for(|closing| *closing) => return,
        }
    }
}

async fn pause(closing: &mut watch::Receiver<bool>, time: Duration) {
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        _ = closing.wait_for(|closing| *closing) => {}
    }
}
