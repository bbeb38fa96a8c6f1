//! The closed loop: one pod name, an API with a user, a runtime that crashes containers, an agent that restarts with
//! stale views; from a seed. Safety (S1, S2, V7) is checked after every step; then the faults stop and the world must
//! come to rest with the right thing running.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use super::*;

/// SplitMix64: the whole world follows from one number.
struct Seed(u64);

impl Seed {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.next().is_multiple_of(n)
    }
}

fn exited(code: i32, started: Timestamp, finished: Timestamp) -> Life {
    Life::Exited { code, signal: None, oom: false, fenced: false, started, finished, message: None }
}

#[derive(Default)]
struct Machine {
    /// By uid: the sandbox's start, the containers.
    sandboxes: BTreeMap<String, Timestamp>,
    containers: BTreeMap<String, Vec<ContainerFact>>,
    mounted: BTreeSet<String>,
    /// Pods that were begun, and pods that were told to stop.
    begun: BTreeMap<String, Pod>,
    tombstoned: BTreeSet<String>,
}

struct Agent {
    view: PodView,
    /// Not yet asked the API about since the restart.
    held: bool,
}

struct World {
    seed: Seed,
    now: Timestamp,
    api: Option<Pod>,
    /// Every state that the API ever had; what a stale list may hold.
    past: Vec<Option<Pod>>,
    machine: Machine,
    /// In order of arrival.
    agents: Vec<Agent>,
    uids: u64,
    starts: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            seed: Seed(seed),
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            api: None,
            past: vec![None],
            machine: Machine::default(),
            agents: Vec::new(),
            uids: 0,
            starts: 0,
        }
    }

    fn set_api(&mut self, pod: Option<Pod>) {
        self.api = pod;
        self.past.push(self.api.clone());
    }

    fn user(&mut self) {
        match self.api.clone() {
            None => {
                self.uids += 1;
                // Of every second pod or so a failure of `a` takes all of them back to the beginning.
                let all = json!([{ "action": "RestartAllContainers",
                    "exitCodes": { "operator": "In", "values": [1] } }]);
                let rules = if self.seed.0.is_multiple_of(2) { all } else { json!([]) };
                let pod = json!({
                    "metadata": { "name": "web-0", "namespace": "default", "uid": format!("u{}", self.uids) },
                    "spec": {
                        "terminationGracePeriodSeconds": 5,
                        "initContainers": [{ "name": "init", "image": "i:1" }],
                        "containers": [{ "name": "a", "image": "i:1", "readinessProbe": { "exec": {},
                            "periodSeconds": 1 }, "restartPolicy": "Always", "restartPolicyRules": rules },
                            { "name": "b", "image": "i:1", "livenessProbe": { "exec": {}, "periodSeconds": 1,
                                "failureThreshold": 1 } }],
                        "volumes": [{ "name": "v", "emptyDir": {} }],
                    },
                });
                self.set_api(Some(serde_json::from_value(pod).unwrap()));
            }
            Some(_) if self.seed.one_in(3) => self.set_api(None),
            Some(mut pod) => {
                if pod.metadata.deletion_timestamp.is_none() {
                    pod.metadata.deletion_timestamp = Some(self.now.into());
                    pod.metadata.deletion_grace_period_seconds = Some(5);
                    self.set_api(Some(pod));
                }
            }
        }
    }

    /// The watch tells the newest state.
    fn notify(&mut self) {
        let pod = self.api.clone();
        let uid = pod.as_ref().and_then(|pod| pod.metadata.uid.clone());
        for agent in &mut self.agents {
            if Some(agent.view.uid()) != uid.as_deref() {
                agent.view.apply(Fact::Gone, self.now);
            }
        }
        if let Some(pod) = pod {
            self.put(pod, false);
        }
    }

    fn put(&mut self, pod: Pod, held: bool) {
        let uid = pod.metadata.uid.clone().unwrap();
        if let Some(agent) = self.agents.iter_mut().find(|agent| agent.view.uid() == uid) {
            agent.view.apply(Fact::Pod(Box::new(pod)), self.now);
            return;
        }
        let mut view = PodView::new(pod, vec![]);
        if self.machine.tombstoned.contains(&uid) {
            view.remembered = Remembered::Yes;
            view.tombstoned_since = Some(self.now);
        }
        if let Some(made_at) = self.machine.sandboxes.get(&uid) {
            view.apply(Fact::Sandbox(Sandbox::Ready { ip: None, made_at: Some(*made_at) }), self.now);
        }
        view.apply(Fact::Containers(self.machine.containers.get(&uid).cloned().unwrap_or_default()), self.now);
        self.agents.push(Agent { view, held });
    }

    /// The agent dies and comes back with whatever list it is given.
    fn restart(&mut self) {
        self.agents.clear();
        for pod in self.machine.begun.clone().into_values() {
            self.put(pod, true);
        }
        let index = self.past.len() - 1 - (self.seed.next() % 4).min(self.past.len() as u64 - 1) as usize;
        if let Some(pod) = self.past[index].clone() {
            self.put(pod, true);
        }
    }

    fn crash_a_container(&mut self) {
        let now = self.now;
        let alive: Vec<&mut ContainerFact> = self
            .machine
            .containers
            .values_mut()
            .flatten()
            .filter(|fact| matches!(fact.life, Life::Running { .. }))
            .collect();
        if alive.is_empty() {
            return;
        }
        let victim = self.seed.next() as usize % alive.len();
        let code = i32::from(!self.seed.one_in(3));
        for (index, fact) in alive.into_iter().enumerate() {
            if let (true, Life::Running { since }) = (index == victim, fact.life.clone()) {
                fact.life = exited(code, since, now);
            }
        }
        self.tell_containers();
    }

    /// The init container ends by itself.
    fn end_init(&mut self) {
        let now = self.now;
        for fact in self.machine.containers.values_mut().flatten().filter(|fact| fact.name == "init") {
            if let Life::Running { since } = fact.life {
                fact.life = exited(0, since, now);
            }
        }
        self.tell_containers();
    }

    fn tell_containers(&mut self) {
        for agent in &mut self.agents {
            let facts = self.machine.containers.get(agent.view.uid()).cloned().unwrap_or_default();
            agent.view.apply(Fact::Containers(facts), self.now);
        }
    }

    /// One agent does one thing. `false` where there was nothing to do.
    fn act(&mut self, faults: bool) -> bool {
        if self.agents.is_empty() {
            return false;
        }
        let start = self.seed.next() as usize % self.agents.len();
        for offset in 0..self.agents.len() {
            let index = (start + offset) % self.agents.len();
            if self.act_as(index, faults) {
                return true;
            }
        }
        false
    }

    fn act_as(&mut self, index: usize, faults: bool) -> bool {
        let predecessor = self.agents[..index].first().map(|agent| agent.view.uid().to_owned());
        let agent = &mut self.agents[index];
        agent.view.predecessor = predecessor;
        let uid = agent.view.uid().to_owned();
        if agent.held {
            agent.held = false;
            let fact = match self.api.clone().filter(|pod| pod.metadata.uid.as_deref() == Some(&uid)) {
                Some(pod) => Fact::Pod(Box::new(pod)),
                None => Fact::Gone,
            };
            agent.view.apply(fact, self.now);
            return true;
        }
        let decision = decide(&agent.view, self.now);
        if let Some(pod) = self.api.as_mut().filter(|pod| pod.metadata.uid.as_deref() == Some(&uid)) {
            pod.status = Some(decision.status.clone());
            agent.view.pod.status = Some(decision.status);
        }
        if decision.actions.is_empty() {
            return false;
        }
        let action = decision.actions[self.seed.next() as usize % decision.actions.len()].clone();
        self.execute(index, &uid, action, faults);
        true
    }

    #[expect(clippy::too_many_lines, reason = "an arm for each action")]
    fn execute(&mut self, index: usize, uid: &str, action: Action, faults: bool) {
        let now = self.now;
        let fails = faults && self.seed.one_in(6);
        let fact = match action {
            Action::Remember => {
                self.machine.tombstoned.insert(uid.to_owned());
                Fact::Remembered(true)
            }
            Action::EnsureVolume { name } if fails => Fact::Volume { name, result: Err("no".into()) },
            Action::EnsureVolume { name } => {
                self.begin(index, uid);
                self.machine.mounted.insert(uid.to_owned());
                Fact::Volume { name, result: Ok(None) }
            }
            Action::EnsureSandbox if fails => Fact::SandboxFailed("no".into()),
            Action::EnsureSandbox => {
                self.begin(index, uid);
                let made_at = *self.machine.sandboxes.entry(uid.to_owned()).or_insert(now);
                Fact::Sandbox(Sandbox::Ready { ip: None, made_at: Some(made_at) })
            }
            Action::EnsureImage { container, image, .. } => {
                let result =
                    if fails { Err(("ErrImagePull", "no".to_owned())) } else { Ok(("i".to_owned(), String::new())) };
                Fact::Image { container, image, result }
            }
            Action::StartContainer { container, .. } if fails => {
                Fact::StartFailed { container, reason: "RunContainerError", message: "no".into() }
            }
            Action::StartContainer { container, attempt, .. } => {
                assert!(!self.machine.tombstoned.contains(uid), "S1: {uid} was told to stop and is started again");
                assert!(self.machine.sandboxes.contains_key(uid) && self.machine.mounted.contains(uid));
                self.starts += 1;
                let all = self.machine.containers.entry(uid.to_owned()).or_default();
                assert!(!all.iter().any(|fact| fact.name == container && fact.is_alive()), "{container} runs already");
                all.push(ContainerFact {
                    name: container.clone(),
                    attempt,
                    image: "i:1".into(),
                    image_id: "i".into(),
                    sandbox_made_at: None,
                    user: None,
                    life: Life::Running { since: now },
                });
                self.tell_containers();
                Fact::Started { container, attempt }
            }
            Action::StopContainer { container, attempt, .. } => {
                for fact in self.machine.containers.get_mut(uid).into_iter().flatten() {
                    if let (true, Life::Running { since }) =
                        (fact.name == container && fact.attempt == attempt, fact.life.clone())
                    {
                        fact.life = exited(143, since, now);
                    }
                }
                self.tell_containers();
                return;
            }
            Action::RemoveContainer { container, attempt } => {
                if let Some(all) = self.machine.containers.get_mut(uid) {
                    assert!(
                        !all.iter().any(|fact| fact.name == container && fact.attempt == attempt && fact.is_alive())
                    );
                    all.retain(|fact| fact.name != container || fact.attempt != attempt);
                }
                self.tell_containers();
                return;
            }
            Action::RunProbe { container, attempt, kind } => {
                let outcome = if fails { ProbeOutcome::Failure("no".into()) } else { ProbeOutcome::Success };
                Fact::Probe { container, attempt, kind, began: now, outcome }
            }
            Action::ResizeContainer { .. } => return,
            Action::PostStart { container, attempt } => Fact::PostStart { container, attempt, result: Ok(()) },
            Action::RemoveSandbox => {
                assert!(!self.alive(uid), "a sandbox is removed under running containers");
                self.machine.sandboxes.remove(uid);
                Fact::Sandbox(Sandbox::Absent)
            }
            Action::Unmount => {
                assert!(!self.alive(uid), "V8: unmounted under running containers");
                self.machine.mounted.remove(uid);
                Fact::Unmounted
            }
            Action::ConfirmDeletion => {
                assert!(
                    !self.alive(uid) && !self.machine.mounted.contains(uid),
                    "S2: {uid} is confirmed deleted too early"
                );
                if self.api.as_ref().is_some_and(|pod| pod.metadata.uid.as_deref() == Some(uid)) {
                    self.set_api(None);
                }
                return self.notify();
            }
            Action::Forget => {
                assert!(
                    !self.alive(uid)
                        && !self.machine.sandboxes.contains_key(uid)
                        && !self.machine.mounted.contains(uid)
                );
                self.machine.begun.remove(uid);
                self.machine.tombstoned.remove(uid);
                self.agents.remove(index);
                return;
            }
        };
        self.agents[index].view.apply(fact, now);
    }

    fn begin(&mut self, index: usize, uid: &str) {
        let pod = self.agents[index].view.pod.clone();
        self.machine.begun.entry(uid.to_owned()).or_insert(pod);
    }

    fn alive(&self, uid: &str) -> bool {
        self.machine.containers.get(uid).into_iter().flatten().any(ContainerFact::is_alive)
    }

    fn check_s1(&self) {
        let running: Vec<&String> = self.machine.containers.keys().filter(|uid| self.alive(uid)).collect();
        assert!(running.len() <= 1, "S1: {running:?} run at once");
    }

    fn step(&mut self) {
        match self.seed.next() % 20 {
            0 => self.user(),
            1 | 2 => self.notify(),
            3 => self.crash_a_container(),
            4 if self.seed.one_in(3) => self.restart(),
            5..=7 => self.now = self.now.checked_add(SignedDuration::from_millis(700)).unwrap(),
            8 => self.end_init(),
            _ => drop(self.act(true)),
        }
        self.check_s1();
    }

    /// No faults, no user; time passes where nothing else happens.
    fn settle(&mut self) {
        if self.api.is_none() {
            self.user();
        }
        for _ in 0..4000 {
            self.notify();
            self.end_init();
            if !self.act(false) {
                if self.is_settled() {
                    return;
                }
                self.now = self.now.checked_add(SignedDuration::from_secs(1)).unwrap();
            }
            self.check_s1();
            if self.api.is_none() {
                self.user();
            }
        }
        let views: Vec<_> = self.agents.iter().map(|agent| (agent.view.uid(), decide(&agent.view, self.now))).collect();
        panic!("does not settle: {views:#?}");
    }

    fn is_settled(&self) -> bool {
        let Some(pod) = &self.api else { return false };
        let ready = pod.status.as_ref().and_then(|status| status.conditions.as_ref()).is_some_and(|conditions| {
            conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
        });
        self.agents.len() == 1 && ready && self.machine.sandboxes.len() == 1
    }
}

#[test]
fn one_set_of_containers_per_name_and_a_healed_world_comes_to_rest_s1_s2_s12() {
    let mut starts = 0;
    for seed in 0..400 {
        let outcome = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            for _ in 0..300 {
                world.step();
            }
            world.settle();
            // V7: at rest, a restart of the agent starts and stops nothing.
            let (before, machine) = (world.starts, world.machine.containers.clone());
            world.restart();
            world.settle();
            assert_eq!(
                (world.starts, &world.machine.containers),
                (before, &machine),
                "V7: a restart touched what runs"
            );
            world.starts
        });
        starts += outcome.unwrap_or_else(|_| panic!("seed {seed}"));
    }
    assert!(starts > 400, "the world did something: {starts}");
}
