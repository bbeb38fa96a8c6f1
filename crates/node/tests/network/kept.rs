//! Whose the links are, and that they stay: against other nodes of the network, and whoever removes what they did not
//! make.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use mainstay_node::network::{self, Network, NetworkConfig};

use super::{Host, config};

#[test]
fn n4_a_second_node_in_one_network_is_refused() {
    let node = Host::new();
    let held = node.run(|| network::hold().expect("nobody else"));
    let refused = node.run(|| network::hold().expect_err("held").to_string());
    assert!(refused.contains("another node runs in this network already"), "{refused}");
    assert!(Host::new().run(|| network::hold().is_ok()), "another network");
    drop(held);
    assert!(node.run(|| network::hold().is_ok()), "it is over");
}

/// Two containers on the host's network see different files, and one network.
#[test]
fn n1_n4_who_sees_other_files_takes_no_running_nodes_network() {
    Host::new().run(|| {
        let held = network::hold().expect("nobody else");
        let refused = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("root");
            let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
            nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private");
            let flags = nix::mount::MsFlags::empty();
            nix::mount::mount(Some("none"), "/run", Some("tmpfs"), flags, None::<&str>).expect("other files");
            network::hold().expect_err("held").to_string()
        });
        let refused = refused.join().expect("no panic");
        assert!(refused.contains("another node runs in this network already"), "{refused}");
        drop(held);
        network::hold().expect("it is over");
    });
}

/// What any process may bind keeps no node from starting; and nobody but root gets at what does.
#[test]
fn x5_x7_only_root_keeps_a_node_out_of_its_network() {
    use std::os::unix::fs::MetadataExt as _;
    Host::new().run(|| {
        let name = SocketAddr::from_abstract_name("mainstay-node").expect("a name");
        let _strangers = UnixListener::bind_addr(&name).expect("bound");
        network::hold().expect("held all the same");
    });
    let folder = std::fs::metadata("/run/mainstay").expect("a folder");
    assert_eq!((folder.uid(), folder.mode() & 0o777), (0, 0o700));
}

/// `ip …` in this thread's network; PAIR is the pod's interface.
fn ip(args: &str) {
    let links = Command::new("ip").args(["-o", "link", "show", "type", "veth"]).output().expect("ip (iproute2)");
    let links = String::from_utf8_lossy(&links.stdout).into_owned();
    let pair = links.split(": ").nth(1).and_then(|name| name.split('@').next()).unwrap_or_default().to_owned();
    let args = args.replace("PAIR", &pair);
    assert!(Command::new("ip").args(args.split(' ')).status().expect("ip").success(), "ip {args}");
}

/// A node with a pod that answers.
struct Bed {
    folder: tempfile::TempDir,
    opened: NetworkConfig,
    node: Host,
    pod: Host,
    address: Ipv4Addr,
}

impl Bed {
    fn new() -> (Self, Network) {
        let folder = tempfile::tempdir().expect("a folder");
        let opened = NetworkConfig { folder: folder.path().join("data/network"), ..config(folder.path()) };
        let (node, pod) = (Host::new(), Host::new());
        let (of, netns) = (opened.clone(), pod.netns.clone());
        let (network, address) = node.run(move || {
            let network = Network::open(of).expect("opened");
            let address = network.attach("uid-a", &netns).expect("attached");
            (network, address)
        });
        pod.serve("a");
        let bed = Self { folder, opened, node, pod, address };
        assert!(bed.is_reached());
        (bed, network)
    }

    fn is_reached(&self) -> bool {
        self.node.ask(SocketAddrV4::new(self.address, 80)).is_ok()
    }

    fn pods(&self) -> Vec<(String, PathBuf)> {
        // The second one is being removed: it holds no address any more.
        ["uid-a", "uid-gone"].map(|uid| (uid.to_owned(), self.pod.netns.clone())).into()
    }
}

