//! Group snapshots: the volumes of a VolumeGroupSnapshotContent, copied at one moment.
//!
//! ```text
//! <volume root>/snapshot-<uid of the content>-<number of the volume>/image
//! ```
//!
//! Each copy then has a VolumeSnapshotContent of its own, which removes it; what has none goes with the group.

use std::collections::BTreeSet;
use std::sync::Arc;

use mainstay_api::snapshots::{VolumeGroupSnapshotContent, VolumeSnapshotContent};
use mainstay_api::time;
use mainstay_client::ListOptions;

use super::*;

const GROUP: &Kind = &kinds::VOLUME_GROUP_SNAPSHOT_CONTENT;

/// Watches the contents of group snapshots until dropped.
pub async fn run(kubelet: Arc<Kubelet>) {
    reconciler::each(kubelet, GROUP, is_wanted, |kubelet, content| {
        Box::pin(async move { attempt(&kubelet, &content).await })
    })
    .await;
}

fn is_wanted(kubelet: &Kubelet, content: &VolumeGroupSnapshotContent) -> bool {
    let is_ready = content.status.as_ref().is_some_and(|status| status.ready_to_use == Some(true));
    wants(kubelet, &content.metadata, &content.spec.driver, is_ready)
}

async fn attempt(kubelet: &Kubelet, content: &VolumeGroupSnapshotContent) -> Result<Progress, VolumeError> {
    if !is_wanted(kubelet, content) {
        return Ok(Progress::Done);
    }
    if content.metadata.deletion_timestamp.is_some() {
        return removed(kubelet, GROUP, &content.metadata, remove(kubelet, content).await);
    }
    let made = take(kubelet, content).await;
    let said = content.status.as_ref().and_then(|status| status.error.as_ref()?.message.as_deref());
    answer(kubelet, GROUP, &content.metadata, made, said).await
}

/// The folders of a group's copies, in the order of its volumes.
fn folders(content: &VolumeGroupSnapshotContent) -> Vec<String> {
    let uid = content.metadata.uid.as_deref().unwrap_or("");
    let count = content.spec.source.volume_handles.as_ref().map_or(0, Vec::len);
    (0..count).map(|number| source::folder(&format!("{uid}-{number}"))).collect()
}

async fn take(kubelet: &Kubelet, content: &VolumeGroupSnapshotContent) -> Result<Value, VolumeError> {
    let volumes = content.spec.source.volume_handles.clone().unwrap_or_default();
    let to = folders(content).iter().map(|folder| image_of(kubelet, folder)).collect::<Result<Vec<Image>, _>>()?;
    let mut from = Vec::new();
    for volume in &volumes {
        from.push(volume_image(kubelet, volume).await?);
    }
    let (exe, targets) = (kubelet.config.shim_exe.clone(), to.clone());
    let alone = kubelet.volumes.users().lock_all(from.iter().chain(&targets).map(Image::name)).await;
    blocking_long(volumes.first().map_or("", String::as_str), move || {
        let _alone = alone;
        let copies: Vec<Copy> = from.iter().zip(&targets).map(|(from, to)| Copy { from, to }).collect();
        copy::snapshots(&copies, Hold { exe: &exe, limit: freeze::LIMIT })
    })
    .await?;
    let mut members = Vec::new();
    for (image, volume) in to.iter().zip(&volumes) {
        let mut member =
            found(kubelet, image)?.ok_or_else(|| VolumeError::Refused(format!("the copy of {volume} is gone")))?;
        member["volumeHandle"] = json!(volume);
        member.as_object_mut().map(|member| member.remove("error"));
        members.push(member);
    }
    let nanos = members.first().and_then(|member| member["creationTime"].as_i64()).unwrap_or(0);
    let moment = Timestamp::from_nanosecond(i128::from(nanos)).map(time::rfc3339).ok();
    let handle =
        format!("{}/group{}", kubelet.config.node_name, source::folder(content.metadata.uid.as_deref().unwrap_or("")));
    Ok(json!({ "volumeGroupSnapshotHandle": handle, "creationTime": moment, "readyToUse": true,
            "volumeSnapshotInfoList": members,
        "error": null }))
}

/// Removes the copies that no content of their own has, as the API says now (A10).
async fn remove(kubelet: &Kubelet, seen: &VolumeGroupSnapshotContent) -> Result<Progress, VolumeError> {
    let folders = folders(seen);
    let alone = kubelet.volumes.users().lock_all(folders.clone()).await;
    let newest = reconciler::being_deleted::<VolumeGroupSnapshotContent>(kubelet, GROUP, &seen.metadata).await?;
    let Some(mut content) = newest.filter(|content| is_removable(&content.metadata)) else { return Ok(Progress::Done) };
    if content.spec.deletion_policy == "Delete" {
        let Some(metadata) = reconciler::announce(kubelet, GROUP, &content.metadata).await? else {
            return Ok(Progress::Done);
        };
        content.metadata = metadata;
        let list = kubelet.config.client.list(KIND, "", &ListOptions::default()).await;
        let list =
            list.map_err(|error| VolumeError::Refused(format!("looking for the contents of the copies: {error}")))?;
        let mut kept = BTreeSet::new();
        for item in list["items"].as_array().into_iter().flatten() {
            let member: VolumeSnapshotContent =
                serde_json::from_value(item.clone()).map_err(|error| error.to_string())?;
            kept.insert(source::content_handle(&member).to_owned());
        }
        let gone = folders.iter().filter(|folder| !kept.contains(&source::handle(&kubelet.config.node_name, folder)));
        let gone = gone.map(|folder| image_of(kubelet, folder)).collect::<Result<Vec<Image>, _>>()?;
        blocking_long(folders.first().map_or("", String::as_str), move || {
            let _alone = alone;
            gone.iter().try_for_each(Image::delete)
        })
        .await?;
    }
    release(kubelet, GROUP, &content.metadata).await
}
