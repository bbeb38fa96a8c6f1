//! Claims: bound to a volume that fits, provisioned for, or told why not. Key: the claim.
//!
//! Relies on: [`crate::volume`]'s order of writes; the persistentvolume controller marking free volumes `Available`;
//! the scheduler binding claims of WaitForFirstConsumer classes.
//! Guarantees V1 (a volume is taken by uid, guarded by its resourceVersion, before the claim names it; a claim whose
//! volume belongs to another becomes Lost, not shared), V6 (a claim made again is a new uid and gets nothing of its
//! predecessor's).
//! Safe when cut: after the claimRef alone, the next decision finds the volume that is its own.
//! Differs: claims of built-in Immediate classes are provisioned here, on the selected node or the ready one with most
//! room; a claim that names a volume which is not there is told so.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use mainstay_api::{ObjectKey, kinds};
use serde_json::json;

use crate::decision::{Controller, Decision, Event, Verb, Waiting, Write, key_of};
use crate::nodes::is_ready;
use crate::pods::{claim_names, condition, is_active, is_terminating};
use crate::snapshot::{Change, Index, Snapshot};
use crate::volume::{self, room};

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "persistentvolume-controller",
    permits: &[
        (Verb::Create, "persistentvolumes"),
        (Verb::Patch, "persistentvolumes"),
        (Verb::Patch, "persistentvolumeclaims"),
        (Verb::PatchStatus, "persistentvolumeclaims"),
    ],
    reads: crate::volume::READS,
    keys,
    reconcile: |snapshot, key, now| observe(snapshot, key).map(|observed| decide(&observed, now)).unwrap_or_default(),
    many: None,
};

const DEFAULT_CLASS: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
/// On a claim: who is asked to provision. The second is what older provisioners read.
const PROVISIONER: [&str; 2] =
    ["volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner"];

/// A claim and the volumes, classes and nodes there are.
pub struct Observed<'a> {
    claim: &'a PersistentVolumeClaim,
    snapshot: &'a Snapshot,
}

fn keys(before: &Snapshot, after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    let bound = |claim: &PersistentVolumeClaim| {
        claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound")
    };
    let unsettled = |claim: &PersistentVolumeClaim| !bound(claim) || volume::status::is_held_up(claim);
    // Those that somebody may have room for now; where the first pod is waited for, that is the scheduler's to see.
    let immediate =
        |claim: &PersistentVolumeClaim| !volume::class(after, claim).is_some_and(volume::waits_for_consumer);
    let roomless = |claim: &PersistentVolumeClaim| unsettled(claim) && (bound(claim) || immediate(claim));
    match (&*change.kind.group, &*change.kind.plural) {
        ("", "persistentvolumeclaims") => {
            wake(change.key.clone());
            let clones = after.indexes.get(Index::ClaimsWanting, "PersistentVolumeClaim", &change.key.name);
            clones.filter(|key| key.namespace == change.key.namespace).for_each(|key| wake(key.clone()));
        }
        ("snapshot.storage.k8s.io", "volumesnapshots") => {
            let copies = after.indexes.get(Index::ClaimsWanting, "VolumeSnapshot", &change.key.name);
            copies.for_each(|key| wake(key.clone()));
        }
        ("snapshot.storage.k8s.io", "volumesnapshotcontents") => {
            let contents = [before, after].map(|snapshot| snapshot.volume_snapshot_contents.get(&change.key));
            let names =
                contents.into_iter().flatten().filter_map(|content| content.spec.volume_snapshot_ref.name.as_deref());
            let copies = names.flat_map(|name| after.indexes.get(Index::ClaimsWanting, "VolumeSnapshot", name));
            copies.for_each(|key| wake(key.clone()));
        }
        ("", "persistentvolumes") => {
            // The claims that name the volume, those that it names, and, when it is free, those that it would suit.
            let volumes = [before, after].map(|snapshot| snapshot.persistent_volumes.get(&change.key));
            let references = volumes.into_iter().flatten().filter_map(|volume| volume::claim_ref(volume));
            for claim in references.map(volume::claim_key) {
                // The claims that are to be copies of this volume's.
                let clones = after.indexes.get(Index::ClaimsWanting, "PersistentVolumeClaim", &claim.name);
                clones.for_each(|key| wake(key.clone()));
                wake(claim);
            }
            let naming = after.indexes.get(Index::ClaimsNaming, &change.key.name, "");
            naming.for_each(|key| wake(key.clone()));
            let free = volumes[1].filter(|volume| volume::claim_ref(volume).is_none());
            // A node may promise again what this one was promised.
            let promised = |volume: Option<&Arc<PersistentVolume>>| volume.map_or(0, |volume| room::promised(volume));
            let less = promised(volumes[1]) < promised(volumes[0]);
            let concerned = |claim: &PersistentVolumeClaim| match volume::volume_name(claim) {
                "" => {
                    less && roomless(claim)
                        || unsettled(claim) && free.is_some_and(|volume| volume::satisfies(volume, claim).is_ok())
                }
                _ => less && volume::status::is_held_up(claim),
            };
            if less || free.is_some() {
                let unsettled = after.found::<PersistentVolumeClaim>(Index::ClaimsUnsettled, "", "");
                unsettled.filter(|(_, claim)| concerned(claim)).for_each(|(key, _)| wake(key.clone()));
            }
        }
        ("storage.k8s.io", "storageclasses" | "volumeattributesclasses") => {
            after.indexes.get(Index::ClaimsUnsettled, "", "").for_each(|key| wake(key.clone()));
        }
        ("", "nodes") => {
            let fingerprint = |snapshot: &Snapshot| {
                let meta = &snapshot.nodes.get(&change.key)?.metadata;
                let offers =
                    [volume::VOLUME_ROOT, room::VOLUME_CAPACITY].map(|name| volume::annotation(meta, name).to_owned());
                // Classes may ask for labels (`allowedTopologies`).
                Some((offers, meta.labels.clone()))
            };
            if fingerprint(before) != fingerprint(after) {
                let unsettled = after.found::<PersistentVolumeClaim>(Index::ClaimsUnsettled, "", "");
                unsettled.filter(|(_, claim)| roomless(claim)).for_each(|(key, _)| wake(key.clone()));
            }
        }
        ("", "pods") => {
            // A pod that found no node: its claims say that they wait for it.
            let refused = |snapshot: &Snapshot| snapshot.pods.get(&change.key).is_some_and(|pod| is_unschedulable(pod));
            if refused(after) && !refused(before) {
                let names = after.pods.get(&change.key).map(|pod| claim_names(pod)).unwrap_or_default();
                let keys = names.into_iter().map(|(name, _)| ObjectKey::new(&*change.key.namespace, name));
                let waits =
                    |key: &ObjectKey| after.persistent_volume_claims.get(key).is_some_and(|claim| !bound(claim));
                keys.filter(waits).for_each(wake);
            }
        }
        _ => {}
    }
}

