//! What the kinds of snapshots and of group snapshots share. Upstream serves them as custom resources: cells without a
//! value are null, and complaints are worded as its CRDs' rules are.

use serde_json::{Value, json};

use super::field::{Field, remove};
use super::{Column, workload};
use crate::jiff::Timestamp;
use crate::object::{at, ensure, text};
use crate::status::Cause;
use crate::time;

/// What becomes of a copy when its snapshot goes.
const POLICIES: [&str; 2] = ["Delete", "Retain"];

/// A column with a boolean.
pub const fn boolean(name: &'static str, description: &'static str) -> Column {
    super::cells::column(name, "boolean", "", 0, description)
}

/// A column with a time, which is shown as the time since.
pub const fn date(name: &'static str, description: &'static str) -> Column {
    super::cells::column(name, "date", "", 0, description)
}

/// The value at a path, or null.
pub fn cell(object: &Value, path: &[&str]) -> Value {
    at(object, path).cloned().unwrap_or(Value::Null)
}

/// The time since the one at a path, or null.
pub fn since(object: &Value, path: &[&str], now: Timestamp) -> Value {
    match text(object, path) {
        "" => Value::Null,
        then => json!(time::age_of(then, now)),
    }
}

/// A new object has no status and is of generation 1.
pub fn prepare_create(object: &mut Value) {
    remove(object, "status");
    ensure(object, &["metadata"]).insert("generation".to_owned(), json!(1));
}

/// A class has no status; its generation counts every change but those of the metadata.
pub fn prepare_class_update(new: &mut Value, old: &Value) {
    let changed = ["driver", "deletionPolicy", "parameters", "allowedTopologies"]
        .iter()
        .any(|field| new.get(field) != old.get(field));
    workload::count_generation(new, old, changed);
}

/// `driver` and `deletionPolicy` of a class or of a content's spec.
pub fn driver_and_policy(of: &Field, causes: &mut Vec<Cause>) {
    of.get("driver").need_text(causes);
    of.get("deletionPolicy").need_one_of(causes, &POLICIES);
}

/// Exactly one of two fields.
pub fn exactly_one(of: &Field, [first, second]: [&str; 2], causes: &mut Vec<Cause>) {
    if of.get(first).is_set() == of.get(second).is_set() {
        let detail = format!("exactly one of {first} and {second} must be set");
        causes.push(Cause::invalid(&of.path, "object", &detail));
    }
}

/// A text that must not be empty where it is there.
pub fn not_empty(field: &Field, causes: &mut Vec<Cause>) {
    if field.is_set() && field.text().is_empty() {
        let name = field.path.rsplit('.').next().unwrap_or_default();
        causes.push(field.invalid(&format!("{name} must not be the empty string when set")));
    }
}

/// Name and namespace of the snapshot that a content names.
pub fn reference(spec: &Field, name: &str, causes: &mut Vec<Cause>) {
    let reference = spec.get(name);
    if reference.get("name").text().is_empty() || reference.get("namespace").text().is_empty() {
        let detail = format!("both spec.{name}.name and spec.{name}.namespace must be set");
        causes.push(Cause::invalid(&reference.path, "object", &detail));
    }
}

/// Fields that stay what they are once they are set.
pub fn fixed(new: &Value, old: &Value, paths: &[&[&str]], causes: &mut Vec<Cause>) {
    for path in paths {
        let (is, was) = (Field::root(new).dig(path), Field::root(old).dig(path));
        let name = path.last().copied().unwrap_or_default();
        match (was.is_set(), is.is_set()) {
            (true, false) => {
                causes.push(Cause::invalid(is.path.clone(), "object", &format!("{name} is required once set")))
            }
            (true, true) if was.value != is.value => causes.push(is.invalid(&format!("{name} is immutable"))),
            _ => {}
        }
    }
}
