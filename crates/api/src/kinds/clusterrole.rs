//! ClusterRole: what may be done in the whole cluster.

use std::borrow::Cow::Borrowed;

use serde_json::{Value, json};

use super::cells::{NAME, text_column};
use super::field::Field;
use super::role::validate_rules;
use super::{BASE, Kind, NameRule, Row};
use crate::object::{name, text};
use crate::selector::Labels;
use crate::status::Cause;

/// The row of ClusterRole.
pub static CLUSTER_ROLE: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("rbac.authorization.k8s.io"),
    kind: Borrowed("ClusterRole"),
    plural: Borrowed("clusterroles"),
    singular: Borrowed("clusterrole"),
    namespaced: false,
    type_name: Borrowed("io.k8s.api.rbac.v1.ClusterRole"),
    name_rule: NameRule::PathSegment,
    columns: Borrowed(&[NAME, text_column("Created At", "When it was created.")]),
    row: |_, role, _| vec![json!(name(role)), json!(text(role, &["metadata", "creationTimestamp"]))],
    validate: |_, object, causes| validate(object, causes),
    ..BASE
});

fn validate(role: &Value, causes: &mut Vec<Cause>) {
    validate_rules(role, false, causes);
    let rule = Field::root(role).get("aggregationRule");
    if !rule.is_set() {
        return;
    }
    let selectors = rule.get("clusterRoleSelectors");
    if selectors.len() == 0 {
        let why = "at least one clusterRoleSelector required if aggregationRule is non-nil";
        causes.push(Cause::required(selectors.path.clone(), why));
    }
    for selector in selectors.items() {
        if let Err(why) = Labels::from_json(Some(selector.value)) {
            causes.push(selector.invalid(&why));
        }
    }
}
