//! The volume controllers and the scheduler on the real pipeline and store: what they write is accepted, and it comes
//! to rest.

use std::sync::Arc;

use mainstay_api::{Kind, kinds};
use mainstay_logic::controllers::CONTROLLERS;
use mainstay_server::Open;
use mainstay_server::api::{self, Allocated, Api, Cidr, DeleteOptions, Env, Served, Settings};
use mainstay_server::backends::Slices;
use mainstay_server::driver::{Driver, step};
use mainstay_server::dynamic::Hooks;
use mainstay_store::{Mode, Options, Store};
use serde_json::{Value, json};

#[test]
fn a9_machines_that_join_at_the_same_time_all_get_their_ranges() {
    const AT_ONCE: usize = 100;
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), Options::default()).unwrap();
    let mut cluster = Cluster::on(store, folder);
    cluster.api.env = Arc::new(mainstay_server::system_env());
    let start = std::sync::Barrier::new(AT_ONCE);
    let make = |index: usize| {
        let node = json!({ "metadata": { "name": format!("n{index}") } });
        start.wait();
        cluster.api.write_now(false, |batch| api::create(batch, &kinds::NODE, "", node.clone())).map(|reply| {
            let node: Value = serde_json::from_slice(&reply.body).unwrap();
            node["spec"]["podCIDR"].as_str().unwrap_or_default().to_owned()
        })
    };
    let make = &make;
    let ranges: std::collections::BTreeSet<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE).map(|index| scope.spawn(move || make(index))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap().expect("a node")).collect()
    });
    assert_eq!(ranges.len(), AT_ONCE, "each has its own");
}

#[test]
fn services_that_are_made_at_the_same_time_have_addresses_and_ports_of_their_own() {
    const AT_ONCE: usize = 32;
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), Options::default()).unwrap();
    // Their randomness is the same: all find the same address first.
    let cluster = Cluster::on(store, folder);
    let namespace = json!({ "metadata": { "name": "default" } });
    cluster.api.write_now(false, |batch| api::create(batch, &kinds::NAMESPACE, "", namespace.clone())).unwrap();
    let start = std::sync::Barrier::new(AT_ONCE);
    let make = |index: usize| {
        let service = json!({ "metadata": { "name": format!("s{index}") },
            "spec": { "type": "NodePort", "ports": [{ "port": 80 }] } });
        start.wait();
        let made =
            cluster.api.write_now(false, |batch| api::create(batch, &kinds::SERVICE, "default", service.clone()));
        let made: Value = serde_json::from_slice(&made.expect("a service").body).unwrap();
        (made["spec"]["clusterIP"].to_string(), made["spec"]["ports"][0]["nodePort"].to_string())
    };
    let make = &make;
    let made: Vec<(String, String)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE).map(|index| scope.spawn(move || make(index))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let addresses: std::collections::BTreeSet<&String> = made.iter().map(|(address, _)| address).collect();
    let ports: std::collections::BTreeSet<&String> = made.iter().map(|(_, port)| port).collect();
    assert_eq!((addresses.len(), ports.len()), (AT_ONCE, AT_ONCE));
}

struct Cluster {
    api: Api,
    _folder: tempfile::TempDir,
}

