//! Where things are in the runtime's folder, and the records in it. Names are short digests, because sockets' paths
//! (108 bytes) and overlay mount options (one page) are short.
//!
//! ```text
//! <root>/c/<id>/spec.json    what was asked for
//!               shim.json    the same, as far as the supervisor needs it
//!               config.json  the OCI spec
//!               seccomp.bpf  the system call filter, where it has one
//!               lock         held (flock) by the main process and then the supervisor: free means both are gone
//!               state.json   written before the container's program runs
//!               exit.json    written once it has ended
//!               lost         it ended without one, and that was said
//!               attach.sock  where the supervisor listens
//!               rootfs upper work lib mapped shim.log
//! <root>/renewals            when the node's lease was renewed
//! <root>/s/<id>/sandbox.json, ns/{net,ipc,uts,pid,user} (bind mounts of the namespaces), shm (tmpfs)
//! ```

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::fence::Fence;
use crate::spec::Mount;

pub const SPEC: &str = "spec.json";
pub const SHIM: &str = "shim.json";
pub const CONFIG: &str = "config.json";
pub const SECCOMP: &str = "seccomp.bpf";
pub const LOCK: &str = "lock";
pub const STATE: &str = "state.json";
pub const EXIT: &str = "exit.json";
pub const LOST: &str = "lost";
pub const ATTACH: &str = "attach.sock";
pub const ROOTFS: &str = "rootfs";
pub const LIBRARY: &str = "lib";
/// Where a supervisor has what it mounts with other owners; in its own mount namespace only.
pub const MAPPED: &str = "mapped";
pub const SHIM_LOG: &str = "shim.log";
/// In the runtime's own folder: when the node's lease was renewed (see [`crate::fence`]).
pub const RENEWALS: &str = "renewals";
pub const SANDBOX: &str = "sandbox.json";

/// Largest record that is read back.
const MAX_RECORD: u64 = 16 << 20;

/// What the supervisor reads when it starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimConfig {
    /// The container library's id: the folder's name.
    pub short: String,
    /// The instance's cgroup and the container's below it.
    pub cgroup_root: String,
    pub cgroup: String,
    pub tty: bool,
    pub stdin: bool,
    pub stdin_once: bool,
    pub log_path: PathBuf,
    /// The capabilities that the container keeps, a bit for each. Ours to drop, not the library's: without
    /// no_new_privs a filter can be installed only before that.
    #[serde(default)]
    pub capabilities: Option<u64>,
    /// Whether it may use the node's devices.
    #[serde(default)]
    pub is_privileged: bool,
    /// The devices of the file systems that must be mounted in it before it starts, each as often as it is here.
    #[serde(default)]
    pub devices: Vec<String>,
    /// What comes over what the container library makes at /dev, outermost first.
    #[serde(default)]
    pub late_mounts: Vec<Mount>,
    /// When the supervisor ends it by itself.
    #[serde(default)]
    pub deadline: Option<DeadlineConfig>,
    /// Where its pod has a user namespace.
    #[serde(default)]
    pub user_namespace: Option<UserNamespaceConfig>,
}

/// What a container in a user namespace of its pod's is made of (see [`crate::user_namespace`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespaceConfig {
    /// The file that pins the namespace.
    pub namespace: PathBuf,
    /// The host's id for its root.
    pub first: u32,
    /// The image's layers, lowest first; device nodes in them do not open with `no_devices`.
    pub layers: Vec<PathBuf>,
    pub no_devices: bool,
    /// What is mounted into the container.
    pub mounts: Vec<PathBuf>,
}

/// Where a supervisor binds the mount of this index, for a pod with a user namespace.
pub fn mapped_mount(dir: &Path, index: usize) -> PathBuf {
    dir.join(MAPPED).join(format!("m{index}"))
}

/// A container's deadline (see [`crate::fence`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadlineConfig {
    #[serde(flatten)]
    pub fence: Fence,
    /// What is mounted into the container; where that is another machine's, it is cut off.
    pub mounts: Vec<PathBuf>,
}

/// Who runs, so that a later main process finds it again and mistakes nobody else for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateRecord {
    pub shim_pid: i32,
    pub shim_start: u64,
    pub pid: i32,
    pub pid_start: u64,
    pub started_at_ms: i64,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    pub code: i32,
    pub signal: Option<i32>,
    pub oom: bool,
    /// The supervisor ended it at its deadline.
    #[serde(default)]
    pub fenced: bool,
    pub started_at_ms: i64,
    pub finished_at_ms: i64,
}

/// Where a sandbox has a namespace of this kind pinned.
pub fn pinned(sandbox: &Path, kind: &str) -> PathBuf {
    sandbox.join("ns").join(kind)
}

/// The folder's name for an id.
pub fn short(id: &str) -> String {
    let digest = Sha256::digest(id.as_bytes());
    digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// Writes a record so that a reader, also one after a crash, finds the old one or the new one. Environments hold
/// secrets, so only root reads it (X2).
pub fn write_record<T: Serialize>(dir: &Path, name: &str, record: &T) -> io::Result<()> {
    write_bytes(dir, name, &serde_json::to_vec(record)?)
}

/// See [`write_record`].
pub fn write_bytes(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = dir.join(format!(".{name}.{}", std::process::id()));
    let _ = std::fs::remove_file(&temporary);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    drop(file);
    std::fs::rename(temporary, dir.join(name))
}

/// Reads a record; None where it is missing or not readable as one.
pub fn read_record<T: DeserializeOwned>(dir: &Path, name: &str) -> Option<T> {
    let path = dir.join(name);
    if std::fs::metadata(&path).ok()?.len() > MAX_RECORD {
        return None;
    }
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// Unix milliseconds.
pub fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// A descriptor that tokio watches.
pub fn watched(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by the AsyncFd from now on, stays open until that is dropped, and is registered
    // nowhere else.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}
