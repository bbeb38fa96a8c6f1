//! This node in the API: its Node object, and the Lease that says it is alive.

use std::fs;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use mainstay_api::kinds;
use mainstay_client::{Error, PatchType};
use mainstay_logic::kubelet::admission::Abilities;
use mainstay_logic::volume;
use mainstay_runtime::{fence, user_namespace};
use mainstay_tasks::Health;
use serde_json::{Value, json};

use super::Kubelet;
use super::events::seconds;

/// A lease is renewed so often in its duration, as upstream.
const RENEWALS: u32 = 4;
/// The node's status is written again this often even where nothing changed, in units of lease renewals (5 min).
const STATUS_EVERY: u32 = 30;
/// The pause between attempts to register.
const REGISTER_AGAIN: Duration = Duration::from_millis(200);
/// How many pods this node takes.
pub const MAX_PODS: u32 = 110;

/// Registers the node, then keeps its lease and its conditions fresh until dropped.
pub(super) async fn run(kubelet: Arc<Kubelet>) {
    let lease = Duration::from_secs(kubelet.config.lease_seconds.into());
    let every = lease / RENEWALS;
    let mut pause = REGISTER_AGAIN;
    while let Err(error) = register(&kubelet).await {
        tracing::debug!(%error, "the node could not be registered yet");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(every);
    }
    tracing::info!(node = %kubelet.config.node_name, "node registered");
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut round = 0;
    let (mut was_silent, mut was_well, mut is_due) = (false, true, false);
    loop {
        ticks.tick().await;
        let sent = fence::boottime();
        let renewed = match tokio::time::timeout(lease / 2, renew_lease(&kubelet)).await {
            Ok(result) => result,
            Err(_) => Err(Error::Timeout),
        };
        if renewed.is_ok() {
            move_deadlines(&kubelet, sent, fence::boottime(), lease).await;
        }
        if let Err(error) = &renewed {
            tracing::warn!(%error, "the node's lease could not be renewed");
        }
        round += 1;
        // A node that was silent may have been declared Unknown meanwhile: it says at once that it is back.
        let is_back = was_silent && renewed.is_ok();
        let is_well = kubelet.health.is_well();
        let is_news = std::mem::replace(&mut was_well, is_well) != is_well;
        was_silent = renewed.is_err();
        is_due |= is_back || is_news || round % STATUS_EVERY == 0;
        if is_due {
            // Renewals do not wait for it: what fails is tried again after the next one.
            match tokio::time::timeout(lease / 2, register(&kubelet)).await.unwrap_or(Err(Error::Timeout)) {
                Ok(()) => is_due = false,
                Err(error) => tracing::warn!(%error, "the node's status could not be written"),
            }
        }
    }
}

/// The lease was renewed by what was sent then. What is not written here moves nothing, which is safe.
async fn move_deadlines(kubelet: &Kubelet, sent: Duration, acknowledged: Duration, lease: Duration) {
    let runtime = kubelet.runtime.clone();
    let written = tokio::task::spawn_blocking(move || runtime.renewed(sent, acknowledged, lease)).await;
    if let Ok(Err(error)) = written {
        tracing::error!(%error, "that the lease was renewed could not be noted: containers with a deadline may end");
    }
    kubelet.deadlines.note_renewal();
}

/// Makes the Node, or brings it up to date. A Node that somebody labelled or cordoned keeps that.
async fn register(kubelet: &Kubelet) -> Result<(), Error> {
    let kind = kinds::find("", "v1", "nodes").ok_or_else(|| Error::Malformed("no kind Node".into()))?;
    let client = &kubelet.heartbeat;
    let name = &kubelet.config.node_name;
    let existing = match client.get(&kind, "", name).await {
        Err(error) if error.is_not_found() => {
            let mut node = metadata(kubelet).await;
            node["apiVersion"] = json!("v1");
            node["kind"] = json!("Node");
            if !kubelet.config.pod_cidr.is_empty() {
                node["spec"] = json!({ "podCIDR": kubelet.config.pod_cidr, "podCIDRs": [kubelet.config.pod_cidr] });
            }
            match client.create(&kind, "", &node).await {
                Err(error) if !error.is_conflict() => return Err(error),
                _ => client.get(&kind, "", name).await?,
            }
        }
        result => {
            let existing = result?;
            client.patch(&kind, "", name, "", PatchType::Merge, &metadata(kubelet).await).await?;
            existing
        }
    };
    let patch = json!({ "status": status(kubelet, &existing) });
    remember(kubelet, client.patch(&kind, "", name, "status", PatchType::Merge, &patch).await?);
    Ok(())
}

