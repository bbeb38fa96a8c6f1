//! Resources that change while their container runs.

use super::*;

/// A running container with these resources, after its pod was given others.
fn resized(policy: Value, from: Value, to: Value) -> Bench {
    let mut spec = one_container();
    spec["containers"][0]["resources"] = from.clone();
    spec["containers"][0]["resizePolicy"] = policy;
    let mut bench = Bench::new(spec);
    bench.view.capacity = [("cpu".to_owned(), 2000), ("memory".to_owned(), 1 << 30)].into();
    bench.network().image("c").started("c", 0).given(0, from).step();
    let mut pod = bench.view.pod.clone();
    pod.spec.as_mut().unwrap().containers[0].resources = Some(serde_json::from_value(to).unwrap());
    bench.fact(Fact::Pod(Box::new(pod)));
    bench
}

impl Bench {
    /// The container runs with these resources.
    fn given(&mut self, attempt: u32, resources: Value) -> &mut Self {
        let resources = serde_json::from_value(resources).unwrap();
        self.fact(Fact::Resources { container: "c".to_owned(), attempt, resources })
    }

    fn shown(&self) -> Value {
        let status = self.view.pod.status.as_ref().unwrap().container_statuses.as_ref().unwrap();
        let status = serde_json::to_value(&status[0]).unwrap();
        json!([status["resources"]["requests"]["cpu"], status["allocatedResources"]["cpu"]])
    }

    fn resizing(&self) -> Vec<String> {
        let all = self.view.pod.status.as_ref().unwrap().conditions.iter().flatten();
        let all = all.filter(|condition| condition.type_.starts_with("PodResize"));
        all.map(|one| format!("{} {} {}", one.type_, one.status, one.reason.clone().unwrap_or_default())).collect()
    }
}

#[test]
fn conformance_pods_are_resized_in_place() {
    let (one, two) = (json!({ "requests": { "cpu": "1" } }), json!({ "requests": { "cpu": "1500m" } }));
    let mut bench =
        resized(json!([{ "resourceName": "memory", "restartPolicy": "RestartContainer" }]), one, two.clone());
    assert_eq!(bench.step(), "Resize c/0 | Running c=running+");
    assert_eq!(
        (bench.shown(), bench.resizing()),
        (json!(["1", "1500m"]), vec!["PodResizeInProgress True ".to_owned()])
    );
    bench.given(0, two);
    assert_eq!(bench.step(), " | Running c=running+");
    assert_eq!((bench.shown(), bench.resizing()), (json!(["1500m", "1500m"]), Vec::new()));
    // A restarted agent finds in the API what was done.
    let mut again = Bench::new(json!({}));
    again.view.pod = bench.view.pod.clone();
    again.network().life("c", 0, Life::Running { since: bench.now });
    assert!(!again.step().contains("Resize"), "done before");
}

#[test]
fn conformance_a_resize_that_needs_a_restart_restarts_its_container_alone() {
    let (one, two) = (json!({ "requests": { "cpu": "1" } }), json!({ "requests": { "cpu": "1500m" } }));
    let mut bench = resized(json!([{ "resourceName": "cpu", "restartPolicy": "RestartContainer" }]), one, two.clone());
    assert_eq!(bench.step(), "Stop c/0 by 00:30 | Running c=running+");
    bench.exited("c", 0, 143);
    assert!(bench.step().starts_with("Image c") || bench.step().starts_with("Start c/1"), "it starts again");
    bench.image("c").started("c", 1).given(1, two).step();
    assert_eq!((bench.shown(), bench.resizing()), (json!(["1500m", "1500m"]), Vec::new()));
}

#[test]
fn conformance_a_resize_that_no_node_holds_is_infeasible() {
    let (one, two) = (json!({ "requests": { "cpu": "1" } }), json!({ "requests": { "cpu": "5" } }));
    let mut bench = resized(json!([]), one, two);
    assert_eq!(bench.step(), " | Running c=running+");
    assert_eq!(
        (bench.shown(), bench.resizing()),
        (json!(["1", "1"]), vec!["PodResizePending True Infeasible".to_owned()])
    );
    let wanted = "True Infeasible Node didn't have enough capacity: cpu, requested: 5000, capacity: 2000";
    assert_eq!(bench.condition("PodResizePending"), wanted);
}

/// A container that runs is resized by what changed, in the way that its policies say for that.
#[test]
fn a_resize_restarts_a_container_only_for_what_its_policy_names() {
    let policy = |cpu: &str, memory: &str| {
        let (cpu, memory) = (("cpu", cpu), ("memory", memory));
        json!([cpu, memory].map(|(name, policy)| json!({ "resourceName": name, "restartPolicy": policy })))
    };
    let requests = |cpu: &str, memory: &str| json!({ "requests": { "cpu": cpu, "memory": memory } });
    let (kept, anew) = ("NotRequired", "RestartContainer");
    let base = || requests("1", "64Mi");
    for (policy, to, expected) in [
        (policy(kept, anew), requests("2", "64Mi"), "Resize c/0"),
        (policy(kept, anew), requests("1", "128Mi"), "Stop c/0 by 00:30"),
        (policy(anew, anew), requests("2", "64Mi"), "Stop c/0 by 00:30"),
        (policy(anew, kept), requests("1", "128Mi"), "Resize c/0"),
        (json!(null), requests("2", "64Mi"), "Resize c/0"),
        (json!(null), requests("2001m", "64Mi"), ""),
        (policy(anew, anew), requests("2001m", "64Mi"), ""),
        (json!(null), base(), ""),
        (json!(null), json!({ "requests": { "cpu": "1", "memory": "64Mi" }, "limits": { "cpu": "2" } }), "Resize c/0"),
        (json!(null), json!({ "requests": { "cpu": "1000m", "memory": "65536Ki" } }), ""),
    ] {
        let mut bench = resized(policy.clone(), base(), to.clone());
        assert_eq!(bench.step().split(" |").next(), Some(expected), "{policy} {to}");
    }
    // Not one that has ended: what starts next has what it asks for.
    let mut bench = resized(json!(null), base(), requests("2", "64Mi"));
    bench.exited("c", 0, 0);
    assert!(!bench.step().contains("Resize"));
    assert_eq!(bench.shown(), json!(["2", "2"]));
    // The agent restarts before it was done, and knows from the API what the container has; of another one it does not.
    let again = |attempt: u32| {
        let mut bench = resized(json!(null), base(), base());
        bench.step();
        let mut again = Bench::new(json!({}));
        again.view.capacity = bench.view.capacity.clone();
        again.view.pod = bench.view.pod.clone();
        let to = serde_json::from_value(requests("2", "64Mi")).unwrap();
        again.view.pod.spec.as_mut().unwrap().containers[0].resources = Some(to);
        again.network().life("c", attempt, Life::Running { since: bench.now });
        again.step()
    };
    assert!(again(0).starts_with("Resize c/0 |"), "{}", again(0));
    assert!(again(1).starts_with(" |"), "{}", again(1));
}
