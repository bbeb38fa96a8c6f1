//! Copies of images: snapshots, and volumes that start as a copy of another.
//!
//! A copy shares its blocks with the image where the file system can (btrfs, xfs); elsewhere it is made with its holes.
//! While the volume is mounted its writes are held back ([`freeze`]), so that a copy is what a disk would hold whose
//! machine lost power at that moment, with a clean journal. It gets its name when it is whole and on the disk; the
//! file's modification time is the moment.
//!
//! The writes to a block device cannot be held back. While one is in use it is copied where its blocks can be shared,
//! which the kernel does at one moment, and not at all elsewhere.

#[cfg(test)]
mod tests;

use std::fs::{DirBuilder, File, FileTimes};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::super::{VolumeError, claim, freeze, loops};
use super::{Fresh, Growth, Image, offline, rounded};
use crate::volumes::room;
use mainstay_runtime::safe_path::make_private_dir;

/// From `linux/fs.h`: `_IOW(0x94, 9, int)`.
const FICLONE: libc::Ioctl = 0x4004_9409;

/// A file beside a copy that could not be made in the time for which writes may be held back: it is tried again only
/// when nobody has to wait for it.
const TOO_LONG: &str = "image.too-long";
/// How much is copied between two looks at the time, in bytes.
const STEP: i64 = 64 << 20;

/// An image that is to become a copy of another.
#[derive(Clone, Copy, Debug)]
pub struct Copy<'a> {
    pub from: &'a Image,
    pub to: &'a Image,
}

/// How writes are held back.
#[derive(Clone, Copy, Debug)]
pub struct Hold<'a> {
    /// This program.
    pub exe: &'a Path,
    /// The longest that they are: [`freeze::LIMIT`].
    pub limit: Duration,
}

