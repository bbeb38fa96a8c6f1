//! Values against their schemas, rule by rule, at its bounds.

use serde_json::{Value, json};

use super::schema::Schema;
use super::values::{fill_in, prune, validate, validate_changed};

/// What is wrong with the field `f` of this schema, without where.
fn faults(field: &Value, value: &Value) -> Vec<String> {
    let schema = Schema::compile(&json!({ "type": "object", "properties": { "f": field } }));
    let mut causes = Vec::new();
    validate(&schema, &json!({ "f": value }), "", &mut causes);
    causes.into_iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
}

fn fits(field: &Value, value: &Value) -> bool {
    faults(field, value).is_empty()
}

fn filled(field: &Value, mut object: Value) -> Value {
    fill_in(&Schema::compile(&json!({ "type": "object", "properties": { "f": field } })), &mut object);
    object
}

/// As upstream: a null that the schema does not allow is as good as nothing, of whatever type it would have to be.
#[test]
fn conformance_a_null_that_may_not_be_one_is_dropped_or_defaulted() {
    let text = json!({ "type": "string" });
    let free = json!({ "x-kubernetes-preserve-unknown-fields": true });
    let port = json!({ "x-kubernetes-int-or-string": true });
    for field in [&text, &free, &port, &json!({ "type": "object", "properties": {} })] {
        assert_eq!(filled(field, json!({ "f": null })), json!({}), "{field}");
        let mut nullable = field.clone();
        nullable["nullable"] = true.into();
        assert_eq!(filled(&nullable, json!({ "f": null })), json!({ "f": null }), "{nullable}");
        assert!(fits(&nullable, &Value::Null));
    }
    let with = |mut field: Value, default: Value| {
        field["default"] = default;
        field
    };
    assert_eq!(filled(&with(port, json!(80)), json!({ "f": null })), json!({ "f": 80 }));
    // What is not said of the schema stays as it is.
    assert_eq!(filled(&free, json!({ "f": { "a": null } })), json!({ "f": { "a": null } }));
    assert_eq!(filled(&text, json!({ "g": null })), json!({ "g": null }));

    let map = |values: Value| json!({ "type": "object", "additionalProperties": values });
    let entries = json!({ "f": { "a": null, "b": "x" } });
    assert_eq!(filled(&map(text.clone()), entries.clone()), json!({ "f": { "b": "x" } }));
    assert_eq!(filled(&map(with(text.clone(), json!("d"))), entries), json!({ "f": { "a": "d", "b": "x" } }));
    let list = |items: Value| json!({ "type": "array", "items": items });
    let items = json!({ "f": [null, "x"] });
    assert_eq!(filled(&list(text.clone()), items.clone()), items, "an item is not dropped");
    assert_eq!(filled(&list(with(text, json!("d"))), items), json!({ "f": ["d", "x"] }));
}

#[test]
fn conformance_defaults_are_filled_in_where_there_is_something_to_fill() {
    let inner = json!({ "type": "object", "properties": { "a": { "type": "integer", "default": 1 },
        "b": { "type": "string" } } });
    assert_eq!(filled(&inner, json!({})), json!({}), "nothing is made to have defaults");
    assert_eq!(filled(&inner, json!({ "f": {} })), json!({ "f": { "a": 1 } }));
    assert_eq!(filled(&inner, json!({ "f": { "a": 2 } })), json!({ "f": { "a": 2 } }));
    assert_eq!(filled(&inner, json!({ "f": "x" })), json!({ "f": "x" }), "what is wrong is left for validation");
    let mut whole = inner.clone();
    whole["default"] = json!({ "b": "y" });
    assert_eq!(filled(&whole, json!({})), json!({ "f": { "a": 1, "b": "y" } }), "a default has its own");
    let map = json!({ "type": "object", "additionalProperties": inner });
    assert_eq!(
        filled(&map, json!({ "f": { "k": {}, "l": { "a": 3 } } })),
        json!({ "f": { "k": { "a": 1 }, "l": { "a": 3 } } })
    );
    let lists = json!({ "type": "array", "items": { "type": "array", "items": inner } });
    assert_eq!(filled(&lists, json!({ "f": [[{}], []] })), json!({ "f": [[{ "a": 1 }], []] }));
}

