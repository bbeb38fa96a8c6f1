//! VolumeSnapshots: bound to the copy that they ask for. Key: the snapshot.
//!
//! Relies on: the node (`mainstay.io/snapshot-on` of the content) or an external driver making the copy and saying so
//! in the content's status; pvcprotection keeping the claim until the copy is made.
//! Guarantees: a content is bound to one snapshot, by uid, from its creation or by one guarded write; what a snapshot
//! says of its data is what a content that names it says. A content that is gone is never made anew under the same
//! snapshot: it would hold another moment. Deletion (V2, V3): the snapshot stays until no claim is being filled from it
//! and, with policy Delete, until the copy is gone.
//! Safe when cut: a content without the snapshot's status is found by its name.
//! Differs: the claim is kept by its own protection finalizer, so no second one is put on it; both of the snapshot's
//! finalizers are there from the beginning.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use mainstay_api::quantity::{Format, Quantity};
use mainstay_api::snapshots::{VolumeSnapshot, VolumeSnapshotClass, VolumeSnapshotContent};
use mainstay_api::{ObjectKey, kinds, time};
use serde_json::{Value, json};

use crate::decision::{Controller, Decision, Event, Propagation, Verb, Waiting, Write, key_of};
use crate::ownership::controller_of;
use crate::pods::is_terminating;
use crate::snapshot::{Change, Index, Snapshot};
use crate::volume::source::{self, SNAPSHOT_ON, dynamic_content, is_content_of};
use crate::volume::{self, BUILT_IN, LOCAL_PATH_FINALIZER, annotation};

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "snapshot-controller",
    permits: &[
        (Verb::Patch, "volumesnapshots"),
        (Verb::PatchStatus, "volumesnapshots"),
        (Verb::Create, "volumesnapshotcontents"),
        (Verb::Patch, "volumesnapshotcontents"),
        (Verb::Delete, "volumesnapshotcontents"),
    ],
    reads: crate::volume::READS,
    keys,
    reconcile: |snapshot, key, now| observe(snapshot, key).map(|observed| decide(&observed, now)).unwrap_or_default(),
    many: None,
};

/// Kept on a snapshot while a claim is filled from it, and while it is bound.
pub const FINALIZERS: [&str; 2] = [
    "snapshot.storage.kubernetes.io/volumesnapshot-as-source-protection",
    "snapshot.storage.kubernetes.io/volumesnapshot-bound-protection",
];
/// Kept on a content while its snapshot is there.
pub const CONTENT_FINALIZER: &str = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection";
/// On a content: its snapshot is on its way out.
pub const BEING_DELETED: &str = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted";

/// A snapshot, and everything that it may be bound to.
pub struct Observed<'a> {
    snapshot: &'a VolumeSnapshot,
    world: &'a Snapshot,
}

fn keys(before: &Snapshot, after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    let wake_all = |wake: &mut dyn FnMut(ObjectKey), index: Index, first: &str, second: &str| {
        after.indexes.get(index, first, second).for_each(|key| wake(key.clone()));
    };
    match (&*change.kind.group, &*change.kind.plural) {
        ("snapshot.storage.k8s.io", "volumesnapshots") => wake(change.key.clone()),
        ("snapshot.storage.k8s.io", "volumesnapshotcontents") => {
            for content in
                [before, after].into_iter().filter_map(|world| world.volume_snapshot_contents.get(&change.key))
            {
                wake(source::key_of_reference(&content.spec.volume_snapshot_ref));
            }
            wake_all(wake, Index::SnapshotsNaming, &change.key.name, "");
        }
        ("snapshot.storage.k8s.io", "volumesnapshotclasses") => wake_all(wake, Index::SnapshotsUnsettled, "", ""),
        ("", "persistentvolumeclaims") => {
            let unsettled = after.found::<VolumeSnapshot>(Index::SnapshotsUnsettled, "", "");
            let name = Some(&*change.key.name);
            let concerned = unsettled.filter(|(key, copy)| {
                let taken = copy.spec.source.persistent_volume_claim_name.as_deref() == name;
                key.namespace == change.key.namespace && (taken || is_terminating(&copy.metadata))
            });
            concerned.for_each(|(key, _)| wake(key.clone()));
        }
        // A volume that is ready to be copied, or that has become a copy.
        ("", "persistentvolumes") => wake_all(wake, Index::SnapshotsUnsettled, "", ""),
        _ => {}
    }
}

