//! PersistentVolume: a piece of storage.

use std::borrow::Cow::Borrowed;

use serde_json::{Value, json};

use super::cells::{self, AGE, NAME, text_column, wide};
use super::container_validation::no_backsteps;
use super::field::{Field, default, inner, made};
use super::persistentvolumeclaim::{class_of, validate_access_modes};
use super::pod_spec_validation::validate_amount;
use super::{BASE, Kind, Row, Subresource, placement_validation, removal, volume_validation, workload};
use crate::object::{at, ensure, name, text};
use crate::quantity::{self, Quantity};
use crate::status::Cause;

/// The fields of the spec that are not a source.
const NOT_SOURCES: [&str; 9] = [
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

/// The row of PersistentVolume.
pub static PERSISTENT_VOLUME: Kind = Kind::BuiltIn(&Row {
    kind: Borrowed("PersistentVolume"),
    plural: Borrowed("persistentvolumes"),
    singular: Borrowed("persistentvolume"),
    short_names: Borrowed(&[Borrowed("pv")]),
    namespaced: false,
    subresources: Borrowed(&[Subresource::Status]),
    type_name: Borrowed("io.k8s.api.core.v1.PersistentVolume"),
    columns: Borrowed(&[
        NAME,
        text_column("Capacity", "Size of the volume."),
        text_column("Access Modes", "Ways in which it may be mounted."),
        text_column("Reclaim Policy", "What happens to it when its claim is gone."),
        text_column("Status", "Phase of the volume."),
        text_column("Claim", "The claim that it is bound to."),
        text_column("StorageClass", "Class that it belongs to."),
        text_column("VolumeAttributesClass", "Attributes class that it belongs to."),
        text_column("Reason", "Why it is in this phase."),
        AGE,
        wide("VolumeMode", "Filesystem or Block."),
    ]),
    row: |_, volume, now| {
        let claim = match at(volume, &["spec", "claimRef"]) {
            Some(claim) if claim.is_object() => format!("{}/{}", text(claim, &["namespace"]), text(claim, &["name"])),
            _ => String::new(),
        };
        let unset = |path: &[&str]| json!(if text(volume, path).is_empty() { "<unset>" } else { text(volume, path) });
        let spec = |field| json!(text(volume, &["spec", field]));
        vec![
            json!(name(volume)),
            json!(text(volume, &["spec", "capacity", "storage"])),
            json!(cells::access_modes(at(volume, &["spec", "accessModes"]))),
            spec("persistentVolumeReclaimPolicy"),
            cells::phase(volume),
            json!(claim),
            json!(class_of(volume)),
            unset(&["spec", "volumeAttributesClassName"]),
            json!(text(volume, &["status", "reason"])),
            cells::age(volume, now),
            unset(&["spec", "volumeMode"]),
        ]
    },
    defaults: |_, volume| {
        let Some(spec) = made(volume, "spec") else { return };
        default(spec, "persistentVolumeReclaimPolicy", "Retain");
        default(spec, "volumeMode", "Filesystem");
        quantity::canonicalize_list(spec.get_mut("capacity"));
        if let Some(path) = inner(spec, "hostPath") {
            default(path, "type", "");
        }
        // A claimRef is one of a claim even where the manifest leaves that out.
        if let Some(claim) = inner(spec, "claimRef") {
            default(claim, "kind", "PersistentVolumeClaim");
            default(claim, "apiVersion", "v1");
        }
    },
    prepare_create: |_, volume| {
        ensure(volume, &[]).insert("status".to_owned(), json!({ "phase": "Pending" }));
    },
    prepare_update: |_, new, old| workload::prepare_update(new, old),
    validate: |_, object, causes| validate(object, causes),
    validate_update: |_, new, old, causes| {
        // V1, V6: what is behind a volume's name never changes, so a bound claim's data can't be swapped under it.
        if sources(new) != sources(old) {
            let field = "spec.persistentvolumesource";
            causes.push(Cause::forbidden(field, "spec.persistentvolumesource is immutable after creation"));
        }
        removal::validate_update(new, old, "persistentVolumeReclaimPolicy", causes);
        let (new, old) = (Field::root(new).get("spec"), Field::root(old).get("spec"));
        new.get("volumeMode").immutable(&old.get("volumeMode"), causes);
        if old.get("nodeAffinity").is_set() {
            new.get("nodeAffinity").immutable(&old.get("nodeAffinity"), causes);
        }
        let attributes = new.get("volumeAttributesClassName");
        if old.get("volumeAttributesClassName").is_set() && !attributes.is_set() {
            causes.push(Cause::forbidden(&attributes.path, "update from non-nil value to nil is forbidden"));
        }
    },
    ..BASE
});

fn sources(volume: &Value) -> Vec<(&str, &Value)> {
    let fields = volume.get("spec").and_then(Value::as_object).into_iter().flatten();
    fields
        .filter(|(key, value)| !NOT_SOURCES.contains(&key.as_str()) && !value.is_null())
        .map(|(k, v)| (k.as_str(), v))
        .collect()
}

fn validate(volume: &Value, causes: &mut Vec<Cause>) {
    let spec = Field::root(volume).get("spec");
    validate_access_modes(&spec.get("accessModes"), causes);
    let capacity = spec.get("capacity");
    if capacity.len() == 0 {
        causes.push(Cause::required(&capacity.path, ""));
    } else if !capacity.get("storage").is_set() || capacity.len() > 1 {
        let keys: Vec<&str> = capacity.entries().map(|(key, _)| key).collect();
        causes.push(Cause::not_supported(&capacity.path, json!(keys), &["storage"]));
    }
    for (_, amount) in capacity.entries() {
        if validate_amount(&amount, causes).is_some_and(Quantity::is_zero) {
            causes.push(Cause::invalid(&amount.path, "0", "must be greater than zero"));
        }
    }
    spec.get("persistentVolumeReclaimPolicy").one_of(causes, &["Delete", "Recycle", "Retain"]);
    spec.get("volumeMode").one_of(causes, &["Block", "Filesystem"]);
    let affinity = spec.get("nodeAffinity");
    if affinity.get("required").is_set() {
        placement_validation::node_selector(&affinity.get("required"), causes);
    } else if affinity.is_set() {
        causes.push(Cause::required(format!("{}.required", affinity.path), "must specify required node constraints"));
    }
    spec.get("storageClassName").check(causes, crate::names::subdomain);
    let attributes = spec.get("volumeAttributesClassName");
    if attributes.is_set() && attributes.text().is_empty() {
        causes.push(Cause::required(&attributes.path, "an empty string is disallowed"));
    }
    attributes.check(causes, crate::names::subdomain);
    let sources = sources(volume);
    match sources.first() {
        None => causes.push(Cause::required(&spec.path, "must specify a volume type")),
        Some((kind, _)) => validate_source(kind, &spec, causes),
    }
    for (extra, _) in sources.iter().skip(1) {
        causes.push(Cause::forbidden(spec.get(extra).path, "may not specify more than 1 volume type"));
    }
}

fn validate_source(kind: &str, spec: &Field, causes: &mut Vec<Cause>) {
    let source = spec.get(kind);
    match kind {
        "hostPath" => {
            volume_validation::host_path(&source, causes);
            let whole = source.get("path").text().trim_end_matches('/').is_empty();
            if whole && spec.get("persistentVolumeReclaimPolicy").text() == "Recycle" {
                let field = format!("{}.persistentVolumeReclaimPolicy", spec.path);
                causes.push(Cause::forbidden(field, "may not be 'recycle' for a hostPath mount of '/'"));
            }
        }
        "nfs" => volume_validation::nfs(&source, causes),
        "local" => {
            let path = source.get("path");
            if path.need_text(causes) {
                no_backsteps(&path, causes);
            }
            // V5: storage that lives on one node says so.
            if !spec.dig(&["nodeAffinity", "required"]).is_set() {
                causes.push(Cause::required("metadata.annotations", "Local volume requires node affinity"));
            }
        }
        "csi" => {
            source.get("driver").need_text(causes);
            source.get("volumeHandle").need_text(causes);
        }
        _ => {}
    }
}