#[test]
fn n1_n4_what_somebody_takes_away_of_the_pod_network_is_made_again() {
    let (bed, mut network) = Bed::new();
    let more = super::cidr("203.0.113.0/24");
    network = bed.node.run(move || {
        assert_eq!(network.route_services(&[more]).expect("routed"), []);
        network
    });
    let steps: [(&str, fn()); 11] = [
        ("the pod's pair", || ip("link del PAIR")),
        ("the pod's port", || ip("link set PAIR nomaster")),
        ("the bridge", || ip("link del mst-pods")),
        ("the Services' link", || ip("link del mst-services")),
        ("the bridge's address", || ip("address flush dev mst-pods")),
        ("the bridge, down", || ip("link set mst-pods down")),
        ("the DNS server's address", || ip("address del 10.96.0.10/32 dev mst-services")),
        ("the route to Services", || ip("route del 10.96.0.0/16")),
        ("the route to a further range", || ip("route del 203.0.113.0/24")),
        ("forwarding", || std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").expect("set")),
        ("the way back to this machine", || {
            std::fs::write("/proc/sys/net/ipv4/conf/mst-pods/route_localnet", "0").expect("set");
        }),
    ];
    for (what, take_away) in steps {
        let pods = bed.pods();
        network = bed.node.run(move || {
            let whole = network.look(&pods).expect("looked");
            assert!(whole.made.is_empty() && whole.lost.is_empty(), "before {what}: {whole:?}");
            take_away();
            let looked = network.look(&pods).expect("looked");
            assert!(!looked.made.is_empty() && looked.lost.is_empty(), "{what}: {looked:?}");
            let again = network.look(&pods).expect("looked");
            assert!(again.made.is_empty() && again.lost.is_empty(), "after {what}: {again:?}");
            assert_eq!(network.address_of("uid-gone").expect("read"), None);
            network
        });
        assert!(bed.is_reached(), "{what}");
        let service = bed.node.ask(SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 1), 80));
        assert_ne!(service, Err(std::io::ErrorKind::NetworkUnreachable), "{what}");
    }
}

#[test]
fn v7_a_folders_cleanup_takes_nothing_of_another_folders_node() {
    let (bed, network) = Bed::new();
    let cleanup = |folder: &Path, machine: Option<&'static str>| {
        let folder = folder.to_owned();
        bed.node.run(move || Network::cleanup(&folder, machine).expect("cleaned up"))
    };
    let other = bed.folder.path().join("other/network");
    std::fs::create_dir_all(&other).expect("a folder");
    // Also when it does not run: its containers go on.
    drop(network);
    assert!(cleanup(&other, Some("other")).is_some_and(|why| why.contains("data/network")));
    assert!(!other.exists(), "its own leases are gone");
    assert_eq!(cleanup(&other, None), None);
    assert!(bed.is_reached());
    let opened = NetworkConfig { folder: other.clone(), machine: "other".to_owned(), ..bed.opened.clone() };
    let refused = bed.node.run(move || Network::open(opened).expect_err("pods are connected").to_string());
    let data = bed.folder.path().join("data");
    assert!(refused.contains(&format!("mainstay down --data-dir {}", data.display())), "{refused}");
    assert!(bed.is_reached());
    // Where its node runs, not even itself.
    let held = bed.node.run(|| network::hold().expect("held"));
    assert!(cleanup(&bed.opened.folder.clone(), Some("m")).is_some_and(|why| why.contains("runs in this network")));
    assert!(bed.is_reached());
    drop(held);
    // The folder may have been moved meanwhile.
    assert_eq!(cleanup(&bed.folder.path().join("moved/network"), Some("m")), None);
    assert!(!bed.is_reached());
    let opened = NetworkConfig { folder: other, machine: "other".to_owned(), ..bed.opened.clone() };
    bed.node.run(move || Network::open(opened).map(drop).expect("nobody's any more"));
}
