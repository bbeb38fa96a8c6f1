//! X6, X8: pods with a user namespace of their own (`hostUsers: false`).

mod support;

/// The example that is executed as a supervisor.
const SUPERVISOR: &str = "shim";

use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use mainstay_runtime::{ContainerSpec, ContainerState, Mount, Runtime, SandboxSpec, SeccompProfile};
use serde_json::Value;
use support::World;

/// Nothing here takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a script in a running container: what it wrote.
async fn shell(runtime: &Runtime, id: &str, script: &str) -> String {
    let args = ["/bin/sh", "-c", script].map(str::to_owned);
    String::from_utf8(runtime.exec_probe(id, &args, PATIENCE).await.unwrap().1).unwrap()
}

fn own_users(world: &World, pod: &str) -> SandboxSpec {
    SandboxSpec { user_namespace: true, ..world.sandbox(pod) }
}

fn waiting(world: &World, pod: &str, name: &str, change: impl FnOnce(&mut ContainerSpec)) -> ContainerSpec {
    let mut spec = world.script(pod, name, "exec sleep 1000");
    change(&mut spec);
    spec
}

fn mounted(source: &Path, target: &str) -> Mount {
    Mount { source: source.to_owned(), target: target.to_owned(), ..Mount::default() }
}

fn pid(runtime: &Runtime, id: &str) -> u32 {
    let ContainerState::Running { pid, .. } = runtime.status(id).unwrap().state else { panic!("{id} does not run") };
    pid
}

/// The host's id for the root of a container's user namespace.
fn first_id(pid: u32) -> u32 {
    let map = std::fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap();
    let words: Vec<u32> = map.split_whitespace().map(|word| word.parse().unwrap()).collect();
    assert_eq!((words[0], words[2]), (0, 65_536), "{map}");
    assert!(words[1] >= 65_536 && words[1].is_multiple_of(65_536), "{map}");
    words[1]
}

fn owner(path: impl AsRef<Path>) -> (u32, u32) {
    let metadata = path.as_ref().metadata().unwrap();
    (metadata.uid(), metadata.gid())
}

/// The record of the one supervisor.
fn shim_pid(world: &World) -> u64 {
    let folder = std::fs::read_dir(world.dir.join("containers/c")).unwrap().next().unwrap().unwrap().path();
    let state: Value = serde_json::from_slice(&std::fs::read(folder.join("state.json")).unwrap()).unwrap();
    state["shim_pid"].as_u64().unwrap()
}

