//! Single decisions, by the state of each pod: what is taken away, what is made, what is waited for.

use super::fields::{change, decided, going, work};
use super::*;
use crate::decision::Waiting;

/// What a pod can be like.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Is {
    Well,
    Unready,
    NeverReady,
    Crashing,
}

fn let_be(world: &mut World, name: &str, is: Is) {
    match is {
        Is::Well => report(world, name, "True", 200),
        Is::Unready => report(world, name, "False", 300),
        Is::NeverReady => report(world, name, "False", 100),
        Is::Crashing => crash(world, name),
    }
}

fn of(policy: &str, strategy: &str) -> World {
    let mut world = world(json!({"podManagementPolicy": policy, "updateStrategy": {"type": strategy}}));
    rest(&mut world);
    world
}

#[test]
fn scale_in_takes_the_highest_alone_and_halts_where_a_pod_may_recover_s5() {
    use Is::*;
    let table = [
        // Those that stay, the lower and the higher that go, whether the template is another by now.
        (["OrderedReady", "RollingUpdate"], [Well, Well, Well], false, vec!["web-2"], None),
        (["OrderedReady", "RollingUpdate"], [Unready, Well, Well], false, vec![], Some(0)),
        (["OrderedReady", "RollingUpdate"], [Well, Well, Unready], false, vec!["web-2"], None),
        (["OrderedReady", "RollingUpdate"], [Well, Unready, Well], false, vec!["web-2"], None),
        (["OrderedReady", "RollingUpdate"], [Well, Unready, Unready], false, vec![], Some(1)),
        (["OrderedReady", "RollingUpdate"], [Well, Unready, Crashing], false, vec![], Some(1)),
        (["OrderedReady", "RollingUpdate"], [Well, Unready, Crashing], true, vec!["web-2"], None),
        (["OrderedReady", "RollingUpdate"], [Well, Unready, NeverReady], true, vec!["web-2"], None),
        (["OrderedReady", "RollingUpdate"], [Well, Unready, Unready], true, vec![], Some(1)),
        (["OrderedReady", "OnDelete"], [Well, Unready, Crashing], true, vec![], Some(1)),
        (["Parallel", "RollingUpdate"], [Unready, Unready, Unready], false, vec!["web-2"], None),
    ];
    for ([policy, strategy], states, is_changed, expected, waits_for) in table {
        let mut world = of(policy, strategy);
        for (name, is) in ["web-0", "web-1", "web-2"].into_iter().zip(states) {
            let_be(&mut world, name, is);
        }
        change(&mut world, json!({"replicas": 1}));
        if is_changed {
            change(&mut world, image("good:2")["spec"].clone());
        }
        work(&mut world, now());
        assert_eq!(going(&world), expected, "{policy} {strategy} {states:?} {is_changed}");
        let waiting = decided(&world, now()).waiting;
        let awaited = match waits_for {
            Some(ordinal) => Waiting::PredecessorNotReady { ordinal },
            None => Waiting::PodTerminating { ordinal: 2 },
        };
        assert!(waiting.contains(&awaited), "{policy} {strategy} {states:?} {is_changed}: {waiting:?}");
    }
}

#[test]
fn a_broken_pod_goes_out_of_turn_unless_the_new_revision_has_failed_just_now_s7() {
    // web-0 was Ready and crashes; web-2 is old, new and well, or new and broken.
    for (web_2, expected) in [("good:1", vec!["web-0"]), ("good:2", vec!["web-0"]), ("bad:2", vec![])] {
        let mut world = of("OrderedReady", "RollingUpdate");
        if web_2 == "good:1" {
            change(&mut world, image("good:2")["spec"].clone());
        } else {
            change(&mut world, image(web_2)["spec"].clone());
            work(&mut world, now());
            kubelet(&mut world, "web-2");
            work(&mut world, now());
            kubelet(&mut world, "web-2");
            kubelet(&mut world, "web-2");
        }
        crash(&mut world, "web-0");
        work(&mut world, now());
        assert_eq!(going(&world), expected, "{web_2}");
    }
    // What goes already is not told again.
    let mut world = world(image("bad:1")["spec"].clone());
    rest(&mut world);
    world.delete(&POD, "default", "web-0", None);
    change(&mut world, image("good:2")["spec"].clone());
    let deletes = |write: &Write| matches!(write, Write::Delete { kind, .. } if *kind == POD);
    assert!(!decided(&world, now()).writes.iter().any(deletes));
}

