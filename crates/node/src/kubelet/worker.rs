//! One pod: facts in, decision, actions under way. What takes time runs beside the worker and comes back as a fact.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use mainstay_api::{kinds, object};
use mainstay_client::PatchType;
use mainstay_logic::kubelet::{
    Action, ContainerFact, Fact, KubeletDecision, Life, PodEvent, PodView, ProbeKind, Remembered, Sandbox, decide,
};
use serde_json::{Map, Value, json};
use tokio::sync::{broadcast, mpsc};
use tokio::task::{AbortHandle, Id, JoinSet};

use super::events::Regarding;
use super::execute::{self, Outcome};
use super::objects::{Reference, Watched};
use super::pods::PodHandle;
use super::{Kubelet, PodContext};
use crate::runtime::{ContainerState, ContainerStatus};

/// How long to wait before an API write that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Where a sandbox keeps its pod's address.
pub(super) const IP_ANNOTATION: &str = "mainstay.io/pod-ip";

/// What the dispatcher tells a worker.
pub(super) enum Message {
    Pod(Box<Pod>),
    /// The API has no pod of this uid any more.
    Gone,
    /// A list lacked this pod: ask for it.
    Verify,
    Predecessor(Option<String>),
    Container(Box<ContainerStatus>),
}

/// What is under way at most once at a time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Remember,
    Volume(String),
    Sandbox,
    Image(String),
    Start(String),
    PostStart(String, u32),
    Probe(String, u32, ProbeKind),
    Stop(String, u32),
    Remove(String, u32),
    RemoveSandbox,
    Unmount,
    Confirm,
    Forget,
    Status,
    Verify,
}

impl Key {
    fn of(action: &Action) -> Self {
        match action {
            Action::Remember => Self::Remember,
            Action::EnsureVolume { name } => Self::Volume(name.clone()),
            Action::EnsureSandbox => Self::Sandbox,
            Action::EnsureImage { container, .. } => Self::Image(container.clone()),
            Action::StartContainer { container, .. } => Self::Start(container.clone()),
            Action::PostStart { container, attempt } => Self::PostStart(container.clone(), *attempt),
            Action::RunProbe { container, attempt, kind } => Self::Probe(container.clone(), *attempt, *kind),
            Action::StopContainer { container, attempt, .. } => Self::Stop(container.clone(), *attempt),
            Action::RemoveContainer { container, attempt } => Self::Remove(container.clone(), *attempt),
            Action::RemoveSandbox => Self::RemoveSandbox,
            Action::Unmount => Self::Unmount,
            Action::ConfirmDeletion => Self::Confirm,
            Action::Forget => Self::Forget,
        }
    }

    /// Whether it may be cut off at any moment without leaving something behind.
    fn can_be_cut(&self) -> bool {
        matches!(self, Self::Image(_) | Self::Probe(..) | Self::PostStart(..) | Self::Verify)
    }

    /// Whether it takes something away for good, so that everything else must have ended before.
    fn is_final(&self) -> bool {
        matches!(self, Self::RemoveSandbox | Self::Unmount | Self::Confirm | Self::Forget)
    }
}

struct Running {
    id: Id,
    handle: AbortHandle,
    /// A stop's deadline; a stop with an earlier one replaces it.
    deadline: Option<Timestamp>,
}

pub(super) struct Worker {
    kubelet: Arc<Kubelet>,
    view: PodView,
    context: PodContext,
    inbox: mpsc::Receiver<Message>,
    /// Facts that arrive while an action still runs (a pull that began, a stop that began).
    early: mpsc::Receiver<Fact>,
    early_sender: mpsc::Sender<Fact>,
    running: BTreeMap<Key, Running>,
    results: JoinSet<(Key, Outcome)>,
    told: BTreeSet<PodEvent>,
    dependencies: BTreeMap<Reference, Arc<Watched>>,
    /// The status patch that was written last: one that changes nothing is not written again.
    written: Option<Value>,
    writing: Option<Value>,
    /// The revision of the pod whose deletion was confirmed; finalizers may keep it longer.
    confirmed: Option<String>,
    /// Nothing is begun until the API was asked whether this pod is still there.
    held: bool,
    retry_status_at: Option<tokio::time::Instant>,
    retry_confirm_at: Option<tokio::time::Instant>,
    ended: bool,
}

