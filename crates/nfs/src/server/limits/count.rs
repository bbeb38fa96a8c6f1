//! Counting what a folder uses: every file below it once, through no link and across no mount.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use nix::fcntl::OFlag;

use crate::server::export::Export;
use mainstay_runtime::kernel::FileHandle;
use mainstay_runtime::safe_path;

/// Whether there is anything in a folder.
pub fn any(folder: &OwnedFd) -> io::Result<bool> {
    Ok(std::fs::read_dir(safe_path::fd_path(folder))?.next().transpose()?.is_some())
}

/// What is below a folder costs (bytes); the folder itself costs nothing. Folders that wait to be looked into are
/// held by their handles, not as open files.
pub fn used(export: &Export, folder: &OwnedFd) -> io::Result<u64> {
    let mut used: u64 = 0;
    let mut linked = HashSet::new();
    let mut waiting = vec![FileHandle::of(folder)?];
    while let Some(next) = waiting.pop() {
        let dir = next.open(export.root.as_raw_fd())?;
        for entry in std::fs::read_dir(safe_path::fd_path(&dir))? {
            let name = entry?.file_name();
            let found = match safe_path::open_strict(&dir, Path::new(&name), OFlag::O_PATH | OFlag::O_NOFOLLOW) {
                // Gone meanwhile, or another file system.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EXDEV)) => continue,
                found => found?,
            };
            let stat = nix::sys::stat::fstat(found.as_raw_fd())?;
            let is_dir = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
            if !is_dir && stat.st_nlink > 1 && !linked.insert(stat.st_ino) {
                continue;
            }
            used = used.saturating_add(super::cost(&stat));
            if is_dir {
                waiting.push(FileHandle::of(&found)?);
            }
        }
    }
    Ok(used)
}
