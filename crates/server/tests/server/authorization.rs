//! X1 through the real server: roles and bindings give what they say, at once, and nobody gives what they do not have.

use mainstay_api::kinds;
use mainstay_client::{Client, Error, ListOptions};
use mainstay_server::{Running, start};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::pressure::{http2, send, text, tls};
use super::{admin, bearer, client, config};

/// A service account of the namespace `default`, and a client that is it.
async fn account(server: &Running, name: &str) -> Client {
    let admin = admin(server);
    let object = json!({ "metadata": { "name": name } });
    admin.create(&kinds::SERVICE_ACCOUNT, "default", &object).await.expect("an account");
    let request = json!({ "spec": { "expirationSeconds": 3600 } });
    let issued = admin.create_sub(&kinds::SERVICE_ACCOUNT, "default", name, "token", &request).await.expect("issued");
    bearer(server, issued["status"]["token"].as_str().expect("a token"))
}

fn role(name: &str, verbs: &[&str], resources: &[&str]) -> Value {
    json!({ "metadata": { "name": name }, "rules": [{ "verbs": verbs, "apiGroups": [""], "resources": resources }] })
}

fn binding(name: &str, role: (&str, &str), account: &str) -> Value {
    json!({
        "metadata": { "name": name },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": role.0, "name": role.1 },
        "subjects": [{ "kind": "ServiceAccount", "name": account, "namespace": "default" }],
    })
}

fn refusal<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    let error = result.expect_err("refused");
    assert_eq!(error.code(), Some(403), "{error}");
    error.to_string()
}

#[tokio::test]
async fn x1_a_binding_gives_its_role_where_it_is_from_the_answer_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = start(config(folder.path())).await.expect("started");
    let (admin, reader) = (admin(&server), account(&server, "reader").await);
    let options = ListOptions::default();
    let list = |namespace: &'static str| reader.list(&kinds::POD, namespace, &options);
    refusal(list("default").await);

    admin.create(&kinds::ROLE_BINDING, "default", &binding("b", ("Role", "r"), "reader")).await.expect("bound");
    let why = refusal(list("default").await);
    let wanted = r#"cannot list resource "pods" in API group "" in the namespace "default": RBAC: role.rbac.authorization.k8s.io "r" not found"#;
    assert!(why.contains(wanted), "{why}");

    admin.create(&kinds::ROLE, "default", &role("r", &["get", "list"], &["pods"])).await.expect("a role");
    list("default").await.expect("allowed");
    refusal(list("kube-system").await);
    refusal(list("").await);
    refusal(reader.delete(&kinds::POD, "default", "a", &json!({})).await);
    admin.delete(&kinds::ROLE, "default", "r", &json!({})).await.expect("deleted");
    refusal(list("default").await);

    // The cluster's own roles: `view` reads all but secrets, everywhere that it is bound.
    admin
        .create(&kinds::CLUSTER_ROLE_BINDING, "", &binding("v", ("ClusterRole", "view"), "reader"))
        .await
        .expect("bound");
    wait_for_view(&admin).await;
    list("").await.expect("allowed");
    refusal(reader.list(&kinds::SECRET, "default", &ListOptions::default()).await);
    reader.get(&kinds::NAMESPACE, "", "kube-system").await.expect("allowed");
    admin.delete(&kinds::CLUSTER_ROLE_BINDING, "", "v", &json!({})).await.expect("deleted");
    refusal(list("").await);
    server.shutdown().await;
}

/// Waits until the controller has brought the rules of `view` together.
async fn wait_for_view(admin: &Client) {
    let options = ListOptions { field_selector: "metadata.name=view".into(), ..ListOptions::default() };
    let mut informer = mainstay_client::Informer::new(admin.clone(), &kinds::CLUSTER_ROLE, "", options);
    loop {
        if let mainstay_client::Notice::Put(_, role) = informer.next().await
            && role["rules"].as_array().is_some_and(|rules| rules.len() > 5)
        {
            return;
        }
    }
}

