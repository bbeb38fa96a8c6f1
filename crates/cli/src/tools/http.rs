//! A small HTTP client: one GET, one answer.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::dns;

/// How long connecting, and each read, may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The largest page.
const MAX_PAGE: u64 = 16 << 20;

/// The page at `path` of a server; an answer that is not 200 is an error.
pub fn get(server: SocketAddr, host: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&server, TIMEOUT).with_context(|| format!("connecting to {server}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.take(MAX_PAGE).read_to_end(&mut answer).with_context(|| format!("reading from {server}"))?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is not HTTP")?;
    let status = head.lines().next().unwrap_or("");
    if status.split_whitespace().nth(1) != Some("200") {
        bail!("{status}");
    }
    Ok(body.to_owned())
}

/// The page at a URL: `http://host[:port][/path]`.
pub fn fetch(url: &str) -> Result<String> {
    let rest = url.strip_prefix("http://").context("only http:// addresses can be fetched")?;
    let (authority, path) =
        rest.split_once('/').map_or((rest, "/".to_owned()), |(authority, path)| (authority, format!("/{path}")));
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().with_context(|| format!("port {port}"))?),
        None => (authority, 80),
    };
    get(SocketAddr::new(dns::address(host)?, port), authority, &path)
}
