use serde_json::{Value, json};

use super::*;
use crate::world::World;

const ALL: &[Controller] = &[CONTROLLER];

fn definition(plural: &str, kind: &str, group: &str) -> Value {
    json!({
        "kind": "CustomResourceDefinition", "metadata": { "name": format!("{plural}.{group}") },
        "spec": {
            "group": group, "scope": "Namespaced", "names": { "plural": plural,
                "singular": plural.trim_end_matches('s'), "kind": kind, "listKind": format!("{kind}List") },
            "versions": [{ "name": "v1", "served": true, "storage": true,
                "schema": { "openAPIV3Schema": { "type": "object" } } }],
        },
    })
}

fn condition(world: &World, name: &str, type_: &str) -> String {
    let definition = world.get(&KIND, "", name);
    let all = definition["status"]["conditions"].as_array().cloned().unwrap_or_default();
    all.iter().filter(|one| one["type"] == type_).map(|one| format!("{} {}", one["status"], one["reason"])).collect()
}

#[test]
fn names_are_accepted_once_in_a_group_and_freed_with_their_definition() {
    let mut world = World::default();
    world.put(definition("foos", "Foo", "x.io"));
    world.settle(ALL, Timestamp::UNIX_EPOCH);
    assert_eq!(condition(&world, "foos.x.io", "Established"), r#""True" "InitialNamesAccepted""#);
    world.put(definition("bars", "Foo", "x.io"));
    world.put(definition("foos", "Foo", "y.io"));
    world.settle(ALL, Timestamp::UNIX_EPOCH);
    assert_eq!(condition(&world, "foos.y.io", "Established"), r#""True" "InitialNamesAccepted""#);
    assert_eq!(condition(&world, "bars.x.io", "NamesAccepted"), r#""False" "KindConflict""#);
    assert_eq!(condition(&world, "bars.x.io", "Established"), r#""False" "NotAccepted""#);
    assert!(world.snapshot.registry.versions("x.io", "bars").is_empty());
    world.delete(&KIND, "", "foos.x.io", None);
    world.settle(ALL, Timestamp::UNIX_EPOCH);
    assert_eq!(condition(&world, "bars.x.io", "Established"), r#""True" "InitialNamesAccepted""#);
    assert_eq!(world.snapshot.registry.versions("x.io", "bars").len(), 1);
    assert!(world.snapshot.registry.versions("x.io", "foos").is_empty());
}

#[test]
fn a_definition_goes_when_its_last_object_has_gone() {
    let mut world = World::default();
    world.put(definition("foos", "Foo", "x.io"));
    world.settle(ALL, Timestamp::UNIX_EPOCH);
    for (name, finalizers) in [("a", json!([])), ("b", json!(["x.io/hold"]))] {
        world.put(json!({ "apiVersion": "x.io/v1", "kind": "Foo", "metadata": { "name": name, "namespace": "n",
            "finalizers": finalizers } }));
    }
    let cleanup = json!({ "metadata": { "finalizers": [CLEANUP], "deletionTimestamp": "2026-01-01T00:00:00Z" } });
    world.patch(&KIND, "", "foos.x.io", cleanup);
    world.settle(ALL, Timestamp::UNIX_EPOCH);
    let kind = world.snapshot.registry.stored("x.io", "foos").expect("served until it is gone").clone();
    assert!(world.get(&kind, "n", "a").is_null(), "it had nothing to wait for");
    assert!(!world.get(&kind, "n", "b")["metadata"]["deletionTimestamp"].is_null());
    assert_eq!(condition(&world, "foos.x.io", "Terminating"), r#""True" "InstanceDeletionInProgress""#);
    world.patch(&kind, "n", "b", json!({ "metadata": { "finalizers": null } }));
    world.settle(ALL, Timestamp::UNIX_EPOCH);
    assert!(world.get(&KIND, "", "foos.x.io").is_null());
    assert!(world.snapshot.registry.versions("x.io", "foos").is_empty());
}
