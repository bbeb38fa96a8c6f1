//! What the watch brings, taken into memory: without an etcd.

use super::*;
use crate::store::Options;
use crate::{Encoded, ReadError};

const PREFIX: &[u8] = b"/p";

pub(in crate::etcd) fn follower() -> (Follower, watch::Sender<i64>) {
    let limits = Options::default().window();
    let follower = Follower {
        client: Client::new(Vec::new(), None),
        prefix: Bytes::from_static(PREFIX),
        shared: Arc::new(Shared::new(State::new(Keys::new_sync(), row::whole(10), limits, None))),
        receipts: Receipts::new(PREFIX, 7, 1),
        limits,
        index: None,
        end: Arc::default(),
    };
    (follower, watch::channel(10).0)
}

pub(in crate::etcd) fn raw(key: &str, at: i64, value: Bytes) -> KeyValue {
    KeyValue { key: joined(PREFIX, key.as_bytes()), mod_revision: at, value, ..KeyValue::default() }
}

pub(in crate::etcd) fn row_of(key: &str, value: &str, index: u16) -> Bytes {
    let revision_at = value.contains("\"\"").then(|| value.len() - 2);
    row::encode(key.as_bytes(), &Encoded { bytes: Bytes::copy_from_slice(value.as_bytes()), revision_at }, index)
}

pub(in crate::etcd) fn put(key: &str, value: &str, at: i64, index: u16) -> wire::Event {
    wire::Event { deleted: false, kv: raw(key, at, row_of(key, value, index)), previous: None }
}

fn delete(key: &str, at: i64, last: Option<&str>) -> wire::Event {
    let previous = last.map(|last| raw(key, at - 1, row_of(key, last, 0)));
    wire::Event { deleted: true, kv: raw(key, at, Bytes::new()), previous }
}

/// All that memory shows: keys with their values and revisions.
fn shown(follower: &Follower) -> Vec<String> {
    let state = follower.shared.read();
    let entries = state.keys.iter().map(|(key, stored)| stored.entry(key));
    entries.map(|entry| format!("{}={}@{}", text(&entry.key), text(&entry.value), entry.revision)).collect()
}

pub(in crate::etcd) fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn events(follower: &Follower) -> Vec<crate::Event> {
    follower.shared.read().changes_after(row::whole(10)).map(|change| change.event.clone()).collect()
}

