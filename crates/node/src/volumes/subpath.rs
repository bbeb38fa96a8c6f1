//! `subPath`: a part of a volume, held by descriptor and bound to a folder of our own, so that what the container does
//! to the names afterwards cannot lead out of the volume (X3).

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::mount::MntFlags;
use nix::sys::stat::Mode;
use nix::unistd::Gid;

use mainstay_runtime::safe_path::make_private_dir;
use mainstay_runtime::safe_path::{self, mounts};

/// The bits of a volume's folder that folders made in it get too: who may do what, and the handing on of its group.
const MODE_BITS: u32 = 0o3777;

/// Binds `sub_path` of a volume to `target` and gives the place. Idempotent, but looked up anew each time, as upstream
/// does: a container that starts again gets what has the name by now, also where a restore or a newer ConfigMap has
/// put another file or folder there, or where the file system is another one (V5, V6).
pub fn bind(volume: &Path, sub_path: &str, target: &Path) -> io::Result<PathBuf> {
    let sub_path = safe_path::plain(sub_path)?;
    let root = safe_path::open_root(volume)?;
    let found = match safe_path::open_within(&root, sub_path, OFlag::O_PATH) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => make(&root, sub_path)?,
        found => found?,
    };
    let found_is = fs::metadata(safe_path::fd_path(&found))?;
    if mounts::device_at(target)?.is_some() {
        // Where it cannot be looked at, its file system is gone.
        let is_bound =
            fs::metadata(target).is_ok_and(|bound| (bound.dev(), bound.ino()) == (found_is.dev(), found_is.ino()));
        if is_bound {
            return Ok(target.to_owned());
        }
        nix::mount::umount2(target, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH)?;
    }
    make_private_dir(target.parent().unwrap_or(Path::new("/")))?;
    match fs::symlink_metadata(target) {
        Ok(point) if point.is_dir() && !found_is.is_dir() => fs::remove_dir(target)?,
        Ok(point) if !point.is_dir() && found_is.is_dir() => fs::remove_file(target)?,
        _ => {}
    }
    if found_is.is_dir() {
        make_private_dir(target)?;
    } else {
        fs::OpenOptions::new().create(true).append(true).open(target)?;
    }
    mounts::bind(&safe_path::fd_path(&found), target)?;
    Ok(target.to_owned())
}

fn make(root: &OwnedFd, sub_path: &Path) -> io::Result<OwnedFd> {
    // As upstream, they are as the volume itself is: what its group may do there, it may do here.
    let volume = fs::metadata(safe_path::fd_path(root))?;
    let mut dir = root.try_clone()?;
    for part in sub_path.components() {
        let part = Path::new(&part);
        let mode = Mode::from_bits_truncate(volume.mode() & MODE_BITS);
        let made = match nix::sys::stat::mkdirat(Some(dir.as_raw_fd()), part, mode) {
            Ok(()) => true,
            Err(nix::errno::Errno::EEXIST) => false,
            Err(error) => return Err(error.into()),
        };
        dir = safe_path::open_within(&dir, part, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        if made {
            // The group first: giving it away takes the bit that hands it on. No umask counts here.
            nix::unistd::fchown(dir.as_raw_fd(), None, Some(Gid::from_raw(volume.gid())))?;
            nix::sys::stat::fchmod(dir.as_raw_fd(), mode)?;
        }
    }
    // Links on the way may lead around within a part's own folder: the whole must still be inside.
    safe_path::open_within(root, sub_path, OFlag::O_PATH)
}
