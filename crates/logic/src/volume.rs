//! What the scheduler and the volume controllers share: which volume fits a claim, what binds the two, and the
//! volumes that Mainstay provisions itself.
//!
//! A binding is two facts, written in this order (V1): the volume's `spec.claimRef` with the claim's uid, guarded by
//! the volume's resourceVersion, and then the claim's `spec.volumeName`. After a cut between them the volume belongs to
//! that claim alone, and whoever decides next completes the claim.
//!
//! A provisioned volume is a directory on one node: `<volume root>/pvc-<claim uid>`, plain or with an image in it that
//! keeps the size (V10; the annotation [`SIZE`] says which). It is declared here; the node makes the directory on
//! first use and then writes the annotation [`MADE_ON`]; a directory that is gone after that is lost
//! data, never made anew (V5). The name holds the claim's uid, so that a claim made again under an old name gets a
//! directory of its own (V6).

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mainstay_api::quantity::Quantity;
use mainstay_api::{ObjectKey, kinds};
use serde_json::{Value, json};

use crate::decision::{Event, Write, key_of};
use crate::matching::selects_node;
use crate::pods::selects;
use crate::snapshot::{Index, Snapshot};

pub mod attributes;
mod facets;
pub mod growth;
pub mod nfs;
pub mod room;
pub mod source;
pub mod status;
#[cfg(test)]
mod tests;

/// The kinds that decisions about volumes look at, for [`crate::Controller::reads`].
pub const READS: &[&str] = &[
    "namespaces",
    "nodes",
    "persistentvolumeclaims",
    "persistentvolumes",
    "pods",
    "storageclasses",
    "volumeattributesclasses",
    "volumegroupsnapshotclasses",
    "volumegroupsnapshotcontents",
    "volumegroupsnapshots",
    "volumesnapshotclasses",
    "volumesnapshotcontents",
    "volumesnapshots",
];
/// Provisioners that are this program: their classes make directories on a node.
pub const BUILT_IN: [&str; 4] =
    ["mainstay.io/local-path", "rancher.io/local-path", "k8s.io/minikube-hostpath", "docker.io/hostpath"];
/// On a Node: the directory below which it keeps provisioned volumes.
pub const VOLUME_ROOT: &str = "mainstay.io/volume-root";
/// On a PersistentVolume, written by the node: where its directory was made.
pub const MADE_ON: &str = "mainstay.io/made-on";
/// A parameter of built-in classes: how the size is kept that was asked for; see [`size_of`]. On a PersistentVolume, as
/// an annotation: how its size is kept, for as long as it lives. Without it the volume is a plain directory.
pub const SIZE: &str = "mainstay.io/size";
/// [`SIZE`]: a file system in a sparse file of that size.
pub const SIZE_IMAGE: &str = "image";
/// [`SIZE`]: a plain directory; nothing keeps the size.
pub const SIZE_NONE: &str = "none";
/// The block of an image's file system, in bytes; sizes are rounded up to it.
pub const IMAGE_BLOCK: i64 = 4096;
/// The smallest image, in bytes: below it ext4 has no room for a journal. Smaller volumes are this large.
pub const SMALLEST_IMAGE: i64 = 16 << 20;
/// On an image's PersistentVolume, written by the node: the capacity in bytes that it has made real.
pub const MADE_SIZE: &str = "mainstay.io/made-size";
/// On provisioned volumes: the node takes it away after it removed the directory (reclaim policy Delete).
pub const LOCAL_PATH_FINALIZER: &str = "mainstay.io/local-path";
/// Kept while a pod uses the claim.
pub const PVC_PROTECTION: &str = "kubernetes.io/pvc-protection";
/// Kept while a claim uses the volume.
pub const PV_PROTECTION: &str = "kubernetes.io/pv-protection";
/// Which provisioner made a volume.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// On a claim: both sides of the binding are written.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On a claim or volume: the other side was chosen here, not by the user.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a Released volume: to be emptied, on behalf of the claim with this uid.
pub const RECYCLE: &str = "mainstay.io/recycle";
/// On a Released volume: by this node.
pub const RECYCLE_ON: &str = "mainstay.io/recycle-on";
/// Written by the node when the volume is empty: the value of [`RECYCLE`].
pub const RECYCLED: &str = "mainstay.io/recycled";
/// On a claim: the node that the scheduler chose for an external provisioner.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// The label with a node's hostname, by which a local volume is tied to it.
pub const HOSTNAME: &str = "kubernetes.io/hostname";

