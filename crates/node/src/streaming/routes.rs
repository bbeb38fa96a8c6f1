//! From a request to its answer, or to the session that its connection becomes.

use std::collections::VecDeque;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Frame;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use jiff::{SignedDuration, Timestamp};
use mainstay_api::Status;
use mainstay_api::parameters::is_true;
use mainstay_tasks::listen::{self, Active};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};

use super::access::{Delegated, Needs, Refusal};
use super::backend::{Backend, Containers, Lookup};
use super::channels::{Channels, Wanted};
use super::exec;
use super::images;
use super::logs::{self, lines::LogOptions};
use super::portforward::{self, ForwardTarget};
use super::room::{self, VolumeRoom};
use super::spdy::{self, connection::Connection};
use super::tls::Access;
use super::{StreamingConfig, cadvisor, machine_logs, stats, websocket};
use mainstay_runtime::ExecSpec;

/// Words of a command, and their bytes together.
const MAX_COMMAND_WORDS: usize = 4096;
const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_VERSIONS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");
const WEBSOCKET_KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
const WEBSOCKET_ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");
const WEBSOCKET_PROTOCOL: HeaderName = HeaderName::from_static("sec-websocket-protocol");
/// Prometheus' text.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
/// The one subprotocol of a port-forward over SPDY.
const PORT_FORWARD: &str = "portforward.k8s.io";

/// What every request is answered with.
pub struct Server {
    pub config: StreamingConfig,
    pub backend: Arc<dyn Backend>,
    pub containers: Arc<dyn Containers>,
    /// Who may what.
    pub access: Delegated,
    /// When what was last looked at.
    pub looks: stats::Looks,
    /// Whose turn it is to load images.
    pub loading: Arc<Semaphore>,
}

/// What a connection does after its upgrade.
pub type Session = Pin<Box<dyn Future<Output = ()> + Send>>;

/// An answer, and what comes after it.
pub enum Answer {
    Plain(Response<Body>),
    /// One that is to be looked for.
    Later(Pin<Box<dyn Future<Output = Response<Body>> + Send>>),
    Upgrade(Response<Body>, Session),
}

/// An answer's body: pieces that are there, then those that still come.
#[derive(Default)]
pub struct Body {
    ready: VecDeque<Bytes>,
    coming: Option<mpsc::Receiver<Bytes>>,
    /// The request is under way while this is here.
    active: Option<Active>,
}

impl Body {
    fn of(text: impl Into<Bytes>) -> Body {
        Body { ready: VecDeque::from([text.into()]), ..Body::default() }
    }

    fn coming(coming: mpsc::Receiver<Bytes>) -> Body {
        Body { coming: Some(coming), ..Body::default() }
    }

    /// Notes which request this answers: it is under way until the body is sent.
    pub fn is_answered(&mut self, active: Active) {
        self.active = Some(active);
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(bytes) = self.ready.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        match &mut self.coming {
            Some(coming) => coming.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes)))),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ready.is_empty() && self.coming.is_none()
    }
}

