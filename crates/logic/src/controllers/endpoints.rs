//! Endpoints of Services that have a selector: the older form of EndpointSlices. Key: the Service.
//!
//! Relies on and guarantees what [`super::endpointslice`] does; one object, one write.
//! Differs: when a Service is gone, only Endpoints that this controller made are deleted, not those of a person.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service};
use mainstay_api::{ObjectKey, kinds};
use serde_json::{Value, json};

use super::endpointslice::{HEADLESS, families, hostname, is_of, ports, selected, selecting, selector, target};
use crate::backend::{addresses, publishes_not_ready};
use crate::decision::{Controller, Decision, Verb, Write};
use crate::matching::Labels;
use crate::pods;
use crate::slices::Port;
use crate::snapshot::{Change, Snapshot};

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "endpoint-controller",
    permits: &[(Verb::Create, "endpoints"), (Verb::Patch, "endpoints"), (Verb::Delete, "endpoints")],
    reads: &["services", "endpoints", "pods"],
    keys,
    reconcile: |snapshot, key, now| observe(snapshot, key).map(|observed| decide(&observed, now)).unwrap_or_default(),
    many: None,
};

/// The label on Endpoints that this controller writes.
pub const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
/// Addresses in one object; the rest is left out, and the annotation says so.
const MAX_ADDRESSES: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";

/// A Service, the pods that it selects, and its Endpoints.
pub struct Observed<'a> {
    service: Option<&'a Service>,
    pods: Vec<&'a Pod>,
    endpoints: Option<&'a Endpoints>,
}

fn keys(before: &Snapshot, after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    match (&*change.kind.group, &*change.kind.plural) {
        ("", "services" | "endpoints") => wake(change.key.clone()),
        ("", "pods") => selecting(before, after, change, wake),
        _ => {}
    }
}

fn observe<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<Observed<'a>> {
    let service = snapshot.services.get(key).map(|service| &**service);
    let endpoints = snapshot.endpoints.get(key).map(|endpoints| &**endpoints);
    if service.is_none() && endpoints.is_none() {
        return None;
    }
    Some(Observed {
        service,
        pods: service.map(|service| selected(snapshot, service, key)).unwrap_or_default(),
        endpoints,
    })
}

fn decide(observed: &Observed, _now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    let Some(service) = observed.service else {
        let ours = |endpoints: &&Endpoints| is_managed(endpoints) && !pods::is_terminating(&endpoints.metadata);
        decision.writes.extend(
            observed.endpoints.filter(ours).map(|endpoints| Write::delete(&kinds::ENDPOINTS, &endpoints.metadata)),
        );
        return decision;
    };
    let is_external = service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("ExternalName");
    if is_external || selector(service).is_none() || pods::is_terminating(&service.metadata) {
        return decision;
    }
    let (subsets, truncated) = subsets(service, &observed.pods);
    let labels = labels(service);
    match observed.endpoints {
        None => {
            let mut metadata =
                json!({"namespace": service.metadata.namespace, "name": service.metadata.name, "labels": labels});
            if truncated {
                metadata["annotations"] = json!({OVER_CAPACITY: "truncated"});
            }
            let object = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata, "subsets": subsets});
            decision.writes.push(Write::Create { kind: kinds::ENDPOINTS.clone(), object });
        }
        Some(endpoints) => {
            if let Some(patch) = difference(endpoints, &subsets, &labels, truncated) {
                decision.writes.push(Write::patch(&kinds::ENDPOINTS, &endpoints.metadata, patch));
            }
        }
    }
    decision
}

/// Whether this controller wrote the object.
pub fn is_managed(endpoints: &Endpoints) -> bool {
    endpoints
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(MANAGED_BY))
        .is_some_and(|manager| manager == MANAGER)
}

fn labels(service: &Service) -> Labels {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels
}

/// Ready and not ready addresses by the ports that they share, and whether some had to be left out.
fn subsets(service: &Service, pods_of_service: &[&Pod]) -> (Vec<EndpointSubset>, bool) {
    let family = families(service).first().copied().unwrap_or("IPv4");
    let publish = publishes_not_ready(service);
    let has_ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref()).is_some_and(|ports| !ports.is_empty());
    let mut found: Vec<(bool, IpAddr, Vec<Port>, EndpointAddress)> = Vec::new();
    for pod in pods_of_service.iter().filter(|pod| publish || !pods::is_terminating(&pod.metadata)) {
        let ports = ports(service, pod);
        let Some(ip) = addresses(pod).find(|ip| is_of(family, ip)) else { continue };
        let (Ok(parsed), true) = (ip.parse(), !(has_ports && ports.is_empty())) else { continue };
        let address = EndpointAddress {
            ip: ip.to_owned(),
            hostname: hostname(service, pod),
            node_name: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
            target_ref: Some(target(pod)),
        };
        found.push((!(publish || pods::is_ready(pod)), parsed, ports, address));
    }
    // Ready ones first: those are the ones to keep when there are too many.
    found.sort_by(|a, b| {
        (a.0, a.1, &a.3.target_ref.as_ref().map(|target| &target.name)).cmp(&(
            b.0,
            b.1,
            &b.3.target_ref.as_ref().map(|target| &target.name),
        ))
    });
    let truncated = found.len() > MAX_ADDRESSES;
    found.truncate(MAX_ADDRESSES);
    let mut groups: BTreeMap<Vec<Port>, EndpointSubset> = BTreeMap::new();
    for (not_ready, _, ports, address) in found {
        let subset = groups.entry(ports).or_default();
        let list = if not_ready { &mut subset.not_ready_addresses } else { &mut subset.addresses };
        list.get_or_insert_default().push(address);
    }
    let with_ports = |(ports, subset): (Vec<Port>, EndpointSubset)| {
        let port = |(name, protocol, port, app_protocol): Port| EndpointPort {
            name: Some(name).filter(|name| !name.is_empty()),
            protocol: Some(protocol),
            port,
            app_protocol,
        };
        let ports: Vec<EndpointPort> = ports.into_iter().map(port).collect();
        EndpointSubset { ports: Some(ports).filter(|ports| !ports.is_empty()), ..subset }
    };
    (groups.into_iter().map(with_ports).collect(), truncated)
}

