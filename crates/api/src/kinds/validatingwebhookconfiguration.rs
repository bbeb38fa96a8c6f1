//! ValidatingWebhookConfiguration: who is asked whether an object may be written.

use std::borrow::Cow::Borrowed;

use serde_json::json;

use super::cells::{self, AGE, NAME, number};
use super::field::{Field, each};
use super::{BASE, Column, Kind, Row, admission_rules, lifecycle};
use crate::object::name;

/// The row of ValidatingWebhookConfiguration.
pub static VALIDATING_WEBHOOK_CONFIGURATION: Kind = Kind::BuiltIn(&Row {
    kind: Borrowed("ValidatingWebhookConfiguration"),
    plural: Borrowed("validatingwebhookconfigurations"),
    singular: Borrowed("validatingwebhookconfiguration"),
    type_name: Borrowed("io.k8s.api.admissionregistration.v1.ValidatingWebhookConfiguration"),
    ..WEBHOOKS
});

const COLUMNS: &[Column] = &[NAME, number("Webhooks", "How many webhooks it has."), AGE];

/// What both kinds of configuration share.
pub(super) const WEBHOOKS: Row = Row {
    group: Borrowed("admissionregistration.k8s.io"),
    categories: Borrowed(admission_rules::CATEGORIES),
    namespaced: false,
    columns: Borrowed(COLUMNS),
    row: |_, configuration, now| {
        let count = Field::root(configuration).get("webhooks").len();
        vec![json!(name(configuration)), json!(count), cells::age(configuration, now)]
    },
    defaults: |_, configuration| each(configuration, "webhooks").for_each(admission_rules::default_webhook),
    prepare_create: |_, configuration| lifecycle::begin_generation(configuration),
    prepare_update: |_, new, old| lifecycle::count_generation(new, old, &["webhooks"]),
    validate: |_, configuration, causes| {
        let hooks = Field::root(configuration).get("webhooks");
        hooks.items().for_each(|hook| admission_rules::validate_webhook(&hook, causes));
        admission_rules::validate_unique(&hooks, causes);
    },
    validate_create: |_, configuration, causes| {
        admission_rules::validate_hooks_conditions(&Field::root(configuration).get("webhooks"), None, causes);
    },
    validate_update: |_, new, old, causes| {
        let [new, old] = [new, old].map(|configuration| Field::root(configuration).get("webhooks"));
        admission_rules::validate_hooks_conditions(&new, Some(&old), causes);
    },
    ..BASE
};
