//! Requests of the kernel that wait for a worker. What they take is bounded in memory: beyond that the kernel is asked
//! for no more, so that callers wait there, where they can be killed, instead of being refused by a server that is only
//! slow (V4, V11).

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::wire::Request;

/// What waiting requests may take (bytes).
const MAX_BYTES: usize = 64 << 20;
/// What a request takes besides its body (bytes), with what is noted of it elsewhere.
const OVERHEAD: usize = 512;

/// The queue.
#[derive(Default)]
pub struct Queue {
    waiting: Mutex<Waiting>,
    came: Condvar,
    left: Condvar,
}

#[derive(Default)]
struct Waiting {
    requests: VecDeque<(Instant, Request)>,
    bytes: usize,
}

fn size(request: &Request) -> usize {
    request.body.len().saturating_add(OVERHEAD)
}

impl Queue {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a request, when there is memory for it.
    pub fn push(&self, request: Request) {
        let bytes = size(&request);
        let mut waiting = self.waiting();
        while waiting.bytes > 0 && waiting.bytes.saturating_add(bytes) > MAX_BYTES {
            waiting = self.left.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        waiting.bytes += bytes;
        waiting.requests.push_back((Instant::now(), request));
        self.came.notify_one();
    }

    /// The one that waits for longest, and since when; waits for one.
    pub fn pop(&self) -> (Instant, Request) {
        let mut waiting = self.waiting();
        loop {
            if let Some((since, request)) = waiting.requests.pop_front() {
                waiting.bytes -= size(&request);
                self.left.notify_all();
                return (since, request);
            }
            waiting = self.came.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{TryRecvError, channel};

    use super::*;

    fn request(unique: u64, length: usize) -> Request {
        Request { operation: 0, unique, node: 0, uid: 0, gid: 0, pid: 0, body: vec![0; length] }
    }

    #[test]
    fn v4_v11_many_requests_wait_and_only_their_memory_is_bounded() {
        let queue = Queue::default();
        (0..10_000).for_each(|unique| queue.push(request(unique, 100)));
        (0..10_000).for_each(|unique| assert_eq!(queue.pop().1.unique, unique));
        let (done, pushed) = channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                (0..65).for_each(|unique| queue.push(request(unique, 1 << 20)));
                done.send(()).unwrap();
            });
            while queue.waiting().requests.len() < 63 {
                std::thread::yield_now();
            }
            assert_eq!(pushed.try_recv(), Err(TryRecvError::Empty), "the rest waits for memory");
            (0..65).for_each(|unique| assert_eq!(queue.pop().1.unique, unique));
            pushed.recv().unwrap();
        });
        assert_eq!(queue.waiting().bytes, 0);
    }
}
