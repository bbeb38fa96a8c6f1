//! `metadata`, the same for every kind: what the server sets, what a client may not change.

use std::collections::BTreeSet;

use jiff::Timestamp;
use mainstay_api::status::Cause;
use mainstay_api::{Kind, Status, names, object};
use serde_json::{Map, Value, json};

use super::Batch;

/// `2026-11-20T10:00:00Z`, as `metav1.Time` is written.
pub fn time(now: Timestamp) -> Value {
    Value::String(mainstay_api::time::rfc3339(now))
}

/// A random (version 4) UUID.
pub fn new_uid(batch: &Batch<'_>) -> String {
    let mut bytes = batch.random::<16>();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Names a new object after its `generateName` where it has no name.
pub fn generate_name(batch: &Batch<'_>, object: &mut Value) -> bool {
    let base = object::text(object, &["metadata", "generateName"]).to_owned();
    if base.is_empty() || !object::name(object).is_empty() {
        return false;
    }
    let name = names::generated(&base, batch.random());
    object::ensure(object, &["metadata"]).insert("name".to_owned(), name.into());
    true
}

/// Checks that the body is of the kind, and belongs where the request's path says; fills in what it leaves out.
pub fn settle(kind: &Kind, namespace: &str, name: Option<&str>, object: &mut Value) -> Result<(), Status> {
    if !object.is_object() {
        return Err(Status::bad_request("the body of the request is not an object"));
    }
    let (api_version, kind_name) = (object::text(object, &["apiVersion"]), object::text(object, &["kind"]));
    if (!api_version.is_empty() && api_version != kind.api_version())
        || (!kind_name.is_empty() && kind_name != kind.kind)
    {
        return Err(Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): got {kind_name} of {api_version}",
            kind.kind
        )));
    }
    if object.get("metadata").is_some_and(|metadata| !metadata.is_object() && !metadata.is_null()) {
        return Err(Status::bad_request("json: cannot unmarshal metadata into Go struct field of type v1.ObjectMeta"));
    }
    let found = object::namespace(object);
    if kind.namespaced && !found.is_empty() && found != namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    if let Some(name) = name {
        let found = object::name(object);
        if !found.is_empty() && found != name {
            return Err(Status::bad_request(format!(
                "the name of the object ({found}) does not match the name on the URL ({name})"
            )));
        }
    }
    let Value::Object(fields) = &mut *object else { return Ok(()) };
    fields.insert("apiVersion".to_owned(), kind.api_version().into());
    fields.insert("kind".to_owned(), kind.kind.clone().into());
    let metadata = object::ensure(object, &["metadata"]);
    if kind.namespaced {
        metadata.insert("namespace".to_owned(), namespace.into());
    } else {
        metadata.remove("namespace");
    }
    if let Some(name) = name {
        metadata.insert("name".to_owned(), name.into());
    }
    // As upstream: that is no version, and says nothing of what its sender has seen.
    if metadata.get("resourceVersion").is_some_and(|version| version == "0") {
        metadata.remove("resourceVersion");
    }
    metadata.remove("selfLink");
    drop_empty(metadata);
    Ok(())
}

/// Leaves out what is empty, as upstream's encoding does, so that an update that only adds `"labels": {}` is none.
fn drop_empty(metadata: &mut Map<String, Value>) {
    for field in [
        "labels",
        "annotations",
        "finalizers",
        "ownerReferences",
        "generateName",
        "deletionTimestamp",
        "creationTimestamp",
    ] {
        let is_empty = metadata.get(field).is_some_and(|value| match value {
            Value::Object(map) => map.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::String(text) => text.is_empty(),
            Value::Null => true,
            _ => false,
        });
        if is_empty {
            metadata.remove(field);
        }
    }
}

/// What the server alone sets on a new object.
pub fn begin(batch: &Batch<'_>, object: &mut Value) {
    let uid = new_uid(batch);
    let created = time(batch.now);
    let metadata = object::ensure(object, &["metadata"]);
    for field in ["resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"] {
        metadata.remove(field);
    }
    metadata.insert("uid".to_owned(), uid.into());
    metadata.insert("creationTimestamp".to_owned(), created);
}

/// What no update changes.
pub fn carry(new: &mut Value, old: &Value) {
    let kept: Vec<(&str, Option<Value>)> = [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "resourceVersion",
        "generateName",
    ]
    .into_iter()
    .map(|field| (field, object::at(old, &["metadata", field]).cloned()))
    .collect();
    let metadata = object::ensure(new, &["metadata"]);
    for (field, value) in kept {
        match value {
            Some(value) => metadata.insert(field.to_owned(), value),
            None => metadata.remove(field),
        };
    }
}

