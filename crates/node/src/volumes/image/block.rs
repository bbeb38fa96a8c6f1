//! A volume that is given to containers as it is: a block device of the size that was asked for (V10), without a file
//! system.
//!
//! ```text
//! <volume root>/<volume>/block   says so: nobody ever makes or mounts a file system here
//! <volume root>/<volume>/image   what is on the device
//! ```
//!
//! The loop device is attached from the first use to [`Image::unmount`] after the last one, whether anybody has it open
//! or not. Which one it is is asked of the kernel.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::super::{VolumeError, loops};
use super::{Growth, Image, rounded};

/// The file that says what a volume is.
const MARK: &str = "block";

impl Image {
    /// Whether it is a block device.
    pub fn is_block(&self) -> bool {
        self.dir.join(MARK).exists()
    }

    /// Makes the volume ready, at least `size` bytes large: makes it where there is none (unless it was `made` before:
    /// then its data is lost, and no empty one takes its place, V5), attaches it, lets it grow.
    pub fn ensure_block(&self, size: u64, made: bool) -> Result<Growth, VolumeError> {
        if !self.is_there(made)? {
            // The mark comes first: an image that has its name is never taken for another kind of volume's.
            self.make(rounded(size), |_| self.mark_block())?;
        }
        self.attach()?;
        self.grow(size)
    }

    /// Says that it is a block device, before it has an image.
    pub(super) fn mark_block(&self) -> Result<(), VolumeError> {
        let marked = File::create(self.dir.join(MARK)).and_then(|mark| mark.sync_all());
        marked.map_err(VolumeError::io(format!("marking {}", self.dir.display())))
    }

    /// The number of the device that has the image, which is attached where it is not.
    ///
    /// # Errors
    /// It is a file system's; there are no loop devices.
    pub fn attach(&self) -> Result<u64, VolumeError> {
        if !self.is_block() {
            return Err(VolumeError::Refused(format!("{} is not a block device's", self.file().display())));
        }
        let attached = self.open().and_then(|file| loops::attach_kept(&file)?.number());
        attached.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => VolumeError::Refused(format!(
                "{} cannot be attached: this node has no loop devices ({error})",
                self.file().display()
            )),
            _ => VolumeError::Io { what: format!("attaching {}", self.file().display()), source: error },
        })
    }

    /// Lets the device go, where one has the image.
    pub(super) fn detach(&self) -> io::Result<()> {
        match self.open() {
            Ok(file) => loops::find(&file)?.map_or(Ok(()), loops::Loop::detach),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Lets file and device grow to `size` bytes. Neither shrinks; after a crash half-way the next call goes on.
    pub(super) fn grow_block(&self, size: u64) -> Result<Growth, VolumeError> {
        let work = || -> io::Result<Growth> {
            let file = self.open()?;
            if file.metadata()?.len() < size {
                file.set_len(size)?;
                file.sync_all()?;
            }
            if let Some(device) = loops::find(&file)? {
                device.follow_size()?;
            }
            Ok(Growth::Done)
        };
        work().map_err(VolumeError::io(format!("growing {} to {size} bytes", self.file().display())))
    }
}

/// The volumes below the root that are block devices, and attached.
pub(super) fn attached(root: &Path) -> io::Result<Vec<Image>> {
    let folders = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        folders => folders?,
    };
    let mut found = Vec::new();
    for folder in folders {
        let Ok(image) = Image::new(root, &folder?.path()) else { continue };
        if image.is_block() && image.is_mounted().unwrap_or(false) {
            found.push(image);
        }
    }
    Ok(found)
}

/// Lets every device go that has a volume of this root. For a node that is taken away.
///
/// # Errors
/// The kernel's.
pub fn detach_all(root: &Path) -> io::Result<()> {
    attached(root)?.iter().try_for_each(Image::detach)
}
