//! Links, addresses and routes by rtnetlink.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::path::Path;

use super::netlink::{CREATE, EXCL, Family, Message, REPLACE, Socket, attributes};

const NEWLINK: u16 = 16;
const DELLINK: u16 = 17;
const GETLINK: u16 = 18;
const SETLINK: u16 = 19;
const NEWADDR: u16 = 20;
const GETADDR: u16 = 22;
const NEWROUTE: u16 = 24;
const DELROUTE: u16 = 25;
const GETROUTE: u16 = 26;
const NEWNEIGH: u16 = 28;
const DELNEIGH: u16 = 29;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_PROTINFO: u16 = 12;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_LEARNING: u16 = 8;
const IFLA_BRPORT_UNICAST_FLOOD: u16 = 9;
const IFLA_BRPORT_LOCKED: u16 = 39;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const VXLAN_ID: u16 = 1;
const VXLAN_LOCAL: u16 = 4;
const VXLAN_LEARNING: u16 = 7;
const VXLAN_PORT: u16 = 15;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RTNH_F_ONLINK: u32 = 4;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_NOARP: u16 = 0x40;
const NUD_PERMANENT: u16 = 0x80;
const NTF_SELF: u8 = 0x02;
const NTF_MASTER: u8 = 0x04;
const MAIN_TABLE: u8 = 254;
const UNICAST: u8 = 1;
/// Who made a route: the kernel keeps that, so that those to other machines are found again and no others are touched.
const BOOT: u8 = 3;
/// In a route that is to be taken away: whatever its scope is.
const SCOPE_NOWHERE: u8 = 255;
const IFF_UP: u32 = 1;
const AF_INET: u8 = 2;
const AF_BRIDGE: u8 = 7;
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;
/// The kernel's limit for an interface's name, without the terminating zero.
pub const MAX_NAME: usize = 15;

/// The links of one network namespace.
#[derive(Debug)]
pub struct Links {
    socket: Socket,
}

/// An interface.
#[derive(Clone, Debug)]
pub struct Link {
    pub name: String,
    pub index: u32,
    /// The bridge that it is a port of.
    pub master: Option<u32>,
    pub is_up: bool,
}

/// A native-endian u32.
fn word(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

impl Link {
    /// From the kernel's description.
    fn read(body: &[u8]) -> Option<Self> {
        let find = |wanted| super::netlink::find(body.get(16..).unwrap_or_default(), wanted);
        let name = String::from_utf8_lossy(find(IFLA_IFNAME)?).trim_end_matches('\0').to_owned();
        let is_up = word(body.get(8..12)?)? & IFF_UP != 0;
        Some(Self { name, index: word(body.get(4..8)?)?, master: find(IFLA_MASTER).and_then(word), is_up })
    }
}

/// Where a route leads.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// Destination and prefix length; 0.0.0.0/0 is the default route.
    pub to: (Ipv4Addr, u8),
    /// The next hop, if it is not on the link itself.
    pub gateway: Option<Ipv4Addr>,
    /// The interface.
    pub link: u32,
    /// The source address of packets from this host.
    pub source: Option<Ipv4Addr>,
}

/// `struct ifinfomsg`: family, type, index, flags, and which flags change.
fn link_header(index: u32, up: bool) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    if up {
        header[8..12].copy_from_slice(&IFF_UP.to_ne_bytes());
        header[12..16].copy_from_slice(&IFF_UP.to_ne_bytes());
    }
    header
}

/// Has a link of this thread's network namespace know nothing of IPv6: the pod network is IPv4's, and whoever speaks
/// IPv6 there is nobody's router (X6). Before the link is up, or it listens for a moment.
pub fn without_ipv6(link: &str) -> io::Result<()> {
    for (key, value) in [("accept_ra", "0"), ("disable_ipv6", "1")] {
        match std::fs::write(Path::new("/proc/sys/net/ipv6/conf").join(link).join(key), value) {
            // The kernel has none.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => done?,
        }
    }
    Ok(())
}

