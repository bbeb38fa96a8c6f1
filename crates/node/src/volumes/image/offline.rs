//! Growing an image that is not mounted, where the kernel does not let us grow a mounted one.
//!
//! e2fsprogs' `resize2fs` may not be cut in the middle, so it works on a copy (which shares its blocks where the file
//! system can, and keeps its holes): the image itself is replaced when the copy is whole and on the disk.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use super::super::VolumeError;
use super::{fresh_file, name, run};

/// From `linux/fs.h`: `_IOW(0x94, 9, int)`.
const FICLONE: libc::Ioctl = 0x4004_9409;
/// `e2fsck`: errors were corrected.
const CORRECTED: i32 = 1;

/// Replaces the image in `dir` by one that is `size` bytes large and holds the same.
///
/// # Errors
/// No room for the copy; a file system with errors that need a human. The image is as it was.
pub fn grow(dir: &Path, image: &File, size: u64) -> Result<(), VolumeError> {
    let fresh = dir.join("image.new");
    let at = |what: &str| VolumeError::io(format!("{what} {}", fresh.display()));
    let copy = fresh_file(&fresh, 0).and_then(|copy| clone(image, &copy).map(|()| copy));
    let copy = copy.map_err(at("copying the image to"))?;
    // As at a mount, the journal comes first; resize2fs wants a file system that was checked.
    run("e2fsck", &["-f", "-p"], &fresh, CORRECTED)?;
    copy.set_len(size).map_err(at("growing"))?;
    run("resize2fs", &[], &fresh, 0)?;
    name(dir, &fresh, &copy).map_err(at("naming"))
}

/// Copies a file with its holes; by reference where the file system can.
fn clone(from: &File, to: &File) -> io::Result<()> {
    // SAFETY: the argument is a descriptor.
    if unsafe { libc::ioctl(to.as_raw_fd(), FICLONE, from.as_raw_fd()) } == 0 {
        return Ok(());
    }
    let length = i64::try_from(from.metadata()?.len()).map_err(io::Error::other)?;
    to.set_len(from.metadata()?.len())?;
    let mut at = 0;
    while at < length {
        // SAFETY: plain numbers on an open descriptor; the file's own position is not used otherwise.
        let data = unsafe { libc::lseek(from.as_raw_fd(), at, libc::SEEK_DATA) };
        if data < 0 {
            let error = io::Error::last_os_error();
            // Nothing but a hole is left.
            return if error.raw_os_error() == Some(libc::ENXIO) { Ok(()) } else { Err(error) };
        }
        // SAFETY: as above.
        let hole = unsafe { libc::lseek(from.as_raw_fd(), data, libc::SEEK_HOLE) };
        at = if hole < 0 { length } else { hole };
        copy_range(from, to, data, at)?;
    }
    Ok(())
}

/// Copies the bytes from `start` to `end`.
fn copy_range(from: &File, to: &File, start: i64, end: i64) -> io::Result<()> {
    let (mut read, mut written) = (start, start);
    while read < end {
        let left = usize::try_from(end - read).map_err(io::Error::other)?;
        // SAFETY: both offsets are ours for the time of the call.
        let copied = unsafe { libc::copy_file_range(from.as_raw_fd(), &raw mut read, to.as_raw_fd(), &raw mut written, left, 0) };
        match copied {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            copied if copied < 0 => return Err(io::Error::last_os_error()),
            _ => {}
        }
    }
    Ok(())
}
