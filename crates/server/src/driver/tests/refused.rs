//! What a refused write leaves out, and what is told of it.

use std::collections::BTreeMap;

use jiff::SignedDuration;
use mainstay_api::Status;
use mainstay_logic::controllers::{
    cronjob, customresourcedefinition, deployment, horizontalpodautoscaler, namespace, podgc, replicaset,
};

use super::*;
use crate::api::{DeleteOptions, Part};
use crate::dynamic::Session;

/// As [`run`], asking what is configured.
fn run_asking(cluster: &Cluster, controllers: &'static [Controller]) -> Driver {
    let mut driver = Driver::new(controllers);
    let now = cluster.api.now();
    let mut watcher = driver.load(&cluster.api.store, now).expect("loaded");
    for _ in 0..1000 {
        feed(&mut driver, &mut watcher, now);
        let Some(work) = driver.poll(now) else { return driver };
        let user = crate::auth::User::controller(work.controller);
        let session = cluster.api.hooks.now().map(|set| Arc::new(Session::of_controller(set, &user)));
        let compiled = compile_asking(&cluster.api, &work, session.as_ref());
        let committed = cluster.api.store.commit_blocking(compiled.txn.clone());
        let done = Done::of(work, &compiled, committed);
        driver.finished(done.work, &done.finish, now);
    }
    panic!("the controllers never come to rest");
}

/// A policy that refuses an operation on objects with the label `keep`.
fn protect(cluster: &Cluster, operation: &str) {
    let rule = json!({ "apiGroups": ["*"], "apiVersions": ["*"], "operations": [operation], "resources": ["*"] });
    let expression = "!has(oldObject.metadata.labels) || !('keep' in oldObject.metadata.labels)";
    let spec = json!({ "failurePolicy": "Fail", "matchConstraints": { "resourceRules": [rule] },
        "validations": [{ "expression": expression, "message": "this one is kept" }] });
    let policy = json!({ "metadata": { "name": "keep" }, "spec": spec });
    cluster.create(&kinds::VALIDATING_ADMISSION_POLICY, policy).expect("created");
    let spec = json!({ "policyName": "keep", "validationActions": ["Deny"] });
    let binding = json!({ "metadata": { "name": "keep" }, "spec": spec });
    cluster.create(&kinds::VALIDATING_ADMISSION_POLICY_BINDING, binding).expect("created");
}

fn told(cluster: &Cluster, namespace: &str) -> Vec<(String, String)> {
    let prefix = format!("/core/events/{namespace}/");
    let events = cluster.api.store.range(prefix.as_bytes(), None, 100, None).expect("listed").entries;
    let parsed = events.iter().map(|event| serde_json::from_slice::<Value>(&event.value).expect("JSON"));
    parsed
        .map(|event| (object::text(&event, &["reason"]).to_owned(), object::text(&event, &["message"]).to_owned()))
        .collect()
}

fn condition(object: &Value, type_: &str) -> Value {
    let all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    all.into_iter().find(|condition| condition["type"] == type_).unwrap_or_default()
}

#[test]
fn s12_what_may_not_be_deleted_keeps_nothing_else_of_its_namespace() {
    static DELETES: &[Controller] = &[namespace::CONTROLLER];
    let cluster = Cluster::new();
    protect(&cluster, "DELETE");
    cluster.create(&kinds::NAMESPACE, json!({ "metadata": { "name": "full" } })).expect("created");
    let put = |kind: &Kind, object: Value| {
        cluster.write(|batch| crate::api::create(batch, kind, "full", object.clone())).expect("created");
    };
    put(&kinds::CONFIG_MAP, json!({ "metadata": { "name": "keep", "labels": { "keep": "y" } } }));
    (0..200).for_each(|number| put(&kinds::CONFIG_MAP, config_map(&format!("z{number}"))));
    put(&kinds::SECRET, json!({ "metadata": { "name": "sec" } }));
    cluster.delete(&kinds::NAMESPACE, "full", &DeleteOptions::default()).expect("marked");
    run_asking(&cluster, DELETES);
    let left = |kind: &Kind| cluster.api.store.count(&key::prefix(kind, Some("full")));
    assert_eq!((left(&kinds::CONFIG_MAP), left(&kinds::SECRET)), (1, 0), "the others are gone");
    let failure = condition(&cluster.get(&kinds::NAMESPACE, "full").expect("there"), "NamespaceDeletionContentFailure");
    assert_eq!((&failure["status"], &failure["reason"]), (&json!("True"), &json!("ContentDeletionFailed")));
    assert!(object::text(&failure, &["message"]).contains("this one is kept"), "{failure}");
    cluster.delete(&kinds::VALIDATING_ADMISSION_POLICY_BINDING, "keep", &DeleteOptions::default()).expect("freed");
    run_asking(&cluster, DELETES);
    assert!(cluster.get(&kinds::NAMESPACE, "full").is_none());
}

