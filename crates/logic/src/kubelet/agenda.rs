//! One pod's worker without its hands: what is under way, what begins now, what is tried again and when.
//!
//! [`decide`] says what should be under way; an [`Agenda`] remembers what is. The node's worker and the simulator's
//! both carry out its steps, so that what the simulator proves is what the node does:
//!
//! ```text
//! what the dispatcher has -> agenda.update, facts -> agenda.view.apply / take_pod / observe
//! agenda.step(now) -> cut these, begin those, tell these events, wake me then
//! a task ends -> its facts, then agenda.finish(key, how it ended, now)
//! ```
//!
//! Guarantees: each task is under way at most once; a task that takes something away for good begins only when nothing
//! else is under way and the API has been told what was learnt from it (S2); for a pod that is held, which is one that
//! came from a list that may be old, nothing begins but the question whether it is there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use super::{Action, ContainerFact, Fact, KubeletDecision, PodEvent, PodUpdate, PodView, ProbeKind, decide, status};

/// How long to wait before what failed is tried again.
const RETRY: SignedDuration = SignedDuration::from_secs(1);

/// What is under way at most once at a time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Remember,
    Volume(String),
    Sandbox,
    Image(String),
    Start(String),
    Resize(String, u32),
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
            Action::ResizeContainer { container, attempt } => Self::Resize(container.clone(), *attempt),
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

    /// Whether it is cut off when the pod is to go: it leaves nothing behind. Readiness is asked for until the
    /// container has ended.
    fn ends_early(&self) -> bool {
        matches!(self, Self::Image(_) | Self::PostStart(..))
            || matches!(self, Self::Probe(_, _, kind) if *kind != ProbeKind::Readiness)
    }

    /// Whether it takes something away for good, so that everything else must have ended before.
    fn is_final(&self) -> bool {
        matches!(self, Self::RemoveSandbox | Self::Unmount | Self::Confirm | Self::Forget)
    }

    /// Whether it waits after a failure of its kind. The others' failures are facts, and [`decide`] has their back-off.
    fn is_retried(&self) -> bool {
        self.is_final() || matches!(self, Self::Stop(..) | Self::Remove(..))
    }
}

/// What is carried out beside the worker.
#[derive(Clone, Debug, PartialEq)]
pub enum Task {
    Act(Action),
    /// A merge patch of the pod's status, with uid and resourceVersion as preconditions.
    WriteStatus(Value),
    /// Ask the API, until it answers, whether this very pod is still there.
    Verify,
}

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was carried out, or its failure is among its facts.
    Done,
    /// The API refused it: the pod is another one by now, or changed.
    Refused,
    /// To be tried again after a pause.
    Failed,
}

/// What to do now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// To be ended at once; they are not under way any more.
    pub cut: Vec<Key>,
    /// To be begun. One that is under way already is replaced: a stop with an earlier deadline, another image.
    pub begin: Vec<(Key, Task)>,
    /// What has become true since the last step.
    pub events: Vec<PodEvent>,
    /// When to take a step even if nothing happens.
    pub wake_at: Option<Timestamp>,
}

/// One pod, and what is under way for it.
#[derive(Debug)]
pub struct Agenda {
    /// What is known of the pod. Facts about the pod object itself go through [`Self::take_pod`].
    pub view: PodView,
    held: bool,
    /// With the deadline of a stop.
    under_way: BTreeMap<Key, Option<Timestamp>>,
    /// The image that was asked for last, by container.
    pulling: BTreeMap<String, String>,
    told: BTreeSet<PodEvent>,
    /// The status patch that was written last: one that changes nothing is not written again.
    written: Option<Value>,
    writing: Option<Value>,
    /// The revision of the pod whose deletion was confirmed; finalizers may keep it longer.
    confirmed: Option<String>,
    retry_status_at: Option<Timestamp>,
    retry_at: Option<Timestamp>,
}

impl Agenda {
    /// With `held`, nothing begins until the API was [asked](Self::verify) about the pod or a watch had it.
    pub fn new(view: PodView, held: bool) -> Self {
        Self {
            view,
            held,
            under_way: BTreeMap::new(),
            pulling: BTreeMap::new(),
            told: BTreeSet::new(),
            written: None,
            writing: None,
            confirmed: None,
            retry_status_at: None,
            retry_at: None,
        }
    }

    /// The question to the API whether this pod is still there, unless it is being asked.
    pub fn verify(&mut self) -> Option<(Key, Task)> {
        self.under_way.insert(Key::Verify, None).is_none().then_some((Key::Verify, Task::Verify))
    }

    /// Whether nothing may begin yet.
    pub fn is_held(&self) -> bool {
        self.held
    }

