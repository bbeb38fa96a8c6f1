//! Request bodies in Kubernetes' protobuf, read as JSON: `kubectl create` since 1.31 sends nothing else.
//!
//! Only reading: answers are JSON, which every client that sends protobuf takes too. The numbers of the fields come
//! from a table (`fields.txt`), their JSON names from the schemas.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::jiff;
use crate::kinds::Kind;
use crate::schema::types::Struct;
use crate::schema::{Shape, shape_of};
use crate::status::Status;

/// The content type that clients send.
pub const CONTENT_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// What every body begins with.
const MAGIC: &[u8] = b"k8s\0";
/// Messages inside messages, at most.
const MAX_DEPTH: usize = 64;

/// Go's pointer fields: their zero value is meant. Of all others it stands for "not set", since Go writes it always.
const POINTERS: &[&str] = &[
    "activeDeadlineSeconds",
    "allocateLoadBalancerNodePorts",
    "allowPrivilegeEscalation",
    "allowVolumeExpansion",
    "attachRequired",
    "automountServiceAccountToken",
    "backoffLimit",
    "backoffLimitPerIndex",
    "blockOwnerDeletion",
    "completions",
    "controller",
    "defaultMode",
    "deletionGracePeriodSeconds",
    "enableServiceLinks",
    "expirationSeconds",
    "failedJobsHistoryLimit",
    "fsGroup",
    "gracePeriodSeconds",
    "hostUsers",
    "immutable",
    "leaseDurationSeconds",
    "leaseTransitions",
    "manualSelector",
    "maxFailedIndexes",
    "mode",
    "optional",
    "orphanDependents",
    "parallelism",
    "partition",
    "podInfoOnMount",
    "privileged",
    "progressDeadlineSeconds",
    "readOnlyRootFilesystem",
    "ready",
    "replicas",
    "revisionHistoryLimit",
    "runAsGroup",
    "runAsNonRoot",
    "runAsUser",
    "serving",
    "setHostnameAsFQDN",
    "shareProcessNamespace",
    "startingDeadlineSeconds",
    "successfulJobsHistoryLimit",
    "suspend",
    "terminating",
    "terminationGracePeriodSeconds",
    "tolerationSeconds",
    "ttlSecondsAfterFinished",
    "value",
];

/// Text that Go's JSON writes also when it is empty, by message and JSON name: pointers, and fields without
/// `omitempty`. Of all others JSON leaves the empty text out, and so do we, though protobuf always carries it: the two
/// forms of one object must not differ, or a later PUT in the other form is a change (S11).
const EMPTY_TEXT: &[(&str, &str)] = &[
    ("api.core.v1.HttpHeader", "value"),
    ("api.core.v1.PersistentVolumeClaimSpec", "storageClassName"),
    ("api.core.v1.PersistentVolumeClaimSpec", "volumeAttributesClassName"),
    ("api.core.v1.PodDnsConfigOption", "value"),
    ("api.core.v1.Sysctl", "value"),
    ("api.core.v1.TypedLocalObjectReference", "apiGroup"),
    ("api.core.v1.TypedObjectReference", "apiGroup"),
    ("api.discovery.v1.EndpointPort", "name"),
    ("api.networking.v1.IngressClassParametersReference", "apiGroup"),
    ("api.rbac.v1.RoleRef", "apiGroup"),
];

/// JSON names of messages that are no top-level types, so that there is no schema of them.
const UNSCHEMED: &[&str] = &[
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
enum Type {
    Text,
    Bytes,
    Bool,
    Integer,
    Double,
    Time,
    Quantity,
    IntOrString,
    Raw,
    Message(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Repeat {
    Once,
    List,
    Map,
}

#[derive(Debug)]
struct Field {
    number: u64,
    /// In lower case.
    name: &'static str,
    type_: Type,
    repeat: Repeat,
}

static MESSAGES: LazyLock<BTreeMap<&'static str, Vec<Field>>> = LazyLock::new(|| parse(include_str!("fields.txt")));

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
            "@Time" | "@MicroTime" => Type::Time,
            "@Quantity" => Type::Quantity,
            "@IntOrString" => Type::IntOrString,
            "@RawExtension" | "@FieldsV1" => Type::Raw,
            message => Type::Message(message),
        };
        messages.entry(current).or_default().push(Field { number, name, type_, repeat });
    }
    messages
}

