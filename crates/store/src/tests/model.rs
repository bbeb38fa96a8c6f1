//! The store against a trivial reference: all states and events ever, in vectors.

use crate::testing::FaultyDisk;
use crate::{
    CommitError, Encoded, Event, Expect, Op, Options, ReadError, Revision, Source, Store, Txn, WatchError, Watcher,
};
use bytes::Bytes;
use proptest::prelude::*;
use std::collections::BTreeMap;

const WINDOW: usize = 12;

#[derive(Clone, Debug)]
enum Step {
    /// Per expectation: key, and whether it is made to hold by looking; per op: key, and whether it deletes.
    Commit(Vec<(Bytes, bool)>, Vec<(Bytes, bool)>),
    Range(Bytes, Option<Bytes>, usize, u64),
    Watch(Bytes, u64),
    Drain(usize),
    Compact(u64),
    Restart(Option<u64>),
}

fn key() -> impl Strategy<Value = Bytes> {
    prop::sample::select(vec!["a/1", "a/2", "a/22", "b/1", "b/2", "c"]).prop_map(Bytes::from_static_str)
}

fn prefix() -> impl Strategy<Value = Bytes> {
    prop::sample::select(vec!["", "a/", "a/2", "b/", "c", "d"]).prop_map(Bytes::from_static_str)
}

trait FromStaticStr {
    fn from_static_str(text: &'static str) -> Self;
}

impl FromStaticStr for Bytes {
    fn from_static_str(text: &'static str) -> Self {
        Self::from_static(text.as_bytes())
    }
}

fn step() -> impl Strategy<Value = Step> {
    let expects = prop::collection::vec((key(), prop::bool::weighted(0.9)), 0..2);
    let ops = prop::collection::vec((key(), prop::bool::weighted(0.3)), 0..4);
    prop_oneof![
        6 => (expects, ops).prop_map(|(expects, ops)| Step::Commit(expects, ops)),
        3 => (prefix(), prop::option::of(key()), 0..4usize, 0..20u64).prop_map(|(p, k, n, back)| Step::Range(p, k, n,
            back)),
        2 => (prefix(), 0..20u64).prop_map(|(prefix, back)| Step::Watch(prefix, back)),
        3 => any::<usize>().prop_map(Step::Drain),
        1 => (0..20u64).prop_map(Step::Compact),
        1 => prop::option::of(any::<u64>()).prop_map(Step::Restart),
    ]
}

type Keys = BTreeMap<Bytes, (Bytes, Revision)>;

/// `states[n]` is the store at revision n; `events[n - 1]` led to it.
struct Reference {
    states: Vec<Keys>,
    events: Vec<Event>,
    compacted: u64,
}

impl Reference {
    fn revision(&self) -> u64 {
        self.events.len() as u64
    }

    fn now(&self) -> &Keys {
        self.states.last().unwrap()
    }

    fn commit(&mut self, txn: &Txn) -> bool {
        let holds = txn.expect.iter().all(|(key, expect)| match expect {
            Expect::Absent => !self.now().contains_key(key),
            Expect::Unchanged(revision) => self.now().get(key).is_some_and(|(_, found)| found == revision),
        });
        let (states, events) = (self.states.len(), self.events.len());
        for op in &txn.ops {
            let revision = Revision(self.revision() + 1);
            let mut next = self.now().clone();
            let value = op.value().at(revision);
            let deleted = matches!(op, Op::Delete { .. });
            let old =
                if deleted { next.remove(op.key()) } else { next.insert(op.key().clone(), (value.clone(), revision)) };
            if !holds || (deleted && old.is_none()) {
                self.states.truncate(states);
                self.events.truncate(events);
                return false;
            }
            self.states.push(next);
            self.events.push(Event {
                revision,
                key: op.key().clone(),
                value,
                previous: old.map(|(value, _)| value),
                deleted,
            });
        }
        self.compacted = self.compacted.max(self.revision().saturating_sub(WINDOW as u64));
        holds
    }

