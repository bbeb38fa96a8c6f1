//! What joins Linux to the cluster: pod network, volumes, DNS sockets, the packet filter, streaming, and the kubelet's
//! loop that drives them and the container runtime.
//!
//! [`start`] brings a node to life in the network namespace it is called in; [`cleanup`] takes away all that it made.

#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod join;
pub mod kubelet;
pub mod network;
pub mod streaming;
pub mod volumes;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use mainstay_client::{Client, Rotating};
pub use mainstay_logic::fencing::{LEASE_SECONDS, Policy as Fencing};
use mainstay_tasks::{Health, keep};
use tokio::sync::Notify;
use tokio::task::JoinSet;

pub use kubelet::pressure::EvictionPolicy;

use kubelet::Kubelet;
use kubelet::disk::Disk;
use kubelet::events::Events;
use kubelet::node_status;
use kubelet::objects::Objects;
use mainstay_runtime::images::{self, ImageStore};
use mainstay_runtime::{Runtime, RuntimeConfig, RuntimeError, safe_path};
use network::filter::Filter;
use network::view::View;
use network::{Between, Cidr, Network, NetworkConfig};
use volumes::Volumes;

/// The level of Kubernetes that the node speaks, as `nodeInfo.kubeletVersion` begins.
pub const KUBERNETES_VERSION: &str = "v1.37.0";
/// As whom the API server asks a node.
const API_SERVER: &str = "kube-apiserver-kubelet-client";

/// If the process was started as one of ours that are not the agent (a container's supervisor, `__freeze`,
/// `__nfs-mount`, `__nfs-guard`), is it and never returns. `main` calls this first, before it makes threads or reads
/// its command line.
pub fn run_if_supervisor() {
    mainstay_runtime::shim::run_if_supervisor();
    let mut args = std::env::args_os().skip(1);
    match args.next().as_deref().and_then(|name| name.to_str()) {
        Some("__freeze") => volumes::freeze_main(&args.next().unwrap_or_default().to_string_lossy()),
        Some("__nfs-mount") => mainstay_nfs::client::mount_main(&args.next().unwrap_or_default().to_string_lossy()),
        Some("__nfs-guard") => mainstay_nfs::client::guard_main(&args.next().unwrap_or_default().to_string_lossy()),
        _ => (),
    }
}

/// What a node is made with.
#[derive(Clone)]
pub struct NodeConfig {
    pub client: Client,
    /// Below it: `containers`, `images`, `network`, `pods`, `logs`, `volumes`.
    pub data_dir: PathBuf,
    pub node_name: String,
    pub node_ip: Ipv4Addr,
    /// This node's range of pod addresses, the range of all nodes' pods, and that of Services.
    pub pod_cidr: String,
    pub cluster_cidr: String,
    pub service_cidr: String,
    /// How packets get to other machines' pods.
    pub between: Between,
    /// The cluster DNS server's address, in the Services' range.
    pub cluster_dns: Ipv4Addr,
    /// `cluster.local`
    pub cluster_domain: String,
    /// The instance's own cgroup, one path element: `mainstay`.
    pub cgroup_root: String,
    /// Where a server on this machine keeps its state, if that is not in a file: etcd's members, by host and port.
    pub store: Vec<(String, u16)>,
    /// What is re-executed as a supervisor: `/proc/self/exe`.
    pub shim_exe: PathBuf,
    /// Containers that ask for no seccomp profile get the runtime's own.
    pub seccomp_default: bool,
    /// Kernel parameters that pods may set beside the safe ones: names, or beginnings that end in `*`.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// When the node is short of something.
    pub eviction: EvictionPolicy,
    /// The machine's resolver settings: `/etc/resolv.conf`.
    pub host_resolv_conf: PathBuf,
    /// Where exec, attach, logs and port-forward are served (on every address), and `daemonEndpoints` says so; 0 takes
    /// a free port.
    pub streaming_port: u16,
    /// The node's serving certificate and key.
    pub serving: Arc<Rotating>,
    /// The CA of those who may ask it, PEM.
    pub client_ca_pem: String,
    /// Which machine this is, on its Node: see [`join::machine`].
    pub machine: String,
    /// The run of an agent elsewhere, of which a person says that all that it ran has ended; empty for none.
    pub take_over: String,
    /// Which pods get a deadline (S13).
    pub fencing: Fencing,
    /// How long the node's Lease is, in seconds; it is renewed four times in that.
    pub lease_seconds: u32,
}

