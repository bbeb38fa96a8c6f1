//! Acting as a client's user: the kernel's file system identity is each thread's own.

use std::io;

/// Who acts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// The thread acts as somebody else until this is dropped.
pub struct Acting {
    _private: (),
}

/// Makes a thread's umask its own, and empty: modes are the clients' to choose.
pub fn own_thread() -> io::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)?;
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    Ok(())
}

/// Acts as `identity`. The system call is used itself: the library's `setgroups` changes all threads.
///
/// # Errors
/// The groups cannot be set (not root).
pub fn act_as(identity: &Identity) -> io::Result<Acting> {
    set_groups(&identity.groups)?;
    let acting = Acting { _private: () };
    set_ids(identity.uid, identity.gid);
    // These two calls tell no errors; asking with an impossible id tells what is set.
    // SAFETY: plain integers.
    let set = unsafe { (libc::setfsuid(u32::MAX), libc::setfsgid(u32::MAX)) };
    if set != (identity.uid as libc::c_int, identity.gid as libc::c_int) {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    Ok(acting)
}

impl Drop for Acting {
    fn drop(&mut self) {
        set_ids(0, 0);
        if set_groups(&[]).is_err() {
            // A thread that cannot put down what it took on must not go on.
            std::process::abort();
        }
    }
}

fn set_ids(uid: u32, gid: u32) {
    // SAFETY: plain integers; both calls concern this thread only. The gid first: only root may.
    unsafe {
        if uid == 0 {
            libc::setfsuid(uid);
            libc::setfsgid(gid);
        } else {
            libc::setfsgid(gid);
            libc::setfsuid(uid);
        }
    }
}

fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: the pointer and length are those of the slice.
    let result = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
