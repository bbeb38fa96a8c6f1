//! Service.

use super::{BASE, Kind, NameRule, Subresource};

/// The row of Service.
pub static SERVICE: Kind = Kind {
    kind: "Service",
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    categories: &["all"],
    subresources: &[Subresource::Status],
    type_name: "io.k8s.api.core.v1.Service",
    name_rule: NameRule::Label1035,
    ..BASE
};
