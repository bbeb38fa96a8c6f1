//! nfs: the kernel's client where there is one, else ours behind FUSE. Either gives up after a while instead of for
//! ever (V11), unless the volume's mountOptions ask for `hard`, which only the kernel's client can give.

use std::fs::{self, File};
use std::net::ToSocketAddrs as _;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{NFSVolumeSource, Volume};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};

use super::{Answer, Driver, Ready, Request, VolumeError, blocking_at};
use crate::NodeConfig;
use mainstay_nfs::client::{self, MountRequest, Source};
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
    let path = target.clone();
    let server = source.server.clone();
    blocking_at(&server, move || at(&config, &target, &source, &options, read_only)).await?;
    Ok(Ready { path, read_only, volume, refresh_at: None })
}

/// Mounts an export at a place. Blocks, no longer than about the soft timeout.
pub fn at(
    config: &NodeConfig,
    target: &Path,
    source: &NFSVolumeSource,
    options: &[String],
    read_only: bool,
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
        // One whose client is gone (killed, out of memory) answers ENOTCONN and is mounted anew.
        match fs::symlink_metadata(&real) {
            Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {
                let flags = MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH;
                nix::mount::umount2(&real, flags)
                    .map_err(|error| VolumeError::io("unmounting what lost its client")(error.into()))?;
            }
            _ => return Ok(()),
        }
    }
    match fs::create_dir(target) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(VolumeError::io("making the directory")(error));
        }
        _ => {}
    }
    let words: Vec<&str> =
        options.iter().flat_map(|option| option.split(',')).map(str::trim).filter(|word| !word.is_empty()).collect();
    match by_kernel(target, source, &words, read_only) {
        // No such file system, or its helper modules are missing.
        Err(Errno::ENODEV | Errno::EPROTONOSUPPORT) => {}
        Ok(()) => return Ok(()),
        Err(error) => return Err(VolumeError::io(format!("mounting {}:{}", source.server, source.path))(error.into())),
    }
    let asked = userspace_options(source, &words)?;
    let read_only = read_only || words.contains(&"ro");
    let (target, cgroup_root) = (target.to_owned(), config.cgroup_root.clone());
    client::mount(&config.shim_exe, &MountRequest { source: asked, target, read_only, cgroup_root }, alone)
        .map_err(VolumeError::Refused)
}

fn by_kernel(target: &Path, source: &NFSVolumeSource, words: &[&str], read_only: bool) -> Result<(), Errno> {
    let address = (source.server.as_str(), 0).to_socket_addrs().ok().and_then(|mut found| found.next());
    let Some(address) = address else { return Err(Errno::EHOSTUNREACH) };
    let data = kernel_options(words, address.ip());
    let flags = if read_only || words.contains(&"ro") { MsFlags::MS_RDONLY } else { MsFlags::empty() };
    let from = format!("{}:{}", source.server, source.path);
    nix::mount::mount(Some(from.as_str()), target, Some("nfs"), flags, Some(data.as_str()))
}

/// What the kernel's client is given: version 3 without locks, and an end to every call, where the volume does not say
/// otherwise.
fn kernel_options(words: &[&str], address: std::net::IpAddr) -> String {
    let named = |names: &[&str]| words.iter().any(|word| names.contains(&word.split('=').next().unwrap_or_default()));
    let mut data: Vec<String> =
        words.iter().filter(|word| !matches!(**word, "ro" | "rw")).map(|word| (*word).to_owned()).collect();
    if !named(&["vers", "nfsvers", "v"]) {
        data.push("vers=3,nolock,mountproto=tcp".to_owned());
    }
    if !named(&["hard", "soft", "softerr", "timeo", "retrans"]) {
        data.push(KERNEL_DEFAULTS.to_owned());
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
            kernel_options(&["ro"], address),
            format!("vers=3,nolock,mountproto=tcp,{KERNEL_DEFAULTS},addr=192.0.2.1")
        );
        assert_eq!(kernel_options(&["nfsvers=4.2", "hard"], address), "nfsvers=4.2,hard,addr=192.0.2.1");
        assert_eq!(kernel_options(&["timeo=30", "v=3"], address), "timeo=30,v=3,addr=192.0.2.1");
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
