//! `x-kubernetes-validations`: what is said of rules that are no good, and of values that rules refuse, case by case.

use serde_json::{Value, json};

use super::schema::Schema;
use super::{rule_check, rules};
use crate::status::Cause;

fn told(causes: Vec<Cause>) -> Vec<String> {
    causes.into_iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
}

fn refused(schema: &Value) -> Vec<String> {
    let mut causes = Vec::new();
    rule_check::validate(schema, "schema", &mut causes);
    told(causes)
}

/// What is said of an object whose `spec` is held against one schema.
fn faults(spec: &Value, value: Value, old: Option<Value>) -> Vec<String> {
    let schema = json!({ "type": "object", "properties": { "spec": spec } });
    assert_eq!(refused(&schema), Vec::<String>::new(), "{spec}");
    let mut causes = Vec::new();
    let old = old.map(|old| json!({ "spec": old }));
    rules::check(&Schema::compile(&schema), &json!({ "spec": value }), old.as_ref(), &mut causes);
    told(causes)
}

/// A schema with one rule.
fn ruled(mut schema: Value, rule: Value) -> Value {
    schema["x-kubernetes-validations"] = json!([rule]);
    schema
}

fn spec() -> Value {
    json!({ "type": "object", "properties": {
        "min": { "type": "integer" }, "max": { "type": "integer" },
        "map": { "type": "object", "maxProperties": 5, "additionalProperties": { "type": "object", "properties": {
            "a": { "type": "string", "maxLength": 5 } } } },
        "list": { "type": "array", "maxItems": 5, "items": { "type": "string", "maxLength": 5 } } } })
}

#[test]
fn a_rule_that_is_no_good_is_refused_where_it_is_wrong() {
    let own = "self.min <= self.max";
    let table = [
        (json!({ "rule": " " }), "rule: Required value: rule is not specified"),
        (
            json!({ "rule": own, "message": " " }),
            "message: Invalid value: \" \": message must be non-empty if specified",
        ),
        (
            json!({ "rule": own, "message": "a\nb" }),
            "message: Invalid value: \"a\\nb\": message must not contain line breaks",
        ),
        (
            json!({ "rule": "self.min <=\nself.max" }),
            "message: Required value: message must be specified if rule contains line breaks",
        ),
        (
            json!({ "rule": own, "messageExpression": " " }),
            "messageExpression: Required value: messageExpression must be non-empty if specified",
        ),
        (
            json!({ "rule": own, "messageExpression": "1" }),
            "messageExpression: Invalid value: {\"messageExpression\":\"1\",\"rule\":\"self.min <= self.max\"}: \
                messageExpression must evaluate to a string",
        ),
        (
            json!({ "rule": own, "reason": "Odd" }),
            "reason: Unsupported value: \"Odd\": supported values: \
                \"FieldValueDuplicate\", \"FieldValueForbidden\", \"FieldValueInvalid\", \"FieldValueRequired\"",
        ),
        (
            json!({ "rule": own, "fieldPath": " " }),
            "fieldPath: Invalid value: \" \": fieldPath must be non-empty if specified",
        ),
        (
            json!({ "rule": own, "fieldPath": ".min\n" }),
            "fieldPath: Invalid value: \".min\\n\": fieldPath must not contain line breaks",
        ),
        (
            json!({ "rule": own, "fieldPath": ".no" }),
            "fieldPath: Invalid value: \".no\": fieldPath must be a valid path",
        ),
        (
            json!({ "rule": own, "fieldPath": "min" }),
            "fieldPath: Invalid value: \"min\": fieldPath must be a valid path",
        ),
        (
            json!({ "rule": own, "fieldPath": "['min" }),
            "fieldPath: Invalid value: \"['min\": fieldPath must be a valid path",
        ),
        (
            json!({ "rule": own, "fieldPath": ".list.a" }),
            "fieldPath: Invalid value: \".list.a\": fieldPath must be a valid path",
        ),
        (
            json!({ "rule": own, "optionalOldSelf": true }),
            "optionalOldSelf: Invalid value: true: may not be set if oldSelf is not used in rule",
        ),
        (
            json!({ "rule": "self.min" }),
            "rule: Invalid value: {\"rule\":\"self.min\"}: cel expression must evaluate to a bool",
        ),
    ];
    for (rule, why) in table {
        let schema = json!({ "type": "object", "properties": { "spec": ruled(spec(), rule.clone()) } });
        assert_eq!(refused(&schema), [format!("schema.properties[spec].x-kubernetes-validations[0].{why}")], "{rule}");
    }
    for rule in [
        json!({ "rule": "self.min <=\nself.max", "message": "m" }),
        json!({ "rule": own, "message": "", "messageExpression": "", "fieldPath": "" }),
        json!({ "rule": own, "fieldPath": "['min']" }),
        json!({ "rule": own, "fieldPath": ".map.any.a" }),
        json!({ "rule": own, "fieldPath": ".map['any']" }),
        json!({ "rule": "oldSelf.hasValue() || self.min > 0", "optionalOldSelf": true }),
    ] {
        let schema = json!({ "type": "object", "properties": { "spec": ruled(spec(), rule) } });
        assert_eq!(refused(&schema), Vec::<String>::new());
    }
}

