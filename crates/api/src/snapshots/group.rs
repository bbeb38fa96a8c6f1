//! Snapshots of several volumes at one moment.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::VolumeSnapshotError;

/// A user's wish for a copy of the data of several claims, all of one moment, or for one that exists already.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[schemars(rename = "io.k8s.storage.groupsnapshot.v1.VolumeGroupSnapshot")]
#[serde(rename_all = "camelCase")]
pub struct VolumeGroupSnapshot {
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
    pub spec: VolumeGroupSnapshotSpec,
    /// What has come of it. It counts only while group snapshot and content name each other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<VolumeGroupSnapshotStatus>,
}

/// What is to be copied.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[schemars(rename = "io.k8s.storage.groupsnapshot.v1.VolumeGroupSnapshotSpec")]
#[serde(rename_all = "camelCase")]
pub struct VolumeGroupSnapshotSpec {
    /// Where the data comes from: exactly one of its fields is set.
    pub source: VolumeGroupSnapshotSource,
    /// The VolumeGroupSnapshotClass. Without one, the default class of the volumes' driver is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_group_snapshot_class_name: Option<String>,
}

/// Where a group snapshot's data comes from.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[schemars(rename = "io.k8s.storage.groupsnapshot.v1.VolumeGroupSnapshotSource")]
#[serde(rename_all = "camelCase")]
pub struct VolumeGroupSnapshotSource {
    /// The claims of the namespace that have these labels when the content is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
    /// A VolumeGroupSnapshotContent that stands for copies which exist already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_group_snapshot_content_name: Option<String>,
}

/// What has come of a group snapshot.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[schemars(rename = "io.k8s.storage.groupsnapshot.v1.VolumeGroupSnapshotStatus")]
#[serde(rename_all = "camelCase")]
pub struct VolumeGroupSnapshotStatus {
    /// The content that the group snapshot is bound to; the content must name the group snapshot too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound_volume_group_snapshot_content_name: Option<String>,
    /// The moment whose data it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_time: Option<Time>,
    /// Why the last try failed; gone after one that succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<VolumeSnapshotError>,
    /// Whether claims can be filled from all of its snapshots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_to_use: Option<bool>,
}

/// The copies themselves, as the storage system has them.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[schemars(rename = "io.k8s.storage.groupsnapshot.v1.VolumeGroupSnapshotContent")]
#[serde(rename_all = "camelCase")]
pub struct VolumeGroupSnapshotContent {
    /// The version of the API that this object is written in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_version: Option<String>,
    /// The kind of object that this is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Name, labels and what else every object has.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// Which copies they are, and whose.
    pub spec: VolumeGroupSnapshotContentSpec,
    /// What the storage system says of the copies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<VolumeGroupSnapshotContentStatus>,
}

/// Which copies they are, and whose.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[schemars(rename = "io.k8s.storage.groupsnapshot.v1.VolumeGroupSnapshotContentSpec")]
#[serde(rename_all = "camelCase")]
pub struct VolumeGroupSnapshotContentSpec {
    /// `Delete` or `Retain`: whether the copies go with their VolumeGroupSnapshot.
    pub deletion_policy: String,
    /// The driver that makes and keeps the copies.
    pub driver: String,
    /// Volumes that are to be copied, or copies that exist: exactly one of its fields is set.
    pub source: VolumeGroupSnapshotContentSource,
    /// The class that it was made by. The class may be gone or another by now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_group_snapshot_class_name: Option<String>,
    /// The VolumeGroupSnapshot that it is bound to. Name and namespace must be set; the uid is, once both are bound.
    pub volume_group_snapshot_ref: ObjectReference,
}

/// Where the data of a group content comes from.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[schemars(rename = "io.k8s.storage.groupsnapshot.v1.VolumeGroupSnapshotContentSource")]
#[serde(rename_all = "camelCase")]
pub struct VolumeGroupSnapshotContentSource {
    /// The driver's names of a group of copies that exists already, and of each of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_snapshot_handles: Option<GroupSnapshotHandles>,
    /// The driver's names of the volumes that are to be copied at one moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_handles: Option<Vec<String>>,
}

/// The driver's names of a group of copies.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[schemars(rename = "io.k8s.storage.groupsnapshot.v1.GroupSnapshotHandles")]
#[serde(rename_all = "camelCase")]
pub struct GroupSnapshotHandles {
    /// That of the group.
    pub volume_group_snapshot_handle: String,
    /// Those of the copies in it.
    pub volume_snapshot_handles: Vec<String>,
}

/// What the storage system says of a group of copies.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[schemars(rename = "io.k8s.storage.groupsnapshot.v1.VolumeGroupSnapshotContentStatus")]
#[serde(rename_all = "camelCase")]
pub struct VolumeGroupSnapshotContentStatus {
    /// The moment whose data they hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_time: Option<Time>,
    /// Why the last try failed; gone after one that succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<VolumeSnapshotError>,
    /// Whether claims can be filled from all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_to_use: Option<bool>,
    /// The driver's name of the group. Without one the copies were not made yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_group_snapshot_handle: Option<String>,
    /// Each copy of the group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_snapshot_info_list: Option<Vec<VolumeSnapshotInfo>>,
}

/// One copy of a group.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[schemars(rename = "io.k8s.storage.groupsnapshot.v1.VolumeSnapshotInfo")]
#[serde(rename_all = "camelCase")]
pub struct VolumeSnapshotInfo {
    /// The moment whose data it holds, in nanoseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_time: Option<i64>,
    /// Whether claims can be filled from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_to_use: Option<bool>,
    /// The least size of a claim that is filled from it, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore_size: Option<i64>,
    /// The driver's name of the copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_handle: Option<String>,
    /// The driver's name of the volume that it is a copy of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_handle: Option<String>,
}

/// How group snapshots are made by a driver.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[schemars(rename = "io.k8s.storage.groupsnapshot.v1.VolumeGroupSnapshotClass")]
#[serde(rename_all = "camelCase")]
pub struct VolumeGroupSnapshotClass {
    /// The version of the API that this object is written in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_version: Option<String>,
    /// `Delete` or `Retain`: whether the copies go with their VolumeGroupSnapshot.
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
