//! Tables: what is known, in text; what is done and told, in text. The closed loop is in `simulation`.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use serde_json::{Value, json};

use super::*;

mod again;
mod agenda;
mod clock;
mod containers;
mod endings;
mod facts;
mod resizes;
mod restart_all;
mod statuses;
mod turns;

/// One pod, a clock, and what the decisions said.
struct Bench {
    view: PodView,
    now: Timestamp,
    events: Vec<String>,
    told: Vec<PodEvent>,
}

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": { "name": "web-0", "namespace": "default", "uid": "u1", "generation": 1 },
        "spec": spec,
        "status": { "phase": "Pending", "qosClass": "BestEffort" },
    }))
    .unwrap()
}

impl Bench {
    fn new(spec: Value) -> Self {
        let view = PodView::new(pod(spec), vec!["192.0.2.1".to_owned()]);
        Self { view, now: "2026-01-01T00:00:00Z".parse().unwrap(), events: Vec::new(), told: Vec::new() }
    }

    fn pass(&mut self, seconds: i64) -> &mut Self {
        self.now = self.now.checked_add(SignedDuration::from_secs(seconds)).unwrap();
        self
    }

    fn fact(&mut self, fact: Fact) -> &mut Self {
        let events = self.view.apply(fact, self.now);
        self.events.extend(events.iter().map(|event| format!("{}: {}", event.reason, event.message)));
        self
    }

    /// Decides, takes the status over as the API would, and shows it: the actions, then phase and containers.
    fn step(&mut self) -> String {
        let decision = decide(&self.view, self.now);
        assert_eq!(decision, decide(&self.view, self.now), "a decision is a function of what it sees");
        for event in decision.events.iter().filter(|event| !self.told.contains(event)) {
            self.events.push(format!("{}: {}", event.reason, event.message));
        }
        self.told.clone_from(&decision.events);
        let actions: Vec<String> = decision.actions.iter().map(show_action).collect();
        let status = &decision.status;
        let containers: Vec<String> = status
            .init_container_statuses
            .iter()
            .flatten()
            .chain(status.container_statuses.iter().flatten())
            .map(show_container)
            .collect();
        let text =
            format!("{} | {} {}", actions.join(", "), status.phase.as_deref().unwrap_or("?"), containers.join(" "));
        self.view.pod.status = Some(decision.status);
        text
    }

    fn condition(&self, name: &str) -> String {
        let status = self.view.pod.status.as_ref().unwrap();
        let condition = status.conditions.iter().flatten().find(|condition| condition.type_ == name).unwrap();
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        format!("{} {} {}", condition.status, text(&condition.reason), text(&condition.message)).trim_end().to_owned()
    }

    fn network(&mut self) -> &mut Self {
        let made_at = Some(self.now);
        self.fact(Fact::Sandbox(Sandbox::Ready { ip: Some("10.0.0.5".to_owned()), made_at }))
    }

    fn image(&mut self, container: &str) -> &mut Self {
        let result = Ok(("sha256:1".to_owned(), String::new()));
        self.fact(Fact::Image { container: container.to_owned(), image: "img:1".to_owned(), result })
    }

    /// The runtime started a container.
    fn started(&mut self, name: &str, attempt: u32) -> &mut Self {
        let since = self.now;
        self.life(name, attempt, Life::Running { since });
        self.fact(Fact::Started { container: name.to_owned(), attempt })
    }

    fn exited(&mut self, name: &str, attempt: u32, code: i32) -> &mut Self {
        let started = self.view.latest(name).map_or(self.now, |fact| match fact.life {
            Life::Running { since } => since,
            _ => self.now,
        });
        let finished = self.now;
        self.life(
            name,
            attempt,
            Life::Exited { code, signal: None, oom: false, fenced: false, started, finished, message: None },
        )
    }

    fn life(&mut self, name: &str, attempt: u32, life: Life) -> &mut Self {
        let mut all = self.view.containers.clone();
        all.retain(|fact| fact.name != name || fact.attempt != attempt);
        let (name, image_id) = (name.to_owned(), "sha256:1".to_owned());
        all.push(ContainerFact {
            name,
            attempt,
            image: "img:1".to_owned(),
            image_id,
            sandbox_made_at: None,
            user: None,
            life,
        });
        self.fact(Fact::Containers(all))
    }

    fn probe(&mut self, container: &str, attempt: u32, kind: ProbeKind, ok: bool) -> &mut Self {
        let (began, container) = (self.now, container.to_owned());
        let outcome = if ok { ProbeOutcome::Success } else { ProbeOutcome::Failure("no".to_owned()) };
        self.fact(Fact::Probe { container, attempt, kind, began, outcome })
    }

