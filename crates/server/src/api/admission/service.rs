//! Addresses and node ports of Services: each belongs to one, by a key of its own in the store that is made and
//! taken away together with the Service.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use mainstay_api::status::Cause;
use mainstay_api::{Status, kinds, object};
use serde_json::{Value, json};

use crate::api::{Batch, key};

/// Ports that are handed out on every node: upstream's default range.
const NODE_PORTS: std::ops::RangeInclusive<i64> = 30_000..=32_767;
/// The first addresses of the range are left to those who ask for one by number, where the range is large enough.
const STATIC_BAND: u64 = 256;

fn is_headless(service: &Value) -> bool {
    object::text(service, &["spec", "clusterIP"]) == "None"
}

fn type_of(service: &Value) -> &str {
    match object::text(service, &["spec", "type"]) {
        "" => "ClusterIP",
        other => other,
    }
}

/// The addresses that the Service has from the range.
fn addresses(service: &Value) -> BTreeSet<String> {
    let list = object::at(service, &["spec", "clusterIPs"]).and_then(Value::as_array).into_iter().flatten();
    list.filter_map(Value::as_str)
        .chain([object::text(service, &["spec", "clusterIP"])])
        .filter(|address| !address.is_empty() && *address != "None")
        .map(str::to_owned)
        .collect()
}

/// The node ports that the Service has.
fn node_ports(service: &Value) -> BTreeSet<i64> {
    let ports = object::at(service, &["spec", "ports"]).and_then(Value::as_array).into_iter().flatten();
    ports.filter_map(|port| port.get("nodePort").and_then(Value::as_i64)).filter(|port| *port != 0).collect()
}

/// Fills in the Service's address and node ports, and checks those it asks for. What `old` has, stays.
pub fn allocate(batch: &mut Batch<'_>, service: &mut Value, old: Option<&Value>) -> Result<(), Status> {
    let mut causes = Vec::new();
    if let Some(old) = old {
        keep_allocated(service, old);
    }
    if type_of(service) == "ExternalName" {
        let spec = object::ensure(service, &["spec"]);
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            spec.remove(field);
        }
        return Ok(());
    }
    allocate_address(batch, service, old, &mut causes);
    allocate_ports(batch, service, old, &mut causes);
    let name = object::name(service);
    if causes.is_empty() { Ok(()) } else { Err(Status::invalid(&kinds::SERVICE, name, &causes)) }
}

/// A client that replaces a Service need not repeat what it was given.
fn keep_allocated(service: &mut Value, old: &Value) {
    if type_of(service) == "ExternalName" || type_of(old) == "ExternalName" {
        return;
    }
    for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        let is_missing = object::at(service, &["spec", field]).is_none_or(|value| value.as_str() == Some(""));
        if let Some(kept) = object::at(old, &["spec", field]).filter(|_| is_missing) {
            object::ensure(service, &["spec"]).insert(field.to_owned(), kept.clone());
        }
    }
    if !has_node_ports(service) {
        return;
    }
    let old_ports = object::at(old, &["spec", "ports"]).and_then(Value::as_array).cloned().unwrap_or_default();
    let Some(ports) = object::ensure(service, &["spec"]).get_mut("ports").and_then(Value::as_array_mut) else { return };
    let asked: BTreeSet<i64> = ports.iter().filter_map(|port| port.get("nodePort").and_then(Value::as_i64)).collect();
    for port in ports.iter_mut().filter(|port| port.get("nodePort").and_then(Value::as_i64).unwrap_or(0) == 0) {
        let protocol = |port: &Value| port.get("protocol").and_then(Value::as_str).unwrap_or("TCP").to_owned();
        let same = old_ports.iter().find(|old| old.get("port") == port.get("port") && protocol(old) == protocol(port));
        let kept =
            same.and_then(|old| old.get("nodePort")).and_then(Value::as_i64).filter(|kept| !asked.contains(kept));
        if let (Some(kept), Some(port)) = (kept, port.as_object_mut()) {
            port.insert("nodePort".to_owned(), json!(kept));
        }
    }
}

fn has_node_ports(service: &Value) -> bool {
    let wants =
        object::at(service, &["spec", "allocateLoadBalancerNodePorts"]).and_then(Value::as_bool).unwrap_or(true);
    match type_of(service) {
        "NodePort" => true,
        "LoadBalancer" => wants,
        _ => false,
    }
}

fn allocate_address(batch: &mut Batch<'_>, service: &mut Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let had = old.map(addresses).unwrap_or_default();
    if !is_headless(service) {
        let asked = addresses(service);
        let chosen = match asked.first() {
            None => free_address(batch).map_or_else(
                || {
                    let why = format!("failed to allocate a serviceIP: range {} is full", batch.settings.service_cidr);
                    causes.push(Cause {
                        reason: "InternalError",
                        message: format!("Internal error: {why}"),
                        field: "spec.clusterIPs".into(),
                    });
                    String::new()
                },
                |address| address.to_string(),
            ),
            Some(asked) => {
                if let Some(why) = unusable(batch, asked).filter(|_| !had.contains(asked)) {
                    causes.push(Cause::invalid(
                        "spec.clusterIPs",
                        json!([asked]),
                        &format!("failed to allocate IP {asked}: {why}"),
                    ));
                }
                asked.clone()
            }
        };
        object::ensure(service, &["spec"]).insert("clusterIP".to_owned(), chosen.into());
    }
    let spec = object::ensure(service, &["spec"]);
    let address = spec.get("clusterIP").cloned().unwrap_or_default();
    spec.insert("clusterIPs".to_owned(), json!([address]));
    spec.entry("ipFamilies").or_insert_with(|| json!(["IPv4"]));
    spec.entry("ipFamilyPolicy").or_insert_with(|| json!("SingleStack"));
    spec.entry("internalTrafficPolicy").or_insert_with(|| json!("Cluster"));
}

