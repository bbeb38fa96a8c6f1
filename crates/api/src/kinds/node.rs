//! Node.

use super::{BASE, Kind, Subresource};

/// The row of Node.
pub static NODE: Kind = Kind {
    kind: "Node",
    plural: "nodes",
    singular: "node",
    short_names: &["no"],
    namespaced: false,
    subresources: &[Subresource::Status],
    type_name: "io.k8s.api.core.v1.Node",
    ..BASE
};
