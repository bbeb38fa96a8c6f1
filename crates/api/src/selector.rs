//! Label selectors and field selectors: from a query string, or from the JSON or typed `LabelSelector`.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as Typed;
use serde_json::Value;

use crate::kinds::Kind;
use crate::{names, object};

/// Longest selector that is read, in bytes.
pub const MAX_SELECTOR: usize = 64 * 1024;

/// How a requirement compares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operator {
    /// The value is this one.
    Equals,
    /// There is no value, or another one.
    NotEquals,
    /// The value is one of these.
    In,
    /// There is no value, or it is none of these.
    NotIn,
    /// There is a value.
    Exists,
    /// There is none.
    DoesNotExist,
    /// The value is a greater number.
    Gt,
    /// The value is a smaller number.
    Lt,
}

/// One condition on one label.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// How to compare.
    pub operator: Operator,
    /// Sorted; empty for `Exists` and `DoesNotExist`.
    pub values: Vec<String>,
}

/// All of these must hold. The default (no requirement) selects everything.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Labels {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl Labels {
    /// Selects everything.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Selects nothing: a selector that is absent.
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    /// `labelSelector` of a request: `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1`.
    ///
    /// # Errors
    /// Upstream's words, for a 400.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MAX_SELECTOR {
            return Err(format!("selector is longer than {MAX_SELECTOR} bytes"));
        }
        if trim(text).is_empty() {
            return Ok(Self::everything());
        }
        let mut requirements = Vec::new();
        let mut parts = split_outside_parentheses(text).map(trim).peekable();
        while let Some(part) = parts.next() {
            if part.is_empty() {
                let found = if parts.peek().is_some() { "," } else { "" };
                let expected =
                    if requirements.is_empty() { "!, identifier, or 'end of string'" } else { "identifier after ','" };
                return Err(format!("found '{found}', expected: {expected}"));
            }
            requirements.push(parse_requirement(part)?);
        }
        Ok(Self { requirements, nothing: false })
    }

    /// `matchLabels` and `matchExpressions` of a JSON `LabelSelector`; null or absent selects nothing, `{}` everything.
    ///
    /// # Errors
    /// An operator that does not exist.
    pub fn from_json(selector: Option<&Value>) -> Result<Self, String> {
        match selector {
            None | Some(Value::Null) => Ok(Self::nothing()),
            Some(selector) => serde_json::from_value::<Typed>(selector.clone())
                .map_err(|e| e.to_string())
                .and_then(|typed| Self::from_typed(Some(&typed))),
        }
    }

    /// As [`Labels::from_json`], from the typed view.
    ///
    /// # Errors
    /// An operator that does not exist.
    pub fn from_typed(selector: Option<&Typed>) -> Result<Self, String> {
        let Some(selector) = selector else { return Ok(Self::nothing()) };
        let mut all = selector.match_labels.as_ref().map(Self::from_map).unwrap_or_default();
        for expression in selector.match_expressions.iter().flatten() {
            let operator = match expression.operator.as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return Err(format!("{other:?} is not a valid label selector operator")),
            };
            let mut values = expression.values.clone().unwrap_or_default();
            values.sort();
            all.requirements.push(Requirement { key: expression.key.clone(), operator, values });
        }
        Ok(all)
    }

    /// A plain map: a Service's selector, a pod's `nodeSelector`.
    pub fn from_map(map: &BTreeMap<String, String>) -> Self {
        let requirement = |(key, value): (&String, &String)| Requirement {
            key: key.clone(),
            operator: Operator::Equals,
            values: vec![value.clone()],
        };
        Self { requirements: map.iter().map(requirement).collect(), nothing: false }
    }

    /// Adds a requirement.
    pub fn and(mut self, requirement: Requirement) -> Self {
        self.requirements.push(requirement);
        self
    }

    /// Its requirements, in order.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether everything is selected.
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    /// Whether these labels are selected.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches_with(|key| labels.get(key).map(String::as_str))
    }

    /// As [`Labels::matches`], for labels that may be absent altogether.
    pub fn matches_option(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.matches_with(|key| labels.and_then(|l| l.get(key)).map(String::as_str))
    }

    /// Whether this object's labels are selected.
    pub fn matches_object(&self, object: &Value) -> bool {
        self.matches_json(object::at(object, &["metadata", "labels"]))
    }

    /// Whether this JSON map of labels is selected.
    pub fn matches_json(&self, labels: Option<&Value>) -> bool {
        self.matches_with(|key| labels.and_then(|l| l.get(key)).and_then(Value::as_str))
    }

    fn matches_with<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(get(&r.key)))
    }
}

