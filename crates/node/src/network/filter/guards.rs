//! The table with its maps, hooks and guards, and without Services.

use super::expression::{FIRST, Verdict};
use super::table::{FORWARD, Holds, INPUT, OUTPUT, POSTROUTING, PREROUTING, Table};
use super::{FRONTS, HAIRPINS, LOOPBACK, MASQUERADE_MARK, NODE_PORTS, Protocol, REFUSED, TABLE};
use crate::network::netlink::{Message, Socket};
use crate::network::{Cidr, POD_BRIDGE};

/// Where it is tried out what a kernel can do; never there for longer than one transaction.
const PROBE: Table = Table("mainstay-probe", super::table::Sees::Ipv4);

/// Whether the kernel compares two parts of a packet (Linux 6.13).
///
/// # Errors
/// The kernel's, where that says nothing about it.
pub(super) fn checks_senders(socket: &mut Socket) -> std::io::Result<bool> {
    let tried = PROBE.rule("probe", |rule| {
        rule.source_is_not_the_hardware_address().verdict(&Verdict::Drop);
    });
    let messages = vec![PROBE.made(), PROBE.chain("probe"), tried, PROBE.gone()];
    match super::table::transact(socket, messages) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(nix::libc::EINVAL | nix::libc::EOPNOTSUPP)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes it in place of whatever table is there.
pub(super) fn made_anew(pods: Cidr, services: Cidr, checks_senders: bool) -> Vec<Message> {
    let mut messages: Vec<Message> = TABLE.made_anew().into();
    messages.extend([
        TABLE.set(FRONTS, 12, Holds::Verdicts, 1),
        TABLE.set(NODE_PORTS, 8, Holds::Verdicts, 2),
        TABLE.set(HAIRPINS, 8, Holds::Keys, 3),
        TABLE.set(REFUSED, 12, Holds::Keys, 4),
        TABLE.base_chain("raw-guard", "filter", PREROUTING, -300),
        TABLE.base_chain("prerouting", "nat", PREROUTING, -100),
        TABLE.base_chain("output", "nat", OUTPUT, -100),
        TABLE.base_chain("postrouting", "nat", POSTROUTING, 100),
        TABLE.base_chain("input-guard", "filter", INPUT, 0),
        TABLE.base_chain("forward-guard", "filter", FORWARD, 0),
        TABLE.base_chain("output-guard", "filter", OUTPUT, 0),
    ]);
    for hook in ["prerouting", "output"] {
        messages.push(TABLE.rule(hook, |rule| {
            rule.destination(FIRST).protocol(FIRST + 1).destination_port(FIRST + 2).by_map(FRONTS);
        }));
        messages.push(TABLE.rule(hook, |rule| {
            // The kernel drops what goes from a loopback address to a pod: there a node port is refused instead, as
            // kube-proxy's nftables mode has it.
            rule.destined_here().destination(FIRST).in_range(LOOPBACK, false);
            rule.protocol(FIRST).destination_port(FIRST + 1).by_map(NODE_PORTS);
        }));
    }
    // The bridge lets answers to this host's loopback addresses in (a host port there); nobody else gets to them.
    messages.push(TABLE.rule("raw-guard", |rule| {
        rule.came_from_outside().destination(FIRST).in_range(LOOPBACK, true).verdict(&Verdict::Drop);
    }));
    // A Service may have an endpoint there, whatever its slices say: what it leads to does not get in either (X6).
    messages.push(TABLE.rule("input-guard", |rule| {
        rule.came_by(POD_BRIDGE).destination(FIRST).in_range(LOOPBACK, true);
        rule.of_the_client().verdict(&Verdict::Drop);
    }));
    // A pod's port takes packets of its own hardware address only (`Links::tie_port`), and that names its address.
    if checks_senders {
        messages.push(TABLE.rule("raw-guard", |rule| {
            rule.came_by(POD_BRIDGE).source_is_not_the_hardware_address().verdict(&Verdict::Drop);
        }));
    }
    messages.push(TABLE.rule("postrouting", |rule| {
        rule.source(FIRST).destination(FIRST + 1).in_set(HAIRPINS).masquerade();
    }));
    messages.push(TABLE.rule("postrouting", |rule| {
        rule.has_mark(MASQUERADE_MARK).masquerade();
    }));
    messages.push(TABLE.rule("postrouting", |rule| {
        rule.source(FIRST).in_range(pods, true).destination(FIRST).in_range(pods, false).masquerade();
    }));
    for guard in ["input-guard", "forward-guard", "output-guard"] {
        messages.push(TABLE.rule(guard, |rule| {
            rule.protocol(FIRST).equals(&[Protocol::Tcp as u8]);
            rule.destination(FIRST).protocol(FIRST + 1).destination_port(FIRST + 2).in_set(REFUSED).reject(true);
        }));
        messages.push(TABLE.rule(guard, |rule| {
            rule.destination(FIRST).protocol(FIRST + 1).destination_port(FIRST + 2).in_set(REFUSED).reject(false);
        }));
    }
    messages.push(TABLE.rule("output-guard", |rule| {
        // The cluster's own DNS server has an address of the range on this host.
        rule.destined_here().verdict(&Verdict::Accept);
    }));
    for guard in ["forward-guard", "output-guard"] {
        messages.push(TABLE.rule(guard, |rule| {
            rule.destination(FIRST)
                .in_range(services, true)
                .protocol(FIRST)
                .equals(&[Protocol::Tcp as u8])
                .reject(true);
        }));
        messages.push(TABLE.rule(guard, |rule| {
            rule.destination(FIRST).in_range(services, true).reject(false);
        }));
    }
    messages
}
