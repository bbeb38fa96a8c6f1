//! The cluster at one revision, as typed views of the kinds that logic reads. Taking a snapshot is a cheap clone.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::storage::v1::{StorageClass, VolumeAttributesClass};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mainstay_api::snapshots::{
    VolumeGroupSnapshot, VolumeGroupSnapshotClass, VolumeGroupSnapshotContent, VolumeSnapshot, VolumeSnapshotClass,
    VolumeSnapshotContent,
};
use mainstay_api::{Kind, ObjectKey};
use rpds::RedBlackTreeMapSync;
use serde::Deserialize;

/// The ConfigMap with the cluster's CA: published by the server in `kube-system`, copied to every namespace.
pub const ROOT_CA: &str = "kube-root-ca.crt";

/// The typed objects of one kind, by namespace and name.
pub type Objects<T> = RedBlackTreeMapSync<ObjectKey, Arc<T>>;

/// What is known of every object, whatever its kind.
#[derive(Debug)]
pub struct Meta {
    /// Its kind.
    pub kind: &'static Kind,
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
    pub kind: &'static Kind,
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
    /// Every object of every kind: (plural, group) and key.
    pub metas: RedBlackTreeMapSync<(&'static str, &'static str, ObjectKey), Arc<Meta>>,
    /// By uid of each owner reference: the dependents' place in `metas`.
    pub owned: RedBlackTreeMapSync<(Arc<str>, &'static str, &'static str, ObjectKey), ()>,
    /// Pods by the node they are bound to (`""` when unbound).
    pub pods_on: RedBlackTreeMapSync<(Arc<str>, ObjectKey), ()>,
    pub controller_revisions: Objects<ControllerRevision>,
    pub deployments: Objects<Deployment>,
    pub endpoint_slices: Objects<EndpointSlice>,
    pub endpoints: Objects<Endpoints>,
    pub leases: Objects<Lease>,
    pub namespaces: Objects<Namespace>,
    pub nodes: Objects<Node>,
    pub persistent_volume_claims: Objects<PersistentVolumeClaim>,
    pub persistent_volumes: Objects<PersistentVolume>,
    pub pods: Objects<Pod>,
    pub replica_sets: Objects<ReplicaSet>,
    pub service_accounts: Objects<ServiceAccount>,
    /// The ConfigMaps named [`ROOT_CA`]; other ConfigMaps are known by their metadata only.
    pub root_cas: Objects<ConfigMap>,
    pub services: Objects<Service>,
    pub stateful_sets: Objects<StatefulSet>,
    pub storage_classes: Objects<StorageClass>,
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
    /// Takes in one change of the store: the object's encoded JSON, or `None` when it is gone. Gives back what
    /// changed, for [`crate::Controller::keys`]. An object whose JSON is not of its type is an error and leaves
    /// the snapshot with its metadata only.
    pub fn apply(
        &mut self,
        kind: &'static Kind,
        key: ObjectKey,
        value: Option<&[u8]>,
        revision: u64,
    ) -> Result<Change, serde_json::Error> {
        self.revision = self.revision.max(revision);
        let place = (kind.plural, kind.group, key.clone());
        let old = self.metas.get(&place).cloned();
        if let Some(old) = &old {
            for owner in old.metadata.owner_references.iter().flatten() {
                self.owned.remove_mut(&(owner.uid.as_str().into(), kind.plural, kind.group, key.clone()));
            }
        }
        let mut unreadable = None;
        let new = match value {
            None => {
                self.metas.remove_mut(&place);
                None
            }
            Some(bytes) => {
                let metadata = match serde_json::from_slice::<OnlyMetadata>(bytes) {
                    Ok(OnlyMetadata { metadata }) => metadata,
                    Err(error) => {
                        unreadable = Some(error);
                        bare_metadata(bytes)
                    }
                };
                for owner in metadata.owner_references.iter().flatten() {
                    self.owned.insert_mut((owner.uid.as_str().into(), kind.plural, kind.group, key.clone()), ());
                }
                let meta = Arc::new(Meta { kind, key: key.clone(), metadata });
                self.metas.insert_mut(place, meta.clone());
                Some(meta)
            }
        };
        self.apply_typed(kind, &key, value)?;
        if let Some(error) = unreadable {
            return Err(error);
        }
        Ok(Change { kind, key, old, new })
    }

