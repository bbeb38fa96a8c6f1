//! Reclaim policy Recycle: a Released volume is emptied when nothing uses it any more (V3). Only its content goes,
//! never through a link or across a mount; the controller asks by annotation and is answered by annotation.

use std::io;
use std::path::Path;

use k8s_openapi::api::core::v1::{NFSVolumeSource, PersistentVolume};
use mainstay_api::kinds;
use mainstay_client::{Error, PatchType};
use mainstay_logic::controllers::persistentvolume::asked;
use mainstay_logic::volume::RECYCLED;
use serde_json::json;

use super::reconciler::{self, Progress};
use super::{VolumeError, blocking_at, nfs};
use crate::NodeConfig;
use crate::kubelet::Kubelet;
use mainstay_runtime::safe_path::make_private_dir;
use mainstay_runtime::safe_path::{self, mounts, remove};

/// Empties a volume and says so.
///
/// # Errors
/// What could not be emptied or noted. What is gone by then is gone; the rest is tried again.
pub async fn recycle(kubelet: &Kubelet, volume: &PersistentVolume) -> Result<Progress, VolumeError> {
    // What the watch told may be old by now: somebody may have the volume back, or another of its name. Nobody can get
    // it between this look and the emptying: it is this agent's to say that it is empty, as long as that holds the
    // node's Lease.
    let name = volume.metadata.name.clone().unwrap_or_default();
    let users = kubelet.volumes.users().clone();
    let alone = users.lock(&name).await;
    let volume = match kubelet.config.client.get(&kinds::PERSISTENT_VOLUME, "", &name).await {
        Ok(newest) => serde_json::from_value::<PersistentVolume>(newest).map_err(|error| error.to_string())?,
        Err(error) if error.is_not_found() => return Ok(Progress::Done),
        Err(error) => return Err(VolumeError::Refused(format!("failed to fetch PV {name}: {error}"))),
    };
    let Some(claim) = asked(&volume, &kubelet.config.node_name) else { return Ok(Progress::Done) };
    let spec = volume.spec.clone().unwrap_or_default();
    let uid = volume.metadata.uid.clone().unwrap_or_default();
    if !users.rests(&name).await? {
        return Ok(Progress::InUse);
    }
    reconciler::ensure_held(kubelet)?;
    let config = kubelet.config.clone();
    let (shown, target) = (
        name.clone(),
        safe_path::plain(&uid).map(|uid| nfs::recycling_place(&config.data_dir, &uid.to_string_lossy())),
    );
    let server = spec.nfs.as_ref().map_or_else(String::new, |source| source.server.clone());
    let empty = move || {
        let _alone = alone;
        match (spec.nfs, spec.host_path) {
            (Some(source), _) => {
                let source = NFSVolumeSource { server: source.server, path: source.path, read_only: Some(false) };
                let target = target.map_err(VolumeError::io("the volume's uid"))?;
                empty_export(&config, &target, &source, &spec.mount_options.unwrap_or_default())
            }
            (None, Some(path)) => empty_folder(Path::new(&path.path)),
            _ => Err(VolumeError::Refused(format!("volume \"{name}\" is of a kind that cannot be recycled"))),
        }
    };
    blocking_at(&server, empty).await?;
    done(kubelet, &volume, &shown, claim).await.map(|()| Progress::Done)
}

fn empty_export(
    config: &NodeConfig,
    target: &Path,
    source: &NFSVolumeSource,
    options: &[String],
) -> Result<(), VolumeError> {
    let parent = target.parent().unwrap_or(target);
    make_private_dir(parent).map_err(VolumeError::io("making the folder to recycle in"))?;
    nfs::at(config, target, &nfs::Export { source, options, read_only: false }, None, false)?;
    let emptied = safe_path::open_root(target).and_then(|root| remove::empty(&root));
    mounts::unmount_below(target).map_err(VolumeError::io("unmounting the recycled volume"))?;
    let removed = std::fs::remove_dir(target).and_then(|()| std::fs::remove_dir(parent));
    removed.map_err(VolumeError::io("removing the recycled volume's mount point"))?;
    emptied.map_err(VolumeError::io("emptying the volume"))
}

/// A folder of this machine. One with something mounted at or below it is left alone (V8).
pub(super) fn empty_folder(path: &Path) -> Result<(), VolumeError> {
    let shown = path.display();
    let inner = path.components().filter(|part| matches!(part, std::path::Component::Normal(_))).count();
    if !path.is_absolute() || inner < 2 || path.components().any(|part| part == std::path::Component::ParentDir) {
        // Differs: upstream's recycler would scrub a folder such as /home or /var.
        return Err(VolumeError::Refused(format!("{shown} is too close to the root to be emptied")));
    }
    let root = match safe_path::open_root(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        root => root.map_err(VolumeError::io(format!("opening {shown}")))?,
    };
    if let Some(mount) = mounts::below(path).map_err(VolumeError::io("reading what is mounted"))?.first() {
        return Err(VolumeError::Refused(format!("{} is a mount point", mount.display())));
    }
    remove::empty(&root).map_err(VolumeError::io(format!("emptying {shown}")))
}

async fn done(kubelet: &Kubelet, volume: &PersistentVolume, name: &str, claim: &str) -> Result<(), VolumeError> {
    reconciler::ensure_held(kubelet)?;
    let patch = json!({ "metadata": {
        "uid": volume.metadata.uid, "resourceVersion": volume.metadata.resource_version,
            "annotations": { (RECYCLED): claim },
    } });
    match kubelet.config.client.patch(&kinds::PERSISTENT_VOLUME, "", name, "", PatchType::Merge, &patch).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() => Ok(()),
        // Changed meanwhile: the watch brings the newer one, and an empty volume is emptied again.
        Err(Error::Status { code: 409, .. }) => Ok(()),
        Err(error) => Err(VolumeError::Refused(format!("noting on PV {name} that it is empty: {error}"))),
    }
}
