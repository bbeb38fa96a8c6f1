//! ResourceQuota: how much the objects of a namespace may ask for together.

use std::borrow::Cow::Borrowed;

use serde_json::{Value, json};

use super::cells::{self, AGE, NAME, text_column};
use super::field::{Field, IMMUTABLE};
use super::{BASE, Kind, Row, Subresource, lifecycle};
use crate::names;
use crate::object::name;
use crate::quantity::Quantity;
use crate::status::Cause;

/// What the number of objects of a kind is called besides `count/<resource>`.
const OBJECTS: [&str; 9] = [
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "persistentvolumeclaims",
    "configmaps",
    "services.nodeports",
    "services.loadbalancers",
];
/// What pods ask for.
const COMPUTE: [&str; 6] = ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];
/// Everything else that has no domain in its name.
const OTHER: [&str; 4] =
    ["ephemeral-storage", "requests.ephemeral-storage", "limits.ephemeral-storage", "requests.storage"];

const EXISTS_ONLY: &str = "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, \
    ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or \
    ResourceQuotaScopeCrossNamespacePodAffinity";

/// The row of ResourceQuota.
pub static RESOURCE_QUOTA: Kind = Kind::BuiltIn(&Row {
    kind: Borrowed("ResourceQuota"),
    plural: Borrowed("resourcequotas"),
    singular: Borrowed("resourcequota"),
    short_names: Borrowed(&[Borrowed("quota")]),
    subresources: Borrowed(&[Subresource::Status]),
    type_name: Borrowed("io.k8s.api.core.v1.ResourceQuota"),
    columns: Borrowed(&[
        NAME,
        text_column("Request", "What is used and what may be, but for limits."),
        text_column("Limit", "The limits that are used and may be."),
        AGE,
    ]),
    row: |_, quota, now| {
        let status = Field::root(quota).get("status");
        let shown = |limits: bool| {
            let hard = status.get("hard").entries().filter(|(resource, _)| resource.contains("limits") == limits);
            let used = |resource: &str| shown_amount(status.get("used").get(resource).value);
            hard.map(|(resource, most)| format!("{resource}: {}/{}", used(resource), shown_amount(most.value)))
                .collect::<Vec<_>>()
                .join(", ")
        };
        vec![json!(name(quota)), json!(shown(false)), json!(shown(true)), cells::age(quota, now)]
    },
    prepare_create: |_, quota| lifecycle::begin_status(quota, json!({})),
    prepare_update: |_, new, old| lifecycle::keep_status(new, old),
    validate: |_, quota, causes| validate(&Field::root(quota).get("spec"), causes),
    validate_update: |_, new, old, causes| {
        let sorted = |quota| {
            let mut scopes: Vec<&str> =
                Field::root(quota).dig(&["spec", "scopes"]).items().map(|scope| scope.text()).collect();
            scopes.sort_unstable();
            scopes
        };
        if sorted(new) != sorted(old) {
            causes.push(Field::root(new).dig(&["spec", "scopes"]).invalid(IMMUTABLE));
        }
    },
    ..BASE
});

fn shown_amount(amount: &Value) -> String {
    Quantity::of(amount).map_or_else(|_| "0".to_owned(), |quantity| quantity.to_string())
}

fn is_standard(resource: &str) -> bool {
    OBJECTS.contains(&resource)
        || COMPUTE.contains(&resource)
        || OTHER.contains(&resource)
        || resource.starts_with("hugepages-")
        || resource.starts_with("requests.hugepages-")
}

/// Whether a resource is counted in whole numbers.
fn is_whole(resource: &str) -> bool {
    OBJECTS.contains(&resource) || resource.starts_with("count/")
}

/// The resources that a scope can be about.
fn scope_covers(scope: &str, resource: &str) -> bool {
    match scope {
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => matches!(resource, "persistentvolumeclaims" | "requests.storage"),
        _ => resource == "pods" || COMPUTE.contains(&resource),
    }
}

fn is_scope(scope: &str) -> bool {
    matches!(
        scope,
        "Terminating"
            | "NotTerminating"
            | "BestEffort"
            | "NotBestEffort"
            | "PriorityClass"
            | "CrossNamespacePodAffinity"
            | "VolumeAttributesClass"
    )
}

fn validate(spec: &Field, causes: &mut Vec<Cause>) {
    let hard: Vec<&str> = spec.get("hard").entries().map(|(resource, _)| resource).collect();
    for (resource, amount) in spec.get("hard").entries() {
        let wrong = |why: &str| Cause::invalid(&amount.path, resource, why);
        causes.extend(names::qualified(resource).iter().map(|why| wrong(why)));
        if !resource.contains('/') && !is_standard(resource) {
            causes.push(wrong("must be a standard resource for quota"));
        }
        match Quantity::of(amount.value) {
            Ok(quantity) if quantity.is_negative() => {
                causes.push(amount.invalid("must be greater than or equal to 0"));
            }
            Ok(quantity) if is_whole(resource) && !quantity.is_whole() => {
                causes.push(amount.invalid("must be an integer"));
            }
            Ok(_) => {}
            Err(error) => causes.push(amount.invalid(&error.to_string())),
        }
    }
    let applies = |scope: &str| hard.iter().all(|resource| !is_standard(resource) || scope_covers(scope, resource));
    let scopes = spec.get("scopes");
    for scope in scopes.items() {
        if !is_scope(scope.text()) {
            causes.push(scopes.invalid("unsupported scope"));
        }
        if !applies(scope.text()) {
            causes.push(scopes.invalid("unsupported scope applied to resource"));
        }
    }
    let has = |name: &str| scopes.items().any(|scope| scope.text() == name);
    for (one, other) in [("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")] {
        if has(one) && has(other) {
            causes.push(scopes.invalid("conflicting scopes"));
        }
    }
    let selector = spec.get("scopeSelector");
    selector.get("matchExpressions").items().for_each(|requirement| {
        let list = selector.get("matchExpressions").path;
        validate_requirement(&requirement, &list, causes);
        if !applies(requirement.get("scopeName").text()) {
            causes.push(Cause::invalid(&list, selector.value.clone(), "unsupported scope applied to resource"));
        }
    });
}

/// Upstream's paths here name the list and not the item.
fn validate_requirement(requirement: &Field, list: &str, causes: &mut Vec<Cause>) {
    let (scope, operator) = (requirement.get("scopeName").text(), requirement.get("operator").text());
    let values = requirement.get("values");
    if !is_scope(scope) {
        causes.push(Cause::invalid(format!("{list}.scopeName"), scope, "unsupported scope"));
    }
    let exists_only =
        ["BestEffort", "NotBestEffort", "Terminating", "NotTerminating", "CrossNamespacePodAffinity"].contains(&scope);
    if exists_only && operator != "Exists" {
        causes.push(Cause::invalid(format!("{list}.operator"), operator, EXISTS_ONLY));
    }
    match operator {
        "In" | "NotIn" if values.len() == 0 => {
            let why = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
            causes.push(Cause::required(format!("{list}.values"), why));
        }
        "Exists" | "DoesNotExist" if values.len() > 0 => {
            let why = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
            causes.push(Cause::invalid(format!("{list}.values"), values.value.clone(), why));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        other => causes.push(Cause::invalid(format!("{list}.operator"), other, "not a valid selector operator")),
    }
}
