//! Which Nodes say that they have an address, found without looking through them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use mainstay_api::{kinds, object};
use mainstay_store::Store;
use serde_json::Value;

use crate::api::{Follower, codec, key};

/// The addresses of all Nodes, as the store has them. No task keeps that: whoever asks takes in what has changed since.
pub struct Claimed(Mutex<Inner>);

struct Inner {
    stored: Follower,
    by: BTreeMap<Bytes, Vec<IpAddr>>,
    /// The Nodes' keys.
    of: HashMap<IpAddr, BTreeSet<Bytes>>,
}

impl Claimed {
    /// Those of a store.
    pub fn of(store: &Store) -> Self {
        let stored = Follower::new(store, key::prefix(&kinds::NODE, None));
        Self(Mutex::new(Inner { stored, by: BTreeMap::new(), of: HashMap::new() }))
    }

    /// A Node that says that it has this address, and is another than this one.
    pub fn by_another(&self, address: IpAddr, node: &str) -> Option<String> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.catch_up();
        let mut names = inner.of.get(&address)?.iter().filter_map(|key| key::name_in(key));
        names.find(|name| *name != node).map(str::to_owned)
    }
}

impl Inner {
    fn catch_up(&mut self) {
        let rows = match self.stored.rows(&self.by) {
            Ok(rows) => rows,
            Err(error) => return tracing::error!(%error, "the Nodes' addresses could not be read"),
        };
        for (key, value) in rows {
            for address in self.by.remove(&key).into_iter().flatten() {
                if let Some(keys) = self.of.get_mut(&address) {
                    keys.remove(&key);
                    if keys.is_empty() {
                        self.of.remove(&address);
                    }
                }
            }
            if let Some(node) = value.and_then(|value| codec::decode(&value).ok()) {
                let claimed = of_node(&node);
                for address in &claimed {
                    self.of.entry(*address).or_default().insert(key.clone());
                }
                self.by.insert(key, claimed);
            }
        }
    }
}

/// The addresses that a Node says it has.
pub fn of_node(node: &Value) -> Vec<IpAddr> {
    let all = object::at(node, &["status", "addresses"]).and_then(Value::as_array).into_iter().flatten();
    all.filter_map(|address| object::text(address, &["address"]).parse().ok()).collect()
}