pub(super) fn plain(code: StatusCode, content_type: &'static str, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::of(text));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// An error as the API server passes it on to kubectl.
pub fn refusal(status: &Status) -> Response<Body> {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    plain(code, "application/json", status.to_json().to_string())
}

/// A request that is not answered, as upstream's kubelet says it.
pub fn refused(refusal: &Refusal) -> Response<Body> {
    let (code, text) = match refusal {
        Refusal::Unauthorized => (StatusCode::UNAUTHORIZED, "Unauthorized"),
        Refusal::Forbidden(words) => (StatusCode::FORBIDDEN, words.as_str()),
        Refusal::Unknown(words) => (StatusCode::INTERNAL_SERVER_ERROR, words.as_str()),
    };
    plain(code, "text/plain; charset=utf-8", text.to_owned())
}

/// Whether a request is answered: whose it is, and whether they may.
///
/// # Errors
/// Why not.
pub async fn admit(
    server: &Server,
    who: &Access,
    from: IpAddr,
    peer: &listen::Connection,
    request: &Request<Incoming>,
) -> Result<(), Refusal> {
    let user = match who {
        Access::Full => return Ok(()),
        Access::User(user) => user.clone(),
        Access::Nobody => server.access.authenticate(from, request.headers()).await?,
    };
    let first = request.uri().path().split('/').nth(1).map(|segment| decode(segment, false)).unwrap_or_default();
    server.access.authorize(&user, &Needs::of(request.method(), &first)).await?;
    // Where there are too many with connections, it goes on as a stranger's.
    peer.authenticate(&user.name, false);
    Ok(())
}

/// Answers a request that [is admitted](admit).
///
/// # Errors
/// The kubelet's own.
pub fn answer(server: &Arc<Server>, request: Request<Incoming>) -> Result<Answer, Status> {
    let path = request.uri().path().to_owned();
    let segments: Vec<String> = path.split('/').skip(1).map(|segment| decode(segment, false)).collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let query = Query::parse(request.uri().query().unwrap_or_default());
    match segments.as_slice() {
        ["healthz"] => Ok(Answer::Plain(plain(StatusCode::OK, "text/plain; charset=utf-8", "ok"))),
        ["configz"] => {
            allow(&request, &[Method::GET])?;
            let shown = json!({ "kubeletconfig": server.config.configuration });
            Ok(Answer::Plain(plain(StatusCode::OK, "application/json", shown.to_string())))
        }
        ["pods"] => Ok(Answer::Plain(pods(server))),
        ["runningpods"] | ["runningpods", ""] => Ok(Answer::Plain(looked_up(server, "application/json", |of| {
            stats::running_pods(&*of.backend, &*of.containers).to_string()
        }))),
        // No volume is waited for.
        ["stats", "summary"] if query.truth("only_cpu_and_memory") => {
            Ok(Answer::Plain(looked_up(server, "application/json", |of| {
                stats::summary(&*of.backend, &*of.containers, &of.looks, &[]).to_string()
            })))
        }
        ["stats", "summary"] => Ok(Answer::Plain(looked_into(server, "application/json", |of, volumes| {
            stats::summary(&*of.backend, &*of.containers, &of.looks, &volumes).to_string()
        }))),
        ["metrics", "resource"] => {
            Ok(Answer::Plain(looked_up(server, METRICS, |of| stats::resource_metrics(&*of.backend, &*of.containers))))
        }
        ["metrics", "cadvisor"] => {
            Ok(Answer::Plain(looked_up(server, METRICS, |of| cadvisor::metrics(&*of.backend, &*of.containers))))
        }
        ["metrics", "probes"] => Ok(Answer::Plain(looked_up(server, METRICS, |of| of.backend.probe_metrics()))),
        ["metrics"] => Ok(Answer::Plain(looked_into(server, METRICS, |of, volumes| {
            stats::kubelet_metrics(&*of.backend, &*of.containers, &volumes)
        }))),
        ["logs", rest @ ..] => {
            allow(&request, &[Method::GET])?;
            let asked = if rest.is_empty() { None } else { Some(rest.join("/")) };
            Ok(Answer::Later(Box::pin(machine_logs::answer(server.config.machine_logs.clone(), asked))))
        }
        ["containerLogs", namespace, pod, container] => {
            allow(&request, &[Method::GET])?;
            server.logs(namespace, pod, container, &query, request)
        }
        ["exec", namespace, pod, container] => {
            allow(&request, &[Method::GET, Method::POST])?;
            let command: Vec<String> = query.all("command").map(str::to_owned).collect();
            if command.is_empty() || command.len() > MAX_COMMAND_WORDS {
                return Err(Status::bad_request("you must specify at least one command for the container"));
            }
            server.run(namespace, pod, container, &query, Some(command), request)
        }
        ["attach", namespace, pod, container] => {
            allow(&request, &[Method::GET, Method::POST])?;
            server.run(namespace, pod, container, &query, None, request)
        }
        ["portForward", namespace, pod] => {
            allow(&request, &[Method::GET, Method::POST])?;
            server.port_forward(namespace, pod, &query, request)
        }
        ["images", "load"] => {
            allow(&request, &[Method::POST])?;
            server.load_images(&query, request)
        }
        _ => Err(Status::no_such_resource()),
    }
}

fn allow(request: &Request<Incoming>, methods: &[Method]) -> Result<(), Status> {
    if methods.contains(request.method()) { Ok(()) } else { Err(Status::method_not_allowed()) }
}

fn pods(server: &Server) -> Response<Body> {
    let items: Vec<Value> = server.backend.pods().iter().filter_map(|pod| serde_json::to_value(&**pod).ok()).collect();
    let list = json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items });
    plain(StatusCode::OK, "application/json", list.to_string())
}

