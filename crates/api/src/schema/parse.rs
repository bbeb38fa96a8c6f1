//! JSON text to a value, within limits and without losing sight of duplicate fields (X4).

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::budget::Budget;
use crate::paths::{self, Step};

/// The deepest nesting of arrays and objects that is read. serde_json stops at 128, this before it,
/// so that what was read can also be printed and walked.
pub const MAX_DEPTH: usize = 120;

/// How many duplicate fields are reported at most; the rest are as wrong, but the answer stays small.
pub const MAX_DUPLICATES: usize = 32;

/// How many occurrences of wanted fields are noted at most.
const MAX_MET: usize = 1024;

/// What a JSON text says.
#[derive(Debug)]
pub struct Parsed {
    /// The value; of duplicate fields the last one.
    pub value: Value,
    /// The paths of fields that occur twice, as `spec.template.spec.containers[0].name`.
    pub duplicates: Vec<String>,
}

/// Reads one JSON value. The error is serde_json's, with line and column.
pub fn parse(bytes: &[u8]) -> Result<Parsed, serde_json::Error> {
    let (mut found, budget) = (Found::default(), Budget::default());
    let value = read(bytes, &mut found, &budget)?;
    Ok(Parsed { value, duplicates: found.duplicates })
}

/// Reads one JSON value that is part of something larger.
pub(crate) fn parse_within(bytes: &[u8], budget: &Budget) -> Result<Value, serde_json::Error> {
    read(bytes, &mut Found::default(), budget)
}

/// Those of `paths` that occur in a JSON text that [`parse`] has read, each as often as it occurs, in the text's order.
pub fn occurrences(bytes: &[u8], paths: BTreeSet<String>) -> Vec<String> {
    let mut found = Found { wanted: paths, ..Found::default() };
    let _ = read(bytes, &mut found, &Budget::default());
    found.met
}

fn read(bytes: &[u8], found: &mut Found, budget: &Budget) -> Result<Value, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let mut path = Vec::new();
    let value = Seed { path: &mut path, found, budget }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

/// What is noted on the way.
#[derive(Default)]
struct Found {
    duplicates: Vec<String>,
    /// Paths that are looked for.
    wanted: BTreeSet<String>,
    /// Each time that one of them was met.
    met: Vec<String>,
}

struct Seed<'a> {
    path: &'a mut Vec<Step>,
    found: &'a mut Found,
    budget: &'a Budget,
}

impl Seed<'_> {
    fn inner(&mut self) -> Seed<'_> {
        Seed { path: self.path, found: self.found, budget: self.budget }
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if self.path.len() > MAX_DEPTH {
            return Err(D::Error::custom(format_args!("exceeded max depth of {MAX_DEPTH}")));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        self.budget.text(value).map_err(E::custom)?;
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        self.budget.text(&value).map_err(E::custom)?;
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        loop {
            self.path.push(Step::Index(list.len()));
            let item = items.next_element_seed(self.inner())?;
            self.path.pop();
            match item {
                Some(item) => {
                    self.budget.item().map_err(A::Error::custom)?;
                    list.push(item);
                }
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut fields: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            self.path.push(Step::Field(name.clone()));
            if map.contains_key(&name) && self.found.duplicates.len() < MAX_DUPLICATES {
                let shown = paths::shown(self.path);
                self.found.duplicates.push(shown);
            }
            if !self.found.wanted.is_empty() && self.found.met.len() < MAX_MET {
                let shown = paths::shown(self.path);
                if self.found.wanted.contains(&shown) {
                    self.found.met.push(shown);
                }
            }
            let value = fields.next_value_seed(self.inner())?;
            self.path.pop();
            self.budget.field(map.len(), &name).map_err(A::Error::custom)?;
            map.insert(name, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_are_found_with_their_path() {
        let parsed = parse(br#"{"a":1,"b":[{"c":1,"c":{"d":null,"d":2}}],"a":"x"}"#).expect("valid JSON");
        assert_eq!(parsed.duplicates, ["b[0].c", "b[0].c.d", "a"]);
        assert_eq!(parsed.value, serde_json::json!({"a":"x","b":[{"c":{"d":2}}]}));
    }

    #[test]
    fn x4_depth_is_bounded() {
        let nested = |depth: usize| [vec![b'['; depth], vec![b']'; depth]].concat();
        assert!(parse(&nested(MAX_DEPTH)).is_ok());
        for depth in [MAX_DEPTH + 2, 127, 128, 129, 1_000_000] {
            assert!(parse(&nested(depth)).is_err());
        }
        assert!(parse(b"{} x").is_err() && parse(b"").is_err() && parse(b"[1e999]").is_err());
    }
}
