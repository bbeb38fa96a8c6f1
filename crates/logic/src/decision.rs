//! What a decision is: the writes it wants, the events it tells, why nothing more happens now.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mainstay_api::{Kind, ObjectKey};
use serde_json::Value;

use crate::snapshot::{Change, Snapshot};

/// How dependents are treated when an object is deleted; upstream's `propagationPolicy`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Propagation {
    /// The object goes at once, dependents later.
    Background,
    /// Dependents first.
    Foreground,
    /// Dependents stay, without their owner.
    Orphan,
}

/// One write. All of a decision's writes are one transaction on the embedded store and single-key writes in
/// order on etcd, so a decision must be safe when cut after any prefix of them.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// Makes an object (`metadata.namespace` and `metadata.name` or `generateName` set). One that is already
    /// there fails the decision, which is then made again on a newer snapshot.
    Create { kind: Kind, object: Value },
    /// A JSON merge patch (RFC 7396) of the object's main resource or of its `status` subresource.
    /// Fails where `uid` or `resource_version` (when given) is not the stored one (A8).
    Patch { kind: Kind, key: ObjectKey, uid: String, resource_version: Option<String>, status: bool, patch: Value },
    /// Deletes with preconditions, as `DELETE` with `DeleteOptions` does: finalizers and graceful deletion hold it
    /// back.
    Delete {
        kind: Kind,
        key: ObjectKey,
        uid: String,
        resource_version: Option<String>,
        /// Seconds; `None` is the kind's default (a pod's `terminationGracePeriodSeconds`).
        grace_period: Option<i64>,
        propagation: Propagation,
    },
    /// Binds a pod to a node, as `POST pods/binding` does.
    Bind { key: ObjectKey, uid: String, node: String },
    /// Takes a pod away whose containers are known to be stopped, as a delete without grace does; fails where its
    /// node's Lease has changed since it was seen (S13).
    Release { key: ObjectKey, uid: String, lease: ObjectKey, lease_version: String },
}

impl Write {
    /// Whether it patches or deletes the object of `kind` with this metadata.
    pub fn is_of(&self, kind: &Kind, meta: &ObjectMeta) -> bool {
        match self {
            Self::Patch { kind: of, key, .. } | Self::Delete { kind: of, key, .. } => {
                of == kind && *key == key_of(meta)
            }
            Self::Create { .. } | Self::Bind { .. } | Self::Release { .. } => false,
        }
    }

    /// A merge patch of the main resource, guarded by uid and resourceVersion of the object as observed.
    pub fn patch(kind: &Kind, meta: &ObjectMeta, patch: Value) -> Self {
        Self::Patch {
            kind: kind.clone(),
            key: key_of(meta),
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone(),
            status: false,
            patch,
        }
    }

    /// A merge patch of the status, guarded by uid: a status has one writer, which reads its own writes.
    pub fn patch_status(kind: &Kind, meta: &ObjectMeta, status: Value) -> Self {
        Self::Patch {
            kind: kind.clone(),
            key: key_of(meta),
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: None,
            status: true,
            patch: serde_json::json!({ "status": status }),
        }
    }

    /// Annotations (a JSON object) by way of the status subresource, which counts no generation; guarded by uid.
    pub fn annotate_with_status(kind: &Kind, meta: &ObjectMeta, annotations: Value) -> Self {
        Self::Patch {
            kind: kind.clone(),
            key: key_of(meta),
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: None,
            status: true,
            patch: serde_json::json!({ "metadata": { "annotations": annotations } }),
        }
    }

    /// As [`Write::patch_status`], with what differs between two statuses only: a field that is no more is taken away,
    /// and nothing is written where nothing differs.
    pub fn change_status(kind: &Kind, meta: &ObjectMeta, old: &Value, new: &Value) -> Option<Self> {
        let patch = difference(old, new);
        let is_same = patch.as_object().is_some_and(serde_json::Map::is_empty);
        (!is_same || old.is_null()).then(|| Self::patch_status(kind, meta, patch)).filter(|_| old != new)
    }

