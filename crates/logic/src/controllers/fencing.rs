//! Gives the names of pods free whose node is silent, when their own supervisors have stopped them. Key: the pod.
//!
//! Relies on: the node noting a deadline on a pod (`mainstay.io/FencingDeadline`) only if every container of it has
//! one, which counts from a renewal of the node's Lease that the server has acknowledged; whoever feeds the snapshot
//! calling `Silences::advance` before each change.
//! Guarantees S13, and S1 and S2 with it: a pod is removed only when its Lease was seen to stand still for the deadline
//! and a margin, by this server's own clock, and only if the Lease still stands still when that is committed. Nothing
//! is removed that was not told to go: what is evicted, and when, is the taint eviction's.
//! V9: until then the pod holds its claims; ReadWriteOnce is free for another node with it.
//! Differs: upstream never does this; such a pod stays Terminating until its node is back, is deleted, or is declared
//! out of service by a person. Pods without a deadline do so here, too.

use core::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use mainstay_api::{ObjectKey, kinds};
use serde_json::json;

use crate::decision::{Controller, Decision, Event, Verb, Waiting, Write, guarded_status, key_of};
use crate::fencing::{free_after, noted};
use crate::nodes::{LEASES, is_ready};
use crate::pods::{condition, is_terminating};
use crate::snapshot::{Change, Snapshot};

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "fencing-controller",
    permits: &[(Verb::PatchStatus, "pods"), (Verb::Delete, "pods")],
    reads: &["leases", "nodes", "pods"],
    keys,
    reconcile: |snapshot, key, now| observe(snapshot, key).map(|observed| decide(&observed, now)).unwrap_or_default(),
    many: None,
};

/// On a pod that waits: what for, and until when.
const FREE: &str = "mainstay.io/NameFree";
/// The reason of that condition and of its event.
const WAITING: &str = "WaitingForDeadline";
/// A time that is noted is noted anew when it moves by more than this.
const NEWS: SignedDuration = SignedDuration::from_secs(5);

/// A pod that is to go, with a deadline.
pub struct Observed<'a> {
    pod: &'a Pod,
    node: &'a str,
    /// Seconds.
    deadline: u32,
    /// The Lease's resourceVersion, and for how long it was seen to be that.
    silence: Option<(&'a str, Duration)>,
    is_node_ready: bool,
}

fn keys(before: &Snapshot, after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    match (&*change.kind.group, &*change.kind.plural) {
        ("", "pods") if after.pods.get(&change.key).is_some_and(|pod| is_terminating(&pod.metadata)) => {
            wake(change.key.clone());
        }
        ("", "nodes") => {
            let ready = |snapshot: &Snapshot| snapshot.nodes.get(&change.key).is_some_and(|node| is_ready(node));
            if ready(before) != ready(after) {
                after.pods_of_node(&change.key.name).for_each(|(key, _)| wake(key.clone()));
            }
        }
        // Until then nothing was known of the node, and no time could be named; what is a renewal wakes nobody.
        ("coordination.k8s.io", "leases") if change.old.is_none() && &*change.key.namespace == LEASES => {
            after.pods_of_node(&change.key.name).for_each(|(key, _)| wake(key.clone()));
        }
        _ => {}
    }
}

fn observe<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<Observed<'a>> {
    let pod = snapshot.pods.get(key).filter(|pod| is_terminating(&pod.metadata))?;
    let node = pod.spec.as_ref()?.node_name.as_deref()?;
    Some(Observed {
        pod,
        node,
        deadline: noted(pod)?,
        silence: snapshot.silences.of(node),
        is_node_ready: snapshot.nodes.get(&ObjectKey::new("", node)).is_some_and(|node| is_ready(node)),
    })
}

fn decide(observed: &Observed, now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    let Observed { pod, node, .. } = observed;
    // Without a Lease nothing is known; whoever removes the Node says what becomes of its pods.
    let Some((lease_version, silent)) = observed.silence else { return decision };
    let left = free_after(observed.deadline).saturating_sub(silent);
    if left.is_zero() {
        decision.writes.push(Write::Release {
            key: key_of(&pod.metadata),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            lease: ObjectKey::new(LEASES, *node),
            lease_version: lease_version.to_owned(),
        });
        let message = format!(
            "node {node} has not renewed its lease for {} s: the containers have stopped by themselves, and the name \
             is free",
            silent.as_secs()
        );
        decision.events.push(Event::warning(&kinds::POD, &pod.metadata, "Fenced", message));
        return decision;
    }
    let until =
        now.saturating_add(SignedDuration::try_from(left).unwrap_or(SignedDuration::MAX)).unwrap_or(Timestamp::MAX);
    decision.wake(until);
    if !observed.is_node_ready {
        decision.waiting.push(Waiting::FencingDeadline { node: (*node).to_owned() });
        say_until(&mut decision, pod, node, until, now);
    }
    decision
}