/// An answer that reads many small files: on a thread of its own.
fn looked_up(
    server: &Arc<Server>,
    content_type: &'static str,
    look: impl FnOnce(&Server) -> String + Send + 'static,
) -> Response<Body> {
    let (sender, coming) = mpsc::channel(1);
    let server = server.clone();
    tokio::task::spawn_blocking(move || {
        // Whoever asked may have gone.
        let _ = sender.blocking_send(Bytes::from(look(&server)));
    });
    in_time(content_type, coming)
}

/// The same, with what is left in the pods' claims.
fn looked_into(
    server: &Arc<Server>,
    content_type: &'static str,
    look: impl FnOnce(&Server, Vec<VolumeRoom>) -> String + Send + 'static,
) -> Response<Body> {
    let (sender, coming) = mpsc::channel(1);
    let server = server.clone();
    tokio::spawn(async move {
        let backend = server.backend.clone();
        let claims = tokio::task::spawn_blocking(move || backend.claims()).await.unwrap_or_default();
        let volumes = room::look(claims).await;
        if let Ok(text) = tokio::task::spawn_blocking(move || look(&server, volumes)).await {
            let _ = sender.send(Bytes::from(text)).await;
        }
    });
    in_time(content_type, coming)
}

/// An answer whose body is still to come.
pub(super) fn in_time(content_type: &'static str, coming: mpsc::Receiver<Bytes>) -> Response<Body> {
    let mut response = plain(StatusCode::OK, content_type, Bytes::new());
    *response.body_mut() = Body::coming(coming);
    response
}

impl Server {
    fn lookup(&self) -> Lookup<'_> {
        Lookup { backend: &*self.backend, containers: &*self.containers }
    }

    /// As the answer's body, or over a WebSocket.
    fn logs(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        query: &Query,
        mut request: Request<Incoming>,
    ) -> Result<Answer, Status> {
        let options = log_options(query, Timestamp::now())?;
        let target = self.lookup().log(namespace, pod, container, options.previous)?;
        let upgrade = is_websocket(request.headers()).then(|| upgrade_stream(request.headers())).transpose()?;
        let (sender, coming) = mpsc::channel(logs::PIECES);
        tokio::spawn(logs::read(target, options, self.containers.clone(), sender));
        if let Some((response, base64)) = upgrade {
            let upgraded = hyper::upgrade::on(&mut request);
            let session = async move {
                if let Ok(upgraded) = upgraded.await {
                    websocket::send_all(TokioIo::new(upgraded), coming, base64).await;
                }
            };
            return Ok(Answer::Upgrade(response, Box::pin(session)));
        }
        let mut response = plain(StatusCode::OK, "text/plain; charset=utf-8", Bytes::new());
        *response.body_mut() = Body::coming(coming);
        Ok(Answer::Plain(response))
    }

    /// Exec with a command, attach without.
    fn run(
        self: &Arc<Self>,
        namespace: &str,
        pod: &str,
        container: &str,
        query: &Query,
        command: Option<Vec<String>>,
        mut request: Request<Incoming>,
    ) -> Result<Answer, Status> {
        let wanted = wanted(query)?;
        let id = self.lookup().running(namespace, pod, container)?;
        let (response, protocol) = upgrade_channels(request.headers())?;
        let server = self.clone();
        let upgraded = hyper::upgrade::on(&mut request);
        let session = async move {
            let Ok(upgraded) = upgraded.await else { return };
            let Some(channels) = protocol.open(TokioIo::new(upgraded), wanted, server.config.idle_timeout).await else {
                return;
            };
            let session = match command {
                Some(args) => {
                    server
                        .containers
                        .exec(&id, ExecSpec { args, tty: wanted.tty, stdin: wanted.stdin, ..ExecSpec::default() })
                        .await
                }
                None => server.containers.attach(&id).await,
            };
            exec::run(session, channels).await;
        };
        Ok(Answer::Upgrade(response, Box::pin(session)))
    }

    fn port_forward(
        self: &Arc<Self>,
        namespace: &str,
        name: &str,
        query: &Query,
        mut request: Request<Incoming>,
    ) -> Result<Answer, Status> {
        let pod = self.lookup().pod(namespace, name)?;
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let network = self.containers.network(&uid).map_err(|error| Status::internal(error.to_string()))?;
        let target = ForwardTarget { pod: name.to_owned(), uid, network };
        let (response, carrier) = upgrade_forward(request.headers(), query)?;
        let Some(carrier) = carrier else { return Ok(Answer::Plain(response)) };
        let idle_timeout = self.config.idle_timeout;
        let upgraded = hyper::upgrade::on(&mut request);
        let session = async move {
            let Ok(upgraded) = upgraded.await else { return };
            let upgraded = TokioIo::new(upgraded);
            match carrier {
                Carrier::Tunnel => {
                    let (inside, pumps) = websocket::tunnel(upgraded).await;
                    tokio::join!(pumps, portforward::run(Connection::start(inside, idle_timeout), target));
                }
                Carrier::Channels { base64, ports } => {
                    let ports = websocket::open_ports(upgraded, base64, ports, idle_timeout).await;
                    portforward::run_ports(ports, target).await;
                }
                Carrier::Spdy => portforward::run(Connection::start(upgraded, idle_timeout), target).await,
            }
        };
        Ok(Answer::Upgrade(response, Box::pin(session)))
    }

    /// An archive as [`images`] says.
    fn load_images(&self, query: &Query, mut request: Request<Incoming>) -> Result<Answer, Status> {
        let bytes = query.first("bytes").and_then(|bytes| bytes.parse().ok());
        let bytes = bytes.ok_or_else(|| Status::bad_request("query parameter \"bytes\" is required: a number"))?;
        if !listed(request.headers(), &UPGRADE).iter().any(|protocol| protocol == images::PROTOCOL) {
            return Err(Status::bad_request("unable to upgrade: missing upgrade headers in request"));
        }
        let upgraded = hyper::upgrade::on(&mut request);
        let (backend, turn) = (self.backend.clone(), self.loading.clone());
        let session = async move {
            if let Ok(upgraded) = upgraded.await {
                images::load(TokioIo::new(upgraded), bytes, backend, turn).await;
            }
        };
        Ok(Answer::Upgrade(switching(images::PROTOCOL), Box::pin(session)))
    }
}