/// Reads a body that is to be an object of a kind.
///
/// # Errors
/// 400 for anything else.
pub fn read(kind: &Kind, body: &[u8]) -> Result<Value, Status> {
    let (api_version, kind_name, raw) = envelope(body)?;
    let known = [kind.type_name.to_string(), guess(&api_version, &kind_name)];
    let name = if kind_name == kind.kind || kind_name.is_empty() { &known[0] } else { &known[1] };
    read_as(name, &api_version, &kind_name, raw)
}

/// Reads a body of whatever type its envelope names: reviews, options, what is posted to subresources.
///
/// # Errors
/// 400 for a type that is not known, and for bytes that are no such message.
pub fn read_any(body: &[u8]) -> Result<Value, Status> {
    let (api_version, kind_name, raw) = envelope(body)?;
    read_as(&guess(&api_version, &kind_name), &api_version, &kind_name, raw)
}

/// `apps/v1`, `Deployment` → `io.k8s.api.apps.v1.Deployment`.
fn guess(api_version: &str, kind: &str) -> String {
    if kind == "DeleteOptions" {
        return "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions".to_owned();
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("core", api_version));
    let group = group.split('.').next().unwrap_or(group);
    format!("io.k8s.api.{group}.{version}.{kind}")
}

fn read_as(type_name: &str, api_version: &str, kind: &str, raw: &[u8]) -> Result<Value, Status> {
    let message = type_name.strip_prefix("io.k8s.").unwrap_or(type_name);
    if !MESSAGES.contains_key(message) {
        return Err(Status::bad_request(format!(
            "no kind {kind:?} is registered for version {api_version:?} in protobuf"
        )));
    }
    let shape = shape_of(type_name);
    let mut object = Map::new();
    fields(message, structure(shape), raw, &mut object, 0).ok_or_else(|| {
        Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {kind}): the protobuf message is damaged"
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

fn structure(shape: Shape) -> Option<&'static Struct> {
    match shape {
        Shape::Struct(this) => Some(this),
        _ => None,
    }
}

/// The JSON name and shape of a field; `None` for one that is inlined in JSON.
fn json_name(this: Option<&'static Struct>, name: &'static str) -> Option<(&'static str, Shape)> {
    match this {
        Some(this) => this
            .fields()
            .iter()
            .find(|field| field.name.eq_ignore_ascii_case(name))
            .map(|field| (field.name, field.shape)),
        None => UNSCHEMED.iter().find(|known| known.eq_ignore_ascii_case(name)).map(|known| (*known, Shape::Any)),
    }
}

fn item(shape: Shape) -> Shape {
    match shape {
        Shape::List(item) | Shape::Map(item) => *item,
        other => other,
    }
}

/// Reads a message's fields into a JSON object. `None` for bytes that are no such message. Fields that are not known
/// are left out, as upstream does.
fn fields(
    message: &str,
    this: Option<&'static Struct>,
    bytes: &[u8],
    into: &mut Map<String, Value>,
    depth: usize,
) -> Option<()> {
    if depth > MAX_DEPTH {
        return None;
    }
    let table = MESSAGES.get(message)?;
    let mut rest = Reader(bytes);
    while !rest.0.is_empty() {
        let (number, wire) = rest.field()?;
        let Some(field) = table.iter().find(|field| field.number == number) else { continue };
        let Some((name, shape)) = json_name(this, field.name) else {
            // Embedded in Go, so its fields are this object's own.
            if let (Type::Message(inner), Repeat::Once, Wire::Bytes(bytes)) = (field.type_, field.repeat, wire) {
                fields(inner, this, bytes, into, depth + 1)?;
            }
            continue;
        };
        match field.repeat {
            Repeat::Once => {
                let value = value(field.type_, shape, wire, depth)?;
                if is_set(message, name, field.type_, &value) {
                    into.insert(name.to_owned(), value);
                }
            }
            Repeat::List => {
                let value = value(field.type_, item(shape), wire, depth)?;
                into.entry(name).or_insert_with(|| Value::Array(Vec::new())).as_array_mut()?.push(value);
            }
            Repeat::Map => {
                let Wire::Bytes(bytes) = wire else { return None };
                let (key, value) = entry(field.type_, item(shape), bytes, depth)?;
                into.entry(name).or_insert_with(|| Value::Object(Map::new())).as_object_mut()?.insert(key, value);
            }
        }
    }
    Some(())
}

fn is_set(message: &str, name: &str, type_: Type, value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(true) => true,
        Value::Number(number) if number.as_f64() != Some(0.0) => true,
        Value::String(text) if !text.is_empty() => true,
        Value::Object(_) | Value::Array(_) => true,
        Value::String(_) if type_ == Type::Text => EMPTY_TEXT.contains(&(message, name)),
        _ => type_ == Type::IntOrString || POINTERS.contains(&name),
    }
}

