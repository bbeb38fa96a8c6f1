//! From the watch of this node's pods to one worker per pod uid.
//!
//! The [`Dispatcher`] decides which begin and what they hear; here are its hands. A restarted agent first learns what
//! should run (the API's list), then what does (the runtime's list, the disk), and only then lets anything happen.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mainstay_api::{kinds, object};
use mainstay_client::{Informer, ListOptions, Notice};
use mainstay_logic::kubelet::admission::{self, Refusal};
use mainstay_logic::kubelet::{Dispatch, Dispatcher, Fact};
use tokio::sync::{broadcast, mpsc, watch};

use super::worker::{Message, Worker};
use super::{Kubelet, PodContext};
use mainstay_runtime::ContainerStatus;

/// Messages that wait for a worker. The dispatcher waits for a worker that is this far behind; workers never block
/// for long: what takes time runs beside them.
pub(super) const INBOX: usize = 64;

/// What runs on this node, by pod uid. Cheap to clone; for exec, logs and port-forward.
#[derive(Clone, Default)]
pub struct Pods {
    shared: Arc<Mutex<BTreeMap<String, PodHandle>>>,
    /// Counts how often room became free.
    freed: Arc<watch::Sender<u64>>,
}

/// One pod of this node.
#[derive(Clone)]
pub struct PodHandle {
    pub context: PodContext,
    /// Its address, once it has a network.
    pub ip: Option<String>,
    /// The newest attempt of each container.
    pub attempts: BTreeMap<String, u32>,
    /// It was admitted here, and takes of what the node has.
    pub takes_room: bool,
    /// What it takes will be free soon.
    pub is_going: bool,
    /// Where its worker hears what others found out about it.
    pub(super) facts: mpsc::Sender<Fact>,
}

impl Pods {
    /// By namespace and name; by uid too where one is given. Of several uids of one name the newest.
    pub fn find(&self, namespace: &str, name: &str, uid: Option<&str>) -> Option<PodHandle> {
        let all = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found: Vec<&PodHandle> = all
            .values()
            .filter(|handle| handle.context.namespace == namespace && handle.context.name == name)
            .filter(|handle| uid.is_none_or(|uid| handle.context.uid == uid))
            .collect();
        found.sort_by_key(|handle| handle.context.pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
        found.last().map(|handle| (*handle).clone())
    }

    /// A pod's address, by uid.
    pub fn ip(&self, uid: &str) -> Option<String> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).get(uid)?.ip.clone()
    }

    /// All pods, for summaries.
    pub fn all(&self) -> Vec<PodHandle> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Takes a pod in beside the others, or says why not. One at a time: two pods never both get what is left.
    pub(super) fn admit(&self, handle: PodHandle, node: &Node) -> Option<Misfit> {
        let mut all = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let new = handle.context.clone();
        // Whoever had the name before is waited for.
        let is_other = |other: &&PodHandle| {
            let of = &other.context;
            other.takes_room && of.uid != new.uid && (of.namespace != new.namespace || of.name != new.name)
        };
        let others = all.values().filter(is_other);
        let Some(refusal) = admission::misfit(&new.pod, node, others.clone().map(|other| &*other.context.pod)) else {
            all.insert(new.uid.clone(), handle);
            return None;
        };
        let staying = others.filter(|other| !other.is_going).map(|other| &*other.context.pod);
        let fits_soon = admission::misfit(&new.pod, node, staying).is_none();
        Some(Misfit { refusal, fits_soon })
    }

    /// Changes whenever room has become free.
    pub(super) fn freed(&self) -> watch::Receiver<u64> {
        self.freed.subscribe()
    }

    pub(super) fn put(&self, handle: PodHandle) {
        let takes_room = handle.takes_room;
        let old = self.shared.lock().unwrap_or_else(PoisonError::into_inner).insert(handle.context.uid.clone(), handle);
        if !takes_room && old.is_some_and(|old| old.takes_room) {
            self.freed.send_modify(|count| *count += 1);
        }
    }

    fn remove(&self, uid: &str) {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
        self.freed.send_modify(|count| *count += 1);
    }
}

/// Why a pod does not fit now.
pub(super) struct Misfit {
    pub refusal: Refusal,
    /// It will when those that are going are gone.
    pub fits_soon: bool,
}

/// How a worker ended, and what it was about.
enum Done {
    /// Nothing is left of the pod.
    Ended(String),
    /// It panicked.
    Broke(String),
    /// It did a while ago: it is begun anew.
    Again(String),
}

/// Says how a worker ended, also when it panics.
struct Farewell {
    done: mpsc::UnboundedSender<Done>,
    uid: String,
    has_ended: bool,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        let uid = std::mem::take(&mut self.uid);
        // An error means that the dispatcher is gone, and so is whoever cares.
        let _ = self.done.send(if self.has_ended { Done::Ended(uid) } else { Done::Broke(uid) });
    }
}

