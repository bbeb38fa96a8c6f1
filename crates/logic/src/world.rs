//! A small world for tests: objects as JSON, a snapshot of them, and decisions applied to it as the API server would.

use std::collections::BTreeMap;

use jiff::Timestamp;
pub use mainstay_api::object::merge;
use mainstay_api::{Kind, ObjectKey, kinds};
use serde_json::{Value, json};

use crate::decision::{Controller, Decision, Propagation, Write};
use crate::snapshot::{Change, Snapshot};

/// When a controller decided about a key.
#[derive(Clone, Copy, Default)]
struct Decided {
    /// After how many changes, and at what time.
    since: usize,
    at: Option<Timestamp>,
    /// When it wants to be asked again whatever happens; at once, where not all of it was carried out.
    again: Option<Timestamp>,
}

/// A store of JSON objects beside the snapshot made of it.
#[derive(Default, Clone)]
pub struct World {
    /// What logic sees.
    pub snapshot: Snapshot,
    objects: BTreeMap<(Kind, ObjectKey), Value>,
    revision: u64,
    /// How many uids were given out.
    uids: u64,
    /// Every event told, as `reason: message`.
    pub events: Vec<String>,
    /// Every change since they were last taken, with the snapshot before it.
    pub changes: Vec<(Snapshot, Change)>,
    /// Every write carried out, with the snapshot before it.
    pub log: Vec<(Snapshot, Write)>,
    /// Every change there was, with the snapshots before and after it.
    history: Vec<(Snapshot, Snapshot, Change)>,
    /// The writes that a policy refuses.
    pub refuses: Option<fn(&Write) -> bool>,
    /// What was decided last, by controller and key.
    decided: BTreeMap<(&'static str, ObjectKey), Decided>,
}

impl World {
    /// Makes or replaces an object (`kind` gives its type); a missing uid is given.
    pub fn put(&mut self, mut object: Value) {
        let name = object["kind"].as_str().unwrap_or("").to_owned();
        let kind = self.snapshot.registry.all().iter().find(|kind| kind.kind == name).cloned();
        let kind = &kind.unwrap_or_else(|| panic!("no kind {name}"));
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        if object["metadata"]["uid"].is_null() {
            self.uids += 1;
            object["metadata"]["uid"] = json!(format!("uid-{}", self.uids));
        }
        let key = ObjectKey::of(&object);
        let bytes = serde_json::to_vec(&object).unwrap();
        let before = self.snapshot.clone();
        let change = self.snapshot.apply(kind, key.clone(), Some(&bytes), self.revision);
        assert_eq!(self.snapshot.unreadable_of(&["*"]), None, "{object}");
        self.changed(before, change);
        self.objects.insert((kind.clone(), key), object);
    }

    /// The object, or null.
    pub fn get(&self, kind: &Kind, namespace: &str, name: &str) -> Value {
        self.objects.get(&(kind.clone(), ObjectKey::new(namespace, name))).cloned().unwrap_or(Value::Null)
    }

    /// Everything of one kind.
    pub fn all<'a>(&'a self, kind: &Kind) -> impl Iterator<Item = &'a Value> + use<'a> {
        let kind = kind.clone();
        self.objects.iter().filter(move |((of, _), _)| *of == kind).map(|(_, object)| object)
    }

    /// Changes an object by a merge patch, without preconditions.
    pub fn patch(&mut self, kind: &Kind, namespace: &str, name: &str, patch: Value) {
        let mut object = self.get(kind, namespace, name);
        assert!(!object.is_null(), "no {} {namespace}/{name}", kind.kind);
        merge(&mut object, patch);
        self.store(kind, object);
    }

    /// Deletes as a user does: an object with finalizers, and a bound pod, is only marked.
    pub fn delete(&mut self, kind: &Kind, namespace: &str, name: &str, grace: Option<i64>) {
        let mut object = self.get(kind, namespace, name);
        let graceful = kind.kind == "Pod" && object["spec"]["nodeName"].is_string() && grace != Some(0);
        if has_finalizers(&object) || graceful {
            if object["metadata"]["deletionTimestamp"].is_null() {
                object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
                self.store(kind, object);
            }
        } else {
            self.remove(kind, &ObjectKey::new(namespace, name));
        }
    }

    /// Deletes with a propagation policy, which the garbage collector carries out.
    pub fn delete_with(&mut self, kind: &Kind, key: &ObjectKey, grace: Option<i64>, propagation: Propagation) {
        let held = match propagation {
            Propagation::Background => None,
            Propagation::Foreground => Some("foregroundDeletion"),
            Propagation::Orphan => Some("orphan"),
        };
        if let Some(finalizer) = held {
            let mut object = self.get(kind, &key.namespace, &key.name);
            let mut finalizers = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
            finalizers.push(json!(finalizer));
            object["metadata"]["finalizers"] = json!(finalizers);
            self.store(kind, object);
        }
        self.delete(kind, &key.namespace, &key.name, grace);
    }

