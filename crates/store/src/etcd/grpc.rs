//! As much gRPC as etcd needs: unary calls and one stream of each watch, over HTTP/2 without a code generator, so that
//! nobody needs `protoc` to build Mainstay and no second HTTP stack is linked.
//!
//! A message on the wire is one byte (compressed: never), its length in four, and itself; how a call ended is in the
//! trailers, or in the headers of an answer without a body.

use super::OUT_OF_RANGE;
use super::wire::{KeyValue, Malformed, Range, RangeAnswer};
use crate::checksum::of_row;
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
use tokio::sync::{mpsc, watch};

/// How long connecting may take, with TLS.
const CONNECT: Duration = Duration::from_secs(2);
/// How long a watch may take to begin.
const BEGIN: Duration = Duration::from_secs(5);
/// How often a silent connection is asked whether it lives.
const ALIVE: Duration = Duration::from_secs(1);
/// How long it may take to answer that; then another member is gone to.
const ALIVE_ANSWER: Duration = Duration::from_secs(2);
/// How long is waited for why a connection broke.
const WHY: Duration = Duration::from_millis(100);
/// Longest message that is read.
const MAX_MESSAGE: usize = 64 << 20;
/// gRPC's numbers for answers by which nothing was done: the request is wrong, or was not begun. All others leave that
/// open, among them 14 (unavailable: no leader, or the answer to a proposal has not come).
const NOT_DONE: [u32; 7] = [3, 5, 6, 7, 9, 11, 16];
/// Resource exhausted: nothing was done where the member had too much to do, or the message was too long for it. Where
/// the database is full, etcd says so also of a transaction that it has carried out and that filled it.
const EXHAUSTED: u32 = 8;

/// Asks for a member that has a leader. One that is cut off from the others refuses then, and ends its watches, which
/// would stand still for ever otherwise while calls are answered by other members.
const HAS_LEADER: &str = "hasleader";

/// Why a call failed.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum GrpcError {
    /// No member is reached: nothing was asked.
    #[error("{0}")]
    Unsent(String),
    /// One side does not trust the other: nothing was asked, and asking again changes nothing.
    #[error("{0}")]
    Refused(String),
    /// The cluster is not the one that was followed: nothing was asked.
    #[error("{0}")]
    Older(String),
    /// It was asked, and no answer came: the call may have been done or not, or be done later.
    #[error("{0}")]
    Unreachable(String),
    /// etcd's answer.
    #[error("{message} (gRPC status {code})")]
    Status { code: u32, message: String },
    /// What came is no gRPC.
    #[error("etcd's answer makes no sense")]
    Malformed,
    /// The answer is longer than [`MAX_MESSAGE`].
    #[error("etcd's answer is of {0} bytes, more than is read at once")]
    TooLong(usize),
}

impl GrpcError {
    /// Whether nothing was done, now or later.
    pub fn is_not_done(&self) -> bool {
        match self {
            Self::Unsent(_) | Self::Refused(_) | Self::Older(_) => true,
            Self::Status { code: EXHAUSTED, message } => {
                message.contains("too many requests") || message.contains("larger than max")
            }
            Self::Status { code, .. } => NOT_DONE.contains(code),
            Self::Unreachable(_) | Self::Malformed | Self::TooLong(_) => false,
        }
    }
}

impl From<Malformed> for GrpcError {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

fn unreachable(error: impl std::fmt::Display) -> GrpcError {
    GrpcError::Unreachable(error.to_string())
}

fn unsent(error: impl std::fmt::Display) -> GrpcError {
    GrpcError::Unsent(error.to_string())
}

/// An error with what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
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

    /// The host and the port.
    pub fn at(&self) -> (&str, u16) {
        (&self.host, self.port)
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

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        write!(f, "{scheme}://{host}:{}", self.port)
    }
}

/// A client of one etcd cluster. It holds one connection, to whichever member answers.
#[derive(Clone)]
pub(super) struct Client(Arc<Inner>);

struct Inner {
    endpoints: Vec<Endpoint>,
    tls: Option<Arc<rustls::ClientConfig>>,
    held: Mutex<Held>,
    /// Held by whoever connects.
    connecting: tokio::sync::Mutex<()>,
    /// What every member has to know.
    anchor: Mutex<Option<Anchor>>,
}

/// A row of the past: what a key held at a revision. A cluster that was brought back from an older copy does not have
/// it.
#[derive(Clone)]
pub(super) struct Anchor {
    key: Bytes,
    revision: i64,
    sum: u64,
}

