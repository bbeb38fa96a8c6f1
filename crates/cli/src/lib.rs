//! Mainstay's commands: what can be typed, the demonstration, and the small tools of the demonstration's image.
//!
//! The commands that run a cluster (`up`, `down`, `demo`, `image`) are wired in `main.rs`, which alone knows server
//! and node.

#![forbid(unsafe_code)]

pub mod args;
pub mod demo;
pub mod tools;
