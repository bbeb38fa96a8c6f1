//! Connections to registries: HTTPS by the system's certificates, plain HTTP to this machine's loopback alone, through
//! the proxies that the environment names.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT, AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHORIZATION, RANGE, USER_AGENT,
};
use http::uri::{Authority, Uri};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::bounds::{MAX_HEAD, MAX_HEADERS, MAX_IDLE, MAX_REFUSAL, Patience};

/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 4;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

type Sender = SendRequest<Empty<Bytes>>;

/// Whom a request goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    pub is_secure: bool,
    /// As in a URL: IPv6 addresses in brackets.
    host: String,
    port: u16,
}

/// A URL.
#[derive(Clone, Debug)]
pub struct Location {
    pub origin: Origin,
    path: String,
    /// Not shown: it may be what lets its bearer in.
    query: Option<String>,
}

impl Location {
    /// `http` only on this machine's loopback: there is nobody between.
    pub fn parse(text: &str) -> Result<Location, String> {
        let shown = text.split(['?', '#']).next().unwrap_or_default();
        let wrong = |why: &str| format!("parse {shown:?}: {why}");
        let uri: Uri = text.split('#').next().unwrap_or_default().parse().map_err(|_| wrong("invalid URL"))?;
        let is_secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong("unsupported protocol scheme")),
        };
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| wrong("no host in URL"))?;
        if !is_secure && !is_loopback(host) {
            return Err(wrong("plain HTTP is spoken to this machine's loopback only"));
        }
        let port = uri.port_u16().unwrap_or(if is_secure { 443 } else { 80 });
        let origin = Origin { is_secure, host: host.to_ascii_lowercase(), port };
        Ok(Location { origin, path: uri.path().to_owned(), query: uri.query().map(str::to_owned) })
    }

    /// What a `Location` header means, sent by whom this is.
    pub fn join(&self, text: &str) -> Result<Location, String> {
        let is_absolute = text.split_once("://").is_some_and(|(scheme, _)| !scheme.contains(['/', '?', '#']));
        let scheme = if self.origin.is_secure { "https" } else { "http" };
        if is_absolute {
            return Location::parse(text);
        }
        if text.starts_with("//") {
            return Location::parse(&format!("{scheme}:{text}"));
        }
        let folder = self.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let path = if text.starts_with('/') { text.to_owned() } else { format!("{folder}/{text}") };
        Location::parse(&format!("{scheme}://{}{path}", self.origin.authority()))
    }

    /// With more in its query.
    pub fn with_query(&self, more: &str) -> Location {
        let query = self.query.as_ref().map_or_else(|| more.to_owned(), |query| format!("{query}&{more}"));
        Location { query: Some(query), ..self.clone() }
    }

    fn target(&self) -> String {
        match &self.query {
            Some(query) => format!("{}?{query}", self.path),
            None => self.path.clone(),
        }
    }
}

impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.origin.is_secure { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.origin.authority(), self.path)
    }
}

impl Origin {
    fn of(uri: &Uri) -> Option<Origin> {
        let is_secure = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if is_secure { 443 } else { 80 });
        Some(Origin { is_secure, host: uri.host()?.to_ascii_lowercase(), port })
    }

    fn authority(&self) -> String {
        if self.port == if self.is_secure { 443 } else { 80 } {
            self.host.clone()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    fn bare_host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }
}

/// True for the loopback's names and addresses, without a port.
pub fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// An answer whose body is still to be read.
pub struct Answer {
    response: Response<Incoming>,
    sender: Sender,
    origin: Origin,
    patience: Patience,
}

impl Answer {
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    pub fn header(&self, name: &HeaderName) -> Option<&str> {
        self.headers().get(name)?.to_str().ok()
    }

    /// The next bytes of the body, at most [`MAX_HEAD`]; None at its end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, String> {
        loop {
            let frame = timeout(self.patience.silence, self.response.body_mut().frame());
            match frame.await.map_err(|_| "read: i/o timeout".to_owned())? {
                None => return Ok(None),
                Some(Err(error)) => return Err(http_words(&error)),
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }
}

/// What a GET asks for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Media types.
    pub accept: &'static str,
    /// From which byte on.
    pub from: u64,
}

/// Where requests go out.
pub struct Wire {
    proxies: Matcher,
    /// Made when first needed.
    tls: Option<Arc<rustls::ClientConfig>>,
    idle: Vec<(Origin, Sender)>,
    patience: Patience,
}

impl Wire {
    /// Proxies as curl knows them: `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, in either case.
    pub fn new(patience: Patience) -> Wire {
        Wire { proxies: Matcher::from_env(), tls: None, idle: Vec::new(), patience }
    }

