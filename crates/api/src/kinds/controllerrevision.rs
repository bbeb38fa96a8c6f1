//! ControllerRevision.

use super::{BASE, Kind};

/// The row of ControllerRevision.
pub static CONTROLLER_REVISION: Kind = Kind {
    group: "apps",
    kind: "ControllerRevision",
    plural: "controllerrevisions",
    singular: "controllerrevision",
    type_name: "io.k8s.api.apps.v1.ControllerRevision",
    ..BASE
};
