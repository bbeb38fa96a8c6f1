//! A file that has lost what was acknowledged, while the store is open.

use super::put;
use crate::testing::{Fault, FaultyDisk};
use crate::{Options, Source, StorageBackend, Store};
use std::io;
use std::sync::{Arc, Mutex};

/// A disk that, when a call fails, is another one from then on.
#[derive(Clone, Debug)]
struct Exchanged(Arc<Mutex<(FaultyDisk, Option<FaultyDisk>)>>);

impl Exchanged {
    fn now(&self) -> FaultyDisk {
        self.0.lock().unwrap().0.clone()
    }

    fn after<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if result.is_err() {
            let mut disks = self.0.lock().unwrap();
            if let Some(other) = disks.1.take() {
                disks.0 = other;
            }
        }
        result
    }
}

impl StorageBackend for Exchanged {
    fn len(&self) -> io::Result<u64> {
        self.now().len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.now().read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.after(self.now().set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.after(self.now().sync_data())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.after(self.now().write(offset, data))
    }
}

fn value(store: &Store) -> String {
    let entries = store.range(b"", None, usize::MAX, None).unwrap().entries;
    String::from_utf8(entries[0].value.to_vec()).unwrap()
}

/// A2, A10: an older file in the place of the store's is not written over, and memory stays what was acknowledged.
#[test]
fn a2_a10_a_file_that_fell_back_is_left_as_it_is() {
    let first = FaultyDisk::new();
    let disk = Exchanged(Arc::new(Mutex::new((first.clone(), None))));
    let store = Store::open(Source::backend(disk.clone()), Options::inline()).unwrap();
    store.commit_blocking(put("a", "one")).unwrap();
    let older = FaultyDisk::with(first.bytes());
    store.commit_blocking(put("a", "two")).unwrap();
    disk.0.lock().unwrap().1 = Some(older.clone());
    first.fault_at(first.calls(), Fault::Error);
    for _ in 0..3 {
        assert!(store.commit_blocking(put("a", "three")).is_err());
        assert_eq!(value(&store), "two");
    }
    drop(store);
    let found = Store::open(Source::backend(FaultyDisk::with(older.bytes())), Options::inline()).unwrap();
    assert_eq!(value(&found), "one");
}
