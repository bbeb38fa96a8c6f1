//! VolumeGroupSnapshotContent: the copies of several volumes themselves.

use std::borrow::Cow::Borrowed;

use serde_json::json;

use super::cells::{self, AGE, NAME, text_column};
use super::field::Field;
use super::removal;
use super::snapshot_rules::{boolean, cell, driver_and_policy, exactly_one, fixed, prepare_create, reference};
use super::{BASE, Kind, Row, Subresource, workload};
use crate::object::name;

/// The row of VolumeGroupSnapshotContent.
pub static VOLUME_GROUP_SNAPSHOT_CONTENT: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("groupsnapshot.storage.k8s.io"),
    kind: Borrowed("VolumeGroupSnapshotContent"),
    plural: Borrowed("volumegroupsnapshotcontents"),
    singular: Borrowed("volumegroupsnapshotcontent"),
    short_names: Borrowed(&[Borrowed("vgsc"), Borrowed("vgscs")]),
    namespaced: false,
    subresources: Borrowed(&[Subresource::Status]),
    type_name: Borrowed("io.k8s.storage.groupsnapshot.v1.VolumeGroupSnapshotContent"),
    columns: Borrowed(&[
        NAME,
        boolean("ReadyToUse", "Whether claims can be filled from all of the copies."),
        text_column("DeletionPolicy", "Whether the copies go with their group snapshot."),
        text_column("Driver", "Who makes and keeps them."),
        text_column("VolumeGroupSnapshotClass", "The class that they were made by."),
        text_column("VolumeGroupSnapshotNamespace", "The namespace of that group snapshot."),
        text_column("VolumeGroupSnapshot", "The group snapshot that they are bound to."),
        AGE,
    ]),
    row: |_, content, now| {
        vec![
            json!(name(content)),
            cell(content, &["status", "readyToUse"]),
            cell(content, &["spec", "deletionPolicy"]),
            cell(content, &["spec", "driver"]),
            cell(content, &["spec", "volumeGroupSnapshotClassName"]),
            cell(content, &["spec", "volumeGroupSnapshotRef", "namespace"]),
            cell(content, &["spec", "volumeGroupSnapshotRef", "name"]),
            cells::age(content, now),
        ]
    },
    prepare_create: |_, object| prepare_create(object),
    prepare_update: |_, new, old| workload::prepare_update(new, old),
    validate: |_, content, causes| {
        let spec = Field::root(content).get("spec");
        driver_and_policy(&spec, causes);
        exactly_one(&spec.get("source"), ["volumeHandles", "groupSnapshotHandles"], causes);
        reference(&spec, "volumeGroupSnapshotRef", causes);
    },
    validate_update: |_, new, old, causes| {
        let source = |field| ["spec", "source", field];
        fixed(new, old, &[&source("volumeHandles"), &source("groupSnapshotHandles"), &["spec", "driver"]], causes);
        removal::validate_update(new, old, "deletionPolicy", causes);
    },
    ..BASE
});
