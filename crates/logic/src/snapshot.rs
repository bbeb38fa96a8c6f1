//! The cluster at one revision, as typed views of the kinds that logic reads. Taking a snapshot is a cheap clone.

use std::sync::Arc;

use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ReplicationController,
    ResourceQuota, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::flowcontrol::v1::{FlowSchema, PriorityLevelConfiguration};
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::api::storage::v1::{StorageClass, VolumeAttributesClass};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mainstay_api::custom::rows::names;
use mainstay_api::snapshots::{
    VolumeGroupSnapshot, VolumeGroupSnapshotClass, VolumeGroupSnapshotContent, VolumeSnapshot, VolumeSnapshotClass,
    VolumeSnapshotContent,
};
use mainstay_api::{Kind, ObjectKey, Registry, kinds};
use rpds::RedBlackTreeMapSync;
use serde::Deserialize;

use crate::definitions::Definition;
use crate::measured::Measured;
use crate::nodes::LEASES;

mod facets;
mod index;
mod refusals;
mod silences;
mod terms;
mod usage;

pub use index::{Facets, Index, Indexed, Indexes, Typed};
pub use refusals::Streak;
pub use silences::Silences;
pub use usage::{Usage, VolumeShare};

/// The ConfigMap with the cluster's CA: published by the server in `kube-system`, copied to every namespace.
pub const ROOT_CA: &str = "kube-root-ca.crt";

/// The typed objects of one kind, by namespace and name.
pub type Objects<T> = RedBlackTreeMapSync<ObjectKey, Arc<T>>;

/// What is known of every object, whatever its kind.
#[derive(Debug)]
pub struct Meta {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub key: ObjectKey,
    /// Its metadata.
    pub metadata: ObjectMeta,
}

impl Meta {
    /// `metadata.uid`, or `""`.
    pub fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or("")
    }
}

/// One object made, changed or deleted.
#[derive(Clone, Debug)]
pub struct Change {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub key: ObjectKey,
    /// Before; `None` when it was made.
    pub old: Option<Arc<Meta>>,
    /// After; `None` when it is gone.
    pub new: Option<Arc<Meta>>,
}

