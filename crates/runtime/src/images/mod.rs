//! Images: content by digest, layers unpacked once, root filesystems as overlay mounts.

mod archive;
mod blob;
mod build;
#[cfg(any(test, fuzzing, feature = "fuzzing"))]
pub mod fuzzing;
#[cfg(test)]
mod hostile_tests;
pub(crate) mod overlay;
mod partial;
mod pull;
mod reference;
mod registry;
mod store;
mod unpack;
mod users;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use self::overlay::mount_overlay;
pub use self::reference::Reference;

/// The image store's handle; cheap to clone, and several processes may use one folder.
#[derive(Clone, Debug)]
pub struct ImageStore {
    root: Arc<PathBuf>,
    /// What pulls may hold of registries' documents, all together.
    documents: registry::Budget,
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
    /// It came from a registry and from nowhere else: it can be had again. What was loaded from an archive cannot.
    #[serde(default)]
    pub is_pulled: bool,
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

impl ImageError {
    fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> ImageError {
        let what = what.into();
        move |source| ImageError::Io { what, source }
    }
}

impl ImageStore {
    /// The folder of this store.
    pub fn root(&self) -> &Path {
        &self.root
    }
}

/// The full name of an image as Kubernetes prints it: `nginx` is `docker.io/library/nginx:latest`.
pub fn normalize_name(name: &str) -> Result<String, ImageError> {
    Reference::parse(name).map(|reference| reference.to_string())
}
