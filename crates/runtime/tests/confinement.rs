//! X2, X6, X8: what a container cannot do to its host, to its limits and to itself.

mod support;

/// The example that is executed as a supervisor.
const SUPERVISOR: &str = "shim";

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use mainstay_runtime::{ContainerSpec, ContainerState, ContainerStatus, ExecSpec, Mount, Runtime, SeccompProfile};
use support::World;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Nothing here takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

async fn ended(runtime: &Runtime, id: &str) -> ContainerStatus {
    let mut changes = runtime.subscribe();
    let wait = async {
        loop {
            let status = runtime.status(id).unwrap();
            if matches!(status.state, ContainerState::Exited { .. } | ContainerState::Unknown) {
                return status;
            }
            changes.recv().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap()
}

/// Runs a script in a running container: what it wrote.
async fn shell(runtime: &Runtime, id: &str, script: &str) -> String {
    let args = ["/bin/sh", "-c", script].map(str::to_owned);
    String::from_utf8(runtime.exec_probe(id, &args, PATIENCE).await.unwrap().1).unwrap()
}

/// A container that waits, with what `change` asks for.
fn waiting(world: &World, name: &str, change: impl FnOnce(&mut ContainerSpec)) -> ContainerSpec {
    let mut spec = world.script("p1", name, "exec sleep 1000");
    change(&mut spec);
    spec
}

const STATUS: &str = "grep -E '^(Seccomp|CapEff|CapBnd|NoNewPrivs):' /proc/self/status; grep Seccomp: /proc/1/status";
/// The default set: CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_RAW SYS_CHROOT
/// MKNOD AUDIT_WRITE SETFCAP.
const DEFAULT_CAPABILITIES: &str = "00000000a80425fb";

#[test]
fn x8_seccomp_is_in_force_for_the_container_and_for_what_is_executed_in_it() {
    let world = World::new("seccomp");
    let runtime = world.open();
    let root = world.dir.join("seccomp");
    std::fs::create_dir_all(&root).unwrap();
    let profile = r#"{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        { "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 } ] }"#;
    std::fs::write(root.join("own.json"), profile).unwrap();
    let local = |path: &str| SeccompProfile::Localhost { root: root.clone(), path: path.to_owned() };
    world.block_on(async {
        runtime.ensure_sandbox(&world.sandbox("p1")).await.unwrap();
        let start = async |spec: ContainerSpec| runtime.start_container(&spec).await.unwrap().id;
        let attempt = "unshare -U true && echo made || echo refused";

        let default = start(waiting(&world, "default", |spec| spec.no_new_privileges = false)).await;
        let status = shell(&runtime, &default, STATUS).await;
        let expected = format!(
            "CapEff:\t{DEFAULT_CAPABILITIES}\nCapBnd:\t{DEFAULT_CAPABILITIES}\nNoNewPrivs:\t0\nSeccomp:\t2\nSeccomp:\t2\n"
        );
        assert_eq!(status.replace("Seccomp_filters:\t1\n", ""), expected);
        assert!(shell(&runtime, &default, attempt).await.contains("refused"));

        let user = start(waiting(&world, "user", |spec| {
            (spec.user, spec.group, spec.no_new_privileges) = (Some(1000), Some(1000), true);
        }))
        .await;
        let status = shell(&runtime, &user, STATUS).await;
        let expected = format!(
            "CapEff:\t0000000000000000\nCapBnd:\t{DEFAULT_CAPABILITIES}\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp:\t2\n"
        );
        assert_eq!(status.replace("Seccomp_filters:\t1\n", ""), expected);
        assert!(shell(&runtime, &user, attempt).await.contains("refused"));

        let open = start(waiting(&world, "open", |spec| spec.seccomp = SeccompProfile::Unconfined)).await;
        assert!(shell(&runtime, &open, STATUS).await.ends_with("Seccomp:\t0\nSeccomp:\t0\n"));
        assert!(shell(&runtime, &open, attempt).await.contains("made"), "the attempt shows the filter, not the kernel");

        let privileged = start(waiting(&world, "privileged", |spec| spec.privileged = true)).await;
        assert!(shell(&runtime, &privileged, STATUS).await.ends_with("Seccomp:\t0\nSeccomp:\t0\n"));

        for no_new_privileges in [false, true] {
            let name = if no_new_privileges { "local-nnp" } else { "local" };
            let id = start(waiting(&world, name, |spec| {
                (spec.seccomp, spec.no_new_privileges) = (local("own.json"), no_new_privileges);
            }))
            .await;
            let output = shell(&runtime, &id, "mkdir /tmp/x 2>&1; /bin/busybox unshare -U true && echo made").await;
            assert!(output.contains("Function not implemented") && output.contains("made"), "{output}");
        }
        let missing = waiting(&world, "missing", |spec| spec.seccomp = local("no.json"));
        let error = runtime.start_container(&missing).await.unwrap_err().to_string();
        assert!(error.starts_with("cannot load seccomp profile \"no.json\": "), "{error}");
    });
}

/// What a container tries on its own control groups. Says what it managed.
const RAISE: &str = "cd /sys/fs/cgroup; for file in */memory.limit_in_bytes */freezer.state */pids.max */cgroup.procs \
    */cpu.cfs_quota_us */devices.allow cgroup.procs cgroup.freeze memory.max pids.max; do \
    if [ -e $file ]; then echo seen; (echo 1 > $file) 2>/dev/null && echo wrote $file; fi; done; \
    for dir in . */; do mkdir $dir/sub 2>/dev/null && echo made $dir; done; \
    mount -o remount,rw /sys/fs/cgroup 2>/dev/null && echo remounted; echo done";

fn tries_to_raise_its_limits(world: &World) {
    let runtime = world.open();
    world.block_on(async {
        runtime.ensure_sandbox(&world.sandbox("p1")).await.unwrap();
        let mut spec = world.script("p1", "main", RAISE);
        (spec.memory_limit, spec.pids_limit, spec.no_new_privileges) = (Some(64 << 20), Some(100), false);
        runtime.start_container(&spec).await.unwrap();
        ended(&runtime, &spec.id()).await;
        let log = world.log(&spec);
        let (last, all) = log.split_last().unwrap();
        assert_eq!(last, "stdout F done");
        assert!(!all.is_empty() && all.iter().all(|line| line == "stdout F seen"), "{log:?}");
    });
}

#[test]
fn x6_a_container_cannot_change_its_own_limits() {
    tries_to_raise_its_limits(&World::new("limits-of-its-own"));
}

#[test]
fn x6_a_container_cannot_change_its_own_limits_in_the_unified_tree() {
    tries_to_raise_its_limits(&World::with_cgroup2("limits-in-unified"));
}

/// X6: whoever froze it, a container that is told to stop stops.
#[test]
fn x6_a_frozen_container_is_thawed_to_be_killed() {
    let world = World::new("frozen");
    let runtime = world.open();
    world.block_on(async {
        runtime.ensure_sandbox(&world.sandbox("p1")).await.unwrap();
        let spec = waiting(&world, "main", |spec| spec.privileged = true);
        let id = runtime.start_container(&spec).await.unwrap().id;
        let file = freezer_of(&world, "sleep");
        std::fs::write(&file, "FROZEN").unwrap();
        while std::fs::read_to_string(&file).unwrap().trim() != "FROZEN" {
            std::fs::write(&file, "FROZEN").unwrap();
        }
        let killed = tokio::time::timeout(PATIENCE, runtime.kill_container(&id)).await.unwrap().unwrap();
        assert!(matches!(killed.state, ContainerState::Exited { code: 137, .. }), "{killed:?}");
    });
}

/// The freezer's file of the group that has a process of this name, once there is one: a container counts as started
/// before its shell has become what it executes.
fn freezer_of(world: &World, name: &str) -> std::path::PathBuf {
    let started = std::time::Instant::now();
    loop {
        if let Some(file) = freezer_with(world, name) {
            return file;
        }
        assert!(started.elapsed() < PATIENCE, "no group has a process {name}");
        std::thread::yield_now();
    }
}

fn freezer_with(world: &World, name: &str) -> Option<std::path::PathBuf> {
    let mut open = vec![Path::new("/sys/fs/cgroup/freezer").join(&world.cgroup_root)];
    while let Some(folder) = open.pop() {
        let pids = std::fs::read_to_string(folder.join("cgroup.procs")).unwrap();
        let is_named =
            |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name);
        if pids.lines().any(is_named) {
            return Some(folder.join("freezer.state"));
        }
        open.extend(
            std::fs::read_dir(&folder)
                .unwrap()
                .flatten()
                .filter(|entry| entry.file_type().unwrap().is_dir())
                .map(|entry| entry.path()),
        );
    }
    None
}

/// X6: whatever was asked for, nothing is written that is the host's.
#[test]
fn x6_no_kernel_parameter_of_the_host_is_set() {
    let world = World::new("sysctl");
    let runtime = world.open();
    let file = "/proc/sys/vm/stat_interval";
    let before = std::fs::read_to_string(file).unwrap();
    world.block_on(async {
        for (name, host_network) in
            [("vm.stat_interval", false), ("vm/stat_interval", false), ("net.core.somaxconn", true)]
        {
            let mut sandbox = world.sandbox("p1");
            sandbox.host_network = host_network;
            sandbox.sysctls.insert(name.to_owned(), "9".to_owned());
            let error = runtime.ensure_sandbox(&sandbox).await.unwrap_err().to_string();
            assert!(error.contains("is not in a namespace of the pod's own"), "{error}");
        }
    });
    assert_eq!(std::fs::read_to_string(file).unwrap(), before);
}

#[test]
fn a_container_of_any_user_can_open_its_output() {
    let world = World::new("stdio");
    let runtime = world.open();
    world.block_on(async {
        runtime.ensure_sandbox(&world.sandbox("p1")).await.unwrap();
        let script = "echo out > /dev/stdout; echo err > /dev/stderr; echo one > /proc/1/fd/1; cat /dev/stdin";
        let mut spec = world.script("p1", "main", script);
        (spec.user, spec.group) = (Some(1000), Some(1000));
        runtime.start_container(&spec).await.unwrap();
        ended(&runtime, &spec.id()).await;
        let mut log = world.log(&spec);
        log.sort();
        assert_eq!(log, ["stderr F err", "stdout F one", "stdout F out"]);

        let running = waiting(&world, "running", |spec| (spec.user, spec.group) = (Some(1000), Some(1000)));
        let id = runtime.start_container(&running).await.unwrap().id;
        assert_eq!(shell(&runtime, &id, "echo out > /dev/stdout; echo main > /proc/1/fd/1").await, "out\n");
        let args = ["/bin/sh", "-c", "cat /dev/stdin > /dev/stdout"].map(str::to_owned).to_vec();
        let mut handle = runtime.exec(&id, ExecSpec { args, stdin: true, ..ExecSpec::default() }).await.unwrap();
        let mut stdin = handle.stdin.take().unwrap();
        stdin.write_all(b"through").await.unwrap();
        drop(stdin);
        let mut out = String::new();
        handle.stdout.read_to_string(&mut out).await.unwrap();
        assert_eq!(out, "through");
        let terminal = ["/bin/sh", "-c", "echo out > /dev/stdout && exit 4"].map(str::to_owned).to_vec();
        let mut handle =
            runtime.exec(&id, ExecSpec { args: terminal, tty: true, ..ExecSpec::default() }).await.unwrap();
        let mut out = String::new();
        handle.stdout.read_to_string(&mut out).await.unwrap();
        assert_eq!((out.as_str(), handle.wait().await.unwrap().code), ("out\r\n", 4));
        assert_eq!(world.log(&running), ["stdout F main"]);
    });
}

#[test]
fn x2_what_is_written_of_a_container_is_roots_and_an_exec_has_its_oom_score() {
    let world = World::new("records");
    let runtime = world.open();
    world.block_on(async {
        runtime.ensure_sandbox(&world.sandbox("p1")).await.unwrap();
        let spec = waiting(&world, "main", |spec| spec.oom_score_adj = 777);
        let id = runtime.start_container(&spec).await.unwrap().id;
        let container = std::fs::read_dir(world.dir.join("containers/c")).unwrap().flatten().next().unwrap().path();
        for name in ["spec.json", "config.json", "shim.json", "state.json", "seccomp.bpf"] {
            let mode = std::fs::metadata(container.join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let scores = shell(&runtime, &id, "cat /proc/1/oom_score_adj /proc/self/oom_score_adj").await;
        assert_eq!(scores, "777\n777\n");
    });
}

/// S1, and "ended without an exit record" is said once: what a damaged record leaves is ended, whoever it was.
#[test]
fn s1_what_runs_behind_damaged_records_is_ended() {
    let world = World::new("damaged");
    let runtime = world.open();
    let pid = |status: &ContainerStatus| match status.state {
        ContainerState::Running { pid, .. } => pid,
        _ => panic!("{status:?}"),
    };
    let (unknown, homeless, lost) = world.block_on(async {
        for pod in ["p1", "p2"] {
            runtime.ensure_sandbox(&world.sandbox(pod)).await.unwrap();
        }
        let unknown = runtime.start_container(&waiting(&world, "unknown", |_| ())).await.unwrap();
        let homeless = runtime.start_container(&world.script("p2", "homeless", "exec sleep 1000")).await.unwrap();
        let lost = runtime.start_container(&waiting(&world, "lost", |_| ())).await.unwrap();
        (unknown, homeless, lost)
    });
    drop(runtime);
    let damage = |kind: &str, word: &str, record: &str| {
        let all =
            std::fs::read_dir(world.dir.join("containers").join(kind)).unwrap().flatten().map(|entry| entry.path());
        let folder = all
            .into_iter()
            .find(|path| std::fs::read_to_string(path.join(record)).is_ok_and(|text| text.contains(word)));
        let folder = folder.unwrap();
        std::fs::write(folder.join(record), "{").unwrap();
        folder
    };
    let folder = damage("c", "\"unknown\"", "spec.json");
    damage("s", "\"p2\"", "sandbox.json");
    let stat = std::fs::read_to_string(format!("/proc/{}/status", pid(&lost))).unwrap();
    let shim: i32 = stat.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::Signal::SIGKILL).unwrap();

    let gone = |status: &ContainerStatus| {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid(status)));
        stat.map_or(true, |stat| stat.contains(") Z ") || stat.contains(") X "))
    };
    for _ in 0..2 {
        let runtime = world.open();
        assert!(gone(&unknown) && gone(&homeless), "something runs on behind a damaged record");
        assert!(!folder.exists());
        assert!(runtime.status(&unknown.id).is_none());
        assert_eq!(runtime.status(&lost.id).unwrap().state, ContainerState::Unknown);
        let said = std::fs::read_dir(world.dir.join("containers/c")).unwrap().flatten();
        assert_eq!(said.filter(|entry| entry.path().join("lost").exists()).count(), 1);
        world.block_on(ended(&runtime, &homeless.id));
    }
}

