//! What a pod says of itself, field by field, as upstream's kubelet says it.

use super::*;

impl Bench {
    /// A field of the status as the API has it, by a JSON pointer.
    fn said(&self, pointer: &str) -> Value {
        let status = serde_json::to_value(self.view.pod.status.as_ref().unwrap()).unwrap();
        status.pointer(pointer).cloned().unwrap_or(Value::Null)
    }

    /// The kubelet's conditions, without their times: type, status, reason.
    fn conditions(&self) -> Vec<String> {
        let all = self.view.pod.status.as_ref().unwrap().conditions.iter().flatten();
        all.map(|one| format!("{} {} {}", one.type_, one.status, one.reason.as_deref().unwrap_or("-"))).collect()
    }

    /// The next agent: it has the pod from the API and nothing else.
    fn restarted(&mut self) -> &mut Self {
        self.view = PodView::new(self.view.pod.clone(), vec!["192.0.2.1".to_owned()]);
        self
    }
}

fn pair(policy: &str) -> Value {
    json!({ "restartPolicy": policy, "terminationGracePeriodSeconds": 30,
        "containers": [{ "name": "c", "image": "img:1" }, { "name": "d", "image": "img:1" }] })
}

#[test]
fn a_container_that_crashes_says_so_until_it_starts_and_one_that_is_done_does_not() {
    let init = |own: Value| {
        let mut container = json!({ "name": "i", "image": "img:1" });
        container.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
        json!({ "restartPolicy": "OnFailure", "initContainers": [container],
            "containers": [{ "name": "c", "image": "img:1" }] })
    };
    // One that ended twice, with these codes.
    let twice = |spec: Value, name: &str, codes: [i32; 2]| {
        let mut bench = Bench::new(spec);
        bench.network().started(name, 0).exited(name, 0, codes[0]).started(name, 1).exited(name, 1, codes[1]);
        let step = bench.step();
        step.split(' ').find(|word| word.starts_with(&format!("{name}="))).unwrap().to_owned()
    };
    for (spec, name, codes, expected) in [
        (pair("Always"), "c", [1, 2], "c=CrashLoopBackOff<2x1"),
        (pair("Always"), "c", [0, 0], "c=CrashLoopBackOff<0x1"),
        (pair("OnFailure"), "c", [1, 0], "c=Completed:0<1x1"),
        (pair("OnFailure"), "c", [1, 2], "c=CrashLoopBackOff<2x1"),
        (init(json!({})), "i", [1, 2], "i=CrashLoopBackOff<2x1"),
        (init(json!({})), "i", [1, 0], "i=Completed:0<1+x1"),
        (init(json!({ "restartPolicy": "Always" })), "i", [0, 0], "i=CrashLoopBackOff<0x1"),
        (init(json!({ "restartPolicy": "Never" })), "i", [1, 2], "i=Error:2<1x1"),
    ] {
        assert_eq!(twice(spec.clone(), name, codes), expected, "{spec} {codes:?}");
    }
    // A pod that goes does not wait for anything.
    let mut bench = Bench::new(one_container());
    bench.network().started("c", 0).exited("c", 0, 1).started("c", 1).exited("c", 1, 2);
    assert!(bench.step().ends_with("c=CrashLoopBackOff<2x1"));
    bench.deleted(30);
    assert!(bench.step().ends_with("c=Error:2<1x1"), "{}", bench.step());
    // A sidecar that ended is not ready, though it ended well.
    let mut bench = Bench::new(init(json!({ "restartPolicy": "Always" })));
    bench.network().started("i", 0).exited("i", 0, 0);
    assert!(bench.step().contains(" i=Completed:0 "), "{}", bench.step());
}

#[test]
fn how_long_a_crash_keeps_a_container_waiting_is_said_as_upstream() {
    let mut bench = Bench::new(one_container());
    bench.network().started("c", 0).exited("c", 0, 1);
    let mut said = Vec::new();
    for attempt in 1..7 {
        bench.started("c", attempt).exited("c", attempt, 1).step();
        let message = bench.said("/containerStatuses/0/state/waiting/message");
        said.push(message.as_str().unwrap().split(" restarting ").next().unwrap().to_owned());
    }
    assert_eq!(said, ["10s", "20s", "40s", "1m20s", "2m40s", "5m0s"].map(|delay| format!("back-off {delay}")));
    let message = bench.said("/containerStatuses/0/state/waiting/message");
    assert_eq!(message, "back-off 5m0s restarting failed container=c pod=web-0_default(u1)");
}

