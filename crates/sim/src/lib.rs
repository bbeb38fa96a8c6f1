//! The seeded world: the real store, pipeline, driver, controllers, scheduler and kubelet decisions, with a clock, a
//! disk, nodes, users and faults that all follow from one number. Never shipped.
//!
//! ```text
//! monkeys (users, faults) ─> server (store on a FaultyDisk, pipeline, driver) <─> nodes (kubelet::decide on a runtime)
//!                                     └─ observer ─> checkers <─ machines
//! ```
//!
//! A storm first: safety is checked after every step. Then everything is healed, and the world must come to rest where
//! a world without faults would be. There are no threads, no sleeps, no `HashMap`s, no time and no randomness but the
//! seed's.

#![forbid(unsafe_code)]

pub mod bugs;
pub mod checkers;
pub mod clients;
pub mod linear;
pub mod monkeys;
pub mod node;
mod observer;
pub mod runtime;
pub mod seed;
pub mod server;
pub mod trace;
pub mod world;
