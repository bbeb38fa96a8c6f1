//! An object against its type: what upstream's JSON decoder refuses, warns of, drops and rewrites.

use std::collections::BTreeMap;

use base64::Engine;
use serde_json::{Map, Value};

use super::omitted;
use super::parse::{self, MAX_DEPTH};
use super::types::{Shape, Struct, shape_of};
use super::yaml;
use crate::custom::values::prune;
use crate::kinds::{self, Kind};
use crate::object;
use crate::paths::{self, Step};
use crate::quantity::Quantity;
use crate::status::Status;
use crate::time::{self, Layout};

/// How many unknown and duplicate fields are named at most.
pub const MAX_STRICT_ERRORS: usize = 100;

/// What is done about unknown and duplicate fields (`fieldValidation`). They are never stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FieldValidation {
    /// Nothing is said.
    Ignore,
    /// A warning for each. Upstream's default.
    Warn,
    /// The request is refused.
    Strict,
}

impl FieldValidation {
    /// The value of the `fieldValidation` parameter; empty is `Warn`, anything unknown is none.
    pub fn from_parameter(value: &str) -> Option<Self> {
        match value {
            "" | "Warn" => Some(Self::Warn),
            "Ignore" => Some(Self::Ignore),
            "Strict" => Some(Self::Strict),
            _ => None,
        }
    }
}

/// Reads a request body as an object of this kind. Returns the object and the warnings.
///
/// Errors are upstream's 400s: text that is not JSON or nested too deep, another kind or version, a
/// value of the wrong type, and with `Strict` unknown and duplicate fields.
pub fn decode_bytes(kind: &Kind, body: &[u8], validation: FieldValidation) -> Result<(Value, Vec<String>), Status> {
    let (mut object, duplicates) = parse_json(kind, body)?;
    type_meta(kind, &mut object)?;
    let found = clean(kind, &mut object, duplicates, Empty::Dropped).map_err(|why| unfit(kind, &why))?;
    Ok((object, judge(kind, in_body_order(body, found), validation)?))
}

/// As [`decode_bytes`], for a YAML body.
pub fn decode_yaml(kind: &Kind, body: &[u8], validation: FieldValidation) -> Result<(Value, Vec<String>), Status> {
    let (mut object, duplicates) = parse_yaml(body)?;
    type_meta(kind, &mut object)?;
    let found = clean(kind, &mut object, duplicates, Empty::Dropped).map_err(|why| unfit(kind, &why))?;
    Ok((object, judge(kind, found, validation)?))
}

/// Reads the configuration of a server-side apply, YAML or JSON. What is empty in it stays: its manager says that it is
/// to be empty, and owns that. Returns what is unknown or stands twice, too.
///
/// Errors: as [`decode_bytes`]; 400 for another version or none, and upstream's 500 for no kind.
pub fn decode_config(kind: &Kind, body: &[u8]) -> Result<(Value, Vec<String>), Status> {
    // Most clients send JSON, which is YAML too and is read faster as what it is.
    let is_json = body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
    let (mut object, found) = if is_json { parse_json(kind, body)? } else { parse_yaml(body)? };
    config_type(kind, &object)?;
    type_meta(kind, &mut object)?;
    let found = clean(kind, &mut object, found, Empty::Kept).map_err(|why| unfit(kind, &why))?;
    Ok((object, if is_json { in_body_order(body, found) } else { found }))
}

/// Checks and cleans an object that is already JSON, as the result of a patch. Returns the warnings.
///
/// `apiVersion` and `kind` are filled in where they are missing; nulls, which mean "not set", are
/// dropped, and so is what is empty where that means the same; quantities are written in their canonical form; unknown
/// fields are dropped.
pub fn decode(kind: &Kind, object: &mut Value, validation: FieldValidation) -> Result<Vec<String>, Status> {
    type_meta(kind, object)?;
    let found = clean(kind, object, Vec::new(), Empty::Dropped).map_err(|why| unfit(kind, &why))?;
    judge(kind, found, validation)
}

