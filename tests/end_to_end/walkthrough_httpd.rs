//! Walkthrough 2: a StatefulSet of Apache httpd, step by step as a person would do it.

use crate::harness::{Cluster, ROOMY};

fn names(cluster: &Cluster, kind: &str) -> String {
    let listed = cluster.kubectl(&["get", kind, "-l", "app=httpd", "-o", "name"]);
    listed.split_whitespace().map(|name| name.rsplit('/').next().unwrap_or(name)).collect::<Vec<_>>().join(" ")
}

fn start() -> Cluster {
    let mut cluster = Cluster::with_disk(ROOMY);
    cluster.up();
    cluster.load(&["httpd", "dnsutils"]);
    cluster.apply(&cluster.manifest("httpd-service.yaml"));
    cluster.apply(&cluster.manifest("fast-sc.yaml"));
    cluster.apply(&cluster.manifest("httpd-ss.yaml"));
    cluster.kubectl(&["rollout", "status", "statefulset/apache-http", "--timeout=120s"]);
    cluster
}

fn settled(cluster: &Cluster, replicas: &str) {
    cluster.eventually(&format!("{replicas} replicas are ready and no others are left"), || {
        cluster.field("statefulset/apache-http", "{.status.readyReplicas} {.status.replicas}")
            == format!("{replicas} {replicas}")
    });
}

fn uids(cluster: &Cluster) -> String {
    cluster.kubectl(&["get", "pods", "-l", "app=httpd", "-o", "jsonpath={.items[*].metadata.uid}"])
}

/// Deletes the set's pods and waits until all of them are new ones. kubectl's own wait looks at a pod's uid first and
/// watches its name afterwards: a pod that came back in between is waited for until the end of days.
fn delete_all(cluster: &Cluster, before: &str) {
    cluster.kubectl(&["delete", "pod", "-l", "app=httpd", "--wait=false"]);
    cluster.eventually("all pods are new ones", || {
        let after = uids(cluster);
        after.split(' ').count() == before.split(' ').count() && before.split(' ').all(|uid| !after.contains(uid))
    });
}

#[test]
fn steps_1_to_4_names_claims_and_dns() {
    let cluster = start();
    let services = cluster.kubectl(&["get", "svc", "httpd-service", "--no-headers"]);
    assert_eq!(
        services.split_whitespace().take(5).collect::<Vec<_>>(),
        ["httpd-service", "ClusterIP", "None", "<none>", "80/TCP"]
    );
    let class = cluster.kubectl(&["get", "sc", "fast"]);
    assert!(
        class.lines().next().is_some_and(|head| head.split_whitespace().nth(2) == Some("RECLAIMPOLICY")),
        "{class}"
    );
    assert!(class.contains("k8s.io/minikube-hostpath") && class.contains("Retain"), "{class}");

    assert_eq!(names(&cluster, "pods"), "apache-http-0 apache-http-1 apache-http-2");
    let created = |pod: &str, path: &str| cluster.field(pod, path);
    for (before, after) in [("pod/apache-http-0", "pod/apache-http-1"), ("pod/apache-http-1", "pod/apache-http-2")] {
        let ready = created(before, "{.status.conditions[?(@.type=='Ready')].lastTransitionTime}");
        let made = created(after, "{.metadata.creationTimestamp}");
        assert!(ready <= made, "S4: {after} was made at {made}, before {before} was Ready at {ready}");
    }
    for ordinal in 0..3 {
        let claim = cluster.kubectl(&["get", "pvc", &format!("httpd-apache-http-{ordinal}"), "--no-headers"]);
        let fields: Vec<&str> = claim.split_whitespace().collect();
        assert_eq!((fields[1], fields[3], fields[4], fields[5]), ("Bound", "2Gi", "RWO", "fast"), "{claim}");
        let pod = format!("apache-http-{ordinal}");
        assert_eq!(cluster.exec(&pod, &["hostname"]).trim(), pod);
    }
    let volumes = cluster.kubectl(&["get", "pv", "--no-headers"]);
    assert_eq!(
        volumes.lines().filter(|line| line.contains("Retain") && line.contains("Bound")).count(),
        3,
        "{volumes}"
    );

    cluster.kubectl(&["run", "tools", "--image=test.local/dnsutils:1", "--restart=Never", "--", "sleep", "1000"]);
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/tools", "--timeout=60s"]);
    let dig = |args: &[&str]| cluster.exec("tools", &[&["dig", "+short", "+search"], args].concat());
    let mut pods: Vec<String> =
        (0..3).map(|ordinal| cluster.field(&format!("pod/apache-http-{ordinal}"), "{.status.podIP}")).collect();
    for (ordinal, address) in pods.iter().enumerate() {
        let full = format!("apache-http-{ordinal}.httpd-service.default.svc.cluster.local");
        assert_eq!(dig(&[&full, "A"]).trim(), address);
        assert_eq!(dig(&[&format!("apache-http-{ordinal}.httpd-service"), "A"]).trim(), address, "by the search list");
    }
    pods.sort();
    let mut all: Vec<String> = dig(&["httpd-service", "A"]).lines().map(str::to_owned).collect();
    all.sort();
    assert_eq!(all, pods);
    let mut targets: Vec<String> =
        dig(&["_web._tcp.httpd-service.default.svc.cluster.local", "SRV"]).lines().map(str::to_owned).collect();
    targets.sort();
    let wanted: Vec<String> =
        (0..3).map(|n| format!("apache-http-{n}.httpd-service.default.svc.cluster.local.")).collect();
    assert_eq!(targets.iter().map(|line| line.rsplit(' ').next().unwrap_or("")).collect::<Vec<_>>(), wanted);
    assert!(targets.iter().all(|line| line.split(' ').nth(2) == Some("80")), "{targets:?}");
    cluster.no_promise_is_broken();
}

