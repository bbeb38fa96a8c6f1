//! A machine: its containers, its mounts, its directories and what its agent's disk remembers. Agents come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use mainstay_api::ObjectKey;
use mainstay_logic::kubelet::{ContainerFact, Life};

// Supervisors stand beside all else: what they conclude is one file.
#[path = "../../runtime/src/fence/renewals.rs"]
mod renewals;

pub use renewals::Renewals;

/// A container that is, or was.
#[derive(Clone, Debug)]
pub struct Container {
    /// Its pod's name.
    pub key: ObjectKey,
    /// As the kubelet sees it.
    pub fact: ContainerFact,
    /// When it ends, and with which exit code: it was told to stop, or its image is one that crashes.
    pub ends: Option<(Timestamp, i32)>,
    /// When its readiness probe starts to succeed.
    pub ready_at: Timestamp,
    /// After how many seconds without a renewal its supervisor ends it, and when that is by the machine's clock.
    pub deadline: Option<(u32, Duration)>,
}

/// A sandbox.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// The pod's name.
    pub key: ObjectKey,
    /// When it was made.
    pub made_at: Timestamp,
    /// Its address.
    pub ip: String,
    /// After how many seconds without a renewal its containers end, where they do.
    pub deadline: Option<u32>,
}

/// A directory of a provisioned volume.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    /// Who first used it.
    pub claim_uid: String,
    /// How often a container that has it was started: what an application would have written.
    pub starts: u64,
}

/// What is mounted into a pod.
#[derive(Clone, Debug)]
pub struct Mount {
    /// The PersistentVolume; `""` for what is the pod's own.
    pub volume: String,
    /// Its claim's uid.
    pub claim_uid: String,
    /// The claim's access modes.
    pub modes: Vec<String>,
}

/// One machine. Its power may go; its disk stays.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// Whether it has power.
    pub is_on: bool,
    /// By pod uid.
    pub sandboxes: BTreeMap<String, Sandbox>,
    /// By pod uid.
    pub containers: BTreeMap<String, Vec<Container>>,
    /// By pod uid and volume name.
    pub mounts: BTreeMap<(String, String), Mount>,
    /// On disk, by the volume's name.
    pub directories: BTreeMap<String, Directory>,
    /// On disk: the pods that were begun.
    pub begun: BTreeMap<String, Pod>,
    /// On disk: the pods that were told to stop.
    pub tombstoned: BTreeSet<String>,
    /// How many containers were started.
    pub starts: u64,
    /// So many millionths its clock is too fast.
    pub drift: i64,
    /// In memory: what supervisors know of the renewals of the node's lease.
    pub renewals: Renewals,
    addresses: u32,
}

impl Machine {
    /// A machine with power and nothing on it.
    pub fn new() -> Self {
        Self { is_on: true, ..Self::default() }
    }

    /// Whether anything of a pod runs here.
    pub fn runs(&self, uid: &str) -> bool {
        self.is_on && self.containers.get(uid).into_iter().flatten().any(|container| container.fact.is_alive())
    }

    /// The uids of pods of which a container runs, with their names; whether they still have a sandbox says nothing.
    pub fn running(&self) -> impl Iterator<Item = (&ObjectKey, &str)> {
        let containers = self.containers.iter().filter(|_| self.is_on);
        containers.filter_map(|(uid, all)| {
            let alive = all.iter().find(|container| container.fact.is_alive())?;
            Some((&alive.key, uid.as_str()))
        })
    }

    /// A container of which two attempts run at once: its pod's name and its own.
    pub fn running_twice(&self) -> Option<(&ObjectKey, &str)> {
        let alive = |container: &&Container| container.fact.is_alive();
        self.containers.values().filter(|_| self.is_on).find_map(|all| {
            let twice = |one: &&Container| {
                all.iter().filter(alive).filter(|other| other.fact.name == one.fact.name).count() > 1
            };
            all.iter().filter(alive).find(twice).map(|container| (&container.key, container.fact.name.as_str()))
        })
    }

    /// An address that no pod here had before.
    pub fn next_ip(&mut self, node: usize) -> String {
        self.addresses += 1;
        format!("10.244.{node}.{}", self.addresses)
    }

