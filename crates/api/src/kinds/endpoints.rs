//! Endpoints: the addresses behind a Service, the old way.

use std::borrow::Cow::Borrowed;

use serde_json::{Value, json};

use super::addresses::legacy_target;
use super::cells::{AGE, NAME, age, or_none, text_column, three_of};
use super::field::{Field, each};
use super::{BASE, Kind, Row};
use crate::names;
use crate::object::name;
use crate::status::Cause;

/// The row of Endpoints.
pub static ENDPOINTS: Kind = Kind::BuiltIn(&Row {
    kind: Borrowed("Endpoints"),
    plural: Borrowed("endpoints"),
    singular: Borrowed("endpoints"),
    short_names: Borrowed(&[Borrowed("ep")]),
    type_name: Borrowed("io.k8s.api.core.v1.Endpoints"),
    columns: Borrowed(&[NAME, text_column("Endpoints", "Addresses and ports."), AGE]),
    row: |_, endpoints, now| {
        vec![json!(name(endpoints)), or_none(&three_of(&addresses(endpoints))), age(endpoints, now)]
    },
    defaults: |_, endpoints| {
        for port in each(endpoints, "subsets").flat_map(|subset| each(subset, "ports")) {
            super::field::default(port, "protocol", "TCP");
        }
    },
    validate: |_, endpoints, causes| {
        for subset in Field::root(endpoints).get("subsets").items() {
            if subset.get("addresses").len() + subset.get("notReadyAddresses").len() == 0 {
                causes.push(Cause::required(&subset.path, "must specify `addresses` or `notReadyAddresses`"));
            }
            for address in subset.get("addresses").items().chain(subset.get("notReadyAddresses").items()) {
                let ip = address.get("ip");
                causes.extend(legacy_target(ip.text()).iter().map(|wrong| ip.invalid(wrong)));
            }
            for port in subset.get("ports").items() {
                let number = port.get("port").int().unwrap_or(0);
                causes.extend(
                    names::port(number).iter().map(|wrong| Cause::invalid(port.get("port").path, number, wrong)),
                );
            }
        }
    },
    ..BASE
});

fn addresses(endpoints: &Value) -> Vec<String> {
    let mut list = Vec::new();
    for subset in Field::root(endpoints).get("subsets").items() {
        let ips: Vec<&str> = subset.get("addresses").items().map(|a| a.get("ip").text()).collect();
        if subset.get("ports").len() == 0 {
            list.extend(ips.iter().map(|ip| (*ip).to_owned()));
        }
        for port in subset.get("ports").items() {
            let number = port.get("port").int().unwrap_or(0);
            list.extend(
                ips.iter()
                    .map(|ip| if ip.contains(':') { format!("[{ip}]:{number}") } else { format!("{ip}:{number}") }),
            );
        }
    }
    list
}
