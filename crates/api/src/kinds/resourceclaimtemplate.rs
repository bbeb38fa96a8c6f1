//! ResourceClaimTemplate: what ResourceClaims of pods are made from. Stored for charts and tools.

use std::borrow::Cow::Borrowed;

use super::field::{Field, inner, made};
use super::{BASE, Kind, Row, device_rules, lifecycle};
use crate::metadata;

/// The row of ResourceClaimTemplate.
pub static RESOURCE_CLAIM_TEMPLATE: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("resource.k8s.io"),
    kind: Borrowed("ResourceClaimTemplate"),
    plural: Borrowed("resourceclaimtemplates"),
    singular: Borrowed("resourceclaimtemplate"),
    type_name: Borrowed("io.k8s.api.resource.v1.ResourceClaimTemplate"),
    defaults: |_, template| {
        if let Some(spec) = made(template, "spec").and_then(|spec| inner(spec, "spec")) {
            device_rules::default_claim(spec);
        }
    },
    validate: |_, template, causes| {
        let spec = Field::root(template).get("spec");
        metadata::validate_labels(&spec.dig(&["metadata", "labels"]), causes);
        metadata::validate_annotations(&spec.dig(&["metadata", "annotations"]), causes);
        device_rules::validate_claim(&spec.get("spec"), causes);
    },
    validate_update: |_, new, old, causes| {
        Field::root(new).get("spec").immutable(&Field::root(old).get("spec"), causes);
    },
    warnings: lifecycle::nothing_acts,
    ..BASE
});
