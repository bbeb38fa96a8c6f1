//! `mainstay up`: server and node in one process.

use std::io::IsTerminal as _;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use jiff::SignedDuration;
use mainstay_api::kinds;
use mainstay_cli::args::{NodeArgs, UpArgs};
use mainstay_client::{Client, Config, Informer, ListOptions, Notice, Rotating};
use mainstay_node::join::{self, Member, Settings};
use mainstay_node::kubelet::pressure;
use mainstay_node::network::{Between, Cidr, POD_BRIDGE};
use mainstay_node::{EvictionPolicy, Fencing, LEASE_SECONDS};

/// The name of the image that the binary makes from itself.
pub const DEMO_IMAGE: &str = mainstay_cli::demo::IMAGE;
/// Threads for work that blocks: more than all the bounded pools of server and node together, so that none of them can
/// take the last ones.
const MAX_BLOCKING: usize = 512;
/// Between two attempts to start the node.
const NODE_AGAIN: Duration = Duration::from_secs(5);
/// The bits of a node's own range of pod addresses.
const NODE_PREFIX: u8 = 24;

/// A running cluster.
pub struct Cluster {
    pub server: mainstay_server::Running,
    pub node: mainstay_node::Running,
    pub client: Client,
    /// From the start of the process.
    pub api_ready: Duration,
    pub node_name: String,
}

/// A server that answers, on whose machine a node is to be.
struct Served {
    server: mainstay_server::Running,
    /// As the node.
    client: Client,
    api_ready: Duration,
    node_name: String,
    node_ip: Ipv4Addr,
    /// The first machine's range.
    first_range: Cidr,
    /// Whether something worked on the folder before: what is there is worth an API without a node.
    is_old: bool,
}

/// `mainstay up`.
pub fn run(args: &UpArgs) -> Result<()> {
    let begun = Instant::now();
    crate::need_root("mainstay up")?;
    // What is wrong is said before anything begins.
    eviction_policy(&args.node)?;
    log_to_stderr();
    if let Err(error) = mainstay_runtime::kernel::raise_open_files() {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    crate::instance::take(&args.data_dir)?;
    let _held = crate::instance::hold(&args.data_dir)?;
    runtime()?.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
        let served = tokio::select! {
            served = serve(args, begun) => served?,
            // It may wait for etcd.
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        };
        let server = Config::parse(served.server.admin.kubeconfig.as_bytes())?.server;
        say!("mainstay: API ready    https://{server}   {} ms", served.api_ready.as_millis());
        let kubeconfig = args.server.kubeconfig.as_ref().unwrap_or(&served.server.admin.path);
        say!("mainstay: kubeconfig   export KUBECONFIG={}", kubeconfig.display());
        if let Some(other) = mainstay_server::kubeconfig::other_context(kubeconfig) {
            say!("mainstay: kubeconfig   its present context is {other:?}: this cluster's is `--context mainstay`");
        }
        let servers = async {
            match served.server.api.store.is_shared() {
                true => join::follow_other_servers(served.client.clone()).await,
                false => std::future::pending().await,
            }
        };
        let mut node = None;
        let work = async {
            let node = node.insert(begin_node(args, &served).await?);
            // Of a node that another machine is, too, the API may say that it is ready.
            if node.kubelet.hold.held().await {
                let ready = node_ready(&served.client, &served.node_name, begun).await;
                say!("mainstay: node ready   {}   {} ms", served.node_name, ready.as_millis());
            }
            make_demo_image(node).await;
            crate::server::release_start().await;
            std::future::pending::<Result<()>>().await
        };
        let ended = tokio::select! {
            ended = work => ended,
            () = servers => Ok(()),
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        };
        if ended.is_ok() {
            say!("mainstay: stopping; containers go on (`mainstay down` stops them)");
        }
        stop(served.server, node, &args.data_dir).await;
        ended
    })
}

