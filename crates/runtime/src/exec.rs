//! Commands in running containers, by way of a short-lived `__exec`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, Interest, ReadBuf};
use tokio::net::unix::pipe;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::{
    ExecExit, ExecHandle, ExecPurpose, ExecSpec, Inner, InputStream, OutputStream, RuntimeError, TerminalSize, layout,
};
use crate::shim::process;
use crate::shim::relay::set_size;
use crate::shim::wire::{self, ExecRequest, FromExec};

/// How long a command may take to be started.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// How many commands of people may run in one container, those that begin or do not end among them: each has a process
/// of ours, which is not within the container's limits (X4).
const MAX_SESSIONS: usize = 128;
/// The same of probes, of which a container has three, each one at a time: more only where commands do not end.
const MAX_PROBES: usize = 8;
/// The same of hooks, of which a container has two. Neither people nor probes keep a hook from running (S12, X7).
const MAX_HOOKS: usize = 4;

/// Commands that may be started in a container beside those that run.
pub struct Permits {
    sessions: Arc<Semaphore>,
    probes: Arc<Semaphore>,
    hooks: Arc<Semaphore>,
}

impl Permits {
    pub fn new() -> Self {
        let of = |most| Arc::new(Semaphore::new(most));
        Self { sessions: of(MAX_SESSIONS), probes: of(MAX_PROBES), hooks: of(MAX_HOOKS) }
    }

    fn take(&self, purpose: ExecPurpose) -> Result<OwnedSemaphorePermit, RuntimeError> {
        let (permits, most, of) = match purpose {
            ExecPurpose::Session => (&self.sessions, MAX_SESSIONS, "commands"),
            ExecPurpose::Probe => (&self.probes, MAX_PROBES, "probes"),
            ExecPurpose::Hook => (&self.hooks, MAX_HOOKS, "hooks"),
        };
        permits
            .clone()
            .try_acquire_owned()
            .map_err(|_| RuntimeError::Exec(format!("{most} {of} run in the container, which is as many as may")))
    }
}

/// A probe's or hook's output that is kept (the kubelet's limit).
const MAX_PROBE_OUTPUT: usize = 10 * 1024;

/// How long a probe's output is waited for after its end: as long as it takes to hear of what is there already.
const DRAIN: Duration = Duration::from_millis(100);

/// Terminal sizes that wait to be set: only the last one matters.
const RESIZES_QUEUED: usize = 8;

struct Prepared {
    control: OwnedFd,
    child: std::process::Child,
    stdin: Option<InputStream>,
    stdout: Option<OutputStream>,
    stderr: Option<OutputStream>,
}

impl Inner {
    pub async fn exec(self: &Arc<Self>, id: &str, spec: ExecSpec) -> Result<ExecHandle, RuntimeError> {
        let entry = self.entry(id)?;
        if !entry.is_running() {
            return Err(RuntimeError::NotRunning(id.to_owned()));
        }
        let permit = entry.execs.take(spec.purpose)?;
        let prepared = self.prepare(&entry, &spec).map_err(|error| RuntimeError::Exec(error.to_string()))?;
        let child = prepared.child;
        let mut reaper = Reaper(Some((child, permit)));
        let control = layout::watched(prepared.control, Interest::READABLE)
            .map_err(|error| RuntimeError::Exec(error.to_string()))?;
        let late = |_| Err(io::Error::other(format!("not started within {START_TIMEOUT:?}")));
        let terminal = match tokio::time::timeout(START_TIMEOUT, next(&control)).await.unwrap_or_else(late) {
            Ok(Some((FromExec::Started, fds))) => fds.into_iter().next(),
            Ok(Some((FromExec::Failed { why }, _))) => return Err(RuntimeError::Exec(why)),
            Ok(_) => return Err(RuntimeError::Exec("the command's supervisor ended unexpectedly".to_owned())),
            Err(error) => return Err(RuntimeError::Exec(error.to_string())),
        };
        let (resize, sizes) = mpsc::channel(RESIZES_QUEUED);
        let (exit_sender, exit) = oneshot::channel();
        let streams = match terminal {
            Some(master) => {
                terminal_streams(master, spec.stdin, sizes).map_err(|error| RuntimeError::Exec(error.to_string()))?
            }
            None => (prepared.stdin, prepared.stdout.unwrap_or_else(|| Box::new(tokio::io::empty())), prepared.stderr),
        };
        let (stdin, stdout, stderr) = streams;
        tokio::spawn(async move {
            let mut exit_sender = exit_sender;
            tokio::select! {
                message = next(&control) => {
                    if let Ok(Some((FromExec::Exited { code }, _))) = message {
                        let _ = exit_sender.send(ExecExit { code });
                    }
                }
                // The handle was dropped: letting go of the connection kills the command.
                () = exit_sender.closed() => (),
            }
            drop(control);
            reaper.finish().await;
        });
        Ok(ExecHandle { stdin, stdout, stderr, resize, exit })
    }

