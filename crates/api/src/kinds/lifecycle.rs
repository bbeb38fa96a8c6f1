//! What kinds without pods do on create and update: statuses that clients may not write, generations, and the warning
//! of a kind on which nothing acts.

use serde_json::{Value, json};

use super::Row;
use super::field::{keep, remove};
use crate::object::ensure;

/// A new object has this status, whatever its client wrote.
pub fn begin_status(object: &mut Value, status: Value) {
    ensure(object, &[]).insert("status".to_owned(), status);
}

/// A new object has no status.
pub fn no_status(object: &mut Value) {
    remove(object, "status");
}

/// A new object is of generation 1.
pub fn begin_generation(object: &mut Value) {
    ensure(object, &["metadata"]).insert("generation".to_owned(), json!(1));
}

/// An update of the main resource leaves the status.
pub fn keep_status(new: &mut Value, old: &Value) {
    keep(new, old, "status");
}

/// Counts the generation up where one of these top-level fields changed.
pub fn count_generation(new: &mut Value, old: &Value, fields: &[&str]) {
    let changed = fields.iter().any(|field| new.get(field) != old.get(field));
    super::workload::count_generation(new, old, changed);
}

/// The warning of a kind that is stored and served, but on which nothing acts: whoever relies on it must know.
pub fn nothing_acts(row: &Row, _: &Value) -> Vec<String> {
    vec![format!("{} {} is stored, but nothing in this cluster acts on it", row.api_version(), row.kind)]
}

/// What whoever asks for objects of this kind in this version is told, where there is something better.
pub fn deprecation(row: &Row) -> Option<&str> {
    match (&row.custom, &*row.group, &*row.plural) {
        (Some(custom), _, _) => custom.deprecation(),
        (None, "", "endpoints") => Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
        (None, "", "componentstatuses") => Some("v1 ComponentStatus is deprecated in v1.19+"),
        _ => None,
    }
}