/// Stops node and server; containers go on.
async fn stop(server: mainstay_server::Running, node: Option<mainstay_node::Running>, data_dir: &Path) {
    if let Some(node) = node {
        node.stop().await;
    }
    server.shutdown().await;
    // Only a note for `mainstay down`; without it nothing is amiss.
    let _ = std::fs::remove_file(pid_file(data_dir));
}

impl Cluster {
    /// Stops node and server; containers go on.
    pub async fn stop(self, data_dir: &Path) {
        stop(self.server, Some(self.node), data_dir).await;
    }
}

/// Where a running instance leaves its process id.
pub fn pid_file(data_dir: &Path) -> PathBuf {
    data_dir.join("pid")
}

/// The cgroup of an instance: one per data folder, so that two instances never meet.
pub fn cgroup_root(data_dir: &Path) -> String {
    if data_dir == Path::new(mainstay_cli::args::DATA_DIR) {
        return "mainstay".to_owned();
    }
    let path = data_dir.as_os_str().as_encoded_bytes();
    let hash = path
        .iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    format!("mainstay-{:08x}", hash >> 32)
}

/// The runtime of server and node.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from).min(4);
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .max_blocking_threads(MAX_BLOCKING)
        .enable_all()
        .build()?)
}

/// Warnings and errors on standard error; `MAINSTAY_LOG=debug` for more.
pub fn log_to_stderr() {
    let level = std::env::var("MAINSTAY_LOG").ok().and_then(|level| level.parse().ok()).unwrap_or(tracing::Level::WARN);
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        // Files and journals keep what is written; and where nobody reads any more, nothing breaks.
        .with_ansi(std::io::stderr().is_terminal())
        .log_internal_errors(false)
        .with_target(false)
        .init();
}

/// Starts server and node; returns when the API answers and the node's parts are open.
pub async fn start(args: &UpArgs, begun: Instant) -> Result<Cluster> {
    let served = serve(args, begun).await?;
    let node = start_node(args, &served).await?;
    let Served { server, client, api_ready, node_name, .. } = served;
    Ok(Cluster { server, node, client, api_ready, node_name })
}

/// Starts the server; returns when the API answers.
async fn serve(args: &UpArgs, begun: Instant) -> Result<Served> {
    // Two TLS libraries' defaults would be ambiguous; this process has one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cluster_cidr =
        Cidr::parse(&args.server.cluster_cidr).filter(|range| range.prefix <= NODE_PREFIX).with_context(|| {
            format!(
                "--cluster-cidr {:?} is not an IPv4 range such as 10.244.0.0/16, of at least a /{NODE_PREFIX}",
                args.server.cluster_cidr
            )
        })?;
    let first_range = Cidr { first: cluster_cidr.first, prefix: NODE_PREFIX };
    let node_ip = match args.node.node_ip {
        Some(address) => address,
        None => default_address()
            .or_else(|| first_range.at(1))
            .context("no address for this node; give one with --node-ip")?,
    };
    let is_old = crate::instance::was_here(&args.data_dir);
    let node_name = own_name(args)?;
    // Pods come by their bridge, whose address follows from the range that this node had, or is to have.
    let known = join::own_node(&args.data_dir)?.filter(|_| !args.server.new_cluster);
    let range = known.and_then(|own| Cidr::parse(&own.pod_cidr)).unwrap_or(first_range);
    let pods = range.at(1).filter(|_| crate::server::unreached(&args.server).is_some());
    let local = mainstay_server::LocalNode { name: node_name.clone(), addresses: vec![IpAddr::V4(node_ip)], pods };
    // The node speaks to its own server before it has a pod network.
    mainstay_node::network::raise_loopback()?;
    let server = crate::server::start(&args.data_dir, &args.server, Some(local), node_ip).await?;
    let api_ready = begun.elapsed();
    mainstay_node::volumes::owner::take(&args.data_dir, &server.cluster, args.server.new_cluster)?;
    note_instance(&args.data_dir);
    let identity = server.node.as_ref().context("the server has no certificate for its node")?;
    let known = Config::parse(identity.kubeconfig.as_bytes())?;
    // The certificate is made anew while this runs.
    let client = Client::new(Config { rotating: Some(identity.rotating.clone()), ..known })?;
    Ok(Served { server, client, api_ready, node_name, node_ip, first_range, is_old })
}