fn observe<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<Observed<'a>> {
    let claim = snapshot.persistent_volume_claims.get(key)?;
    Some(Observed { claim, snapshot })
}

fn decide(observed: &Observed, now: Timestamp) -> Decision {
    let claim = observed.claim;
    if is_terminating(&claim.metadata) {
        return Decision { waiting: vec![Waiting::InUse], ..Decision::default() };
    }
    match volume::volume_name(claim) {
        // Whatever it had, it gets nothing in its place.
        "" if is_completed(claim) => {
            lost(claim, "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!")
        }
        "" => unbound(observed),
        name => match observed.snapshot.persistent_volumes.get(&ObjectKey::new("", name)) {
            // One that was bound by an older server stays so.
            Some(volume) if volume::is_held_by(volume, claim) && volume::is_unmade(volume) && !is_completed(claim) => {
                Decision { writes: phase(claim, "Pending"), waiting: vec![Waiting::NoVolume], ..Decision::default() }
            }
            Some(volume) if volume::is_held_by(volume, claim) => held(observed.snapshot, claim, volume, now),
            Some(volume) => named(claim, volume),
            None => missing(claim),
        },
    }
}

/// Whether both sides of its binding were written once.
fn is_completed(claim: &PersistentVolumeClaim) -> bool {
    !volume::annotation(&claim.metadata, volume::BIND_COMPLETED).is_empty()
}

/// A claim that names no volume yet.
fn unbound(observed: &Observed) -> Decision {
    let (claim, snapshot) = (observed.claim, observed.snapshot);
    let class = volume::class(snapshot, claim);
    let delayed = class.is_some_and(volume::waits_for_consumer);
    let found = match delayed {
        // Only a volume that is already its own or that a user reserved for it; the others are the scheduler's choice.
        true => {
            let mut volumes = volume::volumes_of(snapshot, claim);
            volumes.find(|volume| !is_terminating(&volume.metadata) && volume::is_kept_for(volume, claim))
        }
        false => volume::matching(snapshot, claim, None, &BTreeSet::new()),
    };
    if let Some(found) = found {
        let waiting = if volume::is_unmade(found) { vec![Waiting::NoVolume] } else { Vec::new() };
        return Decision { writes: volume::bind(found, claim), waiting, ..Decision::default() };
    }
    // After the volumes that are there, as upstream: a claim without a class prefers one of those without.
    if volume::class_of(claim).is_none()
        && let Some(default) = default_class(snapshot)
    {
        let patch = json!({"spec": {"storageClassName": default.metadata.name}});
        return Decision {
            writes: vec![Write::patch(&kinds::PERSISTENT_VOLUME_CLAIM, &claim.metadata, patch)],
            ..Decision::default()
        };
    }
    if let Some(class) = class.filter(|class| volume::nfs::provisions(class)) {
        return folder(observed, class);
    }
    let refused = class
        .filter(|class| volume::is_built_in(class))
        .and_then(|class| volume::provisionable(snapshot, claim, class).err());
    if delayed && refused.is_none() {
        return pending(claim, Waiting::FirstConsumer, awaited(snapshot, claim));
    }
    provision(observed, class)
}

