//! Says that a ServiceCIDR is ready, and keeps it while Services have addresses that no other one has. Key: the
//! ServiceCIDR.
//!
//! Relies on the API: an address is given only out of a range that is there and does not go, checked in the same
//! transaction; so what has an address of a range that goes had it before, and is seen.
//! Guarantees V2 for ranges: the finalizer goes only from one that is being deleted, and whose addresses in use are all
//! in others that stay.
//! Differs: upstream waits ten seconds, until all its servers have heard of the deletion; here none of them gives an
//! address of it from the first moment on. Upstream lets two ranges that go vouch for each other's addresses.

use jiff::Timestamp;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use mainstay_api::kinds::addresses::Range;
use mainstay_api::kinds::servicecidr::FINALIZER;
use mainstay_api::{ObjectKey, kinds};
use serde_json::{Value, json};

use super::pvcprotection::protect;
use crate::addresses::{ranges, sorted};
use crate::decision::{Controller, Decision, Verb, guarded_status};
use crate::pods::is_terminating;
use crate::snapshot::{Change, Index, Snapshot};

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "service-cidr-controller",
    permits: &[(Verb::Patch, "servicecidrs"), (Verb::PatchStatus, "servicecidrs")],
    reads: &["servicecidrs", "ipaddresses"],
    keys,
    reconcile: |snapshot, key, now| observe(snapshot, key).map(|observed| decide(&observed, now)).unwrap_or_default(),
    many: None,
};

const READY: &str = "Ready";
const READY_MESSAGE: &str = "Kubernetes Service CIDR is ready";
const IN_USE_MESSAGE: &str =
    "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";

/// A ServiceCIDR, and whether an address would be in none without it.
pub struct Observed<'a> {
    cidr: &'a ServiceCIDR,
    in_use: bool,
}

fn keys(_before: &Snapshot, after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    match (&*change.kind.group, &*change.kind.plural) {
        ("networking.k8s.io", "servicecidrs") => wake(change.key.clone()),
        // An address that is given back; nobody gets one of a range that goes.
        ("networking.k8s.io", "ipaddresses") if change.new.is_none() => {}
        _ => return,
    }
    after.indexes.get(Index::RangesLeaving, "", "").for_each(|key| wake(key.clone()));
}

fn observe<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<Observed<'a>> {
    let cidr = snapshot.service_cidrs.get(key)?;
    let in_use = is_terminating(&cidr.metadata) && {
        // Few: as many as people have made. The addresses are looked up, and only those of the range itself.
        let others = snapshot.service_cidrs.values().filter(|other| !is_terminating(&other.metadata));
        let staying: Vec<Range> = others.flat_map(|other| ranges(other)).collect();
        let is_within =
            |range: &Range| staying.iter().any(|wider| wider.bits <= range.bits && wider.contains(range.network()));
        ranges(cidr).filter(|range| !is_within(range)).any(|range| {
            let (first, last) = (sorted(range.network()), sorted(range.last()));
            let addresses = snapshot.indexes.between(Index::Addresses, &first, &last);
            let mut addresses = addresses.filter_map(|key| key.name.parse().ok());
            addresses.any(|address| !staying.iter().any(|range| range.contains(address)))
        })
    };
    Some(Observed { cidr, in_use })
}

