//! The server end to end, over TLS on loopback, with containers that are made up.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use rcgen::{CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, watch};
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;

use super::backend::{Backend, Containers, Interface, Pending, Traffic};
use super::exec::Session;
use super::room::Claimed;
use super::spdy::frame::{Decoder, Encoder, Frame};
use super::spdy::headers::Headers;
use super::{Reviews, Running, StreamingConfig, listen};
use mainstay_runtime::{ContainerState, ContainerStats, ContainerStatus, ExecSpec, RuntimeError};

/// Longer than any test takes: what hangs fails.
const PATIENCE: Duration = Duration::from_secs(20);
/// More than SPDY's first window and every buffer on the way.
const MUCH: usize = 3 << 20;

/// One running pod `p` with container `c`, whose log is a file of the test.
struct World {
    logs: PathBuf,
    ended: watch::Receiver<bool>,
    /// Told when a session was dropped by the server.
    dropped: Arc<Notify>,
    asked: Mutex<Vec<ExecSpec>>,
}

impl Backend for World {
    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let found = (namespace, name) == ("ns", "p");
        found.then(|| self.pods().remove(0))
    }

    fn pods(&self) -> Vec<Arc<Pod>> {
        let metadata = ObjectMeta {
            namespace: Some("ns".into()),
            name: Some("p".into()),
            uid: Some("u".into()),
            ..ObjectMeta::default()
        };
        let containers = ["c", "later"].map(|name| Container { name: name.into(), ..Container::default() });
        vec![Arc::new(Pod {
            metadata,
            spec: Some(PodSpec { containers: containers.into(), ..PodSpec::default() }),
            ..Pod::default()
        })]
    }

    fn node_name(&self) -> &str {
        "n"
    }

    fn log_path(&self, _: &Pod, _: &str, attempt: u32) -> PathBuf {
        self.logs.join(format!("{attempt}.log"))
    }

    fn folders(&self) -> (PathBuf, PathBuf) {
        (self.logs.clone(), self.logs.clone())
    }

    fn claims(&self) -> Vec<Claimed> {
        let [namespace, claim, pod_uid, name] = ["ns", "data-p", "u", "data"].map(str::to_owned);
        vec![Claimed { namespace, claim, pod_uid, name, path: self.logs.clone(), is_block: false }]
    }

    fn probe_metrics(&self) -> String {
        "prober_probe_total 1\n".to_owned()
    }

    /// Says how many bytes came.
    fn load_images(&self, archive: &mut dyn std::io::Read) -> Result<Vec<String>, String> {
        let mut all = Vec::new();
        archive.read_to_end(&mut all).map_err(|error| error.to_string())?;
        if all.starts_with(b"bad") { Err("no archive".to_owned()) } else { Ok(vec![all.len().to_string()]) }
    }
}

