//! The pod network in real network namespaces, made by the test and gone with its threads: nothing here can reach
//! anything outside. Needs root.

mod connections;
mod kept;
mod large;
mod spoofing;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use mainstay_node::network::filter::{Backends, Filter, Front, Fronts, Protocol};
use mainstay_node::network::{Between, Cidr, Network, NetworkConfig};
use nix::sched::{CloneFlags, unshare};

type Job = Box<dyn FnOnce() + Send>;

/// A thread in a network namespace of its own.
struct Host {
    jobs: Option<mpsc::Sender<Job>>,
    netns: PathBuf,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Host {
    fn new() -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, is_ready) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("root and network namespaces are needed");
            ready.send(format!("/proc/self/task/{}/ns/net", nix::unistd::gettid())).expect("the test waits");
            queue.into_iter().for_each(|job| job());
        });
        Self { jobs: Some(jobs), netns: is_ready.recv().expect("the thread runs").into(), thread: Some(thread) }
    }

    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        let job = Box::new(move || done.send(work()).expect("the test waits"));
        self.jobs.as_ref().expect("until dropped").send(job).expect("the thread runs");
        result.recv().expect("the job did not panic")
    }

    /// Answers every connection on port 80 with `name` and the peer's address.
    fn serve(&self, name: &'static str) {
        self.run(move || {
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)).expect("port 80 is free in a new namespace");
            std::thread::spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    let peer = stream.peer_addr().expect("a peer");
                    let _ = stream.write_all(format!("{name} {}", peer.ip()).as_bytes());
                }
            });
        });
    }

    fn ask(&self, to: SocketAddrV4) -> Result<String, ErrorKind> {
        self.run(move || {
            let mut stream =
                TcpStream::connect_timeout(&to.into(), Duration::from_secs(3)).map_err(|error| error.kind())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map_err(|error| error.kind())?;
            Ok(answer)
        })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn cidr(text: &str) -> Cidr {
    Cidr::parse(text).expect("a range")
}

/// What the tests' networks have.
fn config(folder: &std::path::Path) -> NetworkConfig {
    NetworkConfig {
        folder: folder.join("leases"),
        machine: "m".to_owned(),
        pod_cidr: cidr("10.244.0.0/24"),
        cluster_cidr: cidr("10.244.0.0/16"),
        service_cidr: cidr("10.96.0.0/16"),
        dns_address: Ipv4Addr::new(10, 96, 0, 10),
        node_address: Ipv4Addr::LOCALHOST,
        between: Between::Routes,
    }
}

fn fronts(front: Front, endpoints: &[Ipv4Addr], masquerade: bool, affinity: Option<u32>) -> Fronts {
    let endpoints = endpoints.iter().map(|address| SocketAddrV4::new(*address, 80)).collect();
    BTreeMap::from([(front, Backends { endpoints, inside: None, affinity, masquerade, from: None })])
}

#[test]
fn pods_reach_services_and_nothing_leaves() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(folder.path());
    let (node, pod_a, pod_b) = (Host::new(), Host::new(), Host::new());
    let (netns_a, netns_b) = (pod_a.netns.clone(), pod_b.netns.clone());
    let opened = config.clone();
    let (a, b, mut filter) = node.run(move || {
        let network = Network::open(opened.clone()).expect("opened");
        let network_again = Network::open(opened.clone()).expect("opening is idempotent");
        let a = network.attach("uid-a", &netns_a).expect("attached");
        assert_eq!(network_again.attach("uid-a", &netns_a).expect("attached again"), a, "V7");
        let b = network.attach("uid-b", &netns_b).expect("attached");
        (a, b, {
            let mut filter = Filter::open(opened.cluster_cidr, opened.service_cidr).expect("nftables");
            filter.fill(&[]).expect("an empty table");
            filter
        })
    });
    pod_a.serve("a");
    pod_b.serve("b");
    assert_eq!(pod_a.ask(SocketAddrV4::new(b, 80)), Ok(format!("b {a}")), "pod to pod keeps the source address");
    assert_eq!(node.ask(SocketAddrV4::new(a, 80)), Ok("a 10.244.0.1".to_owned()), "host to pod");

    let address = Ipv4Addr::new(10, 96, 0, 20);
    let front = Front { address: Some(address), protocol: Protocol::Tcp, port: 8080 };
    let service = SocketAddrV4::new(address, 8080);
    assert_eq!(pod_a.ask(service), Err(ErrorKind::ConnectionRefused), "N4: no rules is refused");
    assert_eq!(node.ask(service), Err(ErrorKind::ConnectionRefused), "N4: from the host too");

    let mut filter = node.run(move || {
        filter.set_service("default/web", &fronts(front, &[b], false, None)).expect("set");
        filter
    });
    assert_eq!(pod_a.ask(service), Ok(format!("b {a}")), "pod to Service on the same bridge");
    assert_eq!(node.ask(service), Ok("b 10.244.0.1".to_owned()), "host to Service");
    assert_eq!(pod_b.ask(service), Ok("b 10.244.0.1".to_owned()), "a pod reaches itself by its Service");

    let mut filter = node.run(move || {
        filter.set_service("default/web", &fronts(front, &[a, b], false, None)).expect("set");
        filter
    });
    let answers: std::collections::BTreeSet<_> = (0..64).filter_map(|_| node.ask(service).ok()).collect();
    assert_eq!(answers.len(), 2, "both endpoints are used: {answers:?}");

    let node_port = Front { address: None, protocol: Protocol::Tcp, port: 30080 };
    let mut filter = node.run(move || {
        filter.set_service("default/web", &fronts(front, &[a, b], false, Some(60))).expect("set");
        filter.set_service("default/port", &fronts(node_port, &[b], true, None)).expect("set");
        filter
    });
    let answers: std::collections::BTreeSet<_> = (0..16).filter_map(|_| pod_a.ask(service).ok()).collect();
    assert_eq!(answers.len(), 1, "ClientIP affinity: {answers:?}");
    let by_port = SocketAddrV4::new(Ipv4Addr::new(10, 244, 0, 1), 30080);
    assert_eq!(pod_a.ask(by_port), Ok("b 10.244.0.1".to_owned()), "node port, masqueraded");

    node.run(move || {
        filter.set_service("default/web", &Fronts::new()).expect("removed");
        assert_eq!(filter.services().collect::<Vec<_>>(), ["default/port"]);
    });
    assert_eq!(pod_a.ask(service), Err(ErrorKind::ConnectionRefused), "N4: refused once the endpoints are gone");

    let leases = config.folder.clone();
    node.run(move || Network::cleanup(&leases, Some("m")).expect("cleaned up"));
    assert!(!config.folder.exists());
}

