//! CSIStorageCapacity: how much room a driver has for a class. Kept for drivers and tools; what the nodes have for the
//! classes of this program is an annotation of theirs.

use std::borrow::Cow::Borrowed;

use serde_json::json;

use super::cells::{NAME, text_column};
use super::field::Field;
use super::pod_spec_validation::validate_amount;
use super::{BASE, Kind, Row};
use crate::object::{name, text};
use crate::{names, quantity};

/// The row of CSIStorageCapacity.
pub static CSI_STORAGE_CAPACITY: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("storage.k8s.io"),
    kind: Borrowed("CSIStorageCapacity"),
    plural: Borrowed("csistoragecapacities"),
    singular: Borrowed("csistoragecapacity"),
    type_name: Borrowed("io.k8s.api.storage.v1.CSIStorageCapacity"),
    columns: Borrowed(&[
        NAME,
        text_column("StorageClassName", "The class that it is about."),
        text_column("Capacity", "Room that there is for volumes of the class."),
    ]),
    row: |_, capacity, _| {
        vec![json!(name(capacity)), json!(text(capacity, &["storageClassName"])), json!(text(capacity, &["capacity"]))]
    },
    defaults: |_, capacity| {
        for field in ["capacity", "maximumVolumeSize"] {
            if let Some(amount) = capacity.get_mut(field) {
                quantity::canonicalize(amount);
            }
        }
    },
    validate: |_, capacity, causes| {
        let capacity = Field::root(capacity);
        for amount in
            ["capacity", "maximumVolumeSize"].map(|field| capacity.get(field)).iter().filter(|amount| amount.is_set())
        {
            validate_amount(amount, causes);
        }
        let topology = capacity.get("nodeTopology");
        if topology.is_set() {
            crate::metadata::validate_label_selector(&topology, causes);
        }
        capacity.get("storageClassName").need(causes, names::subdomain);
    },
    validate_update: |_, new, old, causes| {
        for field in ["nodeTopology", "storageClassName"] {
            Field::root(new).get(field).immutable(&Field::root(old).get(field), causes);
        }
    },
    ..BASE
});
