//! Webhooks and extension servers that mean harm: answers and heads without an end, bytes that never come, redirects, a
//! change of protocols that nobody asked for. Time and memory stay bounded, and nobody else is kept waiting (X4, X7).
//! On loopback.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mainstay_api::kinds::{API_SERVICE, CONFIG_MAP, SECRET, SERVICE, VALIDATING_WEBHOOK_CONFIGURATION};
use mainstay_server::start;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{admin, config, tls};

/// What is written before somebody has to have hung up: an answer's limit, with what sockets hold (bytes).
const MOST: usize = 32 << 20;
/// An honest answer to discovery.
const RESOURCES: &str = r#"{"kind":"APIResourceList","groupVersion":"x.io/v1","resources":[]}"#;

/// A server over TLS that answers by the path that it is asked for.
struct Hostile {
    port: u16,
    bundle: String,
    /// Connections whose other end hung up.
    left: Arc<AtomicUsize>,
    /// The most that was written on one.
    most: Arc<AtomicUsize>,
    /// Requests for `/elsewhere`.
    led: Arc<AtomicUsize>,
}

impl Hostile {
    async fn start() -> Self {
        let (listener, acceptor, own) = tls::listen(&["127.0.0.1", "api.default.svc"]).await;
        let port = listener.local_addr().expect("an address").port();
        let hostile = Self {
            port,
            bundle: STANDARD.encode(own),
            left: Arc::default(),
            most: Arc::default(),
            led: Arc::default(),
        };
        let (left, most, led) = (hostile.left.clone(), hostile.most.clone(), hostile.led.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, left, most, led) = (acceptor.clone(), left.clone(), most.clone(), led.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    most.fetch_max(answer(stream, port, &led).await, Ordering::SeqCst);
                    left.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        hostile
    }

    /// Waits until so many connections were left.
    async fn is_left(&self, count: usize) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.left.load(Ordering::SeqCst) < count {
            assert!(Instant::now() < deadline, "{} of {count} connections were left", self.left.load(Ordering::SeqCst));
            tokio::task::yield_now().await;
        }
    }
}

