//! The types of `metrics.k8s.io/v1beta1`: what nodes and pods use. k8s-openapi has none (upstream serves them by an
//! aggregated server), so they are declared here, as those of [`crate::snapshots`] are.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

/// What the names of all types of this file begin with.
pub(crate) const PREFIX: &str = "io.k8s.metrics.";

/// The schemas of the top-level types, sorted by definition name.
#[rustfmt::skip]
pub(crate) static ROOTS: &[(&str, fn(&mut SchemaGenerator) -> Schema)] = &[
    ("io.k8s.metrics.pkg.apis.metrics.v1beta1.NodeMetrics", <NodeMetrics as JsonSchema>::json_schema),
    ("io.k8s.metrics.pkg.apis.metrics.v1beta1.PodMetrics", <PodMetrics as JsonSchema>::json_schema),
];

/// What a node uses.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[schemars(rename = "io.k8s.metrics.pkg.apis.metrics.v1beta1.NodeMetrics")]
#[serde(rename_all = "camelCase")]
pub struct NodeMetrics {
    /// The version of the API that this object is written in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_version: Option<String>,
    /// The kind of object that this is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The node's name and labels.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// When the window ended over which was measured.
    pub timestamp: Time,
    /// How long it was: `15s`.
    pub window: String,
    /// `cpu` in cores (the mean over the window) and `memory` in bytes (the working set at its end).
    pub usage: BTreeMap<String, Quantity>,
}

/// What a pod uses.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[schemars(rename = "io.k8s.metrics.pkg.apis.metrics.v1beta1.PodMetrics")]
#[serde(rename_all = "camelCase")]
pub struct PodMetrics {
    /// The version of the API that this object is written in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_version: Option<String>,
    /// The kind of object that this is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The pod's name, namespace and labels.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// When the window ended over which was measured.
    pub timestamp: Time,
    /// How long it was: `15s`.
    pub window: String,
    /// Each container that ran all that time.
    pub containers: Vec<ContainerMetrics>,
}

/// What a container uses.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[schemars(rename = "io.k8s.metrics.pkg.apis.metrics.v1beta1.ContainerMetrics")]
#[serde(rename_all = "camelCase")]
pub struct ContainerMetrics {
    /// The container.
    pub name: String,
    /// `cpu` in cores (the mean over the window) and `memory` in bytes (the working set at its end).
    pub usage: BTreeMap<String, Quantity>,
}
