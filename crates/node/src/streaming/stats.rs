//! What the node and its containers use: `/stats/summary`, `/metrics/resource` and `/metrics`, as the kubelet answers.
//!
//! The kernel counts CPU time; a rate needs two looks. Nothing looks when nobody asks: the rate is from the look
//! before, where there was one that is not too old, and left out else. Whoever wants a rate asks twice.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use mainstay_runtime::{ContainerState, ContainerStats};
use serde_json::{Value, json};

use super::backend::{self, Backend, Containers, Interface};
use super::exposition::{Exposition, labels, seconds};
use super::room::{Room, VolumeRoom};

/// An earlier look that is older says nothing about now.
const STALE: Duration = Duration::from_secs(120);
/// One that is younger than this is not compared with: the kernel counts in steps.
const LEAST: Duration = Duration::from_millis(500);
/// `/proc/stat` counts hundredths of a second, on every machine that Linux runs on today.
const TICK_NANOS: u64 = 10_000_000;

/// What somebody uses, at a moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Usage {
    pub at: Timestamp,
    pub stats: ContainerStats,
}

/// The last look at each container, by id; the node itself is `""`.
#[derive(Default)]
pub struct Looks(Mutex<BTreeMap<String, Usage>>);

/// One container that runs.
pub(super) struct Running {
    pub id: String,
    pub name: String,
    pub image: String,
    /// Its control group.
    pub group: String,
    pub started: Timestamp,
    pub usage: Usage,
    rate: Option<u64>,
}

/// One pod and what runs of it.
pub(super) struct PodUsage {
    pub pod: Arc<Pod>,
    pub containers: Vec<Running>,
    /// Its control group, and what all that it ever had used; of a pod that has containers which run.
    pub group: Option<(String, Usage)>,
    rate: Option<u64>,
    /// None where it has the node's network.
    pub interfaces: Vec<Interface>,
}

/// All of a node.
pub(super) struct Figures {
    pub node: Usage,
    rate: Option<u64>,
    pub memory_bytes: u64,
    pub interfaces: Vec<Interface>,
    pub pods: Vec<PodUsage>,
}

impl Looks {
    /// Looks, and gives the rate since the look before (nanoseconds of CPU per second).
    fn rate(&self, id: &str, usage: Usage) -> Option<u64> {
        let mut looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = looks.get(id).copied();
        let rate = before.and_then(|before| rate(before, usage));
        let is_too_early = before.is_some_and(|before| age(before, usage) < LEAST);
        if !is_too_early {
            looks.insert(id.to_owned(), usage);
        }
        rate
    }

    /// Forgets what was last looked at so long ago that it says nothing.
    fn forget(&self, now: Timestamp) {
        let mut looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        looks.retain(|_, look| Duration::try_from(now.duration_since(look.at)).is_ok_and(|age| age <= STALE));
    }
}

fn age(before: Usage, now: Usage) -> Duration {
    Duration::try_from(now.at.duration_since(before.at)).unwrap_or_default()
}

fn rate(before: Usage, now: Usage) -> Option<u64> {
    let (used, passed) = (now.stats.cpu_usage_nanos.checked_sub(before.stats.cpu_usage_nanos)?, age(before, now));
    let rate = u128::from(used) * 1_000_000_000 / passed.as_nanos().max(1);
    (LEAST..=STALE).contains(&passed).then_some(u64::try_from(rate).unwrap_or(u64::MAX))
}

