//! Claims: bound to a volume that fits, provisioned for, or told why not. Key: the claim.
//!
//! Relies on: [`crate::volume`]'s order of writes; the persistentvolume controller marking free volumes `Available`; the
//! scheduler binding claims of WaitForFirstConsumer classes.
//! Guarantees V1 (a volume is taken by uid, guarded by its resourceVersion, before the claim names it; a claim whose
//! volume belongs to another becomes Lost, not shared), V6 (a claim made again is a new uid and gets nothing of its
//! predecessor's). Safe when cut: after the claimRef alone, the next decision finds the volume that is its own.
//! Differs: claims of built-in Immediate classes are provisioned here on the selected or the first ready node.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use mainstay_api::{ObjectKey, kinds};
use serde_json::json;

use crate::decision::{Controller, Decision, Event, Verb, Waiting, Write, key_of};
use crate::pods::is_terminating;
use crate::snapshot::{Change, Snapshot};
use crate::volume;
use crate::volume::source::{self, Wanted};

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "persistentvolume-controller",
    permits: &[
        (Verb::Create, "persistentvolumes"),
        (Verb::Patch, "persistentvolumes"),
        (Verb::Patch, "persistentvolumeclaims"),
        (Verb::PatchStatus, "persistentvolumeclaims"),
    ],
    keys,
    reconcile: |snapshot, key, now| observe(snapshot, key).map(|observed| decide(&observed, now)).unwrap_or_default(),
};

const DEFAULT_CLASS: [&str; 2] = ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
/// On a claim: who is asked to provision. The second is what older provisioners read.
const PROVISIONER: [&str; 2] = ["volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner"];

/// A claim and the volumes, classes and nodes there are.
pub struct Observed<'a> {
    claim: &'a PersistentVolumeClaim,
    snapshot: &'a Snapshot,
}

fn keys(before: &Snapshot, after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    let unsettled = |claim: &PersistentVolumeClaim| claim.status.as_ref().and_then(|status| status.phase.as_deref()) != Some("Bound");
    match (change.kind.group, change.kind.plural) {
        ("", "persistentvolumeclaims") => {
            wake(change.key.clone());
            let clones = |key: &ObjectKey, wanted: Wanted| key.namespace == change.key.namespace && wanted.is_claim(&change.key.name);
            wake_copies(after, &clones, wake);
        }
        ("snapshot.storage.k8s.io", _) => wake_copies(after, &|_, wanted| wanted.kind == "VolumeSnapshot", wake),
        ("", "persistentvolumes") => {
            // The claims that are to be copies of this volume's.
            wake_copies(after, &|_, wanted| wanted.kind == "PersistentVolumeClaim", wake);
            // The claims that name the volume, those that it names, and, when it is free, those that it would suit.
            let volumes = [before, after].map(|snapshot| snapshot.persistent_volumes.get(&change.key));
            let references = volumes.into_iter().flatten().filter_map(|volume| volume::claim_ref(volume));
            references.for_each(|reference| wake(volume::claim_key(reference)));
            let free = volumes[1].filter(|volume| volume::claim_ref(volume).is_none());
            let concerned = |claim: &PersistentVolumeClaim| match volume::volume_name(claim) {
                "" => unsettled(claim) && free.is_some_and(|volume| volume::satisfies(volume, claim).is_ok()),
                name => name == &*change.key.name,
            };
            let claims = after.persistent_volume_claims.iter().filter(|(_, claim)| concerned(claim));
            claims.for_each(|(key, _)| wake(key.clone()));
        }
        ("storage.k8s.io", "storageclasses") | ("", "nodes") => {
            let made_or_gone = change.old.is_none() || change.new.is_none() || change.kind.plural != "nodes";
            let claims = after.persistent_volume_claims.iter().filter(|(_, claim)| made_or_gone && unsettled(claim));
            claims.for_each(|(key, _)| wake(key.clone()));
        }
        _ => {}
    }
}

