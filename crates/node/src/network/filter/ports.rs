//! What the bridge's ports take from pods: IPv4, and ARP for it. In IPv6 a pod could name itself everybody's router
//! (X6); a pod that may configure its own links can switch it on again.

use std::io;

use super::table::{PREROUTING, Sees, Table, transact};
use super::{PAIR_PREFIX, Verdict};
use crate::network::netlink::Socket;

pub(super) const TABLE: Table = Table("mainstay-ports", Sees::Bridge);
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;

/// Makes the table in place of whatever is there.
///
/// # Errors
/// The kernel's: it may have no tables for bridges.
pub(super) fn guard(socket: &mut Socket) -> io::Result<()> {
    let mut messages: Vec<_> = TABLE.made_anew().into();
    messages.push(TABLE.base_chain("from-pods", "filter", PREROUTING, -300));
    messages.push(TABLE.rule("from-pods", |rule| {
        rule.came_by_some(PAIR_PREFIX).is_no_frame_of(IPV4).is_no_frame_of(ARP).verdict(&Verdict::Drop);
    }));
    transact(socket, messages)
}
