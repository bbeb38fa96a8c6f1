//! Sub-directories of NFS exports that were provisioned for claims: made with their size, grown, removed (V3, V10). The
//! decisions are [`mainstay_logic::volume::nfs`]'s. Nothing is mounted for this, and a server that is away holds up its
//! own volume only (V11).

use k8s_openapi::api::core::v1::{NFSVolumeSource, PersistentVolume};
use mainstay_api::{Kind, kinds};
use mainstay_client::{Error, PatchType};
use mainstay_logic::kubelet::PodEvent;
use mainstay_logic::volume::nfs::{self as folders, Task};
use mainstay_logic::volume::{self, SIZE, SIZE_NONE, annotation};
use serde_json::{Value, json};

use super::reconciler::{self, Progress};
use super::{VolumeError, blocking_at, nfs, reclaim};
use crate::kubelet::Kubelet;
use crate::kubelet::events::Regarding;
use mainstay_nfs::client::provision::{ProvisionError, Share};

/// The mountOptions that say how to reach the server: the others are for those who mount.
const REACHING: [&str; 4] = ["port", "mountport", "timeo", "retrans"];

/// Whether this node is to do something for a volume.
pub fn is_wanted(volume: &PersistentVolume, node: &str) -> bool {
    folders::task(volume, node).is_some()
}

/// Does it, and says so.
///
/// # Errors
/// What the server answered, or that it did not; the claim's people are told.
pub async fn attend(kubelet: &Kubelet, volume: &PersistentVolume) -> Result<Progress, VolumeError> {
    let Some(task) = folders::task(volume, &kubelet.config.node_name) else { return Ok(Progress::Done) };
    match task {
        Task::Make => match make(volume).await {
            Ok(sized) => {
                note(kubelet, volume, folders::made(&kubelet.config.node_name, volume, sized)).await?;
                let name = volume.metadata.name.as_deref().unwrap_or("");
                record_event(
                    kubelet,
                    volume,
                    false,
                    "ProvisioningSucceeded",
                    format!("Successfully provisioned volume {name}"),
                );
                Ok(Progress::Done)
            }
            Err(error) => {
                let class = volume.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref()).unwrap_or("");
                let message = format!("failed to provision volume with StorageClass \"{class}\": {error}");
                record_event(kubelet, volume, true, "ProvisioningFailed", message);
                Err(error)
            }
        },
        Task::Grow => match grow(volume).await {
            Ok(()) => {
                note(
                    kubelet,
                    volume,
                    folders::made(volume::annotation(&volume.metadata, super::claim::MADE_ON), volume, true),
                )
                .await?;
                record_event(kubelet, volume, false, "VolumeResizeSuccessful", "Resize volume succeeded".to_owned());
                Ok(Progress::Done)
            }
            Err(error) => {
                let name = volume.metadata.name.as_deref().unwrap_or("");
                record_event(
                    kubelet,
                    volume,
                    true,
                    "VolumeResizeFailed",
                    format!("resize volume \"{name}\" failed: {error}"),
                );
                Err(error)
            }
        },
        Task::Remove => remove(kubelet, volume).await,
    }
}

/// A share that answers, and the names of the volume's folder below it. Blocks.
fn open(volume: &PersistentVolume) -> Result<(Share, Vec<&str>), VolumeError> {
    let (server, share, names) = folders::location(volume)?;
    let options = volume.spec.as_ref().and_then(|spec| spec.mount_options.as_deref()).unwrap_or_default();
    let words = options.iter().flat_map(|option| option.split(',')).map(str::trim);
    let words: Vec<&str> =
        words.filter(|word| word.split_once('=').is_some_and(|(name, _)| REACHING.contains(&name))).collect();
    let source = NFSVolumeSource { server: server.to_owned(), path: share.to_owned(), read_only: None };
    let share = Share::open(&nfs::userspace_options(&source, &words)?).map_err(refused)?;
    Ok((share, names))
}

/// The name of the volume's server, by which its calls are counted.
fn server(volume: &PersistentVolume) -> String {
    folders::location(volume).map(|(server, ..)| server.to_owned()).unwrap_or_default()
}

