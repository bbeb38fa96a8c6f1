//! A container's supervisor, from the folder that the runtime prepared to the exit record.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};

use super::confinement::Confinement;
use super::executor::ReportingExecutor;
use super::log::ContainerLog;
use super::mapped::{self, FileIdentity, Opened};
use super::relay::{Relay, Stdio};
use super::sentinel::Sentinel;
use super::wire::{self, FromShim, ToShim};
use super::{late_mounts, log_lines, process};
use crate::cgroups::Cgroups;
use crate::fence::Guard;
use crate::layout::{self, ExitRecord, ShimConfig, StateRecord};
use crate::safe_path::mounts;

/// How much of a failed start's explanation is passed on.
const MAX_REPORT: u64 = 4096;

/// Runs the supervisor; the result is its own exit code.
pub fn supervise(dir: &Path) -> i32 {
    // The runtime put them there: the lock at 0, the control socket at 1, shim.log at 2.
    let (Ok(_lock), Ok(control), Ok(errors)) =
        (process::take_inherited(0), process::take_inherited(1), process::take_inherited(2))
    else {
        return 1;
    };
    if process::detach_stdio().is_err() {
        return 1;
    }
    log_lines::install(errors);
    let _ = nix::unistd::setsid();
    process::set_name(c"mainstay-shim");
    process::become_subreaper();
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));

    let Some(config) = layout::read_record::<ShimConfig>(dir, layout::SHIM) else {
        let _ = wire::send(control.as_fd(), &FromShim::Failed { why: "shim.json is not readable".to_owned() }, &[]);
        return 1;
    };
    let cgroups = Cgroups::detect(&config.cgroup_root);
    cgroups.adopt_supervisor(std::process::id());
    match start(dir, &config, &cgroups, &control) {
        Ok(Some(running)) => {
            drop(control);
            finish(dir, &config, &cgroups, running)
        }
        Ok(None) => {
            discard(dir, &config, &cgroups);
            1
        }
        Err(why) => {
            discard(dir, &config, &cgroups);
            let _ = wire::send(control.as_fd(), &FromShim::Failed { why }, &[]);
            1
        }
    }
}

struct Running {
    pid: i32,
    pidfd: OwnedFd,
    started_at_ms: i64,
    relay: Relay,
    guard: Option<Guard>,
    /// Until all is done.
    _sentinel: Option<Sentinel>,
}

/// The supervisor's ends and the container's.
struct Pipes {
    stdio: Option<Stdio>,
    child: Vec<OwnedFd>,
    console: Option<OwnedFd>,
}

/// What the container was given is still mounted in it.
fn check_volumes(pid: i32, config: &ShimConfig) -> Result<(), String> {
    let missing = mounts::missing(pid, &config.devices)
        .map_err(|error| format!("cannot read what is mounted in the container: {error}"))?;
    match missing {
        Some(device) => Err(format!("the file system of a volume (device {device}) is not mounted any more")),
        None => Ok(()),
    }
}

