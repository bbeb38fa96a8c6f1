//! Whether nodes are alive, and the taints that say so. Key: the node.
//!
//! Relies on: each node renewing its Lease in `kube-node-lease` every ten seconds and posting its own conditions; the
//! node posting its pods' status again when it comes back.
//! Guarantees S2 by what it does not do: nothing here removes a pod. A node that is silent becomes Unknown, its pods
//! not ready, and it gets the taints on which the scheduler and the taint eviction act. S11: a server that was away for
//! long does not blame the nodes for it, since a node is lost only when its lease was seen to stand still all the time
//! that it is long (`snapshot::Silences`), by the clock of whoever looks: neither the node's clock nor a step of the
//! server's own counts, and a server that begins to look begins to count, as upstream's controller does.
//! Differs: how long a lease is, the lease says (upstream's controller has a flag of its own for it). When no node at
//! all is ready, no pod is evicted (upstream's full disruption), whatever the number of zones; evictions have no rate
//! limit.

use core::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, PodCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use mainstay_api::{ObjectKey, kinds};
use serde_json::json;

use crate::decision::{Controller, Decision, Event, Verb, Write, guarded_status, key_of};
use crate::fencing::{LEASE_SECONDS, UNREACHABLE};
use crate::nodes::{LEASES, is_ready};
use crate::pods;
use crate::snapshot::{Change, Index, Snapshot};
use crate::volume::annotation;

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "node-controller",
    permits: &[(Verb::Patch, "nodes"), (Verb::PatchStatus, "nodes"), (Verb::PatchStatus, "pods")],
    reads: &["nodes", "pods", "leases"],
    keys,
    reconcile: |snapshot, key, now| observe(snapshot, key).map(|observed| decide(&observed, now)).unwrap_or_default(),
    many: None,
};

/// A node's own word for how long its Lease is, in seconds, is taken up to this.
const MAX_LEASE: i32 = 300;
/// On a Node: what older servers noted of a lease that stood still; it is taken away.
const SILENT: &str = "mainstay.io/silent-since";

/// How long a kubelet may keep what it has read, in seconds. Upstream's kubelets read it, and so they may here.
const TTL: &str = "node.alpha.kubernetes.io/ttl";

const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// Conditions that a lost node's kubelet would have posted.
const CONDITIONS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
/// (condition, taint) for conditions that keep new pods away while True.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// A node, its lease and its pods.
pub struct Observed<'a> {
    node: &'a Node,
    lease: Option<&'a Lease>,
    /// For how long the lease was seen to stand still, or to be missing.
    silent: Duration,
    pods: Vec<&'a Pod>,
    /// Whether any node of the cluster is ready.
    any_ready: bool,
}

fn keys(before: &Snapshot, after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    match (&*change.kind.group, &*change.kind.plural) {
        ("", "nodes") => {
            wake(change.key.clone());
            let any_ready = |snapshot: &Snapshot| snapshot.indexes.count(Index::NodesReady, "", "") > 0;
            if any_ready(before) != any_ready(after) {
                after.nodes.iter().for_each(|(key, _)| wake(key.clone()));
            }
        }
        ("coordination.k8s.io", "leases") if &*change.key.namespace == LEASES => {
            wake(ObjectKey::new("", change.key.name.clone()))
        }
        ("", "pods") => {
            let node = after.pods.get(&change.key).and_then(|pod| pod.spec.as_ref()?.node_name.as_deref());
            let node = node.and_then(|name| after.nodes.get(&ObjectKey::new("", name)));
            if let Some(node) = node.filter(|node| !is_ready(node)) {
                wake(key_of(&node.metadata));
            }
        }
        _ => {}
    }
}

fn observe<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<Observed<'a>> {
    Some(Observed {
        node: snapshot.nodes.get(key)?,
        lease: snapshot.leases.get(&ObjectKey::new(LEASES, key.name.clone())).map(|lease| &**lease),
        silent: snapshot.silences.silent(&key.name),
        pods: snapshot.pods_of_node(&key.name).map(|(_, pod)| &**pod).collect(),
        any_ready: snapshot.indexes.count(Index::NodesReady, "", "") > 0,
    })
}

