//! A node's agent: what the real one does, with a clock and a runtime that follow from the seed.
//!
//! The informer, the dispatcher and the agendas are the product's; what is done takes a while and comes back as a fact.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use mainstay_api::{Kind, ObjectKey, Status, kinds, object};
use mainstay_client::ListWatch;
use mainstay_logic::Snapshot;
use mainstay_logic::kubelet::hold::{HELD_BY, Holder, Lock};
use mainstay_logic::kubelet::{Action, Agenda, Dispatcher, Fact, Key, Task};
use mainstay_logic::nodes::{LEASES, MACHINE};
use mainstay_logic::volume::annotation;
use mainstay_server::api::{self, Part, Watch, key};
use serde_json::{Value, json};

use crate::bugs::Bug;
use crate::runtime::Machine;
use crate::seed::Seed;
use crate::server::Server;

mod act;
mod heartbeat;
mod pods;
mod status;

struct Entry {
    key: ObjectKey,
    agenda: Agenda,
    /// What takes until then.
    running: BTreeMap<Key, (Timestamp, Task)>,
    wake_at: Option<Timestamp>,
    dirty: bool,
    ended: bool,
}

/// One node.
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its place among the machines.
    pub index: usize,
    /// Which machine its data folder says that it is; a copy says the same.
    pub machine_id: String,
    /// How often the machine was started.
    boots: u64,
    /// How many of its agents found that another machine is this node.
    pub given_up: u64,
    /// The run of another machine as this node, of which a user said that it is over.
    pub takes_over: String,
    /// Another machine was this node for a while: volumes of that while were deleted without this one.
    pub was_replaced: bool,
    /// The machine, which outlives agents.
    pub machine: Machine,
    /// It cannot reach the server before this time.
    pub cut_off_until: Timestamp,
    /// Nothing that is sent to it arrives before this time.
    pub deaf_until: Timestamp,
    /// The agent does nothing before this time.
    pub stalled_until: Timestamp,
    /// How many agents there have been.
    pub restarts: u64,
    agent: Agent,
}

struct Agent {
    informer: ListWatch,
    watch: Option<Watch>,
    /// When the newest watch was asked for.
    watched_since: Timestamp,
    dispatcher: Dispatcher,
    /// In order of arrival.
    entries: Vec<Entry>,
    /// Pods of which containers ended while the agent stood still: it finds them ended when it goes on.
    unseen: BTreeSet<String>,
    retry_at: Option<Timestamp>,
    lease_at: Option<Timestamp>,
    is_registered: bool,
    round: u32,
    /// A renewal whose answer is on its way: when it is here, when it was sent by the machine's clock, and the Lease's
    /// version then.
    answer: Option<(Timestamp, Duration, String)>,
    /// What it knows of its Lease.
    lock: Lock,
    /// Another machine is this node.
    is_replaced: bool,
    /// By uid: since when the lease was renewed without a gap when the server last said that the pod is there.
    asked: BTreeMap<String, Duration>,
    volumes_at: Option<Timestamp>,
}

impl Agent {
    fn new() -> Self {
        Self {
            informer: ListWatch::new(&kinds::POD),
            watch: None,
            watched_since: Timestamp::UNIX_EPOCH,
            dispatcher: Dispatcher::default(),
            entries: Vec::new(),
            unseen: BTreeSet::new(),
            retry_at: None,
            lease_at: None,
            is_registered: false,
            round: 0,
            answer: None,
            lock: Lock::default(),
            is_replaced: false,
            asked: BTreeMap::new(),
            volumes_at: None,
        }
    }
}

/// What a node has around it when it gets its turn.
pub struct Around<'a> {
    /// The server, which may be down.
    pub server: &'a mut Server,
    /// The time.
    pub now: Timestamp,
    /// The node's randomness.
    pub seed: &'a mut Seed,
    /// Whether things go wrong.
    pub faults: bool,
    /// What is broken on purpose.
    pub bug: Option<Bug>,
    /// Whether requests and answers take their time.
    pub delays: bool,
}

pub(crate) fn plus(now: Timestamp, milliseconds: i64) -> Timestamp {
    now.saturating_add(SignedDuration::from_millis(milliseconds)).unwrap_or(now)
}

