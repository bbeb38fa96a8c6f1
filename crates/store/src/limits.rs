//! Every limit of the store, by name.

/// Longest key, in bytes: group, plural, namespace and name of an object at their own limits fit twice.
pub const MAX_KEY: usize = 2048;
/// Longest value, in bytes: 1.5 MiB, as etcd's default request limit.
pub const MAX_VALUE: usize = 3 << 19;
/// Most ops of one transaction of the embedded store.
pub const MAX_OPS: usize = 1024;
/// Most expectations of one transaction of the embedded store.
pub const MAX_EXPECT: usize = 1024;
/// Most bytes (keys and values) of one transaction of the embedded store.
pub const MAX_TXN_BYTES: usize = 4 << 20;
/// Transactions that wait for the writer; committers beyond that wait for room (in `commit`, not failing).
pub const QUEUE: usize = 1024;
/// Most transactions of one durable commit.
pub const MAX_GROUP: usize = 256;
/// A group takes no further transaction once it has this many bytes; so it has at most this plus [`MAX_TXN_BYTES`].
pub const MAX_GROUP_BYTES: usize = 4 << 20;
/// Past changes that are kept for watches and for reads at an older revision.
pub const WINDOW_EVENTS: usize = 10_000;
/// Bytes (keys, values, and what a change takes itself) of past changes that are kept; more than one group, or watchers
/// could never keep up.
pub const WINDOW_BYTES: usize = 16 << 20;
/// How long past changes are kept beyond [`WINDOW_EVENTS`] and [`WINDOW_BYTES`]: as long as etcd keeps them for
/// upstream's API server (5 minutes). A list that is read in parts, or a watcher that stood still, is not cut off by
/// others' writes meanwhile.
pub const WINDOW_TIME: std::time::Duration = std::time::Duration::from_secs(300);
/// Bytes of past changes that are never exceeded, whatever their age, unless told: 10 s of 4,000 writes of 3 KiB.
pub const WINDOW_MOST_BYTES: usize = 128 << 20;

/// The same by the memory of a machine, in bytes: a 128th of it, from 64 to 512 MiB. 16 GiB give
/// [`WINDOW_MOST_BYTES`]; the least is 10 s of 4,000 writes of 1.3 KiB.
pub fn window_most_bytes(memory: u64) -> usize {
    (memory / 128).clamp(64 << 20, 512 << 20) as usize
}
/// Lists that are being read in parts, of which the state is kept as long as the window reaches back to it.
pub const MAX_PINS: usize = 64;
/// The engine's page cache, in bytes. Small: everything that is read is in memory already.
pub const ENGINE_CACHE: usize = 8 << 20;
/// Bytes of unsynced writes that are kept for being written again when a sync failed (see `disk`).
pub const MAX_UNSYNCED: usize = 64 << 20;

/// What one transaction may hold. One that holds more is refused as a whole; it is never cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxnLimits {
    /// Ops.
    pub ops: usize,
    /// Expectations.
    pub compares: usize,
    /// Keys and values, in bytes.
    pub bytes: usize,
    /// Whether etcd is to take it: no key is changed twice, deletions of what no expectation is about are compared with
    /// their keys being there, and what is told of deletions does not count.
    pub is_etcds: bool,
}

impl TxnLimits {
    /// Of the embedded store.
    pub const EMBEDDED: Self = Self { ops: MAX_OPS, compares: MAX_EXPECT, bytes: MAX_TXN_BYTES, is_etcds: false };
    /// Of etcd as it is by default (128 comparisons, 128 ops, a request of 1.5 MiB), less those of the receipt.
    pub const ETCD: Self = Self { ops: 127, compares: 127, bytes: MAX_VALUE, is_etcds: true };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_a_128th_of_the_memory_within_bounds() {
        let gib = 1 << 30;
        let table = [(0, 64), (8 * gib, 64), (16 * gib, 128), (32 * gib, 256), (64 * gib, 512), (1024 * gib, 512)];
        for (memory, mib) in table {
            assert_eq!(window_most_bytes(memory), mib << 20, "{memory}");
        }
        assert_eq!(window_most_bytes(16 * gib), WINDOW_MOST_BYTES);
    }
}
