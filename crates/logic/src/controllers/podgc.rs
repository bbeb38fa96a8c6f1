//! Removes pods that no node will ever report on again. Key: the pod.
//!
//! Relies on: a Node object being removed, or tainted `node.kubernetes.io/out-of-service`, only when nothing runs there
//! any more. That is upstream's meaning of both, and the fencing that S2 speaks of.
//! Guarantees S1 and S2: a pod of a silent node is left alone. A pod whose node is gone is first marked, and removed
//! only when the node has not come back [`QUARANTINE`] later, so that a node which registers again keeps its pods.
//! Safe when cut: the mark is the pod's own condition; phase and removal follow in this order.
//! Finished pods beyond [`MOST_ENDED`] go, evicted ones and then the oldest first, as upstream's; keys that are no
//! pod's are [`SURPLUS`] and the uid of an owner. Differs: of a ReplicaSet's or ReplicationController's finished pods
//! [`MOST_ENDED_OF`] are kept: nothing else removes them while their owner is there (X7).

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition};
use mainstay_api::{ObjectKey, kinds};
use serde_json::json;

use crate::decision::{Controller, Decision, Propagation, Verb, Waiting, Write, guarded_status, key_of, turn};
use crate::nodes::is_ready;
use crate::ownership::controller_of;
use crate::pods::{DISRUPTION_TARGET, condition, disrupted, is_finished, is_terminating, undisrupted};
use crate::snapshot::{Change, Index, Snapshot};

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "pod-garbage-collector-controller",
    permits: &[(Verb::PatchStatus, "pods"), (Verb::Delete, "pods")],
    reads: &["nodes", "pods"],
    keys,
    reconcile: |snapshot, key, now| match key.namespace.is_empty() {
        true => surplus(snapshot, key, now),
        false => observe(snapshot, key).map(|observed| decide(&observed, now)).unwrap_or_default(),
    },
    many: None,
};

/// How long a node must be gone before its pods are; upstream's.
const QUARANTINE: SignedDuration = SignedDuration::from_secs(40);
/// So many finished pods are kept; upstream's default.
const MOST_ENDED: usize = 12_500;
/// So many of one ReplicaSet's or ReplicationController's.
const MOST_ENDED_OF: usize = 50;
/// How many one decision removes; the next takes the rest.
const MAX_DELETES: usize = 500;
/// The key under which what is beyond [`MOST_ENDED`] is decided.
const SURPLUS: &str = "surplus";
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// Why a pod has [`DISRUPTION_TARGET`] here; since when tells for how long its node is gone.
pub const REASON: &str = "DeletionByPodGC";

/// A pod and the node that it is bound to.
pub struct Observed<'a> {
    pod: &'a Pod,
    /// The name it is bound to, `""` for none, and the node of that name.
    bound: (&'a str, Option<&'a Node>),
}

fn keys(before: &Snapshot, after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    match (&*change.kind.group, &*change.kind.plural) {
        ("", "pods") => {
            // Of others there is nothing to decide until their node changes, which wakes them.
            let is_due = |seen: Observed| {
                let is_lost = !seen.bound.0.is_empty() && seen.bound.1.is_none();
                is_lost || is_terminating(&seen.pod.metadata) || mark(seen.pod).is_some()
            };
            if change.new.is_none() || observe(after, &change.key).is_some_and(is_due) {
                wake(change.key.clone());
            }
            if after.indexes.count(Index::PodsEnded, "", "") > MOST_ENDED {
                wake(ObjectKey::new("", SURPLUS));
            }
            // One that went may have been one of many that are to go.
            let owner = change.new.as_ref().or(change.old.as_ref()).and_then(|meta| controller_of(&meta.metadata));
            if let Some(owner) =
                owner.filter(|owner| after.indexes.count(Index::PodsEndedOf, &owner.uid, "") > MOST_ENDED_OF)
            {
                wake(ObjectKey::new("", owner.uid.as_str()));
            }
        }
        ("", "nodes") => {
            let fingerprint = |snapshot: &Snapshot| {
                snapshot.nodes.get(&change.key).map(|node| (is_out_of_service(node), is_ready(node)))
            };
            if fingerprint(before) != fingerprint(after) {
                after.pods_of_node(&change.key.name).for_each(|(key, _)| wake(key.clone()));
            }
        }
        _ => {}
    }
}

