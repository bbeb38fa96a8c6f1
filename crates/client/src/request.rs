//! Requests: one JSON answer each, or a stream of watch events.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mainstay_api::Kind;
use mainstay_api::status::STORE_IS_SILENT;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::{Config, ConfigError};
use crate::connections::{Connections, Opened, Sender, Stream};
use crate::hedging::Budget;

/// The largest answer that is read whole.
const MAX_ANSWER: usize = 256 << 20;
/// The largest single watch event.
const MAX_EVENT: usize = 8 << 20;
/// Requests that are not watches, at a time; more wait.
const MAX_CALLS: usize = 128;
/// How long a connection attempt may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one of several servers may take for it.
const CONNECT_ONE: Duration = Duration::from_secs(3);
/// After so long without an answer another server is asked as well: for a connection, or, since that changes nothing
/// however often it is asked, what a read asks for.
const HEDGE: Duration = Duration::from_millis(250);
/// After so long without an answer to a write, which nobody may ask for twice, other requests go to another server.
const SLOW_WRITE: Duration = Duration::from_secs(1);
/// How often a silent connection is asked whether it lives, and how long it may take to answer: together far less than
/// the time after which a silent node is given up.
const ALIVE: Duration = Duration::from_secs(8);
/// The same where there are other servers to go to: what is under way with one that hangs (writes, watches) ends soon.
const ALIVE_OF_SEVERAL: Duration = Duration::from_secs(2);
/// How long a request that is not a watch may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is unusable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No connection.
    #[error("connecting to {server}: {reason}")]
    Connect {
        /// `host:port`.
        server: String,
        /// What went wrong.
        reason: String,
    },
    /// The connection broke in mid-request; whether the server carried it out is not known.
    #[error("request: {0}")]
    Transport(String),
    /// The connection broke before anything of the request was sent.
    #[error("request: {0}")]
    Unsent(String),
    /// It took too long.
    #[error("no answer within {} s", REQUEST_TIMEOUT.as_secs())]
    Timeout,
    /// The server said no, with its `metav1.Status`.
    #[error("{message}")]
    Status {
        /// HTTP code.
        code: u16,
        /// `NotFound`, `Conflict`, …
        reason: String,
        /// For people.
        message: String,
    },
    /// The answer is not JSON, or not what was asked for.
    #[error("malformed answer: {0}")]
    Malformed(String),
}

impl Error {
    /// The HTTP code, where the server answered.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Status { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// The object (or its kind) is not there.
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    /// A uid or resourceVersion was not the stored one, or the name is taken.
    pub fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }

    /// The server's store is silent: it has done nothing, and another server may.
    pub fn is_of_silent_store(&self) -> bool {
        matches!(self, Self::Status { code: 503, message, .. } if message.starts_with(STORE_IS_SILENT))
    }

    /// Whether another server may answer: this one is not there, or does not know the newest state.
    fn is_one_servers(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Transport(_) | Self::Unsent(_)) || self.is_of_silent_store()
    }

    /// No watch can go on from the resourceVersion: it is too old (410), or the server's history does not reach it, as
    /// where its store was brought back from an export. Waiting until it does would leave a gap.
    pub fn is_expired(&self) -> bool {
        let is_beyond = |message: &str| message.contains("Too large resource version");
        self.code() == Some(410) || matches!(self, Self::Status { code: 504, message, .. } if is_beyond(message))
    }
}

/// How a patch body is to be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PatchType {
    /// RFC 7396.
    Merge,
    /// Kubernetes' strategic merge patch.
    Strategic,
    /// RFC 6902.
    Json,
}

impl PatchType {
    fn content_type(self) -> &'static str {
        match self {
            Self::Merge => "application/merge-patch+json",
            Self::Strategic => "application/strategic-merge-patch+json",
            Self::Json => "application/json-patch+json",
        }
    }
}

/// What to list or watch.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// `a=b,c in (d)`.
    pub label_selector: String,
    /// `spec.nodeName=n1`.
    pub field_selector: String,
    /// Where to go on.
    pub resource_version: String,
}

/// One event of a watch.
#[derive(Clone, Debug)]
pub enum WatchEvent {
    /// `ADDED` or `MODIFIED`.
    Put(Value),
    /// `DELETED`, with the last state.
    Gone(Value),
    /// `BOOKMARK`: everything up to this resourceVersion was sent.
    Bookmark(String),
}

