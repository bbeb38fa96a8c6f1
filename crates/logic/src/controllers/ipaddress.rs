//! Keeps the IPAddresses that show which Service has which address. Key: the Service.
//!
//! Relies on the API, which makes and takes both in one transaction, and by whose own keys no address is given twice,
//! whatever becomes of an IPAddress. So there is something to do only where somebody else took one away or made one up,
//! and for the Services of a cluster that is older than its IPAddresses.
//! Differs: an IPAddress that shows nobody's address goes after a minute whatever is wrong with it, and one that the
//! allocator's label is on and that names no Service at all is left alone.

use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::IPAddress;
use mainstay_api::kinds::ipaddress::of_service;
use mainstay_api::{ObjectKey, kinds};

use crate::addresses::service_of;
use crate::decision::{Controller, Decision, Event, Verb, Write};
use crate::pods::is_terminating;
use crate::proxy::cluster_ips;
use crate::snapshot::{Change, Index, Objects, Snapshot};

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "ipallocator-repair-controller",
    permits: &[(Verb::Create, "ipaddresses"), (Verb::Delete, "ipaddresses")],
    reads: &["services", "ipaddresses"],
    keys,
    reconcile: |snapshot, key, now| decide(&observe(snapshot, key), now),
    many: None,
};

/// How long an IPAddress may be there without its Service, as upstream: a write of an etcd store in several parts is
/// seen part by part.
const GRACE: SignedDuration = SignedDuration::from_secs(60);

/// A Service, and the allocator's IPAddresses that name it.
pub struct Observed<'a> {
    service: Option<&'a Service>,
    own: Vec<&'a IPAddress>,
    all: &'a Objects<IPAddress>,
}

fn keys(before: &Snapshot, after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    match (&*change.kind.group, &*change.kind.plural) {
        ("", "services") => wake(change.key.clone()),
        ("networking.k8s.io", "ipaddresses") => {
            let addresses = [before, after].map(|snapshot| snapshot.ip_addresses.get(&change.key));
            addresses.into_iter().flatten().filter_map(|address| service_of(address)).for_each(wake);
        }
        _ => {}
    }
}

fn observe<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Observed<'a> {
    let own = snapshot.found::<IPAddress>(Index::AddressesOf, &key.namespace, &key.name);
    Observed {
        service: snapshot.services.get(key).map(|service| &**service),
        own: own.map(|(_, address)| &**address).collect(),
        all: &snapshot.ip_addresses,
    }
}

fn decide(observed: &Observed, now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    let spec = observed.service.and_then(|service| service.spec.as_ref());
    let wanted: Vec<IpAddr> =
        spec.filter(|spec| spec.type_.as_deref() != Some("ExternalName")).map(cluster_ips).unwrap_or_default();
    for address in observed.own.iter().filter(|address| !is_terminating(&address.metadata)) {
        let name = address.metadata.name.as_deref().unwrap_or("");
        if wanted.iter().any(|wanted| wanted.to_string() == name) {
            continue;
        }
        let made = address.metadata.creation_timestamp.as_ref().map(|time| time.0);
        match made.and_then(|made| made.checked_add(GRACE).ok()).filter(|end| *end > now) {
            Some(end) => decision.wake(end),
            None => {
                let (namespace, service) = service_of(address).map(|key| (key.namespace, key.name)).unwrap_or_default();
                let message =
                    format!("IPAddress: {name} for Service {namespace}/{service} appears to have leaked: cleaning up");
                decision.apart(|decision| {
                    let reason = "IPAddressNotAllocated";
                    decision.events.push(Event::warning(&kinds::IP_ADDRESS, &address.metadata, reason, message));
                    decision.writes.push(Write::delete(&kinds::IP_ADDRESS, &address.metadata));
                });
            }
        }
    }
    let Some(service) = observed.service.filter(|service| !is_terminating(&service.metadata)) else { return decision };
    let key = crate::decision::key_of(&service.metadata);
    for ip in wanted {
        let name = ip.to_string();
        if observed.all.contains_key(&ObjectKey::new("", name.as_str())) {
            continue;
        }
        let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
        let message = format!("Cluster IP [{family}]: {name} is not allocated; repairing");
        let object = of_service(&name, &key.namespace, &key.name);
        decision.apart(|decision| {
            let reason = "ClusterIPNotAllocated";
            decision.events.push(Event::warning(&kinds::SERVICE, &service.metadata, reason, message));
            decision.writes.push(Write::Create { kind: kinds::IP_ADDRESS.clone(), object });
        });
    }
    decision
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;
    use serde_json::json;

    #[test]
    fn a_services_address_is_shown_again_when_somebody_takes_it_away_and_what_is_made_up_goes() {
        let mut world = World::default();
        let at = |second| Timestamp::from_second(second).expect("a time");
        world.put(json!({"kind": "Service", "metadata": {"namespace": "default", "name": "db"},
            "spec": {"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "ports": [{"port": 1}]}}));
        world.put(json!({"kind": "Service", "metadata": {"namespace": "default", "name": "headless"},
            "spec": {"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"port": 1}]}}));
        world.settle(&[CONTROLLER], at(0));
        let shown = world.get(&kinds::IP_ADDRESS, "", "10.96.0.7");
        assert_eq!(shown["spec"]["parentRef"], json!({"resource": "services", "namespace": "default", "name": "db"}));
        assert_eq!(world.all(&kinds::IP_ADDRESS).count(), 1);
        world.delete(&kinds::IP_ADDRESS, "", "10.96.0.7", None);
        world.settle(&[CONTROLLER], at(0));
        assert_eq!(world.all(&kinds::IP_ADDRESS).count(), 1);
        let mut made_up = of_service("10.96.0.8", "default", "db");
        made_up["kind"] = json!("IPAddress");
        made_up["metadata"]["creationTimestamp"] = json!("1970-01-01T00:00:00Z");
        world.put(made_up);
        world.settle(&[CONTROLLER], at(30));
        assert_eq!(world.all(&kinds::IP_ADDRESS).count(), 2, "it may be a moment older than its Service");
        world.run(&CONTROLLER, &ObjectKey::new("default", "db"), at(60), usize::MAX);
        assert_eq!(world.get(&kinds::IP_ADDRESS, "", "10.96.0.8"), json!(null));
        assert_eq!(world.all(&kinds::IP_ADDRESS).count(), 1);
    }
}
