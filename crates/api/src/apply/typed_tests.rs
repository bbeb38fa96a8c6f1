//! What is owned as a whole, by field, by item and by key.

use serde_json::{Value, json};

use super::tests::{apply_pod, fields_of, pod, writer};
use super::*;
use crate::kinds;

/// A kind whose objects have this schema.
fn custom(properties: Value) -> Kind {
    let definition = json!({
        "metadata": { "name": "foos.x.io" },
        "spec": { "group": "x.io", "scope": "Namespaced", "names": { "plural": "foos", "kind": "Foo" }, "versions": [{
            "name": "v1", "served": true, "storage": true,
            "schema": { "openAPIV3Schema": { "type": "object", "properties": properties } } }] },
        "status": { "conditions": [{ "type": "Established", "status": "True" }] },
    });
    crate::custom::rows::rows(&definition.to_string().into()).expect("JSON").remove(0)
}

fn foo(fields: Value) -> Value {
    let mut foo = json!({ "apiVersion": "x.io/v1", "kind": "Foo", "metadata": { "name": "a" } });
    crate::object::merge(&mut foo, fields);
    foo
}

fn applied(kind: &Kind, live: Option<&Value>, config: &Value, manager: &str) -> Result<Value, Status> {
    apply(kind, live, config, false, writer(manager, 0))
}

/// Fields of maps and structs that upstream marks atomic: whoever says one part says all.
#[test]
fn conformance_what_is_atomic_has_one_owner() {
    let service = |selector: Value| {
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "a" },
            "spec": { "selector": selector } })
    };
    let set = |labels: Value| {
        json!({ "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": { "name": "a" },
            "spec": { "selector": { "matchLabels": labels } } })
    };
    let tolerates = |key: &str| pod(json!({}), json!({ "tolerations": [{ "key": key }] }));
    let (x, y) = (json!({ "x": "1" }), json!({ "y": "1" }));
    for (kind, one, two, at) in [
        (&kinds::SERVICE, service(x.clone()), service(y.clone()), "selector"),
        (&kinds::STATEFUL_SET, set(x), set(y), "selector"),
        (&kinds::POD, tolerates("x"), tolerates("y"), "tolerations"),
    ] {
        let live = applied(kind, None, &one, "one").expect("applies");
        assert_eq!(fields_of(&live, "one"), json!({ "f:spec": { format!("f:{at}"): {} } }));
        let refused = applied(kind, Some(&live), &two, "two").expect_err("a conflict").message;
        assert!(refused.ends_with(&format!("\"one\": .spec.{at}")), "{refused}");
        let forced = apply(kind, Some(&live), &two, true, writer("two", 1)).expect("forced");
        assert_eq!(forced["spec"], two["spec"], "and nothing of the first one's");
        assert_eq!(fields_of(&forced, "one"), Value::Null);
        // What both say alike both own.
        let shared = applied(kind, Some(&live), &one, "two").expect("the same");
        assert_eq!(fields_of(&shared, "one"), fields_of(&shared, "two"));
        assert_eq!(
            applied(kind, Some(&shared), &one, "one").map(|after| after["spec"].clone()),
            Ok(one["spec"].clone())
        );
    }
}

#[test]
fn conformance_items_of_sets_have_owners() {
    let of = |finalizers: &[&str]| pod(json!({ "finalizers": finalizers }), json!({}));
    let live = apply_pod(None, &of(&["a", "b"]), "one", false).expect("applies");
    let live = apply_pod(Some(&live), &of(&["c", "b"]), "two", false).expect("no conflict");
    assert_eq!(live["metadata"]["finalizers"], json!(["a", "c", "b"]));
    let owned = json!({ "f:finalizers": { "v:\"b\"": {}, "v:\"c\"": {} } });
    assert_eq!(fields_of(&live, "two")["f:metadata"], owned);
    let live = apply_pod(Some(&live), &of(&[]), "one", false).expect("its own");
    assert_eq!(live["metadata"]["finalizers"], json!(["c", "b"]), "the other one still says it");
    let twice = apply_pod(Some(&live), &of(&["c", "c"]), "two", false).expect_err("twice").message;
    assert!(twice.ends_with(": .metadata.finalizers: duplicate entries for set item [=\"c\"]"), "{twice}");
}

