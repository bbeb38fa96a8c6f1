//! What a Deployment says of itself: its counts, its conditions, and when it is to be looked at again.

use super::steps::{decided, deployment, set, world_of};
use super::*;
use crate::decision::Write;

const BEFORE: &str = "2027-01-15T07:50:00Z";

fn with(mut object: Value, over: Value) -> Value {
    merge(&mut object, over);
    object
}

fn condition(type_: &str, status: &str, reason: &str) -> Value {
    json!({"type": type_, "status": status, "reason": reason, "message": "m", "lastUpdateTime": BEFORE,
        "lastTransitionTime": BEFORE})
}

/// What its status says after one step, as a merge patch on what it said before.
fn status_of(world: &World) -> Value {
    let mut status = world.get(&DEPLOYMENT, "default", "web")["status"].clone();
    for write in decided(world).writes {
        if let Write::Patch { kind, patch, status: true, .. } = write
            && kind == DEPLOYMENT
            && !patch["status"].is_null()
        {
            merge(&mut status, patch["status"].clone());
        }
    }
    status
}

/// Status, reason and which of its times (update, transition) are of now.
fn shown(status: &Value, type_: &str) -> String {
    let found = status["conditions"].as_array().into_iter().flatten().find(|one| one["type"] == type_);
    let Some(found) = found else { return "none".to_owned() };
    let time = |field: &str| if found[field] == BEFORE { '-' } else { '+' };
    let text = |field: &str| found[field].as_str().unwrap_or("").to_owned();
    format!("{} {} {}{}", text("status"), text("reason"), time("lastUpdateTime"), time("lastTransitionTime"))
}

