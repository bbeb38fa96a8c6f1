//! How a pod ends on its node, and which facts count for what.

use super::*;

fn hooked() -> Value {
    json!({ "terminationGracePeriodSeconds": 30, "containers": [
        { "name": "c", "image": "img:1", "lifecycle": { "preStop": { "exec": {} } } },
        { "name": "d", "image": "img:1", "lifecycle": { "postStart": { "exec": {} } } },
    ] })
}

fn actions(bench: &Bench) -> Vec<String> {
    decide(&bench.view, bench.now).actions.iter().map(show_action).collect()
}

fn waiting(bench: &Bench) -> Vec<Waiting> {
    decide(&bench.view, bench.now).waiting
}

/// S1: what a dead sandbox left behind is stopped before another one is made.
#[test]
fn s1_what_runs_in_a_dead_sandbox_is_stopped_before_the_next_one_is_made() {
    let mut bench = Bench::new(hooked());
    bench.network().started("c", 0).started("d", 0).pass(60);
    let since = bench.now;
    bench.fact(Fact::Sandbox(Sandbox::Dead { since })).pass(5);
    assert_eq!(actions(&bench), ["Stop c/0 by 01:30 preStop", "Stop d/0 by 01:30"]);
    bench.exited("c", 0, 137);
    assert_eq!(actions(&bench), ["Stop d/0 by 01:30"], "the sandbox stays meanwhile");
    bench.exited("d", 0, 137);
    assert_eq!(actions(&bench), ["RemoveSandbox"]);
    assert!(
        bench.events.contains(&"SandboxChanged: Pod sandbox changed, it will be killed and re-created.".to_owned())
    );
    // One that was dead when it was found is no news.
    let mut bench = Bench::new(hooked());
    bench.fact(Fact::Sandbox(Sandbox::Dead { since }));
    assert_eq!(bench.events, [""; 0]);
}

/// S1: a pod that is another machine's by now ends here, and nothing says of it that it was told to stop: who is the
/// node again by a person's word would take it from the API for that.
#[test]
fn s1_a_pod_of_another_machine_ends_here_without_a_note_and_stays_in_the_api() {
    let mut bench = Bench::new(one_container());
    bench.started("c", 0).fact(Fact::Replaced);
    assert_eq!(actions(&bench), ["Stop c/0 by 00:30"]);
    bench.exited("c", 0, 143);
    assert_eq!(actions(&bench), ["Unmount"]);
    bench.fact(Fact::Unmounted);
    assert_eq!(actions(&bench), ["Remove c/0"]);
}

/// S2: nothing is forgotten of a pod that is gone before all that was begun of it has ended.
#[test]
fn s2_a_pod_that_is_gone_is_noted_where_anything_of_it_is_here() {
    let mut bench = Bench::new(one_container());
    bench.fact(Fact::Gone);
    assert_eq!(actions(&bench), ["Unmount"], "nothing was begun: there is nothing to remember");
    bench.fact(Fact::Unmounted);
    assert_eq!(actions(&bench), ["Forget"]);
    let mut bench = Bench::new(one_container());
    bench.network().fact(Fact::Gone);
    assert_eq!(actions(&bench), ["Remember"], "it has a sandbox");
    let mut bench = Bench::new(one_container());
    bench.started("c", 0).fact(Fact::Gone);
    assert_eq!(actions(&bench), ["Remember"], "it has a container");
    bench.fact(Fact::Remembered(true));
    assert_eq!((actions(&bench), waiting(&bench)), (vec!["Stop c/0 by 00:30".to_owned()], vec![Waiting::InUse]));
    let mut bench = Bench::new(one_container());
    assert_eq!(actions(bench.deleted(1)), ["Remember"], "the API may still have it in an old list");
}

