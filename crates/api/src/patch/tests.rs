//! Patches of each kind, and what hostile ones cost.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::kinds;
use crate::schema::{FieldValidation, decode};

fn smp(spec: Value, patch: Value) -> Result<Value, Status> {
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "a" }, "spec": spec });
    let patch = json!({ "spec": patch }).to_string();
    apply_patch(&kinds::POD, PatchType::Strategic, &pod, patch.as_bytes()).map(|mut pod| pod["spec"].take())
}

#[test]
fn strategic_merge_by_key() {
    let containers = json!({ "containers": [
        { "name": "a", "image": "a:1", "args": ["x"], "ports": [{ "containerPort": 80 }] },
            { "name": "b", "image": "b:1" } ] });
    let table = [
        (
            json!({ "containers": [{ "name": "b", "image": "b:2" }] }),
            json!([{ "name": "a", "image": "a:1", "args": ["x"], "ports": [{ "containerPort": 80 }] },
                { "name": "b", "image": "b:2" }]),
        ),
        (
            json!({ "containers": [{ "name": "a", "args": ["y"], "image": null,
                "ports": [{ "containerPort": 80, "name": "http" }, { "containerPort": 81 }] },
                { "name": "b", "$patch": "delete" }] }),
            json!([{ "name": "a", "args": ["y"], "ports": [{ "containerPort": 80, "name": "http" },
                { "containerPort": 81 }] }]),
        ),
        (
            json!({ "containers": [{ "$patch": "replace" }, { "name": "c", "image": "c", "tty": null }] }),
            json!([{ "name": "c", "image": "c" }]),
        ),
        (
            json!({ "$setElementOrder/containers": [{ "name": "b" }, { "name": "c" }, { "name": "a" }],
                "containers": [{ "name": "c" }] }),
            json!([{ "name": "b", "image": "b:1" }, { "name": "c" }, { "name": "a", "image": "a:1", "args": ["x"],
                "ports": [{ "containerPort": 80 }] }]),
        ),
    ];
    for (patch, expected) in &table {
        let spec = smp(containers.clone(), patch.clone()).expect("merges");
        assert_eq!(&spec["containers"], expected, "{patch}");
    }
}

#[test]
fn strategic_retain_keys_and_set_order_and_primitives() {
    let volumes =
        json!({ "volumes": [{ "name": "v", "emptyDir": {} }, { "name": "w", "hostPath": { "path": "/x" } }] });
    let patch = json!({ "$setElementOrder/volumes": [{ "name": "v" }], "volumes": [
        { "$retainKeys": ["name", "configMap"], "name": "v", "configMap": { "name": "c" } } ] });
    assert_eq!(
        smp(volumes.clone(), patch).expect("merges"),
        json!({ "volumes": [{ "name": "v", "configMap": { "name": "c" } },
            { "name": "w", "hostPath": { "path": "/x" } }] })
    );
    // A new item carries directives too; none of them may be stored.
    let patch = json!({ "volumes": [{ "$retainKeys": ["name", "emptyDir"], "name": "n", "emptyDir": {} }] });
    assert_eq!(smp(json!({}), patch).expect("merges"), json!({ "volumes": [{ "name": "n", "emptyDir": {} }] }));
    assert!(
        smp(volumes, json!({ "volumes": [{ "$retainKeys": ["name"], "name": "v", "emptyDir": {} }] }))
            .is_err_and(|s| s.code == 400)
    );

    let node = json!({ "metadata": { "finalizers": ["a", "b", "c"] } });
    let patch =
        br#"{"metadata":{"$deleteFromPrimitiveList/finalizers":["b"],"$setElementOrder/finalizers":["c","d","a"],"finalizers":["d"]}}"#;
    let patched = apply_patch(&kinds::NODE, PatchType::Strategic, &node, patch).expect("merges");
    assert_eq!(patched["metadata"]["finalizers"], json!(["c", "d", "a"]));
}

