//! Garbage collection by owner reference: background, foreground, orphan.

use crate::decision::{Controller, Decision};

/// Its line in the list.
pub const CONTROLLER: Controller =
    Controller { name: "garbage-collector-controller", permits: &[], keys: |_, _, _, _| {}, reconcile: |_, _, _| Decision::default() };
