//! `x-kubernetes-validations`, from the definition to the object.

use serde_json::{Value, json};

use super::schema::Schema;
use super::{rule_check, rules};

fn with_rule(field: Value, rule: Value) -> Value {
    let mut field = field;
    field["x-kubernetes-validations"] = json!([rule]);
    json!({ "type": "object", "properties": { "spec": field } })
}

/// Every fault of a definition's schema.
fn refused(schema: &Value) -> Vec<String> {
    let mut causes = Vec::new();
    rule_check::validate(schema, "schema", &mut causes);
    causes.into_iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
}

/// Every fault of an object.
fn faults(schema: &Value, object: Value, old: Option<Value>) -> Vec<String> {
    assert_eq!(refused(schema), Vec::<String>::new(), "{schema}");
    let mut causes = Vec::new();
    rules::check(&Schema::compile(schema), &object, old.as_ref(), &mut causes);
    causes.into_iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
}

fn spec() -> Value {
    json!({ "type": "object", "properties": {
        "min": { "type": "integer" }, "max": { "type": "integer" }, "name": { "type": "string", "maxLength": 20 },
        "items": { "type": "array", "maxItems": 10, "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["k"],
            "items": { "type": "object", "required": ["k"], "properties": {
                "k": { "type": "string", "maxLength": 10 }, "v": { "type": "integer" } } } },
    } })
}

#[test]
fn rules_hold_objects_in_upstreams_words() {
    let object = || json!({ "spec": { "min": 3, "max": 1, "name": "a" } });
    let table = [
        (json!({ "rule": "self.min <= self.max" }), "spec: Invalid value: failed rule: self.min <= self.max"),
        (json!({ "rule": "self.min <= self.max", "message": "min above max" }), "spec: Invalid value: min above max"),
        (
            json!({ "rule": "self.min <= self.max", "messageExpression": "'%d > %d'.format([self.min, self.max])" }),
            "spec: Invalid value: 3 > 1",
        ),
        (
            json!({ "rule": "self.min <= self.max", "message": "m", "messageExpression": "''" }),
            "spec: Invalid value: m",
        ),
        (
            json!({ "rule": "self.min <= self.max", "fieldPath": ".min", "reason": "FieldValueForbidden",
                "message": "m" }),
            "spec.min: Forbidden: m",
        ),
        (
            json!({ "rule": "self.items.size() > 0" }),
            "spec: Invalid value: \"object\": no such key: items evaluating rule: self.items.size() > 0",
        ),
        (
            json!({ "rule": "self.max / 0 > 1" }),
            "spec: Invalid value: \"object\": division by zero evaluating rule: self.max / 0 > 1",
        ),
    ];
    for (rule, wanted) in table {
        assert_eq!(faults(&with_rule(spec(), rule), object(), None), [wanted]);
    }
    let root = json!({ "type": "object", "properties": { "spec": spec() },
        "x-kubernetes-validations": [{ "rule": "self.metadata.name.startsWith('a') && self.kind == 'Foo'" }] });
    let named = |name: &str| json!({ "kind": "Foo", "metadata": { "name": name }, "spec": {} });
    assert_eq!(faults(&root, named("abc"), None), Vec::<String>::new());
    assert_eq!(faults(&root, named("b"), None).len(), 1);
}

