//! Objects seen through their type: which fields they hold, what differs between two, how one is
//! merged into another, and how fields are taken out again.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Map, Value};

use super::set::{Set, shown};
use crate::custom::schema::{Additional, ListType as CustomList, Schema};
use crate::kinds::Kind;
use crate::schema::list_keys::{DEFAULT, FieldKeys, ListType};
use crate::schema::types::{DEDUCED, Shape, resource, shape_of_kind};

/// What the type of a value says of it.
#[derive(Clone, Copy)]
pub(super) struct Nature<'a> {
    shape: Shape,
    keys: &'static FieldKeys,
    /// The schema of a custom resource's value, which says what is known of it.
    custom: Option<&'a Schema>,
}

impl<'a> Nature<'a> {
    /// Of a kind's objects.
    pub fn of_kind(kind: &'a Kind) -> Self {
        let custom = kind.custom.as_ref().map(|custom| custom.schema());
        Self { shape: shape_of_kind(kind), keys: &DEFAULT, custom }
    }

    fn of_schema(schema: &'a Schema) -> Self {
        let shape = if schema.is_embedded { resource() } else { DEDUCED };
        Self { shape, keys: &DEFAULT, custom: Some(schema) }
    }

    fn plain(shape: Shape) -> Self {
        Self { shape, keys: &DEFAULT, custom: None }
    }

    /// Whether fields of this value that nobody has written are its defaults. Into a map, a list and what is granular
    /// for that reason our controllers write, and have no entry for it.
    fn is_filled_in(&self, value: &Value) -> bool {
        let is_struct = match (self.custom, self.shape) {
            (Some(schema), _) => !schema.properties.is_empty(),
            (None, Shape::Struct(_)) => self.keys.list_type != ListType::Granular,
            _ => false,
        };
        is_struct && value.is_object()
    }
}

/// A value with what its type says of it.
#[derive(Clone, Copy)]
pub(super) struct Typed<'a> {
    pub nature: Nature<'a>,
    pub value: &'a Value,
}

/// How a value is owned.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// As a whole: scalars, atomic lists and maps, what has no schema.
    Leaf,
    /// Field by field.
    Fields,
    /// Item by item, each its own key.
    Set,
    /// Item by item, by some of its fields.
    Items,
}

/// A value inside another.
struct Child<'a> {
    typed: Typed<'a>,
    /// Items of lists and entries of maps are themselves in a set of fields, struct fields are not.
    member: bool,
}

impl<'a> Typed<'a> {
    /// An object of this shape.
    pub fn object(nature: Nature<'a>, value: &'a Value) -> Self {
        Self { nature, value }
    }

    fn form(&self) -> Form {
        if let Some(schema) = self.nature.custom {
            return match (self.value, &schema.list) {
                (Value::Object(_), _) if !schema.is_atomic => Form::Fields,
                (Value::Array(_), CustomList::Set) => Form::Set,
                (Value::Array(items), CustomList::Map(_)) => self.form_of_items(items),
                _ => Form::Leaf,
            };
        }
        match (self.nature.shape, self.value, &self.nature.keys.list_type) {
            (_, Value::Object(_), ListType::AtomicMap) => Form::Leaf,
            (Shape::Struct(this), Value::Object(_), list) if !this.atomic || *list == ListType::Granular => {
                Form::Fields
            }
            (Shape::Map(_), Value::Object(_), _) => Form::Fields,
            (Shape::List(_), Value::Array(_), ListType::Set) => Form::Set,
            (Shape::List(_), Value::Array(items), ListType::Map(_)) => self.form_of_items(items),
            _ => Form::Leaf,
        }
    }

    /// Items without keys or with the same keys cannot be told apart: then the list has one owner.
    fn form_of_items(&self, items: &[Value]) -> Form {
        let mut elements: Vec<String> = items.iter().filter_map(|item| self.element(item)).collect();
        elements.sort_unstable();
        elements.dedup();
        if elements.len() == items.len() { Form::Items } else { Form::Leaf }
    }

    /// Whether the items of this list are told apart by keys or values.
    fn is_associative(&self) -> bool {
        match self.nature.custom {
            Some(schema) => matches!(schema.list, CustomList::Set | CustomList::Map(_)),
            None => matches!(self.nature.keys.list_type, ListType::Set | ListType::Map(_)),
        }
    }

