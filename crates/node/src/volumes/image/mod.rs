//! A volume that holds as much as was asked for: an ext4 file system in a sparse file (V10).
//!
//! ```text
//! <volume root>/<volume>/           0700, root's
//! <volume root>/<volume>/image      the file system; as long as the volume is large, sparse
//! <volume root>/<volume>/image.new  one that is being made or grown; after a crash it is removed
//! <volume root>/<volume>/fs/        where it is mounted
//! <volume root>/<volume>/fs/data/   what pods see: a folder that is empty at first (`lost+found` stays beside it) and
//!                                   is not there at all while nothing is mounted
//! ```
//!
//! Every step looks at what the kernel says and goes on from there, so that a crash after any of them is made good by
//! calling again (V7). An image gets its name when its file system is whole and on the disk; one that has its name is
//! never made anew, whatever it holds.
//!
//! A volume of mode Block is the same without a file system: see [`block`].
//!
//! The callers see to it that one volume is worked on by one of them at a time.

mod block;
pub mod copy;
mod offline;
#[cfg(test)]
mod tests;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, MsFlags};

use mainstay_logic::volume;

pub use block::detach_all;

use super::{VolumeError, claim, loops, room};
use mainstay_runtime::safe_path::make_private_dir;
use mainstay_runtime::safe_path::{self, mounts, remove};

/// The file system's block, in bytes.
const BLOCK: u64 = volume::IMAGE_BLOCK.cast_unsigned();
/// Where e2fsprogs may be besides `PATH`.
const SYSTEM_PATH: &str = "/usr/sbin:/sbin:/usr/bin:/bin";
/// `df` shows the whole size; space that is freed goes back to the machine; unwritten parts of a sparse file are zero
/// already, so nobody needs to zero them.
const OPTIONS: &str = "minixdf,discard,noinit_itable";
/// From `linux/ext4.h`: `_IOW('f', 16, __u64)`, the new number of blocks.
const EXT4_IOC_RESIZE_FS: libc::Ioctl = 0x4008_6610;

/// What came of growing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Growth {
    /// The volume is as large as was asked for.
    Done,
    /// The kernel does not let this process grow a mounted file system (it takes CAP_SYS_RESOURCE, and one without
    /// errors): it grows when it is mounted next.
    NextMount,
}

/// What came of looking after a volume that may have become read-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// It takes writes, or is not mounted.
    Unneeded,
    /// It was checked, and takes writes again.
    Done,
    /// It takes no writes, and a container still has it: there is nothing to be done before that has ended.
    InUse,
}

/// The places of one volume.
#[derive(Clone, Debug)]
pub struct Image {
    root: PathBuf,
    dir: PathBuf,
}

impl Image {
    /// The volume whose folder is `dir`, which must lie directly below the volume root.
    pub fn new(root: &Path, dir: &Path) -> Result<Self, VolumeError> {
        let inside = claim::relative(root, dir)?;
        if inside.components().count() != 1 {
            return Err(VolumeError::Refused(format!("{} is not directly below {}", dir.display(), root.display())));
        }
        Ok(Self { root: root.to_owned(), dir: dir.to_owned() })
    }

    /// The volume that a pod sees at `path`, if it is one of these.
    pub fn behind(root: &Path, path: &Path) -> Option<Self> {
        let dir = path.ends_with("fs/data").then(|| path.ancestors().nth(2))??;
        Self::new(root, dir).ok()
    }

