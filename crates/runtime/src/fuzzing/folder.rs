//! A folder for one input, beside one that nothing may touch (X3).

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// `inside` for the input to do as it likes, `outside` with a secret; both go with it.
pub struct Folder {
    base: PathBuf,
    outside: Vec<Seen>,
}

/// What would tell that something was touched.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    name: OsString,
    mode: u32,
    owner: (u32, u32),
    links: u64,
    changed: (i64, i64),
    content: Vec<u8>,
}

impl Folder {
    /// A new one, in memory where the machine has a place there: inputs come by the thousand.
    #[expect(clippy::new_without_default, reason = "it makes folders, which a default should not")]
    pub fn new() -> Self {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let parent = if Path::new("/dev/shm").is_dir() { PathBuf::from("/dev/shm") } else { std::env::temp_dir() };
        let base =
            parent.join(format!("mainstay-input-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
        for dir in [&base, &base.join("inside"), &base.join("outside")] {
            fs::create_dir(dir)
                .and_then(|()| fs::set_permissions(dir, fs::Permissions::from_mode(0o755)))
                .expect("a folder");
        }
        fs::write(base.join("outside/secret"), "secret").expect("a file");
        let outside = look(&base);
        Self { base, outside }
    }

    pub fn inside(&self) -> PathBuf {
        self.base.join("inside")
    }

    /// A path that leads from the inside to the secret, as an attacker would write it.
    pub const WAY_OUT: &str = "../outside/secret";

    /// # Panics
    /// Something outside was touched.
    pub fn assert_untouched(&self) {
        assert_eq!(look(&self.base), self.outside, "outside of the root");
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let parent = self.base.parent().unwrap_or(Path::new("/"));
        if let Err(error) = crate::safe_path::remove::tree(parent, &self.base)
            && !std::thread::panicking()
        {
            panic!("{} stays: {error}", self.base.display());
        }
    }
}

/// All that is in the place but what is inside `inside`.
fn look(base: &Path) -> Vec<Seen> {
    let mut seen = Vec::new();
    for dir in [base.to_owned(), base.join("outside")] {
        for entry in fs::read_dir(&dir).expect("a folder").map(|entry| entry.expect("an entry")) {
            // What happens inside shows in the folder's own times.
            if entry.path() == base.join("inside") {
                continue;
            }
            let metadata = entry.metadata().expect("metadata");
            let content = if metadata.is_file() { fs::read(entry.path()).expect("a file") } else { Vec::new() };
            seen.push(Seen {
                name: entry.path().into_os_string(),
                mode: metadata.mode(),
                owner: (metadata.uid(), metadata.gid()),
                links: metadata.nlink(),
                changed: (metadata.ctime(), metadata.ctime_nsec()),
                content,
            });
        }
    }
    seen.sort_by(|one, other| one.name.cmp(&other.name));
    seen
}
