//! Disruption budgets in a small world.

use jiff::{SignedDuration, Timestamp};
use mainstay_api::ObjectKey;
use mainstay_api::kinds::{POD, POD_DISRUPTION_BUDGET};
use serde_json::{Value, json};

use crate::controllers::disruption;
use crate::decision::Controller;
use crate::world::World;

const CONTROLLERS: &[Controller] = &[disruption::CONTROLLER];

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn pod(world: &mut World, name: &str, owner: Value, ready: bool) {
    let status = if ready { "True" } else { "False" };
    world.put(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "default", "name": name, "labels": {"app": "web"}, "ownerReferences": owner},
        "spec": {"nodeName": "n", "containers": []},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": status}]},
    }));
}

/// A budget over `ready` ready pods of a StatefulSet that shall have five.
fn world(spec: Value, ready: usize) -> World {
    let mut world = World::default();
    world.put(json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"namespace": "default", "name": "web",
            "uid": "uid-web"},
        "spec": {"replicas": 5, "selector": {}, "template": {}, "serviceName": "web"},
    }));
    for number in 0..5 {
        let owner = json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "uid-web",
            "controller": true}]);
        pod(&mut world, &format!("web-{number}"), owner, number < ready);
    }
    let mut spec = spec;
    spec["selector"] = json!({"matchLabels": {"app": "web"}});
    world.put(json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
        "metadata": {"namespace": "default", "name": "budget", "generation": 1}, "spec": spec, "status": {},
    }));
    world.settle(CONTROLLERS, now());
    world
}

fn status(world: &World) -> Value {
    world.get(&POD_DISRUPTION_BUDGET, "default", "budget")["status"].clone()
}

/// (allowed, current, desired, expected)
fn figures(world: &World) -> [i64; 4] {
    let status = status(world);
    ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"]
        .map(|field| status[field].as_i64().unwrap())
}

fn condition(world: &World) -> String {
    let condition = &status(world)["conditions"][0];
    format!(
        "{}={} {}",
        condition["type"].as_str().unwrap(),
        condition["status"].as_str().unwrap(),
        condition["reason"].as_str().unwrap()
    )
}

#[test]
fn what_is_allowed_is_what_is_healthy_beyond_what_is_needed() {
    for (spec, ready, expected) in [
        (json!({"minAvailable": 3}), 5, [2, 5, 3, 5]),
        (json!({"minAvailable": 3}), 2, [0, 2, 3, 5]),
        (json!({"minAvailable": "50%"}), 4, [1, 4, 3, 5]),
        (json!({"maxUnavailable": 1}), 5, [1, 5, 4, 5]),
        (json!({"maxUnavailable": "30%"}), 5, [2, 5, 3, 5]),
        (json!({"maxUnavailable": 0}), 5, [0, 5, 5, 5]),
        (json!({}), 5, [4, 5, 1, 5]),
    ] {
        let world = world(spec.clone(), ready);
        assert_eq!(figures(&world), expected, "{spec}");
        let reason = if expected[0] > 0 { "True SufficientPods" } else { "False InsufficientPods" };
        assert_eq!(condition(&world), format!("DisruptionAllowed={reason}"), "{spec}");
        world.assert_quiet(CONTROLLERS, now());
    }
}

#[test]
fn an_evicted_pod_does_not_count_until_it_is_gone_or_time_is_up() {
    let mut world = world(json!({"maxUnavailable": 2}), 5);
    world.patch(
        &POD_DISRUPTION_BUDGET,
        "default",
        "budget",
        json!({"status": {"disruptedPods": {"web-0": now().to_string()}}}),
    );
    world.settle(CONTROLLERS, now());
    assert_eq!(figures(&world)[..2], [1, 4]);
    let late = now().checked_add(SignedDuration::from_secs(120)).unwrap();
    let decision = (disruption::CONTROLLER.reconcile)(&world.snapshot, &ObjectKey::new("default", "budget"), now());
    assert_eq!(decision.wake_at, Some(late));
    world.run(&disruption::CONTROLLER, &ObjectKey::new("default", "budget"), late, usize::MAX);
    assert_eq!((figures(&world)[0], status(&world)["disruptedPods"].clone()), (2, Value::Null));
    let words = "NotDeleted: Pod was expected by PDB default/budget to be deleted but it wasn't";
    assert!(world.events.contains(&words.to_owned()));
    world.delete(&POD, "default", "web-1", None);
    world.settle(CONTROLLERS, now());
    assert_eq!(figures(&world)[..2], [1, 4], "what goes is not healthy");
}

#[test]
fn pods_of_nobody_and_of_an_unknown_workload_are_told_of() {
    let mut world = world(json!({"maxUnavailable": 1}), 5);
    pod(&mut world, "lone", Value::Null, true);
    world.settle(CONTROLLERS, now());
    assert_eq!(figures(&world), [2, 6, 4, 5]);
    assert!(
        world.events.iter().any(|event| event.starts_with("UnmanagedPods: Pods selected by this PodDisruptionBudget"))
    );
    let owner = json!([{"apiVersion": "example.com/v1", "kind": "Thing", "name": "t", "uid": "u", "controller": true}]);
    pod(&mut world, "lone", owner, true);
    world.settle(CONTROLLERS, now());
    assert_eq!((figures(&world)[0], condition(&world).as_str()), (0, "DisruptionAllowed=False SyncFailed"));
    assert_eq!(status(&world)["conditions"][0]["message"], "found no controllers for pod \"lone\"");
}
