//! What webhook configurations and admission policies share: which requests they are about, and where a webhook is.

use std::borrow::Cow::{self, Borrowed};
use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::field::{Field, default, each, inner};
use crate::cel::parse::is_keyword;
use crate::cel::{Environment, Type, faults_shown};
use crate::metadata::validate_label_selector;
use crate::names;
use crate::status::Cause;

/// The category of every kind that admission reads. A slice of its own: rows that are made of another may not drop what
/// they replace while they are evaluated.
pub(super) const CATEGORIES: &[Cow<'static, str>] = &[Borrowed("api-extensions")];
/// What may be done when an answer cannot be had.
pub(super) const FAILURE_POLICIES: &[&str] = &["Fail", "Ignore"];
/// Whether a rule is about other versions of a resource too.
pub(super) const MATCH_POLICIES: &[&str] = &["Equivalent", "Exact"];
/// Whether a mutation is asked for again when a later one has changed the object.
pub(super) const REINVOCATION_POLICIES: &[&str] = &["IfNeeded", "Never"];
/// Most match conditions of a webhook or policy.
const MAX_CONDITIONS: usize = 64;
const OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
const SCOPES: &[&str] = &["*", "Cluster", "Namespaced"];

/// The scope of every rule in `field`.
pub(super) fn default_rules(object: &mut Value, field: &str) {
    each(object, field).for_each(|rule| default(rule, "scope", "*"));
}

/// The defaults of `MatchResources`.
pub(super) fn default_match(resources: &mut Value) {
    default(resources, "matchPolicy", "Equivalent");
    default(resources, "namespaceSelector", json!({}));
    default(resources, "objectSelector", json!({}));
    default_rules(resources, "resourceRules");
    default_rules(resources, "excludeResourceRules");
}

/// The defaults of one webhook.
pub(super) fn default_webhook(hook: &mut Value) {
    default(hook, "failurePolicy", "Fail");
    default(hook, "matchPolicy", "Equivalent");
    default(hook, "namespaceSelector", json!({}));
    default(hook, "objectSelector", json!({}));
    default(hook, "timeoutSeconds", 10);
    default_rules(hook, "rules");
    if let Some(service) = inner(hook, "clientConfig").and_then(|config| inner(config, "service")) {
        default(service, "port", 443);
    }
}

/// `MatchResources` of a policy or a binding.
pub(super) fn validate_match(resources: &Field, causes: &mut Vec<Cause>) {
    resources.get("matchPolicy").need_one_of(causes, MATCH_POLICIES);
    for selector in ["namespaceSelector", "objectSelector"].map(|name| resources.get(name)) {
        validate_label_selector(&selector, causes);
    }
    for rule in ["resourceRules", "excludeResourceRules"].iter().flat_map(|list| resources.get(list).items()) {
        let mut seen = BTreeSet::new();
        for title in rule.get("resourceNames").items() {
            causes.extend(names::path_segment(title.text()).iter().map(|wrong| title.invalid(wrong)));
            if !seen.insert(title.text()) {
                causes.push(Cause::duplicate(&title.path, title.text()));
            }
        }
        validate_rule(&rule, causes);
    }
}

/// Operations, groups, versions, resources and scope of a rule.
pub(super) fn validate_rule(rule: &Field, causes: &mut Vec<Cause>) {
    let lists = [
        ("operations", "if '*' is present, must not specify other operations"),
        ("apiGroups", "if '*' is present, must not specify other API groups"),
        ("apiVersions", "if '*' is present, must not specify other API versions"),
    ];
    for (name, why) in lists {
        let list = rule.get(name);
        if list.len() == 0 {
            causes.push(Cause::required(&list.path, ""));
        }
        if list.len() > 1 && list.items().any(|item| item.text() == "*") {
            causes.push(list.invalid(why));
        }
        for item in list.items() {
            match name {
                "operations" if !OPERATIONS.contains(&item.text()) => {
                    causes.push(Cause::not_supported(&item.path, item.text(), OPERATIONS));
                }
                "apiVersions" if item.text().is_empty() => causes.push(Cause::required(&item.path, "")),
                _ => {}
            }
        }
    }
    validate_resources(&rule.get("resources"), causes);
    rule.get("scope").one_of(causes, SCOPES);
}

fn validate_resources(resources: &Field, causes: &mut Vec<Cause>) {
    if resources.len() == 0 {
        causes.push(Cause::required(&resources.path, ""));
    }
    let (mut whole, mut everywhere) = (BTreeSet::new(), BTreeSet::new());
    for resource in resources.items() {
        let Some((main, sub)) = resource.text().split_once('/') else {
            if resource.text().is_empty() {
                causes.push(Cause::required(&resource.path, ""));
            }
            continue;
        };
        let mut clash = |present: String| {
            let why = format!("if '{present}' is present, must not specify {}", resource.text());
            causes.push(resource.invalid(&why));
        };
        if whole.contains(main) {
            clash(format!("{main}/*"));
        }
        if everywhere.contains(sub) {
            clash(format!("*/{sub}"));
        }
        if sub == "*" {
            whole.insert(main);
        }
        if main == "*" {
            everywhere.insert(sub);
        }
    }
    let has = |test: fn(&str) -> bool| resources.items().any(|resource| test(resource.text()));
    if resources.len() > 1 && has(|text| text == "*/*") {
        causes.push(resources.invalid("if '*/*' is present, must not specify other resources"));
    }
    if has(|text| text == "*") && has(|text| text != "*" && !text.is_empty() && !text.contains('/')) {
        let why = "if '*' is present, must not specify other resources without subresources";
        causes.push(resources.invalid(why));
    }
}

/// What an expression of a webhook configuration may name.
pub const WEBHOOK_NAMES: &[&str] = &["object", "oldObject", "request", "authorizer", "authorizer.requestResource"];
/// What an expression of a policy may name, beside its variables.
pub const POLICY_NAMES: &[&str] =
    &["object", "oldObject", "request", "authorizer", "authorizer.requestResource", "params", "namespaceObject"];

/// Where expressions know these names, of whatever type.
pub fn environment(names: &'static [&'static str]) -> Environment {
    Environment::new(names.iter().map(|name| (*name, Type::Dyn)))
}