impl Requirement {
    /// Whether a label's value (or its absence) satisfies it.
    pub fn matches(&self, value: Option<&str>) -> bool {
        let listed = |value: &str| self.values.iter().any(|v| v == value);
        let number = |text: &str| text.parse::<i64>().ok();
        let bound = self.values.first().and_then(|v| number(v));
        match self.operator {
            Operator::Equals | Operator::In => value.is_some_and(listed),
            Operator::NotEquals | Operator::NotIn => !value.is_some_and(listed),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Gt => value.and_then(number).zip(bound).is_some_and(|(v, b)| v > b),
            Operator::Lt => value.and_then(number).zip(bound).is_some_and(|(v, b)| v < b),
        }
    }
}

impl fmt::Display for Labels {
    /// Upstream's canonical text, as in a Scale's `status.selector`: sorted by key, `a=b,c in (d,e),f,!g`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sorted: Vec<&Requirement> = self.requirements.iter().collect();
        sorted.sort_by(|a, b| a.key.cmp(&b.key));
        for (index, r) in sorted.into_iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let (key, values) = (&r.key, r.values.join(","));
            match r.operator {
                Operator::Equals => write!(f, "{comma}{key}={values}")?,
                Operator::NotEquals => write!(f, "{comma}{key}!={values}")?,
                Operator::In => write!(f, "{comma}{key} in ({values})")?,
                Operator::NotIn => write!(f, "{comma}{key} notin ({values})")?,
                Operator::Exists => write!(f, "{comma}{key}")?,
                Operator::DoesNotExist => write!(f, "{comma}!{key}")?,
                Operator::Gt => write!(f, "{comma}{key}>{values}")?,
                Operator::Lt => write!(f, "{comma}{key}<{values}")?,
            }
        }
        Ok(())
    }
}

/// Without blanks around it, of those that upstream knows.
fn trim(text: &str) -> &str {
    text.trim_matches(is_blank)
}

fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

/// The parts between commas that are not inside `(…)`.
fn split_outside_parentheses(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0usize;
    text.split(move |c| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    })
}

fn parse_requirement(part: &str) -> Result<Requirement, String> {
    if let Some(key) = part.strip_prefix('!') {
        return requirement(trim(key), Operator::DoesNotExist, Vec::new());
    }
    // The key ends where an operator or a blank begins: `a in (b)`, `a!=b`, `a == b`.
    let end = part.find(|c: char| is_blank(c) || "=!<>(".contains(c)).unwrap_or(part.len());
    let (key, rest) = part.split_at(end);
    let rest = trim(rest);
    let one = |operator, value: &str| requirement(key, operator, vec![trim(value).to_owned()]);
    if rest.is_empty() {
        return requirement(key, Operator::Exists, Vec::new());
    }
    if let Some(value) = rest.strip_prefix("==").or_else(|| rest.strip_prefix('=')) {
        return one(Operator::Equals, value);
    }
    if let Some(value) = rest.strip_prefix("!=") {
        return one(Operator::NotEquals, value);
    }
    if let Some(value) = rest.strip_prefix('>') {
        return one(Operator::Gt, value);
    }
    if let Some(value) = rest.strip_prefix('<') {
        return one(Operator::Lt, value);
    }
    let set = |text: &str, operator| {
        let Some(inside) = trim(text).strip_prefix('(') else {
            return Err(format!("unable to parse requirement: found '{}' expected: '('", trim(text)));
        };
        let Some(inside) = inside.strip_suffix(')') else {
            let expected = match trim(inside) {
                "" => "',', ')' or identifier",
                more if more.ends_with(',') => "',', or identifier",
                _ => "',' or ')'",
            };
            return Err(format!("unable to parse requirement: found '', expected: {expected}"));
        };
        requirement(key, operator, inside.split(',').map(|value| trim(value).to_owned()).collect())
    };
    if let Some(text) = rest.strip_prefix("notin") {
        return set(text, Operator::NotIn);
    }
    if let Some(text) = rest.strip_prefix("in") {
        return set(text, Operator::In);
    }
    let found = rest.split(is_blank).next().unwrap_or("");
    Err(format!("unable to parse requirement: found '{found}', expected: in, notin, =, ==, !=, gt, lt"))
}

