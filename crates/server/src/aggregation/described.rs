//! What other servers say of their kinds in version 2 of OpenAPI, merged into the server's own document: older clients
//! explain and validate by that one alone.

use std::collections::{BTreeMap, BTreeSet};

use mainstay_api::object;
use serde_json::{Map, Value};

const REFERENCE: &str = "$ref";
const DEFINITIONS: &str = "#/definitions/";
const KINDS: &str = "x-kubernetes-group-version-kind";

/// Of a server's document what is about one group and version: its paths, its kinds, and what those refer to.
pub fn reduced(mut document: Value, group: &str, version: &str) -> Value {
    let prefix = format!("/apis/{group}/{version}");
    let mut take = |field: &str| match document.get_mut(field).map(Value::take) {
        Some(Value::Object(map)) => map,
        _ => Map::new(),
    };
    let (mut paths, mut all) = (take("paths"), take("definitions"));
    paths.retain(|path, _| path.strip_prefix(&prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')));
    let is_own = |definition: &Value| {
        let kinds = definition.get(KINDS).and_then(Value::as_array).into_iter().flatten();
        let names =
            |kind: &Value| (object::text(kind, &["group"]) == group, object::text(kind, &["version"]) == version);
        kinds.map(names).any(|named| named == (true, true))
    };
    let mut wanted: Vec<String> =
        all.iter().filter(|(_, definition)| is_own(definition)).map(|(name, _)| name.clone()).collect();
    paths.values().for_each(|path| references(path, &mut |name| wanted.push(name.to_owned())));
    let mut definitions = Map::new();
    while let Some(name) = wanted.pop() {
        let Some(definition) = all.remove(&name) else { continue };
        references(&definition, &mut |name| wanted.push(name.to_owned()));
        definitions.insert(name, definition);
    }
    Value::Object(Map::from_iter([
        ("paths".to_owned(), Value::Object(paths)),
        ("definitions".to_owned(), Value::Object(definitions)),
    ]))
}

/// The names of the definitions that a value refers to.
fn references(value: &Value, found: &mut dyn FnMut(&str)) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        Value::Object(map) => {
            if let Some(name) =
                map.get(REFERENCE).and_then(Value::as_str).and_then(|text| text.strip_prefix(DEFINITIONS))
            {
                found(name);
            }
            map.values().for_each(|value| references(value, found));
        }
        _ => {}
    }
}

/// Adds another server's part to the server's own document. What is called as something else here is called by
/// another name, as upstream.
pub fn merge(document: &mut Value, part: &Value) {
    let field = |value: &Value, field: &str| value.get(field).and_then(Value::as_object).cloned().unwrap_or_default();
    let theirs = field(part, "definitions");
    let own = object::ensure(document, &["definitions"]);
    let mut renamed: BTreeMap<&str, String> = BTreeMap::new();
    let mut taken: BTreeSet<String> = BTreeSet::new();
    for (name, definition) in &theirs {
        if own.get(name).is_some_and(|known| known != definition) {
            let mut free = (2..).map(|number| format!("{name}_v{number}"));
            let free = free.find(|free| !own.contains_key(free) && !theirs.contains_key(free) && !taken.contains(free));
            if let Some(free) = free {
                taken.insert(free.clone());
                renamed.insert(name, free);
            }
        }
    }
    for (name, definition) in &theirs {
        let name = renamed.get(name.as_str()).unwrap_or(name).clone();
        own.entry(name).or_insert_with(|| with_names(definition, &renamed));
    }
    let paths = object::ensure(document, &["paths"]);
    for (path, item) in field(part, "paths") {
        paths.entry(path).or_insert_with(|| with_names(&item, &renamed));
    }
}

/// A value whose references have these names instead of theirs.
fn with_names(value: &Value, renamed: &BTreeMap<&str, String>) -> Value {
    match value {
        Value::Array(items) => items.iter().map(|item| with_names(item, renamed)).collect(),
        Value::Object(map) => {
            let fields = map.iter().map(|(name, value)| {
                let target =
                    value.as_str().filter(|_| name == REFERENCE).and_then(|text| text.strip_prefix(DEFINITIONS));
                let value = match target.and_then(|target| renamed.get(target)) {
                    Some(other) => Value::from(format!("{DEFINITIONS}{other}")),
                    None => with_names(value, renamed),
                };
                (name.clone(), value)
            });
            Value::Object(fields.collect())
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn theirs() -> Value {
        json!({ "swagger": "2.0", "paths": {
            "/apis/x.io/v1/foos": { "get": { "responses": { "200": { "schema": {
                "$ref": "#/definitions/io.x.Foo" } } } } },
            "/apis/x.io/v10/foos": {}, "/version": { "get": {} },
        }, "definitions": {
            "io.x.Foo": { "properties": { "metadata": { "$ref": "#/definitions/Meta" },
                "bar": { "$ref": "#/definitions/Bar" } },
                "x-kubernetes-group-version-kind": [{ "group": "x.io", "version": "v1", "kind": "Foo" }] },
            "Meta": { "type": "object", "description": "theirs" },
            "Bar": { "items": { "$ref": "#/definitions/Bar" } },
            "Unused": { "type": "string" },
        } })
    }

    #[test]
    fn of_another_servers_document_its_own_group_is_taken() {
        let part = reduced(theirs(), "x.io", "v1");
        let names = |field: &str| part[field].as_object().expect("a map").keys().cloned().collect::<Vec<_>>();
        assert_eq!(names("paths"), ["/apis/x.io/v1/foos"]);
        assert_eq!(names("definitions"), ["Bar", "Meta", "io.x.Foo"]);
        for odd in [json!(null), json!([]), json!({ "paths": [], "definitions": "x" })] {
            assert_eq!(reduced(odd, "x.io", "v1"), json!({ "paths": {}, "definitions": {} }));
        }
    }

    #[test]
    fn what_has_a_name_already_gets_another_one_where_it_is_something_else() {
        let mut own = json!({ "paths": { "/apis": {} }, "definitions": {
            "Meta": { "type": "object", "description": "ours" }, "Bar": {
                "items": { "$ref": "#/definitions/Bar" } } } });
        let before = own.clone();
        merge(&mut own, &reduced(theirs(), "x.io", "v1"));
        assert_eq!(own["definitions"]["Meta"], before["definitions"]["Meta"]);
        assert_eq!(own["definitions"]["Meta_v2"]["description"], "theirs");
        let foo = &own["definitions"]["io.x.Foo"]["properties"];
        assert_eq!(
            (&foo["metadata"]["$ref"], &foo["bar"]["$ref"]),
            (&json!("#/definitions/Meta_v2"), &json!("#/definitions/Bar"),)
        );
        assert!(own["paths"]["/apis/x.io/v1/foos"].is_object() && own["paths"]["/apis"].is_object());
        let once = own.clone();
        merge(&mut own, &json!(null));
        assert_eq!(own, once);
    }
}
