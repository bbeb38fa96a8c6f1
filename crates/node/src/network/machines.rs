//! The pod network between machines, from Node objects alone: nothing is asked of the network and nothing is flooded.
//!
//! ```text
//! routes:     10.244.1.0/24 via 192.0.2.2                      (the other machine's own address, on a shared link)
//! vxlan:      10.244.1.0/24 via 10.244.1.0 dev mst-vxlan onlink
//!             10.244.1.0 is at 0a:58:0a:f4:01:00               (neighbour, permanent)
//!             0a:58:0a:f4:01:00 is on 192.0.2.2                (forwarding entry, permanent)
//! wireguard:  10.244.1.0/24 dev mst-wireguard                  (and who that is: [`super::wireguard`])
//! ```
//!
//! What is in the kernel is brought up to date by what differs. Routes that an earlier process left stay until all
//! Nodes have been listed once: a list that fails takes nothing away. Then it is known whose packets the overlay takes
//! ([`OverlayGuard`]).

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use mainstay_api::kinds;
use mainstay_client::{Client, Informer, ListOptions, Notice};
use mainstay_logic::peers::{Peer, peer};

use super::filter::overlay::OverlayGuard;
use super::link::{Keeper, Links, Vxlan, Way};
use super::wireguard::{self, WireGuard};
use super::{Between, Network, NetworkConfig, NetworkError, step};

/// This machine's end of the overlay.
pub const OVERLAY: &str = "mst-vxlan";
/// The overlay's number and port: Linux's own, which others that build one from Node objects use as well.
const ID: u32 = 1;
pub const PORT: u16 = 8472;
/// How often what the kernel refused is tried again, and looked whether what it has is still there.
const RETRY: Duration = Duration::from_secs(5);

/// What leads to other machines in the kernel.
#[derive(Debug)]
pub struct Machines {
    config: NetworkConfig,
    mtu: u32,
    links: Links,
    /// Who may send into the overlay, where there is one.
    guard: Option<OverlayGuard>,
    /// Made with the first peer: a machine that stays alone needs none.
    overlay: Option<u32>,
    /// Where what pods send is encrypted.
    tunnel: Option<WireGuard>,
    /// What was told to the kernel, by Node.
    peers: BTreeMap<String, Peer>,
}

impl Machines {
    /// Opens what is there.
    pub fn open(network: &Network) -> Result<Self, NetworkError> {
        let mut links = step("opening netlink", Links::open())?;
        let config = network.config().clone();
        // What the cluster had before, with another kind of network.
        for (link, of) in [(OVERLAY, Between::Vxlan), (wireguard::LINK, Between::WireGuard)] {
            if config.between != of {
                step(format!("removing {link}"), links.remove(link))?;
            }
        }
        let guard =
            (config.between == Between::Vxlan).then(|| OverlayGuard::open(config.cluster_cidr, config.pod_cidr));
        let guard = step("opening the packet filter", guard.transpose())?;
        let (mtu, peers) = (network.mtu(), BTreeMap::new());
        Ok(Self { config, mtu, links, guard, overlay: None, tunnel: None, peers })
    }

    /// Makes the overlay's guard, or makes it again where somebody took it away.
    fn ensure_guard(&mut self) -> io::Result<()> {
        let Some(guard) = &mut self.guard else { return Ok(()) };
        if guard.is_in_place()? { Ok(()) } else { guard.fill() }
    }

    /// Brings the kernel up to what a Node is now (`None`: it is gone, or no peer).
    fn set(&mut self, node: &str, wanted: Option<Peer>) -> io::Result<()> {
        let had = self.peers.get(node).copied();
        if had == wanted {
            return Ok(());
        }
        // Another Node may have the range by now; then it is not this one's to take away.
        if let Some(old) = had.filter(|old| wanted.is_none_or(|new| new.range != old.range)) {
            self.peers.remove(node);
            self.admit(node, None)?;
            if !self.peers.values().any(|peer| peer.range == old.range) {
                self.links.remove_route(old.range, Keeper::Machines)?;
                if let Some(overlay) = self.overlay {
                    self.links.remove_overlay_peer(overlay, old.range.0, old.hardware())?;
                }
            }
        }
        self.forget_key(had, wanted)?;
        let Some(new) = wanted else { return Ok(()) };
        self.admit(node, Some(new.address))?;
        match self.config.between {
            Between::Routes => self.links.ensure_machine_route(new.range, Way::Machine(new.address))?,
            Between::Vxlan => {
                let overlay = self.ensure_overlay()?;
                self.links.ensure_overlay_peer(overlay, new.range.0, new.hardware(), new.address)?;
                self.links.ensure_machine_route(new.range, Way::Overlay(new.range.0, overlay))?;
            }
            Between::WireGuard => {
                let key = new.key.ok_or_else(|| io::Error::other("it has not said its key of WireGuard yet"))?;
                if self.peers.iter().any(|(other, peer)| other != node && peer.key == Some(key)) {
                    return Err(io::Error::other("it says the key of another machine"));
                }
                let tunnel = self.ensure_tunnel()?;
                tunnel.set_peer(key, new.address, new.range)?;
                let way = Way::Tunnel(tunnel.index());
                self.links.ensure_machine_route(new.range, way)?;
            }
        }
        self.peers.insert(node.to_owned(), new);
        Ok(())
    }

