//! What is mounted, read from the kernel: the only truth about mounts there is.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags};

/// All mount points at or below a folder, in the order in which they were made.
pub fn below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let dir = match dir.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        dir => dir?,
    };
    let text = std::fs::read("/proc/thread-self/mountinfo")?;
    let points =
        text.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4)).map(unescape);
    Ok(points.filter(|point| point.starts_with(&dir)).collect())
}

/// Whether something is mounted right here.
pub fn is_mounted(path: &Path) -> io::Result<bool> {
    let Ok(path) = path.canonicalize() else { return Ok(false) };
    Ok(below(&path)?.contains(&path))
}

/// A file system that is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// Where, in this mount namespace, in the order in which it was mounted there.
    pub points: Vec<PathBuf>,
    /// Its own options (not those of one mount): `rw,errors=remount-ro`.
    pub options: String,
}

impl FileSystem {
    /// Whether it takes no writes any more: mounted so, or because the kernel met an error on it.
    pub fn is_read_only(&self) -> bool {
        self.options.split(',').any(|option| matches!(option, "ro" | "emergency_ro" | "shutdown"))
    }
}

/// The file system that is mounted right here, if one is.
pub fn file_system(path: &Path) -> io::Result<Option<FileSystem>> {
    let Ok(path) = path.canonicalize() else { return Ok(None) };
    let text = std::fs::read("/proc/thread-self/mountinfo")?;
    Ok(file_system_in(&text, &path))
}

fn file_system_in(text: &[u8], path: &Path) -> Option<FileSystem> {
    // Number, parent, device, root, mount point, mount's options, any tags, "-", type, source, file system's options.
    let lines: Vec<Vec<&[u8]>> =
        text.split(|byte| *byte == b'\n').map(|line| line.split(|byte| *byte == b' ').collect()).collect();
    let point = |line: &Vec<&[u8]>| line.get(4).copied().map(unescape);
    // Of several mounts in one place the last is seen.
    let here = lines.iter().rev().find(|line| point(line).as_deref() == Some(path))?;
    let options = here.iter().rposition(|word| *word == b"-").and_then(|dash| here.get(dash + 3))?;
    let points = lines.iter().filter(|line| line.get(2) == here.get(2)).filter_map(point).collect();
    Some(FileSystem { points, options: String::from_utf8_lossy(options).into_owned() })
}

/// The mount that a path is on: where it is mounted, and the device of its file system (`major:minor`).
///
/// The path itself is not looked at, only the names that lead to it: that would ask a file server.
pub fn holding(path: &Path) -> io::Result<Option<(PathBuf, String)>> {
    let Some(path) = canonical_parent(path)? else { return Ok(None) };
    Ok(holding_in(&std::fs::read("/proc/thread-self/mountinfo")?, &path))
}

/// Whether a mount passes on what is mounted below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    Private,
    /// It gets what is mounted elsewhere.
    Slave,
    /// In both directions.
    Shared,
}

/// The mount that a path is on, and whether it passes on what is mounted below it.
///
/// The path itself is not looked at.
pub fn sharing(path: &Path) -> io::Result<Option<(PathBuf, Sharing)>> {
    let Some(path) = canonical_parent(path)? else { return Ok(None) };
    Ok(sharing_in(&std::fs::read("/proc/thread-self/mountinfo")?, &path))
}

fn sharing_in(text: &[u8], path: &Path) -> Option<(PathBuf, Sharing)> {
    let mut found: Option<(PathBuf, Sharing)> = None;
    for line in text.split(|byte| *byte == b'\n') {
        let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let Some(point) = words.get(4).copied().map(unescape) else { continue };
        let tags = words.iter().skip(6).take_while(|word| **word != b"-");
        let sharing = tags.fold(Sharing::Private, |sharing, tag| match sharing {
            Sharing::Shared => sharing,
            _ if tag.starts_with(b"shared:") => Sharing::Shared,
            _ if tag.starts_with(b"master:") => Sharing::Slave,
            other => other,
        });
        let is_nearer = found.as_ref().is_none_or(|(nearest, _)| point.starts_with(nearest));
        if is_nearer && path.starts_with(&point) {
            found = Some((point, sharing));
        }
    }
    found
}