/// Below a list that is not keyed, and below what is atomic, it is not known what was before.
#[test]
fn old_values_are_compared_only_where_they_can_be_found() {
    let rule = json!({ "rule": "self == oldSelf" });
    let text = || ruled(json!({ "type": "string", "maxLength": 5 }), rule.clone());
    let list = |kind: &str| json!({ "type": "array", "maxItems": 5, "x-kubernetes-list-type": kind, "items": text() });
    let map = |kind: &str| {
        json!({ "type": "object", "maxProperties": 5, "x-kubernetes-map-type": kind,
            "additionalProperties": text() })
    };
    let object = |kind: &str| json!({ "type": "object", "x-kubernetes-map-type": kind, "properties": { "a": text() } });
    let wrong = |schema: Value| {
        let schema = json!({ "type": "object", "properties": { "spec": schema } });
        refused(&schema)
            .iter()
            .filter(|why| {
                why.contains(
                    "oldSelf cannot be used on the uncorrelatable portion of the schema within schema.properties[spec]",
                )
            })
            .count()
    };
    let table = [
        (list("atomic"), 1),
        (list("set"), 1),
        (map("granular"), 0),
        (map("atomic"), 1),
        (object("granular"), 0),
        (object("atomic"), 1),
    ];
    for (schema, count) in table {
        assert_eq!(wrong(schema.clone()), count, "{schema}");
    }
}

#[test]
fn values_are_of_their_formats_types_in_rules() {
    let text = |format: &str| json!({ "type": "string", "maxLength": 40, "format": format });
    let table = [
        (text("byte"), "size(self) == 3", json!("YWJj"), json!("YWJjZA==")),
        (text("duration"), "self < duration('1h')", json!("59m"), json!("2h")),
        (
            text("date-time"),
            "self > timestamp('2020-01-01T00:00:00Z')",
            json!("2021-01-01T00:00:00Z"),
            json!("2019-01-01T00:00:00Z"),
        ),
        (text("date"), "self > timestamp('2020-01-01T00:00:00Z')", json!("2021-01-01"), json!("2019-01-01")),
        (text("hostname"), "self.startsWith('a')", json!("a"), json!("b")),
        (
            json!({ "x-kubernetes-int-or-string": true }),
            "type(self) == int ? self < 5 : self == 'x'",
            json!("x"),
            json!(6),
        ),
        (json!({ "type": "number" }), "self < 1.5", json!(1), json!(2)),
    ];
    for (schema, rule, fits, fails) in table {
        let schema =
            json!({ "type": "object", "properties": { "v": ruled(schema, json!({ "rule": rule, "message": "m" })) } });
        assert_eq!(faults(&schema, json!({ "v": fits }), None), Vec::<String>::new(), "{rule}");
        let said = faults(&schema, json!({ "v": fails.clone() }), None);
        assert_eq!(said, [format!("spec.v: Invalid value: {fails}: m")], "{rule}");
        assert_eq!(
            faults(&schema, json!({ "v": null }), None),
            Vec::<String>::new(),
            "what is not there is not looked at"
        );
    }
}

