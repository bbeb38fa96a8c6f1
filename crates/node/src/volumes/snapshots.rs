//! Snapshots of provisioned volumes: taken, looked for and removed here, as their VolumeSnapshotContents say.
//!
//! ```text
//! <volume root>/snapshot-<uid of the content>/image   the copy; it has its name when it is whole and on the disk
//! ```
//!
//! A content names this node in an annotation, and gets its answer in the status. A copy is taken once: what has its
//! name is of the moment that the snapshot stands for, also where a crash has kept that from being told. A volume that
//! was removed meanwhile, or never mounted, gives an error and no copy. Removal is a volume's (V3, V8).

mod group;

use std::io;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PersistentVolume;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mainstay_api::snapshots::VolumeSnapshotContent;
use mainstay_api::{Kind, kinds, time};
use mainstay_client::{Error, PatchType};
use mainstay_logic::kubelet::PodEvent;
use mainstay_logic::volume::source::{self, SNAPSHOT_ON};
use mainstay_logic::volume::{BUILT_IN, annotation};
use serde_json::{Value, json};

use super::claim::{self, FINALIZER, MADE_ON};
use super::image::Image;
use super::image::copy::{self, Copy, Hold};
use super::reconciler::{self, Progress};
use super::{VolumeError, blocking_long, freeze};
use crate::kubelet::Kubelet;
use crate::kubelet::events::Regarding;

const KIND: &Kind = &kinds::VOLUME_SNAPSHOT_CONTENT;
/// What the messages of upstream's snapshotter begin with.
const FAILED: &str = "Failed to check and update snapshot content: ";

/// Watches the contents until dropped.
pub async fn run(kubelet: Arc<Kubelet>) {
    let single = reconciler::each(kubelet.clone(), &kinds::VOLUME_SNAPSHOT_CONTENT, is_wanted, |kubelet, content| {
        Box::pin(async move { attempt(&kubelet, &content).await })
    });
    tokio::join!(single, group::run(kubelet));
}

fn is_wanted(kubelet: &Kubelet, content: &VolumeSnapshotContent) -> bool {
    wants(kubelet, &content.metadata, &content.spec.driver, is_ready(content))
}

/// Whether a content wants something of this node.
fn wants(kubelet: &Kubelet, metadata: &ObjectMeta, driver: &str, is_ready: bool) -> bool {
    let here = annotation(metadata, SNAPSHOT_ON) == kubelet.config.node_name && BUILT_IN.contains(&driver);
    here && if metadata.deletion_timestamp.is_some() { is_removable(metadata) } else { !is_ready }
}

/// Held by nobody but this node (V2).
fn is_removable(metadata: &ObjectMeta) -> bool {
    metadata.finalizers.as_deref().unwrap_or_default() == [FINALIZER]
}

fn is_ready(content: &VolumeSnapshotContent) -> bool {
    content.status.as_ref().is_some_and(|status| status.ready_to_use == Some(true))
}

async fn attempt(kubelet: &Kubelet, content: &VolumeSnapshotContent) -> Result<Progress, VolumeError> {
    if content.metadata.deletion_timestamp.is_some() {
        let result = match is_removable(&content.metadata) {
            true => remove(kubelet, content).await,
            false => Ok(Progress::Done),
        };
        return removed(kubelet, KIND, &content.metadata, result);
    }
    if is_ready(content) {
        return Ok(Progress::Done);
    }
    let made = match content.spec.source.volume_handle.as_deref() {
        Some(volume) => take(kubelet, content, volume).await,
        None => look(kubelet, content).await,
    };
    let said = content.status.as_ref().and_then(|status| status.error.as_ref()?.message.as_deref());
    answer(kubelet, KIND, &content.metadata, made, said).await
}

/// What became of a removal: a failure is told and tried again.
fn removed(
    kubelet: &Kubelet,
    kind: &Kind,
    metadata: &ObjectMeta,
    result: Result<Progress, VolumeError>,
) -> Result<Progress, VolumeError> {
    result.inspect_err(|error| {
        record_event(kubelet, kind, metadata, "SnapshotDeleteError", format!("Failed to delete snapshot: {error}"));
    })
}

