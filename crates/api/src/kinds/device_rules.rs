//! What the kinds of `resource.k8s.io` share: requests for devices, selectors, configuration, taints.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::field::{Field, default, each, inner};
use crate::names;
use crate::object::text;
use crate::status::Cause;

/// Most requests, constraints or configurations of a claim, and selectors of a request.
const MAX_LIST: usize = 32;
/// Most alternatives of a request.
const MAX_ALTERNATIVES: usize = 8;
/// Longest expression of a selector, and largest parameters of a driver, in bytes.
const MAX_EXPRESSION: usize = 10 * 1024;

/// The requests of a claim, and the alternatives of each.
type Requests<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

/// The defaults of a claim's `devices`.
pub(super) fn default_claim(spec: &mut Value) {
    let Some(devices) = inner(spec, "devices") else { return };
    for request in each(devices, "requests") {
        if let Some(exactly) = inner(request, "exactly") {
            default_request(exactly);
        }
        each(request, "firstAvailable").for_each(default_request);
    }
}

fn default_request(request: &mut Value) {
    default(request, "allocationMode", "ExactCount");
    if text(request, &["allocationMode"]) == "ExactCount" {
        default(request, "count", 1);
    }
    each(request, "tolerations").for_each(|toleration| default(toleration, "operator", "Equal"));
}

/// A list of at most `most` items whose keys differ.
pub(super) fn validate_set<'a>(
    list: &Field<'a>,
    most: usize,
    key: fn(&Field<'a>) -> Field<'a>,
    causes: &mut Vec<Cause>,
) {
    if list.len() > most {
        causes.push(Cause::too_many(&list.path, list.len(), most));
    }
    let mut seen = BTreeSet::new();
    for item in list.items() {
        if !seen.insert(key(&item).text()) {
            causes.push(Cause::duplicate(&item.path, key(&item).text()));
        }
    }
}

/// The whole spec of a claim.
pub(super) fn validate_claim(spec: &Field, causes: &mut Vec<Cause>) {
    let devices = spec.get("devices");
    let (requests, constraints, config) = (devices.get("requests"), devices.get("constraints"), devices.get("config"));
    let known: Requests = requests
        .items()
        .map(|request| {
            let parts = request.get("firstAvailable").items().map(|part| part.get("name").text()).collect();
            (request.get("name").text(), parts)
        })
        .collect();
    validate_set(&requests, MAX_LIST, |request| request.get("name"), causes);
    requests.items().for_each(|request| validate_request(&request, causes));
    if constraints.len() > MAX_LIST {
        causes.push(Cause::too_many(&constraints.path, constraints.len(), MAX_LIST));
    }
    constraints.items().for_each(|constraint| validate_constraint(&constraint, &known, causes));
    if config.len() > MAX_LIST {
        causes.push(Cause::too_many(&config.path, config.len(), MAX_LIST));
    }
    for item in config.items() {
        validate_references(&item.get("requests"), &known, causes);
        validate_config(&item, causes);
    }
}

fn validate_request(request: &Field, causes: &mut Vec<Cause>) {
    let title = request.get("name");
    causes.extend(names::label(title.text()).iter().map(|wrong| Cause::invalid(&title.path, title.text(), wrong)));
    let (exactly, first) = (request.get("exactly"), request.get("firstAvailable"));
    match (exactly.is_set(), first.len() > 0) {
        (false, false) => {
            let why = "exactly one of `exactly` or `firstAvailable` is required";
            causes.push(Cause::required(&request.path, why));
        }
        (true, true) => {
            let why = "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set";
            causes.push(Cause::invalid(&request.path, Value::Null, why));
        }
        (true, false) => validate_exact(&exactly, causes),
        (false, true) => {
            validate_set(&first, MAX_ALTERNATIVES, |part| part.get("name"), causes);
            for part in first.items() {
                let title = part.get("name");
                causes.extend(
                    names::label(title.text()).iter().map(|wrong| Cause::invalid(&title.path, title.text(), wrong)),
                );
                validate_exact(&part, causes);
            }
        }
    }
}