impl Worker {
    pub(super) fn new(kubelet: Arc<Kubelet>, pod: Pod, predecessor: Option<String>, held: bool, inbox: mpsc::Receiver<Message>) -> Self {
        let (early_sender, early) = mpsc::channel(super::pods::INBOX);
        let context = PodContext::new(&pod);
        let mut view = PodView::new(pod, kubelet.host_ips());
        view.predecessor = predecessor;
        if kubelet.disk.is_doomed(&context.uid) {
            view.remembered = Remembered::Yes;
            view.doomed_since = Some(Timestamp::now());
        }
        Self {
            kubelet,
            view,
            context,
            inbox,
            early,
            early_sender,
            running: BTreeMap::new(),
            results: JoinSet::new(),
            told: BTreeSet::new(),
            dependencies: BTreeMap::new(),
            written: None,
            writing: None,
            confirmed: None,
            held,
            retry_status_at: None,
            retry_confirm_at: None,
            ended: false,
        }
    }

    /// Runs until nothing of the pod is left.
    pub(super) async fn run(mut self) {
        self.learn_what_runs().await;
        let mut changes = self.kubelet.objects.changes();
        while !self.ended {
            let decision = decide(&self.view, Timestamp::now());
            self.tell(&decision.events);
            self.publish();
            let clean = self.write_status(&decision);
            self.begin(&decision, clean);
            let wake = self.wake_time(&decision);
            tokio::select! {
                message = self.inbox.recv() => match message {
                    Some(message) => self.take(message),
                    None => return,
                },
                Some(fact) = self.early.recv() => self.apply(fact),
                Some(result) = self.results.join_next_with_id() => self.finish(result),
                change = changes.recv() => match change {
                    Ok(reference) if !self.dependencies.contains_key(&reference) => continue,
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => self.apply(Fact::DependencyChanged),
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                () = sleep_until(wake) => {
                    self.retry_status_at = self.retry_status_at.filter(|at| *at > tokio::time::Instant::now());
                    self.retry_confirm_at = self.retry_confirm_at.filter(|at| *at > tokio::time::Instant::now());
                }
            }
            // Whatever else is already here is part of the same observation.
            while let Ok(message) = self.inbox.try_recv() {
                self.take(message);
            }
            while let Some(result) = self.results.try_join_next_with_id() {
                self.finish(result);
            }
        }
    }

    /// Adopts what runs already (V7, S11).
    async fn learn_what_runs(&mut self) {
        let runtime = self.kubelet.runtime.clone();
        if let Some(sandbox) = runtime.sandboxes().into_iter().find(|sandbox| sandbox.pod_uid == self.context.uid) {
            let fact = if sandbox.ready {
                let mut ip = sandbox.annotations.get(IP_ANNOTATION).cloned();
                if let (Some(netns), None) = (&sandbox.netns_path, &ip) {
                    ip = self.kubelet.attach(&self.context.uid, netns).await.ok();
                }
                Sandbox::Ready { ip, made_at: Timestamp::from_millisecond(sandbox.created_at_ms).ok() }
            } else {
                Sandbox::Dead { since: Timestamp::now() }
            };
            self.apply(Fact::Sandbox(fact));
        }
        let uid = self.context.uid.clone();
        for status in runtime.list().into_iter().filter(|status| status.pod_uid == uid) {
            self.learn(&status);
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Pod(pod) => {
                self.held = false;
                if pod.metadata.resource_version != self.view.pod.metadata.resource_version {
                    self.written = None;
                }
                self.take_pod(*pod);
            }
            Message::Gone => self.apply(Fact::Gone),
            Message::Verify if self.running.contains_key(&Key::Verify) => {}
            Message::Verify => self.spawn(Key::Verify, None, execute::verify(self.kubelet.clone(), self.context.clone())),
            Message::Predecessor(uid) => self.view.predecessor = uid,
            Message::Container(status) => self.learn(&status),
        }
    }

    /// A newer state of the pod; an older one (a watch that lags behind our own write) is passed over.
    fn take_pod(&mut self, pod: Pod) {
        let revision = |pod: &Pod| pod.metadata.resource_version.as_deref().and_then(|version| version.parse::<u64>().ok());
        if let (Some(old), Some(new)) = (revision(&self.view.pod), revision(&pod))
            && new < old
            && pod.metadata.deletion_timestamp.is_none()
        {
            return;
        }
        let told = |pod: &Pod| (pod.metadata.labels.clone(), pod.metadata.annotations.clone());
        let relabelled = told(&pod) != told(&self.view.pod);
        self.context = PodContext::new(&pod);
        self.apply(Fact::Pod(Box::new(pod)));
        if relabelled {
            self.apply(Fact::DependencyChanged);
        }
    }

    fn apply(&mut self, fact: Fact) {
        let events = self.view.apply(fact, Timestamp::now());
        let fresh: Vec<PodEvent> = events.into_iter().collect();
        for event in fresh {
            self.kubelet.events.tell(self.regarding(), event);
        }
    }

    /// One container's state. An end is final, whatever arrives late.
    fn learn(&mut self, status: &ContainerStatus) {
        let mut all = self.view.containers.clone();
        let place = all.iter().position(|fact| fact.name == status.name && fact.attempt == status.attempt);
        if place.and_then(|place| all.get(place)).is_some_and(|fact| fact.exit().is_some()) {
            return;
        }
        let fact = ContainerFact {
            name: status.name.clone(),
            attempt: status.attempt,
            image_id: status.image_id.clone(),
            life: self.life(status),
        };
        match place {
            Some(place) => all[place] = fact,
            None => all.push(fact),
        }
        self.apply(Fact::Containers(all));
    }

    fn life(&self, status: &ContainerStatus) -> Life {
        let time = |ms| Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH);
        match &status.state {
            ContainerState::Created => Life::Created,
            ContainerState::Running { started_at_ms, .. } => Life::Running { since: time(*started_at_ms) },
            ContainerState::Exited { code, signal, oom, started_at_ms, finished_at_ms } => Life::Exited {
                code: *code,
                signal: *signal,
                oom: *oom,
                started: time(*started_at_ms),
                finished: time(*finished_at_ms),
                message: super::files::termination_message(&self.kubelet.disk, &self.context, &status.name, status.attempt, *code),
            },
            ContainerState::Unknown => Life::Lost,
        }
    }

