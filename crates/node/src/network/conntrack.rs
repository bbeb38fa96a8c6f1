//! The connections that the kernel tracks (ctnetlink): which there are, and forgetting them.
//!
//! The packet filter decides where a connection goes by its first packet; the kernel remembers that for as long as
//! packets come. What has no connections of its own (UDP) goes on to an endpoint that is gone, or to whoever has its
//! address by then, until the entry is forgotten (N3, N4).
//!
//! ```text
//! original: 10.244.0.2:4444 -> 10.96.0.7:9999        what the client sent
//! reply:    10.244.0.5:9999 -> 10.244.0.2:4444       who answers: the endpoint
//! ```

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use super::netlink::{DUMP, Family, Message, Socket, find};

const CONNTRACK: u16 = 1 << 8;
const GET: u16 = CONNTRACK | 1;
const DELETE: u16 = CONNTRACK | 2;
/// `struct nfgenmsg` for IPv4.
const IPV4: [u8; 4] = [2, 0, 0, 0];
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const STATUS: u16 = 3;
const ID: u16 = 12;
const ZONE: u16 = 18;
/// Since Linux 5.8; an older kernel gives everything, and what is not meant is passed over here.
const FILTER: u16 = 25;
const FILTER_ORIGINAL: u16 = 1;
const FILTER_REPLY: u16 = 2;
const BY_SOURCE: u32 = 1;
const BY_PROTOCOL: u32 = 1 << 3;
const TUPLE_ADDRESSES: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const FROM: u16 = 1;
const TO: u16 = 2;
const NUMBER: u16 = 1;
const FROM_PORT: u16 = 2;
const TO_PORT: u16 = 3;
/// Its destination was rewritten.
const TRANSLATED: u32 = 1 << 5;
/// UDP's number.
pub const UDP: u8 = 17;

/// Which connections the kernel is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Which {
    /// All of a protocol.
    Of(u8),
    /// Those that this address began.
    From(Ipv4Addr),
    /// Those that this address answers.
    AnsweredBy(Ipv4Addr),
}

/// One direction of a connection. Protocols without ports have 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Direction {
    /// Who sends.
    pub from: SocketAddrV4,
    /// Who receives.
    pub to: SocketAddrV4,
}

/// A tracked connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flow {
    /// The IP protocol's number.
    pub protocol: u8,
    /// As the client began it.
    pub original: Direction,
    /// As the answers come.
    pub reply: Direction,
    /// Whether its destination was rewritten.
    pub translated: bool,
}

impl Which {
    fn has(self, flow: &Flow) -> bool {
        match self {
            Self::Of(protocol) => flow.protocol == protocol,
            Self::From(address) => *flow.original.from.ip() == address,
            Self::AnsweredBy(address) => *flow.reply.from.ip() == address,
        }
    }

    /// The request for them: the kernel filters where it can.
    fn request(self) -> Message {
        let mut message = Message::new(GET, DUMP, &IPV4);
        let mut by = |direction: u16, filter: u16, flag: u32, fill: &dyn Fn(&mut Message)| {
            message.nest(direction, |tuple| fill(tuple)).nest(FILTER, |flags| {
                flags.u32(filter, flag);
            });
        };
        let address = |tuple: &mut Message, address: Ipv4Addr| {
            tuple.nest(TUPLE_ADDRESSES, |nest| {
                nest.attribute(FROM, &address.octets());
            });
        };
        match self {
            Self::Of(protocol) => by(ORIGINAL, FILTER_ORIGINAL, BY_PROTOCOL, &|tuple| {
                tuple.nest(TUPLE_PROTOCOL, |nest| {
                    nest.attribute(NUMBER, &[protocol]);
                });
            }),
            Self::From(from) => by(ORIGINAL, FILTER_ORIGINAL, BY_SOURCE, &|tuple| address(tuple, from)),
            Self::AnsweredBy(from) => by(REPLY, FILTER_REPLY, BY_SOURCE, &|tuple| address(tuple, from)),
        }
        message
    }
}

fn direction(tuple: &[u8]) -> Option<(u8, Direction)> {
    let (addresses, protocol) = (find(tuple, TUPLE_ADDRESSES)?, find(tuple, TUPLE_PROTOCOL)?);
    let address = |kind| Some(Ipv4Addr::from(<[u8; 4]>::try_from(find(addresses, kind)?).ok()?));
    let port = |kind| find(protocol, kind).and_then(|port| port.try_into().ok()).map_or(0, u16::from_be_bytes);
    let from = SocketAddrV4::new(address(FROM)?, port(FROM_PORT));
    let to = SocketAddrV4::new(address(TO)?, port(TO_PORT));
    Some((*find(protocol, NUMBER)?.first()?, Direction { from, to }))
}

/// An entry of the kernel's (behind its family header).
fn flow(body: &[u8]) -> Option<Flow> {
    let (protocol, original) = direction(find(body, ORIGINAL)?)?;
    let (_, reply) = direction(find(body, REPLY)?)?;
    let status = find(body, STATUS).and_then(|status| status.try_into().ok()).map_or(0, u32::from_be_bytes);
    Some(Flow { protocol, original, reply, translated: status & TRANSLATED != 0 })
}

/// The request to forget exactly this entry, and none that took its place since.
fn deletion(body: &[u8]) -> Option<Message> {
    let mut message = Message::new(DELETE, 0, &IPV4);
    let original = find(body, ORIGINAL)?;
    message.nest(ORIGINAL, |tuple| {
        tuple.raw(original);
    });
    for kind in [ZONE, ID] {
        if let Some(payload) = find(body, kind) {
            message.attribute(kind, payload);
        }
    }
    Some(message)
}

/// The tracked connections of one network namespace.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
}

impl Conntrack {
    /// Those of this thread's network namespace.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open() -> io::Result<Self> {
        Ok(Self { socket: Socket::open(Family::Netfilter)? })
    }

    /// Forgets the connections among `which` that `is_stale` names, and says how many. The kernel goes through its
    /// whole table once, whatever is asked for: not for every little change.
    ///
    /// # Errors
    /// The kernel's: `Unsupported` where it has no ctnetlink.
    pub fn forget(&mut self, which: Which, mut is_stale: impl FnMut(&Flow) -> bool) -> io::Result<usize> {
        let mut stale = Vec::new();
        let dumped = self.socket.each_answer(which.request(), |_, body| {
            let body = body.get(IPV4.len()..).unwrap_or_default();
            if flow(body).is_some_and(|flow| which.has(&flow) && is_stale(&flow)) {
                stale.extend(deletion(body));
            }
        });
        dumped.map_err(|error| match error.raw_os_error() {
            // No such subsystem of nfnetlink.
            Some(nix::libc::EINVAL | nix::libc::EOPNOTSUPP) => io::Error::from(io::ErrorKind::Unsupported),
            _ => error,
        })?;
        let mut count = 0;
        for message in stale {
            match self.socket.request(message) {
                Ok(_) => count += 1,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_connection_is_passed_over() {
        assert_eq!(flow(&[]), None);
        assert_eq!(flow(&[8, 0, 1, 0, 0, 0, 0, 0]), None);
        assert!(deletion(&[8, 0, 2, 0, 0, 0, 0, 0]).is_none());
    }
}
