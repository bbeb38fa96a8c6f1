//! Volumes that are just folders of this machine: emptyDir and hostPath.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;

use k8s_openapi::api::core::v1::Volume;
use mainstay_api::quantity::Quantity;

use super::{Answer, Driver, Ready, Request, VolumeError, blocking, ownership};
use mainstay_runtime::safe_path::mounts;

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
            match source.medium.as_deref().unwrap_or("") {
                "" => {}
                "Memory" => mounts::tmpfs(&target, 0o777, size.filter(|size| *size > 0))
                    .map_err(VolumeError::io("mounting tmpfs"))?,
                medium => return Err(VolumeError::Refused(format!("unknown storage medium \"{medium}\""))),
            }
            if !again {
                fs::set_permissions(&target, fs::Permissions::from_mode(0o777))
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
        Box::pin(blocking(move || {
            check_type(Path::new(&source.path), source.type_.as_deref().unwrap_or(""))?;
            Ok(Ready { path: source.path.into(), ..Ready::default() })
        }))
    }
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
                fs::create_dir_all(path).map_err(VolumeError::io(format!("making {shown}")))?;
                fs::set_permissions(path, fs::Permissions::from_mode(0o755))
                    .map_err(VolumeError::io(format!("setting the mode of {shown}")))?;
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