#[test]
fn a_pod_that_has_ended_is_made_again_and_a_parallel_set_all_at_once_s2() {
    for (phase, event) in [
        ("Failed", "RecreatingFailedPod: StatefulSet default/web is recreating failed Pod web-1"),
        ("Succeeded", "RecreatingTerminatedPod: StatefulSet default/web is recreating terminated Pod web-1"),
    ] {
        let mut world = of("OrderedReady", "RollingUpdate");
        world.patch(&POD, "default", "web-1", json!({"status": {"phase": phase}}));
        work(&mut world, now());
        assert_eq!((going(&world), pods(&world).len()), (vec!["web-1".to_owned()], 3), "S2: not before it is gone");
        assert!(world.events.iter().any(|told| told == event), "{:?}", world.events);
    }
    let mut world = world(json!({"podManagementPolicy": "Parallel"}));
    work(&mut world, now());
    assert_eq!(pods(&world), ["web-0", "web-1", "web-2"]);
}

#[test]
fn a_set_or_namespace_that_goes_makes_nothing() {
    let leaving = || json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x.io/held"]}});
    for whose in ["set", "namespace", "neither"] {
        let mut world = of("OrderedReady", "RollingUpdate");
        world.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}));
        match whose {
            "set" => world.patch(&STATEFUL_SET, "default", "web", leaving()),
            "namespace" => world.patch(&mainstay_api::kinds::NAMESPACE, "", "default", leaving()),
            _ => {}
        }
        world.remove(&POD, &ObjectKey::new("default", "web-2"));
        change(&mut world, image("good:2")["spec"].clone());
        change(&mut world, json!({"persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete"}}));
        work(&mut world, now());
        assert_eq!((going(&world), pods(&world).len()), (vec![], if whose == "neither" { 3 } else { 2 }), "{whose}");
        assert_eq!(names(&world, &CONTROLLER_REVISION).len(), if whose == "set" { 1 } else { 2 }, "{whose}");
        let is_owned = !world.get(&PERSISTENT_VOLUME_CLAIM, "default", "data-web-0")["metadata"]["ownerReferences"]
            .as_array()
            .is_none_or(Vec::is_empty);
        assert_eq!(is_owned, whose != "namespace", "{whose}");
        let waits = decided(&world, now()).waiting.contains(&Waiting::NamespaceTerminating);
        assert_eq!(waits, whose == "namespace");
    }
}

