//! Chains of others that drop what they do not know of what is forwarded (Docker's and ufw's policy is that). Packets
//! between pods pass there, and an accept in a table of ours does not help: as other pod networks do, rules for the
//! links of ours are put at the head of such a chain, marked by their comment, and taken away by `mainstay down`.
//!
//! Chains of iptables' older kind (`iptables-legacy`) are not seen here.

use std::io;

use super::expression::{Rule, Verdict};
use super::table::{FORWARD, transact};
use crate::network::machines::OVERLAY;
use crate::network::netlink::{CREATE, DUMP, Message, Socket, find};
use crate::network::{POD_BRIDGE, wireguard};

const NFTABLES: u16 = 10 << 8;
const GET_CHAIN: u16 = NFTABLES | 4;
const NEW_RULE: u16 = NFTABLES | 6;
const GET_RULE: u16 = NFTABLES | 7;
const DEL_RULE: u16 = NFTABLES | 8;
/// Tables of IPv4, and of both IPs.
const FAMILIES: [u8; 2] = [2, 1];
const TABLE: u16 = 1;
const CHAIN: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_NOTE: u16 = 7;
const DROP: u32 = 0;
/// A comment as `nft` writes and shows it.
const OURS: &[u8] = b"\x00\x09mainstay\x00";
const LINKS: [&str; 3] = [POD_BRIDGE, OVERLAY, wireguard::LINK];

/// A chain that the kernel calls for what is forwarded.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Chain {
    family: u8,
    table: Vec<u8>,
    name: Vec<u8>,
    drops: bool,
}

fn word(bytes: &[u8], wanted: u16) -> Option<u32> {
    find(bytes, wanted)?.try_into().ok().map(u32::from_be_bytes)
}

/// The chain that an answer is about, if it is one of those.
fn chain(body: &[u8]) -> Option<Chain> {
    let (family, body) = (*body.first()?, body.get(4..)?);
    let is_forward = word(find(body, CHAIN_HOOK)?, 1) == Some(FORWARD);
    let (table, name) = (find(body, TABLE)?.to_vec(), find(body, CHAIN)?.to_vec());
    is_forward.then(|| Chain { family, table, name, drops: word(body, CHAIN_POLICY) == Some(DROP) })
}

fn chains(socket: &mut Socket) -> io::Result<Vec<Chain>> {
    let mut found = Vec::new();
    for family in FAMILIES {
        let dump = Message::new(GET_CHAIN, DUMP, &[family, 0, 0, 0]);
        socket.each_answer(dump, |_, body| found.extend(chain(body)))?;
    }
    Ok(found)
}

impl Chain {
    fn message(&self, kind: u16, flags: u16) -> Message {
        let mut message = Message::new(kind, flags, &[self.family, 0, 0, 0]);
        message.attribute(TABLE, &self.table).attribute(RULE_CHAIN, &self.name);
        message
    }

    /// The rules of ours that it has.
    fn ours(&self, socket: &mut Socket) -> io::Result<Vec<Vec<u8>>> {
        let mut found = Vec::new();
        socket.each_answer(self.message(GET_RULE, DUMP), |_, body| {
            let body = body.get(4..).unwrap_or_default();
            if find(body, RULE_NOTE) == Some(OURS) {
                found.extend(find(body, RULE_HANDLE).map(<[u8]>::to_vec));
            }
        })?;
        Ok(found)
    }

    fn gone(&self, handle: &[u8]) -> Message {
        let mut message = self.message(DEL_RULE, 0);
        message.attribute(RULE_HANDLE, handle);
        message
    }

    /// A rule at its head.
    fn accepting(&self, fill: impl FnOnce(&mut Rule<'_>)) -> Message {
        let mut message = self.message(NEW_RULE, CREATE);
        message.nest(RULE_EXPRESSIONS, |list| {
            let mut rule = Rule::new(list);
            fill(&mut rule);
            rule.verdict(&Verdict::Accept);
        });
        message.attribute(RULE_NOTE, OURS);
        message
    }
}

/// Lets what goes to pods and comes from them pass others' chains that would drop it; says how many there were that
/// did not. What is there already is kept.
///
/// # Errors
/// The kernel's.
pub(super) fn pass(socket: &mut Socket) -> io::Result<usize> {
    let mut count = 0;
    for chain in chains(socket)?.iter().filter(|chain| chain.drops) {
        let ours = chain.ours(socket)?;
        if ours.len() == 2 * LINKS.len() {
            continue;
        }
        let mut messages: Vec<Message> = ours.iter().map(|handle| chain.gone(handle)).collect();
        for link in LINKS {
            messages.push(chain.accepting(|rule| {
                rule.came_by(link);
            }));
            messages.push(chain.accepting(|rule| {
                rule.goes_by(link);
            }));
        }
        transact(socket, messages)?;
        count += 1;
    }
    Ok(count)
}

/// Takes our rules out of others' chains.
///
/// # Errors
/// The kernel's.
pub(super) fn leave(socket: &mut Socket) -> io::Result<()> {
    for chain in chains(socket)? {
        let messages: Vec<Message> = chain.ours(socket)?.iter().map(|handle| chain.gone(handle)).collect();
        if !messages.is_empty() {
            transact(socket, messages)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::table::{Sees, Table};
    use super::*;
    use crate::network::netlink::Family;

    #[test]
    fn n4_others_chains_that_drop_let_pods_packets_pass() {
        // A network of this thread's own. Needs root.
        let work = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root");
            let mut socket = Socket::open(Family::Netfilter).expect("nftables");
            let other = Table("filter", Sees::Ipv4);
            let mut forward = other.base_chain("FORWARD", "filter", FORWARD, 0);
            forward.be32(CHAIN_POLICY, DROP);
            let open = other.base_chain("open", "filter", FORWARD, 1);
            transact(&mut socket, vec![other.made(), forward, open]).expect("somebody's firewall");
            let ours = |socket: &mut Socket| -> Vec<(bool, usize)> {
                let all = chains(socket).expect("listed");
                all.iter().map(|chain| (chain.drops, chain.ours(socket).expect("listed").len())).collect()
            };
            assert_eq!(ours(&mut socket), [(true, 0), (false, 0)]);
            assert_eq!(pass(&mut socket).expect("let pass"), 1);
            assert_eq!(pass(&mut socket).expect("as it is"), 0);
            assert_eq!(ours(&mut socket), [(true, 2 * LINKS.len()), (false, 0)]);
            transact(&mut socket, vec![other.emptied("FORWARD")]).expect("reloaded");
            assert_eq!(pass(&mut socket).expect("let pass again"), 1);
            leave(&mut socket).expect("taken away");
            assert_eq!(ours(&mut socket), [(true, 0), (false, 0)]);
        };
        std::thread::spawn(work).join().expect("it held");
    }
}
