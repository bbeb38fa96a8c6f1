//! What goes when a configuration no longer says it, and what stays.

use serde_json::{Value, json};

use super::tests::{apply_pod, fields_of, pod, writer};
use super::*;
use crate::kinds;

/// A container's probe or a volume's source has fields that nobody wrote: the defaults of what was applied.
fn with_defaults(kind: &Kind, object: &Value) -> Value {
    let mut object = object.clone();
    (kind.defaults)(kind, &mut object);
    object
}

fn of_template(probe: Value, source: (&str, Value)) -> Value {
    let mut container = json!({ "name": "c", "image": "i" });
    if !probe.is_null() {
        container["livenessProbe"] = probe;
    }
    json!({ "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": { "name": "web" }, "spec": {
        "serviceName": "web", "selector": { "matchLabels": { "a": "b" } }, "template": {
            "metadata": { "labels": { "a": "b" } },
            "spec": { "containers": [container], "volumes": [{ "name": "v", source.0: source.1 }] } } } })
}

/// Otherwise a probe without a handler is left, or a volume of two sources, and every later apply is refused.
#[test]
fn conformance_what_is_no_longer_applied_goes_with_its_defaults() {
    let kind = &kinds::STATEFUL_SET;
    let applied = |live: Option<&Value>, config: &Value| {
        with_defaults(kind, &apply(kind, live, config, false, writer("gitops", 0)).expect("no one else"))
    };
    let http = json!({ "httpGet": { "path": "/", "port": 80 }, "periodSeconds": 5 });
    let map = ("configMap", json!({ "name": "m" }));
    let live = applied(None, &of_template(http.clone(), map.clone()));
    let part = |object: &Value, of: &str| {
        let pod = &object["spec"]["template"]["spec"];
        if of == "probe" { pod["containers"][0]["livenessProbe"].clone() } else { pod["volumes"][0].clone() }
    };
    assert_eq!(part(&live, "probe")["httpGet"]["scheme"], "HTTP", "what nobody wrote");
    assert_eq!(part(&live, "volume")["configMap"]["defaultMode"], 420);

    let none = applied(Some(&live), &of_template(Value::Null, ("emptyDir", json!({}))));
    assert_eq!(part(&none, "probe"), Value::Null);
    assert_eq!(part(&none, "volume"), json!({ "name": "v", "emptyDir": {} }));

    let exec = json!({ "exec": { "command": ["true"] }, "periodSeconds": 5 });
    let other = applied(Some(&live), &of_template(exec, map.clone()));
    let probe = part(&other, "probe");
    assert_eq!((probe.get("httpGet"), &probe["exec"]), (None, &json!({ "command": ["true"] })));
    assert_eq!((&probe["periodSeconds"], &probe["timeoutSeconds"]), (&json!(5), &json!(1)));

    // What somebody else has written in it stays, with what is around it.
    let mut edited = live.clone();
    edited["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["timeoutSeconds"] = 9.into();
    manage_update(kind, Some(&mut live.clone()), &mut edited, writer("kubectl-edit", 1));
    let kept = applied(Some(&edited), &of_template(Value::Null, map));
    let probe = part(&kept, "probe");
    assert_eq!((&probe["timeoutSeconds"], probe.get("httpGet")), (&json!(9), None));
}

#[test]
fn conformance_what_is_still_applied_and_empty_stays() {
    let config = |context: Value| pod(json!({}), json!({ "securityContext": context }));
    let live = apply_pod(None, &config(json!({ "runAsUser": 7 })), "me", false).expect("applies");
    let empty = apply_pod(Some(&live), &config(json!({})), "me", false).expect("applies");
    assert_eq!(unmanaged(&empty), config(json!({})));
    assert_eq!(fields_of(&empty, "me"), json!({ "f:spec": { "f:securityContext": {} } }));
    // The same of what another one says.
    let other = apply_pod(Some(&live), &config(json!({})), "other", false).expect("applies");
    let gone = apply_pod(Some(&other), &pod(json!({}), json!({ "hostname": "h" })), "me", false).expect("applies");
    assert_eq!(gone["spec"], json!({ "securityContext": {}, "hostname": "h" }));
    // What was empty before it was applied is no reason to go.
    let gone = apply_pod(Some(&empty), &pod(json!({}), json!({ "hostname": "h" })), "me", false).expect("applies");
    assert_eq!(gone["spec"], json!({ "hostname": "h" }));
}

/// Differs: upstream takes the rest of a map or a list with the last entry that somebody has applied.
#[test]
fn conformance_entries_and_items_that_nobody_owns_stay() {
    let config = |labels: Value, finalizers: Value| {
        let mut config = pod(json!({}), json!({ "hostname": "h" }));
        let metadata = config["metadata"].as_object_mut().expect("a map");
        [("labels", labels), ("finalizers", finalizers)]
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .for_each(|(name, value)| drop(metadata.insert(name.to_owned(), value)));
        config
    };
    let mut live =
        apply_pod(None, &config(json!({ "mine": "1" }), json!(["x.io/mine"])), "me", false).expect("applies");
    live["metadata"]["labels"]["controller"] = "1".into();
    live["metadata"]["finalizers"] = json!(["x.io/mine", "x.io/protection"]);
    let live = apply_pod(Some(&live), &config(Value::Null, Value::Null), "me", false).expect("applies");
    assert_eq!(live["metadata"]["labels"], json!({ "controller": "1" }));
    assert_eq!(live["metadata"]["finalizers"], json!(["x.io/protection"]));
}

/// The volume is that claim's as long as its uid stands there: without it, it would be the next one's of that name.
#[test]
fn v6_a_claim_ref_keeps_its_uid_whatever_is_applied() {
    let kind = &kinds::PERSISTENT_VOLUME;
    let config = |spec: Value| {
        json!({ "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": "v" },
            "spec": spec })
    };
    let size = json!({ "storage": "1Gi" });
    let with = config(json!({ "capacity": size, "claimRef": { "name": "c", "namespace": "n" } }));
    let mut live = apply(kind, None, &with, false, writer("me", 0)).expect("applies");
    live["spec"]["claimRef"]["uid"] = "u".into();
    let again = apply(kind, Some(&live), &with, false, writer("me", 1)).expect("applies");
    assert_eq!(again, live);
    let without = config(json!({ "capacity": size }));
    let live = apply(kind, Some(&live), &without, false, writer("me", 1)).expect("applies");
    assert_eq!(live["spec"]["claimRef"], json!({ "uid": "u" }));
}