/// Compiles an expression, and says whether its result is what is wanted: one that can never be evaluated is refused
/// when it is made. What depends on the objects' types is left to the evaluation. Its type; `dyn` where it has none.
pub(super) fn compile(
    environment: &Environment,
    field: &Field,
    wanted: Option<(&Type, &str)>,
    causes: &mut Vec<Cause>,
) -> Type {
    let text = field.text();
    if text.trim().is_empty() {
        return Type::Dyn;
    }
    match environment.compile(text) {
        Err(faults) => {
            causes.push(field.invalid(&format!("compilation failed: {}", faults_shown(&faults, text))));
            Type::Dyn
        }
        Ok(program) => {
            let type_ = program.result().clone();
            if let Some((_, name)) = wanted.filter(|(wanted, _)| type_ != **wanted && type_ != Type::Dyn) {
                causes.push(field.invalid(&format!("must evaluate to {name}")));
            }
            type_
        }
    }
}

/// Names and expressions of match conditions.
pub(super) fn validate_conditions(conditions: &Field, environment: &Environment, causes: &mut Vec<Cause>) {
    if conditions.len() > MAX_CONDITIONS {
        causes.push(Cause::too_many(&conditions.path, conditions.len(), MAX_CONDITIONS));
    }
    let mut seen = BTreeSet::new();
    for condition in conditions.items() {
        if condition.get("expression").text().trim().is_empty() {
            causes.push(Cause::required(condition.get("expression").path, ""));
        }
        compile(environment, &condition.get("expression"), Some((&Type::Bool, "bool")), causes);
        let title = condition.get("name");
        title.need(causes, names::qualified);
        if !title.text().is_empty() && !seen.insert(title.text()) {
            causes.push(Cause::duplicate(&title.path, title.text()));
        }
    }
}

