//! Pod.

use super::{BASE, Kind, Subresource};

/// The row of Pod.
pub static POD: Kind = Kind {
    kind: "Pod",
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    categories: &["all"],
    subresources: &[
        Subresource::Status,
        Subresource::Binding,
        Subresource::Eviction,
        Subresource::Log,
        Subresource::Exec,
        Subresource::Attach,
        Subresource::PortForward,
        Subresource::Resize,
        Subresource::EphemeralContainers,
    ],
    type_name: "io.k8s.api.core.v1.Pod",
    ..BASE
};
