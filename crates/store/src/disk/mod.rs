//! The file under the engine: who may open it, and what happens when a sync fails.
//!
//! After a failed fsync Linux calls the pages clean: they read as written, but may never reach the disk. The engine,
//! opened again, would believe what it reads. So every write since the last good sync is kept here, and written and
//! synced again before the engine is opened again: then what it reads is what is on disk. A process that was ended in
//! between has kept nothing: what the kernel remembers of a file is forgotten before another one opens it.
//!
//! A disk is opened held: nothing is written until [`Disk::release`].

mod held;
mod mark;

use crate::limits::MAX_UNSYNCED;
use crate::{OpenError, Revision, lock};
use held::{Call, Held};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use redb::StorageBackend;
use redb::backends::FileBackend;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// The name of the store's file in its folder.
pub const FILE: &str = "store.redb";

/// Where a store's bytes are.
#[derive(Clone, Debug)]
pub enum Source {
    /// In the file [`FILE`] of a folder; both are made when they are not there, for their owner only.
    Folder(PathBuf),
    /// In a backend of the caller's (the simulator's disk), which also has to see to it that only one opens it.
    Backend(Arc<dyn StorageBackend>),
}

impl Source {
    /// A backend of the caller's.
    pub fn backend(backend: impl StorageBackend) -> Self {
        Self::Backend(Arc::new(backend))
    }
}

impl From<&Path> for Source {
    fn from(folder: &Path) -> Self {
        Self::Folder(folder.to_owned())
    }
}

impl From<PathBuf> for Source {
    fn from(folder: PathBuf) -> Self {
        Self::Folder(folder)
    }
}

/// The engine's view of the file. It outlives the engine, so that the lock is held while the engine is opened again.
#[derive(Clone, Debug)]
pub(crate) struct Disk(Arc<Opened>);

#[derive(Debug)]
struct Opened {
    backend: Arc<dyn StorageBackend>,
    /// For messages: the file's path.
    name: String,
    held: Mutex<Option<Held>>,
    /// Which slot the next mark is written to.
    next_mark: AtomicUsize,
    /// The same open file as the backend's; it carries the lock.
    _locked: Option<File>,
    unsynced: Mutex<Unsynced>,
}

#[derive(Debug, Default)]
struct Unsynced {
    writes: Vec<(u64, Vec<u8>)>,
    bytes: usize,
    too_many: bool,
    sync_failed: bool,
}

/// Whether a file that is not there is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Make,
    /// It has to be there.
    Existing,
    /// It has to be there, and is never written.
    ReadOnly,
}

impl Disk {
    pub fn open(source: Source, access: Access) -> Result<Self, OpenError> {
        let (backend, name, locked): (Arc<dyn StorageBackend>, _, _) = match source {
            Source::Backend(backend) => (backend, "the store".to_owned(), None),
            Source::Folder(folder) => {
                let file = open_file(&folder, access)?;
                let name = folder.join(FILE).display().to_string();
                let shared = file.try_clone().map_err(|source| OpenError::Folder { path: folder, source })?;
                let backend = FileBackend::new(shared).map_err(|error| OpenError::Engine(error.to_string()))?;
                (Arc::new(backend), name, Some(file))
            }
        };
        let engine = |error: io::Error| OpenError::Engine(error.to_string());
        let held = Mutex::new(Some(Held::new(backend.len().map_err(engine)?)));
        let (next_mark, unsynced) = (AtomicUsize::new(0), Mutex::default());
        let disk = Self(Arc::new(Opened { backend, name, held, next_mark, _locked: locked, unsynced }));
        disk.clear_unfinished().map_err(engine)?;
        Ok(disk)
    }

    /// For messages: the file's path.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Makes the changes that were held, in order; from here on every change is made at once.
    pub fn release(&self) -> io::Result<()> {
        let held = lock(&self.0.held).take();
        for call in held.into_iter().flat_map(|held| held.calls) {
            match call {
                Call::Write(_, bytes) if bytes.is_empty() => {}
                Call::Write(offset, bytes) => self.write(offset, &bytes)?,
                Call::Length(length) => self.set_len(length)?,
                Call::Sync => self.sync_data()?,
            }
        }
        Ok(())
    }

    /// Notes a revision that is on disk, and was or will be acknowledged. Without it, only less damage is noticed.
    pub fn mark(&self, revision: Revision) {
        let slot = self.0.next_mark.fetch_xor(1, Ordering::Relaxed);
        if let Err(error) = mark::SLOTS.get(slot).map_or(Ok(()), |at| self.write(*at, &mark::encode(revision))) {
            tracing::warn!(%error, "the newest revision could not be noted beside the engine's");
        }
    }

    /// The newest revision that was noted, if any was.
    pub fn marked(&self) -> io::Result<Option<Revision>> {
        let length = self.len()?;
        let mut newest = None;
        for (slot, at) in mark::SLOTS.into_iter().enumerate() {
            let mut bytes = [0; mark::LENGTH];
            if length < at + mark::LENGTH as u64 {
                continue;
            }
            self.read(at, &mut bytes)?;
            let found = mark::decode(&bytes);
            if found.is_some() && found >= newest {
                newest = found;
                self.0.next_mark.store(1 - slot, Ordering::Relaxed);
            }
        }
        Ok(newest)
    }

