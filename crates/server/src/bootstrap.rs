//! What a cluster has from its first moment: namespaces, the Services of the API and of DNS, classes of volumes
//! and snapshots, roles, the flows of requests.
//!
//! Everything is made in as few transactions as the store takes (one, if it is embedded), and at every start again what
//! is missing; what is there is left alone, but for the API server's address.

use std::net::{IpAddr, SocketAddr};

use mainstay_api::kinds::addresses::special;
use mainstay_api::{Kind, Status, flows, kinds, object};
use serde_json::{Value, json};

use mainstay_logic::nodes::LEASES;
use mainstay_logic::snapshot::ROOT_CA;

use crate::{
    api::{self, Api, Batch, Body, Outcome, Part, key},
    authorize,
};

/// The place of the cluster's DNS server in the service range.
pub const DNS_PLACE: u64 = 10;
/// The place of the API server in the service range.
pub const API_PLACE: u64 = 1;

/// The ConfigMap in `kube-system` that tells nodes what the cluster is: the keys are those of [`settings`].
pub const SETTINGS: &str = "mainstay-cluster";

/// What the objects of the first moment say of the cluster.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// Its own name: 32 hexadecimal digits.
    pub cluster: String,
    /// `cluster.local`
    pub domain: String,
    /// How packets get from one machine's pods to another's: `vxlan` or `routes`.
    pub pod_network: String,
    /// Whether other servers may share the store.
    pub is_shared: bool,
    /// Where pods reach a server that is on the loopback alone.
    pub pods: Option<SocketAddr>,
}

/// Whether endpoints may have this address.
fn is_endpoint(address: IpAddr) -> bool {
    special(address).is_empty()
}

/// Where the API is reached, for pods and for nodes. All are on the port of the first.
pub fn publish_servers(batch: &mut Batch<'_>, servers: &[SocketAddr], pods: Option<SocketAddr>) -> Result<(), Status> {
    let port = servers.first().map(SocketAddr::port);
    let servers: Vec<SocketAddr> =
        servers.iter().filter(|at| is_endpoint(at.ip()) && Some(at.port()) == port).copied().collect();
    let list: Vec<String> = servers.iter().map(SocketAddr::to_string).collect();
    let data = json!({ "metadata": { "name": SETTINGS }, "data": { "servers": list.join(",") } });
    replace_data(batch, "kube-system", data)?;
    let servers = if servers.is_empty() { pods.into_iter().collect() } else { servers };
    if servers.is_empty() {
        return Ok(());
    }
    replace(batch, &kinds::ENDPOINTS, "default", endpoints(&servers), &["subsets"])?;
    replace(batch, &kinds::ENDPOINT_SLICE, "default", endpoint_slice(&servers), &["endpoints", "ports"])
}

/// The name by which extension servers know this server's requests.
pub const FRONT_PROXY: &str = "front-proxy-client";

/// Publishes who extension servers are to believe: clients of this CA, and the front proxy's word for others. To be
/// called by [`write_all`].
///
/// # Errors
/// The ConfigMap cannot be written.
pub fn publish_authorities(batch: &mut Batch<'_>, client_ca: &str, proxy_ca: &str) -> Result<Outcome, Status> {
    let list = |text: &str| json!([text]).to_string();
    let published = json!({ "metadata": { "name": "extension-apiserver-authentication" }, "data": {
        "client-ca-file": client_ca, "requestheader-client-ca-file": proxy_ca,
        "requestheader-allowed-names": list(FRONT_PROXY),
        "requestheader-username-headers": list("X-Remote-User"), "requestheader-uid-headers": list("X-Remote-Uid"),
        "requestheader-group-headers": list("X-Remote-Group"),
        "requestheader-extra-headers-prefix": list("X-Remote-Extra-"),
    } });
    replace(batch, &kinds::CONFIG_MAP, "kube-system", published, &["data"])?;
    // Metrics are an extension's upstream, and so have no APIService of the server's own: whoever installs a server for
    // them makes it. An older server made one.
    let known = batch.get(&kinds::API_SERVICE, "", api::METRICS_SERVICE)?;
    if known.is_some_and(|known| object::at(&known, &["spec", "service"]).is_none()) {
        api::delete(batch, &kinds::API_SERVICE, "", api::METRICS_SERVICE, &api::DeleteOptions::default())?;
    }
    let registry = batch.registry.clone();
    let own = mainstay_api::discovery::served_versions(&registry).into_iter();
    for (group, version) in own.filter(|(group, _)| *group != kinds::podmetrics::GROUP) {
        if batch.is_full() {
            return Ok(done(false));
        }
        ensure(batch, &kinds::API_SERVICE, "", local(group, version))?;
    }
    Ok(done(true))
}