/// Looks at everything, each file once. Reads many small files: not for an async thread.
pub(super) fn figures(backend: &dyn Backend, containers: &dyn Containers, looks: &Looks) -> Figures {
    looks.forget(Timestamp::now());
    let of = |stats: ContainerStats| Usage { at: Timestamp::now(), stats };
    // The runtime's list is taken once, not once a pod.
    let mut by_pod: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for container in containers.all() {
        by_pod.entry(container.pod_uid.clone()).or_default().push(container);
    }
    let pods = backend.pods().into_iter().map(|pod| {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let mut pids = Vec::new();
        let running = by_pod.remove(&uid).unwrap_or_default().into_iter().filter_map(|container| {
            let ContainerState::Running { started_at_ms, pid } = container.state else { return None };
            let usage = of(containers.stats(&container.id)?);
            pids.push(pid);
            let rate = looks.rate(&container.id, usage);
            let started = Timestamp::from_millisecond(started_at_ms).ok()?;
            let group = containers.group(&container.id).unwrap_or_default();
            Some(Running {
                id: container.id,
                name: container.name,
                image: container.image,
                group,
                started,
                usage,
                rate,
            })
        });
        let running: Vec<Running> = running.collect();
        let group = if running.is_empty() { None } else { containers.pod_stats(&uid) };
        let group = group.map(|(name, stats)| (name, of(stats)));
        let rate = group.as_ref().and_then(|(name, usage)| looks.rate(name, *usage));
        let interfaces = containers.interfaces(&uid, &pids);
        PodUsage { pod, containers: running, group, rate, interfaces }
    });
    let pods = pods.collect();
    let (node, memory_bytes) = node_usage();
    let interfaces = backend::interfaces(&std::fs::read_to_string("/proc/self/net/dev").unwrap_or_default());
    Figures { node, rate: looks.rate("", node), memory_bytes, interfaces, pods }
}

/// The machine's own usage, and how much memory it has.
fn node_usage() -> (Usage, u64) {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (all, memory, working_set) = memory_used(&read("/proc/meminfo"));
    let stats = ContainerStats {
        cpu_usage_nanos: cpu_used(&read("/proc/stat")),
        memory_usage_bytes: memory,
        memory_working_set_bytes: working_set,
        ..ContainerStats::default()
    };
    (Usage { at: Timestamp::now(), stats }, all)
}

/// The first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal, … (guests are in user).
fn cpu_used(stat: &str) -> u64 {
    let first = stat.lines().next().unwrap_or("");
    let ticks: Vec<u64> = first.split_whitespace().skip(1).map(|ticks| ticks.parse().unwrap_or(0)).collect();
    [0, 1, 2, 5, 6, 7].iter().filter_map(|at| ticks.get(*at)).sum::<u64>().saturating_mul(TICK_NANOS)
}

/// Bytes that there are, those in use, and those of them without the page cache that was not used lately.
fn memory_used(meminfo: &str) -> (u64, u64, u64) {
    let kib = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    let all = kib("MemTotal").saturating_mul(1024);
    let used = all.saturating_sub(kib("MemFree").saturating_mul(1024));
    (all, used, used.saturating_sub(kib("Inactive(file)").saturating_mul(1024)))
}

fn cpu(usage: Usage, rate: Option<u64>) -> Value {
    let mut cpu = json!({ "time": time(usage.at), "usageCoreNanoSeconds": usage.stats.cpu_usage_nanos });
    if let Some(rate) = rate {
        cpu["usageNanoCores"] = rate.into();
    }
    cpu
}

/// `available` is said where there is a limit.
fn memory(usage: Usage, limit: u64) -> Value {
    let stats = usage.stats;
    let mut memory = json!({
        "time": time(usage.at),
        "usageBytes": stats.memory_usage_bytes, "workingSetBytes": stats.memory_working_set_bytes,
    });
    if limit > 0 {
        memory["availableBytes"] = limit.saturating_sub(stats.memory_working_set_bytes).into();
    }
    memory
}

/// The same of a control group, where the kernel counts more.
fn group_memory(usage: Usage) -> Value {
    let stats = usage.stats;
    let mut memory = memory(usage, stats.memory_limit_bytes);
    memory["rssBytes"] = stats.memory_rss_bytes.into();
    memory["pageFaults"] = stats.page_faults.into();
    memory["majorPageFaults"] = stats.major_page_faults.into();
    memory
}

/// All interfaces, and once more the one that leads outside; null where there are none.
fn network(interfaces: &[Interface], at: Timestamp) -> Value {
    let one = |of: &Interface| {
        json!({
            "name": of.name, "rxBytes": of.received.bytes, "rxErrors": of.received.errors,
            "txBytes": of.sent.bytes, "txErrors": of.sent.errors,
        })
    };
    let Some(first) = interfaces.iter().find(|one| one.name == "eth0").or(interfaces.first()) else {
        return Value::Null;
    };
    let mut network = one(first);
    network["time"] = time(at).into();
    network["interfaces"] = interfaces.iter().map(one).collect();
    network
}

