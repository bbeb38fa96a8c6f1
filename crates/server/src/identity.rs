//! Which cluster a data folder holds (A11): noted in the store, and beside it in the file `cluster`, with a revision
//! that the store had, so that neither an empty store nor another cluster's nor an old copy is taken for this one's.
//!
//! ```text
//! <data>/store/              the store; it names its cluster
//! <data>/cluster             the same name, and the store's revision of at most a few seconds ago
//! <data>/volumes/.cluster    the same name, at the volumes (the node's)
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mainstay_store::{ClusterId, Etcd, OpenError, Options, Owner, Revision, Seal, Store};
use tokio::sync::watch;

use crate::pki::{PkiError, write_private};
use crate::start::StartError;

/// How often the note follows the store.
const NOTE: Duration = Duration::from_secs(10);
/// It follows earlier when the store is this many revisions ahead of it.
const AHEAD: u64 = 1_000;
/// How often that is looked at while there are changes: less than [`BEHIND`] are written meanwhile.
const LOOK: Duration = Duration::from_millis(100);
/// The most revisions that a store may have gone beyond its note, with much to spare.
pub const BEHIND: u64 = 10 * AHEAD;
/// The note beside the store.
pub const FILE: &str = "cluster";
/// The store's folder.
pub const STORE: &str = "store";

/// What is known of the cluster before its store is opened.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// A new cluster is meant: a store that is there is set aside, and nothing is held against its absence.
    pub new: bool,
    /// Whose volumes this machine holds: the cluster's name, or anything else where they are too old to say.
    pub volumes_of: Option<String>,
}

/// The note's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noted {
    /// Whose folder it is.
    pub cluster: ClusterId,
    /// A revision that its store had.
    pub revision: Revision,
}

impl Noted {
    fn parse(text: &str) -> Option<Self> {
        let (cluster, revision) = text.trim_end().split_once(' ')?;
        Some(Self { cluster: ClusterId::parse(cluster)?, revision: Revision(revision.parse().ok()?) })
    }

    /// The note of a folder, if it has one.
    pub fn read(data_dir: &Path) -> Result<Option<Self>, StartError> {
        let path = data_dir.join(FILE);
        match fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text).map(Some).ok_or(StartError::Note(path)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StartError::DataDir { path, source }),
        }
    }

    /// Notes it, durably.
    pub fn write(&self, data_dir: &Path) -> Result<(), PkiError> {
        write_private(&data_dir.join(FILE), format!("{} {}\n", self.cluster, self.revision).as_bytes())
    }
}

/// How much memory this process may have, in bytes: the machine's, or its control group's (version 2) where that has
/// less.
fn memory() -> Option<u64> {
    let read = |path: &Path| fs::read_to_string(path).ok();
    let machine = read(Path::new("/proc/meminfo"))?;
    let total = machine.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next());
    let total = total?.parse::<u64>().ok()? << 10;
    let group = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let group = group.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default().to_owned();
    let groups = Path::new(&group).ancestors().map(|group| Path::new("/sys/fs/cgroup").join(group));
    let limits = groups.filter_map(|group| read(&group.join("memory.max"))?.trim().parse::<u64>().ok());
    Some(limits.fold(total, u64::min))
}

/// Opens the store of a data folder, or makes it where nothing speaks for one that was there before.
///
/// `id` is for a new cluster: random bits. `seal` is for rows that are encrypted on the disk.
///
/// # Errors
/// When there is no store and the folder holds a cluster's keys, note or volumes; when the store is damaged, another
/// cluster's, or an older copy; when somebody else has it.
pub fn open_store(
    data_dir: &Path,
    expected: &Expected,
    id: u128,
    seal: Option<Arc<dyn Seal>>,
    etcd: Option<&Etcd>,
) -> Result<Store, StartError> {
    let path = data_dir.join(STORE);
    let fresh = ClusterId::new(id.max(1)).unwrap_or_else(|| unreachable!("one is not zero"));
    let (mut noted, mut held) = (None, false);
    if etcd.is_some() && data_dir.join(STORE).exists() {
        return Err(StartError::TwoStores(data_dir.to_owned()));
    }
    if expected.new {
        set_aside(data_dir)?;
    } else {
        noted = Noted::read(data_dir)?;
        // Keys are made after the first store; volumes are made for claims, which are in one.
        held = etcd.is_none() && (expected.volumes_of.is_some() || data_dir.join("pki").exists());
    }
    let owner = match noted {
        Some(Noted { cluster, revision }) => Owner::Known { cluster, revision },
        None => Owner::Claim { cluster: fresh, existing: held },
    };
    let index = Some(crate::api::key::PODS_BY_NODE);
    let mut options = Options { owner, index, ..Options::default() };
    if let Some(memory) = memory() {
        options.window_most_bytes = mainstay_store::limits::window_most_bytes(memory);
    }
    let opened = match etcd {
        Some(etcd) => Store::open_etcd(etcd.clone(), options),
        None => Store::open_sealed(path.as_path(), options, seal),
    };
    let store = opened.map_err(|error| match error {
        OpenError::InUse(_) => StartError::InUse(data_dir.to_owned()),
        OpenError::Unreached(why) => StartError::Silent(why),
        why if etcd.is_some() => StartError::Etcd { hint: etcd_hint(&why), why },
        source => StartError::Store { path, source },
    })?;
    let cluster = store.cluster().unwrap_or(fresh);
    let volumes_of = expected.volumes_of.as_deref().filter(|_| !expected.new).and_then(ClusterId::parse);
    if let Some(found) = volumes_of.filter(|found| *found != cluster) {
        let (path, found, cluster) = (data_dir.to_owned(), found.to_string(), cluster.to_string());
        return Err(StartError::OtherVolumes { path, found, cluster });
    }
    let now = Noted { cluster, revision: store.revision() };
    match (now.write(data_dir), noted) {
        // A full disk stops no start; the older note holds as well.
        (Err(error), Some(_)) => tracing::warn!(%error, "the store's revision could not be noted beside it"),
        (written, _) => written?,
    }
    Ok(store)
}

