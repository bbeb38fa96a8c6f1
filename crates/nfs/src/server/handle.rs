//! File handles: the kernel's own handle of a file, and whose it is, sealed.
//!
//! ```text
//! 1 version | 4 export | 4 limit | 1 kind of kernel handle | the kernel handle (at most 46) | 8 seal
//! ```
//!
//! The limit is the number of the one that the file counts against ([`super::limits`]); 0 where there is none.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;

use mainstay_runtime::kernel::{FileHandle, MAX_FILE_HANDLE};

use super::Server;
use super::call::{Fault, Fault::Status};
use super::export::Export;
use super::limits::Limit;
use crate::protocol::{MAX_HANDLE, status};

const VERSION: u8 = 2;
const SEAL: usize = 8;
const HEADER: usize = 10;
/// What is left for the kernel's handle.
const _: () = assert!(MAX_FILE_HANDLE == MAX_HANDLE - HEADER - SEAL);

/// What a handle names.
pub struct Opened<'a> {
    pub export: &'a Export,
    pub limit: Option<Arc<Limit>>,
    /// `O_PATH`.
    pub file: OwnedFd,
}

impl Server {
    fn seal(&self, bytes: &[u8]) -> [u8; SEAL] {
        ring::hmac::sign(&self.seal, bytes).as_ref().first_chunk().copied().unwrap_or_default()
    }

    /// The handle by which clients name an open file of an export.
    pub(super) fn handle_of(&self, export: &Export, limit: Option<&Limit>, file: &OwnedFd) -> io::Result<Vec<u8>> {
        let kernel = FileHandle::of(file)?;
        let mut handle = vec![VERSION];
        handle.extend_from_slice(&export.id.to_be_bytes());
        handle.extend_from_slice(&limit.map_or(0, |limit| limit.id).to_be_bytes());
        handle.push(kernel.kind);
        handle.extend_from_slice(&kernel.bytes);
        let seal = self.seal(&handle);
        handle.extend_from_slice(&seal);
        Ok(handle)
    }

    /// The file of a handle that this server gave.
    pub(super) fn open_handle(&self, handle: &[u8]) -> Result<Opened<'_>, Fault> {
        let (sealed, seal) = handle.split_last_chunk::<SEAL>().ok_or(Status(status::BADHANDLE))?;
        let (header, bytes) = sealed.split_first_chunk::<HEADER>().ok_or(Status(status::BADHANDLE))?;
        let [version, e0, e1, e2, e3, l0, l1, l2, l3, kind] = header;
        let (id, limit) = (u32::from_be_bytes([*e0, *e1, *e2, *e3]), u32::from_be_bytes([*l0, *l1, *l2, *l3]));
        // A seal of before the key was lost is not an attack, only stale.
        let expected = self.seal(sealed);
        let differs = expected.iter().zip(seal).fold(0, |differs, (one, other)| differs | (one ^ other));
        if *version != VERSION || differs != 0 {
            return Err(Status(status::STALE));
        }
        let export = self.exports.iter().find(|export| export.id == id).ok_or(Status(status::STALE))?;
        let limit = match limit {
            0 => None,
            // A limit goes when its folder does.
            id => Some(self.limits.by_id(id).ok_or(Status(status::STALE))?),
        };
        let kernel = FileHandle { kind: *kind, bytes: bytes.to_vec() };
        let file = kernel.open(export.root.as_raw_fd()).map_err(|_| Status(status::STALE))?;
        Ok(Opened { export, limit, file })
    }
}
