//! What etcd takes and answers at once, and what lies beyond.

use super::super::{put, put_op};
use super::{Member, PATIENCE, Proxy, caught_up, etcd, inside, open};
use crate::{CommitError, Encoded, Endpoint, Etcd, Expect, Op, Options, Store, Txn};
use bytes::Bytes;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// The next of a row of numbers that a seed gives.
fn random(seed: &mut u64) -> usize {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) as usize
}

/// Two servers take names, many at once and of many bytes, while a third takes and frees single ones. Whatever a
/// transaction's size, it is carried out as a whole where all of its names are free, or not at all: no name is taken
/// that another has, none comes back that was freed.
#[test]
fn a_transaction_is_whole_however_large_while_others_write_a8_a9() {
    const NAMES: usize = 300;
    const ROUNDS: u64 = 25;
    if !inside("limits::a_transaction_is_whole_however_large_while_others_write_a8_a9") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let _member = Member::start(folder.path());
    let stores = [open("/mainstay/"), open("/mainstay/"), open("/mainstay/")];
    let name = |index: usize| Bytes::from(format!("n/{:03}", index % NAMES));
    let took = |store: &Store, who: &str, names: &[Bytes], fill: usize| {
        let value =
            |key: &Bytes| Encoded::plain(format!("{who} {}{}", names.len(), "x".repeat(fill * (key.len() & 1))));
        let ops = names.iter().map(|key| Op::Put { key: key.clone(), value: value(key) });
        let expect = names.iter().map(|key| (key.clone(), Expect::Absent)).collect();
        match store.commit_blocking(Txn { expect, ops: ops.collect() }) {
            Ok(done) => {
                assert_eq!(done.last.0, done.first.0 + names.len() as u64 - 1, "A6: each op's revision is known");
                true
            }
            Err(CommitError::Expectation { .. } | CommitError::Invalid(_)) => false,
            Err(error) => panic!("{error}"),
        }
    };
    let taken = std::thread::scope(|scope| {
        let many = [0, 1].map(|server: usize| {
            let (store, name, took) = (&stores[server], &name, &took);
            scope.spawn(move || {
                let mut seed = server as u64 + 1;
                let mut all = Vec::new();
                for round in 0..ROUNDS {
                    let (from, count) = (random(&mut seed), 1 + random(&mut seed) % 160);
                    let names: Vec<Bytes> = (from..from + count).map(name).collect();
                    let who = format!("{server}-{round}");
                    let fill = if random(&mut seed).is_multiple_of(4) { 12 << 10 } else { 1 };
                    if took(store, &who, &names, fill) {
                        // They are there, all of them, as long as nobody frees them: then all are gone at once.
                        let free = Txn {
                            expect: Vec::new(),
                            ops: names
                                .iter()
                                .map(|key| Op::Delete { key: key.clone(), last: Encoded::plain("") })
                                .collect(),
                        };
                        all.push(who.clone());
                        for key in &names {
                            let now = store.get(key).expect("A8: nobody else frees it");
                            assert!(now.value.starts_with(who.as_bytes()), "A8: {who} has {key:?}");
                        }
                        if round % 3 > 0 {
                            store.commit_blocking(free).expect("A8: all are there");
                        }
                    }
                }
                all
            })
        });
        let single = scope.spawn(|| {
            let mut seed = 77;
            let mut kept = Vec::new();
            for round in 0..ROUNDS * 12 {
                let names = [name(random(&mut seed))];
                let who = format!("2-{round}");
                if took(&stores[2], &who, &names, 1) {
                    kept.push((names[0].clone(), who));
                }
            }
            kept
        });
        let done: usize = many.into_iter().map(|thread| thread.join().unwrap().len()).sum();
        assert!(done > 3, "{done} of many names");
        single.join().unwrap()
    });
    caught_up(&stores[0]);
    assert!(taken.len() > 10);
    for (key, who) in taken {
        let now = stores[0].get(&key).map(|entry| entry.value);
        assert!(now.as_ref().is_some_and(|now| now.starts_with(who.as_bytes())), "A8: {who} has {key:?}, not {now:?}");
    }
}

