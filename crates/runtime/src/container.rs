//! Start, stop, removal and adoption of containers: the main process's side of a supervisor.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::exec::Permits;
use super::layout::{self, ExitRecord, ShimConfig, StateRecord};
use super::{
    ContainerSpec, ContainerState, ContainerStatus, Inner, Mount, MountPropagation, RuntimeError, SeccompProfile, oci,
    seccomp, user_namespace,
};
use crate::images::overlay::UPPER;
use crate::safe_path::mounts::{self, Sharing};
use crate::shim::process;
use crate::shim::wire::{self, FromShim, ToShim};

/// How long a container may take to be made and started: its mounts can hang on a dead server.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// How long killed processes may take to go (a process in an unfinished disk request can't be killed).
const KILL_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a container's folder is emptied again because something came into it meanwhile.
const REMOVAL_TRIES: u32 = 8;
/// How long opening waits for a supervisor that was cut off while it started its container.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);

/// A container that the runtime knows.
pub struct Entry {
    pub spec: ContainerSpec,
    pub dir: PathBuf,
    /// Its cgroup below the instance's root.
    pub cgroup: String,
    pub status: watch::Sender<ContainerStatus>,
    /// For signals, while it runs: names the process even after its number is given to another.
    pub pidfd: std::sync::Mutex<Option<Arc<OwnedFd>>>,
    pub execs: Permits,
}

impl Entry {
    fn new(spec: ContainerSpec, dir: PathBuf, cgroup: String, state: ContainerState) -> Entry {
        let status = ContainerStatus {
            id: spec.id(),
            pod_uid: spec.pod_uid.clone(),
            name: spec.name.clone(),
            attempt: spec.attempt,
            image: spec.image.clone(),
            image_id: spec.image_id.clone(),
            sandbox_made_at_ms: spec.sandbox_made_at_ms,
            user: Some(spec.process_user()),
            state,
        };
        let (status, pidfd) = (watch::Sender::new(status), std::sync::Mutex::new(None));
        Entry { spec, dir, cgroup, status, pidfd, execs: Permits::new() }
    }

    pub fn current(&self) -> ContainerStatus {
        self.status.borrow().clone()
    }

    pub fn is_running(&self) -> bool {
        matches!(self.status.borrow().state, ContainerState::Running { .. })
    }

    /// Whether nothing of it runs, nor will.
    pub fn is_ended(&self) -> bool {
        Self::is_over(&self.status.borrow().state)
    }

    fn is_over(state: &ContainerState) -> bool {
        matches!(state, ContainerState::Exited { .. } | ContainerState::Unknown)
    }
}

/// Whether what is to be propagated can be: the source must be on a mount that does. In containerd's words.
fn check_propagation(all: &[Mount]) -> Result<(), RuntimeError> {
    for mount in all.iter().filter(|mount| mount.propagation != MountPropagation::None) {
        let looked = mounts::sharing(&mount.source);
        let looked =
            looked.map_err(|source| RuntimeError::Io { what: "reading what is mounted".to_owned(), source })?;
        let Some((point, sharing)) = looked else { continue };
        let missing = match (mount.propagation, sharing) {
            (_, Sharing::Shared) | (MountPropagation::HostToContainer, Sharing::Slave) => continue,
            (MountPropagation::HostToContainer, _) => "shared or slave",
            _ => "shared",
        };
        return Err(RuntimeError::Rootfs(format!(
            "path {:?} is mounted on {:?} but it is not a {missing} mount",
            mount.source.display().to_string(),
            point.display().to_string()
        )));
    }
    Ok(())
}

impl Inner {
    fn set_state(&self, entry: &Entry, state: ContainerState) {
        let changed = entry.status.send_if_modified(|status| {
            let changed = status.state != state;
            status.state = state;
            changed
        });
        if changed {
            // Nobody listening is fine.
            let _ = self.changes.send(entry.current());
        }
    }

