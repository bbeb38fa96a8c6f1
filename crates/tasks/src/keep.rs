//! Long-lived tasks. Each has an owner ([`keep`]) that begins it anew, from what it can observe then, when it panics or
//! ends; [`Health`] says which are down, for `/readyz` and `/livez`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::lock;

/// The pause before a task that failed begins anew; doubles with each failure in a row up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause between two beginnings.
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// A task that has failed counts as well again when it has run for so long.
const STEADY: Duration = Duration::from_secs(10);

/// How the long-lived tasks of a process are. Cloning shares it.
#[derive(Clone, Default, Debug)]
pub struct Health {
    tasks: Arc<Mutex<BTreeMap<&'static str, State>>>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    /// Failures in a row.
    failures: u32,
    /// Since when it runs; `None` while it is down.
    since: Option<Instant>,
}

impl Health {
    /// Every task by name, and whether it is well: it runs, and if it had failed, has done so for a while.
    pub fn tasks(&self) -> Vec<(&'static str, bool)> {
        let is_well = |state: &State| state.since.is_some_and(|at| state.failures == 0 || at.elapsed() >= STEADY);
        lock(&self.tasks).iter().map(|(name, state)| (*name, is_well(state))).collect()
    }

    /// Whether all tasks are well.
    pub fn is_well(&self) -> bool {
        self.tasks().iter().all(|(_, is_well)| *is_well)
    }

    fn begins(&self, name: &'static str) {
        let mut tasks = lock(&self.tasks);
        let state = tasks.entry(name).or_insert(State { failures: 0, since: None });
        state.since = Some(Instant::now());
    }

    /// Notes an end; how many there were in a row.
    fn ended(&self, name: &'static str) -> u32 {
        let mut tasks = lock(&self.tasks);
        let state = tasks.entry(name).or_insert(State { failures: 0, since: None });
        let was_steady = state.since.take().is_some_and(|at| at.elapsed() >= STEADY);
        state.failures = if was_steady { 1 } else { state.failures.saturating_add(1) };
        state.failures
    }
}

/// Runs what `make` makes for ever: when it panics or returns, it is made anew after a pause of at most 10 s. Dropping
/// (or aborting) this ends it too.
pub async fn keep<F>(health: Health, name: &'static str, make: impl FnMut() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let (_open, closing) = watch::channel(false);
    keep_until(health, name, closing, make).await;
}

/// As [`keep`], until `closing` is true, or nobody is there any more who could say so: then the task ends when it wants
/// to, and this with it.
pub async fn keep_until<F>(
    health: Health,
    name: &'static str,
    mut closing: watch::Receiver<bool>,
    mut make: impl FnMut() -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let is_over = |closing: &watch::Receiver<bool>| *closing.borrow() || closing.has_changed().is_err();
    while !is_over(&closing) {
        health.begins(name);
        let mut task = Aborting(tokio::spawn(make()));
        match (&mut task.0).await {
            Ok(()) if is_over(&closing) => return,
            Ok(()) => tracing::warn!(task = name, "ended; begun anew"),
            Err(error) => tracing::error!(task = name, %error, "broke; begun anew"),
        }
        let failures = health.ended(name);
        let pause = FIRST_PAUSE.saturating_mul(1 << (failures - 1).min(10)).min(MAX_PAUSE);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = closing.wait_for(|closing| *closing) => return,
        }
    }
}

/// Ends a task with its owner.
struct Aborting(tokio::task::JoinHandle<()>);

impl Drop for Aborting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn s9_a_task_that_panics_or_ends_is_begun_anew_and_is_not_well_meanwhile() {
        let health = Health::default();
        let begun = Arc::new(AtomicUsize::new(0));
        let count = begun.clone();
        let keeper = tokio::spawn(keep(health.clone(), "t", move || {
            let round = count.fetch_add(1, Ordering::Relaxed);
            async move {
                match round {
                    0 => panic!("a planted panic"),
                    1 => {}
                    _ => std::future::pending().await,
                }
            }
        }));
        while begun.load(Ordering::Relaxed) < 3 {
            tokio::task::yield_now().await;
        }
        assert_eq!(health.tasks(), [("t", false)], "it has failed a moment ago");
        keeper.abort();
    }

    #[tokio::test]
    async fn s9_nothing_is_begun_anew_for_an_owner_that_has_gone() {
        let (open, closing) = watch::channel(false);
        let begun = Arc::new(AtomicUsize::new(0));
        let (count, ends) = (begun.clone(), closing.clone());
        let keeper = tokio::spawn(keep_until(Health::default(), "t", closing, move || {
            count.fetch_add(1, Ordering::Relaxed);
            let mut ends = ends.clone();
            async move { drop(ends.wait_for(|closing| *closing).await) }
        }));
        while begun.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        drop(open);
        keeper.await.expect("it ends");
        assert_eq!(begun.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn what_is_kept_ends_with_its_keeper() {
        let alive = Arc::new(());
        let held = alive.clone();
        let keeper = tokio::spawn(keep(Health::default(), "t", move || {
            let held = held.clone();
            async move {
                std::future::pending::<()>().await;
                drop(held);
            }
        }));
        while Arc::strong_count(&alive) < 3 {
            tokio::task::yield_now().await;
        }
        keeper.abort();
        while Arc::strong_count(&alive) > 1 {
            tokio::task::yield_now().await;
        }
    }
}