    /// Empties a file whose making was cut off: the engine writes its magic number last, and refuses a file without.
    /// Only such a file has no magic number and nothing after the header; any other is damaged, and left as it is.
    fn clear_unfinished(&self) -> io::Result<()> {
        const HEADER: u64 = 320;
        let length = self.len()?;
        let zeros = |from: u64, to: u64| {
            let mut chunk = vec![0; usize::try_from(to - from).map_err(io::Error::other)?];
            self.read(from, &mut chunk)?;
            Ok::<_, io::Error>(chunk.iter().all(|byte| *byte == 0))
        };
        if length < HEADER || !zeros(0, 8)? {
            return Ok(());
        }
        let mut from = HEADER;
        while from < length {
            let to = length.min(from + (1 << 20));
            if !zeros(from, to)? {
                return Ok(());
            }
            from = to;
        }
        self.set_len(0)
    }

    /// Makes what was written since the last good sync durable, if a sync failed since.
    pub fn settle(&self) -> io::Result<()> {
        let (opened, mut unsynced) = (&self.0, lock(&self.0.unsynced));
        if !unsynced.sync_failed {
            return Ok(());
        }
        if unsynced.too_many {
            return Err(io::Error::other("a sync of more than can be kept failed; the store must be opened anew"));
        }
        for (offset, bytes) in &unsynced.writes {
            opened.backend.write(*offset, bytes)?;
        }
        opened.backend.sync_data()?;
        *unsynced = Unsynced::default();
        Ok(())
    }
}

/// The engine's locking is left out (the trait's default): the lock is held from here, over all of its openings.
impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        if let Some(held) = &*lock(&self.0.held) {
            return Ok(held.length);
        }
        self.0.backend.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let held = lock(&self.0.held);
        let Some(held) = &*held else { return self.0.backend.read(offset, out) };
        if offset.saturating_add(out.len() as u64) > held.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (stored, grown) = out.split_at_mut(held.file_part(offset, out.len()));
        if !stored.is_empty() {
            self.0.backend.read(offset, stored)?;
        }
        grown.fill(0);
        held.overlay(offset, out);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if let Some(held) = &mut *lock(&self.0.held) {
            held.set_length(len);
            return Ok(());
        }
        self.0.backend.set_len(len)?;
        // What is cut off must not come back when the writes are repeated.
        lock(&self.0.unsynced).writes.retain_mut(|(offset, bytes)| {
            bytes.truncate(usize::try_from(len.saturating_sub(*offset)).unwrap_or(usize::MAX));
            !bytes.is_empty()
        });
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        if let Some(held) = &mut *lock(&self.0.held) {
            held.calls.push(Call::Sync);
            return Ok(());
        }
        let result = self.0.backend.sync_data();
        let mut unsynced = lock(&self.0.unsynced);
        match result {
            Ok(()) if !unsynced.sync_failed => *unsynced = Unsynced::default(),
            Ok(()) => {}
            Err(_) => unsynced.sync_failed = true,
        }
        result
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if let Some(held) = &mut *lock(&self.0.held) {
            held.write(offset, data);
            return Ok(());
        }
        // A write that failed may have been done in part. That is a state which a crash leaves too: no need to repeat.
        self.0.backend.write(offset, data)?;
        let mut unsynced = lock(&self.0.unsynced);
        unsynced.bytes += data.len();
        if unsynced.bytes > MAX_UNSYNCED {
            unsynced.too_many = true;
            unsynced.writes.clear();
        } else {
            unsynced.writes.push((offset, data.to_vec()));
        }
        Ok(())
    }
}

fn open_file(folder: &Path, access: Access) -> Result<File, OpenError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Folder { path, source }
    };
    if access == Access::Make {
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed(folder))?;
    }
    let path = folder.join(FILE);
    let file = OpenOptions::new()
        .read(true)
        .write(access != Access::ReadOnly)
        .create(access == Access::Make)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed(&path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(OpenError::InUse(folder.to_owned())),
        Err(TryLockError::Error(error)) => return Err(failed(&path)(error)),
    }
    // The file's name must be as durable as its content.
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed(folder))?;
    forget_cached(&file, &path);
    Ok(file)
}

/// Has the file read from the disk: of pages that an earlier process's fsync failed for, the kernel's cache has what
/// was written, and the disk may not. Pages that are still to be written are written first; the kernel keeps those.
fn forget_cached(file: &File, path: &Path) {
    let path = path.display();
    if let Err(error) = file.sync_data() {
        tracing::warn!(%error, "{path}: what was written to it last cannot be synced; what is on the disk is read");
    }
    // All of it is read by the open: in one go it comes faster than page by page.
    for advice in [PosixFadviseAdvice::POSIX_FADV_DONTNEED, PosixFadviseAdvice::POSIX_FADV_WILLNEED] {
        if let Err(error) = posix_fadvise(file.as_raw_fd(), 0, 0, advice) {
            tracing::warn!(%error, "{path}: the kernel's cache of it may be older than the disk");
        }
    }
}
