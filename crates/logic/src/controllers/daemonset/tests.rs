//! DaemonSets in a small world of nodes.

use std::collections::BTreeMap;

use jiff::Timestamp;
use mainstay_api::ObjectKey;
use mainstay_api::kinds::{CONTROLLER_REVISION, DAEMON_SET, NODE, POD};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::controllers::{daemonset, garbagecollector};
use crate::decision::{Controller, Waiting, Write};
use crate::world::{World, merge};

const CONTROLLERS: &[Controller] = &[daemonset::CONTROLLER, garbagecollector::CONTROLLER];

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn key() -> ObjectKey {
    ObjectKey::new("default", "agent")
}

fn node(world: &mut World, name: &str, labels: Value, taints: Value) {
    let spec = if taints.is_null() { json!({}) } else { json!({"taints": taints}) };
    world.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}, "spec": spec}));
}

/// A DaemonSet `agent` for `nodes` nodes.
fn world(nodes: usize, spec: Value) -> World {
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": {"namespace": "default", "name": "agent", "uid": "uid-agent"},
        "spec": {
            "selector": {"matchLabels": {"app": "agent"}},
            "template": {"metadata": {"labels": {"app": "agent"}}, "spec": {"containers": [{"name": "c",
                "image": "good:1"}]}},
        },
    });
    merge(&mut object["spec"], spec);
    (DAEMON_SET.defaults)(&DAEMON_SET, &mut object);
    (DAEMON_SET.prepare_create)(&DAEMON_SET, &mut object);
    let mut world = World::default();
    for number in 1..=nodes {
        node(&mut world, &format!("n{number}"), json!({}), Value::Null);
    }
    world.put(object);
    world.settle(CONTROLLERS, now());
    world
}

fn image(name: &str) -> Value {
    json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": name}]}}}})
}

fn change(world: &mut World, patch: Value) {
    world.patch(&DAEMON_SET, "default", "agent", patch);
    world.settle(CONTROLLERS, now());
}