/// Starts the node. Where there is a cluster already, its API does not end because this machine is no node: why is
/// said, and it is tried again and again, for a person may do something about it (with kubectl, for example).
async fn begin_node(args: &UpArgs, served: &Served) -> Result<mainstay_node::Running> {
    let mut said = String::new();
    loop {
        let error = match start_node(args, served).await {
            Err(error) if served.is_old => error,
            done => return done,
        };
        let why = crate::chain(&error);
        if why != said {
            tell!("mainstay: the API is there, but this machine is no node: {why}; trying again");
            said = why;
        }
        tokio::time::sleep(NODE_AGAIN).await;
    }
}

/// Makes this machine's Node, and starts the node.
async fn start_node(args: &UpArgs, served: &Served) -> Result<mainstay_node::Running> {
    let Served { server, client, node_name, node_ip, .. } = served;
    let IpAddr::V4(cluster_dns) = server.dns_address else { bail!("the DNS server's address is not IPv4") };
    let identity = server.node.as_ref().context("the server has no certificate for its node")?;
    let machine = join::machine(&args.data_dir)?;
    let first = || if server.api.store.is_shared() { String::new() } else { served.first_range.to_string() };
    // The first machine has the first range, unless it had another, or somebody else has it. Where there are others,
    // the server gives each machine a range that is free. A Node that is there keeps its own.
    let wanted = join::own_node(&args.data_dir)?.map_or_else(first, |own| own.pod_cidr);
    let pod_cidr = join::claim_or_other(client, &args.data_dir, node_name, &machine, *node_ip, &wanted).await?;
    join::keep_own_node(&args.data_dir, &join::OwnNode { node: node_name.clone(), pod_cidr: pod_cidr.clone() })?;
    let member = Member {
        server: server.addr.to_string(),
        ca_pem: server.ca_pem.clone(),
        node: node_name.clone(),
        address: *node_ip,
        is_address_given: Some(args.node.node_ip.is_some()),
        pod_cidr,
        lease_seconds: None,
        settings: Settings {
            cluster: server.cluster.clone(),
            cluster_cidr: args.server.cluster_cidr.clone(),
            service_cidr: args.server.service_cidr.clone(),
            cluster_dns,
            cluster_domain: args.server.cluster_domain.clone(),
            pod_network: args.server.pod_network.clone(),
            servers: String::new(),
            fencing: String::new(),
        },
    };
    let serving = identity.rotating.clone();
    // The only server's own node: when it is silent, so is the server, and nobody takes a pod's place.
    let fencing = if args.server.store.is_shared() { Fencing::ByDefault } else { Fencing::Off };
    let mut config = node_config(&args.data_dir, &args.node, &member, client.clone(), serving, machine, fencing)?;
    config.store = crate::server::etcd_members(&args.server.store)?;
    let bridge = Cidr::parse(&config.pod_cidr).and_then(|range| range.at(1));
    let node = mainstay_node::start(config).await?;
    if let Some(address) = bridge {
        server.serve_pods(address, POD_BRIDGE, mainstay_node::network::link_index).await;
    }
    Ok(node)
}

/// The name that this machine's Node has, or is to have: its pods, volumes and certificates are found by it, so that a
/// host whose name has changed goes on under the old one.
///
/// # Errors
/// Another one was given.
fn own_name(args: &UpArgs) -> Result<String> {
    let own = join::own_node(&args.data_dir)?.filter(|_| !args.server.new_cluster);
    match (own, &args.node.node_name) {
        (Some(own), Some(given)) if own.node != *given => bail!(
            "this machine is node {0}, and its volumes are found by that name; start it with --node-name {0}, or \
             without",
            own.node
        ),
        (Some(own), _) => Ok(own.node),
        (None, given) => match given.clone().or_else(|| certified_name(&args.data_dir)) {
            Some(name) => Ok(name),
            None => host_name(),
        },
    }
}

