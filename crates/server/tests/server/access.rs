//! X1 through the real server: who gets in, and what they may do there. On loopback.

use mainstay_api::kinds;
use mainstay_client::{Client, ListOptions, WatchEvent};
use mainstay_server::{ServerConfig, StartError, start};
use serde_json::json;

use super::{admin, anonymous, bearer, client, config};

#[tokio::test]
async fn x1_everyone_gets_what_is_theirs_and_no_more() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = start(config(folder.path())).await.expect("started");
    let admin = admin(&server);
    let anyone = anonymous(&server);
    assert_eq!(anyone.get_text("/healthz").await.expect("public"), "ok");
    // As upstream: nobody is somebody too, who may look at what `system:public-info-viewer` shows, and no more.
    let refused = anyone.list(&kinds::NAMESPACE, "", &ListOptions::default()).await.expect_err("anonymous");
    assert_eq!(refused.code(), Some(403));
    assert!(refused.to_string().contains(r#"User "system:anonymous" cannot list resource "namespaces""#), "{refused}");
    assert_eq!(anyone.get_text("/version").await.map(|_| ()).map_err(|error| error.code()), Ok(()));
    for hidden in ["/api", "/apis", "/openapi/v2", "/metrics", "/livez/ping"] {
        assert_eq!(anyone.get_text(hidden).await.expect_err(hidden).code(), Some(403), "{hidden}");
    }
    let forged = bearer(&server, "eyJhbGciOiJub25lIn0.e30.");
    assert_eq!(forged.get_text("/api").await.expect_err("forged").code(), Some(401));

    let request = json!({ "spec": { "expirationSeconds": 3600 } });
    let issued =
        admin.create_sub(&kinds::SERVICE_ACCOUNT, "default", "default", "token", &request).await.expect("issued");
    let token = issued["status"]["token"].as_str().expect("a token").to_owned();
    let account = bearer(&server, &token);
    account.get_text("/apis").await.expect("discovery");
    let refused = account.list(&kinds::SECRET, "default", &ListOptions::default()).await.expect_err("not yet");
    assert_eq!(refused.code(), Some(403));
    assert!(
        refused
            .to_string()
            .contains(r#"User "system:serviceaccount:default:default" cannot list resource "secrets" in API group """#),
        "{refused}"
    );
    admin.delete(&kinds::SERVICE_ACCOUNT, "default", "default", &json!({})).await.expect("deleted");
    assert_eq!(account.get_text("/apis").await.expect_err("its account is gone").code(), Some(401));

    let node = client(&server.node.as_ref().expect("a node").kubeconfig);
    let of = |node: &str| ListOptions { field_selector: format!("spec.nodeName={node}"), ..ListOptions::default() };
    node.list(&kinds::POD, "", &of("n1")).await.expect("a kubelet reads its pods");
    for others in [of("n2"), ListOptions::default()] {
        assert_eq!(node.list(&kinds::POD, "", &others).await.expect_err("and no others").code(), Some(403), "M4");
    }
    let named = |name: &str| json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } });
    node.create(&kinds::NODE, "", &named("n1")).await.expect("its own Node");
    admin.create(&kinds::NODE, "", &named("n2")).await.expect("another");
    assert_eq!(node.delete(&kinds::NODE, "", "n2", &json!({})).await.expect_err("not its own").code(), Some(403));
    // One request removes no namespaces, whoever sends it.
    assert_eq!(admin.delete(&kinds::NAMESPACE, "", "", &json!({})).await.expect_err("a collection").code(), Some(405));
    let map = json!({ "metadata": { "name": "a" } });
    assert_eq!(node.create(&kinds::CONFIG_MAP, "default", &map).await.expect_err("not a kubelet's").code(), Some(403));
    server.shutdown().await;
}

/// Reviews a token, for some audiences: the answer's status.
async fn review(admin: &Client, token: &str, audiences: &[&str]) -> serde_json::Value {
    let review = json!({ "spec": { "token": token, "audiences": audiences } });
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    admin.post(path, &review).await.expect("reviewed")["status"].take()
}

