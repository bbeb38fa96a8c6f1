//! What volumes, claims, snapshots and their classes are found by, and what their sums are made of.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{StorageClass, VolumeAttributesClass};
use mainstay_api::ObjectKey;
use mainstay_api::snapshots::{
    VolumeGroupSnapshot, VolumeGroupSnapshotClass, VolumeGroupSnapshotContent, VolumeSnapshot, VolumeSnapshotClass,
    VolumeSnapshotContent,
};

use super::{RECYCLE, attributes, nfs, room, source, status};
use crate::pods::is_terminating;
use crate::snapshot::{Facets, Index, Indexed, Snapshot, VolumeShare};

impl Indexed for StorageClass {}
impl Indexed for VolumeSnapshotClass {}
impl Indexed for VolumeGroupSnapshotClass {}
impl Indexed for VolumeAttributesClass {}

impl Indexed for PersistentVolumeClaim {
    fn facets(&self, facets: &mut Facets) {
        facets.labels("persistentvolumeclaims", &self.metadata);
        facets.add(Index::ClaimsNaming, super::volume_name(self), "");
        if let Some(wanted) = source::wanted(self).filter(|_| super::volume_name(self).is_empty()) {
            facets.add(Index::ClaimsWanting, wanted.kind, wanted.name);
        }
        let bound = self.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
        if !bound || status::is_held_up(self) {
            facets.add(Index::ClaimsUnsettled, "", "");
        }
        attributes::named_by(self).into_iter().for_each(|class| facets.add(Index::AttributesClass, class, "claims"));
    }
}

impl Indexed for PersistentVolume {
    fn facets(&self, facets: &mut Facets) {
        if let Some(reference) = super::claim_ref(self) {
            let key = super::claim_key(reference);
            facets.add(Index::VolumesOf, &key.namespace, &key.name);
        }
        if let Some(folder) = source::copy_of(self).filter(|folder| source::is_copying(self, folder)) {
            facets.add(Index::VolumesCopying, folder, "");
        }
        // Asked for, or not yet: no node was ready that could be asked.
        let policy = self.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
        let unasked = policy == Some("Recycle") && super::phase(self) == "Released";
        let recycled = unasked || !super::annotation(&self.metadata, RECYCLE).is_empty();
        if recycled || nfs::is_waiting(self) {
            facets.add(Index::VolumesWaiting, "", "");
        }
        if super::is_image(self) && room::home(self).is_none() {
            facets.add(Index::VolumesLoose, "", "");
        }
        let class = attributes::of_volume(self);
        if !class.is_empty() {
            facets.add(Index::AttributesClass, class, "volumes");
        }
    }

    fn account(snapshot: &mut Snapshot, key: &ObjectKey, old: Option<&Self>, new: Option<&Self>) {
        snapshot.account_volume(key, old.map(share), new.map(share));
    }
}

impl Indexed for VolumeGroupSnapshot {
    fn facets(&self, facets: &mut Facets) {
        if self.status.as_ref().and_then(|status| status.ready_to_use) != Some(true) {
            facets.add(Index::GroupsUnsettled, "", "");
        }
    }
}

impl Indexed for VolumeGroupSnapshotContent {
    fn facets(&self, facets: &mut Facets) {
        let made = self.status.as_ref().and_then(|status| status.volume_group_snapshot_handle.as_ref()).is_some();
        if !made && !is_terminating(&self.metadata) {
            let volumes = self.spec.source.volume_handles.iter().flatten();
            volumes.for_each(|volume| facets.add(Index::GroupContentsOf, volume, ""));
        }
    }
}

impl Indexed for VolumeSnapshot {
    fn facets(&self, facets: &mut Facets) {
        let namespace = self.metadata.namespace.as_deref().unwrap_or("");
        if let Some(claim) = &self.spec.source.persistent_volume_claim_name {
            facets.add(Index::SnapshotsOf, namespace, claim);
        }
        if let Some(content) = &self.spec.source.volume_snapshot_content_name {
            facets.add(Index::SnapshotsNaming, content, "");
        }
        let ready = self.status.as_ref().and_then(|status| status.ready_to_use) == Some(true);
        if !ready || is_terminating(&self.metadata) {
            facets.add(Index::SnapshotsUnsettled, "", "");
        }
    }
}

impl Indexed for VolumeSnapshotContent {
    fn facets(&self, facets: &mut Facets) {
        facets.add(Index::ContentsOf, source::content_handle(self), "");
        if is_terminating(&self.metadata) {
            facets.add(Index::ContentsLeaving, "", "");
        }
    }
}

/// What a volume is of its class's free volumes and of its node's room.
fn share(volume: &PersistentVolume) -> VolumeShare<'_> {
    let is_free =
        super::claim_ref(volume).is_none() && super::phase(volume) == "Available" && !is_terminating(&volume.metadata);
    VolumeShare {
        home: room::home(volume).unwrap_or(""),
        promised: if super::is_image(volume) { room::promised(volume) } else { 0 },
        free: is_free.then(|| (super::class_of_volume(volume), super::capacity(volume))),
    }
}
