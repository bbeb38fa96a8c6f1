//! VolumeSnapshot: a copy of a claim's data as it is at one moment.

use std::borrow::Cow::Borrowed;

use serde_json::json;

use super::cells::{self, AGE, NAME, text_column};
use super::field::Field;
use super::snapshot_rules::{boolean, cell, date, exactly_one, fixed, not_empty, prepare_create, since};
use super::{BASE, Kind, Row, Subresource, workload};
use crate::object::name;

/// The row of VolumeSnapshot.
pub static VOLUME_SNAPSHOT: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("snapshot.storage.k8s.io"),
    kind: Borrowed("VolumeSnapshot"),
    plural: Borrowed("volumesnapshots"),
    singular: Borrowed("volumesnapshot"),
    short_names: Borrowed(&[Borrowed("vs")]),
    subresources: Borrowed(&[Subresource::Status]),
    type_name: Borrowed("io.k8s.storage.snapshot.v1.VolumeSnapshot"),
    columns: Borrowed(&[
        NAME,
        boolean("ReadyToUse", "Whether claims can be filled from it."),
        text_column("SourcePVC", "The claim that it is a copy of."),
        text_column("SourceSnapshotContent", "The content that it was made for, where that existed before."),
        text_column("RestoreSize", "The least size of a claim that is filled from it."),
        text_column("SnapshotClass", "The class that it asks for."),
        text_column("SnapshotContent", "The content that it is bound to."),
        date("CreationTime", "Time since the moment whose data it holds."),
        AGE,
    ]),
    row: |_, snapshot, now| {
        vec![
            json!(name(snapshot)),
            cell(snapshot, &["status", "readyToUse"]),
            cell(snapshot, &["spec", "source", "persistentVolumeClaimName"]),
            cell(snapshot, &["spec", "source", "volumeSnapshotContentName"]),
            cell(snapshot, &["status", "restoreSize"]),
            cell(snapshot, &["spec", "volumeSnapshotClassName"]),
            cell(snapshot, &["status", "boundVolumeSnapshotContentName"]),
            since(snapshot, &["status", "creationTime"], now),
            cells::age(snapshot, now),
        ]
    },
    prepare_create: |_, object| prepare_create(object),
    prepare_update: |_, new, old| workload::prepare_update(new, old),
    validate: |_, snapshot, causes| {
        let spec = Field::root(snapshot).get("spec");
        exactly_one(&spec.get("source"), ["volumeSnapshotContentName", "persistentVolumeClaimName"], causes);
        not_empty(&spec.get("volumeSnapshotClassName"), causes);
    },
    validate_update: |_, new, old, causes| {
        let source = |field| ["spec", "source", field];
        fixed(new, old, &[&source("persistentVolumeClaimName"), &source("volumeSnapshotContentName")], causes);
    },
    ..BASE
});