/// The APIService of a group and version that is served here, as upstream registers its own.
fn local(group: &str, version: &str) -> Value {
    let (group_priority, version_priority) = if group.is_empty() { (18_000, 1) } else { (17_000, 15) };
    json!({
        "metadata": { "name": format!("{version}.{group}"), "labels": {
            "kube-aggregator.kubernetes.io/automanaged": "onstart" } },
        "spec": { "group": group, "version": version, "groupPriorityMinimum": group_priority,
            "versionPriority": version_priority },
    })
}

/// The code of a write that was not all: the next one goes on.
const MORE: u16 = 202;

fn done(is_all: bool) -> Outcome {
    Outcome { code: if is_all { 200 } else { MORE }, body: Body::Value(Value::Null) }
}

/// Writes, in as many transactions as it takes.
///
/// # Errors
/// As [`Api::write`]; also where there is more to write and nothing was: it would go on so for ever.
pub async fn write_all(api: &Api, verb: impl Fn(&mut Batch<'_>) -> Result<Outcome, Status>) -> Result<(), Status> {
    let goes_on = |batch: &mut Batch<'_>| match verb(batch)? {
        done if done.code == MORE && batch.is_empty() => {
            Err(Status::internal("more is to be written, and none of it can be"))
        }
        done => Ok(done),
    };
    while api.write(false, &goes_on).await?.code == MORE {}
    Ok(())
}

/// Adds what is missing, as much as one transaction takes; to be called by [`write_all`].
pub fn bootstrap(batch: &mut Batch<'_>, advertise: SocketAddr, about: &About) -> Result<Outcome, Status> {
    for namespace in ["default", "kube-system", "kube-public", LEASES] {
        ensure(batch, &kinds::NAMESPACE, "", json!({ "metadata": { "name": namespace } }))?;
        // Where somebody deleted it, pods of before the restart get the CA.
        api::admission::furnish_namespace(batch, namespace)?;
        publish_ca(batch, namespace);
    }
    for (name, value, description) in kinds::priorityclass::SYSTEM {
        let class = json!({ "metadata": { "name": name }, "value": value, "description": description });
        ensure(batch, &kinds::PRIORITY_CLASS, "", class)?;
    }
    let (info, settings) = (cluster_info(&batch.settings.ca_pem, advertise), settings(batch, about));
    replace_data(batch, "kube-public", info)?;
    replace_data(batch, "kube-system", settings)?;
    let is_claimed = api::admission::node::claim_all(batch)?;
    ensure(batch, &kinds::STORAGE_CLASS, "", storage_class())?;
    for (kind, default) in [
        (&kinds::VOLUME_SNAPSHOT_CLASS, kinds::volumesnapshotclass::DEFAULT_ANNOTATION),
        (&kinds::VOLUME_GROUP_SNAPSHOT_CLASS, kinds::volumegroupsnapshotclass::DEFAULT_ANNOTATION),
    ] {
        ensure(batch, kind, "", snapshot_class(default))?;
    }
    let address = |index| batch.settings.service_cidr.nth(index).map(|address| address.to_string()).unwrap_or_default();
    let range = batch.settings.service_cidr.to_string();
    ensure(
        batch,
        &kinds::SERVICE_CIDR,
        "",
        json!({ "metadata": { "name": kinds::servicecidr::DEFAULT }, "spec": { "cidrs": [range] } }),
    )?;
    set_ready(batch, kinds::servicecidr::DEFAULT)?;
    // One process is all of them, and it answers.
    for (name, message) in [("controller-manager", "ok"), ("scheduler", "ok"), ("etcd-0", "ok")] {
        let condition = json!({ "type": "Healthy", "status": "True", "message": message });
        ensure(
            batch,
            &kinds::COMPONENT_STATUS,
            "",
            json!({ "metadata": { "name": name }, "conditions": [condition] }),
        )?;
    }
    let (api_ip, dns_ip) = (address(API_PLACE), address(DNS_PLACE));
    ensure(batch, &kinds::SERVICE, "default", api_service(&api_ip, advertise.port()))?;
    ensure(batch, &kinds::SERVICE, "kube-system", dns_service(&dns_ip))?;
    replace(batch, &kinds::ENDPOINTS, "kube-system", dns_endpoints(&dns_ip), &["subsets"])?;
    // Endpoints may not be in the loopback or the link-local range: a server that is only there is reached by no pod.
    if about.is_shared && is_endpoint(advertise.ip()) {
        // Others may be there: the leader knows.
        ensure(batch, &kinds::ENDPOINTS, "default", endpoints(&[advertise]))?;
        ensure(batch, &kinds::ENDPOINT_SLICE, "default", endpoint_slice(&[advertise]))?;
    } else {
        publish_servers(batch, &[advertise], about.pods)?;
    }
    Ok(done(authorize::policy::reconcile(batch) && flows(batch) && is_claimed))
}