    fn prepare(&self, entry: &super::Entry, spec: &ExecSpec) -> io::Result<Prepared> {
        let (ours, theirs) = wire::pair()?;
        process::set_nonblocking(ours.as_raw_fd())?;
        let errors = std::fs::File::options().read(true).append(true).create(true).open(entry.dir.join("exec.log"))?;
        errors.set_len(0)?;
        let child = self
            .program
            .command()
            .arg("__exec")
            .env_clear()
            .current_dir("/")
            .stdin(theirs)
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()?;
        let mut prepared = Prepared { control: ours, child, stdin: None, stdout: None, stderr: None };
        let mut theirs: Vec<OwnedFd> = Vec::new();
        if !spec.tty {
            if spec.stdin {
                let (sender, receiver) = pipe::pipe()?;
                prepared.stdin = Some(Box::new(sender));
                theirs.push(receiver.into_blocking_fd()?);
            } else {
                theirs.push(OwnedFd::from(std::fs::File::open("/dev/null")?));
            }
            let (out_sender, out) = pipe::pipe()?;
            let (err_sender, err) = pipe::pipe()?;
            theirs.push(out_sender.into_blocking_fd()?);
            theirs.push(err_sender.into_blocking_fd()?);
            prepared.stdout = Some(Box::new(out));
            prepared.stderr = Some(Box::new(err));
        }
        let request = ExecRequest {
            dir: entry.dir.clone(),
            container: layout::short(&entry.spec.id()),
            args: spec.args.clone(),
            env: spec.env.clone(),
            tty: spec.tty,
        };
        let fds: Vec<i32> = theirs.iter().map(|fd| fd.as_raw_fd()).collect();
        wire::send(prepared.control.as_fd(), &request, &fds)?;
        Ok(prepared)
    }

    /// Runs a probe or a hook to its end: exit code and output.
    pub async fn run(
        self: &Arc<Self>,
        id: &str,
        args: &[String],
        purpose: ExecPurpose,
    ) -> Result<(i32, Vec<u8>), RuntimeError> {
        let mut handle = self.exec(id, ExecSpec { args: args.to_vec(), purpose, ..ExecSpec::default() }).await?;
        let mut output = Vec::new();
        let mut stderr = handle.stderr.take();
        let (mut out, mut err) = ([0u8; 4096], [0u8; 4096]);
        let (mut out_open, mut err_open) = (true, stderr.is_some());
        let mut code = None;
        let drained = tokio::time::sleep(DRAIN);
        tokio::pin!(drained);
        // That a command has ended may be heard before that it wrote: both streams are read to their ends. What a
        // daemon left behind by it goes on writing does not matter, so their ends are not waited for.
        while code.is_none() || ((out_open || err_open) && output.len() < MAX_PROBE_OUTPUT) {
            tokio::select! {
                biased;
                exit = &mut handle.exit, if code.is_none() => {
                    let lost = "the command's supervisor ended without an exit code";
                    code = Some(exit.map_err(|_| RuntimeError::Exec(lost.to_owned()))?.code);
                    drained.as_mut().reset(tokio::time::Instant::now() + DRAIN);
                }
                read = handle.stdout.read(&mut out), if out_open => out_open = keep(&mut output, &out, read),
                read = read_some(&mut stderr, &mut err), if err_open => err_open = keep(&mut output, &err, read),
                () = &mut drained, if code.is_some() => break,
            }
        }
        Ok((code.unwrap_or_default(), output))
    }
}

