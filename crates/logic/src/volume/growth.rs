//! Claims that ask for more than they have (V10), and the size that a claim says it has.
//!
//! A plain directory grows by saying so. An image grows in this order: the claim's request raises the volume's capacity;
//! the claim says `FileSystemResizePending`; the node makes it real, while pods use it, and notes that as
//! [`MADE_SIZE`](super::MADE_SIZE); then the claim has the new capacity. An image that was never mounted is made in the new
//! size at once. Until the node has noted it, the request can be lowered again, down to what the claim has.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use mainstay_api::kinds;
use serde_json::{Value, json};

use super::{BUILT_IN, PROVISIONED_BY, annotation, capacity, is_bound, is_image, made_size, nfs, requested};
use crate::decision::{Decision, Event, Write};

/// Upstream's conditions of a claim that grows.
const CONDITIONS: [&str; 2] = ["Resizing", "FileSystemResizePending"];

/// Whether somebody keeps the size, and a node notes what was made real.
fn is_measured(volume: &PersistentVolume) -> bool {
    is_image(volume) || nfs::is_sized(volume)
}

/// Whether the node has yet to make real what the volume's capacity says.
fn is_pending(volume: &PersistentVolume) -> bool {
    is_measured(volume) && made_size(volume).is_some_and(|made| made < capacity(volume))
}

/// What to do for a claim whose volume should have another size; `None` where it has the right one. That the class allows
/// it was checked when the claim was changed. The claim's own status follows, by the next decision.
pub fn expand(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Option<Decision> {
    let built_in = nfs::is_ours(volume) || BUILT_IN.contains(&annotation(&volume.metadata, PROVISIONED_BY));
    let (asked, has) = (requested(claim), capacity(volume));
    let made = if is_measured(volume) { made_size(volume) } else { None };
    // The request was lowered again before the node has made more real than that.
    let lowered = asked < has && made.is_some_and(|made| made <= asked);
    if !built_in || !is_bound(volume, claim) || !(asked > has || lowered) {
        return None;
    }
    let size = claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?.get("storage")?;
    let patch = json!({"spec": {"capacity": {"storage": size}}});
    let normal = |reason, message| Event::normal(&kinds::PERSISTENT_VOLUME_CLAIM, &claim.metadata, reason, message);
    let event = match made {
        Some(_) => normal("FileSystemResizeRequired", "Require file system resize of volume on node".to_owned()),
        None => normal("VolumeResizeSuccessful", "Resize volume succeeded".to_owned()),
    };
    Some(Decision {
        writes: vec![Write::patch(&kinds::PERSISTENT_VOLUME, &volume.metadata, patch)],
        events: vec![event],
        ..Decision::default()
    })
}

/// The write that makes a bound claim's status say what is true of its volume, where it does not.
pub(super) fn status(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<Write> {
    let nothing = PersistentVolumeClaimStatus::default();
    let (spec, status) = (volume.spec.as_ref(), claim.status.as_ref().unwrap_or(&nothing));
    let modes = spec.and_then(|spec| spec.access_modes.clone());
    let size = spec.and_then(|spec| spec.capacity.as_ref()?.get("storage").cloned());
    let has = status.capacity.as_ref().and_then(|capacity| capacity.get("storage").cloned());
    let pending = is_pending(volume);
    let real = match made_size(volume).filter(|_| pending) {
        // What it had is what is real, unless it never said.
        Some(made) => has.clone().or_else(|| Some(Quantity(made.to_string()))),
        None => size.clone(),
    };
    let step = status.allocated_resource_statuses.as_ref().and_then(|steps| steps.get("storage")).map(String::as_str);
    let allocated = status.allocated_resources.as_ref().and_then(|allocated| allocated.get("storage"));
    let says_pending = step == Some("NodeResizePending") && allocated == size.as_ref() && has_condition(status, CONDITIONS[1]);
    let says_nothing = step.is_none() && !CONDITIONS.iter().any(|type_| has_condition(status, type_));
    let grows_right = if pending { says_pending } else { says_nothing };
    if status.phase.as_deref() == Some("Bound") && status.access_modes == modes && has == real && grows_right {
        return None;
    }
    let mut new = json!({"phase": "Bound", "accessModes": modes, "capacity": {"storage": real}});
    if !grows_right {
        new["conditions"] = conditions(status, pending);
        new["allocatedResourceStatuses"] = if pending { json!({"storage": "NodeResizePending"}) } else { Value::Null };
    }
    if pending {
        new["allocatedResources"] = json!({"storage": size});
    }
    Some(Write::patch_status(&kinds::PERSISTENT_VOLUME_CLAIM, &claim.metadata, new))
}

fn has_condition(status: &PersistentVolumeClaimStatus, type_: &str) -> bool {
    status.conditions.iter().flatten().any(|condition| condition.type_ == type_)
}

/// The claim's conditions with those of a growth that the node has yet to do, or without any.
fn conditions(status: &PersistentVolumeClaimStatus, pending: bool) -> Value {
    let others = status.conditions.iter().flatten().filter(|condition| !CONDITIONS.contains(&condition.type_.as_str()));
    let mut all: Vec<Value> = others.map(|condition| json!(condition)).collect();
    if pending {
        let message = "Waiting for user to (re-)start a pod to finish file system resize of volume on node.";
        all.push(json!({"type": CONDITIONS[1], "status": "True", "message": message, "lastProbeTime": null, "lastTransitionTime": null}));
    }
    json!(all)
}