    /// The path element of an item of this list.
    fn element(&self, item: &Value) -> Option<String> {
        if let Some(schema) = self.nature.custom {
            let CustomList::Map(names) = &schema.list else { return Some(format!("v:{item}")) };
            let default = |name: &str| schema.items.as_ref()?.property(name)?.default.as_deref().cloned();
            let mut keys = Map::new();
            for name in names {
                keys.insert(name.to_string(), item.get(&**name).cloned().or_else(|| default(name))?);
            }
            return Some(format!("k:{}", Value::Object(keys)));
        }
        match &self.nature.keys.list_type {
            ListType::Set => Some(format!("v:{item}")),
            ListType::Map(names) => {
                let mut keys = Map::new();
                for name in names {
                    let value = item.get(*name).cloned().or_else(|| key_default(name))?;
                    keys.insert((*name).to_owned(), value);
                }
                Some(format!("k:{}", Value::Object(keys)))
            }
            _ => None,
        }
    }

    /// What a field or map entry is, and whether it is an entry.
    fn field(&self, name: &str) -> (Nature<'a>, bool) {
        let of_shape = |shape, keys| Nature { shape, keys, custom: None };
        let is_own = matches!(self.nature.shape, Shape::Struct(this) if this.field(name).is_some());
        match (self.nature.custom, self.nature.shape) {
            (Some(schema), _) if !is_own && schema.property(name).is_some() => {
                (schema.property(name).map_or(Nature::plain(DEDUCED), Nature::of_schema), false)
            }
            (Some(Schema { additional: Additional::Of(values), .. }), _) => (Nature::of_schema(values), true),
            (_, Shape::Struct(this)) => this
                .field(name)
                .map_or((Nature::plain(this.others), false), |field| (of_shape(field.shape, field.keys), false)),
            (_, Shape::Map(item)) => (Nature::plain(*item), true),
            _ => (Nature::plain(Shape::Any), true),
        }
    }

    fn item(&self) -> Nature<'a> {
        match (self.nature.custom, self.nature.shape) {
            (Some(schema), _) => schema.items.as_deref().map_or(Nature::plain(DEDUCED), Nature::of_schema),
            (None, Shape::List(item)) => Nature::plain(*item),
            _ => Nature::plain(Shape::Any),
        }
    }

    /// What is inside, by path element; empty for a leaf.
    fn children(&self) -> BTreeMap<String, Child<'a>> {
        match (self.form(), self.value) {
            (Form::Fields, Value::Object(map)) => map
                .iter()
                .map(|(name, value)| {
                    let (nature, member) = self.field(name);
                    (format!("f:{name}"), Child { typed: Typed { nature, value }, member })
                })
                .collect(),
            (Form::Set | Form::Items, Value::Array(items)) => items
                .iter()
                .filter_map(|value| {
                    let typed = Typed { nature: self.item(), value };
                    self.element(value).map(|element| (element, Child { typed, member: true }))
                })
                .collect(),
            _ => BTreeMap::new(),
        }
    }

    /// The first keyed list or set that holds an item twice, in upstream's words.
    pub fn repeated(&self) -> Option<String> {
        // Not by its form: a keyed list with a repeated item is taken as a whole.
        if let (true, Value::Array(items)) = (self.is_associative(), self.value) {
            let mut seen = HashSet::new();
            let repeated = items.iter().filter_map(|item| self.element(item)).find(|item| !seen.insert(item.clone()));
            if let Some(repeated) = repeated {
                let what = if repeated.starts_with("v:") { "set item" } else { "key" };
                return Some(format!(": duplicate entries for {what} {}", shown(&repeated)));
            }
        }
        self.children().into_iter().find_map(|(element, child)| {
            let below = child.typed.repeated()?;
            Some(format!("{}{below}", shown(&element)))
        })
    }

    /// How long `fieldsV1` is for what the value holds, about.
    pub fn length_of_entries(&self) -> usize {
        /// `"":{},` around an element.
        const AROUND: usize = 6;
        let below = |nature, value| Typed { nature, value }.length_of_entries();
        match (self.form(), self.value) {
            (Form::Fields, Value::Object(map)) => map
                .iter()
                .filter(|(name, _)| *name != "managedFields")
                .map(|(name, value)| AROUND + "f:".len() + name.len() + below(self.field(name).0, value))
                .sum(),
            (Form::Set | Form::Items, Value::Array(items)) => items
                .iter()
                .map(|item| AROUND + self.element(item).map_or(0, |element| element.len()) + below(self.item(), item))
                .sum(),
            _ => 0,
        }
    }

    /// A path like `spec.containers[0].foo` as a path of owned fields: `.spec.containers[name=\"a\"].foo`.
    pub fn shown_path(&self, path: &str) -> String {
        let mut out = String::new();
        let mut here = Some(*self);
        for step in path.split('.') {
            let (name, indices) = step.split_once('[').unwrap_or((step, ""));
            out.push_str(&format!(".{name}"));
            here = here.and_then(|at| Some(Typed { nature: at.field(name).0, value: at.value.get(name)? }));
            for index in indices.split('[').filter_map(|index| index.trim_end_matches(']').parse::<usize>().ok()) {
                let item = here.and_then(|at| Some((at, at.value.get(index)?)));
                let key = item.filter(|(at, _)| at.form() == Form::Items).and_then(|(at, item)| at.element(item));
                out.push_str(&key.map_or_else(|| format!("[{index}]"), |key| shown(&key)));
                here = item.map(|(at, value)| Typed { nature: at.item(), value });
            }
        }
        out
    }

    /// All fields that the value holds.
    pub fn fields(&self) -> Set {
        let mut set = Set::default();
        for (element, child) in self.children() {
            child.add_to(&mut set, element);
        }
        set
    }
}

