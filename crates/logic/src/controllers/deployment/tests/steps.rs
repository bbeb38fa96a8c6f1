//! Single decisions of a Deployment, by the ReplicaSets that there are.

use super::*;
use crate::controllers::deployment::rollout::{DESIRED, MAX, REVISION, REVISION_HISTORY};
use crate::decision::{Decision, Waiting, Write};

pub(super) fn deployment(over: Value) -> Value {
    let mut object = json!({
        "kind": "Deployment", "metadata": {"namespace": "default", "name": "web", "uid": "d", "generation": 3,
            "annotations": {REVISION: "2"}},
        "spec": {
            "replicas": 4, "selector": {"matchLabels": {"app": "web"}}, "revisionHistoryLimit": 2,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c",
                "image": "good:2"}]}},
        },
        "status": {"replicas": 4},
    });
    merge(&mut object, over);
    object
}

/// A ReplicaSet of the Deployment: `2` is that of its template.
pub(super) fn set(name: &str, size: i32, available: i32, over: Value) -> Value {
    let owner = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "d", "controller": true});
    let labels = json!({"app": "web", "pod-template-hash": name});
    let mut object = json!({
        "kind": "ReplicaSet", "metadata": {"namespace": "default", "name": name, "uid": name, "generation": 1,
            "ownerReferences": [owner], "labels": labels,
            "creationTimestamp": format!("2026-01-01T00:00:0{name}Z"),
            "annotations": {REVISION: name, DESIRED: "4", MAX: "5"}},
        "spec": {"replicas": size, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels},
            "spec": {"containers": [{"name": "c", "image": format!("good:{name}")}]}}},
        "status": {"replicas": size, "availableReplicas": available, "readyReplicas": available,
            "observedGeneration": 1},
    });
    merge(&mut object, over);
    object
}

fn pod_of(set: &str, name: &str, over: Value) -> Value {
    let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": set, "uid": set, "controller": true});
    let mut object = json!({"kind": "Pod", "metadata": {"namespace": "default", "name": name,
            "ownerReferences": [owner], "labels": {"app": "web", "pod-template-hash": set}},
        "spec": {"nodeName": "n", "containers": []}, "status": {"phase": "Running"}});
    merge(&mut object, over);
    object
}

pub(super) fn world_of(objects: impl IntoIterator<Item = Value>) -> World {
    let mut world = World::default();
    objects.into_iter().for_each(|object| world.put(object));
    world
}

pub(super) fn decided(world: &World) -> Decision {
    (deployment::CONTROLLER.reconcile)(&world.snapshot, &ObjectKey::new("default", "web"), now())
}

fn leaving() -> Value {
    json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x.io/held"]}})
}

/// What becomes of ReplicaSets: `2=3` is a size, `2~` what else is said of it, `new=3` one that is made.
fn shown(decision: &Decision) -> String {
    let of_set = decision.writes.iter().filter_map(|write| match write {
        Write::Create { object, .. } => Some(format!("new={}", object["spec"]["replicas"])),
        Write::Patch { kind, key, patch, .. } if *kind == REPLICA_SET => Some(match &patch["spec"]["replicas"] {
            Value::Null => format!("{}~", key.name),
            size => format!("{}={size}", key.name),
        }),
        Write::Delete { kind, key, .. } if *kind == REPLICA_SET => Some(format!("-{}", key.name)),
        _ => None,
    });
    of_set.collect::<Vec<_>>().join(" ")
}

fn told(decision: &Decision) -> Vec<String> {
    decision.events.iter().map(|event| format!("{}: {}", event.reason, event.message)).collect()
}

