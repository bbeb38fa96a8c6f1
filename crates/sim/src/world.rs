//! The world: one thread, one seed, one clock. Everybody gets a turn in an order that the seed says; when nobody has
//! anything to do, time passes. After every step all checkers look at the true state.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use jiff::{SignedDuration, Timestamp};
use mainstay_api::{ObjectKey, kinds};
use mainstay_logic::Snapshot;
use mainstay_logic::kubelet::hold::{HELD_BY, Holder};
use mainstay_logic::nodes::LEASES;
use mainstay_logic::volume::annotation;
use mainstay_server::api::{self, DeleteOptions};

use crate::bugs::{self, Bug};
use crate::checkers::{Actor, Checkers, Seen, Violation, rest};
use crate::clients::Clients;
use crate::monkeys::{Deed, Fault, Script, forget_node};
use crate::node::{Around, Node, plus};
use crate::observer::Observer;
use crate::seed::Seed;
use crate::server::{Mode, Server, at};
use crate::trace::Trace;

/// A world that takes more steps than this goes round in circles.
const MAX_STEPS: u64 = 60_000;
/// How long, in virtual seconds, a healed world may take to come to rest: longer than all back-offs and tolerations.
const REST_WITHIN: i64 = 1500;
/// How long nothing must change for it to be at rest, in virtual seconds.
const REST: i64 = 45;

/// What sort of world it is.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many nodes there are.
    pub nodes: usize,
    /// One fault in so many steps; none without.
    pub one_fault_in: Option<u64>,
    /// A fault that comes as often as all others together.
    pub favourite: Option<Fault>,
    /// How long the storm is, in virtual seconds.
    pub storm: i64,
    /// How decisions are committed.
    pub mode: Mode,
    /// Nodes fall silent, one after the other and for long, their clocks run apart, and requests take their time (S13).
    pub is_silent: bool,
    /// There is one more machine, which takes the first one's name: by joining, or with a copy of its folder.
    pub twin: Option<Twin>,
    /// What is broken on purpose.
    pub bug: Option<Bug>,
}

/// How a machine comes to another one's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Twin {
    /// A user deletes the Node, and the machine joins.
    Joins,
    /// It has a copy of the other's data folder.
    IsCopied,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: 3,
            one_fault_in: Some(60),
            favourite: None,
            storm: 120,
            mode: Mode::Whole,
            is_silent: false,
            twin: None,
            bug: None,
        }
    }
}

impl Options {
    /// A storm like all others. Every other one commits its decisions write by write, as etcd does. In some of them
    /// there are two nodes, so that pods often move to the other one, one agent restarts more often than everything
    /// else goes wrong, and users are restless (S1).
    pub fn stormy(seed: u64, bug: Option<Bug>) -> Self {
        let mode = if seed.is_multiple_of(2) { Mode::Whole } else { Mode::OneByOne };
        match seed % 4 {
            1 => Self {
                nodes: 2,
                one_fault_in: Some(30),
                favourite: Some(Fault::AgentRestarts((seed / 4 % 2) as usize)),
                mode,
                bug,
                ..Self::default()
            },
            _ => Self { one_fault_in: Some(60), mode, bug, ..Self::default() },
        }
    }

    /// A world whose nodes fall silent, for longer than their pods tolerate it.
    pub fn silent(seed: u64, bug: Option<Bug>) -> Self {
        let mode = if seed.is_multiple_of(2) { Mode::Whole } else { Mode::OneByOne };
        Self { nodes: 3, one_fault_in: Some(80), storm: 400, mode, is_silent: true, bug, ..Self::default() }
    }
}

impl Options {
    /// A world in which one node is now this machine, now that one.
    pub fn twins(seed: u64, bug: Option<Bug>) -> Self {
        let twin = Some(if seed.is_multiple_of(2) { Twin::Joins } else { Twin::IsCopied });
        let mode = if seed.is_multiple_of(4) { Mode::Whole } else { Mode::OneByOne };
        Self { nodes: 2, one_fault_in: Some(100), storm: 200, mode, twin, bug, ..Self::default() }
    }
}

/// How often each object was made and taken away, by kind and name.
pub type Counts = BTreeMap<(String, ObjectKey), (u32, u32)>;