/// Makes the folder; whether the server keeps its size.
async fn make(volume: &PersistentVolume) -> Result<bool, VolumeError> {
    let (volume, server) = (volume.clone(), server(volume));
    blocking_at(&server, move || {
        let (share, names) = open(&volume)?;
        let mode = u32::from_str_radix(annotation(&volume.metadata, folders::MODE), 8).unwrap_or(0o777);
        let wanted = annotation(&volume.metadata, SIZE);
        let bytes = Some(size(&volume)).filter(|_| wanted != SIZE_NONE);
        match share.make(&names, mode, bytes) {
            // Another server: whoever did not insist on the size gets the folder without one, and is told so.
            Err(ProvisionError::NoSizes) if wanted != folders::SIZE_SERVER => {
                share.make(&names, mode, None).map(|()| false)
            }
            made => made.map(|()| bytes.is_some()),
        }
        .map_err(refused)
    })
    .await
}

async fn grow(volume: &PersistentVolume) -> Result<(), VolumeError> {
    let (volume, server) = (volume.clone(), server(volume));
    blocking_at(&server, move || {
        let (share, names) = open(&volume)?;
        share.resize(&names, size(&volume)).map_err(refused)
    })
    .await
}

/// Removes the folder when nobody here uses the volume any more, then the finalizer; all as the API says now (A10).
async fn remove(kubelet: &Kubelet, seen: &PersistentVolume) -> Result<Progress, VolumeError> {
    const KIND: &Kind = &kinds::PERSISTENT_VOLUME;
    let name = seen.metadata.name.clone().unwrap_or_default();
    let users = kubelet.volumes.users().clone();
    let alone = users.lock(&name).await;
    let newest = reconciler::being_deleted::<PersistentVolume>(kubelet, KIND, &seen.metadata).await?;
    let is_due = |volume: &PersistentVolume| folders::task(volume, &kubelet.config.node_name) == Some(Task::Remove);
    let Some(mut volume) = newest.filter(is_due) else { return Ok(Progress::Done) };
    if !users.rests(&name).await? {
        return Ok(Progress::InUse);
    }
    if annotation(&volume.metadata, folders::ON_DELETE) != "retain" {
        let Some(metadata) = reconciler::announce(kubelet, KIND, &volume.metadata).await? else {
            return Ok(Progress::Done);
        };
        volume.metadata = metadata;
        let (server, gone) = (server(&volume), volume.clone());
        blocking_at(&server, move || {
            let _alone = alone;
            // One that was never made, and whose place is nowhere, has nothing to remove.
            let (share, names) = open(&gone)?;
            let done = if annotation(&gone.metadata, folders::ON_DELETE) == "archive" {
                share.rename(&names, &format!("archived-{name}"))
            } else {
                share.remove(&names)
            };
            done.map_err(refused)
        })
        .await?;
    }
    reclaim::drop_finalizer(kubelet, &volume, folders::FINALIZER).await
}

fn size(volume: &PersistentVolume) -> u64 {
    u64::try_from(volume::capacity(volume)).unwrap_or(0)
}

fn refused(error: ProvisionError) -> VolumeError {
    VolumeError::Refused(error.to_string())
}

async fn note(kubelet: &Kubelet, volume: &PersistentVolume, annotations: Value) -> Result<(), VolumeError> {
    reconciler::ensure_held(kubelet)?;
    let name = volume.metadata.name.as_deref().unwrap_or("");
    let patch = json!({ "metadata": {
        "uid": volume.metadata.uid, "resourceVersion": volume.metadata.resource_version, "annotations": annotations,
    } });
    match kubelet.config.client.patch(&kinds::PERSISTENT_VOLUME, "", name, "", PatchType::Merge, &patch).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() => Ok(()),
        // Changed meanwhile: the watch brings the newer one, and what is done is done again, which changes nothing.
        Err(Error::Status { code: 409, .. }) => Ok(()),
        Err(error) => Err(VolumeError::Refused(format!("noting on PV {name} what was made: {error}"))),
    }
}

/// Tells the people of a volume's claim.
pub(super) fn record_event(
    kubelet: &Kubelet,
    volume: &PersistentVolume,
    warning: bool,
    reason: &'static str,
    message: String,
) {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let Some(claim) = volume::claim_ref(volume) else { return };
    let (namespace, name, uid) = (text(&claim.namespace), text(&claim.name), text(&claim.uid));
    let regarding = Regarding { kind: "PersistentVolumeClaim".into(), namespace, name, uid };
    kubelet.events.record(regarding, PodEvent { warning, reason, message, container: None });
}
