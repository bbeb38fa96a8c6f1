//! EndpointSlices for Endpoints that a person or an operator keeps, for Services without a selector. Key: the
//! Endpoints.
//!
//! Relies on and guarantees what [`super::endpointslice`] does.
//! Differs: names are derived, as there.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};
use mainstay_api::{ObjectKey, kinds};

use super::endpointslice::selector;
use crate::backend::SERVICE_NAME;
use crate::decision::{Controller, Decision, Verb, Write};
use crate::pods::is_terminating;
use crate::slices::{self, Group, MANAGED_BY, Owner, Port, arrange, is_managed_by};
use crate::snapshot::{Change, Objects, Snapshot};

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "endpoint-slice-mirroring-controller",
    permits: &[(Verb::Create, "endpointslices"), (Verb::Patch, "endpointslices"), (Verb::Delete, "endpointslices")],
    reads: &["services", "endpoints", "endpointslices"],
    keys,
    reconcile: |snapshot, key, now| observe(snapshot, key).map(|observed| decide(&observed, now)).unwrap_or_default(),
    many: None,
};

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
/// On Endpoints: not to be mirrored.
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Addresses of one subset that are mirrored; upstream's limit.
const MAX_ADDRESSES: usize = 1000;

/// Endpoints, the Service of their name, and the slices that mirror them.
pub struct Observed<'a> {
    service: Option<&'a Service>,
    endpoints: Option<&'a Endpoints>,
    slices: Vec<&'a EndpointSlice>,
    all_slices: &'a Objects<EndpointSlice>,
}

fn keys(_before: &Snapshot, _after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    match (&*change.kind.group, &*change.kind.plural) {
        ("", "services" | "endpoints") => wake(change.key.clone()),
        ("discovery.k8s.io", "endpointslices") => {
            for meta in [&change.old, &change.new].into_iter().flatten() {
                let labels = meta.metadata.labels.as_ref();
                let mirrored =
                    labels.and_then(|labels| labels.get(MANAGED_BY)).is_some_and(|manager| manager == MANAGER);
                if let Some(name) = labels.and_then(|labels| labels.get(SERVICE_NAME)).filter(|_| mirrored) {
                    wake(ObjectKey::new(change.key.namespace.clone(), name.as_str()));
                }
            }
        }
        _ => {}
    }
}

fn observe<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<Observed<'a>> {
    Some(Observed {
        service: snapshot.services.get(key).map(|service| &**service),
        endpoints: snapshot.endpoints.get(key).map(|endpoints| &**endpoints),
        slices: crate::backend::slices(snapshot, key).filter(|slice| is_managed_by(slice, MANAGER)).collect(),
        all_slices: &snapshot.endpoint_slices,
    })
}

fn decide(observed: &Observed, _now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    let own = observed.service.filter(|service| selector(service).is_none() && !is_terminating(&service.metadata));
    let Some(endpoints) = observed.endpoints.filter(|endpoints| own.is_some() && is_mirrored(endpoints)) else {
        let slices = observed.slices.iter().filter(|slice| !is_terminating(&slice.metadata));
        slices.for_each(|slice| decision.push_apart(Write::delete(&kinds::ENDPOINT_SLICE, &slice.metadata)));
        return decision;
    };
    let mut wanted: BTreeMap<Group, slices::Endpoints> = BTreeMap::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ready = subset.addresses.iter().flatten().map(|address| (true, address));
        let not_ready = subset.not_ready_addresses.iter().flatten().map(|address| (false, address));
        for (ready, address) in ready.chain(not_ready).take(MAX_ADDRESSES) {
            let family = if address.ip.contains(':') { "IPv6" } else { "IPv4" };
            let uid = address.target_ref.as_ref().and_then(|target| target.uid.clone()).unwrap_or_default();
            wanted
                .entry((family, ports(subset)))
                .or_default()
                .insert((address.ip.clone(), uid), endpoint(address, ready));
        }
    }
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), endpoints.metadata.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let owner = Owner { kind: &kinds::ENDPOINTS, metadata: &endpoints.metadata, labels };
    arrange(&mut decision, &owner, wanted, &observed.slices, observed.all_slices);
    decision
}

fn is_mirrored(endpoints: &Endpoints) -> bool {
    let meta = &endpoints.metadata;
    let skipped = meta.labels.as_ref().and_then(|labels| labels.get(SKIP)).is_some_and(|value| value == "true");
    let leader = meta.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(LEADER));
    !skipped && !leader && !is_terminating(meta)
}

