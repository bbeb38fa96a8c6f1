//! How fast pods are placed, without sockets: the real pipeline, store, decisions and the driver's own loop
//! ([`run`]), in one process.
//!
//! `cargo run --release -p mainstay-sim --example scale [NODES [PODS [plain|apart|claims|sets|ordered]]]` prints, as
//! JSON, how many pods a second were placed, all in all, of the first thousand and of the last tenth; what memory each
//! took; what it takes to load it all anew; and how long an event takes to one node's watch, with few of them and with
//! one of each node. Who makes the pods is at most two thousand ahead of who places them, and never behind, so that
//! what is measured is placing; the first thousand counts from its creation. A set counts from its creation until all
//! of its pods are bound (`ordered`: and each ready before the next), and the next set comes after it.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use mainstay_api::{kinds, object};
use mainstay_server::Open;
use mainstay_server::api::{self, Allocated, Api, Cidr, Env, Part, Query, Selection, Served, Settings, Watch, key};
use mainstay_server::backends::Slices;
use mainstay_server::driver::{Driver, run};
use mainstay_server::dynamic::Hooks;
use mainstay_store::{Options, Source, Store, Watcher};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// Pods that are placed before the clock is looked at; those of a set.
const ROUND: usize = 1000;
/// So many are made before they are placed.
const AHEAD: usize = 2 * ROUND;
/// Pods that are made in one transaction.
const TOGETHER: usize = 100;
/// How long a round may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often what is bound is looked at.
const LOOK: Duration = Duration::from_millis(1);
/// Events whose way to a watch is measured.
const EVENTS: usize = 500;

/// What the pods are like.
#[derive(Clone, Copy, PartialEq)]
enum Sort {
    Plain,
    Apart,
    Claims,
    Sets,
    Ordered,
}

impl Sort {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "plain" => Self::Plain,
            "apart" => Self::Apart,
            "claims" => Self::Claims,
            "sets" => Self::Sets,
            "ordered" => Self::Ordered,
            _ => return None,
        })
    }

    fn is_set(self) -> bool {
        matches!(self, Self::Sets | Self::Ordered)
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize, or: usize| args.get(index).and_then(|text| text.parse().ok()).unwrap_or(or);
    let (nodes, pods) = (number(0, 100), number(1, 10_000));
    let sort =
        args.get(2).map_or(Some(Sort::Plain), |text| Sort::parse(text)).expect("plain, apart, claims, sets or ordered");
    let folder = std::env::temp_dir().join(format!("mainstay-scale-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let api = cluster(&folder);
    (0..nodes).for_each(|index| make_node(&api, index, pods / nodes.max(1) * 2 + 10));
    let running = Running::begin(&api);
    let mut hollow = Hollow::new(&api, sort.is_set());
    let before = memory();
    let sizes: Vec<usize> = (0..pods.div_ceil(ROUND)).map(|round| ROUND.min(pods - round * ROUND)).collect();
    let (placed, mut rounds, mut begun) = (AtomicUsize::new(0), Vec::new(), Instant::now());
    std::thread::scope(|scope| {
        if !sort.is_set() {
            scope.spawn(|| make_all(&api, &sizes, sort, &placed));
        }
        for (round, many) in sizes.iter().enumerate() {
            if sort.is_set() {
                make_set(&api, round, *many, sort);
            }
            // Who makes them is ahead: some of the next are bound already.
            let until = sizes.iter().take(round + 1).sum();
            hollow.wait(&api, until, &placed);
            rounds.push(begun.elapsed());
            begun = Instant::now();
        }
    });
    let grown = memory().saturating_sub(before);
    let rate = |from: usize, to: usize| {
        let time: Duration = rounds.get(from..to).into_iter().flatten().sum();
        (sizes.get(from..to).into_iter().flatten().sum::<usize>() as f64 / time.as_secs_f64()).round()
    };
    let last = rounds.len() - rounds.len().div_ceil(10);
    let few = latency(&api, 1, nodes);
    let every = latency(&api, nodes, nodes);
    drop((running, hollow));
    let begun = Instant::now();
    let mut driver = Driver::new(mainstay_logic::controllers::CONTROLLERS);
    drop(driver.load(&api.store, api.now()).expect("loaded"));
    let load = begun.elapsed();
    let micros = |time: Duration| time.as_micros();
    let report = json!({
        "first": rate(0, 1), "last": rate(last, rounds.len()), "all": rate(0, rounds.len()),
        "bytes_per_pod": grown / pods.max(1) as u64,
        "load_ms": load.as_millis(), "event_us_one_watch": few.map(micros), "event_us_all_nodes": every.map(micros),
    });
    println!("{report}");
    drop((driver, api));
    let _ = std::fs::remove_dir_all(&folder);
}

/// The driver as it runs in a server.
struct Running {
    stop: watch::Sender<bool>,
    /// Its drop ends what runs in it.
    _runtime: Runtime,
}

impl Running {
    fn begin(api: &Api) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_time().build().expect("a runtime");
        let (stop, stopped) = watch::channel(false);
        let (undecodable, measured) = (watch::channel(Vec::new()).0, watch::channel(Arc::default()).1);
        let controllers = mainstay_logic::controllers::CONTROLLERS;
        runtime.spawn(run(api.clone(), controllers, undecodable, Arc::default(), measured, stopped));
        Self { stop, _runtime: runtime }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
    }
}

/// What is looked at of a pod: its name, and its node.
#[derive(serde::Deserialize)]
struct Seen<'a> {
    #[serde(borrow)]
    metadata: Named<'a>,
    #[serde(borrow)]
    spec: Placed<'a>,
}

