//! Whose turn it is: starts that wait for another container, stops in their order, and what is left alone.

use super::*;

/// `c` with a postStart hook, and `d`, which never began.
fn hooked(policy: &str) -> Bench {
    let mut bench = Bench::new(json!({ "restartPolicy": policy, "terminationGracePeriodSeconds": 30, "containers": [
        { "name": "c", "image": "img:1", "lifecycle": { "postStart": { "exec": {} } } },
        { "name": "d", "image": "img:1" }] }));
    bench.network().image("c").image("d");
    bench
}

#[test]
fn a_container_waits_for_the_hook_of_the_one_before_it_where_that_may_still_run() {
    let starts = |bench: &mut Bench| bench.step().contains("Start d/0");
    assert!(!starts(&mut hooked("Never")), "c is to start first");
    assert!(!starts(hooked("Never").life("c", 0, Life::Created)), "it is being started");
    assert!(!starts(hooked("Never").started("c", 0)), "its hook runs");
    let hook = |result| Fact::PostStart { container: "c".to_owned(), attempt: 0, result };
    assert!(starts(hooked("Never").started("c", 0).fact(hook(Ok(())))));
    assert!(starts(hooked("Never").started("c", 0).fact(hook(Err("no".to_owned())))), "it is told to stop");
    assert!(starts(hooked("Never").started("c", 0).exited("c", 0, 0)), "it has ended");
    let failed = Fact::StartFailed { container: "c".to_owned(), reason: "RunContainerError", message: "no".to_owned() };
    assert!(starts(hooked("Never").fact(failed)), "it cannot be started");
    let failed = Err(("ErrImagePull", "no".to_owned()));
    let failed = Fact::Image { container: "c".to_owned(), image: "img:1".to_owned(), result: failed };
    assert!(starts(hooked("Never").fact(failed)), "there is no image of it");
    // No probe runs before the hook is done, that of its start neither.
    let mut spec = one_container();
    spec["containers"][0]["lifecycle"] = json!({ "postStart": { "exec": {} } });
    spec["containers"][0]["startupProbe"] = json!({ "exec": {} });
    let mut bench = Bench::new(spec);
    assert_eq!(bench.network().started("c", 0).step(), "PostStart c/0 | Running c=running");
}

/// S3: attempts are counted by the runtime and by the API, whichever has more.
#[test]
fn s3_an_attempt_has_a_number_that_none_had_before() {
    let starts = |bench: &Bench| {
        let actions = decide(&bench.view, bench.now).actions;
        actions.iter().map(show_action).find(|action| action.starts_with("Start ")).unwrap()
    };
    let mut bench = Bench::new(one_container());
    bench.network().started("c", 0).exited("c", 0, 1).image("c");
    assert_eq!(starts(&bench), "Start c/1", "the API knows of none yet");
    let recorded = json!({ "phase": "Running", "containerStatuses": [{ "name": "c", "ready": false, "image": "img:1",
        "imageID": "", "restartCount": 5, "containerID": "mainstay://u1/c/5", "state": {} }] });
    bench.view.pod.status = Some(serde_json::from_value(recorded).unwrap());
    assert_eq!(starts(&bench), "Start c/6");
}

#[test]
fn an_image_of_a_tag_that_moves_is_pulled_each_time() {
    for (image, expected) in [
        ("web", PullPolicy::Always),
        ("web:latest", PullPolicy::Always),
        ("host:5000/web", PullPolicy::Always),
        ("host:5000/web:1", PullPolicy::IfNotPresent),
        ("web:1", PullPolicy::IfNotPresent),
        ("web@sha256:00", PullPolicy::IfNotPresent),
        ("web:latest@sha256:00", PullPolicy::IfNotPresent),
    ] {
        assert_eq!(super::pull_policy(image, None), expected, "{image}");
        assert_eq!(super::pull_policy(image, Some("Never")), PullPolicy::Never, "{image}");
    }
}

fn with_init() -> Value {
    json!({ "restartPolicy": "Never", "terminationGracePeriodSeconds": 30,
        "initContainers": [
            { "name": "i", "image": "img:1" },
            { "name": "s", "image": "img:1", "restartPolicy": "Always" },
        ],
        "containers": [{ "name": "c", "image": "img:1" }] })
}

#[test]
fn an_init_container_says_nothing_of_a_pod_that_has_begun() {
    let mut bench = Bench::new(with_init());
    bench.network().started("i", 0).exited("i", 0, 0).started("s", 0).started("c", 0).step();
    bench.exited("i", 0, 1);
    assert_eq!(bench.step(), " | Running i=Error:1 s=running+ c=running+");
    // In another sandbox they come first again.
    let mut again = with_init();
    again["restartPolicy"] = json!("Always");
    let mut bench = Bench::new(again);
    bench.network().started("i", 0).exited("i", 0, 0).started("s", 0).started("c", 0).step();
    let since = bench.now;
    bench.fact(Fact::Sandbox(Sandbox::Dead { since })).pass(1).exited("s", 0, 137).exited("c", 0, 137);
    let mut facts = bench.view.containers.clone();
    facts.iter_mut().for_each(|fact| fact.sandbox_made_at = Some(since));
    bench.fact(Fact::Containers(facts)).pass(1).network();
    let mut all = bench.view.containers.clone();
    all.retain(|fact| fact.name != "i");
    bench.fact(Fact::Containers(all));
    assert!(bench.step().contains("| Pending "), "{}", bench.step());
    assert!(bench.condition("Initialized").starts_with("False ContainersNotInitialized"));
}

