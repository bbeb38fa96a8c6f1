//! ReplicationController: so many pods of one template; ReplicaSet's elder.

use std::borrow::Cow::Borrowed;

use serde_json::{Value, json};

use super::cells::{self, AGE, CONTAINERS, IMAGES, NAME, SELECTOR, count, number};
use super::field::{Field, default, inner};
use super::{BASE, Kind, Row, Subresource, pod_spec_validation, pod_warnings, workload};
use crate::object::name;
use crate::status::Cause;

/// The row of ReplicationController.
pub static REPLICATION_CONTROLLER: Kind = Kind::BuiltIn(&Row {
    kind: Borrowed("ReplicationController"),
    plural: Borrowed("replicationcontrollers"),
    singular: Borrowed("replicationcontroller"),
    short_names: Borrowed(&[Borrowed("rc")]),
    categories: Borrowed(&[Borrowed("all")]),
    subresources: Borrowed(&[Subresource::Status, Subresource::Scale]),
    type_name: Borrowed("io.k8s.api.core.v1.ReplicationController"),
    fields: |_, set| vec![("status.replicas", count(set, &["status", "replicas"]).to_string())],
    columns: Borrowed(&[
        NAME,
        number("Desired", "Pods that are wanted."),
        number("Current", "Pods that exist."),
        number("Ready", "Pods that are ready."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ]),
    row: |_, set, now| {
        let numbers = [["spec", "replicas"], ["status", "replicas"], ["status", "readyReplicas"]]
            .map(|path| json!(count(set, &path)));
        let [desired, current, ready] = numbers;
        let [containers, images] = cells::containers(set);
        let selector = cells::labels(set, &["spec", "selector"]);
        vec![json!(name(set)), desired, current, ready, cells::age(set, now), containers, images, selector]
    },
    defaults: |_, set| {
        workload::labels_of_template(set);
        let labels = set.pointer("/spec/template/metadata/labels").filter(|labels| labels.is_object()).cloned();
        workload::defaults(set);
        let Some(spec) = inner(set, "spec") else { return };
        if spec.get("selector").and_then(Value::as_object).is_some_and(serde_json::Map::is_empty) {
            super::field::remove(spec, "selector");
        }
        if let Some(labels) = labels {
            default(spec, "selector", labels);
        }
    },
    prepare_create: |_, set| workload::prepare_create(set, json!({ "replicas": 0 })),
    prepare_update: |_, new, old| workload::prepare_update(new, old),
    validate: |_, set, causes| validate(set, causes),
    warnings: pod_warnings::of_named_template,
    ..BASE
});

fn validate(set: &Value, causes: &mut Vec<Cause>) {
    let spec = Field::root(set).get("spec");
    spec.get("minReadySeconds").not_negative(causes);
    let (selector, template) = (spec.get("selector"), spec.get("template"));
    if selector.len() == 0 {
        causes.push(Cause::required(&selector.path, ""));
    }
    spec.get("replicas").not_negative(causes);
    if !template.is_set() {
        causes.push(Cause::required(&template.path, ""));
        return;
    }
    let wanted = json!({ "matchLabels": selector.value });
    let wanted = Field { value: &wanted, path: selector.path.clone() };
    pod_spec_validation::validate_template(&template, &wanted, "ReplicationController", &[], causes);
}
