//! Deployments and their ReplicaSets in a small world.

use std::collections::BTreeMap;

use jiff::Timestamp;
use mainstay_api::ObjectKey;
use mainstay_api::kinds::{DEPLOYMENT, POD, REPLICA_SET};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::controllers::{deployment, garbagecollector, replicaset};
use crate::decision::Controller;
use crate::pods::{is_finished, is_ready, is_terminating};
use crate::world::{World, merge};

mod conditions;
mod steps;

const CONTROLLERS: &[Controller] = &[deployment::CONTROLLER, replicaset::CONTROLLER, garbagecollector::CONTROLLER];

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn world(spec: Value) -> World {
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"namespace": "default", "name": "web"},
        "spec": {
            "replicas": 4, "selector": {"matchLabels": {"app": "web"}}, "progressDeadlineSeconds": 600,
                "revisionHistoryLimit": 2,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c",
                "image": "good:1"}]}},
        },
    });
    merge(&mut object["spec"], spec);
    let mut world = World::default();
    world.put(object);
    world
}

fn change(world: &mut World, spec: Value) {
    world.patch(&DEPLOYMENT, "default", "web", json!({ "spec": spec }));
}

fn image(name: &str) -> Value {
    json!({"template": {"spec": {"containers": [{"name": "c", "image": name}]}}})
}