#[test]
fn conformance_each_bound_of_a_number_holds_itself() {
    for (rule, inside, outside) in [
        (json!({ "minimum": 2 }), json!([2, 2.5, 3]), json!([1, 1.9, -2])),
        (json!({ "minimum": 2, "exclusiveMinimum": true }), json!([2.1, 3]), json!([2, 2.0, 1])),
        (json!({ "maximum": 2 }), json!([2, 1, -3]), json!([2.1, 3])),
        (json!({ "maximum": 2, "exclusiveMaximum": true }), json!([1.9, 1]), json!([2, 2.0, 3])),
        (json!({ "minimum": -1, "maximum": 1 }), json!([-1, 0, 1]), json!([-2, 2])),
        (json!({ "multipleOf": 3 }), json!([0, 3, -6, 9.0]), json!([1, 4, 3.5])),
        (json!({ "multipleOf": 0.1 }), json!([0.3, 0.7, 1.1, 2, 0]), json!([0.35, 0.01])),
        (json!({ "multipleOf": 0.01 }), json!([0.07, 1.15, 4.35, 19.99]), json!([0.005, 1.155])),
        (json!({ "enum": [1, 2.5] }), json!([1, 1.0, 2.5]), json!([2, 1.5])),
    ] {
        let mut field = rule.clone();
        field["type"] = "number".into();
        for value in inside.as_array().expect("values") {
            assert!(fits(&field, value), "{value} by {rule}");
        }
        for value in outside.as_array().expect("values") {
            assert_eq!(faults(&field, value).len(), 1, "{value} by {rule}");
        }
    }
    let told = |rule: Value, value: f64| {
        let mut field = rule;
        field["type"] = "number".into();
        faults(&field, &json!(value)).concat()
    };
    let begins = |value: &str| format!("f: Invalid value: {value}: f in body should be ");
    let exclusive = told(json!({ "minimum": 2, "exclusiveMinimum": true }), 2.5 - 1.0);
    assert_eq!(exclusive, format!("{}greater than 2", begins("1.5")));
    let exclusive = told(json!({ "maximum": 2, "exclusiveMaximum": true }), 2.5);
    assert_eq!(exclusive, format!("{}less than 2", begins("2.5")));
    assert_eq!(told(json!({ "multipleOf": 2 }), 2.5), format!("{}a multiple of 2", begins("2.5")));
}

#[test]
fn conformance_each_bound_of_a_length_holds_itself() {
    let text = |rule: Value| json!({ "type": "string", "minLength": rule[0], "maxLength": rule[1] });
    let bounded = text(json!([2, 3]));
    // Characters, not bytes.
    for (value, is_right) in
        [("a", false), ("ab", true), ("äöü", true), ("abc", true), ("abcd", false), ("äöüß", false)]
    {
        assert_eq!(fits(&bounded, &json!(value)), is_right, "{value}");
    }
    let short = faults(&bounded, &json!("a"));
    assert_eq!(short, ["f: Invalid value: \"a\": f in body should be at least 2 chars long"]);
    let list = json!({ "type": "array", "minItems": 1, "maxItems": 2, "items": { "type": "integer" } });
    for (value, is_right) in [(json!([]), false), (json!([1]), true), (json!([1, 2]), true), (json!([1, 2, 3]), false)]
    {
        assert_eq!(fits(&list, &value), is_right, "{value}");
    }
    assert_eq!(faults(&list, &json!([])), ["f: Invalid value: []: f in body should have at least 1 items"]);
    let map = json!({ "type": "object", "minProperties": 1, "maxProperties": 2,
        "additionalProperties": { "type": "integer" } });
    for (value, is_right) in [
        (json!({}), false),
        (json!({ "a": 1 }), true),
        (json!({ "a": 1, "b": 2 }), true),
        (json!({ "a": 1, "b": 2, "c": 3 }), false),
    ] {
        assert_eq!(fits(&map, &value), is_right, "{value}");
    }
    assert_eq!(faults(&map, &json!({})), ["f: Invalid value: {}: f in body should have at least 1 properties"]);
}