#[tokio::test]
async fn x1_nobody_gives_what_they_do_not_have() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = start(config(folder.path())).await.expect("started");
    let (admin, writer) = (admin(&server), account(&server, "writer").await);
    let rules = json!({
        "metadata": { "name": "rbac" },
        "rules": [
            { "verbs": ["*"], "apiGroups": ["rbac.authorization.k8s.io"],
                "resources": ["roles", "rolebindings", "clusterroles"] },
            { "verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods"] },
        ],
    });
    // `*` would be `escalate` and `bind` too.
    let mut rules = rules;
    rules["rules"][0]["verbs"] = json!(["get", "create", "update", "patch"]);
    admin.create(&kinds::CLUSTER_ROLE, "", &rules).await.expect("a role");
    admin
        .create(&kinds::CLUSTER_ROLE_BINDING, "", &binding("rbac", ("ClusterRole", "rbac"), "writer"))
        .await
        .expect("bound");
    writer.create(&kinds::ROLE, "default", &role("own", &["get"], &["pods"])).await.expect("what it has");
    let why = refusal(writer.create(&kinds::ROLE, "default", &role("more", &["get", "delete"], &["pods"])).await);
    let wanted = concat!(
        r#"roles.rbac.authorization.k8s.io "more" is forbidden: user "system:serviceaccount:default:writer" "#,
        r#"(groups=["system:serviceaccounts" "system:serviceaccounts:default" "system:authenticated"]) "#,
        "is attempting to grant RBAC permissions not currently held:\n",
        r#"{APIGroups:[""], Resources:["pods"], Verbs:["delete"]}"#
    );
    assert!(why.contains(wanted), "{why}");
    let patch = json!({ "rules": role("", &["delete"], &["pods"])["rules"] });
    let patched = writer.patch(&kinds::ROLE, "default", "own", "", mainstay_client::PatchType::Merge, &patch).await;
    refusal(patched);
    let labels = json!({ "metadata": { "finalizers": ["example.org/held"] } });
    let patched = writer.patch(&kinds::ROLE, "default", "own", "", mainstay_client::PatchType::Merge, &labels).await;
    patched.expect("nothing is given");
    refusal(writer.create(&kinds::ROLE_BINDING, "default", &binding("a", ("ClusterRole", "admin"), "writer")).await);
    writer
        .create(&kinds::ROLE_BINDING, "default", &binding("own", ("Role", "own"), "writer"))
        .await
        .expect("what it has");
    let aggregated = json!({
        "metadata": { "name": "sum" },
        "aggregationRule": { "clusterRoleSelectors": [{ "matchLabels": { "a": "b" } }] },
    });
    let why = refusal(writer.create(&kinds::CLUSTER_ROLE, "", &aggregated).await);
    assert!(why.contains("must have cluster-admin privileges to use the aggregationRule"), "{why}");

    let bind = json!({ "op": "add", "path": "/rules/-", "value": {
        "verbs": ["bind"], "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"],
            "resourceNames": ["admin"],
    } });
    let more =
        admin.patch(&kinds::CLUSTER_ROLE, "", "rbac", "", mainstay_client::PatchType::Json, &json!([bind])).await;
    more.expect("may bind admin");
    writer
        .create(&kinds::ROLE_BINDING, "default", &binding("a", ("ClusterRole", "admin"), "writer"))
        .await
        .expect("may bind it");
    server.shutdown().await;
}

#[tokio::test]
async fn x1_default_roles_are_brought_up_to_date_at_a_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = start(config(folder.path())).await.expect("started");
    let client = admin(&server);
    let patch = |name: &'static str, patch: Value| {
        let client = client.clone();
        async move {
            let patched = client.patch(&kinds::CLUSTER_ROLE, "", name, "", mainstay_client::PatchType::Merge, &patch);
            patched.await.expect("patched");
        }
    };
    patch("system:discovery", json!({ "rules": [] })).await;
    let own = json!({ "metadata": { "annotations": { "rbac.authorization.kubernetes.io/autoupdate": "false" } },
        "rules": [] });
    patch("system:kube-dns", own).await;
    client.delete(&kinds::CLUSTER_ROLE_BINDING, "", "system:basic-user", &json!({})).await.expect("deleted");
    server.shutdown().await;
    let server = start(config(folder.path())).await.expect("started again");
    let client = admin(&server);
    let role = client.get(&kinds::CLUSTER_ROLE, "", "system:discovery").await.expect("there");
    assert_eq!(role["rules"].as_array().map(Vec::len), Some(11), "{role}");
    let left = client.get(&kinds::CLUSTER_ROLE, "", "system:kube-dns").await.expect("there");
    assert_eq!(left["rules"], json!([]));
    client.get(&kinds::CLUSTER_ROLE_BINDING, "", "system:basic-user").await.expect("made again");
    server.shutdown().await;
}