    fn deleted(&mut self, grace: i64) -> &mut Self {
        let mut pod = self.view.pod.clone();
        pod.metadata.deletion_timestamp = Some(self.now.into());
        pod.metadata.deletion_grace_period_seconds = Some(grace);
        self.fact(Fact::Pod(Box::new(pod)))
    }
}

fn show_action(action: &Action) -> String {
    match action {
        Action::Remember => "Remember".to_owned(),
        Action::EnsureVolume { name } => format!("Volume {name}"),
        Action::EnsureSandbox => "Sandbox".to_owned(),
        Action::EnsureImage { container, policy, .. } => format!("Image {container} {policy:?}"),
        Action::StartContainer { container, attempt, .. } => format!("Start {container}/{attempt}"),
        Action::ResizeContainer { container, attempt } => format!("Resize {container}/{attempt}"),
        Action::PostStart { container, attempt } => format!("PostStart {container}/{attempt}"),
        Action::RunProbe { container, attempt, kind } => format!("{kind:?} {container}/{attempt}"),
        Action::StopContainer { container, attempt, deadline, pre_stop, .. } => {
            format!(
                "Stop {container}/{attempt} by {}{}",
                deadline.strftime("%M:%S"),
                if *pre_stop { " preStop" } else { "" }
            )
        }
        Action::RemoveContainer { container, attempt } => format!("Remove {container}/{attempt}"),
        Action::RemoveSandbox => "RemoveSandbox".to_owned(),
        Action::Unmount => "Unmount".to_owned(),
        Action::ConfirmDeletion => "Confirm".to_owned(),
        Action::Forget => "Forget".to_owned(),
    }
}

fn show_container(status: &ContainerStatus) -> String {
    let state = status.state.clone().unwrap_or_default();
    let what = match (state.waiting, state.running, state.terminated) {
        (Some(waiting), ..) => waiting.reason.unwrap_or_default(),
        (_, Some(_), _) => "running".to_owned(),
        (.., Some(ended)) => format!("{}:{}", ended.reason.unwrap_or_default(), ended.exit_code),
        _ => "?".to_owned(),
    };
    let last = status
        .last_state
        .as_ref()
        .and_then(|last| last.terminated.as_ref())
        .map_or(String::new(), |last| format!("<{}", last.exit_code));
    format!("{}={what}{last}{}{}", status.name, if status.ready { "+" } else { "" }, restarts(status.restart_count))
}

fn restarts(count: i32) -> String {
    if count == 0 { String::new() } else { format!("x{count}") }
}

fn one_container() -> Value {
    json!({ "containers": [{ "name": "c", "image": "img:1" }], "terminationGracePeriodSeconds": 30 })
}

#[test]
fn a_pod_comes_up_step_by_step() {
    let mut bench = Bench::new(json!({
        "containers": [{ "name": "c", "image": "img:1", "readinessProbe": { "periodSeconds": 1,
            "tcpSocket": { "port": 1 } } }],
        "volumes": [{ "name": "data", "emptyDir": {} }],
    }));
    assert_eq!(bench.step(), "Volume data | Pending c=ContainerCreating");
    assert_eq!(bench.condition("PodReadyToStartContainers"), "False");
    bench.fact(Fact::Volume { name: "data".into(), result: Ok(None) });
    assert_eq!(bench.step(), "Sandbox | Pending c=ContainerCreating");
    assert_eq!(bench.network().step(), "Image c IfNotPresent | Pending c=ContainerCreating");
    assert_eq!(bench.image("c").step(), "Start c/0 | Pending c=ContainerCreating");
    assert_eq!(bench.started("c", 0).step(), "Readiness c/0 | Running c=running");
    assert_eq!(bench.condition("Ready"), "False ContainersNotReady containers with unready status: [c]");
    assert_eq!(bench.probe("c", 0, ProbeKind::Readiness, true).step(), " | Running c=running+");
    assert_eq!(bench.condition("Ready"), "True");
    assert_eq!(bench.view.pod.status.as_ref().unwrap().pod_ip.as_deref(), Some("10.0.0.5"));
    assert_eq!(
        bench.events.join("\n"),
        "Pulled: Container image \"img:1\" already present on machine and can be accessed by the pod\n\
            Created: Container created\nStarted: Container started"
    );
}

