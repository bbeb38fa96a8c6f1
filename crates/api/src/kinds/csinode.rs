//! CSINode: the storage drivers that run on a node. Kept for charts and tools; this program runs no such drivers.

use std::borrow::Cow::Borrowed;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::cells::{self, AGE, NAME, number};
use super::csidriver::validate_name;
use super::field::{Field, IMMUTABLE};
use super::{BASE, Kind, Row};
use crate::object::name;
use crate::status::Cause;

/// The longest name that a driver may have for a node.
const NODE_ID: usize = 256;

/// The row of CSINode.
pub static CSI_NODE: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("storage.k8s.io"),
    kind: Borrowed("CSINode"),
    plural: Borrowed("csinodes"),
    singular: Borrowed("csinode"),
    namespaced: false,
    type_name: Borrowed("io.k8s.api.storage.v1.CSINode"),
    columns: Borrowed(&[NAME, number("Drivers", "How many drivers run there."), AGE]),
    row: |_, node, now| {
        let drivers = Field::root(node).dig(&["spec", "drivers"]).len();
        vec![json!(name(node)), json!(drivers), cells::age(node, now)]
    },
    validate: |_, node, causes| {
        let mut names = BTreeSet::new();
        for driver in Field::root(node).dig(&["spec", "drivers"]).items() {
            let name = driver.get("name");
            validate_name(&name, causes);
            if !names.insert(name.text()) {
                causes.push(Cause::duplicate(&name.path, name.text()));
            }
            let id = driver.get("nodeID");
            if id.need_text(causes) && id.text().len() > NODE_ID {
                causes.push(id.invalid(&format!("must be {NODE_ID} characters or less")));
            }
            driver.dig(&["allocatable", "count"]).not_negative(causes);
            let mut keys = BTreeSet::new();
            for key in driver.get("topologyKeys").items() {
                if !keys.insert(key.text()) {
                    causes.push(Cause::duplicate(&driver.path, key.text()));
                }
                key.need(causes, crate::names::qualified);
            }
        }
    },
    validate_update: |_, new, old, causes| {
        // A driver that runs there is as it was; only how many volumes it takes may change.
        let (new, old) = (Field::root(new).dig(&["spec", "drivers"]), Field::root(old).dig(&["spec", "drivers"]));
        let old: BTreeMap<&str, Field> = old.items().map(|driver| (driver.get("name").text(), driver)).collect();
        for driver in new.items() {
            let fixed = ["nodeID", "topologyKeys"];
            let before = old.get(driver.get("name").text());
            if before.is_some_and(|before| fixed.iter().any(|field| before.get(field).value != driver.get(field).value))
            {
                causes.push(driver.invalid(IMMUTABLE));
            }
        }
    },
    ..BASE
});