impl Child<'_> {
    fn add_to(&self, set: &mut Set, element: String) {
        let below = self.typed.fields();
        let empty_map = self.typed.value.as_object().is_some_and(Map::is_empty);
        set.insert_children(&element, below);
        if self.member || empty_map || self.typed.form() == Form::Leaf {
            set.members.insert(element);
        }
    }
}

/// A key that may be left out of an item, with the value that it then has.
fn key_default(name: &str) -> Option<Value> {
    (name == "protocol").then(|| "TCP".into())
}

/// What differs between two objects.
#[derive(Default)]
pub(super) struct Comparison {
    pub removed: Set,
    pub modified: Set,
    pub added: Set,
}

impl Comparison {
    /// Takes out what is different or new.
    pub fn take_changed(&mut self) -> Set {
        let mut changed = std::mem::take(&mut self.modified);
        changed.extend(std::mem::take(&mut self.added));
        changed
    }
}

/// Compares two objects of one type; the order of keyed lists and sets does not matter.
pub(super) fn compare(old: Typed<'_>, new: Typed<'_>) -> Comparison {
    let mut result = Comparison::default();
    let (old, mut new) = (old.children(), new.children());
    for (element, before) in old {
        let Some(after) = new.remove(&element) else {
            before.add_to(&mut result.removed, element);
            continue;
        };
        if before.typed.value == after.typed.value {
            continue;
        }
        let form = before.typed.form();
        if form != Form::Leaf && form == after.typed.form() {
            let below = compare(before.typed, after.typed);
            result.removed.insert_children(&element, below.removed);
            result.modified.insert_children(&element, below.modified);
            result.added.insert_children(&element, below.added);
        } else {
            result.modified.members.insert(element);
        }
    }
    for (element, after) in new {
        after.add_to(&mut result.added, element);
    }
    result
}

/// The items of two lists, by their names and indices, in the order of the merged one, as upstream: what both have and
/// what only the second has in the order of the second; what only the first has before the next one that it shares.
fn ordered(live: &[(String, usize)], config: &[(String, usize)]) -> Vec<(Option<usize>, Option<usize>)> {
    let index = |items: &[(String, usize)]| -> HashMap<String, usize> { items.iter().rev().cloned().collect() };
    let (known, wanted) = (index(live), index(config));
    let mut shared = config.iter().map(|(name, _)| name).filter(|name| known.contains_key(*name)).peekable();
    let (mut left, mut right) = (live.iter().peekable(), config.iter().peekable());
    let mut order = Vec::with_capacity(live.len().max(config.len()));
    loop {
        match (left.peek(), right.peek()) {
            (None, None) => return order,
            (Some((name, index)), _) if !wanted.contains_key(name) => {
                order.push((Some(*index), None));
                left.next();
            }
            // It comes where the second list has it.
            (Some((name, _)), Some((other, _))) if name != other && shared.peek().is_some_and(|next| *next != name) => {
                left.next();
            }
            (of_both, Some((name, index))) => {
                order.push((known.get(name).copied(), Some(*index)));
                if of_both.is_some_and(|(other, _)| other == name) {
                    left.next();
                }
                shared.next_if(|next| *next == name);
                right.next();
            }
            // It was in its turn before.
            (Some(_), None) => {
                left.next();
            }
        }
    }
}