/// One step each, and nothing where there is nothing to do.
#[test]
#[expect(clippy::too_many_lines, reason = "a list of cases")]
fn each_step_stays_within_surge_and_unavailable() {
    let recreate = json!({"spec": {"strategy": {"type": "Recreate", "rollingUpdate": null}}});
    let paused = json!({"spec": {"paused": true}});
    let wants = |desired: &str| json!({"metadata": {"annotations": {DESIRED: desired}}});
    let (plain, old_pods) = (json!({}), vec![Waiting::OldPodsRunning]);
    let with = |mut a: Value, b: &Value| {
        merge(&mut a, b.clone());
        a
    };
    let table = [
        ("the first", plain.clone(), vec![], "new=4", vec![]),
        ("none is wanted", json!({"spec": {"replicas": 0}}), vec![], "new=0", vec![]),
        ("a new one beside the old", plain.clone(), vec![set("1", 4, 4, plain.clone())], "new=1", vec![]),
        ("at rest", plain.clone(), vec![set("2", 4, 4, plain.clone())], "", vec![]),
        (
            "the new one grows",
            plain.clone(),
            vec![set("1", 3, 3, plain.clone()), set("2", 1, 1, plain.clone())],
            "2=2",
            vec![],
        ),
        (
            "the old one shrinks",
            plain.clone(),
            vec![set("1", 4, 4, plain.clone()), set("2", 1, 0, plain.clone())],
            "1=3",
            vec![],
        ),
        ("too many of the new", plain.clone(), vec![set("2", 6, 6, plain.clone())], "2=4", vec![]),
        ("paused, one is scaled", paused.clone(), vec![set("1", 2, 2, wants("2"))], "1=4", vec![Waiting::Paused]),
        ("paused, none is made", paused.clone(), vec![set("1", 4, 4, plain.clone())], "", vec![Waiting::Paused]),
        (
            "paused, of those without pods the new one",
            paused.clone(),
            vec![set("1", 0, 0, plain.clone()), set("2", 0, 0, plain.clone())],
            "2=4",
            vec![Waiting::Paused],
        ),
        (
            "paused, of those without pods the latest",
            paused.clone(),
            vec![set("0", 0, 0, plain.clone()), set("1", 0, 0, plain.clone())],
            "1=4",
            vec![Waiting::Paused],
        ),
        (
            "paused, several share",
            with(json!({"spec": {"replicas": 8}}), &paused),
            vec![set("1", 2, 2, plain.clone()), set("2", 2, 2, plain.clone())],
            "1=4 2=5",
            vec![Waiting::Paused],
        ),
        (
            "scaled in the middle of a rollout",
            json!({"spec": {"replicas": 8}}),
            vec![set("1", 2, 2, plain.clone()), set("2", 2, 2, plain.clone())],
            "1=4 2=5",
            vec![],
        ),
        (
            "scaled, and the new one has it all",
            plain.clone(),
            vec![set("1", 2, 2, wants("9")), set("2", 4, 4, plain.clone())],
            "1=0",
            vec![],
        ),
        (
            "the same, not all available",
            plain.clone(),
            vec![set("1", 2, 2, wants("9")), set("2", 4, 3, plain.clone())],
            "1~ 2=3",
            vec![],
        ),
        (
            "the same, told of another number",
            plain.clone(),
            vec![set("1", 2, 2, wants("9")), set("2", 4, 4, wants("9"))],
            "1~ 2=3",
            vec![],
        ),
        (
            "Recreate, scaled while both have pods",
            recreate.clone(),
            vec![set("1", 2, 2, wants("9")), set("2", 2, 2, plain.clone())],
            "1~ 2~",
            vec![],
        ),
        ("Recreate: the old one goes", recreate.clone(), vec![set("1", 4, 4, plain.clone())], "1=0", old_pods.clone()),
        (
            "Recreate: all old ones at once",
            recreate.clone(),
            vec![set("0", 1, 1, plain.clone()), set("1", 3, 3, plain.clone())],
            "0=0 1=0",
            old_pods.clone(),
        ),
        ("Recreate: the new one comes", recreate.clone(), vec![set("1", 0, 0, plain.clone())], "new=4", vec![]),
        (
            "Recreate: the new one comes back",
            recreate.clone(),
            vec![set("1", 0, 0, plain.clone()), set("2", 0, 0, plain.clone())],
            "2=4",
            vec![],
        ),
        (
            "Recreate: a pod of the old one runs",
            recreate.clone(),
            vec![set("1", 0, 0, plain.clone()), pod_of("1", "p", plain.clone())],
            "",
            old_pods.clone(),
        ),
        (
            "Recreate: it goes",
            recreate.clone(),
            vec![set("1", 0, 0, plain.clone()), pod_of("1", "p", leaving())],
            "",
            old_pods,
        ),
        (
            "Recreate: it has ended",
            recreate.clone(),
            vec![set("1", 0, 0, plain.clone()), pod_of("1", "p", json!({"status": {"phase": "Failed"}}))],
            "new=4",
            vec![],
        ),
        (
            "Recreate: somebody else's by now",
            recreate,
            vec![
                set("1", 0, 0, plain.clone()),
                pod_of(
                    "1",
                    "p",
                    json!({"metadata": {"ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet",
                "name": "1", "uid": "1", "controller": false}]}}),
                ),
            ],
            "new=4",
            vec![],
        ),
        (
            "the oldest shrinks first, whatever it is called",
            plain.clone(),
            vec![
                set("0", 4, 4, json!({"metadata": {"creationTimestamp": "2026-01-02T00:00:00Z"}})),
                set("1", 4, 4, plain.clone()),
                set("2", 1, 1, plain.clone()),
            ],
            "1=0 0=2",
            vec![],
        ),
        (
            "scaled, and the new one is too large",
            plain.clone(),
            vec![set("1", 2, 2, wants("9")), set("2", 6, 4, plain.clone())],
            "1~ 2=3",
            vec![],
        ),
        (
            "Recreate, scaled to fewer while both have pods",
            json!({"spec": {"strategy": {"type": "Recreate",
            "rollingUpdate": null}}}),
            vec![set("1", 2, 2, wants("9")), set("2", 3, 3, plain.clone())],
            "1~ 2~",
            vec![],
        ),
        (
            "nothing is wanted, which is said",
            json!({"spec": {"replicas": 0}}),
            vec![set("2", 0, 0, wants("9"))],
            "2~",
            vec![],
        ),
        (
            "Recreate: another controls it by now",
            json!({"spec": {"strategy": {"type": "Recreate",
            "rollingUpdate": null}}}),
            vec![
                set("1", 0, 0, plain.clone()),
                pod_of(
                    "1",
                    "p",
                    json!({"metadata": {"ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet",
                "name": "1", "uid": "1", "controller": false}, {"apiVersion": "apps/v1", "kind": "ReplicaSet",
                "name": "x", "uid": "x", "controller": true}]}}),
                ),
            ],
            "new=4",
            vec![],
        ),
        ("it goes", leaving(), vec![set("1", 4, 4, wants("9"))], "", vec![]),
    ];
    for (story, over, sets, expected, waiting) in table {
        let world = world_of(sets.into_iter().chain([deployment(over)]));
        let decision = decided(&world);
        let mut seen: Vec<&str> = expected.split(' ').collect();
        let found = shown(&decision);
        let mut found: Vec<&str> = found.split(' ').collect();
        seen.sort_unstable();
        found.sort_unstable();
        assert_eq!((found, decision.waiting), (seen, waiting), "{story}");
    }
    let namespace = json!({"kind": "Namespace", "metadata": {"name": "default"}});
    for (over, expected, waiting) in
        [(json!({}), "new=4", vec![]), (leaving(), "", vec![Waiting::NamespaceTerminating])]
    {
        let mut namespace = namespace.clone();
        merge(&mut namespace, over);
        let decision = decided(&world_of([namespace, deployment(json!({}))]));
        assert_eq!((shown(&decision).as_str(), decision.waiting), (expected, waiting));
    }
    let all = decided(&world_of([deployment(json!({"spec": {"selector": {"matchLabels": null}}}))]));
    let message = "SelectingAll: This deployment is selecting all pods. A non-empty selector is required.";
    assert_eq!((all.writes.len(), told(&all)), (0, vec![message.to_owned()]));
}

