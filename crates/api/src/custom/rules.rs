//! `x-kubernetes-validations`: the rules of a schema, evaluated for objects.
//!
//! As upstream: rules run when the object is otherwise sound, each within [`PER_CALL_LIMIT`], all together within
//! [`RUNTIME_BUDGET`]; a rule that names `oldSelf` runs where there is an old value to compare with; what was wrong
//! before and has not been touched is not held against an update, except by rules that compare.

use std::sync::Arc;

use serde_json::Value as Json;

use super::schema::{Additional, ListType, Schema, Type as SchemaType};
use super::values::{key_of, keyed};
use crate::cel::types::{ListKind, Object};
use crate::cel::{
    self, Budget, CompileError, Environment, Error, PER_CALL_LIMIT, Program, RUNTIME_BUDGET, Type, Value,
};
use crate::status::Cause;

/// The longest text that a `messageExpression` may evaluate to (bytes).
const MAX_MESSAGE: usize = 5 << 10;
/// Faults beyond this many are not listed.
const MAX_CAUSES: usize = 100;

/// A compiled rule.
#[derive(Debug)]
pub struct Rule {
    program: Result<Program, String>,
    /// `rule`, in one line.
    text: Box<str>,
    message: Option<Box<str>>,
    message_expression: Option<(Program, Box<str>)>,
    /// `fieldPath`, with its first dot.
    field_path: Box<str>,
    reason: Option<Box<str>>,
    optional_old_self: bool,
    uses_old_self: bool,
}

/// The rules of one schema, and the type of what they call `self`.
#[derive(Debug)]
pub struct Validations {
    type_: Type,
    rules: Box<[Rule]>,
}

impl Validations {
    /// Compiles a schema's `x-kubernetes-validations`. What does not compile is told when an object is held against it:
    /// a definition with such a rule is refused, so it is one that an older server took.
    pub fn compile(json: &Json, type_: &Type) -> Option<Self> {
        let listed = json.get("x-kubernetes-validations")?.as_array()?;
        let rules: Box<[Rule]> = listed.iter().map(|rule| compile(rule, type_)).collect();
        (!rules.is_empty()).then(|| Self { type_: type_.clone(), rules })
    }
}

/// The environment of a rule.
pub fn environment(self_: &Type, optional_old_self: bool) -> Environment {
    let old = if optional_old_self { Type::optional(self_.clone()) } else { self_.clone() };
    Environment::new([("self", self_.clone()), ("oldSelf", old)])
}

/// What of a rule did not compile, as upstream shows it.
pub fn fault_shown(faults: &[CompileError], text: &str) -> String {
    format!("compilation failed: {}", cel::faults_shown(faults, text))
}

fn compile(json: &Json, type_: &Type) -> Rule {
    let text = |name: &str| json.get(name).and_then(Json::as_str).map(str::trim).filter(|text| !text.is_empty());
    let rule = text("rule").unwrap_or("true");
    let optional_old_self = json.get("optionalOldSelf").and_then(Json::as_bool) == Some(true);
    let environment = environment(type_, optional_old_self);
    let program = environment.compile(rule).map_err(|faults| fault_shown(&faults, rule));
    let uses_old_self = program.as_ref().is_ok_and(|program| program.uses("oldSelf"));
    let message_expression =
        text("messageExpression").and_then(|text| Some((environment.compile(text).ok()?, text.into())));
    Rule {
        program,
        text: rule.into(),
        message: text("message").map(Into::into),
        message_expression,
        field_path: text("fieldPath").unwrap_or("").into(),
        reason: text("reason").map(Into::into),
        optional_old_self,
        uses_old_self,
    }
}

/// The type of a schema's values in expressions; none where they cannot be looked into. `is_resource`: with the fields
/// that every resource has.
pub fn type_of(schema: &Schema, format: Option<&str>, is_resource: bool, name: &str) -> Option<Type> {
    if schema.int_or_string {
        return Some(Type::Dyn);
    }
    match schema.type_ {
        SchemaType::Any => None,
        SchemaType::Boolean => Some(Type::Bool),
        SchemaType::Integer => Some(Type::Int),
        SchemaType::Number => Some(Type::Double),
        SchemaType::String => Some(match format {
            Some("byte") => Type::Bytes,
            Some("duration") => Type::Duration,
            Some("date" | "date-time") => Type::Timestamp,
            _ => Type::String,
        }),
        SchemaType::Array => {
            let items = schema.items.as_deref()?;
            let item = type_of(items, items.format(), items.is_embedded, &format!("{name}.@idx"))?;
            let kind = match &schema.list {
                ListType::Atomic => ListKind::Atomic,
                ListType::Set => ListKind::Set,
                ListType::Map(keys) => ListKind::Map(keys.iter().cloned().collect()),
            };
            Some(Type::List(Arc::new(item), kind))
        }
        SchemaType::Object => {
            if let Additional::Of(values) = &schema.additional {
                let value = type_of(values, values.format(), values.is_embedded, &format!("{name}.@elem"))?;
                return Some(Type::map(value));
            }
            let mut fields: Vec<(Box<str>, Type)> = Vec::new();
            for (field, below) in &schema.properties {
                let inner = type_of(below, below.format(), below.is_embedded, &format!("{name}.{field}"));
                fields.extend(inner.map(|type_| (field.clone(), type_)));
            }
            if is_resource {
                fields.retain(|(name, _)| !["apiVersion", "kind", "metadata"].contains(&&**name));
                let metadata = [("name".into(), Type::String), ("generateName".into(), Type::String)];
                let metadata = Type::Object(Arc::new(Object::new(&format!("{name}.metadata"), metadata)));
                fields.extend([
                    ("apiVersion".into(), Type::String),
                    ("kind".into(), Type::String),
                    ("metadata".into(), metadata),
                ]);
            }
            Some(Type::Object(Arc::new(Object::new(name, fields))))
        }
    }
}

