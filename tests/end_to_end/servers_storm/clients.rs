//! Clients that write down what they asked, and what they were told.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mainstay_api::kinds;
use mainstay_client::{Client, Config, Error, ListOptions, WatchEvent, Watching};
use mainstay_sim::linear::{Action, Call};
use mainstay_sim::seed::Seed;
use serde_json::{Value, json};

use crate::harness::PATIENCE;

const NAMESPACE: &str = "default";
/// Keys that are written.
const KEYS: u64 = 5;
/// Clients, each of one server.
const WRITERS: usize = 6;
/// How long a client waits for an answer; then it does not know.
const ANSWER: Duration = Duration::from_secs(3);
/// Between two calls of a client.
const PACE: Duration = Duration::from_millis(30);
/// The last thing that is written.
const LAST: &str = "last";

/// What was recorded.
#[derive(Default)]
pub struct Records {
    /// By key.
    pub calls: Vec<(String, Call)>,
    /// When an answer came, and the resourceVersion in it, of which key.
    pub versions: Vec<(Call, String, u64)>,
    /// Lists: when each was asked for, and its resourceVersion.
    pub lists: Vec<(u64, u64)>,
    pub watchers: Vec<Watched>,
    /// How many answers the client that knows all servers had.
    pub answers: u64,
    /// From when until when it had none, each time.
    pub silences: Vec<(Instant, Instant)>,
}

/// What a watcher saw.
#[derive(Default)]
pub struct Watched {
    /// From where on it watched.
    pub from: u64,
    /// Key, resourceVersion, and the write's number; none for a deletion.
    pub events: Vec<(String, u64, Option<u64>)>,
    /// It was told 410: up to the first, all is seen; after the second again.
    pub gaps: Vec<(u64, u64)>,
}

pub struct Clients {
    thread: std::thread::JoinHandle<Records>,
    stop: Arc<AtomicBool>,
}

impl Clients {
    /// Starts them in the network namespace of a process.
    pub fn start(pid: u32, config: &Config, servers: &[String]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (config, servers, stopped) = (config.clone(), servers.to_vec(), stop.clone());
        let thread = std::thread::spawn(move || {
            let namespace = File::open(format!("/proc/{pid}/ns/net")).expect("a namespace");
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).expect("entered");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(work(&config, &servers, &stopped))
        });
        Self { thread, stop }
    }

    /// Lets them end, and gives what they recorded.
    pub fn finish(self) -> Records {
        self.stop.store(true, Ordering::Release);
        self.thread.join().expect("the clients")
    }
}

/// A client of one server, or of several.
fn client(config: &Config, servers: &str) -> Client {
    Client::new(Config { server: servers.to_owned(), ..config.clone() }).expect("a client")
}

async fn work(config: &Config, servers: &[String], stop: &Arc<AtomicBool>) -> Records {
    let all = client(config, &servers.join(","));
    let start = all.list(&kinds::CONFIG_MAP, NAMESPACE, &ListOptions::default()).await.expect("a list");
    let from = version(&start);
    let (clock, ids) = (Instant::now(), Arc::new(AtomicU64::new(1)));
    let mut writers = Vec::new();
    for index in 0..WRITERS {
        let writer = Writer {
            client: client(config, &servers[index % servers.len()]),
            clock,
            ids: ids.clone(),
            seed: Seed::new(index as u64),
            known: Vec::new(),
            records: Records::default(),
        };
        writers.push(tokio::spawn(writer.run(stop.clone())));
    }
    let watchers: Vec<_> = (0..servers.len())
        .map(|index| {
            let mut order = servers.to_vec();
            order.rotate_left(index);
            tokio::spawn(watch(config.clone(), order, from))
        })
        .collect();
    let prober = tokio::spawn(probe(all.clone(), stop.clone()));
    let mut records = Records::default();
    for writer in writers {
        let more = writer.await.expect("a writer");
        records.calls.extend(more.calls);
        records.versions.extend(more.versions);
        records.lists.extend(more.lists);
    }
    (records.silences, records.answers) = prober.await.expect("the prober");
    // All that was before has been seen by whoever has seen this.
    let begun = Instant::now();
    let last = json!({ "metadata": { "name": LAST } });
    while let Err(error) = all.create(&kinds::CONFIG_MAP, NAMESPACE, &last).await {
        assert!(begun.elapsed() < PATIENCE && !error.is_conflict(), "{error}");
        tokio::time::sleep(PACE).await;
    }
    for watcher in watchers {
        let watched = tokio::time::timeout(PATIENCE, watcher).await;
        records.watchers.push(watched.expect("each sees the last write").expect("a watcher"));
    }
    records
}

