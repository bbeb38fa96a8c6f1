//! Control groups, v1 (also beside an empty v2 tree) and v2: where a container's group is, who is in it, what it used,
//! and its end. Limits are written by the container library from the OCI spec; this module says which it may ask for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::oci::{CPU_PERIOD, cpu_quota, cpu_shares};
use crate::shim::process;
use crate::{ContainerStats, Limits};

/// Where the kernel's control groups are mounted, by convention of every distribution and of the container library.
const MOUNT: &str = "/sys/fs/cgroup";

/// `statfs` type of a v2 tree.
const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;

/// A group is killed again until it is empty, because its processes may fork meanwhile: at most so often.
const KILL_ROUNDS: usize = 64;

/// The v1 controllers in which the container library makes a group for each container.
const LIBRARY_CONTROLLERS: [&str; 12] = [
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
];

/// Groups are `<QoS class>/pod<uid>/<container>` below the instance's root.
const MAX_DEPTH: usize = 3;

/// CPU time is told in hundredths of a second by v1, on every machine that Linux runs on today.
const TICK_NANOS: u64 = 10_000_000;

/// How long killed processes may take to go.
const KILL_WAIT: Duration = Duration::from_secs(10);

/// The controllers of this machine and the instance's own root below each.
#[derive(Clone, Debug)]
pub struct Cgroups {
    trees: Trees,
    root: String,
}

#[derive(Clone, Debug)]
enum Trees {
    /// Controller (or `name=systemd`) to mount point; several controllers may share one.
    V1(BTreeMap<String, PathBuf>),
    V2(PathBuf, BTreeSet<String>),
    /// Nothing is mounted: containers run without limits.
    None,
}

impl Cgroups {
    /// Looks at what is mounted. `root` is the instance's own group, one path element.
    pub fn detect(root: &str) -> Cgroups {
        Cgroups { trees: detect_trees(), root: root.trim_matches('/').to_owned() }
    }

    /// True where limits of this kind (`cpu`, `memory`, `pids`, `devices`) can be set.
    pub fn has(&self, controller: &str) -> bool {
        match &self.trees {
            Trees::V1(mounts) => mounts.contains_key(controller),
            Trees::V2(_, controllers) => controllers.contains(controller),
            Trees::None => false,
        }
    }

    /// True on a machine with the unified tree only.
    pub fn is_v2(&self) -> bool {
        matches!(self.trees, Trees::V2(..))
    }

    /// The group's name as the OCI spec wants it: `/<root>/<relative>`.
    pub fn name(&self, relative: &str) -> String {
        match relative.trim_matches('/') {
            "" => format!("/{}", self.root),
            relative => format!("/{}/{relative}", self.root),
        }
    }

    /// The group's folder per controller, as the container library makes them: what a container is shown of v1. Empty
    /// on v2, where a namespace of its own hides all else.
    pub fn v1_views(&self, relative: &str) -> Vec<(String, PathBuf)> {
        let Trees::V1(mounts) = &self.trees else { return Vec::new() };
        let name = self.name(relative);
        let below = name.trim_start_matches('/');
        let known = mounts.iter().filter(|(controller, _)| LIBRARY_CONTROLLERS.contains(&controller.as_str()));
        known.map(|(controller, mount)| (controller.clone(), mount.join(below))).collect()
    }

    /// Finds a group by its last path element, below the instance's root.
    pub fn find(&self, name: &str) -> Option<String> {
        let mut open: Vec<String> = vec![String::new()];
        while let Some(relative) = open.pop() {
            for folder in self.folders(&relative) {
                for child in child_folders(&folder) {
                    let Some(last) = child.file_name().and_then(|last| last.to_str()) else { continue };
                    let path = format!("{relative}/{last}").trim_start_matches('/').to_owned();
                    if last == name {
                        return Some(path);
                    }
                    // What a container made below its own is not looked at.
                    if path.split('/').count() < MAX_DEPTH && !open.contains(&path) {
                        open.push(path);
                    }
                }
            }
        }
        None
    }

