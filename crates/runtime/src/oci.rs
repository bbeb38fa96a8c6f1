//! A container's OCI spec, with the defaults that containerd gives: masked and read-only paths, device nodes,
//! capabilities, mounts.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{ContainerSpec, Mount, MountPropagation, ProcessUser};
use crate::cgroups::Cgroups;

/// The period over which a CPU limit is counted, microseconds (the kubelet's cpuCFSQuotaPeriod).
pub(crate) const CPU_PERIOD: u64 = 100_000;
/// The kernel's smallest quota, microseconds.
const MIN_CPU_QUOTA: u64 = 1000;

const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// All capabilities by number.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Where a container sees its control groups.
const CGROUP_VIEW: &str = "/sys/fs/cgroup";

const READ_ONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What this process may do, and so the most that a container of it can get.
#[derive(Clone, Debug, Default)]
pub struct Own {
    /// Names without `CAP_`.
    pub capabilities: BTreeSet<&'static str>,
    pub oom_score_adj: i32,
}

impl Own {
    /// Reads it from /proc.
    pub fn read() -> Own {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let set = |name: &str| {
            let text = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            u64::from_str_radix(text.trim(), 16).unwrap_or(0)
        };
        let own = set("CapPrm:") & set("CapBnd:");
        let capabilities =
            CAPABILITIES.iter().enumerate().filter(|(bit, _)| own >> bit & 1 == 1).map(|(_, name)| *name).collect();
        let score = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
        Own { capabilities, oom_score_adj: score.trim().parse().unwrap_or(0) }
    }
}

/// The pod's namespaces by path; None is the node's own.
#[derive(Clone, Debug, Default)]
pub struct Namespaces {
    pub net: Option<PathBuf>,
    pub ipc: Option<PathBuf>,
    pub uts: Option<PathBuf>,
    /// Shared by the pod's containers; None means a PID namespace of the container's own…
    pub pid: Option<PathBuf>,
    /// …or, where this is set, the node's.
    pub host_pid: bool,
    pub shm: PathBuf,
    /// The pod's user namespace, and the host's id for its root. Processes enter it by themselves: the container
    /// library makes everything as the host's root.
    pub user: Option<(PathBuf, u32)>,
}

/// The spec as `config.json` has it.
pub fn config(
    spec: &ContainerSpec,
    rootfs: &Path,
    namespaces: &Namespaces,
    cgroups: &Cgroups,
    cgroup: &str,
    own: &Own,
) -> Value {
    let mut env: Vec<String> = spec.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    if !spec.env.iter().any(|(name, _)| name == "PATH") {
        env.push(format!("PATH={}", crate::shim::DEFAULT_PATH));
    }
    if spec.tty && !spec.env.iter().any(|(name, _)| name == "TERM") {
        env.push("TERM=xterm".to_owned());
    }
    ensure_home(&mut env);
    let working_dir = if spec.working_dir.is_empty() { "/" } else { &spec.working_dir };
    let masked: &[&str] = if spec.privileged || spec.unmasked_proc { &[] } else { &MASKED_PATHS };
    let mut read_only: Vec<&str> =
        if spec.privileged || spec.unmasked_proc { Vec::new() } else { READ_ONLY_PATHS.to_vec() };
    let views = if spec.privileged { Vec::new() } else { cgroups.v1_views(cgroup) };
    if !views.is_empty() {
        read_only.push(CGROUP_VIEW);
    }
    let ProcessUser { uid, gid, groups } = spec.process_user();
    let user = json!({ "uid": uid, "gid": gid, "additionalGids": groups });
    let mut config = json!({
        "ociVersion": "1.0.2",
        "root": { "path": rootfs, "readonly": spec.read_only_root },
        "process": {
            "terminal": spec.tty,
            "user": user,
            "args": spec.args,
            "env": env,
            "cwd": working_dir,
            "noNewPrivileges": spec.no_new_privileges,
            "oomScoreAdj": oom_score_adj(spec.oom_score_adj, own),
        },
        "mounts": mounts(spec, namespaces, &views),
        "linux": {
            "cgroupsPath": cgroups.name(cgroup),
            "namespaces": namespace_list(namespaces, cgroups),
            "resources": resources(spec, cgroups),
            "maskedPaths": masked,
            "readonlyPaths": read_only,
            "rootfsPropagation": root_propagation(spec),
        },
    });
    if spec.privileged
        && let Some(linux) = config.get_mut("linux").and_then(Value::as_object_mut)
    {
        let mut devices = host_devices(Path::new("/dev"));
        // The library would make nodes in what is mounted, or where something is mounted.
        devices.retain(|device| !spec.mounts.iter().any(|mount| device.path.starts_with(&mount.target)));
        linux.insert("devices".to_owned(), json!(devices));
    }
    config
}

