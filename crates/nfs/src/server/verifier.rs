//! What WRITE and COMMIT answer with, by which clients know whether what they wrote may be lost: the same until the
//! server ends, or until an fsync fails.
//!
//! The kernel says of data that it could not write only once, to whoever asks first, and then takes it for clean. So it
//! counts for everybody whose call heard of it, and it is counted before another fsync of the same file can succeed
//! (V4).

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::stat::FileStat;

/// Device and inode of a file.
type File = (u64, u64);

/// The server's verifier.
pub struct Verifier {
    /// A number of this start of the server. A process that ends leaves in the kernel's memory what was not committed,
    /// but what it knew of fsyncs that failed is gone: so clients send their data again.
    start: u32,
    failures: AtomicU32,
    /// Files that are being synced.
    syncing: Mutex<HashMap<File, Arc<Mutex<()>>>>,
}

impl Verifier {
    pub fn new() -> Self {
        let mut bytes = [0; 4];
        let random = ring::rand::SystemRandom::new();
        let start = match ring::rand::SecureRandom::fill(&random, &mut bytes) {
            Ok(()) => u32::from_be_bytes(bytes),
            Err(_) => std::process::id(),
        };
        Self { start, failures: AtomicU32::new(0), syncing: Mutex::default() }
    }

    /// As it is now. For a WRITE: as it was before anything was written. For a COMMIT: as it is after the fsync.
    pub fn now(&self) -> u64 {
        u64::from(self.start) << 32 | u64::from(self.failures.load(Ordering::SeqCst))
    }

    fn syncing(&self) -> MutexGuard<'_, HashMap<File, Arc<Mutex<()>>>> {
        self.syncing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Syncs a file, of a regular one alone; a folder has no data that could be lost, and many of them share a commit
    /// of the file system's journal.
    ///
    /// # Errors
    /// What `sync` says; it is counted.
    pub fn sync(&self, stat: &FileStat, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let counted = || {
            let done = sync();
            if done.is_err() {
                self.failures.fetch_add(1, Ordering::SeqCst);
            }
            done
        };
        if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
            return counted();
        }
        let key = (stat.st_dev, stat.st_ino);
        let file = self.syncing().entry(key).or_default().clone();
        let done = {
            let _alone = file.lock().unwrap_or_else(PoisonError::into_inner);
            counted()
        };
        let mut syncing = self.syncing();
        // The map's own and this one: nobody else waits.
        if Arc::strong_count(&file) == 2 {
            syncing.remove(&key);
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v4_a_failed_fsync_is_counted_before_another_of_the_file_succeeds() {
        let folder = tempfile::tempdir().unwrap();
        let stat_of = |path: &std::path::Path| nix::sys::stat::stat(path).unwrap();
        std::fs::write(folder.path().join("file"), "").unwrap();
        let (file, dir) = (stat_of(&folder.path().join("file")), stat_of(folder.path()));
        let verifier = Verifier::new();
        let before = verifier.now();
        std::thread::scope(|scope| {
            let mut later = None;
            let failed = verifier.sync(&file, || {
                // The kernel has told of the loss; before this is counted somebody else commits, and hears of nothing.
                later = Some(scope.spawn(|| verifier.sync(&file, || Ok(())).map(|()| verifier.now())));
                while !verifier.syncing().values().any(|file| Arc::strong_count(file) > 2) {
                    std::thread::yield_now();
                }
                Err(io::Error::from_raw_os_error(libc::EIO))
            });
            assert_eq!(failed.unwrap_err().raw_os_error(), Some(libc::EIO));
            assert_ne!(later.unwrap().join().unwrap().unwrap(), before);
        });
        assert!(verifier.syncing().is_empty());
        let after = verifier.now();
        verifier.sync(&dir, || Err(io::ErrorKind::Other.into())).unwrap_err();
        assert_ne!(verifier.now(), after);
    }
}
