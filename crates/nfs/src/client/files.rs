//! One request of the kernel, carried out by calls to the server.
//!
//! Close-to-open: names are looked up anew each time and opening asks for the attributes; the kernel drops what it has
//! cached of a file whose times have changed. A close (like fsync) returns when the server has the data on its disk.
//! Locks are this machine's only: NFSv3 would need a lock daemon on both ends.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::super::protocol::{Attributes, MAX_HANDLE, MAX_NAME, MAX_PATH, SetAttributes, SetTime, Time, procedure};
use super::super::rpc::Credentials;
use super::super::xdr::Writer;
use super::nodes::{Nodes, Open};
use super::remote::{Calls, Errno, LOST, Remote, found};
use super::wire::{Answer, Request, Words, op};

/// How long the kernel may keep attributes (seconds). A look-up or an opening brings new ones at any time.
const ATTRIBUTES_VALID: u64 = 1;
/// `FOPEN_KEEP_CACHE`: the kernel itself drops what it cached when the times have changed (FUSE_AUTO_INVAL_DATA).
const KEEP_CACHE: u32 = 2;
/// The bytes of `struct fuse_entry_out`.
const ENTRY: usize = 128;
/// A mounted export.
pub struct Files<R = Remote> {
    pub remote: R,
    nodes: Mutex<Nodes>,
}

pub type Done = Result<Answer, Errno>;

impl<R: Calls> Files<R> {
    pub fn new(remote: R, root: Vec<u8>) -> Self {
        Self { remote, nodes: Mutex::new(Nodes::new(root)) }
    }

    pub(super) fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn handle(&self, node: u64) -> Result<Vec<u8>, Errno> {
        self.nodes().get(node).map(|node| node.handle.clone()).ok_or(libc::ESTALE)
    }

    /// Forgets without an answer: FORGET and BATCH_FORGET.
    pub fn forget(&self, request: &Request) {
        let mut body = Words(&request.body);
        let mut nodes = self.nodes();
        if request.operation == op::FORGET {
            nodes.forget(request.node, body.u64().unwrap_or(0));
            return;
        }
        let _count = body.u64();
        while let (Some(node), Some(times)) = (body.u64(), body.u64()) {
            nodes.forget(node, times);
        }
    }

    /// Carries out a request.
    pub fn execute(&self, request: &Request) -> Done {
        // A call of which it is not known what became of it.
        self.attempt(request).map_err(|errno| if errno == LOST { libc::EIO } else { errno })
    }

    fn attempt(&self, request: &Request) -> Done {
        let who = || Credentials { uid: request.uid, gid: request.gid, groups: groups(request.pid) };
        let body = &mut Words(&request.body);
        let cut = || libc::EINVAL;
        match request.operation {
            op::LOOKUP => self.lookup(request.node, body.name().ok_or_else(cut)?, &who()),
            op::GETATTR => self.getattr(request.node, &who()),
            op::SETATTR => self.setattr(request.node, body, who()),
            op::READLINK => self.readlink(request.node, &who()),
            op::SYMLINK => {
                let (name, target) = (body.name().ok_or_else(cut)?, body.name().ok_or_else(cut)?);
                self.make(procedure::SYMLINK, request.node, name, &who(), |arguments| {
                    SetAttributes::default().write(arguments);
                    arguments.opaque(target);
                })
            }
            op::MKNOD => self.mknod(request.node, body, &who()),
            op::MKDIR => {
                let mode = body.u32().ok_or_else(cut)? & !body.u32().ok_or_else(cut)?;
                let wanted = SetAttributes { mode: Some(mode & 0o7777), ..SetAttributes::default() };
                self.make(procedure::MKDIR, request.node, body.name().ok_or_else(cut)?, &who(), |arguments| {
                    wanted.write(arguments)
                })
            }
            op::UNLINK => self.unlink(request.node, body.name().ok_or_else(cut)?, &who()),
            op::RMDIR => {
                self.remove(procedure::RMDIR, &self.handle(request.node)?, body.name().ok_or_else(cut)?, &who())
            }
            op::RENAME | op::RENAME2 => self.rename(request, body, &who()),
            op::LINK => self.link(request.node, body, &who()),
            op::OPEN | op::OPENDIR => self.open(request, body, who()),
            op::CREATE => self.create(request.node, body, who()),
            op::READ => self.read(body),
            op::WRITE => self.write(body),
            op::FLUSH | op::FSYNC | op::FSYNCDIR => self.commit(request.node, &who()),
            op::RELEASE | op::RELEASEDIR => self.release(body),
            op::READDIR => self.readdir(body),
            op::STATFS => self.statfs(request.node, &who()),
            op::ACCESS => self.access(request.node, body.u32().ok_or_else(cut)?, &who()),
            _ => Err(libc::ENOSYS),
        }
    }

