//! A structural schema (`openAPIV3Schema` of a CustomResourceDefinition) in the form in which it is used: fields in
//! boxed slices ordered by name, what is rare behind one pointer, no prose.

use serde_json::Value;

use super::rules::{self, Validations};

/// A schema nested deeper than this is cut off: what is below is taken as it comes.
const MAX_DEPTH: usize = 128;

/// What a value must be, by `type`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Type {
    /// No `type`: anything, or with `x-kubernetes-int-or-string` one of these.
    Any,
    /// `object`.
    Object,
    /// `array`.
    Array,
    /// `string`.
    String,
    /// `integer`.
    Integer,
    /// `number`.
    Number,
    /// `boolean`.
    Boolean,
}

impl Type {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Any => "",
            Self::Object => "object",
            Self::Array => "array",
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
        }
    }

    fn of(name: &str) -> Self {
        let all = [Self::Object, Self::Array, Self::String, Self::Integer, Self::Number, Self::Boolean];
        all.into_iter().find(|known| known.name() == name).unwrap_or(Self::Any)
    }
}

/// What becomes of fields that `properties` does not name.
#[derive(Debug)]
pub enum Additional {
    /// They are dropped.
    None,
    /// They are kept.
    Any,
    /// They are kept, and are of this schema.
    Of(Box<Schema>),
}

/// How a list is merged, and what may not repeat in it.
#[derive(Debug, PartialEq, Eq)]
pub enum ListType {
    /// The whole list is one value.
    Atomic,
    /// Scalars, each once.
    Set,
    /// Objects, each once by these fields.
    Map(Box<[Box<str>]>),
}

/// One schema.
#[derive(Debug)]
pub struct Schema {
    /// `type`.
    pub type_: Type,
    /// `nullable`.
    pub nullable: bool,
    /// `x-kubernetes-int-or-string`.
    pub int_or_string: bool,
    /// `x-kubernetes-preserve-unknown-fields`.
    pub preserves_unknown: bool,
    /// `x-kubernetes-embedded-resource`.
    pub is_embedded: bool,
    /// `x-kubernetes-map-type: atomic`.
    pub is_atomic: bool,
    /// `properties`, by name.
    pub properties: Box<[(Box<str>, Schema)]>,
    /// `additionalProperties`.
    pub additional: Additional,
    /// `items`.
    pub items: Option<Box<Schema>>,
    /// `required`.
    pub required: Box<[Box<str>]>,
    /// `x-kubernetes-list-type`.
    pub list: ListType,
    /// `default`.
    pub default: Option<Box<Value>>,
    /// Everything that restricts values further.
    pub rules: Option<Box<Rules>>,
    /// `x-kubernetes-validations`.
    pub validations: Option<Box<Validations>>,
    /// Whether there are such rules here or somewhere below.
    pub has_rules: bool,
}

/// What restricts values further.
#[derive(Debug, Default)]
pub struct Rules {
    /// `minimum`, and whether it is exclusive.
    pub minimum: Option<(f64, bool)>,
    /// `maximum`, and whether it is exclusive.
    pub maximum: Option<(f64, bool)>,
    /// `multipleOf`.
    pub multiple_of: Option<f64>,
    /// `minLength` and `maxLength`, in characters.
    pub length: (Option<u64>, Option<u64>),
    /// `minItems` and `maxItems`.
    pub items: (Option<u64>, Option<u64>),
    /// `minProperties` and `maxProperties`.
    pub properties: (Option<u64>, Option<u64>),
    /// `pattern`, as it is written; compiled when a value is held against it (`custom::patterns`).
    pub pattern: Option<Box<str>>,
    /// `format`.
    pub format: Option<Box<str>>,
    /// `enum`.
    pub values: Option<Box<[Value]>>,
    /// `allOf`.
    pub all_of: Box<[Schema]>,
    /// `anyOf`.
    pub any_of: Box<[Schema]>,
    /// `oneOf`.
    pub one_of: Box<[Schema]>,
    /// `not`.
    pub not: Option<Box<Schema>>,
}

impl Schema {
    /// Reads `openAPIV3Schema`. Total: what makes no sense is passed over, since the definition's own validation has
    /// refused it.
    pub fn compile(json: &Value) -> Self {
        let mut schema = compile(json, 0);
        attach(&mut schema, json, true);
        schema
    }

    /// `format`.
    pub fn format(&self) -> Option<&str> {
        self.rules.as_ref()?.format.as_deref()
    }

    /// The schema of a field that `properties` names.
    pub fn property(&self, name: &str) -> Option<&Schema> {
        let index = self.properties.binary_search_by(|(known, _)| (**known).cmp(name)).ok()?;
        self.properties.get(index).map(|(_, schema)| schema)
    }

    /// The schema of any field.
    pub fn field(&self, name: &str) -> Option<&Schema> {
        self.property(name).or(match &self.additional {
            Additional::Of(schema) => Some(schema),
            _ => None,
        })
    }

