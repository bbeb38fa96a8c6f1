//! The server of the world: the real store on a disk that lies, the real pipeline, the real driver with its turns.
//! What production does in tasks is done here one after the other, in an order that the seed says: decisions are
//! prepared, committed, and heard of.
//!
//! It may die after any commit, and in the middle of one. Whoever asked for that commit gets no answer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use mainstay_api::{ObjectKey, Status};
use mainstay_logic::Snapshot;
use mainstay_server::Open;
use mainstay_server::api::{Allocated, Api, Batch, Cidr, Env, Outcome, Reply, Served, Settings, key};
use mainstay_server::backends::Slices;
use mainstay_server::bootstrap::{About, bootstrap};
use mainstay_server::driver::{self, Compiled, DISK_PAUSE, Done, Driver, Finish, Most, Seat, Work, compile};
use mainstay_server::dynamic::Hooks;
use mainstay_store::testing::{Fault, FaultyDisk};
use mainstay_store::{Event, Options, Revision, Source, StorageBackend as _, Store, WatchError, Watcher};

use crate::bugs::{self, Bug};
use crate::seed::Seed;

/// A commit waits for a slow disk for less than this, in milliseconds.
const SLOW_DISK: i64 = 3000;
/// Pods that are placed together, where they are placed in small rounds.
const ROUND: usize = 2;

/// What a running server consists of.
pub struct Up {
    /// The pipeline.
    pub api: Api,
    /// The controllers, with the watch that feeds them.
    pub seat: Seat<Wire>,
    /// What they have decided and is not committed yet.
    under_way: Vec<Flight>,
    /// What is committed, and they have not heard of.
    done: Vec<Done>,
    /// Their last turn came to nothing.
    is_idle: bool,
}

/// A decision on its way.
pub struct Flight {
    /// What is to be committed.
    pub work: Work,
    /// What the controllers saw.
    pub decided_on: Snapshot,
    /// Where it was prepared a while ago.
    prepared: Option<Compiled>,
    /// The disk does not come to it before this time.
    not_before: Timestamp,
}

/// The controllers' watch, on which things go wrong.
pub struct Wire {
    watcher: Watcher,
    seed: Seed,
    /// Whether they do.
    is_stormy: bool,
    bug: Option<Bug>,
    /// An event that comes twice.
    again: Option<Event>,
    /// How many came.
    told: u64,
}

impl driver::Wire for Wire {
    fn attach(&mut self, watcher: Watcher) {
        (self.watcher, self.again) = (watcher, None);
    }

    fn try_next(&mut self) -> Result<Option<Event>, WatchError> {
        let is_missed = |event: &Event| event.deleted && event.revision.0.is_multiple_of(5);
        let event = match self.again.take() {
            Some(event) => return Ok(Some(event)),
            None => loop {
                let event = self.watcher.try_next()?;
                if self.bug != Some(Bug::MissesDeletions) || !event.as_ref().is_some_and(is_missed) {
                    break event;
                }
            },
        };
        self.told += u64::from(event.is_some());
        self.again = event.clone().filter(|_| self.is_stormy && self.seed.one_in(30));
        Ok(event)
    }
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
    /// What is broken on purpose.
    pub bug: Option<Bug>,
    /// A request that was refused and left something: what it was (A9).
    pub left_behind: Option<String>,
    /// The revision of each key's last commit, by controller and key, that the controllers have heard of.
    own: BTreeMap<(&'static str, ObjectKey), Revision>,
    /// A decision on a view that lacked what was committed about the same key before: whose it was (S12).
    pub decided_blindly: Option<String>,
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
            bug: None,
            left_behind: None,
            own: BTreeMap::new(),
            decided_blindly: None,
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
            requests: Open::of(&store),
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
        let Some(seat) = self.sit_down(&api) else { return false };
        self.up = Some(Up { api, seat, under_way: Vec::new(), done: Vec::new(), is_idle: false });
        true
    }

