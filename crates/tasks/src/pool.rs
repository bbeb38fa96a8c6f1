//! Blocking work in pools of their own: what hangs in one (a dead file server) takes no thread from another.
//!
//! The threads are tokio's; each pool only ever has so many of them, and of these no target (a server's name) has all.
//! The sum of the pools' bounds must stay below the runtime's `max_blocking_threads`.

use std::time::Duration;

use crate::shares::Shares;

/// How long work that may hang waits for a thread before it is refused.
const WAIT: Duration = Duration::from_secs(15);

/// A number of threads for one kind of blocking work.
#[derive(Clone, Debug)]
pub struct Pool {
    what: &'static str,
    each: u32,
    shares: Shares,
    /// `None`: as long as it takes.
    wait: Option<Duration>,
}

/// Why work was not done.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PoolError {
    /// All threads that this target may have are in use.
    #[error("{what}: {count} calls to {target} have not come back yet; the next is tried when one of them has")]
    Busy { what: &'static str, target: String, count: u32 },
    /// The work panicked.
    #[error("{what}: {why}")]
    Broken { what: &'static str, why: String },
}

impl Pool {
    /// `all` threads, of which one target gets at most `each`. `what` is what they do, for errors.
    pub fn new(what: &'static str, all: u32, each: u32) -> Self {
        Self { what, each, shares: Shares::new(all, each), wait: Some(WAIT) }
    }

    /// The same for work that takes its time and always comes back: the next waits until there is a thread.
    pub fn patient(what: &'static str, all: u32, each: u32) -> Self {
        Self { wait: None, ..Self::new(what, all, each) }
    }

    /// Does blocking work on behalf of a target. The thread is given back when the work returns, also when nobody waits
    /// for it any more.
    ///
    /// # Errors
    /// [`PoolError::Busy`] after 15 s without a free thread, unless the pool is patient.
    pub async fn run<T: Send + 'static>(
        &self,
        target: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PoolError> {
        let waiting = self.shares.take(target, 1);
        let share = match self.wait {
            None => waiting.await,
            Some(wait) => tokio::time::timeout(wait, waiting).await.map_err(|_| PoolError::Busy {
                what: self.what,
                target: target.to_owned(),
                count: self.each,
            })?,
        };
        let done = tokio::task::spawn_blocking(move || {
            let _share = share;
            work()
        });
        done.await.map_err(|error| PoolError::Broken { what: self.what, why: error.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[tokio::test]
    async fn v11_what_hangs_at_one_target_takes_no_thread_from_another() {
        let pool = Pool { wait: Some(Duration::from_millis(50)), ..Pool::new("mounting", 4, 2) };
        let (release, hang) = mpsc::channel::<()>();
        let hang = std::sync::Arc::new(std::sync::Mutex::new(hang));
        let dead: Vec<_> = (0..2)
            .map(|_| {
                let (pool, hang) = (pool.clone(), hang.clone());
                tokio::spawn(async move { pool.run("dead", move || drop(hang.lock().map(|hang| hang.recv()))).await })
            })
            .collect();
        while pool.shares.try_take("dead", 1).is_some() {
            tokio::task::yield_now().await;
        }
        let refused = pool.run("dead", || ()).await.expect_err("both of its threads hang");
        assert!(refused.to_string().contains("2 calls to dead have not come back yet"), "{refused}");
        assert_eq!(pool.run("alive", || 7).await, Ok(7));
        drop(release);
        for hung in dead {
            hung.await.expect("joined").expect("came back");
        }
        assert_eq!(pool.run("dead", || 8).await, Ok(8));
    }
}
