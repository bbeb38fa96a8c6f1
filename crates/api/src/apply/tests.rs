//! Server-side apply: who owns what, what goes, and what is refused.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::kinds;

pub(super) fn writer(manager: &str, second: i64) -> Writer<'_> {
    Writer { manager, subresource: "", now: Timestamp::from_second(second).unwrap_or_default() }
}

pub(super) fn pod(metadata: Value, spec: Value) -> Value {
    let mut pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec });
    pod["metadata"]["name"] = "web".into();
    pod
}

pub(super) fn apply_pod(live: Option<&Value>, config: &Value, manager: &str, force: bool) -> Result<Value, Status> {
    apply(&kinds::POD, live, config, force, writer(manager, 0))
}

/// The fields of one manager's entry.
pub(super) fn fields_of(object: &Value, manager: &str) -> Value {
    let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    entries.iter().find(|entry| entry["manager"] == manager).map_or(Value::Null, |entry| entry["fieldsV1"].clone())
}

#[test]
fn the_first_apply_owns_what_it_says() {
    let config = pod(
        json!({ "labels": { "app": "web" } }),
        json!({ "containers": [{ "name": "a", "image": "i", "ports": [{ "containerPort": 80 }], "args": ["x"] }] }),
    );
    let applied = apply_pod(None, &config, "kubectl", false).expect("applies");
    assert_eq!(unmanaged(&applied), config);
    let entry = &applied["metadata"]["managedFields"][0];
    assert_eq!(
        (&entry["operation"], &entry["time"], &entry["fieldsType"]),
        (&json!("Apply"), &json!("1970-01-01T00:00:00Z"), &json!("FieldsV1"))
    );
    assert_eq!(
        entry["fieldsV1"],
        json!({ "f:metadata": { "f:labels": { "f:app": {} } }, "f:spec": {
            "f:containers": { "k:{\"name\":\"a\"}": { ".": {},
            "f:name": {}, "f:image": {}, "f:args": {}, "f:ports": { "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {
                ".": {}, "f:containerPort": {} } } } } } })
    );
}

