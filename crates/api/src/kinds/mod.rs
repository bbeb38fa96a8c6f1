//! The one table of kinds. Everything that differs from kind to kind is a row's field or function:
//! the server, the printers, the discovery documents and the controllers read it and hold no list
//! of kinds of their own. One file per kind, named after it.
//!
//! A kind is written down as a handle to its row ([`Kind`], [`Row`]); text is borrowed, functions are given the row,
//! and what is as with most kinds comes from `BASE`:
//!
//! ```ignore
//! use std::borrow::Cow::Borrowed;
//!
//! pub static LEASE: Kind = Kind::BuiltIn(&Row {
//!     group: Borrowed("coordination.k8s.io"),
//!     kind: Borrowed("Lease"),
//!     plural: Borrowed("leases"),
//!     singular: Borrowed("lease"),
//!     short_names: Borrowed(&[]),
//!     subresources: Borrowed(&[Subresource::Status]),
//!     type_name: Borrowed("io.k8s.api.coordination.v1.Lease"),
//!     columns: Borrowed(&[NAME, text_column("Holder", "Who holds it."), AGE]),
//!     row: |_, lease, now| vec![json!(name(lease)), json!(text(lease, &["spec", "holderIdentity"])), age(lease, now)],
//!     defaults: |_, lease| default(lease, "spec", json!({})),
//!     validate: |_, lease, causes| validate(lease, causes),
//!     ..BASE
//! });
//! ```
//!
//! Whoever uses one takes `&Kind` (`kinds::LEASE` is given as `&kinds::LEASE`), reads `kind.plural`, and calls
//! `(kind.validate)(kind, &object, &mut causes)`. Who keeps one clones the handle.

pub mod addresses;
pub mod admission_rules;
pub mod apiservice;
pub(crate) mod cells;
pub mod certificatesigningrequest;
mod claims_validation;
pub mod clusterrole;
pub mod clusterrolebinding;
pub mod clustertrustbundle;
pub mod componentstatus;
pub mod configmap;
pub(crate) mod container_validation;
pub mod controllerrevision;
pub mod cronjob;
pub mod csidriver;
pub mod csinode;
pub mod csistoragecapacity;
pub mod customresourcedefinition;
pub mod daemonset;
pub(crate) mod data_source;
pub mod deployment;
pub(crate) mod device_rules;
pub mod deviceclass;
pub mod devicetaintrule;
mod downward_validation;
pub mod endpoints;
pub mod endpointslice;
pub mod event;
pub mod event_regarding;
pub mod field;
pub mod flowschema;
pub mod horizontalpodautoscaler;
pub mod ingress;
pub mod ingressclass;
pub mod ipaddress;
pub mod job;
mod job_status_validation;
pub(crate) mod job_validation;
pub mod lease;
pub mod lifecycle;
pub mod limitrange;
pub mod mutatingadmissionpolicy;
pub mod mutatingadmissionpolicybinding;
pub mod mutatingwebhookconfiguration;
pub mod namespace;
pub mod networkpolicy;
pub mod node;
pub mod persistentvolume;
pub mod persistentvolumeclaim;
mod placement_validation;
pub mod pod;
pub mod pod_level;
pub mod pod_row;
pub(crate) mod pod_spec;
pub(crate) mod pod_spec_validation;
pub mod pod_warnings;
pub mod podcertificaterequest;
pub mod poddisruptionbudget;
pub mod podmetrics;
pub mod podtemplate;
pub mod policy_types;
pub mod priorityclass;
pub mod prioritylevelconfiguration;
#[cfg(test)]
mod refusal_tests;
pub mod removal;
pub mod replicaset;
pub mod replicationcontroller;
pub mod resourceclaim;
pub mod resourceclaimtemplate;
pub mod resourcequota;
pub mod resourceslice;
pub mod role;
pub mod rolebinding;
pub mod runtimeclass;
pub mod scale;
pub mod secret;
mod security_validation;
pub mod service;
pub mod serviceaccount;
pub mod servicecidr;
pub(crate) mod snapshot_rules;
pub mod statefulset;
pub mod storageclass;
pub mod storageversionmigration;
mod systems_validation;
pub mod validatingadmissionpolicy;
pub mod validatingadmissionpolicybinding;
pub mod validatingwebhookconfiguration;
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

