//! Kubernetes' protobuf: objects in it are read as JSON, and written from JSON ([`write`]).
//!
//! The numbers of the fields come from a table (`fields.txt`), their JSON names from the schemas. Custom resources have
//! no messages: they are JSON alone, as upstream.

mod table;
#[cfg(test)]
mod tests;
mod write;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value};

use self::table::{
    JSON_SCHEMA, MESSAGES, Named, Repeat, Type, is_list_of_text, json_name, message_of, structure, structure_of,
    type_of,
};
pub use self::write::{
    field, has_message, item, item_field, list_head, list_tail, message, put_varint, write, write_any,
};
use crate::jiff;
use crate::kinds::Kind;
use crate::schema::Shape;
use crate::schema::budget::Budget;
use crate::schema::parse;
use crate::schema::types::Struct;
use crate::status::Status;

/// The content type.
pub const CONTENT_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// The content type of a watch in protobuf, as upstream says it.
pub const WATCH_CONTENT_TYPE: &str = "application/vnd.kubernetes.protobuf;stream=watch";
/// What every body begins with.
pub const MAGIC: &[u8] = b"k8s\0";
/// Messages inside messages, at most.
const MAX_DEPTH: usize = 64;

/// Reads a body that is to be an object of a kind.
///
/// # Errors
/// 400 for anything else.
pub fn read(kind: &Kind, body: &[u8]) -> Result<Value, Status> {
    let (api_version, kind_name, raw) = envelope(body)?;
    let known = [kind.type_name.to_string(), type_of(&api_version, &kind_name)];
    let name = if kind_name == kind.kind || kind_name.is_empty() { &known[0] } else { &known[1] };
    read_as(name, &api_version, &kind_name, raw)
}

/// Reads a body of whatever type its envelope names: reviews, options, what is posted to subresources.
///
/// # Errors
/// 400 for a type that is not known, and for bytes that are no such message.
pub fn read_any(body: &[u8]) -> Result<Value, Status> {
    let (api_version, kind_name, raw) = envelope(body)?;
    read_as(&type_of(&api_version, &kind_name), &api_version, &kind_name, raw)
}

fn read_as(type_name: &str, api_version: &str, kind: &str, raw: &[u8]) -> Result<Value, Status> {
    let message = message_of(type_name);
    if !MESSAGES.contains_key(message.as_str()) {
        return Err(Status::bad_request(format!(
            "no kind {kind:?} is registered for version {api_version:?} in protobuf"
        )));
    }
    let mut object = Map::new();
    let at = At { depth: 0, budget: &Budget::default() };
    fields(&message, structure_of(type_name), raw, &mut object, at).ok_or_else(|| {
        Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {kind}): the protobuf message is damaged, or it has \
                too many parts"
        ))
    })?;
    object.insert("apiVersion".to_owned(), api_version.into());
    object.insert("kind".to_owned(), kind.into());
    Ok(Value::Object(object))
}