    /// The controllers begin.
    fn sit_down(&mut self, api: &Api) -> Option<Seat<Wire>> {
        let (bug, seed) = (self.bug, self.seed.fork());
        let wire = |watcher| Wire { watcher, seed, is_stormy: false, bug, again: None, told: 0 };
        let driver = Driver::new(mainstay_logic::controllers::CONTROLLERS);
        // A round that is full while another is being committed: there are too few pods for those of production.
        let driver = if self.seed.one_in(2) { driver.deciding_together(ROUND) } else { driver };
        Seat::begin(api.clone(), driver, wire).ok()
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
        self.own.clear();
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
        if self.bug == Some(Bug::RefusesWhatItDid) && reply.is_ok() && self.commits % 37 == 36 {
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

    /// The controllers' turn: they hear of what is committed, take in what has happened, and decide; `spoil` is what a
    /// deliberate bug makes of that. Whether there was anything.
    pub fn turn(&mut self, is_stormy: bool, mut spoil: impl FnMut(&Snapshot, &mut Work)) -> bool {
        let now = self.now();
        let mut busy = self.hear(is_stormy, now);
        let Some(up) = &mut self.up else { return busy };
        // Later decisions are made while earlier ones are on their way, or they wait.
        if self.stalled_until > now || !(up.under_way.is_empty() || is_stormy && self.seed.one_in(2)) {
            return busy;
        }
        // A view may be old, and many decisions may be of one view.
        let most = Most {
            events: if is_stormy && self.seed.one_in(5) { 1 } else { usize::MAX },
            decisions: if is_stormy && self.seed.one_in(3) { self.seed.index(12) + 2 } else { 1 },
        };
        let told = up.seat.wire.told;
        up.seat.wire.is_stormy = is_stormy;
        // After a turn that gave nothing, production sleeps until an event, a commit's end or a timer makes a key due.
        while up.is_idle && !up.seat.driver.is_due(now) {
            match driver::Wire::try_next(&mut up.seat.wire) {
                Ok(Some(event)) => up.seat.driver.on_event(&event, now),
                Ok(None) => return busy || up.seat.wire.told != told,
                Err(_) => break,
            }
        }
        let works = up.seat.turn(now, most);
        busy |= up.seat.wire.told != told;
        up.is_idle = works.as_ref().is_some_and(Vec::is_empty);
        let Some(works) = works else {
            // As production's: whoever owns the controllers begins them anew, after a while.
            self.stalled_until = plus(now, DISK_PAUSE);
            let api = up.api.clone();
            if let (Some(seat), Some(up)) = (self.sit_down(&api), &mut self.up) {
                (up.seat, up.under_way, up.done) = (seat, Vec::new(), Vec::new());
            }
            return busy;
        };
        for mut work in works {
            let decided_on = up.seat.driver.snapshot().clone();
            let own = |key: &ObjectKey| self.own.get(&(work.controller, key.clone()));
            let is_blind = |key: &ObjectKey| own(key).is_some_and(|own| own.0 > decided_on.revision);
            if let Some(part) = work.parts.iter().find(|part| is_blind(&part.key)) {
                self.decided_blindly = Some(format!("{} about {}", work.controller, part.key));
            }
            spoil(&decided_on, &mut work);
            let waits = if is_stormy && self.seed.one_in(8) { self.seed.between(10, SLOW_DISK) } else { 0 };
            let not_before = plus(now, Duration::from_millis(waits as u64));
            up.under_way.push(Flight { work, decided_on, prepared: None, not_before });
        }
        busy
    }

    /// The controllers hear of what is committed, in a storm a while later; whether there is anything.
    fn hear(&mut self, is_stormy: bool, now: Timestamp) -> bool {
        let Some(up) = &mut self.up else { return false };
        let waits = !up.done.is_empty();
        let (kept, heard): (Vec<Done>, Vec<Done>) =
            std::mem::take(&mut up.done).into_iter().partition(|_| is_stormy && self.seed.one_in(4));
        up.done = kept;
        for mut done in heard {
            if let Finish::Committed(revision) | Finish::Partly(revision, _) | Finish::Failed(Some(revision), _) =
                done.finish
            {
                let keys = done.work.parts.iter().map(|part| (done.work.controller, part.key.clone()));
                self.own.extend(keys.map(|key| (key, revision)));
            }
            if self.bug == Some(Bug::ForgetsOwnWrites) {
                bugs::forget_own_writes(&mut done.finish);
            }
            if up.seat.finished(done, now) {
                self.stalled_until = plus(now, DISK_PAUSE);
            }
        }
        waits
    }

    /// A decision that is to be committed now: the oldest, or in a storm any. It may be prepared and left lying.
    pub fn take_flight(&mut self, is_stormy: bool) -> Option<Flight> {
        let now = self.now();
        let up = self.up.as_mut()?;
        let due: Vec<usize> =
            (0..).zip(&up.under_way).filter(|(_, flight)| flight.not_before <= now).map(|(index, _)| index).collect();
        let index = *due.get(if is_stormy { self.seed.index(due.len()) } else { 0 })?;
        let flight = up.under_way.get_mut(index)?;
        if flight.prepared.is_none() && is_stormy && self.seed.one_in(6) {
            flight.prepared = Some(compile(&up.api, &flight.work));
            return None;
        }
        Some(up.under_way.remove(index))
    }

    /// When the first of the decisions that are on their way may be committed.
    pub fn next_flight(&self) -> Option<Timestamp> {
        self.up.as_ref()?.under_way.iter().map(|flight| flight.not_before).min()
    }

    /// Commits a decision. The server may die of it, and then nobody hears of that.
    pub fn commit(&mut self, mut flight: Flight, mode: Mode) {
        let Some(up) = &self.up else { return };
        if self.bug == Some(Bug::ForgetsPreconditions) {
            (flight.prepared, flight.work) = (None, bugs::forget_preconditions(&up.api, flight.work));
        }
        let done = match mode {
            Mode::Whole => {
                let compiled = flight.prepared.unwrap_or_else(|| compile(&up.api, &flight.work));
                let committed = up.api.store.commit_blocking(compiled.txn.clone());
                let is_dead = self.committed();
                let mut done = (!is_dead).then(|| Done::of(flight.work, &compiled, committed));
                if let (Some(work), Some(up)) = (done.as_mut().and_then(Done::split), &mut self.up) {
                    let (decided_on, not_before) = (flight.decided_on, flight.not_before);
                    up.under_way.insert(0, Flight { work, decided_on, prepared: None, not_before });
                }
                done
            }
            Mode::OneByOne => self.commit_one_by_one(flight.work),
        };
        if let Some(up) = &mut self.up {
            up.done.extend(done);
        }
    }

    /// As etcd would: a transaction for each write; the server may die between any two.
    fn commit_one_by_one(&mut self, mut work: Work) -> Option<Done> {
        let all: Vec<_> = work.parts.iter_mut().map(|part| std::mem::take(&mut part.decision)).collect();
        let mut last = None;
        for (index, decision) in all.into_iter().enumerate() {
            let count = decision.writes.len().max(1);
            // As in one transaction: what stands apart of a write that is refused is tried all the same.
            let mut over = BTreeSet::new();
            for at in 0..count {
                let group = decision.group(at);
                if over.contains(&group) {
                    continue;
                }
                let part = work.parts.get_mut(index)?;
                part.decision.apart = mainstay_logic::decision::Apart::default();
                part.decision.writes =
                    decision.writes.get(at..(at + 1).min(decision.writes.len())).unwrap_or_default().to_vec();
                part.decision.events = Vec::new();
                let up = self.up.as_ref()?;
                let compiled = compile(&up.api, &work);
                let committed = up.api.store.commit_blocking(compiled.txn.clone());
                last = committed.as_ref().ok().map(|done| done.last).or(last);
                if self.committed() {
                    return None;
                }
                let done = Done::of(work, &compiled, committed);
                let is_over = compiled.refused.is_some() && group > 0;
                if !is_over && !matches!(done.finish, Finish::Committed(_)) {
                    return Some(Done { finish: Finish::Failed(last, index), ..done });
                }
                over.extend(is_over.then_some(group));
                work = done.work;
            }
            let part = work.parts.get_mut(index)?;
            part.decision.writes = Vec::new();
            let told = decision.events.iter().enumerate();
            let told = told.filter(|(event, _)| !over.contains(&decision.event_group(*event)));
            part.decision.events = told.map(|(_, event)| event.clone()).collect();
            if !part.decision.events.is_empty() {
                let up = self.up.as_ref()?;
                let compiled = compile(&up.api, &work);
                let committed = up.api.store.commit_blocking(compiled.txn.clone());
                last = committed.as_ref().ok().map(|done| done.last).or(last);
                if self.committed() {
                    return None;
                }
                work = Done::of(work, &compiled, committed).work;
            }
            if !over.is_empty() {
                return Some(Done { work, finish: Finish::Failed(last, index), is_broken: false });
            }
            if let Some(part) = work.parts.get_mut(index) {
                part.decision = mainstay_logic::Decision::default();
            }
        }
        let revision = last.or_else(|| Some(self.up.as_ref()?.api.store.revision())).unwrap_or(Revision(0));
        Some(Done { work, finish: Finish::Committed(revision), is_broken: false })
    }
}

fn plus(now: Timestamp, time: Duration) -> Timestamp {
    now.saturating_add(time).unwrap_or(now)
}

/// The clock's time.
pub fn at(clock: &AtomicI64) -> Timestamp {
    Timestamp::from_microsecond(clock.load(Ordering::Relaxed)).unwrap_or(Timestamp::UNIX_EPOCH)
}