/// Gives variables a HOME where they have none, or an empty one. The container library would ask the C library for it,
/// inside of the container and with all of a supervisor's privileges: the image's `nsswitch.conf` would say what code
/// is loaded for that (X6).
pub fn ensure_home(env: &mut Vec<String>) {
    env.retain(|pair| pair != "HOME=");
    if !env.iter().any(|pair| pair.starts_with("HOME=")) {
        env.push("HOME=/".to_owned());
    }
}

/// Lowering one's score needs CAP_SYS_RESOURCE: without it, the nearest that is allowed.
fn oom_score_adj(asked: i32, own: &Own) -> i32 {
    let asked = asked.clamp(-1000, 1000);
    if own.capabilities.contains("SYS_RESOURCE") { asked } else { asked.max(own.oom_score_adj) }
}

/// What the container's processes may do: names without `CAP_`. They are not in [`config`]: the supervisor drops the
/// others by itself.
pub fn capabilities(spec: &ContainerSpec, cgroups: &Cgroups, own: &Own) -> BTreeSet<String> {
    let plain = |name: &String| name.trim_start_matches("CAP_").to_ascii_uppercase();
    let add: BTreeSet<String> = spec.capabilities_add.iter().map(plain).collect();
    let drop: BTreeSet<String> = spec.capabilities_drop.iter().map(plain).collect();
    let mut set: BTreeSet<String> = if spec.privileged {
        CAPABILITIES.iter().map(|name| (*name).to_owned()).collect()
    } else {
        // Differs: where no controller guards devices (the filter for cgroup v2 is a BPF program that this build does
        // not have), making device nodes would open the node's disks to the container.
        let guarded = cgroups.has("devices");
        DEFAULT_CAPABILITIES.iter().filter(|name| guarded || **name != "MKNOD").map(|name| (*name).to_owned()).collect()
    };
    if !spec.privileged {
        if add.contains("ALL") {
            set.extend(CAPABILITIES.iter().map(|name| (*name).to_owned()));
        }
        if drop.contains("ALL") {
            set.clear();
        }
        set.extend(add.into_iter().filter(|name| name != "ALL"));
        set.retain(|name| !drop.contains(name));
    }
    set.into_iter().filter(|name| own.capabilities.contains(name.as_str())).collect()
}

/// A bit for each.
pub fn capability_mask(names: &BTreeSet<String>) -> u64 {
    let known = CAPABILITIES.iter().enumerate().filter(|(_, name)| names.contains(**name));
    known.fold(0, |mask, (bit, _)| mask | 1 << bit)
}

fn namespace_list(namespaces: &Namespaces, cgroups: &Cgroups) -> Vec<Value> {
    let mut list = vec![json!({ "type": "mount" })];
    for (kind, path) in [("network", &namespaces.net), ("ipc", &namespaces.ipc), ("uts", &namespaces.uts)] {
        if let Some(path) = path {
            list.push(json!({ "type": kind, "path": path }));
        }
    }
    match &namespaces.pid {
        Some(path) => list.push(json!({ "type": "pid", "path": path })),
        None if namespaces.host_pid => (),
        None => list.push(json!({ "type": "pid" })),
    }
    if cgroups.is_v2() {
        list.push(json!({ "type": "cgroup" }));
    }
    list
}

