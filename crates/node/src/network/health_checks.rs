//! Tells load balancers which Services have endpoints on this node (`spec.healthCheckNodePort`): over HTTP on every
//! address of the node, whatever the path, in the form of upstream's proxy. 200 where there are ready endpoints and the
//! packet filter is what it should be, else 503.
//!
//! Anybody may ask, so whoever asks is answered once and quickly, and few at a time are (X5).

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use http::{Response, header};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mainstay_api::ObjectKey;
use mainstay_logic::kubelet::PodEvent;
use mainstay_logic::proxy::{self, HealthCheck};
use mainstay_tasks::{Limits, Slots};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

use super::view::View;
use crate::kubelet::events::{Events, Regarding};

/// How many may ask at a moment, of all Services.
const CONNECTIONS: Limits =
    Limits { strangers: 128, strangers_per_address: 16, known: 0, known_per_user: 0, system: 0, system_per_user: 0 };
/// How long a question and its answer may take.
const LIFE: Duration = Duration::from_secs(5);
/// The longest head of a request (bytes).
const MAX_HEAD: usize = 8 << 10;
/// How long a port that somebody else has is left alone.
const AGAIN: Duration = Duration::from_secs(5);
/// The pause after an `accept` that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

static SLOTS: LazyLock<Arc<Slots>> = LazyLock::new(|| Slots::new(CONNECTIONS));

/// The health checks of this node.
pub(super) struct HealthChecks {
    node: String,
    events: Events,
    /// The Services that are to be looked at.
    pub(super) due: BTreeSet<ObjectKey>,
    servers: BTreeMap<ObjectKey, Server>,
    /// Those whose port somebody has, which was told.
    refused: BTreeMap<ObjectKey, u16>,
    refused_at: Option<Instant>,
    is_well: Arc<AtomicBool>,
}

/// One Service's listener; closed when dropped.
struct Server {
    port: u16,
    endpoints: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl HealthChecks {
    pub(super) fn new(node: &str, events: Events) -> Self {
        Self {
            node: node.to_owned(),
            events,
            due: BTreeSet::new(),
            servers: BTreeMap::new(),
            refused: BTreeMap::new(),
            refused_at: None,
            is_well: Arc::default(),
        }
    }

    /// Looks at the Services that are due, on the running tokio runtime. `is_well` says whether the packet filter is as
    /// it should be.
    pub(super) fn bring_up(&mut self, view: &View, is_well: bool) {
        self.is_well.store(is_well, Ordering::Relaxed);
        if self.refused_at.is_some_and(|at| at.elapsed() >= AGAIN) {
            self.refused_at = None;
            self.due.extend(self.refused.keys().cloned());
        }
        for service in std::mem::take(&mut self.due) {
            let (check, uid) = view.read(|snapshot, _| {
                let uid = snapshot.services.get(&service).and_then(|service| service.metadata.uid.clone());
                (proxy::health_check(snapshot, &service, &self.node), uid)
            });
            self.set(service, check, uid.unwrap_or_default());
        }
    }

    fn set(&mut self, service: ObjectKey, check: Option<HealthCheck>, uid: String) {
        let Some(check) = check else {
            self.servers.remove(&service);
            self.refused.remove(&service);
            return;
        };
        if let Some(server) = self.servers.get(&service).filter(|server| server.port == check.port) {
            return server.endpoints.store(check.endpoints, Ordering::Relaxed);
        }
        self.servers.remove(&service);
        let endpoints = Arc::new(AtomicUsize::new(check.endpoints));
        let answering =
            Answering { service: service.clone(), endpoints: endpoints.clone(), is_well: self.is_well.clone() };
        match listen(check.port) {
            Ok(listener) => {
                self.refused.remove(&service);
                let task = tokio::spawn(serve(listener, answering)).abort_handle();
                self.servers.insert(service, Server { port: check.port, endpoints, task });
            }
            Err(error) => {
                self.refused_at.get_or_insert_with(Instant::now);
                if self.refused.insert(service.clone(), check.port) == Some(check.port) {
                    return;
                }
                let message = format!(
                    "node {} failed to start healthcheck \"{service}\" on port {}: {error}",
                    self.node, check.port
                );
                tracing::warn!(%service, port = check.port, %error, "the port of a health check cannot be had");
                let reason = "FailedToStartServiceHealthcheck";
                let event = PodEvent { warning: true, reason, message, container: None };
                let (namespace, name) = (service.namespace.to_string(), service.name.to_string());
                self.events.record(Regarding { kind: "Service".into(), namespace, name, uid }, event);
            }
        }
    }
}

fn listen(port: u16) -> std::io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// What one Service's answers are made of.
#[derive(Clone)]
struct Answering {
    service: ObjectKey,
    endpoints: Arc<AtomicUsize>,
    is_well: Arc<AtomicBool>,
}

impl Answering {
    fn answer(&self) -> Response<String> {
        let (endpoints, is_well) = (self.endpoints.load(Ordering::Relaxed), self.is_well.load(Ordering::Relaxed));
        let body = serde_json::json!({
            "service": { "namespace": &*self.service.namespace, "name": &*self.service.name },
            "localEndpoints": endpoints, "serviceProxyHealthy": is_well,
        });
        let mut response = Response::new(format!("{body:#}"));
        if endpoints == 0 || !is_well {
            *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
        }
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, http::HeaderValue::from_static("nosniff"));
        headers.insert("x-load-balancing-endpoint-weight", http::HeaderValue::from(endpoints));
        headers.insert(header::CONNECTION, http::HeaderValue::from_static("close"));
        response
    }
}

