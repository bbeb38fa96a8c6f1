//! Watchers that come and go while others stay.

use super::{delete_op, put_op};
use crate::{Event, Index, Op, Options, Source, Store, Txn, WatchError, Watcher};
use bytes::Bytes;
use proptest::prelude::*;
use redb::backends::InMemoryBackend;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};

const INDEX: Index = Index { prefix: b"r/", text_of: first_letter };
/// Of the same and of other lengths, one within another, and one that nothing is under.
const PREFIXES: [&str; 6] = ["", "r/", "s/", "r/1", "r/11", "t/t/t/t"];
const KEYS: [&str; 6] = ["r/1", "r/11", "r/2", "s/1", "s", "u"];
const TEXTS: [&str; 3] = ["a", "b", "c"];

fn first_letter(value: &[u8]) -> Option<Bytes> {
    value.get(..1).map(Bytes::copy_from_slice)
}

#[derive(Clone, Debug)]
enum Step {
    /// Of a prefix, or of rows with a text.
    Watch(usize, Option<usize>),
    Leave(usize),
    /// Writes a row, or takes it away where it is there and there is no value.
    Write(usize, Option<usize>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let watch = (0..PREFIXES.len(), proptest::option::of(0..TEXTS.len()));
    let write = (0..KEYS.len(), proptest::option::weighted(0.8, 0..TEXTS.len()));
    let step = prop_oneof![
        2 => watch.prop_map(|(prefix, text)| Step::Watch(prefix, text)),
        1 => (0..8_usize).prop_map(Step::Leave),
        3 => write.prop_map(|(key, text)| Step::Write(key, text)),
    ];
    proptest::collection::vec(step, 1..80)
}

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Somebody who waits, and what it is for.
struct Waiter {
    watcher: Watcher,
    prefix: &'static str,
    text: Option<&'static str>,
    woken: Arc<Count>,
}

impl Waiter {
    fn new(store: &Store, prefix: usize, text: Option<usize>) -> Self {
        let text = text.map(|index| TEXTS[index]);
        // Rows are found by a text only where the index has all of them.
        let prefix = if text.is_some() { ["r/", "r/1"][prefix % 2] } else { PREFIXES[prefix] };
        let watcher = match text {
            Some(text) => store.watch_found(prefix, Bytes::from(text), store.revision()).unwrap(),
            None => store.watch(prefix, store.revision()).unwrap(),
        };
        let mut waiter = Self { watcher, prefix, text, woken: Arc::default() };
        waiter.wait();
        waiter
    }

    /// Waits, having seen all.
    fn wait(&mut self) {
        let waker = Waker::from(self.woken.clone());
        assert!(self.watcher.poll_next(&mut Context::from_waker(&waker)).is_pending());
    }

    fn is_concerned(&self, event: &Event) -> bool {
        let has = |value: &Bytes| self.text.is_none_or(|text| value.starts_with(text.as_bytes()));
        let is = !event.deleted && has(&event.value);
        event.key.starts_with(self.prefix.as_bytes()) && (is || event.previous.as_ref().is_some_and(has))
    }
}

fn open() -> Store {
    let options = Options { index: Some(INDEX), ..Options::inline() };
    Store::open(Source::backend(InMemoryBackend::new()), options).unwrap()
}

fn commit(store: &Store, op: Op) {
    store.commit_blocking(Txn { expect: vec![], ops: vec![op] }).unwrap();
}

proptest! {
    /// A4: each event wakes those whom it concerns and nobody else, is seen by them once, whoever else comes and goes;
    /// and of those who left, nothing stays.
    #[test]
    fn a4_each_waiter_is_woken_for_its_own_while_others_come_and_go(steps in steps()) {
        let store = open();
        let mut all = store.watch("", store.revision()).unwrap();
        let mut waiters: Vec<Waiter> = Vec::new();
        for step in steps {
            match step {
                Step::Watch(prefix, text) => waiters.push(Waiter::new(&store, prefix, text)),
                Step::Leave(index) if index < waiters.len() => drop(waiters.remove(index)),
                Step::Leave(_) => {}
                Step::Write(key, Some(text)) => commit(&store, put_op(KEYS[key], TEXTS[text])),
                Step::Write(key, None) if store.get(KEYS[key].as_bytes()).is_none() => {}
                Step::Write(key, None) => commit(&store, delete_op(KEYS[key])),
            }
            let Some(event) = all.try_next().unwrap() else { continue };
            for waiter in &mut waiters {
                let woken = waiter.woken.0.swap(0, Ordering::Relaxed);
                if waiter.is_concerned(&event) {
                    prop_assert_eq!(woken, 1, "{:?} of {}", &event, waiter.prefix);
                    prop_assert_eq!(waiter.watcher.progress().0, event.revision.0 - 1);
                    prop_assert_eq!(waiter.watcher.try_next(), Ok(Some(event.clone())));
                } else {
                    prop_assert_eq!(woken, 0, "{:?} of {}", &event, waiter.prefix);
                }
                prop_assert_eq!(waiter.watcher.progress(), store.revision());
                waiter.wait();
            }
        }
        drop((all, waiters));
        prop_assert_eq!(store.watchers(), [0, 0, 0]);
    }
}

#[test]
fn a_store_that_is_closed_wakes_and_tells_all_who_wait() {
    let store = open();
    let mut waiters: Vec<_> = (0..PREFIXES.len()).map(|prefix| Waiter::new(&store, prefix, None)).collect();
    waiters.extend((0..TEXTS.len()).map(|text| Waiter::new(&store, 0, Some(text))));
    drop(store);
    for waiter in &mut waiters {
        assert_eq!(waiter.woken.0.load(Ordering::Relaxed), 1);
        assert_eq!(waiter.watcher.try_next(), Err(WatchError::Closed));
    }
}

/// Only the last context is woken.
#[test]
fn who_is_polled_by_another_wakes_that_one() {
    let store = open();
    let mut waiter = Waiter::new(&store, 0, None);
    let first = std::mem::take(&mut waiter.woken);
    waiter.wait();
    commit(&store, put_op("r/1", "a"));
    assert_eq!((first.0.load(Ordering::Relaxed), waiter.woken.0.load(Ordering::Relaxed)), (0, 1));
}
