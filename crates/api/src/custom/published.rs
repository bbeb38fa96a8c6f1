//! The schemas of custom resources as OpenAPI publishes them.

use serde_json::{Map, Value, json};

use crate::kinds::Row;

/// The definition name of the type of `metadata`.
pub const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// The schema of a version. `simple` is for OpenAPI 2, which knows no alternatives; `path` is where references lead.
pub fn published(row: &Row, path: &str, simple: bool) -> Option<Value> {
    let custom = row.custom.as_ref()?;
    let mut schema = custom.source();
    // Old clients take the fields they see for all there are: what keeps unknown ones is published without any.
    if simple && is_free(&schema) {
        return Some(json!({ "type": "object" }));
    }
    if simple {
        simplify(&mut schema, 0);
    }
    embed(&mut schema, path, simple, 0);
    let fields = schema.as_object_mut()?;
    add_header(fields, path, simple);
    fields.insert("type".to_owned(), "object".into());
    Some(schema)
}

fn is_free(schema: &Value) -> bool {
    schema["x-kubernetes-preserve-unknown-fields"] == Value::Bool(true)
}

/// Puts what every object has among the schema's properties.
fn add_header(schema: &mut Map<String, Value>, path: &str, simple: bool) {
    let properties = schema.entry("properties").or_insert_with(|| Value::Object(Map::new()));
    let Some(properties) = properties.as_object_mut() else { return };
    let text = |description: &str| json!({ "type": "string", "description": description });
    let metadata = "Standard object's metadata: name, namespace, labels, owners and what else every object has.";
    properties
        .insert("apiVersion".to_owned(), text("APIVersion defines by which version of which group to read this."));
    properties.insert("kind".to_owned(), text("Kind says which of the group's types this object is of."));
    let reference = json!({ "$ref": format!("{path}{OBJECT_META}") });
    let mut described = if simple { reference } else { json!({ "allOf": [reference] }) };
    described["description"] = metadata.into();
    properties.insert("metadata".to_owned(), described);
}