fn names(world: &World) -> Vec<String> {
    world.all(&POD).map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

fn target(pod: &Value) -> String {
    let required = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution";
    let field = pod.pointer(&format!("{required}/nodeSelectorTerms/0/matchFields/0")).expect("its node");
    assert_eq!((&field["key"], &field["operator"]), (&json!("metadata.name"), &json!("In")));
    field["values"][0].as_str().unwrap().to_owned()
}

/// One step of one pod: it is bound and gets Ready where its image is good, or it goes.
fn kubelet(world: &mut World, name: &str) {
    let pod = world.get(&POD, "default", name);
    let good = pod["spec"]["containers"][0]["image"].as_str().unwrap_or("").starts_with("good");
    if !pod["metadata"]["deletionTimestamp"].is_null() {
        world.remove(&POD, &ObjectKey::new("default", name));
    } else if pod["spec"]["nodeName"].is_null() || (good && pod["status"]["conditions"][0]["status"] != "True") {
        let ready = if good { "True" } else { "False" };
        let conditions = json!([{"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        let status = json!({"phase": "Running", "conditions": conditions});
        world.patch(&POD, "default", name, json!({"spec": {"nodeName": target(&pod)}, "status": status}));
    }
}

fn rest(world: &mut World) {
    for _ in 0..100 {
        world.settle(CONTROLLERS, now());
        let before = world.snapshot.revision;
        names(world).iter().for_each(|name| kubelet(world, name));
        if world.snapshot.revision == before {
            return;
        }
    }
    panic!("it does not come to rest");
}

/// The images that run, by node.
fn shape(world: &World) -> BTreeMap<String, Vec<String>> {
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for pod in world.all(&POD) {
        let image = pod["spec"]["containers"][0]["image"].as_str().unwrap().to_owned();
        all.entry(target(pod)).or_default().push(image);
    }
    all
}

fn everywhere(nodes: usize, image: &str) -> BTreeMap<String, Vec<String>> {
    (1..=nodes).map(|number| (format!("n{number}"), vec![image.to_owned()])).collect()
}

fn status(world: &World, field: &str) -> i64 {
    world.get(&DAEMON_SET, "default", "agent")["status"][field].as_i64().unwrap_or(0)
}

/// S7, S12: the old pod goes when the new one has been Ready for long enough, and something wakes whoever sees to it.
#[test]
fn conformance_a_surge_ends_when_the_new_pod_has_been_ready_for_long_enough() {
    let mut world = world(
        1,
        json!({"minReadySeconds": 10, "updateStrategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}}),
    );
    rest(&mut world);
    let old = names(&world);
    change(&mut world, image("good:2"));
    let new = names(&world).into_iter().find(|name| !old.contains(name)).expect("a new pod");
    for (name, created) in [(&old[0], "2026-01-01T00:00:00Z"), (&new, "2026-01-02T00:00:00Z")] {
        world.patch(&POD, "default", name, json!({"metadata": {"creationTimestamp": created}}));
    }
    let conditions = json!([{"type": "Ready", "status": "True", "lastTransitionTime": now().to_string()}]);
    let status = json!({"phase": "Running", "conditions": conditions});
    world.patch(&POD, "default", &new, json!({"spec": {"nodeName": "n1"}, "status": status}));
    let observed = daemonset::observe(&world.snapshot, &key()).expect("observed");
    let decision = daemonset::decide(&observed, now());
    let later = now().checked_add(jiff::SignedDuration::from_secs(10)).unwrap();
    assert_eq!((decision.wake_at, decision.waiting), (Some(later), vec![Waiting::NotYetAvailable]));
    world.run(&daemonset::CONTROLLER, &key(), now(), usize::MAX);
    assert_eq!(world.get(&POD, "default", &old[0])["metadata"]["deletionTimestamp"], Value::Null);
    world.run(&daemonset::CONTROLLER, &key(), later, usize::MAX);
    assert!(world.get(&POD, "default", &old[0])["metadata"]["deletionTimestamp"].is_string());
}

#[test]
fn every_node_gets_a_pod_that_only_it_will_do_for() {
    let mut world = world(3, json!({}));
    rest(&mut world);
    assert_eq!(shape(&world), everywhere(3, "good:1"));
    let pod = world.all(&POD).next().unwrap().clone();
    let tolerated: Vec<&str> =
        pod["spec"]["tolerations"].as_array().unwrap().iter().map(|t| t["key"].as_str().unwrap()).collect();
    let short = |key: &str| key.trim_start_matches("node.kubernetes.io/").to_owned();
    let tolerated: Vec<String> = tolerated.into_iter().map(short).collect();
    let all = ["not-ready", "unreachable", "disk-pressure", "memory-pressure", "pid-pressure", "unschedulable"];
    assert_eq!(tolerated, all);
    let hash = &world.all(&CONTROLLER_REVISION).next().unwrap()["metadata"]["labels"]["controller-revision-hash"];
    assert_eq!(pod["metadata"]["labels"]["controller-revision-hash"], *hash);
    for field in
        ["desiredNumberScheduled", "currentNumberScheduled", "numberReady", "numberAvailable", "updatedNumberScheduled"]
    {
        assert_eq!(status(&world, field), 3, "{field}");
    }
    world.assert_quiet(CONTROLLERS, now());
}

#[test]
fn nodes_come_change_and_go() {
    let mut world = world(1, json!({"template": {"spec": {"nodeSelector": {"disk": "fast"}}}}));
    rest(&mut world);
    assert_eq!(names(&world).len(), 0);
    node(&mut world, "n2", json!({"disk": "fast"}), Value::Null);
    world.patch(&NODE, "", "n1", json!({"metadata": {"labels": {"disk": "fast"}}}));
    rest(&mut world);
    assert_eq!(shape(&world), everywhere(2, "good:1"));
    world.patch(&NODE, "", "n1", json!({"metadata": {"labels": {"disk": "slow"}}}));
    rest(&mut world);
    assert_eq!(shape(&world).keys().collect::<Vec<_>>(), ["n2"]);
    let taint = |effect: &str| json!({"spec": {"taints": [{"key": "k", "effect": effect}]}});
    world.patch(&NODE, "", "n2", taint("NoSchedule"));
    rest(&mut world);
    assert_eq!((shape(&world).len(), status(&world, "numberMisscheduled")), (1, 1), "what is there stays");
    world.patch(&NODE, "", "n2", taint("NoExecute"));
    rest(&mut world);
    assert_eq!(shape(&world).len(), 0);
}

#[test]
fn an_update_takes_one_node_after_the_other_and_a_broken_one_stops() {
    let mut world = world(3, json!({}));
    rest(&mut world);
    change(&mut world, image("bad:1"));
    rest(&mut world);
    let broken = shape(&world).values().filter(|images| images[0] == "bad:1").count();
    assert_eq!((broken, status(&world, "numberAvailable")), (1, 2));
    change(&mut world, image("good:2"));
    rest(&mut world);
    assert_eq!(shape(&world), everywhere(3, "good:2"), "S7: the broken pod does not stand in the way");
    change(&mut world, image("good:1"));
    rest(&mut world);
    assert_eq!(
        (shape(&world), world.all(&CONTROLLER_REVISION).count()),
        (everywhere(3, "good:1"), 3),
        "taken up again"
    );
    let newest = world.all(&CONTROLLER_REVISION).max_by_key(|revision| revision["revision"].as_i64()).unwrap();
    assert_eq!(
        (newest["revision"].clone(), newest["data"]["spec"]["template"]["$patch"].clone()),
        (json!(4), json!("replace"))
    );
}

/// Of one decision: who goes, and on which nodes one is made.
fn decided(world: &World) -> (Vec<String>, Vec<String>, usize) {
    let decision = daemonset::decide(&daemonset::observe(&world.snapshot, &key()).expect("observed"), now());
    let (mut gone, mut made) = (Vec::new(), Vec::new());
    for write in &decision.writes {
        match write {
            Write::Delete { kind, key, .. } if *kind == POD => {
                gone.push(target(&world.get(&POD, "default", &key.name)));
            }
            Write::Create { kind, object } if *kind == POD => made.push(target(object)),
            _ => {}
        }
    }
    let waits = |waiting: &&Waiting| matches!(waiting, Waiting::UnavailableBudgetUsed);
    (gone, made, decision.waiting.iter().filter(waits).count())
}

/// Makes the pod of a node Ready or not.
fn report(world: &mut World, node: &str, image: &str, ready: &str) {
    let of_node = |pod: &&Value| target(pod) == node && pod["spec"]["containers"][0]["image"] == image;
    let name = world.all(&POD).find(of_node).unwrap()["metadata"]["name"].as_str().unwrap().to_owned();
    let conditions = json!([{"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
    let status = json!({"phase": "Running", "conditions": conditions});
    world.patch(&POD, "default", &name, json!({"spec": {"nodeName": node}, "status": status}));
}

/// S7: what does not serve anyway is replaced whatever the bound is, and counts for it.
#[test]
fn an_update_replaces_what_is_not_available_and_of_the_others_as_many_as_it_may_s7() {
    let strategy = |unavailable: i32| json!({"updateStrategy": {"rollingUpdate": {"maxUnavailable": unavailable}}});
    for (unavailable, unready, gone, waits) in [
        (1, &[][..], &["n1"][..], 1),
        (1, &["n2"], &["n2"], 1),
        (1, &["n2", "n3"], &["n2", "n3"], 1),
        (2, &["n2"], &["n2", "n1"], 1),
        (3, &[], &["n1", "n2", "n3"], 0),
        (1, &["n1", "n2", "n3"], &["n1", "n2", "n3"], 0),
    ] {
        let mut world = world(3, strategy(unavailable));
        rest(&mut world);
        unready.iter().for_each(|node| report(&mut world, node, "good:1", "False"));
        world.settle(CONTROLLERS, now());
        world.patch(&DAEMON_SET, "default", "agent", image("good:2"));
        let (of, made, waiting) = decided(&world);
        assert_eq!(
            (of, made.len(), waiting),
            (gone.iter().map(|it| (*it).to_owned()).collect(), 0, waits),
            "{unready:?}"
        );
    }
}

/// Where new pods are made beside old ones: no more at once than the surge, but for what does not serve anyway.
#[test]
fn a_surge_doubles_as_many_nodes_as_it_may_s7() {
    let surge = |surge: i32| json!({"updateStrategy": {"rollingUpdate": {"maxSurge": surge, "maxUnavailable": 0}}});
    for (most, unready, doubled, made, waits) in [
        (1, &[][..], &[][..], &["n1"][..], 1),
        (2, &[], &[], &["n1", "n2"], 1),
        (3, &[], &[], &["n1", "n2", "n3"], 0),
        (1, &["n3"], &[], &["n3", "n1"], 1),
        (1, &[], &["n1"], &[], 1),
        (2, &[], &["n1"], &["n2"], 1),
    ] {
        let mut world = world(3, surge(most));
        rest(&mut world);
        world.patch(&DAEMON_SET, "default", "agent", image("good:2"));
        if !doubled.is_empty() {
            world.patch(&DAEMON_SET, "default", "agent", surge_patch(1));
            world.settle(CONTROLLERS, now());
            world.patch(&DAEMON_SET, "default", "agent", surge_patch(most));
        }
        unready.iter().for_each(|node| report(&mut world, node, "good:1", "False"));
        let (gone, of, waiting) = decided(&world);
        let made: Vec<String> = made.iter().map(|it| (*it).to_owned()).collect();
        assert_eq!((gone.len(), of, waiting), (0, made, waits), "{most} {unready:?} {doubled:?}");
    }
    // The old one goes when the new one serves, or when it does not serve itself.
    for (new, old, goes) in [("False", "True", false), ("True", "True", true), ("False", "False", true)] {
        let mut world = world(1, surge(1));
        rest(&mut world);
        world.patch(&DAEMON_SET, "default", "agent", image("good:2"));
        world.settle(CONTROLLERS, now());
        report(&mut world, "n1", "good:2", new);
        report(&mut world, "n1", "good:1", old);
        world.settle(CONTROLLERS, now());
        let left: Vec<&str> = world
            .all(&POD)
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .map(|pod| pod["spec"]["containers"][0]["image"].as_str().unwrap())
            .collect();
        assert_eq!(left.contains(&"good:1"), !goes, "new {new}, old {old}");
        assert!(left.contains(&"good:2"));
    }
}

fn surge_patch(surge: i32) -> Value {
    json!({"spec": {"updateStrategy": {"rollingUpdate": {"maxSurge": surge}}}})
}

/// Two pods on one node, as two servers could make them: the bound one, then the older one stays.
#[test]
fn of_several_pods_on_a_node_one_stays() {
    for strategy in [json!({"maxSurge": 0, "maxUnavailable": 1}), json!({"maxSurge": 1, "maxUnavailable": 0})] {
        let mut world = world(1, json!({"updateStrategy": {"rollingUpdate": strategy}}));
        rest(&mut world);
        let first = names(&world)[0].clone();
        let mut pod = world.get(&POD, "default", &first);
        for (name, created, bound) in [
            ("agent-a", "2026-01-03T00:00:00Z", true),
            ("agent-b", "2026-01-01T00:00:00Z", false),
            ("agent-c", "2026-01-02T00:00:00Z", true),
        ] {
            merge(&mut pod, json!({"metadata": {"name": name, "uid": name, "creationTimestamp": created}}));
            pod["spec"]["nodeName"] = if bound { json!("n1") } else { Value::Null };
            world.put(pod.clone());
        }
        world.remove(&POD, &ObjectKey::new("default", &*first));
        rest(&mut world);
        assert_eq!(names(&world), ["agent-c"], "{strategy}");
    }
}

/// Without a surge one of two that run stays at once, whatever their templates.
#[test]
fn without_a_surge_no_node_keeps_an_old_pod_beside_a_new_one() {
    for (surge, gone) in [(0, 1), (1, 0)] {
        let strategy = json!({"maxSurge": surge, "maxUnavailable": 1 - surge});
        let mut world = world(1, json!({"updateStrategy": {"rollingUpdate": strategy}}));
        rest(&mut world);
        let name = names(&world)[0].clone();
        let mut other = world.get(&POD, "default", &name);
        let metadata = json!({"name": "agent-old", "uid": "old", "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"controller-revision-hash": "old"}});
        merge(&mut other, json!({ "metadata": metadata }));
        world.put(other);
        let waits = json!([{"type": "Ready", "status": "False"}]);
        world.patch(&POD, "default", &name, json!({"status": {"conditions": waits}}));
        assert_eq!(decided(&world).0.len(), gone, "surge: {surge}");
    }
}

/// X7, S7: a node that refuses one pod after the other is asked ever more seldom, and at once of another template.
#[test]
fn a_node_that_refuses_is_asked_less_and_less_of_the_same_template() {
    let ago = |seconds: i64| Timestamp::from_second(1_800_000_000 - seconds).unwrap().to_string();
    let refused = |beside: bool, template: Option<&str>| {
        let mut world = world(1, json!({"updateStrategy": {"type": "OnDelete"}}));
        let name = names(&world)[0].clone();
        let mut pod = world.get(&POD, "default", &name);
        world.remove(&POD, &ObjectKey::new("default", &*name));
        merge(&mut pod, json!({"spec": {"nodeName": "n1"}, "status": {"phase": "Failed"}}));
        for (name, created) in [("agent-a", 40), ("agent-b", 10)] {
            world.remove(&POD, &ObjectKey::new("default", "agent-a"));
            merge(&mut pod, json!({"metadata": {"name": name, "uid": name, "creationTimestamp": ago(created)}}));
            world.put(pod.clone());
        }
        if beside {
            let metadata = json!({"name": "agent-old", "uid": "old", "creationTimestamp": ago(90),
                "labels": {"controller-revision-hash": "old"}});
            merge(&mut pod, json!({"metadata": metadata, "status": {"phase": "Running"}}));
            world.put(pod);
        }
        if let Some(template) = template {
            world.patch(&DAEMON_SET, "default", "agent", image(template));
        }
        let decision = daemonset::decide(&daemonset::observe(&world.snapshot, &key()).expect("observed"), now());
        (decided(&world).0.len(), decision.wake_at.map(|at| at.duration_since(now()).as_secs()))
    };
    assert_eq!(refused(false, None), (0, Some(20)), "thirty seconds after the last one");
    assert_eq!(refused(true, None), (0, Some(20)), "whoever runs beside it");
    assert_eq!(refused(false, Some("good:2")), (1, None));
}

/// S10, S12: revisions and pods without an owner are taken in, and a revision that was deleted is made again.
#[test]
fn what_belongs_to_it_is_taken_in_and_made_again() {
    let mut world = world(1, json!({}));
    rest(&mut world);
    let revision = world.all(&CONTROLLER_REVISION).next().unwrap().clone();
    let name = ObjectKey::of(&revision);
    world.remove(&CONTROLLER_REVISION, &name);
    rest(&mut world);
    assert_eq!(world.all(&CONTROLLER_REVISION).count(), 1, "made again");
    let pod = names(&world)[0].clone();
    for (kind, name) in [(&POD, pod), (&CONTROLLER_REVISION, name.name.to_string())] {
        let mut orphan = world.get(kind, "default", &name);
        merge(&mut orphan, json!({"metadata": {"ownerReferences": null, "uid": "an-orphan"}}));
        world.remove(kind, &ObjectKey::new("default", &*name));
        world.settle(&[], now());
        world.put(orphan);
        rest(&mut world);
        let owner = world.get(kind, "default", &name)["metadata"]["ownerReferences"][0]["uid"].clone();
        assert_eq!(owner, "uid-agent", "{name}");
    }
    assert_eq!((world.all(&POD).count(), world.all(&CONTROLLER_REVISION).count()), (1, 1));
}

#[test]
fn on_delete_waits_for_somebody_to_delete() {
    let mut world = world(2, json!({"updateStrategy": {"type": "OnDelete"}}));
    rest(&mut world);
    change(&mut world, image("good:2"));
    rest(&mut world);
    assert_eq!(shape(&world), everywhere(2, "good:1"));
    let all = names(&world);
    world.delete(&POD, "default", &all[0], None);
    rest(&mut world);
    assert_eq!(shape(&world).values().filter(|images| images[0] == "good:2").count(), 1);
}

#[test]
fn history_is_kept_to_its_limit() {
    let mut world = world(1, json!({"revisionHistoryLimit": 1}));
    for number in 2..=5 {
        rest(&mut world);
        change(&mut world, image(&format!("good:{number}")));
    }
    rest(&mut world);
    assert_eq!(world.all(&CONTROLLER_REVISION).count(), 2, "the one in use and one more");
}

#[test]
fn a_pod_that_ends_is_made_again() {
    let mut world = world(1, json!({}));
    rest(&mut world);
    let name = names(&world)[0].clone();
    world.patch(&POD, "default", &name, json!({"status": {"phase": "Failed"}}));
    rest(&mut world);
    assert_ne!(names(&world), std::slice::from_ref(&name));
    let words = format!("FailedDaemonPod: Found failed daemon pod default/{name} on node n1, will try to kill it");
    assert!(world.events.contains(&words), "{:?}", world.events);
}

/// S2 for what a daemon holds on its node: the next one is made when the last one cannot run any more.
#[test]
fn a_daemon_on_its_way_out_is_followed_when_it_has_ended() {
    let gone = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x.io/y"]}});
    for (phase, made) in [("Running", 0), ("Failed", 1), ("Succeeded", 1)] {
        let mut world = world(1, json!({}));
        rest(&mut world);
        let name = names(&world)[0].clone();
        world.patch(&POD, "default", &name, json!({"status": {"phase": phase}}));
        world.patch(&POD, "default", &name, gone.clone());
        assert_eq!(decided(&world).1.len(), made, "{phase}");
    }
    // One that has ended by itself is told to go, and said to have.
    for (phase, said) in
        [("Failed", "FailedDaemonPod: Found failed"), ("Succeeded", "SucceededDaemonPod: Found succeeded")]
    {
        let mut world = world(1, json!({}));
        rest(&mut world);
        let name = names(&world)[0].clone();
        let ended = |second: i64| {
            let at = Timestamp::from_second(1_800_000_000 - second).unwrap().to_string();
            let state = json!({"terminated": {"exitCode": 1, "finishedAt": at}});
            let container = json!({"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": state});
            json!({"status": {"phase": phase, "containerStatuses": [container]}})
        };
        world.patch(&POD, "default", &name, ended(0));
        let observed = daemonset::observe(&world.snapshot, &key()).expect("observed");
        let waits = daemonset::decide(&observed, now());
        let wakes = now().checked_add(jiff::SignedDuration::from_secs(1)).ok().filter(|_| phase == "Failed");
        assert_eq!((waits.wake_at, decided(&world).0.len()), (wakes, usize::from(phase != "Failed")), "{phase}");
        world.patch(&POD, "default", &name, ended(1));
        assert_eq!(decided(&world).0, ["n1"], "{phase}");
        rest(&mut world);
        assert!(world.events.iter().any(|event| event.starts_with(said)), "{:?}", world.events);
        for said in [format!("SuccessfulDelete: Deleted pod: {name}"), format!("SuccessfulCreate: Created pod: {name}")]
        {
            assert!(world.events.contains(&said), "{said}");
        }
    }
}

#[test]
fn nothing_is_made_where_it_would_not_live_or_for_everybody() {
    let leaving = json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["foregroundDeletion"]});
    let mut world = world(0, json!({}));
    world.put(json!({"kind": "Namespace", "metadata": {"name": "default"}}));
    node(&mut world, "n1", json!({}), Value::Null);
    assert_eq!(decided(&world).1, ["n1"]);
    let mut of_set = world.clone();
    of_set.patch(&DAEMON_SET, "default", "agent", json!({ "metadata": leaving }));
    assert_eq!(decided(&of_set).1.len(), 0, "the set goes");
    let mut of_all = world.clone();
    of_all.patch(&DAEMON_SET, "default", "agent", json!({"spec": {"selector": {"matchLabels": null}}}));
    of_all.settle(CONTROLLERS, now());
    let said = "SelectingAll: This daemon set is selecting all pods. A non-empty selector is required.";
    assert_eq!((of_all.all(&POD).count(), of_all.events.last().map(String::as_str)), (0, Some(said)));
    world.put(json!({"kind": "Namespace", "metadata": merged(&leaving, &json!({"name": "default"}))}));
    let decision = daemonset::decide(&daemonset::observe(&world.snapshot, &key()).expect("observed"), now());
    assert_eq!(
        (decided(&world).1.len(), decision.waiting),
        (0, vec![Waiting::NamespaceTerminating]),
        "the namespace goes"
    );
    // With nothing to make, nothing waits.
    world.remove(&NODE, &ObjectKey::new("", "n1"));
    let decision = daemonset::decide(&daemonset::observe(&world.snapshot, &key()).expect("observed"), now());
    assert_eq!(decision.waiting, []);
}

/// What a pod needs is written before it, and one that is on its way is not told to go again.
#[test]
fn pods_are_made_last_and_told_to_go_once() {
    let mut world = world(0, json!({}));
    node(&mut world, "n1", json!({}), Value::Null);
    change_unsettled(&mut world);
    let decision = daemonset::decide(&daemonset::observe(&world.snapshot, &key()).expect("observed"), now());
    let kinds: Vec<&str> = decision
        .writes
        .iter()
        .map(|write| match write {
            Write::Create { kind, .. } | Write::Patch { kind, .. } => &*kind.kind,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(kinds, ["ControllerRevision", "DaemonSet", "Pod"]);
    world.settle(CONTROLLERS, now());
    rest(&mut world);
    let name = names(&world)[0].clone();
    node(&mut world, "n1", json!({}), json!([{"key": "k", "effect": "NoExecute"}]));
    assert_eq!(decided(&world).0.len(), 1);
    world.delete(&POD, "default", &name, None);
    assert_eq!(decided(&world).0.len(), 0);
}

/// A new template, with nothing decided of it.
fn change_unsettled(world: &mut World) {
    world.patch(&DAEMON_SET, "default", "agent", image("good:2"));
}

/// The node is one more condition of every term that the template has: never a way around them.
#[test]
fn a_pod_may_only_be_where_its_template_and_its_set_want_it() {
    let terms = |terms: Value| {
        let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": terms}}});
        let world = world(1, json!({"template": {"spec": {"affinity": affinity}}}));
        let pod = world.all(&POD).next().cloned();
        pod.map(|pod| {
            let path = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
            pod.pointer(path).unwrap().as_array().unwrap().iter().map(|term| term["matchFields"].clone()).collect()
        })
    };
    let here = json!([{"key": "metadata.name", "operator": "In", "values": ["n1"]}]);
    let absent = |key: &str| json!({"matchExpressions": [{"key": key, "operator": "DoesNotExist"}]});
    let made: Option<Vec<Value>> = terms(json!([absent("a"), absent("b")]));
    assert_eq!(made, Some(vec![here.clone(), here]));
}

fn merged(one: &Value, other: &Value) -> Value {
    let mut all = one.clone();
    merge(&mut all, other.clone());
    all
}

/// A pod that no node has yet goes with the node that it is for; one that is bound there is not this controller's.
#[test]
fn pods_for_a_node_that_is_no_more_go_unless_they_are_bound_there() {
    for (bound, leaving, gone) in [(None, false, 1), (Some("n1"), false, 0), (None, true, 0), (Some(""), false, 1)] {
        let mut world = world(1, json!({}));
        let name = names(&world)[0].clone();
        if let Some(node) = bound {
            world.patch(&POD, "default", &name, json!({"spec": {"nodeName": node}}));
        }
        if leaving {
            let metadata = json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x.io/y"]});
            world.patch(&POD, "default", &name, json!({ "metadata": metadata }));
        }
        world.remove(&NODE, &ObjectKey::new("", "n1"));
        assert_eq!(decided(&world).0.len(), gone, "bound: {bound:?}, leaving: {leaving}");
    }
}

/// Shares are of the nodes that shall have a pod, rounded up; a set without any room takes one after the other.
#[test]
fn the_bounds_of_an_update_are_of_the_nodes_that_it_is_for() {
    for (rolling, gone, made) in [
        (json!({"maxUnavailable": "50%", "maxSurge": 0}), 2, 0),
        (json!({"maxUnavailable": 0, "maxSurge": "50%"}), 0, 2),
        (json!({"maxUnavailable": "1%", "maxSurge": 0}), 1, 0),
        (json!({"maxUnavailable": 0, "maxSurge": 0}), 1, 0),
    ] {
        let of_zone = json!({"template": {"spec": {"nodeSelector": {"zone": "a"}}},
            "updateStrategy": {"rollingUpdate": rolling}});
        let mut world = world(9, of_zone);
        for name in ["n1", "n2", "n3"] {
            world.patch(&NODE, "", name, json!({"metadata": {"labels": {"zone": "a"}}}));
        }
        rest(&mut world);
        assert_eq!(status(&world, "numberReady"), 3);
        world.patch(&DAEMON_SET, "default", "agent", image("good:2"));
        let (of, on, _) = decided(&world);
        assert_eq!((of.len(), on.len()), (gone, made), "{rolling}");
    }
}

#[test]
fn the_status_counts_each_node_once_and_leaves_out_what_is_none() {
    let mut world = world(3, json!({"minReadySeconds": 10}));
    rest(&mut world);
    report(&mut world, "n1", "good:1", "False");
    let pod = world.all(&POD).find(|pod| target(pod) == "n2").unwrap()["metadata"]["name"].clone();
    let conditions = json!([{"type": "Ready", "status": "True", "lastTransitionTime": now().to_string()}]);
    world.patch(&POD, "default", pod.as_str().unwrap(), json!({"status": {"conditions": conditions}}));
    node(&mut world, "n4", json!({}), json!([{"key": "k", "effect": "NoSchedule"}]));
    let decision = daemonset::decide(&daemonset::observe(&world.snapshot, &key()).expect("observed"), now());
    assert_eq!(decision.waiting, [Waiting::NotYetAvailable]);
    let later = now().checked_add(jiff::SignedDuration::from_secs(10)).unwrap();
    assert_eq!(decision.wake_at, Some(later));
    world.settle(CONTROLLERS, now());
    let all = world.get(&DAEMON_SET, "default", "agent")["status"].clone();
    for (field, expected) in [
        ("desiredNumberScheduled", json!(3)),
        ("currentNumberScheduled", json!(3)),
        ("numberReady", json!(2)),
        ("numberAvailable", json!(1)),
        ("numberUnavailable", json!(2)),
        ("numberMisscheduled", json!(0)),
        ("updatedNumberScheduled", json!(3)),
        ("collisionCount", Value::Null),
    ] {
        assert_eq!(all[field], expected, "{field}");
    }
    world.ask_anew();
    world.settle(CONTROLLERS, later);
    world.run(&daemonset::CONTROLLER, &key(), later, usize::MAX);
    assert_eq!(status(&world, "numberAvailable"), 2, "it has been Ready for long enough");
    report(&mut world, "n1", "good:1", "True");
    world.run(&daemonset::CONTROLLER, &key(), later, usize::MAX);
    assert_eq!(world.get(&DAEMON_SET, "default", "agent")["status"]["numberUnavailable"], Value::Null);
}

/// S6: a revision that a pod still has is kept, and one whose name another object has gets another name.
#[test]
fn revisions_are_kept_while_pods_have_them_and_named_apart_s6() {
    let mut world = world(1, json!({"revisionHistoryLimit": 0, "updateStrategy": {"type": "OnDelete"}}));
    rest(&mut world);
    change(&mut world, image("good:2"));
    rest(&mut world);
    assert_eq!(world.all(&CONTROLLER_REVISION).count(), 2, "the pod has the old one");
    let all = names(&world);
    world.delete(&POD, "default", &all[0], None);
    rest(&mut world);
    assert_eq!(world.all(&CONTROLLER_REVISION).count(), 1);
    let mut taken = world.all(&CONTROLLER_REVISION).next().unwrap().clone();
    let name = ObjectKey::of(&taken);
    world.remove(&CONTROLLER_REVISION, &name);
    merge(&mut taken, json!({"metadata": {"ownerReferences": null, "labels": null, "uid": "x"}}));
    world.put(taken);
    rest(&mut world);
    assert_eq!((world.all(&CONTROLLER_REVISION).count(), status(&world, "collisionCount")), (2, 1));
    assert_eq!(world.get(&CONTROLLER_REVISION, "default", &name.name)["metadata"]["ownerReferences"], Value::Null);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// Wherever decisions are cut: never fewer available pods than the bounds allow, never more pods than the surge
    /// allows, and the end is the same (S12).
    #[test]
    fn a_rollout_stays_within_its_bounds_s12(steps in prop::collection::vec((0_usize..3, 0_usize..8, 0_usize..4),
        1..60), surges: bool) {
        let (surge, unavailable) = if surges { (2, 0) } else { (0, 2) };
        let mut world = world(4, json!({"updateStrategy": {"rollingUpdate": {"maxSurge": surge,
            "maxUnavailable": unavailable}}}));
        rest(&mut world);
        world.patch(&DAEMON_SET, "default", "agent", image("good:2"));
        for (who, which, cut) in steps {
            let all = names(&world);
            match who {
                0 => { world.run(&daemonset::CONTROLLER, &key(), now(), cut); }
                _ if !all.is_empty() => kubelet(&mut world, &all[which % all.len()]),
                _ => {}
            }
            let stays = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null();
            let live: Vec<&Value> = world.all(&POD).filter(stays).collect();
            let ready = live.iter().filter(|pod| pod["status"]["conditions"][0]["status"] == "True").count();
            prop_assert!(live.len() <= 4 + surge, "{} pods", live.len());
            prop_assert!(ready >= 4 - unavailable, "{} ready", ready);
        }
        rest(&mut world);
        prop_assert_eq!(shape(&world), everywhere(4, "good:2"));
        prop_assert_eq!(status(&world, "updatedNumberScheduled"), 4);
    }
}