/// Wakes the claims that wait for data: those that asked for a source which `test` is true of.
fn wake_copies(world: &Snapshot, test: &dyn Fn(&ObjectKey, Wanted) -> bool, wake: &mut dyn FnMut(ObjectKey)) {
    let waits = |claim: &PersistentVolumeClaim| volume::volume_name(claim).is_empty();
    let claims = world.persistent_volume_claims.iter().filter(|(_, claim)| waits(claim));
    claims.filter(|(key, claim)| source::wanted(claim).is_some_and(|wanted| test(key, wanted))).for_each(|(key, _)| wake(key.clone()));
}

fn observe<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<Observed<'a>> {
    let claim = snapshot.persistent_volume_claims.get(key)?;
    Some(Observed { claim, snapshot })
}

fn decide(observed: &Observed, _now: Timestamp) -> Decision {
    let claim = observed.claim;
    if is_terminating(&claim.metadata) {
        return Decision { waiting: vec![Waiting::InUse], ..Decision::default() };
    }
    match volume::volume_name(claim) {
        "" => unbound(observed),
        name => match observed.snapshot.persistent_volumes.get(&ObjectKey::new("", name)) {
            Some(volume) => named(claim, volume),
            None => missing(claim),
        },
    }
}

/// A claim that names no volume yet.
fn unbound(observed: &Observed) -> Decision {
    let (claim, snapshot) = (observed.claim, observed.snapshot);
    if volume::class_of(claim).is_none()
        && let Some(default) = default_class(snapshot)
    {
        let patch = json!({"spec": {"storageClassName": default.metadata.name}});
        return Decision { writes: vec![Write::patch(&kinds::PERSISTENT_VOLUME_CLAIM, &claim.metadata, patch)], ..Decision::default() };
    }
    let class = volume::class(snapshot, claim);
    let delayed = class.is_some_and(volume::waits_for_consumer);
    let found = match delayed {
        // Only a volume that is already its own or that a user reserved for it; the others are the scheduler's choice.
        true => snapshot.persistent_volumes.iter().map(|(_, volume)| &**volume).find(|volume| {
            !is_terminating(&volume.metadata)
                && (volume::is_held_by(volume, claim)
                    || (volume::is_reserved_for(volume, claim) && volume::satisfies(volume, claim).is_ok()))
        }),
        false => volume::matching(snapshot, claim, None, &BTreeSet::new()),
    };
    if let Some(found) = found {
        let waiting = if volume::nfs::is_unmade(found) { vec![Waiting::NoVolume] } else { Vec::new() };
        return Decision { writes: volume::bind(found, claim), waiting, ..Decision::default() };
    }
    if let Some(class) = class.filter(|class| volume::nfs::provisions(class)) {
        return folder(observed, class);
    }
    let refused = class.filter(|class| volume::is_built_in(class)).and_then(|class| volume::provisionable(snapshot, claim, class).err());
    if delayed && refused.is_none() {
        let message = "waiting for first consumer to be created before binding".to_owned();
        return pending(
            claim,
            Waiting::FirstConsumer,
            Event::normal(&kinds::PERSISTENT_VOLUME_CLAIM, &claim.metadata, "WaitForFirstConsumer", message),
        );
    }
    provision(observed, class)
}