/// Tells when it is dropped before the command's end.
struct Guard(Arc<Notify>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl Containers for World {
    fn all(&self) -> Vec<ContainerStatus> {
        vec![ContainerStatus {
            id: "u/c/0".into(),
            pod_uid: "u".into(),
            name: "c".into(),
            attempt: 0,
            image: "i:1".into(),
            image_id: String::new(),
            sandbox_made_at_ms: None,
            user: None,
            state: ContainerState::Running { pid: 1, started_at_ms: 0 },
        }]
    }

    fn network(&self, _: &str) -> Result<Option<PathBuf>, RuntimeError> {
        Ok(None)
    }

    /// `echo`: what comes in goes out, `bad` to stderr, exit code 3. `much`: as much as `MUCH`. `wait`: never ends.
    fn stats(&self, _: &str) -> Option<ContainerStats> {
        Some(ContainerStats {
            cpu_usage_nanos: 1_500_000_000,
            memory_usage_bytes: 4096,
            memory_working_set_bytes: 1024,
            pids: 1,
            ..ContainerStats::default()
        })
    }

    fn pod_stats(&self, _: &str) -> Option<(String, ContainerStats)> {
        let stats = ContainerStats { cpu_usage_nanos: 2_500_000_000, ..ContainerStats::default() };
        Some(("/mainstay/podu".to_owned(), stats))
    }

    fn group(&self, _: &str) -> Option<String> {
        Some("/mainstay/podu/c".to_owned())
    }

    fn interfaces(&self, _: &str, _: &[u32]) -> Vec<Interface> {
        let received = Traffic { bytes: 77, ..Traffic::default() };
        vec![Interface { name: "eth0".to_owned(), received, ..Interface::default() }]
    }

    fn exec<'a>(&'a self, _: &'a str, spec: ExecSpec) -> Pending<'a, Result<Session, RuntimeError>> {
        Box::pin(async move {
            let word = spec.args.first().cloned().unwrap_or_default();
            self.asked.lock().unwrap().push(spec);
            let (stdin, mut from_stdin) = tokio::io::duplex(1024);
            let (mut to_stdout, stdout) = tokio::io::duplex(1024);
            let (mut to_stderr, stderr) = tokio::io::duplex(1024);
            let (resize, _) = mpsc::channel(1);
            let guard = Guard(self.dropped.clone());
            let work = tokio::spawn(async move {
                match word.as_str() {
                    "much" => to_stdout.write_all(&vec![b'x'; MUCH]).await.unwrap(),
                    "wait" => std::future::pending().await,
                    _ => {
                        tokio::io::copy(&mut from_stdin, &mut to_stdout).await.unwrap();
                        to_stderr.write_all(b"bad").await.unwrap();
                    }
                }
                3
            });
            let exit = Box::pin(async move {
                let _guard = guard;
                work.await.map_err(|error| error.to_string())
            });
            Ok(Session {
                stdin: Some(Box::new(stdin)),
                stdout: Box::new(stdout),
                stderr: Some(Box::new(stderr)),
                resize,
                exit: Some(exit),
            })
        })
    }

    fn attach<'a>(&'a self, id: &'a str) -> Pending<'a, Result<Session, RuntimeError>> {
        Box::pin(async move { Err(RuntimeError::NotRunning(id.to_owned())) })
    }

    fn ended<'a>(&'a self, _: &'a str) -> Pending<'a, ()> {
        let mut ended = self.ended.clone();
        Box::pin(async move {
            let _ = ended.wait_for(|ended| *ended).await;
        })
    }
}

impl Reviews for World {
    /// Knows `metrics-server` and `somebody` by their tokens; the former may read metrics, and a node its own health.
    fn review<'a>(&'a self, path: &'a str, review: &'a Value) -> Pending<'a, Result<Value, String>> {
        Box::pin(async move {
            let spec = &review["spec"];
            Ok(if path.ends_with("tokenreviews") {
                let is_known = ["metrics-server", "somebody"].map(Value::from).contains(&spec["token"]);
                json!({ "status": { "authenticated": is_known, "user": { "username": spec["token"] } } })
            } else {
                let what =
                    (spec["user"].as_str().unwrap(), spec["resourceAttributes"]["subresource"].as_str().unwrap());
                let may = [("metrics-server", "metrics"), ("system:node:n", "healthz")].contains(&what);
                json!({ "status": { "allowed": may } })
            })
        })
    }
}

struct Fixture {
    server: Running,
    world: Arc<World>,
    end: watch::Sender<bool>,
    ca_pem: String,
    ca: Issuer<'static, KeyPair>,
    dir: tempfile::TempDir,
}

fn identity(ca: &Issuer<'static, KeyPair>, user: &str, group: &str) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, user);
    params.distinguished_name.push(DnType::OrganizationName, group);
    (params.signed_by(&key, ca).unwrap().pem(), key.serialize_pem())
}

async fn fixture() -> Fixture {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_pem = params.self_signed(&key).unwrap().pem();
    let ca = Issuer::new(params, key);
    let (certificate_pem, key_pem) = identity(&ca, "system:node:n", "system:nodes");
    let dir = tempfile::tempdir().unwrap();
    let (end, ended) = watch::channel(false);
    let world =
        Arc::new(World { logs: dir.path().to_owned(), ended, dropped: Arc::default(), asked: Mutex::default() });
    std::fs::create_dir(dir.path().join("machine")).unwrap();
    let config = StreamingConfig {
        machine_logs: dir.path().join("machine"),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        serving: mainstay_client::Rotating::new(&certificate_pem, &key_pem).unwrap(),
        client_ca_pem: ca_pem.clone(),
        clients: vec!["api-server".to_owned()],
        idle_timeout: super::IDLE_TIMEOUT,
        configuration: serde_json::json!({ "kind": "KubeletConfiguration", "maxPods": 110 }),
    };
    let health = mainstay_tasks::Health::default();
    let server = listen(config).await.unwrap().serve(world.clone(), world.clone(), world.clone(), health);
    Fixture { server, world, end, ca_pem, ca, dir }
}