fn observe<'a>(world: &'a Snapshot, key: &ObjectKey) -> Option<Observed<'a>> {
    world.volume_snapshots.get(key).map(|snapshot| Observed { snapshot, world })
}

fn decide(observed: &Observed, now: Timestamp) -> Decision {
    let snapshot = observed.snapshot;
    if is_terminating(&snapshot.metadata) {
        return terminating(observed);
    }
    let finalizers = snapshot.metadata.finalizers.as_deref().unwrap_or_default();
    if !FINALIZERS.iter().all(|wanted| finalizers.iter().any(|present| present == wanted)) {
        let others = finalizers.iter().map(String::as_str).filter(|present| !FINALIZERS.contains(present));
        let all: Vec<&str> = others.chain(FINALIZERS).collect();
        let patch = json!({"metadata": {"finalizers": all}});
        return Decision {
            writes: vec![Write::patch(&kinds::VOLUME_SNAPSHOT, &snapshot.metadata, patch)],
            ..Decision::default()
        };
    }
    match &snapshot.spec.source.volume_snapshot_content_name {
        Some(name) => pre_provisioned(observed, name, now),
        None => dynamic(observed, now),
    }
}

/// A snapshot of a claim.
fn dynamic(observed: &Observed, now: Timestamp) -> Decision {
    let (snapshot, world) = (observed.snapshot, observed.world);
    let name = dynamic_content(snapshot);
    if let Some(content) = world.volume_snapshot_contents.get(&ObjectKey::new("", name.as_str())) {
        return match is_content_of(content, snapshot) {
            true => follow(snapshot, content, now),
            false => misbound(snapshot, &name, now),
        };
    }
    if snapshot.status.as_ref().is_some_and(|status| status.bound_volume_snapshot_content_name.is_some()) {
        return failed(snapshot, "SnapshotContentMissing", "VolumeSnapshotContent is missing".to_owned(), now);
    }
    if snapshot.spec.volume_snapshot_class_name.is_none() {
        return match driver_of_source(observed).and_then(|driver| default_class(world, driver)) {
            Ok(class) => {
                let patch = json!({"spec": {"volumeSnapshotClassName": class.metadata.name}});
                Decision {
                    writes: vec![Write::patch(&kinds::VOLUME_SNAPSHOT, &snapshot.metadata, patch)],
                    ..Decision::default()
                }
            }
            Err(why) => failed(
                snapshot,
                "SetDefaultSnapshotClassFailed",
                format!("Failed to set default snapshot class with error {why}"),
                now,
            ),
        };
    }
    match content_for(observed) {
        Ok(object) => {
            let message =
                format!("Waiting for a snapshot {} to be created by the CSI driver.", key_of(&snapshot.metadata));
            let status = json!({"boundVolumeSnapshotContentName": name, "readyToUse": false, "error": null});
            Decision {
                writes: vec![
                    Write::Create { kind: kinds::VOLUME_SNAPSHOT_CONTENT.clone(), object },
                    Write::patch_status(&kinds::VOLUME_SNAPSHOT, &snapshot.metadata, status),
                ],
                events: vec![Event::normal(&kinds::VOLUME_SNAPSHOT, &snapshot.metadata, "CreatingSnapshot", message)],
                ..Decision::default()
            }
        }
        Err(why) => failed(
            snapshot,
            "SnapshotContentCreationFailed",
            format!("Failed to create snapshot content with error {why}"),
            now,
        ),
    }
}

