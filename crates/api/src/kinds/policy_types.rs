//! What of a ValidatingAdmissionPolicy's expressions does not fit the types of the resources that it is about: warnings
//! in its status, which change nothing of what the policy does.
//!
//! Differs: the types of custom resources, of `request` and of `namespaceObject` are not looked at, nor those of
//! parameters.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::field::Field;
use super::{ALL, Kind};
use crate::cel::{Environment, Type, declared, faults_shown};

/// How many types a policy's rules are checked against at most, upstream's number.
const MAX_TYPES: usize = 10;
/// How long a warning is at most, in bytes: a policy has any number of long expressions.
const MAX_WARNING: usize = 4 << 10;
/// How many warnings are kept at most.
const MAX_WARNINGS: usize = 100;

/// `status.typeChecking.expressionWarnings` of a policy.
pub fn expression_warnings(policy: &Value) -> Vec<Value> {
    let spec = Field::root(policy).get("spec");
    let environments: Vec<(String, Environment)> =
        matched(&spec).into_iter().map(|kind| (shown(kind), environment(&spec, declared::of_kind(kind)))).collect();
    let mut warnings = Vec::new();
    for rule in spec.get("validations").items() {
        if warnings.len() >= MAX_WARNINGS {
            break;
        }
        for field in ["expression", "messageExpression"].map(|name| rule.get(name)) {
            let text = field.text();
            let faults: Vec<String> = environments
                .iter()
                .filter(|_| !text.is_empty())
                .filter_map(|(kind, environment)| {
                    let faults = environment.compile(text).err()?;
                    Some(format!("{kind}: {}\n", faults_shown(&faults, text)))
                })
                .collect();
            if !faults.is_empty() {
                warnings.push(json!({ "fieldRef": field.path, "warning": cut(faults.join("\n")) }));
            }
        }
    }
    warnings
}

fn cut(mut text: String) -> String {
    let end = (0..=MAX_WARNING).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text.truncate(end);
    text
}

/// `apps/v1, Kind=Deployment`.
fn shown(kind: &Kind) -> String {
    format!(
        "{}, Kind={}",
        if kind.group.is_empty() { format!("/{}", kind.version) } else { kind.api_version() },
        kind.kind
    )
}

/// What the expressions of a policy may name, if it is about objects of this type.
fn environment(spec: &Field, object: Type) -> Environment {
    let names = ["request", "authorizer", "authorizer.requestResource", "namespaceObject"];
    let mut environment =
        Environment::new(names.map(|name| (name, Type::Dyn))).with("object", object.clone()).with("oldObject", object);
    if spec.get("paramKind").is_set() {
        environment = environment.with("params", Type::Dyn);
    }
    for variable in spec.get("variables").items() {
        let result = environment.compile(variable.get("expression").text());
        let type_ = result.map_or(Type::Dyn, |program| program.result().clone());
        environment = environment.with(&format!("variables.{}", variable.get("name").text()), type_);
    }
    environment
}

/// The kinds that a policy names one by one, in order of group, version and kind.
fn matched(spec: &Field) -> Vec<&'static Kind> {
    let mut found: BTreeMap<(&str, &str, &str), &'static Kind> = BTreeMap::new();
    for rule in spec.get("matchConstraints").get("resourceRules").items() {
        let named = |list: &str| -> Vec<String> { rule.get(list).items().map(|item| item.text().to_owned()).collect() };
        let (groups, versions) = (named("apiGroups"), named("apiVersions"));
        if groups.iter().chain(&versions).any(|text| text.contains('*')) {
            continue;
        }
        let resources = named("resources");
        let is_named = |kind: &&&'static Kind| {
            groups.iter().any(|group| *group == *kind.group)
                && versions.iter().any(|version| *version == *kind.version)
                && resources.iter().any(|resource| *resource == *kind.plural)
        };
        found.extend(ALL.iter().filter(is_named).map(|kind| ((&*kind.group, &*kind.version, &*kind.kind), *kind)));
        if found.len() >= MAX_TYPES {
            break;
        }
    }
    found.into_values().take(MAX_TYPES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(resource: &str, expressions: &[&str]) -> Value {
        let (group, version, plural) = match resource.split('/').collect::<Vec<_>>()[..] {
            [group, version, plural] => (group, version, plural),
            _ => ("", "v1", resource),
        };
        let rules: Vec<Value> = expressions.iter().map(|expression| json!({ "expression": expression })).collect();
        json!({ "spec": { "matchConstraints": { "resourceRules": [{ "apiGroups": [group], "apiVersions": [version],
            "operations": ["*"], "resources": [plural] }] }, "variables": [{ "name": "n",
                "expression": "object.spec.replicas" }],
            "validations": rules } })
    }

    /// Conformance, ValidatingAdmissionPolicy: expressions are checked against the types that the policy is about.
    #[test]
    fn conformance_expressions_that_do_not_fit_the_types_are_warned_of() {
        let warnings = expression_warnings(&policy(
            "apps/v1/deployments",
            &["object.spec.replicas > '1'", "object.spec.replicas < 10", "object.spec.wrong == 1", "variables.n > 'a'"],
        ));
        let shown: Vec<(&str, &str)> = warnings
            .iter()
            .map(|one| (one["fieldRef"].as_str().unwrap_or(""), one["warning"].as_str().unwrap_or("")))
            .collect();
        assert_eq!(
            shown.iter().map(|(field, _)| *field).collect::<Vec<_>>(),
            ["spec.validations[0].expression", "spec.validations[2].expression", "spec.validations[3].expression"]
        );
        assert_eq!(
            shown[0].1,
            "apps/v1, Kind=Deployment: ERROR: <input>:1:22: found no matching overload for '_>_' applied to '(int, \
                string)'\n | object.spec.replicas > '1'\n | .....................^\n"
        );
        assert!(shown[1].1.contains("undefined field 'wrong'"), "{}", shown[1].1);
        let fine = [
            "object.metadata.labels['a'] == 'b' && object.spec.template.spec.containers.all(c, c.image != '' && \
            (!has(c.resources.limits) || quantity(c.resources.limits['cpu']).isLessThan(quantity('1'))))",
            "object.metadata.creationTimestamp < timestamp('2030-01-01T00:00:00Z') && !has(object.spec.paused)",
        ];
        assert_eq!(expression_warnings(&policy("apps/v1/deployments", &fine)), Vec::<Value>::new());
        for unknown in ["*/v1/deployments", "apps/*/deployments", "apps/v1/deployments*", "apps/v1/nothing"] {
            assert!(expression_warnings(&policy(unknown, &["object.spec.wrong"])).is_empty(), "{unknown}");
        }
        assert_eq!(expression_warnings(&policy("pods", &["object.spec.replicas > 1"])).len(), 1);
        // A type that contains itself.
        let crd = "apiextensions.k8s.io/v1/customresourcedefinitions";
        assert!(
            expression_warnings(&policy(
                crd,
                &["object.spec.versions.all(v, v.schema.openAPIV3Schema.type == 'object')"]
            ))
            .is_empty()
        );
    }
}
