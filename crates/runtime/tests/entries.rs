//! What a container does with what comes into it from outside: the process that its pod's containers share a PID
//! namespace with, and the commands that are executed in it (X4, X6, S11, S12).

mod support;

/// The example that is executed as a supervisor.
const SUPERVISOR: &str = "shim";

use std::time::{Duration, Instant};

use mainstay_runtime::{
    ContainerSpec, ContainerState, ExecPurpose, ExecSpec, Runtime, SandboxSpec, SeccompProfile, layout,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::World;

/// Nothing here takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a command in a running container: what it wrote.
async fn output(runtime: &Runtime, id: &str, args: &[&str]) -> String {
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    String::from_utf8(runtime.exec_probe(id, &args, PATIENCE).await.unwrap().1).unwrap()
}

async fn shell(runtime: &Runtime, id: &str, script: &str) -> String {
    output(runtime, id, &["/bin/sh", "-c", script]).await
}

fn eventually(what: &str, is: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        std::thread::yield_now();
    }
}

fn shared(world: &World) -> SandboxSpec {
    SandboxSpec { share_process_namespace: true, ..world.sandbox("p1") }
}

/// A container that may trace every process of its pod.
fn debugger(world: &World, attempt: u32) -> ContainerSpec {
    let mut spec = world.script("p1", "main", "exec sleep 1000");
    (spec.capabilities_add, spec.no_new_privileges) = (vec!["SYS_PTRACE".to_owned()], false);
    spec.attempt = attempt;
    spec
}

/// The first process of the namespace that a pod's containers share.
fn pause(world: &World) -> Pid {
    let record = world.dir.join("containers/s").join(layout::short("p1")).join("sandbox.json");
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
    Pid::from_raw(record["pause"]["pid"].as_i64().unwrap().try_into().unwrap())
}

/// What is to be seen of the first process, and through it.
const LOOK: &str = "cd /proc/1; ls -A root/ | wc -l; ls fd | wc -l; (: > root/x) 2>&1 | grep -o 'ead-only'
    for ns in net ipc uts pid; do
        [ \"$(busybox readlink ns/$ns)\" = \"$(busybox readlink /proc/self/ns/$ns)\" ] && echo $ns; done
    grep -E '^(CapPrm|CapBnd|NoNewPrivs|Seccomp):' status | tr '\\t' ' '; grep -q '/pause$' cgroup && echo group";
const SEEN: &str = "0\n0\nead-only\nnet\nipc\nuts\npid\nCapPrm: 0000000000000000\nCapBnd: 0000000000000000\n\
    NoNewPrivs: 1\nSeccomp: 2\ngroup\n";

/// X6: who debugs a pod has its first process in its hands, and reaches nothing of the host's by it. S11: it is in its
/// pod's group, where nobody ends it who stops the service.
fn has_nothing_to_reach(world: &World) {
    let runtime = world.open();
    world.block_on(async {
        runtime.ensure_sandbox(&shared(world)).await.unwrap();
        let id = runtime.start_container(&debugger(world, 0)).await.unwrap().id;
        assert_eq!(shell(&runtime, &id, LOOK).await, SEEN);
    });
}

#[test]
fn x6_the_first_process_of_a_shared_namespace_has_nothing_to_reach() {
    has_nothing_to_reach(&World::new("pause"));
}

#[test]
fn x6_the_first_process_of_a_shared_namespace_has_nothing_to_reach_in_the_unified_tree() {
    has_nothing_to_reach(&World::with_cgroup2("pause2"));
}

#[test]
fn s12_a_sandbox_whose_first_process_was_killed_is_dead_and_is_made_anew() {
    let world = World::new("pause-killed");
    let runtime = world.open();
    world.block_on(async {
        assert!(runtime.ensure_sandbox(&shared(&world)).await.unwrap().ready);
        runtime.start_container(&debugger(&world, 0)).await.unwrap();
        assert!(!runtime.has_dead_sandbox("p1"));
        kill(pause(&world), Signal::SIGKILL).unwrap();
        eventually("nobody sees that it is dead", || runtime.has_dead_sandbox("p1"));
        assert!(!runtime.sandboxes()[0].ready);
        let of_main = || runtime.list()[0].state.clone();
        eventually("a container outlives its namespace", || matches!(of_main(), ContainerState::Exited { .. }));
        assert!(runtime.start_container(&debugger(&world, 1)).await.is_err());
        runtime.remove_sandbox("p1").await.unwrap();
        assert!(runtime.ensure_sandbox(&shared(&world)).await.unwrap().ready);
        let id = runtime.start_container(&debugger(&world, 2)).await.unwrap().id;
        assert_eq!(shell(&runtime, &id, "cat /proc/1/comm").await, "pause\n");
        // As with upstream's runtimes, byte for byte: nothing of the host's paths.
        assert_eq!(shell(&runtime, &id, "cat /proc/1/cmdline | tr '\\0' '|'").await, "/pause|");
    });
}

/// X6, X2: keys are a container's own, and not the service's.
#[test]
fn x6_every_container_and_command_has_a_session_keyring_of_its_own() {
    let world = World::new("keyrings");
    let runtime = world.open();
    let own = ["/proc/self/exe", "keyring"];
    let mut seen = world.block_on(async {
        runtime.ensure_sandbox(&world.sandbox("p1")).await.unwrap();
        let mut seen = Vec::new();
        for name in ["one", "two"] {
            let mut spec = world.script("p1", name, "exec sleep 1000");
            (spec.mounts, spec.seccomp) = (support::libraries(), SeccompProfile::Unconfined);
            let waits = runtime.start_container(&spec).await.unwrap().id;
            seen.push(output(&runtime, &waits, &own).await);
            (spec.name, spec.args) = (format!("{name}-itself"), own.map(str::to_owned).to_vec());
            spec.log_path = world.dir.join(format!("logs/{}.log", spec.name));
            let id = runtime.start_container(&spec).await.unwrap().id;
            let ended = || matches!(runtime.status(&id).unwrap().state, ContainerState::Exited { .. });
            eventually("it does not end", ended);
            seen.extend(world.log(&spec).iter().map(|line| line.replace("stdout F ", "") + "\n"));
        }
        seen
    });
    let itself = std::process::Command::new(support::supervisor()).arg("keyring").output().unwrap();
    seen.push(String::from_utf8(itself.stdout).unwrap());
    assert!(seen.iter().all(|number| number.trim().parse::<i32>().is_ok_and(|number| number > 0)), "{seen:?}");
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 5, "two have the same one: {seen:?}");
}

