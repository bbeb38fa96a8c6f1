//! A stored definition, of which that part is read which somebody needs: its schemas are most of it, and few are ever
//! looked at.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// What an outline lacks: schemas, and what only owners of fields and their tools look at.
const PASSED_OVER: [&str; 3] = ["openAPIV3Schema", "annotations", "managedFields"];

/// A definition without its schemas, annotations and managed fields.
///
/// # Errors
/// For what is no JSON.
pub fn outline(definition: &[u8]) -> serde_json::Result<Value> {
    let mut text = serde_json::Deserializer::from_slice(definition);
    Outline.deserialize(&mut text)
}

/// `spec.versions[index].schema.openAPIV3Schema`, where there is one.
pub fn schema(definition: &[u8], index: usize) -> Option<Value> {
    let path = [
        Step::Field("spec"),
        Step::Field("versions"),
        Step::Item(index),
        Step::Field("schema"),
        Step::Field("openAPIV3Schema"),
    ];
    let mut text = serde_json::Deserializer::from_slice(definition);
    Picked(&path).deserialize(&mut text).ok().flatten()
}

/// Reads a value without the fields of these names, wherever they are.
struct Outline;

impl<'de> DeserializeSeed<'de> for Outline {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Outline {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(item) = items.next_element_seed(Outline)? {
            all.push(item);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            if PASSED_OVER.contains(&name.as_str()) {
                fields.next_value::<IgnoredAny>()?;
            } else {
                all.insert(name, fields.next_value_seed(Outline)?);
            }
        }
        Ok(Value::Object(all))
    }
}

/// One step of a path into a value.
enum Step<'a> {
    Field(&'a str),
    Item(usize),
}

/// Reads the value at the end of a path, and nothing else.
struct Picked<'a>(&'a [Step<'a>]);

impl<'de> DeserializeSeed<'de> for Picked<'_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<Value>, D::Error> {
        match self.0 {
            [] => serde::Deserialize::deserialize(deserializer).map(Some),
            _ => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Picked<'_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a definition")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Option<Value>, A::Error> {
        let mut found = None;
        if let [Step::Item(index), rest @ ..] = self.0 {
            for _ in 0..*index {
                if items.next_element::<IgnoredAny>()?.is_none() {
                    return Ok(None);
                }
            }
            found = items.next_element_seed(Picked(rest))?.flatten();
        }
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(found)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Option<Value>, A::Error> {
        let mut found = None;
        while let Some(name) = fields.next_key::<String>()? {
            match self.0 {
                [Step::Field(wanted), rest @ ..] if name == *wanted => found = fields.next_value_seed(Picked(rest))?,
                _ => drop(fields.next_value::<IgnoredAny>()?),
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_outline_has_all_but_schemas_and_a_schema_is_found_by_its_version() {
        let schema_of = |version: &str| json!({ "type": "object", "title": version, "minimum": 1.5 });
        let version = |name: &str| {
            json!({ "name": name, "served": true, "schema": { "openAPIV3Schema": schema_of(name) },
                "additionalPrinterColumns": [{ "priority": -1, "width": 7 }] })
        };
        let definition = json!({ "metadata": { "name": "foos.x.io", "annotations": { "a": "b" }, "labels": null },
            "spec": { "versions": [version("v1"), { "name": "v2" }, version("v3")] } });
        let text = definition.to_string();
        let mut wanted = definition.clone();
        wanted["metadata"].as_object_mut().expect("metadata").remove("annotations");
        for index in [0, 2] {
            wanted["spec"]["versions"][index]["schema"] = json!({});
        }
        assert_eq!(outline(text.as_bytes()).expect("JSON"), wanted);
        assert_eq!(schema(text.as_bytes(), 0), Some(schema_of("v1")));
        assert_eq!(schema(text.as_bytes(), 1), None);
        assert_eq!(schema(text.as_bytes(), 2), Some(schema_of("v3")));
        assert_eq!(schema(text.as_bytes(), 3), None);
    }

    #[test]
    fn what_is_no_definition_has_no_schema() {
        for text in ["", "7", "[]", "{\"spec\":", r#"{"spec":{"versions":{}}}"#, r#"{"spec":[1]}"#] {
            assert_eq!(schema(text.as_bytes(), 0), None, "{text}");
        }
        assert!(outline(b"{").is_err());
    }
}
