//! The scheduler's rounds: the next is decided while the last is being committed.

use std::collections::BTreeMap;

use mainstay_logic::controllers::CONTROLLERS;

use super::*;

/// A cluster with these nodes, of which each has room for so many pods.
fn cluster(nodes: &[&str], pods: usize) -> Cluster {
    let cluster = Cluster::new();
    let class = json!({ "metadata": { "name": "local" }, "provisioner": "mainstay.io/local-path",
        "volumeBindingMode": "WaitForFirstConsumer" });
    cluster.create(&kinds::STORAGE_CLASS, class).expect("created");
    for name in nodes {
        let metadata = json!({ "name": name, "labels": { "kubernetes.io/hostname": name },
            "annotations": { "mainstay.io/volume-root": "/v" } });
        cluster.create(&kinds::NODE, json!({ "metadata": metadata })).expect("created");
        let room = json!({ "cpu": "100", "memory": "100Gi", "pods": pods.to_string() });
        let status = json!({ "status": { "capacity": room, "allocatable": room,
            "conditions": [{ "type": "Ready", "status": "True" }] } });
        cluster.merge(&kinds::NODE, name, crate::api::Part::Status, status).expect("ready");
    }
    cluster
}

fn make_pod(cluster: &Cluster, name: &str, claim: Option<&str>) {
    let mut spec = json!({ "containers": [{ "name": "c", "image": "i" }] });
    if let Some(claim) = claim {
        spec["volumes"] = json!([{ "name": "data", "persistentVolumeClaim": { "claimName": claim } }]);
    }
    cluster.create(&kinds::POD, json!({ "metadata": { "name": name }, "spec": spec })).expect("created");
}

fn begin(cluster: &Cluster) -> (Driver, Watcher) {
    let mut driver = Driver::new(CONTROLLERS).deciding_together(2);
    let watcher = driver.load(&cluster.api.store, cluster.api.now()).expect("loaded");
    (driver, watcher)
}

/// The scheduler's decisions until it has none for now; those of the others are committed at once.
fn rounds(cluster: &Cluster, driver: &mut Driver, watcher: &mut Watcher) -> Vec<Work> {
    let now = cluster.api.now();
    let mut rounds = Vec::new();
    for _ in 0..1000 {
        match driver.poll(now) {
            None => return rounds,
            Some(work) if work.controller == "default-scheduler" => rounds.push(work),
            Some(work) => {
                land(cluster, driver, work);
                feed(driver, watcher, now);
            }
        }
    }
    panic!("the controllers never come to rest");
}

/// Everything is decided and committed, each round before the next.
fn settle(cluster: &Cluster, driver: &mut Driver, watcher: &mut Watcher) {
    for _ in 0..100 {
        let rounds = rounds(cluster, driver, watcher);
        if rounds.is_empty() {
            return;
        }
        rounds.into_iter().for_each(|work| land(cluster, driver, work));
        feed(driver, watcher, cluster.api.now());
    }
    panic!("the scheduler never comes to rest");
}

fn nodes_of(rounds: &[Work]) -> Vec<String> {
    let writes = rounds.iter().flat_map(|work| &work.parts).flat_map(|part| &part.decision.writes);
    writes.filter_map(|write| if let Write::Bind { node, .. } = write { Some(node.clone()) } else { None }).collect()
}

fn node_of(cluster: &Cluster, pod: &str) -> String {
    let pod = cluster.get(&kinds::POD, pod).expect("there");
    object::text(&pod, &["spec", "nodeName"]).to_owned()
}

/// What the last round takes is taken, though nothing of it is committed; and no more than two are under way.
#[test]
fn x6_a_round_is_decided_while_the_last_is_committed_and_gives_no_room_twice() {
    let cluster = cluster(&["n1", "n2", "n3"], 2);
    (0..7).for_each(|index| make_pod(&cluster, &format!("p{index}"), None));
    let (mut driver, mut watcher) = begin(&cluster);
    let under_way = rounds(&cluster, &mut driver, &mut watcher);
    assert_eq!(under_way.iter().map(|work| work.parts.len()).collect::<Vec<_>>(), [2, 2]);
    let mut taken: BTreeMap<String, usize> = BTreeMap::new();
    nodes_of(&under_way).into_iter().for_each(|node| *taken.entry(node).or_default() += 1);
    assert_eq!(taken.values().sum::<usize>(), 4);
    assert!(taken.values().all(|pods| *pods <= 2), "{taken:?}");
    // In any order.
    under_way.into_iter().rev().for_each(|work| land(&cluster, &mut driver, work));
    assert!(rounds(&cluster, &mut driver, &mut watcher).is_empty(), "nothing of it is seen yet");
    feed(&mut driver, &mut watcher, cluster.api.now());
    settle(&cluster, &mut driver, &mut watcher);
    let placed = (0..7).filter(|index| !node_of(&cluster, &format!("p{index}")).is_empty()).count();
    assert_eq!(placed, 6, "there is room for six");
    assert_eq!(driver.counts().broken().collect::<Vec<_>>(), []);
}