#[test]
fn conformance_each_type_takes_its_own_values() {
    let values = [json!(null), json!(true), json!(1), json!(1.5), json!(2.0), json!("s"), json!([]), json!({})];
    for (field, right) in [
        (json!({ "type": "boolean" }), [false, true, false, false, false, false, false, false]),
        (json!({ "type": "integer" }), [false, false, true, false, true, false, false, false]),
        (json!({ "type": "number" }), [false, false, true, true, true, false, false, false]),
        (json!({ "type": "string" }), [false, false, false, false, false, true, false, false]),
        (json!({ "type": "array" }), [false, false, false, false, false, false, true, false]),
        (json!({ "type": "object" }), [false, false, false, false, false, false, false, true]),
        (json!({ "x-kubernetes-int-or-string": true }), [false, false, true, false, true, true, false, false]),
        (json!({ "x-kubernetes-preserve-unknown-fields": true }), [true; 8]),
        (json!({ "type": "string", "nullable": true }), [true, false, false, false, false, true, false, false]),
    ] {
        assert_eq!(values.clone().map(|value| fits(&field, &value)), right, "{field}");
    }
    let told = |field: Value, value: Value| faults(&field, &value).concat();
    let wrong = |found: &str, wanted: &str| {
        format!("f: Invalid value: \"{found}\": f in body must be of type {wanted}: \"{found}\"")
    };
    let text = json!({ "type": "string" });
    assert_eq!(told(text.clone(), json!(null)), wrong("null", "string"));
    assert_eq!(told(text.clone(), json!(1)), wrong("integer", "string"));
    assert_eq!(told(text.clone(), json!(1.5)), wrong("number", "string"));
    assert_eq!(told(text.clone(), json!([])), wrong("array", "string"));
    assert_eq!(told(text, json!({})), wrong("object", "string"));
    assert_eq!(told(json!({ "type": "object" }), json!("s")), wrong("string", "object"));
    assert_eq!(told(json!({ "type": "number" }), json!(false)), wrong("boolean", "number"));
}

#[test]
fn conformance_alternatives_count_those_that_fit() {
    let needs = |names: &[&str]| names.iter().map(|name| json!({ "required": [name] })).collect::<Value>();
    let of =
        |word: &str, schemas: Value| json!({ "type": "object", "properties": { "a": {}, "b": {} }, word: schemas });
    let none = json!({});
    let (a, b, both) = (json!({ "a": 1 }), json!({ "b": 1 }), json!({ "a": 1, "b": 1 }));
    for (word, right) in [
        ("allOf", [false, false, false, true]),
        ("anyOf", [false, true, true, true]),
        ("oneOf", [false, true, true, false]),
    ] {
        let field = of(word, needs(&["a", "b"]));
        assert_eq!([&none, &a, &b, &both].map(|value| fits(&field, value)), right, "{word}");
        assert!(fits(&of(word, json!([])), &none), "{word} of none");
    }
    let not = of("not", json!({ "required": ["a"] }));
    assert_eq!([&none, &a, &b, &both].map(|value| fits(&not, value)), [true, false, true, false]);
    let ends = |word: &str, value: &Value, words: &str| {
        let told = faults(&of(word, needs(&["a", "b"])), value).concat();
        assert!(told.starts_with("f: Invalid value: {") && told.ends_with(words), "{told}");
    };
    ends("anyOf", &none, ": \"f\" must validate at least one schema (anyOf)");
    ends("oneOf", &none, ": \"f\" must validate one and only one schema (oneOf). Found none valid");
    ends("oneOf", &both, ": \"f\" must validate one and only one schema (oneOf). Found 2 valid alternatives");
    let told = faults(&not, &a).concat();
    assert!(told.ends_with(": \"f\" must not validate the schema (not)"), "{told}");
    assert_eq!(faults(&of("allOf", needs(&["a", "b"])), &none), ["f.a: Required value", "f.b: Required value"]);
    let choice = json!({ "type": "string", "enum": ["x", "y"] });
    assert_eq!(faults(&choice, &json!("z")), ["f: Unsupported value: \"z\": supported values: \"x\", \"y\""]);
}