/// None where the main process went away before it said `Go`.
fn start(dir: &Path, config: &ShimConfig, cgroups: &Cgroups, control: &OwnedFd) -> Result<Option<Running>, String> {
    // Forked from a process that has nothing open yet, and no threads.
    let sentinel = match &config.deadline {
        Some(deadline) => {
            let sentinel = Sentinel::begin(deadline, cgroups, &config.cgroup);
            Some(sentinel.map_err(|error| format!("cannot fork: {error}"))?)
        }
        None => None,
    };
    crate::kernel::join_new_session_keyring().map_err(|error| format!("cannot make a session keyring: {error}"))?;
    let log = ContainerLog::open(&config.log_path)
        .map_err(|error| format!("cannot open log {}: {error}", config.log_path.display()))?;
    let score = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    let (report_read, report_write) = process::pipe().map_err(|error| error.to_string())?;
    let mut pipes = make_pipes(dir, config).map_err(|error| format!("cannot make the container's pipes: {error}"))?;
    let opened = config.user_namespace.as_ref().map(|own| Opened::open(own, true)).transpose()?;
    let mut executor = ReportingExecutor {
        report: report_write.as_raw_fd(),
        users: opened.as_ref().map(|opened| opened.users),
        confinement: Confinement::load(dir, config)?,
        container: None,
        late_mounts: Vec::new(),
    };
    let built = match config.user_namespace.as_ref().zip(opened.as_ref()) {
        Some((own, opened)) => {
            // Its groups stay the host's: who owns them may write their limits.
            cgroups.make(&config.cgroup).map_err(|error| format!("cannot make the container's cgroup: {error}"))?;
            let outside = mapped::prepare(dir, own, opened)?;
            executor.late_mounts = late_mounts::take(&config.late_mounts)?;
            let identity = FileIdentity::assume(own.first)?;
            let built = build(dir, config, &mut pipes, executor);
            drop(identity);
            outside.come_back()?;
            built
        }
        None => {
            executor.late_mounts = late_mounts::take(&config.late_mounts)?;
            build(dir, config, &mut pipes, executor)
        }
    };
    // What is inherited by the container's process is closed here, so that ends of file come when it ends.
    drop(report_write);
    pipes.child.clear();
    let _ = fs::write("/proc/self/oom_score_adj", score.trim());
    let mut container = match built {
        Ok(container) => container,
        Err(error) => return Err(explain(&error, report_read)),
    };
    if !config.is_privileged {
        cgroups
            .deny_devices(&config.cgroup)
            .map_err(|error| format!("cannot take devices from the container: {error}"))?;
    }
    let pid = container.pid().map(|pid| pid.as_raw()).ok_or("the container has no process")?;
    let pidfd = process::pidfd_open(pid)
        .and_then(process::private)
        .map_err(|error| format!("cannot watch process {pid}: {error}"))?;
    check_volumes(pid, config)?;
    let stdio = stdio_of(&mut pipes)?;
    // Only now: dispositions are inherited, and the container's process must not ignore anything.
    process::ignore_terminal_signals();
    let listener = listen_for_attach(dir).map_err(|error| format!("cannot listen for attach: {error}"))?;
    let relay = Relay::new(stdio, config.stdin_once, Some(listener), log).map_err(|error| error.to_string())?;

    wire::send(control.as_fd(), &FromShim::Created { pid }, &[]).map_err(|error| error.to_string())?;
    if !matches!(wire::receive::<ToShim>(control.as_fd()), Ok(Some((ToShim::Go, _)))) {
        return Ok(None);
    }
    let started_at_ms = layout::now_ms();
    note_state(dir, pid, started_at_ms).map_err(|error| format!("cannot write state.json: {error}"))?;
    let guard = match config.deadline.as_ref().zip(sentinel.as_ref()) {
        Some((deadline, sentinel)) => Some(Guard::begin(deadline, cgroups, &config.cgroup, sentinel.watched()?)?),
        None => None,
    };
    container.start().map_err(|error| log_lines::chain(&error))?;
    let mut report = String::new();
    let _ = File::from(report_read).take(MAX_REPORT).read_to_string(&mut report);
    if !report.is_empty() {
        let _ = fs::remove_file(dir.join(layout::STATE));
        return Err(report);
    }
    let _ = wire::send(control.as_fd(), &FromShim::Started { started_at_ms }, &[]);
    Ok(Some(Running { pid, pidfd, started_at_ms, relay, guard, _sentinel: sentinel }))
}

/// What the container reads and writes: pipes, or the terminal that its builder sends.
fn stdio_of(pipes: &mut Pipes) -> Result<Stdio, String> {
    match (pipes.stdio.take(), pipes.console.take()) {
        (Some(stdio), _) => Ok(stdio),
        (None, Some(console)) => {
            receive_terminal(&console).map(Stdio::Terminal).map_err(|error| format!("no terminal came: {error}"))
        }
        (None, None) => Err("the container has no stdio".to_owned()),
    }
}

/// Notes which processes the supervisor and the container's first are, for whoever adopts them.
fn note_state(dir: &Path, pid: i32, started_at_ms: i64) -> io::Result<()> {
    let shim_pid = std::process::id() as i32;
    let state = StateRecord {
        shim_pid,
        shim_start: process::start_time(shim_pid).unwrap_or(0),
        pid,
        pid_start: process::start_time(pid).unwrap_or(0),
        started_at_ms,
    };
    layout::write_record(dir, layout::STATE, &state)
}

fn build(
    dir: &Path,
    config: &ShimConfig,
    pipes: &mut Pipes,
    executor: ReportingExecutor,
) -> Result<Container, libcontainer::error::LibcontainerError> {
    let mut builder = ContainerBuilder::new(config.short.clone(), SyscallType::default())
        .with_root_path(dir.join(layout::LIBRARY))?
        .with_executor(executor);
    if config.tty {
        builder = builder.with_console_socket(Some(console_path(dir)));
    } else {
        // Copies: the library closes its own, and these must stay the only other ones.
        let mut ends = std::mem::take(&mut pipes.child).into_iter();
        if let (Some(stdin), Some(stdout), Some(stderr)) = (ends.next(), ends.next(), ends.next()) {
            builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
        }
    }
    builder.as_init(dir).with_systemd(false).with_detach(true).build()
}

/// What the container's process itself said is the best explanation; else the library's, with its last words.
fn explain(error: &libcontainer::error::LibcontainerError, report_read: OwnedFd) -> String {
    let mut report = String::new();
    let _ = File::from(report_read).take(MAX_REPORT).read_to_string(&mut report);
    if report.is_empty() { log_lines::chain(error) } else { report }
}

