//! A disk that lies, for tests and the simulator: it loses what was not synced, tears it, fails and fills up.
//!
//! Everything is in memory and follows from the calls alone: no clock, no threads, no randomness but the seed that
//! is given to [`FaultyDisk::reboot`].

use crate::{StorageBackend, lock};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What the disk writes whole; a write of more may be torn at these borders when the power goes.
const SECTOR: usize = 512;

/// What happens to one call that changes the disk (a write, a change of length, a sync).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails and changes nothing. A failed sync is Linux's: what was written still reads as written, but is
    /// forgotten, and never becomes durable unless it is written again.
    Error,
    /// A write does its first half, then fails; others as `Error`.
    Torn,
    /// No space is left; a sync, which needs none, is done.
    Full,
    /// The power goes: it and every later call fail, also reads. See [`FaultyDisk::reboot`].
    PowerCut,
}

/// The disk. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct FaultyDisk(Arc<Platter>);

#[derive(Debug, Default)]
struct Platter {
    content: Mutex<Content>,
    released: Condvar,
}

#[derive(Debug, Default)]
struct Content {
    /// What reads show.
    visible: Vec<u8>,
    /// What is left for sure when the power goes.
    durable: Vec<u8>,
    /// What may be left, in part, when the power goes.
    unsynced: Vec<Unsynced>,
    calls: u64,
    syncs: u64,
    faults: BTreeMap<u64, Fault>,
    full: bool,
    held: bool,
    waiting: usize,
    dead: bool,
}

#[derive(Clone, Debug)]
enum Unsynced {
    Write(usize, Vec<u8>),
    Length(usize),
}

impl FaultyDisk {
    /// An empty disk without faults.
    pub fn new() -> Self {
        Self::default()
    }

    /// A disk that holds these bytes, durably.
    pub fn with(bytes: Vec<u8>) -> Self {
        let content = Content { visible: bytes.clone(), durable: bytes, ..Content::default() };
        Self(Arc::new(Platter { content: Mutex::new(content), released: Condvar::new() }))
    }

    /// What reads of the whole disk show.
    pub fn bytes(&self) -> Vec<u8> {
        lock(&self.0.content).visible.clone()
    }

    /// How many calls have changed the disk, or tried to.
    pub fn calls(&self) -> u64 {
        lock(&self.0.content).calls
    }

    /// How many syncs have been done.
    pub fn syncs(&self) -> u64 {
        lock(&self.0.content).syncs
    }

    /// The disk's length in bytes.
    pub fn length(&self) -> usize {
        lock(&self.0.content).visible.len()
    }

    /// Lets the call of that index (the first is 0) meet a fault.
    pub fn fault_at(&self, call: u64, fault: Fault) {
        lock(&self.0.content).faults.insert(call, fault);
    }

    /// Whether writes and growth fail for want of space, from now on.
    pub fn set_full(&self, full: bool) {
        lock(&self.0.content).full = full;
    }

    /// Lets calls that change the disk wait (each in its thread) until [`FaultyDisk::release`].
    pub fn hold(&self) {
        lock(&self.0.content).held = true;
    }

    /// Ends [`FaultyDisk::hold`].
    pub fn release(&self) {
        lock(&self.0.content).held = false;
        self.0.released.notify_all();
    }

    /// How many calls are held up.
    pub fn waiting(&self) -> usize {
        lock(&self.0.content).waiting
    }

    fn changeable(&self) -> MutexGuard<'_, Content> {
        let mut content = lock(&self.0.content);
        content.waiting += 1;
        let waited = self.0.released.wait_while(content, |content| content.held);
        let mut content = waited.unwrap_or_else(PoisonError::into_inner);
        content.waiting -= 1;
        content
    }

    /// The power goes, now.
    pub fn cut_power(&self) {
        lock(&self.0.content).dead = true;
    }

    /// The disk as it is found after the power went: what was synced, and of the rest whatever the seed says, sector
    /// by sector. This handle's disk is dead from now on; the new one has no faults planned.
    #[must_use]
    pub fn reboot(&self, seed: u64) -> Self {
        let mut old = lock(&self.0.content);
        old.dead = true;
        let mut random = SplitMix(seed);
        let mut durable = old.durable.clone();
        for change in &old.unsynced {
            match change {
                Unsynced::Length(length) if random.coin() => durable.resize(*length, 0),
                Unsynced::Length(_) => {}
                Unsynced::Write(offset, bytes) => {
                    for (index, sector) in bytes.chunks(SECTOR).enumerate() {
                        if random.coin() {
                            write_at(&mut durable, offset + index * SECTOR, sector);
                        }
                    }
                }
            }
        }
        Self::with(durable)
    }
}

impl Content {
    fn alive(&self) -> io::Result<()> {
        if self.dead { Err(io::Error::other("the power is off")) } else { Ok(()) }
    }

    /// Counts a call that changes the disk; the fault that it meets.
    fn call(&mut self) -> io::Result<Option<Fault>> {
        self.alive()?;
        let fault = self.faults.remove(&self.calls);
        self.calls += 1;
        self.dead = fault == Some(Fault::PowerCut);
        self.alive()?;
        Ok(fault)
    }
}

fn failed() -> io::Error {
    io::Error::other("injected")
}

fn no_space() -> io::Error {
    io::Error::from(io::ErrorKind::StorageFull)
}

fn write_at(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(data);
}

fn index(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(io::Error::other)
}

impl StorageBackend for FaultyDisk {
    fn len(&self) -> io::Result<u64> {
        let content = lock(&self.0.content);
        content.alive()?;
        Ok(content.visible.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let content = lock(&self.0.content);
        content.alive()?;
        let start = index(offset)?;
        let found = content.visible.get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut content = self.changeable();
        let length = index(len)?;
        match content.call()? {
            Some(Fault::Full) => return Err(no_space()),
            Some(_) => return Err(failed()),
            None if content.full && length > content.visible.len() => return Err(no_space()),
            None => {}
        }
        content.visible.resize(length, 0);
        content.unsynced.push(Unsynced::Length(length));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut content = self.changeable();
        if let Some(Fault::Error | Fault::Torn) = content.call()? {
            content.unsynced.clear();
            return Err(failed());
        }
        content.syncs += 1;
        for change in std::mem::take(&mut content.unsynced) {
            match change {
                Unsynced::Length(length) => content.durable.resize(length, 0),
                Unsynced::Write(offset, bytes) => write_at(&mut content.durable, offset, &bytes),
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut content = self.changeable();
        let fault = content.call()?;
        let start = index(offset)?;
        let done = match fault {
            Some(Fault::Torn) => &data[..data.len() / 2],
            Some(Fault::Full) => return Err(no_space()),
            Some(_) => return Err(failed()),
            None if content.full => return Err(no_space()),
            None => data,
        };
        write_at(&mut content.visible, start, done);
        content.unsynced.push(Unsynced::Write(start, done.to_vec()));
        if done.len() < data.len() { Err(failed()) } else { Ok(()) }
    }
}

/// A small, fast, well-mixed generator, so that one seed always gives the same disk.
#[derive(Debug)]
struct SplitMix(u64);

impl SplitMix {
    fn coin(&mut self) -> bool {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) & 1 == 1
    }
}
