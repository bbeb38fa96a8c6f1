//! Autoscalers in a small world.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use mainstay_api::ObjectKey;
use mainstay_api::kinds::{DEPLOYMENT, HORIZONTAL_POD_AUTOSCALER as KIND, STATEFUL_SET};
use serde_json::{Value, json};

use super::CONTROLLER;
use crate::measured::{Measured, PodUsage, Question, Sample, Usage};
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
fn conformance_an_autoscaler_holds_the_size_that_it_finds_for_five_minutes() {
    // At its first look there are metrics, or none yet; or somebody has taken its notes away.
    for first in [&[10, 10, 10, 10][..], &[]] {
        let mut world = world(4, &json!({}));
        for now in (0..=285).step_by(15) {
            measure(&mut world, now, if now == 0 { first } else { &[10, 10, 10, 10] });
            assert_eq!(size(&world), 4, "{now}");
        }
        assert_eq!(condition(&world, "AbleToScale"), "True ScaleDownStabilized");
        measure(&mut world, 375, &[10, 10, 10, 10]);
        assert_eq!(size(&world), 1);
    }
    let mut noted = world(4, &json!({}));
    measure(&mut noted, 0, &[50, 50, 50, 50]);
    let mut forgotten = noted.get(&KIND, "default", "web");
    forgotten["metadata"]["annotations"] = Value::Null;
    noted.put(forgotten);
    measure(&mut noted, 15, &[10, 10, 10, 10]);
    assert_eq!(size(&noted), 4);
    // Metrics that were away for longer than any window.
    let mut dark = world(4, &json!({}));
    for now in (0..=1200).step_by(15) {
        measure(&mut dark, now, &[]);
    }
    measure(&mut dark, 1215, &[10, 10, 10, 10]);
    assert_eq!(size(&dark), 4);
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
    let before = custom.log.len();
    measure(&mut custom, 0, &[1, 1]);
    assert_eq!(custom.log.len(), before, "what was not answered yet is waited for");
}

/// Two that scale one set would undo each other's work for ever: neither does, and both say why.
#[test]
fn conformance_of_two_autoscalers_of_one_target_neither_scales() {
    let mut world = world(2, &json!({}));
    let mut other = world.get(&KIND, "default", "web");
    other["kind"] = json!("HorizontalPodAutoscaler");
    other["metadata"] = json!({ "namespace": "default", "name": "zweb", "generation": 1 });
    world.put(other);
    measure(&mut world, 0, &[100, 100]);
    assert_eq!(size(&world), 2);
    assert_eq!(condition(&world, "ScalingActive"), "False AmbiguousSelector");
    assert!(told(&world, "pods by selector app=web are controlled by multiple HPAs: [default/web default/zweb]"));
    world.remove(&KIND, &ObjectKey::new("default", "zweb"));
    measure(&mut world, 15, &[100, 100]);
    assert_eq!(size(&world), 4);
}

/// Whether an event or the status says so.
fn told(world: &World, text: &str) -> bool {
    world_says(world, text) || world.events.iter().any(|event| event.contains(text))
}

/// What other servers answered to all questions of the autoscaler, one after the other.
fn answer(world: &mut World, now: i64, answers: &[Result<&[(&str, i64)], &str>]) {
    let scaler = world.snapshot.horizontal_pod_autoscalers.get(&ObjectKey::new("default", "web")).unwrap().clone();
    let specs = scaler.spec.metrics.as_deref().unwrap_or_default();
    let questions = specs.iter().filter_map(|spec| Question::of(&scaler.metadata, spec)?.ok());
    let samples = |all: &[(&str, i64)]| {
        all.iter().map(|(name, milli)| Sample { name: (*name).to_owned(), milli: *milli }).collect::<Vec<_>>()
    };
    let answers = answers.iter().map(|answer| answer.map(samples).map_err(str::to_owned));
    let measured = Measured { answers: questions.zip(answers).collect(), ..Measured::default() };
    world.snapshot.measured = std::sync::Arc::new(measured);
    world.ask_anew();
    world.run(&CONTROLLER, &ObjectKey::new("default", "web"), at(now), usize::MAX);
}

fn metric(type_: &str, more: Value, target: Value) -> Value {
    let mut source = json!({ "metric": { "name": "hits" }, "target": target });
    crate::world::merge(&mut source, more);
    json!({ "metrics": [{ "type": type_, type_.to_lowercase(): source }] })
}

