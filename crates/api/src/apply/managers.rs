//! `metadata.managedFields`: who owns which fields.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::set::Set;
use crate::object::text;
use crate::time::rfc3339;

/// How many managers that update (rather than apply) are told apart; upstream's limit. The oldest
/// beyond it become one, [`ANCIENT`].
pub const MAX_UPDATE_MANAGERS: usize = 10;

/// How many entries are read at all; a client that sends more has made them up.
pub const MAX_ENTRIES: usize = 1000;

/// The manager that the oldest updates are put together under.
const ANCIENT: &str = "ancient-changes";

/// Who manages: applying and updating managers of one name are different, and so are subresources.
/// The order is the one in which entries are listed, apart from their time.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Manager {
    /// `Apply` or `Update`.
    pub operation: &'static str,
    /// The `fieldManager` parameter.
    pub name: String,
    /// Which version its fields are of.
    pub api_version: String,
    /// `status`, `scale` or empty.
    pub subresource: String,
}

impl Manager {
    /// As upstream names it in a conflict.
    pub fn shown(&self) -> String {
        let mut text = format!("{:?}", self.name);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.operation == UPDATE {
            text.push_str(&format!(" using {}", self.api_version));
        }
        text
    }
}

pub(super) const APPLY: &str = "Apply";
pub(super) const UPDATE: &str = "Update";

/// What one manager owns.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Owned {
    pub set: Set,
    /// When the set or the values last changed, RFC 3339.
    pub time: String,
}

/// All managers of an object.
#[derive(Clone, Default, PartialEq, Debug)]
pub(super) struct Managers(pub BTreeMap<Manager, Owned>);

impl Managers {
    /// Those that `managedFields` says; `None` where it is not what upstream would have written.
    pub fn of(managed: Option<&Value>) -> Option<Self> {
        let entries = match managed {
            None | Some(Value::Null) => return Some(Self::default()),
            Some(entries) => entries.as_array()?,
        };
        if entries.len() > MAX_ENTRIES {
            return None;
        }
        let mut managers: BTreeMap<Manager, Owned> = BTreeMap::new();
        for entry in entries {
            let operation = match text(entry, &["operation"]) {
                APPLY => APPLY,
                UPDATE => UPDATE,
                _ => return None,
            };
            let manager = Manager {
                operation,
                name: text(entry, &["manager"]).to_owned(),
                api_version: text(entry, &["apiVersion"]).to_owned(),
                subresource: text(entry, &["subresource"]).to_owned(),
            };
            let set = Set::from_json(entry.get("fieldsV1").unwrap_or(&json!({})))?;
            let time = text(entry, &["time"]).to_owned();
            managers.entry(manager).or_insert_with(|| Owned { set: Set::default(), time }).set.extend(set);
        }
        Some(Self(managers))
    }

    /// Takes out what a manager has applied before, and whether that was of the same version as now. Whoever applies an
    /// object is one manager, also where they go on with another of its versions (as upstream).
    pub fn take_applied(&mut self, me: &Manager) -> Option<(Owned, bool)> {
        let is_me = |manager: &&Manager| Manager { api_version: me.api_version.clone(), ..(*manager).clone() } == *me;
        let mine: Vec<Manager> = self.0.keys().filter(is_me).cloned().collect();
        let before = mine.iter().filter_map(|manager| self.0.remove(manager)).reduce(|mut all, more| {
            all.set.extend(more.set);
            all
        })?;
        Some((before, mine == [me.clone()]))
    }

    /// Takes fields away from everyone but one.
    pub fn take_from_others(&mut self, me: &Manager, taken: &Set) {
        for (manager, owned) in &mut self.0 {
            if manager != me {
                owned.set = owned.set.difference(taken);
            }
        }
    }

    /// Takes fields that no longer exist away from everyone.
    pub fn remove(&mut self, removed: &Set) {
        for owned in self.0.values_mut() {
            owned.set = owned.set.difference(removed);
        }
    }

    /// What anyone owns.
    pub fn union(&self) -> Set {
        let mut union = Set::default();
        for owned in self.0.values() {
            union.extend(owned.set.clone());
        }
        union
    }

    /// Writes the entries into an object, without the empty ones and without too many.
    pub fn write(mut self, object: &mut Value, now: Timestamp) {
        self.0.retain(|_, owned| !owned.set.is_empty());
        self.cap(now);
        let mut entries: Vec<(Manager, Owned)> = self.0.into_iter().collect();
        entries.sort_by(|(a, of_a), (b, of_b)| (a.operation, &of_a.time, a).cmp(&(b.operation, &of_b.time, b)));
        let entries: Vec<Value> = entries.into_iter().map(|(manager, owned)| entry(manager, &owned)).collect();
        let metadata = crate::object::ensure(object, &["metadata"]);
        if entries.is_empty() {
            metadata.remove("managedFields");
        } else {
            metadata.insert("managedFields".to_owned(), entries.into());
        }
    }

    fn cap(&mut self, now: Timestamp) {
        let mut updates: Vec<(String, Manager)> = self
            .0
            .iter()
            .filter(|(manager, _)| manager.operation == UPDATE)
            .map(|(manager, owned)| (owned.time.clone(), manager.clone()))
            .collect();
        updates.sort();
        let surplus = if updates.len() > MAX_UPDATE_MANAGERS { updates.len() - MAX_UPDATE_MANAGERS + 1 } else { 0 };
        for (time, manager) in updates.into_iter().take(surplus) {
            let Some(owned) = self.0.remove(&manager) else { continue };
            let ancient = Manager { name: ANCIENT.to_owned(), subresource: String::new(), ..manager };
            let time = if time.is_empty() { rfc3339(now) } else { time };
            let merged = self.0.entry(ancient).or_insert_with(|| Owned { set: Set::default(), time: time.clone() });
            merged.set.extend(owned.set);
            merged.time = time;
        }
    }
}

fn entry(manager: Manager, owned: &Owned) -> Value {
    let mut entry = Map::new();
    entry.insert("manager".to_owned(), manager.name.into());
    entry.insert("operation".to_owned(), manager.operation.into());
    entry.insert("apiVersion".to_owned(), manager.api_version.into());
    if !owned.time.is_empty() {
        entry.insert("time".to_owned(), owned.time.as_str().into());
    }
    entry.insert("fieldsType".to_owned(), "FieldsV1".into());
    entry.insert("fieldsV1".to_owned(), owned.set.to_json());
    if !manager.subresource.is_empty() {
        entry.insert("subresource".to_owned(), manager.subresource.into());
    }
    Value::Object(entry)
}
