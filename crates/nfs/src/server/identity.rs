//! Acting as a client's user: the kernel's file system identity is each thread's own.

use std::io;

use mainstay_runtime::kernel;

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

/// Acts as `identity`.
///
/// # Errors
/// The groups cannot be set (not root).
pub fn act_as(identity: &Identity) -> io::Result<Acting> {
    kernel::set_thread_groups(&identity.groups)?;
    let acting = Acting { _private: () };
    kernel::set_thread_fs_ids(identity.uid, identity.gid)?;
    Ok(acting)
}

impl Drop for Acting {
    fn drop(&mut self) {
        if kernel::set_thread_fs_ids(0, 0).is_err() || kernel::set_thread_groups(&[]).is_err() {
            // A thread that cannot put down what it took on must not go on.
            std::process::abort();
        }
    }
}