    /// The machine's own clock, that nobody sets.
    pub fn boottime(&self, now: Timestamp) -> Duration {
        let passed = now.duration_since(crate::world::start()).as_nanos();
        let shown = passed + passed * i128::from(self.drift) / 1_000_000;
        Duration::from_nanos(u64::try_from(shown).unwrap_or(0))
    }

    /// When that clock shows it, or a moment later.
    fn when(&self, shown: Duration) -> Timestamp {
        let shown = i128::try_from(shown.as_nanos()).unwrap_or(i128::MAX / 1_000_000);
        let passed = shown * 1_000_000 / i128::from(1_000_000 + self.drift);
        let micros = i64::try_from(passed / 1000).unwrap_or(i64::MAX).saturating_add(2);
        crate::world::start().saturating_add(SignedDuration::from_micros(micros)).unwrap_or(Timestamp::MAX)
    }

    /// The supervisors whose deadlines have come look at the renewals, and end their containers where it was not moved.
    fn fence(&mut self, now: Timestamp) -> BTreeSet<String> {
        let mut changed = BTreeSet::new();
        let (shown, renewals) = (self.boottime(now), self.renewals);
        for (uid, containers) in &mut self.containers {
            for container in containers.iter_mut().filter(|container| container.fact.is_alive()) {
                let Some((seconds, at)) = container.deadline.filter(|(_, at)| *at <= shown) else { continue };
                match renewals.moved(at, seconds, shown) {
                    Some(later) => container.deadline = Some((seconds, later)),
                    None => {
                        end(container, 137, true, now);
                        changed.insert(uid.clone());
                    }
                }
            }
        }
        changed
    }

    /// Ends what is due. Gives the uids of pods of which something ended.
    pub fn tick(&mut self, now: Timestamp) -> BTreeSet<String> {
        let mut changed = if self.is_on { self.fence(now) } else { BTreeSet::new() };
        for (uid, containers) in &mut self.containers {
            for container in containers {
                if let (Life::Running { .. }, Some((at, code))) = (&container.fact.life, container.ends)
                    && at <= now
                {
                    end(container, code, false, at);
                    changed.insert(uid.clone());
                }
            }
        }
        changed
    }

    /// When the next container ends.
    pub fn next_end(&self) -> Option<Timestamp> {
        let alive = self.containers.values().flatten().filter(|container| container.fact.is_alive());
        let deadline = |container: &Container| container.deadline.map(|(_, at)| self.when(at));
        alive.flat_map(|container| [container.ends.map(|(at, _)| at), deadline(container)]).flatten().min()
    }

    /// The power goes, or comes back: nothing runs, nothing is mounted.
    pub fn lose_power(&mut self, now: Timestamp) {
        for container in self.containers.values_mut().flatten() {
            if container.fact.is_alive() {
                end(container, 137, false, now);
            }
        }
        self.renewals = Renewals::default();
        self.sandboxes.clear();
        self.mounts.clear();
    }

    /// One of what runs crashes, chosen by `pick`.
    pub fn crash_one(&mut self, pick: usize, now: Timestamp) -> Option<String> {
        let mut alive: Vec<_> = self
            .containers
            .iter_mut()
            .flat_map(|(uid, all)| all.iter_mut().map(move |container| (uid, container)))
            .filter(|(_, container)| container.fact.is_alive())
            .collect();
        let index = pick.checked_rem(alive.len())?;
        let (uid, container) = alive.get_mut(index)?;
        container.ends = Some((now, 1));
        Some((*uid).clone())
    }

    /// All containers that are alive end.
    pub fn crash_all(&mut self, now: Timestamp) {
        for container in self.containers.values_mut().flatten().filter(|container| container.fact.is_alive()) {
            container.ends = Some((now, 1));
        }
    }
}

fn end(container: &mut Container, code: i32, fenced: bool, at: Timestamp) {
    if let Life::Running { since } = container.fact.life {
        container.fact.life = Life::Exited {
            code,
            signal: None,
            oom: false,
            fenced,
            started: since,
            finished: at.max(since),
            message: None,
        };
    }
}
