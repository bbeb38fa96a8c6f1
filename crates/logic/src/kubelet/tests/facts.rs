//! What one fact says and leaves in memory, whoever asks for it later.

use super::*;

impl Bench {
    /// The events of one fact: `W` or `N`, the container, reason and message.
    fn worth(&mut self, fact: Fact) -> Vec<String> {
        let events = self.view.apply(fact, self.now);
        let show = |event: &PodEvent| {
            let (kind, of) = (if event.warning { 'W' } else { 'N' }, event.container.as_deref().unwrap_or("-"));
            format!("{kind} {of} {}: {}", event.reason, event.message)
        };
        events.iter().map(show).collect()
    }

    pub(super) fn of_image(&mut self, name: &str, attempt: u32, image: &str) -> &mut Self {
        let mut all = self.view.containers.clone();
        let of = |fact: &&mut ContainerFact| fact.name == name && fact.attempt == attempt;
        all.iter_mut().filter(of).for_each(|fact| fact.image = image.to_owned());
        self.fact(Fact::Containers(all))
    }

    fn crash(&self, name: &str) -> Option<i64> {
        self.view.memory.get(name)?.crash.map(|crash| crash.delay.as_secs())
    }
}

fn probed(kind: &str) -> Value {
    let mut spec = one_container();
    spec["containers"][0][kind] = json!({ "exec": {}, "failureThreshold": 1 });
    spec
}

#[test]
fn each_fact_is_worth_upstreams_events() {
    let container = || "c".to_owned();
    let image = |result| Fact::Image { container: container(), image: "img:1".to_owned(), result };
    let failed = |reason| Err((reason, "why".to_owned()));
    let probe = |outcome| Fact::Probe {
        container: container(),
        attempt: 0,
        kind: ProbeKind::Liveness,
        began: Timestamp::UNIX_EPOCH,
        outcome,
    };
    let start_failed = |reason| Fact::StartFailed { container: container(), reason, message: "why".to_owned() };
    let table = [
        (
            image(failed("ErrImagePull")),
            vec!["W c Failed: Failed to pull image \"img:1\": why", "W c Failed: Error: ErrImagePull"],
        ),
        (image(failed("InvalidImageName")), vec!["W c InspectFailed: why", "W c Failed: Error: InvalidImageName"]),
        (
            image(failed("ErrImageNeverPull")),
            vec!["W c ErrImageNeverPull: why", "W c Failed: Error: ErrImageNeverPull"],
        ),
        (image(Ok(("id".to_owned(), "pulled it".to_owned()))), vec!["N c Pulled: pulled it"]),
        (start_failed("RunContainerError"), vec!["W c Failed: Error: why"]),
        (
            Fact::NeverBegan { container: container(), attempt: 0, message: "why".to_owned() },
            vec!["W c Failed: Error: why"],
        ),
        (probe(ProbeOutcome::Success), vec![]),
        (probe(ProbeOutcome::Warning("hm".to_owned())), vec!["W c ProbeWarning: Liveness probe warning: hm"]),
        (probe(ProbeOutcome::Failure("no".to_owned())), vec!["W c Unhealthy: Liveness probe failed: no"]),
        (
            probe(ProbeOutcome::Error("no".to_owned())),
            vec!["W c Unhealthy: Liveness probe errored and resulted in unknown state: no"],
        ),
        (Fact::Stopping { container: container(), why: "why".to_owned() }, vec!["N c Killing: why"]),
        (
            Fact::PreStopFailed { container: container(), message: "why".to_owned() },
            vec!["W c FailedPreStopHook: PreStopHook failed: why"],
        ),
        (
            Fact::PullBegan { container: container(), image: "img:1".to_owned() },
            vec!["N c Pulling: Pulling image \"img:1\""],
        ),
        (Fact::Evicted { message: "why".to_owned() }, vec!["W - Evicted: why"]),
    ];
    for (fact, expected) in table {
        let mut bench = Bench::new(probed("livenessProbe"));
        bench.network().started("c", 0);
        let told = format!("{fact:?}");
        assert_eq!(bench.worth(fact), expected, "{told}");
    }
    // One that warns has passed.
    let mut bench = Bench::new(probed("readinessProbe"));
    bench.network().started("c", 0);
    let (began, outcome) = (bench.now, ProbeOutcome::Warning("hm".to_owned()));
    bench.fact(Fact::Probe { container: container(), attempt: 0, kind: ProbeKind::Readiness, began, outcome });
    assert!(bench.step().ends_with("c=running+"), "{}", bench.step());
    // A probe of what has ended meanwhile is no news, and no early one either.
    let mut bench = Bench::new(probed("readinessProbe"));
    bench.network().started("c", 0).exited("c", 0, 1);
    let (began, outcome) = (bench.now, ProbeOutcome::Failure("no".to_owned()));
    let late = Fact::Probe { container: container(), attempt: 0, kind: ProbeKind::Readiness, began, outcome };
    assert_eq!(bench.worth(late), [""; 0]);
    assert_eq!(bench.view.memory["c"].probes[&ProbeKind::Readiness].early, 0);
}

