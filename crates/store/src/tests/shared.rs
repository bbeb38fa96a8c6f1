//! What every backend promises, asked through the handle alone (A1–A9). Revisions are only compared, never counted:
//! where others write too, some are nobody's.

use super::{delete_op, put, put_op};
use crate::{CommitError, Encoded, Expect, Op, ReadError, Revision, Store, Txn};
use std::sync::Barrier;
use std::thread;

/// All of it, on one store after the other.
pub(super) fn all(open: &dyn Fn() -> Store) {
    let store = open();
    transactions(&store);
    watches(&store);
    pages(&store);
    concurrent_increments(&store);
    let (revision, entries) = (store.revision(), store.range(b"", None, usize::MAX, None).unwrap().entries);
    drop(store);
    let store = open();
    assert!(store.revision() >= revision, "A3");
    assert_eq!(store.range(b"", None, usize::MAX, None).unwrap().entries, entries, "A2");
    let next = store.commit_blocking(put("after", "")).unwrap();
    assert!(next.first > revision, "A3");
}

/// A value with its own revision in it.
fn versioned(key: &str) -> Op {
    Op::Put { key: key.to_owned().into(), value: Encoded { bytes: r#"{"v":""}"#.into(), revision_at: Some(6) } }
}

fn transactions(store: &Store) {
    let before = store.revision();
    let ops = vec![put_op("t/a", "1"), versioned("t/b"), put_op("t/c", "3")];
    let done = store.commit_blocking(Txn { expect: vec![("t/b".into(), Expect::Absent)], ops }).unwrap();
    assert!(done.first > before && done.last.0 == done.first.0 + 2, "each op has its own, one after the other");
    let entry = store.get(b"t/b").unwrap();
    assert_eq!(
        (entry.revision, &entry.value[..]),
        (done.first.next(), format!(r#"{{"v":"{}"}}"#, entry.revision).as_bytes())
    );
    assert!(store.revision() >= done.last, "A5");
    // A8, A9: a transaction that is refused leaves nothing, and says what is there.
    let all = store.range(b"", None, usize::MAX, None).unwrap().entries;
    let refusals = [
        (vec![("t/a".into(), Expect::Absent)], vec![put_op("t/new", "")], "t/a"),
        (vec![("t/b".into(), Expect::Unchanged(done.first))], vec![put_op("t/new", "")], "t/b"),
        (vec![("t/none".into(), Expect::Unchanged(done.first))], vec![put_op("t/new", "")], "t/none"),
        (vec![], vec![put_op("t/new", ""), delete_op("t/none")], "t/none"),
    ];
    for (expect, ops, at) in refusals {
        let refused = store.commit_blocking(Txn { expect, ops }).unwrap_err();
        let CommitError::Expectation { key, actual } = refused else { panic!("{refused}") };
        assert_eq!((&key[..], actual), (at.as_bytes(), store.get(at.as_bytes())));
        assert_eq!(store.range(b"", None, usize::MAX, None).unwrap().entries, all, "A9");
    }
    // A name that is used again is not its predecessor.
    store.commit_blocking(Txn { expect: vec![], ops: vec![delete_op("t/b")] }).unwrap();
    store.commit_blocking(Txn { expect: vec![("t/b".into(), Expect::Absent)], ops: vec![versioned("t/b")] }).unwrap();
    let expect = vec![("t/b".into(), Expect::Unchanged(entry.revision))];
    assert!(store.commit_blocking(Txn { expect, ops: vec![delete_op("t/b")] }).is_err(), "A8");
    let checked = vec![("t/b".into(), Expect::Unchanged(store.get(b"t/b").unwrap().revision))];
    assert!(store.commit_blocking(Txn { expect: checked, ops: vec![] }).is_ok());
}

fn watches(store: &Store) {
    let listed = store.range(b"w/", None, usize::MAX, None).unwrap();
    let mut watch = store.watch("w/", listed.revision).unwrap();
    store.commit_blocking(put("elsewhere", "")).unwrap();
    let mut expected = Vec::new();
    for round in 0..5 {
        let ops = vec![put_op("w/a", &round.to_string()), versioned("w/b")];
        let done = store.commit_blocking(Txn { expect: vec![], ops }).unwrap();
        expected.extend([("w/a", done.first, false), ("w/b", done.last, false)]);
        let ops = vec![put_op("elsewhere", ""), delete_op("w/b")];
        expected.push(("w/b", store.commit_blocking(Txn { expect: vec![], ops }).unwrap().last, true));
    }
    let mut seen = Vec::new();
    for (key, revision, deleted) in &expected {
        let event = crate::store::block_on(watch.next()).unwrap();
        assert_eq!((&event.key[..], event.revision, event.deleted), (key.as_bytes(), *revision, *deleted), "A4, A6");
        assert_eq!(event.previous.is_none(), event.key == "w/b" && !event.deleted || seen.is_empty());
        seen.push(event);
    }
    assert_eq!(watch.try_next(), Ok(None));
    // From any event on, the rest comes again.
    let mut resumed = store.watch("w/", seen[6].revision).unwrap();
    for event in &seen[7..] {
        assert_eq!(resumed.try_next().unwrap().as_ref(), Some(event), "A4");
    }
    store.compact(seen[3].revision);
    assert!(matches!(store.watch("w/", seen[2].revision), Err(ReadError::Compacted { .. })), "A7");
    assert!(store.watch("w/", seen[3].revision).is_ok());
    assert!(matches!(store.watch("", Revision(store.revision().0 + 1)), Err(ReadError::Future { .. })));
}

fn pages(store: &Store) {
    for key in ["p/a", "p/b", "p/c", "q/a"] {
        store.commit_blocking(put(key, key)).unwrap();
    }
    let first = store.range(b"p/", None, 2, None).unwrap();
    assert_eq!((first.entries.len(), first.more), (2, true));
    assert_eq!(store.count_after(b"p/", b"p/b", first.revision), Ok(1));
    store.commit_blocking(Txn { expect: vec![], ops: vec![put_op("p/bb", ""), delete_op("p/c")] }).unwrap();
    let second = store.range(b"p/", Some(b"p/b"), 2, Some(first.revision)).unwrap();
    assert_eq!((second.entries.len(), &second.entries[0].value[..]), (1, &b"p/c"[..]), "one list, one revision");
}

fn concurrent_increments(store: &Store) {
    const THREADS: usize = 4;
    const EACH: usize = 15;
    store.commit_blocking(put("n", "0")).unwrap();
    let start = Barrier::new(THREADS);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                start.wait();
                for _ in 0..EACH {
                    increment(store);
                }
            });
        }
    });
    assert_eq!(store.get(b"n").unwrap().value, (THREADS * EACH).to_string(), "A1");
}

/// Adds one to the number in key `n`, however many do so at once.
pub(super) fn increment(store: &Store) {
    loop {
        let now = store.get(b"n").unwrap();
        let next = std::str::from_utf8(&now.value).unwrap().parse::<u64>().unwrap() + 1;
        let expect = vec![("n".into(), Expect::Unchanged(now.revision))];
        match store.commit_blocking(Txn { expect, ops: vec![put_op("n", &next.to_string())] }) {
            Ok(done) => return assert!(store.revision() >= done.last, "a writer reads its own write (A5)"),
            Err(CommitError::Expectation { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn the_embedded_store_keeps_the_promises_of_every_backend_a1_to_a9() {
    let folder = tempfile::tempdir().unwrap();
    all(&|| Store::open(folder.path(), crate::Options::default()).unwrap());
}
