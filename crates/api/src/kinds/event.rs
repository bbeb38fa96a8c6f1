//! Event.

use super::{BASE, Kind};

/// The row of Event.
pub static EVENT: Kind =
    Kind { kind: "Event", plural: "events", singular: "event", short_names: &["ev"], type_name: "io.k8s.api.core.v1.Event", ..BASE };
