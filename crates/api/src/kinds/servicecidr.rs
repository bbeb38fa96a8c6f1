//! ServiceCIDR: a range of Service addresses. The range that is used is the server's own; others are only kept.

use std::borrow::Cow::Borrowed;

use serde_json::{Value, json};

use super::addresses::{self, Range};
use super::cells::{self, AGE, NAME, text_column};
use super::field::{Field, IMMUTABLE};
use super::{BASE, Kind, Row, Subresource, lifecycle};
use crate::object::name;
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
    warnings: lifecycle::nothing_acts,
    ..BASE
});

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
