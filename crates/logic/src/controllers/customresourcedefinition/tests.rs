//! CustomResourceDefinitions in a small world.

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

/// S12: what waits for a name is decided again when whoever has it takes another one.
#[test]
fn s12_a_name_that_a_definition_gives_up_is_anothers() {
    let mut world = World::default();
    let with = |plural: &str, kind: &str, short: &str| {
        let mut definition = definition(plural, kind, "x.io");
        definition["spec"]["names"]["shortNames"] = json!([short]);
        definition
    };
    world.put(with("foos", "Foo", "f"));
    world.settle(ALL, Timestamp::UNIX_EPOCH);
    world.put(with("bars", "Bar", "f"));
    world.settle(ALL, Timestamp::UNIX_EPOCH);
    assert_eq!(condition(&world, "bars.x.io", "Established"), r#""False" "NotAccepted""#);
    world.patch(&KIND, "", "foos.x.io", json!({"spec": {"names": {"shortNames": ["fo"]}}}));
    world.settle(ALL, Timestamp::UNIX_EPOCH);
    assert_eq!(condition(&world, "bars.x.io", "Established"), r#""True" "InitialNamesAccepted""#);
    world.assert_quiet(ALL, Timestamp::UNIX_EPOCH);
}

#[test]
fn a_definition_waits_for_any_name_that_another_of_its_group_has() {
    // The other one has plural foos, singular foo, kind Foo, listKind FooList and a short name.
    for (names, refused) in [
        (json!({"plural": "bars", "kind": "Bar"}), None),
        (json!({"plural": "foo", "kind": "Bar"}), Some("PluralConflict")),
        (json!({"plural": "f", "kind": "Bar"}), Some("PluralConflict")),
        (json!({"plural": "bars", "kind": "Bar", "singular": "foos"}), Some("SingularConflict")),
        (json!({"plural": "bars", "kind": "Bar", "singular": "foo"}), Some("SingularConflict")),
        (json!({"plural": "bars", "kind": "Bar", "shortNames": ["b", "foo"]}), Some("ShortNamesConflict")),
        (json!({"plural": "bars", "kind": "Bar", "shortNames": ["f"]}), Some("ShortNamesConflict")),
        (json!({"plural": "bars", "kind": "Bar", "shortNames": ["g"]}), None),
        (json!({"plural": "bars", "kind": "Foo"}), Some("KindConflict")),
        (json!({"plural": "bars", "kind": "FooList"}), Some("KindConflict")),
        (json!({"plural": "bars", "kind": "Bar", "listKind": "Foo"}), Some("ListKindConflict")),
        (json!({"plural": "bars", "kind": "Bar", "listKind": "FooList"}), Some("ListKindConflict")),
    ] {
        let mut world = World::default();
        let mut first = definition("foos", "Foo", "x.io");
        first["spec"]["names"]["shortNames"] = json!(["f"]);
        world.put(first);
        world.settle(ALL, Timestamp::UNIX_EPOCH);
        let name = format!("{}.x.io", names["plural"].as_str().unwrap());
        let mut second = definition("bars", "Bar", "x.io");
        second["metadata"]["name"] = json!(name);
        second["spec"]["names"] = names.clone();
        world.put(second);
        world.settle(ALL, Timestamp::UNIX_EPOCH);
        let expected = refused.map_or(r#""True" "NoConflicts""#.to_owned(), |why| format!(r#""False" "{why}""#));
        assert_eq!(condition(&world, &name, "NamesAccepted"), expected, "{names}");
        let left = (CONTROLLER.reconcile)(&world.snapshot, &ObjectKey::new("", &*name), Timestamp::UNIX_EPOCH);
        assert_eq!(left.waiting.len(), usize::from(refused.is_some()), "{names}");
    }
}

/// Objects of a definition that was served once are served on, whatever its new names are.
#[test]
fn a_definition_that_was_established_stays_so_and_its_conditions_keep_their_time() {
    let at = |second| Timestamp::from_second(second).unwrap();
    let mut world = World::default();
    world.put(definition("foos", "Foo", "x.io"));
    world.put(definition("bars", "Bar", "x.io"));
    world.settle(ALL, at(10));
    let of = |world: &World, type_: &str| {
        let all = world.get(&KIND, "", "bars.x.io")["status"]["conditions"].clone();
        let one = all.as_array().unwrap().iter().find(|one| one["type"] == type_).cloned().unwrap();
        let time: Timestamp = one["lastTransitionTime"].as_str().unwrap().parse().unwrap();
        (one["status"].clone(), time.as_second())
    };
    let short = |name: &str| json!({"spec": {"names": {"shortNames": [name]}}});
    for (second, name, accepted, since) in
        [(20, "b", "True", 10), (30, "foo", "False", 30), (40, "foos", "False", 30), (50, "b", "True", 50)]
    {
        world.patch(&KIND, "", "bars.x.io", short(name));
        world.settle(ALL, at(second));
        assert_eq!(of(&world, "NamesAccepted"), (json!(accepted), since), "{name}");
        assert_eq!(of(&world, "Established"), (json!("True"), 10), "{name}");
        let names = world.get(&KIND, "", "bars.x.io")["status"]["acceptedNames"]["shortNames"].clone();
        assert_eq!(names, json!(["b"]), "{name}");
        let message = world.get(&KIND, "", "bars.x.io")["status"]["conditions"].to_string();
        assert_eq!(message.contains(&format!("\\\"{name}\\\" is already in use")), accepted == "False", "{message}");
    }
}

#[test]
fn a_definition_on_its_way_out_keeps_the_finalizers_of_others_and_waits_for_its_objects() {
    for (held, left) in [
        (json!([CLEANUP]), Value::Null),
        (json!(["x.io/a", CLEANUP]), json!(["x.io/a"])),
        (json!(["x.io/a"]), json!(["x.io/a"])),
    ] {
        let mut world = World::default();
        world.put(definition("foos", "Foo", "x.io"));
        world.settle(ALL, Timestamp::UNIX_EPOCH);
        world.put(json!({ "apiVersion": "x.io/v1", "kind": "Foo", "metadata": { "name": "a", "namespace": "n",
            "finalizers": ["x.io/hold"] } }));
        let going = json!({"finalizers": held, "deletionTimestamp": "2026-01-01T00:00:00Z"});
        world.patch(&KIND, "", "foos.x.io", json!({ "metadata": going }));
        world.settle(ALL, Timestamp::UNIX_EPOCH);
        let ours = held.as_array().unwrap().iter().any(|name| name == CLEANUP);
        let key = ObjectKey::new("", "foos.x.io");
        let decision = (CONTROLLER.reconcile)(&world.snapshot, &key, Timestamp::UNIX_EPOCH);
        assert_eq!((decision.writes.len(), decision.waiting.len()), (0, usize::from(ours)), "{held}");
        let kind = world.snapshot.registry.stored("x.io", "foos").expect("served until it is gone").clone();
        assert_eq!(world.get(&kind, "n", "a")["metadata"]["deletionTimestamp"].is_null(), !ours, "{held}");
        if ours {
            world.patch(&kind, "n", "a", json!({ "metadata": { "finalizers": null } }));
            world.settle(ALL, Timestamp::UNIX_EPOCH);
        }
        assert_eq!(world.get(&KIND, "", "foos.x.io")["metadata"]["finalizers"], left, "{held}");
    }
}
