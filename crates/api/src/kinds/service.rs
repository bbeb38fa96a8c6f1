//! Service: a stable name and address for pods.

use std::collections::{BTreeSet, HashMap, HashSet};

use std::borrow::Cow::Borrowed;

use serde_json::{Value, json};

use super::addresses::legacy_target;
use super::cells::{self, AGE, NAME, SELECTOR, text_column};
use super::container_validation::port_or_name;
use super::field::{Field, default, each, inner, keep, made};
use super::{BASE, Kind, NameRule, Row, Subresource, workload};
use crate::names;
use crate::object::{ensure, name, text};
use crate::status::Cause;

/// Default of `sessionAffinityConfig.clientIP.timeoutSeconds`: three hours.
const AFFINITY_SECONDS: i64 = 10_800;
/// Longest of the same: a day.
const MAX_AFFINITY_SECONDS: i64 = 86_400;
/// Load balancer addresses are cut off after so many characters in the narrow table.
const ADDRESS_WIDTH: usize = 16;

/// The row of Service.
pub static SERVICE: Kind = Kind::BuiltIn(&Row {
    kind: Borrowed("Service"),
    plural: Borrowed("services"),
    singular: Borrowed("service"),
    short_names: Borrowed(&[Borrowed("svc")]),
    categories: Borrowed(&[Borrowed("all")]),
    subresources: Borrowed(&[Subresource::Status, Subresource::Proxy]),
    type_name: Borrowed("io.k8s.api.core.v1.Service"),
    name_rule: NameRule::Label1035,
    fields: |_, service| {
        ["clusterIP", "type"]
            .map(|f| (if f == "type" { "spec.type" } else { "spec.clusterIP" }, text(service, &["spec", f]).to_owned()))
            .into()
    },
    columns: Borrowed(&[
        NAME,
        text_column("Type", "How the service can be reached."),
        text_column("Cluster-IP", "Its address inside the cluster."),
        text_column("External-IP", "Its addresses outside."),
        text_column("Port(s)", "Its ports."),
        AGE,
        SELECTOR,
    ]),
    row: |_, service, now| {
        let spec = |field| text(service, &["spec", field]);
        vec![
            json!(name(service)),
            json!(spec("type")),
            cells::or_none(spec("clusterIP")),
            json!(external(service)),
            cells::or_none(&ports(service)),
            cells::age(service, now),
            cells::labels(service, &["spec", "selector"]),
        ]
    },
    defaults: |_, object| defaults(object),
    prepare_create: |_, service| {
        ensure(service, &[]).insert("status".to_owned(), json!({ "loadBalancer": {} }));
    },
    prepare_update: |_, new, old| prepare_update(new, old),
    validate: |_, object, causes| validate(object, causes),
    validate_update: |_, new, old, causes| {
        let outside = |s: &Value| text(s, &["spec", "type"]) == "ExternalName";
        let (now, before) = (text(new, &["spec", "clusterIP"]), text(old, &["spec", "clusterIP"]));
        if !outside(new) && !outside(old) && !before.is_empty() && now != before {
            causes.push(Cause::invalid("spec.clusterIPs[0]", json!([now]), "may not change once set"));
        }
        let [class, earlier] = [new, old].map(|s| Field::root(s).dig(&["spec", "loadBalancerClass"]));
        let check = |s: &Value| has_health_check(s).then(|| health_check_port(s)).filter(|port| *port != 0);
        if let (Some(port), Some(earlier)) = (check(new), check(old))
            && port != earlier
        {
            causes.push(Cause::invalid("spec.healthCheckNodePort", port, "field is immutable"));
        }
        let balances = |s: &Value| text(s, &["spec", "type"]) == "LoadBalancer";
        if balances(new) && balances(old) && class.value != earlier.value {
            causes.push(class.invalid("may not change once set"));
        }
    },
    warnings: told,
    ..BASE
});

