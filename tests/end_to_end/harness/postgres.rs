//! A PostgreSQL that is disturbed: a client that goes on all the time and notes what was acknowledged, and the checks
//! that nothing of that is missing (V4).

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Cluster, PATIENCE, processes};

/// Rows that must be acknowledged before it counts as going on.
const SOME: u64 = 20;
/// Between two attempts of the client to reach a database that is not there.
const AGAIN: Duration = Duration::from_millis(50);

/// What the client writes to, of the pod `pg-0`.
pub const TABLE: &str = "create extension if not exists amcheck;
    create table if not exists rows (id bigint primary key, sum text not null, filler text)";

/// Inserts rows one by one, as long as it lives, and notes the ids that the database has acknowledged.
pub struct Client {
    acknowledged: Arc<Mutex<BTreeSet<u64>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Client {
    /// Of the only database in the control groups of these names. It does not need the API.
    pub fn start(groups: Vec<String>) -> Self {
        let (acknowledged, stop) = (Arc::new(Mutex::new(BTreeSet::new())), Arc::new(AtomicBool::new(false)));
        let (noted, stopped, next) = (acknowledged.clone(), stop.clone(), AtomicU64::new(0));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let mut found = groups.iter().filter_map(|group| processes::named("postgres", group).first().copied());
                if let Some(postmaster) = found.next() {
                    insert(postmaster, &noted, &stopped, &next);
                }
                std::thread::sleep(AGAIN);
            }
        });
        Self { acknowledged, stop, thread: Some(thread) }
    }

    pub fn noted(&self) -> BTreeSet<u64> {
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
fn insert(postmaster: u32, acknowledged: &Mutex<BTreeSet<u64>>, stop: &AtomicBool, next: &AtomicU64) {
    let environment = processes::read(postmaster, "environ");
    let Some(path) = environment.split(' ').find(|word| word.starts_with("PATH=")) else { return };
    let mut command = Command::new("nsenter");
    command.args(["--mount", "--root", "--pid", "--net", "--ipc", "-t"]).arg(postmaster.to_string());
    command.args([
        "--",
        "env",
        path,
        "psql",
        "-qAtX",
        "-v",
        "ON_ERROR_STOP=1",
        "-U",
        "postgres",
        "-h",
        "/run/postgresql",
    ]);
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
        acknowledged.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
    }
    drop(input);
    let _ = psql.wait();
}

pub fn psql(cluster: &Cluster, sql: &str) -> String {
    cluster.exec("pg-0", &["psql", "-qAtX", "-U", "postgres", "-h", "/run/postgresql", "-c", sql]).trim().to_owned()
}

pub fn accepts(cluster: &Cluster) {
    cluster.eventually("the database takes connections", || {
        let command =
            ["exec", "pg-0", "--", "psql", "-qAtX", "-U", "postgres", "-h", "/run/postgresql", "-c", "select 1"];
        cluster.try_kubectl(&command).status.success()
    });
}

/// All that was acknowledged is there, and the database finds nothing wrong with itself.
pub fn check(cluster: &Cluster, client: &Client, after: &str) {
    accepts(cluster);
    let noted = client.noted();
    let ids = psql(cluster, "select id from rows");
    let there: BTreeSet<u64> = ids.lines().map(|id| id.parse().expect("a number")).collect();
    let lost: Vec<&u64> = noted.difference(&there).collect();
    assert!(
        lost.is_empty(),
        "V4: after {after} {} of {} acknowledged rows are lost: {lost:?}",
        lost.len(),
        noted.len()
    );
    let checks = "select count(*) from rows where sum <> md5(id::text) or length(filler) <> id % 3000;
        select bt_index_check('rows_pkey', true); select count(*) from verify_heapam('rows')";
    assert_eq!(psql(cluster, checks), "0\n\n0", "V4: after {after}");
}
