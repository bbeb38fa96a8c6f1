//! Whether a schema is structural: what upstream demands of `openAPIV3Schema` before objects are held against it.

use serde_json::{Value, json};

use super::patterns::Patterns;
use crate::paths;
use crate::status::Cause;

/// A schema nested deeper than this is refused.
const MAX_DEPTH: usize = 100;
/// Faults beyond this many are not listed.
const MAX_CAUSES: usize = 100;
const INT_OR_STRING: &str = "x-kubernetes-int-or-string";
const PRESERVE_UNKNOWN: &str = "x-kubernetes-preserve-unknown-fields";
const EMBEDDED: &str = "x-kubernetes-embedded-resource";
const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];

/// Where a schema stands in another, which decides what it may say.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slot {
    Root,
    Property,
    Item,
    /// `additionalProperties`.
    Value,
    /// Below `allOf`, `anyOf`, `oneOf`, `not`: says what a value must be, and nothing of its structure.
    Logic,
}

/// Every fault of a version's `openAPIV3Schema`, in upstream's words. `patterns` are those of the whole definition.
pub fn validate(schema: &Value, path: &str, patterns: &mut Patterns, causes: &mut Vec<Cause>) {
    if schema.get("type").and_then(Value::as_str).is_some_and(|type_| type_ != "object") {
        causes.push(Cause::invalid(format!("{path}.type"), schema["type"].clone(), "must be object at the root"));
    }
    walk(schema, path, Slot::Root, 0, patterns, causes);
}

fn walk(schema: &Value, path: &str, slot: Slot, depth: usize, patterns: &mut Patterns, causes: &mut Vec<Cause>) {
    if causes.len() >= MAX_CAUSES {
        return;
    }
    if depth > MAX_DEPTH {
        causes.push(Cause::forbidden(path, &format!("schemas may not be nested deeper than {MAX_DEPTH}")));
        return;
    }
    check_type(schema, path, slot, causes);
    check_forbidden(schema, path, slot, causes);
    match slot {
        Slot::Logic => check_logic(schema, path, causes),
        _ => check_lists(schema, path, causes),
    }
    if let Some(text) = schema.get("pattern").and_then(Value::as_str)
        && let Err(why) = patterns.add(text)
    {
        causes.push(Cause::invalid(format!("{path}.pattern"), text, &why));
    }
    let inner = |own: Slot| if slot == Slot::Logic { Slot::Logic } else { own };
    for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let at = paths::property(path, name);
        if slot == Slot::Root && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
            check_own_field(name, property, &at, causes);
        }
        walk(property, &at, inner(Slot::Property), depth + 1, patterns, causes);
    }
    if let Some(items) = schema.get("items").filter(|items| items.is_object()) {
        walk(items, &format!("{path}.items"), inner(Slot::Item), depth + 1, patterns, causes);
    }
    if let Some(values) = schema.get("additionalProperties").filter(|values| values.is_object() && slot != Slot::Logic)
    {
        walk(values, &format!("{path}.additionalProperties"), inner(Slot::Value), depth + 1, patterns, causes);
    }
    let is_of_two = is_int_or_string(schema.get("anyOf"));
    for (name, below) in junctors(schema).filter(|(name, _)| !(is_of_two && name.starts_with("anyOf"))) {
        walk(below, &format!("{path}.{name}"), Slot::Logic, depth + 1, patterns, causes);
    }
    if slot != Slot::Logic {
        for (name, below) in junctors(schema) {
            check_known(below, &format!("{path}.{name}"), (schema, path), depth + 1, causes);
        }
    }
}

fn flag(schema: &Value, name: &str) -> bool {
    schema.get(name).and_then(Value::as_bool).unwrap_or(false)
}

fn check_type(schema: &Value, path: &str, slot: Slot, causes: &mut Vec<Cause>) {
    let type_ = schema.get("type").and_then(Value::as_str).unwrap_or("");
    let at = format!("{path}.type");
    if !type_.is_empty() && !TYPES.contains(&type_) {
        causes.push(Cause::not_supported(&at, type_, &TYPES));
    }
    if slot == Slot::Logic {
        return;
    }
    // A type beside it is allowed, and says nothing: the value is either of two.
    let int_or_string = flag(schema, INT_OR_STRING);
    for name in [PRESERVE_UNKNOWN, EMBEDDED].into_iter().filter(|name| int_or_string && flag(schema, name)) {
        let why = "must be false if x-kubernetes-int-or-string is true";
        causes.push(Cause::invalid(format!("{path}.{name}"), true, why));
    }
    if flag(schema, EMBEDDED) && type_ != "object" {
        let why = "must be object if x-kubernetes-embedded-resource is true";
        causes.push(if type_.is_empty() { Cause::required(&at, why) } else { Cause::invalid(&at, type_, why) });
        return;
    }
    let free = int_or_string || flag(schema, PRESERVE_UNKNOWN);
    let missing = match slot {
        _ if !type_.is_empty() || free => return,
        Slot::Root => "must not be empty at the root",
        Slot::Property | Slot::Value | Slot::Logic => "must not be empty for specified object fields",
        Slot::Item => "must not be empty for specified array items",
    };
    causes.push(Cause::required(&at, missing));
}

