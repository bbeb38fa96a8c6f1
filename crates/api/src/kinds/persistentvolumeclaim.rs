//! PersistentVolumeClaim.

use super::{BASE, Kind, Subresource};

/// The row of PersistentVolumeClaim.
pub static PERSISTENT_VOLUME_CLAIM: Kind = Kind {
    kind: "PersistentVolumeClaim",
    plural: "persistentvolumeclaims",
    singular: "persistentvolumeclaim",
    short_names: &["pvc"],
    subresources: &[Subresource::Status],
    type_name: "io.k8s.api.core.v1.PersistentVolumeClaim",
    ..BASE
};
