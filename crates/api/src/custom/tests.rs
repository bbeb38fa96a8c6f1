//! Custom resources by their definition's schema: what is pruned, filled in and refused.

use serde_json::{Value, json};

use super::schema::Schema;
use super::values::{fill_in, prune, validate, validate_changed};

fn schema(spec: Value) -> Schema {
    Schema::compile(&json!({ "type": "object", "properties": { "spec": spec, "status": { "type": "object" } } }))
}

/// Every fault as `path: message`.
fn faults(schema: &Schema, object: &Value) -> Vec<String> {
    let mut causes = Vec::new();
    validate(schema, object, "", &mut causes);
    causes.into_iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
}

#[test]
fn unknown_fields_are_pruned_and_named() {
    let schema = schema(json!({ "type": "object", "properties": {
        "known": { "type": "string" },
        "free": { "type": "object", "x-kubernetes-preserve-unknown-fields": true,
            "properties": { "strict": { "type": "object", "properties": { "a": { "type": "string" } } } } },
        "list": { "type": "array", "items": { "type": "object", "properties": { "a": { "type": "integer" } } } },
        "map": { "type": "object", "additionalProperties": { "type": "object", "properties": {} } },
        "pod": { "type": "object", "x-kubernetes-embedded-resource": true },
    } }));
    let mut object = json!({
        "apiVersion": "x.io/v1", "kind": "Foo", "metadata": { "name": "a" }, "extra": 1,
        "spec": {
            "known": "k", "unknown": 1, "free": { "x": { "y": 1 }, "strict": { "a": "b", "c": "d" } },
            "list": [{ "a": 1, "b": 2 }], "map": { "k": { "v": 1 } },
            "pod": { "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "n", "unknownSub": 1 }, "spec": {} },
        },
    });
    let dropped = prune(&schema, &mut object, true);
    assert_eq!(
        dropped,
        [
            "extra",
            "spec.unknown",
            "spec.free.strict.c",
            "spec.list[0].b",
            "spec.map.k.v",
            "spec.pod.spec",
            "spec.pod.metadata.unknownSub"
        ]
    );
    assert_eq!(
        object["spec"],
        json!({ "known": "k", "free": { "x": { "y": 1 }, "strict": { "a": "b" } }, "list": [{ "a": 1 }],
            "map": { "k": {} }, "pod": { "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "n" } } })
    );
    assert_eq!(object["metadata"]["name"], "a");
}

/// A key is as long as a body, and what is below it may be wrong a hundred thousand times.
#[test]
fn x4_what_is_told_of_wrong_fields_is_bounded_however_long_their_paths_are() {
    let schema = schema(json!({ "type": "object", "properties": {
        "map": { "type": "object", "additionalProperties": { "type": "object", "properties": {
            "inner": { "type": "object", "additionalProperties": { "type": "integer", "maximum": 1 } },
            "set": { "type": "array", "x-kubernetes-list-type": "set", "items": { "type": "string" } },
            "pod": { "type": "object", "x-kubernetes-embedded-resource": true } } } },
    } }));
    let long = "k".repeat(200_000);
    let many = |value: Value| (0..5_000).map(|index| (format!("u{index}"), value.clone())).collect::<Value>();
    let mut below = many(json!(1));
    below["pod"] = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": many(json!(1)) });
    let mut object = json!({ "spec": { "map": { long.as_str(): below } } });
    let dropped = prune(&schema, &mut object, true);
    assert_eq!(dropped.len(), 100);
    assert!(dropped.iter().all(|path| path.len() < 1_100 && path.starts_with("spec.map.kk")));
    let left = &object["spec"]["map"][&long];
    assert_eq!(
        (left.as_object().map(serde_json::Map::len), left["pod"]["metadata"].as_object().map(|m| m.len())),
        (Some(1), Some(0))
    );
    for wrong in [many(json!("w".repeat(100))), many(json!(2))] {
        let told = faults(&schema, &json!({ "spec": { "map": { long.as_str(): { "inner": wrong } } } }));
        assert_eq!(told.len(), 100);
        assert!(told.iter().all(|fault| fault.len() < 10_000));
    }
    let twice = json!({ "spec": { "map": { long.as_str(): { "set": vec!["a"; 50_000] } } } });
    let told = faults(&schema, &twice);
    assert!((1..=100).contains(&told.len()) && told.iter().all(|fault| fault.len() < 10_000));
}

#[test]
fn defaults_are_filled_in_where_nothing_or_a_forbidden_null_is() {
    let schema = schema(json!({ "type": "object", "default": {}, "properties": {
        "replicas": { "type": "integer", "default": 3 },
        "note": { "type": "string", "nullable": true, "default": "n" },
        "items": { "type": "array", "items": { "type": "object", "properties": {
            "port": { "type": "integer", "default": 80 } } } },
    } }));
    let filled = |mut object: Value| {
        fill_in(&schema, &mut object);
        object["spec"].take()
    };
    assert_eq!(filled(json!({})), json!({ "replicas": 3, "note": "n" }));
    assert_eq!(
        filled(json!({ "spec": { "replicas": null, "note": null, "items": [{}] } })),
        json!({ "replicas": 3, "note": null, "items": [{ "port": 80 }] })
    );
}

#[test]
fn faults_are_told_in_upstreams_words() {
    let schema = schema(json!({ "type": "object", "required": ["size"], "properties": {
        "size": { "type": "integer", "minimum": 1, "maximum": 5 },
        "name": { "type": "string", "pattern": "^[a-z]+$", "maxLength": 3 },
        "mode": { "type": "string", "enum": ["a", "b"] },
        "port": { "x-kubernetes-int-or-string": true },
        "set": { "type": "array", "x-kubernetes-list-type": "set", "maxItems": 3, "items": { "type": "string" } },
        "keyed": { "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
            "items": { "type": "object", "properties": { "k": { "type": "string" } } } },
        "at": { "type": "string", "format": "date-time" },
        "one": { "type": "object", "properties": { "a": { "type": "string" }, "b": { "type": "string" } },
            "oneOf": [{ "required": ["a"] }, { "required": ["b"] }] },
    } }));
    let table = [
        (
            json!({ "size": 1, "name": "abc", "mode": "b", "port": "http", "set": ["a", "b"], "one": { "a": "x" } }),
            vec![],
        ),
        (json!({}), vec!["spec.size: Required value"]),
        (
            json!({ "size": 0 }),
            vec!["spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1"],
        ),
        (
            json!({ "size": 9 }),
            vec!["spec.size: Invalid value: 9: spec.size in body should be less than or equal to 5"],
        ),
        (
            json!({ "size": "1" }),
            vec!["spec.size: Invalid value: \"string\": spec.size in body must be of type integer: \"string\""],
        ),
        (
            json!({ "size": 1, "name": "ABCD" }),
            vec![
                "spec.name: Invalid value: \"ABCD\": spec.name in body should match '^[a-z]+$'",
                "spec.name: Too long: may not be more than 3 bytes",
            ],
        ),
        (
            json!({ "size": 1, "mode": "c" }),
            vec!["spec.mode: Unsupported value: \"c\": supported values: \"a\", \"b\""],
        ),
        (
            json!({ "size": 1, "port": true }),
            vec![
                "spec.port: Invalid value: \"boolean\": spec.port in body must be of type integer,string: \"boolean\"",
            ],
        ),
        (json!({ "size": 1, "set": ["a", "a"] }), vec!["spec.set[1]: Duplicate value: \"a\""]),
        (json!({ "size": 1, "set": ["a", "b", "c", "d"] }), vec!["spec.set: Too many: 4: must have at most 3 items"]),
        (
            json!({ "size": 1, "keyed": [{ "k": "a" }, { "k": "a" }] }),
            vec!["spec.keyed[1]: Duplicate value: {\"k\":\"a\"}"],
        ),
        (
            json!({ "size": 1, "at": "noon" }),
            vec!["spec.at: Invalid value: \"noon\": spec.at in body must be of type date-time: \"noon\""],
        ),
    ];
    for (spec, wanted) in table {
        assert_eq!(faults(&schema, &json!({ "spec": spec })), wanted, "{spec}");
    }
    let none = faults(&schema, &json!({ "spec": { "size": 1, "one": {} } }));
    assert!(
        none[0].ends_with("\"spec.one\" must validate one and only one schema (oneOf). Found none valid"),
        "{none:?}"
    );
}

#[test]
fn a_schema_that_is_nested_without_end_takes_no_more_stack() {
    let mut deep = json!({ "type": "string" });
    for _ in 0..10_000 {
        // Not by `json!`, which copies what it is given, by recursion.
        let properties = Value::Object([("a".to_owned(), deep)].into_iter().collect());
        deep = Value::Object([("properties".to_owned(), properties)].into_iter().collect());
    }
    let schema = Schema::compile(&deep);
    let mut object = json!({ "a": { "b": 1 } });
    assert_eq!(prune(&schema, &mut object, true), ["a.b"]);
    // Such a value is not dropped by recursion either.
    std::mem::forget(deep);
}

#[test]
fn a_deprecated_version_says_what_to_use_instead() {
    let version = |name: &str, more: Value| {
        let mut version = json!({ "name": name, "served": true, "storage": name == "v1", "schema": {
            "openAPIV3Schema": { "type": "object" } } });
        crate::object::merge(&mut version, more);
        version
    };
    let definition = json!({
        "spec": { "group": "x.io", "scope": "Namespaced", "names": { "kind": "Foo", "plural": "foos" }, "versions": [
            version("v1", json!({})),
            version("v1beta1", json!({ "deprecated": true })),
            version("v1alpha1", json!({ "deprecated": true, "deprecationWarning": "gone soon" })),
            version("v2", json!({ "deprecated": true })),
        ] },
        "status": { "conditions": [{ "type": "Established", "status": "True" }] },
    });
    let rows = super::rows::rows(&definition.to_string().into()).expect("JSON");
    let told: Vec<_> = rows.iter().map(|kind| crate::kinds::lifecycle::deprecation(kind)).collect();
    let instead = "x.io/v1beta1 Foo is deprecated; use x.io/v1 Foo";
    assert_eq!(told, [None, Some(instead), Some("gone soon"), Some("x.io/v2 Foo is deprecated")]);
    let endpoints = crate::kinds::lifecycle::deprecation(&crate::kinds::ENDPOINTS);
    assert_eq!(endpoints, Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"));
}

/// What was wrong before a schema got stricter is not held against who changes something else.
#[test]
fn conformance_items_of_a_list_are_ratcheted_by_their_keys_alone() {
    let item = || {
        json!({ "type": "object", "properties": {
            "k": { "type": "string" }, "v": { "type": "string", "enum": ["good"] } } })
    };
    let mut keyed = json!({ "type": "array", "items": item(), "x-kubernetes-list-type": "map" });
    keyed["x-kubernetes-list-map-keys"] = json!(["k"]);
    let schema = schema(json!({ "type": "object", "properties": {
        "keyed": keyed, "plain": { "type": "array", "items": item() }, "short": { "type": "string", "maxLength": 1 },
        "set": { "type": "array", "x-kubernetes-list-type": "set", "items": { "type": "string" } },
        "needs": { "type": "object", "required": ["a"], "properties": { "a": {}, "b": {} } } } }));
    let old = json!({ "spec": { "short": "long", "set": ["x", "x"], "needs": { "b": 1 },
        "keyed": [{ "k": "a", "v": "bad" }, { "k": "b", "v": "worse" }], "plain": [{ "v": "bad" }] } });
    let changed = |path: &str, value: Value| {
        let mut new = old.clone();
        *new.pointer_mut(path).expect("a field") = value;
        let mut causes = Vec::new();
        validate_changed(&schema, &new, &old, &mut causes);
        causes.into_iter().map(|cause| cause.field).collect::<Vec<_>>()
    };
    let (a, b) = (json!({ "k": "a", "v": "bad" }), json!({ "k": "b", "v": "worse" }));
    assert!(faults(&schema, &old).len() > 5);
    assert!(changed("/spec", old["spec"].clone()).is_empty());
    assert!(changed("/spec/keyed", json!([b, a])).is_empty(), "in another order");
    assert_eq!(changed("/spec/keyed", json!([{ "k": "b", "v": "bad" }, a])), ["spec.keyed[0].v"]);
    assert_eq!(changed("/spec/keyed", json!([a, b, { "k": "c", "v": "bad" }])), ["spec.keyed[2].v"]);
    assert_eq!(changed("/spec/plain", json!([{ "v": "bad" }, { "v": "good" }])), ["spec.plain[0].v"]);
    assert_eq!(changed("/spec/short", json!("other")), ["spec.short"]);
    assert_eq!(changed("/spec/needs", json!({ "b": 2 })), ["spec.needs.a"]);
    assert!(changed("/spec/set", json!(["x", "x", "y"])).is_empty(), "there were two before");
}
