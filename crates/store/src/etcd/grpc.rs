//! As much gRPC as etcd needs: unary calls and one stream of each watch, over HTTP/2 without a code generator, so that
//! nobody needs `protoc` to build Mainstay and no second HTTP stack is linked.
//!
//! A message on the wire is one byte (compressed: never), its length in four, and itself; how a call ended is in the
//! trailers, or in the headers of an answer without a body.

use super::wire::Malformed;
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderMap, TE};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// How long connecting may take, with TLS.
const CONNECT: Duration = Duration::from_secs(3);
/// How long a call may take.
const CALL: Duration = Duration::from_secs(10);
/// How often a silent connection is asked whether it lives, and how long it may take to answer.
const ALIVE: Duration = Duration::from_secs(3);
/// Longest message that is read.
const MAX_MESSAGE: usize = 64 << 20;

/// Asks for a member that has a leader. One that is cut off from the others refuses then, and ends its watches, which
/// would stand still for ever otherwise while calls are answered by other members.
const HAS_LEADER: &str = "hasleader";

/// Why a call failed.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum GrpcError {
    /// No member answers, or the connection broke: the call may have been done or not.
    #[error("etcd is not reached: {0}")]
    Unreachable(String),
    /// etcd's answer.
    #[error("{message} (gRPC status {code})")]
    Status { code: u32, message: String },
    /// What came is no gRPC.
    #[error("etcd's answer makes no sense")]
    Malformed,
}

impl From<Malformed> for GrpcError {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

fn unreachable(error: impl std::fmt::Display) -> GrpcError {
    GrpcError::Unreachable(error.to_string())
}

/// Where etcd is: `https://10.0.0.1:2379`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    tls: bool,
    host: String,
    port: u16,
}

impl Endpoint {
    /// `http://` or `https://`, a host, and a port (2379 where there is none).
    pub fn parse(text: &str) -> Option<Self> {
        let (tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => return None,
        };
        let authority: http::uri::Authority = rest.trim_end_matches('/').parse().ok()?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        (!host.is_empty()).then(|| Self { tls, host, port: authority.port_u16().unwrap_or(2379) })
    }
}

/// What a request sends: one message, or those of a watch.
pub(super) enum Outgoing {
    One(Option<Bytes>),
    Open(mpsc::Receiver<Bytes>),
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Self::One(message) => Poll::Ready(message.take().map(|message| Ok(Frame::data(message)))),
            Self::Open(messages) => messages.poll_recv(cx).map(|message| message.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::One(None))
    }
}

/// A client of one etcd cluster. It holds one connection, to whichever member answers.
#[derive(Clone)]
pub(super) struct Client(Arc<Inner>);

struct Inner {
    endpoints: Vec<Endpoint>,
    tls: Option<Arc<rustls::ClientConfig>>,
    connection: tokio::sync::Mutex<Option<Connection>>,
    /// Which endpoint is tried next.
    next: Mutex<usize>,
}

#[derive(Clone)]
struct Connection {
    send: http2::SendRequest<Outgoing>,
    /// `https://host:port`
    origin: String,
}

impl Client {
    pub fn new(endpoints: Vec<Endpoint>, tls: Option<Arc<rustls::ClientConfig>>) -> Self {
        Self(Arc::new(Inner { endpoints, tls, connection: tokio::sync::Mutex::default(), next: Mutex::default() }))
    }

    /// One message there, one back.
    pub async fn call(&self, path: &str, message: Bytes) -> Result<Bytes, GrpcError> {
        let work = async {
            let answer = self.send(path, Outgoing::One(Some(frame(&message)))).await?;
            let (head, body) = answer.into_parts();
            status(&head.headers)?;
            let collected = http_body_util::Limited::new(body, MAX_MESSAGE).collect().await.map_err(unreachable)?;
            if let Some(trailers) = collected.trailers() {
                status(trailers)?;
            }
            let mut bytes = BytesMut::from(&collected.to_bytes()[..]);
            unframe(&mut bytes)?.ok_or_else(|| unreachable("the answer ended early"))
        };
        let done = tokio::time::timeout(CALL, work).await.unwrap_or_else(|_| Err(unreachable("no answer in time")));
        if matches!(done, Err(GrpcError::Unreachable(_))) {
            // The next call tries another member.
            *self.0.connection.lock().await = None;
        }
        done
    }

    /// A call whose answers go on until it is dropped.
    pub async fn stream(&self, path: &str, first: Bytes) -> Result<Stream, GrpcError> {
        let (sender, messages) = mpsc::channel(1);
        sender.send(frame(&first)).await.map_err(unreachable)?;
        let sent = self.send(path, Outgoing::Open(messages));
        let answer = tokio::time::timeout(CALL, sent).await.map_err(unreachable)??;
        let (head, body) = answer.into_parts();
        status(&head.headers)?;
        Ok(Stream { _open: sender, body, read: BytesMut::new() })
    }