#[test]
fn conformance_what_may_stand_once_does() {
    let set = json!({ "type": "array", "x-kubernetes-list-type": "set", "items": {} });
    let keyed = json!({ "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k", "l"],
        "items": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } });
    let atomic = json!({ "type": "array", "items": {} });
    let twice = json!([1, 2, 1, 1]);
    assert_eq!(faults(&set, &twice), ["f[2]: Duplicate value: 1", "f[3]: Duplicate value: 1"]);
    assert!(fits(&set, &json!([1, "1", 2])) && fits(&atomic, &twice));
    assert!(fits(&keyed, &json!([{ "k": 1, "l": 1 }, { "k": 1, "l": 2 }, { "k": 1 }, { "l": 1 }])));
    let same = json!([{ "k": 1, "l": 1, "v": 1 }, { "k": 1, "l": 1, "v": 2 }]);
    assert_eq!(faults(&keyed, &same), ["f[1]: Duplicate value: {\"k\":1,\"l\":1}"]);
    assert_eq!(faults(&keyed, &json!([{ "k": 1 }, { "k": 1 }])), ["f[1]: Duplicate value: {\"k\":1}"]);
}

/// What stood twice before may go on to; what is wrong beside it, or stands twice only now, may not.
#[test]
fn conformance_what_stood_twice_before_excuses_nothing_else() {
    let schema = Schema::compile(&json!({ "type": "object", "properties": {
        "set": { "type": "array", "x-kubernetes-list-type": "set", "items": { "type": "string" } },
        "size": { "type": "integer", "maximum": 5 } } }));
    let changed = |old: Value, new: Value| {
        let mut causes = Vec::new();
        validate_changed(&schema, &new, &old, &mut causes);
        causes.into_iter().map(|cause| cause.field).collect::<Vec<_>>()
    };
    let none = Vec::<String>::new();
    let of = |set: Value, size: i64| json!({ "set": set, "size": size });
    assert_eq!(changed(of(json!(["a", "a"]), 1), of(json!(["a", "a", "b"]), 1)), none);
    assert_eq!(changed(of(json!(["a", "a"]), 1), of(json!(["a", "a", "b"]), 9)), ["size"]);
    assert_eq!(changed(of(json!(["a"]), 1), of(json!(["a", "a"]), 1)), ["set[1]"]);
    assert_eq!(changed(of(json!(["a"]), 9), of(json!(["a", "a"]), 9)), ["set[1]"]);
    assert_eq!(changed(of(json!(["a"]), 9), of(json!(["a", "b"]), 8)), ["size"]);
}

#[test]
fn conformance_what_a_schema_does_not_know_is_dropped_unless_it_says_otherwise() {
    let pruned = |field: Value, value: Value| {
        let schema = Schema::compile(&json!({ "type": "object", "properties": { "f": field } }));
        let mut object = json!({ "f": value });
        let dropped = prune(&schema, &mut object, true);
        (object["f"].take(), dropped)
    };
    let known = json!({ "type": "object", "properties": { "a": { "type": "object", "properties": {} } } });
    let value = json!({ "a": { "x": 1 }, "b": { "y": 1 } });
    let all = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    assert_eq!(pruned(known.clone(), value.clone()), (json!({ "a": {} }), all(&["f.b", "f.a.x"])));
    let mut open = known.clone();
    open["x-kubernetes-preserve-unknown-fields"] = true.into();
    assert_eq!(pruned(open, value.clone()), (json!({ "a": {}, "b": { "y": 1 } }), all(&["f.a.x"])));
    let any = json!({ "type": "object", "additionalProperties": true });
    assert_eq!(pruned(any, value.clone()), (value.clone(), all(&[])));
    let none = json!({ "type": "object", "additionalProperties": false });
    assert_eq!(pruned(none, value.clone()), (json!({}), all(&["f.a", "f.b"])));
    let of = json!({ "type": "object", "additionalProperties": { "type": "object", "properties": { "y": {} } } });
    assert_eq!(pruned(of, value), (json!({ "a": {}, "b": { "y": 1 } }), all(&["f.a.x"])));
    let lists = json!({ "type": "array", "items": { "type": "array", "items": known } });
    assert_eq!(pruned(lists, json!([[], [{ "b": 1 }, 2]])), (json!([[], [{}, 2]]), all(&["f[1][0].b"])));
    // Only an object of its own has a kind and metadata without saying so.
    let own = json!({ "apiVersion": "v1", "kind": "K", "metadata": { "name": "n", "zz": 1 } });
    assert_eq!(pruned(json!({ "type": "object" }), own.clone()).0, json!({}));
    let embedded = json!({ "type": "object", "x-kubernetes-embedded-resource": true });
    let kept = json!({ "apiVersion": "v1", "kind": "K", "metadata": { "name": "n" } });
    assert_eq!(pruned(embedded, own), (kept, all(&["f.metadata.zz"])));
}