#[test]
fn what_belongs_to_a_set_is_put_right_and_what_does_not_is_left_alone_s10() {
    let index = json!({"metadata": {"labels": {"apps.kubernetes.io/pod-index": null}}});
    let mut world = of("OrderedReady", "RollingUpdate");
    world.patch(&POD, "default", "web-1", index.clone());
    world.settle(&[statefulset::CONTROLLER], now());
    assert_eq!(world.get(&POD, "default", "web-1")["metadata"]["labels"]["apps.kubernetes.io/pod-index"], "1");
    assert!(world.events.contains(&"SuccessfulUpdate: update Pod web-1 in StatefulSet web successful".to_owned()));
    world.delete(&POD, "default", "web-1", None);
    world.patch(&POD, "default", "web-1", index);
    world.settle(&[statefulset::CONTROLLER], now());
    assert!(world.get(&POD, "default", "web-1")["metadata"]["labels"]["apps.kubernetes.io/pod-index"].is_null());

    // A revision that somebody takes away comes back; one that nobody owns becomes the set's, a pod of another name
    // not.
    let name = names(&world, &CONTROLLER_REVISION).remove(0);
    let mut other = world.get(&CONTROLLER_REVISION, "default", &name);
    world.remove(&CONTROLLER_REVISION, &ObjectKey::new("default", name.as_str()));
    world.settle(&[statefulset::CONTROLLER], now());
    assert_eq!(names(&world, &CONTROLLER_REVISION), [name]);
    other["metadata"] = json!({"namespace": "default", "name": "orphan", "labels": {"app": "web"}});
    other["data"]["spec"]["template"]["spec"]["containers"][0]["image"] = json!("good:0");
    world.put(other);
    let labels = json!({"app": "web"});
    world.put(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "default", "name": "other-0",
        "labels": labels}, "spec": {"containers": []}}));
    world.settle(&[statefulset::CONTROLLER], now());
    let owners = |kind: &Kind, name: &str| world.get(kind, "default", name)["metadata"]["ownerReferences"].clone();
    assert_eq!(
        (&owners(&CONTROLLER_REVISION, "orphan")[0]["name"], owners(&POD, "other-0")),
        (&json!("web"), json!(null))
    );
}

#[test]
fn a_name_that_another_has_is_waited_for_and_only_a_pending_pod_gets_its_claim_again_s9_s10() {
    let mut world = world(json!({}));
    world.put(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "default", "name": "web-0",
        "ownerReferences": [{"apiVersion": "v1", "kind": "X", "name": "x", "uid": "x", "controller": true}]},
        "spec": {"containers": []}}));
    work(&mut world, now());
    let decision = decided(&world, now());
    assert_eq!(decision.waiting, [Waiting::OwnedByAnother { name: "default/web-0".to_owned() }]);
    assert!(decision.writes.is_empty(), "{:?}", decision.writes);
    for (phase, leaves, expected) in [("Pending", false, 1), ("Pending", true, 0), ("Running", false, 0)] {
        let mut world = super::world(json!({}));
        work(&mut world, now());
        report(&mut world, "web-0", "False", 100);
        world.patch(&POD, "default", "web-0", json!({"status": {"phase": phase}}));
        if leaves {
            world.delete(&POD, "default", "web-0", None);
        }
        world.remove(&PERSISTENT_VOLUME_CLAIM, &ObjectKey::new("default", "data-web-0"));
        work(&mut world, now());
        assert_eq!(names(&world, &PERSISTENT_VOLUME_CLAIM).len(), expected, "{phase} {leaves}");
    }
}

/// Old or new, and how it is: `+` is new, then Well, Unready, Leaving or Missing.
fn let_all_be(world: &mut World, states: [&str; 3]) {
    let old = world.get(&STATEFUL_SET, "default", "web")["status"]["currentRevision"].clone();
    let new = world.get(&STATEFUL_SET, "default", "web")["status"]["updateRevision"].clone();
    for (name, state) in ["web-0", "web-1", "web-2"].into_iter().zip(states) {
        let revision = if state.starts_with('+') { &new } else { &old };
        world.patch(&POD, "default", name, json!({"metadata": {"labels": {"controller-revision-hash": revision}}}));
        match state.trim_start_matches('+') {
            "well" => let_be(world, name, Is::Well),
            "unready" => let_be(world, name, Is::Unready),
            "leaving" => world.delete(&POD, "default", name, None),
            _ => world.remove(&POD, &ObjectKey::new("default", name)),
        }
    }
}