#[test]
fn n4_a_second_range_of_services_is_led_to_their_link_and_takes_nothing_of_the_machines_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let opened = config(folder.path());
    let (node, pod) = (Host::new(), Host::new());
    let netns = pod.netns.clone();
    let service = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 10), 80);
    let front = Front { address: Some(*service.ip()), protocol: Protocol::Tcp, port: 80 };
    let own = Cidr { first: opened.node_address, prefix: 32 };
    let refused = [opened.cluster_cidr, own, cidr("0.0.0.0/0"), cidr("127.0.0.0/16")];
    let more = cidr("203.0.113.0/24");
    let (network, mut filter) = node.run(move || {
        let network = Network::open(opened.clone()).expect("opened");
        let address = network.attach("uid-a", &netns).expect("attached");
        let mut filter = Filter::open(opened.cluster_cidr, opened.service_cidr).expect("nftables");
        filter.fill(&[]).expect("an empty table");
        filter.set_service("default/web", &fronts(front, &[address], false, None)).expect("set");
        (network, filter)
    });
    pod.serve("a");
    let before = node.ask(service).expect_err("no route leads there");
    assert_eq!(before, ErrorKind::NetworkUnreachable);
    let network = node.run(move || {
        let all: Vec<Cidr> = [more, cidr("10.96.4.0/24")].into_iter().chain(refused).collect();
        assert_eq!(network.route_services(&all).expect("routed"), refused);
        assert_eq!(network.route_services(&all).expect("again"), refused, "idempotent");
        network
    });
    assert_eq!(node.ask(service), Ok("a 10.244.0.1".to_owned()), "from the host, as out of the first range");
    node.run(move || {
        assert_eq!(network.route_services(&[]).expect("taken away"), []);
        filter.set_service("default/web", &Fronts::new()).expect("removed");
    });
    assert_eq!(node.ask(service), Err(ErrorKind::NetworkUnreachable));
    let leases = folder.path().to_owned();
    node.run(move || Network::cleanup(&leases.join("leases"), Some("m")).expect("cleaned up"));
}

