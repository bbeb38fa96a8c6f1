//! READDIR and READDIRPLUS. A cookie is the position that the file system itself gives an entry, so that listings go on
//! across changes of the folder and restarts of the server.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;

use mainstay_runtime::kernel;
use nix::sys::stat;

use super::call::{Asked, Fault, Named, write_optional};
use crate::protocol::{MAX_HANDLE, MAX_IO, status};
use crate::xdr::{Reader, Writer};

/// What the kernel is asked for at a time (bytes).
const BUFFER: usize = 32 << 10;
/// The reply's own words after the entries: the end of the list, and whether it is the folder's.
const TAIL: usize = 8;
/// `fattr3` and a handle, each with the word that says that it is there.
const PLUS: usize = 4 + 84 + 4 + 4 + MAX_HANDLE;

/// READDIR.
pub fn readdir(asked: &Asked<'_>, arguments: &mut Reader<'_>, reply: &mut Writer) -> Result<(), Fault> {
    let dir = asked.named(arguments)?;
    let (cookie, _verifier, count) = (arguments.u64()?, arguments.u64()?, arguments.u32()?);
    list(asked, &dir, cookie, count, false, reply)
}

/// READDIRPLUS.
pub fn readdirplus(asked: &Asked<'_>, arguments: &mut Reader<'_>, reply: &mut Writer) -> Result<(), Fault> {
    let dir = asked.named(arguments)?;
    let (cookie, _verifier) = (arguments.u64()?, arguments.u64()?);
    let (_names_only, count) = (arguments.u32()?, arguments.u32()?);
    list(asked, &dir, cookie, count, true, reply)
}

fn list(
    asked: &Asked<'_>,
    dir: &Named<'_>,
    cookie: u64,
    count: u32,
    plus: bool,
    reply: &mut Writer,
) -> Result<(), Fault> {
    dir.must_be_dir()?;
    asked.take_room(count.min(MAX_IO) as usize)?;
    let position = i64::try_from(cookie).map_err(|_| Fault::Status(status::BAD_COOKIE))?;
    let _acting = asked.act(dir.export)?;
    let file = File::options().read(true).custom_flags(libc::O_DIRECTORY).open(dir.path())?;
    nix::unistd::lseek(file.as_raw_fd(), position, nix::unistd::Whence::SeekSet)
        .map_err(|_| Fault::Status(status::BAD_COOKIE))?;
    dir.write_after(reply);
    reply.u64(0);
    let limit = count.min(MAX_IO) as usize;
    let begin = reply.0.len();
    let room = limit.saturating_sub(TAIL + 100);
    let mut buffer = vec![0; BUFFER];
    let mut any = false;
    loop {
        let length = kernel::read_entries(&file, &mut buffer)?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        if rest.is_empty() {
            reply.bool(false).bool(true);
            return Ok(());
        }
        while let Some((entry, after)) = Entry::split(rest) {
            rest = after;
            let size = 4 + 8 + 4 + entry.name.len().next_multiple_of(4) + 8 + if plus { PLUS } else { 0 };
            if reply.0.len() - begin + size > room {
                if !any {
                    return Err(Fault::Status(status::TOOSMALL));
                }
                reply.bool(false).bool(false);
                return Ok(());
            }
            any = true;
            write_entry(asked, dir, &entry, plus, reply);
        }
    }
}

fn write_entry(asked: &Asked<'_>, dir: &Named<'_>, entry: &Entry<'_>, plus: bool, reply: &mut Writer) {
    let name = OsStr::from_bytes(entry.name);
    // What is above the export is nobody's business.
    let looked_up = if plus || entry.name == b".." { dir.child(name).ok() } else { None };
    let stat = looked_up.as_ref().and_then(|fd| stat::fstat(fd.as_raw_fd()).ok());
    let fileid = stat.filter(|_| entry.name == b"..").map_or(entry.inode, |stat| stat.st_ino);
    reply.bool(true).u64(fileid).opaque(entry.name).u64(entry.next);
    if plus {
        write_optional(reply, stat.as_ref().map(super::call::attributes).as_ref());
        let there = looked_up.as_ref().zip(stat.as_ref());
        let limit = there.and_then(|(fd, stat)| dir.limit_of(asked.server, name, fd, stat));
        match looked_up.and_then(|fd| asked.server.handle_of(dir.export, limit.as_deref(), &fd).ok()) {
            Some(handle) => reply.bool(true).opaque(&handle),
            None => reply.bool(false),
        };
    }
}

/// `struct linux_dirent64`: inode (8), position of the next (8), length of the record (2), type (1), name with a zero.
struct Entry<'a> {
    inode: u64,
    next: u64,
    name: &'a [u8],
}

impl<'a> Entry<'a> {
    fn split(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (inode, after) = bytes.split_first_chunk::<8>()?;
        let (next, after) = after.split_first_chunk::<8>()?;
        let length = u16::from_ne_bytes(*after.first_chunk()?);
        let (record, rest) = bytes.split_at_checked(length.into())?;
        let name = record.get(19..)?.split(|byte| *byte == 0).next()?;
        Some((Self { inode: u64::from_ne_bytes(*inode), next: u64::from_ne_bytes(*next), name }, rest))
    }
}
