//! VolumeGroupSnapshot: copies of the data of several claims, all of one moment.

use std::borrow::Cow::Borrowed;

use serde_json::json;

use super::cells::{self, AGE, NAME, text_column};
use super::field::Field;
use super::snapshot_rules::{boolean, cell, date, exactly_one, fixed, not_empty, prepare_create, since};
use super::{BASE, Kind, Row, Subresource, workload};
use crate::object::name;

/// The row of VolumeGroupSnapshot.
pub static VOLUME_GROUP_SNAPSHOT: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("groupsnapshot.storage.k8s.io"),
    kind: Borrowed("VolumeGroupSnapshot"),
    plural: Borrowed("volumegroupsnapshots"),
    singular: Borrowed("volumegroupsnapshot"),
    short_names: Borrowed(&[Borrowed("vgs")]),
    subresources: Borrowed(&[Subresource::Status]),
    type_name: Borrowed("io.k8s.storage.groupsnapshot.v1.VolumeGroupSnapshot"),
    columns: Borrowed(&[
        NAME,
        boolean("ReadyToUse", "Whether claims can be filled from all of its snapshots."),
        text_column("VolumeGroupSnapshotClass", "The class that it asks for."),
        text_column("VolumeGroupSnapshotContent", "The content that it is bound to."),
        date("CreationTime", "Time since the moment whose data it holds."),
        AGE,
    ]),
    row: |_, group, now| {
        vec![
            json!(name(group)),
            cell(group, &["status", "readyToUse"]),
            cell(group, &["spec", "volumeGroupSnapshotClassName"]),
            cell(group, &["status", "boundVolumeGroupSnapshotContentName"]),
            since(group, &["status", "creationTime"], now),
            cells::age(group, now),
        ]
    },
    prepare_create: |_, object| prepare_create(object),
    prepare_update: |_, new, old| workload::prepare_update(new, old),
    validate: |_, group, causes| {
        let spec = Field::root(group).get("spec");
        exactly_one(&spec.get("source"), ["selector", "volumeGroupSnapshotContentName"], causes);
        let selector = spec.dig(&["source", "selector"]);
        if selector.is_set() {
            crate::metadata::validate_label_selector(&selector, causes);
        }
        not_empty(&spec.get("volumeGroupSnapshotClassName"), causes);
    },
    validate_update: |_, new, old, causes| {
        let source = |field| ["spec", "source", field];
        fixed(new, old, &[&source("selector"), &source("volumeGroupSnapshotContentName")], causes);
    },
    ..BASE
});
