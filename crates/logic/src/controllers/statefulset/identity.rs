//! Names and objects that are functions of (set, ordinal) alone (S3).

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, PodTemplateSpec, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use mainstay_api::ObjectKey;
use mainstay_api::kinds::{PERSISTENT_VOLUME_CLAIM, STATEFUL_SET};
use serde_json::{Value, json};

use crate::history::REVISION_LABEL;
use crate::ownership::controller_reference;

/// The pod's own name, as a label to select it by.
pub const POD_NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
/// The ordinal, as a label.
pub const POD_INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";

/// `<set>-<ordinal>`.
pub fn pod_key(set: &StatefulSet, ordinal: i64) -> ObjectKey {
    let name = set.metadata.name.as_deref().unwrap_or("");
    ObjectKey::new(set.metadata.namespace.as_deref().unwrap_or(""), format!("{name}-{ordinal}"))
}

/// Set and ordinal of a pod's name, where it has that form.
pub fn parse(pod: &str) -> Option<(&str, i64)> {
    let (set, digits) = pod.rsplit_once('-')?;
    Some((set, number(digits)?))
}

/// An ordinal as it is written: in digits, and the first is no zero that could be left out.
fn number(digits: &str) -> Option<i64> {
    let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    digits.parse().ok().filter(|_| is_plain)
}

/// Whether labels say which pod it is.
pub fn is_said_by(labels: Option<&BTreeMap<String, String>>, name: &str, ordinal: i64) -> bool {
    let label = |key: &str| labels.and_then(|labels| labels.get(key)).map(String::as_str);
    label(POD_NAME_LABEL) == Some(name) && label(POD_INDEX_LABEL).and_then(number) == Some(ordinal)
}

/// The claim templates of a set, with the name of each claim of an ordinal: `<template>-<set>-<ordinal>`.
pub fn claims(set: &StatefulSet, ordinal: i64) -> impl Iterator<Item = (ObjectKey, &PersistentVolumeClaim)> {
    let pod = pod_key(set, ordinal);
    let templates = set.spec.volume_claim_templates.iter().flatten();
    templates.map(move |template| {
        let name = template.metadata.name.as_deref().unwrap_or("");
        (ObjectKey::new(pod.namespace.clone(), format!("{name}-{}", pod.name)), template)
    })
}

/// A claim from its template; labels are the template's and the set's selector.
pub fn claim(set: &StatefulSet, key: &ObjectKey, template: &PersistentVolumeClaim, owners: &[OwnerReference]) -> Value {
    let mut labels = template.metadata.labels.clone().unwrap_or_default();
    labels.extend(set.spec.selector.match_labels.clone().unwrap_or_default());
    let mut metadata = json!({ "namespace": &*key.namespace, "name": &*key.name, "labels": labels });
    if let Some(annotations) = &template.metadata.annotations {
        metadata["annotations"] = json!(annotations);
    }
    if !owners.is_empty() {
        metadata["ownerReferences"] = json!(owners);
    }
    json!({
        "apiVersion": PERSISTENT_VOLUME_CLAIM.api_version(), "kind": PERSISTENT_VOLUME_CLAIM.kind,
        "metadata": metadata, "spec": template.spec,
    })
}

/// The pod of an ordinal, made from a revision's template: its name is its hostname, its claims are its volumes.
pub fn pod(set: &StatefulSet, ordinal: i64, template: &PodTemplateSpec, revision: &str) -> Value {
    let key = pod_key(set, ordinal);
    let meta = template.metadata.clone().unwrap_or_default();
    let mut labels = meta.labels.unwrap_or_default();
    labels.extend(identity_labels(&key.name, ordinal));
    labels.insert(REVISION_LABEL.into(), revision.into());
    let mut spec = template.spec.clone().unwrap_or_default();
    spec.hostname = Some(key.name.to_string());
    spec.subdomain = set.spec.service_name.clone().filter(|name| !name.is_empty());
    let claimed: Vec<Volume> = claims(set, ordinal).map(|(key, template)| claimed_volume(&key, template)).collect();
    let others = spec.volumes.take().unwrap_or_default();
    let others =
        others.into_iter().filter(|volume| !claimed.iter().any(|claim| claim.name == volume.name)).collect::<Vec<_>>();
    let volumes: Vec<Volume> = claimed.into_iter().chain(others).collect();
    spec.volumes = (!volumes.is_empty()).then_some(volumes);
    let mut metadata = json!({
        "namespace": &*key.namespace, "name": &*key.name,
        "generateName": format!("{}-", set.metadata.name.as_deref().unwrap_or("")),
        "labels": labels,
        "ownerReferences": [controller_reference(&STATEFUL_SET, &set.metadata)],
    });
    if let Some(annotations) = meta.annotations {
        metadata["annotations"] = json!(annotations);
    }
    if let Some(finalizers) = meta.finalizers {
        metadata["finalizers"] = json!(finalizers);
    }
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec })
}

/// The labels that say which pod it is.
pub fn identity_labels(name: &str, ordinal: i64) -> BTreeMap<String, String> {
    BTreeMap::from([(POD_NAME_LABEL.to_owned(), name.to_owned()), (POD_INDEX_LABEL.to_owned(), ordinal.to_string())])
}

fn claimed_volume(claim: &ObjectKey, template: &PersistentVolumeClaim) -> Volume {
    Volume {
        name: template.metadata.name.clone().unwrap_or_default(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: claim.name.to_string(),
            read_only: None,
        }),
        ..Volume::default()
    }
}
