//! The types of `snapshot.storage.k8s.io/v1` and `groupsnapshot.storage.k8s.io/v1`.
//!
//! k8s-openapi has none for these groups (upstream serves them as custom resources), so they are declared here, once:
//! the structs are the typed views, and their derived JSON schemas are what decoding, server-side apply and `kubectl
//! explain` read. A type's name in the schemas is what upstream's API server publishes:
//! `io.k8s.storage.snapshot.v1.VolumeSnapshot`.

mod group;
mod single;

pub use group::{
    GroupSnapshotHandles, VolumeGroupSnapshot, VolumeGroupSnapshotClass, VolumeGroupSnapshotContent,
    VolumeGroupSnapshotContentSource, VolumeGroupSnapshotContentSpec, VolumeGroupSnapshotContentStatus,
    VolumeGroupSnapshotSource, VolumeGroupSnapshotSpec, VolumeGroupSnapshotStatus, VolumeSnapshotInfo,
};
pub use single::{
    VolumeSnapshot, VolumeSnapshotClass, VolumeSnapshotContent, VolumeSnapshotContentSource, VolumeSnapshotContentSpec,
    VolumeSnapshotContentStatus, VolumeSnapshotError, VolumeSnapshotSource, VolumeSnapshotSpec, VolumeSnapshotStatus,
};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::Value;

/// What the names of all types of this file begin with.
pub(crate) const PREFIX: &str = "io.k8s.storage.";

/// The schemas of the top-level types, sorted by definition name, as those of k8s-openapi are.
#[rustfmt::skip]
pub(crate) static ROOTS: &[(&str, fn(&mut SchemaGenerator) -> Schema)] = &[
    ("io.k8s.storage.groupsnapshot.v1.VolumeGroupSnapshot", <VolumeGroupSnapshot as JsonSchema>::json_schema),
    ("io.k8s.storage.groupsnapshot.v1.VolumeGroupSnapshotClass", <VolumeGroupSnapshotClass as JsonSchema>::json_schema),
    ("io.k8s.storage.groupsnapshot.v1.VolumeGroupSnapshotContent",
        <VolumeGroupSnapshotContent as JsonSchema>::json_schema),
    ("io.k8s.storage.snapshot.v1.VolumeSnapshot", <VolumeSnapshot as JsonSchema>::json_schema),
    ("io.k8s.storage.snapshot.v1.VolumeSnapshotClass", <VolumeSnapshotClass as JsonSchema>::json_schema),
    ("io.k8s.storage.snapshot.v1.VolumeSnapshotContent", <VolumeSnapshotContent as JsonSchema>::json_schema),
];

/// Writes a derived schema as Kubernetes writes its own: an optional field is one that may be absent, not one that may
/// be null, and defaults of the Rust type are none of the API's.
pub(crate) fn in_upstreams_form(schema: &mut Value) {
    let Value::Object(fields) = schema else { return };
    fields.retain(|name, _| !matches!(name.as_str(), "title" | "default" | "$schema"));
    if let Some(Value::Array(types)) = fields.get_mut("type") {
        types.retain(|name| name != "null");
        if let Some(only) = types.pop() {
            fields.insert("type".to_owned(), only);
        }
    }
    if let Some(Value::Array(mut choices)) = fields.remove("anyOf") {
        choices.retain(|choice| choice.get("type").is_none_or(|name| name != "null"));
        if let Some(Value::Object(only)) = choices.pop() {
            fields.extend(only);
        }
    }
    for inside in ["items", "additionalProperties"] {
        fields.get_mut(inside).into_iter().for_each(in_upstreams_form);
    }
    fields
        .get_mut("properties")
        .and_then(Value::as_object_mut)
        .into_iter()
        .flat_map(|all| all.values_mut())
        .for_each(in_upstreams_form);
}

#[cfg(test)]
mod tests {
    use crate::schema::{Shape, shape_of};

    #[test]
    fn derived_types_are_read_as_upstreams() {
        let Shape::Struct(snapshot) = shape_of("io.k8s.storage.snapshot.v1.VolumeSnapshot") else { panic!("a struct") };
        let inner = |of: &'static crate::schema::Struct, name: &str| match of.field(name).map(|field| field.shape) {
            Some(Shape::Struct(inner)) => inner,
            other => panic!("{name}: {other:?}"),
        };
        let status = inner(snapshot, "status");
        assert_eq!(status.name, "io.k8s.storage.snapshot.v1.VolumeSnapshotStatus");
        let is = |name: &str, test: fn(Shape) -> bool| {
            assert!(status.field(name).is_some_and(|field| test(field.shape)), "{name}")
        };
        is("readyToUse", |shape| matches!(shape, Shape::Bool));
        is("restoreSize", |shape| matches!(shape, Shape::Quantity));
        is("creationTime", |shape| matches!(shape, Shape::Time));
        is("error", |shape| matches!(shape, Shape::Struct(_)));
        assert_eq!(inner(snapshot, "metadata").go_name(), "ObjectMeta");
        let Shape::Struct(content) = shape_of("io.k8s.storage.snapshot.v1.VolumeSnapshotContent") else {
            panic!("a struct")
        };
        assert!(matches!(inner(content, "status").field("restoreSize").map(|field| field.shape), Some(Shape::Int64)));
        assert!(inner(inner(content, "spec"), "volumeSnapshotRef").atomic);
        let Shape::Struct(class) = shape_of("io.k8s.storage.snapshot.v1.VolumeSnapshotClass") else {
            panic!("a struct")
        };
        assert!(matches!(class.field("parameters").map(|field| field.shape), Some(Shape::Map(Shape::String))));
    }
}
