//! Rows that are sealed on the disk: plain in memory, unreadable in the file, sound to whoever has no keys.

use super::{delete_op, put_op};
use crate::testing::{Fault, FaultyDisk};
use crate::{CommitError, FILE, OpenError, Opened, Options, SEALED_PREFIX, Seal, Source, Store, Txn, examine};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// Of a key that is kept elsewhere, and cannot be asked for now.
const AWAY: u8 = 9;

/// A key's number; below `s/` values are sealed with it. 0 seals nothing, and opens what any of `known` has sealed.
#[derive(Debug)]
struct Keys {
    current: u8,
    known: Vec<u8>,
}

/// No two seals of a value are alike.
static NONCE: AtomicU8 = AtomicU8::new(1);

fn keys(current: u8, known: &[u8]) -> Option<Arc<dyn Seal>> {
    Some(Arc::new(Keys { current, known: known.to_vec() }))
}

impl Seal for Keys {
    fn ready(&self, key: &[u8]) -> Result<(), String> {
        if key == b"s/locked" { Err("the keeper of the keys is away".to_owned()) } else { Ok(()) }
    }

    fn seal(&self, key: &[u8], value: &[u8]) -> Option<Vec<u8>> {
        let nonce = NONCE.fetch_add(1, Ordering::Relaxed);
        let sealed = value.iter().map(|byte| byte ^ self.current ^ nonce);
        let head = SEALED_PREFIX.iter().copied().chain([self.current, nonce]);
        (self.current != 0 && key.starts_with(b"s/")).then(|| head.chain(sealed).collect())
    }

    fn open(&self, key: &[u8], stored: &Bytes) -> Result<Opened, String> {
        let is_to_be = self.current != 0 && key.starts_with(b"s/");
        let Some([by, nonce, sealed @ ..]) = stored.strip_prefix(SEALED_PREFIX) else {
            return Ok(Opened { value: None, is_stale: is_to_be });
        };
        if *by == AWAY && !self.known.contains(by) {
            return Ok(Opened { value: None, is_stale: false });
        }
        if !self.known.contains(by) {
            return Err(format!("key {by} is missing"));
        }
        let value = sealed.iter().map(|byte| byte ^ by ^ nonce).collect::<Vec<_>>().into();
        Ok(Opened { value: Some(value), is_stale: !is_to_be || *by != self.current })
    }
}

fn open(disk: &FaultyDisk, seal: Option<Arc<dyn Seal>>) -> Result<Store, OpenError> {
    Store::open_sealed(Source::backend(FaultyDisk::with(disk.bytes())), Options::inline(), seal)
}

fn shown(store: &Store) -> BTreeMap<String, String> {
    let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    let entries = store.range(b"", None, usize::MAX, None).unwrap().entries;
    entries.iter().map(|entry| (text(&entry.key), text(&entry.value))).collect()
}

/// The rows as they are on the disk, which is sound.
fn stored(disk: &FaultyDisk) -> Vec<crate::Entry> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(FILE), disk.bytes()).unwrap();
    let found = examine(folder.path()).unwrap();
    assert!(found.damage.is_none(), "{}", found.damage);
    found.entries
}

/// By which key each row is sealed on the disk, as who has no keys sees it; 0: it is plain. The file is sound.
fn on_disk(disk: &FaultyDisk) -> Vec<(String, u8)> {
    let by = |value: &Bytes| value.strip_prefix(SEALED_PREFIX).map_or(0, |sealed| sealed[0]);
    let rows = stored(disk);
    let rows = rows.iter().map(|row| (String::from_utf8(row.key.to_vec()).unwrap(), by(&row.value)));
    rows.collect()
}

fn commit(store: &Store, ops: Vec<crate::Op>) {
    store.commit_blocking(Txn { expect: vec![], ops }).unwrap();
}

fn rows(rows: &[(&str, u8)]) -> Vec<(String, u8)> {
    rows.iter().map(|(key, by)| ((*key).to_owned(), *by)).collect()
}

/// A store with sealed and plain rows, of which some were replaced, removed, and changed twice in one transaction.
fn filled() -> (FaultyDisk, BTreeMap<String, String>) {
    let disk = FaultyDisk::new();
    let store = Store::open_sealed(Source::backend(disk.clone()), Options::inline(), keys(1, &[1])).unwrap();
    commit(&store, vec![put_op("s/a", "apple"), put_op("p/b", "pear"), put_op("s/c", "cherry")]);
    commit(&store, vec![put_op("s/a", "again"), delete_op("s/c"), put_op("s/d", "date")]);
    commit(&store, vec![put_op("s/e", "first"), put_op("s/e", "second"), put_op("p/f", "one"), put_op("p/f", "two")]);
    commit(&store, vec![put_op("s/g", "grape"), delete_op("s/g"), put_op("s/g", "grown")]);
    commit(&store, vec![delete_op("s/d")]);
    let content = shown(&store);
    drop(store);
    (disk, content)
}