fn ports(subset: &EndpointSubset) -> Vec<Port> {
    let port = |port: &k8s_openapi::api::core::v1::EndpointPort| {
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        (port.name.clone().unwrap_or_default(), protocol, port.port, port.app_protocol.clone())
    };
    let mut ports: Vec<Port> = subset.ports.iter().flatten().map(port).collect();
    ports.sort();
    ports
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone().filter(|hostname| !hostname.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;
    use serde_json::json;

    #[test]
    fn endpoints_kept_by_hand_are_mirrored_and_go_with_them() {
        let mut world = World::default();
        let key = ObjectKey::new("default", "db");
        let run = |world: &mut World| {
            world.run(&CONTROLLER, &key, Timestamp::UNIX_EPOCH, usize::MAX);
            assert_eq!(world.run(&CONTROLLER, &key, Timestamp::UNIX_EPOCH, usize::MAX), 0);
            world.all(&kinds::ENDPOINT_SLICE).cloned().collect::<Vec<_>>()
        };
        world.put(json!({"kind": "Service", "metadata": {"namespace": "default", "name": "db"},
            "spec": {"ports": [{"port": 5432}]}}));
        world.put(json!({"kind": "Endpoints", "metadata": {"namespace": "default", "name": "db"},
            "subsets": [{"addresses": [{"ip": "192.0.2.7"}], "notReadyAddresses": [{"ip": "192.0.2.8"}],
                "ports": [{"port": 5432}]}]}));
        let slices = run(&mut world);
        assert_eq!(slices.len(), 1);
        assert_eq!(slices[0]["endpoints"][0]["conditions"]["ready"], true);
        assert_eq!(slices[0]["endpoints"][1]["conditions"]["ready"], false);
        assert_eq!(slices[0]["metadata"]["ownerReferences"][0]["kind"], "Endpoints");
        // One that is on its way is not told to go again.
        let name = slices[0]["metadata"]["name"].as_str().unwrap();
        let mut leaving = world.clone();
        let finalizers = json!({"metadata": {"finalizers": ["x.io/held"]}});
        leaving.patch(&kinds::ENDPOINT_SLICE, "default", name, finalizers);
        leaving.patch(&kinds::SERVICE, "default", "db", json!({"spec": {"selector": {"app": "db"}}}));
        assert_eq!(run(&mut leaving).len(), 1);
        world.patch(&kinds::SERVICE, "default", "db", json!({"spec": {"selector": {"app": "db"}}}));
        assert!(run(&mut world).is_empty(), "with a selector, the slices are the other controller's");
    }

    /// Each way in which Endpoints or their Service are not to be mirrored, and back.
    #[test]
    fn slices_come_and_go_with_what_is_mirrored_whoever_changes_it() {
        let now = Timestamp::UNIX_EPOCH;
        let leaving = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x.io/held"]}});
        let table = [
            (&kinds::ENDPOINTS, json!({"metadata": {"labels": {SKIP: "true"}}}), 0),
            (&kinds::ENDPOINTS, json!({"metadata": {"labels": {SKIP: "false"}}}), 2),
            (&kinds::ENDPOINTS, json!({"metadata": {"annotations": {LEADER: "{}"}}}), 0),
            (&kinds::ENDPOINTS, json!({"metadata": {"annotations": {"a": "b"}}}), 2),
            (&kinds::ENDPOINTS, leaving.clone(), 0),
            (&kinds::SERVICE, leaving, 0),
            (&kinds::SERVICE, json!({"spec": {"selector": {"app": "db"}}}), 0),
        ];
        for (kind, patch, expected) in table {
            let mut world = World::default();
            world.put(json!({"kind": "Service", "metadata": {"namespace": "default", "name": "db"}, "spec": {}}));
            world.put(json!({"kind": "Endpoints", "metadata": {"namespace": "default", "name": "db"},
                "subsets": [{"addresses": [{"ip": "192.0.2.7", "hostname": ""}, {"ip": "2001:db8::7", "hostname": "a"}],
                    "ports": [{"name": "b", "port": 2}, {"name": "a", "port": 1}]}]}));
            let foreign = json!({"kind": "EndpointSlice", "metadata": {"namespace": "default", "name": "theirs",
                "labels": {SERVICE_NAME: "db"}}, "addressType": "IPv4", "endpoints": []});
            world.put(foreign.clone());
            world.settle(&[CONTROLLER], now);
            let mirrored = |world: &World| {
                let own = |slice: &&serde_json::Value| slice["metadata"]["name"] != "theirs";
                world.all(&kinds::ENDPOINT_SLICE).filter(own).cloned().collect::<Vec<_>>()
            };
            let mut slices = mirrored(&world);
            slices.sort_by_key(|slice| slice["addressType"].to_string());
            let shown: Vec<_> = slices.iter().map(|s| (&s["addressType"], &s["endpoints"][0]["hostname"])).collect();
            assert_eq!(shown, [(&json!("IPv4"), &json!(null)), (&json!("IPv6"), &json!("a"))]);
            assert_eq!(slices[0]["ports"].as_array().unwrap().len(), 2);
            // What somebody does to a slice is undone.
            let name = slices[0]["metadata"]["name"].as_str().unwrap();
            world.remove(&kinds::ENDPOINT_SLICE, &ObjectKey::new("default", name));
            world.settle(&[CONTROLLER], now);
            assert_eq!(mirrored(&world).len(), 2);
            world.patch(kind, "default", "db", patch.clone());
            world.settle(&[CONTROLLER], now);
            assert_eq!(mirrored(&world).len(), expected, "{patch}");
            assert!(!world.get(&kinds::ENDPOINT_SLICE, "default", "theirs").is_null());
        }
    }
}
