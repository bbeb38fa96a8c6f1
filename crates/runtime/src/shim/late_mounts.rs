//! What a container has mounted at /dev, or over a node that every container gets there.
//!
//! The container library makes nodes and links in whatever it finds at /dev. In a volume that was used before they
//! stand in its way, and in the node's own /dev they would be the node's (X6). So it makes them in a /dev of the
//! container's own, and what is asked for comes over that when it is done: copies of the mounts, taken by the
//! supervisor where their sources are, and attached in the container by its first process, which has not begun to run
//! its program. As with upstream's runtimes nothing of the own /dev is seen then.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Component, Path};
use std::sync::Arc;

use libcontainer::oci_spec::runtime::{self as oci_spec, Spec};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{getegid, geteuid};

use super::{confinement, process};
use crate::kernel;
use crate::safe_path::{open_plain, open_root};
use crate::spec::{Mount, MountPropagation};

/// One of them, outermost first.
#[derive(Clone, Debug)]
pub struct LateMount {
    tree: Arc<OwnedFd>,
    mount: Mount,
}

/// Takes copies of the mounts, in this process's mount namespace.
///
/// # Errors
/// In words: a source is not there, or the kernel's (before Linux 5.12).
pub fn take(mounts: &[Mount]) -> Result<Vec<LateMount>, String> {
    let each = mounts.iter().map(|mount| {
        let tree = kernel::clone_mounts(&mount.source, true).and_then(process::private);
        // Before anything is mounted below: it would be mounted on the node too.
        let tree = tree.and_then(|tree| kernel::set_mount_propagation(tree.as_fd(), mount.propagation).map(|()| tree));
        let tree =
            tree.map_err(|error| format!("cannot mount {} at {}: {error}", mount.source.display(), mount.target));
        Ok(LateMount { tree: Arc::new(tree?), mount: mount.clone() })
    });
    each.collect()
}

/// Attaches them in this mount namespace. Places to mount at that are missing in them are made, and are `owner`'s: this
/// process is the container's user already, as far as files go.
///
/// # Errors
/// In words.
pub fn attach(all: &[LateMount], owner: u32) -> Result<(), String> {
    if all.is_empty() {
        return Ok(());
    }
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    become_for_files(owner, owner)?;
    let attached = (0..all.len()).try_for_each(|index| attach_one(all, index));
    become_for_files(uid, gid)?;
    attached
}

/// Sets how the container's mounts are shared with those that they are copies of, as the spec's options say it: the
/// container library leaves them as the whole tree is, so that each would get what is mounted on the node below it.
///
/// # Errors
/// In words.
pub fn set_propagation(spec: &Spec, owner: u32) -> Result<(), String> {
    let asked = |mount: &oci_spec::Mount| {
        let words = mount.options().iter().flatten();
        words
            .into_iter()
            .find_map(|word| MountPropagation::of_option(word))
            .map(|how| (mount.destination().clone(), how))
    };
    let asked: Vec<_> = spec.mounts().iter().flatten().filter_map(asked).collect();
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    become_for_files(owner, owner)?;
    let set = asked.iter().try_for_each(|(target, how)| {
        let place = File::options().read(true).custom_flags(libc::O_PATH).open(target);
        let done = place.and_then(|place| kernel::set_mount_propagation(place.as_fd(), *how));
        done.map_err(|error| format!("cannot set the propagation of {}: {error}", target.display()))
    });
    become_for_files(uid, gid)?;
    set
}

fn become_for_files(uid: u32, gid: u32) -> Result<(), String> {
    let done = kernel::set_thread_fs_ids(uid, gid).and_then(|()| confinement::raise_capabilities());
    done.map_err(|error| format!("cannot take a file system identity: {error}"))
}

fn attach_one(all: &[LateMount], index: usize) -> Result<(), String> {
    let Some(LateMount { tree, mount }) = all.get(index) else { return Ok(()) };
    let failed = |error: io::Error| format!("cannot mount {} at {}: {error}", mount.source.display(), mount.target);
    let root = open_root(Path::new("/")).map_err(failed)?;
    let target = open_plain(&root, below_root(&mount.target), OFlag::O_PATH).map_err(failed)?;
    kernel::attach_mount_to(tree.as_fd(), target.as_fd()).map_err(failed)?;
    for (other, path) in nearest_below(all, index) {
        make_place(tree, path, &other.tree).map_err(|error| {
            format!("cannot make a place to mount at {} in {}: {error}", other.mount.target, mount.source.display())
        })?;
    }
    if mount.read_only {
        kernel::deny_mount_writes(tree.as_fd(), mount.recursive_read_only).map_err(failed)?;
    }
    Ok(())
}

/// The mounts that are to come on this one itself, not on one that comes on it; and where in it.
fn nearest_below(all: &[LateMount], index: usize) -> impl Iterator<Item = (&LateMount, &Path)> {
    let path = |late: &'_ LateMount| below_root(&late.mount.target).to_owned();
    let own = all.get(index).map(path).unwrap_or_default();
    let later = all.get(index + 1..).unwrap_or_default();
    later.iter().filter_map(move |other| {
        let target = below_root(&other.mount.target);
        let inside = target.strip_prefix(&own).ok()?;
        let is_nearer = |between: &LateMount| {
            let between = path(between);
            between != *target && between != own && between.starts_with(&own) && target.starts_with(&between)
        };
        (!inside.as_os_str().is_empty() && !later.iter().any(is_nearer)).then_some((other, inside))
    })
}

fn below_root(target: &str) -> &Path {
    Path::new(target.trim_matches('/'))
}

/// Makes a path in a mount, without following links, for what `like` is: a folder or a file.
fn make_place(mount: &OwnedFd, path: &Path, like: &OwnedFd) -> io::Result<()> {
    let is_folder = File::from(like.try_clone()?).metadata()?.is_dir();
    let mut folder = mount.try_clone()?;
    let mut parts = path.components().filter(|part| matches!(part, Component::Normal(_))).peekable();
    while let Some(part) = parts.next() {
        let part = Path::new(part.as_os_str());
        if parts.peek().is_none() && !is_folder {
            let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            return match openat(Some(folder.as_raw_fd()), part, flags, Mode::from_bits_truncate(0o644)) {
                Ok(file) => {
                    // SAFETY: the descriptor was just opened and nobody else has it.
                    drop(unsafe { OwnedFd::from_raw_fd(file) });
                    Ok(())
                }
                Err(Errno::EEXIST) => Ok(()),
                Err(error) => Err(error.into()),
            };
        }
        match mkdirat(Some(folder.as_raw_fd()), part, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let next = openat(Some(folder.as_raw_fd()), part, flags, Mode::empty())?;
        // SAFETY: as above.
        folder = unsafe { OwnedFd::from_raw_fd(next) };
    }
    Ok(())
}