#[test]
fn x6_root_in_a_pod_is_nobody_on_the_host_and_owns_its_volumes() {
    let world = World::new("users");
    let runtime = world.open();
    let volume = world.dir.join("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("secret"), "known only to root\n").unwrap();
    std::fs::set_permissions(volume.join("secret"), PermissionsExt::from_mode(0o600)).unwrap();
    let hosts = world.dir.join("hosts");
    std::fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    world.block_on(async {
        runtime.ensure_sandbox(&own_users(&world, "p1")).await.unwrap();
        let spec = waiting(&world, "p1", "root", |spec| {
            spec.mounts = vec![mounted(&volume, "/srv/deep/volume"), mounted(&hosts, "/etc/hosts")];
            spec.mounts.push(mounted(&volume, "/srv/deep/volume/below"));
        });
        let id = runtime.start_container(&spec).await.unwrap().id;
        let first = first_id(pid(&runtime, &id));
        let map = shell(&runtime, &id, "cat /proc/1/uid_map /proc/self/gid_map; id -u; id -g").await;
        let words: Vec<&str> = map.split_whitespace().collect();
        let number = first.to_string();
        assert_eq!(words, ["0", &number, "65536", "0", &number, "65536", "0", "0"]);
        let status = std::fs::read_to_string(format!("/proc/{}/status", pid(&runtime, &id))).unwrap();
        assert!(status.contains(&format!("Uid:\t{first}\t{first}\t{first}\t{first}\n")), "{status}");

        // What it sees is its own: the image, mount points that were made, files of the node, devices, shared memory.
        let seen = "for f in / /bin/busybox /srv /srv/deep /srv/deep/volume /srv/deep/volume/below /etc/hosts /dev \
                    /dev/null /dev/shm /srv/deep/volume/secret; do /bin/busybox stat -c '%u:%g' $f; done";
        assert_eq!(shell(&runtime, &id, seen).await, "0:0\n".repeat(11));
        let works = "cat /srv/deep/volume/secret /etc/hosts; echo x > /dev/null && echo y > /dev/shm/y && cat \
            /dev/shm/y; \
                     echo z > /z && cat /z; hostname";
        let said = shell(&runtime, &id, works).await;
        assert_eq!(said, "known only to root\n127.0.0.1 localhost\ny\nz\np1-host\n");

        // What it writes on a volume has the pod's ids there, unshifted.
        let write = "cd /srv/deep/volume && echo 1 > of-root && echo 2 > of-app && /bin/busybox chown 1000:2000 \
            of-app; \
                     /bin/busybox chown 70000 of-root 2>&1";
        let said = shell(&runtime, &id, write).await;
        assert!(said.contains("Invalid argument"), "ids beyond its own are not there: {said}");
        assert_eq!((owner(volume.join("of-root")), owner(volume.join("of-app"))), ((0, 0), (1000, 2000)));
        assert_eq!(owner(volume.join("below")), (0, 0));

        // Its supervisor keeps none of the host's mounts, and its groups are the host's.
        let namespace = |pid: u64| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).unwrap();
        assert_eq!(namespace(shim_pid(&world)), std::fs::read_link("/proc/thread-self/ns/mnt").unwrap());
        assert_ne!(namespace(pid(&runtime, &id).into()), std::fs::read_link("/proc/thread-self/ns/mnt").unwrap());
        let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", pid(&runtime, &id))).unwrap();
        let memory = groups.lines().find_map(|line| line.split_once(":memory:")).unwrap().1;
        let folder = Path::new("/sys/fs/cgroup/memory").join(memory.trim_start_matches('/'));
        assert_eq!((owner(&folder), owner(folder.join("memory.limit_in_bytes"))), ((0, 0), (0, 0)));
        runtime.kill_container(&id).await.unwrap();
        runtime.remove_container(&id).await.unwrap();
        assert!(volume.join("secret").exists(), "V8");

        // A plain user of another pod finds them as they are, and can write to its own output.
        runtime.ensure_sandbox(&world.sandbox("p2")).await.unwrap();
        let spec = waiting(&world, "p2", "plain", |spec| spec.mounts = vec![mounted(&volume, "/data/v")]);
        let other = runtime.start_container(&spec).await.unwrap().id;
        let said = shell(&runtime, &other, "/bin/busybox stat -c '%u:%g' /data/v/of-root /data/v/of-app").await;
        assert_eq!(said, "0:0\n1000:2000\n");
        let mut user = world.script(
            "p1",
            "user",
            "echo from $(id -u):$(id -g) $(id -G) > /dev/stdout; exec sleep \
            1000",
        );
        (user.user, user.group, user.supplemental_groups) = (Some(1000), Some(1000), vec![2000]);
        user.mounts = vec![mounted(&volume, "/data/v")];
        let id = runtime.start_container(&user).await.unwrap().id;
        let said = shell(&runtime, &id, "cat /data/v/of-app; cat /data/v/secret 2>&1; id -u; id -G").await;
        assert!(said.starts_with("2\n") && said.contains("ermission denied") && said.ends_with("1000\n1000 2000\n"));
        let begun = std::time::Instant::now();
        while world.log(&user).is_empty() && begun.elapsed() < PATIENCE {
            tokio::task::yield_now().await;
        }
        assert_eq!(world.log(&user), ["stdout F from 1000:1000 1000 2000"]);
        let status = std::fs::read_to_string(format!("/proc/{}/status", pid(&runtime, &id))).unwrap();
        assert!(status.contains(&format!("Uid:\t{0}\t{0}\t{0}\t{0}\n", first + 1000)), "{status}");
    });
}

