//! Files that change together, as upstream's projected volumes: the visible names are links through `..data`, and
//! one rename of that link is the whole update.
//!
//! ```text
//! ..2026_11_21_05_00_00.1/tls.crt
//! ..data  -> ..2026_11_21_05_00_00.1
//! tls.crt -> ..data/tls.crt
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Component, Path, PathBuf};

use mainstay_runtime::safe_path;

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";

/// A file to be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub bytes: Vec<u8>,
    pub mode: u32,
    /// The owner, for tokens that a container's user must read.
    pub user: Option<u32>,
}

/// All files by relative path.
pub type Payload = BTreeMap<String, File>;

/// Brings a folder to hold exactly this payload. Readers see either the old or the new, never a mixture.
pub fn write(dir: &Path, payload: &Payload, group: Option<u32>, stamp: &str) -> io::Result<()> {
    for path in payload.keys() {
        let plain = safe_path::plain(path)?;
        let first = plain.components().next();
        if first.is_none_or(|part| part.as_os_str().to_string_lossy().starts_with("..")) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{path:?} must not begin with '..'")));
        }
    }
    let current = fs::read_link(dir.join(DATA)).ok();
    let unchanged = current.as_ref().is_some_and(|current| holds(&dir.join(current), payload));
    if !unchanged {
        // What an update left that failed takes the room that this one needs, such as that of a full tmpfs.
        sweep(dir, current.as_deref(), |name| !name.as_encoded_bytes().starts_with(b".."))?;
        let name = write_stamped(dir, payload, group, stamp)?;
        let _ = fs::remove_file(dir.join(NEW_DATA));
        symlink(&name, dir.join(NEW_DATA))?;
        fs::rename(dir.join(NEW_DATA), dir.join(DATA))?;
    }
    link_names(dir, payload)?;
    let (keep, names) = (fs::read_link(dir.join(DATA))?, first_names(payload));
    sweep(dir, Some(&keep), |name| names.contains(name))
}

fn holds(dir: &Path, payload: &Payload) -> bool {
    payload.iter().all(|(path, file)| {
        let target = dir.join(path);
        let mode = fs::metadata(&target).map(|metadata| metadata.permissions().mode() & 0o777);
        fs::read(&target).is_ok_and(|bytes| bytes == file.bytes) && mode.is_ok_and(|mode| mode & file.mode == file.mode)
    }) && count(dir) == payload.len()
}

fn count(dir: &Path) -> usize {
    let Ok(entries) = fs::read_dir(dir) else { return usize::MAX };
    entries
        .flatten()
        .map(|entry| if entry.file_type().is_ok_and(|kind| kind.is_dir()) { count(&entry.path()) } else { 1 })
        .sum()
}

fn write_stamped(dir: &Path, payload: &Payload, group: Option<u32>, stamp: &str) -> io::Result<String> {
    let mut number = 0;
    let name = loop {
        let name = format!("..{stamp}.{number}");
        match fs::create_dir(dir.join(&name)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            result => break result.map(|()| name)?,
        }
    };
    if let Err(error) = fill(&dir.join(&name), payload, group) {
        // A half that stays would be in the way of every later update.
        if let Err(error) = safe_path::remove::tree(dir, &dir.join(&name)) {
            tracing::warn!(%error, "half of an update could not be removed");
        }
        return Err(error);
    }
    Ok(name)
}

fn fill(base: &Path, payload: &Payload, group: Option<u32>) -> io::Result<()> {
    set_dir(base, group)?;
    for (path, file) in payload {
        let target = base.join(path);
        let mut parent = base.to_owned();
        for part in Path::new(path).parent().into_iter().flat_map(Path::components) {
            parent.push(part);
            if !parent.exists() {
                fs::create_dir(&parent)?;
                set_dir(&parent, group)?;
            }
        }
        let mut written = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target)?;
        written.write_all(&file.bytes)?;
        chown(&target, file.user, group)?;
        // The group must be able to read what is given to it.
        let mode = if group.is_some() { file.mode | 0o440 } else { file.mode };
        fs::set_permissions(&target, fs::Permissions::from_mode(mode & 0o7777))?;
    }
    Ok(())
}

fn set_dir(dir: &Path, group: Option<u32>) -> io::Result<()> {
    chown(dir, None, group)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(if group.is_some() { 0o2755 } else { 0o755 }))
}

fn first_names(payload: &Payload) -> BTreeSet<OsString> {
    let first = |path: &String| {
        Path::new(path).components().find_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            _ => None,
        })
    };
    payload.keys().filter_map(first).collect()
}

fn link_names(dir: &Path, payload: &Payload) -> io::Result<()> {
    for name in first_names(payload) {
        let target: PathBuf = Path::new(DATA).join(&name);
        let link = dir.join(&name);
        if fs::read_link(&link).is_ok_and(|old| old == target) {
            continue;
        }
        let _ = fs::remove_file(&link);
        symlink(target, link)?;
    }
    Ok(())
}

/// Takes away all but the files in use and the names that are to stay.
fn sweep(dir: &Path, data: Option<&Path>, stays: impl Fn(&OsString) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == DATA || stays(&name) || data.is_some_and(|data| name == data.as_os_str()) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            safe_path::remove::tree(dir, &entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
