//! The first process of a PID namespace that a pod's containers share: reaps, and waits until it is killed.
//!
//! A container of the pod that may trace (CAP_SYS_PTRACE, with which pods are debugged) has this process in its hands:
//! it looks through its eyes (`/proc/1/root`, `/proc/1/fd`) and lets it make system calls. So it is where the
//! containers are, in the pod's namespaces and group, and has nothing that they have not: an empty read-only file
//! system, no open file, no capability, no other process beside it.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use super::confinement::Confinement;
use super::{answers, mapped, process};
use crate::cgroups::Cgroups;
use crate::{kernel, layout};

/// What it may use, bytes: far more than it does.
const MEMORY: u64 = 32 << 20;

/// The namespaces of a pod that it joins, where the pod has them.
const JOINED: [(&str, CloneFlags); 3] =
    [("net", CloneFlags::CLONE_NEWNET), ("ipc", CloneFlags::CLONE_NEWIPC), ("uts", CloneFlags::CLONE_NEWUTS)];

/// What it is executed as.
pub const PROGRAM: &str = "/pause";

/// What it is told before anything else, on a line of standard input: containers would see arguments.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Place {
    /// The sandbox's folder.
    pub sandbox: PathBuf,
    /// The instance's group, and in it the one that the process has for itself.
    pub cgroup_root: String,
    pub cgroup: String,
}

/// Runs where it is told. It answers on standard output when it is ready, and stays when it then gets a line.
pub fn hold() -> i32 {
    let mut line = String::new();
    let place = io::stdin().read_line(&mut line).map_err(|error| error.to_string());
    let place = place.and_then(|_| serde_json::from_str::<Place>(&line).map_err(|error| error.to_string()));
    let ready = place.and_then(|place| confine(&place.sandbox, &place.cgroup_root, &place.cgroup));
    if !answers::answer(&ready) || !matches!(io::stdin().read(&mut [0]), Ok(1)) {
        return 1;
    }
    process::close_stdio();
    loop {
        nix::unistd::pause();
    }
}

fn confine(dir: &Path, cgroup_root: &str, cgroup: &str) -> Result<(), String> {
    let failed = |what: &'static str| move |error: io::Error| format!("cannot {what}: {error}");
    let _ = nix::unistd::setsid();
    process::set_name(c"pause");
    // Without a handler the kernel keeps every signal but SIGKILL from a namespace's first process, and reaps its
    // children by itself where SIGCHLD is ignored.
    process::leave_children_to_the_kernel();
    kernel::join_new_session_keyring().map_err(failed("make a session keyring"))?;
    Cgroups::detect(cgroup_root).enter_alone(cgroup, MEMORY).map_err(failed("enter the pod's cgroup"))?;
    let confinement = Confinement::complete()?;
    for (kind, flag) in JOINED {
        if let Some(namespace) = pinned(dir, kind).map_err(failed("open the pod's namespaces"))? {
            setns(namespace, flag).map_err(io::Error::from).map_err(failed("join the pod's namespaces"))?;
        }
    }
    let users = pinned(dir, "user").map_err(failed("open the pod's user namespace"))?;
    // Its own /proc is not there afterwards.
    kernel::release_start();
    leave_the_host(dir).map_err(failed("leave the host's file system"))?;
    if let Some(users) = users {
        mapped::enter_as_root(&users).map_err(failed("enter the pod's user namespace"))?;
    }
    process::forbid_new_privileges().map_err(failed("forbid new privileges"))?;
    confinement.apply(true).map_err(|(what, error)| format!("cannot {what}: {error}"))?;
    process::forbid_inspection();
    Ok(())
}

/// A namespace of the pod's own.
fn pinned(dir: &Path, kind: &str) -> io::Result<Option<File>> {
    match File::open(layout::pinned(dir, kind)) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes an empty file system this process's only one.
fn leave_the_host(dir: &Path) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("pause"), dir, Some("tmpfs"), flags, Some("size=4k,nr_inodes=2,mode=555"))?;
    nix::unistd::chdir(dir)?;
    // The former root is then mounted over the new one.
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    Ok(nix::unistd::chdir("/")?)
}
