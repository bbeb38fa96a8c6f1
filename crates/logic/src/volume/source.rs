//! Claims that start with the data of something else: of a VolumeSnapshot, or of another claim (a clone).
//!
//! A volume whose claim asks for data is declared with the annotation [`COPY_OF`]: the folder, beside its own, that its
//! node copies at once. So it lives where its source lives, and [`MADE_ON`] says that the copy is whole: only then is
//! the claim bound, and its pod placed. A claim that asked for data never starts empty: as long as its source cannot be
//! had, nothing is declared for it.
//!
//! A copy's handle (`status.snapshotHandle` of a VolumeSnapshotContent) is `<node>/snapshot-<uid of the content>`. The
//! folder's name is checked wherever a handle is read: no handle leads to a volume, or out of the volume root.

use k8s_openapi::api::core::v1::{Node, ObjectReference, PersistentVolume, PersistentVolumeClaim};
use mainstay_api::snapshots::{VolumeSnapshot, VolumeSnapshotContent};
use mainstay_api::{Kind, ObjectKey, kinds, parameters};

use super::{
    BUILT_IN, MADE_ON, PROVISIONED_BY, annotation, capacity, claim_ref, image_size, is_bound, is_held_by, is_image,
    requested, volume_mode, volume_name,
};
use crate::snapshot::{Index, Snapshot};

/// On a PersistentVolume: the folder below the volume root that its data is copied from.
pub const COPY_OF: &str = "mainstay.io/copy-of";
/// On contents of snapshots: the node that makes and keeps the copies.
pub const SNAPSHOT_ON: &str = "mainstay.io/snapshot-on";
/// On contents of snapshots: that a claim of the other volume mode may be filled from it, as upstream.
pub const ALLOW_MODE_CHANGE: &str = "snapshot.storage.kubernetes.io/allow-volume-mode-change";
/// What the folders of copies begin with.
const FOLDER: &str = "snapshot-";
/// The API group of snapshots.
const SNAPSHOT_GROUP: &str = "snapshot.storage.k8s.io";

/// Where a claim's data comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Source<'a> {
    /// The node that has it.
    pub node: &'a str,
    /// Its folder below that node's volume root.
    pub folder: &'a str,
}

/// What a claim asks to start with: group, kind, name and, where another is meant, namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wanted<'a> {
    pub group: &'a str,
    pub kind: &'a str,
    pub name: &'a str,
    pub namespace: Option<&'a str>,
}

impl Wanted<'_> {
    /// Whether it is a VolumeSnapshot of the claim's namespace with this name.
    pub fn is_snapshot(&self, name: &str) -> bool {
        (self.group, self.kind, self.name) == (SNAPSHOT_GROUP, "VolumeSnapshot", name)
    }
}

/// `spec.dataSourceRef`, else `spec.dataSource`.
pub fn wanted(claim: &PersistentVolumeClaim) -> Option<Wanted<'_>> {
    let spec = claim.spec.as_ref()?;
    if let Some(from) = &spec.data_source_ref {
        let (group, namespace) =
            (from.api_group.as_deref().unwrap_or(""), from.namespace.as_deref().filter(|name| !name.is_empty()));
        return Some(Wanted { group, kind: &from.kind, name: &from.name, namespace });
    }
    let from = spec.data_source.as_ref()?;
    Some(Wanted { group: from.api_group.as_deref().unwrap_or(""), kind: &from.kind, name: &from.name, namespace: None })
}

/// The folder of a content's copy.
pub fn folder(content_uid: &str) -> String {
    format!("{FOLDER}{content_uid}")
}

/// The handle of a copy in a folder of a node.
pub fn handle(node: &str, folder: &str) -> String {
    format!("{node}/{folder}")
}

/// Node and folder of a handle; `None` for one that no copy of ours can have.
pub fn of_handle(handle: &str) -> Option<Source<'_>> {
    let (node, folder) = handle.split_once('/')?;
    let id = folder.strip_prefix(FOLDER)?;
    let plain = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    (!node.is_empty() && plain).then_some(Source { node, folder })
}

/// The handle of a content's copy, made or not.
pub fn content_handle(content: &VolumeSnapshotContent) -> &str {
    let made = content.status.as_ref().and_then(|status| status.snapshot_handle.as_deref());
    made.or(content.spec.source.snapshot_handle.as_deref()).unwrap_or("")
}