/// `views` are the container's v1 groups. The library would mount them writable.
fn mounts(spec: &ContainerSpec, namespaces: &Namespaces, views: &[(String, PathBuf)]) -> Vec<Value> {
    let sys_mode = if spec.privileged { "rw" } else { "ro" };
    let mut list = vec![
        json!({ "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] }),
        json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] }),
        json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] }),
        json!({ "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
            "options": ["nosuid", "noexec", "nodev"] }),
        json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", sys_mode] }),
        json!({ "destination": "/dev/shm", "type": "bind", "source": namespaces.shm,
            "options": ["rbind", "nosuid", "nodev", "noexec", "rw"] }),
    ];
    list.extend(cgroup_mounts(views, sys_mode));
    let is_late = is_late(spec);
    let asked: Vec<&Mount> = outermost_first(spec).into_iter().filter(|mount| !is_late(mount)).collect();
    let is_replaced = |default: &Value| {
        let destination = default.get("destination").and_then(Value::as_str).unwrap_or_default();
        asked.iter().any(|mount| mount.target.trim_end_matches('/') == destination)
    };
    list.retain(|default| !is_replaced(default));
    list.extend(asked.into_iter().map(bind_mount));
    list
}

/// A mount must not hide one below it.
fn outermost_first(spec: &ContainerSpec) -> Vec<&Mount> {
    let mut mounts: Vec<&Mount> = spec.mounts.iter().collect();
    mounts.sort_by_key(|mount| mount.target.split('/').filter(|part| !part.is_empty()).count());
    mounts
}

/// What is mounted at the container's /dev by its supervisor, outermost first: the library would make its nodes in
/// that.
pub fn late_mounts(spec: &ContainerSpec) -> Vec<Mount> {
    let is_late = is_late(spec);
    outermost_first(spec).into_iter().filter(|mount| is_late(mount)).cloned().collect()
}

/// What is mounted at /dev, with all that is below it then; else only what takes the place of a node that every
/// container gets.
fn is_late(spec: &ContainerSpec) -> impl Fn(&Mount) -> bool + use<> {
    let inside = |mount: &Mount| Path::new(&mount.target).strip_prefix("/dev").ok().map(Path::to_owned);
    let is_replaced = spec.mounts.iter().filter_map(inside).any(|path| path.as_os_str().is_empty());
    move |mount| inside(mount).is_some_and(|path| is_replaced || OWN_NODES.iter().any(|node| Path::new(node) == path))
}

/// On v1 each of the container's own groups, bound; on v2 (and for privileged containers) the library's way.
fn cgroup_mounts(views: &[(String, PathBuf)], mode: &str) -> Vec<Value> {
    let mut options = vec!["nosuid", "noexec", "nodev"];
    if views.is_empty() {
        options.extend(["relatime", mode]);
        return vec![json!({ "destination": CGROUP_VIEW, "type": "cgroup", "source": "cgroup", "options": options })];
    }
    options.push("mode=755");
    let mut all = vec![json!({ "destination": CGROUP_VIEW, "type": "tmpfs", "source": "tmpfs", "options": options })];
    for (controller, folder) in views {
        all.push(json!({ "destination": format!("{CGROUP_VIEW}/{controller}"), "type": "bind", "source": folder,
            "options": ["bind", "nosuid", "noexec", "nodev", "ro"] }));
    }
    all
}

fn bind_mount(mount: &Mount) -> Value {
    let propagation = mount.propagation.option();
    let mode = match (mount.read_only, mount.recursive_read_only) {
        (true, true) => "rro",
        (true, false) => "ro",
        (false, _) => "rw",
    };
    json!({ "destination": mount.target, "type": "bind", "source": mount.source,
        "options": ["rbind", propagation, mode] })
}

fn root_propagation(spec: &ContainerSpec) -> &'static str {
    if spec.mounts.iter().any(|mount| mount.propagation == MountPropagation::Bidirectional) {
        "shared"
    } else {
        "slave"
    }
}

/// A CPU request as the kernel's shares.
pub(crate) fn cpu_shares(milli: Option<u64>) -> u64 {
    milli.map_or(2, |milli| (milli.saturating_mul(1024) / 1000).clamp(2, 262_144))
}

/// A CPU limit as microseconds in each [`CPU_PERIOD`].
pub(crate) fn cpu_quota(milli: Option<u64>) -> Option<u64> {
    milli.filter(|limit| *limit > 0).map(|limit| (limit.saturating_mul(CPU_PERIOD) / 1000).max(MIN_CPU_QUOTA))
}

