//! What becomes of volumes besides being mounted: those that shall be larger grow ([`growth`], V10), those that were
//! deleted are removed ([`reclaim`], V3, V8), those that are to be recycled are emptied ([`recycle`], V3), those that
//! are to start as a copy become one ([`copies`](super::copies), V4), and folders of NFS exports are made, grown and
//! removed ([`export`]).
//!
//! One watch, and one task for each volume that wants something, so that a server that does not answer holds up its own
//! volume only (V11). A volume that pods still use is waited for: [`users`](super::users) says when that has changed.
//! Only a failure is tried again by the clock.
//!
//! Which node a volume is of is said by the node's name. So nothing is begun, and nothing noted, unless this agent has
//! its node's Lease (S1): of two machines of one name the other one has the data, and answers for it.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolume;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mainstay_api::kinds::removal::REMOVING;
use mainstay_api::{Kind, ObjectKey, kinds, object};
use mainstay_client::{Informer, ListOptions, Notice, PatchType};
use mainstay_logic::controllers::persistentvolume::asked;
use mainstay_logic::kubelet::PodEvent;
use mainstay_logic::volume::annotation;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{VolumeError, copies, export, growth, reclaim, recycle};
use crate::kubelet::Kubelet;
use crate::kubelet::events::Regarding;
use crate::kubelet::lease::Hold;

/// The pause after a first failure; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause between two attempts.
const MAX_PAUSE: Duration = Duration::from_secs(120);
/// How long the use of a volume waits for the node's Lease before it fails.
const PATIENCE: Duration = Duration::from_secs(5);

/// How far an attempt came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing is left to do, or nothing until the volume changes.
    Done,
    /// Its users stand in the way: again when they have changed.
    InUse,
    /// Its data is removed, and the object let go: whatever the watch still says of it is old.
    Gone,
}

/// What this node is to do with a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    Grow,
    Reclaim,
    Recycle,
    /// What a claim asked to start with.
    Copy,
    /// Whatever a folder of an export wants.
    Export,
}

fn task(kubelet: &Kubelet, volume: &PersistentVolume) -> Option<Task> {
    let node = &kubelet.config.node_name;
    if export::is_wanted(volume, node) {
        Some(Task::Export)
    } else if reclaim::is_wanted(volume, node) {
        Some(Task::Reclaim)
    } else if asked(volume, node).is_some() {
        Some(Task::Recycle)
    } else if copies::is_wanted(volume, node) {
        Some(Task::Copy)
    } else {
        growth::is_wanted(kubelet, volume).then_some(Task::Grow)
    }
}

/// Watches the volumes until dropped.
pub async fn run(kubelet: Arc<Kubelet>) {
    if let Err(error) = kubelet.volumes.release_unused().await {
        tracing::warn!(%error, "volumes that nobody uses stay mounted");
    }
    let wanted = |kubelet: &Kubelet, volume: &PersistentVolume| task(kubelet, volume).is_some();
    each(kubelet, &kinds::PERSISTENT_VOLUME, wanted, |kubelet, volume| {
        Box::pin(async move { attempt(&kubelet, &volume).await })
    })
    .await;
}

/// Does what one object wants, as far as that is possible now.
pub(super) type Attempt<T> = fn(Arc<Kubelet>, T) -> Pin<Box<dyn Future<Output = Result<Progress, VolumeError>> + Send>>;

/// Watches the objects of a kind until dropped, with a task for each that wants something of this node.
pub(super) async fn each<T>(kubelet: Arc<Kubelet>, kind: &Kind, wanted: fn(&Kubelet, &T) -> bool, attempt: Attempt<T>)
where
    T: DeserializeOwned + Clone + Send + Sync + 'static,
{
    let mut informer = Informer::new(kubelet.config.client.clone(), kind, "", ListOptions::default());
    let mut tended: BTreeMap<ObjectKey, watch::Sender<T>> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    loop {
        let (key, value) = match informer.next().await {
            Notice::Put(key, value) => (key, serde_json::from_value::<T>(value).ok()),
            Notice::Gone(key, _) => (key, None),
            Notice::Synced => continue,
        };
        match value.filter(|object| wanted(&kubelet, object)) {
            // An attempt that is under way comes to its end; then nothing follows.
            None => drop(tended.remove(&key)),
            Some(object) => match tended.get(&key) {
                Some(task) => drop(task.send_replace(object)),
                None => {
                    let (sender, receiver) = watch::channel(object);
                    tended.insert(key, sender);
                    let kubelet = kubelet.clone();
                    tasks.spawn(async move {
                        let users = kubelet.volumes.users().changes();
                        reconcile(&kubelet.hold, users, receiver, |object| attempt(kubelet.clone(), object)).await;
                    });
                }
            },
        }
        while tasks.try_join_next().is_some() {}
    }
}