    /// The name of the volume's folder, which is the PersistentVolume's.
    pub fn name(&self) -> String {
        self.dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    fn file(&self) -> PathBuf {
        self.dir.join("image")
    }

    fn mount_point(&self) -> PathBuf {
        self.dir.join("fs")
    }

    /// What pods see.
    pub fn data(&self) -> PathBuf {
        self.mount_point().join("data")
    }

    /// Makes the volume ready, at least `size` bytes large: makes it where there is none (unless it was `made` before:
    /// then its data is lost, and no empty one takes its place, V5), mounts it, lets it grow.
    pub fn ensure(&self, size: u64, made: bool) -> Result<Growth, VolumeError> {
        let at = |what: &str| VolumeError::io(format!("{what} {}", self.file().display()));
        if self.is_block() {
            return Err(VolumeError::Refused(format!("{} is a block device's", self.file().display())));
        }
        if !self.is_there(made)? {
            self.make(rounded(size), make_file_system)?;
        }
        let fresh = self.mount(&self.open().map_err(at("opening"))?)?;
        if !self.data().exists() {
            if made {
                return Err(VolumeError::Refused(format!(
                    "{} is missing: refusing to start on an empty one",
                    self.data().display()
                )));
            }
            self.make_data().map_err(at("making the folder for pods in"))?;
        }
        match self.grow(size)? {
            Growth::NextMount if fresh => self.grow_unmounted(size),
            growth => Ok(growth),
        }
    }

    /// Whether there is an image.
    ///
    /// # Errors
    /// It was `made`, and is gone (V5).
    fn is_there(&self, made: bool) -> Result<bool, VolumeError> {
        if made {
            claim::must_exist(&self.root, &self.dir)?;
        }
        if self.file().exists() {
            return Ok(true);
        }
        if made {
            return Err(VolumeError::Refused(format!(
                "the volume's image {} is missing: its data was made on this node and is gone; refusing to start on \
                    an empty one",
                self.file().display()
            )));
        }
        Ok(false)
    }

    /// Grows a volume that was mounted just now, and that nobody uses yet, while it is not mounted.
    fn grow_unmounted(&self, size: u64) -> Result<Growth, VolumeError> {
        let at = |what: &str| VolumeError::io(format!("{what} {}", self.file().display()));
        self.unmount().map_err(at("unmounting"))?;
        let file = self.open().map_err(at("opening"))?;
        // Where a container still has it from before, it is not at rest.
        if loops::find(&file).map_err(at("looking for"))?.is_none() {
            offline::grow(&self.root, &self.dir, &file, rounded(size))?;
        }
        self.mount(&self.open().map_err(at("opening"))?)?;
        self.grow(size)
    }

    /// The image; not through a link.
    fn open(&self) -> io::Result<File> {
        let dir = safe_path::open_root(&self.dir)?;
        safe_path::open_strict(&dir, Path::new("image"), nix::fcntl::OFlag::O_RDWR).map(File::from)
    }

    /// Makes the image beside its place, and gives it its name when it is whole (`finish` has seen to that) and on the
    /// disk.
    fn make(&self, size: u64, finish: impl FnOnce(&Path) -> Result<(), VolumeError>) -> Result<(), VolumeError> {
        let begin = || -> io::Result<Fresh> {
            make_private_dir(&self.root)?;
            match fs::DirBuilder::new().mode(0o700).create(&self.dir) {
                Ok(()) => File::open(&self.root)?.sync_all()?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
            claim::must_exist(&self.root, &self.dir).map_err(io::Error::other)?;
            Fresh::new(&self.dir, size)
        };
        let fresh = begin().map_err(VolumeError::io(format!("making {}", self.dir.join(FRESH).display())))?;
        finish(&fresh.path())?;
        fresh.name().map_err(VolumeError::io(format!("making {}", self.file().display())))
    }

    /// Mounts the image, unless it is; whether it was not.
    fn mount(&self, file: &File) -> Result<bool, VolumeError> {
        let point = self.mount_point();
        let work = || -> io::Result<bool> {
            make_private_dir(&point)?;
            let device = loops::attach(file)?;
            if mounts::is_mounted(&point)? {
                let mounted = fs::symlink_metadata(&point)?.dev();
                return if mounted == device.number()? {
                    Ok(false)
                } else {
                    Err(io::Error::other(format!("something else is mounted on {}", point.display())))
                };
            }
            // While the device is held, it keeps the file; from here on the mount does.
            nix::mount::mount(Some(device.path()), &point, Some("ext4"), MsFlags::MS_NODEV, Some(OPTIONS))?;
            Ok(true)
        };
        work().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => VolumeError::Refused(format!(
                "{} cannot be mounted: this node has no loop devices ({error}); a StorageClass with the parameter \
                    mainstay.io/size: none makes plain directories",
                self.file().display()
            )),
            _ => VolumeError::Io { what: format!("mounting {}", self.file().display()), source: error },
        })
    }

