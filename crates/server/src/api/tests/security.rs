//! Pod security by namespace label, warnings, and kinds that are stored in another version's form.

use mainstay_api::kinds;
use serde_json::{Value, json};

use super::*;

fn label(cluster: &Cluster, labels: Value) -> Result<Vec<String>, Status> {
    let reply = cluster.api.write_now(false, |batch| {
        patch(batch, &kinds::NAMESPACE, "", "default", Part::Main, &|old| {
            let mut new = old.clone();
            merge_patch(&mut new, json!({ "metadata": { "labels": labels } }));
            Ok(new)
        })
    })?;
    Ok(reply.warnings)
}

fn warnings(cluster: &Cluster, kind: &Kind, object: Value) -> Result<Vec<String>, Status> {
    Ok(cluster.api.write_now(false, |batch| create(batch, kind, "default", object.clone()))?.warnings)
}

#[test]
fn a_namespaces_labels_say_which_pods_it_takes() {
    let cluster = Cluster::new();
    cluster.create(&kinds::SERVICE_ACCOUNT, json!({ "metadata": { "name": "default" } })).ok();
    let hosted = |name: &str| {
        json!({ "metadata": { "name": name }, "spec": { "hostNetwork": true,
        "containers": [{ "name": "c", "image": "i" }] } })
    };
    cluster.create(&kinds::POD, hosted("old")).expect("everything is allowed");
    let told = label(
        &cluster,
        json!({ "pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/warn": "restricted" }),
    );
    assert_eq!(
        told.expect("labelled"),
        [
            r#"existing pods in namespace "default" violate the new PodSecurity enforce level "baseline:latest""#,
            "old: host namespaces",
        ]
    );
    let refused = cluster.create(&kinds::POD, hosted("new")).expect_err("forbidden");
    assert_eq!(
        (refused.code, refused.message.as_str()),
        (403, r#"pods "new" is forbidden: violates PodSecurity "baseline:latest": host namespaces (hostNetwork=true)"#)
    );
    let warned = warnings(&cluster, &kinds::POD, pod("plain")).expect("baseline");
    assert!(
        warned[0].starts_with(r#"would violate PodSecurity "restricted:latest": allowPrivilegeEscalation != false"#),
        "{warned:?}"
    );
    let deployment = json!({ "metadata": { "name": "d" }, "spec": { "selector": { "matchLabels": { "a": "b" } },
        "template": { "metadata": { "labels": { "a": "b" } }, "spec": { "hostPID": true,
            "containers": [{ "name": "c", "image": "i" }] } } } });
    let warned = warnings(&cluster, &kinds::DEPLOYMENT, deployment).expect("a template is only warned of");
    assert!(warned[0].contains("host namespaces (hostPID=true)"), "{warned:?}");
    let wrong = label(&cluster, json!({ "pod-security.kubernetes.io/enforce": "tight" })).expect_err("no such level");
    assert!(wrong.message.contains("must be one of privileged, baseline, restricted"), "{}", wrong.message);
    // A pod that is there is not looked at again for a label.
    cluster
        .merge(&kinds::POD, "old", Part::Main, json!({ "metadata": { "labels": { "x": "y" } } }))
        .expect("unchanged pod");
}

#[test]
fn versions_of_a_kind_are_one_object() {
    let cluster = Cluster::new();
    let (newer, older) = (&kinds::HORIZONTAL_POD_AUTOSCALER, &kinds::HORIZONTAL_POD_AUTOSCALER_V1);
    let object = json!({ "metadata": { "name": "h" }, "spec": { "scaleTargetRef": { "kind": "Deployment",
        "name": "d" }, "maxReplicas": 3, "targetCPUUtilizationPercentage": 50 } });
    cluster.create(older, object).expect("created");
    let seen = cluster.get(newer, "h").expect("the same object");
    assert_eq!(seen["apiVersion"], "autoscaling/v2");
    assert_eq!(seen["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 50);
    cluster.merge(newer, "h", Part::Main, json!({ "spec": { "maxReplicas": 7 } })).expect("changed");
    let seen = cluster.get(older, "h").expect("there");
    assert_eq!(
        (&seen["apiVersion"], &seen["spec"]["maxReplicas"], &seen["spec"]["targetCPUUtilizationPercentage"]),
        (&json!("autoscaling/v1"), &json!(7), &json!(50))
    );
    cluster.delete(older, "h", &DeleteOptions::default()).expect("deleted");
    assert!(cluster.get(newer, "h").is_none());
    let event = json!({ "metadata": { "name": "e" }, "eventTime": "2026-01-02T03:04:05.000000Z",
        "regarding": { "kind": "Pod", "name": "p", "namespace": "default" },
        "reason": "R", "action": "A", "type": "Normal", "reportingController": "example.com/c",
            "reportingInstance": "i", "note": "n" });
    cluster.create(&kinds::EVENT_REGARDING, event).expect("created");
    assert_eq!(cluster.get(&kinds::EVENT, "e").expect("the same object")["message"], "n");
}

#[test]
fn whoever_writes_what_nothing_acts_on_is_told() {
    let cluster = Cluster::new();
    let policy = json!({ "metadata": { "name": "p" }, "spec": { "podSelector": {} } });
    let told = warnings(&cluster, &kinds::NETWORK_POLICY, policy).expect("stored");
    assert_eq!(told, ["networking.k8s.io/v1 NetworkPolicy is stored, but nothing in this cluster acts on it"]);
    let policy = json!({ "metadata": { "name": "q" }, "spec": { "podSelector": {} } });
    let unheard = cluster.api.write_now(false, |batch| {
        batch.is_heard = false;
        create(batch, &kinds::NETWORK_POLICY, "default", policy.clone())
    });
    assert_eq!(unheard.expect("stored").warnings, Vec::<String>::new(), "not worked out for controllers of ours");
}
