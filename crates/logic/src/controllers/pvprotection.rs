//! Keeps a volume while a claim uses it. Key: the volume.
//!
//! Guarantees V2: the finalizer goes only from a volume that is being deleted and that no claim which is there
//! holds by uid. One write, guarded by uid and resourceVersion.
//! Differs: upstream looks at the phase alone, which lags behind the claimRef.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PersistentVolume;
use mainstay_api::{ObjectKey, kinds};

use super::pvcprotection::protect;
use crate::decision::{Controller, Decision, Verb};
use crate::snapshot::{Change, Snapshot};
use crate::volume;

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "pv-protection-controller",
    permits: &[(Verb::Patch, "persistentvolumes")],
    reads: crate::volume::READS,
    keys,
    reconcile: |snapshot, key, now| observe(snapshot, key).map(|observed| decide(&observed, now)).unwrap_or_default(),
    many: None,
};

/// A volume, and whether a claim holds it.
pub struct Observed<'a> {
    volume: &'a PersistentVolume,
    in_use: bool,
}

fn keys(before: &Snapshot, _after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    match (&*change.kind.group, &*change.kind.plural) {
        ("", "persistentvolumes") => wake(change.key.clone()),
        ("", "persistentvolumeclaims") if change.new.is_none() => {
            if let Some(claim) = before.persistent_volume_claims.get(&change.key) {
                wake(ObjectKey::new("", volume::volume_name(claim)));
                wake(ObjectKey::new("", volume::provisioned_name(claim)));
            }
        }
        _ => {}
    }
}

fn observe<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<Observed<'a>> {
    let volume = snapshot.persistent_volumes.get(key)?;
    let claim = volume::claim_ref(volume)
        .and_then(|reference| snapshot.persistent_volume_claims.get(&volume::claim_key(reference)));
    Some(Observed { volume, in_use: claim.is_some_and(|claim| volume::is_held_by(volume, claim)) })
}

fn decide(observed: &Observed, _now: Timestamp) -> Decision {
    protect(&kinds::PERSISTENT_VOLUME, &observed.volume.metadata, volume::PV_PROTECTION, observed.in_use)
}
