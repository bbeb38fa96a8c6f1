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

    /// `ready | not ready : ports` of each subset, after the controller has nothing left to do.
    fn settled(world: &mut World) -> Vec<String> {
        world.settle(&[CONTROLLER], Timestamp::UNIX_EPOCH);
        let subsets = world.get(&kinds::ENDPOINTS, "default", "web")["subsets"].clone();
        let list = |list: &Value, field: &str| {
            let one = |item: &Value| item[field].to_string().replace('"', "");
            list.as_array().into_iter().flatten().map(one).collect::<Vec<_>>().join(",")
        };
        let shown = |subset: &Value| {
            let [ready, not_ready] = ["addresses", "notReadyAddresses"].map(|field| list(&subset[field], "ip"));
            let ports = &subset["ports"];
            format!("{ready} | {not_ready} : {} {}", list(ports, "name"), list(ports, "port"))
        };
        subsets.as_array().into_iter().flatten().map(shown).collect()
    }

    fn service(spec: Value) -> Value {
        let mut service = json!({"kind": "Service", "metadata": {"namespace": "default", "name": "web"},
            "spec": {"selector": {"app": "web"}, "clusterIP": "10.96.0.1",
                "ports": [{"port": 80, "targetPort": 8080}]}});
        crate::world::merge(&mut service["spec"], spec);
        service
    }

    fn running(name: &str, ips: &[&str], over: Value) -> Value {
        let all: Vec<Value> = ips.iter().map(|ip| json!({ "ip": ip })).collect();
        let mut object = pod(
            name,
            json!({"metadata": {"labels": {"app": "web"}}, "spec": {"nodeName": "n1"},
            "status": {"phase": "Running", "podIP": ips[0], "podIPs": all,
                "conditions": [{"type": "Ready", "status": "True"}]}}),
        );
        crate::world::merge(&mut object, over);
        object
    }

    /// N1: who is in, under which ports, and who is not ready.
    #[test]
    fn n1_endpoints_are_what_the_service_asks_for() {
        let leaving = || json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x.io/y"]}});
        let unready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
        let named = json!({"ports": [{"name": "http", "port": 80, "targetPort": "http"}]});
        let has_port = json!({"spec": {"containers": [{"name": "c", "image": "i", "ports": [{"name": "http",
            "containerPort": 8080}]}]}});
        let one = || running("a", &["10.0.0.1"], json!({}));
        let other = |over: Value| running("b", &["10.0.0.2", "fd00::2"], over);
        for (spec, pods, expected) in [
            (json!({}), vec![one()], vec!["10.0.0.1 |  : null 8080"]),
            (json!({}), vec![one(), other(leaving())], vec!["10.0.0.1 |  : null 8080"]),
            (json!({}), vec![one(), other(unready.clone())], vec!["10.0.0.1 | 10.0.0.2 : null 8080"]),
            (
                json!({"publishNotReadyAddresses": true}),
                vec![one(), other(unready), running("c", &["10.0.0.3"], leaving())],
                vec!["10.0.0.1,10.0.0.2,10.0.0.3 |  : null 8080"],
            ),
            (
                json!({"ipFamilies": ["IPv6", "IPv4"], "clusterIP": "fd00::1"}),
                vec![one(), other(json!({}))],
                vec!["fd00::2 |  : null 8080"],
            ),
            // A port that a pod does not have leaves it out; a Service without ports leaves nobody out.
            (named.clone(), vec![one(), other(has_port)], vec!["10.0.0.2 |  : http 8080"]),
            (named, vec![one()], vec![]),
            (json!({"ports": null, "clusterIP": "None"}), vec![one()], vec!["10.0.0.1 |  :  "]),
            (json!({"ports": [], "clusterIP": "None"}), vec![one()], vec!["10.0.0.1 |  :  "]),
            (json!({"selector": null}), vec![one()], vec![]),
            (json!({"selector": {"app": "other"}}), vec![one()], vec![]),
        ] {
            let mut world = World::default();
            pods.into_iter().for_each(|pod| world.put(pod));
            world.put(service(spec.clone()));
            assert_eq!(settled(&mut world), expected, "{spec}");
        }
        // Without ports there is no list of them, and those of a Service without a selector are somebody else's.
        let mut world = World::default();
        world.put(one());
        world.put(service(json!({"ports": null, "clusterIP": "None"})));
        settled(&mut world);
        assert!(world.get(&kinds::ENDPOINTS, "default", "web")["subsets"][0]["ports"].is_null());
        for selector in [json!(null), json!({})] {
            let mut world = World::default();
            let mut of_others = service(json!({}));
            of_others["spec"]["selector"] = selector.clone();
            world.put(of_others);
            let theirs = json!({"kind": "Endpoints", "metadata": {"namespace": "default", "name": "web"},
                "subsets": [{"addresses": [{"ip": "192.0.2.7"}], "ports": [{"port": 5}]}]});
            world.put(theirs);
            assert_eq!(settled(&mut world), ["192.0.2.7 |  : null 5"], "{selector}");
        }
        // More than a thousand are cut off, which is said, and not when it is not so any more; ready ones stay.
        let mut world = World::default();
        let unready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
        for number in 0..1001 {
            let ip = format!("10.0.{}.{}", number / 250, number % 250);
            world.put(running(&format!("p{number:04}"), &[&ip], if number == 0 { unready.clone() } else { json!({}) }));
        }
        let said = |world: &World| world.get(&kinds::ENDPOINTS, "default", "web")["metadata"]["annotations"].clone();
        world.put(service(json!({})));
        let all = settled(&mut world);
        assert!(all.len() == 1 && all[0].matches(',').count() == 999 && all[0].contains(" |  : "), "{:.60}", all[0]);
        assert_eq!(said(&world), json!({OVER_CAPACITY: "truncated"}));
        world.remove(&kinds::POD, &ObjectKey::new("default", "p0007"));
        assert!(settled(&mut world)[0].contains("| 10.0.0.0 :"));
        assert!(said(&world)[OVER_CAPACITY].is_null());
        world.put(running("q", &["10.9.9.9"], json!({})));
        settled(&mut world);
        assert_eq!(said(&world), json!({OVER_CAPACITY: "truncated"}), "on what is there, too");
    }

    /// A8: whose Endpoints they are is said by their label; what is nobody's here stays as it is.
    #[test]
    fn a8_only_its_own_endpoints_go_with_the_service() {
        let endpoints = |labels: Value, over: Value| {
            let mut object = json!({"kind": "Endpoints", "metadata": {"namespace": "default", "name": "web",
                "labels": labels}});
            crate::world::merge(&mut object, over);
            object
        };
        let ours = json!({MANAGED_BY: MANAGER});
        let leaving = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x.io/y"]}});
        for (object, goes) in [
            (endpoints(ours.clone(), json!({})), true),
            (endpoints(ours, leaving.clone()), false),
            (endpoints(json!({MANAGED_BY: "somebody"}), json!({})), false),
            (endpoints(Value::Null, json!({})), false),
        ] {
            let mut world = World::default();
            world.put(object.clone());
            let writes =
                (CONTROLLER.reconcile)(&world.snapshot, &ObjectKey::new("default", "web"), Timestamp::UNIX_EPOCH);
            assert_eq!(writes.writes.len(), usize::from(goes), "{object}");
        }
        // A Service that goes gets none.
        let mut world = World::default();
        let mut going = service(json!({}));
        crate::world::merge(&mut going, leaving);
        world.put(going);
        settled(&mut world);
        assert!(world.get(&kinds::ENDPOINTS, "default", "web").is_null());
        // Labels are the Service's, and whether it is headless.
        let labels = |spec: Value, of_service: Value, before: Value| {
            let mut world = World::default();
            let mut object = service(spec);
            object["metadata"]["labels"] = of_service;
            world.put(object);
            if !before.is_null() {
                world.put(endpoints(before, json!({})));
            }
            settled(&mut world);
            world.get(&kinds::ENDPOINTS, "default", "web")["metadata"]["labels"].clone()
        };
        let team = || json!({"team": "a", HEADLESS: "said by a user"});
        assert_eq!(labels(json!({}), team(), Value::Null), json!({"team": "a", MANAGED_BY: MANAGER}));
        let headless = json!({"clusterIP": "None"});
        let expected = json!({"team": "a", HEADLESS: "", MANAGED_BY: MANAGER});
        assert_eq!(labels(headless.clone(), team(), Value::Null), expected);
        assert_eq!(labels(headless, team(), json!({"old": "label", "team": "b"})), expected);
    }
}
