//! The server of the world: the real store on a disk that lies, the real pipeline, the real driver.
//!
//! It may die after any commit, and in the middle of one. Whoever asked for that commit gets no answer.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use mainstay_api::Status;
use mainstay_server::api::{Allocated, Api, Batch, Cidr, Env, Outcome, Reply, Served, Settings, key};
use mainstay_server::backends::Slices;
use mainstay_server::bootstrap::{About, bootstrap};
use mainstay_server::driver::{Driver, Finish, Work, compile};
use mainstay_server::dynamic::Hooks;
use mainstay_store::testing::{Fault, FaultyDisk};
use mainstay_store::{CommitError, Options, Source, StorageBackend as _, Store, Watcher};

use crate::seed::Seed;

/// What a running server consists of.
pub struct Up {
    /// The pipeline.
    pub api: Api,
    /// The controllers.
    pub driver: Driver,
    /// What feeds the driver.
    pub watcher: Watcher,
}

/// The server's machine.
pub struct Server {
    disk: FaultyDisk,
    env: Arc<Env>,
    clock: Arc<AtomicI64>,
    seed: Seed,
    /// `None` while it is down.
    pub up: Option<Up>,
    /// When it starts again.
    pub up_at: Timestamp,
    /// It dies after so many more commits.
    pub dies_after: Option<u64>,
    /// Commits so far.
    pub commits: u64,
    /// The disk of an earlier time, for a world with that bug.
    pub old_disk: Option<FaultyDisk>,
    /// The controllers do not get their turn before this time.
    pub stalled_until: Timestamp,
    /// Some requests are answered with a refusal after they were carried out: a deliberate bug.
    pub refuses_what_it_did: bool,
    /// A request that was refused and left something: what it was (A9).
    pub left_behind: Option<String>,
}

/// How a decision is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As one transaction: the embedded store.
    Whole,
    /// Write by write: etcd. The server may die between any two.
    OneByOne,
}

impl Server {
    /// A machine with an empty disk, not started yet.
    pub fn new(clock: Arc<AtomicI64>, mut seed: Seed) -> Self {
        let random = Mutex::new(seed.fork());
        let time = clock.clone();
        let env = Env {
            now: Box::new(move || at(&time)),
            random: Box::new(move |bytes| {
                let mut random = random.lock().unwrap_or_else(PoisonError::into_inner);
                bytes.iter_mut().for_each(|byte| *byte = random.draw() as u8);
            }),
        };
        let now = at(&clock);
        Self {
            disk: FaultyDisk::new(),
            env: Arc::new(env),
            clock,
            seed,
            up: None,
            up_at: now,
            dies_after: None,
            commits: 0,
            old_disk: None,
            stalled_until: now,
            refuses_what_it_did: false,
            left_behind: None,
        }
    }

    fn now(&self) -> Timestamp {
        at(&self.clock)
    }

    /// Starts it; whether it came up.
    pub fn start(&mut self) -> bool {
        let options = Options { index: Some(key::PODS_BY_NODE), ..Options::inline() };
        let Ok(store) = Store::open(Source::backend(self.disk.clone()), options) else { return false };
        let cidr = |text| Cidr::parse(text).unwrap_or_else(|| unreachable!("a constant"));
        let (service_cidr, cluster_cidr) = (cidr("10.96.0.0/16"), cidr("10.244.0.0/16"));
        let settings = Settings { service_cidr, cluster_cidr, ca_pem: "CA".to_owned() };
        let api = Api {
            allocated: Allocated::of(&store),
            hooks: Hooks::of(&store),
            converters: Default::default(),
            slices: Slices::of(&store),
            served: Served::of(&store),
            store,
            env: self.env.clone(),
            settings: Arc::new(settings),
            term: None,
        };
        let advertise = std::net::SocketAddr::from(([192, 0, 2, 1], 6443));
        if api.write_now(false, |batch| bootstrap(batch, advertise, &About::default())).is_err() {
            return false;
        }
        let mut driver = Driver::new(mainstay_logic::controllers::CONTROLLERS);
        let Ok(watcher) = driver.load(&api.store, self.now()) else { return false };
        self.up = Some(Up { api, driver, watcher });
        true
    }

    /// Dies. With the power, what was not synced may be lost; else the file is as the process left it.
    pub fn die(&mut self, power: bool, until: Timestamp) {
        self.disk.cut_power();
        self.up = None;
        self.disk = match self.old_disk.take() {
            Some(old) => old,
            None if power => self.disk.reboot(self.seed.draw()),
            None => FaultyDisk::with(self.disk.bytes()),
        };
        self.dies_after = None;
        self.up_at = until;
    }

    /// The disk as it is now, for the bug of a restored old copy.
    pub fn copy_disk(&self) -> FaultyDisk {
        FaultyDisk::with(self.disk.bytes())
    }

    /// Lets a call to the disk that is `calls` ahead meet a fault.
    pub fn plan_disk_fault(&self, calls: u64, fault: Fault) {
        self.disk.fault_at(self.disk.calls() + calls, fault);
    }

