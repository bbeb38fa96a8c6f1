//! A pod's namespaces: made by a thread of ours that steps into new ones, pins them by bind mounts, and ends.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};

use super::executable::Executable;
use super::layout;
use super::oci::Namespaces;
use super::shim::answers::Instructed;
use super::shim::{pause, process};
use super::user_namespace::Holder;
use super::{RuntimeError, SandboxSpec, SandboxStatus};

/// containerd's size of a pod's /dev/shm.
const DEFAULT_SHM_BYTES: u64 = 64 << 20;

/// The pause process's group below its pod's: no container's has such a name.
const PAUSE_GROUP: &str = "pause";

/// `statfs` type of a namespace file.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// What is kept of a sandbox on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    pub spec: SandboxSpec,
    pub created_at_ms: i64,
    pub annotations: BTreeMap<String, String>,
    /// The process of a shared PID namespace.
    pub pause: Option<Pause>,
    /// The host's id for its root, where it has a user namespace.
    #[serde(default)]
    pub first_id: Option<u32>,
}

/// A process named for ever: pid and start time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    pub pid: i32,
    pub start: u64,
}

/// A sandbox and its folder.
#[derive(Clone, Debug)]
pub struct Sandbox {
    pub dir: PathBuf,
    pub record: Record,
}

impl Sandbox {
    fn pin(&self, kind: &str) -> PathBuf {
        layout::pinned(&self.dir, kind)
    }

    fn shm(&self) -> PathBuf {
        self.dir.join("shm")
    }

    /// The PID namespace that containers share. One that was made before these were pinned is found by its process.
    fn processes(&self, pause: &Pause) -> PathBuf {
        let pin = self.pin("pid");
        if is_namespace(&pin) { pin } else { PathBuf::from(format!("/proc/{}/ns/pid", pause.pid)) }
    }

    /// What containers join.
    pub fn namespaces(&self) -> Namespaces {
        let spec = &self.record.spec;
        Namespaces {
            net: (!spec.host_network).then(|| self.pin("net")),
            ipc: (!spec.host_ipc).then(|| self.pin("ipc")),
            uts: Some(self.pin("uts")),
            pid: self.record.pause.as_ref().map(|pause| self.processes(pause)),
            host_pid: spec.host_pid,
            shm: if spec.host_ipc { PathBuf::from("/dev/shm") } else { self.shm() },
            user: self.record.first_id.map(|first| (self.pin("user"), first)),
        }
    }

    /// True while all its namespaces are pinned, and alive: not after a reboot, nor without the pause process.
    pub fn is_ready(&self) -> bool {
        let namespaces = self.namespaces();
        let user = namespaces.user.map(|(path, _)| path);
        let all = [&namespaces.net, &namespaces.ipc, &namespaces.uts, &namespaces.pid, &user];
        let pinned = all.into_iter().flatten().all(|path| is_namespace(path));
        pinned && self.record.pause.as_ref().is_none_or(|pause| process::is_running(pause.pid, pause.start))
    }

    pub fn status(&self) -> SandboxStatus {
        SandboxStatus {
            pod_uid: self.record.spec.pod_uid.clone(),
            namespace: self.record.spec.namespace.clone(),
            name: self.record.spec.name.clone(),
            netns_path: self.namespaces().net,
            ready: self.is_ready(),
            created_at_ms: self.record.created_at_ms,
            annotations: self.record.annotations.clone(),
        }
    }

    /// Writes the record.
    pub fn save(&self) -> io::Result<()> {
        layout::write_record(&self.dir, layout::SANDBOX, &self.record)
    }

    /// Reads a sandbox back. A folder without a record was never finished.
    pub fn load(dir: &Path) -> Option<Sandbox> {
        Some(Sandbox { dir: dir.to_owned(), record: layout::read_record(dir, layout::SANDBOX)? })
    }

    /// Makes the namespaces; with `first_id`, in a user namespace whose root has that id on the host. Blocking. On an
    /// error nothing is left.
    pub fn create(
        dir: &Path,
        spec: &SandboxSpec,
        first_id: Option<u32>,
        program: &Executable,
        cgroup_root: &str,
    ) -> Result<Sandbox, RuntimeError> {
        let (spec, annotations) = (spec.clone(), BTreeMap::new());
        let record = Record { spec, created_at_ms: layout::now_ms(), annotations, pause: None, first_id };
        let mut sandbox = Sandbox { dir: dir.to_owned(), record };
        let made = sandbox.make(program, cgroup_root).and_then(|pause| {
            sandbox.save().map_err(|error| error.to_string())?;
            // Only now: a pause process that nobody knows of would never end.
            pause.map_or(Ok(()), |mut pause| pause.instruct("").map(|()| pause.leave()))
        });
        match made {
            Ok(()) => Ok(sandbox),
            Err(why) => {
                let _ = remove(dir);
                Err(RuntimeError::Sandbox(why))
            }
        }
    }