    /// The group's folder in each tree.
    fn folders(&self, relative: &str) -> Vec<PathBuf> {
        let name = self.name(relative);
        let below = name.trim_start_matches('/');
        match &self.trees {
            Trees::V1(mounts) => {
                mounts.values().collect::<BTreeSet<_>>().into_iter().map(|mount| mount.join(below)).collect()
            }
            Trees::V2(mount, _) => vec![mount.join(below)],
            Trees::None => Vec::new(),
        }
    }

    fn folder(&self, controller: &str, relative: &str) -> Option<PathBuf> {
        let below = self.name(relative);
        match &self.trees {
            Trees::V1(mounts) => mounts.get(controller).map(|mount| mount.join(below.trim_start_matches('/'))),
            Trees::V2(mount, _) => Some(mount.join(below.trim_start_matches('/'))),
            Trees::None => None,
        }
    }

    /// Moves a supervisor out of the service's own group, so that stopping the service (systemd kills by group) leaves
    /// containers alone. Best effort: where it fails, containers merely stop together with the service.
    pub fn adopt_supervisor(&self, pid: u32) {
        let Some(folder) = (match &self.trees {
            Trees::V1(mounts) => mounts.get("name=systemd").map(|mount| mount.join(&self.root)),
            Trees::V2(mount, _) => Some(mount.join(&self.root).join("supervisors")),
            Trees::None => None,
        }) else {
            return;
        };
        if fs::create_dir_all(&folder).is_ok() {
            let _ = fs::write(folder.join("cgroup.procs"), pid.to_string());
        }
    }

    /// Moves this process into a group of its own, with at most so much memory (bytes), in which no other can begin.
    ///
    /// # Errors
    /// The kernel's.
    pub fn enter_alone(&self, relative: &str, memory: u64) -> io::Result<()> {
        const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
        let folders: BTreeSet<PathBuf> = match &self.trees {
            Trees::None => return Ok(()),
            Trees::V1(mounts) => {
                self.adopt_supervisor(0);
                let known = CONTROLLERS.into_iter().filter(|controller| mounts.contains_key(*controller));
                known.filter_map(|controller| self.folder(controller, relative)).collect()
            }
            Trees::V2(mount, _) => {
                self.v2_make(mount, relative, CONTROLLERS.into_iter())?;
                self.folder("", relative).into_iter().collect()
            }
        };
        folders.iter().try_for_each(fs::create_dir_all)?;
        self.resize(relative, Limits { memory_limit: Some(memory), ..Limits::default() })?;
        if self.has("pids")
            && let Some(folder) = self.folder("pids", relative)
        {
            fs::write(folder.join("pids.max"), "1")?;
        }
        // 0 is who writes it: a process's own number is another one here where its PID namespace is its own.
        folders.iter().try_for_each(|folder| fs::write(folder.join("cgroup.procs"), "0"))
    }

    /// All processes in the group and below it.
    pub fn processes(&self, relative: &str) -> BTreeSet<i32> {
        let mut pids = BTreeSet::new();
        for folder in self.folders(relative) {
            collect_processes(&folder, &mut pids);
        }
        pids
    }

    /// Makes the group in each tree that the container library uses, as it would, for what is not to be made with the
    /// library's file system identity.
    ///
    /// # Errors
    /// The kernel's.
    pub fn make(&self, relative: &str) -> io::Result<()> {
        match &self.trees {
            Trees::V1(_) => self.v1_views(relative).into_iter().try_for_each(|(_, folder)| fs::create_dir_all(folder)),
            // The files of a controller belong to who enables it.
            Trees::V2(mount, controllers) => self.v2_make(mount, relative, controllers.iter().map(String::as_str)),
            Trees::None => Ok(()),
        }
    }

