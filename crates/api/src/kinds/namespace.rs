//! Namespace.

use super::{BASE, Kind, NameRule, Subresource};

/// The row of Namespace.
pub static NAMESPACE: Kind = Kind {
    kind: "Namespace",
    plural: "namespaces",
    singular: "namespace",
    short_names: &["ns"],
    namespaced: false,
    subresources: &[Subresource::Status, Subresource::Finalize],
    type_name: "io.k8s.api.core.v1.Namespace",
    name_rule: NameRule::Label,
    ..BASE
};
