//! What the rows of `kubectl get` are made of.

use std::borrow::Cow::Borrowed;

use serde_json::{Value, json};

use super::Column;
use super::field::Field;
use crate::jiff::Timestamp;
use crate::object::{at, name, text};
use crate::selector::Labels;
use crate::time;

/// The name column.
pub const NAME: Column = Column {
    name: Borrowed("Name"),
    type_: "string",
    format: "name",
    priority: 0,
    description: Borrowed("Name of the object, unique within its namespace."),
};
/// The age column.
pub const AGE: Column = text_column("Age", "Time since the object was created.");
/// The column of kinds that upstream prints without an age.
pub const CREATED_AT: Column = column("Created At", "date", "", 0, "When the object was created.");
/// Container names, with `-o wide`.
pub const CONTAINERS: Column = wide("Containers", "Names of the containers of the template.");
/// Container images, with `-o wide`.
pub const IMAGES: Column = wide("Images", "Images of the containers of the template.");
/// The selector, with `-o wide`.
pub const SELECTOR: Column = wide("Selector", "Selector of the pods that belong to it.");

/// Any column.
pub const fn column(
    name: &'static str,
    type_: &'static str,
    format: &'static str,
    priority: i32,
    description: &'static str,
) -> Column {
    Column { name: Borrowed(name), type_, format, priority, description: Borrowed(description) }
}

/// A text column that is always shown.
pub const fn text_column(name: &'static str, description: &'static str) -> Column {
    column(name, "string", "", 0, description)
}

/// A number column that is always shown.
pub const fn number(name: &'static str, description: &'static str) -> Column {
    column(name, "integer", "", 0, description)
}

/// A text column that only `-o wide` shows.
pub const fn wide(name: &'static str, description: &'static str) -> Column {
    column(name, "string", "", 1, description)
}

/// Time since the object was made.
pub fn age(object: &Value, now: Timestamp) -> Value {
    json!(time::age_of(text(object, &["metadata", "creationTimestamp"]), now))
}

/// The row of a kind that shows nothing but name and age.
pub fn name_and_age(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![json!(name(object)), age(object, now)]
}

/// The row of a kind that shows nothing but its name and when it was made.
pub fn name_and_time(object: &Value) -> Vec<Value> {
    vec![json!(name(object)), json!(text(object, &["metadata", "creationTimestamp"]))]
}

/// A text, or `<none>`.
pub fn or_none(text: &str) -> Value {
    json!(if text.is_empty() { "<none>" } else { text })
}

/// The number at a path, or 0.
pub fn count(object: &Value, path: &[&str]) -> i64 {
    at(object, path).and_then(Value::as_i64).unwrap_or(0)
}

/// Names and images of the containers of `spec.template`.
pub fn containers(object: &Value) -> [Value; 2] {
    ["name", "image"].map(|field| {
        let items = Field::root(object).dig(&["spec", "template", "spec", "containers"]).items();
        json!(items.map(|c| c.get(field).text()).collect::<Vec<_>>().join(","))
    })
}

/// A JSON `LabelSelector` as text.
pub fn selector(object: &Value, path: &[&str]) -> Value {
    match Labels::from_json(at(object, path)) {
        Ok(labels) => or_none(&labels.to_string()),
        Err(_) => json!("<error>"),
    }
}

/// A plain map of labels as text.
pub fn labels(object: &Value, path: &[&str]) -> Value {
    let entries = Field::root(object).dig(path).entries();
    or_none(&entries.map(|(key, value)| format!("{key}={}", value.text())).collect::<Vec<_>>().join(","))
}

/// Access modes as `RWO,RWX`.
pub fn access_modes(modes: Option<&Value>) -> String {
    let has = |mode: &str| modes.and_then(Value::as_array).is_some_and(|list| list.iter().any(|m| m == mode));
    let short =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    short.into_iter().filter(|(mode, _)| has(mode)).map(|(_, short)| short).collect::<Vec<_>>().join(",")
}

/// At most three of `list`, and how many more there are.
pub fn three_of(list: &[String]) -> String {
    let shown = list.get(..3).unwrap_or(list).join(",");
    match list.len() {
        0..=3 => shown,
        all => format!("{shown} + {} more...", all - 3),
    }
}

/// The phase, or `Terminating` for an object on its way out.
pub fn phase(object: &Value) -> Value {
    if crate::object::is_terminating(object) { json!("Terminating") } else { json!(text(object, &["status", "phase"])) }
}
