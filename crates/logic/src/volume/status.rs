//! What a bound claim says about itself: its volume's modes and real size, and what is under way or was refused.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimCondition, PersistentVolumeClaimStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use mainstay_api::kinds;
use serde_json::{Value, json};

use super::attributes::{self, Asked};
use super::growth::Step;
use super::made_size;
use crate::decision::Write;

/// Upstream's conditions of claims that are written here; others are left alone.
const CONDITIONS: [&str; 6] = [
    "Resizing",
    "FileSystemResizePending",
    "ControllerResizeError",
    "NodeResizeError",
    "ModifyingVolume",
    "ModifyVolumeError",
];
const PENDING: &str = "Waiting for user to (re-)start a pod to finish file system resize of volume on node.";

/// Whether a claim waits for something that its volume's node, or a class, has yet to get.
pub fn is_held_up(claim: &PersistentVolumeClaim) -> bool {
    let status = claim.status.as_ref();
    let steps = status.and_then(|status| status.allocated_resource_statuses.as_ref());
    steps.and_then(|steps| steps.get("storage")).is_some_and(|step| step == "ControllerResizeInfeasible")
        || status.is_some_and(|status| status.modify_volume_status.is_some())
}

/// Whether a claim says so already.
pub(super) fn says(claim: &PersistentVolumeClaim, type_: &str, message: &str) -> bool {
    let conditions = claim.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == type_ && condition.message.as_deref() == Some(message))
}

/// The write that makes a bound claim's status say what is true of its volume, where it does not.
pub(super) fn write(
    volume: &PersistentVolume,
    claim: &PersistentVolumeClaim,
    step: &Step,
    asked: Option<&Asked>,
    now: Timestamp,
) -> Option<Write> {
    let nothing = PersistentVolumeClaimStatus::default();
    let (spec, status) = (volume.spec.as_ref(), claim.status.as_ref().unwrap_or(&nothing));
    let size = spec.and_then(|spec| spec.capacity.as_ref()?.get("storage"));
    let wanted = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref()?.get("storage"));
    let has = status.capacity.as_ref().and_then(|capacity| capacity.get("storage"));
    let real = match (step, made_size(volume)) {
        (Step::Done, _) | (_, None) => size.cloned(),
        // What it had is what is real, unless it never said.
        (_, Some(made)) => has.cloned().or_else(|| Some(Quantity(made.to_string()))),
    };
    let (phase, allocated) = match step {
        // Once said, it stays, and is what was given in the end.
        Step::Done => (None, status.allocated_resources.as_ref().and(size)),
        Step::OnNode => (Some("NodeResizePending"), size),
        Step::NodeFailed(_) => (Some("NodeResizeInProgress"), size),
        Step::NoRoom(_) => (Some("ControllerResizeInfeasible"), wanted),
    };
    let one = |value: Option<Value>| value.map_or(Value::Null, |value| json!({"storage": value}));
    let current = Some(attributes::of_volume(volume)).filter(|class| !class.is_empty());
    let mut new = json!({
        "phase": "Bound",
        "accessModes": spec.and_then(|spec| spec.access_modes.as_ref()),
        "capacity": {"storage": real},
        "allocatedResources": one(allocated.map(|size| json!(size))),
        "allocatedResourceStatuses": one(phase.map(|phase| json!(phase))),
        "currentVolumeAttributesClassName": current,
        "modifyVolumeStatus": asked.map(|asked| json!({"targetVolumeAttributesClassName": asked.target,
            "status": asked.status})),
        "conditions": conditions(status, step, asked, now),
    });
    let old = json!(status);
    let empty = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    if let Some(fields) = new.as_object_mut() {
        // Only what differs; nothing said is as good as nothing to say.
        fields.retain(|field, value| {
            let old = old.get(field).unwrap_or(&Value::Null);
            old != value && !(empty(old) && empty(value))
        });
        if fields.is_empty() {
            return None;
        }
    }
    Some(Write::patch_status(&kinds::PERSISTENT_VOLUME_CLAIM, &claim.metadata, new))
}

/// The claim's conditions with those that are true now; one that was true before keeps its time.
fn conditions(
    status: &PersistentVolumeClaimStatus,
    step: &Step,
    asked: Option<&Asked>,
    now: Timestamp,
) -> Vec<PersistentVolumeClaimCondition> {
    let before = || status.conditions.iter().flatten();
    let mut all: Vec<_> =
        before().filter(|condition| !CONDITIONS.contains(&condition.type_.as_str())).cloned().collect();
    let mut say = |type_: &str, message: &str| {
        let old = before().find(|old| old.type_ == type_ && old.status == "True");
        all.push(PersistentVolumeClaimCondition {
            type_: type_.to_owned(),
            status: "True".to_owned(),
            message: Some(message.to_owned()),
            last_transition_time: old.and_then(|old| old.last_transition_time.clone()).or(Some(Time(now))),
            ..PersistentVolumeClaimCondition::default()
        });
    };
    match step {
        Step::Done => {}
        Step::OnNode => say("FileSystemResizePending", PENDING),
        Step::NodeFailed(why) => {
            say("FileSystemResizePending", PENDING);
            say("NodeResizeError", why);
        }
        Step::NoRoom(why) => say("ControllerResizeError", why),
    }
    if let Some(asked) = asked {
        say("ModifyVolumeError", &asked.why);
    }
    all
}