/// Makes a folder, which must be there, a mount that passes on what is mounted below it, where it is on none: as
/// upstream's kubelet does with its own. Nothing happens while something is mounted below it that would be hidden.
pub fn share(dir: &Path) -> io::Result<()> {
    let dir = dir.canonicalize()?;
    // The folder itself may be the mount.
    if matches!(sharing(&dir)?, Some((_, Sharing::Shared))) {
        return Ok(());
    }
    let below = below(&dir)?;
    if below.is_empty() {
        nix::mount::mount(Some(&dir), &dir, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    } else if !below.contains(&dir) {
        return Ok(());
    }
    nix::mount::mount(None::<&str>, &dir, None::<&str>, MsFlags::MS_SHARED, None::<&str>).map_err(io::Error::from)
}

/// The device of what is mounted right here, if anything is. The path itself is not looked at.
pub fn device_at(path: &Path) -> io::Result<Option<String>> {
    let Some(path) = canonical_parent(path)? else { return Ok(None) };
    let found = holding_in(&std::fs::read("/proc/thread-self/mountinfo")?, &path);
    Ok(found.filter(|(point, _)| *point == path).map(|(_, device)| device))
}

fn canonical_parent(path: &Path) -> io::Result<Option<PathBuf>> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(None) };
    match parent.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        parent => Ok(Some(parent?.join(name))),
    }
}

fn holding_in(text: &[u8], path: &Path) -> Option<(PathBuf, String)> {
    let mut found: Option<(PathBuf, String)> = None;
    for (point, device) in devices(text) {
        // Of several mounts in one place the last is seen.
        let is_nearer = found.as_ref().is_none_or(|(nearest, _)| point.starts_with(nearest));
        if is_nearer && path.starts_with(&point) {
            found = Some((point, device));
        }
    }
    found
}

/// The mount points of a namespace and the devices of their file systems, in the order in which they were made.
fn devices(text: &[u8]) -> impl Iterator<Item = (PathBuf, String)> {
    text.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut words = line.split(|byte| *byte == b' ');
        let device = String::from_utf8_lossy(words.nth(2)?).into_owned();
        Some((words.nth(1).map(unescape)?, device))
    })
}

/// Which of these devices is mounted less often in a process's namespace than it is named here.
pub fn missing(pid: i32, expected: &[String]) -> io::Result<Option<String>> {
    if expected.is_empty() {
        return Ok(None);
    }
    Ok(missing_in(&std::fs::read(format!("/proc/{pid}/mountinfo"))?, expected))
}

fn missing_in(text: &[u8], expected: &[String]) -> Option<String> {
    let mut wanted: BTreeMap<&str, usize> = BTreeMap::new();
    for device in expected {
        *wanted.entry(device).or_default() += 1;
    }
    for (_, device) in devices(text) {
        if let Some(left) = wanted.get_mut(&*device) {
            *left = left.saturating_sub(1);
        }
    }
    wanted.into_iter().find(|(_, left)| *left > 0).map(|(device, _)| device.to_owned())
}

/// File systems whose bytes are on another machine, by the kernel's names.
const REMOTE: [&[u8]; 3] = [b"nfs", b"nfs4", b"fuse.mainstay-nfs"];
/// Where the kernel's NFS client (since Linux 6.5) has a folder for each file system, by its device. Writing to
/// `shutdown` in it makes every call fail from then on; the force alone ends only those that are under way.
const SWITCHES: &str = "/sys/fs/nfs";

/// Gives up what is still on its way to another machine for one of these paths, and all that would follow: the file
/// system fails from now on, in every mount namespace. Nothing is asked of the other machine.
///
/// The kernel's NFS client before Linux 6.5 goes on with what it had not begun to send: it is to be cut off again as
/// long as it is there.
pub fn cut_off(paths: &[PathBuf]) {
    let text = std::fs::read("/proc/thread-self/mountinfo").unwrap_or_default();
    let meant = |point: &Path| paths.iter().any(|path| path.starts_with(point));
    for (point, device) in remote_in(&text).into_iter().filter(|(point, _)| meant(point)) {
        shut_down(Path::new(SWITCHES), &device);
        // That it is still in use is what is expected; the force is what matters.
        let _ = nix::mount::umount2(&point, MntFlags::MNT_FORCE | MntFlags::UMOUNT_NOFOLLOW);
    }
}