#[test]
fn sealed_rows_are_plain_in_memory_and_sound_on_the_disk_a10() {
    let (disk, content) = filled();
    let expected = [("p/b", "pear"), ("p/f", "two"), ("s/a", "again"), ("s/e", "second"), ("s/g", "grown")];
    assert_eq!(content, expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    let sealed = rows(&[("p/b", 0), ("p/f", 0), ("s/a", 1), ("s/e", 1), ("s/g", 1)]);
    assert_eq!(on_disk(&disk), sealed);
    assert_eq!(shown(&open(&disk, keys(1, &[1])).unwrap()), content);
    for (seal, words) in [(None, "no keys were given"), (keys(2, &[2]), "key 1 is missing")] {
        let refused = open(&disk, seal).unwrap_err();
        assert!(matches!(&refused, OpenError::Sealed { key, .. } if key == "s/a"), "{refused}");
        assert!(refused.to_string().contains(words), "{refused}");
    }
    // Opened again, changed again: the sum of what is on the disk is kept up.
    let store = Store::open_sealed(Source::backend(disk.clone()), Options::inline(), keys(1, &[1])).unwrap();
    commit(&store, vec![put_op("s/a", "third"), delete_op("s/e"), put_op("p/b", "plum")]);
    drop(store);
    assert_eq!(on_disk(&disk), rows(&[("p/b", 0), ("p/f", 0), ("s/a", 1), ("s/g", 1)]));
}

/// Nothing of a transaction is stored where a value of it cannot be sealed.
#[test]
fn what_cannot_be_sealed_now_is_refused_and_changes_nothing() {
    let (disk, content) = filled();
    let store = Store::open_sealed(Source::backend(disk.clone()), Options::inline(), keys(1, &[1])).unwrap();
    let refused = store.commit_blocking(Txn { expect: vec![], ops: vec![put_op("p/x", "x"), put_op("s/locked", "x")] });
    let Err(CommitError::Unsealable(why)) = refused else { panic!("{refused:?}") };
    assert_eq!((why.as_str(), shown(&store)), ("the keeper of the keys is away", content));
    commit(&store, vec![put_op("p/x", "x")]);
    // What takes it away needs no key.
    let refused = store.commit_blocking(Txn { expect: vec![], ops: vec![delete_op("s/locked")] });
    assert!(matches!(refused, Err(CommitError::Expectation { .. })), "it is not there: {refused:?}");
}

/// A row whose key cannot be had now stands in memory as it is on the disk, and goes back there as it is.
#[test]
fn what_cannot_be_opened_now_is_never_sealed_twice_a10() {
    let base = FaultyDisk::new();
    let store = Store::open_sealed(Source::backend(base.clone()), Options::inline(), keys(AWAY, &[AWAY])).unwrap();
    commit(&store, vec![put_op("s/a", "apple"), put_op("p/b", "pear")]);
    drop(store);
    let mut failures = 0;
    for call in 0..40 {
        let disk = FaultyDisk::with(base.bytes());
        let store = Store::open_sealed(Source::backend(disk.clone()), Options::inline(), keys(1, &[1])).unwrap();
        disk.fault_at(disk.calls() + call, Fault::Error);
        let ops = vec![put_op("s/a", "other"), put_op("p/b", "plum")];
        let done = store.commit_blocking(Txn { expect: vec![], ops }).is_ok();
        failures += usize::from(!done);
        while store.commit_blocking(Txn { expect: vec![], ops: vec![put_op("p/c", "x")] }).is_err() {}
        drop(store);
        assert_eq!(on_disk(&disk), rows(&[("p/b", 0), ("p/c", 0), ("s/a", if done { 1 } else { AWAY })]), "{call}");
        let store = open(&disk, keys(1, &[1, AWAY])).unwrap();
        assert_eq!(shown(&store)["s/a"], if done { "other" } else { "apple" });
    }
    assert!(failures > 0);
}

#[test]
fn rows_are_sealed_anew_when_the_keys_have_changed() {
    let (disk, content) = filled();
    let by = |key: u8| rows(&[("p/b", 0), ("p/f", 0), ("s/a", key), ("s/e", key), ("s/g", key)]);
    // To another key, to none, and to one again; what was needed before is not needed any more.
    for (current, known) in [(2, &[1, 2][..]), (0, &[2]), (3, &[3])] {
        let store = Store::open_sealed(Source::backend(disk.clone()), Options::inline(), keys(current, known)).unwrap();
        assert_eq!(shown(&store), content, "{current}");
        drop(store);
        assert_eq!(on_disk(&disk), by(current));
        let before = stored(&disk);
        let again = Store::open_sealed(Source::backend(disk.clone()), Options::inline(), keys(current, &[current]));
        assert_eq!(shown(&again.unwrap()), content, "{current}");
        assert_eq!(on_disk(&disk), by(current));
        assert_eq!(stored(&disk), before, "no row is written again");
        assert_eq!(open(&disk, None).is_ok(), current == 0);
    }
}

/// What was sealed anew at the open is replaced and removed like any other row before the store is closed.
#[test]
fn rows_that_were_sealed_anew_are_changed_at_once_a10() {
    for (current, known) in [(2, &[1, 2][..]), (0, &[1])] {
        let (disk, _) = filled();
        let store = Store::open_sealed(Source::backend(disk.clone()), Options::inline(), keys(current, known)).unwrap();
        commit(&store, vec![put_op("s/a", "new"), delete_op("s/e")]);
        drop(store);
        assert_eq!(on_disk(&disk), rows(&[("p/b", 0), ("p/f", 0), ("s/a", current), ("s/g", current)]));
    }
}

/// A group that failed and reached the disk all the same is undone, sealed rows too.
#[test]
fn a_failed_commit_of_sealed_rows_is_undone_a1_a2() {
    let (base, content) = filled();
    let mut failures = 0;
    for call in 0..40 {
        for fault in [Fault::Error, Fault::Torn] {
            let disk = FaultyDisk::with(base.bytes());
            let store = Store::open_sealed(Source::backend(disk.clone()), Options::inline(), keys(1, &[1])).unwrap();
            disk.fault_at(disk.calls() + call, fault);
            let ops = vec![put_op("s/a", "other"), delete_op("s/e"), put_op("s/new", "n"), put_op("p/new", "n")];
            let done = store.commit_blocking(Txn { expect: vec![], ops }).is_ok();
            failures += usize::from(!done);
            let now = shown(&store);
            assert_eq!(now == content, !done, "call {call}: all of it or nothing");
            // Where the fault comes later it is these that meet it.
            for key in ["p/after", "s/after", "s/a"] {
                while store.commit_blocking(Txn { expect: vec![], ops: vec![put_op(key, "x")] }).is_err() {}
            }
            let last = shown(&store);
            drop(store);
            let store = open(&disk, keys(1, &[1])).unwrap();
            assert_eq!(shown(&store), last, "call {call}");
            on_disk(&disk);
        }
    }
    assert!(failures > 0);
}

/// What was to undo it may fail, too, and reach the disk all the same, with rows that are sealed anew: the file stays
/// one that can be opened.
#[test]
fn a_commit_of_sealed_rows_whose_undoing_fails_is_undone_later_a2_a10() {
    let (base, content) = filled();
    let mut twice = 0;
    for (first, then) in (0..20).flat_map(|first| (1..48).map(move |then| (first, first + then))) {
        let disk = FaultyDisk::with(base.bytes());
        let store = Store::open_sealed(Source::backend(disk.clone()), Options::inline(), keys(1, &[1])).unwrap();
        let begun = disk.calls();
        disk.fault_at(begun + first, Fault::Error);
        disk.fault_at(begun + then, Fault::Error);
        let change = |key: &str| {
            let ops = vec![put_op("s/a", "other"), delete_op("s/e"), put_op(key, "n"), put_op("p/new", "n")];
            store.commit_blocking(Txn { expect: vec![], ops }).is_ok()
        };
        if !change("s/new") {
            twice += usize::from(disk.calls() > begun + then);
            assert_eq!(shown(&store), content, "{first}, {then}: nothing of it");
        }
        for key in ["p/after", "s/a"] {
            while store.commit_blocking(Txn { expect: vec![], ops: vec![put_op(key, "x")] }).is_err() {}
        }
        let last = shown(&store);
        drop(store);
        let store = open(&disk, keys(1, &[1])).unwrap_or_else(|error| panic!("{first}, {then}: {error}"));
        assert_eq!(shown(&store), last, "{first}, {then}");
        on_disk(&disk);
    }
    assert!(twice > 0);
}
