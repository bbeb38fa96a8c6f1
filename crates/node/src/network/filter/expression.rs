//! The expressions of nftables rules that Mainstay uses, each written as one attribute list.
//!
//! A rule is a row of expressions over registers. The first two of a service's entry rule, for example, read
//! "load 4 bytes at offset 16 of the network header into register 1; …".

use std::net::Ipv4Addr;

use crate::network::netlink::Message;

const LIST_ELEMENT: u16 = 1;
const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;

/// Register 1 as four words: concatenated keys take one word each.
pub const FIRST: u32 = 8;
const VERDICT: u32 = 0;
const LINK: u32 = 0;
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
const META_ETHERTYPE: u32 = 1;
const META_MARK: u32 = 3;
const META_INPUT_INDEX: u32 = 4;
const META_INPUT_NAME: u32 = 6;
const META_OUTPUT_NAME: u32 = 7;
/// The loopback device's index, in every network namespace.
const LOOPBACK_INDEX: u32 = 1;
const META_L4PROTO: u32 = 16;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;

/// What happens to a packet, or where it goes next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Through.
    Accept,
    /// Gone, without an answer.
    Drop,
    /// To a chain, and back here at its end.
    Jump(String),
}

impl Verdict {
    /// The verdict as data of an element or an immediate.
    pub fn write(&self, message: &mut Message) {
        message.nest(DATA_VERDICT, |verdict| {
            match self {
                Self::Accept => verdict.be32(1, 1),
                Self::Drop => verdict.be32(1, 0),
                Self::Jump(chain) => verdict.be32(1, (-3i32).cast_unsigned()).string(2, chain),
            };
        });
    }
}

fn milliseconds(seconds: u32) -> u64 {
    u64::from(seconds) * 1000
}

/// A link's name as the kernel compares it.
fn link_name(link: &str) -> [u8; 16] {
    let mut name = [0; 16];
    name.iter_mut().zip(link.bytes()).for_each(|(slot, byte)| *slot = byte);
    name
}

/// A row of expressions being written into a rule.
pub struct Rule<'a> {
    message: &'a mut Message,
}

