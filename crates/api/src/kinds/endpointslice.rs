//! EndpointSlice: some of the addresses behind a Service.

use std::borrow::Cow::Borrowed;
use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::json;

use super::addresses::special;
use super::cells::{AGE, NAME, age, text_column, three_of};
use super::field::{Field, default, each};
use super::{BASE, Kind, Row};
use crate::names;
use crate::object::{name, text};
use crate::status::Cause;

/// Most addresses of one endpoint.
const MAX_ADDRESSES: usize = 100;
/// Most endpoints in one slice.
const MAX_ENDPOINTS: usize = 1000;

/// The row of EndpointSlice.
pub static ENDPOINT_SLICE: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("discovery.k8s.io"),
    kind: Borrowed("EndpointSlice"),
    plural: Borrowed("endpointslices"),
    singular: Borrowed("endpointslice"),
    type_name: Borrowed("io.k8s.api.discovery.v1.EndpointSlice"),
    columns: Borrowed(&[
        NAME,
        text_column("AddressType", "What the addresses are."),
        text_column("Ports", "Ports of the endpoints."),
        text_column("Endpoints", "Addresses of the endpoints."),
        AGE,
    ]),
    row: |_, slice, now| {
        let slice_root = Field::root(slice);
        let port = |p: Field| match (p.get("port").int(), p.get("name").text()) {
            (Some(number), _) => number.to_string(),
            (None, "") => "*".to_owned(),
            (None, name) => name.to_owned(),
        };
        let ports: Vec<String> = slice_root.get("ports").items().map(port).collect();
        let all = slice_root.get("endpoints").items().flat_map(|e| e.get("addresses").items().collect::<Vec<_>>());
        let addresses: Vec<String> = all.map(|a| a.text().to_owned()).collect();
        let shown = |list: &[String]| json!(if list.is_empty() { "<unset>".to_owned() } else { three_of(list) });
        vec![
            json!(name(slice)),
            json!(text(slice, &["addressType"])),
            shown(&ports),
            shown(&addresses),
            age(slice, now),
        ]
    },
    defaults: |_, slice| {
        for port in each(slice, "ports") {
            default(port, "name", "");
            default(port, "protocol", "TCP");
        }
    },
    validate: |_, slice, causes| {
        let slice = Field::root(slice);
        slice.get("addressType").need_one_of(causes, &["FQDN", "IPv4", "IPv6"]);
        let endpoints = slice.get("endpoints");
        if endpoints.len() > MAX_ENDPOINTS {
            causes.push(Cause::too_many(&endpoints.path, endpoints.len(), MAX_ENDPOINTS));
        }
        for endpoint in endpoints.items() {
            validate_addresses(slice.get("addressType").text(), &endpoint.get("addresses"), causes);
            endpoint.get("hostname").check(causes, names::label);
            endpoint.get("nodeName").check(causes, names::subdomain);
        }
        let mut named = BTreeSet::new();
        for port in slice.get("ports").items() {
            let title = port.get("name");
            title.check(causes, names::label);
            if !named.insert(title.text()) {
                causes.push(Cause::duplicate(&title.path, title.text()));
            }
            port.get("port").port(causes);
            port.get("protocol").need_one_of(causes, &["SCTP", "TCP", "UDP"]);
            port.get("appProtocol").check(causes, names::qualified);
        }
    },
    validate_update: |_, new, old, causes| {
        Field::root(new).get("addressType").immutable(&Field::root(old).get("addressType"), causes);
    },
    ..BASE
});

/// What is wrong with a domain's name, in upstream's words. One that reads like an IPv4 address is a name, too: nobody
/// is led there (`logic::backend`).
fn fully_qualified(text: &str) -> Vec<String> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let wrong = names::subdomain(name);
    if wrong.is_empty() && !name.contains('.') {
        return vec!["should be a domain with at least two segments separated by dots".to_owned()];
    }
    wrong
}

fn validate_addresses(type_: &str, addresses: &Field, causes: &mut Vec<Cause>) {
    if addresses.len() == 0 {
        causes.push(Cause::required(&addresses.path, "must contain at least 1 address"));
    }
    if addresses.len() > MAX_ADDRESSES {
        causes.push(Cause::too_many(&addresses.path, addresses.len(), MAX_ADDRESSES));
    }
    for address in addresses.items() {
        let parsed = address.text().parse::<IpAddr>();
        let wrong = match (type_, parsed) {
            ("IPv4", Ok(ip @ IpAddr::V4(_))) | ("IPv6", Ok(ip @ IpAddr::V6(_))) => special(ip),
            ("IPv4", _) => vec!["must be a valid IPv4 address".to_owned()],
            ("IPv6", _) => vec!["must be a valid IPv6 address".to_owned()],
            ("FQDN", _) => fully_qualified(address.text()),
            _ => Vec::new(),
        };
        causes.extend(wrong.iter().map(|wrong| address.invalid(wrong)));
    }
}
