//! `x-kubernetes-validations` of a definition, checked when it is written: whether they compile, give a truth, compare
//! only what can be compared, and what they cost at most. In upstream's words.

use serde_json::Value as Json;

use super::rule_cost::{estimate, max_count, max_size};
use super::rules::{environment, fault_shown, type_of};
use super::schema::Schema;
use crate::cel::{Program, Type};
use crate::paths;
use crate::status::Cause;

/// What one rule may cost at most, for all values of one request that it is evaluated for.
pub const STATIC_LIMIT: u64 = 10_000_000;
/// What all rules of a version may cost together.
pub const STATIC_TOTAL_LIMIT: u64 = 100_000_000;
/// How many of the most expensive rules are named.
const MAX_NAMED: usize = 4;
/// Faults beyond this many are not listed.
const MAX_CAUSES: usize = 100;
const REASONS: [&str; 4] = ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];

/// Every fault of the rules of a version's schema, which is structural.
pub fn validate(json: &Json, path: &str, causes: &mut Vec<Cause>) {
    let schema = Schema::compile(json);
    if !schema.has_rules {
        return;
    }
    let mut walk = Walk { causes, total: 0, expensive: Vec::new() };
    let root = Place { path: path.to_owned(), count: Some(1), uncorrelatable: None, depth: 0 };
    walk.visit(&schema, json, &root, true);
    let Walk { causes, total, mut expensive } = walk;
    if total > STATIC_TOTAL_LIMIT {
        expensive.sort_by_key(|(cost, _)| std::cmp::Reverse(*cost));
        for (_, path) in expensive.into_iter().take(MAX_NAMED) {
            let why = "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
            causes.push(Cause::forbidden(path, why));
        }
        let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        causes.push(Cause::forbidden(path, &too_expensive(what, total, STATIC_TOTAL_LIMIT)));
    }
}

fn too_expensive(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = match factor {
        factor if factor > 100.0 => "more than 100x".to_owned(),
        factor if factor < 1.5 => format!("{factor:.6}x"),
        factor => format!("{factor:.1}x"),
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, \
            and maxLength where arrays, maps, and strings are declared)"
    )
}

/// Where a schema stands in the definition.
#[derive(Clone)]
struct Place {
    path: String,
    /// How many values of it an object has at most; none where lists around it have no limit.
    count: Option<u64>,
    /// The schema above within which old and new values cannot be told to belong together.
    uncorrelatable: Option<String>,
    depth: usize,
}

struct Walk<'c> {
    causes: &'c mut Vec<Cause>,
    total: u64,
    expensive: Vec<(u64, String)>,
}