/// Writes what came of it into a content's status; `said` is the error that stands there.
async fn answer(
    kubelet: &Kubelet,
    kind: &Kind,
    metadata: &ObjectMeta,
    made: Result<Value, VolumeError>,
    said: Option<&str>,
) -> Result<Progress, VolumeError> {
    match made {
        Ok(status) => patch_status(kubelet, kind, metadata, status).await.map(|()| Progress::Done),
        Err(error) => {
            let message = format!("{FAILED}{error}");
            if said != Some(message.as_str()) {
                record_event(kubelet, kind, metadata, "SnapshotContentCheckandUpdateFailed", message.clone());
                let now = time::rfc3339(Timestamp::now());
                patch_status(
                    kubelet,
                    kind,
                    metadata,
                    json!({ "readyToUse": false, "error": { "message": message, "time": now } }),
                )
                .await?;
            }
            Err(error)
        }
    }
}

/// What a content's status says of a copy that is there.
fn found(kubelet: &Kubelet, image: &Image) -> Result<Option<Value>, VolumeError> {
    let Some((moment, size)) = image.moment().map_err(VolumeError::io("looking for the copy"))? else {
        return Ok(None);
    };
    let nanos = Timestamp::try_from(moment).map_or(0, Timestamp::as_nanosecond);
    let handle = source::handle(&kubelet.config.node_name, &image.name());
    Ok(Some(json!({ "snapshotHandle": handle, "creationTime": i64::try_from(nanos).unwrap_or(0), "restoreSize": size,
            "readyToUse": true,
        "error": null })))
}

/// The place of a copy.
fn image_of(kubelet: &Kubelet, folder: &str) -> Result<Image, VolumeError> {
    let root = kubelet.volumes.root();
    Image::new(root, &root.join(folder))
}

/// Takes the snapshot of a volume, unless it was taken already.
async fn take(kubelet: &Kubelet, content: &VolumeSnapshotContent, volume: &str) -> Result<Value, VolumeError> {
    let to = image_of(kubelet, &source::folder(content.metadata.uid.as_deref().unwrap_or("")))?;
    if let Some(status) = found(kubelet, &to)? {
        return Ok(status);
    }
    let from = volume_image(kubelet, volume).await?;
    let (target, exe) = (to.clone(), kubelet.config.shim_exe.clone());
    let alone = kubelet.volumes.users().lock_all([from.name(), target.name()]).await;
    blocking_long(volume, move || {
        let _alone = alone;
        copy::snapshots(&[Copy { from: &from, to: &target }], Hold { exe: &exe, limit: freeze::LIMIT })
    })
    .await
    .map_err(|error| VolumeError::Refused(format!("failed to take snapshot of the volume {volume}: {error}")))?;
    found(kubelet, &to)?.ok_or_else(|| VolumeError::Refused("the copy is gone".to_owned()))
}

/// The image of a volume that was made here.
async fn volume_image(kubelet: &Kubelet, name: &str) -> Result<Image, VolumeError> {
    let value = kubelet.objects.get(&kinds::PERSISTENT_VOLUME, "", name).await;
    let value = value.map_err(|error| VolumeError::Refused(format!("failed to fetch PV {name}: {error}")))?;
    let volume: PersistentVolume = serde_json::from_value(value).map_err(|error| error.to_string())?;
    let made_here = annotation(&volume.metadata, MADE_ON) == kubelet.config.node_name;
    let local = volume.spec.as_ref().and_then(|spec| spec.local.clone());
    match local.filter(|_| made_here && claim::is_provisioned(&volume) && claim::is_image(&volume)) {
        Some(local) => Image::new(kubelet.volumes.root(), &kubelet.volumes.placed(local.path.into())),
        None => Err(VolumeError::Refused(format!("volume \"{name}\" is not an image of this node"))),
    }
}