#[test]
fn a_pod_that_ended_says_how_in_all_conditions() {
    let ends = |code: i32| {
        let mut spec = one_container();
        spec["restartPolicy"] = json!("Never");
        spec["initContainers"] = json!([{ "name": "i", "image": "img:1" }]);
        let mut bench = Bench::new(spec);
        bench.network().started("i", 0).exited("i", 0, 0).started("c", 0).exited("c", 0, code).step();
        bench.fact(Fact::Sandbox(Sandbox::Absent)).step();
        bench
    };
    let mut bench = ends(0);
    assert_eq!(bench.said("/phase"), "Succeeded");
    let completed = [
        "PodReadyToStartContainers False -",
        "Initialized True PodCompleted",
        "Ready False PodCompleted",
        "ContainersReady False PodCompleted",
        "PodScheduled True -",
    ];
    assert_eq!(bench.conditions(), completed);
    assert_eq!(bench.said("/conditions/0/reason"), Value::Null, "nothing is no reason");
    assert_eq!(bench.said("/conditions/0/message"), Value::Null);
    // What is so stays so since when it was; what changes has a new time.
    let times = |bench: &Bench| {
        let all = bench.view.pod.status.as_ref().unwrap().conditions.iter().flatten();
        all.map(|one| one.last_transition_time.as_ref().unwrap().0).collect::<Vec<_>>()
    };
    let before = times(&bench);
    bench.pass(60).step();
    assert_eq!(times(&bench), before);
    bench.network().step();
    assert_eq!((times(&bench)[0], &times(&bench)[1..]), (bench.now, &before[1..]));
    let failed = ends(1);
    assert_eq!(failed.said("/phase"), "Failed");
    assert_eq!(
        failed.conditions()[1..4],
        ["Initialized True -", "Ready False PodFailed", "ContainersReady False PodFailed"]
    );
}

#[test]
fn conditions_of_others_stay_and_ours_are_there_once() {
    let gate = |name: &str| json!({ "conditionType": name });
    let mut spec = one_container();
    spec["readinessGates"] = json!([gate("x.io/a"), gate("x.io/b"), gate("x.io/c")]);
    let mut bench = Bench::new(spec);
    bench.network().started("c", 0).step();
    let others = [("x.io/b", "False"), ("x.io/a", "True"), ("DisruptionTarget", "True")];
    let mut pod = bench.view.pod.clone();
    let conditions = pod.status.as_mut().unwrap().conditions.as_mut().unwrap();
    for (name, status) in others {
        let why = json!({ "type": name, "status": status, "reason": "Theirs" });
        conditions.push(serde_json::from_value(why).unwrap());
    }
    bench.fact(Fact::Pod(Box::new(pod))).fact(Fact::Deadline(40)).step();
    assert_eq!(
        bench.condition("Ready"),
        "False ReadinessGatesNotReady the status of pod readiness gate \"x.io/b\" is not \"True\", but False, \
         corresponding condition of pod readiness gate \"x.io/c\" does not exist."
    );
    let ours = "mainstay.io/FencingDeadline True After40Seconds";
    let theirs = ["x.io/b False Theirs", "x.io/a True Theirs", "DisruptionTarget True Theirs"];
    let rest = |bench: &Bench| bench.conditions().split_off(5);
    assert_eq!(rest(&bench), [&[ours], &theirs[..]].concat());
    bench.step();
    assert_eq!(rest(&bench), [&[ours], &theirs[..]].concat(), "noted once");
    assert_eq!(bench.restarted().network().started("c", 0).step(), " | Running c=running+");
    assert_eq!(rest(&bench), [&[ours], &theirs[..]].concat(), "and for good");
    bench.fact(Fact::Deadline(20)).step();
    assert_eq!(rest(&bench), [&["mainstay.io/FencingDeadline True After20Seconds"], &theirs[..]].concat());
    // The kubelet's own verdict takes the others' over.
    bench.fact(Fact::Evicted { message: "why".to_owned() }).step();
    let disrupted: Vec<String> = rest(&bench).into_iter().filter(|one| one.starts_with("Disruption")).collect();
    assert_eq!(disrupted, ["DisruptionTarget True TerminationByKubelet"]);
}

