//! The patches that clients send: JSON patch, JSON merge patch, strategic merge patch.
//!
//! A patched object is not yet checked: [`crate::schema::decode`] comes after. Server-side apply,
//! the fourth kind of patch, needs managed fields and is [`crate::apply`].

mod order;
mod strategic;

use serde_json::Value;

use crate::kinds::Kind;
use crate::schema::decode::fits_depth;
use crate::schema::parse::{self, MAX_DEPTH};
use crate::schema::shape_of;
use crate::status::Status;

/// The most operations in one JSON patch; upstream's limit.
pub const MAX_JSON_PATCH_OPERATIONS: usize = 10_000;

/// How much the `copy` operations of one JSON patch may add, in bytes; upstream's limit, the largest request body.
pub const MAX_COPIED_BYTES: usize = 3 * 1024 * 1024;

/// How many list items the operations of one JSON patch may move out of the way altogether: an item that is added at
/// the front of a list moves all the others.
const MAX_MOVED_ITEMS: usize = 16 << 20;

/// A patch's format, by its content type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PatchType {
    /// RFC 6902: a list of operations.
    Json,
    /// RFC 7396: what to overwrite, null to remove.
    Merge,
    /// A merge patch that knows the keys of lists.
    Strategic,
    /// Server-side apply.
    Apply,
}

impl PatchType {
    /// The content types, as upstream lists them in its 415.
    pub const CONTENT_TYPES: &[&str] = &[
        "application/json-patch+json",
        "application/merge-patch+json",
        "application/strategic-merge-patch+json",
        "application/apply-patch+yaml",
    ];

    /// The format that a `Content-Type` header names; parameters after `;` are ignored.
    pub fn from_content_type(header: &str) -> Option<Self> {
        match header.split(';').next().unwrap_or("").trim() {
            "application/json-patch+json" => Some(Self::Json),
            "application/merge-patch+json" => Some(Self::Merge),
            "application/strategic-merge-patch+json" => Some(Self::Strategic),
            "application/apply-patch+yaml" => Some(Self::Apply),
            _ => None,
        }
    }
}

/// How much of a patch or of a patched object a refusal shows, in bytes.
const MAX_SHOWN: usize = 4096;

/// What a patch makes.
#[derive(Debug)]
pub struct Patched {
    /// The object.
    pub object: Value,
    /// The paths of what stands twice in the patch.
    pub duplicates: Vec<String>,
}

/// What a refusal shows, as upstream: a strategic merge patch as Go prints it, else the object that was made.
pub fn shown(patch_type: PatchType, patch: &[u8], patched: &Value) -> String {
    let mut text = String::new();
    match parse::parse(patch) {
        Ok(parsed) if patch_type == PatchType::Strategic => go(&parsed.value, &mut text),
        _ => text = patched.to_string(),
    }
    if text.len() > MAX_SHOWN {
        text.truncate(text.floor_char_boundary(MAX_SHOWN));
        text.push_str("...");
    }
    text
}

/// A value as Go prints it with `%v`, and little more than is shown of it.
fn go(value: &Value, text: &mut String) {
    if text.len() > MAX_SHOWN {
        return;
    }
    let between = |text: &mut String, index: usize| {
        if index > 0 {
            text.push(' ');
        }
    };
    match value {
        Value::Null => text.push_str("<nil>"),
        Value::String(string) => text.push_str(string),
        Value::Array(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                between(text, index);
                go(item, text);
            }
            text.push(']');
        }
        Value::Object(fields) => {
            text.push_str("map[");
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            for (index, (name, field)) in fields.into_iter().enumerate() {
                between(text, index);
                text.push_str(name);
                text.push(':');
                go(field, text);
            }
            text.push(']');
        }
        other => text.push_str(&other.to_string()),
    }
}

/// [`patched`], without what stands twice.
///
/// # Errors
/// As [`patched`].
pub fn apply_patch(kind: &Kind, patch_type: PatchType, current: &Value, patch: &[u8]) -> Result<Value, Status> {
    patched(kind, patch_type, current, patch).map(|patched| patched.object)
}

