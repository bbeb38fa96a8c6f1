//! Which servers there are, where several share a store: so that agents and pods know all of them.
//!
//! Every server renews a Lease of its own, `kube-system/mainstay-server-<address>`. The leader sees which of them stand
//! still, by its own clock only, and keeps the `kubernetes` Service's endpoints and the list in the ConfigMap of settings.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mainstay_api::{kinds, object};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::api::{self, Api, Body, Outcome, Part, codec, key};
use crate::{bootstrap, leadership};

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
