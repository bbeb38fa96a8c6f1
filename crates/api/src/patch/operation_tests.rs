//! JSON patch by operation, JSON merge patch, the formats and what a refusal shows.

use serde_json::{Value, json};

use super::*;
use crate::kinds;

fn json_patched(object: &Value, operations: &Value) -> Result<Value, u16> {
    let patched = apply_patch(&kinds::POD, PatchType::Json, object, operations.to_string().as_bytes());
    patched.map_err(|status| status.code)
}

fn op(op: &str, path: &str, value: Value) -> Value {
    let mut operation = json!({ "op": op, "path": path });
    match op {
        "move" | "copy" => operation["from"] = value,
        "remove" => {}
        _ => operation["value"] = value,
    }
    operation
}

/// RFC 6902, section 4; a patch that does not fit is a 422.
#[test]
fn conformance_each_operation_of_a_json_patch() {
    let object = json!({ "a": { "b": "1" }, "l": ["x", "y"], "a/b": 1, "m~n": 2, "": 3 });
    let with = |path: &[&str], value: Value| {
        let mut object = object.clone();
        let (last, before) = path.split_last().expect("a path");
        crate::object::ensure(&mut object, before).insert((*last).to_owned(), value);
        object
    };
    let without = |field: &str| {
        let mut object = object.clone();
        object.as_object_mut().map(|object| object.remove(field));
        object
    };
    let table = [
        (op("add", "/a/c", json!(2)), Ok(with(&["a", "c"], json!(2)))),
        (op("add", "/a/b", json!(2)), Ok(with(&["a", "b"], json!(2)))),
        (op("add", "/l/0", json!("w")), Ok(with(&["l"], json!(["w", "x", "y"])))),
        (op("add", "/l/1", json!("w")), Ok(with(&["l"], json!(["x", "w", "y"])))),
        (op("add", "/l/2", json!("w")), Ok(with(&["l"], json!(["x", "y", "w"])))),
        (op("add", "/l/-", json!("w")), Ok(with(&["l"], json!(["x", "y", "w"])))),
        (op("add", "/l/3", json!("w")), Err(422)),
        (op("add", "/l/x", json!("w")), Err(422)),
        (op("add", "/no/where", json!("w")), Err(422)),
        (op("remove", "/a/b", Value::Null), Ok(with(&["a"], json!({})))),
        (op("remove", "/l/0", Value::Null), Ok(with(&["l"], json!(["y"])))),
        (op("remove", "/l/2", Value::Null), Err(422)),
        (op("remove", "/l/-", Value::Null), Err(422)),
        (op("remove", "/z", Value::Null), Err(422)),
        (op("replace", "/a/b", json!({})), Ok(with(&["a", "b"], json!({})))),
        (op("replace", "/l/1", json!("z")), Ok(with(&["l"], json!(["x", "z"])))),
        (op("replace", "/z", json!(1)), Err(422)),
        (op("replace", "/l/2", json!(1)), Err(422)),
        (op("move", "/z", json!("/m~0n")), Ok(json!({ "a": { "b": "1" }, "l": ["x", "y"], "a/b": 1, "z": 2, "": 3 }))),
        (op("move", "/l/0", json!("/l/1")), Ok(with(&["l"], json!(["y", "x"])))),
        (op("move", "/a/b", json!("/l/0")), Ok(json!({ "a": { "b": "x" }, "l": ["y"], "a/b": 1, "m~n": 2, "": 3 }))),
        (op("move", "/z", json!("/y")), Err(422)),
        (op("move", "/a/b/c", json!("/a")), Err(422)),
        (op("copy", "/z", json!("/a")), Ok(with(&["z"], json!({ "b": "1" })))),
        (op("copy", "/l/1", json!("/l/0")), Ok(with(&["l"], json!(["x", "x", "y"])))),
        (op("copy", "/z", json!("/y")), Err(422)),
        (op("test", "/a", json!({ "b": "1" })), Ok(object.clone())),
        (op("test", "/a~1b", json!(1)), Ok(object.clone())),
        (op("test", "/m~0n", json!(2)), Ok(object.clone())),
        (op("test", "/", json!(3)), Ok(object.clone())),
        (op("test", "/l", json!(["y", "x"])), Err(422)),
        (op("test", "/a/b", json!(1)), Err(422)),
        (op("test", "/z", json!(1)), Err(422)),
        (op("test", "/a/z", json!(1)), Err(422)),
        (op("test", "/z", Value::Null), Ok(object.clone())),
        (op("test", "/a", Value::Null), Err(422)),
        (op("remove", "/", Value::Null), Ok(without(""))),
    ];
    for (operation, expected) in table {
        assert_eq!(json_patched(&object, &json!([operation])), expected, "{operation}");
    }
    // In order, all or nothing.
    let all = json!([op("add", "/n", json!([])), op("add", "/n/-", json!(1)), op("test", "/n/0", json!(1))]);
    assert_eq!(json_patched(&json!({}), &all), Ok(json!({ "n": [1] })));
    assert_eq!(json_patched(&json!({}), &json!([op("add", "/n", json!(1)), op("test", "/n", json!(2))])), Err(422));
    assert_eq!(json_patched(&object, &json!([])), Ok(object.clone()));
    for wrong in [
        json!([{ "op": "add", "path": "/a" }]),
        json!([{ "op": "add", "value": 1 }]),
        json!([{ "op": "move", "path": "/a" }]),
        json!([{ "op": "remove", "path": "a" }]),
        json!([{ "path": "/a", "value": 1 }]),
        json!({ "op": "remove", "path": "/a" }),
        json!("x"),
    ] {
        assert_eq!(json_patched(&object, &wrong), Err(400), "{wrong}");
    }
}

