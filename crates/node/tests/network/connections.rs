//! Connections that the kernel remembers: they end with the endpoint that they lead to.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use mainstay_node::network::Network;
use mainstay_node::network::conntrack::{Conntrack, Which};
use mainstay_node::network::filter::{Backends, Filter, Front, Fronts, Protocol};

use super::{Host, config};

const PORT: u16 = 9999;
const TRIES: usize = 20;

/// Answers every packet with `name` and what it said.
fn answer(host: &Host, name: &'static str) {
    host.run(move || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).expect("a port of a new namespace");
        std::thread::spawn(move || {
            let mut packet = [0; 64];
            while let Ok((length, from)) = socket.recv_from(&mut packet) {
                let _ = socket.send_to(&[name.as_bytes(), &packet[..length]].concat(), from);
            }
        });
    });
}

/// A client that keeps its port.
fn client(host: &Host, to: SocketAddrV4) -> UdpSocket {
    host.run(move || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 4444)).expect("a port");
        socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
        socket.connect(to).expect("connected");
        socket
    })
}

/// What the client is answered. A packet may be lost (a link that was just made takes a moment until it carries), and
/// an answer to an earlier one be late.
fn asked(client: &UdpSocket) -> Result<String, ErrorKind> {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    let mut packet = [0; 64];
    let mut last = ErrorKind::WouldBlock;
    for _ in 0..TRIES {
        let question = format!(" {}", ASKED.fetch_add(1, Ordering::Relaxed));
        let mut answered = client.send(question.as_bytes()).and_then(|_| client.recv(&mut packet));
        while let Ok(length) = answered {
            let answer = String::from_utf8_lossy(&packet[..length]).into_owned();
            if let Some(name) = answer.strip_suffix(&question) {
                return Ok(name.to_owned());
            }
            answered = client.recv(&mut packet);
        }
        last = answered.map_or_else(|error| error.kind(), |_| last);
        if last != ErrorKind::WouldBlock {
            break;
        }
    }
    Err(last)
}

fn fronts(front: Front, endpoints: &[Ipv4Addr]) -> Fronts {
    let endpoints = endpoints.iter().map(|address| SocketAddrV4::new(*address, PORT)).collect();
    BTreeMap::from([(front, Backends { endpoints, inside: None, affinity: None, masquerade: false, from: None })])
}

#[test]
fn n3_n4_udp_clients_go_where_their_service_leads_now() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(folder.path());
    let (node, pod_a, pod_b, pod_c) = (Host::new(), Host::new(), Host::new(), Host::new());
    let pods = [pod_a.netns.clone(), pod_b.netns.clone(), pod_c.netns.clone()];
    let (opened, again) = (config.clone(), config.clone());
    let (addresses, network, mut filter) = node.run(move || {
        let network = Network::open(opened.clone()).expect("opened");
        let addresses = ["a", "b", "c"].iter().zip(&pods).map(|(uid, pod)| network.attach(uid, pod).expect("attached"));
        let addresses: Vec<Ipv4Addr> = addresses.collect();
        let mut filter = Filter::open(opened.cluster_cidr, opened.service_cidr).expect("nftables");
        filter.fill(&[]).expect("an empty table");
        filter.forget_stale().expect("forgotten");
        (addresses, network, filter)
    });
    let [_, b, c] = addresses[..] else { panic!("three") };
    answer(&pod_b, "b");
    answer(&pod_c, "c");
    let address = Ipv4Addr::new(10, 96, 0, 20);
    let by_address = Front { address: Some(address), protocol: Protocol::Udp, port: PORT };
    let by_port = Front { address: None, protocol: Protocol::Udp, port: 30053 };
    for (front, at) in [
        (by_address, SocketAddrV4::new(address, PORT)),
        (by_port, SocketAddrV4::new(Ipv4Addr::new(10, 244, 0, 1), 30053)),
    ] {
        let set = |mut filter: Filter, endpoints: &[Ipv4Addr]| {
            let wanted = fronts(front, endpoints);
            node.run(move || {
                filter.set_service("default/udp", &wanted).expect("set");
                let stale = filter.has_stale();
                (filter.forget_stale().expect("forgotten"), stale, filter)
            })
        };
        let client = client(&pod_a, at);
        // Before there is anybody: to a node port this makes an entry that leads to the node itself.
        assert!(asked(&client).is_err());
        filter = set(filter, &[b]).2;
        assert_eq!(asked(&client), Ok("b".to_owned()), "its first endpoint, {front:?}");
        let (_, stale, now) = set(filter, &[b, c]);
        assert!(!stale, "one more endpoint makes nothing stale: the kernel's connections are not gone through");
        assert_eq!(asked(&client), Ok("b".to_owned()), "it stays where it was");
        let (forgotten, stale, now) = set(now, &[c]);
        assert!(stale && forgotten == 1, "{forgotten} of one client, {front:?}");
        assert_eq!(asked(&client), Ok("c".to_owned()), "its endpoint is gone, {front:?}");
        let (forgotten, _, now) = set(now, &[]);
        assert!(forgotten == 1 && asked(&client).is_err(), "nobody is there, {front:?}");
        // The agent was away while an endpoint, or the whole Service, went.
        filter = set(now, &[b]).2;
        assert_eq!(asked(&client), Ok("b".to_owned()));
        for left in [vec![("default/udp".to_owned(), fronts(front, &[c]))], Vec::new()] {
            let ranges = (again.cluster_cidr, again.service_cidr);
            let wanted = left.clone();
            filter = node.run(move || {
                let mut filter = Filter::open(ranges.0, ranges.1).expect("nftables");
                assert!(filter.fill(&wanted).expect("filled").is_empty());
                assert_eq!(filter.forget_stale().expect("forgotten"), 1);
                filter
            });
            assert_eq!(asked(&client).ok(), left.first().map(|_| "c".to_owned()), "{front:?}");
        }
    }
    let leases = config.folder.clone();
    node.run(move || {
        drop((network, filter));
        Network::cleanup(&leases, Some("m")).expect("cleaned up");
    });
}