#[test]
fn crashes_back_off_and_a_long_run_forgives() {
    let mut bench = Bench::new(one_container());
    bench.network().image("c").started("c", 0).step();
    // The first restart is at once, then 10 s, 20 s.
    assert_eq!(bench.pass(1).exited("c", 0, 1).step(), "Image c IfNotPresent | Running c=Error:1");
    assert_eq!(bench.image("c").step(), "Start c/1 | Running c=Error:1");
    bench.started("c", 1).step();
    assert_eq!(bench.pass(1).exited("c", 1, 1).step(), " | Running c=CrashLoopBackOff<1x1");
    assert_eq!(bench.pass(10).step(), "Image c IfNotPresent | Running c=Error:1<1x1");
    bench.image("c").started("c", 2).step();
    assert_eq!(bench.step(), "Remove c/0 | Running c=running<1+x2");
    bench.pass(1).exited("c", 2, 1);
    assert_eq!(bench.step(), "Remove c/0 | Running c=CrashLoopBackOff<1x2");
    bench.pass(19).step();
    assert_eq!(
        decide(&bench.view, bench.now).wake_at,
        Some(bench.now.checked_add(SignedDuration::from_secs(1)).unwrap())
    );
    bench.pass(1).image("c").started("c", 3).pass(601).exited("c", 3, 1);
    assert_eq!(bench.step(), "Remove c/0, Remove c/1, Image c IfNotPresent | Running c=Error:1<1x3");
    assert!(
        bench.events.contains(&"BackOff: Back-off restarting failed container c in pod web-0_default(u1)".to_owned())
    );
}

#[test]
fn restart_policies() {
    for (policy, code, expected) in [
        ("Always", 0, "Image c IfNotPresent | Running c=Completed:0"),
        ("OnFailure", 0, "Unmount | Succeeded c=Completed:0"),
        ("OnFailure", 3, "Image c IfNotPresent | Running c=Error:3"),
        ("Never", 0, "Unmount | Succeeded c=Completed:0"),
        ("Never", 3, "Unmount | Failed c=Error:3"),
    ] {
        let mut spec = one_container();
        spec["restartPolicy"] = json!(policy);
        let mut bench = Bench::new(spec);
        bench.network().image("c").started("c", 0).pass(1).exited("c", 0, code);
        let mut text = bench.step();
        if text.starts_with("RemoveSandbox") {
            bench.fact(Fact::Sandbox(Sandbox::Absent));
            text = bench.step();
        }
        assert_eq!(text, expected, "{policy} {code}");
    }
}

/// Conformance, container restart rules: the first rule about the exit code, then the container's policy, then the
/// pod's.
#[test]
fn conformance_a_container_restarts_by_its_own_rules() {
    let rule =
        |operator: &str| json!([{ "action": "Restart", "exitCodes": { "operator": operator, "values": [42, 43] } }]);
    for (pod, own, rules, code, runs_again) in [
        ("Never", Some("Always"), json!([]), 0, true),
        ("Never", Some("OnFailure"), json!([]), 3, true),
        ("Always", Some("Never"), json!([]), 3, false),
        ("Always", Some("OnFailure"), json!([]), 0, false),
        ("Never", Some("Never"), rule("In"), 42, true),
        ("Never", Some("Never"), rule("In"), 41, false),
        ("Never", Some("Never"), rule("NotIn"), 41, true),
        ("Never", Some("Never"), rule("NotIn"), 43, false),
        ("Always", Some("OnFailure"), rule("In"), 3, true),
    ] {
        let mut spec = one_container();
        spec["restartPolicy"] = json!(pod);
        spec["containers"][0]["restartPolicy"] = json!(own);
        spec["containers"][0]["restartPolicyRules"] = rules.clone();
        let mut bench = Bench::new(spec.clone());
        bench.network().image("c").started("c", 0).pass(1).exited("c", 0, code);
        let step = bench.step();
        assert_eq!(step.starts_with("Image c"), runs_again, "{pod} {own:?} {rules} {code}: {step}");
        // The same of an init container, but that one that ends well is done.
        let mut init = spec["containers"][0].clone();
        init["name"] = json!("i");
        if own == Some("Always") {
            continue;
        }
        spec["containers"][0] = json!({ "name": "c", "image": "img:1" });
        spec["initContainers"] = json!([init]);
        let mut bench = Bench::new(spec);
        bench.network().image("i").started("i", 0).pass(1).exited("i", 0, code);
        let step = bench.step();
        assert_eq!(step.starts_with("Image i"), code != 0 && runs_again, "init: {pod} {own:?} {rules} {code}: {step}");
    }
}

#[test]
fn a_finished_pod_is_never_started_again_even_without_its_containers() {
    let mut spec = one_container();
    spec["restartPolicy"] = json!("Never");
    let mut bench = Bench::new(spec);
    bench.network().image("c").started("c", 0).exited("c", 0, 0).step();
    // The agent restarts and the runtime has forgotten everything: the API's status is what remains.
    bench.view = PodView::new(bench.view.pod.clone(), vec![]);
    assert_eq!(bench.step(), "Unmount | Succeeded c=Completed:0");
    assert_eq!(bench.fact(Fact::Unmounted).step(), " | Succeeded c=Completed:0");
}

