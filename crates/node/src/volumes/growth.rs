//! Volumes that were asked to be larger (V10): the claim's growth raises the PersistentVolume's capacity, the node
//! makes that real and then notes it, and only then does the claim say so.

use k8s_openapi::api::core::v1::PersistentVolume;
use mainstay_api::kinds;
use mainstay_client::PatchType;
use mainstay_logic::kubelet::PodEvent;
use mainstay_logic::volume;
use mainstay_logic::volume::growth::RESIZE_ERROR;
use serde_json::json;

use super::claim::{self, MADE_ON, MADE_SIZE};
use super::image::{Growth, Image};
use super::reconciler::{self, Progress};
use super::{VolumeError, blocking_on};
use crate::kubelet::Kubelet;
use crate::kubelet::events::Regarding;

/// Whether a volume's capacity is more than was made real.
pub fn is_due(volume: &PersistentVolume) -> bool {
    claim::is_image(volume) && volume::made_size(volume).is_none_or(|made| made < volume::capacity(volume))
}

/// Whether a volume was made on this node, and is to grow.
pub fn is_wanted(kubelet: &Kubelet, volume: &PersistentVolume) -> bool {
    volume.metadata.deletion_timestamp.is_none()
        && claim::is_provisioned(volume)
        && volume::annotation(&volume.metadata, MADE_ON) == kubelet.config.node_name
        && is_due(volume)
}

/// Grows a volume that pods use. One that nobody uses grows when it is mounted next.
///
/// # Errors
/// What is to be tried again; it has been told.
pub async fn grow(kubelet: &Kubelet, volume: &PersistentVolume) -> Result<Progress, VolumeError> {
    let name = volume.metadata.name.clone().unwrap_or_default();
    let Some(local) = volume.spec.as_ref().and_then(|spec| spec.local.clone()) else { return Ok(Progress::Done) };
    let (root, users) = (kubelet.volumes.root().to_owned(), kubelet.volumes.users().clone());
    let path = kubelet.volumes.placed(local.path.into());
    let size = volume::capacity(volume);
    let alone = users.lock(&name).await;
    let shown = name.clone();
    let grown = blocking_on(&shown, move || {
        let _alone = alone;
        if !users.has(&name).map_err(VolumeError::io("reading which volumes are in use"))? {
            return Ok(Err(Progress::Done));
        }
        let image = Image::new(&root, &path)?;
        if !image.is_mounted().map_err(VolumeError::io("reading what is mounted"))? {
            // A pod is about to, perhaps with the size from before.
            return Ok(Err(Progress::InUse));
        }
        image.grow(u64::try_from(size).unwrap_or(0)).map(Ok)
    });
    let result = grown.await;
    let result = match result {
        Ok(Err(progress)) => return Ok(progress),
        Ok(Ok(Growth::Done)) => {
            // Where that is refused somebody has changed or noted the volume meanwhile: nothing to tell people.
            note(kubelet, volume, Some(size)).await?;
            Ok(Growth::Done)
        }
        Ok(Ok(growth)) => Ok(growth),
        Err(error) => Err(error),
    };
    record_event(kubelet, volume, &result);
    if let Err(error) = &result {
        note_failure(kubelet, volume, error).await;
    }
    result.map(|_| Progress::Done)
}