#[test]
fn transition_rules_compare_what_belongs_together() {
    let frozen = with_rule(spec(), json!({ "rule": "self.name == oldSelf.name", "message": "name is fixed" }));
    let named = |name: &str| json!({ "spec": { "name": name } });
    assert_eq!(faults(&frozen, named("a"), None), Vec::<String>::new());
    assert_eq!(faults(&frozen, named("a"), Some(named("a"))), Vec::<String>::new());
    assert_eq!(faults(&frozen, named("b"), Some(named("a"))), ["spec: Invalid value: name is fixed"]);

    // The items of a keyed list are compared by key, wherever they stand.
    let mut keyed = spec();
    keyed["properties"]["items"]["items"]["x-kubernetes-validations"] =
        json!([{ "rule": "self.v >= oldSelf.v", "message": "v shrinks" }]);
    let keyed = json!({ "type": "object", "properties": { "spec": keyed } });
    let old = json!({ "spec": { "items": [{ "k": "a", "v": 5 }, { "k": "b", "v": 1 }] } });
    let new = json!({ "spec": { "items": [{ "k": "c", "v": 0 }, { "k": "b", "v": 2 }, { "k": "a", "v": 4 }] } });
    assert_eq!(faults(&keyed, new, Some(old)), ["spec.items[2]: Invalid value: v shrinks"]);

    let optional = with_rule(
        spec(),
        json!({ "rule": "oldSelf.hasValue() || self.name == 'first'", "optionalOldSelf": true, "message": "first" }),
    );
    assert_eq!(faults(&optional, named("x"), None), ["spec: Invalid value: first"]);
    assert_eq!(faults(&optional, named("x"), Some(named("y"))), Vec::<String>::new());
}

#[test]
fn what_was_wrong_before_and_is_not_touched_is_let_be() {
    let schema = json!({ "type": "object", "properties": {
        "spec": { "type": "object", "properties": {
            "name": { "type": "string", "maxLength": 9, "x-kubernetes-validations": [{ "rule": "self != 'bad'",
                "message": "bad" }] },
            "other": { "type": "integer" },
            "list": { "type": "array", "maxItems": 5, "items": { "type": "integer",
                "x-kubernetes-validations": [{ "rule": "self > 0", "message": "positive" }] } },
        } } } });
    let old = json!({ "spec": { "name": "bad", "other": 1, "list": [0] } });
    let new = json!({ "spec": { "name": "bad", "other": 2, "list": [0] } });
    assert_eq!(faults(&schema, new, Some(old.clone())), Vec::<String>::new());
    let worse = json!({ "spec": { "name": "bad", "other": 2, "list": [0, 1] } });
    assert_eq!(faults(&schema, worse, Some(old)), ["spec.list[0]: Invalid value: 0: positive"]);
}

#[test]
fn x4_rules_that_cost_too_much_end_and_say_so() {
    let field = json!({ "type": "object", "properties": {
        "list": { "type": "array", "maxItems": 200, "items": { "type": "integer" } } } });
    let rule = "self.list.all(a, self.list.all(b, a + b >= 0))";
    let schema = with_rule(field, json!({ "rule": rule }));
    let list: Vec<u32> = (0..1_000).collect();
    let found = faults(&schema, json!({ "spec": { "list": list } }), None);
    let wanted = format!(
        "spec: Invalid value: \"object\": 'operation cancelled: actual cost limit exceeded': no further validation \
            rules will be run due to call cost exceeds limit for rule: {rule}"
    );
    assert_eq!(found, [wanted]);

    let cheap = json!({ "type": "object", "properties": { "n": { "type": "integer" } } });
    let each = json!({ "type": "object", "properties": { "spec": { "type": "array", "maxItems": 100_000,
        "items": with_rule(cheap, json!({ "rule": "[1, 2, 3, 4, 5, 6, 7, 8, 9].all(x, self.n + x > \
            0)" }))["properties"]["spec"] } } });
    let items: Vec<Value> = (0..200_000).map(|n| json!({ "n": n })).collect();
    let mut causes = Vec::new();
    rules::check(&Schema::compile(&each), &json!({ "spec": items }), None, &mut causes);
    let why = "validation failed due to running out of cost budget, no further validation rules will be run";
    assert!(causes.len() == 1 && causes[0].message.ends_with(why), "{causes:?}");
}