/// How far a rollout is by what was said of it, and what there is now: the words that `kubectl rollout status` reads.
#[test]
#[expect(clippy::too_many_lines, reason = "a list of cases")]
fn s12_progress_is_said_timed_and_given_up() {
    // 600 seconds after the last update it is 2027-01-15T08:00:00Z, which is now.
    assert_eq!(now().to_string(), "2027-01-15T08:00:00Z");
    let progressing = |status: &str, reason: &str| {
        let available = condition("Available", "True", "MinimumReplicasAvailable");
        json!({"status": {"conditions": [available, condition("Progressing", status, reason)]}})
    };
    let deadline = |seconds: i64| json!({"spec": {"progressDeadlineSeconds": seconds}});
    let said = |status: &str, reason: &str, seconds: i64| with(progressing(status, reason), deadline(seconds));
    let counts = |replicas: i32, updated: i32, ready: i32, available: i32| {
        json!({"status": {"replicas": replicas, "updatedReplicas": updated, "readyReplicas": ready,
            "availableReplicas": available}})
    };
    let none = || json!({});
    let rolling = || vec![set("1", 3, 3, none()), set("2", 2, 1, none())];
    let done = || vec![set("2", 4, 4, none())];
    let as_seen = |over: Value| with(over, counts(5, 2, 4, 4));
    let paused = json!({"spec": {"paused": true}});
    for (story, over, sets, expected, wakes) in [
        ("no deadline", json!({"spec": {"progressDeadlineSeconds": null}}), rolling(), "none", None),
        (
            "no deadline, said before",
            with(progressing("True", "ReplicaSetUpdated"), json!({"spec": {"progressDeadlineSeconds": null}})),
            rolling(),
            "none",
            None,
        ),
        ("no deadline, as upstream says it", deadline(i64::from(i32::MAX)), rolling(), "none", None),
        ("one is made", deadline(600), vec![set("1", 4, 4, none())], "True NewReplicaSetCreated ++", Some(600)),
        (
            "one is made after another was late",
            said("False", "ProgressDeadlineExceeded", 600),
            vec![set("1", 4, 4, none())],
            "True NewReplicaSetCreated ++",
            Some(600),
        ),
        (
            "one is made again and again",
            said("True", "NewReplicaSetCreated", 600),
            vec![set("1", 4, 4, none())],
            "True NewReplicaSetCreated +-",
            Some(600),
        ),
        ("one is found", as_seen(deadline(600)), rolling(), "True FoundNewReplicaSet ++", Some(600)),
        ("it moves", said("True", "FoundNewReplicaSet", 600), rolling(), "True ReplicaSetUpdated +-", Some(600)),
        ("it moves on", said("True", "ReplicaSetUpdated", 600), rolling(), "True ReplicaSetUpdated +-", Some(600)),
        (
            "it stands still",
            as_seen(said("True", "ReplicaSetUpdated", 601)),
            rolling(),
            "True ReplicaSetUpdated --",
            Some(1),
        ),
        (
            "more are updated",
            with(as_seen(said("True", "ReplicaSetUpdated", 601)), counts(5, 1, 4, 4)),
            rolling(),
            "True ReplicaSetUpdated +-",
            Some(601),
        ),
        (
            "more are ready",
            with(as_seen(said("True", "ReplicaSetUpdated", 601)), counts(5, 2, 3, 4)),
            rolling(),
            "True ReplicaSetUpdated +-",
            Some(601),
        ),
        (
            "more are available",
            with(as_seen(said("True", "ReplicaSetUpdated", 601)), counts(5, 2, 4, 3)),
            rolling(),
            "True ReplicaSetUpdated +-",
            Some(601),
        ),
        (
            "fewer old ones",
            with(as_seen(said("True", "ReplicaSetUpdated", 601)), counts(6, 2, 4, 4)),
            rolling(),
            "True ReplicaSetUpdated +-",
            Some(601),
        ),
        (
            "fewer of all",
            with(as_seen(said("True", "ReplicaSetUpdated", 601)), counts(5, 3, 5, 5)),
            rolling(),
            "True ReplicaSetUpdated --",
            Some(1),
        ),
        (
            "it is late",
            as_seen(said("True", "ReplicaSetUpdated", 600)),
            rolling(),
            "False ProgressDeadlineExceeded ++",
            None,
        ),
        (
            "it stays late",
            as_seen(said("False", "ProgressDeadlineExceeded", 600)),
            rolling(),
            "False ProgressDeadlineExceeded --",
            None,
        ),
        ("it is done", said("True", "ReplicaSetUpdated", 600), done(), "True NewReplicaSetAvailable +-", None),
        (
            "it is done, though late",
            said("False", "ProgressDeadlineExceeded", 600),
            done(),
            "True NewReplicaSetAvailable ++",
            None,
        ),
        ("it stays done", said("True", "NewReplicaSetAvailable", 600), done(), "True NewReplicaSetAvailable --", None),
        (
            "it was never said to be done",
            said("False", "NewReplicaSetAvailable", 600),
            done(),
            "True NewReplicaSetAvailable ++",
            None,
        ),
        (
            "a pod of it is lost",
            said("True", "NewReplicaSetAvailable", 600),
            vec![set("2", 4, 3, none())],
            "True NewReplicaSetAvailable --",
            None,
        ),
        (
            "a broken old one is left",
            said("True", "ReplicaSetUpdated", 600),
            vec![set("1", 1, 0, none()), set("2", 4, 4, none())],
            "True ReplicaSetUpdated +-",
            Some(600),
        ),
        (
            "an old one still serves",
            said("True", "ReplicaSetUpdated", 600),
            vec![set("1", 1, 1, none()), set("2", 3, 3, none())],
            "True ReplicaSetUpdated +-",
            Some(600),
        ),
        (
            "more are updated beside the old",
            with(as_seen(said("True", "ReplicaSetUpdated", 601)), counts(4, 1, 4, 4)),
            rolling(),
            "True ReplicaSetUpdated +-",
            Some(601),
        ),
        (
            "an older one is rolled out again",
            said("True", "NewReplicaSetAvailable", 600),
            rolling(),
            "True ReplicaSetUpdated +-",
            Some(600),
        ),
        (
            "the same, and it has yet to move",
            as_seen(said("True", "NewReplicaSetAvailable", 600)),
            rolling(),
            "True NewReplicaSetAvailable --",
            None,
        ),
        (
            "all are new, and not all serve",
            with(said("True", "ReplicaSetUpdated", 601), counts(4, 4, 2, 2)),
            vec![set("2", 4, 2, none())],
            "True ReplicaSetUpdated --",
            Some(1),
        ),
        (
            "paused",
            with(said("True", "ReplicaSetUpdated", 600), paused.clone()),
            rolling(),
            "Unknown DeploymentPaused ++",
            None,
        ),
        (
            "it stays paused",
            with(said("Unknown", "DeploymentPaused", 600), paused),
            rolling(),
            "Unknown DeploymentPaused --",
            None,
        ),
        ("it goes on", said("Unknown", "DeploymentPaused", 600), rolling(), "Unknown DeploymentResumed +-", Some(600)),
    ] {
        let world = world_of(sets.into_iter().chain([deployment(over)]));
        let status = status_of(&world);
        assert_eq!(shown(&status, "Progressing"), expected, "{story}");
        let available = shown(&status, "Available");
        assert!(
            !available.starts_with("True") || ["--", "++"].iter().any(|times| available.ends_with(times)),
            "{story}"
        );
        if story == "it moves on" {
            assert_eq!(available, "True MinimumReplicasAvailable --", "what moves is the rollout");
        }
        let wakes = wakes.map(|seconds| now().checked_add(jiff::SignedDuration::from_secs(seconds)).unwrap());
        assert_eq!(decided(&world).wake_at, wakes, "{story}");
    }
    // A namespace that goes gets no ReplicaSet, and nobody is told of one that was found.
    let namespace = json!({"kind": "Namespace", "metadata": {"name": "default",
        "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x.io/held"]}});
    let world = world_of([namespace, deployment(deadline(600))]);
    assert!(!shown(&status_of(&world), "Progressing").contains("Found"), "{}", status_of(&world));
    let message = |over: Value, sets: Vec<Value>| {
        let status = status_of(&world_of(sets.into_iter().chain([deployment(over)])));
        let found = status["conditions"].as_array().unwrap().iter().find(|one| one["type"] == "Progressing").cloned();
        found.unwrap()["message"].as_str().unwrap().to_owned()
    };
    assert_eq!(message(deadline(600), rolling()), "Found new replica set \"2\"");
    assert_eq!(message(deadline(600), done()), "ReplicaSet \"2\" has successfully progressed.");
    let created = message(deadline(600), vec![]);
    assert!(created.starts_with("Created new replica set \"web-"), "{created}");
}

