//! What a linearizable read waits for: that memory shows all that was committed anywhere before. etcd is asked once for
//! all who wait.

use super::feed::{Follower, joined};
use super::wire::{Range, RangeAnswer};
use super::{RANGE, row};
use crate::{ReadError, Revision};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;

/// Reads of etcd's revision on their way at once; who asks meanwhile shares the next one.
const AT_ONCE: usize = 4;
/// How long one member may take.
const ATTEMPT: Duration = Duration::from_secs(2);
/// How long it may take altogether.
const PATIENCE: Duration = Duration::from_secs(10);
/// Before another attempt.
const AGAIN: Duration = Duration::from_millis(50);

/// Who waits for a read.
pub(crate) type Asked = oneshot::Sender<Result<Revision, ReadError>>;

/// Answers those who ask, until nobody can any more.
pub(super) async fn serve(follower: Follower, seen: watch::Receiver<i64>, mut asked: mpsc::Receiver<Asked>) {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    while let Some(first) = asked.recv().await {
        let Ok(turn) = room.clone().acquire_owned().await else { return };
        // The read begins after all of these were asked.
        let mut together = vec![first];
        while let Ok(next) = asked.try_recv() {
            together.push(next);
        }
        let (follower, seen) = (follower.clone(), seen.clone());
        tokio::spawn(async move {
            // After a long silence nobody waits for more than one attempt.
            let deadline = Instant::now() + if follower.is_silent() { Duration::ZERO } else { PATIENCE };
            let least = *seen.borrow();
            let newest = follower.newest(least, deadline).await;
            drop(turn);
            let result = match newest {
                Some(revision) if follower.reached(seen, revision, deadline).await => Ok(row::whole(revision)),
                _ => Err(ReadError::Behind),
            };
            for asked in together {
                // Whoever asked may have gone.
                let _ = asked.send(result);
            }
        });
    }
}

impl Follower {
    /// etcd's revision: of an empty read, which it answers only from the newest state. Where it is less than it was, an
    /// older copy was put in its place: the store is closed (A3). Tried at least once, and again until then.
    pub async fn newest(&self, least: i64, deadline: Instant) -> Option<i64> {
        let nothing = Range { key: joined(&self.prefix, b"\0"), limit: 1, ..Range::default() };
        loop {
            let answer = self.client.call(RANGE, nothing.encode(), ATTEMPT).await;
            if let Ok(answer) = answer.map_err(drop).and_then(|bytes| RangeAnswer::decode(bytes).map_err(drop)) {
                if answer.revision < least {
                    let now = answer.revision;
                    self.close(&format!(
                        "etcd is at revision {now} and was at {least}: an older copy was restored there"
                    ));
                    return None;
                }
                return Some(answer.revision);
            }
            if Instant::now() >= deadline || self.shared.is_closed() {
                return None;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Waits until memory shows a revision; whether it does.
    pub async fn reached(&self, seen: watch::Receiver<i64>, revision: i64, deadline: Instant) -> bool {
        tokio::time::timeout_at(deadline, self.shown(seen, revision)).await.unwrap_or(false)
    }

    /// The same, however long it takes; false where nothing is followed any more.
    pub async fn shown(&self, mut seen: watch::Receiver<i64>, revision: i64) -> bool {
        seen.wait_for(|seen| *seen >= revision).await.is_ok()
    }
}
