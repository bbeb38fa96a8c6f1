//! VolumeAttributesClass: what a bound claim asks to have changed about its volume.
//!
//! Volumes of this program have nothing that a class could change, so that every change is `Infeasible`, which the
//! claim's status and an event say in words; a user takes it back by naming the old class, or none where none was ever
//! carried out. A claim that names a class gets only a volume that has it already. Volumes of external drivers are left
//! to those.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use mainstay_api::{ObjectKey, kinds};

use super::{BUILT_IN, PROVISIONED_BY, annotation, nfs};
use crate::decision::Event;
use crate::snapshot::Snapshot;

/// A change that is asked for and not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked<'a> {
    /// The class.
    pub target: &'a str,
    /// `Pending` while there is no such class, else `Infeasible`.
    pub status: &'static str,
    /// Why, for people.
    pub why: String,
}

impl Asked<'_> {
    /// What people are told once: beside the write that says it in the status.
    pub fn event(&self, claim: &PersistentVolumeClaim) -> Option<Event> {
        let before = claim.status.as_ref().and_then(|status| status.modify_volume_status.as_ref());
        let same = before.is_some_and(|before| {
            before.status == self.status && before.target_volume_attributes_class_name.as_deref() == Some(self.target)
        });
        let event =
            || Event::warning(&kinds::PERSISTENT_VOLUME_CLAIM, &claim.metadata, "VolumeModifyFailed", self.why.clone());
        (!same).then(event)
    }
}

/// The class that a claim asks for, or `""`.
pub fn of_claim(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_deref()).unwrap_or("")
}

/// Every class that a claim names: what it asks for, has, or is being given.
pub fn named_by(claim: &PersistentVolumeClaim) -> Vec<&str> {
    let status = claim.status.as_ref();
    let current = status.and_then(|status| status.current_volume_attributes_class_name.as_deref());
    let target =
        status.and_then(|status| status.modify_volume_status.as_ref()?.target_volume_attributes_class_name.as_deref());
    [Some(of_claim(claim)), current, target].into_iter().flatten().filter(|name| !name.is_empty()).collect()
}

/// The class that a volume has, or `""`.
pub fn of_volume(volume: &PersistentVolume) -> &str {
    volume.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_deref()).unwrap_or("")
}

/// What a bound claim asks for and does not have.
pub fn asked<'a>(
    snapshot: &Snapshot,
    claim: &'a PersistentVolumeClaim,
    volume: &PersistentVolume,
) -> Option<Asked<'a>> {
    let target = of_claim(claim);
    let provisioner = annotation(&volume.metadata, PROVISIONED_BY);
    let external = !provisioner.is_empty() && !BUILT_IN.contains(&provisioner) && !nfs::is_ours(volume);
    if target.is_empty() || target == of_volume(volume) || external {
        return None;
    }
    let Some(class) = snapshot.volume_attributes_classes.get(&ObjectKey::new("", target)) else {
        return Some(Asked { target, status: "Pending", why: format!("VAC {target} does not exist.") });
    };
    let why = if provisioner.is_empty() {
        format!("VAC {target} cannot be applied: no driver made this volume")
    } else if class.driver_name != provisioner {
        format!("VAC {target} is for volumes of {}, and this one was made by {provisioner}", class.driver_name)
    } else {
        let names: Vec<&str> = class.parameters.iter().flatten().map(|(name, _)| name.as_str()).collect();
        format!(
            "VAC {target}: {provisioner} has no attributes that can be changed; not understood: {}",
            names.join(", ")
        )
    };
    Some(Asked { target, status: "Infeasible", why })
}
