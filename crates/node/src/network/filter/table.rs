//! nftables' messages about one table of ours.

use std::io;

use super::expression::{Rule, Verdict};
use crate::network::netlink::{APPEND, CREATE, EXCL, Message, Socket, find};

const NFTABLES: u16 = 10 << 8;
const NEW_TABLE: u16 = NFTABLES;
const GET_TABLE: u16 = NFTABLES | 1;
const DEL_TABLE: u16 = NFTABLES | 2;
const NEW_CHAIN: u16 = NFTABLES | 3;
const DEL_CHAIN: u16 = NFTABLES | 5;
const NEW_RULE: u16 = NFTABLES | 6;
const DEL_RULE: u16 = NFTABLES | 8;
const NEW_SET: u16 = NFTABLES | 9;
const DEL_SET: u16 = NFTABLES | 11;
const NEW_ELEMENT: u16 = NFTABLES | 12;
const DEL_ELEMENT: u16 = NFTABLES | 14;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const VERDICT_TYPE: u32 = 0xffff_ff00;
const MAP: u32 = 0x8;
/// Elements have an end.
const TIMEOUT: u32 = 0x10;
/// Rules may add elements.
const EVAL: u32 = 0x20;
const TABLE_NAME: u16 = 1;
const TABLE_FLAGS: u16 = 2;
/// A table that goes with the socket that made it, and that no other socket changes (Linux 5.12).
const OWNER: u32 = 2;
const TABLE_HANDLE: u16 = 4;
/// How many elements one message has at most: an attribute's length is 16 bits.
const ELEMENTS: usize = 512;

/// Hooks of the kernel's IP path; the first one is the bridge's, too.
pub const PREROUTING: u32 = 0;
pub const INPUT: u32 = 1;
pub const FORWARD: u32 = 2;
pub const OUTPUT: u32 = 3;
pub const POSTROUTING: u32 = 4;

/// Which packets a table sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Sees {
    /// IPv4's.
    Ipv4 = 2,
    /// Those that a bridge's ports take.
    Bridge = 7,
}

/// A table of the packet filter, by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Table(pub &'static str, pub Sees);

/// What a set has beside its keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holds {
    Keys,
    /// A verdict per key.
    Verdicts,
    /// So many bytes per key.
    Values(u32),
    /// Keys that rules add and that have an end; so many at most.
    Passing(u32),
}

/// What an element has beside its key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    Verdict(Verdict),
    Bytes(Vec<u8>),
}

impl Table {
    fn message(self, kind: u16, flags: u16) -> Message {
        let mut message = Message::new(kind, flags, &[self.1 as u8, 0, 0, 0]);
        message.string(TABLE_NAME, self.0);
        message
    }

    /// Makes it; one that is there is kept.
    pub fn made(self) -> Message {
        self.message(NEW_TABLE, CREATE)
    }

    /// Makes it for as long as the socket lives that sends this, and nobody else's meanwhile: an error where it is
    /// there.
    pub fn held(self) -> Message {
        let mut message = self.message(NEW_TABLE, CREATE | EXCL);
        message.be32(TABLE_FLAGS, OWNER);
        message
    }

    /// Takes it away with all that is in it.
    pub fn gone(self) -> Message {
        self.message(DEL_TABLE, 0)
    }

    /// An empty one in place of whatever is there.
    pub fn made_anew(self) -> [Message; 3] {
        [self.made(), self.gone(), self.made()]
    }

    /// A chain that the kernel calls.
    pub fn base_chain(self, name: &str, kind: &str, hook: u32, priority: i32) -> Message {
        let mut message = self.message(NEW_CHAIN, CREATE);
        message.string(3, name).nest(4, |hook_of| {
            hook_of.be32(1, hook).be32(2, priority.cast_unsigned());
        });
        message.string(7, kind);
        message
    }

    /// A chain that rules call.
    pub fn chain(self, name: &str) -> Message {
        let mut message = self.message(NEW_CHAIN, CREATE);
        message.string(3, name);
        message
    }

    /// Takes a chain away.
    pub fn chain_gone(self, name: &str) -> Message {
        let mut message = self.message(DEL_CHAIN, 0);
        message.string(3, name);
        message
    }

