//! ResourceClaim: devices that pods ask for. Stored for charts and tools; nothing here allocates devices.

use std::borrow::Cow::Borrowed;

use serde_json::{Value, json};

use super::cells::{self, AGE, NAME, text_column};
use super::field::{Field, made};
use super::{BASE, Kind, Row, Subresource, device_rules, lifecycle};
use crate::object::{is_terminating, name};

/// The row of ResourceClaim.
pub static RESOURCE_CLAIM: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("resource.k8s.io"),
    kind: Borrowed("ResourceClaim"),
    plural: Borrowed("resourceclaims"),
    singular: Borrowed("resourceclaim"),
    subresources: Borrowed(&[Subresource::Status]),
    type_name: Borrowed("io.k8s.api.resource.v1.ResourceClaim"),
    columns: Borrowed(&[NAME, text_column("State", "What became of it."), AGE]),
    row: |_, claim, now| vec![json!(name(claim)), json!(state(claim)), cells::age(claim, now)],
    defaults: |_, claim| {
        if let Some(spec) = made(claim, "spec") {
            device_rules::default_claim(spec);
        }
    },
    prepare_create: |_, claim| lifecycle::begin_status(claim, json!({})),
    prepare_update: |_, new, old| lifecycle::keep_status(new, old),
    validate: |_, claim, causes| device_rules::validate_claim(&Field::root(claim).get("spec"), causes),
    validate_update: |_, new, old, causes| {
        Field::root(new).get("spec").immutable(&Field::root(old).get("spec"), causes);
    },
    warnings: lifecycle::nothing_acts,
    ..BASE
});

fn state(claim: &Value) -> String {
    let status = Field::root(claim).get("status");
    let (going, allocated) = (is_terminating(claim), status.get("allocation").is_set());
    let states = [
        (going, "deleted"),
        (!going && !allocated, "pending"),
        (allocated, "allocated"),
        (allocated && status.get("reservedFor").len() > 0, "reserved"),
    ];
    states.iter().filter(|(is, _)| *is).map(|(_, state)| *state).collect::<Vec<_>>().join(",")
}
