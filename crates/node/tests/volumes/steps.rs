//! kill -9 between any two steps of a process: it is traced, and killed right after its n-th call that changes a file
//! system, a mount, a device, or that sends something.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use libc::{c_int, c_long, pid_t};

/// What became of a traced process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It ended by itself, well, after so many steps.
    Finished(u64),
    Killed,
}

/// The calls that are steps.
const STEPS: &[c_long] = &[
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_symlinkat,
    libc::SYS_fchmodat,
    libc::SYS_fchmod,
    libc::SYS_fchownat,
    libc::SYS_fchown,
    libc::SYS_ftruncate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_syncfs,
    libc::SYS_ioctl,
    libc::SYS_sendto,
    libc::SYS_writev,
];

/// Those that only older architectures have.
#[cfg(target_arch = "x86_64")]
const OLD_STEPS: &[c_long] = &[
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_symlink,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
];
#[cfg(not(target_arch = "x86_64"))]
const OLD_STEPS: &[c_long] = &[libc::SYS_renameat];

/// `struct ptrace_syscall_info`, as far as it is asked for.
#[repr(C)]
#[derive(Default)]
struct Info {
    op: u8,
    _pad: [u8; 3],
    _arch: u32,
    _instruction: u64,
    _stack: u64,
    number: u64,
    arguments: [u64; 6],
}

const PTRACE_GET_SYSCALL_INFO: libc::c_uint = 0x420e;
const ENTRY: u8 = 1;
const EXIT: u8 = 2;

/// The traced process says that its steps count from here on.
pub fn begin() {
    // SAFETY: the signal 0 is only a question.
    unsafe { libc::kill(libc::getpid(), 0) };
}

/// Runs a command and kills it right after its `limit`-th step; its own children live on.
///
/// All of it is done by the calling thread, as tracing wants it.
#[allow(clippy::zombie_processes, reason = "it is waited for as all traced threads are")]
pub fn run(mut command: Command, limit: u64) -> End {
    let trace_me = || {
        // SAFETY: a plain request about the calling process.
        match unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure makes one system call.
    let child = unsafe { command.pre_exec(trace_me) }.spawn().expect("a victim");
    let main = pid_t::try_from(child.id()).expect("a pid");
    let (mut steps, mut counts, mut is_known) = (0u64, false, false);
    let mut calls = std::collections::BTreeMap::new();
    loop {
        let mut status: c_int = 0;
        // SAFETY: `status` is ours. Other threads' children are not waited for.
        let thread = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
        assert!(thread > 0, "the victim is lost: {}", std::io::Error::last_os_error());
        if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
            if thread != main {
                continue;
            }
            if libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL && steps >= limit {
                return End::Killed;
            }
            assert!(
                libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
                "the victim failed by itself: {status:#x}"
            );
            return End::Finished(steps);
        }
        if !is_known {
            is_known = true;
            let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_EXITKILL;
            // SAFETY: a plain request about a stopped thread of ours.
            unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, thread, 0, options) };
        }
        let mut signal = libc::WSTOPSIG(status);
        if signal == libc::SIGTRAP | 0x80 {
            signal = 0;
            let mut info = Info::default();
            // SAFETY: the kernel fills in as much of the structure as fits.
            unsafe { libc::ptrace(PTRACE_GET_SYSCALL_INFO, thread, size_of::<Info>(), &raw mut info) };
            if info.op == ENTRY {
                calls.insert(thread, (info.number as c_long, info.arguments));
            } else if info.op == EXIT
                && let Some((number, arguments)) = calls.remove(&thread)
            {
                counts |= number == libc::SYS_kill && arguments[1] == 0;
                if counts && is_step(number, &arguments) {
                    steps += 1;
                    if steps == limit {
                        // SAFETY: our own child, not yet waited for.
                        unsafe { libc::kill(main, libc::SIGKILL) };
                    }
                }
            }
        } else if signal == libc::SIGTRAP || signal == libc::SIGSTOP {
            // A new thread, or news of one.
            signal = 0;
        }
        // SAFETY: as above; a thread that is gone meanwhile is no harm.
        unsafe { libc::ptrace(libc::PTRACE_SYSCALL, thread, 0, signal) };
    }
}

fn is_step(number: c_long, arguments: &[u64; 6]) -> bool {
    let makes = number == libc::SYS_openat && arguments[2] & libc::O_CREAT as u64 != 0;
    makes || STEPS.contains(&number) || OLD_STEPS.contains(&number)
}
