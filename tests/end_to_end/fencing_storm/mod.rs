//! What is written on volumes that follow their pods, under random troubles (S13, V4): a machine loses its power, the
//! link is cut both ways or one way, for a moment or for long, the agent or the server is killed. There are never two
//! of one name, nothing that was acknowledged is lost, and nobody has to come. `MAINSTAY_STORM_ROUNDS=30` for a long
//! one.
//!
//! - this file: the machines, the troubles, and who looks for a second of one name
//! - [`postgres`]: with one server, and where each of three machines is a server, a node and a member of etcd
//! - [`ensemble`]: three members of etcd in pods

mod ensemble;
mod postgres;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::harness::etcd::{Etcd, Member};
use crate::harness::machines::{Lan, address};
use crate::harness::nfs_server::{NfsServer, Software};
use crate::harness::random::{self, Random};
use crate::harness::{Cluster, processes};

/// The nodes' lease, which is the shortest deadline that there is.
const LEASE: &str = "5";
/// A cut that nobody has to notice: shorter than the deadline by more than a renewal's pause.
const MOMENT: Duration = Duration::from_millis(1500);
/// Until a pod has moved, at most: the lease, the deadline with its margin, and a start on a loaded machine.
const MOVED: Duration = Duration::from_secs(90);
/// Between two looks for a second writer.
const LOOK: Duration = Duration::from_millis(30);
/// A class whose volumes follow their pods.
const CLASS: &str = "
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: nfs}
provisioner: mainstay.io/nfs
parameters: {server: FILES, share: /exports/data}
mountOptions: ['timeo=20']
---
";
/// What makes a set's pods fenced, in their template.
const FENCED: &str = "      annotations: {mainstay.io/fence: deadline}
    spec:
      terminationGracePeriodSeconds: 2
      tolerations:
        - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
        - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
";

/// What runs while there is trouble: a StatefulSet.
struct Workload {
    /// The test image.
    image: &'static str,
    set: &'static str,
    /// Its pods.
    names: &'static [&'static str],
    manifest: fn(&Cluster) -> String,
    /// The name of a pod's process.
    program: &'static str,
    /// Which pod such a process is of.
    owner: fn(u32) -> String,
    /// When its pods are Ready for the first time.
    furnish: fn(&Cluster),
    /// Begins to write; the control groups of the machines.
    write: fn(Vec<String>) -> Box<dyn Writer>,
}

/// Who writes all the time, and notes what was acknowledged.
trait Writer {
    /// Waits until more was acknowledged.
    fn goes_on(&self, asked: &Cluster, when: &str);
    /// All that was acknowledged is there.
    fn check(&self, asked: &Cluster, after: &str);
    /// How much that is.
    fn count(&self) -> usize;
}