    /// A merge patch of the main resource with what differs between two states of it; guarded as [`Write::patch`].
    pub fn change(kind: &Kind, meta: &ObjectMeta, old: &Value, new: &Value) -> Self {
        Self::patch(kind, meta, difference(old, new))
    }

    /// A delete in the background with the kind's grace period, guarded by uid and resourceVersion.
    pub fn delete(kind: &Kind, meta: &ObjectMeta) -> Self {
        Self::Delete {
            kind: kind.clone(),
            key: key_of(meta),
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone(),
            grace_period: None,
            propagation: Propagation::Background,
        }
    }

    /// The same, guarded by uid alone: a write before it in the same decision moves the resourceVersion on.
    #[must_use]
    pub fn whatever_version(mut self) -> Self {
        if let Self::Patch { resource_version, .. } | Self::Delete { resource_version, .. } = &mut self {
            *resource_version = None;
        }
        self
    }
}

/// The merge patch (RFC 7396) that makes `new` of `old`.
fn difference(old: &Value, new: &Value) -> Value {
    let (Value::Object(before), Value::Object(after)) = (old, new) else { return new.clone() };
    let gone = before.keys().filter(|field| !after.contains_key(*field)).map(|field| (field.clone(), Value::Null));
    let changed = after.iter().filter(|(field, value)| before.get(*field) != Some(value));
    let changed =
        changed.map(|(field, value)| (field.clone(), difference(before.get(field).unwrap_or(&Value::Null), value)));
    gone.chain(changed).collect::<serde_json::Map<_, _>>().into()
}

/// Namespace and name as metadata has them.
pub fn key_of(meta: &ObjectMeta) -> ObjectKey {
    ObjectKey::new(meta.namespace.as_deref().unwrap_or(""), meta.name.as_deref().unwrap_or(""))
}

/// An event for people: `core/v1` Event, counted up by the driver when it repeats.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// What it is about.
    pub kind: Kind,
    /// Its key.
    pub key: ObjectKey,
    /// Its uid.
    pub uid: String,
    /// `true` is `Warning`, `false` is `Normal`.
    pub warning: bool,
    /// Upstream's reason: `SuccessfulCreate`.
    pub reason: &'static str,
    /// Upstream's message.
    pub message: String,
}

impl Event {
    /// What the message of an event begins with that stands for several which differ in their words only (upstream's).
    pub const COMBINED: &str = "(combined from similar events): ";

    /// A `Normal` event about the object that `meta` is of.
    pub fn normal(kind: &Kind, meta: &ObjectMeta, reason: &'static str, message: String) -> Self {
        Self {
            kind: kind.clone(),
            key: key_of(meta),
            uid: meta.uid.clone().unwrap_or_default(),
            warning: false,
            reason,
            message,
        }
    }

    /// A `Warning` event about the object that `meta` is of.
    pub fn warning(kind: &Kind, meta: &ObjectMeta, reason: &'static str, message: String) -> Self {
        Self { warning: true, ..Self::normal(kind, meta, reason, message) }
    }
}

