//! The client's process: mounts, reads the kernel's requests and hands them to threads.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use nix::mount::MsFlags;

use super::MountRequest;
use super::files::Files;
use super::queue::Queue;
use super::remote;
use super::wire::{Answer, HEADER, Request, Words, op};
use crate::protocol::MAX_IO;
use mainstay_runtime::cgroups::Cgroups;
use mainstay_runtime::fence::{Fence, Watched};
use mainstay_runtime::kernel;
use mainstay_runtime::shim::process;

/// The longest request: a write and its headers.
const MAX_REQUEST: usize = MAX_IO as usize + 4096;
/// Requests that are worked on at one time; each waits for the server.
const MAX_WORKERS: usize = 64;
/// How often an interrupted request's process is looked at, whether it is being killed. Only while there is one.
const LOOK: Duration = Duration::from_millis(100);
/// A worker's stack (bytes).
const STACK: usize = 256 << 10;

/// The process `__nfs-mount WORDS`: tells on standard output that it has mounted, or why not.
pub fn mount_main(words: &str) -> ! {
    process::close_strangers();
    process::set_name(c"mainstay-nfs");
    let opened = serde_json::from_str::<MountRequest>(words).map_err(|error| error.to_string()).and_then(|request| {
        // The parent waits for its child only; what serves the mount is nobody's child.
        kernel::daemonize().map_err(|error| format!("starting the NFS client: {error}"))?;
        if !request.cgroup_root.is_empty() {
            // A service manager that stops the agent by its group leaves the mount alone.
            Cgroups::detect(&request.cgroup_root).adopt_supervisor(std::process::id());
        }
        let fence = request.fence.as_ref().map(begin_fence).transpose()?;
        let (remote, root) = remote::open(&request.source)?;
        let remote = remote.with_fence(fence);
        let device = mount(&request).map_err(|error| format!("mounting on {}: {error}", request.target.display()))?;
        Ok((Files::new(remote, root), device))
    });
    match opened {
        Ok((files, device)) => {
            // Where nobody listens any more the mount is there all the same, for the next agent.
            let _ = writeln!(io::stdout(), "mounted");
            let _ = process::detach_stdio();
            process::ignore_terminal_signals();
            std::process::exit(match Session::new(files, device).run() {
                Ok(()) => 0,
                Err(_) => 1,
            })
        }
        Err(error) => {
            let _ = writeln!(io::stdout(), "{error}");
            std::process::exit(1)
        }
    }
}

/// From now on this process ends when the deadline passes, and with it all that it has on its way: what the kernel was
/// given to send and has not sent is dropped with the connections (see [`super::connect`]).
fn begin_fence(fence: &Fence) -> Result<Arc<Watched>, String> {
    let watched = Arc::new(fence.watch()?);
    let waiting = watched.clone();
    let begun = thread(move || {
        waiting.wait();
        std::process::exit(1)
    });
    begun.map(|()| watched).map_err(|error| format!("cannot watch the deadline: {error}"))
}

fn mount(request: &MountRequest) -> io::Result<File> {
    let device = File::options().read(true).write(true).open("/dev/fuse")?;
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
    let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    if request.read_only {
        flags |= MsFlags::MS_RDONLY;
    }
    let source = format!("{}:{}", request.source.server, request.source.path);
    nix::mount::mount(
        Some(source.as_str()),
        &request.target,
        Some("fuse.mainstay-nfs"),
        flags,
        Some(options.as_str()),
    )?;
    // Best effort: reads are then no larger than the kernel's 128 KiB.
    let _ = read_ahead(&request.target);
    Ok(device)
}

/// Lets the kernel read ahead as much as one call brings, so that several calls are under way. It must be known before
/// the kernel's first request is answered, and the mount cannot be asked about itself yet.
fn read_ahead(target: &std::path::Path) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt as _;
    const KIB: u32 = 2 * MAX_IO / 1024;
    let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo")?;
    let parts = mounts.lines().rev().map(|line| line.split(' ').collect::<Vec<_>>());
    let mut here =
        parts.filter(|parts| parts.get(4).is_some_and(|range| range.as_bytes() == target.as_os_str().as_bytes()));
    let Some(device) = here.next().and_then(|parts| parts.get(2).map(|device| (*device).to_owned())) else {
        return Ok(());
    };
    std::fs::write(format!("/sys/class/bdi/{device}/read_ahead_kb"), KIB.to_string())
}

/// Requests whose process got a signal.
#[derive(Default)]
struct Interrupted {
    /// All that are worked on: unique number and thread.
    running: HashMap<u64, u32>,
    signalled: Vec<u64>,
}

struct Session {
    files: Files,
    device: File,
    queue: Queue,
    interrupted: Mutex<Interrupted>,
    signal: Condvar,
}

impl Session {
    fn new(files: Files, device: File) -> Arc<Self> {
        Arc::new(Self { files, device, queue: Queue::default(), interrupted: Mutex::default(), signal: Condvar::new() })
    }