fn requirement(key: &str, operator: Operator, mut values: Vec<String>) -> Result<Requirement, String> {
    if let Some(wrong) = names::qualified(key).into_iter().next() {
        return Err(format!("unable to parse requirement: <nil>: Invalid value: {key:?}: {wrong}"));
    }
    let is_number = |value: &str| value.parse::<i64>().is_ok();
    if let (Operator::Gt | Operator::Lt, Some(value)) = (operator, values.iter().find(|value| !is_number(value))) {
        return Err(format!(
            "unable to parse requirement: values[0]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value \
                must be an integer"
        ));
    }
    values.sort();
    values.dedup();
    for (index, value) in values.iter().enumerate() {
        if let Some(wrong) = names::label_value(value).into_iter().next() {
            return Err(format!(
                "unable to parse requirement: values[{index}][{key}]: Invalid value: {value:?}: {wrong}"
            ));
        }
    }
    Ok(Requirement { key: key.to_owned(), operator, values })
}

/// A field selector for one kind: every term must hold.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Fields {
    /// Field, value, and whether it must be equal (else it must differ).
    terms: Vec<(String, String, bool)>,
}

impl Fields {
    /// `fieldSelector` of a request: `status.phase=Running,spec.nodeName!=a`; `\` escapes `,`, `=` and itself.
    ///
    /// # Errors
    /// Upstream's words, for a 400; a field that this kind does not know is one.
    pub fn parse(kind: &Kind, text: &str) -> Result<Self, String> {
        if text.len() > MAX_SELECTOR {
            return Err(format!("selector is longer than {MAX_SELECTOR} bytes"));
        }
        let extra = (kind.fields)(kind, &Value::Null);
        let terms = terms(text)?;
        for (field, ..) in &terms {
            let common = field == "metadata.name" || (kind.namespaced && field == "metadata.namespace");
            if !common && !extra.iter().any(|(known, _)| known == field) {
                return Err(if extra.is_empty() {
                    format!("{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
                } else {
                    format!("field label not supported: {field}")
                });
            }
        }
        Ok(Self { terms })
    }

    /// The value that a field must have by a selector of any kind; `None` where it leaves others, or is none. Who is
    /// let in for what a selector says reads it as the list itself does.
    pub fn required_by(text: &str, field: &str) -> Option<String> {
        let all = if text.len() > MAX_SELECTOR { Vec::new() } else { terms(text).ok()? };
        all.into_iter().find(|(of, _, equal)| *equal && of == field).map(|(_, value, _)| value)
    }

    /// Whether everything is selected.
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// What it says of names and namespaces, and what it says of other fields.
    #[must_use]
    pub fn split(self) -> (Self, Self) {
        let is_metadata = |(field, ..): &(String, String, bool)| field.starts_with("metadata.");
        let (metadata, others) = self.terms.into_iter().partition(is_metadata);
        (Self { terms: metadata }, Self { terms: others })
    }

    /// The one name that can match, where the selector says `metadata.name=…`.
    pub fn name(&self) -> Option<&str> {
        self.terms
            .iter()
            .find(|(field, _, equal)| *equal && field == "metadata.name")
            .map(|(_, value, _)| value.as_str())
    }

    /// The value that `field` must have, where the selector asks for equality.
    pub fn required(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|(f, _, equal)| *equal && f == field).map(|(_, value, _)| value.as_str())
    }

    /// Whether this object (of that kind) is selected.
    pub fn matches(&self, kind: &Kind, object: &Value) -> bool {
        if self.terms.is_empty() {
            return true;
        }
        let fields = (kind.fields)(kind, object);
        self.terms.iter().all(|(field, value, equal)| {
            let actual = match field.as_str() {
                "metadata.name" => object::name(object),
                "metadata.namespace" => object::namespace(object),
                field => fields.iter().find(|(known, _)| *known == field).map_or("", |(_, v)| v.as_str()),
            };
            (actual == value) == *equal
        })
    }
}

/// Field, value, and whether it must be equal (else it must differ), of every part of a field selector.
fn terms(text: &str) -> Result<Vec<(String, String, bool)>, String> {
    let parts = split_unescaped(text).into_iter().filter(|part| !part.is_empty());
    let term = |part: &str| {
        let (field, value, equal) =
            split_term(part).ok_or_else(|| format!("invalid selector: '{text}'; can't understand '{part}'"))?;
        Ok((field.to_owned(), unescape(value)?, equal))
    };
    parts.map(term).collect()
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let mut escaped = false;
    text.split(|c| {
        let separates = c == ',' && !escaped;
        escaped = c == '\\' && !escaped;
        separates
    })
    .collect()
}