/// As [`decode`], for the result of a patch in which `duplicates` stand twice. Upstream's 422, which quotes what
/// `shown` makes of the object, for what does not fit.
pub fn decode_patched(
    kind: &Kind,
    object: &mut Value,
    duplicates: Vec<String>,
    validation: FieldValidation,
    shown: &dyn Fn(&Value) -> String,
) -> Result<Vec<String>, Status> {
    type_meta(kind, object)?;
    let refused = |object: &Value, why: &str| Status::invalid_patch(&shown(object), why);
    let found = clean(kind, object, named_twice(duplicates), Empty::Dropped).map_err(|why| refused(object, &why))?;
    match strictly(found, validation) {
        Ok(warnings) => Ok(warnings),
        Err(why) => Err(refused(object, &why)),
    }
}

fn named_twice(paths: Vec<String>) -> Vec<String> {
    paths.into_iter().map(|path| format!("duplicate field \"{path}\"")).collect()
}

/// A body as JSON, and what stands twice in it.
fn parse_json(kind: &Kind, body: &[u8]) -> Result<(Value, Vec<String>), Status> {
    let parsed = parse::parse(body).map_err(|error| {
        let what = if kind.kind.is_empty() { "an object" } else { &kind.kind };
        Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {what}): couldn't get version/kind; json parse \
                error: {error}"
        ))
    })?;
    Ok((parsed.value, named_twice(parsed.duplicates)))
}

/// Reads a YAML body, and says which keys stand twice in it.
///
/// # Errors
/// 400, in upstream's words.
pub fn parse_yaml(body: &[u8]) -> Result<(Value, Vec<String>), Status> {
    let text =
        std::str::from_utf8(body).map_err(|_| Status::bad_request("yaml: control characters are not allowed"))?;
    let parsed =
        yaml::parse(text).map_err(|error| Status::bad_request(format!("error converting YAML to JSON: {error}")))?;
    let duplicates = parsed.duplicates.into_iter().map(|line| format!("yaml: unmarshal errors:\n  {line}")).collect();
    Ok((parsed.value, duplicates))
}

/// What is done with fields that are empty and could as well not be there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Empty {
    Kept,
    Dropped,
}

/// Checks and cleans; adds the unknown fields to what the parser has found.
fn clean(kind: &Kind, object: &mut Value, strict: Vec<String>, empty: Empty) -> Result<Vec<String>, String> {
    let mut walk = Walk { path: Vec::new(), strict, owner: &kind.kind, empty };
    match &kind.custom {
        None => walk.value(shape_of(&kind.type_name), object),
        Some(custom) => {
            let checked = walk.metadata(object);
            let dropped = prune(custom.schema(), object, true);
            walk.strict.extend(dropped.into_iter().map(|path| format!("unknown field \"{path}\"")));
            checked
        }
    }?;
    let mut strict = walk.strict;
    strict.truncate(MAX_STRICT_ERRORS);
    Ok(strict)
}

/// Unknown and duplicate fields in the order in which Go's decoder meets them: an unknown field where it first stands
/// (and only as that), a duplicate where it stands again.
fn in_body_order(body: &[u8], found: Vec<String>) -> Vec<String> {
    if found.len() < 2 {
        return found;
    }
    let met = parse::occurrences(body, found.iter().map(|message| named(message).to_owned()).collect());
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut ordered: Vec<String> = Vec::with_capacity(found.len());
    for field in &met {
        let times = seen.entry(field).or_default();
        *times += 1;
        let unknown = format!("unknown field \"{field}\"");
        if found.contains(&unknown) {
            ordered.extend((*times == 1).then_some(unknown));
        } else if *times == 2 {
            ordered.push(format!("duplicate field \"{field}\""));
        }
    }
    // None is lost, also of more than are looked for: strictly, each of them is a reason to refuse.
    ordered.extend(found.iter().filter(|message| !seen.contains_key(named(message))).cloned());
    ordered
}

/// The path that is quoted in a message of an unknown or duplicate field.
fn named(message: &str) -> &str {
    message.split_once('"').and_then(|(_, rest)| rest.strip_suffix('"')).unwrap_or("")
}

fn judge(kind: &Kind, strict: Vec<String>, validation: FieldValidation) -> Result<Vec<String>, Status> {
    strictly(strict, validation).map_err(|why| unfit(kind, &why))
}