async fn serve(listener: TcpListener, answering: Answering) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
        };
        match accepted {
            Ok((stream, address)) => {
                let (slot, answering) = (SLOTS.admit(address.ip()), answering.clone());
                connections.spawn(async move {
                    tokio::select! {
                        () = connection(stream, answering) => {}
                        () = slot.gives_way() => {}
                        () = tokio::time::sleep(LIFE) => {}
                    }
                });
            }
            Err(error) => {
                tracing::debug!(%error, "a health check's connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, answering: Answering) {
    let service = service_fn(move |_| {
        let response = answering.answer();
        async move { Ok::<_, Infallible>(response) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(LIFE).max_buf_size(MAX_HEAD).keep_alive(false);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a health check's connection ended early");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn ask(address: std::net::SocketAddr) -> String {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: n\r\n\r\n").await.expect("asked");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("answered, and closed");
        text
    }

    #[tokio::test]
    async fn conformance_load_balancers_are_told_whether_there_are_endpoints_here() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let answering = Answering {
            service: ObjectKey::new("default", "web"),
            endpoints: Arc::new(AtomicUsize::new(2)),
            is_well: Arc::new(AtomicBool::new(true)),
        };
        let (endpoints, is_well) = (answering.endpoints.clone(), answering.is_well.clone());
        let task = tokio::spawn(serve(listener, answering));
        // Those who say nothing keep nobody out.
        let mut silent = Vec::new();
        for _ in 0..40 {
            silent.push(TcpStream::connect(address).await.expect("connected"));
        }
        let text = ask(address).await;
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        assert!(text.contains("content-type: application/json\r\n"), "{text}");
        assert!(text.contains("x-load-balancing-endpoint-weight: 2\r\n"), "{text}");
        let (_, body) = text.split_once("\r\n\r\n").expect("a body");
        let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
        let expected = serde_json::json!({ "service": { "namespace": "default", "name": "web" }, "localEndpoints": 2,
            "serviceProxyHealthy": true });
        assert_eq!(body, expected);
        is_well.store(false, Ordering::Relaxed);
        assert!(ask(address).await.starts_with("HTTP/1.1 503 "), "the packet filter is not what it should be");
        is_well.store(true, Ordering::Relaxed);
        endpoints.store(0, Ordering::Relaxed);
        assert!(ask(address).await.starts_with("HTTP/1.1 503 "), "no endpoint is here");
        task.abort();
    }
}