fn room(of: Room, at: Timestamp) -> Value {
    json!({
        "time": time(at), "availableBytes": of.available, "capacityBytes": of.capacity, "usedBytes": of.used,
        "inodesFree": of.inodes_free, "inodes": of.inodes, "inodesUsed": of.inodes.saturating_sub(of.inodes_free),
    })
}

/// To the microsecond: who compares two answers needs that.
fn time(at: Timestamp) -> String {
    mainstay_api::time::micro(at)
}

/// `/stats/summary`. Looks at everything, so not for an async thread; `volumes` is what is left in the pods' claims.
pub fn summary(backend: &dyn Backend, containers: &dyn Containers, looks: &Looks, volumes: &[VolumeRoom]) -> Value {
    let figures = figures(backend, containers, looks);
    let pods = figures.pods.iter().filter_map(|of| {
        let (_, usage) = of.group.as_ref()?;
        let meta = &of.pod.metadata;
        let containers = of.containers.iter().map(|one| {
            json!({
                "name": one.name, "startTime": mainstay_api::time::rfc3339(one.started),
                "cpu": cpu(one.usage, one.rate), "memory": group_memory(one.usage),
                "swap": { "time": time(one.usage.at), "swapUsageBytes": one.usage.stats.memory_swap_bytes },
            })
        });
        let containers: Vec<Value> = containers.collect();
        let mut pod = json!({
            "podRef": { "name": meta.name, "namespace": meta.namespace, "uid": meta.uid },
            "startTime": of.pod.status.as_ref().and_then(|status| status.start_time.clone()),
            "containers": containers, "cpu": cpu(*usage, of.rate), "memory": group_memory(*usage),
            "process_stats": { "process_count": usage.stats.pids },
        });
        let own = volumes.iter().filter(|volume| Some(&volume.pod_uid) == meta.uid.as_ref());
        let own: Vec<Value> = own.map(|volume| volume_summary(volume, usage.at)).collect();
        if !own.is_empty() {
            pod["volume"] = own.into();
        }
        if !of.interfaces.is_empty() {
            pod["network"] = network(&of.interfaces, usage.at);
        }
        Some(pod)
    });
    let pods: Vec<Value> = pods.collect();
    let at = figures.node.at;
    let mut node = json!({
        "nodeName": backend.node_name(), "cpu": cpu(figures.node, figures.rate),
        "memory": memory(figures.node, figures.memory_bytes),
    });
    if !figures.interfaces.is_empty() {
        node["network"] = network(&figures.interfaces, at);
    }
    let (data, images) = backend.folders();
    if let Some(of) = Room::of(&data) {
        node["fs"] = room(of, at);
    }
    if let Some(of) = Room::of(&images) {
        node["runtime"] = json!({ "imageFs": room(of, at), "containerFs": room(of, at) });
    }
    json!({ "node": node, "pods": pods })
}

fn volume_summary(volume: &VolumeRoom, at: Timestamp) -> Value {
    let mut told = match volume.room.is_block {
        true => json!({ "time": time(at), "capacityBytes": volume.room.capacity }),
        false => room(volume.room, at),
    };
    told["name"] = volume.name.as_str().into();
    told["pvcRef"] = json!({ "name": volume.claim, "namespace": volume.namespace });
    told
}