    /// What nothing is said of.
    pub fn anything() -> Self {
        compile(&Value::Null, MAX_DEPTH)
    }
}

fn compile(json: &Value, depth: usize) -> Schema {
    let flag = |name: &str| json.get(name).and_then(Value::as_bool).unwrap_or(false);
    let text = |name: &str| json.get(name).and_then(Value::as_str).unwrap_or("");
    let is_cut = depth >= MAX_DEPTH;
    let below = |name: &str| json.get(name).filter(|value| value.is_object() && !is_cut);
    let strings = |name: &str| -> Box<[Box<str>]> {
        let list = json.get(name).and_then(Value::as_array).into_iter().flatten();
        list.filter_map(Value::as_str).map(Into::into).collect()
    };
    let mut properties: Vec<(Box<str>, Schema)> = below("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(name, schema)| (name.as_str().into(), compile(schema, depth + 1)))
        .collect();
    properties.sort_by(|(a, _), (b, _)| a.cmp(b));
    let additional = match json.get("additionalProperties") {
        Some(Value::Bool(true)) => Additional::Any,
        Some(schema @ Value::Object(_)) if !is_cut => Additional::Of(Box::new(compile(schema, depth + 1))),
        _ => Additional::None,
    };
    let list = match text("x-kubernetes-list-type") {
        "set" => ListType::Set,
        "map" => ListType::Map(strings("x-kubernetes-list-map-keys")),
        _ => ListType::Atomic,
    };
    Schema {
        type_: Type::of(text("type")),
        nullable: flag("nullable"),
        int_or_string: flag("x-kubernetes-int-or-string"),
        preserves_unknown: flag("x-kubernetes-preserve-unknown-fields") || is_cut,
        is_embedded: flag("x-kubernetes-embedded-resource"),
        is_atomic: text("x-kubernetes-map-type") == "atomic",
        properties: properties.into(),
        additional,
        items: below("items").map(|items| Box::new(compile(items, depth + 1))),
        required: strings("required"),
        list,
        default: json.get("default").map(|value| Box::new(value.clone())),
        rules: rules(json, depth),
        validations: None,
        has_rules: false,
    }
}

/// Compiles the rules of a schema and of those below, whose types are known now.
fn attach(schema: &mut Schema, json: &Value, is_resource: bool) {
    let mut has = json.get("x-kubernetes-validations").is_some();
    if has && let Some(type_) = rules::type_of(schema, schema.format(), is_resource, "object") {
        schema.validations = Validations::compile(json, &type_).map(Box::new);
    }
    let properties = json.get("properties");
    for (name, below) in &mut schema.properties {
        if let Some(json) = properties.and_then(|properties| properties.get(&**name)) {
            attach(below, json, below.is_embedded);
            has |= below.has_rules;
        }
    }
    if let (Some(below), Some(json)) = (&mut schema.items, json.get("items")) {
        attach(below, json, below.is_embedded);
        has |= below.has_rules;
    }
    if let (Additional::Of(below), Some(json)) = (&mut schema.additional, json.get("additionalProperties")) {
        attach(below, json, below.is_embedded);
        has |= below.has_rules;
    }
    schema.has_rules = has;
}

/// Which fields make [`Rules`].
const RESTRICTS: [&str; 17] = [
    "minimum",
    "maximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "pattern",
    "format",
    "enum",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "uniqueItems",
];

fn rules(json: &Value, depth: usize) -> Option<Box<Rules>> {
    RESTRICTS.iter().find(|name| json.get(**name).is_some())?;
    let number = |name: &str| json.get(name).and_then(Value::as_f64);
    let count = |name: &str| json.get(name).and_then(Value::as_u64);
    let flag = |name: &str| json.get(name).and_then(Value::as_bool).unwrap_or(false);
    let text = |name: &str| json.get(name).and_then(Value::as_str);
    let several = |name: &str| -> Box<[Schema]> {
        let list = json.get(name).and_then(Value::as_array).into_iter().flatten();
        if depth < MAX_DEPTH { list.map(|schema| compile(schema, depth + 1)).collect() } else { Box::default() }
    };
    Some(Box::new(Rules {
        minimum: number("minimum").map(|limit| (limit, flag("exclusiveMinimum"))),
        maximum: number("maximum").map(|limit| (limit, flag("exclusiveMaximum"))),
        multiple_of: number("multipleOf").filter(|of| *of > 0.0),
        length: (count("minLength"), count("maxLength")),
        items: (count("minItems"), count("maxItems")),
        properties: (count("minProperties"), count("maxProperties")),
        pattern: text("pattern").map(Into::into),
        format: text("format").map(Into::into),
        values: json.get("enum").and_then(Value::as_array).map(|values| values.clone().into()),
        all_of: several("allOf"),
        any_of: several("anyOf"),
        one_of: several("oneOf"),
        not: json.get("not").filter(|_| depth < MAX_DEPTH).map(|schema| Box::new(compile(schema, depth + 1))),
    }))
}
