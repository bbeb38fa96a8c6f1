//! Evicts pods from nodes with NoExecute taints that they do not, or no longer, tolerate. Key: the pod.
//!
//! Relies on: `timeAdded` on every NoExecute taint (the node controller sees to it); the API server giving pods
//! upstream's default tolerations (not-ready and unreachable for 300 s).
//! Guarantees S1 and S2: an eviction is a graceful delete, never a forced one. The pod of a silent node stays
//! Terminating until its node confirms, is removed, or is declared out of service, or the pod's deadline has passed
//! ([`super::fencing`]).
//! Differs: the time of a toleration counts from when the taint was added, not from when this controller first saw it,
//! so a restart of the server does not prolong it.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Taint};
use mainstay_api::{ObjectKey, kinds};
use serde_json::json;

use crate::decision::{Controller, Decision, Event, Verb, Write, guarded_status, key_of};
use crate::fencing::tolerated;
use crate::pods::{self, is_active};
use crate::snapshot::{Change, Snapshot};

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "taint-eviction-controller",
    permits: &[(Verb::Delete, "pods"), (Verb::PatchStatus, "pods")],
    reads: &["nodes", "pods"],
    keys,
    reconcile: |snapshot, key, now| observe(snapshot, key).map(|observed| decide(&observed, now)).unwrap_or_default(),
    many: None,
};

/// A pod and its node's NoExecute taints.
pub struct Observed<'a> {
    pod: &'a Pod,
    taints: Vec<&'a Taint>,
}

fn keys(before: &Snapshot, after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    match (&*change.kind.group, &*change.kind.plural) {
        // A node that is given such a taint wakes all of its pods.
        ("", "pods") => {
            let is_due = |seen: Observed| !seen.taints.is_empty();
            if change.new.is_none() || observe(after, &change.key).is_some_and(is_due) {
                wake(change.key.clone());
            }
        }
        ("", "nodes") => {
            let taints = |snapshot: &Snapshot| {
                snapshot.nodes.get(&change.key).and_then(|node| node.spec.as_ref()?.taints.clone())
            };
            if taints(before) != taints(after) {
                after.pods_of_node(&change.key.name).for_each(|(key, _)| wake(key.clone()));
            }
        }
        _ => {}
    }
}

fn observe<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<Observed<'a>> {
    let pod = snapshot.pods.get(key).filter(|pod| is_active(pod))?;
    let node = snapshot.nodes.get(&ObjectKey::new("", pod.spec.as_ref()?.node_name.as_deref()?))?;
    let taints =
        node.spec.iter().flat_map(|spec| spec.taints.iter().flatten()).filter(|taint| taint.effect == "NoExecute");
    Some(Observed { pod, taints: taints.collect() })
}

fn decide(observed: &Observed, now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    let pod = observed.pod;
    let Some(end) = observed.taints.iter().filter_map(|taint| end(pod, taint, now)).min() else { return decision };
    if end > now {
        decision.wake(end);
        return decision;
    }
    let message = format!("Marking for deletion Pod {}", key_of(&pod.metadata));
    let why = "Taint manager: deleting due to NoExecute taint";
    let conditions = pods::disrupted(pod, "DeletionByTaintManager", why, now);
    decision.writes.push(guarded_status(&kinds::POD, &pod.metadata, json!({ "conditions": conditions })));
    decision.writes.push(Write::delete(&kinds::POD, &pod.metadata).whatever_version());
    decision.events.push(Event::normal(&kinds::POD, &pod.metadata, "TaintManagerEviction", message));
    decision
}

