//! Objects as protobuf, out of their JSON.
//!
//! What JSON leaves out is left out here too, although Go writes the zero of what is no pointer: whoever reads a
//! message has the zero anyway.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::table::{
    Field, JSON_SCHEMA, MESSAGES, Repeat, Type, is_list_of_text, json_name, message_of, structure, structure_of,
    type_of,
};
use super::{MAGIC, MAX_DEPTH};
use crate::jiff::Timestamp;
use crate::kinds::Row;
use crate::schema::Shape;
use crate::schema::types::Struct;
use crate::status::Status;
use crate::table::META_V1BETA1;

/// The messages of lists: metadata (1), items (2).
const LIST_META: &str = "apimachinery.pkg.apis.meta.v1.ListMeta";
/// `contentEncoding` (3) and `contentType` (4) of an envelope, which Go always writes.
const ENVELOPE_END: &[u8] = b"\x1a\0\x22\0";

/// Whether a kind's objects have a message; those of custom resources have none.
pub fn has_message(kind: &Row) -> bool {
    kind.custom.is_none() && MESSAGES.contains_key(message_of(&kind.type_name).as_str())
}

/// An object in its envelope, of whatever type it says it is.
///
/// # Errors
/// 406 for what has no message, 500 for an object that is not as its type's are.
pub fn write_any(object: &Value) -> Result<Vec<u8>, Status> {
    let (api_version, kind) = (text(object, "apiVersion"), text(object, "kind"));
    write(&type_of(api_version, kind), object)
}

/// An object of a type (`io.k8s.api.apps.v1.Deployment`) in its envelope.
///
/// # Errors
/// As [`write_any`].
pub fn write(type_name: &str, object: &Value) -> Result<Vec<u8>, Status> {
    let raw = message(type_name, object)?;
    let mut out = envelope(text(object, "apiVersion"), text(object, "kind"));
    put_bytes(&mut out, 2, &raw);
    out.extend_from_slice(ENVELOPE_END);
    Ok(out)
}

/// An object's message alone, as it stands in a list.
///
/// # Errors
/// As [`write_any`].
pub fn message(type_name: &str, object: &Value) -> Result<Vec<u8>, Status> {
    let message = message_of(type_name);
    if !MESSAGES.contains_key(message.as_str()) {
        let why = format!("object {type_name} cannot be encoded to a protobuf message");
        return Err(Status::new(406, "NotAcceptable", why));
    }
    let mut out = Vec::new();
    object
        .as_object()
        .and_then(|object| fields(&message, structure_of(type_name), object, &mut out, 0))
        .ok_or_else(|| Status::internal(format!("a stored object is not as {type_name} is")))?;
    Ok(out)
}

/// What stands before the items of a list that has `length` bytes of items, each as [`item`] begins it.
pub fn list_head(api_version: &str, kind: &str, metadata: &Value, length: u64) -> Vec<u8> {
    let mut list_meta = Vec::new();
    if let Some(metadata) = metadata.as_object() {
        // It has four fields, all of them simple.
        let _ = fields(LIST_META, None, metadata, &mut list_meta, 0);
    }
    let mut meta = Vec::new();
    put_bytes(&mut meta, if item_field(api_version) == 1 { 2 } else { 1 }, &list_meta);
    let mut out = envelope(api_version, kind);
    put_tag(&mut out, 2, 2);
    put_varint(&mut out, meta.len() as u64 + length);
    out.extend_from_slice(&meta);
    out
}

/// A field of bytes.
pub fn field(number: u64, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 6);
    put_bytes(&mut out, number, bytes);
    out
}

/// What stands after a list's items.
pub fn list_tail() -> &'static [u8] {
    ENVELOPE_END
}

/// The number of the items' field in the lists of a group's version: 2 (metadata have 1), but for
/// `meta.k8s.io/v1beta1`, where it is the other way round.
pub fn item_field(api_version: &str) -> u64 {
    if api_version == META_V1BETA1 { 1 } else { 2 }
}