#[test]
fn x6_all_capabilities_in_a_pods_user_namespace_change_nothing_of_the_host() {
    let world = World::new("admin");
    let runtime = world.open();
    let kept = world.dir.join("kept");
    std::fs::create_dir(&kept).unwrap();
    let host = std::fs::read_to_string("/proc/sys/vm/stat_interval").unwrap();
    world.block_on(async {
        runtime.ensure_sandbox(&own_users(&world, "p1")).await.unwrap();
        let spec = waiting(&world, "p1", "admin", |spec| {
            (spec.capabilities_add, spec.seccomp) = (vec!["ALL".to_owned()], SeccompProfile::Unconfined);
            (spec.no_new_privileges, spec.unmasked_proc) = (false, false);
            spec.mounts = vec![Mount { read_only: true, ..mounted(&kept, "/kept") }];
        });
        let id = runtime.start_container(&spec).await.unwrap().id;
        // It is an administrator of what is its own…
        let own = "mount -t tmpfs own /tmp && hostname other && hostname && /bin/busybox ip link set lo up && echo up";
        assert_eq!(shell(&runtime, &id, own).await, "other\nup\n");
        // …and of nothing else.
        for (attempt, expected) in [
            ("mount -o remount,rw,bind /kept 2>&1 || mount -o remount,rw /kept 2>&1; echo x > /kept/x", "ead-only"),
            ("mount -o remount,rw,bind /proc/sys 2>&1; echo 9 > /proc/sys/vm/stat_interval", "ead-only"),
            ("/bin/busybox umount /proc/sys 2>&1; echo 9 > /proc/sys/vm/stat_interval", "ead-only"),
            ("/bin/busybox umount /proc/interrupts 2>&1", "nvalid argument"),
            ("/bin/busybox mknod /tmp/disk b 254 0 2>&1", "not permitted"),
            ("/bin/busybox date -s 2001-01-01 2>&1", "not permitted"),
            ("/bin/busybox swapoff -a 2>&1; /bin/busybox chroot /proc/1/root true 2>&1; kill -9 1; echo here", "here"),
        ] {
            let said = shell(&runtime, &id, &format!("({attempt}) 2>&1")).await;
            assert!(said.contains(expected), "{attempt}: {said}");
        }
        assert_eq!(std::fs::read_to_string("/proc/sys/vm/stat_interval").unwrap(), host);
        assert!(!kept.join("x").exists());
        // Not even where nothing is masked.
        let spec = waiting(&world, "p1", "unmasked", |spec| {
            (spec.unmasked_proc, spec.seccomp) = (true, SeccompProfile::Unconfined);
        });
        let id = runtime.start_container(&spec).await.unwrap().id;
        let said = shell(&runtime, &id, "(echo 9 > /proc/sys/vm/stat_interval) 2>&1").await;
        assert!(said.contains("ermission denied"), "{said}");
    });
}