/// Everything logic may look at, at one revision.
#[derive(Clone, Default, Debug)]
pub struct Snapshot {
    /// The store's revision that this is the state of.
    pub revision: u64,
    /// The kinds that are served.
    pub registry: Registry,
    /// Every object of every kind.
    pub metas: RedBlackTreeMapSync<(Kind, ObjectKey), Arc<Meta>>,
    /// By uid of each owner reference: the dependents' keys in `metas`.
    pub owned: RedBlackTreeMapSync<(Arc<str>, Kind, ObjectKey), ()>,
    /// Stored objects that do not decode, as their type or even as metadata, with the decoder's words. What is seen of
    /// them is what was known before, or at least that they are there; nobody may decide anything that looks at their
    /// kinds (A10).
    pub unreadable: RedBlackTreeMapSync<(Kind, ObjectKey), Arc<str>>,
    /// Where a node has it: the node whose pods it has, and no others.
    pub pods_of: Option<Arc<str>>,
    /// What was measured lately, where somebody measures.
    pub measured: Arc<Measured>,
    /// Since when the nodes' Leases stand still.
    pub silences: Silences,
    /// What is found by what.
    pub indexes: Indexes,
    /// What adds up.
    sums: usage::Sums,
    /// Whose pods are refused.
    refusals: refusals::Refusals,
    pub cluster_roles: Objects<ClusterRole>,
    /// Those of `cluster_roles` with an aggregation rule.
    pub aggregated_cluster_roles: Objects<ClusterRole>,
    pub controller_revisions: Objects<ControllerRevision>,
    pub cron_jobs: Objects<CronJob>,
    pub daemon_sets: Objects<DaemonSet>,
    pub definitions: Objects<Definition>,
    pub deployments: Objects<Deployment>,
    pub endpoint_slices: Objects<EndpointSlice>,
    pub endpoints: Objects<Endpoints>,
    pub flow_schemas: Objects<FlowSchema>,
    pub horizontal_pod_autoscalers: Objects<HorizontalPodAutoscaler>,
    pub ip_addresses: Objects<IPAddress>,
    pub jobs: Objects<Job>,
    pub leases: Objects<Lease>,
    pub namespaces: Objects<Namespace>,
    pub nodes: Objects<Node>,
    pub persistent_volume_claims: Objects<PersistentVolumeClaim>,
    pub persistent_volumes: Objects<PersistentVolume>,
    pub pod_disruption_budgets: Objects<PodDisruptionBudget>,
    pub pods: Objects<Pod>,
    pub priority_levels: Objects<PriorityLevelConfiguration>,
    pub replica_sets: Objects<ReplicaSet>,
    pub resource_quotas: Objects<ResourceQuota>,
    pub replication_controllers: Objects<ReplicationController>,
    pub service_accounts: Objects<ServiceAccount>,
    /// The ConfigMaps named [`ROOT_CA`]; other ConfigMaps are known by their metadata only.
    pub root_cas: Objects<ConfigMap>,
    pub service_cidrs: Objects<ServiceCIDR>,
    pub services: Objects<Service>,
    pub stateful_sets: Objects<StatefulSet>,
    pub storage_classes: Objects<StorageClass>,
    pub validating_admission_policies: Objects<ValidatingAdmissionPolicy>,
    pub volume_attributes_classes: Objects<VolumeAttributesClass>,
    pub volume_group_snapshot_classes: Objects<VolumeGroupSnapshotClass>,
    pub volume_group_snapshot_contents: Objects<VolumeGroupSnapshotContent>,
    pub volume_group_snapshots: Objects<VolumeGroupSnapshot>,
    pub volume_snapshot_classes: Objects<VolumeSnapshotClass>,
    pub volume_snapshot_contents: Objects<VolumeSnapshotContent>,
    pub volume_snapshots: Objects<VolumeSnapshot>,
}

#[derive(Deserialize)]
struct OnlyMetadata {
    #[serde(default)]
    metadata: ObjectMeta,
}

/// The objects of one namespace, in order of name.
pub fn in_namespace<'a, T>(
    objects: &'a Objects<T>,
    namespace: &str,
) -> impl Iterator<Item = (&'a ObjectKey, &'a Arc<T>)> {
    let start = ObjectKey::new(namespace, "");
    let namespace = start.namespace.clone();
    objects.range(start..).take_while(move |(key, _)| key.namespace == namespace)
}

impl Snapshot {
    /// An empty one that will have the pods of one node only.
    pub fn of_node(node: &str) -> Self {
        Self { pods_of: Some(node.into()), ..Self::default() }
    }