/// What carries a port-forward.
#[derive(Debug, PartialEq)]
enum Carrier {
    Spdy,
    /// SPDY inside a WebSocket.
    Tunnel,
    /// A WebSocket's own channels, for ports that the request names.
    Channels {
        base64: bool,
        ports: Vec<u16>,
    },
}

/// The answer that switches protocols for a port-forward, and to what; `None` where it does not switch.
fn upgrade_forward(headers: &HeaderMap, query: &Query) -> Result<(Response<Body>, Option<Carrier>), Status> {
    if !is_websocket(headers) {
        let (chosen, response) = spdy_response(headers, &[PORT_FORWARD])?;
        return Ok((response, chosen.map(|_| Carrier::Spdy)));
    }
    let offered = listed(headers, &WEBSOCKET_PROTOCOL);
    if offered.iter().any(|protocol| protocol == websocket::TUNNEL_PROTOCOL) {
        return Ok((websocket_response(headers, Some(websocket::TUNNEL_PROTOCOL))?, Some(Carrier::Tunnel)));
    }
    let known = |offer: &String| websocket::PORT_PROTOCOLS.iter().find(|(name, _)| name == offer);
    let (name, base64) = match offered.iter().find_map(known) {
        Some((name, base64)) => (Some(*name), *base64),
        None if offered.is_empty() => (None, false),
        None => {
            let why = format!("unable to upgrade: unsupported protocols {}", offered.join(", "));
            return Err(Status::bad_request(why));
        }
    };
    let ports = ports(query)?;
    Ok((websocket_response(headers, name)?, Some(Carrier::Channels { base64, ports })))
}

/// The ports that a request names, in one parameter or in several.
fn ports(query: &Query) -> Result<Vec<u16>, Status> {
    let mut all = Vec::new();
    for text in query.all("port").flat_map(|value| value.split(',')) {
        match text.parse::<u16>() {
            Ok(port @ 1..) => all.push(port),
            _ => return Err(Status::bad_request(format!("unable to parse {text:?} as a port"))),
        }
    }
    match all.len() {
        0 => Err(Status::bad_request("query parameter \"port\" is required")),
        1..=websocket::MAX_PORTS => Ok(all),
        _ => Err(Status::bad_request(format!("at most {} ports may be forwarded", websocket::MAX_PORTS))),
    }
}