fn decide(observed: &Observed, now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    let node = observed.node;
    match life(observed, now) {
        Life::Alive { look_again } => {
            decision.wake(look_again);
            if !annotation(&node.metadata, SILENT).is_empty() {
                let gone = json!({"metadata": {"annotations": {SILENT: null}}});
                decision.push_apart(Write::patch(&kinds::NODE, &node.metadata, gone));
            }
        }
        Life::Lost => lose(&mut decision, observed, now),
    }
    let wanted = taints(observed, now);
    let have = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    // One patch of the Node per decision: the next one sees this one's resourceVersion.
    let patched =
        decision.writes.iter().any(|write| matches!(write, Write::Patch { kind, .. } if kind.plural == "nodes"));
    let is_new = annotation(&node.metadata, TTL).is_empty();
    if patched || (wanted == have && !is_new) {
        return decision;
    }
    let mut patch = json!({});
    if wanted != have {
        patch["spec"]["taints"] = json!(wanted);
    }
    if is_new {
        // As upstream's controllers do with a node that they see for the first time.
        patch["metadata"]["annotations"][TTL] = json!("0");
        let name = node.metadata.name.as_deref().unwrap_or("");
        let message = format!("Node {name} event: Registered Node {name} in Controller");
        decision.events.push(Event::normal(&kinds::NODE, &node.metadata, "RegisteredNode", message));
    }
    decision.writes.push(Write::patch(&kinds::NODE, &node.metadata, patch));
    decision
}

/// What a node's lease says.
enum Life {
    Alive { look_again: Timestamp },
    Lost,
}

fn life(observed: &Observed, now: Timestamp) -> Life {
    let grace = grace(observed.lease);
    let silent = SignedDuration::try_from(observed.silent).unwrap_or(SignedDuration::MAX);
    match grace.saturating_sub(silent) {
        left if left <= SignedDuration::ZERO => Life::Lost,
        left => Life::Alive { look_again: later(now, left) },
    }
}

/// How long a node may be silent before it is Unknown.
fn grace(lease: Option<&Lease>) -> SignedDuration {
    let seconds = lease.and_then(|lease| lease.spec.as_ref()?.lease_duration_seconds).filter(|seconds| *seconds > 0);
    let default = i32::try_from(LEASE_SECONDS).unwrap_or(MAX_LEASE);
    SignedDuration::from_secs(i64::from(seconds.unwrap_or(default).min(MAX_LEASE)))
}

fn later(at: Timestamp, by: SignedDuration) -> Timestamp {
    at.checked_add(by).unwrap_or(Timestamp::MAX)
}

/// The node is silent: its conditions become Unknown and its pods not ready, so that they leave every Service.
fn lose(decision: &mut Decision, observed: &Observed, now: Timestamp) {
    let node = observed.node;
    let mut conditions =
        node.status.iter().flat_map(|status| status.conditions.iter().flatten()).cloned().collect::<Vec<_>>();
    let mut changed = false;
    for type_ in CONDITIONS {
        let unknown = |reason: &str, message: &str| NodeCondition {
            type_: type_.to_owned(),
            status: "Unknown".to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_transition_time: Some(Time(now)),
            ..NodeCondition::default()
        };
        match conditions.iter_mut().find(|condition| condition.type_ == type_) {
            Some(condition) if condition.status == "Unknown" => continue,
            Some(condition) => {
                let heartbeat = condition.last_heartbeat_time.clone();
                *condition = unknown("NodeStatusUnknown", "Kubelet stopped posting node status.");
                condition.last_heartbeat_time = heartbeat;
            }
            None => conditions.push(unknown("NodeStatusNeverUpdated", "Kubelet never posted node status.")),
        }
        changed = true;
    }
    // Neither the Node nor a pod whose status may not be written keeps the other pods in their Services.
    if changed {
        decision.apart(|decision| {
            decision.writes.push(guarded_status(&kinds::NODE, &node.metadata, json!({"conditions": conditions})));
            let message = format!("Node {} status is now: NodeNotReady", node.metadata.name.as_deref().unwrap_or(""));
            decision.events.push(Event::normal(&kinds::NODE, &node.metadata, "NodeNotReady", message));
        });
    }
    for pod in observed.pods.iter().filter(|pod| pods::is_ready(pod)) {
        let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten()).cloned();
        let conditions: Vec<PodCondition> = conditions
            .map(|condition| match condition.type_.as_str() {
                "Ready" => {
                    PodCondition { status: "False".to_owned(), last_transition_time: Some(Time(now)), ..condition }
                }
                _ => condition,
            })
            .collect();
        decision.apart(|decision| {
            decision.writes.push(guarded_status(&kinds::POD, &pod.metadata, json!({"conditions": conditions})));
            let message = "Node is not ready".to_owned();
            decision.events.push(Event::warning(&kinds::POD, &pod.metadata, "NodeNotReady", message));
        });
    }
}

