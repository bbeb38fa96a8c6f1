//! Lease: who is alive, or who leads.

use std::borrow::Cow::Borrowed;

use serde_json::json;

use super::cells::{AGE, NAME, age, text_column};
use super::field::Field;
use super::{BASE, Kind, Row};
use crate::object::{name, text};

/// The row of Lease.
pub static LEASE: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("coordination.k8s.io"),
    kind: Borrowed("Lease"),
    plural: Borrowed("leases"),
    singular: Borrowed("lease"),
    type_name: Borrowed("io.k8s.api.coordination.v1.Lease"),
    columns: Borrowed(&[NAME, text_column("Holder", "Who holds it."), AGE]),
    row: |_, lease, now| vec![json!(name(lease)), json!(text(lease, &["spec", "holderIdentity"])), age(lease, now)],
    validate: |_, lease, causes| {
        let spec = Field::root(lease).get("spec");
        let duration = spec.get("leaseDurationSeconds");
        if duration.int().is_some_and(|n| n <= 0) {
            causes.push(duration.invalid("must be greater than 0"));
        }
        spec.get("leaseTransitions").not_negative(causes);
    },
    ..BASE
});
