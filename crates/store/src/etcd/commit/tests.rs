//! How a transaction is cut to what etcd takes, and what its answers mean: without an etcd.

use super::*;
use crate::etcd::feed::tests::{follower, put, raw, row_of, text};
use crate::tests::{delete_op, put_op};
use crate::{Encoded, Revision};

const PREFIX: &[u8] = b"/p/";

fn key(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// A transaction of these expectations and ops.
fn cut(expect: Vec<(Bytes, Expect)>, ops: Vec<Op>) -> Result<Vec<Part>, CommitError> {
    parts(PREFIX, &Txn { expect, ops })
}

/// A part in words: what it compares, what it writes.
fn show(part: &Part) -> (Vec<String>, Vec<String>) {
    let plain = |key: &Bytes| String::from_utf8_lossy(key.strip_prefix(PREFIX).unwrap()).into_owned();
    let compares = part.etcd.compare.iter().map(|compare| match compare {
        Compare::Absent(key) => format!("no {}", plain(key)),
        Compare::Present(key) => format!("any {}", plain(key)),
        Compare::ModRevision(key, revision) => format!("{}@{revision}", plain(key)),
    });
    let writes = part.etcd.writes.iter().map(|write| match write {
        Write::Put(at, raw) => {
            let (value, index) = row::decode(plain(at).as_bytes(), raw).expect("a row that reads back");
            format!("{}={}#{index}", plain(at), String::from_utf8_lossy(&value.bytes))
        }
        Write::Delete(key) => format!("-{}", plain(key)),
    });
    let shown = (compares.collect(), writes.collect::<Vec<_>>());
    assert_eq!(usize::from(part.ops), shown.1.len());
    let asked: Vec<&Bytes> = part.etcd.compare.iter().map(Compare::key).collect();
    assert_eq!(part.etcd.else_get.iter().collect::<Vec<_>>(), asked, "whoever is refused sees what is there");
    shown
}

fn unchanged(etcd: i64) -> Expect {
    Expect::Unchanged(row::revision(etcd, 3))
}

#[test]
fn a_small_transaction_is_one_of_etcds_a9() {
    let expect =
        vec![(key("a"), Expect::Absent), (key("b"), unchanged(7)), (key("g"), Expect::Guard(Revision(9 << 10)))];
    let all = cut(expect, vec![put_op("a", "1"), delete_op("b"), put_op("c", "3")]).unwrap();
    assert_eq!(all.len(), 1);
    let (compares, writes) = show(&all[0]);
    assert_eq!(compares, ["no a", "b@7", "g@9", "any b"]);
    assert_eq!(writes, ["a=1#0", "-b", "c=3#2"]);
    // Only to be compared; nothing at all.
    let all = cut(vec![(key("a"), Expect::Absent)], vec![]).unwrap();
    assert_eq!((all.len(), all[0].ops, show(&all[0]).0), (1, 0, vec!["no a".to_owned()]));
    assert!(cut(vec![], vec![]).unwrap().is_empty());
}

#[test]
fn a_long_transaction_is_cut_in_order_where_etcds_limits_are_m1() {
    // The receipt has one of 128 ops. What guards is compared with each part, the rest with the first.
    let expect = vec![(key("a"), Expect::Absent), (key("g"), Expect::Guard(Revision(9 << 10)))];
    let ops = (0..300).map(|index| put_op(&format!("k{index:03}"), "v")).collect();
    let all = cut(expect, ops).unwrap();
    let shown: Vec<_> = all.iter().map(show).collect();
    assert_eq!(shown.iter().map(|(_, writes)| writes.len()).collect::<Vec<_>>(), [127, 127, 46]);
    assert_eq!(shown.iter().map(|(compares, _)| compares.join(" ")).collect::<Vec<_>>(), ["no a g@9", "g@9", "g@9"]);
    for (part, (_, writes)) in shown.iter().enumerate() {
        for (index, write) in writes.iter().enumerate() {
            assert_eq!(*write, format!("k{:03}=v#{index}", part * 127 + index));
        }
    }
    assert_eq!(cut(vec![], (0..127).map(|index| put_op(&format!("k{index}"), "")).collect()).unwrap().len(), 1);
    // Bytes: as much as a MiB at once, and one that is larger by itself.
    let sized = |key: &str, size: usize| Op::Put {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Encoded::plain(vec![0; size]),
    };
    let half = (1 << 19) - 1;
    let lengths = |ops: Vec<Op>| cut(vec![], ops).unwrap().iter().map(|part| part.ops).collect::<Vec<_>>();
    assert_eq!(lengths(vec![sized("a", half), sized("b", half), sized("c", half)]), [2, 1]);
    assert_eq!(lengths(vec![sized("a", half), sized("b", half + 1), sized("c", half)]), [1, 1, 1]);
    assert_eq!(lengths(vec![sized("a", 3 * half), sized("b", 1), sized("c", 1)]), [1, 2]);
    // One key is changed once in each.
    let again = cut(vec![], vec![put_op("a", "1"), put_op("b", "1"), put_op("a", "2"), put_op("b", "2")]).unwrap();
    let again: Vec<_> = again.iter().map(|part| show(part).1).collect();
    assert_eq!(again, [["a=1#0", "b=1#1"], ["a=2#0", "b=2#1"]]);
}

#[test]
fn more_expectations_than_etcd_compares_go_with_what_they_are_about_a8() {
    let names: Vec<String> = (0..200).map(|index| format!("k{index:03}")).collect();
    for deletes in [false, true] {
        let expect =
            names.iter().map(|name| (key(name), unchanged(5))).chain([(key("other"), Expect::Absent)]).collect();
        let op = |name: &String| if deletes { delete_op(name) } else { put_op(name, "v") };
        let all = cut(expect, names.iter().map(op).collect()).unwrap();
        let shown: Vec<_> = all.iter().map(show).collect();
        assert!(all.len() > 1 && all.iter().all(|part| part.etcd.compare.len() <= 127));
        assert_eq!(shown[0].0[0], "no other", "what no op is about comes first");
        let mut done = Vec::new();
        for (compares, writes) in &shown {
            for write in writes {
                let name = write.trim_start_matches('-').split('=').next().unwrap().to_owned();
                assert!(compares.contains(&format!("{name}@5")), "{name} is compared where it is changed");
                assert_eq!(compares.contains(&format!("any {name}")), deletes);
                done.push(name);
            }
        }
        assert_eq!(done, names, "in order, each once");
    }
    // 126 go as they are; those that no op is about have to be compared at once.
    let absent = |count: usize| (0..count).map(|index| (key(&format!("x{index}")), Expect::Absent)).collect::<Vec<_>>();
    for count in [125, 126, 127] {
        let all = cut(absent(count), vec![put_op("a", "")]).unwrap();
        assert_eq!((all.len(), all[0].etcd.compare.len()), (1, count));
    }
    assert_eq!(cut(absent(128), vec![put_op("a", "")]).err(), Some(CommitError::Invalid(Invalid::Expect(128))));
    // A deletion finds no room beside so many, and goes with the next part.
    let all = cut(absent(127), vec![put_op("a", ""), delete_op("b")]).unwrap();
    let shown: Vec<_> = all.iter().map(show).collect();
    assert_eq!(shown.iter().map(|(compares, _)| compares.len()).collect::<Vec<_>>(), [127, 1]);
    assert_eq!(shown[1], (vec!["any b".to_owned()], vec!["-b".to_owned()]));
    // It cannot come first there: nothing has been compared before it.
    let first = cut(absent(127), vec![delete_op("b")]);
    assert_eq!(first.err(), Some(CommitError::Invalid(Invalid::Expect(127))), "one more than etcd takes");
    // Guards are compared with the first part, too, whatever else is about their keys.
    let mut expect = absent(126);
    expect.push((key("a"), Expect::Guard(Revision(4 << 10))));
    let all = cut(expect, vec![put_op("a", "")]).unwrap();
    assert_eq!(show(&all[0]).0.last().map(String::as_str), Some("a@4"));
}

#[test]
fn what_etcd_says_is_told_in_the_stores_words() {
    let status = |code: u32, message: &str| GrpcError::Status { code, message: message.to_owned() };
    let txn = Txn { expect: vec![], ops: vec![put_op("a", "four"), put_op("b", "five5")] };
    let busy = "etcdserver: too many requests";
    for (error, expected) in [
        (status(8, busy), CommitError::Unreached(busy.to_owned())),
        (status(8, "etcdserver: mvcc: database space exceeded"), CommitError::Full),
        (status(3, "etcdserver: request is too large"), CommitError::Invalid(Invalid::Bytes(9))),
        (
            status(3, "etcdserver: duplicate key"),
            CommitError::Io("etcdserver: duplicate key (gRPC status 3)".to_owned()),
        ),
        (status(13, busy), CommitError::Io(format!("{busy} (gRPC status 13)"))),
        (GrpcError::Malformed, CommitError::Io("etcd's answer makes no sense".to_owned())),
    ] {
        assert_eq!(explain(error, &txn), expected);
    }
    let half = half_done(2, &CommitError::Full).to_string();
    assert!(half.contains("the first 2 parts"), "{half}");
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
    for expect in [Expect::Unchanged(row::revision(11, 1)), Expect::Guard(row::revision(11, 1))] {
        let Err(CommitError::Expectation { key, actual }) = same(expect) else { panic!() };
        let entry = Entry { key: key.clone(), value: "1".into(), revision: row::revision(11, 2) };
        assert_eq!((&key[..], actual), (&b"/a"[..], Some(entry)));
    }
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
