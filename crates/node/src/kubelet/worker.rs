//! One pod: the hands of its [`Agenda`]. What takes time runs beside the worker and comes back as a fact.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{LinuxContainerUser, Pod};
use mainstay_logic::kubelet::{
    Agenda, ContainerFact, End, Fact, Key, Life, PodEvent, PodUpdate, PodView, Remembered, Sandbox, Step, Task,
};
use mainstay_logic::kubelet::{admission, pressure};
use tokio::sync::{broadcast, mpsc};
use tokio::task::{AbortHandle, Id, JoinSet};

use super::deadline;
use super::dependencies::Read;
use super::events::Regarding;
use super::execute::{self, Outcome};
use super::files;
use super::node_status;
use super::objects::Watched;
use super::pods::PodHandle;
use super::{Kubelet, PodContext};
use mainstay_runtime::{ContainerState, ContainerStatus};

/// Where a sandbox keeps its pod's address.
pub(super) const IP_ANNOTATION: &str = "mainstay.io/pod-ip";

/// How long a pod waits for the room of pods that are on their way out; one that hangs is not waited for for ever.
const CROWDED: SignedDuration = SignedDuration::from_mins(5);

/// What the dispatcher tells a worker.
pub(super) enum Message {
    Update(PodUpdate),
    Container(Box<ContainerStatus>),
}

/// A task under way.
struct Running {
    id: Id,
    handle: AbortHandle,
    /// See [`Read::begin`].
    begun: u64,
}

pub(super) struct Worker {
    kubelet: Arc<Kubelet>,
    agenda: Agenda,
    context: PodContext,
    inbox: mpsc::Receiver<Message>,
    /// Facts that arrive while an action still runs (a pull that began, a stop that began).
    early: mpsc::Receiver<Fact>,
    early_sender: mpsc::Sender<Fact>,
    running: BTreeMap<Key, Running>,
    results: JoinSet<(Key, Outcome)>,
    dependencies: Read<Arc<Watched>>,
    clock: Clock,
    /// Taken in here: by what runs already, or by a look at what is free.
    admitted: bool,
    ended: bool,
}

impl Worker {
    pub(super) fn new(
        kubelet: Arc<Kubelet>,
        pod: Pod,
        predecessor: Option<String>,
        held: bool,
        inbox: mpsc::Receiver<Message>,
    ) -> Self {
        let (early_sender, early) = mpsc::channel(super::pods::INBOX);
        let context = PodContext::new(&pod);
        let mut view = PodView::new(pod, kubelet.host_ips());
        view.capacity = super::node_status::capacity();
        view.predecessor = predecessor;
        if kubelet.disk.is_tombstoned(&context.uid) {
            view.remembered = Remembered::Yes;
            view.tombstoned_since = Some(Timestamp::now());
        }
        // Of the agent before this one: who crashes goes on waiting as long as it did.
        for (container, back_off) in kubelet.disk.back_offs(&context.uid) {
            view.memory.entry(container).or_default().crash = Some(back_off);
        }
        let evicted = kubelet.disk.evicted(&context.uid).or_else(|| view.recorded_eviction());
        view.evicted = evicted.map(|why| (why, Timestamp::now()));
        Self {
            kubelet,
            agenda: Agenda::new(view, held),
            context,
            inbox,
            early,
            early_sender,
            running: BTreeMap::new(),
            results: JoinSet::new(),
            dependencies: Read::new(),
            clock: Clock::new(Timestamp::now(), Instant::now()),
            admitted: false,
            ended: false,
        }
    }

