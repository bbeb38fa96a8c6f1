//! From the watch of this node's pods to one worker per pod uid.
//!
//! A restarted agent first learns what runs (the runtime's list, the disk), then what should (the API's list), and
//! only then lets anything happen. A pod that a list lacks is asked for by name before it counts as gone, so that
//! neither a stale list nor a cut connection stops or starts anything.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mainstay_api::{ObjectKey, kinds, object};
use mainstay_client::{Informer, ListOptions, Notice};
use mainstay_logic::kubelet::Fact;
use mainstay_logic::kubelet::admission::{self, Refusal};
use serde_json::Value;
use tokio::sync::{broadcast, mpsc};

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
    pub(super) fn admit(&self, handle: PodHandle, node: &Node) -> Option<Refusal> {
        let mut all = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let new = handle.context.clone();
        // Whoever had the name before is waited for.
        let is_other = |other: &&PodHandle| {
            let of = &other.context;
            other.takes_room && of.uid != new.uid && (of.namespace != new.namespace || of.name != new.name)
        };
        let others = all.values().filter(is_other).map(|other| &*other.context.pod);
        let refusal = admission::misfit(&new.pod, node, others);
        if refusal.is_none() {
            all.insert(new.uid.clone(), handle);
        }
        refusal
    }

    pub(super) fn put(&self, handle: PodHandle) {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).insert(handle.context.uid.clone(), handle);
    }

    fn remove(&self, uid: &str) {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
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

struct Entry {
    key: ObjectKey,
    /// As the API last had it: what a worker that broke is begun anew with.
    pod: Arc<Pod>,
    /// How often its worker broke.
    broke: u32,
    /// Orders the uids of one name.
    serial: u64,
    inbox: mpsc::Sender<Message>,
    /// The worker; ended with this entry, so that a stopped agent stops deciding.
    task: tokio::task::AbortHandle,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Dispatcher {
    kubelet: Arc<Kubelet>,
    entries: BTreeMap<String, Entry>,
    serial: u64,
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
    let mut dispatcher = Dispatcher { kubelet, entries: BTreeMap::new(), serial: 0, done };
    let mut first_list = Some(Vec::new());
    loop {
        tokio::select! {
            notice = noticed.recv() => match notice {
                None => return,
                Some(Notice::Put(_, value)) => match &mut first_list {
                    Some(list) => list.push(value),
                    None => dispatcher.put(value).await,
                },
                Some(Notice::Gone(key, last)) => dispatcher.gone(&key, &last).await,
                Some(Notice::Synced) => {
                    if let Some(list) = first_list.take() {
                        dispatcher.adopt(list).await;
                    }
                }
            },
            change = changes.recv() => match change {
                Ok(status) => dispatcher.container(status).await,
                Err(broadcast::error::RecvError::Lagged(_)) => dispatcher.relist().await,
                Err(broadcast::error::RecvError::Closed) => return,
            },
            done = ended.recv() => match done {
                Some(Done::Ended(uid)) => dispatcher.ended(&uid).await,
                Some(Done::Broke(uid)) => dispatcher.broke(uid),
                Some(Done::Again(uid)) => dispatcher.again(&uid).await,
                None => return,
            }
        }
    }
}

impl Dispatcher {
    /// The first list is complete: what is left over from before the restart comes first, so that it blocks
    /// newcomers of the same name (S1).
    async fn adopt(&mut self, list: Vec<Value>) {
        let listed: Vec<&str> = list.iter().map(object::uid).collect();
        let mut left: BTreeMap<String, Pod> =
            self.kubelet.disk.left().into_iter().map(|left| (left.uid, left.pod)).collect();
        for sandbox in self.kubelet.runtime.sandboxes() {
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
        left.retain(|uid, _| !listed.contains(&uid.as_str()));
        for (uid, pod) in left {
            let key = key_of(&pod);
            self.spawn(uid.clone(), key.clone(), pod, true);
            self.verify(&key, &uid).await;
        }
        for value in list {
            let (uid, key) = (object::uid(&value).to_owned(), ObjectKey::of(&value));
            self.put_held(value, true).await;
            // The first list may be a stale server's: before anything of it is acted upon, each pod is asked for.
            self.verify(&key, &uid).await;
        }
    }

    async fn put(&mut self, value: Value) {
        self.put_held(value, false).await;
    }

    async fn put_held(&mut self, value: Value, held: bool) {
        let (uid, key) = (object::uid(&value).to_owned(), ObjectKey::of(&value));
        let pod: Pod = match serde_json::from_value(value) {
            Ok(pod) => pod,
            Err(error) => return tracing::warn!(pod = %key, %error, "a pod that cannot be read is not run"),
        };
        if uid.is_empty() {
            return;
        }
        if let Some(entry) = self.entries.get_mut(&uid) {
            entry.pod = Arc::new(pod.clone());
            let _ = entry.inbox.send(Message::Pod(Box::new(pod))).await;
            return;
        }
        // The name was taken by another uid: one of them is the older, and the API has it no more. Which one, the API
        // says: a first list may be a stale server's, and a watch that goes on from there tells of what is long gone
        // (S11).
        for entry in self.entries.values().filter(|entry| !held && entry.key == key) {
            let _ = entry.inbox.send(Message::Verify).await;
        }
        self.spawn(uid, key, pod, held);
    }

    async fn gone(&mut self, key: &ObjectKey, last: &Value) {
        let uid = object::uid(last).to_owned();
        if !uid.is_empty() {
            if let Some(entry) = self.entries.get(&uid) {
                let _ = entry.inbox.send(Message::Gone).await;
            }
            return;
        }
        let uids: Vec<String> =
            self.entries.iter().filter(|(_, entry)| entry.key == *key).map(|(uid, _)| uid.clone()).collect();
        for uid in uids {
            self.verify(key, &uid).await;
        }
    }

    /// Has the API itself asked about a pod that a list may be wrong about.
    async fn verify(&self, key: &ObjectKey, uid: &str) {
        let Some(entry) = self.entries.get(uid) else { return };
        let _ = entry.inbox.send(Message::Verify).await;
        tracing::debug!(pod = %key, uid, "asking whether it is there");
    }

    fn spawn(&mut self, uid: String, key: ObjectKey, pod: Pod, held: bool) {
        self.serial += 1;
        let serial = self.serial;
        let kept = Arc::new(pod.clone());
        let (inbox, task) = self.begin(&uid, &key, serial, pod, held);
        self.entries.insert(uid, Entry { key, pod: kept, broke: 0, serial, inbox, task });
    }

    fn begin(
        &self,
        uid: &str,
        key: &ObjectKey,
        serial: u64,
        pod: Pod,
        held: bool,
    ) -> (mpsc::Sender<Message>, tokio::task::AbortHandle) {
        let predecessor = self.predecessor(key, serial);
        let (inbox, messages) = mpsc::channel(INBOX);
        let worker = Worker::new(self.kubelet.clone(), pod, predecessor, held, messages);
        let task = tokio::spawn(attended(worker.run(), self.done.clone(), uid.to_owned()));
        (inbox, task.abort_handle())
    }

    /// A worker that panicked is begun anew after a pause (S9); until then whoever waits for its pod's name goes on
    /// waiting.
    fn broke(&mut self, uid: String) {
        let Some(entry) = self.entries.get_mut(&uid) else { return };
        let pause = FIRST_PAUSE.saturating_mul(1 << entry.broke.min(10)).min(MAX_PAUSE);
        entry.broke += 1;
        tracing::error!(pod = %entry.key, uid, "a pod's worker broke; it is begun anew from what runs");
        let done = self.done.clone();
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            let _ = done.send(Done::Again(uid));
        });
    }

    /// From what runs, and from what the API says now: what the old worker knew is gone with it.
    async fn again(&mut self, uid: &str) {
        let Some(entry) = self.entries.get(uid) else { return };
        let (key, serial, pod) = (entry.key.clone(), entry.serial, Pod::clone(&entry.pod));
        let (inbox, task) = self.begin(uid, &key, serial, pod, true);
        if let Some(entry) = self.entries.get_mut(uid) {
            (entry.inbox, entry.task) = (inbox, task);
        }
        self.verify(&key, uid).await;
    }

    /// The uid that holds a name before one with this serial.
    fn predecessor(&self, key: &ObjectKey, serial: u64) -> Option<String> {
        self.entries.iter().find(|(_, entry)| entry.key == *key && entry.serial < serial).map(|(uid, _)| uid.clone())
    }

    async fn ended(&mut self, uid: &str) {
        self.kubelet.pods.remove(uid);
        let Some(entry) = self.entries.remove(uid) else { return };
        for (_, other) in self.entries.iter().filter(|(_, other)| other.key == entry.key) {
            let _ = other.inbox.send(Message::Predecessor(self.predecessor(&other.key, other.serial))).await;
        }
    }

    async fn container(&self, status: ContainerStatus) {
        if let Some(entry) = self.entries.get(&status.pod_uid) {
            let _ = entry.inbox.send(Message::Container(Box::new(status))).await;
        }
    }

    async fn relist(&self) {
        for status in self.kubelet.runtime.list() {
            self.container(status).await;
        }
    }
}

fn key_of(pod: &Pod) -> ObjectKey {
    ObjectKey::new(pod.metadata.namespace.as_deref().unwrap_or(""), pod.metadata.name.as_deref().unwrap_or(""))
}

#[cfg(test)]
mod tests {
    use super::*;

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
