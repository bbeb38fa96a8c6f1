//! The pod network of a node: a bridge, a pair of interfaces per pod, addresses, the packet filter of the Services
//! and the cluster's DNS server.
//!
//! ```text
//! pod: eth0 10.244.0.5/32 ──veth──┐
//! pod: eth0 10.244.0.6/32 ──veth──┤ bridge mst-pods 10.244.0.1/24 ── host ── other machines (see [`machines`])
//!                                 │ bridge mst-services 10.96.0.10/32 (no ports; the service range is routed to it)
//! ```
//!
//! Pods have /32 addresses and send everything to the gateway, so that every packet passes the host's packet
//! filter, replies between two pods of the bridge included. The service range has a route to a link of ours, so
//! that a packet to a Service without rules can't follow the default route out of the machine (N4).

mod address;
mod complaints;
pub mod conntrack;
pub mod dns;
pub mod filter;
pub mod guard;
mod health_checks;
mod hold;
mod link;
mod look;
pub mod machines;
mod netlink;
mod service_rules;
pub mod view;
pub mod wireguard;

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

pub use address::Cidr;
use address::Leases;
pub use address::has_leases;
use conntrack::{Conntrack, Which};
pub use hold::{Held, Owner, hold};
use link::{Keeper, Links, Route};
pub use look::Looked;
use mainstay_logic::peers::Key;
use wireguard::WireGuard;

/// The bridge of the pods.
pub const POD_BRIDGE: &str = "mst-pods";
/// The link that the service range is routed to.
pub const SERVICE_LINK: &str = "mst-services";
/// What every pod's interface on the host begins with.
const PAIR_PREFIX: &str = "mst";
/// Ethernet's usual size, where no link says another.
const MTU: u32 = 1500;
/// What is not less than this holds TCP's usual segments; no link is taken for smaller.
const LEAST_MTU: u32 = 576;
/// The widest range of Service addresses that is led to their link, as the length of its prefix.
const WIDEST_RANGE: u8 = 8;
/// The overlay's headers: Ethernet, IPv4, UDP, VXLAN.
const OVERLAY_BYTES: u32 = 50;
/// A tunnel's headers and end: IPv4, UDP, WireGuard's own 16 bytes and its tag of 16.
const TUNNEL_BYTES: u32 = 60;

/// What the network needs to know.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// Where leases are kept.
    pub folder: PathBuf,
    /// Which machine this is: whose the links are.
    pub machine: String,
    /// This node's range of pod addresses.
    pub pod_cidr: Cidr,
    /// All nodes' pods.
    pub cluster_cidr: Cidr,
    /// The Services' range.
    pub service_cidr: Cidr,
    /// The cluster DNS server's address, in the Services' range.
    pub dns_address: Ipv4Addr,
    /// This machine's address, by which other machines reach it.
    pub node_address: Ipv4Addr,
    /// How packets get to other machines' pods.
    pub between: Between,
}

/// How packets get from one machine's pods to another's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Between {
    /// Inside UDP, from machine to machine: whatever lies between them.
    Vxlan,
    /// As they are, by routes: the machines share a link.
    Routes,
    /// Encrypted by the kernel's WireGuard, each to the machine that has the pods.
    WireGuard,
}

impl Between {
    /// Reads `vxlan`, `routes` or `wireguard`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "vxlan" => Some(Self::Vxlan),
            "routes" => Some(Self::Routes),
            "wireguard" => Some(Self::WireGuard),
            _ => None,
        }
    }

    /// Bytes that are added to each packet on the way.
    fn overhead(self) -> u32 {
        match self {
            Self::Vxlan => OVERLAY_BYTES,
            Self::Routes => 0,
            Self::WireGuard => TUNNEL_BYTES,
        }
    }

    /// The UDP port that is this machine's own for what comes from other machines' pods.
    pub fn port(self) -> Option<u16> {
        match self {
            Self::Vxlan => Some(machines::PORT),
            Self::Routes => None,
            Self::WireGuard => Some(wireguard::PORT),
        }
    }
}

impl NetworkConfig {
    /// Whose the links are.
    fn owner(&self) -> Owner {
        Owner::new(&self.machine, &self.folder)
    }