#[test]
fn x8_ranges_are_given_back_and_kept_over_a_restart_and_what_cannot_be_is_refused() {
    let world = World::new("ranges");
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let runtime = world.open_in(&tokio);
    let (one, two) = tokio.block_on(async {
        let mut started = Vec::new();
        for pod in ["p1", "p2"] {
            let shared = SandboxSpec { share_process_namespace: true, ..own_users(&world, pod) };
            runtime.ensure_sandbox(&shared).await.unwrap();
            started.push(runtime.start_container(&waiting(&world, pod, "c", |_| ())).await.unwrap().id);
        }
        // The first process of the PID namespace that they share is the pod's, too.
        assert_eq!(shell(&runtime, &started[0], "/bin/busybox stat -c %u /proc/1").await, "0\n");
        assert_ne!(first_id(pid(&runtime, &started[0])), first_id(pid(&runtime, &started[1])));
        (started[0].clone(), started[1].clone())
    });
    drop(runtime);
    drop(tokio);
    let runtime = world.open();
    world.block_on(async {
        assert_eq!(shell(&runtime, &one, "id -u; cat /proc/self/uid_map | wc -l").await, "0\n1\n");
        let (freed, kept) = (first_id(pid(&runtime, &one)), first_id(pid(&runtime, &two)));
        runtime.remove_sandbox("p1").await.unwrap();
        let mut firsts = vec![kept];
        for pod in ["p3", "p4"] {
            runtime.ensure_sandbox(&own_users(&world, pod)).await.unwrap();
            let id = runtime.start_container(&waiting(&world, pod, "c", |_| ())).await.unwrap().id;
            firsts.push(first_id(pid(&runtime, &id)));
        }
        assert_eq!(firsts[1], freed, "what was given back is given again");
        assert!(!firsts[1..].contains(&kept) && firsts[1] != firsts[2], "{firsts:?}");

        let refused = async |change: &dyn Fn(&mut ContainerSpec)| {
            let spec = waiting(&world, "p4", "refused", |spec| change(spec));
            runtime.start_container(&spec).await.unwrap_err().to_string()
        };
        let why = refused(&|spec| spec.user = Some(70_000)).await;
        assert!(why.contains("id 70000 is not in the pod's user namespace, which has 0 to 65535"), "{why}");
        let why = refused(&|spec| spec.mounts = vec![mounted(Path::new("/proc/sys"), "/data/sys")]).await;
        assert!(why.contains("failed to set MOUNT_ATTR_IDMAP on /proc/sys: Invalid argument"), "{why}");
    });
}

#[test]
fn x6_a_pods_limits_are_the_hosts_on_the_unified_tree() {
    let world = World::with_cgroup2("users2");
    let runtime = world.open();
    world.block_on(async {
        runtime.ensure_sandbox(&own_users(&world, "p1")).await.unwrap();
        let spec = waiting(&world, "p1", "c", |spec| {
            (spec.capabilities_add, spec.seccomp) = (vec!["ALL".to_owned()], SeccompProfile::Unconfined);
        });
        let id = runtime.start_container(&spec).await.unwrap().id;
        let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", pid(&runtime, &id))).unwrap();
        let folder = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
        let folder = Path::new("/sys/fs/cgroup").join(folder);
        assert_eq!((owner(&folder), owner(folder.join("cgroup.procs"))), ((0, 0), (0, 0)));
        let said = shell(&runtime, &id, "mkdir /tmp/own; mount -t cgroup2 own /tmp/own 2>&1").await;
        assert!(said.contains("ermission denied"), "{said}");
        let said = shell(&runtime, &id, "(echo 1 > /sys/fs/cgroup/cgroup.freeze) 2>&1").await;
        assert!(said.contains("ead-only"), "{said}");
    });
}

/// A volume at /dev, with the file below it that every container has: its place in the volume is the pod's root's.
#[test]
fn x6_a_volume_is_the_dev_of_a_container_with_a_user_namespace() {
    let world = World::new("users-dev");
    let runtime = world.open();
    let (volume, message) = (world.dir.join("volume"), world.dir.join("message"));
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(&message, "said\n").unwrap();
    world.block_on(async {
        runtime.ensure_sandbox(&own_users(&world, "p1")).await.unwrap();
        for (name, user) in [("one", 1000), ("two", 0)] {
            let spec = waiting(&world, "p1", name, |spec| {
                spec.user = Some(user);
                spec.mounts = vec![mounted(&message, "/dev/deep/message"), mounted(&volume, "/dev")];
            });
            let id = runtime.start_container(&spec).await.unwrap().id;
            assert_eq!(shell(&runtime, &id, "ls /dev; cat /dev/deep/message").await, "deep\nsaid\n");
            let stat = shell(&runtime, &id, "/bin/busybox stat -c %u:%g /dev/deep").await;
            assert_eq!((stat.trim(), owner(volume.join("deep"))), ("0:0", (0, 0)));
        }
    });
}
