//! What this node knows of one pod, and how each result becomes knowledge.
//!
//! The node's loop changes a view only through [`PodView::apply`], so the simulator's node and the real one
//! learn in the same way. Everything here is lost when the agent restarts, and is then learnt again: what runs
//! from the runtime, what was terminated from the disk, back-offs and probe counts from scratch, as upstream.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, LinuxContainerUser, Pod, PodSpec, Probe, ResourceRequirements};

use super::admission::Refusal;
use super::backoff::{Backoff, RESTART};

/// Whether the disk remembers that this pod uid was told to stop here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Remembered {
    /// It was never told to stop.
    #[default]
    No,
    /// It was, and will never be started again on this node, whatever a stale list says; or it is another machine's, as
    /// long as this agent lives.
    Yes,
    /// It was, and the disk did not take the note (full, read-only). Stopping goes on regardless.
    Failed,
}

/// The pod's sandbox: its pinned namespaces and its address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Sandbox {
    /// None, or not known to be there.
    #[default]
    Absent,
    /// There, with its network. `made_at` orders it against containers: those that began before belong to an
    /// older sandbox.
    Ready { ip: Option<String>, made_at: Option<Timestamp> },
    /// Its first process died at this time; its containers are stopped before another one is made.
    Dead { since: Timestamp },
}

/// A volume of the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeFact {
    /// Mounted, its files in place. What is projected into it is looked at again at `refresh_at`.
    Ready { refresh_at: Option<Timestamp> },
    /// It could not be made ready; tried again when the back-off ends or when something it depends on changes.
    Failed { message: String, backoff: Backoff },
}

/// What the runtime says about a container, in Kubernetes' terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Life {
    /// Made, not started.
    Created,
    /// Running.
    Running { since: Timestamp },
    /// Ended. One that could not be started has the epoch as its start.
    Exited {
        code: i32,
        signal: Option<i32>,
        oom: bool,
        /// Its supervisor ended it at its deadline (S13).
        fenced: bool,
        started: Timestamp,
        finished: Timestamp,
        message: Option<String>,
    },
    /// Its supervisor vanished without an exit code, its process is gone.
    Lost,
}

/// One container of the pod, past or present.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerFact {
    pub name: String,
    /// How many of this name came before it in this pod.
    pub attempt: u32,
    /// The image's name, as the pod had it when this was started; empty where that was not noted.
    pub image: String,
    /// The image's digest.
    pub image_id: String,
    /// When the sandbox was made that it was started in; none where that was not noted.
    pub sandbox_made_at: Option<Timestamp>,
    /// Who its first process was when it began, where the runtime knows.
    pub user: Option<LinuxContainerUser>,
    pub life: Life,
}

impl ContainerFact {
    /// Whether its processes may still be alive. A container that was made but not started has none yet, but
    /// its supervisor holds it, so it counts.
    pub fn is_alive(&self) -> bool {
        matches!(self.life, Life::Running { .. } | Life::Created)
    }

    /// Whether the pod names another image by now.
    pub fn is_of_another_image(&self, container: &Container) -> bool {
        !self.image.is_empty() && container.image.as_ref().is_some_and(|image| *image != self.image)
    }

    /// Exit code and end; a lost container counts as killed.
    pub fn exit(&self) -> Option<(i32, Option<Timestamp>)> {
        match &self.life {
            Life::Exited { code, finished, .. } => Some((*code, Some(*finished))),
            Life::Lost => Some((137, None)),
            Life::Created | Life::Running { .. } => None,
        }
    }
}

/// The three kinds of probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbeKind {
    Startup,
    Liveness,
    Readiness,
}

impl ProbeKind {
    /// As events spell it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }

    /// The container's probe of this kind.
    pub fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
        }
    }
}

/// What a probe run found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeOutcome {
    Success,
    /// A success with something to tell of it.
    Warning(String),
    /// The output, for the event.
    Failure(String),
    /// The probe itself could not be run; changes no count, as upstream.
    Error(String),
}