/// `runtime.Unknown`: type meta (1), raw message (2).
fn envelope(body: &[u8]) -> Result<(String, String, &[u8]), Status> {
    let fails = || Status::bad_request("provided data does not appear to be a protobuf message");
    let mut rest = Reader(body.strip_prefix(MAGIC).ok_or_else(fails)?);
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    while !rest.0.is_empty() {
        match rest.field().ok_or_else(fails)? {
            (1, Wire::Bytes(meta)) => {
                let mut meta = Reader(meta);
                while !meta.0.is_empty() {
                    match meta.field().ok_or_else(fails)? {
                        (1, Wire::Bytes(text)) => api_version = String::from_utf8_lossy(text).into_owned(),
                        (2, Wire::Bytes(text)) => kind = String::from_utf8_lossy(text).into_owned(),
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    Ok((api_version, kind, raw))
}

fn inner(shape: Shape) -> Shape {
    match shape {
        Shape::List(item) | Shape::Map(item) => *item,
        other => other,
    }
}

/// How far inside a body a reader is, and what the body may still come to.
#[derive(Clone, Copy)]
struct At<'a> {
    depth: usize,
    budget: &'a Budget,
}

impl At<'_> {
    fn deeper(self) -> Self {
        Self { depth: self.depth + 1, ..self }
    }
}

/// Reads a message's fields into a JSON object. `None` for bytes that are no such message. Fields that are not known
/// are left out, as upstream does.
fn fields(
    message: &str,
    this: Option<&'static Struct>,
    bytes: &[u8],
    into: &mut Map<String, Value>,
    at: At<'_>,
) -> Option<()> {
    if at.depth > MAX_DEPTH {
        return None;
    }
    let table = MESSAGES.get(message)?;
    let mut rest = Reader(bytes);
    while !rest.0.is_empty() {
        let (number, wire) = rest.field()?;
        let Some(field) = table.iter().find(|field| field.number == number) else { continue };
        let Some(Named { name, shape, is_omitted }) = json_name(this, field.name) else {
            // Embedded in Go, so its fields are this object's own.
            if let (Type::Message(inner), Repeat::Once, Wire::Bytes(bytes)) = (field.type_, field.repeat, wire) {
                fields(inner, this, bytes, into, at.deeper())?;
            }
            continue;
        };
        match field.repeat {
            Repeat::Once => {
                let value = value(field.type_, shape, wire, at)?;
                if is_set(this, is_omitted, field.type_, &value) {
                    at.budget.field(into.len(), name).ok()?;
                    into.insert(name.to_owned(), value);
                }
            }
            Repeat::List => {
                let value = value(field.type_, inner(shape), wire, at)?;
                at.budget.item().ok()?;
                into.entry(name).or_insert_with(|| Value::Array(Vec::new())).as_array_mut()?.push(value);
            }
            Repeat::Map => {
                let Wire::Bytes(bytes) = wire else { return None };
                let (key, value) = entry(field.type_, inner(shape), bytes, at)?;
                let map = into.entry(name).or_insert_with(|| Value::Object(Map::new())).as_object_mut()?;
                at.budget.field(map.len(), &key).ok()?;
                map.insert(key, value);
            }
        }
    }
    Some(())
}

/// Whether a value that was sent is one that JSON has: the two forms of one object must not differ, or a later PUT in
/// the other form is a change (S11).
fn is_set(this: Option<&'static Struct>, is_omitted: bool, type_: Type, value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(is) => *is || !is_omitted,
        // Go never leaves out a struct.
        Value::Number(number) => type_ == Type::IntOrString || !is_omitted || number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty() || !is_omitted && type_ == Type::Text && this.is_some(),
        Value::Object(_) | Value::Array(_) => true,
    }
}

/// A map's entry: key (1), value (2).
fn entry(type_: Type, shape: Shape, bytes: &[u8], at: At<'_>) -> Option<(String, Value)> {
    let mut rest = Reader(bytes);
    let (mut key, mut found) = (String::new(), Value::Null);
    if matches!(type_, Type::Text | Type::Bytes) {
        found = Value::String(String::new());
    }
    while !rest.0.is_empty() {
        match rest.field()? {
            (1, Wire::Bytes(text)) => key = std::str::from_utf8(text).ok()?.to_owned(),
            (2, wire) => found = value(type_, shape, wire, at)?,
            _ => {}
        }
    }
    Some((key, found))
}

fn value(type_: Type, shape: Shape, wire: Wire<'_>, at: At<'_>) -> Option<Value> {
    if let Wire::Bytes(bytes) = wire
        && !matches!(type_, Type::Message(_))
    {
        at.budget.bytes(bytes.len()).ok()?;
    }
    Some(match (type_, wire) {
        (Type::Text, Wire::Bytes(bytes)) => Value::String(std::str::from_utf8(bytes).ok()?.to_owned()),
        (Type::Bytes, Wire::Bytes(bytes)) => Value::String(STANDARD.encode(bytes)),
        (Type::Bool, Wire::Varint(number)) => Value::Bool(number != 0),
        (Type::Integer, Wire::Varint(number)) => Value::from(number.cast_signed()),
        (Type::Double, Wire::Fixed64(bits)) => double(f64::from_bits(bits)),
        (Type::Duration, Wire::Bytes(bytes)) => match Reader(bytes).find(1)? {
            Some(Wire::Varint(nanos)) => duration(nanos.cast_signed()),
            _ => duration(0),
        },
        (Type::SchemaOrBool | Type::SchemaOrArray | Type::SchemaOrTexts, Wire::Bytes(bytes)) => {
            schema_or(type_, bytes, at.deeper())?
        }
        (Type::Time, Wire::Bytes(bytes)) => time(bytes, crate::time::rfc3339)?,
        (Type::MicroTime, Wire::Bytes(bytes)) => time(bytes, crate::time::micro)?,
        (Type::Quantity, Wire::Bytes(bytes)) => match Reader(bytes).find(1)? {
            Some(Wire::Bytes(text)) => Value::String(std::str::from_utf8(text).ok()?.to_owned()),
            _ => Value::Null,
        },
        (Type::IntOrString, Wire::Bytes(bytes)) => int_or_string(bytes)?,
        (Type::Raw, Wire::Bytes(bytes)) => match Reader(bytes).find(1)? {
            Some(Wire::Bytes(raw)) => parse::parse_within(raw, at.budget).ok()?,
            _ => Value::Null,
        },
        (Type::Message(message), Wire::Bytes(bytes)) => match is_list_of_text(message) {
            // `ExtraValue`: a message in protobuf, a list in JSON.
            true => {
                let mut wrapped = Map::new();
                let mut rest = Reader(bytes);
                let items = wrapped.entry("items").or_insert_with(|| Value::Array(Vec::new()));
                while !rest.0.is_empty() {
                    if let (1, Wire::Bytes(text)) = rest.field()? {
                        at.budget.item().ok()?;
                        at.budget.bytes(text.len()).ok()?;
                        items.as_array_mut()?.push(std::str::from_utf8(text).ok()?.into());
                    }
                }
                wrapped.remove("items")?
            }
            false => {
                let mut object = Map::new();
                fields(message, structure(shape, message), bytes, &mut object, at.deeper())?;
                Value::Object(object)
            }
        },
        _ => return None,
    })
}

/// A number as Go's JSON has it: without a fraction where there is none.
fn double(number: f64) -> Value {
    #[expect(clippy::cast_possible_truncation, reason = "whole, and far inside the range")]
    let whole = (number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i64);
    whole.map_or_else(|| Value::from(number), Value::from)
}

/// `20s`, as Go prints what has no minutes.
fn duration(nanos: i64) -> Value {
    Value::String(format!("{}s", double(Duration::from_nanos(nanos.unsigned_abs()).as_secs_f64())))
}

/// What may be a schema or something simpler: each has the schema in one field and the other in another.
fn schema_or(type_: Type, bytes: &[u8], at: At<'_>) -> Option<Value> {
    let mut rest = Reader(bytes);
    let (mut found, mut list) = (None, Vec::new());
    let schema = |bytes| value(Type::Message(JSON_SCHEMA), Shape::Any, Wire::Bytes(bytes), at);
    while !rest.0.is_empty() {
        match (type_, rest.field()?) {
            (Type::SchemaOrBool, (1, Wire::Varint(allows))) => {
                found.get_or_insert(Value::Bool(allows != 0));
            }
            (Type::SchemaOrBool, (2, Wire::Bytes(bytes))) => found = Some(schema(bytes)?),
            (Type::SchemaOrTexts, (2, Wire::Bytes(text))) => {
                at.budget.item().ok()?;
                list.push(std::str::from_utf8(text).ok()?.into());
            }
            (Type::SchemaOrArray, (2, Wire::Bytes(bytes))) => {
                at.budget.item().ok()?;
                list.push(schema(bytes)?);
            }
            (Type::SchemaOrArray | Type::SchemaOrTexts, (1, Wire::Bytes(bytes))) => found = Some(schema(bytes)?),
            _ => {}
        }
    }
    Some(found.unwrap_or(match type_ {
        Type::SchemaOrBool => Value::Bool(false),
        _ => Value::Array(list),
    }))
}

/// Seconds (1) and nanoseconds (2) since 1970; an empty message is Go's zero time, which JSON has as null.
fn time(bytes: &[u8], print: fn(Timestamp) -> String) -> Option<Value> {
    let (mut seconds, mut nanos) = (0_i64, 0_i64);
    let mut rest = Reader(bytes);
    while !rest.0.is_empty() {
        match rest.field()? {
            (1, Wire::Varint(number)) => seconds = number.cast_signed(),
            (2, Wire::Varint(number)) => nanos = number.cast_signed(),
            _ => {}
        }
    }
    // Go's zero time is in the year 1.
    if bytes.is_empty() || seconds <= -62_135_596_800 {
        return Some(Value::Null);
    }
    let time = Timestamp::new(seconds, i32::try_from(nanos).ok()?).ok()?;
    Some(Value::String(print(time)))
}

/// Kind (1: 0 is a number), number (2), text (3).
fn int_or_string(bytes: &[u8]) -> Option<Value> {
    let (mut is_text, mut number, mut text) = (false, 0_i64, String::new());
    let mut rest = Reader(bytes);
    while !rest.0.is_empty() {
        match rest.field()? {
            (1, Wire::Varint(kind)) => is_text = kind == 1,
            (2, Wire::Varint(found)) => number = found.cast_signed(),
            (3, Wire::Bytes(found)) => text = std::str::from_utf8(found).ok()?.to_owned(),
            _ => {}
        }
    }
    Some(if is_text { text.into() } else { number.into() })
}

/// A field's value as it is on the wire.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32,
}

/// What is left to be read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// The next field's number and value.
    fn field(&mut self) -> Option<(u64, Wire<'a>)> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(u64::from_le_bytes(self.take(8)?.try_into().ok()?)),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Wire::Fixed32
            }
            _ => return None,
        };
        Some((tag >> 3, value))
    }

    /// The last field of a number.
    fn find(mut self, number: u64) -> Option<Option<Wire<'a>>> {
        let mut found = None;
        while !self.0.is_empty() {
            let (this, wire) = self.field()?;
            if this == number {
                found = Some(wire);
            }
        }
        Some(found)
    }
}
