//! PriorityClass: how important pods are. Admission gives pods the value of their class.

use std::borrow::Cow::Borrowed;

use serde_json::{Value, json};

use super::cells::{AGE, NAME, age, count, number, text_column};
use super::field::{Field, default};
use super::{BASE, Kind, Row};
use crate::object::{name, text};
use crate::status::Cause;

/// The highest value that is not the system's.
const HIGHEST: i64 = 1_000_000_000;
/// The classes that every cluster has, with their values and what they are for.
pub const SYSTEM: [(&str, i64, &str); 2] = [
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
];

/// Why a class with a name of the system's is none of its classes.
fn wrong_system_class(title: &str, value: i64, global: bool) -> Option<String> {
    let Some((_, known, _)) = SYSTEM.iter().find(|(name, ..)| *name == title) else {
        return Some(format!("{title} is not a known system priority class"));
    };
    if *known != value {
        return Some(format!("value of {title} PriorityClass must be {known}"));
    }
    global.then(|| format!("globalDefault of {title} PriorityClass must be false"))
}

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
    validate: |_, class, causes| {
        let (title, value) = (name(class), count(class, &["value"]));
        let global = class.get("globalDefault").and_then(Value::as_bool).unwrap_or(false);
        if title.starts_with("system-") {
            if let Some(why) = wrong_system_class(title, value, global) {
                let why = format!(
                    "priority class names with 'system-' prefix are reserved for system use only. error: {why}"
                );
                causes.push(Cause::forbidden("metadata.name", &why));
            }
        } else if value > HIGHEST {
            let why = format!("maximum allowed value of a user defined priority is {HIGHEST}");
            causes.push(Cause::forbidden("value", &why));
        }
        Field::root(class).get("preemptionPolicy").one_of(causes, &["Never", "PreemptLowerPriority"]);
    },
    validate_update: |_, new, old, causes| {
        if new.get("value") != old.get("value") {
            causes.push(Cause::forbidden("value", "may not be changed in an update."));
        }
        Field::root(new).get("preemptionPolicy").immutable(&Field::root(old).get("preemptionPolicy"), causes);
    },
    ..BASE
});