    /// Takes back what an answer has told that nobody took: the process was killed meanwhile (X4). What it opened is
    /// closed, what it found is forgotten.
    pub fn undo(&self, request: &Request, answer: &Answer) {
        let opened = match request.operation {
            op::OPEN | op::OPENDIR => Words(answer.body()).u64(),
            op::CREATE => answer.body().get(ENTRY..).and_then(|rest| Words(rest).u64()),
            _ => None,
        };
        if let Some(opened) = opened {
            // What was to be removed when it is closed, and is not, has no name that anybody looks for.
            let _ = self.close(opened);
        }
        if matches!(request.operation, op::LOOKUP | op::MKNOD | op::MKDIR | op::SYMLINK | op::LINK | op::CREATE)
            && let Some(node) = Words(answer.body()).u64()
        {
            self.nodes().forget(node, 1);
        }
    }

    /// `struct fuse_entry_out` of a file that the kernel is told of.
    fn entry(&self, handle: &[u8], attributes: &Attributes) -> Answer {
        let number = self.nodes().found(handle.to_vec());
        let mut answer = Answer::default();
        // A name is looked up anew each time (valid for 0 seconds); that brings fresh attributes too.
        answer.u64(number).u64(0).u64(0).u64(ATTRIBUTES_VALID).u32(0).u32(0).attributes(attributes);
        answer
    }

    fn lookup(&self, node: u64, name: &[u8], who: &Credentials) -> Done {
        let (handle, attributes) = self.find(&self.handle(node)?, name, who)?;
        Ok(self.entry(&handle, &attributes))
    }

    pub(super) fn find(&self, dir: &[u8], name: &[u8], who: &Credentials) -> Result<(Vec<u8>, Attributes), Errno> {
        let reply = self.remote.call(procedure::LOOKUP, who, |arguments| {
            arguments.opaque(dir).opaque(name);
        })?;
        let (handle, attributes) =
            reply.read(|reader| Ok((reader.opaque(MAX_HANDLE)?.to_vec(), Attributes::read_optional(reader)?)))?;
        let attributes = found(&self.remote, who, &handle, attributes)?;
        Ok((handle, attributes))
    }

    fn getattr(&self, node: u64, who: &Credentials) -> Done {
        let attributes = found(&self.remote, who, &self.handle(node)?, None)?;
        let mut answer = Answer::default();
        answer.u64(ATTRIBUTES_VALID).u64(0).attributes(&attributes);
        Ok(answer)
    }

