//! VolumeSnapshotClass: how snapshots are made.

use serde_json::json;

use super::cells::{self, AGE, NAME, text_column};
use super::field::Field;
use super::snapshot_rules::{cell, driver_and_policy, prepare_class_update, prepare_create};
use super::{BASE, Kind};
use crate::object::name;

/// Marks the class that snapshots without one get, of each driver.
pub const DEFAULT_ANNOTATION: &str = "snapshot.storage.kubernetes.io/is-default-class";

/// The row of VolumeSnapshotClass.
pub static VOLUME_SNAPSHOT_CLASS: Kind = Kind {
    group: "snapshot.storage.k8s.io",
    kind: "VolumeSnapshotClass",
    plural: "volumesnapshotclasses",
    singular: "volumesnapshotclass",
    short_names: &["vsclass", "vsclasses"],
    namespaced: false,
    type_name: "io.k8s.storage.snapshot.v1.VolumeSnapshotClass",
    columns: &[
        NAME,
        text_column("Driver", "Who makes the snapshots."),
        text_column("DeletionPolicy", "Whether a copy goes with its snapshot."),
        AGE,
    ],
    row: |class, now| {
        vec![json!(name(class)), cell(class, &["driver"]), cell(class, &["deletionPolicy"]), cells::age(class, now)]
    },
    prepare_create,
    prepare_update: prepare_class_update,
    validate: |class, causes| driver_and_policy(&Field::root(class), causes),
    ..BASE
};
