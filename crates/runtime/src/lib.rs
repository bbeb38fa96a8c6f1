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

mod attach;
pub mod cgroups;
mod container;
mod exec;
mod executable;
pub mod fence;
#[cfg(any(test, fuzzing, feature = "fuzzing"))]
pub mod fuzzing;
pub mod images;
pub mod kernel;
pub mod layout;
mod oci;
pub mod safe_path;
mod sandbox;
mod seccomp;
pub mod shim;
mod spec;
pub mod user_namespace;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{broadcast, mpsc};

use self::cgroups::Cgroups;
use self::container::Entry;
use self::executable::Executable;
use self::images::ImageStore;
use self::sandbox::Sandbox;
pub(crate) use self::sandbox::unmount;
use self::seccomp::SeccompError;
pub use self::spec::*;

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
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
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
    /// What supervisors are.
    program: Executable,
    cgroups: Cgroups,
    /// What supervisors with a deadline look at.
    renewals: fence::Page,
    sandboxes: Mutex<BTreeMap<String, Sandbox>>,
    containers: Mutex<BTreeMap<String, Arc<Entry>>>,
    changes: broadcast::Sender<ContainerStatus>,
}

/// How many changes a slow subscriber may lag behind before it is told to list again (`RecvError::Lagged`).
const CHANGES_QUEUED: usize = 1024;

