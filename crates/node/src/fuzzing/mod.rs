//! What strangers may send, read by the functions that read it in earnest, without sockets (X3, X4). Not in the binary:
//! compiled for this crate's tests, which try a few thousand damaged inputs of each, and for `fuzz/`, whose engine
//! looks
//! for more.
//!
//! A target is a function from any bytes to nothing. It panics where a promise is broken; memory and time are watched
//! by whoever calls it. Its seeds are whole inputs, made by code.

mod mutation;
mod objects;
mod place;
#[cfg(test)]
mod tests;

pub use mutation::Mutator;
pub use place::Place;

use crate::{images, network, nfs, streaming};

/// One thing that reads what strangers send.
pub struct Target {
    pub name: &'static str,
    pub seeds: fn() -> Vec<Vec<u8>>,
    pub run: fn(&[u8]),
    /// The most memory that one input may take (bytes), for inputs as long as the seeds.
    pub memory: usize,
}

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
    Target { name: "dns", seeds: network::dns::fuzzing::seeds, run: network::dns::fuzzing::run, memory: 4 << 20 },
    Target { name: "spdy", seeds: streaming::fuzzing::spdy_seeds, run: streaming::fuzzing::run_spdy, memory: 4 << 20 },
    Target {
        name: "websocket",
        seeds: streaming::fuzzing::websocket_seeds,
        run: streaming::fuzzing::run_websocket,
        memory: 12 << 20,
    },
    Target { name: "objects", seeds: objects::seeds, run: objects::run, memory: 4 << 20 },
];

/// A target by its name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// Splits an input into parts, each preceded by its length (two bytes, big-endian); the last one may be cut short.
pub fn parts(mut input: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    while let Some((length, rest)) = input.split_first_chunk() {
        let (part, rest) = rest.split_at(usize::from(u16::from_be_bytes(*length)).min(rest.len()));
        parts.push(part);
        input = rest;
    }
    parts
}

/// The input that [`parts`] splits so. Seeds only: each part is shorter than 64 KiB.
pub fn join(parts: &[&[u8]]) -> Vec<u8> {
    let length = |part: &&[u8]| u16::try_from(part.len()).unwrap_or(u16::MAX).to_be_bytes();
    parts.iter().flat_map(|part| [&length(part)[..], part].concat()).collect()
}

/// Runs something asynchronous to its end, on this thread alone.
pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    /// Whoever waits longer waits for ever: a hang is as bad as a panic.
    const HANGS: std::time::Duration = std::time::Duration::from_secs(120);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async { tokio::time::timeout(HANGS, work).await.expect("it never ends") })
}
