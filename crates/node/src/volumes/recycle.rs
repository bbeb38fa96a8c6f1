//! Reclaim policy Recycle: a Released volume is emptied when nothing uses it any more (V3). Only its content goes, never
//! through a link or across a mount; the controller asks by annotation and is answered by annotation.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{NFSVolumeSource, PersistentVolume};
use mainstay_api::{ObjectKey, kinds};
use mainstay_client::{Error, Informer, ListOptions, Notice, PatchType};
use mainstay_logic::kubelet::PodEvent;
use serde_json::json;
use tokio::sync::mpsc;

use super::{VolumeError, beneath, blocking, mounts, nfs, remove};
use crate::kubelet::Kubelet;
use crate::kubelet::disk::make_private_dir;
use crate::kubelet::events::Regarding;
use mainstay_logic::controllers::persistentvolume::{RECYCLE, RECYCLE_ON, RECYCLED};

/// A volume that cannot be emptied yet is tried again after this, and whenever it changes.
const AGAIN: Duration = Duration::from_secs(5);
/// Notices that wait.
const QUEUED: usize = 16;

/// Watches the volumes until dropped.
pub async fn run(kubelet: Arc<Kubelet>) {
    let mut informer = Informer::new(kubelet.config.client.clone(), &kinds::PERSISTENT_VOLUME, "", ListOptions::default());
    let (sender, mut notices) = mpsc::channel(QUEUED);
    // `Informer::next` must not be cancelled, so it has a task of its own.
    let mut watching = tokio::task::JoinSet::new();
    watching.spawn(async move { while sender.send(informer.next().await).await.is_ok() {} });
    let mut waiting: BTreeMap<ObjectKey, PersistentVolume> = BTreeMap::new();
    loop {
        tokio::select! {
            notice = notices.recv() => match notice {
                None => return,
                Some(Notice::Put(key, value)) => {
                    waiting.remove(&key);
                    if let Ok(volume) = serde_json::from_value::<PersistentVolume>(value)
                        && asked(&volume, &kubelet.config.node_name).is_some()
                    {
                        waiting.insert(key, volume);
                    }
                }
                Some(Notice::Gone(key, _)) => drop(waiting.remove(&key)),
                Some(Notice::Synced) => continue,
            },
            () = tokio::time::sleep(AGAIN), if !waiting.is_empty() => {}
        }
        let mut left = BTreeMap::new();
        for (key, volume) in std::mem::take(&mut waiting) {
            if let Err(error) = recycle(&kubelet, &volume).await {
                tell(&kubelet, &volume, &error);
                left.insert(key, volume);
            }
        }
        waiting = left;
    }
}

/// On behalf of which claim this node is to empty a volume.
fn asked<'a>(volume: &'a PersistentVolume, node: &str) -> Option<&'a str> {
    let annotation = |name: &str| volume.metadata.annotations.as_ref()?.get(name).map(String::as_str);
    let uid = annotation(RECYCLE).filter(|uid| !uid.is_empty())?;
    let spec = volume.spec.as_ref()?;
    // The volume must still be that claim's, and still to be recycled.
    let held = spec.claim_ref.as_ref().and_then(|reference| reference.uid.as_deref()) == Some(uid);
    let policy = spec.persistent_volume_reclaim_policy.as_deref() == Some("Recycle");
    let here = annotation(RECYCLE_ON) == Some(node) && annotation(RECYCLED) != Some(uid);
    (held && policy && here && volume.metadata.deletion_timestamp.is_none()).then_some(uid)
}

fn tell(kubelet: &Kubelet, volume: &PersistentVolume, error: &VolumeError) {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (name, uid) = (text(&volume.metadata.name), text(&volume.metadata.uid));
    tracing::warn!(volume = %name, %error, "a released volume could not be emptied yet");
    let regarding = Regarding { kind: "PersistentVolume", namespace: String::new(), name, uid };
    let message = format!("Volume recycling failed: {error}");
    kubelet.events.tell(regarding, PodEvent { warning: true, reason: "VolumeFailedRecycle", message, container: None });
}

async fn recycle(kubelet: &Kubelet, volume: &PersistentVolume) -> Result<(), VolumeError> {
    let Some(claim) = asked(volume, &kubelet.config.node_name) else { return Ok(()) };
    let name = volume.metadata.name.clone().unwrap_or_default();
    if kubelet.volumes.users().has(&name).map_err(VolumeError::io("reading which volumes are in use"))? {
        return Err(VolumeError::Refused(format!("volume \"{name}\" is still mounted by a pod")));
    }
    let spec = volume.spec.clone().unwrap_or_default();
    let uid = volume.metadata.uid.clone().unwrap_or_default();
    match (spec.nfs, spec.host_path) {
        (Some(source), _) => {
            let source = NFSVolumeSource { server: source.server, path: source.path, read_only: Some(false) };
            let options = spec.mount_options.unwrap_or_default();
            let (exe, data_dir) = (kubelet.config.shim_exe.clone(), kubelet.config.data_dir.clone());
            let relative = beneath::plain(&uid).map(ToOwned::to_owned).map_err(VolumeError::io("the volume's uid"))?;
            blocking(move || {
                let place = nfs::recycling_place(&data_dir, &relative.to_string_lossy());
                empty_export(&exe, &place, &source, &options)
            })
            .await?;
        }
        (None, Some(path)) => blocking(move || empty_folder(Path::new(&path.path))).await?,
        _ => return Err(VolumeError::Refused(format!("volume \"{name}\" is of a kind that cannot be recycled"))),
    }
    done(kubelet, volume, &name, claim).await
}

fn empty_export(exe: &Path, place: &Path, source: &NFSVolumeSource, options: &[String]) -> Result<(), VolumeError> {
    let parent = place.parent().unwrap_or(place);
    make_private_dir(parent).map_err(VolumeError::io("making the folder to recycle in"))?;
    nfs::at(exe, place, source, options, false)?;
    let emptied = beneath::open_root(place).and_then(|root| remove::empty(&root));
    mounts::unmount_below(place).map_err(VolumeError::io("unmounting the recycled volume"))?;
    std::fs::remove_dir(place).map_err(VolumeError::io("removing the recycled volume's mount point"))?;
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
    let root = match beneath::open_root(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        root => root.map_err(VolumeError::io(format!("opening {shown}")))?,
    };
    if let Some(mount) = mounts::below(path).map_err(VolumeError::io("reading what is mounted"))?.first() {
        return Err(VolumeError::Refused(format!("{} is a mount point", mount.display())));
    }
    remove::empty(&root).map_err(VolumeError::io(format!("emptying {shown}")))
}

async fn done(kubelet: &Kubelet, volume: &PersistentVolume, name: &str, claim: &str) -> Result<(), VolumeError> {
    let patch = json!({ "metadata": {
        "uid": volume.metadata.uid, "resourceVersion": volume.metadata.resource_version, "annotations": { (RECYCLED): claim },
    } });
    match kubelet.config.client.patch(&kinds::PERSISTENT_VOLUME, "", name, "", PatchType::Merge, &patch).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() => Ok(()),
        // Changed meanwhile: the watch brings the newer one, and an empty volume is emptied again.
        Err(Error::Status { code: 409, .. }) => Ok(()),
        Err(error) => Err(VolumeError::Refused(format!("noting on PV {name} that it is empty: {error}"))),
    }
}