#[test]
fn a_pod_has_its_nodes_address_where_it_has_the_nodes_network() {
    let mut spec = one_container();
    spec["hostNetwork"] = json!(true);
    let mut bench = Bench::new(spec);
    bench.view.host_ips = vec!["192.0.2.1".to_owned(), "2001:db8::1".to_owned()];
    bench.step();
    assert_eq!([bench.said("/podIP"), bench.said("/hostIP")], [json!(null), json!("192.0.2.1")]);
    bench.network().step();
    assert_eq!([bench.said("/podIP"), bench.said("/podIPs")], [json!("192.0.2.1"), json!([{ "ip": "192.0.2.1" }])]);
    assert_eq!(bench.said("/hostIPs"), json!([{ "ip": "192.0.2.1" }, { "ip": "2001:db8::1" }]));
}

#[test]
fn what_is_made_and_not_started_has_no_id_yet() {
    let mut bench = Bench::new(one_container());
    bench.network().life("c", 0, Life::Created).step();
    assert_eq!(bench.said("/containerStatuses/0/state"), json!({ "waiting": { "reason": "ContainerCreating" } }));
    assert_eq!(bench.said("/containerStatuses/0/containerID"), Value::Null);
    assert_eq!(bench.said("/containerStatuses/0/imageID"), json!("sha256:1"));
    bench.started("c", 0).step();
    assert_eq!(bench.said("/containerStatuses/0/containerID"), json!("mainstay://u1/c/0"));
    assert_eq!(bench.said("/containerStatuses/0/allocatedResources"), Value::Null, "it asks for nothing");
}

/// The runtime keeps two attempts; what came before stands in the API only, and only as long as it is about the same.
#[test]
fn the_last_state_is_that_of_the_attempt_before() {
    let mut bench = Bench::new(one_container());
    bench.network().started("c", 0).exited("c", 0, 7).started("c", 1).step();
    let since = bench.now;
    assert!(bench.restarted().network().life("c", 1, Life::Running { since }).step().ends_with("c=running<7+x1"));
    assert!(bench.restarted().network().life("c", 2, Life::Running { since }).step().ends_with("c=running+x2"));
}

#[test]
fn how_a_container_ended_outlives_what_the_runtime_knew() {
    let mut bench = Bench::new(one_container());
    bench.network().started("c", 0).exited("c", 0, 7).step();
    assert!(bench.restarted().step().ends_with(" | Pending c=ContainerCreating<7x1"), "{}", bench.step());
    // One that ran when its pod was told to go, and is nowhere now.
    let mut bench = Bench::new(one_container());
    bench.network().started("c", 0).step();
    assert_eq!(
        bench.restarted().deleted(30).fact(Fact::Remembered(true)).step(),
        "Unmount | Failed c=ContainerStatusUnknown:137"
    );
    assert_eq!(bench.said("/containerStatuses/0/started"), json!(false));
    assert_eq!(bench.said("/containerStatuses/0/lastState"), json!({}));
}