/// `/metrics/resource`, with upstream's names. Looks at everything, so not for an async thread.
pub fn resource_metrics(backend: &dyn Backend, containers: &dyn Containers) -> String {
    const FAMILIES: [(&str, &str, &str); 10] = [
        (
            "container_cpu_usage_seconds_total",
            "counter",
            "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
        ),
        ("container_memory_working_set_bytes", "gauge", "[STABLE] Current working set of the container in bytes"),
        ("container_start_time_seconds", "gauge", "[STABLE] Start time of the container since unix epoch in seconds"),
        ("container_swap_usage_bytes", "gauge", "[ALPHA] Current amount of the container swap usage in bytes."),
        (
            "node_cpu_usage_seconds_total",
            "counter",
            "[STABLE] Cumulative cpu time consumed by the node in core-seconds",
        ),
        ("node_memory_working_set_bytes", "gauge", "[STABLE] Current working set of the node in bytes"),
        ("pod_cpu_usage_seconds_total", "counter", "[STABLE] Cumulative cpu time consumed by the pod in core-seconds"),
        ("pod_memory_working_set_bytes", "gauge", "[STABLE] Current working set of the pod in bytes"),
        ("pod_swap_usage_bytes", "gauge", "[ALPHA] Current amount of the pod swap usage in bytes."),
        (
            "resource_scrape_error",
            "gauge",
            "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise",
        ),
    ];
    let figures = figures(backend, containers, &Looks::default());
    let mut out = Exposition::default();
    FAMILIES.iter().for_each(|(name, kind, help)| out.family(name, kind, help));
    out.add("resource_scrape_error", "", 0, None);
    let node = figures.node;
    out.add("node_cpu_usage_seconds_total", "", seconds(node.stats.cpu_usage_nanos), Some(node.at));
    out.add("node_memory_working_set_bytes", "", node.stats.memory_working_set_bytes, Some(node.at));
    for of in &figures.pods {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let (namespace, pod) = (text(&of.pod.metadata.namespace), text(&of.pod.metadata.name));
        for one in &of.containers {
            let (labels, stats) =
                (labels(&[("container", &one.name), ("namespace", &namespace), ("pod", &pod)]), one.usage.stats);
            let at = Some(one.usage.at);
            out.add("container_cpu_usage_seconds_total", &labels, seconds(stats.cpu_usage_nanos), at);
            out.add("container_memory_working_set_bytes", &labels, stats.memory_working_set_bytes, at);
            out.add("container_swap_usage_bytes", &labels, stats.memory_swap_bytes, at);
            let started = u64::try_from(one.started.as_nanosecond()).unwrap_or(0);
            out.add("container_start_time_seconds", &labels, seconds(started), at);
        }
        if let Some((_, Usage { at, stats })) = of.group {
            let labels = labels(&[("namespace", &namespace), ("pod", &pod)]);
            out.add("pod_cpu_usage_seconds_total", &labels, seconds(stats.cpu_usage_nanos), Some(at));
            out.add("pod_memory_working_set_bytes", &labels, stats.memory_working_set_bytes, Some(at));
            out.add("pod_swap_usage_bytes", &labels, stats.memory_swap_bytes, Some(at));
        }
    }
    out.text()
}

/// `/metrics`: what the kubelet counts, and what is left in the pods' claims.
pub fn kubelet_metrics(backend: &dyn Backend, containers: &dyn Containers, volumes: &[VolumeRoom]) -> String {
    type Row = (&'static str, &'static str, fn(&Room) -> u64);
    const CAPACITY: &str = "kubelet_volume_stats_capacity_bytes";
    const ROWS: [Row; 6] = [
        ("kubelet_volume_stats_available_bytes", "Number of available bytes in the volume", |of| of.available),
        (CAPACITY, "Capacity in bytes of the volume", |of| of.capacity),
        ("kubelet_volume_stats_used_bytes", "Number of used bytes in the volume", |of| of.used),
        ("kubelet_volume_stats_inodes", "Maximum number of inodes in the volume", |of| of.inodes),
        ("kubelet_volume_stats_inodes_free", "Number of free inodes in the volume", |of| of.inodes_free),
        ("kubelet_volume_stats_inodes_used", "Number of used inodes in the volume", |of| {
            of.inodes.saturating_sub(of.inodes_free)
        }),
    ];
    let mut out = Exposition::default();
    ROWS.iter().for_each(|(name, help, _)| out.family(name, "gauge", help));
    let mut told: BTreeMap<(&str, &str), &Room> = BTreeMap::new();
    for volume in volumes {
        told.insert((&volume.namespace, &volume.claim), &volume.room);
    }
    for ((namespace, claim), room) in told {
        let labels = labels(&[("namespace", namespace), ("persistentvolumeclaim", claim)]);
        // Of what a pod does with a block device nothing is known.
        for (name, _, of) in ROWS.iter().filter(|(name, ..)| !room.is_block || *name == CAPACITY) {
            out.add(name, &labels, of(room), None);
        }
    }
    out.family("kubelet_desired_pods", "gauge", "The number of pods the kubelet is being instructed to run.");
    out.add("kubelet_desired_pods", "", backend.pods().len(), None);
    out.family("kubelet_node_name", "gauge", "The node's name. The count is always 1.");
    out.add("kubelet_node_name", &labels(&[("node", backend.node_name())]), 1, None);
    let mut states: BTreeMap<&str, u64> =
        BTreeMap::from([("created", 0), ("exited", 0), ("running", 0), ("unknown", 0)]);
    let mut running: std::collections::BTreeSet<String> = Default::default();
    for container in containers.all() {
        let state = match container.state {
            ContainerState::Created => "created",
            ContainerState::Running { .. } => "running",
            ContainerState::Exited { .. } => "exited",
            ContainerState::Unknown => "unknown",
        };
        *states.entry(state).or_default() += 1;
        if state == "running" {
            running.insert(container.pod_uid);
        }
    }
    out.family("kubelet_running_containers", "gauge", "Number of containers currently running");
    for (state, count) in states {
        out.add("kubelet_running_containers", &labels(&[("container_state", state)]), count, None);
    }
    out.family("kubelet_running_pods", "gauge", "Number of pods that have a running pod sandbox");
    out.add("kubelet_running_pods", "", running.len(), None);
    out.text()
}