/// The maps hold no broken invariants between statements: a panic elsewhere does not make them unusable.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Runtime {
    /// Opens the runtime's folder and adopts what runs in it. Must be called inside a tokio runtime.
    pub fn open(config: RuntimeConfig) -> Result<Runtime, RuntimeError> {
        for folder in ["c", "s"] {
            let path = config.root.join(folder);
            std::fs::create_dir_all(&path)
                .and_then(|()| std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o700)))
                .map_err(|source| RuntimeError::Io { what: format!("cannot make {}", path.display()), source })?;
        }
        let cgroups = Cgroups::detect(&config.cgroup_root);
        for controller in ["cpu", "memory", "pids"] {
            if !cgroups.has(controller) {
                tracing::warn!(controller, "cgroup controller is missing: containers run without this limit");
            }
        }
        let renewals = fence::Page::open(&config.root.join(layout::RENEWALS))
            .map_err(|source| RuntimeError::Io { what: "cannot open the page of renewals".to_owned(), source })?;
        let (changes, _) = broadcast::channel(CHANGES_QUEUED);
        cgroups.leave_processes_to_others();
        let (program, sandboxes, containers) = (Executable::open(&config.shim_exe), Mutex::default(), Mutex::default());
        let inner = Arc::new(Inner { config, program, cgroups, renewals, sandboxes, containers, changes });
        inner.adopt_sandboxes();
        inner.adopt_containers();
        Ok(Runtime { inner })
    }

    /// Every change of a container's state, in order per container. On `Lagged`, list again.
    pub fn subscribe(&self) -> broadcast::Receiver<ContainerStatus> {
        self.inner.changes.subscribe()
    }

    /// Makes the sandbox, or finds it made. The network namespace has only a loopback device, down. A sandbox that is
    /// not `ready` (the machine was rebooted) is returned as it is: remove it first.
    pub async fn ensure_sandbox(&self, spec: &SandboxSpec) -> Result<SandboxStatus, RuntimeError> {
        if let Some(sandbox) = locked(&self.inner.sandboxes).get(&spec.pod_uid) {
            return Ok(sandbox.status());
        }
        let (inner, spec) = (self.inner.clone(), spec.clone());
        let made = tokio::task::spawn_blocking(move || inner.make_sandbox(&spec)).await;
        made.map_err(|error| RuntimeError::Sandbox(error.to_string()))?
    }

    /// All sandboxes, by pod uid.
    pub fn sandboxes(&self) -> Vec<SandboxStatus> {
        locked(&self.inner.sandboxes).values().map(Sandbox::status).collect()
    }

    /// Whether the pod has a sandbox in which no container can start any more: its pause process has ended.
    pub fn has_dead_sandbox(&self, pod_uid: &str) -> bool {
        locked(&self.inner.sandboxes).get(pod_uid).is_some_and(|sandbox| !sandbox.is_ready())
    }

    /// Keeps a small note (an address, a lease) with the sandbox, on disk, until it is removed.
    pub async fn set_sandbox_annotation(&self, pod_uid: &str, key: &str, value: &str) -> Result<(), RuntimeError> {
        let mut sandboxes = locked(&self.inner.sandboxes);
        let sandbox = sandboxes.get_mut(pod_uid).ok_or_else(|| RuntimeError::SandboxNotFound(pod_uid.to_owned()))?;
        sandbox.record.annotations.insert(key.to_owned(), value.to_owned());
        sandbox.save().map_err(|source| RuntimeError::Io { what: "cannot write sandbox.json".to_owned(), source })
    }

    /// What was kept with a pod's sandbox under a key.
    pub fn sandbox_annotation(&self, pod_uid: &str, key: &str) -> Option<String> {
        locked(&self.inner.sandboxes).get(pod_uid)?.record.annotations.get(key).cloned()
    }

    /// Kills what still runs in the pod, removes its containers, namespaces, mounts and cgroup. Idempotent.
    pub async fn remove_sandbox(&self, pod_uid: &str) -> Result<(), RuntimeError> {
        let ids: Vec<String> = {
            let containers = locked(&self.inner.containers);
            containers.values().filter(|entry| entry.spec.pod_uid == pod_uid).map(|entry| entry.spec.id()).collect()
        };
        for id in ids {
            self.kill_container(&id).await?;
            self.remove_container(&id).await?;
        }
        let Some(sandbox) = locked(&self.inner.sandboxes).get(pod_uid).cloned() else { return Ok(()) };
        let inner = self.inner.clone();
        let removed = tokio::task::spawn_blocking(move || {
            let cgroup = &sandbox.record.spec.cgroup;
            inner.cgroups.kill_and_wait(cgroup);
            if let Err(error) = inner.cgroups.remove(cgroup) {
                tracing::warn!(pod = sandbox.record.spec.name, %error, "cannot remove a pod's cgroup");
            }
            sandbox::remove(&sandbox.dir)
        })
        .await
        .map_err(|error| RuntimeError::Sandbox(error.to_string()))?;
        removed.map_err(|source| RuntimeError::Io { what: "cannot remove sandbox".to_owned(), source })?;
        locked(&self.inner.sandboxes).remove(pod_uid);
        Ok(())
    }

    /// Creates and starts a container in its pod's sandbox; returns once its program runs. Idempotent while it runs.
    pub async fn start_container(&self, spec: &ContainerSpec) -> Result<ContainerStatus, RuntimeError> {
        self.inner.start(spec).await
    }

    /// Sends `signal` (SIGTERM where None) to the container's first process, waits up to `grace`, then kills every
    /// process of the container. Returns when it has ended; at once if it was not running.
    pub async fn stop_container(
        &self,
        id: &str,
        signal: Option<i32>,
        grace: Duration,
    ) -> Result<ContainerStatus, RuntimeError> {
        self.inner.stop(id, signal.unwrap_or(libc::SIGTERM), grace).await
    }

    /// Kills every process of the container at once and waits for its end.
    pub async fn kill_container(&self, id: &str) -> Result<ContainerStatus, RuntimeError> {
        self.inner.stop(id, libc::SIGKILL, Duration::ZERO).await
    }

    /// Removes an ended container's root filesystem, records and cgroup; its log stays. Idempotent.
    pub async fn remove_container(&self, id: &str) -> Result<(), RuntimeError> {
        self.inner.remove(id).await
    }

    /// All containers, running and ended, by id.
    pub fn list(&self) -> Vec<ContainerStatus> {
        locked(&self.inner.containers).values().map(|entry| entry.current()).collect()
    }

    /// The folder with what a container has written to its root file system.
    pub fn written_dir(&self, id: &str) -> PathBuf {
        self.inner.container_dir(id).join(images::overlay::UPPER)
    }

    /// Removes what ended containers have written to their root file systems, which nobody sees any more; their
    /// records and logs stay. What cannot be removed now is left for the next time. Blocking.
    pub fn discard_written(&self) {
        let ended: Vec<Arc<Entry>> =
            locked(&self.inner.containers).values().filter(|entry| entry.is_ended()).cloned().collect();
        for entry in ended {
            if let Err(error) = self.inner.discard_written(&entry) {
                tracing::warn!(container = entry.spec.id(), %error, "what it wrote cannot be removed");
            }
        }
    }

    /// One container.
    pub fn status(&self, id: &str) -> Option<ContainerStatus> {
        self.inner.entry(id).ok().map(|entry| entry.current())
    }

    /// Runs a command in a running container.
    pub async fn exec(&self, id: &str, spec: ExecSpec) -> Result<ExecHandle, RuntimeError> {
        self.inner.exec(id, spec).await
    }

    /// Runs a probe: exit code and the first 10 KiB of its output (stdout and stderr as they came).
    /// After `timeout` the command is killed and the error is `ExecTimeout`.
    pub async fn exec_probe(
        &self,
        id: &str,
        args: &[String],
        timeout: Duration,
    ) -> Result<(i32, Vec<u8>), RuntimeError> {
        self.exec_within(id, args, timeout, ExecPurpose::Probe).await
    }

    /// As [`Runtime::exec_probe`], a hook: how many probes or commands of people run does not matter to it.
    pub async fn exec_hook(
        &self,
        id: &str,
        args: &[String],
        timeout: Duration,
    ) -> Result<(i32, Vec<u8>), RuntimeError> {
        self.exec_within(id, args, timeout, ExecPurpose::Hook).await
    }

    async fn exec_within(
        &self,
        id: &str,
        args: &[String],
        timeout: Duration,
        purpose: ExecPurpose,
    ) -> Result<(i32, Vec<u8>), RuntimeError> {
        let run = self.inner.run(id, args, purpose);
        tokio::time::timeout(timeout, run).await.map_err(|_| RuntimeError::ExecTimeout(timeout))?
    }

    /// Joins a running container's output from now on, and its stdin and terminal where it has them.
    pub async fn attach(&self, id: &str) -> Result<AttachHandle, RuntimeError> {
        self.inner.attach(id)
    }

    /// Moves the deadlines of all containers that have one: the node's lease was renewed by a request that was sent at
    /// `sent` and whose answer was here at `acknowledged`, both of [`fence::boottime`]. `lease` is the shortest
    /// deadline that there is. Blocking, for a moment.
    ///
    /// # Errors
    /// The disk is full or broken: nothing is moved.
    pub fn renewed(&self, sent: Duration, acknowledged: Duration, lease: Duration) -> std::io::Result<()> {
        self.inner.renewals.write(|known| known.renewed(sent, acknowledged, lease))
    }

    /// Whether any container of a pod runs, or is about to.
    pub fn has_running(&self, pod_uid: &str) -> bool {
        let containers = locked(&self.inner.containers);
        containers.values().any(|entry| entry.spec.pod_uid == pod_uid && !entry.is_ended())
    }

    /// A deadline for whoever outlives the main process, as containers have it.
    pub fn fence(&self, of: Deadline) -> fence::Fence {
        self.inner.fence(of)
    }

    /// What supervisors with a deadline know of the renewals.
    pub fn renewals(&self) -> fence::Renewals {
        self.inner.renewals.read()
    }

    /// What the container uses now.
    pub fn stats(&self, id: &str) -> Result<ContainerStats, RuntimeError> {
        let entry = self.inner.entry(id)?;
        if entry.is_running() {
            Ok(self.inner.cgroups.stats(&entry.cgroup))
        } else {
            Err(RuntimeError::NotRunning(id.to_owned()))
        }
    }

    /// The control group of a container, as `/<root>/burstable/pod<uid>/<name>`.
    pub fn group(&self, id: &str) -> Option<String> {
        self.inner.entry(id).ok().map(|entry| self.inner.cgroups.name(&entry.cgroup))
    }

    /// A pod's control group, and what it counts: also what containers used that have ended. `None` without a sandbox.
    pub fn pod_stats(&self, pod_uid: &str) -> Option<(String, ContainerStats)> {
        let group = locked(&self.inner.sandboxes).get(pod_uid)?.record.spec.cgroup.clone();
        Some((self.inner.cgroups.name(&group), self.inner.cgroups.stats(&group)))
    }

    /// Gives a running container other limits. Idempotent.
    ///
    /// # Errors
    /// The kernel refuses them: a memory limit below what is in use, which it cannot free.
    pub async fn resize(&self, id: &str, limits: Limits) -> Result<(), RuntimeError> {
        let entry = self.inner.entry(id)?;
        if !entry.is_running() {
            return Err(RuntimeError::NotRunning(id.to_owned()));
        }
        let (inner, group) = (self.inner.clone(), entry.cgroup.clone());
        let work = tokio::task::spawn_blocking(move || inner.cgroups.resize(&group, limits));
        let resized = work.await.map_err(std::io::Error::other).flatten();
        resized.map_err(|source| RuntimeError::Io { what: format!("resizing {id}"), source })
    }

    /// Takes away everything this instance made: containers, sandboxes, mounts, cgroups (`mainstay down`). What does
    /// not go (a process in an unfinished disk request) keeps nothing else: a sentence for each such thing comes back.
    pub async fn cleanup_all(&self) -> Vec<String> {
        let mut left = Vec::new();
        let mut stuck = BTreeSet::new();
        let entries: Vec<Arc<Entry>> = locked(&self.inner.containers).values().cloned().collect();
        for entry in entries {
            let id = entry.spec.id();
            let ended = match self.kill_container(&id).await {
                Ok(_) => self.remove_container(&id).await,
                Err(error) => Err(error),
            };
            if let Err(error) = ended {
                left.push(format!(
                    "container {} of pod {}: {error}",
                    entry.spec.name,
                    self.pod_name(&entry.spec.pod_uid)
                ));
                stuck.insert(entry.spec.pod_uid.clone());
            }
        }
        let uids: Vec<String> = locked(&self.inner.sandboxes).keys().cloned().collect();
        for uid in uids.into_iter().filter(|uid| !stuck.contains(uid)) {
            if let Err(error) = self.remove_sandbox(&uid).await {
                left.push(format!("pod {}: {error}", self.pod_name(&uid)));
            }
        }
        let inner = self.inner.clone();
        let removed = tokio::task::spawn_blocking(move || {
            let ended = inner.cgroups.kill_and_wait("");
            match inner.cgroups.remove("") {
                Err(error) if ended => Err(format!("cannot remove cgroups: {error}")),
                Err(_) => Err(format!("processes {:?} do not end", inner.cgroups.processes(""))),
                Ok(()) => Ok(()),
            }
        });
        left.extend(removed.await.unwrap_or_else(|error| Err(error.to_string())).err());
        left
    }

    /// `<namespace>/<name>`, else the uid.
    fn pod_name(&self, uid: &str) -> String {
        let sandboxes = locked(&self.inner.sandboxes);
        let spec = sandboxes.get(uid).map(|sandbox| &sandbox.record.spec);
        spec.map_or_else(|| uid.to_owned(), |spec| format!("{}/{}", spec.namespace, spec.name))
    }

    /// The folder this runtime works in.
    pub fn root(&self) -> &Path {
        &self.inner.config.root
    }
}