/// Already there is as good as made.
fn existing_is_fine(result: io::Result<Vec<super::netlink::Reply>>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map(drop),
    }
}

impl Links {
    /// The links of this thread's network namespace.
    pub fn open() -> io::Result<Self> {
        Ok(Self { socket: Socket::open(Family::Route)? })
    }

    /// The links of the namespace at a path.
    pub fn open_in(netns: &Path) -> io::Result<Self> {
        Ok(Self { socket: Socket::open_in(netns, Family::Route)? })
    }

    /// The index of an interface, or `None` where there is none of that name.
    pub fn index(&mut self, name: &str) -> io::Result<Option<u32>> {
        Ok(self.link(name)?.and_then(|body| word(body.get(4..8)?)))
    }

    /// As [`Links::index`], but a missing interface is an error that names it.
    pub fn need(&mut self, name: &str) -> io::Result<u32> {
        self.index(name)?
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("network interface {name} is missing")))
    }

    /// Makes a bridge that is up and knows no IPv6, if it is not there, and gives its index.
    pub fn ensure_bridge(&mut self, name: &str, hardware: [u8; 6]) -> io::Result<u32> {
        let mut message = Message::new(NEWLINK, CREATE | EXCL, &link_header(0, false));
        message.string(IFLA_IFNAME, name).attribute(IFLA_ADDRESS, &hardware).nest(IFLA_LINKINFO, |info| {
            info.string(IFLA_INFO_KIND, "bridge");
        });
        existing_is_fine(self.socket.request(message))?;
        let index = self.need(name)?;
        without_ipv6(name)?;
        self.up(index)?;
        Ok(index)
    }

    /// Makes a pair: `name` here, attached to `bridge`; `peer` inside the namespace at `netns`, with the given
    /// hardware address; both are down. One message, so there is no moment with half a pair.
    pub fn add_pair(
        &mut self,
        name: &str,
        bridge: u32,
        netns: &Path,
        peer: &str,
        hardware: [u8; 6],
        mtu: u32,
    ) -> io::Result<()> {
        let netns = std::fs::File::open(netns)?;
        let netns_fd = u32::try_from(netns.as_raw_fd()).map_err(io::Error::other)?;
        let mut message = Message::new(NEWLINK, CREATE | EXCL, &link_header(0, false));
        message.string(IFLA_IFNAME, name).u32(IFLA_MASTER, bridge).u32(IFLA_MTU, mtu).nest(IFLA_LINKINFO, |info| {
            info.string(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, |data| {
                data.nest(VETH_INFO_PEER, |end| {
                    end.raw(&link_header(0, false)).string(IFLA_IFNAME, peer);
                    end.attribute(IFLA_ADDRESS, &hardware).u32(IFLA_MTU, mtu).u32(IFLA_NET_NS_FD, netns_fd);
                });
            });
        });
        self.socket.request(message).map(drop)
    }

    /// Ties a bridge's port to one hardware address: what comes in by it under another is dropped (Linux 5.18), and
    /// nothing that is not for that address goes out by it. The bridge learns nothing from it, so nobody draws
    /// another's packets to their own port (X6).
    ///
    /// The port also sends back what came in by it. Needed where the kernel shows bridged packets to the IP packet
    /// filter (br_netfilter): a pod that reaches itself by its Service is then never routed.
    pub fn tie_port(&mut self, index: u32, hardware: [u8; 6]) -> io::Result<()> {
        // Static; a permanent one would be the bridge's own address.
        let header = neighbour_header(AF_BRIDGE, index, NUD_NOARP, NTF_MASTER);
        let mut message = Message::new(NEWNEIGH, CREATE | REPLACE, &header);
        message.attribute(NDA_LLADDR, &hardware);
        self.socket.request(message)?;
        let mut header = link_header(index, false);
        header[0] = AF_BRIDGE;
        let mut message = Message::new(SETLINK, 0, &header);
        message.nest(IFLA_PROTINFO, |port| {
            port.attribute(IFLA_BRPORT_MODE, &[1]).attribute(IFLA_BRPORT_LEARNING, &[0]);
            port.attribute(IFLA_BRPORT_UNICAST_FLOOD, &[0]).attribute(IFLA_BRPORT_LOCKED, &[1]);
        });
        self.socket.request(message).map(drop)
    }

    /// Says for good which hardware address an IP address of a link has: nobody is asked, and nobody is believed.
    pub fn ensure_neighbour(&mut self, link: u32, address: Ipv4Addr, hardware: [u8; 6]) -> io::Result<()> {
        let header = neighbour_header(AF_INET, link, NUD_PERMANENT, 0);
        let mut message = Message::new(NEWNEIGH, CREATE | REPLACE, &header);
        message.attribute(NDA_DST, &address.octets()).attribute(NDA_LLADDR, &hardware);
        self.socket.request(message).map(drop)
    }

    /// Forgets that.
    pub fn remove_neighbour(&mut self, link: u32, address: Ipv4Addr) -> io::Result<()> {
        let mut message = Message::new(DELNEIGH, 0, &neighbour_header(AF_INET, link, 0, 0));
        message.attribute(NDA_DST, &address.octets());
        missing_is_fine(self.socket.request(message))
    }

    /// Brings an interface up.
    pub fn up(&mut self, index: u32) -> io::Result<()> {
        self.socket.request(Message::new(NEWLINK, 0, &link_header(index, true))).map(drop)
    }

    /// Takes an interface away; one that is not there is fine.
    pub fn remove(&mut self, name: &str) -> io::Result<()> {
        let Some(index) = self.index(name)? else { return Ok(()) };
        match self.socket.request(Message::new(DELLINK, 0, &link_header(index, false))) {
            Err(error) if error.raw_os_error() == Some(nix::libc::ENODEV) => Ok(()),
            other => other.map(drop),
        }
    }

    /// All interfaces.
    pub fn all(&mut self) -> io::Result<Vec<Link>> {
        let replies = self.socket.request(Message::new(GETLINK, super::netlink::DUMP, &link_header(0, false)))?;
        Ok(replies.iter().filter_map(|reply| Link::read(&reply.body)).collect())
    }

    /// The names of all interfaces.
    pub fn names(&mut self) -> io::Result<Vec<String>> {
        Ok(self.all()?.into_iter().map(|link| link.name).collect())
    }

    /// Makes an interface a port of a bridge; one that is so already is fine.
    pub fn join_bridge(&mut self, index: u32, bridge: u32) -> io::Result<()> {
        let mut message = Message::new(NEWLINK, 0, &link_header(index, false));
        message.u32(IFLA_MASTER, bridge);
        self.socket.request(message).map(drop)
    }

    /// What somebody noted with an interface; `None` where there is no such link, or no note.
    pub fn alias(&mut self, name: &str) -> io::Result<Option<String>> {
        let link = self.link(name)?;
        let alias = link.as_deref().and_then(|body| super::netlink::find(body.get(16..)?, IFLA_IFALIAS));
        Ok(alias.map(|alias| String::from_utf8_lossy(alias).trim_end_matches('\0').to_owned()))
    }

    /// Notes something with an interface, of at most 255 bytes.
    pub fn set_alias(&mut self, index: u32, alias: &str) -> io::Result<()> {
        let mut message = Message::new(NEWLINK, 0, &link_header(index, false));
        message.attribute(IFLA_IFALIAS, alias.as_bytes());
        self.socket.request(message).map(drop)
    }

    /// All IPv4 addresses, with the interfaces that have them.
    pub fn addresses(&mut self) -> io::Result<Vec<(u32, Ipv4Addr)>> {
        let dump = Message::new(GETADDR, super::netlink::DUMP, &[AF_INET, 0, 0, 0, 0, 0, 0, 0]);
        let of = |body: &[u8]| {
            let own = <[u8; 4]>::try_from(super::netlink::find(body.get(8..)?, IFA_LOCAL)?).ok()?;
            Some((word(body.get(4..8)?)?, Ipv4Addr::from(own)))
        };
        Ok(self.socket.request(dump)?.iter().filter_map(|reply| of(&reply.body)).collect())
    }

    /// Where the routes lead that leave by an interface.
    pub fn routes_by(&mut self, link: u32) -> io::Result<Vec<(Ipv4Addr, u8)>> {
        self.routes(|_, by| by == Some(link))
    }

    /// Where those routes of the main table lead whose keeper and interface are wanted.
    fn routes(&mut self, is_wanted: impl Fn(u8, Option<u32>) -> bool) -> io::Result<Vec<(Ipv4Addr, u8)>> {
        let dump = Message::new(GETROUTE, super::netlink::DUMP, &[AF_INET, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let of = |body: &[u8]| {
            let (bits, table, protocol) = (*body.get(1)?, *body.get(4)?, *body.get(5)?);
            let find = |wanted| super::netlink::find(body.get(12..).unwrap_or_default(), wanted);
            let to = Ipv4Addr::from(<[u8; 4]>::try_from(find(RTA_DST)?).ok()?);
            (table == MAIN_TABLE && is_wanted(protocol, find(RTA_OIF).and_then(word))).then_some((to, bits))
        };
        Ok(self.socket.request(dump)?.iter().filter_map(|reply| of(&reply.body)).collect())
    }

    /// Gives an interface an address; one that it already has is fine.
    pub fn ensure_address(&mut self, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let mut header = [AF_INET, prefix, 0, SCOPE_UNIVERSE, 0, 0, 0, 0];
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        let mut message = Message::new(NEWADDR, CREATE | EXCL, &header);
        message.attribute(IFA_LOCAL, &address.octets()).attribute(IFA_ADDRESS, &address.octets());
        existing_is_fine(self.socket.request(message))
    }

    /// Sets a route, in place of one to the same destination.
    pub fn ensure_route(&mut self, route: Route) -> io::Result<()> {
        let scope = if route.gateway.is_some() { SCOPE_UNIVERSE } else { SCOPE_LINK };
        let mut message = Message::new(
            NEWROUTE,
            CREATE | REPLACE,
            &[AF_INET, route.to.1, 0, 0, MAIN_TABLE, BOOT, scope, UNICAST, 0, 0, 0, 0],
        );
        if route.to.1 > 0 {
            message.attribute(RTA_DST, &route.to.0.octets());
        }
        if let Some(gateway) = route.gateway {
            message.attribute(RTA_GATEWAY, &gateway.octets());
        }
        if let Some(source) = route.source {
            message.attribute(RTA_PREFSRC, &source.octets());
        }
        message.u32(RTA_OIF, route.link);
        self.socket.request(message).map(drop)
    }
}

/// Who of us keeps a route up to date: the kernel notes it with the route, so that what an earlier process left is
/// found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Keeper {
    /// To other machines' pods.
    Machines = 0x4d,
    /// To the ranges of Service addresses that ServiceCIDRs add.
    Services = 0x53,
}