/// The class that a claim asks for: `Some("")` is none, `None` is whichever is the default.
pub fn class_of(claim: &PersistentVolumeClaim) -> Option<&str> {
    old_style_class(&claim.metadata).or_else(|| claim.spec.as_ref()?.storage_class_name.as_deref())
}

/// The annotation that leads where it is there, as upstream.
fn old_style_class(meta: &ObjectMeta) -> Option<&str> {
    meta.annotations.as_ref()?.get("volume.beta.kubernetes.io/storage-class").map(String::as_str)
}

/// The StorageClass object of a claim.
pub fn class<'a>(snapshot: &'a Snapshot, claim: &PersistentVolumeClaim) -> Option<&'a StorageClass> {
    snapshot.storage_classes.get(&ObjectKey::new("", class_of(claim)?)).map(|class| &**class)
}

/// Whether binding waits for the first pod.
pub fn waits_for_consumer(class: &StorageClass) -> bool {
    class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
}

/// Whether this program provisions for the class.
pub fn is_built_in(class: &StorageClass) -> bool {
    BUILT_IN.contains(&class.provisioner.as_str())
}

/// An object's annotation, or `""`.
pub fn annotation<'a>(meta: &'a ObjectMeta, name: &str) -> &'a str {
    meta.annotations.as_ref().and_then(|annotations| annotations.get(name)).map_or("", String::as_str)
}

/// `spec.volumeName`, or `""`.
pub fn volume_name(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or("")
}

/// A volume's claimRef.
pub fn claim_ref(volume: &PersistentVolume) -> Option<&ObjectReference> {
    volume.spec.as_ref()?.claim_ref.as_ref()
}

/// The key of the claim that a claimRef names.
pub fn claim_key(reference: &ObjectReference) -> ObjectKey {
    ObjectKey::new(reference.namespace.as_deref().unwrap_or(""), reference.name.as_deref().unwrap_or(""))
}

/// Whether a volume belongs to exactly this claim, by uid.
pub fn is_held_by(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    claim.metadata.uid.is_some() && claim_ref(volume).is_some_and(|reference| reference.uid == claim.metadata.uid)
}

/// Whether a user reserved a volume for a claim of this name, which nobody has bound yet.
pub fn is_reserved_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    claim_ref(volume).is_some_and(|reference| {
        reference.uid.as_deref().unwrap_or("").is_empty() && claim_key(reference) == key_of(&claim.metadata)
    })
}

/// Whether both sides of a binding are written.
pub fn is_bound(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    is_held_by(volume, claim) && volume.metadata.name.as_deref() == Some(volume_name(claim))
}

/// A volume's phase, or `""`.
pub fn phase(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("")
}

/// Bytes of a quantity that may be missing or malformed.
fn bytes(quantity: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity>) -> i64 {
    quantity.and_then(|quantity| quantity.0.parse::<Quantity>().ok()).map_or(0, Quantity::units)
}

/// Bytes that a volume holds.
pub fn capacity(volume: &PersistentVolume) -> i64 {
    bytes(volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()?.get("storage")))
}

/// Bytes that a claim asks for.
pub fn requested(claim: &PersistentVolumeClaim) -> i64 {
    bytes(claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref()?.get("storage")))
}

fn access_modes(claim: &PersistentVolumeClaim) -> &[String] {
    claim.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default()
}