/// Sidecars end last, whatever stands after them, and a plain init container is none.
#[test]
fn init_containers_stop_before_the_sidecars_above_them() {
    let mut spec = with_init();
    spec["initContainers"].as_array_mut().unwrap().reverse();
    let mut bench = Bench::new(spec);
    bench.network().started("s", 0).started("i", 0).deleted(30).fact(Fact::Remembered(true));
    assert!(bench.step().starts_with("Stop i/0 by 00:30 |"), "{}", bench.step());
    let mut bench = Bench::new(with_init());
    bench.network().started("i", 0).started("s", 0).deleted(30).fact(Fact::Remembered(true));
    assert!(bench.step().starts_with("Stop i/0 by 00:30 |"), "{}", bench.step());
    bench.exited("i", 0, 0);
    assert!(bench.step().starts_with("Stop s/0 by 00:30 |"), "{}", bench.step());
}

#[test]
fn what_is_in_use_twice_is_said_once() {
    let mut bench = Bench::new(one_container());
    bench.network().started("c", 0).started("c", 1).started("c", 2).started("c", 3);
    assert_eq!(decide(&bench.view, bench.now).waiting, [Waiting::InUse]);
}

fn with_rule(action: &str) -> Value {
    let rule = json!([{ "action": action, "exitCodes": { "operator": "In", "values": [42] } }]);
    json!({ "restartPolicy": "Never", "terminationGracePeriodSeconds": 30,
        "initContainers": [{ "name": "i", "image": "img:1" }],
        "containers": [
            { "name": "c", "image": "img:1", "restartPolicy": "Never", "restartPolicyRules": rule },
            { "name": "d", "image": "img:1" },
        ],
        "ephemeralContainers": [{ "name": "look", "image": "img:1", "targetContainerName": "c" }] })
}

fn noted(bench: &mut Bench, more: &[Value]) {
    let status = bench.view.pod.status.as_mut().unwrap();
    let conditions = status.conditions.get_or_insert_default();
    for condition in more {
        let condition: k8s_openapi::api::core::v1::PodCondition = serde_json::from_value(condition.clone()).unwrap();
        conditions.retain(|old| old.type_ != condition.type_);
        conditions.push(condition);
    }
}

/// The rule that restarts all containers is about them and no other's, and its condition is nobody's elsewhere.
#[test]
fn only_a_pod_with_such_a_rule_restarts_all_its_containers() {
    let foreign = json!({ "type": "AllContainersRestarting", "status": "True", "reason": "Theirs" });
    let other = json!({ "type": "x.io/other", "status": "True" });
    let types = |bench: &Bench| -> Vec<String> {
        let all = bench.view.pod.status.as_ref().unwrap().conditions.iter().flatten();
        all.map(|one| one.type_.clone()).collect()
    };
    for (action, is_such) in [("Restart", false), ("RestartAllContainers", true)] {
        let mut bench = Bench::new(with_rule(action));
        bench.network().started("i", 0).exited("i", 0, 0).started("c", 0).started("d", 0).step();
        assert_eq!(types(&bench).contains(&"AllContainersRestarting".to_owned()), is_such, "{action}");
        noted(&mut bench, &[foreign.clone(), other.clone()]);
        let step = bench.step();
        assert_eq!(step.contains("Stop d/0"), is_such, "{action}: {step}");
        assert!(types(&bench).contains(&"x.io/other".to_owned()));
        assert!(bench.condition("AllContainersRestarting").starts_with("True"), "{action}");
    }
}

#[test]
fn an_ephemeral_container_is_left_alone_when_all_others_restart() {
    let mut bench = Bench::new(with_rule("RestartAllContainers"));
    bench.network().started("i", 0).exited("i", 0, 0).started("c", 0).started("d", 0).started("look", 0).step();
    assert_eq!(bench.condition("Initialized"), "True");
    bench.pass(1).exited("c", 0, 42);
    assert!(bench.step().starts_with("Stop d/0 by 00:03 |"), "{}", bench.step());
    assert_eq!(decide(&bench.view, bench.now).waiting, [Waiting::InUse], "the others are stopped first");
    bench.exited("d", 0, 137).step();
    assert!(bench.step().starts_with("Remove c/0, Remove d/0, Remove i/0 |"), "{}", bench.step());
}

#[test]
fn a_pod_that_has_ended_restarts_none_of_its_containers() {
    let mut bench = Bench::new(with_rule("RestartAllContainers"));
    bench.network();
    // Before its init containers are done it is not initialized, however often that is looked at.
    for _ in 0..2 {
        bench.step();
        assert!(bench.condition("Initialized").starts_with("False"));
        let unready = "False ContainersNotReady containers with unready status: [c d]";
        assert_eq!(bench.condition("ContainersReady"), unready, "an init container is not asked to be ready");
    }
    bench.started("i", 0).exited("i", 0, 0).started("c", 0).started("d", 0).step();
    noted(&mut bench, &[json!({ "type": "x.io/other", "status": "True" })]);
    bench.fact(Fact::Evicted { message: "why".to_owned() }).exited("c", 0, 42).exited("d", 0, 137).step();
    assert!(bench.condition("AllContainersRestarting").starts_with("False"));
    assert_eq!(bench.condition("x.io/other"), "True", "what others say stays");
}

/// S13: what was noted once is not written again with each look.
#[test]
fn a_deadline_that_is_noted_is_left_as_it_is() {
    let mut bench = Bench::new(one_container());
    bench.network().started("c", 0).fact(Fact::Deadline(40)).step();
    let before = bench.view.pod.status.clone();
    bench.pass(60).step();
    assert_eq!(bench.view.pod.status, before);
}