/// How an exec's channels are carried.
enum Protocol {
    Spdy(spdy::channels::Protocol),
    WebSocket(websocket::Protocol),
}

impl Protocol {
    async fn open(
        self,
        io: TokioIo<hyper::upgrade::Upgraded>,
        wanted: Wanted,
        idle_timeout: Duration,
    ) -> Option<Channels> {
        match self {
            Self::Spdy(protocol) => spdy::channels::open(io, protocol, wanted, idle_timeout).await,
            Self::WebSocket(protocol) => Some(websocket::open(io, protocol, wanted, idle_timeout).await),
        }
    }
}

/// The answer that switches protocols, and which one it is. The client's first choice that is known wins.
fn upgrade_channels(headers: &HeaderMap) -> Result<(Response<Body>, Protocol), Status> {
    if is_websocket(headers) {
        let offered = listed(headers, &WEBSOCKET_PROTOCOL);
        if offered.is_empty() {
            let (_, oldest) = websocket::PROTOCOLS[3];
            return Ok((websocket_response(headers, None)?, Protocol::WebSocket(oldest)));
        }
        let chosen = offered.iter().find_map(|offer| websocket::PROTOCOLS.iter().find(|(name, _)| name == offer));
        let Some((name, protocol)) = chosen else {
            return Err(Status::bad_request(format!(
                "unable to upgrade: unsupported protocols {}",
                offered.join(", ")
            )));
        };
        return Ok((websocket_response(headers, Some(name))?, Protocol::WebSocket(*protocol)));
    }
    let names = spdy::channels::PROTOCOLS.map(|(name, _)| name);
    let (chosen, response) = spdy_response(headers, &names)?;
    let protocol = spdy::channels::PROTOCOLS.iter().find(|(name, _)| Some(*name) == chosen);
    match protocol {
        Some((_, protocol)) => Ok((response, Protocol::Spdy(*protocol))),
        None => Err(Status::new(
            403,
            "Forbidden",
            format!(
                "unable to upgrade: unable to negotiate protocol: client supports {:?}, server accepts {names:?}",
                listed(headers, &PROTOCOL_VERSION)
            ),
        )),
    }
}

/// The answer that makes a stream of bytes one of WebSocket messages, and whether they are text with base64.
fn upgrade_stream(headers: &HeaderMap) -> Result<(Response<Body>, bool), Status> {
    let offered = listed(headers, &WEBSOCKET_PROTOCOL);
    if offered.is_empty() {
        return Ok((websocket_response(headers, None)?, false));
    }
    let chosen = offered.iter().find_map(|offer| websocket::STREAM_PROTOCOLS.iter().find(|(name, _)| name == offer));
    match chosen {
        Some((name, base64)) => Ok((websocket_response(headers, Some(name))?, *base64)),
        None => Err(Status::bad_request(format!("unable to upgrade: unsupported protocols {}", offered.join(", ")))),
    }
}

fn is_websocket(headers: &HeaderMap) -> bool {
    listed(headers, &UPGRADE).iter().any(|protocol| protocol.eq_ignore_ascii_case("websocket"))
}

/// A header's values, of all its lines, without their commas.
fn listed(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(|value| value.trim().to_owned())
        .filter(|value| !value.is_empty())
        .collect()
}

fn switching(protocol: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(protocol));
    response
}

