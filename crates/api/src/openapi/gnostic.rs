//! A Swagger document as the protobuf messages of gnostic's `openapi.v2`, as far as ours uses them.
//!
//! Field numbers are those of `OpenAPIv2.proto`. A map is a repeated message of name and value; an
//! extension's value is its JSON as text (a subset of YAML, which clients parse it as).

use serde_json::{Map, Value};

use super::Document;
use crate::protobuf::put_varint;

/// Schemas nest a few levels; a deeper one is cut off rather than followed.
const MAX_DEPTH: usize = 32;

/// A message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, value: u64) {
        put_varint(&mut self.0, value);
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    /// A string; an empty one is the default and is not written.
    fn text(&mut self, field: u32, text: &str) {
        if !text.is_empty() {
            self.bytes(field, text.as_bytes());
        }
    }

    fn flag(&mut self, field: u32, value: bool) {
        if value {
            self.varint(u64::from(field) << 3);
            self.varint(1);
        }
    }

    fn message(&mut self, field: u32, message: Message) {
        self.bytes(field, &message.0);
    }

    /// One entry of a map.
    fn named(&mut self, field: u32, name: &str, value: Message) {
        let mut entry = Message::default();
        entry.text(1, name);
        entry.message(2, value);
        self.message(field, entry);
    }

    /// All `x-` fields of an object.
    fn extensions(&mut self, field: u32, object: &Value) {
        for (name, value) in entries(object).filter(|(name, _)| name.starts_with("x-")) {
            let mut any = Message::default();
            any.text(2, &value.to_string());
            self.named(field, name, any);
        }
    }
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or("")
}

/// The document of a Swagger 2.0 JSON.
pub(super) fn document(source: &Document) -> Vec<u8> {
    let json = source.base();
    let mut document = Message::default();
    document.text(1, text(json, "swagger"));
    let mut info = Message::default();
    info.text(1, text(&json["info"], "title"));
    info.text(2, text(&json["info"], "version"));
    document.message(2, info);
    let mut paths = Message::default();
    for (path, item) in entries(&json["paths"]) {
        paths.named(2, path, path_item(item));
    }
    document.message(8, paths);
    let mut definitions = Message::default();
    for (name, definition) in entries(&json["definitions"]) {
        definitions.named(1, name, schema(&source.schema(name, definition), 0));
    }
    document.message(9, definitions);
    document.0
}

fn path_item(json: &Value) -> Message {
    let mut item = Message::default();
    for (method, field) in [("get", 2), ("put", 3), ("post", 4), ("delete", 5), ("patch", 8)] {
        if let Some(json) = json.get(method) {
            item.message(field, operation(json));
        }
    }
    item
}

fn operation(json: &Value) -> Message {
    let mut operation = Message::default();
    for parameter in json["parameters"].as_array().into_iter().flatten() {
        let mut query = Message::default();
        query.text(2, text(parameter, "in"));
        query.text(4, text(parameter, "name"));
        query.text(6, text(parameter, "type"));
        query.flag(20, parameter["uniqueItems"] == true);
        let (mut non_body, mut either, mut item) = (Message::default(), Message::default(), Message::default());
        non_body.message(3, query);
        either.message(2, non_body);
        item.message(1, either);
        operation.message(8, item);
    }
    let mut responses = Message::default();
    for (code, json) in entries(&json["responses"]) {
        let (mut response, mut value) = (Message::default(), Message::default());
        response.text(1, text(json, "description"));
        value.message(1, response);
        responses.named(1, code, value);
    }
    operation.message(9, responses);
    operation.extensions(13, json);
    operation
}

fn schema(json: &Value, depth: usize) -> Message {
    let mut schema_ = Message::default();
    if depth > MAX_DEPTH {
        return schema_;
    }
    schema_.text(1, text(json, "$ref"));
    schema_.text(2, text(json, "format"));
    schema_.text(4, text(json, "description"));
    for required in json["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        schema_.text(19, required);
    }
    if let Some(values) = json.get("additionalProperties") {
        let mut item = Message::default();
        match values {
            Value::Bool(any) => item.flag(2, *any),
            values => item.message(1, schema(values, depth + 1)),
        }
        schema_.message(21, item);
    }
    if let Some(type_) = json.get("type").and_then(Value::as_str) {
        let mut item = Message::default();
        item.text(1, type_);
        schema_.message(22, item);
    }
    if let Some(items) = json.get("items") {
        let mut item = Message::default();
        item.message(1, schema(items, depth + 1));
        schema_.message(23, item);
    }
    if let Some(fields) = json.get("properties") {
        let mut properties = Message::default();
        for (name, field) in entries(fields) {
            properties.named(1, name, schema(field, depth + 1));
        }
        schema_.message(25, properties);
    }
    schema_.extensions(31, json);
    schema_
}