impl Fixture {
    async fn connect(&self, user: Option<(&str, &str)>) -> TlsStream<TcpStream> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca_pem.as_bytes()).unwrap()).unwrap();
        let builder = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match user {
            None => builder.with_no_client_auth(),
            Some((user, group)) => {
                let (certificate, key) = identity(&self.ca, user, group);
                let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
            }
        };
        let tcp = TcpStream::connect(self.server.address).await.unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect("localhost".try_into().unwrap(), tcp).await.unwrap()
    }

    /// Sends a request head; gives the answer's status line and the connection after its head.
    async fn request(&self, user: Option<(&str, &str)>, head: &str) -> (String, TlsStream<TcpStream>) {
        let mut stream = self.connect(user).await;
        stream.write_all(format!("{head}\r\nHost: localhost\r\n\r\n").as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        (String::from_utf8(head).unwrap(), stream)
    }

    async fn spdy(&self, path: &str, protocol: &str) -> Spdy {
        let head = format!(
            "POST {path} HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: \
                {protocol}\r\nContent-Length: 0"
        );
        let (answer, stream) = self.request(Some(("api-server", "x")), &head).await;
        assert!(answer.starts_with("HTTP/1.1 101") && answer.to_ascii_lowercase().contains(protocol), "{answer}");
        Spdy { stream, decoder: Decoder::default(), encoder: Encoder::default() }
    }
}

/// A client as spdystream is: it never widens a window.
struct Spdy {
    stream: TlsStream<TcpStream>,
    decoder: Decoder,
    encoder: Encoder,
}

impl Spdy {
    async fn send(&mut self, frame: Frame) {
        let mut bytes = BytesMut::new();
        self.encoder.encode(&frame, &mut bytes);
        self.stream.write_all(&bytes).await.unwrap();
    }

    async fn open(&mut self, stream: u32, headers: &[(&str, &str)]) {
        let headers = Headers(headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect());
        self.send(Frame::SynStream { stream, headers, fin: false }).await;
    }

    async fn data(&mut self, stream: u32, bytes: &'static [u8], fin: bool) {
        self.send(Frame::Data { stream, bytes: Bytes::from_static(bytes), fin }).await;
    }

    /// What a stream brings until its end; every frame of a stream must come after its reply.
    async fn read(&mut self, streams: &[u32]) -> Vec<Vec<u8>> {
        let mut brought = vec![Vec::new(); streams.len()];
        let (mut open, mut replied) = (streams.len(), Vec::new());
        let mut buffer = vec![0u8; 16 * 1024];
        while open > 0 {
            let length = self.stream.read(&mut buffer).await.unwrap();
            assert!(length > 0, "closed before all streams ended");
            self.decoder.feed(&buffer[..length]);
            while let Some(frame) = self.decoder.next().unwrap() {
                match frame {
                    Frame::SynReply { stream, .. } => replied.push(stream),
                    Frame::Data { stream, bytes, fin } => {
                        assert!(replied.contains(&stream), "data before the reply");
                        let slot = streams.iter().position(|wanted| *wanted == stream).unwrap();
                        brought[slot].extend_from_slice(&bytes);
                        open -= usize::from(fin);
                    }
                    _ => {}
                }
            }
        }
        brought
    }
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("it hangs")
}

#[tokio::test]
async fn x1_the_api_server_and_administrators_are_answered_and_others_as_they_may() {
    let fixture = fixture().await;
    let table = [
        (None, "401"),
        (Some(("system:node:n", "system:nodes")), "200"),
        (Some(("system:node:m", "system:nodes")), "403"),
        (Some(("api-server", "x")), "200"),
        (Some(("root", "system:masters")), "200"),
    ];
    for (user, code) in table {
        let (answer, _) = within(fixture.request(user, "GET /healthz HTTP/1.1")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {code}")), "{user:?}: {answer}");
    }
    let tokens = [
        ("metrics-server", "/metrics/resource", "200"),
        ("metrics-server", "/stats/summary", "403"),
        ("metrics-server", "/metrics/../exec/ns/p/c", "404"),
        ("metrics-server", "/%6detrics", "200"),
        ("metrics-server", "/exec/ns/p/c?command=echo", "403"),
        ("somebody", "/metrics/resource", "403"),
        ("forged", "/metrics/resource", "401"),
    ];
    for (token, path, code) in tokens {
        let head = format!("GET {path} HTTP/1.1\r\nAuthorization: Bearer {token}");
        let (answer, _) = within(fixture.request(None, &head)).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {code}")), "{token} {path}: {answer}");
    }
    // Conformance of nodes, what a kubelet was configured with: through `nodes/proxy`.
    let (answer, _) = within(fixture.request(Some(("api-server", "x")), "GET /configz HTTP/1.1")).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("application/json"), "{answer}");
}

