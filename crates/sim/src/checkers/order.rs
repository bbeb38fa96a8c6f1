//! S4, S5, S6: the order in which a set makes, removes and replaces its pods.
//!
//! What somebody else changed since the controller looked, it cannot know: of that it is judged by what it saw. What it
//! did itself it must know (read-your-writes), so that of its own pods and deletions the store's truth counts.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use mainstay_api::ObjectKey;
use mainstay_logic::{Snapshot, pods};

use super::{Seen, Violation, ordinals, parse_ordinal, revision, set_of};

/// The pods that the controller itself has told to go, by uid.
#[derive(Default)]
pub struct Order(BTreeSet<String>);

/// The pod of an ordinal, when it is the set's.
fn pod<'a>(snapshot: &'a Snapshot, namespace: &str, set: &StatefulSet, ordinal: i64) -> Option<&'a Pod> {
    let name = set.metadata.name.as_deref().unwrap_or("");
    let key = ObjectKey::new(namespace, format!("{name}-{ordinal}"));
    let pod = snapshot.pods.get(&key)?;
    set_of(snapshot, &key, pod).map(|_| &**pod)
}

fn is_up(pod: Option<&Pod>) -> bool {
    pod.is_some_and(|pod| pods::is_running_and_ready(pod) && !pods::is_terminating(&pod.metadata))
}

/// Up, and for as long as the set asks for.
fn is_available(set: &StatefulSet, pod: Option<&Pod>, now: Timestamp) -> bool {
    is_up(pod) && pod.is_some_and(|pod| pods::is_available(pod, set.spec.min_ready_seconds.unwrap_or(0), now))
}

fn image(spec: Option<&k8s_openapi::api::core::v1::PodSpec>) -> Option<&str> {
    spec?.containers.first()?.image.as_deref()
}

/// The first ordinal that a rolling update reaches, and how many pods it may take away at once; `None` for OnDelete.
fn rolling(set: &StatefulSet) -> Option<(i64, usize)> {
    let strategy = set.spec.update_strategy.as_ref();
    if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("OnDelete") {
        return None;
    }
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    let most = match rolling.and_then(|rolling| rolling.max_unavailable.as_ref()) {
        Some(IntOrString::Int(most)) => usize::try_from(*most).unwrap_or(1),
        _ => 1,
    };
    let partition = rolling.and_then(|rolling| rolling.partition).map_or(0, i64::from);
    Some((ordinals(set).start + partition, most.max(1)))
}

impl Order {
    /// All three, of one change of a pod.
    pub fn check(&mut self, seen: &Seen<'_>) -> Result<(), Violation> {
        if !seen.is_by_set_controller() {
            return Ok(());
        }
        self.s4_predecessors_available(seen)?;
        s5_highest_first(seen)?;
        self.s6_rolling_update(seen)?;
        s6_revision_of_new_pods(seen)?;
        if seen.is_condemned()
            && let Some(old) = &seen.change.old
        {
            self.0.insert(old.uid().to_owned());
        }
        Ok(())
    }

    /// Whether the store still has a pod that the controller itself has told to go.
    fn has_taken(&self, pod: Option<&Pod>) -> bool {
        pod.and_then(|pod| pod.metadata.uid.as_ref()).is_some_and(|uid| self.0.contains(uid))
    }

    /// S4: when pod *i* is made, every pod with a lower ordinal is Running, Ready and available.
    fn s4_predecessors_available(&self, seen: &Seen<'_>) -> Result<(), Violation> {
        let Some(view) = seen.decided_on.filter(|_| seen.is_made()) else { return Ok(()) };
        let Some((name, ordinal)) = parse_ordinal(&seen.change.key.name) else { return Ok(()) };
        let namespace = &seen.change.key.namespace;
        let Some(set) = view.stateful_sets.get(&ObjectKey::new(namespace.clone(), name)) else { return Ok(()) };
        if set.spec.pod_management_policy.as_deref() == Some("Parallel") {
            return Ok(());
        }
        for lower in ordinals(set).start..ordinal {
            let was_available = is_available(set, pod(view, namespace, set, lower), seen.now);
            if !was_available || self.has_taken(pod(seen.before, namespace, set, lower)) {
                return Err(Violation::new(
                    "S4",
                    format!("{} is made while {name}-{lower} is not available", seen.change.key),
                ));
            }
        }
        Ok(())
    }

