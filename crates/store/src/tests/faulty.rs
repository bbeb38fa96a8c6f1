//! The disk that lies, itself: a fault that it does not show is one that nothing here was tested against.

use crate::StorageBackend;
use crate::testing::{Fault, FaultyDisk};
use std::io::ErrorKind;

const SECTOR: usize = 512;

fn read(disk: &FaultyDisk, offset: u64, length: usize) -> std::io::Result<Vec<u8>> {
    let mut out = vec![0xEE; length];
    disk.read(offset, &mut out).map(|()| out)
}

/// A disk with `old` on it, durably, over which `new` was written without a sync.
fn overwritten(old: &[u8], new: &[u8]) -> FaultyDisk {
    let disk = FaultyDisk::with(old.to_vec());
    disk.write(0, new).unwrap();
    disk
}

#[test]
fn what_is_read_is_what_was_written() {
    let disk = FaultyDisk::new();
    assert_eq!(disk.len().unwrap(), 0);
    disk.write(4, b"later").unwrap();
    disk.write(6, b"T").unwrap();
    assert_eq!(disk.bytes(), b"\0\0\0\0laTer");
    assert_eq!(disk.bytes(), read(&disk, 0, 9).unwrap());
    assert_eq!(read(&disk, 4, 3).unwrap(), b"laT");
    // A write within leaves the length.
    disk.write(0, b"soon").unwrap();
    assert_eq!((disk.len().unwrap(), disk.length()), (9, 9));
    disk.set_len(6).unwrap();
    assert_eq!(disk.bytes(), b"soonla");
    disk.set_len(8).unwrap();
    assert_eq!(disk.bytes(), b"soonla\0\0");
    for (offset, length) in [(0, 9), (8, 1), (9, 0)] {
        assert_eq!(read(&disk, offset, length).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }
    assert_eq!((disk.calls(), disk.syncs()), (5, 0));
    disk.sync_data().unwrap();
    assert_eq!((disk.calls(), disk.syncs()), (6, 1));
}

#[test]
fn what_was_synced_is_there_after_the_power_went_and_the_rest_in_part() {
    let (old, new) = (vec![b'o'; 8 * SECTOR], vec![b'n'; 8 * SECTOR]);
    let mut kept = [0; 8];
    for seed in 0..64 {
        let found = overwritten(&old, &new).reboot(seed).bytes();
        for (index, sector) in found.chunks(SECTOR).enumerate() {
            assert!(sector.iter().all(|byte| *byte == sector[0]), "a sector is written whole");
            kept[index] += usize::from(sector[0] == b'n');
        }
        let synced = overwritten(&old, &new);
        synced.sync_data().unwrap();
        assert_eq!(synced.reboot(seed).bytes(), new);
        let unsynced = overwritten(&old, &new);
        assert_eq!(unsynced.reboot(seed).bytes(), found, "one seed gives one disk");
    }
    assert!(kept.iter().all(|kept| (12..=52).contains(kept)), "{kept:?}");
}

/// A length may be lost as a write may, and comes in its turn.
#[test]
fn lengths_are_synced_and_lost_too() {
    let mut lengths = std::collections::BTreeSet::new();
    for seed in 0..64 {
        let disk = FaultyDisk::with(vec![1; 2 * SECTOR]);
        disk.set_len(3).unwrap();
        lengths.insert(disk.reboot(seed).length());
        let disk = FaultyDisk::with(vec![1; 2 * SECTOR]);
        disk.set_len(3).unwrap();
        disk.write(3, &[2]).unwrap();
        disk.set_len(5).unwrap();
        disk.sync_data().unwrap();
        assert_eq!(disk.reboot(seed).bytes(), [1, 1, 1, 2, 0]);
    }
    assert_eq!(lengths.into_iter().collect::<Vec<_>>(), [3, 2 * SECTOR]);
}

#[test]
fn a_failed_sync_forgets_and_still_shows_what_was_written() {
    for fault in [Fault::Error, Fault::Torn] {
        let disk = overwritten(b"old", b"new");
        disk.fault_at(1, fault);
        assert_eq!(disk.sync_data().unwrap_err().to_string(), "injected");
        assert_eq!((disk.bytes(), disk.syncs()), (b"new".to_vec(), 0));
        // The next one syncs nothing of it.
        disk.sync_data().unwrap();
        assert_eq!(disk.reboot(3).bytes(), b"old");
    }
    let disk = overwritten(b"old", b"new");
    disk.fault_at(1, Fault::Full);
    disk.sync_data().unwrap();
    assert_eq!(disk.reboot(3).bytes(), b"new");
}

/// A call, what it answers (an error's words), and what reads show then.
#[test]
fn each_fault_is_met_once_by_the_call_that_it_is_for() {
    let injected = Some("injected".to_owned());
    let no_space = Some(std::io::Error::from(ErrorKind::StorageFull).to_string());
    let table = [
        (Fault::Error, &injected, "abcd", &injected, 4),
        (Fault::Torn, &injected, "12cd", &injected, 4),
        (Fault::Full, &no_space, "abcd", &no_space, 4),
    ];
    for (fault, wrote, shown, set, length) in table {
        let disk = FaultyDisk::with(b"abcd".to_vec());
        [0, 2].into_iter().for_each(|call| disk.fault_at(call, fault));
        assert_eq!(disk.write(0, b"1234").err().map(|error| error.to_string()), *wrote, "{fault:?}");
        assert_eq!(disk.bytes(), shown.as_bytes(), "{fault:?}");
        disk.write(0, b"abcd").unwrap();
        assert_eq!(disk.set_len(2).err().map(|error| error.to_string()), *set, "{fault:?}");
        assert_eq!(disk.length(), length);
        disk.set_len(2).unwrap();
        assert_eq!((disk.length(), disk.calls()), (2, 4));
        disk.sync_data().unwrap();
        assert_eq!(disk.reboot(0).bytes(), b"ab");
    }
}

/// What a torn write did may reach the disk like any other.
#[test]
fn a_torn_write_may_stay() {
    let mut found = std::collections::BTreeSet::new();
    for seed in 0..16 {
        let disk = FaultyDisk::with(b"abcd".to_vec());
        disk.fault_at(0, Fault::Torn);
        disk.write(0, b"1234").unwrap_err();
        found.insert(disk.reboot(seed).bytes());
    }
    assert_eq!(found.into_iter().collect::<Vec<_>>(), [b"12cd".to_vec(), b"abcd".to_vec()]);
}

#[test]
fn a_disk_without_power_answers_nothing() {
    let off = "the power is off";
    let planned = FaultyDisk::with(b"abcd".to_vec());
    planned.fault_at(0, Fault::PowerCut);
    assert_eq!(planned.write(0, b"1").unwrap_err().to_string(), off);
    let cut = FaultyDisk::with(b"abcd".to_vec());
    cut.cut_power();
    let left = FaultyDisk::with(b"abcd".to_vec());
    let found = left.reboot(0);
    assert_eq!(read(&found, 0, 4).unwrap(), b"abcd");
    for disk in [planned, cut, left] {
        let answers = [disk.len().map(|_| ()), read(&disk, 0, 1).map(|_| ()), disk.sync_data()];
        let answers = answers.into_iter().chain([disk.write(0, b"1"), disk.set_len(1)]);
        assert!(answers.into_iter().all(|answer| answer.is_err_and(|error| error.to_string() == off)));
        assert_eq!(disk.bytes(), b"abcd");
    }
}

#[test]
fn a_full_disk_takes_nothing_and_gives_back() {
    let disk = FaultyDisk::with(b"abcd".to_vec());
    disk.set_full(true);
    assert_eq!(disk.write(0, b"1").unwrap_err().kind(), ErrorKind::StorageFull);
    assert_eq!(disk.set_len(5).unwrap_err().kind(), ErrorKind::StorageFull);
    disk.set_len(4).unwrap();
    disk.set_len(3).unwrap();
    disk.sync_data().unwrap();
    assert_eq!(disk.bytes(), b"abc");
    disk.set_full(false);
    disk.write(3, b"1").unwrap();
    assert_eq!(disk.bytes(), b"abc1");
}

#[test]
fn a_held_disk_lets_changes_wait_and_reads_go_on() {
    let disk = FaultyDisk::with(b"abcd".to_vec());
    disk.hold();
    let (done, changes) = std::sync::mpsc::channel();
    let threads: Vec<_> = [0, 1, 2]
        .into_iter()
        .map(|call| {
            let (disk, done) = (disk.clone(), done.clone());
            std::thread::spawn(move || {
                let answer = match call {
                    0 => disk.write(0, b"1"),
                    1 => disk.set_len(6),
                    _ => disk.sync_data(),
                };
                done.send(()).unwrap();
                answer.unwrap();
            })
        })
        .collect();
    assert!(changes.recv_timeout(std::time::Duration::from_millis(50)).is_err());
    assert_eq!((read(&disk, 0, 4).unwrap(), disk.calls()), (b"abcd".to_vec(), 0));
    disk.release();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!((disk.bytes(), disk.calls()), (b"1bcd\0\0".to_vec(), 3));
}
