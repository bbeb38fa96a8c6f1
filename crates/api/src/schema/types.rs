//! The compact form of k8s-openapi's schemas: what decoding, patches and apply need, without prose.
//!
//! A kind's types are built when they are first asked for. The set of types is fixed by the binary, so
//! they are built once, shared between kinds, and live as long as the process.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, OnceLock, PoisonError};

use serde_json::{Map, Value};

use super::list_keys::{self, FieldKeys};
use super::omitted;
use super::raw;
use crate::kinds::{self, Row};

/// What a JSON value must be.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// `true` or `false`.
    Bool,
    /// A 32-bit signed integer.
    Int32,
    /// A 64-bit signed integer.
    Int64,
    /// Any number.
    Double,
    /// Text.
    String,
    /// Base64 text (`[]byte`).
    Bytes,
    /// RFC 3339 text, of whole seconds (`metav1.Time`).
    Time,
    /// The same with six digits of a second (`metav1.MicroTime`).
    MicroTime,
    /// A 32-bit integer or text.
    IntOrString,
    /// A quantity: text, or a number that becomes text.
    Quantity,
    /// Anything (`RawExtension`, `JSON`, a type without a schema); kept as it is.
    Any,
    /// An array of one shape.
    List(&'static Shape),
    /// An object with free keys and values of one shape.
    Map(&'static Shape),
    /// An object with known fields.
    Struct(&'static Struct),
}

/// An object type.
pub struct Struct {
    /// `io.k8s.api.apps.v1.StatefulSetSpec`.
    pub name: &'static str,
    /// Server-side apply replaces it as a whole.
    pub atomic: bool,
    /// What fields are that have no name here.
    pub others: Shape,
    fields: OnceLock<Box<[Field]>>,
}

/// A field of a [`Struct`].
#[derive(Clone, Copy)]
pub struct Field {
    /// As in JSON.
    pub name: &'static str,
    /// What its value must be.
    pub shape: Shape,
    /// How its value is merged.
    pub keys: &'static FieldKeys,
    /// Upstream's JSON leaves it out where it is empty: `false`, `0`, `""`, `[]` or `{}` is the same as not set.
    pub is_omitted: bool,
}

impl Struct {
    /// All fields, ordered by name.
    pub fn fields(&self) -> &[Field] {
        self.fields.get().map_or(&[], |fields| fields)
    }

    /// The field of this JSON name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        let fields = self.fields();
        fields.binary_search_by(|field| field.name.cmp(name)).ok().and_then(|index| fields.get(index))
    }

    /// The Go type's name: the last part of the definition name.
    pub fn go_name(&self) -> &'static str {
        self.name.rsplit('.').next().unwrap_or(self.name)
    }
}

impl std::fmt::Debug for Struct {
    /// The name alone: types refer to each other in circles.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

static TYPES: LazyLock<Mutex<HashMap<&'static str, &'static Struct>>> = LazyLock::new(Mutex::default);

/// The compact type of a definition name of a top-level type; `Any` where there is no schema for it.
pub fn shape_of(type_name: &str) -> Shape {
    let mut types = TYPES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = types.get(type_name) {
        return Shape::Struct(known);
    }
    let Some(definitions) = raw::definitions(type_name, "/$defs") else { return Shape::Any };
    for (name, schema) in &definitions {
        // Types that an earlier kind has brought are complete already, with all that they refer to.
        if types.get(name.as_str()).is_none_or(|known| known.fields.get().is_none()) && is_struct(schema) {
            fill(name, schema, &definitions, &mut types);
        }
    }
    types.get(type_name).map_or(Shape::Any, |known| Shape::Struct(known))
}

/// A type that a top-level type has brought, by its definition name; `None` before that.
pub fn known(name: &str) -> Option<&'static Struct> {
    TYPES.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied()
}

/// The type of a kind's objects.
pub fn shape_of_kind(kind: &Row) -> Shape {
    if kind.custom.is_some() { resource() } else { shape_of(&kind.type_name) }
}

/// What has no type: maps are merged field by field, everything else is one value.
pub(crate) static DEDUCED: Shape = Shape::Map(&DEDUCED);

/// An object of which only the metadata's type is known.
pub(crate) fn resource() -> Shape {
    Shape::Struct(&RESOURCE)
}

/// A custom resource: metadata as everywhere, the rest deduced.
static RESOURCE: LazyLock<Struct> = LazyLock::new(|| {
    let mut fields = vec![];
    if let Shape::Struct(any) = shape_of(&kinds::CONFIG_MAP.type_name) {
        let own = any.fields().iter().filter(|field| ["apiVersion", "kind", "metadata"].contains(&field.name));
        fields.extend(own.map(|field| Field { ..*field }));
    }
    Struct { name: "CustomResource", atomic: false, others: DEDUCED, fields: OnceLock::from(Box::from(fields)) }
});