/// The ReplicaSet that is made: whose it is, what it selects, what its notes are.
#[test]
fn a_new_replica_set_says_what_it_is_of() {
    let applied = "kubectl.kubernetes.io/last-applied-configuration";
    let mine = json!({"metadata": {"annotations": {"team": "db", applied: "{}",
        REVISION: "7", REVISION_HISTORY: "1", DESIRED: "9", MAX: "9", "deprecated.deployment.rollback.to": "1"}},
        "spec": {"minReadySeconds": 7}});
    let world = world_of([deployment(mine.clone()), set("1", 4, 4, json!({}))]);
    let decision = decided(&world);
    let made = |decision: &Decision| {
        let object = decision.writes.iter().find_map(|write| match write {
            Write::Create { object, .. } => Some(object.clone()),
            _ => None,
        });
        object.expect("a ReplicaSet")
    };
    let object = made(&decision);
    let hash = object["metadata"]["labels"]["pod-template-hash"].as_str().unwrap();
    let name = format!("web-{hash}");
    let labels = json!({"app": "web", "pod-template-hash": hash});
    assert_eq!((&object["metadata"]["name"], &object["metadata"]["labels"]), (&json!(name), &labels));
    assert_eq!(object["spec"]["selector"]["matchLabels"], labels);
    assert_eq!(object["spec"]["template"]["metadata"]["labels"], labels);
    assert_eq!(
        (&object["spec"]["minReadySeconds"], &object["metadata"]["ownerReferences"][0]["uid"]),
        (&json!(7), &json!("d"))
    );
    assert_eq!(object["metadata"]["annotations"], json!({"team": "db", DESIRED: "4", MAX: "5", REVISION: "2"}));
    assert_eq!(told(&decision), [format!("ScalingReplicaSet: Scaled up replica set {name} from 0 to 1")]);
    // Nobody is told of one without pods.
    let decision = decided(&world_of([deployment(json!({"spec": {"replicas": 0}}))]));
    assert!(told(&decision).is_empty() && made(&decision)["spec"]["minReadySeconds"] == 0);
    // A name that is taken is not taken: another is found, and how often is said.
    let taken = |name: &str| {
        json!({"kind": "ReplicaSet", "metadata": {"namespace": "default", "name": name, "labels": {"x": "y"}},
            "spec": {"selector": {"matchLabels": {"x": "y"}}, "template": {}}})
    };
    let mut world = world_of([deployment(mine), set("1", 4, 4, json!({})), taken(&name)]);
    let other = made(&decided(&world))["metadata"]["name"].clone();
    assert_ne!(other, json!(name));
    world.run(&deployment::CONTROLLER, &ObjectKey::new("default", "web"), now(), usize::MAX);
    assert_eq!(world.get(&DEPLOYMENT, "default", "web")["status"]["collisionCount"], 1);
    let deployment = world.get(&DEPLOYMENT, "default", "web");
    assert_eq!(deployment["metadata"]["annotations"][REVISION], "2");
}

