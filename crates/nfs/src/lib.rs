//! NFSv3 on both ends: a server whose exports ordinary clients mount, and a client behind FUSE for machines whose
//! kernel has none.
//!
//! - [`xdr`], [`rpc`], [`protocol`]: what is on the wire, the same for both ends
//! - [`server`]: `mainstay nfs-server`
//! - [`client`]: calls, connections, and the FUSE file system on top of them

pub mod client;
#[cfg(any(test, fuzzing, feature = "fuzzing"))]
pub mod fuzzing;
pub mod protocol;
pub mod rpc;
pub mod server;
pub mod xdr;
