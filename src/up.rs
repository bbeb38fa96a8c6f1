//! `mainstay up`: server and node in one process.

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
use mainstay_node::network::{Between, Cidr};
use mainstay_node::{EvictionPolicy, Fencing, LEASE_SECONDS};

/// The name of the image that the binary makes from itself.
pub const DEMO_IMAGE: &str = mainstay_cli::demo::IMAGE;
/// Threads for work that blocks: more than all the bounded pools of server and node together, so that none of them can
/// take the last ones.
const MAX_BLOCKING: usize = 512;
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
    let _held = crate::instance::hold(&args.data_dir)?;
    runtime()?.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
        let cluster = tokio::select! {
            started = start(args, begun) => started?,
            // It may wait for etcd.
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        };
        let server = Config::parse(cluster.server.admin.kubeconfig.as_bytes())?.server;
        println!("mainstay: API ready    https://{server}   {} ms", cluster.api_ready.as_millis());
        let kubeconfig = args.server.kubeconfig.as_ref().unwrap_or(&cluster.server.admin.path);
        println!("mainstay: kubeconfig   export KUBECONFIG={}", kubeconfig.display());
        let is_shared = cluster.server.api.store.is_shared();
        let servers = async {
            match is_shared {
                true => join::follow_other_servers(cluster.client.clone()).await,
                false => std::future::pending().await,
            }
        };
        let work = async {
            let ready = node_ready(&cluster.client, &cluster.node_name, begun).await;
            println!("mainstay: node ready   {}   {} ms", cluster.node_name, ready.as_millis());
            make_demo_image(&cluster.node).await;
            crate::server::release_start().await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = work => {}
            () = servers => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        println!("mainstay: stopping; containers go on (`mainstay down` stops them)");
        cluster.stop(&args.data_dir).await;
        Ok(())
    })
}

impl Cluster {
    /// Stops node and server; containers go on.
    pub async fn stop(self, data_dir: &Path) {
        self.node.stop().await;
        self.server.shutdown().await;
        // Only a note for `mainstay down`; without it nothing is amiss.
        let _ = std::fs::remove_file(pid_file(data_dir));
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
    tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_target(false).init();
}

/// Starts server and node; returns when the API answers and the node's parts are open.
pub async fn start(args: &UpArgs, begun: Instant) -> Result<Cluster> {
    // Two TLS libraries' defaults would be ambiguous; this process has one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cluster_cidr =
        Cidr::parse(&args.server.cluster_cidr).filter(|range| range.prefix <= NODE_PREFIX).with_context(|| {
            format!(
                "--cluster-cidr {:?} is not an IPv4 range such as 10.244.0.0/16, of at least a /{NODE_PREFIX}",
                args.server.cluster_cidr
            )
        })?;
    // The first machine has the first range; a Node that is there keeps its own.
    let pod_cidr = Cidr { first: cluster_cidr.first, prefix: NODE_PREFIX };
    let node_ip = match args.node.node_ip {
        Some(address) => address,
        None => {
            default_address().or_else(|| pod_cidr.at(1)).context("no address for this node; give one with --node-ip")?
        }
    };
    let node_name = node_name(&args.node)?;
    let local = mainstay_server::LocalNode { name: node_name.clone(), addresses: vec![IpAddr::V4(node_ip)] };
    // The node speaks to its own server before it has a pod network.
    mainstay_node::network::raise_loopback()?;
    let server = crate::server::start(&args.data_dir, &args.server, Some(local), node_ip).await?;
    let api_ready = begun.elapsed();
    mainstay_node::volumes::owner::take(&args.data_dir, &server.cluster, args.server.new_cluster)?;
    note_instance(&args.data_dir);
    let IpAddr::V4(cluster_dns) = server.dns_address else { bail!("the DNS server's address is not IPv4") };
    let identity = server.node.as_ref().context("the server has no certificate for its node")?;
    let client = Client::new(Config::parse(identity.kubeconfig.as_bytes())?)?;
    let machine = join::machine(&args.data_dir)?;
    // Where there are others, the server gives each machine a range that is free.
    let wanted = server.api.store.is_shared().then(String::new).unwrap_or_else(|| pod_cidr.to_string());
    let pod_cidr = join::claim(&client, &node_name, &machine, node_ip, Some(&wanted)).await?;
    let member = Member {
        server: server.addr.to_string(),
        ca_pem: server.ca_pem.clone(),
        node: node_name.clone(),
        address: node_ip,
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
    let serving = Rotating::new(&identity.identity.certificate, &identity.identity.key)?;
    // The only server's own node: when it is silent, so is the server, and nobody takes a pod's place.
    let fencing = if args.server.store.is_shared() { Fencing::ByDefault } else { Fencing::Off };
    let mut config = node_config(&args.data_dir, &args.node, &member, client.clone(), serving, machine, fencing)?;
    config.store = crate::server::etcd_members(&args.server.store)?;
    let node = mainstay_node::start(config).await?;
    Ok(Cluster { server, node, client, api_ready, node_name })
}

/// The node's name as it was given, or the host's.
pub fn node_name(args: &NodeArgs) -> Result<String> {
    args.node_name.clone().map_or_else(host_name, Ok)
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
    if let Err(error) = std::fs::write(pid_file(data_dir), std::process::id().to_string()) {
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