#[test]
fn a_pods_phase_is_that_of_all_its_containers() {
    // Told to go: one has ended, the other runs on.
    let mut bench = Bench::new(pair("Always"));
    bench.network().started("c", 0).started("d", 0).deleted(30).fact(Fact::Remembered(true)).exited("c", 0, 0);
    assert_eq!(bench.step(), "Stop d/0 by 00:30 | Running c=Completed:0 d=running+");
    assert!(bench.exited("d", 0, 0).step().contains("| Succeeded c=Completed:0 d=Completed:0"));
    // Told to go before the other began: it has not succeeded.
    let mut bench = Bench::new(pair("Always"));
    bench.network().started("c", 0).deleted(30).fact(Fact::Remembered(true)).exited("c", 0, 0);
    assert_eq!(bench.step(), "RemoveSandbox | Pending c=Completed:0 d=ContainerCreating");
    // Its own have ended, and a sidecar runs on: not before that has stopped.
    let mut spec = pair("Never");
    spec["initContainers"] = json!([{ "name": "s", "image": "img:1", "restartPolicy": "Always" }]);
    let mut bench = Bench::new(spec);
    bench.network().started("s", 0).started("c", 0).started("d", 0).exited("c", 0, 0).exited("d", 0, 0);
    assert_eq!(bench.step(), "Stop s/0 by 00:30 | Running s=running+ c=Completed:0 d=Completed:0");
    bench.exited("s", 0, 143);
    assert_eq!(bench.step(), "RemoveSandbox | Succeeded s=Error:143 c=Completed:0 d=Completed:0");
    // One is there, the other's record is lost: it was there, too.
    let mut bench = Bench::new(pair("Always"));
    bench.network().started("c", 0).started("d", 0).step();
    let since = bench.now;
    bench.restarted().network().life("c", 0, Life::Running { since });
    assert_eq!(bench.step(), "Image d IfNotPresent | Running c=running+ d=ContainerCreating<137x1");
    // Nothing is nothing.
    for spec in [json!({ "containers": [] }), json!({ "containers": [], "restartPolicy": "Never" })] {
        let mut bench = Bench::new(spec);
        assert_eq!(bench.network().step(), " | Pending ");
        assert_eq!(bench.deleted(1).fact(Fact::Remembered(true)).step(), "RemoveSandbox | Pending ");
    }
    let mut bench = Bench::new(one_container());
    bench.view.pod.spec = None;
    assert_eq!(bench.network().step(), " | Pending ");
}

#[test]
fn why_a_pod_that_ran_too_long_failed_is_said() {
    let mut spec = one_container();
    spec["activeDeadlineSeconds"] = json!(5);
    let mut bench = Bench::new(spec);
    bench.network().started("c", 0).step();
    bench.pass(4).step();
    assert_eq!(bench.said("/reason"), Value::Null);
    bench.pass(1).step();
    assert_eq!(bench.said("/reason"), "DeadlineExceeded");
    assert_eq!(bench.said("/message"), "Pod was active on the node longer than the specified deadline");
}

#[test]
fn only_what_differs_is_written_with_the_pod_it_is_about() {
    let mut bench = Bench::new(one_container());
    bench.view.pod.metadata.resource_version = Some("7".to_owned());
    bench.network().started("c", 0).step();
    let decided = decide(&bench.view, bench.now).status;
    assert_eq!(status::patch(&bench.view.pod, &decided), None);
    bench.exited("c", 0, 0);
    let patch = status::patch(&bench.view.pod, &decide(&bench.view, bench.now).status).unwrap();
    assert_eq!(patch["metadata"], json!({ "uid": "u1", "resourceVersion": "7" }));
    let fields: Vec<&String> = patch["status"].as_object().unwrap().keys().collect();
    assert_eq!(fields, ["conditions", "containerStatuses"]);
}

#[test]
fn x4_a_pod_takes_room_until_it_is_over_and_nothing_of_it_runs() {
    let refusal = || Fact::Refused(admission::Refusal { reason: "OutOfcpu", message: "no".into() });
    let phase = |phase: &str| {
        let mut bench = Bench::new(one_container());
        bench.view.pod.status.as_mut().unwrap().phase = Some(phase.to_owned());
        bench
    };
    for (what, expected) in [("Pending", true), ("Running", true), ("Succeeded", false), ("Failed", false)] {
        assert_eq!(phase(what).view.takes_room(), expected, "{what}");
        assert_eq!(phase(what).view.is_new(), what == "Pending", "{what}");
        assert_eq!(phase(what).network().view.takes_room(), expected, "{what}: its sandbox is there");
        assert!(!phase(what).network().view.is_new());
        assert!(phase(what).started("c", 0).view.takes_room(), "{what}: it runs");
        assert!(!phase(what).started("c", 0).view.is_new());
        assert_eq!(phase(what).started("c", 0).exited("c", 0, 0).view.takes_room(), expected, "{what}: it ended");
        assert!(!phase(what).deleted(1).view.takes_room(), "{what}: told to go, and nothing there");
        let stopped = phase(what).network().started("c", 0).deleted(1).exited("c", 0, 0).view.clone();
        assert!(!stopped.takes_room() && stopped.is_going(), "{what}: told to go, only its sandbox is there");
        assert!(phase(what).network().started("c", 0).deleted(1).view.takes_room(), "{what}: told to go, and runs");
        assert!(!phase(what).deleted(1).view.is_new());
        assert!(!phase(what).fact(refusal()).view.takes_room());
        assert!(!phase(what).fact(Fact::Gone).view.takes_room());
    }
    let mut bench = phase("Pending");
    bench.view.remembered = Remembered::Yes;
    assert!(!bench.view.is_new(), "it was told to go before");
}

