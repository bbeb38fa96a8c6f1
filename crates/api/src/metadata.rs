//! What `metadata` must look like on every object, and what of it may not change.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::kinds::Kind;
use crate::kinds::field::{Field, IMMUTABLE};
use crate::names;
use crate::status::Cause;

/// The finalizer that keeps an owner until its dependents are gone.
pub const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer that keeps an owner until its dependents no longer name it.
pub const ORPHAN: &str = "orphan";

/// Upstream's validation of a new object's metadata: name under the kind's rule, namespace, labels, annotations,
/// finalizers, owners. The name must have been generated already.
pub fn validate(kind: &Kind, object: &Value, causes: &mut Vec<Cause>) {
    let metadata = Field::root(object).get("metadata");
    let (name, prefix) = (metadata.get("name"), metadata.get("generateName"));
    if !prefix.text().is_empty() {
        causes.extend(names::name(kind.name_rule, prefix.text(), true).iter().map(|wrong| prefix.invalid(wrong)));
    }
    if name.text().is_empty() {
        causes.push(Cause::required(&name.path, "name or generateName is required"));
    } else {
        causes.extend(names::name(kind.name_rule, name.text(), false).iter().map(|wrong| name.invalid(wrong)));
    }
    let namespace = metadata.get("namespace");
    if kind.namespaced {
        namespace.need(causes, names::label);
    } else if !namespace.text().is_empty() {
        causes.push(Cause::forbidden(&namespace.path, "not allowed on this type"));
    }
    validate_labels(&metadata.get("labels"), causes);
    validate_annotations(&metadata.get("annotations"), causes);
    validate_owners(&metadata.get("ownerReferences"), causes);
    for finalizer in metadata.get("finalizers").items() {
        causes.extend(names::qualified(finalizer.text()).iter().map(|wrong| finalizer.invalid(wrong)));
        let bare = !finalizer.text().contains('/') && !matches!(finalizer.text(), "kubernetes" | ORPHAN | FOREGROUND);
        if bare && names::qualified(finalizer.text()).is_empty() {
            causes.push(finalizer.invalid("name is neither a standard finalizer name nor is it fully qualified"));
        }
    }
}

/// How many finalizers a message names.
const MAX_TOLD: usize = 20;

/// What of the metadata may not change in an update. The server has filled in what clients may leave out
/// (uid, creationTimestamp) from the stored object.
pub fn validate_update(new: &Value, old: &Value, causes: &mut Vec<Cause>) {
    let (new, old) = (Field::root(new).get("metadata"), Field::root(old).get("metadata"));
    for field in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        let (now, before) = (new.get(field), old.get(field));
        if now.value != before.value {
            causes.push(Cause::invalid(&now.path, now.value.clone(), IMMUTABLE));
        }
    }
    if let (Some(now), Some(before)) = (new.get("generation").int(), old.get("generation").int())
        && now < before
    {
        causes.push(new.get("generation").invalid("must not be decremented"));
    }
    // S2, V2: an object on its way out keeps to the finalizers it had, so that nothing holds on anew.
    if old.get("deletionTimestamp").is_set() {
        let known: BTreeSet<&str> = old.get("finalizers").items().map(|f| f.text()).collect();
        let finalizers = new.get("finalizers");
        let mut added = finalizers.items().map(|f| f.text()).filter(|f| !known.contains(f));
        let told: Vec<&str> = added.by_ref().take(MAX_TOLD).collect();
        if !told.is_empty() {
            let rest = match added.count() {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers {told:?}{rest}"
            );
            causes.push(Cause::forbidden("metadata.finalizers", &detail));
        }
    }
}

/// Keys and values of labels.
pub fn validate_labels(labels: &Field, causes: &mut Vec<Cause>) {
    for (key, value) in labels.entries() {
        causes.extend(names::qualified(key).iter().map(|wrong| Cause::invalid(&labels.path, key, wrong)));
        causes.extend(
            names::label_value(value.text()).iter().map(|wrong| Cause::invalid(&labels.path, value.text(), wrong)),
        );
    }
}

/// Keys of annotations (in any case), and the size of all together.
pub fn validate_annotations(annotations: &Field, causes: &mut Vec<Cause>) {
    let mut size = 0usize;
    for (key, value) in annotations.entries() {
        let lower = key.to_lowercase();
        causes.extend(names::qualified(&lower).iter().map(|wrong| Cause::invalid(&annotations.path, key, wrong)));
        size = size.saturating_add(key.len()).saturating_add(value.text().len());
    }
    if size > names::ANNOTATIONS_SIZE {
        causes.push(Cause::too_long(&annotations.path, names::ANNOTATIONS_SIZE));
    }
}

fn validate_owners(owners: &Field, causes: &mut Vec<Cause>) {
    let mut controllers = Vec::new();
    for owner in owners.items() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            let field = owner.get(field);
            if field.text().is_empty() {
                causes.push(Cause::invalid(&field.path, field.text(), "must not be empty"));
            }
        }
        if owner.get("kind").text() == "Event" && owner.get("apiVersion").text() == "v1" {
            causes.push(owner.invalid("/v1, Kind=Event is disallowed from being an owner"));
        }
        if owner.get("controller").is_true() {
            controllers.push(owner.get("name").text());
        }
    }
    if let [first, second, ..] = controllers.as_slice() {
        let detail = format!(
            "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {second}"
        );
        causes.push(Cause::invalid(&owners.path, owners.value.clone(), &detail));
    }
}

/// Keys, values and operators of a `LabelSelector`.
pub fn validate_label_selector(selector: &Field, causes: &mut Vec<Cause>) {
    let labels = selector.get("matchLabels");
    validate_labels(&labels, causes);
    for expression in selector.get("matchExpressions").items() {
        let (key, operator, values) = (expression.get("key"), expression.get("operator"), expression.get("values"));
        match operator.text() {
            "In" | "NotIn" if values.len() == 0 => {
                causes.push(Cause::required(&values.path, "must be specified when `operator` is 'In' or 'NotIn'"));
            }
            "Exists" | "DoesNotExist" if values.len() > 0 => {
                causes.push(Cause::forbidden(
                    &values.path,
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                ));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => causes.push(operator.invalid("not a valid selector operator")),
        }
        causes.extend(names::qualified(key.text()).iter().map(|wrong| key.invalid(wrong)));
        for value in values.items() {
            causes.extend(names::label_value(value.text()).iter().map(|wrong| value.invalid(wrong)));
        }
    }
}