fn unusable(batch: &mut Batch<'_>, asked: &str) -> Option<String> {
    let cidr = batch.settings.service_cidr;
    let last = cidr.nth(cidr.len().saturating_sub(1));
    match asked.parse::<Ipv4Addr>() {
        Ok(address) if cidr.contains(address) && Some(address) != cidr.nth(0) && Some(address) != last => {
            batch.has(key::cluster_ip(asked)).then(|| "provided IP is already allocated".to_owned())
        }
        _ => Some(format!("the provided IP ({asked}) is not in the valid range. The range of valid IPs is {cidr}")),
    }
}

/// An address that nobody has, from a random place on.
fn free_address(batch: &mut Batch<'_>) -> Option<Ipv4Addr> {
    let cidr = batch.settings.service_cidr;
    let first = if cidr.len() > 4 * STATIC_BAND { STATIC_BAND } else { 1 };
    let count = cidr.len().saturating_sub(1).checked_sub(first).filter(|count| *count > 0)?;
    let start = u64::from_le_bytes(batch.random()) % count;
    let dynamic = (0..count).map(|step| first + (start + step) % count);
    dynamic
        .chain(1..first)
        .filter_map(|index| cidr.nth(index))
        .find(|address| !batch.is_taken(&key::cluster_ip(&address.to_string())))
}

fn allocate_ports(batch: &mut Batch<'_>, service: &mut Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let wanted = has_node_ports(service);
    let had = old.map(node_ports).unwrap_or_default();
    let mut taken = node_ports(service);
    let Some(ports) = object::ensure(service, &["spec"]).get_mut("ports").and_then(Value::as_array_mut) else { return };
    for (index, port) in ports.iter_mut().enumerate() {
        let asked = port.get("nodePort").and_then(Value::as_i64).unwrap_or(0);
        let Some(port) = port.as_object_mut() else { continue };
        if asked != 0 {
            let field = format!("spec.ports[{index}].nodePort");
            if !wanted {
                // It was given while the Service was of another type, and goes back with the change.
                if had.contains(&asked) {
                    port.remove("nodePort");
                }
            } else if !NODE_PORTS.contains(&asked) {
                let why = "provided port is not in the valid range. The range of valid ports is 30000-32767";
                causes.push(Cause::invalid(field, asked, why));
            } else if !had.contains(&asked) && batch.is_taken(&key::node_port(asked)) {
                causes.push(Cause::invalid(field, asked, "provided port is already allocated"));
            }
        } else if wanted {
            match free_port(batch, &taken) {
                Some(free) => {
                    taken.insert(free);
                    port.insert("nodePort".to_owned(), json!(free));
                }
                None => causes.push(Cause {
                    reason: "InternalError",
                    message: "Internal error: failed to allocate a nodePort: range is full".to_owned(),
                    field: format!("spec.ports[{index}].nodePort"),
                }),
            }
        } else {
            port.remove("nodePort");
        }
    }
}

fn free_port(batch: &Batch<'_>, taken: &BTreeSet<i64>) -> Option<i64> {
    let count = NODE_PORTS.end() - NODE_PORTS.start() + 1;
    let start = i64::from(u32::from_le_bytes(batch.random())) % count;
    let mut all = (0..count).map(|step| NODE_PORTS.start() + (start + step) % count);
    all.find(|port| !taken.contains(port) && !batch.is_taken(&key::node_port(*port)))
}

/// Makes the keys of what the Service has now, and takes away those of what it had.
pub fn claim(batch: &mut Batch<'_>, service: &Value, old: Option<&Value>) {
    let owner = format!("{}/{}", object::namespace(service), object::name(service));
    let (had, has) = (old.map(addresses).unwrap_or_default(), addresses(service));
    for address in has.difference(&had) {
        batch.take_free(key::cluster_ip(address), &owner);
    }
    for address in had.difference(&has) {
        batch.remove_mark(key::cluster_ip(address));
    }
    let (had, has) = (old.map(node_ports).unwrap_or_default(), node_ports(service));
    for port in has.difference(&had) {
        batch.take_free(key::node_port(*port), &owner);
    }
    for port in had.difference(&has) {
        batch.remove_mark(key::node_port(*port));
    }
}

/// Takes away the keys of everything that the Service had.
pub fn release(batch: &mut Batch<'_>, service: &Value) {
    for address in addresses(service) {
        batch.remove_mark(key::cluster_ip(&address));
    }
    for port in node_ports(service) {
        batch.remove_mark(key::node_port(port));
    }
}
