//! `kubectl port-forward`: pairs of SPDY streams to ports inside a pod's network namespace.
//!
//! A pair has one `requestID`: an error stream that carries at most one message, and a data stream. Its `port` header
//! names the port. The SPDY connection is the client's own, or lies inside a WebSocket tunnel.
//!
//! Over a WebSocket's own channels each port that the request names has two, data (even) and error (odd), and one
//! connection to the pod, which is made at once. Both begin with the port in two bytes, the lower one first.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use mainstay_tasks::listen::sleep_until;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::channels::{Input, MAX_PIECE, Output};
use super::spdy::channels::STREAM_CREATION_TIMEOUT;
use super::spdy::connection::{Connection, MAX_STREAMS, Stream};
use super::websocket::{PortChannels, Ports};

/// How long a process in the pod may take to accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The pod whose ports are reached.
#[derive(Clone, Debug)]
pub struct ForwardTarget {
    pub pod: String,
    pub uid: String,
    /// The file that pins the pod's network namespace; None for the node's own.
    pub network: Option<PathBuf>,
}

/// One half of a pair waits here for the other.
struct Half {
    since: Instant,
    stream: Stream,
    is_error: bool,
}

/// Serves a connection until the client closes it.
pub async fn run(connection: Connection, target: ForwardTarget) {
    let (mut streams, link) = connection.into_parts();
    let mut halves: BTreeMap<String, Half> = BTreeMap::new();
    let mut forwards = JoinSet::new();
    loop {
        let oldest = halves.values().map(|half| half.since).min();
        let deadline = oldest.map(|oldest| oldest + STREAM_CREATION_TIMEOUT);
        tokio::select! {
            stream = streams.recv() => {
                let Some(stream) = stream else { break };
                if let Some((error, data)) = pair(&mut halves, stream) {
                    forwards.spawn(forward_pair(target.clone(), error, data));
                }
            }
            Some(_) = forwards.join_next() => {}
            () = link.closed() => break,
            () = sleep_until(deadline) => halves.retain(|_, half| half.since.elapsed() < STREAM_CREATION_TIMEOUT),
        }
    }
}

/// The stream with its other half, if that was there: (error, data).
fn pair(halves: &mut BTreeMap<String, Half>, stream: Stream) -> Option<(Stream, Stream)> {
    let is_error = match stream.headers.get("streamtype") {
        Some("error") => true,
        Some("data") => false,
        _ => return None,
    };
    // Clients before Kubernetes 1.1 send no id: their data stream is the one after the error stream.
    let without = if is_error { stream.id } else { stream.id.saturating_sub(2) };
    let request = stream.headers.get("requestid").map_or_else(|| without.to_string(), str::to_owned);
    match halves.remove(&request) {
        Some(half) if half.is_error != is_error => {
            let other = half.stream;
            Some(if is_error { (stream, other) } else { (other, stream) })
        }
        _ => {
            if halves.len() < MAX_STREAMS {
                halves.insert(request, Half { since: Instant::now(), stream, is_error });
            }
            None
        }
    }
}

/// Serves the ports of a WebSocket's channels until all their connections have ended, or the client is gone.
pub async fn run_ports(ports: Ports, target: ForwardTarget) {
    let Ports { pairs, link } = ports;
    let mut forwards = JoinSet::new();
    for PortChannels { port, input, mut output, mut errors } in pairs {
        let target = target.clone();
        forwards.spawn(async move {
            let first = Bytes::copy_from_slice(&port.to_le_bytes());
            if output.write(first.clone()).await.is_ok() && errors.write(first).await.is_ok() {
                forward(target, port.to_string(), input, output, errors).await;
            }
        });
    }
    tokio::select! {
        () = async { while forwards.join_next().await.is_some() {} } => {}
        () = link.closed() => forwards.shutdown().await,
    }
    link.finish().await;
}

async fn forward_pair(target: ForwardTarget, error: Stream, data: Stream) {
    let asked = data.headers.get("port").or_else(|| error.headers.get("port")).unwrap_or_default().to_owned();
    forward(target, asked, data.input, data.output, error.output).await;
}

async fn forward(target: ForwardTarget, asked: String, input: Input, output: Output, mut failures: Output) {
    let connected = match asked.parse::<u16>() {
        Ok(port @ 1..) => connect(&target, port).await.map_err(|error| error.to_string()),
        _ => Err("the port is not a number from 1 to 65535".to_owned()),
    };
    match connected {
        Ok(tcp) => {
            let gone = output.gone();
            tokio::select! {
                () = gone => (),
                () = copy(tcp, input, output) => (),
            }
        }
        Err(why) => {
            let ForwardTarget { pod, uid, .. } = &target;
            let _ =
                failures.write(format!("error forwarding port {asked} to pod {pod}, uid {uid}: {why}").into()).await;
            output.end().await;
        }
    }
    failures.end().await;
}

/// Until the pod has said all. A client that has said all may still listen, but not the other way round: kubectl closes
/// its own connection only when both of a pair's streams have ended, and its stream only with that connection.
async fn copy(mut tcp: TcpStream, mut from_client: Input, mut to_client: Output) {
    let (mut read, mut write) = tcp.split();
    let up = async {
        while let Some(bytes) = from_client.read().await {
            if write.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = write.shutdown().await;
    };
    let down = async {
        let mut buffer = vec![0u8; MAX_PIECE];
        while let Ok(length @ 1..) = read.read(&mut buffer).await {
            if to_client.write(Bytes::copy_from_slice(buffer.get(..length).unwrap_or_default())).await.is_err() {
                return;
            }
        }
        to_client.end().await;
    };
    tokio::select! {
        () = down => {}
        () = async { up.await; std::future::pending().await } => {}
    }
}

/// The pod's `localhost`: its IPv4 address, then its IPv6 one.
async fn connect(target: &ForwardTarget, port: u16) -> io::Result<TcpStream> {
    let first = connect_to(target, IpAddr::V4(Ipv4Addr::LOCALHOST), port).await;
    match first {
        Ok(stream) => Ok(stream),
        Err(error) => match connect_to(target, IpAddr::V6(Ipv6Addr::LOCALHOST), port).await {
            Ok(stream) => Ok(stream),
            // The first failure says more: many pods have no IPv6 at all.
            Err(_) => Err(error),
        },
    }
}

async fn connect_to(target: &ForwardTarget, address: IpAddr, port: u16) -> io::Result<TcpStream> {
    let network = target.network.clone();
    let made = tokio::task::spawn_blocking(move || socket_in(network, address)).await.map_err(io::Error::other)??;
    let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(made));
    let address = SocketAddr::new(address, port);
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, socket.connect(address)).await;
    let stream = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(|error| {
        let why = match error.kind() {
            io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
            io::ErrorKind::TimedOut => "i/o timeout".to_owned(),
            _ => error.to_string(),
        };
        io::Error::new(error.kind(), format!("dial tcp {address}: connect: {why}"))
    })?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A socket that lives in another network namespace. Blocking.
fn socket_in(network: Option<PathBuf>, address: IpAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let make = move || Ok(socket(family, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)?);
    let Some(network) = network else { return make() };
    let network = std::fs::File::open(network)?;
    // A thread of its own changes namespace and ends; the socket stays where it was made.
    let thread = std::thread::Builder::new().name("port-forward".to_owned()).spawn(move || {
        setns(network.as_fd(), CloneFlags::CLONE_NEWNET)?;
        make()
    })?;
    thread.join().map_err(|_| io::Error::other("the thread in the pod's network namespace died"))?
}
