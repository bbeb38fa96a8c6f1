//! `/metrics/cadvisor`: what control groups and network interfaces count, under the names and labels of upstream's
//! cAdvisor. Rows of containers, of pods (their whole group, with `container=""`), of pods' networks, and of the
//! machine (`id="/"`).
//!
//! How full file systems are is told of the machine's alone, as cAdvisor does it beside containerd.
//!
//! Differs: operations on disks are those of all devices together (`device=""`); how much containers have written is
//! not counted here, since all their files would have to be looked at each time. The network of a pod that has the
//! node's is the node's, and is told as that alone.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use mainstay_runtime::ContainerStats;
use mainstay_runtime::safe_path::mounts;

use super::backend::{Backend, Containers, Interface};
use super::exposition::{Exposition, labels, seconds};
use super::room::Room;
use super::stats::{Figures, Looks, figures};

/// A family of one number each: name, type, further label, help, and the number.
type Row =
    (&'static str, &'static str, &'static [(&'static str, &'static str)], &'static str, fn(&ContainerStats) -> String);

const ALL_DEVICES: &[(&str, &str)] = &[("device", "")];

const ROWS: [Row; 22] = [
    (
        "container_cpu_usage_seconds_total",
        "counter",
        &[("cpu", "total")],
        "Cumulative cpu time consumed in seconds.",
        |of| seconds(of.cpu_usage_nanos),
    ),
    ("container_cpu_user_seconds_total", "counter", &[], "Cumulative user cpu time consumed in seconds.", |of| {
        seconds(of.cpu_user_nanos)
    }),
    ("container_cpu_system_seconds_total", "counter", &[], "Cumulative system cpu time consumed in seconds.", |of| {
        seconds(of.cpu_system_nanos)
    }),
    ("container_cpu_cfs_periods_total", "counter", &[], "Number of elapsed enforcement period intervals.", |of| {
        of.cpu_periods.to_string()
    }),
    ("container_cpu_cfs_throttled_periods_total", "counter", &[], "Number of throttled period intervals.", |of| {
        of.cpu_throttled_periods.to_string()
    }),
    (
        "container_cpu_cfs_throttled_seconds_total",
        "counter",
        &[],
        "Total time duration the container has been throttled.",
        |of| seconds(of.cpu_throttled_nanos),
    ),
    ("container_memory_usage_bytes", "gauge", &[], "Current memory usage in bytes.", |of| {
        of.memory_usage_bytes.to_string()
    }),
    ("container_memory_working_set_bytes", "gauge", &[], "Current working set in bytes.", |of| {
        of.memory_working_set_bytes.to_string()
    }),
    ("container_memory_rss", "gauge", &[], "Size of RSS in bytes.", |of| of.memory_rss_bytes.to_string()),
    ("container_memory_cache", "gauge", &[], "Number of bytes of page cache memory.", |of| {
        of.memory_cache_bytes.to_string()
    }),
    ("container_memory_mapped_file", "gauge", &[], "Size of memory mapped files in bytes.", |of| {
        of.memory_mapped_bytes.to_string()
    }),
    ("container_memory_swap", "gauge", &[], "Container swap usage in bytes.", |of| of.memory_swap_bytes.to_string()),
    ("container_memory_max_usage_bytes", "gauge", &[], "Maximum memory usage recorded in bytes.", |of| {
        of.memory_peak_bytes.to_string()
    }),
    ("container_memory_failcnt", "counter", &[], "Number of memory usage hits limits.", |of| {
        of.memory_limit_hits.to_string()
    }),
    ("container_oom_events_total", "counter", &[], "Count of out of memory events.", |of| of.oom_kills.to_string()),
    ("container_spec_memory_limit_bytes", "gauge", &[], "Memory limit, 0 without one.", |of| {
        of.memory_limit_bytes.to_string()
    }),
    ("container_fs_reads_total", "counter", ALL_DEVICES, "Cumulative count of reads completed.", |of| {
        of.reads.to_string()
    }),
    ("container_fs_reads_bytes_total", "counter", ALL_DEVICES, "Cumulative count of bytes read.", |of| {
        of.read_bytes.to_string()
    }),
    ("container_fs_writes_total", "counter", ALL_DEVICES, "Cumulative count of writes completed.", |of| {
        of.writes.to_string()
    }),
    ("container_fs_writes_bytes_total", "counter", ALL_DEVICES, "Cumulative count of bytes written.", |of| {
        of.written_bytes.to_string()
    }),
    ("container_processes", "gauge", &[], "Number of processes and threads.", |of| of.pids.to_string()),
    ("container_threads", "gauge", &[], "Number of processes and threads.", |of| of.pids.to_string()),
];

/// Of the machine as a whole, which has no group of its own, no more is counted.
const OF_THE_MACHINE: [&str; 3] =
    ["container_cpu_usage_seconds_total", "container_memory_usage_bytes", "container_memory_working_set_bytes"];

type NetworkRow = (&'static str, &'static str, fn(&Interface) -> u64);

const NETWORK_ROWS: [NetworkRow; 8] = [
    ("container_network_receive_bytes_total", "Cumulative count of bytes received.", |of| of.received.bytes),
    ("container_network_receive_packets_total", "Cumulative count of packets received.", |of| of.received.packets),
    ("container_network_receive_errors_total", "Cumulative count of errors while receiving.", |of| of.received.errors),
    ("container_network_receive_packets_dropped_total", "Cumulative count of packets dropped while receiving.", |of| {
        of.received.dropped
    }),
    ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted.", |of| of.sent.bytes),
    ("container_network_transmit_packets_total", "Cumulative count of packets transmitted.", |of| of.sent.packets),
    ("container_network_transmit_errors_total", "Cumulative count of errors while transmitting.", |of| of.sent.errors),
    (
        "container_network_transmit_packets_dropped_total",
        "Cumulative count of packets dropped while transmitting.",
        |of| of.sent.dropped,
    ),
];

