//! `persistentVolumeClaimRetentionPolicy`, as owner references on claims (S8): the garbage collector does the rest.
//!
//! whenDeleted: Delete puts the set on the claims of its pods. A claim is made with it, so that a set that is deleted
//! right after leaves nothing behind. whenScaled: Delete puts the pod that is scaled in on its claims, before it is
//! deleted, so that they go when, and only when, the pod is gone. Retain takes both off again, also from claims without
//! a pod.

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use mainstay_api::kinds::{PERSISTENT_VOLUME_CLAIM, POD, STATEFUL_SET};

use super::{Observed, Replicas, State, identity};
use crate::decision::Decision;
use crate::ownership::{controller_of, controller_reference, set_owners};

/// Whether claims go with the set.
fn when_deleted(o: &Observed) -> bool {
    let policy = o.spec.persistent_volume_claim_retention_policy.as_ref();
    policy.and_then(|policy| policy.when_deleted.as_deref()) == Some("Delete")
}

/// Whether claims go with a pod that is scaled in.
fn when_scaled(o: &Observed) -> bool {
    let policy = o.spec.persistent_volume_claim_retention_policy.as_ref();
    policy.and_then(|policy| policy.when_scaled.as_deref()) == Some("Delete")
}

/// The owners that a new claim gets.
pub fn owners_of_new(o: &Observed) -> Vec<OwnerReference> {
    if when_deleted(o) { vec![controller_reference(&STATEFUL_SET, &o.set.metadata)] } else { Vec::new() }
}

/// Whether a claim waits to go with a pod of its name that is gone: the garbage collector takes it away.
pub fn goes_with_an_older_pod(o: &Observed, claim: &PersistentVolumeClaim) -> bool {
    claim
        .metadata
        .owner_references
        .iter()
        .flatten()
        .any(|owner| owner.kind == POD.kind && o.pod_uid(&owner.name) != Some(&owner.uid))
}

/// Brings the owners of existing claims in line with the policy.
pub fn claims(o: &Observed, replicas: &Replicas, d: &mut Decision) {
    let set = when_deleted(o).then(|| controller_reference(&STATEFUL_SET, &o.set.metadata));
    for slot in replicas.slots.iter().filter(|slot| slot.state != State::Absent) {
        for (key, _) in identity::claims(o.set, slot.ordinal) {
            align(o.claims.get(&key).map(|claim| &claim.metadata), o, set.as_ref(), d);
        }
    }
    for slot in &replicas.condemned {
        let pod = slot.pod.filter(|_| when_scaled(o)).map(|pod: &Pod| controller_reference(&POD, &pod.metadata));
        for (key, _) in identity::claims(o.set, slot.ordinal) {
            align(o.claims.get(&key).map(|claim| &claim.metadata), o, pod.as_ref().or(set.as_ref()), d);
        }
    }
    if !when_deleted(o) {
        // Claims of pods that were scaled in long ago still carry the set from an earlier policy.
        let patched =
            |meta: &ObjectMeta, d: &Decision| d.writes.iter().any(|write| write.is_of(&PERSISTENT_VOLUME_CLAIM, meta));
        for meta in &o.owned_claims {
            if !patched(meta, d) {
                align(Some(meta), o, None, d);
            }
        }
    }
}

/// One claim: `wanted` is the only owner of this set's making that it shall have. A claim that another controller owns
/// is left alone.
fn align(claim: Option<&ObjectMeta>, o: &Observed, wanted: Option<&OwnerReference>, d: &mut Decision) {
    let Some(claim) = claim else { return };
    let ours = |owner: &OwnerReference| {
        Some(&owner.uid) == o.set.metadata.uid.as_ref()
            || (owner.kind == POD.kind && identity::parse(&owner.name).is_some_and(|(set, _)| set == o.name()))
    };
    let owners = claim.owner_references.clone().unwrap_or_default();
    if controller_of(claim).is_some_and(|owner| !ours(owner)) {
        return;
    }
    let present: Vec<&OwnerReference> = owners.iter().filter(|owner| ours(owner)).collect();
    let right = match (present.as_slice(), wanted) {
        ([], None) => true,
        ([owner], Some(wanted)) => owner.uid == wanted.uid,
        _ => false,
    };
    if !right {
        let rest = owners.iter().filter(|owner| !ours(owner)).chain(wanted).cloned().collect::<Vec<_>>();
        // A claim that may not be changed keeps no pod from being made (S12).
        d.push_apart(set_owners(&PERSISTENT_VOLUME_CLAIM, claim, &rest));
    }
}