#[test]
fn strategic_directives_on_maps() {
    let spec = json!({ "nodeSelector": { "a": "1", "b": "2" }, "tolerations": [{ "key": "x" }] });
    let replaced = smp(spec.clone(), json!({ "nodeSelector": { "$patch": "replace", "c": "3" }, "tolerations": [] }))
        .expect("merges");
    assert_eq!(replaced, json!({ "nodeSelector": { "c": "3" }, "tolerations": [] }));
    let deleted = smp(spec.clone(), json!({ "nodeSelector": { "$patch": "delete" } })).expect("merges");
    assert_eq!(deleted["nodeSelector"], json!({}));
    for bad in [
        json!({ "nodeSelector": { "$patch": "x" } }),
        json!({ "$setElementOrder/tolerations": [] }),
        json!({ "containers": [{ "image": "a" }] }),
    ] {
        assert!(smp(spec.clone(), bad).is_err());
    }
}

#[test]
fn an_item_patch_of_replace_replaces_the_list_as_upstream_does() {
    let spec = json!({ "containers": [{ "name": "a" }, { "name": "b" }] });
    let patched = smp(spec, json!({ "containers": [{ "$patch": "replace" }, { "name": "z" }, { "name": "c" }] }))
        .expect("merges");
    assert_eq!(patched, json!({ "containers": [{ "name": "z" }, { "name": "c" }] }));
}

#[test]
fn json_and_merge_patches() {
    let current = json!({ "metadata": { "labels": { "a": "1" } }, "spec": { "x": [1, 2] } });
    let patch = |kind, text: &str| apply_patch(&kinds::POD, kind, &current, text.as_bytes());
    let merged = patch(PatchType::Merge, r#"{"metadata":{"labels":{"a":null,"b":"2"}},"spec":{"x":[3]}}"#);
    assert_eq!(merged, Ok(json!({ "metadata": { "labels": { "b": "2" } }, "spec": { "x": [3] } })));
    let json = patch(PatchType::Json, r#"[{"op":"test","path":"/spec/x/0","value":1},{"op":"remove","path":"/spec"}]"#);
    assert_eq!(json, Ok(json!({ "metadata": { "labels": { "a": "1" } } })));
    let failed =
        patch(PatchType::Json, r#"[{"op":"remove","path":"/spec"},{"op":"test","path":"/metadata","value":1}]"#)
            .expect_err("test fails");
    assert_eq!((failed.code, &*failed.reason), (422, "Invalid"));
    assert_eq!(failed.message, "the server rejected our request due to an error in our request");
    for bad in ["", "{", "[1]", r#"{"op":"add"}"#, r#"[{"op":"zap","path":"/a"}]"#] {
        assert!(patch(PatchType::Json, bad).is_err_and(|s| s.code == 400), "{bad}");
    }
    assert!(patch(PatchType::Merge, "[]").is_err_and(|s| s.code == 400));
}

#[test]
fn x4_patches_cannot_grow_without_bound() {
    let copies: Vec<Value> = (0..60).map(|_| json!({ "op": "copy", "from": "/a", "path": "/a/-" })).collect();
    let bomb = apply_patch(&kinds::POD, PatchType::Json, &json!({ "a": ["x"] }), json!(copies).to_string().as_bytes());
    assert!(bomb.is_err());
    let many = vec![json!({ "op": "test", "path": "", "value": 1 }); MAX_JSON_PATCH_OPERATIONS + 1];
    let refused = apply_patch(&kinds::POD, PatchType::Json, &json!({}), json!(many).to_string().as_bytes());
    assert!(refused.is_err_and(|status| status.code == 413));
}

/// Objects and patches of the fields and directives that are merged in special ways, right and wrong.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        Just(json!(80)),
        prop::sample::select(vec!["a", "b", "replace", "delete", "merge", "1Gi", ""]).prop_map(Value::from),
    ];
    let names = prop::sample::select(vec![
        "metadata",
        "spec",
        "containers",
        "name",
        "ports",
        "containerPort",
        "volumes",
        "env",
        "finalizers",
        "nodeSelector",
        "labels",
        "$patch",
        "$retainKeys",
        "$setElementOrder/containers",
        "$setElementOrder/finalizers",
        "$deleteFromPrimitiveList/finalizers",
    ]);
    leaf.prop_recursive(6, 48, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::btree_map(names.clone(), inner, 0..5).prop_map(|map| json!(map)),
        ]
    })
}

