//! Ingress: which host and path leads to which Service. Stored for charts and tools; no controller of ours acts on it.

use std::borrow::Cow::Borrowed;
use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::cells::{self, AGE, NAME, text_column};
use super::field::Field;
use super::{BASE, Kind, Row, Subresource, addresses, lifecycle};
use crate::jiff::Timestamp;
use crate::names;
use crate::object::{name, text};
use crate::status::Cause;

/// The annotation that came before `spec.ingressClassName`.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
/// How many hosts a row shows.
const SHOWN_HOSTS: usize = 3;

/// The row of Ingress.
pub static INGRESS: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("networking.k8s.io"),
    kind: Borrowed("Ingress"),
    plural: Borrowed("ingresses"),
    singular: Borrowed("ingress"),
    short_names: Borrowed(&[Borrowed("ing")]),
    subresources: Borrowed(&[Subresource::Status]),
    type_name: Borrowed("io.k8s.api.networking.v1.Ingress"),
    columns: Borrowed(&[
        NAME,
        text_column("Class", "The class whose controller acts on it."),
        text_column("Hosts", "Hosts of its rules."),
        text_column("Address", "Where the balancer in front of it is."),
        text_column("Ports", "Ports that it opens."),
        AGE,
    ]),
    row: |_, ingress, now| row(ingress, now),
    prepare_create: |_, ingress| {
        lifecycle::begin_status(ingress, json!({ "loadBalancer": {} }));
        lifecycle::begin_generation(ingress);
    },
    prepare_update: |_, new, old| {
        lifecycle::keep_status(new, old);
        lifecycle::count_generation(new, old, &["spec"]);
    },
    validate: |_, ingress, causes| validate(&Field::root(ingress).get("spec"), causes),
    validate_create: |_, ingress, causes| {
        let annotation = Field::root(ingress).dig(&["metadata", "annotations", CLASS_ANNOTATION]);
        let class = Field::root(ingress).dig(&["spec", "ingressClassName"]);
        if annotation.is_set() && class.is_set() && annotation.text() != class.text() {
            let why = "must match `ingressClassName` when both are specified";
            causes.push(Cause::invalid(format!("annotations.{CLASS_ANNOTATION}"), annotation.text(), why));
        }
    },
    validate_status: |_, new, _, causes| {
        for balancer in Field::root(new).dig(&["status", "loadBalancer", "ingress"]).items() {
            let (ip, host) = (balancer.get("ip"), balancer.get("hostname"));
            ip.check(causes, addresses::legacy_address);
            host.check(causes, names::subdomain);
            if host.text().parse::<IpAddr>().is_ok() {
                causes.push(host.invalid("must be a DNS name, not an IP address"));
            }
        }
    },
    warnings: |row, ingress| {
        let mut warnings = lifecycle::nothing_acts(row, ingress);
        if Field::root(ingress).dig(&["metadata", "annotations", CLASS_ANNOTATION]).is_set() {
            warnings.push(format!(
                "annotation {CLASS_ANNOTATION:?} is deprecated, please use 'spec.ingressClassName' instead"
            ));
        }
        warnings
    },
    ..BASE
});

fn row(ingress: &Value, now: Timestamp) -> Vec<Value> {
    let spec = Field::root(ingress).get("spec");
    let rules: Vec<&str> = spec.get("rules").items().map(|rule| rule.get("host").text()).collect();
    // The first three hosts, of rules that may have none.
    let shown: Vec<&str> = rules.iter().copied().filter(|host| !host.is_empty()).take(SHOWN_HOSTS).collect();
    let hosts = match rules.len().saturating_sub(SHOWN_HOSTS) {
        _ if shown.is_empty() => "*".to_owned(),
        more if more > 0 && shown.len() == SHOWN_HOSTS => format!("{} + {more} more...", shown.join(",")),
        _ => shown.join(","),
    };
    let balancers = Field::root(ingress).dig(&["status", "loadBalancer", "ingress"]).items();
    let address = |balancer: Field| {
        let ip = text(balancer.value, &["ip"]).to_owned();
        if ip.is_empty() { text(balancer.value, &["hostname"]).to_owned() } else { ip }
    };
    let found: BTreeSet<String> = balancers.map(address).filter(|address| !address.is_empty()).collect();
    let ports = if spec.get("tls").len() > 0 { "80, 443" } else { "80" };
    vec![
        json!(name(ingress)),
        cells::or_none(spec.get("ingressClassName").text()),
        json!(hosts),
        json!(found.into_iter().collect::<Vec<_>>().join(",")),
        json!(ports),
        cells::age(ingress, now),
    ]
}

