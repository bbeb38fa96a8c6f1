//! Strategic merge patch: a merge patch that knows which lists are keyed, and by what.
//!
//! Besides values a patch carries directives, at any depth:
//!
//! ```text
//! $patch: replace | delete | merge       of the map or the list item that it stands in
//! $retainKeys: [a, b]                    the map keeps only these fields
//! $setElementOrder/ports: [...]          the order of a merged list after the patch
//! $deleteFromPrimitiveList/args: [...]   removes scalars from a merged list
//! ```
//!
//! A field of a patch that is null removes the field. A list without a merge strategy is replaced. No directive is ever
//! stored: in what is taken whole they are left out, and what carries `$patch` there with them, as upstream does where
//! nothing was stored before.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::order::{arrange, positions};
use crate::schema::list_keys::{self, FieldKeys};
use crate::schema::types::Shape;
use crate::status::Status;

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ELEMENT_ORDER: &str = "$setElementOrder/";
const DELETE_FROM_PRIMITIVE_LIST: &str = "$deleteFromPrimitiveList/";
/// The same without the name of a list, and what is wrong with a field that begins so and names none, in upstream's
/// words.
const NAMELESS: [(&str, &str); 2] = [
    ("$setElementOrder", "invalid patch format of setElementOrder list"),
    ("$deleteFromPrimitiveList", "invalid patch format of primitive list"),
];

/// Merges a patch into an object of this shape.
pub(super) fn merge(shape: Shape, current: &Value, patch: Value) -> Result<Value, Status> {
    let (Value::Object(current), Value::Object(patch)) = (current, patch) else {
        return Err(bad_patch("a strategic merge patch must be a JSON object"));
    };
    merge_map(shape, current.clone(), patch).map(Value::Object)
}

fn bad_patch(why: impl std::fmt::Display) -> Status {
    Status::bad_request(format!("error applying patch: {why}"))
}

fn unfit(why: impl std::fmt::Display) -> Status {
    Status::new(422, "Invalid", format!("error applying patch: {why}"))
}

/// Whether a field of a map that has no `$patch` is a directive.
fn is_directive(field: &str) -> bool {
    field == RETAIN_KEYS || NAMELESS.iter().any(|(prefix, _)| field.starts_with(prefix))
}