/// Moves a store away, unless somebody has it open. Where it is now; `None` where there was none.
pub fn set_aside(data_dir: &Path) -> Result<Option<PathBuf>, StartError> {
    let path = data_dir.join(STORE);
    let failed = |source| StartError::DataDir { path: path.clone(), source };
    let locked = match OpenOptions::new().read(true).open(path.join(mainstay_store::FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    match locked.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(StartError::InUse(data_dir.to_owned())),
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    let free = (1..).map(|number: u32| data_dir.join(format!("{STORE}.before-{number}"))).find(|path| !path.exists());
    let aside = free.unwrap_or_else(|| unreachable!("some number is free"));
    fs::rename(&path, &aside).map_err(failed)?;
    match fs::remove_file(data_dir.join(FILE)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    File::open(data_dir).and_then(|folder| folder.sync_all()).map_err(failed)?;
    Ok(Some(aside))
}

/// Keeps the note near the store's revision, until the server stops: an older copy that is put in the store's place
/// while no server runs is known by it (A3), but for the last [`AHEAD`] or so revisions, of the last seconds before a
/// kill. What changes nothing wakes nobody.
pub async fn keep_noted(store: Store, data_dir: PathBuf, closing: watch::Receiver<bool>) {
    follow(store, data_dir, NOTE, closing).await;
}

async fn follow(store: Store, data_dir: PathBuf, every: Duration, mut closing: watch::Receiver<bool>) {
    let Some(cluster) = store.cluster() else {
        return drop(closing.wait_for(|closing| *closing).await);
    };
    let mut noted = Revision(0);
    loop {
        // Where its changes are forgotten already there were some.
        let mut changes = store.watch("", noted).ok();
        let changed = async {
            if let Some(changes) = &mut changes {
                drop(changes.next().await);
                // Not until it has ended by itself, or is far enough.
                let far = async {
                    while store.revision().0 < noted.0.saturating_add(AHEAD) {
                        drop(changes.next().await);
                        tokio::time::sleep(LOOK).await;
                    }
                };
                drop(tokio::time::timeout(every, far).await);
            } else {
                tokio::time::sleep(LOOK).await;
            }
        };
        let is_closing = tokio::select! {
            () = changed => false,
            _ = closing.wait_for(|closing| *closing) => true,
        };
        let now = Noted { cluster, revision: store.revision() };
        let data_dir = data_dir.clone();
        // On a thread that may wait for the disk.
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || now.write(&data_dir)).await {
            tracing::warn!(%error, "the store's revision could not be noted");
        }
        noted = now.revision;
        if is_closing {
            return;
        }
    }
}

/// What a person can do about a store in etcd that is not opened.
fn etcd_hint(error: &OpenError) -> &'static str {
    match error {
        OpenError::Missing { .. } | OpenError::Foreign { .. } => {
            "; name the etcd of this cluster with --store, bring it back from an export by `mainstay store import`, or \
             start with --new-cluster if a new cluster is meant"
        }
        OpenError::Older { .. } => {
            "; save it with `mainstay store export --store etcd=…` and bring it into an empty etcd with `mainstay \
                store \
             import`, which lets the revision go forward"
        }
        OpenError::Untrusted(_) => "; see --etcd-cafile, --etcd-certfile and --etcd-keyfile",
        OpenError::Damaged { .. } => "; nothing was changed",
        _ => "",
    }
}

/// What a person can do about a store that is not opened.
pub(crate) fn hint(error: &OpenError) -> &'static str {
    match error {
        OpenError::Damaged { .. } => {
            "; nothing was changed: `mainstay store check` names what is damaged, and `mainstay store export` saves \
             what is sound for `mainstay store restore`"
        }
        OpenError::Missing { .. } | OpenError::Foreign { .. } | OpenError::Older { .. } => {
            "; bring its store back, by `mainstay store restore` from an export for example; or start with \
             --new-cluster if a new cluster is meant"
        }
        OpenError::Sealed { .. } => {
            "; nothing was changed: start with the --encryption-provider-config that it was written with"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests;