/// A map's entry: key (1), value (2).
fn entry(type_: Type, shape: Shape, bytes: &[u8], depth: usize) -> Option<(String, Value)> {
    let mut rest = Reader(bytes);
    let (mut key, mut found) = (String::new(), Value::Null);
    if matches!(type_, Type::Text | Type::Bytes) {
        found = Value::String(String::new());
    }
    while !rest.0.is_empty() {
        match rest.field()? {
            (1, Wire::Bytes(text)) => key = std::str::from_utf8(text).ok()?.to_owned(),
            (2, wire) => found = value(type_, shape, wire, depth)?,
            _ => {}
        }
    }
    Some((key, found))
}

fn value(type_: Type, shape: Shape, wire: Wire<'_>, depth: usize) -> Option<Value> {
    Some(match (type_, wire) {
        (Type::Text, Wire::Bytes(bytes)) => Value::String(std::str::from_utf8(bytes).ok()?.to_owned()),
        (Type::Bytes, Wire::Bytes(bytes)) => Value::String(STANDARD.encode(bytes)),
        (Type::Bool, Wire::Varint(number)) => Value::Bool(number != 0),
        (Type::Integer, Wire::Varint(number)) => Value::from(number.cast_signed()),
        (Type::Double, Wire::Fixed64(bits)) => Value::from(f64::from_bits(bits)),
        (Type::Time, Wire::Bytes(bytes)) => time(bytes)?,
        (Type::Quantity, Wire::Bytes(bytes)) => match Reader(bytes).find(1)? {
            Some(Wire::Bytes(text)) => Value::String(std::str::from_utf8(text).ok()?.to_owned()),
            _ => Value::Null,
        },
        (Type::IntOrString, Wire::Bytes(bytes)) => int_or_string(bytes)?,
        (Type::Raw, Wire::Bytes(bytes)) => match Reader(bytes).find(1)? {
            Some(Wire::Bytes(raw)) => serde_json::from_slice(raw).ok()?,
            _ => Value::Null,
        },
        (Type::Message(message), Wire::Bytes(bytes)) => match list_of(message) {
            // `ExtraValue`: a message in protobuf, a list in JSON.
            true => {
                let mut wrapped = Map::new();
                let mut rest = Reader(bytes);
                let items = wrapped.entry("items").or_insert_with(|| Value::Array(Vec::new()));
                while !rest.0.is_empty() {
                    if let (1, Wire::Bytes(text)) = rest.field()? {
                        items.as_array_mut()?.push(std::str::from_utf8(text).ok()?.into());
                    }
                }
                wrapped.remove("items")?
            }
            false => {
                let mut object = Map::new();
                fields(message, structure(shape), bytes, &mut object, depth + 1)?;
                Value::Object(object)
            }
        },
        _ => return None,
    })
}

fn list_of(message: &str) -> bool {
    message.ends_with(".ExtraValue")
}