    /// Those peers, to be told to the kernel again, to which no route leads any more, or not by the overlay, or that
    /// the tunnel does not know: somebody took link, routes or peers away.
    fn lost(&mut self) -> io::Result<Vec<(String, Peer)>> {
        let mut is_same = true;
        if let Some(overlay) = self.overlay {
            is_same &= self.links.index(OVERLAY)? == Some(overlay);
        }
        let mut keys = Vec::new();
        if let Some(tunnel) = &mut self.tunnel {
            is_same &= self.links.index(wireguard::LINK)? == Some(tunnel.index());
            keys = if is_same { tunnel.peers()? } else { keys };
        }
        if !is_same {
            (self.overlay, self.tunnel) = (None, None);
        }
        let routes = self.links.routes_of(Keeper::Machines)?;
        let is_known = |peer: &Peer| self.tunnel.is_none() || peer.key.is_some_and(|key| keys.contains(&key));
        let is_lost = |peer: &Peer| !is_same || !routes.contains(&peer.range) || !is_known(peer);
        Ok(self.peers.extract_if(.., |_, peer| is_lost(peer)).collect())
    }

    /// Whoever has the key that a Node had and has no more is no longer believed.
    fn forget_key(&mut self, had: Option<Peer>, wanted: Option<Peer>) -> io::Result<()> {
        let gone = had.and_then(|had| had.key).filter(|key| wanted.and_then(|wanted| wanted.key) != Some(*key));
        match (gone, &mut self.tunnel) {
            (Some(key), Some(tunnel)) => tunnel.remove_peer(key),
            _ => Ok(()),
        }
    }

    fn admit(&mut self, node: &str, address: Option<Ipv4Addr>) -> io::Result<()> {
        self.guard.as_mut().map_or(Ok(()), |guard| guard.admit(node, address))
    }

    fn ensure_overlay(&mut self) -> io::Result<u32> {
        if let Some(overlay) = self.overlay {
            return Ok(overlay);
        }
        let range = self.config.pod_cidr;
        let own = Peer { range: (range.first, range.prefix), address: self.config.node_address, key: None };
        let vxlan = Vxlan { id: ID, port: PORT, local: own.address, hardware: own.hardware(), mtu: self.mtu };
        let made = self.links.ensure_vxlan(OVERLAY, vxlan);
        let overlay = made.map_err(|error| match error.raw_os_error() {
            Some(nix::libc::EOPNOTSUPP) => {
                io::Error::new(error.kind(), "this kernel has no vxlan; a cluster of `--pod-network=routes` needs none")
            }
            _ => error,
        })?;
        // The source of what this machine itself sends to other machines' pods.
        self.links.ensure_address(overlay, range.first, 32)?;
        self.overlay = Some(overlay);
        Ok(overlay)
    }

