//! The same promises on a real etcd (Debian's etcd-server), and what only several servers meet. Each test is this test
//! program again in a network namespace of its own, where loopback is all there is.

use super::{put, put_op, shared};
use crate::{CommitError, Endpoint, Etcd, Expect, OpenError, Options, ReadError, Revision, Store, Txn, WatchError};
use bytes::Bytes;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const INSIDE: &str = "MAINSTAY_TEST_ETCD_INSIDE";
const CLIENT: &str = "http://127.0.0.1:2379";
/// How long etcd may take to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a test of this file in a namespace; true in there.
fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let done = Command::new("unshare")
        .args(["--net", "--kill-child", "--", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("tests::etcd::{test}"), "--nocapture"])
        .env(INSIDE, "yes")
        .status()
        .expect("unshare (util-linux), as root");
    assert!(done.success(), "{test} failed inside");
    false
}

/// A running member; killed with this.
struct Member(Child);

impl Member {
    fn start(folder: &Path) -> Self {
        let child = Command::new("etcd")
            .arg("--data-dir")
            .arg(folder.join("etcd"))
            .args(["--listen-client-urls", CLIENT, "--advertise-client-urls", CLIENT])
            .args(["--listen-peer-urls", "http://127.0.0.1:2380", "--log-level", "error"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd (Debian's package etcd-server)");
        Self(child)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn etcd(prefix: &'static str) -> Etcd {
    // The first of them answers nobody.
    let endpoints = ["http://127.0.0.1:9", CLIENT].map(|text| Endpoint::parse(text).unwrap()).to_vec();
    Etcd { endpoints, tls: None, prefix: prefix.into() }
}

/// A store on it, as soon as etcd answers.
fn open(prefix: &'static str) -> Store {
    let begun = Instant::now();
    loop {
        match Store::open_etcd(etcd(prefix), Options::default()) {
            Ok(store) => return store,
            Err(OpenError::Engine(_)) if begun.elapsed() < PATIENCE => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

fn caught_up(store: &Store) -> Revision {
    let begun = Instant::now();
    loop {
        match crate::store::block_on(store.catch_up()) {
            Err(ReadError::Behind) if begun.elapsed() < PATIENCE => {}
            other => return other.unwrap(),
        }
    }
}

#[test]
fn the_store_on_etcd_keeps_the_promises_of_every_backend_a1_to_a9() {
    if !inside("the_store_on_etcd_keeps_the_promises_of_every_backend_a1_to_a9") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let _member = Member::start(folder.path());
    shared::all(&|| open("/mainstay/"));
    // More ops than etcd takes at once, and keys of other prefixes beside ours.
    let store = open("/other/");
    assert_eq!(store.count(b""), 0);
    let ops = (0..300).map(|index| put_op(&format!("k{index:03}"), "v")).collect();
    let done = store.commit_blocking(Txn { expect: vec![], ops }).unwrap();
    assert!(store.count(b"") == 300 && done.last > done.first);
}

#[test]
fn several_servers_read_what_any_of_them_has_acknowledged_m2() {
    if !inside("several_servers_read_what_any_of_them_has_acknowledged_m2") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let member = Member::start(folder.path());
    let (one, two) = (open("/mainstay/"), open("/mainstay/"));
    let mut watch = one.watch("", one.revision()).unwrap();
    let mut last = Revision(0);
    for round in 0..50 {
        let (writer, reader) = if round % 2 == 0 { (&one, &two) } else { (&two, &one) };
        let done = writer.commit_blocking(put("k", &round.to_string())).unwrap();
        assert!(done.first > last);
        last = done.last;
        assert!(caught_up(reader) >= done.last);
        assert_eq!(reader.get(b"k").unwrap().value, round.to_string());
    }
    // A watch that moves from one server to the other: no gap, no duplicate.
    for round in 0..20 {
        assert_eq!(crate::store::block_on(watch.next()).unwrap().value, round.to_string());
    }
    let mut moved = two.watch("", watch.progress()).unwrap();
    for round in 20..50 {
        assert_eq!(crate::store::block_on(moved.next()).unwrap().value, round.to_string());
    }
    one.commit_blocking(put("n", "0")).unwrap();
    caught_up(&two);
    std::thread::scope(|scope| {
        for store in [&one, &two] {
            scope.spawn(|| (0..25).for_each(|_| shared::increment(store)));
        }
    });
    caught_up(&one);
    assert_eq!(one.get(b"n").unwrap().value, "50", "A1");

    // kill -9: what was acknowledged is there, and both go on where they were.
    let mut after = two.watch("after", two.revision()).unwrap();
    drop(member);
    assert!(one.commit_blocking(put("lost", "")).is_err(), "nobody is there to take it");
    let _member = Member::start(folder.path());
    let begun = Instant::now();
    while let Err(error) = one.commit_blocking(put("after", "")) {
        assert!(begun.elapsed() < PATIENCE, "{error}");
    }
    assert_eq!(crate::store::block_on(after.next()).unwrap().key, "after");
    caught_up(&two);
    assert_eq!((two.get(b"n").unwrap().value, two.get(b"k").unwrap().value), ("50".into(), "49".into()), "A2");
}

/// A guard holds for every part of a transaction that is cut, and refuses all of it.
#[test]
fn a_guard_is_compared_with_every_part_m1() {
    if !inside("a_guard_is_compared_with_every_part_m1") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let _member = Member::start(folder.path());
    let store = open("/mainstay/");
    store.commit_blocking(put("leader", "a")).unwrap();
    let guard = |store: &Store| {
        let revision = store.get(b"leader").unwrap().revision;
        vec![(Bytes::from_static(b"leader"), Expect::Guard(revision))]
    };
    let many = |of: &str| (0..300).map(|index| put_op(&format!("{of}-{index}"), "x")).collect::<Vec<_>>();
    let old = guard(&store);
    let done = store.commit_blocking(Txn { expect: old.clone(), ops: many("first") }).unwrap();
    assert!(done.last > done.first && store.get(b"first-299").is_some());
    store.commit_blocking(put("leader", "b")).unwrap();
    let refused = store.commit_blocking(Txn { expect: old, ops: many("second") });
    assert!(matches!(refused, Err(CommitError::Expectation { key, .. }) if key == "leader"));
    assert!((0..300).all(|index| store.get(format!("second-{index}").as_bytes()).is_none()));
    store.commit_blocking(Txn { expect: guard(&store), ops: many("second") }).unwrap();
}

/// A server that was away while etcd forgot: its watchers are told, and none is shown a gap.
#[test]
fn a_server_that_missed_what_etcd_forgot_says_so_a4_a7() {
    if !inside("a_server_that_missed_what_etcd_forgot_says_so_a4_a7") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let member = Member::start(folder.path());
    let store = open("/mainstay/");
    store.commit_blocking(put("k", "0")).unwrap();
    let mut watch = store.watch("", store.revision()).unwrap();
    drop(member);
    // The store cannot follow: nobody listens where it looks.
    let aside = "http://127.0.0.1:3379";
    let away = Command::new("etcd")
        .arg("--data-dir")
        .arg(folder.path().join("etcd"))
        .args(["--listen-client-urls", aside, "--advertise-client-urls", aside])
        .args(["--listen-peer-urls", "http://127.0.0.1:2380", "--log-level", "error"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map(Member)
        .unwrap();
    let other = Etcd { endpoints: vec![Endpoint::parse(aside).unwrap()], ..etcd("/mainstay/") };
    let begun = Instant::now();
    let other = loop {
        match Store::open_etcd(other.clone(), Options::default()) {
            Ok(store) => break store,
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
        }
    };
    for round in 1..20 {
        other.commit_blocking(put("k", &round.to_string())).unwrap();
    }
    let revision = (other.revision().0 >> 10).to_string();
    let compacted = Command::new("etcdctl")
        .args(["--endpoints", aside, "compact", &revision])
        .env("ETCDCTL_API", "3")
        .stdout(Stdio::null())
        .status()
        .expect("etcdctl (Debian's package etcd-client)");
    assert!(compacted.success());
    drop(other);
    drop(away);
    let _member = Member::start(folder.path());
    caught_up(&store);
    assert_eq!(store.get(b"k").unwrap().value, "19");
    assert!(matches!(watch.try_next(), Err(WatchError::Lagged { .. })));
}
