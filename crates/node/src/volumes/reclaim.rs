//! Provisioned volumes that were deleted: the data goes when nothing uses it any more, then the finalizer (V3, V8).

use std::io;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::PersistentVolume;
use mainstay_api::{Kind, kinds};
use mainstay_client::{Error, PatchType};
use serde_json::json;

use super::claim::{self, FINALIZER, MADE_ON};
use super::image::Image;
use super::reconciler::{self, Progress};
use super::{VolumeError, blocking_long};
use crate::kubelet::Kubelet;
use mainstay_runtime::safe_path::remove;

/// Deleted, provisioned by us, on this node, and held by nobody else (V2): while another finalizer holds it, the
/// change that takes that one away brings it here again.
pub fn is_wanted(volume: &PersistentVolume, node: &str) -> bool {
    let made_on = volume.metadata.annotations.as_ref().and_then(|annotations| annotations.get(MADE_ON));
    let here = made_on.map_or_else(|| claim::reaches_node(volume, node), |made_on| made_on == node);
    let finalizers = volume.metadata.finalizers.as_deref().unwrap_or_default();
    volume.metadata.deletion_timestamp.is_some() && here && finalizers == [FINALIZER]
}

/// Removes a volume's data where its policy is Delete; then the API object may go. `seen` is what the watch said: it
/// names the volume, and no more.
///
/// # Errors
/// What could not be removed or noted; nothing outside the volume root and nothing mounted is touched.
pub async fn reclaim(kubelet: &Kubelet, seen: &PersistentVolume) -> Result<Progress, VolumeError> {
    const KIND: &Kind = &kinds::PERSISTENT_VOLUME;
    let name = seen.metadata.name.clone().unwrap_or_default();
    let (root, users) = (kubelet.volumes.root().to_owned(), kubelet.volumes.users().clone());
    let alone = users.lock(&name).await;
    let newest = reconciler::being_deleted::<PersistentVolume>(kubelet, KIND, &seen.metadata).await?;
    let Some(mut volume) = newest.filter(|volume| is_wanted(volume, &kubelet.config.node_name)) else {
        return Ok(Progress::Done);
    };
    if !users.rests(&name).await? {
        return Ok(Progress::InUse);
    }
    let spec = volume.spec.clone().unwrap_or_default();
    // Retain keeps every byte.
    let deletes = spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete");
    let path = spec.local.map(|local| local.path).or(spec.host_path.map(|path| path.path)).map(PathBuf::from);
    let path = path.map(|path| kubelet.volumes.placed(path));
    if let Some(path) = path.filter(|_| deletes) {
        let Some(metadata) = reconciler::announce(kubelet, KIND, &volume.metadata).await? else {
            return Ok(Progress::Done);
        };
        volume.metadata = metadata;
        let image = claim::is_image(&volume);
        blocking_long(&name, move || {
            let _alone = alone;
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
    drop_finalizer(kubelet, &volume, FINALIZER).await
}

/// Lets the API object go, as far as it is ours to hold.
pub(super) async fn drop_finalizer(
    kubelet: &Kubelet,
    volume: &PersistentVolume,
    ours: &str,
) -> Result<Progress, VolumeError> {
    reconciler::ensure_held(kubelet)?;
    let name = volume.metadata.name.as_deref().unwrap_or("");
    let finalizers: Vec<&String> =
        volume.metadata.finalizers.iter().flatten().filter(|finalizer| *finalizer != ours).collect();
    let patch = json!({ "metadata": {
        "uid": volume.metadata.uid, "resourceVersion": volume.metadata.resource_version, "finalizers": finalizers,
    } });
    match kubelet.config.client.patch(&kinds::PERSISTENT_VOLUME, "", name, "", PatchType::Merge, &patch).await {
        Ok(_) => Ok(Progress::Gone),
        Err(error) if error.is_not_found() => Ok(Progress::Gone),
        // Changed meanwhile: the watch brings the newer one.
        Err(Error::Status { code: 409, .. }) => Ok(Progress::Done),
        Err(error) => Err(VolumeError::Refused(format!("taking the finalizer off PV {name}: {error}"))),
    }
}
