//! What the pod network of one node has to know of the other nodes, as plain data: [`peer`]. The node turns it into
//! routes, neighbours and forwarding entries.
//!
//! Relies on: a Node's range of pod addresses being given to one Node only, by the server. Believes no Node that names
//! addresses which are not for it to name: a range outside of the cluster's, or an address that is a pod's.

use std::net::Ipv4Addr;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Node;
use serde_json::json;

/// Where a Node says its [`Key`], in base64 as `wg` prints it.
pub const WIREGUARD_KEY: &str = "mainstay.io/wireguard-public-key";

/// A public key of WireGuard.
pub type Key = [u8; 32];

/// A range of addresses: the first, and the bits that are fixed.
pub type Range = (Ipv4Addr, u8);

/// Another node: its pods, and where it is reached.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Peer {
    /// Its pods' addresses.
    pub range: Range,
    /// Its own.
    pub address: Ipv4Addr,
    /// By which packets to its pods are encrypted and those from them are known, where it says one.
    pub key: Option<Key>,
}

impl Peer {
    /// The hardware address of its end of the overlay: of the address that names its range, which no pod has. Whoever
    /// knows the Node knows it, so nobody has to ask the network.
    pub fn hardware(&self) -> [u8; 6] {
        let [a, b, c, d] = self.range.0.octets();
        [0x0a, 0x58, a, b, c, d]
    }
}

fn mask(bits: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0)
}

fn contains((first, bits): Range, address: Ipv4Addr) -> bool {
    u32::from(address) & mask(bits) == u32::from(first)
}

fn parse(text: &str) -> Option<Range> {
    let (first, bits) = text.split_once('/')?;
    let (first, bits): (Ipv4Addr, u8) = (first.parse().ok()?, bits.parse().ok()?);
    (bits <= 32 && u32::from(first) & !mask(bits) == 0).then_some((first, bits))
}

/// What a Node says of its key. One that is no key is as good as none.
fn key(node: &Node) -> Option<Key> {
    let text = node.metadata.annotations.as_ref()?.get(WIREGUARD_KEY)?;
    let ByteString(bytes) = serde_json::from_value(json!(text)).ok()?;
    bytes.try_into().ok()
}

/// The peer that a Node is to the node `own`, in a cluster whose pods have the addresses `all`. `None` for itself, for
/// a Node without a range or an address, and for one that names what it may not.
pub fn peer(node: &Node, own: &str, all: Range) -> Option<Peer> {
    if node.metadata.name.as_deref() == Some(own) {
        return None;
    }
    let range = parse(node.spec.as_ref()?.pod_cidr.as_deref()?)?;
    let addresses = node.status.as_ref()?.addresses.iter().flatten();
    let mut internal = addresses.filter(|address| address.type_ == "InternalIP");
    let address: Ipv4Addr = internal.find_map(|address| address.address.parse().ok())?;
    let is_usable = !address.is_loopback() && !address.is_unspecified() && !address.is_multicast();
    let is_within = range.1 > all.1 && contains(all, range.0);
    (is_within && is_usable && !contains(all, address)).then(|| Peer { range, address, key: key(node) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(name: &str, range: &str, address: &str) -> Node {
        serde_json::from_value(json!({
            "metadata": { "name": name }, "spec": { "podCIDR": range },
            "status": { "addresses": [{ "type": "Hostname", "address": name },
                { "type": "InternalIP", "address": address }] },
        }))
        .unwrap()
    }

    #[test]
    fn a_key_is_one_or_none() {
        let all = (Ipv4Addr::new(10, 244, 0, 0), 16);
        let judged = |text: &str| {
            let mut node = node("b", "10.244.1.0/24", "192.0.2.2");
            node.metadata.annotations = Some([(WIREGUARD_KEY.to_owned(), text.to_owned())].into());
            peer(&node, "a", all).unwrap().key
        };
        assert_eq!(
            judged("AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
            Some([&[1][..], &[0; 31]].concat()[..].try_into().unwrap())
        );
        for text in ["", "AQAA", "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "no key"] {
            assert_eq!(judged(text), None, "{text}");
        }
    }

    #[test]
    fn a_peer_is_what_its_node_may_say_n4() {
        let all = (Ipv4Addr::new(10, 244, 0, 0), 16);
        let judged = |range: &str, address: &str| peer(&node("b", range, address), "a", all);
        let found = judged("10.244.1.0/24", "192.0.2.2").unwrap();
        assert_eq!(found.range, (Ipv4Addr::new(10, 244, 1, 0), 24));
        assert_eq!(found.address, Ipv4Addr::new(192, 0, 2, 2));
        assert_eq!(found.hardware(), [0x0a, 0x58, 10, 244, 1, 0]);
        assert_eq!(peer(&node("a", "10.244.1.0/24", "192.0.2.2"), "a", all), None, "itself");
        for (range, address) in [
            ("", "192.0.2.2"),
            ("10.244.1.0", "192.0.2.2"),
            ("10.244.1.1/24", "192.0.2.2"),
            ("10.244.1.0/33", "192.0.2.2"),
            ("10.96.0.0/16", "192.0.2.2"),
            ("0.0.0.0/0", "192.0.2.2"),
            ("10.244.0.0/16", "192.0.2.2"),
            ("10.244.1.0/24", ""),
            ("10.244.1.0/24", "127.0.0.1"),
            ("10.244.1.0/24", "10.244.0.1"),
            ("10.244.1.0/24", "2001:db8::1"),
        ] {
            assert_eq!(judged(range, address), None, "{range} {address}");
        }
    }
}