#[test]
fn init_containers_run_in_order_and_sidecars_stay() {
    let mut bench = Bench::new(json!({
        "restartPolicy": "Always",
        "initContainers": [
            { "name": "a", "image": "img:1" },
            { "name": "s", "image": "img:1", "restartPolicy": "Always", "startupProbe": { "exec": {} } },
            { "name": "b", "image": "img:1" },
        ],
        "containers": [{ "name": "c", "image": "img:1" }],
    }));
    bench.network();
    assert_eq!(
        bench.step(),
        "Image a IfNotPresent | Pending a=PodInitializing s=PodInitializing b=PodInitializing c=PodInitializing"
    );
    bench.image("a").started("a", 0);
    assert_eq!(bench.step(), " | Pending a=running s=PodInitializing b=PodInitializing c=PodInitializing");
    bench.exited("a", 0, 1);
    assert!(bench.step().starts_with("Image a IfNotPresent | Pending a=Error:1"));
    bench.image("a").started("a", 1).exited("a", 1, 0);
    assert_eq!(
        bench.step(),
        "Image s IfNotPresent | Pending a=Completed:0<1+x1 s=PodInitializing b=PodInitializing c=PodInitializing"
    );
    assert_eq!(
        bench.condition("Initialized"),
        "False ContainersNotInitialized containers with incomplete status: [s b]"
    );
    bench.image("s").started("s", 0);
    assert!(bench.step().starts_with("Startup s/0 | Pending"), "b waits until the sidecar has started");
    bench.probe("s", 0, ProbeKind::Startup, true);
    assert!(bench.step().starts_with("Image b IfNotPresent"));
    bench.image("b").started("b", 0).exited("b", 0, 0);
    assert!(bench.step().starts_with("Image c IfNotPresent"));
    bench.image("c").started("c", 0);
    assert_eq!(bench.step(), " | Running a=Completed:0<1+x1 s=running+ b=Completed:0+ c=running+");
    // A sidecar that dies comes back without the init containers running again.
    bench.pass(1).exited("s", 0, 1);
    assert!(bench.step().starts_with("Image s IfNotPresent | Running"));
}

#[test]
fn a_failed_init_container_fails_a_pod_that_never_restarts() {
    let mut bench = Bench::new(json!({
        "restartPolicy": "Never", "initContainers": [{ "name": "a", "image": "img:1" }],
            "containers": [{ "name": "c", "image": "img:1" }],
    }));
    bench.network().image("a").started("a", 0).exited("a", 0, 2);
    assert_eq!(bench.step(), "RemoveSandbox | Failed a=Error:2 c=PodInitializing");
}

#[test]
fn images_that_cannot_be_had() {
    let fail = |bench: &mut Bench, reason: &'static str| {
        let result = Err((reason, "why".to_owned()));
        bench.fact(Fact::Image { container: "c".into(), image: "img:1".into(), result });
    };
    for (reason, first, later) in [
        ("ErrImagePull", " | Pending c=ErrImagePull", " | Pending c=ImagePullBackOff"),
        ("InvalidImageName", " | Pending c=InvalidImageName", " | Pending c=InvalidImageName"),
        ("ErrImageNeverPull", " | Pending c=ErrImageNeverPull", " | Pending c=ErrImageNeverPull"),
    ] {
        let mut bench = Bench::new(one_container());
        bench.network();
        fail(&mut bench, reason);
        assert_eq!(bench.step(), first);
        let woken = decide(&bench.view, bench.now).wake_at.unwrap();
        assert_eq!(
            woken.duration_since(bench.now).as_secs(),
            if first == later { 10 } else { 2 },
            "{reason}: told anew in time"
        );
        assert_eq!(bench.pass(5).step(), later);
        assert!(bench.pass(5).step().starts_with("Image c IfNotPresent"), "{reason}: tried again after 10 s");
    }
    for (image, policy) in [
        ("a", "Always"),
        ("a:latest", "Always"),
        ("r:5000/a", "Always"),
        ("a:1", "IfNotPresent"),
        ("a@sha256:0", "IfNotPresent"),
    ] {
        let mut bench = Bench::new(json!({ "containers": [{ "name": "c", "image": image }] }));
        assert!(bench.network().step().starts_with(&format!("Image c {policy} ")), "{image}");
    }
}

