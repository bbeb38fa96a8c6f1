//! FlowSchema: which requests belong to which priority level.

use std::borrow::Cow::Borrowed;

use serde_json::{Value, json};

use super::cells::{self, AGE, NAME, count, text_column};
use super::field::{Field, made};
use super::{BASE, Kind, Row, Subresource, lifecycle};
use crate::jiff::Timestamp;
use crate::object::{ensure, name, text};
use crate::status::Cause;
use crate::{flows, names};

/// The precedence of a schema that names none.
const PRECEDENCE: i64 = 1000;
/// The last precedence.
const MAX_PRECEDENCE: i64 = 10_000;
const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];

/// The row of FlowSchema.
pub static FLOW_SCHEMA: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("flowcontrol.apiserver.k8s.io"),
    kind: Borrowed("FlowSchema"),
    plural: Borrowed("flowschemas"),
    singular: Borrowed("flowschema"),
    namespaced: false,
    subresources: Borrowed(&[Subresource::Status]),
    type_name: Borrowed("io.k8s.api.flowcontrol.v1.FlowSchema"),
    columns: Borrowed(&[
        NAME,
        text_column("PriorityLevel", "The level of its requests."),
        text_column("MatchingPrecedence", "Lower ones are asked first."),
        text_column("DistinguisherMethod", "What makes requests one flow."),
        AGE,
        text_column("MissingPL", "Whether its level is missing."),
    ]),
    row: |_, schema, now| row(schema, now),
    defaults: |_, schema| {
        let Some(spec) = made(schema, "spec") else { return };
        if count(spec, &["matchingPrecedence"]) == 0 {
            ensure(spec, &[]).insert("matchingPrecedence".to_owned(), json!(PRECEDENCE));
        }
    },
    prepare_create: |_, schema| {
        lifecycle::begin_status(schema, json!({}));
        lifecycle::begin_generation(schema);
    },
    prepare_update: |_, new, old| {
        lifecycle::keep_status(new, old);
        lifecycle::count_generation(new, old, &["spec"]);
    },
    validate: |_, schema, causes| {
        let spec = Field::root(schema).get("spec");
        validate(&spec, name(schema), causes);
        if flows::fixed_spec(&FLOW_SCHEMA, name(schema)).is_some_and(|fixed| fixed != spec.value) {
            causes.push(spec.invalid(&format!("spec of '{}' must equal the fixed value", name(schema))));
        }
    },
    ..BASE
});

fn row(schema: &Value, now: Timestamp) -> Vec<Value> {
    let dangling =
        Field::root(schema).dig(&["status", "conditions"]).items().find(|c| c.get("type").text() == "Dangling");
    vec![
        json!(name(schema)),
        json!(text(schema, &["spec", "priorityLevelConfiguration", "name"])),
        json!(count(schema, &["spec", "matchingPrecedence"])),
        cells::or_none(text(schema, &["spec", "distinguisherMethod", "type"])),
        cells::age(schema, now),
        json!(dangling.map_or("?", |condition| condition.get("status").text())),
    ]
}

fn validate(spec: &Field, schema: &str, causes: &mut Vec<Cause>) {
    let precedence = spec.get("matchingPrecedence");
    match precedence.int().unwrap_or(0) {
        ..=0 => causes.push(precedence.invalid("must be a positive value")),
        1 if schema != "exempt" => {
            causes.push(precedence.invalid("only the schema named 'exempt' may have matchingPrecedence 1"));
        }
        n if n > MAX_PRECEDENCE => {
            causes.push(precedence.invalid(&format!("must not be greater than {MAX_PRECEDENCE}")));
        }
        _ => {}
    }
    let method = spec.get("distinguisherMethod");
    if method.is_set() && !matches!(method.get("type").text(), "ByUser" | "ByNamespace") {
        let path = method.get("type").path;
        causes.push(Cause::not_supported(path, method.value.clone(), &["ByNamespace", "ByUser"]));
    }
    let level = spec.dig(&["priorityLevelConfiguration", "name"]);
    match level.text() {
        "" => causes.push(Cause::required(&level.path, "must reference a priority level")),
        _ => level.check(causes, names::subdomain),
    }
    spec.get("rules").items().for_each(|rule| validate_rule(&rule, causes));
}

