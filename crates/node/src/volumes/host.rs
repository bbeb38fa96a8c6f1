//! Volumes that are just folders of this machine: emptyDir and hostPath.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;

use k8s_openapi::api::core::v1::Volume;
use mainstay_api::quantity::Quantity;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use super::{Answer, Driver, Ready, Request, VolumeError, blocking, blocking_host, ownership};
use mainstay_runtime::safe_path::{self, mounts};

/// The mode of folders that `DirectoryOrCreate` makes: rwxr-xr-x.
const FOLDER_MODE: Mode = Mode::from_bits_truncate(0o755);

/// A folder that lives as long as the pod; in memory with `medium: Memory`. `sizeLimit` is the size of
/// the file system in memory; beyond one on disk the pod is evicted (`kubelet::eviction`).
pub struct EmptyDir;

impl Driver for EmptyDir {
    fn name(&self) -> &'static str {
        "kubernetes.io/empty-dir"
    }

    fn takes(&self, volume: &Volume) -> bool {
        volume.empty_dir.is_some()
    }

    fn ensure<'a>(&'a self, request: Request<'a>) -> Answer<'a> {
        let source = request.volume.empty_dir.clone().unwrap_or_default();
        let (group, on_root_mismatch, target, again) =
            (request.fs_group(), request.on_root_mismatch(), request.target.clone(), request.again);
        let size = source
            .size_limit
            .and_then(|size| size.0.parse::<Quantity>().ok())
            .and_then(|size| u64::try_from(size.units()).ok());
        Box::pin(blocking(move || {
            if !target.is_dir() {
                fs::create_dir(&target).map_err(VolumeError::io("making the directory"))?;
            }
            let mut mode = 0o777;
            match source.medium.as_deref().unwrap_or("") {
                "" => {}
                "Memory" => {
                    // As a tmpfs is by itself, and so upstream's: who did not write a file does not remove it.
                    mode = 0o1777;
                    mounts::tmpfs(&target, mode, size.filter(|size| *size > 0))
                        .map_err(VolumeError::io("mounting tmpfs"))?;
                }
                medium => return Err(VolumeError::Refused(format!("unknown storage medium \"{medium}\""))),
            }
            if !again {
                fs::set_permissions(&target, fs::Permissions::from_mode(mode))
                    .map_err(VolumeError::io("setting its mode"))?;
                if let Some(group) = group {
                    ownership::give_to_group(&target, group, on_root_mismatch)
                        .map_err(VolumeError::io("applying fsGroup"))?;
                }
            }
            Ok(Ready { path: target, ..Ready::default() })
        }))
    }
}

/// A path of the machine, as it is.
pub struct HostPath;

impl Driver for HostPath {
    fn name(&self) -> &'static str {
        "kubernetes.io/host-path"
    }

    fn takes(&self, volume: &Volume) -> bool {
        volume.host_path.is_some()
    }

    fn ensure<'a>(&'a self, request: Request<'a>) -> Answer<'a> {
        let source = request.volume.host_path.clone().unwrap_or_default();
        let pod = request.context.uid.clone();
        let check = move || {
            check_type(Path::new(&source.path), source.type_.as_deref().unwrap_or(""))?;
            Ok(Ready { path: source.path.into(), ..Ready::default() })
        };
        Box::pin(async move { blocking_host(&pod, check).await })
    }
}

/// Makes a folder with upstream's mode, whatever this process's umask is. A pod may have the folder above as a volume,
/// and exchange the new one for a link at any moment: no mode of what is elsewhere changes (X6).
fn make_folder(path: &Path) -> io::Result<()> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    fs::create_dir_all(above)?;
    let above = OwnedFd::from(fs::File::open(above)?);
    match nix::sys::stat::mkdirat(Some(above.as_raw_fd()), name, FOLDER_MODE) {
        Err(nix::errno::Errno::EEXIST) => return Ok(()),
        made => made?,
    }
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    let made = safe_path::open_strict(&above, Path::new(name), flags)?;
    Ok(nix::sys::stat::fchmod(made.as_raw_fd(), FOLDER_MODE)?)
}

/// Upstream's hostPath types.
pub fn check_type(path: &Path, type_: &str) -> Result<(), VolumeError> {
    let shown = path.display();
    if !path.is_absolute() || path.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(VolumeError::Refused(format!("hostPath {shown} must be absolute and must not contain '..'")));
    }
    let failed = |what: &str| Err(VolumeError::Refused(format!("hostPath type check failed: {shown} is not {what}")));
    let kind = fs::metadata(path).map(|metadata| metadata.file_type());
    let is = |test: fn(&fs::FileType) -> bool| kind.as_ref().is_ok_and(test);
    match type_ {
        // The runtime binds what is there; where nothing is, a folder, as container runtimes do.
        "" if kind.is_ok() => Ok(()),
        "" => fs::create_dir_all(path).map_err(VolumeError::io(format!("making {shown}"))),
        "DirectoryOrCreate" => {
            if !path.exists() {
                make_folder(path).map_err(VolumeError::io(format!("making {shown}")))?;
            }
            if path.is_dir() { Ok(()) } else { failed("a directory") }
        }
        "Directory" => {
            if path.is_dir() {
                Ok(())
            } else {
                failed("a directory")
            }
        }
        "FileOrCreate" => {
            match fs::OpenOptions::new().write(true).create_new(true).open(path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(VolumeError::io(format!("making {shown}"))(error));
                }
                _ => {}
            }
            if path.is_file() { Ok(()) } else { failed("a file") }
        }
        "File" => {
            if path.is_file() {
                Ok(())
            } else {
                failed("a file")
            }
        }
        "Socket" => {
            if is(|kind| kind.is_socket()) {
                Ok(())
            } else {
                failed("a socket file")
            }
        }
        "CharDevice" => {
            if is(|kind| kind.is_char_device()) {
                Ok(())
            } else {
                failed("a character device")
            }
        }
        "BlockDevice" => {
            if is(|kind| kind.is_block_device()) {
                Ok(())
            } else {
                failed("a block device")
            }
        }
        other => Err(VolumeError::Refused(format!("{other} is an invalid volume type"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// How often a folder is made.
    const ROUNDS: usize = 3000;

    #[test]
    fn x6_a_folder_that_is_exchanged_for_a_link_changes_nothing_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        let (kept, made) = (folder.path().join("kept"), folder.path().join("shared/made"));
        fs::create_dir(&kept).unwrap();
        fs::set_permissions(&kept, fs::Permissions::from_mode(0o700)).unwrap();
        fs::create_dir(folder.path().join("shared")).unwrap();
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    if fs::remove_dir(&made).is_ok() {
                        let _ = symlink(&kept, &made);
                    }
                    let _ = fs::remove_file(&made);
                }
            });
            for _ in 0..ROUNDS {
                let _ = check_type(&made, "DirectoryOrCreate");
            }
            is_over.store(true, Ordering::Relaxed);
        });
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&kept), 0o700);
        let _ = (fs::remove_dir(&made), fs::remove_file(&made));
        check_type(&made, "DirectoryOrCreate").unwrap();
        assert_eq!(mode(&made), 0o755);
    }
}