/// etcd says that its space is exceeded of a transaction that it carries out, too: who is told so had nothing done.
#[test]
fn what_a_full_etcd_refuses_was_not_done_a9() {
    const WRITERS: usize = 12;
    if !inside("limits::what_a_full_etcd_refuses_was_not_done_a9") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let _member = Member::start_with(&folder.path().join("etcd"), &["--quota-backend-bytes", "4000000"]);
    let store = open("/mainstay/");
    let outcomes = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let store = &store;
                scope.spawn(move || {
                    let mut all = Vec::new();
                    for round in 0..400 {
                        let key = format!("k/{writer}/{round}");
                        let done = store.commit_blocking(put(&key, &"x".repeat(8 << 10)));
                        let is_done = match &done {
                            Ok(_) => true,
                            Err(CommitError::Full) => false,
                            Err(error) => panic!("{error}"),
                        };
                        all.push((key, is_done));
                        if !is_done {
                            break;
                        }
                    }
                    all
                })
            })
            .collect();
        writers.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    caught_up(&store);
    assert!(outcomes.iter().filter(|(_, is_done)| !is_done).count() >= WRITERS, "etcd is full");
    for (key, is_done) in outcomes {
        assert_eq!(store.get(key.as_bytes()).is_some(), is_done, "A9: {key}");
    }
    deletions_alone_are_taken(&store);
}

/// Otherwise nobody could free room.
fn deletions_alone_are_taken(store: &Store) {
    let keys: Vec<Bytes> = store.range(b"k/", None, 6, None).unwrap().entries.into_iter().map(|row| row.key).collect();
    let gone = |key: &Bytes| Op::Delete { key: key.clone(), last: Encoded::plain("") };
    let commit = |expect, ops| store.commit_blocking(Txn { expect, ops });
    let mut watch = store.watch("k/", store.revision()).unwrap();
    commit(vec![], vec![gone(&keys[0])]).unwrap();
    let seen = store.get(&keys[1]).unwrap().revision;
    let done = commit(vec![(keys[1].clone(), Expect::Unchanged(seen))], vec![gone(&keys[1]), gone(&keys[2])]).unwrap();
    assert_eq!(done.last.0, done.first.0 + 1, "each has its revision");
    for key in &keys[..3] {
        assert_eq!(crate::store::block_on(watch.next()).unwrap().key, key, "A4");
    }
    for key in &keys[..3] {
        assert!(store.get(key).is_none());
        assert!(matches!(commit(vec![], vec![gone(key)]), Err(CommitError::Expectation { actual: None, .. })), "A8");
    }
    let stale = vec![(keys[3].clone(), Expect::Unchanged(seen))];
    assert!(matches!(commit(stale, vec![gone(&keys[3])]), Err(CommitError::Expectation { .. })), "A8");
    // With a write it is a write.
    assert_eq!(commit(vec![], vec![gone(&keys[3]), put_op("k/new", "")]), Err(CommitError::Full));
    assert!(store.get(&keys[3]).is_some() && store.get(b"k/new").is_none(), "A9");
}

/// Much more than is read at once: rows that are small and then large, and all of them while a server is away. Servers
/// start, and one that comes back shows all of it and says only then that it follows (M3).
#[test]
fn what_is_more_than_one_answer_is_read_and_followed_m3() {
    const LARGE: usize = 75;
    if !inside("limits::what_is_more_than_one_answer_is_read_and_followed_m3") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let _member = Member::start(folder.path());
    let direct = open("/mainstay/");
    let proxy = Proxy::start();
    let through = Etcd { endpoints: vec![Endpoint::parse(Proxy::AT).unwrap()], ..etcd("/mainstay/") };
    let away = Store::open_etcd(through, Options::default()).unwrap();
    for page in 0..30 {
        let ops = (0..100).map(|index| put_op(&format!("a/{page:02}-{index:03}"), "small")).collect();
        direct.commit_blocking(Txn { expect: vec![], ops }).unwrap();
    }
    caught_up(&away);
    let mut watch = away.watch("b/", away.revision()).unwrap();
    proxy.cut.store(true, Ordering::Release);
    proxy.shut();
    let large = "x".repeat(1_000_000);
    for index in 0..LARGE {
        direct.commit_blocking(put(&format!("b/{index:02}"), &large)).unwrap();
    }
    assert!(away.trouble().is_some(), "it is not followed");
    proxy.cut.store(false, Ordering::Release);
    let begun = Instant::now();
    while away.trouble().is_some() {
        assert!(begun.elapsed() < PATIENCE, "{:?}", away.trouble());
        std::thread::yield_now();
    }
    assert_eq!(away.count(b"b/"), LARGE, "it is said to be followed when it is");
    for index in 0..LARGE {
        let event = crate::store::block_on(watch.next()).unwrap();
        assert_eq!((&event.key[..], event.value.len()), (format!("b/{index:02}").as_bytes(), large.len()), "A4");
    }
    let started = Store::open_etcd(etcd("/mainstay/"), Options::default()).unwrap();
    assert_eq!((started.count(b"a/"), started.count(b"b/")), (3000, LARGE), "A1");
}