/// Deletes what is too much: of all finished pods, or of an owner's.
fn surplus(snapshot: &Snapshot, key: &ObjectKey, now: Timestamp) -> Decision {
    let mut pods: Vec<&ObjectKey> = Vec::new();
    if &*key.name == SURPLUS {
        let excess = snapshot.indexes.count(Index::PodsEnded, "", "").saturating_sub(MOST_ENDED);
        let first = turn(excess, MAX_DELETES, now);
        let all = snapshot.indexes.between(Index::PodsEndedSince, "", "9").take(excess);
        pods.extend(all.skip(first).take(MAX_DELETES));
    } else {
        let created = |key: &ObjectKey| {
            let pod = snapshot.pods.get(key)?;
            pod.metadata.creation_timestamp.as_ref().map(|time| time.0)
        };
        pods.extend(snapshot.indexes.get(Index::PodsEndedOf, &key.name, ""));
        pods.sort_by_cached_key(|key| created(key));
        pods.truncate(pods.len().saturating_sub(MOST_ENDED_OF));
        let first = turn(pods.len(), MAX_DELETES, now);
        pods = pods.into_iter().skip(first).take(MAX_DELETES).collect();
    }
    let mut decision = Decision::default();
    // One that may not be deleted keeps no other.
    let pods = pods.into_iter().filter_map(|key| snapshot.pods.get(key));
    pods.for_each(|pod| decision.push_apart(Write::delete(&kinds::POD, &pod.metadata)));
    decision
}

fn observe<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<Observed<'a>> {
    let pod = snapshot.pods.get(key)?;
    let name = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or("");
    Some(Observed { pod, bound: (name, snapshot.nodes.get(&ObjectKey::new("", name)).map(|node| &**node)) })
}

fn decide(observed: &Observed, now: Timestamp) -> Decision {
    let pod = observed.pod;
    match observed.bound {
        ("", _) if is_terminating(&pod.metadata) => remove(pod, "PodGC: unscheduled pod is being deleted", now),
        ("", _) => Decision::default(),
        (_, Some(node)) if is_terminating(&pod.metadata) && is_out_of_service(node) && !is_ready(node) => {
            remove(pod, "PodGC: node is out of service", now)
        }
        (_, Some(_)) => forgive(pod),
        (_, None) => orphan(pod, now),
    }
}

fn is_out_of_service(node: &Node) -> bool {
    node.spec.iter().flat_map(|spec| spec.taints.iter().flatten()).any(|taint| taint.key == OUT_OF_SERVICE)
}

fn mark(pod: &Pod) -> Option<&PodCondition> {
    condition(pod, DISRUPTION_TARGET).filter(|condition| condition.reason.as_deref() == Some(REASON))
}

fn orphan(pod: &Pod, now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    let Some(mark) = mark(pod) else {
        decision.writes.push(guarded_status(
            &kinds::POD,
            &pod.metadata,
            json!({"conditions": disrupted(pod, REASON, "PodGC: node no longer exists", now)}),
        ));
        decision.waiting.push(Waiting::Backoff);
        return decision;
    };
    let since = mark.last_transition_time.as_ref().map_or(now, |time| time.0);
    let end = since.checked_add(QUARANTINE).unwrap_or(Timestamp::MAX);
    if now < end {
        decision.wake(end);
        decision.waiting.push(Waiting::Backoff);
        return decision;
    }
    remove(pod, "PodGC: node no longer exists", now)
}

/// The node is there (again): nothing is held against its pods.
fn forgive(pod: &Pod) -> Decision {
    let mut decision = Decision::default();
    if mark(pod).is_some() && !is_finished(pod) && !is_terminating(&pod.metadata) {
        let conditions: Vec<PodCondition> = undisrupted(pod).collect();
        decision.writes.push(guarded_status(&kinds::POD, &pod.metadata, json!({"conditions": conditions})));
    }
    decision
}