/// When a pod has to leave because of a taint; `None` when it may stay.
fn end(pod: &Pod, taint: &Taint, now: Timestamp) -> Option<Timestamp> {
    let tolerated = tolerated(pod, taint)?;
    if tolerated.is_zero() {
        return Some(now);
    }
    let added = taint.time_added.as_ref().map_or(now, |time| time.0);
    Some(added.checked_add(tolerated).unwrap_or(Timestamp::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::tests::{node, pod};
    use crate::world::World;

    #[test]
    fn s2_pods_leave_gracefully_when_their_toleration_ends() {
        let taint = |key: &str| json!({"key": key, "effect": "NoExecute", "timeAdded": "1970-01-01T00:00:00Z"});
        let for_seconds = |seconds: i64| {
            json!({"key": "k", "operator": "Exists", "effect": "NoExecute",
            "tolerationSeconds": seconds})
        };
        let table = [
            (json!([]), json!([]), "stays"),
            (json!([taint("k")]), json!([]), "leaves"),
            (json!([taint("k")]), json!([{"operator": "Exists"}]), "stays"),
            (json!([taint("k")]), json!([for_seconds(300)]), "until 1970-01-01T00:05:00Z"),
            (json!([taint("k")]), json!([for_seconds(300), for_seconds(60), {"operator": "Exists"}]), "leaves"),
            (json!([taint("k"), taint("other")]), json!([for_seconds(300)]), "leaves"),
            (json!([taint("k")]), json!([for_seconds(-5)]), "leaves"),
            // By a clock that is ahead: what is not tolerated at all does not wait for it.
            (
                json!([{"key": "k", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}]),
                json!([for_seconds(0)]),
                "leaves",
            ),
            (json!([{"key": "k", "effect": "NoSchedule"}]), json!([]), "stays"),
            (json!([{"key": "k", "effect": "PreferNoSchedule"}]), json!([]), "stays"),
        ];
        let now = Timestamp::from_second(100).unwrap();
        for (taints, tolerations, expected) in table {
            let mut world = World::default();
            world.put(node("n1", json!({"spec": {"taints": taints}})));
            world.put(pod("a", json!({"spec": {"nodeName": "n1", "tolerations": tolerations}})));
            let decision = (CONTROLLER.reconcile)(&world.snapshot, &ObjectKey::new("default", "a"), now);
            let shown = match (decision.writes.as_slice(), decision.wake_at) {
                ([], None) => "stays".to_owned(),
                ([], Some(at)) => format!("until {at}"),
                ([Write::Patch { status: true, patch, .. }, Write::Delete { grace_period: None, .. }], _)
                    if patch["status"]["conditions"][0]["reason"] == "DeletionByTaintManager" =>
                {
                    "leaves".to_owned()
                }
                (other, _) => format!("{other:?}"),
            };
            assert_eq!(shown, expected, "{taints} {tolerations}");
            let events: Vec<String> =
                decision.events.iter().map(|event| format!("{}: {}", event.reason, event.message)).collect();
            let told = "TaintManagerEviction: Marking for deletion Pod default/a";
            assert_eq!(events, if expected == "leaves" { vec![told] } else { vec![] }, "{taints} {tolerations}");
            // One that goes already, or has ended, is left as it is.
            for over in [
                json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x.io/held"]}}),
                json!({"status": {"phase": "Succeeded"}}),
            ] {
                let mut world = world.clone();
                world.patch(&kinds::POD, "default", "a", over);
                let decision = (CONTROLLER.reconcile)(&world.snapshot, &ObjectKey::new("default", "a"), now);
                assert_eq!((decision.writes, decision.wake_at), (vec![], None), "{taints} {tolerations}");
            }
        }
    }

    /// S12: a node that is tainted, and a pod that comes to one that is, are each seen by themselves.
    #[test]
    fn s12_a_taint_and_a_pod_find_each_other_whichever_comes_first() {
        let tainted = json!({"spec": {"taints": [{"key": "k", "effect": "NoExecute"}]}});
        let now = Timestamp::from_second(100).unwrap();
        let leaves = |world: &World| !world.get(&kinds::POD, "default", "a")["metadata"]["deletionTimestamp"].is_null();
        let on_n1 = || pod("a", json!({"spec": {"nodeName": "n1"}}));
        let mut world = World::default();
        world.put(node("n1", json!({})));
        world.put(on_n1());
        world.settle(&[CONTROLLER], now);
        assert!(!leaves(&world));
        world.patch(&kinds::NODE, "", "n1", tainted.clone());
        world.settle(&[CONTROLLER], now);
        assert!(leaves(&world));
        let mut world = World::default();
        world.put(node("n1", tainted));
        world.settle(&[CONTROLLER], now);
        world.put(on_n1());
        world.settle(&[CONTROLLER], now);
        assert!(leaves(&world));
    }
}
