//! DeviceTaintRule: a taint for devices that are selected. Stored for charts and tools.

use std::borrow::Cow::Borrowed;

use serde_json::json;

use super::field::{Field, made};
use super::{BASE, Kind, Row, Subresource, device_rules, lifecycle};
use crate::names;
use crate::object::ensure;

/// The row of DeviceTaintRule.
pub static DEVICE_TAINT_RULE: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("resource.k8s.io"),
    kind: Borrowed("DeviceTaintRule"),
    plural: Borrowed("devicetaintrules"),
    singular: Borrowed("devicetaintrule"),
    namespaced: false,
    subresources: Borrowed(&[Subresource::Status]),
    type_name: Borrowed("io.k8s.api.resource.v1.DeviceTaintRule"),
    prepare_create: |_, rule| {
        let created = Field::root(rule).dig(&["metadata", "creationTimestamp"]).value.clone();
        if let Some(taint) = made(rule, "spec").and_then(|spec| made(spec, "taint"))
            && taint.get("timeAdded").is_none()
        {
            ensure(taint, &[]).insert("timeAdded".to_owned(), created);
        }
        lifecycle::begin_status(rule, json!({}));
        lifecycle::begin_generation(rule);
    },
    prepare_update: |_, new, old| {
        lifecycle::keep_status(new, old);
        lifecycle::count_generation(new, old, &["spec"]);
    },
    validate: |_, rule, causes| {
        let spec = Field::root(rule).get("spec");
        let selector = spec.get("deviceSelector");
        if !selector.get("driver").text().is_empty() {
            super::csidriver::validate_name(&selector.get("driver"), causes);
        }
        selector.get("device").check(causes, names::label);
        for part in selector.get("pool").text().split('/').filter(|part| !part.is_empty()) {
            let pool = selector.get("pool");
            causes.extend(names::subdomain(part).iter().map(|wrong| pool.invalid(wrong)));
        }
        device_rules::validate_taint(&spec.get("taint"), causes);
    },
    warnings: lifecycle::nothing_acts,
    ..BASE
});