impl Node {
    /// A node that was never there before.
    pub fn new(index: usize, now: Timestamp) -> Self {
        Self {
            name: format!("n{index}"),
            index,
            machine_id: format!("m{index}"),
            boots: 0,
            given_up: 0,
            was_replaced: false,
            takes_over: String::new(),
            machine: Machine::new(),
            cut_off_until: now,
            deaf_until: now,
            stalled_until: now,
            restarts: 0,
            agent: Agent::new(),
        }
    }

    /// A machine that is off, and will be a node of that name, with nothing on it.
    pub fn twin(index: usize, name: &str, now: Timestamp) -> Self {
        let mut twin = Self { name: name.to_owned(), ..Self::new(index, now) };
        twin.machine.is_on = false;
        twin
    }

    /// Its data folder: which machine it is, and what is on its disk.
    pub fn disk(&self) -> (String, Machine) {
        let mut disk = Machine::default();
        disk.directories.clone_from(&self.machine.directories);
        disk.begun.clone_from(&self.machine.begun);
        disk.tombstoned.clone_from(&self.machine.tombstoned);
        (self.machine_id.clone(), disk)
    }

    /// Gets a copy of another machine's data folder, beside what it had itself.
    pub fn take_disk(&mut self, (id, disk): (String, Machine)) {
        self.machine_id = id;
        for (name, directory) in disk.directories {
            let own = self.machine.directories.entry(name).or_default();
            if own.starts <= directory.starts {
                *own = directory;
            }
        }
        (self.machine.begun, self.machine.tombstoned) = (disk.begun, disk.tombstoned);
    }

    /// Who its agent is.
    fn holder(&self) -> Holder {
        let (machine, run) = (self.machine_id.clone(), format!("{}.{}", self.index, self.restarts));
        let place = format!("boot{}of{}.0.0", self.boots, self.index);
        Holder { machine, run, place, hardware: format!("box{}", self.index) }
    }

    /// Whether this machine is the node of its name, as the store says: the Node is this machine's, and nobody else
    /// has its Lease.
    pub fn is_the_node(&self, truth: &Snapshot) -> bool {
        let of_node = truth.nodes.get(&ObjectKey::new("", self.name.as_str()));
        let machine = of_node.map_or("", |node| annotation(&node.metadata, MACHINE));
        let lease = truth.leases.get(&ObjectKey::new(LEASES, self.name.as_str()));
        let holder = lease.and_then(|lease| Holder::parse(annotation(&lease.metadata, HELD_BY)));
        let own = self.holder();
        (machine.is_empty() || machine == self.machine_id)
            && holder.is_none_or(|holder| holder.machine == own.machine && holder.place == own.place)
    }

    /// Whether this agent is the node for certain now.
    fn is_held(&self, around: &Around<'_>) -> bool {
        let trusts = matches!(around.bug, Some(Bug::SharesItsName | Bug::TendsAnothersVolumes));
        trusts || !self.agent.is_replaced && self.agent.lock.is_held(self.machine.boottime(around.now))
    }

    /// Another machine is this node: this one's pods end.
    fn give_up(&mut self, around: &mut Around<'_>) {
        if std::mem::replace(&mut self.agent.is_replaced, true) {
            return;
        }
        self.given_up += 1;
        let left = || self.machine.begun.values().cloned().collect();
        let mut dispatches = self.agent.dispatcher.synced(left);
        dispatches.extend(self.agent.dispatcher.all_replaced());
        for dispatch in dispatches {
            self.execute(dispatch, around);
        }
    }

    /// The agent dies; the machine does not notice.
    pub fn restart_agent(&mut self) {
        self.restarts += 1;
        self.agent = Agent::new();
    }

    /// The power goes; it may come back at once.
    pub fn set_power(&mut self, on: bool, now: Timestamp) {
        if self.machine.is_on {
            self.machine.lose_power(now);
        }
        self.boots += u64::from(on);
        self.machine.is_on = on;
        self.restart_agent();
    }

    /// Whether it holds a pod that was not forgotten yet.
    pub fn pods(&self) -> usize {
        self.agent.entries.len()
    }