/// An Immediate claim that no volume fits.
fn provision(observed: &Observed, class: Option<&StorageClass>) -> Decision {
    let (claim, snapshot) = (observed.claim, observed.snapshot);
    let warn = |reason, message| Event::warning(&kinds::PERSISTENT_VOLUME_CLAIM, &claim.metadata, reason, message);
    let Some(class) = class else {
        return match volume::class_of(claim).unwrap_or("") {
            "" => {
                let message = "no persistent volumes available for this claim and no storage class is set".to_owned();
                pending(claim, Waiting::NoVolume, Event::normal(&kinds::PERSISTENT_VOLUME_CLAIM, &claim.metadata, "FailedBinding", message))
            }
            name => {
                pending(claim, Waiting::NoVolume, warn("ProvisioningFailed", format!("storageclass.storage.k8s.io \"{name}\" not found")))
            }
        };
    };
    if class.provisioner == "kubernetes.io/no-provisioner" {
        let message = "no persistent volumes available for this claim and no storage class is set".to_owned();
        return pending(
            claim,
            Waiting::NoVolume,
            Event::normal(&kinds::PERSISTENT_VOLUME_CLAIM, &claim.metadata, "FailedBinding", message),
        );
    }
    if !volume::is_built_in(class) {
        return external(claim, class);
    }
    if let Err(reason) = volume::provisionable(snapshot, claim, class) {
        let message =
            format!("failed to provision volume with StorageClass \"{}\": {reason}", class.metadata.name.as_deref().unwrap_or(""));
        return pending(claim, Waiting::NoVolume, warn("ProvisioningFailed", message));
    }
    let selected = volume::annotation(&claim.metadata, volume::SELECTED_NODE);
    let able = |node: &&Node| {
        volume::can_provision(snapshot, claim, node, class) && (selected.is_empty() || node.metadata.name.as_deref() == Some(selected))
    };
    let mut nodes = snapshot.nodes.iter().map(|(_, node)| &**node).filter(able).collect::<Vec<_>>();
    nodes.sort_by_key(|node| (!is_ready(node), node.metadata.name.clone()));
    let name = ObjectKey::new("", volume::provisioned_name(claim));
    match nodes.first().filter(|_| !snapshot.persistent_volumes.contains_key(&name)) {
        Some(node) => {
            let message = format!("Successfully provisioned volume {}", name.name);
            let event = Event::normal(&kinds::PERSISTENT_VOLUME_CLAIM, &claim.metadata, "ProvisioningSucceeded", message);
            Decision { writes: volume::provision(snapshot, claim, class, node), events: vec![event], ..Decision::default() }
        }
        None => Decision { waiting: vec![Waiting::NoVolume], ..Decision::default() },
    }
}

/// A folder of an NFS export: declared here, made by a node, and bound when it is there.
fn folder(observed: &Observed, class: &StorageClass) -> Decision {
    let (claim, snapshot) = (observed.claim, observed.snapshot);
    let selected = !volume::annotation(&claim.metadata, volume::SELECTED_NODE).is_empty();
    if let Err(reason) = volume::nfs::provisionable(claim, class) {
        let name = class.metadata.name.as_deref().unwrap_or("");
        let message = format!("failed to provision volume with StorageClass \"{name}\": {reason}");
        let event = Event::warning(&kinds::PERSISTENT_VOLUME_CLAIM, &claim.metadata, "ProvisioningFailed", message);
        return pending(claim, Waiting::NoVolume, event);
    }
    if volume::waits_for_consumer(class) && !selected {
        let message = "waiting for first consumer to be created before binding".to_owned();
        let event = Event::normal(&kinds::PERSISTENT_VOLUME_CLAIM, &claim.metadata, "WaitForFirstConsumer", message);
        return pending(claim, Waiting::FirstConsumer, event);
    }
    let name = ObjectKey::new("", volume::provisioned_name(claim));
    let waiting = vec![Waiting::NoVolume];
    match volume::nfs::provision(snapshot, claim, class) {
        Ok((write, event)) if !snapshot.persistent_volumes.contains_key(&name) => {
            let writes = [phase(claim, "Pending"), vec![write]].concat();
            Decision { writes, events: vec![event], waiting, ..Decision::default() }
        }
        _ => Decision { waiting, ..Decision::default() },
    }
}

/// Asks an external provisioner, as upstream does: by annotation.
fn external(claim: &PersistentVolumeClaim, class: &StorageClass) -> Decision {
    let message = format!(
        "Waiting for a volume to be created either by the external provisioner '{}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered.",
        class.provisioner
    );
    let event = Event::normal(&kinds::PERSISTENT_VOLUME_CLAIM, &claim.metadata, "ExternalProvisioning", message);
    let mut decision = pending(claim, Waiting::NoVolume, event);
    if volume::annotation(&claim.metadata, PROVISIONER[0]) != class.provisioner {
        let patch = json!({"metadata": {"annotations": {(PROVISIONER[0]): class.provisioner, (PROVISIONER[1]): class.provisioner}}});
        decision.writes.insert(0, Write::patch(&kinds::PERSISTENT_VOLUME_CLAIM, &claim.metadata, patch));
    }
    decision
}

