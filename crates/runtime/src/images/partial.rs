//! Layers on their way from a registry. What there is of one that broke off stays for a while, and the next pull goes
//! on there: it counts for nothing before the whole is of the digest that the manifest says.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use super::archive::digest_of;
use super::store::{Workspace, flock};
use super::{ImageError, ImageStore};

/// Disks may be slow, and the runtime's own threads renew leases: pulls write on threads of their own (V11), so many at
/// a time. One is taken for what has come, never while a registry is waited for.
static WRITES: Semaphore = Semaphore::const_new(8);
/// Unpacking takes its time: the same apart, so that it delays no download.
static UNPACKS: Semaphore = Semaphore::const_new(8);
/// So much (bytes) is written at once.
const BATCH: usize = 256 << 10;
/// Bytes of all that broke off together: beyond them the oldest goes.
const MAX_KEPT: u64 = 8 << 30;
/// For how long what broke off is kept.
const MAX_AGE: Duration = Duration::from_hours(24);

/// Short work of a pull on the disk.
pub async fn writing<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    on(&WRITES, work).await
}

/// The same for what takes its time.
pub async fn unpacking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    on(&UNPACKS, work).await
}

async fn on<T: Send + 'static>(
    threads: &'static Semaphore,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let turn = threads.acquire().await.map_err(|error| error.to_string())?;
    let done = tokio::task::spawn_blocking(move || {
        // Given back when the work returns, also when nobody waits for it any more.
        let _turn = turn;
        work()
    });
    done.await.map_err(|error| error.to_string())
}

/// A layer's bytes from the first one on, as far as they came. Every call blocks.
pub struct Partial {
    pub path: PathBuf,
    /// Locked, where it is one that is kept.
    file: File,
    digest: Sha256,
    length: u64,
    /// Where another pull of the same layer has the file that is kept.
    _work: Option<Workspace>,
}

impl Partial {
    /// What is kept of a repository's layer, or an empty file. Longer than `size` (bytes) it cannot be.
    pub fn open(store: &ImageStore, repository: &str, digest: &str, size: u64) -> Result<Partial, ImageError> {
        // By repository too: another registry's bytes would only be in the way.
        let name = digest_of(format!("{repository}@{digest}").as_bytes());
        let path = store.partial_folder().join(name.trim_start_matches("sha256:"));
        let failed = || ImageError::io("cannot open a layer's file");
        let mut partial = match locked(&path).map_err(failed())? {
            Some(file) => Partial { path, file, digest: Sha256::new(), length: 0, _work: None },
            None => {
                let work = store.workspace()?;
                let path = work.path.join("blob");
                let file = File::create_new(&path).map_err(failed())?;
                Partial { path, file, digest: Sha256::new(), length: 0, _work: Some(work) }
            }
        };
        partial.read_again(size).map_err(failed())?;
        Ok(partial)
    }

    fn read_again(&mut self, size: u64) -> io::Result<()> {
        if self.file.metadata()?.len() > size {
            return self.begin_anew();
        }
        let mut buffer = vec![0; BATCH];
        loop {
            let length = self.file.read(&mut buffer)?;
            let Some(bytes) = buffer.get(..length).filter(|bytes| !bytes.is_empty()) else { return Ok(()) };
            self.digest.update(bytes);
            self.length += length as u64;
        }
    }

    fn begin_anew(&mut self) -> io::Result<()> {
        (self.digest, self.length) = (Sha256::new(), 0);
        self.file.set_len(0)?;
        self.file.rewind()
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let written = self.file.write_all(bytes);
        if written.is_err() {
            // A full disk is not kept full, and half a write is not known.
            let _ = self.begin_anew();
            return written;
        }
        self.digest.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Whether nothing is there.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// It is needed no more.
    pub fn discard(self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The file, made where there is none, and locked; None where somebody else has it.
fn locked(path: &Path) -> io::Result<Option<File>> {
    loop {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let file = options.open(path)?;
        match flock(&file, libc::LOCK_EX | libc::LOCK_NB) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            other => other?,
        }
        // Whoever had it may have removed it meanwhile.
        let (own, named) = (file.metadata()?, fs::symlink_metadata(path));
        if named.is_ok_and(|named| (named.dev(), named.ino()) == (own.dev(), own.ino())) {
            return Ok(Some(file));
        }
    }
}

impl ImageStore {
    fn partial_folder(&self) -> PathBuf {
        self.root().join("partial")
    }

    /// Removes what broke off and is too old, or more than is kept. Blocking.
    pub(super) fn sweep_partial(&self) {
        self.shrink_partial(MAX_KEPT, MAX_AGE);
    }

    /// Removes all that broke off and that no pull goes on with. Blocking.
    pub fn discard_partial(&self) {
        self.shrink_partial(0, Duration::ZERO);
    }

    fn shrink_partial(&self, most: u64, age: Duration) {
        let entries = fs::read_dir(self.partial_folder()).into_iter().flatten().flatten();
        let mut found: Vec<(SystemTime, u64, PathBuf)> = entries
            .filter_map(|entry| {
                let metadata = entry.metadata().ok()?;
                Some((metadata.modified().ok()?, metadata.len(), entry.path()))
            })
            .collect();
        found.sort();
        let now = SystemTime::now();
        let mut left: u64 = 0;
        // The newest first.
        for (modified, length, path) in found.into_iter().rev() {
            left = left.saturating_add(length);
            let is_old = now.duration_since(modified).is_ok_and(|since| since >= age);
            let is_free = || {
                let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(&path).ok()?;
                flock(&file, libc::LOCK_EX | libc::LOCK_NB).ok().map(|()| file)
            };
            if (left > most || is_old) && is_free().is_some() {
                let _ = fs::remove_file(&path);
            }
        }
    }
}

/// A [`Partial`] that grows on threads of its own.
pub struct Sink<'a> {
    partial: Option<Partial>,
    /// What has come and is not written yet.
    pending: Vec<u8>,
    /// Told of the length, in bytes, now and then.
    told: &'a mut (dyn FnMut(u64) + Send),
}

impl<'a> Sink<'a> {
    pub fn new(partial: Partial, told: &'a mut (dyn FnMut(u64) + Send)) -> Sink<'a> {
        Sink { partial: Some(partial), pending: Vec::new(), told }
    }

    /// Bytes that are there.
    pub fn length(&self) -> u64 {
        self.partial.as_ref().map_or(0, |partial| partial.length) + self.pending.len() as u64
    }

    /// Takes what comes next.
    ///
    /// # Errors
    /// In words: it cannot be written.
    pub async fn take(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BATCH - self.pending.len()));
            self.pending.extend_from_slice(now);
            bytes = later;
            if self.pending.len() == BATCH {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// Writes what has come.
    ///
    /// # Errors
    /// In words: it cannot be written.
    pub async fn flush(&mut self) -> Result<(), String> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let pending = std::mem::take(&mut self.pending);
        let written = self.with(move |partial| {
            let written = partial.write(&pending);
            written.map(|()| pending)
        });
        let mut pending = written.await?.map_err(cannot_write)?;
        pending.clear();
        self.pending = pending;
        let length = self.length();
        (self.told)(length);
        Ok(())
    }