    /// Takes all rules out of a chain.
    pub fn emptied(self, chain: &str) -> Message {
        let mut message = self.message(DEL_RULE, 0);
        message.string(2, chain);
        message
    }

    /// A rule at a chain's end.
    pub fn rule(self, chain: &str, fill: impl FnOnce(&mut Rule<'_>)) -> Message {
        let mut message = self.message(NEW_RULE, CREATE | APPEND);
        message.string(2, chain).nest(4, |list| fill(&mut Rule::new(list)));
        message
    }

    /// A set of keys of so many bytes. The kernel wants a number of its own within the transaction; rules go by name.
    pub fn set(self, name: &str, key_length: u32, holds: Holds, number: u32) -> Message {
        let mut message = self.message(NEW_SET, CREATE);
        let flags = match holds {
            Holds::Keys => 0,
            Holds::Verdicts | Holds::Values(_) => MAP,
            Holds::Passing(_) => TIMEOUT | EVAL,
        };
        message.string(2, name).be32(3, flags).be32(4, 0).be32(5, key_length);
        match holds {
            Holds::Keys => {}
            Holds::Verdicts => {
                message.be32(6, VERDICT_TYPE).be32(7, 0);
            }
            Holds::Values(length) => {
                message.be32(6, 0).be32(7, length);
            }
            Holds::Passing(most) => {
                message.nest(9, |size| {
                    size.be32(1, most);
                });
            }
        }
        message.be32(10, number);
        message
    }

    /// Takes a set away.
    pub fn set_gone(self, name: &str) -> Message {
        let mut message = self.message(DEL_SET, 0);
        message.string(2, name);
        message
    }

    /// Puts an element into a set.
    pub fn element(self, set: &str, key: &[u8], value: Option<Value>) -> Message {
        self.some_elements(NEW_ELEMENT, CREATE, set, &[(key.to_vec(), value)])
    }

    /// Puts many into one.
    pub fn elements(self, set: &str, all: &[(Vec<u8>, Option<Value>)]) -> Vec<Message> {
        all.chunks(ELEMENTS).map(|some| self.some_elements(NEW_ELEMENT, CREATE, set, some)).collect()
    }

    /// Takes an element out of a set.
    pub fn element_gone(self, set: &str, key: &[u8]) -> Message {
        self.some_elements(DEL_ELEMENT, 0, set, &[(key.to_vec(), None)])
    }

    fn some_elements(self, kind: u16, flags: u16, set: &str, some: &[(Vec<u8>, Option<Value>)]) -> Message {
        let mut message = self.message(kind, flags);
        message.string(2, set).nest(3, |elements| {
            for (key, value) in some {
                elements.nest(1, |element| {
                    element.nest(1, |nest| {
                        nest.attribute(1, key);
                    });
                    match value {
                        None => {}
                        Some(Value::Verdict(verdict)) => {
                            element.nest(2, |nest| verdict.write(nest));
                        }
                        Some(Value::Bytes(bytes)) => {
                            element.nest(2, |nest| {
                                nest.attribute(1, bytes);
                            });
                        }
                    }
                });
            }
        });
        message
    }

    /// The kernel's name for the table that is there, which no other one gets; `None` where there is none.
    pub fn handle(self, socket: &mut Socket) -> io::Result<Option<Vec<u8>>> {
        let replies = match socket.request(self.message(GET_TABLE, 0)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let handle = |body: &[u8]| find(body.get(4..)?, TABLE_HANDLE).map(<[u8]>::to_vec);
        Ok(replies.iter().find_map(|reply| handle(&reply.body)))
    }
}

/// Does all of it, or nothing.
///
/// # Errors
/// The kernel's first one; `EMSGSIZE` beyond [`crate::network::netlink::MAX_BATCH`].
pub fn transact(socket: &mut Socket, messages: Vec<Message>) -> io::Result<()> {
    // The batch's own header names the subsystem in network order.
    let marker = |kind| Message::new(kind, 0, &[0, 0, 0, 10]);
    let acked = messages.len();
    let mut batch = Vec::with_capacity(acked + 2);
    batch.push(marker(BATCH_BEGIN));
    batch.extend(messages);
    batch.push(marker(BATCH_END));
    socket.batch(batch, acked)
}