/// The name in the certificate of a node that an older version started here.
fn certified_name(data_dir: &Path) -> Option<String> {
    join::known_machine(data_dir)?;
    let entries = std::fs::read_dir(data_dir.join("pki")).ok()?.flatten().map(|entry| entry.file_name());
    let mut names = entries.filter_map(|file| {
        Some(file.to_str()?.strip_prefix("node-")?.strip_suffix(".crt")?.to_owned()).filter(|name| !name.is_empty())
    });
    names.next().filter(|_| names.next().is_none())
}

/// The host's name, as a Node may be called.
pub fn host_name() -> Result<String> {
    Ok(nix::unistd::gethostname()?.to_string_lossy().to_ascii_lowercase())
}

/// A node of the cluster, on this machine.
pub fn node_config(
    data_dir: &Path,
    args: &NodeArgs,
    member: &Member,
    client: Client,
    serving: Arc<Rotating>,
    machine: String,
    fencing: Fencing,
) -> Result<mainstay_node::NodeConfig> {
    let between = Between::parse(&member.settings.pod_network).with_context(|| {
        let network = &member.settings.pod_network;
        format!("the cluster's pod network is {network:?}, which this mainstay does not know: run the server's version")
    })?;
    Ok(mainstay_node::NodeConfig {
        client,
        data_dir: data_dir.to_owned(),
        node_name: member.node.clone(),
        node_ip: member.address,
        pod_cidr: member.pod_cidr.clone(),
        cluster_cidr: member.settings.cluster_cidr.clone(),
        service_cidr: member.settings.service_cidr.clone(),
        between,
        cluster_dns: member.settings.cluster_dns,
        cluster_domain: member.settings.cluster_domain.clone(),
        cgroup_root: cgroup_root(data_dir),
        store: Vec::new(),
        shim_exe: PathBuf::from("/proc/self/exe"),
        seccomp_default: args.seccomp_default,
        allowed_unsafe_sysctls: args.allowed_unsafe_sysctls.clone(),
        host_resolv_conf: PathBuf::from("/etc/resolv.conf"),
        streaming_port: args.node_port,
        serving,
        client_ca_pem: member.ca_pem.clone(),
        machine,
        take_over: args.take_over.clone().unwrap_or_default(),
        fencing,
        lease_seconds: args.node_lease_duration.or(member.lease_seconds).unwrap_or(LEASE_SECONDS),
        eviction: eviction_policy(args)?,
    })
}

/// When a node is short of something, as its flags say.
pub fn eviction_policy(args: &NodeArgs) -> Result<EvictionPolicy> {
    let thresholds = args.eviction_hard.as_deref().map(pressure::thresholds).transpose();
    let period = &args.eviction_pressure_transition_period;
    let parsed: SignedDuration = period
        .parse()
        .with_context(|| format!("--eviction-pressure-transition-period {period:?} is not a time such as 5m"))?;
    Ok(EvictionPolicy {
        thresholds: thresholds
            .map_err(|why| anyhow!("--eviction-hard: {why}"))?
            .unwrap_or_else(|| EvictionPolicy::default().thresholds),
        transition_period: Some(parsed)
            .filter(|period| !period.is_negative())
            .context("--eviction-pressure-transition-period is negative")?,
    })
}

/// Notes for `mainstay down` which process this is, and where its links are. Without them the cluster runs all the same
/// (a full disk, for example).
pub fn note_instance(data_dir: &Path) {
    if let Err(error) = crate::instance::note_process(data_dir) {
        tracing::warn!(%error, "the process id could not be noted: `mainstay down` will not stop this process");
    }
    if let Err(error) = crate::instance::remember(data_dir) {
        tracing::warn!(%error, "the network namespace could not be noted: run `mainstay down` inside of it");
    }
}

