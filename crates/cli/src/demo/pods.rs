//! The set's pods as a watch tells of them.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, bail};
use mainstay_api::{kinds, object};
use mainstay_client::{Client, Informer, ListOptions, Notice};
use serde_json::Value;

/// One pod, as last told.
#[derive(Clone, Debug)]
pub struct Pod {
    pub name: String,
    pub uid: String,
    pub ip: String,
    pub ready: bool,
}

/// What a watch told.
#[derive(Debug)]
pub enum Seen {
    /// A pod is new or changed.
    Pod { name: String, terminating: bool },
    /// A pod is gone.
    Gone { name: String },
}

/// The pods that are there.
pub struct Pods {
    informer: Informer,
    pods: BTreeMap<String, Pod>,
}

impl Pods {
    pub fn watch(client: Client) -> Self {
        let options = ListOptions { label_selector: "app=web".into(), ..ListOptions::default() };
        Self { informer: Informer::new(client, &kinds::POD, "default", options), pods: BTreeMap::new() }
    }

    /// The next change; an error when there is none within `limit`.
    pub async fn next(&mut self, limit: Duration) -> Result<Seen> {
        loop {
            let Ok(notice) = tokio::time::timeout(limit, self.informer.next()).await else {
                bail!("nothing happened for {} s; the pods are: {:?}", limit.as_secs(), self.pods.values());
            };
            match notice {
                Notice::Synced => {}
                Notice::Gone(key, _) => {
                    self.pods.remove(&*key.name);
                    return Ok(Seen::Gone { name: key.name.to_string() });
                }
                Notice::Put(key, value) => {
                    let pod = read(&value);
                    self.pods.insert(pod.name.clone(), pod);
                    return Ok(Seen::Pod { name: key.name.to_string(), terminating: object::is_terminating(&value) });
                }
            }
        }
    }

    pub fn get(&self, name: &str) -> Option<&Pod> {
        self.pods.get(name)
    }

    pub fn is_ready(&self, name: &str) -> bool {
        self.get(name).is_some_and(|pod| pod.ready)
    }

    pub fn ip(&self, name: &str) -> Option<&str> {
        self.get(name).map(|pod| pod.ip.as_str())
    }

    pub fn all(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }
}

fn read(value: &Value) -> Pod {
    let conditions = value.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
    let ready = conditions.into_iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
    Pod {
        name: object::name(value).to_owned(),
        uid: object::uid(value).to_owned(),
        ip: object::text(value, &["status", "podIP"]).to_owned(),
        ready: ready && !object::is_terminating(value),
    }
}