/// How packets get to another machine's pods.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    /// By the machine's own address, on a link that both have.
    Machine(Ipv4Addr),
    /// By the overlay's end there, and the link that is its end here.
    Overlay(Ipv4Addr, u32),
    /// By a link that knows by itself which machine has which pods.
    Tunnel(u32),
}

/// An overlay's end on this machine.
#[derive(Clone, Copy, Debug)]
pub struct Vxlan {
    /// The network's number, the same on all machines.
    pub id: u32,
    /// The UDP port.
    pub port: u16,
    /// This machine's address.
    pub local: Ipv4Addr,
    /// Its end's hardware address.
    pub hardware: [u8; 6],
    /// The largest packet.
    pub mtu: u32,
}

/// `struct ndmsg`.
fn neighbour_header(family: u8, link: u32, state: u16, flags: u8) -> [u8; 12] {
    let mut header = [0; 12];
    header[0] = family;
    header[4..8].copy_from_slice(&link.to_ne_bytes());
    header[8..10].copy_from_slice(&state.to_ne_bytes());
    header[10] = flags;
    header
}

/// What is gone already is as good as taken away.
fn missing_is_fine(result: io::Result<Vec<super::netlink::Reply>>) -> io::Result<()> {
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(nix::libc::ESRCH | nix::libc::ENOENT)) => Ok(()),
        other => other.map(drop),
    }
}

