//! ConfigMap: configuration that containers read.

use std::borrow::Cow::Borrowed;

use serde_json::{Value, json};

use super::cells::{AGE, NAME, age, text_column};
use super::field::Field;
use super::{BASE, Kind, Row};
use crate::names;
use crate::object::name;
use crate::status::Cause;

/// Most bytes of data in a ConfigMap or Secret.
pub const MAX_SIZE: usize = 1024 * 1024;
const HELD: &str = "field is immutable when `immutable` is set";

/// The row of ConfigMap.
pub static CONFIG_MAP: Kind = Kind::BuiltIn(&Row {
    kind: Borrowed("ConfigMap"),
    plural: Borrowed("configmaps"),
    singular: Borrowed("configmap"),
    short_names: Borrowed(&[Borrowed("cm")]),
    type_name: Borrowed("io.k8s.api.core.v1.ConfigMap"),
    columns: Borrowed(&[NAME, text_column("Data", "How many entries it has."), AGE]),
    row: |_, map, now| {
        let entries = Field::root(map).get("data").len() + Field::root(map).get("binaryData").len();
        vec![json!(name(map)), json!(entries), age(map, now)]
    },
    validate: |_, map, causes| {
        let map = Field::root(map);
        let mut size = 0usize;
        for field in ["data", "binaryData"] {
            for (key, value) in map.get(field).entries() {
                validate_key(key, &value, causes);
                size = size.saturating_add(value.text().len());
            }
        }
        for (key, value) in map.get("binaryData").entries().filter(|(key, _)| map.get("data").get(key).is_set()) {
            causes.push(Cause::invalid(&value.path, key, "duplicate of key present in data"));
        }
        if size > MAX_SIZE {
            causes.push(Cause::too_long("[]", MAX_SIZE));
        }
    },
    validate_update: |_, new, old, causes| held(new, old, &["data", "binaryData"], causes),
    ..BASE
});

/// A key of the data of a ConfigMap or Secret.
pub fn validate_key(key: &str, at: &Field, causes: &mut Vec<Cause>) {
    causes.extend(names::config_key(key).iter().map(|wrong| Cause::invalid(&at.path, key, wrong)));
}

/// An immutable ConfigMap or Secret keeps its data, and stays immutable.
pub fn held(new: &Value, old: &Value, fields: &[&str], causes: &mut Vec<Cause>) {
    let (new, old) = (Field::root(new), Field::root(old));
    if !old.get("immutable").is_true() {
        return;
    }
    if !new.get("immutable").is_true() {
        causes.push(Cause::forbidden("immutable", HELD));
    }
    for field in fields {
        if new.get(field).value != old.get(field).value {
            causes.push(Cause::forbidden(*field, HELD));
        }
    }
}