    /// See [`super::Runtime::start_container`].
    pub async fn start(self: &Arc<Self>, spec: &ContainerSpec) -> Result<ContainerStatus, RuntimeError> {
        let id = spec.id();
        let (mut namespaces, pod_cgroup, made_at_ms) = {
            let sandboxes = super::locked(&self.sandboxes);
            let sandbox =
                sandboxes.get(&spec.pod_uid).ok_or_else(|| RuntimeError::SandboxNotFound(spec.pod_uid.clone()))?;
            (sandbox.namespaces(), sandbox.record.spec.cgroup.clone(), sandbox.record.created_at_ms)
        };
        let spec = ContainerSpec { sandbox_made_at_ms: Some(made_at_ms), ..spec.clone() };
        let joined = match &spec.processes_of {
            Some(other) => Some(self.entry(other)?.pid_namespace()?),
            None => None,
        };
        if let Some(namespace) = &joined {
            // The supervisor finds it there for as long as it starts.
            let path = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
            namespaces.pid = Some(PathBuf::from(path));
        }
        let dir = self.container_dir(&id);
        let cgroup = format!("{}/{}", pod_cgroup.trim_matches('/'), layout::short(&id));
        let entry = Arc::new(Entry::new(spec, dir, cgroup, ContainerState::Created));
        {
            let mut containers = super::locked(&self.containers);
            if let Some(existing) = containers.get(&id) {
                // Asked again for what runs already: that is success. An ended one is never run a second time.
                return if existing.is_running() { Ok(existing.current()) } else { Err(RuntimeError::Exists(id)) };
            }
            containers.insert(id.clone(), entry.clone());
        }
        // A task of its own: a caller that loses interest half-way must not leave half a container.
        let inner = self.clone();
        let task = tokio::spawn(async move {
            let started = inner.start_entry(&entry, namespaces).await;
            drop(joined);
            if started.is_err() {
                let (blocking, failed) = (inner.clone(), entry.clone());
                let _ = tokio::task::spawn_blocking(move || blocking.discard(&failed)).await;
                super::locked(&inner.containers).remove(&id);
            }
            started.map(|()| entry.current())
        });
        task.await.unwrap_or_else(|error| Err(RuntimeError::Start(error.to_string())))
    }

    async fn start_entry(
        self: &Arc<Self>,
        entry: &Arc<Entry>,
        namespaces: oci::Namespaces,
    ) -> Result<(), RuntimeError> {
        let (inner, prepared) = (self.clone(), entry.clone());
        let (control, child) = tokio::task::spawn_blocking(move || inner.spawn_shim(&prepared, &namespaces))
            .await
            .map_err(|error| RuntimeError::Start(error.to_string()))??;
        let shim_pid = child as i32;
        let shim = process::pidfd_open(shim_pid)
            .map_err(|error| RuntimeError::Start(format!("cannot watch the supervisor: {error}")))?;
        let talk = async {
            let control =
                layout::watched(control, Interest::READABLE).map_err(|error| RuntimeError::Start(error.to_string()))?;
            let FromShim::Created { pid } = next_message(&control).await? else {
                return Err(RuntimeError::Start("the supervisor spoke out of turn".to_owned()));
            };
            let pidfd = process::pidfd_open(pid)
                .map_err(|error| RuntimeError::Start(format!("cannot watch process {pid}: {error}")))?;
            *super::locked(&entry.pidfd) = Some(Arc::new(pidfd));
            wire::send(control.as_fd(), &ToShim::Go, &[]).map_err(|error| RuntimeError::Start(error.to_string()))?;
            match next_message(&control).await? {
                FromShim::Started { started_at_ms } => Ok((pid, started_at_ms)),
                _ => Err(RuntimeError::Start("the supervisor spoke out of turn".to_owned())),
            }
        };
        match tokio::time::timeout(START_TIMEOUT, talk)
            .await
            .unwrap_or_else(|_| Err(RuntimeError::Start(format!("not started within {START_TIMEOUT:?}"))))
        {
            Ok((pid, started_at_ms)) => {
                self.set_state(entry, ContainerState::Running { pid: pid as u32, started_at_ms });
                self.watch_shim(entry.clone(), shim, Some(shim_pid));
                Ok(())
            }
            Err(error) => {
                // SAFETY: the supervisor is our child and not waited for, so the pid is its own.
                unsafe { libc::kill(shim_pid, libc::SIGKILL) };
                let ended = layout::watched(shim, Interest::READABLE);
                if let Ok(ended) = &ended {
                    let _ = ended.readable().await;
                }
                reap(shim_pid);
                Err(error)
            }
        }
    }

