//! Deadlines (S13): which pods' containers end by themselves when this node's lease is not renewed, and when a
//! container of such a pod may start.
//!
//! It is decided once, when the pod's sandbox is made, and kept with that, or before, when something of another
//! machine's is mounted for it, which has the deadline too ([`fence`]). The pod's condition says so to the server,
//! which may rely on it from then on. A deadline that was noted is never taken back and never made longer.
//!
//! A container that ended at its deadline must not begin again only because the lease is renewed: the pod may be
//! elsewhere by now. So each time that the renewals begin anew after a gap, the API is asked first whether the pod is
//! still there. A pod is taken away only if the lease stood still until that is committed, so what is still there after
//! a renewal is not taken away.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, Pod};
use mainstay_api::{kinds, object};
use mainstay_logic::kubelet::Fact;
use mainstay_logic::{fencing, pods};
use mainstay_runtime::fence::{self, Fence};
use mainstay_runtime::{Deadline, SandboxStatus};
use tokio::sync::watch;

use super::{Kubelet, PodContext, execute};

/// Where a sandbox keeps its pod's deadline: seconds, or nothing.
const ANNOTATION: &str = "mainstay.io/deadline";
/// How long a start waits for a renewal, or for the API's answer, before the pod is looked at anew.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is known of the pods with deadlines.
#[derive(Default)]
pub struct Deadlines {
    /// By uid: since when the lease was renewed without a gap when the API last said that the pod is there.
    asked: Mutex<BTreeMap<String, Duration>>,
    /// Changes with each renewal.
    renewed: watch::Sender<()>,
}

impl Deadlines {
    /// The lease was renewed.
    pub fn note_renewal(&self) {
        self.renewed.send_replace(());
    }

    /// Nothing is left of a pod.
    pub fn forget(&self, uid: &str) {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    fn was_asked(&self, uid: &str, since: Duration) -> bool {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).get(uid) == Some(&since)
    }

    fn note_asked(&self, uid: &str, since: Duration) {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.to_owned(), since);
    }
}

/// Whether a container may start.
pub(super) enum MayStart {
    /// It may, with this deadline; and the pod as the API has it, where it was asked.
    Yes(Vec<Fact>, Option<Deadline>),
    /// Not now: with what was learnt, if anything.
    No(Vec<Fact>),
}

/// After how many seconds without a renewal the pod's containers end, where they do.
pub fn of(kubelet: &Kubelet, uid: &str) -> Option<u32> {
    kubelet.runtime.sandbox_annotation(uid, ANNOTATION)?.parse().ok()
}

/// Decides on the deadline of a pod whose sandbox is made, once.
///
/// # Errors
/// In words: it is not known where the pod's volumes live.
pub(super) async fn decide(kubelet: &Kubelet, context: &PodContext, sandbox: &SandboxStatus) -> Result<(), String> {
    if sandbox.annotations.contains_key(ANNOTATION) {
        return Ok(());
    }
    let seconds = decided(kubelet, context).await?;
    let text = seconds.map(|seconds| seconds.to_string()).unwrap_or_default();
    let noted = kubelet.runtime.set_sandbox_annotation(&context.uid, ANNOTATION, &text).await;
    noted.map_err(|error| error.to_string())
}

/// The deadline of what is mounted for a pod from another machine, from now on; decided here where the pod has no
/// sandbox yet. None for a pod without one.
///
/// # Errors
/// In words: it is not known where the pod's volumes live, or it could not be noted.
pub async fn fence(kubelet: &Kubelet, context: &PodContext) -> Result<Option<Fence>, String> {
    let seconds = match kubelet.runtime.sandbox_annotation(&context.uid, ANNOTATION) {
        Some(decided) => decided.parse().ok(),
        None => {
            let noted = kubelet.disk.note_deadline(&context.uid, decided(kubelet, context).await?);
            noted.map_err(|error| format!("noting the pod's deadline: {error}"))?
        }
    };
    let since = kubelet.runtime.renewals().since;
    Ok(seconds.map(|seconds| kubelet.runtime.fence(Deadline { seconds, since })))
}

/// As it was decided before, here or as the server knows it, or anew.
async fn decided(kubelet: &Kubelet, context: &PodContext) -> Result<Option<u32>, String> {
    match kubelet.disk.deadline(&context.uid).or_else(|| fencing::noted(&context.pod).map(Some)) {
        Some(decided) => Ok(decided),
        None => wanted(kubelet, &context.pod).await,
    }
}

async fn wanted(kubelet: &Kubelet, pod: &Pod) -> Result<Option<u32>, String> {
    let config = &kubelet.config;
    let at_most = fencing::wanted(pod, config.fencing, false, config.lease_seconds);
    if at_most.is_none() {
        return Ok(None);
    }
    let is_pinned = fencing::has_host_path(pod) || has_pinned_claim(kubelet, pod).await?;
    Ok(fencing::wanted(pod, config.fencing, is_pinned, config.lease_seconds))
}

async fn has_pinned_claim(kubelet: &Kubelet, pod: &Pod) -> Result<bool, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
    for (name, _) in pods::claim_names(pod) {
        let read = |error| format!("reading where the volume of claim {name} lives: {error}");
        let claim = kubelet.objects.get(&kinds::PERSISTENT_VOLUME_CLAIM, namespace, &name).await.map_err(read)?;
        let volume = object::text(&claim, &["spec", "volumeName"]);
        let volume = kubelet.objects.get(&kinds::PERSISTENT_VOLUME, "", volume).await.map_err(read)?;
        let volume: PersistentVolume = serde_json::from_value(volume).map_err(|error| error.to_string())?;
        if fencing::pins(&volume) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a container of the pod may start; waits a moment where it may not.
pub(super) async fn may_start(kubelet: &Kubelet, context: &PodContext) -> MayStart {
    let mut renewed = kubelet.deadlines.renewed.subscribe();
    let seconds = of(kubelet, &context.uid);
    if !kubelet.hold.may_begin(&context.pod, seconds) {
        let _ = tokio::time::timeout(PATIENCE, renewed.changed()).await;
        if !kubelet.hold.may_begin(&context.pod, seconds) {
            // What a person is to say was said once.
            if !kubelet.hold.is_elsewhere() {
                tracing::warn!(
                    pod = context.name,
                    "a container waits until this machine alone is the node for certain"
                );
            }
            return MayStart::No(Vec::new());
        }
    }
    let Some(seconds) = seconds else { return MayStart::Yes(Vec::new(), None) };
    let known = kubelet.runtime.renewals();
    if known.since.is_zero() || known.deadline(seconds) <= fence::boottime() {
        tracing::warn!(pod = context.name, seconds, "a container waits until the node's lease is renewed");
        let _ = tokio::time::timeout(PATIENCE, renewed.changed()).await;
        return MayStart::No(Vec::new());
    }
    let deadline = Some(Deadline { seconds, since: known.since });
    if kubelet.deadlines.was_asked(&context.uid, known.since) {
        return MayStart::Yes(Vec::new(), deadline);
    }
    let Ok(answer) = tokio::time::timeout(PATIENCE, execute::verify(kubelet, context)).await else {
        return MayStart::No(Vec::new());
    };
    let is_there =
        answer.facts.iter().any(|fact| matches!(fact, Fact::Pod(pod) if pod.metadata.deletion_timestamp.is_none()));
    if is_there {
        kubelet.deadlines.note_asked(&context.uid, known.since);
        return MayStart::Yes(answer.facts, deadline);
    }
    MayStart::No(answer.facts)
}
