//! The one table of kinds. Everything that differs from kind to kind is a row's field or function:
//! the server, the printers, the discovery documents and the controllers read it and hold no list
//! of kinds of their own. One file per kind, named after it.

pub(crate) mod cells;
pub mod clusterrole;
pub mod clusterrolebinding;
pub mod configmap;
pub(crate) mod container_validation;
pub mod controllerrevision;
pub mod csidriver;
pub mod csinode;
pub mod csistoragecapacity;
pub(crate) mod data_source;
pub mod deployment;
pub mod endpoints;
pub mod endpointslice;
pub mod event;
pub(crate) mod field;
pub mod lease;
pub mod namespace;
pub mod node;
pub mod persistentvolume;
pub mod persistentvolumeclaim;
pub mod pod;
pub mod pod_row;
pub(crate) mod pod_spec;
pub(crate) mod pod_spec_validation;
pub mod priorityclass;
pub mod replicaset;
pub mod role;
pub mod rolebinding;
pub mod secret;
pub mod service;
pub mod serviceaccount;
pub(crate) mod snapshot_rules;
pub mod statefulset;
pub mod storageclass;
pub(crate) mod volume_validation;
pub mod volumeattachment;
pub mod volumeattributesclass;
pub mod volumegroupsnapshot;
pub mod volumegroupsnapshotclass;
pub mod volumegroupsnapshotcontent;
pub mod volumesnapshot;
pub mod volumesnapshotclass;
pub mod volumesnapshotcontent;
pub(crate) mod workload;

use serde_json::Value;

pub use clusterrole::CLUSTER_ROLE;
pub use clusterrolebinding::CLUSTER_ROLE_BINDING;
pub use configmap::CONFIG_MAP;
pub use controllerrevision::CONTROLLER_REVISION;
pub use csidriver::CSI_DRIVER;
pub use csinode::CSI_NODE;
pub use csistoragecapacity::CSI_STORAGE_CAPACITY;
pub use deployment::DEPLOYMENT;
pub use endpoints::ENDPOINTS;
pub use endpointslice::ENDPOINT_SLICE;
pub use event::EVENT;
pub use lease::LEASE;
pub use namespace::NAMESPACE;
pub use node::NODE;
pub use persistentvolume::PERSISTENT_VOLUME;
pub use persistentvolumeclaim::PERSISTENT_VOLUME_CLAIM;
pub use pod::POD;
pub use priorityclass::PRIORITY_CLASS;
pub use replicaset::REPLICA_SET;
pub use role::ROLE;
pub use rolebinding::ROLE_BINDING;
pub use secret::SECRET;
pub use service::SERVICE;
pub use serviceaccount::SERVICE_ACCOUNT;
pub use statefulset::STATEFUL_SET;
pub use storageclass::STORAGE_CLASS;
pub use volumeattachment::VOLUME_ATTACHMENT;
pub use volumeattributesclass::VOLUME_ATTRIBUTES_CLASS;
pub use volumegroupsnapshot::VOLUME_GROUP_SNAPSHOT;
pub use volumegroupsnapshotclass::VOLUME_GROUP_SNAPSHOT_CLASS;
pub use volumegroupsnapshotcontent::VOLUME_GROUP_SNAPSHOT_CONTENT;
pub use volumesnapshot::VOLUME_SNAPSHOT;
pub use volumesnapshotclass::VOLUME_SNAPSHOT_CLASS;
pub use volumesnapshotcontent::VOLUME_SNAPSHOT_CONTENT;

use crate::status::Cause;

/// A subresource that a kind serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Subresource {
    /// `/status`: writes only `status` (and not `spec` or most of `metadata`).
    Status,
    /// `/scale`: an `autoscaling/v1` Scale.
    Scale,
    /// `/binding` and the namespaced `bindings`.
    Binding,
    /// `/eviction`.
    Eviction,
    /// `/log`.
    Log,
    /// `/exec`.
    Exec,
    /// `/attach`.
    Attach,
    /// `/portforward`.
    PortForward,
    /// `/token` of a ServiceAccount.
    Token,
    /// `/finalize` of a Namespace.
    Finalize,
    /// `/resize` of a Pod.
    Resize,
    /// `/ephemeralcontainers` of a Pod.
    EphemeralContainers,
}

/// A printer column, as in `metav1.Table`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Column {
    /// The heading before kubectl upper-cases it: `Name`, `Ready`, …
    pub name: &'static str,
    /// `string`, `integer`, `date`, …
    pub type_: &'static str,
    /// `name` for the name column, else empty.
    pub format: &'static str,
    /// 0 is always shown, 1 only with `-o wide`.
    pub priority: i32,
    /// One line for the table's metadata.
    pub description: &'static str,
}

