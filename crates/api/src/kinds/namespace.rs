//! Namespace: a room for names.

use serde_json::{Value, json};

use super::cells::{AGE, NAME, age, text_column};
use super::field::keep;
use super::{BASE, Kind, NameRule, Subresource, workload};
use crate::object::{ensure, name, text};

/// Holds a namespace until everything in it is gone; lives in `spec.finalizers`.
pub const FINALIZER: &str = "kubernetes";
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// The row of Namespace.
pub static NAMESPACE: Kind = Kind {
    kind: "Namespace",
    plural: "namespaces",
    singular: "namespace",
    short_names: &["ns"],
    namespaced: false,
    subresources: &[Subresource::Status, Subresource::Finalize],
    type_name: "io.k8s.api.core.v1.Namespace",
    name_rule: NameRule::Label,
    fields: |namespace| vec![("status.phase", text(namespace, &["status", "phase"]).to_owned())],
    columns: &[NAME, text_column("Status", "Active, or Terminating."), AGE],
    row: |namespace, now| {
        vec![json!(name(namespace)), json!(text(namespace, &["status", "phase"])), age(namespace, now)]
    },
    defaults: |namespace| {
        let title = name(namespace).to_owned();
        if !title.is_empty() {
            ensure(namespace, &["metadata", "labels"]).insert(NAME_LABEL.to_owned(), title.into());
        }
    },
    prepare_create: |namespace| {
        ensure(namespace, &[]).insert("status".to_owned(), json!({ "phase": "Active" }));
        let finalizers = ensure(namespace, &["spec"]).entry("finalizers").or_insert_with(|| json!([]));
        if let Value::Array(list) = finalizers
            && !list.iter().any(|f| f == FINALIZER)
        {
            list.push(FINALIZER.into());
        }
    },
    prepare_update: |new, old| {
        workload::prepare_update(new, old);
        // Only `/finalize` takes them away.
        keep(new, old, "spec");
    },
    ..BASE
};
