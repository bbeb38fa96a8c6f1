//! MutatingWebhookConfiguration: who may change an object before it is written.

use std::borrow::Cow::Borrowed;

use super::field::{Field, default, each};
use super::validatingwebhookconfiguration::WEBHOOKS;
use super::{Kind, Row, admission_rules};

/// The row of MutatingWebhookConfiguration.
pub static MUTATING_WEBHOOK_CONFIGURATION: Kind = Kind::BuiltIn(&Row {
    kind: Borrowed("MutatingWebhookConfiguration"),
    plural: Borrowed("mutatingwebhookconfigurations"),
    singular: Borrowed("mutatingwebhookconfiguration"),
    type_name: Borrowed("io.k8s.api.admissionregistration.v1.MutatingWebhookConfiguration"),
    defaults: |_, configuration| {
        for hook in each(configuration, "webhooks") {
            admission_rules::default_webhook(hook);
            default(hook, "reinvocationPolicy", "Never");
        }
    },
    validate: |_, configuration, causes| {
        let hooks = Field::root(configuration).get("webhooks");
        for hook in hooks.items() {
            admission_rules::validate_webhook(&hook, causes);
            hook.get("reinvocationPolicy").one_of(causes, admission_rules::REINVOCATION_POLICIES);
        }
        admission_rules::validate_unique(&hooks, causes);
    },
    ..WEBHOOKS
});
