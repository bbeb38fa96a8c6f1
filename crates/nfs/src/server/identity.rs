//! Acting as a client's user: the kernel's file system identity is each thread's own.

use std::cell::RefCell;
use std::io;

use mainstay_runtime::kernel;

/// Who acts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

impl Identity {
    const ROOT: Self = Self { uid: 0, gid: 0, groups: Vec::new() };
}

thread_local! {
    /// Who the thread acts as.
    static CURRENT: RefCell<Identity> = const { RefCell::new(Identity::ROOT) };
}

/// The thread acts as somebody else until this is dropped; then it is again who it was before, which need not be root
/// (X6).
pub struct Acting {
    before: Identity,
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
    let acting = Acting { before: CURRENT.replace(identity.clone()) };
    kernel::set_thread_fs_ids(identity.uid, identity.gid)?;
    Ok(acting)
}

impl Drop for Acting {
    fn drop(&mut self) {
        let before = &self.before;
        let back = kernel::set_thread_fs_ids(before.uid, before.gid);
        if back.is_err() || kernel::set_thread_groups(&before.groups).is_err() {
            // A thread that cannot put down what it took on must not go on.
            std::process::abort();
        }
        CURRENT.replace(std::mem::replace(&mut self.before, Identity::ROOT));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// User, group and supplementary groups, as the kernel says.
    fn now() -> (u32, u32, Vec<u32>) {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let words = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().map(|word| word.parse().unwrap()).collect::<Vec<u32>>()
        };
        (words("Uid:")[3], words("Gid:")[3], words("Groups:"))
    }

    #[test]
    fn x6_who_acted_before_acts_again_and_not_root() {
        let user = Identity { uid: 1234, gid: 1235, groups: vec![7, 8] };
        let other = Identity { uid: 99, gid: 98, groups: vec![9] };
        let as_user = || (1234, 1235, vec![7, 8]);
        let first = act_as(&user).unwrap();
        assert_eq!(now(), as_user());
        for inner in [Identity::ROOT, other] {
            let second = act_as(&inner).unwrap();
            assert_eq!(now(), (inner.uid, inner.gid, inner.groups));
            drop(second);
            assert_eq!(now(), as_user());
        }
        drop(first);
        assert_eq!(now(), (0, 0, Vec::new()));
    }
}