/// A running watch.
pub struct Watching {
    body: Incoming,
    /// Its part of a connection.
    _stream: Stream,
    buffer: BytesMut,
    scanned: usize,
}

impl Watching {
    /// The next event; `None` when the server ended the watch (it does so from time to time).
    ///
    /// # Errors
    /// A broken connection, or an `ERROR` event (410 when the revision is too old).
    pub async fn next(&mut self) -> Result<Option<WatchEvent>, Error> {
        loop {
            if let Some(end) = self.buffer[self.scanned..].iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(self.scanned + end + 1);
                self.scanned = 0;
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return parse_event(&line).map(Some);
            }
            self.scanned = self.buffer.len();
            if self.buffer.len() > MAX_EVENT {
                return Err(Error::Malformed(format!("a watch event of more than {MAX_EVENT} bytes")));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(Error::Transport(error.to_string())),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

fn parse_event(line: &[u8]) -> Result<WatchEvent, Error> {
    let mut event: Value = serde_json::from_slice(line).map_err(|error| Error::Malformed(error.to_string()))?;
    let object = event.get_mut("object").map(Value::take).unwrap_or_default();
    match event.get("type").and_then(Value::as_str) {
        Some("ADDED" | "MODIFIED") => Ok(WatchEvent::Put(object)),
        Some("DELETED") => Ok(WatchEvent::Gone(object)),
        Some("BOOKMARK") => Ok(WatchEvent::Bookmark(mainstay_api::object::resource_version(&object).to_owned())),
        Some("ERROR") => {
            Err(status_error(object["code"].as_u64().and_then(|code| u16::try_from(code).ok()).unwrap_or(500), &object))
        }
        other => Err(Error::Malformed(format!("watch event of type {other:?}"))),
    }
}

pub(crate) fn status_error(code: u16, status: &Value) -> Error {
    let text = |field: &str| status.get(field).and_then(Value::as_str).unwrap_or("").to_owned();
    Error::Status { code, reason: text("reason"), message: text("message") }
}

/// A client of one cluster. Cloning shares the connections.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    config: Config,
    /// `host:port` of every server, and which answered last.
    servers: Arc<Mutex<Servers>>,
    connector: TlsConnector,
    calls: Connections,
    /// To servers that are asked as well.
    hedges: Connections,
    hedging: Budget,
    watches: Connections,
    /// Requests that are not watches, at a time.
    room: Semaphore,
}

/// Servers of one cluster; any of them does.
struct Servers {
    all: Vec<String>,
    last: usize,
}

impl Servers {
    /// Another one is tried next, if the last that answered is this one.
    fn leave(&mut self, server: &str) {
        if self.all.get(self.last).is_some_and(|last| last == server) {
            self.last = (self.last + 1) % self.all.len();
        }
    }

    /// This one answered.
    fn choose(&mut self, server: &str) {
        self.last = self.all.iter().position(|one| one == server).unwrap_or(self.last);
    }

    fn parse(list: &str) -> Self {
        Self { all: list.split(',').filter(|server| !server.is_empty()).map(str::to_owned).collect(), last: 0 }
    }
}

/// What kind of connection a request goes over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Over {
    Calls,
    Hedges,
    Watches,
}

/// A request that may be sent to one server or another.
struct Asked<'a> {
    method: Method,
    path: &'a str,
    body: Option<&'a Value>,
    content_type: &'static str,
}