/// The warnings, or why it is refused.
fn strictly(strict: Vec<String>, validation: FieldValidation) -> Result<Vec<String>, String> {
    match validation {
        FieldValidation::Strict if !strict.is_empty() => Err(format!("strict decoding error: {}", strict.join(", "))),
        FieldValidation::Warn => Ok(strict),
        _ => Ok(Vec::new()),
    }
}

fn unfit(kind: &Kind, why: &str) -> Status {
    Status::bad_request(format!(
        "{} in version {:?} cannot be handled as a {}: {why}",
        kind.kind, kind.version, kind.kind
    ))
}

/// A configuration says itself of which version and kind it is.
fn config_type(kind: &Kind, config: &Value) -> Result<(), Status> {
    let (given, expected) = (object::text(config, &["apiVersion"]), kind.api_version());
    if config.is_object() && given != expected {
        return Err(Status::bad_request(format!(
            "Incorrect version specified in apply patch. Specified patch version: {given}, expected: {expected}"
        )));
    }
    if config.is_object() && object::text(config, &["kind"]).is_empty() {
        let about = format!("{}/{}, Kind=", kind.group, kind.version);
        return Err(crate::apply::not_typed(config, &about, &format!("no corresponding type for {about}")));
    }
    Ok(())
}

/// Makes `apiVersion` and `kind` agree with the endpoint.
fn type_meta(kind: &Kind, object: &mut Value) -> Result<(), Status> {
    let Value::Object(map) = object else {
        return Err(unfit(
            kind,
            &format!("json: cannot unmarshal {} into Go value of type {}.{}", go_kind(object), kind.version, kind.kind),
        ));
    };
    let api_version = kind.api_version();
    match map.get("apiVersion").and_then(Value::as_str).unwrap_or("") {
        "" => {}
        given if given == api_version => {}
        given => {
            let why = format!(
                "the API version in the data ({given}) does not match the expected API version ({api_version})"
            );
            return Err(Status::bad_request(why));
        }
    }
    match map.get("kind").and_then(Value::as_str).unwrap_or("") {
        "" => {}
        given if given == kind.kind => {}
        given => {
            return Err(Status::bad_request(format!(
                "{given} in version {:?} cannot be handled as a {}: converting ({}.{given}) to ({}.{}): unknown \
                    conversion",
                kind.version, kind.kind, kind.version, kind.version, kind.kind
            )));
        }
    }
    map.insert("apiVersion".to_owned(), api_version.into());
    map.insert("kind".to_owned(), (*kind.kind).into());
    Ok(())
}

/// A walk over an object and its type at once.
struct Walk<'a> {
    path: Vec<Step>,
    /// Unknown fields (and duplicates that the parser has found).
    strict: Vec<String>,
    /// The innermost Go struct, for error messages.
    owner: &'a str,
    empty: Empty,
}