#[derive(serde::Deserialize)]
struct Named<'a> {
    name: Cow<'a, str>,
}

#[derive(serde::Deserialize)]
struct Placed<'a> {
    #[serde(borrow, default, rename = "nodeName")]
    node_name: Cow<'a, str>,
}

/// All nodes: what is bound is counted, and in sets it runs at once.
struct Hollow {
    watcher: Watcher,
    is_run: bool,
    bound: BTreeSet<String>,
}

impl Hollow {
    fn new(api: &Api, is_run: bool) -> Self {
        let watcher = api.store.watch(key::prefix(&kinds::POD, None), api.store.revision()).expect("a watch");
        Self { watcher, is_run, bound: BTreeSet::new() }
    }

    /// Until so many are bound, all in all; how many are is told as they come.
    fn wait(&mut self, api: &Api, most: usize, placed: &AtomicUsize) {
        let begun = Instant::now();
        while self.bound.len() < most {
            assert!(begun.elapsed() < PATIENCE, "{} pods are not placed: {}", most - self.bound.len(), unplaced(api));
            let mut fresh = Vec::new();
            while let Some(event) = self.watcher.try_next().expect("in time") {
                let pod: Seen<'_> = serde_json::from_slice(&event.value).expect("JSON");
                let is_bound = !event.deleted && !pod.spec.node_name.is_empty();
                if is_bound && self.bound.insert(pod.metadata.name.clone().into_owned()) {
                    fresh.push(pod.metadata.name.into_owned());
                }
            }
            placed.store(self.bound.len(), Ordering::Release);
            if fresh.is_empty() {
                std::thread::sleep(LOOK);
            } else if self.is_run {
                Self::run(api, &fresh);
            }
        }
    }

    fn run(api: &Api, fresh: &[String]) {
        let ready = json!([{ "type": "Ready", "status": "True" }]);
        let status = json!({ "status": { "phase": "Running", "conditions": ready } });
        for names in fresh.chunks(TOGETHER) {
            let run = |batch: &mut api::Batch<'_>| {
                let all = names.iter().map(|name| patch(batch, &kinds::POD, "default", name, &status));
                all.last().unwrap_or_else(|| Err(mainstay_api::Status::internal("nothing to run")))
            };
            // Somebody else may have written to one of them meanwhile.
            while let Err(status) = api.write_now(false, run) {
                assert_eq!(status.code, 409, "{}", status.message);
            }
        }
    }
}

fn patch_status(api: &Api, kind: &mainstay_api::Kind, namespace: &str, name: &str, status: &Value) {
    api.write_now(false, |batch| patch(batch, kind, namespace, name, status)).expect("patched");
}

fn patch(
    batch: &mut api::Batch<'_>,
    kind: &mainstay_api::Kind,
    namespace: &str,
    name: &str,
    status: &Value,
) -> Result<api::Outcome, mainstay_api::Status> {
    let change = |old: &Value| {
        let mut new = old.clone();
        api::merge_patch(&mut new, status.clone());
        Ok(new)
    };
    api::patch(batch, kind, namespace, name, Part::Status, &change)
}

