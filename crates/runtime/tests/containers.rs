//! Real containers, from an archive to an exit code.

mod support;

/// What is re-executed as a supervisor.
const SUPERVISOR: &str = "shim";

use std::time::Duration;

use mainstay_runtime::{ContainerState, ContainerStatus, ExecSpec, Runtime, RuntimeError};
use support::World;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Nothing here takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until a container has ended.
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

fn code(status: &ContainerStatus) -> i32 {
    match status.state {
        ContainerState::Exited { code, .. } => code,
        _ => panic!("{status:?}"),
    }
}

#[test]
fn a_container_runs_logs_and_ends_with_its_own_code() {
    let world = World::new("runs");
    let runtime = world.open();
    world.block_on(async {
        let sandbox = runtime.ensure_sandbox(&world.sandbox("p1")).await.unwrap();
        assert!(sandbox.ready && sandbox.netns_path.is_some());
        assert_eq!(runtime.ensure_sandbox(&world.sandbox("p1")).await.unwrap(), sandbox, "ensure is idempotent");
        let mut spec = world.script(
            "p1",
            "main",
            "hostname; id; echo $GREETING $FROM_IMAGE; pwd; echo oops >&2; printf end; exit 7",
        );
        spec.env = vec![("GREETING".to_owned(), "hello world".to_owned())];
        spec.user = Some(1000);
        spec.group = Some(1000);
        spec.supplemental_groups = vec![2000];
        spec.working_dir = "/data".to_owned();
        let started = runtime.start_container(&spec).await.unwrap();
        assert_eq!(started.id, "p1/main/0");
        let status = ended(&runtime, &started.id).await;
        assert_eq!(code(&status), 7);
        let log = world.log(&spec);
        let stdout: Vec<&str> = log.iter().filter_map(|line| line.strip_prefix("stdout ")).collect();
        assert_eq!(
            stdout,
            [
                "F p1-host",
                "F uid=1000(app) gid=1000(app) groups=1000(app),2000(extra)",
                "F hello world",
                "F /data",
                "P end"
            ]
        );
        assert!(log.contains(&"stderr F oops".to_owned()), "{log:?}");
        assert!(
            matches!(runtime.start_container(&spec).await, Err(RuntimeError::Exists(_))),
            "an attempt never runs twice"
        );
        runtime.remove_container(&started.id).await.unwrap();
        assert!(runtime.list().is_empty() && spec.log_path.exists());
        runtime.remove_sandbox("p1").await.unwrap();
        assert!(runtime.sandboxes().is_empty());
    });
}

#[test]
fn exec_has_streams_exit_codes_and_dies_with_its_handle() {
    let world = World::new("exec");
    let runtime = world.open();
    world.block_on(async {
        runtime.ensure_sandbox(&world.sandbox("p1")).await.unwrap();
        let mut spec = world.script("p1", "main", "exec sleep 1000");
        spec.env = vec![("FROM_SPEC".to_owned(), "spec".to_owned())];
        let id = runtime.start_container(&spec).await.unwrap().id;
        let shell = |script: &str| ["/bin/sh", "-c", script].map(str::to_owned).to_vec();

        let mut cat =
            ExecSpec { args: shell("cat; echo $FROM_SPEC $MORE >&2; exit 3"), stdin: true, ..ExecSpec::default() };
        cat.env = vec![("MORE".to_owned(), "more".to_owned())];
        let mut handle = runtime.exec(&id, cat).await.unwrap();
        let mut stdin = handle.stdin.take().unwrap();
        stdin.write_all(b"over and out").await.unwrap();
        drop(stdin);
        let (mut out, mut err) = (String::new(), String::new());
        handle.stdout.read_to_string(&mut out).await.unwrap();
        handle.stderr.take().unwrap().read_to_string(&mut err).await.unwrap();
        assert_eq!((out.as_str(), err.as_str(), handle.wait().await.unwrap().code), ("over and out", "spec more\n", 3));

        assert_eq!(
            runtime.exec_probe(&id, &shell("echo fine; exit 0"), PATIENCE).await.unwrap(),
            (0, b"fine\n".to_vec())
        );
        let flood = runtime.exec_probe(&id, &shell("yes | head -c 1000000"), PATIENCE).await.unwrap();
        assert_eq!((flood.0, flood.1.len()), (0, 10 * 1024));
        let left_behind = shell("yes & echo done >&2");
        let (code, said) = runtime.exec_probe(&id, &left_behind, PATIENCE).await.unwrap();
        assert!(code == 0 && said.len() <= 10 * 1024, "what goes on writing is not waited for");
        let missing = runtime.exec_probe(&id, &["/bin/nothing".to_owned()], PATIENCE).await.unwrap_err();
        assert!(missing.to_string().contains("no such file or directory"), "{missing}");

        let slow = runtime.exec_probe(&id, &shell("sleep 777 & sleep 777"), Duration::from_millis(300)).await;
        assert!(matches!(slow, Err(RuntimeError::ExecTimeout(_))), "{slow:?}");
        let stats = runtime.stats(&id).unwrap();
        assert!(stats.memory_usage_bytes > 0, "{stats:?}");
        runtime.kill_container(&id).await.unwrap();
        assert!(matches!(runtime.exec_probe(&id, &shell("true"), PATIENCE).await, Err(RuntimeError::NotRunning(_))));
    });
}

