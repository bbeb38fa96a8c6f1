//! Volumes: what a pod's `volumes` are on this machine.
//!
//! Each kind is a [`Driver`]. What one has made ready is noted beside the pod, so that a restarted agent unmounts
//! nothing (V7) and a deleted volume is known to be unused (V3):
//!
//! ```text
//! <data>/pods/<uid>/volumes/<name>.json   { driver, path, read_only, volume, … }
//! <data>/pods/<uid>/volumes/<name>/       the volume itself, where it lives and dies with the pod
//! <data>/pods/<uid>/subpaths/…            bind mounts of subPaths
//! <data>/volumes/<PV>/                    provisioned PersistentVolumes: plain directories, or images ([`image`])
//! ```

mod atomic;
pub(crate) mod block;
mod claim;
mod copies;
mod export;
mod freeze;
mod growth;
mod host;
pub mod image;
mod loops;
mod nfs;
mod oci_image;
pub mod owner;
mod ownership;
mod projected;
pub mod reclaim;
pub mod reconciler;
mod recovery;
mod recycle;
mod room;
pub(crate) mod snapshots;
pub mod subpath;
#[cfg(test)]
mod tests;
pub(crate) mod threads;
mod users;

pub(crate) use freeze::freeze_main;

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Volume;
use serde::{Deserialize, Serialize};

use self::threads::{
    blocking, blocking_at, blocking_for, blocking_host, blocking_long, blocking_mount, blocking_on, blocking_owner,
};
use crate::kubelet::disk::Disk;
use crate::kubelet::environment::Dependencies;
use crate::kubelet::{Kubelet, PodContext};
use mainstay_runtime::Deadline;
use mainstay_runtime::safe_path::{make_private_dir, mounts, remove};

/// Why a volume is not ready. The texts end up in `FailedMount` events.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The system refused.
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    /// The pod asks for something that cannot be; or that is not there yet.
    #[error("{0}")]
    Refused(String),
}

impl VolumeError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

impl From<String> for VolumeError {
    fn from(message: String) -> Self {
        Self::Refused(message)
    }
}

/// What a driver is asked for.
pub struct Request<'a> {
    pub kubelet: &'a Kubelet,
    pub context: &'a PodContext,
    pub volume: &'a Volume,
    /// The volume's own folder below the pod's, for drivers that keep their data there. Not yet made.
    pub target: PathBuf,
    /// It was ready before (an agent restart, a refresh).
    pub again: bool,
    pub dependencies: &'a mut Dependencies,
}

impl Request<'_> {
    /// `fsGroup`, where the pod has one.
    fn fs_group(&self) -> Option<u32> {
        let security = self.context.spec()?.security_context.as_ref()?;
        u32::try_from(security.fs_group?).ok()
    }

    /// Whether a volume whose root has the right owner is taken to be right all through.
    fn on_root_mismatch(&self) -> bool {
        let security = self.context.spec().and_then(|spec| spec.security_context.as_ref());
        security.is_some_and(|security| security.fs_group_change_policy.as_deref() == Some("OnRootMismatch"))
    }
}

/// A volume that is ready.
#[derive(Debug, Default)]
pub struct Ready {
    pub path: PathBuf,
    pub read_only: bool,
    /// The PersistentVolume behind it.
    pub volume: Option<String>,
    /// When its content is to be looked at again.
    pub refresh_at: Option<Timestamp>,
    /// The group to which the PersistentVolume gives access: one of the pod's supplemental groups.
    pub group: Option<u32>,
    /// What is behind a volume of mode Block: the folder of an image, or a device.
    pub block: Option<PathBuf>,
}

type Answer<'a> = Pin<Box<dyn Future<Output = Result<Ready, VolumeError>> + Send + 'a>>;

/// One kind of volume. `ensure` is idempotent, also across restarts, and refreshes what is projected.
/// Taking away is the same for all: what is mounted below the pod's folder is unmounted, what is in it removed;
/// what lies elsewhere stays.
pub trait Driver: Send + Sync {
    /// For records and messages: `kubernetes.io/empty-dir`.
    fn name(&self) -> &'static str;
    /// Whether this volume is its.
    fn takes(&self, volume: &Volume) -> bool;
    /// Makes the volume ready.
    fn ensure<'a>(&'a self, request: Request<'a>) -> Answer<'a>;
}

