//! Folders of an export with a size of their own: what is written below one counts against it, and beyond it is NOSPC.
//!
//! A file costs its length in whole blocks of 4 KiB, and at least one; anything else costs one block. A hole counts as
//! if it were data: so a file that was made longer never lacks the room for it later, and what is used follows from
//! the tree alone. Everything that is made inside a folder inherits its limit through its parent's handle, so that a
//! call finds it without a look at any path; a name is never moved or linked across (XDEV), as with project quotas.
//!
//! ```text
//! <state>/limits.json      which folders have a limit: their handle, and how many bytes
//! <state>/used             what each of them uses, where nothing has changed since that was noted; only of this boot
//! ```
//!
//! A change takes the note about what is used away before it begins; a folder that is left alone for a while gets it
//! again. After kill -9 a folder without a note is counted once, and only changes below it wait for that. Changes
//! that somebody makes on the server itself, past it, are seen when it is counted next.

mod count;
mod kept;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use nix::sys::stat::FileStat;

use super::call::Fault;
use super::export::Export;
use crate::protocol::status;
use kept::{Folder, Kept};
use mainstay_runtime::kernel::FileHandle;

/// What files are counted in (bytes).
const BLOCK: u64 = 4096;
/// How long a change waits for its folder to be counted; the client is then asked to come again.
const PATIENCE: Duration = Duration::from_secs(10);
/// A folder that was left alone for this long has its use written down.
const QUIET: Duration = Duration::from_secs(2);
/// Files that are told apart when they change at the same time.
const STRIPES: u64 = 32;

/// What a file costs (bytes).
pub fn cost(stat: &FileStat) -> u64 {
    let size = if stat.st_mode & libc::S_IFMT == libc::S_IFREG { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 };
    cost_of(size)
}

/// What a file of a length costs (bytes).
pub fn cost_of(size: u64) -> u64 {
    size.div_ceil(BLOCK).max(1).saturating_mul(BLOCK)
}

/// A folder's limit.
pub struct Limit {
    /// Never given twice by one state folder.
    pub id: u32,
    /// The folder itself: device and inode.
    pub root: (u64, u64),
    /// And with its generation: the inode of a folder that was removed on the server itself is soon another's.
    handle: FileHandle,
    state: Mutex<State>,
    counted: Condvar,
    files: [RwLock<()>; STRIPES as usize],
    names: Mutex<()>,
}

#[derive(Default)]
struct State {
    bytes: u64,
    used: u64,
    /// Whether `used` is known.
    exact: bool,
    /// Whether the note on disk says what is used.
    noted: bool,
    /// Changes that are being carried out.
    running: u32,
    /// Changes so far.
    changes: u64,
}

/// Room that was taken before a change, until it is known what the change cost. Dropped, the change did not happen.
pub struct Charge<'a> {
    limit: &'a Limit,
    reserved: u64,
}

impl Limit {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The size and what is used of it (bytes); waits a while where that is being counted.
    pub fn usage(&self) -> (u64, u64) {
        let counted = self.counted.wait_timeout_while(self.state(), PATIENCE, |state| !state.exact);
        let (state, _) = counted.unwrap_or_else(PoisonError::into_inner);
        (state.bytes, state.used)
    }

    /// Takes room for a change that costs at most `bytes` more. Every change of sizes or names begins here.
    pub fn charge(&self, limits: &Limits, bytes: u64) -> Result<Charge<'_>, Fault> {
        let until = Instant::now() + PATIENCE;
        let mut state = self.state();
        while !state.exact {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Fault::Status(status::JUKEBOX));
            }
            state = self.counted.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        if bytes > 0 && state.used.saturating_add(bytes) > state.bytes {
            return Err(Fault::Status(status::NOSPC));
        }
        if state.noted {
            limits.forget_used(self.id)?;
            state.noted = false;
        }
        state.used += bytes;
        state.running += 1;
        state.changes += 1;
        Ok(Charge { limit: self, reserved: bytes })
    }

    fn stripe(&self, inode: u64) -> &RwLock<()> {
        let index = usize::try_from(inode % STRIPES).unwrap_or(0);
        self.files.get(index).unwrap_or(&self.files[0])
    }

    /// Keeps a file from being made shorter or longer.
    pub fn keep_length(&self, inode: u64) -> RwLockReadGuard<'_, ()> {
        self.stripe(inode).read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to make a file shorter or longer.
    pub fn change_length(&self, inode: u64) -> RwLockWriteGuard<'_, ()> {
        self.stripe(inode).write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to take names away.
    pub fn change_names(&self) -> MutexGuard<'_, ()> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Charge<'_> {
    /// The change is done: what it concerned cost `before` and costs `after`.
    pub fn settle(mut self, before: u64, after: u64) {
        let reserved = std::mem::take(&mut self.reserved);
        let mut state = self.limit.state();
        state.used = state.used.saturating_add(after).saturating_sub(before).saturating_sub(reserved);
    }
}