/// What became of a world.
#[derive(Clone, Debug)]
pub struct Report {
    /// The promise that was broken, if one was.
    pub violation: Option<Violation>,
    /// What happened.
    pub trace: Trace,
    /// The end state, without what depends on chance.
    pub end: Vec<String>,
    /// How often each object was made and taken away.
    pub counts: Counts,
    /// How many commits there were.
    pub commits: u64,
    /// How many containers were started.
    pub starts: u64,
    /// How many names were given free because their nodes were silent.
    pub released: usize,
    /// How many agents found that another machine is their node.
    pub replaced: u64,
}

/// The world.
pub struct World {
    clock: Arc<AtomicI64>,
    seed: Seed,
    /// What users do is drawn apart, so that it is the same whatever goes wrong.
    script: Script,
    next_deed: usize,
    options: Options,
    /// The server's machine.
    pub server: Server,
    /// All nodes.
    pub nodes: Vec<Node>,
    power_back: BTreeMap<usize, Timestamp>,
    lost: VecDeque<usize>,
    /// Who takes over from whom.
    joins: Option<(usize, usize)>,
    disk_free_at: Option<Timestamp>,
    observer: Observer,
    checkers: Checkers,
    clients: Clients,
    counts: Counts,
    trace: Trace,
    last_actor: (Actor, Option<Snapshot>),
    last_change: Timestamp,
    is_stormy: bool,
    steps: u64,
}

impl World {
    /// A world with a script of its own.
    pub fn new(number: u64, options: Options) -> Self {
        let mut seed = Seed::new(number);
        let (length, nodes) = (SignedDuration::from_secs(options.storm), options.nodes as u64);
        let script = Script::random(&mut seed.fork(), start(), length, nodes, options.favourite.is_some());
        Self::with_script(number, options, script)
    }

    /// A world whose users do this.
    pub fn with_script(number: u64, options: Options, script: Script) -> Self {
        let mut seed = Seed::new(number);
        let clock = Arc::new(AtomicI64::new(start().as_microsecond()));
        let mut server = Server::new(clock.clone(), seed.fork());
        server.bug = options.bug;
        Self {
            clock,
            seed,
            script,
            next_deed: 0,
            server,
            nodes: nodes(&options),
            power_back: BTreeMap::new(),
            lost: VecDeque::new(),
            joins: None,
            disk_free_at: None,
            observer: Observer::default(),
            checkers: Checkers::new(options.bug),
            clients: Clients::new(number, options.bug),
            counts: Counts::new(),
            trace: Trace::default(),
            last_actor: (Actor::Server, None),
            last_change: start(),
            is_stormy: options.one_fault_in.is_some(),
            steps: 0,
            options,
        }
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        at(&self.clock)
    }

    /// The store as it truly is.
    pub fn snapshot(&self) -> &Snapshot {
        &self.observer.snapshot
    }

    fn set_now(&self, now: Timestamp) {
        self.clock.store(now.as_microsecond(), Ordering::Relaxed);
    }

    fn note(&mut self, who: &str, what: &str) {
        let now = self.now();
        self.trace.note(now, who, what);
    }

    /// A storm; then all is healed, and the world must come to rest (S7, S9, S12), and stay there when server and
    /// agents are started again (S11, V7).
    pub fn run(mut self) -> Report {
        let violation = self.live().err();
        if let Some(violation) = &violation {
            let text = format!("{}: {}", violation.invariant, violation.message);
            self.note("BROKEN", &text);
        }
        Report {
            violation,
            end: rest::end_state(&self.observer.snapshot),
            trace: self.trace,
            counts: self.counts,
            commits: self.server.commits,
            starts: self.nodes.iter().map(|node| node.machine.starts).sum(),
            released: self.checkers.released(),
            replaced: self.nodes.iter().map(|node| node.given_up).sum(),
        }
    }

    fn live(&mut self) -> Result<(), Violation> {
        let end = plus(start(), self.options.storm * 1000);
        while self.now() < end {
            self.step()?;
        }
        self.heal();
        self.come_to_rest()?;
        let starts = |world: &Self| world.nodes.iter().map(|node| node.machine.starts).sum::<u64>();
        let uids =
            |world: &Self| world.snapshot().pods.iter().map(|(_, pod)| pod.metadata.uid.clone()).collect::<Vec<_>>();
        let before = (starts(self), uids(self));
        self.note("world", "server and agents are started again");
        let now = self.now();
        self.server.die(false, now);
        self.nodes.iter_mut().for_each(Node::restart_agent);
        self.last_change = now;
        self.come_to_rest()?;
        if before != (starts(self), uids(self)) {
            return Err(Violation::new("S11", "starting server and agents again restarted a pod"));
        }
        Ok(())
    }

