//! Keeps a VolumeAttributesClass while a claim or a volume names it. Key: the class.
//!
//! Guarantees V2 for classes: the finalizer goes only from a class that is being deleted and that nobody names. One
//! write, guarded by uid and resourceVersion.

use jiff::Timestamp;
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use mainstay_api::{ObjectKey, kinds};

use super::pvcprotection::protect;
use crate::decision::{Controller, Decision, Verb};
use crate::snapshot::{Change, Index, Snapshot};
use crate::volume;

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "volumeattributesclass-protection-controller",
    permits: &[(Verb::Patch, "volumeattributesclasses")],
    reads: crate::volume::READS,
    keys,
    reconcile: |snapshot, key, now| observe(snapshot, key).map(|observed| decide(&observed, now)).unwrap_or_default(),
    many: None,
};

/// On a class: somebody may use it.
const VAC_PROTECTION: &str = "kubernetes.io/vac-protection";

/// A class, and whether anybody names it.
pub struct Observed<'a> {
    class: &'a VolumeAttributesClass,
    in_use: bool,
}

fn keys(before: &Snapshot, _after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    let names = match (&*change.kind.group, &*change.kind.plural) {
        ("storage.k8s.io", "volumeattributesclasses") => return wake(change.key.clone()),
        ("", "persistentvolumeclaims") => {
            before.persistent_volume_claims.get(&change.key).map(|claim| volume::attributes::named_by(claim))
        }
        ("", "persistentvolumes") => {
            before.persistent_volumes.get(&change.key).map(|volume| vec![volume::attributes::of_volume(volume)])
        }
        _ => None,
    };
    // Only those that were named before can be free now.
    names.into_iter().flatten().filter(|name| !name.is_empty()).for_each(|name| wake(ObjectKey::new("", name)));
}

fn observe<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<Observed<'a>> {
    let class = snapshot.volume_attributes_classes.get(key)?;
    let named = |by: &str| snapshot.indexes.count(Index::AttributesClass, &key.name, by) > 0;
    let in_use = named("claims") || named("volumes");
    Some(Observed { class, in_use })
}

fn decide(observed: &Observed, _now: Timestamp) -> Decision {
    protect(&kinds::VOLUME_ATTRIBUTES_CLASS, &observed.class.metadata, VAC_PROTECTION, observed.in_use)
}
