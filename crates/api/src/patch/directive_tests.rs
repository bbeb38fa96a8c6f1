//! Strategic merge patch, directive by directive: what upstream's documentation says of each.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::kinds;

fn patched(kind: &Kind, object: &Value, patch: &Value) -> Result<Value, Status> {
    apply_patch(kind, PatchType::Strategic, object, patch.to_string().as_bytes())
}

/// Objects of a spec, patches of it, and what they make of it, or a word of the refusal and its code.
fn check(kind: &Kind, table: &[(Value, Value, Result<Value, (u16, &str)>)]) {
    for (spec, patch, expected) in table {
        let answer = patched(kind, &json!({ "spec": spec }), &json!({ "spec": patch }));
        match (answer, expected) {
            (Ok(object), Ok(expected)) => assert_eq!(&object["spec"], expected, "{patch} onto {spec}"),
            (Err(status), Err((code, word))) => {
                assert!(status.code == *code && status.message.contains(word), "{patch}: {}", status.message);
            }
            (answer, _) => panic!("{patch} onto {spec}: {answer:?}"),
        }
    }
}

#[test]
fn conformance_patch_directives_of_maps() {
    let spec = json!({ "nodeSelector": { "a": "1", "b": "2" }, "securityContext": { "runAsUser": 1, "fsGroup": 2 } });
    let with = |selector: Value, context: Value| json!({ "nodeSelector": selector, "securityContext": context });
    let context = spec["securityContext"].clone();
    check(
        &kinds::POD,
        &[
            (
                spec.clone(),
                json!({ "nodeSelector": { "c": "3", "a": null } }),
                Ok(with(json!({ "b": "2", "c": "3" }), context.clone())),
            ),
            (
                spec.clone(),
                json!({ "nodeSelector": { "$patch": "merge", "c": "3" } }),
                Ok(with(json!({ "a": "1", "b": "2", "c": "3" }), context.clone())),
            ),
            // What replaces has no use for nulls and directives of its own.
            (
                spec.clone(),
                json!({ "nodeSelector": { "$patch": "replace", "c": "3", "a": null } }),
                Ok(with(json!({ "c": "3" }), context.clone())),
            ),
            (
                spec.clone(),
                json!({ "nodeSelector": { "$patch": "delete", "c": "3" } }),
                Ok(with(json!({}), context.clone())),
            ),
            (spec.clone(), json!({ "$patch": "replace", "hostname": "h" }), Ok(json!({ "hostname": "h" }))),
            (spec.clone(), json!({ "nodeSelector": null }), Ok(json!({ "securityContext": context }))),
            (
                spec.clone(),
                json!({ "nodeSelector": { "$patch": "zap" } }),
                Err((400, "unknown patch type \"zap\" found in map")),
            ),
            (
                json!({}),
                json!({ "securityContext": { "$patch": "replace", "runAsUser": 3 } }),
                Ok(json!({ "securityContext": { "runAsUser": 3 } })),
            ),
            // Another type than what is there: the patch's.
            (
                json!({ "nodeSelector": "x" }),
                json!({ "nodeSelector": { "a": "1" } }),
                Ok(json!({ "nodeSelector": { "a": "1" } })),
            ),
            (spec.clone(), json!({ "nodeSelector": 1, "securityContext": null }), Ok(json!({ "nodeSelector": 1 }))),
        ],
    );
}

fn item(name: &str) -> Value {
    json!({ "name": name, "emptyDir": {} })
}

/// A volume for each letter.
fn of(names: &str) -> Value {
    json!({ "volumes": names.chars().map(|name| item(&name.to_string())).collect::<Vec<_>>() })
}

fn order(names: &str) -> Value {
    names.chars().map(|name| json!({ "name": name.to_string() })).collect()
}