/// The taints that the node should have: everybody else's, and those that its conditions ask for.
fn taints(observed: &Observed, now: Timestamp) -> Vec<Taint> {
    let node = observed.node;
    let status = |type_: &str| {
        let mut conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.find(|condition| condition.type_ == type_).map(|condition| condition.status.as_str())
    };
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    let evict = observed.any_ready;
    match status("Ready") {
        Some("True") => {}
        Some("Unknown") => {
            wanted.extend([(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")].iter().take(1 + usize::from(evict)))
        }
        Some(_) => {
            wanted.extend([(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")].iter().take(1 + usize::from(evict)))
        }
        None => wanted.push((NOT_READY, "NoSchedule")),
    }
    wanted.extend(
        PRESSURES
            .iter()
            .filter(|(condition, _)| status(condition) == Some("True"))
            .map(|(_, key)| (*key, "NoSchedule")),
    );
    if node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let ours = |taint: &Taint| {
        let of_pressure = PRESSURES.iter().any(|(_, key)| *key == taint.key) || taint.key == UNSCHEDULABLE;
        taint.key == NOT_READY || taint.key == UNREACHABLE || (of_pressure && taint.effect == "NoSchedule")
    };
    let mut taints: Vec<Taint> = Vec::new();
    for taint in node.spec.iter().flat_map(|spec| spec.taints.iter().flatten()) {
        let still = wanted.iter().position(|(key, effect)| *key == taint.key && *effect == taint.effect);
        if let Some(index) = still {
            wanted.remove(index);
        } else if ours(taint) {
            continue;
        }
        // Evictions count from when the taint came, also from one that a person set.
        let time_added = taint.time_added.clone().or_else(|| (taint.effect == "NoExecute").then_some(Time(now)));
        taints.push(Taint { time_added, ..taint.clone() });
    }
    taints.extend(wanted.into_iter().map(|(key, effect)| Taint {
        key: key.to_owned(),
        effect: effect.to_owned(),
        time_added: Some(Time(now)),
        ..Taint::default()
    }));
    taints
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::tests::node;
    use crate::world::World;
    use serde_json::Value;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    /// It is so late, by a clock that nobody sets.
    fn advance(world: &mut World, seconds: i64) {
        world.snapshot.silences.advance(Duration::from_secs(1_000_000 + u64::try_from(seconds).unwrap()));
    }

    fn renew(world: &mut World, seconds: i64) {
        world.put(json!({"kind": "Lease", "metadata": {"namespace": LEASES, "name": "n1"},
                "spec": {"renewTime": at(seconds).to_string()}}));
    }

    fn run(world: &mut World, seconds: i64) -> Option<Timestamp> {
        let key = ObjectKey::new("", "n1");
        advance(world, seconds);
        for _ in 0..10 {
            if world.run(&CONTROLLER, &key, at(seconds), usize::MAX) == 0 {
                return (CONTROLLER.reconcile)(&world.snapshot, &key, at(seconds)).wake_at;
            }
        }
        panic!("does not settle");
    }

    /// `status taint:effect …`
    fn shown(world: &World) -> String {
        let node = world.get(&kinds::NODE, "", "n1");
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let ready = conditions
            .iter()
            .find(|c| c["type"] == "Ready")
            .map_or("-".to_owned(), |c| c["status"].as_str().unwrap().to_owned());
        let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
        let name = |taint: &Value| {
            format!(
                " {}:{}",
                taint["key"].as_str().unwrap().replace("node.kubernetes.io/", ""),
                taint["effect"].as_str().unwrap()
            )
        };
        format!("{ready}{}", taints.iter().map(name).collect::<String>())
    }

    fn world() -> World {
        world_at(0)
    }

    /// As a server sees it that begins to look then.
    fn world_at(seconds: i64) -> World {
        let mut world = World::default();
        advance(&mut world, seconds);
        for name in ["n1", "n2"] {
            world.put(node(name, json!({})));
        }
        world.put(json!({"kind": "Pod", "metadata": {"namespace": "default", "name": "web-0"},
                "spec": {"nodeName": "n1", "containers": []},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}));
        renew(&mut world, 0);
        world
    }

    #[test]
    fn a_silent_node_is_lost_after_forty_seconds_and_comes_back() {
        let mut world = world();
        assert_eq!((run(&mut world, 0), shown(&world).as_str()), (Some(at(40)), "True"));
        assert_eq!((run(&mut world, 20), shown(&world).as_str()), (Some(at(40)), "True"));
        run(&mut world, 39);
        assert_eq!(shown(&world), "True");
        run(&mut world, 40);
        assert_eq!(shown(&world), "Unknown unreachable:NoSchedule unreachable:NoExecute");
        let pod = world.get(&kinds::POD, "default", "web-0");
        assert_eq!(pod["status"]["conditions"][0]["status"], "False");
        assert!(pod["metadata"]["deletionTimestamp"].is_null(), "S2: a lost node's pod is not removed here");
        advance(&mut world, 50);
        renew(&mut world, 50);
        world.patch(&kinds::NODE, "", "n1", json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}));
        run(&mut world, 50);
        assert_eq!(shown(&world), "True");
        assert!(world.get(&kinds::NODE, "", "n1")["metadata"]["annotations"][SILENT].is_null());
    }

    /// What a node that fell silent says, whatever it said before; and who is told.
    #[test]
    fn s12_a_lost_nodes_conditions_keep_what_is_known() {
        let mut world = world();
        run(&mut world, 0);
        world.events.clear();
        let beat = "2026-01-01T00:00:00Z";
        world.patch(
            &kinds::NODE,
            "",
            "n1",
            json!({"status": {"conditions": [
            {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": beat},
            {"type": "PIDPressure", "status": "Unknown", "reason": "Before"},
            {"type": "Theirs", "status": "True", "reason": "T"}]}}),
        );
        run(&mut world, 40);
        let conditions = world.get(&kinds::NODE, "", "n1")["status"]["conditions"].clone();
        let shown = |type_: &str| {
            let one = conditions.as_array().unwrap().iter().find(|one| one["type"] == type_).cloned().unwrap();
            let text = |field: &str| one[field].as_str().unwrap_or("-").to_owned();
            format!("{} {} {}", text("status"), text("reason"), text("lastHeartbeatTime"))
        };
        assert_eq!(shown("Ready"), format!("Unknown NodeStatusUnknown {beat}"));
        assert_eq!(shown("MemoryPressure"), "Unknown NodeStatusNeverUpdated -");
        assert_eq!((shown("PIDPressure"), shown("Theirs")), ("Unknown Before -".to_owned(), "True T -".to_owned()));
        assert_eq!(
            world.events,
            ["NodeNotReady: Node n1 status is now: NodeNotReady", "NodeNotReady: Node is not ready"]
        );
    }

    /// S12: each of them is seen by itself: a lease, a pod that says it is Ready on a node that is not, the first node
    /// that is ready, and the last one.
    #[test]
    fn s12_leases_pods_and_other_nodes_wake_a_node() {
        let mut world = World::default();
        let unready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
        let woken = |world: &mut World, act: &dyn Fn(&mut World)| -> Vec<String> {
            world.changes.clear();
            act(world);
            let mut keys = std::collections::BTreeSet::new();
            for (before, change) in std::mem::take(&mut world.changes) {
                (CONTROLLER.keys)(&before, &world.snapshot, &change, &mut |key| {
                    keys.insert(key.name.to_string());
                });
            }
            keys.into_iter().collect()
        };
        let with = |name: &str, ready: &str| {
            let mut object = node(name, json!({}));
            object["status"]["conditions"] = json!([{"type": "Ready", "status": ready}]);
            object
        };
        world.put(with("n1", "False"));
        world.put(with("n2", "False"));
        assert_eq!(woken(&mut world, &|world| world.put(with("n2", "Unknown"))), ["n2"]);
        assert_eq!(woken(&mut world, &|world| world.put(with("n2", "True"))), ["n1", "n2"], "the first that is ready");
        assert_eq!(woken(&mut world, &|world| world.put(with("n3", "True"))), ["n3"]);
        world.patch(&kinds::NODE, "", "n3", unready);
        assert_eq!(woken(&mut world, &|world| world.put(with("n2", "False"))), ["n1", "n2", "n3"], "the last one");
        world.put(with("n2", "True"));
        assert_eq!(woken(&mut world, &|world| renew(world, 1)), ["n1"]);
        let elsewhere = json!({"kind": "Lease", "metadata": {"namespace": "default", "name": "n1"}, "spec": {}});
        assert_eq!(woken(&mut world, &|world| world.put(elsewhere.clone())), [""; 0]);
        let on = |node: &str| {
            json!({"kind": "Pod", "metadata": {"namespace": "default", "name": format!("p-{node}")},
                "spec": {"nodeName": node, "containers": []}})
        };
        assert_eq!(woken(&mut world, &|world| world.put(on("n1"))), ["n1"]);
        assert_eq!(woken(&mut world, &|world| world.put(on("n2"))), [""; 0], "its node is ready");
    }

    #[test]
    fn a_lease_without_a_length_is_the_usual_one() {
        for seconds in [json!(null), json!(0), json!(-5)] {
            let lease = json!({"spec": {"leaseDurationSeconds": seconds}});
            let lease: Lease = serde_json::from_value(lease).unwrap();
            assert_eq!(grace(Some(&lease)), grace(None), "{seconds}");
        }
        assert_eq!(grace(None), SignedDuration::from_secs(40));
    }

    #[test]
    fn a_node_is_announced_once() {
        let mut world = world();
        let key = ObjectKey::new("", "n1");
        let announced = |world: &World| {
            let events = (CONTROLLER.reconcile)(&world.snapshot, &key, at(0)).events;
            events.into_iter().map(|event| event.message).collect::<Vec<_>>()
        };
        assert_eq!(announced(&world), ["Node n1 event: Registered Node n1 in Controller"]);
        run(&mut world, 0);
        assert_eq!(announced(&world), Vec::<String>::new());
    }

    #[test]
    fn a_lease_says_how_long_it_is() {
        let mut world = world();
        let lease = |seconds: i64, duration: i64| {
            json!({"kind": "Lease", "metadata": {"namespace": LEASES, "name": "n1"},
                "spec": {"renewTime": at(seconds).to_string(), "leaseDurationSeconds": duration}})
        };
        world.put(lease(0, 4));
        assert_eq!(run(&mut world, 0), Some(at(4)));
        assert_eq!((run(&mut world, 3), shown(&world).as_str()), (Some(at(4)), "True"));
        run(&mut world, 4);
        assert_eq!(shown(&world), "Unknown unreachable:NoSchedule unreachable:NoExecute");
        advance(&mut world, 10);
        world.put(lease(10, 100_000));
        assert_eq!(run(&mut world, 10), Some(at(310)), "nobody's word is taken for ever");
    }

    #[test]
    fn s11_a_server_that_was_away_does_not_blame_the_node() {
        let mut world = world_at(3600);
        assert_eq!((run(&mut world, 3600), shown(&world).as_str()), (Some(at(3640)), "True"));
        renew(&mut world, 3605);
        run(&mut world, 3620);
        assert_eq!(shown(&world), "True");
    }

    /// What was noted of a silence before the server was away says nothing of the time in which it was.
    #[test]
    fn s11_a_server_that_comes_back_begins_to_count() {
        let mut world = world_at(32);
        let noted = format!("{} {}", at(0), at(20));
        world.patch(&kinds::NODE, "", "n1", json!({"metadata": {"annotations": {SILENT: noted}}}));
        for second in [32, 45, 71] {
            run(&mut world, second);
            assert_eq!(shown(&world), "True", "{second}");
        }
        assert!(world.get(&kinds::NODE, "", "n1")["metadata"]["annotations"][SILENT].is_null());
        run(&mut world, 72);
        assert_eq!(shown(&world), "Unknown unreachable:NoSchedule unreachable:NoExecute");
    }

    /// A step of the server's clock is no silence, and a living node's Node is not written at its renewals.
    #[test]
    fn s11_no_clock_but_the_one_that_looks_says_that_a_node_is_silent() {
        let mut world = world();
        run(&mut world, 0);
        let version = world.get(&kinds::NODE, "", "n1")["metadata"]["resourceVersion"].clone();
        let key = ObjectKey::new("", "n1");
        advance(&mut world, 5);
        world.run(&CONTROLLER, &key, at(7200), usize::MAX);
        assert_eq!(shown(&world), "True");
        for second in (10..200).step_by(10) {
            advance(&mut world, second);
            renew(&mut world, second - 7200);
            run(&mut world, second);
        }
        assert_eq!(world.get(&kinds::NODE, "", "n1")["metadata"]["resourceVersion"], version);
    }

    #[test]
    fn a_node_whose_clock_is_wrong_is_alive_while_it_renews_and_lost_when_it_stops() {
        for skew in [-7200, 7200] {
            let mut world = world();
            for second in (0..200).step_by(10) {
                advance(&mut world, second);
                renew(&mut world, second + skew);
                run(&mut world, second);
                assert_eq!(shown(&world), "True", "{skew} {second}");
            }
            run(&mut world, 190 + 39);
            assert_eq!(shown(&world), "True", "{skew}");
            run(&mut world, 190 + 40);
            assert_eq!(shown(&world), "Unknown unreachable:NoSchedule unreachable:NoExecute", "{skew}");
        }
    }

    #[test]
    fn when_no_node_is_ready_nobody_is_evicted() {
        let mut world = world();
        world.remove(&kinds::NODE, &ObjectKey::new("", "n2"));
        run(&mut world, 20);
        run(&mut world, 40);
        assert_eq!(shown(&world), "Unknown unreachable:NoSchedule");
    }

    #[test]
    fn conditions_and_cordon_become_taints_and_foreign_taints_stay() {
        let mut world = world();
        let conditions = json!([{"type": "Ready", "status": "False"}, {"type": "DiskPressure", "status": "True"}]);
        let spec = json!({"unschedulable": true, "taints": [{"key": "mine", "effect": "NoExecute"}]});
        world.patch(&kinds::NODE, "", "n1", json!({"spec": spec, "status": {"conditions": conditions}}));
        run(&mut world, 1);
        assert_eq!(
            shown(&world),
            "False mine:NoExecute not-ready:NoSchedule not-ready:NoExecute disk-pressure:NoSchedule \
                unschedulable:NoSchedule"
        );
        assert_eq!(world.get(&kinds::NODE, "", "n1")["spec"]["taints"][0]["timeAdded"], at(1).to_string());
    }

    #[test]
    fn taints_go_with_what_they_are_for_and_a_persons_stay_with_their_time() {
        let taint = |key: &str, effect: &str| {
            let key = if key.contains('/') { key.to_owned() } else { format!("node.kubernetes.io/{key}") };
            json!({"key": key, "effect": effect, "timeAdded": at(-9).to_string()})
        };
        let table = [
            ("True", vec![taint("not-ready", "NoSchedule"), taint("unreachable", "NoExecute")], "True"),
            ("True", vec![taint("disk-pressure", "NoSchedule"), taint("unschedulable", "NoSchedule")], "True"),
            (
                "True",
                vec![
                    taint("disk-pressure", "NoExecute"),
                    taint("unschedulable", "NoExecute"),
                    taint("x.io/y", "NoSchedule"),
                ],
                "True disk-pressure:NoExecute unschedulable:NoExecute x.io/y:NoSchedule",
            ),
            (
                "Unknown",
                vec![taint("unreachable", "NoExecute"), taint("not-ready", "NoExecute")],
                "Unknown unreachable:NoExecute unreachable:NoSchedule",
            ),
            (
                "False",
                vec![taint("unreachable", "NoExecute"), taint("unreachable", "NoSchedule")],
                "False not-ready:NoSchedule not-ready:NoExecute",
            ),
        ];
        for (ready, taints, expected) in table {
            let mut world = world();
            let conditions = json!([{"type": "Ready", "status": ready}]);
            world.patch(
                &kinds::NODE,
                "",
                "n1",
                json!({"spec": {"taints": taints}, "status": {"conditions": conditions}}),
            );
            run(&mut world, 1);
            assert_eq!(shown(&world), expected, "{ready} {taints:?}");
            let left = world.get(&kinds::NODE, "", "n1")["spec"]["taints"].as_array().cloned().unwrap_or_default();
            for taint in left {
                let since = if taints.contains(&taint) { at(-9) } else { at(1) };
                assert_eq!(taint["timeAdded"], since.to_string(), "{taint}");
            }
        }
    }

    /// Woken by nothing but what changes: another node that is ready, a pod that says that it is.
    #[test]
    fn a_lost_nodes_pods_are_evicted_when_another_is_ready_and_never_count_as_ready() {
        let mut world = world();
        world.remove(&kinds::NODE, &ObjectKey::new("", "n2"));
        run(&mut world, 20);
        run(&mut world, 40);
        assert_eq!(shown(&world), "Unknown unreachable:NoSchedule");
        world.changes.clear();
        world.put(node("n2", json!({})));
        world.settle(&[CONTROLLER], at(40));
        assert_eq!(shown(&world), "Unknown unreachable:NoSchedule unreachable:NoExecute");
        let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        world.patch(&kinds::POD, "default", "web-0", ready);
        world.settle(&[CONTROLLER], at(41));
        assert_eq!(world.get(&kinds::POD, "default", "web-0")["status"]["conditions"][0]["status"], "False");
    }
}