/// Whether a claim has an access mode.
pub fn asks_for(claim: &PersistentVolumeClaim, mode: &str) -> bool {
    access_modes(claim).iter().any(|asked| asked == mode)
}

/// The class that a volume is of, or `""`.
pub fn class_of_volume(volume: &PersistentVolume) -> &str {
    let class = old_style_class(&volume.metadata).or_else(|| volume.spec.as_ref()?.storage_class_name.as_deref());
    class.unwrap_or("")
}

/// The volumes whose claimRef names a claim, whatever its uid, in order of name.
pub fn volumes_of<'a>(
    snapshot: &'a Snapshot,
    claim: &PersistentVolumeClaim,
) -> impl Iterator<Item = &'a PersistentVolume> + use<'a> {
    let key = key_of(&claim.metadata);
    snapshot.found::<PersistentVolume>(Index::VolumesOf, &key.namespace, &key.name).map(|(_, volume)| &**volume)
}

/// The pods, finished or not, that are on a node and use a claim.
pub fn users_of<'a>(snapshot: &'a Snapshot, claim: &ObjectKey) -> BTreeSet<&'a ObjectKey> {
    let users = snapshot.found::<Pod>(Index::PodsUsing, &claim.namespace, &claim.name);
    users
        .filter(|(_, pod)| {
            pod.spec.as_ref().is_some_and(|spec| spec.node_name.as_deref().is_some_and(|node| !node.is_empty()))
        })
        .map(|(key, _)| key)
        .collect()
}

/// Whether a volume is what a claim asks for: size, class, attributes, volume mode, access modes.
pub fn satisfies(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<(), &'static str> {
    if capacity(volume) >= requested(claim) && class_of_volume(volume) != class_of(claim).unwrap_or("") {
        return Err("storageClassName does not match");
    }
    serves(volume, claim)
}

/// Whether a volume that a user reserved for a claim will do for it: everything but the class, as upstream.
fn serves(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<(), &'static str> {
    let (Some(have), Some(want)) = (volume.spec.as_ref(), claim.spec.as_ref()) else { return Err("spec is missing") };
    let mode = |mode: Option<&String>| mode.map_or("Filesystem", String::as_str).to_owned();
    if capacity(volume) < requested(claim) {
        return Err("requested PV is too small");
    }
    if attributes::of_volume(volume) != attributes::of_claim(claim) {
        return Err("volumeAttributesClassName does not match");
    }
    if mode(have.volume_mode.as_ref()) != mode(want.volume_mode.as_ref()) {
        return Err("incompatible volumeMode");
    }
    let offered = have.access_modes.as_deref().unwrap_or_default();
    if !access_modes(claim).iter().all(|asked| offered.contains(asked)) {
        return Err("incompatible accessMode");
    }
    Ok(())
}

/// Whether a node can reach a volume.
pub fn reaches(node: &Node, volume: &PersistentVolume) -> bool {
    let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
    affinity.and_then(|affinity| affinity.required.as_ref()).is_none_or(|required| selects_node(required, node))
}

/// Whether a volume can only go to this claim: it is the claim's already, or a user reserved it and it will do.
pub fn is_kept_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let by_user = annotation(&volume.metadata, BOUND_BY_CONTROLLER).is_empty()
        && annotation(&volume.metadata, PROVISIONED_BY).is_empty();
    match is_held_by(volume, claim) {
        true => !by_user || serves(volume, claim).is_ok(),
        false => is_reserved_for(volume, claim) && serves(volume, claim).is_ok(),
    }
}