fn is_struct(schema: &Value) -> bool {
    schema.get("properties").is_some_and(Value::is_object)
}

fn fill(
    name: &str,
    schema: &Value,
    definitions: &Map<String, Value>,
    types: &mut HashMap<&'static str, &'static Struct>,
) {
    let this = intern(name, types);
    let properties = schema.get("properties").and_then(Value::as_object);
    let mut fields: Vec<Field> = properties
        .into_iter()
        .flatten()
        .map(|(field, schema)| Field {
            name: Box::leak(field.clone().into_boxed_str()),
            shape: shape(schema, definitions, types),
            keys: list_keys::of_field(name, field),
            is_omitted: omitted::is_omitted(name, field),
        })
        .collect();
    fields.sort_by_key(|field| field.name);
    let _ = this.fields.set(fields.into());
}

/// The one `Struct` of a name, made empty where it is new.
fn intern(name: &str, types: &mut HashMap<&'static str, &'static Struct>) -> &'static Struct {
    if let Some(known) = types.get(name) {
        return known;
    }
    let name: &'static str = Box::leak(name.to_owned().into_boxed_str());
    let new: &'static Struct = Box::leak(Box::new(Struct {
        name,
        atomic: list_keys::is_atomic(name),
        others: Shape::Any,
        fields: OnceLock::new(),
    }));
    types.insert(name, new);
    new
}

fn shape(
    schema: &Value,
    definitions: &Map<String, Value>,
    types: &mut HashMap<&'static str, &'static Struct>,
) -> Shape {
    if let Some(name) = schema.get("$ref").and_then(Value::as_str).and_then(|path| path.strip_prefix("#/$defs/")) {
        return match definitions.get(name) {
            _ if name == raw::QUANTITY => Shape::Quantity,
            _ if name == raw::MICRO_TIME => Shape::MicroTime,
            Some(definition) if is_struct(definition) => Shape::Struct(intern(name, types)),
            // What is neither a struct nor refers to one (Time, IntOrString, RawExtension) is a shape of its own.
            Some(definition) if definition.get("$ref").is_none() => shape(definition, definitions, types),
            _ => Shape::Any,
        };
    }
    if schema.get("x-kubernetes-int-or-string").is_some() {
        return Shape::IntOrString;
    }
    let text = |field: &str| schema.get(field).and_then(Value::as_str).unwrap_or("");
    match (text("type"), text("format")) {
        ("boolean", _) => Shape::Bool,
        ("integer", "int64") => Shape::Int64,
        ("integer", _) => Shape::Int32,
        ("number", _) => Shape::Double,
        ("string", "byte") => Shape::Bytes,
        ("string", "date-time") => Shape::Time,
        ("string", _) => Shape::String,
        ("array", _) => Shape::List(leak(schema.get("items"), definitions, types)),
        ("object", _) if schema.get("additionalProperties").is_some() => {
            Shape::Map(leak(schema.get("additionalProperties"), definitions, types))
        }
        _ => Shape::Any,
    }
}

fn leak(
    inner: Option<&Value>,
    definitions: &Map<String, Value>,
    types: &mut HashMap<&'static str, &'static Struct>,
) -> &'static Shape {
    match inner.map_or(Shape::Any, |inner| shape(inner, definitions, types)) {
        Shape::String => &Shape::String,
        Shape::Any => &Shape::Any,
        Shape::Quantity => &Shape::Quantity,
        other => Box::leak(Box::new(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;

    #[test]
    fn every_kind_has_a_type() {
        for kind in kinds::ALL {
            assert!(matches!(shape_of(&kind.type_name), Shape::Struct(_)), "{} has no schema", kind.type_name);
        }
    }

    #[test]
    fn fields_lead_from_type_to_type() {
        let Shape::Struct(set) = shape_of("io.k8s.api.apps.v1.StatefulSet") else { panic!("a struct") };
        let mut current = set;
        for name in ["spec", "template", "spec"] {
            let Some(Field { shape: Shape::Struct(next), .. }) = current.field(name) else {
                panic!("{name} is a struct")
            };
            current = next;
        }
        assert_eq!(current.go_name(), "PodSpec");
        let containers = current.field("containers").map(|field| (field.shape, field.keys.patch_key));
        assert!(matches!(containers, Some((Shape::List(Shape::Struct(_)), Some("name")))));
    }
}