/// Does what one object wants, until it wants nothing more, or another machine is this node.
async fn reconcile<T, F>(
    hold: &Hold,
    mut users: watch::Receiver<()>,
    mut newest: watch::Receiver<T>,
    attempt: impl Fn(T) -> F,
) where
    T: Clone + Send + Sync,
    F: Future<Output = Result<Progress, VolumeError>>,
{
    let mut pause = FIRST_PAUSE;
    loop {
        // Meanwhile it may have come to want nothing more.
        if !hold.held().await || newest.has_changed().is_err() {
            return;
        }
        // Marked before the look: what changes from here on wakes.
        users.mark_unchanged();
        let object = newest.borrow_and_update().clone();
        let result = tokio::select! {
            result = attempt(object) => result,
            () = hold.given_up() => return,
        };
        if matches!(result, Ok(Progress::Gone)) {
            return;
        }
        let failed = result.is_err();
        let wanted = tokio::select! {
            wanted = newest.changed() => wanted.is_ok(),
            _ = users.changed(), if matches!(result, Ok(Progress::InUse)) => true,
            () = tokio::time::sleep(pause), if failed => true,
        };
        if !wanted {
            return;
        }
        pause = if failed { (pause * 2).min(MAX_PAUSE) } else { FIRST_PAUSE };
    }
}

/// Whether what was found or made here may be said of this node's: asked before each word to the API, for the Lease may
/// have been lost since the attempt began (S1).
///
/// # Errors
/// Where this agent may not be the node; tried again when it is.
pub(super) fn ensure_held(kubelet: &Kubelet) -> Result<(), VolumeError> {
    if kubelet.hold.is_held() {
        return Ok(());
    }
    Err(VolumeError::Refused("the node's lease is not held by this agent now".to_owned()))
}

/// As [`ensure_held`], after a moment's patience: an agent that has just begun is about to have it.
pub(super) async fn wait_held(kubelet: &Kubelet) -> Result<(), VolumeError> {
    let _ = tokio::time::timeout(PATIENCE, kubelet.hold.held()).await;
    ensure_held(kubelet)
}

/// An object as the API itself has it now, if exactly this one is being deleted: only then is anything of it removed
/// from a disk, and only as this one says (A10). What the watch said may be old, its name may be another object's by
/// now, and an object that is not there at all says nothing about the data. Whoever asks has the lock of what is to be
/// removed, so that nothing is waited for between the answer and [`announce`].
pub(super) async fn being_deleted<T: DeserializeOwned>(
    kubelet: &Kubelet,
    kind: &Kind,
    metadata: &ObjectMeta,
) -> Result<Option<T>, VolumeError> {
    let name = metadata.name.as_deref().unwrap_or("");
    match kubelet.config.client.get(kind, "", name).await {
        Ok(newest) => {
            let same = metadata.uid.as_deref().is_some_and(|uid| !uid.is_empty() && uid == object::uid(&newest));
            if !same || !object::is_terminating(&newest) {
                return Ok(None);
            }
            Ok(Some(serde_json::from_value(newest).map_err(|error| format!("{} {name}: {error}", kind.kind))?))
        }
        Err(error) if error.is_not_found() => {
            tracing::warn!(kind = %kind.kind, name, "it is gone before its data was removed; the data stays");
            Ok(None)
        }
        Err(error) => Err(VolumeError::Refused(format!("failed to fetch {} {name}: {error}", kind.kind))),
    }
}