/// Seconds (1) and nanoseconds (2) since 1970; an empty message is Go's zero time, which JSON has as null.
fn time(bytes: &[u8]) -> Option<Value> {
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
    Some(Value::String(if nanos == 0 { crate::time::rfc3339(time) } else { crate::time::micro(time) }))
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds;

    /// What kubectl 1.32 sends for `create configmap a --from-literal=x=y`.
    const CONFIG_MAP: &[u8] = b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x1b\x0a\x11\x0a\x01a\x12\0\x1a\0\x22\0*\x002\x008\0B\0\x12\x06\x0a\x01x\x12\x01y\x1a\0\x22\0";

    #[test]
    fn what_kubectl_sends_is_read() {
        let read = read(&kinds::CONFIG_MAP, CONFIG_MAP);
        let wanted =
            json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a" }, "data": { "x": "y" } });
        assert_eq!(read, Ok(wanted));
    }

    /// A field of bytes: its number and length, both below 128.
    fn part(number: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![number << 3 | 2, u8::try_from(content.len()).expect("a short field")];
        bytes.extend_from_slice(content);
        bytes
    }

    fn body(api_version: &str, kind: &str, message: &[u8]) -> Vec<u8> {
        let meta = [part(1, api_version.as_bytes()), part(2, kind.as_bytes())].concat();
        [MAGIC, &part(1, &meta), &part(2, message)].concat()
    }

    /// As Go writes it: every text that is no pointer, also the empty ones.
    #[test]
    fn s11_empty_text_that_json_leaves_out_is_left_out() {
        let variable = [part(1, b"EMPTY"), part(2, b"")].concat();
        let header = [part(1, b"X-Empty"), part(2, b"")].concat();
        let get = [part(1, b""), part(5, &header)].concat();
        let probe = part(1, &part(2, &get));
        let container = [part(1, b"c"), part(7, &variable), part(10, &probe)].concat();
        let template = [part(1, &part(1, b"a")), part(2, &part(2, &container))].concat();
        let found = read_any(&body("v1", "PodTemplate", &part(2, &template))).expect("a pod template");
        let container = &found["template"]["spec"]["containers"][0];
        assert_eq!(container["env"], json!([{ "name": "EMPTY" }]));
        // JSON has it, since Go's field is without omitempty.
        let wanted = json!({ "httpHeaders": [{ "name": "X-Empty", "value": "" }] });
        assert_eq!(container["livenessProbe"]["httpGet"], wanted);

        let spec = part(5, b"");
        let claim = read(&kinds::PERSISTENT_VOLUME_CLAIM, &body("v1", "PersistentVolumeClaim", &part(2, &spec)));
        assert_eq!(claim.expect("a claim")["spec"], json!({ "storageClassName": "" }), "a pointer: no class is meant");
        let spec = [part(5, b""), part(6, b"")].concat();
        let volume = read(&kinds::PERSISTENT_VOLUME, &body("v1", "PersistentVolume", &part(2, &spec)));
        assert_eq!(volume.expect("a volume")["spec"], json!({}), "no pointer: none is said");
    }

    #[test]
    fn damaged_messages_are_refused() {
        for end in 0..CONFIG_MAP.len() {
            let _ = read(&kinds::CONFIG_MAP, &CONFIG_MAP[..end]);
        }
        for at in 4..CONFIG_MAP.len() {
            for byte in [0, 1, 0x7f, 0x80, 0xff] {
                let mut damaged = CONFIG_MAP.to_vec();
                damaged[at] = byte;
                let _ = read(&kinds::CONFIG_MAP, &damaged);
            }
        }
        assert_eq!(read(&kinds::CONFIG_MAP, b"{}").map_err(|status| status.code), Err(400));
        assert_eq!(
            read(&kinds::CONFIG_MAP, &CONFIG_MAP[..CONFIG_MAP.len() - 9]).map_err(|status| status.code),
            Err(400)
        );
    }

    #[test]
    fn every_field_of_every_message_has_a_json_name_or_is_embedded() {
        // Upstream's custom resources have no messages; a CustomResourceDefinition is taken as JSON and YAML only.
        let is_json_only = |kind: &Kind| {
            kind.type_name.starts_with(crate::snapshots::PREFIX) || &*kind.plural == "customresourcedefinitions"
        };
        for kind in kinds::ALL.iter().filter(|kind| !is_json_only(kind)) {
            let message = kind.type_name.strip_prefix("io.k8s.").unwrap_or("");
            let table = MESSAGES.get(message).map(Vec::as_slice);
            assert!(table.is_some(), "{message}");
            let this = structure(shape_of(&kind.type_name));
            for field in table.unwrap_or_default() {
                assert!(json_name(this, field.name).is_some(), "{message} {}", field.name);
            }
        }
    }
}