    fn setattr(&self, node: u64, body: &mut Words<'_>, mut who: Credentials) -> Done {
        let mut word = || body.u32().ok_or(libc::EINVAL);
        let (valid, _) = (word()?, word()?);
        let mut long = || body.u64().ok_or(libc::EINVAL);
        let (open, size, _owner, atime, mtime, _ctime) = (long()?, long()?, long()?, long()?, long()?, long()?);
        let mut word = || body.u32().ok_or(libc::EINVAL);
        let (atimensec, mtimensec, _, mode, _, uid, gid) =
            (word()?, word()?, word()?, word()?, word()?, word()?, word()?);
        let has = |bit: u32| valid & (1 << bit) != 0;
        let time = |set: bool, now: bool, seconds: u64, nanoseconds: u32| match (set, now) {
            (_, true) => SetTime::Now,
            (true, _) => SetTime::To(Time { seconds: u32::try_from(seconds).unwrap_or(u32::MAX), nanoseconds }),
            _ => SetTime::Keep,
        };
        let wanted = SetAttributes {
            mode: has(0).then_some(mode & 0o7777),
            uid: has(1).then_some(uid),
            gid: has(2).then_some(gid),
            size: has(3).then_some(size),
            accessed: time(has(4), has(7), atime, atimensec),
            modified: time(has(5), has(8), mtime, mtimensec),
        };
        // ftruncate is who opened the file's to do.
        if let Some(opened) = self.nodes().opened(open).filter(|_| has(6)) {
            who = opened.who.clone();
        }
        let handle = self.handle(node)?;
        if wanted.size.is_some() {
            // What was written before must not be written again after.
            self.commit(node, &who)?;
        }
        let reply = self.remote.call(procedure::SETATTR, &who, |arguments| {
            arguments.opaque(&handle);
            wanted.write(arguments);
            arguments.bool(false);
        })?;
        let attributes = found(&self.remote, &who, &handle, reply.read(Attributes::read_weak)?)?;
        let mut answer = Answer::default();
        answer.u64(ATTRIBUTES_VALID).u64(0).attributes(&attributes);
        Ok(answer)
    }

    fn readlink(&self, node: u64, who: &Credentials) -> Done {
        let handle = self.handle(node)?;
        let reply = self.remote.call(procedure::READLINK, who, |arguments| {
            arguments.opaque(&handle);
        })?;
        reply.read(|reader| {
            Attributes::read_optional(reader)?;
            Ok(reader.opaque(MAX_PATH)?.to_vec().into())
        })
    }

    /// CREATE, MKDIR, SYMLINK, MKNOD: handle and attributes of what was made.
    fn made(
        &self,
        number: u32,
        node: u64,
        name: &[u8],
        who: &Credentials,
        arguments: impl Fn(&mut Writer),
    ) -> Result<(Vec<u8>, Attributes), Errno> {
        let dir = self.handle(node)?;
        let make = || {
            self.remote.call(number, who, |call| {
                call.opaque(&dir).opaque(name);
                arguments(call);
            })
        };
        // What was not made is asked for again; what is there may be another's.
        let is_there = || self.is_there(&dir, name, who).map_or(true, |there| there.is_some()).then_some(Err(LOST));
        let reply = settled(make, is_there)?;
        let (handle, attributes) = reply.read(|reader| {
            let handle = if reader.bool()? { Some(reader.opaque(MAX_HANDLE)?.to_vec()) } else { None };
            Ok((handle, Attributes::read_optional(reader)?))
        })?;
        match handle {
            Some(handle) => {
                let attributes = found(&self.remote, who, &handle, attributes)?;
                Ok((handle, attributes))
            }
            None => self.find(&dir, name, who),
        }
    }

    fn make(&self, number: u32, node: u64, name: &[u8], who: &Credentials, arguments: impl Fn(&mut Writer)) -> Done {
        let (handle, attributes) = self.made(number, node, name, who, arguments)?;
        Ok(self.entry(&handle, &attributes))
    }

    fn mknod(&self, node: u64, body: &mut Words<'_>, who: &Credentials) -> Done {
        use super::super::protocol::kind;
        let mut word = || body.u32().ok_or(libc::EINVAL);
        let (mode, device, umask, _) = (word()?, word()?, word()?, word()?);
        let name = body.name().ok_or(libc::EINVAL)?;
        let wanted = SetAttributes { mode: Some(mode & !umask & 0o7777), ..SetAttributes::default() };
        let what = match mode & libc::S_IFMT {
            libc::S_IFIFO => kind::FIFO,
            libc::S_IFSOCK => kind::SOCKET,
            libc::S_IFCHR => kind::CHARACTER,
            libc::S_IFBLK => kind::BLOCK,
            _ => return self.make(procedure::CREATE, node, name, who, |arguments| wanted.write(arguments.u32(1))),
        };
        self.make(procedure::MKNOD, node, name, who, |arguments| {
            wanted.write(arguments.u32(what));
            if matches!(what, kind::CHARACTER | kind::BLOCK) {
                arguments.u32(libc::major(device.into())).u32(libc::minor(device.into()));
            }
        })
    }

