//! How far back the past is kept.

use crate::{Encoded, Op, Options, ReadError, Source, Store, Txn, WatchError};
use bytes::Bytes;
use std::time::Duration;

fn put(index: usize) -> Txn {
    let key = Bytes::from(format!("/busy/{}", index % 10));
    Txn { ops: vec![Op::Put { key, value: Encoded::plain(vec![b'x'; 512]) }], ..Txn::default() }
}

fn store(window_most_bytes: usize, window_time: Duration) -> Store {
    let options =
        Options { window_events: 10, window_bytes: 1 << 10, window_most_bytes, window_time, ..Options::default() };
    let store = Store::open(Source::backend(redb::backends::InMemoryBackend::new()), options).expect("open");
    for index in 0..50 {
        let op = Op::Put { key: Bytes::from(format!("/list/{index:02}")), value: Encoded::plain("x") };
        store.commit_blocking(Txn { ops: vec![op], ..Txn::default() }).expect("stored");
    }
    store
}

#[test]
fn a7_a_list_in_parts_and_a_watcher_that_stood_still_are_not_cut_off_by_the_writes_of_others() {
    let store = store(64 << 20, Duration::from_secs(600));
    let first = store.range(b"/list/", None, 20, None).expect("listed");
    let mut watcher = store.watch("/busy/", first.revision).expect("watched");
    for index in 0..2000 {
        store.commit_blocking(put(index)).expect("stored");
    }
    let rest = store.range(b"/list/", Some(b"/list/19"), 50, Some(first.revision)).expect("still there");
    assert_eq!((rest.entries.len(), rest.more), (30, false));
    let mut seen = 0;
    while watcher.try_next().expect("in the window").is_some() {
        seen += 1;
    }
    assert_eq!(seen, 2000);
}

#[test]
fn a7_neither_age_nor_bytes_go_beyond_their_limits() {
    for (bytes, time) in [(100 << 10, Duration::from_secs(600)), (64 << 20, Duration::ZERO)] {
        let store = store(bytes, time);
        let first = store.range(b"/list/", None, 20, None).expect("listed");
        let mut watcher = store.watch("/busy/", first.revision).expect("watched");
        for index in 0..2000 {
            store.commit_blocking(put(index)).expect("stored");
        }
        let rest = store.range(b"/list/", Some(b"/list/19"), 50, Some(first.revision));
        assert!(matches!(rest, Err(ReadError::Compacted { .. })), "{bytes} {time:?}");
        assert!(matches!(watcher.try_next(), Err(WatchError::Lagged { .. })), "{bytes} {time:?}");
    }
}