    /// What the [dispatcher](super::Dispatcher) has for this pod: the events that follow from it, and what begins at
    /// once.
    pub fn update(&mut self, update: PodUpdate, now: Timestamp) -> (Vec<PodEvent>, Option<(Key, Task)>) {
        match update {
            PodUpdate::Pod(pod) => {
                // What came before is known to be old.
                self.held = false;
                (self.take_pod(Arc::unwrap_or_clone(pod), now), None)
            }
            PodUpdate::Gone => (self.view.apply(Fact::Gone, now), None),
            PodUpdate::Replaced => (self.view.apply(Fact::Replaced, now), None),
            PodUpdate::Verify => (Vec::new(), self.verify()),
            PodUpdate::Predecessor(uid) => {
                self.view.predecessor = uid;
                (Vec::new(), None)
            }
        }
    }

    /// A newer state of the pod; an older one (a watch that lags behind our own write) is passed over.
    pub fn take_pod(&mut self, pod: Pod, now: Timestamp) -> Vec<PodEvent> {
        let revision =
            |pod: &Pod| pod.metadata.resource_version.as_deref().and_then(|version| version.parse::<u64>().ok());
        if let (Some(old), Some(new)) = (revision(&self.view.pod), revision(&pod))
            && new < old
            && pod.metadata.deletion_timestamp.is_none()
        {
            return Vec::new();
        }
        if pod.metadata.resource_version != self.view.pod.metadata.resource_version {
            self.written = None;
        }
        let relabelled = !has_same_fields(&pod, &self.view.pod);
        let mut events = self.view.apply(Fact::Pod(Box::new(pod)), now);
        if relabelled {
            events.extend(self.view.apply(Fact::DependencyChanged, now));
        }
        events
    }

    /// One container's state. An end is final, whatever arrives late.
    pub fn observe(&mut self, container: ContainerFact, now: Timestamp) -> Vec<PodEvent> {
        let mut all = self.view.containers.clone();
        match all.iter_mut().find(|fact| fact.name == container.name && fact.attempt == container.attempt) {
            Some(known) if known.exit().is_some() => return Vec::new(),
            Some(known) => *known = container.clone(),
            None => all.push(container.clone()),
        }
        let mut events = self.view.apply(Fact::Containers(all), now);
        events.extend(status::fenced(&self.view, &container));
        events
    }

    /// The clock was set, forward by so much (or back): see [`PodView::clock_stepped`].
    pub fn clock_stepped(&mut self, by: SignedDuration) {
        self.view.clock_stepped(by);
        let deadlines = self.under_way.values_mut().flatten();
        for at in [&mut self.retry_status_at, &mut self.retry_at].into_iter().flatten().chain(deadlines) {
            *at = super::clock::moved(*at, by);
        }
    }

    /// What to do now.
    pub fn step(&mut self, now: Timestamp) -> Step {
        self.retry_status_at = self.retry_status_at.filter(|at| *at > now);
        self.retry_at = self.retry_at.filter(|at| *at > now);
        let decision = decide(&self.view, now);
        let fresh = decision.events.iter().filter(|event| !self.told.contains(*event)).cloned().collect();
        let mut step = Step { events: fresh, ..Step::default() };
        self.told = decision.events.iter().cloned().collect();
        if self.held {
            step.begin.extend(self.verify());
        } else {
            let is_written = self.write_status(&decision, &mut step);
            let is_doomed = self.view.is_tombstoned();
            let view = &self.view;
            // Nothing waits for the answer of what has ended.
            let is_idle = |key: &Key| match key {
                Key::Probe(name, attempt, _) => !view.attempt(name, *attempt).is_some_and(ContainerFact::is_alive),
                _ => false,
            };
            let is_cut = |key: &Key| (is_doomed && key.ends_early()) || is_idle(key);
            step.cut = self.under_way.keys().filter(|key| is_cut(key)).cloned().collect();
            self.under_way.retain(|key, _| !is_cut(key));
            for action in decision.actions {
                self.begin(action, is_written, &mut step);
            }
        }
        step.wake_at = [decision.wake_at, self.retry_status_at, self.retry_at].into_iter().flatten().min();
        step
    }

    /// A task ended, and its facts were taken in. Of a task that was cut or replaced this is not told.
    pub fn finish(&mut self, key: &Key, end: End, now: Timestamp) {
        self.under_way.remove(key);
        let again = (end == End::Failed).then(|| now.saturating_add(RETRY).unwrap_or(now));
        match key {
            Key::Status => {
                self.written = self.writing.take().filter(|_| end == End::Done);
                self.retry_status_at = again;
            }
            Key::Verify if end == End::Done => self.held = false,
            Key::Confirm if end == End::Done => self.confirmed.clone_from(&self.view.pod.metadata.resource_version),
            _ => {}
        }
        if let Key::Remove(name, attempt) = key
            && end == End::Done
        {
            let left = self.view.containers.iter().filter(|fact| fact.name != *name || fact.attempt != *attempt);
            let left = left.cloned().collect();
            self.view.apply(Fact::Containers(left), now);
        }
        if key.is_retried() {
            self.retry_at = again;
        }
    }

