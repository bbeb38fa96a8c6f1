//! Rows that are found by what is in them.

use super::{delete_op, put_op};
use crate::{Index, Options, Source, Store, Txn};
use bytes::Bytes;
use proptest::prelude::*;
use redb::backends::InMemoryBackend;

/// Rows below `r/` are found by what stands before their colon; without one it is not known.
const INDEX: Index = Index { prefix: b"r/", text_of: first_word };

fn first_word(value: &[u8]) -> Option<Bytes> {
    let end = value.iter().position(|byte| *byte == b':')?;
    Some(Bytes::copy_from_slice(&value[..end]))
}

fn open() -> Store {
    let options = Options { index: Some(INDEX), ..Options::inline() };
    Store::open(Source::backend(InMemoryBackend::new()), options).unwrap()
}

fn commit(store: &Store, op: crate::Op) {
    store.commit_blocking(Txn { expect: vec![], ops: vec![op] }).unwrap();
}

/// A row, its text (`None`: not readable) and whether it is written or taken away.
fn steps() -> impl Strategy<Value = Vec<(u8, Option<u8>, bool)>> {
    proptest::collection::vec((0..6_u8, proptest::option::weighted(0.9, 0..3_u8), any::<bool>()), 1..60)
}

proptest! {
    /// A4, D13: who asks for one text sees what somebody sees who watches everything and sorts it out, also when it
    /// begins later, and finds the rows that somebody finds who looks at all.
    #[test]
    fn a4_those_who_ask_for_a_text_miss_nothing_and_see_nothing_else(steps in steps()) {
        let store = open();
        let begin = store.revision();
        let mut all = store.watch("", begin).unwrap();
        let texts: Vec<Bytes> = ["0", "1", "2"].map(Bytes::from).to_vec();
        let watch = |text: &Bytes| store.watch_found("r/", text.clone(), begin).unwrap();
        let mut early: Vec<_> = texts.iter().map(watch).collect();
        for (row, text, puts) in steps {
            let key = format!("r/{row}");
            let value = text.map_or_else(|| "unknown".to_owned(), |text| format!("{text}:{row}"));
            match puts {
                true => commit(&store, put_op(&key, &value)),
                false if store.get(key.as_bytes()).is_some() => commit(&store, delete_op(&key)),
                false => commit(&store, put_op("elsewhere", &value)),
            }
        }
        let rows = store.range(b"r/", None, usize::MAX, None).unwrap().entries;
        let mut events = Vec::new();
        while let Some(event) = all.try_next().unwrap() {
            events.push(event);
        }
        for (text, early) in texts.iter().zip(&mut early) {
            let concerns = |value: &Bytes| first_word(value).is_none_or(|found| found == text);
            let wanted: Vec<_> = rows.iter().filter(|row| concerns(&row.value)).cloned().collect();
            prop_assert_eq!(&store.found(b"r/", text, usize::MAX).unwrap().entries, &wanted);
            prop_assert_eq!(store.found(b"r/", text, wanted.len()).is_some(), true);
            prop_assert_eq!(wanted.is_empty() || store.found(b"r/", text, wanted.len() - 1).is_none(), true);
            let is_wanted = |event: &&crate::Event| {
                event.key.starts_with(b"r/")
                    && (event.previous.iter().any(concerns) || !event.deleted && concerns(&event.value))
            };
            let wanted: Vec<_> = events.iter().filter(is_wanted).cloned().collect();
            for watch in [&mut *early, &mut watch(text)] {
                let events = std::iter::from_fn(|| watch.try_next().unwrap());
                prop_assert_eq!(&events.collect::<Vec<_>>(), &wanted);
            }
        }
    }
}

#[test]
fn d13_a_change_wakes_only_those_who_ask_for_its_text() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Wake, Waker};
    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let store = open();
    let watchers = |index: usize| store.watch_found("r/", Bytes::from(index.to_string()), store.revision()).unwrap();
    let mut watchers: Vec<_> = (0..500).map(watchers).collect();
    let count = Arc::new(Count(AtomicUsize::new(0)));
    let waker = Waker::from(count.clone());
    for watcher in &mut watchers {
        assert!(watcher.poll_next(&mut Context::from_waker(&waker)).is_pending());
    }
    commit(&store, put_op("r/row", "7:a"));
    assert_eq!(count.0.load(Ordering::Relaxed), 1);
    assert!(watchers[7].try_next().unwrap().is_some());
    commit(&store, put_op("r/row", "8:a"));
    // The one that it left (which is not asleep), and the one that it came to.
    assert_eq!(count.0.load(Ordering::Relaxed), 2);
    assert!(watchers[7].try_next().unwrap().is_some() && watchers[8].try_next().unwrap().is_some());
    assert!(watchers.iter_mut().all(|watcher| watcher.try_next() == Ok(None)));
}

/// What was there before the store was opened is found, too.
#[test]
fn the_index_of_a_store_that_is_opened_again_has_its_rows() {
    let folder = tempfile::tempdir().unwrap();
    let open = || {
        let options = Options { index: Some(INDEX), ..Options::inline() };
        Store::open(folder.path().to_owned(), options).unwrap()
    };
    let store = open();
    for (key, value) in [("r/1", "0:a"), ("r/2", "1:b"), ("r/3", "unknown"), ("s/1", "0:c")] {
        commit(&store, put_op(key, value));
    }
    drop(store);
    let found = open().found(b"r/", &Bytes::from("0"), usize::MAX).unwrap();
    assert_eq!(found.entries.iter().map(|row| &row.key[..]).collect::<Vec<_>>(), [b"r/1", b"r/3"]);
}

/// Of rows that the index knows nothing of, it finds nothing, and a watch sees all; below a part of its prefix it finds
/// what is there.
#[test]
fn an_index_is_asked_for_its_own_rows_only() {
    let store = open();
    for key in ["r/a/1", "r/b/1", "elsewhere"] {
        commit(&store, put_op(key, "0:"));
    }
    let text = Bytes::from("0");
    let found = store.found(b"r/b/", &text, usize::MAX).unwrap();
    assert_eq!(found.entries.iter().map(|row| &row.key[..]).collect::<Vec<_>>(), [b"r/b/1"]);
    assert_eq!((found.more, found.revision), (false, store.revision()));
    for prefix in [&b"r"[..], b"", b"elsewhere"] {
        assert!(store.found(prefix, &text, usize::MAX).is_none(), "{prefix:?}");
    }
    let mut watch = store.watch_found("elsewhere", "another".into(), crate::Revision(0)).unwrap();
    assert_eq!(watch.try_next().unwrap().unwrap().revision, crate::Revision(3));
    // What is not kept cannot be watched, by a text neither.
    store.compact(crate::Revision(2));
    let watch = |after: u64| store.watch_found("r/", text.clone(), crate::Revision(after)).map(drop);
    let gone = crate::ReadError::Compacted { asked: crate::Revision(1), compacted: crate::Revision(2) };
    let early = crate::ReadError::Future { asked: crate::Revision(4), newest: crate::Revision(3) };
    assert_eq!([watch(1), watch(2), watch(4)], [Err(gone), Ok(()), Err(early)]);
}
