//! Claims: the class of one that names none, and which may grow.

use mainstay_api::kinds::{persistentvolumeclaim, storageclass};
use mainstay_api::quantity::Quantity;
use mainstay_api::{Status, kinds, object};
use serde_json::Value;

use super::super::Batch;

/// Gives a claim without a class the default one; of several the newest, as upstream does. `""` means none and stays.
pub(super) fn default_class(batch: &mut Batch<'_>, claim: &mut Value) -> Result<(), Status> {
    let is_set = object::at(claim, &["spec", "storageClassName"]).is_some_and(Value::is_string);
    let is_annotated =
        object::at(claim, &["metadata", "annotations", "volume.beta.kubernetes.io/storage-class"]).is_some();
    if is_set || is_annotated {
        return Ok(());
    }
    let classes = batch.all(&kinds::STORAGE_CLASS)?;
    let default = classes.iter().filter(|class| storageclass::is_default(class)).max_by(|a, b| {
        let created = |class: &Value| object::text(class, &["metadata", "creationTimestamp"]).to_owned();
        created(a).cmp(&created(b)).then_with(|| object::name(b).cmp(object::name(a)))
    });
    if let Some(class) = default {
        object::ensure(claim, &["spec"]).insert("storageClassName".to_owned(), object::name(class).into());
    }
    Ok(())
}

/// A bound claim may ask for more only where its class says so. One that is not bound yet may not change at all, which
/// is its validation's to say.
pub(super) fn may_grow(batch: &mut Batch<'_>, new: &Value, old: &Value) -> Result<(), Status> {
    let asked = |claim| {
        object::at(claim, &["spec", "resources", "requests", "storage"]).and_then(|amount| Quantity::of(amount).ok())
    };
    let grows = asked(new).zip(asked(old)).is_some_and(|(new, old)| new > old);
    if !grows || object::text(old, &["status", "phase"]) != "Bound" {
        return Ok(());
    }
    let class = persistentvolumeclaim::class_of(old);
    let allowed = match batch.get(&kinds::STORAGE_CLASS, "", class) {
        Ok(Some(class)) => class.get("allowVolumeExpansion").and_then(Value::as_bool) == Some(true),
        _ => false,
    };
    if allowed && persistentvolumeclaim::class_of(new) == class {
        return Ok(());
    }
    let why = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must \
        support resize";
    Err(Status::forbidden(&kinds::PERSISTENT_VOLUME_CLAIM, object::name(old), why))
}
