//! Values. Those of an object are not copied: they are looked at where they are, under the types that are declared.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine as _;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value as Json;

use super::Error;
use super::library::net::{Cidr, Url};
use super::library::semver::Semver;
use super::library::time;
use super::types::{ListKind, Type};
use crate::quantity::Quantity;

/// A value. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Text<'a>),
    Bytes(Arc<[u8]>),
    Duration(SignedDuration),
    Timestamp(Timestamp),
    /// A type, by its name.
    Type(Arc<str>),
    List(List<'a>),
    Map(Map<'a>),
    Optional(Option<Arc<Self>>),
    Quantity(Quantity),
    Semver(Arc<Semver>),
    Url(Arc<Url>),
    Ip(IpAddr),
    Cidr(Cidr),
    /// A named format of texts.
    Format(&'static str),
    /// Something of the caller's.
    Opaque(Arc<dyn Opaque>),
}

/// Something of the caller's that has functions: an authorizer.
pub trait Opaque: fmt::Debug + Send + Sync {
    /// The name of its type.
    fn type_name(&self) -> &'static str;
    /// A member function's result; none where it has no such function for these arguments.
    fn call(&self, function: &str, args: &[Value<'_>]) -> Option<Result<Value<'static>, Error>>;
}

/// A text that is an object's, or was made.
#[derive(Clone, Debug)]
pub enum Text<'a> {
    Of(&'a str),
    Made(Arc<str>),
}

impl std::ops::Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Of(text) => text,
            Self::Made(text) => text,
        }
    }
}

/// A list of an object, or one that was made.
#[derive(Clone, Debug)]
pub enum List<'a> {
    /// Items, their type, and how the list compares.
    Of(&'a [Json], &'a Type, &'a ListKind),
    /// Items, and how the list compares.
    Made(Arc<Vec<Value<'a>>>, ListKind),
}

/// A map or object.
#[derive(Clone, Debug)]
pub enum Map<'a> {
    /// Fields, and the type of the whole.
    Of(&'a serde_json::Map<String, Json>, &'a Type),
    Made(Arc<BTreeMap<Key, Value<'a>>>),
}

/// A key of a map that was made. Whole numbers are one kind of key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Bool(bool),
    Int(i128),
    String(Arc<str>),
}

impl Key {
    /// As a value again.
    pub fn value(&self) -> Value<'static> {
        match self {
            Self::Bool(flag) => Value::Bool(*flag),
            Self::Int(number) => i64::try_from(*number)
                .map(Value::Int)
                .or_else(|_| u64::try_from(*number).map(Value::Uint))
                .unwrap_or(Value::Null),
            Self::String(text) => Value::String(Text::Made(text.clone())),
        }
    }
}

static DYN: Type = Type::Dyn;
static ATOMIC: ListKind = ListKind::Atomic;

impl<'a> Value<'a> {
    /// A text.
    pub fn text(text: impl Into<Arc<str>>) -> Self {
        Self::String(Text::Made(text.into()))
    }

    /// A list of these.
    pub fn list(items: Vec<Self>) -> Self {
        Self::List(List::Made(Arc::new(items), ListKind::Atomic))
    }

    /// What is there, or is not.
    pub fn optional(inner: Option<Self>) -> Self {
        Self::Optional(inner.map(Arc::new))
    }

    /// A JSON value under the type that was declared for it. What is not of its type is taken as it is.
    pub fn of(json: &'a Json, type_: &'a Type) -> Self {
        match (json, type_) {
            (Json::Null, _) => Self::Null,
            (Json::Bool(flag), _) => Self::Bool(*flag),
            (Json::Number(number), Type::Double) => Self::Double(number.as_f64().unwrap_or(f64::NAN)),
            (Json::Number(number), Type::Int) => match number.as_i64() {
                Some(number) => Self::Int(number),
                None => Self::Int(number.as_f64().unwrap_or(0.0) as i64),
            },
            (Json::Number(number), _) => match (number.as_i64(), number.as_u64()) {
                (Some(number), _) => Self::Int(number),
                (None, Some(number)) => Self::Uint(number),
                _ => Self::Double(number.as_f64().unwrap_or(f64::NAN)),
            },
            (Json::String(text), Type::Timestamp) => {
                time::timestamp(text).map_or(Self::String(Text::Of(text)), Self::Timestamp)
            }
            (Json::String(text), Type::Duration) => {
                time::duration(text).map_or(Self::String(Text::Of(text)), Self::Duration)
            }
            (Json::String(text), Type::Bytes) => base64::engine::general_purpose::STANDARD
                .decode(text)
                .map_or(Self::String(Text::Of(text)), |bytes| Self::Bytes(bytes.into())),
            (Json::String(text), _) => Self::String(Text::Of(text)),
            (Json::Array(items), Type::List(item, kind)) => Self::List(List::Of(items, item, kind)),
            (Json::Array(items), _) => Self::List(List::Of(items, &DYN, &ATOMIC)),
            (Json::Object(fields), type_) => Self::Map(Map::Of(fields, type_)),
        }
    }

