//! Kinds that are defined while the server runs, through the pipeline and with their controller.

use mainstay_api::schema::{FieldValidation, decode};
use mainstay_api::{Kind, object, openapi};

use super::*;
use crate::api::{self, Part};

const CRD: &Kind = &kinds::CUSTOM_RESOURCE_DEFINITION;
static CONTROLLERS: &[Controller] = &[
    mainstay_logic::controllers::customresourcedefinition::CONTROLLER,
    mainstay_logic::controllers::garbagecollector::CONTROLLER,
    mainstay_logic::controllers::namespace::CONTROLLER,
];

fn definition() -> Value {
    let schema = json!({ "type": "object", "required": ["spec"], "properties": {
        "spec": { "type": "object", "required": ["size"], "properties": {
            "size": { "type": "integer", "minimum": 1 }, "mode": { "type": "string", "default": "fast",
                "enum": ["fast", "slow"] },
        } },
        "status": { "type": "object", "properties": { "ready": { "type": "boolean" },
            "replicas": { "type": "integer" } } },
    } });
    let version = |name: &str, storage: bool| {
        json!({
            "name": name, "served": true, "storage": storage, "schema": { "openAPIV3Schema": schema },
            "subresources": { "status": {}, "scale": { "specReplicasPath": ".spec.size",
                "statusReplicasPath": ".status.replicas" } },
            "additionalPrinterColumns": [{ "name": "Size", "type": "integer", "jsonPath": ".spec.size" }],
            "selectableFields": [{ "jsonPath": ".spec.mode" }],
        })
    };
    json!({
        "metadata": { "name": "foos.x.io" },
        "spec": {
            "group": "x.io", "scope": "Namespaced", "names": { "plural": "foos", "kind": "Foo", "shortNames": ["fo"] },
            "versions": [version("v1", false), version("v1beta1", true)],
        },
    })
}

/// A cluster that serves `foos.x.io`, and the kind in version v1.
pub fn served() -> (Cluster, Kind) {
    let cluster = Cluster::new();
    assert!(cluster.api.served.now().find("x.io", "v1", "foos").is_none());
    cluster.create(CRD, definition()).expect("created");
    run(&cluster, CONTROLLERS);
    let kind = cluster.api.served.now().find("x.io", "v1", "foos").expect("served once it is Established").clone();
    (cluster, kind)
}

fn foo(name: &str, spec: Value) -> Value {
    json!({ "metadata": { "name": name }, "spec": spec })
}

#[test]
fn a_defined_kind_is_served_defaulted_validated_and_shown() {
    let (cluster, kind) = served();
    let stored = cluster.get(CRD, "foos.x.io").expect("there");
    assert_eq!(stored["status"]["acceptedNames"]["singular"], "foo");
    assert_eq!(stored["status"]["storedVersions"], json!(["v1beta1"]));
    cluster.create(&kind, foo("a", json!({ "size": 3 }))).expect("created");
    let a = cluster.get(&kind, "a").expect("there");
    assert_eq!((&a["apiVersion"], &a["spec"]["mode"]), (&json!("x.io/v1"), &json!("fast")));
    assert_eq!(a["metadata"]["generation"], 1);
    let beta = cluster.api.served.now().find("x.io", "v1beta1", "foos").expect("served").clone();
    assert_eq!(cluster.get(&beta, "a").expect("the same object")["apiVersion"], "x.io/v1beta1");
    let bad = cluster.create(&kind, foo("b", json!({ "size": 0, "mode": "x" }))).expect_err("refused");
    assert_eq!(
        bad.message,
        "Foo.x.io \"b\" is invalid: [spec.mode: Unsupported value: \"x\": supported values: \"fast\", \"slow\", \
         spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1]"
    );
    let cells = (kind.row)(&kind, &a, cluster.api.now());
    assert_eq!(cells, [json!("a"), json!(3)]);
    assert_eq!((kind.fields)(&kind, &a), [("spec.mode", "fast".to_owned())]);
    let document = openapi::v3(&cluster.api.served.now(), "x.io", "v1").expect("published");
    let document: Value = serde_json::from_str(&document.text()).expect("JSON");
    let published = &document["components"]["schemas"]["io.x.v1.Foo"];
    assert_eq!(published["properties"]["spec"]["properties"]["size"]["minimum"], 1);
    assert_eq!(published["x-kubernetes-group-version-kind"][0]["kind"], "Foo");
}

