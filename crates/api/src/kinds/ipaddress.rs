//! IPAddress: who holds an address. The server makes one for each address of a Service; others make theirs to keep
//! addresses from Services.

use std::borrow::Cow::Borrowed;

use serde_json::{Value, json};

use super::addresses;
use super::cells::{NAME, text_column};
use super::field::Field;
use super::{BASE, Kind, NameRule, Row};
use crate::names;
use crate::object::{self, name};
use crate::status::Cause;

/// The row of IPAddress.
pub static IP_ADDRESS: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("networking.k8s.io"),
    kind: Borrowed("IPAddress"),
    plural: Borrowed("ipaddresses"),
    singular: Borrowed("ipaddress"),
    short_names: Borrowed(&[Borrowed("ip")]),
    namespaced: false,
    type_name: Borrowed("io.k8s.api.networking.v1.IPAddress"),
    // Its name is an address, which `validate` says in upstream's words.
    name_rule: NameRule::PathSegment,
    columns: Borrowed(&[NAME, text_column("ParentRef", "The object that holds it.")]),
    row: |_, address, _| {
        let parent = Field::root(address).dig(&["spec", "parentRef"]);
        let part = |field: &str| parent.get(field).text().to_owned();
        let mut shown = part("resource").to_lowercase();
        if !part("group").is_empty() {
            shown = format!("{shown}.{}", part("group").to_lowercase());
        }
        for field in ["namespace", "name"] {
            if field == "name" || !part(field).is_empty() {
                shown = format!("{shown}/{}", part(field));
            }
        }
        vec![json!(name(address)), json!(if parent.is_set() { &shown } else { "<none>" })]
    },
    validate: |_, address, causes| {
        let root = Field::root(address);
        root.dig(&["metadata", "name"]).check(causes, addresses::address);
        let parent = root.dig(&["spec", "parentRef"]);
        if !parent.is_set() {
            causes.push(Cause::required(&parent.path, ""));
            return;
        }
        parent.get("group").check(causes, names::subdomain);
        parent.get("resource").need(causes, names::path_segment);
        parent.get("name").need(causes, names::path_segment);
        parent.get("namespace").check(causes, names::path_segment);
    },
    validate_update: |_, new, old, causes| {
        let parent = ["spec", "parentRef"];
        Field::root(new).dig(&parent).immutable(&Field::root(old).dig(&parent), causes);
    },
    ..BASE
});

/// The label that says who keeps an IPAddress, and its value where the server itself does.
pub const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
/// See [`MANAGED_BY`].
pub const ALLOCATOR: &str = "ipallocator.k8s.io";

/// The IPAddress of an address that a Service has.
pub fn of_service(address: &str, namespace: &str, service: &str) -> Value {
    let family = if address.contains(':') { "IPv6" } else { "IPv4" };
    json!({
        "metadata": { "name": address, "labels": {
            "ipaddress.kubernetes.io/ip-family": family, MANAGED_BY: ALLOCATOR } },
        "spec": { "parentRef": { "resource": "services", "namespace": namespace, "name": service } },
    })
}

/// Whether it is the server's own and says that a Service has the address.
pub fn shows(address: &Value, namespace: &str, service: &str) -> bool {
    let parent = |field: &str| object::text(address, &["spec", "parentRef", field]);
    object::text(address, &["metadata", "labels", MANAGED_BY]) == ALLOCATOR
        && (parent("group"), parent("resource")) == ("", "services")
        && (parent("namespace"), parent("name")) == (namespace, service)
}