#[test]
fn conformance_a_status_says_who_a_containers_first_process_began_as() {
    let mut bench = Bench::new(one_container());
    bench.network().image("c").started("c", 0);
    let user = k8s_openapi::api::core::v1::LinuxContainerUser {
        uid: 1000,
        gid: 3000,
        supplemental_groups: Some(vec![3000, 60000]),
    };
    let mut facts = bench.view.containers.clone();
    facts.iter_mut().for_each(|fact| fact.user = Some(user.clone()));
    bench.fact(Fact::Containers(facts)).step();
    let told = |bench: &Bench| bench.view.pod.status.clone().unwrap().container_statuses.unwrap().remove(0).user;
    assert_eq!(told(&bench).unwrap().linux, Some(user));
    // Of what was never made nothing is known.
    let mut bench = Bench::new(one_container());
    bench.network().image("c").step();
    assert_eq!(told(&bench), None);
}

/// Of what the runtime has lost (`mainstay down`, a restart of the machine), the API's word stands: what runs again is
/// said to have ended, what does not stays as it was.
#[test]
fn what_is_lost_is_said_by_what_the_api_had() {
    let mut spec = one_container();
    spec["initContainers"] = json!([{ "name": "i", "image": "img:1" }]);
    spec["ephemeralContainers"] = json!([{ "name": "look", "image": "img:1" }, { "name": "ran", "image": "img:1" }]);
    let mut bench = Bench::new(spec);
    bench.network().image("look");
    assert!(bench.step().contains("Start look/0"), "{}", bench.step());
    bench.started("i", 0).exited("i", 0, 0).started("c", 0).started("look", 0).exited("look", 0, 3).started("ran", 0);
    bench.step();
    let before = bench.said("/ephemeralContainerStatuses/0");
    assert_eq!(before["state"]["terminated"]["exitCode"], 3);
    let step = bench.restarted().step();
    assert_eq!(step, "Sandbox | Pending i=PodInitializing<0x1 c=PodInitializing<137x1");
    // An ephemeral container runs once, whatever the pod's policy.
    assert_eq!(bench.said("/ephemeralContainerStatuses/0"), before);
    let ran = bench.said("/ephemeralContainerStatuses/1");
    assert_eq!(ran["state"]["terminated"]["reason"], "ContainerStatusUnknown");
    assert_eq!(ran["restartCount"], 0);
    bench.network().image("look").image("ran").image("i");
    let step = bench.step();
    assert!(step.starts_with("Start i/1 |"), "{step}");

    // One that waited for its next attempt.
    let mut bench = Bench::new(one_container());
    bench.network().started("c", 0).exited("c", 0, 1).started("c", 1).exited("c", 1, 2);
    assert!(bench.step().ends_with("c=CrashLoopBackOff<2x1"));
    assert!(bench.restarted().step().ends_with("c=ContainerCreating<2x2"), "{}", bench.step());
    // One of which nothing was said.
    let silent = json!({ "phase": "Pending", "containerStatuses": [{ "name": "c", "ready": false, "image": "img:1",
        "imageID": "", "restartCount": 0, "state": {} }] });
    let mut bench = Bench::new(one_container());
    bench.view.pod.status = Some(serde_json::from_value(silent).unwrap());
    assert!(bench.step().ends_with(" c=ContainerCreating"), "{}", bench.step());
}

