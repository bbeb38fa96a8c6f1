//! VolumeSnapshotContent: the copy of a volume itself.

use std::borrow::Cow::Borrowed;

use serde_json::json;

use super::cells::{self, AGE, NAME, number, text_column};
use super::field::Field;
use super::removal;
use super::snapshot_rules::{boolean, cell, driver_and_policy, exactly_one, fixed, prepare_create, reference};
use super::{BASE, Kind, Row, Subresource, workload};
use crate::object::name;

/// The row of VolumeSnapshotContent.
pub static VOLUME_SNAPSHOT_CONTENT: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("snapshot.storage.k8s.io"),
    kind: Borrowed("VolumeSnapshotContent"),
    plural: Borrowed("volumesnapshotcontents"),
    singular: Borrowed("volumesnapshotcontent"),
    short_names: Borrowed(&[Borrowed("vsc"), Borrowed("vscs")]),
    namespaced: false,
    subresources: Borrowed(&[Subresource::Status]),
    type_name: Borrowed("io.k8s.storage.snapshot.v1.VolumeSnapshotContent"),
    columns: Borrowed(&[
        NAME,
        boolean("ReadyToUse", "Whether claims can be filled from it."),
        number("RestoreSize", "The least size of a claim that is filled from it, in bytes."),
        text_column("DeletionPolicy", "Whether it goes with its snapshot."),
        text_column("Driver", "Who makes and keeps it."),
        text_column("VolumeSnapshotClass", "The class that it was made by."),
        text_column("VolumeSnapshot", "The snapshot that it is bound to."),
        text_column("VolumeSnapshotNamespace", "The namespace of that snapshot."),
        AGE,
    ]),
    row: |_, content, now| {
        vec![
            json!(name(content)),
            cell(content, &["status", "readyToUse"]),
            cell(content, &["status", "restoreSize"]),
            cell(content, &["spec", "deletionPolicy"]),
            cell(content, &["spec", "driver"]),
            cell(content, &["spec", "volumeSnapshotClassName"]),
            cell(content, &["spec", "volumeSnapshotRef", "name"]),
            cell(content, &["spec", "volumeSnapshotRef", "namespace"]),
            cells::age(content, now),
        ]
    },
    prepare_create: |_, object| prepare_create(object),
    prepare_update: |_, new, old| workload::prepare_update(new, old),
    validate: |_, content, causes| {
        let spec = Field::root(content).get("spec");
        driver_and_policy(&spec, causes);
        exactly_one(&spec.get("source"), ["volumeHandle", "snapshotHandle"], causes);
        reference(&spec, "volumeSnapshotRef", causes);
    },
    validate_update: |_, new, old, causes| {
        let source = |field| ["spec", "source", field];
        fixed(new, old, &[&source("volumeHandle"), &source("snapshotHandle"), &["spec", "sourceVolumeMode"]], causes);
        // Differs: upstream lets the driver change too; then nobody would remove the copy.
        fixed(new, old, &[&["spec", "driver"]], causes);
        removal::validate_update(new, old, "deletionPolicy", causes);
    },
    ..BASE
});
