//! The file under the engine: what is held, what is repeated after a failed sync, what is noted beside the engine.

use crate::checksum::{Sum, Summary, of_bytes, of_row};
use crate::disk::{Access, Disk};
use crate::limits::MAX_UNSYNCED;
use crate::testing::{Fault, FaultyDisk};
use crate::{ClusterId, Revision, Source};
use bytes::Bytes;
use redb::StorageBackend as _;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A disk with these bytes, and what opens it.
fn opened(bytes: Vec<u8>) -> (FaultyDisk, Disk) {
    let faulty = FaultyDisk::with(bytes);
    let disk = Disk::open(Source::backend(faulty.clone()), Access::Make).unwrap();
    (faulty, disk)
}

fn all(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(disk.len().unwrap()).unwrap()];
    disk.read(0, &mut bytes).unwrap();
    bytes
}

fn next(state: &mut u64, below: usize) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    usize::try_from(*state >> 33).unwrap() % below
}

/// While a file is opened it is only read: what was asked for is seen, wherever it is looked at, and nothing of it is
/// on the disk; then it is done, in order.
#[test]
fn a10_what_is_held_reads_as_if_it_were_done_and_is_done_only_then() {
    for seed in 0..60 {
        let mut state = seed;
        let begin: Vec<u8> = (0..next(&mut state, 40)).map(|at| at as u8 + 100).collect();
        let (faulty, disk) = opened(begin.clone());
        let mut model = begin.clone();
        for step in 0..12 {
            if next(&mut state, 4) == 0 {
                let length = next(&mut state, 60);
                disk.set_len(length as u64).unwrap();
                model.resize(length, 0);
            } else {
                let (at, length) = (next(&mut state, 50), next(&mut state, 12));
                disk.write(at as u64, &vec![step + 1; length]).unwrap();
                model.resize(model.len().max(at + length), 0);
                model[at..at + length].fill(step + 1);
            }
            assert_eq!(all(&disk), model, "seed {seed}, step {step}");
            let from = next(&mut state, model.len() + 1);
            let mut part = vec![9; next(&mut state, model.len() - from + 1)];
            disk.read(from as u64, &mut part).unwrap();
            assert_eq!(part, model[from..from + part.len()], "seed {seed}, step {step}, from {from}");
            let beyond = disk.read(from as u64, &mut vec![0; model.len() - from + 1]);
            assert_eq!(beyond.map_err(|error| error.kind()), Err(ErrorKind::UnexpectedEof));
        }
        disk.sync_data().unwrap();
        assert_eq!((faulty.bytes(), faulty.calls()), (begin, 0), "nothing is done yet");
        disk.release().unwrap();
        assert_eq!((faulty.bytes(), all(&disk), faulty.syncs()), (model.clone(), model, 1), "seed {seed}");
    }
}

/// A2: what a failed sync may have lost is written again before anybody believes what is read.
#[test]
fn a2_what_a_failed_sync_left_is_written_again() {
    let (faulty, disk) = opened(vec![0; 8]);
    disk.release().unwrap();
    disk.write(0, b"kept").unwrap();
    disk.sync_data().unwrap();
    let calls = faulty.calls();
    disk.settle().unwrap();
    assert_eq!(faulty.calls(), calls, "nothing failed");
    // Lost by the disk: the first sync fails, and a later one that is done says nothing of what came before.
    disk.write(0, b"lost").unwrap();
    faulty.fault_at(faulty.calls(), Fault::Error);
    assert!(disk.sync_data().is_err());
    disk.write(4, b"late").unwrap();
    disk.sync_data().unwrap();
    assert_eq!(faulty.reboot(1).bytes(), b"keptlate");
    let (faulty, disk) = opened(b"kept----".to_vec());
    disk.release().unwrap();
    disk.write(0, b"lost").unwrap();
    faulty.fault_at(faulty.calls(), Fault::Error);
    assert!(disk.sync_data().is_err());
    disk.write(4, b"late").unwrap();
    disk.sync_data().unwrap();
    disk.settle().unwrap();
    let calls = faulty.calls();
    disk.settle().unwrap();
    assert_eq!(faulty.calls(), calls, "once");
    for seed in 0..16 {
        assert_eq!(faulty.reboot(seed).bytes(), b"lostlate", "{seed}");
    }
    // What was cut off does not come back.
    let (faulty, disk) = opened(Vec::new());
    disk.release().unwrap();
    disk.write(0, &[1; 8]).unwrap();
    disk.write(8, &[2; 8]).unwrap();
    disk.set_len(4).unwrap();
    disk.write(4, &[3]).unwrap();
    faulty.fault_at(faulty.calls(), Fault::Error);
    assert!(disk.sync_data().is_err());
    disk.settle().unwrap();
    assert_eq!(faulty.reboot(1).bytes(), [1, 1, 1, 1, 3]);
}

/// A disk that keeps nothing, and whose syncs fail but for those that are wished for.
#[derive(Debug, Default)]
struct Nowhere {
    syncs: AtomicBool,
    written: AtomicUsize,
}