/// What cannot be taken away is named, and keeps nothing else.
#[test]
fn a_cleanup_goes_on_past_what_it_cannot_remove() {
    let world = World::new("cleanup");
    let runtime = world.open();
    world.block_on(async {
        for pod in ["p1", "p2"] {
            runtime.ensure_sandbox(&world.sandbox(pod)).await.unwrap();
        }
        let stuck = waiting(&world, "stuck", |_| ());
        runtime.start_container(&stuck).await.unwrap();
        let folder = std::fs::read_dir(world.dir.join("containers/c")).unwrap().flatten().next().unwrap().path();
        runtime.start_container(&world.script("p2", "other", "exec sleep 1000")).await.unwrap();
        let immutable = |flag: &str| {
            std::process::Command::new("chattr").arg(flag).arg(folder.join("lock")).status().unwrap().success()
        };
        assert!(immutable("+i"), "the folder for temporary files knows no immutable files");
        let left = runtime.cleanup_all().await;
        assert!(immutable("-i"));
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(left[0].starts_with("container stuck of pod default/p1: cannot remove container"), "{left:?}");
        let known: Vec<String> = runtime.list().into_iter().map(|status| status.name).collect();
        assert_eq!(known, ["stuck"]);
        assert_eq!(runtime.sandboxes().len(), 1);
        assert_eq!(runtime.cleanup_all().await, Vec::<String>::new());
    });
}

