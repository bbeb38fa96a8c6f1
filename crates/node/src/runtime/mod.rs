//! Containers as real processes.
//!
//! A sandbox is three namespaces (network, IPC, UTS) pinned by bind mounts of their nsfs files: no process holds it, so
//! nothing of it can die and nothing of it is resident. Each container runs under a supervisor of its own: this same
//! binary re-executed single-threaded (`mainstay __shim DIR`), which owns stdio, the log file and the exit code, and
//! survives the main process. One supervisor per container, because the container library changes its process's
//! state (dumpable, oom_score_adj, working directory) and can block for ever in a mount: neither may reach a neighbour.
//! An exec is a short-lived re-execution (`__exec`) that hangs off the main process, since nobody outlives it.
//!
//! Everything the runtime knows it reads back from its directory, so a restarted main process adopts what runs
//! (V7, S11): a lock that supervisor and main process share tells a living supervisor from a dead one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, mpsc};

use crate::images::ImageStore;

/// Where the runtime keeps its things and what it runs containers with.
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    /// `<data>/containers`: one folder per sandbox and per container.
    pub root: PathBuf,
    /// The instance's own cgroup below each controller's root, one path element: `mainstay`, `mainstay-demo-1a2b`.
    pub cgroup_root: String,
    /// What is re-executed as `<exe> __shim DIR` and `<exe> __exec`; `/proc/self/exe` in production.
    pub shim_exe: PathBuf,
    /// Where root filesystems come from.
    pub images: ImageStore,
}

/// What a pod's sandbox needs: the namespaces that the containers of a pod share.
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
    /// The node's IPC or PID namespace instead of the pod's own.
    pub host_ipc: bool,
    pub host_pid: bool,
    /// One PID namespace for all containers of the pod (shareProcessNamespace); a `pause` process is its init.
    pub share_process_namespace: bool,
    /// Size of the pod's /dev/shm in bytes; 64 MiB where not given.
    pub shm_bytes: Option<u64>,
}

/// A sandbox as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxStatus {
    pub pod_uid: String,
    pub namespace: String,
    pub name: String,
    /// The file that pins the network namespace (`setns` it by opening this path); None with host_network.
    pub netns_path: Option<PathBuf>,
    /// False after a reboot of the machine, or where the pins were taken away: remove it and make it anew.
    pub ready: bool,
    pub created_at_ms: i64,
    /// Free for the network room and the kubelet: set with [`Runtime::set_sandbox_annotation`], kept over restarts.
    pub annotations: BTreeMap<String, String>,
}

/// A bind mount into a container. The source must exist.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Mount {
    pub source: PathBuf,
    pub target: String,
    pub read_only: bool,
    pub propagation: MountPropagation,
}

/// Kubernetes' mountPropagation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum MountPropagation {
    #[default]
    None,
    HostToContainer,
    Bidirectional,
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
    /// procMount: Unmasked takes the masks off /proc and /sys.
    pub unmasked_proc: bool,
}

impl ContainerSpec {
    /// `<pod uid>/<name>/<attempt>`.
    pub fn id(&self) -> String {
        container_id(&self.pod_uid, &self.name, self.attempt)
    }
}

/// The id that a container of a pod has: `<pod uid>/<name>/<attempt>`.
pub fn container_id(pod_uid: &str, name: &str, attempt: u32) -> String {
    format!("{pod_uid}/{name}/{attempt}")
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

/// A command to run in a running container, with the container's user, groups, environment and limits.
#[derive(Clone, Debug, Default)]
pub struct ExecSpec {
    pub args: Vec<String>,
    /// Added to (and stronger than) the container's own.
    pub env: Vec<(String, String)>,
    pub tty: bool,
    /// Where false, the command reads an empty stdin.
    pub stdin: bool,
}

/// A terminal's size in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    pub width: u16,
    pub height: u16,
}

/// How an exec ended: the exit code, or 128 + the signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecExit {
    pub code: i32,
}

/// What the container's cgroup counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ContainerStats {
    /// CPU time used since the start, nanoseconds.
    pub cpu_usage_nanos: u64,
    /// Memory in use, bytes, and without the inactive page cache (what `kubectl top` calls memory).
    pub memory_usage_bytes: u64,
    pub memory_working_set_bytes: u64,
    pub pids: u64,
}

/// Why the runtime could not do what was asked. The texts end up in pod statuses and events.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("container not found: {0}")]
    ContainerNotFound(String),
    #[error("sandbox of pod {0} not found")]
    SandboxNotFound(String),
    #[error("container {0} is not running")]
    NotRunning(String),
    #[error("container {0} already exists")]
    Exists(String),
    #[error("container {0} is still running")]
    StillRunning(String),
    #[error("failed to create sandbox: {0}")]
    Sandbox(String),
    #[error("failed to prepare root filesystem: {0}")]
    Rootfs(String),
    /// The text that Kubernetes shows for StartError / RunContainerError.
    #[error("failed to start container: {0}")]
    Start(String),
    #[error("failed to exec in container: {0}")]
    Exec(String),
    #[error("command timed out after {0:?}")]
    ExecTimeout(Duration),
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
}

/// The runtime's handle; cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    inner: Arc<Inner>,
}

struct Inner {
    config: RuntimeConfig,
    changes: broadcast::Sender<ContainerStatus>,
}

/// How many changes a slow subscriber may lag behind before it is told to list again (`RecvError::Lagged`).
const CHANGES_QUEUED: usize = 1024;

impl Runtime {
    /// Opens the runtime's folder and adopts what runs in it. Must be called inside a tokio runtime.
    pub fn open(config: RuntimeConfig) -> Result<Runtime, RuntimeError> {
        let (changes, _) = broadcast::channel(CHANGES_QUEUED);
        Ok(Runtime { inner: Arc::new(Inner { config, changes }) })
    }

