//! Growing an image that is not mounted, where the kernel does not let us grow a mounted one.
//!
//! e2fsprogs' `resize2fs` may not be cut in the middle, so it works on a copy (which shares its blocks where the file
//! system can, and keeps its holes): the image itself is replaced when the copy is whole and on the disk.

use std::fs::File;
use std::path::Path;

use super::super::VolumeError;
use super::copy::clone;
use super::{Fresh, run};

/// `e2fsck`: errors were corrected.
const CORRECTED: i32 = 1;

/// Replaces the image in `dir` by one that is `size` bytes large and holds the same.
///
/// # Errors
/// No room for the copy that no volume was promised; a file system with errors that need a human. The image is as it
/// was.
pub fn grow(root: &Path, dir: &Path, image: &File, size: u64) -> Result<(), VolumeError> {
    let at = |what: &str| VolumeError::io(format!("{what} {}", dir.display()));
    let copy = Fresh::new(dir, 0).and_then(|mut copy| clone(image, &mut copy, root, None).map(|()| copy));
    let copy = copy.map_err(at("copying the image in"))?;
    resize(&copy.path(), &copy.file, size)?;
    copy.name().map_err(at("naming the image in"))
}

/// Checks an image that nobody has mounted, and mends what can be mended without a person.
///
/// # Errors
/// What e2fsck says of a file system with errors that need a human, or of a disk that is still full.
pub fn check(path: &Path) -> Result<(), VolumeError> {
    run("e2fsck", &["-f", "-p"], path, CORRECTED)
}

/// Makes a copy that has no name yet `size` bytes large.
///
/// # Errors
/// As [`grow`].
pub fn resize(path: &Path, copy: &File, size: u64) -> Result<(), VolumeError> {
    // As at a mount, the journal comes first; resize2fs wants a file system that was checked.
    check(path)?;
    copy.set_len(size).map_err(VolumeError::io(format!("growing {}", path.display())))?;
    run("resize2fs", &[], path, 0)
}