/// A definition goes with its objects, as upstream: whoever refuses their deletion may be gone for good.
#[test]
fn s12_a_definitions_objects_go_with_it_whatever_policies_say() {
    static DEFINITIONS: &[Controller] = &[customresourcedefinition::CONTROLLER];
    let (cluster, kind) = super::custom::served();
    protect(&cluster, "DELETE");
    let labels = json!({ "keep": "y" });
    for name in ["a", "b", "c"] {
        let object = json!({ "metadata": { "name": name, "labels": labels }, "spec": { "size": 1 } });
        cluster.create(&kind, object).expect("created");
    }
    cluster.delete(&kinds::CUSTOM_RESOURCE_DEFINITION, "foos.x.io", &DeleteOptions::default()).expect("marked");
    run_asking(&cluster, DEFINITIONS);
    assert!(cluster.get(&kinds::CUSTOM_RESOURCE_DEFINITION, "foos.x.io").is_none());
}

/// A finished pod that may not be deleted keeps no other, and is no failure of its set's.
#[test]
fn s12_x7_finished_pods_go_but_for_those_that_may_not() {
    static COLLECTOR: &[Controller] = &[podgc::CONTROLLER];
    let cluster = Cluster::new();
    cluster.create(&kinds::SERVICE_ACCOUNT, json!({ "metadata": { "name": "default" } })).ok();
    let template =
        json!({ "metadata": { "labels": { "a": "b" } }, "spec": { "containers": [{ "name": "c", "image": "i" }] } });
    let spec = json!({ "replicas": 0, "selector": { "matchLabels": { "a": "b" } }, "template": template });
    cluster.create(&kinds::REPLICA_SET, json!({ "metadata": { "name": "set" }, "spec": spec })).expect("created");
    let uid = cluster.get(&kinds::REPLICA_SET, "set").expect("there")["metadata"]["uid"].clone();
    let owner = json!([{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "set", "uid": uid,
        "controller": true }]);
    for number in 0..60 {
        let name = format!("p{number:02}");
        let labels = if number == 0 { json!({ "keep": "y" }) } else { json!({}) };
        let pod = json!({ "metadata": { "name": name, "labels": labels, "ownerReferences": owner },
            "spec": { "containers": [{ "name": "c", "image": "i" }] } });
        cluster.create(&kinds::POD, pod).expect("created");
        let failed = json!({ "status": { "phase": "Failed" } });
        cluster.merge(&kinds::POD, &name, Part::Status, failed).expect("ended");
    }
    protect(&cluster, "DELETE");
    run_asking(&cluster, COLLECTOR);
    assert!(cluster.get(&kinds::POD, "p00").is_some(), "it is kept");
    assert_eq!(cluster.api.store.count(&key::prefix(&kinds::POD, Some("default"))), 51);
    let set = cluster.get(&kinds::REPLICA_SET, "set").expect("there");
    assert!(condition(&set, "ReplicaFailure").is_null(), "{set}");
}

