//! One fault at every single call to the disk, then a power cut (A1, A2, A3, A9).

use super::{delete_op, put_op};
use crate::testing::{Fault, FaultyDisk};
use crate::{CommitError, Options, Revision, Source, Store, Txn};
use bytes::Bytes;
use std::collections::BTreeMap;

type Model = (Revision, BTreeMap<Bytes, Bytes>);

/// Transactions that grow, replace, remove, and are large enough to split and to free pages. The second splits a page
/// of small values: one half then holds none of its keys, so undoing it does not write that half again.
fn workload() -> Vec<Txn> {
    let big = "x".repeat(3000);
    let several = |count: usize, value: &str| (0..count).map(|i| put_op(&format!("k{i:02}"), value)).collect();
    let removed = (0..4).map(|i| delete_op(&format!("k{i:02}"))).collect();
    let ops: [Vec<_>; 6] = [
        several(60, &"s".repeat(40)),
        vec![put_op("k58+", &big[..1500])],
        several(8, &big),
        removed,
        several(12, &big),
        vec![delete_op("k05")],
    ];
    ops.into_iter().map(|ops| Txn { expect: vec![], ops }).collect()
}

fn content(store: &Store) -> Model {
    let page = store.range(b"", None, usize::MAX, None).unwrap();
    (page.revision, page.entries.into_iter().map(|entry| (entry.key, entry.value)).collect())
}

fn after(model: &Model, txn: &Txn) -> Model {
    let mut next = model.clone();
    for op in &txn.ops {
        next.0 = next.0.next();
        match op {
            crate::Op::Put { key, value } => next.1.insert(key.clone(), value.bytes.clone()),
            crate::Op::Delete { key, .. } => next.1.remove(key),
        };
    }
    next
}

fn open(disk: &FaultyDisk) -> Result<Store, crate::OpenError> {
    Store::open(Source::backend(disk.clone()), Options::inline())
}

/// Runs the workload with one fault; returns how many calls it took.
fn run(call: u64, fault: Fault, seed: u64, quick_repair: bool) -> u64 {
    let mut disk = FaultyDisk::new();
    disk.fault_at(call, fault);
    let options = Options { quick_repair, ..Options::inline() };
    let store = Store::open(Source::backend(disk.clone()), options).unwrap_or_else(|_| {
        // Whoever cannot open starts anew, after a reboot.
        disk = disk.reboot(seed);
        open(&disk).unwrap()
    });
    let mut acknowledged = Model::default();
    // What a reboot may show as well: the outcome of a commit that failed while the power went.
    let mut unknown = None;
    for txn in workload() {
        // A transaction that depended on one that failed fails as well: it deletes what is not there.
        match store.commit_blocking(txn.clone()) {
            Ok(_) => acknowledged = after(&acknowledged, &txn),
            Err(CommitError::Expectation { .. }) => {}
            Err(error) => {
                assert!(fault != Fault::Full || error == CommitError::Full, "{error}");
                unknown = (fault == Fault::PowerCut).then(|| after(&acknowledged, &txn)).or(unknown);
            }
        }
        assert_eq!(content(&store), acknowledged, "{fault:?} at {call}");
        if unknown.is_some() {
            break;
        }
    }
    if fault != Fault::PowerCut {
        let last = Txn { expect: vec![], ops: vec![put_op("healed", "")] };
        // The one fault may be met here; the next try then has none left to meet.
        let healed = store.commit_blocking(last.clone()).or_else(|_| store.commit_blocking(last.clone()));
        assert!(healed.is_ok(), "{fault:?} at {call}: {healed:?}");
        acknowledged = after(&acknowledged, &last);
    }
    let calls = disk.calls();
    let reopened = open(&disk.reboot(seed)).unwrap_or_else(|error| panic!("{fault:?} at {call}, seed {seed}: {error}"));
    let found = content(&reopened);
    assert!(found == acknowledged || unknown == Some(found), "{fault:?} at {call}, seed {seed}");
    calls
}

