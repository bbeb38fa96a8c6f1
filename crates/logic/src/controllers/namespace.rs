//! Namespace deletion: everything in it goes, then the namespace.

use crate::decision::{Controller, Decision};

/// Its line in the list.
pub const CONTROLLER: Controller =
    Controller { name: "namespace-controller", permits: &[], keys: |_, _, _, _| {}, reconcile: |_, _, _| Decision::default() };