/// What stands in a list twice cannot be told apart: then the list has one owner, and nobody's item is lost unseen.
#[test]
fn a_list_with_repeated_items_has_one_owner() {
    let of = |env: Value| pod(json!({}), json!({ "containers": [{ "name": "c", "env": env }] }));
    let mut twice = of(json!([{ "name": "B" }, { "name": "A", "value": "1" }, { "name": "C" }, { "name": "B" }]));
    manage_update(&kinds::POD, None, &mut twice, writer("one", 1));
    let owned = |object: &Value, manager: &str| {
        fields_of(object, manager)["f:spec"]["f:containers"]["k:{\"name\":\"c\"}"]["f:env"].clone()
    };
    assert_eq!(owned(&twice, "one"), json!({}));
    let other = of(json!([{ "name": "D" }]));
    let refused = apply_pod(Some(&twice), &other, "two", false).expect_err("a conflict").message;
    assert!(refused.ends_with(".spec.containers[name=\"c\"].env"), "{refused}");
    // By force it is what the configuration says, and nothing is guessed of what went together.
    let both = of(json!([{ "name": "B", "value": "2" }, { "name": "D" }]));
    let forced = apply_pod(Some(&twice), &both, "two", true).expect("forced");
    assert_eq!(forced["spec"], both["spec"]);
    // Who makes it so becomes the owner of it all.
    let once = of(json!([{ "name": "B" }]));
    let live = apply_pod(None, &once, "one", false).expect("applies");
    let mut made = of(json!([{ "name": "B" }, { "name": "B" }]));
    manage_update(&kinds::POD, Some(&mut live.clone()), &mut made, writer("four", 2));
    assert_eq!(owned(&made, "four"), json!({}));
    // When it is mended its items have owners again.
    let mut once = of(json!([{ "name": "B" }, { "name": "A", "value": "1" }]));
    manage_update(&kinds::POD, Some(&mut twice.clone()), &mut once, writer("three", 2));
    assert_eq!(owned(&once, "one"), Value::Null);
    let merged = apply_pod(Some(&of(json!([{ "name": "B" }]))), &other, "two", false).expect("merges");
    assert_eq!(merged["spec"]["containers"][0]["env"], json!([{ "name": "B" }, { "name": "D" }]));
}

/// The default of a key counts as if it were said.
#[test]
fn conformance_a_port_without_a_protocol_is_one_of_tcp() {
    let of = |ports: Value| {
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "a" },
            "spec": { "ports": ports } })
    };
    let kind = &kinds::SERVICE;
    let live = applied(kind, None, &of(json!([{ "port": 53, "name": "t" }])), "one").expect("applies");
    let udp = json!([{ "port": 53, "protocol": "UDP", "name": "u" }]);
    let live = applied(kind, Some(&live), &of(udp.clone()), "two").expect("another port");
    assert_eq!(live["spec"]["ports"], json!([{ "port": 53, "name": "t" }, udp[0]]));
    let tcp = of(json!([{ "port": 53, "protocol": "TCP", "name": "x" }]));
    let refused = applied(kind, Some(&live), &tcp, "two").expect_err("a conflict").message;
    assert!(refused.ends_with("\"one\": .spec.ports[port=53,protocol=\"TCP\"].name"), "{refused}");
}

