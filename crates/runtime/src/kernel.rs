//! System calls that the libraries lack or get wrong, each behind a safe function: whoever stands above needs no
//! `unsafe`.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use crate::spec::MountPropagation;

/// The longest kernel handle that is asked for (bytes); ext4 takes 8, xfs 12, btrfs 20. The kernel's own limit is 128.
pub const MAX_FILE_HANDLE: usize = 46;

/// `struct file_handle` with room.
#[repr(C)]
struct RawHandle {
    bytes: u32,
    kind: i32,
    handle: [u8; MAX_FILE_HANDLE],
}

/// The kernel's handle of a file: its inode and generation, in the file system's own form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileHandle {
    /// The file system's number for the form.
    pub kind: u8,
    /// At most [`MAX_FILE_HANDLE`] bytes.
    pub bytes: Vec<u8>,
}

impl FileHandle {
    /// Of an open file (also `O_PATH`).
    ///
    /// # Errors
    /// `EOPNOTSUPP` where the file system has no handles; `EOVERFLOW` where they are longer than [`MAX_FILE_HANDLE`].
    pub fn of(file: &OwnedFd) -> io::Result<Self> {
        let mut raw = RawHandle { bytes: MAX_FILE_HANDLE as u32, kind: 0, handle: [0; MAX_FILE_HANDLE] };
        let mut mount: libc::c_int = 0;
        // SAFETY: `raw` has the layout of `struct file_handle` with as much room as it says; the path is empty.
        let result = unsafe {
            libc::name_to_handle_at(
                file.as_raw_fd(),
                c"".as_ptr(),
                (&raw mut raw).cast(),
                &raw mut mount,
                libc::AT_EMPTY_PATH,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        let kind = u8::try_from(raw.kind).map_err(|_| io::Error::from_raw_os_error(libc::EOPNOTSUPP))?;
        let bytes = raw.handle.get(..raw.bytes as usize).unwrap_or_default().to_vec();
        Ok(Self { kind, bytes })
    }

    /// Opens the file (`O_PATH`) on the file system that `root` is of, wherever its names are by now. Needs root.
    ///
    /// # Errors
    /// `ESTALE` where the file is gone.
    pub fn open(&self, root: RawFd) -> io::Result<OwnedFd> {
        let mut raw =
            RawHandle { bytes: self.bytes.len() as u32, kind: self.kind.into(), handle: [0; MAX_FILE_HANDLE] };
        raw.handle.get_mut(..self.bytes.len()).ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(&self.bytes);
        // SAFETY: `raw` has the layout of `struct file_handle` and says its true length; the kernel only reads it.
        let fd = unsafe {
            libc::open_by_handle_at(root, (&raw mut raw).cast(), libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just opened and nobody else has it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// Whether the thread's effective identity may access an open file (also `O_PATH`) in `mode` (`R_OK` | …). The system
/// call itself: the library's answer is about the real uid.
pub fn may_access(file: &OwnedFd, mode: libc::c_int) -> bool {
    let flags = libc::AT_EACCESS | libc::AT_EMPTY_PATH;
    // SAFETY: the path is an empty C string.
    unsafe { libc::syscall(libc::SYS_faccessat2, file.as_raw_fd(), c"".as_ptr(), mode, flags) == 0 }
}

/// Sets the file system identity of this thread alone.
///
/// # Errors
/// `EPERM` where the kernel did not take it (not root).
pub fn set_thread_fs_ids(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: plain integers; the calls concern this thread only. The gid first on the way down: only root may.
    unsafe {
        if uid == 0 {
            libc::setfsuid(uid);
            libc::setfsgid(gid);
        } else {
            libc::setfsgid(gid);
            libc::setfsuid(uid);
        }
    }
    // These two calls report no errors; asking with an impossible id tells what is set.
    // SAFETY: plain integers.
    let set = unsafe { (libc::setfsuid(u32::MAX), libc::setfsgid(u32::MAX)) };
    if set == (uid as libc::c_int, gid as libc::c_int) {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EPERM))
    }
}

/// Sets the supplementary groups of this thread alone (the library's `setgroups` changes all threads).
///
/// # Errors
/// `EPERM` where this is not root; `EINVAL` for more than 65,536 groups.
pub fn set_thread_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: the pointer and length are those of the slice.
    let result = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The next entries of an open folder, as `getdents64` writes them; the number of bytes, 0 at the end.
///
/// # Errors
/// What the kernel said.
pub fn read_entries(dir: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    let dir = dir.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most as many bytes as the buffer has.
    let length = unsafe { libc::syscall(libc::SYS_getdents64, dir, buffer.as_mut_ptr(), buffer.len()) };
    usize::try_from(length).map_err(|_| io::Error::last_os_error())
}

/// Goes on in a child with a session of its own; the parent exits with 0 here.
///
/// # Errors
/// Where the process has several threads (only the calling one would go on), or the kernel has no room for another one.
pub fn daemonize() -> io::Result<()> {
    if std::fs::read_dir("/proc/self/task")?.count() > 1 {
        return Err(io::Error::other("a process with several threads cannot be forked"));
    }
    // SAFETY: there is no other thread.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { .. } => std::process::exit(0),
        nix::unistd::ForkResult::Child => {
            nix::unistd::setsid()?;
            Ok(())
        }
    }
}

/// Lets this process, and what it starts, have as many open files as its hard limit allows; gives that number.
///
/// # Errors
/// The kernel's.
pub fn raise_open_files() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one `rlimit` to a valid place.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the kernel only reads it.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit.rlim_cur)
}

/// No core files of this process and of what it starts, until somebody asks for them; up to the hard limit anybody may.
/// What a core pattern of the host is given (`|program … %c`) says the same.
pub fn leave_no_core_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one `rlimit` to a valid place, and then only reads it.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_CORE, &raw mut limit) == 0 {
            limit.rlim_cur = 0;
            libc::setrlimit(libc::RLIMIT_CORE, &raw const limit);
        }
    }
}

