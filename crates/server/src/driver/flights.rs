//! Decisions that are being committed, or are committed and not yet seen: their keys are not decided again until they
//! are, and nothing else is decided about the objects that they write. All other keys go on.

use std::collections::{BTreeMap, BTreeSet};

use mainstay_api::{Kind, ObjectKey, kinds};
use mainstay_logic::{Decision, Write};

use super::queue::Item;

/// An object: its kind and key.
type Object = (Kind, ObjectKey);

/// What is under way.
#[derive(Debug, Default)]
pub struct Flights {
    by_item: BTreeMap<Item, Flight>,
    /// Who writes each object, or relies on it.
    writers: BTreeMap<Object, Item>,
    /// What is committed, by the revision from which on it is seen.
    landing: BTreeSet<(u64, Item)>,
    /// How many items of each controller are under way.
    lanes: BTreeMap<usize, usize>,
}

#[derive(Debug, Default)]
struct Flight {
    objects: Vec<Object>,
    /// Whether the key was woken meanwhile.
    woken: bool,
    /// Keys that want to write one of the objects too.
    waiters: BTreeSet<Item>,
}

/// The objects that a decision writes, as far as they have names yet.
fn objects(decision: &Decision) -> impl Iterator<Item = Object> + '_ {
    let all = decision.writes.iter().map(|write| {
        let (kind, key) = match write {
            Write::Create { kind, object } => (kind, ObjectKey::of(object)),
            Write::Patch { kind, key, .. } | Write::Delete { kind, key, .. } => (kind, key.clone()),
            Write::Bind { key, .. } | Write::Release { key, .. } => (&kinds::POD, key.clone()),
        };
        (kind.clone(), key)
    });
    all.filter(|(_, key)| !key.name.is_empty())
}

/// Those, and the objects that it relies on.
fn held(decision: &Decision) -> impl Iterator<Item = Object> + '_ {
    objects(decision).chain(decision.relies.iter().cloned())
}

impl Flights {
    /// How many keys are under way.
    pub fn len(&self) -> usize {
        self.by_item.len()
    }

    /// Whether any key of a controller is under way.
    pub fn has_lane(&self, lane: usize) -> bool {
        self.lanes.contains_key(&lane)
    }

    /// Notes that a key was woken, if it is under way: it will be woken again when it has landed.
    pub fn wake(&mut self, item: &Item) -> bool {
        self.by_item.get_mut(item).map(|flight| flight.woken = true).is_some()
    }

    /// Makes a key wait for whoever writes or relies on one of the objects that its decision writes or relies on;
    /// whether there is one.
    pub fn waits(&mut self, item: &Item, decision: &Decision) -> bool {
        let writers = &self.writers;
        let holder = held(decision).find_map(|object| writers.get(&object).filter(|holder| *holder != item));
        let Some(flight) = holder.cloned().and_then(|holder| self.by_item.get_mut(&holder)) else { return false };
        flight.waiters.insert(item.clone());
        true
    }

    /// A key's decision is on its way.
    pub fn start(&mut self, item: &Item, decision: &Decision) {
        let objects: Vec<Object> = held(decision).collect();
        for object in &objects {
            self.writers.entry(object.clone()).or_insert_with(|| item.clone());
        }
        self.by_item.insert(item.clone(), Flight { objects, ..Flight::default() });
        *self.lanes.entry(item.0).or_default() += 1;
    }

    /// A key's decision is committed; it is seen from `revision` on.
    pub fn committed(&mut self, item: &Item, revision: u64) {
        self.landing.insert((revision, item.clone()));
    }

    /// The keys to wake now that everything up to `revision` is seen.
    pub fn land(&mut self, revision: u64) -> Vec<Item> {
        let mut wake = Vec::new();
        while self.landing.first().is_some_and(|(at, _)| *at <= revision) {
            if let Some((_, item)) = self.landing.pop_first() {
                wake.extend(self.end(&item));
            }
        }
        wake
    }

    /// A key is not under way any more. The keys to wake.
    pub fn end(&mut self, item: &Item) -> Vec<Item> {
        let Some(flight) = self.by_item.remove(item) else { return Vec::new() };
        for object in flight.objects {
            if self.writers.get(&object) == Some(item) {
                self.writers.remove(&object);
            }
        }
        if let Some(count) = self.lanes.get_mut(&item.0) {
            *count -= 1;
            if *count == 0 {
                self.lanes.remove(&item.0);
            }
        }
        flight.waiters.into_iter().chain(flight.woken.then(|| item.clone())).collect()
    }
}