/// A thread that is busy hears of a command's end and of its output late, and maybe of the end first.
#[test]
fn what_a_short_command_wrote_is_there_when_it_has_ended() {
    let world = World::new("short");
    let busy = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let runtime = world.open_in(&busy);
    busy.block_on(async {
        runtime.ensure_sandbox(&world.sandbox("p1")).await.unwrap();
        let id = runtime.start_container(&world.script("p1", "main", "exec sleep 1000")).await.unwrap().id;
        // Two tasks that always have something to do: the thread looks for what came now and then only.
        let (one, other) =
            (std::sync::Arc::new(tokio::sync::Notify::new()), std::sync::Arc::new(tokio::sync::Notify::new()));
        for (wait, wake) in [(one.clone(), other.clone()), (other, one.clone())] {
            tokio::spawn(async move {
                loop {
                    wait.notified().await;
                    std::thread::sleep(Duration::from_millis(5));
                    wake.notify_one();
                }
            });
        }
        one.notify_one();
        for _ in 0..5 {
            let echo = ["/bin/echo", "fine"].map(str::to_owned);
            assert_eq!(runtime.exec_probe(&id, &echo, PATIENCE).await.unwrap(), (0, b"fine\n".to_vec()));
        }
        runtime.kill_container(&id).await.unwrap();
    });
}

#[test]
fn a_terminal_is_a_terminal_and_has_a_size() {
    let world = World::new("tty");
    let runtime = world.open();
    world.block_on(async {
        runtime.ensure_sandbox(&world.sandbox("p1")).await.unwrap();
        let mut spec = world.script("p1", "main", "read line; echo got $line; stty size; exit 5");
        (spec.tty, spec.stdin) = (true, true);
        let id = runtime.start_container(&spec).await.unwrap().id;

        // A size and a line are carried by tasks of their own: the one may arrive before the other.
        let waits_for_size =
            "n=0; until [ \"$(stty size)\" = '33 101' ] || [ $n = 1000 ]; do n=$((n+1)); sleep 0.01; done";
        let exec = ExecSpec {
            args: ["/bin/sh", "-c", &format!("read x; test -t 0 || exit 9; {waits_for_size}; stty size; exit 4")]
                .map(str::to_owned)
                .to_vec(),
            tty: true,
            stdin: true,
            ..ExecSpec::default()
        };
        let mut handle = runtime.exec(&id, exec).await.unwrap();
        handle.resize.send(mainstay_runtime::TerminalSize { width: 101, height: 33 }).await.unwrap();
        let mut stdin = handle.stdin.take().unwrap();
        stdin.write_all(b"\n").await.unwrap();
        let mut out = String::new();
        handle.stdout.read_to_string(&mut out).await.unwrap();
        assert!(out.contains("33 101"), "{out:?}");
        assert_eq!(handle.wait().await.unwrap().code, 4);

        let mut attached = runtime.attach(&id).await.unwrap();
        assert!(attached.stderr.is_none());
        attached.resize.send(mainstay_runtime::TerminalSize { width: 90, height: 20 }).await.unwrap();
        attached.stdin.as_mut().unwrap().write_all(b"word\n").await.unwrap();
        let mut out = String::new();
        attached.stdout.read_to_string(&mut out).await.unwrap();
        assert!(out.contains("got word"), "{out:?}");
        assert_eq!(code(&ended(&runtime, &id).await), 5);
    });
}