/// A rule that cannot be evaluated is told with the type of the value that it was evaluated for.
#[test]
fn what_cannot_be_evaluated_is_told_with_its_type() {
    let table = [
        (json!({ "type": "string", "maxLength": 9 }), "int(self) > 0", json!("x"), "\"string\""),
        (
            json!({ "type": "array", "maxItems": 3, "items": { "type": "integer" } }),
            "self[0] > 0",
            json!([]),
            "\"array\"",
        ),
        (json!({ "type": "boolean" }), "self ? 1 / 0 > 0 : true", json!(true), "\"boolean\""),
        (json!({ "type": "number" }), "1 / int(self) > 0", json!(0.5), "\"number\""),
        (json!({ "type": "integer" }), "1 / self > 0", json!(0), "\"integer\""),
        (
            json!({ "type": "object", "properties": { "a": { "type": "integer" } } }),
            "self.a > 0",
            json!({}),
            "\"object\"",
        ),
    ];
    for (schema, rule, value, shown) in table {
        let schema = json!({ "type": "object", "properties": { "v": ruled(schema, json!({ "rule": rule })) } });
        let said = faults(&schema, json!({ "v": value }), None);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].starts_with(&format!("spec.v: Invalid value: {shown}: ")), "{said:?}");
        assert!(said[0].ends_with(&format!(" evaluating rule: {rule}")), "{said:?}");
    }
}

#[test]
fn a_refusal_has_the_rules_reason_path_and_words() {
    let simple = || json!({ "type": "object", "properties": { "v": { "type": "string", "maxLength": 5 } } });
    let at = |reason: &str, is_simple: bool| {
        let own = if is_simple { "self != 'x'" } else { "self.v != 'x'" };
        let rule = json!({ "rule": own, "reason": reason, "message": "m" });
        let text = json!({ "type": "string", "maxLength": 5 });
        let schema = match is_simple {
            true => {
                json!({ "type": "object", "properties": { "v": ruled(text, rule) } })
            }
            false => ruled(simple(), rule),
        };
        faults(&schema, json!({ "v": "x" }), None).join("; ")
    };
    let table = [
        ("FieldValueInvalid", "spec.v: Invalid value: \"x\": m", "spec: Invalid value: m"),
        ("FieldValueForbidden", "spec.v: Forbidden: m", "spec: Forbidden: m"),
        ("FieldValueRequired", "spec.v: Required value: m", "spec: Required value: m"),
        ("FieldValueDuplicate", "spec.v: Duplicate value: \"x\"", "spec: Duplicate value"),
    ];
    for (reason, of_text, of_object) in table {
        assert_eq!((at(reason, true).as_str(), at(reason, false).as_str()), (of_text, of_object));
    }
    // Below a map's key, and of the whole object.
    let map = json!({ "type": "object", "maxProperties": 5, "additionalProperties":
        ruled(json!({ "type": "integer" }), json!({ "rule": "self > 0", "message": "m" })) });
    assert_eq!(
        faults(&map, json!({ "a": 1, "b": 0, "c": 0 }), None),
        ["spec[b]: Invalid value: 0: m", "spec[c]: Invalid value: 0: m"]
    );
    let whole = ruled(
        json!({ "type": "object", "properties": { "spec": spec() } }),
        json!({ "rule": "has(self.spec)", "message": "m" }),
    );
    let mut causes = Vec::new();
    rules::check(&Schema::compile(&whole), &json!({}), None, &mut causes);
    assert_eq!(told(causes), ["<nil>: Invalid value: m"]);

    // A message of its own counts where it is one line of text, and not too long.
    let with = |expression: &str| {
        let rule = json!({ "rule": "self.v != 'x'", "messageExpression": expression, "message": "m" });
        faults(&ruled(simple(), rule), json!({ "v": "x" }), None).join("; ")
    };
    assert_eq!(with("' said '"), "spec: Invalid value: said");
    for unusable in ["'a\\nb'", "'  '", "self.w"].into_iter().take(2) {
        assert_eq!(with(unusable), "spec: Invalid value: m", "{unusable}");
    }
    let long = |length: usize| with(&format!("'{}'", "w".repeat(length)));
    assert_eq!((long(5120).len() > 5120, long(5121).as_str()), (true, "spec: Invalid value: m"));
}

