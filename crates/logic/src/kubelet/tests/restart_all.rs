//! All containers of a pod are taken back to their beginning.

use super::*;

/// An init container `i`, a sidecar `s`, `c` with the rule and `d` that ended well, all of a pod that never restarts.
fn bench() -> Bench {
    let rule = json!([{ "action": "RestartAllContainers", "exitCodes": { "operator": "In", "values": [42] } }]);
    Bench::new(json!({
        "restartPolicy": "Never",
        "initContainers": [
            { "name": "i", "image": "img:1" },
            { "name": "s", "image": "img:1", "restartPolicy": "Always" },
        ],
        "containers": [
            { "name": "c", "image": "img:1", "restartPolicy": "Never", "restartPolicyRules": rule,
                "lifecycle": { "preStop": { "sleep": { "seconds": 5 } } } },
            { "name": "d", "image": "img:1" },
            { "name": "e", "image": "img:1", "lifecycle": { "preStop": { "sleep": { "seconds": 5 } } } },
        ],
        "terminationGracePeriodSeconds": 30,
    }))
}

/// Everything runs, but `i` and `d`, which ended well; then `c` ends with this code.
fn begun(code: i32) -> Bench {
    let mut bench = bench();
    bench.network().image("i").started("i", 0).exited("i", 0, 0).image("s").started("s", 0);
    for name in ["c", "d", "e"] {
        bench.image(name).started(name, 0);
    }
    bench.exited("d", 0, 0).step();
    assert_eq!(bench.condition("AllContainersRestarting"), "False");
    bench.pass(1).exited("c", 0, code);
    bench
}

fn forgotten(bench: &mut Bench) -> &mut Bench {
    bench.fact(Fact::Containers(Vec::new()))
}

#[test]
fn conformance_all_containers_restart_from_the_first_one_on() {
    let mut bench = begun(42);
    let step = bench.step();
    assert!(step.starts_with("Stop e/0 by 00:03, Stop s/0 by 00:03 | Running"), "no preStop, and no grace: {step}");
    let condition = "True RestartAllContainersStarted container exited with restart policy rule";
    assert_eq!(bench.condition("AllContainersRestarting"), condition);
    assert!(bench.condition("Ready").starts_with("False"));
    bench.exited("e", 0, 137).exited("s", 0, 137);
    // First the API has how they ended.
    assert!(bench.step().starts_with(" | Running i=Completed:0+ s=Error:137 c=Error:42 d=Completed:0 e=Error:137"));
    assert!(bench.step().starts_with("Remove c/0, Remove d/0, Remove e/0, Remove i/0, Remove s/0 | "));
    let step = forgotten(&mut bench).step();
    let waiting = "i=PodInitializing<0x1 s=PodInitializing<137x1 c=PodInitializing<42x1 d=PodInitializing<0x1 \
                   e=PodInitializing<137x1";
    assert_eq!(step, format!(" | Pending {waiting}"));
    assert_eq!(bench.condition("AllContainersRestarting"), "False");
    assert_eq!(bench.condition("Initialized"), "True");
    // Then as any pod begins, in the sandbox that there is.
    bench.image("i").image("s").image("c").image("d").image("e");
    assert!(bench.step().starts_with("Start i/1 | Pending"));
    assert!(bench.started("i", 1).step().starts_with(" | Pending i=running<0x1"));
    assert!(bench.exited("i", 1, 0).step().starts_with("Start s/1 |"));
    assert!(bench.started("s", 1).step().starts_with("Start c/1, Start d/1, Start e/1 |"));
    bench.started("c", 1).started("d", 1).started("e", 1).step();
    // The second time each waits from its own end on.
    bench.pass(1).exited("c", 1, 42).exited("d", 1, 0).exited("e", 1, 137).exited("s", 1, 137);
    let step = bench.step();
    assert!(step.contains("c=Error:42<42x1"), "it is not to restart by itself: {step}");
    bench.step();
    let step = forgotten(&mut bench).step();
    assert!(step.starts_with(" | Pending i="), "{step}");
    let step = bench.image("i").step();
    assert!(step.starts_with(" | Pending i=CrashLoopBackOff<0x2"), "{step}");
    assert!(bench.pass(10).step().starts_with("Start i/2 |"));
}