/// Whether the kernel's NFS client still has this file system, mounted or not. Known since Linux 6.5.
pub fn is_known_to_nfs(device: &str) -> bool {
    Path::new(SWITCHES).join(device).exists()
}

fn shut_down(switches: &Path, device: &str) {
    let switch = std::fs::File::options().write(true).open(switches.join(device).join("shutdown"));
    // Where there is none, there is the force.
    let _ = switch.and_then(|mut switch| io::Write::write_all(&mut switch, b"1"));
}

/// Whether a path is on a file system whose bytes are on another machine. The path itself is not looked at.
pub fn is_remote(path: &Path) -> io::Result<bool> {
    let Some((point, _)) = holding(path)? else { return Ok(false) };
    Ok(remote_in(&std::fs::read("/proc/thread-self/mountinfo")?).iter().any(|(remote, _)| *remote == point))
}

/// The remote file systems of a namespace: where they are mounted, and their devices.
fn remote_in(text: &[u8]) -> Vec<(PathBuf, String)> {
    let remote = text.split(|byte| *byte == b'\n').filter_map(|line| {
        let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let kind = words.iter().position(|word| *word == b"-").and_then(|dash| words.get(dash + 1))?;
        let device = String::from_utf8_lossy(words.get(2)?).into_owned();
        words.get(4).filter(|_| REMOTE.contains(kind)).map(|point| (unescape(point), device))
    });
    remote.collect()
}

/// Returns when a file system is not mounted right here any more. The path itself is not looked at.
///
/// # Errors
/// What is mounted cannot be read.
pub fn wait_until_gone(path: &Path, device: &str) -> io::Result<()> {
    let mut table = std::fs::File::open("/proc/thread-self/mountinfo")?;
    loop {
        let mut text = Vec::new();
        io::Seek::rewind(&mut table)?;
        io::Read::read_to_end(&mut table, &mut text)?;
        if !devices(&text).any(|(point, here)| point == path && here == device) {
            return Ok(());
        }
        let mut polled = libc::pollfd { fd: table.as_raw_fd(), events: libc::POLLPRI, revents: 0 };
        // SAFETY: one valid entry. The kernel compares with what was there when it was asked last.
        unsafe { libc::poll(&raw mut polled, 1, -1) };
    }
}