/// S6, S7: what is not available itself costs nothing, but only one such pod at a time meets the new revision.
#[test]
fn a_rolling_update_goes_from_the_highest_down_past_what_is_unavailable_s6_s7() {
    let budget = || Some(Waiting::UnavailableBudgetUsed);
    let failed = |ordinal: i64| Some(Waiting::UpdatedPodNotReady { ordinal });
    for (most, states, expected, waits) in [
        (1, ["well", "well", "well"], vec!["web-2"], budget()),
        (2, ["well", "well", "well"], vec!["web-1", "web-2"], budget()),
        (3, ["well", "well", "well"], vec!["web-0", "web-1", "web-2"], None),
        (1, ["well", "well", "unready"], vec!["web-2"], budget()),
        (1, ["well", "unready", "unready"], vec!["web-2"], budget()),
        (1, ["unready", "+well", "+well"], vec!["web-0"], None),
        (1, ["unready", "well", "+well"], vec![], budget()),
        (1, ["unready", "well", "+unready"], vec![], failed(2)),
        (1, ["well", "unready", "+unready"], vec![], failed(2)),
        (1, ["unready", "+unready", "+well"], vec![], failed(1)),
        (1, ["well", "well", "+leaving"], vec![], budget()),
        (1, ["unready", "+well", "+leaving"], vec![], budget()),
        (3, ["unready", "well", "+leaving"], vec!["web-1"], budget()),
        (2, ["well", "well", "+leaving"], vec!["web-1"], budget()),
        // One that is away and one that is taken away are two that are not there.
        (4, ["unready", "well", "+leaving"], vec!["web-1"], budget()),
        (4, ["unready", "+missing", "well"], vec!["web-2"], budget()),
    ] {
        let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": most}});
        let mut world = world(json!({"podManagementPolicy": "Parallel", "updateStrategy": strategy}));
        rest(&mut world);
        change(&mut world, image("good:2")["spec"].clone());
        // The revision is there, and nothing is done yet.
        let mut noted = world.clone();
        work(&mut noted, now());
        let revisions = noted.all(&CONTROLLER_REVISION).cloned().collect::<Vec<_>>();
        revisions.into_iter().for_each(|revision| world.put(revision));
        let update = noted.get(&STATEFUL_SET, "default", "web")["status"]["updateRevision"].clone();
        world.patch(&STATEFUL_SET, "default", "web", json!({"status": {"updateRevision": update}}));
        let_all_be(&mut world, states);
        let decision = decided(&world, now());
        let goes = |write: &Write| match write {
            Write::Delete { kind, key, .. } if *kind == POD => Some(key.name.to_string()),
            _ => None,
        };
        let mut gone: Vec<String> = decision.writes.iter().filter_map(goes).collect();
        gone.sort();
        assert_eq!(gone, expected, "{most} {states:?}");
        let told =
            |waiting: &&Waiting| matches!(waiting, Waiting::UnavailableBudgetUsed | Waiting::UpdatedPodNotReady { .. });
        assert_eq!(decision.waiting.iter().find(told).cloned(), waits, "{most} {states:?}");
        let said = decision.events.iter().filter(|event| event.reason == "SuccessfulDelete").count();
        assert_eq!(said, expected.len(), "{most} {states:?}");
    }
}