/// Whether a content is bound to exactly this snapshot, by uid.
pub fn is_content_of(content: &VolumeSnapshotContent, snapshot: &VolumeSnapshot) -> bool {
    snapshot.metadata.uid.is_some() && content.spec.volume_snapshot_ref.uid == snapshot.metadata.uid
}

/// The key of the object that a reference names.
pub fn key_of_reference(reference: &ObjectReference) -> ObjectKey {
    ObjectKey::new(reference.namespace.as_deref().unwrap_or(""), reference.name.as_deref().unwrap_or(""))
}

/// What a claim's volume is to be a copy of; `None` where the claim asks for no data.
///
/// # Errors
/// Why it cannot be had, or not yet, in the words of upstream's provisioner as far as it has any.
pub fn of<'a>(snapshot: &'a Snapshot, claim: &'a PersistentVolumeClaim) -> Result<Option<Source<'a>>, String> {
    let Some(wanted) = wanted(claim) else { return Ok(None) };
    let own = claim.metadata.namespace.as_deref().unwrap_or("");
    if let Some(other) = wanted.namespace.filter(|other| *other != own) {
        return Err(format!(
            "accessing {other}/{} of {} dataSource from {own}/{} isn't allowed",
            wanted.name,
            wanted.kind,
            claim.metadata.name.as_deref().unwrap_or("")
        ));
    }
    let key = ObjectKey::new(own, wanted.name);
    let found = match (wanted.group, wanted.kind) {
        (SNAPSHOT_GROUP, "VolumeSnapshot") => of_snapshot(snapshot, &key, claim),
        ("", "PersistentVolumeClaim") => of_claim(snapshot, &key, claim),
        (group, kind) => return Err(format!("data source {kind:?} of API group {group:?} is not supported")),
    };
    found.map(Some).map_err(|why| {
        format!("error getting handle for DataSource Type {} by Name {}: {why}", wanted.kind, wanted.name)
    })
}

fn of_snapshot<'a>(
    snapshot: &'a Snapshot,
    key: &ObjectKey,
    claim: &PersistentVolumeClaim,
) -> Result<Source<'a>, String> {
    let name = &key.name;
    let Some(from) = snapshot.volume_snapshots.get(key) else {
        return Err(format!(
            "error getting snapshot {name} from api server: volumesnapshots.{SNAPSHOT_GROUP} \"{name}\" not found"
        ));
    };
    if !asked_before(claim, from) {
        return Err(format!("snapshot {name} is currently being deleted"));
    }
    let status = from.status.as_ref();
    let bound = status.and_then(|status| status.bound_volume_snapshot_content_name.as_deref());
    let Some(bound) = bound else { return Err(format!("snapshot {name} not bound")) };
    let content = snapshot.volume_snapshot_contents.get(&ObjectKey::new("", bound));
    let Some(content) = content.filter(|content| is_content_of(content, from)) else {
        return Err(format!("snapshotContent {bound} not bound to snapshot {name}"));
    };
    let ready = |ready: Option<bool>| ready == Some(true);
    if !ready(status.and_then(|status| status.ready_to_use))
        || !ready(content.status.as_ref().and_then(|status| status.ready_to_use))
    {
        return Err(format!("snapshot {name} is not Ready"));
    }
    if content.metadata.deletion_timestamp.is_some() {
        return Err(format!("snapshotContent {bound} is currently being deleted"));
    }
    if !BUILT_IN.contains(&content.spec.driver.as_str()) {
        return Err(format!("snapshot {name} was made by driver \"{}\"", content.spec.driver));
    }
    let mode = content.spec.source_volume_mode.as_deref();
    let is_allowed = parameters::boolean(annotation(&content.metadata, ALLOW_MODE_CHANGE)) == Some(true);
    if mode.is_some_and(|mode| mode != claim_mode(claim)) && !is_allowed {
        return Err(format!(
            "requested volume {} modifies the mode of the source volume but does not have permission to do so. \
                {ALLOW_MODE_CHANGE} annotation is not \"true\" on snapshotcontent {bound}",
            claim.metadata.name.as_deref().unwrap_or("")
        ));
    }
    let size = content.status.as_ref().and_then(|status| status.restore_size).unwrap_or(0);
    if image_size(requested(claim)) < size {
        return Err(format!(
            "requested volume size {} is less than the size {size} for the source snapshot {name}",
            requested(claim)
        ));
    }
    of_handle(content_handle(content)).ok_or_else(|| format!("snapshot handle not found in snapshotContent {bound}"))
}