    /// S6: a rolling update goes from the highest ordinal down, no further at once than maxUnavailable, and leaves
    /// those below the partition alone; OnDelete replaces nothing.
    fn s6_rolling_update(&self, seen: &Seen<'_>) -> Result<(), Violation> {
        let Some((view, set, ordinal)) = deleted_by_set(seen) else { return Ok(()) };
        let Some(old) = view.pods.get(&seen.change.key).filter(|pod| is_up(Some(pod))) else { return Ok(()) };
        if !ordinals(set).contains(&ordinal) {
            return Ok(());
        }
        let told = |message: String| Err(Violation::new("S6", format!("{}: {message}", seen.change.key)));
        let Some((partition, most)) = rolling(set) else {
            return told("OnDelete replaces a pod that is up".to_owned());
        };
        let current = set.status.as_ref().and_then(|status| status.current_revision.as_deref());
        if ordinal < partition && Some(revision(old)) == current {
            return told(format!("a ready pod below the partition {partition} is replaced"));
        }
        let namespace = &seen.change.key.namespace;
        let mut away = 0;
        for other in ordinals(set).filter(|other| *other != ordinal) {
            let (saw, there) = (pod(view, namespace, set, other), pod(seen.before, namespace, set, other));
            away += usize::from(!is_available(set, saw, seen.now) || self.has_taken(there));
            if other > ordinal
                && other >= partition
                && is_up(saw)
                && saw.is_some_and(|saw| revision(saw) == revision(old))
                && !self.has_taken(there)
            {
                return told(format!("replaced before {other}, which has its revision"));
            }
        }
        if is_available(set, Some(old), seen.now) && away >= most {
            return told(format!("replaced while {away} others are away, and {most} may be"));
        }
        Ok(())
    }
}

/// S5: pod *i* is removed by a scale-in only when every higher ordinal that is to go is completely gone (with another
/// `ordinals.start` higher ones stay). Only the controller makes pods of a set, so what is there counts, seen or not.
fn s5_highest_first(seen: &Seen<'_>) -> Result<(), Violation> {
    let Some((_, set, ordinal)) = deleted_by_set(seen) else { return Ok(()) };
    let wanted = ordinals(set);
    if wanted.contains(&ordinal) {
        return Ok(());
    }
    for (key, other) in seen.before.pods.iter() {
        let higher = set_of(seen.before, key, other).is_some_and(|(of, above)| {
            of.metadata.uid == set.metadata.uid && above > ordinal && !wanted.contains(&above)
        });
        if higher {
            return Err(Violation::new("S5", format!("{} is removed while {key} is still there", seen.change.key)));
        }
    }
    Ok(())
}

/// S6: a pod is made from the revision that its ordinal shall have: the current one below the partition, else what the
/// template says.
fn s6_revision_of_new_pods(seen: &Seen<'_>) -> Result<(), Violation> {
    let Some(view) = seen.decided_on.filter(|_| seen.is_made()) else { return Ok(()) };
    let Some(made) = seen.after.pods.get(&seen.change.key) else { return Ok(()) };
    let Some((set, ordinal)) = set_of(view, &seen.change.key, made) else { return Ok(()) };
    let told = |message: String| Err(Violation::new("S6", format!("{} is made {message}", seen.change.key)));
    let current = set.status.as_ref().and_then(|status| status.current_revision.as_deref()).unwrap_or("");
    let is_below = rolling(set).is_some_and(|(partition, _)| ordinal < partition);
    let is_known = view.controller_revisions.contains_key(&ObjectKey::new(seen.change.key.namespace.clone(), current));
    match is_below {
        true if is_known && revision(made) != current => {
            told(format!("from {} and not from the current {current}", revision(made)))
        }
        false if image(made.spec.as_ref()) != image(set.spec.template.spec.as_ref()) => {
            told(format!("of {:?}, which the template does not say", image(made.spec.as_ref())))
        }
        _ => Ok(()),
    }
}

/// A pod that the StatefulSet controller tells to go, with its set and ordinal, as the controller saw them.
fn deleted_by_set<'a>(seen: &'a Seen<'_>) -> Option<(&'a Snapshot, &'a StatefulSet, i64)> {
    let view = seen.decided_on.filter(|_| seen.is_condemned() && seen.is_by_set_controller())?;
    let pod = view.pods.get(&seen.change.key)?;
    set_of(view, &seen.change.key, pod).map(|(set, ordinal)| (view, set, ordinal))
}