/// Whether a process runs; one that has ended is in its group until somebody reaps it.
fn is_alive(pid: u32) -> bool {
    processes::read(pid, "stat").rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// Looks all the time at which pods' processes run, on all machines.
struct Watch {
    violations: Arc<Mutex<BTreeSet<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// A pod's name, and the control groups in which its program runs: one for each pod of that name.
type Running = BTreeMap<String, BTreeSet<String>>;

fn running(workload: &Workload, groups: &[String]) -> Running {
    let mut found = Running::new();
    for pid in groups.iter().flat_map(|group| processes::named(workload.program, group)) {
        let (owner, group) = ((workload.owner)(pid), processes::read(pid, "cgroup"));
        // Looked at before: one that ends meanwhile is of nobody.
        if is_alive(pid) {
            found.entry(owner).or_default().insert(group);
        }
    }
    found.retain(|owner, groups| !owner.is_empty() && groups.len() > 1);
    found
}

impl Watch {
    fn start(workload: &'static Workload, groups: Vec<String>) -> Self {
        let (violations, stop) = (Arc::new(Mutex::new(BTreeSet::new())), Arc::new(AtomicBool::new(false)));
        let (noted, stopped) = (violations.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // Looked at one after the other: who is found twice is asked for once more, before it counts.
                if !running(workload, &groups).is_empty() {
                    let twice = running(workload, &groups);
                    if !twice.is_empty() {
                        noted.lock().unwrap_or_else(PoisonError::into_inner).insert(format!("{twice:?}"));
                    }
                }
                std::thread::sleep(LOOK);
            }
        });
        Self { violations, stop, thread: Some(thread) }
    }

    fn judge(&self, after: &str) {
        let violations = self.violations.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(violations.is_empty(), "S13: two of one name after {after}: {violations:?}");
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Who runs what.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// The server and the files on machine 1, the pods on the others.
    OneServer,
    /// Each of three machines is a member of etcd, a server and a node; the files are on machine 4.
    ThreeServers,
}

struct World {
    layout: Layout,
    workload: &'static Workload,
    // In the order in which they go.
    _files: NfsServer,
    members: Vec<Option<Member>>,
    machines: Vec<Cluster>,
    file_machine: Option<Cluster>,
    etcd: Etcd,
    lan: Lan,
}

fn number(index: usize) -> u8 {
    u8::try_from(index + 1).expect("few")
}

fn node(index: usize) -> String {
    format!("node-{}", index + 1)
}

impl World {
    fn new(layout: Layout, workload: &'static Workload, count: usize) -> Self {
        let lan = Lan::new();
        let machine = |number: u8| {
            let machine = Cluster::unstarted().open_to_pods();
            lan.plug(&machine, number);
            machine
        };
        let machines: Vec<Cluster> = (0..count).map(|index| machine(number(index))).collect();
        let file_machine = (layout == Layout::ThreeServers).then(|| machine(4));
        let host = file_machine.as_ref().unwrap_or(&machines[0]);
        let files = NfsServer::start(host, Software::Mainstay, &["data"]);
        let _files = files.moved(&Self::file_address(layout), "172.30.0.0/24");
        let (etcd, members) = (Etcd::on(&[1, 2, 3]), machines.iter().map(|_| None).collect());
        let mut world = Self { layout, workload, _files, members, machines, file_machine, etcd, lan };
        world.begin_life();
        let asked = &world.machines[0];
        asked.apply(&(CLASS.replace("FILES", &Self::file_address(layout)) + &(workload.manifest)(asked)));
        for name in workload.names {
            asked.eventually("there is a pod", || !asked.uid(&format!("pod/{name}")).is_empty());
            asked.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=120s"]);
        }
        (workload.furnish)(asked);
        world
    }

    fn file_address(layout: Layout) -> String {
        address(if layout == Layout::OneServer { 1 } else { 4 })
    }

    /// The first start of all.
    fn begin_life(&mut self) {
        if self.layout == Layout::OneServer {
            self.start(0);
            for index in 1..self.machines.len() {
                let mut words = self.machines[0].invitation();
                words.extend(["--node-name", &node(index), "--node-lease-duration", LEASE].map(str::to_owned));
                self.machines[index].join(&words);
            }
            self.machines[0].kubectl(&["cordon", "node-1"]);
        } else {
            (0..3).for_each(|index| self.start_member(index));
            (0..3).for_each(|index| self.etcd.answers(&self.machines[index], number(index)));
            self.start_up(0);
            let seal = fs::read(self.machines[0].data_dir().join("seal.key")).expect("the seal");
            for index in 1..3 {
                fs::create_dir_all(self.machines[index].data_dir()).expect("a folder");
                fs::write(self.machines[index].data_dir().join("seal.key"), &seal).expect("brought");
                self.start_up(index);
            }
        }
        self.machines.iter().for_each(|machine| machine.load(&[self.workload.image]));
    }

    fn start_member(&mut self, index: usize) {
        self.members[index] = Some(self.etcd.start(&self.machines[index], number(index)));
    }

    fn start_up(&mut self, index: usize) {
        let (own, name, store) = (address(number(index)), node(index), self.etcd.store());
        let words = ["--node-name", &name, "--node-ip", &own, "--advertise-address", &own, "--store", &store];
        let more = ["--pod-network", "routes", "--node-lease-duration", LEASE];
        self.machines[index].up_with(&[words.as_slice(), &more].concat());
    }

    /// What runs on a machine besides etcd, as it was.
    fn start(&mut self, index: usize) {
        match (self.layout, index) {
            (Layout::ThreeServers, _) => self.start_up(index),
            (Layout::OneServer, 0) => self.machines[0].up_with(&["--node-ip", &address(1), "--pod-network", "routes"]),
            (Layout::OneServer, _) => self.machines[index].join(&["--node-lease-duration", LEASE]),
        }
    }

    fn groups(&self) -> Vec<String> {
        self.machines.iter().map(Cluster::group_name).collect()
    }

    /// A machine whose server answers whatever another one meets.
    fn beside(&self, index: usize) -> &Cluster {
        &self.machines[if self.layout == Layout::OneServer { 0 } else { (index + 1) % 3 }]
    }

    /// Which machine has a pod.
    fn home(&self, asked: &Cluster, pod: &str) -> usize {
        let name = asked.field(&format!("pod/{pod}"), "{.spec.nodeName}");
        let found = (0..self.machines.len()).find(|index| node(*index) == name);
        found.unwrap_or_else(|| panic!("{pod} is on no node: {name:?}"))
    }

    /// The pods that a machine has, each with its uid; and what all others have.
    fn pods(&self, asked: &Cluster, home: usize) -> (BTreeMap<&'static str, String>, BTreeMap<&'static str, String>) {
        let all = self.workload.names.iter().map(|name| (*name, asked.uid(&format!("pod/{name}"))));
        all.partition(|(name, _)| self.home(asked, name) == home)
    }

    /// Cuts everything off that the others send to a machine, or no more.
    fn cut_one_way(&self, home: usize, is_cut: bool) {
        let others = (0..self.machines.len()).filter(|index| *index != home).map(|index| &self.machines[index]);
        for other in others.chain(&self.file_machine) {
            self.lan.cut_one_way(other, number(home), is_cut);
        }
    }

    /// One trouble, and what it was. Whether the machine's pods have to run elsewhere then.
    fn begin(&mut self, which: u64, home: usize) -> (&'static str, bool) {
        match which {
            0 => {
                self.members[home] = None;
                self.machines[home].kill9_everything();
                ("a power cut", true)
            }
            1 => {
                self.lan.cut(number(home), true);
                ("a cut link", true)
            }
            2 => {
                self.cut_one_way(home, true);
                ("a link cut one way", true)
            }
            3 => {
                self.machines[home].kill9();
                ("a killed agent", false)
            }
            4 => {
                self.machines[0].kill9();
                ("a killed server", false)
            }
            _ => {
                self.lan.cut(number(home), true);
                std::thread::sleep(MOMENT);
                self.lan.cut(number(home), false);
                ("a link cut for a moment", false)
            }
        }
    }

    /// Its end.
    fn end(&mut self, which: u64, home: usize) {
        match which {
            0 => {
                if self.layout == Layout::ThreeServers {
                    self.start_member(home);
                }
                self.start(home);
            }
            1 => self.lan.cut(number(home), false),
            2 => self.cut_one_way(home, false),
            3 => self.start(home),
            4 => self.start(0),
            _ => {}
        }
    }

    /// Waits until a machine that was away is there again, and has nothing left of what ran there.
    fn is_back(&self, home: usize) {
        let (asked, name) = (self.beside(home), format!("node/{}", node(home)));
        asked.eventually(&format!("{name} is back"), || {
            asked.field(&name, "{.status.conditions[?(@.type==\"Ready\")].status}") == "True"
                && !asked.field(&name, "{.spec.taints[*].key}").contains("unreachable")
        });
        asked.eventually(&format!("{name} has nothing of the pod"), || {
            let is_empty = |folder| {
                let left = fs::read_dir(self.machines[home].data_dir().join(folder));
                left.is_ok_and(|mut left| left.next().is_none())
            };
            is_empty("containers/s") && is_empty("containers/c")
        });
    }

    /// A trouble of a pod's machine from its begin until all is as it was; how long nothing was written, or, where the
    /// machine's pods had to move, until they were Ready again.
    fn trouble(&mut self, which: u64, pod: &str, writer: &dyn Writer) -> (&'static str, Duration) {
        let home = self.home(&self.machines[1 % self.servers()], pod);
        let (moving, staying) = self.pods(self.beside(home), home);
        let begun = Instant::now();
        let (named, moves) = self.begin(which, home);
        if !moves {
            self.end(which, home);
            writer.goes_on(self.beside(home), &format!("after {named}"));
            let took = begun.elapsed();
            assert_eq!(self.pods(self.beside(home), home), (moving, staying), "V7: {named} moves nothing");
            return (named, took);
        }
        let asked = self.beside(home);
        for (name, old) in &moving {
            let pod = format!("pod/{name}");
            loop {
                let state = || asked.kubectl(&["get", "pod,event", "-o", "wide"]);
                assert!(begun.elapsed() < MOVED, "after {named} {name} does not move\n{}", state());
                let uid = asked.uid(&pod);
                if !uid.is_empty() && uid != *old {
                    break;
                }
                std::thread::sleep(LOOK);
            }
        }
        writer.goes_on(asked, &format!("after {named}"));
        for name in moving.keys() {
            asked.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]);
            assert_ne!(self.home(asked, name), home, "{named}");
        }
        let took = begun.elapsed();
        self.end(which, home);
        self.is_back(home);
        (named, took)
    }

    fn servers(&self) -> usize {
        if self.layout == Layout::OneServer { 1 } else { 3 }
    }
}

