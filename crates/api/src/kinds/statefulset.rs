//! StatefulSet: named pods in order, each with its own claims.

use std::borrow::Cow::Borrowed;

use serde_json::{Value, json};

use super::cells::{self, AGE, CONTAINERS, IMAGES, NAME, text_column};
use super::field::{Field, default, each, inner, made};
use super::{BASE, Kind, Row, Subresource, persistentvolumeclaim, pod_warnings, workload};
use crate::object::name;
use crate::status::Cause;

/// What an update of the spec may touch.
const CHANGEABLE: [&str; 7] = [
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];
const FORBIDDEN: &str = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
    'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are \
    forbidden";

/// The row of StatefulSet.
pub static STATEFUL_SET: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("apps"),
    kind: Borrowed("StatefulSet"),
    plural: Borrowed("statefulsets"),
    singular: Borrowed("statefulset"),
    short_names: Borrowed(&[Borrowed("sts")]),
    categories: Borrowed(&[Borrowed("all")]),
    subresources: Borrowed(&[Subresource::Status, Subresource::Scale]),
    type_name: Borrowed("io.k8s.api.apps.v1.StatefulSet"),
    columns: Borrowed(&[NAME, text_column("Ready", "Pods that are ready, of those wanted."), AGE, CONTAINERS, IMAGES]),
    row: |_, set, now| {
        let ready =
            format!("{}/{}", cells::count(set, &["status", "readyReplicas"]), cells::count(set, &["spec", "replicas"]));
        let [containers, images] = cells::containers(set);
        vec![json!(name(set)), json!(ready), cells::age(set, now), containers, images]
    },
    defaults: |_, object| defaults(object),
    prepare_create: |_, set| workload::prepare_create(set, json!({ "replicas": 0, "availableReplicas": 0 })),
    prepare_update: |_, new, old| workload::prepare_update(new, old),
    validate: |_, object, causes| validate(object, causes),
    validate_update: |_, new, old, causes| validate_update(new, old, causes),
    warnings: |row, set| {
        let mut warnings = pod_warnings::of_template(row, set);
        if Field::root(set).dig(&["spec", "revisionHistoryLimit"]).int().is_some_and(|limit| limit < 0) {
            warnings.push(
                "spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended"
                    .to_owned(),
            );
        }
        warnings
    },
    ..BASE
});

fn defaults(set: &mut Value) {
    workload::defaults(set);
    let Some(spec) = inner(set, "spec") else { return };
    default(spec, "podManagementPolicy", "OrderedReady");
    default(spec, "revisionHistoryLimit", workload::HISTORY);
    if let Some(strategy) = made(spec, "updateStrategy") {
        default(strategy, "type", "RollingUpdate");
        if strategy.get("type").and_then(Value::as_str) == Some("RollingUpdate")
            && let Some(rolling) = made(strategy, "rollingUpdate")
        {
            default(rolling, "partition", 0);
        }
    }
    // S8: claims stay unless the set says otherwise.
    if let Some(policy) = made(spec, "persistentVolumeClaimRetentionPolicy") {
        default(policy, "whenDeleted", "Retain");
        default(policy, "whenScaled", "Retain");
    }
    for claim in each(spec, "volumeClaimTemplates") {
        default(claim, "apiVersion", "v1");
        default(claim, "kind", "PersistentVolumeClaim");
        default(claim, "status", json!({ "phase": "Pending" }));
        persistentvolumeclaim::spec_defaults(claim);
    }
}

fn validate(set: &Value, causes: &mut Vec<Cause>) {
    workload::validate(set, "statefulset", "StatefulSet", causes);
    let spec = Field::root(set).get("spec");
    let policy = spec.get("podManagementPolicy");
    if !matches!(policy.text(), "OrderedReady" | "Parallel") {
        causes.push(policy.invalid("must be 'OrderedReady' or 'Parallel'"));
    }
    let strategy = spec.get("updateStrategy");
    let rolling = strategy.get("rollingUpdate");
    match strategy.get("type").text() {
        "RollingUpdate" => {
            rolling.get("partition").not_negative(causes);
            let unavailable = rolling.get("maxUnavailable");
            workload::validate_share(&unavailable, causes);
            if matches!(unavailable.value, Value::Number(n) if n.as_i64() == Some(0)) || unavailable.text() == "0%" {
                causes.push(unavailable.invalid("cannot be 0"));
            }
        }
        "OnDelete" if rolling.is_set() => {
            causes.push(rolling.invalid("only allowed for updateStrategy 'RollingUpdate'"))
        }
        "OnDelete" => {}
        _ => causes.push(strategy.invalid("must be 'RollingUpdate' or 'OnDelete'")),
    }
    let retention = spec.get("persistentVolumeClaimRetentionPolicy");
    for field in ["whenDeleted", "whenScaled"].map(|field| retention.get(field)) {
        field.one_of(causes, &["Retain", "Delete"]);
    }
    spec.get("ordinals").get("start").not_negative(causes);
    // S3: a claim's name is the template's name, the set's name and the ordinal; without a name there is none.
    for claim in spec.get("volumeClaimTemplates").items() {
        claim.dig(&["metadata", "name"]).need(causes, crate::names::subdomain);
    }
}

fn validate_update(new: &Value, old: &Value, causes: &mut Vec<Cause>) {
    let fixed = |set: &Value| {
        let mut spec = set.get("spec").cloned().unwrap_or_default();
        CHANGEABLE.iter().for_each(|field| super::field::remove(&mut spec, field));
        spec
    };
    if fixed(new) != fixed(old) {
        causes.push(Cause::forbidden("spec", FORBIDDEN));
    }
}