impl<'a> Rule<'a> {
    /// Writes into the message's open list of expressions.
    pub fn new(message: &'a mut Message) -> Self {
        Self { message }
    }

    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Message)) -> &mut Self {
        self.message.nest(LIST_ELEMENT, |element| {
            element.string(EXPR_NAME, name).nest(EXPR_DATA, fill);
        });
        self
    }

    fn payload(&mut self, base: u32, offset: u32, length: u32, register: u32) -> &mut Self {
        self.expression("payload", |data| {
            data.be32(1, register).be32(2, base).be32(3, offset).be32(4, length);
        })
    }

    /// The packet's source address into a register.
    pub fn source(&mut self, register: u32) -> &mut Self {
        self.payload(NETWORK, 12, 4, register)
    }

    /// The packet's destination address into a register.
    pub fn destination(&mut self, register: u32) -> &mut Self {
        self.payload(NETWORK, 16, 4, register)
    }

    /// The destination port (TCP, UDP and SCTP have it in the same place) into a register.
    pub fn destination_port(&mut self, register: u32) -> &mut Self {
        self.payload(TRANSPORT, 2, 2, register)
    }

    fn meta(&mut self, key: u32, register: u32) -> &mut Self {
        self.expression("meta", |data| {
            data.be32(1, register).be32(2, key);
        })
    }

    /// The transport protocol into a register.
    pub fn protocol(&mut self, register: u32) -> &mut Self {
        self.meta(META_L4PROTO, register)
    }

    fn compare(&mut self, operation: u32, value: &[u8]) -> &mut Self {
        self.expression("cmp", |data| {
            data.be32(1, FIRST).be32(2, operation).nest(3, |wanted| {
                wanted.attribute(DATA_VALUE, value);
            });
        })
    }

    fn bits(&mut self, length: u32, mask: &[u8], xor: &[u8]) -> &mut Self {
        self.expression("bitwise", |data| {
            data.be32(1, FIRST).be32(2, FIRST).be32(3, length);
            data.nest(4, |nest| {
                nest.attribute(DATA_VALUE, mask);
            });
            data.nest(5, |nest| {
                nest.attribute(DATA_VALUE, xor);
            });
        })
    }

    /// Goes on only if the first register is this value.
    pub fn equals(&mut self, value: &[u8]) -> &mut Self {
        self.compare(EQUAL, value)
    }

    /// Goes on only if the address in the first register is (or is not) in a range.
    pub fn in_range(&mut self, range: crate::network::Cidr, wanted: bool) -> &mut Self {
        self.bits(4, &range.netmask().octets(), &[0; 4]);
        self.compare(if wanted { EQUAL } else { NOT_EQUAL }, &range.first.octets())
    }

    /// Goes on only if the packet came by another device than the loopback one.
    pub fn came_from_outside(&mut self) -> &mut Self {
        self.meta(META_INPUT_INDEX, FIRST).compare(NOT_EQUAL, &LOOPBACK_INDEX.to_ne_bytes())
    }

    /// Goes on only if the packet came by the link of this name.
    pub fn came_by(&mut self, link: &str) -> &mut Self {
        self.meta(META_INPUT_NAME, FIRST).compare(EQUAL, &link_name(link))
    }

    /// Goes on only if the packet leaves by the link of this name.
    pub fn goes_by(&mut self, link: &str) -> &mut Self {
        self.meta(META_OUTPUT_NAME, FIRST).compare(EQUAL, &link_name(link))
    }

    /// Goes on only if the packet came by a link whose name begins so.
    pub fn came_by_some(&mut self, prefix: &str) -> &mut Self {
        self.meta(META_INPUT_NAME, FIRST).compare(EQUAL, prefix.as_bytes())
    }

    /// Goes on only if the frame is of another kind than this.
    pub fn is_no_frame_of(&mut self, ethertype: u16) -> &mut Self {
        self.meta(META_ETHERTYPE, FIRST).compare(NOT_EQUAL, &ethertype.to_be_bytes())
    }

    /// Goes on only if it is UDP to this port.
    pub fn is_udp_to(&mut self, port: u16) -> &mut Self {
        const UDP: u8 = 17;
        self.protocol(FIRST).equals(&[UDP]).destination_port(FIRST).equals(&port.to_be_bytes())
    }

    /// Goes on only if the source address is not the one that the sender's hardware address ends with.
    pub fn source_is_not_the_hardware_address(&mut self) -> &mut Self {
        const XOR: u32 = 5;
        self.payload(LINK, 8, 4, FIRST).source(FIRST + 1);
        self.expression("bitwise", |data| {
            data.be32(1, FIRST).be32(2, FIRST).be32(3, 4).be32(6, XOR).be32(8, FIRST + 1);
        });
        self.compare(NOT_EQUAL, &[0; 4])
    }

    /// Goes on only if the destination is an address of this host.
    pub fn destined_here(&mut self) -> &mut Self {
        const ADDRTYPE: u32 = 3;
        const DADDR: u32 = 2;
        const LOCAL: u32 = 2;
        self.expression("fib", |data| {
            data.be32(1, FIRST).be32(2, ADDRTYPE).be32(3, DADDR);
        });
        self.equals(&LOCAL.to_ne_bytes())
    }

    /// Goes on only if the source is an address of this host.
    pub fn comes_from_here(&mut self) -> &mut Self {
        const ADDRTYPE: u32 = 3;
        const SADDR: u32 = 1;
        const LOCAL: u32 = 2;
        self.expression("fib", |data| {
            data.be32(1, FIRST).be32(2, ADDRTYPE).be32(3, SADDR);
        });
        self.equals(&LOCAL.to_ne_bytes())
    }

    /// Looks the concatenation that starts in the first register up in a set; goes on if it is there.
    pub fn in_set(&mut self, set: &str) -> &mut Self {
        self.expression("lookup", |data| {
            data.string(1, set).be32(2, FIRST);
        })
    }

    /// Looks it up in a verdict map and does what stands there.
    pub fn by_map(&mut self, map: &str) -> &mut Self {
        self.expression("lookup", |data| {
            data.string(1, map).be32(2, FIRST).be32(3, VERDICT);
        })
    }

    /// Looks it up in a map of values and puts what stands there in its stead.
    pub fn value_of(&mut self, map: &str) -> &mut Self {
        self.expression("lookup", |data| {
            data.string(1, map).be32(2, FIRST).be32(3, FIRST);
        })
    }

    /// A number below `of` by chance, in the machine's order of bytes.
    pub fn by_chance(&mut self, of: u32) -> &mut Self {
        self.expression("numgen", |data| {
            data.be32(1, FIRST).be32(2, of).be32(3, 1);
        })
    }

    /// Goes on only if the packet is of the direction in which the connection was begun.
    pub fn of_the_client(&mut self) -> &mut Self {
        const DIRECTION: u32 = 1;
        self.expression("ct", |data| {
            data.be32(1, FIRST).be32(2, DIRECTION);
        });
        self.equals(&[0])
    }

    /// Keeps the source address in a set for so many seconds from now on. The rule ends here where the set is full.
    pub fn remember_source(&mut self, set: &str, seconds: u32) -> &mut Self {
        const UPDATE: u32 = 1;
        self.source(FIRST);
        self.expression("dynset", |data| {
            data.string(1, set).be32(3, UPDATE).be32(4, FIRST).attribute(6, &milliseconds(seconds).to_be_bytes());
        })
    }

    fn immediate(&mut self, register: u32, value: &[u8]) -> &mut Self {
        self.expression("immediate", |data| {
            data.be32(1, register).nest(2, |nest| {
                nest.attribute(DATA_VALUE, value);
            });
        })
    }

    /// Sends the connection to another address and port.
    pub fn destination_nat(&mut self, address: Ipv4Addr, port: u16) -> &mut Self {
        self.immediate(FIRST, &address.octets()).immediate(FIRST + 1, &port.to_be_bytes()).destination_nat_by_value()
    }

    /// Sends the connection to the address in the first register and the port in the second one.
    pub fn destination_nat_by_value(&mut self) -> &mut Self {
        const DNAT: u32 = 1;
        const INET: u32 = 2;
        self.expression("nat", |data| {
            data.be32(1, DNAT).be32(2, INET).be32(3, FIRST).be32(5, FIRST + 1);
        })
    }

    /// Gives the connection the address of the interface that it leaves by as its source.
    pub fn masquerade(&mut self) -> &mut Self {
        self.expression("masq", |_| {})
    }

    /// Sets bits of the packet's mark.
    pub fn set_mark(&mut self, mark: u32) -> &mut Self {
        self.meta(META_MARK, FIRST).bits(4, &(!mark).to_ne_bytes(), &mark.to_ne_bytes());
        self.expression("meta", |data| {
            data.be32(2, META_MARK).be32(3, FIRST);
        })
    }

    /// Goes on only if these bits of the packet's mark are set.
    pub fn has_mark(&mut self, mark: u32) -> &mut Self {
        self.meta(META_MARK, FIRST).bits(4, &mark.to_ne_bytes(), &[0; 4]).equals(&mark.to_ne_bytes())
    }

    /// Refuses: TCP with a reset, others with "port unreachable".
    pub fn reject(&mut self, tcp: bool) -> &mut Self {
        const PORT_UNREACHABLE: u8 = 3;
        self.expression("reject", |data| {
            if tcp {
                data.be32(1, 1).attribute(2, &[0]);
            } else {
                data.be32(1, 0).attribute(2, &[PORT_UNREACHABLE]);
            }
        })
    }

    /// A verdict.
    pub fn verdict(&mut self, verdict: &Verdict) -> &mut Self {
        self.expression("immediate", |data| {
            data.be32(1, VERDICT).nest(2, |nest| verdict.write(nest));
        })
    }
}
