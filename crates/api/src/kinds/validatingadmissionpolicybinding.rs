//! ValidatingAdmissionPolicyBinding: where a ValidatingAdmissionPolicy holds, and what happens to what breaks it.

use std::borrow::Cow::Borrowed;
use std::collections::BTreeSet;

use serde_json::json;

use super::cells::{self, AGE, NAME, text_column};
use super::field::{Field, inner};
use super::{BASE, Column, Kind, Row, admission_rules, lifecycle};
use crate::names;
use crate::object::{name, text};
use crate::status::Cause;

/// The row of ValidatingAdmissionPolicyBinding.
pub static VALIDATING_ADMISSION_POLICY_BINDING: Kind = Kind::BuiltIn(&Row {
    kind: Borrowed("ValidatingAdmissionPolicyBinding"),
    plural: Borrowed("validatingadmissionpolicybindings"),
    singular: Borrowed("validatingadmissionpolicybinding"),
    type_name: Borrowed("io.k8s.api.admissionregistration.v1.ValidatingAdmissionPolicyBinding"),
    validate: |_, binding, causes| {
        let spec = Field::root(binding).get("spec");
        validate_binding(&spec, causes);
        validate_actions(&spec.get("validationActions"), causes);
    },
    ..BINDING
});

const COLUMNS: &[Column] = &[
    NAME,
    text_column("PolicyName", "The policy that it is about."),
    text_column("ParamRef", "The policy's parameters."),
    AGE,
];

/// What both kinds of binding share.
pub(super) const BINDING: Row = Row {
    group: Borrowed("admissionregistration.k8s.io"),
    categories: Borrowed(admission_rules::CATEGORIES),
    namespaced: false,
    columns: Borrowed(COLUMNS),
    row: |_, binding, now| {
        let reference = Field::root(binding).dig(&["spec", "paramRef"]);
        let (namespace, title) = (reference.get("namespace").text(), reference.get("name").text());
        let shown = if namespace.is_empty() { title.to_owned() } else { format!("{namespace}/{title}") };
        vec![
            json!(name(binding)),
            json!(text(binding, &["spec", "policyName"])),
            json!(if reference.is_set() { &shown } else { "<unset>" }),
            cells::age(binding, now),
        ]
    },
    defaults: |_, binding| {
        if let Some(resources) = inner(binding, "spec").and_then(|spec| inner(spec, "matchResources")) {
            admission_rules::default_match(resources);
        }
    },
    prepare_create: |_, binding| lifecycle::begin_generation(binding),
    prepare_update: |_, new, old| lifecycle::count_generation(new, old, &["spec"]),
    ..BASE
};

/// What both kinds of binding must say.
pub(super) fn validate_binding(spec: &Field, causes: &mut Vec<Cause>) {
    spec.get("policyName").need(causes, names::subdomain);
    if spec.get("paramRef").is_set() {
        admission_rules::validate_param_ref(&spec.get("paramRef"), causes);
    }
    if spec.get("matchResources").is_set() {
        admission_rules::validate_match(&spec.get("matchResources"), causes);
    }
}

fn validate_actions(actions: &Field, causes: &mut Vec<Cause>) {
    let mut seen = BTreeSet::new();
    for action in actions.items() {
        if !matches!(action.text(), "Deny" | "Warn" | "Audit") {
            causes.push(Cause::not_supported(&action.path, action.text(), &["Audit", "Deny", "Warn"]));
        }
        if !seen.insert(action.text()) {
            causes.push(Cause::duplicate(&action.path, action.text()));
        }
    }
    if seen.contains("Deny") && seen.contains("Warn") {
        let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API \
            response and headers serves no purpose)";
        causes.push(actions.invalid(why));
    }
    if seen.is_empty() {
        causes.push(Cause::required(&actions.path, "at least one validation action is required"));
    }
}
