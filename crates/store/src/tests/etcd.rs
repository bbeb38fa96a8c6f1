//! The same promises on a real etcd (Debian's etcd-server), and what only several servers meet. Each test is this test
//! program again in a network namespace of its own, where loopback is all there is.

mod limits;

use super::{put, put_op, shared};
use crate::{
    CommitError, Endpoint, Etcd, Expect, Invalid, OpenError, Options, ReadError, Revision, Store, Txn, WatchError,
};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
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
        Self::start_in(&folder.join("etcd"))
    }

    fn start_in(folder: &Path) -> Self {
        Self::start_with(folder, &[])
    }

    fn start_with(folder: &Path, options: &[&str]) -> Self {
        let child = Command::new("etcd")
            .arg("--data-dir")
            .arg(folder)
            .args(["--listen-client-urls", CLIENT, "--advertise-client-urls", CLIENT])
            .args(["--listen-peer-urls", "http://127.0.0.1:2380", "--log-level", "error"])
            .args(options)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd (Debian's package etcd-server)");
        Self(child)
    }
}

impl Member {
    fn signal(&self, name: &str) {
        let done = Command::new("kill").args([name, &self.0.id().to_string()]).status().expect("kill");
        assert!(done.success());
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
            Err(OpenError::Unreached(_)) if begun.elapsed() < PATIENCE => std::thread::yield_now(),
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
    // As many ops as etcd takes at once, and keys of other prefixes beside ours.
    let store = open("/other/");
    assert_eq!(store.count(b""), 0);
    let ops = |count: usize| (0..count).map(|index| put_op(&format!("k{index:03}"), "v")).collect();
    let most = store.txn_limits().ops;
    let done = store.commit_blocking(Txn { expect: vec![], ops: ops(most) }).unwrap();
    assert!(store.count(b"") == most && done.last.0 == done.first.0 + most as u64 - 1);
    let refused = store.commit_blocking(Txn { expect: vec![], ops: ops(most + 1) });
    assert_eq!(refused, Err(CommitError::Invalid(Invalid::Ops(most + 1, most))), "never cut");
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
    let _member = std::thread::scope(|scope| {
        let lost = scope.spawn(|| one.commit_blocking(put("lost", "")));
        let member = Member::start(folder.path());
        // It was sent to nobody, or nobody knows until etcd is there again; what is said of it is so.
        let is_done = lost.join().unwrap().is_ok();
        caught_up(&one);
        assert_eq!(one.get(b"lost").is_some(), is_done, "A9");
        member
    });
    let begun = Instant::now();
    while let Err(error) = one.commit_blocking(put("after", "")) {
        assert!(begun.elapsed() < PATIENCE, "{error}");
    }
    assert_eq!(crate::store::block_on(after.next()).unwrap().key, "after");
    caught_up(&two);
    assert_eq!((two.get(b"n").unwrap().value, two.get(b"k").unwrap().value), ("50".into(), "49".into()), "A2");
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

/// A way to etcd on which answers can be lost.
struct Proxy {
    swallows: Arc<AtomicBool>,
    /// Whether nobody gets through.
    cut: Arc<AtomicBool>,
    swallowed: Mutex<mpsc::Receiver<()>>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Proxy {
    const AT: &str = "http://127.0.0.1:4379";

    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:4379").unwrap();
        let (swallows, open) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let cut = Arc::new(AtomicBool::new(false));
        let is_cut = cut.clone();
        let (tell, swallowed) = mpsc::channel();
        let proxy = Self { swallows: swallows.clone(), cut, swallowed: Mutex::new(swallowed), open: open.clone() };
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok).filter(|_| !is_cut.load(Ordering::Acquire)) {
                let Ok(member) = TcpStream::connect("127.0.0.1:2379") else { continue };
                let ends = [&client, &client, &member, &member].map(|end| end.try_clone().unwrap());
                let [read_client, write_client, read_member, write_member] = ends;
                crate::lock(&open).extend([client, member]);
                std::thread::spawn(move || Self::pass(read_client, write_member, |_| false));
                let (swallows, tell) = (swallows.clone(), tell.clone());
                std::thread::spawn(move || {
                    Self::pass(read_member, write_client, |_| {
                        let is_lost = swallows.load(Ordering::Acquire);
                        is_lost && tell.send(()).is_ok()
                    });
                });
            }
        });
        proxy
    }

    fn pass(mut from: TcpStream, mut to: TcpStream, lose: impl Fn(&[u8]) -> bool) {
        let mut bytes = [0; 16 << 10];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            if !lose(&bytes[..count]) && to.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    }

    /// Ends all connections.
    fn shut(&self) {
        for end in crate::lock(&self.open).drain(..) {
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    /// Loses whatever etcd answers next, and then the connection.
    fn lose_answers(&self) {
        let swallowed = crate::lock(&self.swallowed);
        while swallowed.try_recv().is_ok() {}
        self.swallows.store(true, Ordering::Release);
        let _ = swallowed.recv_timeout(Duration::from_millis(500));
        self.shut();
        self.swallows.store(false, Ordering::Release);
    }
}

/// Adds one to a number, unless somebody else was quicker; whether it did.
fn add_one(store: &Store) -> Result<bool, CommitError> {
    let n = store.get(b"n").unwrap();
    let next = std::str::from_utf8(&n.value).unwrap().parse::<u64>().unwrap() + 1;
    let expect = vec![(n.key.clone(), Expect::Unchanged(n.revision))];
    match store.commit_blocking(Txn { expect, ops: vec![put_op("n", &next.to_string())] }) {
        Ok(_) => Ok(true),
        Err(CommitError::Expectation { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// What two servers write is the same bytes, on the same expectation: only the receipt tells whose it was.
#[test]
fn a_transaction_whose_answer_is_lost_is_told_apart_from_another_servers_a1_a9() {
    const EACH: usize = 60;
    if !inside("a_transaction_whose_answer_is_lost_is_told_apart_from_another_servers_a1_a9") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let _member = Member::start(folder.path());
    let direct = open("/mainstay/");
    let proxy = Proxy::start();
    let through = Etcd { endpoints: vec![Endpoint::parse(Proxy::AT).unwrap()], ..etcd("/mainstay/") };
    let broken = Store::open_etcd(through, Options::default()).unwrap();
    direct.commit_blocking(put("n", "0")).unwrap();
    let mut watch = direct.watch("n", direct.revision()).unwrap();
    caught_up(&broken);
    let (left, through, aside) = (AtomicBool::new(true), AtomicUsize::new(0), AtomicUsize::new(0));
    let work = |store: &Store, progress: &AtomicUsize| {
        let begun = Instant::now();
        let mut done = 0;
        while done < EACH {
            match add_one(store) {
                Ok(is_done) => {
                    done += usize::from(is_done);
                    progress.fetch_add(1, Ordering::AcqRel);
                }
                // For certain: nothing was done.
                Err(CommitError::Unreached(_)) => {}
                Err(error) => panic!("{error}"),
            }
            assert!(begun.elapsed() < PATIENCE, "{done} done");
        }
    };
    let lost = std::thread::scope(|scope| {
        let workers = [scope.spawn(|| work(&direct, &aside)), scope.spawn(|| work(&broken, &through))];
        let breaker = scope.spawn(|| {
            let (mut times, mut before) = (0, 0);
            while left.load(Ordering::Acquire) {
                // Only when an answer has come again: else none ever would.
                let now = through.load(Ordering::Acquire);
                if now == before {
                    std::thread::yield_now();
                    continue;
                }
                before = now;
                proxy.lose_answers();
                times += 1;
            }
            times
        });
        for worker in workers {
            worker.join().unwrap();
        }
        left.store(false, Ordering::Release);
        breaker.join().unwrap()
    });
    assert!(lost > 3, "answers were lost {lost} times only");
    caught_up(&direct);
    assert_eq!(direct.get(b"n").unwrap().value, (2 * EACH).to_string(), "A9: each of them once");
    // A4: every one of them is seen, in order.
    for n in 1..=2 * EACH {
        assert_eq!(crate::store::block_on(watch.next()).unwrap().value, n.to_string());
    }
    // Receipts are no rows.
    assert_eq!(direct.range(b"", None, 10, None).unwrap().entries.len(), 1);
    assert_eq!(Store::open_etcd(etcd("/mainstay/"), Options::default()).unwrap().count(b""), 1);
}

#[test]
fn a_silent_etcd_is_waited_for_and_all_goes_on_a1_a2() {
    if !inside("a_silent_etcd_is_waited_for_and_all_goes_on_a1_a2") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let closed = Store::open_etcd(etcd("/mainstay/"), Options::default());
    assert!(matches!(closed, Err(OpenError::Unreached(_))), "nobody is there");
    let member = Member::start(folder.path());
    let store = open("/mainstay/");
    store.commit_blocking(put("k", "0")).unwrap();
    assert_eq!(store.trouble(), None);
    member.signal("-STOP");
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let commit = scope.spawn(|| store.commit_blocking(put("k", "1")));
        while store.trouble().is_none() {
            assert!(begun.elapsed() < PATIENCE);
            std::thread::yield_now();
        }
        let words = store.trouble().unwrap();
        assert!(words.starts_with("etcd is silent for "), "{words}");
        crate::store::block_on(store.silent());
        member.signal("-CONT");
        // In doubt until now.
        commit.join().unwrap().unwrap();
    });
    assert_eq!(store.get(b"k").unwrap().value, "1");
    while store.trouble().is_some() {
        assert!(begun.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
    caught_up(&store);
}

/// A server that runs, and one that starts, on an etcd that was brought back from a snapshot.
#[test]
fn an_older_copy_of_etcd_is_refused_a3() {
    if !inside("an_older_copy_of_etcd_is_refused_a3") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let member = Member::start(folder.path());
    let store = open("/mainstay/");
    store.commit_blocking(put("k", "0")).unwrap();
    let snapshot = folder.path().join("snapshot");
    let etcdctl = |args: &[&str]| {
        let mut command = Command::new("etcdctl");
        let done = command.args(args).env("ETCDCTL_API", "3").stdout(Stdio::null()).stderr(Stdio::null()).status();
        assert!(done.expect("etcdctl (Debian's package etcd-client)").success(), "{args:?}");
    };
    etcdctl(&["--endpoints", CLIENT, "snapshot", "save", snapshot.to_str().unwrap()]);
    store.commit_blocking(put("k", "1")).unwrap();
    let seen = store.revision();
    drop(member);
    let again = folder.path().join("restored");
    etcdctl(&["snapshot", "restore", snapshot.to_str().unwrap(), "--data-dir", again.to_str().unwrap()]);
    let _member = Member::start_in(&again);
    let begun = Instant::now();
    while !store.is_closed() {
        assert!(begun.elapsed() < PATIENCE, "{:?}", store.trouble());
        std::thread::yield_now();
    }
    let words = store.trouble().unwrap();
    assert!(words.contains("an older copy was restored there"), "{words}");
    assert!(store.commit_blocking(put("k", "2")).is_err());
    assert!(matches!(crate::store::block_on(store.catch_up()), Err(ReadError::Behind)));
    assert!(open("/mainstay/").revision() < seen, "it is an older copy");
}