    /// Nothing goes wrong from now on, and what is broken is mended.
    fn heal(&mut self) {
        self.note("world", "the storm is over");
        let now = self.now();
        self.is_stormy = false;
        self.server.dies_after = None;
        self.server.set_full(false);
        self.disk_free_at = None;
        self.server.stalled_until = now;
        self.server.up_at = self.server.up_at.min(now);
        for index in std::mem::take(&mut self.power_back).into_keys() {
            if let Some(node) = self.nodes.get_mut(index) {
                node.set_power(true, now);
            }
        }
        self.lost.clear();
        self.joins = None;
        for node in &mut self.nodes {
            node.cut_off_until = now;
            node.deaf_until = now;
            node.stalled_until = now;
        }
        let last = std::mem::take(&mut self.script.last);
        self.script.deeds.extend(last.into_iter().map(|deed| (now, deed)));
        self.last_change = now;
        self.steps = 0;
    }

    fn come_to_rest(&mut self) -> Result<(), Violation> {
        let deadline = plus(self.now(), REST_WITHIN * 1000);
        loop {
            let quiet_since = plus(self.last_change, REST * 1000);
            let done =
                self.next_deed >= self.script.deeds.len() && quiet_since <= self.now() && self.server.up.is_some();
            let converged = if done { self.checkers.at_rest(&self.nodes, self.snapshot()) } else { Ok(()) };
            if done && converged.is_ok() {
                return Ok(());
            }
            if self.now() > deadline {
                let waiting = self.server.up.as_ref().map(|up| {
                    up.seat
                        .driver
                        .waiting()
                        .map(|(name, key, why)| format!("{name} {key} {why:?}"))
                        .collect::<Vec<_>>()
                        .join("; ")
                });
                converged.map_err(|broken| Violation {
                    message: format!("{}; waiting: {waiting:?}", broken.message),
                    ..broken
                })?;
                return Err(Violation::new("S12", format!("it does not come to rest: {waiting:?}")));
            }
            self.step()?;
        }
    }

    /// Somebody does something; where nobody has anything to do, time passes.
    pub fn step(&mut self) -> Result<(), Violation> {
        self.steps += 1;
        if self.steps > MAX_STEPS {
            return Err(Violation::new("S12", "it goes round in circles"));
        }
        self.break_something()?;
        self.mend()?;
        let turns = self.nodes.len() + 2;
        let first = self.seed.index(turns);
        for offset in 0..turns {
            if self.turn((first + offset) % turns)? {
                self.checkers.on_state(&self.nodes, &self.observer.snapshot, self.now())?;
                return Ok(());
            }
        }
        self.pass_time();
        Ok(())
    }

    fn turn(&mut self, who: usize) -> Result<bool, Violation> {
        match who {
            0 => self.server_turn(),
            1 => self.user_turn(),
            _ => self.node_turn(who - 2),
        }
    }

    fn pass_time(&mut self) {
        let now = self.now();
        let mut wakes: Vec<Timestamp> = self.nodes.iter().filter_map(Node::next_wake).collect();
        let cut = self.nodes.iter().flat_map(|node| [node.cut_off_until, node.deaf_until, node.stalled_until]);
        wakes.extend(cut.chain([self.server.stalled_until, self.server.up_at]).filter(|at| *at > now));
        wakes.extend(self.server.up.as_ref().and_then(|up| now.checked_add(up.seat.sleep(now)).ok()));
        wakes.extend(self.server.next_flight());
        wakes.extend(self.script.deeds.get(self.next_deed).map(|(at, _)| *at));
        wakes.extend(self.power_back.values().copied());
        wakes.extend(self.disk_free_at);
        let soon = plus(now, if self.is_stormy { 5000 } else { 20_000 });
        let next = wakes.into_iter().filter(|at| *at > now).min().unwrap_or(soon).min(soon);
        self.set_now(next);
    }

