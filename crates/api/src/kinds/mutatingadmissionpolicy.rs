//! MutatingAdmissionPolicy: changes to objects before they are written, as expressions.

use std::borrow::Cow::Borrowed;

use serde_json::json;

use super::cells::{self, AGE, NAME, number, text_column};
use super::field::Field;
use super::validatingadmissionpolicy::{POLICY, param_kind, validate_policy};
use super::{Kind, Row, admission_rules, lifecycle};
use crate::cel::{Environment, Type};
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
        let environment = admission_rules::declare_variables(&spec, causes);
        mutations.items().for_each(|mutation| validate_mutation(&environment, &mutation, causes));
        spec.get("reinvocationPolicy").need_one_of(causes, admission_rules::REINVOCATION_POLICIES);
    },
    ..POLICY
});

/// Differs: a map that is no `Object{…}` is refused when it is evaluated, not when it is made: expressions here do not
/// tell the two apart.
fn validate_mutation(environment: &Environment, mutation: &Field, causes: &mut Vec<Cause>) {
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
        } else {
            let expression = form.get("expression");
            let (fits, wanted): (fn(&Type) -> bool, _) = match name {
                "JSONPatch" => (|type_| matches!(type_, Type::List(..) | Type::Dyn), "list(JSONPatch)"),
                _ => (|type_| matches!(type_, Type::Map(..) | Type::Dyn), "Object"),
            };
            if !fits(&admission_rules::compile(environment, &expression, None, causes)) {
                causes.push(expression.invalid(&format!("must evaluate to {wanted}")));
            }
        }
    }
    kind.need_one_of(causes, &["ApplyConfiguration", "JSONPatch"]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn mutations_that_cannot_be_evaluated_are_refused_when_they_are_made() {
        let faults = |mutation: Value| {
            let policy = json!({ "metadata": { "name": "p" }, "spec": {
                "failurePolicy": "Fail", "reinvocationPolicy": "Never",
                "matchConstraints": { "matchPolicy": "Exact", "namespaceSelector": {}, "objectSelector": {},
                    "resourceRules": [{ "operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"],
                        "resources": ["pods"] }] },
                "variables": [{ "name": "n", "expression": "object.metadata.name" }],
                "mutations": [mutation] } });
            let mut causes = Vec::new();
            (MUTATING_ADMISSION_POLICY.validate)(&MUTATING_ADMISSION_POLICY, &policy, &mut causes);
            causes.into_iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect::<Vec<_>>().join("; ")
        };
        let apply = |text: &str| {
            faults(json!({ "patchType": "ApplyConfiguration", "applyConfiguration": { "expression": text } }))
        };
        let patch = |text: &str| faults(json!({ "patchType": "JSONPatch", "jsonPatch": { "expression": text } }));
        assert_eq!(apply("Object{metadata: Object.metadata{labels: Object.metadata.labels{a: variables.n}}}"), "");
        assert_eq!(patch(r#"[JSONPatch{op: "add", path: "/metadata/labels/a", value: variables.n}]"#), "");
        assert_eq!(patch("has(object.x) ? [JSONPatch{op: 'remove', path: '/x'}] : []"), "");
        let at = "spec.mutations[0].applyConfiguration.expression: Invalid value: ";
        assert_eq!(apply("'text'"), format!("{at}\"'text'\": must evaluate to Object"));
        assert!(
            apply("Object{").starts_with(&format!("{at}\"Object{{\": compilation failed: ERROR")),
            "{}",
            apply("Object{")
        );
        assert!(apply("variables.m").contains("compilation failed"), "{}", apply("variables.m"));
        let at = "spec.mutations[0].jsonPatch.expression: Invalid value: ";
        assert_eq!(patch("1"), format!("{at}\"1\": must evaluate to list(JSONPatch)"));
    }
}