/// The volume to bind to an unbound claim: the one that is already its own or reserved for it, else the smallest free
/// one that fits (ties by name). With `node`, only what that node reaches; never one of `taken` (by name).
pub fn matching<'a>(
    snapshot: &'a Snapshot,
    claim: &PersistentVolumeClaim,
    node: Option<&Node>,
    taken: &BTreeSet<&str>,
) -> Option<&'a PersistentVolume> {
    let usable = |volume: &PersistentVolume| {
        let name = volume.metadata.name.as_deref().unwrap_or("");
        !taken.contains(name)
            && volume.metadata.deletion_timestamp.is_none()
            && node.is_none_or(|node| reaches(node, volume))
    };
    if let Some(kept) = volumes_of(snapshot, claim).find(|volume| usable(volume) && is_kept_for(volume, claim)) {
        return Some(kept);
    }
    let selector = claim.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let fits = |volume: &&PersistentVolume| {
        let selected = selector.is_none_or(|selector| selects(selector, volume.metadata.labels.as_ref()));
        usable(volume) && selected && satisfies(volume, claim).is_ok()
    };
    let (class, bytes) = (class_of(claim).unwrap_or(""), requested(claim));
    let Some(node) = node else {
        return snapshot.free_volumes(class, bytes).map(|volume| &**volume).find(fits);
    };
    let hostname = node.metadata.labels.as_ref().and_then(|labels| labels.get(HOSTNAME)).map(String::as_str);
    let on = |hostname| snapshot.free_volumes_on(class, hostname, bytes).map(|volume| &**volume).find(fits);
    let found = [hostname.filter(|hostname| !hostname.is_empty()), Some("")].into_iter().flatten().filter_map(on);
    found.min_by_key(|volume| (capacity(volume), volume.metadata.name.as_deref()))
}

/// The reference by which a volume belongs to a claim.
fn reference(claim: &PersistentVolumeClaim) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": claim.metadata.namespace,
        "name": claim.metadata.name, "uid": claim.metadata.uid})
}

/// Whether a volume that was declared for a claim is still to be made by a node before the claim is bound: a folder of
/// an export, or a copy of other data.
pub fn is_unmade(volume: &PersistentVolume) -> bool {
    nfs::is_folder_unmade(volume) || source::is_copy_unmade(volume)
}

