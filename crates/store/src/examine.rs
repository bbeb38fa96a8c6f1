//! Looking at a store's file without changing it, also at one that is not opened because it is damaged.

use crate::disk::{Access, Disk, FILE};
use crate::engine::{close, read_verified};
use crate::format::Content;
use crate::salvage::salvage;
use crate::{ClusterId, Damage, Entry, OpenError, Revision};
use std::path::Path;

/// What is in a store's file.
#[derive(Clone, Debug)]
pub struct Examination {
    /// Its path.
    pub file: String,
    /// Whose it is.
    pub cluster: Option<ClusterId>,
    /// Its revision, where that can be read.
    pub revision: Revision,
    /// The rows that are sound, in key order.
    pub entries: Vec<Entry>,
    /// What is not.
    pub damage: Damage,
}

/// Reads all of a store's file; writes nothing to it. Of a damaged one, whatever is sound. Nobody else may have it
/// open. When the engine itself refuses the file, it is read into memory as a whole.
///
/// # Errors
/// When there is no file, it is in use, it cannot be read at all, or a newer version wrote it.
pub fn examine(folder: &Path) -> Result<Examination, OpenError> {
    let disk = Disk::open(folder.into(), Access::ReadOnly)?;
    let mut content = Content::default();
    match read_verified(&disk, &mut content) {
        Ok(db) => close(db),
        // The engine read it all, and rows are not what was written.
        Err(OpenError::Damaged { .. }) if !content.damage.is_none() => {}
        Err(OpenError::Damaged { damage, .. }) => {
            let path = folder.join(FILE);
            let bytes = std::fs::read(&path).map_err(|source| OpenError::Folder { path, source })?;
            content = salvage(&bytes, damage);
        }
        Err(other) => return Err(other),
    }
    let entries = content.keys.iter().map(|(key, stored)| stored.entry(key)).collect();
    let Content { summary, damage, .. } = content;
    let (cluster, revision) = (summary.cluster, summary.revision);
    Ok(Examination { file: disk.name().to_owned(), cluster, revision, entries, damage })
}
