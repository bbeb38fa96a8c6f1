//! Evictions against budgets.

use mainstay_api::object;
use serde_json::{Value, json};

use super::*;

fn cluster(budget: Value, ready: bool) -> Cluster {
    let cluster = Cluster::new();
    let status = if ready { "True" } else { "False" };
    for name in ["a", "b"] {
        let pod = json!({
            "metadata": { "name": name, "labels": { "app": "web" } },
            "spec": { "nodeName": "n", "containers": [{ "name": "c", "image": "i" }] },
        });
        cluster.create(&kinds::POD, pod).expect("created");
        let running = json!({ "phase": "Running", "conditions": [{ "type": "Ready", "status": status }] });
        set_status(&cluster, &kinds::POD, name, running);
    }
    let mut spec = budget.get("spec").cloned().unwrap_or_default();
    spec["selector"] = json!({ "matchLabels": { "app": "web" } });
    let object = json!({ "metadata": { "name": "budget" }, "spec": spec });
    cluster.create(&kinds::POD_DISRUPTION_BUDGET, object).expect("created");
    if let Some(status) = budget.get("status") {
        set_status(&cluster, &kinds::POD_DISRUPTION_BUDGET, "budget", status.clone());
    }
    cluster
}

fn set_status(cluster: &Cluster, kind: &Kind, name: &str, status: Value) {
    let change = |old: &Value| {
        let mut new = old.clone();
        new["status"] = status.clone();
        Ok(new)
    };
    cluster.write(|batch| patch(batch, kind, "default", name, Part::Status, &change)).expect("written");
}

fn try_evict(cluster: &Cluster, name: &str) -> Result<Value, Status> {
    cluster.write(|batch| evict(batch, "default", name, &json!({ "metadata": { "name": name } })))
}

fn figures(allowed: i64) -> Value {
    json!({
        "observedGeneration": 1, "disruptionsAllowed": allowed, "currentHealthy": 2, "desiredHealthy": 1,
            "expectedPods": 2,
        "conditions": [{ "type": "DisruptionAllowed", "status": "True", "reason": "SufficientPods" }],
    })
}

#[test]
fn a_budget_lets_go_what_it_allows_and_refuses_the_rest_in_upstreams_words() {
    let cluster = cluster(json!({ "spec": { "minAvailable": 1 }, "status": figures(1) }), true);
    assert_eq!(try_evict(&cluster, "a").expect("allowed")["status"], "Success");
    let pod = cluster.get(&kinds::POD, "a").expect("on its way");
    assert!(object::is_terminating(&pod));
    let condition = pod["status"]["conditions"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(
        (&condition["type"], &condition["reason"]),
        (&json!("DisruptionTarget"), &json!("EvictionByEvictionAPI"))
    );
    let status = cluster.get(&kinds::POD_DISRUPTION_BUDGET, "budget").expect("there")["status"].clone();
    assert_eq!((&status["disruptionsAllowed"], &status["conditions"][0]["status"]), (&json!(0), &json!("False")));
    assert!(status["disruptedPods"]["a"].is_string());
    let refused = try_evict(&cluster, "b").expect_err("refused");
    assert_eq!((refused.code, &*refused.reason), (429, "TooManyRequests"));
    assert_eq!(refused.message, "Cannot evict pod as it would violate the pod's disruption budget.");
    let cause = &refused.details["causes"][0];
    assert_eq!(cause["reason"], "DisruptionBudget");
    assert_eq!(cause["message"], "The disruption budget budget needs 1 healthy pods and has 2 currently");
    assert!(!object::is_terminating(&cluster.get(&kinds::POD, "b").expect("there")), "A9");
    assert_eq!(try_evict(&cluster, "a").expect("already on its way")["status"], "Success");
}

#[test]
fn a_budget_that_is_not_looked_at_yet_asks_to_come_again() {
    let cluster = cluster(json!({ "spec": { "minAvailable": 1 } }), true);
    let refused = try_evict(&cluster, "a").expect_err("refused");
    assert_eq!((refused.code, &refused.details["retryAfterSeconds"]), (429, &json!(10)));
    let words = "The disruption budget budget is still being processed by the server.";
    assert_eq!(refused.details["causes"][0]["message"], words);
}

#[test]
fn a_pod_that_is_not_ready_goes_as_the_policy_says() {
    for (policy, healthy, code) in [
        (json!(null), 1, 201),
        (json!(null), 0, 429),
        (json!("IfHealthyBudget"), 0, 429),
        (json!("AlwaysAllow"), 0, 201),
    ] {
        let mut status = figures(0);
        status["currentHealthy"] = json!(healthy);
        let spec = json!({ "minAvailable": 1, "unhealthyPodEvictionPolicy": policy });
        let cluster = cluster(json!({ "spec": spec, "status": status }), false);
        let answer = try_evict(&cluster, "a").map_or_else(|refused| refused.code, |_| 201);
        assert_eq!(answer, code, "{policy} {healthy}");
    }
}

#[test]
fn two_budgets_are_one_too_many_and_a_pod_that_has_ended_needs_none() {
    let cluster = cluster(json!({ "spec": { "minAvailable": 1 }, "status": figures(0) }), true);
    let second = json!({ "metadata": { "name": "second" }, "spec": { "minAvailable": 1, "selector": {} } });
    cluster.create(&kinds::POD_DISRUPTION_BUDGET, second).expect("created");
    let refused = try_evict(&cluster, "a").expect_err("refused");
    assert!(refused.message.contains("more than one PodDisruptionBudget"), "{}", refused.message);
    set_status(&cluster, &kinds::POD, "a", json!({ "phase": "Succeeded" }));
    assert_eq!(try_evict(&cluster, "a").expect("free")["status"], "Success");
}
