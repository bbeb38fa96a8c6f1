//! PersistentVolumeClaim: storage that is asked for by size and class.

use std::borrow::Cow::Borrowed;

use serde_json::{Value, json};

use super::cells::{self, AGE, NAME, text_column, wide};
use super::field::{Field, IMMUTABLE, default, inner, made};
use super::pod_spec_validation::validate_amount;
use super::{BASE, Kind, Row, Subresource, pod_warnings, workload};
use crate::object::{at, ensure, name, text};
use crate::quantity::{self, Quantity};
use crate::status::Cause;

/// The access modes in upstream's order of telling.
pub const ACCESS_MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const FIXED: &str =
    "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";

/// The row of PersistentVolumeClaim.
pub static PERSISTENT_VOLUME_CLAIM: Kind = Kind::BuiltIn(&Row {
    kind: Borrowed("PersistentVolumeClaim"),
    plural: Borrowed("persistentvolumeclaims"),
    singular: Borrowed("persistentvolumeclaim"),
    short_names: Borrowed(&[Borrowed("pvc")]),
    subresources: Borrowed(&[Subresource::Status]),
    type_name: Borrowed("io.k8s.api.core.v1.PersistentVolumeClaim"),
    columns: Borrowed(&[
        NAME,
        text_column("Status", "Phase of the claim."),
        text_column("Volume", "The volume that it is bound to."),
        text_column("Capacity", "Size of that volume."),
        text_column("Access Modes", "Ways in which that volume may be mounted."),
        text_column("StorageClass", "Class that the claim asks for."),
        text_column("VolumeAttributesClass", "Attributes class that the claim asks for."),
        AGE,
        wide("VolumeMode", "Filesystem or Block."),
    ]),
    row: |_, claim, now| {
        let volume = text(claim, &["spec", "volumeName"]);
        let bound = !volume.is_empty();
        let capacity = if bound { text(claim, &["status", "capacity", "storage"]) } else { "" };
        let modes = if bound { cells::access_modes(at(claim, &["status", "accessModes"])) } else { String::new() };
        let unset = |path: &[&str]| json!(if text(claim, path).is_empty() { "<unset>" } else { text(claim, path) });
        let attributes = unset(&["spec", "volumeAttributesClassName"]);
        let mode = unset(&["spec", "volumeMode"]);
        let class = json!(class_of(claim));
        let head = [json!(name(claim)), cells::phase(claim), json!(volume), json!(capacity), json!(modes)];
        head.into_iter().chain([class, attributes, cells::age(claim, now), mode]).collect()
    },
    defaults: |_, claim| {
        made(claim, "spec");
        spec_defaults(claim);
    },
    prepare_create: |_, claim| {
        ensure(claim, &[]).insert("status".to_owned(), json!({ "phase": "Pending" }));
        super::data_source::complete(claim);
    },
    prepare_update: |_, new, old| workload::prepare_update(new, old),
    validate: |_, claim, causes| validate_spec(&Field::root(claim).get("spec"), causes),
    validate_update: |_, new, old, causes| validate_update(new, old, causes),
    warnings: pod_warnings::of_claim,
    ..BASE
});

/// The class that a claim or volume names: the old annotation leads, as upstream has it.
pub fn class_of(object: &Value) -> &str {
    match text(object, &["metadata", "annotations", "volume.beta.kubernetes.io/storage-class"]) {
        "" => text(object, &["spec", "storageClassName"]),
        annotated => annotated,
    }
}

/// Defaults of a claim or of a claim template.
pub fn spec_defaults(claim: &mut Value) {
    let Some(spec) = inner(claim, "spec") else { return };
    default(spec, "volumeMode", "Filesystem");
    if let Some(resources) = inner(spec, "resources") {
        quantity::canonicalize_list(resources.get_mut("requests"));
        quantity::canonicalize_list(resources.get_mut("limits"));
    }
}