#[tokio::test]
async fn exec_over_spdy_has_all_streams_and_the_exit_code() {
    let fixture = fixture().await;
    within(async {
        let mut client =
            fixture.spdy("/exec/ns/p/c?command=echo&command=a%20b&input=1&output=1&error=1", "v4.channel.k8s.io").await;
        for (stream, kind) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "stderr")] {
            client.open(stream, &[("streamtype", kind)]).await;
        }
        client.data(3, b"hello ", false).await;
        client.data(3, b"there", true).await;
        let [error, stdout, stderr] = client.read(&[1, 5, 7]).await.try_into().unwrap();
        assert_eq!((stdout.as_slice(), stderr.as_slice()), (&b"hello there"[..], &b"bad"[..]));
        let status: serde_json::Value = serde_json::from_slice(&error).unwrap();
        assert_eq!(status.pointer("/details/causes/0/message"), Some(&"3".into()));
        assert_eq!(fixture.world.asked.lock().unwrap()[0].args, ["echo", "a b"]);
    })
    .await;
}

#[tokio::test]
async fn much_output_needs_no_window_updates() {
    let fixture = fixture().await;
    within(async {
        let mut client = fixture.spdy("/exec/ns/p/c?command=much&output=1", "v4.channel.k8s.io").await;
        client.open(1, &[("streamtype", "error")]).await;
        client.open(3, &[("streamtype", "stdout")]).await;
        let [_, stdout] = client.read(&[1, 3]).await.try_into().unwrap();
        assert_eq!(stdout.len(), MUCH);
    })
    .await;
}

#[tokio::test]
async fn a_client_that_goes_away_ends_its_command() {
    let fixture = fixture().await;
    within(async {
        let mut client = fixture.spdy("/exec/ns/p/c?command=wait&output=1", "v4.channel.k8s.io").await;
        client.open(1, &[("streamtype", "error")]).await;
        client.open(3, &[("streamtype", "stdout")]).await;
        drop(client);
        fixture.world.dropped.notified().await;
    })
    .await;
}

#[tokio::test]
async fn an_archive_is_taken_whole_or_refused_in_words() {
    let fixture = fixture().await;
    let user = Some(("api-server", "x"));
    let (answer, _) = within(fixture.request(user, "POST /images/load?bytes=5 HTTP/1.1\r\nContent-Length: 0")).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    let head = "POST /images/load?bytes=1000000 HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: \
                mainstay-image-archive\r\nContent-Length: 0";
    for (archive, said) in [
        (vec![b'x'; 1_000_000], "\"message\":\"1000000\""),
        ([b"bad".as_slice(), &[b'x'; 999_997]].concat(), "no archive"),
        (vec![b'x'; 999_999], "unexpected end of file"),
    ] {
        let answer = within(async {
            let (answer, mut stream) = fixture.request(user, head).await;
            assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
            stream.write_all(&archive).await.unwrap();
            if archive.len() < 1_000_000 {
                stream.shutdown().await.unwrap();
            }
            let mut said = String::new();
            stream.read_to_string(&mut said).await.unwrap();
            said
        });
        let answer = answer.await;
        assert!(answer.contains(said), "{answer}");
        assert_eq!(answer.contains("Success"), said.contains("1000000"), "{answer}");
    }
}

fn websocket_request(path: &str, protocol: Option<&str>) -> http::Request<()> {
    let request = http::Request::builder()
        .uri(format!("wss://localhost/{path}"))
        .header("Host", "localhost")
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
    let request = protocol.into_iter().fold(request, |request, name| request.header("Sec-WebSocket-Protocol", name));
    request.body(()).unwrap()
}

