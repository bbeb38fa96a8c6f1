//! Promises that are cheap to look after while a cluster runs: what one change of the store, or one decision, says
//! about them by itself and by the few objects that it names. Nothing here walks over all objects of a kind.
//!
//! What is found is reported, and nothing else: the server counts it. The simulator, which knows all machines, judges
//! the same promises more strictly; it also sees that nothing is reported here while none is broken.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use mainstay_api::{ObjectKey, kinds, object};
use serde_json::Value;

use crate::controllers::statefulset::{self, identity};
use crate::ownership::controller_of;
use crate::pods::{claim_names, is_available, is_finished, is_running_and_ready, is_terminating};
use crate::snapshot::Index;
use crate::volume::{asks_for, claim_key, claim_ref, volume_name};
use crate::{Change, Decision, Snapshot, Write};

/// The names of the promises that are looked after, as INVARIANTS.md has them.
pub const WATCHED: [&str; 10] = ["A2", "A3", "A8", "S3", "S4", "S5", "S8", "V1", "V2", "V9"];

/// Of how many users of a claim it is looked at whether they may share it.
const MAX_USERS: usize = 16;

/// Who hears of a broken promise: its name, and how it was broken.
pub type Report<'a> = &'a mut dyn FnMut(&'static str, String);

/// Looks at one change, told by a watch that passes over nothing. `before` is the state that it was made to.
pub fn of_change(before: &Snapshot, after: &Snapshot, change: &Change, report: Report<'_>) {
    if let (Some(old), Some(new)) = (&change.old, &change.new) {
        let version = |meta: &crate::Meta| meta.metadata.resource_version.as_ref()?.parse::<u64>().ok();
        if let (Some(was), Some(is)) = (version(old), version(new))
            && is < was
        {
            report("A2", format!("{} {} went from revision {was} back to {is}", change.kind.kind, change.key));
        }
        if old.uid() != new.uid() {
            let (kind, key) = (&change.kind.kind, &change.key);
            report("A8", format!("{kind} {key} was {} and is {}, and was not deleted", old.uid(), new.uid()));
        }
    }
    if change.kind == kinds::POD {
        if let Some(pod) = after.pods.get(&change.key) {
            s3_identity(after, &change.key, pod, change.old.is_none(), report);
            v9_access_modes(before, after, &change.key, pod, report);
        }
    } else if change.kind == kinds::PERSISTENT_VOLUME_CLAIM {
        match after.persistent_volume_claims.get(&change.key) {
            Some(claim) => v1_of_claim(before, after, &change.key, claim, report),
            None => v2_in_use(before, after, &change.key, report),
        }
    } else if change.kind == kinds::PERSISTENT_VOLUME {
        v1_of_volume(before, after, &change.key, report);
    }
}

/// Looks at what a controller decided about a key, on what it saw.
pub fn of_decision(
    snapshot: &Snapshot,
    controller: &str,
    key: &ObjectKey,
    decision: &Decision,
    now: Timestamp,
    report: Report<'_>,
) {
    let is_of_set = controller == statefulset::CONTROLLER.name;
    for write in &decision.writes {
        match write {
            Write::Create { kind, object } if is_of_set && *kind == kinds::POD => {
                s4_predecessor(snapshot, key, object, now, report);
            }
            Write::Delete { kind, key: pod, .. } if is_of_set && *kind == kinds::POD => {
                s5_highest_first(snapshot, key, pod, report);
            }
            Write::Delete { kind, key: claim, .. } if *kind == kinds::PERSISTENT_VOLUME_CLAIM => {
                s8_with_leave(snapshot, controller, claim, report);
            }
            _ => {}
        }
    }
}

/// S3: what a new pod of a set is called and has is what its ordinal says.
fn s3_identity(after: &Snapshot, key: &ObjectKey, pod: &Pod, is_new: bool, report: Report<'_>) {
    let owner = controller_of(&pod.metadata).filter(|owner| is_new && owner.kind == "StatefulSet");
    let (Some(owner), Some((set, ordinal))) = (owner, identity::parse(&key.name)) else { return };
    let Some(set) = after.stateful_sets.get(&ObjectKey::new(key.namespace.clone(), set)) else { return };
    if set.metadata.uid.as_ref() != Some(&owner.uid) {
        return;
    }
    let spec = pod.spec.as_ref();
    let label = |name: &str| pod.metadata.labels.as_ref().and_then(|labels| labels.get(name));
    let claim_of = |volume: &str| {
        let volume = spec?.volumes.iter().flatten().find(|own| own.name == volume)?;
        Some(&*volume.persistent_volume_claim.as_ref()?.claim_name)
    };
    let has_labels =
        identity::identity_labels(&key.name, ordinal).iter().all(|(name, value)| label(name) == Some(value));
    let is_named = spec.is_some_and(|spec| spec.hostname.as_deref() == Some(&*key.name));
    let has_claims = identity::claims(set, ordinal)
        .all(|(claim, template)| claim_of(template.metadata.name.as_deref().unwrap_or("")) == Some(&*claim.name));
    if !(has_labels && is_named && has_claims) {
        report("S3", format!("{key} has not the labels, hostname or claims of ordinal {ordinal}"));
    }
}

/// The node that a pod is bound to and may have containers on.
fn node_of(pod: &Pod) -> Option<&str> {
    let node = pod.spec.as_ref()?.node_name.as_deref()?;
    (!node.is_empty() && !is_finished(pod)).then_some(node)
}

/// V9: who is bound to a node meets nobody who must be alone with its claims.
fn v9_access_modes(before: &Snapshot, after: &Snapshot, key: &ObjectKey, pod: &Pod, report: Report<'_>) {
    let Some(node) = node_of(pod) else { return };
    // One that was made with a node was placed by whoever made it: its node keeps it waiting.
    if before.pods.get(key).is_none_or(|was| node_of(was).is_some()) {
        return;
    }
    for (name, _) in claim_names(pod) {
        let at = ObjectKey::new(key.namespace.clone(), name.as_str());
        let Some(claim) = after.persistent_volume_claims.get(&at) else { continue };
        let is_for_one_pod = asks_for(claim, "ReadWriteOncePod");
        let is_for_one_node = ["ReadOnlyMany", "ReadWriteMany"].iter().all(|mode| !asks_for(claim, mode));
        let users = after.found::<Pod>(Index::PodsUsing, &key.namespace, &name).take(MAX_USERS);
        for (other, user) in users.filter(|(other, _)| *other != key) {
            let Some(on) = node_of(user) else { continue };
            if is_for_one_pod || is_for_one_node && on != node {
                report("V9", format!("{key} is bound to {node} with {at}, which {other} has on {on}"));
                return;
            }
        }
    }
}

fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound")
}

