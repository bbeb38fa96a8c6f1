//! What the agent must know again after a restart: the pods that it began, and those it was told to stop.
//!
//! ```text
//! <data>/pods/<uid>/pod.json          the pod as last acted upon
//! <data>/pods/<uid>/deadline          what was decided about its deadline, where it has mounts that need to know
//! <data>/pods/<uid>/tombstone            told to stop; never to be started again (kubernetes#59848)
//! <data>/pods/<uid>/evicted           it is evicted, and why
//! <data>/pods/<uid>/back-offs/…       how long each container waits after its next end
//! <data>/pods/<uid>/volumes/…         volumes (crate::volumes)
//! <data>/pods/<uid>/files/…           /etc/hosts, /etc/resolv.conf, termination logs
//! <data>/logs/<ns>_<name>_<uid>/<container>/<attempt>.log
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use mainstay_logic::kubelet::Backoff;
use mainstay_runtime::safe_path::make_private_dir;

/// See [`Disk::deadline`].
const DEADLINE: &str = "deadline";
/// See [`Disk::note_eviction`].
const EVICTED: &str = "evicted";
/// See [`Disk::note_back_off`].
const BACK_OFFS: &str = "back-offs";
/// The largest `pod.json` that is read back.
const MAX_POD: u64 = 4 << 20;

/// The agent's folder.
#[derive(Clone, Debug)]
pub struct Disk {
    root: PathBuf,
    /// One note is written at a time: a pod's volumes begin together, and each sees to it that the pod is noted.
    writing: Arc<Mutex<()>>,
}

/// A pod that was begun before a restart.
#[derive(Debug)]
pub struct Left {
    pub uid: String,
    pub pod: Pod,
    pub tombstoned: bool,
}

impl Disk {
    /// Below this data folder.
    pub fn new(data_dir: &Path) -> Self {
        Self { root: data_dir.to_owned(), writing: Arc::default() }
    }

