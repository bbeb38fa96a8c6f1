//! Calls to webhooks: HTTPS to a URL or to a Service's endpoint, each webhook with connections and slots of its own, so
//! that a dead one is in nobody's way.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;

use super::trust;
use crate::api::Api;
use crate::backends;

/// Calls to one webhook at a time; more wait, and their time runs.
const CALLS: usize = 64;
/// Connections to one webhook that are kept open while nothing is asked, and for how long.
const IDLE: usize = 8;
const IDLE_TIME: Duration = Duration::from_secs(60);
/// An answer beyond this is refused, in bytes (upstream's limit of a request body).
const MAX_ANSWER: usize = 3 << 20;
/// How much of an answer that is an error is shown, in characters.
const MAX_SHOWN: usize = 1024;

/// Where something is reached that is configured by `clientConfig`.
#[derive(Debug)]
enum Place {
    Address { host: String, port: u16 },
    Service { namespace: String, name: String, port: u16 },
}

/// One end that is asked, with its connections.
pub struct Endpoint {
    place: Place,
    /// `https://host:port/path`, for messages.
    url: String,
    authority: String,
    path: String,
    name: ServerName<'static>,
    tls: Arc<rustls::ClientConfig>,
    idle: Mutex<Vec<(Instant, SendRequest<Full<Bytes>>)>>,
    slots: Semaphore,
}

impl Endpoint {
    /// Of a `clientConfig`: `url`, or `service` with `path`; and `caBundle`.
    ///
    /// # Errors
    /// What of it cannot be used, in words.
    pub fn new(config: &Value) -> Result<Self, String> {
        let text = |path: &[&str]| mainstay_api::object::text(config, path).to_owned();
        let tls = trust::client(&text(&["caBundle"]))?;
        let (place, authority, path) = match config.get("service").filter(|service| service.is_object()) {
            Some(service) => {
                let port = service.get("port").and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
                let (namespace, name) = (text(&["service", "namespace"]), text(&["service", "name"]));
                let (port, host) = (port.unwrap_or(443), format!("{name}.{namespace}.svc"));
                let path = text(&["service", "path"]);
                let path = if path.starts_with('/') { path } else { format!("/{path}") };
                (Place::Service { namespace, name, port }, format!("{host}:{port}"), path)
            }
            None => {
                let url: http::Uri = text(&["url"]).parse().map_err(|error| format!("the webhook's url: {error}"))?;
                let authority = url.authority().ok_or("the webhook's url names no host")?;
                let host = authority.host().trim_matches(['[', ']']).to_owned();
                let place = Place::Address { host, port: authority.port_u16().unwrap_or(443) };
                (place, authority.to_string(), url.path().to_owned())
            }
        };
        let host = match &place {
            Place::Address { host, .. } => host.clone(),
            Place::Service { namespace, name, .. } => format!("{name}.{namespace}.svc"),
        };
        Ok(Self {
            url: format!("https://{authority}{path}"),
            name: ServerName::try_from(host).map_err(|error| error.to_string())?,
            place,
            authority,
            path,
            tls,
            idle: Mutex::default(),
            slots: Semaphore::new(CALLS),
        })
    }

    /// Posts JSON and gives the answer's body. What waits for a slot is part of `timeout`.
    ///
    /// # Errors
    /// Upstream's words for what went wrong, with the URL.
    pub async fn post(&self, api: &Api, body: Bytes, timeout: Duration) -> Result<Bytes, String> {
        let seconds = timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0);
        let target = format!("{}?timeout={seconds}s", self.path);
        let work = async {
            let _slot = self.slots.acquire().await.map_err(|error| error.to_string())?;
            self.exchange(api, &target, body).await
        };
        let shown = || format!("Post \"{}?timeout={seconds}s\"", self.url);
        match tokio::time::timeout(timeout, work).await {
            Err(_) => Err(format!("{}: context deadline exceeded", shown())),
            Ok(Err(error)) => Err(format!("{}: {error}", shown())),
            Ok(Ok((status, body))) if status.is_success() => Ok(body),
            Ok(Ok((StatusCode::NOT_FOUND, _))) => Err("the server could not find the requested resource".to_owned()),
            Ok(Ok((status, body))) => {
                let text: String = String::from_utf8_lossy(&body).chars().take(MAX_SHOWN).collect();
                Err(match status.is_server_error() {
                    true => format!("an error on the server ({text:?}) has prevented the request from succeeding"),
                    false => format!("the server answered {status}: {text}"),
                })
            }
        }
    }

    async fn exchange(&self, api: &Api, target: &str, body: Bytes) -> Result<(StatusCode, Bytes), String> {
        while let Some(mut kept) = self.take_idle() {
            if kept.ready().await.is_err() {
                continue;
            }
            match self.send(kept, target, body.clone()).await {
                Ok(answer) => return Ok(answer),
                // The other end has closed it meanwhile, before it has read the question.
                Err(error) if error.is_canceled() || error.is_incomplete_message() => break,
                Err(error) => return Err(error.to_string()),
            }
        }
        let fresh = self.connect(api).await?;
        self.send(fresh, target, body).await.map_err(|error| words(&error))
    }

    fn take_idle(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(since, _)| since.elapsed() < IDLE_TIME);
        idle.pop().map(|(_, sender)| sender)
    }

    async fn send(
        &self,
        mut sender: SendRequest<Full<Bytes>>,
        target: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), hyper::Error> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = http::Method::POST;
        if let Ok(uri) = target.parse() {
            *request.uri_mut() = uri;
        }
        let headers = request.headers_mut();
        for (name, value) in [
            (header::HOST, self.authority.as_str()),
            (header::CONTENT_TYPE, "application/json"),
            (header::ACCEPT, "application/json, */*"),
            (header::USER_AGENT, concat!("mainstay-admission/", env!("CARGO_PKG_VERSION"))),
        ] {
            if let Ok(value) = header::HeaderValue::try_from(value) {
                headers.insert(name, value);
            }
        }
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let Ok(body) = Limited::new(answer.into_body(), MAX_ANSWER).collect().await else {
            // Too long, or cut: as an answer that says nothing.
            return Ok((status, Bytes::new()));
        };
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE && !sender.is_closed() {
            idle.push((Instant::now(), sender));
        }
        Ok((status, body.to_bytes()))
    }

    async fn connect(&self, api: &Api) -> Result<SendRequest<Full<Bytes>>, String> {
        let addresses = match &self.place {
            Place::Address { host, port } if host.contains(':') => vec![format!("[{host}]:{port}")],
            Place::Address { host, port } => vec![format!("{host}:{port}")],
            Place::Service { namespace, name, port } => backends::addresses(api, namespace, name, *port)?,
        };
        let (stream, _) = backends::dial(&addresses).await?;
        let stream = TlsConnector::from(self.tls.clone()).connect(self.name.clone(), stream).await;
        let stream = stream.map_err(|error| format!("tls: failed to verify certificate: {error}"))?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| words(&error))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a webhook's connection ended early");
            }
        });
        Ok(sender)
    }
}

fn words(error: &hyper::Error) -> String {
    if error.is_incomplete_message() { "EOF".to_owned() } else { error.to_string() }
}