/// With a loader of its own, an image makes the host's program run as its process: then it has the host's file. X4, X6:
/// a container that crashes in a loop leaves no core files, neither in its volumes nor with the host's handler, as long
/// as it does not ask for them.
#[test]
fn x4_containers_leave_no_core_files_unless_they_ask() {
    let own = std::process::id().to_string();
    let raised = std::process::Command::new("prlimit").args(["--pid", &own, "--core=unlimited"]).status().unwrap();
    assert!(raised.success(), "prlimit (util-linux)");
    let world = World::new("cores");
    let runtime = world.open();
    world.block_on(async {
        runtime.ensure_sandbox(&world.sandbox("p1")).await.unwrap();
        let id = runtime.start_container(&waiting(&world, "c", |_| ())).await.unwrap().id;
        let limits = "grep core /proc/1/limits /proc/self/limits | tr -s ' '; ulimit -c unlimited; ulimit -c";
        let said = shell(&runtime, &id, limits).await;
        assert_eq!(said.matches("Max core file size 0 unlimited").count(), 2, "{said}");
        assert!(said.ends_with("unlimited\n"), "who wants one may: {said}");
    });
}

#[test]
fn x6_a_container_cannot_change_the_program_that_entered_it() {
    let world = World::new("program");
    let runtime = world.open();
    let spec = waiting(&world, "main", |spec| {
        spec.args = ["/proc/self/exe", "wait"].map(str::to_owned).to_vec();
        spec.mounts = support::libraries();
        spec.no_new_privileges = false;
    });
    let before = std::fs::metadata(support::supervisor()).unwrap().permissions().mode();
    let said = world.block_on(async {
        runtime.ensure_sandbox(&world.sandbox("p1")).await.unwrap();
        let id = runtime.start_container(&spec).await.unwrap().id;
        shell(&runtime, &id, "cat /proc/1/cmdline; busybox chmod 777 /proc/1/exe 2>&1; : 2>&1 >> /proc/1/exe").await
    });
    assert!(said.contains("wait") && said.contains("Read-only file system"), "{said}");
    assert_eq!(std::fs::metadata(support::supervisor()).unwrap().permissions().mode(), before);
}

