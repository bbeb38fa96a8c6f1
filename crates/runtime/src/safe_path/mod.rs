//! Opening paths that others may have a hand in: never out of a folder, never through what they should not pass.

pub mod mounts;
pub mod remove;
pub mod usage;

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Component, Path};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

/// Opens a folder that is ours; not through a link.
pub fn open_root(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = nix::fcntl::open(path, flags, nix::sys::stat::Mode::empty())?;
    // SAFETY: the descriptor was just opened and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens something below a folder without any symbolic link and without crossing a mount.
pub fn open_strict(root: &OwnedFd, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV;
    open_with(root, path, flags, resolve)
}

/// Opens something below a folder; links are followed as long as they stay below it.
pub fn open_within(root: &OwnedFd, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    open_with(root, path, flags, ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS)
}

/// Opens something below a folder without any symbolic link; mounts are crossed.
pub fn open_plain(root: &OwnedFd, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    open_with(root, path, flags, ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS)
}

fn open_with(root: &OwnedFd, path: &Path, flags: OFlag, resolve: ResolveFlag) -> io::Result<OwnedFd> {
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve);
    loop {
        match openat2(root.as_raw_fd(), path, how) {
            // The kernel gives up when something is renamed meanwhile; it says to ask again.
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => {}
            result => {
                let fd = result?;
                // SAFETY: the descriptor was just opened and nobody else has it.
                return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
}

/// A relative path of plain names, or an error: what a spec may name inside a volume.
pub fn plain(path: &str) -> io::Result<&Path> {
    let ok = !path.is_empty()
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if ok {
        Ok(Path::new(path))
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{path:?} is not a relative path without '..'")))
    }
}

/// A file's place as the kernel knows it, whatever its name is by now.
pub fn fd_path(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Makes a folder and its parents, readable by root only.
pub fn make_private_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}
