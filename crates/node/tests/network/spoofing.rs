//! Pods that speak in others' names: on the bridge, in IPv6, and through the overlay between machines (X6).

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use mainstay_node::network::filter::overlay::OverlayGuard;
use mainstay_node::network::filter::{Backends, Filter, Front, Fronts, Protocol};
use mainstay_node::network::{Network, POD_BRIDGE};

use super::{Host, config};

/// A raw Ethernet socket on eth0, as every container may have one (NET_RAW is among the default capabilities).
struct Wire(std::os::fd::OwnedFd);

impl Wire {
    #[expect(unsafe_code, reason = "a packet socket's address has no safe form")]
    fn open() -> Self {
        use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt};
        use std::os::fd::AsRawFd as _;
        let all = SockProtocol::EthAll;
        let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, all).expect("a packet socket");
        let wait = nix::sys::time::TimeVal::new(0, 200_000);
        setsockopt(&fd, sockopt::ReceiveTimeout, &wait).expect("a timeout");
        // SAFETY: all zeros is a valid address of no interface.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: the name ends with a zero byte.
        address.sll_ifindex = unsafe { libc::if_nametoindex(c"eth0".as_ptr()) } as i32;
        let length = size_of::<libc::sockaddr_ll>() as u32;
        // SAFETY: the kernel reads one `sockaddr_ll`.
        let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) };
        assert_eq!(bound, 0, "{}", std::io::Error::last_os_error());
        Self(fd)
    }

    fn send(&self, frame: &[u8]) {
        nix::unistd::write(&self.0, frame).expect("sent");
    }

    /// The frames that came for an IP address of somebody else, until none has come for 200 ms.
    fn meant_for(&self, address: Ipv4Addr) -> usize {
        self.frames(|frame| frame.get(12..14) == Some(&[8, 0]) && frame.get(30..34) == Some(&address.octets()[..]))
    }

    /// The frames that came and are such ones, until none has come for 200 ms.
    fn frames(&self, is_such: impl Fn(&[u8]) -> bool) -> usize {
        let mut frame = [0; 2048];
        let (mut found, began) = (0, std::time::Instant::now());
        while began.elapsed() < Duration::from_secs(5)
            && let Ok(length) = nix::unistd::read(std::os::fd::AsRawFd::as_raw_fd(&self.0), &mut frame)
        {
            found += usize::from(is_such(&frame[..length]));
        }
        found
    }
}

/// An ARP answer: `address` is at `hardware`.
fn arp(from: [u8; 6], to: [u8; 6], address: Ipv4Addr, hardware: [u8; 6], asker: Ipv4Addr) -> Vec<u8> {
    let kind = [8, 6, 0, 1, 8, 0, 6, 4, 0, 2];
    [&to[..], &from, &kind, &hardware, &address.octets(), &to, &asker.octets()].concat()
}