/// How long an event takes from the begin of its commit until the one node's watch has it, with so many nodes' watches
/// open: the median and the 99th of a hundred.
fn latency(api: &Api, watches: usize, nodes: usize) -> [Duration; 2] {
    struct Woken(AtomicBool);
    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Release);
        }
    }
    let revision = api.store.revision().to_string();
    let open = |index: usize| {
        let fields = [("fieldSelector", format!("spec.nodeName=n{index:05}")), ("resourceVersion", revision.clone())];
        let query: Query = fields.map(|(name, value)| (name.to_owned(), value)).into();
        let watch = Watch::open(&api.store, Selection::new(&kinds::POD, "", &query).expect("valid"), &query);
        let woken = Arc::new(Woken(AtomicBool::new(false)));
        (watch.expect("a watch"), Waker::from(woken.clone()), woken)
    };
    let mut all: Vec<_> = (0..watches.min(nodes)).map(open).collect();
    for (watch, waker, _) in &mut all {
        assert!(watch.poll_next(&mut Context::from_waker(waker)).is_pending());
    }
    let bound = api.store.found(b"/core/pods/", &"n00000".into(), usize::MAX).expect("an index");
    let pod: Value =
        serde_json::from_slice(&bound.entries.first().expect("a pod on the first node").value).expect("JSON");
    let mut times: Vec<Duration> = (0..EVENTS)
        .map(|round| {
            let begun = Instant::now();
            let patch = json!({ "status": { "message": round.to_string() } });
            patch_status(api, &kinds::POD, "default", object::name(&pod), &patch);
            // Everybody who was woken looks, in a runtime too.
            loop {
                let mut seen = false;
                for (watch, waker, _) in all.iter_mut().filter(|(_, _, woken)| woken.0.swap(false, Ordering::AcqRel)) {
                    seen |= matches!(watch.poll_next(&mut Context::from_waker(waker)), Poll::Ready(Some(_)));
                    assert!(watch.poll_next(&mut Context::from_waker(waker)).is_pending());
                }
                if seen {
                    return begun.elapsed();
                }
                // An answer waits for no watcher: they are woken after it.
                assert!(begun.elapsed() < Duration::from_secs(5), "the node's watch has it");
                std::thread::yield_now();
            }
        })
        .collect();
    times.sort_unstable();
    [times[EVENTS / 2], times[EVENTS * 99 / 100]]
}

/// This process's resident memory, in bytes.
fn memory() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn cluster(folder: &std::path::Path) -> Api {
    let options = Options { index: Some(key::PODS_BY_NODE), ..Options::default() };
    let store = Store::open(Source::from(folder), options).expect("a store");
    let (state, begun) = (AtomicU64::new(1), Timestamp::now());
    let env = Env {
        // Slower than the wall's: nobody renews the nodes' Leases, and none is to be taken for silent.
        now: Box::new(move || begun + (Timestamp::now().duration_since(begun) / 10)),
        random: Box::new(move |bytes| {
            for byte in bytes {
                let next = state.load(Ordering::Relaxed).wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                state.store(next, Ordering::Relaxed);
                *byte = next.to_be_bytes()[0];
            }
        }),
    };
    let service_cidr = Cidr::parse("10.96.0.0/16").expect("a range");
    let cluster_cidr = Cidr::parse("10.0.0.0/11").expect("a range");
    let api = Api {
        allocated: Allocated::of(&store),
        hooks: Hooks::of(&store),
        requests: Open::of(&store),
        converters: Default::default(),
        slices: Slices::of(&store),
        served: Served::of(&store),
        store,
        env: Arc::new(env),
        settings: Arc::new(Settings { service_cidr, cluster_cidr, ca_pem: "CA".into() }),
        term: None,
    };
    make(&api, &kinds::NAMESPACE, "", json!({ "metadata": { "name": "default" } }));
    let class = json!({ "metadata": { "name": "local" }, "provisioner": "mainstay.io/local-path",
        "volumeBindingMode": "WaitForFirstConsumer" });
    make(&api, &kinds::STORAGE_CLASS, "", class);
    api
}

fn make(api: &Api, kind: &mainstay_api::Kind, namespace: &str, object: Value) {
    api.write_now(false, |batch| api::create(batch, kind, namespace, object.clone())).expect("created");
}

