//! The promises, checked over the true state: the store and all machines. One file per family, one function per name.

mod claims;
mod identity;
mod names;
mod order;
mod ownership;
pub mod rest;
mod services;
mod volumes;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use mainstay_api::{Kind, ObjectKey, kinds};
use mainstay_logic::{Change, Snapshot};

use crate::bugs::Bug;
use crate::node::Node;

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its name in INVARIANTS.md.
    pub invariant: &'static str,
    /// How.
    pub message: String,
}

impl Violation {
    /// A broken promise.
    pub fn new(invariant: &'static str, message: impl Into<String>) -> Self {
        Self { invariant, message: message.into() }
    }
}

/// Who made a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actor {
    /// A person.
    User,
    /// The agent of a node.
    Node(String),
    /// A controller, by its name.
    Controller(&'static str),
    /// The server itself, at its start.
    Server,
}

impl std::fmt::Display for Actor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::User => f.write_str("user"),
            Self::Node(name) => f.write_str(name),
            Self::Controller(name) => f.write_str(name),
            Self::Server => f.write_str("server"),
        }
    }
}

/// One change of the store, and everything around it.
pub struct Seen<'a> {
    /// Who made it.
    pub actor: &'a Actor,
    /// The store before.
    pub before: &'a Snapshot,
    /// The store after.
    pub after: &'a Snapshot,
    /// What changed.
    pub change: &'a Change,
    /// What the controller saw when it decided.
    pub decided_on: Option<&'a Snapshot>,
    /// All machines.
    pub nodes: &'a [Node],
    /// When.
    pub now: Timestamp,
}

impl Seen<'_> {
    /// Whether it is about this kind.
    fn is(&self, kind: &Kind) -> bool {
        self.change.kind == kind.clone()
    }

    /// Whether the object was made by it.
    fn is_made(&self) -> bool {
        self.change.old.is_none()
    }

    /// Whether the object was told to go by it, or went.
    fn is_condemned(&self) -> bool {
        let was = self.change.old.as_ref().is_some_and(|old| old.metadata.deletion_timestamp.is_none());
        was && self.change.new.as_ref().is_none_or(|new| new.metadata.deletion_timestamp.is_some())
    }

    /// Whether the StatefulSet controller made it.
    fn is_by_set_controller(&self) -> bool {
        *self.actor == Actor::Controller("statefulset-controller")
    }
}

/// Everything that checkers remember.
pub struct Checkers {
    claims: claims::Claims,
    volumes: volumes::Volumes,
    forced: identity::Forced,
    released: identity::Released,
    order: order::Order,
    names: names::Names,
    services: services::Services,
}

impl Checkers {
    /// Those of a world that begins, with what is broken on purpose.
    pub fn new(bug: Option<Bug>) -> Self {
        Self {
            claims: claims::Claims::default(),
            volumes: volumes::Volumes::default(),
            forced: identity::Forced::default(),
            released: identity::Released::default(),
            order: order::Order::default(),
            names: names::Names::new(bug),
            services: services::Services::new(bug),
        }
    }

    /// How many names were given free by deadline so far.
    pub fn released(&self) -> usize {
        self.released.len()
    }

    /// One change of the store.
    pub fn on_change(&mut self, seen: &Seen<'_>) -> Result<(), Violation> {
        if seen.is(&kinds::POD) {
            self.forced.note(seen);
            self.released.note(seen)?;
            identity::s2_no_containers_of_a_predecessor(seen, &self.forced)?;
            identity::s3_identity_from_set_and_ordinal(seen)?;
            self.order.check(seen)?;
            ownership::s10_only_its_own(seen)?;
        }
        a8_only_what_was_seen(seen)?;
        self.claims.s8_claims_stay(seen)?;
        volumes::v8_no_delete_below_a_mount(seen.nodes)?;
        volumes::v1_one_to_one(seen)?;
        volumes::v2_in_use_is_never_removed(seen, &self.forced)?;
        self.services.n4_an_endpoint_or_a_refusal(seen)?;
        self.names.n2_n3_no_name_of_what_is_gone(seen)
    }

    /// The healed world at rest.
    pub fn at_rest(&self, nodes: &[Node], snapshot: &Snapshot) -> Result<(), Violation> {
        rest::converged(snapshot)?;
        rest::nothing_leaks(snapshot, nodes)?;
        self.services.n4_ready_pods_are_reached(snapshot)?;
        self.names.n1_ready_pods_resolve(snapshot)
    }

    /// The state between two steps.
    pub fn on_state(&mut self, nodes: &[Node], snapshot: &Snapshot, now: Timestamp) -> Result<(), Violation> {
        self.claims.s9_claims_are_made_again(snapshot, now)?;
        self.released.s13_what_was_released_never_runs(nodes)?;
        identity::s1_one_set_of_containers(nodes, &self.forced)?;
        volumes::v8_no_delete_below_a_mount(nodes)?;
        volumes::v9_access_modes(nodes)?;
        volumes::v5_mounted_where_it_lives(nodes, snapshot)?;
        self.volumes.v6_fresh_for_each_claim(nodes)?;
        self.volumes.v3_removed_only_when_deleted(nodes, snapshot)
    }
}

/// A8: what a controller changes or removes is the object that it saw, and what a node does is about pods that are its
/// own: never about another one that has the name by now.
fn a8_only_what_was_seen(seen: &Seen<'_>) -> Result<(), Violation> {
    if let (Actor::Node(name), true) = (seen.actor, seen.is(&kinds::POD))
        && let Some(pod) = seen.before.pods.get(&seen.change.key)
        && pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) != Some(name)
    {
        return Err(Violation::new("A8", format!("{name} changes {}, which it does not have", seen.change.key)));
    }
    let (Some(old), Some(view), Actor::Controller(name)) = (&seen.change.old, seen.decided_on, seen.actor) else {
        return Ok(());
    };
    let known = view.metas.get(&(seen.change.kind.clone(), seen.change.key.clone()));
    match known.filter(|known| known.uid() != old.uid()) {
        None => Ok(()),
        Some(known) => {
            let message = format!("{name} changes {} {}, and saw {}", seen.change.key, old.uid(), known.uid());
            Err(Violation::new("A8", message))
        }
    }
}

/// No pod of a set here has an ordinal as high as this.
pub const MAX_ORDINAL: i64 = 10;

/// `web-3` is ordinal 3 of `web`.
pub fn parse_ordinal(pod: &str) -> Option<(&str, i64)> {
    let (set, ordinal) = pod.rsplit_once('-')?;
    Some((set, ordinal.parse().ok()?))
}

/// The set that controls a pod by uid, as a snapshot has it, and the pod's ordinal.
pub fn set_of<'a>(snapshot: &'a Snapshot, key: &ObjectKey, pod: &Pod) -> Option<(&'a StatefulSet, i64)> {
    let (name, ordinal) = parse_ordinal(&key.name)?;
    let set = snapshot.stateful_sets.get(&ObjectKey::new(key.namespace.clone(), name))?;
    let owner = mainstay_logic::ownership::controller_of(&pod.metadata)?;
    (Some(&owner.uid) == set.metadata.uid.as_ref()).then_some((&**set, ordinal))
}

/// The first ordinal of a set and the one after its last.
pub fn ordinals(set: &StatefulSet) -> std::ops::Range<i64> {
    let start = set.spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).map_or(0, i64::from);
    start..start + i64::from(set.spec.replicas.unwrap_or(1))
}

/// A pod's revision label.
pub fn revision(pod: &Pod) -> &str {
    pod.metadata.labels.as_ref().and_then(|labels| labels.get("controller-revision-hash")).map_or("", String::as_str)
}