/// Writes the condition that says when the pod's name is free, unless it says so already.
fn say_until(decision: &mut Decision, pod: &Pod, node: &str, until: Timestamp, now: Timestamp) {
    let before = condition(pod, FREE).and_then(|known| known.message.as_deref()?.rsplit(' ').next()?.parse().ok());
    if before.is_some_and(|before: Timestamp| before.duration_since(until).abs() <= NEWS) {
        return;
    }
    let at = mainstay_api::time::rfc3339(until);
    let message = format!("node {node} is silent; the containers stop by themselves, and the name is free at {at}");
    let others = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let condition = PodCondition {
        type_: FREE.to_owned(),
        status: "False".to_owned(),
        reason: Some(WAITING.to_owned()),
        message: Some(message.clone()),
        last_transition_time: Some(Time(now)),
        ..PodCondition::default()
    };
    let conditions: Vec<PodCondition> =
        others.filter(|other| other.type_ != FREE).cloned().chain([condition]).collect();
    decision.writes.push(guarded_status(&kinds::POD, &pod.metadata, json!({"conditions": conditions})));
    decision.events.push(Event::normal(&kinds::POD, &pod.metadata, WAITING, message));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::tests::{node, pod};
    use crate::world::World;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn renew(world: &mut World, seconds: u64) {
        world.snapshot.silences.advance(Duration::from_secs(seconds));
        // What the node's clock says is of no consequence.
        world.put(json!({"kind": "Lease", "metadata": {"namespace": LEASES, "name": "n1"},
            "spec": {"renewTime": at(7).to_string()}}));
    }

    /// Decides at this time; whether the pod is still there.
    fn run(world: &mut World, seconds: u64) -> bool {
        world.snapshot.silences.advance(Duration::from_secs(seconds));
        let now = at(i64::try_from(seconds).unwrap());
        world.run(&CONTROLLER, &ObjectKey::new("default", "a"), now, usize::MAX);
        !world.get(&kinds::POD, "default", "a").is_null()
    }

    fn world(deadline: Option<u32>) -> World {
        let mut world = World::default();
        world.put(node("n1", json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}})));
        let noted = deadline.map(|seconds| crate::fencing::condition(seconds, at(0)));
        world.put(pod(
            "a",
            json!({"spec": {"nodeName": "n1"}, "status": {"conditions": noted.into_iter().collect::<Vec<_>>()}}),
        ));
        world
    }

    #[test]
    fn s13_a_name_is_free_when_the_deadline_and_the_margin_have_passed_and_not_before() {
        let mut world = world(Some(300));
        renew(&mut world, 1000);
        assert!(run(&mut world, 9000), "it was not told to go");
        renew(&mut world, 9000);
        world.delete(&kinds::POD, "default", "a", None);
        assert!(run(&mut world, 9100));
        let condition = world.get(&kinds::POD, "default", "a")["status"]["conditions"][1].clone();
        assert_eq!(
            (condition["type"].as_str(), condition["message"].as_str()),
            (
                Some(FREE),
                Some(
                    "node n1 is silent; the containers stop by themselves, and the name is free at 1970-01-01T02:35:08Z"
                )
            )
        );
        let events = world.events.len();
        assert!(run(&mut world, 9307));
        assert_eq!(world.events.len(), events, "one event");
        renew(&mut world, 9307);
        assert!(run(&mut world, 9308), "it was renewed meanwhile");
        assert!(run(&mut world, 9307 + 307));
        assert!(!run(&mut world, 9307 + 308));
        assert!(world.events.last().is_some_and(|event| event.starts_with("Fenced: ")), "{:?}", world.events);
    }

    #[test]
    fn s13_a_leader_that_has_seen_nothing_yet_waits_the_whole_time() {
        let mut world = world(Some(40));
        world.delete(&kinds::POD, "default", "a", None);
        assert!(run(&mut world, 100_000), "no Lease, no knowledge");
        renew(&mut world, 100_000);
        assert!(run(&mut world, 100_000 + 45));
        assert!(!run(&mut world, 100_000 + 46));
    }

    #[test]
    fn s13_a_pod_without_a_deadline_stays() {
        let mut world = world(None);
        renew(&mut world, 0);
        world.delete(&kinds::POD, "default", "a", None);
        assert!(run(&mut world, 1_000_000));
    }

    /// A node that was well and is gone, and one that comes, have something to say of the pods that wait there.
    #[test]
    fn s13_a_pod_is_asked_about_when_its_node_stops_or_begins_to_be_well() {
        let ready = |status: &str| node("n1", json!({"status": {"conditions": [{"type": "Ready", "status": status}]}}));
        for (before, after, is_news) in [
            (Some("True"), None, true),
            (None, Some("True"), true),
            (Some("True"), Some("Unknown"), true),
            (Some("Unknown"), Some("True"), true),
            (Some("Unknown"), Some("False"), false),
            (Some("Unknown"), None, false),
            (None, Some("Unknown"), false),
        ] {
            let of = |status: Option<&str>| {
                let mut world = world(Some(300));
                world.remove(&kinds::NODE, &ObjectKey::new("", "n1"));
                status.map(ready).into_iter().for_each(|node| world.put(node));
                world
            };
            let (before_world, after_world) = (of(before), of(after));
            let change = Change { kind: kinds::NODE.clone(), key: ObjectKey::new("", "n1"), old: None, new: None };
            let mut woken = Vec::new();
            keys(&before_world.snapshot, &after_world.snapshot, &change, &mut |key| woken.push(key.name.to_string()));
            assert_eq!(woken == ["a"], is_news, "{before:?} {after:?}");
        }
    }

    /// Nobody asks about it but for what wakes it, and the time that it named.
    #[test]
    fn s13_the_wait_is_said_while_the_node_is_silent_and_ends_by_itself() {
        let settle = |world: &mut World, seconds: u64| {
            world.snapshot.silences.advance(Duration::from_secs(seconds));
            let now = at(i64::try_from(seconds).unwrap());
            world.settle(&[CONTROLLER], now);
            (CONTROLLER.reconcile)(&world.snapshot, &ObjectKey::new("default", "a"), now)
        };
        let ready = |world: &mut World, status: &str| {
            world.patch(
                &kinds::NODE,
                "",
                "n1",
                json!({"status": {"conditions": [{"type": "Ready", "status": status}]}}),
            );
        };
        let mut world = world(Some(300));
        ready(&mut world, "True");
        renew(&mut world, 1000);
        world.delete(&kinds::POD, "default", "a", None);
        let decision = settle(&mut world, 1001);
        assert_eq!(
            (decision.wake_at, decision.waiting.len(), world.events.len()),
            (Some(at(1308)), 0, 0),
            "it is well"
        );
        ready(&mut world, "Unknown");
        let decision = settle(&mut world, 1002);
        assert_eq!(decision.waiting, [Waiting::FencingDeadline { node: "n1".to_owned() }]);
        let said = || {
            Some("node n1 is silent; the containers stop by themselves, and the name is free at 1970-01-01T00:21:48Z")
        };
        let free = |world: &World| {
            let status = world.get(&kinds::POD, "default", "a")["status"].clone();
            let conditions = status["conditions"].as_array().unwrap().clone();
            assert_eq!((conditions.len(), &conditions[0]["type"]), (2, &json!(crate::fencing::CONDITION)));
            conditions[1]["message"].as_str().map(str::to_owned)
        };
        assert_eq!((free(&world).as_deref(), world.events.len()), (said(), 1));
        assert!(world.events[0].starts_with("WaitingForDeadline: "), "{:?}", world.events);
        // A time that moves by five seconds is no news, by six it is.
        for (seconds, events) in [(1005, 1), (1006, 2)] {
            let mut world = world.clone();
            renew(&mut world, seconds);
            world.ask_anew();
            run(&mut world, 1011);
            assert_eq!(world.events.len(), events);
            assert_eq!(free(&world).as_deref() == said(), events == 1);
        }
        ready(&mut world, "True");
        ready(&mut world, "Unknown");
        settle(&mut world, 1308);
        assert!(world.get(&kinds::POD, "default", "a").is_null());
    }

    #[test]
    fn s13_a_renewal_that_is_not_seen_yet_makes_the_release_fail() {
        let mut world = world(Some(40));
        renew(&mut world, 0);
        world.delete(&kinds::POD, "default", "a", None);
        world.snapshot.silences.advance(Duration::from_secs(60));
        let old = world.snapshot.clone();
        renew(&mut world, 60);
        assert_eq!(world.run_on(&old, &CONTROLLER, &ObjectKey::new("default", "a"), at(60), usize::MAX), 0);
        assert!(!world.get(&kinds::POD, "default", "a").is_null());
    }
}
