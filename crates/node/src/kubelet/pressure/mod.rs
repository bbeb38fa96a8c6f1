//! Keeps the node from running full: what is short becomes the node's conditions, and room is made, first by what
//! nobody misses (what ended containers wrote, images that no pod uses and that a registry has), then by evicting pods,
//! one at a time ([`mainstay_logic::kubelet::pressure`]).
//!
//! Differs: an image that was loaded from an archive is never removed, since no registry would give it back. Pods are
//! counted only while something is short.

mod collection;
mod flags;
mod measures;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::SignedDuration;
use mainstay_logic::kubelet::PodEvent;
use mainstay_logic::kubelet::eviction::{Usage, volumes};
use mainstay_logic::kubelet::pressure::{
    Condition, Conditions, Shortage, Signal, Thresholds, default_thresholds, shortages, victim,
};
use mainstay_runtime::{fence, safe_path};

use super::Kubelet;
use super::events::Regarding;
use super::eviction::{Folders, folders_of, tell};
use super::pods::PodHandle;
use collection::Collection;
pub use flags::thresholds;

/// How often is looked, as upstream; and while something is short, and something may be done about it.
const LOOK_EVERY: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// How long an evicted pod may take to end before another one is looked for, as upstream.
const EVICTION_TIME: Duration = Duration::from_secs(30);
/// After a count of what all pods have follows a pause so many times as long, so that it costs a part of one thread.
const PAUSE: u32 = 4;

/// When a node is short of something.
#[derive(Clone, Debug)]
pub struct EvictionPolicy {
    pub thresholds: Thresholds,
    /// How long a condition stays after what it says was last seen.
    pub transition_period: SignedDuration,
}

impl Default for EvictionPolicy {
    fn default() -> Self {
        Self { thresholds: default_thresholds(), transition_period: SignedDuration::from_mins(5) }
    }
}

/// What this node is short of.
#[derive(Debug, Default)]
pub struct Pressure(Mutex<BTreeSet<Condition>>);

impl Pressure {
    /// The conditions that hold.
    pub fn conditions(&self) -> BTreeSet<Condition> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether they are others than before.
    fn set(&self, now: BTreeSet<Condition>) -> bool {
        let mut conditions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *conditions, now.clone()) != now
    }
}

/// What one look knows of those before.
#[derive(Default)]
struct Rounds {
    conditions: Conditions,
    /// Who was evicted last, and when.
    evicted: Option<(String, Instant)>,
    /// Nobody is counted before.
    resting: Option<Instant>,
    /// It was said that no eviction would help.
    has_given_up: bool,
    collection: Collection,
}

/// Looks until dropped.
pub(super) async fn run(kubelet: Arc<Kubelet>) {
    let mut rounds = Rounds::default();
    loop {
        look(&kubelet, &mut rounds).await;
        let is_quiet = rounds.has_given_up || kubelet.pressure.conditions().is_empty();
        tokio::time::sleep(if is_quiet { LOOK_EVERY } else { LOOK_AGAIN }).await;
    }
}

async fn look(kubelet: &Arc<Kubelet>, rounds: &mut Rounds) {
    let mut short = measured(kubelet).await;
    collection::keep_room(kubelet, &mut rounds.collection).await;
    let held = kubelet.config.eviction.transition_period;
    let now = SignedDuration::try_from(fence::boottime()).unwrap_or(SignedDuration::MAX);
    let conditions = rounds.conditions.observe(&short, now, held);
    let before = kubelet.pressure.conditions();
    for condition in conditions.difference(&before) {
        warn(&short, *condition);
    }
    if kubelet.pressure.set(conditions) {
        kubelet.status_due.notify_one();
    }
    if !short.iter().any(is_of_disk) {
        (rounds.has_given_up, rounds.resting) = (false, None);
        return;
    }
    if let Some(shortage) = short.iter().find(|shortage| is_of_disk(shortage) && !rounds.has_given_up) {
        record_attempt(kubelet, shortage);
    }
    collection::remove_unused(kubelet, &mut rounds.collection).await;
    short = measured(kubelet).await;
    // Images on a file system of their own are nobody's: to evict who uses them gives no room there.
    let of_pods = |shortage: &&Shortage| matches!(shortage.signal, Signal::NodefsAvailable | Signal::NodefsInodesFree);
    if let Some(shortage) = short.iter().find(of_pods).copied() {
        evict_one(kubelet, rounds, shortage).await;
    } else if let Some(shortage) = short.iter().find(|shortage| is_of_disk(shortage)) {
        give_up(kubelet, rounds, shortage);
    }
}

fn is_of_disk(shortage: &Shortage) -> bool {
    shortage.signal.condition() == Condition::DiskPressure
}

