//! Connections that nobody uses, of every phase, without a certificate.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use mainstay_client::Config;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::bench::cluster::Cluster;

/// Connections at a time; one that is cut is opened again.
const COUNT: usize = 2046;
/// How long they are held.
const WINDOW: Duration = Duration::from_secs(20);
/// How many are opened at a time.
const AT_ONCE: usize = 16;

/// A connection that says no more.
enum Idle {
    Plain { _stream: TcpStream },
    Tls { _stream: Box<TlsStream<TcpStream>> },
}

/// Against the API server.
pub async fn api(cluster: &Cluster) -> Result<String> {
    flood(cluster, &cluster.client.config().server.clone()).await
}

/// Against the node's port.
pub async fn node(cluster: &Cluster) -> Result<String> {
    flood(cluster, "127.0.0.1:10250").await
}

async fn flood(cluster: &Cluster, address: &str) -> Result<String> {
    let mut config = cluster.client.config().clone();
    config.identity = None;
    let begun = Instant::now();
    let room = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..COUNT {
        let (config, address, room) = (config.clone(), address.to_owned(), room.clone());
        tasks.spawn(async move {
            let mut opened = 0usize;
            while begun.elapsed() < WINDOW {
                let permit = room.acquire().await?;
                let idle = tokio::time::timeout(WINDOW, open(&config, &address, index)).await;
                drop(permit);
                if let Ok(Ok(idle)) = idle {
                    opened += 1;
                    // Held until the end; whoever is cut comes back a second later.
                    tokio::time::sleep(WINDOW.saturating_sub(begun.elapsed()).min(Duration::from_secs(5))).await;
                    drop(idle);
                }
            }
            anyhow::Ok(opened)
        });
    }
    let mut opened = 0;
    while let Some(done) = tasks.join_next().await {
        opened += done??;
    }
    Ok(format!("{opened} idle connections of 5 phases in {} s, {COUNT} at a time", WINDOW.as_secs()))
}

async fn open(config: &Config, address: &str, index: usize) -> Result<Idle> {
    let (mut stream, phase) = (TcpStream::connect(address).await?, index % 5);
    match phase {
        0 => return Ok(Idle::Plain { _stream: stream }),
        1 => {
            stream.write_all(&[0x16, 3, 1, 2, 0, 1]).await?;
            return Ok(Idle::Plain { _stream: stream });
        }
        _ => {}
    }
    let connector = TlsConnector::from(Arc::new(config.tls(&[b"http/1.1"])?));
    let name = rustls::pki_types::ServerName::try_from("127.0.0.1").context("a name")?;
    let mut stream = connector.connect(name, stream).await?;
    let begun: &[u8] = match phase {
        2 => b"",
        3 => b"GET /livez HTTP/1.1\r\nhost: a\r\n",
        _ => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    };
    stream.write_all(begun).await?;
    stream.flush().await?;
    Ok(Idle::Tls { _stream: Box::new(stream) })
}
