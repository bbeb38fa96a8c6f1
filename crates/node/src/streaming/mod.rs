//! The node's own HTTPS server (the kubelet's port): logs, exec, attach and port-forward.
//!
//! kubectl's requests reach it through the API server, which passes bytes on in both directions and proves itself with
//! its client certificate. Paths and answers are the kubelet's.
//!
//! - [`routes`]: from a request to an answer or a session
//! - [`tls`]: certificates, and who may talk to this server
//! - [`backend`]: what the kubelet tells, and which container a request means
//! - [`logs`]: log files as a stream
//! - [`exec`]: a command's streams joined to a client's [`channels`]
//! - [`portforward`]: ports inside a pod's network namespace
//! - [`spdy`], [`websocket`]: the two protocols that carry channels

pub mod backend;
pub mod channels;
pub mod exec;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
pub mod logs;
pub mod portforward;
mod routes;
pub mod spdy;
#[cfg(test)]
mod tests;
mod tls;
pub mod websocket;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

pub use self::backend::{Backend, Containers};
use self::routes::Server;

/// Connections at a time; further ones wait.
const MAX_CONNECTIONS: usize = 1024;
/// How long a client may take for its TLS handshake, and then for each request's head.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest request head (bytes); a command's words are in its path.
const MAX_HEAD: usize = 256 * 1024;
/// The pause after an `accept` that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a stream may be idle (upstream's streamingConnectionIdleTimeout).
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(4 * 60 * 60);

/// Where and as whom to serve.
#[derive(Clone)]
pub struct StreamingConfig {
    /// The kubelet's port is 10250; port 0 takes any free one.
    pub listen: SocketAddr,
    /// The node's serving certificate and key, PEM.
    pub certificate_pem: String,
    pub key_pem: String,
    /// The CA that signs client certificates, PEM.
    pub client_ca_pem: String,
    /// Common names of clients beside `O=system:masters`: the API server's kubelet client.
    pub clients: Vec<String>,
    /// See [`IDLE_TIMEOUT`].
    pub idle_timeout: Duration,
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
    acceptor: TlsAcceptor,
    config: StreamingConfig,
}

/// Takes the port, so that it can be told to others before anybody can answer on it.
///
/// # Errors
/// Certificates that cannot be used, or an address that cannot be listened on.
pub async fn listen(config: StreamingConfig) -> Result<Listening, StreamingError> {
    let acceptor =
        TlsAcceptor::from(Arc::new(tls::config(&config.certificate_pem, &config.key_pem, &config.client_ca_pem)?));
    let failed = |source| StreamingError::Listen { address: config.listen, source };
    let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok(Listening { address, listener, acceptor, config })
}

impl Listening {
    /// Answers from now on.
    pub fn serve(self, backend: Arc<dyn Backend>, containers: Arc<dyn Containers>) -> Running {
        let server = Arc::new(Server { config: self.config, backend, containers });
        Running { address: self.address, task: tokio::spawn(accept(self.listener, self.acceptor, server)) }
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, server: Arc<Server>) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            (permit, stream) = async { (permits.clone().acquire_owned().await, listener.accept().await) } => match stream {
                Ok((stream, _)) => {
                    let (acceptor, server) = (acceptor.clone(), server.clone());
                    connections.spawn(async move {
                        connection(stream, acceptor, server).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "kubelet server: accepting a connection failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, server: Arc<Server>) {
    let _ = stream.set_nodelay(true);
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await else { return };
    let access = tls::access(stream.get_ref().1.peer_certificates(), &server.config.clients);
    // An upgrading request leaves its session here; it runs when HTTP has let go of the connection.
    let upgraded = Arc::new(Mutex::new(None));
    let service = service_fn(|request| {
        let answer = routes::answer(&server, access, request);
        let (response, session) = match answer {
            Ok(routes::Answer::Plain(response)) => (response, None),
            Ok(routes::Answer::Upgrade(response, session)) => (response, Some(session)),
            Err(status) => (routes::refusal(&status), None),
        };
        if let Some(session) = session {
            *upgraded.lock().unwrap_or_else(PoisonError::into_inner) = Some(session);
        }
        std::future::ready(Ok::<_, std::convert::Infallible>(response))
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HANDSHAKE_TIMEOUT).max_buf_size(MAX_HEAD);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).with_upgrades().await {
        tracing::debug!(%error, "kubelet server: a connection ended early");
    }
    let session = upgraded.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(session) = session {
        session.await;
    }
}
