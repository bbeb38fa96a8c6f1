//! Services of any size, and a table that others take away: nobody's Service suffers for another's (X7).

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};

use mainstay_node::network::filter::{Backends, Filter, Front, Fronts, Limit, MAX_ENDPOINTS, Protocol};
use mainstay_node::network::{self, Cidr, Network};

use super::{Host, config, fronts};

fn front(last: u8, port: u16) -> Front {
    Front { address: Some(Ipv4Addr::new(10, 96, 0, last)), protocol: Protocol::Tcp, port }
}

/// So many ports with so many endpoints each, that are nowhere.
fn large(ports: u16, endpoints: u32, affinity: Option<u32>) -> Fronts {
    let first = u32::from(Ipv4Addr::new(10, 244, 128, 0));
    let endpoints: Vec<_> = (0..endpoints).map(|at| SocketAddrV4::new(Ipv4Addr::from(first + at), 80)).collect();
    let backends = Backends { endpoints, inside: None, affinity, masquerade: false, from: None };
    (0..ports).map(|port| (front(30, 1000 + port), backends.clone())).collect()
}

#[test]
fn x7_n4_a_large_service_takes_nothing_from_others_and_a_lost_table_is_made_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let opened = config(folder.path());
    let leases = opened.folder.clone();
    let (node, pod_a, pod_b) = (Host::new(), Host::new(), Host::new());
    let (netns_a, netns_b) = (pod_a.netns.clone(), pod_b.netns.clone());
    let web = front(20, 80);
    let (services, network, mut filter) = node.run(move || {
        let network = Network::open(opened.clone()).expect("opened");
        network.attach("uid-a", &netns_a).expect("attached");
        let b = network.attach("uid-b", &netns_b).expect("attached");
        let mut sticky = large(100, 1000, Some(60));
        sticky.retain(|front, _| front.port < 1002);
        let services = vec![
            ("eve/big".to_owned(), large(100, 1000, None)),
            ("default/web".to_owned(), fronts(web, &[b], false, None)),
            (
                "default/sticky".to_owned(),
                sticky.into_iter().map(|(f, b)| (Front { port: f.port + 9000, ..f }, b)).collect(),
            ),
        ];
        let mut filter = Filter::open(opened.cluster_cidr, opened.service_cidr).expect("nftables");
        assert!(filter.fill(&services).expect("filled").is_empty(), "all of it, at once");
        assert_eq!(filter.limit("eve/big"), None);
        (services, network, filter)
    });
    pod_b.serve("b");
    let at = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 20), 80);
    assert!(pod_a.ask(at).is_ok_and(|answer| answer.starts_with("b ")));
    filter = node.run(move || {
        // One endpoint less of each; then more than anybody may have; then none.
        filter.set_service("eve/big", &large(100, 999, None)).expect("set");
        let too_many = u32::try_from(MAX_ENDPOINTS / 100 + 1).expect("few");
        filter.set_service("eve/big", &large(100, too_many, None)).expect("set");
        assert_eq!(filter.limit("eve/big"), Some(Limit::Endpoints(MAX_ENDPOINTS / 100)));
        let mut from_many = large(2, 1, None);
        let everywhere: Vec<Cidr> = (0..20_000).map(|at| Cidr { first: Ipv4Addr::from(at), prefix: 32 }).collect();
        from_many.values_mut().for_each(|backends| backends.from = Some(everywhere.clone()));
        filter.set_service("eve/big", &from_many).expect("set");
        assert!(matches!(filter.limit("eve/big"), Some(Limit::Sources(_))));
        filter.set_service("eve/big", &Fronts::new()).expect("removed");
        assert_eq!((filter.limit("eve/big"), filter.has("eve/big")), (None, false));
        assert!(filter.is_in_place().expect("looked"));
        network::filter::remove().expect("somebody else's flush");
        assert!(!filter.is_in_place().expect("looked"), "it is gone");
        filter
    });
    assert!(pod_a.ask(at).is_err(), "without its table");
    let filter = node.run(move || {
        // Somebody else's of the same name.
        let mut other = Filter::open(network.config().cluster_cidr, network.config().service_cidr).expect("nftables");
        other.fill(&[]).expect("an empty table");
        assert!(!filter.is_in_place().expect("looked"), "another one's");
        assert!(filter.fill(&services).expect("filled").is_empty());
        assert!(filter.is_in_place().expect("looked"));
        filter
    });
    assert!(pod_a.ask(at).is_ok_and(|answer| answer.starts_with("b ")), "made again");
    node.run(move || {
        drop(filter);
        Network::cleanup(&leases, Some("m")).expect("cleaned up");
    });
}

/// A Service may have any endpoint, by slices that people write.
#[test]
fn x6_no_service_leads_a_pod_to_the_hosts_loopback() {
    let folder = tempfile::tempdir().expect("a folder");
    let opened = config(folder.path());
    let leases = opened.folder.clone();
    let (node, pod_a, pod_b) = (Host::new(), Host::new(), Host::new());
    let (netns_a, netns_b) = (pod_a.netns.clone(), pod_b.netns.clone());
    let host_port = Front { address: Some(Ipv4Addr::LOCALHOST), protocol: Protocol::Tcp, port: 8081 };
    let (filter, listener) = node.run(move || {
        let network = Network::open(opened.clone()).expect("opened");
        network.attach("uid-a", &netns_a).expect("attached");
        let b = network.attach("uid-b", &netns_b).expect("attached");
        let mut filter = Filter::open(opened.cluster_cidr, opened.service_cidr).expect("nftables");
        filter.fill(&[]).expect("an empty table");
        filter.set_service("eve/web", &fronts(front(20, 80), &[Ipv4Addr::LOCALHOST], false, None)).expect("set");
        filter.set_service("a pod's", &fronts(host_port, &[b], true, None)).expect("set");
        (filter, TcpListener::bind((Ipv4Addr::LOCALHOST, 80)).expect("the host's own"))
    });
    pod_b.serve("b");
    let at = SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 20), 80);
    assert_ne!(pod_a.ask(at).err(), None);
    listener.set_nonblocking(true).expect("set");
    assert_eq!(listener.accept().map(drop).map_err(|error| error.kind()), Err(ErrorKind::WouldBlock));
    let own = node.ask(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8081));
    assert!(own.is_ok_and(|answer| answer.starts_with("b ")), "a host port on the loopback address answers still");
    node.run(move || {
        drop(filter);
        Network::cleanup(&leases, Some("m")).expect("cleaned up");
    });
}
