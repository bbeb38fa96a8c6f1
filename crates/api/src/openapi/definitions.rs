//! The schemas of kinds, with the extensions that clients read.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{Version, group_version_kind, paths};
use crate::custom::published::{OBJECT_META, published};
use crate::discovery::Review;
use crate::kinds::{self, Kind};
use crate::schema::list_keys::{self, FieldKeys, ListType};
use crate::schema::raw;

const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
/// Any value at all, which clients are told by no type.
const JSON: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON";

/// The schemas of these kinds, of what is only posted, of what subresources take, and of all that they refer to, by
/// definition name; `null` for custom resources, whose are [`of_custom`].
pub(super) fn definitions(kinds: &[&Kind], reviews: &[&Review], version: Version) -> Map<String, Value> {
    let path = path(version);
    let passing = passing(kinds, reviews);
    let names: Vec<&str> =
        kinds.iter().map(|kind| &*kind.type_name).chain(passing.keys().map(String::as_str)).collect();
    let mut definitions = raw::definitions_of(&names, path);
    if kinds.iter().any(|kind| kind.custom.is_some()) && !definitions.contains_key(OBJECT_META) {
        let mut any = raw::definitions_of(&[&kinds::CONFIG_MAP.type_name], path);
        any.remove(&*kinds::CONFIG_MAP.type_name);
        definitions.extend(any);
    }
    for (name, schema) in &mut definitions {
        let Value::Object(schema) = schema else { continue };
        decorate(name, schema, version);
        let own = kinds.iter().filter(|kind| kind.type_name == name.as_str()).map(|kind| group_version_kind(kind));
        let mut kinds = own.chain(passing.get(name).cloned()).peekable();
        if kinds.peek().is_some() {
            schema.insert("x-kubernetes-group-version-kind".to_owned(), kinds.collect());
            // k8s-openapi's types always have metadata; upstream's schemas do not ask for it.
            if let Some(Value::Array(required)) = schema.get_mut("required") {
                required.retain(|field| field != "metadata");
            }
        }
        if schema.get("required").and_then(Value::as_array).is_some_and(Vec::is_empty) {
            schema.remove("required");
        }
    }
    // Those of custom resources are made when they are printed.
    for kind in kinds.iter().filter(|kind| kind.custom.is_some()) {
        definitions.insert(kind.type_name.to_string(), Value::Null);
    }
    if version == Version::V3 && !kinds.is_empty() {
        let about = "The body of a patch: what it may hold is said by its content type.";
        definitions.insert(paths::PATCH.to_owned(), json!({ "description": about, "type": "object" }));
    }
    definitions
}

/// The kinds of objects that pass through and are stored by no kind's row, by definition name.
fn passing(kinds: &[&Kind], reviews: &[&Review]) -> BTreeMap<String, Value> {
    let posted = reviews.iter().map(|review| (review.group, "v1", review.kind));
    let of_subresources =
        kinds.iter().flat_map(|kind| kind.subresources.iter().filter_map(|&sub| paths::own_kind(kind, sub)));
    posted
        .chain(of_subresources)
        .map(|(group, version, kind)| {
            let of_kind = json!({ "group": group, "kind": kind, "version": version });
            (paths::type_name(group, version, kind), of_kind)
        })
        .collect()
}

/// The schema of a custom resource.
pub(super) fn of_custom(kind: &Kind, version: Version) -> Value {
    let own = published(kind, &format!("#{}/", path(version)), version == Version::V2);
    let mut own = own.unwrap_or_else(|| json!({ "type": "object" }));
    own["x-kubernetes-group-version-kind"] = json!([group_version_kind(kind)]);
    own
}

/// Where schemas are in a document.
fn path(version: Version) -> &'static str {
    match version {
        Version::V2 => "/definitions",
        Version::V3 => "/components/schemas",
    }
}

fn decorate(name: &str, schema: &mut Map<String, Value>, version: Version) {
    match (name, version) {
        (raw::QUANTITY, Version::V2) => set_type(schema, json!({ "type": "string" })),
        (raw::QUANTITY, Version::V3) => {
            set_type(schema, json!({ "oneOf": [{ "type": "string" }, { "type": "number" }] }))
        }
        (INT_OR_STRING, Version::V2) => set_type(schema, json!({ "type": "string", "format": "int-or-string" })),
        (INT_OR_STRING, Version::V3) => {
            set_type(
                schema,
                json!({ "format": "int-or-string", "oneOf": [{ "type": "integer" }, { "type": "string" }] }),
            );
        }
        (JSON, _) => drop(schema.remove("type")),
        // Swagger 2.0 knows no alternatives.
        (_, Version::V2) => drop(schema.remove("oneOf")),
        _ => {}
    }
    if list_keys::is_atomic(name) {
        schema.insert("x-kubernetes-map-type".to_owned(), "atomic".into());
    }
    for (field, property) in schema.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
        let Value::Object(property) = property else { continue };
        if version == Version::V3 && property.len() > 1 {
            // In version 3 nothing may stand beside a reference.
            if let Some(reference) = property.remove("$ref") {
                property.insert("allOf".to_owned(), json!([{ "$ref": reference }]));
            }
        }
        extend(property, list_keys::of_field(name, field));
    }
}

fn set_type(schema: &mut Map<String, Value>, fields: Value) {
    schema.remove("x-kubernetes-int-or-string");
    if let Value::Object(fields) = fields {
        schema.extend(fields);
    }
}

/// States how a field is merged.
fn extend(property: &mut Map<String, Value>, keys: &FieldKeys) {
    let mut set = |name: &str, value: Value| property.insert(name.to_owned(), value);
    match &keys.list_type {
        ListType::Default => None,
        ListType::Set => set("x-kubernetes-list-type", "set".into()),
        ListType::AtomicMap => set("x-kubernetes-map-type", "atomic".into()),
        ListType::Granular => set("x-kubernetes-map-type", "granular".into()),
        ListType::Map(names) => {
            set("x-kubernetes-list-map-keys", names.to_vec().into());
            set("x-kubernetes-list-type", "map".into())
        }
    };
    let strategy = match (keys.patch_merge, keys.retain_keys) {
        (true, true) => "merge,retainKeys",
        (true, false) => "merge",
        (false, true) => "retainKeys",
        (false, false) => return,
    };
    set("x-kubernetes-patch-strategy", strategy.into());
    if let Some(key) = keys.patch_key {
        set("x-kubernetes-patch-merge-key", key.into());
    }
}