/// Runs a worker to its end, whatever that is.
async fn attended(work: impl Future<Output = ()>, done: mpsc::UnboundedSender<Done>, uid: String) {
    let mut farewell = Farewell { done, uid, has_ended: false };
    work.await;
    farewell.has_ended = true;
}

/// The pause before a worker that broke is begun anew; it doubles up to the second.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(10);

struct Attended {
    /// How often it broke.
    broke: u32,
    inbox: mpsc::Sender<Message>,
    /// The worker; ended with this entry, so that a stopped agent stops deciding.
    task: tokio::task::AbortHandle,
}

impl Drop for Attended {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The workers, by pod uid, as the [`Dispatcher`] has them.
struct Workers {
    kubelet: Arc<Kubelet>,
    dispatcher: Dispatcher,
    workers: BTreeMap<String, Attended>,
    done: mpsc::UnboundedSender<Done>,
}

/// Runs until dropped.
pub(super) async fn run(kubelet: Arc<Kubelet>) {
    let Some(kind) = kinds::find("", "v1", "pods") else { return };
    let options =
        ListOptions { field_selector: format!("spec.nodeName={}", kubelet.config.node_name), ..ListOptions::default() };
    let mut informer = Informer::new(kubelet.config.client.clone(), &kind, "", options);
    let mut changes = kubelet.runtime.subscribe();
    // Each worker sends its uid once, at its end.
    let (done, mut ended) = mpsc::unbounded_channel();
    let (notices, mut noticed) = mpsc::channel(INBOX);
    // `Informer::next` must not be cancelled, so it has a task of its own.
    let mut watching = tokio::task::JoinSet::new();
    watching.spawn(async move { while notices.send(informer.next().await).await.is_ok() {} });
    let mut replaced = kubelet.hold.replaced();
    let mut workers = Workers { kubelet, dispatcher: Dispatcher::default(), workers: BTreeMap::new(), done };
    loop {
        tokio::select! {
            notice = noticed.recv() => match notice {
                None => return,
                Some(notice) => workers.notice(notice).await,
            },
            change = changes.recv() => match change {
                Ok(status) => workers.container(status).await,
                Err(broadcast::error::RecvError::Lagged(_)) => workers.relist().await,
                Err(broadcast::error::RecvError::Closed) => return,
            },
            Ok(()) = replaced.changed() => workers.replaced().await,
            done = ended.recv() => match done {
                Some(Done::Ended(uid)) => workers.ended(&uid).await,
                Some(Done::Broke(uid)) => workers.broke(uid),
                Some(Done::Again(uid)) => workers.again(&uid).await,
                None => return,
            }
        }
    }
}

impl Workers {
    /// Another machine is this node: whatever pods the API has for it are that one's, and here they end (S1).
    async fn replaced(&mut self) {
        // What is left of before the agent's start is taken in first, or it would run on.
        let mut dispatches = self.dispatcher.synced(|| left(&self.kubelet));
        dispatches.extend(self.dispatcher.all_replaced());
        for dispatch in dispatches {
            self.execute(dispatch).await;
        }
    }

    async fn notice(&mut self, notice: Notice) {
        if self.kubelet.hold.is_replaced() {
            return;
        }
        let dispatches = match notice {
            Notice::Put(key, value) => match serde_json::from_value::<Pod>(value) {
                Ok(pod) => self.dispatcher.put(pod),
                Err(error) => return tracing::warn!(pod = %key, %error, "a pod that cannot be read is not run"),
            },
            Notice::Gone(key, last) => self.dispatcher.gone(&key, object::uid(&last)),
            Notice::Synced => self.dispatcher.synced(|| left(&self.kubelet)),
        };
        for dispatch in dispatches {
            self.execute(dispatch).await;
        }
    }

    async fn execute(&mut self, dispatch: Dispatch) {
        match dispatch {
            Dispatch::Begin { uid, pod, held, predecessor } => self.begin(uid, pod, held, predecessor),
            Dispatch::Update { uid, update } => {
                if let Some(worker) = self.workers.get(&uid) {
                    // An error means that the worker broke: what it begins anew with is newer.
                    let _ = worker.inbox.send(Message::Update(update)).await;
                }
            }
        }
    }

    fn begin(&mut self, uid: String, pod: Arc<Pod>, held: bool, predecessor: Option<String>) {
        let (inbox, messages) = mpsc::channel(INBOX);
        let worker = Worker::new(self.kubelet.clone(), Arc::unwrap_or_clone(pod), predecessor, held, messages);
        let task = tokio::spawn(attended(worker.run(), self.done.clone(), uid.clone())).abort_handle();
        let broke = self.workers.get(&uid).map_or(0, |former| former.broke);
        self.workers.insert(uid, Attended { broke, inbox, task });
    }

