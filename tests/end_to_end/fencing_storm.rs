//! PostgreSQL on three machines under random troubles (S13, V4): its machine loses its power, the link is cut both ways
//! or one way, for a moment or for long, the agent or the server is killed. There are never two writers, no
//! acknowledged row is lost, and nobody has to come. `MAINSTAY_STORM_ROUNDS=50` for a long one.

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::harness::machines::{Lan, machines};
use crate::harness::nfs_server::{NfsServer, Software};
use crate::harness::postgres::{Client, TABLE, accepts, check, psql};
use crate::harness::random::Random;
use crate::harness::{Cluster, processes};

/// Troubles of one run, unless told.
const ROUNDS: u64 = 3;
/// The nodes' lease, which is the shortest deadline that there is.
const LEASE: &str = "5";
/// A cut that nobody has to notice: shorter than the deadline by more than a renewal's pause.
const MOMENT: Duration = Duration::from_millis(1500);
/// Until a pod has moved, at most: the lease, the deadline with its margin, and a start on a loaded machine.
const MOVED: Duration = Duration::from_secs(90);
/// Between two looks for a second writer.
const LOOK: Duration = Duration::from_millis(30);
/// How the first machine is started.
const FIRST: [&str; 4] = ["--node-ip", "172.30.0.1", "--pod-network", "routes"];

/// A class whose volumes follow their pods, and what makes a database fenced.
const CLASS: &str = "
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: nfs}
provisioner: mainstay.io/nfs
parameters: {server: 172.30.0.1, share: /exports/data}
mountOptions: ['timeo=20']
---
";
const FENCED: &str = "    metadata:
      labels:
        app: pg
      annotations: {mainstay.io/fence: deadline}
    spec:
      terminationGracePeriodSeconds: 2
      tolerations:
        - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
        - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
";

fn manifest(cluster: &Cluster) -> String {
    let set = cluster.manifest("pg-statefulset.yaml");
    let fenced = set.replace("    metadata:\n      labels:\n        app: pg\n    spec:\n", FENCED);
    assert_ne!(fenced, set, "the manifest is another one");
    CLASS.to_owned() + &fenced.replace("replicas: 3", "replicas: 1").replace("local-path", "nfs")
}

