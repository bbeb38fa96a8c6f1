//! What becomes of provisioned volumes here: those that shall be larger grow while they are mounted ([`growth`], V10);
//! of those that were deleted the directory goes when nothing uses it any more, then the finalizer (V3, V8).

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolume;
use mainstay_api::{ObjectKey, kinds};
use mainstay_client::{Error, Informer, ListOptions, Notice, PatchType};
use mainstay_logic::kubelet::PodEvent;
use serde_json::json;
use tokio::sync::mpsc;

use super::claim::{self, FINALIZER, MADE_ON};
use super::image::Image;
use super::{VolumeError, blocking, growth, remove};
use crate::kubelet::Kubelet;
use crate::kubelet::events::Regarding;

/// A volume that cannot be removed yet is tried again after this, and whenever it changes.
const AGAIN: Duration = Duration::from_secs(5);
/// Notices that wait.
const QUEUED: usize = 16;

/// Watches the volumes until dropped.
pub async fn run(kubelet: Arc<Kubelet>) {
    let Some(kind) = kinds::find("", "v1", "persistentvolumes") else { return };
    let mut informer = Informer::new(kubelet.config.client.clone(), kind, "", ListOptions::default());
    let (sender, mut notices) = mpsc::channel(QUEUED);
    // `Informer::next` must not be cancelled, so it has a task of its own.
    let mut watching = tokio::task::JoinSet::new();
    watching.spawn(async move { while sender.send(informer.next().await).await.is_ok() {} });
    let mut waiting: BTreeMap<ObjectKey, PersistentVolume> = BTreeMap::new();
    if let Err(error) = kubelet.volumes.release_unused().await {
        tracing::warn!(%error, "volumes that nobody uses stay mounted");
    }
    loop {
        tokio::select! {
            notice = notices.recv() => match notice {
                None => return,
                Some(Notice::Put(key, value)) => {
                    waiting.remove(&key);
                    if let Ok(volume) = serde_json::from_value::<PersistentVolume>(value)
                        && (is_ours(&volume, &kubelet.config.node_name) || growth::is_wanted(&kubelet, &volume))
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
            if volume.metadata.deletion_timestamp.is_none() {
                if growth::grow(&kubelet, &volume).await.is_err() {
                    left.insert(key, volume);
                }
            } else if let Err(error) = reclaim(&kubelet, &volume).await {
                tracing::warn!(volume = %key, %error, "a deleted volume is kept for now");
                tell(&kubelet, &volume, &error);
                left.insert(key, volume);
            }
        }
        waiting = left;
    }
}

fn tell(kubelet: &Kubelet, volume: &PersistentVolume, error: &VolumeError) {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let regarding = Regarding {
        kind: "PersistentVolume",
        namespace: String::new(),
        name: text(&volume.metadata.name),
        uid: text(&volume.metadata.uid),
    };
    let event = PodEvent { warning: true, reason: "VolumeFailedDelete", message: error.to_string(), container: None };
    kubelet.events.tell(regarding, event);
}

/// Deleted, provisioned by us, on this node, and held by nobody else (V2): while another finalizer holds it, the
/// change that takes that one away brings it here again.
fn is_ours(volume: &PersistentVolume, node: &str) -> bool {
    let made_on = volume.metadata.annotations.as_ref().and_then(|annotations| annotations.get(MADE_ON));
    let here = made_on.map_or_else(|| claim::reaches_node(volume, node), |made_on| made_on == node);
    let finalizers = volume.metadata.finalizers.as_deref().unwrap_or_default();
    volume.metadata.deletion_timestamp.is_some() && here && finalizers == [FINALIZER]
}

async fn reclaim(kubelet: &Kubelet, volume: &PersistentVolume) -> Result<(), VolumeError> {
    let name = volume.metadata.name.clone().unwrap_or_default();
    let finalizers = volume.metadata.finalizers.clone().unwrap_or_default();
    if kubelet.volumes.users().has(&name).map_err(VolumeError::io("reading which volumes are in use"))? {
        return Err(VolumeError::Refused(format!("volume \"{name}\" is still mounted by a pod")));
    }
    let spec = volume.spec.clone().unwrap_or_default();
    // Retain keeps every byte.
    if spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete") {
        let path = spec.local.map(|local| local.path).or(spec.host_path.map(|path| path.path)).map(PathBuf::from);
        if let Some(path) = path {
            let (root, image, lock) = (kubelet.volumes.root().to_owned(), claim::is_image(volume), kubelet.volumes.users().lock(&name));
            blocking(move || {
                let _alone = lock.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                if image {
                    return Image::new(&root, &path)?.delete();
                }
                match remove::tree(&root, &path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        Err(VolumeError::Io { what: format!("removing {}", path.display()), source: error })
                    }
                    _ => Ok(()),
                }
            })
            .await?;
        }
    }
    drop_finalizer(kubelet, volume, &name, finalizers).await
}

async fn drop_finalizer(kubelet: &Kubelet, volume: &PersistentVolume, name: &str, mut finalizers: Vec<String>) -> Result<(), VolumeError> {
    let Some(kind) = kinds::find("", "v1", "persistentvolumes") else { return Ok(()) };
    finalizers.retain(|finalizer| finalizer != FINALIZER);
    let patch = json!({ "metadata": {
        "uid": volume.metadata.uid, "resourceVersion": volume.metadata.resource_version, "finalizers": finalizers,
    } });
    match kubelet.config.client.patch(kind, "", name, "", PatchType::Merge, &patch).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() => Ok(()),
        // Changed meanwhile: the watch brings the newer one.
        Err(Error::Status { code: 409, .. }) => Ok(()),
        Err(error) => Err(VolumeError::Refused(format!("taking the finalizer off PV {name}: {error}"))),
    }
}