/// Services, session affinity timeout and switching it on and off: for a cluster address and for a node port.
#[test]
fn conformance_session_affinity_lasts_until_its_timeout() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(folder.path());
    let (node, pod_a, pod_b) = (Host::new(), Host::new(), Host::new());
    let (netns_a, netns_b) = (pod_a.netns.clone(), pod_b.netns.clone());
    let opened = config.clone();
    let (a, b, filter) = node.run(move || {
        let network = Network::open(opened.clone()).expect("opened");
        let (a, b) = (network.attach("uid-a", &netns_a), network.attach("uid-b", &netns_b));
        let mut filter = Filter::open(opened.cluster_cidr, opened.service_cidr).expect("nftables");
        filter.fill(&[]).expect("an empty table");
        (a.expect("attached"), b.expect("attached"), filter)
    });
    pod_a.serve("a");
    pod_b.serve("b");
    let mut filter = Some(filter);
    let address = Ipv4Addr::new(10, 96, 0, 20);
    let fronts_of = [
        (
            Front { address: Some(address), protocol: Protocol::Tcp, port: 8080 },
            SocketAddrV4::new(address, 8080),
            false,
        ),
        (
            Front { address: None, protocol: Protocol::Tcp, port: 30080 },
            SocketAddrV4::new(Ipv4Addr::new(10, 244, 0, 1), 30080),
            true,
        ),
    ];
    let who = |from: &Host, service| from.ask(service).expect("an answer").split(' ').next().map(str::to_owned);
    let times = |from: &Host, service, count: usize| -> std::collections::BTreeSet<_> {
        (0..count).map(|_| who(from, service)).collect()
    };
    for (front, service, masquerade) in fronts_of {
        let mut set = |endpoints: &'static str, affinity| {
            let endpoints: Vec<Ipv4Addr> = endpoints.chars().map(|name| if name == 'a' { a } else { b }).collect();
            let mut moved = filter.take().expect("the filter");
            filter = Some(node.run(move || {
                moved.set_service("default/web", &fronts(front, &endpoints, masquerade, affinity)).expect("set");
                moved
            }));
        };
        set("ab", None);
        assert_eq!(times(&pod_a, service, 64).len(), 2, "without affinity both are used");
        set("ab", Some(600));
        assert_eq!(times(&pod_a, service, 16).len(), 1, "switched on");
        // The other one goes and comes again: who had this one keeps it.
        let kept = who(&pod_a, service);
        set(if kept.as_deref() == Some("a") { "a" } else { "b" }, Some(600));
        set("ab", Some(600));
        assert_eq!(times(&pod_a, service, 16), [kept].into(), "kept while the other one came and went");
        // A client that is heard of keeps its endpoint for longer than the timeout. Where the machine has no time for
        // this test, nothing is said about it.
        set("ab", None);
        set("ab", Some(1));
        let (began, mut last, mut kept) = (std::time::Instant::now(), std::time::Instant::now(), 0);
        let mut first = who(&pod_a, service);
        while kept < 20 || began.elapsed() < Duration::from_millis(2500) {
            let asked = who(&pod_a, service);
            if last.elapsed() < Duration::from_millis(900) {
                assert_eq!(asked, first, "each connection begins its time anew");
                kept += 1;
            }
            (first, last) = (asked, std::time::Instant::now());
        }
        // One that is not is sent anywhere: after twenty such times, both were met.
        let mut met = std::collections::BTreeSet::from([first]);
        for _ in 0..20 {
            let silent = std::time::Instant::now();
            while silent.elapsed() < Duration::from_millis(1300) {
                who(&pod_b, service);
            }
            met.insert(who(&pod_a, service));
            if met.len() == 2 {
                break;
            }
        }
        assert_eq!(met.len(), 2, "the affinity ends");
        set("ab", None);
        assert_eq!(times(&pod_a, service, 64).len(), 2, "switched off");
        set("", None);
        assert!(pod_a.ask(service).is_err(), "gone");
    }
    let leases = config.folder.clone();
    node.run(move || Network::cleanup(&leases, Some("m")).expect("cleaned up"));
}

