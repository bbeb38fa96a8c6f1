//! The messages byte for byte, as etcd's `rpc.proto` and `kv.proto` number them.

use super::*;

fn field(number: u8, value: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, u8::try_from(value.len()).unwrap()], value].concat()
}

fn count(number: u8, value: u8) -> Vec<u8> {
    vec![number << 3, value]
}

/// A key's state: key, create and mod revision, version, value, lease.
fn state(key: &str, created: u8, modified: u8, value: &str) -> Vec<u8> {
    let text = |number: u8, text: &str| field(number, text.as_bytes());
    [text(1, key), count(2, created), count(3, modified), count(4, 9), text(5, value), count(6, 8)].concat()
}

fn kv(key: &'static str, created: i64, modified: i64, value: &'static str) -> KeyValue {
    KeyValue { key: key.into(), create_revision: created, mod_revision: modified, value: value.into() }
}

/// A header: cluster, member, revision, term.
fn header_of(revision: u8) -> Vec<u8> {
    field(1, &[count(1, 90), count(2, 91), count(3, revision), count(4, 92)].concat())
}

#[test]
fn what_is_asked_is_etcds_bytes() {
    let key = Bytes::from_static(b"k");
    let range = Range { key: key.clone(), end: "l".into(), limit: 5, revision: 300 };
    assert_eq!(range.encode(), [&field(1, b"k")[..], &field(2, b"l"), &count(3, 5), &[0x20, 0xac, 0x02]].concat());
    assert_eq!(Range { key: key.clone(), ..Range::default() }.encode(), field(1, b"k"), "what is 0 is left out");
    let compare = |inner: &[Vec<u8>]| field(1, &inner.concat());
    let txn = Txn {
        compare: vec![
            Compare::Absent(key.clone()),
            Compare::Present(key.clone()),
            Compare::ModRevision(key.clone(), 7),
        ],
        writes: vec![Write::Put(key.clone(), "v".into()), Write::Delete(key.clone())],
        else_get: vec![key.clone()],
    };
    let expected = [
        // Created at 0; not created at 0; changed at 7.
        compare(&[count(2, 1), field(3, b"k"), count(5, 0)]),
        compare(&[count(1, 3), count(2, 1), field(3, b"k"), count(5, 0)]),
        compare(&[count(2, 2), field(3, b"k"), count(6, 7)]),
        field(2, &field(2, &[field(1, b"k"), field(2, b"v")].concat())),
        field(2, &field(3, &field(1, b"k"))),
        field(3, &field(1, &field(1, b"k"))),
    ];
    assert_eq!(txn.encode(), expected.concat());
    assert_eq!(txn.compare.iter().map(Compare::key).collect::<Vec<_>>(), [&key; 3]);
    // From a revision on, with progress and what was before, in pieces.
    let inner = [field(1, b"k"), field(2, b"l"), count(3, 9), count(4, 1), count(6, 1), count(8, 1)].concat();
    assert_eq!(watch(b"k", b"l", 9), field(1, &inner));
    assert_eq!(compaction(9), count(1, 9));
}

#[test]
fn what_etcd_answers_is_read_and_what_is_not_known_is_passed_over() {
    let unknown = [&[15 << 3 | 1][..], &[0; 8], &[14 << 3 | 5], &[0; 4], &field(13, b"?"), &count(12, 1)].concat();
    let page = [
        header_of(7),
        unknown.clone(),
        field(2, &state("a", 3, 5, "x")),
        field(2, &state("b", 4, 6, "")),
        count(3, 1),
        count(4, 2),
    ];
    let answer = RangeAnswer::decode(page.concat().into()).unwrap();
    assert_eq!((answer.revision, answer.more), (7, true));
    assert_eq!(answer.kvs, [kv("a", 3, 5, "x"), kv("b", 4, 6, "")]);
    let last = RangeAnswer::decode([header_of(7), count(3, 0)].concat().into()).unwrap();
    assert_eq!((last.more, last.kvs), (false, vec![]));
    // A transaction: whether it was done, and what was read in its place.
    let found = |kvs: &[u8]| field(3, &field(1, &[&header_of(1)[..], kvs].concat()));
    let put = field(3, &field(2, &header_of(1)));
    let refused = [header_of(8), count(2, 0), found(&field(2, &state("a", 3, 5, "x"))), found(&[]), put.clone()];
    let answer = TxnAnswer::decode(refused.concat().into()).unwrap();
    assert_eq!((answer.revision, answer.succeeded), (8, false));
    assert_eq!(
        answer.found,
        [Some(kv("a", 3, 5, "x")), None],
        "an answer for each that was asked for, and for no write"
    );
    assert!(TxnAnswer::decode([header_of(8), count(2, 1), put].concat().into()).unwrap().succeeded);
    // A watch: events, with what was before; or how it ended.
    let event = |deleted: u8, parts: &[u8]| field(11, &[&count(1, deleted)[..], parts].concat());
    let changed = event(0, &[field(2, &state("a", 3, 5, "x")), field(3, &state("a", 3, 4, "w"))].concat());
    let gone = event(1, &field(2, &state("b", 0, 6, "")));
    let watched = [header_of(9), count(2, 1), unknown, changed, gone].concat();
    let answer = WatchAnswer::decode(watched.into()).unwrap();
    assert_eq!((answer.revision, answer.canceled, answer.compact_revision), (9, false, 0));
    let told: Vec<_> =
        answer.events.iter().map(|event| (event.deleted, event.kv.clone(), event.previous.clone())).collect();
    assert_eq!(told, [(false, kv("a", 3, 5, "x"), Some(kv("a", 3, 4, "w"))), (true, kv("b", 0, 6, ""), None)]);
    let ended = [header_of(9), count(4, 1), count(5, 3), field(6, b"compacted")].concat();
    let answer = WatchAnswer::decode(ended.into()).unwrap();
    assert_eq!((answer.canceled, answer.compact_revision, answer.reason.as_str()), (true, 3, "compacted"));
}

/// Whatever ends early or says more than there is, is no message.
#[test]
fn a_cut_or_endless_message_is_none_x4() {
    let whole = [header_of(7), field(2, &state("a", 3, 5, "x")), count(3, 1)].concat();
    let first = header_of(7).len();
    let second = first + field(2, &state("a", 3, 5, "x")).len();
    for length in 0..whole.len() {
        let answer = RangeAnswer::decode(whole[..length].to_vec().into());
        assert_eq!(answer.is_ok(), [0, first, second].contains(&length), "{length}");
    }
    for wrong in [
        vec![1 << 3 | 2, 0xff, 0xff, 0xff, 0xff, 0x0f],
        vec![2 << 3 | 2, 2, 0],
        vec![3 << 3 | 3],
        vec![3 << 3 | 4],
        vec![3 << 3 | 6],
        [&[3 << 3][..], &[0xff; 10]].concat(),
        vec![3 << 3 | 1, 0, 0, 0, 0, 0, 0, 0],
        vec![3 << 3 | 5, 0, 0, 0],
    ] {
        assert_eq!(RangeAnswer::decode(wrong.clone().into()).err(), Some(Malformed), "{wrong:?}");
    }
    for value in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX >> 1, u64::MAX] {
        let mut out = BytesMut::new();
        varint(&mut out, value);
        let mut rest = out.freeze();
        assert_eq!((take_varint(&mut rest), rest.len()), (Ok(value), 0));
    }
}