/// Limits, as far as the machine has the controllers: the container library takes a missing one for an error.
fn resources(spec: &ContainerSpec, cgroups: &Cgroups) -> Value {
    let mut resources = serde_json::Map::new();
    if cgroups.has("devices") || cgroups.is_v2() {
        let mut rules = vec![json!({ "allow": spec.privileged, "access": "rwm" })];
        // Exactly these, by number: the next loop device is another volume's (X6).
        rules.extend(spec.devices.iter().filter(|_| !spec.privileged).map(|device| {
            json!({ "allow": true, "type": "b", "major": device.major, "minor": device.minor,
                "access": if device.read_only { "r" } else { "rwm" } })
        }));
        resources.insert("devices".to_owned(), json!(rules));
    }
    if cgroups.has("cpu") {
        let mut cpu = json!({ "shares": cpu_shares(spec.cpu_request_milli) });
        if let (Some(quota), Some(cpu)) = (cpu_quota(spec.cpu_limit_milli), cpu.as_object_mut()) {
            cpu.insert("quota".to_owned(), json!(quota));
            cpu.insert("period".to_owned(), json!(CPU_PERIOD));
        }
        resources.insert("cpu".to_owned(), cpu);
    }
    if let Some(limit) = spec.memory_limit.filter(|limit| *limit > 0 && cgroups.has("memory")) {
        resources.insert("memory".to_owned(), json!({ "limit": limit }));
    }
    if let Some(limit) = spec.pids_limit.filter(|limit| *limit > 0 && cgroups.has("pids")) {
        resources.insert("pids".to_owned(), json!({ "limit": limit }));
    }
    Value::Object(resources)
}

/// Nodes and links in /dev that every container gets.
const OWN_NODES: [&str; 9] = ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "console", "core"];

/// A device, as the specification has it.
#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    path: PathBuf,
    #[serde(rename = "type")]
    kind: &'static str,
    major: u32,
    minor: u32,
    file_mode: u32,
    uid: u32,
    gid: u32,
}