/// One step of one pod: it goes, or becomes Ready where its image is good.
fn kubelet(world: &mut World, name: &str) {
    let pod = world.get(&POD, "default", name);
    let good = pod["spec"]["containers"][0]["image"].as_str().unwrap_or("").starts_with("good");
    if !pod["metadata"]["deletionTimestamp"].is_null() {
        world.remove(&POD, &ObjectKey::new("default", name));
    } else if pod["spec"]["nodeName"].is_null() || (good && pod["status"]["conditions"][0]["status"] != "True") {
        let ready = if good { "True" } else { "False" };
        let conditions = json!([{"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        world.patch(
            &POD,
            "default",
            name,
            json!({"spec": {"nodeName": "n"}, "status": {"phase": "Running", "conditions": conditions}}),
        );
    }
}

fn pods(world: &World) -> Vec<String> {
    world.all(&POD).map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

fn rest(world: &mut World) {
    for _ in 0..200 {
        world.settle(CONTROLLERS, now());
        let before = world.snapshot.revision;
        pods(world).iter().for_each(|name| kubelet(world, name));
        if world.snapshot.revision == before {
            return;
        }
    }
    panic!("it does not come to rest");
}

/// How many pods there are of each image.
fn shape(world: &World) -> BTreeMap<String, usize> {
    let mut shape = BTreeMap::new();
    for pod in world.all(&POD) {
        *shape.entry(pod["spec"]["containers"][0]["image"].as_str().unwrap().to_owned()).or_insert(0) += 1;
    }
    shape
}

fn only(image: &str, count: usize) -> BTreeMap<String, usize> {
    BTreeMap::from([(image.to_owned(), count)])
}

fn condition(world: &World, type_: &str) -> String {
    let conditions = world.get(&DEPLOYMENT, "default", "web")["status"]["conditions"].clone();
    let found = conditions
        .as_array()
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == type_)
        .cloned()
        .unwrap_or_default();
    format!("{} {}", found["status"].as_str().unwrap_or(""), found["reason"].as_str().unwrap_or(""))
}

#[test]
fn a_rollout_and_its_undoing() {
    let mut world = world(json!({}));
    rest(&mut world);
    assert_eq!(shape(&world), only("good:1", 4));
    assert_eq!(condition(&world, "Progressing"), "True NewReplicaSetAvailable");
    assert_eq!(condition(&world, "Available"), "True MinimumReplicasAvailable");
    let first = world.all(&REPLICA_SET).next().unwrap()["metadata"]["name"].as_str().unwrap().to_owned();
    assert_eq!(world.events[0], format!("ScalingReplicaSet: Scaled up replica set {first} from 0 to 4"));
    change(&mut world, image("good:2"));
    rest(&mut world);
    assert_eq!(shape(&world), only("good:2", 4));
    change(&mut world, image("good:1"));
    rest(&mut world);
    assert_eq!(
        (shape(&world), world.all(&REPLICA_SET).count()),
        (only("good:1", 4), 2),
        "the first ReplicaSet is taken up again"
    );
    let annotations = world.get(&REPLICA_SET, "default", &first)["metadata"]["annotations"].clone();
    assert_eq!(annotations["deployment.kubernetes.io/revision"], "3");
    assert_eq!(annotations["deployment.kubernetes.io/revision-history"], "1");
    let deployment = world.get(&DEPLOYMENT, "default", "web");
    assert_eq!(deployment["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "3");
    for number in 3..8 {
        change(&mut world, image(&format!("good:{number}")));
        rest(&mut world);
    }
    assert_eq!(world.all(&REPLICA_SET).count(), 3, "revisionHistoryLimit, and the one in use");
}

#[test]
fn a_broken_rollout_keeps_what_serves_times_out_and_is_corrected() {
    let mut world = world(json!({}));
    rest(&mut world);
    change(&mut world, image("bad:1"));
    rest(&mut world);
    assert_eq!(shape(&world), BTreeMap::from([("bad:1".to_owned(), 2), ("good:1".to_owned(), 3)]));
    let key = ObjectKey::new("default", "web");
    let decision = (deployment::CONTROLLER.reconcile)(&world.snapshot, &key, now());
    let late = decision.wake_at.expect("the deadline is waited for");
    world.run(&deployment::CONTROLLER, &key, late, usize::MAX);
    assert_eq!(condition(&world, "Progressing"), "False ProgressDeadlineExceeded");
    change(&mut world, image("good:2"));
    rest(&mut world);
    assert_eq!(
        (shape(&world), condition(&world, "Progressing")),
        (only("good:2", 4), "True NewReplicaSetAvailable".to_owned())
    );
}

#[test]
fn recreate_never_runs_two_templates_at_once() {
    let mut world = world(json!({"strategy": {"type": "Recreate", "rollingUpdate": null}}));
    rest(&mut world);
    change(&mut world, image("good:2"));
    for _ in 0..20 {
        world.settle(CONTROLLERS, now());
        assert_eq!(shape(&world).len(), 1);
        if let Some(name) = pods(&world).first() {
            kubelet(&mut world, name);
        }
    }
    rest(&mut world);
    assert_eq!(shape(&world), only("good:2", 4));
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut world = world(json!({}));
    rest(&mut world);
    change(&mut world, json!({"paused": true, "replicas": 6}));
    change(&mut world, image("good:2"));
    rest(&mut world);
    assert_eq!(
        (shape(&world), condition(&world, "Progressing")),
        (only("good:1", 6), "Unknown DeploymentPaused".to_owned())
    );
    change(&mut world, json!({"paused": false}));
    rest(&mut world);
    assert_eq!(shape(&world), only("good:2", 6));
}

#[test]
fn a_replica_set_deletes_what_serves_least() {
    let mut world = world(json!({}));
    rest(&mut world);
    let all = pods(&world);
    world.patch(&POD, "default", &all[2], json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}));
    world.patch(
        &POD,
        "default",
        &all[1],
        json!({"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "-5"}}}),
    );
    change(&mut world, json!({"replicas": 2}));
    world.settle(CONTROLLERS, now());
    let going = |name: &str| !world.get(&POD, "default", name)["metadata"]["deletionTimestamp"].is_null();
    assert_eq!(all.iter().map(|name| going(name)).collect::<Vec<_>>(), [false, true, true, false]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// Wherever decisions are cut and whichever pods move first: never fewer Ready pods than asked for, never more pods
    /// than surge allows, and the end is the same (S12).
    #[test]
    fn a_rollout_stays_within_its_bounds_s12(steps in prop::collection::vec((0_usize..3, 0_usize..8, 0_usize..4),
        1..60)) {
        let mut world = world(json!({}));
        rest(&mut world);
        change(&mut world, image("good:2"));
        for (who, which, cut) in steps {
            let all = pods(&world);
            match who {
                0 => {
                    world.run(&deployment::CONTROLLER, &ObjectKey::new("default", "web"), now(), cut);
                }
                1 => for set in world.snapshot.replica_sets.keys().cloned().collect::<Vec<_>>() {
                    world.run(&replicaset::CONTROLLER, &set, now(), cut);
                },
                _ => kubelet(&mut world, &all[which % all.len()]),
            }
            let pods = world.snapshot.pods.values();
            let live: Vec<_> = pods.filter(|pod| !is_terminating(&pod.metadata) && !is_finished(pod)).collect();
            prop_assert!(live.len() <= 5, "{} pods", live.len());
            prop_assert!(live.iter().filter(|pod| is_ready(pod)).count() >= 3, "too few are Ready");
        }
        rest(&mut world);
        prop_assert_eq!(shape(&world), only("good:2", 4));
        prop_assert_eq!(condition(&world, "Progressing"), "True NewReplicaSetAvailable");
    }
}
