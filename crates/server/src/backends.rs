//! Where a Service is answered, for what the server itself asks or passes on (webhooks, extension servers, the `proxy`
//! subresource): ready endpoints of its EndpointSlices, as upstream. Whoever kept Endpoints only has slices that mirror
//! them.
//!
//! Differs: where the endpoint that was picked takes no connection, others are tried; upstream's client is told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use mainstay_api::{Status, kinds, object};
use mainstay_store::Store;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::api::{Api, Follower, key};

/// How many endpoints are tried.
const TRIES: usize = 4;
/// How many are looked at: as many as a slice may have. Whoever fills slices with what is not allowed keeps nobody
/// long.
const LOOKS: usize = 1000;
/// How long one may take to take a connection, where there is another one to try.
const PATIENCE: Duration = Duration::from_secs(2);
/// The label of a slice that names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Which slices a Service has, as new as the store.
#[derive(Clone)]
pub struct Slices(Arc<Mutex<Inner>>);

struct Inner {
    stored: Follower,
    prefix: Bytes,
    /// The Service of each slice, as `namespace/name`.
    services: BTreeMap<Bytes, String>,
    slices: BTreeMap<String, BTreeSet<Bytes>>,
}

impl Slices {
    /// Those of a store. They are read when they are first asked for.
    pub fn of(store: &Store) -> Self {
        let prefix = key::prefix(&kinds::ENDPOINT_SLICE, None);
        let stored = Follower::new(store, prefix.clone());
        Self(Arc::new(Mutex::new(Inner { stored, prefix, services: BTreeMap::new(), slices: BTreeMap::new() })))
    }

    /// The keys of a Service's slices, in order.
    fn of_service(&self, namespace: &str, service: &str) -> Vec<Bytes> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.catch_up();
        inner.slices.get(&format!("{namespace}/{service}")).into_iter().flatten().cloned().collect()
    }
}

impl Inner {
    fn catch_up(&mut self) {
        match self.stored.rows(&self.services) {
            Ok(rows) => rows.into_iter().for_each(|(key, value)| self.take(key, value.as_ref())),
            Err(error) => tracing::error!(%error, "the EndpointSlices could not be read"),
        }
    }

    fn take(&mut self, key: Bytes, value: Option<&Bytes>) {
        let now = match value.map(|value| serde_json::from_slice::<Value>(value)) {
            None => None,
            // As it was last known (A10); whoever reads it finds out.
            Some(Err(_)) => return,
            Some(Ok(slice)) => {
                let rest = key.strip_prefix(&self.prefix[..]).unwrap_or(&key);
                let namespace = rest.split(|byte| *byte == b'/').next().unwrap_or_default();
                let name = object::text(&slice, &["metadata", "labels", SERVICE_NAME]);
                (!name.is_empty()).then(|| format!("{}/{name}", String::from_utf8_lossy(namespace)))
            }
        };
        let before = match &now {
            Some(now) => self.services.insert(key.clone(), now.clone()),
            None => self.services.remove(&key),
        };
        if before == now {
            return;
        }
        if let Some(before) = before
            && let Some(keys) = self.slices.get_mut(&before)
        {
            keys.remove(&key);
            if keys.is_empty() {
                self.slices.remove(&before);
            }
        }
        if let Some(now) = now {
            self.slices.entry(now).or_default().insert(key);
        }
    }
}

/// The name of a Service's port that is meant by a number or by a name (`""`: by none, where there is one port).
///
/// # Errors
/// 503 in upstream's words for a number that the Service does not have.
pub fn port_name(service: &Value, asked: &str) -> Result<String, Status> {
    let ports: Vec<&Value> =
        object::at(service, &["spec", "ports"]).and_then(Value::as_array).into_iter().flatten().collect();
    let name = match asked.parse::<u64>() {
        Ok(number) => {
            let port = ports.iter().find(|port| port.get("port").and_then(Value::as_u64) == Some(number));
            let port = port.ok_or_else(|| {
                unavailable(format!("no service port {number} found for service {:?}", object::name(service)))
            })?;
            object::text(port, &["name"])
        }
        Err(_) => match ports.as_slice() {
            [only] if asked.is_empty() => object::text(only, &["name"]),
            _ => asked,
        },
    };
    Ok(name.to_owned())
}

fn unavailable(message: String) -> Status {
    Status::new(503, "ServiceUnavailable", message)
}