#[test]
fn conflicts_are_told_in_upstreams_words() {
    let mut live = pod(json!({}), json!({ "hostname": "a", "containers": [{ "name": "a", "image": "1" }] }));
    manage_update(&kinds::POD, None, &mut live, writer("kubectl-client-side-apply", 1));
    let one = pod(json!({}), json!({ "containers": [{ "name": "a", "image": "2" }] }));
    let refused = apply_pod(Some(&live), &one, "me", false).expect_err("a conflict");
    assert_eq!((refused.code, &*refused.reason), (409, "Conflict"));
    assert_eq!(
        refused.message,
        r#"Apply failed with 1 conflict: conflict with "kubectl-client-side-apply" using v1: .spec.containers[name="a"].image"#
    );
    assert_eq!(refused.details["causes"][0]["field"], r#".spec.containers[name="a"].image"#);
    let two = pod(json!({}), json!({ "hostname": "b", "containers": [{ "name": "a", "image": "2" }] }));
    let refused = apply_pod(Some(&live), &two, "me", false).expect_err("conflicts");
    let lines: Vec<&str> = refused.message.lines().collect();
    assert_eq!(lines[0], r#"Apply failed with 2 conflicts: conflicts with "kubectl-client-side-apply" using v1:"#);
    assert_eq!(&lines[1..], ["- .spec.hostname", r#"- .spec.containers[name="a"].image"#]);
    let forced = apply_pod(Some(&live), &two, "me", true).expect("forced");
    assert_eq!((&forced["spec"]["hostname"], &forced["spec"]["containers"][0]["image"]), (&json!("b"), &json!("2")));
    assert_eq!(
        fields_of(&forced, "kubectl-client-side-apply"),
        json!({ "f:spec": { "f:containers": { "k:{\"name\":\"a\"}": { ".": {}, "f:name": {} } } } })
    );
}

#[test]
fn what_is_no_longer_applied_goes_unless_another_owns_it() {
    let env = |names: &[&str]| names.iter().map(|name| json!({ "name": name, "value": "1" })).collect::<Value>();
    let config = |names: &[&str]| {
        pod(json!({ "labels": { "a": "1", "b": "1" } }), json!({ "containers": [{ "name": "c", "env": env(names) }] }))
    };
    let live = apply_pod(None, &config(&["x", "y", "z"]), "one", false).expect("applies");
    let live = apply_pod(Some(&live), &config(&["y"]), "two", false).expect("the same values are shared");
    let fewer = pod(json!({ "labels": { "a": "1" } }), json!({ "containers": [{ "name": "c", "env": env(&["z"]) }] }));
    let live = apply_pod(Some(&live), &fewer, "one", false).expect("applies");
    assert_eq!(live["spec"]["containers"][0]["env"], env(&["y", "z"]));
    assert_eq!(live["metadata"]["labels"], json!({ "a": "1", "b": "1" }));
    let nothing = pod(json!({}), json!({}));
    let live = apply_pod(Some(&live), &nothing, "two", false).expect("applies");
    assert_eq!(unmanaged(&live), fewer);
    let empty = apply_pod(Some(&live), &nothing, "one", false).expect("applies");
    assert_eq!(unmanaged(&empty), nothing, "the empty spec is said");
    let without = nothing.clone().tap_remove("spec");
    assert_eq!(unmanaged(&apply_pod(Some(&live), &without, "one", false).expect("applies")), nothing, "by two");
    let last = apply_pod(Some(&empty), &without, "two", false).expect("applies");
    assert_eq!(unmanaged(&apply_pod(Some(&last), &without, "one", false).expect("applies")), without);
}

/// A test's shorthand: an object without one field.
trait TapRemove {
    fn tap_remove(self, field: &str) -> Value;
}

impl TapRemove for Value {
    fn tap_remove(mut self, field: &str) -> Value {
        self.as_object_mut().map(|map| map.remove(field));
        self
    }
}

#[test]
fn updates_take_fields_over_and_status_has_its_own_owners() {
    let set = |replicas: i32, status: Value| {
        json!({ "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": { "name": "web" },
        "spec": { "replicas": replicas, "serviceName": "web" }, "status": status })
    };
    let kind = &kinds::STATEFUL_SET;
    let config = set(3, json!(null)).tap_remove("status");
    let live = apply(kind, None, &config, false, writer("gitops", 0)).expect("applies");
    let mut scaled = live.clone();
    scaled["spec"]["replicas"] = 5.into();
    manage_update(kind, Some(&mut live.clone()), &mut scaled, writer("kubectl-edit", 1));
    assert_eq!(fields_of(&scaled, "gitops"), json!({ "f:spec": { "f:serviceName": {} } }));
    assert_eq!(fields_of(&scaled, "kubectl-edit"), json!({ "f:spec": { "f:replicas": {} } }));
    let mut reported = scaled.clone();
    reported["status"] = json!({ "replicas": 5 });
    manage_update(
        kind,
        Some(&mut scaled.clone()),
        &mut reported,
        Writer { subresource: "status", ..writer("controller", 2) },
    );
    let entry = reported["metadata"]["managedFields"]
        .as_array()
        .and_then(|all| all.iter().find(|e| e["manager"] == "controller"))
        .cloned();
    assert_eq!(
        entry.map(|e| (e["subresource"].clone(), e["fieldsV1"].clone())),
        Some((json!("status"), json!({ "f:status": { "f:replicas": {} } })))
    );
    // An update that changes nothing leaves every byte as it was, also when the client did not send the managers back.
    let mut same = unmanaged(&reported);
    manage_update(kind, Some(&mut reported.clone()), &mut same, writer("someone", 9));
    assert_eq!(same, reported);
    // `[{}]` is how a client drops all managers.
    let mut reset = reported.clone();
    reset["metadata"]["managedFields"] = json!([{}]);
    manage_update(kind, Some(&mut reported.clone()), &mut reset, writer("someone", 9));
    assert!(reset["metadata"].get("managedFields").is_none());
}

#[test]
fn an_object_without_managers_belongs_to_before_first_apply() {
    let live = pod(json!({}), json!({ "hostname": "a" }));
    let refused =
        apply_pod(Some(&live), &pod(json!({}), json!({ "hostname": "b" })), "me", false).expect_err("a conflict");
    assert_eq!(
        refused.message,
        r#"Apply failed with 1 conflict: conflict with "before-first-apply" using v1: .spec.hostname"#
    );
    assert!(
        apply_pod(None, &pod(json!({ "managedFields": [] }), json!({})), "me", false)
            .is_err_and(|status| status.code == 400)
    );
}

/// As a chart that goes from one version of a kind to the next.
#[test]
fn who_goes_on_with_another_version_is_the_same_manager() {
    let (first, second) = (&kinds::HORIZONTAL_POD_AUTOSCALER_V1, &kinds::HORIZONTAL_POD_AUTOSCALER);
    let scaler = |kind: &Kind, spec: Value| {
        json!({ "apiVersion": kind.api_version(), "kind": "HorizontalPodAutoscaler", "metadata": { "name": "web" },
            "spec": spec })
    };
    let config = scaler(first, json!({ "maxReplicas": 5, "minReplicas": 2 }));
    let live = apply(first, None, &config, false, writer("argo", 0)).expect("made");
    let config = scaler(second, json!({ "maxReplicas": 6 }));
    let mut live = apply(second, Some(&live), &config, false, writer("argo", 1)).expect("no conflict with oneself");
    assert_eq!(live["spec"], json!({ "maxReplicas": 6 }), "what is not said any more goes");
    let entries = live["metadata"]["managedFields"].as_array().expect("entries").clone();
    assert_eq!((entries.len(), &entries[0]["apiVersion"]), (1, &json!("autoscaling/v2")));
    assert_eq!(entries[0]["time"], "1970-01-01T00:00:01Z");
    // As an earlier server left it.
    let mut old = entries[0].clone();
    (old["apiVersion"], old["fieldsV1"]) = (json!("autoscaling/v1"), json!({ "f:spec": { "f:minReplicas": {} } }));
    live["spec"]["minReplicas"] = json!(2);
    live["metadata"]["managedFields"] = json!([entries[0], old]);
    let live = apply(second, Some(&live), &config, false, writer("argo", 2)).expect("applies");
    assert_eq!(live["spec"], json!({ "maxReplicas": 6 }));
    assert_eq!(live["metadata"]["managedFields"].as_array().map(Vec::len), Some(1));
}

#[test]
fn x4_a_refusal_names_a_bounded_number_of_conflicts() {
    let long = "k".repeat(100_000);
    let config = |value: &str| {
        let data: Map<String, Value> = (0..1_000).map(|index| (format!("{long}{index}"), value.into())).collect();
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a" }, "data": data })
    };
    let live = apply(&kinds::CONFIG_MAP, None, &config("a"), false, writer("a", 0)).expect("made");
    let refused = apply(&kinds::CONFIG_MAP, Some(&live), &config("b"), false, writer("b", 0)).expect_err("a conflict");
    assert!(refused.message.starts_with("Apply failed with 1000 conflicts: conflicts with \"a\":\n- .data.kk"));
    assert!(refused.message.ends_with("and 744 more") && refused.message.len() < 300_000, "{}", refused.message.len());
    assert_eq!(refused.details["causes"].as_array().map(Vec::len), Some(256));
    assert!(refused.details.to_string().len() < 400_000);
}

/// What kubectl itself has said before is found among many fields.
#[test]
fn kubectl_goes_on_with_many_fields_of_its_own_past() {
    let config = |value: &str| {
        let data: Map<String, Value> = (0..2_000).map(|index| (format!("k{index}"), value.into())).collect();
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a" }, "data": data })
    };
    let mut live = config("a");
    live["metadata"]["annotations"] = json!({ LAST_APPLIED: config("a").to_string() });
    manage_update(&kinds::CONFIG_MAP, None, &mut live, writer("kubectl-client-side-apply", 1));
    let applied = |live: &Value| apply(&kinds::CONFIG_MAP, Some(live), &config("b"), false, writer(KUBECTL, 2));
    assert!(applied(&live).is_ok());
    live["data"]["k7"] = "by hand".into();
    live["metadata"]["annotations"][LAST_APPLIED] = {
        let mut said = config("a");
        said["data"].as_object_mut().expect("a map").remove("k7");
        said.to_string().into()
    };
    assert_eq!(applied(&live).map_err(|status| status.code), Err(409));
}

#[test]
fn x4_the_number_of_managers_is_bounded() {
    let mut live = pod(json!({}), json!({}));
    for number in 0..40 {
        let mut next = live.clone();
        next["metadata"]["labels"][format!("l{number}")] = "1".into();
        manage_update(&kinds::POD, Some(&mut live.clone()), &mut next, writer(&format!("m{number}"), number));
        live = next;
    }
    let managers = Managers::of(managed(&live)).expect("managers");
    assert_eq!(managers.0.len(), MAX_UPDATE_MANAGERS);
    let labels = managers.union().paths(usize::MAX).iter().filter(|path| path.starts_with(".metadata.labels.")).count();
    assert_eq!(labels, 40, "the oldest are put together, not forgotten");
    let made_up = json!({ "metadata": { "managedFields": vec![json!({ "operation": "Update" }); MAX_ENTRIES + 1] } });
    assert_eq!(Managers::of(managed(&made_up)), None);
}

type Container = (&'static str, (Option<&'static str>, Option<std::collections::BTreeMap<&'static str, &'static str>>));

/// Small pods with the kinds of fields that differ: scalars, maps, keyed lists in keyed lists, sets, atomic lists.
fn any_config() -> impl Strategy<Value = Value> {
    let value = || prop::sample::select(vec!["1", "2"]);
    let name = || prop::sample::select(vec!["a", "b", "c"]);
    let labels = prop::collection::btree_map(name(), value(), 1..3);
    let env = prop::collection::btree_map(name(), value(), 1..3);
    let container = (prop::option::of(value()), prop::option::of(env));
    let containers = prop::collection::btree_map(name(), container, 1..3).prop_shuffle_values();
    let finalizers = prop::collection::btree_set(name(), 1..3);
    let tolerations = prop::collection::vec(value(), 1..3);
    (
        prop::option::of(labels),
        prop::option::of(containers),
        prop::option::of(finalizers),
        prop::option::of(tolerations),
        prop::option::of(value()),
    )
        .prop_map(|(labels, containers, finalizers, tolerations, hostname)| {
            let (mut metadata, mut spec) = (json!({}), json!({}));
            let set = |map: &mut Value, field: &str, value: Option<Value>| value.map(|value| map[field] = value);
            set(&mut metadata, "labels", labels.map(|labels| json!(labels)));
            set(&mut metadata, "finalizers", finalizers.map(|all| json!(all)));
            set(
                &mut spec,
                "tolerations",
                tolerations.map(|all| all.into_iter().map(|key| json!({ "key": key })).collect()),
            );
            set(&mut spec, "hostname", hostname.map(Value::from));
            let containers = containers.map(|all| {
                let item = |(name, (image, env)): Container| {
                    let mut container = json!({ "name": name });
                    set(&mut container, "image", image.map(Value::from));
                    let env = env.map(|env| {
                        env.into_iter().map(|(name, value)| json!({ "name": name, "value": value })).collect()
                    });
                    set(&mut container, "env", env);
                    container
                };
                all.into_iter().map(item).collect()
            });
            set(&mut spec, "containers", containers);
            let mut config = pod(metadata, spec);
            if config["spec"] == json!({}) {
                config = config.tap_remove("spec");
            }
            config
        })
}

/// What one configuration adds comes after what there is: a container that somebody injects is not the first one.
#[test]
fn s11_items_that_are_added_come_where_upstream_has_them() {
    let config = |names: &str| {
        let containers: Vec<Value> =
            names.chars().map(|name| json!({ "name": name.to_string(), "image": "i" })).collect();
        pod(json!({}), json!({ "containers": containers }))
    };
    let names = |live: &Value| -> String {
        let containers = live["spec"]["containers"].as_array().expect("containers");
        containers.iter().filter_map(|container| container["name"].as_str()).collect()
    };
    for (live, applied, merged) in [
        ("a", "b", "ab"),
        ("abc", "d", "abcd"),
        ("abc", "cd", "abcd"),
        ("abc", "dc", "abdc"),
        ("abc", "ca", "bca"),
        ("abc", "xaycz", "xabycz"),
        ("abcd", "dcba", "dcba"),
        ("abcd", "bd", "abcd"),
        ("abx", "anb", "anbx"),
        ("axb", "anbm", "axnbm"),
        ("xaybz", "bna", "xybzna"),
        ("", "ab", "ab"),
    ] {
        let before = apply_pod(None, &config(live), "one", false).expect("applies");
        let after = apply_pod(Some(&before), &config(applied), "two", false).expect("applies");
        assert_eq!(names(&after), merged, "{applied} onto {live}");
    }
}

/// Items in a random order.
trait ShuffleValues<K, V> {
    fn prop_shuffle_values(self) -> BoxedStrategy<Vec<(K, V)>>;
}

impl<K, V, S> ShuffleValues<K, V> for S
where
    K: std::fmt::Debug + Clone + 'static,
    V: std::fmt::Debug + Clone + 'static,
    S: Strategy<Value = std::collections::BTreeMap<K, V>> + 'static,
{
    fn prop_shuffle_values(self) -> BoxedStrategy<Vec<(K, V)>> {
        self.prop_map(|map| map.into_iter().collect::<Vec<_>>()).prop_shuffle().boxed()
    }
}

fn typed(value: &Value) -> Typed<'_> {
    Typed::object(Nature::of_kind(&kinds::POD), value)
}

fn same(a: &Value, b: &Value) -> bool {
    let mut difference = compare(typed(a), typed(b));
    difference.take_changed().is_empty() && difference.removed.is_empty()
}

proptest! {
    #[test]
    fn fields_survive_their_json_form(config in any_config()) {
        let set = typed(&config).fields();
        prop_assert_eq!(Set::from_json(&set.to_json()), Some(set));
    }

    #[test]
    fn applying_again_changes_nothing(configs in prop::collection::vec(any_config(), 1..4)) {
        let mut live = None;
        for (number, config) in configs.iter().enumerate() {
            let manager = format!("m{}", number % 2);
            let once = apply(&kinds::POD, live.as_ref(), config, true, writer(&manager, 1)).expect("forced");
            let twice = apply(&kinds::POD, Some(&once), config, false, writer(&manager, 2)).expect("owns it all");
            prop_assert_eq!(&once, &twice);
            live = Some(once);
        }
    }

    #[test]
    fn one_manager_gets_exactly_what_it_last_applied(configs in prop::collection::vec(any_config(), 1..5)) {
        let mut live = None;
        for config in &configs {
            let next = apply_pod(live.as_ref(), config, "me", false).expect("no one else");
            prop_assert!(same(&unmanaged(&next), config), "{} is not {}", next, config);
            live = Some(next);
        }
    }

    #[test]
    fn what_others_own_changes_only_by_force(first in any_config(), second in any_config(), third in any_config()) {
        let live = apply_pod(None, &first, "one", false).expect("applies");
        let before = Managers::of(managed(&live)).expect("managers").union();
        match apply_pod(Some(&live), &second, "two", false) {
            Ok(after) => {
                let mut difference = compare(typed(&live), typed(&after));
                prop_assert!(difference.take_changed().intersection(&before).is_empty());
                prop_assert!(difference.removed.is_empty(), "the first apply of a manager removes nothing");
            }
            Err(status) => prop_assert_eq!(status.code, 409),
        }
        // By force: the configuration holds, and nobody owns what is not there.
        let live = apply_pod(Some(&live), &second, "two", true).expect("forced");
        let live = apply_pod(Some(&live), &third, "two", true).expect("forced");
        prop_assert!(same(&merge(typed(&live), typed(&third)), &live));
        let owned = Managers::of(managed(&live)).expect("managers").union();
        prop_assert!(owned.difference(&typed(&live).fields()).is_empty(), "{:?}", owned.paths(10));
    }
}

#[test]
fn kubectl_goes_on_on_the_server_after_a_client_side_apply() {
    let said = |image: &str| pod(json!({}), json!({ "containers": [{ "name": "a", "image": image }] }));
    let mut live = said("1");
    live["metadata"]["annotations"] = json!({ LAST_APPLIED: said("1").to_string() });
    manage_update(&kinds::POD, None, &mut live, writer("kubectl-client-side-apply", 1));
    assert_eq!(apply_pod(Some(&live), &said("2"), "another", false).expect_err("a conflict").code, 409);
    let applied = apply_pod(Some(&live), &said("2"), "kubectl", false).expect("its own past is no conflict");
    assert_eq!(applied["spec"]["containers"][0]["image"], "2");
    let noted = applied["metadata"]["annotations"][LAST_APPLIED].as_str().expect("kept in step");
    assert_eq!(serde_json::from_str::<Value>(noted).expect("JSON"), said("2"));

    // What somebody else has changed since is a conflict all the same.
    let mut edited = live.clone();
    edited["spec"]["hostname"] = "b".into();
    manage_update(&kinds::POD, Some(&mut live.clone()), &mut edited, writer("kubectl-edit", 2));
    let mut both = said("2");
    both["spec"]["hostname"] = "c".into();
    assert_eq!(apply_pod(Some(&edited), &both, "kubectl", false).expect_err("a conflict").code, 409);
}

#[test]
fn a_write_of_the_object_leaves_the_owners_of_its_status() {
    let mut live = pod(json!({}), json!({ "containers": [{ "name": "a", "image": "1" }] }));
    live["status"] = json!({ "phase": "Running" });
    let status = Writer { subresource: "status", ..writer("kubelet", 1) };
    manage_update(&kinds::POD, None, &mut live, status);
    let mut new = pod(json!({}), json!({ "containers": [{ "name": "a", "image": "2" }] }));
    manage_update(&kinds::POD, Some(&mut live.clone()), &mut new, writer("me", 2));
    assert_eq!(fields_of(&new, "kubelet"), json!({ "f:status": { "f:phase": {} } }));
}

#[test]
fn lists_of_custom_resources_are_merged_as_their_schema_says() {
    let definition = json!({
        "metadata": { "name": "foos.x.io" },
        "spec": { "group": "x.io", "scope": "Namespaced", "names": { "plural": "foos", "kind": "Foo" }, "versions": [{
            "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": { "type": "object",
                "properties": { "spec": { "type": "object", "properties": {
                    "keyed": { "type": "array", "x-kubernetes-list-type": "map",
                        "x-kubernetes-list-map-keys": ["k", "p"],
                        "items": { "type": "object", "properties": { "k": { "type": "string" },
                            "p": { "type": "string", "default": "TCP" }, "v": { "type": "integer" } } } },
                    "set": { "type": "array", "x-kubernetes-list-type": "set", "items": { "type": "string" } },
                    "plain": { "type": "array", "items": { "type": "string" } },
                    "atomic": { "type": "object", "x-kubernetes-map-type": "atomic",
                        "additionalProperties": { "type": "string" } },
                } } } } } }] },
        "status": { "conditions": [{ "type": "Established", "status": "True" }] },
    });
    let kind = crate::custom::rows::rows(&definition.to_string().into()).expect("JSON").remove(0);
    let foo =
        |spec: Value| json!({ "apiVersion": "x.io/v1", "kind": "Foo", "metadata": { "name": "a" }, "spec": spec });
    let one = foo(json!({ "keyed": [{ "k": "a", "v": 1 }], "set": ["x"], "plain": ["1"], "atomic": { "a": "1" } }));
    let two = foo(json!({ "keyed": [{ "k": "b", "p": "UDP", "v": 2 }], "set": ["y"] }));
    let live = apply(&kind, None, &one, false, writer("one", 1)).expect("applies");
    let live = apply(&kind, Some(&live), &two, false, writer("two", 2)).expect("nothing in common");
    assert_eq!(live["spec"]["keyed"], json!([{ "k": "a", "v": 1 }, { "k": "b", "p": "UDP", "v": 2 }]));
    assert_eq!(live["spec"]["set"], json!(["x", "y"]));
    let owned = fields_of(&live, "one");
    assert!(owned["f:spec"]["f:keyed"].get("k:{\"k\":\"a\",\"p\":\"TCP\"}").is_some(), "{owned}");
    assert_eq!(owned["f:spec"]["f:plain"], json!({}));
    assert_eq!(owned["f:spec"]["f:atomic"], json!({}));

    let theirs = foo(json!({ "keyed": [{ "k": "a", "v": 9 }], "plain": ["2"] }));
    let refused = apply(&kind, Some(&live), &theirs, false, writer("two", 3)).expect_err("one owns them");
    assert!(refused.message.contains(".spec.keyed[k=\"a\",p=\"TCP\"].v"), "{}", refused.message);
    // What its manager no longer says goes, and nothing else does.
    let less = apply(&kind, Some(&live), &foo(json!({ "set": ["y"] })), false, writer("two", 4)).expect("its own");
    assert_eq!(less["spec"]["keyed"], json!([{ "k": "a", "v": 1 }]));
}

/// Conformance, FieldValidation: what is applied and unknown is told by its path among owned fields.
#[test]
fn conformance_unknown_fields_of_a_configuration_are_not_declared() {
    let config = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "a", "namespace": "n" },
        "spec": { "template": { "spec": { "containers": [{ "name": "c", "image": "i" }] } } } });
    let refused = |unknown: &[&str]| undeclared(&crate::kinds::DEPLOYMENT, &config, unknown);
    let one = refused(&["metadata.unknownMeta"]);
    let begins = "failed to create typed patch object (n/a; apps/v1, Kind=Deployment): ";
    assert_eq!((one.code, one.reason.as_ref()), (500, ""));
    assert_eq!(one.message, format!("{begins}.metadata.unknownMeta: field not declared in schema"));
    let two = refused(&["spec.x", "spec.template.spec.containers[0].y"]);
    let lines = ".spec.x: field not declared in schema\n  .spec.template.spec.containers[name=\"c\"].y: field not \
        declared in schema";
    assert_eq!(two.message, format!("{begins}errors:\n  {lines}"));
}

#[test]
fn a_configuration_that_says_an_item_twice_is_refused_as_upstream() {
    let env = json!([{ "name": "A", "value": "1" }, { "name": "B" }, { "name": "A", "value": "1" }]);
    let config = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p" }, "spec": { "containers": [
        { "name": "c", "image": "i", "env": env }] } });
    let writer = Writer { manager: "m", subresource: "", now: jiff::Timestamp::UNIX_EPOCH };
    let refused = apply(&crate::kinds::POD, None, &config, true, writer).expect_err("twice");
    let why = ".spec.containers[name=\"c\"].env: duplicate entries for key [name=\"A\"]";
    assert!(refused.message.ends_with(why), "{}", refused.message);
}