/// Plays one connection until the other end hangs up; how much was written.
async fn answer(
    mut stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>,
    port: u16,
    led: &AtomicUsize,
) -> usize {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer).await {
            Ok(count) if count > 0 => head.extend_from_slice(&buffer[..count]),
            _ => return 0,
        }
    }
    let head = String::from_utf8_lossy(&head);
    let path = head.split(' ').nth(1).unwrap_or("").split('?').next().unwrap_or("");
    let honest = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{RESOURCES}", RESOURCES.len());
    let (first, forever) = match path.rsplit('/').next().unwrap_or("") {
        "body" => ("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{".to_owned(), " ".repeat(64 << 10)),
        "head" => ("HTTP/1.1 200 OK\r\n".to_owned(), "x-more: and more\r\n".repeat(2000)),
        "slow" => ("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{".to_owned(), String::new()),
        "switch" => {
            let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\nnoise";
            (switch.to_owned(), String::new())
        }
        "redirect" => {
            let to = format!("https://127.0.0.1:{port}/elsewhere");
            (format!("HTTP/1.1 307 Temporary Redirect\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n"), String::new())
        }
        "elsewhere" => {
            led.fetch_add(1, Ordering::SeqCst);
            (honest, String::new())
        }
        _ => (honest, String::new()),
    };
    let mut written = 0;
    let mut next = first.as_bytes();
    while written < 4 * MOST && stream.write_all(next).await.is_ok() && stream.flush().await.is_ok() {
        written += next.len();
        if forever.is_empty() {
            // Nothing more comes; whoever waits for it has to end it.
            let mut rest = [0; 1024];
            while stream.read(&mut rest).await.is_ok_and(|count| count > 0) {}
            break;
        }
        next = forever.as_bytes();
    }
    written
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x4_webhooks_that_mean_harm_cost_their_time_and_no_more() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = start(config(folder.path())).await.expect("started");
    let (client, hostile) = (admin(&server), Hostile::start().await);
    for (count, (harm, wanted)) in [
        ("body", "received invalid webhook response"),
        ("head", "failed to call webhook"),
        ("slow", "context deadline exceeded"),
        ("switch", "the server answered 101"),
        ("redirect", "the server answered 307"),
    ]
    .into_iter()
    .enumerate()
    {
        let hook = json!({ "name": "harm.x.io", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "timeoutSeconds": 2, "clientConfig": { "caBundle": hostile.bundle,
                "url": format!("https://127.0.0.1:{}/{harm}", hostile.port) },
            "rules": [{ "operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["*"],
                "resources": ["configmaps"] }] });
        let configuration = json!({ "metadata": { "name": harm }, "webhooks": [hook] });
        client.create(&VALIDATING_WEBHOOK_CONFIGURATION, "", &configuration).await.expect("a configuration");
        let asked = {
            let client = client.clone();
            let map = json!({ "metadata": { "name": "a" } });
            tokio::spawn(async move { client.create(&CONFIG_MAP, "default", &map).await })
        };
        let secret = json!({ "metadata": { "name": format!("s-{harm}") } });
        client.create(&SECRET, "default", &secret).await.expect("nobody was asked about it");
        let refused = asked.await.expect("joined").expect_err("refused").to_string();
        assert!(refused.contains(wanted), "{harm}: {refused}");
        client.delete(&VALIDATING_WEBHOOK_CONFIGURATION, "", harm, &json!({})).await.expect("deleted");
        // A redirect is a whole answer, whose connection may be kept.
        if harm != "redirect" {
            hostile.is_left(count + 1).await;
        }
    }
    let most = hostile.most.load(Ordering::SeqCst);
    assert!(most < MOST, "{most} bytes were taken of one answer");
    assert_eq!(hostile.led.load(Ordering::SeqCst), 0, "a redirect is not followed");
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x4_extension_servers_that_mean_harm_lead_nobody_elsewhere() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = start(config(folder.path())).await.expect("started");
    let (client, hostile) = (admin(&server), Hostile::start().await);
    let behind =
        json!({ "metadata": { "name": "api" }, "spec": { "type": "ExternalName", "externalName": "localhost" } });
    client.create(&SERVICE, "default", &behind).await.expect("made");
    let register = |version: &str| {
        json!({ "metadata": { "name": format!("{version}.x.io") }, "spec": { "group": "x.io", "version": version,
            "service": { "namespace": "default", "name": "api", "port": hostile.port }, "caBundle": hostile.bundle,
            "groupPriorityMinimum": 1000, "versionPriority": 10 } })
    };
    // Its discovery is asked for as well: an answer without an end is no answer.
    for version in ["v1", "body", "head"] {
        client.create(&API_SERVICE, "", &register(version)).await.expect("registered");
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    for (version, wanted) in [("v1", "True"), ("body", "False"), ("head", "False")] {
        loop {
            let service = client.get(&API_SERVICE, "", &format!("{version}.x.io")).await.expect("there");
            let conditions = service["status"]["conditions"].as_array().cloned().unwrap_or_default();
            if conditions.iter().any(|c| c["type"] == "Available" && c["status"] == wanted) {
                break;
            }
            assert!(Instant::now() < deadline, "{version} is not {wanted}: {service}");
            tokio::task::yield_now().await;
        }
    }
    for (harm, code, wanted) in [
        ("redirect", 502, "the backend attempted to redirect this request, which is not permitted"),
        ("switch", 503, "the backend switched protocols without being asked to"),
    ] {
        let refused = client.get_text(&format!("/apis/x.io/v1/{harm}")).await.expect_err("refused");
        assert!(refused.code() == Some(code) && refused.to_string().contains(wanted), "{harm}: {refused}");
    }
    let most = hostile.most.load(Ordering::SeqCst);
    assert!(most < MOST, "{most} bytes were taken of one answer");
    assert_eq!(hostile.led.load(Ordering::SeqCst), 0, "a redirect is not followed");
    server.shutdown().await;
}