    /// Prepares the container's folder and starts its supervisor. Blocking. Returns our end of its control socket.
    fn spawn_shim(&self, entry: &Entry, namespaces: &oci::Namespaces) -> Result<(OwnedFd, u32), RuntimeError> {
        let dir = &entry.dir;
        let spec = &entry.spec;
        let io_error = |what: &str| {
            let what = format!("{what} in {}", dir.display());
            move |source: io::Error| RuntimeError::Io { what, source }
        };
        check_propagation(&spec.mounts)?;
        fs::create_dir_all(dir.join(layout::LIBRARY)).map_err(io_error("cannot make folders"))?;
        layout::write_record(dir, layout::SPEC, spec).map_err(io_error("cannot write spec.json"))?;
        let lock =
            lock(dir).map_err(io_error("cannot take the lock"))?.ok_or_else(|| RuntimeError::Exists(spec.id()))?;
        let (rootfs, user_namespace) = self.rootfs(entry, namespaces)?;
        // The supervisor binds the volumes with other owners, and the container library finds them there.
        let mapped = ContainerSpec { mounts: mapped_mounts(spec, dir), ..spec.clone() };
        let mounted = if user_namespace.is_some() { &mapped } else { spec };
        let own = oci::Own::read();
        let capabilities = oci::capabilities(spec, &self.cgroups, &own);
        let profile = if spec.privileged { &SeccompProfile::Unconfined } else { &spec.seccomp };
        if let Some(program) = seccomp::compile(profile, &capabilities)? {
            layout::write_bytes(dir, layout::SECCOMP, &program.to_bytes())
                .map_err(io_error("cannot write seccomp.bpf"))?;
        }
        let config = oci::config(mounted, &rootfs, namespaces, &self.cgroups, &entry.cgroup, &own);
        layout::write_record(dir, layout::CONFIG, &config).map_err(io_error("cannot write config.json"))?;
        let shim = ShimConfig {
            short: layout::short(&spec.id()),
            cgroup_root: self.config.cgroup_root.clone(),
            cgroup: entry.cgroup.clone(),
            tty: spec.tty,
            stdin: spec.stdin,
            stdin_once: spec.stdin_once,
            log_path: spec.log_path.clone(),
            capabilities: Some(oci::capability_mask(&capabilities)),
            is_privileged: spec.privileged,
            devices: spec.mounts.iter().filter_map(|mount| mount.device.clone()).collect(),
            late_mounts: oci::late_mounts(mounted),
            deadline: spec.deadline.map(|of| layout::DeadlineConfig {
                fence: self.fence(of),
                mounts: spec.mounts.iter().map(|mount| mount.source.clone()).collect(),
            }),
            user_namespace,
        };
        layout::write_record(dir, layout::SHIM, &shim).map_err(io_error("cannot write shim.json"))?;
        let (ours, theirs) = wire::pair().map_err(io_error("cannot make a socket"))?;
        process::set_nonblocking(ours.as_raw_fd()).map_err(io_error("cannot make a socket"))?;
        let errors = File::options()
            .read(true)
            .append(true)
            .create(true)
            .open(dir.join(layout::SHIM_LOG))
            .map_err(io_error("cannot make shim.log"))?;
        // The lock's open file goes along: it is held until the supervisor too is gone.
        let child = self
            .program
            .command()
            .arg("__shim")
            .arg(dir)
            .env_clear()
            .current_dir("/")
            .stdin(lock)
            .stdout(theirs)
            .stderr(errors)
            .spawn()
            .map_err(io_error("cannot start the supervisor"))?;
        Ok((ours, child.id()))
    }

