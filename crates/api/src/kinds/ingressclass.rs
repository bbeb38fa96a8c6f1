//! IngressClass: which controller acts on an Ingress. Stored for charts and tools; there is no such controller of ours.

use std::borrow::Cow::Borrowed;

use serde_json::json;

use super::cells::{self, AGE, NAME, text_column};
use super::field::{Field, default, inner};
use super::{BASE, Kind, Row, lifecycle};
use crate::names;
use crate::object::{name, text};
use crate::status::Cause;

/// Longest name of a controller, in bytes.
const MAX_CONTROLLER: usize = 250;

/// The row of IngressClass.
pub static INGRESS_CLASS: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("networking.k8s.io"),
    kind: Borrowed("IngressClass"),
    plural: Borrowed("ingressclasses"),
    singular: Borrowed("ingressclass"),
    namespaced: false,
    type_name: Borrowed("io.k8s.api.networking.v1.IngressClass"),
    columns: Borrowed(&[
        NAME,
        text_column("Controller", "Who acts on the Ingresses of this class."),
        text_column("Parameters", "An object with more of its configuration."),
        AGE,
    ]),
    row: |_, class, now| {
        let parameters = Field::root(class).dig(&["spec", "parameters"]);
        let group = parameters.get("apiGroup");
        let dot = if group.is_set() { "." } else { "" };
        let shown = format!("{}{dot}{}/{}", parameters.get("kind").text(), group.text(), parameters.get("name").text());
        vec![
            json!(name(class)),
            json!(text(class, &["spec", "controller"])),
            json!(if parameters.is_set() { &shown } else { "<none>" }),
            cells::age(class, now),
        ]
    },
    defaults: |_, class| {
        if let Some(parameters) = inner(class, "spec").and_then(|spec| inner(spec, "parameters")) {
            default(parameters, "scope", "Cluster");
        }
    },
    prepare_create: |_, class| lifecycle::begin_generation(class),
    prepare_update: |_, new, old| lifecycle::count_generation(new, old, &["spec"]),
    validate: |_, class, causes| {
        let spec = Field::root(class).get("spec");
        let controller = spec.get("controller");
        if controller.need_text(causes) {
            if controller.text().len() > MAX_CONTROLLER {
                causes.push(Cause::too_long(&controller.path, MAX_CONTROLLER));
            }
            validate_domain_path(&controller, causes);
        }
        let parameters = spec.get("parameters");
        if parameters.is_set() {
            validate_reference(&parameters, causes);
            validate_scope(&parameters, causes);
        }
    },
    validate_update: |_, new, old, causes| {
        let controller = ["spec", "controller"];
        Field::root(new).dig(&controller).immutable(&Field::root(old).dig(&controller), causes);
    },
    warnings: lifecycle::nothing_acts,
    ..BASE
});

/// `example.com/path`: a domain, and a path of characters that may stand in a URL.
fn validate_domain_path(field: &Field, causes: &mut Vec<Cause>) {
    let Some((domain, path)) =
        field.text().split_once('/').filter(|(domain, path)| !domain.is_empty() && !path.is_empty())
    else {
        causes.push(field.invalid("must be a domain-prefixed path (such as \"acme.io/foo\")"));
        return;
    };
    causes.extend(names::subdomain(domain).iter().map(|wrong| Cause::invalid(&field.path, domain, wrong)));
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b);
    if !path.bytes().all(allowed) {
        let why = "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')";
        causes.push(Cause::invalid(&field.path, path, why));
    }
}

/// A typed reference to an object of the same namespace or of the cluster.
pub(super) fn validate_reference(reference: &Field, causes: &mut Vec<Cause>) {
    reference.get("apiGroup").check(causes, names::subdomain);
    reference.get("kind").need(causes, names::path_segment);
    reference.get("name").need(causes, names::path_segment);
}

fn validate_scope(parameters: &Field, causes: &mut Vec<Cause>) {
    let (scope, namespace) = (parameters.get("scope"), parameters.get("namespace"));
    match scope.text() {
        "Cluster" if namespace.is_set() => {
            causes.push(Cause::forbidden(&namespace.path, "`parameters.scope` is set to 'Cluster'"));
        }
        "Cluster" => {}
        "Namespace" if !namespace.is_set() => {
            causes.push(Cause::required(&namespace.path, "`parameters.scope` is set to 'Namespace'"));
        }
        "Namespace" => causes.extend(names::label(namespace.text()).iter().map(|wrong| namespace.invalid(wrong))),
        other => causes.push(Cause::not_supported(&scope.path, other, &["Cluster", "Namespace"])),
    }
}