/// The processes of this name that this one has started.
fn children_named(name: &str) -> usize {
    let own = std::process::id().to_string();
    let is_one = |stat: String| {
        let (before, after) = stat.rsplit_once(") ").unwrap();
        before.ends_with(&format!("({name}")) && after.split(' ').nth(1) == Some(&own)
    };
    let stats = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path().join("stat"));
    stats.filter_map(|path| std::fs::read_to_string(path).ok()).filter(|stat| is_one(stat.clone())).count()
}

/// The processes in a container's group.
fn processes_of(id: &str) -> usize {
    let group = layout::short(id);
    let groups = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path().join("cgroup"));
    groups.filter(|path| std::fs::read_to_string(path).is_ok_and(|text| text.contains(&group))).count()
}

/// X4, X7: a container that stops whatever enters it keeps neither our processes nor the command's.
#[test]
fn x4_a_command_that_a_container_keeps_from_starting_leaves_no_process() {
    let world = World::new("stopped-execs");
    let runtime = world.open();
    let stop = "while :; do for p in /proc/[0-9]*; do n=${p#/proc/}; [ $n != 1 ] && kill -STOP $n 2>&-; done; done";
    world.block_on(async {
        runtime.ensure_sandbox(&world.sandbox("p1")).await.unwrap();
        let id = runtime.start_container(&world.script("p1", "main", stop)).await.unwrap().id;
        let mut caught = 0;
        for _ in 0..200 {
            let spec = ExecSpec { args: vec!["/bin/true".to_owned()], ..ExecSpec::default() };
            let begun = tokio::time::timeout(Duration::from_millis(500), runtime.exec(&id, spec)).await;
            caught += usize::from(begun.is_err());
            if caught == 3 {
                break;
            }
        }
        assert_eq!(caught, 3, "no command was stopped before it ran");
        eventually("a process of ours stays", || children_named("mainstay-exec") == 0);
        eventually("a process of the command stays", || processes_of(&id) == 1);
        assert!(matches!(runtime.status(&id).unwrap().state, ContainerState::Running { .. }));
    });
}

/// A database's preStop is not passed over because of people who are in its container.
#[test]
fn s12_x7_commands_of_people_keep_neither_probes_nor_hooks_from_running() {
    let world = World::new("many-execs");
    let runtime = world.open();
    world.block_on(async {
        runtime.ensure_sandbox(&world.sandbox("p1")).await.unwrap();
        let id = runtime.start_container(&world.script("p1", "main", "exec sleep 1000")).await.unwrap().id;
        let of = |args: &[&str]| args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>();
        let sleep = |purpose| ExecSpec { args: of(&["sleep", "1000"]), purpose, ..ExecSpec::default() };
        let echo = of(&["echo", "fine"]);
        let mut people = Vec::new();
        let refused = loop {
            match runtime.exec(&id, sleep(ExecPurpose::Session)).await {
                Ok(command) => people.push(command),
                Err(error) => break error.to_string(),
            }
            assert!(people.len() <= 128, "no limit");
        };
        assert!(refused.contains("128 commands run in the container"), "{refused}");
        let fine = (0, b"fine\n".to_vec());
        assert_eq!(runtime.exec_probe(&id, &echo, PATIENCE).await.unwrap(), fine);
        assert_eq!(runtime.exec_hook(&id, &echo, PATIENCE).await.unwrap(), fine);
        // Probes that do not end keep no hook from running, either.
        let mut probes = Vec::new();
        while let Ok(command) = runtime.exec(&id, sleep(ExecPurpose::Probe)).await {
            probes.push(command);
            assert!(probes.len() <= 8, "no limit");
        }
        assert!(runtime.exec_probe(&id, &echo, PATIENCE).await.is_err());
        assert_eq!(runtime.exec_hook(&id, &echo, PATIENCE).await.unwrap(), fine);
    });
}
