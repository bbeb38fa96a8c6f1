//! The connections that there are: so many and no more, and one client cannot have them all (X5).
//!
//! When all are taken, a newcomer gets the place of the one that was silent for longest among those of the address that
//! has most. NFS over TCP keeps nothing in a connection: who was cut off connects again when it has something to ask.

use std::collections::BTreeMap;
use std::net::{IpAddr, Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// All connections.
#[derive(Debug)]
pub struct Slots {
    most: usize,
    /// Counts calls: who was heard when.
    clock: AtomicU64,
    taken: Mutex<BTreeMap<u64, Arc<Taken>>>,
}

#[derive(Debug)]
struct Taken {
    address: IpAddr,
    stream: TcpStream,
    /// By the clock of calls.
    last_heard: AtomicU64,
    /// Calls that are being carried out.
    under_way: AtomicU64,
}

/// A connection's place, given back when it is dropped.
#[derive(Debug)]
pub struct Slot {
    slots: Arc<Slots>,
    taken: Arc<Taken>,
    id: u64,
}

impl Slots {
    /// So many at one time.
    pub fn new(most: usize) -> Self {
        Self { most, clock: AtomicU64::new(0), taken: Mutex::default() }
    }

    fn taken(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Taken>>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a newcomer; where all are taken somebody else's, who is cut off.
    pub fn take(self: &Arc<Self>, address: IpAddr, stream: TcpStream) -> Slot {
        let mut all = self.taken();
        if all.len() >= self.most
            && let Some(id) = least_missed(&all)
            && let Some(gone) = all.remove(&id)
        {
            tracing::warn!(of = %gone.address, newcomer = %address, "all connections are taken: one is closed");
            // One that is closed already is what is wanted.
            let _ = gone.stream.shutdown(Shutdown::Both);
        }
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        let taken = Arc::new(Taken { address, stream, last_heard: AtomicU64::new(now), under_way: AtomicU64::new(0) });
        // Each number is given once.
        all.insert(now, taken.clone());
        Slot { slots: self.clone(), taken, id: now }
    }
}

/// Of the address with most connections, the one that was heard of least lately; one with a call under way, whose
/// answer would be lost, only where all of them have one.
fn least_missed(all: &BTreeMap<u64, Arc<Taken>>) -> Option<u64> {
    let mut counts: BTreeMap<IpAddr, usize> = BTreeMap::new();
    all.values().for_each(|taken| *counts.entry(taken.address).or_default() += 1);
    let rank = |taken: &Taken| {
        let count = counts.get(&taken.address).copied().unwrap_or(0);
        let is_busy = taken.under_way.load(Ordering::Relaxed) > 0;
        (std::cmp::Reverse(count), is_busy, taken.last_heard.load(Ordering::Relaxed))
    };
    all.iter().min_by_key(|(_, taken)| rank(taken)).map(|(id, _)| *id)
}

impl Slot {
    /// A call came.
    pub fn heard(&self) {
        self.taken.under_way.fetch_add(1, Ordering::Relaxed);
        self.taken.last_heard.store(self.slots.clock.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
    }

    /// A call was answered.
    pub fn answered(&self) {
        self.taken.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.taken().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::net::TcpListener;

    #[test]
    fn x5_who_has_most_connections_gives_the_one_it_used_least() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let slots = Arc::new(Slots::new(4));
        let take = |address: &str| {
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (slots.take(address.parse().unwrap(), listener.accept().unwrap().0), client)
        };
        let is_closed = |client: &mut TcpStream| {
            client.set_nonblocking(true).unwrap();
            matches!(client.read(&mut [0]), Ok(0))
        };
        let (honest, mut of_honest) = take("192.0.2.1");
        let (first, mut of_first) = take("192.0.2.66");
        let (second, mut of_second) = take("192.0.2.66");
        let (third, mut of_third) = take("192.0.2.66");
        first.heard();
        let (newcomer, mut of_newcomer) = take("192.0.2.2");
        assert!(is_closed(&mut of_second), "it was silent for longest");
        for client in [&mut of_honest, &mut of_first, &mut of_third, &mut of_newcomer] {
            assert!(!is_closed(client));
        }
        // Who was cut off gives back nothing that is another's by now.
        drop(second);
        let (_again, _of_again) = take("192.0.2.66");
        assert!(is_closed(&mut of_third), "its own address still has most");
        drop((first, third, honest, newcomer));
        assert_eq!(slots.taken().len(), 1);
    }

    #[test]
    fn v4_a_connection_with_a_call_under_way_is_closed_last() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let slots = Arc::new(Slots::new(3));
        let take = |address: &str| {
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (slots.take(address.parse().unwrap(), listener.accept().unwrap().0), client)
        };
        let (busy, _of_busy) = take("192.0.2.66");
        let (idle, mut of_idle) = take("192.0.2.66");
        let _honest = take("192.0.2.1");
        busy.heard();
        idle.heard();
        idle.answered();
        let _newcomer = take("192.0.2.2");
        of_idle.set_nonblocking(true).unwrap();
        assert!(matches!(of_idle.read(&mut [0]), Ok(0)), "the other was heard of before, and waits for its answer");
        assert_eq!(slots.taken().len(), 3);
    }
}