/// What is noted on ReplicaSets that are there.
#[test]
fn replica_sets_are_told_what_is_wanted_once() {
    let patches = |sets: Vec<Value>, over: Value| -> BTreeMap<String, Value> {
        let decision = decided(&world_of(sets.into_iter().chain([deployment(over)])));
        let of_set = decision.writes.iter().filter_map(|write| match write {
            Write::Patch { kind, key, patch, .. } if *kind == REPLICA_SET => {
                Some((key.name.to_string(), patch.clone()))
            }
            _ => None,
        });
        of_set.collect()
    };
    let notes = |notes: Value| json!({"metadata": {"annotations": notes}});
    let nothing = || json!({});
    // Those with pods, and the new one.
    let stale = notes(json!({DESIRED: "9", MAX: "9"}));
    let seen = patches(
        vec![set("0", 0, 0, stale.clone()), set("1", 3, 3, nothing()), set("2", 2, 2, notes(json!({MAX: "9"})))],
        nothing(),
    );
    assert_eq!(
        seen,
        BTreeMap::from([
            ("1".to_owned(), json!({"spec": {"replicas": 1}})),
            ("2".to_owned(), notes(json!({MAX: "5"})))
        ])
    );
    // What the Deployment carries, and how long its pods must be Ready, goes to the new one alone.
    let over = json!({"metadata": {"annotations": {"team": "db", DESIRED: "x"}}, "spec": {"minReadySeconds": 7}});
    let seen = patches(vec![set("1", 0, 0, nothing()), set("2", 4, 4, nothing())], over.clone());
    let expected = json!({"metadata": {"annotations": {"team": "db"}}, "spec": {"minReadySeconds": 7}});
    assert_eq!(seen, BTreeMap::from([("2".to_owned(), expected)]));
    let told = json!({"metadata": {"annotations": {"team": "db"}}, "spec": {"minReadySeconds": 7}});
    assert_eq!(patches(vec![set("2", 4, 4, told)], over), BTreeMap::new());
    // One that is taken up again is the newest, and remembers which it was.
    let revision = |own: Value, past: Value| {
        let old = set("1", 0, 0, notes(json!({REVISION: "5"})));
        let seen = patches(vec![old, set("2", 4, 4, notes(json!({REVISION: own, REVISION_HISTORY: past})))], nothing());
        seen.get("2").map(|patch| patch["metadata"]["annotations"].clone())
    };
    assert_eq!(revision(json!("2"), Value::Null), Some(json!({REVISION: "6", REVISION_HISTORY: "2"})));
    assert_eq!(revision(json!("4"), json!("1,2")), Some(json!({REVISION: "6", REVISION_HISTORY: "1,2,4"})));
    assert_eq!(revision(json!("6"), Value::Null), None);
    assert_eq!(revision(json!("9"), Value::Null), None);
    assert_eq!(revision(Value::Null, Value::Null), Some(json!({REVISION: "6"})));
    // What moves is told, and nothing else.
    let decision = decided(&world_of([deployment(nothing()), set("1", 4, 4, nothing()), set("2", 1, 0, nothing())]));
    assert_eq!(self::told(&decision), ["ScalingReplicaSet: Scaled down replica set 1 from 4 to 3"]);
}

