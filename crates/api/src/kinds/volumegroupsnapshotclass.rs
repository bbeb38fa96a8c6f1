//! VolumeGroupSnapshotClass: how group snapshots are made.

use serde_json::json;

use super::cells::{self, AGE, NAME, text_column};
use super::field::Field;
use super::snapshot_rules::{cell, driver_and_policy, fixed, prepare_class_update, prepare_create};
use super::{BASE, Kind};
use crate::object::name;

/// Marks the class that group snapshots without one get, of each driver.
pub const DEFAULT_ANNOTATION: &str = "groupsnapshot.storage.kubernetes.io/is-default-class";

/// The row of VolumeGroupSnapshotClass.
pub static VOLUME_GROUP_SNAPSHOT_CLASS: Kind = Kind {
    group: "groupsnapshot.storage.k8s.io",
    kind: "VolumeGroupSnapshotClass",
    plural: "volumegroupsnapshotclasses",
    singular: "volumegroupsnapshotclass",
    short_names: &["vgsclass", "vgsclasses"],
    namespaced: false,
    type_name: "io.k8s.storage.groupsnapshot.v1.VolumeGroupSnapshotClass",
    columns: &[
        NAME,
        text_column("Driver", "Who makes the group snapshots."),
        text_column("DeletionPolicy", "Whether the copies go with their group snapshot."),
        AGE,
    ],
    row: |class, now| {
        vec![json!(name(class)), cell(class, &["driver"]), cell(class, &["deletionPolicy"]), cells::age(class, now)]
    },
    prepare_create,
    prepare_update: prepare_class_update,
    validate: |class, causes| driver_and_policy(&Field::root(class), causes),
    validate_update: |new, old, causes| fixed(new, old, &[&["driver"], &["parameters"], &["deletionPolicy"]], causes),
    ..BASE
};
