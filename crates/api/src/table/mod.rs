//! Objects as rows (`metav1.Table`, what `kubectl get` prints) and as their metadata alone.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::kinds::Kind;

/// What each row carries besides its cells (`includeObject`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// A `PartialObjectMetadata`. Upstream's default.
    Metadata,
    /// The whole object.
    Object,
}

impl IncludeObject {
    /// The value of the `includeObject` parameter; anything unknown is none.
    pub fn from_parameter(value: &str) -> Option<Self> {
        match value {
            "" | "Metadata" => Some(Self::Metadata),
            "None" => Some(Self::None),
            "Object" => Some(Self::Object),
            _ => None,
        }
    }
}

/// The form in which a client wants objects, by its `Accept` header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Representation {
    /// As they are.
    Object,
    /// `metav1.Table`.
    Table,
    /// `PartialObjectMetadata`, or its list.
    Partial,
}

impl Representation {
    /// The first form of an `Accept` header that is served; `None` where none is (406).
    ///
    /// Protobuf is not served; clients that prefer it name JSON after it.
    pub fn from_accept(accept: &str) -> Option<Self> {
        if accept.trim().is_empty() {
            return Some(Self::Object);
        }
        accept.split(',').find_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or("");
            if !matches!(media, "application/json" | "application/*" | "*/*") {
                return None;
            }
            let parameters: Vec<&str> = parts.collect();
            match parameters.iter().find_map(|parameter| parameter.strip_prefix("as=")) {
                None => Some(Self::Object),
                Some("Table") if parameters.contains(&"v=v1") => Some(Self::Table),
                Some("PartialObjectMetadata" | "PartialObjectMetadataList") if parameters.contains(&"v=v1") => {
                    Some(Self::Partial)
                }
                Some(_) => None,
            }
        })
    }
}

/// A table of objects. `metadata` is the list's (or, for one object, its `resourceVersion` alone);
/// `headers` is false for all events of a watch but the first, as upstream saves them.
pub fn table<'a>(
    kind: &Kind,
    objects: impl IntoIterator<Item = &'a Value>,
    metadata: Value,
    include: IncludeObject,
    headers: bool,
    now: Timestamp,
) -> Value {
    let rows: Vec<Value> = objects
        .into_iter()
        .map(|object| {
            let mut row = Map::new();
            row.insert("cells".to_owned(), Value::Array((kind.row)(kind, object, now)));
            match include {
                IncludeObject::None => {}
                IncludeObject::Metadata => drop(row.insert("object".to_owned(), partial(object))),
                IncludeObject::Object => drop(row.insert("object".to_owned(), object.clone())),
            }
            Value::Object(row)
        })
        .collect();
    let columns: Value = if headers { kind.columns.iter().map(column).collect() } else { Value::Null };
    json!({ "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": columns, "rows": rows })
}

fn column(column: &crate::kinds::Column) -> Value {
    json!({
        "name": column.name, "type": column.type_, "format": column.format,
        "description": column.description, "priority": column.priority,
    })
}

/// `PartialObjectMetadata` of an object.
pub fn partial(object: &Value) -> Value {
    let metadata = object.get("metadata").cloned().unwrap_or_else(|| Value::Object(Map::new()));
    json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata })
}

/// `PartialObjectMetadataList` of objects; `metadata` is the list's.
pub fn partial_list<'a>(objects: impl IntoIterator<Item = &'a Value>, metadata: Value) -> Value {
    let items: Vec<Value> = objects.into_iter().map(partial).collect();
    json!({ "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "items": items })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;

    #[test]
    fn every_row_has_a_cell_for_every_column() {
        let now = Timestamp::UNIX_EPOCH;
        for kind in kinds::ALL {
            for object in [json!({ "metadata": { "name": "a" } }), json!({}), json!([1])] {
                let table = table(kind, [&object], json!({}), IncludeObject::None, true, now);
                let (columns, cells) = (table["columnDefinitions"].as_array(), table["rows"][0]["cells"].as_array());
                assert_eq!(columns.map(Vec::len), cells.map(Vec::len), "{}", kind.kind);
            }
        }
    }

    #[test]
    fn rows_carry_what_was_asked_for() {
        let object = json!({ "kind": "Pod", "metadata": { "name": "a" }, "spec": {} });
        let rows = |include, headers| {
            table(&kinds::POD, [&object], json!({ "resourceVersion": "7" }), include, headers, Timestamp::UNIX_EPOCH)
        };
        assert_eq!(rows(IncludeObject::None, true)["rows"][0].get("object"), None);
        assert_eq!(rows(IncludeObject::Metadata, true)["rows"][0]["object"]["kind"], "PartialObjectMetadata");
        assert_eq!(rows(IncludeObject::Object, false)["rows"][0]["object"], object);
        assert_eq!(rows(IncludeObject::Object, false)["columnDefinitions"], Value::Null);
        assert_eq!(partial_list([&object], json!({}))["items"][0], partial(&object));
    }

    #[test]
    fn accept_headers() {
        let table = [
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
                Some(Representation::Table),
            ),
            (
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json",
                Some(Representation::Partial),
            ),
            ("application/vnd.kubernetes.protobuf,application/json", Some(Representation::Object)),
            ("*/*", Some(Representation::Object)),
            ("", Some(Representation::Object)),
            ("application/vnd.kubernetes.protobuf", None),
            ("text/html", None),
        ];
        for (accept, expected) in table {
            assert_eq!(Representation::from_accept(accept), expected, "{accept}");
        }
    }
}