/// The runs of one probe against the current attempt of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProbeFact {
    /// When the last run began.
    pub last_run: Option<Timestamp>,
    /// Same outcomes in a row.
    pub run_length: i32,
    pub last_ok: bool,
    /// The verdict once a threshold was reached.
    pub verdict: Option<bool>,
    /// Failed readiness runs right after the start, which count for nothing.
    pub early: u32,
}

/// The image for a container's next attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFact {
    /// The name that this is about: the pod may have another one by now.
    pub name: String,
    pub state: ImageState,
}

/// Whether an image can be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageState {
    Present {
        id: String,
    },
    /// `reason` is upstream's: `ErrImagePull`, `InvalidImageName`, `ErrImageNeverPull`, `ImageInspectError`.
    Failed {
        reason: &'static str,
        message: String,
        at: Timestamp,
    },
}

/// How far the postStart hook of the current attempt is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hook {
    #[default]
    NotRun,
    Done,
}

/// What is remembered per container name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    /// Grows with each restart.
    pub crash: Option<Backoff>,
    pub image: Option<ImageFact>,
    pub pull: Option<Backoff>,
    /// Why the last start did not work: upstream's reason (`CreateContainerConfigError`, …) and a message.
    pub start_error: Option<(&'static str, String)>,
    pub start_retry: Option<Backoff>,
    /// The attempt that the fields below are about.
    pub attempt: Option<u32>,
    pub post_start: Hook,
    pub probes: BTreeMap<ProbeKind, ProbeFact>,
    /// What the container runs with, since its start or its last resize.
    pub resources: Option<ResourceRequirements>,
    /// A liveness or startup probe, a postStart hook or a resize condemned this attempt: why, since when, how long it
    /// has.
    pub condemned: Option<Condemned>,
}

impl Memory {
    /// What is known of the image that the container has now.
    pub fn image_of(&self, container: &Container) -> Option<&ImageFact> {
        let name = container.image.as_deref().unwrap_or("");
        self.image.as_ref().filter(|fact| fact.name == name)
    }
}

/// A container that is to be stopped although its pod goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condemned {
    pub why: String,
    pub since: Timestamp,
    pub grace_seconds: i64,
    /// The pod names another image by now: it runs again with that one, whatever its policy.
    pub replaced: bool,
}

/// One result of an action, or one thing noticed.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    /// The pod as the API has it now.
    Pod(Box<Pod>),
    /// The API has no pod of this uid any more.
    Gone,
    /// Another machine is this node, and the pod is that one's: here it ends, and no note says that it was to stop.
    Replaced,
    /// The note about termination was written, or not.
    Remembered(bool),
    /// All containers of this pod, replacing what was known.
    Containers(Vec<ContainerFact>),
    Sandbox(Sandbox),
    SandboxFailed(String),
    /// All containers of the pod stop by themselves so many seconds after the node's last renewal.
    Deadline(u32),
    Volume {
        name: String,
        /// When its content is to be looked at again (tokens expire).
        result: Result<Option<Timestamp>, String>,
    },
    /// An object that volumes or environments were waiting for has changed: try again at once.
    DependencyChanged,
    Unmounted,
    PullBegan {
        container: String,
        image: String,
    },
    /// `pulled` holds upstream's sentence when bytes were moved, or is empty where the image was there.
    Image {
        container: String,
        image: String,
        result: Result<(String, String), (&'static str, String)>,
    },
    Started {
        container: String,
        attempt: u32,
    },
    /// A running container has these resources now.
    Resources {
        container: String,
        attempt: u32,
        resources: Box<ResourceRequirements>,
    },
    StartFailed {
        container: String,
        reason: &'static str,
        message: String,
    },
    /// This attempt could not be started, which counts as one that ended.
    NeverBegan {
        container: String,
        attempt: u32,
        message: String,
    },
    PostStart {
        container: String,
        attempt: u32,
        result: Result<(), String>,
    },
    Probe {
        container: String,
        attempt: u32,
        kind: ProbeKind,
        began: Timestamp,
        outcome: ProbeOutcome,
    },
    /// A stop was begun, for the event.
    Stopping {
        container: String,
        why: String,
    },
    /// A preStop hook failed; the stop goes on.
    PreStopFailed {
        container: String,
        message: String,
    },
    /// This node does not take the pod: nothing of it was begun, nothing will be.
    Refused(Refusal),
    /// It has more on this node's disk than it may: it ends.
    Evicted {
        message: String,
    },
    /// Something a person should know about how this pod runs.
    Notice {
        warning: bool,
        reason: &'static str,
        message: String,
    },
}

