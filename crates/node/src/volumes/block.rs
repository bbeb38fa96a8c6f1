//! Block devices: claims of `volumeMode: Block`, whose device containers get as it is, and local PersistentVolumes
//! whose path is a device, which is mounted where the mode is Filesystem.
//!
//! ```text
//! <data>/pods/<uid>/volumes/<name>/               a tmpfs of the pod's own, for mode Block
//! <data>/pods/<uid>/volumes/<name>/<container>    the device's node, as this container gets it
//! ```
//!
//! A node is made for each start of a container, by the number that the device has then: the machine's own node stays
//! out of the container's reach, with its owner and mode (X6).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use k8s_openapi::api::core::v1::Container;
use mainstay_runtime::BlockDevice;
use mainstay_runtime::safe_path::{self, make_private_dir, mounts};
use nix::mount::MsFlags;
use nix::sys::stat::{Mode, SFlag, mknod};
use nix::unistd::{Gid, Uid};

use super::image::{self, Image};
use super::{Record, VolumeError, blocking_for, blocking_on};
use crate::kubelet::{Kubelet, PodContext};

/// The mode of a device's node in a container: its user's and group's.
const NODE_MODE: Mode = Mode::from_bits_truncate(0o660);
/// What a device is made with where its PersistentVolume does not say, as upstream.
const DEFAULT_TYPE: &str = "ext4";
/// How much is read at both ends of a device, in bytes, before it is taken for blank: every known file system,
/// partition table or array has its mark there.
const ENDS: u64 = 16 << 20;
/// …and how much at so many places between them.
const SAMPLE: u64 = 64 << 10;
const SAMPLES: u64 = 256;

/// Whether containers of the pod use a volume otherwise than its mode allows; in upstream's words.
///
/// # Errors
/// They do.
pub fn check_use(context: &PodContext, name: &str, is_block: bool) -> Result<(), VolumeError> {
    let Some(spec) = context.spec() else { return Ok(()) };
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let is_mounted = |container: &Container| container.volume_mounts.iter().flatten().any(|mount| mount.name == name);
    let is_given = |container: &Container| container.volume_devices.iter().flatten().any(|given| given.name == name);
    let wrong = containers.into_iter().find_map(|container| match is_block {
        true => is_mounted(container).then_some(("Block", "volumeMounts")),
        false => is_given(container).then_some(("Filesystem", "volumeDevices")),
    });
    match wrong {
        Some((mode, field)) => {
            Err(VolumeError::Refused(format!("volume {name} has volumeMode {mode}, but is specified in {field}")))
        }
        None => Ok(()),
    }
}

/// A local PersistentVolume's path, for mode Block: it must be a device.
pub fn check_device(path: &Path) -> Result<(), VolumeError> {
    number(path).map(drop)
}

/// The number of the block device that a path leads to, also by a link.
fn number(path: &Path) -> Result<u64, VolumeError> {
    let found = fs::metadata(path).map_err(VolumeError::io(format!("looking for {}", path.display())))?;
    match found.file_type().is_block_device() {
        true => Ok(found.rdev()),
        false => Err(VolumeError::Refused(format!("{} is not a block device", path.display()))),
    }
}

/// Whether there is a block device.
pub fn is_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device())
}

/// The place for a pod's nodes of a device.
pub fn make_place(target: &Path) -> Result<(), VolumeError> {
    let made = make_private_dir(target).and_then(|()| mounts::nodes(target));
    made.map_err(VolumeError::io(format!("making {}", target.display())))
}