/// As upstream: what others change at the same time is not written over by who has not seen it.
#[test]
fn conformance_who_replaces_a_custom_resource_says_which_state_they_have_seen() {
    let (cluster, kind) = served();
    let made = cluster.create(&kind, foo("a", json!({ "size": 1 }))).expect("created");
    let blind = cluster.update(&kind, "a", foo("a", json!({ "size": 2 }))).expect_err("refused");
    let words = "Foo.x.io \"a\" is invalid: metadata.resourceVersion: Invalid value: 0x0: must be specified for an \
                 update";
    assert_eq!((blind.code, &*blind.message), (422, words));
    let mut seen = foo("a", json!({ "size": 2 }));
    seen["metadata"]["resourceVersion"] = made["metadata"]["resourceVersion"].clone();
    cluster.update(&kind, "a", seen).expect("replaced");
    // What is built in may mostly be.
    cluster.create(&kinds::CONFIG_MAP, config_map("b")).expect("created");
    cluster.update(&kinds::CONFIG_MAP, "b", config_map("b")).expect("replaced");
}

#[test]
fn an_event_owns_nothing() {
    let cluster = Cluster::new();
    let mut object = config_map("a");
    let owner = json!({ "apiVersion": "v1", "kind": "Event", "name": "e", "uid": "u" });
    object["metadata"]["ownerReferences"] = json!([owner]);
    let refused = cluster.create(&kinds::CONFIG_MAP, object).expect_err("refused");
    assert!(refused.message.ends_with("/v1, Kind=Event is disallowed from being an owner"), "{}", refused.message);
}

#[test]
fn unknown_fields_are_pruned_warned_of_or_refused() {
    let (_, kind) = served();
    let object = || json!({ "apiVersion": "x.io/v1", "kind": "Foo", "spec": { "size": 1, "color": "red" } });
    let mut warned = object();
    assert_eq!(decode(&kind, &mut warned, FieldValidation::Warn).expect("taken"), ["unknown field \"spec.color\""]);
    assert_eq!(warned["spec"], json!({ "size": 1 }));
    let refused = decode(&kind, &mut object(), FieldValidation::Strict).expect_err("refused").message;
    assert!(refused.ends_with("strict decoding error: unknown field \"spec.color\""), "{refused}");
    let mut broken = json!({ "metadata": { "labels": 1 }, "spec": { "size": 1 } });
    assert_eq!(decode(&kind, &mut broken, FieldValidation::Warn).map_err(|status| status.code), Err(400));
}

#[test]
fn status_and_spec_are_written_apart_and_generations_count_specs() {
    let (cluster, kind) = served();
    let mut made = foo("a", json!({ "size": 1 }));
    made["status"] = json!({ "ready": true });
    let made = cluster.create(&kind, made).expect("created");
    assert!(made.get("status").is_none(), "{made}");
    let status = json!({ "spec": { "size": 9 }, "status": { "ready": true } });
    let with_status = cluster.merge(&kind, "a", Part::Status, status).expect("written");
    assert_eq!((&with_status["spec"]["size"], &with_status["metadata"]["generation"]), (&json!(1), &json!(1)));
    let main = json!({ "spec": { "size": 2 }, "status": { "ready": false } });
    cluster.merge(&kind, "a", Part::Main, main).expect("written");
    let after = cluster.get(&kind, "a").expect("there");
    assert_eq!((&after["status"]["ready"], &after["metadata"]["generation"]), (&json!(true), &json!(2)));
    let wrong = cluster.merge(&kind, "a", Part::Status, json!({ "status": { "ready": "yes" } })).expect_err("refused");
    assert_eq!(wrong.code, 422);
}

