//! Reads, writes, lists and watches of a store, and what it refuses.

use super::{delete_op, put, put_op};
use crate::limits::{MAX_EXPECT, MAX_KEY, MAX_OPS, MAX_TXN_BYTES, MAX_VALUE};
use crate::testing::FaultyDisk;
use crate::{
    CommitError, Encoded, Expect, FILE, Invalid, Mode, Op, OpenError, Options, ReadError, Revision, Source, Store, Txn,
    WatchError,
};
use std::os::unix::fs::PermissionsExt;

fn open(folder: &tempfile::TempDir, mode: Mode) -> Store {
    Store::open(folder.path().join("db"), Options { mode, ..Options::default() }).unwrap()
}

#[test]
fn revisions_are_spliced_and_survive_deletes_and_restarts_a3() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder, Mode::Threaded);
    let value = Encoded { bytes: r#"{"v":""}"#.into(), revision_at: Some(6) };
    let ops = vec![put_op("a", "1"), Op::Put { key: "b".into(), value }];
    let done = store.commit_blocking(Txn { expect: vec![("a".into(), Expect::Absent)], ops }).unwrap();
    assert_eq!((done.first, done.last), (Revision(1), Revision(2)));
    assert_eq!(store.get(b"b").unwrap().value, r#"{"v":"2"}"#);
    let refused = store
        .commit_blocking(Txn { expect: vec![("b".into(), Expect::Unchanged(Revision(1)))], ops: vec![delete_op("a")] });
    let CommitError::Expectation { key, actual } = refused.unwrap_err() else { panic!() };
    assert_eq!((&key[..], actual), (&b"b"[..], store.get(b"b")));
    store.commit_blocking(Txn { expect: vec![], ops: vec![delete_op("a"), delete_op("b")] }).unwrap();
    let mut watch = store.watch("", Revision(4)).unwrap();
    drop(store);
    assert_eq!(watch.try_next(), Err(WatchError::Closed));
    let store = open(&folder, Mode::Inline);
    assert_eq!((store.revision(), store.count(b"")), (Revision(4), 0));
    assert_eq!(
        store.watch("", Revision(3)).unwrap_err(),
        ReadError::Compacted { asked: Revision(3), compacted: Revision(4) }
    );
    assert_eq!(
        store.watch("", Revision(5)).unwrap_err(),
        ReadError::Future { asked: Revision(5), newest: Revision(4) }
    );
    assert_eq!(store.commit_blocking(put("a", "again")).unwrap().first, Revision(5));
}

#[test]
fn the_folder_is_private_and_a_second_opener_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder, Mode::Threaded);
    let mode = |path: std::path::PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(folder.path().join("db")), mode(folder.path().join("db").join(FILE))), (0o700, 0o600));
    let second = Store::open(folder.path().join("db"), Options::default()).unwrap_err();
    assert!(matches!(second, OpenError::InUse(_)), "{second}");
    drop(store);
    open(&folder, Mode::Inline);
}

#[test]
fn pages_of_one_list_show_one_revision_until_it_is_compacted_a7() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder, Mode::Inline);
    for key in ["p/a", "p/b", "p/c", "q/a"] {
        store.commit_blocking(put(key, key)).unwrap();
    }
    let first = store.range(b"p/", None, 2, None).unwrap();
    assert_eq!((first.entries.len(), first.more, first.revision), (2, true, Revision(4)));
    store
        .commit_blocking(Txn {
            expect: vec![],
            ops: vec![delete_op("p/c"), put_op("p/bb", "new"), put_op("p/c", "new")],
        })
        .unwrap();
    let second = store.range(b"p/", Some(b"p/b"), 2, Some(first.revision)).unwrap();
    assert_eq!((second.entries.len(), &second.entries[0].value[..], second.more), (1, &b"p/c"[..], false));
    store.compact(Revision(5));
    assert!(matches!(store.range(b"p/", Some(b"p/b"), 2, Some(first.revision)), Err(ReadError::Compacted { .. })));
}