    /// The node's own address on the bridge: the pods' gateway.
    pub fn gateway(&self) -> Ipv4Addr {
        self.pod_cidr.at(1).unwrap_or(self.pod_cidr.first)
    }

    /// Whether packets to a range may be led to the Services' link: none of this machine's own, none of pods'.
    fn may_lead(&self, range: Cidr) -> bool {
        let overlaps = |other: Cidr| range.covers(other) || other.covers(range);
        let own = Cidr { first: self.node_address, prefix: 32 };
        let loopback = Cidr { first: Ipv4Addr::new(127, 0, 0, 0), prefix: 8 };
        range.prefix >= WIDEST_RANGE && ![own, loopback, self.cluster_cidr, self.pod_cidr].into_iter().any(overlaps)
    }
}

/// Why the network could not be set up or a pod not be attached.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}{hint}", hint = hint(source))]
pub struct NetworkError {
    step: String,
    source: io::Error,
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => " (is this root, with CAP_NET_ADMIN?)",
        _ => "",
    }
}

fn step<T>(step: impl Into<String>, result: io::Result<T>) -> Result<T, NetworkError> {
    result.map_err(|source| NetworkError { step: step.into(), source })
}

/// The pod network of this node.
#[derive(Debug)]
pub struct Network {
    config: NetworkConfig,
    state: Mutex<State>,
    /// By itself: to look for a pod's connections takes longer than to connect another one.
    conntrack: Mutex<Conntrack>,
    /// By which other machines know what this one's pods send, where that is encrypted.
    key: Option<Key>,
}

#[derive(Debug)]
struct State {
    links: Links,
    leases: Leases,
    bridge: u32,
    services: u32,
    /// The ranges of Services that are to be led to their link beside the cluster's own.
    ranges: Vec<Cidr>,
    /// Those of them that are.
    led: Vec<(Ipv4Addr, u8)>,
    /// The largest packet of a pod.
    mtu: u32,
}

/// A hardware address that follows from the IP address, so that a neighbour's cache is right even when an address
/// has gone from one pod to another (N3).
fn hardware_address(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}

/// The largest packet of a pod: what this machine's link takes, less what is added between machines. A machine that has
/// no link of its address (alone, behind a translation) is taken for one with Ethernet's.
fn pod_mtu(link: Option<u32>, config: &NetworkConfig) -> u32 {
    let alone = config.node_address.is_loopback() || config.cluster_cidr.contains(config.node_address);
    let link = link.filter(|_| !alone);
    link.unwrap_or(MTU).max(LEAST_MTU) - if alone { 0 } else { config.between.overhead() }
}

/// The name of a pod's interface on the host: of its uid, at most 15 characters.
fn pair_name(pod_uid: &str) -> String {
    let hash = pod_uid
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{PAIR_PREFIX}{hash:016x}").chars().take(link::MAX_NAME).collect()
}