/// Sets when an object goes: `deletionTimestamp` is the moment at which the grace period (seconds) is over.
pub fn mark_deleting(object: &mut Value, now: Timestamp, grace: i64) {
    let at = Timestamp::from_second(now.as_second().saturating_add(grace)).unwrap_or(now);
    let generation = object::at(object, &["metadata", "generation"]).and_then(Value::as_i64);
    let metadata = object::ensure(object, &["metadata"]);
    metadata.insert("deletionTimestamp".to_owned(), time(at));
    metadata.insert("deletionGracePeriodSeconds".to_owned(), json!(grace));
    if let Some(generation) = generation.filter(|generation| *generation > 0) {
        metadata.insert("generation".to_owned(), json!(generation.saturating_add(1)));
    }
}

/// How many finalizers a message names.
const MAX_TOLD: usize = 20;

/// No finalizer may be added to an object on its way out: whoever waits for it to go could wait for ever.
pub fn no_new_finalizers(new: &Value, old: &Value, causes: &mut Vec<Cause>) {
    if !object::is_terminating(old) {
        return;
    }
    let before: BTreeSet<&str> = object::finalizers(old).collect();
    let added = object::finalizers(new).filter(|finalizer| !before.contains(finalizer));
    let (told, more): (Vec<String>, usize) = added.fold((Vec::new(), 0), |(mut told, more), finalizer| {
        if told.len() < MAX_TOLD {
            told.push(format!("{finalizer:?}"));
        }
        (told, more + 1)
    });
    if !told.is_empty() {
        let rest = if more > told.len() { format!(" and {} more", more - told.len()) } else { String::new() };
        let detail = format!(
            "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}{rest}",
            told.join(", ")
        );
        causes.push(Cause::forbidden("metadata.finalizers", &detail));
    }
}

/// What every object's metadata must look like, in upstream's words.
pub fn validate(kind: &Kind, object: &Value, causes: &mut Vec<Cause>) {
    let name = object::name(object);
    for message in names::name(kind.name_rule, name, false) {
        causes.push(Cause::invalid("metadata.name", name, &message));
    }
    if kind.namespaced {
        let namespace = object::namespace(object);
        for message in names::label(namespace) {
            causes.push(Cause::invalid("metadata.namespace", namespace, &message));
        }
    }
    for (key, value) in object::at(object, &["metadata", "labels"]).and_then(Value::as_object).into_iter().flatten() {
        for message in names::qualified(key) {
            causes.push(Cause::invalid("metadata.labels", key.as_str(), &message));
        }
        let value = value.as_str().unwrap_or("");
        for message in names::label_value(value) {
            causes.push(Cause::invalid("metadata.labels", value, &message));
        }
    }
    let mut size = 0;
    for (key, value) in
        object::at(object, &["metadata", "annotations"]).and_then(Value::as_object).into_iter().flatten()
    {
        for message in names::qualified(&key.to_lowercase()) {
            causes.push(Cause::invalid("metadata.annotations", key.as_str(), &message));
        }
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > names::ANNOTATIONS_SIZE {
        causes.push(Cause::too_long("metadata.annotations", names::ANNOTATIONS_SIZE));
    }
    for finalizer in object::finalizers(object) {
        for message in names::qualified(finalizer) {
            causes.push(Cause::invalid("metadata.finalizers", finalizer, &message));
        }
    }
    let owners = object::at(object, &["metadata", "ownerReferences"]).and_then(Value::as_array).into_iter().flatten();
    let mut controllers = 0;
    for (index, owner) in owners.enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if object::text(owner, &[field]).is_empty() {
                causes.push(Cause::invalid(
                    format!("metadata.ownerReferences[{index}].{field}"),
                    "",
                    "must not be empty",
                ));
            }
        }
        if (object::text(owner, &["apiVersion"]), object::text(owner, &["kind"])) == ("v1", "Event") {
            let why = "/v1, Kind=Event is disallowed from being an owner";
            causes.push(Cause::invalid(format!("metadata.ownerReferences[{index}]"), owner.clone(), why));
        }
        controllers += usize::from(owner.get("controller").and_then(Value::as_bool).unwrap_or(false));
    }
    if controllers > 1 {
        causes.push(Cause::invalid(
            "metadata.ownerReferences",
            "",
            "Only one reference can have Controller set to true",
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x4_finalizers_of_an_object_on_its_way_out_cost_their_number_and_a_message_names_some() {
        let of = |prefix: &str| {
            let finalizers: Vec<String> = (0..40_000).map(|at| format!("{prefix}/{at}")).collect();
            json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": finalizers } })
        };
        let mut causes = Vec::new();
        no_new_finalizers(&of("a"), &of("a"), &mut causes);
        assert!(causes.is_empty());
        no_new_finalizers(&of("b"), &of("a"), &mut causes);
        let message = &causes.first().expect("refused").message;
        assert!(message.ends_with("\"b/19\"} and 39980 more") && message.len() < 1000, "{message}");
    }
}