/// The claim that is to be copied, and its volume.
fn source_of<'a>(observed: &Observed<'a>) -> Result<(&'a PersistentVolumeClaim, &'a PersistentVolume), String> {
    let name = observed.snapshot.spec.source.persistent_volume_claim_name.as_deref().unwrap_or("");
    let key = ObjectKey::new(observed.snapshot.metadata.namespace.as_deref().unwrap_or(""), name);
    let Some(claim) = observed.world.persistent_volume_claims.get(&key) else {
        return Err(format!(
            "failed to retrieve PVC {name} from the lister: persistentvolumeclaim \"{name}\" not found"
        ));
    };
    if is_terminating(&claim.metadata) {
        return Err(format!("the PVC {name} is being deleted"));
    }
    let bound = observed.world.persistent_volumes.get(&ObjectKey::new("", volume::volume_name(claim)));
    match bound.filter(|volume| volume::is_bound(volume, claim)) {
        Some(volume) => Ok((claim, volume)),
        None => Err(format!("the PVC {name} is not yet bound to a PV, will not attempt to take a snapshot")),
    }
}

/// The driver that a volume is of.
fn driver_of(volume: &PersistentVolume) -> Result<&str, String> {
    let provisioner = annotation(&volume.metadata, volume::PROVISIONED_BY);
    if BUILT_IN.contains(&provisioner) {
        return Ok(provisioner);
    }
    let csi = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref());
    let name = volume.metadata.name.as_deref().unwrap_or("");
    csi.map(|csi| csi.driver.as_str())
        .ok_or_else(|| format!("cannot find CSI PersistentVolumeSource for volume {name}"))
}

fn driver_of_source<'a>(observed: &Observed<'a>) -> Result<&'a str, String> {
    source_of(observed).and_then(|(_, volume)| driver_of(volume))
}

/// Whether two names are of one driver: the built-in one has several.
fn is_same_driver(one: &str, other: &str) -> bool {
    one == other || (BUILT_IN.contains(&one) && BUILT_IN.contains(&other))
}

/// The class that is marked as the default of a driver.
fn default_class<'a>(world: &'a Snapshot, driver: &str) -> Result<&'a VolumeSnapshotClass, String> {
    let marked = |class: &&VolumeSnapshotClass| {
        annotation(&class.metadata, kinds::volumesnapshotclass::DEFAULT_ANNOTATION) == "true"
            && is_same_driver(&class.driver, driver)
    };
    let mut classes = world.volume_snapshot_classes.iter().map(|(_, class)| &**class).filter(marked);
    match (classes.next(), classes.count()) {
        (None, _) => Err("cannot find default snapshot class".to_owned()),
        (Some(class), 0) => Ok(class),
        (Some(_), more) => Err(format!("{} default snapshot classes were found", more + 1)),
    }
}

/// The content to be made for a snapshot of a claim.
fn content_for(observed: &Observed) -> Result<Value, String> {
    let (snapshot, world) = (observed.snapshot, observed.world);
    let class_name = snapshot.spec.volume_snapshot_class_name.as_deref().unwrap_or("");
    let Some(class) = world.volume_snapshot_classes.get(&ObjectKey::new("", class_name)) else {
        return Err(format!(
            "failed to retrieve snapshot class {class_name} from the informer: \
                volumesnapshotclass.snapshot.storage.k8s.io \"{class_name}\" \
             not found"
        ));
    };
    let (claim, volume) = source_of(observed)?;
    let driver = driver_of(volume)?;
    if !is_same_driver(&class.driver, driver) {
        return Err(format!(
            "snapshot class {class_name} is of driver \"{}\", the volume is of driver \"{driver}\"",
            class.driver
        ));
    }
    let spec = volume.spec.as_ref();
    let mut metadata = json!({"name": dynamic_content(snapshot), "finalizers": [CONTENT_FINALIZER]});
    let mut handle = spec.and_then(|spec| spec.csi.as_ref()).map(|csi| csi.volume_handle.as_str());
    if BUILT_IN.contains(&driver) {
        let volume = source::source_volume(world, claim)?;
        metadata["finalizers"] = json!([CONTENT_FINALIZER, LOCAL_PATH_FINALIZER]);
        metadata["annotations"] = json!({(SNAPSHOT_ON): annotation(&volume.metadata, volume::MADE_ON)});
        handle = volume.metadata.name.as_deref();
    }
    let reference = json!({"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
        "namespace": snapshot.metadata.namespace,
        "name": snapshot.metadata.name, "uid": snapshot.metadata.uid});
    Ok(json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent", "metadata": metadata,
        "spec": {
            "driver": class.driver, "deletionPolicy": class.deletion_policy, "volumeSnapshotClassName": class_name,
            "source": {"volumeHandle": handle}, "volumeSnapshotRef": reference,
            "sourceVolumeMode": volume::volume_mode(spec.and_then(|spec| spec.volume_mode.as_deref())),
        },
    }))
}