/// What is taken whole, less the directives in it; `None` for a map that carries `$patch`.
fn without_directives(value: Value) -> Option<Value> {
    Some(match value {
        Value::Object(map) if map.contains_key(PATCH) => return None,
        Value::Object(map) => {
            let fields = map.into_iter().filter(|(field, _)| !is_directive(field));
            Value::Object(fields.filter_map(|(field, value)| Some((field, without_directives(value)?))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().filter_map(without_directives).collect()),
        scalar => scalar,
    })
}

/// The shape of a field and how it is merged; what has no schema is merged like a plain map.
fn child(shape: Shape, name: &str) -> (Shape, &'static FieldKeys) {
    match shape {
        Shape::Struct(this) => {
            this.field(name).map_or((Shape::Any, &list_keys::DEFAULT), |field| (field.shape, field.keys))
        }
        Shape::Map(item) => (*item, &list_keys::DEFAULT),
        _ => (Shape::Any, &list_keys::DEFAULT),
    }
}

fn merge_map(
    shape: Shape,
    mut current: Map<String, Value>,
    mut patch: Map<String, Value>,
) -> Result<Map<String, Value>, Status> {
    match patch.remove(PATCH).as_ref().map(|directive| directive.as_str().unwrap_or("")) {
        None | Some("merge") => {}
        // What replaces is merged into nothing, so that directives and nulls inside it are not stored.
        Some("replace") => current = Map::new(),
        Some("delete") => return Ok(Map::new()),
        Some(other) => return Err(bad_patch(format_args!("unknown patch type {other:?} found in map"))),
    }
    if let Some(keys) = patch.remove(RETAIN_KEYS) {
        retain_keys(&mut current, &patch, &keys)?;
    }
    for name in patch
        .keys()
        .filter_map(|key| key.strip_prefix(SET_ELEMENT_ORDER).or_else(|| key.strip_prefix(DELETE_FROM_PRIMITIVE_LIST)))
    {
        let (_, keys) = child(shape, name);
        if !keys.patch_merge {
            return Err(bad_patch(format_args!("{name:?} is not a list that is merged")));
        }
    }
    let misnamed = |field: &&String| is_directive(field) && !field.contains('/');
    if let Some(field) = patch.keys().find(misnamed) {
        let why = NAMELESS.iter().find(|(prefix, _)| field.starts_with(prefix)).map_or("", |(_, why)| *why);
        return Err(bad_patch(why));
    }
    let mut orders = HashMap::new();
    let mut deletions = HashMap::new();
    let mut values = Vec::new();
    for (key, value) in patch {
        if let Some(name) = key.strip_prefix(SET_ELEMENT_ORDER) {
            orders.insert(name.to_owned(), list(&key, value)?);
        } else if let Some(name) = key.strip_prefix(DELETE_FROM_PRIMITIVE_LIST) {
            deletions.insert(name.to_owned(), list(&key, value)?);
        } else {
            values.push((key, value));
        }
    }
    for (name, items) in deletions {
        let gone: HashSet<String> = items.iter().map(Value::to_string).collect();
        if let Some(Value::Array(stored)) = current.get_mut(&name) {
            stored.retain(|item| !gone.contains(&item.to_string()));
        }
    }
    for (name, value) in values {
        let (shape, keys) = child(shape, &name);
        let order = orders.remove(&name);
        merge_field(shape, keys, &mut current, name, value, order)?;
    }
    for (name, order) in orders {
        let (_, keys) = child(shape, &name);
        if let Some(Value::Array(stored)) = current.remove(&name) {
            let by_key = |item: &Value| identity(item, keys.patch_key);
            let (wanted, now) = (positions(&order, by_key), positions(&stored, by_key));
            current.insert(name, Value::Array(arrange(stored, &wanted, &now, by_key)));
        }
    }
    Ok(current)
}

fn list(directive: &str, value: Value) -> Result<Vec<Value>, Status> {
    match value {
        Value::Array(items) => Ok(items),
        _ => Err(bad_patch(format_args!("{directive} must be a list"))),
    }
}

/// Drops what is not named; every field that the patch sets must be named.
fn retain_keys(current: &mut Map<String, Value>, patch: &Map<String, Value>, keys: &Value) -> Result<(), Status> {
    let bad = || bad_patch("invalid patch format of retainKeys");
    let keep: HashSet<&str> = keys.as_array().ok_or_else(bad)?.iter().filter_map(Value::as_str).collect();
    let sets = |(name, value): &(&String, &Value)| !value.is_null() && !is_directive(name);
    if !patch.iter().filter(sets).all(|(name, _)| keep.contains(name.as_str())) {
        return Err(bad());
    }
    current.retain(|name, _| keep.contains(name.as_str()));
    Ok(())
}

fn merge_field(
    shape: Shape,
    keys: &FieldKeys,
    current: &mut Map<String, Value>,
    name: String,
    value: Value,
    order: Option<Vec<Value>>,
) -> Result<(), Status> {
    let merged = match value {
        Value::Null => {
            current.remove(&name);
            return Ok(());
        }
        Value::Object(patch) => {
            let stored = match current.remove(&name) {
                Some(Value::Object(stored)) => stored,
                _ => Map::new(),
            };
            Value::Object(merge_map(shape, stored, patch)?)
        }
        Value::Array(patch) if keys.patch_merge => {
            let stored = match current.remove(&name) {
                Some(Value::Array(stored)) => stored,
                _ => Vec::new(),
            };
            let item = if let Shape::List(item) = shape { *item } else { Shape::Any };
            Value::Array(merge_list(item, keys.patch_key, stored, patch, order)?)
        }
        other => match without_directives(other) {
            Some(other) => other,
            None => return Ok(()),
        },
    };
    current.insert(name, merged);
    Ok(())
}

/// What identifies an item: its merge key's value, or for scalars the item itself, as JSON.
fn identity(item: &Value, key: Option<&str>) -> Option<String> {
    match key {
        Some(key) => item.get(key).filter(|value| !value.is_null()).map(Value::to_string),
        None => Some(item.to_string()),
    }
}

fn merge_list(
    shape: Shape,
    key: Option<&str>,
    stored: Vec<Value>,
    patch: Vec<Value>,
    order: Option<Vec<Value>>,
) -> Result<Vec<Value>, Status> {
    let (stored, patch) = special_items(key, stored, patch)?;
    if let Some(order) = &order {
        check_order(key, &patch, order)?;
    }
    let by_key = |item: &Value| identity(item, key);
    let before = positions(&stored, by_key);
    let wanted = positions(order.as_deref().unwrap_or(&patch), by_key);
    let mut merged = stored;
    let mut index = before.clone();
    for item in patch {
        let identity = identity(&item, key).ok_or_else(|| no_merge_key(&item, key))?;
        let mut known = index.get(&identity).copied().and_then(|at| merged.get_mut(at));
        // Taken, not cloned: a patch may name one item a hundred thousand times (X4).
        let taken = match known.as_deref_mut() {
            Some(Value::Object(before)) => std::mem::take(before),
            _ => Map::new(),
        };
        let after = match item {
            Value::Object(item) => Value::Object(merge_map(shape, taken, item)?),
            other => match without_directives(other) {
                Some(other) => other,
                None => continue,
            },
        };
        match known {
            Some(known) => *known = after,
            None => {
                index.insert(identity, merged.len());
                merged.push(after);
            }
        }
    }
    Ok(arrange(merged, &wanted, &before, by_key))
}

/// Takes out the items that are directives: `$patch: delete` drops the stored items with that key,
/// `$patch: replace` all of them. Returns what is stored and what is merged into it.
fn special_items(
    key: Option<&str>,
    mut stored: Vec<Value>,
    patch: Vec<Value>,
) -> Result<(Vec<Value>, Vec<Value>), Status> {
    let mut items = Vec::with_capacity(patch.len());
    let mut gone = HashSet::new();
    let mut replaces = false;
    for item in patch {
        match item.get(PATCH).map(|directive| directive.as_str().unwrap_or("")) {
            None => items.push(item),
            Some("delete") => {
                gone.insert(identity(&item, key).ok_or_else(|| no_merge_key(&item, key))?);
            }
            Some("replace") => replaces = true,
            Some("merge") => return Err(bad_patch("merging lists cannot yet be specified in the patch")),
            Some(other) => return Err(bad_patch(format_args!("unknown patch type {other:?} found in list"))),
        }
    }
    if replaces {
        stored.clear();
    }
    stored.retain(|item| identity(item, key).is_none_or(|identity| !gone.contains(&identity)));
    Ok((stored, items))
}

fn no_merge_key(item: &Value, key: Option<&str>) -> Status {
    unfit(format_args!("map: {item} does not contain declared merge key: {}", key.unwrap_or("")))
}

/// The items of the patch must be in `$setElementOrder`, in the same order.
fn check_order(key: Option<&str>, patch: &[Value], order: &[Value]) -> Result<(), Status> {
    let mut wanted = order.iter().map(|item| identity(item, key));
    for item in patch {
        let this = identity(item, key);
        if !wanted.any(|other| other == this) {
            return Err(bad_patch(format_args!(
                "The order in patch list doesn't match {SET_ELEMENT_ORDER} list at {item}"
            )));
        }
    }
    Ok(())
}