    /// Lets controllers decide about what changed, as the driver does, until nothing changes any more. Only the keys
    /// that a controller asks for are decided.
    pub fn settle(&mut self, controllers: &[Controller], now: Timestamp) {
        for _ in 0..10_000 {
            let changes = std::mem::take(&mut self.changes);
            if changes.is_empty() {
                return;
            }
            for controller in controllers {
                let mut keys = std::collections::BTreeSet::new();
                for (before, change) in &changes {
                    (controller.keys)(before, &self.snapshot, change, &mut |key| {
                        keys.insert(key);
                    });
                }
                for key in keys {
                    match &controller.many {
                        Some(many) if key.name.is_empty() => {
                            for key in (many.all)(&self.snapshot) {
                                self.run(controller, &key, now, usize::MAX);
                            }
                        }
                        _ => {
                            self.run(controller, &key, now, usize::MAX);
                        }
                    }
                }
            }
        }
        panic!(
            "it does not come to rest: {:?}",
            self.log.iter().rev().take(4).map(|(_, write)| write).collect::<Vec<_>>()
        );
    }

    /// Takes an object away at once.
    pub fn remove(&mut self, kind: &Kind, key: &ObjectKey) {
        self.revision += 1;
        self.objects.remove(&(kind.clone(), key.clone()));
        let before = self.snapshot.clone();
        let change = self.snapshot.apply(kind, key.clone(), None, self.revision);
        self.changed(before, change);
    }

    fn changed(&mut self, before: Snapshot, change: Change) {
        self.history.push((before.clone(), self.snapshot.clone(), change.clone()));
        self.changes.push((before, change));
    }

    /// Which revision the world has: it does not change while nothing is written.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Everything is decided anew, as by a driver that begins, or one that was shown new measurements.
    pub fn ask_anew(&mut self) {
        self.decided.clear();
    }

    /// A controller has something to do only where a change since it decided last has woken it, or the time that it
    /// named has come: else, in a cluster, it would not be asked (S12).
    fn assert_woken(&self, controller: &Controller, key: &ObjectKey, decision: &Decision, now: Timestamp) {
        let Decided { since, at, again } =
            self.decided.get(&(controller.name, key.clone())).copied().unwrap_or_default();
        // A test whose clock goes back looks at another world.
        if decision.writes.is_empty() || again.is_some_and(|again| again <= now) || at.is_some_and(|at| now < at) {
            return;
        }
        let woken = self.history[since..].iter().any(|(before, after, change)| {
            let mut woken = false;
            (controller.keys)(before, after, change, &mut |wakes| woken |= wakes == *key || wakes.name.is_empty());
            woken
        });
        let changes: Vec<_> =
            self.history[since..].iter().map(|(.., change)| (&change.kind.kind, &change.key)).collect();
        assert!(woken, "{} was not woken for {key} by {changes:?}: {:#?}", controller.name, decision.writes);
    }

    fn store(&mut self, kind: &Kind, mut object: Value) {
        object["kind"] = json!(kind.kind);
        let leaving = !object["metadata"]["deletionTimestamp"].is_null();
        let gracefully = kind.kind == "Pod" && object["spec"]["nodeName"].is_string();
        if leaving && !has_finalizers(&object) && !gracefully {
            self.remove(kind, &ObjectKey::of(&object));
        } else {
            self.put(object);
        }
    }

    /// After [`World::settle`] no key may have anything left to do: else some change failed to wake it.
    pub fn assert_quiet(&self, controllers: &[Controller], now: Timestamp) {
        for controller in controllers {
            for (_, key) in self.objects.keys() {
                let left = (controller.reconcile)(&self.snapshot, key, now).writes;
                assert!(left.is_empty(), "{} was not woken for {key}: {left:#?}", controller.name);
            }
        }
    }

    /// Runs one controller on one key and carries out at most `cut` of its writes. Gives back how many it made; a
    /// precondition that fails ends it, as it would the transaction's rest.
    pub fn run(&mut self, controller: &Controller, key: &ObjectKey, now: Timestamp, cut: usize) -> usize {
        self.run_on(&self.snapshot.clone(), controller, key, now, cut)
    }

    /// As [`World::run`], deciding on an older view.
    pub fn run_on(
        &mut self,
        view: &Snapshot,
        controller: &Controller,
        key: &ObjectKey,
        now: Timestamp,
        cut: usize,
    ) -> usize {
        // What a controller does not say that it reads, it does not find.
        let decision = (controller.reconcile)(&view.only(controller.reads), key, now);
        assert_versions(controller, &decision);
        let is_newest = view.revision == self.snapshot.revision;
        if is_newest {
            self.assert_woken(controller, key, &decision, now);
        }
        let seen = self.history.len();
        self.events.extend(decision.events.iter().map(|event| format!("{}: {}", event.reason, event.message)));
        let (mut done, mut over) = (0, std::collections::BTreeSet::new());
        for (at, write) in decision.writes.iter().enumerate().take(cut) {
            assert!(permitted(controller, write), "{} may not {write:?}", controller.name);
            let before = self.snapshot.clone();
            let group = decision.group(at);
            if over.contains(&group) {
                continue;
            }
            if self.refuses.is_some_and(|refuses| refuses(write)) || !self.commit(write) {
                if group == 0 {
                    break;
                }
                over.insert(group);
                continue;
            }
            self.log.push((before, write.clone()));
            done += 1;
        }
        let again = if done < decision.writes.len() { Some(Timestamp::MIN) } else { decision.wake_at };
        if is_newest {
            self.decided.insert((controller.name, key.clone()), Decided { since: seen, at: Some(now), again });
        }
        done
    }