/// A node port or host port is one of this machine: flows to other machines' servers of its number go on.
#[test]
fn n3_x7_flows_to_elsewhere_are_not_a_node_ports_because_they_have_its_number() {
    let folder = tempfile::tempdir().expect("a folder");
    let opened = config(folder.path());
    let (node, pod_a, pod_b) = (Host::new(), Host::new(), Host::new());
    let (netns_a, netns_b) = (pod_a.netns.clone(), pod_b.netns.clone());
    let leases = opened.folder.clone();
    let (b, network) = node.run(move || {
        let network = Network::open(opened.clone()).expect("opened");
        network.attach("uid-a", &netns_a).expect("attached");
        let b = network.attach("uid-b", &netns_b).expect("attached");
        let mut filter = Filter::open(opened.cluster_cidr, opened.service_cidr).expect("nftables");
        filter.fill(&[]).expect("an empty table");
        filter.forget_stale().expect("forgotten");
        (b, (network, filter, opened))
    });
    answer(&pod_b, "b");
    let client = client(&pod_a, SocketAddrV4::new(b, PORT));
    assert_eq!(asked(&client), Ok("b".to_owned()));
    node.run(move || {
        let (network, mut filter, opened) = network;
        let front = Front { address: None, protocol: Protocol::Udp, port: PORT };
        let elsewhere = Ipv4Addr::new(10, 244, 0, 77);
        for endpoints in [&[elsewhere][..], &[], &[elsewhere]] {
            filter.set_service("default/udp", &fronts(front, endpoints)).expect("set");
            assert!(filter.has_stale());
            assert_eq!(filter.forget_stale().expect("forgotten"), 0, "{endpoints:?}");
        }
        // The agent starts anew.
        let mut filter = Filter::open(opened.cluster_cidr, opened.service_cidr).expect("nftables");
        filter.fill(&[("default/udp".to_owned(), fronts(front, &[elsewhere]))]).expect("filled");
        assert_eq!(filter.forget_stale().expect("forgotten"), 0);
        let mut is_kept = false;
        let seen = Conntrack::open().expect("opened").forget(Which::AnsweredBy(b), |_| {
            is_kept = true;
            false
        });
        assert!(seen.is_ok() && is_kept);
        drop((network, filter));
        Network::cleanup(&leases, Some("m")).expect("cleaned up");
    });
}

#[test]
fn n3_the_next_pod_with_an_address_gets_nobodys_packets() {
    let folder = tempfile::tempdir().expect("a folder");
    let opened = config(folder.path());
    let (node, pod_a, pod_b) = (Host::new(), Host::new(), Host::new());
    let (netns_a, netns_b) = (pod_a.netns.clone(), pod_b.netns.clone());
    let leases = opened.folder.clone();
    let (a, b, network) = node.run(move || {
        let network = Network::open(opened.clone()).expect("opened");
        let a = network.attach("uid-a", &netns_a).expect("attached");
        let b = network.attach("uid-b", &netns_b).expect("attached");
        // Connections are tracked where there is a table that translates.
        Filter::open(opened.cluster_cidr, opened.service_cidr).expect("nftables").fill(&[]).expect("an empty table");
        (a, b, network)
    });
    answer(&pod_b, "b");
    let client = client(&pod_a, SocketAddrV4::new(b, PORT));
    assert_eq!(asked(&client), Ok("b".to_owned()));
    let count = |conntrack: &mut Conntrack, which| {
        let mut count = 0;
        let seen = conntrack.forget(which, |_| {
            count += 1;
            false
        });
        assert_eq!(seen.expect("listed"), 0);
        count
    };
    node.run(move || {
        let mut conntrack = Conntrack::open().expect("opened");
        assert_eq!(count(&mut conntrack, Which::AnsweredBy(b)), 1);
        assert_eq!((count(&mut conntrack, Which::From(a)), count(&mut conntrack, Which::From(b))), (1, 0));
        network.detach("uid-b").expect("detached");
        assert_eq!(count(&mut conntrack, Which::AnsweredBy(b)), 0, "to b");
        network.detach("uid-a").expect("detached");
        assert_eq!(count(&mut conntrack, Which::From(a)), 0, "from a");
        Network::cleanup(&leases, Some("m")).expect("cleaned up");
    });
}
