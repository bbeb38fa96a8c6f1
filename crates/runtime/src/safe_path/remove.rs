//! Removing a folder that others have written into: never through a link, never across a mount (V3, V8).

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::unistd::UnlinkatFlags;

use super::mounts;

/// Removes the folder `dir` with all that is in it. `dir` must lie strictly below `root`. Nothing is removed where
/// anything is mounted at or below it; a mount that appears meanwhile stops the removal.
///
/// Folders inside are emptied into the top one as they are met, so that neither descriptors nor stack grow with
/// the depth that somebody gave them.
///
/// # Errors
/// `NotFound` where it is not there; otherwise what the kernel said, or that it is outside or mounted.
pub fn tree(root: &Path, dir: &Path) -> io::Result<()> {
    let outside =
        || io::Error::new(io::ErrorKind::InvalidInput, format!("{} is not inside {}", dir.display(), root.display()));
    let relative = dir.strip_prefix(root).map_err(|_| outside())?;
    let relative = super::plain(relative.to_str().ok_or_else(outside)?)?;
    let name = relative.file_name().ok_or_else(outside)?;
    let root = super::open_root(root)?;
    if let Some(mount) = mounts::below(dir)?.first() {
        return Err(io::Error::other(format!("{} is a mount point", mount.display())));
    }
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    let parent = match relative.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => super::open_strict(&root, parent, flags)?,
        _ => root,
    };
    folder_in(&parent, name)
}

/// Removes a folder in an open one with all that is in it, however deep: as [`tree`], but for the look for mounts
/// beforehand.
pub fn folder_in(parent: &OwnedFd, name: &std::ffi::OsStr) -> io::Result<()> {
    let top = super::open_strict(parent, Path::new(name), OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW)?;
    empty(&top)?;
    nix::unistd::unlinkat(Some(parent.as_raw_fd()), name, UnlinkatFlags::RemoveDir).map_err(io::Error::from)
}

fn names(dir: &OwnedFd) -> io::Result<std::fs::ReadDir> {
    std::fs::read_dir(super::fd_path(dir))
}

/// Removes all that is in an open folder, but not the folder.
pub fn empty(top: &OwnedFd) -> io::Result<()> {
    let mut moved: u64 = 0;
    loop {
        let mut any = false;
        for entry in names(top)? {
            any = true;
            let name = entry?.file_name();
            if unlink(top, &name)? {
                continue;
            }
            let inner = super::open_strict(top, Path::new(&name), OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW)?;
            for entry in names(&inner)? {
                let inner_name = entry?.file_name();
                if !unlink(&inner, &inner_name)? {
                    move_up(&inner, &inner_name, top, &mut moved)?;
                }
            }
            nix::unistd::unlinkat(Some(top.as_raw_fd()), name.as_os_str(), UnlinkatFlags::RemoveDir)
                .map_err(io::Error::from)?;
        }
        if !any {
            return Ok(());
        }
    }
}

/// Removes anything but a folder; `false` for a folder.
fn unlink(dir: &OwnedFd, name: &std::ffi::OsStr) -> io::Result<bool> {
    match nix::unistd::unlinkat(Some(dir.as_raw_fd()), name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(nix::errno::Errno::ENOENT) => Ok(true),
        Err(nix::errno::Errno::EISDIR | nix::errno::Errno::EPERM) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn move_up(from: &OwnedFd, name: &std::ffi::OsStr, top: &OwnedFd, moved: &mut u64) -> io::Result<()> {
    loop {
        let fresh = format!(".removing-{moved}");
        *moved += 1;
        match nix::fcntl::renameat(Some(from.as_raw_fd()), name, Some(top.as_raw_fd()), fresh.as_str()) {
            // Somebody's own name; the next number.
            Err(nix::errno::Errno::EEXIST | nix::errno::Errno::ENOTEMPTY | nix::errno::Errno::ENOTDIR) => {}
            result => return result.map_err(io::Error::from),
        }
    }
}
