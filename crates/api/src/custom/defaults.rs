//! `default`s of a definition's schema, which are themselves of the schema: checked when the definition is written.

use serde_json::Value;

use super::schema::Schema;
use super::{rules, values};
use crate::paths;
use crate::status::Cause;

/// Every fault of the defaults of a version's schema, which is structural.
pub fn validate(json: &Value, path: &str, causes: &mut Vec<Cause>) {
    walk(json, path, true, causes);
}

fn walk(json: &Value, path: &str, is_root: bool, causes: &mut Vec<Cause>) {
    if let Some(default) = json.get("default").filter(|default| !default.is_null()) {
        check(json, default, &format!("{path}.default"), causes);
    }
    for (name, property) in json.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let at = paths::property(path, name);
        if is_root && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
            forbid(property, &at, name, causes);
        } else {
            walk(property, &at, false, causes);
        }
    }
    for name in ["items", "additionalProperties"] {
        if let Some(below) = json.get(name).filter(|below| below.is_object()) {
            walk(below, &format!("{path}.{name}"), false, causes);
        }
    }
}

fn check(json: &Value, default: &Value, path: &str, causes: &mut Vec<Cause>) {
    let schema = Schema::compile(json);
    let mut pruned = default.clone();
    if !values::prune(&schema, &mut pruned, false).is_empty() {
        causes.push(Cause::invalid(path, default.clone(), "must not have unknown fields"));
        return;
    }
    let before = causes.len();
    values::validate(&schema, default, path, causes);
    if causes.len() == before {
        let mut broken = Vec::new();
        rules::check(&schema, default, None, &mut broken);
        causes.extend(broken.into_iter().map(|cause| Cause { field: path.to_owned(), ..cause }));
    }
}

/// What every resource has is not defaulted.
fn forbid(json: &Value, path: &str, field: &str, causes: &mut Vec<Cause>) {
    if json.get("default").is_some_and(|default| !default.is_null()) {
        causes.push(Cause::forbidden(format!("{path}.default"), &format!("must not be set in top-level {field}")));
    }
    for (name, property) in json.get("properties").and_then(Value::as_object).into_iter().flatten() {
        forbid(property, &paths::property(path, name), field, causes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_that_are_not_of_their_schema_are_refused() {
        let refused = |field: Value| {
            let mut causes = Vec::new();
            validate(&json!({ "type": "object", "properties": { "f": field } }), "schema", &mut causes);
            causes.into_iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect::<Vec<_>>()
        };
        let at = "schema.properties[f].default";
        assert_eq!(refused(json!({ "type": "integer", "minimum": 1, "default": 3 })), Vec::<String>::new());
        assert_eq!(
            refused(json!({ "type": "integer", "default": "3" })),
            [format!("{at}: Invalid value: \"string\": {at} in body must be of type integer: \"string\"")]
        );
        assert_eq!(
            refused(json!({ "type": "object", "properties": { "a": { "type": "string" } }, "default": { "b": 1 } })),
            [format!("{at}: Invalid value: {{\"b\":1}}: must not have unknown fields")]
        );
        let rule = json!({ "type": "integer", "default": 0, "x-kubernetes-validations": [{ "rule": "self > 0" }] });
        assert_eq!(refused(rule), [format!("{at}: Invalid value: 0: failed rule: self > 0")]);
        // Wherever it stands; and one that is null is none.
        let wrong = || json!({ "type": "integer", "default": "3" });
        for (schema, at) in [
            (json!({ "type": "array", "items": wrong() }), "items.default"),
            (json!({ "type": "object", "additionalProperties": wrong() }), "additionalProperties.default"),
            (json!({ "type": "object", "properties": { "kind": wrong() } }), "properties[kind].default"),
        ] {
            let [why] = &refused(schema)[..] else { panic!("{at}") };
            assert!(why.starts_with(&format!("schema.properties[f].{at}: Invalid value")), "{why}");
        }
        assert_eq!(refused(json!({ "type": "integer", "default": null })), Vec::<String>::new());
        // What has not even the shape is not held against rules.
        let both = json!({ "type": "integer", "minimum": 1, "default": 0,
            "x-kubernetes-validations": [{ "rule": "self > 0" }] });
        assert_eq!(refused(both).len(), 1);
        let named = json!({ "type": "object", "properties": { "kind": { "type": "string", "default": null },
            "metadata": { "type": "object", "properties": {
            "name": { "type": "string", "default": "x" } } } } });
        let mut causes = Vec::new();
        validate(&named, "schema", &mut causes);
        let fields: Vec<&str> = causes.iter().map(|cause| cause.field.as_str()).collect();
        assert_eq!(fields, ["schema.properties[metadata].properties[name].default"]);
    }
}