#[test]
fn attach_brings_output_and_stdin_once_ends_the_input() {
    let world = World::new("attach");
    let runtime = world.open();
    world.block_on(async {
        runtime.ensure_sandbox(&world.sandbox("p1")).await.unwrap();
        let mut spec = world.script("p1", "main", "tr a-z A-Z; echo done >&2");
        (spec.stdin, spec.stdin_once) = (true, true);
        let id = runtime.start_container(&spec).await.unwrap().id;
        let mut attached = runtime.attach(&id).await.unwrap();
        let mut stdin = attached.stdin.take().unwrap();
        stdin.write_all(b"quiet\n").await.unwrap();
        drop(stdin);
        let (mut out, mut err) = (String::new(), String::new());
        attached.stdout.read_to_string(&mut out).await.unwrap();
        attached.stderr.take().unwrap().read_to_string(&mut err).await.unwrap();
        assert_eq!((out.as_str(), err.as_str()), ("QUIET\n", "done\n"));
        assert_eq!(code(&ended(&runtime, &id).await), 0);
        assert_eq!(world.log(&spec), ["stdout F QUIET", "stderr F done"]);
    });
}

#[test]
fn stopping_is_polite_first_and_certain_in_the_end() {
    let world = World::new("stop");
    let runtime = world.open();
    world.block_on(async {
        runtime.ensure_sandbox(&world.sandbox("p1")).await.unwrap();
        let ready = "echo ready; while :; do sleep 1000 & wait; done";
        let polite = world.script("p1", "polite", &format!("trap 'echo bye; exit 9' TERM; {ready}"));
        let stubborn = world.script("p1", "stubborn", &format!("trap '' TERM; {ready}"));
        for spec in [&polite, &stubborn] {
            let id = runtime.start_container(spec).await.unwrap().id;
            // The handler is set once the first line is out.
            let probe = [
                "/bin/sh",
                "-c",
                "while ! grep -q SigCgt /proc/1/status; do :; done; while [ $(ls /proc | grep -c '^[0-9]') -lt 4 ]; \
                    do :; done",
            ];
            runtime.exec_probe(&id, &probe.map(str::to_owned), PATIENCE).await.unwrap();
        }
        let status = runtime.stop_container(&polite.id(), None, PATIENCE).await.unwrap();
        assert_eq!(code(&status), 9);
        assert!(world.log(&polite).contains(&"stdout F bye".to_owned()));
        let status = runtime.stop_container(&stubborn.id(), None, Duration::from_millis(50)).await.unwrap();
        assert!(
            matches!(status.state, ContainerState::Exited { code: 137, signal: Some(9), oom: false, .. }),
            "{status:?}"
        );
        assert_eq!(
            runtime.stop_container(&stubborn.id(), None, PATIENCE).await.unwrap(),
            status,
            "stopping the stopped is nothing"
        );
    });
}

/// V7, S11: what runs goes on running while the main process is away, and is the same afterwards.
#[test]
fn a_restarted_runtime_adopts_what_runs_and_what_ended_meanwhile() {
    let world = World::new("adopt");
    let mut first = world.open();
    let sandbox = world.sandbox("p1");
    let lives = world.script("p1", "lives", "exec sleep 1000");
    let ends = world.script("p1", "ends", "exec sleep 0.3; exit 0");
    let (sandbox_before, lives_before) = world.block_on(async {
        let status = first.ensure_sandbox(&sandbox).await.unwrap();
        let lives = first.start_container(&lives).await.unwrap();
        first.start_container(&ends).await.unwrap();
        first.set_sandbox_annotation("p1", "address", "10.0.0.7").await.unwrap();
        (status, lives)
    });
    for _ in 0..2 {
        let again = world.open();
        drop(std::mem::replace(&mut first, again));
        let now = first.status(&lives.id()).unwrap();
        assert_eq!(now, lives_before, "same process, same start");
        let sandboxes = first.sandboxes();
        let found = sandboxes.first().unwrap();
        assert_eq!((&found.netns_path, found.ready), (&sandbox_before.netns_path, true));
        assert_eq!(found.annotations.get("address").map(String::as_str), Some("10.0.0.7"));
    }
    world.block_on(async {
        assert_eq!(code(&ended(&first, &ends.id()).await), 0);
        assert!(matches!(first.start_container(&ends).await, Err(RuntimeError::Exists(_))));
        let probe = first.exec_probe(&lives.id(), &["/bin/hostname".to_owned()], PATIENCE).await.unwrap();
        assert_eq!(probe, (0, b"p1-host\n".to_vec()));
        assert_eq!(code(&first.stop_container(&lives.id(), Some(15), Duration::ZERO).await.unwrap()), 137);
    });
}