#[tokio::test]
async fn x1_a_token_ends_with_what_it_is_bound_to() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = start(config(folder.path())).await.expect("started");
    let admin = admin(&server);
    let secret = json!({ "metadata": { "name": "s" } });
    let node = json!({ "metadata": { "name": "n9" } });
    let pod = json!({ "metadata": { "name": "p" }, "spec": { "containers": [{ "name": "c", "image": "i" }] } });
    let bindings = [(&kinds::SECRET, "default", secret), (&kinds::NODE, "", node), (&kinds::POD, "default", pod)];
    for (kind, namespace, object) in bindings {
        let name = object["metadata"]["name"].as_str().expect("a name").to_owned();
        admin.create(kind, namespace, &object).await.expect("made");
        let reference = json!({ "apiVersion": "v1", "kind": kind.kind, "name": name });
        let request = json!({ "spec": { "expirationSeconds": 3600, "boundObjectRef": reference } });
        let issued =
            admin.create_sub(&kinds::SERVICE_ACCOUNT, "default", "default", "token", &request).await.expect("issued");
        let token = issued["status"]["token"].as_str().expect("a token").to_owned();
        let account = bearer(&server, &token);
        account.get_text("/apis").await.expect("believed");
        admin.delete(kind, namespace, &name, &json!({ "gracePeriodSeconds": 0 })).await.expect("deleted");
        assert_eq!(account.get_text("/apis").await.expect_err(&kind.kind).code(), Some(401), "{}", kind.kind);
        assert!(review(&admin, &token, &[]).await["authenticated"].is_null(), "{}", kind.kind);
    }
    server.shutdown().await;
}

#[tokio::test]
async fn x1_a_token_is_for_its_audiences_and_a_review_for_those_asked() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = start(config(folder.path())).await.expect("started");
    let admin = admin(&server);
    let issued = async |audiences: &[&str]| {
        let request = json!({ "spec": { "audiences": audiences } });
        let answer = admin.create_sub(&kinds::SERVICE_ACCOUNT, "default", "default", "token", &request).await;
        answer.expect("issued")["status"]["token"].as_str().expect("a token").to_owned()
    };
    let (vault, own) = (issued(&["vault", "other"]).await, issued(&[]).await);
    assert_eq!(bearer(&server, &vault).get_text("/apis").await.expect_err("not ours").code(), Some(401));
    assert_eq!(review(&admin, &vault, &["vault", "x"]).await["audiences"], json!(["vault"]));
    for (token, audiences) in [(&vault, &[][..]), (&vault, &["x"]), (&own, &["vault"])] {
        let status = review(&admin, token, audiences).await;
        assert!(status["authenticated"].is_null() && status["error"].is_string(), "{status}");
    }
    assert_eq!(review(&admin, &own, &[]).await["authenticated"], true);
    server.shutdown().await;
}

#[tokio::test]
async fn x2_keys_are_their_owners_and_a_restart_keeps_them() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a folder");
    let first = start(config(folder.path())).await.expect("started");
    let in_use = start(config(folder.path())).await.err();
    assert!(matches!(in_use, Some(StartError::InUse(_))), "{in_use:?}");
    let (ca, admin) = (first.ca_pem.clone(), first.admin.identity.certificate.clone());
    let mut listen = config(folder.path().join("other").as_path());
    listen.listen = first.addr;
    assert!(matches!(start(listen).await.err(), Some(StartError::AddressInUse(_))));
    first.shutdown().await;
    for file in ["pki/ca.key", "pki/sa.key", "pki/server.key", "pki/admin.key", "kubeconfig", "node.kubeconfig"] {
        let mode = std::fs::metadata(folder.path().join(file)).expect(file).permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let second = start(config(folder.path())).await.expect("started again");
    assert_eq!((second.ca_pem.as_str(), second.admin.identity.certificate.as_str()), (ca.as_str(), admin.as_str()));
    second.shutdown().await;
}

#[tokio::test]
async fn a11_a_restart_with_other_addresses_or_without_the_keys_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let (data, aside) = (folder.path().join("data"), folder.path().join("aside"));
    let first = start(config(&data)).await.expect("started");
    let ca = first.ca_pem.clone();
    first.shutdown().await;
    let refused = async |config: ServerConfig| start(config).await.err().expect("refused").to_string();
    for (other, option) in [
        (ServerConfig { service_cidr: "10.97.0.0/16".into(), ..config(&data) }, "--service-cidr 10.96.0.0/16"),
        (ServerConfig { cluster_cidr: "10.128.0.0/9".into(), ..config(&data) }, "--cluster-cidr 10.244.0.0/16"),
        (ServerConfig { cluster_domain: "b.local".into(), ..config(&data) }, "--cluster-domain cluster.local"),
    ] {
        let said = refused(other).await;
        assert!(said.contains(option) && said.lines().count() == 1, "{said}");
    }
    let again = ServerConfig { service_cidr: "10.96.3.0/16".into(), ..config(&data) };
    start(again).await.expect("the same range by another of its addresses").shutdown().await;

    std::fs::rename(data.join("pki"), &aside).expect("moved away");
    let said = refused(config(&data)).await;
    assert!(said.contains("ca.crt, ca.key, sa.key") && said.contains("--new-keys"), "{said}");
    assert!(!data.join("pki/ca.key").exists(), "none was made");
    // One that is another cluster's.
    let other = start(config(&folder.path().join("other"))).await.expect("started");
    other.shutdown().await;
    std::fs::rename(folder.path().join("other/pki"), data.join("pki")).expect("put there");
    let said = refused(config(&data)).await;
    assert!(said.contains("the keys of another cluster"), "{said}");
    std::fs::remove_dir_all(data.join("pki")).expect("removed");
    std::fs::rename(&aside, data.join("pki")).expect("moved back");
    let meant = || ServerConfig { new_keys: true, ..config(&data) };
    for config in [config(&data), meant()] {
        let kept = start(config).await.expect("with its own keys");
        assert_eq!(kept.ca_pem, ca, "keys that are there are kept");
        kept.shutdown().await;
    }
    std::fs::remove_file(data.join("pki/ca.crt")).expect("removed");
    let new = start(meant()).await.expect("a person said so");
    assert_ne!(new.ca_pem, ca);
    assert!(data.join("pki.before-1/ca.key").exists(), "what was left of the old ones is kept");
    new.shutdown().await;
    start(config(&data)).await.expect("the new ones are the cluster's").shutdown().await;
}