#[test]
fn x6_a_container_opens_no_device_of_the_host_and_leaves_processes_to_others() {
    let world = World::new("devices");
    let runtime = world.open();
    let spec = waiting(&world, "main", |spec| spec.no_new_privileges = false);
    let script = "cd /tmp; open() { busybox mknod $1 $2 $3 $4 && (: < $1) && echo \"opened $1\"; }; exec 2>&1
        open tun c 10 200; open console c 5 1; open mem c 1 1; open kmsg c 1 11; open fuse c 10 229; open loop c 10 237
        while read -r major minor rest; do case $major in [0-9]*) open disk$minor b $major $minor;; esac; done < \
            /proc/partitions; open null c 1 3";
    let said = world.block_on(async {
        runtime.ensure_sandbox(&world.sandbox("p1")).await.unwrap();
        let id = runtime.start_container(&spec).await.unwrap().id;
        shell(&runtime, &id, script).await
    });
    assert_eq!(said.matches("opened").count(), 1, "{said}");
    assert!(said.contains("opened null"), "{said}");
    let limit = Path::new("/sys/fs/cgroup/pids").join(&world.cgroup_root).join("pids.max");
    let all: u64 = std::fs::read_to_string("/proc/sys/kernel/pid_max").unwrap().trim().parse().unwrap();
    match std::fs::read_to_string(limit) {
        Ok(limit) => assert!(limit.trim().parse::<u64>().unwrap() < all, "{limit}"),
        // A machine with the unified tree.
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound),
    }
}

