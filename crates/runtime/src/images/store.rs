//! The store's folder. Several processes may use it: what is there is complete (made in `tmp`, then renamed), and names
//! change under a lock.
//!
//! ```text
//! <root>/lock                 flock: names and removal
//!        names.json           name -> image id, and repository digest -> image id
//!        records/<id>.json    an image: its config and its layers, lowest first
//!        l/<short id>/        a layer, unpacked as overlayfs wants it
//!        leases/<id>.json     a container uses this image
//!        tmp/                 what is being made; each part locked by its maker
//!        partial/<hash>       what came of a layer whose pull broke off; locked by whoever goes on with it
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::registry::Budget;
use super::{Image, ImageConfig, ImageError, ImageStore, Reference};
use crate::layout;
use crate::safe_path::remove;

const NAMES: &str = "names.json";

/// Which names there are.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Names {
    pub tags: BTreeMap<String, String>,
    pub digests: BTreeMap<String, String>,
}

/// One image on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub id: String,
    /// Short ids of its layers, lowest first.
    pub layers: Vec<String>,
    pub size: u64,
    pub created_at: Option<String>,
    pub config: ImageConfig,
    /// It came from a registry and from nowhere else: it can be had again.
    #[serde(default)]
    pub is_pulled: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Lease {
    dir: PathBuf,
    image: String,
}

/// A folder in `tmp` that goes away unless it was renamed.
pub struct Workspace {
    pub path: PathBuf,
    _lock: File,
}

impl Drop for Workspace {
    fn drop(&mut self) {
        let _ = remove(&self.path);
    }
}