fn claim_mode(claim: &PersistentVolumeClaim) -> &str {
    volume_mode(claim.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref()))
}

/// Whether a claim may still be filled from a snapshot: one that is on its way out stays for those that asked before.
pub fn asked_before(claim: &PersistentVolumeClaim, snapshot: &VolumeSnapshot) -> bool {
    let Some(deleted) = &snapshot.metadata.deletion_timestamp else { return true };
    claim.metadata.creation_timestamp.as_ref().is_none_or(|made| made <= deleted)
}

fn of_claim<'a>(snapshot: &'a Snapshot, key: &ObjectKey, claim: &PersistentVolumeClaim) -> Result<Source<'a>, String> {
    let Some(from) = snapshot.persistent_volume_claims.get(key) else {
        return Err(format!(
            "error getting PVC {} (namespace {:?}) from api server: persistentvolumeclaim not found",
            key.name, key.namespace
        ));
    };
    if from.metadata.deletion_timestamp.is_some() {
        return Err(format!("the PVC {} is currently being deleted", key.name));
    }
    let volume = source_volume(snapshot, from)?;
    let (mode, wanted) = (claim_mode(from), claim_mode(claim));
    if mode != wanted {
        return Err(format!(
            "the source PVC and destination PVCs must have the same volume mode for cloning. Source is {mode}, but new \
                PVC requested {wanted}"
        ));
    }
    if requested(claim) < capacity(volume) {
        return Err(format!(
            "new PVC request must be greater than or equal in size to the specified PVC data source, requested {} but \
                source is {}",
            requested(claim),
            capacity(volume)
        ));
    }
    let folder = volume.metadata.name.as_deref().unwrap_or("");
    Ok(Source { node: annotation(&volume.metadata, MADE_ON), folder })
}

/// A claim's volume, of which a crash-consistent copy can be made.
///
/// # Errors
/// Why not, or not yet.
pub fn source_volume<'a>(
    snapshot: &'a Snapshot,
    claim: &PersistentVolumeClaim,
) -> Result<&'a PersistentVolume, String> {
    let name = claim.metadata.name.as_deref().unwrap_or("");
    let bound = snapshot.persistent_volumes.get(&ObjectKey::new("", volume_name(claim)));
    let Some(volume) = bound.filter(|volume| is_bound(volume, claim)) else {
        return Err(format!("the PVC {name} is not yet bound to a PV"));
    };
    let volume_name = volume.metadata.name.as_deref().unwrap_or("");
    if !BUILT_IN.contains(&annotation(&volume.metadata, PROVISIONED_BY)) {
        return Err(format!("volume \"{volume_name}\" was not made by this provisioner"));
    }
    if !is_image(volume) {
        return Err(format!(
            "volume \"{volume_name}\" is a plain directory (mainstay.io/size: none), of which no crash-consistent \
                copy can be made while it \
             is in use; volumes of classes with mainstay.io/size: image can be copied"
        ));
    }
    match annotation(&volume.metadata, MADE_ON) {
        "" => Err(format!("no pod has mounted volume \"{volume_name}\" yet, so there is nothing in it")),
        _ => Ok(volume),
    }
}

/// Whether a node has what a claim's volume is to be a copy of; also where the claim asks for no data.
pub fn is_on(snapshot: &Snapshot, claim: &PersistentVolumeClaim, node: &Node) -> bool {
    of(snapshot, claim)
        .is_ok_and(|source| source.is_none_or(|source| Some(source.node) == node.metadata.name.as_deref()))
}

/// The folder that a volume's data is copied from, where it is a copy.
pub fn copy_of(volume: &PersistentVolume) -> Option<&str> {
    Some(annotation(&volume.metadata, COPY_OF)).filter(|folder| !folder.is_empty())
}

