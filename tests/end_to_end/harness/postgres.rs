//! A PostgreSQL that is disturbed: a client that goes on all the time and notes what was acknowledged, and the checks
//! that nothing of that is missing (V4).

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Cluster, PATIENCE, processes, text};

/// Rows that must be acknowledged before it counts as going on.
const SOME: u64 = 20;
/// Between two attempts of the client to reach a database that is not there.
const AGAIN: Duration = Duration::from_millis(50);

/// What the client writes to.
pub const TABLE: &str = "create extension if not exists amcheck;
    create table if not exists rows (id bigint primary key, sum text not null, filler text)";

/// How a database is reached: a pod that has psql, and the words of the connection.
#[derive(Clone, Copy)]
pub struct Access {
    pub pod: &'static str,
    pub connection: &'static str,
}

/// The connection to the database of the pod itself.
pub const WITHIN: &str = "host=/run/postgresql user=postgres";
/// The pod `pg-0`, from within.
pub const POD: Access = Access { pod: "pg-0", connection: WITHIN };

/// Inserts rows one by one, as long as it lives, and notes the ids that the database has acknowledged.
pub struct Client {
    noted: Arc<Mutex<Noted>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What was acknowledged.
struct Noted {
    ids: BTreeSet<u64>,
    last: Instant,
    /// The longest time between two of them.
    pause: Duration,
}

impl Client {
    /// Of the only database in the control groups of these names. It does not need the API.
    pub fn start(groups: Vec<String>) -> Self {
        let postmaster = move || groups.iter().find_map(|group| processes::named("postgres", group).first().copied());
        Self::run(postmaster, WITHIN)
    }

    /// In a pod that is not disturbed.
    pub fn of(cluster: &Cluster, access: Access) -> Self {
        let process = cluster.process_of(access.pod);
        Self::run(move || Some(process), access.connection)
    }

    /// psql beside the process that is found.
    fn run(find: impl Fn() -> Option<u32> + Send + 'static, connection: &'static str) -> Self {
        let noted = Noted { ids: BTreeSet::new(), last: Instant::now(), pause: Duration::ZERO };
        let (noted, stop) = (Arc::new(Mutex::new(noted)), Arc::new(AtomicBool::new(false)));
        let (shared, stopped, next) = (noted.clone(), stop.clone(), AtomicU64::new(0));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Some(process) = find() {
                    insert(process, connection, &shared, &stopped, &next);
                }
                std::thread::sleep(AGAIN);
            }
        });
        Self { noted, stop, thread: Some(thread) }
    }

    pub fn noted(&self) -> BTreeSet<u64> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner).ids.clone()
    }

    /// The longest time without an acknowledged row since this was asked last.
    pub fn longest_pause(&self) -> Duration {
        std::mem::take(&mut self.noted.lock().unwrap_or_else(PoisonError::into_inner).pause)
    }

    /// Waits until further rows were acknowledged.
    pub fn goes_on(&self, cluster: &Cluster, when: &str) {
        let (begun, before) = (Instant::now(), self.noted().len() as u64);
        while (self.noted().len() as u64) < before + SOME {
            assert!(begun.elapsed() < PATIENCE, "no inserts {when}\n{}", cluster.log());
            std::thread::sleep(AGAIN);
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One connection, until it breaks. An id is never used again: what became of it is not known.
fn insert(process: u32, connection: &str, noted: &Mutex<Noted>, stop: &AtomicBool, next: &AtomicU64) {
    let environment = processes::read(process, "environ");
    let Some(path) = environment.split(' ').find(|word| word.starts_with("PATH=")) else { return };
    let mut command = Command::new("nsenter");
    command.args(["--mount", "--root", "--pid", "--net", "--ipc", "-t"]).arg(process.to_string());
    command.args(["--", "env", path, "psql", "-qAtX", "-v", "ON_ERROR_STOP=1", connection]);
    let streams = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut psql = streams.spawn().expect("nsenter (util-linux)");
    let (mut input, mut answers) =
        (psql.stdin.take().expect("piped"), BufReader::new(psql.stdout.take().expect("piped")));
    let mut answer = String::new();
    while !stop.load(Ordering::Relaxed) {
        let id = next.fetch_add(1, Ordering::Relaxed);
        let sql = format!("insert into rows values ({id}, md5('{id}'), repeat('x', {})) returning id;", id % 3000);
        answer.clear();
        let sent = writeln!(input, "{sql}").and_then(|()| answers.read_line(&mut answer));
        if sent.is_err() || answer.trim() != id.to_string() {
            break;
        }
        let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
        noted.ids.insert(id);
        noted.pause = noted.pause.max(noted.last.elapsed());
        noted.last = Instant::now();
    }
    drop(input);
    let _ = psql.wait();
}

impl Access {
    /// psql, whatever comes of it.
    pub fn attempt(&self, cluster: &Cluster, sql: &str) -> Output {
        cluster.try_kubectl(&["exec", self.pod, "--", "psql", "-qAtX", self.connection, "-c", sql])
    }

    /// What psql prints.
    pub fn psql(&self, cluster: &Cluster, sql: &str) -> String {
        let output = self.attempt(cluster, sql);
        assert!(output.status.success(), "{sql}\n{}", text(&output));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    pub fn accepts(&self, cluster: &Cluster) {
        cluster.eventually("the database takes connections", || self.attempt(cluster, "select 1").status.success());
    }

    /// The ids of the rows that are there.
    pub fn ids(&self, cluster: &Cluster) -> BTreeSet<u64> {
        self.psql(cluster, "select id from rows").lines().map(|id| id.parse().expect("a number")).collect()
    }

    /// All that was acknowledged is there, and the database finds nothing wrong with itself.
    pub fn check(&self, cluster: &Cluster, client: &Client, after: &str) {
        self.accepts(cluster);
        let noted = client.noted();
        let there = self.ids(cluster);
        let lost: Vec<&u64> = noted.difference(&there).collect();
        let (count, all) = (lost.len(), noted.len());
        assert!(lost.is_empty(), "V4: after {after} {count} of {all} acknowledged rows are lost: {lost:?}");
        let checks = "select count(*) from rows where sum <> md5(id::text) or length(filler) <> id % 3000;
            select bt_index_check('rows_pkey', true); select count(*) from verify_heapam('rows')";
        assert_eq!(self.psql(cluster, checks), "0\n\n0", "V4: after {after}");
    }
}
