//! The pipeline on an inline store, with a clock and randomness of the test's own.

mod admission;
mod delete;
mod eviction;
mod quota;
mod security;
mod watch;
mod write;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use jiff::Timestamp;
use mainstay_api::{Kind, Status, kinds};
use mainstay_store::limits::TxnLimits;
use mainstay_store::{Options, Source, Store};
use serde_json::{Value, json};

use super::*;
use crate::backends::Slices;
use crate::dynamic::Hooks;

/// A cluster with the namespace `default`, and its clock.
pub struct Cluster {
    pub api: Api,
    pub seconds: Arc<AtomicI64>,
}

impl Cluster {
    pub fn new() -> Self {
        Self::within(TxnLimits::EMBEDDED)
    }

    /// One whose transactions hold no more than this.
    pub fn within(txn: TxnLimits) -> Self {
        let store = Store::open(
            Source::backend(redb::backends::InMemoryBackend::new()),
            Options { index: Some(crate::api::key::PODS_BY_NODE), txn, ..Options::inline() },
        )
        .expect("an empty store");
        let seconds = Arc::new(AtomicI64::new(1_800_000_000));
        let (clock, state) = (seconds.clone(), AtomicU64::new(1));
        let env = Env {
            now: Box::new(move || Timestamp::from_second(clock.load(Ordering::Relaxed)).expect("in range")),
            random: Box::new(move |bytes| {
                for byte in bytes {
                    let next = state.load(Ordering::Relaxed).wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    state.store(next, Ordering::Relaxed);
                    *byte = next.to_be_bytes()[0];
                }
            }),
        };
        let settings = Settings {
            service_cidr: Cidr::parse("10.96.0.0/27").expect("a range"),
            cluster_cidr: Cidr::parse("10.244.0.0/16").expect("a range"),
            ca_pem: "CA".into(),
        };
        let cluster = Self {
            api: Api {
                allocated: Allocated::of(&store),
                hooks: Hooks::of(&store),
                requests: crate::credentials::Open::of(&store),
                converters: Default::default(),
                slices: Slices::of(&store),
                served: Served::of(&store),
                store,
                env: Arc::new(env),
                settings: Arc::new(settings),
                term: None,
            },
            seconds,
        };
        cluster.create(&kinds::NAMESPACE, json!({ "metadata": { "name": "default" } })).expect("created");
        cluster
    }

    pub fn write(&self, verb: impl Fn(&mut Batch<'_>) -> Result<Outcome, Status>) -> Result<Value, Status> {
        let reply = self.api.write_now(false, verb)?;
        Ok(serde_json::from_slice(&reply.body).expect("an answer is JSON"))
    }

    pub fn create(&self, kind: &Kind, object: Value) -> Result<Value, Status> {
        let namespace = if kind.namespaced { "default" } else { "" };
        self.write(|batch| create(batch, kind, namespace, object.clone()))
    }

    pub fn get(&self, kind: &Kind, name: &str) -> Option<Value> {
        let namespace = if kind.namespaced { "default" } else { "" };
        self.api.batch().get(kind, namespace, name).expect("readable")
    }

    pub fn update(&self, kind: &Kind, name: &str, object: Value) -> Result<Value, Status> {
        let namespace = if kind.namespaced { "default" } else { "" };
        self.write(|batch| update(batch, kind, namespace, name, Part::Main, object.clone()))
    }

    pub fn merge(&self, kind: &Kind, name: &str, part: Part, change: Value) -> Result<Value, Status> {
        let namespace = if kind.namespaced { "default" } else { "" };
        self.write(|batch| {
            patch(batch, kind, namespace, name, part, &|old| {
                let mut new = old.clone();
                merge_patch(&mut new, change.clone());
                Ok(new)
            })
        })
    }

    pub fn delete(&self, kind: &Kind, name: &str, options: &DeleteOptions) -> Result<Value, Status> {
        let namespace = if kind.namespaced { "default" } else { "" };
        self.write(|batch| delete(batch, kind, namespace, name, options))
    }
}

pub fn config_map(name: &str) -> Value {
    json!({ "metadata": { "name": name }, "data": { "a": "1" } })
}

pub fn pod(name: &str) -> Value {
    json!({ "metadata": { "name": name }, "spec": { "containers": [{ "name": "c", "image": "i" }] } })
}
