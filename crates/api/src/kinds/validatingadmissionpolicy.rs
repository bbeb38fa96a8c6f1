//! ValidatingAdmissionPolicy: rules that objects must keep, as expressions.

use std::borrow::Cow::Borrowed;
use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::admission_rules::{POLICY_NAMES, compile, declare_variables, environment};
use super::cells::{self, AGE, NAME, number, text_column};
use super::field::{Field, default, inner, made};
use super::{BASE, Kind, Row, Subresource, admission_rules, lifecycle};
use crate::cel::Type;
use crate::names;
use crate::object::name;
use crate::status::Cause;

/// Most audit annotations of a policy.
const MAX_ANNOTATIONS: usize = 20;
/// Longest expression of an audit annotation's value, in bytes.
const MAX_ANNOTATION_EXPRESSION: usize = 5 * 1024;

/// The row of ValidatingAdmissionPolicy.
pub static VALIDATING_ADMISSION_POLICY: Kind = Kind::BuiltIn(&Row {
    kind: Borrowed("ValidatingAdmissionPolicy"),
    plural: Borrowed("validatingadmissionpolicies"),
    singular: Borrowed("validatingadmissionpolicy"),
    subresources: Borrowed(&[Subresource::Status]),
    type_name: Borrowed("io.k8s.api.admissionregistration.v1.ValidatingAdmissionPolicy"),
    columns: Borrowed(&[
        NAME,
        number("Validations", "How many rules it has."),
        text_column("ParamKind", "The kind of its parameters."),
        AGE,
    ]),
    row: |_, policy, now| {
        let count = Field::root(policy).dig(&["spec", "validations"]).len();
        vec![json!(name(policy)), json!(count), param_kind(policy), cells::age(policy, now)]
    },
    prepare_create: |_, policy| {
        lifecycle::begin_status(policy, json!({}));
        lifecycle::begin_generation(policy);
    },
    prepare_update: |_, new, old| {
        lifecycle::keep_status(new, old);
        lifecycle::count_generation(new, old, &["spec"]);
    },
    validate: |_, policy, causes| {
        let root = Field::root(policy);
        let spec = root.get("spec");
        validate_policy(&spec, causes);
        validate_rules(&spec, root.dig(&["metadata", "name"]).text(), causes);
        validate_expressions(&spec, causes);
    },
    ..POLICY
});

/// What both kinds of policy share.
pub(super) const POLICY: Row = Row {
    group: Borrowed("admissionregistration.k8s.io"),
    categories: Borrowed(admission_rules::CATEGORIES),
    namespaced: false,
    defaults: |_, policy| {
        let Some(spec) = made(policy, "spec") else { return };
        default(spec, "failurePolicy", "Fail");
        if let Some(constraints) = inner(spec, "matchConstraints") {
            admission_rules::default_match(constraints);
        }
    },
    validate_create: |_, policy, causes| validate_conditions(&Field::root(policy).get("spec"), causes),
    validate_update: |_, new, old, causes| {
        let [new, old] = [new, old].map(|policy| Field::root(policy).get("spec"));
        // As upstream: what stays is not judged anew.
        if ["paramKind", "matchConditions"].iter().any(|field| new.get(field).value != old.get(field).value) {
            validate_conditions(&new, causes);
        }
    },
    ..BASE
};

fn validate_conditions(spec: &Field, causes: &mut Vec<Cause>) {
    admission_rules::validate_conditions(&spec.get("matchConditions"), &environment(POLICY_NAMES), causes);
}

/// The cell with the kind of a policy's parameters.
pub(super) fn param_kind(policy: &Value) -> Value {
    let kind = Field::root(policy).dig(&["spec", "paramKind"]);
    if !kind.is_set() {
        return json!("<unset>");
    }
    json!(format!("{}/{}", kind.get("apiVersion").text(), kind.get("kind").text()))
}

/// What both kinds of policy must say.
pub(super) fn validate_policy(spec: &Field, causes: &mut Vec<Cause>) {
    spec.get("failurePolicy").need_one_of(causes, admission_rules::FAILURE_POLICIES);
    if spec.get("paramKind").is_set() {
        admission_rules::validate_param_kind(&spec.get("paramKind"), causes);
    }
    let constraints = spec.get("matchConstraints");
    if constraints.is_set() {
        admission_rules::validate_match(&constraints, causes);
        if constraints.get("resourceRules").len() == 0 {
            causes.push(Cause::required(constraints.get("resourceRules").path, ""));
        }
    } else {
        causes.push(Cause::required(&constraints.path, ""));
    }
    admission_rules::validate_variables(&spec.get("variables"), causes);
}

