//! Takes back that a pod is about to be disrupted where nothing came of it. Key: the pod.
//!
//! Relies on: whoever marks a pod (preemption, eviction, taints) telling it to go right after.
//! Guarantees X1: `DisruptionTarget` is True for [`PATIENCE`] at most on a pod that is neither on its way out nor
//! finished, as upstream's disruption controller has it. Not looked at are the marks of the kubelet, which stops the
//! pod first and may take as long as it likes, and of the pod collector, which remembers by its mark since when a node
//! is gone, and takes it back itself ([`super::podgc`]).
//! A False mark is written once and wakes nobody here: a pod whose deletion is refused again and again is marked and
//! unmarked once in [`PATIENCE`] (X6).
//! Differs: the reason stays, with status False. The scheduler knows by it which victims may not be deleted, and lets
//! the pods beside them be; upstream forgets.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use mainstay_api::ObjectKey;
use mainstay_api::kinds::POD;
use serde_json::json;

use super::podgc;
use crate::decision::{Controller, Decision, Verb, guarded_status};
use crate::pods::{DISRUPTION_TARGET, TERMINATION_BY_KUBELET, condition, is_finished, is_terminating, undisrupted};
use crate::snapshot::{Change, Snapshot};

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "stale-disruption-controller",
    permits: &[(Verb::PatchStatus, "pods")],
    reads: &["pods"],
    keys,
    reconcile: |snapshot, key, now| snapshot.pods.get(key).map(|pod| decide(pod, now)).unwrap_or_default(),
    many: None,
};

/// How long a mark holds by itself; upstream's.
const PATIENCE: SignedDuration = SignedDuration::from_secs(120);

fn keys(before: &Snapshot, after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    let is_marked = |snapshot: &Snapshot| snapshot.pods.get(&change.key).is_some_and(|pod| mark(pod).is_some());
    if change.kind == POD && (is_marked(before) || is_marked(after)) {
        wake(change.key.clone());
    }
}

/// The mark that may become stale.
fn mark(pod: &Pod) -> Option<&PodCondition> {
    if is_terminating(&pod.metadata) || is_finished(pod) {
        return None;
    }
    let mark = condition(pod, DISRUPTION_TARGET).filter(|mark| mark.status == "True")?;
    (![TERMINATION_BY_KUBELET, podgc::REASON].contains(&mark.reason.as_deref().unwrap_or(""))).then_some(mark)
}

fn decide(pod: &Pod, now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    let Some(mark) = mark(pod) else { return decision };
    // One without a time is as old as can be, as upstream.
    let since = mark.last_transition_time.as_ref().map_or(Timestamp::MIN, |time| time.0);
    let end = since.checked_add(PATIENCE).unwrap_or(Timestamp::MAX);
    if now < end {
        decision.wake(end);
        return decision;
    }
    let taken_back = PodCondition {
        type_: DISRUPTION_TARGET.to_owned(),
        status: "False".to_owned(),
        reason: mark.reason.clone(),
        last_transition_time: Some(Time(now)),
        ..PodCondition::default()
    };
    let conditions: Vec<PodCondition> = undisrupted(pod).chain([taken_back]).collect();
    decision.writes.push(guarded_status(&POD, &pod.metadata, json!({ "conditions": conditions })));
    decision
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::Write;
    use crate::scheduler::tests::pod;
    use crate::world::World;
    use serde_json::Value;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn marked(status: &str, reason: &str, time: Value) -> Value {
        json!({"status": {"phase": "Running", "conditions": [
            {"type": DISRUPTION_TARGET, "status": status, "reason": reason, "message": "m", "lastTransitionTime": time},
            {"type": "Ready", "status": "True"}]}})
    }

    /// X1: which marks are taken back and when, as upstream; all others stay as they are.
    #[test]
    fn x1_a_mark_of_which_nothing_came_is_taken_back() {
        let by = |reason: &str| marked("True", reason, json!(at(0)));
        let (preempted, evicted) = ("PreemptionByScheduler", "EvictionByEvictionAPI");
        let phase = |phase: &str| json!({"status": {"phase": phase}});
        let leaving = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x.io/held"]}});
        let table = [
            (by(preempted), json!({}), 119, format!("until {}", at(120))),
            (by(preempted), json!({}), 120, format!("Ready True, {DISRUPTION_TARGET} False")),
            (by(evicted), phase("Pending"), 500, format!("Ready True, {DISRUPTION_TARGET} False")),
            (by("DeletionByTaintManager"), json!({}), 500, format!("Ready True, {DISRUPTION_TARGET} False")),
            (marked("True", "", json!(null)), json!({}), 0, format!("Ready True, {DISRUPTION_TARGET} False")),
            (marked("True", "", json!(Timestamp::MAX)), json!({}), 0, format!("until {}", Timestamp::MAX)),
            (marked("False", preempted, json!(at(0))), json!({}), 500, String::new()),
            (by(TERMINATION_BY_KUBELET), json!({}), 500, String::new()),
            (by(podgc::REASON), json!({}), 500, String::new()),
            (by(evicted), phase("Failed"), 500, String::new()),
            (by(evicted), phase("Succeeded"), 500, String::new()),
            (by(evicted), leaving, 500, String::new()),
            (json!({}), json!({}), 500, String::new()),
        ];
        for (state, over, now, expected) in table {
            let mut world = World::default();
            let mut object = pod("a", state.clone());
            crate::world::merge(&mut object, over.clone());
            world.put(object);
            let decision = (CONTROLLER.reconcile)(&world.snapshot, &ObjectKey::new("default", "a"), at(now));
            let shown = match (decision.writes.as_slice(), decision.wake_at) {
                ([], None) => String::new(),
                ([], Some(at)) => format!("until {at}"),
                ([Write::Patch { status: true, patch, .. }], None) => {
                    let all = patch["status"]["conditions"].as_array().unwrap().iter();
                    let shown = |one: &Value| format!("{} {}", one["type"], one["status"]).replace('"', "");
                    all.map(shown).collect::<Vec<_>>().join(", ")
                }
                other => format!("{other:?}"),
            };
            assert_eq!(shown, expected, "{state} {over} {now}");
        }
    }

    /// X6, S12: the change of the pod alone begins it; afterwards there is nothing to do, and of pods without a mark
    /// there never is.
    #[test]
    fn x6_s12_a_mark_is_taken_back_once_and_wakes_nobody_after_that() {
        let mut world = World::default();
        world.put(pod("other", json!({"status": {"phase": "Running"}})));
        world.put(pod("a", marked("True", "PreemptionByScheduler", json!(at(0)))));
        world.settle(&[CONTROLLER], at(300));
        let conditions = world.get(&POD, "default", "a")["status"]["conditions"].clone();
        assert_eq!(
            conditions[1],
            json!({"type": DISRUPTION_TARGET, "status": "False",
            "reason": "PreemptionByScheduler", "lastTransitionTime": at(300).to_string()})
        );
        let writes = world.log.len();
        world.patch(&POD, "default", "a", json!({"metadata": {"labels": {"x": "y"}}}));
        world.settle(&[CONTROLLER], at(1000));
        world.assert_quiet(&[CONTROLLER], at(1000));
        assert_eq!(world.log.len(), writes);
    }
}
