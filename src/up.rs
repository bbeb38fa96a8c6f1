//! `mainstay up`: server and node in one process.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use mainstay_api::kinds;
use mainstay_cli::args::UpArgs;
use mainstay_client::{Client, Config, Informer, ListOptions, Notice};
use mainstay_node::network::Cidr;

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
    log_to_stderr();
    if let Err(error) = mainstay_runtime::kernel::raise_open_files() {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    runtime()?.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
        let cluster = start(args, begun).await?;
        let server = Config::parse(cluster.server.admin.kubeconfig.as_bytes())?.server;
        println!("mainstay: API ready    https://{server}   {} ms", cluster.api_ready.as_millis());
        let kubeconfig = args.kubeconfig.as_ref().unwrap_or(&cluster.server.admin.path);
        println!("mainstay: kubeconfig   export KUBECONFIG={}", kubeconfig.display());
        let work = async {
            let ready = node_ready(&cluster, begun).await;
            println!("mainstay: node ready   {}   {} ms", cluster.node_name, ready.as_millis());
            make_demo_image(&cluster).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = work => {}
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
        Cidr::parse(&args.cluster_cidr).filter(|range| range.prefix <= NODE_PREFIX).with_context(|| {
            format!(
                "--cluster-cidr {:?} is not an IPv4 range such as 10.244.0.0/16, of at least a /{NODE_PREFIX}",
                args.cluster_cidr
            )
        })?;
    let pod_cidr = Cidr { first: cluster_cidr.first, prefix: NODE_PREFIX };
    let node_ip = match args.node_ip {
        Some(address) => address,
        None => {
            default_address().or_else(|| pod_cidr.at(1)).context("no address for this node; give one with --node-ip")?
        }
    };
    let node_name = match &args.node_name {
        Some(name) => name.clone(),
        None => nix::unistd::gethostname()?.to_string_lossy().to_ascii_lowercase(),
    };
    let advertise = if args.listen.ip().is_unspecified() { IpAddr::V4(node_ip) } else { args.listen.ip() };
    let cluster = mainstay_server::identity::Expected {
        new: args.new_cluster,
        volumes_of: mainstay_node::volumes::owner::noted(&args.data_dir)?,
    };
    let files = mainstay_server::Files {
        authentication: args.authentication_config.clone(),
        tokens: args.token_auth_file.clone(),
        audit_policy: args.audit_policy_file.clone(),
        audit_log: args.audit_log_path.clone(),
    };
    let config = mainstay_server::ServerConfig {
        data_dir: args.data_dir.clone(),
        listen: args.listen,
        advertise: Some(advertise),
        service_cidr: args.service_cidr.clone(),
        cluster_cidr: args.cluster_cidr.clone(),
        cluster_domain: args.cluster_domain.clone(),
        node_name: node_name.clone(),
        node_addresses: vec![IpAddr::V4(node_ip)],
        cluster,
    };
    let server = mainstay_server::start_with(config, &files).await?;
    let api_ready = begun.elapsed();
    if let Some(path) = &args.kubeconfig {
        mainstay_server::pki::write_private(path, server.admin.kubeconfig.as_bytes()).context("the kubeconfig")?;
    }
    mainstay_node::volumes::owner::take(&args.data_dir, &server.cluster, args.new_cluster)?;
    if let Err(error) = std::fs::write(pid_file(&args.data_dir), std::process::id().to_string()) {
        // On a full disk the cluster runs all the same.
        tracing::warn!(%error, "the process id could not be noted: `mainstay down` will not stop this process");
    }
    if let Err(error) = crate::instance::remember(&args.data_dir) {
        tracing::warn!(%error, "the network namespace could not be noted: run `mainstay down` inside of it");
    }
    let IpAddr::V4(cluster_dns) = server.dns_address else { bail!("the DNS server's address is not IPv4") };
    let client = Client::new(Config::parse(server.node.kubeconfig.as_bytes())?)?;
    let node = mainstay_node::start(mainstay_node::NodeConfig {
        client: client.clone(),
        data_dir: args.data_dir.clone(),
        node_name: node_name.clone(),
        node_ip,
        pod_cidr: pod_cidr.to_string(),
        cluster_cidr: args.cluster_cidr.clone(),
        service_cidr: args.service_cidr.clone(),
        cluster_dns,
        cluster_domain: args.cluster_domain.clone(),
        cgroup_root: cgroup_root(&args.data_dir),
        shim_exe: PathBuf::from("/proc/self/exe"),
        seccomp_default: args.seccomp_default,
        allowed_unsafe_sysctls: args.allowed_unsafe_sysctls.clone(),
        host_resolv_conf: PathBuf::from("/etc/resolv.conf"),
        streaming_port: args.node_port,
        certificate_pem: server.node.identity.certificate.clone(),
        key_pem: server.node.identity.key.clone(),
        client_ca_pem: server.ca_pem.clone(),
    })
    .await?;
    Ok(Cluster { server, node, client, api_ready, node_name })
}

/// Waits until the node's condition Ready is True and says when that was.
pub async fn node_ready(cluster: &Cluster, begun: Instant) -> Duration {
    let options =
        ListOptions { field_selector: format!("metadata.name={}", cluster.node_name), ..ListOptions::default() };
    let mut nodes = Informer::new(cluster.client.clone(), &kinds::NODE, "", options);
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
pub async fn make_demo_image(cluster: &Cluster) {
    let images = cluster.node.kubelet.images.clone();
    let made = tokio::task::spawn_blocking(move || images.build_from_self(DEMO_IMAGE, &["demo-server"], &[])).await;
    match made {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(%error, "{DEMO_IMAGE} could not be made"),
        Err(error) => tracing::error!(%error, "making {DEMO_IMAGE} ended badly"),
    }
}

/// The address of the interface that the default route leads out by. A UDP socket is connected for it, to an address
/// kept for documentation; that sends nothing.
fn default_address() -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(address) if !address.is_loopback() && !address.is_unspecified() => Some(address),
        _ => None,
    }
}
