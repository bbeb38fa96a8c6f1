//! X3, X4, X6: images and containers that mean harm to what makes them ready and puts them away.

mod support;

/// The example that is executed as a supervisor.
const SUPERVISOR: &str = "shim";

use std::os::fd::AsRawFd as _;
use std::os::unix::fs::symlink;
use std::time::Duration;

use mainstay_runtime::{RuntimeError, SandboxSpec};
use nix::sys::resource::{Resource, setrlimit};
use support::{World, write_docker_archive};

/// Nothing here takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where nobody says what HOME is, the container library asks the C library, which loads what the image's
/// `nsswitch.conf` names, with a supervisor's privileges. Its answer would be the image's own `/root`.
#[test]
fn x6_no_code_of_an_image_looks_up_who_its_user_is() {
    let world = World::new("home");
    let runtime = world.open();
    world.block_on(async {
        runtime.ensure_sandbox(&world.sandbox("p1")).await.unwrap();
        for (name, env) in [("none", vec![]), ("empty", vec![("HOME".to_owned(), String::new())])] {
            let mut spec = world.script("p1", name, "sleep 1000");
            spec.env = env;
            let id = runtime.start_container(&spec).await.unwrap().id;
            let home = ["/bin/sh", "-c", "cat /proc/1/environ | tr '\\0' '\\n' | grep ^HOME; echo $HOME"];
            let (_, said) = runtime.exec_probe(&id, &home.map(str::to_owned), PATIENCE).await.unwrap();
            assert_eq!(String::from_utf8_lossy(&said), "HOME=/\n/\n", "{name}");
        }
        let mut spec = world.script("p1", "own", "sleep 1000");
        spec.env = vec![("HOME".to_owned(), "/data".to_owned())];
        let id = runtime.start_container(&spec).await.unwrap().id;
        let home = ["/bin/sh", "-c", "echo $HOME"].map(str::to_owned);
        assert_eq!(runtime.exec_probe(&id, &home, PATIENCE).await.unwrap().1, b"/data\n");
    });
}

/// What is made in a container's `/dev` is made by its path, before the container has a root of its own.
#[test]
fn x6_an_image_whose_devices_folder_is_a_link_leads_nowhere() {
    let world = World::new("devlink");
    let victim = world.dir.join("victim");
    std::fs::create_dir(&victim).unwrap();
    std::fs::write(victim.join("ptmx"), "the host's").unwrap();
    let runtime = world.open();
    for (name, is_there) in [("there", true), ("dangling", false)] {
        let root = world.dir.join(name);
        let inside = root.join(victim.strip_prefix("/").unwrap());
        std::fs::create_dir_all(if is_there { &inside } else { &root }).unwrap();
        symlink(&victim, root.join("dev")).unwrap();
        let archive = world.dir.join(format!("{name}.tar"));
        write_docker_archive(&archive, &format!("{name}:1"), &root);
        world.images.load(&archive, &mut |_| ()).unwrap();
        world.block_on(async {
            runtime.ensure_sandbox(&world.sandbox("p1")).await.unwrap();
            let mut spec = world.script("p1", name, "sleep 1000");
            spec.image_id = world.images.resolve(&format!("{name}:1")).unwrap().id;
            let refused = runtime.start_container(&spec).await.expect_err("a link").to_string();
            assert!(refused.contains("the image's /dev is no folder"), "{refused}");
        });
    }
    let left: Vec<_> = std::fs::read_dir(&victim).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["ptmx"]);
    assert_eq!(std::fs::read_to_string(victim.join("ptmx")).unwrap(), "the host's");
}

/// Neither the stack nor the descriptors of whoever removes it grow with the depth that somebody made.
#[test]
fn x4_a_container_that_made_deep_folders_is_removed() {
    const DEPTH: usize = 4_200;
    // One descriptor for each level would be too many.
    setrlimit(Resource::RLIMIT_NOFILE, 4096, 4096).unwrap();
    let world = World::new("deep");
    let runtime = world.open();
    world.block_on(async {
        runtime.ensure_sandbox(&world.sandbox("p1")).await.unwrap();
        let started = runtime.start_container(&world.script("p1", "main", "exec sleep 1000")).await.unwrap();
        runtime.stop_container(&started.id, Some(9), Duration::ZERO).await.unwrap();
        // As it would have written them, but for the time that overlayfs takes.
        let own = std::fs::read_dir(world.dir.join("containers/c")).unwrap().next().unwrap().unwrap().path();
        let mut folder = std::fs::File::open(own.join("upper")).unwrap();
        for _ in 0..DEPTH {
            nix::sys::stat::mkdirat(Some(folder.as_raw_fd()), "x", nix::sys::stat::Mode::S_IRWXU).unwrap();
            folder = std::fs::File::open(format!("/proc/self/fd/{}/x", folder.as_raw_fd())).unwrap();
        }
        drop(folder);
        runtime.remove_container(&started.id).await.unwrap();
        assert_eq!(std::fs::read_dir(world.dir.join("containers/c")).unwrap().count(), 0);
    });
}

/// Close-on-exec comes after a path is resolved: whatever the supervisor has open must be gone before.
#[test]
fn x6_no_descriptor_of_a_supervisor_leads_a_command_to_the_host() {
    let world = World::new("fds");
    let runtime = world.open();
    world.block_on(async {
        runtime.ensure_sandbox(&world.sandbox("p1")).await.unwrap();
        let users = SandboxSpec { user_namespace: true, ..world.sandbox("p2") };
        runtime.ensure_sandbox(&users).await.unwrap();
        for pod in ["p1", "p2"] {
            for fd in 3..24 {
                let mut spec = world.script(pod, &format!("fd{fd}"), "");
                // A folder that is on every host, and not in the image.
                spec.args = vec![format!("/proc/self/fd/{fd}/usr/bin/env")];
                match runtime.start_container(&spec).await {
                    Err(RuntimeError::Start(_)) => {}
                    other => panic!("{pod}, descriptor {fd}: {other:?}"),
                }
            }
        }
    });
}
