//! The file under the engine: who may open it, and what happens when a sync fails.
//!
//! After a failed fsync Linux calls the pages clean: they read as written, but may never reach the disk. The engine,
//! opened again, would believe what it reads. So every write since the last good sync is kept here, and written and
//! synced again before the engine is opened again: then what it reads is what is on disk.

use crate::limits::MAX_UNSYNCED;
use crate::{OpenError, lock};
use redb::StorageBackend;
use redb::backends::FileBackend;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
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
    last_error: Option<io::ErrorKind>,
}

impl Disk {
    pub fn open(source: Source) -> Result<Self, OpenError> {
        let (backend, locked): (Arc<dyn StorageBackend>, _) = match source {
            Source::Backend(backend) => (backend, None),
            Source::Folder(folder) => {
                let file = open_file(&folder)?;
                let shared = file.try_clone().map_err(|source| OpenError::Folder { path: folder, source })?;
                let backend = FileBackend::new(shared).map_err(|error| OpenError::Engine(error.to_string()))?;
                (Arc::new(backend), Some(file))
            }
        };
        let disk = Self(Arc::new(Opened { backend, _locked: locked, unsynced: Mutex::default() }));
        disk.clear_unfinished().map_err(|error| OpenError::Engine(error.to_string()))?;
        Ok(disk)
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

    /// What the last failed call failed with: the engine says only once which error it met.
    pub fn last_error(&self) -> Option<io::ErrorKind> {
        lock(&self.0.unsynced).last_error
    }

    fn noted<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result {
            lock(&self.0.unsynced).last_error = Some(error.kind());
        }
        result
    }
}

/// The engine's locking is left out (the trait's default): the lock is held from here, over all of its openings.
impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        self.noted(self.0.backend.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.noted(self.0.backend.read(offset, out))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.noted(self.0.backend.set_len(len))?;
        // What is cut off must not come back when the writes are repeated.
        lock(&self.0.unsynced).writes.retain_mut(|(offset, bytes)| {
            bytes.truncate(usize::try_from(len.saturating_sub(*offset)).unwrap_or(usize::MAX));
            !bytes.is_empty()
        });
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let result = self.noted(self.0.backend.sync_data());
        let mut unsynced = lock(&self.0.unsynced);
        match result {
            Ok(()) if !unsynced.sync_failed => *unsynced = Unsynced::default(),
            Ok(()) => {}
            Err(_) => unsynced.sync_failed = true,
        }
        result
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        // A write that failed may have been done in part. That is a state which a crash leaves too: no need to repeat.
        self.noted(self.0.backend.write(offset, data))?;
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

fn open_file(folder: &Path) -> Result<File, OpenError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Folder { path, source }
    };
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed(folder))?;
    let path = folder.join(FILE);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
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
    Ok(file)
}
