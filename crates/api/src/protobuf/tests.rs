//! What clients send is read, and what is written is read again as the same.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use serde_json::json;

use super::table::Field;
use super::*;
use crate::kinds;
use crate::schema::roots::ROOTS;
use crate::schema::shape_of;

/// What kubectl 1.32 sends for `create configmap a --from-literal=x=y`.
const CONFIG_MAP: &[u8] = b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x1b\x0a\x11\x0a\x01a\x12\0\x1a\0\x22\0*\x002\x008\0B\0\x12\x06\x0a\x01x\x12\x01y\x1a\0\x22\0";

#[test]
fn what_kubectl_sends_is_read() {
    let read = read(&kinds::CONFIG_MAP, CONFIG_MAP);
    let wanted = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a" }, "data": { "x": "y" } });
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
    assert_eq!(read(&kinds::CONFIG_MAP, &CONFIG_MAP[..CONFIG_MAP.len() - 9]).map_err(|status| status.code), Err(400));
}

/// Fields that upstream's newest schemas have, but whose numbers no published `generated.proto` says yet: protobuf
/// leaves them out.
const UNNUMBERED: &[(&str, &str)] = &[
    ("api.core.v1.NodeSystemInfo", "runningInUserNamespace"),
    ("api.resource.v1.DeviceCounterConsumption", "compatibilityGroups"),
    ("api.resource.v1.DeviceSubRequest", "derivedAttributes"),
    ("api.resource.v1.ExactDeviceRequest", "derivedAttributes"),
];

/// The field of a JSON name, in the message itself or in one that is embedded in it.
fn find<'a>(table: &'a [Field], this: &'static Struct, name: &str) -> Option<&'a Field> {
    let embedded = |field: &'a Field| match field.type_ {
        Type::Message(inner) if json_name(Some(this), field.name).is_none() => find(MESSAGES.get(inner)?, this, name),
        _ => None,
    };
    table.iter().find(|field| field.name.eq_ignore_ascii_case(name)).or_else(|| table.iter().find_map(embedded))
}

/// Whether a message has no fields at all: that it is there says everything.
fn is_empty(message: &str) -> bool {
    MESSAGES.get(message).is_some_and(Vec::is_empty)
}

/// What is wrong with a message's fields and with those below it.
fn wrong(message: &str, this: &'static Struct, seen: &mut BTreeSet<String>, out: &mut Vec<String>) {
    if !seen.insert(format!("{message} {}", this.name)) {
        return;
    }
    let Some(table) = MESSAGES.get(message) else { return out.push(format!("{message} is missing")) };
    for field in this.fields() {
        let Some(found) = find(table, this, field.name) else {
            if !matches!(field.name, "apiVersion" | "kind") && !UNNUMBERED.contains(&(message, field.name)) {
                out.push(format!("{message} has no {}", field.name));
            }
            continue;
        };
        let repeat = match field.shape {
            Shape::List(_) => Repeat::List,
            Shape::Map(_) => Repeat::Map,
            _ => Repeat::Once,
        };
        let is_fitting = matches!(
            (found.type_, inner(field.shape)),
            (Type::Text, Shape::String)
                | (Type::Bytes, Shape::Bytes)
                | (Type::Bool, Shape::Bool)
                | (Type::Integer, Shape::Int32 | Shape::Int64)
                | (Type::Double, Shape::Double)
                | (Type::Time, Shape::Time)
                | (Type::MicroTime, Shape::MicroTime)
                | (Type::Quantity, Shape::Quantity)
                | (Type::IntOrString, Shape::IntOrString)
                | (Type::Raw | Type::SchemaOrArray | Type::SchemaOrBool | Type::SchemaOrTexts, Shape::Any)
                | (Type::Message(_), Shape::Struct(_))
        );
        let is_other = matches!(found.type_, Type::Message(message) if is_list_of_text(message) || is_empty(message));
        if repeat != found.repeat || !is_fitting && !is_other {
            out.push(format!("{message} {}: {found:?} is {:?}", field.name, field.shape));
        }
        if let (Type::Message(message), Shape::Struct(below)) = (found.type_, inner(field.shape)) {
            wrong(message, below, seen, out);
        }
    }
}

#[test]
fn every_field_of_every_type_has_its_number() {
    let (mut seen, mut out) = (BTreeSet::new(), Vec::new());
    for (name, _) in ROOTS {
        let this = structure_of(name);
        assert!(this.is_some(), "{name}");
        wrong(&message_of(name), this.expect("a struct"), &mut seen, &mut out);
    }
    assert_eq!(out, Vec::<String>::new());
}