    /// Runs until nothing of the pod is left.
    pub(super) async fn run(mut self) {
        self.learn_what_runs().await;
        let mut changes = self.kubelet.objects.changes();
        let mut freed = self.kubelet.pods.freed();
        while !self.ended {
            // Before the look: what is freed after it ends the sleep.
            freed.mark_unchanged();
            if !self.admitted && !self.agenda.is_held() {
                self.admit().await;
            }
            let now = self.now();
            let step = self.agenda.step(now);
            let wake = step.wake_at.map(from_now);
            // First, so that room is given back here before anybody hears that there is some.
            self.publish();
            self.execute(step);
            tokio::select! {
                message = self.inbox.recv() => match message {
                    Some(message) => self.take(message),
                    None => return,
                },
                Some(fact) = self.early.recv() => self.apply(fact),
                Some(result) = self.results.join_next_with_id() => self.finish(result),
                change = changes.recv() => match change {
                    Ok(reference) if !self.dependencies.changed(reference.clone(),
                        !self.running.is_empty()) => continue,
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => self.apply(Fact::DependencyChanged),
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                Ok(()) = freed.changed(), if self.agenda.view.crowded_until.is_some() => {}
                () = sleep_until(wake) => {}
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

    /// The time. What was noted by a clock that was set since moves along with it (see [`Agenda::clock_stepped`]).
    fn now(&mut self) -> Timestamp {
        let (now, stepped) = self.clock.look(Timestamp::now(), Instant::now());
        if let Some(by) = stepped {
            self.agenda.clock_stepped(by);
        }
        now
    }

    /// Takes the pod in, or refuses it, before anything of it is begun. Where what is going here is in its way, it
    /// waits for that, up to [`CROWDED`].
    async fn admit(&mut self) {
        self.admitted = true;
        // Before it is taken out of what moves along with the clock.
        self.now();
        let crowded_until = self.agenda.view.crowded_until.take();
        if !self.agenda.view.is_new() {
            return;
        }
        let kubelet = self.kubelet.clone();
        let pod = &self.context.pod;
        let refused = admission::refuses(pod, &kubelet.abilities);
        let refusal = match refused.or_else(|| pressure::refuses(pod, &kubelet.pressure.conditions())) {
            Some(refusal) => refusal,
            None => {
                let misfit = node_status::try_on_node(&kubelet, |node| kubelet.pods.admit(self.handle(), node)).await;
                let Some(misfit) = misfit else { return };
                let now = self.now();
                let until = crowded_until.or_else(|| now.checked_add(CROWDED).ok());
                if misfit.fits_soon && until.is_some_and(|until| until > now) {
                    self.admitted = false;
                    self.agenda.view.crowded_until = until;
                    return;
                }
                misfit.refusal
            }
        };
        self.apply(Fact::Refused(refusal));
    }

    /// Adopts what runs already (V7, S11).
    async fn learn_what_runs(&mut self) {
        let runtime = self.kubelet.runtime.clone();
        if let Some(sandbox) = runtime.sandboxes().into_iter().find(|sandbox| sandbox.pod_uid == self.context.uid) {
            let made_at = Timestamp::from_millisecond(sandbox.created_at_ms).ok();
            let fact = match sandbox.annotations.get(IP_ANNOTATION) {
                _ if !sandbox.ready => Sandbox::Dead { since: Timestamp::now() },
                Some(ip) => Sandbox::Ready { ip: Some(ip.clone()), made_at },
                None => match execute::complete_sandbox(&self.kubelet, &self.context, &sandbox).await {
                    Ok(ready) => ready,
                    Err(error) => {
                        tracing::warn!(pod = self.context.name, error, "a sandbox that a crash cut off is made anew");
                        Sandbox::Dead { since: Timestamp::now() }
                    }
                },
            };
            self.apply(Fact::Sandbox(fact));
            if let Some(seconds) = deadline::of(&self.kubelet, &self.context.uid) {
                self.apply(Fact::Deadline(seconds));
            }
        }
        let uid = self.context.uid.clone();
        for status in runtime.list().into_iter().filter(|status| status.pod_uid == uid) {
            self.observe(&status);
        }
        self.learn_which_hooks_ran();
    }

    /// A postStart hook that has run is not run again by the next agent, as upstream.
    fn learn_which_hooks_ran(&mut self) {
        let view = &self.agenda.view;
        let running = view.containers.iter().filter(|fact| matches!(fact.life, Life::Running { .. }));
        let ran = running
            .filter(|fact| files::has_hook_run(&self.kubelet.disk, &self.context.uid, &fact.name, fact.attempt))
            .map(|fact| (fact.name.clone(), fact.attempt))
            .collect::<Vec<_>>();
        for (container, attempt) in ran {
            self.apply(Fact::PostStart { container, attempt, result: Ok(()) });
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Update(update) => {
                let now = self.now();
                let (events, question) = self.agenda.update(update, now);
                self.context = PodContext::new(&self.agenda.view.pod);
                self.record_event(events);
                if let Some((key, task)) = question {
                    self.spawn(key, task);
                }
            }
            Message::Container(status) => self.observe(&status),
        }
    }

    fn take_pod(&mut self, pod: Pod) {
        let now = self.now();
        let events = self.agenda.take_pod(pod, now);
        self.context = PodContext::new(&self.agenda.view.pod);
        self.record_event(events);
    }

    fn apply(&mut self, fact: Fact) {
        let now = self.now();
        let started = if let Fact::Started { container, .. } = &fact { Some(container.clone()) } else { None };
        let events = self.agenda.view.apply(fact, now);
        self.record_event(events);
        self.note_back_off(started);
    }

    /// Notes how long a container that has just started waits after its end, where it does not for the first time.
    fn note_back_off(&self, started: Option<String>) {
        let Some(container) = started else { return };
        let Some(back_off) = self.agenda.view.memory.get(&container).and_then(|memory| memory.crash) else { return };
        let (disk, uid) = (self.kubelet.disk.clone(), self.context.uid.clone());
        tokio::task::spawn_blocking(move || {
            if let Err(error) = disk.note_back_off(&uid, &container, back_off) {
                tracing::debug!(uid, container, %error, "how long a container waits could not be noted");
            }
        });
    }

    fn observe(&mut self, status: &ContainerStatus) {
        let fact = ContainerFact {
            name: status.name.clone(),
            attempt: status.attempt,
            image: status.image.clone(),
            image_id: status.image_id.clone(),
            user: status.user.as_ref().map(|user| LinuxContainerUser {
                uid: user.uid.into(),
                gid: user.gid.into(),
                supplemental_groups: Some(user.groups.iter().copied().map(i64::from).collect()),
            }),
            sandbox_made_at: status.sandbox_made_at_ms.and_then(|ms| Timestamp::from_millisecond(ms).ok()),
            life: self.life(status),
        };
        let now = self.now();
        let events = self.agenda.observe(fact, now);
        self.record_event(events);
    }

    fn life(&self, status: &ContainerStatus) -> Life {
        let time = |ms| Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH);
        match &status.state {
            ContainerState::Created => Life::Created,
            ContainerState::Running { started_at_ms, .. } => Life::Running { since: time(*started_at_ms) },
            ContainerState::Exited { code, signal, oom, fenced, started_at_ms, finished_at_ms } => Life::Exited {
                code: *code,
                signal: *signal,
                oom: *oom,
                fenced: *fenced,
                started: time(*started_at_ms),
                finished: time(*finished_at_ms),
                message: files::termination_message(
                    &self.kubelet.disk,
                    &self.context,
                    &status.name,
                    status.attempt,
                    *code,
                ),
            },
            ContainerState::Unknown => Life::Lost,
        }
    }

    fn finish(&mut self, result: Result<(Id, (Key, Outcome)), tokio::task::JoinError>) {
        let (id, key, outcome) = match result {
            Ok((id, (key, outcome))) => (id, key, outcome),
            Err(error) => {
                let id = error.id();
                // What was cut is not under way any more; what broke is.
                let Some(key) = self.running.iter().find(|(_, running)| running.id == id).map(|(key, _)| key.clone())
                else {
                    return;
                };
                tracing::error!(pod = %self.context.name, %error, "an action of the kubelet broke; it is done again");
                (id, key, Outcome { end: End::Failed, ..Outcome::default() })
            }
        };
        for status in &outcome.containers {
            self.observe(status);
        }
        let begun = self.running.values().find(|running| running.id == id).map_or(0, |running| running.begun);
        let is_old = self.dependencies.extend(outcome.dependencies, begun);
        for fact in outcome.facts {
            match fact {
                Fact::Pod(pod) => self.take_pod(*pod),
                fact => self.apply(fact),
            }
        }
        if is_old {
            self.apply(Fact::DependencyChanged);
        }
        if self.running.get(&key).is_some_and(|running| running.id == id) {
            self.running.remove(&key);
            let now = self.now();
            self.agenda.finish(&key, outcome.end, now);
        }
        if self.running.is_empty() {
            self.dependencies.settle();
        }
        self.ended |= outcome.ended;
    }

    fn execute(&mut self, step: Step) {
        self.record_event(step.events);
        for key in step.cut {
            if let Some(running) = self.running.remove(&key) {
                running.handle.abort();
            }
        }
        for (key, task) in step.begin {
            self.spawn(key, task);
        }
    }

    /// Begins a task, in the place of one that is under way.
    fn spawn(&mut self, key: Key, task: Task) {
        let (kubelet, context, early) = (self.kubelet.clone(), self.context.clone(), self.early_sender.clone());
        let (of, begun) = (key.clone(), self.dependencies.begin());
        let handle = self.results.spawn(async move {
            let outcome = match task {
                Task::Act(action) => execute::execute(kubelet, context, action, early).await,
                Task::WriteStatus(patch) => execute::write_status(&kubelet, &context, &patch).await,
                Task::Verify => execute::verify(&kubelet, &context).await,
            };
            (of, outcome)
        });
        if let Some(replaced) = self.running.insert(key, Running { id: handle.id(), handle, begun }) {
            replaced.handle.abort();
        }
    }

    fn record_event(&self, events: Vec<PodEvent>) {
        let of = &self.context;
        for event in events {
            let regarding = Regarding {
                kind: "Pod".into(),
                namespace: of.namespace.clone(),
                name: of.name.clone(),
                uid: of.uid.clone(),
            };
            self.kubelet.events.record(regarding, event);
        }
    }

    fn publish(&self) {
        self.kubelet.pods.put(self.handle());
    }

    /// The pod as others on this node see it.
    fn handle(&self) -> PodHandle {
        let view = &self.agenda.view;
        let ip = match &view.sandbox {
            Sandbox::Ready { ip, .. } => ip.clone(),
            _ => None,
        };
        let mut attempts = BTreeMap::new();
        for fact in &view.containers {
            let newest = attempts.entry(fact.name.clone()).or_insert(fact.attempt);
            *newest = fact.attempt.max(*newest);
        }
        let takes_room = self.admitted && view.takes_room();
        let is_going = view.is_going();
        PodHandle {
            context: self.context.clone(),
            ip,
            attempts,
            takes_room,
            is_going,
            facts: self.early_sender.clone(),
        }
    }
}

/// The clock, beside the timer that nobody sets.
struct Clock {
    last: Timestamp,
    at: Instant,
}

impl Clock {
    /// What is less than this is how long it takes to look at both.
    const LEAST: SignedDuration = SignedDuration::from_millis(100);

    fn new(last: Timestamp, at: Instant) -> Self {
        Self { last, at }
    }

    /// The time, and by how much the clock was set since the last look.
    fn look(&mut self, now: Timestamp, at: Instant) -> (Timestamp, Option<SignedDuration>) {
        let passed = SignedDuration::try_from(at.saturating_duration_since(self.at)).unwrap_or_default();
        let stepped = now.duration_since(self.last) - passed;
        if stepped.abs() < Self::LEAST {
            // Kept, so that many small ones are noticed as one.
            return (now, None);
        }
        *self = Self::new(now, at);
        (now, Some(stepped))
    }
}

/// A time of the clock as one of the timer, at most an hour away: the clock may be set meanwhile.
fn from_now(at: Timestamp) -> tokio::time::Instant {
    let wait = Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO);
    tokio::time::Instant::now() + wait.min(Duration::from_secs(3600))
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s12_a_clock_that_was_set_is_noticed_and_one_that_goes_is_not() {
        let (begun, timer) = (Timestamp::from_second(1_000_000).unwrap(), Instant::now());
        let mut clock = Clock::new(begun, timer);
        let mut look = |by_clock: i64, by_timer: u64| {
            let now = begun.checked_add(SignedDuration::from_millis(by_clock)).unwrap();
            clock.look(now, timer + Duration::from_millis(by_timer)).1.map(|by| by.as_millis())
        };
        assert_eq!(look(5000, 5000), None);
        assert_eq!(look(5050, 5001), None);
        assert_eq!(look(-3_590_000, 10_000), Some(-3_600_000), "an hour back");
        assert_eq!(look(-3_580_000, 20_000), None);
        assert_eq!(look(20_000, 20_000), Some(3_600_000), "and on again");
        // A clock that is slowed or hastened: many small steps.
        assert_eq!((look(21_060, 21_000), look(22_120, 22_000)), (None, Some(120)));
    }
}
