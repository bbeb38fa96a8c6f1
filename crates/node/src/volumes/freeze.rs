//! Holding back the writes to mounted volumes for a moment, so that their images can be copied as they are.
//!
//! A frozen file system stays frozen until somebody thaws it, whatever became of whoever has frozen it, and its writers
//! hang for as long. So a process of its own does it (this binary, re-executed as `__freeze`): it thaws when its stdin
//! is closed, which the kernel does for an agent that is killed, and when its time is up. Where that process is killed,
//! the agent thaws; where both are, the next agent does before anything else ([`thaw_all`]).
//!
//! A copy counts only if [`Frozen::thaw`] says that the writes were held back all the time.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use super::VolumeError;
use mainstay_runtime::safe_path::mounts;
use mainstay_runtime::shim::process;

/// From `linux/fs.h`: `_IOWR('X', 119, int)`, `_IOWR('X', 120, int)`.
const FIFREEZE: libc::Ioctl = 0xC004_5877_u32 as libc::Ioctl;
const FITHAW: libc::Ioctl = 0xC004_5878_u32 as libc::Ioctl;
/// The longest that writers are held back. A database whose copy takes longer is better copied while it is stopped.
pub const LIMIT: Duration = Duration::from_secs(30);

/// A mounted file system.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Mounted {
    /// Where it is mounted.
    pub point: PathBuf,
    /// Its device: what is mounted there must be this one, or the machine's own file system could be meant by mistake.
    pub device: u64,
}

impl Mounted {
    fn open(&self) -> io::Result<File> {
        let point =
            OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(&self.point)?;
        if point.metadata()?.dev() != self.device {
            return Err(io::Error::other(format!("something else is mounted on {}", self.point.display())));
        }
        Ok(point)
    }
}

/// What the process is told.
#[derive(serde::Serialize, serde::Deserialize)]
struct Request {
    limit_ms: u64,
    mounted: Vec<Mounted>,
}

/// File systems whose writers are held back. They go on when it is dropped.
#[derive(Debug)]
pub struct Frozen {
    child: Child,
    said: BufReader<ChildStdout>,
    points: Vec<File>,
}

/// Freezes file systems, each as it is at one moment between this call and its return.
///
/// # Errors
/// What could not be frozen; then none is.
pub fn freeze(exe: &Path, mounted: Vec<Mounted>, limit: Duration) -> Result<Frozen, VolumeError> {
    let failed =
        |error: io::Error| VolumeError::Io { what: "holding back the volume's writes".to_owned(), source: error };
    let points = mounted.iter().map(Mounted::open).collect::<io::Result<Vec<File>>>().map_err(failed)?;
    for point in &points {
        // What is to be written anyway is written before anybody waits for it.
        nix::unistd::syncfs(point.as_raw_fd()).map_err(|error| failed(error.into()))?;
    }
    let request = Request { limit_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX), mounted };
    let words = serde_json::to_string(&request).map_err(|error| failed(error.into()))?;
    let mut command = Command::new(exe);
    command
        .arg("__freeze")
        .arg(words)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = command.spawn().map_err(failed)?;
    let Some(output) = child.stdout.take() else { return Err(failed(io::ErrorKind::BrokenPipe.into())) };
    let mut frozen = Frozen { child, said: BufReader::new(output), points };
    match frozen.hear().map_err(failed)?.as_str() {
        "frozen" => Ok(frozen),
        "" => Err(failed(io::Error::other("its process ended without a word"))),
        error => Err(failed(io::Error::other(error.to_owned()))),
    }
}

impl Frozen {
    fn hear(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.said.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// Ends the process that holds, as a crash would.
    #[cfg(test)]
    pub fn kill(&self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(0));
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        // Not reaped: that is for whoever drops this.
        let _ = nix::sys::wait::waitid(
            nix::sys::wait::Id::Pid(pid),
            nix::sys::wait::WaitPidFlag::WEXITED | nix::sys::wait::WaitPidFlag::WNOWAIT,
        );
    }

    /// As if this process had been killed too.
    #[cfg(test)]
    pub fn abandon(mut self) {
        self.kill();
        self.points.clear();
    }

    /// Lets the writers go on. True where none had gone on before: what was read meanwhile is of one moment. False
    /// where their time was up before.
    ///
    /// # Errors
    /// The process was killed; when the writers went on is not known.
    pub fn thaw(mut self) -> io::Result<bool> {
        drop(self.child.stdin.take());
        match self.hear()?.as_str() {
            "thawed" => Ok(true),
            "late" => Ok(false),
            _ => Err(io::Error::other("the process that held back the volume's writes was killed")),
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let ended = self.child.wait();
        // One that ends by itself thaws what it has frozen.
        if !ended.is_ok_and(|status| status.code().is_some()) {
            self.points.iter().for_each(thaw);
        }
    }
}

/// Thaws a file system, also one that is not frozen.
fn thaw(point: &File) {
    // SAFETY: the request takes no argument.
    unsafe { libc::ioctl(point.as_raw_fd(), FITHAW, 0) };
}

/// Thaws everything that is mounted below a folder: what a crash may have left frozen. For the start of an agent,
/// before anybody could freeze anything.
pub fn thaw_all(root: &Path) -> io::Result<()> {
    for point in mounts::below(root)? {
        File::open(point).iter().for_each(thaw);
    }
    Ok(())
}

/// File systems that this process has frozen.
struct Held(Vec<File>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.iter().for_each(thaw);
    }
}

/// Freezes what it is told, says `frozen`, and thaws as soon as its stdin is closed or its time is up.
pub fn freeze_main(words: &str) -> ! {
    process::close_strangers();
    process::set_name(c"mainstay-freeze");
    process::ignore_terminal_signals();
    let code = match serde_json::from_str::<Request>(words).map_err(io::Error::from).and_then(|request| hold(&request))
    {
        Ok(()) => 0,
        Err(error) => {
            let _ = writeln!(io::stdout(), "{error}");
            1
        }
    };
    std::process::exit(code)
}

fn hold(request: &Request) -> io::Result<()> {
    let mut held = Held(Vec::new());
    let points = request.mounted.iter().map(Mounted::open).collect::<io::Result<Vec<File>>>()?;
    let end = Instant::now() + Duration::from_millis(request.limit_ms);
    for point in points {
        // SAFETY: the request takes no argument.
        if unsafe { libc::ioctl(point.as_raw_fd(), FIFREEZE, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
        held.0.push(point);
    }
    writeln!(io::stdout(), "frozen")?;
    let in_time = is_closed_before(end)?;
    drop(held);
    writeln!(io::stdout(), "{}", if in_time { "thawed" } else { "late" })
}

/// Waits for the end of stdin, but not beyond `end`.
fn is_closed_before(end: Instant) -> io::Result<bool> {
    loop {
        let left = end.saturating_duration_since(Instant::now()).as_millis();
        let mut stdin = libc::pollfd { fd: 0, events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, for the time of the call.
        match unsafe { libc::poll(&raw mut stdin, 1, i32::try_from(left).unwrap_or(i32::MAX)) } {
            0 => return Ok(false),
            n if n > 0 => return Ok(true),
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}

/// The file system that is mounted at a place.
pub fn mounted_at(point: &Path) -> io::Result<Mounted> {
    Ok(Mounted { point: point.to_owned(), device: fs::symlink_metadata(point)?.dev() })
}
