//! Deadlines (S13): containers that end when nobody renews.

mod support;

/// What is re-executed as a supervisor.
const SUPERVISOR: &str = "shim";

use std::time::Duration;

use mainstay_runtime::{ContainerState, Deadline, Runtime, SandboxSpec, fence, layout};
use support::World;

/// Nothing here takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// What dies with a main process.
fn process() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// What the agent does after a renewal.
fn renew(runtime: &Runtime, seconds: u32) -> Option<Deadline> {
    let now = fence::boottime();
    runtime.renewed(now, now, Duration::from_secs(seconds.into())).unwrap();
    Some(Deadline { seconds, since: runtime.renewals().since })
}

/// S13: at its deadline a container is ended with all that it has begun, by its own supervisor: no main process is
/// there.
#[test]
fn s13_a_supervisor_ends_its_container_at_the_deadline_without_a_main_process() {
    let world = World::new("deadline");
    let main = process();
    let runtime = world.open_in(&main);
    let forks = "trap '' TERM HUP; (trap '' TERM HUP; while :; do sleep 1000; done) & echo ready; wait";
    let mut doomed = world.script("p1", "doomed", forks);
    doomed.deadline = Some(Deadline { seconds: 2, since: Duration::ZERO });
    let other = world.script("p1", "other", "exec sleep 1000");
    let lease = Duration::from_secs(2);
    let begun = main.block_on(async {
        runtime.ensure_sandbox(&world.sandbox("p1")).await.unwrap();
        // Without a renewal nothing with a deadline begins.
        let refused = runtime.start_container(&doomed).await.unwrap_err();
        assert!(refused.to_string().contains("has not renewed its lease"), "{refused}");
        doomed.deadline = renew(&runtime, 2);
        runtime.start_container(&doomed).await.unwrap();
        runtime.start_container(&other).await.unwrap();
        fence::boottime()
    });
    // Renewals move it.
    while fence::boottime() < begun + Duration::from_secs(4) {
        std::thread::yield_now();
        renew(&runtime, 2);
    }
    let last = runtime.renewals().last;
    assert!(matches!(runtime.status(&doomed.id()).unwrap().state, ContainerState::Running { .. }));
    drop((runtime, main));
    let dir = world.dir.join("containers/c").join(layout::short(&doomed.id()));
    let exit = || layout::read_record::<layout::ExitRecord>(&dir, layout::EXIT);
    let ended = loop {
        match exit() {
            Some(exit) => break exit,
            None => std::thread::yield_now(),
        }
        assert!(fence::boottime() < last + Duration::from_secs(10), "it is not ended");
    };
    let after = fence::boottime() - last;
    assert!(after >= lease && after < lease + Duration::from_secs(2), "ended {after:?} after the last renewal");
    assert!(ended.fenced && ended.code == 137, "{ended:?}");

    // A main process that comes again knows it; what has no deadline is still there.
    let runtime = world.open();
    let state = runtime.status(&doomed.id()).unwrap().state;
    assert!(matches!(state, ContainerState::Exited { code: 137, fenced: true, oom: false, .. }), "{state:?}");
    assert!(matches!(runtime.status(&other.id()).unwrap().state, ContainerState::Running { .. }));
    // Nothing begins again before the next renewal.
    let mut again = doomed.clone();
    again.attempt = 1;
    assert!(world.block_on(runtime.start_container(&again)).is_err());
    let anew = renew(&runtime, 2);
    assert!(world.block_on(runtime.start_container(&again)).is_err(), "asked for before the gap");
    again.deadline = anew;
    world.block_on(runtime.start_container(&again)).unwrap();
    world.block_on(runtime.kill_container(&again.id())).unwrap();
}

/// Whether a process is in a container's group, and has not ended.
fn runs(id: &str) -> bool {
    let group = layout::short(id);
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    processes.into_iter().any(|process| {
        let read = |name: &str| std::fs::read_to_string(process.join(name)).unwrap_or_default();
        read("cgroup").contains(&group)
            && !read("stat").rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
    })
}

fn eventually(what: &str, is: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !is() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        std::thread::yield_now();
    }
}

fn state_of(world: &World, id: &str) -> layout::StateRecord {
    layout::read_record(&world.dir.join("containers/c").join(layout::short(id)), layout::STATE).unwrap()
}

fn kill(pid: i32) {
    signal(pid, nix::sys::signal::SIGKILL);
}