#[test]
fn conformance_patch_directives_of_keyed_lists() {
    let (spec, set) = (of("abc"), "$setElementOrder/volumes");
    check(
        &kinds::POD,
        &[
            // Gone, gone and not there, gone and made anew without what it was.
            (spec.clone(), json!({ "volumes": [{ "name": "b", "$patch": "delete" }] }), Ok(of("ac"))),
            (spec.clone(), json!({ "volumes": [{ "name": "x", "$patch": "delete" }] }), Ok(of("abc"))),
            (
                spec.clone(),
                json!({ "volumes": [{ "name": "b", "$patch": "delete" }, { "name": "b", "nfs": {} }],
                    set: order("abc") }),
                Ok(json!({ "volumes": [item("a"), { "name": "b", "nfs": {} }, item("c")] })),
            ),
            // One directive replaces the list, wherever it stands.
            (spec.clone(), json!({ "volumes": [item("z"), item("c"), { "$patch": "replace" }] }), Ok(of("zc"))),
            (
                spec.clone(),
                json!({ "volumes": [item("z"), { "$patch": "replace" }, item("c")], set: order("zc") }),
                Ok(of("zc")),
            ),
            (spec.clone(), json!({ "volumes": [{ "$patch": "replace" }] }), Ok(of(""))),
            (
                spec.clone(),
                json!({ "volumes": [{ "$patch": "merge" }] }),
                Err((400, "merging lists cannot yet be specified")),
            ),
            (
                spec.clone(),
                json!({ "volumes": [{ "$patch": "zap" }] }),
                Err((400, "unknown patch type \"zap\" found in list")),
            ),
            (
                spec.clone(),
                json!({ "volumes": [{ "$patch": "delete" }] }),
                Err((422, "does not contain declared merge key: name")),
            ),
            (
                spec.clone(),
                json!({ "volumes": [{ "emptyDir": {} }] }),
                Err((422, "does not contain declared merge key: name")),
            ),
            (spec.clone(), json!({ "volumes": [{ "name": null, "nfs": {} }] }), Err((422, "declared merge key: name"))),
            (spec.clone(), json!({ "volumes": null }), Ok(json!({}))),
            (spec.clone(), json!({ "volumes": [] }), Ok(of("abc"))),
        ],
    );
}

#[test]
fn conformance_patch_directives_of_order() {
    let (spec, set) = (of("abc"), "$setElementOrder/volumes");
    check(
        &kinds::POD,
        &[
            // The order alone, of all or of some; what it does not name stays beside what it stood before.
            (spec.clone(), json!({ set: order("cba") }), Ok(of("cba"))),
            (spec.clone(), json!({ set: order("ca") }), Ok(of("bca"))),
            (spec.clone(), json!({ set: order("ba") }), Ok(of("bac"))),
            (spec.clone(), json!({ set: order("xcb") }), Ok(of("acb"))),
            (json!({}), json!({ set: order("ab") }), Ok(json!({}))),
            (spec.clone(), json!({ set: order("axbc"), "volumes": [item("x")] }), Ok(of("axbc"))),
            (
                spec.clone(),
                json!({ set: order("ab"), "volumes": [item("x")] }),
                Err((400, "The order in patch list doesn't match")),
            ),
            (
                spec.clone(),
                json!({ set: order("bac"), "volumes": [item("a"), item("b")] }),
                Err((400, "The order in patch list")),
            ),
            (
                spec.clone(),
                json!({ set: order("abc"), "volumes": [item("b"), { "name": "a", "$patch": "delete" }] }),
                Ok(of("bc")),
            ),
            (spec.clone(), json!({ set: "a" }), Err((400, "$setElementOrder/volumes must be a list"))),
            (
                spec.clone(),
                json!({ "$setElementOrder/tolerations": [] }),
                Err((400, "\"tolerations\" is not a list that is merged")),
            ),
            // Without an order a new one comes first, as in upstream's; kubectl always says one.
            (spec.clone(), json!({ "volumes": [item("x")] }), Ok(of("xabc"))),
            (spec.clone(), json!({ "volumes": [item("c"), item("b")] }), Ok(of("acb"))),
        ],
    );
}

