//! Which servers there are, where several share a store: so that agents and pods know all of them.
//!
//! Every server renews a Lease of its own, `kube-system/mainstay-server-<address>`. The leader sees which of them stand
//! still, by its own clock only, and keeps the `kubernetes` Service's endpoints and the list in the ConfigMap of
//! settings.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use mainstay_api::{kinds, object};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::api::{self, Api, Body, Outcome, Part, codec, key};
use crate::pki::Identity;
use crate::{bootstrap, leadership, pki};

const NAMESPACE: &str = "kube-system";
const PREFIX: &str = "mainstay-server-";
/// On the Lease: where the server is reached.
const ADDRESS: &str = "mainstay.io/address";
/// How often a Lease is renewed, and looked at.
const RENEW: Duration = Duration::from_secs(1);
/// How long a Lease may stand still before its server is not sent to any more.
const SILENT: Duration = Duration::from_secs(4);

/// The server's name among the others.
pub fn id(advertise: SocketAddr) -> String {
    advertise.to_string().replace([':', '[', ']'], "-").trim_matches('-').to_owned()
}

/// Renews this server's Lease until the server stops; then it is taken away.
pub async fn keep(api: Api, advertise: SocketAddr, mut closing: watch::Receiver<bool>) {
    if !api.store.is_shared() {
        return drop(closing.wait_for(|closing| *closing).await);
    }
    let name = format!("{PREFIX}{}", id(advertise));
    while !*closing.borrow() {
        if api.store.is_closed() {
            return drop(closing.wait_for(|closing| *closing).await);
        }
        if let Err(status) = renew(&api, &name, advertise).await {
            tracing::warn!(error = status.message, "this server's Lease was not renewed");
        }
        tokio::select! {
            () = tokio::time::sleep(RENEW) => {}
            _ = closing.wait_for(|closing| *closing) => {}
        }
    }
    let options = api::DeleteOptions::default();
    let gone = api.write(false, |batch| api::delete(batch, &kinds::LEASE, NAMESPACE, &name, &options)).await;
    if let Err(status) = gone {
        tracing::debug!(error = status.message, "this server's Lease stays");
    }
}

async fn renew(api: &Api, name: &str, advertise: SocketAddr) -> Result<(), mainstay_api::Status> {
    let now = leadership::micros(api.now());
    let write = |batch: &mut api::Batch<'_>| {
        let spec = json!({
            "holderIdentity": name, "leaseDurationSeconds": SILENT.as_secs(), "renewTime": now,
        });
        if !batch.has(key::object(&kinds::LEASE, NAMESPACE, name)) {
            let metadata = json!({ "name": name, "annotations": { ADDRESS: advertise.to_string() } });
            return api::create(batch, &kinds::LEASE, NAMESPACE, json!({ "metadata": metadata, "spec": spec }));
        }
        let change = |old: &Value| {
            let mut new = old.clone();
            new["spec"] = spec.clone();
            Ok(new)
        };
        api::patch(batch, &kinds::LEASE, NAMESPACE, name, Part::Main, &change)
    };
    api.write(false, write).await.map(|_| ())
}

/// Kubeconfigs that name all servers: each its file, its user and who that is.
#[derive(Clone)]
pub struct Kubeconfigs {
    /// The cluster's CA.
    pub ca_pem: String,
    /// Where, the user's name, and its certificate.
    pub files: Vec<(PathBuf, String, Identity)>,
}

impl Kubeconfigs {
    fn write(&self, servers: &[String]) {
        for (path, user, identity) in &self.files {
            let text = pki::kubeconfig(servers, &self.ca_pem, user, identity);
            if let Err(error) = pki::write_private(path, text.as_bytes()) {
                tracing::warn!(%error, "the kubeconfig does not name all servers");
            }
        }
    }
}

/// Keeps the kubeconfigs at the list of servers, this one (as it is reached on this machine) first, until the server
/// stops.
pub async fn follow(
    api: Api,
    reached: SocketAddr,
    advertise: SocketAddr,
    kubeconfigs: Kubeconfigs,
    mut closing: watch::Receiver<bool>,
) {
    if !api.store.is_shared() {
        return drop(closing.wait_for(|closing| *closing).await);
    }
    let key = key::object(&kinds::CONFIG_MAP, NAMESPACE, bootstrap::SETTINGS);
    let mut written = vec![reached.to_string()];
    while !*closing.borrow() {
        if api.store.is_closed() {
            return drop(closing.wait_for(|closing| *closing).await);
        }
        let Ok(mut changes) = api.store.watch(key.clone(), api.store.revision()) else {
            tokio::time::sleep(RENEW).await;
            continue;
        };
        let map = api.store.get(&key).and_then(|entry| codec::decode(&entry.value).ok()).unwrap_or_default();
        let listed = object::text(&map, &["data", "servers"]).split(',').filter(|server| !server.is_empty());
        let own = [reached.to_string(), advertise.to_string()];
        let others = listed.filter(|server| !own.iter().any(|own| own == server)).map(str::to_owned);
        let servers: Vec<String> = std::iter::once(own[0].clone()).chain(others).collect();
        if servers != written {
            let (kubeconfigs, list) = (kubeconfigs.clone(), servers.clone());
            // On a thread that may wait for the disk.
            drop(tokio::task::spawn_blocking(move || kubeconfigs.write(&list)).await);
            written = servers;
        }
        let is_lagging = tokio::select! {
            changed = changes.next() => changed.is_err(),
            closed = closing.wait_for(|closing| *closing) => { drop(closed); false }
        };
        if is_lagging {
            tokio::time::sleep(RENEW).await;
        }
    }
}

/// Publishes which servers live, until told to stop. For the leader, with its guarded pipeline.
pub async fn publish(api: Api, own: SocketAddr, mut stop: watch::Receiver<bool>) {
    if !api.store.is_shared() {
        return drop(stop.wait_for(|stop| *stop).await);
    }
    let prefix = key::object(&kinds::LEASE, NAMESPACE, PREFIX);
    // Name -> what it looked like, and since when. One that was never seen before counts as renewed just now.
    let mut seen: BTreeMap<String, (String, Instant)> = BTreeMap::new();
    let mut published = Vec::new();
    while !*stop.borrow() {
        let page = api.store.range(&prefix, None, usize::MAX, None);
        let leases: Vec<Value> = page
            .map(|page| page.entries.iter().filter_map(|entry| codec::decode(&entry.value).ok()).collect())
            .unwrap_or_default();
        let now = Instant::now();
        let mut alive: Vec<SocketAddr> = Vec::new();
        for lease in &leases {
            let (name, version) = (object::name(lease).to_owned(), object::resource_version(lease).to_owned());
            let entry = seen.entry(name).or_insert_with(|| (version.clone(), now));
            if entry.0 != version {
                *entry = (version, now);
            }
            let address: Option<SocketAddr> = object::text(lease, &["metadata", "annotations", ADDRESS]).parse().ok();
            alive.extend(address.filter(|_| now.duration_since(entry.1) < SILENT));
        }
        // Whoever says so lives itself.
        if !alive.contains(&own) {
            alive.push(own);
        }
        alive.sort();
        if alive != published {
            let write = |batch: &mut api::Batch<'_>| {
                bootstrap::publish_servers(batch, &alive)?;
                Ok(Outcome { code: 200, body: Body::Value(Value::Null) })
            };
            match api.write(false, write).await {
                Ok(_) => published = alive,
                Err(status) => tracing::warn!(error = status.message, "the list of servers was not written"),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(RENEW) => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }
}
