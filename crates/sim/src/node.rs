//! A node's agent: what the real one does, with a clock and a runtime that follow from the seed.
//!
//! A watch feeds one view per pod uid; `kubelet::decide` says what to do; what is done takes a while and comes back as
//! a fact. A restarted agent first takes in what it finds on its machine, then a list that may be old, and asks
//! for each pod before it acts on it, as the real one does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use mainstay_api::{Kind, ObjectKey, Registry, Status, kinds, object};
use mainstay_logic::kubelet::{Action, Agenda, ContainerFact, Fact, Key, PodView, Remembered, Sandbox, Task};
use mainstay_server::api::{self, Part, key};
use mainstay_store::{Revision, Watcher};
use serde_json::{Value, json};

use crate::bugs::Bug;
use crate::runtime::Machine;
use crate::seed::Seed;
use crate::server::Server;

mod act;
mod heartbeat;
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
    /// Its place among the nodes.
    pub index: usize,
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

#[derive(Default)]
struct Agent {
    watcher: Option<Watcher>,
    resume: Revision,
    has_list: bool,
    /// Whether what the machine holds was taken in.
    has_adopted: bool,
    /// In order of arrival.
    entries: Vec<Entry>,
    known: BTreeMap<ObjectKey, String>,
    /// Pods of which containers ended while the agent stood still: it finds them ended when it goes on.
    unseen: BTreeSet<String>,
    retry_at: Option<Timestamp>,
    lease_at: Option<Timestamp>,
    is_registered: bool,
    round: u32,
    /// A renewal whose answer is on its way: when it is here, and when it was sent by the machine's clock.
    answer: Option<(Timestamp, Duration)>,
    /// By uid: since when the lease was renewed without a gap when the server last said that the pod is there.
    asked: BTreeMap<String, Duration>,
    volumes_at: Option<Timestamp>,
}