fn remember(kubelet: &Kubelet, node: Value) -> Option<Arc<Node>> {
    let node = Arc::new(serde_json::from_value::<Node>(node).ok()?);
    *kubelet.node.lock().unwrap_or_else(PoisonError::into_inner) = Some(node.clone());
    Some(node)
}

/// Tries something on this node as it was last seen; what is refused, once more on the node as it is now. Where the API
/// does not say, nothing is refused: whoever bound the pod here has looked.
pub(super) async fn try_on_node<T>(kubelet: &Kubelet, refuses: impl Fn(&Node) -> Option<T>) -> Option<T> {
    let known = kubelet.node.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if known.is_some_and(|node| refuses(&node).is_none()) {
        return None;
    }
    let kind = kinds::find("", "v1", "nodes")?;
    let node = kubelet.config.client.get(&kind, "", &kubelet.config.node_name).await;
    match node.map(|node| remember(kubelet, node)) {
        Ok(node) => refuses(&*node?),
        Err(error) => {
            tracing::warn!(%error, "this node could not be read; its pods are taken as they come");
            None
        }
    }
}

/// What this machine's kernel enforces and its administrator permits.
pub fn abilities(unsafe_sysctls: Vec<String>) -> Abilities {
    Abilities {
        unsafe_sysctls,
        has_apparmor: line_of("/sys/module/apparmor/parameters/enabled") == "Y",
        has_selinux: std::path::Path::new("/sys/fs/selinux/enforce").exists(),
        has_user_namespaces: user_namespace::is_supported(),
    }
}

async fn metadata(kubelet: &Kubelet) -> Value {
    let name = &kubelet.config.node_name;
    let mut annotations = json!({ volume::VOLUME_ROOT: kubelet.volumes.root().display().to_string() });
    if !kubelet.config.machine.is_empty() {
        annotations[crate::join::MACHINE] = json!(kubelet.config.machine);
    }
    match kubelet.volumes.capacity().await {
        Ok(bytes) => annotations[volume::room::VOLUME_CAPACITY] = json!(bytes.to_string()),
        Err(error) => tracing::warn!(%error, "how much room there is for volumes is not known"),
    }
    json!({
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": architecture(),
                "beta.kubernetes.io/os": "linux",
                "beta.kubernetes.io/arch": architecture(),
            },
            "annotations": annotations,
        }
    })
}

/// Go's name of this machine's architecture.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// CPUs that this process may use.
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// What pods may ask for together, in the units in which decisions count: CPUs in thousandths, memory in bytes.
pub fn capacity() -> std::collections::BTreeMap<String, i64> {
    let cpu = i64::try_from(cpus()).unwrap_or(i64::MAX / 1000) * 1000;
    let memory = i64::try_from(memory_bytes()).unwrap_or(i64::MAX);
    [("cpu".to_owned(), cpu), ("memory".to_owned(), memory)].into()
}

/// The machine's memory, bytes.
pub fn memory_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn disk_bytes(path: &std::path::Path) -> u64 {
    nix::sys::statvfs::statvfs(path).map_or(0, |status| status.blocks() * status.fragment_size())
}

fn line_of(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or("").trim().to_owned()
}

fn os_image() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    value.unwrap_or("Linux").trim_matches('"').to_owned()
}