/// The node's devices, for a privileged container.
fn host_devices(dev: &Path) -> Vec<Device> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    /// Folders of /dev that the container has of its own.
    const OWN_FOLDERS: [&str; 5] = ["pts", "shm", "mqueue", "fd", "hugepages"];
    let mut devices = Vec::new();
    let mut folders = vec![dev.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let Ok(metadata) = entry.metadata() else { continue };
            let kind = metadata.file_type();
            let name = name.to_string_lossy();
            if kind.is_dir() {
                if !OWN_FOLDERS.contains(&name.as_ref()) && path.components().count() < 6 {
                    folders.push(path);
                }
            } else if (kind.is_char_device() || kind.is_block_device()) && !OWN_NODES.contains(&name.as_ref()) {
                devices.push(Device {
                    path,
                    kind: if kind.is_char_device() { "c" } else { "b" },
                    major: libc::major(metadata.rdev()),
                    minor: libc::minor(metadata.rdev()),
                    file_mode: metadata.mode() & 0o777,
                    uid: metadata.uid(),
                    gid: metadata.gid(),
                });
            }
        }
    }
    devices
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Own {
        Own {
            capabilities: CAPABILITIES.iter().copied().filter(|name| *name != "SYS_RESOURCE").collect(),
            oom_score_adj: 0,
        }
    }

    fn made(spec: &ContainerSpec) -> Value {
        config(spec, Path::new("/r"), &Namespaces::default(), &Cgroups::detect("t"), "p/c", &own())
    }

    #[test]
    fn capabilities_follow_add_and_drop_and_never_exceed_our_own() {
        let bounding = |add: &[&str], drop: &[&str], privileged: bool| {
            let spec = ContainerSpec {
                capabilities_add: add.iter().map(|name| (*name).to_owned()).collect(),
                capabilities_drop: drop.iter().map(|name| (*name).to_owned()).collect(),
                privileged,
                ..ContainerSpec::default()
            };
            capabilities(&spec, &Cgroups::detect("t"), &own())
        };
        assert_eq!(bounding(&["NET_BIND_SERVICE"], &["ALL"], false), BTreeSet::from(["NET_BIND_SERVICE".to_owned()]));
        assert!(bounding(&["CAP_SYS_ADMIN"], &[], false).contains("SYS_ADMIN"));
        assert!(!bounding(&[], &["net_raw"], false).contains("NET_RAW"));
        assert_eq!(bounding(&["ALL"], &[], false).len(), CAPABILITIES.len() - 1);
        assert!(!bounding(&[], &[], true).contains("SYS_RESOURCE"));
        assert_eq!(
            capability_mask(&BTreeSet::from(["CHOWN".to_owned(), "CHECKPOINT_RESTORE".to_owned()])),
            1 << 40 | 1
        );
    }

    #[test]
    fn the_oom_score_is_never_below_what_we_may_set() {
        let score = |asked| {
            made(&ContainerSpec { oom_score_adj: asked, ..ContainerSpec::default() })
                .pointer("/process/oomScoreAdj")
                .cloned()
        };
        assert_eq!((score(-997), score(1000)), (Some(json!(0)), Some(json!(1000))));
    }

    #[test]
    fn x6_a_container_gets_its_block_devices_and_none_beside_them() {
        let devices = vec![
            crate::BlockDevice { major: 7, minor: 3, read_only: false },
            crate::BlockDevice { major: 8, minor: 16, read_only: true },
        ];
        let spec = ContainerSpec { devices, ..ContainerSpec::default() };
        let cgroups = Cgroups::detect("t");
        if !cgroups.has("devices") && !cgroups.is_v2() {
            return;
        }
        let rules = made(&spec).pointer("/linux/resources/devices").cloned();
        let device = |major, minor, access| json!({ "allow": true, "type": "b", "major": major, "minor": minor, "access": access });
        let none = json!({ "allow": false, "access": "rwm" });
        assert_eq!(rules, Some(json!([none, device(7, 3, "rwm"), device(8, 16, "r")])));
    }

    #[test]
    fn a_volume_may_replace_dev_shm_and_outer_mounts_come_first() {
        let mount = |target: &str| Mount { source: "/x".into(), target: target.to_owned(), ..Mount::default() };
        let spec = ContainerSpec {
            mounts: vec![mount("/a/b/c"), mount("/a"), mount("/dev/shm/")],
            ..ContainerSpec::default()
        };
        let config = made(&spec);
        let targets: Vec<&str> =
            config["mounts"].as_array().unwrap().iter().map(|mount| mount["destination"].as_str().unwrap()).collect();
        assert_eq!(&targets[targets.len() - 3..], ["/a", "/dev/shm/", "/a/b/c"]);
        assert_eq!(targets.iter().filter(|target| target.starts_with("/dev/shm")).count(), 1);
    }

    #[test]
    fn x6_what_is_mounted_at_dev_is_not_what_the_library_makes_its_nodes_in() {
        let mount = |target: &str| Mount { source: "/x".into(), target: target.to_owned(), ..Mount::default() };
        let split = |targets: &[&str]| {
            let mounts = targets.iter().map(|target| mount(target)).collect();
            let spec = ContainerSpec { mounts, privileged: true, ..ContainerSpec::default() };
            let late: Vec<String> = late_mounts(&spec).into_iter().map(|mount| mount.target).collect();
            let made = made(&spec);
            let bound = made["mounts"].as_array().unwrap().iter().filter(|mount| mount["source"] == "/x");
            let bound: Vec<String> = bound.map(|mount| mount["destination"].as_str().unwrap().to_owned()).collect();
            let own = made["mounts"].as_array().unwrap().iter().any(|mount| mount["source"] == "tmpfs");
            let devices = made["linux"]["devices"].as_array().unwrap().len();
            (late.join(" "), bound.join(" "), own, devices == 0)
        };
        let text = |late: &str, bound: &str, no_devices| (late.to_owned(), bound.to_owned(), true, no_devices);
        assert_eq!(split(&["/dev/log/x", "/dev/", "/a", "/device"]), text("/dev/ /dev/log/x", "/a /device", true));
        assert!(!split(&["/dev/shm", "/dev/log"]).3 && split(&["/dev/shm", "/dev/log"]).0.is_empty());
        assert_eq!(split(&["/dev/null", "/dev/nullx"]).0, "/dev/null");
    }
}
