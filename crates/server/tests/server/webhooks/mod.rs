//! Webhooks through the real server: who is asked what, what their answers do, and what it costs when there are none,
//! or only wrong or late ones. On loopback.

mod conversion;
mod hook;
mod policies;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hook::{Hook, Says, configuration};
use mainstay_api::kinds::{
    CONFIG_MAP, EVENT, HORIZONTAL_POD_AUTOSCALER_V1, MUTATING_WEBHOOK_CONFIGURATION, NAMESPACE, POD, SECRET, SERVICE,
    STATEFUL_SET, VALIDATING_WEBHOOK_CONFIGURATION,
};
use mainstay_client::{Client, Error, ListOptions, PatchType};
use mainstay_server::{Running, start};
use serde_json::{Value, json};

use crate::{admin, config};

/// A server in a folder of its own, and its administrator.
async fn server() -> (tempfile::TempDir, Running, Client) {
    let folder = tempfile::tempdir().expect("a folder");
    let server = start(config(folder.path())).await.expect("started");
    let admin = admin(&server);
    (folder, server, admin)
}

async fn mutating(client: &Client, name: &str, webhooks: Vec<Value>) {
    let configuration = configuration(name, webhooks);
    client.create(&MUTATING_WEBHOOK_CONFIGURATION, "", &configuration).await.expect("a configuration");
}

async fn validating(client: &Client, name: &str, webhooks: Vec<Value>) {
    let configuration = configuration(name, webhooks);
    client.create(&VALIDATING_WEBHOOK_CONFIGURATION, "", &configuration).await.expect("a configuration");
}

fn map(name: &str) -> Value {
    json!({ "metadata": { "name": name }, "data": { "a": "1" } })
}

fn pod(name: &str) -> Value {
    json!({ "metadata": { "name": name }, "spec": { "containers": [{ "name": "c", "image": "i" }] } })
}

fn refused(answer: Result<Value, Error>) -> (u16, String) {
    let error = answer.expect_err("refused");
    (error.code().expect("a status"), error.to_string())
}