    /// Makes the group and those above it. A group has the files of the controllers that the one above it hands down:
    /// best effort, as the container library does it.
    fn v2_make<'a>(
        &self,
        mount: &Path,
        relative: &str,
        controllers: impl Iterator<Item = &'a str> + Clone,
    ) -> io::Result<()> {
        let mut folder = mount.to_owned();
        for part in self.name(relative).split('/').filter(|part| !part.is_empty()) {
            for controller in controllers.clone() {
                let _ = fs::write(folder.join("cgroup.subtree_control"), format!("+{controller}"));
            }
            folder.push(part);
            fs::create_dir_all(&folder)?;
        }
        Ok(())
    }

    /// Lets frozen processes go on: whoever froze them (a container of its own, where it may write its groups), a
    /// frozen process does not take a signal.
    fn thaw(&self, relative: &str) {
        let (controller, file, value) =
            if self.is_v2() { ("", "cgroup.freeze", "0") } else { ("freezer", "freezer.state", "THAWED") };
        let Some(folder) = self.folder(controller, relative) else { return };
        let mut open = vec![folder];
        while let Some(folder) = open.pop() {
            let _ = fs::write(folder.join(file), value);
            open.extend(child_folders(&folder));
        }
    }

    /// Sends SIGKILL to every process in the group and below, until none is left that could fork. Frozen ones are
    /// thawed.
    pub fn kill(&self, relative: &str) {
        self.thaw(relative);
        if let Trees::V2(mount, _) = &self.trees {
            let file = mount.join(self.name(relative).trim_start_matches('/')).join("cgroup.kill");
            if fs::write(file, "1").is_ok() {
                return;
            }
        }
        let mut killed = BTreeSet::new();
        for _ in 0..KILL_ROUNDS {
            let fresh: Vec<i32> = self.processes(relative).difference(&killed).copied().collect();
            if fresh.is_empty() {
                return;
            }
            for pid in fresh {
                // SAFETY: kill has no memory effects; the pid was read from the group a moment ago.
                unsafe { libc::kill(pid, libc::SIGKILL) };
                killed.insert(pid);
            }
            // One that was frozen again meanwhile.
            self.thaw(relative);
        }
    }

    /// Like [`Cgroups::kill`], and waits until they are gone. False where one was not within the time (a process in an
    /// unfinished disk request ends only with it). Blocking.
    pub fn kill_and_wait(&self, relative: &str) -> bool {
        let until = Instant::now() + KILL_WAIT;
        loop {
            let pids = self.processes(relative);
            if pids.is_empty() {
                return true;
            }
            let watched: Vec<OwnedFd> = pids.iter().filter_map(|pid| process::pidfd_open(*pid).ok()).collect();
            self.kill(relative);
            for pidfd in watched {
                let left = until.saturating_duration_since(Instant::now());
                let mut polled = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
                // SAFETY: one valid entry.
                if left.is_zero() || unsafe { libc::poll(&mut polled, 1, left.as_millis() as i32) } == 0 {
                    return false;
                }
            }
        }
    }

    /// Removes the group and all below it. Groups with living processes stay, and the error says so.
    pub fn remove(&self, relative: &str) -> io::Result<()> {
        let mut first_error = Ok(());
        for folder in self.folders(relative) {
            if let Err(error) = remove_tree(&folder)
                && first_error.is_ok()
            {
                first_error = Err(error);
            }
        }
        first_error
    }

    /// Keeps containers, all together, from taking every process number of the machine (X6): an eighth is left to
    /// others, so that a fork bomb does not stop the host. Best effort: without the controller there is no such limit.
    pub fn leave_processes_to_others(&self) {
        let Some(most) = most_processes() else { return };
        let Some(folder) = self.folder("pids", "") else { return };
        if fs::create_dir_all(&folder).and_then(|()| fs::write(folder.join("pids.max"), most.to_string())).is_err()
            && self.has("pids")
        {
            tracing::warn!(most, "the number of the containers' processes could not be limited");
        }
    }

    /// Takes from a container what the container library allows to all: the way to make network interfaces, and the
    /// machine's console. On v2 devices are not guarded by groups.
    ///
    /// # Errors
    /// The kernel's.
    pub fn deny_devices(&self, relative: &str) -> io::Result<()> {
        /// `/dev/net/tun` and `/dev/console`.
        const DENIED: [&str; 2] = ["c 10:200 rw", "c 5:1 rw"];
        let Trees::V1(mounts) = &self.trees else { return Ok(()) };
        if !mounts.contains_key("devices") {
            return Ok(());
        }
        let Some(folder) = self.folder("devices", relative) else { return Ok(()) };
        DENIED.iter().try_for_each(|device| fs::write(folder.join("devices.deny"), device))
    }

    /// How many processes of the group the kernel killed for want of memory.
    pub fn oom_kills(&self, relative: &str) -> u64 {
        let Some(folder) = self.folder("memory", relative) else { return 0 };
        let file = if self.is_v2() { "memory.events" } else { "memory.oom_control" };
        fs::read_to_string(folder.join(file)).ok().and_then(|text| flat_value(&text, "oom_kill")).unwrap_or(0)
    }

    /// Makes a pod's group with limits that its containers share; nothing where it has none.
    ///
    /// # Errors
    /// The kernel's.
    pub fn limit_pod(&self, relative: &str, limits: Limits) -> io::Result<()> {
        if limits == Limits::default() {
            return Ok(());
        }
        match &self.trees {
            Trees::None => return Ok(()),
            Trees::V1(mounts) => {
                let folders = ["cpu", "memory"].into_iter().filter(|controller| mounts.contains_key(*controller));
                folders.filter_map(|controller| self.folder(controller, relative)).try_for_each(fs::create_dir_all)?;
            }
            Trees::V2(mount, _) => self.v2_make(mount, relative, ["cpu", "memory"].into_iter())?,
        }
        self.resize(relative, limits)
    }

    /// Sets other limits. What the machine has no controller for is not limited, as at the start.
    pub fn resize(&self, relative: &str, limits: Limits) -> io::Result<()> {
        let (shares, quota) = (cpu_shares(limits.cpu_request_milli), cpu_quota(limits.cpu_limit_milli));
        let memory = limits.memory_limit.filter(|limit| *limit > 0);
        let none = |value: Option<u64>, none: &str| value.map_or_else(|| none.to_owned(), |value| value.to_string());
        let writes = match (&self.trees, self.is_v2()) {
            (Trees::None, _) => return Ok(()),
            // As the container library converts shares into a weight.
            (_, true) => vec![
                ("cpu", "cpu.weight", (1 + ((shares - 2) * 9999) / 262_142).to_string()),
                ("cpu", "cpu.max", format!("{} {CPU_PERIOD}", none(quota, "max"))),
                ("memory", "memory.max", none(memory, "max")),
            ],
            (_, false) => vec![
                ("cpu", "cpu.shares", shares.to_string()),
                ("cpu", "cpu.cfs_period_us", CPU_PERIOD.to_string()),
                ("cpu", "cpu.cfs_quota_us", none(quota, "-1")),
                ("memory", "memory.limit_in_bytes", none(memory, "-1")),
            ],
        };
        for (controller, file, value) in writes {
            if self.has(controller)
                && let Some(folder) = self.folder(controller, relative)
            {
                fs::write(folder.join(file), &value)
                    .map_err(|error| io::Error::new(error.kind(), format!("{file}: {value}: {error}")))?;
            }
        }
        Ok(())
    }

    /// What the group uses. Zeros where a controller is missing. Each file is read once.
    pub fn stats(&self, relative: &str) -> ContainerStats {
        let read = |controller: &str, file: &str| -> String {
            let folder = self.folder(controller, relative);
            folder.and_then(|folder| fs::read_to_string(folder.join(file)).ok()).unwrap_or_default()
        };
        let mut stats = if self.is_v2() { v2_stats(&read) } else { v1_stats(&read) };
        stats.pids = whole(&read("pids", "pids.current"));
        stats
    }
}