impl Walk<'_> {
    /// Checks and cleans the metadata of a custom resource, whose other fields are its schema's.
    fn metadata(&mut self, object: &mut Value) -> Result<(), String> {
        let Shape::Struct(resource) = shape_of(&kinds::CONFIG_MAP.type_name) else { return Ok(()) };
        let (Some(field), Some(metadata)) = (resource.field("metadata"), object.get_mut("metadata")) else {
            return Ok(());
        };
        self.path.push(Step::Field("metadata".to_owned()));
        let checked = self.value(field.shape, metadata);
        self.path.pop();
        checked
    }

    /// Checks and cleans one value. The error is Go's, without what stands before it.
    fn value(&mut self, shape: Shape, value: &mut Value) -> Result<(), String> {
        if self.path.len() > MAX_DEPTH {
            return Err(format!("exceeded max depth of {MAX_DEPTH}"));
        }
        if value.is_null() && !matches!(shape, Shape::Any) {
            // Only reached inside lists and maps: a field that is null has been dropped before.
            *value = zero(shape);
            return Ok(());
        }
        match (shape, &mut *value) {
            (Shape::Any, value) if fits_depth(value, MAX_DEPTH.saturating_sub(self.path.len())) => Ok(()),
            (Shape::Any, _) => Err(format!("exceeded max depth of {MAX_DEPTH}")),
            (Shape::Bool, Value::Bool(_)) | (Shape::Double, Value::Number(_)) => Ok(()),
            (Shape::String | Shape::IntOrString, Value::String(_)) => Ok(()),
            (Shape::Int64, Value::Number(number)) if number.is_i64() => Ok(()),
            (Shape::Int32 | Shape::IntOrString, Value::Number(number))
                if number.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) =>
            {
                Ok(())
            }
            (Shape::Quantity, value @ (Value::Number(_) | Value::String(_))) => {
                let quantity = Quantity::of(value).map_err(|error| error.to_string())?;
                *value = Value::String(quantity.to_string());
                Ok(())
            }
            (Shape::Bytes, Value::String(text)) => self.bytes(text),
            (Shape::Time, Value::String(text)) => time_of(text, Layout::Seconds),
            (Shape::MicroTime, Value::String(text)) => time_of(text, Layout::Micro),
            (Shape::List(item), Value::Array(items)) => self.list(*item, items),
            (Shape::Map(item), Value::Object(map)) => self.map(*item, map),
            (Shape::Struct(this), Value::Object(map)) => self.fields(this, map),
            (shape, value) => Err(self.mismatch(shape, value)),
        }
    }

    fn list(&mut self, item: Shape, items: &mut [Value]) -> Result<(), String> {
        for (index, value) in items.iter_mut().enumerate() {
            self.path.push(Step::Index(index));
            self.value(item, value)?;
            self.path.pop();
        }
        Ok(())
    }

    fn map(&mut self, item: Shape, map: &mut Map<String, Value>) -> Result<(), String> {
        for (key, value) in map.iter_mut() {
            self.path.push(Step::Field(key.clone()));
            self.value(item, value)?;
            self.path.pop();
        }
        Ok(())
    }

    fn fields(&mut self, this: &'static Struct, map: &mut Map<String, Value>) -> Result<(), String> {
        let outer = std::mem::replace(&mut self.owner, this.go_name());
        let mut unset = Vec::new();
        for (name, value) in map.iter_mut() {
            let Some(field) = this.field(name) else {
                self.unknown(name);
                unset.push(name.clone());
                continue;
            };
            if value.is_null() {
                unset.push(name.clone());
                continue;
            }
            self.path.push(Step::Field(name.clone()));
            self.value(field.shape, value)?;
            self.path.pop();
            if field.is_omitted && self.empty == Empty::Dropped && omitted::is_empty(value) {
                unset.push(name.clone());
            }
        }
        for name in unset {
            map.remove(&name);
        }
        self.owner = outer;
        Ok(())
    }

    fn unknown(&mut self, name: &str) {
        if self.strict.len() >= MAX_STRICT_ERRORS {
            return;
        }
        let path = paths::field(&paths::shown(&self.path), name);
        self.strict.push(format!("unknown field \"{path}\""));
    }

    /// `[]byte` is base64; line breaks inside are dropped, as Go's decoder does.
    fn bytes(&self, text: &mut String) -> Result<(), String> {
        if text.contains(['\r', '\n']) {
            text.retain(|c| c != '\r' && c != '\n');
        }
        match base64::engine::general_purpose::STANDARD.decode(text.as_bytes()) {
            Ok(_) => Ok(()),
            Err(base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _)) => {
                Err(format!("illegal base64 data at input byte {at}"))
            }
            Err(_) => Err(format!("illegal base64 data at input byte {}", text.len() - text.len() % 4)),
        }
    }

    fn mismatch(&self, shape: Shape, value: &Value) -> String {
        let found = match value {
            // Go names the number where a number was expected but this one does not fit.
            Value::Number(number) if matches!(shape, Shape::Int32 | Shape::Int64 | Shape::IntOrString) => {
                format!("number {number}")
            }
            other => go_kind(other).to_owned(),
        };
        // Go's path has the fields only, without list indices and map keys of its own.
        let fields: Vec<&str> = self
            .path
            .iter()
            .filter_map(|step| if let Step::Field(name) = step { Some(name.as_str()) } else { None })
            .collect();
        format!(
            "json: cannot unmarshal {found} into Go struct field {}.{} of type {}",
            self.owner,
            fields.join("."),
            go_type(shape)
        )
    }
}