/// The writes that bind a volume and a claim, as far as they are not written yet.
pub fn bind(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Vec<Write> {
    let mut writes = Vec::new();
    if !is_held_by(volume, claim) {
        let mut patch = json!({"spec": {"claimRef": reference(claim)}});
        if claim_ref(volume).is_none() {
            patch["metadata"] = json!({"annotations": {BOUND_BY_CONTROLLER: "yes"}});
        }
        writes.push(Write::patch(&kinds::PERSISTENT_VOLUME, &volume.metadata, patch));
    }
    writes.extend(complete(volume, claim));
    writes
}

/// What a claim that holds its volume should say of it: the binding, the growth, the attributes.
pub fn settle(
    snapshot: &Snapshot,
    volume: &PersistentVolume,
    claim: &PersistentVolumeClaim,
    step: &growth::Step,
    now: Timestamp,
) -> Vec<Write> {
    let asked = attributes::asked(snapshot, claim, volume);
    name_volume(volume, claim).into_iter().chain(status::write(volume, claim, step, asked.as_ref(), now)).collect()
}

/// The claim's side of a new binding, as far as it is not written yet.
fn complete(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Vec<Write> {
    if is_unmade(volume) {
        return Vec::new();
    }
    // Nothing is under way that would have a time.
    let status = status::write(volume, claim, &growth::Step::Done, None, Timestamp::UNIX_EPOCH);
    name_volume(volume, claim).into_iter().chain(status).collect()
}

/// The write by which a claim names its volume, where it does not.
fn name_volume(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<Write> {
    let chosen_here = volume_name(claim).is_empty();
    if chosen_here || annotation(&claim.metadata, BIND_COMPLETED).is_empty() {
        let mut patch = json!({"metadata": {"annotations": {BIND_COMPLETED: "yes"}}});
        if chosen_here {
            patch["metadata"]["annotations"][BOUND_BY_CONTROLLER] = json!("yes");
            patch["spec"] = json!({"volumeName": volume.metadata.name});
        }
        return Some(Write::patch(&kinds::PERSISTENT_VOLUME_CLAIM, &claim.metadata, patch));
    }
    None
}

/// The name of the volume that is provisioned for a claim: only this claim's, for ever (V6).
pub fn provisioned_name(claim: &PersistentVolumeClaim) -> String {
    format!("pvc-{}", claim.metadata.uid.as_deref().unwrap_or(""))
}

/// What a claim's people are told of a volume that is provisioned for it. Of a copy its node says when it is made.
pub fn provisioned_events(claim: &PersistentVolumeClaim) -> Vec<Event> {
    let normal = |reason, message| Event::normal(&kinds::PERSISTENT_VOLUME_CLAIM, &claim.metadata, reason, message);
    let mut events =
        vec![normal("Provisioning", format!("Provisioning volume for claim \"{}\"", key_of(&claim.metadata)))];
    if source::wanted(claim).is_none() {
        let message = format!("Successfully provisioned volume {}", provisioned_name(claim));
        events.push(normal("ProvisioningSucceeded", message));
    }
    events
}

/// How a class keeps the size of its volumes: [`SIZE_IMAGE`] or [`SIZE_NONE`]. `auto` (also where nothing is said) is
/// an image, which works everywhere.
///
/// # Errors
/// A value that means nothing, or nothing yet: a volume without the limit that was asked for is not made.
pub fn size_of(class: &StorageClass) -> Result<&'static str, String> {
    match class.parameters.as_ref().and_then(|parameters| parameters.get(SIZE)).map(String::as_str) {
        None | Some("auto" | "image") => Ok(SIZE_IMAGE),
        Some("none") => Ok(SIZE_NONE),
        Some("quota") => Err(format!("parameter {SIZE}: project quotas are not supported; use auto, image or none")),
        Some(other) => Err(format!("parameter {SIZE}: \"{other}\" is not one of auto, image, none")),
    }
}

/// What the image for a volume of this size is large, in bytes.
pub fn image_size(size: i64) -> i64 {
    let size = size.max(SMALLEST_IMAGE);
    size.checked_add(IMAGE_BLOCK - 1).map_or(size, |size| size / IMAGE_BLOCK * IMAGE_BLOCK)
}

/// Whether a volume is an image that keeps its size.
pub fn is_image(volume: &PersistentVolume) -> bool {
    annotation(&volume.metadata, SIZE) == SIZE_IMAGE
}

/// The bytes that a volume's node has made real; `None` where it was not made yet.
pub fn made_size(volume: &PersistentVolume) -> Option<i64> {
    annotation(&volume.metadata, MADE_SIZE).parse().ok()
}

/// Why no provisioner here can make what a claim asks for, whatever its class.
fn plain(claim: &PersistentVolumeClaim) -> Result<(), String> {
    let Some(spec) = claim.spec.as_ref() else { return Err("spec is missing".to_owned()) };
    if spec.selector.is_some() {
        return Err("claim Selector is not supported".to_owned());
    }
    if !attributes::of_claim(claim).is_empty() {
        return Err(format!(
            "VAC {} cannot be applied: the provisioner has no attributes that can be set",
            attributes::of_claim(claim)
        ));
    }
    Ok(())
}

/// `Filesystem` or `Block`, of a claim or a volume that may not say.
pub fn volume_mode(mode: Option<&str>) -> &str {
    mode.filter(|mode| !mode.is_empty()).unwrap_or("Filesystem")
}

/// Whether a claim asks for a block device instead of a file system.
pub fn asks_for_block(claim: &PersistentVolumeClaim) -> bool {
    claim.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref()) == Some("Block")
}

/// Whether a volume is given to containers as a block device instead of a file system.
pub fn is_block(volume: &PersistentVolume) -> bool {
    volume.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref()) == Some("Block")
}

