//! Secret.

use super::{BASE, Kind};

/// The row of Secret.
pub static SECRET: Kind = Kind { kind: "Secret", plural: "secrets", singular: "secret", type_name: "io.k8s.api.core.v1.Secret", ..BASE };