#[test]
fn a_volume_that_fails_is_mounted_or_mapped_and_others_stay() {
    let mut spec = one_container();
    spec["containers"][0]["volumeDevices"] = json!([{ "name": "raw", "devicePath": "/dev/raw" }]);
    spec["volumes"] = json!([{ "name": "raw" }, { "name": "data", "emptyDir": {} }]);
    let mut bench = Bench::new(spec);
    let failed = |name: &str| Fact::Volume { name: name.to_owned(), result: Err("why".to_owned()) };
    assert_eq!(bench.worth(failed("data")), ["W - FailedMount: MountVolume.SetUp failed for volume \"data\" : why",]);
    assert_eq!(
        bench.worth(failed("raw")),
        ["W - FailedMapVolume: MapVolume.SetUpDevice failed for volume \"raw\" : why",]
    );
    // What it depends on has changed: who is mounted stays so while it is looked at again.
    bench.fact(Fact::Volume { name: "data".into(), result: Ok(None) });
    bench.fact(Fact::DependencyChanged);
    assert_eq!(bench.view.volumes.keys().collect::<Vec<_>>(), ["data"]);
    assert_eq!(bench.view.volumes["data"], VolumeFact::Ready { refresh_at: Some(bench.now) });
}

#[test]
fn a_sandbox_that_comes_up_forgets_what_failed_before_it() {
    let delay = |bench: &Bench| bench.view.sandbox_error.map(|backoff| backoff.delay.as_millis());
    let failed = || Fact::SandboxFailed("why".to_owned());
    let mut bench = Bench::new(one_container());
    bench.fact(failed()).fact(failed());
    assert_eq!(delay(&bench), Some(1000));
    let since = bench.now;
    bench.fact(Fact::Sandbox(Sandbox::Dead { since }));
    assert_eq!(delay(&bench), Some(1000), "one that died says nothing of how the next one comes up");
    bench.network();
    assert_eq!(delay(&bench), None);
}

/// What crashes is counted by image: another one has not failed yet, and one that is not known is no other.
#[test]
fn another_image_begins_without_the_back_off_of_the_last() {
    for (first, second, expected) in
        [("img:1", "img:1", Some(20)), ("img:1", "img:2", None), ("", "img:2", Some(20)), ("img:1", "", Some(20))]
    {
        let mut bench = Bench::new(one_container());
        bench.network().started("c", 0).exited("c", 0, 1).started("c", 1).exited("c", 1, 1);
        assert_eq!(bench.crash("c"), Some(10));
        bench.of_image("c", 1, first);
        let since = bench.now;
        bench.life("c", 2, Life::Running { since }).of_image("c", 2, second);
        bench.fact(Fact::Started { container: "c".to_owned(), attempt: 2 });
        assert_eq!(bench.crash("c"), expected, "{first} then {second}");
    }
    let mut bench = Bench::new(one_container());
    bench.network().started("c", 0).exited("c", 0, 1).started("c", 1).exited("c", 1, 1);
    bench.fact(Fact::Containers(Vec::new())).started("c", 2);
    assert_eq!(bench.crash("c"), Some(10), "of one whose record is lost nothing new is known");
    // Also where all containers may be restarted at once.
    let mut spec = one_container();
    spec["containers"][0]["restartPolicyRules"] =
        json!([{ "action": "RestartAllContainers", "exitCodes": { "operator": "In", "values": [42] } }]);
    let mut bench = Bench::new(spec);
    bench.network().started("c", 0).exited("c", 0, 1).started("c", 1).exited("c", 1, 1).step();
    let since = bench.now;
    bench.life("c", 2, Life::Running { since }).of_image("c", 2, "img:2");
    bench.fact(Fact::Started { container: "c".to_owned(), attempt: 2 });
    assert_eq!(bench.crash("c"), None);
    // What the API says of an attempt before is of use only where all containers may have been forgotten for it.
    let mut bench = Bench::new(one_container());
    bench.network().started("c", 0).exited("c", 0, 1).started("c", 1).step();
    bench.view = PodView::new(bench.view.pod.clone(), Vec::new());
    bench.network().started("c", 2);
    assert_eq!(bench.crash("c"), None);
}

