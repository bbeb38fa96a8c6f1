//! An object against its structural schema: what is dropped, what is filled in, what is refused.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::patterns;
use super::schema::{Additional, ListType, Rules, Schema, Type};
use crate::paths;
use crate::schema::decode::MAX_STRICT_ERRORS;
use crate::schema::types::{self, Shape};
use crate::status::Cause;

/// The fields that every resource has, beside those of its schema.
const RESOURCE: [&str; 3] = ["apiVersion", "kind", "metadata"];
/// Faults beyond this many are not listed.
const MAX_CAUSES: usize = 100;

/// Drops the fields that the schema does not know, and names the first [`MAX_STRICT_ERRORS`] of them: `spec.foo`.
pub fn prune(schema: &Schema, value: &mut Value, is_resource: bool) -> Vec<String> {
    let mut dropped = Vec::new();
    prune_at(schema, value, is_resource, &mut String::new(), &mut dropped);
    dropped
}

fn prune_at(schema: &Schema, value: &mut Value, is_resource: bool, path: &mut String, dropped: &mut Vec<String>) {
    let length = path.len();
    match value {
        Value::Object(fields) => {
            let is_own = |name: &str| (is_resource || schema.is_embedded) && RESOURCE.contains(&name);
            fields.retain(|name, _| {
                let known = is_own(name)
                    || schema.preserves_unknown
                    || matches!(schema.additional, Additional::Any)
                    || schema.field(name).is_some();
                if !known {
                    note(dropped, path, name);
                }
                known
            });
            if schema.is_embedded && !is_resource {
                prune_metadata(fields, path, dropped);
            }
            for (name, value) in fields.iter_mut().filter(|(name, _)| !is_own(name)) {
                if let Some(below) = schema.field(name) {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.push_str(name);
                    prune_at(below, value, false, path, dropped);
                    path.truncate(length);
                }
            }
        }
        Value::Array(items) => {
            let Some(below) = &schema.items else { return };
            for (index, item) in items.iter_mut().enumerate() {
                path.push_str(&format!("[{index}]"));
                prune_at(below, item, false, path, dropped);
                path.truncate(length);
            }
        }
        _ => {}
    }
}

fn note(dropped: &mut Vec<String>, path: &str, name: &str) {
    if dropped.len() < MAX_STRICT_ERRORS {
        dropped.push(paths::field(path, name));
    }
}

/// Drops what no metadata has from that of an embedded resource.
fn prune_metadata(fields: &mut Map<String, Value>, path: &str, dropped: &mut Vec<String>) {
    let Shape::Struct(resource) = types::resource() else { return };
    let Some(Shape::Struct(known)) = resource.field("metadata").map(|field| field.shape) else { return };
    let Some(Value::Object(metadata)) = fields.get_mut("metadata") else { return };
    metadata.retain(|name, _| {
        let is_known = known.field(name).is_some();
        if !is_known {
            note(dropped, &paths::field(path, "metadata"), name);
        }
        is_known
    });
}

/// Fills in `default`s. A null that may not be one is taken for a field that is not set; as an item of a list, which
/// cannot go, it stays where it has no default.
pub fn fill_in(schema: &Schema, value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.iter_mut().for_each(|(name, value)| fill_in_null(schema.field(name), value));
            fields.retain(|name, value| !value.is_null() || schema.field(name).is_none_or(|below| below.nullable));
            for (name, below) in &schema.properties {
                if let Some(default) = &below.default
                    && !fields.contains_key(&**name)
                {
                    fields.insert(name.to_string(), (**default).clone());
                }
            }
            for (name, value) in fields.iter_mut() {
                if let Some(below) = schema.field(name) {
                    fill_in(below, value);
                }
            }
        }
        Value::Array(items) => {
            if let Some(below) = &schema.items {
                for item in items {
                    fill_in_null(Some(below), item);
                    fill_in(below, item);
                }
            }
        }
        _ => {}
    }
}

/// Makes a null that may not be one what its schema has as a default.
fn fill_in_null(schema: Option<&Schema>, value: &mut Value) {
    let default =
        schema.filter(|schema| value.is_null() && !schema.nullable).and_then(|schema| schema.default.as_ref());
    if let Some(default) = default {
        *value = (**default).clone();
    }
}

/// Whether a value is of the schema; every fault in upstream's words, with its path.
pub fn validate(schema: &Schema, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    visit(schema, value, None, path, causes);
}