#[test]
fn liveness_restarts_and_a_startup_probe_holds_the_others_back() {
    let probe =
        |period: i64, threshold: i64| json!({ "exec": {}, "periodSeconds": period, "failureThreshold": threshold });
    let mut bench = Bench::new(json!({
        "terminationGracePeriodSeconds": 5,
        "containers": [{ "name": "c", "image": "img:1", "startupProbe": probe(1, 3), "livenessProbe": probe(10, 2),
            "readinessProbe": probe(1, 1) }],
    }));
    bench.network().image("c").started("c", 0);
    assert!(bench.step().starts_with("Startup c/0 | "));
    bench.probe("c", 0, ProbeKind::Startup, false);
    assert!(bench.step().starts_with(" | "));
    bench.pass(1).probe("c", 0, ProbeKind::Startup, true);
    assert_eq!(bench.step(), "Liveness c/0, Readiness c/0 | Running c=running");
    bench.probe("c", 0, ProbeKind::Liveness, false).probe("c", 0, ProbeKind::Readiness, true);
    assert_eq!(bench.step(), " | Running c=running+");
    bench.pass(10).probe("c", 0, ProbeKind::Liveness, false);
    assert_eq!(bench.step(), "Stop c/0 by 00:16 | Running c=running+");
    assert_eq!(bench.pass(3).exited("c", 0, 137).step(), "Image c IfNotPresent | Running c=Error:137");
    bench.image("c").started("c", 1);
    assert!(
        bench.step().starts_with("Startup c/1 | Running c=running<137x1"),
        "the new attempt begins with clean counts"
    );
    assert!(bench.events.contains(&"Unhealthy: Liveness probe failed: no".to_owned()));
}

#[test]
fn readiness_is_looked_at_often_in_the_first_period_and_only_then() {
    let mut spec = one_container();
    spec["containers"][0]["readinessProbe"] = json!({ "exec": {}, "periodSeconds": 10, "failureThreshold": 3 });
    let mut bench = Bench::new(spec);
    bench.network().image("c").started("c", 0);
    let (start, mut runs) = (bench.now, Vec::new());
    while runs.len() < 12 {
        let decision = decide(&bench.view, bench.now);
        if decision.actions.iter().any(|action| matches!(action, Action::RunProbe { .. })) {
            runs.push(bench.now.duration_since(start).as_millis());
            bench.probe("c", 0, ProbeKind::Readiness, false);
        } else {
            bench.now = decision.wake_at.unwrap();
        }
    }
    assert_eq!(runs, [0, 50, 150, 350, 750, 1550, 3150, 6350, 10_000, 20_000, 30_000, 40_000]);
    assert_eq!(
        bench.events.iter().filter(|event| event.starts_with("Unhealthy")).count(),
        4,
        "early failures are not told"
    );
    bench.step();
    assert_eq!(bench.condition("Ready").split(' ').next(), Some("False"));
}

#[test]
fn s2_deletion_is_confirmed_only_when_all_is_stopped_and_unmounted() {
    let mut spec = one_container();
    spec["containers"][0]["lifecycle"] = json!({ "preStop": { "exec": {} } });
    let mut bench = Bench::new(spec);
    bench.network().image("c").started("c", 0).step();
    bench.pass(60).deleted(30);
    assert_eq!(bench.step(), "Remember | Running c=running+");
    bench.fact(Fact::Remembered(true));
    assert_eq!(bench.step(), "Stop c/0 by 01:30 preStop | Running c=running+");
    // A shorter grace period later hastens the stop.
    assert_eq!(bench.pass(2).deleted(0).step(), "Stop c/0 by 01:01 preStop | Running c=running+");
    assert_eq!(bench.exited("c", 0, 0).step(), "RemoveSandbox | Succeeded c=Completed:0");
    bench.fact(Fact::Sandbox(Sandbox::Absent));
    assert_eq!(bench.step(), "Unmount | Succeeded c=Completed:0");
    assert_eq!(bench.fact(Fact::Unmounted).step(), "Confirm | Succeeded c=Completed:0");
    assert_eq!(bench.fact(Fact::Gone).step(), "Remove c/0 | Succeeded c=Completed:0");
    assert_eq!(bench.fact(Fact::Containers(vec![])).step(), "Forget | Succeeded c=Completed:0");
}

#[test]
fn a_full_disk_does_not_keep_a_pod_alive() {
    let mut bench = Bench::new(one_container());
    bench.network().image("c").started("c", 0).step();
    bench.deleted(1).fact(Fact::Remembered(false));
    assert!(bench.step().starts_with("Stop c/0"));
}

#[test]
fn s1_nothing_starts_while_the_name_is_taken() {
    let mut bench = Bench::new(one_container());
    bench.view.predecessor = Some("u0".to_owned());
    assert_eq!(bench.step(), " | Pending c=ContainerCreating");
    bench.view.predecessor = None;
    assert!(bench.step().starts_with("Sandbox"));
}

