//! ReplicaSets: a number of equal pods.

use crate::decision::{Controller, Decision};

/// Its line in the list.
pub const CONTROLLER: Controller =
    Controller { name: "replicaset-controller", permits: &[], keys: |_, _, _, _| {}, reconcile: |_, _, _| Decision::default() };