    fn can_talk(&self, around: &Around<'_>) -> bool {
        self.cut_off_until.max(self.deaf_until) <= around.now && around.server.up.is_some()
    }

    /// When it has something to do even if nothing happens.
    pub fn next_wake(&self) -> Option<Timestamp> {
        if !self.machine.is_on {
            return None;
        }
        let agent = &self.agent;
        let entries = agent.entries.iter().flat_map(|entry| {
            let running = entry.running.values().map(|(due, _)| *due);
            running.chain(entry.wake_at)
        });
        let answer = agent.answer.as_ref().map(|(at, ..)| *at);
        let own = [agent.retry_at, agent.lease_at, agent.volumes_at, answer].into_iter().flatten();
        let agent = entries.chain(own).min().map(|at| at.max(self.stalled_until));
        // Supervisors and containers do not wait for an agent.
        agent.into_iter().chain(self.machine.next_end()).min()
    }

    /// Does what can be done now, one small thing of each sort; whether there was anything.
    pub fn step(&mut self, around: &mut Around<'_>) -> bool {
        if !self.machine.is_on {
            return false;
        }
        let ended = self.machine.tick(around.now);
        let mut busy = !ended.is_empty();
        self.agent.unseen.extend(ended);
        if self.stalled_until > around.now {
            return busy;
        }
        for uid in std::mem::take(&mut self.agent.unseen) {
            self.learn_containers(&uid, around.now);
            busy = true;
        }
        busy |= self.take_answer(around);
        if self.agent.is_replaced {
            self.agent.watch = None;
            (self.agent.retry_at, self.agent.lease_at) = (None, None);
            busy |= around.bug == Some(Bug::TendsAnothersVolumes) && self.can_talk(around) && self.reclaim(around);
        } else if self.can_talk(around) {
            busy |= self.heartbeat(around);
            busy |= self.follow_pods(around);
            busy |= self.reclaim(around);
        } else {
            busy |= self.unheard(around);
            self.lose_watch(around.now);
        }
        for index in 0..self.agent.entries.len() {
            busy |= self.step_pod(index, around);
        }
        let ended = self.agent.entries.extract_if(.., |entry| entry.ended);
        let ended: Vec<String> = ended.map(|entry| entry.agenda.view.uid().to_owned()).collect();
        for uid in ended {
            busy = true;
            for dispatch in self.agent.dispatcher.ended(&uid) {
                self.execute(dispatch, around);
            }
        }
        busy
    }

    /// What is due for one pod, and then what to do next.
    fn step_pod(&mut self, index: usize, around: &mut Around<'_>) -> bool {
        let now = around.now;
        let Some(entry) = self.agent.entries.get_mut(index) else { return false };
        let due: Vec<Key> =
            entry.running.iter().filter(|(_, (due, _))| *due <= now).map(|(key, _)| key.clone()).collect();
        let mut busy = !due.is_empty();
        for key in due {
            let Some(entry) = self.agent.entries.get_mut(index) else { return true };
            if let Some((_, task)) = entry.running.remove(&key) {
                entry.dirty = true;
                self.finish(index, key, task, around);
            }
        }
        let Some(entry) = self.agent.entries.get_mut(index) else { return true };
        if entry.wake_at.is_some_and(|at| at <= now) {
            entry.wake_at = None;
            entry.dirty = true;
        }
        if entry.dirty && !entry.ended {
            entry.dirty = false;
            busy = true;
            self.decide(index, around);
        }
        busy
    }

    fn decide(&mut self, index: usize, around: &mut Around<'_>) {
        let now = around.now;
        let Some(entry) = self.agent.entries.get_mut(index) else { return };
        let mut step = entry.agenda.step(now);
        entry.wake_at = step.wake_at;
        for key in step.cut {
            entry.running.remove(&key);
        }
        let view = &entry.agenda.view;
        if around.bug == Some(Bug::ConfirmsTooEarly)
            && view.is_tombstoned()
            && !view.gone
            && !entry.running.contains_key(&Key::Confirm)
        {
            step.begin.push((Key::Confirm, Task::Act(Action::ConfirmDeletion)));
        }
        for (key, task) in step.begin {
            self.begin(index, key, task, around);
        }
    }

