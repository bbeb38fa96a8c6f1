//! What the node and its containers use: `/stats/summary` and `/metrics/resource`, as the kubelet answers them.
//!
//! The kernel counts CPU time; a rate needs two looks. Nothing looks when nobody asks: the rate is from the look
//! before, where there was one that is not too old, and left out else. Whoever wants a rate asks twice.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use mainstay_runtime::{ContainerState, ContainerStats};
use serde_json::{Value, json};

use super::backend::{Backend, Containers};

/// An earlier look that is older says nothing about now.
const STALE: Duration = Duration::from_secs(120);
/// One that is younger than this is not compared with: the kernel counts in steps.
const LEAST: Duration = Duration::from_millis(500);
/// `/proc/stat` counts hundredths of a second, on every machine that Linux runs on today.
const TICK_NANOS: u64 = 10_000_000;

/// What somebody uses, at a moment.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Usage {
    at: Timestamp,
    cpu_nanos: u64,
    memory: u64,
    working_set: u64,
}

/// The last look at each container, by id; the node itself is `""`.
#[derive(Default)]
pub struct Looks(Mutex<BTreeMap<String, Usage>>);

/// One container that runs.
struct Running {
    name: String,
    started: Timestamp,
    usage: Usage,
    rate: Option<u64>,
}

/// One pod and what runs of it.
struct PodUsage {
    pod: Arc<Pod>,
    containers: Vec<Running>,
}

/// All of a node.
struct Figures {
    node: Usage,
    rate: Option<u64>,
    pods: Vec<PodUsage>,
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
    let (used, passed) = (now.cpu_nanos.checked_sub(before.cpu_nanos)?, age(before, now));
    let rate = u128::from(used) * 1_000_000_000 / passed.as_nanos().max(1);
    (LEAST..=STALE).contains(&passed).then_some(u64::try_from(rate).unwrap_or(u64::MAX))
}

/// Looks at everything. Reads many small files: not for an async thread.
fn figures(backend: &dyn Backend, containers: &dyn Containers, looks: &Looks) -> Figures {
    let now = Timestamp::now();
    looks.forget(now);
    let of = |stats: ContainerStats| Usage {
        at: Timestamp::now(),
        cpu_nanos: stats.cpu_usage_nanos,
        memory: stats.memory_usage_bytes,
        working_set: stats.memory_working_set_bytes,
    };
    let pods = backend.pods().into_iter().map(|pod| {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let running = containers.of_pod(uid).into_iter().filter_map(|container| {
            let ContainerState::Running { started_at_ms, .. } = container.state else { return None };
            let usage = of(containers.stats(&container.id)?);
            let rate = looks.rate(&container.id, usage);
            let started = Timestamp::from_millisecond(started_at_ms).ok()?;
            Some(Running { name: container.name, started, usage, rate })
        });
        let containers = running.collect();
        PodUsage { pod, containers }
    });
    let pods = pods.collect();
    let node = node_usage();
    Figures { node, rate: looks.rate("", node), pods }
}

/// The machine's own usage.
fn node_usage() -> Usage {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (memory, working_set) = memory_used(&read("/proc/meminfo"));
    Usage { at: Timestamp::now(), cpu_nanos: cpu_used(&read("/proc/stat")), memory, working_set }
}

/// The first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal, … (guests are in user).
fn cpu_used(stat: &str) -> u64 {
    let first = stat.lines().next().unwrap_or("");
    let ticks: Vec<u64> = first.split_whitespace().skip(1).map(|ticks| ticks.parse().unwrap_or(0)).collect();
    [0, 1, 2, 5, 6, 7].iter().filter_map(|at| ticks.get(*at)).sum::<u64>().saturating_mul(TICK_NANOS)
}

/// Bytes in use, and those without the page cache that was not used lately.
fn memory_used(meminfo: &str) -> (u64, u64) {
    let kib = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    let used = kib("MemTotal").saturating_sub(kib("MemFree")) * 1024;
    (used, used.saturating_sub(kib("Inactive(file)") * 1024))
}

fn cpu(usage: Usage, rate: Option<u64>) -> Value {
    let mut cpu = json!({ "time": time(usage.at), "usageCoreNanoSeconds": usage.cpu_nanos });
    if let Some(rate) = rate {
        cpu["usageNanoCores"] = rate.into();
    }
    cpu
}

fn memory(usage: Usage) -> Value {
    json!({ "time": time(usage.at), "usageBytes": usage.memory, "workingSetBytes": usage.working_set })
}

/// To the microsecond: who compares two answers needs that.
fn time(at: Timestamp) -> String {
    mainstay_api::time::micro(at)
}

/// What the containers of a pod use together; `None` where nothing of it runs.
fn sum(containers: &[Running]) -> Option<(Usage, Option<u64>)> {
    let first = containers.first()?;
    let of = |part: fn(&Running) -> u64| containers.iter().map(part).fold(0, u64::saturating_add);
    let usage = Usage {
        at: first.usage.at,
        cpu_nanos: of(|one| one.usage.cpu_nanos),
        memory: of(|one| one.usage.memory),
        working_set: of(|one| one.usage.working_set),
    };
    let rate = containers.iter().map(|one| one.rate).sum();
    Some((usage, rate))
}