/// Rules are not looked at where a value has not even the shape; and of many faults the first are told.
#[test]
fn rules_wait_for_the_shape_and_their_faults_have_a_bound() {
    let schema = json!({ "type": "object", "properties": { "list": { "type": "array", "maxItems": 300, "items":
        ruled(json!({ "type": "integer" }), json!({ "rule": "self > 0", "message": "m" })) } } });
    let many = json!({ "list": vec![0; 300] });
    assert_eq!(faults(&schema, many.clone(), None).len(), 100);
    let compiled = Schema::compile(&json!({ "type": "object", "properties": { "spec": schema } }));
    let with = |reason: &'static str| {
        let mut causes = vec![Cause { reason, ..Cause::invalid("spec", "x", "wrong") }];
        rules::check(&compiled, &json!({ "spec": { "list": [0] } }), None, &mut causes);
        told(causes).split_off(1)
    };
    assert_eq!(with("FieldValueInvalid"), ["spec.list[0]: Invalid value: 0: m"]);
    for reason in ["FieldValueRequired", "FieldValueTooLong", "FieldValueTooMany", "FieldValueTypeInvalid"] {
        let [why] = &with(reason)[..] else { panic!("{reason}") };
        assert!(why.starts_with("<nil>: Invalid value: null: some validation rules were not checked"), "{why}");
    }
}

/// What was wrong before is let be where it is known that it is the same: not below what is atomic.
#[test]
fn what_is_atomic_is_judged_anew_as_a_whole() {
    for (kind, count) in [("granular", 0), ("atomic", 1)] {
        let inner = json!({ "type": "object", "x-kubernetes-map-type": kind, "properties": {
            "a": ruled(json!({ "type": "string", "maxLength": 5 }), json!({ "rule": "self != 'bad'", "message": "m" })),
            "b": { "type": "integer" } } });
        let schema = json!({ "type": "object", "properties": { "inner": inner, "c": { "type": "integer" } } });
        let value = |b: i64, c: i64| json!({ "inner": { "a": "bad", "b": b }, "c": c });
        assert_eq!(faults(&schema, value(2, 1), Some(value(1, 1))).len(), count, "{kind}");
        assert_eq!(faults(&schema, value(1, 2), Some(value(1, 1))), Vec::<String>::new(), "{kind}: it is the same");
    }
}

/// The fields that every resource has are known in the rules of a whole object, whatever its schema says of them, and
/// are fields like others elsewhere.
#[test]
fn a_resources_own_fields_are_known_in_rules() {
    let schema = |rule: &str| {
        ruled(
            json!({ "type": "object", "properties": { "kind": { "type": "integer" }, "metadata": { "type": "object" },
                "spec": { "type": "object", "properties": { "kind": { "type": "integer" },
                    "metadata": { "type": "object", "properties": { "x": { "type": "integer" } } } },
                    "x-kubernetes-validations": [{ "rule": "self.kind > 0 && self.metadata.x > 0" }] } } }),
            json!({ "rule": rule }),
        )
    };
    for rule in [
        "self.kind.startsWith('F')",
        "self.metadata.name == 'a'",
        "self.apiVersion == 'x/v1'",
        "self.metadata.generateName == ''",
    ] {
        assert_eq!(refused(&schema(rule)), Vec::<String>::new(), "{rule}");
    }
    for rule in ["self.kind > 0", "self.metadata.labels == 'a'"] {
        assert_eq!(refused(&schema(rule)).len(), 1, "{rule}");
    }
}