#[test]
fn s1_a_stale_list_starts_nothing_that_was_told_to_stop() {
    let mut bench = Bench::new(one_container());
    bench.network().image("c").started("c", 0).step();
    // A restarted agent: the list has no deletionTimestamp, the disk knows better.
    bench.view = PodView::new(bench.view.pod.clone(), vec![]);
    bench.view.remembered = Remembered::Yes;
    bench.exited("c", 0, 0);
    assert!(bench.step().starts_with("Unmount"), "{:?}", bench.view.pod.status);
}

#[test]
fn v7_s11_a_restarted_agent_adopts_and_stays_ready() {
    let mut spec = one_container();
    spec["containers"][0]["readinessProbe"] = json!({ "exec": {}, "initialDelaySeconds": 100 });
    spec["containers"][0]["lifecycle"] = json!({ "postStart": { "exec": {} } });
    let mut bench = Bench::new(spec);
    bench.network().image("c").started("c", 0).fact(Fact::PostStart {
        container: "c".into(),
        attempt: 0,
        result: Ok(()),
    });
    bench.probe("c", 0, ProbeKind::Readiness, true);
    assert_eq!(bench.step(), " | Running c=running+");
    let (containers, sandbox) = (bench.view.containers.clone(), bench.view.sandbox.clone());
    bench.view = PodView::new(bench.view.pod.clone(), vec!["192.0.2.1".to_owned()]);
    bench.fact(Fact::Sandbox(sandbox)).fact(Fact::Containers(containers));
    assert_eq!(bench.step(), " | Running c=running+");
}

#[test]
fn after_a_reboot_everything_is_made_anew_and_counts_go_on() {
    let mut bench = Bench::new(json!({
        "initContainers": [{ "name": "a", "image": "img:1" }], "containers": [{ "name": "c", "image": "img:1" }],
    }));
    bench.network().image("a").started("a", 0).exited("a", 0, 0).image("c").started("c", 0).step();
    bench.pass(100).life("c", 0, Life::Lost);
    let since = bench.now;
    assert_eq!(bench.fact(Fact::Sandbox(Sandbox::Dead { since })).step().split(" |").next(), Some("RemoveSandbox"));
    bench.fact(Fact::Sandbox(Sandbox::Absent));
    assert!(bench.step().starts_with("Sandbox | "));
    assert!(bench.pass(1).network().step().starts_with("Image a"), "init containers run again in a new sandbox");
    bench.image("a").started("a", 1).pass(1).exited("a", 1, 0);
    bench.step();
    assert!(
        bench.image("c").step().starts_with("Start c/1 | Running a=Completed:0<0+x1 c=ContainerStatusUnknown:137"),
        "{}",
        bench.step()
    );
}

#[test]
fn sidecars_stop_last_and_in_reverse() {
    let mut bench = Bench::new(json!({
        "terminationGracePeriodSeconds": 10,
        "initContainers": [
            { "name": "s1", "image": "img:1", "restartPolicy": "Always" },
                { "name": "s2", "image": "img:1", "restartPolicy": "Always" },
        ],
        "containers": [{ "name": "c", "image": "img:1" }],
    }));
    bench.network().started("s1", 0).started("s2", 0).started("c", 0).step();
    bench.deleted(10).fact(Fact::Remembered(true));
    assert!(bench.step().starts_with("Stop c/0 by 00:10 | "));
    assert!(bench.pass(10).exited("c", 0, 137).step().starts_with("Stop s2/0 by 00:12 | "));
    assert!(bench.exited("s2", 0, 0).step().starts_with("Stop s1/0 by 00:12 | "));
}

#[test]
fn the_active_deadline_fails_a_pod_once_its_containers_are_stopped() {
    let mut spec = one_container();
    spec["activeDeadlineSeconds"] = json!(5);
    spec["terminationGracePeriodSeconds"] = json!(3);
    let mut bench = Bench::new(spec);
    bench.network().image("c").started("c", 0).step();
    assert_eq!(
        decide(&bench.view, bench.now).wake_at,
        Some(bench.now.checked_add(SignedDuration::from_secs(5)).unwrap())
    );
    assert_eq!(bench.pass(5).step(), "Stop c/0 by 00:08 | Running c=running+");
    assert_eq!(bench.exited("c", 0, 143).step(), "RemoveSandbox | Failed c=Error:143");
    assert_eq!(bench.view.pod.status.as_ref().unwrap().reason.as_deref(), Some("DeadlineExceeded"));
}