    /// A JSON value without a declared type.
    pub fn json(json: &'a Json) -> Self {
        Self::of(json, &DYN)
    }

    /// The flag, where it is one.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(flag) => Some(*flag),
            _ => None,
        }
    }

    /// The text, where it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// As JSON; times and the like as their texts. What is nested without end is cut off.
    pub fn to_json(&self) -> Json {
        self.to_json_within(super::parse::MAX_DEPTH)
    }

    fn to_json_within(&self, depth: usize) -> Json {
        let Some(depth) = depth.checked_sub(1) else { return Json::Null };
        match self {
            Self::Null | Self::Optional(None) => Json::Null,
            Self::Bool(flag) => Json::Bool(*flag),
            Self::Int(number) => (*number).into(),
            Self::Uint(number) => (*number).into(),
            Self::Double(number) => (*number).into(),
            Self::String(text) => (**text).into(),
            Self::Bytes(bytes) => base64::engine::general_purpose::STANDARD.encode(bytes).into(),
            Self::Optional(Some(inner)) => inner.to_json_within(depth),
            Self::List(List::Of(items, ..)) => Json::Array(items.to_vec()),
            Self::List(List::Made(items, _)) => items.iter().map(|item| item.to_json_within(depth)).collect(),
            Self::Map(Map::Of(fields, _)) => Json::Object((*fields).clone()),
            Self::Map(Map::Made(entries)) => {
                let entries = entries.iter().map(|(key, value)| (key.value().shown(), value.to_json_within(depth)));
                Json::Object(entries.collect())
            }
            other => other.shown().into(),
        }
    }

    /// As `string(…)` shows it.
    pub fn shown(&self) -> String {
        match self {
            Self::Bool(flag) => flag.to_string(),
            Self::Int(number) => number.to_string(),
            Self::Uint(number) => number.to_string(),
            Self::Double(number) => shown_double(*number),
            Self::String(text) => text.to_string(),
            Self::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Self::Duration(duration) => time::shown_duration(*duration),
            Self::Timestamp(at) => at.to_string(),
            Self::Type(name) => name.to_string(),
            Self::Quantity(quantity) => quantity.to_string(),
            Self::Semver(version) => version.to_string(),
            Self::Url(url) => url.text.to_string(),
            Self::Ip(address) => address.to_string(),
            Self::Cidr(range) => range.to_string(),
            Self::Format(name) => (*name).to_owned(),
            Self::Null => "null".to_owned(),
            Self::Opaque(opaque) => opaque.type_name().to_owned(),
            Self::List(_) | Self::Map(_) | Self::Optional(_) => self.to_json().to_string(),
        }
    }

    /// The name of its type.
    pub fn type_name(&self) -> &str {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::String(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::Timestamp(_) => "google.protobuf.Timestamp",
            Self::Type(_) => "type",
            Self::List(_) => "list",
            Self::Map(_) => "map",
            Self::Optional(_) => "optional_type",
            Self::Quantity(_) => "kubernetes.Quantity",
            Self::Semver(_) => "kubernetes.Semver",
            Self::Url(_) => "kubernetes.URL",
            Self::Ip(_) => "net.IP",
            Self::Cidr(_) => "net.CIDR",
            Self::Format(_) => "kubernetes.NamedFormat",
            Self::Opaque(opaque) => opaque.type_name(),
        }
    }

    /// The type of a constant.
    pub fn type_(&self) -> Type {
        match self {
            Self::Null => Type::Null,
            Self::Bool(_) => Type::Bool,
            Self::Int(_) => Type::Int,
            Self::Uint(_) => Type::Uint,
            Self::Double(_) => Type::Double,
            Self::String(_) => Type::String,
            Self::Bytes(_) => Type::Bytes,
            Self::Type(_) => Type::Type,
            _ => Type::Dyn,
        }
    }

    /// As a key of a map; none where it cannot be one.
    pub fn key(&self) -> Option<Key> {
        match self {
            Self::Bool(flag) => Some(Key::Bool(*flag)),
            Self::Int(number) => Some(Key::Int((*number).into())),
            Self::Uint(number) => Some(Key::Int((*number).into())),
            Self::Double(number) if number.fract() == 0.0 && number.abs() < 9e15 => Some(Key::Int(*number as i128)),
            Self::String(text) => Some(Key::String((**text).into())),
            _ => None,
        }
    }

    /// Whether it is what a field has that nobody set.
    pub fn is_zero(&self) -> bool {
        match self {
            Self::Null | Self::Optional(None) => true,
            Self::Bool(flag) => !flag,
            Self::Int(number) => *number == 0,
            Self::Uint(number) => *number == 0,
            Self::Double(number) => *number == 0.0,
            Self::String(text) => text.is_empty(),
            Self::Bytes(bytes) => bytes.is_empty(),
            Self::List(list) => list.count() == 0,
            Self::Map(map) => map.count() == 0,
            Self::Duration(duration) => duration.is_zero(),
            _ => false,
        }
    }

    /// How many parts of cost it is to look at all of it.
    pub fn size(&self) -> u64 {
        let size = match self {
            Self::String(text) => text.len(),
            Self::Bytes(bytes) => bytes.len(),
            Self::List(list) => list.count(),
            Self::Map(map) => map.count(),
            _ => 1,
        };
        size as u64
    }
}