#[test]
fn the_revision_is_noted_once() {
    let stale = json!({"metadata": {"annotations": {REVISION: "1"}}});
    let sets = [set("0", 1, 1, json!({})), set("1", 2, 2, json!({})), set("2", 1, 1, json!({}))];
    let decision = decided(&world_of(sets.into_iter().chain([deployment(stale)])));
    let is_note = |write: &&Write| match write {
        Write::Patch { kind, patch, .. } => *kind == DEPLOYMENT && !patch["metadata"]["annotations"].is_null(),
        _ => false,
    };
    assert_eq!(decision.writes.iter().filter(is_note).count(), 1, "{:?}", decision.writes);
}

/// Old ones go when the rollout is over: the oldest, empty, and seen to be so.
#[test]
fn history_is_forgotten_when_the_rollout_is_over() {
    let kept = || set("2", 4, 4, json!({}));
    let old = |name: &str, over: Value| set(name, 0, 0, over);
    let one = json!({"spec": {"revisionHistoryLimit": 1}});
    let unseen = json!({"metadata": {"generation": 2}});
    let with_pods = json!({"status": {"replicas": 1}});
    for (story, over, sets, expected) in [
        (
            "the oldest by revision",
            one.clone(),
            vec![
                kept(),
                old("0", json!({"metadata": {"annotations": {REVISION: "1"}}})),
                old("1", json!({"metadata": {"annotations": {REVISION: "0"}}})),
            ],
            "-1",
        ),
        ("no more than there may be", json!({}), vec![kept(), old("0", json!({})), old("1", json!({}))], ""),
        ("a limit of none", json!({"spec": {"revisionHistoryLimit": 0}}), vec![kept(), old("0", json!({}))], "-0"),
        (
            "ten where nothing is said",
            json!({"spec": {"revisionHistoryLimit": null}}),
            vec![kept(), old("0", json!({})), old("1", json!({}))],
            "",
        ),
        (
            "not in the middle",
            one.clone(),
            vec![set("2", 4, 3, json!({})), old("0", json!({})), old("1", json!({}))],
            "",
        ),
        ("not one with pods", one.clone(), vec![kept(), old("0", with_pods), old("1", json!({}))], ""),
        (
            "not one that wants pods",
            one.clone(),
            vec![kept(), set("0", 2, 0, json!({"status": {"replicas": 0}})), old("1", json!({}))],
            "",
        ),
        ("not one that nobody has looked at", one.clone(), vec![kept(), old("0", unseen), old("1", json!({}))], ""),
        ("not one that goes", one, vec![kept(), old("0", leaving()), old("1", json!({})), old("3", json!({}))], "-1"),
    ] {
        let decision = decided(&world_of(sets.into_iter().chain([deployment(over)])));
        let deleted: Vec<String> =
            shown(&decision).split(' ').filter(|one| one.starts_with('-')).map(str::to_owned).collect();
        assert_eq!(deleted.join(" "), expected, "{story}: {}", shown(&decision));
    }
}