/// What Go's zero value of a type is as JSON.
fn zero(shape: Shape) -> Value {
    match shape {
        Shape::Bool => Value::Bool(false),
        Shape::Int32 | Shape::Int64 | Shape::Double | Shape::IntOrString => 0.into(),
        Shape::String | Shape::Bytes => "".into(),
        Shape::Quantity => "0".into(),
        Shape::Struct(_) => Value::Object(Map::new()),
        Shape::Time | Shape::MicroTime | Shape::Any | Shape::List(_) | Shape::Map(_) => Value::Null,
    }
}

/// A time is written back in UTC, as upstream's encoder does.
fn time_of(text: &mut String, layout: Layout) -> Result<(), String> {
    *text = time::decode(text, layout)?;
    Ok(())
}

/// Whether arrays and objects are nested at most this deep.
pub(crate) fn fits_depth(value: &Value, depth: usize) -> bool {
    match value {
        Value::Array(items) => depth > 0 && items.iter().all(|item| fits_depth(item, depth - 1)),
        Value::Object(map) => depth > 0 && map.values().all(|item| fits_depth(item, depth - 1)),
        _ => true,
    }
}

fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn go_type(shape: Shape) -> String {
    match shape {
        Shape::Bool => "bool".to_owned(),
        Shape::Int32 => "int32".to_owned(),
        Shape::Int64 => "int64".to_owned(),
        Shape::Double => "float64".to_owned(),
        Shape::String => "string".to_owned(),
        Shape::Bytes => "[]uint8".to_owned(),
        Shape::Time => "v1.Time".to_owned(),
        Shape::MicroTime => "v1.MicroTime".to_owned(),
        Shape::IntOrString => "intstr.IntOrString".to_owned(),
        Shape::Quantity => "resource.Quantity".to_owned(),
        Shape::Any => "interface {}".to_owned(),
        Shape::List(item) => format!("[]{}", go_type(*item)),
        Shape::Map(item) => format!("map[string]{}", go_type(*item)),
        Shape::Struct(this) => {
            let mut parts = this.name.rsplit('.');
            let (kind, version) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
            format!("{version}.{kind}")
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds;

    fn sts(spec: Value) -> Value {
        json!({ "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": { "name": "web",
            "creationTimestamp": null }, "spec": spec })
    }

    #[test]
    fn strict_errors_come_in_the_bodys_order() {
        let body = br#"{"metadata":{"name":"a","name":"b","zz":1},"data":{},"unknown":1,"immutable":true,"unknown":2,
            "immutable":false,"another":1}"#;
        let refused = decode_bytes(&kinds::CONFIG_MAP, body, FieldValidation::Strict).expect_err("strict");
        let wanted = r#"strict decoding error: duplicate field "metadata.name", unknown field "metadata.zz", unknown field "unknown", duplicate field "immutable", unknown field "another""#;
        assert!(refused.message.ends_with(wanted), "{}", refused.message);
    }

    #[test]
    fn type_errors_are_gos() {
        let kind = &kinds::STATEFUL_SET;
        let table = [
            (
                json!({ "replicas": "3" }),
                "cannot unmarshal string into Go struct field StatefulSetSpec.spec.replicas of type int32",
            ),
            (
                json!({ "replicas": 99999999999i64 }),
                "cannot unmarshal number 99999999999 into Go struct field StatefulSetSpec.spec.replicas of type int32",
            ),
            (
                json!({ "replicas": 1.5 }),
                "cannot unmarshal number 1.5 into Go struct field StatefulSetSpec.spec.replicas of type int32",
            ),
            (
                json!({ "template": { "spec": { "containers": [{ "env": [{ "name": "A", "value": 1 }] }] } } }),
                "cannot unmarshal number into Go struct field EnvVar.spec.template.spec.containers.env.value of type \
                    string",
            ),
            (
                json!({ "template": { "spec": { "containers": {} } } }),
                "cannot unmarshal object into Go struct field PodSpec.spec.template.spec.containers of type \
                    []v1.Container",
            ),
        ];
        for (spec, why) in table {
            let status = decode(kind, &mut sts(spec), FieldValidation::Ignore).expect_err("a type error");
            assert_eq!(
                status.message,
                format!("StatefulSet in version \"v1\" cannot be handled as a StatefulSet: json: {why}")
            );
            assert_eq!((status.code, &*status.reason), (400, "BadRequest"));
        }
    }

    #[test]
    fn unknown_and_duplicate_fields() {
        let body = br#"{"metadata":{"name":"web"},"spec":{"foo":1,"replicas":2,"replicas":3,
            "template":{"spec":{"containers":[{"name":"a","resources":{"limits":{"cpu":2}},"bar":{}}]}}}}"#;
        let kind = &kinds::STATEFUL_SET;
        let fields = [
            r#"unknown field "spec.foo""#,
            r#"duplicate field "spec.replicas""#,
            r#"unknown field "spec.template.spec.containers[0].bar""#,
        ];
        let (object, warnings) = decode_bytes(kind, body, FieldValidation::Warn).expect("decodes");
        assert_eq!(warnings, fields);
        assert_eq!(
            object,
            json!({ "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": { "name": "web" },
                "spec": { "replicas": 3,
                "template": { "spec": { "containers": [{ "name": "a", "resources": {
                    "limits": { "cpu": "2" } } }] } } } })
        );
        assert!(decode_bytes(kind, body, FieldValidation::Ignore).is_ok_and(|(_, warnings)| warnings.is_empty()));
        let refused = decode_bytes(kind, body, FieldValidation::Strict).expect_err("strict");
        assert_eq!(
            refused.message,
            format!(
                "StatefulSet in version \"v1\" cannot be handled as a StatefulSet: strict decoding error: {}",
                fields.join(", ")
            )
        );
    }

    /// S11: what upstream's structs leave out is not kept, whoever writes it; what is a pointer there is.
    #[test]
    fn s11_what_is_empty_is_dropped_where_upstream_drops_it() {
        let body = json!({ "metadata": { "name": "web", "labels": {} }, "spec": { "replicas": 0, "minReadySeconds": 0,
            "template": { "metadata": { "annotations": {}, "labels": { "a": "" } }, "spec": { "hostNetwork": false,
                "nodeSelector": {}, "tolerations": [], "terminationGracePeriodSeconds": 0, "securityContext": {},
                "affinity": { "podAffinity": {} }, "initContainers": [], "volumes": [{ "name": "v", "emptyDir": {} }],
                "containers": [{ "name": "a", "tty": false, "args": [], "env": [{ "name": "A", "value": "" }],
                    "securityContext": { "privileged": false, "capabilities": { "drop": [] } },
                    "resources": { "limits": {} }, "startupProbe": { "initialDelaySeconds": 0 } }] } } } });
        let kept = json!({ "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": { "name": "web" },
            "spec": { "replicas": 0, "template": { "metadata": { "labels": { "a": "" } }, "spec": {
                "terminationGracePeriodSeconds": 0, "securityContext": {}, "affinity": { "podAffinity": {} },
                "volumes": [{ "name": "v", "emptyDir": {} }], "containers": [{ "name": "a", "env": [{ "name": "A" }],
                    "securityContext": { "privileged": false, "capabilities": {} },
                    "resources": {}, "startupProbe": {} }] } } } });
        let kind = &kinds::STATEFUL_SET;
        let text = body.to_string();
        let json = decode_bytes(kind, text.as_bytes(), FieldValidation::Strict).expect("JSON");
        let yaml = decode_yaml(kind, text.as_bytes(), FieldValidation::Strict).expect("YAML");
        let mut patched = body.clone();
        decode(kind, &mut patched, FieldValidation::Strict).expect("a patch's result");
        assert_eq!((&json.0, &yaml.0, &patched), (&kept, &kept, &kept));
        // Who applies says what is to be empty.
        let mut whole = body.clone();
        (whole["apiVersion"], whole["kind"]) = ("apps/v1".into(), "StatefulSet".into());
        let (config, _) = decode_config(kind, whole.to_string().as_bytes()).expect("a configuration");
        assert_eq!(config["spec"], body["spec"]);
        let mut secret = json!({ "data": {}, "stringData": { "a": "" }, "type": "" });
        decode(&kinds::SECRET, &mut secret, FieldValidation::Strict).expect("a Secret");
        assert_eq!(secret, json!({ "apiVersion": "v1", "kind": "Secret", "stringData": { "a": "" } }));
    }

    #[test]
    fn conformance_a_configuration_says_of_which_version_and_kind_it_is() {
        let refused =
            |body: Value| decode_config(&kinds::CONFIG_MAP, body.to_string().as_bytes()).expect_err("refused");
        for (given, shown) in [(json!({ "kind": "ConfigMap" }), ""), (json!({ "apiVersion": "v2" }), "v2")] {
            let status = refused(given);
            let words = format!("Specified patch version: {shown}, expected: v1");
            assert_eq!((status.code, status.message.ends_with(&words)), (400, true), "{}", status.message);
        }
        let status = refused(json!({ "apiVersion": "v1", "metadata": { "namespace": "n", "name": "a" } }));
        let words = "failed to create typed patch object (n/a; /v1, Kind=): no corresponding type for /v1, Kind=";
        assert_eq!((status.code, &*status.message), (500, words));
        let good = r#"{ "apiVersion": "v1", "kind": "ConfigMap" }"#;
        assert!(decode_config(&kinds::CONFIG_MAP, good.as_bytes()).is_ok());
    }

    #[test]
    fn conformance_what_a_patch_makes_wrong_is_told_as_that_of_a_patch() {
        use crate::patch::{self, PatchType};
        let body = r#"{"spec":{"replicas":1,"replicas":2,"zz":{"b":[true,null],"a":"x"}}}"#;
        let judged = |patch_type, validation| {
            let mut made =
                patch::patched(&kinds::DEPLOYMENT, patch_type, &json!({}), body.as_bytes()).expect("patched");
            let shown = |new: &Value| patch::shown(patch_type, body.as_bytes(), new);
            decode_patched(&kinds::DEPLOYMENT, &mut made.object, made.duplicates, validation, &shown)
        };
        let found = vec![r#"duplicate field "spec.replicas""#.to_owned(), r#"unknown field "spec.zz""#.to_owned()];
        for patch_type in [PatchType::Strategic, PatchType::Merge] {
            assert_eq!(judged(patch_type, FieldValidation::Warn), Ok(found.clone()));
            assert_eq!(judged(patch_type, FieldValidation::Ignore), Ok(Vec::new()));
            let status = judged(patch_type, FieldValidation::Strict).expect_err("refused");
            let ends = format!("strict decoding error: {}", found.join(", "));
            assert_eq!((status.code, status.message.ends_with(&ends)), (422, true), "{}", status.message);
            assert_eq!(status.details["causes"][0]["field"], "patch");
        }
        let status = judged(PatchType::Strategic, FieldValidation::Strict).expect_err("refused");
        let begins =
            r#" "" is invalid: patch: Invalid value: "map[spec:map[replicas:2 zz:map[a:x b:[true <nil>]]]]": "#;
        assert!(status.message.starts_with(begins), "{}", status.message);
        let long = format!(r#"{{"a":"{}"}}"#, "\u{fc}".repeat(100_000));
        assert!(patch::shown(PatchType::Strategic, long.as_bytes(), &Value::Null).len() < 5_000, "X4");
        let wrong = br#"{"spec":{"replicas":"many"}}"#;
        let mut made = patch::apply_patch(&kinds::DEPLOYMENT, PatchType::Merge, &json!({}), wrong).expect("patched");
        let ignored = FieldValidation::Ignore;
        let status = decode_patched(&kinds::DEPLOYMENT, &mut made, Vec::new(), ignored, &|_| String::new());
        assert_eq!(status.map_err(|status| status.code), Err(422));
    }

    /// A thousand fields below a key of half a megabyte, and fields whose names are no words: each is a reason to
    /// refuse.
    #[test]
    fn x4_unknown_fields_are_all_found_and_their_paths_are_cut() {
        let long = "k".repeat(500_000);
        let below: Map<String, Value> = (0..1_000).map(|index| (format!("u{index}"), json!(1))).collect();
        let body = json!({ "metadata": { "name": "a" }, "zz": 1, "a\"b": 1, "c\"d": 1, long.as_str(): below });
        let (_, found) =
            decode_bytes(&kinds::CONFIG_MAP, body.to_string().as_bytes(), FieldValidation::Warn).expect("read");
        let named = |name: &str| found.iter().any(|message| message == &format!("unknown field \"{name}\""));
        assert!(found.len() == 4 && named("zz") && named("a\"b") && named("c\"d"), "{}", found.len());
        assert!(found.iter().all(|message| message.len() < 1_100));
        let quoted = br#"{"a\"b":1,"c\"d":1}"#;
        assert!(decode_bytes(&kinds::CONFIG_MAP, quoted, FieldValidation::Strict).is_err());
        // As many as that are not all looked for again, and none of them counts less.
        let repeated = vec![r#""data":{}"#; 2_000].join(",");
        let body = format!(r#"{{{repeated},"zz":1,"yy":1}}"#);
        let (_, found) = decode_bytes(&kinds::CONFIG_MAP, body.as_bytes(), FieldValidation::Warn).expect("read");
        assert!(["unknown field \"zz\"", "unknown field \"yy\""].iter().all(|one| found.iter().any(|f| f == one)));
    }

    #[test]
    fn nulls_ports_bytes_and_times() {
        let mut service = json!({ "metadata": { "name": "a", "creationTimestamp": null, "labels": { "a": null } },
            "spec": { "ports": [{ "port": 80, "targetPort": "http" }, { "port": 81, "targetPort": 8081 }] },
                "status": null });
        assert_eq!(decode(&kinds::SERVICE, &mut service, FieldValidation::Strict), Ok(Vec::new()));
        assert_eq!(service["metadata"], json!({ "name": "a", "labels": { "a": "" } }));
        assert!(service.get("status").is_none());
        let mut secret = json!({ "data": { "a": "aGFs\nbG8=" } });
        assert!(decode(&kinds::SECRET, &mut secret, FieldValidation::Strict).is_ok());
        let mut secret = json!({ "data": { "a": "a$==" } });
        assert!(
            decode(&kinds::SECRET, &mut secret, FieldValidation::Strict)
                .is_err_and(|s| s.message.ends_with("illegal base64 data at input byte 1"))
        );
        let mut pod = json!({ "metadata": { "deletionTimestamp": "yesterday" } });
        let status = decode(&kinds::POD, &mut pod, FieldValidation::Ignore).expect_err("no time");
        let words = "Pod in version \"v1\" cannot be handled as a Pod: parsing time \"yesterday\" as \
                     \"2006-01-02T15:04:05Z07:00\": cannot parse \"yesterday\" as \"2006\"";
        assert_eq!((status.code, &*status.message), (400, words));
        let mut lease = json!({ "spec": { "renewTime": "2026-11-21T06:25:07.000001+02:00" },
            "metadata": { "creationTimestamp": "2026-11-21T06:25:07.5+02:00" } });
        assert_eq!(decode(&kinds::LEASE, &mut lease, FieldValidation::Strict), Ok(Vec::new()));
        assert_eq!(lease["spec"]["renewTime"], "2026-11-21T04:25:07.000001Z");
        assert_eq!(lease["metadata"]["creationTimestamp"], "2026-11-21T04:25:07Z");
        for kind in [&kinds::LEASE, &kinds::EVENT] {
            let mut object = json!({ "spec": { "renewTime": "2026-11-21T04:25:07Z" },
                "eventTime": "2026-11-21T04:25:07Z" });
            let refused = decode(kind, &mut object, FieldValidation::Ignore).expect_err("no microseconds");
            assert!(refused.message.ends_with(r#"cannot parse "Z" as ".000000""#), "{}", refused.message);
        }
    }

    #[test]
    fn another_kind_is_refused() {
        let mut pod = json!({ "apiVersion": "v1", "kind": "Pod" });
        let status = decode(&kinds::STATEFUL_SET, &mut pod, FieldValidation::Ignore).expect_err("another kind");
        assert_eq!(
            status.message,
            "the API version in the data (v1) does not match the expected API version (apps/v1)"
        );
        assert!(decode(&kinds::POD, &mut json!({ "kind": "Secret" }), FieldValidation::Ignore).is_err());
        assert!(decode(&kinds::POD, &mut json!([]), FieldValidation::Ignore).is_err());
    }

    #[test]
    fn x4_depth_is_bounded_in_raw_parts_too() {
        let mut data = json!(1);
        for _ in 0..200 {
            data = json!({ "a": data });
        }
        let mut revision = json!({ "data": data, "revision": 1 });
        assert!(decode(&kinds::CONTROLLER_REVISION, &mut revision, FieldValidation::Ignore).is_err());
    }
}
