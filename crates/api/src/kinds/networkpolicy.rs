//! NetworkPolicy: who may talk to which pods. Stored for charts and tools; nothing acts on it.

use std::borrow::Cow::Borrowed;

use serde_json::{Value, json};

use super::addresses::{self, Range};
use super::cells::{self, AGE, NAME, text_column};
use super::field::{Field, default, each, made};
use super::{BASE, Kind, Row, lifecycle};
use crate::metadata::validate_label_selector;
use crate::names;
use crate::object::name;
use crate::status::Cause;

/// The row of NetworkPolicy.
pub static NETWORK_POLICY: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("networking.k8s.io"),
    kind: Borrowed("NetworkPolicy"),
    plural: Borrowed("networkpolicies"),
    singular: Borrowed("networkpolicy"),
    short_names: Borrowed(&[Borrowed("netpol")]),
    type_name: Borrowed("io.k8s.api.networking.v1.NetworkPolicy"),
    columns: Borrowed(&[NAME, text_column("Pod-Selector", "The pods that it is about."), AGE]),
    row: |_, policy, now| {
        vec![json!(name(policy)), cells::selector(policy, &["spec", "podSelector"]), cells::age(policy, now)]
    },
    defaults: |_, policy| {
        let Some(spec) = made(policy, "spec") else { return };
        default(spec, "podSelector", json!({}));
        for direction in ["ingress", "egress"] {
            for port in each(spec, direction).flat_map(|rule| each(rule, "ports")) {
                default(port, "protocol", "TCP");
            }
        }
        if Field::root(spec).get("policyTypes").len() == 0 {
            let types = if Field::root(spec).get("egress").len() > 0 {
                json!(["Ingress", "Egress"])
            } else {
                json!(["Ingress"])
            };
            crate::object::ensure(spec, &[]).insert("policyTypes".to_owned(), types);
        }
    },
    prepare_create: |_, policy| {
        lifecycle::no_status(policy);
        lifecycle::begin_generation(policy);
    },
    prepare_update: |_, new, old| {
        lifecycle::no_status(new);
        lifecycle::count_generation(new, old, &["spec"]);
    },
    validate: |_, policy, causes| validate(&Field::root(policy).get("spec"), causes),
    warnings: lifecycle::nothing_acts,
    ..BASE
});

fn validate(spec: &Field, causes: &mut Vec<Cause>) {
    validate_label_selector(&spec.get("podSelector"), causes);
    for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
        for rule in spec.get(rules).items() {
            rule.get("ports").items().for_each(|port| validate_port(&port, causes));
            rule.get(peers).items().for_each(|peer| validate_peer(&peer, causes));
        }
    }
    let types = spec.get("policyTypes");
    if types.len() > 2 {
        causes.push(types.invalid("may not specify more than two policyTypes"));
        return;
    }
    for direction in types.items().filter(|direction| !matches!(direction.text(), "Ingress" | "Egress")) {
        causes.push(Cause::not_supported(&direction.path, direction.text(), &["Ingress", "Egress"]));
    }
}

fn validate_port(rule: &Field, causes: &mut Vec<Cause>) {
    rule.get("protocol").one_of(causes, &["TCP", "UDP", "SCTP"]);
    let (port, end) = (rule.get("port"), rule.get("endPort"));
    match (port.value, end.int()) {
        (Value::Null, Some(_)) => causes.push(end.invalid("may not be specified when `port` is not specified")),
        (Value::Number(_), last) => {
            port.port(causes);
            if last.is_some_and(|last| last < port.int().unwrap_or(0)) {
                causes.push(end.invalid("must be greater than or equal to `port`"));
            }
            end.port(causes);
        }
        (Value::String(title), last) => {
            if last.is_some() {
                causes.push(end.invalid("may not be specified when `port` is non-numeric"));
            }
            causes.extend(names::port_name(title).iter().map(|wrong| port.invalid(wrong)));
        }
        _ => {}
    }
}

fn validate_peer(peer: &Field, causes: &mut Vec<Cause>) {
    let selectors = [peer.get("podSelector"), peer.get("namespaceSelector")];
    let block = peer.get("ipBlock");
    let selected = selectors.iter().filter(|selector| selector.is_set()).count();
    selectors.iter().for_each(|selector| validate_label_selector(selector, causes));
    if block.is_set() {
        validate_block(&block, causes);
    }
    match (selected, block.is_set()) {
        (0, false) => causes.push(Cause::required(&peer.path, "must specify a peer")),
        (1.., true) => causes.push(Cause::forbidden(&peer.path, "may not specify both ipBlock and another peer")),
        _ => {}
    }
}

fn validate_block(block: &Field, causes: &mut Vec<Cause>) {
    let cidr = block.get("cidr");
    cidr.need(causes, addresses::legacy_range);
    let Some(whole) = Range::parse(cidr.text()) else { return };
    for except in block.get("except").items() {
        except.check(causes, addresses::legacy_range);
        let part = Range::parse(except.text());
        if part.is_some_and(|part| !whole.contains(part.network()) || whole.bits >= part.bits) {
            causes.push(except.invalid("must be a strict subset of `cidr`"));
        }
    }
}