/// `/stats/summary`. Looks at everything, so not for an async thread.
pub fn summary(node_name: &str, backend: &dyn Backend, containers: &dyn Containers, looks: &Looks) -> Value {
    let figures = figures(backend, containers, looks);
    let pods = figures.pods.iter().filter_map(|PodUsage { pod, containers }| {
        let (usage, rate) = sum(containers)?;
        let meta = &pod.metadata;
        let each: Vec<Value> = containers
            .iter()
            .map(|one| {
                json!({
                    "name": one.name, "startTime": mainstay_api::time::rfc3339(one.started),
                    "cpu": cpu(one.usage, one.rate), "memory": memory(one.usage),
                })
            })
            .collect();
        Some(json!({
            "podRef": { "name": meta.name, "namespace": meta.namespace, "uid": meta.uid },
            "startTime": pod.status.as_ref().and_then(|status| status.start_time.clone()),
            "containers": each, "cpu": cpu(usage, rate), "memory": memory(usage),
        }))
    });
    let pods: Vec<Value> = pods.collect();
    let node = json!({ "nodeName": node_name, "cpu": cpu(figures.node, figures.rate), "memory": memory(figures.node) });
    json!({ "node": node, "pods": pods })
}

/// `/metrics/resource`, with upstream's names. Looks at everything, so not for an async thread.
pub fn resource_metrics(backend: &dyn Backend, containers: &dyn Containers) -> String {
    let figures = figures(backend, containers, &Looks::default());
    let mut families: BTreeMap<&str, (&str, &str, String)> = BTreeMap::from([
        (
            "container_cpu_usage_seconds_total",
            ("counter", "Cumulative cpu time consumed by the container in core-seconds", String::new()),
        ),
        (
            "container_memory_working_set_bytes",
            ("gauge", "Current working set of the container in bytes", String::new()),
        ),
        (
            "container_start_time_seconds",
            ("gauge", "Start time of the container since unix epoch in seconds", String::new()),
        ),
        (
            "node_cpu_usage_seconds_total",
            ("counter", "Cumulative cpu time consumed by the node in core-seconds", String::new()),
        ),
        ("node_memory_working_set_bytes", ("gauge", "Current working set of the node in bytes", String::new())),
        (
            "pod_cpu_usage_seconds_total",
            ("counter", "Cumulative cpu time consumed by the pod in core-seconds", String::new()),
        ),
        ("pod_memory_working_set_bytes", ("gauge", "Current working set of the pod in bytes", String::new())),
        (
            "resource_scrape_error",
            (
                "gauge",
                "1 if there was an error while getting container metrics, 0 otherwise",
                "resource_scrape_error 0\n".to_owned(),
            ),
        ),
    ]);
    let mut add = |name: &'static str, labels: &str, value: &str, at: Timestamp| {
        if let Some((_, _, lines)) = families.get_mut(name) {
            let _ = writeln!(lines, "{name}{labels} {value} {}", at.as_millisecond());
        }
    };
    let both = |usage: Usage| (seconds(usage.cpu_nanos), usage.working_set.to_string());
    let (cpu, memory) = both(figures.node);
    add("node_cpu_usage_seconds_total", "", &cpu, figures.node.at);
    add("node_memory_working_set_bytes", "", &memory, figures.node.at);
    for PodUsage { pod, containers } in &figures.pods {
        let of = |text: &Option<String>| text.clone().unwrap_or_default();
        let (namespace, name) = (of(&pod.metadata.namespace), of(&pod.metadata.name));
        for one in containers {
            let labels = format!("{{container={:?},namespace={namespace:?},pod={name:?}}}", one.name);
            let (cpu, memory) = both(one.usage);
            add("container_cpu_usage_seconds_total", &labels, &cpu, one.usage.at);
            add("container_memory_working_set_bytes", &labels, &memory, one.usage.at);
            let started = seconds(u64::try_from(one.started.as_nanosecond()).unwrap_or(0));
            add("container_start_time_seconds", &labels, &started, one.usage.at);
        }
        if let Some((usage, _)) = sum(containers) {
            let labels = format!("{{namespace={namespace:?},pod={name:?}}}");
            let (cpu, memory) = both(usage);
            add("pod_cpu_usage_seconds_total", &labels, &cpu, usage.at);
            add("pod_memory_working_set_bytes", &labels, &memory, usage.at);
        }
    }
    let mut out = String::new();
    for (name, (type_, help, lines)) in families {
        let _ = write!(out, "# HELP {name} [STABLE] {help}\n# TYPE {name} {type_}\n{lines}");
    }
    out
}

/// `1.500000000`.
fn seconds(nanos: u64) -> String {
    format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(second: i64, cpu_nanos: u64) -> Usage {
        Usage { at: Timestamp::from_second(second).unwrap(), cpu_nanos, memory: 0, working_set: 0 }
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
        assert_eq!(memory_used(text), (700 * 1024, 500 * 1024));
        assert_eq!((cpu_used(""), memory_used("")), (0, (0, 0)));
        assert!(node_usage().cpu_nanos > 0 && node_usage().working_set > 0);
    }
}