/// Why a built-in class can make nothing for a claim.
///
/// A claim that asks for a copy of other data must wait rather than start empty.
pub fn provisionable(snapshot: &Snapshot, claim: &PersistentVolumeClaim, class: &StorageClass) -> Result<(), String> {
    plain(claim)?;
    if asks_for_block(claim) && size_of(class)? != SIZE_IMAGE {
        return Err(format!("the provisioner does not support volume mode Block with parameter {SIZE}: {SIZE_NONE}"));
    }
    if source::of(snapshot, claim)?.is_some() && size_of(class)? != SIZE_IMAGE {
        return Err(format!(
            "a volume of parameter {SIZE}: {SIZE_NONE} cannot be a copy of another; use a class with {SIZE_IMAGE}"
        ));
    }
    size_of(class).map(|_| ())
}

/// Whether a node can make a claim's volume: it says where they go, is in the class's topology, and has what is copied.
pub fn can_provision(snapshot: &Snapshot, claim: &PersistentVolumeClaim, node: &Node, class: &StorageClass) -> bool {
    let topology = class.allowed_topologies.as_deref().unwrap_or_default();
    let label = |key: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(key));
    let allowed = |term: &k8s_openapi::api::core::v1::TopologySelectorTerm| {
        let requirements = term.match_label_expressions.as_deref().unwrap_or_default();
        requirements
            .iter()
            .all(|requirement| label(&requirement.key).is_some_and(|value| requirement.values.contains(value)))
    };
    let offers = annotation(&node.metadata, VOLUME_ROOT).starts_with('/')
        && (topology.is_empty() || topology.iter().any(allowed));
    offers && source::is_on(snapshot, claim, node)
}

/// The writes that provision a directory on `node` for a claim and bind it. The volume is made with its claimRef, so
/// that after a cut it is this claim's and nobody else's. A claim that asked for data is bound when its node has copied
/// it (V4): whoever sees it bound may change or remove the source.
pub fn provision(snapshot: &Snapshot, claim: &PersistentVolumeClaim, class: &StorageClass, node: &Node) -> Vec<Write> {
    let name = provisioned_name(claim);
    let root = annotation(&node.metadata, VOLUME_ROOT).trim_end_matches('/');
    let hostname =
        node.metadata.labels.as_ref().and_then(|labels| labels.get(HOSTNAME)).or(node.metadata.name.as_ref());
    let spec = claim.spec.as_ref();
    let size = spec.and_then(|spec| spec.resources.as_ref()?.requests.as_ref()?.get("storage"));
    let mut annotations = json!({PROVISIONED_BY: class.provisioner, SIZE: size_of(class).unwrap_or(SIZE_IMAGE)});
    if size_of(class) == Ok(SIZE_IMAGE) && !room::is_counted(class) {
        annotations[room::OVERCOMMIT] = json!("true");
    }
    let mut object = json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {
            "name": name,
            "annotations": annotations,
            "finalizers": [PV_PROTECTION, LOCAL_PATH_FINALIZER],
        },
        "spec": {
            "capacity": {"storage": size},
            "accessModes": access_modes(claim),
            "volumeMode": volume_mode(spec.and_then(|spec| spec.volume_mode.as_deref())),
            "persistentVolumeReclaimPolicy": class.reclaim_policy.as_deref().unwrap_or("Delete"),
            "storageClassName": class.metadata.name,
            "mountOptions": class.mount_options.as_deref().unwrap_or_default(),
            "claimRef": reference(claim),
            "local": {"path": format!("{root}/{name}")},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": HOSTNAME, "operator": "In", "values": [hostname]}]}]}},
        },
    });
    if let Ok(Some(source)) = source::of(snapshot, claim) {
        object["metadata"]["annotations"][source::COPY_OF] = json!(source.folder);
    }
    let volume: Option<PersistentVolume> = serde_json::from_value(object.clone()).ok();
    let mut writes = vec![Write::Create { kind: kinds::PERSISTENT_VOLUME.clone(), object }];
    writes.extend(volume.iter().flat_map(|volume| complete(volume, claim)));
    writes
}
