//! StorageVersionMigration: all objects of a resource are to be written anew.

use std::borrow::Cow::Borrowed;

use serde_json::json;

use super::cells::{column, text_column};
use super::field::Field;
use super::{BASE, Kind, Row, Subresource, lifecycle};
use crate::names;
use crate::object::name;

/// The row of StorageVersionMigration.
pub static STORAGE_VERSION_MIGRATION: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("storagemigration.k8s.io"),
    kind: Borrowed("StorageVersionMigration"),
    plural: Borrowed("storageversionmigrations"),
    singular: Borrowed("storageversionmigration"),
    namespaced: false,
    subresources: Borrowed(&[Subresource::Status]),
    type_name: Borrowed("io.k8s.api.storagemigration.v1.StorageVersionMigration"),
    columns: Borrowed(&[
        column("Name", "string", "", 0, "Name of the object."),
        text_column("Resource", "The resource whose objects are written anew."),
    ]),
    row: |_, migration, _| {
        let resource = Field::root(migration).dig(&["spec", "resource"]);
        let (group, plural) = (resource.get("group").text(), resource.get("resource").text());
        let shown = if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") };
        vec![json!(name(migration)), json!(shown)]
    },
    prepare_create: |_, migration| lifecycle::begin_status(migration, json!({})),
    prepare_update: |_, new, old| lifecycle::keep_status(new, old),
    validate: |_, migration, causes| {
        let resource = Field::root(migration).dig(&["spec", "resource"]);
        resource.get("resource").need(causes, names::path_segment);
        resource.get("group").check(causes, names::subdomain);
    },
    validate_update: |_, new, old, causes| {
        Field::root(new).get("spec").immutable(&Field::root(old).get("spec"), causes);
    },
    warnings: lifecycle::nothing_acts,
    ..BASE
});
