//! What the kubelet asks of the runtime, and what it is told.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use super::seccomp::SeccompProfile;

/// What a pod's sandbox needs: the namespaces that the containers of a pod share.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
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
    /// A user namespace of the pod's own (hostUsers: false). Not with the node's network, IPC or PID namespace.
    #[serde(default)]
    pub user_namespace: bool,
    /// What all containers of the pod may use together, beside each one's own limits.
    #[serde(default)]
    pub limits: Limits,
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
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Mount {
    pub source: PathBuf,
    pub target: String,
    pub read_only: bool,
    /// With `read_only`: what is mounted below the source is read-only too.
    #[serde(default)]
    pub recursive_read_only: bool,
    pub propagation: MountPropagation,
    /// The device (`major:minor`) of the file system that the source has to be on. A container whose mount turns out to
    /// be of another one, such as of the empty folder below a file system that went meanwhile, does not start (V6).
    #[serde(default)]
    pub device: Option<String>,
}

/// A block device that a container may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockDevice {
    pub major: u64,
    pub minor: u64,
    /// It may not be opened for writing. That takes a control group that guards devices (v1).
    pub read_only: bool,
}

/// Kubernetes' mountPropagation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum MountPropagation {
    #[default]
    None,
    HostToContainer,
    Bidirectional,
}

impl MountPropagation {
    /// As an option of a mount in an OCI spec.
    pub fn option(self) -> &'static str {
        match self {
            MountPropagation::None => "rprivate",
            MountPropagation::HostToContainer => "rslave",
            MountPropagation::Bidirectional => "rshared",
        }
    }

    /// What such an option means.
    pub fn of_option(option: &str) -> Option<Self> {
        [Self::None, Self::HostToContainer, Self::Bidirectional].into_iter().find(|one| one.option() == option)
    }
}

/// One container, everything resolved: no Kubernetes lookups are left to the runtime.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ContainerSpec {
    pub pod_uid: String,
    /// The container's name in the pod.
    pub name: String,
    /// How many containers of this name came before in this pod.
    pub attempt: u32,
    /// The image's name as the pod had it; empty in records of older versions.
    #[serde(default)]
    pub image: String,
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
    /// Block devices that it may use, beside those that every container may. Their nodes are among the mounts.
    #[serde(default)]
    pub devices: Vec<BlockDevice>,
    /// procMount: Unmasked takes the masks off /proc and /sys.
    pub unmasked_proc: bool,
    /// Which system calls it may make; a privileged container, all.
    #[serde(default)]
    pub seccomp: SeccompProfile,
    /// The id of a running container whose PID namespace this one joins.
    #[serde(default)]
    pub processes_of: Option<String>,
    /// When its supervisor ends it by itself, if ever.
    #[serde(default)]
    pub deadline: Option<Deadline>,
    /// When the sandbox was made that it is started in, which says which one that is. The runtime notes it.
    #[serde(default)]
    pub sandbox_made_at_ms: Option<i64>,
}

impl ContainerSpec {
    /// Who its first process is when it begins. As containerd does it, the primary group is among the others, too.
    pub fn process_user(&self) -> ProcessUser {
        let gid = self.group.unwrap_or(0);
        let others = self.supplemental_groups.iter().copied().filter(|group| *group != gid);
        ProcessUser { uid: self.user.unwrap_or(0), gid, groups: std::iter::once(gid).chain(others).collect() }
    }
}

/// A container ends when the node's lease was not renewed for so long (S13).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadline {
    pub seconds: u32,
    /// Since when the lease was renewed without a gap, as it was when the API said that the pod is there: the container
    /// does not start when that has changed.
    pub since: std::time::Duration,
}

/// The limits that can be changed while a container runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Limits {
    /// Thousandths of a CPU.
    pub cpu_request_milli: Option<u64>,
    pub cpu_limit_milli: Option<u64>,
    /// Bytes.
    pub memory_limit: Option<u64>,
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
    /// Ended; `signal` where a signal ended it, `oom` where the kernel's OOM killer did, `fenced` where its supervisor
    /// did at its deadline.
    Exited {
        code: i32,
        signal: Option<i32>,
        oom: bool,
        fenced: bool,
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
    /// The image's name as the pod had it at the start; empty where it was not noted.
    pub image: String,
    pub image_id: String,
    /// Which sandbox it was started in, by [`SandboxStatus::created_at_ms`]; none where it was not noted.
    pub sandbox_made_at_ms: Option<i64>,
    /// Who its first process is when it begins, as it sees itself; none where nothing of it was ever made.
    pub user: Option<ProcessUser>,
    pub state: ContainerState,
}

/// The ids of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessUser {
    pub uid: u32,
    pub gid: u32,
    /// All of its groups: the primary one first, then the others.
    pub groups: Vec<u32>,
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
    pub purpose: ExecPurpose,
}

/// What a command is run for. Each has limits of its own, of how many run in one container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExecPurpose {
    /// For a person, or for a program of theirs.
    #[default]
    Session,
    Probe,
    /// `postStart`, `preStop`.
    Hook,
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

/// What a cgroup counts: a container's, or a pod's with all that it had. Zero where the machine does not count it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ContainerStats {
    /// CPU time used since the start, nanoseconds: in all, and in and outside of the kernel.
    pub cpu_usage_nanos: u64,
    pub cpu_user_nanos: u64,
    pub cpu_system_nanos: u64,
    /// Periods in which it had a limit, those in which it used it up, and for how long it then waited.
    pub cpu_periods: u64,
    pub cpu_throttled_periods: u64,
    pub cpu_throttled_nanos: u64,
    /// Memory in use, bytes, and without the inactive page cache (what `kubectl top` calls memory).
    pub memory_usage_bytes: u64,
    pub memory_working_set_bytes: u64,
    /// Of it: what belongs to no file, what does, what of that is mapped, and what is swapped out beside it.
    pub memory_rss_bytes: u64,
    pub memory_cache_bytes: u64,
    pub memory_mapped_bytes: u64,
    pub memory_swap_bytes: u64,
    /// The most that ever was in use.
    pub memory_peak_bytes: u64,
    /// What may be; 0 without a limit.
    pub memory_limit_bytes: u64,
    /// How often it wanted more, and how many of its processes were killed for that.
    pub memory_limit_hits: u64,
    pub oom_kills: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
    /// What went from and to disks, in bytes and operations.
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub reads: u64,
    pub writes: u64,
    pub pids: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conformance_a_process_has_its_own_group_among_its_groups_once() {
        let spec = ContainerSpec {
            user: Some(1000),
            group: Some(3000),
            supplemental_groups: vec![60000, 3000],
            ..ContainerSpec::default()
        };
        assert_eq!(spec.process_user(), ProcessUser { uid: 1000, gid: 3000, groups: vec![3000, 60000] });
        assert_eq!(ContainerSpec::default().process_user(), ProcessUser { uid: 0, gid: 0, groups: vec![0] });
    }
}