#[tokio::test]
async fn x1_a_webhook_changes_what_is_written_and_another_refuses_it() {
    let (_folder, server, client) = server().await;
    let injector = Hook::start(|_| {
        Says::patch(json!([
            { "op": "add", "path": "/metadata/labels", "value": { "seen": "yes" } },
            { "op": "add", "path": "/spec/containers/-", "value": { "name": "sidecar", "image": "s" } },
        ]))
    })
    .await;
    let judge = Hook::start(|request| match request["object"]["metadata"]["name"].as_str() {
        Some("bad") => Says::no(json!({ "code": 403, "reason": "Forbidden", "message": "not today" })),
        _ => Says::Response(json!({ "allowed": true, "warnings": ["mind the gap"] })),
    })
    .await;
    let hook = injector.webhook(
        "inject.x.io",
        "/pods",
        json!({ "rules": [{ "operations": ["CREATE"],
        "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"] }] }),
    );
    mutating(&client, "inject", vec![hook]).await;
    validating(&client, "judge", vec![judge.webhook("judge.x.io", "/pods", json!({}))]).await;

    let made = client.create(&POD, "default", &pod("good")).await.expect("allowed");
    assert_eq!(made["metadata"]["labels"]["seen"], "yes");
    let containers = made["spec"]["containers"].as_array().expect("containers");
    assert_eq!(containers.len(), 2);
    // What was injected has defaults, and the token that every container has: built-in plugins have seen it.
    assert_eq!(containers[1]["terminationMessagePath"], "/dev/termination-log");
    assert_eq!(containers[0]["volumeMounts"], containers[1]["volumeMounts"]);
    assert_eq!(made["spec"]["volumes"].as_array().map(Vec::len), Some(1));

    let review = &injector.requests()[0];
    assert_eq!((&review["operation"], &review["kind"]["kind"]), (&json!("CREATE"), &json!("Pod")));
    assert_eq!(review["userInfo"]["username"], "kubernetes-admin");
    assert_eq!((&review["namespace"], &review["name"]), (&json!("default"), &json!("good")));
    assert_eq!(review["options"]["kind"], "CreateOptions");
    assert!(review["oldObject"].is_null() && review["object"]["spec"]["containers"][0]["name"] == "c");
    assert_eq!(judge.requests()[0]["object"]["metadata"]["labels"]["seen"], "yes", "judged as it will be written");

    let (code, message) = refused(client.create(&POD, "default", &pod("bad")).await);
    assert_eq!(code, 403);
    assert!(message.contains(r#"admission webhook "judge.x.io" denied the request: not today"#), "{message}");
    assert_eq!(client.get(&POD, "default", "bad").await.expect_err("A9").code(), Some(404));
    // Configurations themselves are never asked about, so a mistake can be mended.
    client.delete(&MUTATING_WEBHOOK_CONFIGURATION, "", "inject", &json!({})).await.expect("deleted");
    let plain = client.create(&POD, "default", &pod("plain")).await.expect("allowed");
    assert_eq!(plain["spec"]["containers"].as_array().map(Vec::len), Some(1));
    server.shutdown().await;
}

#[tokio::test]
async fn a_webhook_that_cannot_be_asked_means_what_its_policy_says() {
    let (_folder, server, client) = server().await;
    // Nobody listens there any more.
    let dead = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let hook = Hook::start(|_| Says::yes()).await;
    let at =
        |policy: &str| json!({ "failurePolicy": policy, "clientConfig": { "url": format!("https://{dead}/review") } });
    mutating(&client, "open", vec![hook.webhook("open.x.io", "/configmaps", at("Ignore"))]).await;
    client.create(&CONFIG_MAP, "default", &map("a")).await.expect("ignored");
    validating(&client, "closed", vec![hook.webhook("closed.x.io", "/configmaps", at("Fail"))]).await;
    let (code, message) = refused(client.create(&CONFIG_MAP, "default", &map("b")).await);
    assert_eq!(code, 500);
    let wanted = format!(
        "Internal error occurred: failed calling webhook \"closed.x.io\": failed to call webhook: Post \
            \"https://{dead}/review?timeout=10s\": dial tcp {dead}"
    );
    assert!(message.contains(&wanted), "{message}");
    client
        .create(&SECRET, "default", &json!({ "metadata": { "name": "s" } }))
        .await
        .expect("nobody asked about secrets");

    // Somebody else's certificate.
    let stranger = Hook::start(|_| Says::yes()).await;
    let config = json!({ "clientConfig": { "url": stranger.url, "caBundle": hook.bundle } });
    client.delete(&VALIDATING_WEBHOOK_CONFIGURATION, "", "closed", &json!({})).await.expect("deleted");
    validating(&client, "stranger", vec![hook.webhook("stranger.x.io", "/configmaps", config)]).await;
    let (code, message) = refused(client.create(&CONFIG_MAP, "default", &map("c")).await);
    assert!(code == 500 && message.contains("failed to verify certificate"), "{message}");
    assert!(stranger.requests().is_empty());
    server.shutdown().await;
}

#[tokio::test]
async fn x7_a_webhook_that_never_answers_holds_up_only_what_it_was_asked_about() {
    let (_folder, server, client) = server().await;
    let silent = Hook::start(|_| Says::Silence).await;
    let terms = json!({ "timeoutSeconds": 2 });
    validating(&client, "silent", vec![silent.webhook("silent.x.io", "/configmaps", terms)]).await;
    let large = json!({ "metadata": { "name": "x" }, "data": { "a": "x".repeat(100_000) } });
    let waiting: Vec<_> = (0..32)
        .map(|index| {
            let (client, mut large) = (client.clone(), large.clone());
            large["metadata"]["name"] = format!("x{index}").into();
            tokio::spawn(async move { client.create(&CONFIG_MAP, "default", &large).await })
        })
        .collect();
    while silent.requests().len() < 32 {
        tokio::task::yield_now().await;
    }
    // All of them wait, and no thread with them: other large bodies have theirs.
    let begun = Instant::now();
    let secret = json!({ "metadata": { "name": "s" }, "stringData": { "a": "x".repeat(100_000) } });
    client.create(&SECRET, "default", &secret).await.expect("not asked about");
    let set = json!({ "metadata": { "name": "web" }, "spec": { "serviceName": "w", "replicas": 1,
        "selector": { "matchLabels": { "a": "b" } },
        "template": { "metadata": { "labels": { "a": "b" } }, "spec": {
            "containers": [{ "name": "c", "image": "i" }] } } } });
    client.create(&STATEFUL_SET, "default", &set).await.expect("not asked about");
    while client.get(&POD, "default", "web-0").await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(2), "controllers go on meanwhile");
    }
    for answer in waiting {
        let (code, message) = refused(answer.await.expect("joined"));
        assert!(code == 500 && message.contains("/review?timeout=2s\": context deadline exceeded"), "{message}");
    }
    server.shutdown().await;
}