    /// Whether pods may ask for a seccomp profile: this build has no seccomp filter, so a pod that asks for
    /// RuntimeDefault or Localhost must be refused or told plainly, never run as if it had one.
    pub fn supports_seccomp(&self) -> bool {
        false
    }

    /// Every change of a container's state, in order per container. On `Lagged`, list again.
    pub fn subscribe(&self) -> broadcast::Receiver<ContainerStatus> {
        self.inner.changes.subscribe()
    }

    /// Makes the sandbox, or finds it made. The network namespace has only a loopback device, down.
    pub async fn ensure_sandbox(&self, spec: &SandboxSpec) -> Result<SandboxStatus, RuntimeError> {
        Err(RuntimeError::Sandbox(spec.name.clone()))
    }

    /// All sandboxes, by pod uid.
    pub fn sandboxes(&self) -> Vec<SandboxStatus> {
        Vec::new()
    }

    /// Keeps a small note (an address, a lease) with the sandbox, on disk, until it is removed.
    pub async fn set_sandbox_annotation(&self, pod_uid: &str, _key: &str, _value: &str) -> Result<(), RuntimeError> {
        Err(RuntimeError::SandboxNotFound(pod_uid.to_owned()))
    }

    /// Kills what still runs in the pod, removes its containers, namespaces, mounts and cgroup. Idempotent.
    pub async fn remove_sandbox(&self, _pod_uid: &str) -> Result<(), RuntimeError> {
        Ok(())
    }

    /// Creates and starts a container in its pod's sandbox; returns once it runs.
    pub async fn start_container(&self, spec: &ContainerSpec) -> Result<ContainerStatus, RuntimeError> {
        Err(RuntimeError::Start(spec.id()))
    }

    /// Sends `signal` (SIGTERM where None) to the container's first process, waits up to `grace`, then kills every
    /// process of the container. Returns when it has ended; at once if it was not running.
    pub async fn stop_container(&self, id: &str, _signal: Option<i32>, _grace: Duration) -> Result<ContainerStatus, RuntimeError> {
        Err(RuntimeError::ContainerNotFound(id.to_owned()))
    }

    /// Kills every process of the container at once and waits for its end.
    pub async fn kill_container(&self, id: &str) -> Result<ContainerStatus, RuntimeError> {
        self.stop_container(id, Some(libc::SIGKILL), Duration::ZERO).await
    }

    /// Removes an ended container's root filesystem, records and cgroup; its log stays. Idempotent.
    pub async fn remove_container(&self, _id: &str) -> Result<(), RuntimeError> {
        Ok(())
    }

    /// All containers, running and ended, by id.
    pub fn list(&self) -> Vec<ContainerStatus> {
        Vec::new()
    }

    /// One container.
    pub fn status(&self, _id: &str) -> Option<ContainerStatus> {
        None
    }

    /// Runs a command in a running container.
    pub async fn exec(&self, id: &str, _spec: ExecSpec) -> Result<ExecHandle, RuntimeError> {
        Err(RuntimeError::NotRunning(id.to_owned()))
    }

    /// Runs a probe or hook: exit code and the first 10 KiB of its output (stdout and stderr as they came).
    /// After `timeout` the command is killed and the error is `ExecTimeout`.
    pub async fn exec_probe(&self, id: &str, _args: &[String], _timeout: Duration) -> Result<(i32, Vec<u8>), RuntimeError> {
        Err(RuntimeError::NotRunning(id.to_owned()))
    }

    /// Joins a running container's output from now on, and its stdin and terminal where it has them.
    pub async fn attach(&self, id: &str) -> Result<AttachHandle, RuntimeError> {
        Err(RuntimeError::NotRunning(id.to_owned()))
    }

    /// What the container uses now.
    pub fn stats(&self, id: &str) -> Result<ContainerStats, RuntimeError> {
        Err(RuntimeError::NotRunning(id.to_owned()))
    }

    /// Takes away everything this instance made: containers, sandboxes, mounts, cgroups (`mainstay down`).
    pub async fn cleanup_all(&self) -> Result<(), RuntimeError> {
        Ok(())
    }

    /// The folder this runtime works in.
    pub fn root(&self) -> &Path {
        &self.inner.config.root
    }
}

/// The reading end of a command's or container's output.
pub type OutputStream = Box<dyn tokio::io::AsyncRead + Send + Unpin>;
/// The writing end of its input; dropping it is the end of input.
pub type InputStream = Box<dyn tokio::io::AsyncWrite + Send + Unpin>;

/// A command that runs in a container. Dropping the handle kills the command.
pub struct ExecHandle {
    pub stdin: Option<InputStream>,
    pub stdout: OutputStream,
    /// None with a terminal, where everything comes from stdout.
    pub stderr: Option<OutputStream>,
    /// New terminal sizes go in here.
    pub resize: mpsc::Sender<TerminalSize>,
    exit: tokio::sync::oneshot::Receiver<ExecExit>,
}

impl ExecHandle {
    /// Waits for the end. Read stdout and stderr to their ends as well: the output may outlast the command.
    pub async fn wait(&mut self) -> Result<ExecExit, RuntimeError> {
        (&mut self.exit).await.map_err(|_| RuntimeError::Exec("the command's supervisor ended without an exit code".to_owned()))
    }
}

/// A live view of a container's first process. Dropping it detaches (and, with stdinOnce, ends the input).
pub struct AttachHandle {
    pub stdin: Option<InputStream>,
    pub stdout: OutputStream,
    pub stderr: Option<OutputStream>,
    pub resize: mpsc::Sender<TerminalSize>,
}