impl redb::StorageBackend for Nowhere {
    fn len(&self) -> io::Result<u64> {
        Ok(0)
    }

    fn read(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.syncs.load(Ordering::Relaxed) { Ok(()) } else { Err(io::Error::other("no")) }
    }

    fn write(&self, _: u64, data: &[u8]) -> io::Result<()> {
        self.written.fetch_add(data.len(), Ordering::Relaxed);
        Ok(())
    }
}

/// What a good sync has made durable is not kept any longer.
#[test]
fn x4_nothing_is_kept_of_what_was_synced() {
    let nowhere = Arc::new(Nowhere::default());
    let disk = Disk::open(Source::Backend(nowhere.clone()), Access::Make).unwrap();
    disk.release().unwrap();
    nowhere.syncs.store(true, Ordering::Relaxed);
    for _ in 0..3 {
        disk.write(0, &vec![1; MAX_UNSYNCED / 2]).unwrap();
        disk.sync_data().unwrap();
    }
    disk.write(0, b"late").unwrap();
    nowhere.syncs.store(false, Ordering::Relaxed);
    assert!(disk.sync_data().is_err());
    nowhere.syncs.store(true, Ordering::Relaxed);
    let before = nowhere.written.load(Ordering::Relaxed);
    disk.settle().unwrap();
    assert_eq!(nowhere.written.load(Ordering::Relaxed) - before, 4);
}

/// A2: whoever opens a file notes beside the newest mark, whichever slot that is in.
#[test]
fn a2_marks_follow_each_other_over_any_number_of_openings() {
    let mut bytes = vec![0; 4096];
    for revision in 1..6 {
        let (_, disk) = opened(bytes);
        disk.release().unwrap();
        let before = disk.marked().unwrap();
        assert_eq!(before, Some(Revision(revision - 1)).filter(|before| before.0 > 0));
        disk.mark(Revision(revision));
        bytes = all(&disk);
    }
}

/// A2, X4: so much is kept for being written again, and of more nobody guesses what became.
#[test]
fn a2_x4_what_is_kept_for_a_failed_sync_has_a_bound() {
    for (more, settled) in [(0, true), (1, false)] {
        let nowhere = Arc::new(Nowhere::default());
        let disk = Disk::open(Source::Backend(nowhere.clone()), Access::Make).unwrap();
        disk.release().unwrap();
        disk.write(0, &vec![1; MAX_UNSYNCED - 1]).unwrap();
        disk.write(0, &vec![1; 1 + more]).unwrap();
        assert!(disk.sync_data().is_err());
        nowhere.syncs.store(true, Ordering::Relaxed);
        assert_eq!(disk.settle().is_ok(), settled);
        let again = if settled { MAX_UNSYNCED } else { 0 };
        assert_eq!(nowhere.written.load(Ordering::Relaxed), MAX_UNSYNCED + more + again);
    }
}

/// A2: the acknowledged revision is noted in two slots in turn, so that a torn one leaves the other.
#[test]
fn a2_the_newest_whole_mark_counts() {
    let slots = [1024, 2048];
    let (_, disk) = opened(vec![0; 4096]);
    disk.release().unwrap();
    assert_eq!(disk.marked().unwrap(), None);
    disk.mark(Revision(5));
    assert_eq!(disk.marked().unwrap(), Some(Revision(5)));
    disk.mark(Revision(6));
    disk.mark(Revision(7));
    assert_eq!(disk.marked().unwrap(), Some(Revision(7)));
    let bytes = all(&disk);
    let is_marked = slots.map(|at| bytes[at..at + 24].iter().any(|byte| *byte != 0));
    assert_eq!((is_marked, bytes.iter().filter(|byte| **byte != 0).count() <= 48), ([true, true], true));
    // Whichever is damaged, the other one counts; and who opens the file next does not write over the newest.
    for slot in slots {
        let other = slots.into_iter().find(|other| *other != slot).unwrap();
        let left = Some(Revision(u64::from(bytes[other + 8])));
        for at in 0..24 {
            let mut damaged = bytes.clone();
            damaged[slot + at] ^= 1;
            assert_eq!(opened(damaged).1.marked().unwrap(), left, "byte {at} of {slot}");
        }
    }
    let (_, next) = opened(bytes);
    next.release().unwrap();
    assert_eq!(next.marked().unwrap(), Some(Revision(7)));
    next.mark(Revision(8));
    let mut torn = all(&next);
    let newest = slots.into_iter().find(|at| torn[at + 8] == 8).unwrap();
    torn[newest] = 0;
    assert_eq!(opened(torn).1.marked().unwrap(), Some(Revision(7)), "the one before it was left alone");
    // A file that ends within a slot has no such mark.
    for length in [0, 1024, 1047, 1048, 2071] {
        let (_, short) = opened(all(&next)[..length].to_vec());
        assert_eq!(short.marked().unwrap().is_some(), length >= 1048, "{length}");
    }
}