/// S10, S12: what is its own is taken, by the change of the ReplicaSet or of the pod alone.
#[test]
fn s10_s12_replica_sets_and_pods_wake_their_deployment() {
    let orphan = |name: &str, over: Value| {
        let mut object = set(name, 1, 1, json!({"metadata": {"ownerReferences": null}}));
        merge(&mut object, over);
        object
    };
    let owner = |world: &World, name: &str| {
        world.get(&REPLICA_SET, "default", name)["metadata"]["ownerReferences"][0]["uid"].clone()
    };
    let only = [deployment::CONTROLLER];
    let mut world = world_of([deployment(json!({})), set("2", 4, 4, json!({}))]);
    world.settle(&only, now());
    world.patch(&DEPLOYMENT, "default", "web", json!({"spec": {"replicas": 5}}));
    let stranger = json!({"metadata": {"labels": {"app": "other"}}});
    world.put(orphan("0", stranger));
    world.put(orphan("1", json!({})));
    let first = decided(&world);
    assert_eq!(first.writes.len(), 1, "an adoption comes before anything else: {:?}", first.writes);
    world.settle(&only, now());
    assert_eq!((owner(&world, "1"), owner(&world, "0")), (json!("d"), json!(null)));
    world.put(orphan("3", json!({})));
    world.settle(&only, now());
    assert_eq!(owner(&world, "3"), json!("d"));
    // Recreate: the last old pod goes, or ends, which no ReplicaSet says.
    for over in [None, Some(json!({"status": {"phase": "Succeeded"}}))] {
        let recreate = json!({"spec": {"strategy": {"type": "Recreate", "rollingUpdate": null}}});
        let mut world = world_of([deployment(recreate), set("1", 0, 0, json!({})), pod_of("1", "p", json!({}))]);
        world.settle(&only, now());
        assert_eq!(world.all(&REPLICA_SET).count(), 1);
        match over {
            None => world.remove(&POD, &ObjectKey::new("default", "p")),
            Some(over) => world.patch(&POD, "default", "p", over),
        }
        world.settle(&only, now());
        assert_eq!(world.all(&REPLICA_SET).count(), 2);
    }
}