    pub(super) fn remove(&self, number: u32, dir: &[u8], name: &[u8], who: &Credentials) -> Done {
        let arguments = |arguments: &mut Writer| {
            arguments.opaque(dir).opaque(name);
        };
        let remove = || self.remote.call(number, who, arguments).map(drop);
        let is_gone = || match self.is_there(dir, name, who) {
            Ok(Some(_)) => None,
            Ok(None) => Some(Ok(())),
            Err(_) => Some(Err(LOST)),
        };
        settled(remove, is_gone).map(|()| Answer::default())
    }

    /// A file that is open here must stay readable: it is renamed instead, and removed when it is closed.
    fn unlink(&self, node: u64, name: &[u8], who: &Credentials) -> Done {
        let dir = self.handle(node)?;
        let there = self.is_there(&dir, name, who)?;
        match self.put_aside(&dir, name, there, who)? {
            Some(aside) => self.is_removed(aside).map(|()| Answer::default()),
            None => self.remove(procedure::REMOVE, &dir, name, who),
        }
    }

    fn link(&self, node: u64, body: &mut Words<'_>, who: &Credentials) -> Done {
        let file = self.handle(body.u64().ok_or(libc::EINVAL)?)?;
        let (dir, name) = (self.handle(node)?, body.name().ok_or(libc::EINVAL)?);
        let link = || {
            let linked = self.remote.call(procedure::LINK, who, |arguments| {
                arguments.opaque(&file).opaque(&dir).opaque(name);
            });
            linked.map(drop)
        };
        let is_linked = || match self.is_there(&dir, name, who) {
            Ok(there) => there.map(|(there, _)| if there == file { Ok(()) } else { Err(libc::EEXIST) }),
            Err(_) => Some(Err(LOST)),
        };
        settled(link, is_linked)?;
        let attributes = found(&self.remote, who, &file, None)?;
        Ok(self.entry(&file, &attributes))
    }

    fn open(&self, request: &Request, body: &mut Words<'_>, who: Credentials) -> Done {
        let flags = i32::from_ne_bytes(body.u32().ok_or(libc::EINVAL)?.to_ne_bytes());
        let mask = match flags & libc::O_ACCMODE {
            libc::O_RDONLY => libc::R_OK,
            libc::O_WRONLY => libc::W_OK,
            _ => libc::R_OK | libc::W_OK,
        };
        // Refused here rather than at the first read; a program that may only be executed is read all the same.
        match self.access(request.node, mask.unsigned_abs(), &who) {
            Err(libc::EACCES) if mask == libc::R_OK => self.access(request.node, libc::X_OK.unsigned_abs(), &who)?,
            access => access?,
        };
        let mut answer = Answer::default();
        answer
            .u64(self.nodes().open(request.node, who))
            .u32(if request.operation == op::OPEN { KEEP_CACHE } else { 0 })
            .u32(0);
        Ok(answer)
    }

    fn create(&self, node: u64, body: &mut Words<'_>, who: Credentials) -> Done {
        let mut word = || body.u32().ok_or(libc::EINVAL);
        let (flags, mode, umask, _) = (word()?, word()?, word()?, word()?);
        let name = body.name().ok_or(libc::EINVAL)?;
        let guarded = flags & libc::O_EXCL.unsigned_abs() != 0;
        let wanted = SetAttributes { mode: Some(mode & !umask & 0o7777), ..SetAttributes::default() };
        let arguments = |arguments: &mut Writer| wanted.write(arguments.u32(guarded.into()));
        let (handle, attributes) = self.made(procedure::CREATE, node, name, &who, arguments)?;
        let mut answer = self.entry(&handle, &attributes);
        let mut nodes = self.nodes();
        let number = nodes.found(handle);
        nodes.forget(number, 1);
        answer.u64(nodes.open(number, who)).u32(KEEP_CACHE).u32(0);
        Ok(answer)
    }