impl Inner {
    fn fence(&self, of: Deadline) -> fence::Fence {
        fence::Fence { renewals: self.config.root.join(layout::RENEWALS), of }
    }

    /// Blocking.
    fn make_sandbox(&self, spec: &SandboxSpec) -> Result<SandboxStatus, RuntimeError> {
        let dir = self.config.root.join("s").join(layout::short(&spec.pod_uid));
        // The lock is held over the making: two callers must not make one pod's namespaces twice. It takes
        // milliseconds.
        let mut sandboxes = locked(&self.sandboxes);
        if let Some(sandbox) = sandboxes.get(&spec.pod_uid) {
            return Ok(sandbox.status());
        }
        sandbox::remove(&dir)
            .map_err(|error| RuntimeError::Sandbox(format!("cannot clear {}: {error}", dir.display())))?;
        let first_id = if spec.user_namespace {
            let used = sandboxes.values().filter_map(|sandbox| sandbox.record.first_id).collect();
            let first = user_namespace::allocate(&used, &user_namespace::host_ranges());
            Some(first.ok_or_else(|| RuntimeError::Sandbox("no range of user ids is left".to_owned()))?)
        } else {
            None
        };
        self.cgroups
            .limit_pod(&spec.cgroup, spec.limits)
            .map_err(|error| RuntimeError::Sandbox(format!("cannot limit the pod: {error}")))?;
        let root = &self.config.cgroup_root;
        let sandbox = Sandbox::create(&dir, spec, first_id, &self.program, root).inspect_err(|_| {
            let _ = self.cgroups.remove(&spec.cgroup);
        })?;
        let status = sandbox.status();
        sandboxes.insert(spec.pod_uid.clone(), sandbox);
        Ok(status)
    }

    /// Finds the sandboxes that an earlier main process made. Blocking.
    fn adopt_sandboxes(&self) {
        for folder in std::fs::read_dir(self.config.root.join("s")).into_iter().flatten().flatten() {
            match Sandbox::load(&folder.path()) {
                Some(sandbox) => drop(locked(&self.sandboxes).insert(sandbox.record.spec.pod_uid.clone(), sandbox)),
                None => {
                    if let Err(error) = sandbox::remove(&folder.path()) {
                        tracing::warn!(folder = %folder.path().display(), %error,
                            "cannot remove an unfinished sandbox");
                    }
                }
            }
        }
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
        (&mut self.exit)
            .await
            .map_err(|_| RuntimeError::Exec("the command's supervisor ended without an exit code".to_owned()))
    }
}

/// A live view of a container's first process. Dropping it detaches (and, with stdinOnce, ends the input).
pub struct AttachHandle {
    pub stdin: Option<InputStream>,
    pub stdout: OutputStream,
    pub stderr: Option<OutputStream>,
    pub resize: mpsc::Sender<TerminalSize>,
}