/// The ports of a Service are merged by their number alone: two of one number are told apart by no patch.
#[test]
fn conformance_patches_of_ports_go_by_their_number() {
    let spec =
        json!({ "ports": [{ "port": 53, "protocol": "UDP" }, { "port": 80 }, { "port": 53, "protocol": "TCP" }] });
    let ports = |ports: Value| json!({ "ports": ports });
    check(
        &kinds::SERVICE,
        &[
            (
                spec.clone(),
                ports(json!([{ "port": 53, "name": "d" }])),
                Ok(ports(json!([{ "port": 53, "protocol": "UDP", "name": "d" },
                        { "port": 53, "protocol": "TCP" }, { "port": 80 }]))),
            ),
            (spec.clone(), ports(json!([{ "port": 53, "$patch": "delete" }])), Ok(ports(json!([{ "port": 80 }])))),
            (
                spec.clone(),
                ports(json!([{ "port": 90 }])),
                Ok(ports(json!([{ "port": 90 }, { "port": 53, "protocol": "UDP" },
                        { "port": 53, "protocol": "TCP" }, { "port": 80 }]))),
            ),
            (
                spec.clone(),
                ports(json!([{ "port": 80, "name": "h" }])),
                Ok(ports(json!([{ "port": 53, "protocol": "UDP" }, { "port": 53, "protocol": "TCP" },
                        { "port": 80, "name": "h" }]))),
            ),
        ],
    );
}

#[test]
fn conformance_patch_directives_of_lists_of_scalars() {
    let object = json!({ "metadata": { "finalizers": ["a", "b", "c"] } });
    let (set, gone) = ("$setElementOrder/finalizers", "$deleteFromPrimitiveList/finalizers");
    for (patch, expected) in [
        (json!({ "finalizers": ["d"] }), json!(["d", "a", "b", "c"])),
        (json!({ "finalizers": ["b", "d"] }), json!(["a", "b", "d", "c"])),
        (json!({ gone: ["a", "x"] }), json!(["b", "c"])),
        (json!({ gone: ["a", "b", "c"] }), json!([])),
        (json!({ gone: ["b"], "finalizers": ["d"], set: ["c", "d", "a"] }), json!(["c", "d", "a"])),
        (json!({ set: ["c", "b"] }), json!(["a", "c", "b"])),
        (json!({ "finalizers": null }), Value::Null),
        (json!({ "finalizers": [] }), json!(["a", "b", "c"])),
    ] {
        let after = patched(&kinds::POD, &object, &json!({ "metadata": patch })).expect("merges");
        assert_eq!(after["metadata"]["finalizers"], expected, "{patch}");
    }
    // Of a list that is not there nothing goes, and none is made.
    let bare = patched(&kinds::POD, &json!({ "metadata": {} }), &json!({ "metadata": { gone: ["a"] } }));
    assert_eq!(bare, Ok(json!({ "metadata": {} })));
    for wrong in [json!({ gone: "a" }), json!({ set: {} }), json!({ set: ["a"], "finalizers": ["d"] })] {
        let refused = patched(&kinds::POD, &object, &json!({ "metadata": wrong })).expect_err("refused");
        assert_eq!(refused.code, 400, "{}", refused.message);
    }
    // A list without a strategy is replaced, and has no such directives.
    let spec = json!({ "containers": [{ "name": "c", "args": ["a", "b"] }] });
    let of = |args: Value| json!({ "containers": [{ "name": "c", "args": args }] });
    let directive = |name: &str| json!({ "containers": [{ "name": "c", name: ["a"] }] });
    check(
        &kinds::POD,
        &[
            (spec.clone(), of(json!(["c"])), Ok(of(json!(["c"])))),
            (spec.clone(), of(json!([])), Ok(of(json!([])))),
            (
                spec.clone(),
                directive("$deleteFromPrimitiveList/args"),
                Err((400, "\"args\" is not a list that is merged")),
            ),
            (spec, directive("$setElementOrder/args"), Err((400, "\"args\" is not a list that is merged"))),
        ],
    );
}