    async fn send(&self, path: &str, body: Outgoing) -> Result<http::Response<Incoming>, GrpcError> {
        let mut connection = self.connection().await?;
        let request = http::Request::post(format!("{}{path}", connection.origin))
            .header(CONTENT_TYPE, "application/grpc")
            .header(TE, "trailers")
            .header(HAS_LEADER, "true")
            .body(body)
            .map_err(unreachable)?;
        connection.send.ready().await.map_err(unreachable)?;
        connection.send.send_request(request).await.map_err(unreachable)
    }

    /// The connection that there is, or a new one to the first member that answers.
    async fn connection(&self) -> Result<Connection, GrpcError> {
        let mut held = self.0.connection.lock().await;
        if let Some(connection) = held.as_ref().filter(|connection| !connection.send.is_closed()) {
            return Ok(connection.clone());
        }
        let mut last = unreachable("no endpoint is given");
        for _ in 0..self.0.endpoints.len() {
            let index = {
                let mut next = crate::lock(&self.0.next);
                *next += 1;
                *next - 1
            };
            let endpoint = &self.0.endpoints[index % self.0.endpoints.len()];
            match tokio::time::timeout(CONNECT, self.connect(endpoint)).await {
                Ok(Ok(connection)) => {
                    *held = Some(connection.clone());
                    return Ok(connection);
                }
                Ok(Err(error)) => last = error,
                Err(late) => last = unreachable(late),
            }
        }
        Err(last)
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<Connection, GrpcError> {
        let stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).keep_alive_interval(ALIVE).keep_alive_timeout(ALIVE);
        builder.keep_alive_while_idle(true).adaptive_window(true);
        let send = if endpoint.tls {
            let tls = self.0.tls.clone().ok_or_else(|| unreachable("no CA is given for https"))?;
            let name = ServerName::try_from(endpoint.host.clone()).map_err(unreachable)?;
            let stream = tokio_rustls::TlsConnector::from(tls).connect(name, stream).await.map_err(unreachable)?;
            let (send, driver) = builder.handshake(TokioIo::new(stream)).await.map_err(unreachable)?;
            tokio::spawn(driver);
            send
        } else {
            let (send, driver) = builder.handshake(TokioIo::new(stream)).await.map_err(unreachable)?;
            tokio::spawn(driver);
            send
        };
        let host = if endpoint.host.contains(':') { format!("[{}]", endpoint.host) } else { endpoint.host.clone() };
        let scheme = if endpoint.tls { "https" } else { "http" };
        Ok(Connection { send, origin: format!("{scheme}://{host}:{}", endpoint.port) })
    }
}

/// The answers of a watch.
pub(super) struct Stream {
    /// While it is held the request goes on.
    _open: mpsc::Sender<Bytes>,
    body: Incoming,
    read: BytesMut,
}

impl Stream {
    /// The next message. Cancel-safe.
    pub async fn next(&mut self) -> Result<Bytes, GrpcError> {
        loop {
            if let Some(message) = unframe(&mut self.read)? {
                return Ok(message);
            }
            match self.body.frame().await {
                None => return Err(unreachable("the stream ended")),
                Some(Err(error)) => return Err(unreachable(error)),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => self.read.extend_from_slice(&bytes),
                    Err(frame) => {
                        if let Some(trailers) = frame.trailers_ref() {
                            status(trailers)?;
                        }
                    }
                },
            }
        }
    }
}

fn frame(message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(5 + message.len());
    out.put_u8(0);
    out.put_u32(message.len() as u32);
    out.put_slice(message);
    out.freeze()
}

/// The next whole message of what was read.
fn unframe(read: &mut BytesMut) -> Result<Option<Bytes>, GrpcError> {
    let Some(head) = read.get(..5) else { return Ok(None) };
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if head[0] != 0 || length > MAX_MESSAGE {
        return Err(GrpcError::Malformed);
    }
    if read.len() < 5 + length {
        return Ok(None);
    }
    read.advance(5);
    Ok(Some(read.split_to(length).freeze()))
}

fn status(headers: &HeaderMap) -> Result<(), GrpcError> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status").map(|code| code.parse::<u32>().unwrap_or(2)) {
        None | Some(0) => Ok(()),
        // Unavailable: no leader, or the member stops.
        Some(14) => Err(unreachable(text("grpc-message").unwrap_or("unavailable"))),
        Some(code) => Err(GrpcError::Status { code, message: text("grpc-message").unwrap_or("").to_owned() }),
    }
}