/// Where the CA is another than before (a store that was restored elsewhere, new keys), pods get the present one: here,
/// and from `kube-system` the other namespaces. A map that cannot be written keeps no server from starting.
fn publish_ca(batch: &mut Batch<'_>, namespace: &str) {
    let map = json!({ "metadata": { "name": ROOT_CA }, "data": { "ca.crt": batch.settings.ca_pem } });
    if let Err(status) = replace_data(batch, namespace, map) {
        tracing::error!(namespace, error = %status.message, "{ROOT_CA} is not this cluster's CA");
    }
}

fn ensure(batch: &mut Batch<'_>, kind: &Kind, namespace: &str, object: Value) -> Result<(), Status> {
    if batch.has(key::object(kind, namespace, object::name(&object))) {
        return Ok(());
    }
    api::create(batch, kind, namespace, object).map(|_| ())
}

/// As [`ensure`], and makes of an object that is there what `updated` says. Whether it was made just now.
pub fn keep(
    batch: &mut Batch<'_>,
    kind: &Kind,
    namespace: &str,
    object: &Value,
    updated: impl FnOnce(&Value) -> Option<Value>,
) -> Result<bool, Status> {
    let name = object::name(object);
    let Some(old) = batch.get(kind, namespace, name)? else {
        return api::create(batch, kind, namespace, object.clone()).map(|_| true);
    };
    if let Some(new) = updated(&old) {
        api::patch(batch, kind, namespace, name, Part::Main, &|_| Ok(new.clone()))?;
    }
    Ok(false)
}

/// The default FlowSchemas and PriorityLevelConfigurations. What is in force does not depend on them (X7): one that
/// cannot be read or written keeps no server from starting.
fn flows(batch: &mut Batch<'_>) -> bool {
    for made in flows::defaults() {
        if batch.is_full() {
            return false;
        }
        if let Err(status) = flow(batch, made) {
            let (kind, name) = (&*made.kind.kind, made.name());
            tracing::error!(kind, name, error = %status.message, "a default object is not as it should be");
        }
    }
    true
}

fn flow(batch: &mut Batch<'_>, made: &flows::Default) -> Result<(), Status> {
    let is_new = keep(batch, &made.kind, "", &made.object, |old| made.updated(old))?;
    if !is_new || made.kind != kinds::FLOW_SCHEMA {
        return Ok(());
    }
    // Its controller would say so, in a write for each.
    let level = object::text(&made.object, &["spec", "priorityLevelConfiguration", "name"]);
    let found = flows::dangling(level, true, batch.now);
    let change = |old: &Value| {
        let mut new = old.clone();
        object::ensure(&mut new, &["status"]).insert("conditions".to_owned(), json!([found]));
        Ok(new)
    };
    api::patch(batch, &made.kind, "", made.name(), Part::Status, &change).map(|_| ())
}

/// As [`ensure`], and brings these fields up to date where the object is there.
fn replace(batch: &mut Batch<'_>, kind: &Kind, namespace: &str, object: Value, fields: &[&str]) -> Result<(), Status> {
    let name = object::name(&object).to_owned();
    if !batch.has(key::object(kind, namespace, &name)) {
        return api::create(batch, kind, namespace, object).map(|_| ());
    }
    let change = |old: &Value| {
        let mut new = old.clone();
        for field in fields {
            object::ensure(&mut new, &[]).insert((*field).to_owned(), object.get(*field).cloned().unwrap_or_default());
        }
        Ok(new)
    };
    api::patch(batch, kind, namespace, &name, Part::Main, &change).map(|_| ())
}

