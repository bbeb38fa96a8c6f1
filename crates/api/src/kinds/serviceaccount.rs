//! ServiceAccount.

use super::{BASE, Kind, Subresource};

/// The row of ServiceAccount.
pub static SERVICE_ACCOUNT: Kind = Kind {
    kind: "ServiceAccount",
    plural: "serviceaccounts",
    singular: "serviceaccount",
    short_names: &["sa"],
    subresources: &[Subresource::Token],
    type_name: "io.k8s.api.core.v1.ServiceAccount",
    ..BASE
};