    /// Until the file system is unmounted or aborted.
    fn run(self: Arc<Self>) -> io::Result<()> {
        let watching = self.clone();
        thread(move || watching.watch_for_kills())?;
        let mut workers = 0;
        let mut buffer = vec![0; MAX_REQUEST];
        loop {
            let length = match (&self.device).read(&mut buffer) {
                Ok(length) => length,
                Err(error) => match error.raw_os_error() {
                    // Interrupted, or the request was taken back.
                    Some(libc::EINTR | libc::ENOENT | libc::EAGAIN) => continue,
                    Some(libc::ENODEV) => return Ok(()),
                    _ => return Err(error),
                },
            };
            let Some(request) = buffer.get(..length.max(HEADER)).and_then(Request::parse) else { continue };
            match request.operation {
                op::INIT => self.init(&request),
                op::DESTROY => {
                    self.answer(request.unique, &Ok(Answer::default()));
                    return Ok(());
                }
                op::FORGET | op::BATCH_FORGET => self.files.forget(&request),
                op::INTERRUPT => self.note_signal(&request),
                _ => {
                    if self.begin(&request) >= workers && workers < MAX_WORKERS {
                        let session = self.clone();
                        if thread(move || session.work()).is_ok() {
                            workers += 1;
                        }
                    }
                    self.queue.push(request);
                }
            }
        }
    }

    fn interrupted(&self) -> std::sync::MutexGuard<'_, Interrupted> {
        self.interrupted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a request; how many others are worked on.
    fn begin(&self, request: &Request) -> usize {
        let mut interrupted = self.interrupted();
        let others = interrupted.running.len();
        interrupted.running.insert(request.unique, request.pid);
        others
    }

    fn work(&self) {
        loop {
            let (since, request) = self.queue.pop();
            // Where the server does not answer, those that wait behind others fail as these do: after as long. A close
            // is never refused.
            let is_late = since.elapsed() > self.files.remote.timeout();
            let done = if is_late && !matches!(request.operation, op::RELEASE | op::RELEASEDIR) {
                Err(libc::EIO)
            } else {
                self.files.execute(&request)
            };
            self.interrupted().running.remove(&request.unique);
            let taken = self.answer(request.unique, &done);
            if let (false, Ok(answer)) = (taken, done) {
                self.files.undo(&request, &answer);
            }
        }
    }

    /// Writes an answer. `false` where nobody waits for it any more (ENOENT): its process was killed, and told so.
    fn answer(&self, unique: u64, done: &Result<Answer, libc::c_int>) -> bool {
        let (error, body) = match done {
            Ok(answer) => (0, answer.body()),
            Err(errno) => (-errno, &[][..]),
        };
        let mut message = Answer::default();
        message.u32(16 + body.len() as u32).u32(u32::from_ne_bytes(error.to_ne_bytes())).u64(unique);
        let written = (&self.device).write_vectored(&[io::IoSlice::new(message.body()), io::IoSlice::new(body)]);
        !written.is_err_and(|error| error.raw_os_error() == Some(libc::ENOENT))
    }

    fn init(&self, request: &Request) {
        const ASYNC_READ: u32 = 1;
        const BIG_WRITES: u32 = 1 << 5;
        const AUTO_INVAL_DATA: u32 = 1 << 12;
        const PARALLEL_DIROPS: u32 = 1 << 18;
        const MAX_PAGES: u32 = 1 << 22;
        const PAGES: u16 = (MAX_IO / 4096) as u16;
        let mut body = Words(&request.body);
        let (_major, _minor, readahead, offered) =
            (body.u32(), body.u32(), body.u32().unwrap_or(0), body.u32().unwrap_or(0));
        let flags = offered & (ASYNC_READ | BIG_WRITES | AUTO_INVAL_DATA | PARALLEL_DIROPS | MAX_PAGES);
        let mut answer = Answer::default();
        answer
            .u32(7)
            .u32(31)
            .u32(readahead.max(2 * MAX_IO))
            .u32(flags)
            .u16(32)
            .u16(24)
            .u32(MAX_IO)
            .u32(1)
            .u16(PAGES)
            .u16(0);
        answer.pad(64);
        self.answer(request.unique, &Ok(answer));
    }

    fn note_signal(&self, request: &Request) {
        let Some(unique) = Words(&request.body).u64() else { return };
        let mut interrupted = self.interrupted();
        if interrupted.running.contains_key(&unique) {
            interrupted.signalled.push(unique);
            self.signal.notify_one();
        }
    }

    /// The kernel tells of a request's first signal only. One that kills must let the process go at once; any other
    /// must not break a program's file access.
    fn watch_for_kills(&self) {
        loop {
            let mut interrupted = self.interrupted();
            while interrupted.signalled.is_empty() {
                interrupted = self.signal.wait(interrupted).unwrap_or_else(PoisonError::into_inner);
            }
            let Interrupted { running, signalled } = &mut *interrupted;
            signalled.retain(|unique| match running.get(unique) {
                None => false,
                Some(pid) if is_being_killed(*pid) => {
                    self.answer(*unique, &Err(libc::EINTR));
                    false
                }
                Some(_) => true,
            });
            drop(interrupted);
            std::thread::sleep(LOOK);
        }
    }
}

fn thread(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().stack_size(STACK).spawn(work).map(|_| ())
}

/// Whether SIGKILL waits for a thread.
fn is_being_killed(pid: u32) -> bool {
    const KILL: u64 = 1 << (libc::SIGKILL - 1);
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { return true };
    let pending = |name: &str| {
        let text = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        u64::from_str_radix(text.trim(), 16).unwrap_or(0) & KILL != 0
    };
    pending("SigPnd:") || pending("ShdPnd:")
}