#[test]
fn conformance_retain_keys_drops_what_it_does_not_name() {
    let spec = json!({ "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1 } }, "paused": true });
    let strategy = |value: Value| json!({ "strategy": value, "paused": true });
    check(
        &kinds::DEPLOYMENT,
        &[
            (
                spec.clone(),
                json!({ "strategy": { "$retainKeys": ["type"], "type": "Recreate" } }),
                Ok(strategy(json!({ "type": "Recreate" }))),
            ),
            (
                spec.clone(),
                json!({ "strategy": { "$retainKeys": ["type", "rollingUpdate"],
                    "rollingUpdate": { "maxUnavailable": 2 } } }),
                Ok(strategy(
                    json!({ "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 2 } }),
                )),
            ),
            // What is taken away need not be named, and what is named need not be there.
            (
                spec.clone(),
                json!({ "strategy": { "$retainKeys": ["type", "x"], "type": "Recreate", "rollingUpdate": null } }),
                Ok(strategy(json!({ "type": "Recreate" }))),
            ),
            (spec.clone(), json!({ "strategy": { "$retainKeys": [] } }), Ok(strategy(json!({})))),
            (
                spec.clone(),
                json!({ "strategy": { "$retainKeys": ["type"], "rollingUpdate": {} } }),
                Err((400, "format of retainKeys")),
            ),
            (spec, json!({ "strategy": { "$retainKeys": "type" } }), Err((400, "format of retainKeys"))),
        ],
    );
    let volumes = json!({ "volumes": [{ "name": "a", "emptyDir": {} }], "hostname": "h", "nodeName": "n" });
    let retain = |keys: Value| {
        json!({ "$retainKeys": keys, "$setElementOrder/volumes": [{ "name": "b" }, { "name": "a" }],
            "volumes": [{ "name": "b", "nfs": {} }], "hostname": "i" })
    };
    let both = json!([{ "name": "b", "nfs": {} }, { "name": "a", "emptyDir": {} }]);
    check(
        &kinds::POD,
        &[
            (volumes.clone(), retain(json!(["volumes", "hostname"])), Ok(json!({ "volumes": both, "hostname": "i" }))),
            // The name of a list may have a slash before it in a directive alone.
            (volumes.clone(), json!({ "$retainKeys": ["b"], "a/b": 1 }), Err((400, "format of retainKeys"))),
            (volumes.clone(), json!({ "$retainKeys": ["a/b"], "a/b": 1 }), Ok(json!({ "a/b": 1 }))),
            // A directive sets no field, and needs no name.
            (
                volumes,
                json!({ "$retainKeys": ["hostname"], "$setElementOrder/volumes": [{ "name": "a" }] }),
                Ok(json!({ "hostname": "h" })),
            ),
        ],
    );
}

/// What tells two states of a pod apart as kubectl would send it: with keys, nulls, deletions and orders.
fn diff(before: &Value, after: &Value) -> Map<String, Value> {
    let none = Map::new();
    let (old, new) = (before.as_object().unwrap_or(&none), after.as_object().unwrap_or(&none));
    let gone = old.keys().filter(|name| !new.contains_key(*name)).map(|name| (name.clone(), Value::Null));
    let mut patch: Map<String, Value> = gone.collect();
    for (name, value) in new {
        match (old.get(name), value) {
            (Some(same), _) if same == value => {}
            (Some(Value::Object(_)), Value::Object(_)) => {
                patch.insert(name.clone(), Value::Object(diff(&old[name], value)));
            }
            (Some(Value::Array(was)), Value::Array(is)) if name != "tolerations" => {
                let key = |item: &Value| item.get("name").cloned().unwrap_or_else(|| item.clone());
                let find = |list: &[Value], item: &Value| list.iter().find(|other| key(other) == key(item)).cloned();
                let is_keyed = is.iter().chain(was).any(Value::is_object);
                let changed = is.iter().filter(|item| find(was, item).as_ref() != Some(*item));
                let lost = was.iter().filter(|item| find(is, item).is_none());
                let as_order = |item: &Value| if is_keyed { json!({ "name": key(item) }) } else { item.clone() };
                let changed = changed.map(|item| match find(was, item) {
                    Some(before) => {
                        let mut difference = diff(&before, item);
                        difference.insert("name".to_owned(), key(item));
                        Value::Object(difference)
                    }
                    None => item.clone(),
                });
                let mut items: Vec<Value> = changed.collect();
                if is_keyed {
                    items.extend(lost.map(|item| json!({ "name": key(item), "$patch": "delete" })));
                } else {
                    patch.insert(format!("$deleteFromPrimitiveList/{name}"), lost.cloned().collect());
                }
                patch.insert(name.clone(), items.into());
                patch.insert(format!("$setElementOrder/{name}"), is.iter().map(as_order).collect());
            }
            _ => {
                patch.insert(name.clone(), value.clone());
            }
        }
    }
    patch
}

/// The smallest merge patch (RFC 7396) between two values without nulls.
fn merge_diff(before: &Value, after: &Value) -> Value {
    let (Value::Object(old), Value::Object(new)) = (before, after) else { return after.clone() };
    let gone = old.keys().filter(|name| !new.contains_key(*name)).map(|name| (name.clone(), Value::Null));
    let changed = new.iter().filter(|(name, value)| old.get(*name) != Some(value));
    let changed = changed.map(|(name, value)| (name.clone(), merge_diff(old.get(name).unwrap_or(&Value::Null), value)));
    Value::Object(gone.chain(changed).collect())
}

/// Items of a keyed list, by name, in a random order.
fn items(inner: impl Strategy<Value = Value> + 'static) -> BoxedStrategy<Value> {
    let name = prop::sample::select(vec!["a", "b", "c", "d"]);
    let all = prop::collection::btree_map(name, inner, 0..4).prop_map(|all| {
        let named = all.into_iter().map(|(name, mut item)| {
            item["name"] = name.into();
            item
        });
        named.collect::<Vec<_>>()
    });
    all.prop_shuffle().prop_map(Value::from).boxed()
}

fn some(fields: Vec<(&'static str, BoxedStrategy<Value>)>) -> BoxedStrategy<Value> {
    let all: Vec<_> =
        fields.into_iter().map(|(name, value)| prop::option::of(value).prop_map(move |value| (name, value))).collect();
    let set = |fields: Vec<(&str, Option<Value>)>| {
        let set = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        Value::Object(set.collect())
    };
    all.prop_map(set).boxed()
}

fn any_pod() -> BoxedStrategy<Value> {
    let text = || prop::sample::select(vec!["1", "2"]).prop_map(Value::from).boxed();
    let labels = || some(vec![("x", text()), ("y", text()), ("z", text())]);
    let words = || {
        let all = prop::sample::subsequence(vec!["f", "g", "h", "i"], 0..4).prop_shuffle();
        all.prop_map(|all| json!(all)).boxed()
    };
    let env = items(some(vec![("value", text())]));
    let containers = items(some(vec![("image", text()), ("env", env), ("args", words())]));
    let tolerations = prop::collection::vec(some(vec![("key", text())]), 0..3).prop_map(Value::from).boxed();
    let spec = vec![
        ("containers", containers),
        ("nodeSelector", labels()),
        ("tolerations", tolerations),
        ("hostname", text()),
    ];
    let metadata = vec![("labels", labels()), ("finalizers", words())];
    (some(metadata), some(spec)).prop_map(|(metadata, spec)| json!({ "metadata": metadata, "spec": spec })).boxed()
}

/// A list without a strategy is told as a whole.
fn with_whole_args(mut patch: Value) -> Value {
    let containers = patch.pointer_mut("/spec/containers").and_then(Value::as_array_mut).into_iter().flatten();
    for container in containers.filter_map(Value::as_object_mut) {
        let order = container.remove("$setElementOrder/args");
        container.remove("$deleteFromPrimitiveList/args");
        if let Some(order) = order {
            container.insert("args".to_owned(), order);
        }
    }
    patch
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_tells_two_states_apart_leads_from_one_to_the_other(before in any_pod(), after in any_pod()) {
        let patch = with_whole_args(Value::Object(diff(&before, &after)));
        prop_assert_eq!(patched(&kinds::POD, &before, &patch), Ok(after.clone()), "{} onto {}", patch, before);
        let merge = merge_diff(&before, &after);
        let merged = apply_patch(&kinds::POD, PatchType::Merge, &before, merge.to_string().as_bytes());
        prop_assert_eq!(merged, Ok(after.clone()), "{} onto {}", merge, before);
        // Sent again, it changes nothing.
        let again = patched(&kinds::POD, &after, &patch);
        prop_assert_eq!(again, Ok(after), "{} again", patch);
    }
}
