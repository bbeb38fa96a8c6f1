//! Namespace: a room for names.

use std::borrow::Cow::Borrowed;

use serde_json::{Value, json};

use super::cells::{AGE, NAME, age, text_column};
use super::field::keep;
use super::{BASE, Kind, NameRule, Row, Subresource, workload};
use crate::object::{ensure, name, text};

/// Holds a namespace until everything in it is gone; lives in `spec.finalizers`.
pub const FINALIZER: &str = "kubernetes";
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// The row of Namespace.
pub static NAMESPACE: Kind = Kind::BuiltIn(&Row {
    kind: Borrowed("Namespace"),
    plural: Borrowed("namespaces"),
    singular: Borrowed("namespace"),
    short_names: Borrowed(&[Borrowed("ns")]),
    namespaced: false,
    subresources: Borrowed(&[Subresource::Status, Subresource::Finalize]),
    type_name: Borrowed("io.k8s.api.core.v1.Namespace"),
    name_rule: NameRule::Label,
    fields: |_, namespace| vec![("status.phase", text(namespace, &["status", "phase"]).to_owned())],
    columns: Borrowed(&[NAME, text_column("Status", "Active, or Terminating."), AGE]),
    row: |_, namespace, now| {
        vec![json!(name(namespace)), json!(text(namespace, &["status", "phase"])), age(namespace, now)]
    },
    defaults: |_, namespace| {
        let title = name(namespace).to_owned();
        if !title.is_empty() {
            ensure(namespace, &["metadata", "labels"]).insert(NAME_LABEL.to_owned(), title.into());
        }
    },
    prepare_create: |_, namespace| {
        ensure(namespace, &[]).insert("status".to_owned(), json!({ "phase": "Active" }));
        let finalizers = ensure(namespace, &["spec"]).entry("finalizers").or_insert_with(|| json!([]));
        if let Value::Array(list) = finalizers
            && !list.iter().any(|f| f == FINALIZER)
        {
            list.push(FINALIZER.into());
        }
    },
    prepare_update: |_, new, old| {
        workload::prepare_update(new, old);
        // Only `/finalize` takes them away.
        keep(new, old, "spec");
    },
    ..BASE
});
