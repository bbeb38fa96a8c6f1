//! The memory that calls and answers have while they are worked on: so much and no more (X4), and nobody waits because
//! another address takes all of it and does not read its answers (X5).
//!
//! What fits is given to whoever asks. Beyond that an address gets its share, and one call of each always goes on.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What is smaller is not counted (bytes): all threads together have little of it.
pub const SMALL: usize = 64 << 10;
/// Threads that wait for one address; beyond, its connections are closed.
const MAX_WAITING: usize = 64;

/// All of it.
#[derive(Debug)]
pub struct Room {
    most: usize,
    taken: Mutex<Taken>,
    given_back: Condvar,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    of: BTreeMap<IpAddr, Own>,
}

/// What an address has.
#[derive(Debug, Default, Clone, Copy)]
struct Own {
    bytes: usize,
    waiting: usize,
}

/// Room that is taken until it is dropped.
#[derive(Debug)]
pub struct Held {
    room: Arc<Room>,
    address: IpAddr,
    bytes: usize,
}

impl Taken {
    fn has_room(&self, most: usize, address: IpAddr, bytes: usize) -> bool {
        let own = self.of.get(&address).map_or(0, |own| own.bytes);
        let others = self.of.iter().filter(|(other, own)| **other != address && own.bytes > 0).count();
        own == 0 || self.all.saturating_add(bytes) <= most || own.saturating_add(bytes) <= most / (others + 1)
    }

    fn own(&mut self, address: IpAddr, change: impl FnOnce(&mut Own)) {
        let own = self.of.entry(address).or_default();
        change(own);
        if own.bytes == 0 && own.waiting == 0 {
            self.of.remove(&address);
        }
    }
}

impl Room {
    /// Of so many bytes.
    pub fn new(most: usize) -> Self {
        Self { most, taken: Mutex::default(), given_back: Condvar::new() }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes that are taken.
    #[cfg(test)]
    pub fn all(&self) -> usize {
        self.taken().all
    }

    /// Takes room for what is not small; waits for it.
    ///
    /// # Errors
    /// Too many calls of this address wait already, or this one has for `patience`.
    pub fn take(self: &Arc<Self>, address: IpAddr, bytes: usize, patience: Duration) -> io::Result<Option<Held>> {
        if bytes < SMALL {
            return Ok(None);
        }
        let ends = Instant::now() + patience;
        let mut taken = self.taken();
        if !taken.has_room(self.most, address, bytes) {
            if taken.of.get(&address).is_some_and(|own| own.waiting >= MAX_WAITING) {
                return Err(io::Error::other("too many calls of this address wait for memory"));
            }
            taken.own(address, |own| own.waiting += 1);
            while !taken.has_room(self.most, address, bytes) {
                let left = ends.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    taken.own(address, |own| own.waiting -= 1);
                    return Err(io::ErrorKind::TimedOut.into());
                }
                taken = self.given_back.wait_timeout(taken, left).unwrap_or_else(PoisonError::into_inner).0;
            }
            taken.own(address, |own| (own.bytes, own.waiting) = (own.bytes + bytes, own.waiting - 1));
        } else {
            taken.own(address, |own| own.bytes += bytes);
        }
        taken.all += bytes;
        Ok(Some(Held { room: self.clone(), address, bytes }))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut taken = self.room.taken();
        taken.all -= self.bytes;
        taken.own(self.address, |own| own.bytes -= self.bytes);
        drop(taken);
        self.room.given_back.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn x4_x5_who_takes_all_memory_keeps_no_other_address_from_its_share() {
        let room = Arc::new(Room::new(8 * MIB));
        let [flooder, honest, other] = ["192.0.2.66", "192.0.2.1", "192.0.2.2"].map(|text| text.parse().unwrap());
        let take = |address, bytes| room.take(address, bytes, Duration::ZERO);
        assert!(take(flooder, SMALL - 1).unwrap().is_none());
        let mut held: Vec<_> = (0..8).map(|_| take(flooder, MIB).unwrap()).collect();
        let refused = take(flooder, MIB).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
        // Half is another's, a third each of two others'.
        let half: Vec<_> = (0..4).map(|_| take(honest, MIB).unwrap()).collect();
        assert!(take(honest, MIB).is_err());
        assert!(take(other, 3 * MIB).unwrap().is_some(), "one call of each goes on");
        assert!(take(flooder, MIB).is_err());
        drop(half);
        assert!(take(flooder, MIB).is_err());
        held.truncate(3);
        assert!(take(flooder, MIB).unwrap().is_some());
        drop(held);
        assert_eq!((room.all(), room.taken().of.len()), (0, 0));
    }

    #[test]
    fn x4_who_waits_goes_on_when_room_is_given_back_and_not_all_may_wait() {
        let room = Arc::new(Room::new(MIB));
        let address = "192.0.2.66".parse().unwrap();
        let held = room.take(address, MIB, Duration::ZERO).unwrap();
        let waiting: Vec<_> = (0..MAX_WAITING)
            .map(|_| {
                let room = room.clone();
                std::thread::spawn(move || room.take(address, MIB, Duration::from_secs(60)).is_ok())
            })
            .collect();
        while room.taken().of[&address].waiting < MAX_WAITING {
            std::thread::yield_now();
        }
        assert_eq!(room.take(address, MIB, Duration::from_secs(60)).unwrap_err().kind(), io::ErrorKind::Other);
        drop(held);
        assert!(waiting.into_iter().all(|thread| thread.join().unwrap()));
        assert_eq!(room.all(), 0);
    }
}