/// Reads without end as one who knows all servers; when it had no answer, and how many answers.
async fn probe(client: Client, stop: Arc<AtomicBool>) -> (Vec<(Instant, Instant)>, u64) {
    let (mut last, mut silences, mut answers) = (Instant::now(), Vec::new(), 0);
    while !stop.load(Ordering::Acquire) {
        let options = ListOptions::default();
        let list = client.list(&kinds::NAMESPACE, "", &options);
        if let Ok(Ok(_)) = tokio::time::timeout(ANSWER, list).await {
            silences.push((last, Instant::now()));
            last = Instant::now();
            answers += 1;
        }
        tokio::time::sleep(PACE).await;
    }
    (silences, answers)
}

fn version(object: &Value) -> u64 {
    mainstay_api::object::resource_version(object).parse().expect("a number")
}

fn id(object: &Value) -> Option<u64> {
    object["data"]["id"].as_str()?.parse().ok()
}

fn map(key: &str, id: u64, version: Option<&str>) -> Value {
    let mut map = json!({ "metadata": { "name": key }, "data": { "id": id.to_string() } });
    if let Some(version) = version {
        map["metadata"]["resourceVersion"] = version.into();
    }
    map
}

struct Writer {
    client: Client,
    clock: Instant,
    ids: Arc<AtomicU64>,
    seed: Seed,
    /// The last that it knows of each key: the write's number and the resourceVersion.
    known: Vec<Option<(u64, String)>>,
    records: Records,
}

/// How a call ended.
enum End {
    Done(Value),
    /// The object was not so.
    Refused,
    /// The object is not there.
    Missing,
    /// It was not even begun.
    NotBegun,
    InDoubt,
}

async fn end(call: impl Future<Output = Result<Value, Error>>) -> End {
    match tokio::time::timeout(ANSWER, call).await {
        Err(_) => End::InDoubt,
        Ok(Ok(value)) => End::Done(value),
        Ok(Err(Error::Connect { .. })) => End::NotBegun,
        Ok(Err(error)) if error.is_of_silent_store() => End::NotBegun,
        Ok(Err(error)) => match error.code() {
            Some(404) => End::Missing,
            Some(409) => End::Refused,
            Some(401 | 403 | 410 | 429) => End::NotBegun,
            _ => End::InDoubt,
        },
    }
}

