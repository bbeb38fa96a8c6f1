//! Lease: who is alive, or who leads.

use std::borrow::Cow::Borrowed;

use serde_json::json;

use super::cells::{AGE, NAME, age, text_column};
use super::field::Field;
use super::{BASE, Kind, Row};
use crate::names;
use crate::object::{name, text};
use crate::status::Cause;

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
        let strategy = spec.get("strategy");
        if strategy.is_set() {
            validate_strategy(&strategy.get("strategy").path, &strategy, causes);
        }
        let preferred = spec.get("preferredHolder");
        if !preferred.text().is_empty() && strategy.text().is_empty() {
            causes.push(Cause::forbidden(&preferred.path, "may only be specified if `strategy` is defined"));
        }
    },
    ..BASE
});

/// How a leader is chosen: a name of Kubernetes' own, or one of somebody's domain. Upstream's path has the field twice.
fn validate_strategy(path: &str, strategy: &Field, causes: &mut Vec<Cause>) {
    const KNOWN: [&str; 1] = ["OldestEmulationVersion"];
    let text = strategy.text();
    if text.contains('/') {
        causes.extend(names::qualified(text).iter().map(|wrong| Cause::invalid(path, text, wrong)));
    } else if !KNOWN.contains(&text) {
        causes.push(Cause::not_supported(path, text, &KNOWN));
    }
}