/// As [`replace`], each key of a ConfigMap by itself: others keep theirs beside ours (signatures, for example).
fn replace_data(batch: &mut Batch<'_>, namespace: &str, map: Value) -> Result<(), Status> {
    let name = object::name(&map).to_owned();
    if !batch.has(key::object(&kinds::CONFIG_MAP, namespace, &name)) {
        return api::create(batch, &kinds::CONFIG_MAP, namespace, map).map(|_| ());
    }
    let change = |old: &Value| {
        let mut new = old.clone();
        let data = object::ensure(&mut new, &["data"]);
        data.extend(map["data"].as_object().into_iter().flatten().map(|(key, value)| (key.clone(), value.clone())));
        Ok(new)
    };
    api::patch(batch, &kinds::CONFIG_MAP, namespace, &name, Part::Main, &change).map(|_| ())
}

/// By what a machine that joins knows the cluster: kubeadm's form, a kubeconfig without a user. Tokens sign it.
fn cluster_info(ca_pem: &str, advertise: SocketAddr) -> Value {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "preferences": {}, "current-context": "", "contexts": [], "users": [],
        "clusters": [{ "name": "", "cluster": {
            "server": format!("https://{advertise}"), "certificate-authority-data": STANDARD.encode(ca_pem),
        } }],
    });
    json!({ "metadata": { "name": "cluster-info" }, "data": { "kubeconfig": format!("{config:#}\n") } })
}

/// What every node of the cluster has in common.
fn settings(batch: &Batch<'_>, about: &About) -> Value {
    let dns = batch.settings.service_cidr.nth(DNS_PLACE).map(|address| address.to_string()).unwrap_or_default();
    json!({ "metadata": { "name": SETTINGS }, "data": {
        "cluster": about.cluster,
        "clusterCIDR": batch.settings.cluster_cidr.to_string(),
        "serviceCIDR": batch.settings.service_cidr.to_string(),
        "clusterDNS": dns,
        "clusterDomain": about.domain,
        "podNetwork": about.pod_network,
        "fencing": if about.is_shared { "by-default" } else { "on-request" },
    } })
}

/// The range of Service addresses is in use.
fn set_ready(batch: &mut Batch<'_>, name: &str) -> Result<(), Status> {
    let now = mainstay_api::time::rfc3339(batch.now);
    let change = |old: &Value| {
        let mut new = old.clone();
        let status = object::ensure(&mut new, &["status"]);
        status.entry("conditions").or_insert_with(|| {
            json!([{ "type": "Ready", "status": "True", "reason": "", "lastTransitionTime": now,
                "message": "Kubernetes default Service CIDR is ready" }])
        });
        Ok(new)
    };
    api::patch(batch, &kinds::SERVICE_CIDR, "", name, Part::Status, &change).map(|_| ())
}

fn storage_class() -> Value {
    json!({
        "metadata": { "name": "local-path", "annotations": { "storageclass.kubernetes.io/is-default-class": "true" } },
        "provisioner": "mainstay.io/local-path", "volumeBindingMode": "WaitForFirstConsumer", "reclaimPolicy": "Delete",
        "allowVolumeExpansion": true,
    })
}

/// The class of snapshots, and that of group snapshots, of the volumes of [`storage_class`].
fn snapshot_class(default: &str) -> Value {
    json!({
        "metadata": { "name": "local-path", "annotations": { default: "true" } },
        "driver": "mainstay.io/local-path", "deletionPolicy": "Delete",
    })
}

fn api_service(address: &str, port: u16) -> Value {
    json!({
        "metadata": { "name": "kubernetes", "labels": { "component": "apiserver", "provider": "kubernetes" } },
        "spec": {
            "clusterIP": address, "clusterIPs": [address], "type": "ClusterIP",
            "ports": [{ "name": "https", "port": 443, "protocol": "TCP", "targetPort": port }],
        },
    })
}