/// A file whose making was cut off is begun anew; any other is left as it is.
#[test]
fn a10_only_a_file_that_was_never_made_is_emptied() {
    const HEADER: usize = 320;
    let with = |length: usize, at: Option<usize>| {
        let mut bytes = vec![0; length];
        at.into_iter().for_each(|at| bytes[at] = 1);
        bytes
    };
    let large = (3 << 20) + 5;
    for (bytes, emptied) in [
        (with(0, None), false),
        (with(HEADER - 1, None), false),
        (with(HEADER, None), true),
        (with(HEADER, Some(0)), false),
        (with(HEADER, Some(7)), false),
        (with(HEADER, Some(8)), true),
        (with(HEADER + 1, Some(HEADER)), false),
        (with(HEADER + 1, Some(HEADER - 1)), true),
        (with(large, None), true),
        (with(large, Some(large - 1)), false),
        (with(large, Some((1 << 20) + HEADER)), false),
        (with(large, Some((1 << 20) + HEADER - 1)), false),
    ] {
        let (faulty, disk) = opened(bytes.clone());
        assert_eq!(disk.len().unwrap(), if emptied { 0 } else { bytes.len() as u64 }, "{}", bytes.len());
        assert_eq!(faulty.bytes().len(), bytes.len(), "nothing is done before it is released");
    }
}

/// A10: whatever of a row, or of what the file says of itself, is another one has another checksum.
#[test]
fn a10_checksums_are_of_everything() {
    let rows = [
        of_row(b"ab", Revision(1), b"c"),
        of_row(b"a", Revision(1), b"bc"),
        of_row(b"ab", Revision(2), b"c"),
        of_row(b"ab", Revision(1), b"d"),
        of_row(b"", Revision(1), b"abc"),
        of_row(b"ab", Revision(1), b""),
        of_row(b"ba", Revision(1), b"c"),
        // A key that looks like another one with its revision.
        of_row(b"a", Revision(1), b"\x02\0\0\0\0\0\0\0x"),
        of_row(b"a\x01\0\0\0\0\0\0\0", Revision(2), b"x"),
    ];
    assert_eq!(std::collections::BTreeSet::from(rows).len(), rows.len(), "{rows:?}");
    let base = Summary { revision: Revision(5), sum: Sum { rows: 3, digest: 77 }, cluster: ClusterId::new(9) };
    let seals = [
        base,
        Summary { revision: Revision(6), ..base },
        Summary { sum: Sum { rows: 4, digest: 77 }, ..base },
        Summary { sum: Sum { rows: 3, digest: 78 }, ..base },
        Summary { sum: Sum { rows: 77, digest: 3 }, ..base },
        Summary { cluster: None, ..base },
        Summary { cluster: ClusterId::new(9 << 64), ..base },
    ];
    let seals = seals.map(|summary| summary.seal());
    assert_eq!(std::collections::BTreeSet::from(seals).len(), seals.len(), "{seals:?}");
    assert_ne!(of_bytes(b"a"), of_bytes(b"b"));
    // What is added and taken away again is not there, in whatever order.
    let row = |key: &'static str| (Bytes::from_static(key.as_bytes()), Revision(1), Bytes::from_static(b"v"));
    let (a, b) = (row("a"), row("b"));
    let of = |rows: &[&(Bytes, Revision, Bytes)]| Sum::of(rows.iter().map(|(key, at, value)| (key, *at, value)));
    let mut sum = of(&[&a, &b]);
    assert_eq!((sum.rows, sum), (2, of(&[&b, &a])));
    sum.remove(of_row(b"a", Revision(1), b"v"));
    assert_eq!(sum, of(&[&b]));
    sum.remove(of_row(b"b", Revision(1), b"v"));
    assert_eq!(sum, Sum::default());
}

/// Bytes that this process had the disks read.
fn read_from_disks() -> u64 {
    let counted = std::fs::read_to_string("/proc/self/io").unwrap();
    let line = counted.lines().find_map(|line| line.strip_prefix("read_bytes: ")).unwrap();
    line.parse().unwrap()
}

/// After a failed fsync the kernel's cache has what the disk has not; who opens the file next, after a kill, sees the
/// disk.
#[test]
fn a2_a_file_is_read_from_the_disk_when_it_is_opened_not_from_the_kernels_cache() {
    const LENGTH: usize = 8 << 20;
    // Beside the test's program: the folder for temporary files may be in memory.
    let beside = std::env::current_exe().unwrap();
    let folder = tempfile::tempdir_in(beside.parent().unwrap()).unwrap();
    let path = folder.path().join(crate::disk::FILE);
    std::fs::write(&path, vec![7; LENGTH]).unwrap();
    std::fs::File::open(&path).unwrap().sync_all().unwrap();
    let before = read_from_disks();
    assert_eq!(std::fs::read(&path).unwrap().len(), LENGTH);
    assert!(read_from_disks() - before < LENGTH as u64 / 2, "it is in the cache");
    let before = read_from_disks();
    let disk = Disk::open(Source::Folder(folder.path().to_owned()), Access::Existing).unwrap();
    assert_eq!(all(&disk), vec![7; LENGTH]);
    assert!(read_from_disks() - before >= LENGTH as u64, "{} bytes came from the disk", read_from_disks() - before);
}