/// An empty UDP packet.
fn udp(from: [u8; 6], to: [u8; 6], source: SocketAddrV4, target: SocketAddrV4) -> Vec<u8> {
    let mut header = [0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header[12..16].copy_from_slice(&source.ip().octets());
    header[16..20].copy_from_slice(&target.ip().octets());
    let sum: u32 = header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    header[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    let ports = [source.port().to_be_bytes(), target.port().to_be_bytes(), [0, 8], [0, 0]].concat();
    [&to[..], &from, &[8, 0], &header, &ports].concat()
}

#[test]
fn x6_a_pod_takes_neither_anothers_packets_nor_its_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(folder.path());
    let (node, pod_a, pod_b) = (Host::new(), Host::new(), Host::new());
    let (netns_a, netns_b) = (pod_a.netns.clone(), pod_b.netns.clone());
    let opened = config.clone();
    let (a, b, network, filter) = node.run(move || {
        let network = Network::open(opened.clone()).expect("opened");
        let a = network.attach("uid-a", &netns_a).expect("attached");
        let b = network.attach("uid-b", &netns_b).expect("attached");
        let mut filter = Filter::open(opened.cluster_cidr, opened.service_cidr).expect("nftables");
        filter.fill(&[]).expect("an empty table");
        (a, b, network, filter)
    });
    pod_b.serve("b");
    let hardware = |address: Ipv4Addr| -> [u8; 6] {
        let [first, second, third, fourth] = address.octets();
        [0x0a, 0x58, first, second, third, fourth]
    };
    let gateway = Ipv4Addr::new(10, 244, 0, 1);
    let (of_a, of_b, of_gateway) = (hardware(a), hardware(b), hardware(gateway));
    let target = SocketAddrV4::new(b, 80);
    let (wire, listening) = (pod_a.run(Wire::open), pod_b.run(Wire::open));
    assert_eq!(node.ask(target), Ok("b 10.244.0.1".to_owned()));
    // Under its own name: b is here. To b: so is the gateway. Under b's: here I am.
    for _ in 0..20 {
        wire.send(&arp(of_a, of_gateway, b, of_a, gateway));
        wire.send(&arp(of_a, of_b, gateway, of_a, b));
        wire.send(&arp(of_b, of_gateway, b, of_b, gateway));
    }
    for _ in 0..3 {
        assert_eq!(node.ask(target), Ok("b 10.244.0.1".to_owned()), "still b's");
        assert!(pod_b.ask(SocketAddrV4::new(gateway, 1)).is_err(), "nobody is there, but the packet goes to the node");
    }
    assert_eq!(wire.meant_for(b) + wire.meant_for(gateway), 0, "what is b's or the gateway's comes to a");
    // In b's name to a port of the node's where nobody is: the answer (port unreachable) would go to b.
    listening.meant_for(b);
    let nobody = SocketAddrV4::new(gateway, 9);
    wire.send(&udp(of_a, of_gateway, SocketAddrV4::new(b, 7), nobody));
    wire.send(&udp(of_b, of_gateway, SocketAddrV4::new(b, 7), nobody));
    assert_eq!(listening.meant_for(b), 0, "a speaks in b's name");
    wire.send(&udp(of_a, of_gateway, SocketAddrV4::new(a, 7), nobody));
    assert_eq!(wire.meant_for(a), 1, "in its own it is answered");
    let leases = config.folder.clone();
    node.run(move || {
        drop((network, filter));
        Network::cleanup(&leases, Some("m")).expect("cleaned up");
    });
}

/// CVE-2020-10749: a pod's router advertisement is not heard by the host, nor by other pods.
#[test]
fn x6_nobody_on_the_pod_network_hears_a_pod_in_ipv6() {
    let folder = tempfile::tempdir().expect("a folder");
    let opened = config(folder.path());
    let leases = opened.folder.clone();
    let (node, pod_a, pod_b) = (Host::new(), Host::new(), Host::new());
    let (netns_a, netns_b) = (pod_a.netns.clone(), pod_b.netns.clone());
    let of = |links: &[String]| -> Vec<String> {
        let value = |link: &String, key: &str| {
            let path = format!("/proc/sys/net/ipv6/conf/{link}/{key}");
            std::fs::read_to_string(path).expect("a link").trim().to_owned()
        };
        links.iter().map(|link| value(link, "disable_ipv6") + " " + &value(link, "accept_ra")).collect()
    };
    let (network, mut filter) = node.run(move || {
        let network = Network::open(opened.clone()).expect("opened");
        network.attach("uid-a", &netns_a).expect("attached");
        network.attach("uid-b", &netns_b).expect("attached");
        (network, Filter::open(opened.cluster_cidr, opened.service_cidr).expect("nftables"))
    });
    let on_host = node.run(move || {
        let links = std::fs::read_dir("/proc/sys/net/ipv6/conf").expect("IPv6");
        let names = links.map(|link| link.expect("a link").file_name().to_string_lossy().into_owned());
        let own: Vec<String> = names.filter(|name| name.starts_with("mst")).collect();
        assert!(own.len() == 4 && own.iter().any(|name| name == POD_BRIDGE), "{own:?}");
        of(&own)
    });
    assert_eq!(on_host, ["1 0"; 4]);
    for pod in [&pod_a, &pod_b] {
        assert_eq!(pod.run(move || of(&["eth0".to_owned()])), ["1 0"]);
        let loopback = pod.run(|| std::net::TcpListener::bind("[::1]:0").map(drop).map_err(|error| error.kind()));
        assert_eq!(loopback, Ok(()), "::1 stays a pod's own");
    }
    let (wire, listening) = (pod_a.run(Wire::open), pod_b.run(Wire::open));
    // A router's advertisement to all nodes of the link.
    let header = [&[0x60, 0, 0, 0, 0, 16, 58, 255, 0xfe, 0x80][..], &[0; 13], &[2, 0xff, 2], &[0; 13], &[1]].concat();
    let ethernet = [&[0x33, 0x33, 0, 0, 0, 1][..], &[0x0a, 0x58, 10, 244, 0, 2], &[0x86, 0xdd]].concat();
    let advertisement = [&ethernet[..], &header, &[134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]].concat();
    assert_eq!(advertisement.len(), 14 + 40 + 16);
    let heard = || {
        wire.send(&advertisement);
        listening.frames(|frame| frame.get(12..14) == Some(&[0x86, 0xdd]))
    };
    assert_eq!(heard(), 1, "without the packet filter it goes everywhere");
    filter = node.run(move || {
        filter.fill(&[]).expect("an empty table");
        filter
    });
    assert_eq!(heard(), 0);
    node.run(move || {
        drop((network, filter));
        Network::cleanup(&leases, Some("m")).expect("cleaned up");
    });
}

/// A socket of UDP 8472, and what came there.
fn overlay_end(host: &Host) -> UdpSocket {
    host.run(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 8472)).expect("a port of a new namespace");
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        socket
    })
}

