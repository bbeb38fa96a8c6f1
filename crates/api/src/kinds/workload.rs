//! What Deployments, ReplicaSets and StatefulSets share.

use serde_json::{Value, json};

use super::field::{Field, default, keep, made};
use super::{pod_spec, pod_spec_validation};
use crate::int_or_string;
use crate::object::ensure;
use crate::status::Cause;

/// Upstream's default of `spec.revisionHistoryLimit`.
pub const HISTORY: i64 = 10;

/// `spec.replicas` and the template's defaults.
pub fn defaults(object: &mut Value) {
    if let Some(spec) = made(object, "spec") {
        default(spec, "replicas", 1);
    }
    template_defaults(object);
}

/// The defaults of `spec.template`.
pub fn template_defaults(object: &mut Value) {
    if let Some(template) = made(object, "spec").and_then(|spec| made(spec, "template")) {
        pod_spec::template_defaults(template);
    }
}

/// An object without labels gets those of its template, as upstream's older workloads do.
pub fn labels_of_template(object: &mut Value) {
    let labels = object.pointer("/spec/template/metadata/labels").filter(|labels| labels.is_object()).cloned();
    let has_own = object.pointer("/metadata/labels").and_then(Value::as_object).is_some_and(|own| !own.is_empty());
    if let Some(labels) = labels.filter(|_| !has_own) {
        ensure(object, &["metadata"]).insert("labels".to_owned(), labels);
    }
}

/// A new object has no status but `status`, and is of generation 1.
pub fn prepare_create(object: &mut Value, status: Value) {
    ensure(object, &[]).insert("status".to_owned(), status);
    ensure(object, &["metadata"]).insert("generation".to_owned(), json!(1));
}

/// The status stays; the generation counts changes of the spec.
pub fn prepare_update(new: &mut Value, old: &Value) {
    keep(new, old, "status");
    count_generation(new, old, new.get("spec") != old.get("spec"));
}

/// Keeps `metadata.generation`, or counts it up where something `changed`.
pub fn count_generation(new: &mut Value, old: &Value, changed: bool) {
    let before = old.get("metadata").and_then(|m| m.get("generation")).and_then(Value::as_i64);
    if let Some(before) = before {
        ensure(new, &["metadata"]).insert("generation".to_owned(), json!(before.saturating_add(i64::from(changed))));
    }
}

/// Replicas, selector and template. `pods_of` is the kind that makes the pods: upstream checks a Deployment's template
/// as its ReplicaSet's, and calls a ReplicaSet's selector a deployment's.
pub fn validate(object: &Value, owner: &str, pods_of: &str, causes: &mut Vec<Cause>) {
    let spec = Field::root(object).get("spec");
    spec.get("replicas").not_negative(causes);
    spec.get("minReadySeconds").not_negative(causes);
    spec.get("revisionHistoryLimit").not_negative(causes);
    pod_spec_validation::validate_selector(&spec.get("selector"), owner, causes);
    let templates = spec.get("volumeClaimTemplates");
    let claims: Vec<&str> = templates.items().map(|claim| crate::object::name(claim.value)).collect();
    pod_spec_validation::validate_template(&spec.get("template"), &spec.get("selector"), pods_of, &claims, causes);
}

/// A count or a percentage of pods.
pub fn validate_share(share: &Field, causes: &mut Vec<Cause>) {
    match share.value {
        Value::Number(_) => share.not_negative(causes),
        Value::String(text) if int_or_string::percent(text).is_none() => {
            causes.push(share.invalid(
                "a valid percent string must be a numeric string followed by an ending '%' \
                (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
            ));
        }
        _ => {}
    }
}
