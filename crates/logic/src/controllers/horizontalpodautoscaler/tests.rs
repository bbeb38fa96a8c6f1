//! Autoscalers in a small world.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use mainstay_api::ObjectKey;
use mainstay_api::kinds::{DEPLOYMENT, HORIZONTAL_POD_AUTOSCALER as KIND, STATEFUL_SET};
use serde_json::{Value, json};

use super::CONTROLLER;
use crate::measured::{Measured, PodUsage, Usage};
use crate::world::World;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

/// A StatefulSet of so many pods, each with a request of 100m and 100 bytes, ready for a long time; and its autoscaler.
fn world(pods: i32, spec: &Value) -> World {
    let mut world = World::default();
    world.put(json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": { "namespace": "default", "name": "web" },
        "spec": { "replicas": pods, "selector": { "matchLabels": { "app": "web" } }, "template": {},
            "serviceName": "web" },
        "status": { "replicas": pods },
    }));
    for number in 0..pods {
        put_pod(&mut world, number, "True", -1000);
    }
    let mut whole = json!({
        "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web" }, "minReplicas": 1,
            "maxReplicas": 10,
        "metrics": [{ "type": "Resource", "resource": { "name": "cpu",
            "target": { "type": "Utilization", "averageUtilization": 50 } } }],
    });
    crate::world::merge(&mut whole, spec.clone());
    world.put(json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": { "namespace": "default", "name": "web", "generation": 1 }, "spec": whole,
    }));
    world
}

fn put_pod(world: &mut World, number: i32, ready: &str, started: i64) {
    let time = at(started).to_string();
    world.put(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": "default", "name": format!("web-{number}"), "uid": format!("pod-{number}"),
            "labels": { "app": "web" } },
        "spec": { "nodeName": "n", "containers": [{ "name": "c", "resources": {
            "requests": { "cpu": "100m", "memory": "100" } } }] },
        "status": {
            "phase": "Running", "startTime": time,
            "conditions": [{ "type": "Ready", "status": ready, "lastTransitionTime": time }],
        },
    }));
}

/// What each of the first pods uses, in thousandths of a core; then all autoscalers are asked.
fn measure(world: &mut World, now: i64, used: &[i64]) {
    let pod = |cpu_milli: i64| PodUsage {
        at: at(now),
        window: SignedDuration::from_secs(15),
        containers: BTreeMap::from([("c".to_owned(), Usage { cpu_milli, memory: 70 })]),
    };
    let pods = used.iter().enumerate().map(|(number, cpu)| (format!("pod-{number}"), pod(*cpu))).collect();
    world.snapshot.measured = std::sync::Arc::new(Measured { pods, ..Measured::default() });
    world.ask_anew();
    world.run(&CONTROLLER, &ObjectKey::new("default", "web"), at(now), usize::MAX);
}

fn size(world: &World) -> i64 {
    world.get(&STATEFUL_SET, "default", "web")["spec"]["replicas"].as_i64().unwrap()
}

fn condition(world: &World, type_: &str) -> String {
    let status = world.get(&KIND, "default", "web")["status"].clone();
    let all = status["conditions"].as_array().unwrap();
    let found = all.iter().find(|condition| condition["type"] == type_).unwrap();
    format!("{} {}", found["status"].as_str().unwrap(), found["reason"].as_str().unwrap())
}

#[test]
fn a_busy_set_grows_and_says_why() {
    let mut world = world(2, &json!({}));
    measure(&mut world, 0, &[100, 100]);
    assert_eq!(size(&world), 4);
    assert!(
        world.events.contains(
            &"SuccessfulRescale: New size: 4; reason: cpu resource utilization (percentage of request) above target"
                .to_owned()
        ),
        "{:?}",
        world.events
    );
    assert_eq!(condition(&world, "AbleToScale"), "True SucceededRescale");
    assert_eq!(condition(&world, "ScalingActive"), "True ValidMetricFound");
    let status = world.get(&KIND, "default", "web")["status"].clone();
    assert_eq!((&status["currentReplicas"], &status["desiredReplicas"]), (&json!(2), &json!(4)));
    let current = &status["currentMetrics"][0]["resource"]["current"];
    assert_eq!((&current["averageUtilization"], &current["averageValue"]), (&json!(100), &json!("100m")));
}

#[test]
fn near_enough_is_left_alone() {
    let mut world = world(2, &json!({}));
    measure(&mut world, 0, &[54, 54]);
    assert_eq!(size(&world), 2);
    assert_eq!(condition(&world, "AbleToScale"), "True ReadyForNewScale");
    assert_eq!(condition(&world, "ScalingLimited"), "False DesiredWithinRange");
}

#[test]
fn a_set_shrinks_only_when_nothing_larger_was_recommended_for_five_minutes() {
    let mut world = world(4, &json!({}));
    measure(&mut world, 0, &[50, 50, 50, 50]);
    measure(&mut world, 15, &[10, 10, 10, 10]);
    assert_eq!((size(&world), condition(&world, "AbleToScale")), (4, "True ScaleDownStabilized".to_owned()));
    for now in (30..=285).step_by(15) {
        measure(&mut world, now, &[10, 10, 10, 10]);
        assert_eq!(size(&world), 4, "{now}");
    }
    for now in (300..=420).step_by(15) {
        measure(&mut world, now, &[10, 10, 10, 10]);
    }
    assert_eq!(size(&world), 1, "ceil(4 * 10/50)");
    assert!(world.events.iter().any(|event| event.ends_with("reason: All metrics below target")), "{:?}", world.events);
}