    /// The pause process, if there is one, waits to be told to stay.
    fn make(&mut self, program: &Executable, cgroup_root: &str) -> Result<Option<Instructed>, String> {
        let text = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
        fs::create_dir_all(self.dir.join("ns")).map_err(text("cannot make the sandbox's folder"))?;
        if !self.record.spec.host_ipc {
            let size = self.record.spec.shm_bytes.unwrap_or(DEFAULT_SHM_BYTES);
            fs::create_dir_all(self.shm()).map_err(text("cannot make /dev/shm"))?;
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            let owner = self.record.first_id.unwrap_or(0);
            let options = format!("mode=1777,size={size},uid={owner},gid={owner}");
            mount(Some("shm"), &self.shm(), Some("tmpfs"), flags, Some(options.as_str()))
                .map_err(|error| format!("cannot mount /dev/shm: {error}"))?;
        }
        let (dir, spec) = (self.dir.clone(), self.record.spec.clone());
        match self.record.first_id {
            Some(first) => {
                let holder = Holder::start(program, &spec, first)?;
                let kinds = ["user"].into_iter().chain(kinds(&spec));
                pin(&dir, &format!("/proc/{}/ns", holder.pid()), kinds)?;
            }
            // unshare changes only the calling thread, and a thread can't go back: it ends, the pins stay.
            None => std::thread::Builder::new()
                .name("sandbox".to_owned())
                .spawn(move || {
                    make_namespaces(&spec)?;
                    pin(&dir, "/proc/thread-self/ns", kinds(&spec))
                })
                .map_err(text("cannot start a thread"))?
                .join()
                .map_err(|_| "the thread that makes namespaces died".to_owned())??,
        }
        if !self.record.spec.share_process_namespace || self.record.spec.host_pid {
            return Ok(None);
        }
        let pause = self.start_pause(program, cgroup_root)?;
        let pid = i32::try_from(pause.pid()).map_err(|error| error.to_string())?;
        let start = process::start_time(pid).ok_or("the pause process ended at once")?;
        // While it is our child, its number is nobody else's.
        pin(&self.dir, &format!("/proc/{pid}/ns"), ["pid"].into_iter())?;
        self.record.pause = Some(Pause { pid, start });
        Ok(Some(pause))
    }

    /// Starts `/pause` as the first process of a PID namespace, and waits until it is confined. A thread of ours asks
    /// for the namespace: it then holds for its next children only.
    fn start_pause(&self, program: &Executable, cgroup_root: &str) -> Result<Instructed, String> {
        use std::os::unix::process::CommandExt as _;
        let mut command = program.command();
        command.arg0(pause::PROGRAM);
        let group = format!("{}/{PAUSE_GROUP}", self.record.spec.cgroup.trim_matches('/'));
        let place = pause::Place { sandbox: self.dir.clone(), cgroup_root: cgroup_root.to_owned(), cgroup: group };
        let place = serde_json::to_string(&place).map_err(|error| error.to_string())?;
        let started = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWPID).map_err(|error| format!("cannot make a PID namespace: {error}"))?;
            Instructed::start(pause::PROGRAM, &mut command)
        });
        let mut pause = started.join().map_err(|_| "the thread that starts the pause process died".to_owned())??;
        pause.instruct(&place)?;
        pause.expect_done().map_err(|why| format!("cannot start the pause process: {why}"))?;
        Ok(pause)
    }
}

/// The namespaces that a sandbox has of its own, beside the user namespace.
fn kinds(spec: &SandboxSpec) -> impl Iterator<Item = &'static str> + use<> {
    let (ipc, net) = ((!spec.host_ipc).then_some("ipc"), (!spec.host_network).then_some("net"));
    [Some("uts"), ipc, net].into_iter().flatten()
}