/// S2, V8: a volume that becomes ready while the pod goes is unmounted, too, however late it says so.
#[test]
fn s2_v8_whatever_is_mounted_after_the_unmount_is_unmounted_again() {
    let late: [fn() -> Fact; 3] = [
        || Fact::Volume { name: "v".into(), result: Ok(None) },
        || Fact::Volume { name: "v".into(), result: Err("half".into()) },
        || Fact::Sandbox(Sandbox::Ready { ip: None, made_at: None }),
    ];
    for late in late {
        let mut spec = one_container();
        spec["volumes"] = json!([{ "name": "v", "emptyDir": {} }]);
        let mut bench = Bench::new(spec);
        bench.deleted(1).fact(Fact::Remembered(true)).fact(Fact::Unmounted);
        assert_eq!(actions(&bench), ["Confirm"]);
        bench.fact(late()).fact(Fact::Sandbox(Sandbox::Absent));
        assert_eq!(actions(&bench), ["Unmount"], "{:?}", late());
    }
    // What was unmounted is not ready any more.
    let mut bench = Bench::new(one_container());
    bench.fact(Fact::Volume { name: "v".into(), result: Ok(None) }).fact(Fact::Unmounted);
    assert!(bench.view.volumes.is_empty());
}

#[test]
fn containers_stop_in_their_order_with_their_own_hooks() {
    let mut bench = Bench::new(hooked());
    bench.network().started("c", 0).started("d", 0).deleted(30).fact(Fact::Remembered(true));
    assert_eq!(actions(&bench), ["Stop c/0 by 00:30 preStop", "Stop d/0 by 00:30"]);
    // One that never ran has nothing to do before it stops.
    let mut bench = Bench::new(hooked());
    bench.network().life("c", 0, Life::Created).deleted(30).fact(Fact::Remembered(true));
    assert_eq!(actions(&bench), ["Stop c/0 by 00:30"]);
    // An init container that runs is no sidecar: it goes first.
    let mut spec = one_container();
    spec["initContainers"] = json!([{ "name": "s", "image": "img:1", "restartPolicy": "Always" },
        { "name": "i", "image": "img:1" }]);
    let mut bench = Bench::new(spec);
    bench.network().started("s", 0).started("i", 0).deleted(30).fact(Fact::Remembered(true));
    assert_eq!(actions(&bench), ["Stop i/0 by 00:30"]);
    bench.exited("i", 0, 143);
    assert_eq!(actions(&bench), ["Stop s/0 by 00:30"]);
}

#[test]
fn the_grace_of_what_is_left_counts_from_what_ended_the_pod() {
    let mut spec = json!({ "restartPolicy": "Never", "activeDeadlineSeconds": 5, "terminationGracePeriodSeconds": 3,
        "containers": [{ "name": "c", "image": "img:1" }, { "name": "d", "image": "img:1" }] });
    let mut bench = Bench::new(spec.clone());
    bench.network().started("c", 0).started("d", 0).step();
    bench.pass(1).exited("c", 0, 0);
    for seconds in [4, 1] {
        assert_eq!(actions(bench.pass(seconds)), ["Stop d/0 by 00:08"], "the deadline's, however late it is");
    }
    // It is over before its deadline, but for a sidecar.
    spec["initContainers"] = json!([{ "name": "s", "image": "img:1", "restartPolicy": "Always" }]);
    spec["activeDeadlineSeconds"] = json!(100);
    let mut bench = Bench::new(spec);
    bench.network().started("s", 0).started("c", 0).started("d", 0).step();
    bench.pass(1).exited("c", 0, 0).exited("d", 0, 0).pass(1);
    assert_eq!(actions(&bench), ["Stop s/0 by 00:04"]);
}