/// Gives this process, and what it starts, a session keyring of their own.
///
/// # Errors
/// The kernel's; a kernel without keyrings has none to share.
pub fn join_new_session_keyring() -> io::Result<()> {
    // SAFETY: no name is given, so nothing is read: the keyring is a new one that nobody else can join.
    let joined =
        unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
    match io::Error::last_os_error() {
        error if joined < 0 && error.raw_os_error() != Some(libc::ENOSYS) => Err(error),
        _ => Ok(()),
    }
}

/// A copy of the mount that a file or folder is on, with just that in it. It is in no namespace, and is gone when
/// nobody has it open any more.
///
/// # Errors
/// The kernel's: `ENOSYS` before Linux 5.2, `EINVAL` for what is not in this mount namespace.
pub fn clone_mount(path: &std::path::Path) -> io::Result<OwnedFd> {
    clone_mounts(path, false)
}

/// Like [`clone_mount`]; with `recursive`, with what is mounted below.
///
/// # Errors
/// As [`clone_mount`].
pub fn clone_mounts(path: &std::path::Path, recursive: bool) -> io::Result<OwnedFd> {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())?;
    let below = if recursive { libc::AT_RECURSIVE as libc::c_uint } else { 0 };
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | below;
    // SAFETY: the path ends with a zero byte and outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a mount that is open here read-only, without set-user-id programs and devices.
///
/// # Errors
/// The kernel's: `ENOSYS` before Linux 5.12.
pub fn set_mount_read_only(mount: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    set_mount_attributes(mount, attributes, 0)
}

/// Has a mount that is open here, and in no namespace yet, show the owners of its files as a user namespace maps them:
/// what is 0 on the disk is the namespace's root. What is mounted below stays as it is.
///
/// # Errors
/// The kernel's: `EINVAL` where the file system cannot do that, `ENOSYS` before Linux 5.12.
pub fn map_mount_ids(mount: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>) -> io::Result<()> {
    let namespace = u64::try_from(user_namespace.as_raw_fd()).map_err(io::Error::other)?;
    set_mount_attributes(mount, libc::MOUNT_ATTR_IDMAP, namespace)
}

