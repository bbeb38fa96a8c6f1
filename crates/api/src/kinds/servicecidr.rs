//! ServiceCIDR: a range from which Services are given addresses. Ranges of IPv6 are only kept.

use std::borrow::Cow::Borrowed;

use serde_json::{Value, json};

use super::addresses::{self, Range};
use super::cells::{self, AGE, NAME, text_column};
use super::field::{Field, IMMUTABLE};
use super::{BASE, Kind, Row, Subresource, lifecycle};
use crate::object::{self, name};
use crate::status::Cause;

/// The row of ServiceCIDR.
pub static SERVICE_CIDR: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("networking.k8s.io"),
    kind: Borrowed("ServiceCIDR"),
    plural: Borrowed("servicecidrs"),
    singular: Borrowed("servicecidr"),
    namespaced: false,
    subresources: Borrowed(&[Subresource::Status]),
    type_name: Borrowed("io.k8s.api.networking.v1.ServiceCIDR"),
    columns: Borrowed(&[NAME, text_column("CIDRs", "The ranges."), AGE]),
    row: |_, range, now| {
        let cidrs: Vec<&str> = Field::root(range).dig(&["spec", "cidrs"]).items().map(|cidr| cidr.text()).collect();
        vec![json!(name(range)), json!(cidrs.join(",")), cells::age(range, now)]
    },
    prepare_create: |_, range| lifecycle::begin_status(range, json!({})),
    prepare_update: |_, new, old| lifecycle::keep_status(new, old),
    validate: |_, range, causes| validate(&Field::root(range).dig(&["spec", "cidrs"]), causes),
    validate_update: |_, new, old, causes| validate_update(new, old, causes),
    warnings: |_, range| {
        let unused = ranges(range).filter(|range| range.contains(':'));
        unused.map(|range| format!("Services have IPv4 addresses only: none is given out of {range}")).collect()
    },
    ..BASE
});

/// The one that shows the range that the server was started with.
pub const DEFAULT: &str = "kubernetes";
/// Keeps a ServiceCIDR while addresses are in use that no other one has.
pub const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";

/// The ranges of a ServiceCIDR.
pub fn ranges(range: &Value) -> impl Iterator<Item = &str> {
    object::at(range, &["spec", "cidrs"]).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

/// Whether addresses are given out of it: it is not on its way out, and nobody says that it is not ready.
pub fn is_in_use(range: &Value) -> bool {
    let conditions = object::at(range, &["status", "conditions"]).and_then(Value::as_array).into_iter().flatten();
    let mut ready = conditions.filter(|condition| object::text(condition, &["type"]) == "Ready");
    !object::is_terminating(range) && ready.next().is_none_or(|ready| object::text(ready, &["status"]) == "True")
}

fn validate(cidrs: &Field, causes: &mut Vec<Cause>) {
    if cidrs.len() == 0 {
        causes.push(Cause::required(&cidrs.path, "at least one CIDR required"));
        return;
    }
    if cidrs.len() > 2 {
        causes.push(Cause::invalid(&cidrs.path, json!({ "CIDRs": cidrs.value }), "may only hold up to 2 values"));
        return;
    }
    cidrs.items().for_each(|cidr| causes.extend(addresses::range(cidr.text()).iter().map(|wrong| cidr.invalid(wrong))));
    let families: Vec<Option<bool>> =
        cidrs.items().map(|cidr| Range::parse(cidr.text()).map(|range| range.address.is_ipv4())).collect();
    if let [Some(first), Some(second)] = families.as_slice()
        && first == second
    {
        let why = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
        causes.push(cidrs.invalid(why));
    }
}

/// Ranges stay; a second one, of the other family, may come.
fn validate_update(new: &Value, old: &Value, causes: &mut Vec<Cause>) {
    let cidrs = ["spec", "cidrs"];
    let (new, old) = (Field::root(new).dig(&cidrs), Field::root(old).dig(&cidrs));
    match (old.len(), new.len()) {
        (before, now) if before == now || (before, now) == (1, 2) => {
            for (new, _) in new.items().zip(old.items()).filter(|(new, old)| new.value != old.value) {
                causes.push(new.invalid(IMMUTABLE));
            }
        }
        _ => causes.push(new.invalid(IMMUTABLE)),
    }
}
