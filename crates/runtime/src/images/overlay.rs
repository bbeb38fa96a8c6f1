//! A container's root filesystem: the image's layers below, a folder of its own above.

use std::fs;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};

use super::{ImageError, ImageStore};
use crate::layout::ROOTFS;
use crate::safe_path::{self, mounts};

/// The kernel takes one page of mount options.
const MAX_OPTIONS: usize = 4000;
/// What a container writes, and overlayfs's own folder beside it.
pub(crate) const UPPER: &str = "upper";
const WORK: &str = "work";

impl ImageStore {
    /// Mounts a fresh writable root filesystem for the container whose folder is `dir`, at `dir/rootfs`. With
    /// `no_devices`, device nodes in it do not open. Blocking.
    pub fn mount_rootfs(&self, image_id: &str, dir: &Path, no_devices: bool) -> Result<PathBuf, ImageError> {
        let (rootfs, layers) = self.prepare_rootfs(image_id, dir, 0)?;
        mount_overlay(&layers, dir, no_devices)?;
        Ok(rootfs)
    }

    /// Makes what [`mount_rootfs`](Self::mount_rootfs) mounts on, and says where that is and what the image's layers
    /// are, lowest first. The owner 0 of the root folder is `first_id` on the host. Blocking.
    pub fn prepare_rootfs(
        &self,
        image_id: &str,
        dir: &Path,
        first_id: u32,
    ) -> Result<(PathBuf, Vec<PathBuf>), ImageError> {
        self.lease(dir, image_id)?;
        let rootfs = dir.join(ROOTFS);
        let upper = dir.join(UPPER);
        for folder in [&rootfs, &upper, &dir.join(WORK)] {
            fs::create_dir_all(folder).map_err(ImageError::io(format!("cannot make {}", folder.display())))?;
        }
        // The root folder of the container is the upper one: it gets the image's owner and mode.
        let layers = self.layer_dirs(image_id)?;
        if let Some(top) = layers.last() {
            copy_mode(top, &upper, first_id).map_err(ImageError::io("cannot prepare the root folder"))?;
        }
        Ok((rootfs, layers))
    }

    /// Mounts an image's files at `dir`, which is there and empty, for reading only; nothing in it is executed, and no
    /// device opens. The image stays as long as the folder does. Blocking, idempotent.
    pub fn mount_read_only(&self, image_id: &str, dir: &Path) -> Result<(), ImageError> {
        if mounts::is_mounted(dir).map_err(ImageError::io("cannot read what is mounted"))? {
            return Ok(());
        }
        self.lease(dir, image_id)?;
        // overlayfs without a folder to write to wants two to read from at least.
        let empty = self.root().join("empty");
        fs::create_dir_all(&empty).map_err(ImageError::io("cannot make an empty folder"))?;
        let layers: Vec<PathBuf> = std::iter::once(empty).chain(self.layer_dirs(image_id)?).collect();
        let options = lower(&layers);
        check_length(&options, &layers)?;
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        mount(Some("overlay"), dir, Some("overlay"), flags, Some(options.as_str()))
            .map_err(|error| ImageError::Io { what: "cannot mount overlayfs".to_owned(), source: error.into() })
    }

    /// Unmounts it and gives the image free; the written files stay in `dir/upper`. Blocking, idempotent.
    pub fn unmount_rootfs(&self, dir: &Path) -> Result<(), ImageError> {
        crate::unmount(&dir.join(ROOTFS)).map_err(ImageError::io("cannot unmount root filesystem"))?;
        self.release(dir);
        Ok(())
    }
}

/// Mounts a container's root filesystem on these layers, lowest first, in its folder as
/// [`ImageStore::prepare_rootfs`] left it. With `no_devices`, device nodes in it do not open. Blocking.
pub fn mount_overlay(layers: &[PathBuf], dir: &Path, no_devices: bool) -> Result<(), ImageError> {
    let (upper, work) = (dir.join(UPPER), dir.join(WORK));
    let mut options = format!("{},upperdir={},workdir={}", lower(layers), option(&upper), option(&work));
    check_length(&options, layers)?;
    let flags = if no_devices { MsFlags::MS_NODEV } else { MsFlags::empty() };
    let plain = options.clone();
    // What a container writes into its own layer dies with it: the kernel need not wait for the disk for it.
    options.push_str(",volatile");
    let rootfs = dir.join(ROOTFS);
    let try_mount = |options: &str| mount(Some("overlay"), &rootfs, Some("overlay"), flags, Some(options));
    if try_mount(&options).is_err() {
        try_mount(&plain)
            .map_err(|error| ImageError::Io { what: "cannot mount overlayfs".to_owned(), source: error.into() })?;
    }
    check_devices_folder(&rootfs)
}

/// The container library makes links and devices in `dev` by its path, still on the host: an image where that is a link
/// would lead it to the host's own files (X6). It makes the folder where there is none.
fn check_devices_folder(rootfs: &Path) -> Result<(), ImageError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    match safe_path::open_root(rootfs).and_then(|root| safe_path::open_strict(&root, Path::new("dev"), flags)) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(ImageError::Io { what: "the image's /dev is no folder".to_owned(), source })
        }
        _ => Ok(()),
    }
}

fn check_length(options: &str, layers: &[PathBuf]) -> Result<(), ImageError> {
    if options.len() <= MAX_OPTIONS {
        return Ok(());
    }
    let root = layers.first().and_then(|layer| layer.parent()).unwrap_or(Path::new("/"));
    Err(ImageError::Io {
        what: format!("the image has {} layers: too many for one mount under {}", layers.len(), root.display()),
        source: std::io::ErrorKind::InvalidInput.into(),
    })
}

/// A path as a mount option.
fn option(path: &Path) -> String {
    path.to_string_lossy().replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,")
}

/// The folders below, lowest first; overlayfs wants the uppermost first.
fn lower(layers: &[PathBuf]) -> String {
    let all: Vec<String> = layers.iter().rev().map(|layer| option(layer)).collect();
    format!("lowerdir={}", all.join(":"))
}

fn copy_mode(from: &Path, to: &Path, first_id: u32) -> std::io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(from)?;
    let mapped = |id: u32| Some(id.saturating_add(first_id));
    std::os::unix::fs::chown(to, mapped(metadata.uid()), mapped(metadata.gid()))?;
    fs::set_permissions(to, metadata.permissions())
}