impl Writer {
    fn now(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_nanos()).expect("soon")
    }

    async fn run(mut self, stop: Arc<AtomicBool>) -> Records {
        self.known = vec![None; usize::try_from(KEYS).expect("few")];
        while !stop.load(Ordering::Acquire) {
            let key = self.seed.index(self.known.len());
            match self.seed.below(20) {
                0..8 => self.read(key).await,
                8..15 => self.swap(key).await,
                15..17 => self.create(key).await,
                17 => self.remove(key).await,
                _ => self.list().await,
            }
            tokio::time::sleep(PACE).await;
        }
        self.records
    }

    fn note(&mut self, key: usize, begun: u64, action: Action, object: Option<&Value>) {
        let (name, ended) = (format!("key-{key}"), self.now());
        let call = Call { begun, ended, action };
        if let Some(object) = object {
            self.records.versions.push((call, name.clone(), version(object)));
        }
        self.records.calls.push((name, call));
    }

    fn learn(&mut self, key: usize, object: &Value) {
        let version = mainstay_api::object::resource_version(object).to_owned();
        self.known[key] = id(object).map(|id| (id, version));
    }

    async fn read(&mut self, key: usize) {
        let (client, begun) = (self.client.clone(), self.now());
        match end(client.get(&kinds::CONFIG_MAP, NAMESPACE, &format!("key-{key}"))).await {
            End::Done(object) => {
                self.note(key, begun, Action::Read { found: id(&object) }, Some(&object));
                self.learn(key, &object);
            }
            End::Missing => {
                self.note(key, begun, Action::Read { found: None }, None);
                self.known[key] = None;
            }
            _ => {}
        }
    }

    async fn create(&mut self, key: usize) {
        let (client, begun, id) = (self.client.clone(), self.now(), self.ids.fetch_add(1, Ordering::Relaxed));
        let object = map(&format!("key-{key}"), id, None);
        let done = match end(client.create(&kinds::CONFIG_MAP, NAMESPACE, &object)).await {
            End::Done(object) => {
                self.note(key, begun, Action::Create { id, done: Some(true) }, Some(&object));
                return self.learn(key, &object);
            }
            End::Refused => Some(false),
            End::InDoubt => None,
            End::Missing | End::NotBegun => return,
        };
        self.note(key, begun, Action::Create { id, done }, None);
    }

    async fn swap(&mut self, key: usize) {
        let Some((from, version)) = self.known[key].clone() else { return self.read(key).await };
        let (client, begun, id) = (self.client.clone(), self.now(), self.ids.fetch_add(1, Ordering::Relaxed));
        let name = format!("key-{key}");
        let object = map(&name, id, Some(&version));
        let done = match end(client.update(&kinds::CONFIG_MAP, NAMESPACE, &name, "", &object)).await {
            End::Done(object) => {
                self.note(key, begun, Action::Swap { from, id, done: Some(true) }, Some(&object));
                return self.learn(key, &object);
            }
            End::Refused | End::Missing => Some(false),
            End::InDoubt => None,
            End::NotBegun => return,
        };
        self.known[key] = None;
        self.note(key, begun, Action::Swap { from, id, done }, None);
    }

    async fn remove(&mut self, key: usize) {
        let Some((from, version)) = self.known[key].take() else { return self.read(key).await };
        let (client, begun) = (self.client.clone(), self.now());
        let options = json!({ "preconditions": { "resourceVersion": version } });
        let done = match end(client.delete(&kinds::CONFIG_MAP, NAMESPACE, &format!("key-{key}"), &options)).await {
            End::Done(_) => Some(true),
            End::Refused | End::Missing => Some(false),
            End::InDoubt => None,
            End::NotBegun => return,
        };
        self.note(key, begun, Action::Remove { from, done }, None);
    }

    async fn list(&mut self) {
        let (client, begun, options) = (self.client.clone(), self.now(), ListOptions::default());
        let End::Done(list) = end(client.list(&kinds::CONFIG_MAP, NAMESPACE, &options)).await else { return };
        self.records.lists.push((begun, version(&list)));
        let items = list["items"].as_array().cloned().unwrap_or_default();
        for key in 0..self.known.len() {
            let name = format!("key-{key}");
            let object = items.iter().find(|item| mainstay_api::object::name(item) == name);
            self.note(key, begun, Action::Read { found: object.and_then(id) }, object);
        }
    }
}

/// Watches, by whichever server answers, until it sees the last write.
async fn watch(config: Config, servers: Vec<String>, from: u64) -> Watched {
    let clients: Vec<Client> = servers.iter().map(|server| client(&config, server)).collect();
    let mut watched = Watched { from, ..Watched::default() };
    let mut at = from;
    for turn in 0.. {
        let client = &clients[turn % clients.len()];
        let options = ListOptions { resource_version: at.to_string(), ..ListOptions::default() };
        let begun = tokio::time::timeout(ANSWER, client.watch(&kinds::CONFIG_MAP, NAMESPACE, &options)).await;
        let ended = match begun {
            Ok(Ok(watching)) => follow(watching, &mut watched, &mut at).await,
            Ok(Err(error)) => Err(error),
            Err(_) => Ok(false),
        };
        match ended {
            Ok(true) => return watched,
            Err(error) if error.is_expired() => {
                if let End::Done(list) = end(client.list(&kinds::CONFIG_MAP, NAMESPACE, &ListOptions::default())).await
                {
                    watched.gaps.push((at, version(&list)));
                    at = version(&list);
                    let items = list["items"].as_array().cloned().unwrap_or_default();
                    if items.iter().any(|item| mainstay_api::object::name(item) == LAST) {
                        return watched;
                    }
                }
            }
            _ => {}
        }
        tokio::time::sleep(PACE).await;
    }
    watched
}

/// Until the watch ends; whether it has shown the last write.
async fn follow(mut watching: Watching, watched: &mut Watched, at: &mut u64) -> Result<bool, Error> {
    while let Some(event) = watching.next().await? {
        let (object, is_gone) = match &event {
            WatchEvent::Put(object) => (object, false),
            WatchEvent::Gone(object) => (object, true),
            WatchEvent::Bookmark(version) => {
                *at = version.parse().expect("a number");
                continue;
            }
        };
        let name = mainstay_api::object::name(object).to_owned();
        *at = version(object);
        if name == LAST {
            return Ok(true);
        }
        if name.starts_with("key-") {
            watched.events.push((name, *at, id(object).filter(|_| !is_gone)));
        }
    }
    Ok(false)
}