/// The live value with what the configuration says.
pub(super) fn merge(live: Typed<'_>, config: Typed<'_>) -> Value {
    let form = config.form();
    if form == Form::Leaf || form != live.form() {
        return config.value.clone();
    }
    match (live.value, config.value) {
        (Value::Object(live_map), Value::Object(config_map)) => {
            // No copy of what is merged further down: at each level it would be made again (X4).
            let kept = live_map.iter().filter(|(name, _)| !config_map.contains_key(*name));
            let mut merged: Map<String, Value> = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
            for (name, value) in config_map {
                let (nature, _) = config.field(name);
                let after = Typed { nature, value };
                let value = live_map
                    .get(name)
                    .map_or_else(|| value.clone(), |before| merge(Typed { nature, value: before }, after));
                merged.insert(name.clone(), value);
            }
            Value::Object(merged)
        }
        (Value::Array(live_items), Value::Array(config_items)) => {
            let named = |items: &'_ [Value]| -> Vec<(String, usize)> {
                let items = items.iter().enumerate();
                items.filter_map(|(index, item)| Some((config.element(item)?, index))).collect()
            };
            let one = |before: Option<&Value>, item: &Value| {
                let after = Typed { nature: config.item(), value: item };
                before.map_or_else(|| item.clone(), |value| merge(Typed { value, ..after }, after))
            };
            let order = ordered(&named(live_items), &named(config_items));
            let merged = order.into_iter().filter_map(|(before, after)| {
                let before = before.and_then(|index| live_items.get(index));
                match after.and_then(|index| config_items.get(index)) {
                    Some(item) => Some(one(before, item)),
                    None => before.cloned(),
                }
            });
            Value::Array(merged.collect())
        }
        _ => config.value.clone(),
    }
}

/// Takes the fields of `last` out of a value, except those that `owned` holds. A map or list that is
/// empty for that reason goes too; a struct goes with what is in it and has no owner, which are its defaults.
pub(super) fn prune(nature: Nature<'_>, value: &mut Value, last: &Set, owned: Option<&Set>) {
    let view = Typed { nature, value };
    let form = view.form();
    let goes = |element: &str| last.members.contains(element) && !owned.is_some_and(|owned| owned.touches(element));
    let below = |element: &str| {
        last.children.get(element).map(|last| (last, owned.and_then(|owned| owned.children.get(element))))
    };
    match (form, &mut *value) {
        (Form::Fields, Value::Object(map)) => {
            map.retain(|name, value| {
                let element = format!("f:{name}");
                let nature = field_of(nature, name);
                let is_owned = owned.is_some_and(|owned| owned.touches(&element));
                if !is_owned
                    && (last.members.contains(&element) || nature.is_filled_in(value) && last.touches(&element))
                {
                    return false;
                }
                let Some((last, owned)) = below(&element) else { return true };
                prune(nature, value, last, owned);
                !is_empty(value) || is_owned
            });
        }
        (Form::Set | Form::Items, Value::Array(items)) => {
            let list = Value::Null;
            let view = Typed { nature, value: &list };
            items.retain_mut(|item| {
                let Some(element) = view.element(item) else { return true };
                if goes(&element) {
                    return false;
                }
                if let Some((last, owned)) = below(&element) {
                    prune(item_of(nature), item, last, owned);
                }
                true
            });
        }
        _ => {}
    }
}

fn field_of<'a>(nature: Nature<'a>, name: &str) -> Nature<'a> {
    Typed { nature, value: &NULL }.field(name).0
}

fn item_of(nature: Nature<'_>) -> Nature<'_> {
    Typed { nature, value: &NULL }.item()
}

static NULL: Value = Value::Null;

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}
