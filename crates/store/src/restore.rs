//! Making a store of rows that were saved before.

use crate::checksum::of_row;
use crate::disk::{Access, Disk, FILE};
use crate::engine::Engine;
use crate::limits::{MAX_KEY, MAX_VALUE};
use crate::{ClusterId, Entry, OpenError, Revision};
use std::path::{Path, PathBuf};

/// Why a store was not made.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Nothing is ever written over.
    #[error("{0} is there already")]
    Exists(PathBuf),
    /// A row that no store can hold.
    #[error("key {key}: {why}")]
    Row {
        /// Its key.
        key: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The file could not be made or written.
    #[error(transparent)]
    File(#[from] OpenError),
}

/// Makes a store in a folder that has none, with these rows as they are, at a revision of at least theirs. What is
/// made is read again, every checksum, before this returns. Watches from before are told that they are compacted.
///
/// # Errors
/// When there is a file already, a row breaks a limit, a key is there twice, or the disk fails.
pub fn restore(
    folder: &Path,
    cluster: Option<ClusterId>,
    revision: Revision,
    entries: &[Entry],
) -> Result<(), RestoreError> {
    let mut sorted: Vec<&Entry> = entries.iter().collect();
    sorted.sort_by(|one, other| one.key.cmp(&other.key));
    for (index, entry) in sorted.iter().enumerate() {
        let twice = index > 0 && sorted[index - 1].key == entry.key;
        let why = match () {
            () if entry.key.is_empty() || entry.key.len() > MAX_KEY => "the key's length breaks the limit",
            () if entry.value.len() > MAX_VALUE => "the value is longer than the limit",
            () if entry.revision > revision || entry.revision == Revision(0) => "the revision cannot be",
            () if twice => "it is there twice",
            () => continue,
        };
        return Err(RestoreError::Row { key: String::from_utf8_lossy(&entry.key).into_owned(), why });
    }
    let file = folder.join(FILE);
    if file.exists() {
        return Err(RestoreError::Exists(file));
    }
    Engine::make(Disk::open(folder.into(), Access::Make)?, cluster, revision, &sorted)?;
    let made = crate::examine(folder)?;
    if !made.damage.is_none() || made.entries.len() != sorted.len() {
        return Err(OpenError::Damaged { file: made.file, damage: made.damage }.into());
    }
    Ok(())
}

/// A row's checksum, as it stands beside the row in a store: of key, revision and value.
pub fn row_checksum(entry: &Entry) -> u64 {
    of_row(&entry.key, entry.revision, &entry.value)
}
