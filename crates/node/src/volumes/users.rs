//! Which pods use which PersistentVolumes, and who may work on one now.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedMutexGuard, watch};

use super::{Record, VolumeError, blocking};
use crate::kubelet::disk::Disk;

/// The right to work on one volume, until it is dropped.
pub type Alone = OwnedMutexGuard<()>;

/// The users of PersistentVolumes on this node.
pub struct Users {
    disk: Disk,
    /// Volume and pod uid: pods that have begun to mount a volume and may not be noted on disk yet.
    begun: Mutex<BTreeSet<(String, String)>>,
    locks: Mutex<BTreeMap<String, Weak<tokio::sync::Mutex<()>>>>,
    changes: watch::Sender<()>,
}

impl Users {
    pub fn new(disk: Disk) -> Self {
        Self { disk, begun: Mutex::default(), locks: Mutex::default(), changes: watch::Sender::default() }
    }

    /// A pod is about to mount a volume.
    pub fn begin(&self, volume: &str, uid: &str) {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner).insert((volume.to_owned(), uid.to_owned()));
    }

    /// As [`Users::begin`], unless another pod has the volume or is about to (V9): of several that come at once one
    /// has it.
    pub fn begin_alone(&self, volume: &str, uid: &str) -> io::Result<bool> {
        {
            let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
            if begun.iter().any(|(begun, pod)| begun == volume && pod != uid) {
                return Ok(false);
            }
            begun.insert((volume.to_owned(), uid.to_owned()));
        }
        // Those that a restarted agent has not looked at are only on the disk.
        let others = self.noted(volume, Some(uid));
        if !matches!(others, Ok(false)) {
            self.begun.lock().unwrap_or_else(PoisonError::into_inner).remove(&(volume.to_owned(), uid.to_owned()));
        }
        others.map(|others| !others)
    }

    /// A pod has unmounted all that it had.
    pub fn end(&self, uid: &str) {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner).retain(|(_, pod)| pod != uid);
        self.changes.send_replace(());
    }

    /// A pod has mounted a volume.
    pub fn mounted(&self) {
        self.changes.send_replace(());
    }

    /// Changed whenever a pod has mounted a volume, or unmounted all that it had.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Whether any pod has a volume or is about to: also pods that a restarted agent has not looked at.
    pub fn has(&self, volume: &str) -> io::Result<bool> {
        if self.begun.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|(begun, _)| begun == volume) {
            return Ok(true);
        }
        self.noted(volume, None)
    }

    /// Whether no pod has a volume, or is about to.
    pub async fn rests(self: &Arc<Self>, volume: &str) -> Result<bool, VolumeError> {
        let (users, volume) = (self.clone(), volume.to_owned());
        let look = move || users.has(&volume).map_err(VolumeError::io("reading which volumes are in use"));
        blocking(look).await.map(|has| !has)
    }

    /// Whether a volume is noted beside any pod but this one.
    fn noted(&self, volume: &str, but: Option<&str>) -> io::Result<bool> {
        let pods = match std::fs::read_dir(self.disk.pods_dir()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            pods => pods?,
        };
        for pod in pods {
            let pod = pod?;
            if but.is_some_and(|but| pod.file_name() == *but) {
                continue;
            }
            if self.records_of(&pod.path())?.iter().any(|record| record.volume.as_deref() == Some(volume)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What is noted about a pod's volumes.
    pub fn records_of(&self, pod_dir: &Path) -> io::Result<Vec<Record>> {
        let mut found = Vec::new();
        let records = match std::fs::read_dir(pod_dir.join("volumes")) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(found);
            }
            records => records?,
        };
        for record in records {
            let path = record?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                match std::fs::read(path) {
                    Ok(bytes) => found.push(serde_json::from_slice(&bytes)?),
                    // Its pod was unmounted meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(found)
    }

    /// The right to work on one volume: whoever makes, mounts, grows, unmounts or removes it has it. It is waited for
    /// before a thread is taken (V11), and goes along with the work to the thread: work that nobody waits for any more
    /// keeps it to its end.
    pub async fn lock(&self, volume: &str) -> Alone {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| lock.strong_count() > 0);
            let lock = locks.get(volume).and_then(Weak::upgrade).unwrap_or_default();
            locks.insert(volume.to_owned(), Arc::downgrade(&lock));
            lock
        };
        lock.lock_owned().await
    }

    /// The same for several volumes. Whoever works on several takes them in the order of their names.
    pub async fn lock_all(&self, volumes: impl IntoIterator<Item = String>) -> Vec<Alone> {
        let names: BTreeSet<String> = volumes.into_iter().collect();
        let mut locks = Vec::new();
        for name in names {
            locks.push(self.lock(&name).await);
        }
        locks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v9_of_two_pods_one_has_a_volume_also_after_a_restart() {
        let data = tempfile::tempdir().unwrap();
        let users = Users::new(Disk::new(data.path()));
        assert!(users.begin_alone("pvc-1", "a").unwrap());
        assert!(!users.begin_alone("pvc-1", "b").unwrap() && users.begin_alone("pvc-2", "b").unwrap());
        assert!(users.begin_alone("pvc-1", "a").unwrap(), "it is tried again");
        users.end("a");
        // What an agent from before has noted, and this one has not looked at.
        let pod = Disk::new(data.path()).pod_dir("a").unwrap().join("volumes");
        std::fs::create_dir_all(&pod).unwrap();
        let record = Record {
            driver: String::new(),
            path: "/x".into(),
            read_only: false,
            volume: Some("pvc-1".to_owned()),
            device: None,
            group: None,
            block: None,
        };
        std::fs::write(pod.join("data.json"), serde_json::to_vec(&record).unwrap()).unwrap();
        assert!(!users.begin_alone("pvc-1", "b").unwrap() && users.begin_alone("pvc-1", "a").unwrap());
        std::fs::remove_file(pod.join("data.json")).unwrap();
        users.end("a");
        assert!(users.begin_alone("pvc-1", "b").unwrap());
    }
}
