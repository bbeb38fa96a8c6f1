//! Streams that are asked for and never read: exec, attach, logs, port-forward and proxied answers without an end
//! (X4, X7). What is not read must be held back where it comes from, and gone when its client is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use mainstay_api::kinds;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::bench::cluster::{Cluster, NAMESPACE};
use crate::bench::processes;

const IMAGE: &str = "test.local/busybox:1";
const POD: &str = "streams";
/// Streams of each kind.
const EACH: usize = 100;
/// How many are opened at a time.
const AT_ONCE: usize = 8;
/// How long they are left unread.
const WINDOW: Duration = Duration::from_secs(10);
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a client's kernel takes in before it is read (bytes): little.
const RECEIVED: u32 = 4 << 10;
const LOOK: Duration = Duration::from_millis(100);
/// Makes a request one of WebSocket messages.
const UPGRADE: &str = "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
    sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\nsec-websocket-protocol: v4.channel.k8s.io\r\n";

/// A kind of stream: its path below the pod's or the Service's, whether it is upgraded, and what is asked of it then.
struct Kind {
    name: &'static str,
    path: &'static str,
    is_upgraded: bool,
    then: &'static str,
}

const KINDS: [Kind; 6] = [
    Kind {
        name: "exec",
        path: "pods/streams/exec?container=http&command=yes&stdout=true",
        is_upgraded: true,
        then: "",
    },
    Kind { name: "attach", path: "pods/streams/attach?container=talk&stdout=true", is_upgraded: true, then: "" },
    Kind { name: "log", path: "pods/streams/log?container=talk&follow=true", is_upgraded: false, then: "" },
    Kind {
        name: "portforward",
        path: "pods/streams/portforward?ports=8080",
        is_upgraded: true,
        then: "GET /endless HTTP/1.0\r\n\r\n",
    },
    Kind { name: "pods/proxy", path: "pods/streams:8080/proxy/endless", is_upgraded: false, then: "" },
    Kind { name: "services/proxy", path: "services/streams:8080/proxy/endless", is_upgraded: false, then: "" },
];

/// By the administrator, who may do so. The pod is gone afterwards.
pub async fn unread(cluster: &Cluster) -> Result<String> {
    begin(cluster).await?;
    let pid = cluster.pid()?;
    let before = children(pid)?;
    let mut most = before;
    let mut held = Vec::new();
    let mut said = Vec::new();
    for kind in &KINDS {
        let memory = || processes::memory(pid).map(|now| now.rss);
        let without = memory()?;
        let opened = open_all(cluster, kind).await?;
        ensure!(!opened.is_empty(), "no {} was opened", kind.name);
        tokio::time::sleep(LOOK * 10).await;
        let each = memory()?.saturating_sub(without) / opened.len() as u64;
        // Now: later connections of the same client may take the place of these.
        most = most.max(children(pid)?);
        said.push(format!("{} {} ({each} KiB each)", opened.len(), kind.name));
        held.extend(opened);
    }
    tokio::time::sleep(WINDOW).await;
    ensure!(most > before, "no command was seen to run");
    drop(held);
    let (gone, mut left) = (Instant::now(), most);
    while left > before && gone.elapsed() < PATIENCE {
        tokio::time::sleep(LOOK).await;
        left = children(pid)?;
    }
    end(cluster).await?;
    ensure!(left <= before, "{} of {} commands run on without their clients", left - before, most - before);
    Ok(format!("unread: {}; {} commands, gone after {} ms", said.join(", "), most - before, gone.elapsed().as_millis()))
}