use std::borrow::Cow::{self, Borrowed};
use std::sync::Arc;

use serde_json::Value;

pub use apiservice::API_SERVICE;
pub use certificatesigningrequest::CERTIFICATE_SIGNING_REQUEST;
pub use clusterrole::CLUSTER_ROLE;
pub use clusterrolebinding::CLUSTER_ROLE_BINDING;
pub use clustertrustbundle::CLUSTER_TRUST_BUNDLE;
pub use componentstatus::COMPONENT_STATUS;
pub use configmap::CONFIG_MAP;
pub use controllerrevision::CONTROLLER_REVISION;
pub use cronjob::CRON_JOB;
pub use csidriver::CSI_DRIVER;
pub use csinode::CSI_NODE;
pub use csistoragecapacity::CSI_STORAGE_CAPACITY;
pub use customresourcedefinition::CUSTOM_RESOURCE_DEFINITION;
pub use daemonset::DAEMON_SET;
pub use deployment::DEPLOYMENT;
pub use deviceclass::DEVICE_CLASS;
pub use devicetaintrule::DEVICE_TAINT_RULE;
pub use endpoints::ENDPOINTS;
pub use endpointslice::ENDPOINT_SLICE;
pub use event::EVENT;
pub use event_regarding::EVENT_REGARDING;
pub use flowschema::FLOW_SCHEMA;
pub use horizontalpodautoscaler::{HORIZONTAL_POD_AUTOSCALER, HORIZONTAL_POD_AUTOSCALER_V1};
pub use ingress::INGRESS;
pub use ingressclass::INGRESS_CLASS;
pub use ipaddress::IP_ADDRESS;
pub use job::JOB;
pub use lease::LEASE;
pub use limitrange::LIMIT_RANGE;
pub use mutatingadmissionpolicy::MUTATING_ADMISSION_POLICY;
pub use mutatingadmissionpolicybinding::MUTATING_ADMISSION_POLICY_BINDING;
pub use mutatingwebhookconfiguration::MUTATING_WEBHOOK_CONFIGURATION;
pub use namespace::NAMESPACE;
pub use networkpolicy::NETWORK_POLICY;
pub use node::NODE;
pub use persistentvolume::PERSISTENT_VOLUME;
pub use persistentvolumeclaim::PERSISTENT_VOLUME_CLAIM;
pub use pod::POD;
pub use podcertificaterequest::POD_CERTIFICATE_REQUEST;
pub use poddisruptionbudget::POD_DISRUPTION_BUDGET;
pub use podmetrics::{NODE_METRICS, POD_METRICS};
pub use podtemplate::POD_TEMPLATE;
pub use priorityclass::PRIORITY_CLASS;
pub use prioritylevelconfiguration::PRIORITY_LEVEL_CONFIGURATION;
pub use replicaset::REPLICA_SET;
pub use replicationcontroller::REPLICATION_CONTROLLER;
pub use resourceclaim::RESOURCE_CLAIM;
pub use resourceclaimtemplate::RESOURCE_CLAIM_TEMPLATE;
pub use resourcequota::RESOURCE_QUOTA;
pub use resourceslice::RESOURCE_SLICE;
pub use role::ROLE;
pub use rolebinding::ROLE_BINDING;
pub use runtimeclass::RUNTIME_CLASS;
pub use scale::SCALE;
pub use secret::SECRET;
pub use service::SERVICE;
pub use serviceaccount::SERVICE_ACCOUNT;
pub use servicecidr::SERVICE_CIDR;
pub use statefulset::STATEFUL_SET;
pub use storageclass::STORAGE_CLASS;
pub use storageversionmigration::STORAGE_VERSION_MIGRATION;
pub use validatingadmissionpolicy::VALIDATING_ADMISSION_POLICY;
pub use validatingadmissionpolicybinding::VALIDATING_ADMISSION_POLICY_BINDING;
pub use validatingwebhookconfiguration::VALIDATING_WEBHOOK_CONFIGURATION;
pub use volumeattachment::VOLUME_ATTACHMENT;
pub use volumeattributesclass::VOLUME_ATTRIBUTES_CLASS;
pub use volumegroupsnapshot::VOLUME_GROUP_SNAPSHOT;
pub use volumegroupsnapshotclass::VOLUME_GROUP_SNAPSHOT_CLASS;
pub use volumegroupsnapshotcontent::VOLUME_GROUP_SNAPSHOT_CONTENT;
pub use volumesnapshot::VOLUME_SNAPSHOT;
pub use volumesnapshotclass::VOLUME_SNAPSHOT_CLASS;
pub use volumesnapshotcontent::VOLUME_SNAPSHOT_CONTENT;