/// The same of what is not as it was (ratcheting): no fault of a value that has not been touched counts. Items are told
/// apart by the keys of their list, as upstream; those of a list without keys are all new where the list has changed.
pub fn validate_changed(schema: &Schema, value: &Value, old: &Value, causes: &mut Vec<Cause>) {
    let is_duplicate = |cause: &Cause| cause.reason == "FieldValueDuplicate";
    let mut found = Vec::new();
    visit(schema, value, Some(old), "", &mut found);
    if found.iter().any(is_duplicate) {
        let mut before = Vec::new();
        visit(schema, old, None, "", &mut before);
        if before.iter().any(is_duplicate) {
            found.retain(|cause| !is_duplicate(cause));
        }
    }
    causes.extend(found);
}

fn visit(schema: &Schema, value: &Value, old: Option<&Value>, path: &str, causes: &mut Vec<Cause>) {
    if causes.len() >= MAX_CAUSES || (value.is_null() && schema.nullable) || old == Some(value) {
        return;
    }
    if !is_of_type(schema, value) {
        causes.push(wrong_type(schema, value, path));
        return;
    }
    if let Some(rules) = &schema.rules {
        check(rules, value, old, path, causes);
    }
    match value {
        Value::Object(fields) => {
            for name in schema.required.iter().filter(|name| !fields.contains_key(&***name)) {
                causes.push(Cause::required(paths::field(path, name), ""));
            }
            for (name, value) in fields {
                if let Some(property) = schema.field(name) {
                    visit(property, value, old.and_then(|old| old.get(name)), &paths::field(path, name), causes);
                }
            }
        }
        Value::Array(items) => {
            if let Some(below) = &schema.items {
                let known = keyed(schema, old);
                for (index, item) in items.iter().enumerate() {
                    let old = key_of(schema, item).and_then(|key| known.get(&key).copied());
                    visit(below, item, old, &paths::item(path, index), causes);
                }
            }
            check_unique(&schema.list, items, path, causes);
        }
        _ => {}
    }
}

/// The items of an old list by their keys; of a list that is no map none can be told from others.
pub(super) fn keyed<'a>(schema: &Schema, old: Option<&'a Value>) -> BTreeMap<String, &'a Value> {
    let items = old.and_then(Value::as_array).into_iter().flatten();
    items.filter_map(|item| Some((key_of(schema, item)?, item))).collect()
}

/// The keys of an item of a list that is a map.
pub(super) fn key_of(schema: &Schema, item: &Value) -> Option<String> {
    let ListType::Map(names) = &schema.list else { return None };
    let keys: Vec<&Value> = names.iter().map(|name| item.get(&**name).unwrap_or(&Value::Null)).collect();
    serde_json::to_string(&keys).ok()
}

fn is_of_type(schema: &Schema, value: &Value) -> bool {
    let is_whole = |value: &Value| value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0);
    if schema.int_or_string {
        return value.is_string() || (value.is_number() && is_whole(value));
    }
    match schema.type_ {
        Type::Any => true,
        Type::Object => value.is_object(),
        Type::Array => value.is_array(),
        Type::String => value.is_string(),
        Type::Integer => value.is_number() && is_whole(value),
        Type::Number => value.is_number(),
        Type::Boolean => value.is_boolean(),
    }
}

fn wrong_type(schema: &Schema, value: &Value, path: &str) -> Cause {
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let wanted = if schema.int_or_string { "integer,string" } else { schema.type_.name() };
    let mut cause = Cause::invalid(path, found, &format!("{path} in body must be of type {wanted}: {found:?}"));
    cause.reason = "FieldValueTypeInvalid";
    cause
}