/// What is worth an event: its kind, its words, and whose it is.
#[test]
fn facts_are_told_in_upstreams_events() {
    let c = || "c".to_owned();
    let refusal = admission::Refusal { reason: "OutOfcpu", message: "no".into() };
    let pulled = |text: &str| Fact::Image { container: c(), image: "img:1".into(), result: Ok((c(), text.to_owned())) };
    let failed =
        |reason| Fact::Image { container: c(), image: "img:1".into(), result: Err((reason, "why".to_owned())) };
    let mount = "MountVolume.SetUp failed for volume \"v\" : why";
    for (fact, expected) in [
        (
            Fact::SandboxFailed("why".into()),
            &[(true, "FailedCreatePodSandBox", "Failed to create pod sandbox: why", "")][..],
        ),
        (Fact::Volume { name: "v".into(), result: Err("why".into()) }, &[(true, "FailedMount", mount, "")]),
        (Fact::Volume { name: "v".into(), result: Ok(None) }, &[]),
        (
            Fact::PullBegan { container: c(), image: "img:1".into() },
            &[(false, "Pulling", "Pulling image \"img:1\"", "c")],
        ),
        (pulled("Successfully pulled"), &[(false, "Pulled", "Successfully pulled", "c")]),
        (
            failed("InvalidImageName"),
            &[(true, "InspectFailed", "why", "c"), (true, "Failed", "Error: InvalidImageName", "c")],
        ),
        (
            failed("ErrImageNeverPull"),
            &[(true, "ErrImageNeverPull", "why", "c"), (true, "Failed", "Error: ErrImageNeverPull", "c")],
        ),
        (
            Fact::Started { container: c(), attempt: 0 },
            &[(false, "Created", "Container created", "c"), (false, "Started", "Container started", "c")],
        ),
        (
            Fact::StartFailed { container: c(), reason: "RunContainerError", message: "why".into() },
            &[(true, "Failed", "Error: why", "c")],
        ),
        (
            Fact::PostStart { container: c(), attempt: 0, result: Err("why".into()) },
            &[(true, "FailedPostStartHook", "PostStartHook failed: why", "c")],
        ),
        (Fact::PostStart { container: c(), attempt: 0, result: Ok(()) }, &[]),
        (Fact::Stopping { container: c(), why: "why".into() }, &[(false, "Killing", "why", "c")]),
        (
            Fact::PreStopFailed { container: c(), message: "why".into() },
            &[(true, "FailedPreStopHook", "PreStopHook failed: why", "c")],
        ),
        (Fact::Refused(refusal), &[(true, "OutOfcpu", "no", "")]),
        (Fact::Evicted { message: "why".into() }, &[(true, "Evicted", "why", "")]),
        (Fact::Notice { warning: true, reason: "R", message: "m".into() }, &[(true, "R", "m", "")]),
        (Fact::Notice { warning: false, reason: "R", message: "m".into() }, &[(false, "R", "m", "")]),
        (Fact::Remembered(true), &[]),
        (Fact::Unmounted, &[]),
        (Fact::DependencyChanged, &[]),
    ] {
        let mut bench = Bench::new(one_container());
        let events = bench.view.apply(fact.clone(), bench.now);
        let told: Vec<_> = events
            .iter()
            .map(|one| (one.warning, one.reason, one.message.as_str(), one.container.as_deref().unwrap_or("")))
            .collect();
        assert_eq!(told, expected, "{fact:?}");
    }
    let mut bench = Bench::new(one_container());
    let since = bench.now;
    bench.network();
    let changed = bench.view.apply(Fact::Sandbox(Sandbox::Dead { since }), bench.now);
    assert!(matches!(&*changed, [PodEvent { warning: false, reason: "SandboxChanged", container: None, .. }]));
}

fn probed(probe: &Value) -> Bench {
    let mut spec = one_container();
    spec["containers"][0]["livenessProbe"] = probe.clone();
    spec["containers"][0]["readinessProbe"] = probe.clone();
    let mut bench = Bench::new(spec);
    bench.network().started("c", 0);
    bench
}