    /// The server's start, or its controllers' next decision.
    fn server_turn(&mut self) -> Result<bool, Violation> {
        let now = self.now();
        if self.server.up.is_none() {
            if self.server.up_at > now {
                return Ok(false);
            }
            if !self.server.start() {
                self.note("server", "does not come up");
                self.server.die(false, plus(now, 500));
                return Ok(true);
            }
            self.note("server", "is up");
            self.clients.cut_off();
            if let Some(up) = &self.server.up {
                let steps = self.observer.attach(&up.api.store)?;
                self.see(steps)?;
            }
            return Ok(true);
        }
        if self.server.stalled_until > now {
            return Ok(false);
        }
        let (stormy, bug) = (self.is_stormy, self.options.bug);
        let counted = self.server.up.as_ref().and_then(|up| up.seat.driver.counts().broken().next());
        if let Some((promise, count)) = counted.filter(|_| bug.is_none()) {
            return Err(Violation::new(promise, format!("the server counts it as broken {count} times")));
        }
        let busy = self.server.turn(stormy, |decided_on, work| {
            for part in &mut work.parts {
                bug.into_iter().for_each(|bug| {
                    bug.spoil(work.controller, decided_on, &part.key, &mut part.decision, now);
                });
            }
        });
        if self.server.next_flight().is_none_or(|at| at > now) {
            return match self.options.bug {
                Some(Bug::ForgetsMargin) => Ok(self.release_hastily()? || busy),
                _ => Ok(busy),
            };
        }
        let Some(mut flight) = self.server.take_flight(stormy) else { return Ok(true) };
        let decided_on = std::mem::take(&mut flight.decided_on);
        self.last_actor = (Actor::Controller(flight.work.controller), Some(decided_on));
        self.server.commit(flight, self.options.mode);
        self.look()?;
        Ok(true)
    }

    /// The bug of a server that counts no margin, and from when a renewal was sent.
    fn release_hastily(&mut self) -> Result<bool, Violation> {
        let Some(up) = &self.server.up else { return Ok(false) };
        let Some((key, uid)) = bugs::released_hastily(up.seat.driver.snapshot()) else { return Ok(false) };
        self.last_actor = (Actor::Controller("fencing-controller"), None);
        let options = DeleteOptions { grace: Some(0), uid: Some(uid), ..DeleteOptions::default() };
        let done = self.server.write(|batch| api::delete(batch, &kinds::POD, &key.namespace, &key.name, &options));
        self.look()?;
        Ok(done.is_ok())
    }

    fn user_turn(&mut self) -> Result<bool, Violation> {
        let now = self.now();
        let Some((at, deed)) = self.script.deeds.get(self.next_deed).cloned() else { return Ok(false) };
        if at > now || self.server.up.is_none() {
            return Ok(false);
        }
        self.last_actor = (Actor::User, None);
        let result = deed.perform(&mut self.server);
        self.note(
            "user",
            &format!("{} {}", describe(&deed), result.as_ref().err().map_or("", |status| &status.message)),
        );
        match result {
            Ok(()) => self.next_deed += 1,
            Err(_) => {
                if let Some((at, _)) = self.script.deeds.get_mut(self.next_deed) {
                    *at = plus(now, 1000);
                }
            }
        }
        self.look()?;
        Ok(true)
    }

    fn node_turn(&mut self, index: usize) -> Result<bool, Violation> {
        let now = self.now();
        let Some(node) = self.nodes.get_mut(index) else { return Ok(false) };
        self.last_actor = (Actor::Node(node.name.clone()), None);
        let mut around = Around {
            server: &mut self.server,
            now,
            seed: &mut self.seed,
            faults: self.is_stormy,
            bug: self.options.bug,
            delays: self.options.is_silent && self.is_stormy,
        };
        let busy = node.step(&mut around);
        self.look()?;
        Ok(busy)
    }

    /// Sees what the last actor did, also where the server died of it.
    fn look(&mut self) -> Result<(), Violation> {
        let steps = self.observer.drain()?;
        if self.server.up.is_none() {
            self.note("server", "is down");
        }
        if let Some(refusal) = self.server.left_behind.take() {
            return Err(Violation::new("A9", format!("what was refused ({refusal}) is in the store")));
        }
        self.see(steps)?;
        if let Some(whose) = self.server.decided_blindly.take() {
            return Err(Violation::new("S12", format!("{whose} does not see its own last commit")));
        }
        match &self.server.up {
            Some(up) => self.clients.step(&up.api.store),
            None => {
                self.clients.cut_off();
                Ok(())
            }
        }
    }