    /// One action begins, if it is not under way and its turn has come.
    fn begin(&mut self, mut action: Action, is_written: bool, step: &mut Step) {
        let key = Key::of(&action);
        let mut deadline = None;
        if let Action::StopContainer { deadline: until, pre_stop, .. } = &mut action {
            deadline = Some(*until);
            // The hook has run, or runs: it is not run twice.
            *pre_stop &= !self.under_way.contains_key(&key);
        }
        let is_another = match &action {
            Action::EnsureImage { container, image, .. } => {
                self.pulling.insert(container.clone(), image.clone()).is_some_and(|before| before != *image)
            }
            _ => false,
        };
        if let Some(running) = self.under_way.get(&key)
            && !is_another
            && deadline.zip(*running).is_none_or(|(new, old)| new >= old)
        {
            return;
        }
        if self.retry_at.is_some() && key.is_retried() {
            return;
        }
        if key.is_final() {
            // Ends are told before what they are learnt from goes away, and nothing else may be under way.
            let others = self.under_way.keys().any(|other| *other != Key::Status);
            let version = &self.view.pod.metadata.resource_version;
            let is_confirmed = key == Key::Confirm && self.confirmed.is_some() && self.confirmed == *version;
            if others || is_confirmed || !is_written {
                return;
            }
        }
        self.under_way.insert(key.clone(), deadline);
        step.begin.push((key, Task::Act(action)));
    }

    /// Has the status written where it differs; one write at a time. `true` when the API has it as decided.
    fn write_status(&mut self, decision: &KubeletDecision, step: &mut Step) -> bool {
        if self.view.gone {
            return true;
        }
        let Some(patch) = status::patch(&self.view.pod, &decision.status) else { return true };
        let wanted = patch.get("status").cloned();
        if self.written == wanted {
            return true;
        }
        if self.under_way.contains_key(&Key::Status) || self.retry_status_at.is_some() {
            return false;
        }
        self.writing = wanted;
        self.under_way.insert(Key::Status, None);
        step.begin.push((Key::Status, Task::WriteStatus(patch)));
        false
    }
}