#[test]
fn s12_pods_that_may_not_be_deleted_keep_no_others_and_are_told() {
    static SETS: &[Controller] = &[replicaset::CONTROLLER];
    let cluster = Cluster::new();
    protect(&cluster, "DELETE");
    cluster.create(&kinds::SERVICE_ACCOUNT, json!({ "metadata": { "name": "default" } })).ok();
    let template =
        json!({ "metadata": { "labels": { "a": "b" } }, "spec": { "containers": [{ "name": "c", "image": "i" }] } });
    let spec = json!({ "replicas": 4, "selector": { "matchLabels": { "a": "b" } }, "template": template });
    cluster.create(&kinds::REPLICA_SET, json!({ "metadata": { "name": "set" }, "spec": spec })).expect("created");
    run_asking(&cluster, SETS);
    let pods = || {
        let prefix = key::prefix(&kinds::POD, Some("default"));
        let entries = cluster.api.store.range(&prefix, None, 10, None).expect("listed").entries;
        entries.iter().map(|entry| serde_json::from_slice::<Value>(&entry.value).expect("JSON")).collect::<Vec<_>>()
    };
    let all = pods();
    assert_eq!(all.len(), 4);
    // The first that is to go is kept.
    let labels = json!({ "metadata": { "labels": { "keep": "y" } } });
    cluster.merge(&kinds::POD, object::name(&all[0]), Part::Main, labels).expect("labelled");
    cluster.merge(&kinds::REPLICA_SET, "set", Part::Main, json!({ "spec": { "replicas": 1 } })).expect("scaled");
    run_asking(&cluster, SETS);
    let left = pods();
    assert_eq!((left.len(), object::name(&left[0])), (2, object::name(&all[0])));
    let set = cluster.get(&kinds::REPLICA_SET, "set").expect("there");
    assert_eq!(set["status"]["observedGeneration"], set["metadata"]["generation"]);
    assert_eq!(condition(&set, "ReplicaFailure")["reason"], "FailedDelete");
    let told = told(&cluster, "default");
    let failed: Vec<&String> =
        told.iter().filter(|(reason, _)| reason == "FailedDelete").map(|(_, message)| message).collect();
    assert!(!failed.is_empty() && failed.iter().all(|message| message.starts_with("Error deleting: ")), "{told:?}");
    let deleted = told.iter().filter(|(reason, _)| reason == "SuccessfulDelete").count();
    assert_eq!(deleted, 2, "what was not done is not told: {told:?}");
}

/// Otherwise a rollout, or a scale, would stand still without a word.
#[test]
fn s12_a_replica_set_that_may_not_be_changed_is_told_of_at_its_deployment() {
    static ALL: &[Controller] = &[deployment::CONTROLLER];
    let cluster = Cluster::new();
    let template = json!({ "metadata": { "labels": { "a": "b", "keep": "y" } },
        "spec": { "containers": [{ "name": "c", "image": "i" }] } });
    let spec = json!({ "replicas": 1, "selector": { "matchLabels": { "a": "b" } }, "template": template });
    cluster.create(&kinds::DEPLOYMENT, json!({ "metadata": { "name": "web" }, "spec": spec })).expect("created");
    run_asking(&cluster, ALL);
    protect(&cluster, "UPDATE");
    cluster.merge(&kinds::DEPLOYMENT, "web", Part::Main, json!({ "spec": { "replicas": 3 } })).expect("scaled");
    run_asking(&cluster, ALL);
    let of_refusal = |told: Vec<(String, String)>| told.into_iter().find(|(reason, _)| reason == "FailedUpdate");
    let (_, message) = of_refusal(told(&cluster, "default")).expect("it is told");
    assert!(message.starts_with("update ReplicaSet web-") && message.contains("in Deployment web failed"), "{message}");
    assert!(message.contains("this one is kept"), "{message}");
    let told = told(&cluster, "default");
    assert!(
        !told.iter().any(|(_, message)| message.contains("from 1 to 3")),
        "what was not done is not told: {told:?}"
    );
}