/// Holds an object against the rules of its schema. `old` is what it was, for an update.
pub fn check(schema: &Schema, object: &Json, old: Option<&Json>, causes: &mut Vec<Cause>) {
    if !schema.has_rules {
        return;
    }
    if causes.iter().any(|cause| BLOCKING.contains(&cause.reason)) {
        let why = "some validation rules were not checked because the object was invalid; correct the existing errors \
            to complete validation";
        causes.push(Cause::invalid("<nil>", Json::Null, why));
        return;
    }
    let mut walk = Walk { budget: Budget::of(RUNTIME_BUDGET), causes, path: String::new() };
    // Everything that was wanted is told already where a walk ends early.
    let _ended = walk.visit(schema, object, old, Correlated { now: old.map(|old| (object, old)), parent: None });
}

/// Faults after which rules are not looked at.
const BLOCKING: [&str; 4] = ["FieldValueRequired", "FieldValueTooLong", "FieldValueTooMany", "FieldValueTypeInvalid"];

/// A value and what it was, and the same of the nearest value around it of which that is known.
#[derive(Clone, Copy)]
struct Correlated<'a> {
    now: Option<(&'a Json, &'a Json)>,
    parent: Option<(&'a Json, &'a Json)>,
}

impl<'a> Correlated<'a> {
    fn below(self, new: &'a Json, old: Option<&'a Json>) -> Self {
        Self { now: old.map(|old| (new, old)), parent: self.now.or(self.parent) }
    }

    /// Whether nothing has changed here.
    fn is_unchanged(self) -> bool {
        self.now.or(self.parent).is_some_and(|(new, old)| new == old)
    }
}

/// No further rules are evaluated: the budget is spent.
struct Ended;

struct Walk<'c> {
    budget: Budget,
    causes: &'c mut Vec<Cause>,
    path: String,
}

