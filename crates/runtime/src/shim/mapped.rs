//! A container of a pod with a user namespace: what the supervisor prepares for it, and the way into the namespace.
//!
//! Everything is mounted as the host's root, in a mount namespace of the supervisor's own, so that no path of the host
//! need be open to the pod's ids. Image layers and volumes are bound there with their owners mapped into the pod's
//! range (`mount_setattr` with MOUNT_ATTR_IDMAP), and overlayfs lies on those layers: nothing is copied or changed on a
//! disk. Files that the container library makes (mount points, devices) belong to the pod's root, because the
//! supervisor's file system identity is that until the container is made.
//!
//! Just before the program is executed its process enters the user namespace and takes a mount namespace that belongs
//! to it: what is mounted there is locked, as mounts of a stronger namespace are, so that not even CAP_SYS_ADMIN in the
//! pod takes away a mask or makes a read-only mount writable.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;

use libcontainer::oci_spec::runtime::User;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use super::confinement;
use super::process;
use crate::images::mount_overlay;
use crate::kernel;
use crate::layout::{self, UserNamespaceConfig};

/// The way into a pod's user namespace.
#[derive(Clone, Copy, Debug)]
pub struct Users {
    /// The namespace's file, open in this process and its children until they execute something.
    namespace: i32,
    /// The host's id for the pod's root.
    first: u32,
    /// For a container's first process: the mounts are its own. A command joins the container's.
    owns_mounts: bool,
}

/// Keeps the namespace's file open.
pub struct Opened {
    pub users: Users,
    namespace: OwnedFd,
}

impl Opened {
    /// The namespace of a container, for its first process or for a command in it.
    pub fn open(config: &UserNamespaceConfig, owns_mounts: bool) -> Result<Self, String> {
        let file = File::open(&config.namespace).map(OwnedFd::from).and_then(process::private);
        let file = file.map_err(|error| format!("cannot open the pod's user namespace: {error}"))?;
        let users = Users { namespace: file.as_raw_fd(), first: config.first, owns_mounts };
        Ok(Self { users, namespace: file })
    }
}

impl Users {
    /// The host's id for one of the pod's.
    pub fn on_host(self, id: u32) -> u32 {
        self.first.saturating_add(id)
    }

    /// Goes in for good, as this user with all capabilities of the namespace. There are no other threads.
    pub fn enter(self, user: &User) -> Result<(), String> {
        let failed = |what: &'static str| move |error: io::Error| format!("cannot {what}: {error}");
        // SAFETY: `Opened` has it open, and this process was forked from the one that has that.
        let namespace = unsafe { std::os::fd::BorrowedFd::borrow_raw(self.namespace) };
        let entered = setns(namespace, CloneFlags::CLONE_NEWUSER).map_err(io::Error::from);
        entered.map_err(failed("enter the pod's user namespace"))?;
        if self.owns_mounts {
            unshare(CloneFlags::CLONE_NEWNS).map_err(io::Error::from).map_err(failed("make a mount namespace"))?;
        }
        let groups = user.additional_gids().clone().unwrap_or_default();
        kernel::set_thread_groups(&groups).map_err(failed("set the supplementary groups"))?;
        confinement::become_user(user.uid(), user.gid()).map_err(failed("become the container's user"))
    }
}

/// The mount namespace that this process was in, while it is in one of its own.
pub struct Outside {
    namespace: File,
    root: File,
}

impl Outside {
    /// Steps into a mount namespace of this process's own.
    fn leave() -> io::Result<Self> {
        let outside = Self { namespace: File::open("/proc/self/ns/mnt")?, root: File::open("/")? };
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)?;
        Ok(outside)
    }

    /// Steps back. The other namespace goes with the last process in it: a supervisor must not keep what is mounted on
    /// the host, for as long as its container lives.
    pub fn come_back(self) -> Result<(), String> {
        let back = || -> io::Result<()> {
            setns(&self.namespace, CloneFlags::CLONE_NEWNS)?;
            nix::unistd::fchdir(self.root.as_raw_fd())?;
            Ok(nix::unistd::chroot(".")?)
        };
        back().map_err(|error| format!("cannot leave a mount namespace: {error}"))
    }
}

/// Mounts the container's root filesystem and the volumes, with the pod's owners, where config.json expects them: in a
/// mount namespace of this process's own, in which the container is to be made.
pub fn prepare(dir: &Path, config: &UserNamespaceConfig, opened: &Opened) -> Result<Outside, String> {
    let text = |what: &'static str| move |error: nix::errno::Errno| format!("cannot {what}: {error}");
    let outside = Outside::leave().map_err(|error| format!("cannot make a mount namespace: {error}"))?;
    let folder = dir.join(layout::MAPPED);
    fs::create_dir_all(&folder).map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("mapped"), &folder, Some("tmpfs"), flags, Some("mode=700")).map_err(text("mount a tmpfs"))?;
    let mut layers = Vec::new();
    for (index, layer) in config.layers.iter().enumerate() {
        let path = folder.join(format!("l{index}"));
        bind(layer, &path, false, opened)?;
        layers.push(path);
    }
    mount_overlay(&layers, dir, config.no_devices).map_err(|error| error.to_string())?;
    for (index, source) in config.mounts.iter().enumerate() {
        bind(source, &layout::mapped_mount(dir, index), true, opened)?;
    }
    Ok(outside)
}

/// Binds a file or folder with its owners mapped.
fn bind(source: &Path, target: &Path, recursive: bool, opened: &Opened) -> Result<(), String> {
    let failed = |error: io::Error| format!("cannot mount {}: {error}", source.display());
    let is_folder = fs::metadata(source).map_err(failed)?.is_dir();
    let made = if is_folder { fs::create_dir(target) } else { File::create(target).map(drop) };
    made.map_err(failed)?;
    let copy = kernel::clone_mounts(source, recursive).map_err(failed)?;
    kernel::map_mount_ids(copy.as_fd(), opened.namespace.as_fd()).map_err(|error| {
        format!(
            "failed to set MOUNT_ATTR_IDMAP on {}: {error} (maybe the filesystem used doesn't support idmap mounts on \
             this kernel?)",
            source.display()
        )
    })?;
    kernel::attach_mount(copy.as_fd(), target).map_err(failed)
}

/// Makes what this process creates from here on the pod's root's, with all the capabilities that it has; until it is
/// dropped.
pub struct FileIdentity(());

impl FileIdentity {
    pub fn assume(first: u32) -> Result<Self, String> {
        kernel::set_thread_fs_ids(first, first)
            .and_then(|()| confinement::raise_capabilities())
            .map_err(|error| format!("cannot take the pod's file system identity: {error}"))?;
        Ok(Self(()))
    }
}

impl Drop for FileIdentity {
    fn drop(&mut self) {
        // Nothing to be done about an error, and there is none on the way back to root.
        let _ = kernel::set_thread_fs_ids(0, 0);
    }
}

/// Goes into a user namespace, as its root.
pub fn enter_as_root(namespace: &File) -> io::Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWUSER)?;
    kernel::set_thread_groups(&[])?;
    confinement::become_user(0, 0)
}
