//! X4, X5 and X7 through the real server, on loopback: who presses, and who gets answers meanwhile.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mainstay_api::kinds;
use mainstay_client::{Config, ListOptions};
use mainstay_server::{Running, start};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{admin, config};

/// How long an answer may take that nobody must be able to keep back.
const SOON: Duration = Duration::from_secs(20);

pub async fn server(data_dir: &std::path::Path) -> Running {
    start(config(data_dir)).await.expect("started")
}

/// A TLS connection; with the administrator's certificate or without one.
pub async fn tls(server: &Running, alpn: &[u8], is_admin: bool) -> TlsStream<TcpStream> {
    let mut config = Config::parse(server.admin.kubeconfig.as_bytes()).expect("a kubeconfig");
    if !is_admin {
        config.identity = None;
    }
    let connector = TlsConnector::from(std::sync::Arc::new(config.tls(&[alpn]).expect("TLS")));
    let stream = TcpStream::connect(server.addr).await.expect("connected");
    connector.connect(rustls::pki_types::ServerName::try_from("127.0.0.1").expect("a name"), stream).await.expect("TLS")
}

/// An HTTP/2 connection as the administrator, whose windows are as small as they are by default.
pub async fn http2(server: &Running) -> SendRequest<Full<Bytes>> {
    let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(65_535)
        .initial_connection_window_size(65_535)
        .handshake(TokioIo::new(tls(server, b"h2", true).await))
        .await
        .expect("HTTP/2");
    tokio::spawn(connection);
    sender
}