#[test]
fn n4_external_addresses_refuse_what_no_endpoint_takes_and_whom_no_source_range_has() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(folder.path());
    let (node, pod_a, pod_b) = (Host::new(), Host::new(), Host::new());
    let (netns_a, netns_b) = (pod_a.netns.clone(), pod_b.netns.clone());
    let opened = config.clone();
    let (a, b, mut filter) = node.run(move || {
        let network = Network::open(opened.clone()).expect("opened");
        let a = network.attach("uid-a", &netns_a).expect("attached");
        let b = network.attach("uid-b", &netns_b).expect("attached");
        // A way out, so that what is not refused leaves the machine.
        let route = ["route", "add", "203.0.113.0/24", "dev", mainstay_node::network::POD_BRIDGE];
        assert!(std::process::Command::new("ip").args(route).status().expect("ip").success());
        let mut filter = Filter::open(opened.cluster_cidr, opened.service_cidr).expect("nftables");
        filter.fill(&[]).expect("an empty table");
        (a, b, filter)
    });
    pod_b.serve("b");
    let address = Ipv4Addr::new(203, 0, 113, 7);
    let front = Front { address: Some(address), protocol: Protocol::Tcp, port: 80 };
    let service = SocketAddrV4::new(address, 80);
    assert_ne!(pod_a.ask(service), Err(ErrorKind::ConnectionRefused), "without a Service it leaves");
    let with = |endpoints: &[Ipv4Addr], from: Option<Vec<Cidr>>| {
        let mut fronts = fronts(front, endpoints, true, None);
        fronts.values_mut().for_each(|backends| backends.from = from.clone());
        fronts
    };
    let none = with(&[], None);
    let mut filter = node.run(move || {
        filter.set_service("default/a", &none).expect("set");
        filter.set_service("default/b", &none).expect("two Services may have one address");
        filter.set_service("default/b", &Fronts::new()).expect("removed");
        filter
    });
    assert_eq!(pod_a.ask(service), Err(ErrorKind::ConnectionRefused), "N4: no endpoint, from a pod");
    assert_eq!(node.ask(service), Err(ErrorKind::ConnectionRefused), "N4: no endpoint, from the host");
    let only_a = with(&[b], Some(vec![Cidr { first: a, prefix: 32 }]));
    let mut filter = node.run(move || {
        filter.set_service("default/a", &only_a).expect("set");
        filter
    });
    assert_eq!(pod_a.ask(service), Ok("b 10.244.0.1".to_owned()), "an allowed source");
    assert_eq!(node.ask(service), Err(ErrorKind::ConnectionRefused), "another source");
    let everybody = with(&[b], None);
    node.run(move || filter.set_service("default/a", &everybody).expect("set"));
    assert!(node.ask(service).is_ok(), "everybody again");
    let leases = config.folder.clone();
    node.run(move || Network::cleanup(&leases, Some("m")).expect("cleaned up"));
}