#[test]
fn a8_a_definition_that_is_deleted_takes_its_objects_with_it_and_nothing_new_is_made() {
    let (cluster, kind) = served();
    let mut held = foo("a", json!({ "size": 1 }));
    held["metadata"]["finalizers"] = json!(["x.io/hold"]);
    cluster.create(&kind, held).expect("created");
    cluster.delete(CRD, "foos.x.io", &api::DeleteOptions::default()).expect("on its way");
    run(&cluster, CONTROLLERS);
    assert!(object::is_terminating(&cluster.get(&kind, "a").expect("held")));
    let ending = cluster.api.served.now().find("x.io", "v1", "foos").expect("served until it is gone").clone();
    let refused = cluster.create(&ending, foo("b", json!({ "size": 1 }))).expect_err("refused");
    assert_eq!(refused.message, "create not allowed while custom resource definition is terminating");
    cluster.merge(&ending, "a", Part::Main, json!({ "metadata": { "finalizers": null } })).expect("let go");
    run(&cluster, CONTROLLERS);
    assert!(cluster.get(CRD, "foos.x.io").is_none());
    assert!(cluster.api.served.now().find("x.io", "v1", "foos").is_none());
}

#[test]
fn owners_that_go_take_custom_objects_with_them_and_custom_owners_what_they_own() {
    let (cluster, kind) = served();
    let owner = cluster.create(&kinds::CONFIG_MAP, config_map("owner")).expect("created");
    let reference =
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"] });
    let mut owned = foo("owned", json!({ "size": 1 }));
    owned["metadata"]["ownerReferences"] = json!([reference]);
    cluster.create(&kind, owned).expect("created");
    let parent = cluster.create(&kind, foo("parent", json!({ "size": 1 }))).expect("created");
    let uid = &parent["metadata"]["uid"];
    let mut child = config_map("child");
    child["metadata"]["ownerReferences"] =
        json!([{ "apiVersion": "x.io/v1", "kind": "Foo", "name": "parent", "uid": uid }]);
    cluster.create(&kinds::CONFIG_MAP, child).expect("created");
    run(&cluster, CONTROLLERS);
    assert!(cluster.get(&kind, "owned").is_some() && cluster.get(&kinds::CONFIG_MAP, "child").is_some());
    cluster.delete(&kinds::CONFIG_MAP, "owner", &api::DeleteOptions::default()).expect("deleted");
    cluster.delete(&kind, "parent", &api::DeleteOptions::default()).expect("deleted");
    run(&cluster, CONTROLLERS);
    // A driver that starts on this state collects what is left, as one that saw the change does.
    assert!(cluster.get(&kind, "owned").is_none() && cluster.get(&kinds::CONFIG_MAP, "child").is_none());
}

/// An owner that is a custom object, and a ConfigMap that it owns.
fn family(cluster: &Cluster, kind: &Kind) {
    let parent = cluster.create(kind, foo("parent", json!({ "size": 1 }))).expect("created");
    let reference =
        json!({ "apiVersion": "x.io/v1", "kind": "Foo", "name": "parent", "uid": parent["metadata"]["uid"] });
    let mut child = config_map("child");
    child["metadata"]["ownerReferences"] = json!([reference]);
    cluster.create(&kinds::CONFIG_MAP, child).expect("created");
}

fn rest(cluster: &Cluster, driver: &mut Driver, watcher: &mut Watcher) {
    let now = cluster.api.now();
    while step(&cluster.api, driver, watcher, now).expect("in step") {}
}

/// Wakes the garbage collector for it.
fn touch(cluster: &Cluster, finalizer: &str) {
    let change = json!({ "metadata": { "finalizers": [finalizer] } });
    cluster.merge(&kinds::CONFIG_MAP, "child", Part::Main, change).expect("written");
}