    /// The folder for pods: any user's from the moment it has its name, and on the disk before anybody is told of it.
    fn make_data(&self) -> io::Result<()> {
        let fresh = self.mount_point().join("data.new");
        make_private_dir(&fresh)?;
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o777))?;
        fs::rename(&fresh, self.data())?;
        let fs = File::open(self.mount_point())?;
        nix::unistd::syncfs(fs.as_raw_fd()).map_err(io::Error::from)
    }

    /// Whether it is mounted, or attached where it is a block device.
    pub fn is_mounted(&self) -> io::Result<bool> {
        if self.is_block() {
            return Ok(loops::find(&self.open()?)?.is_some());
        }
        mounts::is_mounted(&self.mount_point())
    }

    /// Lets the mounted volume grow to at least `size` bytes: the file, the device, the file system. It never shrinks.
    /// After a crash half-way the next call goes on.
    pub fn grow(&self, size: u64) -> Result<Growth, VolumeError> {
        let size = rounded(size);
        if self.is_block() {
            return self.grow_block(size);
        }
        let work = || -> io::Result<Growth> {
            let fs = File::open(self.mount_point())?;
            let blocks = nix::sys::statvfs::fstatvfs(&fs)?;
            if blocks.blocks().saturating_mul(blocks.fragment_size()) >= size {
                return Ok(Growth::Done);
            }
            let file = self.open()?;
            let device = loops::find(&file)?.ok_or_else(|| io::Error::other("it is not mounted"))?;
            if device.number()? != fs.metadata()?.dev() {
                return Err(io::Error::other(format!("something else is mounted on {}", self.mount_point().display())));
            }
            if file.metadata()?.len() < size {
                file.set_len(size)?;
                file.sync_all()?;
            }
            device.follow_size()?;
            let wanted: u64 = size / BLOCK;
            // SAFETY: the kernel reads one u64.
            if unsafe { libc::ioctl(fs.as_raw_fd(), EXT4_IOC_RESIZE_FS, &raw const wanted) } < 0 {
                let error = io::Error::last_os_error();
                return if error.raw_os_error() == Some(libc::EPERM) { Ok(Growth::NextMount) } else { Err(error) };
            }
            nix::unistd::syncfs(fs.as_raw_fd())?;
            Ok(Growth::Done)
        };
        work().map_err(VolumeError::io(format!("growing {} to {size} bytes", self.file().display())))
    }

    /// Unmounts it, where it is mounted. The loop device goes with its last user.
    pub fn unmount(&self) -> io::Result<()> {
        if self.is_block() {
            return self.detach();
        }
        let point = self.mount_point();
        if !mounts::is_mounted(&point)? {
            return Ok(());
        }
        nix::mount::umount2(&point, MntFlags::UMOUNT_NOFOLLOW).map_err(io::Error::from)
    }

    /// Makes a volume that takes no writes any more (an error below it, such as a full disk) writable again: unmounts
    /// it everywhere here, checks it, mounts it. Nothing happens to one that is well, or not mounted.
    ///
    /// # Errors
    /// What could not be mended by itself; it is then not mounted, and nobody starts on the empty folder.
    pub fn recover(&self) -> Result<Recovery, VolumeError> {
        let at = |what: &str| VolumeError::io(format!("{what} {}", self.file().display()));
        let mounted = mounts::file_system(&self.mount_point()).map_err(at("looking for"))?;
        let Some(mounted) = mounted.filter(mounts::FileSystem::is_read_only) else { return Ok(Recovery::Unneeded) };
        let mut in_use = false;
        for point in mounted.points.iter().rev() {
            match nix::mount::umount2(point, MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) => {}
                Err(nix::errno::Errno::EBUSY) => in_use = true,
                Err(error) => return Err(at("unmounting")(error.into())),
            }
        }
        let file = self.open().map_err(at("opening"))?;
        // The kernel lets the file go when nobody has it mounted any more, also no container.
        if in_use || loops::find(&file).map_err(at("looking for"))?.is_some() {
            self.mount(&file)?;
            return Ok(Recovery::InUse);
        }
        offline::check(&self.file())?;
        self.mount(&file)?;
        Ok(Recovery::Done)
    }

    /// Removes what an attempt that was cut off has left beside it.
    pub fn tidy(&self) -> io::Result<()> {
        remove_fresh(&self.dir)
    }

    /// Notes that the volume was promised without a look at the room.
    pub fn note_overcommitted(&self) -> Result<(), VolumeError> {
        room::note_overcommitted(&self.dir).map_err(VolumeError::io(format!("noting in {}", self.dir.display())))
    }

    /// Removes the volume with its data: only when nobody, in no mount namespace, has it mounted (V3, V8).
    pub fn delete(&self) -> Result<(), VolumeError> {
        let work = || -> io::Result<()> {
            self.unmount()?;
            match self.open() {
                Ok(file) => {
                    if let Some(device) = loops::find(&file)? {
                        let text = format!("{} still has the image", device.path().display());
                        return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            match remove::tree(&self.root, &self.dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        };
        work().map_err(VolumeError::io(format!("removing {}", self.dir.display())))
    }
}

/// The file beside an image, or beside its place, that is to take its name.
const FRESH: &str = "image.new";

/// An image that has no name yet. Dropped without one it is removed: it has taken room that may be another volume's.
struct Fresh {
    dir: PathBuf,
    file: File,
    is_named: bool,
    /// What a copy is still to take: nobody else gets it until all of it is on the disk.
    room: Option<room::Reservation>,
}

impl Fresh {
    /// An empty file of this size, in the place of a half-made one.
    fn new(dir: &Path, size: u64) -> io::Result<Self> {
        let path = dir.join(FRESH);
        remove_fresh(dir)?;
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        let fresh = Self { dir: dir.to_owned(), file, is_named: false, room: None };
        fresh.file.set_len(size)?;
        Ok(fresh)
    }

    fn path(&self) -> PathBuf {
        self.dir.join(FRESH)
    }

    /// Gives it its name: it is whole.
    fn name(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(self.path(), self.dir.join("image"))?;
        self.is_named = true;
        File::open(&self.dir)?.sync_all()
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if !self.is_named
            && let Err(error) = remove_fresh(&self.dir)
        {
            tracing::warn!(path = %self.path().display(), %error, "what was half made stays");
        }
    }
}

/// Removes what an attempt that was cut off has left beside an image.
fn remove_fresh(dir: &Path) -> io::Result<()> {
    match fs::remove_file(dir.join(FRESH)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The volumes and snapshots below the root beside which somebody was making an image, or still is.
pub fn begun(root: &Path) -> io::Result<Vec<Image>> {
    let folders = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        folders => folders?,
    };
    let mut found = Vec::new();
    for folder in folders {
        let dir = folder?.path();
        if dir.join(FRESH).symlink_metadata().is_ok_and(|fresh| fresh.is_file()) {
            found.extend(Image::new(root, &dir));
        }
    }
    Ok(found)
}

/// All volumes below the root that are mounted, or attached.
pub fn mounted(root: &Path) -> io::Result<Vec<Image>> {
    let points = mounts::below(root)?;
    let mounted = points.iter().filter_map(|point| Image::behind(root, &point.join("data")));
    Ok(mounted.chain(block::attached(root)?).collect())
}

/// What an image for a volume of this size is large, in bytes.
fn rounded(size: u64) -> u64 {
    i64::try_from(size).map_or(size, |size| volume::image_size(size).cast_unsigned())
}

fn make_file_system(file: &Path) -> Result<(), VolumeError> {
    // Nothing is written that the sparse file does not need: a volume is made in milliseconds, whatever its size.
    let arguments = ["-q", "-F", "-b", "4096", "-i", "16384", "-I", "256", "-m", "0"];
    let sparse = ["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"];
    run("mkfs.ext4", &[&arguments[..], &sparse[..]].concat(), file, 0)
}

/// Where a program of the system's is.
pub(super) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").map_or_else(|_| SYSTEM_PATH.to_owned(), |path| format!("{path}:{SYSTEM_PATH}"));
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|program| program.is_file())
}

/// Runs one of e2fsprogs on a file; exit codes above `fine` are errors.
fn run(name: &str, arguments: &[&str], file: &Path, fine: i32) -> Result<(), VolumeError> {
    let Some(program) = program(name) else {
        return Err(VolumeError::Refused(format!(
            "this node has no {name} (package e2fsprogs), which volumes need to keep their size; install it, or use a \
                StorageClass with the \
             parameter mainstay.io/size: none"
        )));
    };
    let output = Command::new(program).args(arguments).arg(file).stdin(Stdio::null()).output();
    let output = output.map_err(VolumeError::io(format!("running {name}")))?;
    if output.status.code().is_some_and(|code| code <= fine) {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(VolumeError::Refused(format!("{name} {}: {} ({})", file.display(), said.trim(), output.status)))
}
