//! Which containers run again, which wait for others, and what is told of them meanwhile.

use super::*;

fn two(policy: &str) -> Value {
    json!({ "restartPolicy": policy, "terminationGracePeriodSeconds": 30,
        "containers": [{ "name": "c", "image": "img:1" }, { "name": "d", "image": "img:1" }] })
}

fn decided(bench: &Bench) -> Vec<String> {
    decide(&bench.view, bench.now).actions.iter().map(show_action).collect()
}

fn renamed(bench: &mut Bench, image: &str) {
    let mut pod = bench.view.pod.clone();
    let spec = pod.spec.as_mut().unwrap();
    spec.containers[0].image = Some(image.to_owned());
    bench.fact(Fact::Pod(Box::new(pod)));
}

fn image_of(bench: &mut Bench, image: &str, result: Result<(String, String), (&'static str, String)>) {
    bench.fact(Fact::Image { container: "c".to_owned(), image: image.to_owned(), result });
}

/// S12: `mainstay down` and a reboot take what the runtime knew; what the API has counts then.
#[test]
fn s12_what_has_ended_is_not_run_again_when_only_the_api_knows_of_it() {
    for (policy, code, expected) in [
        ("Never", 0, "Unmount | Failed c=Completed:0 d=ContainerStatusUnknown:137"),
        ("OnFailure", 0, "Image d IfNotPresent | Running c=Completed:0 d=ContainerCreating<137x1"),
        (
            "OnFailure",
            1,
            "Image c IfNotPresent, Image d IfNotPresent | Pending c=ContainerCreating<1x1 \
            d=ContainerCreating<137x1",
        ),
        (
            "Always",
            0,
            "Image c IfNotPresent, Image d IfNotPresent | Pending c=ContainerCreating<0x1 \
            d=ContainerCreating<137x1",
        ),
    ] {
        let mut bench = Bench::new(two(policy));
        bench.network().image("c").image("d").started("c", 0).started("d", 0).pass(5).exited("c", 0, code).step();
        bench.view = PodView::new(bench.view.pod.clone(), vec![]);
        if policy != "Never" {
            bench.network();
        }
        let step = bench.step();
        assert_eq!(step.split(" | ").next(), expected.split(" | ").next(), "{policy} {code}: {step}");
        for container in expected.split(" | ").nth(1).unwrap().split(' ').skip(1) {
            assert!(step.contains(container), "{policy} {code}: {step}, {container}");
        }
        if policy == "Never" {
            assert_eq!(step, expected);
        }
    }
    // An init container that was killed with its pod has failed; one that ended well is run again for a new sandbox.
    for (code, expected) in [(None, "Unmount | Failed"), (Some(3), "Unmount | Failed"), (Some(0), "Sandbox | Pending")]
    {
        let mut spec = two("Never");
        spec["initContainers"] = json!([{ "name": "i", "image": "img:1" }]);
        let mut bench = Bench::new(spec);
        bench.network().image("i").started("i", 0).pass(1);
        if let Some(code) = code {
            bench.exited("i", 0, code);
        }
        bench.step();
        bench.view = PodView::new(bench.view.pod.clone(), vec![]);
        let step = bench.step();
        assert!(step.starts_with(expected), "{code:?}: {step}");
    }
}

#[test]
fn a_running_container_whose_image_is_another_one_is_replaced_whatever_its_policy() {
    for policy in ["Always", "Never"] {
        let mut bench = Bench::new(two(policy));
        bench.network().image("c").image("d").started("c", 0).started("d", 0).step();
        renamed(&mut bench, "img:2");
        assert_eq!(decided(&bench), ["Stop c/0 by 00:30"], "{policy}");
        assert_eq!(
            bench.view.memory["c"].condemned.as_ref().unwrap().why,
            "Container c definition changed, will be restarted"
        );
        bench.step();
        let shown = |bench: &Bench| {
            let status = bench.view.pod.status.as_ref().unwrap();
            status.container_statuses.as_ref().unwrap()[0].image.clone()
        };
        assert_eq!(shown(&bench), "img:1", "what runs is told, not what is wanted");
        bench.exited("c", 0, 0);
        assert_eq!(decided(&bench), ["Image c IfNotPresent"], "{policy}");
        bench.step();
        image_of(&mut bench, "img:2", Ok(("sha256:2".to_owned(), String::new())));
        assert_eq!(decided(&bench), ["Start c/1"], "{policy}");
    }
    // One that has ended for good stays so, and where the image was not noted nothing is compared (S11).
    let mut bench = Bench::new(two("Never"));
    bench.network().image("c").started("c", 0).started("d", 0).exited("c", 0, 0);
    renamed(&mut bench, "img:2");
    assert_eq!(decided(&bench), [""; 0]);
    let mut bench = Bench::new(two("Always"));
    bench.network().started("d", 0);
    let fact = ContainerFact {
        name: "c".into(),
        attempt: 0,
        image: String::new(),
        image_id: "i".into(),
        sandbox_made_at: None,
        user: None,
        life: Life::Running { since: bench.now },
    };
    let all = [bench.view.containers.clone(), vec![fact]].concat();
    bench.fact(Fact::Containers(all));
    renamed(&mut bench, "img:2");
    assert_eq!(decided(&bench), [""; 0]);
}

#[test]
fn another_image_does_not_wait_for_what_came_of_the_one_before() {
    let mut bench = Bench::new(two("Always"));
    bench.network().started("d", 0);
    image_of(&mut bench, "img:1", Err(("ErrImagePull", "no".to_owned())));
    assert_eq!(decided(&bench), [""; 0], "it backs off");
    renamed(&mut bench, "img:2");
    assert_eq!(decided(&bench), ["Image c IfNotPresent"]);
    image_of(&mut bench, "img:2", Err(("ErrImagePull", "no".to_owned())));
    assert_eq!(bench.view.memory["c"].pull.unwrap().delay, SignedDuration::from_secs(10), "its first failure");
    // What arrives late is about the image that is not wanted any more.
    image_of(&mut bench, "img:1", Ok(("sha256:1".to_owned(), String::new())));
    assert_eq!(decided(&bench), ["Image c IfNotPresent"]);
    // Nor for crashes.
    let mut bench = Bench::new(two("Always"));
    bench.network().started("d", 0).started("c", 0).exited("c", 0, 1).started("c", 1).pass(1).exited("c", 1, 1);
    assert_eq!(decided(&bench), [""; 0], "it backs off");
    renamed(&mut bench, "img:2");
    assert_eq!(decided(&bench), ["Image c IfNotPresent"]);
}

#[test]
fn a_start_that_failed_asks_for_the_image_again() {
    let mut bench = Bench::new(two("Always"));
    bench.network().started("d", 0).image("c");
    let message = "image sha256:1 is gone".to_owned();
    bench.fact(Fact::StartFailed { container: "c".into(), reason: "CreateContainerConfigError", message });
    assert!(bench.step().contains("c=CreateContainerConfigError"));
    bench.pass(10);
    assert_eq!(decided(&bench), ["Image c IfNotPresent"]);
    assert_eq!(decided(bench.image("c")), ["Start c/0"]);
}

#[test]
fn a_container_that_cannot_be_started_counts_as_restarted() {
    let never = |bench: &mut Bench, attempt| {
        let (code, finished) = (128, bench.now);
        bench.life(
            "c",
            attempt,
            Life::Exited {
                code,
                signal: None,
                oom: false,
                fenced: false,
                started: Timestamp::UNIX_EPOCH,
                finished,
                message: None,
            },
        );
        bench.fact(Fact::NeverBegan { container: "c".into(), attempt, message: "no such file".into() });
    };
    let mut bench = Bench::new(two("OnFailure"));
    bench.network().started("d", 0).image("c");
    never(&mut bench, 0);
    let step = bench.step();
    assert!(step.starts_with("Image c IfNotPresent | Running c=RunContainerError<128"), "{step}");
    bench.image("c");
    assert_eq!(decided(&bench), ["Start c/1"]);
    never(&mut bench, 1);
    let step = bench.step();
    assert!(step.starts_with(" | Running c=CrashLoopBackOff<128x1"), "{step}");
    bench.pass(10);
    assert_eq!(decided(&bench), ["Image c IfNotPresent"]);
    // Of these attempts the runtime knows nothing: a restarted agent goes on where the API is.
    let pod = bench.view.pod.clone();
    bench.view = PodView::new(pod, vec![]);
    bench.network().started("d", 0).image("c");
    assert_eq!(decided(&bench), ["Start c/2"]);
}

#[test]
fn a_post_start_hook_holds_the_containers_after_it() {
    let mut spec = two("Always");
    spec["containers"][0]["lifecycle"] = json!({ "postStart": { "exec": {} } });
    let mut bench = Bench::new(spec.clone());
    bench.network();
    assert_eq!(decided(&bench), ["Image c IfNotPresent"]);
    bench.image("c");
    assert_eq!(decided(&bench), ["Start c/0"]);
    bench.started("c", 0);
    assert_eq!(decided(&bench), ["PostStart c/0"]);
    bench.fact(Fact::PostStart { container: "c".into(), attempt: 0, result: Ok(()) });
    assert_eq!(decided(&bench), ["Image d IfNotPresent"]);
    // Who began already does not wait when the first one begins anew.
    bench.image("d").started("d", 0).exited("c", 0, 1).image("c").started("c", 1).exited("d", 0, 1);
    assert_eq!(decided(&bench), ["PostStart c/1", "Image d IfNotPresent"]);
    // Nor does anybody wait for one that cannot begin.
    let mut bench = Bench::new(spec);
    bench.network();
    image_of(&mut bench, "img:1", Err(("ErrImagePull", "no".to_owned())));
    assert_eq!(decided(&bench), ["Image d IfNotPresent"]);
}

/// N4: a pod whose proxy is not ready gets no connections.
#[test]
fn n4_a_pod_is_ready_when_its_sidecars_are() {
    let mut spec = two("Always");
    spec["initContainers"] = json!([
        { "name": "i", "image": "img:1" },
        { "name": "s", "image": "img:1", "restartPolicy": "Always", "readinessProbe": { "exec": {} } },
    ]);
    let mut bench = Bench::new(spec);
    bench.network().started("i", 0).exited("i", 0, 0).started("s", 0).started("c", 0).started("d", 0).step();
    assert_eq!(bench.condition("Ready"), "False ContainersNotReady containers with unready status: [s]");
    bench.exited("d", 0, 1).step();
    assert_eq!(bench.condition("ContainersReady"), "False ContainersNotReady containers with unready status: [s d]");
    bench.started("d", 1).probe("s", 0, ProbeKind::Readiness, true).step();
    assert_eq!(bench.condition("Ready"), "True");
}

/// N4: what drains says so by its readiness; liveness is not asked for any more.
#[test]
fn n4_readiness_is_asked_for_until_the_container_has_ended() {
    let mut spec = two("Always");
    for kind in ["readinessProbe", "livenessProbe"] {
        spec["containers"][0][kind] = json!({ "exec": {}, "periodSeconds": 5, "failureThreshold": 1 });
    }
    let mut bench = Bench::new(spec);
    bench.network().started("c", 0).started("d", 0).probe("c", 0, ProbeKind::Readiness, true).step();
    bench.deleted(30).fact(Fact::Remembered(true)).pass(10);
    let actions = decided(&bench);
    assert!(actions.contains(&"Readiness c/0".to_owned()) && !actions.contains(&"Liveness c/0".to_owned()));
    bench.probe("c", 0, ProbeKind::Readiness, false);
    let step = bench.step();
    assert!(step.contains("c=running d=running+"), "{step}");
    bench.exited("c", 0, 0).pass(10);
    assert!(!decided(&bench).contains(&"Readiness c/0".to_owned()));
}

#[test]
fn a_phase_that_somebody_else_wrote_leaves_containers_their_grace() {
    let mut spec = two("Always");
    spec["initContainers"] = json!([{ "name": "i", "image": "img:1" }]);
    let mut bench = Bench::new(spec);
    bench.network().started("i", 0).exited("i", 0, 0).started("c", 0).started("d", 0).step();
    bench.pass(3600);
    let mut pod = bench.view.pod.clone();
    pod.status.as_mut().unwrap().phase = Some("Failed".to_owned());
    bench.fact(Fact::Pod(Box::new(pod))).pass(5);
    assert_eq!(decided(&bench), ["Stop c/0 by 00:30", "Stop d/0 by 00:30"]);
}

/// X4: what is looked up of a container does not look through all of them.
#[test]
fn x4_containers_are_found_by_name_and_attempt() {
    let mut bench = Bench::new(two("Always"));
    for (name, attempt) in [("d", 1), ("c", 0), ("d", 0), ("e", 3), ("c", 10), ("c", 9)] {
        bench.life(name, attempt, Life::Created);
    }
    let latest = |name| bench.view.latest(name).map(|fact| (fact.name.as_str(), fact.attempt));
    for (name, expected) in
        [("c", Some(("c", 10))), ("d", Some(("d", 1))), ("e", Some(("e", 3))), ("a", None), ("cc", None), ("f", None)]
    {
        assert_eq!(latest(name), expected, "{name}");
    }
}