/// Why nothing more happens now. Feeds status conditions, events, the console, logs and test coverage.
/// Add a variant where a decision has a new reason to wait; names say what is waited for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Waiting {
    /// OrderedReady: a lower ordinal is not yet Running and Ready.
    PredecessorNotReady { ordinal: i64 },
    /// A pod is on its way out; its name is not free until its containers are known to be stopped (S2).
    PodTerminating { ordinal: i64 },
    /// A rolling update is held by `partition`.
    PartitionHeld { ordinal: i64 },
    /// A rolling update waits for a pod of the new revision.
    UpdatedPodNotReady { ordinal: i64 },
    /// The node is silent; its supervisors stop the pod by themselves (S13).
    FencingDeadline { node: String },
    /// `minReadySeconds` has not passed.
    NotYetAvailable,
    /// Nobody has asked for the volume yet: WaitForFirstConsumer.
    FirstConsumer,
    /// No volume fits, and no class makes one.
    NoVolume,
    /// Something still uses it (protection finalizers).
    InUse,
    /// An older pod of this name still has containers on this node (S1).
    NameTaken { uid: String },
    /// No node fits; the reason per node, in upstream's words.
    NoNodeFits { message: String },
    /// An object that it names does not exist.
    Missing { what: String },
    /// Dependents are still there (foreground deletion, namespace deletion).
    DependentsRemain { count: usize },
    /// A back-off or deadline runs.
    Backoff,
    /// An object of the name that is needed exists and is somebody else's (S10).
    OwnedByAnother { name: String },
    /// A claim of this name is on its way out; its name is not free yet (V6).
    ClaimTerminating { name: String },
    /// The namespace is being deleted: nothing new is made in it.
    NamespaceTerminating,
    /// `spec.paused`.
    Paused,
    /// Recreate: pods of an older revision still run.
    OldPodsRunning,
    /// A rolling update may not make more pods unavailable now.
    UnavailableBudgetUsed,
    /// Less important pods on this node are on their way out to make room.
    VictimsRunning { node: String },
    /// A stored object of a kind that this decision looks at does not decode; it is not taken for gone (A10).
    Undecodable { kind: Kind, key: ObjectKey },
}

/// The outcome of `decide`: total, deterministic, never an error.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// In order.
    pub writes: Vec<Write>,
    /// Told after the writes are committed.
    pub events: Vec<Event>,
    /// Objects that it does not write and that must stay as they are seen: until this is committed and seen, no
    /// other decision that writes one of them is committed.
    pub relies: Vec<(Kind, ObjectKey)>,
    /// Why it stops here; empty when all is as wanted.
    pub waiting: Vec<Waiting>,
    /// When to decide again even if nothing changes.
    pub wake_at: Option<Timestamp>,
    /// Which writes and events [stand apart](Decision::apart).
    pub apart: Apart,
}

/// Groups of a decision's writes, and of the events that tell of them, by position; 0 and beyond the end: of none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Apart {
    last: u32,
    writes: Vec<u32>,
    events: Vec<u32>,
}

impl Decision {
    /// What `add` adds stands apart: where a write of it is refused (by a policy, a quota, a webhook), what follows it
    /// in `add` is left out, with its events, and everything else of the decision is done all the same. The refusal of
    /// any other write leaves out all that follows. The decision is made anew after a while in either case, so what
    /// needs all of a group to be done is decided when it is seen to be.
    pub fn apart(&mut self, add: impl FnOnce(&mut Self)) {
        let (writes, events) = (self.writes.len(), self.events.len());
        add(self);
        let Apart { last, writes: of_writes, events: of_events } = &mut self.apart;
        *last += 1;
        for (groups, from, to) in [(of_writes, writes, self.writes.len()), (of_events, events, self.events.len())] {
            if to > from {
                groups.resize(from, 0);
                groups.resize(to, *last);
            }
        }
    }

    /// One write that stands apart.
    pub fn push_apart(&mut self, write: Write) {
        self.apart(|d| d.writes.push(write));
    }

    /// The group of a write; 0: of none.
    pub fn group(&self, write: usize) -> u32 {
        self.apart.writes.get(write).copied().unwrap_or(0)
    }

    /// The group of an event; 0: of none.
    pub fn event_group(&self, event: usize) -> u32 {
        self.apart.events.get(event).copied().unwrap_or(0)
    }