#[test]
fn what_comes_is_shown_transaction_by_transaction_a4() {
    let (follower, applied) = follower();
    let first = vec![put("/a", "1", 11, 0), put("/b", r#"{"v":""}"#, 11, 1), put("/c", "3", 12, 0)];
    assert_eq!(follower.apply(first, &applied), Ok(()));
    assert_eq!(*applied.borrow(), 12);
    let b = row::revision(11, 1);
    assert_eq!(
        shown(&follower),
        ["/a=1@11264".to_owned(), format!("/b={{\"v\":\"{b}\"}}@{b}"), "/c=3@12288".to_owned()]
    );
    assert_eq!(follower.shared.read().revision, row::whole(12), "all of a transaction was seen");
    // After a broken connection some come again: they are passed over, and those after them are not.
    let again = vec![
        put("/a", "1", 11, 0),
        put("/c", "3", 12, 0),
        put("/a", "2", 13, 0),
        delete("/b", 13, Some(r#"{"v":""}"#)),
    ];
    assert_eq!(follower.apply(again, &applied), Ok(()));
    assert_eq!(shown(&follower), ["/a=2@13312", "/c=3@12288"]);
    let all = events(&follower);
    let told: Vec<_> = all.iter().map(|event| (event.revision, text(&event.key), event.deleted)).collect();
    let expected =
        [(11, 0, "/a", false), (11, 1, "/b", false), (12, 0, "/c", false), (13, 0, "/a", false), (13, 1, "/b", true)];
    assert_eq!(told, expected.map(|(at, index, key, deleted)| (row::revision(at, index), key.to_owned(), deleted)));
    let [.., changed, gone] = &all[..] else { panic!() };
    assert_eq!(changed.previous.as_deref(), Some(&b"1"[..]));
    // Of a deletion the last state is told, with the revision of the deletion in it.
    assert_eq!(text(&gone.value), format!("{{\"v\":\"{}\"}}", gone.revision));
    assert_eq!(gone.previous.as_ref().map(text), Some(format!("{{\"v\":\"{b}\"}}")));
}

#[test]
fn receipts_and_what_was_not_there_are_nobodys_events() {
    let (follower, applied) = follower();
    let receipt = wire::Event { deleted: false, kv: raw("/!receipt/7/00", 11, "t1".into()), previous: None };
    assert_eq!(follower.apply(vec![put("/a", "1", 11, 0), receipt], &applied), Ok(()));
    assert_eq!(shown(&follower), ["/a=1@11264"]);
    assert_eq!(follower.apply(vec![delete("/!receipt/7/00", 12, None), delete("/none", 13, None)], &applied), Ok(()));
    assert_eq!((events(&follower).len(), *applied.borrow()), (1, 13));
    assert_eq!(follower.shared.read().revision, row::whole(13));
    // A deletion whose last state did not come is told with what memory had.
    assert_eq!(follower.apply(vec![delete("/a", 14, None)], &applied), Ok(()));
    assert_eq!(events(&follower).last().map(|event| text(&event.value)), Some("1".to_owned()));
}

/// A transaction whose events come in several answers is shown as a whole (A4).
#[test]
fn a_transaction_in_pieces_is_shown_when_it_is_whole_a4() {
    let (follower, applied) = follower();
    let mut gathered = Gathered::default();
    let mut piece = |events: Vec<wire::Event>, fragment: bool| {
        let mut answer = WatchAnswer { events, fragment, ..WatchAnswer::default() };
        follower.apply(gathered.take(&mut answer), &applied).unwrap();
        (shown(&follower).len(), *applied.borrow())
    };
    assert_eq!(piece(vec![put("/a", "1", 11, 0), put("/b", "2", 12, 0)], true), (1, 11));
    assert_eq!(piece(vec![put("/c", "3", 12, 1)], true), (1, 11), "more of it may come");
    assert_eq!(piece(vec![put("/d", "4", 12, 2), put("/e", "5", 13, 0)], true), (4, 12));
    assert_eq!(piece(vec![put("/f", "6", 13, 1)], false), (6, 13));
    assert_eq!(piece(vec![put("/g", "7", 14, 0)], false), (7, 14));
}

#[test]
fn a_page_is_as_large_as_the_rows_before_let_expect_m3() {
    assert_eq!(next_page(FIRST_PAGE, 32, 32 * 100), 64, "twice as many at most");
    assert_eq!(next_page(MAX_PAGE, 8192, 8192 * 100), MAX_PAGE);
    assert_eq!(next_page(4096, 2100, 2100 * 1000), 4194, "4 MiB");
    assert_eq!(next_page(4096, 60, 60 << 20), 4, "and less after large ones");
    assert_eq!(next_page(4, 1, 5 << 20), 1);
    assert_eq!(next_page(1, 0, 0), 2);
}

/// A10: a row that is not what was written is never shown.
#[test]
fn a10_a_damaged_row_is_named_and_not_shown() {
    let (follower, applied) = follower();
    let mut damaged = put("/b", "2", 12, 0);
    damaged.kv.value = [&damaged.kv.value[..], b"x"].concat().into();
    let answer = follower.apply(vec![put("/a", "1", 11, 0), damaged, put("/c", "3", 13, 0)], &applied);
    assert_eq!(answer, Err(Bytes::from_static(b"/b")));
    assert_eq!((shown(&follower), *applied.borrow()), (vec!["/a=1@11264".to_owned()], 11));
    // One that belongs to another key is none either.
    let moved = wire::Event { kv: raw("/d", 12, row_of("/b", "2", 0)), ..wire::Event::default() };
    assert_eq!(follower.apply(vec![moved], &applied), Err(Bytes::from_static(b"/d")));
}

#[test]
fn a_prefix_ends_where_the_next_one_begins() {
    for (prefix, end) in [
        (&b"/p/"[..], &b"/p0"[..]),
        (b"a", b"b"),
        (b"a\xff", b"b"),
        (b"a\xff\xff", b"b"),
        (b"a\xfe", b"a\xff"),
        (b"\xff", b"\0"),
        (b"", b"\0"),
    ] {
        assert_eq!(end_of(prefix), end, "{prefix:?}");
    }
    assert_eq!(joined(b"/p", b"/a"), "/p/a");
}

/// A store that follows nothing any more takes no part in anything, and says why.
#[test]
fn a3_a_store_that_must_not_go_on_is_closed_for_good() {
    let (follower, _) = follower();
    assert!(!follower.is_silent() && !follower.shared.is_closed());
    follower.close("etcd went back");
    assert!(follower.is_silent() && follower.shared.is_closed());
    assert_eq!(follower.shared.silence.words().as_deref(), Some("etcd went back"));
    let state = follower.shared.read();
    assert_eq!(state.check(row::whole(10)), Ok(()), "what is known can be read");
    let future = row::whole(11);
    assert_eq!(state.check(future), Err(ReadError::Future { asked: future, newest: row::whole(10) }));
}

/// Each handle has a number of its own, or two would take one another's receipts.
#[test]
fn a9_no_two_handles_have_one_number() {
    let numbers: std::collections::BTreeSet<u64> = (0..50).map(|_| number()).collect();
    assert_eq!(numbers.len(), 50);
}
