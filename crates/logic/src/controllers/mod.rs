//! The controllers: one file each, one line each in [`CONTROLLERS`].
//!
//! A file opens with what it relies on, what it guarantees (by name from INVARIANTS.md) and where it differs from
//! upstream. It holds `observe(snapshot, key) -> Option<Observed>` and `decide(&Observed, now) -> Decision`, and its
//! row `CONTROLLER`.

use crate::decision::Controller;

pub mod deployment;
pub mod garbagecollector;
pub mod namespace;
pub mod replicaset;
pub mod serviceaccount;
pub mod statefulset;

/// Every controller that the driver runs. The order is of no consequence.
pub const CONTROLLERS: &[Controller] = &[
    deployment::CONTROLLER,
    garbagecollector::CONTROLLER,
    namespace::CONTROLLER,
    replicaset::CONTROLLER,
    serviceaccount::CONTROLLER,
    statefulset::CONTROLLER,
];