/// S6: which revision is the current one is what pods below a partition are made from: it moves on when all is done.
#[test]
fn the_current_revision_moves_on_when_every_pod_is_new_and_ready_s6() {
    let status = |world: &World| world.get(&STATEFUL_SET, "default", "web")["status"].clone();
    let moved = |world: &World| status(world)["currentRevision"] == status(world)["updateRevision"];
    for strategy in ["RollingUpdate", "OnDelete"] {
        let mut world = of("Parallel", strategy);
        change(&mut world, image("good:2")["spec"].clone());
        for name in ["web-2", "web-1", "web-0"] {
            assert!(!moved(&world) || status(&world)["updatedReplicas"] == 3, "{strategy} {name}");
            world.delete(&POD, "default", name, None);
            work(&mut world, now());
            assert_eq!(status(&world)["replicas"], 3);
            assert_eq!(
                status(&world)["currentReplicas"],
                status(&world)["readyReplicas"].as_i64().map_or(json!(0), |ready| {
                    json!(ready - status(&world)["updatedReplicas"].as_i64().unwrap_or(0) - 1)
                }),
                "{strategy} {name}: one that goes is none of either"
            );
            kubelet(&mut world, name);
            work(&mut world, now());
            assert!(!moved(&world), "{strategy} {name} is made and not ready");
            kubelet(&mut world, name);
            kubelet(&mut world, name);
            work(&mut world, now());
        }
        // As upstream: nothing says when an update by hand is over.
        assert_eq!(moved(&world), strategy == "RollingUpdate", "{strategy}");
        assert_eq!(
            (status(&world)["availableReplicas"].clone(), status(&world)["updatedReplicas"].clone()),
            (json!(3), json!(3))
        );
    }
    // A pod that the set shall not have is one of the old revision as long as it is there.
    let mut world = of("Parallel", "RollingUpdate");
    world.patch(&POD, "default", "web-2", json!({"metadata": {"finalizers": ["x.io/held"]}}));
    world.patch(&STATEFUL_SET, "default", "web", json!({"spec": {"replicas": 2}}));
    change(&mut world, image("good:2")["spec"].clone());
    let update = {
        work(&mut world, now());
        status(&world)["updateRevision"].clone()
    };
    for name in ["web-0", "web-1"] {
        world.patch(&POD, "default", name, json!({"metadata": {"labels": {"controller-revision-hash": update}}}));
    }
    work(&mut world, now());
    assert_eq!((pods(&world).len(), moved(&world)), (3, false));
    world.remove(&POD, &ObjectKey::new("default", "web-2"));
    work(&mut world, now());
    assert_eq!((pods(&world).len(), moved(&world)), (2, true));
    // Ready says nothing of a pod that does not run.
    let mut world = of("OrderedReady", "RollingUpdate");
    world.patch(&POD, "default", "web-0", json!({"status": {"phase": "Pending"}}));
    world.remove(&POD, &ObjectKey::new("default", "web-1"));
    work(&mut world, now());
    assert_eq!(pods(&world), ["web-0", "web-2"], "S4");
    assert_eq!(
        (status(&world)["readyReplicas"].clone(), status(&world)["availableReplicas"].clone()),
        (json!(1), json!(1))
    );
}

/// S6: of pods that are not available themselves one goes at a time, whatever is missing between them.
#[test]
fn s6_a_broken_pod_stays_while_any_above_it_is_not_there() {
    let mut world = world(json!({"replicas": 4, "podManagementPolicy": "Parallel"}));
    rest(&mut world);
    for name in ["web-3", "web-1"] {
        let_be(&mut world, name, Is::Unready);
    }
    world.patch(&POD, "default", "web-2", json!({"metadata": {"finalizers": ["x.io/held"]}}));
    world.delete(&POD, "default", "web-2", None);
    change(&mut world, image("good:2")["spec"].clone());
    work(&mut world, now());
    assert_eq!(going(&world), ["web-2", "web-3"]);
}

