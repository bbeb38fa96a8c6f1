//! The table of fields that are left out where they are empty: the loader of `omitted.txt`.
//!
//! Upstream reads an object into Go's structs and writes those: `hostNetwork: false` in a pod template, or
//! `annotations: {}`, are gone after that, so that who adds one changes nothing (S11). A field that is a pointer there
//! (`replicas: 0`, `emptyDir: {}`) says something also where it is empty.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::Value;

use super::types::{Shape, shape_of_kind};
use crate::kinds::Kind;

static TABLE: LazyLock<BTreeMap<&'static str, Vec<&'static str>>> =
    LazyLock::new(|| parse(include_str!("omitted.txt")));

/// Whether this field of the type with this definition name is left out where it is empty.
pub(super) fn is_omitted(type_name: &str, field: &str) -> bool {
    let fields = type_name.strip_prefix("io.k8s.").and_then(|name| TABLE.get(name));
    fields.is_some_and(|fields| fields.binary_search(&field).is_ok())
}

/// Whether a value is what Go leaves out.
pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(is) => !is,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

/// Takes out of an object what means "not set": nulls, and what is empty where upstream leaves that out. Of a value
/// that is not of its type everything stays, and so it does in custom resources, where what is empty says something.
pub fn drop_empty(kind: &Kind, object: &mut Value) {
    if kind.custom.is_none() {
        drop_in(shape_of_kind(kind), object);
    }
}

fn drop_in(shape: Shape, value: &mut Value) {
    match (shape, value) {
        (Shape::Struct(this), Value::Object(map)) => map.retain(|name, value| {
            let Some(field) = this.field(name) else { return !value.is_null() };
            drop_in(field.shape, value);
            !(value.is_null() || field.is_omitted && is_empty(value))
        }),
        (Shape::Map(inner), Value::Object(map)) => map.values_mut().for_each(|value| drop_in(*inner, value)),
        (Shape::List(inner), Value::Array(items)) => items.iter_mut().for_each(|item| drop_in(*inner, item)),
        _ => {}
    }
}

fn parse(text: &'static str) -> BTreeMap<&'static str, Vec<&'static str>> {
    let mut table: BTreeMap<&'static str, Vec<&'static str>> = BTreeMap::new();
    let mut current = "";
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.split_whitespace();
        if !line.starts_with(' ') {
            current = words.next().unwrap_or("");
        }
        table.entry(current).or_default().extend(words);
    }
    table.values_mut().for_each(|fields| fields.sort_unstable());
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_pointer_is_omitted_where_it_is_empty() {
        for (type_name, field, is) in [
            ("core.v1.PodSpec", "hostNetwork", true),
            ("core.v1.PodSpec", "volumes", true),
            ("core.v1.PodSpec", "topologySpreadConstraints", true),
            ("core.v1.EphemeralContainer", "tty", true),
            ("core.v1.SecurityContext", "privileged", false),
            ("core.v1.Volume", "emptyDir", false),
            ("core.v1.PodSpec", "containers", false),
            ("core.v1.ConfigMap", "data", true),
            ("apps.v1.StatefulSetSpec", "replicas", false),
            ("discovery.v1.EndpointSlice", "endpoints", false),
        ] {
            assert_eq!(is_omitted(&format!("io.k8s.api.{type_name}"), field), is, "{type_name}.{field}");
        }
        assert!(is_omitted("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta", "annotations"));
        assert!(is_empty(&serde_json::json!(0)) && !is_empty(&serde_json::json!("0")));
    }

    /// A type that is misspelled or gone would be silently without effect.
    #[test]
    fn the_table_names_fields_that_exist() {
        for kind in crate::kinds::ALL {
            super::super::shape_of(&kind.type_name);
        }
        let mut met = 0;
        for (type_name, fields) in TABLE.iter() {
            let Some(known) = super::super::types::known(&format!("io.k8s.{type_name}")) else { continue };
            met += 1;
            for field in fields {
                assert!(known.field(field).is_none_or(|field| field.is_omitted), "{type_name}.{field}");
            }
        }
        assert!(met > 200, "{met} of {} types are known", TABLE.len());
    }
}