use crate::custom::rows::Custom;
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
    /// `/proxy`: HTTP, passed on to a Pod, a Service's endpoint or a Node's kubelet.
    Proxy,
    /// `/token` of a ServiceAccount.
    Token,
    /// `/finalize` of a Namespace.
    Finalize,
    /// `/resize` of a Pod.
    Resize,
    /// `/ephemeralcontainers` of a Pod.
    EphemeralContainers,
    /// `/approval` of a CertificateSigningRequest: writes only the conditions of its status.
    Approval,
}

/// A printer column, as in `metav1.Table`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Column {
    /// The heading before kubectl upper-cases it: `Name`, `Ready`, …
    pub name: Cow<'static, str>,
    /// `string`, `integer`, `date`, …
    pub type_: &'static str,
    /// `name` for the name column, else empty.
    pub format: &'static str,
    /// 0 is always shown, 1 only with `-o wide`.
    pub priority: i32,
    /// One line for the table's metadata.
    pub description: Cow<'static, str>,
}

/// What is known of one kind in one version.
///
/// The functions are total: they take any JSON and do not panic. Each is given the row that it belongs to, so that what
/// differs between kinds that were defined while the server runs is in their rows.
pub struct Row {
    /// `""` for the core group.
    pub group: Cow<'static, str>,
    /// `v1`.
    pub version: Cow<'static, str>,
    /// `StatefulSet`.
    pub kind: Cow<'static, str>,
    /// `statefulsets`.
    pub plural: Cow<'static, str>,
    /// `statefulset`.
    pub singular: Cow<'static, str>,
    /// `sts`.
    pub short_names: Cow<'static, [Cow<'static, str>]>,
    /// `all`.
    pub categories: Cow<'static, [Cow<'static, str>]>,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// What it serves below an object.
    pub subresources: Cow<'static, [Subresource]>,
    /// The schema's definition name: `io.k8s.api.apps.v1.StatefulSet`.
    pub type_name: Cow<'static, str>,
    /// Fields besides `metadata.name` and `metadata.namespace` that `--field-selector` knows, with their values in
    /// this object.
    pub fields: for<'r> fn(&'r Row, &Value) -> Vec<(&'r str, String)>,
    /// The columns of `kubectl get`.
    pub columns: Cow<'static, [Column]>,
    /// One cell per column; the time gives ages.
    pub row: fn(&Row, &Value, jiff::Timestamp) -> Vec<Value>,
    /// Fills in upstream's defaults, on create and on every update.
    pub defaults: fn(&Row, &mut Value),
    /// Before a create is validated: drops what a client may not set (status), sets what the server does (generation).
    pub prepare_create: fn(&Row, &mut Value),
    /// Before an update of the main resource is validated (`new`, `old`): keeps the status, bumps
    /// `metadata.generation` where the spec changed.
    pub prepare_update: fn(&Row, &mut Value, &Value),
    /// Before an update of `/status` is validated (`new`, `old`), which has everything else from `old`.
    pub prepare_status: fn(&Row, &mut Value, &Value),
    /// Upstream's validation of a new object, defaults applied. Name and namespace are checked by the caller, with
    /// `name_rule`.
    pub validate: fn(&Row, &Value, &mut Vec<Cause>),
    /// What only a new object is held to; `validate` has already run.
    pub validate_create: fn(&Row, &Value, &mut Vec<Cause>),
    /// What may not change (`new`, `old`); `validate` has already run on `new`.
    pub validate_update: fn(&Row, &Value, &Value, &mut Vec<Cause>),
    /// Upstream's validation of an update of `/status` (`new`, `old`).
    pub validate_status: fn(&Row, &Value, &Value, &mut Vec<Cause>),
    /// What a valid name is.
    pub name_rule: NameRule,
    /// What whoever writes this object is told in `Warning` headers.
    pub warnings: fn(&Row, &Value) -> Vec<String>,
    /// The verbs that the resource knows; empty for all.
    pub verbs: Cow<'static, [&'static str]>,
    /// Set for a version that is stored in another version's form.
    pub stored_as: Option<&'static Conversion>,
    /// What a kind has that was defined while the server runs.
    pub custom: Option<Box<Custom>>,
}