/// Named expressions that others may use.
pub(super) fn validate_variables(variables: &Field, causes: &mut Vec<Cause>) {
    for variable in variables.items() {
        let (title, expression) = (variable.get("name"), variable.get("expression"));
        let text = title.text();
        let is_word = text
            .bytes()
            .enumerate()
            .all(|(index, b)| b == b'_' || b.is_ascii_alphabetic() || (index > 0 && b.is_ascii_digit()));
        if text.trim().is_empty() {
            causes.push(Cause::required(&title.path, "name is not specified"));
        } else if !is_word || is_keyword(text) {
            causes.push(title.invalid("name is not a valid CEL identifier"));
        }
        if expression.text().trim().is_empty() {
            causes.push(Cause::required(&expression.path, "expression is not specified"));
        }
    }
}

/// The kind of a policy's parameters.
pub(super) fn validate_param_kind(kind: &Field, causes: &mut Vec<Cause>) {
    let (version, title) = (kind.get("apiVersion"), kind.get("kind"));
    let parts: Vec<&str> = version.text().split('/').collect();
    match parts.as_slice() {
        [""] => causes.push(Cause::required(&version.path, "")),
        [only] => validate_version(&version, only, causes),
        [group, only] => {
            let wrong = names::subdomain(group).join(",");
            if !group.is_empty() && !wrong.is_empty() {
                causes.push(Cause::invalid(&version.path, *group, &wrong));
            }
            validate_version(&version, only, causes);
        }
        _ => causes.push(version.invalid(&format!("unexpected GroupVersion string: {}", version.text()))),
    }
    if title.need_text(causes) {
        let wrong = names::label_1035(&title.text().to_lowercase()).join(",");
        if !wrong.is_empty() {
            causes.push(title.invalid(&format!("may have mixed case, but should otherwise match: {wrong}")));
        }
    }
}

fn validate_version(field: &Field, version: &str, causes: &mut Vec<Cause>) {
    let wrong = names::label_1035(version).join(",");
    if version.is_empty() {
        causes.push(field.invalid("version must be specified"));
    } else if !wrong.is_empty() {
        causes.push(Cause::invalid(&field.path, version, &wrong));
    }
}

/// Which objects are a binding's parameters.
pub(super) fn validate_param_ref(reference: &Field, causes: &mut Vec<Cause>) {
    let (title, selector) = (reference.get("name"), reference.get("selector"));
    let both = !title.text().is_empty() && selector.is_set();
    title.check(causes, names::path_segment);
    if both {
        causes.push(Cause::forbidden(&title.path, "name and selector are mutually exclusive"));
    }
    validate_label_selector(&selector, causes);
    if both {
        causes.push(Cause::forbidden(&selector.path, "name and selector are mutually exclusive"));
    }
    if title.text().is_empty() && !selector.is_set() {
        causes.push(Cause::required(&reference.path, "one of name or selector must be specified"));
    }
    reference.get("parameterNotFoundAction").need_one_of(causes, &["Deny", "Allow"]);
}

