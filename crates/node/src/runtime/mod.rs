//! Containers as real processes. (Skeleton: the agreed seam between the pod loop and the runtime.)
//!
//! Each container runs under a supervisor: this same binary re-executed single-threaded (`mainstay __shim DIR`),
//! which owns stdio, the log file, the exit code and exec, and survives the main process. Everything the runtime
//! knows it reads back from its directory, so a restarted main process adopts what runs.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// What a pod's sandbox needs. The sandbox is made of namespaces pinned by its first process (`pause`: the same binary);
/// the containers join its network, IPC and UTS namespaces.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct SandboxSpec {
    pub pod_uid: String,
    pub namespace: String,
    pub name: String,
    pub hostname: String,
    /// The node's own network namespace instead of a new one.
    pub host_network: bool,
    /// cgroup parent below the instance's root: `burstable/pod<uid>`.
    pub cgroup: String,
    pub sysctls: BTreeMap<String, String>,
}

/// A bind mount into a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub source: PathBuf,
    pub target: String,
    pub read_only: bool,
}

/// One container, everything resolved: no Kubernetes lookups are left to the runtime.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ContainerSpec {
    pub pod_uid: String,
    /// The container's name in the pod.
    pub name: String,
    /// How many containers of this name came before in this pod.
    pub attempt: u32,
    /// The image's digest as `images` resolved it.
    pub image_id: String,
    /// Entry point and arguments after Kubernetes' rules were applied to the image's config.
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub working_dir: String,
    pub user: Option<u32>,
    pub group: Option<u32>,
    pub supplemental_groups: Vec<u32>,
    pub mounts: Vec<Mount>,
    pub tty: bool,
    pub stdin: bool,
    pub stdin_once: bool,
    pub privileged: bool,
    pub read_only_root: bool,
    pub no_new_privileges: bool,
    pub capabilities_add: Vec<String>,
    pub capabilities_drop: Vec<String>,
    /// cgroup limits: CPU in milli-CPUs, memory in bytes.
    pub cpu_request_milli: Option<u64>,
    pub cpu_limit_milli: Option<u64>,
    pub memory_limit: Option<u64>,
    pub pids_limit: Option<u64>,
    pub oom_score_adj: i32,
    /// The CRI log file that the supervisor writes and rotates.
    pub log_path: PathBuf,
}

/// Where a container is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerState {
    Created,
    /// Running since (Unix milliseconds).
    Running {
        pid: u32,
        started_at_ms: i64,
    },
    /// Ended; `signal` where a signal ended it, `oom` where the kernel's OOM killer did.
    Exited {
        code: i32,
        signal: Option<i32>,
        oom: bool,
        started_at_ms: i64,
        finished_at_ms: i64,
    },
    /// The supervisor is gone without having written an exit code and its process is gone.
    Unknown,
}

/// What runs, as the runtime sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerStatus {
    /// `<pod uid>/<name>/<attempt>`; kubectl sees it as `mainstay://<id>`.
    pub id: String,
    pub pod_uid: String,
    pub name: String,
    pub attempt: u32,
    pub image_id: String,
    pub state: ContainerState,
}