fn check_forbidden(schema: &Value, path: &str, slot: Slot, causes: &mut Vec<Cause>) {
    let mut forbid = |name: &str, why: &str| causes.push(Cause::forbidden(format!("{path}.{name}"), why));
    for name in [
        "definitions",
        "dependencies",
        "deprecated",
        "discriminator",
        "id",
        "patternProperties",
        "readOnly",
        "writeOnly",
        "xml",
        "$ref",
    ] {
        if schema.get(name).is_some_and(|value| !value.is_null()) {
            forbid(name, &format!("{name} is not supported"));
        }
    }
    if flag(schema, "uniqueItems") {
        forbid("uniqueItems", "uniqueItems cannot be set to true since the runtime complexity becomes quadratic");
    }
    if schema.get("additionalProperties") == Some(&Value::Bool(false)) {
        forbid("additionalProperties", "additionalProperties cannot be set to false");
    }
    let has = |name: &str| schema.get(name).is_some_and(|value| value.as_object().is_some_and(|map| !map.is_empty()));
    if has("properties") && schema.get("additionalProperties").is_some_and(|value| !value.is_null() && value != false) {
        forbid("additionalProperties", "additionalProperties and properties are mutual exclusive");
    }
    if slot == Slot::Root && schema.get("additionalProperties").is_some_and(|value| !value.is_null() && value != false)
    {
        forbid("additionalProperties", "must not be used at the root");
    }
    if slot == Slot::Root && flag(schema, "nullable") {
        forbid("nullable", "nullable cannot be true at the root");
    }
    if schema.get("items").is_some_and(Value::is_array) {
        forbid("items", "items must be a schema object and not an array");
    }
    if schema.get("type").and_then(Value::as_str) == Some("array")
        && slot != Slot::Logic
        && schema.get("items").is_none()
    {
        causes.push(Cause::required(format!("{path}.items"), "must be specified"));
    }
}

/// What a schema below a junctor may not say: anything of the structure, which is said outside.
const NOT_IN_LOGIC: [(&str, &str); 13] = [
    ("type", "must be empty to be structural"),
    ("additionalProperties", "must be undefined to be structural"),
    ("default", "must be undefined to be structural"),
    ("title", "must be empty to be structural"),
    ("description", "must be empty to be structural"),
    ("nullable", "must be false to be structural"),
    (PRESERVE_UNKNOWN, "must be false to be structural"),
    (EMBEDDED, "must be false to be structural"),
    (INT_OR_STRING, "must be false to be structural"),
    ("x-kubernetes-list-map-keys", "must be empty to be structural"),
    ("x-kubernetes-list-type", "must be undefined to be structural"),
    ("x-kubernetes-map-type", "must be undefined to be structural"),
    ("x-kubernetes-validations", "must be empty to be structural"),
];

/// A schema below a junctor.
fn check_logic(schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    let is_said = |value: &Value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(all) => !all.is_empty(),
        _ => true,
    };
    for (name, why) in NOT_IN_LOGIC {
        if schema.get(name).is_some_and(is_said) {
            causes.push(Cause::forbidden(format!("{path}.{name}"), why));
        }
    }
    if schema.get("properties").is_some_and(|properties| properties.get("metadata").is_some()) {
        causes.push(Cause::forbidden(
            format!("{path}.properties[metadata]"),
            "must not be specified in a nested context",
        ));
    }
}

/// Each field and item that a schema below a junctor speaks of must be known outside: in `known`, a schema and its
/// path. What is nested too deep has been refused by [`walk`].
fn check_known(schema: &Value, path: &str, known: (&Value, &str), depth: usize, causes: &mut Vec<Cause>) {
    if causes.len() >= MAX_CAUSES || depth > MAX_DEPTH {
        return;
    }
    let (known, known_path) = known;
    let mut inner = |name: String, below: &Value, known: Option<&Value>| {
        let (at, known_at) = (paths::field(path, &name), paths::field(known_path, &name));
        match known {
            Some(known) => check_known(below, &at, (known, &known_at), depth + 1, causes),
            None if causes.len() >= MAX_CAUSES => {}
            None => causes.push(Cause::required(known_at, &format!("because it is defined in {at}"))),
        }
    };
    for (name, below) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        inner(format!("properties[{name}]"), below, known.get("properties").and_then(|all| all.get(name)));
    }
    if let Some(below) = schema.get("items").filter(|items| items.is_object()) {
        inner("items".to_owned(), below, known.get("items").filter(|items| items.is_object()));
    }
    for (name, below) in junctors(schema) {
        check_known(below, &format!("{path}.{name}"), (known, known_path), depth + 1, causes);
    }
}