fn websocket_response(headers: &HeaderMap, protocol: Option<&'static str>) -> Result<Response<Body>, Status> {
    let key = headers
        .get(WEBSOCKET_KEY)
        .ok_or_else(|| Status::bad_request("unable to upgrade: missing Sec-WebSocket-Key"))?;
    let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
    let accept = HeaderValue::try_from(accept).map_err(|error| Status::internal(error.to_string()))?;
    let mut response = switching("websocket");
    response.headers_mut().insert(WEBSOCKET_ACCEPT, accept);
    if let Some(protocol) = protocol {
        response.headers_mut().insert(WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    Ok(response)
}

/// The subprotocol that both know, and the answer: 101, or 403 with what would have been accepted. A client that names
/// none speaks the oldest, the last of `known`.
fn spdy_response<'a>(headers: &HeaderMap, known: &[&'a str]) -> Result<(Option<&'a str>, Response<Body>), Status> {
    if !listed(headers, &UPGRADE).iter().any(|protocol| protocol.eq_ignore_ascii_case("SPDY/3.1")) {
        return Err(Status::bad_request("unable to upgrade: missing upgrade headers in request"));
    }
    let offered = listed(headers, &PROTOCOL_VERSION);
    let chosen = match offered.is_empty() {
        true => known.last().copied(),
        false => offered.iter().find_map(|offer| known.iter().copied().find(|name| name == offer)),
    };
    let mut response = if chosen.is_some() {
        switching("SPDY/3.1")
    } else {
        refusal(&Status::new(403, "Forbidden", "unable to upgrade: unable to negotiate protocol"))
    };
    match chosen {
        Some(name) if !offered.is_empty() => {
            let value = HeaderValue::from_str(name).map_err(|error| Status::internal(error.to_string()))?;
            response.headers_mut().insert(PROTOCOL_VERSION, value);
        }
        Some(_) => {}
        None => known.iter().filter_map(|name| HeaderValue::from_str(name).ok()).for_each(|value| {
            response.headers_mut().append(ACCEPTED_VERSIONS, value);
        }),
    }
    Ok((chosen, response))
}

/// What an exec or attach asks for. A terminal has no stderr of its own.
fn wanted(query: &Query) -> Result<Wanted, Status> {
    let either = |one: &str, other: &str| query.truth(one) || query.truth(other);
    let tty = query.truth("tty");
    let wanted = Wanted {
        stdin: either("input", "stdin"),
        stdout: either("output", "stdout"),
        stderr: either("error", "stderr") && !tty,
        tty,
    };
    if wanted.stdin || wanted.stdout || wanted.stderr {
        Ok(wanted)
    } else {
        Err(Status::bad_request("you must specify at least 1 of stdin, stdout, stderr"))
    }
}

/// The log's options, with upstream's answers to bad ones.
fn log_options(query: &Query, now: Timestamp) -> Result<LogOptions, Status> {
    let number = |name: &str, least: i64| match query.first(name).filter(|value| !value.is_empty()) {
        None => Ok(None),
        Some(value) => match value.parse::<i64>() {
            Ok(number) if number >= least => Ok(Some(number)),
            _ => Err(Status::bad_request(format!(
                "{name}: Invalid value: {value:?}: must be greater than or equal to {least}"
            ))),
        },
    };
    let since_time = match query.first("sinceTime").filter(|value| !value.is_empty()) {
        None => None,
        Some(text) => Some(
            text.parse::<Timestamp>()
                .map_err(|_| Status::bad_request(format!("sinceTime: Invalid value: {text:?}")))?,
        ),
    };
    let since_seconds = number("sinceSeconds", 1)?;
    if since_time.is_some() && since_seconds.is_some() {
        return Err(Status::bad_request("at most one of `sinceTime` or `sinceSeconds` may be specified"));
    }
    let since =
        since_seconds.map(|seconds| now.checked_sub(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MIN));
    Ok(LogOptions {
        follow: query.truth("follow"),
        previous: query.truth("previous"),
        timestamps: query.truth("timestamps"),
        since: since.or(since_time),
        tail: number("tailLines", 0)?.map(i64::unsigned_abs),
        limit_bytes: number("limitBytes", 1)?.map(i64::unsigned_abs),
    })
}

/// A request's parameters in order.
struct Query(Vec<(String, String)>);

impl Query {
    fn parse(text: &str) -> Query {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        Query(
            pairs
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(name, value)| (decode(name, true), decode(value, true)))
                .collect(),
        )
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(have, _)| have == name).map(|(_, value)| value.as_str())
    }

    fn first(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }

    fn truth(&self, name: &str) -> bool {
        self.first(name).is_some_and(is_true)
    }
}