/// RFC 7396: null takes away, a map is merged, everything else replaces.
#[test]
fn conformance_json_merge_patches() {
    for (object, patch, expected) in [
        (json!({ "a": "b" }), json!({ "a": "c" }), json!({ "a": "c" })),
        (json!({ "a": "b" }), json!({ "b": "c" }), json!({ "a": "b", "b": "c" })),
        (json!({ "a": "b", "b": "c" }), json!({ "a": null }), json!({ "b": "c" })),
        (json!({ "b": "c" }), json!({ "a": null }), json!({ "b": "c" })),
        (json!({ "a": ["b"] }), json!({ "a": "c" }), json!({ "a": "c" })),
        (json!({ "a": "c" }), json!({ "a": ["b"] }), json!({ "a": ["b"] })),
        (json!({ "a": { "b": "c" } }), json!({ "a": { "b": "d", "c": null } }), json!({ "a": { "b": "d" } })),
        (json!({ "a": [{ "b": "c" }] }), json!({ "a": [1] }), json!({ "a": [1] })),
        (json!({ "a": "b" }), json!({ "a": { "c": { "d": null, "e": 1 } } }), json!({ "a": { "c": { "e": 1 } } })),
        (json!({}), json!({ "a": { "b": { "c": null } } }), json!({ "a": { "b": {} } })),
        (json!({ "e": [{ "n": 1 }] }), json!({ "e": [{ "n": null }] }), json!({ "e": [{ "n": null }] })),
        // A word of another format is a field like any other.
        (
            json!({ "a": { "b": 1 } }),
            json!({ "a": { "$patch": "delete" } }),
            json!({ "a": { "b": 1, "$patch": "delete" } }),
        ),
    ] {
        let patched = apply_patch(&kinds::POD, PatchType::Merge, &object, patch.to_string().as_bytes());
        assert_eq!(patched, Ok(expected), "{patch} onto {object}");
    }
    for wrong in ["[]", "null", "1", "\"a\"", "{"] {
        let refused = apply_patch(&kinds::POD, PatchType::Merge, &json!({}), wrong.as_bytes());
        assert_eq!(refused.map_err(|status| status.code), Err(400), "{wrong}");
    }
}

#[test]
fn conformance_a_content_type_names_the_format() {
    let all = [PatchType::Json, PatchType::Merge, PatchType::Strategic, PatchType::Apply];
    for (name, format) in PatchType::CONTENT_TYPES.iter().zip(all) {
        assert_eq!(PatchType::from_content_type(name), Some(format));
        assert_eq!(PatchType::from_content_type(&format!("{name} ; charset=utf-8")), Some(format));
    }
    for other in ["", "application/json", "application/apply-patch+json", "; application/json-patch+json"] {
        assert_eq!(PatchType::from_content_type(other), None, "{other}");
    }
    let refused = apply_patch(&kinds::POD, PatchType::Apply, &json!({}), b"{}").expect_err("not here");
    assert_eq!(refused.code, 415);
    // A custom resource has no strategies.
    let definition = json!({
        "metadata": { "name": "foos.x.io" },
        "spec": { "group": "x.io", "scope": "Namespaced", "names": { "plural": "foos", "kind": "Foo" }, "versions": [{
            "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": { "type": "object" } } }] },
        "status": { "conditions": [{ "type": "Established", "status": "True" }] },
    });
    let custom = crate::custom::rows::rows(&definition.to_string().into()).expect("JSON").remove(0);
    let refused = apply_patch(&custom, PatchType::Strategic, &json!({}), b"{}").expect_err("a custom resource");
    assert_eq!(refused.code, 415);
    let accepted = ["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];
    assert!(accepted.iter().all(|name| refused.message.contains(name)), "{}", refused.message);
    assert!(!refused.message.contains("strategic"), "{}", refused.message);
}

