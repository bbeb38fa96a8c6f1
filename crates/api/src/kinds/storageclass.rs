//! StorageClass: how volumes are made for claims.

use std::borrow::Cow::Borrowed;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::cells::{self, AGE, NAME, text_column};
use super::field::{Field, default};
use super::{BASE, Kind, Row};
use crate::names;
use crate::object::{name, text};
use crate::status::{Cause, MAX_CAUSES};

/// Marks the class that claims without one get.
pub const DEFAULT_ANNOTATION: &str = "storageclass.kubernetes.io/is-default-class";
const OLD_DEFAULT_ANNOTATION: &str = "storageclass.beta.kubernetes.io/is-default-class";

/// The row of StorageClass.
pub static STORAGE_CLASS: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("storage.k8s.io"),
    kind: Borrowed("StorageClass"),
    plural: Borrowed("storageclasses"),
    singular: Borrowed("storageclass"),
    short_names: Borrowed(&[Borrowed("sc")]),
    namespaced: false,
    type_name: Borrowed("io.k8s.api.storage.v1.StorageClass"),
    columns: Borrowed(&[
        NAME,
        text_column("Provisioner", "Who makes the volumes."),
        text_column("ReclaimPolicy", "Reclaim policy of the volumes that it makes."),
        text_column("VolumeBindingMode", "When volumes are made and bound."),
        text_column("AllowVolumeExpansion", "Whether claims may grow."),
        AGE,
    ]),
    row: |_, class, now| {
        let shown = if is_default(class) { format!("{} (default)", name(class)) } else { name(class).to_owned() };
        let expands = class.get("allowVolumeExpansion").and_then(Value::as_bool).unwrap_or(false);
        let [provisioner, reclaim, binding] =
            [("provisioner", ""), ("reclaimPolicy", "Delete"), ("volumeBindingMode", "Immediate")].map(
                |(field, otherwise)| {
                    let value = text(class, &[field]);
                    json!(if value.is_empty() { otherwise } else { value })
                },
            );
        vec![json!(shown), provisioner, reclaim, binding, json!(expands), cells::age(class, now)]
    },
    defaults: |_, class| {
        default(class, "reclaimPolicy", "Delete");
        default(class, "volumeBindingMode", "Immediate");
    },
    validate: |_, class, causes| {
        let class = Field::root(class);
        validate_provisioner(&class.get("provisioner"), causes);
        class.get("reclaimPolicy").one_of(causes, &["Delete", "Retain"]);
        class.get("volumeBindingMode").need_one_of(causes, &["Immediate", "WaitForFirstConsumer"]);
        validate_parameters(&class.get("parameters"), causes);
        validate_topologies(&class.get("allowedTopologies"), causes);
    },
    validate_update: |_, new, old, causes| {
        for (field, detail) in [
            ("parameters", "updates to parameters are forbidden."),
            ("provisioner", "updates to provisioner are forbidden."),
            ("reclaimPolicy", "updates to reclaimPolicy are forbidden."),
        ] {
            if new.get(field) != old.get(field) {
                causes.push(Cause::forbidden(field, detail));
            }
        }
        Field::root(new).get("volumeBindingMode").immutable(&Field::root(old).get("volumeBindingMode"), causes);
    },
    ..BASE
});

/// Who makes or changes volumes: a qualified name, in either case.
pub(super) fn validate_provisioner(provisioner: &Field, causes: &mut Vec<Cause>) {
    if provisioner.need_text(causes) {
        let lower = provisioner.text().to_lowercase();
        causes.extend(names::qualified(&lower).iter().map(|wrong| provisioner.invalid(wrong)));
    }
}

/// At most 512, of 256 KiB together, and none without a name.
pub(super) fn validate_parameters(parameters: &Field, causes: &mut Vec<Cause>) {
    const MOST: usize = 512;
    const BYTES: usize = 256 << 10;
    if parameters.len() > MOST {
        causes.push(Cause::too_long(&parameters.path, MOST));
        return;
    }
    if parameters.entries().any(|(key, _)| key.is_empty()) {
        causes.push(Cause::invalid(&parameters.path, "", "field can not be empty."));
    }
    if parameters.entries().map(|(key, value)| key.len() + value.text().len()).sum::<usize>() > BYTES {
        causes.push(Cause::too_long(&parameters.path, BYTES));
    }
}

/// Where volumes may be made: each key once in a term, with values that differ, and no term twice.
fn validate_topologies(topologies: &Field, causes: &mut Vec<Cause>) {
    let mut terms = BTreeSet::new();
    for term in topologies.items() {
        let mut keys: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (index, expression) in term.get("matchLabelExpressions").items().enumerate() {
            // Upstream's path leaves out which term it is.
            let at = format!("{}.matchLabelExpressions[{index}]", topologies.path);
            let (key, list) = (expression.get("key").text(), expression.get("values"));
            if list.len() == 0 {
                causes.push(Cause::required(format!("{at}.values"), ""));
            }
            let mut values = BTreeSet::new();
            for (place, value) in list.items().enumerate() {
                if !values.insert(value.text()) {
                    causes.push(Cause::duplicate(format!("{at}.values[{place}]"), value.text()));
                }
            }
            causes.extend(names::qualified(key).iter().map(|why| Cause::invalid(format!("{at}.key"), key, why)));
            if keys.insert(key, values).is_some() {
                causes.push(Cause::duplicate(format!("{at}.key"), key));
            }
        }
        if !terms.insert(keys) {
            causes.push(Cause::duplicate(term.get("matchLabelExpressions").path, ""));
        }
        if causes.len() > MAX_CAUSES {
            return;
        }
    }
}

/// Whether a class is the one that claims without one get.
pub fn is_default(class: &Value) -> bool {
    [DEFAULT_ANNOTATION, OLD_DEFAULT_ANNOTATION]
        .iter()
        .any(|key| text(class, &["metadata", "annotations", key]) == "true")
}