/// Percent-decoding; in queries a plus is a space. What is not an escape stays as it is.
fn decode(text: &str, plus: bool) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.as_bytes();
    while let Some((first, rest)) = bytes.split_first() {
        bytes = rest;
        let escaped = rest
            .get(..2)
            .filter(|_| *first == b'%')
            .and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match escaped {
            Some(byte) => {
                out.push(byte);
                bytes = rest.get(2..).unwrap_or_default();
            }
            None if *first == b'+' && plus => out.push(b' '),
            None => out.push(*first),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read_as_clients_write_them() {
        let query = Query::parse("command=sh&command=-c&command=echo+%26%20a%2Bb&tty=1&x&%zz=%");
        assert_eq!(query.all("command").collect::<Vec<_>>(), ["sh", "-c", "echo & a+b"]);
        assert!(query.truth("tty") && query.truth("x") && !query.truth("stdin"));
        assert_eq!(query.first("%zz"), Some("%"));
    }

    #[test]
    fn log_options_are_upstreams() {
        let now: Timestamp = "2026-11-21T04:00:00Z".parse().unwrap();
        let options = |query: &str| log_options(&Query::parse(query), now).map_err(|status| status.message);
        let expected = LogOptions {
            follow: true,
            tail: Some(0),
            limit_bytes: Some(9),
            since: "2026-11-21T03:59:55Z".parse().ok(),
            ..LogOptions::default()
        };
        assert_eq!(options("follow=true&tailLines=0&limitBytes=9&sinceSeconds=5"), Ok(expected));
        assert_eq!(options("sinceSeconds=9223372036854775807").map(|options| options.since), Ok(Some(Timestamp::MIN)));
        for bad in [
            "tailLines=-1",
            "tailLines=x",
            "limitBytes=0",
            "sinceSeconds=0",
            "sinceTime=now",
            "sinceSeconds=1&sinceTime=2026-11-21T03:59:55Z",
        ] {
            assert!(options(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_port_forward_goes_over_what_the_client_knows() {
        let carrier = |protocols: &'static str, query: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(WEBSOCKET_KEY, HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
            if !protocols.is_empty() {
                headers.insert(WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocols));
            }
            upgrade_forward(&headers, &Query::parse(query)).map(|(_, carrier)| carrier).map_err(|status| status.code)
        };
        let channels = |base64, ports: &[u16]| Ok(Some(Carrier::Channels { base64, ports: ports.to_vec() }));
        assert_eq!(carrier("v4.channel.k8s.io", "port=80,81&port=82"), channels(false, &[80, 81, 82]));
        assert_eq!(carrier("v9.x, v4.base64.channel.k8s.io", "port=80"), channels(true, &[80]));
        assert_eq!(carrier("", "port=80"), channels(false, &[80]));
        assert_eq!(carrier("SPDY/3.1+portforward.k8s.io", ""), Ok(Some(Carrier::Tunnel)));
        let many = format!("port={}", vec!["80"; websocket::MAX_PORTS + 1].join(","));
        for (protocols, query) in
            [("v9.x", "port=80"), ("", ""), ("", "port=0"), ("", "port=80,"), ("", "port=65536"), ("", &many)]
        {
            assert_eq!(carrier(protocols, query), Err(400), "{protocols} {query}");
        }
    }

    #[test]
    fn a_terminal_has_no_stderr() {
        let wanted = |query: &str| wanted(&Query::parse(query)).map_err(|status| status.code);
        assert_eq!(
            wanted("input=1&output=1&error=1&tty=1"),
            Ok(Wanted { stdin: true, stdout: true, stderr: false, tty: true })
        );
        assert_eq!(wanted("stdout=true&stderr=true"), Ok(Wanted { stdout: true, stderr: true, ..Wanted::default() }));
        assert_eq!(wanted("tty=1"), Err(400));
    }

    #[test]
    fn the_clients_first_known_protocol_wins() {
        let headers = |pairs: &[(&'static str, &'static str)]| -> HeaderMap {
            pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
        };
        let spdy =
            headers(&[("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", "v9.channel.k8s.io, v3.channel.k8s.io")]);
        let (response, _) = upgrade_channels(&spdy).ok().unwrap();
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        assert_eq!(response.headers()[PROTOCOL_VERSION], "v3.channel.k8s.io");
        let unknown = headers(&[("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", "v9.channel.k8s.io")]);
        assert_eq!(upgrade_channels(&unknown).err().map(|status| status.code), Some(403));
        assert_eq!(upgrade_channels(&headers(&[])).err().map(|status| status.code), Some(400));
        let key = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        let socket = headers(&[
            ("upgrade", "websocket"),
            key,
            ("sec-websocket-protocol", "v5.channel.k8s.io, v4.channel.k8s.io"),
        ]);
        let (response, _) = upgrade_channels(&socket).ok().unwrap();
        assert_eq!(response.headers()[WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(response.headers()[WEBSOCKET_PROTOCOL], "v5.channel.k8s.io");
    }
}
