//! Keeps a claim while a pod that is on a node uses it. Key: the claim.
//!
//! Relies on: the scheduler placing no pod with a claim that is being deleted.
//! Guarantees V2: the finalizer goes only from a claim that is being deleted, that no pod on a node names and that is
//! not being copied (by a snapshot or a clone); a pod that has finished counts until it is gone, as upstream. One
//! write, guarded by uid and resourceVersion.
//! Differs: upstream has a finalizer of its own for each reason.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mainstay_api::{Kind, ObjectKey, kinds};
use serde_json::json;

use crate::decision::{Controller, Decision, Verb, Waiting, Write};
use crate::pods::{claim_names, is_terminating};
use crate::snapshot::{Change, Snapshot};
use crate::volume;
use crate::volume::source::{self, key_of_reference};

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "pvc-protection-controller",
    permits: &[(Verb::Patch, "persistentvolumeclaims")],
    reads: crate::volume::READS,
    keys,
    reconcile: |snapshot, key, now| observe(snapshot, key).map(|observed| decide(&observed, now)).unwrap_or_default(),
    many: None,
};

/// A claim's metadata, and whether a pod on a node uses it or a copy of it is being made.
pub struct Observed<'a> {
    metadata: &'a ObjectMeta,
    in_use: bool,
}

fn keys(before: &Snapshot, after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    match (&*change.kind.group, &*change.kind.plural) {
        ("", "persistentvolumeclaims") => wake(change.key.clone()),
        ("", "pods") if change.new.is_none() => {
            for pod in before.pods.get(&change.key).into_iter().chain(after.pods.get(&change.key)) {
                let claims = claim_names(pod);
                claims.into_iter().for_each(|(claim, _)| wake(ObjectKey::new(change.key.namespace.clone(), claim)));
            }
        }
        ("snapshot.storage.k8s.io", _) => {
            // Copies that are done, or that nobody wants any more.
            for world in [before, after] {
                let contents = world
                    .volume_snapshot_contents
                    .get(&change.key)
                    .map(|content| key_of_reference(&content.spec.volume_snapshot_ref));
                for snapshot in contents.iter().chain([&change.key]).filter_map(|key| world.volume_snapshots.get(key)) {
                    let claim = snapshot.spec.source.persistent_volume_claim_name.as_deref();
                    let namespace = snapshot.metadata.namespace.as_deref().unwrap_or("");
                    claim.into_iter().for_each(|claim| wake(ObjectKey::new(namespace, claim)));
                }
            }
        }
        ("groupsnapshot.storage.k8s.io", "volumegroupsnapshotcontents") => {
            for content in
                [before, after].into_iter().filter_map(|world| world.volume_group_snapshot_contents.get(&change.key))
            {
                let volumes = content.spec.source.volume_handles.iter().flatten();
                let volumes =
                    volumes.filter_map(|name| after.persistent_volumes.get(&ObjectKey::new("", name.as_str())));
                volumes.filter_map(|volume| volume::claim_ref(volume)).for_each(|claim| wake(volume::claim_key(claim)));
            }
        }
        ("", "persistentvolumes") => {
            let copies = [before, after].map(|world| {
                world.persistent_volumes.get(&change.key).and_then(|copy| source::copied_claim(after, copy))
            });
            copies.into_iter().flatten().for_each(wake);
        }
        _ => {}
    }
}

fn observe<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<Observed<'a>> {
    let claim = snapshot.persistent_volume_claims.get(key)?;
    let in_use = !volume::users_of(snapshot, key).is_empty() || source::is_being_copied(snapshot, key);
    Some(Observed { metadata: &claim.metadata, in_use })
}

fn decide(observed: &Observed, _now: Timestamp) -> Decision {
    protect(&kinds::PERSISTENT_VOLUME_CLAIM, observed.metadata, volume::PVC_PROTECTION, observed.in_use)
}

/// Puts a protection finalizer on an object that is not being deleted, and takes it off one that is and that nobody
/// uses.
pub fn protect(kind: &Kind, metadata: &ObjectMeta, finalizer: &str, in_use: bool) -> Decision {
    let mut decision = Decision::default();
    let finalizers = metadata.finalizers.as_deref().unwrap_or_default();
    let protected = finalizers.iter().any(|present| present == finalizer);
    let wanted: Vec<&str> = match (is_terminating(metadata), protected) {
        (false, false) => finalizers.iter().map(String::as_str).chain([finalizer]).collect(),
        (true, true) if !in_use => {
            finalizers.iter().map(String::as_str).filter(|present| *present != finalizer).collect()
        }
        (true, true) => {
            decision.waiting.push(Waiting::InUse);
            return decision;
        }
        _ => return decision,
    };
    decision.writes.push(Write::patch(kind, metadata, json!({"metadata": {"finalizers": wanted}})));
    decision
}