    fn finish(&mut self, result: Result<(Id, (Key, Outcome)), tokio::task::JoinError>) {
        let (key, outcome) = match result {
            Ok((id, (key, outcome))) => {
                if self.running.get(&key).is_some_and(|running| running.id == id) {
                    self.running.remove(&key);
                }
                (key, outcome)
            }
            Err(error) => {
                let id = error.id();
                self.running.retain(|_, running| running.id != id);
                if error.is_panic() {
                    tracing::error!(pod = %self.context.name, %error, "an action of the kubelet broke; it is done again");
                }
                return;
            }
        };
        for status in &outcome.containers {
            self.learn(status);
        }
        if let Key::Remove(name, attempt) = &key {
            let mut all = self.view.containers.clone();
            all.retain(|fact| fact.name != *name || fact.attempt != *attempt);
            self.apply(Fact::Containers(all));
        }
        let now = tokio::time::Instant::now();
        match key {
            Key::Status => {
                self.retry_status_at = outcome.failed.then_some(now + RETRY);
                self.written = self.writing.take().filter(|_| !outcome.failed);
            }
            Key::Verify => self.held = false,
            Key::Confirm if !outcome.failed => self.confirmed = self.view.pod.metadata.resource_version.clone(),
            Key::Confirm | Key::Forget | Key::RemoveSandbox | Key::Unmount | Key::Stop(..) | Key::Remove(..) => {
                self.retry_confirm_at = outcome.failed.then_some(now + RETRY);
            }
            _ => {}
        }
        for (reference, watched) in outcome.dependencies {
            self.dependencies.insert(reference, watched);
        }
        for fact in outcome.facts {
            match fact {
                Fact::Pod(pod) => self.take_pod(*pod),
                fact => self.apply(fact),
            }
        }
        self.ended |= outcome.ended;
    }

    fn begin(&mut self, decision: &KubeletDecision, status_written: bool) {
        if self.held {
            return;
        }
        if self.view.is_doomed() {
            self.cut_short();
        }
        for action in &decision.actions {
            let key = Key::of(action);
            let deadline = if let Action::StopContainer { deadline, .. } = action { Some(*deadline) } else { None };
            let mut hastened = false;
            if let Some(running) = self.running.get(&key) {
                hastened = deadline.zip(running.deadline).is_some_and(|(new, old)| new < old);
                if !hastened {
                    continue;
                }
                running.handle.abort();
            }
            if key.is_final() {
                // Ends are told before what they are learnt from goes away, and nothing else may be under way.
                let others = self.running.keys().any(|other| *other != Key::Status);
                let confirmed =
                    key == Key::Confirm && self.confirmed.is_some() && self.confirmed == self.view.pod.metadata.resource_version;
                if others || confirmed || (!status_written && !self.view.gone) || self.retry_confirm_at.is_some() {
                    continue;
                }
            } else if self.retry_confirm_at.is_some() && matches!(key, Key::Stop(..) | Key::Remove(..)) {
                continue;
            }
            let mut action = action.clone();
            if let Action::StopContainer { pre_stop, .. } = &mut action {
                *pre_stop &= !hastened;
            }
            let work = execute::execute(self.kubelet.clone(), self.context.clone(), action, self.early_sender.clone());
            self.spawn(key, deadline, work);
        }
    }