fn decide(observed: &Observed, now: Timestamp) -> Decision {
    let meta = &observed.cidr.metadata;
    let mut decision = protect(&kinds::SERVICE_CIDR, meta, FINALIZER, observed.in_use);
    let conditions = || observed.cidr.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let known = conditions().find(|condition| condition.type_ == READY);
    let (status, reason, message) = match (is_terminating(meta), observed.in_use) {
        (false, _) => ("True", "", READY_MESSAGE),
        (true, true) => ("False", "Terminating", IN_USE_MESSAGE),
        (true, false) => return decision,
    };
    if known.is_some_and(|known| known.status == status && known.reason == reason) {
        return decision;
    }
    let others = conditions().filter(|condition| condition.type_ != READY).map(shown);
    let ready = json!({ "type": READY, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": mainstay_api::time::rfc3339(now) });
    let all: Vec<Value> = others.chain([ready]).collect();
    let write = guarded_status(&kinds::SERVICE_CIDR, meta, json!({ "conditions": all }));
    // The finalizer's write before it moves the version on; the list is looked at again then.
    if decision.writes.is_empty() {
        decision.writes.push(write);
    }
    decision
}

fn shown(condition: &Condition) -> Value {
    serde_json::to_value(condition).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;

    fn range(world: &mut World, name: &str, cidr: &str) {
        world.put(json!({"kind": "ServiceCIDR", "metadata": {"name": name}, "spec": {"cidrs": [cidr]}}));
    }

    fn address(world: &mut World, address: &str) {
        let mut object = kinds::ipaddress::of_service(address, "default", "s");
        object["kind"] = json!("IPAddress");
        world.put(object);
    }

    fn settle(world: &mut World) {
        world.settle(&[CONTROLLER], Timestamp::UNIX_EPOCH);
    }

    fn ready(world: &World, name: &str) -> Value {
        world.get(&kinds::SERVICE_CIDR, "", name)["status"]["conditions"][0]["status"].clone()
    }

    #[test]
    fn v2_a_range_goes_when_its_last_address_is_given_back() {
        let mut world = World::default();
        range(&mut world, "kubernetes", "10.96.0.0/16");
        range(&mut world, "more", "192.0.2.0/24");
        address(&mut world, "10.96.0.1");
        address(&mut world, "192.0.2.7");
        settle(&mut world);
        assert_eq!((ready(&world, "kubernetes"), ready(&world, "more")), (json!("True"), json!("True")));
        assert_eq!(world.get(&kinds::SERVICE_CIDR, "", "more")["metadata"]["finalizers"], json!([FINALIZER]));
        world.delete(&kinds::SERVICE_CIDR, "", "more", None);
        settle(&mut world);
        let condition = &world.get(&kinds::SERVICE_CIDR, "", "more")["status"]["conditions"][0];
        assert_eq!((&condition["status"], &condition["reason"]), (&json!("False"), &json!("Terminating")));
        assert_eq!(condition["message"], IN_USE_MESSAGE);
        world.delete(&kinds::IP_ADDRESS, "", "10.96.0.1", None);
        settle(&mut world);
        assert!(!world.get(&kinds::SERVICE_CIDR, "", "more").is_null(), "its own is still in use");
        world.delete(&kinds::IP_ADDRESS, "", "192.0.2.7", None);
        settle(&mut world);
        assert!(world.get(&kinds::SERVICE_CIDR, "", "more").is_null());
    }

    #[test]
    fn v2_a_range_goes_at_once_when_its_addresses_are_in_another_one_that_stays() {
        let mut world = World::default();
        range(&mut world, "narrow", "192.0.2.0/25");
        range(&mut world, "odd", "192.0.2.0/24");
        address(&mut world, "192.0.2.7");
        settle(&mut world);
        // Both at once: neither vouches for the other.
        world.delete(&kinds::SERVICE_CIDR, "", "narrow", None);
        world.delete(&kinds::SERVICE_CIDR, "", "odd", None);
        settle(&mut world);
        assert_eq!((ready(&world, "narrow"), ready(&world, "odd")), (json!("False"), json!("False")));
        // One that has the address and neither of the ranges.
        range(&mut world, "partly", "192.0.2.0/29");
        settle(&mut world);
        assert!(world.get(&kinds::SERVICE_CIDR, "", "narrow").is_null());
        assert!(world.get(&kinds::SERVICE_CIDR, "", "odd").is_null());
        assert_eq!(ready(&world, "partly"), json!("True"));
    }

    #[test]
    fn addresses_that_are_not_services_hold_nothing_back() {
        let mut world = World::default();
        range(&mut world, "more", "192.0.2.0/24");
        world.put(json!({"kind": "IPAddress", "metadata": {"name": "192.0.2.9"},
            "spec": {"parentRef": {"resource": "gateways", "name": "g"}}}));
        settle(&mut world);
        world.delete(&kinds::SERVICE_CIDR, "", "more", None);
        settle(&mut world);
        assert!(world.get(&kinds::SERVICE_CIDR, "", "more").is_null());
    }
}
