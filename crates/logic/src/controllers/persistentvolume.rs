//! Volumes: their phase, and what becomes of them when their claim is gone. Key: the volume.
//!
//! Relies on: a claim staying (`kubernetes.io/pvc-protection`) while a pod on a node uses it, so that a volume whose
//! claim is gone is in nobody's hands; the node carrying out what is asked of it below.
//! Guarantees V1 (a claimRef is taken back only from a volume that its claim never used), V3 (Retain touches nothing;
//! Delete and Recycle only after the claim is gone), V6 (a claim made again does not get its predecessor's volume:
//! another uid is another claim).
//!
//! What the node does, for volumes whose node affinity it satisfies:
//!
//! - **Delete**: the volume is deleted here, its finalizer [`volume::LOCAL_PATH_FINALIZER`] stays. Once the
//!   volume has a deletionTimestamp, reclaim policy Delete and no protection finalizer any more, the node removes the
//!   directory and then takes its own finalizer away. With any
//!   other policy the finalizer is taken away here and the directory stays.
//! - **Recycle**: a Released volume gets the annotations [`RECYCLE`] (the uid of the claim that is gone) and
//!   [`RECYCLE_ON`] (the node that shall do it). That node empties the volume and then writes [`RECYCLED`] with the
//!   same uid; the volume is made Available here.
//!
//! Differs: a claim is not re-read from the server before its volume is released, since a snapshot is whole.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use mainstay_api::{ObjectKey, kinds};
use serde_json::{Value, json};

use crate::decision::{Controller, Decision, Event, Verb, Waiting, Write};
use crate::nodes::is_ready;
use crate::pods::is_terminating;
use crate::snapshot::{Change, Index, Snapshot};
use crate::volume::{self, RECYCLE, RECYCLE_ON, RECYCLED};

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "persistentvolume-binder",
    permits: &[
        (Verb::Patch, "persistentvolumes"),
        (Verb::PatchStatus, "persistentvolumes"),
        (Verb::Delete, "persistentvolumes"),
    ],
    reads: crate::volume::READS,
    keys,
    reconcile: |snapshot, key, now| observe(snapshot, key).map(|observed| decide(&observed, now)).unwrap_or_default(),
    many: None,
};

/// On behalf of which claim a node is to empty a volume.
pub fn asked<'a>(volume: &'a PersistentVolume, node: &str) -> Option<&'a str> {
    let annotation = |name: &str| volume::annotation(&volume.metadata, name);
    let uid = Some(annotation(RECYCLE)).filter(|uid| !uid.is_empty())?;
    let spec = volume.spec.as_ref()?;
    // The volume must still be that claim's, and still to be recycled.
    let held = spec.claim_ref.as_ref().and_then(|reference| reference.uid.as_deref()) == Some(uid);
    let policy = spec.persistent_volume_reclaim_policy.as_deref() == Some("Recycle");
    let here = annotation(RECYCLE_ON) == node && annotation(RECYCLED) != uid;
    (held && policy && here && volume.metadata.deletion_timestamp.is_none()).then_some(uid)
}

/// A volume and the claim that its claimRef names, whatever its uid.
pub struct Observed<'a> {
    volume: &'a PersistentVolume,
    claim: Option<&'a PersistentVolumeClaim>,
    snapshot: &'a Snapshot,
}

fn keys(before: &Snapshot, after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    match (&*change.kind.group, &*change.kind.plural) {
        ("", "persistentvolumes") => wake(change.key.clone()),
        ("", "persistentvolumeclaims") => {
            for snapshot in [before, after] {
                if let Some(claim) = snapshot.persistent_volume_claims.get(&change.key) {
                    wake(ObjectKey::new("", volume::volume_name(claim)));
                    wake(ObjectKey::new("", volume::provisioned_name(claim)));
                }
            }
            if change.new.is_none() {
                let named = after.indexes.get(Index::VolumesOf, &change.key.namespace, &change.key.name);
                named.for_each(|key| wake(key.clone()));
            }
        }
        ("", "nodes") => {
            // Who can do what volumes wait for: a ready node that reaches them.
            let able = |snapshot: &Snapshot| {
                let node = snapshot.nodes.get(&change.key)?;
                Some((is_ready(node), node.metadata.labels.clone()))
            };
            if able(before) != able(after) {
                after.indexes.get(Index::VolumesWaiting, "", "").for_each(|key| wake(key.clone()));
            }
        }
        _ => {}
    }
}