/// A pod that is told that it fits no node.
fn is_unschedulable(pod: &Pod) -> bool {
    let unbound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.as_deref().unwrap_or("").is_empty());
    unbound && is_active(pod) && condition(pod, "PodScheduled").is_some_and(|condition| condition.status == "False")
}

/// Whom a claim waits for that is bound with its first pod.
fn awaited(snapshot: &Snapshot, claim: &PersistentVolumeClaim) -> Event {
    let normal = |reason, message| Event::normal(&kinds::PERSISTENT_VOLUME_CLAIM, &claim.metadata, reason, message);
    let key = key_of(&claim.metadata);
    let users = snapshot.found::<Pod>(Index::PodsUsing, &key.namespace, &key.name);
    let users = users.filter(|(_, pod)| is_unschedulable(pod));
    match users.map(|(key, _)| &*key.name).collect::<Vec<_>>().as_slice() {
        [] => normal("WaitForFirstConsumer", "waiting for first consumer to be created before binding".to_owned()),
        [pod] => normal("WaitForPodScheduled", format!("waiting for pod {pod} to be scheduled")),
        pods => normal("WaitForPodScheduled", format!("waiting for pods {} to be scheduled", pods.join(","))),
    }
}

/// An Immediate claim that no volume fits.
fn provision(observed: &Observed, class: Option<&StorageClass>) -> Decision {
    let (claim, snapshot) = (observed.claim, observed.snapshot);
    let warn = |reason, message| Event::warning(&kinds::PERSISTENT_VOLUME_CLAIM, &claim.metadata, reason, message);
    let Some(class) = class else {
        return match volume::class_of(claim).unwrap_or("") {
            "" => {
                let message = "no persistent volumes available for this claim and no storage class is set".to_owned();
                pending(
                    claim,
                    Waiting::NoVolume,
                    Event::normal(&kinds::PERSISTENT_VOLUME_CLAIM, &claim.metadata, "FailedBinding", message),
                )
            }
            name => pending(
                claim,
                Waiting::NoVolume,
                warn("ProvisioningFailed", format!("storageclass.storage.k8s.io \"{name}\" not found")),
            ),
        };
    };
    if class.provisioner.starts_with("kubernetes.io/") {
        let message = format!("no volume plugin matched name: {}", class.provisioner);
        return pending(claim, Waiting::NoVolume, warn("ProvisioningFailed", message));
    }
    if !volume::is_built_in(class) {
        return external(claim, class);
    }
    let node = volume::provisionable(snapshot, claim, class).and_then(|()| choose_node(snapshot, claim, class));
    let name = ObjectKey::new("", volume::provisioned_name(claim));
    match node {
        // The last one of that name is on its way out.
        Ok(_) if snapshot.persistent_volumes.contains_key(&name) => {
            Decision { waiting: vec![Waiting::NoVolume], ..Decision::default() }
        }
        Ok(node) => {
            let events = volume::provisioned_events(claim);
            let relies = volume::source::relied_on(snapshot, claim);
            let writes = volume::provision(snapshot, claim, class, node);
            Decision { writes, events, relies, ..Decision::default() }
        }
        Err(reason) => {
            let class = class.metadata.name.as_deref().unwrap_or("");
            let message = format!("failed to provision volume with StorageClass \"{class}\": {reason}");
            pending(claim, Waiting::NoVolume, warn("ProvisioningFailed", message))
        }
    }
}