#[test]
fn a_status_counts_all_replica_sets() {
    let of = |over: Value| json!({"status": over});
    let sets = || {
        [
            set("0", 0, 0, of(json!({"replicas": 1, "terminatingReplicas": 1}))),
            set("1", 3, 2, of(json!({"replicas": 3, "readyReplicas": 3}))),
            set("2", 2, 1, of(json!({"replicas": 2, "readyReplicas": 1, "terminatingReplicas": 2}))),
        ]
    };
    let status = status_of(&world_of(sets().into_iter().chain([deployment(json!({}))])));
    let count = |field: &str| status[field].as_i64().unwrap();
    let fields = [
        "replicas",
        "updatedReplicas",
        "readyReplicas",
        "availableReplicas",
        "unavailableReplicas",
        "terminatingReplicas",
        "observedGeneration",
    ];
    assert_eq!(fields.map(count), [6, 2, 4, 3, 2, 3, 3]);
    assert!(status["collisionCount"].is_null(), "there was none");
    // It is written once.
    let is_status = |write: &&Write| match write {
        Write::Patch { kind, patch, status: true, .. } => *kind == DEPLOYMENT && !patch["status"].is_null(),
        _ => false,
    };
    let first = decided(&world_of(sets().into_iter().chain([deployment(json!({}))])));
    assert_eq!(first.writes.iter().filter(is_status).count(), 1, "{:?}", first.writes);
    let mut world = world_of(sets().into_iter().chain([deployment(json!({}))]));
    world.patch(&DEPLOYMENT, "default", "web", json!({ "status": status }));
    let is_status = |write: &Write| matches!(write, Write::Patch { kind, status: true, .. } if *kind == DEPLOYMENT);
    assert!(!decided(&world).writes.iter().any(is_status), "{:?}", decided(&world).writes);
    // Available while no more are away than may be, and not one more.
    let said = |status: &str, reason: &str| {
        let conditions = [condition("Available", status, reason)];
        json!({"status": {"replicas": 4, "conditions": conditions}})
    };
    let (enough, few) = ("MinimumReplicasAvailable", "MinimumReplicasUnavailable");
    for (over, available, expected) in [
        (json!({}), 3, format!("True {enough} ++")),
        (json!({}), 2, format!("False {few} ++")),
        (said("True", enough), 3, format!("True {enough} --")),
        (said("True", enough), 2, format!("False {few} ++")),
        (said("False", few), 4, format!("True {enough} ++")),
        (said("False", "Other"), 2, format!("False {few} +-")),
    ] {
        let world = world_of([set("2", 4, available, json!({})), deployment(over.clone())]);
        assert_eq!(shown(&status_of(&world), "Available"), expected, "{over} {available}");
    }
}

/// What a ReplicaSet says of pods that are refused: the new one's word first, and none where there is none.
#[test]
fn a_deployment_hands_on_what_its_replica_sets_say() {
    let failing = |reason: &str| {
        json!({"status": {"conditions": [{"type": "Other", "status": "True"}, {"type": "ReplicaFailure",
            "status": "True", "reason": reason, "message": "m", "lastTransitionTime": BEFORE}]}})
    };
    let none = || json!({});
    let before = json!({"status": {"conditions": [condition("ReplicaFailure", "True", "Before"),
        condition("Theirs", "True", "T")]}});
    for (old, new, expected) in [
        (none(), none(), "none"),
        (failing("Old"), none(), "True Old --"),
        (none(), failing("New"), "True New --"),
        (failing("Old"), failing("New"), "True New --"),
    ] {
        let sets = [set("1", 3, 3, old), set("2", 1, 1, new)];
        let status = status_of(&world_of(sets.into_iter().chain([deployment(before.clone())])));
        assert_eq!(shown(&status, "ReplicaFailure"), expected);
        assert_eq!(shown(&status, "Theirs"), "True T --", "other people's conditions stay");
    }
    // Also while the new one is to be made, and may not be: what is counted is written apart, the generation is not
    // seen, and nobody is told of a ReplicaSet that is not there.
    let world = world_of([set("1", 4, 3, failing("Old")), deployment(json!({}))]);
    let writes = decided(&world).writes;
    let statuses: Vec<&Value> = writes
        .iter()
        .filter_map(|write| match write {
            Write::Patch { kind, patch, status: true, .. } if *kind == DEPLOYMENT && !patch["status"].is_null() => {
                Some(&patch["status"])
            }
            _ => None,
        })
        .collect();
    let [first, last] = statuses.as_slice() else { panic!("{statuses:?}") };
    assert_eq!((&first["availableReplicas"], first.get("observedGeneration")), (&json!(3), None));
    assert_eq!(shown(first, "ReplicaFailure"), "True Old --");
    assert_eq!((shown(first, "Progressing"), &last["observedGeneration"]), ("none".to_owned(), &json!(3)));
}