fn shown_double(number: f64) -> String {
    match number {
        _ if number.is_nan() => "NaN".to_owned(),
        f64::INFINITY => "+Inf".to_owned(),
        f64::NEG_INFINITY => "-Inf".to_owned(),
        _ => number.to_string(),
    }
}

impl<'a> List<'a> {
    /// How many there are.
    pub fn count(&self) -> usize {
        match self {
            Self::Of(items, ..) => items.len(),
            Self::Made(items, _) => items.len(),
        }
    }

    pub fn get(&self, index: usize) -> Option<Value<'a>> {
        match self {
            Self::Of(items, type_, _) => items.get(index).map(|item| Value::of(item, type_)),
            Self::Made(items, _) => items.get(index).cloned(),
        }
    }

    /// The items.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + '_ {
        (0..self.count()).filter_map(|index| self.get(index))
    }

    /// How it compares and joins.
    pub fn kind(&self) -> &ListKind {
        match self {
            Self::Of(_, _, kind) => kind,
            Self::Made(_, kind) => kind,
        }
    }
}

impl<'a> Map<'a> {
    /// How many there are.
    pub fn count(&self) -> usize {
        match self {
            Self::Of(fields, _) => fields.len(),
            Self::Made(entries) => entries.len(),
        }
    }

    /// What an expression's `.field` selects.
    pub fn select(&self, field: &str) -> Option<Value<'a>> {
        match self {
            Self::Of(fields, Type::Object(object)) => {
                let (name, type_) = object.field(field)?;
                fields.get(name).map(|json| Value::of(json, type_))
            }
            _ => self.get(&Key::String(field.trim_start_matches('`').into())),
        }
    }

    /// What is at a key.
    pub fn get(&self, key: &Key) -> Option<Value<'a>> {
        match (self, key) {
            (Self::Made(entries), _) => entries.get(key).cloned(),
            (Self::Of(fields, type_), Key::String(name)) => {
                fields.get(&**name).map(|json| Self::below(type_, name, json))
            }
            _ => None,
        }
    }

    fn below(type_: &'a Type, name: &str, json: &'a Json) -> Value<'a> {
        match type_ {
            Type::Map(_, value) => Value::of(json, value),
            Type::Object(object) => {
                let found = object.fields().find(|(known, _)| *known == name);
                Value::of(json, found.map_or(&DYN, |(_, type_)| type_))
            }
            _ => Value::json(json),
        }
    }

    /// Keys and values, by key.
    pub fn entries(&self) -> Vec<(Key, Value<'a>)> {
        match self {
            Self::Of(fields, type_) => {
                let all = fields.iter();
                all.map(|(name, json)| (Key::String(name.as_str().into()), Self::below(type_, name, json))).collect()
            }
            Self::Made(entries) => entries.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
        }
    }
}
