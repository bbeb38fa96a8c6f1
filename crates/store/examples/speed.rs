//! How fast the store is on a disk, alone: `speed FOLDER`. Durable writes per second with one writer and with sixteen,
//! then how long an open takes with 10,000 and 100,000 keys of 1 KiB, after a clean end and after none. The folder must
//! not be there; it is taken away again.

use mainstay_store::{Encoded, Op, Options, Store, Txn};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const WINDOW: Duration = Duration::from_secs(3);
const VALUE: usize = 1024;

fn put(key: String) -> Op {
    Op::Put { key: key.into(), value: Encoded::plain(vec![b'x'; VALUE]) }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = PathBuf::from(std::env::args().nth(1).ok_or("usage: speed FOLDER")?);
    std::fs::create_dir(&folder)?;
    let measured = measure(&folder);
    std::fs::remove_dir_all(&folder)?;
    measured
}

fn measure(folder: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let store = Store::open(folder.join("writes"), Options::default())?;
    for writers in [1, 16] {
        let begun = Instant::now();
        let written: usize = std::thread::scope(|scope| {
            let write = |writer: usize| {
                let mut written = 0;
                while begun.elapsed() < WINDOW {
                    let ops = vec![put(format!("/core/configmaps/default/{writer}-{}", written % 100))];
                    if store.commit_blocking(Txn { expect: vec![], ops }).is_err() {
                        break;
                    }
                    written += 1;
                }
                written
            };
            let threads: Vec<_> = (0..writers).map(|writer| scope.spawn(move || write(writer))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or(0)).sum()
        });
        println!("durable writes, {writers:2} writers   {:8.0}/s", written as f64 / begun.elapsed().as_secs_f64());
    }
    drop(store);
    for keys in [10_000, 100_000] {
        let clean = folder.join(keys.to_string());
        let store = Store::open(clean.as_path(), Options::default())?;
        for batch in 0..keys / 1000 {
            let ops = (0..1000).map(|index| put(format!("/core/pods/default/{batch:05}-{index:05}"))).collect();
            store.commit_blocking(Txn { expect: vec![], ops })?;
        }
        // What kill -9 leaves: the file as it is while it is open.
        let killed = folder.join(format!("{keys}-killed"));
        std::fs::create_dir(&killed)?;
        std::fs::copy(clean.join(mainstay_store::FILE), killed.join(mainstay_store::FILE))?;
        drop(store);
        for (how, path) in [("closed", &clean), ("killed", &killed)] {
            let begun = Instant::now();
            let store = Store::open(path.as_path(), Options::default())?;
            println!("open, {keys:6} keys, {how}   {:8.0} ms", begun.elapsed().as_secs_f64() * 1000.0);
            assert_eq!(store.count(b""), keys);
        }
    }
    Ok(())
}
