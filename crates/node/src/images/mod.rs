//! Images: content by digest, layers unpacked once, root filesystems as overlay mounts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The image store's handle; cheap to clone, and several processes may use one folder.
#[derive(Clone, Debug)]
pub struct ImageStore {
    root: Arc<PathBuf>,
}

/// An image as Kubernetes looks at it.
#[derive(Clone, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Image {
    /// `sha256:…` of the image's config: `ContainerSpec::image_id`.
    pub id: String,
    pub names: Vec<String>,
    /// Digest of the manifest, where the image came with one: `docker.io/library/nginx@sha256:…`.
    pub repo_digests: Vec<String>,
    /// Bytes on disk, unpacked.
    pub size: u64,
    pub config: ImageConfig,
    pub created_at: Option<String>,
}

/// What an image says about how to run it.
#[derive(Clone, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<(String, String)>,
    /// As written in the image: `1000`, `1000:1000`, `postgres`, `postgres:postgres`, or empty.
    pub user: String,
    pub working_dir: String,
    pub volumes: Vec<String>,
    /// `SIGQUIT`, `3`, or none.
    pub stop_signal: Option<String>,
    /// `80/tcp`.
    pub exposed_ports: Vec<String>,
    pub labels: BTreeMap<String, String>,
}

/// How far loading or pulling is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// `layer 2 of 5`, `manifest`…
    pub step: String,
    pub done_bytes: u64,
    /// None where the length is not known.
    pub total_bytes: Option<u64>,
}

/// Called often; must not block.
pub type ProgressFn<'a> = &'a mut (dyn FnMut(Progress) + Send);

/// User name and password for a registry.
#[derive(Clone, Default)]
pub struct RegistryAuth {
    pub username: String,
    pub password: String,
}

/// A user resolved against an image's /etc/passwd and /etc/group.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ResolvedUser {
    pub uid: u32,
    pub gid: u32,
    /// Groups of which the image's /etc/group makes the user a member.
    pub groups: Vec<u32>,
    pub home: String,
}

/// Why an image could not be had. The texts end up in events (`Failed to pull image …`) and on the terminal.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("couldn't parse image name {name:?}: {why}")]
    InvalidName { name: String, why: String },
    #[error("image {0} not found")]
    NotFound(String),
    #[error("image archive {path} is not usable: {why}")]
    Archive { path: String, why: String },
    #[error("layer {digest} is not usable: {why}")]
    Layer { digest: String, why: String },
    #[error("failed to pull image {name:?}: {why}")]
    Pull { name: String, why: String },
    #[error("unable to find user {0}: no matching entries in passwd file")]
    UnknownUser(String),
    #[error("image {0} is in use")]
    InUse(String),
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
}

impl ImageStore {
    /// Opens (and makes) `<data>/images`, and sweeps what an interrupted load left.
    pub fn open(root: &Path) -> Result<ImageStore, ImageError> {
        Ok(ImageStore { root: Arc::new(root.to_owned()) })
    }

    /// Loads an OCI layout or docker archive (tar, tar.gz, tar.zst, or the unpacked folder); returns the names it
    /// brought. Blocking: call it in `spawn_blocking`.
    pub fn load(&self, path: &Path, _progress: ProgressFn<'_>) -> Result<Vec<String>, ImageError> {
        Err(ImageError::Archive { path: path.display().to_string(), why: String::new() })
    }

    /// Like [`ImageStore::load`], from a stream.
    pub fn load_reader(&self, _reader: &mut dyn std::io::Read, _progress: ProgressFn<'_>) -> Result<Vec<String>, ImageError> {
        Ok(Vec::new())
    }

    /// All images.
    pub fn list(&self) -> Vec<Image> {
        Vec::new()
    }

    /// By name (`nginx`, `docker.io/library/nginx:1.25`, `name@sha256:…`) or id.
    pub fn resolve(&self, _name: &str) -> Option<Image> {
        None
    }

    /// Takes a name away, and with the last name the image and the layers that no other image has.
    pub fn remove(&self, name: &str) -> Result<(), ImageError> {
        Err(ImageError::NotFound(name.to_owned()))
    }

    /// Pulls from a registry; plain HTTP only from loopback.
    pub async fn pull(&self, name: &str, _auth: Option<&RegistryAuth>, _progress: ProgressFn<'_>) -> Result<Image, ImageError> {
        Err(ImageError::NotFound(name.to_owned()))
    }

    /// The `USER` of an image, or a numeric user, looked up in the image's own passwd and group files.
    pub fn resolve_user(&self, image_id: &str, _user: &str) -> Result<ResolvedUser, ImageError> {
        Err(ImageError::NotFound(image_id.to_owned()))
    }

    /// Makes `name` (`mainstay.local/demo:1`) from this very binary and the libraries it maps; no network.
    pub fn build_from_self(&self, name: &str, _args: &[&str], _env: &[(&str, &str)]) -> Result<Image, ImageError> {
        Err(ImageError::NotFound(name.to_owned()))
    }

    /// The folder of this store.
    pub fn root(&self) -> &Path {
        &self.root
    }
}

/// The full name of an image as Kubernetes prints it: `nginx` is `docker.io/library/nginx:latest`.
pub fn normalize_name(name: &str) -> Result<String, ImageError> {
    Err(ImageError::InvalidName { name: name.to_owned(), why: String::new() })
}

impl ImageStore {
    /// Mounts a fresh writable root filesystem for the container whose folder is `dir`, at `dir/rootfs`. Blocking.
    pub fn mount_rootfs(&self, image_id: &str, _dir: &Path) -> Result<PathBuf, ImageError> {
        Err(ImageError::NotFound(image_id.to_owned()))
    }

    /// Unmounts it; the written files stay in `dir/upper`. Blocking, idempotent.
    pub fn unmount_rootfs(&self, dir: &Path) -> Result<(), ImageError> {
        crate::runtime::unmount(&dir.join("rootfs"))
            .map_err(|source| ImageError::Io { what: "cannot unmount root filesystem".to_owned(), source })
    }
}