impl Anchor {
    pub fn of(kv: &KeyValue) -> Self {
        let sum = of_row(&kv.key, crate::Revision(kv.mod_revision.cast_unsigned()), &kv.value);
        // Not a part of the message that brought it.
        Self { key: Bytes::copy_from_slice(&kv.key), revision: kv.mod_revision, sum }
    }

    fn is(&self, kv: &KeyValue) -> bool {
        let other = Self::of(kv);
        (self.revision, self.sum) == (other.revision, other.sum)
    }
}

#[derive(Default)]
struct Held {
    connection: Option<Connection>,
    /// Which endpoint is tried next.
    next: usize,
    /// How many connections were made.
    made: u64,
}

#[derive(Clone)]
struct Connection {
    /// No other has it.
    number: u64,
    send: http2::SendRequest<Outgoing>,
    endpoint: Endpoint,
    /// Why it ended, when it has.
    ended: watch::Receiver<Option<String>>,
}

impl Client {
    pub fn new(endpoints: Vec<Endpoint>, tls: Option<Arc<rustls::ClientConfig>>) -> Self {
        let (held, connecting, anchor) = Default::default();
        Self(Arc::new(Inner { endpoints, tls, held, connecting, anchor }))
    }

    /// No member is asked for anything from now on that does not know this.
    pub fn anchor(&self, anchor: Anchor) {
        *crate::lock(&self.0.anchor) = Some(anchor);
    }

    /// Whether the cluster behind a new connection is the one that was followed (A3): asked before anything else, since
    /// a write to another one would hide that it is one.
    async fn verify(&self, connection: &Connection) -> Result<(), GrpcError> {
        let Some(anchor) = crate::lock(&self.0.anchor).clone() else { return Ok(()) };
        let range = Range { key: anchor.key.clone(), limit: 1, revision: anchor.revision, ..Range::default() };
        let older = || {
            let revision = anchor.revision;
            GrpcError::Older(format!(
                "etcd does not know what it held at revision {revision}: an older copy was restored there"
            ))
        };
        match exchange(connection.clone(), super::RANGE, range.encode()).await {
            Ok(bytes) if RangeAnswer::decode(bytes.clone())?.kvs.first().is_some_and(|kv| anchor.is(kv)) => Ok(()),
            Ok(_) => Err(older()),
            Err(GrpcError::Status { code: OUT_OF_RANGE, message }) if message.contains("future") => Err(older()),
            // It is forgotten, which says nothing.
            Err(GrpcError::Status { code: OUT_OF_RANGE, .. }) => Ok(()),
            Err(error) => Err(unsent(error)),
        }
    }

    /// One message there, one back, within a time.
    pub async fn call(&self, path: &str, message: Bytes, within: Duration) -> Result<Bytes, GrpcError> {
        let mut used = None;
        let done = tokio::time::timeout(within, self.exchange(path, message, &mut used)).await;
        let error = match done {
            Ok(Ok(bytes)) => return Ok(bytes),
            Ok(Err(error)) => error,
            Err(_) if used.is_none() => unsent("no member answers in time"),
            Err(_) => unreachable("no answer in time"),
        };
        Err(self.judge(error, used).await)
    }

    async fn exchange(&self, path: &str, message: Bytes, used: &mut Option<Connection>) -> Result<Bytes, GrpcError> {
        let connection = self.connection().await?;
        *used = Some(connection.clone());
        exchange(connection, path, message).await
    }