/// Numbers that look random and are the same ones every time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// A value of a shape; of what is self-similar a few layers. Nothing that JSON and protobuf tell apart differently: no
/// empty lists, no zeros.
fn any(shape: Shape, name: &str, message: &str, depth: usize, numbers: &mut Numbers) -> Value {
    let number = numbers.below(i32::MAX as u64 - 1) + 1;
    match shape {
        Shape::Bool => true.into(),
        Shape::Int32 | Shape::Int64 => number.into(),
        Shape::Double => json!(f64::from(u32::try_from(number).expect("small")) + 0.5),
        Shape::String => format!("text-{number}-ä").into(),
        Shape::Bytes => STANDARD.encode(number.to_be_bytes()).into(),
        Shape::Time => crate::time::rfc3339(Timestamp::new(number.cast_signed(), 0).expect("a time")).into(),
        Shape::MicroTime => {
            crate::time::micro(Timestamp::new(number.cast_signed(), 123_456_000).expect("a time")).into()
        }
        Shape::IntOrString if number.is_multiple_of(2) => "50%".into(),
        Shape::IntOrString => json!(number),
        Shape::Quantity => format!("{number}Mi").into(),
        Shape::Any if is_empty(message) => json!({}),
        Shape::Any if name == "default" || name == "example" => json!({ "x": [1, "y", null] }),
        Shape::Any => json!({ "type": "string", "x-kubernetes-list-type": "set" }),
        Shape::List(item) => (0..=number % 2).map(|_| any(*item, name, message, depth + 1, numbers)).collect(),
        Shape::Map(item) => {
            let entries = (0..=number % 2).map(|n| (format!("key-{n}"), any(*item, name, message, depth + 1, numbers)));
            Value::Object(entries.collect())
        }
        Shape::Struct(this) => {
            let mut object = Map::new();
            for field in this.fields() {
                let is_unnumbered = UNNUMBERED.iter().any(|(_, name)| *name == field.name);
                let is_type =
                    matches!(field.name, "apiVersion" | "kind") && find_in(message, this, field.name).is_none();
                let is_deep = depth > 6 && matches!(inner(field.shape), Shape::Struct(_));
                if !is_unnumbered && !is_type && !is_deep && (depth < 4 || numbers.below(3) > 0) {
                    let below = match find_in(message, this, field.name).map(|field| field.type_) {
                        Some(Type::Message(below)) => below,
                        _ => "",
                    };
                    object.insert(field.name.to_owned(), any(field.shape, field.name, below, depth + 1, numbers));
                }
            }
            Value::Object(object)
        }
    }
}

fn find_in(message: &str, this: &'static Struct, name: &str) -> Option<&'static Field> {
    find(LazyLock::force(&MESSAGES).get(message)?, this, name)
}

/// An object in which everything simple is zero, and what JSON has of it: Go writes the zero of all that is no pointer.
fn zeros(shape: Shape, message: &str, depth: usize) -> (Value, Value) {
    let same = |value: Value| (value.clone(), value);
    match shape {
        Shape::Bool => same(false.into()),
        Shape::Int32 | Shape::Int64 | Shape::Double => same(json!(0)),
        Shape::String => same(json!("")),
        Shape::Struct(this) => {
            let (mut sent, mut wanted) = (Map::new(), Map::new());
            for field in this.fields() {
                let Some(found) = find_in(message, this, field.name) else { continue };
                let below = match found.type_ {
                    Type::Message(below) => below,
                    _ => "",
                };
                if depth > 6 || matches!(inner(field.shape), Shape::Any | Shape::Bytes | Shape::Time | Shape::MicroTime)
                {
                    continue;
                }
                let (value, read) = zeros(field.shape, below, depth + 1);
                let is_simple = !value.is_object() && !value.is_array() && found.type_ != Type::IntOrString;
                if !(is_simple && field.is_omitted && read != "0") {
                    wanted.insert(field.name.to_owned(), read);
                }
                sent.insert(field.name.to_owned(), value);
            }
            (Value::Object(sent), Value::Object(wanted))
        }
        Shape::List(item) => {
            let (sent, wanted) = zeros(*item, message, depth + 1);
            (json!([sent]), json!([wanted]))
        }
        Shape::Map(item) => {
            let (sent, wanted) = zeros(*item, message, depth + 1);
            (json!({ "key": sent }), json!({ "key": wanted }))
        }
        Shape::IntOrString => same(json!(0)),
        Shape::Quantity => same("0".into()),
        Shape::Bytes | Shape::Time | Shape::MicroTime | Shape::Any => same(Value::Null),
    }
}

/// A zero that was said is kept (`priority: 0`, `stabilizationWindowSeconds: 0`), one that JSON leaves out is left out.
#[test]
fn s11_a_zero_is_read_where_json_has_one() {
    for (name, _) in ROOTS {
        let (mut sent, mut wanted) = zeros(shape_of(name), &message_of(name), 0);
        let (rest, kind) = name.rsplit_once('.').expect("a name");
        let version = rest.rsplit('.').next().expect("a version");
        for object in [&mut sent, &mut wanted] {
            object["apiVersion"] = format!("g.k8s.io/{version}").into();
            object["kind"] = kind.into();
        }
        let written = write(name, &sent).expect(name);
        let (api_version, kind, raw) = envelope(&written).expect("an envelope");
        assert_eq!(read_as(name, &api_version, &kind, raw).expect(name), wanted, "{name}");
    }
}

/// Conformance, clients that send protobuf: what they read and send again is what it was.
#[test]
fn conformance_objects_of_typed_clients_come_back_as_they_were() {
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "a" }, "spec": {
        "priority": 0, "enableServiceLinks": false, "terminationGracePeriodSeconds": 0, "containers": [{ "name": "c" }],
        "volumes": [{ "name": "v", "csi": { "driver": "d", "readOnly": false } }],
    } });
    let lease = json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": { "name": "a" }, "spec": {
        "leaseTransitions": 0, "renewTime": "2026-01-01T00:00:00.000000Z" } });
    let scaler = json!({ "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": { "name": "a" },
        "spec": { "maxReplicas": 3, "scaleTargetRef": { "kind": "Deployment", "name": "a" },
            "behavior": { "scaleDown": { "stabilizationWindowSeconds": 0 } } } });
    let slice = json!({ "apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": { "name": "a" },
        "spec": { "driver": "d", "pool": { "name": "p", "generation": 0, "resourceSliceCount": 1 } } });
    for object in [pod, lease, scaler, slice] {
        let written = write_any(&object).expect("a message");
        assert_eq!(read_any(&written), Ok(object));
    }
}