/// S1: a supervisor that dies must not leave a container that nobody can stop.
#[test]
fn without_its_supervisor_a_container_is_ended() {
    let world = World::new("orphan");
    let runtime = world.open();
    world.block_on(async {
        runtime.ensure_sandbox(&world.sandbox("p1")).await.unwrap();
        let spec = world.script("p1", "main", "exec sleep 1000");
        let status = runtime.start_container(&spec).await.unwrap();
        let ContainerState::Running { pid, .. } = status.state else { panic!("{status:?}") };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let shim: i32 = stat.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::Signal::SIGKILL).unwrap();
        assert_eq!(ended(&runtime, &spec.id()).await.state, ContainerState::Unknown);
        let left = std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .map(|stat| stat.contains(") Z ") || stat.contains(") X "));
        assert!(left.unwrap_or(true), "process {pid} still runs");
    });
}

#[test]
fn limits_hold_and_the_oom_killer_is_named() {
    let world = World::new("limits");
    let runtime = world.open();
    world.block_on(async {
        runtime.ensure_sandbox(&world.sandbox("p1")).await.unwrap();
        let mut spec = world.script("p1", "main", "dd if=/dev/zero of=/dev/null bs=200M count=3");
        spec.memory_limit = Some(32 << 20);
        (spec.cpu_limit_milli, spec.cpu_request_milli, spec.pids_limit) = (Some(500), Some(250), Some(50));
        // As a guaranteed pod asks for it; without the right to lower it, the nearest is taken.
        spec.oom_score_adj = -997;
        runtime.start_container(&spec).await.unwrap();
        let status = ended(&runtime, &spec.id()).await;
        assert!(matches!(status.state, ContainerState::Exited { code: 137, oom: true, .. }), "{status:?}");
    });
}

/// Conformance, pod-level resources: what all containers of a pod may use together.
#[test]
fn conformance_a_pods_own_limits_hold_for_its_containers_together() {
    let world = World::new("pod-limits");
    let runtime = world.open();
    world.block_on(async {
        let mut sandbox = world.sandbox("p1");
        sandbox.limits.memory_limit = Some(32 << 20);
        (sandbox.limits.cpu_limit_milli, sandbox.limits.cpu_request_milli) = (Some(500), Some(250));
        runtime.ensure_sandbox(&sandbox).await.unwrap();
        let spec = world.script("p1", "main", "dd if=/dev/zero of=/dev/null bs=200M count=3");
        runtime.start_container(&spec).await.unwrap();
        let status = ended(&runtime, &spec.id()).await;
        assert!(matches!(status.state, ContainerState::Exited { code: 137, .. }), "{status:?}");
        // Without limits of the pod the same container ends well.
        runtime.ensure_sandbox(&world.sandbox("p2")).await.unwrap();
        let spec = world.script("p2", "main", "dd if=/dev/zero of=/dev/null bs=200M count=3");
        runtime.start_container(&spec).await.unwrap();
        assert_eq!(code(&ended(&runtime, &spec.id()).await), 0);
        runtime.remove_sandbox("p1").await.unwrap();
        runtime.remove_sandbox("p2").await.unwrap();
    });
}

