//! nfs: the kernel's client where there is one, else ours behind FUSE. Either gives up after a while instead of for
//! ever (V11), unless the volume's mountOptions ask for `hard`, which only the kernel's client can give.

use std::fs::{self, File};
use std::net::ToSocketAddrs as _;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{NFSVolumeSource, Volume};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};

use super::{Answer, Driver, Ready, Request, VolumeError, blocking_mount};
use crate::NodeConfig;
use crate::kubelet::deadline;
use mainstay_nfs::client::{self, GuardRequest, MountRequest, Source};
use mainstay_runtime::Deadline;
use mainstay_runtime::fence::Fence;
use mainstay_runtime::safe_path::mounts;

/// After this (milliseconds) a call that the server does not answer is EIO, unless `timeo` says something else.
const SOFT_TIMEOUT_MS: u64 = 20_000;
/// The kernel's client, likewise: twice ten seconds, in tenths.
const KERNEL_DEFAULTS: &str = "softerr,timeo=100,retrans=1";

/// An export, in a pod's own volumes.
pub struct Nfs;

impl Driver for Nfs {
    fn name(&self) -> &'static str {
        "kubernetes.io/nfs"
    }

    fn takes(&self, volume: &Volume) -> bool {
        volume.nfs.is_some()
    }

    fn ensure<'a>(&'a self, request: Request<'a>) -> Answer<'a> {
        let source = request.volume.nfs.clone().unwrap_or_default();
        Box::pin(async move { mount(&request, source, Vec::new(), None, false).await })
    }
}

/// Mounts an export at the volume's place, unless it is mounted already (V7).
pub async fn mount(
    request: &Request<'_>,
    source: NFSVolumeSource,
    options: Vec<String>,
    volume: Option<String>,
    read_only: bool,
) -> Result<Ready, VolumeError> {
    let (target, config) = (request.target.clone(), request.kubelet.config.clone());
    let read_only = read_only || source.read_only == Some(true);
    let fence = deadline::fence(request.kubelet, request.context).await.map_err(VolumeError::Refused)?;
    let is_used = request.kubelet.runtime.has_running(&request.context.uid);
    let path = target.clone();
    let server = source.server.clone();
    blocking_mount(&request.context.uid, &server, move || {
        let export = Export { source: &source, options: &options, read_only };
        at(&config, &target, &export, fence.as_ref(), is_used)
    })
    .await?;
    Ok(Ready { path, read_only, volume, ..Ready::default() })
}

/// Whether what is mounted for a pod with a deadline has another one, or one of an earlier row of renewals, which may
/// have passed: it is mounted anew before a container starts on it. What has none is never.
pub fn is_outdated(target: &Path, deadline: Deadline) -> bool {
    let Ok(text) = fs::read(note_of(target)) else { return true };
    let noted: Option<Noted> = serde_json::from_slice(&text).ok();
    noted.is_none_or(|noted| noted.of != deadline || noted.has_guard && !is_guarded(target))
}

/// The deadline of a mount.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Noted {
    of: Deadline,
    /// Whether a process beside the mount keeps it: who mounted is the kernel.
    has_guard: bool,
}

/// Beside the mount: with which deadline it was made.
fn note_of(target: &Path) -> PathBuf {
    target.with_extension("deadline")
}

/// Beside the mount: locked by the guard of a mount of the kernel's client, as long as it lives.
fn guard_of(target: &Path) -> PathBuf {
    target.with_extension("guard")
}

fn is_guarded(target: &Path) -> bool {
    let lock = File::open(guard_of(target)).and_then(|file| file.try_lock().map_err(Into::into));
    lock.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

/// What is mounted, and how.
pub struct Export<'a> {
    pub source: &'a NFSVolumeSource,
    pub options: &'a [String],
    pub read_only: bool,
}