#[test]
fn growth_is_bounded_by_rate_and_by_the_largest_size() {
    let mut unruled = world(1, &json!({}));
    measure(&mut unruled, 0, &[1000]);
    assert_eq!((size(&unruled), condition(&unruled, "ScalingLimited")), (4, "True ScaleUpLimit".to_owned()));
    let mut small = world(2, &json!({ "maxReplicas": 3 }));
    measure(&mut small, 0, &[1000, 1000]);
    assert_eq!((size(&small), condition(&small, "ScalingLimited")), (3, "True TooManyReplicas".to_owned()));
    let rules = json!({ "behavior": { "scaleUp": {
        "stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [{ "type": "Pods", "value": 1,
            "periodSeconds": 60 }],
    } } });
    let mut slow = world(2, &rules);
    measure(&mut slow, 0, &[1000, 1000]);
    assert_eq!(size(&slow), 3);
    measure(&mut slow, 15, &[1000, 1000]);
    assert_eq!((size(&slow), condition(&slow, "ScalingLimited")), (3, "True ScaleUpLimit".to_owned()), "one a minute");
    measure(&mut slow, 61, &[1000, 1000]);
    assert_eq!(size(&slow), 4);
    let mut frozen = world(2, &json!({ "behavior": { "scaleUp": { "selectPolicy": "Disabled" } } }));
    measure(&mut frozen, 0, &[1000, 1000]);
    assert_eq!(size(&frozen), 2);
}

#[test]
fn what_is_not_known_counts_against_the_change() {
    let mut missing = world(4, &json!({}));
    measure(&mut missing, 0, &[100, 100, 100]);
    assert_eq!(size(&missing), 6, "300 of 400 asked for: 1.5 times 4, not 2 times");
    let mut starting = world(2, &json!({}));
    put_pod(&mut starting, 2, "False", -5);
    measure(&mut starting, 0, &[100, 100, 900]);
    assert_eq!(size(&starting), 4, "the one that starts uses nothing");
    let mut none = world(2, &json!({}));
    measure(&mut none, 0, &[]);
    assert_eq!((size(&none), condition(&none, "ScalingActive")), (2, "False FailedGetResourceMetric".to_owned()));
    assert!(world_says(&none, "no metrics returned from resource metrics API"));
    assert!(
        none.events
            .iter()
            .any(|event| event.starts_with("FailedComputeMetricsReplicas: invalid metrics (1 invalid out of 1)"))
    );
}

fn world_says(world: &World, text: &str) -> bool {
    world.get(&KIND, "default", "web")["status"].to_string().contains(text)
}

#[test]
fn sizes_outside_the_range_are_brought_into_it_whatever_is_used() {
    let mut large = world(12, &json!({}));
    measure(&mut large, 0, &[]);
    assert_eq!(size(&large), 10);
    let mut small = world(1, &json!({ "minReplicas": 3 }));
    measure(&mut small, 0, &[]);
    assert_eq!(size(&small), 3);
    let mut off = world(0, &json!({}));
    measure(&mut off, 0, &[]);
    assert_eq!((size(&off), condition(&off, "ScalingActive")), (0, "False ScalingDisabled".to_owned()));
}

#[test]
fn average_values_and_other_targets() {
    let memory = json!([{ "type": "Resource", "resource": { "name": "memory",
        "target": { "type": "AverageValue", "averageValue": "35" } } }]);
    let mut bytes = world(2, &json!({ "metrics": memory }));
    measure(&mut bytes, 0, &[1, 1]);
    assert_eq!(size(&bytes), 4);
    let mut gone = world(2, &json!({ "scaleTargetRef": { "kind": "Deployment", "name": "x" } }));
    measure(&mut gone, 0, &[1, 1]);
    assert_eq!(condition(&gone, "AbleToScale"), "False FailedGetScale");
    assert!(world_says(&gone, "deployments.apps \\\"x\\\" not found"));
    assert_eq!(gone.get(&DEPLOYMENT, "default", "x"), Value::Null);
    let pods = json!([{ "type": "Pods", "pods": { "metric": { "name": "hits" },
        "target": { "type": "AverageValue", "averageValue": "1" } } }]);
    let mut custom = world(2, &json!({ "metrics": pods }));
    measure(&mut custom, 0, &[1, 1]);
    assert_eq!(condition(&custom, "ScalingActive"), "False FailedGetPodsMetric");
}

/// The history is on the object: a controller that begins anew forgets nothing.
#[test]
fn s11_a_restart_forgets_no_window() {
    let mut world = world(4, &json!({}));
    measure(&mut world, 0, &[50, 50, 50, 50]);
    let noted = world.get(&KIND, "default", "web")["metadata"]["annotations"][super::behavior::HISTORY].clone();
    assert!(noted.as_str().is_some_and(|text| text.contains("recommended")), "{noted}");
    let before = world.log.len();
    measure(&mut world, 15, &[50, 50, 50, 50]);
    assert_eq!(world.log.len(), before, "nothing new is nothing written");
}
