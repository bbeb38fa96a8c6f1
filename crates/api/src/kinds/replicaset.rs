//! ReplicaSet: so many pods of one template.

use std::borrow::Cow::Borrowed;

use serde_json::json;

use super::cells::{self, AGE, CONTAINERS, IMAGES, NAME, SELECTOR, count, number};
use super::field::Field;
use super::{BASE, Kind, Row, Subresource, pod_warnings, workload};
use crate::object::name;

/// The row of ReplicaSet.
pub static REPLICA_SET: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("apps"),
    kind: Borrowed("ReplicaSet"),
    plural: Borrowed("replicasets"),
    singular: Borrowed("replicaset"),
    short_names: Borrowed(&[Borrowed("rs")]),
    categories: Borrowed(&[Borrowed("all")]),
    subresources: Borrowed(&[Subresource::Status, Subresource::Scale]),
    type_name: Borrowed("io.k8s.api.apps.v1.ReplicaSet"),
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
        let selector = cells::selector(set, &["spec", "selector"]);
        vec![json!(name(set)), desired, current, ready, cells::age(set, now), containers, images, selector]
    },
    defaults: |_, object| workload::defaults(object),
    prepare_create: |_, set| workload::prepare_create(set, json!({ "replicas": 0 })),
    prepare_update: |_, new, old| workload::prepare_update(new, old),
    validate: |_, set, causes| workload::validate(set, "deployment", "ReplicaSet", causes),
    validate_update: |_, new, old, causes| {
        let selector = ["spec", "selector"];
        Field::root(new).dig(&selector).immutable(&Field::root(old).dig(&selector), causes);
    },
    warnings: pod_warnings::of_named_template,
    ..BASE
});