    fn apply_typed(
        &mut self,
        kind: &'static Kind,
        key: &ObjectKey,
        value: Option<&[u8]>,
    ) -> Result<(), serde_json::Error> {
        fn put<T: serde::de::DeserializeOwned>(
            objects: &mut Objects<T>,
            key: &ObjectKey,
            value: Option<&[u8]>,
        ) -> Result<(), serde_json::Error> {
            objects.remove_mut(key);
            if let Some(bytes) = value {
                objects.insert_mut(key.clone(), Arc::new(serde_json::from_slice(bytes)?));
            }
            Ok(())
        }
        match (kind.group, kind.plural) {
            ("", "pods") => {
                if let Some(old) = self.pods.get(key) {
                    self.pods_on.remove_mut(&(node_of(old), key.clone()));
                }
                put(&mut self.pods, key, value)?;
                if let Some(new) = self.pods.get(key) {
                    self.pods_on.insert_mut((node_of(new), key.clone()), ());
                }
                Ok(())
            }
            ("apps", "controllerrevisions") => put(&mut self.controller_revisions, key, value),
            ("apps", "deployments") => put(&mut self.deployments, key, value),
            ("apps", "replicasets") => put(&mut self.replica_sets, key, value),
            ("apps", "statefulsets") => put(&mut self.stateful_sets, key, value),
            ("discovery.k8s.io", "endpointslices") => put(&mut self.endpoint_slices, key, value),
            ("coordination.k8s.io", "leases") => put(&mut self.leases, key, value),
            ("storage.k8s.io", "storageclasses") => put(&mut self.storage_classes, key, value),
            ("storage.k8s.io", "volumeattributesclasses") => put(&mut self.volume_attributes_classes, key, value),
            ("groupsnapshot.storage.k8s.io", "volumegroupsnapshotclasses") => {
                put(&mut self.volume_group_snapshot_classes, key, value)
            }
            ("groupsnapshot.storage.k8s.io", "volumegroupsnapshotcontents") => {
                put(&mut self.volume_group_snapshot_contents, key, value)
            }
            ("groupsnapshot.storage.k8s.io", "volumegroupsnapshots") => {
                put(&mut self.volume_group_snapshots, key, value)
            }
            ("snapshot.storage.k8s.io", "volumesnapshotclasses") => put(&mut self.volume_snapshot_classes, key, value),
            ("snapshot.storage.k8s.io", "volumesnapshotcontents") => {
                put(&mut self.volume_snapshot_contents, key, value)
            }
            ("snapshot.storage.k8s.io", "volumesnapshots") => put(&mut self.volume_snapshots, key, value),
            ("", "configmaps") if &*key.name == ROOT_CA => put(&mut self.root_cas, key, value),
            ("", "endpoints") => put(&mut self.endpoints, key, value),
            ("", "namespaces") => put(&mut self.namespaces, key, value),
            ("", "nodes") => put(&mut self.nodes, key, value),
            ("", "persistentvolumeclaims") => put(&mut self.persistent_volume_claims, key, value),
            ("", "persistentvolumes") => put(&mut self.persistent_volumes, key, value),
            ("", "serviceaccounts") => put(&mut self.service_accounts, key, value),
            ("", "services") => put(&mut self.services, key, value),
            _ => Ok(()),
        }
    }

    /// The dependents of an owner, by its uid.
    pub fn dependents<'a>(&'a self, uid: &str) -> impl Iterator<Item = &'a Arc<Meta>> + use<'a> {
        let uid: Arc<str> = uid.into();
        let start = (uid.clone(), "", "", ObjectKey::new("", ""));
        self.owned
            .range(start..)
            .take_while(move |((owner, ..), ())| *owner == uid)
            .filter_map(|((_, plural, group, key), ())| self.metas.get(&(*plural, *group, key.clone())))
    }

    /// The pods bound to a node (`""`: not bound yet), in order of key.
    pub fn pods_of_node<'a>(&'a self, node: &str) -> impl Iterator<Item = (&'a ObjectKey, &'a Arc<Pod>)> + use<'a> {
        let node: Arc<str> = node.into();
        let start = (node.clone(), ObjectKey::new("", ""));
        self.pods_on
            .range(start..)
            .take_while(move |((on, _), ())| *on == node)
            .filter_map(|((_, key), ())| self.pods.get_key_value(key))
    }
}

/// What can be read of metadata that is not of its type: enough that the object counts as present, so that nothing is
/// collected as if its owner were gone.
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

fn node_of(pod: &Pod) -> Arc<str> {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or("").into()
}