#[tokio::test]
async fn x1_what_a_requests_verb_does_not_say_is_asked_for_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = start(config(folder.path())).await.expect("started");
    let admin = admin(&server);
    let rules = json!({ "metadata": { "name": "r" }, "rules": [
        { "verbs": ["get", "patch"], "apiGroups": [""], "resources": ["configmaps"] },
        { "verbs": ["get"], "apiGroups": [""], "resources": ["pods/exec", "pods/attach", "pods/portforward"] },
        { "verbs": ["list"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["mine"] },
    ] });
    admin.create(&kinds::ROLE, "default", &rules).await.expect("a role");
    let binding = json!({ "metadata": { "name": "r" }, "subjects": [{ "kind": "User", "name": "jürgen" }],
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r" } });
    admin.create(&kinds::ROLE_BINDING, "default", &binding).await.expect("bound");
    let mut sender = http2(&server).await;
    let base = "/api/v1/namespaces/default";
    // Made by nobody who may only patch, whatever the patch is called; changed by them, once it is there.
    let maps = format!("{base}/configmaps");
    let apply = format!("{maps}/a?fieldManager=t");
    let object = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":{"a":"b"}}"#;
    let of_jurgen = [("impersonate-user", "jürgen"), ("content-type", "application/apply-patch+yaml")];
    let refused = send(&mut sender, &server, http::Method::PATCH, &apply, &of_jurgen, object).await;
    assert_eq!(refused.status(), 403);
    let why = text(refused).await;
    assert!(why.contains(r#"cannot create resource \"configmaps\""#), "{why}");
    admin.create(&kinds::CONFIG_MAP, "default", &json!({ "metadata": { "name": "a" } })).await.expect("made");
    let applied = send(&mut sender, &server, http::Method::PATCH, &apply, &of_jurgen, object).await;
    assert_eq!(applied.status(), 200);
    for stream in ["exec?command=id", "attach", "portforward"] {
        let path = format!("{base}/pods/p/{stream}");
        let refused = send(&mut sender, &server, http::Method::GET, &path, &of_jurgen[..1], "").await;
        assert_eq!(refused.status(), 403, "{stream}");
        let why = text(refused).await;
        assert!(why.contains("cannot create resource"), "{stream}: {why}");
    }
    // A list of one name is of that name, however the selector is written.
    for (selector, code) in [
        ("metadata.name%3Dmine", 200),
        ("metadata.name%3Dother", 403),
        ("metadata.namespace%21%3Dx%5C%2Cmetadata.name%3Dmine", 403),
    ] {
        let path = format!("{base}/secrets?fieldSelector={selector}");
        let listed = send(&mut sender, &server, http::Method::GET, &path, &of_jurgen[..1], "").await;
        assert_eq!(listed.status(), code, "{selector}");
    }
    // Whose name is no text is not the sender: the sender is an administrator here.
    let path = format!("https://{}{base}/secrets", server.addr);
    let request = http::Request::get(path).header("impersonate-user", &b"j\xfcrgen"[..]);
    let request = request.body(http_body_util::Full::new(bytes::Bytes::new())).expect("a request");
    assert_eq!(sender.send_request(request).await.expect("an answer").status(), 400);
    server.shutdown().await;
}

#[tokio::test]
async fn x1_who_may_only_read_through_a_nodes_proxy_opens_no_stream_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = start(config(folder.path())).await.expect("started");
    let admin = admin(&server);
    let node = json!({ "metadata": { "name": "n" }, "status": { "addresses": [{ "type": "InternalIP",
        "address": "127.0.0.1" }], "daemonEndpoints": { "kubeletEndpoint": { "Port": 1 } } } });
    admin.create(&kinds::NODE, "", &node).await.expect("a node");
    let rules = |verbs: &[&str]| {
        json!({ "metadata": { "name": "r" }, "rules": [
            { "verbs": verbs, "apiGroups": [""], "resources": ["nodes/proxy"] }] })
    };
    admin.create(&kinds::CLUSTER_ROLE, "", &rules(&["get"])).await.expect("a role");
    let binding = json!({ "metadata": { "name": "r" }, "subjects": [{ "kind": "User", "name": "joe" }],
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "r" } });
    admin.create(&kinds::CLUSTER_ROLE_BINDING, "", &binding).await.expect("bound");
    let ask = async |path: &str, upgrade: &str| {
        let head = format!(
            "GET /api/v1/nodes/{path} HTTP/1.1\r\nHost: {}\r\nImpersonate-User: joe\r\n{upgrade}\r\n",
            server.addr
        );
        let mut stream = tls(&server, b"http/1.1", true).await;
        stream.write_all(head.as_bytes()).await.expect("asked");
        let mut answer = Vec::new();
        while !answer.trim_ascii_end().ends_with(b"}") && stream.read_buf(&mut answer).await.is_ok_and(|n| n > 0) {}
        String::from_utf8_lossy(&answer).into_owned()
    };
    let websocket = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                     Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
    let spdy = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n";
    for (path, upgrade) in [
        ("n/proxy/exec/default/p/c?command=id&output=1", websocket),
        ("n/proxy/exec/default/p/c?command=id&output=1", spdy),
        ("n/proxy/%65xec/default/p/c?command=id&output=1", websocket),
        ("n/proxy/attach/default/p/c?output=1", websocket),
        ("n:1/proxy/portForward/default/p", websocket),
    ] {
        let answer = ask(path, upgrade).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{path}: {answer}");
        assert!(answer.contains(r#"cannot create resource \"nodes/proxy\""#), "{path}: {answer}");
    }
    // What is only read is passed on; nobody is there.
    let read = ask("n/proxy/metrics", "Connection: close\r\n").await;
    assert!(read.starts_with("HTTP/1.1 503"), "{read}");
    admin.update(&kinds::CLUSTER_ROLE, "", "r", "", &rules(&["get", "create"])).await.expect("more");
    let opened = ask("n/proxy/exec/default/p/c?command=id&output=1", websocket).await;
    assert!(opened.starts_with("HTTP/1.1 503"), "{opened}");
    server.shutdown().await;
}

#[tokio::test]
async fn m4_a_node_sees_no_pod_of_another_by_its_path_or_by_a_selector_that_only_looks_like_its_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = start(config(folder.path())).await.expect("started");
    let pod = json!({ "metadata": { "name": "p" }, "spec": { "nodeName": "n2",
        "containers": [{ "name": "c", "image": "i", "env": [{ "name": "A", "value": "hidden" }] }] } });
    admin(&server).create(&kinds::POD, "default", &pod).await.expect("a pod");
    let node = client(&server.node.as_ref().expect("a node").kubeconfig);
    let base = "/api/v1/namespaces/default/pods";
    let own = "fieldSelector=spec.nodeName%3Dn1";
    for path in [
        format!("{base}/p?watch=1&timeoutSeconds=1&{own}"),
        format!("/api/v1/watch/namespaces/default/pods/p?timeoutSeconds=1&{own}"),
        "/api/v1/pods?fieldSelector=metadata.namespace%21%3Dx%5C%2Cspec.nodeName%3Dn1".to_owned(),
    ] {
        assert_eq!(node.get_text(&path).await.expect_err(&path).code(), Some(403), "{path}");
    }
    // It learns that a name is another node's by now, and nothing of that one.
    for own in [own, "fieldSelector=metadata.name%3Dp%2Cspec.nodeName%3Dn1"] {
        assert!(!node.get_text(&format!("{base}?{own}")).await.expect("its own").contains("\"name\":\"p\""), "{own}");
    }
    // What a watch of one object selects by is heeded by everybody's.
    let watched = admin(&server).get_text(&format!("{base}/p?watch=1&timeoutSeconds=1&{own}")).await.expect("watched");
    assert!(!watched.contains("hidden"), "{watched}");
    server.shutdown().await;
}

#[tokio::test]
async fn m4_a_node_gets_tokens_only_for_what_its_pods_volumes_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = start(config(folder.path())).await.expect("started");
    let admin = admin(&server);
    let pod = json!({ "metadata": { "name": "p" }, "spec": { "nodeName": "n1", "automountServiceAccountToken": false,
        "containers": [{ "name": "c", "image": "i" }], "volumes": [{ "name": "v", "projected": { "sources": [
            { "serviceAccountToken": { "path": "t", "audience": "vault" } }] } }] } });
    let pod = admin.create(&kinds::POD, "default", &pod).await.expect("a pod");
    let node = client(&server.node.as_ref().expect("a node").kubeconfig);
    let token = |audiences: &[&str]| {
        let request = json!({ "spec": { "audiences": audiences, "expirationSeconds": 3600, "boundObjectRef": {
            "kind": "Pod", "apiVersion": "v1", "name": "p", "uid": pod["metadata"]["uid"] } } });
        let node = node.clone();
        async move {
            let asked = node.create_sub(&kinds::SERVICE_ACCOUNT, "default", "default", "token", &request).await;
            asked.map(|_| ())
        }
    };
    token(&["vault"]).await.expect("its own");
    for beyond in [&["sts.example"][..], &["vault", "sts.example"], &[]] {
        refusal(token(beyond).await);
    }
    // What an administrator lets nodes ask for.
    let role = json!({ "metadata": { "name": "sts" }, "rules": [{ "apiGroups": [""], "resources": ["sts.example"],
        "verbs": ["request-serviceaccounts-token-audience"] }] });
    admin.create(&kinds::CLUSTER_ROLE, "", &role).await.expect("a role");
    let binding = json!({ "metadata": { "name": "sts" }, "subjects": [{ "kind": "Group", "name": "system:nodes" }],
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "sts" } });
    admin.create(&kinds::CLUSTER_ROLE_BINDING, "", &binding).await.expect("bound");
    token(&["sts.example"]).await.expect("allowed");
    server.shutdown().await;
}
