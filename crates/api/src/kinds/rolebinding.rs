//! RoleBinding: who has a role in a namespace.

use std::borrow::Cow::Borrowed;

use serde_json::{Value, json};

use super::cells::{AGE, NAME, age, text_column, wide};
use super::field::{Field, default, each};
use super::{BASE, Column, Kind, NameRule, Row};
use crate::jiff::Timestamp;
use crate::names;
use crate::object::{name, text};
use crate::status::Cause;

/// The row of RoleBinding.
pub static ROLE_BINDING: Kind = Kind::BuiltIn(&Row {
    kind: Borrowed("RoleBinding"),
    plural: Borrowed("rolebindings"),
    singular: Borrowed("rolebinding"),
    type_name: Borrowed("io.k8s.api.rbac.v1.RoleBinding"),
    ..BINDING
});

// A slice of its own: rows that are made of this one may not drop what they replace while they are evaluated.
const COLUMNS: &[Column] = &[
    NAME,
    text_column("Role", "The role that is given."),
    AGE,
    wide("Users", "Users who have it."),
    wide("Groups", "Groups that have it."),
    wide("ServiceAccounts", "Service accounts that have it."),
];

/// What both kinds of binding share.
pub(super) const BINDING: Row = Row {
    group: Borrowed("rbac.authorization.k8s.io"),
    name_rule: NameRule::PathSegment,
    columns: Borrowed(COLUMNS),
    row: |_, object, now| row(object, now),
    defaults: |_, object| defaults(object),
    validate: |_, object, causes| validate(object, causes),
    validate_update: |_, new, old, causes| validate_update(new, old, causes),
    ..BASE
};

const RBAC: &str = "rbac.authorization.k8s.io";

fn row(binding: &Value, now: Timestamp) -> Vec<Value> {
    let role = format!("{}/{}", text(binding, &["roleRef", "kind"]), text(binding, &["roleRef", "name"]));
    let of = |kind: &str| {
        let subjects = Field::root(binding).get("subjects").items().filter(|s| s.get("kind").text() == kind);
        let shown = subjects.map(|s| match s.get("namespace").text() {
            "" => s.get("name").text().to_owned(),
            namespace => format!("{namespace}/{}", s.get("name").text()),
        });
        json!(shown.collect::<Vec<_>>().join(", "))
    };
    vec![json!(name(binding)), json!(role), age(binding, now), of("User"), of("Group"), of("ServiceAccount")]
}

/// The groups that the API leaves to be guessed.
fn defaults(binding: &mut Value) {
    if let Some(role) = super::field::inner(binding, "roleRef") {
        default(role, "apiGroup", RBAC);
    }
    for subject in each(binding, "subjects").filter(|s| matches!(text(s, &["kind"]), "User" | "Group")) {
        default(subject, "apiGroup", RBAC);
    }
}

fn validate(binding: &Value, causes: &mut Vec<Cause>) {
    validate_binding(binding, true, causes);
}

/// A role, and who gets it.
pub(super) fn validate_binding(binding: &Value, namespaced: bool, causes: &mut Vec<Cause>) {
    let binding = Field::root(binding);
    let role = binding.get("roleRef");
    one_group(&role.get("apiGroup"), RBAC, causes);
    role.get("kind").need_one_of(causes, if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] });
    role.get("name").need(causes, names::path_segment);
    for subject in binding.get("subjects").items() {
        let (name, group) = (subject.get("name"), subject.get("apiGroup"));
        name.need_text(causes);
        match subject.get("kind").text() {
            "ServiceAccount" => {
                name.check(causes, names::subdomain);
                one_group(&group, "", causes);
                if !namespaced {
                    subject.get("namespace").need_text(causes);
                }
            }
            "User" | "Group" => one_group(&group, RBAC, causes),
            _ => {
                let kind = subject.get("kind");
                causes.push(Cause::not_supported(&kind.path, kind.text(), &["ServiceAccount", "User", "Group"]));
            }
        }
    }
}

fn one_group(group: &Field<'_>, wanted: &str, causes: &mut Vec<Cause>) {
    if group.text() != wanted {
        causes.push(Cause::not_supported(&group.path, group.text(), &[wanted]));
    }
}

/// A binding keeps its role, so that nobody gets another by accident.
fn validate_update(new: &Value, old: &Value, causes: &mut Vec<Cause>) {
    if new.get("roleRef") != old.get("roleRef") {
        let role = new.get("roleRef").cloned().unwrap_or_default();
        causes.push(Cause::invalid("roleRef", role, "cannot change roleRef"));
    }
}
