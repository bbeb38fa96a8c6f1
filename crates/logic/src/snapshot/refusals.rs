//! Which owners' pods are refused by nodes, and since when: an owner that makes again what was just refused waits
//! longer and longer (X7). Known from the pods as they come by: what an earlier server saw is forgotten with their
//! objects, and costs a few pods more.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use mainstay_api::ObjectKey;
use rpds::RedBlackTreeMapSync;

use super::Snapshot;
use crate::history::REVISION_LABEL;
use crate::ownership::controller_of;
use crate::pods::{finished_at, is_refused, is_taken_up};

/// The pause after the first refusal.
const FIRST: SignedDuration = SignedDuration::from_secs(1);
/// The longest pause.
const LONGEST: SignedDuration = SignedDuration::from_mins(5);

/// An owner's uid, which of its places (see [`place`]), the revision of the template.
type Place = (Arc<str>, Arc<str>, Arc<str>);

/// Refusals without a pod in between that was taken up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Streak {
    first: Timestamp,
    last: Timestamp,
}

impl Streak {
    /// When the next pod may be made; `newest` is when the last one was. The pause is as long as the streak, so that it
    /// doubles: 1 s at first, five minutes at most.
    pub fn until(&self, newest: Option<Timestamp>) -> Timestamp {
        let pause = self.last.duration_since(self.first).clamp(FIRST, LONGEST);
        self.last.max(newest.unwrap_or(self.last)).saturating_add(pause).unwrap_or(Timestamp::MAX)
    }

    /// With one more at this time.
    fn and(self, at: Timestamp) -> Self {
        // What was refused long before has nothing to do with it.
        if at.duration_since(self.last) > LONGEST + LONGEST {
            return Self { first: at, last: at };
        }
        Self { first: self.first.min(at), last: self.last.max(at) }
    }
}

/// All streaks.
#[derive(Clone, Default, Debug)]
pub struct Refusals(RedBlackTreeMapSync<Place, Streak>);

impl Refusals {
    fn of(&self, uid: &str, place: &str, revision: &str) -> Option<Streak> {
        // Asked of every pod of a set whenever that is decided.
        if self.0.is_empty() {
            return None;
        }
        self.0.get(&(uid.into(), place.into(), revision.into())).copied()
    }

    /// Forgets what is known of an owner, at one of its places where one is given.
    fn forget(&mut self, uid: &str, place: Option<&str>) {
        let start = (uid.into(), place.unwrap_or("").into(), "".into());
        let is_of = |of: &Place| *of.0 == *uid && place.is_none_or(|place| *of.1 == *place);
        let known: Vec<Place> = self.0.range(start..).map(|(of, _)| of.clone()).take_while(is_of).collect();
        for of in &known {
            self.0.remove_mut(of);
        }
    }
}

/// Where a pod counts: with its node for a DaemonSet, by its name for a StatefulSet, all together for a ReplicaSet and
/// a ReplicationController; `None` for others, whose owners have pauses of their own. And the revision.
fn place<'a>(pod: &'a Pod, owner: &OwnerReference) -> Option<(&'a str, &'a str)> {
    let revision = || pod.metadata.labels.as_ref().and_then(|all| all.get(REVISION_LABEL)).map_or("", String::as_str);
    match owner.kind.as_str() {
        "ReplicaSet" | "ReplicationController" => Some(("", "")),
        "DaemonSet" => Some((pod.spec.as_ref()?.node_name.as_deref()?, revision())),
        "StatefulSet" => Some((pod.metadata.name.as_deref()?, revision())),
        _ => None,
    }
}

/// A pod came, changed or went.
pub fn set_pod(snapshot: &mut Snapshot, key: &ObjectKey, old: Option<&Pod>, new: Option<&Pod>) {
    let Some(new) = new else { return };
    let is_news = |of: fn(&Pod) -> bool| of(new) && !old.is_some_and(of);
    let (is_refused, is_taken_up) = (is_news(is_refused), is_news(is_taken_up));
    if !is_refused && !is_taken_up {
        return;
    }
    let Some(owner) = controller_of(&new.metadata) else { return };
    let Some((place, revision)) = place(new, owner) else { return };
    let streak = snapshot.refusals.of(&owner.uid, place, revision);
    // The server's own time: when it was refused, only the node's clock says, which may be years ahead (S12).
    let created = new.metadata.creation_timestamp.as_ref().map(|time| time.0);
    if is_refused && snapshot.is_there(owner, key) {
        let at = created.unwrap_or_else(|| finished_at(new));
        let streak = streak.map_or(Streak { first: at, last: at }, |streak| streak.and(at));
        // Of another template nobody asks any more.
        snapshot.refusals.forget(&owner.uid, Some(place));
        snapshot.refusals.0.insert_mut((owner.uid.as_str().into(), place.into(), revision.into()), streak);
    } else if let (true, Some(streak)) = (is_taken_up, streak)
        && created.is_some_and(|created| created > streak.last)
    {
        snapshot.refusals.forget(&owner.uid, Some(place));
    }
}

impl Snapshot {
    /// Since when nodes refuse an owner's pods at a place and of a revision; `""` for a ReplicaSet's.
    pub fn refused(&self, uid: &str, place: &str, revision: &str) -> Option<Streak> {
        self.refusals.of(uid, place, revision)
    }

    /// The owner is gone, or its place is another's.
    pub fn forget_refusals(&mut self, uid: &str) {
        self.refusals.forget(uid, None);
    }

    fn is_there(&self, owner: &OwnerReference, pod: &ObjectKey) -> bool {
        let key = ObjectKey::new(pod.namespace.clone(), owner.name.as_str());
        let uid = match owner.kind.as_str() {
            "ReplicaSet" => self.replica_sets.get(&key).map(|set| &set.metadata),
            "ReplicationController" => self.replication_controllers.get(&key).map(|set| &set.metadata),
            "DaemonSet" => self.daemon_sets.get(&key).map(|set| &set.metadata),
            "StatefulSet" => self.stateful_sets.get(&key).map(|set| &set.metadata),
            _ => None,
        };
        uid.is_some_and(|meta| meta.uid.as_ref() == Some(&owner.uid))
    }
}