/// Looks for a copy that is said to be here.
async fn look(kubelet: &Kubelet, content: &VolumeSnapshotContent) -> Result<Value, VolumeError> {
    let handle = content.spec.source.snapshot_handle.as_deref().unwrap_or("");
    let missing = || VolumeError::Refused(format!("there is no snapshot \"{handle}\" on this node"));
    let copy = source::of_handle(handle).filter(|copy| copy.node == kubelet.config.node_name).ok_or_else(missing)?;
    found(kubelet, &image_of(kubelet, copy.folder)?)?.ok_or_else(missing)
}

/// Removes a copy whose content was deleted, as the API says now (A10); then the content may go. Retain is the
/// controller's: it leaves us nothing.
async fn remove(kubelet: &Kubelet, seen: &VolumeSnapshotContent) -> Result<Progress, VolumeError> {
    let folder = folder_of(seen);
    let alone = kubelet.volumes.users().lock(&folder).await;
    let newest = reconciler::being_deleted::<VolumeSnapshotContent>(kubelet, KIND, &seen.metadata).await?;
    let Some(mut content) = newest.filter(|content| is_removable(&content.metadata)) else { return Ok(Progress::Done) };
    if content.spec.deletion_policy == "Delete" {
        if folder_of(&content) != folder {
            return Err(VolumeError::Refused("it was changed meanwhile".to_owned()));
        }
        let Some(metadata) = reconciler::announce(kubelet, KIND, &content.metadata).await? else {
            return Ok(Progress::Done);
        };
        content.metadata = metadata;
        let image = image_of(kubelet, &folder)?;
        blocking_long(&folder, move || {
            let _alone = alone;
            image.delete()
        })
        .await?;
    }
    release(kubelet, KIND, &content.metadata).await
}

/// The folder of a content's copy.
fn folder_of(content: &VolumeSnapshotContent) -> String {
    let own = || source::folder(content.metadata.uid.as_deref().unwrap_or(""));
    source::of_handle(source::content_handle(content)).map_or_else(own, |copy| copy.folder.to_owned())
}

/// Takes the node's finalizer, the last one, off a content.
async fn release(kubelet: &Kubelet, kind: &Kind, metadata: &ObjectMeta) -> Result<Progress, VolumeError> {
    let patch =
        json!({ "metadata": { "uid": metadata.uid, "resourceVersion": metadata.resource_version, "finalizers": [] } });
    let is_written = patched(kubelet, kind, metadata.name.as_deref().unwrap_or(""), "", &patch).await?;
    Ok(if is_written { Progress::Gone } else { Progress::Done })
}

async fn patch_status(kubelet: &Kubelet, kind: &Kind, metadata: &ObjectMeta, status: Value) -> Result<(), VolumeError> {
    // Of what was seen: whoever wrote since knows more, and the watch brings it.
    let seen = json!({ "uid": metadata.uid, "resourceVersion": metadata.resource_version });
    let patch = json!({ "metadata": seen, "status": status });
    patched(kubelet, kind, metadata.name.as_deref().unwrap_or(""), "status", &patch).await.map(drop)
}

/// A patch of an object of this node's, written unless that was changed meanwhile: the watch brings the newer one.
async fn patched(kubelet: &Kubelet, kind: &Kind, name: &str, part: &str, patch: &Value) -> Result<bool, VolumeError> {
    reconciler::ensure_held(kubelet)?;
    match kubelet.config.client.patch(kind, "", name, part, PatchType::Merge, patch).await {
        Ok(_) => Ok(true),
        Err(error) if error.is_not_found() => Ok(true),
        Err(Error::Status { code: 409, .. }) => Ok(false),
        Err(error) => Err(VolumeError::Io {
            what: format!("noting on {} {name}", kind.kind),
            source: io::Error::other(error.to_string()),
        }),
    }
}

fn record_event(kubelet: &Kubelet, kind: &Kind, metadata: &ObjectMeta, reason: &'static str, message: String) {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (name, uid) = (text(&metadata.name), text(&metadata.uid));
    let regarding = Regarding { kind: kind.kind.clone(), namespace: String::new(), name, uid };
    kubelet.events.record(regarding, PodEvent { warning: true, reason, message, container: None });
}