/// Whether volumes and environments would be told the same of both by the downward API.
fn has_same_fields(one: &Pod, other: &Pod) -> bool {
    let resources = |of: &Pod| {
        let spec = of.spec.clone().unwrap_or_default();
        let all = spec.init_containers.into_iter().flatten().chain(spec.containers);
        all.map(|container| container.resources).collect::<Vec<_>>()
    };
    one.metadata.labels == other.metadata.labels
        && one.metadata.annotations == other.metadata.annotations
        && resources(one) == resources(other)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{Life, Sandbox};
    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn later(seconds: i64) -> Timestamp {
        NOW.checked_add(SignedDuration::from_secs(seconds)).unwrap()
    }

    fn pod(version: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": { "name": "web-0", "namespace": "default", "uid": "u1", "resourceVersion": version },
            "spec": { "containers": [{ "name": "c", "image": "i", "lifecycle": {
                "preStop": { "sleep": { "seconds": 1 } } } }] },
            "status": { "startTime": "1970-01-01T00:00:00Z" },
        }))
        .unwrap()
    }

    fn deleted(version: &str, grace: i64) -> Pod {
        let mut pod = pod(version);
        pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(later(grace)));
        pod.metadata.deletion_grace_period_seconds = Some(grace);
        pod
    }

    fn container(life: Life) -> ContainerFact {
        let (name, image_id) = ("c".to_owned(), "i".to_owned());
        ContainerFact { name, attempt: 0, image: String::new(), image_id, sandbox_made_at: None, user: None, life }
    }

    fn agenda() -> Agenda {
        let mut agenda = Agenda::new(PodView::new(pod("1"), Vec::new()), false);
        agenda.view.apply(Fact::Sandbox(Sandbox::Ready { ip: None, made_at: Some(NOW) }), NOW);
        let life = Life::Running { since: NOW };
        agenda.observe(container(life), NOW);
        agenda
    }

    fn keys(step: &Step) -> Vec<Key> {
        step.begin.iter().map(|(key, _)| key.clone()).collect()
    }

    /// Ends a pod's container and tells the API; what is left is its sandbox, its volumes and its object.
    fn ended() -> Agenda {
        let mut agenda = agenda();
        agenda.take_pod(deleted("2", 30), NOW);
        agenda.view.apply(Fact::Remembered(true), NOW);
        let life = Life::Exited {
            code: 0,
            signal: None,
            oom: false,
            fenced: false,
            started: NOW,
            finished: NOW,
            message: None,
        };
        agenda.observe(container(life), NOW);
        agenda
    }

    #[test]
    fn a_status_that_was_refused_is_written_again() {
        let mut agenda = agenda();
        assert_eq!(keys(&agenda.step(NOW)), [Key::Status]);
        assert_eq!(keys(&agenda.step(NOW)), [], "one write at a time");
        // Somebody labelled the pod meanwhile: the write's own question brought the newer one.
        agenda.take_pod(pod("2"), NOW);
        agenda.finish(&Key::Status, End::Refused, NOW);
        assert_eq!(keys(&agenda.step(NOW)), [Key::Status]);
        agenda.finish(&Key::Status, End::Failed, NOW);
        let step = agenda.step(NOW);
        assert_eq!((keys(&step), step.wake_at), (vec![], Some(later(1))));
        assert_eq!(keys(&agenda.step(later(1))), [Key::Status]);
        // An API that took it and shows nothing of it is not asked for ever.
        agenda.finish(&Key::Status, End::Done, later(1));
        assert_eq!(keys(&agenda.step(later(1))), []);
    }

    #[test]
    fn s11_for_a_pod_that_is_held_only_the_question_begins() {
        let held = || Agenda::new(PodView::new(pod("1"), Vec::new()), true);
        let mut agenda = held();
        assert_eq!(keys(&agenda.step(NOW)), [Key::Verify]);
        assert_eq!(agenda.verify(), None, "it is being asked");
        assert_eq!(keys(&agenda.step(NOW)), []);
        // A question that broke is no answer.
        agenda.finish(&Key::Verify, End::Failed, NOW);
        assert_eq!(keys(&agenda.step(NOW)), [Key::Verify]);
        agenda.finish(&Key::Verify, End::Done, NOW);
        assert_eq!(keys(&agenda.step(NOW)), [Key::Status, Key::Sandbox]);

        let mut agenda = held();
        assert!(agenda.is_held());
        agenda.update(PodUpdate::Pod(Arc::new(pod("2"))), NOW);
        assert!(!agenda.is_held());
        assert_eq!(keys(&agenda.step(NOW)), [Key::Status, Key::Sandbox], "a watch has it");
    }

    #[test]
    fn a_stop_is_hastened_without_its_hook_and_never_delayed() {
        let mut agenda = agenda();
        let stop = |step: Step| {
            step.begin.into_iter().find_map(|(_, task)| match task {
                Task::Act(Action::StopContainer { deadline, pre_stop, .. }) => Some((deadline, pre_stop)),
                _ => None,
            })
        };
        agenda.take_pod(deleted("2", 30), NOW);
        agenda.step(NOW);
        agenda.view.apply(Fact::Remembered(true), NOW);
        agenda.finish(&Key::Remember, End::Done, NOW);
        assert_eq!(stop(agenda.step(NOW)), Some((later(30), true)));
        assert_eq!(stop(agenda.step(NOW)), None);
        agenda.take_pod(deleted("3", 5), NOW);
        assert_eq!(stop(agenda.step(NOW)), Some((later(5), false)));
        agenda.take_pod(deleted("4", 60), NOW);
        assert_eq!(stop(agenda.step(NOW)), None);
    }

    #[test]
    fn s2_what_is_final_waits_for_the_status_for_all_else_and_after_a_failure() {
        let mut agenda = ended();
        assert_eq!(keys(&agenda.step(NOW)), [Key::Status], "how it ended is told first");
        agenda.view.pod.status = Some(decide(&agenda.view, NOW).status);
        agenda.finish(&Key::Status, End::Done, NOW);
        agenda.verify();
        assert_eq!(keys(&agenda.step(NOW)), [], "something is under way");
        agenda.finish(&Key::Verify, End::Done, NOW);
        assert_eq!(keys(&agenda.step(NOW)), [Key::RemoveSandbox]);
        agenda.finish(&Key::RemoveSandbox, End::Failed, NOW);
        assert_eq!(keys(&agenda.step(NOW)), []);
        assert_eq!(keys(&agenda.step(later(1))), [Key::RemoveSandbox]);
    }

    #[test]
    fn an_older_pod_is_passed_over_and_a_deletion_is_not() {
        let mut agenda = agenda();
        agenda.take_pod(pod("5"), NOW);
        agenda.take_pod(pod("4"), NOW);
        assert_eq!(agenda.view.pod.metadata.resource_version.as_deref(), Some("5"));
        agenda.take_pod(deleted("3", 1), NOW);
        assert!(agenda.view.is_tombstoned());
    }
}
