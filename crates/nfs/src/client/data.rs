//! Reading and writing. What the server has in its memory only is kept here too, until it says that it is on its disk:
//! a server that restarted in between (its verifier tells) gets it again, in the order in which it was written.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError, RwLock};

use super::super::protocol::{Attributes, MAX_IO, procedure};
use super::super::rpc::Credentials;
use super::files::{Done, Files};
use super::remote::{Calls, Errno};
use super::wire::{Answer, Words};

/// What one file may have kept (bytes); then it is committed.
const MAX_KEPT: usize = 16 << 20;
/// What all files of a mount may have kept (bytes).
const MAX_KEPT_ALL: usize = 64 << 20;
/// How often a commit sends again what a server lost that restarts meanwhile.
const RESENT: usize = 4;
/// `stable_how`.
const UNSTABLE: u32 = 0;

/// Something that was written and is not known to be on the server's disk.
#[derive(Clone)]
struct Piece {
    who: Credentials,
    offset: u64,
    bytes: Arc<[u8]>,
    /// Of the server that has it.
    verifier: u64,
}

/// What of a file is not on the server's disk, in the order in which it was written.
#[derive(Default)]
pub struct Kept {
    pieces: VecDeque<Piece>,
    /// How many were there before the first.
    settled: u64,
    bytes: usize,
    /// Held to write, and alone to write again what came before.
    order: Arc<RwLock<()>>,
}

impl Kept {
    /// The bytes that are kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl<R: Calls> Files<R> {
    pub(super) fn read(&self, body: &mut Words<'_>) -> Done {
        let (open, handle) = self.opened(body)?;
        let (offset, size) = (body.u64().ok_or(libc::EINVAL)?, body.u32().ok_or(libc::EINVAL)?);
        let mut bytes = Vec::new();
        // A server may give less than was asked for without being at the end.
        loop {
            let left = size.saturating_sub(bytes.len() as u32).min(MAX_IO);
            let reply = self.remote.call(procedure::READ, &open.who, |arguments| {
                arguments.opaque(&handle).u64(offset.saturating_add(bytes.len() as u64)).u32(left);
            })?;
            let (end, part) = reply.read(|reader| {
                Attributes::read_optional(reader)?;
                let _count = reader.u32()?;
                Ok((reader.bool()?, reader.opaque(left as usize)?))
            })?;
            let is_all = end || part.is_empty() || bytes.len() + part.len() >= size as usize;
            if is_all && bytes.is_empty() {
                let range = reply.range(part);
                return Ok(Answer::within(reply.into_record(), range));
            }
            bytes.extend_from_slice(part);
            if is_all {
                return Ok(bytes.into());
            }
        }
    }

    pub(super) fn write(&self, body: &mut Words<'_>) -> Done {
        let (open, handle) = self.opened(body)?;
        let (offset, size) = (body.u64().ok_or(libc::EINVAL)?, body.u32().ok_or(libc::EINVAL)?);
        body.skip(20).ok_or(libc::EINVAL)?;
        let bytes = body.0.get(..size as usize).ok_or(libc::EINVAL)?;
        let order = self.nodes().get(open.node).map(|node| node.kept.order.clone()).ok_or(libc::ESTALE)?;
        let full = {
            let _written = order.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(verifier) = self.write_all(&open.who, &handle, offset, bytes)? {
                self.keep(open.node, Piece { who: open.who.clone(), offset, bytes: bytes.into(), verifier })
            } else {
                false
            }
        };
        if full {
            self.commit(open.node, &open.who)?;
        }
        let mut answer = Answer::default();
        answer.u32(size).u32(0);
        Ok(answer)
    }