pub async fn send(
    sender: &mut SendRequest<Full<Bytes>>,
    server: &Running,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Response<Incoming> {
    let mut request = Request::builder().method(method).uri(format!("https://{}{path}", server.addr));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    sender.send_request(request.body(Full::new(body.into())).expect("a request")).await.expect("an answer")
}

pub async fn text(response: Response<Incoming>) -> String {
    let bytes = response.into_body().collect().await.expect("the whole body").to_bytes();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x5_two_thousand_idle_connections_of_every_phase_keep_nobody_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = server(folder.path()).await;
    let mut silent = Vec::new();
    let mut greeted = Vec::new();
    for index in 0..2046 {
        match index % 5 {
            // Nothing at all; half a greeting.
            0 => silent.push(TcpStream::connect(server.addr).await.expect("connected")),
            1 => {
                let mut stream = TcpStream::connect(server.addr).await.expect("connected");
                stream.write_all(&[0x16, 3, 1, 2, 0, 1]).await.expect("written");
                silent.push(stream);
            }
            // TLS, and no request; half a request; HTTP/2 without one.
            phase => {
                let mut stream = tls(&server, if phase == 4 { b"h2" } else { b"http/1.1" }, false).await;
                let begun: &[u8] = match phase {
                    2 => b"",
                    3 => b"GET /livez HTTP/1.1\r\nhost: a\r\n",
                    _ => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
                };
                stream.write_all(begun).await.expect("written");
                stream.flush().await.expect("written");
                greeted.push(stream);
            }
        }
    }
    let (client, options) = (admin(&server), ListOptions::default());
    let answer = tokio::time::timeout(SOON, client.list(&kinds::NAMESPACE, "", &options));
    answer.await.expect("in time").expect("an answer");
    let metrics = client.get_text("/metrics").await.expect("metrics");
    let open = metrics.lines().find_map(|line| line.strip_prefix("mainstay_connections ")).expect("a gauge");
    assert!(open.parse::<usize>().is_ok_and(|open| open < 800), "{open} connections are open");
    drop((silent, greeted));
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x7_a_client_watches_more_than_a_connection_carries_and_still_gets_answers() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = server(folder.path()).await;
    let client = admin(&server);
    let mut watches = Vec::new();
    for index in 0..700 {
        let options = ListOptions { field_selector: format!("metadata.name=m{index}"), ..ListOptions::default() };
        let watch = tokio::time::timeout(SOON, client.watch(&kinds::CONFIG_MAP, "default", &options));
        watches.push(watch.await.expect("in time").expect("a watch"));
    }
    tokio::time::timeout(SOON, client.get_text("/readyz")).await.expect("in time").expect("an answer");
    let map = json!({ "metadata": { "name": "m699" } });
    client.create(&kinds::CONFIG_MAP, "default", &map).await.expect("made");
    let event = watches.last_mut().expect("the last").next();
    tokio::time::timeout(SOON, event).await.expect("in time").expect("no error").expect("an event");
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x7_lists_that_nobody_reads_cost_little() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = server(folder.path()).await;
    let client = admin(&server);
    let filling = "x".repeat(900 << 10);
    for index in 0..12 {
        let map = json!({ "metadata": { "name": format!("m{index}") }, "data": { "a": filling } });
        client.create(&kinds::CONFIG_MAP, "default", &map).await.expect("made");
    }
    let mut sender = http2(&server).await;
    let before = resident_kib();
    let mut unread = Vec::new();
    for _ in 0..100 {
        let path = "/api/v1/namespaces/default/configmaps";
        unread.push(send(&mut sender, &server, Method::GET, path, &[], "").await);
    }
    let grown = resident_kib().saturating_sub(before) / 1024;
    assert!(grown < 200, "100 unread lists of 11 MB took {grown} MiB");
    client.get_text("/readyz").await.expect("others are answered");
    // The others hold the connection's window, as HTTP/2 has it.
    let first = unread.swap_remove(0);
    drop(unread);
    let list: Value = serde_json::from_str(&text(first).await).expect("JSON");
    assert_eq!(list["items"].as_array().map(Vec::len), Some(13), "with the CA's own");
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x7_a_watch_that_always_has_events_ends_in_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = server(folder.path()).await;
    let client = admin(&server);
    let writer = tokio::spawn({
        let client = client.clone();
        async move {
            for index in 0u32.. {
                let patch = json!({ "metadata": { "labels": { "n": index.to_string() } } });
                let patch_type = mainstay_client::PatchType::Merge;
                if client.patch(&kinds::NAMESPACE, "", "default", "", patch_type, &patch).await.is_err() {
                    return;
                }
            }
        }
    });
    let mut sender = http2(&server).await;
    // `True` is what Python's clients write: Patroni's watches are lists without it.
    let watching =
        send(&mut sender, &server, Method::GET, "/api/v1/namespaces?watch=True&timeoutSeconds=1", &[], "").await;
    let all = tokio::time::timeout(Duration::from_secs(5), text(watching)).await.expect("timeoutSeconds is honoured");
    assert!(all.lines().count() > 1, "{all}");
    let watching = send(&mut sender, &server, Method::GET, "/api/v1/namespaces?watch=1", &[], "").await;
    let began = std::time::Instant::now();
    let ((), rest) = tokio::join!(server.shutdown(), async { watching.into_body().collect().await });
    assert!(rest.is_ok() && began.elapsed() < Duration::from_secs(5), "{:?} {rest:?}", began.elapsed());
    writer.abort();
}

/// A7: what clients do that list again for such an event alone (kube-rs, kopf), and ask for the same revision for ever
/// when it is the request that is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a7_a_watch_from_before_a_restart_is_told_so_in_an_event() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = server(folder.path()).await;
    let maps = "/api/v1/namespaces/default/configmaps";
    let listed: Value =
        serde_json::from_str(&text(send(&mut http2(&first).await, &first, Method::GET, maps, &[], "").await).await)
            .expect("JSON");
    let seen = listed["metadata"]["resourceVersion"].as_str().expect("a version").to_owned();
    let map = json!({ "metadata": { "name": "later" } });
    admin(&first).create(&kinds::CONFIG_MAP, "default", &map).await.expect("made");
    first.shutdown().await;
    let server = server(folder.path()).await;
    let path = format!("{maps}?watch=1&resourceVersion={seen}");
    let mut sender = http2(&server).await;
    let table = "application/json;as=Table;g=meta.k8s.io;v=v1";
    for form in ["application/json", table, "application/vnd.kubernetes.protobuf;stream=watch"] {
        let accept = [(header::ACCEPT.as_str(), form)];
        let answer = send(&mut sender, &server, Method::GET, &path, &accept, "").await;
        assert_eq!(answer.status(), 200, "{form}");
        let bytes = answer.into_body().collect().await.expect("it ends").to_bytes();
        let body = String::from_utf8_lossy(&bytes).into_owned();
        assert!(body.contains("ERROR") && body.contains("Expired"), "{form}: {body}");
        if form != "application/vnd.kubernetes.protobuf;stream=watch" {
            let event: Value = serde_json::from_str(&body).expect("one event");
            assert_eq!((&event["object"]["code"], &event["object"]["kind"]), (&json!(410), &json!("Status")), "{form}");
        }
    }
    let mut socket = tls(&server, b"http/1.1", true).await;
    let asks = format!(
        "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
        server.addr
    );
    socket.write_all(asks.as_bytes()).await.expect("asked");
    let mut answer = Vec::new();
    let said = async {
        while !String::from_utf8_lossy(&answer).contains("Expired") {
            assert_ne!(
                socket.read_buf(&mut answer).await.expect("an answer"),
                0,
                "{}",
                String::from_utf8_lossy(&answer)
            );
        }
    };
    tokio::time::timeout(SOON, said).await.expect("said");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.starts_with("HTTP/1.1 101") && answer.contains("ERROR"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x4_a_patch_bomb_is_refused_while_others_are_answered() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = server(folder.path()).await;
    let client = admin(&server);
    let set = json!({ "metadata": { "name": "s" }, "spec": { "serviceName": "s",
        "selector": { "matchLabels": { "a": "b" } }, "template": { "metadata": { "labels": { "a": "b" } },
            "spec": { "containers": [{ "name": "c", "image": "i" }] } } } });
    client.create(&kinds::STATEFUL_SET, "default", &set).await.expect("made");
    // Wrong in every part; so many that their managers' entries could not be stored; more than is read at all.
    for (count, code) in [(5_000, 422), (20_000, 413), (100_000, 400)] {
        let containers: Vec<Value> = (0..count).map(|index| json!({ "name": format!("c{index}!") })).collect();
        let bomb = json!({ "spec": { "template": { "spec": { "containers": containers } } } });
        let thrown = tokio::spawn({
            let client = client.clone();
            async move {
                let kind = mainstay_client::PatchType::Strategic;
                client.patch(&kinds::STATEFUL_SET, "default", "s", "", kind, &bomb).await
            }
        });
        while !thrown.is_finished() {
            tokio::time::timeout(Duration::from_secs(5), client.get_text("/livez"))
                .await
                .expect("in time")
                .expect("ok");
        }
        assert_eq!(thrown.await.expect("joined").expect_err("refused").code(), Some(code), "{count}");
    }
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_bodies_and_encodings_are_as_http_has_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = server(folder.path()).await;
    let mut sender = http2(&server).await;
    let head = send(&mut sender, &server, Method::HEAD, "/api/v1/namespaces", &[], "").await;
    assert_eq!(head.status(), 200);
    assert!(head.headers()[header::CONTENT_LENGTH].to_str().is_ok_and(|length| length != "0"));
    assert_eq!(text(head).await, "");

    // A body that nobody wants does not break the stream, nor the connection.
    let unwanted = "x".repeat(2 << 20);
    let refused = send(&mut sender, &server, Method::POST, "/api/v1/nothing", &[], unwanted.clone()).await;
    assert_eq!(refused.status(), 404);
    assert!(text(refused).await.contains("could not find the requested resource"));
    let large = send(&mut sender, &server, Method::POST, "/api/v1/namespaces", &[], unwanted.repeat(2)).await;
    assert_eq!(large.status(), 413);
    assert!(text(large).await.contains("Request entity too large"));
    let padded = send(&mut sender, &server, Method::GET, "/api", &[("x-padding", &"x".repeat(100_000))], "").await;
    assert_eq!(padded.status(), 431);
    assert!(text(padded).await.contains("too large"));

    let packed = send(&mut sender, &server, Method::GET, "/openapi/v2", &[("accept-encoding", "gzip")], "").await;
    assert_eq!(packed.headers()[header::CONTENT_ENCODING], "gzip");
    let packed = packed.into_body().collect().await.expect("whole").to_bytes();
    let plain = send(&mut sender, &server, Method::GET, "/openapi/v2", &[], "").await;
    let mut unpacked = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&packed[..]), &mut unpacked).expect("gzip");
    assert_eq!(unpacked, text(plain).await);
    assert!(packed.len() * 2 < unpacked.len());
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_checked_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = server(folder.path()).await;
    let client = admin(&server);
    let readyz = client.get_text("/readyz?verbose").await.expect("ready");
    for name in [
        "ping",
        "etcd",
        "informer-sync",
        "poststarthook/controllers",
        "poststarthook/serving",
        "shutdown",
        "poststarthook/rbac/bootstrap-roles",
    ] {
        assert!(readyz.contains(&format!("[+]{name} ok\n")), "{readyz}");
    }
    assert!(readyz.ends_with("readyz check passed\n"));
    let without = client.get_text("/readyz?verbose&exclude=etcd&exclude=x").await.expect("ready");
    assert!(without.contains("[+]etcd excluded: ok\n") && without.contains("no matches for \"x\""), "{without}");
    assert_eq!(client.get_text("/livez/ping").await.expect("alive"), "ok");
    assert_eq!(client.get_text("/healthz/poststarthook/rbac/bootstrap-roles").await.expect("done"), "ok");
    assert_eq!(client.get_text("/livez/nothing").await.expect_err("no such check").code(), Some(404));
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_eviction_that_is_only_tried_evicts_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = server(folder.path()).await;
    let client = admin(&server);
    let pod = json!({ "metadata": { "name": "p" }, "spec": { "containers": [{ "name": "c", "image": "i" }] } });
    client.create(&kinds::POD, "default", &pod).await.expect("made");
    let eviction = |options: Value| json!({ "metadata": { "name": "p" }, "deleteOptions": options });
    let evict =
        async |options: Value| client.create_sub(&kinds::POD, "default", "p", "eviction", &eviction(options)).await;
    evict(json!({ "dryRun": ["All"] })).await.expect("it would be");
    client.get(&kinds::POD, "default", "p").await.expect("still there");
    for wrong in [json!({ "dryRun": "All" }), json!({ "preconditions": 1 }), json!({ "gracePeriodSeconds": "1" })] {
        assert_eq!(evict(wrong.clone()).await.expect_err("not understood").code(), Some(400), "{wrong}");
    }
    let wrong = json!({ "preconditions": { "uid": "another" } });
    assert_eq!(evict(wrong).await.expect_err("another pod").code(), Some(409));
    client.get(&kinds::POD, "default", "p").await.expect("still there");
    evict(json!({})).await.expect("evicted");
    assert!(client.get(&kinds::POD, "default", "p").await.is_err_and(|error| error.is_not_found()));
    let account = json!({ "metadata": { "name": "a" } });
    client.create(&kinds::SERVICE_ACCOUNT, "default", &account).await.expect("made");
    let deleted = client.delete(&kinds::SERVICE_ACCOUNT, "default", "a", &json!({})).await.expect("deleted");
    assert_eq!(deleted["kind"], "ServiceAccount");
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x7_bodies_that_never_come_keep_nobody_from_their_turn() {
    use tokio::io::AsyncReadExt as _;
    let folder = tempfile::tempdir().expect("a folder");
    let server = server(folder.path()).await;
    let binding = json!({ "metadata": { "name": "jane" }, "subjects": [{ "kind": "User", "name": "jane" }],
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin" } });
    admin(&server).create(&kinds::CLUSTER_ROLE_BINDING, "", &binding).await.expect("bound");
    // More than the seats of a level and a flow's places in its queue: 53 and 50.
    let mut held = Vec::new();
    for _ in 0..120 {
        let mut stream = tls(&server, b"http/1.1", true).await;
        let head = "POST /api/v1/namespaces/default/configmaps HTTP/1.1\r\nhost: a\r\nimpersonate-user: jane\r\n\
            content-type: application/json\r\ncontent-length: 10\r\nexpect: 100-continue\r\n\r\n";
        stream.write_all(head.as_bytes()).await.expect("sent");
        held.push(stream);
    }
    for stream in &mut held {
        // The server asks for the body: the request is as far as it comes.
        let mut answer = [0; 12];
        tokio::time::timeout(SOON, stream.read_exact(&mut answer)).await.expect("in time").expect("asked for");
        assert_eq!(&answer, b"HTTP/1.1 100");
    }
    let mut sender = http2(&server).await;
    let as_jane = [("impersonate-user", "jane")];
    let get = send(&mut sender, &server, Method::GET, "/api/v1/namespaces/default/configmaps", &as_jane, "");
    assert_eq!(tokio::time::timeout(SOON, get).await.expect("in time").status(), 200);
    drop(held);
    server.shutdown().await;
}

#[tokio::test]
async fn x5_what_strangers_ask_for_is_no_series_of_the_metrics() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = server(folder.path()).await;
    let anyone = super::anonymous(&server);
    let long = "x".repeat(20_000);
    for count in 0..20 {
        let path = format!("/api/v1/namespaces/a/pods/b/{count}{long}");
        assert_eq!(anyone.get_text(&path).await.expect_err("refused").code(), Some(403));
    }
    let review = format!("/apis/authorization.k8s.io/v1/{long}");
    assert_eq!(anyone.post(&review, &json!({})).await.expect_err("refused").code(), Some(403));
    // Nor is what somebody asks for that there is not.
    let known = format!("/api/v1/namespaces/a/pods/b/{long}");
    assert_eq!(admin(&server).get_text(&known).await.expect_err("nothing").code(), Some(404));
    let metrics = admin(&server).get_text("/metrics").await.expect("metrics");
    assert!(!metrics.contains("xxxxxxxx") && metrics.contains("apiserver_request_total"), "{}", metrics.len());
    server.shutdown().await;
}