    fn readable(&self, asked: u64) -> Result<(), ReadError> {
        let [asked, compacted, newest] = [asked, self.compacted, self.revision()].map(Revision);
        match () {
            () if asked < compacted => Err(ReadError::Compacted { asked, compacted }),
            () if asked > newest => Err(ReadError::Future { asked, newest }),
            () => Ok(()),
        }
    }
}

/// A watcher, and the revision after which it has yet to see events.
struct Watching(Watcher, Bytes, u64);

struct World {
    disk: FaultyDisk,
    store: Option<Store>,
    reference: Reference,
    watchers: Vec<Watching>,
}

impl World {
    fn open(disk: &FaultyDisk) -> Option<Store> {
        let options = Options { window_events: WINDOW, ..Options::inline() };
        Some(Store::open(Source::backend(disk.clone()), options).unwrap())
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    /// A revision that is some way back, or one ahead.
    fn back(&self, back: u64) -> u64 {
        (self.reference.revision() + 1).saturating_sub(back)
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Commit(expects, ops) => self.commit(&expects, &ops),
            Step::Range(prefix, after, limit, back) => self.range(&prefix, after, limit, self.back(back)),
            Step::Watch(prefix, back) => {
                let from = self.back(back);
                match self.store().watch(prefix.clone(), Revision(from)) {
                    Ok(watcher) => self.watchers.push(Watching(watcher, prefix, from)),
                    Err(error) => assert_eq!(Err(error), self.reference.readable(from)),
                }
            }
            Step::Drain(which) if !self.watchers.is_empty() => self.drain(which % self.watchers.len()),
            Step::Drain(_) => {}
            Step::Compact(back) => {
                let to = self.back(back).min(self.reference.revision());
                self.store().compact(Revision(to));
                self.reference.compacted = self.reference.compacted.max(to);
            }
            Step::Restart(power_cut) => {
                self.watchers.clear();
                if let Some(seed) = power_cut {
                    self.disk = self.disk.reboot(seed);
                }
                self.store = None;
                self.store = Self::open(&self.disk);
                self.reference.compacted = self.reference.revision();
            }
        }
        assert_eq!(self.store().revision(), Revision(self.reference.revision()));
        assert_eq!(self.store().compacted(), Revision(self.reference.compacted));
    }

    fn commit(&mut self, expects: &[(Bytes, bool)], ops: &[(Bytes, bool)]) {
        let expect = |(key, honest): &(Bytes, bool)| match self.store().get(key) {
            Some(entry) if *honest => (key.clone(), Expect::Unchanged(entry.revision)),
            Some(_) => (key.clone(), Expect::Absent),
            None if *honest => (key.clone(), Expect::Absent),
            None => (key.clone(), Expect::Unchanged(Revision(1))),
        };
        let op = |(index, (key, delete)): (usize, &(Bytes, bool))| {
            let value = Encoded { bytes: vec![b'v'; index].into(), revision_at: (index != 1).then_some(index / 2) };
            if *delete { Op::Delete { key: key.clone(), last: value } } else { Op::Put { key: key.clone(), value } }
        };
        let txn = Txn { expect: expects.iter().map(expect).collect(), ops: ops.iter().enumerate().map(op).collect() };
        match self.store().commit_blocking(txn.clone()) {
            Ok(done) => {
                assert!(self.reference.commit(&txn));
                assert_eq!(done.last.0, self.reference.revision());
            }
            Err(CommitError::Expectation { key, actual }) => {
                assert!(!self.reference.commit(&txn));
                // The answer says what stood in the way; for a delete of what the transaction itself deleted, nothing.
                if let Some(actual) = actual {
                    assert_eq!(self.reference.now().get(&key), Some(&(actual.value, actual.revision)));
                }
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn range(&self, prefix: &Bytes, after: Option<Bytes>, limit: usize, at: u64) {
        match self.store().range(prefix, after.as_deref(), limit, Some(Revision(at))) {
            Err(error) => assert_eq!(Err(error), self.reference.readable(at)),
            Ok(page) => {
                assert_eq!(self.reference.readable(at), Ok(()));
                let wanted = |key: &Bytes| key.starts_with(prefix) && after.as_ref().is_none_or(|after| key > after);
                let all: Vec<_> = self.reference.states[at as usize].iter().filter(|(key, _)| wanted(key)).collect();
                let found: Vec<_> =
                    page.entries.iter().map(|e| (e.key.clone(), (e.value.clone(), e.revision))).collect();
                let expected: Vec<_> =
                    all.iter().take(limit).map(|(key, state)| ((*key).clone(), (*state).clone())).collect();
                assert_eq!(found, expected);
                assert_eq!((page.more, page.revision), (all.len() > found.len(), Revision(at)));
            }
        }
    }

    /// All that a watcher has to say is what the reference has for it, to the end or to where the window begins.
    fn drain(&mut self, which: usize) {
        let Watching(mut watcher, prefix, from) = self.watchers.swap_remove(which);
        let mut expected = self.reference.events[from as usize..].iter().filter(|event| event.key.starts_with(&prefix));
        loop {
            let next = expected.next();
            match watcher.try_next() {
                Ok(Some(event)) => assert_eq!(Some(&event), next),
                Ok(None) => break assert_eq!((None, watcher.progress().0), (next, self.reference.revision())),
                Err(WatchError::Lagged { next: lost, compacted }) => {
                    assert_eq!(compacted.0, self.reference.compacted);
                    assert_eq!(next.map(|event| event.revision), Some(lost));
                    return assert!(lost <= compacted);
                }
                Err(WatchError::Closed) => panic!("closed"),
            }
        }
        self.watchers.push(Watching(watcher, prefix, self.reference.revision()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_is_its_reference_a3_a4_a6_a7(steps in prop::collection::vec(step(), 1..60)) {
        let disk = FaultyDisk::new();
        let reference = Reference { states: vec![Keys::new()], events: vec![], compacted: 0 };
        let mut world = World { store: World::open(&disk), disk, reference, watchers: vec![] };
        for step in steps {
            world.step(step);
        }
        for which in (0..world.watchers.len()).rev() {
            world.drain(which);
        }
    }
}
