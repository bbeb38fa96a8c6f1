//! The numbers and structures of NFSv3 (RFC 1813), MOUNT v3 and the port mapper v2 (RFC 1833).

use super::xdr::{Garbage, Reader, Writer};

/// Programs.
pub const PORTMAP: u32 = 100_000;
pub const NFS: u32 = 100_003;
pub const MOUNT: u32 = 100_005;
/// Mainstay's own program, by which a provisioner gives folders a size.
pub const SIZES: u32 = 0x2d4e_4653;
/// The version of NFS and MOUNT.
pub const V3: u32 = 3;
/// The version of the port mapper.
pub const PORTMAP_VERSION: u32 = 2;
/// Where a port mapper and an NFS server are, by custom.
pub const PORTMAP_PORT: u16 = 111;
pub const NFS_PORT: u16 = 2049;
/// The most bytes in one READ or WRITE.
pub const MAX_IO: u32 = 1 << 20;
/// The longest file handle, name and path.
pub const MAX_HANDLE: usize = 64;
pub const MAX_NAME: usize = 255;
pub const MAX_PATH: usize = 4096;

/// NFS procedures.
pub mod procedure {
    pub const NULL: u32 = 0;
    pub const GETATTR: u32 = 1;
    pub const SETATTR: u32 = 2;
    pub const LOOKUP: u32 = 3;
    pub const ACCESS: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const READ: u32 = 6;
    pub const WRITE: u32 = 7;
    pub const CREATE: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const SYMLINK: u32 = 10;
    pub const MKNOD: u32 = 11;
    pub const REMOVE: u32 = 12;
    pub const RMDIR: u32 = 13;
    pub const RENAME: u32 = 14;
    pub const LINK: u32 = 15;
    pub const READDIR: u32 = 16;
    pub const READDIRPLUS: u32 = 17;
    pub const FSSTAT: u32 = 18;
    pub const FSINFO: u32 = 19;
    pub const PATHCONF: u32 = 20;
    pub const COMMIT: u32 = 21;
}

/// Procedures of [`SIZES`], version 1. Arguments are a folder's handle and, for SET, a size in bytes; results are an
/// `nfsstat3` and, for GET, the size and what is used of it.
pub mod sizes {
    pub const NULL: u32 = 0;
    pub const SET: u32 = 1;
    pub const GET: u32 = 2;
}

/// `nfsstat3`, where it is not the errno's own number.
pub mod status {
    pub const OK: u32 = 0;
    pub const PERM: u32 = 1;
    pub const NOENT: u32 = 2;
    pub const IO: u32 = 5;
    pub const ACCES: u32 = 13;
    pub const EXIST: u32 = 17;
    pub const XDEV: u32 = 18;
    pub const NOTDIR: u32 = 20;
    pub const ISDIR: u32 = 21;
    pub const INVAL: u32 = 22;
    pub const FBIG: u32 = 27;
    pub const NOSPC: u32 = 28;
    pub const ROFS: u32 = 30;
    pub const NAMETOOLONG: u32 = 63;
    pub const NOTEMPTY: u32 = 66;
    pub const DQUOT: u32 = 69;
    pub const STALE: u32 = 70;
    pub const BADHANDLE: u32 = 10_001;
    pub const NOT_SYNC: u32 = 10_002;
    pub const BAD_COOKIE: u32 = 10_003;
    pub const NOTSUPP: u32 = 10_004;
    pub const TOOSMALL: u32 = 10_005;
    pub const BADTYPE: u32 = 10_007;
    pub const JUKEBOX: u32 = 10_008;
}

/// `nfsstat3` of an errno.
pub fn status_of(errno: i32) -> u32 {
    match errno {
        libc::EPERM
        | libc::ENOENT
        | libc::EIO
        | libc::ENXIO
        | libc::EACCES
        | libc::EEXIST
        | libc::EXDEV
        | libc::ENODEV => errno.unsigned_abs(),
        libc::ENOTDIR | libc::EISDIR | libc::EINVAL | libc::EFBIG | libc::ENOSPC | libc::EROFS | libc::EMLINK => {
            errno.unsigned_abs()
        }
        // What openat2 says of a link or a mount in the way.
        libc::ELOOP => status::ACCES,
        libc::ENAMETOOLONG => status::NAMETOOLONG,
        libc::ENOTEMPTY => status::NOTEMPTY,
        libc::EDQUOT => status::DQUOT,
        libc::ESTALE => status::STALE,
        libc::EOPNOTSUPP | libc::ENOSYS => status::NOTSUPP,
        libc::ENOMEM | libc::EMFILE | libc::ENFILE | libc::EAGAIN | libc::EBUSY => status::JUKEBOX,
        _ => status::IO,
    }
}

