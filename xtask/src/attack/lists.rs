//! Lists that are asked for and never read.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use mainstay_api::kinds;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::bench::cluster::{Cluster, NAMESPACE};

/// The lists, and what each is of: as many objects of as many bytes.
const LISTS: usize = 400;
const OBJECTS: usize = 14;
const BYTES: usize = 900 << 10;
/// How long they are left unread.
const WINDOW: Duration = Duration::from_secs(10);

/// By the administrator, who may do so.
pub async fn unread(cluster: &Cluster) -> Result<String> {
    let filling = "x".repeat(BYTES);
    let name = |index: usize| format!("large-{index}");
    for index in 0..OBJECTS {
        let map = json!({ "metadata": { "name": name(index) }, "data": { "filling": filling } });
        cluster.client.create(&kinds::CONFIG_MAP, NAMESPACE, &map).await?;
    }
    let config = cluster.client.config();
    let connector = TlsConnector::from(Arc::new(config.tls(&[b"http/1.1"])?));
    let request = format!("GET /api/v1/namespaces/{NAMESPACE}/configmaps HTTP/1.1\r\nhost: a\r\n\r\n");
    let mut asked = Vec::new();
    for _ in 0..LISTS {
        let stream = TcpStream::connect(&config.server).await?;
        let server = rustls::pki_types::ServerName::try_from("127.0.0.1").context("a name")?;
        // One user may only have so many connections.
        let Ok(mut stream) = connector.connect(server, stream).await else { continue };
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        asked.push(stream);
    }
    tokio::time::sleep(WINDOW).await;
    let count = asked.len();
    drop(asked);
    for index in 0..OBJECTS {
        cluster.client.delete(&kinds::CONFIG_MAP, NAMESPACE, &name(index), &json!({})).await?;
    }
    Ok(format!("{count} unread lists of {} MB", OBJECTS * BYTES / 1_000_000))
}