#[test]
fn a_probe_says_something_when_its_threshold_is_reached_and_not_before() {
    let verdict = |bench: &Bench, kind| bench.view.memory["c"].probes.get(&kind).and_then(|fact| fact.verdict);
    let run = |bench: &mut Bench, kind, runs: &str| {
        for run in runs.chars() {
            bench.pass(100).probe("c", 0, kind, run == '+');
        }
        verdict(bench, kind)
    };
    let probe = json!({ "exec": {}, "successThreshold": 2, "failureThreshold": 3 });
    for (runs, expected) in [
        ("+", None),
        ("++", Some(true)),
        ("+-+", None),
        ("--", None),
        ("---", Some(false)),
        ("--+--", None),
        ("++--", Some(true)),
        ("++---", Some(false)),
        ("++---+", Some(false)),
        ("---++", Some(true)),
    ] {
        assert_eq!(run(&mut probed(&probe), ProbeKind::Readiness, runs), expected, "{runs}");
    }
    // Unsaid: one success, three failures; and no less than one of either.
    for (probe, runs, expected) in [
        (json!({ "exec": {} }), "+", Some(true)),
        (json!({ "exec": {} }), "--", None),
        (json!({ "exec": {} }), "---", Some(false)),
        (json!({ "exec": {}, "successThreshold": 0, "failureThreshold": 0 }), "-", Some(false)),
    ] {
        assert_eq!(run(&mut probed(&probe), ProbeKind::Readiness, runs), expected, "{probe} {runs}");
    }
    // A probe that could not be run counts for nothing; one of an earlier attempt, or of no container, neither.
    let mut bench = probed(&json!({ "exec": {}, "failureThreshold": 2 }));
    bench.probe("c", 0, ProbeKind::Liveness, false);
    let error = ProbeOutcome::Error("why".into());
    let began = bench.now;
    bench.fact(Fact::Probe { container: "c".into(), attempt: 0, kind: ProbeKind::Liveness, began, outcome: error });
    assert_eq!(bench.events.last().unwrap(), "Unhealthy: Liveness probe errored and resulted in unknown state: why");
    bench.probe("c", 1, ProbeKind::Liveness, false).probe("x", 0, ProbeKind::Liveness, false);
    assert_eq!(bench.view.memory["c"].condemned, None);
    bench.probe("c", 0, ProbeKind::Liveness, false);
    let condemned = bench.view.memory["c"].condemned.clone().unwrap();
    assert_eq!(condemned.why, "Container c failed liveness probe, will be restarted");
    assert_eq!(condemned.grace_seconds, 30);
    // Of what has ended nobody is told that it is unhealthy.
    let told = bench.events.len();
    bench.exited("c", 0, 1).probe("c", 0, ProbeKind::Liveness, false);
    assert_eq!(bench.events.len(), told);
}

#[test]
fn a_liveness_probe_may_have_a_grace_of_its_own_and_readiness_stops_nobody() {
    let mut bench = probed(&json!({ "exec": {}, "failureThreshold": 1, "terminationGracePeriodSeconds": 7 }));
    bench.pass(100).probe("c", 0, ProbeKind::Readiness, false);
    assert_eq!(bench.step(), "Liveness c/0 | Running c=running");
    bench.probe("c", 0, ProbeKind::Liveness, false);
    assert_eq!(bench.step(), "Stop c/0 by 01:47 | Running c=running");
}

/// A restart is counted from how the attempt before it ended.
#[test]
fn crashes_are_those_of_the_container_itself() {
    let mut bench = Bench::new(json!({ "containers": [{ "name": "c", "image": "img:1" }, { "name": "d",
        "image": "img:1" }] }));
    bench.network().started("d", 0).exited("d", 0, 1).started("c", 0).exited("c", 0, 1);
    assert!(bench.view.memory["c"].crash.is_none(), "its first attempt has nothing before it");
    bench.image("c").started("c", 1);
    let crash = bench.view.memory["c"].crash.unwrap();
    assert_eq!((crash.delay, bench.view.memory["d"].crash), (SignedDuration::from_secs(10), None));
    // One that could not be seen ending is counted from now; one that runs is no crash.
    bench.pass(5).life("c", 1, Life::Lost).started("c", 2);
    assert_eq!(bench.view.memory["c"].crash.unwrap().delay, SignedDuration::from_secs(20));
}

#[test]
fn what_the_disk_remembers_is_what_it_took() {
    let mut bench = Bench::new(one_container());
    assert_eq!(bench.fact(Fact::Remembered(false)).view.remembered, Remembered::Failed);
    assert!(!bench.view.is_tombstoned());
    assert_eq!(bench.fact(Fact::Remembered(true)).view.remembered, Remembered::Yes);
    assert!(bench.view.is_tombstoned());
}