#[tokio::test]
async fn x4_wrong_and_hostile_answers_break_nothing() {
    let (_folder, server, client) = server().await;
    let hook = Hook::start(|request| match request["name"].as_str().unwrap_or("") {
        "noise" => Says::Bytes(200, b"\xff\xfe{".to_vec()),
        "empty" => Says::Bytes(200, Vec::new()),
        "error" => Says::Bytes(503, b"overloaded".to_vec()),
        "endless" => Says::Bytes(200, vec![b' '; 4 << 20]),
        "elsewhere" => Says::patch(json!([
            { "op": "replace", "path": "/metadata/name", "value": "other" },
            { "op": "replace", "path": "/metadata/namespace", "value": "kube-system" },
            { "op": "add", "path": "/unknown", "value": { "deep": [1, 2, 3] } },
            { "op": "add", "path": "/data/b", "value": "2" },
        ])),
        "kind" => Says::patch(json!([{ "op": "replace", "path": "/kind", "value": "Secret" }])),
        "nothing" => Says::patch(json!([{ "op": "replace", "path": "", "value": 7 }])),
        "typed" => Says::patch(json!([{ "op": "replace", "path": "/data", "value": [1] }])),
        "missing" => Says::patch(json!([{ "op": "remove", "path": "/spec/containers/0" }])),
        "bomb" => Says::patch(Value::Array(
            (0..40).map(|_| json!({ "op": "copy", "from": "/data", "path": "/data/x" })).collect(),
        )),
        _ => Says::yes(),
    })
    .await;
    mutating(&client, "wrong", vec![hook.webhook("wrong.x.io", "/configmaps", json!({}))]).await;
    for (name, words) in [
        ("noise", "received invalid webhook response"),
        ("empty", "received invalid webhook response"),
        ("endless", "received invalid webhook response"),
        ("error", "overloaded"),
        ("nothing", "Internal error occurred"),
        ("kind", "Internal error occurred"),
        ("typed", "Internal error occurred"),
        ("missing", "Internal error occurred"),
        ("bomb", "Internal error occurred"),
    ] {
        let (code, message) = refused(client.create(&CONFIG_MAP, "default", &map(name)).await);
        assert!(code == 500 && message.contains(words), "{name}: {message}");
    }
    let made = client.create(&CONFIG_MAP, "default", &map("elsewhere")).await.expect("written where it was sent");
    assert_eq!((&made["metadata"]["name"], &made["metadata"]["namespace"]), (&json!("elsewhere"), &json!("default")));
    assert_eq!((&made["kind"], &made["data"]["b"]), (&json!("ConfigMap"), &json!("2")));
    assert!(made.get("unknown").is_none());
    client.create(&CONFIG_MAP, "default", &map("fine")).await.expect("the server is well");
    server.shutdown().await;
}