/// Says of objects within the object (`x-kubernetes-embedded-resource`) what every object has. As upstream, not where
/// OpenAPI 2 speaks of something that keeps unknown fields.
fn embed(schema: &mut Value, path: &str, simple: bool, depth: usize) {
    let is_embedded = schema["x-kubernetes-embedded-resource"] == Value::Bool(true) && !(simple && is_free(schema));
    let Value::Object(fields) = schema else { return };
    for name in ["items", "additionalProperties"] {
        if let Some(below) = fields.get_mut(name).filter(|_| depth < MAX_DEPTH) {
            embed(below, path, simple, depth + 1);
        }
    }
    if let Some(Value::Object(properties)) = fields.get_mut("properties").filter(|_| depth < MAX_DEPTH) {
        properties.values_mut().for_each(|below| embed(below, path, simple, depth + 1));
    }
    if is_embedded {
        add_header(fields, path, simple);
        let required = fields.entry("required").or_insert_with(|| json!([]));
        let Value::Array(required) = required else { return };
        for name in ["kind", "apiVersion"] {
            if !required.iter().any(|known| known == name) {
                required.push(name.into());
            }
        }
    }
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
    let Some(Value::Object(properties)) = fields.get_mut("properties") else { return };
    // Old clients take null for missing.
    let is_nullable = |schema: &Value| schema["nullable"] == Value::Bool(true);
    let nullable: Vec<String> =
        properties.iter().filter(|(_, below)| is_nullable(below)).map(|(name, _)| name.clone()).collect();
    properties.values_mut().for_each(|below| simplify(below, depth + 1));
    if let Some(Value::Array(required)) = fields.get_mut("required") {
        required.retain(|name| name.as_str().is_none_or(|name| !nullable.iter().any(|known| known == name)));
        if required.is_empty() {
            fields.remove("required");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A schema as OpenAPI 2 and 3 publish it.
    fn both(schema: &Value) -> [Value; 2] {
        let definition = json!({
            "spec": { "group": "x.io", "scope": "Cluster", "names": { "plural": "foos", "kind": "Foo" }, "versions": [
                { "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": schema } }] },
            "status": { "conditions": [{ "type": "Established", "status": "True" }] },
        });
        let rows = super::super::rows::rows(&definition.to_string().into()).unwrap();
        [true, false].map(|simple| published(&rows[0], "#/", simple).unwrap())
    }

    /// What a schema's property becomes.
    fn property(schema: Value) -> [Value; 2] {
        both(&json!({ "type": "object", "properties": { "f": schema } })).map(|whole| whole["properties"]["f"].clone())
    }

    #[test]
    fn every_object_has_its_header() {
        for (simple, whole) in [true, false].into_iter().zip(both(&json!({ "properties": {} }))) {
            assert_eq!((&whole["type"], &whole["properties"]["kind"]["type"]), (&json!("object"), &json!("string")));
            let metadata = &whole["properties"]["metadata"];
            let reference = if simple { metadata } else { &metadata["allOf"][0] };
            assert_eq!(reference["$ref"], format!("#/{OBJECT_META}"));
            assert!(metadata["description"].as_str().is_some_and(|words| words.starts_with("Standard object's")));
        }
        let free = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
        let [old, new] = both(&free);
        assert_eq!(old, json!({ "type": "object" }));
        assert!(new["properties"].get("metadata").is_some());
    }

    #[test]
    fn old_clients_are_not_told_what_they_would_take_for_a_fault() {
        let table = [
            (
                json!({ "type": "string", "default": "x", "oneOf": [{}], "anyOf": [{}], "allOf": [{}], "not": {},
                    "x-kubernetes-validations": [{ "rule": "true" }], "maxLength": 3 }),
                json!({ "type": "string", "maxLength": 3 }),
            ),
            (json!({ "type": "string", "nullable": true, "enum": ["a"], "maxLength": 3 }), json!({ "maxLength": 3 })),
            (json!({ "type": "string", "nullable": false }), json!({ "type": "string" })),
            (
                json!({ "type": "string", "x-kubernetes-int-or-string": true }),
                json!({ "x-kubernetes-int-or-string": true }),
            ),
            (
                json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true, "required": ["a"],
                    "properties": { "a": { "type": "string" } } }),
                json!({ "x-kubernetes-preserve-unknown-fields": true }),
            ),
            (
                json!({ "type": "array", "items": { "type": "object", "required": ["a", "b"], "properties": {
                    "a": { "type": "string", "nullable": true }, "b": { "type": "string", "default": "x" } } } }),
                json!({ "type": "array", "items": { "type": "object", "required": ["b"], "properties": {
                    "a": {}, "b": { "type": "string" } } } }),
            ),
            (
                json!({ "type": "object", "additionalProperties": { "type": "object", "required": ["a"],
                    "properties": { "a": { "type": "string", "nullable": true } } } }),
                json!({ "type": "object", "additionalProperties": { "type": "object", "properties": { "a": {} } } }),
            ),
        ];
        for (schema, simple) in table {
            assert_eq!(property(schema.clone()), [simple, schema]);
        }
    }

    #[test]
    fn an_object_within_the_object_has_a_header_too() {
        let embedded = |inner: Value| {
            let mut schema = json!({ "type": "object", "x-kubernetes-embedded-resource": true });
            schema.as_object_mut().unwrap().extend(inner.as_object().unwrap().clone());
            schema
        };
        for wrap in [
            |inner: Value| inner,
            |inner: Value| json!({ "type": "array", "items": inner }),
            |inner: Value| json!({ "type": "object", "additionalProperties": inner }),
        ] {
            let inner = |found: &Value| match (found.get("items"), found.get("additionalProperties")) {
                (Some(inner), _) | (None, Some(inner)) => inner.clone(),
                _ => found.clone(),
            };
            for found in property(wrap(embedded(json!({ "required": ["kind", "spec"] })))) {
                let found = inner(&found);
                assert_eq!(found["required"], json!(["kind", "spec", "apiVersion"]));
                assert_eq!(found["properties"]["apiVersion"]["type"], "string");
            }
        }
        let free = embedded(json!({ "x-kubernetes-preserve-unknown-fields": true }));
        let [old, new] = property(free);
        assert_eq!((old.get("properties"), &new["required"]), (None, &json!(["kind", "apiVersion"])));
    }
}