    /// Whether a planned fault took the power away.
    pub fn has_lost_power(&self) -> bool {
        self.up.is_some() && self.disk.len().is_err()
    }

    /// Fills the disk, or frees it.
    pub fn set_full(&self, full: bool) {
        self.disk.set_full(full);
    }

    /// Notes that something was tried to be committed; whether the server dies of it.
    fn committed(&mut self) -> bool {
        self.commits += 1;
        let Some(left) = self.dies_after else { return false };
        self.dies_after = left.checked_sub(1);
        if left == 0 {
            let until = self.now().saturating_add(jiff::SignedDuration::from_millis(300)).unwrap_or(self.now());
            let power = self.seed.one_in(2);
            self.die(power, until);
        }
        left == 0
    }

    /// A request of a user's or a node's.
    pub fn write(&mut self, verb: impl Fn(&mut Batch<'_>) -> Result<Outcome, Status>) -> Result<Reply, Status> {
        let Some(up) = &self.up else { return Err(Status::unavailable("the server is down")) };
        let before = up.api.store.revision();
        let mut reply = up.api.write_now(false, verb);
        if self.refuses_what_it_did && reply.is_ok() && self.commits % 37 == 36 {
            reply = Err(Status::new(409, "Conflict", "the object has been modified"));
        }
        // What a server that failed by itself (5xx) has done is in doubt; what it refused, it has not done.
        if let Some(refused) = reply.as_ref().err().filter(|status| status.code < 500)
            && up.api.store.revision() != before
        {
            self.left_behind = Some(refused.message.clone());
        }
        let changed = up.api.store.revision() != before || reply.as_ref().is_err_and(|status| status.code >= 500);
        if changed && self.committed() {
            return Err(Status::unavailable("the server died before it answered"));
        }
        reply
    }

    /// Commits decisions and tells the driver. `false` where the server died of it.
    pub fn commit(&mut self, work: Work, mode: Mode) -> bool {
        let now = self.now();
        if mode == Mode::OneByOne {
            return self.commit_one_by_one(work);
        }
        let Some(up) = &mut self.up else { return false };
        let compiled = compile(&up.api, &work);
        let result = up.api.store.commit_blocking(compiled.txn.clone());
        let finish = match &result {
            Ok(done) if compiled.refused.is_some() => Finish::Failed(Some(done.last), compiled.parts),
            Ok(done) if compiled.is_cut => Finish::Partly(done.last, compiled.parts),
            Ok(done) => Finish::Committed(done.last),
            Err(CommitError::Expectation { .. }) => Finish::Failed(None, 0),
            Err(CommitError::Invalid(_)) => Finish::TooLarge(compiled.writes),
            Err(_) => {
                self.stalled_until = plus_second(now);
                Finish::Failed(None, 0)
            }
        };
        if self.committed() {
            return false;
        }
        let Some(up) = &mut self.up else { return false };
        up.driver.finished(work, &finish, now);
        true
    }

    /// As etcd would: a transaction for each write; the server may die between any two.
    fn commit_one_by_one(&mut self, mut work: Work) -> bool {
        let now = self.now();
        let all: Vec<_> = work.parts.iter_mut().map(|part| std::mem::take(&mut part.decision)).collect();
        let mut last = None;
        for (index, decision) in all.into_iter().enumerate() {
            let count = decision.writes.len().max(1);
            for at in 0..count {
                let Some(part) = work.parts.get_mut(index) else { break };
                part.decision.writes =
                    decision.writes.get(at..(at + 1).min(decision.writes.len())).unwrap_or_default().to_vec();
                part.decision.events = if at + 1 == count { decision.events.clone() } else { Vec::new() };
                let Some(up) = &mut self.up else { return false };
                let compiled = compile(&up.api, &work);
                let result = up.api.store.commit_blocking(compiled.txn.clone());
                let failed = result.is_err() || compiled.refused.is_some();
                if matches!(&result, Err(error) if !matches!(error, CommitError::Expectation { .. })) {
                    self.stalled_until = plus_second(now);
                }
                last = result.ok().map(|done| done.last).or(last);
                if self.committed() {
                    return false;
                }
                if failed {
                    let Some(up) = &mut self.up else { return false };
                    up.driver.finished(work, &Finish::Failed(last, index), now);
                    return true;
                }
            }
            if let Some(part) = work.parts.get_mut(index) {
                part.decision = mainstay_logic::Decision::default();
            }
        }
        let Some(up) = &mut self.up else { return false };
        let revision = last.unwrap_or_else(|| up.api.store.revision());
        up.driver.finished(work, &Finish::Committed(revision), now);
        true
    }
}

fn plus_second(now: Timestamp) -> Timestamp {
    now.saturating_add(jiff::SignedDuration::from_secs(1)).unwrap_or(now)
}

/// The clock's time.
pub fn at(clock: &AtomicI64) -> Timestamp {
    Timestamp::from_microsecond(clock.load(Ordering::Relaxed)).unwrap_or(Timestamp::UNIX_EPOCH)
}
