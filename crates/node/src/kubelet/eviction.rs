//! Pods with limits on what they write to this node's disk are looked at now and then, and evicted beyond them
//! ([`mainstay_logic::kubelet::eviction`]).
//!
//! What has no limit is not counted here (but see [`super::pressure`]). A pod whose files take long to count is looked
//! at less often, so that all that counting costs a small part of one thread at most, however many files somebody
//! makes.
//!
//! Differs: upstream can have a file system's project quotas count; files that were removed and are still open count
//! with those only.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mainstay_logic::kubelet::Fact;
use mainstay_logic::kubelet::eviction::{Limits, Usage, limits};
use mainstay_runtime::safe_path::usage;

use super::pods::PodHandle;
use super::{Kubelet, PodContext, files};

/// How often pods are looked at, as upstream.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// A look that took a while is followed by a pause so many times as long.
const PAUSE: u32 = 20;

/// Looks until dropped.
pub(super) async fn run(kubelet: Arc<Kubelet>) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut resting: BTreeMap<String, Instant> = BTreeMap::new();
    loop {
        ticks.tick().await;
        resting.retain(|_, until| *until > Instant::now());
        for handle in kubelet.pods.all() {
            let Some(limits) = limits(&handle.context.pod).filter(|_| handle.takes_room) else { continue };
            if resting.contains_key(&handle.context.uid) {
                continue;
            }
            let begun = Instant::now();
            look(&kubelet, &handle, limits).await;
            resting.insert(handle.context.uid.clone(), Instant::now() + begun.elapsed() * PAUSE);
        }
    }
}

/// Counts what a pod has, and says so where that is too much.
async fn look(kubelet: &Arc<Kubelet>, handle: &PodHandle, limits: Limits) {
    let folders = folders_of(kubelet, &handle.context, limits.volumes(), limits.counts_containers());
    let count = move || limits.exceeded(&folders.count(limits.enough(), usage::bytes));
    let counted = tokio::task::spawn_blocking(count).await;
    match counted {
        Ok(Some(message)) => {
            tracing::info!(pod = %handle.context.name, namespace = %handle.context.namespace, message, "evicted");
            // A worker that is far behind hears of it after the next look.
            tell(kubelet, handle, message).await;
        }
        Ok(None) => {}
        Err(error) => tracing::error!(pod = %handle.context.name, %error, "what a pod has on disk was not counted"),
    }
}

/// Has a pod evicted. It is noted first, so that an agent that dies now does not let the next one start it again; where
/// the disk takes no note it goes on regardless. False where its worker is too far behind to hear of it.
pub(super) async fn tell(kubelet: &Arc<Kubelet>, handle: &PodHandle, message: String) -> bool {
    let Ok(place) = handle.facts.try_reserve() else { return false };
    let (disk, uid, why) = (kubelet.disk.clone(), handle.context.uid.clone(), message.clone());
    let noted = tokio::task::spawn_blocking(move || disk.note_eviction(&uid, &why)).await;
    if let Err(error) = noted.map_err(std::io::Error::other).flatten() {
        tracing::warn!(pod = %handle.context.name, %error, "that a pod is evicted could not be noted");
    }
    place.send(Fact::Evicted { message });
    true
}

/// Where a pod writes: emptyDirs, and what its containers write to their root file systems and their logs.
pub(super) struct Folders {
    volumes: Vec<(String, PathBuf)>,
    containers: Vec<(String, PathBuf)>,
}

/// Where a pod writes to these volumes and, where those count, as containers.
pub(super) fn folders_of<'a>(
    kubelet: &Kubelet,
    context: &PodContext,
    volumes: impl Iterator<Item = &'a str>,
    counts_containers: bool,
) -> Folders {
    let volumes = volumes
        .filter_map(|name| Some((name.to_owned(), kubelet.volumes.mounted(&context.uid, name).ok()?.path)))
        .collect();
    let mut containers = Vec::new();
    if counts_containers {
        let (namespace, name, uid) = (&context.namespace, &context.name, &context.uid);
        // /etc/hosts and its like, termination messages: the node's files, which all of its containers may write.
        containers.extend(files::dir(&kubelet.disk, uid).ok().map(|files| (String::new(), files)));
        for status in kubelet.runtime.list().into_iter().filter(|status| status.pod_uid == *uid) {
            containers.push((status.name.clone(), kubelet.runtime.written_dir(&status.id)));
        }
        for container in
            context.spec().into_iter().flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers))
        {
            let logs = kubelet.disk.log_path(namespace, name, uid, &container.name, 0);
            containers.extend(logs.parent().map(|logs| (container.name.clone(), logs.to_owned())));
        }
    }
    Folders { volumes, containers }
}

impl Folders {
    /// Counts what is in each, up to `enough`. What is not there, or not any more, takes nothing. Blocking.
    pub(super) fn count(self, enough: u64, count: fn(&Path, u64) -> io::Result<u64>) -> Usage {
        let mut counted = Usage::default();
        let sums = [(self.volumes, &mut counted.volumes), (self.containers, &mut counted.containers)];
        for (folders, sums) in sums {
            for (name, folder) in folders {
                let sum: &mut u64 = sums.entry(name).or_default();
                *sum = sum.saturating_add(count(&folder, enough).unwrap_or(0));
            }
        }
        counted
    }
}
