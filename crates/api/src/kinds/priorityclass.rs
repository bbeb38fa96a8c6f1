//! PriorityClass: how important pods are. Kept for charts and tools; the scheduler does not read it yet.

use std::borrow::Cow::Borrowed;

use serde_json::{Value, json};

use super::cells::{AGE, NAME, age, count, number, text_column};
use super::field::{Field, default};
use super::{BASE, Kind, Row};
use crate::object::{name, text};
use crate::status::Cause;

/// The row of PriorityClass.
pub static PRIORITY_CLASS: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("scheduling.k8s.io"),
    kind: Borrowed("PriorityClass"),
    plural: Borrowed("priorityclasses"),
    singular: Borrowed("priorityclass"),
    short_names: Borrowed(&[Borrowed("pc")]),
    namespaced: false,
    type_name: Borrowed("io.k8s.api.scheduling.v1.PriorityClass"),
    columns: Borrowed(&[
        NAME,
        number("Value", "The higher, the more important."),
        text_column("Global-Default", "Whether pods without a class get it."),
        AGE,
        text_column("PreemptionPolicy", "Whether its pods push out others."),
    ]),
    row: |_, class, now| {
        let global = class.get("globalDefault").and_then(Value::as_bool).unwrap_or(false);
        vec![
            json!(name(class)),
            json!(count(class, &["value"])),
            json!(global),
            age(class, now),
            json!(text(class, &["preemptionPolicy"])),
        ]
    },
    defaults: |_, class| default(class, "preemptionPolicy", "PreemptLowerPriority"),
    validate_update: |_, new, old, causes| {
        if new.get("value") != old.get("value") {
            causes.push(Cause::forbidden("value", "may not be changed in an update."));
        }
        Field::root(new).get("preemptionPolicy").immutable(&Field::root(old).get("preemptionPolicy"), causes);
    },
    ..BASE
});
