//! This node in the API: its Node object, and the Lease that says it is alive.

use std::collections::BTreeSet;
use std::fs;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use mainstay_api::{kinds, object};
use mainstay_client::{Error, PatchType};
use mainstay_logic::kubelet::admission::Abilities;
use mainstay_logic::kubelet::pressure::Condition;
use mainstay_logic::nodes::MACHINE;
use mainstay_logic::peers::WIREGUARD_KEY;
use mainstay_logic::{resources, volume};
use mainstay_runtime::{fence, user_namespace};
use mainstay_tasks::Health;
use serde_json::{Value, json};

use super::events::seconds;
use super::lease::RenewError;
use super::{Kubelet, pressure};

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
    while let Err(error) = begin(&kubelet).await {
        if kubelet.hold.is_replaced() {
            return std::future::pending().await;
        }
        tracing::debug!(%error, "the node could not be registered yet");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(every);
    }
    tracing::info!(node = %kubelet.config.node_name, "node registered");
    pressure::record(&kubelet, false, "Starting", "Starting kubelet.".to_owned());
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut round = 0;
    let (mut was_silent, mut was_well, mut is_due) = (false, true, false);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            // The lease is renewed as well: that does no harm.
            () = kubelet.status_due.notified() => is_due = true,
        }
        let sent = fence::boottime();
        let renewed = match tokio::time::timeout(lease / 2, super::lease::renew(&kubelet)).await {
            Ok(result) => result,
            Err(_) => Err(RenewError::Api(Error::Timeout)),
        };
        if kubelet.hold.is_replaced() {
            // The Node and the Lease are another machine's; its deadlines are not moved any more.
            return std::future::pending().await;
        }
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
        // A Node that somebody deleted is made again at once: whoever wants it gone stops the agent first.
        let is_missing = renewed.as_ref().is_err_and(RenewError::is_not_found);
        is_due |= is_back || is_news || is_missing || round % STATUS_EVERY == 0;
        if is_due && !kubelet.hold.is_elsewhere() {
            // Renewals do not wait for it: what fails is tried again after the next one.
            match tokio::time::timeout(lease / 2, register(&kubelet)).await.unwrap_or(Err(Error::Timeout)) {
                Ok(()) => {
                    is_due = false;
                    if is_missing {
                        ticks.reset_immediately();
                    }
                }
                Err(error) => tracing::warn!(%error, "the node's status could not be written"),
            }
        }
    }
}

/// Makes the Node, or brings it up to date, if it is this agent's.
async fn begin(kubelet: &Kubelet) -> Result<(), RenewError> {
    super::lease::look(kubelet).await?;
    Ok(register(kubelet).await?)
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
            // One that was made meanwhile may be another machine's: it is looked at the next time.
            client.create(&kind, "", &node).await?
        }
        result => {
            let existing = result?;
            let mut patch = metadata(kubelet).await;
            match whose(&existing, &kubelet.config.machine) {
                Whose::Own => {}
                // Only as it was seen: of two machines that find nobody's Node, one has it.
                Whose::Nobodys => patch["metadata"]["resourceVersion"] = json!(object::resource_version(&existing)),
                Whose::Others => {
                    kubelet.hold.give_up(name);
                    return Err(Error::Malformed("the Node is another machine's".into()));
                }
            }
            patch["metadata"]["uid"] = json!(object::uid(&existing));
            client.patch(&kind, "", name, "", PatchType::Merge, &patch).await?;
            existing
        }
    };
    let patch = json!({ "metadata": { "uid": object::uid(&existing) }, "status": status(kubelet, &existing) });
    let written = client.patch(&kind, "", name, "status", PatchType::Merge, &patch).await?;
    record_changes(kubelet, &existing, &written);
    remember(kubelet, written);
    Ok(())
}

/// Whose a Node is.
#[derive(Debug, PartialEq, Eq)]
enum Whose {
    Own,
    Nobodys,
    Others,
}

fn whose(node: &Value, machine: &str) -> Whose {
    match object::text(node, &["metadata", "annotations", MACHINE]) {
        "" => Whose::Nobodys,
        of if of == machine => Whose::Own,
        _ => Whose::Others,
    }
}

/// Says which of the node's conditions are others than they were, as upstream.
fn record_changes(kubelet: &Kubelet, before: &Value, now: &Value) {
    for reason in changed(before, now) {
        let message = format!("Node {} status is now: {reason}", kubelet.config.node_name);
        pressure::record(kubelet, false, reason, message);
    }
}

/// The reasons of events for the conditions that have another status.
fn changed(before: &Value, now: &Value) -> Vec<&'static str> {
    let status = |node: &Value, type_: &str| {
        let conditions = mainstay_api::object::at(node, &["status", "conditions"]).and_then(Value::as_array);
        let mut conditions = conditions.into_iter().flatten();
        conditions.find(|condition| condition["type"] == type_).map(|condition| condition["status"].clone())
    };
    let all = Condition::ALL.map(|condition| (condition.name(), condition.event(true), condition.event(false)));
    let changes = all.into_iter().chain([("Ready", "NodeReady", "NodeNotReady")]).filter_map(|(type_, yes, no)| {
        let value = status(now, type_)?;
        (status(before, type_).as_ref() != Some(&value)).then_some(if value == "True" { yes } else { no })
    });
    changes.collect()
}

/// Resources that somebody noted in the capacity, which the kernel knows nothing of: `example.com/socket`.
fn extended(node: &Value) -> impl Iterator<Item = (&String, &Value)> {
    let capacity = mainstay_api::object::at(node, &["status", "capacity"]).and_then(Value::as_object);
    capacity.into_iter().flatten().filter(|(name, _)| is_extended(name))
}