#[test]
fn x4_a_json_patch_is_bounded_in_what_it_copies_moves_and_nests() {
    let object = json!({ "text": "x".repeat(1 << 20), "map": { "x".repeat(1 << 20): 1 }, "list": vec![0; 500_000],
        "numbers": vec![0; 100_000], "small": [1] });
    let copies = |from: &str, count: usize| {
        let copies: Vec<Value> = (0..count).map(|number| op("copy", &format!("/c{number}"), json!(from))).collect();
        json_patched(&object, &json!(copies)).map(drop)
    };
    // Three MiB in all, of text, of names, of items.
    for (from, most) in [("/text", 2), ("/map", 2), ("/numbers", 3)] {
        assert_eq!((copies(from, most), copies(from, most + 1)), (Ok(()), Err(422)), "{from}");
    }
    assert_eq!(copies("/small", 1_000), Ok(()));
    let exact = json!({ "text": "x".repeat(MAX_COPIED_BYTES - 2), "more": "x".repeat(MAX_COPIED_BYTES - 1) });
    let copy = |from: &str| json_patched(&exact, &json!([op("copy", "/c", json!(from))])).map(drop);
    assert_eq!((copy("/text"), copy("/more")), (Ok(()), Err(422)));

    // Half a million items are in the way, each time; 33 times are 16 Mi.
    let times = |operation: Value, count: usize| json_patched(&object, &json!(vec![operation; count])).map(drop);
    for operation in [
        op("add", "/list/0", json!(1)),
        op("remove", "/list/0", Value::Null),
        op("copy", "/list/0", json!("/small/0")),
        op("move", "/list/0", json!("/list/1")),
    ] {
        assert_eq!(times(operation.clone(), 10), Ok(()), "{operation}");
        assert_eq!(times(operation.clone(), 40), Err(422), "{operation}");
    }
    // A move from a list is one, too; what is tested or replaced stays where it is.
    let out: Vec<Value> = (0..40).map(|number| op("move", &format!("/m{number}"), json!("/list/0"))).collect();
    assert_eq!(json_patched(&object, &json!(out)).map(drop), Err(422));
    assert_eq!(times(op("test", "/list/0", json!(0)), 200), Ok(()));
    // Each counts what it takes out of the way and what it puts there.
    let million = json!({ "list": vec![0; 1 << 20] });
    let onto_itself = |count: usize| {
        let operations = vec![op("move", "/list/0", json!("/list/0")); count];
        json_patched(&million, &json!(operations)).map(drop)
    };
    assert_eq!((onto_itself(MAX_MOVED_ITEMS >> 21), onto_itself((MAX_MOVED_ITEMS >> 21) + 1)), (Ok(()), Err(422)));

    // Deeper than what is read is refused, by a copy into itself or by a path.
    let nested = |depth: usize| (1..depth).fold(json!({}), |below, _| json!({ "a": below }));
    let path = "/a".repeat(MAX_DEPTH - 1);
    let deep = nested(MAX_DEPTH);
    assert!(json_patched(&deep, &json!([op("add", &format!("{path}/b"), json!(1))])).is_ok());
    assert_eq!(json_patched(&deep, &json!([op("add", &format!("{path}/b"), json!({ "c": { "d": 1 } }))])), Err(400));
    let doubled = json!([
        op("copy", &format!("{path}/b"), json!("/a")),
        op("copy", "/c", json!("/a")),
        op("remove", "/a", Value::Null)
    ]);
    assert_eq!(json_patched(&deep, &doubled), Err(422), "and not copied before it is found out");
}

#[test]
fn conformance_a_refusal_shows_a_strategic_patch_as_go_and_else_what_was_made() {
    let made = json!({ "b": 1 });
    let of = |format: PatchType, patch: &Value| shown(format, patch.to_string().as_bytes(), &made);
    let patch = json!({ "z": [1, "a", null, {}], "m": { "y": true, "x": 1.5 }, "": "" });
    assert_eq!(of(PatchType::Strategic, &patch), "map[: m:map[x:1.5 y:true] z:[1 a <nil> map[]]]");
    assert_eq!(of(PatchType::Merge, &patch), "{\"b\":1}");
    assert_eq!(of(PatchType::Json, &json!([])), "{\"b\":1}");
    assert_eq!(shown(PatchType::Strategic, b"{", &made), "{\"b\":1}");
    let around = "map[a:]".len();
    let long = |length: usize| of(PatchType::Strategic, &json!({ "a": "x".repeat(length - around) }));
    assert_eq!(long(MAX_SHOWN).len(), MAX_SHOWN);
    assert!(long(MAX_SHOWN + 1).ends_with("x...") && long(MAX_SHOWN + 1).len() == MAX_SHOWN + 3);
    let wide = of(PatchType::Strategic, &json!({ "a": "é".repeat(MAX_SHOWN) }));
    assert!(wide.ends_with("é...") && wide.len() <= MAX_SHOWN + 3, "cut between characters");
}