/// `externalTrafficPolicy: Local` keeps clients from outside to this node's endpoints; pods, and the node itself, are
/// sent to any.
#[test]
fn n4_pods_and_the_node_are_not_kept_to_local_endpoints() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(folder.path());
    let (node, outside, pod_a, pod_b) = (Host::new(), Host::new(), Host::new(), Host::new());
    let (netns_a, netns_b) = (pod_a.netns.clone(), pod_b.netns.clone());
    let outside_thread = outside.run(nix::unistd::gettid).to_string();
    let opened = config.clone();
    let ip = |args: &str| {
        assert!(std::process::Command::new("ip").args(args.split(' ')).status().expect("ip").success(), "{args}");
    };
    let (a, b, mut filter) = node.run(move || {
        let network = Network::open(opened.clone()).expect("opened");
        let a = network.attach("uid-a", &netns_a).expect("attached");
        let b = network.attach("uid-b", &netns_b).expect("attached");
        ip(&format!("link add out0 type veth peer name eth0 netns {outside_thread}"));
        ip("address add 192.0.2.1/24 dev out0");
        ip("link set out0 up");
        ip("route add 203.0.113.0/24 dev out0");
        let mut filter = Filter::open(opened.cluster_cidr, opened.service_cidr).expect("nftables");
        filter.fill(&[]).expect("an empty table");
        (a, b, filter)
    });
    outside.run(move || {
        ip("address add 192.0.2.2/24 dev eth0");
        ip("link set eth0 up");
        ip("route add default via 192.0.2.1");
    });
    pod_a.serve("a");
    pod_b.serve("b");
    let external = Front { address: Some(Ipv4Addr::new(203, 0, 113, 7)), protocol: Protocol::Tcp, port: 80 };
    let node_port = Front { address: None, protocol: Protocol::Tcp, port: 30080 };
    let asked =
        [SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 7), 80), SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 30080)];
    let with = |here: &[Ipv4Addr], affinity| {
        let mut both = fronts(external, here, false, affinity);
        both.extend(fronts(node_port, here, false, affinity));
        both.values_mut().for_each(|backends| backends.inside = Some(vec![SocketAddrV4::new(b, 80)]));
        both
    };
    for affinity in [None, Some(60)] {
        let (none, local) = (with(&[], affinity), with(&[a], affinity));
        filter = node.run(move || {
            filter.set_service("default/web", &none).expect("set");
            filter
        });
        for at in asked {
            assert_eq!(outside.ask(at), Err(ErrorKind::ConnectionRefused), "nothing is here, {at} {affinity:?}");
            assert_eq!(pod_a.ask(at), Ok(format!("b {a}")), "a pod, as itself, {at} {affinity:?}");
            assert_eq!(pod_b.ask(at), Ok("b 10.244.0.1".to_owned()), "a pod that reaches itself, {at} {affinity:?}");
            assert_eq!(node.ask(at), Ok("b 10.244.0.1".to_owned()), "the node itself, {at} {affinity:?}");
        }
        filter = node.run(move || {
            filter.set_service("default/web", &local).expect("set");
            filter
        });
        for at in asked {
            assert_eq!(outside.ask(at), Ok("a 192.0.2.2".to_owned()), "who comes from outside, {at} {affinity:?}");
            assert_eq!(pod_a.ask(at), Ok(format!("b {a}")), "a pod, {at} {affinity:?}");
            assert_eq!(node.ask(at), Ok("b 10.244.0.1".to_owned()), "the node itself, {at} {affinity:?}");
        }
    }
    let leases = config.folder.clone();
    node.run(move || Network::cleanup(&leases, Some("m")).expect("cleaned up"));
}
