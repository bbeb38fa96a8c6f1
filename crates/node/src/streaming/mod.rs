//! The node's own HTTPS server (the kubelet's port): logs, exec, attach and port-forward, and images that are sent to
//! it.
//!
//! kubectl's requests reach it through the API server, which passes bytes on in both directions and proves itself with
//! its client certificate. Others ask by themselves (who measures the cluster), with a certificate or a bearer token.
//! Paths and answers are the kubelet's.
//!
//! - [`routes`]: from a request to an answer or a session
//! - [`tls`]: certificates, and whose they are
//! - [`access`]: who may do what here, as the API server says
//! - [`backend`]: what the kubelet tells, and which container a request means
//! - [`logs`]: log files as a stream
//! - [`machine_logs`]: the machine's own log files
//! - [`stats`], [`cadvisor`]: what the node and its containers use
//! - [`room`]: what is left in volumes
//! - [`exposition`]: metrics as text
//! - [`exec`]: a command's streams joined to a client's [`channels`]
//! - [`images`]: image archives that are sent here
//! - [`portforward`]: ports inside a pod's network namespace
//! - [`spdy`], [`websocket`]: the two protocols that carry channels

pub mod access;
pub mod backend;
mod cadvisor;
pub mod channels;
pub mod exec;
pub(crate) mod exposition;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
pub mod images;
pub mod logs;
mod machine_logs;
pub mod portforward;
pub mod room;
mod routes;
pub mod spdy;
pub mod stats;
#[cfg(test)]
mod tests;
mod tls;
pub mod websocket;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mainstay_client::Rotating;
use mainstay_tasks::listen::{self, Connection};
use mainstay_tasks::{Health, Limits, Slots, keep};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_rustls::server::TlsStream;

use self::access::Delegated;
pub use self::access::Reviews;
pub use self::backend::{Backend, Containers};
use self::routes::Server;
use self::tls::Access;

/// Connections: those of the API server and of administrators have slots of their own, which nobody else can take.
const CONNECTIONS: Limits = Limits {
    strangers: 256,
    strangers_per_address: 64,
    known: 64,
    known_per_user: 16,
    system: 1024,
    system_per_user: 1024,
};
/// How long a client may take for each request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest request head (bytes); a command's words are in its path.
const MAX_HEAD: usize = 256 * 1024;
/// How long a stream may be idle (upstream's streamingConnectionIdleTimeout).
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(4 * 60 * 60);

/// Where and as whom to serve.
#[derive(Clone)]
pub struct StreamingConfig {
    /// The kubelet's port is 10250; port 0 takes any free one.
    pub listen: SocketAddr,
    /// The node's serving certificate and key.
    pub serving: Arc<Rotating>,
    /// The CA that signs client certificates, PEM.
    pub client_ca_pem: String,
    /// Common names of clients beside `O=system:masters`: the API server's kubelet client.
    pub clients: Vec<String>,
    /// See [`IDLE_TIMEOUT`].
    pub idle_timeout: Duration,
    /// The folder of the machine's own log files: `/var/log`.
    pub machine_logs: PathBuf,
    /// `KubeletConfiguration`: what of it holds here, for `/configz`.
    pub configuration: serde_json::Value,
}

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StreamingError {
    #[error("kubelet server: TLS: {0}")]
    Tls(String),
    #[error("kubelet server: cannot listen on {address}: {source} (another port: --node-port)")]
    Listen { address: SocketAddr, source: std::io::Error },
}

/// The running server. Dropping it ends it and every session.
pub struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A server whose port is taken, and that does not answer yet.
pub struct Listening {
    /// Where it listens.
    pub address: SocketAddr,
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    config: StreamingConfig,
}

/// Takes the port, so that it can be told to others before anybody can answer on it.
///
/// # Errors
/// Certificates that cannot be used, or an address that cannot be listened on.
pub async fn listen(config: StreamingConfig) -> Result<Listening, StreamingError> {
    let tls = Arc::new(tls::config(config.serving.clone(), &config.client_ca_pem)?);
    let failed = |source| StreamingError::Listen { address: config.listen, source };
    let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok(Listening { address, listener, tls, config })
}

impl Listening {
    /// Answers from now on.
    pub fn serve(
        self,
        backend: Arc<dyn Backend>,
        containers: Arc<dyn Containers>,
        reviews: Arc<dyn Reviews>,
        health: Health,
    ) -> Running {
        let looks = stats::Looks::default();
        let access = Delegated::new(reviews, backend.node_name());
        let loading = Arc::new(Semaphore::new(1));
        let server = Arc::new(Server { config: self.config, backend, containers, access, looks, loading });
        let (listener, tls, slots) = (Arc::new(self.listener), self.tls, Slots::new(CONNECTIONS));
        let accepting = keep(health, "streaming", move || {
            let (server, listener, tls, slots) = (server.clone(), listener.clone(), tls.clone(), slots.clone());
            async move {
                let serve = move |stream, peer| connection(stream, peer, server.clone());
                listen::accept(&listener, tls, slots, std::future::pending(), serve).await;
            }
        });
        Running { address: self.address, task: tokio::spawn(accepting) }
    }
}

async fn connection(stream: TlsStream<TcpStream>, peer: Connection, server: Arc<Server>) {
    let who = tls::access(stream.get_ref().1.peer_certificates(), &server.config.clients);
    let Ok(address) = stream.get_ref().0.peer_addr() else { return };
    let is_full = who == Access::Full;
    if is_full && !peer.authenticate("api-server", true) {
        return;
    }
    // An upgrading request leaves its session here; it runs when HTTP has let go of the connection.
    let upgraded = Arc::new(Mutex::new(None));
    let service = service_fn(|request| {
        let (server, who, peer, upgraded) = (server.clone(), who.clone(), peer.clone(), upgraded.clone());
        async move {
            // Until the answer's last byte, or the session's end.
            let active = peer.begin();
            let (mut response, session) = match routes::admit(&server, &who, address.ip(), &peer, &request).await {
                Err(refusal) => (routes::refused(&refusal), None),
                Ok(()) => match routes::answer(&server, request) {
                    Ok(routes::Answer::Plain(response)) => (response, None),
                    Ok(routes::Answer::Later(response)) => (response.await, None),
                    Ok(routes::Answer::Upgrade(response, session)) => (response, Some(session)),
                    Err(status) => (routes::refusal(&status), None),
                },
            };
            match session {
                Some(session) => {
                    *upgraded.lock().unwrap_or_else(PoisonError::into_inner) = Some((session, active));
                }
                None => response.body_mut().is_answered(active),
            }
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    // Whoever may do everything is in nobody's way: its connections are kept.
    let _active = is_full.then(|| peer.begin());
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(MAX_HEAD);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).with_upgrades().await {
        tracing::debug!(%error, "kubelet server: a connection ended early");
    }
    let session = upgraded.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some((session, _active)) = session {
        session.await;
    }
}