fn uid_of(volume: &PersistentVolume) -> Option<&str> {
    claim_ref(volume)?.uid.as_deref().filter(|uid| !uid.is_empty())
}

/// V1: a claim that becomes Bound has a volume that is its own by uid, and no other claim's.
fn v1_of_claim(
    before: &Snapshot,
    after: &Snapshot,
    key: &ObjectKey,
    claim: &PersistentVolumeClaim,
    report: Report<'_>,
) {
    let was = before.persistent_volume_claims.get(key);
    if !is_bound(claim) || was.is_some_and(|was| is_bound(was) && volume_name(was) == volume_name(claim)) {
        return;
    }
    let name = volume_name(claim);
    let holder = after.persistent_volumes.get(&ObjectKey::new("", name)).and_then(|volume| uid_of(volume));
    if holder.is_some_and(|holder| Some(holder) != claim.metadata.uid.as_deref()) {
        report("V1", format!("{key} is bound to {name}, which is claim {}'s", holder.unwrap_or("")));
    }
    let namers = after.found::<PersistentVolumeClaim>(Index::ClaimsNaming, name, "").take(MAX_USERS);
    if let Some((other, _)) = namers.into_iter().find(|(other, namer)| *other != key && is_bound(namer)) {
        report("V1", format!("{key} and {other} are both bound to {name}"));
    }
}

/// V1: a volume is not given to another claim while the one that is bound to it is there.
fn v1_of_volume(before: &Snapshot, after: &Snapshot, key: &ObjectKey, report: Report<'_>) {
    let (Some(was), Some(is)) = (before.persistent_volumes.get(key), after.persistent_volumes.get(key)) else { return };
    let (Some(had), Some(has)) = (uid_of(was), uid_of(is)) else { return };
    if had == has {
        return;
    }
    let Some(claim) = claim_ref(was).and_then(|of| after.persistent_volume_claims.get(&claim_key(of))) else { return };
    if claim.metadata.uid.as_deref() == Some(had)
        && volume_name(claim) == &*key.name
        && !is_terminating(&claim.metadata)
    {
        report("V1", format!("volume {key} is given to claim {has}, and claim {had} is bound to it"));
    }
}

