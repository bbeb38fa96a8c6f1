//! StatefulSet.

use super::{BASE, Kind, Subresource};

/// The row of StatefulSet.
pub static STATEFUL_SET: Kind = Kind {
    group: "apps",
    kind: "StatefulSet",
    plural: "statefulsets",
    singular: "statefulset",
    short_names: &["sts"],
    categories: &["all"],
    subresources: &[Subresource::Status, Subresource::Scale],
    type_name: "io.k8s.api.apps.v1.StatefulSet",
    ..BASE
};