    /// Writes; the server's verifier unless all of it is on its disk.
    fn write_all(&self, who: &Credentials, handle: &[u8], offset: u64, bytes: &[u8]) -> Result<Option<u64>, Errno> {
        let (mut written, mut unstable) = (0, None);
        while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            let part = rest.get(..MAX_IO as usize).unwrap_or(rest);
            let reply = self.remote.call(procedure::WRITE, who, |arguments| {
                arguments
                    .opaque(handle)
                    .u64(offset.saturating_add(written as u64))
                    .u32(part.len() as u32)
                    .u32(UNSTABLE)
                    .opaque(part);
            })?;
            let (count, committed, verifier) = reply.read(|reader| {
                Attributes::read_weak(reader)?;
                Ok((reader.u32()?, reader.u32()?, reader.u64()?))
            })?;
            if count == 0 || count as usize > part.len() {
                return Err(libc::EIO);
            }
            written += count as usize;
            if committed == UNSTABLE {
                // The oldest stays: a restart since then is seen at the commit.
                unstable.get_or_insert(verifier);
            }
        }
        Ok(unstable)
    }

    /// Keeps what was written; whether it is too much.
    fn keep(&self, number: u64, piece: Piece) -> bool {
        let mut nodes = self.nodes();
        let length = piece.bytes.len();
        let Some(node) = nodes.get(number) else { return false };
        node.kept.bytes += length;
        node.kept.pieces.push_back(piece);
        let own = node.kept.bytes;
        nodes.kept += length;
        own > MAX_KEPT || nodes.kept > MAX_KEPT_ALL
    }

    /// Makes what was written durable on the server.
    ///
    /// # Errors
    /// The server's own, as when its disk is full. What was written is then still kept for the next time.
    pub(super) fn commit(&self, number: u64, who: &Credentials) -> Done {
        let handle = self.handle(number)?;
        for _ in 0..RESENT {
            let (until, order) = match self.nodes().get(number) {
                Some(node) if !node.kept.pieces.is_empty() => {
                    (node.kept.settled + node.kept.pieces.len() as u64, node.kept.order.clone())
                }
                _ => return Ok(Answer::default()),
            };
            let reply = self.remote.call(procedure::COMMIT, who, |arguments| {
                arguments.opaque(&handle).u64(0).u32(0);
            })?;
            let verifier = reply.read(|reader| {
                Attributes::read_weak(reader)?;
                reader.u64()
            })?;
            // Nobody writes meanwhile: what is sent again must not come after what was written later.
            let _alone = order.write().unwrap_or_else(PoisonError::into_inner);
            if self.settle(number, until, verifier) {
                return Ok(Answer::default());
            }
            self.send_again(number, &handle, verifier)?;
        }
        Err(libc::EIO)
    }

    /// Forgets what is on the server's disk: the pieces before this one, if the server is still the one that got them.
    fn settle(&self, number: u64, until: u64, verifier: u64) -> bool {
        let mut nodes = self.nodes();
        let Some(node) = nodes.get(number) else { return true };
        // Another commit of the same file may have been faster.
        let count = usize::try_from(until.saturating_sub(node.kept.settled)).unwrap_or(0).min(node.kept.pieces.len());
        if node.kept.pieces.iter().take(count).any(|piece| piece.verifier != verifier) {
            return false;
        }
        let gone: usize = node.kept.pieces.drain(..count).map(|piece| piece.bytes.len()).sum();
        node.kept.settled += count as u64;
        node.kept.bytes -= gone;
        nodes.kept = nodes.kept.saturating_sub(gone);
        true
    }

    /// Writes again, from the first piece that an earlier server had, all that came after it, too.
    fn send_again(&self, number: u64, handle: &[u8], verifier: u64) -> Result<(), Errno> {
        let pieces = self.nodes().get(number).map(|node| node.kept.pieces.clone()).unwrap_or_default();
        let first = pieces.iter().position(|piece| piece.verifier != verifier).unwrap_or(pieces.len());
        for (range, piece) in pieces.iter().enumerate().skip(first) {
            let now = self.write_all(&piece.who, handle, piece.offset, &piece.bytes)?;
            if let Some(kept) = self.nodes().get(number).and_then(|node| node.kept.pieces.get_mut(range)) {
                kept.verifier = now.unwrap_or(verifier);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::io::Cursor;

    use super::super::remote::{Reply, receive};
    use super::*;
    use crate::rpc;
    use crate::xdr::{Reader, Writer};

    /// A server of one file, which can crash.
    #[derive(Default)]
    struct Server {
        memory: RefCell<Vec<u8>>,
        disk: RefCell<Vec<u8>>,
        starts: Cell<u64>,
        /// Crashes at the next calls of COMMIT.
        crashes: Cell<u32>,
    }

    impl Server {
        fn crash(&self) {
            self.starts.set(self.starts.get() + 1);
            *self.memory.borrow_mut() = self.disk.borrow().clone();
        }
    }

    impl Calls for Server {
        fn call(&self, number: u32, who: &Credentials, arguments: impl Fn(&mut Writer)) -> Result<Reply, Errno> {
            let mut call = rpc::write_call(1, 0, 0, 0, who);
            let begin = call.0.len();
            arguments(&mut call);
            let mut asked = Reader::new(&call.0[begin..]);
            let mut reply = rpc::accepted(1);
            reply.u32(0).bool(false).bool(false);
            asked.opaque(64).unwrap();
            let offset = asked.u64().unwrap() as usize;
            if number == procedure::WRITE {
                let (count, _stable) = (asked.u32().unwrap(), asked.u32().unwrap());
                let mut memory = self.memory.borrow_mut();
                let end = offset + count as usize;
                let length = memory.len().max(end);
                memory.resize(length, 0);
                memory[offset..end].copy_from_slice(asked.opaque(MAX_IO as usize).unwrap());
                reply.u32(count).u32(UNSTABLE);
            } else {
                assert_eq!(number, procedure::COMMIT);
                if self.crashes.get() > 0 {
                    self.crashes.set(self.crashes.get() - 1);
                    self.crash();
                }
                *self.disk.borrow_mut() = self.memory.borrow().clone();
            }
            reply.u64(self.starts.get());
            let mut stream = Vec::new();
            rpc::write_record(&mut stream, reply).unwrap();
            receive(&mut Cursor::new(stream), 1).unwrap().succeeded()
        }
    }

    fn write(files: &Files<Server>, open: u64, offset: u64, bytes: &[u8]) {
        let mut body = Answer::default();
        body.u64(open).u64(offset).u32(bytes.len() as u32).u32(0).u64(0).u64(0);
        body.raw(bytes);
        files.write(&mut Words(body.body())).unwrap();
    }

    #[test]
    fn v4_what_a_server_lost_is_written_again_in_the_order_in_which_it_was_written() {
        let files = Files::new(Server::default(), vec![1]);
        let who = Credentials::default();
        let (node, open) = {
            let mut nodes = files.nodes();
            let node = nodes.found(vec![2]);
            (node, nodes.open(node, who.clone()))
        };
        write(&files, open, 0, b"aaaa");
        files.remote.crash();
        write(&files, open, 2, b"bb");
        write(&files, open, 1, b"c");
        files.remote.crash();
        files.remote.crashes.set(2);
        files.commit(node, &who).unwrap();
        assert_eq!(*files.remote.disk.borrow(), b"acbb");
        // What is on the disk is not kept, nor written again.
        assert_eq!(files.nodes().kept, 0);
        assert_eq!(files.nodes().get(node).unwrap().kept.bytes(), 0);
        files.remote.memory.borrow_mut()[0] = b'x';
        files.remote.crashes.set(1);
        write(&files, open, 4, b"d");
        files.commit(node, &who).unwrap();
        assert_eq!(*files.remote.disk.borrow(), b"acbbd");
        // One that always crashes is an error, and what was written stays kept.
        write(&files, open, 0, b"z");
        files.remote.crashes.set(u32::MAX);
        assert_eq!(files.commit(node, &who).err(), Some(libc::EIO));
        assert_eq!(files.nodes().kept, 1);
        files.nodes().close(open);
        files.nodes().forget(node, 1);
        assert_eq!(files.nodes().kept, 0);
    }

    #[test]
    fn what_is_kept_has_a_limit() {
        let files = Files::new(Server::default(), vec![1]);
        let open = files.nodes().open(1, Credentials::default());
        let bytes = vec![7; MAX_IO as usize];
        for number in 0..64 {
            write(&files, open, number * bytes.len() as u64, &bytes);
            assert!(files.nodes().kept <= MAX_KEPT);
        }
    }
}