fn signal(pid: i32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
}

/// S13: a supervisor that is killed takes its container along, since nobody else would end it at the deadline: also one
/// that changed its user, as most images do, and what it began in a namespace that others share. No main process is
/// there.
#[test]
fn s13_a_container_with_a_deadline_does_not_outlive_its_supervisor() {
    let world = World::new("orphan");
    let main = process();
    let runtime = world.open_in(&main);
    let drops = "exec busybox su -s /bin/sh app -c 'sleep 1000 & exec sleep 1000'";
    let cases = [
        ("p1", "root", "sleep 1000 & exec sleep 1000", "0"),
        ("p1", "drops", drops, "1000"),
        ("p2", "shared", drops, "1000"),
    ];
    let started = main.block_on(async {
        runtime.ensure_sandbox(&world.sandbox("p1")).await.unwrap();
        let shared = SandboxSpec { share_process_namespace: true, ..world.sandbox("p2") };
        runtime.ensure_sandbox(&shared).await.unwrap();
        let mut started = Vec::new();
        for (pod, name, script, user) in cases {
            let mut spec = world.script(pod, name, script);
            spec.deadline = renew(&runtime, 1000);
            started.push((runtime.start_container(&spec).await.unwrap().id, user));
        }
        started
    });
    drop((runtime, main));
    for (id, user) in started {
        let state = state_of(&world, &id);
        let status = || std::fs::read_to_string(format!("/proc/{}/status", state.pid)).unwrap_or_default();
        let is = |status: &str| status.contains("\tsleep\n") && status.contains(&format!("Uid:\t{user}\t"));
        eventually("it does not change its user", || is(&status()));
        kill(state.shim_pid);
        eventually("it goes on without its supervisor", || !runs(&id));
    }
}

/// S13: so does who ends it then, and the container's end is known.
#[test]
fn s13_a_supervisor_whose_sentinel_was_killed_ends_its_container() {
    let world = World::new("sentinel");
    let runtime = world.open();
    let mut spec = world.script("p1", "main", "exec sleep 1000");
    let id = world.block_on(async {
        runtime.ensure_sandbox(&world.sandbox("p1")).await.unwrap();
        spec.deadline = renew(&runtime, 1000);
        runtime.start_container(&spec).await.unwrap().id
    });
    let shim = state_of(&world, &id).shim_pid;
    let children = std::fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).unwrap();
    let children = children.split_whitespace().map(|pid| pid.parse::<i32>().unwrap());
    let comm = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let sentinels: Vec<i32> = children.filter(|pid| comm(*pid).trim() == "mainstay-sentry").collect();
    let [sentinel] = sentinels[..] else { panic!("{sentinels:?}") };
    kill(sentinel);
    let state = || runtime.status(&id).unwrap().state;
    eventually("it goes on without its sentinel", || !matches!(state(), ContainerState::Running { .. }));
    assert!(matches!(state(), ContainerState::Exited { code: 137, fenced: false, .. }), "{:?}", state());
    assert!(!runs(&id) && comm(shim).is_empty());
}

/// S13: a supervisor that is stopped, as a debugger or an administrator does, misses its deadline; who stands beside it
/// does not.
#[test]
fn s13_a_container_ends_at_its_deadline_while_its_supervisor_is_stopped() {
    let world = World::new("stopped");
    let runtime = world.open();
    let mut spec = world.script("p1", "main", "trap '' TERM; sleep 1000 & while :; do sleep 1000; done");
    let id = world.block_on(async {
        runtime.ensure_sandbox(&world.sandbox("p1")).await.unwrap();
        spec.deadline = renew(&runtime, 3);
        runtime.start_container(&spec).await.unwrap().id
    });
    let shim = state_of(&world, &id).shim_pid;
    signal(shim, nix::sys::signal::SIGSTOP);
    assert!(runs(&id));
    eventually("it goes on behind its deadline", || !runs(&id));
    assert!(fence::boottime() >= runtime.renewals().last + Duration::from_secs(3), "before its deadline");
    // What ended it is known when the supervisor goes on.
    signal(shim, nix::sys::signal::SIGCONT);
    let state = || runtime.status(&id).unwrap().state;
    eventually("its end is not noted", || !matches!(state(), ContainerState::Running { .. }));
    assert!(matches!(state(), ContainerState::Exited { code: 137, fenced: true, .. }), "{:?}", state());
}
