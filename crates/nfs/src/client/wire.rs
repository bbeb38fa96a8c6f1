//! What goes over `/dev/fuse` (the kernel's `fuse.h`, version 7.31): native words, no padding but what is named here.

use super::super::protocol::{Attributes, kind};

/// Operations.
pub mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const ACCESS: u32 = 34;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const RENAME2: u32 = 45;
}

/// The bytes of a request's header.
pub const HEADER: usize = 40;

/// A request from the kernel.
#[derive(Clone, Debug)]
pub struct Request {
    pub operation: u32,
    pub unique: u64,
    pub node: u64,
    pub uid: u32,
    pub gid: u32,
    /// The asking thread; 0 for the kernel itself.
    pub pid: u32,
    pub body: Vec<u8>,
}

impl Request {
    /// From what was read from the device.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut header = Words(bytes);
        let (_length, operation, unique, node) = (header.u32()?, header.u32()?, header.u64()?, header.u64()?);
        let (uid, gid, pid, _extensions) = (header.u32()?, header.u32()?, header.u32()?, header.u32()?);
        Some(Self { operation, unique, node, uid, gid, pid, body: header.0.to_vec() })
    }
}

/// Reads a request's body.
pub struct Words<'a>(pub &'a [u8]);

impl<'a> Words<'a> {
    pub fn u32(&mut self) -> Option<u32> {
        let (word, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_ne_bytes(*word))
    }

    pub fn u64(&mut self) -> Option<u64> {
        let (word, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_ne_bytes(*word))
    }

    pub fn skip(&mut self, bytes: usize) -> Option<()> {
        self.0 = self.0.get(bytes..)?;
        Some(())
    }

    /// A name that ends with a zero.
    pub fn name(&mut self) -> Option<&'a [u8]> {
        let end = self.0.iter().position(|byte| *byte == 0)?;
        let (name, rest) = self.0.split_at_checked(end)?;
        self.0 = rest.get(1..)?;
        Some(name)
    }
}

/// Writes an answer's body.
#[derive(Default)]
pub struct Answer {
    bytes: Vec<u8>,
    /// The body begins after so many of them.
    begin: usize,
}

impl From<Vec<u8>> for Answer {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, begin: 0 }
    }
}

impl Answer {
    /// What stands in a longer message, which is not copied.
    pub fn within(mut bytes: Vec<u8>, range: std::ops::Range<usize>) -> Self {
        bytes.truncate(range.end);
        Self { bytes, begin: range.start }
    }

    /// The body.
    pub fn body(&self) -> &[u8] {
        self.bytes.get(self.begin..).unwrap_or_default()
    }

    /// Bytes as they are.
    #[cfg(any(test, fuzzing, feature = "fuzzing"))]
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Fills the body up with zeros.
    pub fn pad(&mut self, length: usize) {
        self.bytes.resize(length, 0);
    }

    pub fn u16(&mut self, word: u16) -> &mut Self {
        self.bytes.extend_from_slice(&word.to_ne_bytes());
        self
    }

    pub fn u32(&mut self, word: u32) -> &mut Self {
        self.bytes.extend_from_slice(&word.to_ne_bytes());
        self
    }

    pub fn u64(&mut self, word: u64) -> &mut Self {
        self.bytes.extend_from_slice(&word.to_ne_bytes());
        self
    }

    /// `struct fuse_attr`.
    pub fn attributes(&mut self, attributes: &Attributes) -> &mut Self {
        let times = [attributes.accessed, attributes.modified, attributes.changed];
        self.u64(attributes.fileid).u64(attributes.size).u64(attributes.used.div_ceil(512));
        times.iter().for_each(|time| {
            self.u64(time.seconds.into());
        });
        times.iter().for_each(|time| {
            self.u32(time.nanoseconds);
        });
        let device = libc::makedev(attributes.device.0, attributes.device.1);
        self.u32(file_type(attributes.kind) | attributes.mode & 0o7777)
            .u32(attributes.links)
            .u32(attributes.uid)
            .u32(attributes.gid);
        self.u32(u32::try_from(device).unwrap_or(0)).u32(1 << 20).u32(0)
    }

    /// `struct fuse_direntry`; `false` where it does not fit into `limit` bytes.
    pub fn entry(&mut self, fileid: u64, next: u64, name: &[u8], limit: usize) -> bool {
        if self.bytes.len() + (24 + name.len()).next_multiple_of(8) > limit {
            return false;
        }
        self.u64(fileid).u64(next).u32(name.len() as u32).u32(0);
        self.bytes.extend_from_slice(name);
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        true
    }
}

/// The kind of file as a mode has it.
fn file_type(of: u32) -> u32 {
    match of {
        kind::DIRECTORY => libc::S_IFDIR,
        kind::LINK => libc::S_IFLNK,
        kind::BLOCK => libc::S_IFBLK,
        kind::CHARACTER => libc::S_IFCHR,
        kind::SOCKET => libc::S_IFSOCK,
        kind::FIFO => libc::S_IFIFO,
        _ => libc::S_IFREG,
    }
}