impl Walk<'_> {
    fn visit(&mut self, schema: &Schema, value: &Json, old: Option<&Json>, at: Correlated<'_>) -> Result<(), Ended> {
        if value.is_null() || !schema.has_rules || self.causes.len() >= MAX_CAUSES {
            return Ok(());
        }
        if let Some(validations) = &schema.validations {
            self.evaluate(validations, value, old, at)?;
        }
        let length = self.path.len();
        match value {
            Json::Object(fields) => {
                for (name, value) in fields {
                    let Some(below) = schema.field(name).filter(|below| below.has_rules) else { continue };
                    let old = old.filter(|_| !schema.is_atomic).and_then(|old| old.get(name));
                    if schema.property(name).is_none() {
                        self.path.push_str(&format!("[{name}]"));
                    } else {
                        self.path.push_str(if length == 0 { "" } else { "." });
                        self.path.push_str(name);
                    }
                    self.visit(below, value, old, at.below(value, old))?;
                    self.path.truncate(length);
                }
            }
            Json::Array(items) => {
                let Some(below) = schema.items.as_deref().filter(|below| below.has_rules) else { return Ok(()) };
                let known = keyed(schema, old);
                for (index, item) in items.iter().enumerate() {
                    let old = key_of(schema, item).and_then(|key| known.get(&key).copied());
                    self.path.push_str(&format!("[{index}]"));
                    self.visit(below, item, old, at.below(item, old))?;
                    self.path.truncate(length);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn evaluate(
        &mut self,
        all: &Validations,
        value: &Json,
        old: Option<&Json>,
        at: Correlated<'_>,
    ) -> Result<(), Ended> {
        for rule in &all.rules {
            let program = match &rule.program {
                Ok(program) => program,
                Err(why) => {
                    self.refuse(&format!("rule compile error: {why}"), value);
                    continue;
                }
            };
            if rule.uses_old_self && old.is_none() && !rule.optional_old_self {
                continue;
            }
            let self_ = Value::of(value, &all.type_);
            let old_self = old.map(|old| Value::of(old, &all.type_));
            let values: Vec<(&str, Value<'_>)> = match (rule.optional_old_self, old_self) {
                (true, old) => vec![("self", self_), ("oldSelf", Value::optional(old))],
                (false, Some(old)) => vec![("self", self_), ("oldSelf", old)],
                (false, None) => vec![("self", self_)],
            };
            match self.run(program, &values) {
                Ok(found) if found.as_bool() == Some(true) => {}
                Ok(_) => self.failed(rule, value, &values, at)?,
                Err(Error::Budget) if self.budget.left() == 0 => return self.spent(value),
                Err(error @ Error::Budget) => {
                    let shown = rule.shown();
                    let why = format!(
                        "'{error}': no further validation rules will be run due to call cost exceeds limit for rule: \
                            {shown}"
                    );
                    self.refuse(&why, value);
                    return Err(Ended);
                }
                Err(error @ Error::Overload) => {
                    let shown = rule.shown();
                    let why = format!(
                        "'{error}': call arguments did not match a supported operator, function or macro signature \
                            for rule: {shown}"
                    );
                    self.refuse(&why, value);
                }
                Err(error) => self.refuse(&format!("{error} evaluating rule: {}", rule.shown()), value),
            }
        }
        Ok(())
    }

    /// Evaluates within the limit of one rule and what is left for all.
    fn run<'a>(&mut self, program: &Program, values: &Vec<(&str, Value<'a>)>) -> Result<Value<'a>, Error> {
        let mut own = Budget::of(PER_CALL_LIMIT.min(self.budget.left()));
        let found = program.evaluate(values, &mut own);
        // What was asked for beyond the limit was not spent.
        let spent = own.spent().min(PER_CALL_LIMIT);
        self.budget.spend(spent)?;
        found
    }

    fn refuse(&mut self, why: &str, value: &Json) {
        let name = match value {
            Json::Object(_) => "object",
            Json::Array(_) => "array",
            Json::String(_) => "string",
            Json::Bool(_) => "boolean",
            Json::Number(number) if number.is_f64() => "number",
            _ => "integer",
        };
        let path = self.shown_path("");
        self.causes.push(Cause::invalid(path, name, why));
    }

    fn spent(&mut self, value: &Json) -> Result<(), Ended> {
        let why = "validation failed due to running out of cost budget, no further validation rules will be run";
        self.refuse(why, value);
        Err(Ended)
    }

    fn shown_path(&self, below: &str) -> String {
        match format!("{}{below}", self.path) {
            path if path.is_empty() => "<nil>".to_owned(),
            path => path.trim_start_matches('.').to_owned(),
        }
    }

    fn failed(
        &mut self,
        rule: &Rule,
        value: &Json,
        values: &Vec<(&str, Value<'_>)>,
        at: Correlated<'_>,
    ) -> Result<(), Ended> {
        if !rule.uses_old_self && at.is_unchanged() {
            return Ok(());
        }
        let detail = match &rule.message_expression {
            Some((program, source)) => match self.run(program, values) {
                Ok(text) => usable_message(&text),
                Err(Error::Budget) => {
                    let why = if self.budget.left() == 0 {
                        "messageExpression evaluation failed due to running out of cost budget, no further validation \
                            rules will be run"
                            .to_owned()
                    } else {
                        format!(
                            "no further validation rules will be run due to call cost exceeds limit for \
                                messageExpression: {source:?}"
                        )
                    };
                    self.refuse(&why, value);
                    return Err(Ended);
                }
                Err(_) => None,
            },
            None => None,
        };
        let detail = detail.unwrap_or_else(|| match &rule.message {
            Some(message) => message.to_string(),
            None => format!("failed rule: {}", rule.text),
        });
        let path = self.shown_path(&rule.field_path);
        let is_simple = !value.is_object() && !value.is_array();
        self.causes.push(match rule.reason.as_deref() {
            Some("FieldValueForbidden") => Cause::forbidden(path, &detail),
            Some("FieldValueRequired") => Cause::required(path, &detail),
            Some("FieldValueDuplicate") if is_simple => Cause::duplicate(path, value.clone()),
            Some("FieldValueDuplicate") => {
                Cause { reason: "FieldValueDuplicate", message: "Duplicate value".to_owned(), field: path }
            }
            _ if is_simple => Cause::invalid(path, value.clone(), &detail),
            _ => Cause { reason: "FieldValueInvalid", message: format!("Invalid value: {detail}"), field: path },
        });
        Ok(())
    }
}

impl Rule {
    /// How messages call it.
    fn shown(&self) -> &str {
        self.message.as_deref().unwrap_or(&self.text)
    }
}

/// What a `messageExpression` gave, where it is one line of text.
fn usable_message(value: &Value<'_>) -> Option<String> {
    let text = value.as_str()?.trim();
    (!text.is_empty() && text.len() <= MAX_MESSAGE && !text.contains('\n')).then(|| text.to_owned())
}