/// What does nothing, or has a better name.
fn told(_: &Row, service: &Value) -> Vec<String> {
    let service = Field::root(service);
    let (spec, mut warnings) = (service.get("spec"), Vec::new());
    let hints = "service.kubernetes.io/topology-aware-hints";
    if service.dig(&["metadata", "annotations"]).value.get(hints).is_some() {
        let instead = "service.kubernetes.io/topology-mode";
        warnings.push(format!("annotation {hints} is deprecated, please use {instead} instead"));
    }
    let (type_, has_external_ips) = (spec.get("type").text(), spec.get("externalIPs").len() > 0);
    let (is_headless, is_name) =
        (type_ == "ClusterIP" && spec.get("clusterIP").text() == "None", type_ == "ExternalName");
    let mut tell = |told: bool, what: &str| warnings.extend(told.then(|| what.to_owned()));
    let balancer = !spec.get("loadBalancerIP").text().is_empty();
    tell(is_headless && balancer, "spec.loadBalancerIP is ignored for headless services");
    tell(is_headless && has_external_ips, "spec.externalIPs is ignored for headless services");
    let has_affinity = !matches!(spec.get("sessionAffinity").text(), "" | "None");
    tell(is_headless && has_affinity, "spec.SessionAffinity is ignored for headless services");
    let deprecated = "spec.externalIPs is deprecated and may no longer be implemented in some clusters";
    tell(has_external_ips && !is_headless && !is_name, deprecated);
    tell(is_name && has_external_ips, "spec.externalIPs is ignored when spec.type is \"ExternalName\"");
    let named = !spec.get("externalName").text().is_empty();
    tell(!is_name && named, "spec.externalName is ignored when spec.type is not \"ExternalName\"");
    let is_close = spec.get("trafficDistribution").text() == "PreferClose";
    tell(is_close, "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"");
    warnings
}

fn defaults(service: &mut Value) {
    let Some(spec) = made(service, "spec") else { return };
    default(spec, "sessionAffinity", "None");
    default(spec, "type", "ClusterIP");
    if text(spec, &["sessionAffinity"]) == "ClientIP"
        && let Some(client) = made(spec, "sessionAffinityConfig").and_then(|config| made(config, "clientIP"))
    {
        default(client, "timeoutSeconds", AFFINITY_SECONDS);
    }
    if text(spec, &["sessionAffinity"]) == "None" {
        super::field::remove(spec, "sessionAffinityConfig");
    }
    for port in each(spec, "ports") {
        default(port, "protocol", "TCP");
        if matches!(port.get("targetPort"), Some(target) if *target == 0 || *target == "") {
            super::field::remove(port, "targetPort");
        }
        if let Some(number) = port.get("port").cloned() {
            default(port, "targetPort", number);
        }
    }
    let kind = text(spec, &["type"]).to_owned();
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        default(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind != "ExternalName" {
        default(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        default(spec, "allocateLoadBalancerNodePorts", true);
    }
    let address = text(spec, &["clusterIP"]).to_owned();
    if !address.is_empty() {
        default(spec, "clusterIPs", json!([address]));
    }
    let balancer = inner(service, "status").and_then(|status| inner(status, "loadBalancer"));
    if let Some(balancer) = balancer.filter(|_| kind == "LoadBalancer") {
        each(balancer, "ingress")
            .filter(|address| !text(address, &["ip"]).is_empty())
            .for_each(|address| default(address, "ipMode", "VIP"));
    }
}

/// Whether load balancers look by a port of its own which nodes have endpoints of a Service.
pub fn has_health_check(service: &Value) -> bool {
    let spec = |field| text(service, &["spec", field]);
    spec("type") == "LoadBalancer" && spec("externalTrafficPolicy") == "Local"
}

/// The port by which they do; 0 for none.
pub fn health_check_port(service: &Value) -> i64 {
    Field::root(service).dig(&["spec", "healthCheckNodePort"]).int().unwrap_or(0)
}

/// What the server gave the service stays its own where an update leaves it out.
fn prepare_update(new: &mut Value, old: &Value) {
    workload::prepare_update(new, old);
    let kind = |s: &Value| text(s, &["spec", "type"]).to_owned();
    let (now, before) = (kind(new), kind(old));
    let (has_check, had_check) = (has_health_check(new), has_health_check(old));
    let (check, earlier_check) = (health_check_port(new), health_check_port(old));
    let (Some(spec), Some(stored)) = (inner(new, "spec"), old.get("spec")) else { return };
    drop_what_the_type_lost(spec, stored, &now, &before);
    if had_check && (has_check && check == 0 || !has_check && check == earlier_check) {
        super::field::remove(spec, "healthCheckNodePort");
        if has_check {
            keep(spec, stored, "healthCheckNodePort");
        }
    }
    if now == "ExternalName" || before == "ExternalName" {
        return;
    }
    if text(spec, &["clusterIP"]).is_empty() {
        keep(spec, stored, "clusterIP");
        keep(spec, stored, "clusterIPs");
    }
    for field in ["ipFamilies", "ipFamilyPolicy"] {
        if spec.get(field).is_none_or(Value::is_null) {
            keep(spec, stored, field);
        }
    }
    if matches!(now.as_str(), "NodePort" | "LoadBalancer") {
        keep_node_ports(spec, stored);
    }
}

/// A service that changes its type gives back what only the old type has, unless the update asks for other values.
fn drop_what_the_type_lost(spec: &mut Value, stored: &Value, now: &str, before: &str) {
    let on_nodes = |kind: &str| matches!(kind, "NodePort" | "LoadBalancer");
    if on_nodes(before) && !on_nodes(now) {
        let old: HashSet<Value> =
            Field::root(stored).get("ports").items().map(|port| port.get("nodePort").value.clone()).collect();
        for port in each(spec, "ports").filter(|port| port.get("nodePort").is_some_and(|n| old.contains(n))) {
            super::field::remove(port, "nodePort");
        }
    }
    let mut drop_same = |field| {
        if spec.get(field) == stored.get(field) {
            super::field::remove(spec, field);
        }
    };
    if on_nodes(before) && !on_nodes(now) {
        drop_same("externalTrafficPolicy");
    }
    if before == "LoadBalancer" && now != "LoadBalancer" {
        ["allocateLoadBalancerNodePorts", "healthCheckNodePort", "loadBalancerClass"]
            .into_iter()
            .for_each(&mut drop_same);
    }
    if now == "ExternalName" && before != "ExternalName" {
        ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"]
            .into_iter()
            .for_each(&mut drop_same);
    }
}

fn keep_node_ports(spec: &mut Value, stored: &Value) {
    let old: HashMap<Value, Value> = Field::root(stored)
        .get("ports")
        .items()
        .filter(|port| port.get("nodePort").int().is_some_and(|n| n != 0))
        .map(|port| (json!([port.get("port").value, port.get("protocol").value]), port.get("nodePort").value.clone()))
        .collect();
    for port in each(spec, "ports") {
        let key = json!([port.get("port"), port.get("protocol")]);
        let given = port.get("nodePort").and_then(Value::as_i64).unwrap_or(0) != 0;
        if let Some(number) = old.get(&key).filter(|_| !given) {
            super::field::remove(port, "nodePort");
            default(port, "nodePort", number.clone());
        }
    }
}

fn validate(service: &Value, causes: &mut Vec<Cause>) {
    let spec = Field::root(service).get("spec");
    let (kind, address) = (spec.get("type"), spec.get("clusterIP"));
    kind.need_one_of(causes, &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
    let headless = address.text() == "None";
    if spec.get("ports").len() == 0 && !headless && kind.text() != "ExternalName" {
        causes.push(Cause::required("spec.ports", ""));
    }
    match kind.text() {
        "ExternalName" => {
            let external = spec.get("externalName");
            external.need(causes, |name| names::subdomain(name.strip_suffix('.').unwrap_or(name)));
            if !address.text().is_empty() {
                causes.push(Cause::forbidden("spec.clusterIPs[0]", "may not be set for ExternalName services"));
            }
        }
        "NodePort" | "LoadBalancer" if headless => {
            causes.push(Cause::invalid(
                "spec.clusterIPs[0]",
                "None",
                &format!("may not be set to 'None' for {} services", kind.text()),
            ));
        }
        _ => {}
    }
    if !headless && !address.text().is_empty() && address.text().parse::<std::net::IpAddr>().is_err() {
        causes.push(Cause::invalid(
            "spec.clusterIPs[0]",
            address.text(),
            "must be empty, 'None', or a valid IP address",
        ));
    }
    // Connections of all pods and nodes go where these say.
    for external in spec.get("externalIPs").items() {
        causes.extend(legacy_target(external.text()).iter().map(|wrong| external.invalid(wrong)));
    }
    spec.get("sessionAffinity").need_one_of(causes, &["ClientIP", "None"]);
    let timeout = spec.dig(&["sessionAffinityConfig", "clientIP", "timeoutSeconds"]);
    if timeout.int().is_some_and(|seconds| !(1..=MAX_AFFINITY_SECONDS).contains(&seconds)) {
        causes.push(timeout.invalid(&format!("must be greater than 0 and less than {MAX_AFFINITY_SECONDS}")));
    }
    validate_balancer(&spec, causes);
    for policy in ["internalTrafficPolicy", "externalTrafficPolicy"] {
        spec.get(policy).one_of(causes, &["Cluster", "Local"]);
    }
    spec.get("ipFamilyPolicy").one_of(causes, &["PreferDualStack", "RequireDualStack", "SingleStack"]);
    let mut families = BTreeSet::new();
    for family in spec.get("ipFamilies").items() {
        if !matches!(family.text(), "IPv4" | "IPv6") {
            causes.push(Cause::not_supported(&family.path, family.text(), &["IPv4", "IPv6"]));
        }
        if !families.insert(family.text()) {
            causes.push(Cause::duplicate(&family.path, family.text()));
        }
    }
    spec.get("trafficDistribution").one_of(causes, &["PreferClose", "PreferSameNode", "PreferSameZone"]);
    for (key, value) in spec.get("selector").entries() {
        causes.extend(names::qualified(key).iter().map(|wrong| Cause::invalid("spec.selector", key, wrong)));
        causes.extend(
            names::label_value(value.text()).iter().map(|wrong| Cause::invalid("spec.selector", value.text(), wrong)),
        );
    }
    validate_ports(&spec, headless, causes);
}

/// What is of a load balancer alone, or of what is reached from outside.
fn validate_balancer(spec: &Field, causes: &mut Vec<Cause>) {
    const ALONE: &str = "may only be used when `type` is 'LoadBalancer'";
    let kind = spec.get("type").text();
    let (class, ranges) = (spec.get("loadBalancerClass"), spec.get("loadBalancerSourceRanges"));
    if kind == "LoadBalancer" && class.is_set() {
        causes.extend(names::qualified(class.text()).iter().map(|wrong| class.invalid(wrong)));
    }
    let allocates = spec.get("allocateLoadBalancerNodePorts");
    for field in [&class, &allocates].into_iter().filter(|field| kind != "LoadBalancer" && field.is_set()) {
        causes.push(Cause::forbidden(&field.path, ALONE));
    }
    if kind != "LoadBalancer" && ranges.len() > 0 {
        // As upstream writes it.
        causes.push(Cause::forbidden(format!("{}.LoadBalancerSourceRanges", spec.path), ALONE));
    }
    let (policy, check) = (spec.get("externalTrafficPolicy"), spec.get("healthCheckNodePort"));
    let is_outside =
        matches!(kind, "LoadBalancer" | "NodePort") || (kind == "ClusterIP" && spec.get("externalIPs").len() > 0);
    if !is_outside && !policy.text().is_empty() {
        causes.push(policy.invalid("may only be set for externally-accessible services"));
    }
    if !(kind == "LoadBalancer" && policy.text() == "Local") && check.int().is_some_and(|port| port != 0) {
        let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        causes.push(check.invalid(why));
    }
}

fn validate_ports(spec: &Field, headless: bool, causes: &mut Vec<Cause>) {
    let several = spec.get("ports").len() > 1;
    let (mut named, mut numbered, mut on_the_nodes) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for port in spec.get("ports").items() {
        let (title, number, protocol) = (port.get("name"), port.get("port"), port.get("protocol"));
        if several {
            title.need(causes, names::label);
        } else {
            title.check(causes, names::label);
        }
        if !title.text().is_empty() && !named.insert(title.text()) {
            causes.push(Cause::duplicate(&title.path, title.text()));
        }
        let value = number.int().unwrap_or(0);
        causes.extend(names::port(value).iter().map(|wrong| Cause::invalid(&number.path, value, wrong)));
        protocol.need_one_of(causes, &["SCTP", "TCP", "UDP"]);
        port_or_name(&port.get("targetPort"), causes);
        if !numbered.insert((protocol.text(), value)) {
            causes.push(Cause::duplicate(&port.path, port.value.clone()));
        }
        port.get("appProtocol").check(causes, names::qualified);
        let node = port.get("nodePort");
        if let Some(number) = node.int().filter(|number| *number != 0)
            && !on_the_nodes.insert((protocol.text(), number))
        {
            causes.push(Cause::duplicate(&node.path, number));
        }
        let on_nodes = matches!(spec.get("type").text(), "NodePort" | "LoadBalancer");
        if node.int().is_some_and(|n| n != 0) && (!on_nodes || headless) {
            causes.push(Cause::forbidden(&node.path, "may not be used when `type` is 'ClusterIP'"));
        }
    }
}

fn ports(service: &Value) -> String {
    let one = |port: Field| {
        let (number, protocol) = (port.get("port").int().unwrap_or(0), port.get("protocol").text());
        match port.get("nodePort").int().unwrap_or(0) {
            0 => format!("{number}/{protocol}"),
            node => format!("{number}:{node}/{protocol}"),
        }
    };
    Field::root(service).dig(&["spec", "ports"]).items().map(one).collect::<Vec<_>>().join(",")
}

fn external(service: &Value) -> String {
    let spec = Field::root(service).get("spec");
    let given: Vec<&str> = spec.get("externalIPs").items().map(|ip| ip.text()).collect();
    match spec.get("type").text() {
        "ExternalName" => return spec.get("externalName").text().to_owned(),
        "LoadBalancer" => {}
        "ClusterIP" | "NodePort" if given.is_empty() => return "<none>".to_owned(),
        "ClusterIP" | "NodePort" => return given.join(","),
        _ => return "<unknown>".to_owned(),
    }
    let ingress = Field::root(service).dig(&["status", "loadBalancer", "ingress"]).items();
    let address = |i: Field| {
        if i.get("ip").text().is_empty() { i.get("hostname").value.clone() } else { i.get("ip").value.clone() }
    };
    let found: BTreeSet<String> = ingress.map(address).filter_map(|v| v.as_str().map(str::to_owned)).collect();
    let mut balanced = found.into_iter().collect::<Vec<_>>().join(",");
    if balanced.len() > ADDRESS_WIDTH {
        balanced = format!("{}...", balanced.chars().take(ADDRESS_WIDTH - 3).collect::<String>());
    }
    let all: Vec<&str> = [balanced.as_str()].into_iter().filter(|b| !b.is_empty()).chain(given).collect();
    if all.is_empty() { "<pending>".to_owned() } else { all.join(",") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conformance_words_of_a_service_that_nobody_knows_are_refused() {
        let refused = |field: &str, value: Value| {
            let spec = json!({ "type": "LoadBalancer", "sessionAffinity": "None",
                "ports": [{ "port": 80, "protocol": "TCP", "targetPort": 80 }], field: value });
            let mut causes = Vec::new();
            validate(&json!({ "spec": spec }), &mut causes);
            causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect::<Vec<_>>()
        };
        let allowed = " value: \"Near\": supported values: ";
        for (field, good, values) in [
            ("internalTrafficPolicy", "Local", "\"Cluster\", \"Local\""),
            ("externalTrafficPolicy", "Cluster", "\"Cluster\", \"Local\""),
            ("ipFamilyPolicy", "PreferDualStack", "\"PreferDualStack\", \"RequireDualStack\", \"SingleStack\""),
            ("trafficDistribution", "PreferSameNode", "\"PreferClose\", \"PreferSameNode\", \"PreferSameZone\""),
        ] {
            assert_eq!(refused(field, json!(good)), [""; 0], "{field}");
            assert_eq!(refused(field, json!("Near")), [format!("spec.{field}: Unsupported{allowed}{values}")]);
        }
        assert_eq!(refused("ipFamilies", json!(["IPv4"])), [""; 0]);
        assert_eq!(refused("ipFamilies", json!(["IPv5"])).len(), 1);
    }
}