/// The object that a patch makes of the current one.
///
/// Errors: 400 for what is not such a patch, 413 for too many operations, 422 for a patch that does
/// not fit the object (a failed `test`, a path that is not there, a list item without its merge key).
/// [`PatchType::Apply`] is a 415 here.
pub fn patched(kind: &Kind, patch_type: PatchType, current: &Value, patch: &[u8]) -> Result<Patched, Status> {
    let parse::Parsed { value: patch, duplicates } =
        parse::parse(patch).map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))?;
    let object = match patch_type {
        PatchType::Json => json_patch(current, patch)?,
        PatchType::Merge if patch.is_object() => {
            let mut patched = current.clone();
            crate::object::merge(&mut patched, patch);
            patched
        }
        PatchType::Merge => {
            return Err(Status::bad_request("error decoding patch: a merge patch must be a JSON object"));
        }
        PatchType::Strategic if kind.custom.is_some() => {
            let accepted: Vec<&str> =
                PatchType::CONTENT_TYPES.iter().copied().filter(|accepted| !accepted.contains("strategic")).collect();
            return Err(Status::unsupported_media_type(&accepted));
        }
        PatchType::Strategic => strategic::merge(shape_of(&kind.type_name), current, patch)?,
        PatchType::Apply => return Err(Status::unsupported_media_type(PatchType::CONTENT_TYPES)),
    };
    if !fits_depth(&object, MAX_DEPTH) {
        return Err(Status::bad_request(format!("exceeded max depth of {MAX_DEPTH}")));
    }
    Ok(Patched { object, duplicates })
}

fn json_patch(current: &Value, patch: Value) -> Result<Value, Status> {
    let count = patch.as_array().map_or(0, Vec::len);
    if count > MAX_JSON_PATCH_OPERATIONS {
        let message =
            format!("The allowed maximum operations in a JSON patch is {MAX_JSON_PATCH_OPERATIONS}, got {count}");
        return Err(Status::new(413, "RequestEntityTooLarge", message));
    }
    let operations: json_patch::Patch =
        serde_json::from_value(patch).map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))?;
    let mut patched = current.clone();
    let (mut copied, mut moved) = (0, 0);
    for operation in &operations.0 {
        moved += touched(operation).map(|path| siblings(&patched, path)).sum::<usize>();
        if moved > MAX_MOVED_ITEMS {
            return Err(does_not_fit());
        }
        if let json_patch::PatchOperation::Copy(copy) = operation {
            let source = patched.pointer(copy.from.as_str()).ok_or_else(does_not_fit)?;
            // Copies of copies grow without a bound that the patch's own size would give (X4).
            copied += weight(source);
            if copied > MAX_COPIED_BYTES || !fits_depth(source, MAX_DEPTH) {
                return Err(does_not_fit());
            }
        }
        if is_absent_as_expected(&patched, operation) {
            continue;
        }
        json_patch::patch_unsafe(&mut patched, std::slice::from_ref(operation)).map_err(|_| does_not_fit())?;
    }
    Ok(patched)
}

/// A `test` for null of a field that an object does not have: it holds in upstream's implementation, other than in
/// RFC 6902, and operators ask so for the absence of finalizers.
fn is_absent_as_expected(value: &Value, operation: &json_patch::PatchOperation) -> bool {
    let json_patch::PatchOperation::Test(test) = operation else { return false };
    let path = test.path.as_str();
    let inside = path.rsplit_once('/').and_then(|(inside, _)| value.pointer(inside));
    test.value.is_null() && inside.is_some_and(Value::is_object) && value.pointer(path).is_none()
}

/// The paths at which an operation puts something in or takes something out.
fn touched(operation: &json_patch::PatchOperation) -> impl Iterator<Item = &str> {
    use json_patch::PatchOperation::{Add, Copy, Move, Remove};
    let (at, from) = match operation {
        Add(add) => (Some(add.path.as_str()), None),
        Remove(remove) => (Some(remove.path.as_str()), None),
        Move(moving) => (Some(moving.path.as_str()), Some(moving.from.as_str())),
        Copy(copy) => (Some(copy.path.as_str()), None),
        _ => (None, None),
    };
    at.into_iter().chain(from)
}

/// How many items the list has that a path leads into; 0 for what is in no list.
fn siblings(value: &Value, path: &str) -> usize {
    let list = path.rsplit_once('/').and_then(|(list, _)| value.pointer(list));
    list.and_then(Value::as_array).map_or(0, Vec::len)
}

/// Upstream's answer to a patch that does not apply to the object; it does not say which operation.
fn does_not_fit() -> Status {
    let details = Value::Object(serde_json::Map::new());
    Status { details, ..Status::new(422, "Invalid", "the server rejected our request due to an error in our request") }
}

/// About how many bytes a value takes as JSON.
fn weight(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 2,
        Value::Array(items) => 2 + items.iter().map(|item| weight(item) + 1).sum::<usize>(),
        Value::Object(map) => 2 + map.iter().map(|(name, item)| name.len() + 4 + weight(item)).sum::<usize>(),
        _ => 8,
    }
}

#[cfg(test)]
mod directive_tests;
#[cfg(test)]
mod operation_tests;
#[cfg(test)]
mod tests;
