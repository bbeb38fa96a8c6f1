//! A document of OpenAPI whose larger part is made while it is written: a hundred definitions of kinds may have as much
//! in them as all built-in kinds, and as values in memory several times that.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use serde_json::Value;

use super::{Version, definitions};
use crate::kinds::Kind;

/// A document. What it serializes to is whole.
pub struct Document {
    /// With `null` in place of each custom resource's schema.
    base: Value,
    /// Custom resources, by the names of their schemas.
    custom: BTreeMap<String, Kind>,
    version: Version,
}

impl Document {
    pub(super) fn new(base: Value, kinds: &[&Kind], version: Version) -> Self {
        let custom = kinds.iter().filter(|kind| kind.custom.is_some());
        let custom = custom.map(|kind| (kind.type_name.to_string(), (*kind).clone())).collect();
        Self { base, custom, version }
    }

    /// A document of version 2 in which nothing is left out.
    pub fn of(base: Value) -> Self {
        Self { base, custom: BTreeMap::new(), version: Version::V2 }
    }

    /// All but the schemas of custom resources, which are `null` in it: what may be added to.
    pub fn base_mut(&mut self) -> &mut Value {
        &mut self.base
    }

    pub(super) fn base(&self) -> &Value {
        &self.base
    }

    /// The schema of this name, whose value in the base is this.
    pub(super) fn schema<'a>(&self, name: &str, value: &'a Value) -> Cow<'a, Value> {
        match self.custom.get(name).filter(|_| value.is_null()) {
            Some(kind) => Cow::Owned(definitions::of_custom(kind, self.version)),
            None => Cow::Borrowed(value),
        }
    }

    /// The document as JSON.
    pub fn text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl Serialize for Document {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let path: &[&str] = match self.version {
            Version::V2 => &["definitions"],
            Version::V3 => &["components", "schemas"],
        };
        Below { document: self, value: &self.base, path }.serialize(serializer)
    }
}

/// A part of a document; its schemas are at `path`.
struct Below<'a> {
    document: &'a Document,
    value: &'a Value,
    path: &'a [&'a str],
}

impl Serialize for Below<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Some(object) = self.value.as_object() else { return self.value.serialize(serializer) };
        let mut map = serializer.serialize_map(Some(object.len()))?;
        for (name, value) in object {
            match self.path {
                [] => map.serialize_entry(name, &*self.document.schema(name, value))?,
                [step, path @ ..] if name == step => {
                    map.serialize_entry(name, &Below { document: self.document, value, path })?;
                }
                _ => map.serialize_entry(name, value)?,
            }
        }
        map.end()
    }
}
