//! Deployment.

use super::{BASE, Kind, Subresource};

/// The row of Deployment.
pub static DEPLOYMENT: Kind = Kind {
    group: "apps",
    kind: "Deployment",
    plural: "deployments",
    singular: "deployment",
    short_names: &["deploy"],
    categories: &["all"],
    subresources: &[Subresource::Status, Subresource::Scale],
    type_name: "io.k8s.api.apps.v1.Deployment",
    ..BASE
};