fn validate_spec(spec: &Field, causes: &mut Vec<Cause>) {
    validate_access_modes(&spec.get("accessModes"), causes);
    let storage = spec.dig(&["resources", "requests", "storage"]);
    if !storage.is_set() {
        causes.push(Cause::required(format!("{}.resources[storage]", spec.path), ""));
    } else if validate_amount(&storage, causes).is_some_and(Quantity::is_zero) {
        causes.push(Cause::invalid(format!("{}.resources[storage]", spec.path), "0", "must be greater than zero"));
    }
    for class in ["storageClassName", "volumeAttributesClassName"] {
        spec.get(class).check(causes, crate::names::subdomain);
    }
    spec.get("volumeMode").one_of(causes, &["Block", "Filesystem"]);
    super::data_source::validate(spec, causes);
    let selector = spec.get("selector");
    if selector.is_set() {
        crate::metadata::validate_label_selector(&selector, causes);
    }
}

/// At least one mode, each known; ReadWriteOncePod alone (V9).
pub fn validate_access_modes(modes: &Field, causes: &mut Vec<Cause>) {
    if modes.len() == 0 {
        causes.push(Cause::required(&modes.path, "at least 1 access mode is required"));
    }
    for mode in modes.items().filter(|mode| !ACCESS_MODES.contains(&mode.text())) {
        causes.push(Cause::not_supported(&modes.path, mode.value.clone(), &ACCESS_MODES));
    }
    if modes.len() > 1 && modes.items().any(|mode| mode.text() == "ReadWriteOncePod") {
        causes.push(Cause::forbidden(&modes.path, "may not use ReadWriteOncePod with other access modes"));
    }
}

/// What an update may not touch, taken out of the comparison as far as upstream allows it to change.
fn fixed(claim: &Value, old: &Value) -> Value {
    let mut spec = claim.get("spec").cloned().unwrap_or_default();
    let bound = text(old, &["status", "phase"]) == "Bound";
    if text(old, &["spec", "volumeName"]).is_empty() {
        // The binder names the volume once.
        super::field::remove(&mut spec, "volumeName");
    }
    if bound && let Some(resources) = inner(&mut spec, "resources") {
        super::field::remove(resources, "requests");
    }
    if bound {
        super::field::remove(&mut spec, "volumeAttributesClassName");
    }
    if at(old, &["spec", "storageClassName"]).is_none_or(Value::is_null) {
        // A class that becomes the default is written into claims that wait without one.
        super::field::remove(&mut spec, "storageClassName");
    }
    spec
}

fn validate_update(new: &Value, old: &Value, causes: &mut Vec<Cause>) {
    if fixed(new, old) != fixed(old, old) {
        causes.push(Cause::forbidden("spec", FIXED));
    }
    let path = ["spec", "resources", "requests", "storage"];
    let amount = |claim, path: &[&str]| at(claim, path).and_then(|v| Quantity::of(v).ok()).unwrap_or(Quantity::ZERO);
    let (now, before) = (amount(new, &path), amount(old, &path));
    let capacity = amount(old, &["status", "capacity", "storage"]);
    // V10: expansion only grows; a request that failed may come back down, but not to what is already there.
    if now < before && now <= capacity {
        causes.push(Cause::forbidden("spec.resources.requests.storage", "field can not be less than status.capacity"));
    }
    let (mode, old_mode) =
        (Field::root(new).dig(&["spec", "volumeMode"]), Field::root(old).dig(&["spec", "volumeMode"]));
    if mode.value != old_mode.value {
        causes.push(mode.invalid(IMMUTABLE));
    }
    validate_attributes(new, old, causes);
}

/// A claim goes from one attributes class to another. Back to none only where none was ever carried out.
fn validate_attributes(new: &Value, old: &Value, causes: &mut Vec<Cause>) {
    const FIELD: &str = "spec.volumeAttributesClassName";
    let [class, before] =
        [new, old].map(|claim| at(claim, &["spec", "volumeAttributesClassName"]).and_then(Value::as_str));
    if before.is_none() || class == before {
        return;
    }
    let applied = !text(old, &["status", "currentVolumeAttributesClassName"]).is_empty();
    match class {
        None if applied => {
            causes.push(Cause::forbidden(
                FIELD,
                "update to nil is forbidden when status.currentVolumeAttributesClassName is not nil",
            ));
        }
        Some("") => causes.push(Cause::forbidden(FIELD, "update from non-nil value to an empty string is forbidden")),
        _ => {}
    }
}