#[test]
fn s10_an_owner_is_there_in_whichever_version_it_is_stored() {
    let (cluster, kind) = served();
    let mut driver = Driver::new(CONTROLLERS);
    let mut watcher = driver.load(&cluster.api.store, cluster.api.now()).expect("loaded");
    family(&cluster, &kind);
    rest(&cluster, &mut driver, &mut watcher);
    let mut versions = cluster.get(CRD, "foos.x.io").expect("there")["spec"]["versions"].clone();
    (versions[0]["storage"], versions[1]["storage"]) = (json!(true), json!(false));
    cluster.merge(CRD, "foos.x.io", Part::Main, json!({ "spec": { "versions": versions } })).expect("written");
    rest(&cluster, &mut driver, &mut watcher);
    touch(&cluster, "x.io/first");
    rest(&cluster, &mut driver, &mut watcher);
    let child = cluster.get(&kinds::CONFIG_MAP, "child").expect("its owner is there");
    assert!(!object::is_terminating(&child), "{child}");
    touch(&cluster, "x.io/second");
    let kind = cluster.api.served.now().find("x.io", "v1", "foos").expect("served").clone();
    cluster.delete(&kind, "parent", &api::DeleteOptions::default()).expect("deleted");
    rest(&cluster, &mut driver, &mut watcher);
    assert!(object::is_terminating(&cluster.get(&kinds::CONFIG_MAP, "child").expect("held")), "its owner has gone");
}

/// A definition whose finalizer somebody took off leaves its objects behind; with the next definition they are back.
#[test]
fn s10_owners_that_were_not_served_for_a_while_are_there_again() {
    let (cluster, kind) = served();
    family(&cluster, &kind);
    cluster.delete(CRD, "foos.x.io", &api::DeleteOptions::default()).expect("on its way");
    cluster.merge(CRD, "foos.x.io", Part::Main, json!({ "metadata": { "finalizers": null } })).expect("gone");
    // Also for a server that was started meanwhile.
    let mut driver = Driver::new(CONTROLLERS);
    let mut watcher = driver.load(&cluster.api.store, cluster.api.now()).expect("loaded");
    rest(&cluster, &mut driver, &mut watcher);
    cluster.create(CRD, definition()).expect("created");
    rest(&cluster, &mut driver, &mut watcher);
    touch(&cluster, "x.io/first");
    rest(&cluster, &mut driver, &mut watcher);
    assert!(cluster.get(&kind, "parent").is_some());
    let child = cluster.get(&kinds::CONFIG_MAP, "child").expect("its owner is there");
    assert!(!object::is_terminating(&child), "{child}");
}

/// Conformance, custom resource defaulting for requests and from storage.
#[test]
fn conformance_defaults_that_come_later_are_in_what_was_stored_before() {
    let (cluster, kind) = served();
    cluster.create(&kind, foo("old", json!({ "size": 3 }))).expect("created");
    let mut definition = cluster.get(CRD, "foos.x.io").expect("there");
    for version in definition["spec"]["versions"].as_array_mut().expect("two") {
        let spec = &mut version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
        spec["color"] = json!({ "type": "string", "default": "red" });
    }
    cluster.update(CRD, "foos.x.io", definition).expect("changed");
    run(&cluster, CONTROLLERS);
    let kind = cluster.api.served.now().find("x.io", "v1", "foos").expect("served").clone();
    let read = |name: &str| cluster.api.batch().get(&kind, "default", name).expect("readable").expect("there");
    assert_eq!(read("old")["spec"], json!({ "size": 3, "mode": "fast", "color": "red" }));
    let stored = cluster.api.store.get(&api::key::object(&kind, "default", "old")).expect("stored").value;
    assert!(!String::from_utf8_lossy(&stored).contains("red"), "nothing was written");
    let form = (mainstay_api::table::Representation::Object, mainstay_api::table::Media::Json);
    let include = mainstay_api::table::IncludeObject::Metadata;
    let shown = crate::http::shape::Shape::new(&kind, form, include, cluster.api.now()).one(&stored);
    let shown: Value = serde_json::from_slice(&shown).expect("JSON");
    assert_eq!(shown["spec"]["color"], "red");
}
