//! Which servers there are, where several share a store: so that agents and pods know all of them.
//!
//! Every server renews a Lease of its own, `kube-system/mainstay-server-<address>`. The leader sees which of them stand
//! still, by its own clock only, and keeps the `kubernetes` Service's endpoints and the list in the ConfigMap of
//! settings.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mainstay_api::{kinds, object};
use mainstay_store::Store;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::api::{self, Api, Body, Outcome, Part, codec, key};
use crate::kubeconfig;
use crate::renewal::Issued;
use crate::{bootstrap, leadership, pki};

const NAMESPACE: &str = "kube-system";
const PREFIX: &str = "mainstay-server-";
/// On the Lease: where the server is reached.
pub(crate) const ADDRESS: &str = "mainstay.io/address";
/// How often a Lease is renewed, and looked at.
const RENEW: Duration = Duration::from_secs(1);
/// How long a Lease may stand still before its server is not sent to any more.
const SILENT: Duration = Duration::from_secs(4);
/// How long before it is taken away: its server did not stop, and does not come back at that address.
const DEAD: Duration = Duration::from_secs(3600);

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

/// Whether a server renews its Lease: looked at for as long as one that lives may be silent.
pub async fn is_another_alive(store: &Store) -> bool {
    let prefix = key::object(&kinds::LEASE, NAMESPACE, PREFIX);
    let revisions = || -> BTreeSet<_> {
        let page = store.range(&prefix, None, usize::MAX, None);
        page.into_iter().flat_map(|page| page.entries).map(|entry| (entry.key, entry.revision)).collect()
    };
    let before = revisions();
    if before.is_empty() {
        return false;
    }
    tokio::time::sleep(SILENT).await;
    !revisions().is_subset(&before)
}

/// Every server that is, or was of late, as its Lease or the list says.
pub fn known(api: &Api) -> Vec<SocketAddr> {
    let of_lease = |lease: &Value| object::text(lease, &["metadata", "annotations", ADDRESS]).parse().ok();
    let mut all: Vec<SocketAddr> = leases(api).iter().filter_map(of_lease).collect();
    all.extend(listed(api));
    all
}

/// The list of servers as it was published last.
fn listed(api: &Api) -> Vec<SocketAddr> {
    let entry = api.store.get(&key::object(&kinds::CONFIG_MAP, NAMESPACE, bootstrap::SETTINGS));
    let map = entry.and_then(|entry| codec::decode(&entry.value).ok()).unwrap_or_default();
    object::text(&map, &["data", "servers"]).split(',').filter_map(|server| server.parse().ok()).collect()
}

fn leases(api: &Api) -> Vec<Value> {
    let page = api.store.range(&key::object(&kinds::LEASE, NAMESPACE, PREFIX), None, usize::MAX, None);
    page.map(|page| page.entries.iter().filter_map(|entry| codec::decode(&entry.value).ok()).collect())
        .unwrap_or_default()
}

/// Kubeconfigs that name all servers: each its file, its user and who that is.
#[derive(Clone)]
pub struct Kubeconfigs {
    /// The cluster's CA.
    ca_pem: String,
    /// Where each is, its user's name, and its certificate.
    files: Vec<(PathBuf, String, Arc<Issued>)>,
    /// The servers that they name.
    servers: Arc<Mutex<Vec<String>>>,
}

impl Kubeconfigs {
    /// Those of these paths, users and certificates, as they were written for these servers.
    pub(crate) fn new(ca_pem: String, files: Vec<(PathBuf, String, Arc<Issued>)>, servers: Vec<String>) -> Self {
        Self { ca_pem, files, servers: Arc::new(Mutex::new(servers)) }
    }

    /// Has them name these servers.
    pub fn write(&self, servers: &[String]) {
        *self.servers.lock().unwrap_or_else(PoisonError::into_inner) = servers.to_vec();
        self.write_again();
    }

