//! VolumeGroupSnapshotClass: how group snapshots are made.

use std::borrow::Cow::Borrowed;

use serde_json::json;

use super::cells::{self, AGE, NAME, text_column};
use super::field::Field;
use super::snapshot_rules::{cell, driver_and_policy, fixed, prepare_class_update, prepare_create};
use super::{BASE, Kind, Row};
use crate::object::name;

/// Marks the class that group snapshots without one get, of each driver.
pub const DEFAULT_ANNOTATION: &str = "groupsnapshot.storage.kubernetes.io/is-default-class";

/// The row of VolumeGroupSnapshotClass.
pub static VOLUME_GROUP_SNAPSHOT_CLASS: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("groupsnapshot.storage.k8s.io"),
    kind: Borrowed("VolumeGroupSnapshotClass"),
    plural: Borrowed("volumegroupsnapshotclasses"),
    singular: Borrowed("volumegroupsnapshotclass"),
    short_names: Borrowed(&[Borrowed("vgsclass"), Borrowed("vgsclasses")]),
    namespaced: false,
    type_name: Borrowed("io.k8s.storage.groupsnapshot.v1.VolumeGroupSnapshotClass"),
    columns: Borrowed(&[
        NAME,
        text_column("Driver", "Who makes the group snapshots."),
        text_column("DeletionPolicy", "Whether the copies go with their group snapshot."),
        AGE,
    ]),
    row: |_, class, now| {
        vec![json!(name(class)), cell(class, &["driver"]), cell(class, &["deletionPolicy"]), cells::age(class, now)]
    },
    prepare_create: |_, object| prepare_create(object),
    prepare_update: |_, new, old| prepare_class_update(new, old),
    validate: |_, class, causes| driver_and_policy(&Field::root(class), causes),
    validate_update: |_, new, old, causes| {
        fixed(new, old, &[&["driver"], &["parameters"], &["deletionPolicy"]], causes)
    },
    ..BASE
});