    /// A call whose answers go on until it is dropped.
    pub async fn stream(&self, path: &str, first: Bytes) -> Result<Stream, GrpcError> {
        let (sender, messages) = mpsc::channel(1);
        sender.send(frame(&first)).await.map_err(unsent)?;
        let mut used = None;
        let begin = async {
            let connection = self.connection().await?;
            used = Some(connection.clone());
            let answer = send(connection.clone(), path, Outgoing::Open(messages)).await?;
            let (head, body) = answer.into_parts();
            status(&head.headers)?;
            Ok(Stream { _open: sender, body, read: BytesMut::new(), connection })
        };
        let error = match tokio::time::timeout(BEGIN, begin).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => error,
            Err(late) => unreachable(late),
        };
        Err(self.judge(error, used).await)
    }

    /// What a failure on a connection means. The next call goes to another member.
    async fn judge(&self, error: GrpcError, used: Option<Connection>) -> GrpcError {
        let Some(mut used) = used.filter(|_| matches!(error, GrpcError::Unreachable(_))) else { return error };
        self.forget(used.number);
        // A member that does not like our certificate says so when we think that the handshake is over.
        let why = tokio::time::timeout(WHY, used.ended.wait_for(Option::is_some)).await;
        let why = why.ok().and_then(Result::ok).and_then(|why| why.clone()).unwrap_or_default();
        match refused_by_peer(&used.endpoint, &why, self.has_certificate()) {
            Some(refused) => GrpcError::Refused(refused),
            None => error,
        }
    }

    fn has_certificate(&self) -> bool {
        self.0.tls.as_ref().is_some_and(|tls| tls.client_auth_cert_resolver.has_certs())
    }

    /// The next call goes to another member.
    pub fn leave(&self, stream: &Stream) {
        self.forget(stream.connection.number);
    }

    fn forget(&self, number: u64) {
        let mut held = crate::lock(&self.0.held);
        held.connection.take_if(|connection| connection.number == number);
    }

    fn held(&self) -> Option<Connection> {
        let held = crate::lock(&self.0.held);
        held.connection.clone().filter(|connection| !connection.send.is_closed())
    }

    /// The connection that there is, or a new one to the first member that answers.
    async fn connection(&self) -> Result<Connection, GrpcError> {
        if let Some(connection) = self.held() {
            return Ok(connection);
        }
        let _connecting = self.0.connecting.lock().await;
        if let Some(connection) = self.held() {
            return Ok(connection);
        }
        let mut last = unsent("no endpoint is given");
        for _ in 0..self.0.endpoints.len() {
            let (index, number) = {
                let mut held = crate::lock(&self.0.held);
                (held.next, held.made) = (held.next.wrapping_add(1), held.made + 1);
                (held.next.wrapping_sub(1), held.made)
            };
            let endpoint = &self.0.endpoints[index % self.0.endpoints.len()];
            let connect = async {
                let connection = tokio::time::timeout(CONNECT, self.connect(endpoint, number)).await;
                let connection = connection.unwrap_or_else(|_| Err(unsent(format!("{endpoint} does not answer"))))?;
                self.verify(&connection).await.map(|()| connection)
            };
            let error = match tokio::time::timeout(2 * CONNECT, connect).await {
                Ok(Ok(connection)) => {
                    crate::lock(&self.0.held).connection = Some(connection.clone());
                    return Ok(connection);
                }
                Ok(Err(error)) => error,
                Err(_) => unsent(format!("{endpoint} does not answer")),
            };
            // One that refuses says more than one that is not there.
            if !matches!(last, GrpcError::Refused(_) | GrpcError::Older(_)) {
                last = error;
            }
        }
        Err(last)
    }

    async fn connect(&self, endpoint: &Endpoint, number: u64) -> Result<Connection, GrpcError> {
        let silent = |error: &dyn std::error::Error| unsent(format!("{endpoint}: {}", chain(error)));
        let at = (endpoint.host.as_str(), endpoint.port);
        let stream = TcpStream::connect(at).await.map_err(|error| silent(&error))?;
        stream.set_nodelay(true).map_err(|error| silent(&error))?;
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).keep_alive_interval(ALIVE).keep_alive_timeout(ALIVE_ANSWER);
        builder.keep_alive_while_idle(true).adaptive_window(true);
        let (end, ended) = watch::channel(None);
        let note = move |done: Result<(), hyper::Error>| {
            let why =
                done.err().map_or_else(|| "the member has closed the connection".to_owned(), |error| chain(&error));
            drop(end.send(Some(why)));
        };
        let send = if endpoint.tls {
            let Some(tls) = self.0.tls.clone() else {
                return Err(GrpcError::Refused(format!("no CA is given for {endpoint}")));
            };
            let name = ServerName::try_from(endpoint.host.clone()).map_err(|error| silent(&error))?;
            let connecting = tokio_rustls::TlsConnector::from(tls).connect(name, stream).await;
            let stream = connecting.map_err(|error| refused_by_us(endpoint, &error, self.has_certificate()))?;
            let shaken = builder.handshake(TokioIo::new(stream)).await;
            let (send, driver) = shaken.map_err(|error| silent(&error))?;
            tokio::spawn(async move { note(driver.await) });
            send
        } else {
            let shaken = builder.handshake(TokioIo::new(stream)).await;
            let (send, driver) = shaken.map_err(|error| silent(&error))?;
            tokio::spawn(async move { note(driver.await) });
            send
        };
        Ok(Connection { number, send, endpoint: endpoint.clone(), ended })
    }
}