/// Between machines.
impl Links {
    /// Makes an overlay's end that is up, learns nothing and floods nothing, and gives its index. One that is there for
    /// another address of this machine is made anew.
    pub fn ensure_vxlan(&mut self, name: &str, vxlan: Vxlan) -> io::Result<u32> {
        if self.vxlan_local(name)?.is_some_and(|local| local != vxlan.local) {
            self.remove(name)?;
        }
        let mut message = Message::new(NEWLINK, CREATE | EXCL, &link_header(0, false));
        message.string(IFLA_IFNAME, name).attribute(IFLA_ADDRESS, &vxlan.hardware).u32(IFLA_MTU, vxlan.mtu);
        message.nest(IFLA_LINKINFO, |info| {
            info.string(IFLA_INFO_KIND, "vxlan").nest(IFLA_INFO_DATA, |data| {
                data.u32(VXLAN_ID, vxlan.id).attribute(VXLAN_LOCAL, &vxlan.local.octets());
                data.attribute(VXLAN_LEARNING, &[0]).attribute(VXLAN_PORT, &vxlan.port.to_be_bytes());
            });
        });
        existing_is_fine(self.socket.request(message))?;
        let index = self.need(name)?;
        without_ipv6(name)?;
        let mut message = Message::new(NEWLINK, 0, &link_header(index, true));
        message.u32(IFLA_MTU, vxlan.mtu).attribute(IFLA_ADDRESS, &vxlan.hardware);
        self.socket.request(message).map(|_| index)
    }