    #[cfg(test)]
    pub fn with(patience: Patience, proxies: Matcher, tls: rustls::ClientConfig) -> Wire {
        Wire { proxies, tls: Some(Arc::new(tls)), idle: Vec::new(), patience }
    }

    /// Sends one GET; redirections are not followed.
    pub async fn get(
        &mut self,
        to: &Location,
        wanted: Wanted,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answer, String> {
        let failed = |why: String| format!("Get \"{to}\": {why}");
        // One that was kept may have been closed meanwhile: then another one is opened.
        if let Some(at) = self.idle.iter().position(|(origin, _)| *origin == to.origin) {
            let (_, sender) = self.idle.swap_remove(at);
            if let Ok(answer) = self.send(sender, to, wanted, authorization).await {
                return Ok(answer);
            }
        }
        let opened = timeout(self.patience.connect, self.open(&to.origin)).await;
        let dial = || format!("dial tcp {}:{}: i/o timeout", to.origin.host, to.origin.port);
        let sender = opened.unwrap_or_else(|_| Err(dial())).map_err(failed)?;
        self.send(sender, to, wanted, authorization).await.map_err(failed)
    }

    /// Takes back the connection of an answer of which nobody wants more, where little of it is left.
    pub async fn keep(&mut self, mut answer: Answer) {
        let mut left = MAX_REFUSAL;
        while let Ok(Some(bytes)) = answer.chunk().await {
            let Some(less) = left.checked_sub(bytes.len()) else { return };
            left = less;
        }
        self.idle.truncate(MAX_IDLE - 1);
        self.idle.insert(0, (answer.origin, answer.sender));
    }

    async fn send(
        &self,
        mut sender: Sender,
        to: &Location,
        wanted: Wanted,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answer, String> {
        let mut request = Request::get(to.target())
            .header(HOST, to.origin.authority())
            .header(USER_AGENT, concat!("mainstay/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, wanted.accept);
        if wanted.from > 0 {
            request = request.header(RANGE, format!("bytes={}-", wanted.from));
        }
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request.body(Empty::new()).map_err(|error| error.to_string())?;
        let exchange = async {
            sender.ready().await?;
            sender.send_request(request).await
        };
        let response = timeout(self.patience.silence, exchange).await;
        let response = response.map_err(|_| "i/o timeout awaiting response headers".to_owned())?;
        let response = response.map_err(|error| http_words(&error))?;
        Ok(Answer { response, sender, origin: to.origin.clone(), patience: self.patience })
    }

    async fn open(&mut self, origin: &Origin) -> Result<Sender, String> {
        let uri: Option<Uri> = format!("https://{}/", origin.authority()).parse().ok();
        // What is on this machine is reached without a proxy, as with upstream's runtimes.
        let proxy = uri.filter(|_| !is_loopback(&origin.host)).and_then(|uri| self.proxies.intercept(&uri));
        let stream = match proxy {
            Some(proxy) => self.tunnel(&proxy, origin).await?,
            None => Box::new(dial(origin, self.patience.connect).await?),
        };
        let stream = if origin.is_secure { self.secured(stream, origin).await? } else { stream };
        handshake(stream).await
    }

    /// Through a proxy, by CONNECT.
    async fn tunnel(&mut self, proxy: &Intercept, origin: &Origin) -> Result<Box<dyn Stream>, String> {
        let failed = |why: String| format!("proxyconnect tcp: {why}");
        let is_known = matches!(proxy.uri().scheme_str(), Some("http" | "https"));
        let at = Origin::of(proxy.uri()).filter(|_| is_known);
        let at = at.ok_or_else(|| failed("only http and https proxies are supported".to_owned()))?;
        let stream = Box::new(dial(&at, self.patience.connect).await.map_err(failed)?);
        let stream = if at.is_secure { self.secured(stream, &at).await.map_err(failed)? } else { stream };
        let mut sender = handshake(stream).await.map_err(failed)?;
        let target = format!("{}:{}", origin.host, origin.port);
        let authority: Authority = target.parse().map_err(|_| failed(format!("{target:?} is no address")))?;
        let uri = Uri::builder().authority(authority).build().map_err(|error| failed(error.to_string()))?;
        let mut request = Request::builder().method(Method::CONNECT).uri(uri).header(HOST, target);
        if let Some(auth) = proxy.basic_auth() {
            request = request.header(PROXY_AUTHORIZATION, auth);
        }
        let request = request.body(Empty::new()).map_err(|error| failed(error.to_string()))?;
        let response = sender.send_request(request).await.map_err(|error| failed(http_words(&error)))?;
        if !response.status().is_success() {
            return Err(failed(response.status().to_string()));
        }
        let stream = hyper::upgrade::on(response).await.map_err(|error| failed(http_words(&error)))?;
        Ok(Box::new(TokioIo::new(stream)))
    }

    async fn secured(&mut self, stream: Box<dyn Stream>, origin: &Origin) -> Result<Box<dyn Stream>, String> {
        let tls = match &self.tls {
            Some(tls) => tls.clone(),
            None => {
                let made = tokio::task::spawn_blocking(system_tls).await.map_err(|error| error.to_string())??;
                self.tls.insert(Arc::new(made)).clone()
            }
        };
        let name = ServerName::try_from(origin.bare_host().to_owned()).map_err(|error| error.to_string())?;
        let stream = tokio_rustls::TlsConnector::from(tls).connect(name, stream).await;
        Ok(Box::new(stream.map_err(|error| tls_words(&error))?))
    }
}

async fn handshake(stream: Box<dyn Stream>) -> Result<Sender, String> {
    let mut builder = Builder::new();
    builder.max_buf_size(MAX_HEAD).max_headers(MAX_HEADERS);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(|error| http_words(&error))?;
    // It ends with its sender and its answer.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a registry's connection ended early");
        }
    });
    Ok(sender)
}

/// A connection to one of a name's addresses, IPv4 first: nodes have no IPv6 of their own.
async fn dial(origin: &Origin, patience: Duration) -> Result<TcpStream, String> {
    let found = tokio::net::lookup_host((origin.bare_host(), origin.port)).await;
    let found = found.map_err(|error| format!("dial tcp: lookup {}: {}", origin.host, lookup_words(&error)))?;
    let mut addresses: Vec<SocketAddr> = found.collect();
    addresses.sort_by_key(SocketAddr::is_ipv6);
    addresses.truncate(MAX_ADDRESSES);
    let share = patience / u32::try_from(addresses.len().max(1)).unwrap_or(1);
    let mut why = format!("dial tcp: lookup {}: no such host", origin.host);
    for address in addresses {
        let connected = timeout(share, TcpStream::connect(address)).await;
        match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => {
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(error) => why = format!("dial tcp {address}: {}", io_words(&error)),
        }
    }
    Err(why)
}

/// The system's certificates, or those of `SSL_CERT_FILE` and `SSL_CERT_DIR`.
fn system_tls() -> Result<rustls::ClientConfig, String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err("tls: this machine has no certificate authorities (Debian's package ca-certificates)".to_owned());
    }
    client_tls(roots)
}