/// One webhook of a configuration, but for what only mutating ones have.
pub(super) fn validate_webhook(hook: &Field, causes: &mut Vec<Cause>) {
    let title = hook.get("name");
    if title.need_text(causes) {
        let wrong = names::subdomain(title.text()).join(",");
        if !wrong.is_empty() {
            causes.push(title.invalid(&wrong));
        } else if title.text().split('.').count() < 3 {
            causes.push(title.invalid("should be a domain with at least three segments separated by dots"));
        }
    }
    hook.get("rules").items().for_each(|rule| validate_rule(&rule, causes));
    hook.get("failurePolicy").one_of(causes, FAILURE_POLICIES);
    hook.get("matchPolicy").one_of(causes, MATCH_POLICIES);
    let effects = hook.get("sideEffects");
    if !effects.is_set() {
        causes.push(Cause::required(&effects.path, "must specify one of None, NoneOnDryRun"));
    } else if !matches!(effects.text(), "None" | "NoneOnDryRun") {
        causes.push(Cause::not_supported(&effects.path, effects.text(), &["None", "NoneOnDryRun"]));
    }
    let timeout = hook.get("timeoutSeconds");
    if timeout.int().is_some_and(|seconds| !(1..=30).contains(&seconds)) {
        causes.push(timeout.invalid("the timeout value must be between 1 and 30 seconds"));
    }
    validate_label_selector(&hook.get("namespaceSelector"), causes);
    validate_label_selector(&hook.get("objectSelector"), causes);
    let config = hook.get("clientConfig");
    let (url, service) = (config.get("url"), config.get("service"));
    match (url.is_set(), service.is_set()) {
        (true, false) => validate_url(&url, causes),
        (false, true) => validate_service(&service, causes),
        _ => causes.push(Cause::required(&config.path, "exactly one of url or service is required")),
    }
    validate_reviews(&hook.get("admissionReviewVersions"), causes);
}

/// Match conditions of all webhooks, asked for apart from the rest: those that stay as they were are not judged anew,
/// as upstream, so that a configuration which an older server took may still be changed otherwise.
pub(super) fn validate_hooks_conditions(hooks: &Field, old: Option<&Field>, causes: &mut Vec<Cause>) {
    let stays = |old: &Field| {
        let mut pairs = hooks.items().zip(old.items());
        hooks.len() == old.len()
            && pairs.all(|(new, old)| new.get("matchConditions").value == old.get("matchConditions").value)
    };
    if !old.is_some_and(stays) {
        let environment = environment(WEBHOOK_NAMES);
        hooks.items().for_each(|hook| validate_conditions(&hook.get("matchConditions"), &environment, causes));
    }
}

/// Compiles the variables of a policy, each of which may use those before it; the environment with all of them.
pub(super) fn declare_variables(spec: &Field, causes: &mut Vec<Cause>) -> Environment {
    let mut environment = environment(POLICY_NAMES);
    for variable in spec.get("variables").items() {
        let type_ = compile(&environment, &variable.get("expression"), None, causes);
        environment = environment.with(&format!("variables.{}", variable.get("name").text()), type_);
    }
    environment
}

/// Names of webhooks are unique in their configuration.
pub(super) fn validate_unique(hooks: &Field, causes: &mut Vec<Cause>) {
    let mut seen = BTreeSet::new();
    for title in hooks.items().map(|hook| hook.get("name")) {
        if !title.text().is_empty() && !seen.insert(title.text()) {
            causes.push(Cause::duplicate(&title.path, title.text()));
        }
    }
}

fn validate_reviews(versions: &Field, causes: &mut Vec<Cause>) {
    if versions.len() == 0 {
        causes.push(Cause::required(&versions.path, "must specify one of v1, v1beta1"));
        return;
    }
    let mut seen = BTreeSet::new();
    for version in versions.items() {
        if !seen.insert(version.text()) {
            causes.push(version.invalid("duplicate version"));
            continue;
        }
        causes.extend(names::label_1035(version.text()).iter().map(|wrong| version.invalid(wrong)));
    }
    if !seen.contains("v1") && !seen.contains("v1beta1") {
        causes.push(versions.invalid("must include at least one of v1, v1beta1"));
    }
}

