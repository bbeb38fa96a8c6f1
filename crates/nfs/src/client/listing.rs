//! Listing folders: names only. Attributes along with the names (READDIRPLUS) would make the kernel trust a name for a
//! while, and a file that is opened then is not looked at again: not close-to-open.

use super::super::protocol::{Attributes, MAX_NAME, procedure};
use super::super::xdr::{Garbage, Reader};
use super::files::{Done, Files};
use super::remote::Calls;
use super::wire::{Answer, Words};

/// The least that a server is asked for (bytes).
const SMALLEST: u32 = 1024;

impl<R: Calls> Files<R> {
    pub(super) fn readdir(&self, body: &mut Words<'_>) -> Done {
        let (open, handle) = self.opened(body)?;
        let (cookie, size) = (body.u64().ok_or(libc::EINVAL)?, body.u32().ok_or(libc::EINVAL)?);
        let reply = self.remote.call(procedure::READDIR, &open.who, |arguments| {
            arguments.opaque(&handle).u64(cookie).u64(0).u32(size.max(SMALLEST));
        })?;
        reply.read(|reader| entries(reader, size as usize))
    }
}

fn entries(reader: &mut Reader<'_>, limit: usize) -> Result<Answer, Garbage> {
    Attributes::read_optional(reader)?;
    let _verifier = reader.u64()?;
    let mut answer = Answer::default();
    while reader.bool()? {
        let (fileid, name, next) = (reader.u64()?, reader.opaque(MAX_NAME)?, reader.u64()?);
        // The rest is asked for again.
        if !answer.entry(fileid, next, name, limit) {
            break;
        }
    }
    Ok(answer)
}