/// The errno of an `nfsstat3`.
pub fn errno_of(status: u32) -> i32 {
    match status {
        status::NAMETOOLONG => libc::ENAMETOOLONG,
        status::NOTEMPTY => libc::ENOTEMPTY,
        status::DQUOT => libc::EDQUOT,
        status::STALE | status::BADHANDLE => libc::ESTALE,
        status::NOTSUPP => libc::EOPNOTSUPP,
        status::BADTYPE | status::BAD_COOKIE | status::TOOSMALL => libc::EINVAL,
        1..=31 => i32::try_from(status).unwrap_or(libc::EIO),
        _ => libc::EIO,
    }
}

/// Seconds and nanoseconds since 1970, as the protocol has them: unsigned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time {
    pub seconds: u32,
    pub nanoseconds: u32,
}

impl Time {
    /// From the wire.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, Garbage> {
        Ok(Self { seconds: reader.u32()?, nanoseconds: reader.u32()? })
    }

    /// To the wire.
    pub fn write(self, writer: &mut Writer) {
        writer.u32(self.seconds).u32(self.nanoseconds);
    }
}

/// Kinds of files.
pub mod kind {
    pub const REGULAR: u32 = 1;
    pub const DIRECTORY: u32 = 2;
    pub const BLOCK: u32 = 3;
    pub const CHARACTER: u32 = 4;
    pub const LINK: u32 = 5;
    pub const SOCKET: u32 = 6;
    pub const FIFO: u32 = 7;
}

/// `fattr3`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// See [`kind`].
    pub kind: u32,
    /// Permission bits.
    pub mode: u32,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    /// Bytes on disk.
    pub used: u64,
    pub device: (u32, u32),
    pub fsid: u64,
    pub fileid: u64,
    pub accessed: Time,
    pub modified: Time,
    pub changed: Time,
}

impl Attributes {
    /// From the wire.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, Garbage> {
        Ok(Self {
            kind: reader.u32()?,
            mode: reader.u32()?,
            links: reader.u32()?,
            uid: reader.u32()?,
            gid: reader.u32()?,
            size: reader.u64()?,
            used: reader.u64()?,
            device: (reader.u32()?, reader.u32()?),
            fsid: reader.u64()?,
            fileid: reader.u64()?,
            accessed: Time::read(reader)?,
            modified: Time::read(reader)?,
            changed: Time::read(reader)?,
        })
    }

    /// `post_op_attr` from the wire.
    pub fn read_optional(reader: &mut Reader<'_>) -> Result<Option<Self>, Garbage> {
        if reader.bool()? { Self::read(reader).map(Some) } else { Ok(None) }
    }

    /// Skips `wcc_data` but for the attributes after.
    pub fn read_weak(reader: &mut Reader<'_>) -> Result<Option<Self>, Garbage> {
        if reader.bool()? {
            reader.take(24)?;
        }
        Self::read_optional(reader)
    }

    /// To the wire.
    pub fn write(&self, writer: &mut Writer) {
        writer.u32(self.kind).u32(self.mode).u32(self.links).u32(self.uid).u32(self.gid);
        writer.u64(self.size).u64(self.used).u32(self.device.0).u32(self.device.1).u64(self.fsid).u64(self.fileid);
        for time in [self.accessed, self.modified, self.changed] {
            time.write(writer);
        }
    }
}

/// `sattr3`'s way to set a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SetTime {
    #[default]
    Keep,
    /// The server's clock.
    Now,
    To(Time),
}

/// `sattr3`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetAttributes {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub accessed: SetTime,
    pub modified: SetTime,
}

impl SetAttributes {
    /// From the wire.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, Garbage> {
        let word = |reader: &mut Reader<'_>| if reader.bool()? { reader.u32().map(Some) } else { Ok(None) };
        let time = |reader: &mut Reader<'_>| match reader.u32()? {
            0 => Ok(SetTime::Keep),
            1 => Ok(SetTime::Now),
            2 => Time::read(reader).map(SetTime::To),
            _ => Err(Garbage),
        };
        let (mode, uid, gid) = (word(reader)?, word(reader)?, word(reader)?);
        let size = if reader.bool()? { Some(reader.u64()?) } else { None };
        Ok(Self { mode, uid, gid, size, accessed: time(reader)?, modified: time(reader)? })
    }

    /// To the wire.
    pub fn write(&self, writer: &mut Writer) {
        for word in [self.mode, self.uid, self.gid] {
            writer.bool(word.is_some());
            word.map(|word| writer.u32(word));
        }
        writer.bool(self.size.is_some());
        self.size.map(|size| writer.u64(size));
        for time in [self.accessed, self.modified] {
            match time {
                SetTime::Keep => {
                    writer.u32(0);
                }
                SetTime::Now => {
                    writer.u32(1);
                }
                SetTime::To(time) => {
                    writer.u32(2);
                    time.write(writer);
                }
            }
        }
    }
}