fn difference(endpoints: &Endpoints, subsets: &[EndpointSubset], labels: &Labels, truncated: bool) -> Option<Value> {
    let mut patch = json!({});
    if endpoints.subsets.as_deref().unwrap_or_default() != subsets {
        patch["subsets"] = json!(subsets);
    }
    let have = endpoints.metadata.labels.clone().unwrap_or_default();
    if have != *labels {
        let gone = have.keys().filter(|key| !labels.contains_key(*key)).map(|key| (key.clone(), Value::Null));
        let kept = labels.iter().map(|(key, value)| (key.clone(), json!(value)));
        patch["metadata"]["labels"] = json!(gone.chain(kept).collect::<serde_json::Map<_, _>>());
    }
    let said = crate::volume::annotation(&endpoints.metadata, OVER_CAPACITY) == "truncated";
    if said != truncated {
        patch["metadata"]["annotations"] = json!({OVER_CAPACITY: truncated.then_some("truncated")});
    }
    patch.as_object().is_some_and(|patch| !patch.is_empty()).then_some(patch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::tests::pod;
    use crate::world::World;

    #[test]
    fn conformance_a_service_that_is_a_name_elsewhere_has_no_endpoints() {
        let mut world = World::default();
        world.put(json!({"kind": "Service", "metadata": {"namespace": "default", "name": "web"},
            "spec": {"type": "ExternalName", "externalName": "a.b", "selector": {"app": "web"}}}));
        world.run(&CONTROLLER, &ObjectKey::new("default", "web"), Timestamp::UNIX_EPOCH, usize::MAX);
        assert!(world.get(&kinds::ENDPOINTS, "default", "web").is_null());
    }

    #[test]
    fn ready_and_not_ready_addresses_share_a_subset_and_follow_the_pods() {
        let mut world = World::default();
        world.put(json!({"kind": "Service", "metadata": {"namespace": "default", "name": "web"},
            "spec": {"selector": {"app": "web"}, "clusterIP": "10.96.0.1",
                "ports": [{"port": 80, "targetPort": 8080}]}}));
        let status = |ip: &str, ready: &str| {
            json!({"spec": {"nodeName": "n1"},
            "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": ready}]}})
        };
        world.put(pod("a", status("10.0.0.10", "True")));
        world.put(pod("b", status("10.0.0.9", "False")));
        world.put(pod("c", status("10.0.0.2", "True")));
        let key = ObjectKey::new("default", "web");
        let settled = |world: &mut World| {
            world.run(&CONTROLLER, &key, Timestamp::UNIX_EPOCH, usize::MAX);
            assert_eq!(world.run(&CONTROLLER, &key, Timestamp::UNIX_EPOCH, usize::MAX), 0);
            let endpoints = world.get(&kinds::ENDPOINTS, "default", "web");
            let list = |list: &Value| {
                list.as_array()
                    .into_iter()
                    .flatten()
                    .map(|a| a["ip"].as_str().unwrap().to_owned())
                    .collect::<Vec<_>>()
                    .join(",")
            };
            let subset = &endpoints["subsets"][0];
            format!(
                "{} | {} : {}",
                list(&subset["addresses"]),
                list(&subset["notReadyAddresses"]),
                subset["ports"][0]["port"]
            )
        };
        assert_eq!(settled(&mut world), "10.0.0.2,10.0.0.10 | 10.0.0.9 : 8080");
        world.delete(&kinds::POD, "default", "c", None);
        assert_eq!(settled(&mut world), "10.0.0.10 | 10.0.0.9 : 8080");
        world.remove(&kinds::SERVICE, &ObjectKey::new("default", "web"));
        world.run(&CONTROLLER, &ObjectKey::new("default", "web"), Timestamp::UNIX_EPOCH, usize::MAX);
        assert!(world.get(&kinds::ENDPOINTS, "default", "web").is_null());
    }
}
