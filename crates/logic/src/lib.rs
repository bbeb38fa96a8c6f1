//! Every decision of Mainstay, pure: controllers, scheduler, kubelet, DNS zone, proxy rules.
//!
//! No IO, clock, randomness, async, logging, `HashMap` iteration or `unsafe` here. Each controller is
//! one file with `observe` and `decide`, and one line in [`controllers::CONTROLLERS`].

#![forbid(unsafe_code)]

pub mod addresses;
pub mod backend;
pub mod controllers;
pub mod decision;
pub mod definitions;
pub mod dns;
pub mod fencing;
pub mod history;
pub mod kubelet;
pub mod matching;
pub mod measured;
pub mod nodes;
pub mod ownership;
pub mod peers;
pub mod pod_template;
pub mod pods;
pub mod promises;
pub mod proxy;
pub mod resources;
pub mod scheduler;
pub mod slices;
pub mod snapshot;
pub mod volume;
#[cfg(test)]
mod world;

pub use decision::{Controller, Decision, Event, Propagation, Waiting, Write};
pub use snapshot::{Change, Meta, Snapshot};