    /// The root filesystem: mounted, or ready for the supervisor to mount it where the pod has a user namespace.
    /// Blocking.
    fn rootfs(
        &self,
        entry: &Entry,
        namespaces: &oci::Namespaces,
    ) -> Result<(PathBuf, Option<layout::UserNamespaceConfig>), RuntimeError> {
        let (spec, dir, images) = (&entry.spec, &entry.dir, &self.config.images);
        let no_devices = !self.cgroups.has("devices");
        let failed = |error: crate::images::ImageError| RuntimeError::Rootfs(error.to_string());
        if no_devices && !spec.privileged && spec.devices.iter().any(|device| device.read_only) {
            let why = "nothing here keeps a container from writing to a block device that it may only read: that \
                takes a control group for devices (v1)";
            return Err(RuntimeError::Start(why.to_owned()));
        }
        let Some((namespace, first)) = namespaces.user.clone() else {
            return images.mount_rootfs(&spec.image_id, dir, no_devices).map(|rootfs| (rootfs, None)).map_err(failed);
        };
        let ids = spec.user.into_iter().chain(spec.group).chain(spec.supplemental_groups.iter().copied());
        if let Some(id) = ids.into_iter().find(|id| *id >= user_namespace::IDS) {
            let most = user_namespace::IDS - 1;
            let why = format!("id {id} is not in the pod's user namespace, which has 0 to {most}");
            return Err(RuntimeError::Start(why));
        }
        let (rootfs, layers) = images.prepare_rootfs(&spec.image_id, dir, first).map_err(failed)?;
        let mounts = spec.mounts.iter().map(|mount| mount.source.clone()).collect();
        Ok((rootfs, Some(layout::UserNamespaceConfig { namespace, first, layers, no_devices, mounts })))
    }

    /// Follows a supervisor to its end and then reads how the container ended.
    fn watch_shim(self: &Arc<Self>, entry: Arc<Entry>, shim: OwnedFd, child: Option<i32>) {
        let inner = self.clone();
        tokio::spawn(async move {
            match layout::watched(shim, Interest::READABLE) {
                Ok(shim) => drop(shim.readable().await),
                Err(error) => tracing::error!(container = entry.spec.id(), %error, "cannot watch a supervisor"),
            }
            if let Some(pid) = child {
                reap(pid);
            }
            let (after, ended) = (inner.clone(), entry.clone());
            let state = tokio::task::spawn_blocking(move || after.state_after_shim(&ended))
                .await
                .unwrap_or(ContainerState::Unknown);
            inner.set_state(&entry, state);
        });
    }

    /// What became of a container whose supervisor is gone. Nothing of it may still run (S1): a supervisor that died
    /// without a record leaves processes that nobody would ever stop.
    fn state_after_shim(&self, entry: &Entry) -> ContainerState {
        *super::locked(&entry.pidfd) = None;
        let state = exited(&entry.dir);
        let said = entry.dir.join(layout::LOST);
        if state == ContainerState::Unknown && !said.exists() {
            tracing::warn!(
                container = entry.spec.id(),
                "supervisor ended without an exit record; killing what is left"
            );
            if let Err(error) = File::create(said) {
                tracing::warn!(container = entry.spec.id(), %error, "cannot note that");
            }
        }
        if !self.cgroups.kill_and_wait(&entry.cgroup) {
            tracing::error!(container = entry.spec.id(), "a process of an ended container does not end");
        }
        let _ = self.cgroups.remove(&entry.cgroup);
        state
    }

