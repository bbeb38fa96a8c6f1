//! What the supervisor takes from a process before it becomes the container's: capabilities and system calls.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use crate::layout::{self, ShimConfig};
use crate::seccomp::{self, Program, SeccompProfile};

/// `_LINUX_CAPABILITY_VERSION_3`
const CAPABILITY_VERSION: u32 = 0x2008_0522;
/// Bits of a capability set.
const CAPABILITY_BITS: u32 = 64;

/// What a process of a container is left with.
#[derive(Clone, Debug, Default)]
pub struct Confinement {
    /// None where the container library has dropped them.
    capabilities: Option<u64>,
    filter: Option<Program>,
}

/// A step that failed, as a verb with its object, and why.
type Failed = (&'static str, io::Error);

impl Confinement {
    /// As the runtime noted it in the container's folder.
    ///
    /// # Errors
    /// There is a filter, and it is not readable as one: the container must not run without it.
    pub fn load(dir: &Path, config: &ShimConfig) -> Result<Confinement, String> {
        let filter = match fs::read(dir.join(layout::SECCOMP)) {
            Ok(bytes) => Some(Program::from_bytes(&bytes).ok_or("seccomp.bpf is damaged")?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(format!("cannot read seccomp.bpf: {error}")),
        };
        Ok(Confinement { capabilities: config.capabilities, filter })
    }

    /// Of a process that needs nothing: no capability, and the calls of the runtime's own profile.
    ///
    /// # Errors
    /// There are no filters for this machine.
    pub fn complete() -> Result<Confinement, String> {
        let filter = seccomp::compile(&SeccompProfile::RuntimeDefault, &BTreeSet::new());
        Ok(Confinement { capabilities: Some(0), filter: filter.map_err(|error| error.to_string())? })
    }

    /// Confines this thread for good. Without no_new_privs only CAP_SYS_ADMIN may install a filter, so that goes after
    /// it; with it the filter comes last, and need not allow the dropping.
    pub fn apply(&self, no_new_privileges: bool) -> Result<(), Failed> {
        if no_new_privileges {
            self.drop_capabilities()?;
            self.install_filter()
        } else {
            self.install_filter()?;
            self.drop_capabilities()
        }
    }

    fn install_filter(&self) -> Result<(), Failed> {
        self.filter
            .as_ref()
            .map_or(Ok(()), |filter| filter.install().map_err(|error| ("install the seccomp filter", error)))
    }

    fn drop_capabilities(&self) -> Result<(), Failed> {
        let Some(kept) = self.capabilities else { return Ok(()) };
        for bit in (0..CAPABILITY_BITS).filter(|bit| kept >> bit & 1 == 0) {
            // SAFETY: a prctl without pointers.
            let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(bit), 0, 0, 0) };
            // The kernel knows fewer capabilities than there are bits.
            let error = io::Error::last_os_error();
            if result != 0 && error.raw_os_error() != Some(libc::EINVAL) {
                return Err(("drop capabilities", error));
            }
        }
        // SAFETY: a prctl without pointers.
        unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
        // Version (u32), pid (0: this thread); then effective, permitted and inheritable, lower halves first.
        let header = [CAPABILITY_VERSION, 0];
        let (low, high) = (kept as u32, (kept >> 32) as u32);
        let sets = [low, low, 0, high, high, 0];
        // SAFETY: both have the kernel's layout for this version and outlive the call, which only reads them.
        let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) };
        if result == 0 { Ok(()) } else { Err(("drop capabilities", io::Error::last_os_error())) }
    }
}

/// Becomes a user and group of this thread's user namespace, with all capabilities that there are in it.
pub fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    use nix::unistd::{Gid, Uid, setresgid, setresuid};
    // SAFETY: a prctl without pointers.
    if unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    raise_capabilities()
}

/// Makes all permitted capabilities effective again, which a change of users takes back.
pub fn raise_capabilities() -> io::Result<()> {
    let header = [CAPABILITY_VERSION, 0];
    // Effective, permitted, inheritable; lower halves first.
    let mut sets = [0_u32; 6];
    // SAFETY: both have the kernel's layout for this version and outlive the calls.
    let result = unsafe {
        match libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) {
            0 => {
                (sets[0], sets[3]) = (sets[1], sets[4]);
                libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr())
            }
            failed => failed,
        }
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives standard input, output and error to the container's user, so that it can open /dev/stdout and
/// /proc/self/fd/1. /dev/null is everybody's; where it cannot be done (a read-only file system) nothing is lost.
pub fn own_stdio(user: u32) {
    for fd in 0..=2 {
        let Ok(metadata) = stat(fd) else { continue };
        let null = metadata.file_type().is_char_device() && metadata.rdev() == libc::makedev(1, 3);
        if !null && metadata.uid() != user {
            // SAFETY: fchown gets three integers; no group is changed.
            unsafe { libc::fchown(fd, user, u32::MAX) };
        }
    }
}

/// By descriptor: a container may have no /proc.
fn stat(fd: i32) -> io::Result<fs::Metadata> {
    use std::os::fd::BorrowedFd;
    // SAFETY: 0, 1 and 2 are open for as long as this process has not executed its program.
    let file = fs::File::from(unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()?);
    file.metadata()
}