fn split_term(part: &str) -> Option<(&str, &str, bool)> {
    let at = part.find(['=', '!'])?;
    let (field, rest) = part.split_at(at);
    for (operator, equal) in [("!=", false), ("==", true), ("=", true)] {
        if let Some(value) = rest.strip_prefix(operator) {
            return Some((field, value, equal));
        }
    }
    None
}

fn unescape(value: &str) -> Result<String, String> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                other => {
                    return Err(format!(
                        "invalid field selector: invalid escape sequence: \\{}",
                        other.map(String::from).unwrap_or_default()
                    ));
                }
            },
            ',' | '=' => return Err(format!("invalid field selector: unescaped character: {c}")),
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod operator_tests;
#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds;

    #[test]
    fn label_selectors_select() {
        let object = json!({ "metadata": { "labels": { "app": "web", "tier": "front", "n": "5" } } });
        let table = [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            ("app = web , tier", true),
            ("app!=web", false),
            ("app in (db, web)", true),
            ("app in (db)", false),
            ("app notin (db,x),tier=front", true),
            ("missing notin (a)", true),
            ("missing!=a", true),
            ("missing", false),
            ("!missing", true),
            ("!app", false),
            ("n>4", true),
            ("n<5", false),
            ("app in (web),missing=", false),
        ];
        for (text, selected) in table {
            assert_eq!(Labels::parse(text).map(|s| s.matches_object(&object)), Ok(selected), "{text}");
        }
        for text in ["a b", "=x", "a=b=c", "a in b", "a=b,,c", "n>x", "(", "a in (b"] {
            assert!(Labels::parse(text).is_err(), "{text}");
        }
        assert_eq!(Labels::parse("b in (y,x),a=1,!c").map(|s| s.to_string()), Ok("a=1,b in (x,y),!c".to_owned()));
    }

    #[test]
    fn an_absent_selector_selects_nothing_and_an_empty_one_everything() {
        let object = json!({ "metadata": {} });
        assert_eq!(Labels::from_json(None).map(|s| s.matches_object(&object)), Ok(false));
        assert_eq!(Labels::from_json(Some(&json!({}))).map(|s| s.matches_object(&object)), Ok(true));
        let selector =
            json!({ "matchLabels": { "a": "b" }, "matchExpressions": [{ "key": "c", "operator": "Exists" }] });
        let selector = Labels::from_json(Some(&selector));
        assert_eq!(selector.map(|s| s.to_string()), Ok("a=b,c".to_owned()));
    }

    #[test]
    fn x1_what_a_field_selector_requires_is_what_it_selects_by() {
        let name = |text: &str| Fields::required_by(text, "metadata.name");
        assert_eq!(name("metadata.name=a").as_deref(), Some("a"));
        assert_eq!(name("status.phase=Running,metadata.name==a").as_deref(), Some("a"));
        // The comma is a part of the value: this selects almost everything.
        let hidden = r"metadata.namespace!=x\,metadata.name\=mine";
        assert_eq!(name(hidden), None);
        let other = json!({ "metadata": { "namespace": "b", "name": "other" } });
        let fields = Fields::parse(&kinds::SECRET, hidden).expect("a selector");
        assert!(fields.matches(&kinds::SECRET, &other));
        for none in ["metadata.name!=a", "spec.metadata.name=a", "metadata.name=a,x", ""] {
            assert_eq!(name(none), None, "{none}");
        }
    }

    #[test]
    fn field_selectors_know_each_kinds_fields() {
        let pod = json!({ "metadata": { "name": "a" }, "spec": { "nodeName": "n" }, "status": { "phase": "Running" } });
        let matches = |text: &str| Fields::parse(&kinds::POD, text).map(|f| f.matches(&kinds::POD, &pod));
        assert_eq!(matches("status.phase=Running,metadata.name!=b"), Ok(true));
        assert_eq!(matches("status.phase!=Running"), Ok(false));
        assert_eq!(matches(r"metadata.name=a\,b"), Ok(false));
        assert_eq!(matches("spec.x=1"), Err("field label not supported: spec.x".to_owned()));
        let error = Fields::parse(&kinds::STATEFUL_SET, "spec.x=1");
        assert_eq!(
            error,
            Err(r#""spec.x" is not a known field selector: only "metadata.name", "metadata.namespace""#.to_owned())
        );
    }
}