/// Whether this volume is still to become a copy, of whatever folder.
pub fn is_copy_unmade(volume: &PersistentVolume) -> bool {
    copy_of(volume).is_some() && annotation(&volume.metadata, MADE_ON).is_empty()
}

/// Whether this volume is still to become a copy of a folder.
pub fn is_copying(volume: &PersistentVolume, folder: &str) -> bool {
    is_copy_unmade(volume) && volume.metadata.deletion_timestamp.is_none() && copy_of(volume) == Some(folder)
}

/// Whether a volume is still to become a copy of a folder.
pub fn is_being_read(snapshot: &Snapshot, folder: &str) -> bool {
    snapshot.indexes.count(Index::VolumesCopying, folder, "") > 0
}

/// Whether a claim is being copied: by a snapshot that is not ready, or by a clone.
pub fn is_being_copied(snapshot: &Snapshot, key: &ObjectKey) -> bool {
    let Some(claim) = snapshot.persistent_volume_claims.get(key) else { return false };
    let volume = volume_name(claim);
    let held =
        snapshot.persistent_volumes.get(&ObjectKey::new("", volume)).is_some_and(|volume| is_held_by(volume, claim));
    let cloned = held && is_being_read(snapshot, volume);
    let in_group = held && snapshot.indexes.count(Index::GroupContentsOf, volume, "") > 0;
    cloned
        || in_group
        || snapshot
            .found::<VolumeSnapshot>(Index::SnapshotsOf, &key.namespace, &key.name)
            .any(|(_, copy)| is_being_made(snapshot, copy, &key.name))
}

/// Whether a snapshot's copy of a claim has been asked for and is not made yet.
fn is_being_made(snapshot: &Snapshot, copy: &VolumeSnapshot, claim: &str) -> bool {
    let asked = copy.spec.source.persistent_volume_claim_name.as_deref() == Some(claim)
        && copy.metadata.deletion_timestamp.is_none();
    let ready = copy.status.as_ref().and_then(|status| status.ready_to_use) == Some(true);
    let content = || snapshot.volume_snapshot_contents.get(&ObjectKey::new("", dynamic_content(copy)));
    asked
        && !ready
        && content()
            .is_some_and(|content| content.status.as_ref().and_then(|status| status.snapshot_handle.as_ref()).is_none())
}

/// What must not go while a volume is made for a claim: the claim, and what it is to be a copy of.
pub fn relied_on(snapshot: &Snapshot, claim: &PersistentVolumeClaim) -> Vec<(Kind, ObjectKey)> {
    let mut all = vec![(kinds::PERSISTENT_VOLUME_CLAIM.clone(), crate::decision::key_of(&claim.metadata))];
    let namespace = claim.metadata.namespace.as_deref().unwrap_or("");
    match wanted(claim).filter(|_| volume_name(claim).is_empty()) {
        Some(wanted) if wanted.kind == "PersistentVolumeClaim" => {
            all.push((kinds::PERSISTENT_VOLUME_CLAIM.clone(), ObjectKey::new(namespace, wanted.name)));
        }
        Some(wanted) if wanted.kind == "VolumeSnapshot" => {
            let key = ObjectKey::new(namespace, wanted.name);
            let status = snapshot.volume_snapshots.get(&key).and_then(|copy| copy.status.as_ref());
            if let Some(content) = status.and_then(|status| status.bound_volume_snapshot_content_name.as_deref()) {
                all.push((kinds::VOLUME_SNAPSHOT_CONTENT.clone(), ObjectKey::new("", content)));
            }
            all.push((kinds::VOLUME_SNAPSHOT.clone(), key));
        }
        _ => {}
    }
    all
}

/// The name of the content that is made for a snapshot of a claim: only this snapshot's, for ever.
pub fn dynamic_content(snapshot: &VolumeSnapshot) -> String {
    format!("snapcontent-{}", snapshot.metadata.uid.as_deref().unwrap_or(""))
}

/// The claim whose volume a clone copies, where the volume still is that claim's.
pub fn copied_claim(snapshot: &Snapshot, copy: &PersistentVolume) -> Option<ObjectKey> {
    let from = snapshot.persistent_volumes.get(&ObjectKey::new("", annotation(&copy.metadata, COPY_OF)))?;
    claim_ref(from).map(super::claim_key)
}