/// Says on an object that its data is being removed, before the first byte is: from then on the API refuses to have the
/// data kept ([`REMOVING`]). Gives the object's metadata after that, or nothing where it was changed meanwhile: the
/// watch brings the newer one.
pub(super) async fn announce(
    kubelet: &Kubelet,
    kind: &Kind,
    metadata: &ObjectMeta,
) -> Result<Option<ObjectMeta>, VolumeError> {
    ensure_held(kubelet)?;
    if !annotation(metadata, REMOVING).is_empty() {
        return Ok(Some(metadata.clone()));
    }
    let name = metadata.name.as_deref().unwrap_or("");
    let patch = json!({ "metadata": {
        "uid": metadata.uid, "resourceVersion": metadata.resource_version,
        "annotations": { (REMOVING): kubelet.config.node_name },
    } });
    let failed = |error: String| VolumeError::Refused(format!("noting on {} {name} its removal: {error}", kind.kind));
    match kubelet.config.client.patch(kind, "", name, "", PatchType::Merge, &patch).await {
        Ok(newest) => {
            let metadata = newest.get("metadata").cloned().unwrap_or_default();
            serde_json::from_value(metadata).map(Some).map_err(|error| failed(error.to_string()))
        }
        Err(error) if error.is_not_found() || error.is_conflict() => Ok(None),
        Err(error) => Err(failed(error.to_string())),
    }
}

async fn attempt(kubelet: &Kubelet, volume: &PersistentVolume) -> Result<Progress, VolumeError> {
    match task(kubelet, volume) {
        None => Ok(Progress::Done),
        Some(Task::Grow) => growth::grow(kubelet, volume).await,
        // It tells the claim's people by itself.
        Some(Task::Copy) => copies::copy(kubelet, volume).await,
        Some(Task::Export) => {
            let result = export::attend(kubelet, volume).await;
            result.inspect_err(|error| record_event(kubelet, volume, "NfsFolderFailed", error.to_string()))
        }
        Some(Task::Reclaim) => {
            let result = reclaim::reclaim(kubelet, volume).await;
            result.inspect_err(|error| record_event(kubelet, volume, "VolumeFailedDelete", error.to_string()))
        }
        Some(Task::Recycle) => {
            let result = recycle::recycle(kubelet, volume).await;
            result.inspect_err(|error| {
                record_event(kubelet, volume, "VolumeFailedRecycle", format!("Volume recycling failed: {error}"))
            })
        }
    }
}

fn record_event(kubelet: &Kubelet, volume: &PersistentVolume, reason: &'static str, message: String) {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (name, uid) = (text(&volume.metadata.name), text(&volume.metadata.uid));
    tracing::warn!(volume = %name, reason, message, "tried again later");
    let regarding = Regarding { kind: "PersistentVolume".into(), namespace: String::new(), name, uid };
    kubelet.events.record(regarding, PodEvent { warning: true, reason, message, container: None });
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn s1_v3_nothing_of_a_volume_is_begun_by_an_agent_that_is_not_the_node() {
        let begun = Mutex::new(Vec::new());
        let attempt = |object: u32| {
            begun.lock().unwrap().push(object);
            std::future::ready(Ok(Progress::Done))
        };
        let (_users, users) = watch::channel(());
        let (object, newest) = watch::channel(1);
        let lost = Hold::default();
        {
            let mut work = Box::pin(reconcile(&lost, users.clone(), newest.clone(), attempt));
            assert!(is_waiting(&mut work).await);
            object.send_replace(2);
            assert!(is_waiting(&mut work).await);
            assert_eq!(*begun.lock().unwrap(), [0_u32; 0], "the Lease was never held");
            lost.give_up("n");
            work.await;
        }
        let held = Hold::undisputed();
        let mut work = Box::pin(reconcile(&held, users.clone(), newest.clone(), attempt));
        assert!(is_waiting(&mut work).await);
        assert_eq!(*begun.lock().unwrap(), [2]);
        held.give_up("n");
        object.send_replace(3);
        work.await;
        assert_eq!(*begun.lock().unwrap(), [2], "another machine is the node");
    }

    #[tokio::test]
    async fn s1_v3_an_attempt_ends_when_another_machine_is_the_node() {
        let (_users, users) = watch::channel(());
        let (_object, newest) = watch::channel(1);
        let held = Hold::undisputed();
        let mut work = Box::pin(reconcile(&held, users, newest, |_| std::future::pending()));
        assert!(is_waiting(&mut work).await);
        held.give_up("n");
        work.await;
    }

    /// Whether it waits for something, after all that is at hand was done.
    async fn is_waiting<F: Future>(work: &mut Pin<Box<F>>) -> bool {
        tokio::select! {
            biased;
            _ = work => false,
            () = tokio::task::yield_now() => true,
        }
    }
}
