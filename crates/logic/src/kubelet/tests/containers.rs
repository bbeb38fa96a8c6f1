//! Which containers start, and which do not: not twice, not before their turn, not without what they need.

use super::*;

fn two(policy: &str) -> Value {
    json!({ "restartPolicy": policy, "terminationGracePeriodSeconds": 30,
        "containers": [{ "name": "c", "image": "img:1" }, { "name": "d", "image": "img:1" }] })
}

fn with_hook(hook: &str) -> Value {
    let mut spec = one_container();
    spec["containers"][0]["lifecycle"] = json!({ hook: { "exec": {} } });
    spec
}

impl Bench {
    fn actions(&self) -> Vec<String> {
        decide(&self.view, self.now).actions.iter().map(show_action).collect()
    }

    /// After how many milliseconds it wants to be asked again.
    fn wakes_in(&self) -> Option<i128> {
        decide(&self.view, self.now).wake_at.map(|at| at.duration_since(self.now).as_millis())
    }

    fn waits_for(&self) -> Vec<Waiting> {
        decide(&self.view, self.now).waiting
    }

    fn pass_millis(&mut self, millis: i64) -> &mut Self {
        self.now = self.now.checked_add(SignedDuration::from_millis(millis)).unwrap();
        self
    }

    fn hook(&mut self, result: Result<(), String>) -> &mut Self {
        self.fact(Fact::PostStart { container: "c".to_owned(), attempt: 0, result })
    }

    /// An attempt that ran, or that could not be started (`started` is the epoch).
    fn ended_between(&mut self, name: &str, started: Timestamp, finished: Timestamp) -> &mut Self {
        let life = Life::Exited { code: 1, signal: None, oom: false, fenced: false, started, finished, message: None };
        self.life(name, 0, life)
    }
}

#[test]
fn a_container_that_is_done_stays_so_while_others_go_on() {
    for (policy, code) in [("Never", 0), ("Never", 1), ("OnFailure", 0)] {
        let mut bench = Bench::new(two(policy));
        bench.network().started("c", 0).started("d", 0).pass(1).exited("c", 0, code);
        let ended = if code == 0 { "Completed:0" } else { "Error:1" };
        assert_eq!(bench.step(), format!(" | Running c={ended} d=running+"), "{policy}");
        bench.pass(1000);
        assert_eq!(bench.actions(), [""; 0], "{policy} {code}");
    }
    // The other ends: now the pod has, by the worst of both.
    let mut bench = Bench::new(two("Never"));
    bench.network().started("c", 0).started("d", 0).exited("c", 0, 1).exited("d", 0, 0);
    assert_eq!(bench.step(), "RemoveSandbox | Failed c=Error:1 d=Completed:0");
}

#[test]
fn a_post_start_hook_runs_once_and_everything_else_waits_for_it() {
    let mut spec = with_hook("postStart");
    spec["containers"][0]["readinessProbe"] = json!({ "exec": {} });
    spec["containers"][0]["livenessProbe"] = json!({ "exec": {} });
    let mut bench = Bench::new(spec.clone());
    bench.network().started("c", 0);
    assert_eq!(bench.step(), "PostStart c/0 | Running c=running", "no probe yet");
    assert_eq!(bench.hook(Ok(())).step(), "Liveness c/0, Readiness c/0 | Running c=running");
    // Without probes it is ready when the hook is done, not before.
    let mut bench = Bench::new(with_hook("postStart"));
    bench.network().started("c", 0);
    assert_eq!(bench.step(), "PostStart c/0 | Running c=running");
    assert_eq!(bench.hook(Ok(())).step(), " | Running c=running+");
    // A hook that fails condemns its container; it is not run again, and a hook of another attempt says nothing.
    let mut bench = Bench::new(spec);
    bench.network().started("c", 0).hook(Err("no".to_owned()));
    assert_eq!(bench.step(), "Stop c/0 by 00:30 | Running c=running");
    assert!(bench.events.contains(&"FailedPostStartHook: PostStartHook failed: no".to_owned()), "{:?}", bench.events);
    bench.exited("c", 0, 1).image("c").started("c", 1).hook(Err("late".to_owned()));
    assert!(bench.step().starts_with("PostStart c/1 |"), "{}", bench.step());
    bench.exited("c", 1, 1);
    assert!(!bench.step().contains("PostStart"), "it does not run any more");
    // A container with another hook has none to wait for.
    let mut bench = Bench::new(with_hook("preStop"));
    bench.network().started("c", 0);
    assert_eq!(bench.step(), " | Running c=running+");
}

