//! Aggregation through the real server: another server answers for a group, behind a Service, and is told who asks by
//! the front proxy. On loopback.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mainstay_api::kinds::{API_SERVICE, CONFIG_MAP, DEPLOYMENT, HORIZONTAL_POD_AUTOSCALER, SERVICE, SERVICE_ACCOUNT};
use mainstay_client::Client;
use mainstay_server::start;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

use super::{admin, bearer, config};

/// An extension server that lets in whom this CA has signed, and answers what it was asked: its port, its `caBundle`,
/// and its task.
async fn extension(front_proxy_ca: &str) -> (u16, String, tokio::task::JoinHandle<()>) {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
    let own =
        CertificateParams::new(vec!["api.default.svc".to_owned()]).expect("a name").self_signed(&key).expect("own");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(front_proxy_ca.as_bytes()).expect("PEM")).expect("a CA");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(verifier.build().expect("a verifier"))
        .with_single_cert(vec![own.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).expect("a key"))
        .expect("a certificate");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            connections.spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = service_fn(|request: Request<Incoming>| async move {
                    if request.uri().path().ends_with("/slow") {
                        std::future::pending::<()>().await;
                    }
                    Ok::<_, Infallible>(answer(&request))
                });
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    (port, STANDARD.encode(own.pem()), task)
}

fn answer(request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let all = |name: &str| -> Vec<&str> {
        request.headers().get_all(name).iter().filter_map(|value| value.to_str().ok()).collect()
    };
    let body = match request.uri().path() {
        "/apis/ext.example.com/v1" => {
            json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "ext.example.com/v1",
            "resources": [
                { "name": "widgets", "singularName": "widget", "namespaced": true, "kind": "Widget",
                    "verbs": ["get", "list"], "shortNames": ["wd"] },
                { "name": "widgets/status", "singularName": "", "namespaced": true, "kind": "Widget",
                    "verbs": ["get"] },
            ] })
        }
        "/openapi/v2" => json!({ "swagger": "2.0", "paths": { "/apis/ext.example.com/v1/widgets": {}, "/other": {} },
            "definitions": { "com.example.Widget": { "description": "A widget.", "type": "object",
                "x-kubernetes-group-version-kind":
                    [{ "group": "ext.example.com", "version": "v1", "kind": "Widget" }] } } }),
        path @ ("/apis/external.metrics.k8s.io/v1beta1" | "/apis/custom.metrics.k8s.io/v1beta2") => {
            let version = path.trim_start_matches("/apis/");
            json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": [] })
        }
        path if path.contains(".metrics.k8s.io/") && all("x-remote-user") != [AUTOSCALER] => {
            json!({ "kind": "MetricValueList", "items": [] })
        }
        "/apis/external.metrics.k8s.io/v1beta1/namespaces/default/queue" => {
            let items = ["30", "20"].map(|value| json!({ "metricName": "queue", "value": value }));
            json!({ "kind": "ExternalMetricValueList", "items": items })
        }
        "/apis/custom.metrics.k8s.io/v1beta2/namespaces/default/services/api/load" => {
            let item = json!({ "describedObject": { "kind": "Service", "name": "api" }, "value": "2500m" });
            json!({ "kind": "MetricValueList", "items": [item] })
        }
        "/openapi/v3/apis/ext.example.com/v1" => json!({ "openapi": "3.0.0", "paths": {} }),
        path => json!({ "kind": "Widget", "apiVersion": "ext.example.com/v1", "path": path,
            "query": request.uri().query(), "method": request.method().as_str(),
            "user": all("x-remote-user"), "groups": all("x-remote-group"), "authorization": all("authorization") }),
    };
    Response::new(Full::new(Bytes::from(body.to_string())))
}

/// In whose name metrics are asked for.
const AUTOSCALER: &str = "system:serviceaccount:kube-system:horizontal-pod-autoscaler";