fn validate_exact(request: &Field, causes: &mut Vec<Cause>) {
    request.get("deviceClassName").need(causes, names::subdomain);
    validate_selectors(&request.get("selectors"), causes);
    let (mode, count) = (request.get("allocationMode"), request.get("count"));
    let number = count.int().unwrap_or(0);
    match mode.text() {
        "All" if number != 0 => {
            causes.push(count.invalid("must not be specified when allocationMode is 'All'"));
        }
        "All" => {}
        "ExactCount" if number <= 0 => causes.push(Cause::invalid(&count.path, number, "must be greater than zero")),
        "ExactCount" => {}
        other => causes.push(Cause::not_supported(&mode.path, other, &["All", "ExactCount"])),
    }
    for toleration in request.get("tolerations").items() {
        toleration.get("key").check(causes, names::qualified);
        toleration.get("operator").one_of(causes, &["Equal", "Exists"]);
        toleration.get("effect").one_of(causes, &["NoExecute", "NoSchedule"]);
        let (key, operator) = (toleration.get("key"), toleration.get("operator"));
        if key.text().is_empty() && operator.text() != "Exists" {
            causes.push(Cause::required(&key.path, "must not be empty when operator is not `Exists`"));
        }
        if operator.text() == "Exists" && !toleration.get("value").text().is_empty() {
            let value = toleration.get("value");
            causes.push(value.invalid("must be empty for operator `Exists`"));
        }
    }
}

/// Expressions are only checked for being there and not too long.
pub(super) fn validate_selectors(selectors: &Field, causes: &mut Vec<Cause>) {
    if selectors.len() > MAX_LIST {
        causes.push(Cause::too_many(&selectors.path, selectors.len(), MAX_LIST));
    }
    for selector in selectors.items() {
        let cel = selector.get("cel");
        if !cel.is_set() {
            causes.push(Cause::required(&cel.path, ""));
        } else if cel.get("expression").text().len() > MAX_EXPRESSION {
            causes.push(Cause::too_long(cel.get("expression").path, MAX_EXPRESSION));
        }
    }
}

fn validate_constraint(constraint: &Field, known: &Requests, causes: &mut Vec<Cause>) {
    validate_references(&constraint.get("requests"), known, causes);
    let (same, other) = (constraint.get("matchAttribute"), constraint.get("distinctAttribute"));
    if !same.is_set() && !other.is_set() {
        let why = "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set";
        causes.push(Cause::required(&constraint.path, why));
        return;
    }
    let attribute = if same.is_set() { same } else { other };
    match attribute.text().split_once('/') {
        _ if attribute.text().is_empty() => causes.push(Cause::required(&attribute.path, "name is required")),
        None => causes.push(attribute.invalid("must include a domain")),
        Some((domain, id)) => {
            causes.extend(names::subdomain(domain).iter().map(|why| Cause::invalid(&attribute.path, domain, why)));
            if !is_identifier(id) {
                causes.push(Cause::invalid(
                    &attribute.path,
                    id,
                    "a valid C identifier must start with alphabetic \
                    character or '_', followed by a string of alphanumeric characters or '_' (e.g. 'my_name',  or \
                    'MY_NAME',  or 'MyName', regex used for validation is '[A-Za-z_][A-Za-z0-9_]*')",
                ));
            }
        }
    }
}

/// Whether a text is a C identifier.
pub(super) fn is_identifier(text: &str) -> bool {
    let letter = |b: u8| b == b'_' || b.is_ascii_alphabetic();
    text.bytes().next().is_some_and(letter) && text.bytes().all(|b| letter(b) || b.is_ascii_digit())
}

fn validate_references(list: &Field, known: &Requests, causes: &mut Vec<Cause>) {
    validate_set(list, MAX_LIST, Field::clone, causes);
    for reference in list.items() {
        let (request, part) = match reference.text().split_once('/') {
            Some((request, part)) => (request, Some(part)),
            None => (reference.text(), None),
        };
        let found = known.get(request).is_some_and(|parts| part.is_none_or(|part| parts.contains(part)));
        if !found {
            let why =
                "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
            causes.push(reference.invalid(why));
        }
    }
}

/// Configuration for a driver.
pub(super) fn validate_config(config: &Field, causes: &mut Vec<Cause>) {
    let opaque = config.get("opaque");
    if !opaque.is_set() {
        causes.push(Cause::required(&opaque.path, ""));
        return;
    }
    super::csidriver::validate_name(&opaque.get("driver"), causes);
    let parameters = opaque.get("parameters");
    match parameters.value {
        Value::Null => causes.push(Cause::required(&parameters.path, "")),
        Value::Object(_) => {
            if parameters.value.to_string().len() > MAX_EXPRESSION {
                causes.push(Cause::too_long(&parameters.path, MAX_EXPRESSION));
            }
        }
        _ => causes.push(Cause::invalid(&parameters.path, "<value omitted>", "must be a valid JSON object")),
    }
}

/// A device's taint.
pub(super) fn validate_taint(taint: &Field, causes: &mut Vec<Cause>) {
    let (key, value) = (taint.get("key"), taint.get("value"));
    causes.extend(names::qualified(key.text()).iter().map(|wrong| Cause::invalid(&key.path, key.text(), wrong)));
    causes.extend(names::label_value(value.text()).iter().map(|wrong| value.invalid(wrong)));
    taint.get("effect").need_one_of(causes, &["NoExecute", "NoSchedule", "None"]);
}
