//! The kubelet's loop: watches the pods of this node, keeps one task per pod uid, and carries out what
//! [`mainstay_logic::kubelet::decide`] asks for. Woken only by events: watches, the runtime, ends of back-offs.
//!
//! - [`pods`]: from the watch to one worker per pod uid
//! - [`worker`]: one pod: observe, decide, act
//! - [`execute`]: one action
//! - [`spec`], [`environment`], [`files`], [`resources`]: a pod's spec as the runtime wants it
//! - [`credentials`]: whose credentials a registry is asked with
//! - [`probe`], [`grpc`]: HTTP, TCP, gRPC and exec probes, and lifecycle hooks
//! - [`probed`]: how probes ended
//! - [`objects`]: the ConfigMaps, Secrets and Services that pods need, watched while they need them
//! - [`deadline`]: which pods' containers end by themselves when the lease is not renewed
//! - [`dependencies`]: what of those a pod has read, and whether it has changed since
//! - [`disk`]: what survives a restart of the agent
//! - [`eviction`]: pods that have more on this node's disk than they may
//! - [`pressure`]: what this machine runs short of, and who goes then
//! - [`node_status`]: this node's Node
//! - [`lease`]: this node's Lease, and whether this agent is the node
//! - [`events`]: events for people
//! - [`streaming`]: what the node's HTTPS server asks

pub mod credentials;
pub mod deadline;
mod dependencies;
pub mod disk;
pub mod environment;
pub mod events;
mod eviction;
mod execute;
pub mod files;
mod grpc;
pub mod lease;
mod links;
pub mod node_status;
pub mod objects;
pub mod pods;
pub mod pressure;
mod probe;
pub mod probed;
pub mod resources;
pub mod spec;
mod streaming;
mod worker;

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Node, Pod};
use mainstay_client::Client;
use mainstay_logic::kubelet::admission::Abilities;
use mainstay_logic::kubelet::ephemeral;
use mainstay_tasks::{Health, keep};

use crate::NodeConfig;
use crate::network::Network;
use crate::network::guard::Reserved;
use crate::volumes::Volumes;
use mainstay_runtime::Runtime;
use mainstay_runtime::images::ImageStore;

/// What every worker shares.
pub struct Kubelet {
    pub config: NodeConfig,
    pub runtime: Runtime,
    pub images: ImageStore,
    pub network: Arc<Network>,
    pub volumes: Volumes,
    pub objects: objects::Objects,
    pub disk: disk::Disk,
    pub events: events::Events,
    /// What runs here, for exec, logs and port-forward.
    pub pods: pods::Pods,
    /// What this machine and its administrator permit.
    pub abilities: Abilities,
    /// This node as the API had it last.
    pub node: std::sync::Mutex<Option<Arc<Node>>>,
    /// For what says that the node lives: over connections that nothing else can fill.
    pub heartbeat: Client,
    /// Whether this agent is the node.
    pub hold: lease::Hold,
    /// Which pods with a deadline were asked for since the lease was renewed again.
    pub deadlines: deadline::Deadlines,
    /// What this machine is short of.
    pub pressure: pressure::Pressure,
    /// How probes ended.
    pub probed: probed::Probed,
    /// The ports of this node that are the cluster's own.
    pub reserved: Reserved,
    /// The node's status is to be written before its time.
    pub status_due: Arc<tokio::sync::Notify>,
    /// How the node's loops are.
    pub health: Health,
}

impl Kubelet {
    /// The node's addresses as pod statuses have them.
    pub fn host_ips(&self) -> Vec<String> {
        vec![self.config.node_ip.to_string()]
    }
}

impl Kubelet {
    /// Connects a pod's network namespace; off the loop's threads, netlink blocks.
    async fn attach(&self, uid: &str, netns: &std::path::Path) -> Result<String, String> {
        let (network, uid, netns) = (self.network.clone(), uid.to_owned(), netns.to_owned());
        match tokio::task::spawn_blocking(move || network.attach(&uid, &netns)).await {
            Ok(Ok(ip)) => Ok(ip.to_string()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Gives a pod's address back.
    async fn detach(&self, uid: &str) -> Result<(), String> {
        let (network, uid) = (self.network.clone(), uid.to_owned());
        match tokio::task::spawn_blocking(move || network.detach(&uid)).await {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// A pod and its identity, for everything that acts on it.
#[derive(Clone)]
pub struct PodContext {
    pub pod: Arc<Pod>,
    ephemeral: Arc<[Container]>,
    pub uid: String,
    pub namespace: String,
    pub name: String,
}

impl PodContext {
    /// From a pod of the API.
    pub fn new(pod: &Pod) -> Self {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        Self {
            uid: text(&pod.metadata.uid),
            namespace: text(&pod.metadata.namespace),
            name: text(&pod.metadata.name),
            ephemeral: pod.spec.iter().flat_map(ephemeral::of).collect(),
            pod: Arc::new(pod.clone()),
        }
    }

    /// The pod's spec, where it has one.
    pub fn spec(&self) -> Option<&k8s_openapi::api::core::v1::PodSpec> {
        self.pod.spec.as_ref()
    }

    /// A container of any kind by name.
    pub fn container(&self, name: &str) -> Option<&Container> {
        let spec = self.spec()?;
        let all = spec.init_containers.iter().flatten().chain(&spec.containers).chain(self.ephemeral.iter());
        all.into_iter().find(|container| container.name == name)
    }

    /// The names of its images, those of volumes too.
    pub fn images(&self) -> impl Iterator<Item = String> {
        let spec = self.spec().into_iter();
        let containers = spec.clone().flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers));
        let containers = containers.chain(self.ephemeral.iter()).filter_map(|container| container.image.clone());
        let volumes = spec.flat_map(|spec| spec.volumes.iter().flatten());
        let volumes = volumes.filter_map(|volume| volume.image.as_ref()?.reference.clone());
        containers.chain(volumes).collect::<Vec<_>>().into_iter()
    }

    /// The container whose processes an ephemeral container sees.
    pub fn target_of(&self, ephemeral: &str) -> Option<&str> {
        let all = self.spec()?.ephemeral_containers.iter().flatten();
        let found = all.into_iter().find(|container| container.name == ephemeral)?;
        found.target_container_name.as_deref().filter(|name| !name.is_empty())
    }
}

/// Starts the loops, each with an owner that begins it anew when it breaks. They end when the set is dropped;
/// containers go on.
pub fn start(kubelet: &Arc<Kubelet>, tasks: &mut tokio::task::JoinSet<()>) {
    let health = || kubelet.health.clone();
    let again = || kubelet.clone();
    let (pods, status, volumes, snapshots, evictions) = (again(), again(), again(), again(), again());
    let (pressed, linked) = (again(), again());
    tasks.spawn(keep(health(), "pods", move || pods::run(pods.clone())));
    tasks.spawn(keep(health(), "node-status", move || node_status::run(status.clone())));
    tasks.spawn(keep(health(), "evictions", move || eviction::run(evictions.clone())));
    tasks.spawn(keep(health(), "links", move || links::run(linked.clone())));
    tasks.spawn(keep(health(), "pressure", move || pressure::run(pressed.clone())));
    tasks.spawn(keep(health(), "volumes", move || crate::volumes::reconciler::run(volumes.clone())));
    tasks.spawn(keep(health(), "snapshots", move || crate::volumes::snapshots::run(snapshots.clone())));
}
