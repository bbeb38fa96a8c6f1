//! A set of fields, and its form in `managedFields` (`FieldsV1`).
//!
//! A path is a list of elements, each kept as FieldsV1 writes it: `f:<name>` a field or a map's key,
//! `k:<keys as JSON>` an item of a keyed list, `v:<value as JSON>` an item of a set. For example
//!
//! ```text
//! {"f:spec":{"f:replicas":{},"f:ports":{"k:{\"port\":80}":{".":{},"f:name":{}}}}}
//! ```
//!
//! holds `spec.replicas`, the port 80 itself (`.`), and the name of that port; not `spec` itself.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::paths::{MAX_PATH, cut};
use crate::schema::parse::MAX_DEPTH;

/// A set of paths.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct Set {
    /// The elements whose path is in the set.
    pub members: BTreeSet<String>,
    /// What is in the set below an element; never empty.
    pub children: BTreeMap<String, Set>,
}

impl Set {
    /// A single field, by the names that lead to it.
    pub fn of_field<N: AsRef<str>>(path: &[N]) -> Self {
        let mut set = Self::default();
        let mut names = path.iter().rev().map(|name| format!("f:{}", name.as_ref()));
        set.members.extend(names.next());
        for name in names {
            set = Self { members: BTreeSet::new(), children: BTreeMap::from([(name, set)]) };
        }
        set
    }

    /// Whether any path is in both.
    pub fn has_any_of(&self, other: &Set) -> bool {
        let below =
            |(element, below): (&String, &Set)| other.children.get(element).is_some_and(|o| below.has_any_of(o));
        !self.members.is_disjoint(&other.members) || self.children.iter().any(below)
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.children.is_empty()
    }

    /// Whether the element or anything below it is in the set.
    pub fn touches(&self, element: &str) -> bool {
        self.members.contains(element) || self.children.contains_key(element)
    }

    /// Adds what is below an element.
    pub fn insert_children(&mut self, element: &str, below: Set) {
        if !below.is_empty() {
            self.children.entry(element.to_owned()).or_default().extend(below);
        }
    }

    /// Union, in place.
    pub fn extend(&mut self, other: Set) {
        self.members.extend(other.members);
        for (element, below) in other.children {
            self.insert_children(&element, below);
        }
    }

    pub fn intersection(&self, other: &Set) -> Set {
        let mut both = Set { members: self.members.intersection(&other.members).cloned().collect(), ..Set::default() };
        for (element, below) in &self.children {
            if let Some(other) = other.children.get(element) {
                both.insert_children(element, below.intersection(other));
            }
        }
        both
    }

    /// Without the paths of `other` and all that is below them.
    pub fn difference(&self, other: &Set) -> Set {
        let mut rest = Set { members: self.members.difference(&other.members).cloned().collect(), ..Set::default() };
        for (element, below) in &self.children {
            if !other.members.contains(element) {
                let below = other.children.get(element).map_or_else(|| below.clone(), |other| below.difference(other));
                rest.insert_children(element, below);
            }
        }
        rest
    }

    /// Drops an element and all below it.
    pub fn remove(&mut self, element: &str) {
        self.members.remove(element);
        self.children.remove(element);
    }

    /// How many paths it holds.
    pub fn len(&self) -> usize {
        self.members.len() + self.children.values().map(Set::len).sum::<usize>()
    }

    /// At most so many paths, as upstream prints them: `.spec.ports[port=80].name`; of each no more than
    /// [`MAX_PATH`] bytes (X4).
    pub fn paths(&self, most: usize) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect_paths("", most, &mut paths);
        paths
    }

    fn collect_paths(&self, prefix: &str, most: usize, paths: &mut Vec<String>) {
        let path = |element: &String| match prefix.len() < MAX_PATH {
            true => cut(&format!("{prefix}{}", shown(element)), MAX_PATH).into_owned(),
            false => prefix.to_owned(),
        };
        paths.extend(self.members.iter().take(most.saturating_sub(paths.len())).map(path));
        for (element, below) in &self.children {
            if paths.len() >= most {
                return;
            }
            below.collect_paths(&path(element), most, paths);
        }
    }

    /// `fieldsV1`.
    pub fn to_json(&self) -> Value {
        let mut map = Map::new();
        for element in &self.members {
            map.insert(element.clone(), Value::Object(Map::new()));
        }
        for (element, below) in &self.children {
            let mut below = below.to_json();
            if let (true, Value::Object(below)) = (self.members.contains(element), &mut below) {
                below.insert(".".to_owned(), Value::Object(Map::new()));
            }
            map.insert(element.clone(), below);
        }
        Value::Object(map)
    }

    /// Reads `fieldsV1`; `None` where it is not such a set.
    pub fn from_json(json: &Value) -> Option<Set> {
        Self::from_json_at(json, 0)
    }

    fn from_json_at(json: &Value, depth: usize) -> Option<Set> {
        if depth > MAX_DEPTH {
            return None;
        }
        let mut set = Set::default();
        for (element, below) in json.as_object()? {
            if element == "." {
                continue; // Says that the element above is a member; read there.
            }
            let element = canonical(element)?;
            let map = below.as_object()?;
            if map.is_empty() || map.contains_key(".") {
                set.members.insert(element.clone());
            }
            set.insert_children(&element, Self::from_json_at(below, depth + 1)?);
        }
        Some(set)
    }
}

/// An element with its JSON part in one spelling: sorted keys, no spaces.
fn canonical(element: &str) -> Option<String> {
    let (kind, rest) = element.split_once(':')?;
    match kind {
        "f" => Some(element.to_owned()),
        "k" | "v" => serde_json::from_str::<Value>(rest).ok().map(|value| format!("{kind}:{value}")),
        "i" => rest.parse::<u32>().ok().map(|index| format!("i:{index}")),
        _ => None,
    }
}

/// An element as upstream prints it in a path.
pub(super) fn shown(element: &str) -> String {
    let (kind, rest) = element.split_once(':').unwrap_or(("f", element));
    match kind {
        "k" => {
            let keys: Map<String, Value> = serde_json::from_str(rest).unwrap_or_default();
            let keys: Vec<String> = keys.iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!("[{}]", keys.join(","))
        }
        "v" => format!("[={rest}]"),
        "i" => format!("[{rest}]"),
        _ => format!(".{rest}"),
    }
}