    fn ensure_tunnel(&mut self) -> io::Result<&mut WireGuard> {
        if self.tunnel.is_none() {
            let tunnel = WireGuard::open(&self.config.folder, self.mtu)?;
            // The source of what this machine itself sends to other machines' pods.
            self.links.ensure_address(tunnel.index(), self.config.pod_cidr.first, 32)?;
            self.tunnel = Some(tunnel);
        }
        self.tunnel.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Takes away routes and keys that an earlier process left and that neither a peer has nor one of those that are
    /// `wanted`.
    fn forget_others(&mut self, wanted: &BTreeMap<String, Option<Peer>>) -> io::Result<()> {
        if self.config.between == Between::WireGuard {
            let known: Vec<_> = self.peers.values().chain(wanted.values().flatten()).map(|peer| peer.key).collect();
            let tunnel = self.ensure_tunnel()?;
            for key in tunnel.peers()?.into_iter().filter(|key| !known.contains(&Some(*key))) {
                tunnel.remove_peer(key)?;
            }
        }
        for route in self.links.routes_of(Keeper::Machines)? {
            if !self.peers.values().chain(wanted.values().flatten()).any(|peer| peer.range == route) {
                self.links.remove_route(route, Keeper::Machines)?;
            }
        }
        Ok(())
    }
}

/// Keeps the kernel's routes by a watch of all Nodes, until dropped. `own_node` hears of this machine's own.
pub async fn keep(network: Arc<Network>, client: Client, own: String, own_node: Arc<dyn Fn(&Node) + Send + Sync>) {
    let mut machines = match Machines::open(&network) {
        Ok(machines) => machines,
        Err(error) => return tracing::error!(%error, "the network between machines cannot be opened"),
    };
    let all = (machines.config.cluster_cidr.first, machines.config.cluster_cidr.prefix);
    let mut nodes = Informer::new(client, &kinds::NODE, "", ListOptions::default());
    // What each Node should be, of those that the kernel refused.
    let mut refused: BTreeMap<String, Option<Peer>> = BTreeMap::new();
    let mut listed = false;
    let mut looked: Option<Instant> = None;
    loop {
        match tokio::time::timeout(RETRY, nodes.next()).await.ok() {
            Some(Notice::Put(key, node)) => {
                let node = serde_json::from_value::<Node>(node).ok();
                if let Some(node) = node.as_ref().filter(|_| *key.name == *own) {
                    own_node(node);
                }
                let wanted = node.and_then(|node| peer(&node, &own, all));
                refused.insert(key.name.to_string(), wanted);
            }
            Some(Notice::Gone(key, _)) => drop(refused.insert(key.name.to_string(), None)),
            Some(Notice::Synced) => {
                (listed, looked) = (true, None);
                if let Err(error) = machines.forget_others(&refused) {
                    tracing::warn!(%error, "old routes to other machines stay");
                }
            }
            None => {}
        }
        refused.retain(|node, wanted| match machines.set(node, *wanted) {
            Ok(()) => false,
            Err(error) => {
                tracing::warn!(node, %error, "the pods of another machine are not reached; trying again");
                true
            }
        });
        if listed && looked.is_none_or(|looked| looked.elapsed() >= RETRY) {
            looked = Some(Instant::now());
            match machines.lost() {
                Ok(lost) => {
                    for (node, peer) in lost {
                        tracing::warn!(node, "somebody took the way to another machine's pods away; it is made again");
                        refused.entry(node).or_insert(Some(peer));
                    }
                }
                Err(error) => tracing::warn!(%error, "the ways to other machines cannot be looked at"),
            }
            if let Err(error) = machines.ensure_guard() {
                tracing::warn!(%error, "anybody may send into the overlay; trying again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Cidr;
    use super::super::tests::apart;
    use super::*;

    #[test]
    fn a_way_to_another_machine_that_somebody_took_away_is_made_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let range = |text| Cidr::parse(text).expect("a range");
        let config = NetworkConfig {
            folder: folder.path().join("network"),
            machine: "m".to_owned(),
            pod_cidr: range("10.244.0.0/24"),
            cluster_cidr: range("10.244.0.0/16"),
            service_cidr: range("10.96.0.0/16"),
            dns_address: Ipv4Addr::new(10, 96, 0, 10),
            node_address: Ipv4Addr::new(192, 0, 2, 1),
            between: Between::Routes,
        };
        apart(move || {
            let network = Network::open(config).expect("opened");
            let mut machines = Machines::open(&network).expect("opened");
            let out = machines.links.ensure_bridge("out", [2, 0, 0, 0, 0, 1]).expect("a link");
            machines.links.ensure_address(out, Ipv4Addr::new(192, 0, 2, 1), 24).expect("an address");
            let peer =
                Peer { range: (Ipv4Addr::new(10, 244, 1, 0), 24), address: Ipv4Addr::new(192, 0, 2, 2), key: None };
            machines.set("b", Some(peer)).expect("set");
            assert_eq!(machines.lost().expect("looked"), []);
            machines.links.remove("out").expect("taken away");
            let out = machines.links.ensure_bridge("out", [2, 0, 0, 0, 0, 1]).expect("a link");
            machines.links.ensure_address(out, Ipv4Addr::new(192, 0, 2, 1), 24).expect("an address");
            assert_eq!(machines.lost().expect("looked"), [("b".to_owned(), peer)]);
            machines.set("b", Some(peer)).expect("set again");
            assert_eq!(machines.lost().expect("looked"), []);
            assert_eq!(machines.links.routes_of(Keeper::Machines).expect("listed"), [peer.range]);
        });
    }
}