impl Walk<'_> {
    fn visit(&mut self, schema: &Schema, json: &Json, place: &Place, is_resource: bool) {
        if !schema.has_rules || self.causes.len() >= MAX_CAUSES {
            return;
        }
        let below = |part: String, times: u64, is_bounded: bool, correlates: bool| Place {
            path: paths::field(&place.path, &part),
            count: place.count.filter(|_| is_bounded).map(|count| count.saturating_mul(times)),
            uncorrelatable: place.uncorrelatable.clone().or_else(|| (!correlates).then(|| place.path.clone())),
            depth: place.depth + 1,
        };
        for (name, property) in &schema.properties {
            if let Some(json) = json.get("properties").and_then(|all| all.get(&**name)) {
                let place = below(format!("properties[{name}]"), 1, true, !schema.is_atomic);
                self.visit(property, json, &place, property.is_embedded);
            }
        }
        if let (Some(items), Some(json_items)) = (schema.items.as_deref(), json.get("items")) {
            let is_map = matches!(schema.list, super::schema::ListType::Map(_));
            let place = below("items".to_owned(), max_size(json), json.get("maxItems").is_some(), is_map);
            self.visit(items, json_items, &place, items.is_embedded);
        }
        if let (super::schema::Additional::Of(values), Some(json_values)) =
            (&schema.additional, json.get("additionalProperties"))
        {
            let is_bounded = json.get("maxProperties").is_some();
            let place = below("additionalProperties".to_owned(), max_size(json), is_bounded, !schema.is_atomic);
            self.visit(values, json_values, &place, values.is_embedded);
        }
        self.rules(schema, json, place, is_resource);
    }

    fn rules(&mut self, schema: &Schema, json: &Json, place: &Place, is_resource: bool) {
        let listed = json.get("x-kubernetes-validations").and_then(Json::as_array).into_iter().flatten();
        let mut type_ = None;
        for (index, rule) in listed.enumerate() {
            let path = format!("{}.x-kubernetes-validations[{index}]", place.path);
            if !self.shape(rule, json, &path) {
                continue;
            }
            let type_ = type_.get_or_insert_with(|| type_of(schema, schema.format(), is_resource, "object"));
            if let Some(type_) = type_ {
                self.rule(rule, json, type_, &path, place);
            }
        }
    }

    /// What can be said of a rule without reading its expression.
    fn shape(&mut self, rule: &Json, schema: &Json, path: &str) -> bool {
        let before = self.causes.len();
        let text = |name: &str| rule.get(name).and_then(Json::as_str).unwrap_or("");
        let has_break = |text: &str| text.contains(['\n', '\r']);
        let at = |name: &str| format!("{path}.{name}");
        let (own, message) = (text("rule").trim(), text("message"));
        if own.is_empty() {
            self.causes.push(Cause::required(at("rule"), "rule is not specified"));
        } else if !message.is_empty() && message.trim().is_empty() {
            self.causes.push(Cause::invalid(at("message"), message, "message must be non-empty if specified"));
        } else if has_break(message.trim()) {
            self.causes.push(Cause::invalid(at("message"), message, "message must not contain line breaks"));
        } else if has_break(own) && message.trim().is_empty() {
            self.causes.push(Cause::required(at("message"), "message must be specified if rule contains line breaks"));
        }
        let expression = text("messageExpression");
        if !expression.is_empty() && expression.trim().is_empty() {
            let why = "messageExpression must be non-empty if specified";
            self.causes.push(Cause::required(at("messageExpression"), why));
        }
        if let Some(reason) = rule.get("reason").and_then(Json::as_str).filter(|reason| !REASONS.contains(reason)) {
            self.causes.push(Cause::not_supported(at("reason"), reason, &REASONS));
        }
        let field_path = text("fieldPath");
        if !field_path.is_empty() && field_path.trim().is_empty() {
            let why = "fieldPath must be non-empty if specified";
            self.causes.push(Cause::invalid(at("fieldPath"), field_path, why));
        } else if has_break(field_path) {
            self.causes.push(Cause::invalid(at("fieldPath"), field_path, "fieldPath must not contain line breaks"));
        } else if !field_path.is_empty() && !leads_somewhere(schema, field_path) {
            self.causes.push(Cause::invalid(at("fieldPath"), field_path, "fieldPath must be a valid path"));
        }
        self.causes.len() == before
    }

    fn rule(&mut self, rule: &Json, schema: &Json, type_: &Type, path: &str, place: &Place) {
        let text = |name: &str| rule.get(name).and_then(Json::as_str).map(str::trim).filter(|text| !text.is_empty());
        let optional = rule.get("optionalOldSelf").and_then(Json::as_bool);
        let environment = environment(type_, optional == Some(true));
        let own = text("rule").unwrap_or("");
        let at = format!("{path}.rule");
        match environment.compile(own) {
            Err(faults) => self.causes.push(Cause::invalid(&at, rule.clone(), &fault_shown(&faults, own))),
            Ok(program) if !matches!(program.result(), Type::Bool | Type::Dyn) => {
                self.causes.push(Cause::invalid(&at, rule.clone(), "cel expression must evaluate to a bool"));
            }
            Ok(program) => {
                self.cost(&program, schema, "estimated rule cost", &at, place);
                match (program.uses("oldSelf"), &place.uncorrelatable) {
                    (true, Some(above)) => {
                        let why = format!(
                            "oldSelf cannot be used on the uncorrelatable portion of the schema within {above}"
                        );
                        self.causes.push(Cause::invalid(&at, own, &why));
                    }
                    (false, _) if optional.is_some() => {
                        let why = "may not be set if oldSelf is not used in rule";
                        self.causes.push(Cause::invalid(format!("{path}.optionalOldSelf"), optional, why));
                    }
                    _ => {}
                }
            }
        }
        let Some(own) = text("messageExpression") else { return };
        let at = format!("{path}.messageExpression");
        match environment.compile(own) {
            Err(faults) => {
                let why = format!("messageExpression {}", fault_shown(&faults, own));
                self.causes.push(Cause::invalid(at, rule.clone(), &why));
            }
            Ok(program) if !matches!(program.result(), Type::String | Type::Dyn) => {
                self.causes.push(Cause::invalid(at, rule.clone(), "messageExpression must evaluate to a string"));
            }
            Ok(program) => self.cost(&program, schema, "estimated messageExpression cost", &at, place),
        }
    }

    fn cost(&mut self, program: &Program, schema: &Json, what: &str, path: &str, place: &Place) {
        let times = place.count.unwrap_or_else(|| max_count(schema));
        let cost = estimate(program.node(), schema).saturating_mul(times);
        if cost > STATIC_LIMIT {
            self.causes.push(Cause::forbidden(path, &too_expensive(what, cost, STATIC_LIMIT)));
        }
        self.total = self.total.saturating_add(cost);
        self.expensive.push((cost, path.to_owned()));
    }
}

/// Whether a `fieldPath` (`.a.b`, `.a['b']`) names a field of the schema.
fn leads_somewhere(schema: &Json, path: &str) -> bool {
    let (mut schema, mut rest) = (schema, path);
    while !rest.is_empty() {
        let (name, after) = if let Some(after) = rest.strip_prefix("['") {
            let Some((name, after)) = after.split_once("']") else { return false };
            (name, after)
        } else if let Some(after) = rest.strip_prefix('.') {
            after.split_at(after.find(['.', '[']).unwrap_or(after.len()))
        } else {
            return false;
        };
        let property = schema.get("properties").map(|all| all.get(name));
        let Some(below) = property.unwrap_or_else(|| schema.get("additionalProperties").filter(|v| v.is_object()))
        else {
            return false;
        };
        (schema, rest) = (below, after);
    }
    true
}