#[test]
fn how_a_container_ended_is_said_in_one_word() {
    let ended = |life: Life, policy: &str| {
        let mut spec = one_container();
        spec["restartPolicy"] = json!(policy);
        let mut bench = Bench::new(spec);
        bench.network().life("c", 0, life).step();
        bench.said("/containerStatuses/0/state/terminated/reason")
    };
    let life = |code: i32, oom: bool, fenced: bool, second: i64| Life::Exited {
        code,
        signal: None,
        oom,
        fenced,
        started: Timestamp::from_second(second).unwrap(),
        finished: Timestamp::from_second(9).unwrap(),
        message: None,
    };
    for (life, expected) in [
        (life(0, false, false, 1), "Completed"),
        (life(1, false, false, 1), "Error"),
        (life(137, true, false, 1), "OOMKilled"),
        (life(128, false, false, 0), "StartError"),
        (life(137, true, true, 1), "Fenced"),
        (Life::Lost, "ContainerStatusUnknown"),
    ] {
        assert_eq!(ended(life.clone(), "Never"), expected, "{life:?}");
    }
    // What ended is not started.
    let mut bench = Bench::new(one_container());
    bench.network().started("c", 0).step();
    assert_eq!(bench.said("/containerStatuses/0/started"), json!(true));
    bench.exited("c", 0, 1).step();
    assert_eq!(bench.said("/containerStatuses/0/started"), json!(false));
    // Of an image that is not known the pod's word stands.
    let mut bench = Bench::new(one_container());
    bench.network().started("c", 0).of_image("c", 0, "").step();
    assert_eq!(bench.said("/containerStatuses/0/image"), "img:1");
    // Nothing asked for is nothing allocated.
    let mut spec = one_container();
    spec["containers"][0]["resources"] = json!({ "requests": {} });
    let mut bench = Bench::new(spec);
    bench.network().started("c", 0).step();
    assert_eq!(bench.said("/containerStatuses/0/allocatedResources"), Value::Null);
}

#[test]
fn lists_that_are_empty_are_not_there() {
    let mut spec = one_container();
    spec["initContainers"] = json!([]);
    let mut bench = Bench::new(spec);
    assert!(bench.step().ends_with("c=ContainerCreating"), "{}", bench.step());
    assert_eq!(bench.said("/initContainerStatuses"), Value::Null);
    assert_eq!(bench.said("/ephemeralContainerStatuses"), Value::Null);
}

/// A pod that others wrote to have failed: what is here is told, and what was told stays.
#[test]
fn a_pod_that_failed_by_anothers_word_says_what_there_is() {
    let failed = |statuses: Value| {
        let mut bench = Bench::new(one_container());
        let status = json!({ "phase": "Failed", "containerStatuses": statuses });
        bench.view.pod.status = Some(serde_json::from_value(status).unwrap());
        bench
    };
    let mut bench = failed(Value::Null);
    bench.step();
    assert_eq!(bench.said("/containerStatuses"), Value::Null, "nothing of it ever was");
    let mut bench = failed(Value::Null);
    assert_eq!(bench.started("c", 0).exited("c", 0, 7).step(), "Unmount | Failed c=Error:7");
    let ended = json!([{ "name": "c", "ready": false, "image": "img:1", "imageID": "", "restartCount": 0,
        "containerID": "mainstay://u1/c/0", "state": { "terminated": { "exitCode": 7, "reason": "Error" } } }]);
    assert_eq!(failed(ended).step(), "Unmount | Failed c=Error:7");
}

#[test]
fn an_address_is_said_while_it_is_the_pods() {
    let mut bench = Bench::new(one_container());
    bench.network().started("c", 0).step();
    assert_eq!(bench.said("/podIP"), "10.0.0.5");
    let since = bench.now;
    let mut going = Bench::new(one_container());
    going.network().started("c", 0).step();
    bench.fact(Fact::Sandbox(Sandbox::Dead { since })).step();
    assert_eq!(bench.said("/podIP"), Value::Null, "the next one has another");
    going.deleted(30).fact(Fact::Remembered(true)).exited("c", 0, 0).fact(Fact::Sandbox(Sandbox::Absent)).step();
    assert_eq!(going.said("/podIP"), "10.0.0.5", "there is no next one");
}

#[test]
fn a_pull_that_failed_backs_off_after_two_seconds() {
    let mut bench = Bench::new(one_container());
    bench.network();
    let failed = Err(("ErrImagePull", "why".to_owned()));
    bench.fact(Fact::Image { container: "c".to_owned(), image: "img:1".to_owned(), result: failed });
    assert!(bench.step().ends_with("c=ErrImagePull"), "{}", bench.step());
    assert!(bench.pass(1).step().ends_with("c=ErrImagePull"), "{}", bench.step());
    assert!(bench.pass(1).step().ends_with("c=ImagePullBackOff"), "{}", bench.step());
}