#[test]
fn conformance_pods_are_counted_by_what_other_servers_say_of_each() {
    let wanted = metric("Pods", json!({}), json!({ "type": "AverageValue", "averageValue": "10" }));
    let mut busy = world(2, &wanted);
    answer(&mut busy, 0, &[Ok(&[("web-0", 15_000), ("web-1", 25_000), ("other-0", 900_000)])]);
    assert_eq!(size(&busy), 4, "ceil(20/10 * 2)");
    assert!(told(&busy, "New size: 4; reason: pods metric hits above target"));
    let current = &busy.get(&KIND, "default", "web")["status"]["currentMetrics"][0];
    assert_eq!(
        current,
        &json!({ "type": "Pods", "pods": { "metric": { "name": "hits" }, "current": { "averageValue": "20" } } })
    );
    // Who says nothing of a pod says that it does nothing, where there would be more of them.
    let mut missing = world(2, &wanted);
    answer(&mut missing, 0, &[Ok(&[("web-0", 40_000)])]);
    assert_eq!(size(&missing), 4);
    let mut even = world(2, &wanted);
    answer(&mut even, 0, &[Ok(&[("web-0", 20_500)])]);
    assert_eq!(size(&even), 2);
    for (said, words) in [
        (Ok(&[][..]), "did not receive metrics for targeted pods (pods might be unready)"),
        (Err("unable to fetch metrics from custom metrics API: no"), "unable to get metric hits: unable to fetch"),
    ] {
        let mut silent = world(2, &wanted);
        answer(&mut silent, 0, &[said]);
        assert_eq!((size(&silent), condition(&silent, "ScalingActive")), (2, "False FailedGetPodsMetric".to_owned()));
        assert!(told(&silent, words), "{:?}", silent.events);
    }
}

#[test]
fn conformance_an_objects_value_is_shared_by_the_ready_pods_or_by_all() {
    let of = json!({ "describedObject": { "apiVersion": "v1", "kind": "Service", "name": "s" } });
    let value = metric("Object", of.clone(), json!({ "type": "Value", "value": "100" }));
    let mut shared = world(3, &value);
    answer(&mut shared, 0, &[Ok(&[("s", 150_000)])]);
    assert_eq!(size(&shared), 5, "ceil(1.5 * 3)");
    assert!(told(&shared, "reason: Service metric hits above target"));
    let current = &shared.get(&KIND, "default", "web")["status"]["currentMetrics"][0]["object"];
    assert_eq!((&current["current"]["value"], &current["describedObject"]["name"]), (&json!("150"), &json!("s")));
    let mut near = world(2, &value);
    answer(&mut near, 0, &[Ok(&[("s", 105_000)])]);
    assert_eq!(size(&near), 2);
    let mut unready = world(2, &value);
    put_pod(&mut unready, 1, "False", -1000);
    answer(&mut unready, 0, &[Ok(&[("s", 400_000)])]);
    assert_eq!(size(&unready), 4, "one of them is ready");
    let mut each = world(3, &metric("Object", of, json!({ "type": "AverageValue", "averageValue": "100" })));
    answer(&mut each, 0, &[Ok(&[("s", 450_500)])]);
    assert_eq!(size(&each), 5);
    let current = &each.get(&KIND, "default", "web")["status"]["currentMetrics"][0]["object"]["current"];
    assert_eq!(current["averageValue"], "150167m");
    let mut failed = world(2, &value);
    answer(&mut failed, 0, &[Err("nobody knows")]);
    assert_eq!(condition(&failed, "ScalingActive"), "False FailedGetObjectMetric");
    assert!(told(&failed, "unable to get metric hits: Service on default s/nobody knows"));
}