#[tokio::test]
async fn whoever_follows_a_killed_instance_waits_until_the_kernel_has_let_go() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("store")).expect("a folder");
    let held = mainstay_store::Store::open(folder.path().join("store").as_path(), mainstay_store::Options::default())
        .expect("a store");
    let ends = async {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        drop(held);
    };
    let (started, ()) = tokio::join!(start(config(folder.path())), ends);
    started.expect("started").shutdown().await;
}

/// How many clients write and read at the same time, and how often each.
const CLIENTS: usize = 6;
const ROUNDS: usize = 25;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a5_who_has_seen_a_write_reads_nothing_older_and_a6_a_watch_goes_on_where_a_list_ends() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = start(config(folder.path())).await.expect("started");
    let version = |text: &str| text.parse::<u64>().expect("a number");
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..CLIENTS {
        // Each writes over one connection and reads over another.
        let (writes, reads) = (admin(&server), admin(&server));
        writers.spawn(async move {
            for round in 0..ROUNDS {
                let name = format!("w{writer}-{round}");
                let made = json!({ "metadata": { "name": name }, "data": { "round": round.to_string() } });
                let made = writes.create(&kinds::CONFIG_MAP, "default", &made).await.expect("made");
                let seen = version(mainstay_api::object::resource_version(&made));
                let list = reads.list(&kinds::CONFIG_MAP, "default", &ListOptions::default()).await.expect("listed");
                let listed = version(mainstay_api::object::resource_version(&list));
                let names =
                    list["items"].as_array().expect("items").iter().map(|item| item["metadata"]["name"].clone());
                assert!(listed >= seen && names.into_iter().any(|item| item == name), "A5: {name} at {listed}");
                if round % 3 == 0 {
                    let gone = writes.delete(&kinds::CONFIG_MAP, "default", &name, &json!({})).await;
                    gone.expect("deleted");
                    let missing = reads.get(&kinds::CONFIG_MAP, "default", &name).await.expect_err("A5: it is gone");
                    assert_eq!(missing.code(), Some(404));
                }
            }
        });
    }
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        let reads = admin(&server);
        readers.spawn(async move {
            let mut options = ListOptions::default();
            let list = reads.list(&kinds::CONFIG_MAP, "default", &options).await.expect("listed");
            let name = |object: &serde_json::Value| object["metadata"]["name"].as_str().expect("a name").to_owned();
            let mut known: std::collections::BTreeSet<String> =
                list["items"].as_array().expect("items").iter().map(name).collect();
            options.resource_version = mainstay_api::object::resource_version(&list).to_owned();
            let mut watch = reads.watch(&kinds::CONFIG_MAP, "default", &options).await.expect("watching");
            while !known.contains("the-last") {
                match watch.next().await.expect("an event").expect("more") {
                    WatchEvent::Put(object) => assert!(known.insert(name(&object)), "A6: {} twice", name(&object)),
                    WatchEvent::Gone(object) => assert!(known.remove(&name(&object)), "A6: {} unseen", name(&object)),
                    WatchEvent::Bookmark(_) => {}
                }
            }
            known
        });
    }
    while let Some(done) = writers.join_next().await {
        done.expect("a writer");
    }
    let last = admin(&server);
    let made = json!({ "metadata": { "name": "the-last" } });
    last.create(&kinds::CONFIG_MAP, "default", &made).await.expect("made");
    let list = last.list(&kinds::CONFIG_MAP, "default", &ListOptions::default()).await.expect("listed");
    let wanted: std::collections::BTreeSet<String> = list["items"]
        .as_array()
        .expect("items")
        .iter()
        .map(|item| item["metadata"]["name"].as_str().expect("a name").to_owned())
        .collect();
    while let Some(known) = readers.join_next().await {
        assert_eq!(known.expect("a reader"), wanted, "A6: list and watch together are what is there");
    }
    server.shutdown().await;
}