/// Attaches a mount that is open here at a path of this thread's mount namespace.
///
/// # Errors
/// The kernel's.
pub fn attach_mount(mount: BorrowedFd<'_>, target: &std::path::Path) -> io::Result<()> {
    let target = std::ffi::CString::new(target.as_os_str().as_encoded_bytes())?;
    // SAFETY: both paths end with a zero byte and outlive the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// As [`attach_mount`], at a file or folder that is open here (also `O_PATH`).
///
/// # Errors
/// The kernel's.
pub fn attach_mount_to(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    let (mount, target, empty) = (mount.as_raw_fd(), target.as_raw_fd(), c"".as_ptr());
    // SAFETY: both paths are empty C strings.
    let done = unsafe { libc::syscall(libc::SYS_move_mount, mount, empty, target, empty, flags) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets how what is mounted below a mount that is open here, and below those below it, is shared with the mounts that
/// it is a copy of.
///
/// # Errors
/// The kernel's: `ENOSYS` before Linux 5.12.
pub fn set_mount_propagation(mount: BorrowedFd<'_>, propagation: MountPropagation) -> io::Result<()> {
    let propagation = match propagation {
        MountPropagation::None => libc::MS_PRIVATE,
        MountPropagation::HostToContainer => libc::MS_SLAVE,
        MountPropagation::Bidirectional => libc::MS_SHARED,
    };
    set_mounts(mount, true, libc::mount_attr { attr_set: 0, attr_clr: 0, propagation, userns_fd: 0 })
}

/// Makes a mount that is open here read-only; with `recursive`, those below it too.
///
/// # Errors
/// The kernel's: `ENOSYS` before Linux 5.12.
pub fn deny_mount_writes(mount: BorrowedFd<'_>, recursive: bool) -> io::Result<()> {
    let attr_set = libc::MOUNT_ATTR_RDONLY;
    set_mounts(mount, recursive, libc::mount_attr { attr_set, attr_clr: 0, propagation: 0, userns_fd: 0 })
}

fn set_mount_attributes(mount: BorrowedFd<'_>, attr_set: u64, userns_fd: u64) -> io::Result<()> {
    set_mounts(mount, false, libc::mount_attr { attr_set, attr_clr: 0, propagation: 0, userns_fd })
}

fn set_mounts(mount: BorrowedFd<'_>, recursive: bool, attributes: libc::mount_attr) -> io::Result<()> {
    let below = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the kernel reads one `mount_attr` of the size that it is told.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | below,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives the kernel back all pages that the allocator holds and nobody uses. Takes milliseconds for hundreds of MiB; a
/// thread that allocates meanwhile waits for its part of it.
pub fn release_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the allocator's own locks, and moves nothing.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Bytes of memory that are this process's own: no file's and nobody else's. 0 where the kernel does not say.
pub fn own_memory() -> u64 {
    let Ok(pages) = std::fs::read_to_string("/proc/self/statm") else { return 0 };
    let mut pages = pages.split(' ').skip(1).map_while(|count| count.parse::<u64>().ok());
    let (all, shared) = (pages.next().unwrap_or(0), pages.next().unwrap_or(0));
    // SAFETY: it reads a number.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    all.saturating_sub(shared).saturating_mul(u64::try_from(page).unwrap_or(0))
}

/// As [`release_memory`], with the pages of the program and its libraries: what only a start needs comes back from the
/// page cache by itself, should it be needed again.
pub fn release_start() {
    release_memory();
    let Ok(smaps) = std::fs::read_to_string("/proc/self/smaps") else { return };
    for (start, end) in clean_file_mappings(&smaps) {
        let address = start as *mut libc::c_void;
        // SAFETY: the range is a file mapping without any private (changed) page, so dropping its pages loses nothing:
        // the next access reads the same bytes from the file. In small pages: one instruction would else bring 2 MiB.
        unsafe {
            libc::madvise(address, end - start, libc::MADV_NOHUGEPAGE);
            libc::madvise(address, end - start, libc::MADV_DONTNEED);
        }
    }
}

/// The read-only file mappings in which no page was changed. Relocated data (RELRO) is read-only too, but has
/// anonymous pages, in memory or swapped out, and is not among them.
fn clean_file_mappings(smaps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-') {
            let permissions = words.next().unwrap_or_default();
            let file = words.nth(3).unwrap_or_default();
            let range = usize::from_str_radix(start, 16).ok().zip(usize::from_str_radix(end, 16).ok());
            let is_candidate = permissions.starts_with('r') && !permissions.contains('w') && file.starts_with('/');
            found.extend(current.take());
            current = range.filter(|_| is_candidate);
        } else if matches!(first, "Anonymous:" | "Swap:") && words.next() != Some("0") {
            current = None;
        }
    }
    found.extend(current);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unchanged_read_only_file_pages_are_dropped() {
        let smaps = "1000-2000 r-xp 00000000 fe:00 1 /bin/x\nRss: 4 kB\nAnonymous:             0 kB\nSwap: 0 kB\n\
                     2000-3000 r--p 00000000 fe:00 1 /bin/x\nAnonymous:             4 kB\nSwap: 0 kB\n\
                     3000-4000 rw-p 00000000 fe:00 1 /bin/x\nAnonymous:             0 kB\nSwap: 0 kB\n\
                     4000-5000 r--p 00000000 00:00 0 [vvar]\nAnonymous:             0 kB\nSwap: 0 kB\n\
                     5000-6000 r--p 00000000 fe:00 1 /bin/x\nAnonymous:             0 kB\nSwap: 4 kB\n\
                     6000-7000 r--p 00000000 fe:00 1 /bin/x\nAnonymous:             0 kB\nSwap: 0 kB\n";
        assert_eq!(clean_file_mappings(smaps), [(0x1000, 0x2000), (0x6000, 0x7000)]);
    }
}
