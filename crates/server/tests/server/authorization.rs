//! X1 through the real server: roles and bindings give what they say, at once, and nobody gives what they do not have.

use mainstay_api::kinds;
use mainstay_client::{Client, Error, ListOptions};
use mainstay_server::{Running, start};
use serde_json::{Value, json};

use super::{admin, bearer, config};

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
