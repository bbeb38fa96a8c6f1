//! The schemas of custom resources as OpenAPI publishes them.

use serde_json::{Map, Value, json};

use crate::kinds::Row;

/// The definition name of the type of `metadata`.
pub const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// The schema of a version. `simple` is for OpenAPI 2, which knows no alternatives; `path` is where references lead.
pub fn published(row: &Row, path: &str, simple: bool) -> Option<Value> {
    let custom = row.custom.as_ref()?;
    let mut schema = custom.source();
    if simple {
        simplify(&mut schema, 0);
    }
    let fields = schema.as_object_mut()?;
    let is_free = fields.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true)) && simple;
    if is_free {
        fields.remove("properties");
    }
    let properties = fields.entry("properties").or_insert_with(|| Value::Object(Map::new())).as_object_mut()?;
    let text = |description: &str| json!({ "type": "string", "description": description });
    properties.insert("apiVersion".to_owned(), text("Group and version of the schema of this object."));
    properties.insert("kind".to_owned(), text("The kind of this object."));
    properties.insert("metadata".to_owned(), json!({ "$ref": format!("{path}{OBJECT_META}") }));
    fields.insert("type".to_owned(), "object".into());
    Some(schema)
}

/// A schema nested deeper than this is cut off.
const MAX_DEPTH: usize = 100;

/// Takes out what OpenAPI 2 does not know, and so what old clients would take for faults.
fn simplify(schema: &mut Value, depth: usize) {
    let Value::Object(fields) = schema else { return };
    for name in ["oneOf", "anyOf", "allOf", "not", "x-kubernetes-validations", "default"] {
        fields.remove(name);
    }
    if fields.remove("nullable") == Some(Value::Bool(true)) || depth > MAX_DEPTH {
        for name in ["type", "properties", "items", "additionalProperties", "required", "enum"] {
            fields.remove(name);
        }
    }
    if fields.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true)) {
        fields.remove("type");
    }
    if fields.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true)) && depth > 0 {
        for name in ["type", "properties", "items", "additionalProperties", "required"] {
            fields.remove(name);
        }
    }
    for name in ["items", "additionalProperties"] {
        if let Some(below) = fields.get_mut(name) {
            simplify(below, depth + 1);
        }
    }
    if let Some(Value::Object(properties)) = fields.get_mut("properties") {
        properties.values_mut().for_each(|below| simplify(below, depth + 1));
    }
}