/// The kernel writes blanks, line ends and backslashes as three octal digits: `/a\040b`.
fn unescape(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let code =
            after.get(..3).filter(|digits| *first == b'\\' && digits.iter().all(|digit| (b'0'..=b'7').contains(digit)));
        match code {
            Some(digits) => {
                bytes.push(digits.iter().fold(0u8, |code, digit| code.wrapping_mul(8).wrapping_add(digit - b'0')));
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// Unmounts everything at or below a folder, newest first. What is still used is an error, never torn away.
pub fn unmount_below(dir: &Path) -> io::Result<()> {
    for point in below(dir)?.into_iter().rev() {
        match nix::mount::umount2(&point, MntFlags::UMOUNT_NOFOLLOW) {
            // Gone meanwhile.
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
            Err(error) => {
                return Err(io::Error::new(io::Error::from(error).kind(), format!("{}: {error}", point.display())));
            }
        }
    }
    Ok(())
}

/// Mounts a tmpfs for device nodes, root's alone, unless one is there.
pub fn nodes(path: &Path) -> io::Result<()> {
    if is_mounted(path)? {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    nix::mount::mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some("mode=700,size=64k,nr_inodes=4k"))
        .map_err(io::Error::from)
}

/// Mounts a tmpfs, unless one is there. `size` in bytes; without one the kernel's default, half of memory.
pub fn tmpfs(path: &Path, mode: u32, size: Option<u64>) -> io::Result<()> {
    if is_mounted(path)? {
        return Ok(());
    }
    let mut options = format!("mode={mode:o}");
    if let Some(size) = size {
        options.push_str(&format!(",size={size}"));
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    nix::mount::mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options.as_str())).map_err(io::Error::from)
}

/// Binds a file or folder to a place.
pub fn bind(source: &str, target: &Path) -> io::Result<()> {
    nix::mount::mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s13_remote_file_systems_are_known_by_the_kernels_names() {
        let text = b"70 25 0:50 / /data/pods/u1/a\\040b rw shared:1 - fuse.mainstay-nfs 10.0.0.1:/e rw\n\
            71 25 0:51 / /data/pods/u1/local rw - ext4 /dev/loop0 rw\n\
            72 25 0:52 / /data/pods/u1/kernel rw - nfs 10.0.0.1:/e rw\n";
        let points: Vec<PathBuf> = remote_in(text).into_iter().map(|(point, _)| point).collect();
        assert_eq!(points, [PathBuf::from("/data/pods/u1/a b"), PathBuf::from("/data/pods/u1/kernel")]);
        // What the kernel's client is switched off by.
        let switches = tempfile::tempdir().unwrap();
        std::fs::create_dir(switches.path().join("0:52")).unwrap();
        let switch = switches.path().join("0:52/shutdown");
        std::fs::write(&switch, "0").unwrap();
        for (_, device) in remote_in(text) {
            shut_down(switches.path(), &device);
        }
        assert_eq!(std::fs::read_to_string(switch).unwrap(), "1");
        assert!(!switches.path().join("0:50").exists());
    }

    #[test]
    fn a_file_system_is_found_by_its_device() {
        let text = b"22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n\
            30 22 7:3 / /v/fs rw,nodev - ext4 /dev/loop3 rw,emergency_ro\n\
            31 22 7:3 /data/a /p/sub\\040path rw master:1 propagate_from:2 - ext4 /dev/loop3 rw,emergency_ro\n";
        let found = file_system_in(text, Path::new("/v/fs")).unwrap();
        assert_eq!(found.points, [Path::new("/v/fs"), Path::new("/p/sub path")]);
        assert!(found.is_read_only());
        assert!(!file_system_in(text, Path::new("/")).unwrap().is_read_only());
        assert_eq!(file_system_in(text, Path::new("/v")), None);
    }

    #[test]
    fn v6_a_path_is_on_the_nearest_mount_and_a_namespace_has_each_as_often_as_it_should() {
        let text = b"22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n\
            30 22 0:50 / /p/a rw - fuse.mainstay-nfs 10.0.0.1:/e rw\n\
            31 22 0:51 / /p/ab rw - tmpfs tmpfs rw\n\
            32 30 0:52 / /p/a rw - fuse.mainstay-nfs 10.0.0.1:/e rw\n";
        let held = |path: &str| holding_in(text, Path::new(path)).map(|(_, device)| device).unwrap_or_default();
        assert_eq!([held("/p/a"), held("/p/a/b"), held("/p/ab"), held("/p")], ["0:52", "0:52", "0:51", "8:1"]);
        let lacks = |devices: &[&str]| missing_in(text, &devices.iter().map(|&one| one.to_owned()).collect::<Vec<_>>());
        assert_eq!(lacks(&["0:50", "0:51", "8:1"]), None);
        assert_eq!(lacks(&["0:51", "0:51"]).as_deref(), Some("0:51"), "two are expected, one is there");
        assert_eq!(lacks(&["0:99"]).as_deref(), Some("0:99"));
    }

    #[test]
    fn x8_a_path_is_as_shared_as_the_nearest_mount() {
        let text = b"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
            30 22 8:1 /p /p rw shared:7 master:1 - ext4 /dev/sda1 rw\n\
            31 30 0:51 / /p/slave rw master:3 propagate_from:2 - tmpfs tmpfs rw\n\
            32 30 0:52 / /p/private rw - tmpfs shared:1 rw\n";
        let sharing = |path: &str| sharing_in(text, Path::new(path)).unwrap();
        assert_eq!(sharing("/x"), ("/".into(), Sharing::Private));
        assert_eq!(sharing("/p/a"), ("/p".into(), Sharing::Shared));
        assert_eq!(sharing("/p/slave"), ("/p/slave".into(), Sharing::Slave));
        assert_eq!(sharing("/p/private/a"), ("/p/private".into(), Sharing::Private));
    }

    #[test]
    fn octal_escapes_are_read() {
        for (text, path) in [("/a\\040b", "/a b"), ("/a\\134", "/a\\"), ("/a\\04", "/a\\04"), ("/plain", "/plain")] {
            assert_eq!(unescape(text.as_bytes()), Path::new(path));
        }
    }
}