impl Client {
    /// A client; connects when first used.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        let connector = TlsConnector::from(Arc::new(config.tls(&[b"h2"])?));
        let servers = Arc::new(Mutex::new(Servers::parse(&config.server)));
        Ok(Self::with(config, servers, connector))
    }

    fn with(config: Config, servers: Arc<Mutex<Servers>>, connector: TlsConnector) -> Self {
        let (calls, hedges, watches) = (Connections::default(), Connections::default(), Connections::default());
        let room = Semaphore::new(MAX_CALLS);
        Self {
            shared: Arc::new(Shared {
                config,
                servers,
                connector,
                calls,
                hedges,
                hedging: Budget::default(),
                watches,
                room,
            }),
        }
    }

    /// The same client over connections of its own: for what must get through however much the others do.
    pub fn apart(&self) -> Self {
        Self::with(self.shared.config.clone(), self.shared.servers.clone(), self.shared.connector.clone())
    }

    /// Goes to these servers (`host:port,host:port`) from the next connection on; also those that were made
    /// [apart](Self::apart).
    pub fn set_servers(&self, list: &str) {
        let mut servers = self.servers();
        let mut next = Servers::parse(list);
        if !next.all.is_empty() && next.all != servers.all {
            // Whoever answers goes on doing so.
            let last = servers.all.get(servers.last);
            next.last = next.all.iter().position(|server| Some(server) == last).unwrap_or(0);
            *servers = next;
        }
    }

    /// Goes to another server from the next request on: for those whose patience with the present one is at its end.
    pub fn leave_present_server(&self) {
        let server = self.present_server();
        self.servers().leave(&server);
        // The connections to it end when the last request on them does.
        for connections in [&self.shared.calls, &self.shared.hedges, &self.shared.watches] {
            connections.forget_all(&server);
        }
    }

    /// The server that answered last: `host:port`.
    pub fn present_server(&self) -> String {
        let servers = self.servers();
        servers.all.get(servers.last).cloned().unwrap_or_default()
    }

    /// What it was made from.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// `GET` of one object.
    pub async fn get(&self, kind: &Kind, namespace: &str, name: &str) -> Result<Value, Error> {
        self.json(Method::GET, &path(kind, namespace, name, ""), None, "").await
    }

    /// `GET` of a list, whole.
    pub async fn list(&self, kind: &Kind, namespace: &str, options: &ListOptions) -> Result<Value, Error> {
        self.json(Method::GET, &format!("{}?{}", path(kind, namespace, "", ""), query(options, false)), None, "").await
    }

    /// `POST` of a new object.
    pub async fn create(&self, kind: &Kind, namespace: &str, object: &Value) -> Result<Value, Error> {
        self.json(Method::POST, &path(kind, namespace, "", ""), Some(object), "application/json").await
    }

    /// `POST` to a subresource of an object, such as a token request.
    pub async fn create_sub(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        sub: &str,
        object: &Value,
    ) -> Result<Value, Error> {
        self.json(Method::POST, &path(kind, namespace, name, sub), Some(object), "application/json").await
    }

    /// `PUT` of an object, or of a subresource such as `status` (`""` for the object).
    pub async fn update(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        sub: &str,
        object: &Value,
    ) -> Result<Value, Error> {
        self.json(Method::PUT, &path(kind, namespace, name, sub), Some(object), "application/json").await
    }

    /// `PATCH` of an object or of a subresource (`""` for the object).
    pub async fn patch(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        sub: &str,
        patch_type: PatchType,
        patch: &Value,
    ) -> Result<Value, Error> {
        self.json(Method::PATCH, &path(kind, namespace, name, sub), Some(patch), patch_type.content_type()).await
    }

    /// `DELETE` with `DeleteOptions` (`{}` for the defaults).
    pub async fn delete(&self, kind: &Kind, namespace: &str, name: &str, options: &Value) -> Result<Value, Error> {
        let mut options = options.clone();
        if options.is_object() {
            options["kind"] = json!("DeleteOptions");
            options["apiVersion"] = json!("v1");
        }
        self.json(Method::DELETE, &path(kind, namespace, name, ""), Some(&options), "application/json").await
    }

    /// `POST` to any path, such as that of a review.
    pub async fn post(&self, path: &str, object: &Value) -> Result<Value, Error> {
        self.json(Method::POST, path, Some(object), "application/json").await
    }

    /// Watches a kind from a resourceVersion, with bookmarks.
    pub async fn watch(&self, kind: &Kind, namespace: &str, options: &ListOptions) -> Result<Watching, Error> {
        let uri = format!("{}?{}", path(kind, namespace, "", ""), query(options, true));
        let asked = Asked { method: Method::GET, path: &uri, body: None, content_type: "" };
        let response = tokio::time::timeout(REQUEST_TIMEOUT, self.send(Over::Watches, None, &asked))
            .await
            .map_err(|_| Error::Timeout)??;
        let (response, stream) = response;
        if response.status() != StatusCode::OK {
            let error = failure(response).await;
            self.leave_if_silent(&error, Over::Watches, &stream);
            return Err(error);
        }
        Ok(Watching { body: response.into_body(), _stream: stream, buffer: BytesMut::new(), scanned: 0 })
    }

    /// A plain `GET` of any path, as text (`/readyz`, `/version`, `/metrics`).
    pub async fn get_text(&self, path: &str) -> Result<String, Error> {
        let _room = self.shared.room.acquire().await;
        let asked = Asked { method: Method::GET, path, body: None, content_type: "" };
        let sent = tokio::time::timeout(REQUEST_TIMEOUT, self.send(Over::Calls, None, &asked));
        let (response, _stream) = sent.await.map_err(|_| Error::Timeout)??;
        if !response.status().is_success() {
            return Err(failure(response).await);
        }
        Ok(String::from_utf8_lossy(&whole(response).await?).into_owned())
    }

    async fn json(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        content_type: &'static str,
    ) -> Result<Value, Error> {
        let asked = Asked { method, path, body, content_type };
        let work = async {
            let _room = self.shared.room.acquire().await;
            let others = self.others();
            match asked.method == Method::GET && !others.is_empty() {
                true => self.read(&asked, others).await,
                false => self.write(&asked, others.len()).await,
            }
        };
        tokio::time::timeout(REQUEST_TIMEOUT, work).await.map_err(|_| Error::Timeout)?
    }

    /// The servers besides the present one, in the order in which they are tried.
    fn others(&self) -> Vec<String> {
        let servers = self.servers();
        let (after, until) = (servers.all.iter().skip(servers.last + 1), servers.all.iter().take(servers.last));
        after.chain(until).cloned().collect()
    }

    /// Asks the present server, and another one each time [`HEDGE`] is over without an answer, or at once where one is
    /// gone or its store is silent. The first answer counts (M3). Those that are only slow are not asked for ever more
    /// ([`Budget`]).
    async fn read(&self, asked: &Asked<'_>, others: Vec<String>) -> Result<Value, Error> {
        let present = self.present_server();
        let hedging = &self.shared.hedging;
        hedging.earn();
        let mut others = others.into_iter();
        let mut asking = FuturesUnordered::new();
        let ask = |server: Option<String>| async move {
            let over = if server.is_some() { Over::Hedges } else { Over::Calls };
            (self.send(over, server.as_deref(), asked).await, over, server)
        };
        asking.push(ask(None));
        let mut failed = Error::Timeout;
        loop {
            let next = tokio::select! {
                // A server that has begun to answer is given the time that it takes.
                Some((sent, over, server)) = asking.next() => match self.answer(over, sent).await {
                    Err(error) if error.is_one_servers() => {
                        failed = error;
                        others.next()
                    }
                    answer => {
                        // From now on this one is asked first.
                        if let Some(server) = server.filter(|_| self.present_server() == present) {
                            self.leave_present_server();
                            self.servers().choose(&server);
                        }
                        return answer;
                    }
                },
                () = tokio::time::sleep(HEDGE), if others.len() > 0 => {
                    hedging.spend().then(|| others.next()).flatten()
                }
            };
            match next {
                Some(server) => asking.push(ask(Some(server))),
                None if asking.is_empty() => return Err(failed),
                None => {}
            }
        }
    }

    /// Asks one server after the other, as long as it is certain that those before have done nothing (A9).
    async fn write(&self, asked: &Asked<'_>, mut others: usize) -> Result<Value, Error> {
        loop {
            let present = self.present_server();
            let mut answer = std::pin::pin!(self.ask(Over::Calls, None, asked));
            let answer = match tokio::time::timeout(SLOW_WRITE, answer.as_mut()).await {
                Ok(answer) => answer,
                Err(_) => {
                    if others > 0 && self.present_server() == present {
                        self.leave_present_server();
                    }
                    answer.await
                }
            };
            match answer {
                Err(error) if others > 0 && (error.is_of_silent_store() || matches!(error, Error::Unsent(_))) => {
                    others -= 1;
                }
                answer => return answer,
            }
        }
    }

    async fn ask(&self, over: Over, server: Option<&str>, asked: &Asked<'_>) -> Result<Value, Error> {
        self.answer(over, self.send(over, server, asked).await).await
    }

    async fn answer(&self, over: Over, sent: Result<(Response<Incoming>, Stream), Error>) -> Result<Value, Error> {
        let (response, stream) = sent?;
        if !response.status().is_success() {
            let error = failure(response).await;
            self.leave_if_silent(&error, over, &stream);
            return Err(error);
        }
        let bytes = whole(response).await?;
        serde_json::from_slice(&bytes).map_err(|error| Error::Malformed(error.to_string()))
    }

    /// Sends a request, to this server where one is named.
    async fn send(
        &self,
        over: Over,
        server: Option<&str>,
        Asked { method, path, body, content_type }: &Asked<'_>,
    ) -> Result<(Response<Incoming>, Stream), Error> {
        let config = &self.shared.config;
        let mut request = Request::builder()
            .method(method.clone())
            .uri(format!("https://{}{path}", config.server.split(',').next().unwrap_or_default()))
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("mainstay/", env!("CARGO_PKG_VERSION")));
        if let Some(token) = &config.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if !content_type.is_empty() {
            request = request.header(header::CONTENT_TYPE, *content_type);
        }
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let request = request.body(Full::new(body)).map_err(|error| Error::Malformed(error.to_string()))?;
        let connections = self.connections(over);
        let open = async {
            match server {
                Some(server) => self.open_one(server).await,
                None => self.open().await,
            }
        };
        let mut stream = connections.stream(server, open).await?;
        let result = stream.sender.try_send_request(request).await;
        if result.is_err() {
            // The next request opens a new connection; whether to repeat this one is the caller's decision (A9).
            connections.forget(&stream);
        }
        let result = result.map_err(|mut error| {
            // What comes back has not been sent.
            let is_unsent = error.take_message().is_some();
            let reason = error.into_error().to_string();
            if is_unsent { Error::Unsent(reason) } else { Error::Transport(reason) }
        });
        Ok((result?, stream))
    }

    fn connections(&self, over: Over) -> &Connections {
        match over {
            Over::Calls => &self.shared.calls,
            Over::Hedges => &self.shared.hedges,
            Over::Watches => &self.shared.watches,
        }
    }

    /// Where a server's store is silent, another one is gone to from now on.
    fn leave_if_silent(&self, error: &Error, over: Over, stream: &Stream) {
        if error.is_of_silent_store() {
            self.servers().leave(&stream.server);
            self.connections(over).forget(stream);
        }
    }

    fn servers(&self) -> std::sync::MutexGuard<'_, Servers> {
        self.shared.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection to the server that answered last, or to the first of the others that does; these are tried as well
    /// when it takes more than [`HEDGE`], or fails.
    async fn open(&self) -> Result<Opened, Error> {
        let others = self.others();
        let mut all = std::iter::once(self.present_server()).chain(others).filter(|server| !server.is_empty());
        let mut failed = Error::Connect { server: String::new(), reason: "no server is known".to_owned() };
        let mut opening = FuturesUnordered::new();
        let mut next = all.next();
        loop {
            if let Some(server) = next.take() {
                opening.push(async move { self.open_one(&server).await });
            }
            let opened = tokio::select! {
                opened = opening.next() => opened,
                () = tokio::time::sleep(HEDGE), if !opening.is_empty() => {
                    next = all.next();
                    continue;
                }
            };
            match opened {
                Some(Ok(opened)) => {
                    self.servers().choose(&opened.server);
                    return Ok(opened);
                }
                Some(Err(error)) => {
                    failed = error;
                    next = all.next();
                }
                None => return Err(failed),
            }
        }
    }

    async fn open_one(&self, server: &str) -> Result<Opened, Error> {
        let is_only = self.servers().all.len() < 2;
        let (patience, alive) = if is_only { (CONNECT_TIMEOUT, ALIVE) } else { (CONNECT_ONE, ALIVE_OF_SEVERAL) };
        let failed = |reason: String| Error::Connect { server: server.to_owned(), reason };
        match tokio::time::timeout(patience, self.connect(server, alive)).await {
            Ok(Ok(sender)) => Ok(Opened { sender, server: server.into() }),
            Ok(Err(reason)) => Err(failed(reason)),
            Err(_) => Err(failed("timed out".to_owned())),
        }
    }

    /// A connection of HTTP/1.1 for one request, whose stream becomes the request's own.
    pub(crate) async fn dial(&self, server: &str) -> Result<TlsStream<TcpStream>, Error> {
        let connector = TlsConnector::from(Arc::new(self.config().tls(&[b"http/1.1"])?));
        let failed = |reason: String| Error::Connect { server: server.to_owned(), reason };
        tls(&connector, server).await.map_err(|error| failed(error.to_string()))
    }

    async fn connect(&self, server: &str, alive: Duration) -> Result<Sender, String> {
        let failed = |error: &dyn std::fmt::Display| error.to_string();
        let tls = tls(&self.shared.connector, server).await.map_err(|error| failed(&error))?;
        let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(alive)
            .keep_alive_timeout(alive)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(tls))
            .await
            .map_err(|error| failed(&error))?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