    /// See [`super::Runtime::stop_container`].
    pub async fn stop(&self, id: &str, signal: i32, grace: Duration) -> Result<ContainerStatus, RuntimeError> {
        let entry = self.entry(id)?;
        let mut changes = entry.status.subscribe();
        if Entry::is_over(&changes.borrow_and_update().state) {
            return Ok(entry.current());
        }
        if signal != libc::SIGKILL {
            entry.signal(signal);
            let ended = changes.wait_for(|status| Entry::is_over(&status.state));
            if tokio::time::timeout(grace, ended).await.is_ok() {
                return Ok(entry.current());
            }
        }
        entry.signal(libc::SIGKILL);
        self.cgroups.kill(&entry.cgroup);
        let ended = changes.wait_for(|status| Entry::is_over(&status.state));
        match tokio::time::timeout(KILL_TIMEOUT, ended).await {
            Ok(_) => Ok(entry.current()),
            Err(_) => Err(RuntimeError::StillRunning(id.to_owned())),
        }
    }

    /// See [`super::Runtime::remove_container`].
    pub async fn remove(self: &Arc<Self>, id: &str) -> Result<(), RuntimeError> {
        let Ok(entry) = self.entry(id) else { return Ok(()) };
        if !Entry::is_over(&entry.current().state) {
            return Err(RuntimeError::StillRunning(id.to_owned()));
        }
        let (inner, removed) = (self.clone(), entry);
        tokio::task::spawn_blocking(move || inner.discard(&removed))
            .await
            .map_err(|error| RuntimeError::Start(error.to_string()))??;
        super::locked(&self.containers).remove(id);
        Ok(())
    }