/// Whose a row is, as cAdvisor labels it.
#[derive(Clone, Copy, Default)]
struct Whose<'a> {
    container: &'a str,
    id: &'a str,
    image: &'a str,
    name: &'a str,
    namespace: &'a str,
    pod: &'a str,
}

impl Whose<'_> {
    fn labels(&self, further: &[(&str, &str)]) -> String {
        let mut pairs = vec![
            ("container", self.container),
            ("id", self.id),
            ("image", self.image),
            ("name", self.name),
            ("namespace", self.namespace),
            ("pod", self.pod),
        ];
        pairs.extend_from_slice(further);
        pairs.sort_unstable();
        labels(&pairs)
    }
}

/// All of it. Looks at everything, each file once, so not for an async thread.
pub fn metrics(backend: &dyn Backend, containers: &dyn Containers) -> String {
    let figures = figures(backend, containers, &Looks::default());
    let mut out = Exposition::default();
    for (name, kind, _, help, _) in ROWS {
        out.family(name, kind, help);
    }
    for (name, help, _) in NETWORK_ROWS {
        out.family(name, "counter", help);
    }
    out.family("container_last_seen", "gauge", "Last time a container was seen by the exporter.");
    out.family("container_start_time_seconds", "gauge", "Start time of the container since unix epoch in seconds.");
    machine(&mut out, &figures);
    file_systems(&mut out, backend, figures.node.at);
    for of in &figures.pods {
        let name = |text: &Option<String>| text.clone().unwrap_or_default();
        let (namespace, pod) = (name(&of.pod.metadata.namespace), name(&of.pod.metadata.name));
        let group = of.group.as_ref().map_or("", |(group, _)| group.as_str());
        let whole = Whose { id: group, namespace: &namespace, pod: &pod, ..Whose::default() };
        if let Some((_, usage)) = &of.group {
            add(&mut out, whole, &usage.stats, usage.at);
        }
        network(&mut out, Whose { name: sandbox(&of.pod), ..whole }, &of.interfaces, figures.node.at);
        for one in &of.containers {
            let (id, image, name) = (&one.group, &one.image, &one.id);
            let whose = Whose { container: &one.name, id, image, name, ..whole };
            add(&mut out, whose, &one.usage.stats, one.usage.at);
            let labels = whose.labels(&[]);
            out.add("container_start_time_seconds", &labels, one.started.as_second(), Some(one.usage.at));
            out.add("container_last_seen", &labels, one.usage.at.as_second(), Some(one.usage.at));
        }
    }
    out.text()
}

/// A sandbox goes by its pod's uid.
fn sandbox(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

fn machine(out: &mut Exposition, figures: &Figures) {
    let root = Whose { id: "/", ..Whose::default() };
    for (name, _, further, _, of) in ROWS.iter().filter(|(name, ..)| OF_THE_MACHINE.contains(name)) {
        out.add(name, &root.labels(further), of(&figures.node.stats), Some(figures.node.at));
    }
    network(out, root, &figures.interfaces, figures.node.at);
    out.family("machine_cpu_cores", "gauge", "Number of logical CPU cores.");
    out.family("machine_memory_bytes", "gauge", "Amount of memory installed on the machine.");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    out.add("machine_cpu_cores", "", cores, None);
    out.add("machine_memory_bytes", "", figures.memory_bytes, None);
}

type FileSystemRow = (&'static str, &'static str, fn(&Room) -> u64);

const FILE_SYSTEM_ROWS: [FileSystemRow; 4] = [
    ("container_fs_usage_bytes", "Number of bytes that are consumed on this filesystem.", |of| of.used),
    ("container_fs_limit_bytes", "Number of bytes that this filesystem has.", |of| of.capacity),
    ("container_fs_inodes_free", "Number of available inodes.", |of| of.inodes_free),
    ("container_fs_inodes_total", "Number of inodes.", |of| of.inodes),
];

/// The file systems of data and images, each once, as the machine's.
fn file_systems(out: &mut Exposition, backend: &dyn Backend, at: Timestamp) {
    let (data, images) = backend.folders();
    let mut found: BTreeMap<String, Room> = BTreeMap::new();
    for folder in [data, images] {
        let device = mounts::holding(&folder).ok().flatten().map(|(_, device)| device_name(&device));
        found.extend(device.zip(Room::of(&folder)));
    }
    let root = Whose { id: "/", ..Whose::default() };
    for (name, help, of) in FILE_SYSTEM_ROWS {
        out.family(name, "gauge", help);
        for (device, room) in &found {
            out.add(name, &root.labels(&[("device", device)]), of(room), Some(at));
        }
    }
}

/// `/dev/sda1`; the number of one that has no name there.
fn device_name(number: &str) -> String {
    let said = std::fs::read_to_string(format!("/sys/dev/block/{number}/uevent")).unwrap_or_default();
    let name = said.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    name.map_or_else(|| number.to_owned(), |name| format!("/dev/{name}"))
}

fn add(out: &mut Exposition, whose: Whose<'_>, stats: &ContainerStats, at: Timestamp) {
    for (name, _, further, _, of) in &ROWS {
        out.add(name, &whose.labels(further), of(stats), Some(at));
    }
}

fn network(out: &mut Exposition, whose: Whose<'_>, interfaces: &[Interface], at: Timestamp) {
    for interface in interfaces {
        let labels = whose.labels(&[("interface", &interface.name)]);
        for (name, _, of) in &NETWORK_ROWS {
            out.add(name, &labels, of(interface), Some(at));
        }
    }
}