/// A folder with what the node's own /dev has; nothing there is the node's.
fn like_dev(world: &World) -> std::path::PathBuf {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    let dev = world.dir.join("dev");
    std::fs::create_dir(&dev).unwrap();
    nix::mount::mount(Some("dev"), &dev, Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>).unwrap();
    for (name, minor) in [("null", 3), ("zero", 5), ("ptmx", 7)] {
        mknod(&dev.join(name), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, minor)).unwrap();
        std::fs::set_permissions(dev.join(name), std::fs::Permissions::from_mode(0o666)).unwrap();
    }
    std::fs::create_dir(dev.join("shm")).unwrap();
    std::fs::write(dev.join("mine"), "of the node").unwrap();
    dev
}

/// The names in a folder, each with its inode.
fn entries(folder: &Path) -> Vec<(String, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let all = std::fs::read_dir(folder).unwrap().flatten();
    let mut all: Vec<_> =
        all.map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().ino())).collect();
    all.sort();
    all
}

/// X6: what is mounted at a container's /dev is what the container sees there, again and again, and the runtime makes
/// nothing in it but places for what is mounted below.
#[test]
fn x6_a_volume_or_the_nodes_own_dev_is_mounted_at_dev_as_it_is() {
    let world = World::new("dev");
    let runtime = world.open();
    let (dev, message, memory) = (like_dev(&world), world.dir.join("message"), world.dir.join("memory"));
    let volume = world.dir.join("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::create_dir(&memory).unwrap();
    std::fs::write(&message, "").unwrap();
    let before = entries(&dev);
    let mount = |source: &Path, target: &str, read_only| Mount {
        source: source.to_owned(),
        target: target.to_owned(),
        read_only,
        ..Mount::default()
    };
    world.block_on(async {
        runtime.ensure_sandbox(&world.sandbox("p1")).await.unwrap();
        for round in 0..3 {
            // As node agents and storage drivers have it, with the file that every container has below it.
            let node = waiting(&world, &format!("node-{round}"), |spec| {
                (spec.privileged, spec.user) = (round != 1, (round == 1).then_some(1000));
                spec.mounts = vec![
                    mount(&message, "/dev/termination-log", false),
                    mount(&memory, "/dev/shm", false),
                    mount(&dev, "/dev", round == 2),
                ];
            });
            let node = runtime.start_container(&node).await.unwrap().id;
            let seen = shell(&runtime, &node, "echo x > /dev/null; echo /dev/*; cat /dev/mine").await;
            assert_eq!(seen, "/dev/mine /dev/null /dev/ptmx /dev/shm /dev/termination-log /dev/zero\nof the node");
            let written = shell(&runtime, &node, "echo said > /dev/termination-log; touch /dev/mine && echo yes").await;
            assert_eq!(written.contains("yes"), round == 0, "read-only in the last round, another user before");
            assert_eq!(std::fs::read_to_string(&message).unwrap().trim(), if round == 1 { "" } else { "said" });
            std::fs::write(&message, "").unwrap();
            shell(&runtime, &node, "touch /dev/shm/used").await;
            assert_eq!(memory.join("used").exists(), round != 1);
            let _ = std::fs::remove_file(memory.join("used"));
            let after = entries(&dev);
            let place = after.iter().find(|(name, _)| name == "termination-log").unwrap();
            let left: Vec<_> = after.iter().filter(|entry| *entry != place).cloned().collect();
            assert_eq!(left, before, "the node's are the node's");
            let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(dev.join("termination-log")).unwrap());
            assert_eq!(owner, 0);

            let own =
                waiting(&world, &format!("volume-{round}"), |spec| spec.mounts = vec![mount(&volume, "/dev/", false)]);
            let own = runtime.start_container(&own).await.unwrap().id;
            let seen = shell(&runtime, &own, "ls /dev; echo kept > /dev/file").await;
            assert_eq!(seen, if round == 0 { "" } else { "file\n" });
        }
    });
    assert!(mount_points_below(&world.dir.join("containers")).iter().all(|point| !point.contains("dev")));
    nix::mount::umount(&dev).unwrap();
}

