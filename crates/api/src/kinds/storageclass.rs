//! StorageClass.

use super::{BASE, Kind};

/// The row of StorageClass.
pub static STORAGE_CLASS: Kind = Kind {
    group: "storage.k8s.io",
    kind: "StorageClass",
    plural: "storageclasses",
    singular: "storageclass",
    short_names: &["sc"],
    namespaced: false,
    type_name: "io.k8s.api.storage.v1.StorageClass",
    ..BASE
};