/// What stands before an item of a list: its field's number ([`item_field`]) and its length.
pub fn item(number: u64, length: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(6);
    put_tag(&mut out, number, 2);
    put_varint(&mut out, length as u64);
    out
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get(field).and_then(Value::as_str).unwrap_or("")
}

/// Up to the message: type meta (1).
fn envelope(api_version: &str, kind: &str) -> Vec<u8> {
    let mut meta = Vec::new();
    put_bytes(&mut meta, 1, api_version.as_bytes());
    put_bytes(&mut meta, 2, kind.as_bytes());
    let mut out = MAGIC.to_vec();
    put_bytes(&mut out, 1, &meta);
    out
}

/// A JSON object's fields in the order of their numbers. `None` for a value that its field cannot have; what the
/// message has no field for is left out.
fn fields(
    message: &str,
    this: Option<&'static Struct>,
    object: &Map<String, Value>,
    out: &mut Vec<u8>,
    depth: usize,
) -> Option<()> {
    if depth > MAX_DEPTH {
        return None;
    }
    let table = MESSAGES.get(message)?;
    let mut found = vec![None; table.len()];
    let mut known = 0;
    for (key, value) in object.iter().filter(|(_, value)| !value.is_null()) {
        if let Some(index) = table.iter().position(|field| field.name.eq_ignore_ascii_case(key)) {
            let shape = this.and_then(|this| this.field(key)).map_or(Shape::Any, |field| field.shape);
            found[index] = Some((value, shape));
            known += 1;
        }
    }
    let has_others = known < object.len();
    for (field, found) in table.iter().zip(found) {
        match (found, field.type_) {
            (Some((value, shape)), _) => put_field(out, field, value, shape, depth)?,
            // Embedded in Go: its fields are this object's own.
            (None, Type::Message(inner))
                if has_others
                    && this.is_some()
                    && field.repeat == Repeat::Once
                    && json_name(this, field.name).is_none() =>
            {
                let mut embedded = Vec::new();
                fields(inner, this, object, &mut embedded, depth + 1)?;
                if !embedded.is_empty() {
                    put_bytes(out, field.number, &embedded);
                }
            }
            (None, _) => {}
        }
    }
    Some(())
}

fn put_field(out: &mut Vec<u8>, field: &Field, value: &Value, shape: Shape, depth: usize) -> Option<()> {
    match field.repeat {
        Repeat::Once => put(out, field.number, field.type_, value, shape, depth),
        Repeat::List => value
            .as_array()?
            .iter()
            .try_for_each(|item| put(out, field.number, field.type_, item, super::inner(shape), depth)),
        Repeat::Map => value.as_object()?.iter().try_for_each(|(key, value)| {
            let mut entry = Vec::new();
            put_bytes(&mut entry, 1, key.as_bytes());
            put(&mut entry, 2, field.type_, value, super::inner(shape), depth)?;
            put_bytes(out, field.number, &entry);
            Some(())
        }),
    }
}

