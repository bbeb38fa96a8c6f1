//! ReplicaSet.

use super::{BASE, Kind, Subresource};

/// The row of ReplicaSet.
pub static REPLICA_SET: Kind = Kind {
    group: "apps",
    kind: "ReplicaSet",
    plural: "replicasets",
    singular: "replicaset",
    short_names: &["rs"],
    categories: &["all"],
    subresources: &[Subresource::Status, Subresource::Scale],
    type_name: "io.k8s.api.apps.v1.ReplicaSet",
    ..BASE
};