    /// One write, with its preconditions.
    fn commit(&mut self, write: &Write) -> bool {
        match write {
            Write::Create { kind, object } => {
                if !self.get(kind, &ObjectKey::of(object).namespace, &ObjectKey::of(object).name).is_null() {
                    return false;
                }
                let mut object = object.clone();
                object["kind"] = json!(kind.kind);
                if let Some(map) = object.as_object_mut() {
                    map.remove("status");
                }
                self.put(object);
                true
            }
            Write::Patch { kind, key, uid, resource_version, patch, status } => {
                let object = self.get(kind, &key.namespace, &key.name);
                if !same(&object, uid, resource_version.as_deref()) {
                    return false;
                }
                self.patch(kind, &key.namespace, &key.name, patch.clone());
                if *status {
                    let mut causes = Vec::new();
                    let new = self.get(kind, &key.namespace, &key.name);
                    (kind.validate_status)(kind, &new, &object, &mut causes);
                    assert!(causes.is_empty(), "the API takes this status: {causes:?}, {new} after {object}");
                }
                true
            }
            Write::Delete { kind, key, uid, resource_version, grace_period, propagation } => {
                let object = self.get(kind, &key.namespace, &key.name);
                if !same(&object, uid, resource_version.as_deref()) {
                    return false;
                }
                self.delete_with(kind, key, *grace_period, *propagation);
                true
            }
            Write::Release { key, uid, lease, lease_version } => {
                let held = self.get(&kinds::LEASE, &lease.namespace, &lease.name);
                let pod = self.get(&kinds::POD, &key.namespace, &key.name);
                if held["metadata"]["resourceVersion"] != **lease_version || !same(&pod, uid, None) {
                    return false;
                }
                self.delete(&kinds::POD, &key.namespace, &key.name, Some(0));
                true
            }
            Write::Bind { key, uid, node } => {
                let pod = self.get(&kinds::POD, &key.namespace, &key.name);
                if !same(&pod, uid, None)
                    || pod["spec"]["nodeName"].is_string()
                    || !pod["metadata"]["deletionTimestamp"].is_null()
                {
                    return false;
                }
                self.patch(&kinds::POD, &key.namespace, &key.name, json!({"spec": {"nodeName": node}}));
                true
            }
        }
    }
}

/// A decision is one transaction: what it has written itself has another version after that, so that a second write
/// that asks for the version seen would refuse all of it, each time anew (S12).
fn assert_versions(controller: &Controller, decision: &Decision) {
    let mut written = std::collections::BTreeSet::new();
    for write in &decision.writes {
        let (slot, version) = match write {
            Write::Create { kind, object } => ((kind.clone(), ObjectKey::of(object)), None),
            Write::Patch { kind, key, resource_version, .. } | Write::Delete { kind, key, resource_version, .. } => {
                ((kind.clone(), key.clone()), resource_version.as_ref())
            }
            Write::Bind { key, .. } | Write::Release { key, .. } => ((kinds::POD.clone(), key.clone()), None),
        };
        let is_first = written.insert(slot);
        assert!(is_first || version.is_none(), "{} writes twice what it saw once: {write:?}", controller.name);
    }
}

fn permitted(controller: &Controller, write: &Write) -> bool {
    use crate::decision::Verb;
    let (verb, plural) = match write {
        Write::Create { kind, .. } => (Verb::Create, &*kind.plural),
        Write::Patch { kind, status: true, .. } => (Verb::PatchStatus, &*kind.plural),
        Write::Patch { kind, .. } => (Verb::Patch, &*kind.plural),
        Write::Delete { kind, .. } => (Verb::Delete, &*kind.plural),
        Write::Bind { .. } => (Verb::Bind, "pods"),
        Write::Release { .. } => (Verb::Delete, "pods"),
    };
    controller.permits.iter().any(|(may, what)| *may == verb && (*what == plural || *what == "*"))
}

fn same(object: &Value, uid: &str, resource_version: Option<&str>) -> bool {
    object["metadata"]["uid"] == uid
        && resource_version.is_none_or(|version| object["metadata"]["resourceVersion"] == version)
}

fn has_finalizers(object: &Value) -> bool {
    object["metadata"]["finalizers"].as_array().is_some_and(|finalizers| !finalizers.is_empty())
}