/// The node for the volume of an Immediate claim: the selected one, or a ready one with most room.
fn choose_node<'a>(
    snapshot: &'a Snapshot,
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
) -> Result<&'a Node, String> {
    let selected = volume::annotation(&claim.metadata, volume::SELECTED_NODE);
    let able = |node: &&Node| {
        volume::can_provision(snapshot, claim, node, class)
            && (selected.is_empty() || node.metadata.name.as_deref() == Some(selected))
    };
    let mut nodes = snapshot.nodes.iter().map(|(_, node)| &**node).filter(able).peekable();
    if nodes.peek().is_none() {
        return Err("no node makes volumes of this class".to_owned());
    }
    let size = volume::requested(claim);
    let roomy = nodes.filter(|node| room::has(snapshot, node, class, size));
    let best = roomy
        .min_by_key(|node| (!is_ready(node), -room::left_after(snapshot, node, size), node.metadata.name.as_deref()));
    best.ok_or_else(|| room::NO_ROOM.to_owned())
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
        return pending(claim, Waiting::FirstConsumer, awaited(snapshot, claim));
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
        "Waiting for a volume to be created either by the external provisioner '{}' or manually by the system \
            administrator. If volume creation is delayed, please verify that the provisioner is running and correctly \
            registered.",
        class.provisioner
    );
    let event = Event::normal(&kinds::PERSISTENT_VOLUME_CLAIM, &claim.metadata, "ExternalProvisioning", message);
    let mut decision = pending(claim, Waiting::NoVolume, event);
    if volume::annotation(&claim.metadata, PROVISIONER[0]) != class.provisioner {
        let patch = json!({"metadata": {"annotations": {(PROVISIONER[0]): class.provisioner,
            (PROVISIONER[1]): class.provisioner}}});
        decision.writes.insert(0, Write::patch(&kinds::PERSISTENT_VOLUME_CLAIM, &claim.metadata, patch));
    }
    decision
}

/// A claim that names the volume that holds it: what it says follows the volume, and the volume its size.
fn held(snapshot: &Snapshot, claim: &PersistentVolumeClaim, volume: &PersistentVolume, now: Timestamp) -> Decision {
    let step = volume::growth::step(snapshot, claim, volume);
    if let Some(grown) = volume::growth::expand(claim, volume, &step) {
        return grown;
    }
    let mut decision = Decision { writes: volume::settle(snapshot, volume, claim, &step, now), ..Decision::default() };
    // Whatever is refused is told when it is first said in the status, once.
    if !decision.writes.is_empty() {
        let asked = volume::attributes::asked(snapshot, claim, volume);
        decision.events.extend(volume::growth::event(claim, volume, &step));
        decision.events.extend(asked.and_then(|asked| asked.event(claim)));
    }
    if volume::growth::is_external(claim, volume) {
        let message = "waiting for an external controller to expand this PVC".to_owned();
        decision.events.push(Event::normal(
            &kinds::PERSISTENT_VOLUME_CLAIM,
            &claim.metadata,
            "ExternalExpanding",
            message,
        ));
    }
    decision
}

/// A claim that names a volume which is there and not yet its own.
fn named(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Decision {
    let warn = |reason, message| Event::warning(&kinds::PERSISTENT_VOLUME_CLAIM, &claim.metadata, reason, message);
    let name = volume.metadata.name.as_deref().unwrap_or("");
    let completed = is_completed(claim);
    if volume::claim_ref(volume).is_none() || volume::is_reserved_for(volume, claim) {
        if is_terminating(&volume.metadata) {
            let message =
                format!("Cannot bind to requested volume \"{name}\": the volume is marked for deletion \"{name}\"");
            return pending(claim, Waiting::NoVolume, warn("VolumeMismatch", message));
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
        return lost_because(claim, warn("ClaimMisbound", message));
    }
    pending(
        claim,
        Waiting::NoVolume,
        warn("FailedBinding", format!("volume \"{name}\" already bound to a different claim.")),
    )
}

/// A claim that names a volume which is not there: not yet, or not any more.
fn missing(claim: &PersistentVolumeClaim) -> Decision {
    if !is_completed(claim) {
        let what = format!("persistentvolume \"{}\"", volume::volume_name(claim));
        let event = Event::normal(
            &kinds::PERSISTENT_VOLUME_CLAIM,
            &claim.metadata,
            "FailedBinding",
            format!("{what} not found"),
        );
        return pending(claim, Waiting::Missing { what }, event);
    }
    lost(claim, "Bound claim has lost its PersistentVolume. Data on the volume is lost!")
}

fn lost(claim: &PersistentVolumeClaim, message: &str) -> Decision {
    lost_because(
        claim,
        Event::warning(&kinds::PERSISTENT_VOLUME_CLAIM, &claim.metadata, "ClaimLost", message.to_owned()),
    )
}

fn lost_because(claim: &PersistentVolumeClaim, event: Event) -> Decision {
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
    let marked =
        |class: &&StorageClass| DEFAULT_CLASS.iter().any(|name| volume::annotation(&class.metadata, name) == "true");
    let classes = snapshot.storage_classes.iter().map(|(_, class)| &**class).filter(marked);
    classes.max_by_key(|class| (class.metadata.creation_timestamp.clone(), std::cmp::Reverse(key_of(&class.metadata))))
}