/// Mounts an export at a place. What is mounted there already stays, unless its deadline is not this one and no
/// container uses it. Blocks, no longer than about the soft timeout.
pub fn at(
    config: &NodeConfig,
    target: &Path,
    export: &Export<'_>,
    fence: Option<&Fence>,
    is_used: bool,
) -> Result<(), VolumeError> {
    // The place itself is not looked at: that would ask the server.
    let parent = target.parent().unwrap_or(target);
    // An agent that was killed may have left a client that is about to mount here: it has the lock until it has.
    let alone = File::open(parent).and_then(|folder| folder.lock().map(|()| folder));
    let alone = alone.map_err(VolumeError::io("locking the volume's folder"))?;
    let real = parent
        .canonicalize()
        .map_err(VolumeError::io("the volume's folder"))?
        .join(target.file_name().unwrap_or_default());
    if mounts::below(parent).map_err(VolumeError::io("reading what is mounted"))?.contains(&real) {
        let is_outdated = fence.is_some_and(|fence| is_outdated(target, fence.of));
        let (more, what) = match fs::symlink_metadata(&real) {
            // One whose client is gone (killed, out of memory, past its deadline) answers ENOTCONN: it is mounted anew.
            Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {
                (MntFlags::MNT_DETACH, "unmounting what lost its client")
            }
            _ if is_outdated && !is_used => (MntFlags::empty(), "unmounting what has an earlier deadline"),
            _ => return Ok(()),
        };
        nix::mount::umount2(&real, MntFlags::UMOUNT_NOFOLLOW | more)
            .map_err(|error| VolumeError::io(what)(error.into()))?;
    }
    match fs::create_dir(target) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(VolumeError::io("making the directory")(error));
        }
        _ => {}
    }
    let has_guard = mount_anew(config, target, &real, export, fence, alone)?;
    let Some(fence) = fence else { return Ok(()) };
    // Only now: a mount without its note is made anew before anything uses it.
    let noted = serde_json::to_vec(&Noted { of: fence.of, has_guard }).map_err(|error| error.to_string())?;
    let temporary = target.with_extension("deadline.new");
    fs::write(&temporary, noted)
        .and_then(|()| fs::rename(temporary, note_of(target)))
        .map_err(VolumeError::io("noting the mount's deadline"))
}

/// Whether it has a process beside it for its deadline.
fn mount_anew(
    config: &NodeConfig,
    target: &Path,
    real: &Path,
    export: &Export<'_>,
    fence: Option<&Fence>,
    alone: File,
) -> Result<bool, VolumeError> {
    let source = export.source;
    let words = export.options.iter().flat_map(|option| option.split(',')).map(str::trim);
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    let read_only = export.read_only || words.contains(&"ro");
    match by_kernel(target, source, &words, read_only, fence.is_some()) {
        // No such file system, or its helper modules are missing.
        Err(Errno::ENODEV | Errno::EPROTONOSUPPORT) => {}
        Ok(()) => {
            let Some(fence) = fence else { return Ok(false) };
            return guard(config, target, real, fence).map(|()| true);
        }
        Err(error) => return Err(VolumeError::io(format!("mounting {}:{}", source.server, source.path))(error.into())),
    }
    let asked = MountRequest {
        source: userspace_options(source, &words)?,
        target: target.to_owned(),
        read_only,
        cgroup_root: config.cgroup_root.clone(),
        fence: fence.cloned(),
    };
    client::mount(&config.shim_exe, &asked, alone).map(|()| false).map_err(VolumeError::Refused)
}

/// Gives what is mounted a process that cuts it off at its deadline; what cannot have one is not left mounted.
pub fn guard(config: &NodeConfig, target: &Path, real: &Path, fence: &Fence) -> Result<(), VolumeError> {
    let alive = File::options().create(true).append(true).open(guard_of(target));
    let alive =
        alive.and_then(|file| file.lock().map(|()| file)).map_err(VolumeError::io("locking the mount's guard"))?;
    let asked = GuardRequest { target: real.to_owned(), cgroup_root: config.cgroup_root.clone(), fence: fence.clone() };
    client::guard(&config.shim_exe, &asked, alive).map_err(|why| {
        let _ = nix::mount::umount2(real, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH);
        VolumeError::Refused(why)
    })
}

fn by_kernel(
    target: &Path,
    source: &NFSVolumeSource,
    words: &[&str],
    read_only: bool,
    is_alone: bool,
) -> Result<(), Errno> {
    let address = (source.server.as_str(), 0).to_socket_addrs().ok().and_then(|mut found| found.next());
    let Some(address) = address else { return Err(Errno::EHOSTUNREACH) };
    let data = kernel_options(words, address.ip(), is_alone);
    let flags = if read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
    let from = format!("{}:{}", source.server, source.path);
    nix::mount::mount(Some(from.as_str()), target, Some("nfs"), flags, Some(data.as_str()))
}