fn validate(spec: &Field, causes: &mut Vec<Cause>) {
    let (rules, backend) = (spec.get("rules"), spec.get("defaultBackend"));
    if rules.len() == 0 && !backend.is_set() {
        causes.push(spec_invalid(spec, "either `defaultBackend` or `rules` must be specified"));
    }
    if backend.is_set() {
        validate_backend(&backend, causes);
    }
    rules.items().for_each(|rule| validate_rule(&rule, causes));
    for tls in spec.get("tls").items() {
        tls.get("hosts").items().for_each(|host| {
            causes.extend(host_name(host.text()).iter().map(|wrong| host.invalid(wrong)));
        });
        tls.get("secretName").check(causes, names::subdomain);
    }
    if spec.get("ingressClassName").is_set() {
        let class = spec.get("ingressClassName");
        causes.extend(names::subdomain(class.text()).iter().map(|wrong| class.invalid(wrong)));
    }
}

/// Upstream shows the (empty) rules as the spec's bad value.
fn spec_invalid(spec: &Field, why: &str) -> Cause {
    let rules = if spec.get("rules").is_set() { json!([]) } else { Value::Null };
    Cause::invalid(&spec.path, rules, why)
}

fn host_name(host: &str) -> Vec<String> {
    if host.contains('*') { names::wildcard_subdomain(host) } else { names::subdomain(host) }
}

fn validate_rule(rule: &Field, causes: &mut Vec<Cause>) {
    let host = rule.get("host");
    if !host.text().is_empty() {
        if host.text().parse::<IpAddr>().is_ok() {
            causes.push(host.invalid("must be a DNS name, not an IP address"));
        }
        causes.extend(host_name(host.text()).iter().map(|wrong| host.invalid(wrong)));
    }
    let http = rule.get("http");
    if !http.is_set() {
        return;
    }
    if http.get("paths").len() == 0 {
        causes.push(Cause::required(http.get("paths").path, ""));
    }
    http.get("paths").items().for_each(|path| validate_path(&path, causes));
}

fn validate_path(rule: &Field, causes: &mut Vec<Cause>) {
    let (how, path) = (rule.get("pathType"), rule.get("path"));
    if !how.is_set() {
        causes.push(Cause::required(&how.path, "pathType must be specified"));
        return;
    }
    let relative = !path.text().starts_with('/');
    let shown = |why: &str| Cause::invalid(&path.path, path.text(), why);
    match how.text() {
        "Exact" | "Prefix" => {
            if relative {
                causes.push(shown("must be an absolute path"));
            }
            for sequence in ["//", "/./", "/../", "%2f", "%2F"] {
                if path.text().contains(sequence) {
                    causes.push(shown(&format!("must not contain '{sequence}'")));
                }
            }
            for suffix in ["/..", "/."] {
                if path.text().ends_with(suffix) {
                    causes.push(shown(&format!("cannot end with '{suffix}'")));
                }
            }
        }
        "ImplementationSpecific" if relative && !path.text().is_empty() => {
            causes.push(shown("must be an absolute path"));
        }
        "ImplementationSpecific" => {}
        other => causes.push(Cause::not_supported(&how.path, other, &["Exact", "ImplementationSpecific", "Prefix"])),
    }
    validate_backend(&rule.get("backend"), causes);
}

fn validate_backend(backend: &Field, causes: &mut Vec<Cause>) {
    let (resource, service) = (backend.get("resource"), backend.get("service"));
    let wrong = |why: &str| Cause::invalid(&backend.path, "", why);
    match (resource.is_set(), service.is_set()) {
        (true, true) => causes.push(wrong("cannot set both resource and service backends")),
        (false, false) => causes.push(wrong("resource or service backend is required")),
        (true, false) => super::ingressclass::validate_reference(&resource, causes),
        (false, true) => {
            service.get("name").need(causes, names::label_1035);
            let (title, number) = (service.dig(&["port", "name"]), service.dig(&["port", "number"]));
            let numbered = number.int().unwrap_or(0) != 0;
            match (!title.text().is_empty(), numbered) {
                (true, true) => causes.push(wrong("cannot set both port name & port number")),
                (true, false) => title.check(causes, names::port_name),
                (false, true) => number.port(causes),
                (false, false) => causes.push(Cause::required(&backend.path, "port name or number is required")),
            }
        }
    }
}