/// All drivers; the first that takes a volume has it.
const DRIVERS: [&dyn Driver; 6] =
    [&host::EmptyDir, &host::HostPath, &projected::Projected, &claim::Claim, &nfs::Nfs, &oci_image::OciImage];

/// What is noted about a volume that was made ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub driver: String,
    pub path: PathBuf,
    pub read_only: bool,
    /// The PersistentVolume behind it.
    pub volume: Option<String>,
    /// The device (`major:minor`) of the file system that was mounted for it: what is found in its place when that is
    /// gone is an empty folder that looks like it (V6). None of a volume that is no mount of ours.
    #[serde(default)]
    pub device: Option<String>,
    /// See [`Ready::group`].
    #[serde(default)]
    pub group: Option<u32>,
    /// See [`Ready::block`].
    #[serde(default)]
    pub block: Option<PathBuf>,
}

impl Record {
    /// The image that is behind the volume, if one is.
    fn image(&self, root: &Path) -> Option<image::Image> {
        match &self.block {
            Some(folder) => image::Image::new(root, folder).ok(),
            None => image::Image::behind(root, &self.path),
        }
    }
}

/// The volumes of this node.
pub struct Volumes {
    disk: Disk,
    root: PathBuf,
    /// Where that has been before, too.
    former: Vec<PathBuf>,
    users: Arc<users::Users>,
    tokens: Mutex<BTreeMap<projected::TokenKey, projected::Token>>,
}

impl Volumes {
    /// Below this data folder.
    pub fn new(data_dir: &Path) -> Self {
        let disk = Disk::new(data_dir);
        Self {
            users: Arc::new(users::Users::new(disk.clone())),
            disk,
            former: owner::roots(&data_dir.join("volumes")),
            root: data_dir.join("volumes"),
            tokens: Mutex::default(),
        }
    }

    /// Where a provisioned volume is that was declared with this path: the data folder may have been moved since. A
    /// path that is none of a volume's here is given back as it is.
    pub fn placed(&self, path: PathBuf) -> PathBuf {
        let moved = || {
            let folder = self.former.iter().find_map(|root| path.strip_prefix(root).ok())?;
            let folder = mainstay_runtime::safe_path::plain(folder.to_str()?).ok()?;
            (folder.components().count() == 1).then(|| self.root.join(folder))
        };
        moved().unwrap_or(path)
    }

    /// Where provisioned directories are: the Node's annotation `mainstay.io/volume-root`.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Bytes that image volumes may have here, all together, in whole MiB: the Node's annotation
    /// `mainstay.io/volume-capacity`.
    pub async fn capacity(&self) -> Result<u64, VolumeError> {
        let root = self.root.clone();
        let bytes =
            blocking(move || room::bytes(&root).map_err(VolumeError::io("reading how much room there is"))).await?;
        Ok(bytes >> 20 << 20)
    }

    fn records_dir(&self, uid: &str) -> Result<PathBuf, VolumeError> {
        Ok(self.disk.pod_dir(uid).map_err(VolumeError::io("the pod's folder"))?.join("volumes"))
    }

    /// Makes a pod's volume ready; gives when its content is to be looked at again.
    pub async fn ensure(
        &self,
        kubelet: &Kubelet,
        context: &PodContext,
        volume: &Volume,
        dependencies: &mut Dependencies,
    ) -> Result<Option<Timestamp>, VolumeError> {
        if volume.name.is_empty() || volume.name.starts_with('.') || volume.name.contains('/') {
            return Err(VolumeError::Refused(format!("volume name {:?} is not a file name", volume.name)));
        }
        let driver = DRIVERS.into_iter().find(|driver| driver.takes(volume));
        let driver =
            driver.ok_or_else(|| VolumeError::Refused("this node has no driver for this kind of volume".to_owned()))?;
        let dir = self.records_dir(&context.uid)?;
        make_private_dir(&dir).map_err(VolumeError::io("making the pod's volume folder"))?;
        let record_path = dir.join(format!("{}.json", volume.name));
        let target = dir.join(&volume.name);
        let request = Request { kubelet, context, volume, target, again: record_path.exists(), dependencies };
        let ready = driver.ensure(request).await?;
        let device = self.device(&ready.path).map_err(VolumeError::io("reading what is mounted"))?;
        let record = Record {
            driver: driver.name().to_owned(),
            path: ready.path,
            read_only: ready.read_only,
            volume: ready.volume,
            device,
            group: ready.group,
            block: ready.block,
        };
        write_record(&record_path, &record).map_err(VolumeError::io("noting the volume"))?;
        if record.volume.is_some() {
            self.users.mounted();
        }
        Ok(ready.refresh_at)
    }

