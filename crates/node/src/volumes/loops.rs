//! Loop devices by ioctl: the kernel's way to see a file as a disk.
//!
//! A device that is to be mounted is attached with "autoclear": the kernel lets the file go when the last user (our
//! descriptor, then the mount) is gone. So nothing has to be detached, and a kill -9 between attaching and mounting
//! leaves nothing behind. One that is given to containers ([`attach_kept`]) has no such user, for nobody has to have it
//! open: it keeps file and number until it is detached, so that the number never becomes another volume's meanwhile.
//! Which file a device has is asked of the kernel each time; nothing is remembered (V7).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// From `linux/loop.h`.
const LOOP_CLR_FD: libc::Ioctl = 0x4C01;
const LOOP_SET_STATUS64: libc::Ioctl = 0x4C04;
const LOOP_GET_STATUS64: libc::Ioctl = 0x4C05;
const LOOP_SET_CAPACITY: libc::Ioctl = 0x4C07;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;
/// Others look for free devices, too, and may be faster; after this many lost races it is an error.
const RACES: usize = 64;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

const NOTHING: Info = Info {
    device: 0,
    inode: 0,
    rdevice: 0,
    offset: 0,
    size_limit: 0,
    number: 0,
    encrypt_type: 0,
    encrypt_key_size: 0,
    flags: 0,
    file_name: [0; 64],
    crypt_name: [0; 64],
    encrypt_key: [0; 32],
    init: [0; 2],
};

/// A loop device that is held open, and so keeps its file until it is mounted or dropped.
#[derive(Debug)]
pub struct Loop {
    device: File,
    path: PathBuf,
}

impl Loop {
    /// `/dev/loop7`
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its number, as `st_dev` of what is mounted from it.
    pub fn number(&self) -> io::Result<u64> {
        Ok(self.device.metadata()?.rdev())
    }

    /// Takes over the size of its file, after the file has grown.
    pub fn follow_size(&self) -> io::Result<()> {
        // SAFETY: the request takes no argument.
        check(unsafe { libc::ioctl(self.device.as_raw_fd(), LOOP_SET_CAPACITY, 0) }).map(|_| ())
    }

    /// Brings to the file what was written to the device.
    pub fn flush(&self) -> io::Result<()> {
        self.device.sync_all()
    }

    /// Lets the file go; where somebody has the device open, with them.
    pub fn detach(self) -> io::Result<()> {
        // SAFETY: the request takes no argument.
        match check(unsafe { libc::ioctl(self.device.as_raw_fd(), LOOP_CLR_FD, 0) }) {
            // Somebody else did.
            Err(error) if error.raw_os_error() != Some(libc::ENXIO) => Err(error),
            _ => Ok(()),
        }
    }

    /// Keeps the file also when nobody has the device open.
    fn keep(&self) -> io::Result<()> {
        let mut info = NOTHING;
        // SAFETY: the kernel fills in a `loop_info64`, which `Info` is.
        check(unsafe { libc::ioctl(self.device.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) })?;
        if info.flags & LO_FLAGS_AUTOCLEAR == 0 {
            return Ok(());
        }
        info.flags &= !LO_FLAGS_AUTOCLEAR;
        // SAFETY: the kernel reads a `loop_info64`.
        check(unsafe { libc::ioctl(self.device.as_raw_fd(), LOOP_SET_STATUS64, &raw const info) }).map(|_| ())
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Whether a device has this file now.
pub(super) fn has(device: &File, file: &fs::Metadata) -> bool {
    let mut info = NOTHING;
    // SAFETY: the kernel fills in a `loop_info64`, which `Info` is.
    let asked = check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) });
    asked.is_ok() && (info.device, info.inode) == (file.dev(), file.ino())
}

/// The device that has this file, if one has it.
pub fn find(file: &File) -> io::Result<Option<Loop>> {
    let wanted = file.metadata()?;
    for entry in fs::read_dir("/sys/block")? {
        let entry = entry?;
        let name = entry.file_name();
        // Only a device that has a file has this; the others are not opened.
        if !name.to_string_lossy().starts_with("loop") || !entry.path().join("loop/backing_file").exists() {
            continue;
        }
        let path = Path::new("/dev").join(&name);
        // A device can go between the two looks.
        let Ok(device) = File::open(&path) else { continue };
        if has(&device, &wanted) {
            return Ok(Some(Loop { device, path }));
        }
    }
    Ok(None)
}

/// The device that has this file; a new one where none has. Two callers for one file must exclude each other.
///
/// # Errors
/// `NotFound` where the kernel has no loop devices (or `/dev/loop-control` is not there); what it said otherwise.
pub fn attach(file: &File) -> io::Result<Loop> {
    // Direct IO keeps the data once in memory, not twice; where the file system cannot, the kernel goes without.
    attach_with(file, LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO)
}

/// As [`attach`], and the device has the file until [`Loop::detach`].
///
/// # Errors
/// As [`attach`].
pub fn attach_kept(file: &File) -> io::Result<Loop> {
    let device = attach_with(file, LO_FLAGS_DIRECT_IO)?;
    device.keep()?;
    Ok(device)
}

fn attach_with(file: &File, flags: u32) -> io::Result<Loop> {
    if let Some(found) = find(file)? {
        return Ok(found);
    }
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
    let fd = u32::try_from(file.as_raw_fd()).map_err(io::Error::other)?;
    for _ in 0..RACES {
        // SAFETY: the request takes no argument.
        let number = check(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE, 0) })?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = OpenOptions::new().read(true).write(true).open(&path)?;
        let info = Info { flags, ..NOTHING };
        let config = Config { fd, block_size: 0, info, reserved: [0; 8] };
        // SAFETY: the kernel reads a `loop_config`, which `Config` is.
        match check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) }) {
            Ok(_) => return Ok(Loop { device, path }),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "other programs took every free loop device"))
}