/// What is remembered is of one attempt: the next one has shown nothing yet.
#[test]
fn what_one_attempt_showed_says_nothing_of_the_next() {
    let mut bench = Bench::new(probed("readinessProbe"));
    bench.network().image("c").started("c", 0).probe("c", 0, ProbeKind::Readiness, true);
    assert!(bench.step().ends_with("c=running+"), "{}", bench.step());
    // It is seen to run before its start is told.
    let since = bench.now;
    bench.exited("c", 0, 1).life("c", 1, Life::Running { since });
    assert!(bench.step().ends_with("c=running<1x1"), "{}", bench.step());
    // Attempts are of their containers.
    let mut spec = one_container();
    spec["containers"] = json!([{ "name": "c", "image": "img:1" }, { "name": "d", "image": "img:1" }]);
    let mut bench = Bench::new(spec);
    bench.network().started("c", 0).exited("c", 0, 7).started("d", 0).exited("d", 0, 9).started("d", 1);
    assert!(bench.step().ends_with("d=running<9+x1"), "{}", bench.step());
}

/// Why a container was told to stop decides whether it runs again.
#[test]
fn what_a_probe_or_a_hook_stopped_goes_by_the_pods_policy_and_what_is_replaced_does_not() {
    let never = |mut spec: Value| {
        spec["restartPolicy"] = json!("Never");
        spec
    };
    let mut bench = Bench::new(never(probed("livenessProbe")));
    bench.network().started("c", 0).probe("c", 0, ProbeKind::Liveness, false).exited("c", 0, 137);
    assert!(bench.step().contains("| Failed "), "{}", bench.step());
    let mut hooked = one_container();
    hooked["containers"][0]["lifecycle"] = json!({ "postStart": { "exec": {} } });
    let mut bench = Bench::new(never(hooked));
    bench.network().started("c", 0);
    bench.fact(Fact::PostStart { container: "c".to_owned(), attempt: 0, result: Err("no".to_owned()) });
    assert!(bench.exited("c", 0, 137).step().contains("| Failed "), "{}", bench.step());

    // Another image: the container, a sidecar, and not an init container that ends by itself.
    let spec = |image: &str| {
        let of = |name: &str, policy: Value| json!({ "name": name, "image": image, "restartPolicy": policy });
        let init = [of("i", Value::Null), of("s", json!("Always"))];
        never(json!({ "initContainers": init, "containers": [{ "name": "c", "image": image }] }))
    };
    let mut bench = Bench::new(spec("img:1"));
    bench.network().started("i", 0).started("s", 0).started("c", 0);
    let status = bench.view.pod.status.clone();
    let changed = Pod { status, ..pod(spec("img:2")) };
    bench.fact(Fact::Pod(Box::new(changed)));
    let stopped = bench.step();
    assert!(stopped.contains("Stop c/0") && stopped.contains("Stop s/0") && !stopped.contains("Stop i/0"), "{stopped}");
    // Why the next one is not there yet is said, though the pod never restarts what ends.
    bench.exited("i", 0, 0).exited("c", 0, 137);
    let failed = Err(("ErrImagePull", "why".to_owned()));
    bench.fact(Fact::Image { container: "c".to_owned(), image: "img:2".to_owned(), result: failed });
    assert!(bench.step().ends_with("c=ErrImagePull<137"), "{}", bench.step());
}

#[test]
fn what_is_recorded_of_an_eviction_is_of_evictions_that_have_not_ended() {
    let recorded = |reason: &str, phase: &str| {
        let mut bench = Bench::new(one_container());
        let status = json!({ "phase": phase, "reason": reason, "message": "why" });
        bench.view.pod.status = Some(serde_json::from_value(status).unwrap());
        bench.view.recorded_eviction()
    };
    assert_eq!(recorded("Evicted", "Running").as_deref(), Some("why"));
    assert_eq!(recorded("Evicted", "Failed"), None);
    assert_eq!(recorded("NodeLost", "Running"), None);
    let going = |fact: Option<Fact>| {
        let mut bench = Bench::new(one_container());
        fact.into_iter().for_each(|fact| drop(bench.view.apply(fact, bench.now)));
        bench.view.is_going()
    };
    assert!(!going(None), "it stays");
    assert!(going(Some(Fact::Evicted { message: "why".to_owned() })));
    assert!(going(Some(Fact::Gone)));
}