    /// Takes away everything of a container that does not run. Blocking, idempotent.
    fn discard(&self, entry: &Entry) -> Result<(), RuntimeError> {
        if !self.cgroups.kill_and_wait(&entry.cgroup) {
            return Err(RuntimeError::StillRunning(entry.spec.id()));
        }
        let io_error =
            |source| RuntimeError::Io { what: format!("cannot remove container {}", entry.spec.id()), source };
        self.config.images.unmount_rootfs(&entry.dir).map_err(|error| RuntimeError::Rootfs(error.to_string()))?;
        if let Err(error) = self.cgroups.remove(&entry.cgroup) {
            tracing::warn!(container = entry.spec.id(), %error, "cannot remove a cgroup");
        }
        // Who else followed the supervisor to its end (a main process that this one takes over from) may still note how
        // it ended there, once.
        let mut tries = 0..REMOVAL_TRIES;
        loop {
            match crate::safe_path::remove::tree(&self.config.root, &entry.dir) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && tries.next().is_some() => {}
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error(error)),
                _ => return Ok(()),
            }
        }
    }

    /// Empties an ended container's root file system. Blocking, idempotent.
    pub fn discard_written(&self, entry: &Entry) -> Result<(), RuntimeError> {
        let upper = entry.dir.join(UPPER);
        if !upper.exists() {
            return Ok(());
        }
        self.config.images.unmount_rootfs(&entry.dir).map_err(|error| RuntimeError::Rootfs(error.to_string()))?;
        match crate::safe_path::remove::tree(&self.config.root, &upper) {
            // Its pod is being put away, and all of the container with it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed
                .map_err(|source| RuntimeError::Io { what: format!("cannot remove {}", upper.display()), source }),
        }
    }

    pub fn entry(&self, id: &str) -> Result<Arc<Entry>, RuntimeError> {
        super::locked(&self.containers).get(id).cloned().ok_or_else(|| RuntimeError::ContainerNotFound(id.to_owned()))
    }

    pub(crate) fn container_dir(&self, id: &str) -> PathBuf {
        self.config.root.join("c").join(layout::short(id))
    }

    /// Finds again what an earlier main process started (V7, S11). Blocking.
    pub fn adopt_containers(self: &Arc<Self>) {
        for folder in fs::read_dir(self.config.root.join("c")).into_iter().flatten().flatten() {
            let dir = folder.path();
            let cgroup = self.cgroup_of(&dir);
            let Some(spec) = layout::read_record::<ContainerSpec>(&dir, layout::SPEC) else {
                self.end_unknown(&dir, &cgroup);
                continue;
            };
            let has_sandbox = super::locked(&self.sandboxes).contains_key(&spec.pod_uid);
            let entry = Arc::new(Entry::new(spec, dir, cgroup, ContainerState::Created));
            if !has_sandbox && self.cgroups.kill_and_wait(&entry.cgroup) {
                // Its record is damaged: a container must not go on in namespaces that its pod does not have any more.
                tracing::warn!(container = entry.spec.id(), "the pod's sandbox is gone; its container was ended");
            }
            if self.adopt(&entry) {
                super::locked(&self.containers).insert(entry.spec.id(), entry);
            }
        }
    }

    /// A container's cgroup below the instance's root: as its supervisor was given it, else by its name.
    fn cgroup_of(&self, dir: &Path) -> String {
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let noted = layout::read_record::<ShimConfig>(dir, layout::SHIM).map(|shim| shim.cgroup);
        noted.or_else(|| self.cgroups.find(&name)).unwrap_or_else(|| name.into_owned())
    }

    /// A folder that does not say whose it is: cut off before anything could run in it, or damaged. Whatever runs in it
    /// is ended before the folder goes, since nobody else would ever stop it (S1).
    fn end_unknown(&self, dir: &Path, cgroup: &str) {
        self.cgroups.kill_and_wait(cgroup);
        if !wait_for(dir, || is_free(dir)) {
            return tracing::error!(folder = %dir.display(), "the supervisor of a container without a record does not \
                end");
        }
        self.cgroups.kill_and_wait(cgroup);
        let removed = self.config.images.unmount_rootfs(dir).map_err(|error| error.to_string());
        let removed = removed
            .and_then(|()| crate::safe_path::remove::tree(&self.config.root, dir).map_err(|error| error.to_string()));
        let _ = self.cgroups.remove(cgroup);
        if let Err(error) = removed {
            tracing::warn!(folder = %dir.display(), error, "cannot remove a container without a record");
        }
    }

    /// False where the container never ran and was taken away.
    fn adopt(self: &Arc<Self>, entry: &Arc<Entry>) -> bool {
        let supervised = settle(&entry.dir);
        let state = layout::read_record::<StateRecord>(&entry.dir, layout::STATE);
        if let (true, Some(state)) = (supervised, &state)
            && let Ok(shim) = process::pidfd_open(state.shim_pid)
            && process::start_time(state.shim_pid) == Some(state.shim_start)
        {
            *super::locked(&entry.pidfd) = process::pidfd_open(state.pid)
                .ok()
                .filter(|_| process::start_time(state.pid) == Some(state.pid_start))
                .map(Arc::new);
            self.set_state(
                entry,
                ContainerState::Running { pid: state.pid as u32, started_at_ms: state.started_at_ms },
            );
            self.watch_shim(entry.clone(), shim, None);
            return true;
        }
        if state.is_none() && !entry.dir.join(layout::EXIT).exists() {
            if let Err(error) = self.discard(entry) {
                tracing::warn!(container = entry.spec.id(), %error, "cannot remove a container that was never started");
            }
            return false;
        }
        let state = self.state_after_shim(entry);
        self.set_state(entry, state);
        true
    }
}

impl Entry {
    /// The PID namespace of the container's first process, which runs.
    fn pid_namespace(&self) -> Result<File, RuntimeError> {
        let not_running = || RuntimeError::NotRunning(self.spec.id());
        let ContainerState::Running { pid, .. } = self.current().state else { return Err(not_running()) };
        let namespace = File::open(format!("/proc/{pid}/ns/pid")).map_err(|_| not_running())?;
        // If it still runs, its number was its own when the namespace was opened.
        let pidfd = super::locked(&self.pidfd).clone();
        let runs = pidfd.is_some_and(|pidfd| !process::has_ended(pidfd.as_raw_fd()));
        runs.then_some(namespace).ok_or_else(not_running)
    }

    /// Sends a signal to the container's first process, if it still runs.
    pub fn signal(&self, signal: i32) {
        if let Some(pidfd) = super::locked(&self.pidfd).as_ref() {
            process::signal(pidfd.as_raw_fd(), signal);
        }
    }
}

