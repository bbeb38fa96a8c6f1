//! ReplicaSet: so many pods of one template.

use serde_json::json;

use super::cells::{self, AGE, CONTAINERS, IMAGES, NAME, SELECTOR, count, number};
use super::field::Field;
use super::{BASE, Kind, Subresource, workload};
use crate::object::name;

/// The row of ReplicaSet.
pub static REPLICA_SET: Kind = Kind {
    group: "apps",
    kind: "ReplicaSet",
    plural: "replicasets",
    singular: "replicaset",
    short_names: &["rs"],
    categories: &["all"],
    subresources: &[Subresource::Status, Subresource::Scale],
    type_name: "io.k8s.api.apps.v1.ReplicaSet",
    columns: &[
        NAME,
        number("Desired", "Pods that are wanted."),
        number("Current", "Pods that exist."),
        number("Ready", "Pods that are ready."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    row: |set, now| {
        let numbers = [["spec", "replicas"], ["status", "replicas"], ["status", "readyReplicas"]]
            .map(|path| json!(count(set, &path)));
        let [desired, current, ready] = numbers;
        let [containers, images] = cells::containers(set);
        let selector = cells::selector(set, &["spec", "selector"]);
        vec![json!(name(set)), desired, current, ready, cells::age(set, now), containers, images, selector]
    },
    defaults: workload::defaults,
    prepare_create: |set| workload::prepare_create(set, json!({ "replicas": 0 })),
    prepare_update: workload::prepare_update,
    validate: |set, causes| workload::validate(set, "deployment", "ReplicaSet", causes),
    validate_update: |new, old, causes| {
        let selector = ["spec", "selector"];
        Field::root(new).dig(&selector).immutable(&Field::root(old).dig(&selector), causes);
    },
    ..BASE
};
