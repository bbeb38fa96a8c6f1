//! What each kind is found by.

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ReplicationController,
    ResourceQuota, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::api::storage::v1::{StorageClass, VolumeAttributesClass};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use mainstay_api::ObjectKey;
use mainstay_api::snapshots::{
    VolumeGroupSnapshot, VolumeGroupSnapshotClass, VolumeGroupSnapshotContent, VolumeSnapshot, VolumeSnapshotClass,
    VolumeSnapshotContent,
};

use super::Snapshot;
use super::index::{Facets, Index, Indexed};
use crate::definitions::Definition;
use crate::ownership::controller_of;
use crate::pods::{is_active, is_finished, is_terminating};
use crate::scheduler::{claim_names, looks_at_others};
use crate::volume::{self, attributes, source};

/// The labels that a selector asks for by value.
fn pairs(selector: &LabelSelector) -> Vec<(&str, &str)> {
    selector.match_labels.iter().flatten().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

impl Indexed for ClusterRole {}
impl Indexed for ConfigMap {}
impl Indexed for Endpoints {}
impl Indexed for Lease {}
impl Indexed for Namespace {}
impl Indexed for ServiceAccount {}
impl Indexed for StorageClass {}
impl Indexed for VolumeAttributesClass {}
impl Indexed for VolumeGroupSnapshotClass {}
impl Indexed for VolumeSnapshotClass {}

impl Indexed for ControllerRevision {
    fn facets(&self, facets: &mut Facets) {
        facets.labels("controllerrevisions", &self.metadata);
    }
}

impl Indexed for Deployment {
    fn selector(&self) -> Option<Vec<(&str, &str)>> {
        Some(pairs(&self.spec.selector))
    }
}

impl Indexed for ReplicaSet {
    fn facets(&self, facets: &mut Facets) {
        facets.labels("replicasets", &self.metadata);
    }

    fn selector(&self) -> Option<Vec<(&str, &str)>> {
        Some(pairs(&self.spec.selector))
    }
}

impl Indexed for CronJob {}
impl Indexed for Definition {}
impl Indexed for ResourceQuota {}

impl Indexed for DaemonSet {
    fn selector(&self) -> Option<Vec<(&str, &str)>> {
        Some(pairs(&self.spec.selector))
    }
}

impl Indexed for Job {
    fn selector(&self) -> Option<Vec<(&str, &str)>> {
        Some(pairs(self.spec.as_ref()?.selector.as_ref()?))
    }
}

impl Indexed for PodDisruptionBudget {
    fn selector(&self) -> Option<Vec<(&str, &str)>> {
        Some(pairs(self.spec.as_ref()?.selector.as_ref()?))
    }
}

impl Indexed for ReplicationController {
    fn selector(&self) -> Option<Vec<(&str, &str)>> {
        let selector = self.spec.as_ref()?.selector.as_ref()?;
        Some(selector.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect())
    }
}

impl Indexed for StatefulSet {
    fn selector(&self) -> Option<Vec<(&str, &str)>> {
        Some(pairs(&self.spec.selector))
    }
}

impl Indexed for Service {
    fn selector(&self) -> Option<Vec<(&str, &str)>> {
        let selector = self.spec.as_ref()?.selector.as_ref().filter(|selector| !selector.is_empty())?;
        Some(selector.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect())
    }
}

impl Indexed for EndpointSlice {
    fn facets(&self, facets: &mut Facets) {
        facets.labels("endpointslices", &self.metadata);
        let own = self.metadata.namespace.as_deref().unwrap_or("");
        let targets = self.endpoints.iter().flatten().filter_map(|endpoint| endpoint.target_ref.as_ref());
        for target in targets.filter(|target| target.kind.as_deref() == Some("Pod")) {
            let namespace = target.namespace.as_deref().unwrap_or(own);
            facets.add(Index::SlicesNaming, namespace, target.name.as_deref().unwrap_or(""));
        }
    }
}

impl Indexed for Node {
    fn facets(&self, facets: &mut Facets) {
        facets.labels("nodes", &self.metadata);
        if crate::controllers::persistentvolumeclaim::is_ready(self) {
            facets.add(Index::NodesReady, "", "");
        }
    }

    fn account(snapshot: &mut Snapshot, key: &ObjectKey, _old: Option<&Self>, new: Option<&Self>) {
        super::usage::set_node(snapshot, key, new);
    }
}

impl Indexed for Pod {
    fn facets(&self, facets: &mut Facets) {
        facets.labels("pods", &self.metadata);
        let namespace = self.metadata.namespace.as_deref().unwrap_or("");
        let node = self.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or("");
        facets.add(Index::PodsOn, node, "");
        let claims = claim_names(self);
        for (claim, _) in &claims {
            facets.add(Index::PodsUsing, namespace, claim);
        }
        if !is_finished(self) {
            crate::backend::addresses(self).for_each(|address| facets.add(Index::PodsAt, namespace, address));
        }
        match controller_of(&self.metadata) {
            Some(owner) if !node.is_empty() && !is_finished(self) => facets.add(Index::PodsOfOn, &owner.uid, node),
            _ => {}
        }
        if node.is_empty() && is_active(self) {
            if looks_at_others(self) {
                facets.add(Index::PodsLookingAtOthers, "", "");
            }
            if !claims.is_empty() {
                facets.add(Index::PodsPendingClaims, "", "");
            }
            if let Some(node) = self.status.as_ref().and_then(|status| status.nominated_node_name.as_deref()) {
                facets.add(Index::PodsNominated, node, "");
                facets.add(Index::PodsNominated, "*", "");
            }
        }
    }

    fn account(snapshot: &mut Snapshot, key: &ObjectKey, old: Option<&Self>, new: Option<&Self>) {
        super::usage::set_pod(snapshot, key, old, new);
    }
}

impl Indexed for PersistentVolumeClaim {
    fn facets(&self, facets: &mut Facets) {
        facets.labels("persistentvolumeclaims", &self.metadata);
        facets.add(Index::ClaimsNaming, volume::volume_name(self), "");
        if let Some(wanted) = source::wanted(self).filter(|_| volume::volume_name(self).is_empty()) {
            facets.add(Index::ClaimsWanting, wanted.kind, wanted.name);
        }
        let bound = self.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
        if !bound || volume::status::is_held_up(self) {
            facets.add(Index::ClaimsUnsettled, "", "");
        }
        attributes::named_by(self).into_iter().for_each(|class| facets.add(Index::AttributesClass, class, "claims"));
    }
}

impl Indexed for PersistentVolume {
    fn facets(&self, facets: &mut Facets) {
        if let Some(reference) = volume::claim_ref(self) {
            let key = volume::claim_key(reference);
            facets.add(Index::VolumesOf, &key.namespace, &key.name);
        }
        if let Some(folder) = source::copy_of(self).filter(|folder| source::is_copying(self, folder)) {
            facets.add(Index::VolumesCopying, folder, "");
        }
        let recycled = !volume::annotation(&self.metadata, crate::controllers::persistentvolume::RECYCLE).is_empty();
        if recycled || volume::nfs::is_waiting(self) {
            facets.add(Index::VolumesWaiting, "", "");
        }
        if volume::is_image(self) && volume::room::home(self).is_none() {
            facets.add(Index::VolumesLoose, "", "");
        }
        let class = attributes::of_volume(self);
        if !class.is_empty() {
            facets.add(Index::AttributesClass, class, "volumes");
        }
    }

    fn account(snapshot: &mut Snapshot, key: &ObjectKey, old: Option<&Self>, new: Option<&Self>) {
        super::usage::set_volume(snapshot, key, old, new);
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
