//! The one door to a cluster from outside: HTTPS to its API server.
//!
//! [`Client`] speaks JSON over one pooled HTTP/2 connection; [`Informer`] lists and watches a kind and keeps
//! going over disconnects and expired revisions.

#![forbid(unsafe_code)]

mod config;
mod informer;
mod request;

pub use config::{Config, ConfigError};
pub use informer::{Informer, Notice};
pub use request::{Client, Error, ListOptions, PatchType, WatchEvent, Watching};