async fn exchange(connection: Connection, path: &str, message: Bytes) -> Result<Bytes, GrpcError> {
    let answer = send(connection, path, Outgoing::One(Some(frame(&message)))).await?;
    let (head, mut body) = answer.into_parts();
    status(&head.headers)?;
    let (mut read, mut message) = (BytesMut::new(), None);
    while let Some(frame) = body.frame().await {
        match frame.map_err(|error| unreachable(chain(&error)))?.into_data() {
            // Nothing comes after the one message.
            Ok(bytes) if message.is_some() && !bytes.is_empty() => return Err(GrpcError::Malformed),
            Ok(bytes) => {
                read.extend_from_slice(&bytes);
                message = message.or(unframe(&mut read)?);
            }
            Err(frame) => frame.trailers_ref().map_or(Ok(()), status)?,
        }
    }
    message.ok_or_else(|| unreachable("the answer ended early"))
}

async fn send(mut connection: Connection, path: &str, body: Outgoing) -> Result<http::Response<Incoming>, GrpcError> {
    let request = http::Request::post(format!("{}{path}", connection.endpoint))
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .header(HAS_LEADER, "true")
        .body(body)
        .map_err(unsent)?;
    connection.send.ready().await.map_err(|error| unreachable(chain(&error)))?;
    connection.send.send_request(request).await.map_err(|error| unreachable(chain(&error)))
}

/// A handshake that failed: in words what a person can mend; else the member is not there.
fn refused_by_us(endpoint: &Endpoint, error: &std::io::Error, has_certificate: bool) -> GrpcError {
    use rustls::{CertificateError, Error};
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    GrpcError::Refused(match inner {
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) => {
            format!("the certificate of {endpoint} is not signed by the CA that was given for etcd")
        }
        Some(Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => format!("the certificate of {endpoint} is not for {}", endpoint.host),
        Some(Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })) => {
            format!("the certificate of {endpoint} has expired")
        }
        Some(Error::InvalidCertificate(other)) => format!("the certificate of {endpoint} is not accepted: {other}"),
        Some(Error::InvalidMessage(_)) => format!("{endpoint} does not speak TLS; is it http://?"),
        _ => match refused_by_peer(endpoint, &chain(error), has_certificate) {
            Some(refused) => refused,
            None => return unsent(format!("{endpoint}: {}", chain(error))),
        },
    })
}

/// What a member's TLS says when it does not like our certificate, in words.
fn refused_by_peer(endpoint: &Endpoint, why: &str, has_certificate: bool) -> Option<String> {
    let (_, alert) = why.split_once("fatal alert: ")?;
    Some(match has_certificate {
        false => format!("{endpoint} asks for a client certificate, and none is given"),
        true => format!("{endpoint} does not accept this server's client certificate ({alert})"),
    })
}

/// The answers of a watch.
pub(super) struct Stream {
    /// While it is held the request goes on.
    _open: mpsc::Sender<Bytes>,
    body: Incoming,
    read: BytesMut,
    connection: Connection,
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
                Some(Err(error)) => return Err(unreachable(chain(&error))),
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
    if head[0] != 0 {
        return Err(GrpcError::Malformed);
    }
    if length > MAX_MESSAGE {
        return Err(GrpcError::TooLong(length));
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
        // Unavailable: no leader, or the member stops, or it does not know what became of a proposal.
        Some(14) => Err(unreachable(text("grpc-message").unwrap_or("unavailable"))),
        Some(code) => Err(GrpcError::Status { code, message: text("grpc-message").unwrap_or("").to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_have_been_done_is_told_from_what_was_not_a9() {
        let status = |code| GrpcError::Status { code, message: String::new() };
        assert!(unsent("").is_not_done() && GrpcError::Refused(String::new()).is_not_done());
        let exhausted = |message: &str| GrpcError::Status { code: 8, message: message.to_owned() };
        assert!(exhausted("etcdserver: too many requests").is_not_done());
        assert!(exhausted("grpc: received message larger than max (3000000 vs. 2097152)").is_not_done());
        assert!(!exhausted("etcdserver: mvcc: database space exceeded").is_not_done(), "it may have filled it");
        // Unknown, deadline exceeded, internal; and whatever breaks after it was sent.
        assert!([2, 4, 13, 14].into_iter().all(|code| !status(code).is_not_done()));
        assert!(!unreachable("").is_not_done() && !GrpcError::Malformed.is_not_done());
    }

    #[test]
    fn an_endpoint_is_written_as_it_is_read() {
        for text in ["https://a:2379", "http://10.0.0.1:1", "https://[fd00::1]:2379"] {
            assert_eq!(Endpoint::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Endpoint::parse("https://a").unwrap().to_string(), "https://a:2379");
        assert_eq!(Endpoint::parse("a:2379"), None);
    }
}