    /// Writes them with the certificates as they are now.
    pub fn write_again(&self) {
        // One at a time: what is written last names the newest.
        let servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        for (path, user, issued) in &self.files {
            let text = pki::kubeconfig(&servers, &self.ca_pem, user, &issued.identity());
            // Somebody may have added clusters of theirs since it was written first.
            if let Err(error) = kubeconfig::write(path, &text, pki::Durable::Yes) {
                tracing::warn!(%error, "the kubeconfig is not as it should be");
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

/// Which servers' Leases move, as a leader sees them from its beginning on.
struct Seen {
    /// Whom the former leader saw alive.
    listed: Vec<SocketAddr>,
    is_first: bool,
    /// By the Lease's name: its resourceVersion, since when it is that, and whether its server lived since this leader
    /// began, or was alive for the former one.
    leases: BTreeMap<String, Moved>,
}

struct Moved {
    version: String,
    at: Instant,
    was_alive: bool,
}

impl Seen {
    fn new(listed: Vec<SocketAddr>) -> Self {
        Self { listed, is_first: true, leases: BTreeMap::new() }
    }

    /// The addresses of those that live: a new leader takes the former one's word, and waits for a sign of whom that
    /// did not see alive. Who comes later has just been made.
    fn look(&mut self, leases: &[Value], now: Instant) -> Vec<SocketAddr> {
        let is_first = std::mem::replace(&mut self.is_first, false);
        let mut alive = Vec::new();
        let mut names = BTreeSet::new();
        for lease in leases {
            let (name, version) = (object::name(lease), object::resource_version(lease));
            names.insert(name);
            let Ok(address) = object::text(lease, &["metadata", "annotations", ADDRESS]).parse::<SocketAddr>() else {
                continue;
            };
            let was_alive = !is_first || self.listed.contains(&address);
            let fresh = || Moved { version: version.to_owned(), at: now, was_alive };
            let moved = self.leases.entry(name.to_owned()).or_insert_with(fresh);
            if moved.version != version {
                *moved = Moved { version: version.to_owned(), at: now, was_alive: true };
            }
            if moved.was_alive && now.saturating_duration_since(moved.at) < SILENT {
                alive.push(address);
            }
        }
        self.leases.retain(|name, _| names.contains(name.as_str()));
        alive
    }

    /// The Leases that nobody renews any more: name and resourceVersion. What cannot be taken away is named again after
    /// as long.
    fn take_dead(&mut self, now: Instant) -> Vec<(String, String)> {
        let dead = self.leases.iter_mut().filter(|(_, moved)| now.saturating_duration_since(moved.at) >= DEAD);
        let dead = dead.map(|(name, moved)| {
            (moved.at, moved.was_alive) = (now, false);
            (name.clone(), moved.version.clone())
        });
        dead.collect()
    }
}

/// Publishes which servers live, until told to stop. For the leader, with its guarded pipeline.
pub async fn publish(api: Api, own: SocketAddr, mut stop: watch::Receiver<bool>) {
    if !api.store.is_shared() {
        return drop(stop.wait_for(|stop| *stop).await);
    }
    let mut seen = Seen::new(listed(&api));
    let mut published = Vec::new();
    while !*stop.borrow() {
        let leases = leases(&api);
        let mut alive = seen.look(&leases, Instant::now());
        for (name, version) in seen.take_dead(Instant::now()) {
            let options = api::DeleteOptions { resource_version: Some(version), ..api::DeleteOptions::default() };
            let gone = api.write(false, |batch| api::delete(batch, &kinds::LEASE, NAMESPACE, &name, &options)).await;
            if let Err(status) = gone {
                tracing::debug!(error = status.message, name, "a dead server's Lease stays");
            }
        }
        // Whoever says so lives itself.
        if !alive.contains(&own) {
            alive.push(own);
        }
        alive.sort();
        if alive != published {
            let write = |batch: &mut api::Batch<'_>| {
                bootstrap::publish_servers(batch, &alive, None)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn m3_a_new_leader_publishes_no_server_that_died_before_and_takes_its_lease_away_in_time() {
        let lease = |server: u8, version: u32| {
            json!({ "metadata": { "name": format!("{PREFIX}{server}"), "resourceVersion": version.to_string(),
                "annotations": { ADDRESS: format!("192.0.2.{server}:6443") } } })
        };
        let address = |server: u8| SocketAddr::from(([192, 0, 2, server], 6443));
        let begun = Instant::now();
        let at = |seconds: u64| begun + Duration::from_secs(seconds);
        let mut seen = Seen::new(vec![address(1), address(2)]);
        let all = |versions: [u32; 3]| [lease(1, versions[0]), lease(2, versions[1]), lease(3, versions[2])];
        assert_eq!(seen.look(&all([1, 1, 1]), at(0)), [address(1), address(2)], "3 is long dead");
        assert_eq!(seen.look(&all([2, 1, 1]), at(3)), [address(1), address(2)]);
        assert_eq!(seen.look(&all([3, 1, 1]), at(4)), [address(1)], "2 died with the former leader");
        assert_eq!(seen.look(&all([4, 1, 2]), at(5)), [address(1), address(3)], "3 is back");
        let late = [&all([5, 1, 3])[..], &[lease(4, 1)]].concat();
        assert_eq!(seen.look(&late, at(6)), [address(1), address(3), address(4)], "4 is new");
        assert_eq!(seen.take_dead(at(3599)), []);
        assert_eq!(seen.take_dead(at(3600)), [(format!("{PREFIX}2"), "1".to_owned())]);
        assert_eq!(seen.take_dead(at(3600)), []);
    }
}