fn remove(pod: &Pod, message: &str, now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    if !is_finished(pod) {
        let conditions = if mark(pod).is_some() {
            undisrupted(pod).chain(mark(pod).cloned()).collect()
        } else {
            disrupted(pod, REASON, message, now)
        };
        decision.writes.push(guarded_status(
            &kinds::POD,
            &pod.metadata,
            json!({"phase": "Failed", "conditions": conditions}),
        ));
    }
    decision.writes.push(Write::Delete {
        kind: kinds::POD.clone(),
        key: key_of(&pod.metadata),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        resource_version: None,
        grace_period: Some(0),
        propagation: Propagation::Background,
    });
    decision
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::tests::{node, pod};
    use crate::world::World;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn run(world: &mut World, seconds: i64) -> bool {
        world.run(&CONTROLLER, &ObjectKey::new("default", "a"), at(seconds), usize::MAX);
        !world.get(&kinds::POD, "default", "a").is_null()
    }

    fn world() -> World {
        let mut world = World::default();
        world.put(node("n1", json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}})));
        world.put(pod("a", json!({"spec": {"nodeName": "n1"}, "status": {"phase": "Running"}})));
        world
    }

    #[test]
    fn s1_s2_a_silent_nodes_pod_stays_until_the_node_is_out_of_service() {
        let mut world = world();
        world.delete(&kinds::POD, "default", "a", None);
        assert!(run(&mut world, 0) && run(&mut world, 100_000), "stays Terminating");
        world.patch(
            &kinds::NODE,
            "",
            "n1",
            json!({"spec": {"taints": [{"key": OUT_OF_SERVICE, "effect": "NoExecute"}]}}),
        );
        assert!(!run(&mut world, 100_001));
    }

    /// S12: the change of the pod alone is enough: one that was made for a node that is gone, one whose node came back
    /// in the moment in which it was marked, one that is told to go.
    #[test]
    fn s12_a_pod_is_looked_at_whenever_it_changes_itself() {
        let condition = |world: &World| world.get(&kinds::POD, "default", "a")["status"]["conditions"].clone();
        let mut lost = World::default();
        lost.put(pod("a", json!({"spec": {"nodeName": "n1"}, "status": {"phase": "Running"}})));
        lost.settle(&[CONTROLLER], at(5));
        assert_eq!(condition(&lost)[0]["reason"], REASON);
        let decision = (CONTROLLER.reconcile)(&lost.snapshot, &ObjectKey::new("default", "a"), at(6));
        assert_eq!((decision.waiting, decision.wake_at), (vec![Waiting::Backoff], Some(at(45))));
        let mut back = world();
        back.settle(&[CONTROLLER], at(5));
        back.patch(&kinds::POD, "default", "a", json!({"status": {"conditions": condition(&lost)}}));
        back.settle(&[CONTROLLER], at(5));
        assert_eq!(condition(&back), json!([]));
        // Why and since when it was lost stays with the pod that ends of it.
        lost.patch(&kinds::POD, "default", "a", json!({"metadata": {"finalizers": ["x.io/held"]}}));
        run(&mut lost, 45);
        assert_eq!(condition(&lost)[0]["lastTransitionTime"], json!(at(5).to_string()));
    }

    /// S12: what was never bound and is told to go is seen to go, by the change of the pod alone.
    #[test]
    fn s12_an_unscheduled_pod_that_is_deleted_ends() {
        let mut world = World::default();
        world.put(pod("a", json!({"metadata": {"finalizers": ["x.io/held"]}, "status": {"phase": "Pending"}})));
        world.settle(&[CONTROLLER], at(0));
        world.delete(&kinds::POD, "default", "a", None);
        world.settle(&[CONTROLLER], at(0));
        let status = world.get(&kinds::POD, "default", "a")["status"].clone();
        assert_eq!((&status["phase"], &status["conditions"][0]["reason"]), (&json!("Failed"), &json!(REASON)));
    }

    #[test]
    fn a_removed_nodes_pods_go_after_the_quarantine_unless_it_comes_back() {
        let mut world = world();
        let node = world.get(&kinds::NODE, "", "n1");
        world.remove(&kinds::NODE, &ObjectKey::new("", "n1"));
        let first = (CONTROLLER.reconcile)(&world.snapshot, &ObjectKey::new("default", "a"), at(0));
        assert_eq!(first.waiting, [Waiting::Backoff]);
        assert!(run(&mut world, 0) && run(&mut world, 39));
        world.put(node);
        assert!(run(&mut world, 39));
        assert_eq!(world.get(&kinds::POD, "default", "a")["status"]["conditions"], json!([]), "the mark is taken back");
        world.remove(&kinds::NODE, &ObjectKey::new("", "n1"));
        assert!(run(&mut world, 50) && run(&mut world, 89));
        assert!(!run(&mut world, 90));
    }

    /// S1, S2, S13: what is taken away, and from which node; everything else is left as it is.
    #[test]
    fn s1_s2_s13_pods_go_only_when_nothing_of_them_can_run() {
        let n1 = |ready: &str, taint: &str| {
            let taints = json!([{"key": taint, "effect": "NoExecute"}]);
            node(
                "n1",
                json!({"spec": {"taints": taints}, "status": {"conditions": [{"type": "Ready", "status": ready}]}}),
            )
        };
        let leaving = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x.io/held"]}});
        let on_n1 = json!({"spec": {"nodeName": "n1"}});
        let of_phase = |phase: &str| json!({"status": {"phase": phase}});
        let marked = |reason: &str| {
            json!({"status": {"conditions": [{"type": "Ready", "status": "True"},
                {"type": DISRUPTION_TARGET, "status": "True", "reason": reason,
                    "lastTransitionTime": at(5).to_string()}]}})
        };
        let both = "Failed 1, delete now";
        let table = [
            (vec![], vec![leaving.clone()], both),
            (vec![], vec![], ""),
            (vec![n1("Unknown", OUT_OF_SERVICE)], vec![leaving.clone(), on_n1.clone()], both),
            (
                vec![n1("Unknown", OUT_OF_SERVICE)],
                vec![leaving.clone(), on_n1.clone(), of_phase("Failed")],
                "delete now",
            ),
            (vec![n1("Unknown", OUT_OF_SERVICE)], vec![on_n1.clone()], ""),
            (vec![n1("True", OUT_OF_SERVICE)], vec![leaving.clone(), on_n1.clone()], ""),
            (vec![n1("Unknown", "node.kubernetes.io/unreachable")], vec![leaving.clone(), on_n1.clone()], ""),
            // The node is there again: only our own mark is taken back, and only while it means anything.
            (vec![n1("True", "x")], vec![on_n1.clone(), marked(REASON)], "- 1"),
            (vec![n1("True", "x")], vec![on_n1.clone(), marked("EvictionByEvictionAPI")], ""),
            (vec![n1("True", "x")], vec![on_n1.clone(), marked(REASON), of_phase("Succeeded")], ""),
            (vec![n1("True", "x")], vec![on_n1.clone(), marked(REASON), leaving], ""),
            // It is gone: the quarantine begins with the mark, and the mark stays.
            (vec![], vec![on_n1.clone()], "- 1"),
            (vec![], vec![on_n1.clone(), marked(REASON)], "Failed 2, delete now"),
            (vec![], vec![on_n1.clone(), marked("EvictionByEvictionAPI")], "- 2"),
        ];
        for (nodes, overs, expected) in table {
            let mut world = World::default();
            nodes.into_iter().for_each(|node| world.put(node));
            let mut object = pod("a", json!({"status": {"phase": "Running"}}));
            overs.iter().for_each(|over| crate::world::merge(&mut object, over.clone()));
            world.put(object);
            let decision = (CONTROLLER.reconcile)(&world.snapshot, &ObjectKey::new("default", "a"), at(45));
            let shown: Vec<String> = decision.writes.iter().map(shown).collect();
            assert_eq!(shown.join(", "), expected, "{overs:?}");
        }
    }

    /// The phase and how many conditions a write gives, or that it deletes without grace.
    fn shown(write: &Write) -> String {
        match write {
            Write::Patch { patch, status: true, .. } => {
                let status = &patch["status"];
                let conditions = status["conditions"].as_array().map_or(0, Vec::len);
                format!("{} {conditions}", status["phase"].as_str().unwrap_or("-"))
            }
            Write::Delete { grace_period: Some(0), uid, .. } if !uid.is_empty() => "delete now".to_owned(),
            other => format!("{other:?}"),
        }
    }
}
