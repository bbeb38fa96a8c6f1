//! `fsGroup`: a volume's files belong to the group and are its to use.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag};
use nix::unistd::Gid;

use mainstay_runtime::safe_path;

/// What the group may do: read and write; folders also hand the group on to what is made in them.
const FILE_BITS: u32 = 0o660;
const DIR_BITS: u32 = 0o2770;

/// Gives a volume to a group, without following links or crossing mounts. With `on_root_mismatch` a volume whose
/// root is right already is taken to be right all through.
pub fn give_to_group(volume: &Path, group: u32, on_root_mismatch: bool) -> io::Result<()> {
    let root = safe_path::open_root(volume)?;
    let metadata = fs::metadata(safe_path::fd_path(&root))?;
    if on_root_mismatch && metadata.gid() == group && metadata.mode() & DIR_BITS == DIR_BITS {
        return Ok(());
    }
    // The root comes last: until all is done, it does not look right.
    let mut open = vec![PathBuf::from(".")];
    while let Some(dir) = open.pop() {
        let fd = safe_path::open_strict(&root, &dir, OFlag::O_DIRECTORY)?;
        for entry in fs::read_dir(safe_path::fd_path(&fd))? {
            let path = dir.join(entry?.file_name());
            let found = match safe_path::open_strict(&root, &path, OFlag::O_PATH | OFlag::O_NOFOLLOW) {
                // A mount inside is not this volume; what went away needs nothing.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EXDEV | libc::ENOENT | libc::ELOOP)) => {
                    continue;
                }
                found => found?,
            };
            if change(&found, group)? {
                open.push(path);
            }
        }
    }
    change(&root, group).map(|_| ())
}

/// Changes one file; whether it is a folder.
fn change(file: &OwnedFd, group: u32) -> io::Result<bool> {
    use std::os::fd::AsRawFd as _;
    let metadata = fs::metadata(safe_path::fd_path(file))?;
    if metadata.is_symlink() {
        return Ok(false);
    }
    if metadata.gid() != group {
        nix::unistd::fchownat(Some(file.as_raw_fd()), "", None, Some(Gid::from_raw(group)), AtFlags::AT_EMPTY_PATH)?;
    }
    let bits = if metadata.is_dir() { DIR_BITS } else { FILE_BITS };
    if metadata.mode() & bits != bits {
        fs::set_permissions(safe_path::fd_path(file), fs::Permissions::from_mode(metadata.mode() & 0o7777 | bits))?;
    }
    Ok(metadata.is_dir())
}