/// What is chosen to go, and may not, is chosen again: later and later. A CronJob that replaces its Job begins no other
/// while that may not go, as upstream.
#[test]
fn x7_s12_what_may_not_be_deleted_is_tried_later_and_later_and_goes_when_it_may() {
    static OWNERS: &[Controller] = &[replicaset::CONTROLLER, cronjob::CONTROLLER];
    let cluster = Cluster::new();
    protect(&cluster, "DELETE");
    cluster.create(&kinds::SERVICE_ACCOUNT, json!({ "metadata": { "name": "default" } })).ok();
    let labels = json!({ "a": "b", "keep": "y" });
    let mut template =
        json!({ "metadata": { "labels": labels }, "spec": { "containers": [{ "name": "c", "image": "i" }] } });
    let spec = json!({ "replicas": 4, "selector": { "matchLabels": { "a": "b" } }, "template": template });
    cluster.create(&kinds::REPLICA_SET, json!({ "metadata": { "name": "set" }, "spec": spec })).expect("created");
    template["spec"]["restartPolicy"] = json!("Never");
    let job = json!({ "metadata": { "labels": labels }, "spec": { "template": template } });
    let spec = json!({ "schedule": "* * * * *", "concurrencyPolicy": "Replace", "jobTemplate": job });
    cluster.create(&kinds::CRON_JOB, json!({ "metadata": { "name": "cron" }, "spec": spec })).expect("created");
    let mut now = cluster.api.now();
    let mut driver = Driver::new(OWNERS);
    let mut watcher = driver.load(&cluster.api.store, now).expect("loaded");
    let mut tried = BTreeMap::new();
    let mut live = |seconds: i64| {
        let end = now.checked_add(SignedDuration::from_secs(seconds)).expect("in range");
        for _ in 0..10_000 {
            feed(&mut driver, &mut watcher, now);
            let Some(work) = driver.poll(now) else {
                let Some(next) = driver.next_wake().filter(|next| *next <= end) else {
                    now = end;
                    return std::mem::take(&mut tried);
                };
                now = next.max(now);
                continue;
            };
            let user = crate::auth::User::controller(work.controller);
            let session = cluster.api.hooks.now().map(|set| Arc::new(Session::of_controller(set, &user)));
            let compiled = compile_asking(&cluster.api, &work, session.as_ref());
            *tried.entry(work.controller).or_insert(0) += usize::from(compiled.refused.is_some());
            let committed = cluster.api.store.commit_blocking(compiled.txn.clone());
            let done = Done::of(work, &compiled, committed);
            driver.finished(done.work, &done.finish, now);
        }
        panic!("the controllers never come to rest");
    };
    let count = |kind: &Kind| cluster.api.store.count(&key::prefix(kind, Some("default")));
    live(90);
    assert_eq!((count(&kinds::POD), count(&kinds::JOB)), (4, 1));
    cluster.merge(&kinds::REPLICA_SET, "set", Part::Main, json!({ "spec": { "replicas": 1 } })).expect("scaled");
    let tried = live(3600);
    assert_eq!((count(&kinds::POD), count(&kinds::JOB)), (4, 1));
    for controller in OWNERS {
        // The first twelve in as many seconds, then one a minute; a CronJob also when its next time has come.
        let tries = tried.get(controller.name).copied().unwrap_or(0);
        assert!((30..=150).contains(&tries), "{}: {tries} in an hour", controller.name);
    }
    cluster.delete(&kinds::VALIDATING_ADMISSION_POLICY_BINDING, "keep", &DeleteOptions::default()).expect("freed");
    live(120);
    assert_eq!((count(&kinds::POD), count(&kinds::JOB)), (1, 1));
}

#[test]
fn a_rollout_and_a_scale_that_are_refused_say_so() {
    static ALL: &[Controller] = &[deployment::CONTROLLER, horizontalpodautoscaler::CONTROLLER];
    let cluster = Cluster::new();
    let hard = json!({ "count/replicasets.apps": "0" });
    let quota = json!({ "metadata": { "name": "q" }, "spec": { "hard": hard } });
    cluster.create(&kinds::RESOURCE_QUOTA, quota).expect("created");
    let counted = json!({ "status": { "hard": hard, "used": { "count/replicasets.apps": "0" } } });
    cluster.merge(&kinds::RESOURCE_QUOTA, "q", Part::Status, counted).expect("counted");
    protect(&cluster, "UPDATE");
    let template =
        json!({ "metadata": { "labels": { "a": "b" } }, "spec": { "containers": [{ "name": "c", "image": "i" }] } });
    let spec = json!({ "replicas": 1, "selector": { "matchLabels": { "a": "b" } }, "template": template });
    cluster
        .create(&kinds::DEPLOYMENT, json!({ "metadata": { "name": "web", "labels": { "keep": "y" } }, "spec": spec }))
        .expect("created");
    let target = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "name": "web" });
    let spec = json!({ "scaleTargetRef": target, "minReplicas": 2, "maxReplicas": 3 });
    cluster
        .create(&kinds::HORIZONTAL_POD_AUTOSCALER, json!({ "metadata": { "name": "hpa" }, "spec": spec }))
        .expect("created");
    run_asking(&cluster, ALL);
    let able = condition(&cluster.get(&kinds::HORIZONTAL_POD_AUTOSCALER, "hpa").expect("there"), "AbleToScale");
    assert_eq!((&able["status"], &able["reason"]), (&json!("False"), &json!("FailedUpdateScale")));
    let told = told(&cluster, "default");
    assert!(told.iter().any(|(reason, message)| reason == "FailedRescale"
        && message.starts_with("New size: 2; reason: Current number of replicas below Spec.MinReplicas; error: ")));
    assert!(told.iter().any(|(reason, _)| reason == "ReplicaSetCreateError"), "{told:?}");
}

