//! MutatingAdmissionPolicyBinding: where a MutatingAdmissionPolicy holds.

use std::borrow::Cow::Borrowed;

use super::field::Field;
use super::validatingadmissionpolicybinding::{BINDING, validate_binding};
use super::{Kind, Row};

/// The row of MutatingAdmissionPolicyBinding.
pub static MUTATING_ADMISSION_POLICY_BINDING: Kind = Kind::BuiltIn(&Row {
    kind: Borrowed("MutatingAdmissionPolicyBinding"),
    plural: Borrowed("mutatingadmissionpolicybindings"),
    singular: Borrowed("mutatingadmissionpolicybinding"),
    type_name: Borrowed("io.k8s.api.admissionregistration.v1.MutatingAdmissionPolicyBinding"),
    validate: |_, binding, causes| validate_binding(&Field::root(binding).get("spec"), causes),
    ..BINDING
});