/// All pods at one time.
pub type PodList = BTreeMap<ObjectKey, Arc<Value>>;

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
    /// The pods' past states and their revisions, for a list from a stale server.
    pub past: &'a [(Revision, PodList)],
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
            machine: Machine::new(),
            cut_off_until: now,
            deaf_until: now,
            stalled_until: now,
            restarts: 0,
            agent: Agent::default(),
        }
    }

    /// The agent dies; the machine does not notice.
    pub fn restart_agent(&mut self) {
        self.restarts += 1;
        self.agent = Agent::default();
    }

    /// The power goes; it may come back at once.
    pub fn set_power(&mut self, on: bool, now: Timestamp) {
        if self.machine.is_on {
            self.machine.lose_power(now);
        }
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
        let answer = agent.answer.map(|(at, _)| at);
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
        if self.can_talk(around) {
            busy |= self.heartbeat(around);
            busy |= self.read_watch(around);
            busy |= self.reclaim(around);
        } else {
            busy |= self.unheard(around);
            if self.agent.watcher.take().is_some() {
                self.agent.retry_at = Some(plus(around.now, 200));
            }
        }
        for index in 0..self.agent.entries.len() {
            busy |= self.step_pod(index, around);
        }
        let before = self.agent.entries.len();
        self.agent.entries.retain(|entry| !entry.ended);
        if self.agent.entries.len() != before {
            self.set_predecessors();
            busy = true;
        }
        busy
    }

    /// Each pod is told which older uid of its name is still here (S1).
    fn set_predecessors(&mut self) {
        let mut holders: BTreeMap<ObjectKey, String> = BTreeMap::new();
        for entry in &mut self.agent.entries {
            let predecessor = holders.get(&entry.key).cloned();
            if entry.agenda.view.predecessor != predecessor {
                entry.agenda.view.predecessor = predecessor;
                entry.dirty = true;
            }
            holders.entry(entry.key.clone()).or_insert_with(|| entry.agenda.view.uid().to_owned());
        }
    }

    fn learn_containers(&mut self, uid: &str, now: Timestamp) {
        let facts: Vec<ContainerFact> =
            self.machine.containers.get(uid).into_iter().flatten().map(|container| container.fact.clone()).collect();
        if let Some(entry) = self.agent.entries.iter_mut().find(|entry| entry.agenda.view.uid() == uid) {
            entry.apply(Fact::Containers(facts), now);
        }
    }

    fn read_watch(&mut self, around: &mut Around<'_>) -> bool {
        let now = around.now;
        let Some(up) = &around.server.up else { return false };
        let store = &up.api.store;
        if self.agent.watcher.is_none() {
            if self.agent.retry_at.is_some_and(|at| at > now) {
                return false;
            }
            self.agent.retry_at = None;
            let resumed = if self.agent.has_list {
                store.watch(key::prefix(&kinds::POD, None), self.agent.resume).ok()
            } else {
                None
            };
            match resumed {
                Some(watcher) => self.agent.watcher = Some(watcher),
                None => self.list(around),
            }
            return true;
        }
        let Some(watcher) = &mut self.agent.watcher else { return false };
        match watcher.try_next() {
            Ok(None) => false,
            Ok(Some(event)) => {
                self.agent.resume = event.revision;
                let Some((_, key)) = key::parse(&Registry::built_in(), &event.key) else { return true };
                let Ok(value) = serde_json::from_slice::<Value>(&event.value) else { return true };
                if object::text(&value, &["spec", "nodeName"]) != self.name {
                    return true;
                }
                if event.deleted {
                    self.agent.known.remove(&key);
                    let uid = object::uid(&value).to_owned();
                    self.tell_gone(|entry| entry.agenda.view.uid() == uid, now);
                } else {
                    self.agent.known.insert(key, object::uid(&value).to_owned());
                    self.put(value, false, around);
                }
                true
            }
            Err(_) => {
                self.agent.watcher = None;
                self.agent.has_list = false;
                true
            }
        }
    }

    fn tell_gone(&mut self, which: impl Fn(&Entry) -> bool, now: Timestamp) {
        for entry in self.agent.entries.iter_mut().filter(|entry| which(entry)) {
            entry.apply(Fact::Gone, now);
        }
    }

    /// Lists this node's pods and watches from there, wherever that is. The first list of an agent may be a stale
    /// server's.
    fn list(&mut self, around: &mut Around<'_>) {
        let Some(up) = &around.server.up else { return };
        let newest = (up.api.store.revision(), around.past.last().map(|(_, pods)| pods.clone()).unwrap_or_default());
        let is_first = !self.agent.has_adopted;
        let stale = is_first && self.restarts > 0 && around.faults && around.seed.one_in(2);
        let index = around.seed.index(around.past.len().min(40));
        let (revision, chosen) = around.past.iter().rev().nth(index).filter(|_| stale).cloned().unwrap_or(newest);
        // One that trusts what it was given believes it to be of now.
        let revision = if around.bug == Some(Bug::TrustsStaleList) { up.api.store.revision() } else { revision };
        self.agent.watcher = up.api.store.watch(key::prefix(&kinds::POD, None), revision).ok();
        self.agent.resume = revision;
        self.agent.has_list = true;
        let mine: PodList =
            chosen.into_iter().filter(|(_, pod)| object::text(pod, &["spec", "nodeName"]) == self.name).collect();
        if is_first {
            self.adopt(mine, around);
        } else {
            let lacking: Vec<ObjectKey> =
                self.agent.known.keys().filter(|key| !mine.contains_key(*key)).cloned().collect();
            self.agent.known = mine.iter().map(|(key, pod)| (key.clone(), object::uid(pod).to_owned())).collect();
            for entry in self.agent.entries.iter_mut().filter(|entry| lacking.contains(&entry.key)) {
                entry.verify(around.now);
            }
            for pod in mine.into_values() {
                self.put((*pod).clone(), false, around);
            }
        }
    }

    /// What was left over comes first, so that it blocks newcomers of its name; each is asked for before it is acted
    /// on.
    fn adopt(&mut self, list: PodList, around: &mut Around<'_>) {
        self.agent.has_adopted = true;
        if around.bug == Some(Bug::EndsWhatItFinds) {
            let alive =
                self.machine.containers.values().flatten().filter(|container| container.fact.is_alive()).count();
            (0..alive).for_each(|pick| drop(self.machine.crash_one(pick, around.now)));
        }
        self.agent.known = list.iter().map(|(key, pod)| (key.clone(), object::uid(pod).to_owned())).collect();
        let listed: Vec<String> = list.values().map(|pod| object::uid(pod).to_owned()).collect();
        for (uid, pod) in self.machine.begun.clone() {
            if !listed.contains(&uid) {
                self.spawn(pod, true, around);
            }
        }
        let trusts = around.bug == Some(Bug::TrustsStaleList);
        for pod in list.into_values() {
            self.put((*pod).clone(), !trusts, around);
        }
    }

    fn put(&mut self, value: Value, held: bool, around: &mut Around<'_>) {
        let (uid, key) = (object::uid(&value).to_owned(), ObjectKey::of(&value));
        let Ok(pod) = serde_json::from_value::<Pod>(value) else { return };
        if let Some(entry) = self.agent.entries.iter_mut().find(|entry| entry.agenda.view.uid() == uid) {
            entry.agenda.release();
            entry.take_pod(pod, around.now);
            return;
        }
        // As the real node: a watch that goes on from an old list tells of older ones, too, so that others are asked
        // for.
        for entry in self.agent.entries.iter_mut().filter(|entry| !held && entry.key == key) {
            entry.verify(around.now);
        }
        self.spawn(pod, held, around);
    }

    fn spawn(&mut self, pod: Pod, held: bool, around: &mut Around<'_>) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let meta = &pod.metadata;
        let key = ObjectKey::new(meta.namespace.as_deref().unwrap_or(""), meta.name.as_deref().unwrap_or(""));
        let mut view = PodView::new(pod, vec!["192.0.2.10".to_owned()]);
        if self.machine.tombstoned.contains(&uid) && around.bug != Some(Bug::TrustsStaleList) {
            view.remembered = Remembered::Yes;
            view.tombstoned_since = Some(around.now);
        }
        if let Some(sandbox) = self.machine.sandboxes.get(&uid) {
            let fact = Sandbox::Ready { ip: Some(sandbox.ip.clone()), made_at: Some(sandbox.made_at) };
            view.apply(Fact::Sandbox(fact), around.now);
            if let Some(seconds) = sandbox.deadline {
                view.apply(Fact::Deadline(seconds), around.now);
            }
        }
        let agenda = Agenda::new(view, held);
        let mut entry = Entry { key, agenda, running: BTreeMap::new(), wake_at: None, dirty: true, ended: false };
        if held {
            entry.verify(around.now);
        }
        self.agent.entries.push(entry);
        self.learn_containers(&uid, around.now);
        self.set_predecessors();
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
