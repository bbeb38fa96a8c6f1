//! The ConfigMaps and Secrets that pods here use, and all Services: watched while somebody needs them, one watch
//! per object however many pods use it, and only what is needed is kept.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use mainstay_api::{Kind, ObjectKey, kinds, object};
use mainstay_client::{Client, Error, Informer, ListOptions, Notice};
use mainstay_tasks::{Health, keep};
use serde_json::Value;
use tokio::sync::{broadcast, watch};

/// How long the first answer about an object may take before the pod is told that it is not to be had.
const FIRST_ANSWER: Duration = Duration::from_secs(20);
/// Changes that a slow listener may be behind; beyond it is told that it missed some.
const CHANGES_QUEUED: usize = 256;

/// A ConfigMap or Secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// `configmaps` or `secrets`.
    pub plural: &'static str,
    pub key: ObjectKey,
}

/// What is known about an object: not yet anything, that it is not there, or its JSON.
type Known = Option<Option<Arc<Value>>>;

/// Keeps one object watched; dropping the last one ends the watch.
pub struct Watched {
    known: watch::Receiver<Known>,
    task: tokio::task::AbortHandle,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watched {
    /// The object as it is now, waiting for the first answer; `None` where it does not exist.
    pub async fn get(&self) -> Result<Option<Arc<Value>>, String> {
        let mut known = self.known.clone();
        let first = tokio::time::timeout(FIRST_ANSWER, known.wait_for(Option::is_some)).await;
        match first {
            Ok(Ok(value)) => Ok(value.clone().flatten()),
            Ok(Err(_)) | Err(_) => Err("timed out waiting for the object's state".to_owned()),
        }
    }
}

/// A port of a Service, as environment variables name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    pub name: String,
    pub port: i64,
    pub protocol: String,
}

/// A Service with a cluster IP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAddress {
    pub cluster_ip: String,
    pub ports: Vec<ServicePort>,
}

/// All Services by namespace and name; `None` before the first list.
pub type Services = Option<BTreeMap<ObjectKey, ServiceAddress>>;

/// The objects that pods of this node look at.
pub struct Objects {
    client: Client,
    watched: Mutex<BTreeMap<Reference, Weak<Watched>>>,
    changes: broadcast::Sender<Reference>,
    services: watch::Receiver<Arc<Services>>,
    services_task: tokio::task::AbortHandle,
}

impl Drop for Objects {
    fn drop(&mut self) {
        self.services_task.abort();
    }
}

impl Objects {
    /// Starts the watch of Services.
    pub fn start(client: Client, health: Health) -> Self {
        let (changes, _) = broadcast::channel(CHANGES_QUEUED);
        let (sender, known) = watch::channel(Arc::new(None));
        let watching = client.clone();
        let services = keep(health, "services", move || watch_services(watching.clone(), sender.clone()));
        let services_task = tokio::spawn(services).abort_handle();
        Self { client, watched: Mutex::default(), changes, services: known, services_task }
    }

    /// Tells which object has changed since it was first seen.
    pub fn changes(&self) -> broadcast::Receiver<Reference> {
        self.changes.subscribe()
    }

    /// The object, watched as long as the answer is held.
    pub fn watch(&self, reference: &Reference) -> Arc<Watched> {
        let mut all = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, watched| watched.strong_count() > 0);
        // One whose task broke is watched anew.
        if let Some(watched) = all.get(reference).and_then(Weak::upgrade).filter(|watched| !watched.task.is_finished())
        {
            return watched;
        }
        let (sender, known) = watch::channel(None);
        let work = watch_object(self.client.clone(), reference.clone(), sender, self.changes.clone());
        let watched = Arc::new(Watched { known, task: tokio::spawn(work).abort_handle() });
        all.insert(reference.clone(), Arc::downgrade(&watched));
        watched
    }

    /// All Services, once they are known.
    pub async fn services(&self) -> Result<Arc<Services>, String> {
        let mut services = self.services.clone();
        let known = tokio::time::timeout(FIRST_ANSWER, services.wait_for(|services| services.is_some())).await;
        match known {
            Ok(Ok(services)) => Ok(services.clone()),
            Ok(Err(_)) | Err(_) => {
                Err("services have not yet been read at least once, cannot construct envvars".to_owned())
            }
        }
    }

    /// A claim or volume, read now.
    pub async fn get(&self, kind: &Kind, namespace: &str, name: &str) -> Result<Value, Error> {
        self.client.get(kind, namespace, name).await
    }

    /// The client.
    pub fn client(&self) -> &Client {
        &self.client
    }
}

async fn watch_object(
    client: Client,
    reference: Reference,
    sender: watch::Sender<Known>,
    changes: broadcast::Sender<Reference>,
) {
    let Some(kind) = kinds::find("", "v1", reference.plural) else { return };
    let options =
        ListOptions { field_selector: format!("metadata.name={}", reference.key.name), ..ListOptions::default() };
    let mut informer = Informer::new(client, &kind, &reference.key.namespace, options);
    let mut listed = None;
    loop {
        let new = match informer.next().await {
            Notice::Put(key, value) if key == reference.key => {
                listed = Some(Arc::new(value));
                // Before the first list is complete nothing is told twice: what it holds is told with `Synced`.
                if sender.borrow().is_none() {
                    continue;
                }
                listed.clone()
            }
            Notice::Put(..) => continue,
            Notice::Gone(..) => {
                listed = None;
                None
            }
            Notice::Synced => listed.clone(),
        };
        let before = sender.send_replace(Some(new.clone()));
        if before.is_some_and(|before| content(before.as_deref()) != content(new.as_deref())) {
            let _ = changes.send(reference.clone());
        }
    }
}

/// What pods see of a ConfigMap or Secret.
fn content(value: Option<&Value>) -> Option<[Option<&Value>; 2]> {
    value.map(|value| [value.get("data"), value.get("binaryData")])
}

async fn watch_services(client: Client, sender: watch::Sender<Arc<Services>>) {
    let Some(kind) = kinds::find("", "v1", "services") else { return };
    let mut informer = Informer::new(client, &kind, "", ListOptions::default());
    let mut all = BTreeMap::new();
    let mut synced = false;
    loop {
        match informer.next().await {
            Notice::Put(key, value) => match service_address(&value) {
                Some(address) => drop(all.insert(key, address)),
                None => drop(all.remove(&key)),
            },
            Notice::Gone(key, _) => drop(all.remove(&key)),
            Notice::Synced => synced = true,
        }
        if synced {
            sender.send_replace(Arc::new(Some(all.clone())));
        }
    }
}

fn service_address(service: &Value) -> Option<ServiceAddress> {
    let cluster_ip = object::text(service, &["spec", "clusterIP"]);
    if cluster_ip.is_empty() || cluster_ip == "None" {
        return None;
    }
    let ports =
        object::at(service, &["spec", "ports"]).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let port = |port: &Value| ServicePort {
        name: object::text(port, &["name"]).to_owned(),
        port: port.get("port").and_then(Value::as_i64).unwrap_or(0),
        protocol: Some(object::text(port, &["protocol"])).filter(|text| !text.is_empty()).unwrap_or("TCP").to_owned(),
    };
    Some(ServiceAddress { cluster_ip: cluster_ip.to_owned(), ports: ports.iter().map(port).collect() })
}
