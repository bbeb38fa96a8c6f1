//! The netlink wire format, as little of it as links, addresses, routes, the packet filter, tracked connections and
//! WireGuard need.
//!
//! One codec for all families that Mainstay speaks (rtnetlink, nfnetlink and generic netlink). A socket belongs to the
//! network namespace in which it was opened, so configuring a pod's namespace is opening a socket in it.
//!
//! A message is a 16-byte header, a family header, then attributes: length (u16, with its own 4 bytes), type (u16),
//! payload, padding to 4. For example the attribute `IFLA_IFNAME = "eth0"`:
//!
//! ```text
//! 09 00 | 03 00 | 65 74 68 30 00 | 00 00 00
//! len 9   type 3  e  t  h  0  \0   padding
//! ```

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

pub const REQUEST: u16 = 0x1;
pub const ACK: u16 = 0x4;
pub const DUMP: u16 = 0x300;
pub const CREATE: u16 = 0x400;
pub const EXCL: u16 = 0x200;
pub const REPLACE: u16 = 0x100;
pub const APPEND: u16 = 0x800;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
const NESTED: u16 = 0x8000;
/// Bytes of one receive; the kernel's dumps come in pieces of at most 32 KiB.
const RECEIVE_BUFFER: usize = 64 << 10;
/// The kernel answers at once or never.
const ANSWER_TIMEOUT_S: i64 = 5;
/// Room for what is sent at once, unless a transaction needs more.
const SEND_BUFFER: usize = 8 << 20;
/// The largest transaction of the packet filter.
pub const MAX_BATCH: usize = 64 << 20;
/// What the kernel's own books take of a socket's room.
const SEND_OVERHEAD: usize = 4 << 10;

/// Which kernel side a socket talks to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// Links, addresses, routes.
    Route,
    /// The packet filter and tracked connections.
    Netfilter,
    /// What finds its number by its name: WireGuard.
    Generic,
}

/// One message being written.
#[derive(Clone, Debug)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A message of a type with flags ([`REQUEST`] is added) and its family header.
    pub fn new(kind: u16, flags: u16, family_header: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(family_header);
        Self { bytes }
    }

    /// Adds an attribute.
    pub fn attribute(&mut self, kind: u16, payload: &[u8]) -> &mut Self {
        let length = u16::try_from(payload.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(payload);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    /// A string with its terminating zero.
    pub fn string(&mut self, kind: u16, text: &str) -> &mut Self {
        let mut payload = text.as_bytes().to_vec();
        payload.push(0);
        self.attribute(kind, &payload)
    }

    /// A native-endian u32, as rtnetlink has them.
    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attribute(kind, &value.to_ne_bytes())
    }

    /// A big-endian u32, as nftables has them.
    pub fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attribute(kind, &value.to_be_bytes())
    }

    /// An attribute made of attributes.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        fill(self);
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// Raw bytes inside a nest, for headers that stand before attributes.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// A message from the kernel: its type and what follows the header.
#[derive(Clone, Debug)]
pub struct Reply {
    pub kind: u16,
    pub body: Vec<u8>,
}

/// The attributes in a slice, as (type without flags, payload); stops at the first malformed one.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & 0x3fff;
        let payload = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, payload))
    })
}

/// The first attribute of a type.
pub fn find(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, payload)| payload)
}

/// Does something in another network namespace, given by path. A socket that is opened there stays there.
pub fn inside<T: Send>(netns: &Path, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let netns = std::fs::File::open(netns)?;
    // A thread of its own changes namespace and ends.
    let done = std::thread::scope(|scope| {
        let entered = move || {
            setns(netns.as_fd(), CloneFlags::CLONE_NEWNET)?;
            work()
        };
        scope.spawn(entered).join()
    });
    done.map_err(|_| io::Error::other("the thread in the other namespace died"))?
}