/// An event about this pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodEvent {
    pub warning: bool,
    pub reason: &'static str,
    pub message: String,
    /// The container it is about, for `involvedObject.fieldPath`.
    pub container: Option<String>,
}

/// Everything that `decide` may look at for one pod uid.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodView {
    /// As last seen in the API.
    pub pod: Pod,
    /// The API has no such uid any more (finally deleted, or forced away).
    pub gone: bool,
    pub remembered: Remembered,
    /// Why this node did not take it.
    pub refused: Option<Refusal>,
    /// It fits when what is going here is gone; until then it is waited for.
    pub crowded_until: Option<Timestamp>,
    /// Why it was evicted, and since when.
    pub evicted: Option<(String, Timestamp)>,
    /// Another uid with this pod's namespace and name that still has containers here (S1).
    pub predecessor: Option<String>,
    /// What the node has for pods, by resource and in the units of [`crate::resources::Amounts`]; what is not named has
    /// no bound.
    pub capacity: BTreeMap<String, i64>,
    /// Addresses of this node, the primary one first.
    pub host_ips: Vec<String>,
    /// When this node first knew that the pod is to go.
    pub tombstoned_since: Option<Timestamp>,
    /// When this node first knew that the pod has ended, by itself or by what somebody wrote.
    pub finished_since: Option<Timestamp>,
    pub sandbox: Sandbox,
    /// After how many seconds without a renewal its containers stop by themselves, where they do (S13).
    pub deadline: Option<u32>,
    pub sandbox_error: Option<Backoff>,
    pub volumes: BTreeMap<String, VolumeFact>,
    /// Nothing of the pod is mounted any more.
    pub unmounted: bool,
    /// All attempts that the runtime still has, by name and attempt.
    pub containers: Vec<ContainerFact>,
    pub memory: BTreeMap<String, Memory>,
    /// By how much the clock was set since a container's start (or, with `true`, its end) was noted by it.
    pub(super) stepped: BTreeMap<(String, u32, bool), SignedDuration>,
}

impl PodView {
    /// A pod that was just seen for the first time.
    pub fn new(pod: Pod, host_ips: Vec<String>) -> Self {
        Self { pod, host_ips, ..Self::default() }
    }