#[test]
fn what_cannot_start_says_why_and_leaves_nothing() {
    let world = World::new("fails");
    let runtime = world.open();
    world.block_on(async {
        runtime.ensure_sandbox(&world.sandbox("p1")).await.unwrap();
        let mut spec = world.script("p1", "main", "true");
        let why = async |change: &dyn Fn(&mut mainstay_runtime::ContainerSpec)| {
            let mut broken = spec.clone();
            change(&mut broken);
            runtime.start_container(&broken).await.unwrap_err().to_string()
        };
        let table = [
            (
                why(&|spec| spec.args = vec!["nothing".to_owned()]).await,
                "exec: \"nothing\": executable file not found in $PATH",
            ),
            (why(&|spec| spec.args = vec!["/etc/passwd".to_owned()]).await, "exec: \"/etc/passwd\": permission denied"),
            (why(&|spec| spec.args = Vec::new()).await, "no command specified"),
            (why(&|spec| spec.image_id = format!("sha256:{}", "0".repeat(64))).await, "not found"),
            (why(&|spec| spec.pod_uid = "nobody".to_owned()).await, "sandbox of pod nobody not found"),
            (
                why(&|spec| {
                    spec.mounts = vec![mainstay_runtime::Mount {
                        source: "/no/such".into(),
                        target: "/x".to_owned(),
                        ..Default::default()
                    }]
                })
                .await,
                "/no/such",
            ),
        ];
        for (message, expected) in table {
            assert!(message.contains(expected), "{message:?} should contain {expected:?}");
        }
        assert!(runtime.list().is_empty());
        assert_eq!(std::fs::read_dir(world.dir.join("containers/c")).unwrap().count(), 0);
        // And the same attempt can then be made well.
        spec.mounts = vec![mainstay_runtime::Mount {
            source: world.dir.clone(),
            target: "/mnt/dir".to_owned(),
            read_only: true,
            ..Default::default()
        }];
        spec.args = ["/bin/sh", "-c", "ls /mnt/dir/images/lock && ! echo x > /mnt/dir/x"].map(str::to_owned).to_vec();
        runtime.start_container(&spec).await.unwrap();
        assert_eq!(code(&ended(&runtime, &spec.id()).await), 0);
    });
}

#[test]
fn containers_of_a_pod_share_what_a_sandbox_shares() {
    let world = World::new("shared");
    let runtime = world.open();
    world.block_on(async {
        let mut sandbox = world.sandbox("p1");
        sandbox.share_process_namespace = true;
        sandbox.sysctls.insert("net.ipv4.tcp_keepalive_time".to_owned(), "77".to_owned());
        runtime.ensure_sandbox(&sandbox).await.unwrap();
        let first = world.script("p1", "one", "echo shared > /dev/shm/file; exec sleep 1000");
        runtime.start_container(&first).await.unwrap();
        let probe = ["/bin/sh", "-c", "while ! grep -q shared /dev/shm/file; do :; done"].map(str::to_owned);
        runtime.exec_probe(&first.id(), &probe, PATIENCE).await.unwrap();
        let second = world.script(
            "p1",
            "two",
            "cat /dev/shm/file /proc/sys/net/ipv4/tcp_keepalive_time; ps | grep -c 'sleep 100[0]'; hostname",
        );
        runtime.start_container(&second).await.unwrap();
        ended(&runtime, &second.id()).await;
        assert_eq!(world.log(&second), ["stdout F shared", "stdout F 77", "stdout F 1", "stdout F p1-host"]);
        runtime.remove_sandbox("p1").await.unwrap();
        assert!(runtime.list().is_empty());
    });
}

/// The demonstration's image: this program, its libraries and its loader, and nothing else.
#[test]
fn an_image_of_this_program_runs() {
    let world = World::new("self");
    let image = world.images.build_from_self("mainstay.local/demo:1", &["--list"], &[("IN_IMAGE", "yes")]).unwrap();
    assert_eq!(
        world.images.build_from_self("mainstay.local/demo:1", &["--list"], &[("IN_IMAGE", "yes")]).unwrap(),
        image
    );
    assert_eq!(image.names, ["mainstay.local/demo:1"]);
    let runtime = world.open();
    world.block_on(async {
        runtime.ensure_sandbox(&world.sandbox("p1")).await.unwrap();
        let mut spec = world.script("p1", "main", "");
        (spec.image_id, spec.args, spec.env) =
            (image.id, [image.config.entrypoint, image.config.cmd].concat(), image.config.env);
        let id = runtime.start_container(&spec).await.unwrap().id;
        assert_eq!(code(&ended(&runtime, &id).await), 0, "{:?}", world.log(&spec));
        assert!(world.log(&spec).contains(&"stdout F an_image_of_this_program_runs: test".to_owned()));
    });
}