fn make_pipes(dir: &Path, config: &ShimConfig) -> io::Result<Pipes> {
    if config.tty {
        let path = console_path(dir);
        let _ = fs::remove_file(&path);
        return Ok(Pipes { stdio: None, child: Vec::new(), console: Some(listen_at(&path, SockType::Stream)?) });
    }
    let (stdin_read, stdin) = if config.stdin {
        let (read, write) = process::pipe()?;
        (read, Some(write))
    } else {
        (process::private(OwnedFd::from(File::open("/dev/null")?))?, None)
    };
    let (stdout, stdout_write) = process::pipe()?;
    let (stderr, stderr_write) = process::pipe()?;
    Ok(Pipes {
        stdio: Some(Stdio::Pipes { stdin, stdout, stderr }),
        child: vec![stdin_read, stdout_write, stderr_write],
        console: None,
    })
}

fn console_path(dir: &Path) -> PathBuf {
    dir.join("console.sock")
}

fn listen_for_attach(dir: &Path) -> io::Result<OwnedFd> {
    let path = dir.join(layout::ATTACH);
    let _ = fs::remove_file(&path);
    listen_at(&path, SockType::SeqPacket)
}

/// Listens at a path of any length: the kernel's limit of 108 bytes is passed by way of the folder's descriptor.
pub fn listen_at(path: &Path, kind: SockType) -> io::Result<OwnedFd> {
    let folder = File::open(path.parent().unwrap_or(Path::new("/")))?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let fd = process::private(socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None)?)?;
    let by_descriptor = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    bind(fd.as_raw_fd(), &UnixAddr::new(&by_descriptor)?)?;
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    listen(&fd, Backlog::new(16)?)?;
    Ok(fd)
}

/// Takes the terminal's master that the container's first process sends.
pub fn receive_terminal(console: &OwnedFd) -> io::Result<OwnedFd> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, accept4, recvmsg};
    let connection = accept4(console.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: accept4 just made this descriptor for us.
    let connection = unsafe { OwnedFd::from_raw_fd(connection) };
    let mut name = [0u8; 256];
    let mut slices = [io::IoSliceMut::new(&mut name)];
    let mut control = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let message = recvmsg::<()>(connection.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)?;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = part
            && let Some(fd) = fds.first()
        {
            // SAFETY: the kernel just gave us this descriptor.
            return process::private(unsafe { OwnedFd::from_raw_fd(*fd) });
        }
    }
    Err(io::Error::other("the console socket brought no descriptor"))
}

/// Runs to the container's end and records it.
fn finish(dir: &Path, config: &ShimConfig, cgroups: &Cgroups, mut running: Running) -> i32 {
    log_lines::quiet();
    crate::kernel::release_start();
    let mut outcome = (137, Some(libc::SIGKILL));
    let mut oom = false;
    let relayed = running.relay.run(running.pidfd.as_fd(), || {
        outcome = wait_for(running.pid);
        oom = cgroups.oom_kills(&config.cgroup) > 0;
        // In a PID namespace of its own nothing is left; in a shared one, whatever the container forked is.
        cgroups.kill_and_wait(&config.cgroup);
    });
    reap_orphans();
    let _ = cgroups.remove(&config.cgroup);
    let (code, signal) = outcome;
    // Also when the container ended just before: nobody may mount anew what is still to be cut off.
    let fenced = running.guard.is_some_and(|guard| guard.has_fenced()) && code == 137;
    let oom = oom && code == 137 && !fenced;
    let record = ExitRecord {
        code,
        signal,
        oom,
        fenced,
        started_at_ms: running.started_at_ms,
        finished_at_ms: layout::now_ms(),
    };
    let _ = fs::remove_file(dir.join(layout::ATTACH));
    if layout::write_record(dir, layout::EXIT, &record).is_err() || relayed.is_err() { 1 } else { 0 }
}

/// A container that never ran is taken away with everything the library made for it.
fn discard(dir: &Path, config: &ShimConfig, cgroups: &Cgroups) {
    cgroups.kill(&config.cgroup);
    reap_orphans_of_group(cgroups, &config.cgroup);
    let _ = cgroups.remove(&config.cgroup);
    let _ = fs::remove_dir_all(dir.join(layout::LIBRARY));
}

/// The process has ended: its exit code as a shell counts it, and the signal.
pub fn wait_for(pid: i32) -> (i32, Option<i32>) {
    let mut status = 0;
    loop {
        // SAFETY: waitpid writes one integer.
        let waited = unsafe { libc::waitpid(pid, &mut status, 0) };
        if waited == pid {
            break;
        }
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return (255, None);
        }
    }
    if libc::WIFSIGNALED(status) {
        let signal = libc::WTERMSIG(status);
        (128 + signal, Some(signal))
    } else {
        (libc::WEXITSTATUS(status), None)
    }
}

fn reap_orphans() {
    // SAFETY: waitpid with a null status pointer is allowed.
    while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
}

/// Waits for the killed ones, which are our children (or became so): a group can be removed only when it is empty.
fn reap_orphans_of_group(cgroups: &Cgroups, cgroup: &str) {
    while !cgroups.processes(cgroup).is_empty() {
        // SAFETY: see reap_orphans. ECHILD ends the loop.
        if unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) } <= 0 {
            break;
        }
    }
    reap_orphans();
}