#[test]
fn x6_only_other_machines_send_into_the_overlay() {
    let folder = tempfile::tempdir().expect("a folder");
    let opened = config(folder.path());
    let leases = opened.folder.clone();
    let (node, other, pod) = (Host::new(), Host::new(), Host::new());
    let (netns, thread) = (pod.netns.clone(), other.run(nix::unistd::gettid).to_string());
    let ip = |args: &str| {
        assert!(std::process::Command::new("ip").args(args.split(' ')).status().expect("ip").success(), "{args}");
    };
    let (network, filter, mut guard) = node.run(move || {
        let network = Network::open(opened.clone()).expect("opened");
        network.attach("uid-a", &netns).expect("attached");
        ip(&format!("link add out0 type veth peer name eth0 netns {thread}"));
        ip("address add 192.0.2.1/24 dev out0");
        ip("link set out0 up");
        let mut filter = Filter::open(opened.cluster_cidr, opened.service_cidr).expect("nftables");
        filter.fill(&[]).expect("an empty table");
        // A Service that leads to the other machine's end.
        let front = Front { address: Some(Ipv4Addr::new(10, 96, 0, 20)), protocol: Protocol::Udp, port: 53 };
        let endpoints = vec![SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 2), 8472)];
        let backends = Backends { endpoints, inside: None, affinity: None, masquerade: false, from: None };
        filter.set_service("eve/dns", &Fronts::from([(front, backends)])).expect("set");
        (network, filter, OverlayGuard::open(opened.cluster_cidr, opened.pod_cidr).expect("nftables"))
    });
    other.run(move || {
        ip("address add 192.0.2.2/24 dev eth0");
        ip("link set eth0 up");
    });
    let (here, there) = (overlay_end(&node), overlay_end(&other));
    let arrives = |from: &Host, to: ([u8; 4], u16), at: &UdpSocket| {
        from.run(move || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port");
            let _ = socket.send_to(b"a frame", (Ipv4Addr::from(to.0), to.1));
        });
        at.recv(&mut [0; 64]).is_ok()
    };
    let is_dropped = |from: &Host, to, at: &UdpSocket| {
        at.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
        let is_dropped = !arrives(from, to, at);
        at.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        is_dropped
    };
    let (own, peers, service) = (([10, 244, 0, 1], 8472), ([192, 0, 2, 2], 8472), ([10, 96, 0, 20], 53));
    assert!(arrives(&pod, own, &here) && arrives(&pod, peers, &there) && arrives(&pod, service, &there), "unguarded");
    guard = node.run(move || {
        guard.fill().expect("filled");
        assert!(guard.is_in_place().expect("looked"));
        guard
    });
    let machine = ([192, 0, 2, 1], 8472);
    assert!(is_dropped(&other, machine, &here), "nobody knows this machine");
    guard = node.run(move || {
        guard.admit("n2", Some(Ipv4Addr::new(192, 0, 2, 2))).expect("admitted");
        guard.admit("n2", Some(Ipv4Addr::new(192, 0, 2, 2))).expect("again");
        guard
    });
    assert!(arrives(&other, machine, &here), "a peer's");
    for to in [own, machine] {
        assert!(is_dropped(&pod, to, &here), "a pod speaks in another's name: {to:?}");
    }
    for to in [peers, service] {
        assert!(is_dropped(&pod, to, &there), "a pod speaks in this machine's name: {to:?}");
    }
    node.run(move || {
        guard.admit("n2", None).expect("forgotten");
        drop((network, filter, guard));
    });
    assert!(is_dropped(&other, machine, &here), "no peer any more");
    node.run(move || Network::cleanup(&leases, Some("m")).expect("cleaned up"));
}