/// A claim that names a volume which is there.
fn named(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Decision {
    let warn = |reason, message| Event::warning(&kinds::PERSISTENT_VOLUME_CLAIM, &claim.metadata, reason, message);
    let name = volume.metadata.name.as_deref().unwrap_or("");
    if volume::is_held_by(volume, claim) {
        let grown = volume::growth::expand(claim, volume);
        return grown.unwrap_or_else(|| Decision { writes: volume::bind(volume, claim), ..Decision::default() });
    }
    let completed = !volume::annotation(&claim.metadata, volume::BIND_COMPLETED).is_empty();
    if volume::claim_ref(volume).is_none() || volume::is_reserved_for(volume, claim) {
        if is_terminating(&volume.metadata) {
            return pending(claim, Waiting::NoVolume, warn("FailedBinding", format!("volume \"{name}\" is being deleted")));
        }
        return match volume::satisfies(volume, claim) {
            // A completed claim whose volume came unbound is bound again: the volume is still the one it had.
            Ok(()) => Decision { writes: volume::bind(volume, claim), ..Decision::default() },
            Err(_) if completed => Decision { writes: volume::bind(volume, claim), ..Decision::default() },
            Err(reason) => {
                let message = format!("Cannot bind to requested volume \"{name}\": {reason}");
                pending(claim, Waiting::NoVolume, warn("VolumeMismatch", message))
            }
        };
    }
    if completed {
        let message = "Two claims are bound to the same volume, this one is bound incorrectly".to_owned();
        return lost(claim, warn("ClaimMisbound", message));
    }
    pending(claim, Waiting::NoVolume, warn("FailedBinding", format!("volume \"{name}\" already bound to a different claim.")))
}

/// A claim that names a volume which is not there: not yet, or not any more.
fn missing(claim: &PersistentVolumeClaim) -> Decision {
    if volume::annotation(&claim.metadata, volume::BIND_COMPLETED).is_empty() {
        let name = volume::volume_name(claim).to_owned();
        let mut decision = Decision { writes: phase(claim, "Pending"), ..Decision::default() };
        decision.waiting.push(Waiting::Missing { what: format!("persistentvolume \"{name}\"") });
        return decision;
    }
    let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!".to_owned();
    lost(claim, Event::warning(&kinds::PERSISTENT_VOLUME_CLAIM, &claim.metadata, "ClaimLost", message))
}

fn lost(claim: &PersistentVolumeClaim, event: Event) -> Decision {
    let writes = phase(claim, "Lost");
    let events = if writes.is_empty() { Vec::new() } else { vec![event] };
    Decision { writes, events, waiting: vec![Waiting::NoVolume], ..Decision::default() }
}

fn pending(claim: &PersistentVolumeClaim, waiting: Waiting, event: Event) -> Decision {
    Decision { writes: phase(claim, "Pending"), events: vec![event], waiting: vec![waiting], ..Decision::default() }
}

fn phase(claim: &PersistentVolumeClaim, wanted: &str) -> Vec<Write> {
    let is = claim.status.as_ref().and_then(|status| status.phase.as_deref());
    let write = || Write::patch_status(&kinds::PERSISTENT_VOLUME_CLAIM, &claim.metadata, json!({"phase": wanted}));
    if is == Some(wanted) { Vec::new() } else { vec![write()] }
}

/// The newest class that is marked as the default; ties go to the first name, as upstream.
fn default_class(snapshot: &Snapshot) -> Option<&StorageClass> {
    let marked = |class: &&StorageClass| DEFAULT_CLASS.iter().any(|name| volume::annotation(&class.metadata, name) == "true");
    let classes = snapshot.storage_classes.iter().map(|(_, class)| &**class).filter(marked);
    classes.max_by_key(|class| (class.metadata.creation_timestamp.clone(), std::cmp::Reverse(key_of(&class.metadata))))
}

/// Condition Ready is True.
pub fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