    /// A worker that panicked is begun anew after a pause (S9); until then whoever waits for its pod's name goes on
    /// waiting.
    fn broke(&mut self, uid: String) {
        let Some(worker) = self.workers.get_mut(&uid) else { return };
        let pause = FIRST_PAUSE.saturating_mul(1 << worker.broke.min(10)).min(MAX_PAUSE);
        worker.broke += 1;
        let pod = self.dispatcher.key(&uid).map(ToString::to_string);
        tracing::error!(pod, uid, "a pod's worker broke; it is begun anew from what runs");
        let done = self.done.clone();
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            let _ = done.send(Done::Again(uid));
        });
    }

    async fn again(&mut self, uid: &str) {
        if let Some(dispatch) = self.dispatcher.again(uid) {
            self.execute(dispatch).await;
        }
    }

    async fn ended(&mut self, uid: &str) {
        self.kubelet.pods.remove(uid);
        self.workers.remove(uid);
        for dispatch in self.dispatcher.ended(uid) {
            self.execute(dispatch).await;
        }
    }

    async fn container(&self, status: ContainerStatus) {
        if let Some(worker) = self.workers.get(&status.pod_uid) {
            let _ = worker.inbox.send(Message::Container(Box::new(status))).await;
        }
    }

    async fn relist(&self) {
        for status in self.kubelet.runtime.list() {
            self.container(status).await;
        }
    }
}

/// What an earlier agent left, on the disk and in the runtime.
fn left(kubelet: &Kubelet) -> Vec<Pod> {
    let mut left: BTreeMap<String, Pod> = kubelet.disk.left().into_iter().map(|left| (left.uid, left.pod)).collect();
    for sandbox in kubelet.runtime.sandboxes() {
        left.entry(sandbox.pod_uid.clone()).or_insert_with(|| Pod {
            metadata: ObjectMeta {
                uid: Some(sandbox.pod_uid),
                namespace: Some(sandbox.namespace),
                name: Some(sandbox.name),
                ..ObjectMeta::default()
            },
            ..Pod::default()
        });
    }
    left.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handle(uid: &str, cpu: &str) -> PodHandle {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": { "namespace": "default", "name": uid, "uid": uid },
            "spec": { "containers": [{ "name": "c", "resources": { "requests": { "cpu": cpu } } }] },
        }))
        .expect("a pod");
        let (facts, _) = mpsc::channel(1);
        let context = PodContext::new(&pod);
        PodHandle { context, ip: None, attempts: BTreeMap::new(), takes_room: true, is_going: false, facts }
    }

    /// S12: a pod that is bound at the moment when another one's room is freed is not refused for it.
    #[test]
    fn s12_what_is_short_only_for_what_is_going_is_waited_for() {
        let node: Node = serde_json::from_value(serde_json::json!({
            "metadata": { "name": "n" }, "status": { "allocatable": { "cpu": "2", "pods": "10" } },
        }))
        .expect("a node");
        let pods = Pods::default();
        assert!(pods.admit(handle("old", "1500m"), &node).is_none());
        let misfit = pods.admit(handle("new", "1"), &node).expect("no room");
        assert_eq!((misfit.refusal.reason, misfit.fits_soon), ("OutOfcpu", false));
        pods.put(PodHandle { is_going: true, ..handle("old", "1500m") });
        assert!(pods.admit(handle("new", "1"), &node).expect("no room yet").fits_soon);
        assert!(!pods.admit(handle("large", "3"), &node).expect("never room").fits_soon);
        let mut freed = pods.freed();
        pods.put(PodHandle { is_going: true, takes_room: false, ..handle("old", "1500m") });
        assert!(freed.has_changed().expect("open"), "whoever waits is woken");
        freed.mark_unchanged();
        assert!(pods.admit(handle("new", "1"), &node).is_none());
        pods.remove("old");
        assert!(freed.has_changed().expect("open"));
    }

    #[tokio::test]
    async fn s9_a_worker_that_panics_says_so() {
        let (done, mut ended) = mpsc::unbounded_channel();
        let broken = tokio::spawn(attended(async { panic!("a planted panic") }, done.clone(), "a".to_owned()));
        assert!(broken.await.is_err());
        assert!(matches!(ended.recv().await, Some(Done::Broke(uid)) if uid == "a"));
        attended(async {}, done, "b".to_owned()).await;
        assert!(matches!(ended.recv().await, Some(Done::Ended(uid)) if uid == "b"));
    }
}