#[test]
fn conformance_what_is_outside_counts_together_and_a_set_may_begin_with_nothing() {
    let selector = json!({ "metric": { "name": "hits", "selector": { "matchLabels": { "q": "a" } } } });
    let wanted = metric("External", selector.clone(), json!({ "type": "AverageValue", "averageValue": "10" }));
    let mut queue = world(3, &wanted);
    answer(&mut queue, 0, &[Ok(&[("", 30_000), ("", 11_000)])]);
    assert_eq!(size(&queue), 5, "ceil(41/10)");
    let shown = "external metric hits(&LabelSelector{MatchLabels:map[string]string{q: a,},\
                 MatchExpressions:[]LabelSelectorRequirement{},}) above target";
    assert!(told(&queue, shown), "{:?}", queue.events);
    let mut empty = wanted.clone();
    empty["minReplicas"] = json!(0);
    let mut asleep = world(0, &empty);
    answer(&mut asleep, 0, &[Ok(&[("", 5_000)])]);
    assert_eq!(size(&asleep), 1);
    let mut resting = world(0, &empty);
    answer(&mut resting, 0, &[Ok(&[("", 0)])]);
    assert_eq!(size(&resting), 0);
    let mut failed = world(2, &metric("External", selector, json!({ "type": "Value", "value": "10" })));
    answer(&mut failed, 0, &[Err("no metrics returned from external metrics API")]);
    assert_eq!((size(&failed), condition(&failed, "ScalingActive")), (2, "False FailedGetExternalMetric".to_owned()));
    // One metric that fails keeps nobody from growing by another one, and from nothing but growing.
    let other = json!({ "type": "External", "external": { "metric": { "name": "other" },
        "target": { "type": "AverageValue", "averageValue": "10" } } });
    let mut both = wanted;
    both["metrics"].as_array_mut().unwrap().push(other);
    let mut grows = world(2, &both);
    answer(&mut grows, 0, &[Err("late"), Ok(&[("", 40_000)])]);
    assert_eq!(size(&grows), 4);
    let mut stays = world(2, &both);
    answer(&mut stays, 0, &[Err("late"), Ok(&[("", 1_000)])]);
    assert_eq!((size(&stays), condition(&stays, "ScalingActive")), (2, "False FailedGetExternalMetric".to_owned()));
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

/// A history that somebody wrote, into the autoscaler of four pods that do nothing.
fn forged(history: &str) -> World {
    let mut world = world(4, &json!({}));
    let annotations = json!({ super::behavior::HISTORY: history });
    world.patch(&KIND, "default", "web", json!({ "metadata": { "annotations": annotations } }));
    world
}

fn noted(world: &World) -> String {
    let all = world.get(&KIND, "default", "web")["metadata"]["annotations"].clone();
    all[super::behavior::HISTORY].as_str().unwrap_or_default().to_owned()
}

/// X4: users may write the history. Whatever they write ends nothing, and holds no size for longer than its window:
/// what cannot have been noted is not there.
#[test]
fn x4_a_forged_history_holds_no_size_for_longer_than_its_window() {
    let (most, least) = (i64::MAX, i64::MIN);
    let soon = at(0).as_second() + 30;
    let table = [
        format!("[[{most}, 4]]"),
        format!("[[{least}, 4]]"),
        "[[-1, 4]]".to_owned(),
        format!("[[{}, 4]]", at(100_000).as_second()),
        format!("[[{soon}, 4]]"),
        format!("[[{soon}, {most}], [{soon}, {least}], [{soon}, 1e300], [{soon}, -1e300], [1e300, 4]]"),
        format!("[[{soon}, 99999999999999999999999], [99999999999999999999999, 4]]"),
        r#"[[], [1], [1, 2, 3], "x", null, {}, ["a", "b"]]"#.to_owned(),
        "{}".to_owned(),
    ];
    for notes in table {
        for history in [
            format!(r#"{{"recommended": {notes}, "scaled": {notes}}}"#),
            format!(r#"{{"recommended": {notes}}}"#),
            notes.clone(),
            format!("{{{notes}"),
        ] {
            let mut world = forged(&history);
            measure(&mut world, 0, &[0, 0, 0, 0]);
            assert_eq!(size(&world), 4, "nothing shrinks at the first look: {history}");
            for later in (15..=375).step_by(15) {
                measure(&mut world, later, &[0, 0, 0, 0]);
            }
            assert_eq!(size(&world), 1, "{history}");
        }
    }
}

/// X4: what was damaged is written anew, in order and within its bounds, and then no more.
#[test]
fn x4_a_damaged_history_is_written_anew_and_bounded() {
    let first = at(-200).as_second();
    let mut many: Vec<(i64, i64)> = (0..190).map(|number| (first + number, 3 + number % 2)).collect();
    many.reverse();
    for history in [
        "nonsense".to_owned(),
        format!(r#"{{"recommended": [[{}, 4]]}}"#, i64::MAX),
        json!({ "recommended": many, "scaled": many }).to_string(),
    ] {
        let mut world = forged(&history);
        measure(&mut world, 0, &[50, 50, 50, 50]);
        let text = noted(&world);
        let notes: BTreeMap<String, Vec<(i64, i32)>> = serde_json::from_str(&text).expect(&history);
        for notes in notes.values() {
            assert!(notes.len() <= 128 && notes.is_sorted_by_key(|(at, _)| *at), "{text}");
            assert!(notes.iter().all(|(noted, _)| *noted <= at(0).as_second()), "{text}");
        }
        let before = world.log.len();
        measure(&mut world, 15, &[50, 50, 50, 50]);
        assert_eq!(world.log.len(), before, "{history}");
    }
}