/// Makes the node that a container gets for a volume, its user's and group's. Gives its path, and which device it is.
///
/// # Errors
/// The volume is none of mode Block, or its device is gone.
pub async fn node(
    kubelet: &Kubelet,
    context: &PodContext,
    record: Record,
    container: &str,
    owner: (u32, u32),
) -> Result<(PathBuf, BlockDevice), VolumeError> {
    let Some(source) = record.block.clone() else {
        return Err(VolumeError::Refused("it is no block device".to_owned()));
    };
    let path = record.path.join(safe_path::plain(container).map_err(VolumeError::io("the container's name"))?);
    let at = path.clone();
    let make = move |device: u64| -> io::Result<BlockDevice> {
        match fs::remove_file(&at) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        mknod(&at, SFlag::S_IFBLK, Mode::empty(), device)?;
        nix::unistd::chown(&at, Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1)))?;
        fs::set_permissions(&at, std::os::unix::fs::PermissionsExt::from_mode(NODE_MODE.bits()))?;
        let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
        Ok(BlockDevice { major, minor, read_only: record.read_only })
    };
    let make = move |device| make(device).map_err(VolumeError::io("making the device's node"));
    let device = match Image::new(kubelet.volumes.root(), &source) {
        Ok(image) => {
            let name = image.name();
            let alone = kubelet.volumes.users().lock(&name).await;
            let work = move || {
                let _alone = alone;
                make(image.attach()?)
            };
            blocking_on(&name, work).await?
        }
        Err(_) => blocking_for(&context.uid, move || make(number(&source)?)).await?,
    };
    Ok((path, device))
}

/// How a device with a file system is to be mounted.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// `local.fsType`; upstream's default where it says nothing.
    pub kind: Option<String>,
    /// The PersistentVolume's `mountOptions`.
    pub options: Vec<String>,
    pub read_only: bool,
    /// It was mounted here before: a blank device is another one, and its data is gone (V5).
    pub made: bool,
}

/// Mounts a device, unless it is. A blank one gets a file system first; whether it did. One that holds anything, even
/// what nobody knows, is never formatted.
///
/// # Errors
/// What is on it is no file system of that type, cannot be repaired without a person, or is in use elsewhere.
pub fn mount(device: &Path, target: &Path, wanted: &Wanted) -> Result<bool, VolumeError> {
    let kind = wanted.kind.as_deref().filter(|kind| !kind.is_empty()).unwrap_or(DEFAULT_TYPE);
    if !kind.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return Err(VolumeError::Refused(format!("fsType {kind:?} is no file system")));
    }
    let at = |what: &str| VolumeError::io(format!("{what} {}", device.display()));
    make_private_dir(target).map_err(VolumeError::io(format!("making {}", target.display())))?;
    if mounts::is_mounted(target).map_err(VolumeError::io("reading what is mounted"))? {
        return Ok(false);
    }
    let mut formatted = false;
    // Nobody else may have it mounted, or be a part of it, while it is looked at and changed.
    match OpenOptions::new().read(true).custom_flags(libc::O_EXCL | libc::O_CLOEXEC).open(device) {
        Ok(file) => {
            let is_blank = is_blank(&file).map_err(at("reading"))?;
            drop(file);
            match is_blank {
                true => make_file_system(device, kind, wanted)?,
                false if !wanted.read_only => check(device, kind)?,
                false => {}
            }
            formatted = is_blank;
        }
        // Another pod of this node has it: it is looked after, and mounted once more.
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
        Err(error) => return Err(at("opening")(error)),
    }
    let (mut flags, data) = flags(&wanted.options);
    let mount = |flags| nix::mount::mount(Some(device), target, Some(kind), flags, Some(data.as_str()));
    flags.set(MsFlags::MS_RDONLY, flags.contains(MsFlags::MS_RDONLY) || wanted.read_only);
    let mounted = match mount(flags) {
        // Others write to it: this pod's containers are kept from that by their own mounts.
        Err(nix::errno::Errno::EBUSY) if wanted.read_only => mount(flags.difference(MsFlags::MS_RDONLY)),
        mounted => mounted,
    };
    match mounted {
        Ok(()) => Ok(formatted),
        Err(nix::errno::Errno::EBUSY) => {
            Err(VolumeError::Refused(format!("{} is in use by something else", device.display())))
        }
        Err(error) => Err(VolumeError::Refused(format!(
            "{} holds data, but no {kind} file system that can be mounted ({error}); it was not formatted. If nobody \
                needs what is on it, fill it with zeros first",
            device.display()
        ))),
    }
}