fn observe<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<Observed<'a>> {
    let volume = snapshot.persistent_volumes.get(key)?;
    let claim = volume::claim_ref(volume)
        .and_then(|reference| snapshot.persistent_volume_claims.get(&volume::claim_key(reference)));
    Some(Observed { volume, claim: claim.map(|claim| &**claim), snapshot })
}

/// A ready node that reaches the volume, the one that was asked first.
fn recycler<'a>(observed: &Observed<'a>) -> Option<&'a str> {
    let asked = volume::annotation(&observed.volume.metadata, RECYCLE_ON);
    let homes = volume::room::homes(observed.snapshot, observed.volume);
    let ready = || homes.iter().filter(|node| is_ready(node)).filter_map(|node| node.metadata.name.as_deref());
    ready().find(|name| *name == asked).or_else(|| ready().next())
}

fn decide(observed: &Observed, now: Timestamp) -> Decision {
    let volume = observed.volume;
    if let Some(write) = volume::nfs::appoint(observed.snapshot, volume) {
        return Decision { writes: vec![write], ..Decision::default() };
    }
    if is_terminating(&volume.metadata) {
        return terminating(volume);
    }
    let reference = volume::claim_ref(volume);
    let Some(uid) = reference.and_then(|reference| reference.uid.as_deref()).filter(|uid| !uid.is_empty()) else {
        return Decision { writes: phase(volume, "Available", now), ..Decision::default() };
    };
    let name = volume.metadata.name.as_deref();
    match observed.claim.filter(|claim| claim.metadata.uid.as_deref() == Some(uid)) {
        None => released(observed, uid, now),
        Some(claim) if Some(volume::volume_name(claim)) == name => {
            Decision { writes: phase(volume, "Bound", now), ..Decision::default() }
        }
        Some(claim) if volume::volume_name(claim).is_empty() && !volume::is_kept_for(volume, claim) => {
            mismatched(volume, claim, now)
        }
        // The claim's side is written next, by whoever wrote this one or by the claim's controller.
        Some(claim) if volume::volume_name(claim).is_empty() => Decision::default(),
        Some(_) => unused(volume, now),
    }
}

fn policy(volume: &PersistentVolume) -> &str {
    volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref()).unwrap_or("Retain")
}

/// A user reserved it by uid for a claim that it is not good enough for: nobody else gets it either.
fn mismatched(volume: &PersistentVolume, claim: &PersistentVolumeClaim, now: Timestamp) -> Decision {
    let writes = phase(volume, "Available", now);
    let name = claim.metadata.name.as_deref().unwrap_or("");
    let message = format!(
        "Cannot bind PersistentVolume to requested PersistentVolumeClaim \"{name}\": it asks for more or for \
            something else."
    );
    let event = Event::warning(&kinds::PERSISTENT_VOLUME, &volume.metadata, "VolumeMismatch", message);
    let events = if writes.is_empty() { Vec::new() } else { vec![event] };
    Decision { writes, events, waiting: vec![Waiting::InUse], ..Decision::default() }
}

/// The claim is there but chose another volume. One that was bound before keeps its bytes for a person to look at.
fn unused(volume: &PersistentVolume, now: Timestamp) -> Decision {
    if matches!(volume::phase(volume), "Bound" | "Released" | "Failed") {
        return Decision {
            writes: phase(volume, "Released", now),
            waiting: vec![Waiting::InUse],
            ..Decision::default()
        };
    }
    if !volume::annotation(&volume.metadata, volume::PROVISIONED_BY).is_empty() {
        // Made for this claim alone, and never used: nobody else may have it.
        return Decision {
            writes: vec![Write::delete(&kinds::PERSISTENT_VOLUME, &volume.metadata)],
            ..Decision::default()
        };
    }
    let by_controller = !volume::annotation(&volume.metadata, volume::BOUND_BY_CONTROLLER).is_empty();
    let claim_ref = if by_controller { Value::Null } else { json!({"uid": null, "resourceVersion": null}) };
    let patch =
        json!({"metadata": {"annotations": {volume::BOUND_BY_CONTROLLER: null}}, "spec": {"claimRef": claim_ref}});
    Decision { writes: vec![Write::patch(&kinds::PERSISTENT_VOLUME, &volume.metadata, patch)], ..Decision::default() }
}