    /// Asks to be made again at `at`, or earlier.
    pub fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |old| old.min(at)));
    }

    /// Moves what makes objects of these kinds behind all other writes, which are then committed, the owner's status
    /// among them, also where such an object is refused (by a quota, by a webhook), as upstream.
    pub fn create_last(&mut self, kinds: &[&Kind]) {
        let is_late = |write: &Write| matches!(write, Write::Create { kind, .. } if kinds.contains(&kind));
        let groups: Vec<u32> = (0..self.writes.len()).map(|write| self.group(write)).collect();
        let mut writes: Vec<(Write, u32)> = std::mem::take(&mut self.writes).into_iter().zip(groups).collect();
        writes.sort_by_key(|(write, _)| is_late(write));
        (self.writes, self.apart.writes) = writes.into_iter().unzip();
    }
}

/// Where among `count` things a decision begins that takes `most` of them. Those that it took before may be refused for
/// as long as a policy stands, and then they keep nothing that comes after them: it is another part each time.
pub fn turn(count: usize, most: usize, now: Timestamp) -> usize {
    let turns = u64::try_from(count.div_ceil(most.max(1))).unwrap_or(u64::MAX).max(1);
    // The times at which it is asked may be multiples of anything.
    let mixed = now.as_millisecond().unsigned_abs().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    usize::try_from(mixed % turns).unwrap_or(0).saturating_mul(most)
}

/// What a controller may do, enforced by the driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verb {
    /// [`Write::Create`].
    Create,
    /// [`Write::Patch`] of the main resource.
    Patch,
    /// [`Write::Patch`] of the status.
    PatchStatus,
    /// [`Write::Delete`] and [`Write::Release`].
    Delete,
    /// [`Write::Bind`].
    Bind,
}

/// A controller: its line in the list.
pub struct Controller {
    /// Upstream's name: `statefulset-controller`. Also the `source.component` of its events.
    pub name: &'static str,
    /// What it may write: verb and the kind's plural (`*` for any kind).
    pub permits: &'static [(Verb, &'static str)],
    /// The plurals of the kinds that its decisions look at (`*` for any kind). While an object of one of them does not
    /// decode, nothing is decided, as upstream's controllers stop when a LIST fails (A10).
    pub reads: &'static [&'static str],
    /// Calls `wake` with each key to decide again after `change`. `before` and `after` are the snapshots around it;
    /// of a kind without views ([`Snapshot::has_views_of`]) `before` may be `after`, and `change` alone says what
    /// differs.
    pub keys: fn(before: &Snapshot, after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)),
    /// `observe` then `decide`; an object that is gone gives an empty decision.
    pub reconcile: fn(&Snapshot, &ObjectKey, Timestamp) -> Decision,
    /// Where keys are decided together instead, many at a time.
    pub many: Option<Many>,
}

/// How a controller decides many keys together. It is asked again when its last decisions are committed and seen, or
/// are [assumed](Many::assume) to be.
pub struct Many {
    /// A decision for each key, in this order: each may rely on those before it. A cut or a refusal ends them all.
    pub decide: fn(&Snapshot, &[ObjectKey], Timestamp) -> Vec<Decision>,
    /// Lower ranks are decided first.
    pub rank: fn(&Snapshot, &ObjectKey) -> i64,
    /// Every key that there is something to decide about, for when the empty key is woken.
    pub all: fn(&Snapshot) -> Vec<ObjectKey>,
    /// At most so many at a time.
    pub most: usize,
    /// Takes a write of its own, which is under way, for done. With it the next keys are decided while the last are
    /// being committed, as if they were: what is written or [relied on](Decision::relies) by those is nobody else's
    /// until they are seen all the same, and when one is not done after all, every key is looked at again. The object
    /// may have changed since the write was decided.
    pub assume: Option<fn(&mut Snapshot, &Write)>,
}

/// A status patch that replaces a list, and so must not meet a newer one.
pub fn guarded_status(kind: &Kind, metadata: &ObjectMeta, status: Value) -> Write {
    let mut write = Write::patch_status(kind, metadata, status);
    if let Write::Patch { resource_version, .. } = &mut write {
        resource_version.clone_from(&metadata.resource_version);
    }
    write
}