    fn see(&mut self, steps: Vec<crate::observer::Step>) -> Result<(), Violation> {
        let now = self.now();
        for step in steps {
            let change = &step.change;
            let (kind, key) = (&change.kind, &change.key);
            let verb = match (&change.old, &change.new) {
                (None, _) => "makes",
                (Some(_), Some(_)) => "changes",
                (Some(_), None) => "removes",
            };
            let who = self.last_actor.0.to_string();
            if *kind != kinds::LEASE {
                self.trace.note(now, &who, &format!("{verb} {} {key} @{}", kind.kind, step.after.revision));
            }
            if *kind != kinds::LEASE && *kind != kinds::NODE {
                self.last_change = now;
            }
            let count = self.counts.entry((kind.kind.to_string(), key.clone())).or_default();
            count.0 += u32::from(change.old.is_none());
            count.1 += u32::from(change.new.is_none());
            self.checkers.on_change(&Seen {
                actor: &self.last_actor.0,
                before: &step.before,
                after: &step.after,
                change,
                decided_on: self.last_actor.1.as_ref(),
                nodes: &self.nodes,
                now,
            })?;
        }
        Ok(())
    }

    fn break_something(&mut self) -> Result<(), Violation> {
        let Some(rate) = self.options.one_fault_in.filter(|_| self.is_stormy) else { return Ok(()) };
        if !self.seed.one_in(rate) {
            return Ok(());
        }
        let (seed, nodes) = (&mut self.seed, self.nodes.len());
        let random = match self.options.twin {
            Some(_) => Fault::replacement(seed, nodes),
            None if self.options.is_silent => Fault::silence(seed, nodes),
            None => Fault::random(seed, nodes),
        };
        let fault = self.options.favourite.filter(|_| self.seed.one_in(2)).unwrap_or(random);
        self.note("fault", &format!("{fault:?}"));
        let now = self.now();
        match fault {
            Fault::ServerDies { power } => {
                let until = plus(now, self.seed.between(100, 5000));
                self.kill_server(power, until);
            }
            Fault::ServerDiesAfter(commits) => self.server.dies_after = Some(commits),
            Fault::Disk(calls, fault) => self.server.plan_disk_fault(calls, fault),
            Fault::DiskFull(milliseconds) => {
                self.server.set_full(true);
                self.disk_free_at = Some(plus(now, milliseconds));
            }
            Fault::DriverStalls(milliseconds) => self.server.stalled_until = plus(now, milliseconds),
            Fault::DriverRelists => {
                if let Some(up) = &mut self.server.up {
                    let _ = up.seat.relist(now);
                }
            }
            Fault::NodeIsReplaced(milliseconds) => self.replace_node(milliseconds),
            on_node => self.break_node(on_node),
        }
        Ok(())
    }

    /// The machine that is the first node loses its power, and the other one is to be that node.
    fn replace_node(&mut self, milliseconds: i64) {
        let (now, last) = (self.now(), self.nodes.len() - 1);
        let is_node = |node: &Node| node.machine.is_on && node.is_the_node(&self.observer.snapshot);
        let lost = [0, last].into_iter().find(|index| self.nodes.get(*index).is_some_and(is_node));
        let Some(lost) = lost.filter(|_| self.joins.is_none()) else { return };
        if let Some(node) = self.nodes.get_mut(lost) {
            node.set_power(false, now);
            node.was_replaced = true;
        }
        self.power_back.insert(lost, plus(now, milliseconds));
        self.joins = Some((lost, last - lost));
        if self.options.twin == Some(Twin::Joins) {
            self.lost.push_back(lost);
        }
    }

    /// The other machine joins once the Node is gone; or begins at once, with a copy of the folder.
    fn join(&mut self) {
        let Some((lost, other)) = self.joins.take_if(|_| self.lost.is_empty()) else { return };
        let now = self.now();
        let former = self.nodes.get(lost).map(Node::disk);
        let name = self.nodes.get(lost).map(|node| ObjectKey::new(LEASES, node.name.as_str()));
        let lease = name.and_then(|name| self.observer.snapshot.leases.get(&name));
        let holder = lease.and_then(|lease| Holder::parse(annotation(&lease.metadata, HELD_BY)));
        self.power_back.remove(&other);
        if let Some(node) = self.nodes.get_mut(other) {
            if let Some(former) = former.filter(|_| self.options.twin == Some(Twin::IsCopied)) {
                node.take_disk(former);
                // The user knows that the other one has no power, and so that what it ran is over.
                node.takes_over = holder.map(|holder| holder.run).unwrap_or_default();
            }
            node.set_power(true, now);
        }
        self.note("fault", &format!("machine {other} is n0 now, and machine {lost} will be back"));
    }

