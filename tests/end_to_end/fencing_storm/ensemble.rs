//! Three members of etcd in pods, on three nodes: what was acknowledged is there, whatever their machines meet, and no
//! member ever runs twice, which would be two voters of one name on one log.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{FENCED, Layout, Workload, Writer, is_alive, storm};
use crate::harness::{Cluster, processes};

/// Troubles of one run, unless told.
const ROUNDS: u64 = 2;
/// Keys that must be acknowledged before it counts as going on.
const SOME: usize = 10;
/// Nothing here takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two attempts while nobody answers.
const AGAIN: Duration = Duration::from_millis(50);
/// Before the keys that are written.
const PREFIX: &str = "key-";

const SET: &str = "
apiVersion: v1
kind: Service
metadata: {name: etcd}
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector: {app: etcd}
  ports: [{port: 2379, name: client}, {port: 2380, name: peer}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: etcd}
spec:
  serviceName: etcd
  replicas: 3
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: etcd}}
  template:
    metadata:
      labels: {app: etcd}
FENCED      affinity:
        podAntiAffinity:
          preferredDuringSchedulingIgnoredDuringExecution:
            - weight: 100
              podAffinityTerm: {topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: etcd}}}
      containers:
        - name: etcd
          image: test.local/etcd:1
          imagePullPolicy: Never
          command:
            - etcd
            - --name=$(POD)
            - --data-dir=/data/etcd
            - --log-level=error
            - --listen-client-urls=http://0.0.0.0:2379
            - --listen-peer-urls=http://0.0.0.0:2380
            - --advertise-client-urls=http://$(POD).etcd:2379
            - --initial-advertise-peer-urls=http://$(POD).etcd:2380
            - --initial-cluster=MEMBERS
          env: [{name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
          readinessProbe: {httpGet: {path: /health, port: 2379}, periodSeconds: 1, timeoutSeconds: 3}
          volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
    - metadata: {name: data}
      spec: {storageClassName: nfs, accessModes: [ReadWriteOnce], resources: {requests: {storage: 256Mi}}}
";

const ENSEMBLE: Workload = Workload {
    image: "etcd",
    set: "etcd",
    names: &["etcd-0", "etcd-1", "etcd-2"],
    manifest: |_| {
        let members = ENSEMBLE.names.iter().map(|name| format!("{name}=http://{name}.etcd:2380"));
        SET.replace("FENCED", FENCED).replace("MEMBERS", &members.collect::<Vec<_>>().join(","))
    },
    program: "etcd",
    owner: |pid| {
        let environment = processes::read(pid, "environ");
        environment.split(' ').find_map(|word| word.strip_prefix("POD=")).unwrap_or_default().to_owned()
    },
    furnish: |_| {},
    write: |groups| Box::new(Puts::start(groups)),
};

/// Puts keys one by one, as long as it lives, and notes those that a member has acknowledged.
struct Puts {
    acknowledged: Arc<Mutex<BTreeSet<u64>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Puts {
    /// Of the members in the control groups of these names. It does not need the API.
    fn start(groups: Vec<String>) -> Self {
        let (acknowledged, stop) = (Arc::new(Mutex::new(BTreeSet::new())), Arc::new(AtomicBool::new(false)));
        let (noted, stopped) = (acknowledged.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let (mut next, mut asked) = (0, None);
            while !stopped.load(Ordering::Relaxed) {
                let all = || groups.iter().flat_map(|group| processes::named(ENSEMBLE.program, group));
                let Some(member) = asked.filter(|pid| is_alive(*pid)).or_else(|| nth(all(), next)) else {
                    std::thread::sleep(AGAIN);
                    continue;
                };
                // One of which it is not known what became is never used again.
                next += 1;
                let is_acknowledged = put(member, next);
                asked = Some(member).filter(|_| is_acknowledged);
                if is_acknowledged {
                    noted.lock().unwrap_or_else(PoisonError::into_inner).insert(next);
                }
            }
        });
        Self { acknowledged, stop, thread: Some(thread) }
    }

    fn noted(&self) -> BTreeSet<u64> {
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One of them, another one for another number.
fn nth(members: impl Iterator<Item = u32>, number: u64) -> Option<u32> {
    let members: Vec<u32> = members.collect();
    let index = number.checked_rem(members.len() as u64)?;
    members.get(usize::try_from(index).ok()?).copied()
}

fn put(member: u32, number: u64) -> bool {
    let mut command = Command::new("nsenter");
    command.args(["--net", "-t", &member.to_string(), "--", "etcdctl", "--command-timeout=2s"]);
    command.args(["--endpoints=http://127.0.0.1:2379", "put", &format!("{PREFIX}{number}"), "x"]);
    let streams = command.env("ETCDCTL_API", "3").stdin(Stdio::null()).stderr(Stdio::null());
    let output = streams.output().expect("nsenter (util-linux), etcdctl (Debian's package etcd-client)");
    output.status.success() && output.stdout.starts_with(b"OK")
}

impl Writer for Puts {
    fn goes_on(&self, asked: &Cluster, when: &str) {
        let (begun, before) = (Instant::now(), self.noted().len());
        while self.noted().len() < before + SOME {
            assert!(begun.elapsed() < PATIENCE, "nothing is acknowledged {when}\n{}", asked.log());
            std::thread::sleep(AGAIN);
        }
    }

    fn check(&self, asked: &Cluster, after: &str) {
        let noted = self.noted();
        for member in ENSEMBLE.names {
            // Read by quorum, and as this member has it once it has heard of all that was acknowledged.
            let words = ["env", "ETCDCTL_API=3", "etcdctl", "get", "--prefix", "--keys-only", PREFIX];
            let said = asked.exec(member, &words);
            let keys = said.lines().filter_map(|line| line.strip_prefix(PREFIX)?.parse().ok());
            let there: BTreeSet<u64> = keys.collect();
            let lost: Vec<&u64> = noted.difference(&there).collect();
            assert!(lost.is_empty(), "V4: after {after} {member} lacks {lost:?} of {} keys", noted.len());
        }
    }

    fn count(&self) -> usize {
        self.noted().len()
    }
}

impl Drop for Puts {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn s13_v4_members_of_etcd_in_pods_never_run_twice_and_lose_no_acknowledged_key() {
    storm(Layout::OneServer, &ENSEMBLE, 4, ROUNDS);
}