/// V6: what starts without its volume writes elsewhere.
#[test]
fn v6_nothing_starts_while_a_volume_is_not_ready() {
    let mut spec = with_hook("postStart");
    spec["volumes"] = json!([{ "name": "v", "emptyDir": {} }, { "name": "w", "emptyDir": {} }]);
    spec["ephemeralContainers"] = json!([{ "name": "e", "image": "img:1" }]);
    let mut bench = Bench::new(spec);
    let ready = |bench: &mut Bench, name: &str| {
        bench.fact(Fact::Volume { name: name.into(), result: Ok(None) });
    };
    assert_eq!(bench.actions(), ["Volume v", "Volume w"]);
    ready(&mut bench, "v");
    assert_eq!(bench.actions(), ["Volume w"], "no sandbox, either");
    // A restarted agent that found the sandbox: what runs is looked after, and nothing begins.
    bench.network().image("c").image("e");
    assert_eq!(bench.actions(), ["Volume w"]);
    ready(&mut bench, "w");
    assert_eq!(bench.actions(), ["Start e/0", "Start c/0"]);
    bench.started("c", 0);
    bench.view.volumes.clear();
    assert_eq!(bench.actions(), ["Volume v", "Volume w", "PostStart c/0"]);
    // One fails: it is waited for, by name, and tried again in time.
    ready(&mut bench, "v");
    bench.fact(Fact::Volume { name: "w".into(), result: Err("no".into()) });
    assert_eq!(
        (bench.wakes_in(), bench.waits_for()),
        (Some(500), vec![Waiting::Missing { what: "volume w".to_owned() }])
    );
    bench.pass_millis(500);
    assert_eq!(bench.actions(), ["Volume w", "PostStart c/0"]);
    // One that is only to be looked at again keeps nobody waiting.
    let at = bench.now.checked_add(SignedDuration::from_secs(60)).unwrap();
    bench.fact(Fact::Volume { name: "w".into(), result: Ok(Some(at)) });
    assert_eq!((bench.wakes_in(), bench.waits_for()), (Some(60_000), Vec::new()));
}

#[test]
fn a_sandbox_or_a_container_that_cannot_be_made_is_tried_again_later() {
    let mut bench = Bench::new(one_container());
    bench.fact(Fact::SandboxFailed("no".into()));
    assert_eq!((bench.actions(), bench.wakes_in(), bench.waits_for()), (vec![], Some(500), vec![Waiting::Backoff]));
    bench.pass_millis(500);
    assert_eq!(bench.actions(), ["Sandbox"]);
    bench.fact(Fact::SandboxFailed("no".into()));
    assert_eq!(bench.wakes_in(), Some(1000), "twice as long");
    bench.pass(1).network().image("c");
    let failed = Fact::StartFailed { container: "c".into(), reason: "RunContainerError", message: "why".into() };
    assert_eq!(bench.fact(failed.clone()).step(), " | Pending c=RunContainerError");
    assert_eq!((bench.wakes_in(), bench.waits_for()), (Some(10_000), vec![Waiting::Backoff]));
    bench.pass(9);
    assert_eq!(bench.actions(), [""; 0]);
    bench.pass(1);
    assert_eq!(bench.actions(), ["Image c IfNotPresent"], "it may be another one by now");
    assert_eq!(bench.image("c").actions(), ["Start c/0"]);
    bench.fact(failed);
    assert_eq!(bench.wakes_in(), Some(20_000));
    assert!(bench.events.contains(&"Failed: Error: why".to_owned()), "{:?}", bench.events);
    // What it waited for has changed: at once.
    bench.fact(Fact::DependencyChanged);
    assert_eq!(bench.actions(), ["Image c IfNotPresent"]);
}

#[test]
fn which_init_containers_are_behind_a_pod_is_its_sandboxs_to_say() {
    let spec = || {
        json!({ "initContainers": [{ "name": "i", "image": "img:1" }],
            "containers": [{ "name": "c", "image": "img:1" }, { "name": "d", "image": "img:1" }] })
    };
    let at = |second: i64| Timestamp::from_second(1_767_225_600 + second).unwrap();
    let never = Timestamp::UNIX_EPOCH;
    // The sandbox is made at second 100; this attempt of `c` began and ended then. Which starts next?
    for (started, finished, begun) in [
        (at(100), at(110), true),
        (at(101), at(110), true),
        (at(99), at(110), false),
        (at(10), at(20), false),
        (never, at(100), true),
        (never, at(101), true),
        (never, at(99), false),
    ] {
        let mut bench = Bench::new(spec());
        bench.pass(100).network().pass(20).ended_between("c", started, finished);
        let expected: &[&str] =
            if begun { &["Image c IfNotPresent", "Image d IfNotPresent"] } else { &["Image i IfNotPresent"] };
        assert_eq!(bench.actions(), expected, "{started} {finished}");
    }
    // One that was made and not started has begun nothing; a lost one began in some older sandbox.
    for life in [Life::Created, Life::Lost] {
        let mut bench = Bench::new(spec());
        bench.network().life("c", 0, life);
        assert_eq!(bench.actions(), ["Image i IfNotPresent"]);
    }
    // An init container that failed when the others had begun is behind them all the same.
    let mut bench = Bench::new(spec());
    bench.network().started("c", 0).exited("i", 0, 1);
    assert_eq!(bench.actions(), ["Image d IfNotPresent"]);
}