/// Also covers a machine without some controllers: what is missing is left out, and the container runs.
#[test]
fn the_unified_tree_works_too() {
    let world = World::with_cgroup2("unified");
    let runtime = world.open();
    world.block_on(async {
        runtime.ensure_sandbox(&world.sandbox("p1")).await.unwrap();
        let mut spec = world.script("p1", "main", "echo up; sleep 1000 & sleep 1000");
        (spec.memory_limit, spec.cpu_limit_milli, spec.pids_limit) = (Some(64 << 20), Some(500), Some(100));
        let id = runtime.start_container(&spec).await.unwrap().id;
        let group = std::path::Path::new("/sys/fs/cgroup").join(&world.cgroup_root);
        assert!(group.join("supervisors/cgroup.procs").exists());
        let probe = ["/bin/sh", "-c", "cat /proc/self/cgroup | grep ^0:; ! /bin/busybox mknod /dev/sda b 8 0"]
            .map(str::to_owned);
        let (code_of_probe, output) = runtime.exec_probe(&id, &probe, PATIENCE).await.unwrap();
        assert_eq!((code_of_probe, output.starts_with(b"0::/")), (0, true), "{}", String::from_utf8_lossy(&output));
        runtime.stats(&id).unwrap();
        let status = runtime.stop_container(&id, Some(15), Duration::ZERO).await.unwrap();
        assert_eq!(code(&status), 137);
        runtime.remove_sandbox("p1").await.unwrap();
        assert!(!group.join("burstable/podp1").exists());
    });
}

/// S1, V7: a main process that is killed at any moment of a start leaves either a container that the next one knows, or
/// none. Nothing runs that nobody knows of, and what was told to run does run.
#[test]
fn a_main_process_killed_in_the_middle_of_a_start_leaves_nothing_unknown() {
    use std::io::BufRead;
    let world = World::new("killed");
    let mut told = Vec::new();
    for round in 0..12u32 {
        let mut main = std::process::Command::new(support::supervisor())
            .args(["start-for-ever", world.dir.to_str().unwrap(), &world.cgroup_root, &world.busybox])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = std::io::BufReader::new(main.stdout.take().unwrap()).lines();
        // Killed in the second start of the round, a little further in it each time.
        let mut starts = 0;
        while starts < 2 {
            match lines.next().unwrap().unwrap().as_str() {
                "starting" => starts += 1,
                id => told.push(id.to_owned()),
            }
        }
        let moment = std::time::Instant::now() + Duration::from_millis(u64::from(round) * 3);
        while std::time::Instant::now() < moment {
            std::hint::spin_loop();
        }
        main.kill().unwrap();
        main.wait().unwrap();
        told.extend(lines.map_while(Result::ok).filter(|line| line != "starting"));
    }
    let runtime = world.open();
    let mut known = std::collections::BTreeSet::new();
    for status in runtime.list() {
        let ContainerState::Running { pid, .. } = status.state else { panic!("{status:?}") };
        assert!(
            std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap().starts_with("/bin/sleep"),
            "{status:?}"
        );
        known.insert(pid.to_string());
        told.retain(|id| *id != status.id);
    }
    assert!(told.is_empty(), "told to run and gone: {told:?}");
    assert!(known.len() >= 12);
    let tree = std::path::Path::new("/sys/fs/cgroup/pids").join(&world.cgroup_root).join("podp1");
    let tree = if tree.exists() {
        tree
    } else {
        std::path::Path::new("/sys/fs/cgroup").join(&world.cgroup_root).join("podp1")
    };
    for group in std::fs::read_dir(tree).unwrap().flatten().filter(|entry| entry.file_type().unwrap().is_dir()) {
        for pid in std::fs::read_to_string(group.path().join("cgroup.procs")).unwrap().lines() {
            assert!(
                known.contains(pid),
                "process {pid} is unknown: {:?}",
                std::fs::read_to_string(format!("/proc/{pid}/comm"))
            );
        }
    }
}

#[test]
fn many_start_and_stop_at_once() {
    let world = World::new("many");
    let runtime = world.open();
    world.block_on(async {
        let pods: Vec<String> = (0..8).map(|number| format!("p{number}")).collect();
        let tasks: Vec<_> = pods
            .iter()
            .map(|pod| {
                let (runtime, sandbox) = (runtime.clone(), world.sandbox(pod));
                let specs: Vec<_> =
                    (0..3).map(|number| world.script(pod, &format!("c{number}"), "echo on; exec sleep 1000")).collect();
                tokio::spawn(async move {
                    runtime.ensure_sandbox(&sandbox).await.unwrap();
                    for spec in &specs {
                        runtime.start_container(spec).await.unwrap();
                    }
                    runtime.remove_sandbox(&sandbox.pod_uid).await.unwrap();
                    specs
                })
            })
            .collect();
        for task in tasks {
            for spec in tokio::time::timeout(PATIENCE * 3, task).await.unwrap().unwrap() {
                assert!(world.log(&spec).iter().all(|line| line == "stdout F on"));
            }
        }
        assert!(runtime.list().is_empty() && runtime.sandboxes().is_empty());
    });
}