fn make_file_system(device: &Path, kind: &str, wanted: &Wanted) -> Result<(), VolumeError> {
    if wanted.made {
        return Err(VolumeError::Refused(format!(
            "{} is blank: its data was made on this node and is gone; refusing to start on an empty one",
            device.display()
        )));
    }
    if wanted.read_only {
        return Err(VolumeError::Refused(format!(
            "cannot mount unformatted disk {} as it is read-only",
            device.display()
        )));
    }
    // As upstream: no share of an ext file system is kept for root.
    let arguments: &[&str] = if is_ext(kind) { &["-q", "-F", "-m0"] } else { &[] };
    let name = format!("mkfs.{kind}");
    let code = run(&name, arguments, device)?;
    let missing = || VolumeError::Refused(format!("this node has no {name}, which the blank device needs"));
    match code.ok_or_else(missing)? {
        (0, _) => Ok(()),
        (code, said) => Err(VolumeError::Refused(format!("{name} {}: {said} (exit status {code})", device.display()))),
    }
}

/// Checks a file system of the ext family, and mends what can be mended without a person; others see to that
/// themselves when they are mounted.
fn check(device: &Path, kind: &str) -> Result<(), VolumeError> {
    /// `fsck`: errors were found and not corrected.
    const UNCORRECTED: i32 = 4;
    if !is_ext(kind) {
        return Ok(());
    }
    match run("e2fsck", &["-p"], device)? {
        Some((code, said)) if code & UNCORRECTED != 0 => Err(VolumeError::Refused(format!(
            "'fsck' found errors on device {} but could not correct them: {said}",
            device.display()
        ))),
        // What else it says (there is no such file system) the mount says, too.
        _ => Ok(()),
    }
}

fn is_ext(kind: &str) -> bool {
    matches!(kind, "ext2" | "ext3" | "ext4")
}

/// Exit code and words of a program; `None` where there is none.
fn run(name: &str, arguments: &[&str], device: &Path) -> Result<Option<(i32, String)>, VolumeError> {
    let Some(program) = image::program(name) else { return Ok(None) };
    let output = Command::new(program).args(arguments).arg(device).stdin(Stdio::null()).output();
    let output = output.map_err(VolumeError::io(format!("running {name}")))?;
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).trim().to_owned()).join(" ");
    // One that was killed has said nothing good.
    Ok(Some((output.status.code().unwrap_or(-1), said)))
}