#[test]
fn a_sidecar_is_started_again_alone_until_it_is_up_and_beside_the_others_after() {
    let sidecar = json!({ "name": "s", "image": "img:1", "restartPolicy": "Always" });
    let spec = json!({ "initContainers": [sidecar, { "name": "i", "image": "img:1" }],
        "containers": [{ "name": "c", "image": "img:1" }] });
    let mut bench = Bench::new(spec.clone());
    bench.network().started("s", 0).exited("s", 0, 0);
    assert_eq!(bench.actions(), ["Image s IfNotPresent"], "what comes after it waits");
    let mut bench = Bench::new(spec);
    bench.network().started("s", 0).started("i", 0).exited("i", 0, 0).started("c", 0);
    bench.pass(1).exited("c", 0, 1).exited("s", 0, 1);
    assert_eq!(bench.actions(), ["Image s IfNotPresent", "Image c IfNotPresent"], "it holds nobody back any more");
}

#[test]
fn an_image_that_cannot_be_pulled_is_told_of_in_upstreams_events() {
    let mut bench = Bench::new(one_container());
    bench.network();
    let result = Err(("ErrImagePull", "why".to_owned()));
    bench.fact(Fact::Image { container: "c".into(), image: "img:1".into(), result });
    bench.pass(2);
    assert_eq!(bench.wakes_in(), Some(8000));
    bench.step();
    let told = [
        "Failed: Failed to pull image \"img:1\": why",
        "Failed: Error: ErrImagePull",
        "BackOff: Back-off pulling image \"img:1\"",
        "Failed: Error: ImagePullBackOff",
    ];
    assert_eq!(bench.events, told);
    let warnings: Vec<bool> = decide(&bench.view, bench.now).events.iter().map(|event| event.warning).collect();
    assert_eq!(warnings, [false, true]);
    let mut bench = Bench::new(one_container());
    bench.network().started("c", 0).exited("c", 0, 1).started("c", 1).exited("c", 1, 1);
    let events = decide(&bench.view, bench.now).events;
    assert!(matches!(&*events, [PodEvent { warning: true, reason: "BackOff", .. }]), "{events:?}");
}

#[test]
fn a_pull_policy_that_is_said_is_followed() {
    for (image, policy, expected) in [
        ("a:1", "Always", "Always"),
        ("a:latest", "IfNotPresent", "IfNotPresent"),
        ("a:latest", "Never", "Never"),
        ("a@sha256:0", "Always", "Always"),
        ("r:5000/a:1", "", "IfNotPresent"),
        ("r/a:latest@sha256:0", "", "IfNotPresent"),
    ] {
        let container = json!({ "name": "c", "image": image, "imagePullPolicy": policy });
        let mut bench = Bench::new(json!({ "containers": [container] }));
        assert_eq!(bench.network().actions(), [format!("Image c {expected}")], "{image} {policy}");
    }
}

#[test]
fn an_old_attempt_that_is_still_there_is_waited_for_and_never_removed() {
    let mut bench = Bench::new(one_container());
    let since = bench.now;
    bench.network().life("c", 0, Life::Running { since }).life("c", 1, Life::Lost).life(
        "c",
        2,
        Life::Running { since },
    );
    assert_eq!((bench.actions(), bench.waits_for()), (vec![], vec![Waiting::InUse]));
    bench.exited("c", 0, 0);
    assert_eq!((bench.actions(), bench.waits_for()), (vec!["Remove c/0".to_owned()], vec![]));
}

/// The agent restarts while a container with a startup probe runs: it has started, whatever is not remembered.
#[test]
fn s11_a_container_that_has_started_has_started_for_the_next_agent_too() {
    let mut spec = one_container();
    spec["containers"][0]["startupProbe"] = json!({ "exec": {} });
    spec["containers"][0]["livenessProbe"] = json!({ "exec": {} });
    let mut bench = Bench::new(spec);
    bench.network().started("c", 0).probe("c", 0, ProbeKind::Startup, true).step();
    let (containers, sandbox) = (bench.view.containers.clone(), bench.view.sandbox.clone());
    bench.view = PodView::new(bench.view.pod.clone(), vec![]);
    bench.fact(Fact::Sandbox(sandbox)).fact(Fact::Containers(containers));
    assert_eq!(bench.step(), "Liveness c/0 | Running c=running+");
}

#[test]
fn readiness_that_is_there_is_looked_at_in_its_own_beat() {
    let mut spec = one_container();
    spec["containers"][0]["readinessProbe"] = json!({ "exec": {}, "periodSeconds": 10, "failureThreshold": 3 });
    let mut bench = Bench::new(spec);
    bench.network().started("c", 0);
    bench.probe("c", 0, ProbeKind::Readiness, false).pass_millis(50).probe("c", 0, ProbeKind::Readiness, true);
    assert_eq!((bench.actions(), bench.wakes_in()), (vec![], Some(10_000)), "found early, and then in the usual beat");
    for _ in 0..3 {
        bench.pass(1).probe("c", 0, ProbeKind::Readiness, false);
    }
    assert_eq!(bench.view.memory["c"].probes[&ProbeKind::Readiness].verdict, Some(false), "it was ready: it counts");
}