fn storm(layout: Layout, workload: &'static Workload, count: usize, usual_rounds: u64) {
    let mut random = Random::new();
    let rounds = random::rounds(usual_rounds);
    let mut world = World::new(layout, workload, count);
    let (watch, writer) = (Watch::start(workload, world.groups()), (workload.write)(world.groups()));
    writer.goes_on(&world.machines[0], "before the first trouble");
    for round in 0..rounds {
        // What moves a pod comes every other time, at least.
        let which = if round % 2 == 0 { random.below(3) } else { random.below(6) };
        let pods = workload.names.len() as u64;
        let pod = workload.names[usize::try_from(random.below(pods)).expect("few")];
        std::thread::sleep(Duration::from_millis(random.below(700)));
        let (named, took) = world.trouble(which, pod, &*writer);
        eprintln!("{named}, of {pod}'s machine: all is well again after {} ms", took.as_millis());
        watch.judge(named);
        writer.check(&world.machines[0], named);
    }
    world.machines[0].no_promise_is_broken();
    println!("{} acknowledged", writer.count());
    drop(writer);
    // Nothing is left for the machines' end to wait for.
    let asked = &world.machines[0];
    asked.kubectl(&["delete", "statefulset", workload.set, "--timeout=60s"]);
    asked.eventually("the pods are gone", || asked.kubectl(&["get", "pods", "-o", "name"]).is_empty());
}