fn dns_service(address: &str) -> Value {
    json!({
        "metadata": { "name": "kube-dns", "labels": { "k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS" } },
        "spec": {
            "clusterIP": address, "clusterIPs": [address], "type": "ClusterIP",
            "ports": [
                { "name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53 },
                { "name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53 },
            ],
        },
    })
}

/// Every node has a DNS server of its own, which listens on the Service's address on that node: there is nothing
/// behind the address but itself. The slice is mirrored from this.
fn dns_endpoints(address: &str) -> Value {
    json!({
        "metadata": { "name": "kube-dns", "labels": { "k8s-app": "kube-dns" } },
        "subsets": [{
            "addresses": [{ "ip": address }],
            "ports": [
                { "name": "dns", "port": 53, "protocol": "UDP" },
                { "name": "dns-tcp", "port": 53, "protocol": "TCP" },
            ],
        }],
    })
}

fn endpoints(servers: &[SocketAddr]) -> Value {
    let addresses: Vec<Value> = servers.iter().map(|at| json!({ "ip": at.ip().to_string() })).collect();
    let port = servers.first().map(SocketAddr::port);
    json!({
        "metadata": { "name": "kubernetes", "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" } },
        "subsets": [{ "addresses": addresses, "ports": [{ "name": "https", "port": port, "protocol": "TCP" }] }],
    })
}

fn endpoint_slice(servers: &[SocketAddr]) -> Value {
    let ready = |at: &SocketAddr| json!({ "addresses": [at.ip().to_string()], "conditions": { "ready": true } });
    let endpoints: Vec<Value> = servers.iter().map(ready).collect();
    let is_ipv4 = servers.first().is_none_or(SocketAddr::is_ipv4);
    json!({
        "metadata": { "name": "kubernetes", "labels": { "kubernetes.io/service-name": "kubernetes" } },
        "addressType": if is_ipv4 { "IPv4" } else { "IPv6" },
        "endpoints": endpoints,
        "ports": [{ "name": "https", "port": servers.first().map(SocketAddr::port), "protocol": "TCP" }],
    })
}

#[cfg(test)]
mod tests {
    use mainstay_store::limits::TxnLimits;

    use super::*;
    use crate::api::tests::Cluster;
    use crate::fairness::Fairness;
    use kinds::{FLOW_SCHEMA, PRIORITY_LEVEL_CONFIGURATION};

    fn begin(cluster: &Cluster) {
        let advertise: SocketAddr = "192.0.2.1:6443".parse().expect("an address");
        cluster.api.write_now(false, |batch| bootstrap(batch, advertise, &About::default())).expect("begun");
    }

    #[test]
    fn conformance_the_default_flows_are_objects_and_follow_until_somebody_has_said_otherwise() {
        let cluster = Cluster::new();
        begin(&cluster);
        let revision = cluster.api.store.revision();
        begin(&cluster);
        assert_eq!(cluster.api.store.revision(), revision, "a restart that changes nothing writes nothing");
        for made in flows::defaults() {
            let stored = cluster.get(&made.kind, made.name()).expect("there");
            assert_eq!((&stored["spec"], &stored["metadata"]["generation"]), (made.spec(), &json!(1)));
            if made.kind == FLOW_SCHEMA {
                let condition = &stored["status"]["conditions"][0];
                assert_eq!((&condition["type"], &condition["status"]), (&json!("Dangling"), &json!("False")));
            }
        }
        let few = json!({ "spec": { "limited": { "nominalConcurrencyShares": 1 } } });
        for name in ["system", "workload-low"] {
            cluster.merge(&PRIORITY_LEVEL_CONFIGURATION, name, Part::Main, few.clone()).expect("changed");
        }
        let own = json!({ "metadata": { "annotations": { "apf.kubernetes.io/autoupdate-spec": "false" } } });
        cluster.merge(&PRIORITY_LEVEL_CONFIGURATION, "workload-low", Part::Main, own).expect("changed");
        cluster.delete(&FLOW_SCHEMA, "probes", &api::DeleteOptions::default()).expect("deleted");
        begin(&cluster);
        let shares = |name: &str| {
            let level = cluster.get(&PRIORITY_LEVEL_CONFIGURATION, name).expect("there");
            level["spec"]["limited"]["nominalConcurrencyShares"].clone()
        };
        assert_eq!((shares("system"), shares("workload-low")), (json!(30), json!(1)));
        assert!(cluster.get(&FLOW_SCHEMA, "probes").is_some());
    }

    #[test]
    fn x7_what_became_of_a_stored_default_keeps_neither_server_nor_nodes_out() {
        use mainstay_store::{Encoded, Op, Txn};
        let cluster = Cluster::new();
        begin(&cluster);
        let before = Fairness::new(&cluster.api.store).seats();
        let put = |kind: &Kind, name: &str, value: &'static [u8]| {
            let op = Op::Put { key: key::object(kind, "", name), value: Encoded::plain(value) };
            cluster.api.store.commit_blocking(Txn { expect: Vec::new(), ops: vec![op] }).expect("stored");
        };
        put(&FLOW_SCHEMA, "system-nodes", b"{");
        put(&PRIORITY_LEVEL_CONFIGURATION, "system", b"[]");
        put(&FLOW_SCHEMA, "exempt", br#"{"metadata":{"name":"exempt"},"spec":{"rules":7}}"#);
        put(&PRIORITY_LEVEL_CONFIGURATION, "exempt", br#"{"metadata":{"name":"exempt"},"spec":{"type":"Limited"}}"#);
        assert_eq!(Fairness::new(&cluster.api.store).seats(), before);
        begin(&cluster);
        assert_eq!(Fairness::new(&cluster.api.store).seats(), before);
    }

    #[test]
    fn x1_pods_get_the_present_ca_after_it_was_replaced() {
        let cluster = Cluster::new();
        begin(&cluster);
        let stale = json!({ "data": { "ca.crt": "an old one", "mine": "kept" } });
        let map = |namespace: &str| {
            let stored = cluster.api.batch().get(&kinds::CONFIG_MAP, namespace, ROOT_CA).expect("read");
            stored.expect("there")["data"].clone()
        };
        for namespace in ["kube-system", "default"] {
            let change = |old: &Value| {
                let mut new = old.clone();
                new["data"] = stale["data"].clone();
                Ok(new)
            };
            let patch =
                |batch: &mut Batch<'_>| api::patch(batch, &kinds::CONFIG_MAP, namespace, ROOT_CA, Part::Main, &change);
            cluster.api.write_now(false, patch).expect("changed");
        }
        begin(&cluster);
        let ca = &cluster.api.settings.ca_pem;
        for namespace in ["kube-system", "default"] {
            assert_eq!(map(namespace), json!({ "ca.crt": ca, "mine": "kept" }));
        }
        let frozen = |batch: &mut Batch<'_>| {
            let change = |old: &Value| {
                let mut new = old.clone();
                (new["data"], new["immutable"]) = (stale["data"].clone(), json!(true));
                Ok(new)
            };
            api::patch(batch, &kinds::CONFIG_MAP, "kube-system", ROOT_CA, Part::Main, &change)
        };
        cluster.api.write_now(false, frozen).expect("changed");
        begin(&cluster);
    }

    /// Otherwise the server would refuse its own endpoints, and not start.
    #[test]
    fn what_is_no_endpoint_is_not_published_as_one() {
        for (address, is_one) in [
            ("192.0.2.1", true),
            ("2001:db8::1", true),
            ("127.0.0.1", false),
            ("169.254.1.1", false),
            ("fe80::1", false),
        ] {
            let object = endpoint_slice(&[SocketAddr::new(address.parse().unwrap(), 6443)]);
            let mut causes = Vec::new();
            (kinds::ENDPOINT_SLICE.validate)(&kinds::ENDPOINT_SLICE, &object, &mut causes);
            assert_eq!((is_endpoint(address.parse().unwrap()), causes.is_empty()), (is_one, is_one), "{address}");
        }
    }

    #[tokio::test]
    async fn s12_a_first_write_that_comes_to_nothing_ends_in_words() {
        let cluster = Cluster::new();
        let error = write_all(&cluster.api, |_| Ok(done(false))).await.expect_err("it never ends");
        assert!(error.message.contains("none of it can be"), "{error:?}");
        assert!(write_all(&cluster.api, |_| Ok(done(true))).await.is_ok());
    }

    /// What etcd does not take at once is made in several transactions, and nothing is made twice.
    #[test]
    fn all_that_a_cluster_begins_with_is_made_within_what_etcd_takes_at_once() {
        let names = |most: TxnLimits| {
            let cluster = Cluster::within(most);
            let at = SocketAddr::from(([192, 0, 2, 1], 6443));
            let make = |batch: &mut Batch<'_>| bootstrap(batch, at, &About::default());
            let publish = |batch: &mut Batch<'_>| publish_authorities(batch, "clients", "proxy");
            let mut rounds = 0;
            while cluster.api.write_now(false, make).expect("made").code == MORE {
                rounds += 1;
            }
            while cluster.api.write_now(false, publish).expect("made").code == MORE {
                rounds += 1;
            }
            let revision = cluster.api.store.revision();
            assert_eq!(cluster.api.write_now(false, make).expect("made").code, 200);
            assert_eq!(cluster.api.write_now(false, publish).expect("made").code, 200);
            assert_eq!(cluster.api.store.revision(), revision, "all is there");
            let entries = cluster.api.store.range(b"", None, usize::MAX, None).expect("listed").entries;
            (entries.into_iter().map(|entry| entry.key).collect::<Vec<_>>(), rounds)
        };
        let ((embedded, once), (on_etcd, rounds)) = (names(TxnLimits::EMBEDDED), names(TxnLimits::ETCD));
        assert!(once == 0 && rounds > 1, "{once} {rounds}");
        assert_eq!(embedded, on_etcd);
    }
}