/// Notes on the PersistentVolume that it was made here, and how large.
///
/// # Errors
/// Where this agent does not hold its node's Lease.
/// Where somebody changed the volume meanwhile: what was made may not be what is wanted now, and is looked at again.
/// Only what is said about it may change under us: its phase does so just when its first pod starts.
pub async fn note(kubelet: &Kubelet, volume: &PersistentVolume, size: Option<i64>) -> Result<(), VolumeError> {
    reconciler::ensure_held(kubelet)?;
    let name = volume.metadata.name.as_deref().unwrap_or("");
    let client = kubelet.objects.client();
    let failed = |error| VolumeError::Refused(format!("noting on PV {name} that it was made: {error}"));
    let mut annotations = json!({ MADE_ON: kubelet.config.node_name, (RESIZE_ERROR): null });
    if let Some(size) = size {
        annotations[MADE_SIZE] = json!(size.to_string());
    }
    let mut resource_version = volume.metadata.resource_version.clone();
    loop {
        let patch = json!({ "metadata": {
            "uid": volume.metadata.uid, "resourceVersion": resource_version, "annotations": annotations,
        } });
        let error = match client.patch(&kinds::PERSISTENT_VOLUME, "", name, "", PatchType::Merge, &patch).await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        if !error.is_conflict() {
            return Err(failed(error));
        }
        let newest = client.get(&kinds::PERSISTENT_VOLUME, "", name).await.map_err(failed)?;
        let newest: PersistentVolume = serde_json::from_value(newest).map_err(|error| error.to_string())?;
        // What an agent before this one has noted here is no news either.
        let meaning = |volume: &PersistentVolume| {
            let metadata = volume.metadata.clone();
            let mut annotations = metadata.annotations.unwrap_or_default();
            annotations.retain(|name, _| name != MADE_ON && name != MADE_SIZE);
            (volume.spec.clone(), metadata.uid, metadata.deletion_timestamp, annotations)
        };
        let made_on = volume::annotation(&newest.metadata, MADE_ON);
        let elsewhere = !made_on.is_empty() && made_on != kubelet.config.node_name;
        if elsewhere || meaning(&newest) != meaning(volume) {
            return Err(failed(error));
        }
        resource_version = newest.metadata.resource_version;
    }
}

/// Notes on the PersistentVolume why it could not grow, for its claim to say. Where that fails too the next attempt
/// does it.
async fn note_failure(kubelet: &Kubelet, volume: &PersistentVolume, error: &VolumeError) {
    let (name, why) = (volume.metadata.name.as_deref().unwrap_or(""), error.to_string());
    if !kubelet.hold.is_held() || volume::annotation(&volume.metadata, RESIZE_ERROR) == why {
        return;
    }
    let patch = json!({ "metadata": { "uid": volume.metadata.uid, "annotations": { (RESIZE_ERROR): why } } });
    let noted = kubelet.objects.client().patch(&kinds::PERSISTENT_VOLUME, "", name, "", PatchType::Merge, &patch).await;
    if let Err(error) = noted {
        tracing::debug!(volume = name, %error, "why it could not grow is not noted");
    }
}

/// Tells the claim's people how its growth went.
pub fn record_event(kubelet: &Kubelet, volume: &PersistentVolume, result: &Result<Growth, VolumeError>) {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let Some(claim) = volume::claim_ref(volume) else { return };
    let regarding = Regarding {
        kind: "PersistentVolumeClaim".into(),
        namespace: text(&claim.namespace),
        name: text(&claim.name),
        uid: text(&claim.uid),
    };
    let (name, node) = (volume.metadata.name.as_deref().unwrap_or(""), &kubelet.config.node_name);
    let event = match result {
        Ok(Growth::Done) => {
            let message = format!("MountVolume.NodeExpandVolume succeeded for volume \"{name}\" {node}");
            PodEvent { warning: false, reason: "FileSystemResizeSuccessful", message, container: None }
        }
        Ok(Growth::NextMount) => {
            let message = format!(
                "volume \"{name}\" cannot grow on {node} while it is mounted (the kernel asks for CAP_SYS_RESOURCE): \
                    it grows when its pod \
                 starts again"
            );
            PodEvent { warning: true, reason: "FileSystemResizePending", message, container: None }
        }
        Err(error) => {
            let message = format!("NodeExpandVolume failed for volume \"{name}\" {node}: {error}");
            PodEvent { warning: true, reason: "VolumeResizeFailed", message, container: None }
        }
    };
    kubelet.events.record(regarding, event);
}