async fn measured(kubelet: &Arc<Kubelet>) -> Vec<Shortage> {
    let kubelet = kubelet.clone();
    let read = move || {
        let measures = measures::read(&kubelet.config.data_dir, kubelet.images.root());
        shortages(&kubelet.config.eviction.thresholds, &measures)
    };
    tokio::task::spawn_blocking(read).await.unwrap_or_default()
}

/// Whoever looks after the machine learns what is short, and what to do where that was not meant.
fn warn(short: &[Shortage], condition: Condition) {
    for shortage in short.iter().filter(|shortage| shortage.signal.condition() == condition) {
        tracing::warn!(
            signal = shortage.signal.name(),
            available = shortage.measure.available,
            least = shortage.least,
            "this node is short: it takes no new pods until there is more again (--eviction-hard sets how little is \
             too little)"
        );
    }
}

/// Ends the pod that is to go first. One at a time: the next one only when it is gone, or does not go.
async fn evict_one(kubelet: &Arc<Kubelet>, rounds: &mut Rounds, shortage: Shortage) {
    let handles: Vec<PodHandle> = kubelet.pods.all().into_iter().filter(|handle| handle.takes_room).collect();
    if let Some((uid, since)) = &rounds.evicted
        && since.elapsed() < EVICTION_TIME
        && handles.iter().any(|handle| handle.context.uid == *uid)
    {
        return;
    }
    if rounds.resting.is_some_and(|until| until > Instant::now()) {
        return;
    }
    let begun = Instant::now();
    let folders: Vec<(PodHandle, Folders)> =
        handles.into_iter().map(|handle| (handle.clone(), of_whole_pod(kubelet, &handle))).collect();
    let counted = tokio::task::spawn_blocking(move || {
        let count = if shortage.signal.counts_inodes() { safe_path::usage::inodes } else { safe_path::usage::bytes };
        folders.into_iter().map(|(handle, folders)| (handle, folders.count(u64::MAX, count))).collect::<Vec<_>>()
    });
    let Ok(counted): Result<Vec<(PodHandle, Usage)>, _> = counted.await else {
        return tracing::error!("what pods have on disk was not counted");
    };
    rounds.resting = Some(Instant::now() + begun.elapsed() * PAUSE);
    let pods: Vec<_> = counted.iter().map(|(handle, usage)| (&*handle.context.pod, usage.clone())).collect();
    let Some((pod, message)) = victim(&pods, &shortage) else {
        return give_up(kubelet, rounds, &shortage);
    };
    let uid = pod.metadata.uid.as_deref().unwrap_or("");
    let Some((handle, _)) = counted.iter().find(|(handle, _)| handle.context.uid == uid) else { return };
    tracing::info!(pod = %handle.context.name, namespace = %handle.context.namespace, message, "evicted");
    rounds.has_given_up = false;
    // A worker that is far behind hears of it after the next look.
    if tell(kubelet, handle, message).await {
        rounds.evicted = Some((uid.to_owned(), Instant::now()));
    }
}

/// All that a pod has on the node's disk, limited or not.
fn of_whole_pod(kubelet: &Kubelet, handle: &PodHandle) -> Folders {
    let names = volumes(&handle.context.pod).map(|volume| volume.name.as_str());
    folders_of(kubelet, &handle.context, names, true)
}

/// Nobody's eviction would help. Said once, until something has changed.
fn give_up(kubelet: &Kubelet, rounds: &mut Rounds, shortage: &Shortage) {
    if std::mem::replace(&mut rounds.has_given_up, true) {
        return;
    }
    let missing = shortage.least.saturating_sub(shortage.measure.available);
    let message = format!(
        "{} of {} are missing, and no pod has enough of its own there that its eviction would help: what fills the \
         disk are volumes, loaded images, or files that are not the cluster's",
        missing,
        shortage.signal.name()
    );
    record(kubelet, true, "FreeDiskSpaceFailed", message);
}

fn record_attempt(kubelet: &Kubelet, shortage: &Shortage) {
    let message = format!("Attempting to reclaim {}", shortage.signal.resource());
    record(kubelet, true, "EvictionThresholdMet", message);
}

/// An event of this node.
pub(super) fn record(kubelet: &Kubelet, warning: bool, reason: &'static str, message: String) {
    let name = &kubelet.config.node_name;
    // Upstream's kubelet names a node by its name where others have its uid, and kubectl looks for both.
    let regarding = Regarding { kind: "Node".into(), namespace: String::new(), name: name.clone(), uid: name.clone() };
    kubelet.events.record(regarding, PodEvent { warning, reason, message, container: None });
}