/// Removes a folder whose depth somebody else's archive has chosen.
fn remove(folder: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (folder.parent(), folder.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    remove::folder_in(&OwnedFd::from(File::open(parent)?), name)
}

impl ImageStore {
    /// Opens (and makes) `<data>/images`, and sweeps what an interrupted load left.
    pub fn open(root: &Path) -> Result<ImageStore, ImageError> {
        for folder in ["records", "l", "leases", "tmp", "partial"] {
            let path = root.join(folder);
            fs::create_dir_all(&path).map_err(ImageError::io(format!("cannot make {}", path.display())))?;
        }
        let root = root.canonicalize().map_err(ImageError::io(format!("cannot open {}", root.display())))?;
        let store = ImageStore { root: Arc::new(root), documents: Budget::new() };
        store.sweep()?;
        store.sweep_partial();
        Ok(store)
    }

    /// All images.
    pub fn list(&self) -> Vec<Image> {
        let names = self.names();
        self.records().into_values().map(|record| image(record, &names)).collect()
    }

    /// By name (`nginx`, `docker.io/library/nginx:1.25`, `name@sha256:…`) or id.
    pub fn resolve(&self, name: &str) -> Option<Image> {
        let names = self.names();
        let id = find(&names, name)?;
        Some(image(self.record(&id)?, &names))
    }

    /// As [`ImageStore::resolve`], from a thread that must not wait for a disk.
    pub async fn resolve_apart(&self, name: &str) -> Option<Image> {
        let (store, name) = (self.clone(), name.to_owned());
        tokio::task::spawn_blocking(move || store.resolve(&name)).await.ok().flatten()
    }

    /// Takes a name away, and with the last name the image and the layers that no other image has.
    pub fn remove(&self, name: &str) -> Result<(), ImageError> {
        let _lock = self.lock()?;
        let mut names = self.names();
        let missing = || ImageError::NotFound(name.to_owned());
        let id = find(&names, name).filter(|id| self.record(id).is_some()).ok_or_else(missing)?;
        let full = Reference::parse(name).map(|reference| reference.to_string()).unwrap_or_default();
        let others = names.tags.iter().any(|(tag, image)| *image == id && *tag != full);
        if others && names.tags.remove(&full).is_some() {
            return self.write_names(&names);
        }
        if self.leases().contains(&id) {
            return Err(ImageError::InUse(name.to_owned()));
        }
        names.tags.retain(|_, image| *image != id);
        names.digests.retain(|_, image| *image != id);
        self.write_names(&names)?;
        fs::remove_file(self.record_path(&id)).map_err(ImageError::io("cannot remove an image's record"))?;
        self.remove_unused_layers()
    }

    /// The layers of an image, lowest first, as folders.
    pub fn layer_dirs(&self, image_id: &str) -> Result<Vec<PathBuf>, ImageError> {
        let record = self.record(image_id).ok_or_else(|| ImageError::NotFound(image_id.to_owned()))?;
        Ok(record.layers.iter().map(|layer| self.layer_path(layer)).collect())
    }

    pub(super) fn layer_path(&self, short: &str) -> PathBuf {
        self.root().join("l").join(short)
    }

    /// Puts a finished layer in its place. Another process may have been faster: then ours is dropped.
    pub(super) fn keep_layer(&self, made: &Path, short: &str) -> Result<(), ImageError> {
        // On disk before it has its name: a layer that exists is complete, also after a power failure.
        if let Ok(dir) = File::open(made) {
            // SAFETY: syncfs takes an open descriptor.
            unsafe { libc::syncfs(dir.as_raw_fd()) };
        }
        match fs::rename(made, self.layer_path(short)) {
            Err(_) if self.layer_path(short).is_dir() => Ok(()),
            result => result.map_err(ImageError::io("cannot keep a layer")),
        }
    }

    /// Makes an image known. False where a layer was removed meanwhile: make it again.
    pub(super) fn commit(&self, record: &Record, tags: &[String], digests: &[String]) -> Result<bool, ImageError> {
        let _lock = self.lock()?;
        if !record.layers.iter().all(|layer| self.layer_path(layer).is_dir()) {
            return Ok(false);
        }
        // What somebody loaded here stays that, also where a registry has the same.
        let was_loaded = self.record(&record.id).is_some_and(|before| !before.is_pulled);
        let record = &Record { is_pulled: record.is_pulled && !was_loaded, ..record.clone() };
        layout::write_record(&self.root().join("records"), &record_name(&record.id), record)
            .map_err(ImageError::io("cannot write an image's record"))?;
        let mut names = self.names();
        names.tags.extend(tags.iter().map(|tag| (tag.clone(), record.id.clone())));
        names.digests.extend(digests.iter().map(|digest| (digest.clone(), record.id.clone())));
        self.write_names(&names)?;
        Ok(true)
    }

    pub(super) fn workspace(&self) -> Result<Workspace, ImageError> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let name = format!("{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let path = self.root().join("tmp").join(name);
        let _lock = self.lock()?;
        let _ = remove(&path);
        fs::create_dir(&path).map_err(ImageError::io("cannot make a folder to work in"))?;
        let lock = File::open(&path).map_err(ImageError::io("cannot open a folder to work in"))?;
        flock(&lock, libc::LOCK_EX).map_err(ImageError::io("cannot lock a folder to work in"))?;
        Ok(Workspace { path, _lock: lock })
    }

    /// Notes that a container uses an image, so that its layers stay.
    pub(super) fn lease(&self, dir: &Path, image_id: &str) -> Result<(), ImageError> {
        let _lock = self.lock()?;
        let lease = Lease { dir: dir.to_owned(), image: image_id.to_owned() };
        if self.record(image_id).is_none() {
            return Err(ImageError::NotFound(image_id.to_owned()));
        }
        layout::write_record(&self.root().join("leases"), &lease_name(dir), &lease)
            .map_err(ImageError::io("cannot note an image's use"))
    }

    pub(super) fn release(&self, dir: &Path) {
        let _ = fs::remove_file(self.root().join("leases").join(lease_name(dir)));
    }

    pub(super) fn record(&self, id: &str) -> Option<Record> {
        layout::read_record(&self.root().join("records"), &record_name(id))
    }

    fn records(&self) -> BTreeMap<String, Record> {
        let entries = fs::read_dir(self.root().join("records")).into_iter().flatten().flatten();
        let names = entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.ends_with(".json") && !name.starts_with('.'));
        let records = names.filter_map(|name| layout::read_record::<Record>(&self.root().join("records"), &name));
        records.map(|record| (record.id.clone(), record)).collect()
    }

    fn names(&self) -> Names {
        layout::read_record(self.root(), NAMES).unwrap_or_default()
    }

    fn write_names(&self, names: &Names) -> Result<(), ImageError> {
        layout::write_record(self.root(), NAMES, names).map_err(ImageError::io("cannot write names.json"))
    }

    fn record_path(&self, id: &str) -> PathBuf {
        self.root().join("records").join(record_name(id))
    }

    fn lock(&self) -> Result<File, ImageError> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(self.root().join("lock"));
        let file = file.map_err(ImageError::io("cannot open the image store's lock"))?;
        flock(&file, libc::LOCK_EX).map_err(ImageError::io("cannot lock the image store"))?;
        Ok(file)
    }

    /// Images that containers use. A lease whose container's folder is gone is forgotten.
    fn leases(&self) -> BTreeSet<String> {
        let folder = self.root().join("leases");
        let mut images = BTreeSet::new();
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Some(lease) = entry.file_name().to_str().and_then(|name| layout::read_record::<Lease>(&folder, name))
            else {
                continue;
            };
            if lease.dir.exists() {
                images.insert(lease.image);
            } else {
                let _ = fs::remove_file(entry.path());
            }
        }
        images
    }

    fn remove_unused_layers(&self) -> Result<(), ImageError> {
        let used: BTreeSet<String> = self.records().into_values().flat_map(|record| record.layers).collect();
        for entry in fs::read_dir(self.root().join("l")).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_some_and(|name| !used.contains(name)) {
                // Renamed first: a removal that is cut off must not leave half a layer under its name.
                let rubbish = self.root().join("tmp").join(format!("removed-{}", entry.file_name().to_string_lossy()));
                fs::rename(entry.path(), &rubbish).map_err(ImageError::io("cannot remove a layer"))?;
                remove(&rubbish).map_err(ImageError::io("cannot remove a layer"))?;
            }
        }
        Ok(())
    }

    /// Removes from `tmp` what no living process works on.
    fn sweep(&self) -> Result<(), ImageError> {
        let _lock = self.lock()?;
        for entry in fs::read_dir(self.root().join("tmp")).into_iter().flatten().flatten() {
            let free =
                File::open(entry.path()).is_ok_and(|folder| flock(&folder, libc::LOCK_EX | libc::LOCK_NB).is_ok());
            if free {
                let _ = remove(&entry.path());
            }
        }
        Ok(())
    }
}