/// Ready endpoints of a Service's port, of those that `is_allowed`: a few, to be tried in this order, which is another
/// one each time.
///
/// # Errors
/// 503 in upstream's words where there is none.
pub fn endpoints(
    api: &Api,
    service: &Value,
    port_name: &str,
    mut is_allowed: impl FnMut(&Value) -> bool,
) -> Result<Vec<SocketAddr>, Status> {
    let (namespace, name) = (object::namespace(service), object::name(service));
    let keys = api.slices.of_service(namespace, name);
    let mut random = [0; 4];
    (api.env.random)(&mut random);
    let pick = usize::try_from(u32::from_le_bytes(random)).unwrap_or(0);
    // Another number for the endpoint than for the slice, or some would never be the first.
    let within = pick / keys.len().max(1);
    let (mut found, mut looks) = (Vec::new(), 0);
    // One slice after the other is read, until there are enough: a Service may have many.
    'slices: for key in rotated(&keys, pick) {
        let Some(entry) = api.store.get(key) else { continue };
        let Ok(slice) = serde_json::from_slice::<Value>(&entry.value) else { continue };
        let list = |field: &str| slice.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let port = list("ports").iter().find(|port| object::text(port, &["name"]) == port_name);
        let port = port.and_then(|port| port.get("port")).and_then(Value::as_u64);
        let Some(port) = port.and_then(|port| u16::try_from(port).ok()) else { continue };
        let is_ready =
            |endpoint: &Value| object::at(endpoint, &["conditions", "ready"]).and_then(Value::as_bool).unwrap_or(true);
        for endpoint in rotated(list("endpoints"), within).filter(|endpoint| is_ready(endpoint)) {
            let address = endpoint.get("addresses").and_then(|all| all.get(0)).and_then(Value::as_str);
            let Some(address) = address.and_then(|address| address.parse::<IpAddr>().ok()) else { continue };
            looks += 1;
            if is_allowed(endpoint) {
                found.push(SocketAddr::new(address, port));
            }
            if found.len() >= TRIES || looks >= LOOKS {
                break 'slices;
            }
        }
    }
    if found.is_empty() {
        return Err(unavailable(format!("no endpoints available for service {name:?}")));
    }
    Ok(found)
}

/// All of them, from one on.
fn rotated<T>(all: &[T], from: usize) -> impl Iterator<Item = &T> {
    let (before, after) = all.split_at(from.checked_rem(all.len()).unwrap_or(0));
    after.iter().chain(before)
}

/// Where a Service's port is answered, for the server's own calls: some ready endpoints, or the name that it stands
/// for.
///
/// # Errors
/// Upstream's words: no such Service, no such port, no endpoints.
pub fn addresses(api: &Api, namespace: &str, name: &str, port: u16) -> Result<Vec<String>, String> {
    let service = api.batch().must_get(&kinds::SERVICE, namespace, name).map_err(|status| status.message)?;
    if object::text(&service, &["spec", "type"]) == "ExternalName" {
        return Ok(vec![format!("{}:{port}", object::text(&service, &["spec", "externalName"]))]);
    }
    let found = port_name(&service, &port.to_string()).and_then(|port| endpoints(api, &service, &port, |_| true));
    let found = found.map_err(|status| status.message)?;
    let allowed: Vec<String> = found.iter().filter(|at| may_be_asked(at.ip())).map(ToString::to_string).collect();
    if allowed.is_empty() { Err("address not allowed".to_owned()) } else { Ok(allowed) }
}

/// Whether an address may be asked: not one that is nobody's but the machine's own.
pub fn may_be_asked(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            !(v4.is_loopback() || v4.is_link_local() || v4.is_multicast() || v4.is_unspecified() || v4.is_broadcast())
        }
        IpAddr::V6(v6) => {
            !(v6.is_loopback() || v6.is_multicast() || v6.is_unspecified() || v6.is_unicast_link_local())
                && v6.to_ipv4_mapped().is_none_or(|v4| may_be_asked(IpAddr::V4(v4)))
        }
    }
}

/// Connects to the first of these addresses that takes a connection; gives which.
///
/// # Errors
/// Upstream's words of the last one's refusal.
pub async fn dial(addresses: &[String]) -> Result<(TcpStream, &str), String> {
    let Some((last, others)) = addresses.split_last() else { return Err("no address".to_owned()) };
    let ready = |stream: TcpStream| stream.set_nodelay(true).map(|()| stream).map_err(|error| error.to_string());
    for address in others {
        match tokio::time::timeout(PATIENCE, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok((ready(stream)?, address)),
            Ok(Err(error)) => tracing::debug!(address, %error, "an endpoint takes no connection; trying another one"),
            Err(_) => tracing::debug!(address, "an endpoint is silent; trying another one"),
        }
    }
    let stream = TcpStream::connect(last).await.map_err(|error| dial_error(last, &error))?;
    Ok((ready(stream)?, last))
}

