//! Quotas and limit ranges: what is charged, what is refused, and that a limit holds however many write at once.

use mainstay_api::kinds;
use serde_json::{Value, json};

use super::*;

/// A quota that has been counted: nothing is used yet.
fn counted(cluster: &Cluster, name: &str, hard: Value) {
    cluster
        .create(&kinds::RESOURCE_QUOTA, json!({ "metadata": { "name": name }, "spec": { "hard": hard } }))
        .expect("created");
    let used: serde_json::Map<String, Value> =
        hard.as_object().into_iter().flatten().map(|(resource, _)| (resource.clone(), json!("0"))).collect();
    cluster
        .merge(&kinds::RESOURCE_QUOTA, name, Part::Status, json!({ "status": { "hard": hard, "used": used } }))
        .expect("counted");
}

fn used(cluster: &Cluster, name: &str) -> Value {
    cluster.get(&kinds::RESOURCE_QUOTA, name).expect("there")["status"]["used"].clone()
}

fn account(cluster: &Cluster) {
    cluster.create(&kinds::SERVICE_ACCOUNT, json!({ "metadata": { "name": "default" } })).ok();
}

fn asking(name: &str, cpu: &str) -> Value {
    json!({ "metadata": { "name": name }, "spec": { "containers": [{ "name": "c", "image": "i",
        "resources": { "requests": { "cpu": cpu } } }] } })
}

