//! Addresses and node ports of Services: each belongs to one, by a key of its own in the store that is made and
//! taken away together with the Service. So is the IPAddress that shows it, as upstream; but whose the address is, the
//! key says: an IPAddress may be deleted by anybody who may, and the address is given to nobody else (its controller
//! makes it again). An IPAddress that somebody else made keeps its address from Services.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use mainstay_api::kinds::service::{has_health_check, health_check_port};
use mainstay_api::kinds::servicecidr;
use mainstay_api::status::Cause;
use mainstay_api::{Status, kinds, object};
use serde_json::{Value, json};

use crate::api::{Batch, Cidr, create, key};

/// Ports that are handed out on every node: upstream's default range.
const NODE_PORTS: std::ops::RangeInclusive<i64> = 30_000..=32_767;
/// How many of a range's first addresses are left to those who ask for one by number, at least (in a range that has
/// more than these) and at most: a 16th of the range.
const STATIC_BAND: (u64, u64) = (16, 256);

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

/// The node ports that the Service has, that of its health check among them.
fn node_ports(service: &Value) -> BTreeSet<i64> {
    let ports = object::at(service, &["spec", "ports"]).and_then(Value::as_array).into_iter().flatten();
    let of_ports = ports.filter_map(|port| port.get("nodePort").and_then(Value::as_i64));
    of_ports.chain([health_check_port(service)]).filter(|port| *port != 0).collect()
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
    allocate_address(batch, service, old, &mut causes)?;
    allocate_ports(batch, service, old, &mut causes);
    allocate_health_check(batch, service, old, &mut causes);
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
    let check = health_check_port(old);
    if has_health_check(old) && has_health_check(service) && health_check_port(service) == 0 && check != 0 {
        object::ensure(service, &["spec"]).insert("healthCheckNodePort".to_owned(), json!(check));
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

fn allocate_address(
    batch: &mut Batch<'_>,
    service: &mut Value,
    old: Option<&Value>,
    causes: &mut Vec<Cause>,
) -> Result<(), Status> {
    let had = old.map(addresses).unwrap_or_default();
    if !is_headless(service) {
        let asked = addresses(service);
        let chosen = match asked.first() {
            None => {
                let free = free_address(batch, &ranges(batch)?);
                if free.is_none() {
                    causes.push(Cause {
                        reason: "InternalError",
                        message: "Internal error: failed to allocate a serviceIP: range is full".to_owned(),
                        field: "spec.clusterIPs".into(),
                    });
                }
                free.map(|address| address.to_string()).unwrap_or_default()
            }
            Some(asked) if had.contains(asked) => asked.clone(),
            Some(asked) => {
                let ranges = ranges(batch)?;
                if let Some(why) = unusable(batch, &ranges, asked) {
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
    Ok(())
}

/// The ranges from which addresses are given now, each with the name of the ServiceCIDR that says so. The server's own
/// comes first: it is there before the object that shows it.
fn ranges(batch: &Batch<'_>) -> Result<Vec<(String, Cidr)>, Status> {
    let own = (servicecidr::DEFAULT.to_owned(), batch.settings.service_cidr);
    let stored = batch.all(&kinds::SERVICE_CIDR)?;
    let of = |range: &Value| -> Vec<(String, Cidr)> {
        let cidrs = servicecidr::ranges(range).filter_map(Cidr::parse);
        cidrs.map(|cidr| (object::name(range).to_owned(), cidr)).collect()
    };
    let mut all: Vec<(String, Cidr)> =
        stored.iter().filter(|range| servicecidr::is_in_use(range)).flat_map(of).collect();
    if !stored.iter().any(|range| object::name(range) == own.0) {
        all.insert(0, own);
    }
    all.sort_by_key(|(_, cidr)| *cidr != batch.settings.service_cidr);
    Ok(all)
}

fn holds(cidr: Cidr, address: Ipv4Addr) -> bool {
    cidr.usable().is_some_and(|(first, last)| (first..=last).contains(&address))
}

/// An address of a range is given only as long as the range is there and does not go (its finalizer waits for those
/// that it knows of).
fn hold(batch: &mut Batch<'_>, range: &str) {
    batch.hold(&kinds::SERVICE_CIDR, "", range);
}

/// Whether somebody has an address, this very batch among them. Where nobody has it, that is remembered: if somebody
/// takes it before the batch is committed, the batch is prepared anew.
fn is_taken(batch: &mut Batch<'_>, address: Ipv4Addr) -> bool {
    let address = address.to_string();
    batch.is_taken(&key::cluster_ip(&address)) || batch.has(key::object(&kinds::IP_ADDRESS, "", &address))
}

fn unusable(batch: &mut Batch<'_>, ranges: &[(String, Cidr)], asked: &str) -> Option<String> {
    let Ok(address) = asked.parse::<Ipv4Addr>() else {
        let (_, cidr) = ranges.first()?;
        return Some(format!("the provided IP ({asked}) is not in the valid range. The range of valid IPs is {cidr}"));
    };
    match ranges.iter().find(|(_, cidr)| holds(*cidr, address)) {
        Some((range, _)) => {
            hold(batch, range);
            let is_taken = batch.has(key::cluster_ip(asked)) || batch.has(key::object(&kinds::IP_ADDRESS, "", asked));
            is_taken.then(|| "provided IP is already allocated".to_owned())
        }
        None => Some(match ranges.iter().find(|(_, cidr)| cidr.contains(address)) {
            Some((_, cidr)) => {
                format!("the provided IP ({asked}) is not in the valid range. The range of valid IPs is {cidr}")
            }
            None => "the provided network does not match the current range".to_owned(),
        }),
    }
}

/// An address that nobody has, from a random one on: of the first range that has one.
fn free_address(batch: &mut Batch<'_>, ranges: &[(String, Cidr)]) -> Option<Ipv4Addr> {
    for (range, cidr) in ranges {
        let Some((first, last)) = cidr.usable() else { continue };
        let dynamic = u32::from(first).saturating_add(static_band(*cidr));
        let parts = [(dynamic, u32::from(last)), (u32::from(first), dynamic - 1)];
        let found = parts.into_iter().filter(|(first, last)| first <= last).find_map(|(first, last)| {
            let count = u64::from(last - first) + 1;
            let start = u32::try_from(u64::from_le_bytes(batch.random()) % count).unwrap_or(0) + first;
            free_between(batch, start, last).or_else(|| free_between(batch, first, start.saturating_sub(1)))
        });
        if let Some(found) = found {
            hold(batch, range);
            return Some(found);
        }
    }
    None
}

/// How many of the first usable addresses of a range are left to those who ask by number.
fn static_band(cidr: Cidr) -> u32 {
    let hosts = cidr.len().saturating_sub(2);
    let band = if hosts <= STATIC_BAND.0 { 0 } else { (hosts / 16).clamp(STATIC_BAND.0, STATIC_BAND.1) };
    u32::try_from(band).unwrap_or(0)
}

/// The first free address of these.
fn free_between(batch: &mut Batch<'_>, first: u32, last: u32) -> Option<Ipv4Addr> {
    let mut next = first;
    while next <= last {
        let free = batch.allocated.free_from(Ipv4Addr::from(next)).filter(|free| u32::from(*free) <= last)?;
        if !is_taken(batch, free) {
            return Some(free);
        }
        next = u32::from(free).checked_add(1)?;
    }
    None
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

/// The port at which every node says whether it has endpoints of the Service, where load balancers want to know.
fn allocate_health_check(batch: &Batch<'_>, service: &mut Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    const FIELD: &str = "spec.healthCheckNodePort";
    if !has_health_check(service) {
        return;
    }
    let asked = health_check_port(service);
    let had = old.map(node_ports).unwrap_or_default();
    if asked == 0 {
        match free_port(batch, &node_ports(service)) {
            Some(free) => {
                object::ensure(service, &["spec"]).insert("healthCheckNodePort".to_owned(), json!(free));
            }
            None => causes.push(Cause {
                reason: "InternalError",
                message: "Internal error: failed to allocate a HealthCheck NodePort: range is full".to_owned(),
                field: FIELD.into(),
            }),
        }
        return;
    }
    let ports = object::at(service, &["spec", "ports"]).and_then(Value::as_array).into_iter().flatten();
    let is_a_ports = ports.filter_map(|port| port.get("nodePort")?.as_i64()).any(|port| port == asked);
    if !NODE_PORTS.contains(&asked) {
        let why = "provided port is not in the valid range. The range of valid ports is 30000-32767";
        causes.push(Cause::invalid(FIELD, asked, why));
    } else if is_a_ports || !had.contains(&asked) && batch.is_taken(&key::node_port(asked)) {
        causes.push(Cause::invalid(FIELD, asked, "provided port is already allocated"));
    }
}

fn free_port(batch: &Batch<'_>, taken: &BTreeSet<i64>) -> Option<i64> {
    let count = NODE_PORTS.end() - NODE_PORTS.start() + 1;
    let start = i64::from(u32::from_le_bytes(batch.random())) % count;
    let mut all = (0..count).map(|step| NODE_PORTS.start() + (start + step) % count);
    all.find(|port| !taken.contains(port) && !batch.is_taken(&key::node_port(*port)))
}

/// Makes the keys of what the Service has now, and takes away those of what it had.
///
/// # Errors
/// Those of making an IPAddress.
pub fn claim(batch: &mut Batch<'_>, service: &Value, old: Option<&Value>) -> Result<(), Status> {
    let (namespace, name) = (object::namespace(service), object::name(service));
    let owner = format!("{namespace}/{name}");
    let (had, has) = (old.map(addresses).unwrap_or_default(), addresses(service));
    for address in has.difference(&had) {
        batch.take_free(key::cluster_ip(address), &owner);
        let shown = kinds::ipaddress::of_service(address, namespace, name);
        // It is the server's, whoever makes the Service.
        let manager = batch.manager.take();
        let made = batch.unasked(|batch| create::create(batch, &kinds::IP_ADDRESS, "", shown));
        batch.manager = manager;
        made?;
    }
    for address in had.difference(&has) {
        release_address(batch, service, address)?;
    }
    let (had, has) = (old.map(node_ports).unwrap_or_default(), node_ports(service));
    for port in has.difference(&had) {
        batch.take_free(key::node_port(*port), &owner);
    }
    for port in had.difference(&has) {
        batch.remove_mark(key::node_port(*port));
    }
    Ok(())
}

/// Takes away the keys of everything that the Service had.
///
/// # Errors
/// A stored IPAddress does not decode.
pub fn release(batch: &mut Batch<'_>, service: &Value) -> Result<(), Status> {
    for address in addresses(service) {
        release_address(batch, service, &address)?;
    }
    for port in node_ports(service) {
        batch.remove_mark(key::node_port(port));
    }
    Ok(())
}

/// Takes away the key of an address, and the IPAddress that shows it; one that somebody holds by a finalizer stays, and
/// keeps the address, until its controller and they are done with it.
fn release_address(batch: &mut Batch<'_>, service: &Value, address: &str) -> Result<(), Status> {
    batch.remove_mark(key::cluster_ip(address));
    let shown = batch.get(&kinds::IP_ADDRESS, "", address)?;
    let is_own = |shown: &Value| {
        kinds::ipaddress::shows(shown, object::namespace(service), object::name(service))
            && object::finalizers(shown).next().is_none()
    };
    if let Some(shown) = shown.filter(is_own) {
        batch.remove(&kinds::IP_ADDRESS, &shown)?;
    }
    Ok(())
}