/// One row of the table.
///
/// The functions are total: they take any JSON and do not panic.
pub struct Kind {
    /// `""` for the core group.
    pub group: &'static str,
    /// `v1`.
    pub version: &'static str,
    /// `StatefulSet`.
    pub kind: &'static str,
    /// `statefulsets`.
    pub plural: &'static str,
    /// `statefulset`.
    pub singular: &'static str,
    /// `sts`.
    pub short_names: &'static [&'static str],
    /// `all`.
    pub categories: &'static [&'static str],
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// What it serves below an object.
    pub subresources: &'static [Subresource],
    /// The schema's definition name: `io.k8s.api.apps.v1.StatefulSet`.
    pub type_name: &'static str,
    /// Fields besides `metadata.name` and `metadata.namespace` that `--field-selector` knows, with their values in
    /// this object.
    pub fields: fn(&Value) -> Vec<(&'static str, String)>,
    /// The columns of `kubectl get`.
    pub columns: &'static [Column],
    /// One cell per column; `now` gives ages.
    pub row: fn(&Value, jiff::Timestamp) -> Vec<Value>,
    /// Fills in upstream's defaults, on create and on every update.
    pub defaults: fn(&mut Value),
    /// Before a create is validated: drops what a client may not set (status), sets what the server does (generation).
    pub prepare_create: fn(&mut Value),
    /// Before an update of the main resource is validated (`new`, `old`): keeps the status, bumps
    /// `metadata.generation` where the spec changed.
    pub prepare_update: fn(&mut Value, &Value),
    /// Upstream's validation of a new object, defaults applied. Name and namespace are checked by the caller, with
    /// `name_rule`.
    pub validate: fn(&Value, &mut Vec<Cause>),
    /// What may not change (`new`, `old`); `validate` has already run on `new`.
    pub validate_update: fn(&Value, &Value, &mut Vec<Cause>),
    /// What a valid name is.
    pub name_rule: NameRule,
}

/// What `metadata.name` of a kind must look like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NameRule {
    /// RFC 1123 subdomain, at most 253 characters.
    Subdomain,
    /// RFC 1123 label, at most 63 characters (Namespace).
    Label,
    /// RFC 1035 label (Service before 1.34 rules relaxed).
    Label1035,
    /// Any path segment (RBAC kinds).
    PathSegment,
}

impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
            || (self.group == other.group && self.version == other.version && self.kind == other.kind)
    }
}
impl Eq for Kind {}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.kind)
    }
}

impl Kind {
    /// `v1`, or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `pods`, or `statefulsets.apps`: how messages name the resource.
    pub fn resource(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// Whether it serves `subresource`.
    pub fn has(&self, subresource: Subresource) -> bool {
        self.subresources.contains(&subresource)
    }
}

/// Every kind that is served, in the order of discovery.
pub static ALL: &[&Kind] = &[
    &NAMESPACE,
    &NODE,
    &POD,
    &SERVICE,
    &ENDPOINTS,
    &ENDPOINT_SLICE,
    &CONFIG_MAP,
    &SECRET,
    &SERVICE_ACCOUNT,
    &EVENT,
    &PERSISTENT_VOLUME,
    &PERSISTENT_VOLUME_CLAIM,
    &STORAGE_CLASS,
    &VOLUME_ATTRIBUTES_CLASS,
    &CSI_DRIVER,
    &CSI_NODE,
    &CSI_STORAGE_CAPACITY,
    &VOLUME_ATTACHMENT,
    &VOLUME_SNAPSHOT,
    &VOLUME_SNAPSHOT_CONTENT,
    &VOLUME_SNAPSHOT_CLASS,
    &VOLUME_GROUP_SNAPSHOT,
    &VOLUME_GROUP_SNAPSHOT_CONTENT,
    &VOLUME_GROUP_SNAPSHOT_CLASS,
    &STATEFUL_SET,
    &DEPLOYMENT,
    &REPLICA_SET,
    &CONTROLLER_REVISION,
    &LEASE,
    &PRIORITY_CLASS,
    &CLUSTER_ROLE_BINDING,
    &ROLE_BINDING,
    &CLUSTER_ROLE,
    &ROLE,
];

/// The kind at `/apis/<group>/<version>/<plural>` (`group` is `""` for the core group).
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    ALL.iter().copied().find(|k| k.plural == plural && k.group == group && k.version == version)
}

/// The kind of a manifest's `apiVersion` (split) and `kind`.
pub fn find_kind(group: &str, version: &str, kind: &str) -> Option<&'static Kind> {
    ALL.iter().copied().find(|k| k.kind == kind && k.group == group && k.version == version)
}

/// What most kinds share; a row names only what differs.
const BASE: Kind = Kind {
    group: "",
    version: "v1",
    kind: "",
    plural: "",
    singular: "",
    short_names: &[],
    categories: &[],
    namespaced: true,
    subresources: &[],
    type_name: "",
    fields: |_| Vec::new(),
    columns: &[cells::NAME, cells::AGE],
    row: cells::name_and_age,
    defaults: |_| {},
    prepare_create: |_| {},
    prepare_update: |_, _| {},
    validate: |_, _| {},
    validate_update: |_, _, _| {},
    name_rule: NameRule::Subdomain,
};