#[tokio::test]
async fn a8_what_is_written_is_what_the_webhook_saw() {
    let (_folder, server, client) = server().await;
    client.create(&CONFIG_MAP, "default", &map("a")).await.expect("made");
    let (other, calls) = (client.clone(), Arc::new(AtomicUsize::new(0)));
    // While it is asked the first time about the patch, somebody else writes (and is asked about too).
    let hook = Hook::start_async(move |request| {
        let (other, calls) = (other.clone(), calls.clone());
        async move {
            let is_first = request["object"]["data"]["mine"] == "1" && calls.fetch_add(1, Ordering::Relaxed) == 0;
            if is_first {
                let change = json!({ "data": { "theirs": "1" } });
                other.patch(&CONFIG_MAP, "default", "a", "", PatchType::Merge, &change).await.expect("written");
            }
            Says::yes()
        }
    })
    .await;
    validating(&client, "look", vec![hook.webhook("look.x.io", "/configmaps", json!({}))]).await;
    let change = json!({ "data": { "mine": "1" } });
    let done = client.patch(&CONFIG_MAP, "default", "a", "", PatchType::Merge, &change).await.expect("patched");
    assert_eq!(done["data"], json!({ "a": "1", "mine": "1", "theirs": "1" }));
    let last = hook.requests().pop().expect("asked");
    assert_eq!(last["oldObject"]["data"], json!({ "a": "1", "theirs": "1" }), "asked anew about what is replaced");
    assert_eq!(last["object"]["data"], done["data"]);
    server.shutdown().await;
}