fn mount_points_below(folder: &Path) -> Vec<String> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = text.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| Path::new(point).starts_with(folder)).map(str::to_owned).collect()
}

/// What is mounted over a device, or over a folder of devices, of a container that has the node's devices.
#[test]
fn a_file_is_mounted_where_a_device_of_the_node_or_of_every_container_would_be() {
    use std::os::unix::fs::FileTypeExt as _;
    let world = World::new("dev-below");
    let runtime = world.open();
    let own = ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "console"];
    let devices = std::fs::read_dir("/dev").unwrap().flatten();
    let device = devices
        .filter(|entry| entry.file_type().unwrap().is_char_device())
        .map(|entry| entry.file_name().into_string().unwrap())
        .find(|name| !own.contains(&name.as_str()))
        .expect("a character device of this machine");
    let file = world.dir.join("file");
    std::fs::write(&file, "mounted").unwrap();
    world.block_on(async {
        runtime.ensure_sandbox(&world.sandbox("p1")).await.unwrap();
        for (name, privileged, target) in [("a", true, device.as_str()), ("b", false, "full"), ("c", true, "full")] {
            let target = format!("/dev/{target}");
            let spec = waiting(&world, name, |spec| {
                spec.privileged = privileged;
                spec.mounts = vec![Mount { source: file.clone(), target: target.clone(), ..Mount::default() }];
            });
            let id = runtime.start_container(&spec).await.unwrap().id;
            assert_eq!(shell(&runtime, &id, &format!("cat {target}; echo x > /dev/null")).await, "mounted", "{target}");
        }
    });
}