#[test]
fn x6_a_pod_that_has_too_much_on_disk_is_evicted_and_stays_so() {
    let mut spec = one_container();
    spec["terminationGracePeriodSeconds"] = json!(300);
    let mut bench = Bench::new(spec);
    bench.network().image("c").started("c", 0).step();
    let message = "Usage of EmptyDir volume \"e\" exceeds the limit \"1Mi\". ".to_owned();
    bench.fact(Fact::Evicted { message: message.clone() }).fact(Fact::Evicted { message: "again".to_owned() });
    assert_eq!(bench.step(), "Stop c/0 by 00:01 | Running c=running+");
    assert_eq!(bench.exited("c", 0, 137).step(), "RemoveSandbox | Failed c=Error:137");
    let status = bench.view.pod.status.clone().unwrap();
    assert_eq!((status.reason.as_deref(), status.message.as_ref()), (Some("Evicted"), Some(&message)));
    let why = format!("True TerminationByKubelet {}", message.trim_end());
    assert_eq!(bench.condition("DisruptionTarget"), why);
    assert_eq!(bench.events.iter().filter(|event| event.starts_with("Evicted: ")).count(), 1, "{:?}", bench.events);
    // The agent starts anew and knows it from the API only.
    let mut again = Bench::new(one_container());
    again.view.pod = bench.view.pod.clone();
    again.step();
    assert_eq!(again.view.pod.status.as_ref().unwrap().reason.as_deref(), Some("Evicted"));
    assert_eq!(again.condition("DisruptionTarget"), why);
}

#[test]
fn readiness_gates_and_foreign_conditions() {
    let mut spec = one_container();
    spec["readinessGates"] = json!([{ "conditionType": "example.com/lb" }]);
    let mut bench = Bench::new(spec);
    bench.network().image("c").started("c", 0).step();
    assert_eq!(
        bench.condition("Ready"),
        "False ReadinessGatesNotReady corresponding condition of pod readiness gate \"example.com/lb\" does not exist."
    );
    let mut pod = bench.view.pod.clone();
    let gate = serde_json::from_value(json!({ "type": "example.com/lb", "status": "True" })).unwrap();
    pod.status.as_mut().unwrap().conditions.as_mut().unwrap().push(gate);
    bench.fact(Fact::Pod(Box::new(pod))).step();
    assert_eq!((bench.condition("Ready"), bench.condition("example.com/lb")), ("True".to_owned(), "True".to_owned()));
}

#[test]
fn conformance_a_device_that_fails_is_told_by_its_own_reason() {
    let mut spec = one_container();
    spec["containers"][0]["volumeDevices"] = json!([{ "name": "v", "devicePath": "/dev/x" }]);
    spec["volumes"] = json!([{ "name": "v", "persistentVolumeClaim": { "claimName": "c" } }]);
    let mut bench = Bench::new(spec);
    bench.fact(Fact::Volume { name: "v".into(), result: Err("no".into()) });
    assert_eq!(bench.events, ["FailedMapVolume: MapVolume.SetUpDevice failed for volume \"v\" : no"]);
}

#[test]
fn volumes_that_fail_are_tried_again_and_refreshed_when_due() {
    let mut spec = one_container();
    spec["volumes"] = json!([{ "name": "v", "emptyDir": {} }]);
    let mut bench = Bench::new(spec);
    bench.fact(Fact::Volume { name: "v".into(), result: Err("no".into()) });
    assert_eq!(bench.step(), " | Pending c=ContainerCreating");
    assert_eq!(bench.fact(Fact::DependencyChanged).step(), "Volume v | Pending c=ContainerCreating");
    let due = bench.now.checked_add(SignedDuration::from_secs(60)).unwrap();
    bench.fact(Fact::Volume { name: "v".into(), result: Ok(Some(due)) }).network().image("c").started("c", 0);
    assert_eq!(bench.step(), " | Running c=running+");
    assert_eq!(bench.pass(60).step(), "Volume v | Running c=running+");
    // The refresh fails: what is mounted stays, and the pod stays as it is.
    bench.fact(Fact::Volume { name: "v".into(), result: Err("no".into()) });
    assert_eq!(bench.step(), " | Running c=running+");
    assert_eq!(
        bench
            .events
            .iter()
            .filter(|event| *event == "FailedMount: MountVolume.SetUp failed for volume \"v\" : no")
            .count(),
        2
    );
}

/// `mainstay down`, or damaged records: the count goes on, also where the status was written before the next start.
#[test]
fn restarts_are_counted_on_after_the_runtime_lost_everything() {
    let mut bench = Bench::new(one_container());
    bench.network().image("c").started("c", 0).step();
    bench.exited("c", 0, 1).image("c").started("c", 1).step();
    let mut again = Bench::new(one_container());
    again.view.pod = bench.view.pod.clone();
    for round in 2..4 {
        assert!(again.step().ends_with(&format!("c=ContainerCreating<137x{round}")), "{:?}", again.view.pod.status);
        again.network().step();
        assert!(again.image("c").step().starts_with(&format!("Start c/{round} |")));
        assert!(again.started("c", round).step().ends_with(&format!("c=running<137+x{round}")));
        let pod = again.view.pod.clone();
        again = Bench::new(one_container());
        again.view.pod = pod;
    }
}