impl Image {
    /// When the volume became what it is, of a copy that nobody has written to, and its size in bytes; `None` where it
    /// is not there.
    pub fn moment(&self) -> io::Result<Option<(SystemTime, u64)>> {
        match self.open() {
            Ok(file) => file.metadata().and_then(|file| Ok(Some((file.modified()?, file.len())))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// As [`Image::ensure`], or [`Image::ensure_block`], of a volume that was not made yet and is to start as a copy of
    /// `from`.
    ///
    /// # Errors
    /// As [`Image::become_copy`].
    pub fn ensure_copy(&self, from: &Image, hold: Hold<'_>, size: u64, is_block: bool) -> Result<Growth, VolumeError> {
        self.become_copy(from, hold, size, is_block)?;
        if is_block { self.ensure_block(size, true) } else { self.ensure(size, true) }
    }

    /// Makes a volume as a copy of `from`, at least `size` bytes large, unless it is there; it is not mounted.
    ///
    /// # Errors
    /// Also where there is nothing to copy: it never starts empty.
    pub fn become_copy(&self, from: &Image, hold: Hold<'_>, size: u64, is_block: bool) -> Result<(), VolumeError> {
        if !self.file().exists() {
            for fresh in copy_all(&[Copy { from, to: self }], hold)? {
                let at = |what: &str| VolumeError::io(format!("{what} {}", self.file().display()));
                let length = fresh.file.metadata().map_err(at("measuring"))?.len();
                if is_block {
                    // As large as what is copied, or larger; what is beyond that is zeros.
                    self.mark_block()?;
                    fresh.file.set_len(length.max(rounded(size))).map_err(at("growing"))?;
                } else if length < rounded(size) {
                    offline::resize(&fresh.path(), &fresh.file, rounded(size))?;
                }
                fresh.name().map_err(at("naming"))?;
            }
        }
        Ok(())
    }
}

/// Makes snapshots, all of one moment, unless they are all there already. The callers hold the locks of all that is
/// copied.
///
/// # Errors
/// None of the copies counts then, and none is left under its name.
pub fn snapshots(copies: &[Copy<'_>], hold: Hold<'_>) -> Result<(), VolumeError> {
    if copies.iter().all(|copy| copy.to.file().exists()) {
        return Ok(());
    }
    for copy in copies {
        // Those of an attempt that was cut off are of another moment. Nobody mounts a snapshot.
        gone(&copy.to.file()).map_err(VolumeError::io(format!("removing {}", copy.to.file().display())))?;
    }
    for (fresh, copy) in copy_all(copies, hold)?.into_iter().zip(copies) {
        fresh.name().map_err(VolumeError::io(format!("naming {}", copy.to.file().display())))?;
    }
    Ok(())
}

/// Makes sure that a file is not there.
fn gone(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Copies images as they are at one moment.
fn copy_all(copies: &[Copy<'_>], hold: Hold<'_>) -> Result<Vec<Fresh>, VolumeError> {
    let mut open = Vec::new();
    let mut mounted = Vec::new();
    for copy in copies {
        let (file, writers) = source(copy.from)?;
        let how = if matches!(writers, Writers::Device(_)) { How::Shared } else { How::Any };
        match writers {
            Writers::Nobody => {}
            Writers::Mounted(point) => mounted.push(point),
            Writers::Device(device) => {
                // What is to be written anyway is in the copy.
                device.flush().map_err(VolumeError::io(format!("writing out {}", device.path().display())))?;
            }
        }
        let target = target(copy.to).map_err(VolumeError::io(format!("making {}", copy.to.dir.display())))?;
        open.push((file, target, how));
    }
    if open.iter().filter(|(.., how)| matches!(how, How::Shared)).count() > 1 {
        let why = "several block devices that are in use cannot be copied at one moment; they can be copied while no \
                   pod uses them";
        return Err(VolumeError::Refused(why.to_owned()));
    }
    let marks: Vec<PathBuf> = copies.iter().map(|copy| copy.to.dir.join(TOO_LONG)).collect();
    if !mounted.is_empty() && marks.iter().any(|mark| mark.exists()) {
        return Err(too_long(hold));
    }
    let frozen = if mounted.is_empty() { None } else { Some(freeze::freeze(hold.exe, mounted, hold.limit)?) };
    let (moment, until) = (SystemTime::now(), frozen.as_ref().map(|_| Instant::now() + hold.limit));
    let copied = open.iter_mut().zip(copies).try_for_each(|((file, target, how), copy)| {
        let copied = match how {
            How::Any => clone(file, target, &copy.to.root, until),
            How::Shared => share(file, &target.file),
        };
        copied
            .map_err(|error| (error.kind(), VolumeError::io(format!("copying {}", copy.from.file().display()))(error)))
    });
    let held = frozen.map_or(Ok(true), freeze::Frozen::thaw);
    let is_late = matches!(&copied, Err((io::ErrorKind::TimedOut, _))) || matches!(held, Ok(false));
    if is_late {
        // So that nobody is held back again in vain.
        marks
            .iter()
            .try_for_each(|mark| File::create(mark).map(|_| ()))
            .map_err(VolumeError::io("noting that it takes too long"))?;
        return Err(too_long(hold));
    }
    copied.map_err(|(_, error)| error)?;
    held.map_err(VolumeError::io("copying"))?;
    marks.iter().try_for_each(|mark| gone(mark)).map_err(VolumeError::io("copying"))?;
    let fresh = open.into_iter().map(|(_, target, _)| {
        target.file.set_times(FileTimes::new().set_modified(moment))?;
        Ok(target)
    });
    fresh.collect::<io::Result<_>>().map_err(VolumeError::io("noting the moment of the copy"))
}

fn too_long(hold: Hold<'_>) -> VolumeError {
    VolumeError::Refused(format!(
        "copying takes longer than the {} seconds for which the volume's writes may be held back; it can be copied \
            while no pod uses it",
        hold.limit.as_secs()
    ))
}

/// Who may write to an image while it is copied.
enum Writers {
    Nobody,
    /// Who uses the file system.
    Mounted(freeze::Mounted),
    /// Who has the block device.
    Device(loops::Loop),
}

/// How an image can be copied.
#[derive(Clone, Copy)]
enum How {
    Any,
    /// By sharing its blocks only.
    Shared,
}

/// An image to copy, and its writers. What is attached but not mounted here is somebody else's for now.
fn source(image: &Image) -> Result<(File, Writers), VolumeError> {
    let work = || -> io::Result<(File, Writers)> {
        let file = image.open()?;
        let Some(device) = loops::find(&file)? else { return Ok((file, Writers::Nobody)) };
        if image.is_block() {
            return Ok((file, Writers::Device(device)));
        }
        let mounted = freeze::mounted_at(&image.mount_point())?;
        if mounted.device != device.number()? {
            return Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                format!("{} has it, and it is not mounted", device.path().display()),
            ));
        }
        Ok((file, Writers::Mounted(mounted)))
    };
    work().map_err(VolumeError::io(format!("opening {} to copy it", image.file().display())))
}

/// An empty file for a copy.
fn target(image: &Image) -> io::Result<Fresh> {
    make_private_dir(&image.root)?;
    match DirBuilder::new().mode(0o700).create(&image.dir) {
        Ok(()) => File::open(&image.root)?.sync_all()?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    claim::must_exist(&image.root, &image.dir).map_err(io::Error::other)?;
    Fresh::new(&image.dir, 0)
}

/// Copies the file of a block device that is in use, by reference, which is done at one moment.
///
/// # Errors
/// The file system cannot do that.
fn share(from: &File, to: &File) -> io::Result<()> {
    match reference(from, to) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOTTY | libc::EINVAL)) => {
            Err(io::Error::other(
                "it is in use as a block device, whose writes cannot be held back, and this file system cannot share \
                 blocks (btrfs and xfs can); it can be copied while no pod uses it",
            ))
        }
        shared => shared,
    }
}

/// Lets one file share all blocks of another.
fn reference(from: &File, to: &File) -> io::Result<()> {
    // SAFETY: the argument is a descriptor.
    match unsafe { libc::ioctl(to.as_raw_fd(), FICLONE, from.as_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Copies a file with its holes; by reference where the file system can. What has to be copied takes no room that a
/// volume below `root` was promised, or another copy is still to take; it has its room until it is named or dropped.
///
/// # Errors
/// `StorageFull` where there is no such room; `TimedOut` where it is not done at `until`; what the kernel says
/// otherwise.
pub(super) fn clone(from: &File, fresh: &mut Fresh, root: &Path, until: Option<Instant>) -> io::Result<()> {
    let to = &fresh.file;
    if reference(from, to).is_ok() {
        return Ok(());
    }
    fresh.room = Some(room::reserve(root, to, from.metadata()?.blocks().saturating_mul(512))?);
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
        copy_range(from, to, data, at, until)?;
    }
    Ok(())
}

/// Copies the bytes from `start` to `end`.
fn copy_range(from: &File, to: &File, start: i64, end: i64, until: Option<Instant>) -> io::Result<()> {
    let (mut read, mut written) = (start, start);
    while read < end {
        if until.is_some_and(|until| Instant::now() >= until) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let left = usize::try_from((end - read).min(STEP)).map_err(io::Error::other)?;
        // SAFETY: both offsets are ours for the time of the call.
        let copied = unsafe {
            libc::copy_file_range(from.as_raw_fd(), &raw mut read, to.as_raw_fd(), &raw mut written, left, 0)
        };
        match copied {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            copied if copied < 0 => return Err(io::Error::last_os_error()),
            _ => {}
        }
    }
    Ok(())
}