    /// Takes in one change of the store: the object's encoded JSON, or `None` when it is gone. Gives back what
    /// changed, for [`crate::Controller::keys`]. An object that does not decode is noted in
    /// [`Snapshot::unreadable`] and counts as present, as it was last known (A10).
    pub fn apply(&mut self, kind: &Kind, key: ObjectKey, value: Option<&[u8]>, revision: u64) -> Change {
        self.revision = self.revision.max(revision);
        let slot = (kind.clone(), key.clone());
        let old = self.metas.get(&slot).cloned();
        if let Some(old) = &old {
            for owner in old.metadata.owner_references.iter().flatten() {
                self.owned.remove_mut(&(owner.uid.as_str().into(), kind.clone(), key.clone()));
            }
        }
        let mut unreadable = None;
        let new = match value {
            None => {
                self.metas.remove_mut(&slot);
                None
            }
            Some(bytes) => {
                let metadata = serde_json::from_slice::<OnlyMetadata>(bytes).map(|only| only.metadata);
                let mut metadata = metadata.unwrap_or_else(|error| {
                    unreadable = Some(error);
                    old.as_ref().map_or_else(|| bare_metadata(bytes), |old| old.metadata.clone())
                });
                metadata.managed_fields = None;
                for owner in metadata.owner_references.iter().flatten() {
                    self.owned.insert_mut((owner.uid.as_str().into(), kind.clone(), key.clone()), ());
                }
                let meta = Arc::new(Meta { kind: kind.clone(), key: key.clone(), metadata });
                self.metas.insert_mut(slot.clone(), meta.clone());
                Some(meta)
            }
        };
        if *kind == kinds::LEASE && &*key.namespace == LEASES {
            let version = new.as_ref().map(|new| new.metadata.resource_version.as_deref().unwrap_or(""));
            self.silences.note(&key.name, version);
            if self.nodes.contains_key(&ObjectKey::new("", key.name.clone())) {
                self.silences.expect(&key.name);
            }
        }
        if *kind == kinds::NODE {
            match &new {
                Some(_) => self.silences.expect(&key.name),
                None => self.silences.expect_none(&key.name),
            }
        }
        match self.apply_typed(kind, &key, value).err().or(unreadable) {
            Some(error) => self.unreadable.insert_mut(slot, error.to_string().into()),
            None if self.unreadable.is_empty() => {}
            None => drop(self.unreadable.remove_mut(&slot)),
        }
        Change { kind: kind.clone(), key, old, new }
    }

    /// An object that does not decode, of one of the kinds with these plurals (`*`: of any kind). The first one in
    /// order of kind and key.
    pub fn unreadable_of(&self, plurals: &[&str]) -> Option<(&Kind, &ObjectKey)> {
        let mut all = self.unreadable.keys();
        let found = all.find(|(kind, _)| plurals.iter().any(|of| *of == kind.plural || *of == "*"))?;
        Some((&found.0, &found.1))
    }

    /// Why an object does not decode, where it does not.
    pub fn unreadable_because(&self, kind: &Kind, key: &ObjectKey) -> Option<&str> {
        if self.unreadable.is_empty() {
            return None;
        }
        self.unreadable.get(&(kind.clone(), key.clone())).map(|why| &**why)
    }

    fn apply_typed(&mut self, kind: &Kind, key: &ObjectKey, value: Option<&[u8]>) -> Result<(), serde_json::Error> {
        match (&*kind.group, &*kind.plural) {
            ("", "configmaps") if &*key.name != ROOT_CA => Ok(()),
            ("apiextensions.k8s.io", "customresourcedefinitions") => {
                self.put_typed(kind, key, value)?;
                let (plural, group) = key.name.split_once('.').unwrap_or_default();
                let rows = match value {
                    Some(bytes) => names(bytes)?,
                    None => Vec::new(),
                };
                let known = self.registry.versions(group, plural);
                if known.iter().chain(&rows).any(|kind| matches!(kind, Kind::Custom(_)))
                    && !known.iter().any(|kind| matches!(kind, Kind::BuiltIn(_)))
                {
                    let before = self.registry.stored(group, plural).cloned();
                    self.registry = self.registry.with(group, plural, rows);
                    let after = self.registry.stored(group, plural).cloned();
                    if let Some(before) = before.filter(|before| Some(before) != after.as_ref()) {
                        self.rename_kind(&before, after.as_ref());
                    }
                }
                Ok(())
            }
            ("rbac.authorization.k8s.io", "clusterroles") => {
                self.put_typed(kind, key, value)?;
                self.aggregated_cluster_roles.remove_mut(key);
                if let Some(role) = self.cluster_roles.get(key).filter(|role| role.aggregation_rule.is_some()) {
                    self.aggregated_cluster_roles.insert_mut(key.clone(), role.clone());
                }
                Ok(())
            }
            _ => self.put_typed(kind, key, value),
        }
    }