#[test]
fn definitions_with_faulty_rules_are_refused_in_upstreams_words() {
    let table = [
        (json!({ "rule": " " }), "rule: Required value: rule is not specified"),
        (
            json!({ "rule": "self.min >\n 1" }),
            "message: Required value: message must be specified if rule contains line breaks",
        ),
        (
            json!({ "rule": "true", "message": " " }),
            "message: Invalid value: \" \": message must be non-empty if specified",
        ),
        (
            json!({ "rule": "true", "fieldPath": ".nope" }),
            "fieldPath: Invalid value: \".nope\": fieldPath must be a valid path",
        ),
        (
            json!({ "rule": "true", "reason": "X" }),
            "reason: Unsupported value: \"X\": supported values: \"FieldValueDuplicate\", \"FieldValueForbidden\", \
                \"FieldValueInvalid\", \"FieldValueRequired\"",
        ),
        (
            json!({ "rule": "true", "optionalOldSelf": true }),
            "optionalOldSelf: Invalid value: true: may not be set if oldSelf is not used in rule",
        ),
        (
            json!({ "rule": "self.nope > 1" }),
            "rule: Invalid value: {\"rule\":\"self.nope > 1\"}: compilation failed: ERROR: <input>:1:5: undefined \
                field 'nope'\n | self.nope > 1\n | ....^",
        ),
        (
            json!({ "rule": "self.min" }),
            "rule: Invalid value: {\"rule\":\"self.min\"}: cel expression must evaluate to a bool",
        ),
        (
            json!({ "rule": "true", "messageExpression": "1" }),
            "messageExpression: Invalid value: {\"messageExpression\":\"1\",\"rule\":\"true\"}: messageExpression \
                must evaluate to a string",
        ),
    ];
    for (rule, wanted) in table {
        let found = refused(&with_rule(spec(), rule));
        assert_eq!(found, [format!("schema.properties[spec].x-kubernetes-validations[0].{wanted}")]);
    }
    let list = json!({ "type": "object", "properties": { "spec": { "type": "array", "maxItems": 3,
        "items": { "type": "integer", "x-kubernetes-validations": [{ "rule": "self == oldSelf" }] } } } });
    assert_eq!(
        refused(&list),
        ["schema.properties[spec].items.x-kubernetes-validations[0].rule: Invalid value: \"self == oldSelf\": \
                oldSelf cannot be used on the uncorrelatable portion of the schema within schema.properties[spec]"]
    );
}

#[test]
fn definitions_whose_rules_may_cost_too_much_are_refused() {
    let unbounded = json!({ "type": "object", "properties": {
        "list": { "type": "array", "items": { "type": "string" } } } });
    let rule = json!({ "rule": "self.list.all(a, self.list.exists(b, a == b))" });
    let found = refused(&with_rule(unbounded, rule.clone()));
    let limit = "exceeds budget by factor of more than 100x (try simplifying the rule, or adding maxItems, \
        maxProperties, and maxLength where arrays, maps, and strings are declared)";
    let at = "schema.properties[spec].x-kubernetes-validations[0].rule";
    assert_eq!(
        found,
        [
            format!("{at}: Forbidden: estimated rule cost {limit}"),
            format!(
                "{at}: Forbidden: contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 \
                    schema"
            ),
            format!(
                "schema: Forbidden: x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema \
                    {limit}"
            ),
        ]
    );
    let bounded = json!({ "type": "object", "properties": {
        "list": { "type": "array", "maxItems": 50, "items": { "type": "string", "maxLength": 50 } } } });
    assert_eq!(refused(&with_rule(bounded, rule)), Vec::<String>::new());
    // So does a match that is written as a function and not as a member: public definitions rely on it.
    let matched = |rule: &str| {
        let text = json!({ "type": "string", "x-kubernetes-validations": [{ "rule": rule }] });
        let list = json!({ "type": "array", "maxItems": 16, "items": text });
        refused(&json!({ "type": "object", "properties": { "spec": list } })).len()
    };
    assert_eq!(matched("matches(self, '^([0-9]{1,5}(h|m|s|ms)){1,4}$')"), 0);
    assert_ne!(matched("self.matches('^([0-9]{1,5}(h|m|s|ms)){1,4}$')"), 0);
    // Looking whether a string is a URL costs the same for all strings, as far as upstream's estimate goes.
    let urls = json!({ "type": "object", "properties": { "list": { "type": "array", "maxItems": 100, "items": {
        "type": "string", "x-kubernetes-validations": [{
            "rule": "isURL(self) && self.startsWith('https://')" }] } } } });
    assert_eq!(refused(&with_rule(urls, json!({ "rule": "has(self.list)" }))), Vec::<String>::new());
}