#[test]
fn conformance_a_rule_about_all_containers_is_about_its_codes_alone_and_the_first_rule_counts() {
    // What no rule is about goes by the container's policy.
    let mut bench = begun(41);
    assert!(bench.step().starts_with(" | Running"));
    assert_eq!(bench.condition("AllContainersRestarting"), "False");
    // Alone in its pod it would have ended the pod.
    let rules = |first: &str, second: &str| {
        let rule = |action: &str| json!({ "action": action, "exitCodes": { "operator": "NotIn", "values": [0] } });
        json!({ "restartPolicy": "Never", "containers": [{ "name": "c", "image": "img:1", "restartPolicy": "Never",
            "restartPolicyRules": [rule(first), rule(second)] }] })
    };
    let after = |spec: Value, code: i32| {
        let mut bench = Bench::new(spec);
        bench.network().image("c").started("c", 0).pass(1).exited("c", 0, code).step();
        (bench.step(), bench.condition("AllContainersRestarting"))
    };
    let (step, condition) = after(rules("RestartAllContainers", "Restart"), 7);
    assert!(step.starts_with("Remove c/0 | Running") && condition.starts_with("True"), "{step} {condition}");
    let (step, condition) = after(rules("Restart", "RestartAllContainers"), 7);
    assert!(step.starts_with("Image c") && condition == "False", "{step} {condition}");
    let (step, condition) = after(rules("RestartAllContainers", "Restart"), 0);
    assert!(step.contains("| Succeeded") && condition == "False PodCompleted", "{step} {condition}");
}

#[test]
fn s12_an_agent_that_is_restarted_goes_on_with_restarting_all_containers() {
    let mut all = begun(42);
    let mut steps = Vec::new();
    // The same steps, each followed by another agent, which knows what API and runtime know.
    let restarted = |bench: &mut Bench| {
        let (pod, containers, sandbox) =
            (bench.view.pod.clone(), bench.view.containers.clone(), bench.view.sandbox.clone());
        bench.view = PodView::new(pod, vec!["192.0.2.1".to_owned()]);
        bench.fact(Fact::Sandbox(sandbox)).fact(Fact::Containers(containers));
    };
    for _ in 0..3 {
        steps.push(all.step());
        restarted(&mut all);
    }
    assert!(steps.iter().all(|step| step.starts_with("Stop e/0 by 00:03, Stop s/0")), "{steps:?}");
    all.exited("e", 0, 137).exited("s", 0, 137);
    all.step();
    restarted(&mut all);
    // Half of them are forgotten, among them the one that began it.
    let left: Vec<_> = all.view.containers.iter().filter(|fact| fact.name.as_str() > "d").cloned().collect();
    all.fact(Fact::Containers(left));
    restarted(&mut all);
    assert!(all.step().starts_with("Remove e/0, Remove i/0, Remove s/0 |"));
    assert!(all.condition("AllContainersRestarting").starts_with("True"));
    restarted(&mut all);
    assert!(forgotten(&mut all).step().starts_with(" | Pending i="));
    restarted(&mut all);
    let step = all.step();
    assert!(step.starts_with("Image i IfNotPresent | Pending i=PodInitializing<0x1"), "{step}");
    assert!(step.ends_with("c=PodInitializing<42x1 d=PodInitializing<0x1 e=PodInitializing<137x1"), "{step}");
    // A pod that is deleted meanwhile ends as any.
    let mut bench = begun(42);
    bench.step();
    let step = bench.deleted(30).step();
    assert!(step.starts_with("Remember |"), "{step}");
}