/// The status may be lost, with a set that was made again over its pods, or not be written yet.
#[test]
fn without_a_status_the_current_revision_is_the_oldest_that_a_pod_has_s6() {
    let partition = json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}});
    let mut world = world(image("good:0")["spec"].clone());
    rest(&mut world);
    change(&mut world, image("good:1")["spec"].clone());
    rest(&mut world);
    change(&mut world, partition);
    change(&mut world, image("good:2")["spec"].clone());
    rest(&mut world);
    let held = Waiting::PartitionHeld { ordinal: 0 };
    assert!(decided(&world, now()).waiting.contains(&held));
    world.patch(&STATEFUL_SET, "default", "web", json!({"status": {"currentRevision": null}}));
    world.remove(&POD, &ObjectKey::new("default", "web-1"));
    rest(&mut world);
    assert_eq!(shape(&world), "web-0=good:1 web-1=good:1 web-2=good:2");
    // Nothing is held where the update goes down to the last pod, nothing is rolled, or nothing is old.
    change(&mut world, json!({"updateStrategy": {"rollingUpdate": {"partition": 0}}}));
    assert!(!decided(&world, now()).waiting.contains(&held));
    change(&mut world, json!({"updateStrategy": {"rollingUpdate": {"partition": 2}}}));
    assert!(decided(&world, now()).waiting.contains(&held));
    change(&mut world, json!({"updateStrategy": {"type": "OnDelete"}}));
    assert!(!decided(&world, now()).waiting.contains(&held));
    change(&mut world, json!({"updateStrategy": {"type": "RollingUpdate"}}));
    change(&mut world, image("good:1")["spec"].clone());
    rest(&mut world);
    assert!(!decided(&world, now()).waiting.contains(&held));
}

/// S6, S11: numbers say which is newer, whatever the names; what is asked for now is kept without a pod.
#[test]
fn revisions_are_numbered_in_order_named_apart_and_kept_s6_s11() {
    let mut world = world(json!({"revisionHistoryLimit": 2}));
    world.patch(
        &STATEFUL_SET,
        "default",
        "web",
        json!({"metadata": {"annotations": {"a": "b",
        "kubectl.kubernetes.io/last-applied-configuration": "{}"}}}),
    );
    for number in 1..=9 {
        change(&mut world, image(&format!("good:{number}"))["spec"].clone());
        rest(&mut world);
    }
    let mut numbers: Vec<_> = world.all(&CONTROLLER_REVISION).map(|one| one["revision"].as_i64().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [7, 8, 9]);
    let newest = world.all(&CONTROLLER_REVISION).find(|one| one["revision"] == 9).unwrap().clone();
    let meta = &newest["metadata"];
    let annotations = &world.get(&STATEFUL_SET, "default", "web")["metadata"]["annotations"];
    assert_eq!((&meta["annotations"], &meta["annotations"]["a"]), (annotations, &json!("b")), "all, as upstream");
    let hash = meta["labels"]["controller.kubernetes.io/hash"].as_str().unwrap();
    assert_eq!(meta["name"], json!(format!("web-{hash}")));
    change(&mut world, json!({"revisionHistoryLimit": 0, "replicas": 0}));
    rest(&mut world);
    assert_eq!(names(&world, &CONTROLLER_REVISION), [meta["name"].as_str().unwrap()]);
    // A name that somebody else's object has is left to it.
    let key = ObjectKey::of(&newest);
    world.remove(&CONTROLLER_REVISION, &key);
    let mut taken = newest.clone();
    merge(&mut taken, json!({"metadata": {"ownerReferences": null, "labels": null, "uid": "x"}}));
    world.put(taken);
    change(&mut world, json!({"replicas": 1}));
    rest(&mut world);
    assert_eq!(names(&world, &CONTROLLER_REVISION).len(), 2);
    assert_eq!(world.get(&STATEFUL_SET, "default", "web")["status"]["collisionCount"], 1);
    assert_eq!(world.get(&CONTROLLER_REVISION, "default", &key.name)["metadata"]["ownerReferences"], Value::Null);
}

/// A set looks at nothing that a binding changes, and one of a thousand pods is not looked through for each.
#[test]
fn x6_a_set_is_not_woken_by_a_binding_alone() {
    let wakes = |over: Value| {
        let mut world = world(json!({}));
        work(&mut world, now());
        let before = world.snapshot.clone();
        world.changes.clear();
        let mut over = over;
        merge(&mut over, json!({ "spec": { "nodeName": "n1" } }));
        world.patch(&POD, "default", "web-0", over);
        let (_, change) = world.changes.pop().expect("changed");
        let mut woken = Vec::new();
        (statefulset::CONTROLLER.keys)(&before, &world.snapshot, &change, &mut |key| woken.push(key));
        woken
    };
    let scheduled = json!({ "type": "PodScheduled", "status": "True" });
    assert_eq!(wakes(json!({ "status": { "conditions": [scheduled] } })), [], "bound");
    for over in [
        json!({ "metadata": { "labels": { "app": "other" } } }),
        json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } }),
        json!({ "status": { "phase": "Failed" } }),
        json!({ "status": { "conditions": [scheduled, { "type": "Ready", "status": "True" }] } }),
    ] {
        assert_eq!(wakes(over.clone()), [key()], "{over}");
    }
}