fn validate_rule(rule: &Field, causes: &mut Vec<Cause>) {
    let (subjects, resources, others) = (rule.get("subjects"), rule.get("resourceRules"), rule.get("nonResourceRules"));
    if subjects.len() == 0 {
        causes.push(Cause::required(&subjects.path, "subjects must contain at least one value"));
    }
    subjects.items().for_each(|subject| validate_subject(&subject, causes));
    if resources.len() == 0 && others.len() == 0 {
        let why = "at least one of resourceRules and nonResourceRules has to be non-empty";
        causes.push(Cause::required(&rule.path, why));
    }
    resources.items().for_each(|rule| validate_resources(&rule, causes));
    for rule in others.items() {
        validate_verbs(&rule.get("verbs"), causes);
        let urls = rule.get("nonResourceURLs");
        let words = ("nonResourceURLs must contain at least one value", "non-resource URLs");
        if !validate_list(&urls, words.0, words.1, causes) {
            urls.items().for_each(|url| validate_url(&url, causes));
        }
    }
}

fn validate_subject(subject: &Field, causes: &mut Vec<Cause>) {
    const FORMS: [(&str, &str); 3] = [("ServiceAccount", "serviceAccount"), ("User", "user"), ("Group", "group")];
    let kind = subject.get("kind");
    if !FORMS.iter().any(|(name, _)| *name == kind.text()) {
        causes.push(Cause::not_supported(&kind.path, kind.text(), &["Group", "ServiceAccount", "User"]));
        return;
    }
    for (name, field) in FORMS {
        let form = subject.get(field);
        match (name == kind.text(), form.is_set()) {
            (true, false) => {
                let why = format!("{field} is required when subject kind is '{name}'");
                causes.push(Cause::required(&form.path, &why));
            }
            (true, true) => validate_form(name, &form, causes),
            (false, true) => {
                let why = format!("{field} is forbidden when subject kind is not '{name}'");
                causes.push(Cause::forbidden(&form.path, &why));
            }
            (false, false) => {}
        }
    }
}

fn validate_form(kind: &str, form: &Field, causes: &mut Vec<Cause>) {
    let (title, namespace) = (form.get("name"), form.get("namespace"));
    if title.need_text(causes) && kind == "ServiceAccount" && title.text() != "*" {
        title.check(causes, names::subdomain);
    }
    if kind == "ServiceAccount" {
        match namespace.text() {
            "" => causes.push(Cause::required(&namespace.path, "must specify namespace for service account")),
            _ => namespace.check(causes, names::label),
        }
    }
}

/// A list that must have something, and nothing beside a `*`. Whether it has a `*` or nothing.
fn validate_list(list: &Field, empty: &str, others: &str, causes: &mut Vec<Cause>) -> bool {
    if list.len() == 0 {
        causes.push(Cause::required(&list.path, empty));
        return true;
    }
    let has_all = list.items().any(|item| item.text() == "*");
    if has_all && list.len() > 1 {
        causes.push(list.invalid(&format!("if '*' is present, must not specify other {others}")));
    }
    has_all
}

fn validate_verbs(verbs: &Field, causes: &mut Vec<Cause>) {
    let is_done = validate_list(verbs, "verbs must contain at least one value", "verbs", causes);
    if !is_done && !verbs.items().all(|verb| VERBS.contains(&verb.text())) {
        causes.push(Cause::not_supported(&verbs.path, verbs.value.clone(), VERBS));
    }
}

fn validate_resources(rule: &Field, causes: &mut Vec<Cause>) {
    validate_verbs(&rule.get("verbs"), causes);
    validate_list(&rule.get("apiGroups"), "resource rules must supply at least one api group", "api groups", causes);
    validate_list(&rule.get("resources"), "resource rules must supply at least one resource", "resources", causes);
    let namespaces = rule.get("namespaces");
    if namespaces.len() == 0 && rule.get("clusterScope").is_true() {
        return;
    }
    let empty = "resource rules that are not cluster scoped must supply at least one namespace";
    if !validate_list(&namespaces, empty, "namespaces", causes) {
        for namespace in namespaces.items() {
            for wrong in names::label(namespace.text()) {
                let why = format!("each member of this list must be '*' or a DNS-1123 label; {wrong}");
                causes.push(namespace.invalid(&why));
            }
        }
    }
}

fn validate_url(url: &Field, causes: &mut Vec<Cause>) {
    let text = url.text();
    let stars = text.matches('*').count();
    let why = if text.is_empty() {
        "must not be empty"
    } else if text == "/" {
        return;
    } else if !text.starts_with('/') {
        "must start with slash"
    } else if text.contains(' ') {
        "must not contain white-space"
    } else if text.contains("//") {
        "must not contain double slash"
    } else if stars > 1 || (stars == 1 && !text.ends_with("/*")) {
        "wildcard can only do suffix matching"
    } else {
        return;
    };
    causes.push(Cause::invalid(&url.path, text, why));
}