/// The number that a file is. `max`, and what is no number, is 0.
fn whole(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

fn v2_stats(read: &dyn Fn(&str, &str) -> String) -> ContainerStats {
    let (cpu, memory) = (read("cpu", "cpu.stat"), read("memory", "memory.stat"));
    let (events, io) = (read("memory", "memory.events"), read("io", "io.stat"));
    let nanos = |key: &str| flat_value(&cpu, key).unwrap_or(0).saturating_mul(1000);
    let of = |key: &str| flat_value(&memory, key).unwrap_or(0);
    // `8:0 rbytes=1 wbytes=2 rios=3 wios=4 …`
    let device_sum = |key: &str| -> u64 {
        let words = io.lines().flat_map(str::split_whitespace);
        words
            .filter_map(|word| word.strip_prefix(key)?.strip_prefix('=')?.parse::<u64>().ok())
            .fold(0, u64::saturating_add)
    };
    let memory_usage_bytes = whole(&read("memory", "memory.current"));
    ContainerStats {
        cpu_usage_nanos: nanos("usage_usec"),
        cpu_user_nanos: nanos("user_usec"),
        cpu_system_nanos: nanos("system_usec"),
        cpu_periods: flat_value(&cpu, "nr_periods").unwrap_or(0),
        cpu_throttled_periods: flat_value(&cpu, "nr_throttled").unwrap_or(0),
        cpu_throttled_nanos: nanos("throttled_usec"),
        memory_usage_bytes,
        memory_working_set_bytes: memory_usage_bytes.saturating_sub(of("inactive_file")),
        memory_rss_bytes: of("anon"),
        memory_cache_bytes: of("file"),
        memory_mapped_bytes: of("file_mapped"),
        memory_swap_bytes: whole(&read("memory", "memory.swap.current")),
        memory_peak_bytes: whole(&read("memory", "memory.peak")),
        memory_limit_bytes: whole(&read("memory", "memory.max")),
        memory_limit_hits: flat_value(&events, "max").unwrap_or(0),
        oom_kills: flat_value(&events, "oom_kill").unwrap_or(0),
        page_faults: of("pgfault"),
        major_page_faults: of("pgmajfault"),
        read_bytes: device_sum("rbytes"),
        written_bytes: device_sum("wbytes"),
        reads: device_sum("rios"),
        writes: device_sum("wios"),
        pids: 0,
    }
}

fn v1_stats(read: &dyn Fn(&str, &str) -> String) -> ContainerStats {
    /// What the kernel says of a group without a limit, less than one page.
    const NO_LIMIT: u64 = 1 << 62;
    let (ticks, cpu, memory) =
        (read("cpuacct", "cpuacct.stat"), read("cpu", "cpu.stat"), read("memory", "memory.stat"));
    let nanos = |key: &str| flat_value(&ticks, key).unwrap_or(0).saturating_mul(TICK_NANOS);
    let of = |key: &str| flat_value(&memory, key).unwrap_or(0);
    let bytes = read("blkio", "blkio.throttle.io_service_bytes_recursive");
    let operations = read("blkio", "blkio.throttle.io_serviced_recursive");
    // `8:0 Read 1`; the sum of all devices is a line of its own, without the direction.
    let device_sum = |text: &str, direction: &str| -> u64 {
        let words = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let numbers =
            words.filter(|words| words.get(1) == Some(&direction)).filter_map(|words| words.get(2)?.parse().ok());
        numbers.fold(0, u64::saturating_add)
    };
    let memory_usage_bytes = whole(&read("memory", "memory.usage_in_bytes"));
    ContainerStats {
        cpu_usage_nanos: whole(&read("cpuacct", "cpuacct.usage")),
        cpu_user_nanos: nanos("user"),
        cpu_system_nanos: nanos("system"),
        cpu_periods: flat_value(&cpu, "nr_periods").unwrap_or(0),
        cpu_throttled_periods: flat_value(&cpu, "nr_throttled").unwrap_or(0),
        cpu_throttled_nanos: flat_value(&cpu, "throttled_time").unwrap_or(0),
        memory_usage_bytes,
        memory_working_set_bytes: memory_usage_bytes.saturating_sub(of("total_inactive_file")),
        memory_rss_bytes: of("total_rss"),
        memory_cache_bytes: of("total_cache"),
        memory_mapped_bytes: of("total_mapped_file"),
        memory_swap_bytes: of("total_swap"),
        memory_peak_bytes: whole(&read("memory", "memory.max_usage_in_bytes")),
        memory_limit_bytes: Some(whole(&read("memory", "memory.limit_in_bytes")))
            .filter(|most| *most < NO_LIMIT)
            .unwrap_or(0),
        memory_limit_hits: whole(&read("memory", "memory.failcnt")),
        oom_kills: flat_value(&read("memory", "memory.oom_control"), "oom_kill").unwrap_or(0),
        page_faults: of("total_pgfault"),
        major_page_faults: of("total_pgmajfault"),
        read_bytes: device_sum(&bytes, "Read"),
        written_bytes: device_sum(&bytes, "Write"),
        reads: device_sum(&operations, "Read"),
        writes: device_sum(&operations, "Write"),
        pids: 0,
    }
}

fn detect_trees() -> Trees {
    if let Ok(stat) = nix::sys::statfs::statfs(MOUNT)
        && stat.filesystem_type().0 == CGROUP2_SUPER_MAGIC
    {
        let controllers = fs::read_to_string(Path::new(MOUNT).join("cgroup.controllers")).unwrap_or_default();
        return Trees::V2(PathBuf::from(MOUNT), controllers.split_whitespace().map(str::to_owned).collect());
    }
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounts = parse_v1_mounts(&mountinfo);
    if mounts.is_empty() { Trees::None } else { Trees::V1(mounts) }
}

/// Lines such as `31 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct`.
fn parse_v1_mounts(mountinfo: &str) -> BTreeMap<String, PathBuf> {
    let mut mounts = BTreeMap::new();
    for line in mountinfo.lines() {
        let Some((point, kind)) = line.split_once(" - ") else { continue };
        let mut kind = kind.split(' ');
        if kind.next() != Some("cgroup") {
            continue;
        }
        let (Some(mount), Some(options)) = (point.split(' ').nth(4), kind.nth(1)) else { continue };
        for option in options.split(',').filter(|option| !matches!(*option, "rw" | "ro" | "xattr" | "clone_children")) {
            mounts.entry(option.to_owned()).or_insert_with(|| PathBuf::from(mount));
        }
    }
    mounts
}

/// The number after `key` in a file of lines `key number`.
fn flat_value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

fn collect_processes(folder: &Path, pids: &mut BTreeSet<i32>) {
    let Ok(text) = fs::read_to_string(folder.join("cgroup.procs")) else { return };
    pids.extend(text.lines().filter_map(|line| line.trim().parse::<i32>().ok()).filter(|pid| *pid > 1));
    for child in child_folders(folder) {
        collect_processes(&child, pids);
    }
}

fn child_folders(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn remove_tree(folder: &Path) -> io::Result<()> {
    for child in child_folders(folder) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// How many processes (threads too) all containers together may have; `None` where /proc does not say what there is.
fn most_processes() -> Option<u64> {
    let read =
        |name: &str| fs::read_to_string(Path::new("/proc/sys/kernel").join(name)).ok()?.trim().parse::<u64>().ok();
    let all = read("pid_max")?.min(read("threads-max")?);
    Some(all - all / 8)
}

/// How many of them one container may have where nothing else is said: half, so that it does not stop the others.
pub fn most_processes_of_one() -> Option<u64> {
    most_processes().map(|most| most / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v1_mounts_are_found_by_controller_also_where_two_share_one() {
        let mounts = parse_v1_mounts(
            "31 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
             32 25 0:28 / /sys/fs/cgroup/systemd rw shared:9 - cgroup cgroup rw,xattr,name=systemd\n\
             33 25 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\nnonsense\n - cgroup\n",
        );
        let names: Vec<&str> = mounts.keys().map(String::as_str).collect();
        assert_eq!(names, ["cpu", "cpuacct", "name=systemd"]);
        assert_eq!(mounts.get("cpuacct"), Some(&PathBuf::from("/sys/fs/cgroup/cpu,cpuacct")));
    }

    #[test]
    fn a_flat_file_gives_the_number_of_its_key_only() {
        let text = "oom 3\noom_kill 1\noom_group_kill 7\n";
        assert_eq!(
            (flat_value(text, "oom_kill"), flat_value(text, "oom"), flat_value(text, "kill")),
            (Some(1), Some(3), None)
        );
    }

    #[test]
    fn both_trees_say_the_same_of_a_group() {
        let v2 = |controller: &str, file: &str| -> String {
            match (controller, file) {
                ("cpu", "cpu.stat") => {
                    "usage_usec 9\nuser_usec 4\nsystem_usec 5\nnr_periods 3\nnr_throttled 2\n\
                    throttled_usec 7\n"
                }
                ("memory", "memory.stat") => {
                    "anon 10\nfile 20\nfile_mapped 5\ninactive_file 8\npgfault 6\n\
                    pgmajfault 1\n"
                }
                ("memory", "memory.current") => "40\n",
                ("memory", "memory.max") => "max\n",
                ("memory", "memory.events") => "low 0\nhigh 0\nmax 3\noom 1\noom_kill 2\n",
                ("io", "io.stat") => {
                    "8:0 rbytes=100 wbytes=200 rios=1 wios=2 dbytes=9 dios=9\n8:16 rbytes=1 wbytes=2\n"
                }
                _ => "",
            }
            .to_owned()
        };
        let v1 = |controller: &str, file: &str| -> String {
            match (controller, file) {
                ("cpuacct", "cpuacct.usage") => "9000\n",
                ("cpu", "cpu.stat") => "nr_periods 3\nnr_throttled 2\nthrottled_time 7000\n",
                ("memory", "memory.stat") => {
                    "rss 1\ntotal_rss 10\ntotal_cache 20\ntotal_mapped_file 5\n\
                    total_inactive_file 8\ntotal_pgfault 6\ntotal_pgmajfault 1\n"
                }
                ("memory", "memory.usage_in_bytes") => "40\n",
                ("memory", "memory.limit_in_bytes") => "9223372036854771712\n",
                ("memory", "memory.failcnt") => "3\n",
                ("memory", "memory.oom_control") => "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
                ("blkio", "blkio.throttle.io_service_bytes_recursive") => {
                    "8:0 Read 100\n8:0 Write 200\n8:16 Read 1\n8:16 Write 2\n8:0 Total 300\nTotal 303\n"
                }
                ("blkio", "blkio.throttle.io_serviced_recursive") => "8:0 Read 1\n8:0 Write 2\nTotal 3\n",
                _ => "",
            }
            .to_owned()
        };
        let (one, other) = (v2_stats(&v2), v1_stats(&v1));
        // Hundredths of a second are too coarse for what the other has here.
        assert_eq!(ContainerStats { cpu_user_nanos: 0, cpu_system_nanos: 0, ..one }, other);
        assert_eq!((one.cpu_user_nanos, one.memory_working_set_bytes, one.read_bytes), (4000, 32, 101));
        let ticks = |_: &str, file: &str| if file == "cpuacct.stat" { "user 2\nsystem 1\n" } else { "" }.to_owned();
        assert_eq!(v1_stats(&ticks).cpu_user_nanos, 2 * TICK_NANOS);
    }

    #[test]
    fn names_stay_below_the_instance() {
        let cgroups = Cgroups { trees: Trees::None, root: "mainstay".to_owned() };
        assert_eq!(cgroups.name("burstable/pod1/c"), "/mainstay/burstable/pod1/c");
        assert_eq!(cgroups.name(""), "/mainstay");
    }
}