/// S12: a pod that may not be bound says why, and keeps no other from its node.
#[test]
fn s12_a_pod_that_may_not_be_bound_says_so_and_keeps_no_other() {
    static SCHEDULER: &[Controller] = &[mainstay_logic::scheduler::CONTROLLER];
    let cluster = Cluster::new();
    let rule = json!({ "apiGroups": [""], "apiVersions": ["*"], "operations": ["CREATE"],
        "resources": ["pods/binding"] });
    let spec = json!({ "failurePolicy": "Fail", "matchConstraints": { "resourceRules": [rule] },
        "validations": [{ "expression": "request.name != 'kept'", "message": "this one is kept" }] });
    let policy = json!({ "metadata": { "name": "keep" }, "spec": spec });
    cluster.create(&kinds::VALIDATING_ADMISSION_POLICY, policy).expect("created");
    let spec = json!({ "policyName": "keep", "validationActions": ["Deny"] });
    let binding = json!({ "metadata": { "name": "keep" }, "spec": spec });
    cluster.create(&kinds::VALIDATING_ADMISSION_POLICY_BINDING, binding).expect("created");
    cluster.create(&kinds::SERVICE_ACCOUNT, json!({ "metadata": { "name": "default" } })).ok();
    let node = json!({ "metadata": { "name": "n1" },
        "status": { "allocatable": { "cpu": "4", "memory": "4Gi", "pods": "10" } } });
    cluster.create(&kinds::NODE, node).expect("created");
    for name in ["a", "kept", "z"] {
        let pod = json!({ "metadata": { "name": name }, "spec": { "containers": [{ "name": "c", "image": "i" }] } });
        cluster.create(&kinds::POD, pod).expect("created");
    }
    run_asking(&cluster, SCHEDULER);
    let pods = ["a", "kept", "z"].map(|name| cluster.get(&kinds::POD, name).expect("there"));
    let placed = pods.each_ref().map(|pod| pod["spec"]["nodeName"].is_string());
    assert_eq!(placed, [true, false, true]);
    let said = condition(&pods[1], "PodScheduled");
    assert_eq!((&said["status"], &said["reason"]), (&json!("False"), &json!("SchedulerError")), "{}", pods[1]);
    let why = object::text(&said, &["message"]);
    assert!(why.starts_with("running Bind plugin \"DefaultBinder\": ") && why.contains("this one is kept"), "{why}");
    assert!(told(&cluster, "default").contains(&("FailedScheduling".to_owned(), why.to_owned())));
}

/// A9: a part that is refused leaves nothing in the batch, whatever it had done by then.
#[test]
fn a9_a_part_that_fails_leaves_nothing_in_its_batch() {
    let cluster = Cluster::new();
    cluster.create(&kinds::CONFIG_MAP, config_map("a")).expect("created");
    let mut batch = cluster.api.batch();
    let rename = |batch: &mut crate::api::Batch<'_>, value: &str| {
        let change = |old: &Value| {
            let mut new = old.clone();
            new["data"]["a"] = json!(value);
            Ok(new)
        };
        crate::api::patch(batch, &kinds::CONFIG_MAP, "default", "a", Part::Main, &change).map(|_| ())
    };
    rename(&mut batch, "2").expect("changed");
    let bytes = batch.bytes();
    let failed = batch.try_part(|batch| {
        rename(batch, "3")?;
        crate::api::create(batch, &kinds::SECRET, "default", json!({ "metadata": { "name": "s" } }))?;
        Err::<(), _>(Status::bad_request("no".to_owned()))
    });
    assert!(failed.is_err());
    assert_eq!(batch.bytes(), bytes);
    assert!(batch.get(&kinds::SECRET, "default", "s").expect("read").is_none());
    let there = batch.get(&kinds::CONFIG_MAP, "default", "a").expect("read").expect("there");
    assert_eq!(there["data"]["a"], "2");
    cluster.api.store.commit_blocking(batch.into_txn()).expect("committed");
    assert_eq!(cluster.get(&kinds::CONFIG_MAP, "a").expect("there")["data"]["a"], "2");
    assert!(cluster.get(&kinds::SECRET, "s").is_none());
}