/// A webhook's URL: `https`, a host, and no more than a path.
pub(super) fn validate_url(url: &Field, causes: &mut Vec<Cause>) {
    const FORM: &str = "; desired format: https://host[/path]";
    let mut wrong = |value: &str, why: &str| causes.push(Cause::invalid(&url.path, value, why));
    let (rest, fragment) = url.text().split_once('#').unwrap_or((url.text(), ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (scheme, rest) = rest.split_once("://").unwrap_or(("", ""));
    let authority = rest.split('/').next().unwrap_or("");
    let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
    if scheme != "https" {
        wrong(scheme, &format!("'https' is the only allowed URL scheme{FORM}"));
    }
    if host.is_empty() {
        wrong(host, &format!("host must be specified{FORM}"));
    }
    if let Some(user) = user {
        wrong(user, "user information is not permitted in the URL");
    }
    if !fragment.is_empty() {
        wrong(fragment, "fragments are not permitted in the URL");
    }
    if !query.is_empty() {
        wrong(query, "query parameters are not permitted in the URL");
    }
}

/// The Service that a webhook is behind.
pub(super) fn validate_service(service: &Field, causes: &mut Vec<Cause>) {
    service.get("name").need_text(causes);
    service.get("namespace").need_text(causes);
    let (port, path) = (service.get("port"), service.get("path"));
    let wrong = names::port(port.int().unwrap_or(443)).join(", ");
    if !wrong.is_empty() {
        causes.push(port.invalid(&format!("port is not valid: {wrong}")));
    }
    let text = path.text();
    if matches!(text, "" | "/") {
        return;
    }
    if text == "//" {
        causes.push(path.invalid("segment[0] may not be empty"));
        return;
    }
    if !text.starts_with('/') {
        causes.push(path.invalid("must start with a '/'"));
    }
    let steps = text.get(1..).unwrap_or("");
    for (index, step) in steps.strip_suffix('/').unwrap_or(steps).split('/').enumerate() {
        if step.is_empty() {
            causes.push(path.invalid(&format!("segment[{index}] may not be empty")));
            continue;
        }
        causes.extend(names::subdomain(step).iter().map(|wrong| path.invalid(&format!("segment[{index}]: {wrong}"))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Conformance, webhooks with match conditions: one whose condition does not compile is refused when it is made.
    #[test]
    fn conformance_match_conditions_that_do_not_compile_are_refused() {
        let faults = |expression: &str| {
            let hook = json!({ "name": "a.b.c", "sideEffects": "None", "admissionReviewVersions": ["v1"],
                "clientConfig": { "url": "https://a" },
                "matchConditions": [{ "name": "x", "expression": expression }] });
            let mut causes = Vec::new();
            let configuration = json!({ "webhooks": [hook] });
            validate_hooks_conditions(&Field::root(&configuration).get("webhooks"), None, &mut causes);
            causes.into_iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect::<Vec<_>>().join("; ")
        };
        assert_eq!(faults("object.metadata.name != 'skip-me' && authorizer.requestResource.check('x').allowed()"), "");
        for (expression, why) in [
            ("... [] bad expression", "compilation failed: ERROR"),
            ("params.x", "undeclared reference"),
            ("'text'", "must evaluate to bool"),
        ] {
            let found = faults(expression);
            assert!(
                found.starts_with("webhooks[0].matchConditions[0].expression: ") && found.contains(why),
                "{expression}: {found}"
            );
        }
    }

    #[test]
    fn match_conditions_that_stay_are_not_judged_anew() {
        let hooks = |expressions: &[&str]| {
            let hook = |text: &&str| json!({ "matchConditions": [{ "name": "x", "expression": text }] });
            json!({ "webhooks": expressions.iter().map(hook).collect::<Vec<_>>() })
        };
        let faults = |new: &[&str], old: &[&str]| {
            let (new, old) = (hooks(new), hooks(old));
            let (new, old) = (Field::root(&new).get("webhooks"), Field::root(&old).get("webhooks"));
            let mut causes = Vec::new();
            validate_hooks_conditions(&new, Some(&old), &mut causes);
            causes.len()
        };
        assert_eq!(faults(&["bad(", "true"], &["bad(", "true"]), 0);
        assert_eq!(faults(&["bad(", "false"], &["bad(", "true"]), 1, "one is another: all are judged");
        assert_eq!(faults(&["bad("], &["bad(", "true"]), 1);
    }
}