/// Steps into the sandbox's namespaces, made anew, with this thread, and sets what is to be set in them.
pub fn make_namespaces(spec: &SandboxSpec) -> Result<(), String> {
    let mut flags = CloneFlags::CLONE_NEWUTS;
    flags.set(CloneFlags::CLONE_NEWIPC, !spec.host_ipc);
    flags.set(CloneFlags::CLONE_NEWNET, !spec.host_network);
    unshare(flags).map_err(|error| format!("cannot make namespaces: {error}"))?;
    nix::unistd::sethostname(&spec.hostname)
        .map_err(|error| format!("cannot set hostname {:?}: {error}", spec.hostname))?;
    let mut sysctls = BTreeMap::new();
    if !spec.host_network {
        // As containerd 2 sets them: a container's user needs no capability to listen below 1024, or to ping.
        sysctls.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), ("0".to_owned(), false));
        sysctls.insert("net.ipv4.ping_group_range".to_owned(), ("0 2147483647".to_owned(), false));
    }
    sysctls.extend(spec.sysctls.iter().map(|(name, value)| (name.clone(), (value.clone(), true))));
    for (name, (value, asked)) in sysctls {
        if let Err(why) = set_sysctl(spec, &name, &value)
            && asked
        {
            return Err(why);
        }
    }
    Ok(())
}

/// Pins a process's namespaces in the sandbox's folder.
fn pin(dir: &Path, namespaces: &str, kinds: impl Iterator<Item = &'static str>) -> Result<(), String> {
    for kind in kinds {
        let pin = layout::pinned(dir, kind);
        File::create(&pin).map_err(|error| format!("cannot make {}: {error}", pin.display()))?;
        let own = format!("{namespaces}/{kind}");
        mount(Some(own.as_str()), &pin, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(|error| format!("cannot pin the {kind} namespace: {error}"))?;
    }
    Ok(())
}

/// Sets a namespaced kernel parameter for the calling thread's namespaces. `kernel.shm_rmid_forced` and
/// `net/ipv4/conf/eth0.1/…` are both ways to write a name.
///
/// Whatever was asked for: nothing is written that is the host's (X6).
fn set_sysctl(spec: &SandboxSpec, name: &str, value: &str) -> Result<(), String> {
    let path = match name.find(['.', '/']) {
        Some(first) if name.as_bytes().get(first) == Some(&b'/') => name.to_owned(),
        // Dots separate; a slash stands for the dot in an interface's name.
        _ => name
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
    };
    if path.split('/').any(|part| part.is_empty() || part == ".." || part == ".") {
        return Err(format!("invalid sysctl name {name:?}"));
    }
    let ipc = ["kernel/shm", "kernel/msg", "fs/mqueue/"].iter().any(|of| path.starts_with(of)) || path == "kernel/sem";
    let is_own = if ipc { !spec.host_ipc } else { path.starts_with("net/") && !spec.host_network };
    if !is_own {
        return Err(format!("sysctl {name:?} is not in a namespace of the pod's own"));
    }
    fs::write(Path::new("/proc/sys").join(path), value)
        .map_err(|error| format!("cannot set sysctl {name}={value}: {error}"))
}

fn is_namespace(path: &Path) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|stat| stat.filesystem_type().0 == NSFS_MAGIC)
}

/// Takes a sandbox's folder and mounts away. Blocking, idempotent. Never descends into what is still mounted (V8):
/// the folder's known places are unmounted first, and the rest is removed by name.
pub fn remove(dir: &Path) -> io::Result<()> {
    if let Some(pause) = Sandbox::load(dir).and_then(|sandbox| sandbox.record.pause) {
        kill_and_reap(&pause);
    }
    for kind in ["net", "ipc", "uts", "pid", "user"] {
        let pin = layout::pinned(dir, kind);
        unmount(&pin)?;
        remove_file(&pin)?;
    }
    unmount(&dir.join("shm"))?;
    for name in ["shm", "ns"] {
        remove_dir(&dir.join(name))?;
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        remove_file(&entry.path())?;
    }
    remove_dir(dir)
}

fn kill_and_reap(pause: &Pause) {
    /// How long it may take to go.
    const PATIENCE_MS: i32 = 5000;
    let Some(pidfd) = process::find(pause.pid, pause.start) else { return };
    process::signal(pidfd.as_raw_fd(), libc::SIGKILL);
    let mut polled = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid entry, and a wait with a null status pointer for this very process, if it is a child of ours.
    unsafe {
        libc::poll(&raw mut polled, 1, PATIENCE_MS);
        libc::waitpid(pause.pid, std::ptr::null_mut(), libc::WNOHANG);
    }
}

/// Unmounts whatever is mounted at `path`, all layers of it.
pub fn unmount(path: &Path) -> io::Result<()> {
    /// Nobody mounts more often than this over one place.
    const MAX_LAYERS: usize = 16;
    for _ in 0..MAX_LAYERS {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => (),
            // Not a mount point (any more), or not there at all.
            Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn remove_file(path: &Path) -> io::Result<()> {
    ignore_missing(fs::remove_file(path))
}

fn remove_dir(path: &Path) -> io::Result<()> {
    ignore_missing(fs::remove_dir(path))
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
