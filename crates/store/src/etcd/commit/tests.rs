//! What a transaction is for etcd, and what its answers mean: without an etcd.

use super::*;
use crate::etcd::feed::tests::{follower, put, raw, row_of, text};
use crate::tests::{delete_op, put_op};
use crate::writer::validate;
use crate::{Encoded, Op, Revision};

const PREFIX: &[u8] = b"/p/";

fn key(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// A transaction in etcd's words: what it compares, what it writes.
fn show(expect: Vec<(Bytes, Expect)>, ops: Vec<Op>) -> (Vec<String>, Vec<String>) {
    let whole = translated(PREFIX, &Txn { expect, ops });
    let plain = |key: &Bytes| String::from_utf8_lossy(key.strip_prefix(PREFIX).unwrap()).into_owned();
    let compares = whole.compare.iter().map(|compare| match compare {
        Compare::Absent(key) => format!("no {}", plain(key)),
        Compare::Present(key) => format!("any {}", plain(key)),
        Compare::ModRevision(key, revision) => format!("{}@{revision}", plain(key)),
    });
    let writes = whole.writes.iter().map(|write| match write {
        Write::Put(at, raw) => {
            let (value, index) = row::decode(plain(at).as_bytes(), raw).expect("a row that reads back");
            format!("{}={}#{index}", plain(at), String::from_utf8_lossy(&value.bytes))
        }
        Write::Delete(key) => format!("-{}", plain(key)),
    });
    let asked: Vec<&Bytes> = whole.compare.iter().map(Compare::key).collect();
    assert_eq!(whole.else_get.iter().collect::<Vec<_>>(), asked, "whoever is refused sees what is there");
    (compares.collect(), writes.collect())
}

fn unchanged(etcd: i64) -> Expect {
    Expect::Unchanged(row::revision(etcd, 3))
}

#[test]
fn a_transaction_is_one_of_etcds_a9() {
    let expect = vec![(key("a"), Expect::Absent), (key("b"), unchanged(7)), (key("g"), unchanged(9))];
    let (compares, writes) = show(expect, vec![put_op("a", "1"), delete_op("b"), delete_op("d"), put_op("c", "3")]);
    assert_eq!(compares, ["no a", "b@7", "g@9", "any d"], "what is deleted is there");
    assert_eq!(writes, ["a=1#0", "-b", "-d", "c=3#3"]);
    // Only to be compared; nothing at all.
    assert_eq!(show(vec![(key("a"), Expect::Absent)], vec![]), (vec!["no a".to_owned()], vec![]));
    assert_eq!(show(vec![], vec![]), (vec![], vec![]));
}

/// A8, A9: what etcd does not take at once is refused, and never cut.
#[test]
fn what_etcd_does_not_take_at_once_is_refused_a8_a9() {
    let judge = |expect: Vec<(Bytes, Expect)>, ops: Vec<Op>| validate(&Txn { expect, ops }, &TxnLimits::ETCD);
    let puts = |count: usize| (0..count).map(|index| put_op(&format!("k{index}"), "")).collect::<Vec<_>>();
    let absent = |count: usize| (0..count).map(|index| (key(&format!("x{index}")), Expect::Absent)).collect::<Vec<_>>();
    let sized = |size: usize| vec![Op::Put { key: key("a"), value: Encoded::plain(vec![0; size]) }];
    assert_eq!((judge(absent(127), puts(127)), judge(vec![], sized((3 << 19) - 1))), (Ok(()), Ok(())));
    assert_eq!(judge(vec![], puts(128)), Err(Invalid::Ops(128, 127)));
    assert_eq!(judge(absent(128), puts(1)), Err(Invalid::Expect(128, 127)));
    assert_eq!(judge(vec![], sized(3 << 19)), Err(Invalid::Bytes((3 << 19) + 1, 3 << 19)));
    assert_eq!(judge(vec![], vec![put_op("a", "1"), put_op("b", "1"), delete_op("a")]), Err(Invalid::Twice(key("a"))));
    // A deletion is compared with its key being there, unless it is compared already.
    assert_eq!(judge(absent(127), vec![delete_op("b")]), Err(Invalid::Expect(128, 127)));
    let mut seen = absent(126);
    seen.push((key("b"), unchanged(7)));
    assert_eq!(judge(seen, vec![delete_op("b")]), Ok(()));
    // What is told of a deletion is not sent.
    let last = |name: &str| Op::Delete { key: key(name), last: Encoded::plain(vec![0; 1 << 20]) };
    assert_eq!(judge(vec![], vec![last("a"), last("b")]), Ok(()));
}

#[test]
fn what_etcd_says_is_told_in_the_stores_words() {
    let status = |code: u32, message: &str| GrpcError::Status { code, message: message.to_owned() };
    let txn = Txn { expect: vec![], ops: vec![put_op("a", "four"), put_op("b", "five5")] };
    let busy = "etcdserver: too many requests";
    for (error, expected) in [
        (status(8, busy), CommitError::Unreached(busy.to_owned())),
        (status(8, "etcdserver: mvcc: database space exceeded"), CommitError::Full),
        (status(3, "etcdserver: request is too large"), CommitError::Invalid(Invalid::Bytes(11, 3 << 19))),
        (
            status(8, "grpc: received message larger than max (3 vs. 2)"),
            CommitError::Invalid(Invalid::Bytes(11, 3 << 19)),
        ),
        (
            status(3, "etcdserver: duplicate key"),
            CommitError::Io("etcdserver: duplicate key (gRPC status 3)".to_owned()),
        ),
        (status(13, busy), CommitError::Io(format!("{busy} (gRPC status 13)"))),
        (GrpcError::Malformed, CommitError::Io("etcd's answer makes no sense".to_owned())),
    ] {
        assert_eq!(explain(error, &txn), expected);
    }
}

/// A8: etcd compares its own revisions; which op of a transaction it was is compared with memory.
#[test]
fn a8_an_expectation_is_about_one_op() {
    let (follower, applied) = follower();
    follower.apply(vec![put("/a", "1", 11, 2)], &applied).unwrap();
    let same = |expect: Expect| follower.same_ops(&[(Bytes::from_static(b"/a"), expect)]);
    assert_eq!(same(Expect::Unchanged(row::revision(11, 2))), Ok(()));
    assert_eq!(same(Expect::Absent), Ok(()), "etcd's to refuse");
    assert_eq!(same(Expect::Unchanged(row::revision(10, 2))), Ok(()), "etcd's to refuse");
    let Err(CommitError::Expectation { key, actual }) = same(Expect::Unchanged(row::revision(11, 1))) else { panic!() };
    let entry = Entry { key: key.clone(), value: "1".into(), revision: row::revision(11, 2) };
    assert_eq!((&key[..], actual), (&b"/a"[..], Some(entry)));
    assert_eq!(follower.same_ops(&[(Bytes::from_static(b"/none"), Expect::Unchanged(Revision(5)))]), Ok(()));
}

/// A9: who is refused is told the first comparison that does not hold, and what is there.
#[test]
fn a9_a_refusal_says_what_is_there() {
    let (follower, _) = follower();
    let here = |name: &str, at: i64| Some(raw(name, at, row_of(name, "v", 0)));
    let name = |name: &str| joined(b"/p", name.as_bytes());
    let table = [
        (vec![Compare::Absent(name("/a"))], vec![here("/a", 5)], Some(("/a", Some(5)))),
        (vec![Compare::Present(name("/a"))], vec![None], Some(("/a", None))),
        (vec![Compare::ModRevision(name("/a"), 4)], vec![here("/a", 5)], Some(("/a", Some(5)))),
        (vec![Compare::ModRevision(name("/a"), 4)], vec![None], Some(("/a", None))),
        (
            vec![Compare::Absent(name("/a")), Compare::Present(name("/b")), Compare::ModRevision(name("/c"), 9)],
            vec![None, here("/b", 5), here("/c", 8)],
            Some(("/c", Some(8))),
        ),
        (vec![Compare::ModRevision(name("/a"), 5), Compare::Absent(name("/b"))], vec![here("/a", 5), None], None),
    ];
    for (compare, found, expected) in table {
        match (follower.refusal(&compare, &found), expected) {
            (CommitError::Expectation { key, actual }, Some((name, at))) => {
                assert_eq!(text(&key), name);
                assert_eq!(actual.map(|entry| entry.revision), at.map(|at| row::revision(at, 0)));
            }
            (CommitError::Io(why), None) => assert!(why.contains("whose comparisons hold"), "{why}"),
            (other, _) => panic!("{other}: {compare:?}"),
        }
    }
}
