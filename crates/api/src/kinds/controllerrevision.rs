//! ControllerRevision: a template as it once was.

use std::borrow::Cow::Borrowed;

use serde_json::{Value, json};

use super::cells::{AGE, NAME, age, count, number, or_none, text_column};
use super::field::Field;
use super::{BASE, Kind, Row};
use crate::object::name;
use crate::status::Cause;

/// The row of ControllerRevision.
pub static CONTROLLER_REVISION: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("apps"),
    kind: Borrowed("ControllerRevision"),
    plural: Borrowed("controllerrevisions"),
    singular: Borrowed("controllerrevision"),
    type_name: Borrowed("io.k8s.api.apps.v1.ControllerRevision"),
    columns: Borrowed(&[
        NAME,
        text_column("Controller", "Whose template it is."),
        number("Revision", "Its place in the history."),
        AGE,
    ]),
    row: |_, revision, now| {
        vec![
            json!(name(revision)),
            or_none(&controller(revision)),
            json!(count(revision, &["revision"])),
            age(revision, now),
        ]
    },
    validate: |_, revision, causes| {
        let revision = Field::root(revision);
        if !revision.get("data").is_set() {
            causes.push(Cause::required("data", "data is mandatory"));
        }
        revision.get("revision").not_negative(causes);
    },
    validate_update: |_, new, old, causes| {
        Field::root(new).get("data").immutable(&Field::root(old).get("data"), causes)
    },
    ..BASE
});

/// `statefulset.apps/web`, or nothing.
fn controller(revision: &Value) -> String {
    let mut owners = Field::root(revision).dig(&["metadata", "ownerReferences"]).items();
    let Some(owner) = owners.find(|owner| owner.get("controller").is_true()) else { return String::new() };
    let group =
        owner.get("apiVersion").text().split_once('/').map(|(group, _)| format!(".{group}")).unwrap_or_default();
    format!("{}{group}/{}", owner.get("kind").text().to_lowercase(), owner.get("name").text())
}