    /// A pod's own folder. A uid comes from the API: anything that is not one path element is refused.
    pub fn pod_dir(&self, uid: &str) -> io::Result<PathBuf> {
        if uid.is_empty() || uid.starts_with('.') || uid.contains('/') || uid.contains('\0') {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("pod uid {uid:?} is not a file name")));
        }
        Ok(self.root.join("pods").join(uid))
    }

    /// Where all pods' folders are.
    pub fn pods_dir(&self) -> PathBuf {
        self.root.join("pods")
    }

    /// Where a container's log is, in the CRI format.
    pub fn log_path(&self, namespace: &str, name: &str, uid: &str, container: &str, attempt: u32) -> PathBuf {
        self.log_dir(namespace, name, uid).join(container).join(format!("{attempt}.log"))
    }

    /// Removes the logs of a container's attempts up to this one, with the files that they were rotated to, and with
    /// those of earlier ones that an agent left which ended on its way.
    pub fn remove_logs(&self, namespace: &str, name: &str, uid: &str, container: &str, attempt: u32) -> io::Result<()> {
        let dir = self.log_dir(namespace, name, uid).join(container);
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let of = name.to_str().and_then(|name| name.split_once(".log")).and_then(|(of, _)| of.parse::<u32>().ok());
            if of.is_some_and(|of| of <= attempt) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    fn log_dir(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.root.join("logs").join(format!("{namespace}_{name}_{uid}"))
    }

    /// Notes a pod before anything of it is made, so that a restarted agent can take it away again. The first note
    /// stays.
    pub fn write_pod(&self, uid: &str, pod: &Pod) -> io::Result<()> {
        let path = self.pod_dir(uid)?.join("pod.json");
        let alone = self.alone();
        // Looked for only now: of volumes that begin together, the first one notes the pod.
        if path.exists() {
            return Ok(());
        }
        let bytes = serde_json::to_vec(pod)?;
        self.write(&alone, uid, "pod.json", &bytes)
    }

    /// What was decided about a pod's deadline (S13), if anything: seconds, or none.
    pub fn deadline(&self, uid: &str) -> Option<Option<u32>> {
        match fs::read_to_string(self.pod_dir(uid).ok()?.join(DEADLINE)).ok()?.as_str() {
            "none" => Some(None),
            text => text.parse().ok().map(Some),
        }
    }

    /// Notes it. The first note stays, and is given back. Nothing that it is about outlives the machine, so it need
    /// not either.
    pub fn note_deadline(&self, uid: &str, seconds: Option<u32>) -> io::Result<Option<u32>> {
        let dir = self.pod_dir(uid)?;
        let _alone = self.alone();
        if let Some(noted) = self.deadline(uid) {
            return Ok(noted);
        }
        make_private_dir(&dir)?;
        let text = seconds.map_or_else(|| "none".to_owned(), |seconds| seconds.to_string());
        let temporary = dir.join("deadline.new");
        fs::write(&temporary, text)?;
        fs::rename(&temporary, dir.join(DEADLINE))?;
        Ok(seconds)
    }

    /// Notes that a pod is evicted, and why; durable when this returns, before anybody is told.
    ///
    /// # Errors
    /// The disk is full or broken, or nothing of the pod is here.
    pub fn note_eviction(&self, uid: &str, why: &str) -> io::Result<()> {
        let alone = self.alone();
        if !self.pod_dir(uid)?.exists() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "nothing of the pod is here"));
        }
        self.write(&alone, uid, EVICTED, why.as_bytes())
    }

    /// Why a pod is evicted, if it was decided here.
    pub fn evicted(&self, uid: &str) -> Option<String> {
        fs::read_to_string(self.pod_dir(uid).ok()?.join(EVICTED)).ok()
    }

    /// Notes how long a container waits after its next end, for an agent that comes later. Where a crash takes the note
    /// along it waits as at first.
    pub fn note_back_off(&self, uid: &str, container: &str, back_off: Backoff) -> io::Result<()> {
        let dir = self.pod_dir(uid)?.join(BACK_OFFS);
        let name = mainstay_runtime::safe_path::plain(container)?;
        let text = format!("{} {}", back_off.delay.as_secs(), back_off.updated.as_millisecond());
        let alone = self.alone();
        // Not with its parents: what is put away meanwhile does not come back.
        match fs::DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let temporary = dir.join(".new");
        fs::write(&temporary, text)?;
        fs::rename(temporary, dir.join(name))?;
        drop(alone);
        Ok(())
    }

    /// What is noted of that, by container.
    pub fn back_offs(&self, uid: &str) -> BTreeMap<String, Backoff> {
        let entries = self.pod_dir(uid).and_then(|dir| fs::read_dir(dir.join(BACK_OFFS)));
        let read = |entry: fs::DirEntry| {
            let text = fs::read_to_string(entry.path()).ok()?;
            let (delay, updated) = text.split_once(' ')?;
            let delay = SignedDuration::from_secs(delay.parse::<u32>().ok()?.into());
            let updated = Timestamp::from_millisecond(updated.parse().ok()?).ok()?;
            Some((entry.file_name().into_string().ok()?, Backoff { delay, updated }))
        };
        entries.into_iter().flatten().flatten().filter_map(read).collect()
    }

    fn alone(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a pod was told to stop; durable when this returns.
    pub fn write_tombstone(&self, uid: &str) -> io::Result<()> {
        self.write(&self.alone(), uid, "tombstone", b"")
    }

    /// Whether a pod was told to stop here.
    pub fn is_tombstoned(&self, uid: &str) -> bool {
        self.pod_dir(uid).is_ok_and(|dir| dir.join("tombstone").exists())
    }

    fn write(&self, _alone: &MutexGuard<'_, ()>, uid: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
        let dir = self.pod_dir(uid)?;
        make_private_dir(&dir)?;
        let temporary = dir.join(format!(".{name}"));
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, dir.join(name))?;
        fs::File::open(&dir)?.sync_all()?;
        fs::File::open(self.pods_dir())?.sync_all()
    }

    /// All pods that were begun and not yet forgotten.
    pub fn left(&self) -> Vec<Left> {
        let Ok(entries) = fs::read_dir(self.pods_dir()) else { return Vec::new() };
        let mut left: Vec<Left> = entries
            .flatten()
            .filter_map(|entry| {
                let uid = entry.file_name().into_string().ok()?;
                let path = entry.path().join("pod.json");
                let tombstoned = self.is_tombstoned(&uid);
                let pod = match fs::metadata(&path) {
                    Ok(metadata) if metadata.len() <= MAX_POD => serde_json::from_slice(&fs::read(&path).ok()?).ok()?,
                    _ => return None,
                };
                Some(Left { uid, pod, tombstoned })
            })
            .collect();
        left.sort_by(|a, b| a.uid.cmp(&b.uid));
        left
    }

    /// Removes the pod's folder and its logs; the last thing that happens to a pod. Mounts were taken away before,
    /// and a folder that still holds one is left alone (V8).
    pub fn forget(&self, namespace: &str, name: &str, uid: &str) -> io::Result<()> {
        let dir = self.pod_dir(uid)?;
        let mounted = mainstay_runtime::safe_path::mounts::below(&dir)?;
        if let Some(mount) = mounted.first() {
            return Err(io::Error::other(format!("{} is still mounted", mount.display())));
        }
        // The folder of all pods may be a mount of its own.
        for (root, dir) in [(self.root.clone(), self.log_dir(namespace, name, uid)), (self.pods_dir(), dir)] {
            match mainstay_runtime::safe_path::remove::tree(&root, &dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s12_how_long_a_container_waits_is_known_to_the_next_agent() {
        let data = tempfile::tempdir().unwrap();
        let disk = Disk::new(data.path());
        assert!(disk.back_offs("u").is_empty());
        let gone = Backoff { delay: SignedDuration::ZERO, updated: Timestamp::UNIX_EPOCH };
        assert!(disk.note_back_off("u", "a", gone).is_err(), "nothing comes back");
        fs::create_dir_all(disk.pod_dir("u").unwrap()).unwrap();
        let at = |delay| Backoff { delay: SignedDuration::from_secs(delay), updated: Timestamp::UNIX_EPOCH };
        for (container, delay) in [("a", 10), ("b", 40), ("a", 20)] {
            disk.note_back_off("u", container, at(delay)).unwrap();
        }
        let noted = Disk::new(data.path()).back_offs("u");
        assert_eq!(noted, BTreeMap::from([("a".to_owned(), at(20)), ("b".to_owned(), at(40))]));
        assert!(disk.note_back_off("u", "../a", at(1)).is_err(), "X3");
    }

    /// An agent that dies between its decision and the first stop does not let the next one start the pod again.
    #[test]
    fn x6_s12_an_eviction_that_was_decided_is_known_to_the_next_agent() {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::new(root.path());
        assert!(disk.note_eviction("u", "too much").is_err(), "of a pod that is not here nothing is left behind");
        assert!(!root.path().join("pods/u").exists());
        disk.write_pod("u", &Pod::default()).unwrap();
        assert_eq!(disk.evicted("u"), None);
        disk.note_eviction("u", "too much").unwrap();
        assert_eq!(Disk::new(root.path()).evicted("u").as_deref(), Some("too much"));
        assert!(disk.note_eviction("../u", "too much").is_err());
        disk.forget("ns", "p", "u").unwrap();
        assert_eq!(disk.evicted("u"), None);
    }

    /// X4: what a container wrote in attempts that are forgotten does not stay on the node's disk.
    #[test]
    fn x4_logs_go_with_their_attempts_as_often_as_they_were_rotated() {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::new(root.path());
        let dir = disk.log_path("ns", "p", "u", "c", 0).parent().unwrap().to_owned();
        fs::create_dir_all(&dir).unwrap();
        for file in ["0.log.4", "1.log", "1.log.1", "2.log", "2.log.1", "10.log", "x.log", "1"] {
            fs::write(dir.join(file), "").unwrap();
        }
        disk.remove_logs("ns", "p", "u", "c", 1).unwrap();
        let mut left: Vec<String> =
            fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        assert_eq!(left, ["1", "10.log", "2.log", "2.log.1", "x.log"]);
        disk.remove_logs("ns", "p", "u", "none", 1).unwrap();
    }
}