/// A snapshot that stands for a copy which was there before.
fn pre_provisioned(observed: &Observed, name: &str, now: Timestamp) -> Decision {
    let snapshot = observed.snapshot;
    let Some(content) = observed.world.volume_snapshot_contents.get(&ObjectKey::new("", name)) else {
        return failed(snapshot, "SnapshotContentMissing", "VolumeSnapshotContent is missing".to_owned(), now);
    };
    if content.spec.source.snapshot_handle.is_none() {
        let message =
            "VolumeSnapshotContent is dynamically provisioned while expecting a pre-provisioned one".to_owned();
        return failed(snapshot, "SnapshotContentMismatch", message, now);
    }
    let reference = &content.spec.volume_snapshot_ref;
    if source::key_of_reference(reference) != key_of(&snapshot.metadata) {
        return misbound(snapshot, name, now);
    }
    match reference.uid.as_deref().filter(|uid| !uid.is_empty()) {
        None if is_terminating(&content.metadata) => misbound(snapshot, name, now),
        None => {
            let patch = json!({"spec": {"volumeSnapshotRef": {"uid": snapshot.metadata.uid}}});
            let write = Write::patch(&kinds::VOLUME_SNAPSHOT_CONTENT, &content.metadata, patch);
            Decision { writes: vec![write], ..Decision::default() }
        }
        Some(uid) if Some(uid) == snapshot.metadata.uid.as_deref() => follow(snapshot, content, now),
        Some(_) => misbound(snapshot, name, now),
    }
}

fn misbound(snapshot: &VolumeSnapshot, content: &str, now: Timestamp) -> Decision {
    failed(
        snapshot,
        "SnapshotContentMisbound",
        format!("VolumeSnapshotContent [{content}] is bound to a different snapshot"),
        now,
    )
}

/// Says of the snapshot what its content says of the copy.
fn follow(snapshot: &VolumeSnapshot, content: &VolumeSnapshotContent, now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    let said = content.status.clone().unwrap_or_default();
    let made = said.creation_time.and_then(|nanos| Timestamp::from_nanosecond(i128::from(nanos)).ok());
    let size = said.restore_size.map(|size| Quantity::from_units(size, Format::BinarySi).to_string());
    let ready = said.ready_to_use == Some(true);
    let error = said.error.as_ref().filter(|_| !ready).and_then(|error| error.message.as_deref());
    let was = snapshot.status.clone().unwrap_or_default();
    let last_error = was.error.as_ref().and_then(|error| error.message.as_deref());
    let bound = was.bound_volume_snapshot_content_name == content.metadata.name;
    let times = (was.creation_time.as_ref().map(|time| time.0.as_second()), made.map(Timestamp::as_second));
    let sizes = (was.restore_size.as_ref().map(|size| size.0.as_str()), size.as_deref());
    if !bound || was.ready_to_use != Some(ready) || times.0 != times.1 || sizes.0 != sizes.1 || last_error != error {
        let mut status = json!({"boundVolumeSnapshotContentName": content.metadata.name, "readyToUse": ready,
            "creationTime": made.map(time::rfc3339), "restoreSize": size, "error": null});
        if let Some(group) = controller_of(&snapshot.metadata).filter(|owner| owner.kind == "VolumeGroupSnapshot") {
            status["volumeGroupSnapshotName"] = json!(group.name);
        }
        if let Some(message) = error {
            status["error"] = json!({"message": message, "time": time::rfc3339(now)});
        }
        decision.writes.push(Write::patch_status(&kinds::VOLUME_SNAPSHOT, &snapshot.metadata, status));
        let key = key_of(&snapshot.metadata);
        let mut record = |reason, message| {
            decision.events.push(Event::normal(&kinds::VOLUME_SNAPSHOT, &snapshot.metadata, reason, message))
        };
        if times.0.is_none() && made.is_some() {
            record("SnapshotCreated", format!("Snapshot {key} was successfully created by the CSI driver."));
        }
        if ready && was.ready_to_use != Some(true) {
            record("SnapshotReady", format!("Snapshot {key} is ready to use."));
        }
    }
    if !ready {
        decision.waiting.push(Waiting::Missing { what: "the copy".to_owned() });
    }
    decision
}

