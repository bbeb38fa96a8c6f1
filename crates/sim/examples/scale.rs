//! How fast pods are placed, without sockets: the real pipeline, store, driver and decisions, in one process.
//!
//! `cargo run --release -p mainstay-sim --example scale [NODES [PODS [plain|apart|claims]]]` prints what the first and
//! the last thousand pods cost, from being stored to being bound.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use mainstay_api::kinds;
use mainstay_server::api::{self, Api, Cidr, Env, Part, Served, Settings};
use mainstay_server::driver::{Driver, step};
use mainstay_server::dynamic::Hooks;
use mainstay_store::{Options, Source, Store};
use serde_json::{Value, json};

/// Pods that are made and placed before the clock is looked at.
const ROUND: usize = 1000;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize, or: usize| args.get(index).and_then(|text| text.parse().ok()).unwrap_or(or);
    let (nodes, pods) = (number(0, 100), number(1, 10_000));
    let sort = args.get(2).map_or("plain", String::as_str);
    let folder = std::env::temp_dir().join(format!("mainstay-scale-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let api = cluster(&folder);
    (0..nodes).for_each(|index| make_node(&api, index, pods / nodes.max(1) * 2 + 10));
    let mut driver = Driver::new(mainstay_logic::controllers::CONTROLLERS);
    let mut watcher = driver.load(&api.store, api.now()).expect("loaded");
    while step(&api, &mut driver, &mut watcher, api.now()).expect("in step") {}
    let mut rounds = Vec::new();
    for round in 0..pods.div_ceil(ROUND) {
        let names: Vec<String> =
            (0..ROUND.min(pods - round * ROUND)).map(|index| format!("p{round}-{index}")).collect();
        names.iter().for_each(|name| make_pod(&api, name, sort, round));
        let begun = Instant::now();
        while step(&api, &mut driver, &mut watcher, api.now()).expect("in step") {}
        rounds.push(begun.elapsed());
        let placed = |name: &String| {
            let pod = api.batch().get(&kinds::POD, "default", name).expect("readable").unwrap_or_default();
            pod["spec"]["nodeName"].is_string()
        };
        let missing = names.iter().filter(|name| !placed(name)).count();
        assert_eq!(missing, 0, "pods are not placed");
    }
    let per_second = |time: &Duration| ROUND as f64 / time.as_secs_f64();
    let all: Duration = rounds.iter().sum();
    println!(
        "{sort}: {nodes} nodes, {pods} pods: first thousand {:.0} pods/s, last thousand {:.0} pods/s, all {:.0} pods/s",
        rounds.first().map_or(0.0, per_second),
        rounds.last().map_or(0.0, per_second),
        pods as f64 / all.as_secs_f64(),
    );
    drop((driver, watcher, api));
    let _ = std::fs::remove_dir_all(&folder);
}

fn cluster(folder: &std::path::Path) -> Api {
    let store = Store::open(Source::from(folder), Options::default()).expect("a store");
    let state = AtomicU64::new(1);
    let env = Env {
        now: Box::new(Timestamp::now),
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
        hooks: Hooks::of(&store),
        converters: Default::default(),
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
    let change = |old: &Value| {
        let mut new = old.clone();
        api::merge_patch(&mut new, status.clone());
        Ok(new)
    };
    api.write_now(false, |batch| api::patch(batch, &kinds::NODE, "", &name, Part::Status, &change)).expect("patched");
}

fn make_pod(api: &Api, name: &str, sort: &str, round: usize) {
    let mut spec = json!({ "containers": [{ "name": "c", "image": "i",
        "resources": { "requests": { "cpu": "100m", "memory": "64Mi" } } }] });
    let group = format!("g{round}-{}", name.len());
    if sort == "apart" {
        let term = json!([{ "topologyKey": "kubernetes.io/hostname",
            "labelSelector": { "matchLabels": { "app": format!("{group}-{}", name.get(name.len() - 1..).unwrap_or("")) } } }]);
        spec["affinity"] = json!({ "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": term } });
    }
    if sort == "claims" {
        let claim = json!({ "metadata": { "name": name }, "spec": { "accessModes": ["ReadWriteOnce"],
            "storageClassName": "local", "resources": { "requests": { "storage": "1Gi" } } } });
        make(api, &kinds::PERSISTENT_VOLUME_CLAIM, "default", claim);
        spec["volumes"] = json!([{ "name": "data", "persistentVolumeClaim": { "claimName": name } }]);
    }
    let app = format!("{group}-{}", name.get(name.len() - 1..).unwrap_or(""));
    make(api, &kinds::POD, "default", json!({ "metadata": { "name": name, "labels": { "app": app } }, "spec": spec }));
}