/// Between a version and the one that is stored. What `to` writes, `from` reads back without loss.
pub struct Conversion {
    /// The version (of the same kind, perhaps of another group) whose form is stored.
    pub stored: &'static Kind,
    /// From this version to the stored one, `apiVersion` with it.
    pub to: fn(&mut Value),
    /// From the stored version to this one.
    pub from: fn(&mut Value),
}

/// A handle to a kind's [`Row`]: cheap to clone, equal by group, version and kind, ordered by group, kind and version.
///
/// Code that only looks takes `&Kind`; what keeps a kind holds a `Kind` of its own.
#[derive(Clone)]
pub enum Kind {
    /// A kind that this binary knows.
    BuiltIn(&'static Row),
    /// A kind that was defined while the server runs.
    Custom(Arc<Row>),
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

impl std::ops::Deref for Kind {
    type Target = Row;

    fn deref(&self) -> &Row {
        match self {
            Self::BuiltIn(row) => row,
            Self::Custom(row) => row,
        }
    }
}

impl Kind {
    /// Whether it is this very row: rows of one name may differ.
    pub fn is_same_row(&self, other: &Self) -> bool {
        std::ptr::eq::<Row>(&**self, &**other)
    }

    /// The kind whose form is stored: this one, for most.
    pub fn stored(&self) -> &Self {
        self.stored_as.map_or(self, |conversion| conversion.stored)
    }

    /// Whether objects are stored in this version's form; of a kind's versions one is.
    pub fn is_stored(&self) -> bool {
        match &self.custom {
            Some(custom) => *custom.stored_version == *self.version,
            None => self.stored_as.is_none(),
        }
    }

    /// Makes an object of this version one of the stored version.
    pub fn to_stored(&self, object: &mut Value) {
        match (&self.custom, self.stored_as) {
            (Some(custom), _) => custom.set_version(&self.group, &custom.stored_version, object),
            (None, Some(conversion)) => (conversion.to)(object),
            (None, None) => {}
        }
    }

    /// Makes an object of the stored version one of this version.
    pub fn from_stored(&self, object: &mut Value) {
        match (&self.custom, self.stored_as) {
            (Some(custom), _) => {
                custom.complete(object);
                custom.set_version(&self.group, &self.version, object);
            }
            (None, Some(conversion)) => (conversion.from)(object),
            (None, None) => {}
        }
    }
}

impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq::<Row>(&**self, &**other)
            || (self.kind == other.kind && self.group == other.group && self.version == other.version)
    }
}
impl Eq for Kind {}

impl Ord for Kind {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        if std::ptr::eq::<Row>(&**self, &**other) {
            return std::cmp::Ordering::Equal;
        }
        (&*self.group, &*self.kind, &*self.version).cmp(&(&*other.group, &*other.kind, &*other.version))
    }
}
impl PartialOrd for Kind {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl std::hash::Hash for Kind {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (&*self.group, &*self.version, &*self.kind).hash(state);
    }
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.kind)
    }
}

impl Row {
    /// What most kinds share, for a row that is made while the server runs.
    pub const fn base() -> Self {
        BASE
    }