/// Why a node does not start. Each says in one sentence what is missing.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the data folder {path} cannot be used: {source}")]
    DataDir { path: String, source: std::io::Error },
    #[error("{0:?} is not an address range such as 10.244.0.0/24")]
    Range(String),
    #[error("{0}")]
    Sysctl(String),
    #[error("image store: {0}")]
    Images(#[from] images::ImageError),
    #[error("container runtime: {0}")]
    Runtime(#[from] RuntimeError),
    #[error("pod network: {0}")]
    Network(#[from] network::NetworkError),
    #[error("packet filter: {0} (does this kernel have nf_tables?)")]
    Filter(std::io::Error),
    #[error("DNS server on {address}:53: {source}")]
    Dns { address: Ipv4Addr, source: std::io::Error },
    #[error(transparent)]
    Streaming(#[from] streaming::StreamingError),
}

/// A running node. Dropping it stops the loops; containers, mounts and addresses stay (V7).
pub struct Running {
    pub kubelet: Arc<Kubelet>,
    /// Services, slices and pods as DNS and packet filter see them.
    pub view: Arc<View>,
    tasks: JoinSet<()>,
    _streaming: streaming::Running,
    _network: network::Held,
}

impl Running {
    /// Stops the loops and waits for them.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

/// Starts a node: images, runtime, network, DNS, packet filter, and the kubelet's loop. Returns when all are open;
/// the node registers itself as soon as the API answers.
///
/// # Errors
/// What is missing on this machine.
pub async fn start(mut config: NodeConfig) -> Result<Running, StartError> {
    if let Some(wrong) = mainstay_logic::kubelet::sysctl::wrongly_allowed(&config.allowed_unsafe_sysctls) {
        return Err(StartError::Sysctl(wrong));
    }
    let data_dir = |source| StartError::DataDir { path: config.data_dir.display().to_string(), source };
    safe_path::make_private_dir(&config.data_dir).map_err(data_dir)?;
    let listening = streaming::listen(streaming_config(&config)).await?;
    config.streaming_port = listening.address.port();
    let images = ImageStore::open(&config.data_dir.join("images"))?;
    let runtime = Runtime::open(runtime_config(&config.data_dir, &config.cgroup_root, &config.shim_exe, &images))?;
    let range = |text: &String| Cidr::parse(text).ok_or_else(|| StartError::Range(text.clone()));
    let (pods, services) = (range(&config.cluster_cidr)?, range(&config.service_cidr)?);
    let _network = network::hold()?;
    let network = Network::open(NetworkConfig {
        folder: config.data_dir.join("network"),
        machine: config.machine.clone(),
        pod_cidr: range(&config.pod_cidr)?,
        cluster_cidr: pods,
        service_cidr: services,
        dns_address: config.cluster_dns,
        node_address: config.node_ip,
        between: config.between,
    })?;
    let network = Arc::new(network);
    let filter = Filter::open(pods, services).map_err(StartError::Filter)?;

    let mut tasks = JoinSet::new();
    let view = View::new(&config.cluster_domain, &config.node_name);
    let health = Health::default();
    let status_due = Arc::new(Notify::new());
    let events = Events::start(config.client.clone(), config.node_name.clone(), health.clone());
    let reserved = network::guard::Reserved::new(status_due.clone());
    let guard = guard(&config, services, &reserved);
    let opened = (filter, Box::new(move || Filter::open(pods, services)) as Box<OpenFilter>);
    let about = (view.clone(), config.client.clone(), network.clone(), events.clone());
    keep_filter(&mut tasks, &health, opened, guard, about);
    keep_machines(&mut tasks, &health, &network, &config, &status_due);
    let resolv_conf = std::fs::read_to_string(&config.host_resolv_conf).unwrap_or_default();
    let upstreams = network::dns::upstreams(&resolv_conf, config.cluster_dns);
    let address = config.cluster_dns;
    let dns = network::dns::Server::bind(view.clone(), &config.cluster_domain, address, upstreams).await;
    let dns = Arc::new(dns.map_err(|source| StartError::Dns { address, source })?);
    tasks.spawn(keep(health.clone(), "dns", move || dns.clone().serve()));

    if let Err(error) = volumes::owner::note_root(&config.data_dir) {
        tracing::warn!(%error, "where the volumes are could not be noted: they are not found if the folder is moved");
    }
    let volumes = Volumes::new(&config.data_dir);
    volumes.thaw().map_err(data_dir)?;
    if let Err(error) = volumes.share() {
        tracing::warn!(%error, "the pods' folder could not be made a shared mount: mountPropagation is refused in it");
    }
    let apart = config.fencing != Fencing::Off;
    let kubelet = Arc::new(Kubelet {
        runtime,
        images,
        network,
        volumes,
        objects: Objects::start(config.client.clone(), health.clone()),
        disk: Disk::new(&config.data_dir),
        events,
        reserved,
        pods: kubelet::pods::Pods::default(),
        abilities: kubelet::node_status::abilities(config.allowed_unsafe_sysctls.clone()),
        node: std::sync::Mutex::default(),
        heartbeat: config.client.apart(),
        hold: kubelet::lease::Hold::new(&config.machine, apart.then_some(&*config.data_dir), &config.take_over),
        deadlines: kubelet::deadline::Deadlines::default(),
        pressure: kubelet::pressure::Pressure::default(),
        probed: kubelet::probed::Probed::default(),
        status_due,
        health: health.clone(),
        config,
    });
    kubelet::start(&kubelet, &mut tasks);
    // However many strangers' tokens are to be reviewed, the kubelet's own requests do not wait for them.
    let reviews = Arc::new(kubelet.config.client.apart());
    let _streaming = listening.serve(kubelet.clone(), Arc::new(kubelet.runtime.clone()), reviews, health);
    Ok(Running { kubelet, view, tasks, _streaming, _network })
}

/// What the packet filter keeps for the API, the node and the store.
fn guard(config: &NodeConfig, services: Cidr, reserved: &network::guard::Reserved) -> network::guard::Guard {
    let (node, port, asked) = (&config.node_name, config.streaming_port, &config.client.config().server);
    let guard = network::guard::Guard::new(node, services, port, asked, reserved.clone());
    let guard = guard.with_store(&config.store, config.node_ip);
    match config.between.port() {
        Some(port) => guard.with_overlay(port),
        None => guard,
    }
}

type OpenFilter = dyn Fn() -> Result<Filter, std::io::Error> + Send;

/// Keeps the packet filter as the view says; it is opened anew where that ends.
fn keep_filter(
    tasks: &mut JoinSet<()>,
    health: &Health,
    (filter, open): (Filter, Box<OpenFilter>),
    guard: network::guard::Guard,
    about: (Arc<View>, Client, Arc<Network>, Events),
) {
    let mut opened = Some(filter);
    tasks.spawn(keep(health.clone(), "packet-filter", move || {
        let filter = opened.take().map_or_else(&open, Ok);
        let (guard, (view, client, network, events)) = (guard.clone(), about.clone());
        async move {
            match filter {
                Ok(filter) => network::view::keep(view, client, filter, guard, (network, events)).await,
                Err(error) => tracing::error!(%error, "the packet filter cannot be opened again"),
            }
        }
    }));
}

/// Keeps the ways to the other machines, and looks at this node's own object as it comes by.
fn keep_machines(
    tasks: &mut JoinSet<()>,
    health: &Health,
    network: &Arc<Network>,
    config: &NodeConfig,
    status_due: &Arc<Notify>,
) {
    let (network, client, node) = (network.clone(), config.client.clone(), config.node_name.clone());
    let status_due = status_due.clone();
    let own_node = Arc::new(move |node: &Node| {
        if node_status::lacks_allocatable(node) {
            status_due.notify_one();
        }
    });
    let keep_them = move || network::machines::keep(network.clone(), client.clone(), node.clone(), own_node.clone());
    tasks.spawn(keep(health.clone(), "machines", keep_them));
}

fn streaming_config(config: &NodeConfig) -> streaming::StreamingConfig {
    streaming::StreamingConfig {
        machine_logs: PathBuf::from("/var/log"),
        listen: (Ipv4Addr::UNSPECIFIED, config.streaming_port).into(),
        serving: config.serving.clone(),
        client_ca_pem: config.client_ca_pem.clone(),
        clients: vec![API_SERVER.to_owned()],
        idle_timeout: streaming::IDLE_TIMEOUT,
        configuration: configuration(config),
    }
}

/// What of upstream's `KubeletConfiguration` this node goes by, under its names.
fn configuration(config: &NodeConfig) -> serde_json::Value {
    use streaming::access::{ALLOWED_TTL, DENIED_TTL, TOKEN_TTL};
    let seconds = |duration: std::time::Duration| format!("{}s", duration.as_secs());
    serde_json::json!({
        "kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "address": Ipv4Addr::UNSPECIFIED.to_string(), "port": config.streaming_port,
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true, "cacheTTL": seconds(TOKEN_TTL) },
        },
        "authorization": {
            "mode": "Webhook",
            "webhook": {
                "cacheAuthorizedTTL": seconds(ALLOWED_TTL), "cacheUnauthorizedTTL": seconds(DENIED_TTL),
            },
        },
        "cgroupRoot": format!("/{}", config.cgroup_root),
        "clusterDNS": [config.cluster_dns.to_string()], "clusterDomain": config.cluster_domain,
        "podCIDR": config.pod_cidr, "resolvConf": config.host_resolv_conf.display().to_string(),
        "maxPods": kubelet::node_status::MAX_PODS, "nodeLeaseDurationSeconds": config.lease_seconds,
        "streamingConnectionIdleTimeout": seconds(streaming::IDLE_TIMEOUT),
        "seccompDefault": config.seccomp_default, "allowedUnsafeSysctls": config.allowed_unsafe_sysctls,
        "serverTLSBootstrap": true, "rotateCertificates": true,
    })
}

fn runtime_config(data_dir: &Path, cgroup_root: &str, shim_exe: &Path, images: &ImageStore) -> RuntimeConfig {
    RuntimeConfig {
        root: data_dir.join("containers"),
        cgroup_root: cgroup_root.to_owned(),
        shim_exe: shim_exe.to_owned(),
        images: images.clone(),
    }
}

/// Takes away all that a node made but its data: pods, mounts, interfaces, rules, cgroups, the pods' folders.
/// Provisioned volumes and images stay, and so do interfaces and rules of another folder's node, which is logged. For
/// `mainstay down`, when no node runs on this folder.
///
/// # Errors
/// What could not be taken away; calling it again goes on.
pub async fn cleanup(data_dir: &Path, cgroup_root: &str, shim_exe: &Path) -> Result<(), CleanupError> {
    if !data_dir.exists() {
        return Ok(());
    }
    let images = ImageStore::open(&data_dir.join("images"))?;
    let mut left: Vec<String> = Vec::new();
    let runtime = Runtime::open(runtime_config(data_dir, cgroup_root, shim_exe, &images))?;
    left.extend(runtime.cleanup_all().await);
    // One thing that does not go must not keep the others.
    let mut note = |what: &str, result: Result<(), String>| {
        left.extend(result.err().map(|error| format!("{what}: {error}")));
    };
    let machine = join::known_machine(data_dir);
    let cleaned = Network::cleanup(&data_dir.join("network"), machine.as_deref());
    if let Ok(Some(why)) = &cleaned {
        tracing::warn!("links, routes and packet filter stay: {why}");
    }
    note("pod network", cleaned.map(drop).map_err(|error| error.to_string()));
    for (what, dir) in [("unmounting the pods' volumes", "pods"), ("unmounting volumes", "volumes")] {
        let unmounted = safe_path::mounts::unmount_below(&data_dir.join(dir));
        note(what, unmounted.map(|_| ()).map_err(|error| error.to_string()));
    }
    let detached = volumes::image::detach_all(&data_dir.join("volumes"));
    note("detaching volumes", detached.map_err(|error| error.to_string()));
    for dir in ["pods", "logs"] {
        let removed = match safe_path::remove::tree(data_dir, &data_dir.join(dir)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.to_string()),
            _ => Ok(()),
        };
        note("removing the pods' folders", removed);
    }
    if left.is_empty() { Ok(()) } else { Err(CleanupError::Left(left)) }
}

/// Why something of a node is still there.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    #[error("image store: {0}")]
    Images(#[from] images::ImageError),
    #[error("container runtime: {0}")]
    Runtime(#[from] RuntimeError),
    /// One sentence for each thing that did not go; all others went.
    #[error("not all could be taken away: {}", .0.join("; "))]
    Left(Vec<String>),
}
