//! The userspace client: an NFSv3 export as a FUSE file system, for kernels without `mount -t nfs`.
//!
//! It is a process of its own (this binary, re-executed as `__nfs-mount`), so that it outlives the agent (V7) and a
//! dead server blocks nobody else (V11): every call has a deadline after which it is EIO, and a request whose process
//! is being killed is answered at once, so that the process can end.
//!
//! - [`remote`], [`connect`]: connections and calls
//! - [`provision`]: sub-directories of an export for claims
//! - [`wire`]: what goes over `/dev/fuse`
//! - [`nodes`], [`files`], [`data`], [`listing`]: the file system
//! - [`session`]: the process: mounts, reads requests, hands them to threads

mod connect;
mod data;
mod files;
#[cfg(any(test, fuzzing, feature = "fuzzing"))]
pub mod fuzzing;
mod listing;
mod nodes;
pub mod provision;
pub mod remote;
mod session;
mod wire;

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub use remote::Source;
pub use session::mount_main;

/// What the client's process is told.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct MountRequest {
    pub source: Source,
    pub target: PathBuf,
    pub read_only: bool,
    /// The instance whose control group the client's process joins; empty: it stays in its parent's.
    #[serde(default)]
    pub cgroup_root: String,
}

/// Mounts an export through FUSE. Blocks until it is mounted or has failed, at most about the source's timeout. The
/// client's process holds `alone` until then, also where this one is killed meanwhile.
///
/// # Errors
/// One sentence that says why not.
pub fn mount(exe: &Path, request: &MountRequest, alone: File) -> Result<(), String> {
    let words = serde_json::to_string(request).map_err(|error| error.to_string())?;
    let failed = |error: io::Error| format!("starting the NFS client: {error}");
    let mut command = Command::new(exe);
    command.arg("__nfs-mount").arg(words).current_dir("/").stdin(alone).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(failed)?;
    let mut said = String::new();
    if let Some(output) = child.stdout.take() {
        output.take(4096).read_to_string(&mut said).map_err(failed)?;
    }
    child.wait().map_err(failed)?;
    match said.trim() {
        "mounted" => Ok(()),
        "" => Err("the NFS client ended without a word".to_owned()),
        error => Err(error.to_owned()),
    }
}