/// Upstream's suites read a log so: whole pieces as messages, then a close.
#[tokio::test]
async fn a_log_comes_over_a_plain_websocket() {
    let fixture = fixture().await;
    let path = fixture.dir.path().join("0.log");
    std::fs::write(&path, "2026-11-21T04:00:00.000000001Z stdout F alive\n").unwrap();
    within(async {
        for (protocol, expected) in
            [(None, &b"alive\n"[..]), (Some("binary.k8s.io"), b"alive\n"), (Some("base64.binary.k8s.io"), b"YWxpdmUK")]
        {
            let stream = fixture.connect(Some(("api-server", "x"))).await;
            let request = websocket_request("containerLogs/ns/p/c", protocol);
            let (mut socket, answer) = tokio_tungstenite::client_async(request, stream).await.unwrap();
            let chosen = answer.headers().get("sec-websocket-protocol").map(|name| name.to_str().unwrap());
            assert_eq!(chosen, protocol);
            let (mut body, mut close) = (Vec::new(), None);
            while let Some(message) = socket.next().await {
                match message.unwrap() {
                    Message::Binary(bytes) => body.extend_from_slice(&bytes),
                    Message::Text(text) => body.extend_from_slice(text.as_bytes()),
                    Message::Close(frame) => close = frame.map(|frame| u16::from(frame.code)),
                    _ => {}
                }
            }
            assert_eq!((body.as_slice(), close), (expected, Some(1000)), "{protocol:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn exec_over_a_websocket_closes_stdin_by_v5s_signal() {
    let fixture = fixture().await;
    within(async {
        let stream = fixture.connect(Some(("api-server", "x"))).await;
        let request = websocket_request("exec/ns/p/c?command=echo&input=1&output=1&error=1", Some("v5.channel.k8s.io"));
        let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();
        socket.send(Message::binary(&b"\0hello"[..])).await.unwrap();
        socket.send(Message::binary(&[255u8, 0][..])).await.unwrap();
        let mut channels = vec![Vec::new(); 5];
        let mut close = None;
        while let Some(message) = socket.next().await {
            match message.unwrap() {
                Message::Binary(bytes) => channels[usize::from(bytes[0])].extend_from_slice(&bytes[1..]),
                Message::Close(frame) => close = frame.map(|frame| u16::from(frame.code)),
                _ => {}
            }
        }
        assert_eq!((channels[1].as_slice(), channels[2].as_slice()), (&b"hello"[..], &b"bad"[..]));
        assert!(String::from_utf8_lossy(&channels[3]).contains("\"ExitCode\""));
        // client-go takes any other close for an error.
        assert_eq!(close, Some(1000));
    })
    .await;
}

#[tokio::test]
async fn port_forward_reaches_a_port_and_tells_of_a_closed_one() {
    let fixture = fixture().await;
    within(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap().port().to_string();
        let echo = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await.unwrap();
        });
        let mut client = fixture.spdy("/portForward/ns/p", "portforward.k8s.io").await;
        for (stream, kind, id, port) in [(1, "error", "0", &open), (3, "data", "0", &open)] {
            client.open(stream, &[("streamtype", kind), ("port", port), ("requestid", id)]).await;
        }
        client.data(3, b"ping", true).await;
        assert_eq!(client.read(&[1, 3]).await, [b"".to_vec(), b"ping".to_vec()]);
        echo.await.unwrap();
        // The port is closed now.
        for (stream, kind) in [(5, "error"), (7, "data")] {
            client.open(stream, &[("streamtype", kind), ("port", &open), ("requestid", "1")]).await;
        }
        let [error, data] = client.read(&[5, 7]).await.try_into().unwrap();
        let expected = format!(
            "error forwarding port {open} to pod p, uid u: dial tcp 127.0.0.1:{open}: connect: connection refused"
        );
        assert_eq!((String::from_utf8(error).unwrap(), data), (expected, Vec::new()));
    })
    .await;
}

/// kubectl ends its stream when the connection to it is closed, and closes that when both streams have ended.
#[tokio::test]
async fn port_forward_ends_with_the_pods_end_of_the_connection() {
    let fixture = fixture().await;
    within(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_exact(&mut [0; 4]).await.unwrap();
            stream.write_all(b"pong").await.unwrap();
        });
        let mut client = fixture.spdy("/portForward/ns/p", "portforward.k8s.io").await;
        for (stream, kind) in [(1, "error"), (3, "data")] {
            client.open(stream, &[("streamtype", kind), ("port", &port), ("requestid", "0")]).await;
        }
        client.data(3, b"ping", false).await;
        assert_eq!(client.read(&[1, 3]).await, [b"".to_vec(), b"pong".to_vec()]);
    })
    .await;
}