#[test]
fn steps_5_and_6_identity_and_scale() {
    let cluster = start();
    for ordinal in 0..3 {
        let write = format!("echo page-{ordinal} > /usr/local/apache2/htdocs/index.html");
        cluster.exec(&format!("apache-http-{ordinal}"), &["sh", "-c", &write]);
    }
    let before = uids(&cluster);
    delete_all(&cluster, &before);
    settled(&cluster, "3");
    let page = |ordinal: usize| {
        cluster.exec(&format!("apache-http-{ordinal}"), &["wget", "-q", "-O", "-", "http://localhost/"])
    };
    for ordinal in 0..3 {
        assert_eq!(page(ordinal).trim(), format!("page-{ordinal}"), "V4");
    }

    let uid = cluster.field("pod/apache-http-1", "{.metadata.uid}");
    cluster.kill_process(&uid, "apache2");
    cluster.eventually("the killed container was restarted in place", || {
        cluster
            .field(
                "pod/apache-http-1",
                "{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}",
            )
            .ends_with("true")
            && cluster.field("pod/apache-http-1", "{.status.containerStatuses[0].restartCount}") != "0"
    });
    assert_eq!(cluster.field("pod/apache-http-1", "{.metadata.uid}"), uid);
    assert_eq!(page(1).trim(), "page-1");

    cluster.kubectl(&["scale", "statefulset", "apache-http", "--replicas=5"]);
    settled(&cluster, "5");
    assert_eq!(names(&cluster, "pods"), "apache-http-0 apache-http-1 apache-http-2 apache-http-3 apache-http-4");
    cluster.exec("apache-http-4", &["sh", "-c", "echo page-4 > /usr/local/apache2/htdocs/index.html"]);
    cluster.kubectl(&["scale", "statefulset", "apache-http", "--replicas=1"]);
    settled(&cluster, "1");
    assert_eq!(names(&cluster, "pods"), "apache-http-0");
    let claims = cluster.kubectl(&["get", "pvc", "--no-headers"]);
    assert_eq!(claims.lines().filter(|line| line.contains("Bound")).count(), 5, "S8: {claims}");
    cluster.kubectl(&["scale", "statefulset", "apache-http", "--replicas=5"]);
    settled(&cluster, "5");
    assert_eq!(page(4).trim(), "page-4", "scaling up again meets the old content");
    cluster.no_promise_is_broken();
}

