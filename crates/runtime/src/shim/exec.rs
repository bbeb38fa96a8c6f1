//! `__exec`: one command in a running container. It belongs to the main process, which holds the other end of stdin:
//! when that goes away, the command is killed.
//!
//! Building the command takes as long as the container likes: it can stop what enters it, or have its working directory
//! on a server that is gone. So a child does that, and what it began is killed with it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use nix::sys::socket::SockType;
use nix::unistd::{ForkResult, Pid, fork};
use serde::{Deserialize, Serialize};

use super::confinement::Confinement;
use super::container::{listen_at, receive_terminal, wait_for};
use super::executor::ReportingExecutor;
use super::mapped::Opened;
use super::wire::{self, ExecRequest, FromExec};
use super::{log_lines, process};
use crate::layout::{self, ShimConfig, StateRecord};

/// How much of a failed start's explanation is passed on.
const MAX_REPORT: u64 = 4096;

/// How likely the kernel's OOM killer takes this process and those that it starts.
const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// Runs the command that the first packet on stdin asks for; the result is this process's own exit code.
pub fn execute() -> i32 {
    let Ok(control) = process::take_inherited(0) else { return 1 };
    if let Ok(errors) = process::take_inherited(2) {
        log_lines::install(errors);
    }
    if process::detach_stdio().is_err() {
        return 1;
    }
    let _ = nix::unistd::setsid();
    process::set_name(c"mainstay-exec");
    process::become_subreaper();
    let Ok(Some((request, fds))) = wire::receive::<ExecRequest>(control.as_fd()) else { return 1 };
    match start(&request, fds, &control) {
        Ok(None) => 1,
        Ok(Some((pid, pidfd, terminal))) => {
            let beside: Vec<i32> = terminal.iter().map(|fd| fd.as_raw_fd()).collect();
            if wire::send(control.as_fd(), &FromExec::Started, &beside).is_err() {
                kill(pid);
            }
            drop(terminal);
            crate::kernel::release_start();
            let code = follow(pid, &pidfd, &control);
            let _ = wire::send(control.as_fd(), &FromExec::Exited { code }, &[]);
            0
        }
        Err(why) => {
            let _ = wire::send(control.as_fd(), &FromExec::Failed { why }, &[]);
            1
        }
    }
}

type Started = (i32, OwnedFd, Option<OwnedFd>);

/// What the child that builds a command says in the end, with a terminal's master beside it.
#[derive(Serialize, Deserialize)]
enum Built {
    Running { pid: i32 },
    Failed { why: String },
}

/// Has a child build the command. None where the main process let go meanwhile: then nothing is left of it.
fn start(request: &ExecRequest, fds: Vec<OwnedFd>, control: &OwnedFd) -> Result<Option<Started>, String> {
    let text = |error: std::io::Error| error.to_string();
    let (ours, theirs) =
        wire::pair().and_then(|(a, b)| Ok((process::private(a)?, process::private(b)?))).map_err(text)?;
    // SAFETY: there is no other thread.
    let builder = match unsafe { fork() }.map_err(|error| error.to_string())? {
        ForkResult::Child => {
            let (built, terminal) = match build(request, fds) {
                Ok((pid, terminal)) => (Built::Running { pid }, terminal),
                Err(why) => (Built::Failed { why }, None),
            };
            let beside: Vec<i32> = terminal.iter().map(|fd| fd.as_raw_fd()).collect();
            std::process::exit(i32::from(wire::send(theirs.as_fd(), &built, &beside).is_err()));
        }
        ForkResult::Parent { child } => child,
    };
    drop((theirs, fds));
    let mut polled = [pollfd(&ours), pollfd(control)];
    // SAFETY: two valid entries. An interrupted wait goes on.
    while unsafe { libc::poll(polled.as_mut_ptr(), 2, -1) } < 0 {}
    let built = match polled {
        [built, _] if built.revents != 0 => wire::receive::<Built>(ours.as_fd()).map_err(text)?,
        _ => {
            end_children(builder);
            return Ok(None);
        }
    };
    match built {
        Some((Built::Running { pid }, fds)) => {
            // When it has ended the command is our child.
            wait_for(builder.as_raw());
            Ok(Some((pid, process::pidfd_open(pid).map_err(text)?, fds.into_iter().next())))
        }
        Some((Built::Failed { why }, _)) => Err(why),
        None => {
            end_children(builder);
            Err("what builds the command ended unexpectedly".to_owned())
        }
    }
}

/// Kills the builder and what it began, which comes to us as its parents go.
fn end_children(builder: Pid) {
    let _ = nix::sys::signal::kill(builder, nix::sys::signal::SIGKILL);
    wait_for(builder.as_raw());
    loop {
        let children = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        let mut pids = children.split_whitespace().filter_map(|pid| pid.parse().ok()).peekable();
        if pids.peek().is_none() {
            return;
        }
        for pid in pids {
            let _ = nix::sys::signal::kill(Pid::from_raw(pid), nix::sys::signal::SIGKILL);
        }
        let _ = nix::sys::wait::waitpid(None, None);
    }
}