/// `/runningpods/`: the pods of which something runs, with what runs, as the runtime knows it.
pub fn running_pods(backend: &dyn Backend, containers: &dyn Containers) -> Value {
    let mut running: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for container in containers.all() {
        if matches!(container.state, ContainerState::Running { .. }) {
            let told = json!({ "name": container.name, "image": container.image, "resources": {} });
            running.entry(container.pod_uid).or_default().push(told);
        }
    }
    let items = backend.pods().into_iter().filter_map(|pod| {
        let meta = &pod.metadata;
        let containers = running.remove(meta.uid.as_deref()?)?;
        Some(json!({
            "metadata": { "name": meta.name, "namespace": meta.namespace, "uid": meta.uid },
            "spec": { "containers": containers }, "status": {},
        }))
    });
    let items: Vec<Value> = items.collect();
    json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(second: i64, cpu_nanos: u64) -> Usage {
        let stats = ContainerStats { cpu_usage_nanos: cpu_nanos, ..ContainerStats::default() };
        Usage { at: Timestamp::from_second(second).unwrap(), stats }
    }

    #[test]
    fn a_rate_is_of_two_looks_that_are_neither_too_close_nor_too_far_apart() {
        let looks = Looks::default();
        assert_eq!(looks.rate("a", usage(100, 0)), None);
        assert_eq!(looks.rate("a", usage(100, 5)), None, "at the same moment");
        assert_eq!(looks.rate("a", usage(110, 5_000_000_000)), Some(500_000_000), "half a core since the first");
        assert_eq!(looks.rate("a", usage(120, 4_000_000_000)), None, "another container of the same name");
        assert_eq!(looks.rate("a", usage(500, 9_000_000_000)), None, "too long ago");
        looks.forget(Timestamp::from_second(1000).unwrap());
        assert_eq!(looks.0.lock().unwrap().len(), 0);
    }

    #[test]
    fn the_machines_own_files_are_read() {
        assert_eq!(cpu_used("cpu  100 1 20 9999 5 3 2 4 50 0\ncpu0 1 1\n"), 130 * TICK_NANOS);
        let text = "MemTotal:  1000 kB\nMemFree: 300 kB\nInactive: 9 kB\nInactive(file): 200 kB\n";
        assert_eq!(memory_used(text), (1000 * 1024, 700 * 1024, 500 * 1024));
        assert_eq!((cpu_used(""), memory_used("")), (0, (0, 0, 0)));
        let (usage, all) = node_usage();
        let working_set = usage.stats.memory_working_set_bytes;
        assert!(usage.stats.cpu_usage_nanos > 0 && working_set > 0 && working_set < all);
    }
}