    /// The device of the mount of ours that a path is on, if it is on one.
    fn device(&self, path: &Path) -> io::Result<Option<String>> {
        let own = [self.disk.pods_dir(), self.root.clone()].map(|dir| dir.canonicalize().unwrap_or(dir));
        // The folder itself may be one, too (see `share`), and is none of a volume's.
        let own = |point: &Path| own.iter().any(|dir| point.starts_with(dir) && point != dir);
        Ok(mounts::holding(path)?.filter(|(point, _)| own(point)).map(|(_, device)| device))
    }

    /// What a ready volume is.
    pub fn mounted(&self, uid: &str, name: &str) -> Result<Record, VolumeError> {
        let path = self.records_dir(uid)?.join(format!("{name}.json"));
        let bytes = std::fs::read(path).map_err(VolumeError::io(format!("volume {name:?} is not mounted")))?;
        serde_json::from_slice(&bytes)
            .map_err(|error| VolumeError::Refused(format!("the note about volume {name:?}: {error}")))
    }

    /// Lets the writers go on that a crash may have left held back. For the start of a node.
    ///
    /// # Errors
    /// What is mounted could not be read.
    pub fn thaw(&self) -> io::Result<()> {
        freeze::thaw_all(&self.root)
    }

    /// Makes the folder of all pods a mount that passes on what is mounted below it, as upstream's kubelet does: on a
    /// machine whose root does not, volumes of pods are propagated nevertheless. For the start of a node.
    ///
    /// # Errors
    /// The kernel's.
    pub fn share(&self) -> io::Result<()> {
        make_private_dir(&self.disk.pods_dir())?;
        mounts::share(&self.disk.pods_dir())
    }

    /// Which PersistentVolumes are in use here.
    pub(crate) fn users(&self) -> &Arc<users::Users> {
        &self.users
    }