/// The claim is gone: the reclaim policy decides.
fn released(observed: &Observed, claim_uid: &str, now: Timestamp) -> Decision {
    let volume = observed.volume;
    let mut decision = Decision::default();
    if volume::phase(volume) != "Failed" {
        decision.writes = phase(volume, "Released", now);
    }
    match policy(volume) {
        "Delete" => delete(&mut decision, volume, now),
        "Recycle" => recycle(&mut decision, observed, claim_uid),
        _ => {}
    }
    decision
}

fn delete(decision: &mut Decision, volume: &PersistentVolume, now: Timestamp) {
    let provisioner = volume::annotation(&volume.metadata, volume::PROVISIONED_BY);
    if volume::BUILT_IN.contains(&provisioner) || volume::nfs::is_ours(volume) {
        // The status patch before it, where there is one, has moved the resourceVersion on.
        let write = Write::delete(&kinds::PERSISTENT_VOLUME, &volume.metadata);
        decision.writes.push(if decision.writes.is_empty() { write } else { write.whatever_version() });
    } else if provisioner.is_empty() && volume::phase(volume) != "Failed" {
        let name = volume.metadata.name.as_deref().unwrap_or("");
        let message =
            format!("error getting deleter volume plugin for volume \"{name}\": no deletable volume plugin matched");
        decision.writes = phase_because(volume, "Failed", Some(&message), now);
        decision.events.push(Event::warning(
            &kinds::PERSISTENT_VOLUME,
            &volume.metadata,
            "VolumeFailedDelete",
            message,
        ));
    }
}

fn recycle(decision: &mut Decision, observed: &Observed, claim_uid: &str) {
    let volume = observed.volume;
    let is = |name: &str, value: &str| volume::annotation(&volume.metadata, name) == value;
    if is(RECYCLED, claim_uid) {
        // Empty: free again. The phase follows when the claimRef is gone, by the next decision.
        let nothing =
            json!({(RECYCLE): null, (RECYCLE_ON): null, (RECYCLED): null, (volume::BOUND_BY_CONTROLLER): null});
        let patch = json!({"metadata": {"annotations": nothing}, "spec": {"claimRef": null}});
        decision.writes = vec![Write::patch(&kinds::PERSISTENT_VOLUME, &volume.metadata, patch)];
        let message = "Volume recycled".to_owned();
        decision.events.push(Event::normal(&kinds::PERSISTENT_VOLUME, &volume.metadata, "VolumeRecycled", message));
        return;
    }
    match recycler(observed) {
        Some(node) if !(is(RECYCLE, claim_uid) && is(RECYCLE_ON, node)) => {
            let patch = json!({"metadata": {"annotations": {(RECYCLE): claim_uid, (RECYCLE_ON): node}}});
            decision.writes.insert(0, Write::patch(&kinds::PERSISTENT_VOLUME, &volume.metadata, patch));
        }
        _ => decision.waiting.push(Waiting::InUse),
    }
}

/// On its way out: unless the policy says Delete, no node has anything to do for it.
fn terminating(volume: &PersistentVolume) -> Decision {
    let finalizers = volume.metadata.finalizers.as_deref().unwrap_or_default();
    let is_ours =
        |finalizer: &&String| [volume::LOCAL_PATH_FINALIZER, volume::nfs::FINALIZER].contains(&finalizer.as_str());
    let ours = finalizers.iter().any(|finalizer| is_ours(&finalizer));
    let protected = finalizers.iter().any(|finalizer| finalizer == volume::PV_PROTECTION);
    if ours && !protected && policy(volume) != "Delete" {
        let rest: Vec<&String> = finalizers.iter().filter(|finalizer| !is_ours(finalizer)).collect();
        let patch = json!({"metadata": {"finalizers": rest}});
        return Decision {
            writes: vec![Write::patch(&kinds::PERSISTENT_VOLUME, &volume.metadata, patch)],
            ..Decision::default()
        };
    }
    Decision { waiting: vec![Waiting::InUse], ..Decision::default() }
}

fn phase(volume: &PersistentVolume, wanted: &str, now: Timestamp) -> Vec<Write> {
    phase_because(volume, wanted, None, now)
}

/// The phase, what there is to say of it, and since when it is so.
fn phase_because(volume: &PersistentVolume, wanted: &str, message: Option<&str>, now: Timestamp) -> Vec<Write> {
    let status = json!({"phase": wanted, "message": message, "lastPhaseTransitionTime": Time(now)});
    let write = || Write::patch_status(&kinds::PERSISTENT_VOLUME, &volume.metadata, status);
    if volume::phase(volume) == wanted { Vec::new() } else { vec![write()] }
}
