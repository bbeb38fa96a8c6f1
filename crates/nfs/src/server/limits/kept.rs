//! What is kept about limits in the state folder.

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::server::export::Export;
use mainstay_runtime::kernel::FileHandle;
use mainstay_runtime::safe_path::make_private_dir;

/// The bytes of a note about what a folder uses.
const NOTE: usize = 16;

/// A folder with a limit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Folder {
    pub id: u32,
    /// The export that it is in.
    pub export: PathBuf,
    kind: u8,
    handle: Vec<u8>,
    pub bytes: u64,
}

impl Folder {
    /// An open folder of an export.
    pub fn new(id: u32, export: &Export, folder: &OwnedFd, bytes: u64) -> io::Result<Self> {
        let handle = FileHandle::of(folder)?;
        Ok(Self { id, export: export.path.clone(), kind: handle.kind, handle: handle.bytes, bytes })
    }

    /// The kernel's handle of it.
    pub fn handle(&self) -> FileHandle {
        FileHandle { kind: self.kind, bytes: self.handle.clone() }
    }

    /// Opens it, wherever it is by now.
    pub fn open(&self, export: &Export) -> io::Result<OwnedFd> {
        self.handle().open(export.root.as_raw_fd())
    }
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct List {
    last: u32,
    folders: Vec<Folder>,
}

/// The state folder.
pub struct Kept {
    dir: PathBuf,
    /// One place for each number: a stamp of this boot, and what is used.
    notes: fs::File,
    boot: [u8; 8],
    list: Mutex<List>,
}

impl Kept {
    pub fn open(dir: &Path) -> io::Result<Self> {
        make_private_dir(dir)?;
        let list = match fs::read(dir.join("limits.json")) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => List::default(),
            Err(error) => return Err(error),
        };
        let notes = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(dir.join("used"))?;
        let hash: [u8; 32] = Sha256::digest(fs::read("/proc/sys/kernel/random/boot_id")?).into();
        let boot = hash.first_chunk().copied().unwrap_or_default();
        Ok(Self { dir: dir.to_owned(), notes, boot, list: Mutex::new(list) })
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn folders(&self) -> Vec<Folder> {
        self.list().folders.clone()
    }

    /// Adds a folder under a new number.
    pub fn add(&self, folder: impl FnOnce(u32) -> io::Result<Folder>) -> io::Result<u32> {
        self.edit(|list| {
            list.last += 1;
            let folder = folder(list.last)?;
            list.folders.push(folder);
            Ok(list.last)
        })
    }

    pub fn change(&self, id: u32, bytes: u64) -> io::Result<()> {
        self.edit(|list| {
            list.folders.iter_mut().filter(|folder| folder.id == id).for_each(|folder| folder.bytes = bytes);
            Ok(())
        })
    }

    pub fn remove(&self, id: u32) -> io::Result<()> {
        self.edit(|list| {
            list.folders.retain(|folder| folder.id != id);
            Ok(())
        })?;
        self.forget_used(id)
    }

    /// Durable before it counts.
    fn edit<T>(&self, edit: impl FnOnce(&mut List) -> io::Result<T>) -> io::Result<T> {
        let mut list = self.list();
        let mut new = list.clone();
        let result = edit(&mut new)?;
        let partial = self.dir.join("limits.json.partial");
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        file.write_all(&serde_json::to_vec(&new)?)?;
        file.sync_all()?;
        fs::rename(partial, self.dir.join("limits.json"))?;
        fs::File::open(&self.dir)?.sync_all()?;
        *list = new;
        Ok(result)
    }

    /// What a folder uses, where nothing has changed since that was noted, and the machine has not crashed.
    pub fn used(&self, id: u32) -> Option<u64> {
        let mut note = [0; NOTE];
        self.notes.read_exact_at(&mut note, offset(id)).ok()?;
        let (stamp, used) = note.split_first_chunk::<8>()?;
        (*stamp == self.boot).then(|| used.first_chunk().map_or(0, |used| u64::from_be_bytes(*used)))
    }

    /// Notes what a folder uses. Written at once into an open file: whoever the thread acts as, kill -9 leaves it
    /// whole.
    pub fn note_used(&self, id: u32, used: u64) -> io::Result<()> {
        let mut note = [0; NOTE];
        note[..8].copy_from_slice(&self.boot);
        note[8..].copy_from_slice(&used.to_be_bytes());
        self.notes.write_all_at(&note, offset(id))
    }

    pub fn forget_used(&self, id: u32) -> io::Result<()> {
        self.notes.write_all_at(&[0; NOTE], offset(id))
    }
}

fn offset(id: u32) -> u64 {
    u64::from(id) * NOTE as u64
}