/// S12: what waits for room that is being made begins nothing, and is looked at again in the end.
#[test]
fn s12_a_pod_that_waits_for_room_begins_nothing_until_there_is_some() {
    let mut bench = Bench::new(one_container());
    let until = bench.now.checked_add(jiff::SignedDuration::from_secs(60)).unwrap();
    bench.view.crowded_until = Some(until);
    let decided = decide(&bench.view, bench.now);
    assert_eq!((decided.actions.as_slice(), decided.wake_at), (&[][..], Some(until)));
    bench.view.crowded_until = None;
    assert!(!decide(&bench.view, bench.now).actions.is_empty());
}

#[test]
fn a_pod_that_the_node_refuses_fails_and_is_never_begun() {
    let mut bench = Bench::new(one_container());
    assert!(bench.view.is_new());
    let refusal = admission::Refusal { reason: "OutOfcpu", message: "Node didn't have enough resource: cpu".into() };
    bench.fact(Fact::Refused(refusal));
    assert!(!bench.view.takes_room());
    assert_eq!(bench.step(), "Unmount | Failed ");
    let status = bench.view.pod.status.clone().unwrap();
    assert_eq!(status.reason.as_deref(), Some("OutOfcpu"));
    assert_eq!(status.message.as_deref(), Some("Pod was rejected: Node didn't have enough resource: cpu"));
    assert_eq!(bench.events, ["OutOfcpu: Node didn't have enough resource: cpu"]);
    // The agent starts anew and knows it from the API only.
    let mut again = Bench::new(one_container());
    again.view.pod = bench.view.pod.clone();
    assert_eq!(again.step(), "Unmount | Failed ");
    assert_eq!(again.view.pod.status.unwrap().reason.as_deref(), Some("OutOfcpu"));
}

#[test]
fn an_ephemeral_container_runs_once_beside_whatever_the_others_do() {
    let mut spec = one_container();
    spec["initContainers"] = json!([{ "name": "i", "image": "img:1" }]);
    spec["ephemeralContainers"] = json!([{ "name": "e", "image": "img:1" }]);
    let mut bench = Bench::new(spec.clone());
    assert!(bench.network().step().starts_with("Image e IfNotPresent, Image i IfNotPresent |"));
    assert!(bench.image("e").step().starts_with("Start e/0, Image i IfNotPresent |"));
    let of_e = |bench: &Bench| {
        let statuses = bench.view.pod.status.as_ref().unwrap().ephemeral_container_statuses.clone().unwrap();
        statuses.iter().map(show_container).collect::<Vec<_>>()
    };
    let step = bench.started("e", 0).step();
    assert!(step.starts_with("Image i IfNotPresent |"), "once: {step}");
    assert_eq!(of_e(&bench), ["e=running"]);
    assert!(bench.exited("e", 0, 3).step().starts_with("Image i IfNotPresent |"), "never again");
    assert_eq!(of_e(&bench), ["e=Error:3"]);
    let mut again = Bench::new(spec);
    again.view.pod = bench.view.pod.clone();
    assert!(again.network().step().starts_with("Image i IfNotPresent |"), "nor after the runtime lost it");
}

#[test]
fn a_containers_status_says_what_it_was_given() {
    let mut spec = one_container();
    spec["containers"][0]["resources"] = json!({ "requests": { "cpu": "1" }, "limits": { "cpu": "2" } });
    let mut bench = Bench::new(spec);
    bench.network().image("c").started("c", 0).step();
    let status = serde_json::to_value(bench.view.pod.status.unwrap().container_statuses.unwrap()).unwrap();
    assert_eq!(status[0]["resources"], json!({ "requests": { "cpu": "1" }, "limits": { "cpu": "2" } }));
    assert_eq!(status[0]["allocatedResources"], json!({ "cpu": "1" }));
}

/// A pull that worked begins anew with its back-off.
#[test]
fn an_image_that_was_had_is_not_held_against_the_next_pull() {
    let mut bench = Bench::new(one_container());
    bench.network();
    let fail = |bench: &mut Bench| {
        let result = Err(("ErrImagePull", "why".to_owned()));
        bench.fact(Fact::Image { container: "c".into(), image: "img:1".into(), result });
        bench.view.memory["c"].pull.unwrap().delay.as_secs()
    };
    assert_eq!([fail(&mut bench), fail(&mut bench)], [10, 20]);
    bench.image("c");
    assert_eq!(fail(&mut bench), 10);
}
