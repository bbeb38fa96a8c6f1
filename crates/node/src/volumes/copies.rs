//! Volumes that start as a copy of other data: copied as soon as they are declared, so that a claim is bound when it
//! has what it asked for (V4), and what is done to the source from then on is nothing to it.

use k8s_openapi::api::core::v1::PersistentVolume;
use mainstay_api::kinds;
use mainstay_logic::volume::room::OVERCOMMIT;
use mainstay_logic::volume::{annotation, capacity, claim_ref, is_block, source};
use mainstay_runtime::safe_path;

use super::claim::{is_image, is_provisioned, reaches_node};
use super::export::record_event;
use super::image::Image;
use super::image::copy::Hold;
use super::reconciler::Progress;
use super::{VolumeError, blocking_long, freeze, growth};
use crate::kubelet::Kubelet;

/// Declared for a claim by this program, tied to this node, not made yet.
pub fn is_wanted(volume: &PersistentVolume, node: &str) -> bool {
    let tied = volume.spec.as_ref().is_some_and(|spec| spec.node_affinity.is_some() && spec.local.is_some());
    let declared = is_provisioned(volume) && is_image(volume) && claim_ref(volume).is_some();
    let is_going = volume.metadata.deletion_timestamp.is_some();
    source::is_copy_unmade(volume) && declared && tied && !is_going && reaches_node(volume, node)
}

/// Makes the copy, and notes on the PersistentVolume that it is there.
///
/// # Errors
/// What is to be tried again; the claim's people are told.
pub async fn copy(kubelet: &Kubelet, seen: &PersistentVolume) -> Result<Progress, VolumeError> {
    let copied = attempt(kubelet, seen).await;
    let name = seen.metadata.name.as_deref().unwrap_or("");
    match &copied {
        Ok(true) => {
            let message = format!("Successfully provisioned volume {name}");
            record_event(kubelet, seen, false, "ProvisioningSucceeded", message);
        }
        Ok(false) => {}
        Err(error) => {
            let class = seen.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref()).unwrap_or("");
            let message = format!("failed to provision volume with StorageClass \"{class}\": {error}");
            record_event(kubelet, seen, true, "ProvisioningFailed", message);
        }
    }
    copied.map(|_| Progress::Done)
}

/// Whether it was copied; not where the API says, with the volume's lock held, that nobody wants it any more: whoever
/// removes it may have been here before.
async fn attempt(kubelet: &Kubelet, seen: &PersistentVolume) -> Result<bool, VolumeError> {
    let (name, root) = (seen.metadata.name.clone().unwrap_or_default(), kubelet.volumes.root().to_owned());
    let Some(folder) = source::copy_of(seen).map(str::to_owned) else { return Ok(false) };
    let alone = kubelet.volumes.users().lock_all([name.clone(), folder.clone()]).await;
    let newest = match kubelet.config.client.get(&kinds::PERSISTENT_VOLUME, "", &name).await {
        Err(error) if error.is_not_found() => return Ok(false),
        newest => newest.map_err(|error| VolumeError::Refused(format!("failed to fetch PV {name}: {error}")))?,
    };
    let volume: PersistentVolume = serde_json::from_value(newest).map_err(|error| error.to_string())?;
    let is_same = volume.metadata.uid == seen.metadata.uid && source::copy_of(&volume) == Some(&*folder);
    let Some(local) = volume.spec.as_ref().and_then(|spec| spec.local.clone()) else { return Ok(false) };
    if !is_same || !is_wanted(&volume, &kubelet.config.node_name) {
        return Ok(false);
    }
    let (size, is_block, exe) = (capacity(&volume), is_block(&volume), kubelet.config.shim_exe.clone());
    let path = kubelet.volumes.placed(local.path.into());
    let overcommitted = annotation(&volume.metadata, OVERCOMMIT) == "true";
    blocking_long(&name, move || {
        let _alone = alone;
        let image = Image::new(&root, &path)?;
        let inside = safe_path::plain(&folder).map_err(VolumeError::io("what is to be copied"))?;
        let from = Image::new(&root, &root.join(inside))?;
        let hold = Hold { exe: &exe, limit: freeze::LIMIT };
        image.become_copy(&from, hold, u64::try_from(size).unwrap_or(0), is_block)?;
        if overcommitted { image.note_overcommitted() } else { Ok(()) }
    })
    .await?;
    growth::note(kubelet, &volume, Some(size)).await?;
    Ok(true)
}
