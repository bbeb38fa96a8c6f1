//! The endpoints of a Service as DNS and the packet filter see them: the EndpointSlices of the snapshot, less those
//! whose pod is gone.
//!
//! The slices are one decision behind the pods. So that no answer and no rule ever names the address of a dead pod that
//! another pod may have by now (N3), an endpoint that refers to a pod counts only while exactly that pod (by uid) is
//! there, not finished, and has the address; and it is not ready once the pod is being deleted (N2), unless the Service
//! publishes not-ready addresses. A node has only its own pods ([`Snapshot::pods_of`]); of others it believes the
//! slices, as upstream: an address rests before another pod has it, longer than a slice is behind.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use mainstay_api::ObjectKey;

use crate::pods::is_finished;
use crate::snapshot::{Change, Index, Snapshot};

/// The label that says which Service a slice belongs to.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A port that an endpoint listens on.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Port {
    /// The Service port's name, `""` for the only one.
    pub name: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Where the pod listens.
    pub port: u16,
}

/// One address behind a Service.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Backend {
    /// Its address.
    pub address: IpAddr,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Takes new connections.
    pub ready: bool,
    /// Would take connections were it not on its way out.
    pub serving: bool,
    /// On its way out.
    pub terminating: bool,
    /// Its name below the Service's, where it has one.
    pub hostname: Option<String>,
    /// The node it is on, or `""`.
    pub node: String,
}

/// What is behind a Service, in order of address; an address that is in several slices is named once per slice's ports.
pub fn backends(snapshot: &Snapshot, service: &ObjectKey) -> Vec<Backend> {
    let publish = snapshot.services.get(service).is_some_and(|service| publishes_not_ready(service));
    let mut found = Vec::new();
    for slice in slices(snapshot, service) {
        let is_of_type = |address: &IpAddr| match slice.address_type.as_str() {
            "IPv4" => address.is_ipv4(),
            "IPv6" => address.is_ipv6(),
            // A name that reads like an address is no address: what is refused of those would be let in as a name.
            _ => false,
        };
        let ports: Vec<Port> = slice.ports.iter().flatten().filter_map(port_of).collect();
        for endpoint in slice.endpoints.iter().flatten() {
            let Some((ready, terminating)) = standing(snapshot, service, endpoint, publish) else { continue };
            let conditions = endpoint.conditions.as_ref();
            let addresses = endpoint.addresses.iter().filter_map(|address| address.parse().ok());
            for address in addresses.filter(is_of_type) {
                found.push(Backend {
                    address,
                    ports: ports.clone(),
                    ready,
                    serving: conditions.and_then(|c| c.serving).unwrap_or(ready),
                    terminating,
                    hostname: endpoint.hostname.clone().filter(|name| !name.is_empty()),
                    node: endpoint.node_name.clone().unwrap_or_default(),
                });
            }
        }
    }
    found.sort();
    found.dedup();
    found
}

/// A Service's slices, whoever made them, in order of name.
pub fn slices<'a>(snapshot: &'a Snapshot, service: &ObjectKey) -> impl Iterator<Item = &'a EndpointSlice> {
    let label = BTreeMap::from([(SERVICE_NAME.to_owned(), service.name.as_ref().to_owned())]);
    snapshot.labelled::<EndpointSlice>(&service.namespace, &label).into_iter().map(|(_, slice)| &**slice)
}

/// `spec.publishNotReadyAddresses`.
pub fn publishes_not_ready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false)
}

fn port_of(port: &k8s_openapi::api::discovery::v1::EndpointPort) -> Option<Port> {
    Some(Port {
        name: port.name.clone().unwrap_or_default(),
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
        port: u16::try_from(port.port?).ok()?,
    })
}

/// (ready, terminating) of an endpoint as the pods of this same snapshot say; `None` when its pod is gone.
fn standing(snapshot: &Snapshot, service: &ObjectKey, endpoint: &Endpoint, publish: bool) -> Option<(bool, bool)> {
    let conditions = endpoint.conditions.as_ref();
    let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
    let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
    let Some(target) = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod")) else {
        return Some((ready, terminating));
    };
    let key =
        ObjectKey::new(target.namespace.as_deref().unwrap_or(&service.namespace), target.name.as_deref().unwrap_or(""));
    if snapshot.pods_of.as_deref().is_some_and(|own| endpoint.node_name.as_deref() != Some(own)) {
        return Some((ready, terminating));
    }
    let pod = snapshot.pods.get(&key)?;
    if target.uid.is_some() && pod.metadata.uid != target.uid {
        return None;
    }
    if is_finished(pod) || !endpoint.addresses.iter().any(|address| addresses(pod).any(|of_pod| of_pod == address)) {
        return None;
    }
    let leaving = pod.metadata.deletion_timestamp.is_some();
    Some((ready && (publish || !leaving), terminating || leaving))
}

/// A pod's addresses, all families.
pub fn addresses(pod: &Pod) -> impl Iterator<Item = &str> {
    let status = pod.status.as_ref();
    let many = status.and_then(|status| status.pod_ips.as_deref()).unwrap_or_default();
    let single = status.and_then(|status| status.pod_ip.as_deref()).filter(|_| many.is_empty());
    many.iter().map(|ip| ip.ip.as_str()).chain(single).filter(|ip| !ip.is_empty())
}

/// Calls `wake` with each Service whose [`backends`] or own table a change may alter: the Service itself, its slices,
/// and pods that its slices name.
pub fn concerned(before: &Snapshot, after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    match (&*change.kind.group, &*change.kind.plural) {
        ("", "services") => wake(change.key.clone()),
        ("discovery.k8s.io", "endpointslices") => {
            for meta in [&change.old, &change.new].into_iter().flatten() {
                if let Some(name) = meta.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME)) {
                    wake(ObjectKey::new(change.key.namespace.clone(), name.as_str()));
                }
            }
        }
        ("", "pods") => {
            let fingerprint = |snapshot: &Snapshot| snapshot.pods.get(&change.key).map(|pod| fingerprint(pod));
            if fingerprint(before) == fingerprint(after) {
                return;
            }
            let slices = after.found::<EndpointSlice>(Index::SlicesNaming, &change.key.namespace, &change.key.name);
            for (key, slice) in slices {
                if let Some(name) = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME)) {
                    wake(ObjectKey::new(key.namespace.clone(), name.as_str()));
                }
            }
        }
        _ => {}
    }
}

/// What [`standing`] looks at in a pod.
fn fingerprint(pod: &Pod) -> (Option<String>, bool, bool, Vec<String>) {
    let ips = addresses(pod).map(str::to_owned).collect();
    (pod.metadata.uid.clone(), pod.metadata.deletion_timestamp.is_some(), is_finished(pod), ips)
}

#[cfg(test)]
mod tests;