#[test]
fn what_passes_a_quota_is_refused_in_upstreams_words_and_leaves_nothing() {
    let cluster = Cluster::new();
    account(&cluster);
    counted(&cluster, "q", json!({ "pods": "2", "requests.cpu": "1", "configmaps": "1" }));
    cluster.create(&kinds::POD, asking("a", "600m")).expect("fits");
    assert_eq!(used(&cluster, "q"), json!({ "pods": "1", "requests.cpu": "600m", "configmaps": "0" }));
    let refused = cluster.create(&kinds::POD, asking("b", "500m")).expect_err("too much");
    assert_eq!(
        (refused.code, refused.message.as_str()),
        (
            403,
            r#"pods "b" is forbidden: exceeded quota: q, requested: requests.cpu=500m, used: requests.cpu=600m, limited: requests.cpu=1"#
        )
    );
    let silent = cluster.create(&kinds::POD, pod("c")).expect_err("says nothing");
    assert_eq!(silent.message, r#"pods "c" is forbidden: failed quota: q: must specify requests.cpu for: c"#);
    assert_eq!(used(&cluster, "q")["pods"], "1");
    cluster.create(&kinds::CONFIG_MAP, config_map("one")).expect("fits");
    let second = cluster.create(&kinds::CONFIG_MAP, config_map("two")).expect_err("one too many");
    assert!(
        second
            .message
            .ends_with("exceeded quota: q, requested: configmaps=1, used: configmaps=1, limited: configmaps=1")
    );
}

#[test]
fn what_goes_or_ends_is_given_back() {
    let cluster = Cluster::new();
    account(&cluster);
    counted(&cluster, "q", json!({ "pods": "2", "requests.cpu": "1", "count/pods": "5" }));
    cluster.create(&kinds::POD, asking("a", "600m")).expect("fits");
    cluster.merge(&kinds::POD, "a", Part::Status, json!({ "status": { "phase": "Succeeded" } })).expect("ended");
    assert_eq!(used(&cluster, "q"), json!({ "pods": "0", "requests.cpu": "0", "count/pods": "1" }));
    cluster.create(&kinds::POD, asking("b", "1")).expect("fits now");
    let none = DeleteOptions { grace: Some(0), ..DeleteOptions::default() };
    for name in ["a", "b"] {
        cluster.delete(&kinds::POD, name, &none).expect("deleted");
    }
    assert_eq!(used(&cluster, "q"), json!({ "pods": "0", "requests.cpu": "0", "count/pods": "0" }));
}

/// A9, X7: who takes the last finalizer off gives back what the object had, not what they say that it has.
#[test]
fn a9_what_goes_with_its_last_finalizer_gives_back_what_it_had() {
    let cluster = Cluster::new();
    counted(&cluster, "q", json!({ "services": "5", "services.nodeports": "2" }));
    let ports = json!([{ "name": "a", "port": 80, "nodePort": 30080 }, { "name": "b", "port": 81, "nodePort": 30081 }]);
    let service = |name: &str, spec: Value| {
        let mut service = json!({ "metadata": { "name": name, "finalizers": ["x.io/held"] }, "spec": spec });
        service["spec"]["selector"] = json!({ "app": "a" });
        service
    };
    let delete = |name| cluster.delete(&kinds::SERVICE, name, &DeleteOptions::default()).expect("deleted");
    let patch = |name, mut spec: Value| {
        spec["metadata"] = json!({ "finalizers": null });
        cluster.merge(&kinds::SERVICE, name, Part::Main, spec).expect("let go");
        assert!(cluster.get(&kinds::SERVICE, name).is_none());
    };
    let front = json!({ "type": "NodePort", "clusterIP": "10.96.0.17", "ports": ports });
    cluster.create(&kinds::SERVICE, service("front", front.clone())).expect("made");
    assert_eq!(used(&cluster, "q"), json!({ "services": "1", "services.nodeports": "2" }));
    delete("front");
    patch(
        "front",
        json!({ "spec": { "type": "ExternalName", "externalName": "a.example", "clusterIP": null,
        "clusterIPs": null, "ports": null, "selector": null } }),
    );
    assert_eq!(used(&cluster, "q"), json!({ "services": "0", "services.nodeports": "0" }));
    cluster.create(&kinds::SERVICE, service("front", front)).expect("its address and its ports are free");

    cluster.create(&kinds::SERVICE, service("plain", json!({ "ports": [{ "port": 80 }] }))).expect("made");
    delete("plain");
    patch("plain", json!({ "spec": { "type": "NodePort", "ports": [{ "port": 80, "nodePort": 30090 }] } }));
    assert_eq!(used(&cluster, "q"), json!({ "services": "1", "services.nodeports": "2" }));
}

#[test]
fn a_quota_that_is_not_counted_yet_lets_nothing_in_and_is_changed_by_what_goes() {
    let cluster = Cluster::new();
    account(&cluster);
    cluster.create(&kinds::POD, asking("old", "1")).expect("no quota yet");
    let quota = json!({ "metadata": { "name": "q" }, "spec": { "hard": { "pods": "5" } } });
    let made = cluster.create(&kinds::RESOURCE_QUOTA, quota).expect("created");
    let refused = cluster.create(&kinds::POD, asking("new", "1")).expect_err("unknown");
    assert_eq!(refused.message, r#"pods "new" is forbidden: status unknown for quota: q, resources: pods"#);
    let none = DeleteOptions { grace: Some(0), ..DeleteOptions::default() };
    cluster.delete(&kinds::POD, "old", &none).expect("deleted");
    let now = cluster.get(&kinds::RESOURCE_QUOTA, "q").expect("there");
    assert_ne!(now["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"], "a count from before is stale");
    cluster.delete(&kinds::RESOURCE_QUOTA, "q", &DeleteOptions::default()).expect("deleted");
    cluster.create(&kinds::POD, asking("new", "1")).expect("nothing limits it");
}

#[test]
fn of_writes_that_fit_only_alone_one_commits_a9() {
    let cluster = Cluster::new();
    counted(&cluster, "q", json!({ "configmaps": "1" }));
    let prepare = |name: &str| {
        let mut batch = cluster.api.batch();
        create(&mut batch, &kinds::CONFIG_MAP, "default", config_map(name)).expect("fits alone");
        batch.into_txn()
    };
    let (first, second) = (prepare("a"), prepare("b"));
    cluster.api.store.commit_blocking(first).expect("committed");
    cluster.api.store.commit_blocking(second).expect_err("the quota has changed");
    assert_eq!(used(&cluster, "q"), json!({ "configmaps": "1" }));
    // And no object slips past a quota that is made at the same time.
    let slipping = prepare_secret(&cluster);
    counted(&cluster, "none", json!({ "secrets": "0" }));
    cluster.api.store.commit_blocking(slipping).expect_err("there is a new quota");
}

/// Every key once: etcd takes no more of one transaction, and a limit is compared with what is written.
#[test]
fn what_many_objects_use_is_charged_in_one_write_a8() {
    let cluster = Cluster::new();
    counted(&cluster, "q", json!({ "configmaps": "20" }));
    let mut batch = cluster.api.batch();
    for index in 0..20 {
        create(&mut batch, &kinds::CONFIG_MAP, "default", config_map(&format!("c{index}"))).expect("it fits");
    }
    let bytes = batch.bytes();
    create(&mut batch, &kinds::CONFIG_MAP, "default", config_map("one-too-many")).expect_err("the limit");
    let none = DeleteOptions::default();
    delete(&mut batch, &kinds::CONFIG_MAP, "default", "c3", &none).expect("made in this batch");
    let txn = batch.into_txn();
    let quotas = |txn: &mainstay_store::Txn| {
        txn.ops.iter().filter(|op| String::from_utf8_lossy(op.key()).contains("resourcequotas")).count()
    };
    assert_eq!((quotas(&txn), txn.ops.len()), (1, 22), "the quota, twenty objects, and one of them taken away");
    let counted: usize = txn.ops.iter().take(21).map(|op| op.key().len() + op.value().bytes.len()).sum();
    assert_eq!(bytes, counted, "what was replaced does not count");
    cluster.api.store.commit_blocking(txn).expect("committed");
    assert_eq!(used(&cluster, "q"), json!({ "configmaps": "19" }));
    // An object that was there is changed and taken away: that is a deletion.
    let mut batch = cluster.api.batch();
    let label = |old: &Value| {
        let mut new = old.clone();
        new["metadata"]["labels"] = json!({ "a": "b" });
        Ok(new)
    };
    patch(&mut batch, &kinds::CONFIG_MAP, "default", "c4", Part::Main, &label).expect("changed");
    delete(&mut batch, &kinds::CONFIG_MAP, "default", "c4", &none).expect("taken away");
    let txn = batch.into_txn();
    assert!(matches!(&txn.ops[0], mainstay_store::Op::Delete { .. }) && txn.ops.len() == 2, "{:?}", txn.ops);
    cluster.api.store.commit_blocking(txn).expect("committed");
    assert_eq!(used(&cluster, "q"), json!({ "configmaps": "18" }));
}

fn prepare_secret(cluster: &Cluster) -> mainstay_store::Txn {
    let mut batch = cluster.api.batch();
    create(&mut batch, &kinds::SECRET, "default", json!({ "metadata": { "name": "s" } })).expect("no quota of secrets");
    batch.into_txn()
}

#[test]
fn a_limit_range_gives_and_bounds() {
    let cluster = Cluster::new();
    account(&cluster);
    let item = json!({ "type": "Container", "default": { "cpu": "500m" }, "defaultRequest": { "cpu": "250m" },
        "max": { "cpu": "1" }, "maxLimitRequestRatio": { "cpu": "4" } });
    let pods = json!({ "type": "Pod", "max": { "memory": "1Gi" } });
    let range = json!({ "metadata": { "name": "l" }, "spec": { "limits": [item,
        { "type": "PersistentVolumeClaim", "min": { "storage": "2Gi" } }] } });
    cluster.create(&kinds::LIMIT_RANGE, range).expect("created");
    let made = cluster.create(&kinds::POD, pod("a")).expect("created");
    assert_eq!(
        made["spec"]["containers"][0]["resources"],
        json!({ "requests": { "cpu": "250m" }, "limits": { "cpu": "500m" } })
    );
    assert_eq!(
        made["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
        "LimitRanger plugin set: cpu request for container c; cpu limit for container c"
    );
    assert_eq!(made["status"]["qosClass"], "Burstable");
    let mut large = pod("b");
    large["spec"]["containers"][0]["resources"] = json!({ "requests": { "cpu": "100m" }, "limits": { "cpu": "2" } });
    let refused = cluster.create(&kinds::POD, large).expect_err("too much");
    assert_eq!(
        refused.message,
        r#"pods "b" is forbidden: [maximum cpu usage per Container is 1, but limit is 2, cpu max limit to request ratio per Container is 4, but provided ratio is 20.000000]"#
    );
    let claim = json!({ "metadata": { "name": "c" }, "spec": { "accessModes": ["ReadWriteOnce"],
        "resources": { "requests": { "storage": "1Gi" } } } });
    let small = cluster.create(&kinds::PERSISTENT_VOLUME_CLAIM, claim).expect_err("too small");
    assert!(
        small.message.ends_with("minimum storage usage per PersistentVolumeClaim is 2Gi, but request is 1Gi"),
        "{}",
        small.message
    );
    cluster
        .create(&kinds::LIMIT_RANGE, json!({ "metadata": { "name": "p" }, "spec": { "limits": [pods] } }))
        .expect("created");
    let silent = cluster.create(&kinds::POD, pod("d")).expect_err("no limit");
    assert_eq!(silent.message, r#"pods "d" is forbidden: maximum memory usage per Pod is 1Gi.  No limit is specified"#);
}

#[test]
fn a_runtime_class_gives_its_overhead_and_must_be_there() {
    let cluster = Cluster::new();
    account(&cluster);
    let class = json!({ "metadata": { "name": "slow" }, "handler": "slow",
        "overhead": { "podFixed": { "cpu": "250m" } },
        "scheduling": { "nodeSelector": { "slow": "yes" }, "tolerations": [{ "key": "slow",
            "operator": "Exists" }] } });
    cluster.create(&kinds::RUNTIME_CLASS, class).expect("created");
    let with = |name: &str, fields: Value| {
        let mut pod = pod(name);
        let fields = fields.as_object().cloned().unwrap_or_default();
        pod["spec"].as_object_mut().expect("a spec").extend(fields);
        cluster.create(&kinds::POD, pod)
    };
    let made = with("a", json!({ "runtimeClassName": "slow" })).expect("created");
    assert_eq!(
        (&made["spec"]["overhead"], &made["spec"]["nodeSelector"]),
        (&json!({ "cpu": "250m" }), &json!({ "slow": "yes" }))
    );
    assert!(
        made["spec"]["tolerations"]
            .as_array()
            .is_some_and(|all| all.contains(&json!({ "key": "slow", "operator": "Exists" })))
    );
    let missing = with("b", json!({ "runtimeClassName": "none" })).expect_err("missing");
    assert_eq!(missing.message, r#"pods "b" is forbidden: pod rejected: RuntimeClass "none" not found"#);
    let own = with("c", json!({ "overhead": { "cpu": "1" } })).expect_err("nobody's");
    assert!(own.message.contains("Pod Overhead set without corresponding RuntimeClass defined Overhead"));
}

#[test]
fn a_pod_is_as_important_as_its_class_says() {
    let cluster = Cluster::new();
    account(&cluster);
    let class = |name: &str, value: i64, default: bool| {
        json!({ "metadata": { "name": name }, "value": value,
        "globalDefault": default })
    };
    let with = |name: &str, fields: Value| {
        let mut pod = pod(name);
        let fields = fields.as_object().cloned().unwrap_or_default();
        pod["spec"].as_object_mut().expect("a spec").extend(fields);
        cluster.create(&kinds::POD, pod)
    };
    let plain = with("a", json!({})).expect("created");
    assert_eq!(
        (&plain["spec"]["priority"], &plain["spec"]["preemptionPolicy"]),
        (&json!(0), &json!("PreemptLowerPriority"))
    );
    cluster.create(&kinds::PRIORITY_CLASS, class("high", 1000, false)).expect("created");
    cluster.create(&kinds::PRIORITY_CLASS, class("usual", 10, true)).expect("created");
    let high = with("b", json!({ "priorityClassName": "high" })).expect("created");
    assert_eq!(high["spec"]["priority"], 1000);
    let usual = with("c", json!({})).expect("created");
    assert_eq!((&usual["spec"]["priority"], &usual["spec"]["priorityClassName"]), (&json!(10), &json!("usual")));
    let own = with("d", json!({ "priority": 7 })).expect_err("its own number");
    assert!(
        own.message.contains("the integer value of priority (7) must not be provided in pod spec"),
        "{}",
        own.message
    );
    let none = with("e", json!({ "priorityClassName": "none" })).expect_err("missing");
    assert_eq!(none.message, r#"pods "e" is forbidden: no PriorityClass with name none was found"#);
    let second = cluster.create(&kinds::PRIORITY_CLASS, class("other", 5, true)).expect_err("a second default");
    assert!(second.message.ends_with("PriorityClass usual is already marked as default. Only one default can exist"));
    let above = cluster.create(&kinds::PRIORITY_CLASS, class("more", 1_000_000_001, false)).expect_err("too high");
    assert!(above.message.contains("maximum allowed value of a user defined priority is 1000000000"));
    let system = cluster.create(&kinds::PRIORITY_CLASS, class("system-x", 1, false)).expect_err("reserved");
    assert!(system.message.contains("reserved for system use only"), "{}", system.message);
}
