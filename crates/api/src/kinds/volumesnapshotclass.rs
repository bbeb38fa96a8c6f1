//! VolumeSnapshotClass: how snapshots are made.

use std::borrow::Cow::Borrowed;

use serde_json::json;

use super::cells::{self, AGE, NAME, text_column};
use super::field::Field;
use super::snapshot_rules::{cell, driver_and_policy, prepare_class_update, prepare_create};
use super::{BASE, Kind, Row};
use crate::object::name;

/// Marks the class that snapshots without one get, of each driver.
pub const DEFAULT_ANNOTATION: &str = "snapshot.storage.kubernetes.io/is-default-class";

/// The row of VolumeSnapshotClass.
pub static VOLUME_SNAPSHOT_CLASS: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("snapshot.storage.k8s.io"),
    kind: Borrowed("VolumeSnapshotClass"),
    plural: Borrowed("volumesnapshotclasses"),
    singular: Borrowed("volumesnapshotclass"),
    short_names: Borrowed(&[Borrowed("vsclass"), Borrowed("vsclasses")]),
    namespaced: false,
    type_name: Borrowed("io.k8s.storage.snapshot.v1.VolumeSnapshotClass"),
    columns: Borrowed(&[
        NAME,
        text_column("Driver", "Who makes the snapshots."),
        text_column("DeletionPolicy", "Whether a copy goes with its snapshot."),
        AGE,
    ]),
    row: |_, class, now| {
        vec![json!(name(class)), cell(class, &["driver"]), cell(class, &["deletionPolicy"]), cells::age(class, now)]
    },
    prepare_create: |_, object| prepare_create(object),
    prepare_update: |_, new, old| prepare_class_update(new, old),
    validate: |_, class, causes| driver_and_policy(&Field::root(class), causes),
    ..BASE
});