/// A netlink socket.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// A socket in this thread's network namespace.
    pub fn open(family: Family) -> io::Result<Self> {
        let protocol = match family {
            Family::Route => SockProtocol::NetlinkRoute,
            Family::Netfilter => SockProtocol::NetlinkNetFilter,
            Family::Generic => SockProtocol::NetlinkGeneric,
        };
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_TIMEOUT_S, 0))?;
        // Forcing needs CAP_NET_ADMIN in the first user namespace; without it the default has to do.
        let _ = setsockopt(&fd, sockopt::SndBufForce, &SEND_BUFFER);
        let _ = setsockopt(&fd, sockopt::RcvBufForce, &SEND_BUFFER);
        Ok(Self { fd, sequence: 1 })
    }

    /// A socket in another network namespace, given by path (`/proc/<pid>/ns/net`).
    pub fn open_in(netns: &Path, family: Family) -> io::Result<Self> {
        inside(netns, || Self::open(family))
    }

    /// Sends a request with acknowledgement and gives back what came before it.
    ///
    /// # Errors
    /// The kernel's error number; `TimedOut`/`WouldBlock` when it does not answer.
    pub fn request(&mut self, message: Message) -> io::Result<Vec<Reply>> {
        let mut replies = Vec::new();
        self.each_answer(message, |kind, body| replies.push(Reply { kind, body: body.to_vec() }))?;
        Ok(replies)
    }

    /// The same for what may be long: each answer's type and body go to `take`, one at a time, and nothing is kept.
    pub fn each_answer(&mut self, mut message: Message, take: impl FnMut(u16, &[u8])) -> io::Result<()> {
        let flags = u16::from_ne_bytes([message.bytes[6], message.bytes[7]]) | ACK;
        message.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        self.send(&message.finish(sequence))?;
        self.answers(sequence, sequence, take)
    }

    /// Sends several messages as one buffer (a batch of the packet filter) and waits for the acknowledgement of the
    /// message at `acked` or the first error.
    ///
    /// # Errors
    /// The kernel's; `EMSGSIZE` beyond [`MAX_BATCH`].
    pub fn batch(&mut self, messages: Vec<Message>, acked: usize) -> io::Result<()> {
        let mut buffer = Vec::new();
        let first = self.sequence.wrapping_add(1);
        let mut last = first;
        for (index, mut message) in messages.into_iter().enumerate() {
            self.sequence = self.sequence.wrapping_add(1);
            if index == acked {
                let flags = u16::from_ne_bytes([message.bytes[6], message.bytes[7]]) | ACK;
                message.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
                last = self.sequence;
            }
            buffer.extend(message.finish(self.sequence));
        }
        if buffer.len() > MAX_BATCH {
            return Err(io::Error::from_raw_os_error(nix::libc::EMSGSIZE));
        }
        if buffer.len() > SEND_BUFFER {
            let _ = setsockopt(&self.fd, sockopt::SndBufForce, &(buffer.len() + SEND_OVERHEAD));
        }
        self.send(&buffer)?;
        self.answers(first, last, |_, _| {})
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        sendto(self.fd.as_raw_fd(), bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        Ok(())
    }

    /// Reads until the message `last` is acknowledged, the dump is done, or a message from `first` on has failed.
    /// Left-overs of earlier requests are passed over.
    fn answers(&self, first: u32, last: u32, mut take: impl FnMut(u16, &[u8])) -> io::Result<()> {
        let mut buffer = vec![0; RECEIVE_BUFFER];
        loop {
            let read = recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = &buffer[..read];
            while rest.len() >= HEADER {
                let word = |at: usize| u32::from_ne_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
                let length = usize::try_from(word(0)).unwrap_or(usize::MAX);
                if length < HEADER || length > rest.len() {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "malformed netlink answer"));
                }
                let kind = u16::from_ne_bytes([rest[4], rest[5]]);
                let sequence = word(8);
                let body = &rest[HEADER..length];
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
                if sequence < first || sequence > last {
                    continue;
                }
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        let code = body.get(..4).and_then(|code| code.try_into().ok()).map_or(0, i32::from_ne_bytes);
                        if code != 0 {
                            return Err(io::Error::from_raw_os_error(-code));
                        }
                        if sequence == last {
                            return Ok(());
                        }
                    }
                    _ => take(kind, body),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_read_back_what_was_written() {
        let mut message = Message::new(16, CREATE, &[]);
        message.string(3, "eth0").nest(18, |info| {
            info.string(1, "veth").u32(7, 9);
        });
        let bytes = message.finish(5);
        let read: Vec<_> = attributes(&bytes[HEADER..]).map(|(kind, payload)| (kind, payload.to_vec())).collect();
        assert_eq!(read[0], (3, b"eth0\0".to_vec()));
        assert_eq!(read[1].0, 18);
        let inner: Vec<_> = attributes(&read[1].1).map(|(kind, payload)| (kind, payload.to_vec())).collect();
        assert_eq!(inner, [(1, b"veth\0".to_vec()), (7, 9u32.to_ne_bytes().to_vec())]);
    }

    #[test]
    fn truncated_attributes_end_the_walk() {
        assert_eq!(attributes(&[9, 0, 3, 0, b'e']).count(), 0);
        assert_eq!(attributes(&[0, 0, 0, 0]).count(), 0);
    }
}