/// Whether both ends of a device, and samples between them, are nothing but zeros.
fn is_blank(device: &File) -> io::Result<bool> {
    let size = size_of(device)?;
    if size == 0 {
        return Err(io::Error::other("it has no size"));
    }
    let ends = ENDS.min(size);
    let step = (size / SAMPLES).max(1);
    let between = (0..SAMPLES).map(|index| (index.saturating_mul(step), SAMPLE));
    for (from, length) in [(0, ends), (size.saturating_sub(ends), ends)].into_iter().chain(between) {
        if !is_zero(device, from, length.min(size.saturating_sub(from)))? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn is_zero(device: &File, mut from: u64, length: u64) -> io::Result<bool> {
    let mut piece = vec![0; SAMPLE as usize];
    let end = from.saturating_add(length);
    while from < end {
        let wanted = usize::try_from(end.saturating_sub(from)).map_or(piece.len(), |left| left.min(piece.len()));
        let read = device.read_at(piece.get_mut(..wanted).unwrap_or_default(), from)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if piece.iter().take(read).any(|byte| *byte != 0) {
            return Ok(false);
        }
        from = from.saturating_add(read as u64);
    }
    Ok(true)
}

fn size_of(device: &File) -> io::Result<u64> {
    // SAFETY: the descriptor is ours; nobody else reads by its position.
    let end = unsafe { libc::lseek(device.as_raw_fd(), 0, libc::SEEK_END) };
    u64::try_from(end).map_err(|_| io::Error::last_os_error())
}

/// How many bytes a volume of mode Block has, by what is noted of it.
pub fn size(source: &Path) -> Option<u64> {
    let image = source.join("image");
    if let Ok(found) = fs::symlink_metadata(&image) {
        return Some(found.len());
    }
    size_of(&File::open(source).ok()?).ok()
}

/// The flags that mount options mean, and what is left for the file system.
fn flags(options: &[String]) -> (MsFlags, String) {
    let (mut flags, mut data) = (MsFlags::empty(), Vec::new());
    for word in options.iter().flat_map(|option| option.split(',')).map(str::trim).filter(|word| !word.is_empty()) {
        let flag = match word {
            "ro" => MsFlags::MS_RDONLY,
            "nosuid" => MsFlags::MS_NOSUID,
            "nodev" => MsFlags::MS_NODEV,
            "noexec" => MsFlags::MS_NOEXEC,
            "sync" => MsFlags::MS_SYNCHRONOUS,
            "dirsync" => MsFlags::MS_DIRSYNC,
            "noatime" => MsFlags::MS_NOATIME,
            "nodiratime" => MsFlags::MS_NODIRATIME,
            "relatime" => MsFlags::MS_RELATIME,
            "strictatime" => MsFlags::MS_STRICTATIME,
            // What a mount is without options.
            "defaults" | "rw" | "suid" | "dev" | "exec" | "async" => MsFlags::empty(),
            other => {
                data.push(other);
                continue;
            }
        };
        flags |= flag;
    }
    (flags, data.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::loops::{self, Loop};
    use crate::volumes::tests::alone;

    const MIB: u64 = 1 << 20;

    /// A device that goes when it is dropped and not mounted.
    fn device(base: &Path, name: &str) -> (File, Loop) {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(base.join(name)).unwrap();
        file.set_len(64 * MIB).unwrap();
        let device = loops::attach(&file).unwrap();
        (file, device)
    }

    fn wanted() -> Wanted {
        Wanted { kind: None, options: vec!["noatime,errors=remount-ro".to_owned()], read_only: false, made: false }
    }

    #[test]
    fn v5_a_blank_device_gets_a_file_system_once_and_one_that_holds_anything_never() {
        alone(|base| {
            let (_file, disk) = device(base, "disk");
            let (first, second) = (base.join("first"), base.join("second"));
            let ro = Wanted { read_only: true, ..wanted() };
            let error = mount(disk.path(), &first, &ro).unwrap_err().to_string();
            assert!(error.starts_with("cannot mount unformatted disk"), "{error}");
            assert!(mount(disk.path(), &first, &wanted()).unwrap(), "it was blank");
            fs::write(first.join("row"), "ada").unwrap();
            assert!(!mount(disk.path(), &first, &wanted()).unwrap(), "it is mounted (V7)");
            // Another pod's, beside it; and after both it is the same data.
            assert!(!mount(disk.path(), &second, &wanted()).unwrap());
            assert!(!mount(disk.path(), &base.join("reader"), &ro).unwrap());
            for point in ["first", "second", "reader"] {
                nix::mount::umount(&base.join(point)).unwrap();
            }
            let made = Wanted { made: true, ..wanted() };
            assert!(!mount(disk.path(), &second, &made).unwrap());
            assert_eq!(fs::read_to_string(second.join("row")).unwrap(), "ada");
            nix::mount::umount(&second).unwrap();

            // Another disk in its place is no volume that was used here.
            let (_file, other) = device(base, "other");
            let error = mount(other.path(), &first, &made).unwrap_err().to_string();
            assert!(error.contains("is blank: its data was made on this node and is gone"), "{error}");
        });
    }

    #[test]
    fn v5_what_no_one_knows_on_a_device_is_data() {
        alone(|base| {
            for (name, at) in [("start", 0), ("ours", 5 * MIB + 7), ("middle", 32 * MIB), ("end", 64 * MIB - 1)] {
                let (file, disk) = device(base, name);
                file.write_all_at(b"x", at).unwrap();
                file.sync_all().unwrap();
                let error = mount(disk.path(), &base.join("point"), &wanted()).unwrap_err().to_string();
                assert!(error.contains("holds data, but no ext4 file system"), "{name}: {error}");
                let mut kept = [0];
                file.read_exact_at(&mut kept, at).unwrap();
                assert_eq!((kept, file.metadata().unwrap().blocks()), (*b"x", 8), "{name}: nothing else was written");
            }
        });
    }

    #[test]
    fn options_of_a_mount_are_flags_or_the_file_systems() {
        let options = ["noatime, nodev".to_owned(), "rw".to_owned(), "discard,commit=30".to_owned()];
        assert_eq!(flags(&options), (MsFlags::MS_NOATIME | MsFlags::MS_NODEV, "discard,commit=30".to_owned()));
    }
}