impl Drop for Charge<'_> {
    fn drop(&mut self) {
        let mut state = self.limit.state();
        state.used = state.used.saturating_sub(self.reserved);
        state.running -= 1;
    }
}

/// All limits of a server.
pub struct Limits {
    kept: Kept,
    all: RwLock<All>,
    changed: Condvar,
    /// Folders whose note is to be written when they are left alone.
    busy: Mutex<Vec<u32>>,
}

#[derive(Default)]
struct All {
    by_id: HashMap<u32, Arc<Limit>>,
    /// By device and inode of the folder.
    by_root: HashMap<(u64, u64), u32>,
}

impl Limits {
    /// Those that are kept in a state folder, for the exports that there are.
    pub fn open(state_dir: &Path, exports: &[Export]) -> io::Result<Self> {
        let kept = Kept::open(state_dir)?;
        let (mut all, mut gone, mut here) = (All::default(), Vec::new(), HashSet::new());
        for folder in kept.folders() {
            let Some(export) = exports.iter().find(|export| export.path == folder.export) else { continue };
            let root = match folder.open(export) {
                Ok(root) => root,
                // One that was removed on the server itself has no limit any more.
                Err(error) => {
                    if error.raw_os_error() == Some(libc::ESTALE) {
                        gone.push(folder);
                    }
                    continue;
                }
            };
            here.insert(folder.export.clone());
            let stat = nix::sys::stat::fstat(root.as_raw_fd())?;
            let used = kept.used(folder.id);
            let state = State {
                bytes: folder.bytes,
                used: used.unwrap_or(0),
                exact: used.is_some(),
                noted: used.is_some(),
                ..State::default()
            };
            all.insert(Limit::new(folder.id, (stat.st_dev, stat.st_ino), folder.handle(), state));
        }
        // Only where another folder shows that the export is what it was: one whose file system is not mounted yet
        // loses nothing.
        for folder in gone.iter().filter(|folder| here.contains(&folder.export)) {
            kept.remove(folder.id)?;
        }
        Ok(Self { kept, all: RwLock::new(all), changed: Condvar::new(), busy: Mutex::default() })
    }

    fn all(&self) -> RwLockReadGuard<'_, All> {
        self.all.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The limit of a handle's number.
    pub fn by_id(&self, id: u32) -> Option<Arc<Limit>> {
        self.all().by_id.get(&id).cloned()
    }

    /// The limit that begins at this folder.
    pub fn at(&self, folder: &OwnedFd, stat: &FileStat) -> Option<Arc<Limit>> {
        let limit = self.of_inode(stat)?;
        FileHandle::of(folder).is_ok_and(|handle| handle == limit.handle).then_some(limit)
    }

    /// The limit of a folder with this inode, which may be gone by now.
    fn of_inode(&self, stat: &FileStat) -> Option<Arc<Limit>> {
        if stat.st_mode & libc::S_IFMT != libc::S_IFDIR {
            return None;
        }
        let all = self.all();
        if all.by_root.is_empty() {
            return None;
        }
        all.by_root.get(&(stat.st_dev, stat.st_ino)).and_then(|id| all.by_id.get(id)).cloned()
    }