/// A pod that writes for ever, and serves a file that nobody reads to its end.
async fn begin(cluster: &Cluster) -> Result<()> {
    let talk = "yes 'a line that is written again and again, whether or not anybody reads it'";
    let http = "mkdir /www; truncate -s 100G /www/endless; exec httpd -f -p 8080 -h /www";
    let container = |name: &str, script: &str| {
        json!({ "name": name, "image": IMAGE, "command": ["sh", "-c", script],
            "resources": { "limits": { "cpu": "300m" } } })
    };
    let pod = json!({ "metadata": { "name": POD, "labels": { "app": POD } }, "spec": {
        "terminationGracePeriodSeconds": 0, "containers": [container("talk", talk), container("http", http)] } });
    cluster.client.create(&kinds::POD, NAMESPACE, &pod).await?;
    let service = json!({ "metadata": { "name": POD }, "spec": { "selector": { "app": POD },
        "ports": [{ "port": 8080 }] } });
    cluster.client.create(&kinds::SERVICE, NAMESPACE, &service).await?;
    let begun = Instant::now();
    let path = format!("/api/v1/namespaces/{NAMESPACE}/services/{POD}:8080/proxy/");
    loop {
        let pod = cluster.client.get(&kinds::POD, NAMESPACE, POD).await?;
        let is_running = pod.pointer("/status/phase").and_then(Value::as_str) == Some("Running");
        // Whatever it answers: there is no index.
        let answered = cluster.client.get_text(&path).await;
        if is_running && answered.as_ref().err().is_none_or(|error| error.code() == Some(404)) {
            return Ok(());
        }
        ensure!(begun.elapsed() < PATIENCE, "the pod does not answer: {answered:?}");
        tokio::time::sleep(LOOK).await;
    }
}

async fn end(cluster: &Cluster) -> Result<()> {
    cluster.client.delete(&kinds::POD, NAMESPACE, POD, &json!({ "gracePeriodSeconds": 0 })).await?;
    cluster.client.delete(&kinds::SERVICE, NAMESPACE, POD, &json!({})).await?;
    Ok(())
}

type Stream = TlsStream<tokio::net::TcpStream>;

/// As many as one user gets.
async fn open_all(cluster: &Cluster, kind: &'static Kind) -> Result<Vec<Stream>> {
    let config = cluster.client.config().clone();
    let (tls, server) = (Arc::new(config.tls(&[b"http/1.1"])?), config.server.clone());
    let room = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..EACH {
        let (tls, server, room) = (tls.clone(), server.clone(), room.clone());
        tasks.spawn(async move {
            let _permit = room.acquire().await?;
            tokio::time::timeout(PATIENCE, open(tls, &server, kind)).await?
        });
    }
    let mut opened = Vec::new();
    while let Some(done) = tasks.join_next().await {
        // One user may only have so many connections.
        opened.extend(done?.ok());
    }
    Ok(opened)
}

/// One stream, of which the beginning is read and no more.
async fn open(tls: Arc<rustls::ClientConfig>, server: &str, kind: &Kind) -> Result<Stream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(RECEIVED)?;
    let stream = socket.connect(server.parse()?).await?;
    let name = rustls::pki_types::ServerName::try_from("127.0.0.1").context("a name")?;
    let mut stream = TlsConnector::from(tls).connect(name, stream).await?;
    let upgrade = if kind.is_upgraded { UPGRADE } else { "" };
    let request = format!("GET /api/v1/namespaces/{NAMESPACE}/{} HTTP/1.1\r\nhost: a\r\n{upgrade}\r\n", kind.path);
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut begun = [0; 12];
    stream.read_exact(&mut begun).await?;
    let expected: &[u8] = if kind.is_upgraded { b"HTTP/1.1 101" } else { b"HTTP/1.1 200" };
    ensure!(begun == expected, "{}: {}", kind.name, String::from_utf8_lossy(&begun));
    if !kind.then.is_empty() {
        stream.write_all(&message(0, kind.then.as_bytes())).await?;
        stream.flush().await?;
    }
    Ok(stream)
}

/// A client's short WebSocket message on a channel, under a mask of zeros.
fn message(channel: u8, text: &[u8]) -> Vec<u8> {
    let length = u8::try_from(text.len() + 1).unwrap_or(0x7d).min(0x7d);
    [&[0x82, 0x80 | length, 0, 0, 0, 0, channel], text].concat()
}

/// How many processes a process has begun that are still there.
fn children(pid: u32) -> Result<usize> {
    let of = format!("{pid}");
    let begun_by = |entry: std::fs::DirEntry| -> Option<bool> {
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        // After the name, which may have blanks: the state, then the parent.
        Some(stat.rsplit_once(')')?.1.split_whitespace().nth(1)? == of)
    };
    Ok(std::fs::read_dir("/proc")?.flatten().filter_map(begun_by).filter(|is_child| *is_child).count())
}