pub fn client_tls(roots: rustls::RootCertStore) -> Result<rustls::ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Ok(config.map_err(|error| error.to_string())?.with_root_certificates(roots).with_no_client_auth())
}

fn lookup_words(error: &io::Error) -> String {
    let text = error.to_string();
    if text.contains("not known") || text.contains("No address") { "no such host".to_owned() } else { text }
}

fn tls_words(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(why)) => format!("tls: failed to verify certificate: {why}"),
        Some(other) => format!("tls: {other}"),
        None => format!("tls: {}", io_words(error)),
    }
}

fn io_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::TimedOut => "i/o timeout".to_owned(),
        io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        io::ErrorKind::ConnectionReset => "read: connection reset by peer".to_owned(),
        io::ErrorKind::UnexpectedEof => "EOF".to_owned(),
        _ => error.to_string(),
    }
}

/// An error with its causes, which say what the outermost does not.
fn http_words(error: &hyper::Error) -> String {
    if error.is_incomplete_message() {
        return "unexpected EOF".to_owned();
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let words = cause.downcast_ref::<io::Error>().map_or_else(|| cause.to_string(), io_words);
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirection_is_followed_as_browsers_do_and_never_to_plain_http_elsewhere() {
        let from = |base: &str, text: &str| {
            Location::parse(base).and_then(|base| base.join(text)).map(|to| format!("{to} {}", to.target()))
        };
        let base = "https://Reg.example:5000/v2/a/blobs/x?secret=1";
        let table = [
            ("/b?c=d#e", "https://reg.example:5000/b /b?c=d"),
            ("b", "https://reg.example:5000/v2/a/blobs/b /v2/a/blobs/b"),
            ("//cdn.example/b?u=http://c", "https://cdn.example/b /b?u=http://c"),
            ("https://user:word@cdn.example:443/b", "https://cdn.example/b /b"),
            ("https://[::1]:7/", "https://[::1]:7/ /"),
            ("http://localhost/b", "http://localhost/b /b"),
        ];
        for (text, expected) in table {
            assert_eq!(from(base, text).unwrap(), expected);
        }
        for bad in ["http://cdn.example/b?secret=2", "ftp://cdn.example/b?secret=2", "https:///b", "https://a b/"] {
            let error = from(base, bad).unwrap_err();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
