//! How many bytes the image volumes of this node may have, all together: what their file system has free, and what they
//! have taken of it already. Images are sparse, so only the sum stays as they are written; who was promised how much is
//! known to [`mainstay_logic::volume::room`].

//! A copy that shares no blocks takes room while it is written: it is noted ([`reserve`]) before its first byte, so
//! that of several at one time each finds what the others are still to write.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The file in a volume's folder that takes the room.
const IMAGE: &str = "image";

/// A file beside the image of a volume that was promised without a look at the room: nobody else gives way to it.
const OVERCOMMITTED: &str = "overcommitted";
/// What the folders of snapshots begin with: they are no volumes.
const SNAPSHOT: &str = "snapshot-";

/// The copies that are being written, below all roots of this process.
static UNDER_WAY: Mutex<Vec<Arc<UnderWay>>> = Mutex::new(Vec::new());

/// A copy that is being written.
#[derive(Debug)]
struct UnderWay {
    root: PathBuf,
    file: File,
    /// What it takes when it is whole, in bytes.
    wanted: u64,
}

impl UnderWay {
    /// What it is still to take, in bytes.
    fn left(&self) -> io::Result<u64> {
        Ok(self.wanted.saturating_sub(self.file.metadata()?.blocks().saturating_mul(512)))
    }
}

/// Room that a copy has until this is dropped: once the copy is on the disk, or is given up.
#[derive(Debug)]
pub struct Reservation(Arc<UnderWay>);

impl Drop for Reservation {
    fn drop(&mut self) {
        UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner).retain(|other| !Arc::ptr_eq(other, &self.0));
    }
}

/// Takes room below a root for a copy of `wanted` bytes that is written into `file`.
///
/// # Errors
/// `StorageFull` where so much is not free, or promised to a volume, or to be taken by copies that are being written.
pub fn reserve(root: &Path, file: &File, wanted: u64) -> io::Result<Reservation> {
    let copy = Arc::new(UnderWay { root: root.to_owned(), file: file.try_clone()?, wanted });
    let mut all = UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner);
    let others = all.iter().filter(|other| other.root == root);
    let taken = others.map(|other| other.left()).sum::<io::Result<u64>>()?;
    let spare = spare(root)?.saturating_sub(taken);
    if copy.left()? > spare {
        let why = format!("a copy takes {wanted} bytes, and {spare} are free that no volume was promised");
        return Err(io::Error::new(io::ErrorKind::StorageFull, why));
    }
    all.push(copy.clone());
    Ok(Reservation(copy))
}

/// Bytes below a volume root; the root need not be there yet. Copies are none of it: what a snapshot has taken no
/// volume can have. Nor is it ever more than the file system has, where images share their blocks.
pub fn bytes(root: &Path) -> io::Result<u64> {
    let system = file_system(root)?;
    let taken = images(root)?.iter().fold(0u64, |sum, image| sum.saturating_add(image.taken));
    let all = system.blocks().saturating_sub(system.blocks_free().saturating_sub(system.blocks_available()));
    Ok(free(&system).saturating_add(taken).min(all.saturating_mul(system.fragment_size())))
}

/// Bytes that are free and that no volume is still to have: what may be taken for something else, such as a copy.
fn spare(root: &Path) -> io::Result<u64> {
    let owed = images(root)?
        .iter()
        .filter(|image| !image.is_overcommitted)
        .fold(0u64, |sum, image| sum.saturating_add(image.promised.saturating_sub(image.taken)));
    Ok(free(&file_system(root)?).saturating_sub(owed))
}

/// Notes that a volume was promised without a look at the room.
pub fn note_overcommitted(dir: &Path) -> io::Result<()> {
    std::fs::File::create(dir.join(OVERCOMMITTED)).map(drop)
}

fn file_system(root: &Path) -> io::Result<nix::sys::statvfs::Statvfs> {
    let there = root.ancestors().find(|path| path.exists()).unwrap_or(root);
    Ok(nix::sys::statvfs::statvfs(there)?)
}

fn free(system: &nix::sys::statvfs::Statvfs) -> u64 {
    system.blocks_available().saturating_mul(system.fragment_size())
}

/// A volume's image, in bytes.
struct Taken {
    promised: u64,
    taken: u64,
    is_overcommitted: bool,
}

fn images(root: &Path) -> io::Result<Vec<Taken>> {
    let folders = match std::fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        folders => folders?,
    };
    let mut found = Vec::new();
    for folder in folders {
        let folder = folder?;
        if folder.file_name().as_encoded_bytes().starts_with(SNAPSHOT.as_bytes()) {
            continue;
        }
        match folder.path().join(IMAGE).symlink_metadata() {
            Ok(image) if image.is_file() => found.push(Taken {
                promised: image.len(),
                taken: image.blocks().saturating_mul(512),
                is_overcommitted: folder.path().join(OVERCOMMITTED).exists(),
            }),
            // A plain directory, or a volume that is being removed.
            _ => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::FileExt as _;

    use nix::mount::{MsFlags, mount};

    use crate::volumes::tests::alone;

    #[test]
    fn v10_what_images_have_taken_is_theirs_still() {
        alone(|base| {
            mount(Some("tmpfs"), base, Some("tmpfs"), MsFlags::empty(), Some("size=8m")).unwrap();
            let root = base.join("volumes");
            let empty = super::bytes(&root).unwrap();
            fs::create_dir_all(root.join("pvc-1")).unwrap();
            let image = fs::File::create(root.join("pvc-1/image")).unwrap();
            image.set_len(4 << 20).unwrap();
            assert_eq!(super::bytes(&root).unwrap(), empty, "a sparse file has taken nothing");
            image.write_all_at(&[1; 1 << 20], 1 << 20).unwrap();
            assert_eq!(super::bytes(&root).unwrap(), empty, "what is written was free before");
            fs::write(base.join("other"), [1; 1 << 20]).unwrap();
            assert_eq!(super::bytes(&root).unwrap(), empty - (1 << 20), "what others take is gone");
            // A snapshot is nobody's volume: what it has taken is gone, too.
            fs::create_dir(root.join("snapshot-1")).unwrap();
            fs::write(root.join("snapshot-1/image"), vec![1; 1 << 20]).unwrap();
            assert_eq!(super::bytes(&root).unwrap(), empty - (2 << 20));
            // 3 of the volume's 4 MiB are still to come, unless nobody gives way to it.
            let spare = super::spare(&root).unwrap();
            assert_eq!(spare, empty - (2 << 20) - (4 << 20));
            super::note_overcommitted(&root.join("pvc-1")).unwrap();
            assert_eq!(super::spare(&root).unwrap(), spare + (3 << 20));
        });
    }
}