#[test]
fn a_watcher_slower_than_the_window_is_told_so_a4() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { window_events: 3, ..Options::inline() };
    let store = Store::open(folder.path(), options).unwrap();
    let mut slow = store.watch("a", Revision(0)).unwrap();
    let mut other = store.watch("b", Revision(0)).unwrap();
    for _ in 0..4 {
        store.commit_blocking(put("a", "")).unwrap();
    }
    assert_eq!(slow.try_next(), Err(WatchError::Lagged { next: Revision(1), compacted: Revision(1) }));
    // Nothing of its own was missed by the other, however long ago it last had an event.
    assert_eq!((other.try_next(), other.progress()), (Ok(None), Revision(4)));
    store.commit_blocking(put("b", "")).unwrap();
    assert_eq!(other.progress(), Revision(4));
    assert_eq!(other.try_next().unwrap().unwrap().revision, Revision(5));
}

#[test]
fn what_breaks_a_limit_is_refused_and_what_meets_it_is_not_x4() {
    let store = Store::open(Source::backend(FaultyDisk::new()), Options::inline()).unwrap();
    let put = |key: usize, value: usize| Op::Put { key: vec![b'k'; key].into(), value: Encoded::plain(vec![0; value]) };
    let offset = Op::Delete { key: "k".into(), last: Encoded { bytes: "{}".into(), revision_at: Some(3) } };
    let quarter = MAX_TXN_BYTES / 4;
    let table = [
        (vec![put(0, 0)], Some(Invalid::Key(0))),
        (vec![put(MAX_KEY, 0)], None),
        (vec![put(MAX_KEY + 1, 0)], Some(Invalid::Key(MAX_KEY + 1))),
        (vec![put(1, MAX_VALUE)], None),
        (vec![put(1, MAX_VALUE + 1)], Some(Invalid::Value(MAX_VALUE + 1))),
        (vec![put(1, 0); MAX_OPS], None),
        (vec![put(1, 0); MAX_OPS + 1], Some(Invalid::Ops(MAX_OPS + 1, MAX_OPS))),
        (vec![put(1, quarter - 1); 4], None),
        (vec![put(1, quarter); 4], Some(Invalid::Bytes(MAX_TXN_BYTES + 4, MAX_TXN_BYTES))),
        (vec![offset], Some(Invalid::RevisionOffset(3))),
    ];
    for (ops, refusal) in table {
        let answer = store.commit_blocking(Txn { expect: vec![], ops });
        assert_eq!(answer.err(), refusal.map(CommitError::Invalid));
    }
    let expect = vec![("k".into(), Expect::Absent); MAX_EXPECT + 1];
    let answer = store.commit_blocking(Txn { expect, ops: vec![] });
    assert_eq!(answer, Err(CommitError::Invalid(Invalid::Expect(MAX_EXPECT + 1, MAX_EXPECT))));
}

#[test]
fn what_is_left_of_a_list_is_counted_as_of_its_revision_a7() {
    let store = Store::open(Source::backend(FaultyDisk::new()), Options::inline()).unwrap();
    let ops = ["a/1", "a/2", "a/3", "a/4", "b/1"].map(|key| put_op(key, "")).into();
    store.commit_blocking(Txn { expect: vec![], ops }).unwrap();
    store.commit_blocking(Txn { expect: vec![], ops: vec![delete_op("a/4")] }).unwrap();
    let left = |after: &str, at: u64| store.count_after(b"a/", after.as_bytes(), Revision(at));
    assert_eq!([left("a/1", 5), left("a/1", 6), left("a/3", 5), left("a/3", 6)], [Ok(3), Ok(2), Ok(1), Ok(0)]);
    assert!(left("a/1", 7).is_err());
    store.compact(Revision(6));
    assert!(left("a/1", 5).is_err());
}