/// A server for metrics delays nobody but who asks it for what it is slow with.
#[tokio::test]
async fn x7_an_autoscaler_scales_by_what_other_servers_measure_and_waits_for_its_own_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = start(config(folder.path())).await.expect("started");
    let admin = admin(&server);
    let published =
        admin.get(&CONFIG_MAP, "kube-system", "extension-apiserver-authentication").await.expect("published");
    let proxy_ca = published["data"]["requestheader-client-ca-file"].as_str().expect("a CA");
    let (port, bundle, task) = extension(proxy_ca).await;
    let behind =
        json!({ "metadata": { "name": "api" }, "spec": { "type": "ExternalName", "externalName": "localhost" } });
    admin.create(&SERVICE, "default", &behind).await.expect("made");
    for (group, version) in [("external.metrics.k8s.io", "v1beta1"), ("custom.metrics.k8s.io", "v1beta2")] {
        let registered = json!({ "metadata": { "name": format!("{version}.{group}") },
            "spec": { "group": group, "version": version,
            "service": { "namespace": "default", "name": "api", "port": port }, "caBundle": bundle,
            "groupPriorityMinimum": 100, "versionPriority": 100 } });
        admin.create(&API_SERVICE, "", &registered).await.expect("registered");
    }
    let external = |metric: &str| {
        json!({ "type": "External", "external": { "metric": { "name": metric },
            "target": { "type": "AverageValue", "averageValue": "10" } } })
    };
    let load = json!({ "type": "Object", "object": { "metric": { "name": "load" },
        "describedObject": { "apiVersion": "v1", "kind": "Service", "name": "api" },
        "target": { "type": "AverageValue", "averageValue": "1" } } });
    for (name, metric) in [("slow", external("slow")), ("queue", external("queue")), ("load", load)] {
        let labels = json!({ "app": name });
        let deployment = json!({ "metadata": { "name": name }, "spec": { "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels },
                "spec": { "containers": [{ "name": "c", "image": "i" }] } } } });
        admin.create(&DEPLOYMENT, "default", &deployment).await.expect("made");
        let scaler = json!({ "metadata": { "name": name }, "spec": { "maxReplicas": 10, "metrics": [metric],
            "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": name } } });
        admin.create(&HORIZONTAL_POD_AUTOSCALER, "default", &scaler).await.expect("made");
    }
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let mut seen = Vec::new();
        for name in ["queue", "load"] {
            seen.push(admin.get(&DEPLOYMENT, "default", name).await.expect("there")["spec"]["replicas"].clone());
        }
        let slow = admin.get(&HORIZONTAL_POD_AUTOSCALER, "default", "slow").await.expect("there")["status"].to_string();
        let is_late = slow.contains("FailedGetExternalMetric") && slow.contains("context deadline exceeded");
        if seen == [json!(5), json!(3)] && is_late {
            break;
        }
        assert!(Instant::now() < deadline, "{seen:?} {slow}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let status = admin.get(&HORIZONTAL_POD_AUTOSCALER, "default", "load").await.expect("there")["status"].clone();
    assert_eq!(status["currentMetrics"][0]["object"]["describedObject"]["name"], "api", "{status}");
    task.abort();
    server.shutdown().await;
}

/// Waits for the Available condition to be as wanted.
async fn available(client: &Client, wanted: &str) -> Value {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let service = client.get(&API_SERVICE, "", "v1.ext.example.com").await.expect("there");
        let conditions = service["status"]["conditions"].as_array().cloned().unwrap_or_default();
        if let Some(found) = conditions.into_iter().find(|c| c["type"] == "Available" && c["status"] == wanted) {
            return found;
        }
        assert!(Instant::now() < deadline, "not {wanted}: {service}");
        tokio::task::yield_now().await;
    }
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

