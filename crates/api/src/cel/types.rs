//! What the checker knows of a value before there is one.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::parse::is_keyword;

/// The type of a variable or of a part of an expression. Cheap to clone.
#[derive(Clone, Debug, PartialEq)]
pub enum Type {
    /// Anything; nothing is checked before the evaluation.
    Dyn,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Duration,
    Timestamp,
    /// The type of types.
    Type,
    List(Arc<Self>, ListKind),
    Map(Arc<Self>, Arc<Self>),
    /// An object with these fields and no others.
    Object(Arc<Object>),
    Optional(Arc<Self>),
    /// A type of the libraries: `kubernetes.Quantity`, `net.IP`, …
    Named(&'static str),
    /// A type parameter in a function's signature.
    Param(char),
}

/// How lists compare and join: `x-kubernetes-list-type`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListKind {
    /// Item by item.
    Atomic,
    /// Without regard to order; joined as a union.
    Set,
    /// By the items' keys; joined by overwriting.
    Map(Arc<[Box<str>]>),
}

/// The fields of an object.
#[derive(Debug)]
pub struct Object {
    /// How messages call it.
    pub name: Box<str>,
    fields: BTreeMap<Box<str>, (Box<str>, Type)>,
}

impl PartialEq for Object {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other) || self.name == other.name
    }
}

impl Object {
    /// An object with these fields. Names that are no CEL identifiers are escaped as upstream does; those that cannot
    /// be are found between backticks.
    pub fn new(name: &str, fields: impl IntoIterator<Item = (Box<str>, Type)>) -> Self {
        let fields = fields.into_iter().map(|(name, type_)| (escape(&name), (name, type_))).collect();
        Self { name: name.into(), fields }
    }

    /// The field that an expression calls so: its name in JSON, and its type.
    pub fn field(&self, name: &str) -> Option<(&str, &Type)> {
        let found = match name.strip_prefix('`') {
            Some(quoted) => self.fields.get(&*escape(quoted)),
            None => self.fields.get(name),
        };
        found.map(|(name, type_)| (&**name, type_))
    }

    /// Every field's name in JSON, with its type.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &Type)> {
        self.fields.values().map(|(name, type_)| (&**name, type_))
    }
}

/// A field's name as an expression writes it: `a.b-c` is `a__dot__b__dash__c`.
fn escape(name: &str) -> Box<str> {
    if is_keyword(name) {
        return format!("__{name}__").into();
    }
    let escaped = name.replace("__", "__underscores__");
    escaped.replace('.', "__dot__").replace('-', "__dash__").replace('/', "__slash__").into()
}

impl Type {
    /// A list of these, compared item by item.
    pub fn list(item: Self) -> Self {
        Self::List(Arc::new(item), ListKind::Atomic)
    }

    /// A map with texts as keys.
    pub fn map(value: Self) -> Self {
        Self::Map(Arc::new(Self::String), Arc::new(value))
    }

    /// What may be absent.
    pub fn optional(inner: Self) -> Self {
        Self::Optional(Arc::new(inner))
    }

    /// The two types' common one.
    pub fn joined(self, other: Self) -> Self {
        match (&self, &other) {
            _ if self == other => self,
            (Self::Null, _) => other,
            (_, Self::Null) => self,
            _ => Self::Dyn,
        }
    }
}

/// What the parameters of a signature stand for in one call.
pub type Bound = BTreeMap<char, Type>;

/// Whether a value of type `given` is taken where `wanted` is asked for.
pub fn accepts(wanted: &Type, given: &Type, bound: &mut Bound) -> bool {
    match (wanted, given) {
        (Type::Param(name), _) => match bound.get(name).cloned() {
            None | Some(Type::Dyn | Type::Null) => {
                bound.insert(*name, given.clone());
                true
            }
            Some(known) => accepts(&known, given, bound) || accepts(given, &known, bound),
        },
        (Type::Dyn, _) | (_, Type::Dyn | Type::Null) | (Type::Null, _) => true,
        (Type::List(a, _), Type::List(b, _)) | (Type::Optional(a), Type::Optional(b)) => accepts(a, b, bound),
        (Type::Map(k, v), Type::Map(l, w)) => accepts(k, l, bound) && accepts(v, w, bound),
        (Type::Object(_), Type::Map(..)) | (Type::Map(..), Type::Object(_)) => true,
        (a, b) => a == b,
    }
}

/// A signature's type with its parameters replaced.
pub fn resolved(type_: &Type, bound: &Bound) -> Type {
    match type_ {
        Type::Param(name) => bound.get(name).cloned().unwrap_or(Type::Dyn),
        Type::List(item, kind) => Type::List(Arc::new(resolved(item, bound)), kind.clone()),
        Type::Optional(inner) => Type::optional(resolved(inner, bound)),
        Type::Map(key, value) => Type::Map(Arc::new(resolved(key, bound)), Arc::new(resolved(value, bound))),
        other => other.clone(),
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dyn => "dyn",
            Self::Null => "null",
            Self::Bool => "bool",
            Self::Int => "int",
            Self::Uint => "uint",
            Self::Double => "double",
            Self::String => "string",
            Self::Bytes => "bytes",
            Self::Duration => "google.protobuf.Duration",
            Self::Timestamp => "google.protobuf.Timestamp",
            Self::Type => "type",
            Self::Named(name) => name,
            Self::Object(object) => &object.name,
            Self::List(item, _) => return write!(f, "list({item})"),
            Self::Map(key, value) => return write!(f, "map({key}, {value})"),
            Self::Optional(inner) => return write!(f, "optional_type({inner})"),
            Self::Param(name) => return write!(f, "{name}"),
        })
    }
}
