//! Small things that a supervisor does to itself.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// Supervisors keep their own descriptors from this number on, clear of the three that containers get.
const FIRST_PRIVATE_FD: RawFd = 10;

/// Takes over a descriptor that the parent put at `fd` (0, 1 or 2): it gets a private number and does not survive
/// into the container.
pub fn take_inherited(fd: RawFd) -> io::Result<OwnedFd> {
    let private = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(FIRST_PRIVATE_FD))?;
    // SAFETY: fcntl just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(private) })
}

/// A private copy of a descriptor: see [`take_inherited`].
pub fn private(fd: OwnedFd) -> io::Result<OwnedFd> {
    take_inherited(fd.as_raw_fd())
}

/// Closes what the main process had open by accident (a terminal's pipe, a build's job server): a supervisor that lives
/// for months must not keep others waiting for an end of file. Called first, while only 0, 1 and 2 are meant.
pub fn close_strangers() {
    // SAFETY: no descriptor above 2 is in use yet in this process.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
}

/// Puts /dev/null at 0, 1 and 2.
pub fn detach_stdio() -> io::Result<()> {
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    for fd in 0..=2 {
        nix::unistd::dup2(null.as_raw_fd(), fd)?;
    }
    Ok(())
}

/// Closes 0, 1 and 2: of a process that opens nothing any more.
pub fn close_stdio() {
    for fd in 0..=2 {
        // SAFETY: nothing reads or writes them from here on.
        unsafe { libc::close(fd) };
    }
}

/// A pipe whose ends have private numbers: (read, write).
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    Ok((private(read)?, private(write)?))
}

pub fn set_nonblocking(fd: RawFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Orphans of the container come to us, not to init.
pub fn become_subreaper() {
    // SAFETY: a prctl without pointers.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
}

/// Children that end, whoever began them, leave nothing to wait for.
pub fn leave_children_to_the_kernel() {
    // SAFETY: setting a disposition to SIG_IGN runs no code of ours.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

pub fn set_name(name: &std::ffi::CStr) {
    // SAFETY: PR_SET_NAME reads a NUL-terminated string.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
}

/// The supervisor must outlive what ends the service: it goes when its container has ended.
pub fn ignore_terminal_signals() {
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM, libc::SIGPIPE] {
        // SAFETY: setting a disposition to SIG_IGN runs no code of ours.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// A descriptor that becomes readable when the process ends.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: see above; close-on-exec is set by the kernel.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Field 22 of /proc/<pid>/stat, the start time in clock ticks since boot: with the pid it names one process for ever.
pub fn start_time(pid: i32) -> Option<u64> {
    state_and_start(pid).map(|(_, start)| start)
}

fn state_and_start(pid: i32) -> Option<(char, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses and may itself contain spaces and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// Whether the process of this pid that started then still runs: one that has ended and is not reaped does not.
pub fn is_running(pid: i32, start: u64) -> bool {
    state_and_start(pid).is_some_and(|(state, since)| since == start && !matches!(state, 'Z' | 'X'))
}

/// A process by its pid and start time, whether it runs or waits to be reaped. None where the pid is another's by now.
pub fn find(pid: i32, start: u64) -> Option<OwnedFd> {
    // First the descriptor: what it is of cannot change any more.
    let pidfd = pidfd_open(pid).ok()?;
    (start_time(pid) == Some(start)).then_some(pidfd)
}

/// Sends a signal to the process of a pidfd, if it has not ended.
pub fn signal(pidfd: RawFd, signal: i32) {
    // SAFETY: integers, and a null pointer, which the kernel allows.
    unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd, signal, std::ptr::null::<libc::siginfo_t>(), 0);
    }
}

/// Whether the process of a pidfd has ended.
pub fn has_ended(pidfd: RawFd) -> bool {
    let mut polled = libc::pollfd { fd: pidfd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid entry.
    unsafe { libc::poll(&raw mut polled, 1, 0) != 0 }
}

/// From here on no program that this process executes gives it more than it has.
pub fn forbid_new_privileges() -> io::Result<()> {
    // SAFETY: a prctl without pointers.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Keeps this process's memory and what it has open from whoever may not trace everything.
pub fn forbid_inspection() {
    // SAFETY: a prctl without pointers.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_a_start_time() {
        let own = std::process::id() as i32;
        let start = start_time(own).unwrap();
        assert!(start > 0 && is_running(own, start) && !is_running(own, start + 1));
        assert!(find(own, start).is_some() && find(own, start + 1).is_none());
        assert_eq!(start_time(i32::MAX), None);
    }

    #[test]
    fn a_process_that_waits_to_be_reaped_does_not_run() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id() as i32;
        let start = start_time(pid).unwrap();
        assert!(is_running(pid, start));
        child.kill().unwrap();
        let pidfd = find(pid, start).unwrap();
        while !has_ended(pidfd.as_raw_fd()) {
            std::thread::yield_now();
        }
        assert!(!is_running(pid, start) && find(pid, start).is_some());
        child.wait().unwrap();
        assert!(find(pid, start).is_none());
    }
}