    /// Forgets what is there.
    ///
    /// # Errors
    /// In words: the file cannot be cut.
    pub async fn begin_anew(&mut self) -> Result<(), String> {
        self.pending.clear();
        self.with(Partial::begin_anew).await?.map_err(cannot_write)
    }

    /// Writes the rest, and says of what digest the whole is.
    ///
    /// # Errors
    /// In words: it cannot be written.
    pub async fn digest(&mut self) -> Result<String, String> {
        self.flush().await?;
        self.with(|partial| format!("sha256:{:x}", partial.digest.clone().finalize())).await
    }

    /// What is there.
    pub fn into_partial(self) -> Option<Partial> {
        self.partial
    }

    async fn with<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Partial) -> T + Send + 'static,
    ) -> Result<T, String> {
        let mut partial = self.partial.take().ok_or("its file is lost")?;
        let done = writing(move || {
            let done = work(&mut partial);
            (partial, done)
        });
        let (partial, done) = done.await?;
        self.partial = Some(partial);
        Ok(done)
    }
}

fn cannot_write(error: io::Error) -> String {
    format!("cannot write it down: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (ImageStore, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        (ImageStore::open(&dir.path().join("images")).unwrap(), dir)
    }

    #[test]
    fn v11_a_disk_that_hangs_under_a_pull_holds_up_no_thread_of_the_runtime() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blob");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut reader = File::options().read(true).write(true).open(&path).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        let partial = Partial { path, file, digest: Sha256::new(), length: 0, _work: None };
        let tokio = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let bytes = vec![7; BATCH];
        let mut told = |_| ();
        let mut sink = Sink::new(partial, &mut told);
        tokio.block_on(async {
            // The pipe takes less than is written, and its only reader is the runtime's one thread.
            let read = async {
                let mut all = vec![0; bytes.len()];
                reader.read_exact(&mut all).unwrap();
                all
            };
            let (taken, read) = tokio::join!(sink.take(&bytes), read);
            taken.unwrap();
            assert_eq!(read, bytes);
        });
        assert_eq!(sink.length(), bytes.len() as u64);
    }

    #[test]
    fn x4_what_broke_off_is_kept_within_bounds_and_not_taken_from_whoever_goes_on() {
        let (store, _dir) = store();
        let make = |repository: &str, bytes: &[u8]| {
            let mut partial = Partial::open(&store, repository, "sha256:d", 10).unwrap();
            partial.write(bytes).unwrap();
            partial
        };
        let lengths = || {
            let files = fs::read_dir(store.partial_folder()).unwrap().flatten();
            let mut lengths: Vec<u64> = files.map(|file| file.metadata().unwrap().len()).collect();
            lengths.sort_unstable();
            lengths
        };
        let at = |partial: Partial, seconds| {
            partial.file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
        };
        at(make("old", b"1"), 100);
        at(make("new", b"1234567890"), 200);
        let held = make("held", b"123");
        held.file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        store.shrink_partial(10, Duration::MAX);
        assert_eq!(lengths(), [3, 10], "the newest are kept, and what is in use");
        assert_eq!(Partial::open(&store, "new", "sha256:d", 10).unwrap().length, 10);
        assert_eq!(Partial::open(&store, "new", "sha256:e", 10).unwrap().length, 0, "another layer");
        assert_eq!(Partial::open(&store, "new", "sha256:d", 9).unwrap().length, 0, "longer than it can be");
        let second = Partial::open(&store, "held", "sha256:d", 10).unwrap();
        assert!(second.length == 0 && second.path != held.path);
        drop((held, second));
        assert_eq!(make("held", b"4").length, 4);
        store.discard_partial();
        assert!(lengths().is_empty());
    }
}
