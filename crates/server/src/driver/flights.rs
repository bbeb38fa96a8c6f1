//! Decisions that are being committed, or are committed and not yet seen: their keys are not decided again until they
//! are, and nothing else is decided about the objects that they write. All other keys go on; where a controller
//! [assumes](mainstay_logic::decision::Many::assume) its own writes to be done, on the state that those make.

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
    /// How many items of each controller are under way, by what was decided together.
    lanes: BTreeMap<usize, BTreeMap<u64, usize>>,
    /// What is being decided together.
    round: u64,
}

#[derive(Debug, Default)]
struct Flight {
    objects: Vec<Object>,
    /// Whether the key was woken meanwhile.
    woken: bool,
    /// Keys that want to write one of the objects too.
    waiters: BTreeSet<Item>,
    round: u64,
    /// What others of its controller take for done.
    assumed: Vec<Write>,
    /// Whether any has.
    is_relied_on: bool,
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

    /// How many times keys of a controller were decided together that are under way.
    pub fn rounds(&self, lane: usize) -> usize {
        self.lanes.get(&lane).map_or(0, BTreeMap::len)
    }

    /// What [starts](Flights::start) from now on was decided together.
    pub fn begin_round(&mut self) {
        self.round += 1;
    }

    /// The writes of a controller that are under way, for being taken for done.
    pub fn assume(&mut self, lane: usize) -> impl Iterator<Item = &Write> {
        let all = self.by_item.range_mut((lane, ObjectKey::new("", ""))..).take_while(move |((of, _), _)| *of == lane);
        all.flat_map(|(_, flight)| {
            flight.is_relied_on = true;
            &flight.assumed
        })
    }

    /// What a key decided is not done after all. Whether anything was decided as if it were.
    pub fn refute(&mut self, item: &Item) -> bool {
        let Some(flight) = self.by_item.get_mut(item) else { return false };
        flight.assumed.clear();
        flight.is_relied_on
    }

    /// A key's decision is on its way; `assumes`: until it is seen, others of its controller may take it for done.
    pub fn start(&mut self, item: &Item, decision: &Decision, assumes: bool) {
        let objects: Vec<Object> = held(decision).collect();
        for object in &objects {
            self.writers.entry(object.clone()).or_insert_with(|| item.clone());
        }
        let assumed = if assumes { decision.writes.clone() } else { Vec::new() };
        let flight = Flight { objects, round: self.round, assumed, ..Flight::default() };
        self.by_item.insert(item.clone(), flight);
        *self.lanes.entry(item.0).or_default().entry(self.round).or_default() += 1;
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
        if let Some(rounds) = self.lanes.get_mut(&item.0)
            && let Some(count) = rounds.get_mut(&flight.round)
        {
            *count -= 1;
            if *count == 0 {
                rounds.remove(&flight.round);
            }
            if rounds.is_empty() {
                self.lanes.remove(&item.0);
            }
        }
        flight.waiters.into_iter().chain(flight.woken.then(|| item.clone())).collect()
    }
}
