//! Bodies that become a thousand times what they are when they are read: YAML that repeats itself, protobuf and JSON of
//! the smallest parts.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::bench::cluster::{Cluster, NAMESPACE};

/// How often each is sent, at the same time.
const EACH: usize = 3;
/// The text that aliases repeat, how often, and how deep anchors stand within each other.
const TEXT: usize = 1 << 20;
const ALIASES: usize = 9_000;
const ANCHORS: usize = 110;

/// Content type and body of each.
fn all() -> Vec<(&'static str, Vec<u8>)> {
    let yaml = "application/apply-patch+yaml";
    let head = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: bomb}\ndata:\n";
    let aliases: String = (0..ALIASES).map(|index| format!("  k{index}: *a\n")).collect();
    let anchors: String = (0..ANCHORS).map(|level| format!("&a{level} [")).collect();
    let items = "{a: b}, ".repeat(100_000);
    let merges: String = (0..ALIASES).map(|_| "<<: *a, ".to_owned()).collect();
    let fields: String = (0..1000).map(|index| format!("f{index}: x, ")).collect();
    vec![
        (yaml, format!("{head}  a: &a {}\n{aliases}", "x".repeat(TEXT)).into_bytes()),
        (yaml, format!("{head}  a: {anchors}{items}{}\n", "]".repeat(ANCHORS)).into_bytes()),
        (yaml, format!("{head}  a: &a {{{fields}}}\n  b: {{{merges}}}\n").into_bytes()),
        ("application/apply-patch+yaml", format!("{{\"data\":[{}1]}}", "{\"a\":[1]},".repeat(280_000)).into_bytes()),
        ("application/apply-patch+yaml", format!("{{\"data\":[{}1]}}", "[[1]],".repeat(450_000)).into_bytes()),
    ]
}

/// Each must be refused, and cost little.
pub async fn bombs(cluster: &Cluster) -> Result<String> {
    let begun = Instant::now();
    let mut sent = tokio::task::JoinSet::new();
    let config = cluster.client.config();
    for (content_type, body) in all() {
        for _ in 0..EACH {
            let connector = TlsConnector::from(Arc::new(config.tls(&[b"http/1.1"])?));
            let (server, body) = (config.server.clone(), body.clone());
            sent.spawn(async move { send(connector, &server, content_type, &body).await });
        }
    }
    let count = sent.len();
    while let Some(done) = sent.join_next().await {
        let line = done??;
        let refused = ["400", "413", "422", "429"].iter().any(|code| line.starts_with(&format!("HTTP/1.1 {code} ")));
        ensure!(refused, "{line}");
    }
    Ok(format!("{count} bodies of 1 to 3 MB, all refused, in {:.1} s", begun.elapsed().as_secs_f64()))
}

/// The answer's first line.
async fn send(connector: TlsConnector, server: &str, content_type: &str, body: &[u8]) -> Result<String> {
    let name = rustls::pki_types::ServerName::try_from("127.0.0.1").context("a name")?;
    let mut stream = connector.connect(name, TcpStream::connect(server).await?).await?;
    let head = format!(
        "PATCH /api/v1/namespaces/{NAMESPACE}/configmaps/bomb?fieldManager=attack HTTP/1.1\r\nhost: a\r\n\
         content-type: {content_type}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body).await?;
    stream.flush().await?;
    let mut answer = Vec::new();
    // Whoever hangs up after the answer, without a farewell, has answered.
    let _ = stream.read_to_end(&mut answer).await;
    Ok(String::from_utf8_lossy(&answer).lines().next().unwrap_or("").to_owned())
}