fn check(rules: &Rules, value: &Value, old: Option<&Value>, path: &str, causes: &mut Vec<Cause>) {
    let mut refuse = |why: String| causes.push(Cause::invalid(path, value.clone(), &format!("{path} in body {why}")));
    match value {
        Value::Number(number) => check_number(rules, number.as_f64().unwrap_or(0.0), &mut refuse),
        Value::String(text) => {
            let length = text.chars().count();
            if let Some(least) = rules.length.0.filter(|least| (length as u64) < *least) {
                refuse(format!("should be at least {least} chars long"));
            }
            if let Some(source) = rules.pattern.as_deref().filter(|pattern| !patterns::fits(pattern, text)) {
                refuse(format!("should match '{source}'"));
            }
            if let Some(format) = rules.format.as_deref().filter(|format| !super::format::fits(format, text)) {
                refuse(format!("must be of type {format}: {text:?}"));
            }
            if let Some(most) = rules.length.1.filter(|most| length as u64 > *most) {
                causes.push(Cause::too_long(path, usize::try_from(most).unwrap_or(usize::MAX)));
            }
        }
        Value::Array(items) => {
            if let Some(least) = rules.items.0.filter(|least| (items.len() as u64) < *least) {
                refuse(format!("should have at least {least} items"));
            }
            if let Some(most) = rules.items.1.filter(|most| items.len() as u64 > *most) {
                causes.push(Cause::too_many(path, items.len(), usize::try_from(most).unwrap_or(usize::MAX)));
            }
        }
        Value::Object(fields) => {
            if let Some(least) = rules.properties.0.filter(|least| (fields.len() as u64) < *least) {
                refuse(format!("should have at least {least} properties"));
            }
            if let Some(most) = rules.properties.1.filter(|most| fields.len() as u64 > *most) {
                causes.push(Cause::too_many(path, fields.len(), usize::try_from(most).unwrap_or(usize::MAX)));
            }
        }
        _ => {}
    }
    if let Some(values) = rules.values.as_ref().filter(|values| !values.iter().any(|known| same(known, value))) {
        let shown: Vec<String> =
            values.iter().map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned)).collect();
        causes.push(Cause::not_supported(path, value.clone(), &shown.iter().map(String::as_str).collect::<Vec<_>>()));
    }
    check_alternatives(rules, value, old, path, causes);
}

fn check_number(rules: &Rules, number: f64, refuse: &mut impl FnMut(String)) {
    match rules.minimum {
        Some((least, true)) if number <= least => refuse(format!("should be greater than {least}")),
        Some((least, false)) if number < least => refuse(format!("should be greater than or equal to {least}")),
        _ => {}
    }
    match rules.maximum {
        Some((most, true)) if number >= most => refuse(format!("should be less than {most}")),
        Some((most, false)) if number > most => refuse(format!("should be less than or equal to {most}")),
        _ => {}
    }
    // What is a decimal fraction is no binary one: 0.3 is 3 times 0.1, and by division 2.9999999999999996 times.
    let is_whole = |times: f64| (times - times.round()).abs() <= 1e-9 * times.abs();
    if let Some(of) = rules.multiple_of.filter(|of| !is_whole(number / of)) {
        refuse(format!("should be a multiple of {of}"));
    }
}

/// `allOf`, `anyOf`, `oneOf`, `not`.
fn check_alternatives(rules: &Rules, value: &Value, old: Option<&Value>, path: &str, causes: &mut Vec<Cause>) {
    let fits = |schema: &&Schema| {
        let mut found = Vec::new();
        validate(schema, value, path, &mut found);
        found.is_empty()
    };
    let shown = if path.is_empty() { "<nil>" } else { path };
    let mut refuse = |why: String| causes.push(Cause::invalid(shown, value.clone(), &format!("{path:?} {why}")));
    if !rules.any_of.is_empty() && !rules.any_of.iter().any(|schema| fits(&schema)) {
        refuse("must validate at least one schema (anyOf)".to_owned());
    }
    if !rules.one_of.is_empty() {
        match rules.one_of.iter().filter(fits).count() {
            1 => {}
            0 => refuse("must validate one and only one schema (oneOf). Found none valid".to_owned()),
            several => {
                refuse(format!("must validate one and only one schema (oneOf). Found {several} valid alternatives"));
            }
        }
    }
    if rules.not.as_deref().is_some_and(|schema| fits(&schema)) {
        refuse("must not validate the schema (not)".to_owned());
    }
    for schema in &rules.all_of {
        visit(schema, value, old, path, causes);
    }
}

/// Equal as JSON: 1 and 1.0 are the same number.
fn same(a: &Value, b: &Value) -> bool {
    a == b || a.as_f64().is_some_and(|a| Some(a) == b.as_f64())
}

/// `x-kubernetes-list-type` `set` and `map`: nothing twice.
fn check_unique(list: &ListType, items: &[Value], path: &str, causes: &mut Vec<Cause>) {
    let mut seen = std::collections::HashSet::new();
    for (index, item) in items.iter().enumerate() {
        if causes.len() >= MAX_CAUSES {
            return;
        }
        let key = match list {
            ListType::Atomic => return,
            ListType::Set => item.clone(),
            ListType::Map(names) => {
                let keys = names.iter().filter_map(|name| Some((name.to_string(), item.get(&**name)?.clone())));
                Value::Object(keys.collect::<Map<_, _>>())
            }
        };
        if !seen.insert(key.to_string()) {
            causes.push(Cause::duplicate(paths::item(path, index), key));
        }
    }
}
