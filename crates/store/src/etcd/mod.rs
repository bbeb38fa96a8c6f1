//! The second backend: an etcd v3 cluster, for several servers.
//!
//! A transaction of ours is one transaction of etcd's: its expectations are compares, its ops become visible and
//! durable together. etcd gives all of them one revision, so ours are `etcd's revision * 1024 + index of the op`: each
//! op has its own, they are consecutive, and either is had from the other. A row is stored with its revision's digits
//! left out and put in by whoever reads it, for nobody knows them before the commit:
//!
//! ```text
//! <prefix><key> -> form (1 byte) | where the digits go (4) | index of the op (2) | checksum of key and bytes (8) |
//! bytes
//! ```
//!
//! Memory (keys and window, as with the embedded engine) is fed by one watch; a commit is answered when that watch has
//! brought it, so whoever writes reads it back. [`crate::Store::catch_up`] waits for what others have committed.
//!
//! A transaction whose answer is lost is settled before anybody is told (`receipt`). Where etcd does not answer, reads
//! and writes wait a while for another member, then they fail; all goes on by itself when it answers again.
//!
//! What etcd does not do: more than 128 ops or comparisons at once, more than 1.5 MiB, one key twice. A transaction
//! that asks for that is refused, never cut ([`crate::limits::TxnLimits::ETCD`]): whoever can do with less at once (the
//! controllers: what a decision writes may be cut anywhere by design) looks at [`crate::Store::txn_limits`] first.
//! The watch does not say what was to be told of a deletion: watchers are shown the state before it.
//!
//! The etcd cluster is to be Mainstay's alone: a revision that somebody else makes is waited for in vain.

mod commit;
mod feed;
mod grpc;
mod reads;
mod receipt;
mod row;
mod wire;

pub use grpc::Endpoint;

pub(crate) use feed::{Feed, open};
pub(crate) use reads::Asked;

const RANGE: &str = "/etcdserverpb.KV/Range";
/// gRPC's number for what etcd says of a revision that is compacted, or has not been.
const OUT_OF_RANGE: u32 = 11;
const TXN: &str = "/etcdserverpb.KV/Txn";

/// Where the cluster is, and who we are to it.
#[derive(Clone, Debug)]
pub struct Etcd {
    /// Its members, any of them.
    pub endpoints: Vec<Endpoint>,
    /// For `https`: whom to trust, and our certificate.
    pub tls: Option<std::sync::Arc<rustls::ClientConfig>>,
    /// What all our keys begin with.
    pub prefix: bytes::Bytes,
}

impl std::fmt::Display for Etcd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let members: Vec<String> = self.endpoints.iter().map(ToString::to_string).collect();
        f.write_str(&members.join(", "))
    }
}

/// Ops of one transaction of ours share etcd's revision; this many bits of a revision say which op it was.
const INDEX_BITS: u32 = 10;
