//! Two small tools that every kind's file is written with: filling in defaults, and a cursor that knows its path.

use serde_json::{Map, Value};

use crate::names;
use crate::status::Cause;

/// Upstream's words for what may not change.
pub const IMMUTABLE: &str = "field is immutable";
const NON_NEGATIVE: &str = "must be greater than or equal to 0";

/// Sets `name` in `object` where it is absent or null; a text also where it is empty, as upstream's defaulting does,
/// for which an empty text is one that is not set.
pub fn default(object: &mut Value, name: &str, value: impl Into<Value>) {
    if let Value::Object(map) = object {
        let value = value.into();
        let entry = map.entry(name).or_insert(Value::Null);
        if entry.is_null() || (value.is_string() && entry.as_str() == Some("")) {
            *entry = value;
        }
    }
}

/// The items of a list field, for changing; none where it is not a list.
pub fn each<'a>(object: &'a mut Value, name: &str) -> impl Iterator<Item = &'a mut Value> {
    object.get_mut(name).and_then(Value::as_array_mut).into_iter().flatten()
}

/// The object in a field that is set, for changing.
pub fn inner<'a>(object: &'a mut Value, name: &str) -> Option<&'a mut Value> {
    object.get_mut(name).filter(|value| value.is_object())
}

/// The object in a field, made where it is absent or null.
pub fn made<'a>(object: &'a mut Value, name: &str) -> Option<&'a mut Value> {
    default(object, name, Map::new());
    inner(object, name)
}

/// Removes a field of the object.
pub fn remove(object: &mut Value, name: &str) {
    if let Value::Object(map) = object {
        map.remove(name);
    }
}

/// Makes a field of `new` what it is in `old`, or takes it away where `old` has none.
pub fn keep(new: &mut Value, old: &Value, name: &str) {
    match (new, old.get(name)) {
        (Value::Object(map), Some(value)) => {
            map.insert(name.to_owned(), value.clone());
        }
        (new, _) => remove(new, name),
    }
}

static NULL: Value = Value::Null;

/// A value and where it stands: `spec.containers[0].ports`. An absent field is null.
#[derive(Clone, Debug)]
pub struct Field<'a> {
    /// The value, or null.
    pub value: &'a Value,
    /// Its path, in upstream's notation.
    pub path: String,
}

#[expect(clippy::len_without_is_empty, reason = "a field that is not there has no items either: counts are compared")]
impl<'a> Field<'a> {
    /// The whole object.
    pub fn root(value: &'a Value) -> Self {
        Self { value, path: String::new() }
    }

    /// The field `name` below this one.
    pub fn get(&self, name: &str) -> Self {
        // Not formatted: each validation makes hundreds of these, and mostly shows none.
        let path = if self.path.is_empty() { name.to_owned() } else { [&self.path, ".", name].concat() };
        Self { value: self.value.get(name).unwrap_or(&NULL), path }
    }

    /// A field several steps below.
    pub fn dig(&self, names: &[&str]) -> Self {
        match names {
            [] => self.clone(),
            [first, rest @ ..] => rest.iter().fold(self.get(first), |field, name| field.get(name)),
        }
    }

    /// The items of a list.
    pub fn items(&self) -> impl Iterator<Item = Self> + use<'a> {
        let items = self.value.as_array().map(Vec::as_slice).unwrap_or_default();
        let path = if items.is_empty() { String::new() } else { self.path.clone() };
        items.iter().enumerate().map(move |(index, value)| Self { value, path: format!("{path}[{index}]") })
    }

    /// The entries of a map, with `path[key]`.
    pub fn entries(&self) -> impl Iterator<Item = (&'a str, Self)> + use<'a> {
        let entries = self.value.as_object().filter(|entries| !entries.is_empty());
        let path = entries.map_or_else(String::new, |_| self.path.clone());
        let entries = entries.into_iter().flatten();
        entries.map(move |(key, value)| (key.as_str(), Self { value, path: format!("{path}[{key}]") }))
    }

    /// How many items or entries it has.
    pub fn len(&self) -> usize {
        self.value.as_array().map(Vec::len).or_else(|| self.value.as_object().map(Map::len)).unwrap_or(0)
    }

    /// The text, or `""`.
    pub fn text(&self) -> &'a str {
        self.value.as_str().unwrap_or("")
    }

    /// The number, where it is one.
    pub fn int(&self) -> Option<i64> {
        self.value.as_i64()
    }

    /// Whether it is `true`.
    pub fn is_true(&self) -> bool {
        self.value.as_bool() == Some(true)
    }

    /// Whether it is there.
    pub fn is_set(&self) -> bool {
        !self.value.is_null()
    }

    /// `Invalid value`, about this field.
    pub fn invalid(&self, detail: &str) -> Cause {
        Cause::invalid(&self.path, self.value.clone(), detail)
    }

    /// A text that must be there. Says so and returns false where it is not.
    pub fn need_text(&self, causes: &mut Vec<Cause>) -> bool {
        let there = !self.text().is_empty();
        if !there {
            causes.push(Cause::required(&self.path, ""));
        }
        there
    }

    /// A text that must be there and pass `check`.
    pub fn need(&self, causes: &mut Vec<Cause>, check: fn(&str) -> Vec<String>) {
        if self.need_text(causes) {
            self.check(causes, check);
        }
    }

    /// A text that, where it is there, must pass `check`.
    pub fn check(&self, causes: &mut Vec<Cause>, check: fn(&str) -> Vec<String>) {
        if !self.text().is_empty() {
            causes.extend(check(self.text()).iter().map(|wrong| self.invalid(wrong)));
        }
    }

    /// A text that must be there and be one of `allowed` (in upstream's order).
    pub fn need_one_of(&self, causes: &mut Vec<Cause>, allowed: &[&str]) {
        if self.need_text(causes) {
            self.one_of(causes, allowed);
        }
    }

    /// A text that, where it is there, must be one of `allowed`.
    pub fn one_of(&self, causes: &mut Vec<Cause>, allowed: &[&str]) {
        if !self.text().is_empty() && !allowed.contains(&self.text()) {
            causes.push(Cause::not_supported(&self.path, self.value.clone(), allowed));
        }
    }

    /// A number that may not be below 0.
    pub fn not_negative(&self, causes: &mut Vec<Cause>) {
        if self.int().is_some_and(|n| n < 0) {
            causes.push(self.invalid(NON_NEGATIVE));
        }
    }

    /// A number that, where it is there, must be a port.
    pub fn port(&self, causes: &mut Vec<Cause>) {
        causes.extend(self.int().map(names::port).into_iter().flatten().map(|wrong| self.invalid(&wrong)));
    }

    /// Must be what it was.
    pub fn immutable(&self, old: &Self, causes: &mut Vec<Cause>) {
        if self.value != old.value {
            causes.push(self.invalid(IMMUTABLE));
        }
    }
}