/// As the official Python client does it.
#[tokio::test]
async fn port_forward_over_a_websockets_own_channels() {
    let fixture = fixture().await;
    within(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap().port();
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut heard = [0; 4];
            stream.read_exact(&mut heard).await.unwrap();
            stream.write_all(b"pong").await.unwrap();
        });
        let stream = fixture.connect(Some(("api-server", "x"))).await;
        let path = format!("portForward/ns/p?port={closed}&port={open}");
        let request = websocket_request(&path, Some("v4.channel.k8s.io"));
        let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();
        socket.send(Message::binary(&b"\x02ping"[..])).await.unwrap();
        let mut channels = vec![Vec::new(); 4];
        while let Some(message) = socket.next().await {
            if let Message::Binary(bytes) = message.unwrap() {
                channels[usize::from(bytes[0])].extend_from_slice(&bytes[1..]);
            }
        }
        let with = |port: u16, text: &str| [&port.to_le_bytes()[..], text.as_bytes()].concat();
        let refused = format!(
            "error forwarding port {closed} to pod p, uid u: dial tcp 127.0.0.1:{closed}: connect: connection refused"
        );
        let wanted = [with(closed, ""), with(closed, &refused), with(open, "pong"), with(open, "")];
        assert_eq!(channels, wanted);
    })
    .await;
}

#[tokio::test]
async fn following_goes_over_rotations_and_ends_with_the_container() {
    let fixture = fixture().await;
    let path = fixture.dir.path().join("0.log");
    let line = |text: &str| format!("2026-11-21T04:00:00.000000001Z stdout F {text}\n");
    std::fs::write(&path, line("one") + &line("two")).unwrap();
    within(async {
        let head = "GET /containerLogs/ns/p/c?follow=true&tailLines=1 HTTP/1.1\r\nConnection: close";
        let (answer, mut stream) = fixture.request(Some(("api-server", "x")), head).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let mut body = Vec::new();
        let mut expect = async |text: &str| {
            while !String::from_utf8_lossy(&body).contains(text) {
                body.push(stream.read_u8().await.unwrap());
            }
        };
        expect("two\n").await;
        std::fs::rename(&path, path.with_extension("log.1")).unwrap();
        std::fs::write(&path, line("three")).unwrap();
        expect("three\n").await;
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all_at_end(&line("four"));
        fixture.end.send(true).unwrap();
        expect("four\n").await;
        stream.read_to_end(&mut body).await.unwrap();
        assert!(!String::from_utf8_lossy(&body).contains("one"));
    })
    .await;
}

trait Append {
    fn write_all_at_end(&mut self, text: &str);
}

impl Append for std::fs::File {
    fn write_all_at_end(&mut self, text: &str) {
        std::io::Write::write_all(self, text.as_bytes()).unwrap();
    }
}