    /// The objects of a kind that is stored in another version from now on (S10: an owner is there whatever the
    /// version), or that is not served any more: what nobody can look up is not seen.
    fn rename_kind(&mut self, from: &Kind, to: Option<&Kind>) {
        let all = self.metas.range((from.clone(), ObjectKey::new("", ""))..);
        let all: Vec<Arc<Meta>> = all.take_while(|((kind, _), _)| kind == from).map(|(_, meta)| meta.clone()).collect();
        for meta in all {
            let (slot, owners) = ((from.clone(), meta.key.clone()), meta.metadata.owner_references.clone());
            self.metas.remove_mut(&slot);
            let unreadable = self.unreadable.get(&slot).cloned();
            self.unreadable.remove_mut(&slot);
            for owner in owners.iter().flatten() {
                self.owned.remove_mut(&(owner.uid.as_str().into(), from.clone(), meta.key.clone()));
            }
            let Some(to) = to else { continue };
            for owner in owners.iter().flatten() {
                self.owned.insert_mut((owner.uid.as_str().into(), to.clone(), meta.key.clone()), ());
            }
            let slot = (to.clone(), meta.key.clone());
            if let Some(why) = unreadable {
                self.unreadable.insert_mut(slot.clone(), why);
            }
            let meta = Meta { kind: to.clone(), key: meta.key.clone(), metadata: meta.metadata.clone() };
            self.metas.insert_mut(slot, Arc::new(meta));
        }
    }

    fn put<T: Typed + serde::de::DeserializeOwned>(
        &mut self,
        key: &ObjectKey,
        value: Option<&[u8]>,
    ) -> Result<(), serde_json::Error> {
        let mut new = value.map(serde_json::from_slice::<T>).transpose()?;
        // Who owns which field is no decision's business, and as long as all the rest.
        if let Some(new) = &mut new {
            new.object_meta_mut().managed_fields = None;
        }
        self.set(key, new.map(Arc::new));
        Ok(())
    }

    /// The dependents of an owner, by its uid.
    pub fn dependents<'a>(&'a self, uid: &str) -> impl Iterator<Item = &'a Arc<Meta>> + use<'a> {
        let uid: Arc<str> = uid.into();
        let start = (uid.clone(), kinds::LEAST.clone(), ObjectKey::new("", ""));
        self.owned
            .range(start..)
            .take_while(move |((owner, ..), ())| *owner == uid)
            .filter_map(|((_, kind, key), ())| self.metas.get(&(kind.clone(), key.clone())))
    }

    /// The pods bound to a node (`""`: not bound yet), in order of key.
    pub fn pods_of_node<'a>(&'a self, node: &str) -> impl Iterator<Item = (&'a ObjectKey, &'a Arc<Pod>)> + use<'a> {
        self.found(Index::PodsOn, node, "")
    }
}

/// The kinds of which logic sees more than metadata: group, plural, and the snapshot's field.
macro_rules! typed {
    ($(($group:literal, $plural:literal) => $field:ident: $type:ty,)*) => {
        impl Snapshot {
            fn put_typed(
                &mut self,
                kind: &Kind,
                key: &ObjectKey,
                value: Option<&[u8]>,
            ) -> Result<(), serde_json::Error> {
                match (&*kind.group, &*kind.plural) {
                    $(($group, $plural) => self.put::<$type>(key, value),)*
                    _ => Ok(()),
                }
            }

            /// Whether more is seen of some objects of a kind than their metadata.
            pub fn has_views_of(kind: &Kind) -> bool {
                matches!((&*kind.group, &*kind.plural), $(($group, $plural))|*)
            }

            /// The snapshot as somebody sees it who looks at these kinds only (`*`: at all).
            #[cfg(test)]
            pub fn only(&self, plurals: &[&str]) -> Self {
                let mut only = self.clone();
                let hidden = |plural: &str| !plurals.contains(&plural) && !plurals.contains(&"*");
                $(if hidden($plural) {
                    only.$field = Objects::default();
                })*
                only
            }
        }

        $(impl Typed for $type {
            const PLURAL: &'static str = $plural;
            const GROUP: &'static str = $group;

            fn of(snapshot: &Snapshot) -> &Objects<Self> {
                &snapshot.$field
            }

            fn of_mut(snapshot: &mut Snapshot) -> &mut Objects<Self> {
                &mut snapshot.$field
            }

            fn object_meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        })*
    };
}