/// The schemas below `allOf`, `anyOf`, `oneOf` and `not`, with where they stand.
fn junctors(schema: &Value) -> impl Iterator<Item = (String, &Value)> {
    let of = |name: &'static str| {
        let all = schema.get(name).and_then(Value::as_array).into_iter().flatten().enumerate();
        all.map(move |(index, one)| (format!("{name}[{index}]"), one))
    };
    let not = schema.get("not").filter(|not| not.is_object()).map(|not| ("not".to_owned(), not));
    of("allOf").chain(of("anyOf")).chain(of("oneOf")).chain(not)
}

/// The one way to speak of types below a junctor: an integer or a string, in upstream's order.
fn is_int_or_string(any_of: Option<&Value>) -> bool {
    any_of.is_some_and(|any_of| *any_of == json!([{ "type": "integer" }, { "type": "string" }]))
}

fn check_lists(schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    let type_ = schema.get("type").and_then(Value::as_str).unwrap_or("");
    let text = |name: &str| schema.get(name).and_then(Value::as_str);
    if let Some(list) = text("x-kubernetes-list-type") {
        let at = format!("{path}.x-kubernetes-list-type");
        if type_ != "array" {
            causes.push(Cause::invalid(
                format!("{path}.type"),
                type_,
                "must be array if x-kubernetes-list-type is specified",
            ));
        }
        if !["atomic", "map", "set"].contains(&list) {
            causes.push(Cause::not_supported(&at, list, &["atomic", "map", "set"]));
        }
        let keys = schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
        let keys: Vec<&str> = keys.into_iter().flatten().filter_map(Value::as_str).collect();
        let at = format!("{path}.x-kubernetes-list-map-keys");
        if list == "map" && keys.is_empty() {
            causes.push(Cause::required(&at, "must not be empty if x-kubernetes-list-type is map"));
        }
        if list != "map" && !keys.is_empty() {
            let why = "must not be specified if x-kubernetes-list-type is not map";
            causes.push(Cause::forbidden(&at, why));
        }
        let items = schema.get("items");
        let shown = || json!(keys);
        for (index, key) in keys.iter().enumerate().filter(|_| list == "map") {
            let Some(property) = items.and_then(|items| items.get("properties")?.get(*key)) else {
                causes.push(Cause::invalid(&at, shown(), "entries must all be names of item properties"));
                continue;
            };
            if keys.iter().take(index).any(|before| before == key) {
                causes.push(Cause::invalid(&at, shown(), "must not contain duplicate entries"));
            }
            check_key(items.unwrap_or(&Value::Null), key, property, path, causes);
        }
        if let Some(items) = items.filter(|_| matches!(list, "map" | "set")) {
            check_items(items, list, path, causes);
        }
    }
    if let Some(map) = text("x-kubernetes-map-type") {
        let at = format!("{path}.x-kubernetes-map-type");
        if type_ != "object" {
            causes.push(Cause::invalid(
                format!("{path}.type"),
                type_,
                "must be object if x-kubernetes-map-type is specified",
            ));
        }
        if !["atomic", "granular"].contains(&map) {
            causes.push(Cause::not_supported(&at, map, &["atomic", "granular"]));
        }
    }
}

/// A key of a list of type `map`.
fn check_key(items: &Value, key: &str, property: &Value, path: &str, causes: &mut Vec<Cause>) {
    let at = |field: &str| format!("{path}.items.properties[{key}].{field}");
    if let Some(type_) =
        property.get("type").and_then(Value::as_str).filter(|type_| ["array", "object"].contains(type_))
    {
        let why = "must be a scalar type if parent array's x-kubernetes-list-type is map";
        causes.push(Cause::invalid(at("type"), type_, why));
    }
    let mut required = items.get("required").and_then(Value::as_array).into_iter().flatten();
    let is_required = required.any(|name| name.as_str() == Some(key));
    if !is_required && property.get("default").is_none_or(Value::is_null) {
        let why = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
        causes.push(Cause::required(at("default"), why));
    }
    if flag(property, "nullable") {
        let why = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
        causes.push(Cause::forbidden(at("nullable"), why));
    }
}