fn validate_rules(spec: &Field, policy: &str, causes: &mut Vec<Cause>) {
    let (rules, annotations) = (spec.get("validations"), spec.get("auditAnnotations"));
    if rules.len() == 0 && annotations.len() == 0 {
        let why = "validations or auditAnnotations must contain at least one item";
        causes.extend([Cause::required(&rules.path, why), Cause::required(&annotations.path, why)]);
    }
    for rule in rules.items() {
        let (expression, message) = (rule.get("expression"), rule.get("message"));
        if expression.text().trim().is_empty() {
            causes.push(Cause::required(&expression.path, "expression is not specified"));
        }
        let generated = rule.get("messageExpression");
        if !generated.text().is_empty() && generated.text().trim().is_empty() {
            causes.push(generated.invalid("must be non-empty if specified"));
        }
        if !message.text().is_empty() && message.text().trim().is_empty() {
            causes.push(message.invalid("message must be non-empty if specified"));
        } else if message.text().trim().contains(['\n', '\r']) {
            causes.push(message.invalid("message must not contain line breaks"));
        }
        rule.get("reason").one_of(causes, &["Forbidden", "Invalid", "RequestEntityTooLarge"]);
    }
    if annotations.len() > MAX_ANNOTATIONS {
        causes.push(annotations.invalid(&format!("must not have more than {MAX_ANNOTATIONS} auditAnnotations")));
    }
    let mut seen = BTreeSet::new();
    for annotation in annotations.items() {
        let (key, value) = (annotation.get("key"), annotation.get("valueExpression"));
        let whole = format!("{policy}/{}", key.text());
        causes.extend(names::qualified(&whole).iter().map(|wrong| Cause::invalid(&key.path, whole.as_str(), wrong)));
        if value.text().trim().is_empty() {
            causes.push(Cause::required(&value.path, "valueExpression is not specified"));
        } else if value.text().trim().len() > MAX_ANNOTATION_EXPRESSION {
            let why = format!("must not exceed {MAX_ANNOTATION_EXPRESSION} bytes in length");
            causes.push(Cause::required(&value.path, &why));
        }
        if !seen.insert(key.text()) {
            causes.push(Cause::duplicate(&key.path, key.text()));
        }
    }
}

/// Expressions that can never be evaluated are refused; what depends on the objects' types is left to the evaluation.
fn validate_expressions(spec: &Field, causes: &mut Vec<Cause>) {
    let environment = declare_variables(spec, causes);
    for rule in spec.get("validations").items() {
        compile(&environment, &rule.get("expression"), Some((&Type::Bool, "bool")), causes);
        compile(&environment, &rule.get("messageExpression"), Some((&Type::String, "string")), causes);
    }
    for annotation in spec.get("auditAnnotations").items() {
        compile(&environment, &annotation.get("valueExpression"), None, causes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Conformance, ValidatingAdmissionPolicy: an expression that does not compile is refused when it is made.
    #[test]
    fn conformance_expressions_that_do_not_compile_are_refused() {
        let faults = |expression: &str| {
            let spec = json!({ "variables": [{ "name": "v", "expression": "object.spec.replicas" }],
                "validations": [{ "expression": expression }] });
            let mut causes = Vec::new();
            validate_expressions(&Field::root(&spec), &mut causes);
            causes.into_iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect::<Vec<_>>().join("; ")
        };
        assert_eq!(faults("variables.v > 1 && object.metadata.name.startsWith('a')"), "");
        assert_eq!(
            faults("params.x == oldObject.y && authorizer.group('').resource('pods').check('get').allowed()"),
            ""
        );
        for (expression, why) in [
            ("variables.v >", "compilation failed: ERROR"),
            ("nothing == 1", "undeclared reference"),
            ("'text'", "must evaluate to bool"),
        ] {
            let found = faults(expression);
            assert!(found.starts_with("validations[0].expression: ") && found.contains(why), "{expression}: {found}");
        }
    }
}
