//! PersistentVolume.

use super::{BASE, Kind, Subresource};

/// The row of PersistentVolume.
pub static PERSISTENT_VOLUME: Kind = Kind {
    kind: "PersistentVolume",
    plural: "persistentvolumes",
    singular: "persistentvolume",
    short_names: &["pv"],
    namespaced: false,
    subresources: &[Subresource::Status],
    type_name: "io.k8s.api.core.v1.PersistentVolume",
    ..BASE
};