    fn break_node(&mut self, fault: Fault) {
        let now = self.now();
        let (Fault::AgentRestarts(index)
        | Fault::NodeCutOff(index, _)
        | Fault::NodeDeaf(index, _)
        | Fault::NodeStalls(index, _)
        | Fault::ContainerCrashes(index)
        | Fault::NodeReboots(index)
        | Fault::NodeLosesPower(index, _)
        | Fault::NodeIsLost(index, _)) = fault
        else {
            return;
        };
        let pick = self.seed.index(64);
        let Some(node) = self.nodes.get_mut(index).filter(|node| node.machine.is_on) else { return };
        match fault {
            Fault::AgentRestarts(_) => node.restart_agent(),
            Fault::NodeCutOff(_, milliseconds) => node.cut_off_until = plus(now, milliseconds),
            Fault::NodeDeaf(_, milliseconds) => node.deaf_until = plus(now, milliseconds),
            Fault::NodeStalls(_, milliseconds) => node.stalled_until = plus(now, milliseconds),
            Fault::ContainerCrashes(_) => drop(node.machine.crash_one(pick, now)),
            Fault::NodeReboots(_) => node.set_power(true, now),
            Fault::NodeLosesPower(_, milliseconds) | Fault::NodeIsLost(_, milliseconds) => {
                node.set_power(false, now);
                self.power_back.insert(index, plus(now, milliseconds));
                if matches!(fault, Fault::NodeIsLost(..)) {
                    self.lost.push_back(index);
                }
            }
            _ => {}
        }
    }

    fn kill_server(&mut self, power: bool, until: Timestamp) {
        if self.server.up.is_none() {
            return;
        }
        if self.options.bug == Some(Bug::RestoresOldDisk) {
            self.server.old_disk = self.old_disk();
        }
        self.server.die(power, until);
    }

    /// A disk on which nothing of the last writes is.
    fn old_disk(&self) -> Option<mainstay_store::testing::FaultyDisk> {
        (self.server.commits > 0).then(mainstay_store::testing::FaultyDisk::new)
    }

    /// What was broken for a while, and is over.
    fn mend(&mut self) -> Result<(), Violation> {
        let now = self.now();
        if self.server.has_lost_power() {
            self.note("fault", "the server's power went in the middle of a write");
            self.kill_server(true, plus(now, 400));
        }
        if self.disk_free_at.is_some_and(|at| at <= now) {
            self.disk_free_at = None;
            self.server.set_full(false);
            self.note("fault", "the disk has space again");
        }
        let back: Vec<usize> = self.power_back.iter().filter(|(_, at)| **at <= now).map(|(index, _)| *index).collect();
        for index in back {
            self.power_back.remove(&index);
            self.lost.retain(|lost| *lost != index);
            if let Some(node) = self.nodes.get_mut(index) {
                node.set_power(true, now);
            }
            self.note("fault", &format!("n{index} has power again"));
        }
        // A user takes the Node of a machine that is off away, as soon as the server listens.
        if self.server.up.is_some()
            && let Some(index) = self.lost.pop_front()
        {
            self.last_actor = (Actor::User, None);
            let name = self.nodes.get(index).map(|node| node.name.clone()).unwrap_or_default();
            let done = forget_node(&mut self.server, &name);
            if done.is_err_and(|status| status.code >= 500) {
                self.lost.push_back(index);
            }
            self.look()?;
        }
        self.join();
        Ok(())
    }
}

/// The machines. Clocks that run apart do so by as much as the margin allows for, nearly.
fn nodes(options: &Options) -> Vec<Node> {
    let drift = |index: usize| [-9000, 9000, 0].get(index % 3).copied().filter(|_| options.is_silent).unwrap_or(0);
    let mut nodes: Vec<Node> = (0..options.nodes).map(|index| Node::new(index, start())).collect();
    nodes.iter_mut().for_each(|node| node.machine.drift = drift(node.index));
    nodes.extend(options.twin.map(|_| Node::twin(options.nodes, "n0", start())));
    nodes
}

/// When every world begins.
pub fn start() -> Timestamp {
    Timestamp::from_second(1_767_225_600).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn describe(deed: &Deed) -> String {
    match deed {
        Deed::Apply(wanted) => format!("applies {wanted:?}"),
        Deed::Delete(kind, name, policy) => format!("deletes {} {name} {}", kind.kind, policy.unwrap_or("")),
        other => format!("{other:?}"),
    }
}
