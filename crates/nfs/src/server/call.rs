//! From a call to its procedure and back.

use std::cell::RefCell;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;

use nix::sys::stat::FileStat;

use super::export::Export;
use super::handle::Opened;
use super::identity::{self, Acting};
use super::limits::Limit;
use super::room::Held;
use super::{RECORD_TIMEOUT, Server, file, listing, mount, name, sizes};
use crate::protocol::{self, Attributes, MAX_HANDLE, Time, procedure, status};
use crate::rpc::{self, Call, Refusal};
use crate::xdr::{Garbage, Reader, Writer};

/// Why a procedure failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The arguments are malformed.
    Garbage,
    /// An `nfsstat3`.
    Status(u32),
}

impl From<Garbage> for Fault {
    fn from(Garbage: Garbage) -> Self {
        Self::Garbage
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Status(protocol::status_of(error.raw_os_error().unwrap_or(libc::EIO)))
    }
}

impl From<nix::errno::Errno> for Fault {
    fn from(errno: nix::errno::Errno) -> Self {
        Self::Status(protocol::status_of(errno as i32))
    }
}

/// A call and who asks.
pub struct Asked<'a> {
    pub server: &'a Server,
    pub client: Peer,
    pub call: &'a Call,
    /// The room that the answer has taken.
    pub held: RefCell<Option<Held>>,
}

/// What is sent back.
pub struct Answer {
    pub message: Writer,
    /// Taken until it is sent.
    pub held: Option<Held>,
}

/// The other end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    pub address: IpAddr,
    /// A port below 1024 is root's.
    pub port: u16,
    /// It has the address that it called: it is this machine.
    pub is_here: bool,
}

impl From<IpAddr> for Peer {
    /// Somebody in particular, but nobody's root.
    fn from(address: IpAddr) -> Self {
        Self { address, port: u16::MAX, is_here: false }
    }
}

/// A file that a call names.
pub struct Named<'a> {
    pub export: &'a Export,
    /// What its size counts against; a folder's own limit is one that begins at it.
    pub limit: Option<Arc<Limit>>,
    /// `O_PATH`.
    pub fd: OwnedFd,
    pub stat: FileStat,
}

impl<'a> Asked<'a> {
    /// Reads a handle and opens its file.
    pub fn named(&self, arguments: &mut Reader<'_>) -> Result<Named<'a>, Fault> {
        let Opened { export, limit, file } = self.server.open_handle(arguments.opaque(MAX_HANDLE)?)?;
        if !export.admits(self.client.address) {
            return Err(Fault::Status(status::ACCES));
        }
        let stat = nix::sys::stat::fstat(file.as_raw_fd())?;
        // A handle of before the folder got its limit.
        let limit = limit.or_else(|| self.server.limits.at(&file, &stat));
        Ok(Named { export, limit, fd: file, stat })
    }

    /// Takes room for so many bytes of the answer; waits for it.
    pub fn take_room(&self, bytes: usize) -> Result<(), Fault> {
        *self.held.borrow_mut() = self.server.room.take(self.client.address, bytes, RECORD_TIMEOUT)?;
        Ok(())
    }

    /// Takes on the asking user's identity.
    pub fn act(&self, export: &Export) -> Result<Acting, Fault> {
        Ok(identity::act_as(&export.identity(self.call.credentials.as_ref()))?)
    }

    /// The same, to change something.
    pub fn act_to_change(&self, export: &Export) -> Result<Acting, Fault> {
        if export.read_only { Err(Fault::Status(status::ROFS)) } else { self.act(export) }
    }

    /// Whether the asking user owns a file: owners may read and write what they have open, whatever its mode is by now.
    pub fn owns(&self, named: &Named<'_>) -> bool {
        named.export.identity(self.call.credentials.as_ref()).uid == named.stat.st_uid
    }
}

impl Named<'_> {
    /// The path by which the very same file is opened again.
    pub fn path(&self) -> String {
        mainstay_runtime::safe_path::fd_path(&self.fd)
    }

    /// `fattr3` as it is now.
    pub fn attributes(&self) -> Result<Attributes, Fault> {
        Ok(attributes(&nix::sys::stat::fstat(self.fd.as_raw_fd())?))
    }

    /// `post_op_attr`.
    pub fn write_after(&self, reply: &mut Writer) {
        write_optional(reply, self.attributes().ok().as_ref());
    }

    /// `wcc_data`. Without the attributes of before: others may change a file between two looks at it.
    pub fn write_weak(&self, reply: &mut Writer) {
        reply.bool(false);
        self.write_after(reply);
    }
}

/// `post_op_attr`.
pub fn write_optional(reply: &mut Writer, attributes: Option<&Attributes>) {
    reply.bool(attributes.is_some());
    if let Some(attributes) = attributes {
        attributes.write(reply);
    }
}

