//! MutatingAdmissionPolicy: changes to objects before they are written, as expressions.

use std::borrow::Cow::Borrowed;

use serde_json::json;

use super::cells::{self, AGE, NAME, number, text_column};
use super::field::Field;
use super::validatingadmissionpolicy::{POLICY, param_kind, validate_policy};
use super::{Kind, Row, admission_rules, lifecycle};
use crate::object::name;
use crate::status::Cause;

/// The row of MutatingAdmissionPolicy.
pub static MUTATING_ADMISSION_POLICY: Kind = Kind::BuiltIn(&Row {
    kind: Borrowed("MutatingAdmissionPolicy"),
    plural: Borrowed("mutatingadmissionpolicies"),
    singular: Borrowed("mutatingadmissionpolicy"),
    type_name: Borrowed("io.k8s.api.admissionregistration.v1.MutatingAdmissionPolicy"),
    columns: Borrowed(&[
        NAME,
        number("Mutations", "How many changes it makes."),
        text_column("ParamKind", "The kind of its parameters."),
        AGE,
    ]),
    row: |_, policy, now| {
        let count = Field::root(policy).dig(&["spec", "mutations"]).len();
        vec![json!(name(policy)), json!(count), param_kind(policy), cells::age(policy, now)]
    },
    prepare_create: |_, policy| lifecycle::begin_generation(policy),
    prepare_update: |_, new, old| lifecycle::count_generation(new, old, &["spec"]),
    validate: |_, policy, causes| {
        let spec = Field::root(policy).get("spec");
        validate_policy(&spec, causes);
        let mutations = spec.get("mutations");
        if mutations.len() == 0 {
            causes.push(Cause::required(&mutations.path, "mutations must contain at least one item"));
        }
        mutations.items().for_each(|mutation| validate_mutation(&mutation, causes));
        spec.get("reinvocationPolicy").need_one_of(causes, admission_rules::REINVOCATION_POLICIES);
    },
    ..POLICY
});

fn validate_mutation(mutation: &Field, causes: &mut Vec<Cause>) {
    let kind = mutation.get("patchType");
    let forms = [("ApplyConfiguration", "applyConfiguration"), ("JSONPatch", "jsonPatch")];
    for (name, field) in forms {
        let form = mutation.get(field);
        if kind.text() != name {
            if form.is_set() {
                causes.push(Cause::forbidden(
                    &form.path,
                    &format!("must not be specified when patchType is {}", kind.text()),
                ));
            }
        } else if !form.is_set() {
            causes.push(Cause::required(&form.path, &format!("must be specified when patchType is {name}")));
        } else if form.get("expression").text().trim().is_empty() {
            causes.push(Cause::required(form.get("expression").path, "expression is not specified"));
        }
    }
    kind.need_one_of(causes, &["ApplyConfiguration", "JSONPatch"]);
}