/// Whether a resource is somebody else's: it has a domain, and that is not Kubernetes' own.
fn is_extended(name: &str) -> bool {
    name.split_once('/').is_some_and(|(domain, _)| domain != "kubernetes.io" && !domain.ends_with(".kubernetes.io"))
}

/// Whether a Node says of an extended resource that it has it, and not yet that pods may have as much.
pub fn lacks_allocatable(node: &Node) -> bool {
    let Some(status) = node.status.as_ref() else { return false };
    let allocatable = |name: &str| status.allocatable.as_ref().and_then(|all| all.get(name));
    let mut extended = status.capacity.iter().flatten().filter(|(name, _)| is_extended(name));
    extended.any(|(name, amount)| allocatable(name) != Some(amount))
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
        annotations[MACHINE] = json!(kubelet.config.machine);
    }
    if let Some(key) = kubelet.network.key() {
        annotations[WIREGUARD_KEY] = json!(STANDARD.encode(key));
    }
    annotations[resources::RESERVED_PORTS] = json!(kubelet.reserved.ports().join(","));
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
    let mut allocatable = capacity.clone();
    for (name, amount) in extended(existing) {
        allocatable[name] = amount.clone();
    }
    let version = concat!("v", env!("CARGO_PKG_VERSION"));
    json!({
        "capacity": capacity,
        "allocatable": allocatable,
        "addresses": [
            { "type": "InternalIP", "address": kubelet.config.node_ip.to_string() },
            { "type": "Hostname", "address": kubelet.config.node_name },
        ],
        "daemonEndpoints": { "kubeletEndpoint": { "Port": kubelet.config.streaming_port } },
        // Groups are given to containers by their pod's `supplementalGroupsPolicy`, and told in its status.
        "features": { "supplementalGroupsPolicy": true },
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
        "conditions": conditions(existing, &kubelet.health, &kubelet.pressure.conditions(), Timestamp::now()),
    })
}

/// The four conditions of a kubelet: Ready as long as its loops run. A transition time moves only with its status.
fn conditions(existing: &Value, health: &Health, pressed: &BTreeSet<Condition>, now: Timestamp) -> Value {
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
    let [memory, disk, pids] = Condition::ALL.map(|condition| {
        let is_short = pressed.contains(&condition);
        let (reason, message) = condition.words(is_short);
        (condition.name(), if is_short { "True" } else { "False" }, reason, message)
    });
    let rows = [memory, disk, pids, ready];
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

#[cfg(test)]
mod tests {
    use super::*;

    fn node(conditions: Value) -> Value {
        json!({ "status": { "conditions": conditions } })
    }

    #[test]
    fn conditions_say_what_is_short_and_events_what_has_changed() {
        let (health, now) = (Health::default(), Timestamp::UNIX_EPOCH);
        let foreign = json!([{ "type": "Mine", "status": "True" }]);
        let first = node(conditions(&node(foreign.clone()), &health, &BTreeSet::new(), now));
        let all = ["NodeHasSufficientMemory", "NodeHasNoDiskPressure", "NodeHasSufficientPID", "NodeReady"];
        assert_eq!(changed(&node(foreign.clone()), &first), all);
        assert_eq!(first["status"]["conditions"][0], foreign[0]);
        let pressed = BTreeSet::from([Condition::DiskPressure]);
        let second = node(conditions(&first, &health, &pressed, now + Duration::from_secs(9)));
        assert_eq!(changed(&first, &second), ["NodeHasDiskPressure"]);
        let disk = second["status"]["conditions"][2].clone();
        assert_eq!(
            (disk["type"].as_str(), disk["status"].as_str(), disk["reason"].as_str(), disk["message"].as_str()),
            (Some("DiskPressure"), Some("True"), Some("KubeletHasDiskPressure"), Some("kubelet has disk pressure"))
        );
        assert_eq!(disk["lastTransitionTime"], "1970-01-01T00:00:09Z");
        assert_eq!(second["status"]["conditions"][1]["lastTransitionTime"], "1970-01-01T00:00:00Z");
        assert_eq!(changed(&second, &second), Vec::<&str>::new());
    }

    #[test]
    fn s1_a_node_of_another_machine_is_left_alone() {
        let node = |machine: &str| json!({ "metadata": { "annotations": { MACHINE: machine } } });
        assert_eq!(whose(&node("m1"), "m1"), Whose::Own);
        assert_eq!(whose(&node("m2"), "m1"), Whose::Others);
        assert_eq!(whose(&json!({ "metadata": {} }), "m1"), Whose::Nobodys);
    }

    #[test]
    fn what_somebody_noted_in_the_capacity_becomes_allocatable() {
        let status = json!({ "capacity": { "cpu": "2", "example.com/socket": "5", "hugepages-2Mi": "0",
            "requests.kubernetes.io/x": "1", "kubernetes.io/y": "1" } });
        let value = json!({ "status": status });
        assert_eq!(extended(&value).map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["example.com/socket"]);
        let mut node: Node = serde_json::from_value(value).unwrap();
        assert!(lacks_allocatable(&node));
        let capacity = node.status.as_ref().unwrap().capacity.clone();
        node.status.as_mut().unwrap().allocatable = capacity;
        assert!(!lacks_allocatable(&node));
        node.status.as_mut().unwrap().allocatable.as_mut().unwrap().remove("cpu");
        assert!(!lacks_allocatable(&node), "what the kernel knows is written in any case");
    }
}
