//! S4, S5, S6: the order in which a set makes, removes and replaces its pods. Judged by what the controller saw
//! when it decided: what changed since then, nobody can know.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use mainstay_api::ObjectKey;
use mainstay_logic::{Snapshot, pods};

use super::{Seen, Violation, ordinals, parse_ordinal, revision, set_of};

/// The pod of an ordinal, when it is the set's.
fn pod<'a>(snapshot: &'a Snapshot, key: &ObjectKey, set: &StatefulSet, ordinal: i64) -> Option<&'a Pod> {
    let name = set.metadata.name.as_deref().unwrap_or("");
    let key = ObjectKey::new(key.namespace.clone(), format!("{name}-{ordinal}"));
    let pod = snapshot.pods.get(&key)?;
    set_of(snapshot, &key, pod).map(|_| &**pod)
}

fn is_up(pod: Option<&Pod>) -> bool {
    pod.is_some_and(|pod| pods::is_running_and_ready(pod) && !pods::is_terminating(&pod.metadata))
}

/// S4: when pod *i* is made, every pod with a lower ordinal is Running and Ready.
pub fn s4_predecessors_ready(seen: &Seen<'_>) -> Result<(), Violation> {
    let Some(view) = seen.decided_on.filter(|_| seen.is_made() && seen.is_by_set_controller()) else { return Ok(()) };
    let Some((name, ordinal)) = parse_ordinal(&seen.change.key.name) else { return Ok(()) };
    let Some(set) = view.stateful_sets.get(&ObjectKey::new(seen.change.key.namespace.clone(), name)) else {
        return Ok(());
    };
    if set.spec.pod_management_policy.as_deref() == Some("Parallel") {
        return Ok(());
    }
    for lower in ordinals(set).start..ordinal {
        if !is_up(pod(view, &seen.change.key, set, lower)) {
            return Err(Violation::new("S4", format!("{} is made while {name}-{lower} is not ready", seen.change.key)));
        }
    }
    Ok(())
}

/// S5: pod *i* is removed by a scale-in only when every higher ordinal is completely gone.
pub fn s5_highest_first(seen: &Seen<'_>) -> Result<(), Violation> {
    let Some((view, set, ordinal)) = deleted_by_set(seen) else { return Ok(()) };
    if ordinals(set).contains(&ordinal) {
        return Ok(());
    }
    for (key, other) in view.pods.iter() {
        let higher =
            set_of(view, key, other).is_some_and(|(of, above)| of.metadata.uid == set.metadata.uid && above > ordinal);
        if higher {
            return Err(Violation::new("S5", format!("{} is removed while {key} is still there", seen.change.key)));
        }
    }
    Ok(())
}

/// S6: a rolling update goes from the highest ordinal down, one at a time, and leaves those below the partition alone.
pub fn s6_rolling_update(seen: &Seen<'_>) -> Result<(), Violation> {
    let Some((view, set, ordinal)) = deleted_by_set(seen) else { return Ok(()) };
    let Some(old) = view.pods.get(&seen.change.key).filter(|pod| is_up(Some(pod))) else { return Ok(()) };
    if !ordinals(set).contains(&ordinal) {
        return Ok(());
    }
    let told = |message: String| Err(Violation::new("S6", format!("{}: {message}", seen.change.key)));
    let rolling = set.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
    let partition = rolling.and_then(|rolling| rolling.partition).map_or(0, i64::from);
    let current = set.status.as_ref().and_then(|status| status.current_revision.as_deref());
    if ordinal < partition && Some(revision(old)) == current {
        return told(format!("a ready pod below the partition {partition} is replaced"));
    }
    for other in ordinals(set) {
        let there = pod(view, &seen.change.key, set, other);
        if other > ordinal && !is_up(there) {
            return told(format!("replaced while {other} is not ready"));
        }
        if other > ordinal && other >= partition && there.is_some_and(|there| revision(there) == revision(old)) {
            return told(format!("replaced before {other}, which has its revision"));
        }
    }
    Ok(())
}

/// A pod that the StatefulSet controller tells to go, with its set and ordinal, as the controller saw them.
fn deleted_by_set<'a>(seen: &'a Seen<'_>) -> Option<(&'a Snapshot, &'a StatefulSet, i64)> {
    let view = seen.decided_on.filter(|_| seen.is_condemned() && seen.is_by_set_controller())?;
    let pod = view.pods.get(&seen.change.key)?;
    set_of(view, &seen.change.key, pod).map(|(set, ordinal)| (view, set, ordinal))
}
