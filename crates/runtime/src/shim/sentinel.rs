//! Beside a supervisor with a deadline: the process that ends the container when the supervisor has ended, or at the
//! deadline itself: a supervisor that somebody has stopped or that hangs does not.
//!
//! Nobody else would end the container at its deadline (S13): the agent may hang or be gone, and the kernel forgets
//! what a process asked for in the case of its parent's death when it changes its user, which most images do. The two
//! watch one another: a supervisor without its sentinel ends its container ([`crate::fence::Guard`]), so that only who
//! kills both at once leaves one behind. It is a fork, shares the supervisor's pages, and sleeps.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::unistd::{ForkResult, Pid, fork};

use super::process;
use crate::cgroups::Cgroups;
use crate::fence;
use crate::layout::DeadlineConfig;

/// The supervisor's end of it, which ends with this: whoever ends in good order has ended the container.
pub struct Sentinel {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Sentinel {
    /// Begins to watch over the container whose group and deadline these are. The calling process has one thread.
    ///
    /// # Errors
    /// The kernel's. Where the deadline cannot be watched, it ends.
    pub fn begin(deadline: &DeadlineConfig, cgroups: &Cgroups, cgroup: &str) -> io::Result<Self> {
        let supervisor = process::pidfd_open(std::process::id() as i32)?;
        // SAFETY: there is no other thread.
        match unsafe { fork() }? {
            ForkResult::Child => watch(&supervisor, deadline, cgroups, cgroup),
            ForkResult::Parent { child } => {
                let pidfd = process::pidfd_open(child.as_raw()).and_then(process::private)?;
                Ok(Self { pid: child, pidfd })
            }
        }
    }

    /// What becomes readable when it ends.
    ///
    /// # Errors
    /// In words: there are too many open files.
    pub fn watched(&self) -> Result<OwnedFd, String> {
        self.pidfd.try_clone().map_err(|error| format!("cannot watch the sentinel: {error}"))
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        process::signal(self.pidfd.as_raw_fd(), libc::SIGKILL);
        // Whoever waits for any child may have been faster.
        let _ = nix::sys::wait::waitpid(self.pid, None);
    }
}

fn watch(supervisor: &OwnedFd, deadline: &DeadlineConfig, cgroups: &Cgroups, cgroup: &str) -> ! {
    // It keeps nothing else open, and so nobody waiting for an end of file, or for the supervisor's lock.
    if nix::unistd::dup2(supervisor.as_raw_fd(), 0).is_err() {
        std::process::exit(1);
    }
    process::close_strangers();
    // SAFETY: nobody else in this process has it.
    let supervisor = unsafe { OwnedFd::from_raw_fd(0) };
    process::set_name(c"mainstay-sentry");
    process::ignore_terminal_signals();
    let _ = nix::unistd::setsid();
    // The supervisor asks the same and says why not, or takes this one's end for the reason.
    let Ok(watched) = deadline.fence.watch() else { std::process::exit(1) };
    crate::kernel::release_start();
    while !process::has_ended(supervisor.as_raw_fd()) {
        if watched.has_passed() {
            fence::enforce(&supervisor, cgroups, cgroup);
        } else {
            watched.sleep_beside(&supervisor);
        }
    }
    while !cgroups.kill_and_wait(cgroup) {}
    std::process::exit(0)
}