    /// Makes a WireGuard link that is up and gives its index. Without a key it passes nothing on.
    pub fn ensure_wireguard(&mut self, name: &str, mtu: u32) -> io::Result<u32> {
        let mut message = Message::new(NEWLINK, CREATE | EXCL, &link_header(0, false));
        message.string(IFLA_IFNAME, name).u32(IFLA_MTU, mtu).nest(IFLA_LINKINFO, |info| {
            info.string(IFLA_INFO_KIND, "wireguard");
        });
        existing_is_fine(self.socket.request(message))?;
        let index = self.need(name)?;
        without_ipv6(name)?;
        let mut message = Message::new(NEWLINK, 0, &link_header(index, true));
        message.u32(IFLA_MTU, mtu);
        self.socket.request(message).map(|_| index)
    }

    /// The machine's address that an overlay's end was made for; `None` where there is no such link.
    fn vxlan_local(&mut self, name: &str) -> io::Result<Option<Ipv4Addr>> {
        let Some(link) = self.link(name)? else { return Ok(None) };
        let find = |bytes: &[u8], wanted: u16| {
            attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, payload)| payload.to_vec())
        };
        let info = link.get(16..).and_then(|bytes| find(bytes, IFLA_LINKINFO));
        let local = info.and_then(|info| find(&find(&info, IFLA_INFO_DATA)?, VXLAN_LOCAL));
        Ok(local.and_then(|local| <[u8; 4]>::try_from(local).ok()).map(Ipv4Addr::from))
    }

    /// The kernel's description of a link.
    fn link(&mut self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let mut message = Message::new(GETLINK, 0, &link_header(0, false));
        message.string(IFLA_IFNAME, name);
        match self.socket.request(message) {
            Ok(replies) => Ok(replies.into_iter().find(|reply| reply.kind == NEWLINK).map(|reply| reply.body)),
            Err(error) if error.raw_os_error() == Some(nix::libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The largest packet of the link that has this address; `None` where no link has it.
    pub fn mtu_towards(&mut self, address: Ipv4Addr) -> io::Result<Option<u32>> {
        let Some((index, _)) = self.addresses()?.into_iter().find(|(_, own)| *own == address) else { return Ok(None) };
        let replies = self.socket.request(Message::new(GETLINK, 0, &link_header(index, false)))?;
        let mtu = |body: &[u8]| word(super::netlink::find(body.get(16..)?, IFLA_MTU)?);
        Ok(replies.iter().find_map(|reply| mtu(&reply.body)))
    }

    /// Sets a route to another machine's pods.
    pub fn ensure_machine_route(&mut self, to: (Ipv4Addr, u8), way: Way) -> io::Result<()> {
        let (gateway, link, flags, scope) = match way {
            Way::Machine(address) => (Some(address), None, 0, SCOPE_UNIVERSE),
            Way::Overlay(end, link) => (Some(end), Some(link), RTNH_F_ONLINK, SCOPE_UNIVERSE),
            Way::Tunnel(link) => (None, Some(link), 0, SCOPE_LINK),
        };
        let head = [AF_INET, to.1, 0, 0, MAIN_TABLE, Keeper::Machines as u8, scope, UNICAST];
        let mut message = Message::new(NEWROUTE, CREATE | REPLACE, &[&head[..], &flags.to_ne_bytes()].concat());
        message.attribute(RTA_DST, &to.0.octets());
        if let Some(gateway) = gateway {
            message.attribute(RTA_GATEWAY, &gateway.octets());
        }
        if let Some(link) = link {
            message.u32(RTA_OIF, link);
        }
        self.socket.request(message).map(drop)
    }

    /// Leads a range of Service addresses to a link. One that the machine has a route to already, by somebody else, is
    /// an error: it stays theirs.
    pub fn add_services_route(&mut self, to: (Ipv4Addr, u8), link: u32, source: Ipv4Addr) -> io::Result<()> {
        let header = [AF_INET, to.1, 0, 0, MAIN_TABLE, Keeper::Services as u8, SCOPE_LINK, UNICAST, 0, 0, 0, 0];
        let mut message = Message::new(NEWROUTE, CREATE | EXCL, &header);
        message.attribute(RTA_DST, &to.0.octets()).attribute(RTA_PREFSRC, &source.octets()).u32(RTA_OIF, link);
        self.socket.request(message).map(drop)
    }

    /// Where the routes lead that somebody keeps.
    pub fn routes_of(&mut self, keeper: Keeper) -> io::Result<Vec<(Ipv4Addr, u8)>> {
        self.routes(|by, _| by == keeper as u8)
    }

    /// Takes a route away that somebody keeps.
    pub fn remove_route(&mut self, to: (Ipv4Addr, u8), keeper: Keeper) -> io::Result<()> {
        let header = [AF_INET, to.1, 0, 0, MAIN_TABLE, keeper as u8, SCOPE_NOWHERE, UNICAST, 0, 0, 0, 0];
        let mut message = Message::new(DELROUTE, 0, &header);
        message.attribute(RTA_DST, &to.0.octets());
        missing_is_fine(self.socket.request(message))
    }

    /// Says which end of the overlay has an address, and on which machine it is.
    pub fn ensure_overlay_peer(
        &mut self,
        overlay: u32,
        end: Ipv4Addr,
        hardware: [u8; 6],
        machine: Ipv4Addr,
    ) -> io::Result<()> {
        let header = neighbour_header(AF_BRIDGE, overlay, NUD_PERMANENT | NUD_NOARP, NTF_SELF);
        let mut message = Message::new(NEWNEIGH, CREATE | REPLACE, &header);
        message.attribute(NDA_DST, &machine.octets()).attribute(NDA_LLADDR, &hardware);
        self.socket.request(message)?;
        self.ensure_neighbour(overlay, end, hardware)
    }

    /// Forgets that.
    pub fn remove_overlay_peer(&mut self, overlay: u32, end: Ipv4Addr, hardware: [u8; 6]) -> io::Result<()> {
        self.remove_neighbour(overlay, end)?;
        let mut message = Message::new(DELNEIGH, 0, &neighbour_header(AF_BRIDGE, overlay, 0, NTF_SELF));
        message.attribute(NDA_LLADDR, &hardware);
        missing_is_fine(self.socket.request(message))
    }
}