fn every_call(quick_repair: bool) {
    let calls = run(u64::MAX, Fault::Error, 0, quick_repair);
    assert!(calls > 30, "the workload touches the disk {calls} times only");
    for call in 0..calls {
        for fault in [Fault::Error, Fault::Torn, Fault::Full, Fault::PowerCut] {
            // Only a power cut leaves something to chance: whatever else went wrong is mended and synced by then.
            for seed in 0..if fault == Fault::PowerCut { 6 } else { 1 } {
                run(call, fault, seed, quick_repair);
            }
        }
    }
}

#[test]
fn no_fault_at_any_call_loses_or_invents_a_write_a1_a2_a9() {
    every_call(false);
}

#[test]
fn nor_with_quick_repair() {
    every_call(true);
}

#[test]
fn a_full_disk_refuses_writes_serves_reads_and_heals() {
    let disk = FaultyDisk::new();
    let store = open(&disk).unwrap();
    let [first, second, ..] = &workload()[..] else { panic!() };
    store.commit_blocking(first.clone()).unwrap();
    let before = content(&store);
    disk.set_full(true);
    for _ in 0..3 {
        assert_eq!(store.commit_blocking(second.clone()), Err(CommitError::Full));
        assert_eq!(content(&store), before);
    }
    disk.set_full(false);
    store.commit_blocking(second.clone()).unwrap();
    assert_eq!(content(&open(&disk.reboot(1)).unwrap()), after(&before, second));
}

#[test]
fn steady_overwriting_keeps_the_file_bounded() {
    let disk = FaultyDisk::new();
    let store = open(&disk).unwrap();
    let overwrite = |rounds: usize| {
        for round in 0..rounds {
            let ops = (0..8)
                .map(|i| put_op(&format!("k{}", (round * 7 + i * 13) % 64), &"x".repeat(500 + round % 4000)))
                .collect();
            store.commit_blocking(Txn { expect: vec![], ops }).unwrap();
        }
        disk.length()
    };
    let settled = overwrite(500);
    let later = overwrite(2000);
    assert!(later <= settled, "{settled} bytes became {later}");
    let written = 2000 * 8 * 500;
    assert!(later < written / 2, "{later} bytes would be history");
}

/// Damage that no crash makes (a bad disk, a wrong file): an error that says so, or everything as it was written;
/// never a panic, a part of a state, an older state, an empty store; and the file stays as it was found.
#[test]
fn a_damaged_file_is_refused_not_misread_a10() {
    let disk = FaultyDisk::new();
    let store = open(&disk).unwrap();
    for txn in workload() {
        store.commit_blocking(txn).unwrap();
    }
    let written = content(&store);
    let whole = disk.bytes();
    let mut refused = 0;
    let mut check = |bytes: Vec<u8>, what: &str| {
        let disk = FaultyDisk::with(bytes.clone());
        match open(&disk) {
            Ok(store) => assert_eq!(content(&store), written, "{what}"),
            Err(_) => {
                refused += 1;
                assert!(disk.bytes() == bytes, "{what}: a damaged file was changed");
            }
        }
    };
    for length in [1, 8, 9, 64, 319, 320, 4096, 4097, 20_000, whole.len() / 2, whole.len() - 1] {
        check(whole[..length].to_vec(), &format!("cut to {length}"));
    }
    for at in (0..whole.len().min(200_000)).step_by(97).chain(0..320) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        check(bytes, &format!("byte {at} changed"));
    }
    let mut bytes = whole.clone();
    bytes[..512].fill(0);
    check(bytes, "the first sector is gone");
    assert!(refused > 10, "{refused}");
    let garbage = open(&FaultyDisk::with(b"not a store at all".to_vec())).unwrap_err();
    assert!(matches!(garbage, crate::OpenError::Damaged { .. }), "{garbage}");
}
