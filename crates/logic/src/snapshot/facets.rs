//! What each kind is found by.

use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, Pod, ReplicationController, ResourceQuota, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::flowcontrol::v1::{FlowSchema, PriorityLevelConfiguration};
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use mainstay_api::ObjectKey;

use super::Snapshot;
use super::index::{Facets, Index, Indexed};
use crate::addresses::{service_of, sorted};
use crate::controllers::horizontalpodautoscaler;
use crate::definitions::Definition;
use crate::nodes::is_ready;
use crate::ownership::controller_of;
use crate::pods::{claim_names, is_active, is_finished, is_terminating, looks_at_others};

/// The labels that a selector asks for by value.
fn pairs(selector: &LabelSelector) -> Vec<(&str, &str)> {
    selector.match_labels.iter().flatten().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

/// What is known of the pods of an owner goes with it.
fn forget(snapshot: &mut Snapshot, old: Option<&ObjectMeta>, new: Option<&ObjectMeta>) {
    let uid = |meta: Option<&ObjectMeta>| meta.and_then(|meta| meta.uid.clone());
    if let Some(old) = uid(old).filter(|old| uid(new).as_ref() != Some(old)) {
        snapshot.forget_refusals(&old);
    }
}

/// What is known of the pods of one template says nothing of those of another (S7).
fn forget_if(snapshot: &mut Snapshot, meta: &ObjectMeta, is_another_template: bool) {
    if let Some(uid) = meta.uid.as_deref().filter(|_| is_another_template) {
        snapshot.forget_refusals(uid);
    }
}

impl Indexed for ClusterRole {}
impl Indexed for ConfigMap {}
impl Indexed for Endpoints {}
impl Indexed for Lease {}
impl Indexed for ValidatingAdmissionPolicy {}
impl Indexed for Namespace {}
impl Indexed for ServiceAccount {}

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

    fn account(snapshot: &mut Snapshot, _: &ObjectKey, old: Option<&Self>, new: Option<&Self>) {
        forget(snapshot, old.map(|set| &set.metadata), new.map(|set| &set.metadata));
        if let (Some(old), Some(new)) = (old, new) {
            forget_if(snapshot, &new.metadata, old.spec.template != new.spec.template);
        }
    }
}

impl Indexed for IPAddress {
    fn facets(&self, facets: &mut Facets) {
        let Some(service) = service_of(self) else { return };
        facets.add(Index::AddressesOf, &service.namespace, &service.name);
        if let Some(Ok(address)) = self.metadata.name.as_deref().map(str::parse) {
            facets.add(Index::Addresses, "", &sorted(address));
        }
    }
}

impl Indexed for ServiceCIDR {
    fn facets(&self, facets: &mut Facets) {
        if is_terminating(&self.metadata) {
            facets.add(Index::RangesLeaving, "", "");
        }
    }
}

impl Indexed for CronJob {}
impl Indexed for FlowSchema {}
impl Indexed for PriorityLevelConfiguration {}
impl Indexed for HorizontalPodAutoscaler {
    fn facets(&self, facets: &mut Facets) {
        let namespace = self.metadata.namespace.as_deref().unwrap_or("");
        facets.add(Index::AutoscalersOf, namespace, &horizontalpodautoscaler::aim(self));
    }
}
impl Indexed for Definition {}
impl Indexed for ResourceQuota {}

impl Indexed for DaemonSet {
    fn selector(&self) -> Option<Vec<(&str, &str)>> {
        Some(pairs(&self.spec.selector))
    }

    fn account(snapshot: &mut Snapshot, _: &ObjectKey, old: Option<&Self>, new: Option<&Self>) {
        forget(snapshot, old.map(|set| &set.metadata), new.map(|set| &set.metadata));
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

    fn account(snapshot: &mut Snapshot, _: &ObjectKey, old: Option<&Self>, new: Option<&Self>) {
        forget(snapshot, old.map(|set| &set.metadata), new.map(|set| &set.metadata));
        if let (Some(old), Some(new)) = (old, new) {
            let template = |set: &Self| set.spec.as_ref().and_then(|spec| spec.template.clone());
            forget_if(snapshot, &new.metadata, template(old) != template(new));
        }
    }
}

impl Indexed for StatefulSet {
    fn selector(&self) -> Option<Vec<(&str, &str)>> {
        Some(pairs(&self.spec.selector))
    }

    fn account(snapshot: &mut Snapshot, _: &ObjectKey, old: Option<&Self>, new: Option<&Self>) {
        forget(snapshot, old.map(|set| &set.metadata), new.map(|set| &set.metadata));
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
        if is_ready(self) {
            facets.add(Index::NodesReady, "", "");
        }
    }

    fn account(snapshot: &mut Snapshot, key: &ObjectKey, _old: Option<&Self>, new: Option<&Self>) {
        super::usage::set_node(snapshot, key, new);
    }
}

/// Which pod that has ended is removed first when there are too many, as text: evicted ones, then the oldest.
/// Upstream's order.
fn ended_rank(pod: &Pod) -> String {
    let is_evicted = pod.status.as_ref().and_then(|status| status.reason.as_deref()) == Some("Evicted");
    let created = pod.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second().max(0));
    format!("{}{created:020}", u8::from(!is_evicted))
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
        if is_finished(self) && !is_terminating(&self.metadata) {
            facets.add(Index::PodsEnded, "", "");
            facets.add(Index::PodsEndedSince, "", &ended_rank(self));
            let owner = controller_of(&self.metadata);
            if let Some(owner) = owner.filter(|owner| matches!(&*owner.kind, "ReplicaSet" | "ReplicationController")) {
                facets.add(Index::PodsEndedOf, &owner.uid, "");
            }
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