/// The items of a list of type `map` or `set`.
fn check_items(items: &Value, list: &str, path: &str, causes: &mut Vec<Cause>) {
    let text = |name: &str| items.get(name).and_then(Value::as_str).unwrap_or("");
    if flag(items, "nullable") {
        let why = format!("cannot be nullable when x-kubernetes-list-type is {list}");
        causes.push(Cause::forbidden(format!("{path}.items.nullable"), &why));
    }
    if list == "map" && text("type") != "object" {
        let why = "must be object if parent array's x-kubernetes-list-type is map";
        causes.push(Cause::invalid(format!("{path}.items.type"), text("type"), why));
    }
    if list == "set" {
        let why = "must be atomic as item of a list with x-kubernetes-list-type=set";
        let own = text("x-kubernetes-list-type");
        if text("type") == "array" && !["", "atomic"].contains(&own) {
            causes.push(Cause::invalid(format!("{path}.items.x-kubernetes-list-type"), own, why));
        }
        let own = text("x-kubernetes-map-type");
        if text("type") == "object" && own != "atomic" {
            causes.push(Cause::invalid(format!("{path}.items.x-kubernetes-map-type"), own, why));
        }
    }
}

/// What the root may say of the fields that every resource has.
fn check_own_field(name: &str, property: &Value, path: &str, causes: &mut Vec<Cause>) {
    let wanted = if name == "metadata" { "object" } else { "string" };
    let type_ = property.get("type").and_then(Value::as_str).unwrap_or("");
    if type_ != wanted {
        causes.push(Cause::invalid(format!("{path}.type"), type_, &format!("must be {wanted}")));
    }
    let allowed = ["name", "generateName"];
    let properties = property.get("properties").and_then(Value::as_object).into_iter().flatten();
    if name == "metadata" && properties.clone().any(|(field, _)| !allowed.contains(&field.as_str())) {
        let why = "must not specify anything other than name and generateName, but metadata is implicitly specified";
        causes.push(Cause::forbidden(path, why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(spec: Value) -> Vec<String> {
        let mut causes = Vec::new();
        let schema = json!({ "type": "object", "properties": { "spec": spec } });
        validate(&schema, "s", &mut Patterns::default(), &mut causes);
        causes.into_iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
    }

    /// Public definitions (snapshots of a CSI driver) give such a field a type too, which upstream takes.
    #[test]
    fn an_int_or_string_may_have_a_type_and_a_choice_beside_it() {
        let of_two = json!([{ "type": "integer" }, { "type": "string" }]);
        for field in [
            json!({ "x-kubernetes-int-or-string": true }),
            json!({ "x-kubernetes-int-or-string": true, "type": "string", "pattern": "^a$" }),
            json!({ "x-kubernetes-int-or-string": true, "anyOf": of_two }),
            json!({ "x-kubernetes-int-or-string": true, "allOf": [{ "anyOf": of_two }, { "minimum": 1 }] }),
        ] {
            assert_eq!(faults(field.clone()), Vec::<String>::new(), "{field}");
        }
        assert_eq!(
            faults(json!({ "x-kubernetes-int-or-string": true, "x-kubernetes-preserve-unknown-fields": true })),
            ["s.properties[spec].x-kubernetes-preserve-unknown-fields: Invalid value: true: must be false if \
                x-kubernetes-int-or-string is true"]
        );
        assert_eq!(
            faults(json!({ "anyOf": [{ "type": "string" }], "type": "object" })),
            ["s.properties[spec].anyOf[0].type: Forbidden: must be empty to be structural"]
        );
    }

    #[test]
    fn x4_what_is_unknown_below_a_junctor_is_listed_up_to_a_bound() {
        let fields: serde_json::Map<String, Value> = (0..50_000).map(|n| (n.to_string(), json!({}))).collect();
        let nested = (0..10 * MAX_DEPTH).fold(json!({}), |below, _| json!({ "not": below }));
        let found = faults(json!({ "type": "object", "anyOf": [nested, { "properties": fields }] }));
        assert!((2..=MAX_CAUSES + 1).contains(&found.len()), "{}", found.len());
    }

    #[test]
    fn below_a_junctor_nothing_is_said_of_the_structure() {
        let known = json!({ "a": { "type": "object", "properties": { "b": { "type": "string" } } } });
        let with = |one: Value| json!({ "type": "object", "properties": known, "oneOf": [one] });
        assert_eq!(faults(with(json!({ "properties": { "a": { "required": ["b"] } } }))), Vec::<String>::new());
        assert_eq!(
            faults(with(json!({ "not": { "properties": { "a": { "properties": { "c": {} } } } } }))),
            ["s.properties[spec].properties[a].properties[c]: Required value: because it is defined in \
                s.properties[spec].oneOf[0].not.properties[a].properties[c]"]
        );
        assert_eq!(
            faults(with(json!({ "properties": { "a": { "description": "d", "nullable": true } } }))),
            [
                "s.properties[spec].oneOf[0].properties[a].description: Forbidden: must be empty to be structural",
                "s.properties[spec].oneOf[0].properties[a].nullable: Forbidden: must be false to be structural",
            ]
        );
    }
}