#[test]
fn s3_an_ordinal_is_written_in_one_way() {
    for (name, parsed) in [
        ("web-0", Some(("web", 0))),
        ("a-b-12", Some(("a-b", 12))),
        ("web-01", None),
        ("web-+1", None),
        ("web-", None),
        ("web--1", Some(("web-", 1))),
        ("web-99999999999999999999", None),
        ("web", None),
    ] {
        assert_eq!(identity::parse(name), parsed, "{name}");
    }
    let labels = identity::identity_labels("web-7", 7);
    assert!(identity::is_said_by(Some(&labels), "web-7", 7));
    assert!(!identity::is_said_by(Some(&labels), "web-8", 8));
    assert!(!identity::is_said_by(Some(&labels), "other-7", 7), "of the same ordinal, and another's");
    assert!(!identity::is_said_by(Some(&labels), "web-7", 8));
    let padded = labels.into_iter().map(|(key, value)| (key, value.replacen('7', "07", 1))).collect();
    assert!(!identity::is_said_by(Some(&padded), "web-7", 7));
    assert!(!identity::is_said_by(None, "web-7", 7));
}

/// What names its owner and what that selects, each once, in order of name, whichever of the two it is.
#[test]
fn s10_what_an_owner_looks_at_is_what_names_it_and_what_it_selects() {
    let mut world = world(json!({}));
    let set = world.get(&STATEFUL_SET, "default", "web");
    let own = json!([{ "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "controller": true,
        "uid": set["metadata"]["uid"] }]);
    let pod = |namespace: &str, name: &str, labels: Value, owners: Value| {
        json!({ "kind": "Pod", "metadata": { "namespace": namespace, "name": name, "labels": labels,
            "ownerReferences": owners }, "spec": { "containers": [] } })
    };
    let (matching, other) = (json!({ "app": "web" }), json!({ "app": "other" }));
    world.put(pod("default", "d-owned", other.clone(), own.clone()));
    world.put(pod("default", "b-selected", matching.clone(), json!([])));
    world.put(pod("default", "c-both", matching.clone(), own.clone()));
    world.put(pod("default", "a-owned", other.clone(), own.clone()));
    world.put(pod("default", "e-neither", other, json!([])));
    world.put(pod("default", "f-selected", matching.clone(), json!([])));
    world.put(pod("else", "c-both", matching, own));
    let set = world.snapshot.stateful_sets.get(&key()).expect("there");
    let names = |selector: Value| -> Vec<String> {
        let selector = serde_json::from_value(selector).expect("a selector");
        let related = world.snapshot.related::<Pod>(&set.metadata, &selector);
        related.into_iter().filter_map(|pod| pod.metadata.name.clone()).collect()
    };
    let all = ["a-owned", "b-selected", "c-both", "d-owned", "f-selected"];
    assert_eq!(names(json!({ "matchLabels": { "app": "web" } })), all);
    let expression = |operator: &str, values: Value| {
        json!({ "matchExpressions": [
        { "key": "app", "operator": operator, "values": values }] })
    };
    assert_eq!(names(expression("In", json!(["web", "none"]))), all);
    assert_eq!(names(expression("NotIn", json!(["other"]))), all);
    assert_eq!(names(expression("In", json!(["none"]))), ["a-owned", "c-both", "d-owned"]);
}
