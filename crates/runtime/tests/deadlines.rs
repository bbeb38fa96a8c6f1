//! Deadlines (S13): containers that end when nobody renews.

mod support;

/// What is re-executed as a supervisor.
const SUPERVISOR: &str = "shim";

use std::time::Duration;

use mainstay_runtime::{ContainerState, Deadline, Runtime, fence, layout};
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

/// S13: a supervisor that is killed takes its container along, since nobody else would end it at the deadline.
#[test]
fn s13_a_container_with_a_deadline_does_not_outlive_its_supervisor() {
    let world = World::new("orphan");
    let main = process();
    let runtime = world.open_in(&main);
    let mut spec = world.script("p1", "main", "sleep 1000 & echo ready; wait");
    let status = main.block_on(async {
        runtime.ensure_sandbox(&world.sandbox("p1")).await.unwrap();
        spec.deadline = renew(&runtime, 1000);
        runtime.start_container(&spec).await.unwrap()
    });
    let ContainerState::Running { pid, .. } = status.state else { panic!("{status:?}") };
    drop((runtime, main));
    let dir = world.dir.join("containers/c").join(layout::short(&spec.id()));
    let state: layout::StateRecord = layout::read_record(&dir, layout::STATE).unwrap();
    let cgroup = format!("/proc/{pid}/cgroup");
    assert!(std::fs::read_to_string(&cgroup).unwrap().contains("podp1"));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(state.shim_pid), nix::sys::signal::SIGKILL).unwrap();
    let begun = std::time::Instant::now();
    while std::fs::read_to_string(&cgroup).is_ok_and(|text| text.contains("podp1")) {
        assert!(begun.elapsed() < PATIENCE, "it goes on without its supervisor");
        std::thread::yield_now();
    }
}