#[test]
fn conformance_custom_resources_are_owned_as_their_schema_says() {
    let text = json!({ "type": "string" });
    let object = json!({ "type": "object", "properties": { "x": text } });
    let kind = custom(json!({
        "metadata": { "type": "object", "properties": { "name": text } },
        "spec": { "type": "object", "properties": {
            "named": object,
            "entries": { "type": "object", "additionalProperties": object },
            "free": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
            "list": { "type": "array", "items": object },
            "words": { "type": "array", "items": text },
            "set": { "type": "array", "x-kubernetes-list-type": "set", "items": text },
            "inside": { "type": "object", "x-kubernetes-embedded-resource": true,
                "x-kubernetes-preserve-unknown-fields": true },
        } },
        "status": object,
    }));
    let config = foo(json!({
        "metadata": { "finalizers": ["x.io/f"] },
        "spec": { "named": { "x": "1" }, "entries": { "e": { "x": "1" } }, "free": { "a": { "b": ["1"] } },
            "list": [{ "x": "1" }, { "x": "1" }], "words": ["w", "w"],
            "inside": { "apiVersion": "v1", "kind": "Pod", "metadata": { "finalizers": ["g"] }, "spec": { "h": 1 } } },
        "status": { "x": "1" },
    }));
    let live = applied(&kind, None, &config, "one").expect("what is in no set may repeat");
    assert_eq!(unmanaged(&live), config);
    let expected = json!({
        "f:metadata": { "f:finalizers": { "v:\"x.io/f\"": {} } },
        "f:spec": {
            "f:named": { "f:x": {} },
            "f:entries": { "f:e": { ".": {}, "f:x": {} } },
            "f:free": { "f:a": { ".": {}, "f:b": {} } },
            "f:list": {}, "f:words": {},
            "f:inside": { "f:apiVersion": {}, "f:kind": {}, "f:metadata": { "f:finalizers": { "v:\"g\"": {} } },
                "f:spec": { "f:h": {} } },
        },
        // Without the subresource it is a field like any other.
        "f:status": { "f:x": {} },
    });
    assert_eq!(fields_of(&live, "one"), expected);
    // A field that `properties` names is not one of the others.
    let kind_of_sets = custom(json!({ "spec": { "type": "object", "additionalProperties": {
        "type": "array", "x-kubernetes-list-type": "set", "items": text } } }));
    let words = |words: Value| foo(json!({ "spec": { "s": words } }));
    let one = applied(&kind_of_sets, None, &words(json!(["a"])), "one").expect("applies");
    let two = applied(&kind_of_sets, Some(&one), &words(json!(["b"])), "two").expect("another item");
    assert_eq!(two["spec"]["s"], json!(["a", "b"]));
    assert_eq!(fields_of(&two, "two")["f:spec"], json!({ "f:s": { ".": {}, "v:\"b\"": {} } }));
    // What is a struct goes with what nobody owns, a map does not.
    let mut filled = live.clone();
    filled["spec"]["named"]["y"] = "default".into();
    filled["spec"]["free"]["c"] = 1.into();
    let empty = applied(&kind, Some(&filled), &foo(json!({ "spec": { "words": ["w"] } })), "one").expect("its own");
    assert_eq!(empty["spec"], json!({ "words": ["w"], "free": { "c": 1 } }));

    let twice = foo(json!({ "spec": { "set": ["s", "t", "s"] } }));
    let refused = applied(&kind, None, &twice, "one").expect_err("twice").message;
    assert!(refused.ends_with(": .spec.set: duplicate entries for set item [=\"s\"]"), "{refused}");
    let shown = |path: &str| Typed::object(Nature::of_kind(&kind), &config).shown_path(path);
    assert_eq!((shown("spec.list[1].z"), shown("spec.words[0]")), (".spec.list[1].z".into(), ".spec.words[0]".into()));
    let of_pod = pod(
        json!({}),
        json!({ "containers": [{ "name": "b" }, { "name": "c", "env": [{ "name": "A" }],
        "ports": [{ "containerPort": 1 }, { "containerPort": 80 }], "args": ["x"] }] }),
    );
    let shown = |path: &str| Typed::object(Nature::of_kind(&kinds::POD), &of_pod).shown_path(path);
    let port = ".spec.containers[name=\"c\"].ports[containerPort=80,protocol=\"TCP\"].z";
    assert_eq!(shown("spec.containers[1].ports[1].z"), port);
    assert_eq!(shown("spec.containers[1].args[0].z"), ".spec.containers[name=\"c\"].args[0].z");
    assert_eq!(shown("spec.containers[7].z"), ".spec.containers[7].z");
}

#[test]
fn what_is_taken_away_goes_with_all_below() {
    let set = |json: Value| Set::from_json(&json).expect("a set");
    let all = set(json!({ "f:a": { ".": {}, "f:b": { "f:c": {} } }, "f:d": { "f:e": {}, "f:f": {} } }));
    assert_eq!(all.difference(&set(json!({ "f:a": {} }))), set(json!({ "f:d": { "f:e": {}, "f:f": {} } })));
    assert_eq!(
        all.difference(&set(json!({ "f:a": { "f:b": {} }, "f:d": { "f:e": {} } }))),
        set(json!({ "f:a": {}, "f:d": { "f:f": {} } }))
    );
    assert_eq!(all.difference(&Set::default()), all);
    assert_eq!(Set::default().difference(&all), Set::default());
    for most in 0..5 {
        assert_eq!(all.paths(most).len(), most.min(all.len()), "X4: no more than are asked for");
    }
}

/// A manifest need not say anything of metadata but the name, which nobody owns.
#[test]
fn nobody_owns_who_an_object_is() {
    for metadata in [json!({}), json!({ "name": "web", "namespace": "n", "uid": "u", "generation": 1 })] {
        let config = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": { "hostname": "h" } });
        let live = apply_pod(None, &config, "me", false).expect("applies");
        assert_eq!(fields_of(&live, "me"), json!({ "f:spec": { "f:hostname": {} } }));
    }
}