fn make_node(api: &Api, index: usize, room: usize) {
    let name = format!("n{index:05}");
    let metadata = json!({ "name": name, "labels": { "kubernetes.io/hostname": name },
        "annotations": { "mainstay.io/volume-root": "/volumes" } });
    make(api, &kinds::NODE, "", json!({ "metadata": metadata }));
    let amounts = json!({ "cpu": "10000", "memory": "100Ti", "pods": room.to_string() });
    let status = json!({ "status": { "capacity": amounts, "allocatable": amounts,
        "conditions": [{ "type": "Ready", "status": "True" }] } });
    patch_status(api, &kinds::NODE, "", &name, &status);
}

fn make_set(api: &Api, round: usize, replicas: usize, sort: Sort) {
    let (name, app) = (format!("s{round}"), json!({ "app": format!("s{round}") }));
    let policy = if sort == Sort::Ordered { "OrderedReady" } else { "Parallel" };
    let container = json!({ "name": "c", "image": "i",
        "resources": { "requests": { "cpu": "100m", "memory": "64Mi" } } });
    let spec = json!({ "replicas": replicas, "serviceName": name, "podManagementPolicy": policy,
        "selector": { "matchLabels": app },
        "template": { "metadata": { "labels": app }, "spec": { "containers": [container] } } });
    make(api, &kinds::STATEFUL_SET, "default", json!({ "metadata": { "name": name }, "spec": spec }));
}

/// How many pods have no node, and what is known of the first.
fn unplaced(api: &Api) -> String {
    let found = api.store.found(b"/core/pods/", &"".into(), usize::MAX).expect("an index");
    let first = found.entries.first().map(|entry| String::from_utf8_lossy(&entry.value).into_owned());
    format!("{} in the store; {}", found.entries.len(), first.unwrap_or_default())
}

/// Makes all pods, a little ahead of who places them.
fn make_all(api: &Api, sizes: &[usize], sort: Sort, placed: &AtomicUsize) {
    let (mut made, mut asked) = (0, Instant::now());
    for (round, many) in sizes.iter().enumerate() {
        let names: Vec<String> = (0..*many).map(|index| format!("p{round}-{index}")).collect();
        for names in names.chunks(TOGETHER) {
            while made + names.len() > placed.load(Ordering::Acquire) + AHEAD {
                assert!(asked.elapsed() < PATIENCE, "no pods are placed");
                std::thread::sleep(LOOK);
            }
            make_pods(api, names, sort, round);
            (made, asked) = (made + names.len(), Instant::now());
        }
    }
}

fn make_pods(api: &Api, names: &[String], sort: Sort, round: usize) {
    let create = |batch: &mut api::Batch<'_>| {
        let mut last = None;
        for object in names.iter().flat_map(|name| pod(name, sort, round)) {
            let kind = if object["kind"] == "Pod" { &kinds::POD } else { &kinds::PERSISTENT_VOLUME_CLAIM };
            last = Some(api::create(batch, kind, "default", object)?);
        }
        last.ok_or_else(|| mainstay_api::Status::internal("nothing to make"))
    };
    api.write_now(false, create).expect("created");
}

/// A pod, and what has to be there before it.
fn pod(name: &str, sort: Sort, round: usize) -> Vec<Value> {
    let mut made = Vec::new();
    let mut spec = json!({ "containers": [{ "name": "c", "image": "i",
        "resources": { "requests": { "cpu": "100m", "memory": "64Mi" } } }] });
    let group = format!("g{round}-{}", name.len());
    if sort == Sort::Apart {
        let term = json!([{ "topologyKey": "kubernetes.io/hostname",
            "labelSelector": { "matchLabels": { "app": format!("{group}-{}",
                name.get(name.len() - 1..).unwrap_or("")) } } }]);
        spec["affinity"] = json!({ "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": term } });
    }
    if sort == Sort::Claims {
        made.push(json!({ "kind": "PersistentVolumeClaim", "apiVersion": "v1", "metadata": { "name": name },
            "spec": { "accessModes": ["ReadWriteOnce"],
            "storageClassName": "local", "resources": { "requests": { "storage": "1Gi" } } } }));
        spec["volumes"] = json!([{ "name": "data", "persistentVolumeClaim": { "claimName": name } }]);
    }
    let app = format!("{group}-{}", name.get(name.len() - 1..).unwrap_or(""));
    made.push(json!({ "kind": "Pod", "apiVersion": "v1", "metadata": { "name": name, "labels": { "app": app } },
        "spec": spec }));
    made
}
