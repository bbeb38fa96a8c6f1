//! Reading and writing the few fields that every Kubernetes object has, on plain JSON.

use std::fmt;
use std::sync::Arc;

use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

/// An object's JSON as upstream prints it: `kind` and `apiVersion` first, whatever follows.
///
/// A custom resource begins with its `apiVersion`, as there: upstream prints it as the map that it is.
pub fn print(object: &Value) -> String {
    let group = text(object, &["apiVersion"]).split_once('/').map_or("", |(group, _)| group);
    let is_custom = group.contains('.') && !group.ends_with(".k8s.io");
    if is_custom { object.to_string() } else { serde_json::to_string(&Printed(object)).unwrap_or_default() }
}

/// Prints an object with its type first.
struct Printed<'a>(&'a Value);

/// The fields that say what an object is, in upstream's order.
const TYPE_META: [&str; 2] = ["kind", "apiVersion"];

impl Serialize for Printed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Some(object) = self.0.as_object() else { return self.0.serialize(serializer) };
        let mut map = serializer.serialize_map(Some(object.len()))?;
        for (key, value) in TYPE_META.iter().filter_map(|key| object.get_key_value(*key)) {
            map.serialize_entry(key, value)?;
        }
        for (key, value) in object.iter().filter(|(key, _)| !TYPE_META.contains(&key.as_str())) {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

/// Namespace and name of an object; the namespace is empty for cluster-scoped kinds.
///
/// Ordered by namespace, then name, so that a range over an ordered map is one namespace.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectKey {
    /// Empty for a cluster-scoped object.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// A key from its two parts.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The key of an object as JSON.
    pub fn of(object: &Value) -> Self {
        Self::new(namespace(object), name(object))
    }
}

impl fmt::Display for ObjectKey {
    /// `namespace/name`, or just the name for cluster-scoped objects, as upstream prints keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.namespace {
            "" => f.write_str(&self.name),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

/// The string at a path of field names, or `""` where there is none.
pub fn text<'a>(object: &'a Value, path: &[&str]) -> &'a str {
    at(object, path).and_then(Value::as_str).unwrap_or("")
}

/// The value at a path of field names.
pub fn at<'a>(object: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(object, |value, field| value.get(field))
}

/// RFC 7396: objects are merged field by field, null takes away, everything else replaces.
pub fn merge(target: &mut Value, patch: Value) {
    let Value::Object(fields) = patch else {
        *target = patch;
        return;
    };
    let target = ensure(target, &[]);
    for (field, value) in fields {
        if value.is_null() {
            target.remove(&field);
        } else {
            merge(target.entry(field).or_insert(Value::Null), value);
        }
    }
}

/// The object at a path of field names, made where it is missing or not an object.
pub fn ensure<'a>(object: &'a mut Value, path: &[&str]) -> &'a mut Map<String, Value> {
    let mut current = object;
    for field in path {
        if !current.is_object() {
            *current = Value::Object(Map::new());
        }
        let Value::Object(map) = current else { unreachable!("made an object above") };
        current = map.entry(*field).or_insert_with(|| Value::Object(Map::new()));
    }
    if !current.is_object() {
        *current = Value::Object(Map::new());
    }
    let Value::Object(map) = current else { unreachable!("made an object above") };
    map
}

/// `metadata.name`, or `""`.
pub fn name(object: &Value) -> &str {
    text(object, &["metadata", "name"])
}

/// `metadata.namespace`, or `""`.
pub fn namespace(object: &Value) -> &str {
    text(object, &["metadata", "namespace"])
}

/// `metadata.uid`, or `""`.
pub fn uid(object: &Value) -> &str {
    text(object, &["metadata", "uid"])
}

/// `metadata.resourceVersion`, or `""`.
pub fn resource_version(object: &Value) -> &str {
    text(object, &["metadata", "resourceVersion"])
}

/// Whether `metadata.deletionTimestamp` is set.
pub fn is_terminating(object: &Value) -> bool {
    !text(object, &["metadata", "deletionTimestamp"]).is_empty()
}

/// `metadata.finalizers`, without anything that is not a string.
pub fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    at(object, &["metadata", "finalizers"]).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_an_object_is_comes_first() {
        let of = |api_version: &str| json!({ "apiVersion": api_version, "data": {}, "kind": "A", "metadata": {} });
        assert_eq!(print(&of("v1")), r#"{"kind":"A","apiVersion":"v1","data":{},"metadata":{}}"#);
        assert!(print(&of("apps/v1")).starts_with(r#"{"kind":"A","apiVersion":"apps/v1","#));
        assert!(print(&of("example.com/v1")).starts_with(r#"{"apiVersion":"example.com/v1","#));
        assert_eq!(print(&json!([1])), "[1]");
    }
}
