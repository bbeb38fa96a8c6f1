//! Role: what may be done in a namespace.

use std::borrow::Cow::Borrowed;

use serde_json::{Value, json};

use super::cells::{NAME, text_column};
use super::field::Field;
use super::{BASE, Kind, NameRule, Row};
use crate::object::{name, text};
use crate::status::Cause;

/// The row of Role.
pub static ROLE: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("rbac.authorization.k8s.io"),
    kind: Borrowed("Role"),
    plural: Borrowed("roles"),
    singular: Borrowed("role"),
    type_name: Borrowed("io.k8s.api.rbac.v1.Role"),
    name_rule: NameRule::PathSegment,
    columns: Borrowed(&[NAME, text_column("Created At", "When it was created.")]),
    row: |_, role, _| vec![json!(name(role)), json!(text(role, &["metadata", "creationTimestamp"]))],
    validate: |_, role, causes| validate_rules(role, true, causes),
    ..BASE
});

/// Every rule has verbs, and is about resources or about paths.
pub(super) fn validate_rules(role: &Value, namespaced: bool, causes: &mut Vec<Cause>) {
    for rule in Field::root(role).get("rules").items() {
        if rule.get("verbs").len() == 0 {
            causes.push(Cause::required(rule.get("verbs").path, "verbs must contain at least one value"));
        }
        let (urls, groups, resources) = (rule.get("nonResourceURLs"), rule.get("apiGroups"), rule.get("resources"));
        if urls.len() > 0 {
            if namespaced {
                causes.push(urls.invalid("namespaced rules cannot apply to non-resource URLs"));
            }
            if groups.len() + resources.len() + rule.get("resourceNames").len() > 0 {
                causes.push(urls.invalid("rules cannot apply to both regular resources and non-resource URLs"));
            }
            continue;
        }
        if groups.len() == 0 {
            causes.push(Cause::required(groups.path, "resource rules must supply at least one api group"));
        }
        if resources.len() == 0 {
            causes.push(Cause::required(resources.path, "resource rules must supply at least one resource"));
        }
    }
}