/// Something is wrong: said once, in the status and as an event.
fn failed(snapshot: &VolumeSnapshot, reason: &'static str, message: String, now: Timestamp) -> Decision {
    let mut decision = Decision { waiting: vec![Waiting::NoVolume], ..Decision::default() };
    let was = snapshot.status.clone().unwrap_or_default();
    if was.error.and_then(|error| error.message).as_deref() != Some(message.as_str()) || was.ready_to_use != Some(false)
    {
        let status = json!({"readyToUse": false, "error": {"message": message, "time": time::rfc3339(now)}});
        decision.writes.push(Write::patch_status(&kinds::VOLUME_SNAPSHOT, &snapshot.metadata, status));
        decision.events.push(Event::warning(&kinds::VOLUME_SNAPSHOT, &snapshot.metadata, reason, message));
    }
    decision
}

/// On its way out: the copy goes first, where the policy says so.
fn terminating(observed: &Observed) -> Decision {
    let (snapshot, world) = (observed.snapshot, observed.world);
    let ours = |present: &&String| FINALIZERS.contains(&present.as_str());
    let finalizers = snapshot.metadata.finalizers.as_deref().unwrap_or_default();
    if !finalizers.iter().any(|present| ours(&present)) {
        return Decision::default();
    }
    let dynamic = dynamic_content(snapshot);
    let name = snapshot.spec.source.volume_snapshot_content_name.as_deref().unwrap_or(&dynamic);
    let content = world
        .volume_snapshot_contents
        .get(&ObjectKey::new("", name))
        .filter(|content| is_content_of(content, snapshot));
    let mut decision = Decision::default();
    if let Some(content) = content {
        if super::volumesnapshotcontent::is_source(world, content) {
            let message = "Snapshot is being used to restore a PVC".to_owned();
            decision.events.push(Event::warning(
                &kinds::VOLUME_SNAPSHOT,
                &snapshot.metadata,
                "SnapshotDeletePending",
                message,
            ));
            decision.waiting.push(Waiting::InUse);
            return decision;
        }
        let marked = !annotation(&content.metadata, BEING_DELETED).is_empty();
        if !marked {
            let patch = json!({"metadata": {"annotations": {(BEING_DELETED): "yes"}}});
            decision.writes.push(Write::patch(&kinds::VOLUME_SNAPSHOT_CONTENT, &content.metadata, patch));
        }
        if content.spec.deletion_policy == "Delete" {
            if !is_terminating(&content.metadata) {
                let (key, uid) = (key_of(&content.metadata), content.metadata.uid.clone().unwrap_or_default());
                // The patch before it, where there is one, has moved the resourceVersion on.
                let resource_version = content.metadata.resource_version.clone().filter(|_| marked);
                let (grace_period, propagation) = (None, Propagation::Background);
                let kind = &kinds::VOLUME_SNAPSHOT_CONTENT;
                decision.writes.push(Write::Delete {
                    kind: kind.clone(),
                    key,
                    uid,
                    resource_version,
                    grace_period,
                    propagation,
                });
            }
            decision.waiting.push(Waiting::InUse);
            return decision;
        }
    }
    let rest: Vec<&String> = finalizers.iter().filter(|present| !ours(present)).collect();
    decision.writes.push(Write::patch(
        &kinds::VOLUME_SNAPSHOT,
        &snapshot.metadata,
        json!({"metadata": {"finalizers": rest}}),
    ));
    decision
}

#[cfg(test)]
mod tests;