    /// `metadata.uid`, or `""`.
    pub fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or("")
    }

    pub(super) fn spec(&self) -> Option<&PodSpec> {
        self.pod.spec.as_ref()
    }

    /// Whether the pod is on its way out, for good.
    pub fn is_tombstoned(&self) -> bool {
        self.gone || self.pod.metadata.deletion_timestamp.is_some() || self.remembered == Remembered::Yes
    }

    /// Why the pod was evicted, where the API says so and it has not ended yet: an agent from before decided that.
    pub fn recorded_eviction(&self) -> Option<String> {
        let status = self.pod.status.as_ref().filter(|status| status.reason.as_deref() == Some("Evicted"))?;
        let has_ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        (!has_ended).then(|| status.message.clone().unwrap_or_default())
    }

    /// Whether nothing of the pod was ever begun here, so that this node may still refuse it.
    pub fn is_new(&self) -> bool {
        let phase = self.pod.status.as_ref().and_then(|status| status.phase.as_deref());
        !self.is_tombstoned()
            && matches!(phase, None | Some("" | "Pending"))
            && self.sandbox == Sandbox::Absent
            && self.containers.is_empty()
    }

    /// Whether the pod takes of what the node has: until it ended, or was told to stop and nothing of it is alive. Not
    /// until its sandbox and mounts are put away: it is finished for the scheduler before that, whose next pod would be
    /// refused.
    pub fn takes_room(&self) -> bool {
        let phase = self.pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let over = self.is_tombstoned() || self.refused.is_some() || matches!(phase, Some("Succeeded" | "Failed"));
        !over || self.containers.iter().any(ContainerFact::is_alive)
    }

    /// Whether what it takes will be free soon.
    pub fn is_going(&self) -> bool {
        self.is_tombstoned() || self.evicted.is_some()
    }

    /// The newest attempt of a container.
    pub fn latest(&self, name: &str) -> Option<&ContainerFact> {
        let after = self.containers.partition_point(|fact| fact.name.as_str() <= name);
        self.containers.get(after.checked_sub(1)?).filter(|fact| fact.name == name)
    }

    pub(super) fn attempt(&self, name: &str, attempt: u32) -> Option<&ContainerFact> {
        self.containers.iter().find(|fact| fact.name == name && fact.attempt == attempt)
    }

    /// What is remembered of a container, where it is about this attempt.
    pub(super) fn memory_of(&self, name: &str, attempt: u32) -> Option<&Memory> {
        self.memory.get(name).filter(|memory| memory.attempt.is_none_or(|of| of == attempt))
    }

    pub(super) fn grace_seconds(&self) -> i64 {
        self.spec().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30).max(0)
    }

    /// The init and regular containers, in the order of the spec.
    pub(super) fn specs(&self) -> impl Iterator<Item = &Container> {
        self.spec().into_iter().flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers))
    }

    fn attempt_memory(&mut self, container: &str, attempt: u32) -> Option<&mut Memory> {
        let memory = self.memory.entry(container.to_owned()).or_default();
        if memory.attempt.is_none() {
            memory.attempt = Some(attempt);
        }
        (memory.attempt == Some(attempt)).then_some(memory)
    }

    /// Takes in one fact. Gives back the events that it is worth.
    #[expect(clippy::too_many_lines, reason = "an arm for each fact")]
    pub fn apply(&mut self, fact: Fact, now: Timestamp) -> Vec<PodEvent> {
        let mut events = Vec::new();
        let mut record = |warning, reason, message: String, container: Option<&str>| {
            events.push(PodEvent { warning, reason, message, container: container.map(str::to_owned) });
        };
        let may_resize = matches!(fact, Fact::Pod(_) | Fact::Containers(_));
        match fact {
            Fact::Pod(pod) => self.pod = *pod,
            Fact::Gone => self.gone = true,
            Fact::Replaced => (self.gone, self.remembered) = (true, Remembered::Yes),
            Fact::Remembered(done) => self.remembered = if done { Remembered::Yes } else { Remembered::Failed },
            Fact::Containers(mut facts) => {
                facts.sort_by(|a, b| (&a.name, a.attempt).cmp(&(&b.name, b.attempt)));
                self.containers = facts;
                self.note_steps(now);
            }
            Fact::Sandbox(sandbox) => {
                if self.apply_sandbox(sandbox) {
                    let message = "Pod sandbox changed, it will be killed and re-created.".into();
                    record(false, "SandboxChanged", message, None);
                }
            }
            Fact::SandboxFailed(message) => {
                self.sandbox_error = Some(Backoff::next(self.sandbox_error, now, now, super::backoff::RETRY));
                record(true, "FailedCreatePodSandBox", format!("Failed to create pod sandbox: {message}"), None);
            }
            Fact::Deadline(seconds) => self.deadline = Some(seconds),
            Fact::Volume { name, result: Ok(refresh_at) } => {
                self.unmounted = false;
                self.volumes.insert(name, VolumeFact::Ready { refresh_at });
            }
            Fact::Volume { name, result: Err(message) } => {
                let (reason, what) = self.apply_volume_failed(&name, &message, now);
                record(true, reason, format!("{what} failed for volume \"{name}\" : {message}"), None);
            }
            Fact::DependencyChanged => self.apply_dependency_changed(now),
            Fact::Unmounted => {
                self.unmounted = true;
                self.volumes.clear();
            }
            Fact::PullBegan { container, image } => {
                record(false, "Pulling", format!("Pulling image \"{image}\""), Some(&container))
            }
            Fact::Image { container, image, result } => self.apply_image(&container, &image, result, now, &mut record),
            Fact::Started { container, attempt } => {
                self.apply_started(&container, attempt, now);
                record(false, "Created", "Container created".to_owned(), Some(&container));
                record(false, "Started", "Container started".to_owned(), Some(&container));
            }
            Fact::Resources { container, attempt, resources } => {
                if let Some(memory) = self.attempt_memory(&container, attempt) {
                    memory.resources = Some(*resources);
                }
            }
            Fact::StartFailed { container, reason, message } => {
                record(true, "Failed", format!("Error: {message}"), Some(&container));
                self.apply_start_failed(container, (reason, message), now);
            }
            Fact::NeverBegan { container, attempt, message } => {
                self.apply_started(&container, attempt, now);
                record(true, "Failed", format!("Error: {message}"), Some(&container));
                self.memory.entry(container).or_default().start_error = Some(("RunContainerError", message));
            }
            Fact::PostStart { container, attempt, result } => {
                if let Err(message) = &result {
                    record(true, "FailedPostStartHook", format!("PostStartHook failed: {message}"), Some(&container));
                }
                self.apply_post_start(&container, attempt, result.is_ok(), now);
            }
            Fact::Probe { container, attempt, kind, began, outcome } => {
                self.apply_probe(&container, attempt, kind, began, outcome, now, &mut record);
            }
            Fact::Stopping { container, why } => record(false, "Killing", why, Some(&container)),
            Fact::PreStopFailed { container, message } => {
                record(true, "FailedPreStopHook", format!("PreStopHook failed: {message}"), Some(&container));
            }
            Fact::Refused(refusal) => {
                record(true, refusal.reason, refusal.message.clone(), None);
                self.refused = Some(refusal);
            }
            Fact::Evicted { message } if self.evicted.is_none() => {
                record(true, "Evicted", message.clone(), None);
                self.evicted = Some((message, now));
            }
            Fact::Evicted { .. } => {}
            Fact::Notice { warning, reason, message } => record(warning, reason, message, None),
        }
        if may_resize {
            self.condemn_resized(now);
            self.condemn_replaced(now);
        }
        self.finished_since = super::is_finished(self).then(|| self.finished_since.unwrap_or(now));
        if self.is_tombstoned() {
            self.tombstoned_since.get_or_insert(now);
        }
        events
    }

    /// True where a sandbox that was ready has died.
    fn apply_sandbox(&mut self, sandbox: Sandbox) -> bool {
        if matches!(sandbox, Sandbox::Ready { .. }) {
            self.sandbox_error = None;
            self.unmounted = false;
        }
        let has_died = matches!((&self.sandbox, &sandbox), (Sandbox::Ready { .. }, Sandbox::Dead { .. }));
        self.sandbox = sandbox;
        has_died
    }

    /// The event's reason, and upstream's name of what failed.
    fn apply_volume_failed(&mut self, name: &str, message: &str, now: Timestamp) -> (&'static str, &'static str) {
        self.unmounted = false;
        let failed = |before| VolumeFact::Failed {
            message: message.to_owned(),
            backoff: Backoff::next(before, now, now, super::backoff::RETRY),
        };
        let fact = match self.volumes.get(name) {
            // It is mounted and in use: what it holds stays, only the refresh is late.
            Some(VolumeFact::Ready { .. }) => {
                VolumeFact::Ready { refresh_at: Some(super::backoff::plus(now, super::backoff::REFRESH_RETRY)) }
            }
            Some(VolumeFact::Failed { backoff, .. }) => failed(Some(*backoff)),
            None => failed(None),
        };
        self.volumes.insert(name.to_owned(), fact);
        let devices = self.specs().flat_map(|container| container.volume_devices.iter().flatten());
        match devices.into_iter().any(|device| device.name == name) {
            true => ("FailedMapVolume", "MapVolume.SetUpDevice"),
            false => ("FailedMount", "MountVolume.SetUp"),
        }
    }

    /// What failed is tried again, and what is mounted is made anew.
    fn apply_dependency_changed(&mut self, now: Timestamp) {
        self.volumes.retain(|_, fact| matches!(fact, VolumeFact::Ready { .. }));
        for fact in self.volumes.values_mut() {
            *fact = VolumeFact::Ready { refresh_at: Some(now) };
        }
        for memory in self.memory.values_mut() {
            memory.start_retry = None;
        }
    }

    fn apply_start_failed(&mut self, container: String, error: (&'static str, String), now: Timestamp) {
        let memory = self.memory.entry(container).or_default();
        memory.start_error = Some(error);
        // It is asked for again before the next try: it may be gone, or another one by then.
        memory.image = None;
        memory.start_retry = Some(Backoff::next(memory.start_retry, now, now, RESTART));
    }

    fn apply_post_start(&mut self, container: &str, attempt: u32, is_done: bool, now: Timestamp) {
        let grace_seconds = self.grace_seconds();
        let Some(memory) = self.attempt_memory(container, attempt) else { return };
        if is_done {
            memory.post_start = Hook::Done;
        } else {
            let why = "FailedPostStartHook".to_owned();
            memory.condemned.get_or_insert(Condemned { why, since: now, grace_seconds, replaced: false });
        }
    }

    /// Containers whose new resources need a restart are stopped; what starts then has them.
    fn condemn_resized(&mut self, now: Timestamp) {
        if super::resize::infeasible(self).is_some() {
            return;
        }
        let restarted =
            super::resize::open(self).filter(|(container, _, changed)| super::resize::restarts(container, changed));
        let restarted: Vec<(String, u32)> = restarted.map(|(_, fact, _)| (fact.name.clone(), fact.attempt)).collect();
        let grace_seconds = self.grace_seconds();
        for (name, attempt) in restarted {
            let why = format!("Container {name} resize requires restart");
            if let Some(memory) = self.attempt_memory(&name, attempt) {
                memory.condemned.get_or_insert(Condemned { why, since: now, grace_seconds, replaced: false });
            }
        }
    }

    /// Running containers whose image is another one by now are stopped, as upstream; what starts then has it. Init
    /// containers but for sidecars end by themselves, with what they were started with.
    fn condemn_replaced(&mut self, now: Timestamp) {
        let Some(spec) = self.spec() else { return };
        let sidecars = spec.init_containers.iter().flatten().filter(|container| crate::pods::is_sidecar(container));
        let replaced = sidecars.chain(&spec.containers).filter_map(|container| {
            let fact = self.latest(&container.name).filter(|fact| matches!(fact.life, Life::Running { .. }))?;
            fact.is_of_another_image(container).then(|| (fact.name.clone(), fact.attempt))
        });
        let (replaced, grace_seconds): (Vec<(String, u32)>, _) = (replaced.collect(), self.grace_seconds());
        for (name, attempt) in replaced {
            let why = format!("Container {name} definition changed, will be restarted");
            if let Some(memory) = self.attempt_memory(&name, attempt) {
                let condemned = Condemned { why, since: now, grace_seconds, replaced: true };
                memory.condemned.get_or_insert(condemned).replaced = true;
            }
        }
    }

    fn apply_started(&mut self, container: &str, attempt: u32, now: Timestamp) {
        let image = self.attempt(container, attempt).map(|fact| fact.image.clone()).unwrap_or_default();
        let before = attempt.checked_sub(1).and_then(|before| self.attempt(container, before));
        // Another image has not failed yet.
        let is_another = before.is_some_and(|fact| !fact.image.is_empty() && !image.is_empty() && fact.image != image);
        let of_now = |fact: &ContainerFact| {
            let (code, finished) = fact.exit()?;
            Some((code, finished.map(|finished| self.by_this_clock(fact, finished))))
        };
        let ended = before.filter(|_| !is_another).map(of_now);
        let forgotten = super::restart_all::ended_before(self, container).filter(|_| before.is_none());
        let memory = self.memory.entry(container.to_owned()).or_default();
        let crash = match ended {
            None => match forgotten {
                Some(finished) => Some(Backoff::next(memory.crash, finished, now, RESTART)),
                None => memory.crash.filter(|_| !is_another),
            },
            Some(exit) => {
                let finished = exit.and_then(|(_, finished)| finished).unwrap_or(now);
                Some(Backoff::next(memory.crash, finished, now, RESTART))
            }
        };
        *memory = Memory { crash, attempt: Some(attempt), ..Memory::default() };
    }

    fn apply_image(
        &mut self,
        container: &str,
        image: &str,
        result: Result<(String, String), (&'static str, String)>,
        now: Timestamp,
        record: &mut impl FnMut(bool, &'static str, String, Option<&str>),
    ) {
        let memory = self.memory.entry(container.to_owned()).or_default();
        match result {
            Ok((id, pulled)) => {
                let message = if pulled.is_empty() {
                    format!("Container image \"{image}\" already present on machine and can be accessed by the pod")
                } else {
                    pulled
                };
                record(false, "Pulled", message, Some(container));
                memory.image = Some(ImageFact { name: image.to_owned(), state: ImageState::Present { id } });
                memory.pull = None;
            }
            Err((reason, message)) => {
                match reason {
                    "ErrImagePull" => {
                        record(true, "Failed", format!("Failed to pull image \"{image}\": {message}"), Some(container))
                    }
                    "InvalidImageName" => record(true, "InspectFailed", message.clone(), Some(container)),
                    _ => record(true, reason, message.clone(), Some(container)),
                }
                record(true, "Failed", format!("Error: {reason}"), Some(container));
                let before = memory.pull.filter(|_| memory.image.as_ref().is_some_and(|before| before.name == image));
                let state = ImageState::Failed { reason, message, at: now };
                memory.image = Some(ImageFact { name: image.to_owned(), state });
                memory.pull = Some(Backoff::next(before, now, now, RESTART));
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one fact")]
    fn apply_probe(
        &mut self,
        container: &str,
        attempt: u32,
        kind: ProbeKind,
        began: Timestamp,
        outcome: ProbeOutcome,
        now: Timestamp,
        record: &mut impl FnMut(bool, &'static str, String, Option<&str>),
    ) {
        let Some(probe) = self.specs().find(|spec| spec.name == container).and_then(|spec| kind.of(spec)) else {
            return;
        };
        let (success, failure) =
            (probe.success_threshold.unwrap_or(1).max(1), probe.failure_threshold.unwrap_or(3).max(1));
        let grace_seconds = probe.termination_grace_period_seconds.unwrap_or_else(|| self.grace_seconds());
        let alive = self.attempt(container, attempt).is_some_and(ContainerFact::is_alive);
        let early = kind == ProbeKind::Readiness
            && self.attempt(container, attempt).is_some_and(|fact| super::probes::is_early(self, probe, fact, began));
        let Some(memory) = self.attempt_memory(container, attempt) else { return };
        let fact = memory.probes.entry(kind).or_default();
        fact.last_run = Some(began);
        let is_success = matches!(outcome, ProbeOutcome::Success | ProbeOutcome::Warning(_));
        if early && fact.verdict.is_none() && !is_success {
            fact.early = fact.early.saturating_add(1);
            return;
        }
        let ok = match &outcome {
            ProbeOutcome::Success => true,
            ProbeOutcome::Warning(output) => {
                record(true, "ProbeWarning", format!("{} probe warning: {output}", kind.title()), Some(container));
                true
            }
            ProbeOutcome::Failure(output) => {
                if alive {
                    record(true, "Unhealthy", format!("{} probe failed: {output}", kind.title()), Some(container));
                }
                false
            }
            ProbeOutcome::Error(message) => {
                let message = format!("{} probe errored and resulted in unknown state: {message}", kind.title());
                return record(true, "Unhealthy", message, Some(container));
            }
        };
        fact.run_length = if fact.last_ok == ok { fact.run_length.saturating_add(1) } else { 1 };
        fact.last_ok = ok;
        if fact.run_length >= if ok { success } else { failure } {
            fact.verdict = Some(ok);
            if !ok && kind != ProbeKind::Readiness {
                let why =
                    format!("Container {container} failed {} probe, will be restarted", kind.title().to_lowercase());
                memory.condemned.get_or_insert(Condemned { why, since: now, grace_seconds, replaced: false });
            }
        }
    }
}