    pub(super) fn opened(&self, body: &mut Words<'_>) -> Result<(std::sync::Arc<Open>, Vec<u8>), Errno> {
        let opened = self.nodes().opened(body.u64().ok_or(libc::EINVAL)?).ok_or(libc::EBADF)?;
        let handle = self.handle(opened.node)?;
        Ok((opened, handle))
    }

    fn release(&self, body: &mut Words<'_>) -> Done {
        self.close(body.u64().ok_or(libc::EINVAL)?)
    }

    fn close(&self, open: u64) -> Done {
        let hidden = self.nodes().close(open);
        match hidden {
            Some(hidden) => self.remove(procedure::REMOVE, &hidden.dir, &hidden.name, &hidden.who),
            None => Ok(Answer::default()),
        }
    }

    fn statfs(&self, node: u64, who: &Credentials) -> Done {
        const UNIT: u64 = 4096;
        let handle = self.handle(node)?;
        let reply = self.remote.call(procedure::FSSTAT, who, |arguments| {
            arguments.opaque(&handle);
        })?;
        reply.read(|reader| {
            Attributes::read_optional(reader)?;
            let (total, free, available) = (reader.u64()?, reader.u64()?, reader.u64()?);
            let (files, files_free) = (reader.u64()?, reader.u64()?);
            let mut answer = Answer::default();
            answer.u64(total / UNIT).u64(free / UNIT).u64(available / UNIT).u64(files).u64(files_free);
            answer.u32(UNIT as u32).u32(MAX_NAME as u32).u32(UNIT as u32).u32(0);
            answer.pad(80);
            Ok(answer)
        })
    }

    fn access(&self, node: u64, mask: u32, who: &Credentials) -> Done {
        const READ: u32 = 1;
        const LOOKUP_OR_EXECUTE: u32 = 2 | 32;
        const MODIFY: u32 = 4;
        let asked = |mode: libc::c_int| mask & mode.unsigned_abs() != 0;
        let handle = self.handle(node)?;
        let reply = self.remote.call(procedure::ACCESS, who, |arguments| {
            arguments.opaque(&handle).u32(READ | LOOKUP_OR_EXECUTE | MODIFY);
        })?;
        let granted = reply.read(|reader| {
            Attributes::read_optional(reader)?;
            reader.u32()
        })?;
        let needed = [(libc::R_OK, READ), (libc::W_OK, MODIFY), (libc::X_OK, LOOKUP_OR_EXECUTE)];
        let refused = needed.into_iter().any(|(mode, bits)| asked(mode) && granted & bits == 0);
        if refused { Err(libc::EACCES) } else { Ok(Answer::default()) }
    }
}

/// Makes a call that must not be carried out twice. Where its answer was lost, `look` says what became of it; `None` is
/// that it was not carried out, and it is sent again.
pub(super) fn settled<T>(
    call: impl Fn() -> Result<T, Errno>,
    look: impl Fn() -> Option<Result<T, Errno>>,
) -> Result<T, Errno> {
    const TIMES: usize = 3;
    for _ in 0..TIMES {
        match call() {
            Err(LOST) => {
                if let Some(known) = look() {
                    return known;
                }
            }
            done => return done,
        }
    }
    Err(LOST)
}

/// A thread's supplementary groups, among them the pod's fsGroup; FUSE does not tell them.
fn groups(pid: u32) -> Vec<u32> {
    if pid == 0 {
        return Vec::new();
    }
    // At once: each read of this file is written anew by the kernel, and the groups are near its beginning.
    let mut bytes = [0; 4096];
    let read = std::fs::File::open(format!("/proc/{pid}/status"))
        .and_then(|mut file| std::io::Read::read(&mut file, &mut bytes));
    let status = String::from_utf8_lossy(bytes.get(..read.unwrap_or(0)).unwrap_or_default());
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
    line.split_whitespace().filter_map(|group| group.parse().ok()).take(super::super::rpc::MAX_GROUPS).collect()
}
