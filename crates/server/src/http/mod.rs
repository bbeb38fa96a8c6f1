//! HTTPS: connections, requests, answers.

mod documents;
mod forward;
mod objects;
mod proxy;
mod respond;
mod reviews;
mod route;
mod serve;
mod shape;
mod watching;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::api::{Api, Tokens};
use crate::auth::User;
use crate::authorize::Authorizer;
use crate::fairness::Fairness;
use crate::{audit, auth};

/// Connections at a time; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 2048;
/// How long a client may take to greet.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a client may take over a request's head.
const HEAD: Duration = Duration::from_secs(30);
/// Requests at a time on one HTTP/2 connection, as upstream.
const MAX_STREAMS: u32 = 250;
/// A request head beyond this is refused, in bytes.
const MAX_HEAD: usize = 64 << 10;
/// How often a quiet HTTP/2 connection is asked whether it is still there, and how long it may take to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// What requests under way are given when the server stops.
const DRAIN: Duration = Duration::from_secs(2);

/// Counts for `/metrics`.
#[derive(Default)]
pub struct Counters {
    requests: AtomicU64,
    failures: AtomicU64,
    connections: AtomicU64,
    watches: AtomicU64,
}

/// Ways to say who one is that are configured by files.
#[derive(Default)]
pub struct Authenticators {
    /// `--token-auth-file`.
    pub tokens: auth::config::StaticTokens,
    /// `--authentication-config`.
    pub config: auth::config::Authentication,
    /// The issuers of that.
    pub issuers: auth::oidc::Issuers,
}

/// Who is at the other end of a connection.
#[derive(Clone)]
pub struct Peer {
    /// By their certificate.
    pub certified: Option<User>,
    /// Their address.
    pub address: String,
}

/// What every request needs.
pub struct Server {
    /// The pipeline.
    pub api: Api,
    /// Where pods and other machines reach the server.
    pub advertise: std::net::SocketAddr,
    /// Further ways to say who one is.
    pub authenticators: Authenticators,
    /// Whose turn it is.
    pub fairness: Fairness,
    /// The audit log, where there is one.
    pub audit: Option<Arc<audit::Log>>,
    /// Who may do what.
    pub authorizer: Arc<Authorizer>,
    /// Signs and checks service account tokens.
    pub tokens: Tokens,
    /// How the server proves itself to kubelets.
    pub kubelet_tls: Arc<rustls::ClientConfig>,
    /// Whether the cluster's first objects are there.
    pub ready: watch::Receiver<bool>,
    /// Stored objects that do not decode: controllers that look at their kinds stand still (A10).
    pub undecodable: watch::Receiver<Vec<String>>,
    /// Turns true when the server stops.
    pub closing: watch::Receiver<bool>,
    /// For `/metrics`.
    pub counters: Counters,
}

impl Server {
    /// Resolves when the server stops.
    pub fn closing(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut closing = self.closing.clone();
        async move {
            // An error means that the other end is gone, and so is the server.
            let _ = closing.wait_for(|closing| *closing).await;
        }
    }
}

/// Accepts connections until the server stops, then lets requests under way finish.
pub async fn accept(server: Arc<Server>, listener: TcpListener, tls: Arc<rustls::ServerConfig>) {
    let acceptor = TlsAcceptor::from(tls);
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    let mut closing = std::pin::pin!(server.closing());
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { break };
        let accepted = tokio::select! {
            () = &mut closing => break,
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
        };
        match accepted {
            Ok((stream, _)) => {
                let (server, acceptor) = (server.clone(), acceptor.clone());
                connections.spawn(async move {
                    serve_connection(server, acceptor, stream).await;
                    drop(permit);
                });
            }
            Err(error) => {
                // Out of file descriptors, mostly: the ones in use come back when their connections end.
                tracing::warn!(%error, "accepting a connection failed");
                tokio::select! {
                    () = &mut closing => break,
                    _ = connections.join_next() => {}
                }
            }
        }
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DRAIN, drained).await;
    connections.abort_all();
}

async fn serve_connection(server: Arc<Server>, acceptor: TlsAcceptor, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else { return };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let certified = certificate.and_then(|certificate| User::of_certificate(certificate));
    let address = stream.get_ref().0.peer_addr().map(|address| address.ip().to_string()).unwrap_or_default();
    let peer = Peer { certified, address };
    server.counters.connections.fetch_add(1, Ordering::Relaxed);
    let service = {
        let server = server.clone();
        service_fn(move |request| {
            let (server, peer) = (server.clone(), peer.clone());
            async move { Ok::<_, Infallible>(serve::serve(server, peer, request).await) }
        })
    };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(MAX_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    let mut connection = std::pin::pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = server.closing() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
    server.counters.connections.fetch_sub(1, Ordering::Relaxed);
}