/// Builds the command; returns when its program runs.
fn build(request: &ExecRequest, fds: Vec<OwnedFd>) -> Result<(i32, Option<OwnedFd>), String> {
    crate::kernel::join_new_session_keyring().map_err(|error| format!("cannot make a session keyring: {error}"))?;
    let fds: Vec<OwnedFd> =
        fds.into_iter().map(process::private).collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    let (report_read, report_write) = process::pipe().map_err(|error| error.to_string())?;
    let config = layout::read_record::<ShimConfig>(&request.dir, layout::SHIM).ok_or("shim.json is not readable")?;
    let opened = config.user_namespace.as_ref().map(|own| Opened::open(own, false)).transpose()?;
    let state = layout::read_record::<StateRecord>(&request.dir, layout::STATE).ok_or("state.json is not readable")?;
    let container = process::find(state.pid, state.pid_start).ok_or("the container has ended")?;
    let container = process::private(container).map_err(|error| error.to_string())?;
    let executor = ReportingExecutor {
        report: report_write.as_raw_fd(),
        users: opened.as_ref().map(|opened| opened.users),
        confinement: Confinement::load(&request.dir, &config)?,
        container: Some(container.as_raw_fd()),
        late_mounts: Vec::new(),
    };
    let (process_file, score) = process_file(request)?;
    let console_path = console_path(request);
    let console = if request.tty {
        Some(listen_at(&console_path, SockType::Stream).map_err(|error| error.to_string())?)
    } else {
        None
    };

    let mut builder = ContainerBuilder::new(request.container.clone(), SyscallType::default())
        .with_root_path(request.dir.join(layout::LIBRARY))
        .map_err(|error| log_lines::chain(&error))?
        .with_executor(executor);
    if request.tty {
        builder = builder.with_console_socket(Some(console_path.clone()));
    } else {
        let mut ends = fds.into_iter();
        if let (Some(stdin), Some(stdout), Some(stderr)) = (ends.next(), ends.next(), ends.next()) {
            builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
        }
    }
    let path = PathBuf::from(format!("/proc/self/fd/{}", process_file.as_raw_fd()));
    // The command inherits it. As near as this process may come: lowering it is a privilege.
    let _ = fs::write(OOM_SCORE, score.to_string());
    let built = builder.as_tenant().with_process(Some(path)).with_detach(true).build();
    drop(report_write);
    if request.tty {
        let _ = fs::remove_file(&console_path);
    }
    let report = |read: OwnedFd| {
        let mut report = String::new();
        let _ = File::from(read).take(MAX_REPORT).read_to_string(&mut report);
        report
    };
    let pid = match built {
        Ok(pid) => pid.as_raw(),
        Err(error) => {
            let said = report(report_read);
            return Err(if said.is_empty() { log_lines::chain(&error) } else { said });
        }
    };
    let terminal = match console {
        Some(console) => Some(receive_terminal(&console).map_err(|error| error.to_string())?),
        None => None,
    };
    let said = report(report_read);
    if !said.is_empty() {
        wait_for(pid);
        return Err(said);
    }
    Ok((pid, terminal))
}

fn console_path(request: &ExecRequest) -> PathBuf {
    request.dir.join(format!("exec-{}.sock", std::process::id()))
}

/// The process to run is the container's own with other arguments, in a file that exists only for us; and its OOM
/// score.
fn process_file(request: &ExecRequest) -> Result<(OwnedFd, i32), String> {
    let spec = Spec::load(request.dir.join(layout::CONFIG)).map_err(|error| log_lines::chain(&error))?;
    let mut process = spec.process().clone().ok_or("the container has no process")?;
    let mut env: Vec<String> = process.env().clone().unwrap_or_default();
    let added: HashMap<&str, &str> = request.env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    env.retain(|pair| !added.contains_key(pair.split('=').next().unwrap_or_default()));
    env.extend(request.env.iter().map(|(name, value)| format!("{name}={value}")));
    if request.tty && !env.iter().any(|pair| pair.starts_with("TERM=")) {
        env.push("TERM=xterm".to_owned());
    }
    crate::oci::ensure_home(&mut env);
    process.set_env(Some(env));
    process.set_args(Some(request.args.clone()));
    process.set_terminal(Some(request.tty));
    let score = process.oom_score_adj().unwrap_or(0);
    process.set_oom_score_adj(None);
    let bytes = serde_json::to_vec(&process).map_err(|error| error.to_string())?;
    let file = nix::sys::memfd::memfd_create(c"process", nix::sys::memfd::MemFdCreateFlag::MFD_CLOEXEC)
        .map_err(|error| error.to_string())?;
    let mut file = File::from(file);
    std::io::Write::write_all(&mut file, &bytes).map_err(|error| error.to_string())?;
    let file = process::private(OwnedFd::from(file)).map_err(|error| error.to_string())?;
    Ok((file, score))
}

/// Waits for the command's end. If the main process lets go of the connection, the command is killed.
fn follow(pid: i32, pidfd: &OwnedFd, control: &OwnedFd) -> i32 {
    let mut polled = [pollfd(pidfd), pollfd(control)];
    loop {
        // SAFETY: two valid entries.
        let ready = unsafe { libc::poll(polled.as_mut_ptr(), 2, -1) };
        if ready < 0 && std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted {
            continue;
        }
        let [ended, let_go] = polled;
        if ended.revents == 0 && let_go.revents != 0 {
            kill(pid);
        }
        return wait_for(pid).0;
    }
}

fn kill(pid: i32) {
    // SAFETY: the process is our own child and not yet waited for, so the pid is its own. The group first: a shell's
    // children go with it.
    unsafe {
        libc::kill(-pid, libc::SIGKILL);
        libc::kill(pid, libc::SIGKILL);
    }
}

fn pollfd(fd: &OwnedFd) -> libc::pollfd {
    libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 }
}