/// Whether a process runs; one that has ended is in its group until somebody reaps it.
fn is_alive(pid: u32) -> bool {
    processes::read(pid, "stat").rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// Looks all the time at which pods' databases run, on all machines.
struct Watch {
    violations: Arc<Mutex<BTreeSet<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    fn start(groups: Vec<String>) -> Self {
        let (violations, stop) = (Arc::new(Mutex::new(BTreeSet::new())), Arc::new(AtomicBool::new(false)));
        let (noted, stopped) = (violations.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let running = |group: &String| processes::named("postgres", group).into_iter().any(is_alive);
                let writers: Vec<&String> = groups.iter().filter(|group| running(group)).collect();
                // Looked at one after the other: both are asked once more, before it counts.
                if writers.len() > 1 && writers.iter().all(|group| running(group)) {
                    noted.lock().unwrap_or_else(PoisonError::into_inner).insert(format!("{writers:?}"));
                }
                std::thread::sleep(LOOK);
            }
        });
        Self { violations, stop, thread: Some(thread) }
    }

    fn judge(&self, after: &str) {
        let violations = self.violations.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(violations.is_empty(), "S13: two writers after {after}: {violations:?}");
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

/// The server and the files on machine 1, the database on machine 2 or 3.
struct World {
    // In the order in which they go.
    _files: NfsServer,
    others: [Cluster; 2],
    first: Cluster,
    lan: Lan,
}

impl World {
    fn new() -> Self {
        let lan = Lan::new();
        let (first, mut others) = machines(&lan, &["--pod-network", "routes"]);
        for (machine, name) in others.iter_mut().zip(["node-2", "node-3"]) {
            let mut words = first.invitation();
            words.extend(["--node-name", name, "--node-lease-duration", LEASE].map(str::to_owned));
            machine.join(&words);
            machine.load(&["postgres"]);
        }
        let files = NfsServer::start(&first, Software::Mainstay, &["data"]).moved("172.30.0.1", "172.30.0.0/24");
        first.kubectl(&["cordon", "node-1"]);
        first.apply(&manifest(&first));
        first.eventually("there is a pod", || !first.uid("pod/pg-0").is_empty());
        first.kubectl(&["wait", "--for=condition=Ready", "pod/pg-0", "--timeout=120s"]);
        accepts(&first);
        psql(&first, TABLE);
        Self { _files: files, others, first, lan }
    }

    fn groups(&self) -> Vec<String> {
        self.others.iter().map(Cluster::group_name).collect()
    }

    /// Which of the others has the database.
    fn home(&self) -> usize {
        usize::from(self.first.field("pod/pg-0", "{.spec.nodeName}") == "node-3")
    }

    /// One trouble, and what it was. Whether the database has to run elsewhere then.
    fn begin(&mut self, which: u64, home: usize) -> (&'static str, bool) {
        let number = u8::try_from(home + 2).expect("few");
        match which {
            0 => {
                self.others[home].kill9_everything();
                ("a power cut", true)
            }
            1 => {
                self.lan.cut(number, true);
                ("a cut link", true)
            }
            2 => {
                self.lan.cut_one_way(&self.first, number, true);
                ("a link cut one way", true)
            }
            3 => {
                self.others[home].kill9();
                ("a killed agent", false)
            }
            4 => {
                self.first.kill9();
                ("a killed server", false)
            }
            _ => {
                self.lan.cut(number, true);
                std::thread::sleep(MOMENT);
                self.lan.cut(number, false);
                ("a link cut for a moment", false)
            }
        }
    }

    /// Its end.
    fn end(&mut self, which: u64, home: usize) {
        let number = u8::try_from(home + 2).expect("few");
        match which {
            0 | 3 => self.others[home].join(&["--node-lease-duration", LEASE]),
            1 => self.lan.cut(number, false),
            2 => self.lan.cut_one_way(&self.first, number, false),
            4 => self.first.up_with(&FIRST),
            _ => {}
        }
    }

    /// Waits until a machine that was away is there again, and has nothing left of what ran there.
    fn is_back(&self, home: usize) {
        let name = ["node-2", "node-3"][home];
        self.first.eventually(&format!("{name} is back"), || {
            let node = format!("node/{name}");
            self.first.field(&node, "{.status.conditions[?(@.type==\"Ready\")].status}") == "True"
                && !self.first.field(&node, "{.spec.taints[*].key}").contains("unreachable")
        });
        self.first.eventually(&format!("{name} has nothing of the pod"), || {
            let is_empty = |folder| {
                let left = fs::read_dir(self.others[home].data_dir().join(folder));
                left.is_ok_and(|mut left| left.next().is_none())
            };
            is_empty("containers/s") && is_empty("containers/c")
        });
    }

    /// A trouble from its begin until all is as it was; how long there was no database.
    fn trouble(&mut self, which: u64, client: &Client) -> (&'static str, Duration) {
        let (home, old) = (self.home(), self.first.uid("pod/pg-0"));
        let begun = Instant::now();
        let (named, moves) = self.begin(which, home);
        if !moves {
            self.end(which, home);
            client.goes_on(&self.first, &format!("after {named}"));
            let took = begun.elapsed();
            assert_eq!(self.first.uid("pod/pg-0"), old, "V7: {named} moves nothing");
            return (named, took);
        }
        loop {
            assert!(
                begun.elapsed() < MOVED,
                "after {named} it does not move\n{}",
                self.first.kubectl(&["get", "pod,event"])
            );
            let uid = self.first.uid("pod/pg-0");
            if !uid.is_empty() && uid != old {
                break;
            }
            std::thread::sleep(LOOK);
        }
        client.goes_on(&self.first, &format!("after {named}"));
        let took = begun.elapsed();
        assert_eq!(self.home(), 1 - home, "{named}");
        self.end(which, home);
        self.is_back(home);
        (named, took)
    }
}

#[test]
fn s13_v4_postgres_is_written_by_one_and_loses_no_acknowledged_row_whatever_its_machines_meet() {
    let mut random = Random::new();
    let rounds = std::env::var("MAINSTAY_STORM_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
    let mut world = World::new();
    let (watch, client) = (Watch::start(world.groups()), Client::start(world.groups()));
    client.goes_on(&world.first, "before the first trouble");
    for round in 0..rounds {
        // What moves the database comes every other time, at least.
        let which = if round % 2 == 0 { random.below(3) } else { random.below(6) };
        std::thread::sleep(Duration::from_millis(random.below(700)));
        let (named, took) = world.trouble(which, &client);
        eprintln!("{named}: rows are acknowledged again after {} ms", took.as_millis());
        watch.judge(named);
        check(&world.first, &client, named);
    }
    println!("{} rows", client.noted().len());
    drop(client);
    // Nothing is left for the machines' end to wait for.
    world.first.kubectl(&["delete", "statefulset", "pg", "--timeout=60s"]);
    world.first.eventually("the pod is gone", || world.first.kubectl(&["get", "pods", "-o", "name"]).is_empty());
}
