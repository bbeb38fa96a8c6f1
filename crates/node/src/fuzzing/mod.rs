//! What strangers may send, read by the functions that read it in earnest, without sockets (X3, X4). Not in the binary:
//! compiled for tests, which try a few thousand damaged inputs of each, and for `fuzz/`, whose engine looks for more.
//!
//! A target is a function from any bytes to nothing. It panics where a promise is broken; memory and time are watched
//! by whoever calls it. Its seeds are whole inputs, made by code.

mod definitions;
mod expressions;
mod messages;
mod objects;
#[cfg(test)]
mod tests;

use mainstay_nfs as nfs;
use mainstay_runtime::fuzzing::Target;
use mainstay_runtime::images;

use crate::{network, streaming};

/// All of them. `fuzz/fuzz_targets` has a file for each.
pub const TARGETS: &[Target] = &[
    Target { name: "nfs_server", seeds: nfs::server::fuzzing::seeds, run: nfs::server::fuzzing::run, memory: 8 << 20 },
    Target { name: "nfs_client", seeds: nfs::client::fuzzing::seeds, run: nfs::client::fuzzing::run, memory: 8 << 20 },
    Target { name: "rpc", seeds: nfs::fuzzing::seeds, run: nfs::fuzzing::run, memory: 4 << 20 },
    Target {
        name: "image_layer",
        seeds: images::fuzzing::layer_seeds,
        run: images::fuzzing::run_layer,
        memory: 8 << 20,
    },
    Target {
        name: "image_archive",
        seeds: images::fuzzing::archive_seeds,
        run: images::fuzzing::run_archive,
        memory: 8 << 20,
    },
    Target {
        name: "registry",
        seeds: images::fuzzing::registry_seeds,
        run: images::fuzzing::run_registry,
        memory: 4 << 20,
    },
    Target { name: "dns", seeds: network::dns::fuzzing::seeds, run: network::dns::fuzzing::run, memory: 4 << 20 },
    Target { name: "spdy", seeds: streaming::fuzzing::spdy_seeds, run: streaming::fuzzing::run_spdy, memory: 4 << 20 },
    Target {
        name: "websocket",
        seeds: streaming::fuzzing::websocket_seeds,
        run: streaming::fuzzing::run_websocket,
        memory: 12 << 20,
    },
    Target { name: "objects", seeds: objects::seeds, run: objects::run, memory: 4 << 20 },
    Target { name: "expressions", seeds: expressions::seeds, run: expressions::run, memory: 32 << 20 },
    Target { name: "definitions", seeds: definitions::seeds, run: definitions::run, memory: 16 << 20 },
    Target { name: "messages", seeds: messages::seeds, run: messages::run, memory: 4 << 20 },
];

/// A target by its name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