    /// Gives a folder a limit, or another one. Durable when this returns.
    ///
    /// # Errors
    /// The folder is new to limits and not empty: there may be handles of what is in it that know no limit.
    pub fn set(&self, export: &Export, folder: &OwnedFd, stat: &FileStat, bytes: u64) -> Result<(), Fault> {
        if let Some(limit) = self.at(folder, stat) {
            self.kept.change(limit.id, bytes)?;
            limit.state().bytes = bytes;
            return Ok(());
        }
        if let Some(gone) = self.of_inode(stat) {
            self.remove(gone.id)?;
        }
        if count::any(folder)? {
            return Err(Fault::Status(status::NOTEMPTY));
        }
        let id = self.kept.add(|id| Folder::new(id, export, folder, bytes))?;
        let state = State { bytes, exact: true, ..State::default() };
        self.all.write().unwrap_or_else(PoisonError::into_inner).insert(Limit::new(
            id,
            (stat.st_dev, stat.st_ino),
            FileHandle::of(folder)?,
            state,
        ));
        self.is_busy(id);
        Ok(())
    }

    /// The folder is gone, and its limit with it.
    pub fn remove(&self, id: u32) -> io::Result<()> {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(limit) = all.by_id.remove(&id)
            && all.by_root.get(&limit.root) == Some(&id)
        {
            all.by_root.remove(&limit.root);
        }
        drop(all);
        self.kept.remove(id)
    }

    fn forget_used(&self, id: u32) -> io::Result<()> {
        self.kept.forget_used(id)?;
        self.is_busy(id);
        Ok(())
    }

    fn is_busy(&self, id: u32) {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner).push(id);
        self.changed.notify_one();
    }

    /// Counts what a crash has left uncounted. Only changes wait for it.
    pub fn count(&self, exports: &[Export]) {
        for folder in self.kept.folders() {
            let Some(limit) = self.by_id(folder.id) else { continue };
            let Some(export) = exports.iter().find(|export| export.path == folder.export) else { continue };
            if limit.state().exact {
                continue;
            }
            // Nothing below the folder changes meanwhile: changes wait until it is exact, and no longer than they may.
            let counted = folder.open(export).and_then(|root| count::used(export, &root));
            let mut state = limit.state();
            match counted {
                Ok(used) => {
                    (state.used, state.exact) = (used, true);
                    self.is_busy(limit.id);
                }
                Err(error) => {
                    tracing::error!(folder = folder.id, %error, "what a folder uses could not be counted: it cannot \
                        change")
                }
            }
            limit.counted.notify_all();
        }
    }

    /// Writes down what folders use once they are left alone; does not return.
    pub fn note(&self) -> ! {
        let mut seen: HashMap<u32, u64> = HashMap::new();
        loop {
            let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
            while busy.is_empty() {
                busy = self.changed.wait(busy).unwrap_or_else(PoisonError::into_inner);
            }
            drop(busy);
            std::thread::sleep(QUIET);
            let ids = std::mem::take(&mut *self.busy.lock().unwrap_or_else(PoisonError::into_inner));
            let mut left: Vec<u32> = ids.into_iter().filter(|id| !self.note_one(*id, &mut seen)).collect();
            self.busy.lock().unwrap_or_else(PoisonError::into_inner).append(&mut left);
        }
    }

    /// Whether a folder needs no second look.
    fn note_one(&self, id: u32, seen: &mut HashMap<u32, u64>) -> bool {
        let Some(limit) = self.by_id(id) else { return true };
        let mut state = limit.state();
        let still = seen.insert(id, state.changes) == Some(state.changes) && state.running == 0 && state.exact;
        if state.noted || !still {
            return state.noted;
        }
        seen.remove(&id);
        match self.kept.note_used(id, state.used) {
            Ok(()) => state.noted = true,
            // It is counted after the next crash.
            Err(error) => tracing::warn!(folder = id, %error, "what a folder uses could not be written down"),
        }
        true
    }
}

impl Limit {
    fn new(id: u32, root: (u64, u64), handle: FileHandle, state: State) -> Self {
        let files = std::array::from_fn(|_| RwLock::new(()));
        Self { id, root, handle, state: Mutex::new(state), counted: Condvar::new(), files, names: Mutex::new(()) }
    }
}

impl All {
    fn insert(&mut self, limit: Limit) {
        self.by_root.insert(limit.root, limit.id);
        self.by_id.insert(limit.id, Arc::new(limit));
    }
}
