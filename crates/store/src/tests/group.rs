//! Group commit under real threads.

use super::{put, put_op};
use crate::limits::{MAX_GROUP, MAX_GROUP_BYTES};
use crate::testing::{Fault, FaultyDisk};
use crate::{CommitError, Expect, Options, Revision, Source, Store, Txn};
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Barrier, mpsc};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::Duration;

fn open(disk: &FaultyDisk) -> Store {
    Store::open(Source::backend(disk.clone()), Options::default()).unwrap()
}

/// Eleven writers, of whom ten come while the first is being written.
fn eleven_at_once(disk: &FaultyDisk, store: &Store) -> Vec<Result<crate::Committed, CommitError>> {
    disk.hold();
    let commits: Vec<_> = (0..11).map(|i| store.commit(put(&format!("k{i}"), ""))).collect();
    let mut commits: Vec<_> = commits.into_iter().map(Box::pin).collect();
    let mut context = Context::from_waker(Waker::noop());
    for commit in &mut commits {
        assert!(pin!(commit).poll(&mut context).is_pending(), "nothing is answered before it is on disk (A2)");
    }
    assert_eq!((store.revision(), store.get(b"k0")), (Revision(0), None), "nothing is seen before it is on disk (A1)");
    disk.release();
    commits.into_iter().map(crate::store::block_on).collect()
}

#[test]
fn those_who_wait_share_one_sync() {
    let disk = FaultyDisk::new();
    let store = open(&disk);
    let before = disk.syncs();
    let answers = eleven_at_once(&disk, &store);
    let revisions: Vec<u64> = answers.into_iter().map(|answer| answer.unwrap().first.0).collect();
    assert_eq!(revisions, (1..=11).collect::<Vec<_>>());
    let alone = {
        let before = disk.syncs();
        store.commit_blocking(put("alone", "")).unwrap();
        disk.syncs() - before
    };
    // The first may be a group of its own, or of any of those after it; then the rest are one more.
    assert!(disk.syncs() - before <= 3 * alone, "{} syncs, {alone} for one commit", disk.syncs() - before);
}

#[test]
fn a_failed_group_fails_all_of_it_and_the_store_goes_on() {
    let disk = FaultyDisk::new();
    let store = open(&disk);
    let mut watch = store.watch("", Revision(0)).unwrap();
    // Every call fails until the disk is looked after.
    (disk.calls()..disk.calls() + 1000).for_each(|call| disk.fault_at(call, Fault::Error));
    for answer in eleven_at_once(&disk, &store) {
        assert!(matches!(answer, Err(CommitError::Io(_))), "{answer:?}");
    }
    assert_eq!((store.revision(), watch.try_next()), (Revision(0), Ok(None)));
    while store.commit_blocking(put("k", "")).is_err() {}
    assert_eq!(watch.try_next().unwrap().unwrap().revision, Revision(1));
}

#[test]
fn concurrent_increments_are_all_counted_and_watched_in_order_a1_a4() {
    const THREADS: u64 = 8;
    const EACH: u64 = 40;
    let store = open(&FaultyDisk::new());
    store.commit_blocking(put("n", "0")).unwrap();
    let mut watch = store.watch("n", Revision(1)).unwrap();
    let start = Barrier::new(THREADS as usize);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                start.wait();
                for _ in 0..EACH {
                    loop {
                        let now = store.get(b"n").unwrap();
                        let next = std::str::from_utf8(&now.value).unwrap().parse::<u64>().unwrap() + 1;
                        let expect = vec![("n".into(), Expect::Unchanged(now.revision))];
                        match store.commit_blocking(Txn { expect, ops: vec![put_op("n", &next.to_string())] }) {
                            Ok(done) => {
                                break assert!(store.revision() >= done.last, "a writer reads its own write (A5)");
                            }
                            Err(CommitError::Expectation { .. }) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
            });
        }
        for n in 1..=THREADS * EACH {
            let event = crate::store::block_on(watch.next()).unwrap();
            assert_eq!((event.value, event.revision), (n.to_string().into(), Revision(n + 1)));
        }
    });
    assert_eq!(store.get(b"n").unwrap().value, (THREADS * EACH).to_string());
}

/// How many of those who come while the first is being written are written together next: that commit fails, and all
/// who fail were in it.
fn taken_together(count: usize, value: &str) -> usize {
    let disk = FaultyDisk::new();
    let store = open(&disk);
    // The first ones make the file larger, too.
    let mut of_one = 0;
    for _ in 0..5 {
        let before = disk.calls();
        store.commit_blocking(put("first", "")).unwrap();
        of_one = disk.calls() - before;
    }
    disk.hold();
    let mut context = Context::from_waker(Waker::noop());
    let mut first = Box::pin(store.commit(put("first", "")));
    assert!(first.as_mut().poll(&mut context).is_pending());
    // The writer has taken it alone.
    while disk.waiting() == 0 {
        thread::yield_now();
    }
    disk.fault_at(disk.calls() + of_one + 1, Fault::Error);
    let mut commits: Vec<_> =
        (0..count).map(|index| Box::pin(store.commit(put(&format!("{index:03}"), value)))).collect();
    for commit in &mut commits {
        assert!(commit.as_mut().poll(&mut context).is_pending());
    }
    disk.release();
    crate::store::block_on(first).unwrap();
    commits.into_iter().map(crate::store::block_on).filter(Result::is_err).count()
}

/// X4: what one commit takes in has bounds, so that nobody waits for more than that.
#[test]
fn x4_a_group_has_bounds() {
    for count in [MAX_GROUP - 1, MAX_GROUP] {
        assert_eq!(taken_together(count, ""), count);
    }
    assert_eq!(taken_together(MAX_GROUP + 10, ""), MAX_GROUP);
    // Values of a quarter of the bound, with their keys: that many bytes are enough.
    let quarter = "v".repeat(MAX_GROUP_BYTES / 4 - 3);
    assert_eq!((taken_together(4, &quarter), taken_together(7, &quarter)), (4, 4));
    assert_eq!(taken_together(7, &quarter[1..]), 5, "one more is taken below it");
}

/// Who waits for a change is woken by the writer's thread.
#[test]
fn a_waiting_watcher_is_woken_by_what_another_thread_commits() {
    struct Woken(mpsc::Sender<()>);
    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            let _ = self.0.send(());
        }
    }
    let store = open(&FaultyDisk::new());
    let mut watch = store.watch("", Revision(0)).unwrap();
    let (woken, wakes) = mpsc::channel();
    let waker = Waker::from(Arc::new(Woken(woken)));
    assert!(watch.poll_next(&mut Context::from_waker(&waker)).is_pending());
    assert!(wakes.try_recv().is_err());
    store.commit_blocking(put("k", "")).unwrap();
    wakes.recv_timeout(Duration::from_secs(60)).expect("woken");
    assert_eq!(watch.try_next().unwrap().unwrap().revision, Revision(1));
}

/// A transaction that changes nothing only asks: it is answered with the revision that it found.
#[test]
fn who_only_asks_is_given_no_revision() {
    let store = open(&FaultyDisk::new());
    store.commit_blocking(put("k", "")).unwrap();
    let ask = |revision| {
        let expect = vec![("k".into(), Expect::Unchanged(Revision(revision)))];
        store.commit_blocking(Txn { expect, ops: vec![] })
    };
    let done = ask(1).unwrap();
    assert_eq!((done.first, done.last, store.revision()), (Revision(1), Revision(1), Revision(1)));
    assert!(matches!(ask(2), Err(CommitError::Expectation { .. })));
}