async fn tls(connector: &TlsConnector, server: &str) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(server).await?;
    tcp.set_nodelay(true)?;
    let host = server.rsplit_once(':').map_or(server, |(host, _)| host).trim_matches(['[', ']']).to_owned();
    let name = rustls::pki_types::ServerName::try_from(host).map_err(std::io::Error::other)?;
    connector.connect(name, tcp).await
}

async fn whole(response: Response<Incoming>) -> Result<Bytes, Error> {
    let body = Limited::new(response.into_body(), MAX_ANSWER);
    body.collect().await.map(http_body_util::Collected::to_bytes).map_err(|error| Error::Transport(error.to_string()))
}

pub(crate) async fn failure(response: Response<Incoming>) -> Error {
    let code = response.status().as_u16();
    match whole(response).await {
        Err(error) => error,
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(status) => status_error(code, &status),
            Err(_) => {
                Error::Status { code, reason: String::new(), message: String::from_utf8_lossy(&bytes).into_owned() }
            }
        },
    }
}

/// `/api/v1/namespaces/<ns>/pods/<name>/<sub>`; empty parts are left out.
fn path(kind: &Kind, namespace: &str, name: &str, sub: &str) -> String {
    let mut path = if kind.group.is_empty() {
        format!("/api/{}", kind.version)
    } else {
        format!("/apis/{}/{}", kind.group, kind.version)
    };
    if kind.namespaced && !namespace.is_empty() {
        path.push_str("/namespaces/");
        path.push_str(&escape(namespace));
    }
    for part in [&*kind.plural, name, sub] {
        if !part.is_empty() {
            path.push('/');
            path.push_str(&escape(part));
        }
    }
    path
}