typed! {
    ("admissionregistration.k8s.io", "validatingadmissionpolicies") => validating_admission_policies: ValidatingAdmissionPolicy,
    ("apiextensions.k8s.io", "customresourcedefinitions") => definitions: Definition,
    ("", "configmaps") => root_cas: ConfigMap,
    ("", "endpoints") => endpoints: Endpoints,
    ("", "namespaces") => namespaces: Namespace,
    ("", "nodes") => nodes: Node,
    ("", "persistentvolumeclaims") => persistent_volume_claims: PersistentVolumeClaim,
    ("", "persistentvolumes") => persistent_volumes: PersistentVolume,
    ("", "pods") => pods: Pod,
    ("", "resourcequotas") => resource_quotas: ResourceQuota,
    ("", "replicationcontrollers") => replication_controllers: ReplicationController,
    ("", "serviceaccounts") => service_accounts: ServiceAccount,
    ("", "services") => services: Service,
    ("apps", "controllerrevisions") => controller_revisions: ControllerRevision,
    ("apps", "daemonsets") => daemon_sets: DaemonSet,
    ("apps", "deployments") => deployments: Deployment,
    ("apps", "replicasets") => replica_sets: ReplicaSet,
    ("apps", "statefulsets") => stateful_sets: StatefulSet,
    ("autoscaling", "horizontalpodautoscalers") => horizontal_pod_autoscalers: HorizontalPodAutoscaler,
    ("batch", "cronjobs") => cron_jobs: CronJob,
    ("batch", "jobs") => jobs: Job,
    ("coordination.k8s.io", "leases") => leases: Lease,
    ("discovery.k8s.io", "endpointslices") => endpoint_slices: EndpointSlice,
    ("flowcontrol.apiserver.k8s.io", "flowschemas") => flow_schemas: FlowSchema,
    ("flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations") => priority_levels: PriorityLevelConfiguration,
    ("groupsnapshot.storage.k8s.io", "volumegroupsnapshotclasses") => volume_group_snapshot_classes: VolumeGroupSnapshotClass,
    ("groupsnapshot.storage.k8s.io", "volumegroupsnapshotcontents") => volume_group_snapshot_contents: VolumeGroupSnapshotContent,
    ("groupsnapshot.storage.k8s.io", "volumegroupsnapshots") => volume_group_snapshots: VolumeGroupSnapshot,
    ("networking.k8s.io", "ipaddresses") => ip_addresses: IPAddress,
    ("networking.k8s.io", "servicecidrs") => service_cidrs: ServiceCIDR,
    ("policy", "poddisruptionbudgets") => pod_disruption_budgets: PodDisruptionBudget,
    ("rbac.authorization.k8s.io", "clusterroles") => cluster_roles: ClusterRole,
    ("snapshot.storage.k8s.io", "volumesnapshotclasses") => volume_snapshot_classes: VolumeSnapshotClass,
    ("snapshot.storage.k8s.io", "volumesnapshotcontents") => volume_snapshot_contents: VolumeSnapshotContent,
    ("snapshot.storage.k8s.io", "volumesnapshots") => volume_snapshots: VolumeSnapshot,
    ("storage.k8s.io", "storageclasses") => storage_classes: StorageClass,
    ("storage.k8s.io", "volumeattributesclasses") => volume_attributes_classes: VolumeAttributesClass,
}

/// What can be read of metadata that is not of its type and was never seen before: that the object is there.
fn bare_metadata(bytes: &[u8]) -> ObjectMeta {
    let object: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
    let field =
        |name: &str| object.get("metadata").and_then(|metadata| metadata.get(name)?.as_str()).map(str::to_owned);
    ObjectMeta {
        name: field("name"),
        namespace: field("namespace"),
        uid: field("uid"),
        resource_version: field("resourceVersion"),
        ..ObjectMeta::default()
    }
}