    /// `v1`, or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_string() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `pods`, or `statefulsets.apps`: how messages name the resource.
    pub fn resource(&self) -> String {
        if self.group.is_empty() { self.plural.to_string() } else { format!("{}.{}", self.plural, self.group) }
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
    &REPLICATION_CONTROLLER,
    &POD_TEMPLATE,
    &STATEFUL_SET,
    &DEPLOYMENT,
    &REPLICA_SET,
    &DAEMON_SET,
    &CONTROLLER_REVISION,
    &JOB,
    &CRON_JOB,
    &POD_DISRUPTION_BUDGET,
    &LEASE,
    &PRIORITY_CLASS,
    &CLUSTER_ROLE_BINDING,
    &ROLE_BINDING,
    &CLUSTER_ROLE,
    &ROLE,
    &INGRESS,
    &INGRESS_CLASS,
    &NETWORK_POLICY,
    &IP_ADDRESS,
    &SERVICE_CIDR,
    &HORIZONTAL_POD_AUTOSCALER,
    &HORIZONTAL_POD_AUTOSCALER_V1,
    &RESOURCE_QUOTA,
    &LIMIT_RANGE,
    &RUNTIME_CLASS,
    &VALIDATING_WEBHOOK_CONFIGURATION,
    &MUTATING_WEBHOOK_CONFIGURATION,
    &VALIDATING_ADMISSION_POLICY,
    &VALIDATING_ADMISSION_POLICY_BINDING,
    &MUTATING_ADMISSION_POLICY,
    &MUTATING_ADMISSION_POLICY_BINDING,
    &API_SERVICE,
    &CERTIFICATE_SIGNING_REQUEST,
    &CLUSTER_TRUST_BUNDLE,
    &POD_CERTIFICATE_REQUEST,
    &EVENT_REGARDING,
    &COMPONENT_STATUS,
    &FLOW_SCHEMA,
    &PRIORITY_LEVEL_CONFIGURATION,
    &RESOURCE_CLAIM,
    &RESOURCE_CLAIM_TEMPLATE,
    &DEVICE_CLASS,
    &RESOURCE_SLICE,
    &DEVICE_TAINT_RULE,
    &STORAGE_VERSION_MIGRATION,
    &CUSTOM_RESOURCE_DEFINITION,
    &NODE_METRICS,
    &POD_METRICS,
];

/// The built-in kind at `/apis/<group>/<version>/<plural>` (`group` is `""` for the core group). Servers ask a
/// [`Registry`](crate::Registry).
pub fn find(group: &str, version: &str, plural: &str) -> Option<Kind> {
    ALL.iter().copied().find(|k| k.plural == plural && k.group == group && k.version == version).cloned()
}

/// The built-in kind of a manifest's `apiVersion` (split) and `kind`. Servers ask a [`Registry`](crate::Registry).
pub fn find_kind(group: &str, version: &str, kind: &str) -> Option<Kind> {
    ALL.iter().copied().find(|k| k.kind == kind && k.group == group && k.version == version).cloned()
}

/// Orders before every kind that is served; where a range over kinds begins.
pub static LEAST: Kind = Kind::BuiltIn(&BASE);

const NAME_AND_AGE: &[Column] = &[cells::NAME, cells::AGE];

/// What most kinds share; a row names only what differs.
const BASE: Row = Row {
    group: Borrowed(""),
    version: Borrowed("v1"),
    kind: Borrowed(""),
    plural: Borrowed(""),
    singular: Borrowed(""),
    short_names: Borrowed(&[]),
    categories: Borrowed(&[]),
    namespaced: true,
    subresources: Borrowed(&[]),
    type_name: Borrowed(""),
    fields: |_, _| Vec::new(),
    columns: Borrowed(NAME_AND_AGE),
    row: |_, object, now| cells::name_and_age(object, now),
    defaults: |_, _| {},
    prepare_create: |_, _| {},
    prepare_update: |_, _, _| {},
    prepare_status: |_, _, _| {},
    validate: |_, _, _| {},
    validate_create: |_, _, _| {},
    validate_update: |_, _, _, _| {},
    validate_status: |_, _, _, _| {},
    name_rule: NameRule::Subdomain,
    warnings: |_, _| Vec::new(),
    verbs: Borrowed(&[]),
    stored_as: None,
    custom: None,
};