/// Every kind, full objects with every field: nothing is lost or invented.
#[test]
fn what_is_written_is_read_as_the_same() {
    for (seed, (name, _)) in (0..).zip(ROOTS).flat_map(|(n, root)| (0..8).map(move |m| (n * 8 + m, root))) {
        let mut object = any(shape_of(name), "", &message_of(name), 0, &mut Numbers(seed));
        let (rest, kind) = name.rsplit_once('.').expect("a name");
        let version = rest.rsplit('.').next().expect("a version");
        object["apiVersion"] = format!("g.k8s.io/{version}").into();
        object["kind"] = kind.into();
        let written = write(name, &object).expect(name);
        let (api_version, kind, raw) = envelope(&written).expect("an envelope");
        let read = read_as(name, &api_version, &kind, raw).expect(name);
        assert_eq!(read, object, "{name}");
    }
}

#[test]
fn what_json_says_in_two_ways_is_kept() {
    let schema = json!({
        "type": "object", "additionalProperties": false, "minimum": 0, "maximum": 1.5, "default": null,
        "items": { "type": "string" }, "enum": ["a", 1, { "b": [] }],
        "properties": {
            "a": { "additionalProperties": { "type": "integer", "x-kubernetes-int-or-string": true },
                "nullable": true },
            "b": { "items": [{ "type": "string" }, { "type": "number" }], "$ref": "#/x", "$schema": "s" },
        },
        "dependencies": { "x": ["a", "b"], "y": { "type": "null" } },
        "x-kubernetes-preserve-unknown-fields": false,
    });
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": { "name": "a" },
        "spec": { "versions": [{ "name": "v1", "served": true, "schema": { "openAPIV3Schema": schema } }] },
    });
    let written = write_any(&definition).expect("a message");
    let mut wanted = definition;
    wanted["spec"]["versions"][0]["schema"]["openAPIV3Schema"].as_object_mut().expect("a schema").remove("default");
    assert_eq!(read(&kinds::CUSTOM_RESOURCE_DEFINITION, &written), Ok(wanted));
}

#[test]
fn bytes_are_upstreams() {
    let object = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a" }, "data": { "x": "y" } });
    let wanted =
        b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x0d\x0a\x03\x0a\x01a\x12\x06\x0a\x01x\x12\x01y\x1a\0\x22\0";
    assert_eq!(write_any(&object).as_deref(), Ok(&wanted[..]));
    let items: Vec<u8> = [item(2, 13), message(&kinds::CONFIG_MAP.type_name, &object).expect("a message")].concat();
    let head = list_head("v1", "ConfigMapList", &json!({ "resourceVersion": "7" }), items.len() as u64);
    let list = [&head[..], &items, list_tail()].concat();
    let wanted = b"k8s\0\x0a\x13\x0a\x02v1\x12\x0dConfigMapList\x12\x14\x0a\x03\x12\x017\x12\x0d\x0a\x03\x0a\x01a\x12\x06\x0a\x01x\x12\x01y\x1a\0\x22\0";
    assert_eq!(list, wanted);
    // Of this version alone the items have the first number and the metadata the second.
    let older = [list_head("meta.k8s.io/v1beta1", "L", &json!({ "resourceVersion": "7" }), 2), item(1, 0)].concat();
    assert!(older.ends_with(b"\x12\x07\x12\x03\x12\x017\x0a\0"), "{older:?}");
    let status = write_any(&Status::not_found(&kinds::POD, "a").to_json()).expect("a Status");
    let (api_version, kind, raw) = envelope(&status).expect("an envelope");
    assert_eq!((&*api_version, &*kind), ("v1", "Status"));
    assert_eq!(Reader(raw).find(6), Some(Some(Wire::Varint(404))));
    assert_eq!(Reader(raw).find(4), Some(Some(Wire::Bytes(b"NotFound"))));
    let custom = json!({ "apiVersion": "example.com/v1", "kind": "Foo", "metadata": {} });
    assert_eq!(write_any(&custom).map_err(|status| status.code), Err(406));
}