/// Whatever a configuration says of labels, who an object is stays.
#[test]
fn conformance_an_object_stays_itself() {
    let mut live = apply_pod(None, &pod(json!({ "labels": { "a": "1" } }), json!({})), "me", false).expect("applies");
    live["metadata"]["uid"] = "u".into();
    live["status"] = json!({ "phase": "Running" });
    let bare = json!({ "apiVersion": "v1", "kind": "Pod" });
    let after = apply_pod(Some(&live), &bare, "me", false).expect("applies");
    assert_eq!((&after["metadata"]["uid"], &after["metadata"]["name"]), (&json!("u"), &json!("web")));
    assert_eq!((after["metadata"].get("labels"), &after["status"]["phase"]), (None, &json!("Running")));
}

#[test]
fn conformance_what_is_gone_has_no_owner() {
    let labels = |labels: Value| pod(json!({ "labels": labels }), json!({ "hostname": "h" }));
    let one = apply_pod(None, &labels(json!({ "a": "1", "b": "1" })), "one", false).expect("applies");
    let mut edited = labels(json!({ "b": "1" }));
    manage_update(&kinds::POD, Some(&mut one.clone()), &mut edited, writer("two", 1));
    assert_eq!(
        fields_of(&edited, "one"),
        json!({ "f:metadata": { "f:labels": { "f:b": {} } }, "f:spec": { "f:hostname": {} } })
    );
    assert_eq!(fields_of(&edited, "two"), Value::Null, "to take away is not to own");
    // Who owns nothing any more is no manager.
    let mut bare = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "web" } });
    manage_update(&kinds::POD, Some(&mut edited.clone()), &mut bare, writer("two", 2));
    assert_eq!(bare["metadata"].get("managedFields"), None);
    // A whole item of a keyed list goes with all that is in it, whoever had which part of it.
    let ports = |names: Value| pod(json!({}), json!({ "containers": names }));
    let live = ports(json!([{ "name": "a", "image": "1" }, { "name": "b", "image": "1", "env": [{ "name": "X" }] }]));
    let live = apply_pod(None, &live, "one", false).expect("applies");
    let mut less = ports(json!([{ "name": "a", "image": "1" }]));
    manage_update(&kinds::POD, Some(&mut live.clone()), &mut less, writer("two", 3));
    let left = json!({ ".": {}, "f:image": {}, "f:name": {} });
    assert_eq!(fields_of(&less, "one"), json!({ "f:spec": { "f:containers": { "k:{\"name\":\"a\"}": left } } }));
}