impl Cluster {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), Options { mode: Mode::Inline, ..Options::default() }).unwrap();
        Self::on(store, folder)
    }

    fn on(store: Store, folder: tempfile::TempDir) -> Self {
        let env =
            Env { now: Box::new(|| "2026-01-01T00:00:00Z".parse().unwrap()), random: Box::new(|bytes| bytes.fill(7)) };
        let settings = Settings {
            service_cidr: Cidr::parse("10.96.0.0/16").unwrap(),
            cluster_cidr: Cidr::parse("10.244.0.0/16").unwrap(),
            ca_pem: String::new(),
        };
        Self {
            api: Api {
                allocated: Allocated::of(&store),
                hooks: Hooks::of(&store),
                requests: Open::of(&store),
                converters: Default::default(),
                slices: Slices::of(&store),
                served: Served::of(&store),
                store,
                env: Arc::new(env),
                settings: Arc::new(settings),
                term: None,
            },
            _folder: folder,
        }
    }

    fn create(&self, kind: &Kind, namespace: &str, object: Value) {
        let mut batch = self.api.batch();
        api::create(&mut batch, kind, namespace, object.clone()).unwrap_or_else(|status| panic!("{status} {object}"));
        self.api.store.commit_blocking(batch.into_txn()).unwrap();
    }

    fn status(&self, kind: &Kind, name: &str, status: Value) {
        let mut batch = self.api.batch();
        let change = |old: &Value| {
            let mut new = old.clone();
            new["status"] = status.clone();
            Ok(new)
        };
        api::patch(&mut batch, kind, "", name, api::Part::Status, &change).unwrap();
        self.api.store.commit_blocking(batch.into_txn()).unwrap();
    }

    fn delete(&self, kind: &Kind, namespace: &str, name: &str) {
        let mut batch = self.api.batch();
        api::delete(&mut batch, kind, namespace, name, &DeleteOptions { grace: Some(0), ..DeleteOptions::default() })
            .unwrap();
        self.api.store.commit_blocking(batch.into_txn()).unwrap();
    }

    fn get(&self, kind: &Kind, namespace: &str, name: &str) -> Value {
        self.api.batch().get(kind, namespace, name).unwrap().unwrap_or(Value::Null)
    }

    /// Runs all controllers until none has anything to do.
    fn settle(&self) {
        let mut driver = Driver::new(CONTROLLERS);
        let now = self.api.now();
        let mut watcher = driver.load(&self.api.store, now).unwrap();
        for _ in 0..1000 {
            if !step(&self.api, &mut driver, &mut watcher, now).unwrap() {
                return;
            }
        }
        panic!("does not come to rest: {:?}", driver.waiting().collect::<Vec<_>>());
    }
}

#[test]
fn a_claim_is_provisioned_used_and_reclaimed_through_the_real_pipeline() {
    let cluster = Cluster::new();
    cluster.create(&kinds::NAMESPACE, "", json!({"metadata": {"name": "default"}}));
    cluster.create(
        &kinds::STORAGE_CLASS,
        "",
        json!({"metadata": {"name": "fast"}, "provisioner": "mainstay.io/local-path",
            "volumeBindingMode": "WaitForFirstConsumer",
            "reclaimPolicy": "Delete"}),
    );
    cluster.create(
        &kinds::NODE,
        "",
        json!({"metadata": {"name": "n1", "labels": {"kubernetes.io/hostname": "n1"},
            "annotations": {"mainstay.io/volume-root": "/v"}}}),
    );
    let ready = json!({"allocatable": {"cpu": "2", "memory": "2Gi", "pods": "10"},
        "conditions": [{"type": "Ready", "status": "True"}]});
    cluster.status(&kinds::NODE, "n1", ready);
    cluster.create(
        &kinds::PERSISTENT_VOLUME_CLAIM,
        "default",
        json!({"metadata": {"name": "data"}, "spec": {"storageClassName": "fast", "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}}),
    );
    cluster.create(
        &kinds::SERVICE,
        "default",
        json!({"metadata": {"name": "web"}, "spec": {"clusterIP": "None", "selector": {"app": "web"},
            "ports": [{"name": "http", "port": 80}]}}),
    );
    cluster.create(
        &kinds::POD,
        "default",
        json!({"metadata": {"name": "web-0", "labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": "x"}],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]}}),
    );
    cluster.settle();
    assert_eq!(cluster.get(&kinds::POD, "default", "web-0")["spec"]["nodeName"], "n1");
    let claim = cluster.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "data");
    assert_eq!((&claim["status"]["phase"], &claim["status"]["capacity"]["storage"]), (&json!("Bound"), &json!("1Gi")));
    let volume = claim["spec"]["volumeName"].as_str().unwrap();
    assert_eq!(cluster.get(&kinds::PERSISTENT_VOLUME, "", volume)["status"]["phase"], "Bound");
    assert_eq!(cluster.get(&kinds::ENDPOINTS, "default", "web")["metadata"]["name"], "web");

    // V2: the claim stays while the pod is there; then the volume goes, but for the node's part.
    cluster.delete(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "data");
    cluster.settle();
    assert_eq!(cluster.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "data")["status"]["phase"], "Bound");
    cluster.delete(&kinds::POD, "default", "web-0");
    cluster.settle();
    assert!(cluster.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "data").is_null());
    let volume = cluster.get(&kinds::PERSISTENT_VOLUME, "", volume);
    assert_eq!(volume["metadata"]["finalizers"], json!(["mainstay.io/local-path"]));
    assert!(volume["metadata"]["deletionTimestamp"].is_string());
}
