//! StatefulSets: pods with an identity, made, replaced and removed in order.

use crate::decision::{Controller, Decision};

/// Its line in the list.
pub const CONTROLLER: Controller =
    Controller { name: "statefulset-controller", permits: &[], keys: |_, _, _, _| {}, reconcile: |_, _, _| Decision::default() };