#[test]
fn steps_7_and_8_rollouts_and_deletion() {
    let cluster = start();
    let before = uids(&cluster);
    cluster.kubectl(&["set", "env", "statefulset/apache-http", "ROLL=1"]);
    cluster.kubectl(&["rollout", "status", "statefulset/apache-http", "--timeout=120s"]);
    let rolled = uids(&cluster);
    assert!(before.split(' ').all(|uid| !rolled.contains(uid)));
    let history = cluster.kubectl(&["rollout", "history", "statefulset/apache-http"]);
    assert_eq!(history.lines().filter(|line| line.starts_with(['1', '2'])).count(), 2, "{history}");
    cluster.kubectl(&["rollout", "undo", "statefulset/apache-http"]);
    cluster.kubectl(&["rollout", "status", "statefulset/apache-http", "--timeout=120s"]);
    assert_eq!(cluster.field("pod/apache-http-0", "{.spec.containers[0].env}"), "");

    // A canary: only ordinals from the partition on take the new revision (S6).
    cluster.kubectl(&[
        "patch",
        "statefulset",
        "apache-http",
        "-p",
        r#"{"spec":{"updateStrategy":{"rollingUpdate":{"partition":2}}}}"#,
    ]);
    cluster.kubectl(&["set", "env", "statefulset/apache-http", "CANARY=1"]);
    cluster.eventually("the canary runs", || {
        cluster.field(
            "pod/apache-http-2",
            "{.spec.containers[0].env[0].name} {.status.conditions[?(@.type=='Ready')].status}",
        ) == "CANARY True"
    });
    assert_eq!(cluster.field("pod/apache-http-1", "{.spec.containers[0].env}"), "");
    cluster.kubectl(&[
        "patch",
        "statefulset",
        "apache-http",
        "-p",
        r#"{"spec":{"updateStrategy":{"rollingUpdate":{"partition":0}}}}"#,
    ]);
    cluster.kubectl(&["rollout", "status", "statefulset/apache-http", "--timeout=120s"]);

    // A broken rollout, then a corrected one, without a human (S7).
    cluster.kubectl(&["set", "image", "statefulset/apache-http", "httpd=test.local/no-such-image:1"]);
    cluster.eventually("the broken pod cannot pull", || {
        let reason = cluster.field("pod/apache-http-2", "{.status.containerStatuses[0].state.waiting.reason}");
        reason == "ErrImagePull" || reason == "ImagePullBackOff"
    });
    cluster.kubectl(&["set", "image", "statefulset/apache-http", "httpd=test.local/httpd:1"]);
    cluster.kubectl(&["rollout", "status", "statefulset/apache-http", "--timeout=120s"]);

    let before = uids(&cluster);
    let mut set: serde_json::Value =
        serde_json::from_str(&cluster.kubectl(&["get", "statefulset", "apache-http", "-o", "json"])).expect("JSON");
    set["metadata"] = serde_json::json!({"name": "apache-http"});
    set["status"] = serde_json::Value::Null;
    cluster.kubectl(&["delete", "statefulset", "apache-http", "--cascade=orphan"]);
    assert_eq!(uids(&cluster), before, "the pods run on");
    cluster.apply(&set.to_string());
    settled(&cluster, "3");
    cluster.eventually("the new set owns the pods", || {
        let owner = cluster.field("statefulset/apache-http", "{.metadata.uid}");
        !owner.is_empty()
            && (0..3)
                .all(|n| cluster.field(&format!("pod/apache-http-{n}"), "{.metadata.ownerReferences[0].uid}") == owner)
    });
    assert_eq!(uids(&cluster), before, "S10: adopted, not made again");
    let restarts =
        cluster.kubectl(&["get", "pods", "-o", "jsonpath={.items[*].status.containerStatuses[0].restartCount}"]);
    assert_eq!(restarts.trim(), "0 0 0");
    cluster.kubectl(&["delete", "statefulset", "apache-http"]);
    cluster.eventually("the pods are gone", || names(&cluster, "pods").is_empty());
    let claims = cluster.kubectl(&["get", "pvc", "--no-headers"]);
    assert_eq!(claims.lines().filter(|line| line.contains("Bound")).count(), 3, "{claims}");
    cluster.no_promise_is_broken();
}