/// What the kernel's client is given: version 3 without locks, and an end to every call, where the volume does not say
/// otherwise. A mount that may be cut off shares nothing with others of the same export (`is_alone`).
fn kernel_options(words: &[&str], address: std::net::IpAddr, is_alone: bool) -> String {
    let named = |names: &[&str]| words.iter().any(|word| names.contains(&word.split('=').next().unwrap_or_default()));
    let is_ours = |word: &str| matches!(word, "ro" | "rw") || is_alone && matches!(word, "sharecache" | "nosharecache");
    let mut data: Vec<String> = words.iter().filter(|word| !is_ours(word)).map(|word| (*word).to_owned()).collect();
    if !named(&["vers", "nfsvers", "v"]) {
        data.push("vers=3,nolock,mountproto=tcp".to_owned());
    }
    if !named(&["hard", "soft", "softerr", "timeo", "retrans"]) {
        data.push(KERNEL_DEFAULTS.to_owned());
    }
    if is_alone {
        data.push("nosharecache".to_owned());
    }
    data.push(format!("addr={address}"));
    data.join(",")
}

/// The mountOptions that mean something to our client. What only tunes the kernel's is passed over; what would change
/// what the volume promises is refused.
pub fn userspace_options(source: &NFSVolumeSource, words: &[&str]) -> Result<Source, VolumeError> {
    let mut asked = Source {
        server: source.server.clone(),
        path: source.path.clone(),
        port: None,
        mount_port: None,
        timeout_ms: SOFT_TIMEOUT_MS,
    };
    let (mut tenths, mut retrans) = (None, 1);
    for word in words {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let number =
            || value.parse::<u32>().map_err(|_| VolumeError::Refused(format!("mount option {word:?} is not a number")));
        let port = || {
            u16::try_from(number()?).map_err(|_| VolumeError::Refused(format!("mount option {word:?} is not a port")))
        };
        match name {
            "port" => asked.port = Some(port()?),
            "mountport" => asked.mount_port = Some(port()?),
            "timeo" => tenths = Some(number()?),
            "retrans" => retrans = number()?,
            "vers" | "nfsvers" if !value.starts_with('3') => {
                return Err(VolumeError::Refused(format!(
                    "mount option {word:?}: this machine's kernel has no NFS client, and the userspace client speaks \
                        version 3"
                )));
            }
            "sec" if value != "sys" => {
                return Err(VolumeError::Refused(format!(
                    "mount option {word:?} is not supported without a kernel client"
                )));
            }
            _ => {}
        }
    }
    if let Some(tenths) = tenths {
        asked.timeout_ms = u64::from(tenths) * 100 * (u64::from(retrans) + 1);
    }
    Ok(asked)
}

/// Where exports are mounted to be emptied.
pub fn recycling_place(data_dir: &Path, uid: &str) -> PathBuf {
    data_dir.join("recycle").join(uid).join("volume")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v11_the_kernels_client_gives_up_too_unless_the_volume_says_otherwise() {
        let address = "192.0.2.1".parse().unwrap();
        assert_eq!(
            kernel_options(&["ro"], address, false),
            format!("vers=3,nolock,mountproto=tcp,{KERNEL_DEFAULTS},addr=192.0.2.1")
        );
        let asked = |words: &[&str], is_alone| kernel_options(words, address, is_alone);
        assert_eq!(asked(&["nfsvers=4.2", "hard"], false), "nfsvers=4.2,hard,addr=192.0.2.1");
        assert_eq!(asked(&["timeo=30", "v=3"], false), "timeo=30,v=3,addr=192.0.2.1");
        let alone = "timeo=30,v=3,nosharecache,addr=192.0.2.1";
        assert_eq!(asked(&["timeo=30", "v=3", "sharecache"], true), alone, "S13: cut off alone");
    }

    #[test]
    fn mount_options_mean_what_they_say() {
        let source = NFSVolumeSource { server: "192.0.2.1".into(), path: "/e".into(), read_only: None };
        let asked =
            userspace_options(&source, &["port=2050", "mountport=2051", "timeo=50", "retrans=2", "noatime", "vers=3"])
                .unwrap();
        assert_eq!((asked.port, asked.mount_port, asked.timeout_ms), (Some(2050), Some(2051), 15_000));
        assert_eq!(userspace_options(&source, &[]).unwrap().timeout_ms, SOFT_TIMEOUT_MS);
        for bad in ["vers=4.2", "nfsvers=4", "port=x", "port=70000", "sec=krb5p"] {
            assert!(userspace_options(&source, &[bad]).is_err(), "{bad}");
        }
    }
}
