//! The last steps inside a container before its program runs, and how a failure there is reported.

use std::ffi::CString;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};

use super::confinement::{Confinement, own_stdio};
use super::late_mounts::{self, LateMount};
use super::mapped::Users;
use super::process;

/// What an image's processes search when it does not say.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// No descriptor of a supervisor has a higher number: it opens a few dozen.
const MAX_PRIVATE: u32 = 4096;

/// Runs the program; what goes wrong is written to `report`, which the program itself never sees (close-on-exec), so
/// that its end of file means success.
#[derive(Clone)]
pub struct ReportingExecutor {
    pub report: RawFd,
    pub confinement: Confinement,
    /// Where its pod has a user namespace.
    pub users: Option<Users>,
    /// For a command: the pidfd of the container's first process, by whose number its namespaces were joined. If that
    /// still runs, the number was its own.
    pub container: Option<RawFd>,
    /// For a container: what is mounted at its /dev.
    pub late_mounts: Vec<LateMount>,
}

impl ReportingExecutor {
    fn tell(&self, why: &str) {
        // SAFETY: `report` is open in this process until it executes the program; the buffer outlives the call.
        unsafe { libc::write(self.report, why.as_ptr().cast(), why.len()) };
    }

    /// Closes what is not the program's before anything is resolved by its path: close-on-exec comes too late for
    /// `/proc/self/fd/N/…`, and some lead to the host (X6).
    fn close_private(&self) {
        const FIRST: u32 = libc::STDERR_FILENO as u32 + 1;
        let report = self.report.unsigned_abs();
        for (first, last) in [(FIRST, report.saturating_sub(1)), (report + 1, u32::MAX)] {
            if first > last {
                continue;
            }
            // SAFETY: descriptors that nothing in this process, which has one thread, uses any more.
            let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
            if closed != 0 {
                // A kernel before 5.9.
                for fd in first..=last.min(MAX_PRIVATE) {
                    // SAFETY: as above.
                    unsafe { libc::close(fd as RawFd) };
                }
            }
        }
    }
}

impl Executor for ReportingExecutor {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        // The library has made all that it makes, and nothing is dropped yet.
        let owner = self.users.map_or(0, |users| users.on_host(0));
        // A command finds them so.
        let shared = if self.container.is_none() { late_mounts::set_propagation(spec, owner) } else { Ok(()) };
        let attached = shared.and_then(|()| late_mounts::attach(&self.late_mounts, owner));
        attached.and_then(|()| find_program(spec).map(|_| ())).map_err(|why| {
            self.tell(&why);
            ExecutorValidationError::ArgValidationError(why)
        })
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let failed = |why: String| {
            self.tell(&why);
            ExecutorError::Other(why)
        };
        if self.container.is_some_and(process::has_ended) {
            return Err(failed("the container has ended".to_owned()));
        }
        let path = find_program(spec).map_err(failed)?;
        let args = spec.process().as_ref().and_then(|process| process.args().clone()).unwrap_or_default();
        let c_string =
            |text: &str| CString::new(text).map_err(|_| failed(format!("argument {text:?} contains a NUL byte")));
        let program = c_string(&path.to_string_lossy())?;
        let arguments = args.iter().map(|arg| c_string(arg)).collect::<Result<Vec<_>, _>>()?;
        // Rust's runtime ignores SIGPIPE, and ignored signals and the mask survive execve: a shell pipeline in the
        // container must find them as a fresh process does.
        // SAFETY: plain signal calls in a process with one thread.
        unsafe {
            for signal in [libc::SIGPIPE, libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
                libc::signal(signal, libc::SIG_DFL);
            }
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        }
        let process = spec.process().as_ref();
        let user = process.map(|process| process.user().clone()).unwrap_or_default();
        own_stdio(self.users.map_or(user.uid(), |users| users.on_host(user.uid())));
        if let Some(users) = self.users {
            users.enter(&user).map_err(failed)?;
        }
        self.close_private();
        let no_new_privileges = process.and_then(|process| process.no_new_privileges()) == Some(true);
        self.confinement.apply(no_new_privileges).map_err(|(what, error)| failed(format!("cannot {what}: {error}")))?;
        let Err(error) = nix::unistd::execv(&program, &arguments);
        let why = match error {
            nix::errno::Errno::ENOENT => "no such file or directory (its interpreter or loader is missing)".to_owned(),
            nix::errno::Errno::ENOEXEC => "exec format error".to_owned(),
            nix::errno::Errno::EACCES => "permission denied".to_owned(),
            error => error.desc().to_lowercase(),
        };
        Err(failed(format!("exec {:?}: {why}", path.to_string_lossy())))
    }
}

/// Finds the program as the container's own PATH says. The messages are the ones that users know from runc.
fn find_program(spec: &Spec) -> Result<PathBuf, String> {
    let process = spec.process().as_ref().ok_or("no process specified")?;
    let name = process
        .args()
        .as_ref()
        .and_then(|args| args.first())
        .filter(|name| !name.is_empty())
        .ok_or("no command specified")?;
    if name.contains('/') {
        let path = PathBuf::from(name);
        return match executable(&path) {
            Ok(true) => Ok(path),
            Ok(false) => Err(format!("exec: {name:?}: permission denied")),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(format!("exec: {name:?}: stat {name}: no such file or directory"))
            }
            Err(error) => Err(format!("exec: {name:?}: {error}")),
        };
    }
    let path_variable =
        process.env().iter().flatten().find_map(|pair| pair.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let mut denied = false;
    for folder in path_variable.split(':').filter(|folder| !folder.is_empty()) {
        let path = Path::new(folder).join(name);
        match executable(&path) {
            Ok(true) => return Ok(path),
            Ok(false) => denied = true,
            Err(_) => (),
        }
    }
    let why = if denied { "permission denied" } else { "executable file not found in $PATH" };
    Err(format!("exec: {name:?}: {why}"))
}

fn executable(path: &Path) -> std::io::Result<bool> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = path.metadata()?;
    Ok(metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}