/// Whether an interface on the host is a pod's.
fn is_pair(name: &str) -> bool {
    name.len() == link::MAX_NAME
        && name.strip_prefix(PAIR_PREFIX).is_some_and(|hash| hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Brings the loopback link up: in a network namespace that was just made it is down, and nobody reaches a server
/// there.
///
/// # Errors
/// The step that failed and the kernel's reason.
pub fn raise_loopback() -> Result<(), NetworkError> {
    let mut links = step("opening netlink", Links::open())?;
    if let Some(loopback) = step("looking for lo", links.index("lo"))? {
        step("bringing lo up", links.up(loopback))?;
    }
    Ok(())
}

/// The number of a link of this network namespace; `None` where there is none of that name, or the kernel does not say.
pub fn link_index(name: &str) -> Option<u32> {
    Links::open().and_then(|mut links| links.index(name)).ok().flatten()
}

/// What all pods need: the bridge, the Services' link, and the way to them. Gives both links. Idempotent.
fn base(links: &mut Links, config: &NetworkConfig) -> Result<(u32, u32), NetworkError> {
    let gateway = config.gateway();
    let bridge =
        step(format!("making bridge {POD_BRIDGE}"), links.ensure_bridge(POD_BRIDGE, hardware_address(gateway)))?;
    step("noting whose the bridge is", config.owner().note(links, bridge))?;
    step("giving the bridge its address", links.ensure_address(bridge, gateway, config.pod_cidr.prefix))?;
    let services = step(
        format!("making link {SERVICE_LINK}"),
        links.ensure_bridge(SERVICE_LINK, hardware_address(config.dns_address)),
    )?;
    step("giving the DNS server its address", links.ensure_address(services, config.dns_address, 32))?;
    let range = config.service_cidr;
    let route = Route { to: (range.first, range.prefix), gateway: None, link: services, source: Some(gateway) };
    step("routing the service range", links.ensure_route(route))?;
    for (key, value) in sysctls() {
        step(format!("setting {}", key.display()), std::fs::write(&key, value))?;
    }
    Ok((bridge, services))
}

/// What the kernel is told of forwarding: files of `/proc/sys` and their values.
fn sysctls() -> [(PathBuf, &'static str); 4] {
    [
        ("ip_forward".to_owned(), "1"),
        // Pods on one bridge talk through the host on purpose; it must not tell them of a shorter way.
        (format!("conf/{POD_BRIDGE}/send_redirects"), "0"),
        ("conf/all/send_redirects".to_owned(), "0"),
        // A host port on 127.0.0.1 leads to a pod; the packet filter keeps pods from the loopback addresses.
        (format!("conf/{POD_BRIDGE}/route_localnet"), "1"),
    ]
    .map(|(key, value)| (Path::new("/proc/sys/net/ipv4").join(key), value))
}

/// Takes away every interface, route and rule of the pod network.
fn take_away(links: &mut Links) -> Result<(), NetworkError> {
    for name in step("listing interfaces", links.names())? {
        if is_pair(&name) || [POD_BRIDGE, SERVICE_LINK, machines::OVERLAY, wireguard::LINK].contains(&name.as_str()) {
            step(format!("removing {name}"), links.remove(&name))?;
        }
    }
    for route in step("listing routes", links.routes_of(Keeper::Machines))? {
        step("removing a route", links.remove_route(route, Keeper::Machines))?;
    }
    step("removing the packet filter's tables", filter::remove())
}

impl Network {
    /// Sets up the bridge, the service link, forwarding. Idempotent: what an earlier process made is kept (V7). What
    /// another data folder's node left is taken away, unless its pods are still connected.
    ///
    /// # Errors
    /// The step that failed and the kernel's reason (not root, a missing kernel feature); pods of another's are there.
    pub fn open(config: NetworkConfig) -> Result<Self, NetworkError> {
        raise_loopback()?;
        let mut links = step("opening netlink", Links::open())?;
        let other = step("looking whose the pod network is", Owner::of(&mut links))?;
        if let Some(other) = other.filter(|other| other.machine != config.machine) {
            if !other.is_same(&config.owner()) && step("listing interfaces", other.has_pods(&mut links))? {
                let folder = Path::new(&other.folder);
                let why = format!(
                    "pods of the mainstay of {0} are still connected in it; run `mainstay down --data-dir {0}` first",
                    folder.parent().unwrap_or(folder).display()
                );
                return step("taking the network for this node", Err(io::Error::new(io::ErrorKind::AddrInUse, why)));
            }
            take_away(&mut links)?;
        }
        let (bridge, services) = base(&mut links, &config)?;
        let mtu = pod_mtu(step("looking for this machine's link", links.mtu_towards(config.node_address))?, &config);
        let leases = step("opening the address leases", Leases::open(config.pod_cidr, config.folder.clone()))?;
        let conntrack = Mutex::new(step("opening the tracked connections", Conntrack::open())?);
        let key = match config.between {
            Between::WireGuard => Some(step("making the encrypted link", WireGuard::open(&config.folder, mtu))?.key()),
            Between::Vxlan | Between::Routes => None,
        };
        let state = State { links, leases, bridge, services, ranges: Vec::new(), led: Vec::new(), mtu };
        Ok(Self { config, state: Mutex::new(state), conntrack, key })
    }

    /// This machine's public key of WireGuard, for [`WIREGUARD_KEY`](mainstay_logic::peers::WIREGUARD_KEY).
    pub fn key(&self) -> Option<Key> {
        self.key
    }

    /// What it was opened with.
    pub fn config(&self) -> &NetworkConfig {
        &self.config
    }

    /// The largest packet of a pod.
    pub fn mtu(&self) -> u32 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).mtu
    }

    /// Connects a pod's network namespace and gives its address. Idempotent, also across restarts. Blocks for
    /// about a millisecond.
    ///
    /// # Errors
    /// No free address, or the kernel's reason.
    pub fn attach(&self, pod_uid: &str, netns: &Path) -> Result<Ipv4Addr, NetworkError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let address = step("taking an address", state.leases.take(pod_uid))?;
        self.connect(&mut state, pod_uid, netns, address)?;
        Ok(address)
    }

    /// Connects a pod's network namespace with its address. Idempotent.
    fn connect(&self, state: &mut State, pod_uid: &str, netns: &Path, address: Ipv4Addr) -> Result<(), NetworkError> {
        let mut inside = step("entering the pod's network namespace", Links::open_in(netns))?;
        let loopback = step("looking for lo", inside.need("lo"))?;
        step("bringing lo up", inside.up(loopback))?;
        if step("looking for eth0", inside.index("eth0"))?.is_none() {
            let name = pair_name(pod_uid);
            let (bridge, mtu) = (state.bridge, state.mtu);
            // A pair left by a sandbox that is gone would hold the name.
            step("removing an old interface", state.links.remove(&name))?;
            let made = state.links.add_pair(&name, bridge, netns, "eth0", hardware_address(address), mtu);
            step("making the pod's interface", made)?;
        }
        let hardware = hardware_address(address);
        let (name, bridge) = (pair_name(pod_uid), state.bridge);
        let port = step("looking for the pod's interface", state.links.need(&name))?;
        // The bridge may be another by now, because somebody took the first one away.
        step("connecting the pod's interface", state.links.join_bridge(port, bridge))?;
        step("tying the pod's port to its address", state.links.tie_port(port, hardware))?;
        step("leaving IPv6 out", link::without_ipv6(&name))?;
        step("leaving IPv6 out in the pod", netlink::inside(netns, || link::without_ipv6("eth0")))?;
        step("bringing the pod's interface up", state.links.up(port))?;
        step("noting the pod's address", state.links.ensure_neighbour(bridge, address, hardware))?;
        let link = step("looking for eth0", inside.need("eth0"))?;
        step("giving eth0 its address", inside.ensure_address(link, address, 32))?;
        step("bringing eth0 up", inside.up(link))?;
        let gateway = self.config.gateway();
        step(
            "routing to the gateway",
            inside.ensure_route(Route { to: (gateway, 32), gateway: None, link, source: None }),
        )?;
        // Whoever else answers for it on the bridge is not believed.
        step("noting the gateway's address", inside.ensure_neighbour(link, gateway, hardware_address(gateway)))?;
        let default = Route { to: (Ipv4Addr::UNSPECIFIED, 0), gateway: Some(gateway), link, source: None };
        step("setting the default route", inside.ensure_route(default))
    }

    /// The address that a pod holds, if any.
    pub fn address_of(&self, pod_uid: &str) -> Result<Option<Ipv4Addr>, NetworkError> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        step("reading the address leases", state.leases.held_by(pod_uid))
    }

    /// Leads these ranges of Service addresses, beside the cluster's own, to the Services' link, and no others that
    /// were led there before: what has no rule there goes nowhere (N4). Gives those that are not led there: they would
    /// take this machine's own or its pods' packets, or the machine has a route to them already. A Service with such an
    /// address is reached by pods, not by this machine's own processes.
    ///
    /// # Errors
    /// The kernel's reason.
    pub fn route_services(&self, ranges: &[Cidr]) -> Result<Vec<Cidr>, NetworkError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.ranges = ranges.to_vec();
        self.lead(&mut state, ranges)
    }

    fn lead(&self, state: &mut State, ranges: &[Cidr]) -> Result<Vec<Cidr>, NetworkError> {
        let links = &mut state.links;
        let routed = step("listing routes", links.routes_of(Keeper::Services))?;
        for gone in routed.iter().filter(|route| !ranges.iter().any(|range| (range.first, range.prefix) == **route)) {
            step("removing a route", links.remove_route(*gone, Keeper::Services))?;
        }
        let link = step(format!("looking for {SERVICE_LINK}"), links.need(SERVICE_LINK))?;
        let mut refused = Vec::new();
        for range in ranges {
            let to = (range.first, range.prefix);
            if routed.contains(&to) || self.config.service_cidr.covers(*range) {
                continue;
            }
            if !self.config.may_lead(*range) || links.add_services_route(to, link, self.config.gateway()).is_err() {
                refused.push(*range);
            }
        }
        state.led = step("listing routes", state.links.routes_of(Keeper::Services))?;
        Ok(refused)
    }

    /// Disconnects a pod and frees its address. One that is not connected is fine. Nobody's packets go to the next pod
    /// with this address because they went to this one (N3).
    pub fn detach(&self, pod_uid: &str) -> Result<(), NetworkError> {
        let lock = || self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = lock();
        step("removing the pod's interface", state.links.remove(&pair_name(pod_uid)))?;
        let Some(address) = step("reading the address leases", state.leases.held_by(pod_uid))? else { return Ok(()) };
        let bridge = state.bridge;
        step("forgetting the pod's address", state.links.remove_neighbour(bridge, address))?;
        drop(state);
        self.forget_connections(address)?;
        step("giving the address back", lock().leases.give_back(pod_uid)).map(drop)
    }

    /// Forgets who was connected to an address, and whom it was connected to.
    fn forget_connections(&self, address: Ipv4Addr) -> Result<(), NetworkError> {
        let mut conntrack = self.conntrack.lock().unwrap_or_else(PoisonError::into_inner);
        for which in [Which::AnsweredBy(address), Which::From(address)] {
            match conntrack.forget(which, |_| true) {
                // Without ctnetlink there is nothing to be done about it.
                Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(()),
                done => step("forgetting the pod's connections", done)?,
            };
        }
        Ok(())
    }

    /// Takes away every interface, rule and lease that [`Network::open`] and [`Network::attach`] made, for `mainstay
    /// down`; but no interface and no rule where they are another's than `machine`'s, which is said: another data
    /// folder's node runs in this network namespace, or its pods go on. `None` is a folder that never had a node.
    ///
    /// # Errors
    /// The step that failed.
    pub fn cleanup(folder: &Path, machine: Option<&str>) -> Result<Option<String>, NetworkError> {
        let left = match machine {
            None => None,
            Some(machine) => Self::take_away_own(&Owner::new(machine, folder))?,
        };
        match std::fs::remove_dir_all(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(left),
            other => step("removing the address leases", other).map(|()| left),
        }
    }

    /// Why nothing was taken away, where it is another's.
    fn take_away_own(own: &Owner) -> Result<Option<String>, NetworkError> {
        let mut links = step("opening netlink", Links::open())?;
        if let Some(other) = step("looking whose the pod network is", Owner::of(&mut links))?
            && !own.is_same(&other)
        {
            return Ok(Some(format!("the pod network here is that of {}", other.folder)));
        }
        match hold::hold_soon() {
            Ok(_held) => take_away(&mut links).map(|()| None),
            Err(error) if error.source.kind() == io::ErrorKind::AddrInUse => Ok(Some(error.source.to_string())),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a network of its own; as root only.
    pub(super) fn apart(work: impl FnOnce() + Send + 'static) {
        let thread = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root");
            raise_loopback().expect("lo");
            work();
        });
        thread.join().expect("no panic");
    }

    #[test]
    fn a_pods_packet_with_what_is_added_fits_its_machines_link() {
        let range = |text| Cidr::parse(text).expect("a range");
        let config = |between, node_address: &str| NetworkConfig {
            folder: PathBuf::new(),
            machine: "m".to_owned(),
            pod_cidr: range("10.244.0.0/24"),
            cluster_cidr: range("10.244.0.0/16"),
            service_cidr: range("10.96.0.0/16"),
            dns_address: Ipv4Addr::new(10, 96, 0, 10),
            node_address: node_address.parse().expect("an address"),
            between,
        };
        for (between, mtu) in [(Between::Vxlan, 1450), (Between::Routes, 1500), (Between::WireGuard, 1440)] {
            assert_eq!(pod_mtu(Some(1500), &config(between, "192.0.2.1")), mtu, "{between:?}");
            assert_eq!(pod_mtu(Some(65536), &config(between, "127.0.0.1")), 1500, "{between:?}, alone");
        }
    }
}
