//! Snapshots of one volume.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ObjectReference, TopologySelectorTerm};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A user's wish for a copy of a claim's data as it is at one moment, or for a copy that exists already.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[schemars(rename = "io.k8s.storage.snapshot.v1.VolumeSnapshot")]
#[serde(rename_all = "camelCase")]
pub struct VolumeSnapshot {
    /// The version of the API that this object is written in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_version: Option<String>,
    /// The kind of object that this is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Name, labels and what else every object has.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What is to be copied. It does not change after creation.
    pub spec: VolumeSnapshotSpec,
    /// What has come of it. It counts only while snapshot and content name each other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<VolumeSnapshotStatus>,
}

/// What is to be copied.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[schemars(rename = "io.k8s.storage.snapshot.v1.VolumeSnapshotSpec")]
#[serde(rename_all = "camelCase")]
pub struct VolumeSnapshotSpec {
    /// Where the data comes from: exactly one of its fields is set.
    pub source: VolumeSnapshotSource,
    /// The VolumeSnapshotClass. Without one, the default class of the volume's driver is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_snapshot_class_name: Option<String>,
}

/// Where a snapshot's data comes from.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[schemars(rename = "io.k8s.storage.snapshot.v1.VolumeSnapshotSource")]
#[serde(rename_all = "camelCase")]
pub struct VolumeSnapshotSource {
    /// A claim in the snapshot's namespace, whose volume is copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim_name: Option<String>,
    /// A VolumeSnapshotContent that stands for a copy which exists already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_snapshot_content_name: Option<String>,
}

/// What has come of a snapshot.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[schemars(rename = "io.k8s.storage.snapshot.v1.VolumeSnapshotStatus")]
#[serde(rename_all = "camelCase")]
pub struct VolumeSnapshotStatus {
    /// The content that the snapshot is bound to; the content must name the snapshot too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound_volume_snapshot_content_name: Option<String>,
    /// The moment whose data it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_time: Option<Time>,
    /// Why the last try failed; gone after one that succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<VolumeSnapshotError>,
    /// Whether claims can be filled from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_to_use: Option<bool>,
    /// The least size of a claim that is filled from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore_size: Option<Quantity>,
    /// The VolumeGroupSnapshot that it is a part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_group_snapshot_name: Option<String>,
}

/// What went wrong, and when.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[schemars(rename = "io.k8s.storage.snapshot.v1.VolumeSnapshotError")]
#[serde(rename_all = "camelCase")]
pub struct VolumeSnapshotError {
    /// What went wrong, for people. It is shown to everybody who may read the snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
}

/// The copy itself, as the storage system has it.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[schemars(rename = "io.k8s.storage.snapshot.v1.VolumeSnapshotContent")]
#[serde(rename_all = "camelCase")]
pub struct VolumeSnapshotContent {
    /// The version of the API that this object is written in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_version: Option<String>,
    /// The kind of object that this is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Name, labels and what else every object has.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// Which copy it is, and whose.
    pub spec: VolumeSnapshotContentSpec,
    /// What the storage system says of the copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<VolumeSnapshotContentStatus>,
}

/// Which copy it is, and whose.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[schemars(rename = "io.k8s.storage.snapshot.v1.VolumeSnapshotContentSpec")]
#[serde(rename_all = "camelCase")]
pub struct VolumeSnapshotContentSpec {
    /// `Delete` or `Retain`: whether the copy goes with its VolumeSnapshot.
    pub deletion_policy: String,
    /// The driver that makes and keeps the copy.
    pub driver: String,
    /// A volume that is to be copied, or a copy that exists: exactly one of its fields is set.
    pub source: VolumeSnapshotContentSource,
    /// `Filesystem` or `Block`, as the volume was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_volume_mode: Option<String>,
    /// The class that it was made by. The class may be gone or another by now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_snapshot_class_name: Option<String>,
    /// The VolumeSnapshot that it is bound to. Name and namespace must be set; the uid is, once both are bound.
    pub volume_snapshot_ref: ObjectReference,
}

/// Where a content's data comes from.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[schemars(rename = "io.k8s.storage.snapshot.v1.VolumeSnapshotContentSource")]
#[serde(rename_all = "camelCase")]
pub struct VolumeSnapshotContentSource {
    /// The driver's name of a copy that exists already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_handle: Option<String>,
    /// The driver's name of the volume that is to be copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_handle: Option<String>,
}

/// What the storage system says of a copy.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[schemars(rename = "io.k8s.storage.snapshot.v1.VolumeSnapshotContentStatus")]
#[serde(rename_all = "camelCase")]
pub struct VolumeSnapshotContentStatus {
    /// The moment whose data it holds, in nanoseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_time: Option<i64>,
    /// Why the last try failed; gone after one that succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<VolumeSnapshotError>,
    /// Whether claims can be filled from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_to_use: Option<bool>,
    /// The least size of a claim that is filled from it, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore_size: Option<i64>,
    /// The driver's name of the copy. Without one the copy was not made yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_handle: Option<String>,
    /// The driver's name of the group of copies that it is a part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_group_snapshot_handle: Option<String>,
}

/// How snapshots are made by a driver.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[schemars(rename = "io.k8s.storage.snapshot.v1.VolumeSnapshotClass")]
#[serde(rename_all = "camelCase")]
pub struct VolumeSnapshotClass {
    /// Where snapshots of this class may be used. Empty is everywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_topologies: Option<Vec<TopologySelectorTerm>>,
    /// The version of the API that this object is written in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_version: Option<String>,
    /// `Delete` or `Retain`: whether a copy goes with its VolumeSnapshot.
    pub deletion_policy: String,
    /// The driver that makes the copies.
    pub driver: String,
    /// The kind of object that this is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Name, labels and what else every object has.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What only the driver understands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<BTreeMap<String, String>>,
}