/// Fewer than a round takes wait until the last is seen: they are then decided together with those that come meanwhile.
#[test]
fn x6_a_round_that_is_not_full_waits_for_the_last() {
    let cluster = cluster(&["n1"], 10);
    (0..3).for_each(|index| make_pod(&cluster, &format!("p{index}"), None));
    let (mut driver, mut watcher) = begin(&cluster);
    let first = rounds(&cluster, &mut driver, &mut watcher);
    assert_eq!(first.iter().map(|work| work.parts.len()).collect::<Vec<_>>(), [2]);
    first.into_iter().for_each(|work| land(&cluster, &mut driver, work));
    feed(&mut driver, &mut watcher, cluster.api.now());
    assert_eq!(rounds(&cluster, &mut driver, &mut watcher).iter().map(|work| work.parts.len()).sum::<usize>(), 1);
}

/// A claim that a round binds is assumed by nobody: whoever has it too is decided when it is bound.
#[test]
fn v5_v9_pods_of_one_claim_are_not_placed_in_two_rounds_at_a_time() {
    let cluster = cluster(&["n1", "n2", "n3"], 10);
    let spec = json!({ "accessModes": ["ReadWriteOnce"], "storageClassName": "local",
        "resources": { "requests": { "storage": "1Gi" } } });
    for name in ["a", "b"] {
        let claim = json!({ "metadata": { "name": name }, "spec": spec });
        cluster.create(&kinds::PERSISTENT_VOLUME_CLAIM, claim).expect("created");
    }
    (0..6).for_each(|index| make_pod(&cluster, &format!("p{index}"), Some(if index % 2 == 0 { "a" } else { "b" })));
    let (mut driver, mut watcher) = begin(&cluster);
    let under_way = rounds(&cluster, &mut driver, &mut watcher);
    assert_eq!(nodes_of(&under_way).len(), 2, "one pod of each claim");
    let claimed: Vec<usize> = under_way.iter().map(|work| work.parts.len()).collect();
    assert_eq!(claimed.iter().sum::<usize>(), 2, "{claimed:?}");
    under_way.into_iter().for_each(|work| land(&cluster, &mut driver, work));
    feed(&mut driver, &mut watcher, cluster.api.now());
    settle(&cluster, &mut driver, &mut watcher);
    for index in 2..6 {
        assert_eq!(node_of(&cluster, &format!("p{index}")), node_of(&cluster, &format!("p{}", index % 2)));
    }
    assert_eq!(driver.counts().broken().collect::<Vec<_>>(), []);
}

/// What is refused was taken by nobody: who was told that it is, is looked at again although nothing changed.
#[test]
fn x6_who_found_no_room_beside_a_round_that_is_refused_is_placed() {
    let cluster = cluster(&["n1"], 2);
    (0..4).for_each(|index| make_pod(&cluster, &format!("p{index}"), None));
    let (mut driver, mut watcher) = begin(&cluster);
    let mut under_way = rounds(&cluster, &mut driver, &mut watcher);
    assert_eq!((under_way.len(), nodes_of(&under_way).len()), (2, 2), "there is no room for the second two");
    for pod in ["p0", "p1"] {
        let now = crate::api::DeleteOptions { grace: Some(0), ..crate::api::DeleteOptions::default() };
        cluster.write(|batch| crate::api::delete(batch, &kinds::POD, "default", pod, &now)).expect("deleted");
    }
    let second = under_way.pop().expect("two");
    land(&cluster, &mut driver, second);
    feed(&mut driver, &mut watcher, cluster.api.now());
    under_way.into_iter().for_each(|work| land(&cluster, &mut driver, work));
    feed(&mut driver, &mut watcher, cluster.api.now());
    settle(&cluster, &mut driver, &mut watcher);
    assert_eq!(["p2", "p3"].map(|pod| node_of(&cluster, pod)), ["n1", "n1"]);
}

/// However much is refused, and however often: all are looked at again once in a while (X7).
#[test]
fn x7_rounds_that_are_refused_have_the_others_looked_at_again_later_and_once() {
    let cluster = cluster(&["n1"], 2);
    (0..4).for_each(|index| make_pod(&cluster, &format!("p{index}"), None));
    let (mut driver, mut watcher) = begin(&cluster);
    let mut under_way = rounds(&cluster, &mut driver, &mut watcher);
    let (second, first) = (under_way.pop().expect("two"), under_way.pop().expect("two"));
    let everybody = (first.parts[0].item.0, ObjectKey::new("", ""));
    let now = cluster.api.now();
    // Nothing was decided as if the second were done.
    driver.finished(second, &Finish::Failed(None, 0), now);
    let in_all = |driver: &mut Driver| {
        let due = driver.queue.take_due(now.saturating_add(REFUTED).expect("in range"));
        due.iter().filter(|item| **item == everybody).count()
    };
    assert_eq!(in_all(&mut driver), 0);
    driver.finished(first, &Finish::Failed(None, 0), now);
    assert_eq!(in_all(&mut driver), 1, "for both of its pods");
}