/// A field's name that is a directive's, at any depth.
fn directive_in(value: &Value) -> Option<&str> {
    match value {
        Value::Object(map) => {
            let own = map.keys().find(|name| name.starts_with('$')).map(String::as_str);
            own.or_else(|| map.values().find_map(directive_in))
        }
        Value::Array(items) => items.iter().find_map(directive_in),
        _ => None,
    }
}

/// Values with directives of right and wrong types anywhere in them.
fn any_directives() -> impl Strategy<Value = Value> {
    let text = prop::sample::select(vec!["a", "b", "replace", "delete", "merge", ""]).prop_map(Value::from);
    let leaf = prop_oneof![1 => Just(Value::Null), 1 => Just(json!(80)), 4 => text];
    let fields = prop::sample::select(vec![
        "name",
        "containers",
        "tolerations",
        "finalizers",
        "nodeSelector",
        "key",
        "args",
        "ports",
        "containerPort",
    ]);
    let directives = prop::sample::select(vec![
        "$patch",
        "$retainKeys",
        "$setElementOrder",
        "$setElementOrder/",
        "$setElementOrder/containers",
        "$setElementOrder/tolerations",
        "$deleteFromPrimitiveList",
        "$deleteFromPrimitiveList/finalizers",
        "$deleteFromPrimitiveList/args",
    ]);
    let names = prop_oneof![5 => fields, 2 => directives];
    leaf.prop_recursive(5, 32, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::btree_map(names.clone(), inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn x4_no_patch_panics_and_no_directive_is_stored(
        current in any_json(),
        patch in any_json(),
        [metadata, spec] in prop::array::uniform2(any_directives()),
    ) {
        // What is stored has no directives.
        let mut current = if directive_in(&current).is_some() { json!({}) } else { current };
        if decode(&kinds::POD, &mut current, FieldValidation::Ignore).is_err() {
            current = json!({ "metadata": { "finalizers": ["a", "b"] }, "spec": { "tolerations": [{ "key": "a" }] } });
        }
        for patch in [patch, json!({ "metadata": metadata, "spec": spec })] {
            for kind in [PatchType::Json, PatchType::Merge, PatchType::Strategic] {
                let patched = apply_patch(&kinds::POD, kind, &current, patch.to_string().as_bytes());
                if let (PatchType::Strategic, Ok(patched)) = (kind, patched) {
                    prop_assert_eq!(directive_in(&patched), None, "{} makes {} of {}", patch, patched, current);
                }
            }
        }
    }
}

/// Directives where there is nothing to direct: refused, or left out with what carries them.
#[test]
fn directives_in_odd_positions_are_refused_or_left_out() {
    let apply = |current: &Value, patch: &Value| {
        apply_patch(&kinds::POD, PatchType::Strategic, current, patch.to_string().as_bytes())
    };
    let stored = json!({ "spec": { "tolerations": [{ "key": "a" }] }, "metadata": { "finalizers": ["a"] } });
    let table = [
        (json!({ "metadata": [{ "$patch": null }] }), json!({ "metadata": [] })),
        (json!({ "metadata": [[{ "$patch": "x" }], "a"] }), json!({ "metadata": [[], "a"] })),
        (
            json!({ "spec": { "tolerations": [{ "key": "b", "$retainKeys": ["key"] },
                { "key": "c", "$patch": "delete" }] } }),
            json!({ "spec": { "tolerations": [{ "key": "b" }] } }),
        ),
        (
            json!({ "spec": { "x": [{ "y": { "$setElementOrder/z": [], "$deleteFromPrimitiveList/z": [],
                "k": 1 } }] } }),
            json!({ "spec": { "x": [{ "y": { "k": 1 } }] } }),
        ),
        (json!({ "metadata": { "finalizers": [[{ "$patch": 1 }]] } }), json!({ "metadata": { "finalizers": [[]] } })),
    ];
    for (patch, expected) in table {
        assert_eq!(apply(&json!({}), &patch), Ok(expected), "{patch}");
        let patched = apply(&stored, &patch).expect("merges");
        assert_eq!(directive_in(&patched), None, "{patch}");
    }
    for (patch, why) in [
        (json!({ "$setElementOrder": ["a"] }), "invalid patch format of setElementOrder list"),
        (json!({ "$deleteFromPrimitiveList": ["a"] }), "invalid patch format of primitive list"),
        (json!({ "$setElementOrders": 1 }), "invalid patch format of setElementOrder list"),
        (json!({ "$patch": null }), "unknown patch type"),
        (json!({ "$retainKeys": null }), "invalid patch format of retainKeys"),
    ] {
        for patch in [patch.clone(), json!({ "metadata": patch })] {
            let refused = apply(&stored, &patch).expect_err("refused");
            assert!(refused.code == 400 && refused.message.contains(why), "{patch}: {}", refused.message);
        }
    }
}

proptest! {
    #[test]
    fn decoding_twice_is_decoding_once(mut object in any_json()) {
        if decode(&kinds::POD, &mut object, FieldValidation::Ignore).is_ok() {
            let once = object.clone();
            prop_assert_eq!(decode(&kinds::POD, &mut object, FieldValidation::Strict), Ok(Vec::new()));
            prop_assert_eq!(object, once);
        }
    }

    #[test]
    fn a_strategic_patch_of_an_object_onto_nothing_is_the_object(mut object in any_json()) {
        if decode(&kinds::POD, &mut object, FieldValidation::Ignore).is_ok()
            && let Ok(patched) = apply_patch(&kinds::POD, PatchType::Strategic, &json!({}),
                object.to_string().as_bytes())
        {
            let again = apply_patch(&kinds::POD, PatchType::Strategic, &patched, object.to_string().as_bytes());
            prop_assert_eq!(again, Ok(patched));
        }
    }
}

// X4: each of these took minutes when the work was quadratic.

#[test]
fn x4_a_patch_that_names_one_item_again_and_again_is_merged_in_linear_time() {
    let items: Vec<Value> = (0..50_000).map(|index| json!({ "name": "a", format!("f{index}"): 1 })).collect();
    let spec = smp(json!({ "containers": [] }), json!({ "containers": items })).expect("merges");
    assert_eq!(spec["containers"].as_array().map(Vec::len), Some(1));
    assert_eq!(spec["containers"][0].as_object().map(serde_json::Map::len), Some(50_001));
}

#[test]
fn a_json_patch_may_test_that_a_field_is_not_there() {
    let patch = |object: &Value, path: &str| {
        let operations = json!([
            { "op": "test", "path": path, "value": null },
            { "op": "add", "path": path, "value": ["example.com/end"] },
        ]);
        apply_patch(&kinds::POD, PatchType::Json, object, operations.to_string().as_bytes())
    };
    let bare = json!({ "metadata": { "name": "a" } });
    let patched = patch(&bare, "/metadata/finalizers").expect("what kube-rs's finalizer sends");
    assert_eq!(patched, json!({ "metadata": { "name": "a", "finalizers": ["example.com/end"] } }));
    for (object, path) in
        [(&patched, "/metadata/finalizers"), (&patched, "/metadata/finalizers/1"), (&bare, "/no/where")]
    {
        assert_eq!(patch(object, path).map_err(|status| status.code), Err(422), "{path}");
    }
}

#[test]
fn x4_a_json_patch_moves_a_bounded_number_of_items() {
    let pod = json!({ "list": vec![0; 500_000] });
    let patch = |count: usize| {
        let operations = vec![json!({ "op": "add", "path": "/list/0", "value": 1 }); count];
        apply_patch(&kinds::POD, PatchType::Json, &pod, json!(operations).to_string().as_bytes())
    };
    assert!(patch(20).is_ok());
    assert_eq!(patch(MAX_JSON_PATCH_OPERATIONS).map_err(|status| status.code), Err(422));
}
