//! Claims that ask for more than they have (V10).
//!
//! A plain directory grows by saying so. An image grows in this order: the claim's request raises the volume's
//! capacity, if the node has the room; the claim says `FileSystemResizePending`; the node makes it real, while pods use
//! it, and notes that as [`MADE_SIZE`](super::MADE_SIZE); then the claim has the new capacity. An image that was never
//! mounted is made in the new size at once. What cannot be is said on the claim, and tried again when something
//! changes: no room on the node is `ControllerResizeInfeasible`, and what the node could not do is `NodeResizeError`.
//! Until the node has noted it, the request can be lowered again, to more than what the claim has.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use mainstay_api::kinds;
use serde_json::json;

use super::{BUILT_IN, PROVISIONED_BY, annotation, capacity, is_bound, is_image, made_size, nfs, requested};
use crate::decision::{Decision, Event, Write};
use crate::snapshot::Snapshot;

/// On an image's PersistentVolume, written by the node: why it could not grow. Taken away when it has grown.
pub const RESIZE_ERROR: &str = "mainstay.io/resize-error";

/// Whether somebody keeps the size, and a node notes what was made real.
fn is_measured(volume: &PersistentVolume) -> bool {
    is_image(volume) || nfs::is_sized(volume)
}

/// How far the growth of a bound claim's volume is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Everything that was promised is real.
    Done,
    /// The node has yet to make real what the volume's capacity says.
    OnNode,
    /// The node could not, and tries again.
    NodeFailed(String),
    /// The node has no room for so much.
    NoRoom(String),
}

/// The claim's request as it was written.
fn asked_size(claim: &PersistentVolumeClaim) -> Option<&Quantity> {
    claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?.get("storage")
}

/// How far a bound claim's growth is.
pub fn step(snapshot: &Snapshot, claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Step {
    let (asked, has) = (requested(claim), capacity(volume));
    if is_ours(volume) && asked > has && !super::room::can_grow(snapshot, volume, asked.saturating_sub(has)) {
        let size = asked_size(claim).map_or("", |size| size.0.as_str());
        return Step::NoRoom(format!("{}: {size} is more than the volume's node can promise", super::room::NO_ROOM));
    }
    let pending = is_measured(volume) && made_size(volume).is_some_and(|made| made < has);
    match annotation(&volume.metadata, RESIZE_ERROR) {
        _ if !pending => Step::Done,
        "" => Step::OnNode,
        why => Step::NodeFailed(why.to_owned()),
    }
}

fn is_ours(volume: &PersistentVolume) -> bool {
    nfs::is_ours(volume) || BUILT_IN.contains(&annotation(&volume.metadata, PROVISIONED_BY))
}

/// What to do for a claim whose volume should have another size; `None` where it has the right one, or can't have it.
/// That the class allows it was checked when the claim was changed. The claim's own status follows, by the next
/// decision.
pub fn expand(claim: &PersistentVolumeClaim, volume: &PersistentVolume, step: &Step) -> Option<Decision> {
    let (asked, has) = (requested(claim), capacity(volume));
    let made = if is_measured(volume) { made_size(volume) } else { None };
    // The request was lowered again before the node has made more real than that.
    let lowered = asked < has && made.is_some_and(|made| made <= asked);
    let grows = asked > has && !matches!(step, Step::NoRoom(_));
    if !is_ours(volume) || !is_bound(volume, claim) || !(grows || lowered) {
        return None;
    }
    let patch = json!({"spec": {"capacity": {"storage": asked_size(claim)?}},
        "metadata": {"annotations": {(RESIZE_ERROR): null}}});
    let normal = |reason, message| Event::normal(&kinds::PERSISTENT_VOLUME_CLAIM, &claim.metadata, reason, message);
    let name = volume.metadata.name.as_deref().unwrap_or("");
    let mut decision = Decision {
        writes: vec![Write::patch(&kinds::PERSISTENT_VOLUME, &volume.metadata, patch)],
        ..Decision::default()
    };
    if grows {
        decision.events.push(normal("Resizing", format!("Resizing volume {name}")));
    }
    decision.events.push(match made {
        Some(_) => normal("FileSystemResizeRequired", "Require file system resize of volume on node".to_owned()),
        None => normal("VolumeResizeSuccessful", "Resize volume succeeded".to_owned()),
    });
    Some(decision)
}

/// What people are told once about a growth that does not go on: beside the write that says it in the status.
pub fn event(claim: &PersistentVolumeClaim, volume: &PersistentVolume, step: &Step) -> Option<Event> {
    if let Step::NoRoom(why) = step
        && !super::status::says(claim, "ControllerResizeError", why)
    {
        let name = volume.metadata.name.as_deref().unwrap_or("");
        let message = format!("resize volume \"{name}\" failed: {why}");
        return Some(Event::warning(&kinds::PERSISTENT_VOLUME_CLAIM, &claim.metadata, "VolumeResizeFailed", message));
    }
    None
}

/// Whether a claim asks for more of a volume that somebody else has to make larger.
pub fn is_external(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    !is_ours(volume) && requested(claim) > capacity(volume)
}
