//! The one door to a cluster from outside: HTTPS to its API server.
//!
//! [`Client`] speaks JSON over HTTP/2 connections that it keeps, watches apart from everything else; [`Informer`] lists
//! and watches a kind and keeps going over disconnects and expired revisions, as [`ListWatch`] decides;
//! [`Client::exec`] runs a command in a container; [`Client::upload`] sends a file. [`subject`] reads whom a
//! certificate is for, as both ends must.

#![forbid(unsafe_code)]

mod believed;
pub mod bootstrap_token;
mod config;
mod connections;
mod exec;
pub mod grpc;
mod hedging;
mod informer;
mod list_watch;
mod request;
mod rotating;
pub mod subject;
mod unverified;
mod upload;

pub use config::{Config, ConfigError};
pub use exec::ExecOutput;
pub use informer::Informer;
pub use list_watch::{ListWatch, Notice, Step};
pub use request::{Client, Error, ListOptions, PatchType, WatchEvent, Watching};
pub use rotating::Rotating;