/// `fattr3` of what the kernel says.
pub fn attributes(stat: &FileStat) -> Attributes {
    use protocol::kind;
    let kind = match stat.st_mode & libc::S_IFMT {
        libc::S_IFDIR => kind::DIRECTORY,
        libc::S_IFLNK => kind::LINK,
        libc::S_IFBLK => kind::BLOCK,
        libc::S_IFCHR => kind::CHARACTER,
        libc::S_IFSOCK => kind::SOCKET,
        libc::S_IFIFO => kind::FIFO,
        _ => kind::REGULAR,
    };
    let time = |seconds: i64, nanoseconds: i64| Time {
        seconds: u32::try_from(seconds.max(0)).unwrap_or(u32::MAX),
        nanoseconds: u32::try_from(nanoseconds).unwrap_or(0),
    };
    Attributes {
        kind,
        mode: stat.st_mode & 0o7777,
        links: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        used: u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512),
        device: (libc::major(stat.st_rdev), libc::minor(stat.st_rdev)),
        fsid: stat.st_dev,
        fileid: stat.st_ino,
        accessed: time(stat.st_atime, stat.st_atime_nsec),
        modified: time(stat.st_mtime, stat.st_mtime_nsec),
        changed: time(stat.st_ctime, stat.st_ctime_nsec),
    }
}

type Procedure = fn(&Asked<'_>, &mut Reader<'_>, &mut Writer) -> Result<(), Fault>;

/// The NFS procedures by number, each with the attributes (all absent) that its failure carries after the status.
const PROCEDURES: [(Procedure, usize); 22] = [
    (|_, _, _| Ok(()), 0),
    (file::getattr, 0),
    (file::setattr, 2),
    (name::lookup, 1),
    (file::access, 1),
    (file::readlink, 1),
    (file::read, 1),
    (file::write, 2),
    (name::create, 2),
    (name::mkdir, 2),
    (name::symlink, 2),
    (name::mknod, 2),
    (name::remove, 2),
    (name::rmdir, 2),
    (name::rename, 4),
    (name::link, 3),
    (listing::readdir, 1),
    (listing::readdirplus, 1),
    (file::fsstat, 1),
    (file::fsinfo, 1),
    (file::pathconf, 1),
    (file::commit, 2),
];

/// The reply to a record; `None` where it is no call at all.
pub fn answer(server: &Server, client: Peer, record: &[u8]) -> Option<Answer> {
    let mut arguments = Reader::new(record);
    let call = rpc::read_call(&mut arguments).ok()?;
    let asked = Asked { server, client, call: &call, held: RefCell::default() };
    let message = if call.rpc_version != 2 {
        rpc::refused(call.xid, Refusal::RpcMismatch)
    } else {
        match (call.program, call.version) {
            (protocol::NFS, protocol::V3) => nfs(&asked, &mut arguments),
            (protocol::NFS, _) => rpc::refused(call.xid, Refusal::ProgramMismatch(protocol::V3, protocol::V3)),
            (protocol::MOUNT, 1 | 3) => mount::mount(&asked, &mut arguments),
            (protocol::MOUNT, _) => rpc::refused(call.xid, Refusal::ProgramMismatch(1, 3)),
            (protocol::PORTMAP, _) => mount::portmap(&asked, &mut arguments),
            (protocol::SIZES, 1) => sizes::sizes(&asked, &mut arguments),
            _ => rpc::refused(call.xid, Refusal::ProgramUnavailable),
        }
    };
    Some(Answer { message, held: asked.held.into_inner() })
}

/// The reply to a datagram: only the port mapper is asked so.
pub fn answer_datagram(server: &Server, client: IpAddr, datagram: &[u8]) -> Option<Writer> {
    let mut arguments = Reader::new(datagram);
    let call = rpc::read_call(&mut arguments).ok().filter(|call| call.rpc_version == 2)?;
    let asked = Asked { server, client: client.into(), call: &call, held: RefCell::default() };
    Some(match call.program {
        protocol::PORTMAP => mount::portmap(&asked, &mut arguments),
        _ => rpc::refused(call.xid, Refusal::ProgramUnavailable),
    })
}

fn nfs(asked: &Asked<'_>, arguments: &mut Reader<'_>) -> Writer {
    let call = asked.call;
    let Some((procedure, absent)) = PROCEDURES.get(call.procedure as usize) else {
        return rpc::refused(call.xid, Refusal::ProcedureUnavailable);
    };
    let mut reply = rpc::accepted(call.xid);
    if call.procedure == procedure::NULL {
        return reply;
    }
    let begin = reply.0.len();
    reply.u32(status::OK);
    match procedure(asked, arguments, &mut reply) {
        Ok(()) => reply,
        Err(Fault::Garbage) => rpc::refused(call.xid, Refusal::GarbageArguments),
        Err(Fault::Status(status)) => {
            reply.0.truncate(begin);
            reply.u32(status);
            for _ in 0..*absent {
                reply.bool(false);
            }
            reply
        }
    }
}