#[tokio::test]
async fn x1_another_server_answers_for_its_group_and_is_told_who_asks() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = start(config(folder.path())).await.expect("started");
    let admin = admin(&server);
    let published =
        admin.get(&CONFIG_MAP, "kube-system", "extension-apiserver-authentication").await.expect("published");
    let data = &published["data"];
    assert_eq!(data["requestheader-allowed-names"], r#"["front-proxy-client"]"#);
    assert!(data["client-ca-file"].as_str().is_some_and(|pem| pem == server.ca_pem));
    let proxy_ca = data["requestheader-client-ca-file"].as_str().expect("a CA");
    assert!(proxy_ca != server.ca_pem, "the front proxy's word is not every client's");
    assert_eq!(
        admin.get(&API_SERVICE, "", "v1.apps").await.expect("local")["status"]["conditions"][0]["reason"],
        "Local"
    );

    let (port, bundle, task) = extension(proxy_ca).await;
    let registered = json!({ "metadata": { "name": "v1.ext.example.com" },
        "spec": { "group": "ext.example.com", "version": "v1",
        "service": { "namespace": "default", "name": "api", "port": port }, "caBundle": bundle,
        "groupPriorityMinimum": 1000, "versionPriority": 10 } });
    admin.create(&API_SERVICE, "", &registered).await.expect("registered");
    assert_eq!(available(&admin, "False").await["reason"], "ServiceNotFound");
    let path = "/apis/ext.example.com/v1/namespaces/default/widgets/w";
    assert_eq!(admin.get_text(path).await.expect_err("not there yet").code(), Some(503));

    let behind =
        json!({ "metadata": { "name": "api" }, "spec": { "type": "ExternalName", "externalName": "localhost" } });
    admin.create(&SERVICE, "default", &behind).await.expect("made");
    assert_eq!(available(&admin, "True").await["reason"], "Passed");

    let seen = parsed(&admin.get_text(&format!("{path}?a=b")).await.expect("answered"));
    assert_eq!((&seen["path"], &seen["query"], &seen["method"]), (&json!(path), &json!("a=b"), &json!("GET")));
    assert_eq!(seen["user"], json!(["kubernetes-admin"]));
    assert_eq!(seen["groups"], json!(["system:masters", "system:authenticated"]));
    let posted = admin.post("/apis/ext.example.com/v1/namespaces/default/widgets", &json!({ "kind": "Widget" })).await;
    assert_eq!(posted.expect("answered")["method"], "POST");

    let request = json!({ "spec": { "expirationSeconds": 3600 } });
    let issued = admin.create_sub(&SERVICE_ACCOUNT, "default", "default", "token", &request).await.expect("issued");
    let account = bearer(&server, issued["status"]["token"].as_str().expect("a token"));
    let refused = account.get_text(path).await.expect_err("nobody said that it may");
    assert!(
        refused.code() == Some(403) && refused.to_string().contains("cannot get resource \"widgets\""),
        "{refused}"
    );
    // What the server behind would take apart in another way is not passed on.
    for (path, code) in [
        ("/apis/ext.example.com/v1/namespaces/default/widgets/w%2Fsecret", 400),
        ("/apis/ext.example.com/v1/../v1/namespaces/default/widgets", 400),
        ("/openapi/v3/apis/ext.example.com/v1/../../../../apis/ext.example.com/v1/widgets", 404),
    ] {
        assert_eq!(admin.get_text(path).await.expect_err(path).code(), Some(code), "{path}");
    }
    let document = account.get_text("/apis/ext.example.com/v1").await.expect("discovery is everybody's");
    assert_eq!(parsed(&document)["kind"], "APIResourceList");

    let groups = parsed(&admin.get_text("/apis").await.expect("discovery"));
    let found = groups["groups"].as_array().expect("groups").iter().find(|group| group["name"] == "ext.example.com");
    assert_eq!(found.map(|group| group["preferredVersion"]["groupVersion"].clone()), Some(json!("ext.example.com/v1")));
    let index = parsed(&admin.get_text("/openapi/v3").await.expect("an index"));
    assert_eq!(index["paths"]["apis/ext.example.com/v1"]["serverRelativeURL"], "/openapi/v3/apis/ext.example.com/v1");
    assert_eq!(
        parsed(&admin.get_text("/openapi/v3/apis/ext.example.com/v1").await.expect("passed on"))["openapi"],
        "3.0.0"
    );

    let older = parsed(&admin.get_text("/openapi/v2").await.expect("one document"));
    assert_eq!(older["definitions"]["com.example.Widget"]["description"], "A widget.");
    assert!(older["paths"]["/apis/ext.example.com/v1/widgets"].is_object() && older["paths"]["/other"].is_null());
    assert!(older["definitions"]["io.k8s.api.core.v1.Pod"].is_object());

    // It goes away: that is said, and nobody else is touched.
    task.abort();
    let _ = task.await;
    let again = json!({ "metadata": { "annotations": { "look": "again" } } });
    let patch = mainstay_client::PatchType::Merge;
    admin.patch(&API_SERVICE, "", "v1.ext.example.com", "", patch, &again).await.expect("patched");
    assert_eq!(available(&admin, "False").await["reason"], "FailedDiscoveryCheck");
    assert_eq!(admin.get_text(path).await.expect_err("gone").code(), Some(503));
    admin.get_text("/apis/apps/v1").await.expect("its own groups");
    server.shutdown().await;
}

#[tokio::test]
async fn metrics_of_ones_own_take_over_and_the_servers_come_back_when_they_go() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = start(config(folder.path())).await.expect("started");
    let admin = admin(&server);
    let (name, path) = ("v1beta1.metrics.k8s.io", "/apis/metrics.k8s.io/v1beta1/pods");
    let missing = admin.get(&API_SERVICE, "", name).await.expect_err("whoever installs one finds the name free");
    assert_eq!(missing.code(), Some(404));
    assert_eq!(parsed(&admin.get_text(path).await.expect("the server's own"))["kind"], "PodMetricsList");
    let theirs = json!({ "metadata": { "name": name }, "spec": { "group": "metrics.k8s.io", "version": "v1beta1",
        "service": { "namespace": "kube-system", "name": "metrics-server" }, "insecureSkipTLSVerify": true,
        "groupPriorityMinimum": 100, "versionPriority": 100 } });
    admin.create(&API_SERVICE, "", &theirs).await.expect("registered");
    assert_eq!(admin.get_text(path).await.expect_err("theirs, and not there yet").code(), Some(503));
    let groups = parsed(&admin.get_text("/apis").await.expect("discovery"));
    let groups = groups["groups"].as_array().expect("groups");
    let of_metrics: Vec<&Value> = groups.iter().filter(|group| group["name"] == "metrics.k8s.io").collect();
    assert_eq!(of_metrics.len(), 1);
    assert_eq!(of_metrics[0]["versions"].as_array().map(Vec::len), Some(1));
    admin.delete(&API_SERVICE, "", name, &json!({})).await.expect("deleted");
    assert_eq!(parsed(&admin.get_text(path).await.expect("taken back"))["kind"], "PodMetricsList");
    server.shutdown().await;
}