/// Why nobody took a connection, in upstream's words.
pub fn dial_error(address: &str, error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => format!("dial tcp {address}: connect: connection refused"),
        std::io::ErrorKind::HostUnreachable => format!("dial tcp {address}: connect: no route to host"),
        std::io::ErrorKind::NetworkUnreachable => format!("dial tcp {address}: connect: network is unreachable"),
        _ => format!("dial tcp {address}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::tests::Cluster;
    use crate::api::{DeleteOptions, Part};
    use serde_json::json;

    fn slice(name: &str, service: &str, endpoints: &[(&str, Option<bool>)]) -> Value {
        let endpoints: Vec<Value> = endpoints
            .iter()
            .map(|(address, ready)| json!({ "addresses": [address], "conditions": { "ready": ready } }))
            .collect();
        json!({ "metadata": { "name": name, "labels": { SERVICE_NAME: service } }, "addressType": "IPv4",
            "endpoints": endpoints, "ports": [{ "name": "web", "port": 8080 }] })
    }

    #[test]
    fn n4_services_are_asked_at_ready_endpoints_of_their_slices_without_any_endpoints_object() {
        let cluster = Cluster::new();
        let ports = json!([{ "name": "web", "port": 80 }, { "name": "admin", "port": 81 }]);
        let service = json!({ "metadata": { "name": "s" }, "spec": { "ports": ports } });
        cluster.create(&kinds::SERVICE, service).expect("created");
        let find = |port: u16| addresses(&cluster.api, "default", "s", port);
        assert_eq!(find(80), Err("no endpoints available for service \"s\"".to_owned()));
        assert_eq!(find(99), Err("no service port 99 found for service \"s\"".to_owned()));
        let first = slice("s-1", "s", &[("10.244.0.5", Some(true)), ("10.244.0.6", Some(false))]);
        cluster.create(&kinds::ENDPOINT_SLICE, first).expect("created");
        let other = slice("t-1", "t", &[("10.244.0.9", Some(true))]);
        cluster.create(&kinds::ENDPOINT_SLICE, other).expect("created");
        assert_eq!(find(80), Ok(vec!["10.244.0.5:8080".to_owned()]), "the ready one");
        assert_eq!(find(81), Err("no endpoints available for service \"s\"".to_owned()), "no slice has the port");
        let second = slice("s-2", "s", &[("10.244.1.5", None), ("10.244.1.6", Some(true))]);
        cluster.create(&kinds::ENDPOINT_SLICE, second).expect("created");
        let mut firsts = BTreeSet::new();
        for _ in 0..200 {
            let found = find(80).expect("found");
            assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), 3, "{found:?}");
            firsts.insert(found[0].clone());
        }
        assert_eq!(firsts.len(), 3, "each is somebody's first: {firsts:?}");
        // A slice that becomes another Service's, and one that goes.
        let moved = json!({ "metadata": { "labels": { SERVICE_NAME: "t" } } });
        cluster.merge(&kinds::ENDPOINT_SLICE, "s-1", Part::Main, moved).expect("patched");
        cluster.delete(&kinds::ENDPOINT_SLICE, "s-2", &DeleteOptions::default()).expect("deleted");
        assert_eq!(find(80), Err("no endpoints available for service \"s\"".to_owned()));
    }

    #[test]
    fn x4_of_many_endpoints_few_are_looked_at() {
        let cluster = Cluster::new();
        let service = json!({ "metadata": { "name": "s" }, "spec": { "ports": [{ "name": "web", "port": 80 }] } });
        let service = cluster.create(&kinds::SERVICE, service).expect("created");
        let all: Vec<String> = (0..1000).map(|index| format!("10.244.{}.{}", index / 250, index % 250 + 1)).collect();
        let ready: Vec<(&str, Option<bool>)> = all.iter().map(|address| (address.as_str(), Some(true))).collect();
        for name in ["s-1", "s-2"] {
            cluster.create(&kinds::ENDPOINT_SLICE, slice(name, "s", &ready)).expect("created");
        }
        let mut looked = 0;
        let found = endpoints(&cluster.api, &service, "web", |_| {
            looked += 1;
            true
        });
        assert_eq!((found.expect("found").len(), looked), (TRIES, TRIES));
        let mut looked = 0;
        let none = endpoints(&cluster.api, &service, "web", |_| {
            looked += 1;
            false
        });
        assert_eq!((none.map_err(|status| status.code), looked), (Err(503), LOOKS));
    }

    #[test]
    fn x1_what_is_the_machines_own_is_not_asked() {
        for own in ["127.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "::1", "fe80::1", "::ffff:127.0.0.1"] {
            assert!(!may_be_asked(own.parse().expect("an address")), "{own}");
        }
        assert!(may_be_asked("10.244.0.5".parse().expect("an address")));
    }

    #[tokio::test]
    async fn where_a_connection_is_refused_the_next_endpoint_is_asked() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let open = listener.local_addr().expect("bound").to_string();
        let closed = {
            let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
            gone.local_addr().expect("bound").to_string()
        };
        let both = [closed.clone(), open.clone()];
        assert_eq!(dial(&both).await.expect("the second").1, open);
        let refused = dial(std::slice::from_ref(&closed)).await.expect_err("nobody is there");
        assert_eq!(refused, format!("dial tcp {closed}: connect: connection refused"));
    }
}