fn image(record: Record, names: &Names) -> Image {
    let of = |map: &BTreeMap<String, String>| {
        map.iter().filter(|(_, id)| **id == record.id).map(|(name, _)| name.clone()).collect()
    };
    let (tags, digests) = (of(&names.tags), of(&names.digests));
    Image {
        id: record.id,
        names: tags,
        repo_digests: digests,
        size: record.size,
        config: record.config,
        created_at: record.created_at,
        is_pulled: record.is_pulled,
    }
}

fn find(names: &Names, name: &str) -> Option<String> {
    if let Some(hex) = name.strip_prefix("sha256:").filter(|hex| hex.len() == 64) {
        return Some(format!("sha256:{hex}"));
    }
    let full = Reference::parse(name).ok()?.to_string();
    names.tags.get(&full).or_else(|| names.digests.get(&full)).cloned()
}

/// Ids come from digests that were checked, or from callers: only the hexadecimal part may become a file name.
fn record_name(id: &str) -> String {
    let hex: String = id.trim_start_matches("sha256:").chars().filter(char::is_ascii_alphanumeric).collect();
    format!("{hex}.json")
}

fn lease_name(dir: &Path) -> String {
    format!("{}.json", layout::short(&dir.to_string_lossy()))
}

pub(super) fn flock(file: &File, how: i32) -> io::Result<()> {
    loop {
        // SAFETY: the descriptor is open.
        if unsafe { libc::flock(file.as_raw_fd(), how) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