/// V2: a claim does not go while a pod on a node has it, unless that pod came when it was to go already.
fn v2_in_use(before: &Snapshot, after: &Snapshot, key: &ObjectKey, report: Report<'_>) {
    let Some(gone) = before.persistent_volume_claims.get(key) else { return };
    let since = gone.metadata.deletion_timestamp.as_ref();
    let mut users = after.found::<Pod>(Index::PodsUsing, &key.namespace, &key.name).take(MAX_USERS);
    let had = users.find(|(_, pod)| {
        let is_older = since.is_none_or(|since| pod.metadata.creation_timestamp.as_ref().is_none_or(|at| at < since));
        node_of(pod).is_some() && is_older
    });
    if let Some((pod, _)) = had {
        report("V2", format!("claim {key} is gone, and {pod} has it"));
    }
}

/// S4: where a set is ordered, the pod before the one that is made is available.
fn s4_predecessor(snapshot: &Snapshot, set: &ObjectKey, made: &Value, now: Timestamp, report: Report<'_>) {
    let Some((_, ordinal)) = identity::parse(object::name(made)) else { return };
    let Some(set) = snapshot.stateful_sets.get(set) else { return };
    let first = set.spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).map_or(0, i64::from).max(0);
    if ordinal <= first || set.spec.pod_management_policy.as_deref() == Some("Parallel") {
        return;
    }
    let before = identity::pod_key(set, ordinal - 1);
    let is_up = snapshot.pods.get(&before).is_some_and(|pod| {
        is_running_and_ready(pod)
            && !is_terminating(&pod.metadata)
            && is_available(pod, set.spec.min_ready_seconds.unwrap_or(0), now)
    });
    if !is_up {
        report("S4", format!("{} is made while {before} is not available", object::name(made)));
    }
}

/// S5: a pod that a set shall not have any more goes after the one above it.
fn s5_highest_first(snapshot: &Snapshot, set: &ObjectKey, pod: &ObjectKey, report: Report<'_>) {
    let Some((_, ordinal)) = identity::parse(&pod.name) else { return };
    let Some(set) = snapshot.stateful_sets.get(set) else { return };
    let first = set.spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).map_or(0, i64::from).max(0);
    let wanted = first..first.saturating_add(set.spec.replicas.unwrap_or(1).into());
    let Some(above) = ordinal.checked_add(1).filter(|above| !wanted.contains(&ordinal) && !wanted.contains(above))
    else {
        return;
    };
    let above = identity::pod_key(set, above);
    let is_of_set =
        |other: &Pod| controller_of(&other.metadata).is_some_and(|owner| Some(&owner.uid) == set.metadata.uid.as_ref());
    if snapshot.pods.get(&above).is_some_and(|other| is_of_set(other)) {
        report("S5", format!("{pod} is removed while {above} is still there"));
    }
}

/// S8: controllers delete claims with their namespace, or because their owner is gone or going.
fn s8_with_leave(snapshot: &Snapshot, controller: &str, key: &ObjectKey, report: Report<'_>) {
    let Some(claim) = snapshot.persistent_volume_claims.get(key) else { return };
    let namespace = snapshot.namespaces.get(&ObjectKey::new("", &*key.namespace));
    if namespace.is_none_or(|namespace| is_terminating(&namespace.metadata)) {
        return;
    }
    let is_leaving = |owner: &k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference| {
        let (group, version) = owner.api_version.split_once('/').unwrap_or(("", &owner.api_version));
        let Some(kind) = snapshot.registry.find_kind(group, version, &owner.kind) else { return true };
        let namespace = if kind.namespaced { &*key.namespace } else { "" };
        let found = snapshot.metas.get(&(kind.clone(), ObjectKey::new(namespace, owner.name.as_str())));
        found.is_none_or(|found| found.uid() != owner.uid || is_terminating(&found.metadata))
    };
    let mut owners = claim.metadata.owner_references.iter().flatten();
    if !owners.any(is_leaving) {
        report("S8", format!("{controller} deletes claim {key}, and no owner of it is leaving"));
    }
}

#[cfg(test)]
mod tests;