fn query(options: &ListOptions, watch: bool) -> String {
    let mut parts = Vec::new();
    for (name, value) in [
        ("labelSelector", &options.label_selector),
        ("fieldSelector", &options.field_selector),
        ("resourceVersion", &options.resource_version),
    ] {
        if !value.is_empty() {
            parts.push(format!("{name}={}", escape(value)));
        }
    }
    if watch {
        parts.push("watch=true".to_owned());
        parts.push("allowWatchBookmarks=true".to_owned());
    }
    parts.join("&")
}

/// Percent-encodes everything but RFC 3986's unreserved characters.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_escaped() {
        let options = ListOptions {
            label_selector: "a=b,c in (d)".into(),
            field_selector: String::new(),
            resource_version: "7".into(),
        };
        assert_eq!(
            query(&options, true),
            "labelSelector=a%3Db%2Cc%20in%20%28d%29&resourceVersion=7&watch=true&allowWatchBookmarks=true"
        );
    }

    #[test]
    fn whoever_answers_is_gone_to_until_it_does_not_m3() {
        let mut servers = Servers::parse("a:1,b:1,c:1");
        servers.leave("b:1");
        assert_eq!(servers.last, 0, "nobody goes to it");
        servers.leave("a:1");
        assert_eq!(servers.last, 1);
        let client = Client::new(Config { server: "a:1,b:1".into(), ..Config::default() });
        let client = client.expect("a client");
        client.servers().last = 1;
        client.set_servers("c:1,d:1,b:1");
        assert_eq!(client.servers().last, 2, "b answers");
        client.set_servers("c:1,d:1");
        assert_eq!(client.servers().last, 0);
    }

    #[test]
    fn an_error_event_is_the_servers_status() {
        let error = parse_event(
            br#"{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old"}}"#,
        );
        assert!(error.is_err_and(|error| error.is_expired()));
    }
}