#[tokio::test]
async fn controllers_are_clients_and_what_they_make_is_seen_by_webhooks() {
    let (_folder, server, client) = server().await;
    let hook = Hook::start(|request| match request["object"]["metadata"]["name"].as_str() {
        Some("no-0") => Says::no(json!({ "message": "no pods here" })),
        _ => Says::patch(json!([{ "op": "add", "path": "/metadata/annotations", "value": { "injected": "yes" } }])),
    })
    .await;
    let created = json!({ "rules": [{ "operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"],
        "resources": ["pods"] }] });
    mutating(&client, "inject", vec![hook.webhook("inject.x.io", "/pods", created)]).await;
    let set = |name: &str| {
        json!({ "metadata": { "name": name }, "spec": { "serviceName": "w", "replicas": 3,
            "podManagementPolicy": "Parallel",
            "selector": { "matchLabels": { "a": name } },
            "template": { "metadata": { "labels": { "a": name } }, "spec": {
                "containers": [{ "name": "c", "image": "i" }] } } } })
    };
    for name in ["web", "no"] {
        client.create(&STATEFUL_SET, "default", &set(name)).await.expect("made");
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    let (mut pods, mut told) = (Vec::new(), false);
    while pods.len() < 3 || !told {
        assert!(Instant::now() < deadline, "{} pods, told: {told}", pods.len());
        let of_web = ListOptions { label_selector: "a=web".into(), ..ListOptions::default() };
        let list = client.list(&POD, "default", &of_web).await.expect("listed");
        pods = list["items"].as_array().cloned().unwrap_or_default();
        let events = client.list(&EVENT, "default", &ListOptions::default()).await.expect("listed").to_string();
        told = events.contains(r#"admission webhook \"inject.x.io\" denied the request: no pods here"#)
            || events.contains(r#"denied the request: no pods here"#);
        tokio::task::yield_now().await;
    }
    for pod in &pods {
        assert_eq!(pod["metadata"]["annotations"]["injected"], "yes");
    }
    let user = &hook.requests()[0]["userInfo"];
    assert_eq!(user["username"], "system:serviceaccount:kube-system:statefulset-controller");
    assert!(user["groups"].to_string().contains("system:serviceaccounts:kube-system"));
    server.shutdown().await;
}

#[tokio::test]
async fn who_wants_to_see_later_changes_is_asked_again() {
    let (_folder, server, client) = server().await;
    let add = |key: &'static str| {
        move |request: &Value| {
            let seen = request["object"]["data"].as_object().map_or(0, serde_json::Map::len);
            Says::patch(json!([{ "op": "add", "path": format!("/data/{key}"), "value": seen.to_string() }]))
        }
    };
    let (first, never, second) =
        (Hook::start(add("first")).await, Hook::start(add("never")).await, Hook::start(add("second")).await);
    let again = json!({ "reinvocationPolicy": "IfNeeded" });
    let webhooks = vec![
        first.webhook("first.x.io", "/configmaps", again),
        never.webhook("never.x.io", "/configmaps", json!({})),
        second.webhook("second.x.io", "/configmaps", json!({})),
    ];
    mutating(&client, "order", webhooks).await;
    let made = client.create(&CONFIG_MAP, "default", &map("a")).await.expect("made");
    assert_eq!(made["data"], json!({ "a": "1", "first": "4", "never": "2", "second": "3" }));
    let counts = [&first, &never, &second].map(|hook| hook.requests().len());
    assert_eq!(counts, [2, 1, 1]);
    server.shutdown().await;
}

#[tokio::test]
async fn every_verb_and_subresource_is_asked_about_as_upstream_does() {
    let (_folder, server, client) = server().await;
    let hook = Hook::start(|request| match request["operation"].as_str() {
        Some("CONNECT") => Says::no(json!({ "message": "no shells" })),
        _ => Says::yes(),
    })
    .await;
    let all = json!({ "rules": [{ "operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"],
        "resources": ["*/*"] }],
        "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "seen" } } });
    client.create(&NAMESPACE, "", &json!({ "metadata": { "name": "seen" } })).await.expect("made");
    validating(&client, "all", vec![hook.webhook("all.x.io", "/pods", all)]).await;
    let set = json!({ "metadata": { "name": "web" }, "spec": { "serviceName": "w", "replicas": 0,
        "selector": { "matchLabels": { "a": "b" } },
        "template": { "metadata": { "labels": { "a": "b" } }, "spec": {
            "containers": [{ "name": "c", "image": "i" }] } } } });
    client.create(&STATEFUL_SET, "seen", &set).await.expect("made");
    let scale = json!({ "spec": { "replicas": 0 }, "metadata": { "labels": {} } });
    client.patch(&STATEFUL_SET, "seen", "web", "scale", PatchType::Merge, &scale).await.expect("scaled");
    client.create(&POD, "seen", &pod("p")).await.expect("made");
    let status = json!({ "status": { "phase": "Pending", "message": "m" } });
    client.patch(&POD, "seen", "p", "status", PatchType::Merge, &status).await.expect("patched");
    let shell = client.get_text("/api/v1/namespaces/seen/pods/p/exec?command=sh&command=-c&stdin=true").await;
    let shell = shell.expect_err("refused");
    assert!(shell.to_string().contains(r#"admission webhook "all.x.io" denied the request: no shells"#), "{shell}");
    let eviction = json!({ "metadata": { "name": "p" } });
    client.create_sub(&POD, "seen", "p", "eviction", &eviction).await.expect("evicted");
    client.create(&CONFIG_MAP, "seen", &map("c")).await.expect("made");
    client.delete(&CONFIG_MAP, "seen", "c", &json!({ "propagationPolicy": "Background" })).await.expect("deleted");
    client.create(&CONFIG_MAP, "default", &map("c")).await.expect("in another namespace");

    let mut by_admin: Vec<Value> =
        hook.requests().into_iter().filter(|asked| asked["userInfo"]["username"] == "kubernetes-admin").collect();
    let mut shown: Vec<String> = by_admin
        .iter()
        .map(|asked| {
            let text = |field: &str| asked[field].as_str().unwrap_or("").to_owned();
            let resource = asked["resource"]["resource"].as_str().unwrap_or("").to_owned();
            format!(
                "{} {resource}/{} {}",
                text("operation"),
                text("subResource"),
                asked["kind"]["kind"].as_str().unwrap_or("")
            )
        })
        .collect();
    // The scheduler writes the pod's status too: then the question is another one, and is asked anew.
    shown.dedup();
    let wanted = [
        "CREATE statefulsets/ StatefulSet",
        "UPDATE statefulsets/scale Scale",
        "CREATE pods/ Pod",
        "UPDATE pods/status Pod",
        "CONNECT pods/exec PodExecOptions",
        "CREATE pods/eviction Eviction",
        "CREATE configmaps/ ConfigMap",
        "DELETE configmaps/ ConfigMap",
    ];
    assert_eq!(shown, wanted);
    by_admin.dedup_by_key(|asked| {
        (asked["operation"].to_string(), asked["kind"].to_string(), asked["subResource"].to_string())
    });
    assert_eq!(by_admin[4]["object"]["command"], json!(["sh", "-c"]));
    assert_eq!(by_admin[4]["object"]["stdin"], true);
    assert!(by_admin[7]["object"].is_null() && by_admin[7]["oldObject"]["data"]["a"] == "1");
    assert_eq!(by_admin[7]["options"]["propagationPolicy"], "Background");
    server.shutdown().await;
}

#[tokio::test]
async fn a_webhook_sees_the_version_that_it_asked_for_and_a_dry_run_as_one() {
    let (_folder, server, client) = server().await;
    let hook = Hook::start(|request| {
        assert_eq!(request["object"]["apiVersion"], "autoscaling/v2");
        Says::patch(
            json!([{ "op": "replace", "path": "/spec/metrics/0/resource/target/averageUtilization", "value": 70 }]),
        )
    })
    .await;
    let newer = json!({ "rules": [{ "operations": ["CREATE"], "apiGroups": ["autoscaling"], "apiVersions": ["v2"],
        "resources": ["horizontalpodautoscalers"] }] });
    mutating(&client, "newer", vec![hook.webhook("newer.x.io", "/pods", newer)]).await;
    let scaler = json!({ "metadata": { "name": "s" }, "spec": { "maxReplicas": 3, "targetCPUUtilizationPercentage": 50,
        "scaleTargetRef": { "kind": "Deployment", "name": "d", "apiVersion": "apps/v1" } } });
    let made = client.create(&HORIZONTAL_POD_AUTOSCALER_V1, "default", &scaler).await.expect("made");
    assert_eq!(made["spec"]["targetCPUUtilizationPercentage"], 70);
    let asked = &hook.requests()[0];
    assert_eq!((&asked["kind"]["version"], &asked["requestKind"]["version"]), (&json!("v2"), &json!("v1")));

    let look = Hook::start(|_| Says::yes()).await;
    validating(&client, "look", vec![look.webhook("look.x.io", "/services", json!({}))]).await;
    let service = json!({ "metadata": { "name": "s" }, "spec": { "ports": [{ "port": 80 }] } });
    let path = "/api/v1/namespaces/default/services?dryRun=All&fieldManager=me";
    let tried = client.post(path, &service).await.expect("tried");
    let asked = look.requests().pop().expect("asked");
    assert_eq!((&asked["dryRun"], &asked["options"]["dryRun"]), (&json!(true), &json!(["All"])));
    assert_eq!(asked["options"]["fieldManager"], "me");
    // The same run of the verb is what is answered: one uid, one address.
    assert_eq!(asked["object"]["metadata"]["uid"], tried["metadata"]["uid"]);
    assert_eq!(asked["object"]["spec"]["clusterIP"], tried["spec"]["clusterIP"]);
    assert_eq!(client.get(&SERVICE, "default", "s").await.expect_err("only tried").code(), Some(404));
    server.shutdown().await;
}