fn status(kubelet: &Kubelet, existing: &Value) -> Value {
    let capacity = json!({
        "cpu": cpus().to_string(),
        "memory": format!("{}Ki", memory_bytes() / 1024),
        "ephemeral-storage": format!("{}Ki", disk_bytes(&kubelet.config.data_dir) / 1024),
        "pods": MAX_PODS.to_string(),
        "hugepages-1Gi": "0",
        "hugepages-2Mi": "0",
    });
    let version = concat!("v", env!("CARGO_PKG_VERSION"));
    json!({
        "capacity": capacity,
        "allocatable": capacity,
        "addresses": [
            { "type": "InternalIP", "address": kubelet.config.node_ip.to_string() },
            { "type": "Hostname", "address": kubelet.config.node_name },
        ],
        "daemonEndpoints": { "kubeletEndpoint": { "Port": kubelet.config.streaming_port } },
        "nodeInfo": {
            "architecture": architecture(),
            "bootID": line_of("/proc/sys/kernel/random/boot_id"),
            "containerRuntimeVersion": format!("mainstay://{}", env!("CARGO_PKG_VERSION")),
            "kernelVersion": line_of("/proc/sys/kernel/osrelease"),
            "kubeProxyVersion": "",
            "kubeletVersion": format!("{}+mainstay-{}", crate::KUBERNETES_VERSION, version.trim_start_matches('v')),
            "machineID": line_of("/etc/machine-id"),
            "operatingSystem": "linux",
            "osImage": os_image(),
            "systemUUID": line_of("/sys/class/dmi/id/product_uuid"),
        },
        "conditions": conditions(existing, &kubelet.health, Timestamp::now()),
    })
}

/// The four conditions of a kubelet: Ready as long as its loops run. A transition time moves only with its status.
fn conditions(existing: &Value, health: &Health, now: Timestamp) -> Value {
    let before = mainstay_api::object::at(existing, &["status", "conditions"])
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let down: Vec<&str> = health.tasks().into_iter().filter(|(_, is_well)| !is_well).map(|(name, _)| name).collect();
    let message = format!("loops that broke and are begun anew: {}", down.join(", "));
    let ready = if down.is_empty() {
        ("Ready", "True", "KubeletReady", "kubelet is posting ready status")
    } else {
        ("Ready", "False", "KubeletNotReady", message.as_str())
    };
    let rows = [
        ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ready,
    ];
    let mut all: Vec<Value> = before
        .iter()
        .filter(|condition| !rows.iter().any(|row| condition.get("type").and_then(Value::as_str) == Some(row.0)))
        .cloned()
        .collect();
    for (kind, value, reason, message) in rows {
        let unchanged = before.iter().find(|old| old["type"] == kind && old["status"] == value);
        let since =
            unchanged.and_then(|old| old.get("lastTransitionTime")).cloned().unwrap_or_else(|| seconds(now).into());
        all.push(json!({
            "type": kind, "status": value, "reason": reason, "message": message,
            "lastHeartbeatTime": seconds(now), "lastTransitionTime": since,
        }));
    }
    Value::Array(all)
}

async fn renew_lease(kubelet: &Kubelet) -> Result<(), Error> {
    let kind =
        kinds::find("coordination.k8s.io", "v1", "leases").ok_or_else(|| Error::Malformed("no kind Lease".into()))?;
    let client = &kubelet.heartbeat;
    let (namespace, name) = ("kube-node-lease", &kubelet.config.node_name);
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
    let seconds = kubelet.config.lease_seconds;
    let spec = json!({ "holderIdentity": name, "leaseDurationSeconds": seconds, "renewTime": now });
    match client.patch(&kind, namespace, name, "", PatchType::Merge, &json!({ "spec": spec })).await {
        Err(error) if error.is_not_found() => {}
        result => return result.map(|_| ()),
    }
    let nodes = kinds::find("", "v1", "nodes").ok_or_else(|| Error::Malformed("no kind Node".into()))?;
    let node = client.get(&nodes, "", name).await?;
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "ownerReferences": [{ "apiVersion": "v1", "kind": "Node", "name": name,
                "uid": mainstay_api::object::uid(&node) }],
        },
        "spec": spec,
    });
    match client.create(&kind, namespace, &lease).await {
        Err(error) if !error.is_conflict() => Err(error),
        _ => Ok(()),
    }
}