#[tokio::test]
async fn what_has_no_log_says_so_in_upstreams_words() {
    let fixture = fixture().await;
    let table = [
        (
            "/containerLogs/ns/p/later",
            "400",
            r#"container \"later\" in pod \"p\" is waiting to start: ContainerCreating"#,
        ),
        ("/containerLogs/ns/p/c?previous=true", "400", r#"previous terminated container \"c\" in pod \"p\" not found"#),
        ("/containerLogs/ns/p/none", "404", r#"container \"none\" not found in pod \"p\""#),
        ("/containerLogs/ns/none/c", "404", r#"pod \"none\" does not exist"#),
        ("/exec/ns/p/later?command=x&output=1", "500", r#"container not found (\"later\")"#),
        ("/exec/ns/p/c?output=1", "400", "at least one command"),
        ("/attach/ns/p/c", "400", "at least 1 of stdin, stdout, stderr"),
        ("/nowhere", "404", "could not find the requested resource"),
    ];
    for (path, code, message) in table {
        let head = format!("GET {path} HTTP/1.1\r\nConnection: close");
        let (answer, mut stream) = within(fixture.request(Some(("api-server", "x")), &head)).await;
        let mut body = String::new();
        within(stream.read_to_string(&mut body)).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {code}")) && body.contains(message), "{path}: {answer}{body}");
    }
}

#[tokio::test]
async fn x3_the_machines_logs_are_served_and_nothing_beside_them() {
    let fixture = fixture().await;
    let logs = fixture.dir.path().join("machine");
    std::fs::create_dir(logs.join("sub")).unwrap();
    std::fs::write(logs.join("sub/syslog"), "hello\n").unwrap();
    std::fs::write(fixture.dir.path().join("0.log"), "another\n").unwrap();
    std::os::unix::fs::symlink("..", logs.join("up")).unwrap();
    for (path, code, told) in [
        ("/logs", "301", "location: logs/"),
        ("/logs/", "200", "<a href=\"./sub/\">sub/</a>"),
        ("/logs/sub", "301", "location: sub/"),
        ("/logs/sub/syslog", "200", "hello\n"),
        ("/logs/up/0.log", "404", "404 page not found"),
        ("/logs/%2e%2e/0.log", "404", "404 page not found"),
        ("/logs/..%2f0.log", "404", "404 page not found"),
    ] {
        let head = format!("GET {path} HTTP/1.1\r\nConnection: close");
        let (answer, mut stream) = within(fixture.request(Some(("api-server", "x")), &head)).await;
        let mut body = String::new();
        within(stream.read_to_string(&mut body)).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {code}")), "{path}: {answer}");
        assert!(format!("{answer}{body}").contains(told), "{path}: {answer}{body}");
    }
}

#[tokio::test]
async fn what_is_used_is_told_in_upstreams_two_forms() {
    let fixture = fixture().await;
    within(async {
        let answer = async |path: &str| {
            let head = format!("GET /{path} HTTP/1.1\r\nConnection: close");
            let (answer, mut stream) = fixture.request(Some(("api-server", "x")), &head).await;
            let mut body = Vec::new();
            stream.read_to_end(&mut body).await.unwrap();
            format!("{answer}{}", String::from_utf8(body).unwrap())
        };
        let summary = answer("stats/summary").await;
        assert!(summary.contains(r#""podRef":{"name":"p","namespace":"ns","uid":"u"}"#), "{summary}");
        assert!(summary.contains(r#""usageCoreNanoSeconds":1500000000"#), "{summary}");
        assert!(summary.contains(r#""workingSetBytes":1024"#), "{summary}");
        let short = answer("stats/summary?only_cpu_and_memory=true").await;
        assert!(short.contains("usageCoreNanoSeconds") && !short.contains("pvcRef"), "{short}");
        let text = answer("metrics/resource").await;
        let line = r#"container_cpu_usage_seconds_total{container="c",namespace="ns",pod="p"} 1.500000000 "#;
        assert!(text.contains(line), "{text}");
        // The pod's own group, which also counts what has ended.
        assert!(text.contains(r#"pod_cpu_usage_seconds_total{namespace="ns",pod="p"} 2.500000000 "#), "{text}");
        for told in [
            r#""volume":[{"availableBytes":"#,
            r#""pvcRef":{"name":"data-p","namespace":"ns"}"#,
            r#""rxBytes":77"#,
            r#""imageFs":{"#,
        ] {
            assert!(summary.contains(told), "{told}: {summary}");
        }
        let text = answer("metrics").await;
        let line = r#"kubelet_volume_stats_capacity_bytes{namespace="ns",persistentvolumeclaim="data-p"} "#;
        assert!(text.contains(line) && text.contains("kubelet_running_pods 1\n"), "{text}");
        assert!(text.contains("kubelet_running_containers{container_state=\"running\"} 1\n"), "{text}");
        let text = answer("metrics/cadvisor").await;
        for line in [
            "container_cpu_usage_seconds_total{container=\"c\",cpu=\"total\",id=\"/mainstay/podu/c\",image=\"i:1\",\
                name=\"u/c/0\",namespace=\"ns\",pod=\"p\"} 1.500000000 ",
            "container_memory_working_set_bytes{container=\"\",id=\"/mainstay/podu\",image=\"\",name=\"\",\
                namespace=\"ns\",pod=\"p\"} 0 ",
            "container_network_receive_bytes_total{container=\"\",id=\"/mainstay/podu\",image=\"\",interface=\"eth0\",\
                name=\"u\",namespace=\"ns\",pod=\"p\"} 77 ",
            "container_memory_working_set_bytes{container=\"\",id=\"/\",image=\"\",name=\"\",namespace=\"\",pod=\"\"} ",
            "container_fs_usage_bytes{container=\"\",device=\"",
            "machine_cpu_cores ",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert!(answer("metrics/probes").await.contains("prober_probe_total 1\n"));
        let running = answer("runningpods/").await;
        assert!(running.contains(r#""containers":[{"image":"i:1","name":"c","resources":{}}]"#), "{running}");
    })
    .await;
}
