//! The kit with which code that reads strangers' bytes is tried: a target, damage to its seeds, a folder beside one
//! that nothing may touch. Compiled for tests and for the fuzzing engine only (feature `fuzzing`), never into the
//! binary.

mod folder;
mod mutation;

pub use folder::Folder;
pub use mutation::Mutator;

/// One thing that reads what strangers send.
pub struct Target {
    pub name: &'static str,
    pub seeds: fn() -> Vec<Vec<u8>>,
    pub run: fn(&[u8]),
    /// The most memory that one input may take (bytes), for inputs as long as the seeds.
    pub memory: usize,
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