/// Waits until the node's condition Ready is True and says when that was.
pub async fn node_ready(client: &Client, name: &str, begun: Instant) -> Duration {
    let options = ListOptions { field_selector: format!("metadata.name={name}"), ..ListOptions::default() };
    let mut nodes = Informer::new(client.clone(), &kinds::NODE, "", options);
    loop {
        if let Notice::Put(_, node) = nodes.next().await {
            let conditions =
                node.pointer("/status/conditions").and_then(serde_json::Value::as_array).into_iter().flatten();
            if conditions.into_iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True") {
                return begun.elapsed();
            }
        }
    }
}

/// Makes the demonstration's image from this binary, so that it works offline.
pub async fn make_demo_image(node: &mainstay_node::Running) {
    let images = node.kubelet.images.clone();
    let made = tokio::task::spawn_blocking(move || images.build_from_self(DEMO_IMAGE, &["demo-server"], &[])).await;
    match made {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(%error, "{DEMO_IMAGE} could not be made"),
        Err(error) => tracing::error!(%error, "making {DEMO_IMAGE} ended badly"),
    }
}

/// The address of the interface that the default route leads out by. A UDP socket is connected for it, to an address
/// kept for documentation; that sends nothing.
pub fn default_address() -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(address) if !address.is_loopback() && !address.is_unspecified() => Some(address),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use mainstay_cli::args::{Cli, Command};

    use super::*;

    fn args(data_dir: &Path, more: &[&str]) -> UpArgs {
        let words = ["mainstay", "up", "--data-dir", data_dir.to_str().unwrap()];
        let cli = Cli::parse_from(words.into_iter().chain(more.iter().copied()));
        let Command::Up(args) = cli.command else { unreachable!("`up` was given") };
        *args
    }

    #[test]
    fn a_server_that_no_pod_reaches_says_so() {
        let dir = tempfile::tempdir().unwrap();
        for (more, is_told) in [
            (&["--listen", "127.0.0.1:6443"][..], true),
            (&["--listen", "[::1]:6443", "--advertise-address", "127.0.0.1"], true),
            (&[], false),
            (&["--listen", "192.0.2.1:6443"], false),
            // Something leads there.
            (&["--listen", "127.0.0.1:6443", "--advertise-address", "192.0.2.1"], false),
        ] {
            let told = crate::server::unreached(&args(dir.path(), more).server);
            assert_eq!(told.is_some(), is_told, "{more:?}");
            assert!(told.is_none_or(|told| told.contains("--listen 0.0.0.0:6443")));
        }
    }

    #[test]
    fn a_machine_keeps_its_nodes_name_whatever_its_host_is_called() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(own_name(&args(dir.path(), &[])).unwrap(), host_name().unwrap());
        assert_eq!(own_name(&args(dir.path(), &["--node-name", "b"])).unwrap(), "b");
        // What an older version left.
        std::fs::create_dir(dir.path().join("pki")).unwrap();
        std::fs::write(dir.path().join("pki/node-a.crt"), "").unwrap();
        assert_eq!(own_name(&args(dir.path(), &[])).unwrap(), host_name().unwrap(), "keys alone may be a backup's");
        join::machine(dir.path()).unwrap();
        assert_eq!(own_name(&args(dir.path(), &[])).unwrap(), "a");
        std::fs::write(dir.path().join("pki/node-c.crt"), "").unwrap();
        assert_eq!(own_name(&args(dir.path(), &[])).unwrap(), host_name().unwrap(), "either may be it");
        let own = join::OwnNode { node: "a".to_owned(), pod_cidr: "10.244.0.0/24".to_owned() };
        join::keep_own_node(dir.path(), &own).unwrap();
        assert_eq!(own_name(&args(dir.path(), &[])).unwrap(), "a");
        assert_eq!(own_name(&args(dir.path(), &["--node-name", "a"])).unwrap(), "a");
        let refused = own_name(&args(dir.path(), &["--node-name", "b"])).unwrap_err().to_string();
        assert!(refused.contains("this machine is node a") && refused.contains("--node-name a"), "{refused}");
        assert_eq!(own_name(&args(dir.path(), &["--node-name", "b", "--new-cluster"])).unwrap(), "b");
    }
}
