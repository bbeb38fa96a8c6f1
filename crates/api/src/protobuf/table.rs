//! Which fields the messages have: what reading and writing share.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use crate::schema::types::{Struct, known};
use crate::schema::{Shape, shape_of};

/// JSON names of messages that are no top-level types, so that there is no schema of them.
pub const UNSCHEMED: &[&str] = &[
    "deleteOptions",
    "dryRun",
    "gracePeriodSeconds",
    "ignoreStoreReadErrorWithClusterBreakingPotential",
    "metadata",
    "orphanDependents",
    "preconditions",
    "propagationPolicy",
    "resourceVersion",
    "uid",
];

/// The type of a field's value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Type {
    Text,
    Bytes,
    Bool,
    Integer,
    Double,
    Time,
    /// A time that JSON has with six digits of its second, also where they are zero.
    MicroTime,
    Quantity,
    IntOrString,
    Raw,
    Duration,
    /// A JSON schema, or whether anything is allowed.
    SchemaOrBool,
    /// A JSON schema, or a list of them.
    SchemaOrArray,
    /// A JSON schema, or a list of text.
    SchemaOrTexts,
    Message(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Repeat {
    Once,
    List,
    Map,
}

#[derive(Debug)]
pub struct Field {
    pub number: u64,
    /// In lower case.
    pub name: &'static str,
    pub type_: Type,
    pub repeat: Repeat,
}

pub static MESSAGES: LazyLock<BTreeMap<&'static str, Vec<Field>>> = LazyLock::new(|| parse(include_str!("fields.txt")));

fn parse(text: &'static str) -> BTreeMap<&'static str, Vec<Field>> {
    let mut messages: BTreeMap<&'static str, Vec<Field>> = BTreeMap::new();
    let mut current = "";
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if !line.starts_with(' ') {
            current = line;
            messages.insert(line, Vec::new());
            continue;
        }
        let mut words = line.split_whitespace();
        let (Some(Ok(number)), Some(name), Some(type_)) = (words.next().map(str::parse), words.next(), words.next())
        else {
            continue;
        };
        let (repeat, type_) = match (type_.strip_prefix('*'), type_.strip_prefix('%')) {
            (Some(item), _) => (Repeat::List, item),
            (_, Some(item)) => (Repeat::Map, item),
            _ => (Repeat::Once, type_),
        };
        let type_ = match type_ {
            "s" => Type::Text,
            "y" => Type::Bytes,
            "b" => Type::Bool,
            "i" => Type::Integer,
            "d" => Type::Double,
            "@Time" => Type::Time,
            "@MicroTime" => Type::MicroTime,
            "@Quantity" => Type::Quantity,
            "@IntOrString" => Type::IntOrString,
            "@RawExtension" | "@FieldsV1" | "@JSON" => Type::Raw,
            "@Duration" => Type::Duration,
            "@SchemaOrBool" => Type::SchemaOrBool,
            "@SchemaOrArray" => Type::SchemaOrArray,
            "@SchemaOrTexts" => Type::SchemaOrTexts,
            message => Type::Message(message),
        };
        messages.entry(current).or_default().push(Field { number, name, type_, repeat });
    }
    messages
}

/// JSON schemas, which refer to themselves.
pub const JSON_SCHEMA: &str = "apiextensions_apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

/// `io.k8s.api.apps.v1.Deployment` → `api.apps.v1.Deployment`, the message of a type.
pub fn message_of(type_name: &str) -> String {
    type_name.strip_prefix("io.k8s.").unwrap_or(type_name).replace('-', "_")
}

/// `apps/v1`, `Deployment` → `io.k8s.api.apps.v1.Deployment`, the type of objects that say so of themselves.
pub fn type_of(api_version: &str, kind: &str) -> String {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let package = match (group, kind) {
        (_, "DeleteOptions") | ("", "Status") | ("meta.k8s.io", _) => {
            return format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}");
        }
        ("", _) => "api.core",
        ("apiextensions.k8s.io", _) => "apiextensions-apiserver.pkg.apis.apiextensions",
        ("apiregistration.k8s.io", _) => "kube-aggregator.pkg.apis.apiregistration",
        ("metrics.k8s.io", _) => "metrics.pkg.apis.metrics",
        (group, _) => return format!("io.k8s.api.{}.{version}.{kind}", group.split('.').next().unwrap_or(group)),
    };
    format!("io.k8s.{package}.{version}.{kind}")
}

/// The struct of a shape; of a message inside one that has no shape of its own, by the message's name.
pub fn structure(shape: Shape, message: &str) -> Option<&'static Struct> {
    match shape {
        Shape::Struct(this) => Some(this),
        _ if message == JSON_SCHEMA => {
            known("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps")
        }
        _ => None,
    }
}

/// The struct of a type that is an object's own.
pub fn structure_of(type_name: &str) -> Option<&'static Struct> {
    structure(shape_of(type_name), &message_of(type_name))
}

/// How JSON has a field of a message.
pub struct Named {
    pub name: &'static str,
    pub shape: Shape,
    /// Go's JSON leaves its zero out, because that says nothing there. Protobuf carries the zero of everything that is
    /// no pointer, and a pointer only where it is set; so a zero of any other field was said, or is in JSON always.
    pub is_omitted: bool,
}

/// The JSON name and shape of a field; `None` for one that is inlined in JSON.
pub fn json_name(this: Option<&'static Struct>, name: &'static str) -> Option<Named> {
    match this {
        Some(this) => this.fields().iter().find(|field| field.name.eq_ignore_ascii_case(name)).map(|field| Named {
            name: field.name,
            shape: field.shape,
            is_omitted: field.is_omitted,
        }),
        // Their numbers and truths are pointers; an empty text is none.
        None => UNSCHEMED.iter().find(|known| known.eq_ignore_ascii_case(name)).map(|known| Named {
            name: known,
            shape: Shape::Any,
            is_omitted: false,
        }),
    }
}

/// Types that are one field in protobuf and that field's value in JSON.
pub fn is_list_of_text(message: &str) -> bool {
    message.ends_with(".ExtraValue") || message.ends_with(".AttestationValue")
}