    /// One task begins, and takes a while.
    fn begin(&mut self, index: usize, key: Key, task: Task, around: &mut Around<'_>) {
        let now = around.now;
        let mut due = plus(now, delay(&task, around));
        let Some(entry) = self.agent.entries.get_mut(index) else { return };
        if let Task::Act(Action::StopContainer { container, attempt, deadline, .. }) = &task {
            due = due.min((*deadline).max(now));
            let uid = entry.agenda.view.uid().to_owned();
            for running in self.machine.containers.get_mut(&uid).into_iter().flatten() {
                if running.fact.name == *container && running.fact.attempt == *attempt {
                    let at = running.ends.map_or(due, |(at, _)| at.min(due));
                    running.ends = Some((at, running.ends.map_or(143, |(_, code)| code)));
                    due = at;
                }
            }
        }
        entry.running.insert(key, (due, task));
    }
}

/// How long a task takes, in milliseconds.
fn delay(task: &Task, around: &mut Around<'_>) -> i64 {
    let action = match task {
        Task::Act(action) => action,
        Task::WriteStatus(_) => return around.seed.between(0, 20),
        Task::Verify => return 0,
    };
    match action {
        // It does not end by itself: the deadline does it.
        Action::StopContainer { .. } if around.seed.one_in(4) => 3_600_000,
        Action::StopContainer { .. } => around.seed.between(5, 3000),
        Action::EnsureImage { .. } | Action::StartContainer { .. } => around.seed.between(1, 800),
        Action::RunProbe { .. } => 1,
        _ => around.seed.between(1, 60),
    }
}

impl Entry {
    fn new(key: ObjectKey, agenda: Agenda) -> Self {
        Self { key, agenda, running: BTreeMap::new(), wake_at: None, dirty: true, ended: false }
    }

    fn apply(&mut self, fact: Fact, now: Timestamp) {
        self.agenda.view.apply(fact, now);
        self.dirty = true;
    }

    fn take_pod(&mut self, pod: Pod, now: Timestamp) {
        self.agenda.take_pod(pod, now);
        self.dirty = true;
    }

    /// Has the API asked about the pod, unless it is being asked.
    fn verify(&mut self, now: Timestamp) {
        if let Some((key, task)) = self.agenda.verify() {
            self.running.insert(key, (now, task));
        }
    }
}

/// Reads an object from the server, if it answers.
fn get(server: &Server, kind: &Kind, namespace: &str, name: &str) -> Result<Option<Value>, Status> {
    let Some(up) = &server.up else { return Err(Status::unavailable("the server is down")) };
    match up.api.store.get(&key::object(kind, namespace, name)) {
        None => Ok(None),
        Some(entry) => {
            serde_json::from_slice(&entry.value).map(Some).map_err(|error| Status::internal(error.to_string()))
        }
    }
}

/// Patches an object, with uid and resourceVersion as preconditions where they are given.
fn patch(
    server: &mut Server,
    kind: &Kind,
    at: &ObjectKey,
    part: Part,
    preconditions: (&str, &str),
    patch: &Value,
) -> Result<Value, Status> {
    let (uid, version) = preconditions;
    let reply = server.write(|batch| {
        let change = |old: &Value| {
            let renamed = !uid.is_empty() && object::uid(old) != uid;
            let changed = !version.is_empty() && object::resource_version(old) != version;
            if renamed || changed {
                return Err(Status::conflict(kind, object::name(old)));
            }
            let mut new = old.clone();
            api::merge_patch(&mut new, patch.clone());
            Ok(new)
        };
        api::patch(batch, kind, &at.namespace, &at.name, part, &change)
    })?;
    serde_json::from_slice(&reply.body).map_err(|error| Status::internal(error.to_string()))
}

/// Makes an object.
fn create(server: &mut Server, kind: &Kind, namespace: &str, made: &Value) -> Result<(), Status> {
    server.write(|batch| api::create(batch, kind, namespace, made.clone())).map(|_| ())
}

/// The name and uid of a node, for whoever owns its lease.
fn owner(name: &str, uid: &str) -> Value {
    json!([{ "apiVersion": "v1", "kind": "Node", "name": name, "uid": uid }])
}