    /// Unmounts all of a pod's volumes and removes what was only its own.
    pub async fn unmount_pod(&self, uid: &str) -> Result<(), VolumeError> {
        let pod_dir = self.disk.pod_dir(uid).map_err(VolumeError::io("the pod's folder"))?;
        self.tokens.lock().unwrap_or_else(std::sync::PoisonError::into_inner).retain(|(pod, ..), _| pod != uid);
        let (root, volumes, users, uid) = (self.disk.pods_dir(), self.root.clone(), self.users.clone(), uid.to_owned());
        let pod = uid.clone();
        let work = move || {
            let records = users.records_of(&pod_dir).map_err(VolumeError::io("reading which volumes the pod has"))?;
            mounts::unmount_below(&pod_dir).map_err(VolumeError::io("unmounting"))?;
            for dir in ["subpaths", "volumes"] {
                match remove::tree(&root, &pod_dir.join(dir)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(VolumeError::Io { what: format!("removing the pod's {dir}"), source: error });
                    }
                    _ => {}
                }
            }
            users.end(&uid);
            Ok(records.iter().filter_map(|record| record.image(&volumes)).collect::<Vec<_>>())
        };
        for image in blocking_for(&pod, work).await? {
            self.release(image, &pod).await?;
        }
        Ok(())
    }

    /// Makes a pod's volumes well again before a container starts: those that an error below them has made read-only,
    /// and those whose file system is not mounted any more, or has not the deadline that the container gets (S13).
    ///
    /// # Errors
    /// What could not be mended; the container must not start.
    pub async fn recover(
        &self,
        kubelet: &Kubelet,
        context: &PodContext,
        deadline: Option<Deadline>,
        dependencies: &mut Dependencies,
    ) -> Result<(), VolumeError> {
        recovery::recover(kubelet, context, &self.users, &self.root).await?;
        let volumes = context.spec().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
        for volume in volumes {
            let Ok(record) = self.mounted(&context.uid, &volume.name) else { continue };
            if self.is_lost(&context.uid, record.clone()).await? {
                self.ensure(kubelet, context, volume, dependencies).await?;
                recovery::mounted_again(kubelet, context, &volume.name);
            } else if let Some(deadline) = deadline
                && self.is_outdated(kubelet, context, volume, &record, deadline)?
            {
                self.ensure(kubelet, context, volume, dependencies).await?;
            }
        }
        Ok(())
    }

    /// Whether a volume is on another machine and its mount has another deadline than what starts now, and nobody of
    /// the pod uses it: it is mounted anew. An earlier deadline may have passed and its mount not know it yet.
    fn is_outdated(
        &self,
        kubelet: &Kubelet,
        context: &PodContext,
        volume: &Volume,
        record: &Record,
        deadline: Deadline,
    ) -> Result<bool, VolumeError> {
        let target = self.records_dir(&context.uid)?.join(&volume.name);
        if record.path != target || !nfs::is_outdated(&target, deadline) {
            return Ok(false);
        }
        let is_remote = mounts::is_remote(&target).map_err(VolumeError::io("reading what is mounted"))?;
        Ok(is_remote && !kubelet.runtime.has_running(&context.uid))
    }

    /// Whether the file system of a volume is gone: cut off at a deadline, or without its client.
    async fn is_lost(&self, uid: &str, record: Record) -> Result<bool, VolumeError> {
        let Some(expected) = record.device else { return Ok(false) };
        let now = self.device(&record.path).map_err(VolumeError::io("reading what is mounted"))?;
        if now != Some(expected) {
            return Ok(true);
        }
        // A server may have to be asked for that, which may not answer.
        let look = move || {
            let looked = std::fs::symlink_metadata(&record.path);
            Ok(looked.is_err_and(|error| error.raw_os_error() == Some(libc::ENOTCONN)))
        };
        blocking_for(uid, look).await
    }

    /// Unmounts the images that nobody uses: what a crash between a pod's end and the unmounting has left. Removes what
    /// one has left half made.
    pub async fn release_unused(&self) -> Result<(), VolumeError> {
        let root = self.root.clone();
        let mounted =
            blocking(move || image::mounted(&root).map_err(VolumeError::io("reading what is mounted"))).await?;
        for image in mounted {
            let name = image.name();
            self.release(image, &name).await?;
        }
        self.remove_begun().await
    }

    /// Removes what an agent from before has begun to make and has not named: it takes room (X7).
    async fn remove_begun(&self) -> Result<(), VolumeError> {
        let root = self.root.clone();
        let begun = blocking(move || image::begun(&root).map_err(VolumeError::io("reading what was begun"))).await?;
        for image in begun {
            let alone = self.users.lock(&image.name()).await;
            blocking(move || {
                let _alone = alone;
                image.tidy().map_err(VolumeError::io(format!("removing what was begun of {}", image.name())))
            })
            .await?;
        }
        Ok(())
    }

    /// Unmounts an image after its last user, on a thread of a pod or other target. Where that fails the next user
    /// finds it mounted, which is as good.
    async fn release(&self, image: image::Image, target: &str) -> Result<(), VolumeError> {
        let (users, name) = (self.users.clone(), image.name());
        let alone = users.lock(&name).await;
        let work = move || {
            let _alone = alone;
            let result = match users.has(&name) {
                Ok(true) => return Ok(()),
                Ok(false) => image.unmount(),
                Err(error) => Err(error),
            };
            if let Err(error) = result {
                tracing::warn!(volume = name, %error, "an unused volume stays mounted");
            }
            Ok(())
        };
        blocking_for(target, work).await
    }
}

fn write_record(path: &Path, record: &Record) -> io::Result<()> {
    use std::io::Write as _;
    let bytes = serde_json::to_vec(record)?;
    if std::fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let temporary = path.with_extension("json.new");
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    std::fs::rename(temporary, path)
}