/// One field with its value.
fn put(out: &mut Vec<u8>, number: u64, type_: Type, value: &Value, shape: Shape, depth: usize) -> Option<()> {
    let mut part = Vec::new();
    match type_ {
        Type::Text => part.extend_from_slice(value.as_str()?.as_bytes()),
        // `null` for an entry without a value.
        Type::Bytes if value.is_null() => {}
        Type::Bytes => part = STANDARD.decode(value.as_str()?).ok()?,
        Type::Bool => {
            put_tag(out, number, 0);
            put_varint(out, u64::from(value.as_bool()?));
            return Some(());
        }
        Type::Integer => {
            put_tag(out, number, 0);
            put_varint(out, whole(value)?.cast_unsigned());
            return Some(());
        }
        Type::Double => {
            put_tag(out, number, 1);
            out.extend_from_slice(&value.as_f64()?.to_bits().to_le_bytes());
            return Some(());
        }
        Type::Time | Type::MicroTime if value.is_null() => {}
        Type::Time | Type::MicroTime => put_time(&mut part, value.as_str()?)?,
        Type::Duration => {
            put_tag(&mut part, 1, 0);
            put_varint(&mut part, nanoseconds(value.as_str()?)?.cast_unsigned());
        }
        Type::Quantity => match value {
            Value::String(text) => put_bytes(&mut part, 1, text.as_bytes()),
            Value::Number(number) => put_bytes(&mut part, 1, number.to_string().as_bytes()),
            _ => return None,
        },
        Type::IntOrString => match value {
            Value::String(text) => {
                put_tag(&mut part, 1, 0);
                put_varint(&mut part, 1);
                put_tag(&mut part, 2, 0);
                put_varint(&mut part, 0);
                put_bytes(&mut part, 3, text.as_bytes());
            }
            number => {
                put_tag(&mut part, 1, 0);
                put_varint(&mut part, 0);
                put_tag(&mut part, 2, 0);
                put_varint(&mut part, whole(number)?.cast_unsigned());
                put_bytes(&mut part, 3, b"");
            }
        },
        Type::Raw => put_bytes(&mut part, 1, value.to_string().as_bytes()),
        Type::SchemaOrBool | Type::SchemaOrArray | Type::SchemaOrTexts => {
            put_schema_or(&mut part, type_, value, depth)?
        }
        Type::Message(message) if is_list_of_text(message) => {
            value
                .as_array()?
                .iter()
                .try_for_each(|item| item.as_str().map(|text| put_bytes(&mut part, 1, text.as_bytes())))?;
        }
        Type::Message(message) => fields(message, structure(shape, message), value.as_object()?, &mut part, depth + 1)?,
    }
    put_bytes(out, number, &part);
    Some(())
}

/// See [`super::schema_or`].
fn put_schema_or(out: &mut Vec<u8>, type_: Type, value: &Value, depth: usize) -> Option<()> {
    let schema = Type::Message(JSON_SCHEMA);
    match (type_, value) {
        (Type::SchemaOrBool, value) => {
            put(out, 1, Type::Bool, &Value::Bool(value.as_bool().unwrap_or(true)), Shape::Any, depth)?;
            if value.is_object() { put(out, 2, schema, value, Shape::Any, depth + 1) } else { Some(()) }
        }
        (Type::SchemaOrArray, Value::Array(all)) => {
            all.iter().try_for_each(|item| put(out, 2, schema, item, Shape::Any, depth + 1))
        }
        (_, Value::Array(all)) => all.iter().try_for_each(|item| put(out, 2, Type::Text, item, Shape::Any, depth)),
        (_, value) => put(out, 1, schema, value, Shape::Any, depth + 1),
    }
}

/// An integer, also one that JSON has as `1.0`.
fn whole(value: &Value) -> Option<i64> {
    #[expect(clippy::cast_possible_truncation, reason = "a float that is no integer is refused")]
    value.as_i64().or_else(|| value.as_f64().filter(|number| number.fract() == 0.0).map(|number| number as i64))
}

fn put_time(out: &mut Vec<u8>, text: &str) -> Option<()> {
    let time: Timestamp = text.parse().ok()?;
    // Nanoseconds count forwards, also before 1970.
    let nanos = time.subsec_nanosecond();
    let (seconds, nanos) =
        if nanos < 0 { (time.as_second() - 1, nanos + 1_000_000_000) } else { (time.as_second(), nanos) };
    put_tag(out, 1, 0);
    put_varint(out, seconds.cast_unsigned());
    put_tag(out, 2, 0);
    put_varint(out, i64::from(nanos).cast_unsigned());
    Some(())
}

/// `20s`, `1.5s`.
fn nanoseconds(text: &str) -> Option<i64> {
    let seconds: f64 = text.strip_suffix('s')?.parse().ok()?;
    #[expect(clippy::cast_possible_truncation, reason = "saturates")]
    let nanoseconds = (seconds * 1e9) as i64;
    Some(nanoseconds)
}

fn put_bytes(out: &mut Vec<u8>, number: u64, bytes: &[u8]) {
    put_tag(out, number, 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_tag(out: &mut Vec<u8>, number: u64, wire: u64) {
    put_varint(out, number << 3 | wire);
}

/// Adds a number as groups of seven bits, the lowest first.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push((value & 0x7f) as u8);
}