/// A container's mounts from where its supervisor has them with the pod's owners.
fn mapped_mounts(spec: &ContainerSpec, dir: &Path) -> Vec<Mount> {
    let mounts = spec.mounts.iter().enumerate();
    mounts.map(|(index, mount)| Mount { source: layout::mapped_mount(dir, index), ..mount.clone() }).collect()
}

/// The end of a container as its record says.
fn exited(dir: &Path) -> ContainerState {
    match layout::read_record::<ExitRecord>(dir, layout::EXIT) {
        Some(exit) => ContainerState::Exited {
            code: exit.code,
            signal: exit.signal,
            oom: exit.oom,
            fenced: exit.fenced,
            started_at_ms: exit.started_at_ms,
            finished_at_ms: exit.finished_at_ms,
        },
        None => ContainerState::Unknown,
    }
}

/// Takes the container's lock; None where a supervisor holds it.
fn lock(dir: &Path) -> io::Result<Option<File>> {
    let file = File::options().read(true).write(true).create(true).truncate(false).open(dir.join(layout::LOCK))?;
    // The lock belongs to the open file, not to us: it is held as long as any process has a descriptor of it.
    Ok(try_lock(&file)?.then_some(file))
}

/// False where somebody else holds it.
fn try_lock(file: &File) -> io::Result<bool> {
    // SAFETY: the descriptor is open.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::WouldBlock { Ok(false) } else { Err(error) }
}

/// True where a supervisor lives and has written its state. One that was cut off while it started (it has the lock but
/// wrote no state) either gives up or starts within moments.
fn settle(dir: &Path) -> bool {
    let has_state = || dir.join(layout::STATE).exists();
    wait_for(dir, || is_free(dir) || has_state()) && !is_free(dir) && has_state()
}

/// Waits until something is true of a container's folder: what a supervisor does closes or moves a file in it, which
/// wakes us. False where it is not within [`SETTLE_TIMEOUT`].
fn wait_for(dir: &Path, done: impl Fn() -> bool) -> bool {
    use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
    let Ok(inotify) = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK) else { return done() };
    let _ =
        inotify.add_watch(dir, AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE);
    let until = std::time::Instant::now() + SETTLE_TIMEOUT;
    loop {
        if done() {
            return true;
        }
        let left = until.saturating_duration_since(std::time::Instant::now());
        if left.is_zero() {
            return false;
        }
        let mut polled = libc::pollfd { fd: inotify.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid entry.
        unsafe { libc::poll(&mut polled, 1, left.as_millis() as i32) };
        let _ = inotify.read_events();
    }
}

/// Whether nobody holds the container's lock. Opened read-only: closing it must not look like the supervisor's end.
fn is_free(dir: &Path) -> bool {
    let Ok(file) = File::open(dir.join(layout::LOCK)) else { return true };
    try_lock(&file).unwrap_or(true)
}

/// The next message of a supervisor that starts; its failure is the error.
async fn next_message(control: &AsyncFd<OwnedFd>) -> Result<FromShim, RuntimeError> {
    loop {
        let mut ready = control.readable().await.map_err(|error| RuntimeError::Start(error.to_string()))?;
        match ready.try_io(|control| wire::receive::<FromShim>(control.as_fd())) {
            Ok(Ok(Some((FromShim::Failed { why }, _)))) => return Err(RuntimeError::Start(why)),
            Ok(Ok(Some((message, _)))) => return Ok(message),
            Ok(Ok(None)) => return Err(RuntimeError::Start("the supervisor ended unexpectedly".to_owned())),
            Ok(Err(error)) => return Err(RuntimeError::Start(format!("cannot hear the supervisor: {error}"))),
            Err(_) => continue,
        }
    }
}

/// Takes an ended child's remains away.
fn reap(pid: i32) {
    // SAFETY: waitpid with a null status pointer is allowed; the child is ours and has ended.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
}
