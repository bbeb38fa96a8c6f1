//! The userspace client: an NFSv3 export as a FUSE file system, for kernels without `mount -t nfs`.
//!
//! It is a process of its own (this binary, re-executed as `__nfs-mount`), so that it outlives the agent (V7) and a
//! dead server blocks nobody else (V11): every call has a deadline after which it is EIO, and a request whose process
//! is being killed is answered at once, so that the process can end.
//!
//! - [`remote`], [`connect`]: connections and calls
//! - [`provision`]: sub-directories of an export for claims
//! - [`wire`]: what goes over `/dev/fuse`
//! - [`nodes`], [`files`], [`names`], [`data`], [`listing`]: the file system
//! - [`queue`]: requests that wait for a worker
//! - [`session`]: the process: mounts, reads requests, hands them to threads
//! - [`guard`]: the deadline of what the kernel's client has mounted
//!
//! Where the pod has a deadline (S13) the mount has it too: its process ends with it, and nothing is sent any more,
//! whether or not anybody else of the pod is left by then.

mod connect;
mod data;
mod files;
#[cfg(any(test, fuzzing, feature = "fuzzing"))]
pub mod fuzzing;
mod guard;
mod listing;
mod names;
mod nodes;
pub mod provision;
mod queue;
pub mod remote;
mod session;
mod wire;

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use mainstay_runtime::fence::Fence;

pub use guard::guard_main;
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
    /// When the mount ends by itself, if ever.
    #[serde(default)]
    pub fence: Option<Fence>,
}

/// What the process beside a mount of the kernel's client is told.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct GuardRequest {
    pub target: PathBuf,
    /// See [`MountRequest::cgroup_root`].
    #[serde(default)]
    pub cgroup_root: String,
    /// When the mount is cut off.
    pub fence: Fence,
}

/// Mounts an export through FUSE. Blocks until it is mounted or has failed, at most about the source's timeout. The
/// client's process holds `alone` until then, also where this one is killed meanwhile.
///
/// # Errors
/// One sentence that says why not.
pub fn mount(exe: &Path, request: &MountRequest, alone: File) -> Result<(), String> {
    begin(exe, "__nfs-mount", request, alone, "mounted")
}

/// Begins to guard what the kernel's client has mounted: it is cut off when its deadline passes. The guard ends with
/// the mount, and holds `alive` until then.
///
/// # Errors
/// One sentence that says why not: nothing guards the mount.
pub fn guard(exe: &Path, request: &GuardRequest, alive: File) -> Result<(), String> {
    begin(exe, "__nfs-guard", request, alive, "guarded")
}

/// Starts one of our processes, which holds a file, and waits for its first word.
fn begin(exe: &Path, role: &str, words: &impl serde::Serialize, held: File, done: &str) -> Result<(), String> {
    let words = serde_json::to_string(words).map_err(|error| error.to_string())?;
    let failed = |error: io::Error| format!("starting the NFS client: {error}");
    let mut command = Command::new(exe);
    command.arg(role).arg(words).current_dir("/").stdin(held).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(failed)?;
    let mut said = String::new();
    if let Some(output) = child.stdout.take() {
        output.take(4096).read_to_string(&mut said).map_err(failed)?;
    }
    child.wait().map_err(failed)?;
    match said.trim() {
        said if said == done => Ok(()),
        "" => Err("the NFS client ended without a word".to_owned()),
        error => Err(error.to_owned()),
    }
}
