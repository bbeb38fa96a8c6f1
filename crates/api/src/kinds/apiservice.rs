//! APIService: which server answers for a group and version.

use std::borrow::Cow::Borrowed;

use serde_json::{Value, json};

use super::cells::{self, AGE, NAME, text_column};
use super::field::{Field, default, inner};
use super::{BASE, Kind, NameRule, Row, Subresource, lifecycle};
use crate::names;
use crate::object::name;
use crate::status::Cause;

/// The row of APIService.
pub static API_SERVICE: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("apiregistration.k8s.io"),
    kind: Borrowed("APIService"),
    plural: Borrowed("apiservices"),
    singular: Borrowed("apiservice"),
    categories: Borrowed(&[Borrowed("api-extensions")]),
    namespaced: false,
    subresources: Borrowed(&[Subresource::Status]),
    type_name: Borrowed("io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIService"),
    name_rule: NameRule::PathSegment,
    columns: Borrowed(&[
        NAME,
        text_column("Service", "The Service that the server is behind."),
        text_column("Available", "Whether it answers."),
        AGE,
    ]),
    row: |_, service, now| {
        let root = Field::root(service);
        let behind = root.dig(&["spec", "service"]);
        let place = format!("{}/{}", behind.get("namespace").text(), behind.get("name").text());
        vec![
            json!(name(service)),
            json!(if behind.is_set() { &place } else { "Local" }),
            json!(availability(&root)),
            cells::age(service, now),
        ]
    },
    defaults: |_, service| {
        if let Some(behind) = inner(service, "spec").and_then(|spec| inner(spec, "service")) {
            default(behind, "port", 443);
        }
    },
    prepare_create: |_, service| {
        lifecycle::begin_status(service, json!({}));
        let is_local = !Field::root(service).dig(&["spec", "service"]).is_set();
        if is_local {
            let since = Field::root(service).dig(&["metadata", "creationTimestamp"]).value.clone();
            lifecycle::begin_status(
                service,
                json!({ "conditions": [{
                "type": "Available", "status": "True", "reason": "Local",
                    "message": "Local APIServices are always available",
                "lastTransitionTime": since,
            }] }),
            );
        }
    },
    prepare_update: |_, new, old| lifecycle::keep_status(new, old),
    validate: |_, service, causes| validate(service, causes),
    ..BASE
});

fn availability(service: &Field) -> String {
    let found = service.dig(&["status", "conditions"]).items().find(|c| c.get("type").text() == "Available");
    let Some(condition) = found else { return "Unknown".to_owned() };
    let (status, reason) = (condition.get("status").text(), condition.get("reason").text());
    if status == "True" || reason.is_empty() { status.to_owned() } else { format!("{status} ({reason})") }
}

fn validate(service: &Value, causes: &mut Vec<Cause>) {
    let (title, spec) = (Field::root(service).dig(&["metadata", "name"]), Field::root(service).get("spec"));
    let (group, version) = (spec.get("group"), spec.get("version"));
    let wanted = format!("{}.{}", version.text(), group.text());
    if title.text() != wanted {
        causes.push(title.invalid(&format!("must be `spec.version+\".\"+spec.group`: {wanted:?}")));
    }
    if group.text().is_empty() && version.text() != "v1" {
        causes.push(Cause::required(&group.path, "only v1 may have an empty group and it better be legacy kube"));
    }
    group.check(causes, names::subdomain);
    causes.extend(
        names::label_1035(version.text()).iter().map(|wrong| Cause::invalid(&version.path, version.text(), wrong)),
    );
    for (field, most) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1000)] {
        let (field, number) = (spec.get(field), spec.get(field).int().unwrap_or(0));
        if !(1..=most).contains(&number) {
            causes.push(Cause::invalid(&field.path, number, &format!("must be positive and less than {most}")));
        }
    }
    let (bundle, insecure) = (spec.get("caBundle"), spec.get("insecureSkipTLSVerify"));
    let behind = spec.get("service");
    if !behind.is_set() {
        if !bundle.text().is_empty() {
            let shown = format!("{} bytes", bundle.text().len() / 4 * 3);
            causes.push(Cause::invalid(&bundle.path, shown, "local APIServices may not have a caBundle"));
        }
        if insecure.is_true() {
            causes.push(insecure.invalid("local APIServices may not have insecureSkipTLSVerify"));
        }
        return;
    }
    behind.get("namespace").need_text(causes);
    behind.get("name").need_text(causes);
    let wrong = names::port(behind.get("port").int().unwrap_or(443)).join(", ");
    if !wrong.is_empty() {
        causes.push(behind.get("port").invalid(&format!("port is not valid: {wrong}")));
    }
    if insecure.is_true() && !bundle.text().is_empty() {
        causes.push(insecure.invalid("may not be true if caBundle is present"));
    }
}