async fn read_some(stream: &mut Option<OutputStream>, buffer: &mut [u8]) -> io::Result<usize> {
    match stream {
        Some(stream) => stream.read(buffer).await,
        None => Ok(0),
    }
}

/// Keeps what fits; false at the stream's end.
fn keep(output: &mut Vec<u8>, buffer: &[u8], read: io::Result<usize>) -> bool {
    let length = read.unwrap_or(0);
    let room = MAX_PROBE_OUTPUT.saturating_sub(output.len());
    output.extend_from_slice(buffer.get(..length.min(room)).unwrap_or_default());
    length > 0
}

/// Waits for a child that ends by itself once its connection is closed.
struct Reaper(Option<(std::process::Child, OwnedSemaphorePermit)>);

impl Reaper {
    async fn finish(&mut self) {
        let Some((mut child, _permit)) = self.0.take() else { return };
        if let Ok(pidfd) = process::pidfd_open(child.id() as i32)
            && let Ok(pidfd) = layout::watched(pidfd, Interest::READABLE)
        {
            let _ = pidfd.readable().await;
        }
        let _ = child.wait();
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        let Some(child) = self.0.take() else { return };
        // A failed or abandoned start: the child sees its connection closed and ends.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { Reaper(Some(child)).finish().await });
        }
    }
}

async fn next(control: &AsyncFd<OwnedFd>) -> io::Result<Option<(FromExec, Vec<OwnedFd>)>> {
    loop {
        let mut ready = control.readable().await?;
        if let Ok(result) = ready.try_io(|control| wire::receive::<FromExec>(control.as_fd())) {
            return result;
        }
    }
}

type Streams = (Option<InputStream>, OutputStream, Option<OutputStream>);

fn terminal_streams(master: OwnedFd, stdin: bool, mut sizes: mpsc::Receiver<TerminalSize>) -> io::Result<Streams> {
    process::set_nonblocking(master.as_raw_fd())?;
    let input = if stdin { Some(Box::new(Terminal::new(master.try_clone()?)?) as InputStream) } else { None };
    let resized = master.try_clone()?;
    let output = Box::new(Terminal::new(master)?) as OutputStream;
    tokio::spawn(async move {
        while let Some(size) = sizes.recv().await {
            set_size(resized.as_raw_fd(), size.width, size.height);
        }
    });
    Ok((input, output, None))
}

/// A terminal's master as a stream.
struct Terminal(AsyncFd<OwnedFd>);

impl Terminal {
    fn new(fd: OwnedFd) -> io::Result<Terminal> {
        Ok(Terminal(layout::watched(fd, Interest::READABLE | Interest::WRITABLE)?))
    }
}

impl AsyncRead for Terminal {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(context))?;
            let unfilled = buffer.initialize_unfilled();
            match guard.try_io(|file| Ok(nix::unistd::read(file.as_raw_fd(), unfilled)?)) {
                Ok(Ok(length)) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                // The last process has closed the terminal: its end of file.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_) => continue,
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(context))?;
            if let Ok(result) = guard.try_io(|file| Ok(nix::unistd::write(file.get_ref(), bytes)?)) {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// The end of input is the terminal's end-of-file character (in cooked mode).
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let _ = nix::unistd::write(self.0.get_ref(), &[4]);
        Poll::Ready(Ok(()))
    }
}
