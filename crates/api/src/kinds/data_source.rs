//! What a claim is to start with: `dataSource`, and `dataSourceRef`, its successor that knows more kinds.

use serde_json::Value;

use super::field::{Field, inner};
use crate::object::text;
use crate::status::Cause;

/// The kinds that the older field knows, with their group.
const OLD: [(&str, &str); 2] = [("", "PersistentVolumeClaim"), ("snapshot.storage.k8s.io", "VolumeSnapshot")];

/// Writes the one field from the other in a new claim, as upstream does.
///
/// Differs: upstream drops an older field that names another kind, and the claim starts empty; here it stays and the
/// claim waits.
pub fn complete(claim: &mut Value) {
    let Some(Value::Object(spec)) = inner(claim, "spec") else { return };
    let is_set = |spec: &serde_json::Map<String, Value>, field| spec.get(field).is_some_and(|value| !value.is_null());
    match (is_set(spec, "dataSource"), is_set(spec, "dataSourceRef")) {
        (true, false) => {
            if let Some(source) = spec.get("dataSource").cloned() {
                spec.insert("dataSourceRef".to_owned(), source);
            }
        }
        (false, true) => {
            let source = spec.get("dataSourceRef").cloned().unwrap_or_default();
            let known = OLD.contains(&(text(&source, &["apiGroup"]), text(&source, &["kind"])));
            if known && text(&source, &["namespace"]).is_empty() {
                spec.insert("dataSource".to_owned(), source);
            }
        }
        _ => {}
    }
}

/// Upstream's rules for both fields of a claim's spec.
pub fn validate(spec: &Field, causes: &mut Vec<Cause>) {
    let (source, reference) = (spec.get("dataSource"), spec.get("dataSourceRef"));
    for field in [&source, &reference].into_iter().filter(|field| field.is_set()) {
        field.get("name").need_text(causes);
        field.get("kind").need_text(causes);
        let kind = field.get("kind").text();
        if field.get("apiGroup").text().is_empty() && !kind.is_empty() && kind != "PersistentVolumeClaim" {
            causes.push(Cause::invalid(
                &field.path,
                kind,
                "must be 'PersistentVolumeClaim' when referencing the default apiGroup",
            ));
        }
    }
    if source.is_set() && reference.is_set() {
        if !reference.get("namespace").text().is_empty() {
            causes.push(Cause::invalid(
                &spec.path,
                source.path.clone(),
                "may not be specified when dataSourceRef.namespace is specified",
            ));
        }
        let parts = |field: &Field| ["apiGroup", "kind", "name"].map(|part| text(field.value, &[part]).to_owned());
        if parts(&source) != parts(&reference) {
            causes.push(Cause::invalid(&spec.path, source.path.clone(), "must match dataSourceRef"));
        }
    }
}
