//! Deployments: revisions of a ReplicaSet, rolled from one to the next.

use crate::decision::{Controller, Decision};

/// Its line in the list.
pub const CONTROLLER: Controller =
    Controller { name: "deployment-controller", permits: &[], keys: |_, _, _, _| {}, reconcile: |_, _, _| Decision::default() };