    /// What a pod that is to go no longer needs.
    fn cut_short(&mut self) {
        let cut: Vec<Key> = self.running.keys().filter(|key| key.can_be_cut() && **key != Key::Verify).cloned().collect();
        for key in cut {
            if let Some(running) = self.running.remove(&key) {
                running.handle.abort();
            }
        }
    }

    fn spawn(&mut self, key: Key, deadline: Option<Timestamp>, work: impl Future<Output = Outcome> + Send + 'static) {
        let of = key.clone();
        let handle = self.results.spawn(async move { (of, work.await) });
        self.running.insert(key, Running { id: handle.id(), handle, deadline });
    }

    /// Writes the status where it differs; one write at a time. `true` when the API has it as decided.
    fn write_status(&mut self, decision: &KubeletDecision) -> bool {
        if self.view.gone {
            return true;
        }
        let Some(patch) = status_patch(&self.view.pod, decision) else { return true };
        if self.written.is_some() && self.written.as_ref() == patch.get("status") {
            return true;
        }
        if self.running.contains_key(&Key::Status) || self.retry_status_at.is_some() {
            return false;
        }
        self.writing = patch.get("status").cloned();
        self.spawn(Key::Status, None, execute::write_status(self.kubelet.clone(), self.context.clone(), patch));
        false
    }

    fn regarding(&self) -> Regarding {
        Regarding { kind: "Pod", namespace: self.context.namespace.clone(), name: self.context.name.clone(), uid: self.context.uid.clone() }
    }

    /// Tells what has become true since the last decision.
    fn tell(&mut self, events: &[PodEvent]) {
        for event in events.iter().filter(|event| !self.told.contains(*event)) {
            self.kubelet.events.tell(self.regarding(), event.clone());
        }
        self.told = events.iter().cloned().collect();
    }

    fn publish(&self) {
        let ip = match &self.view.sandbox {
            Sandbox::Ready { ip, .. } => ip.clone(),
            _ => None,
        };
        let mut attempts = BTreeMap::new();
        for fact in &self.view.containers {
            let newest = attempts.entry(fact.name.clone()).or_insert(fact.attempt);
            *newest = fact.attempt.max(*newest);
        }
        self.kubelet.pods.put(PodHandle { context: self.context.clone(), ip, attempts });
    }

    fn wake_time(&self, decision: &KubeletDecision) -> Option<tokio::time::Instant> {
        let now = Timestamp::now();
        let decided = decision.wake_at.map(|at| {
            let wait = Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO);
            tokio::time::Instant::now() + wait.min(Duration::from_secs(3600))
        });
        [decided, self.retry_status_at, self.retry_confirm_at].into_iter().flatten().min()
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The status fields that the kubelet writes.
const FIELDS: [&str; 13] = [
    "phase",
    "conditions",
    "message",
    "reason",
    "hostIP",
    "hostIPs",
    "podIP",
    "podIPs",
    "startTime",
    "initContainerStatuses",
    "containerStatuses",
    "qosClass",
    "observedGeneration",
];

/// What a merge patch must change, with uid and resourceVersion as preconditions: the conditions are one list, and
/// those of others in it must be the newest.
fn status_patch(pod: &Pod, decision: &KubeletDecision) -> Option<Value> {
    let wanted = serde_json::to_value(&decision.status).ok()?;
    let current = serde_json::to_value(&pod.status).ok()?;
    let mut changed = Map::new();
    for field in FIELDS {
        let (new, old) = (wanted.get(field).unwrap_or(&Value::Null), current.get(field).unwrap_or(&Value::Null));
        if new != old {
            changed.insert(field.to_owned(), new.clone());
        }
    }
    if changed.is_empty() {
        return None;
    }
    Some(json!({
        "metadata": { "uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version },
        "status": changed,
    }))
}

/// Writes a pod's status patch; gives back the pod as it then is.
pub(super) async fn patch_status(kubelet: &Kubelet, context: &PodContext, patch: &Value) -> Result<Value, mainstay_client::Error> {
    let Some(kind) = kinds::find("", "v1", "pods") else {
        return Err(mainstay_client::Error::Malformed("no kind Pod".into()));
    };
    let patched = kubelet.config.client.patch(kind, &context.namespace, &context.name, "status", PatchType::Merge, patch).await?;
    debug_assert_eq!(object::uid(&patched), context.uid);
    Ok(patched)
}
