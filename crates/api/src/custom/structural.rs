//! Whether a schema is structural: what upstream demands of `openAPIV3Schema` before objects are held against it.

use serde_json::{Value, json};

use super::pattern;
use crate::status::Cause;

/// A schema nested deeper than this is refused.
const MAX_DEPTH: usize = 100;
/// Faults beyond this many are not listed.
const MAX_CAUSES: usize = 100;
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

/// Every fault of a version's `openAPIV3Schema`, in upstream's words.
pub fn validate(schema: &Value, path: &str, causes: &mut Vec<Cause>) {
    if schema.get("type").and_then(Value::as_str).is_some_and(|type_| type_ != "object") {
        causes.push(Cause::invalid(format!("{path}.type"), schema["type"].clone(), "must be object at the root"));
    }
    walk(schema, path, Slot::Root, 0, causes);
}

fn walk(schema: &Value, path: &str, slot: Slot, depth: usize, causes: &mut Vec<Cause>) {
    if causes.len() >= MAX_CAUSES {
        return;
    }
    if depth > MAX_DEPTH {
        causes.push(Cause::forbidden(path, &format!("schemas may not be nested deeper than {MAX_DEPTH}")));
        return;
    }
    check_type(schema, path, slot, causes);
    check_forbidden(schema, path, slot, causes);
    check_lists(schema, path, causes);
    if let Some(text) = schema.get("pattern").and_then(Value::as_str)
        && let Err(error) = pattern::compile(text)
    {
        let why = format!("must be a valid regular expression, but isn't: {error}");
        causes.push(Cause::invalid(format!("{path}.pattern"), text, &why));
    }
    let inner = |own: Slot| if slot == Slot::Logic { Slot::Logic } else { own };
    for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let at = format!("{path}.properties[{name}]");
        if slot == Slot::Root && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
            check_own_field(name, property, &at, causes);
        }
        walk(property, &at, inner(Slot::Property), depth + 1, causes);
    }
    if let Some(items) = schema.get("items").filter(|items| items.is_object()) {
        walk(items, &format!("{path}.items"), inner(Slot::Item), depth + 1, causes);
    }
    if let Some(values) = schema.get("additionalProperties").filter(|values| values.is_object()) {
        walk(values, &format!("{path}.additionalProperties"), inner(Slot::Value), depth + 1, causes);
    }
    for name in ["allOf", "anyOf", "oneOf"] {
        let all = schema.get(name).and_then(Value::as_array).into_iter().flatten().enumerate();
        all.for_each(|(index, one)| walk(one, &format!("{path}.{name}[{index}]"), Slot::Logic, depth + 1, causes));
    }
    if let Some(not) = schema.get("not").filter(|not| not.is_object()) {
        walk(not, &format!("{path}.not"), Slot::Logic, depth + 1, causes);
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
    let int_or_string = flag(schema, "x-kubernetes-int-or-string");
    if int_or_string && !type_.is_empty() {
        causes.push(Cause::invalid(&at, type_, "must be empty if x-kubernetes-int-or-string is true"));
    }
    if flag(schema, "x-kubernetes-embedded-resource") && type_ != "object" && slot != Slot::Logic {
        causes.push(Cause::invalid(&at, type_, "must be object if x-kubernetes-embedded-resource is true"));
    }
    let free = int_or_string || flag(schema, "x-kubernetes-preserve-unknown-fields");
    let missing = match slot {
        _ if !type_.is_empty() => None,
        Slot::Root => Some("must not be empty at the root"),
        Slot::Logic => None,
        _ if free => None,
        Slot::Property => Some("must not be empty for specified object fields"),
        Slot::Item => Some("must not be empty for specified array items"),
        Slot::Value => Some("must not be empty for specified object fields"),
    };
    if let Some(why) = missing {
        causes.push(Cause::required(&at, why));
    }
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
    if slot == Slot::Logic {
        for name in ["type", "default", "nullable", "additionalProperties"] {
            if schema.get(name).is_some_and(|value| !value.is_null() && value != false)
                && !(name == "type" && is_of_two(schema))
            {
                causes.push(Cause::forbidden(format!("{path}.{name}"), "must be undefined to be structural"));
            }
        }
    }
}

/// The pattern that upstream allows beside `x-kubernetes-int-or-string`.
fn is_of_two(schema: &Value) -> bool {
    matches!(schema.get("type").and_then(Value::as_str), Some("integer" | "string"))
        && schema.as_object().is_some_and(|fields| fields.len() == 1)
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
